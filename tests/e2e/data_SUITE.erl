%% Arrays and tables between a BEAM and a node whose Python has numpy and pyarrow; see tests/run/venv.
-module(data_SUITE).

-include_lib("stdlib/include/assert.hrl").

-export([all/0, suite/0, init_per_suite/1, end_per_suite/1]).
-compile([export_all, nowarn_export_all]).

suite() -> [{timetrap, {seconds, 300}}].    % the environment may have to be installed first

all() ->
    [the_erlang_of_the_data_page_comes_to_what_it_says,
     what_erlang_writes_is_what_numpy_reads_and_back,
     any_bytes_of_any_dtype_come_back_identical,
     a_plain_binary_and_a_tuple_for_a_shape_are_understood,
     a_coroutine_function_gets_an_array,
     rows_of_an_array_from_python_are_parts_of_its_binary,
     generators_yield_arrays_into_streams,
     a_large_array_comes_back_identical,
     a_table_comes_back_and_is_read,
     arrays_that_are_wrong_are_errors_and_hurt_nobody,
     streams_that_are_wrong_are_errors_and_hurt_nobody,
     arrays_that_nobody_registered_are_lists,
     registered_arrays_go_wherever_they_stand_and_through_channels,
     worker_processes_take_and_give_arrays].

init_per_suite(Config0) ->
    Venv = filename:join(sw_e2e:root(), "build/data-venv"),
    case sw_e2e:run(filename:join(sw_e2e:root(), "tests/run/venv"), ["data"], []) of
        {0, _, _} -> started([{venv, Venv} | sw_e2e:setup(Config0)]);
        % 77: the registry was reached and has no wheel of numpy or pyarrow for this interpreter, as for one that has
        % just come out. Everything else that keeps the environment from being made is an error, below.
        {77, _, Errors} -> {skip, {no_wheel_for_this_python, Errors}};
        {_, _, Errors} -> error({no_environment, Errors})
    end.

started(Config) ->
    Context = sw_e2e:context(Config),
    Node = start(Config, []),
    Beam = sw_e2e:start_beam(Context, #{args => ["-pa", filename:dirname(code:which(py))]}),
    ok = sw_e2e:on(Beam, fun() ->
        ok = application:load(sidewinder),
        ok = application:set_env(sidewinder, default_node, maps:get(name, Node)),
        {ok, _} = application:ensure_all_started(sidewinder),
        ok
    end),
    [{node, Node}, {beam, Beam} | Config].

end_per_suite(Config) ->
    true = sw_e2e:alive(maps:get(program, proplists:get_value(node, Config))),
    ok = sw_e2e:stop_beam(proplists:get_value(beam, Config)),
    ok = sw_e2e:stop_node(proplists:get_value(node, Config)),
    ok = sw_e2e:teardown(Config).

start(Config, Arguments) ->
    Context = #{directory := Directory} = sw_e2e:context(Config),
    Page = docs_SUITE:blocks("docs/data.md", "python"),
    ok = docs_SUITE:write_modules(Directory, ["numbers_of"], Page),
    sw_e2e:start_node(Context, #{args => ["--path", Directory, "--venv", proplists:get_value(venv, Config) | Arguments]}).

on(Config, Body) -> sw_e2e:on(proplists:get_value(beam, Config), Body, 60000).

%% --- there and back -----------------------------------------------------------------------------

the_erlang_of_the_data_page_comes_to_what_it_says(Config) ->
    #{name := Name} = proplists:get_value(node, Config),
    docs_SUITE:erlang_steps(sw_e2e:context(Config), Name, docs_SUITE:blocks("docs/data.md", "erlang"), 9).

what_erlang_writes_is_what_numpy_reads_and_back(Config) ->
    Reals = [[0.5, -2.0, infinity], [neg_infinity, 1.0, 0.25]],
    Cases = [{int8, [-128, 127]}, {int16, [-32768, 32767]}, {int32, [-1 bsl 31, 1 bsl 31 - 1]},
             {int64, [-1 bsl 63, 1 bsl 63 - 1]}, {uint8, [0, 255]}, {uint16, [65535]},
             {uint32, [1 bsl 32 - 1]}, {uint64, [1 bsl 64 - 1]}, {bool, [[true], [false]]},
             {<<">i2">>, [258]}, {<<">f4">>, [1.5]}, {<<">u8">>, [1]},
             {float16, Reals}, {float32, Reals}, {float64, Reals}, {<<">f2">>, Reals},
             {float64, 7.0}, {int32, []}, {float64, [[], []]}, {float64, [nan]}],
    on(Config, fun() ->
        [begin
             Array = py_data:from_list(Dtype, Items),
             ?assertEqual({ok, Items}, py:call(arrays, items, [Array])),
             {ok, Back} = py:call(arrays, same, [Array]),
             ?assertEqual(Array, Back),
             ?assertEqual(Items, py_data:to_list(Back))
         end || {Dtype, Items} <- Cases]
    end).

any_bytes_of_any_dtype_come_back_identical(Config) ->
    Dtypes = [<<"|b1">>, <<"|i1">>, <<"<i2">>, <<">i4">>, <<"<i8">>, <<"|u1">>, <<">u2">>, <<"<u4">>, <<"<u8">>, <<"<f2">>,
              <<"<f4">>, <<">f8">>, <<"<c8">>, <<">c16">>, <<"<M8[ns]">>, <<"<m8[25s]">>, <<"<M8">>],
    on(Config, fun() ->
        [begin
             Size = py_data:item_size(py_data:array(Dtype, [0], <<>>)),
             Array = py_data:array(Dtype, Shape, rand:bytes(lists:foldl(fun erlang:'*'/2, Size, Shape))),
             ?assertEqual({ok, Array}, py:call(arrays, same, [Array]))
         end || Dtype <- Dtypes, Shape <- [[], [0], [5], [3, 4], [2, 0, 2], [2, 1, 3, 2]]]
    end).

a_plain_binary_and_a_tuple_for_a_shape_are_understood(Config) ->
    on(Config, fun() ->
        Text = {py_array, uint8, {2, 2}, <<"text">>},           % arrives as a str
        ?assertEqual({ok, [[116, 101], [120, 116]]}, py:call(arrays, items, [Text])),
        Zeros = {py_array, <<"float64">>, [2], <<0:128>>},      % so does this
        ?assertEqual({ok, [0.0, 0.0]}, py:call(arrays, items, [Zeros])),
        ?assertEqual({ok, [0.0, 0.0]}, py:call(node_of(), arrays, items, [Zeros], #{binary => bytes}))
    end).

a_coroutine_function_gets_an_array(Config) ->
    on(Config, fun() ->
        {ok, Back} = py:call(arrays, doubled, [py_data:from_list(int32, [1, 2])]),
        ?assertEqual([2, 4], py_data:to_list(Back))
    end).

rows_of_an_array_from_python_are_parts_of_its_binary(Config) ->
    on(Config, fun() ->
        {ok, Array} = py:call(arrays, same, [py_data:array(int64, [1000, 10], rand:bytes(80000))]),
        Whole = binary:referenced_byte_size(py_data:binary(Array)),
        Row = py_data:binary(py_data:row(Array, 17)),
        ?assertEqual({80, Whole}, {byte_size(Row), binary:referenced_byte_size(Row)}),
        ?assertEqual(Row, binary:part(py_data:binary(Array), 17 * 80, 80))
    end).

generators_yield_arrays_into_streams(Config) ->
    on(Config, fun() ->
        Array = py_data:from_list(float32, [[1, 2], [3, 4]]),
        [begin
             {ok, Rows} = py:stream(arrays, Generator, [Array]),
             ?assertEqual([[1.0, 2.0], [3.0, 4.0]], [py_data:to_list(Row) || Row <- Rows])
         end || Generator <- [rows, rows_later]]
    end).

a_large_array_comes_back_identical(Config) ->
    on(Config, fun() ->
        Items = rand:bytes(32_000_000),
        Array = py_data:array(float64, [1000, 4000], Items),
        {ok, Back} = py:call(arrays, same, [Array]),
        ?assertEqual({[1000, 4000], true}, {py_data:shape(Back), py_data:binary(Back) =:= Items})
    end).

a_table_comes_back_and_is_read(Config) ->
    on(Config, fun() ->
        {ok, Table} = py:call(arrays, table, [3]),
        ?assert(py_data:is_arrow(Table)),
        {ok, Back} = py:call(arrays, same_table, [Table]),
        Rows = [#{<<"n">> => N, <<"name">> => <<"row ", ($0 + N)>>} || N <- [0, 1, 2]],
        ?assertEqual({ok, Rows}, py:call(arrays, rows_of, [Back])),
        ?assertEqual({ok, Rows}, py:call(arrays, rows_of, [py_data:arrow(py_data:binary(Table))]))
    end).

%% --- what is wrong ------------------------------------------------------------------------------

arrays_that_are_wrong_are_errors_and_hurt_nobody(Config) ->
    Eight = {bytes, <<0:64>>},
    ValueErrors = [{<<"<f8">>, [2], Eight}, {<<"<f8">>, [0], Eight}, {<<"<f8">>, [-1], Eight},
                   {<<"<f8">>, [-1, -1], Eight}, {<<"<f8">>, [1 bsl 32, 1 bsl 32, 1 bsl 32], {bytes, <<>>}},
                   {<<"<f8">>, [1 bsl 61 + 1, 8], Eight}, {<<"<f8">>, [1 bsl 200], Eight},
                   {<<"<f8">>, lists:duplicate(33, 1), Eight}, {<<"|O8">>, [1], Eight}, {<<"O">>, [1], Eight},
                   {object, [1], Eight}, {<<"f4,f4">>, [1], Eight}, {<<"<U2">>, [1], Eight}, {<<"|V8">>, [1], Eight}],
    TypeErrors = [{7, [1], Eight}, {<<"<f8">>, 1, Eight}, {<<"<f8">>, [1.0], Eight}, {<<"<f8">>, [true], Eight},
                  {<<"<f8">>, [1 | 2], Eight}, {<<"<f8">>, [1], [0]}, {<<"<f8">>, [1], {bits, <<0:64>>}}],
    Expected = [{<<"ValueError">>, Each} || Each <- ValueErrors] ++ [{<<"TypeError">>, Each} || Each <- TypeErrors],
    on(Config, fun() ->
        [?assertMatch({Term, {error, {python, Type, _, _}}}, {Term, py:call(arrays, items, [{py_array, D, S, B}])})
         || {Type, Term = {D, S, B}} <- Expected],
        ?assertMatch({error, {python, <<"TypeError">>, _, _}}, py:call(arrays, items, [{py_array, <<"<f8">>, [1]}])),
        ?assertEqual({ok, [1]}, py:call(arrays, items, [py_data:from_list(int8, [1])]))
    end).

streams_that_are_wrong_are_errors_and_hurt_nobody(Config) ->
    #{program := Program} = proplists:get_value(node, Config),
    on(Config, fun() ->
        {ok, Table} = py:call(arrays, table, [20]),
        Stream = py_data:binary(Table),
        Cut = [binary:part(Stream, 0, Size) || Size <- lists:seq(0, byte_size(Stream) - 9, 41)],
        Huge = [<<-1:32, 16#7fffffff:32/little>>, <<-1:32, -5:32, 0:64>>, <<16#7fffffff:32/little, 0:512>>],
        [?assertMatch({error, {python, <<"ValueError">>, _, _}}, py:call(arrays, rows_of, [py_data:arrow(Each)]))
         || Each <- [<<"no stream">> | Huge]],
        Found = lists:usort([element(1, py:call(arrays, rows_of, [py_data:arrow(Each)])) || Each <- Cut]),
        ?assert(lists:member(error, Found)),
        Bad = [begin
                   <<Before:At/binary, _, After/binary>> = Stream,
                   <<Before/binary, (rand:uniform(256) - 1), After/binary>>
               end || At <- lists:seq(0, byte_size(Stream) - 1, 7)],
        [py:call(arrays, same_table, [py_data:arrow(Each)]) || Each <- Bad],
        ?assertMatch({ok, [_ | _]}, py:call(arrays, rows_of, [Table]))
    end),
    true = sw_e2e:alive(Program).

%% --- without a call for each value --------------------------------------------------------------

arrays_that_nobody_registered_are_lists(Config) ->
    on(Config, fun() ->
        ?assertEqual({ok, #{<<"values">> => [[0, 1]], <<"text">> => [<<"a">>]}}, py:call(arrays, nested, [2]))
    end).

registered_arrays_go_wherever_they_stand_and_through_channels(Config) ->
    Node = #{name := Name} = start(Config, []),
    on(Config, fun() ->
        {ok, none} = py:call(Name, arrays, register, []),
        {ok, #{<<"values">> := [Array], <<"text">> := [<<"a">>]}} = py:call(Name, arrays, nested, [3]),
        ?assertEqual([0, 1, 2], py_data:to_list(Array)),
        {ok, Channel} = py_channel:new(Name),
        ok = py:cast(Name, arrays, into, [Channel, 3]),
        Sent = [begin {ok, Each} = py_channel:recv(Channel, 5000), py_data:to_list(Each) end || _ <- [1, 2, 3]],
        ?assertEqual([[0, 0, 0], [1, 1, 1], [2, 2, 2]], Sent)
    end),
    ok = sw_e2e:stop_node(Node).

worker_processes_take_and_give_arrays(Config) ->
    Node = #{name := Name} = start(Config, ["--processes", "2"]),
    on(Config, fun() ->
        Array = py_data:array(float32, [250, 1000], rand:bytes(1_000_000)),
        [?assertEqual({ok, Array}, py:call(Name, arrays, same, [Array])) || _ <- [1, 2, 3, 4]]
    end),
    ok = sw_e2e:stop_node(Node).

node_of() ->
    {ok, Name} = application:get_env(sidewinder, default_node),
    Name.
