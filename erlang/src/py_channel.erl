%% Channels: streams of terms between Erlang and Python, with back-pressure in both directions.
%%
%%   {ok, Ch} = py_channel:new(#{max_size => 65536}),
%%   py:cast(consumer, run, [Ch]),
%%   ok = py_channel:send(Ch, {job, 1}),          % Python: for message in Channel(ch)
%%   {ok, Result} = py_channel:recv(Ch).          % Python: ch.send(result)
%%
%% A channel is a process of the Python node. It ends with its owner, with the node, or by close/1;
%% what was sent before is still received. See docs/channels.md.
-module(py_channel).

-export([new/0, new/1, new/2, send/2, send/3, recv/1, recv/2, try_receive/1, close/1, info/1, flush/2]).
-export([make/3, receive_from/2, try_receive_from/1]).

-export_type([channel/0, options/0, info/0]).

%% A reply tag in the form that has the answer sent to the alias.
-dialyzer({no_improper_lists, [fetch/3, fetched/3]}).

-define(MAX_SIZE, 1048576).
-define(CONNECT_MS, 30000).
-define(DEMAND_BYTES, 65536).
-define(is_timeout(T), (T =:= infinity orelse (is_integer(T) andalso T >= 0))).

-type channel() :: pid().
-type options() :: #{
    max_size => pos_integer() | infinity,  % bytes that may wait, in each direction; default 1 MiB
    owner => pid() | none                  % ends the channel when it ends; default: the caller
}.
-type info() :: #{size := non_neg_integer(), max_size := non_neg_integer(), closed := boolean(),
                  atom() => term()}.

%% Makes a channel on the default node.
-spec new() -> {ok, channel()} | {error, term()}.
new() ->
    new(#{}).

%% Makes a channel on the default node, or with default options on Node.
-spec new(options() | node()) -> {ok, channel()} | {error, term()}.
new(Node) when is_atom(Node) ->
    new(Node, #{});
new(Options) when is_map(Options) ->
    case py_node:default(?CONNECT_MS) of
        {ok, Node} -> new(Node, Options);
        {error, Reason} -> {error, Reason}
    end.

-spec new(node(), options()) -> {ok, channel()} | {error, term()}.
new(Node, Options) when is_atom(Node), is_map(Options) ->
    make(terms, Node, Options).

%% Sends if there is room: `busy` says that nothing was sent. Never waits for the node.
-spec send(channel(), term()) -> ok | busy | {error, closed}.
send(Ch, Term) when is_pid(Ch) ->
    case py_channel_link:handle(Ch) of
        {ok, Handle} -> py_channel_link:send(Handle, Term, erlang:external_size(Term));
        {error, closed} -> {error, closed}
    end.

%% Sends, waiting for room so many milliseconds.
-spec send(channel(), term(), timeout()) -> ok | busy | {error, closed}.
send(Ch, Term, Timeout) when is_pid(Ch), ?is_timeout(Timeout) ->
    case py_channel_link:handle(Ch) of
        {ok, Handle} -> py_channel_link:send(Handle, Term, erlang:external_size(Term), Timeout);
        {error, closed} -> {error, closed}
    end.

%% The next message that Python sent.
-spec recv(channel()) -> {ok, term()} | {error, closed}.
recv(Ch) ->
    recv(Ch, infinity).

-spec recv(channel(), timeout()) -> {ok, term()} | {error, closed | timeout}.
recv(Ch, Timeout) when is_pid(Ch), ?is_timeout(Timeout) ->
    receive_from(Ch, Timeout).

%% The same without waiting.
-spec try_receive(channel()) -> {ok, term()} | {error, empty | closed}.
try_receive(Ch) when is_pid(Ch) ->
    try_receive_from(Ch).

%% Ends the channel behind what was sent. As often as you like.
-spec close(channel()) -> ok.
close(Ch) when is_pid(Ch) ->
    py_channel_link:close(Ch).

%% size: bytes that Python has not received; max_size: 0 when there is none; closed; and counts of
%% messages received and consumed there, and sent from there.
-spec info(channel()) -> info().
info(Ch) when is_pid(Ch) ->
    py_channel_link:info(Ch).

%% Waits until Python has received everything that was sent from this BEAM.
-spec flush(channel(), timeout()) -> ok | {error, closed | timeout}.
flush(Ch, Timeout) when is_pid(Ch), ?is_timeout(Timeout) ->
    py_channel_link:flush(Ch, Timeout).

%% --- For py_byte_channel --------------------------------------------------------------------------

-spec make(py_channel_link:kind(), node(), options()) -> {ok, channel()} | {error, term()}.
make(Kind, Node, Options) ->
    Owner = maps:get(owner, Options, self()),
    Max = case maps:get(max_size, Options, ?MAX_SIZE) of
              infinity -> 0;
              Size -> Size
          end,
    Known = maps:without([owner, max_size], Options) =:= #{},
    case Known andalso is_integer(Max) andalso Max >= 0 andalso (is_pid(Owner) orelse Owner =:= none) of
        true -> make_on(py_pool:resolve(Node, ?CONNECT_MS), Kind, Max, Owner);
        false -> error(badarg)
    end.

%% A pool's channels are made on one of its members.
-spec make_on({ok, node()} | {error, term()}, py_channel_link:kind(), non_neg_integer(),
              pid() | none) -> {ok, channel()} | {error, term()}.
make_on({ok, Node}, Kind, Max, Owner) ->
    made(py_node:await_link(Node, ?CONNECT_MS), Kind, Node, Max, Owner);
make_on({error, Reason}, _, _, _) ->
    {error, Reason}.

-spec made({ok, term()} | {error, term()}, py_channel_link:kind(), node(), non_neg_integer(),
           pid() | none) -> {ok, channel()} | {error, term()}.
made({ok, _}, Kind, Node, Max, Owner) -> py_channel_link:new(Node, Kind, Max, Owner);
made({error, Reason}, _, _, _, _) -> {error, Reason}.

%% Messages come several at a time; those not wanted yet wait in the process's dictionary.
-spec receive_from(channel(), timeout()) -> {ok, term()} | {error, closed | timeout}.
receive_from(Ch, Timeout) ->
    case get({?MODULE, Ch}) of
        [Term] ->
            erase({?MODULE, Ch}),
            {ok, Term};
        [Term | Terms] ->
            put({?MODULE, Ch}, Terms),
            {ok, Term};
        undefined ->
            fetch(Ch, recv, Timeout)
    end.

-spec try_receive_from(channel()) -> {ok, term()} | {error, empty | closed}.
try_receive_from(Ch) ->
    case get({?MODULE, Ch}) of
        undefined -> fetch(Ch, try_recv, infinity);
        _ -> receive_from(Ch, 0)
    end.

%% Straight to the node and straight back. The link is watched for the end of the node.
-spec fetch(channel(), recv | try_recv, timeout()) -> {ok, term()} | {error, closed | timeout | empty}.
fetch(Ch, Verb, Timeout) ->
    case py_channel_link:ensure(node(Ch)) of
        {ok, Link} ->
            Ref = erlang:monitor(process, Link, [{alias, reply_demonitor}]),
            ok = tell(Ch, {Verb, Ch, [alias | Ref], ?DEMAND_BYTES}),
            fetched(Ch, Ref, Timeout);
        {error, _} ->
            {error, closed}
    end.

-spec fetched(channel(), reference(), timeout()) -> {ok, term()} | {error, closed | timeout | empty}.
fetched(Ch, Ref, Timeout) ->
    receive
        {[alias | Ref], Answer} -> answer(Ch, Answer);
        {'DOWN', Ref, process, _, _} -> {error, closed}
    after Timeout ->
        % Messages may be on their way: the node says which came first.
        ok = tell(Ch, {unrecv, Ch, [alias | Ref]}),
        fetched(Ch, Ref, infinity)
    end.

-spec answer(channel(), term()) -> {ok, term()} | {error, closed | timeout | empty}.
answer(_, {messages, [Term]}) ->
    {ok, Term};
answer(Ch, {messages, [Term | Terms]}) ->
    put({?MODULE, Ch}, Terms),
    {ok, Term};
answer(_, cancelled) ->
    {error, timeout};
answer(_, Reason) when Reason =:= closed; Reason =:= empty ->
    {error, Reason}.

%% The pid tells the node whether it is still the one that was meant.
-spec tell(channel(), tuple()) -> ok.
tell(Ch, Item) ->
    {py, node(Ch)} ! {'$py_channel', [Item]},
    ok.
