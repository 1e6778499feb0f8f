%% Arrays as terms, with no node: what can be made, what is refused, and what parts are.
-module(py_data_SUITE).

-include_lib("stdlib/include/assert.hrl").

-export([all/0]).
-compile([export_all, nowarn_export_all]).

all() ->
    [an_array_knows_its_dtype_its_shape_and_its_size,
     lists_come_back_as_they_were_written,
     a_number_that_the_dtype_has_not_is_refused,
     a_float_is_rounded_to_its_dtype,
     lists_that_are_no_rows_are_refused,
     bytes_that_do_not_fit_their_shape_are_refused,
     terms_that_are_no_arrays_are_told,
     rows_and_slices_are_parts_of_the_same_binary,
     rows_that_are_not_there_are_refused,
     another_shape_has_as_many_items,
     lists_of_nothing_are_bounded,
     tables_are_streams].

an_array_knows_its_dtype_its_shape_and_its_size(_) ->
    Array = py_data:array(int16, {2, 3}, <<0:96>>),
    ?assertEqual({py_array, <<"<i2">>, [2, 3], {bytes, <<0:96>>}}, Array),
    ?assertEqual({<<"<i2">>, [2, 3], <<0:96>>, 6, 2},
                 {py_data:dtype(Array), py_data:shape(Array), py_data:binary(Array), py_data:size(Array),
                  py_data:item_size(Array)}),
    ?assertEqual({py_array, <<"|b1">>, [1], {bytes, <<1>>}}, py_data:array(<<"bool">>, [1], <<1>>)).

lists_come_back_as_they_were_written(_) ->
    Halves = [[0.5, infinity], [neg_infinity, nan], [-0.25, 2.0]],
    Cases = [{int8, [-128, 127]}, {<<">i2">>, [[-2], [513]]}, {uint64, 1 bsl 64 - 1}, {bool, [true, false]},
             {float16, Halves}, {<<">f4">>, Halves}, {float64, Halves}, {int32, []}, {int32, [[], []]},
             {complex64, [{1.5, nan}]}, {<<">c16">>, [[{0.1, -2.5}]]}, {<<"<M8[ms]">>, [-1, 0]}],
    [?assertEqual(Items, py_data:to_list(py_data:from_list(Dtype, Items))) || {Dtype, Items} <- Cases],
    ?assertEqual(<<1, 2, 0, 5>>, py_data:binary(py_data:from_list(<<">i2">>, [258, 5]))),
    ?assertEqual(<<0, 0, 128, 63, 0, 0, 0, 64>>, py_data:binary(py_data:from_list(complex64, [{1, 2}]))).

a_number_that_the_dtype_has_not_is_refused(_) ->
    [?assertError(badarg, py_data:from_list(Dtype, [Item]))
     || {Dtype, Item} <- [{int8, 128}, {int8, -129}, {uint8, 256}, {uint8, -1}, {int64, 1 bsl 63}, {uint64, 1 bsl 64},
                          {int8, 1.0}, {int8, true}, {bool, 1}, {float64, true}, {float64, 1 bsl 2000}, {float32, 1.0e39},
                          {float16, 70000.0}, {float32, <<"1">>}, {complex64, 1.0}, {complex64, {1.0, x}},
                          {<<"|O8">>, x}, {float8, 1.0}, {<<>>, 1}, {7, 1}]].

a_float_is_rounded_to_its_dtype(_) ->
    [Third] = py_data:to_list(py_data:from_list(float32, [1 / 3])),
    ?assert(abs(Third - 1 / 3) < 1.0e-7),
    ?assertNotEqual(1 / 3, Third).

lists_that_are_no_rows_are_refused(_) ->
    [?assertError(badarg, py_data:from_list(int8, Items))
     || Items <- [[1, [2]], [[1], 2], [[1], [2, 3]], [[1, 2], [3]], [[[1]], [[]]], [1 | 2]]].

bytes_that_do_not_fit_their_shape_are_refused(_) ->
    [?assertError(badarg, py_data:array(float64, Shape, Binary))
     || {Shape, Binary} <- [{[2], <<0:64>>}, {[0], <<0:64>>}, {[], <<>>}, {[-1, -1], <<0:64>>}, {[1.0], <<0:64>>}, {[1 | 2], <<0:64>>},
                            {1, <<0:64>>}, {[1], "12345678"}, {[1], <<0:63>>}, {lists:duplicate(33, 1), <<0:64>>}]].

terms_that_are_no_arrays_are_told(_) ->
    [?assertNot(py_data:is_array(Term))
     || Term <- [x, {py_array, <<"<f8">>, [1]}, {py_array, <<"<f8">>, [1], {bytes, <<1>>}}, {py_array, float64, [1], {bytes, <<0:64>>}},
                 {py_array, <<"<f9">>, [1], <<0:72>>}, {py_array, <<"|f8">>, [1], <<0:64>>}, {py_array, <<"<M8[xs]">>, [1], <<0:64>>},
                 {py_array, <<"<M8[s]\n">>, [1], <<0:64>>}, {py_array, <<"<f8">>, {1}, <<0:64>>}, {py_array, <<"<f8">>, [x], <<0:64>>}]],
    ?assert(py_data:is_array({py_array, <<"<f8">>, [1], <<0:64>>})),
    ?assertError(badarg, py_data:shape({py_array, <<"<f8">>, [2], {bytes, <<0:64>>}})).

rows_and_slices_are_parts_of_the_same_binary(_) ->
    Whole = << <<N:32/little>> || N <- lists:seq(1, 240) >>,
    Array = py_data:array(int32, [10, 4, 6], Whole),
    Row = py_data:row(Array, 3),
    ?assertEqual({[4, 6], lists:seq(73, 96)}, {py_data:shape(Row), lists:append(py_data:to_list(Row))}),
    ?assertEqual(960, binary:referenced_byte_size(py_data:binary(Row))),
    ?assertEqual(73, py_data:to_list(py_data:row(py_data:row(Row, 0), 0))),
    ?assertEqual({[2, 4, 6], 48}, {py_data:shape(py_data:slice(Array, 8, 2)), py_data:size(py_data:slice(Array, 8, 2))}),
    ?assertEqual([0, 4, 6], py_data:shape(py_data:slice(Array, 10, 0))).

rows_that_are_not_there_are_refused(_) ->
    Array = py_data:from_list(int8, [[1, 2], [3, 4]]),
    [?assertError(badarg, Wrong()) || Wrong <- [fun() -> py_data:row(Array, 2) end, fun() -> py_data:row(Array, -1) end,
                                                fun() -> py_data:row(py_data:array(int8, [2, 0], <<>>), 2) end,
                                                fun() -> py_data:slice(Array, 1, 2) end, fun() -> py_data:slice(Array, 0, -1) end,
                                                fun() -> py_data:row(py_data:from_list(int8, 1), 0) end,
                                                fun() -> py_data:slice(Array, 0, x) end]].

another_shape_has_as_many_items(_) ->
    Array = py_data:from_list(int8, [[1, 2, 3], [4, 5, 6]]),
    ?assertEqual([[1, 2], [3, 4], [5, 6]], py_data:to_list(py_data:reshape(Array, {3, 2}))),
    ?assertError(badarg, py_data:reshape(Array, [4])).

lists_of_nothing_are_bounded(_) ->
    ?assertEqual(100, length(py_data:to_list(py_data:array(int8, [100, 0], <<>>)))),
    ?assertEqual([], py_data:to_list(py_data:array(int8, [0, 1 bsl 60], <<>>))),
    ?assertError(badarg, py_data:to_list(py_data:array(int8, [1 bsl 60, 0], <<>>))).

tables_are_streams(_) ->
    Table = py_data:arrow(<<"stream">>),
    ?assertEqual({py_arrow, {bytes, <<"stream">>}}, Table),
    ?assertEqual(<<"stream">>, py_data:binary(Table)),
    ?assert(py_data:is_arrow(Table)),
    ?assertNot(py_data:is_arrow({py_arrow, stream})),
    ?assertError(badarg, py_data:arrow([])).
