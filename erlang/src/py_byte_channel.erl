%% Channels of bytes, for bodies and files: no encoding on the way, and what was sent as one binary
%% is received as one. As py_channel otherwise.
-module(py_byte_channel).

-export([new/0, new/1, new/2, send/2, send/3, recv/1, recv/2, try_receive/1, close/1, info/1, flush/2]).

-define(CONNECT_MS, 30000).

-spec new() -> {ok, py_channel:channel()} | {error, term()}.
new() ->
    new(#{}).

-spec new(py_channel:options() | node()) -> {ok, py_channel:channel()} | {error, term()}.
new(Node) when is_atom(Node) ->
    new(Node, #{});
new(Options) when is_map(Options) ->
    case py_node:default(?CONNECT_MS) of
        {ok, Node} -> new(Node, Options);
        {error, Reason} -> {error, Reason}
    end.

-spec new(node(), py_channel:options()) -> {ok, py_channel:channel()} | {error, term()}.
new(Node, Options) when is_atom(Node), is_map(Options) ->
    py_channel:make(bytes, Node, Options).

%% Sends if there is room: `busy` says that nothing was sent.
-spec send(py_channel:channel(), iodata()) -> ok | busy | {error, closed}.
send(Ch, Bytes) when is_pid(Ch), is_binary(Bytes) ->
    case py_channel_link:handle(Ch) of
        {ok, Handle} -> py_channel_link:send(Handle, Bytes, cost(Bytes));
        {error, closed} -> {error, closed}
    end;
send(Ch, Data) when is_pid(Ch) ->
    send(Ch, iolist_to_binary(Data)).

%% Sends, waiting for room so many milliseconds.
-spec send(py_channel:channel(), iodata(), timeout()) -> ok | busy | {error, closed}.
send(Ch, Bytes, Timeout) when is_pid(Ch), is_binary(Bytes) ->
    case py_channel_link:handle(Ch) of
        {ok, Handle} -> py_channel_link:send(Handle, Bytes, cost(Bytes), Timeout);
        {error, closed} -> {error, closed}
    end;
send(Ch, Data, Timeout) when is_pid(Ch) ->
    send(Ch, iolist_to_binary(Data), Timeout).

%% The next bytes that Python sent.
-spec recv(py_channel:channel()) -> {ok, binary()} | {error, closed}.
recv(Ch) ->
    recv(Ch, infinity).

-spec recv(py_channel:channel(), timeout()) -> {ok, binary()} | {error, closed | timeout}.
recv(Ch, Timeout) when is_pid(Ch) ->
    py_channel:receive_from(Ch, Timeout).

%% The same without waiting.
-spec try_receive(py_channel:channel()) -> {ok, binary()} | {error, empty | closed}.
try_receive(Ch) when is_pid(Ch) ->
    py_channel:try_receive_from(Ch).

-spec close(py_channel:channel()) -> ok.
close(Ch) ->
    py_channel:close(Ch).

-spec info(py_channel:channel()) -> py_channel:info().
info(Ch) ->
    py_channel:info(Ch).

-spec flush(py_channel:channel(), timeout()) -> ok | {error, closed | timeout}.
flush(Ch, Timeout) ->
    py_channel:flush(Ch, Timeout).

%% An empty message is one as well.
-spec cost(binary()) -> pos_integer().
cost(Bytes) -> max(1, byte_size(Bytes)).
