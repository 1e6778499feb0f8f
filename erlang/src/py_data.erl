%% Arrays of numbers and Arrow tables as terms: one binary each, of which parts are taken without a copy.
%%
%%   array   {py_array, Dtype, Shape, {bytes, Binary}}   the items in C order: the last index runs fastest
%%   table   {py_arrow, {bytes, Stream}}                 an Arrow IPC stream, which has its schema inside
%%
%% Both go to Python and come from it in this shape: `erlang.data` there makes numpy arrays and pyarrow
%% tables of them. The pair {bytes, _} is what a binary is sent in whose bytes are not text. Rows count
%% from 0, as they do in Python. Everything here is a plain function; wrong arguments raise badarg.
-module(py_data).

-export([array/3, from_list/2, to_list/1]).
-export([is_array/1, dtype/1, shape/1, binary/1, size/1, item_size/1]).
-export([row/2, slice/3, reshape/2]).
-export([arrow/1, is_arrow/1]).

-export_type([array/0, arrow/0, dtype/0, shape/0, item/0, items/0]).

-define(MAX_DIMENSIONS, 32).    % as many as numpy's older versions have

-define(MAX_EMPTY_ROWS, 65536).

-type dtype() :: binary().      % numpy's: byte order, kind, size in bytes: <<"<f8">>, <<"|b1">>, <<"<M8[ns]">>
-type shape() :: [non_neg_integer()].
-type array() :: {py_array, dtype(), shape(), {bytes, binary()}}.
-type arrow() :: {py_arrow, {bytes, binary()}}.
-type real() :: number() | nan | infinity | neg_infinity.
-type item() :: boolean() | real() | {real(), real()}.
-type items() :: item() | [items()].
-type kind() :: bool | signed | unsigned | float | complex.
-type layout() :: {kind(), Size :: pos_integer(), little | big}.

%% --- Making arrays ------------------------------------------------------------------------------

%% An array of these bytes. A dtype is numpy's text, or a name: float64, int32, bool, … (little-endian).
-spec array(dtype() | atom(), shape() | tuple(), binary()) -> array().
array(Dtype, Shape, Binary) when is_tuple(Shape) ->
    array(Dtype, tuple_to_list(Shape), Binary);
array(Dtype, Shape, Binary) when is_list(Shape), is_binary(Binary) ->
    Array = {py_array, canonical(Dtype), Shape, {bytes, Binary}},
    wanted(is_array(Array)),
    Array;
array(_, _, _) ->
    error(badarg).

%% An array of a number, or of a list, in which lists of one length are rows. Numbers that the dtype
%% does not have are refused; floats are rounded to its precision.
-spec from_list(dtype() | atom(), items()) -> array().
from_list(Dtype0, Items) ->
    Dtype = canonical(Dtype0),
    Layout = layout(Dtype),
    Shape = shape_of(Items),
    array(Dtype, Shape, iolist_to_binary(write(Layout, Shape, Items))).

%% The items: a list of rows for each dimension, one item for none. Meant for small arrays. Complex
%% numbers are pairs, times the integers that they are counted in; nan, infinity and neg_infinity are
%% what Erlang's floats do not have.
-spec to_list(array()) -> items().
to_list(Array) ->
    {Dtype, Shape, Binary} = parts(Array),
    Layout = {_, Size, _} = layout(Dtype),
    wanted(Binary =/= <<>> orelse count(until_zero(Shape)) =< ?MAX_EMPTY_ROWS),
    nest(Shape, [read(Layout, Item) || <<Item:Size/binary>> <= Binary]).

%% --- Looking at them ----------------------------------------------------------------------------

%% Whether this is an array with a known dtype, a shape, and as many bytes as they say.
-spec is_array(term()) -> boolean().
is_array({py_array, Dtype, Shape, Held}) when is_binary(Dtype), is_list(Shape) ->
    try
        {_, Size, _} = layout(Dtype),
        wanted(length(Shape) =< ?MAX_DIMENSIONS),
        wanted(lists:all(fun(Side) -> is_integer(Side) andalso Side >= 0 end, Shape)),
        count(Shape) * Size =:= byte_size(held(Held))
    catch
        error:badarg -> false
    end;
is_array(_) ->
    false.

-spec dtype(array()) -> dtype().
dtype(Array) ->
    {Dtype, _, _} = parts(Array),
    Dtype.

-spec shape(array()) -> shape().
shape(Array) ->
    {_, Shape, _} = parts(Array),
    Shape.

%% The bytes of an array, or the stream of a table.
-spec binary(array() | arrow()) -> binary().
binary({py_arrow, Held}) ->
    held(Held);
binary(Array) ->
    {_, _, Binary} = parts(Array),
    Binary.

%% The number of items.
-spec size(array()) -> non_neg_integer().
size(Array) ->
    count(shape(Array)).

%% The bytes of one item.
-spec item_size(array()) -> pos_integer().
item_size(Array) ->
    {_, Size, _} = layout(dtype(Array)),
    Size.

%% --- Parts --------------------------------------------------------------------------------------

%% The row of this index, an array with one dimension less: a sub-binary, which keeps the whole alive.
-spec row(array(), non_neg_integer()) -> array().
row(Array, Index) ->
    {py_array, Dtype, [1 | Shape], Held} = slice(Array, Index, 1),
    {py_array, Dtype, Shape, Held}.

%% So many rows from this index on, as a sub-binary.
-spec slice(array(), non_neg_integer(), non_neg_integer()) -> array().
slice(Array, From, Count) when is_integer(From), is_integer(Count), From >= 0, Count >= 0 ->
    {Dtype, Shape, Binary} = parts(Array),
    wanted(Shape =/= []),
    [Rows | Below] = Shape,
    wanted(From + Count =< Rows),
    Row = count(Below) * item_size(Array),
    {py_array, Dtype, [Count | Below], {bytes, binary:part(Binary, From * Row, Count * Row)}};
slice(_, _, _) ->
    error(badarg).

%% The same items in another shape.
-spec reshape(array(), shape() | tuple()) -> array().
reshape(Array, Shape) ->
    {Dtype, _, Binary} = parts(Array),
    array(Dtype, Shape, Binary).

%% --- Arrow --------------------------------------------------------------------------------------

%% A table, of the bytes of an Arrow IPC stream.
-spec arrow(binary()) -> arrow().
arrow(Stream) when is_binary(Stream) -> {py_arrow, {bytes, Stream}};
arrow(_) -> error(badarg).

%% Whether this is a table; what is in its stream is not looked at.
-spec is_arrow(term()) -> boolean().
is_arrow({py_arrow, {bytes, Stream}}) -> is_binary(Stream);
is_arrow({py_arrow, Stream}) -> is_binary(Stream);
is_arrow(_) -> false.

%% --- Terms --------------------------------------------------------------------------------------

-spec parts(array()) -> {dtype(), shape(), binary()}.
parts(Array) ->
    wanted(is_array(Array)),
    {py_array, Dtype, Shape, Held} = Array,
    {Dtype, Shape, held(Held)}.

-spec held({bytes, binary()} | binary()) -> binary().
held({bytes, Binary}) when is_binary(Binary) -> Binary;
held(Binary) when is_binary(Binary) -> Binary;
held(_) -> error(badarg).

-spec count(shape()) -> non_neg_integer().
count(Shape) ->
    lists:foldl(fun erlang:'*'/2, 1, Shape).

-spec wanted(boolean()) -> ok.
wanted(true) -> ok;
wanted(false) -> error(badarg).

%% --- Dtypes -------------------------------------------------------------------------------------

-spec canonical(dtype() | atom()) -> dtype().
canonical(Name) when is_atom(Name) -> named(atom_to_binary(Name));
canonical(Dtype) when is_binary(Dtype) -> named(Dtype);
canonical(_) -> error(badarg).

-spec named(binary()) -> dtype().
named(<<"bool">>) -> <<"|b1">>;
named(<<"int8">>) -> <<"|i1">>;
named(<<"int16">>) -> <<"<i2">>;
named(<<"int32">>) -> <<"<i4">>;
named(<<"int64">>) -> <<"<i8">>;
named(<<"uint8">>) -> <<"|u1">>;
named(<<"uint16">>) -> <<"<u2">>;
named(<<"uint32">>) -> <<"<u4">>;
named(<<"uint64">>) -> <<"<u8">>;
named(<<"float16">>) -> <<"<f2">>;
named(<<"float32">>) -> <<"<f4">>;
named(<<"float64">>) -> <<"<f8">>;
named(<<"complex64">>) -> <<"<c8">>;
named(<<"complex128">>) -> <<"<c16">>;
named(Dtype) -> Dtype.

-spec layout(dtype()) -> layout().
layout(<<Order, Kind, Size/binary>>) ->
    {Items, Bytes} = items(Kind, Size),
    {Items, Bytes, order(Order, Bytes)};
layout(_) ->
    error(badarg).

-spec items(byte(), binary()) -> {kind(), pos_integer()}.
items($b, <<"1">>) -> {bool, 1};
items($i, <<Digit>>) when Digit =:= $1; Digit =:= $2; Digit =:= $4; Digit =:= $8 -> {signed, Digit - $0};
items($u, <<Digit>>) when Digit =:= $1; Digit =:= $2; Digit =:= $4; Digit =:= $8 -> {unsigned, Digit - $0};
items($f, <<Digit>>) when Digit =:= $2; Digit =:= $4; Digit =:= $8 -> {float, Digit - $0};
items($c, <<"8">>) -> {complex, 8};
items($c, <<"16">>) -> {complex, 16};
items(Time, <<"8", Unit/binary>>) when Time =:= $m; Time =:= $M ->
    Known = "^(\\[([1-9][0-9]{0,8})?(Y|M|W|D|h|m|s|ms|us|ns|ps|fs|as)\\])?$",
    wanted(re:run(Unit, Known, [dollar_endonly]) =/= nomatch),
    {signed, 8};
items(_, _) ->
    error(badarg).

-spec order(byte(), pos_integer()) -> little | big.
order($<, _) -> little;
order($>, _) -> big;
order($|, 1) -> little;
order(_, _) -> error(badarg).

%% --- Items --------------------------------------------------------------------------------------

%% Each item is taken as so many bytes first: a comprehension would leave out what is no float.
-spec read(layout(), binary()) -> item().
read({bool, _, _}, <<Byte>>) ->
    Byte =/= 0;
read({Kind, Size, big}, Item) ->
    read({Kind, Size, little}, reversed(Kind, Item));
read({signed, Size, little}, Item) ->
    <<Integer:Size/little-signed-unit:8>> = Item,
    Integer;
read({unsigned, Size, little}, Item) ->
    <<Integer:Size/little-unit:8>> = Item,
    Integer;
read({complex, Size, little}, Item) ->
    Half = Size div 2,
    <<Real:Half/binary, Imaginary:Half/binary>> = Item,
    {read({float, Half, little}, Real), read({float, Half, little}, Imaginary)};
read({float, Size, little}, Item) ->
    case Item of
        <<Float:Size/float-little-unit:8>> -> Float;
        _ -> no_number(reversed(float, Item))
    end.

%% A float, its most significant byte first, whose exponent is all ones.
-spec no_number(binary()) -> nan | infinity | neg_infinity.
no_number(<<0:1, 16#1f:5, 0:10>>) -> infinity;
no_number(<<1:1, 16#1f:5, 0:10>>) -> neg_infinity;
no_number(<<0:1, 16#ff:8, 0:23>>) -> infinity;
no_number(<<1:1, 16#ff:8, 0:23>>) -> neg_infinity;
no_number(<<0:1, 16#7ff:11, 0:52>>) -> infinity;
no_number(<<1:1, 16#7ff:11, 0:52>>) -> neg_infinity;
no_number(_) -> nan.

-spec reversed(kind(), binary()) -> binary().
reversed(complex, Item) ->
    Half = byte_size(Item) div 2,
    <<Real:Half/binary, Imaginary:Half/binary>> = Item,
    <<(reversed(float, Real))/binary, (reversed(float, Imaginary))/binary>>;
reversed(_, Item) ->
    list_to_binary(lists:reverse(binary_to_list(Item))).

%% What lists of no items are made of: no memory was needed to say so.
-spec until_zero(shape()) -> shape().
until_zero(Shape) ->
    lists:takewhile(fun(Side) -> Side > 0 end, Shape).

-spec nest(shape(), [item()]) -> items().
nest([], [Item]) -> Item;
nest([_], Items) -> Items;
nest([Side | Below], Items) -> rows(Side, Below, count(Below), Items).

-spec rows(non_neg_integer(), shape(), non_neg_integer(), [item()]) -> [items()].
rows(0, _, _, []) ->
    [];
rows(Side, Below, Count, Items) ->
    {Row, Rest} = lists:split(Count, Items),
    [nest(Below, Row) | rows(Side - 1, Below, Count, Rest)].

%% The first rows tell the shape; write/3 finds out whether the others are like them.
-spec shape_of(items()) -> shape().
shape_of([First | _] = Rows) -> [length(Rows) | shape_of(First)];
shape_of([]) -> [0];
shape_of(_) -> [].

-spec write(layout(), shape(), items()) -> iodata().
write(Layout, [], Item) ->
    item(Layout, Item);
write(Layout, [Side | Below], Rows) ->
    wanted(is_list(Rows) andalso length(Rows) =:= Side),
    [write(Layout, Below, Row) || Row <- Rows].

-spec item(layout(), items()) -> iodata().
item({bool, _, _}, true) -> <<1>>;
item({bool, _, _}, false) -> <<0>>;
item({Kind, Size, big}, Item) ->
    reversed(Kind, iolist_to_binary(item({Kind, Size, little}, Item)));
item({signed, Size, little}, Item) when is_integer(Item) ->
    Half = 1 bsl (8 * Size - 1),
    wanted(-Half =< Item andalso Item < Half),
    <<Item:Size/little-unit:8>>;
item({unsigned, Size, little}, Item) when is_integer(Item), Item >= 0 ->
    wanted(Item < 1 bsl (8 * Size)),
    <<Item:Size/little-unit:8>>;
item({complex, Size, little}, {Real, Imaginary}) ->
    Half = {float, Size div 2, little},
    [item(Half, Real), item(Half, Imaginary)];
item({float, Size, little}, Item) when is_number(Item) ->
    Binary = <<Item:Size/float-little-unit:8>>,
    wanted(is_float(read({float, Size, little}, Binary))),    % what is too large became infinity
    Binary;
item({float, 2, little}, Item) -> reversed(float, no_number(Item, 5, 10));
item({float, 4, little}, Item) -> reversed(float, no_number(Item, 8, 23));
item({float, 8, little}, Item) -> reversed(float, no_number(Item, 11, 52));
item(_, _) -> error(badarg).

-spec no_number(items(), pos_integer(), pos_integer()) -> binary().
no_number(infinity, Exponent, Fraction) -> <<0:1, -1:Exponent, 0:Fraction>>;
no_number(neg_infinity, Exponent, Fraction) -> <<1:1, -1:Exponent, 0:Fraction>>;
no_number(nan, Exponent, Fraction) -> <<0:1, -1:Exponent, 1:1, 0:(Fraction - 1)>>;
no_number(_, _, _) -> error(badarg).
