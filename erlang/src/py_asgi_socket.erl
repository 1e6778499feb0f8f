%% One WebSocket of py_asgi: asks for it, and fetches its frames for the process that owns it.
%%
%%   owner ── send ═══════════════ channel of terms, under credit ═══════════════▶ application
%%   owner ── next ──▶ py_asgi_socket ◀══════════ the same channel ═══════════════ application
%%   owner ◀── {py_asgi, Socket, Frame} ──┘   one for each `next`, to an alias of the owner's
%%
%% Frames are {text, B}, {binary, B} and, last, {close, Code, Reason}: what the application said, 1011 if it
%% failed, 1012 if its node was lost. If the owner ends so does the channel, and with it this process; the
%% node, which monitors this process, tells the application in any case.
-module(py_asgi_socket).

-export([open/4, send/3, recv/2, next/1, close/3]).
-export([init/6]).

-export_type([socket/0, frame/0]).

%% A reply tag in the form that has the answer sent to the alias.
-dialyzer({no_improper_lists, [await/3]}).

-define(MAX_MESSAGE, 1048576).
-define(OVERHEAD, 1024).      % of a frame in the channel
-define(CLOSE_MS, 1000).      % for the word that the client has closed
-define(END_MS, 5000).        % for the application to end after that, before it is cancelled

-record(socket, {pid :: pid(), alias :: reference(), channel :: py_channel:channel()}).
-opaque socket() :: #socket{}.
-type frame() :: {text, binary()} | {binary, binary()} | {close, 1000..4999, binary()}.

%% --- For the owner --------------------------------------------------------------------------------

-spec open(py:target(), tuple(), {timeout(), py_pool:how()}, map()) ->
    {ok, socket(), map()} | {refused, 100..599, py_asgi:headers(), binary()}
    | {error, py_asgi:reason()}.
open(Target, Call, How, Options) ->
    Alias = erlang:alias(),
    Size = maps:get(max_message, Options, ?MAX_MESSAGE) + ?OVERHEAD,
    {Pid, Monitor} = spawn_monitor(?MODULE, init, [self(), Alias, Target, Call, How, Size]),
    receive
        {Alias, {ok, _, _} = Accepted} ->
            true = erlang:demonitor(Monitor, [flush]),
            Accepted;
        {Alias, Other} ->
            true = erlang:demonitor(Monitor, [flush]),
            true = erlang:unalias(Alias),
            Other;
        {'DOWN', Monitor, process, Pid, Reason} ->
            true = erlang:unalias(Alias),
            {error, {down, Reason}}
    end.

-spec send(socket(), {text | binary, binary()}, timeout()) -> ok | {error, closed | timeout}.
send(#socket{channel = Channel}, Frame, Timeout) ->
    case py_channel:send(Channel, Frame, Timeout) of
        busy -> {error, timeout};
        Sent -> Sent
    end.

-spec next(socket()) -> ok.
next(#socket{pid = Pid}) ->
    Pid ! next,
    ok.

-spec recv(socket(), timeout()) -> {ok, frame()} | {error, closed | timeout}.
recv(#socket{pid = Pid} = Socket, Timeout) ->
    receive
        {py_asgi, Socket, Frame} -> {ok, Frame}
    after 0 ->
        Monitor = erlang:monitor(process, Pid),
        Pid ! next,
        receive
            {py_asgi, Socket, Frame} ->
                true = erlang:demonitor(Monitor, [flush]),
                {ok, Frame};
            {'DOWN', Monitor, process, _, _} ->
                receive {py_asgi, Socket, Frame} -> {ok, Frame} after 0 -> {error, closed} end
        after Timeout ->
            true = erlang:demonitor(Monitor, [flush]),
            {error, timeout}
        end
    end.

%% Nothing of the socket comes any more, and nothing is left.
-spec close(socket(), 1000..4999, binary()) -> ok.
close(#socket{pid = Pid, alias = Alias, channel = Channel} = Socket, Code, Reason) ->
    _ = py_channel:send(Channel, {close, Code, Reason}, ?CLOSE_MS),
    ok = py_channel:close(Channel),
    Pid ! closed,
    _ = erlang:unalias(Alias),
    flush(Socket).

-spec flush(socket()) -> ok.
flush(Socket) ->
    receive
        {py_asgi, Socket, _} -> flush(Socket)
    after 0 ->
        ok
    end.

%% --- The process ------------------------------------------------------------------------------------

-record(state, {socket :: socket(), owner :: reference(), call :: reference()}).

-spec init(pid(), reference(), py:target(), tuple(), {timeout(), py_pool:how()}, pos_integer()) -> ok.
init(Owner, Alias, Target, Call, How, Size) ->
    Monitor = erlang:monitor(process, Owner),
    Ask = fun(Link, Item, Timeout) -> begin_socket(Link, Item, Timeout, Monitor) end,
    case py_asgi:ask(Target, Ask, Call, How) of
        {ok, {accept, Ref, Exchange, Gateway, Protocol, Headers}} ->
            accept(py_channel:new(node(Gateway), #{max_size => Size, owner => Owner}),
                   Gateway, Exchange, Protocol, Headers,
                   #state{owner = Monitor, call = Ref, socket = #socket{pid = self(), alias = Alias, channel = Gateway}});
        {ok, {Status, Headers, Body}} ->
            Alias ! {Alias, {refused, Status, Headers, Body}},
            ok;
        {error, Reason} ->
            Alias ! {Alias, {error, Reason}},
            ok
    end.

-spec begin_socket(py_link:handle(), tuple(), timeout(), reference()) -> {ok, term()} | {error, term()}.
begin_socket(Link, Call, Timeout, Owner) ->
    Exchange = erlang:alias(),
    case py_link:begin_call(Link, py_asgi:item(Call, self(), Exchange)) of
        overloaded -> {error, overloaded};
        Ref -> await({Ref, Exchange}, Owner, Timeout)
    end.

-spec await({reference(), reference()}, reference(), timeout()) -> {ok, term()} | {error, term()}.
await({Call, Exchange}, Owner, Timeout) ->
    receive
        {[alias | Exchange], {accept, Gateway, Protocol, Headers}} ->
            {ok, {accept, Call, Exchange, Gateway, Protocol, Headers}};
        {[alias | Exchange], {whole, Refused}} ->
            {ok, Refused};
        {Call, {ok, {_, _, _} = Refused}} ->
            {ok, Refused};
        {Call, {ok, _}} ->
            {error, aborted};
        {Call, {error, Reason}} ->
            {error, Reason};
        {'DOWN', Call, process, _, Reason} ->
            {error, {down, py_link:why(Reason)}};
        {'DOWN', Owner, process, _, _} ->
            exit(normal)
    after Timeout ->
        {error, timeout}
    end.

-spec accept({ok, py_channel:channel()} | {error, term()}, pid(), reference(), binary() | none,
             py_asgi:headers(), #state{}) -> ok.
accept({ok, Channel}, Gateway, Exchange, Protocol, Headers, #state{socket = Socket0} = State) ->
    Socket = #socket{alias = Alias} = Socket0#socket{channel = Channel},
    Gateway ! {socket, Exchange, Channel},
    Alias ! {Alias, {ok, Socket, #{subprotocol => Protocol, headers => Headers}}},
    serve(State#state{socket = Socket});
accept({error, Reason}, _, _, _, _, #state{socket = #socket{alias = Alias}}) ->
    Alias ! {Alias, {error, Reason}},
    ok.

-spec serve(#state{}) -> ok.
serve(#state{socket = #socket{channel = Channel} = Socket, owner = Owner} = State) ->
    receive
        next -> fetched(py_channel:recv(Channel), Socket, State);
        closed -> linger(State);
        {'DOWN', Owner, process, _, _} -> ok
    end.

-spec fetched({ok, term()} | {error, closed}, socket(), #state{}) -> ok.
fetched({ok, {close, _, _} = Frame}, Socket, State) ->
    ok = deliver(Frame, Socket),
    linger(State);
fetched({ok, Frame}, Socket, State) ->
    ok = deliver(Frame, Socket),
    serve(State);
fetched({error, closed}, Socket, State) ->
    receive
        closed -> linger(State)
    after 0 ->
        deliver({close, end_code(State), <<>>}, Socket)
    end.

%% What was asked for before this frame was sent was asked for twice.
-spec deliver(frame(), socket()) -> ok.
deliver(Frame, #socket{alias = Alias} = Socket) ->
    ok = drop_requests(),
    Alias ! {py_asgi, Socket, Frame},
    ok.

-spec drop_requests() -> ok.
drop_requests() ->
    receive next -> drop_requests() after 0 -> ok end.

%% The channel ended without a word: with the node, or with the application.
-spec end_code(#state{}) -> 1011 | 1012.
end_code(#state{call = Call}) ->
    receive
        {'DOWN', Call, process, _, _} -> 1012;
        {Call, {error, {down, _}}} -> 1012;
        {Call, _} -> 1011
    after ?CLOSE_MS ->
        1011
    end.

%% The application gets a moment to end by itself; when this process ends it is cancelled.
-spec linger(#state{}) -> ok.
linger(#state{call = Call, socket = #socket{channel = Channel}}) ->
    receive
        {Call, _} -> ok;
        {'DOWN', Call, process, _, _} -> ok
    after ?END_MS ->
        ok
    end,
    py_channel:close(Channel).
