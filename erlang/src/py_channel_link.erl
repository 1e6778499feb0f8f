%% The channels of one node as this BEAM sees them: gathers what local processes send into few
%% distribution messages, and keeps the credit that lets them decide alone whether they may.
%%
%%   sender ── '$send' ──▶ ┌─────────────────┐ ── {'$py_channel', [{send, Ch, Cost, {M}}]} ──▶ {py, Node}
%%   sender ◀─ ok, busy ── │ py_channel_link │
%%             (local)     └─────────────────┘ ◀── {'$py_channel', [{credit, Ch, N, Share}]} ── the node
%%
%% Credit. Each channel has an atomic counter of the bytes that may still be sent from here. A sender
%% takes from it before it hands its message over, so `busy` costs no round trip and the bound holds.
%% What the node's consumers have taken comes back in batches; a sender that found too little leaves
%% a flag, and the node is asked to be quick about it. When another BEAM is short, the node asks for
%% what is not used here: {reclaim, Ch, N, Share}, answered by {returned, Ch, M}.
%%
%% Batching is that of py_link: what finds the link idle goes out at once and alone, what arrives
%% meanwhile is drained in one go, order kept.
%%
%% Large messages. A message of more than 64 KB would keep the link for as long as it takes to send;
%% so a channel that gets one is given a py_channel_carrier, and all that is for that channel goes
%% through it from then on. The distribution interleaves what different processes send.
%%
%%   link ── '$send', '$item' ──▶ carrier ── {'$py_channel', Link, [{send, …}]} ──▶ {py, Node}
%%
%% Who dies, and what follows:
%%   owner   {close, Ch, Reason} goes to the node behind everything the owner sent.
%%   node    Every channel is closed here; senders and waiters see {error, closed}.
%%   link    As when the node dies; py_channel_sup does not start it again, whoever needs one does.
%%   carrier Its channel is closed: what it had not sent is lost.
-module(py_channel_link).

-include_lib("kernel/include/logger.hrl").
-include("py_channel.hrl").

-export([new_table/0, start_link/1, ensure/1]).
-export([new/4, handle/1, send/3, send/4, close/1, info/1, flush/2]).
-export([init/2]).
-export([system_continue/3, system_terminate/4, system_code_change/4, system_get_state/1]).

-export_type([handle/0, kind/0]).

-define(TABLE, py_channels).
-define(CREDIT, 1).                 % bytes that may be sent
-define(SHARE, 2).                  % the credit when nothing is on its way
-define(WANTED, 3).                 % 1: somebody found too little
-define(CLOSED, -(1 bsl 58)).
-define(UNBOUNDED, (1 bsl 57)).
-define(LARGE, 65536).              % bytes; more go through a carrier
-define(REMEMBERED, 1000).          % closed channels whose counts are kept

-type kind() :: terms | bytes.
-type handle() :: {pid(), pid(), atomics:atomics_ref(), non_neg_integer(), kind()}.

-record(channel, {
    credit :: atomics:atomics_ref(),
    max :: non_neg_integer(),
    owner :: reference() | none,
    carrier = none :: pid() | none,
    waiters = queue:new() :: queue:queue({reference(), pos_integer(), term()})
}).

-record(link, {
    parent :: pid(),
    node :: node(),
    monitor :: reference(),
    next = 1 :: pos_integer(),
    asked = #{} :: #{pos_integer() => {reference(), term()}},
    channels = #{} :: #{pid() => #channel{}},
    carriers = #{} :: #{pid() => pid()},  % carrier => channel
    gone = #{} :: #{pid() => map()},
    gone_order = queue:new() :: queue:queue(pid())
}).

%% What is gathered for the node: the messages for one channel, newest first, and before them items,
%% newest first.
-record(batch, {
    count = 0 :: non_neg_integer(),
    bytes = 0 :: non_neg_integer(),
    items = [] :: [tuple()]
}).

%% --- The table --------------------------------------------------------------------------------

-spec new_table() -> ok.
new_table() ->
    ?TABLE = ets:new(?TABLE, [named_table, public, {read_concurrency, true}]),
    ok.

%% The link of a node, started if need be. Does not wait for the node.
-spec ensure(node()) -> {ok, pid()} | {error, term()}.
ensure(Node) ->
    try ets:lookup(?TABLE, {link, Node}) of
        [{_, Pid}] ->
            case is_process_alive(Pid) of
                true -> {ok, Pid};
                false -> forget(Pid), ensure(Node)
            end;
        [] ->
            py_channel_sup:start_link_to(Node)
    catch
        error:badarg -> {error, {down, not_started}}
    end.

%% A link that was killed has left its rows behind.
-spec forget(pid()) -> ok.
forget(Link) ->
    Credits = ets:select(?TABLE, [{{'_', Link, '$1', '_', '_'}, [], ['$1']}]),
    lists:foreach(fun(Credit) -> atomics:put(Credit, ?CREDIT, ?CLOSED) end, Credits),
    true = ets:match_delete(?TABLE, {'_', Link, '_', '_', '_'}),
    true = ets:match_delete(?TABLE, {{link, '_'}, Link}),
    ok.

%% The way to send to a channel. One made by another BEAM is attached to the first time. A process
%% keeps the one it used last: what it holds tells when the channel is closed.
-spec handle(pid()) -> {ok, handle()} | {error, closed}.
handle(Ch) ->
    case get(?MODULE) of
        {Ch, _, _, _, _} = Handle -> {ok, Handle};
        _ -> look_up(Ch)
    end.

-spec look_up(pid()) -> {ok, handle()} | {error, closed}.
look_up(Ch) ->
    try ets:lookup(?TABLE, Ch) of
        [Handle] ->
            put(?MODULE, Handle),
            {ok, Handle};
        [] ->
            attach(Ch)
    catch
        error:badarg -> {error, closed}
    end.

-spec attach(pid()) -> {ok, handle()} | {error, closed}.
attach(Ch) when node(Ch) =:= node() ->
    error({badarg, Ch});
attach(Ch) ->
    case ask(Ch, {attach, Ch}, infinity) of
        ok -> look_up(Ch);
        {error, _} -> {error, closed}
    end.

%% --- Senders ----------------------------------------------------------------------------------

%% Sends if there is credit.
-spec send(handle(), term(), non_neg_integer()) -> ok | busy | {error, closed}.
send({Ch, Link, Credit, Max, _}, Term, Cost) ->
    case take(Credit, Cost, Max) of
        ok ->
            Link ! {'$send', Ch, Cost, Term},
            ok;
        busy ->
            case is_process_alive(Link) of
                true -> want(Ch, Link, Credit), told_busy(Ch, Cost, Max);
                false -> forget(Link), closed()
            end;
        closed ->
            closed()
    end.

-spec told_busy(pid(), non_neg_integer(), non_neg_integer()) -> busy.
told_busy(Ch, Cost, Max) ->
    _ = [py_telemetry:channel(busy, Ch, #{size => Cost}, #{max_size => Max})
         || py_telemetry:on(channel)],
    busy.

-spec closed() -> {error, closed}.
closed() ->
    erase(?MODULE),
    {error, closed}.

%% Waits for credit: behind those who already wait on this BEAM.
-spec send(handle(), term(), non_neg_integer(), timeout()) -> ok | busy | {error, closed}.
send({_, _, _, Max, _}, _, Cost, _) when Max > 0, Cost > Max ->
    busy;
send({Ch, Link, _, _, _} = Handle, Term, Cost, Timeout) ->
    case send(Handle, Term, Cost) of
        busy when Timeout =/= 0 ->
            Ref = erlang:monitor(process, Link, [{alias, reply_demonitor}]),
            Link ! {'$send_wait', Ch, Cost, Term, Ref},
            wait_for_room(Ch, Link, Ref, Timeout);
        Result ->
            Result
    end.

-spec wait_for_room(pid(), pid(), reference(), timeout()) -> ok | busy | {error, closed}.
wait_for_room(Ch, Link, Ref, Timeout) ->
    receive
        {Ref, Result} -> Result;
        {'DOWN', Ref, process, _, _} -> {error, closed}
    after Timeout ->
        % The link decides whether it was too late.
        Link ! {'$send_cancel', Ch, Ref},
        receive
            {Ref, Result} -> Result;
            {'DOWN', Ref, process, _, _} -> {error, closed}
        end
    end.

%% A message larger than the share may go when nothing else is on its way.
-spec take(atomics:atomics_ref(), non_neg_integer(), non_neg_integer()) -> ok | busy | closed.
take(Credit, Cost, Max) ->
    case atomics:sub_get(Credit, ?CREDIT, Cost) of
        Left when Left >= 0 ->
            ok;
        Left ->
            case Max >= Cost andalso Left + Cost =:= atomics:get(Credit, ?SHARE) of
                true ->
                    ok;
                false ->
                    atomics:add(Credit, ?CREDIT, Cost),
                    if Left < ?CLOSED div 2 -> closed; true -> busy end
            end
    end.

-spec want(pid(), pid(), atomics:atomics_ref()) -> ok.
want(Ch, Link, Credit) ->
    case atomics:exchange(Credit, ?WANTED, 1) of
        0 ->
            Link ! {'$want', Ch},
            ok;
        _ ->
            ok
    end.

%% Behind everything this process has sent.
-spec close(pid()) -> ok.
close(Ch) ->
    try ets:lookup(?TABLE, Ch) of
        [{_, Link, Credit, _, _}] ->
            atomics:put(Credit, ?CREDIT, ?CLOSED),
            Link ! {'$close', Ch, normal},
            ok;
        [] ->
            close_elsewhere(Ch)
    catch
        error:badarg -> ok
    end.

-spec close_elsewhere(pid()) -> ok.
close_elsewhere(Ch) ->
    case attach(Ch) of
        {ok, _} -> close(Ch);
        {error, closed} -> ok
    end.

-spec new(node(), kind(), non_neg_integer(), pid() | none) -> {ok, pid()} | {error, term()}.
new(Node, Kind, Max, Owner) ->
    case ensure(Node) of
        {ok, Link} -> ask_link(Link, {new, Kind, Max, Owner}, infinity);
        {error, Reason} -> {error, Reason}
    end.

-spec info(pid()) -> map().
info(Ch) ->
    case ask(Ch, {info, Ch}, infinity) of
        Info when is_map(Info) -> Info;
        {error, _} -> #{size => 0, max_size => 0, closed => true}
    end.

%% Waits until everything that came from this BEAM has been consumed.
-spec flush(pid(), timeout()) -> ok | {error, closed | timeout}.
flush(Ch, Timeout) ->
    case handle(Ch) of
        {ok, _} -> ask(Ch, {flush, Ch}, Timeout);
        {error, closed} -> {error, closed}
    end.

-spec ask(pid(), tuple(), timeout()) -> term().
ask(Ch, Question, Timeout) ->
    case ensure(node(Ch)) of
        {ok, Link} -> ask_link(Link, Question, Timeout);
        {error, _} -> {error, closed}
    end.

-spec ask_link(pid(), tuple(), timeout()) -> term().
ask_link(Link, Question, Timeout) ->
    Ref = erlang:monitor(process, Link, [{alias, reply_demonitor}]),
    Link ! {'$ask', Ref, Question},
    receive
        {Ref, Answer} -> Answer;
        {'DOWN', Ref, process, _, Reason} -> {error, {down, why(Reason)}}
    after Timeout ->
        erlang:demonitor(Ref, [flush]),
        receive
            {Ref, Answer} -> Answer
        after 0 -> {error, timeout}
        end
    end.

-spec why(term()) -> term().
why({shutdown, Why}) -> Why;
why(noproc) -> noconnection;
why(Reason) -> Reason.

%% --- The process ------------------------------------------------------------------------------

-spec start_link(node()) -> {ok, pid()} | {error, term()}.
start_link(Node) ->
    proc_lib:start_link(?MODULE, init, [self(), Node], 5000,
                        [{message_queue_data, off_heap}, {fullsweep_after, 50},
                         {min_heap_size, 4096}]).

-spec init(pid(), node()) -> no_return().
init(Parent, Node) ->
    process_flag(trap_exit, true),
    case ets:insert_new(?TABLE, {{link, Node}, self()}) of
        true ->
            proc_lib:init_ack(Parent, {ok, self()}),
            _ = net_kernel:connect_node(Node),  % what is sent later must not dial
            Monitor = erlang:monitor(process, {py, Node}),
            loop(#link{parent = Parent, node = Node, monitor = Monitor});
        false ->
            [{_, Pid}] = ets:lookup(?TABLE, {link, Node}),
            proc_lib:init_ack(Parent, {error, {already_started, Pid}})
    end.

-spec loop(#link{}) -> no_return().
loop(State) ->
    receive
        Message -> accept(Message, #batch{}, State)
    end.

-spec accept(term(), #batch{}, #link{}) -> no_return().
accept({'$send', Ch, Cost, Term}, Batch, #link{carriers = Carriers} = State)
  when Cost =< ?LARGE, map_size(Carriers) =:= 0 ->
    gather(Ch, Cost, [Term], 1, Batch, State);
accept({'$send', Ch, Cost, Term}, Batch, #link{channels = Channels} = State) ->
    case Channels of
        #{Ch := #channel{carrier = none}} when Cost =< ?LARGE ->
            gather(Ch, Cost, [Term], 1, Batch, State);
        #{Ch := _} ->
            {Batch1, State1} = carry(Ch, {'$send', Ch, Cost, Term}, Batch, State),
            next(Batch1, State1);
        #{} ->
            next(Batch, State)  % closed
    end;
accept(Message, Batch, State) ->
    {Batch1, State1} = handle(Message, Batch, State),
    next(Batch1, State1).

%% The way of the many: messages for one channel in a row.
-spec gather(pid(), non_neg_integer(), [term()], pos_integer(), #batch{}, #link{}) -> no_return().
gather(Ch, Cost, Terms, N, Batch, State) when N < ?MAX_BATCH, Cost < ?MAX_BATCH_BYTES ->
    receive
        {'$send', Ch, Own, Term} when Own =< ?LARGE ->
            gather(Ch, Cost + Own, [Term | Terms], N + 1, Batch, State);
        Message ->
            accept(Message, put_aside(Ch, Cost, Terms, N, Batch), State)
    after 0 ->
        loop(deliver(put_aside(Ch, Cost, Terms, N, Batch), State))
    end;
gather(Ch, Cost, Terms, N, Batch, State) ->
    loop(deliver(put_aside(Ch, Cost, Terms, N, Batch), State)).

%% A tuple, because a list of small integers would travel as a string.
-spec put_aside(pid(), non_neg_integer(), [term()], pos_integer(), #batch{}) -> #batch{}.
put_aside(Ch, Cost, Terms, N, #batch{count = Count, bytes = Bytes, items = Items}) ->
    #batch{count = Count + N, bytes = Bytes + Cost,
           items = [{send, Ch, Cost, list_to_tuple(lists:reverse(Terms))} | Items]}.

-spec next(#batch{}, #link{}) -> no_return().
next(#batch{count = Count, bytes = Bytes} = Batch, State)
  when Count < ?MAX_BATCH, Bytes < ?MAX_BATCH_BYTES ->
    receive
        Message -> accept(Message, Batch, State)
    after 0 ->
        loop(deliver(Batch, State))
    end;
next(Batch, State) ->
    loop(deliver(Batch, State)).

-spec deliver(#batch{}, #link{}) -> #link{}.
deliver(#batch{items = []}, State) ->
    State;
deliver(#batch{items = Items}, #link{node = Node} = State) ->
    _ = erlang:send({py, Node}, {'$py_channel', lists:reverse(Items)}, [noconnect]),
    State.

-spec item(tuple(), #batch{}) -> #batch{}.
item(Item, #batch{count = Count, items = Items} = Batch) ->
    Batch#batch{count = Count + 1, items = [Item | Items]}.

%% An item that is to stay behind what was sent before to its channel.
-spec behind(pid(), tuple(), #batch{}, #link{}) -> {#batch{}, #link{}}.
behind(Ch, Item, Batch, #link{channels = Channels} = State) ->
    case Channels of
        #{Ch := #channel{carrier = Carrier}} when is_pid(Carrier) ->
            Carrier ! {'$item', Item},
            {Batch, State};
        #{} ->
            {item(Item, Batch), State}
    end.

%% To the channel's carrier. A new one starts behind all that went out from here.
-spec carry(pid(), term(), #batch{}, #link{}) -> {#batch{}, #link{}}.
carry(Ch, Message, Batch, #link{node = Node, channels = Channels, carriers = Carriers} = State) ->
    case Channels of
        #{Ch := #channel{carrier = none} = Channel} ->
            State1 = deliver(Batch, State),
            Carrier = py_channel_carrier:start_link(Node),
            Carrier ! Message,
            {#batch{}, State1#link{channels = Channels#{Ch := Channel#channel{carrier = Carrier}},
                                   carriers = Carriers#{Carrier => Ch}}};
        #{Ch := #channel{carrier = Carrier}} ->
            Carrier ! Message,
            {Batch, State}
    end.

-spec handle(term(), #batch{}, #link{}) -> {#batch{}, #link{}} | no_return().
handle({'$py_channel', Items}, Batch, State) ->
    lists:foldl(fun(Item, {B, S}) -> from_node(Item, B, S) end, {Batch, State}, Items);
handle({'$want', Ch}, Batch, State) ->
    {item({want, Ch}, Batch), State};
handle({'$send_wait', Ch, Cost, Term, Ref}, Batch, #link{channels = Channels} = State) ->
    case Channels of
        #{Ch := Channel} ->
            Waiters = queue:in({Ref, Cost, Term}, Channel#channel.waiters),
            serve(Ch, item({want, Ch}, Batch), keep(Ch, Channel#channel{waiters = Waiters}, State));
        #{} ->
            Ref ! {Ref, {error, closed}},
            {Batch, State}
    end;
handle({'$send_cancel', Ch, Ref}, Batch, #link{channels = Channels} = State) ->
    case Channels of
        #{Ch := #channel{waiters = Waiters} = Channel} ->
            Ref ! {Ref, busy},  % an alias that has been answered is none any more
            Left = queue:filter(fun({Other, _, _}) -> Other =/= Ref end, Waiters),
            {Batch, State#link{channels = Channels#{Ch := Channel#channel{waiters = Left}}}};
        #{} ->
            Ref ! {Ref, {error, closed}},
            {Batch, State}
    end;
handle({'$ask', Ref, Question}, Batch, State) ->
    question(Question, Ref, Batch, State);
handle({'$close', Ch, Reason}, Batch, State) ->
    behind(Ch, {close, Ch, Reason}, Batch, State);
handle({{'$owner', Ch}, _, process, _, Reason}, Batch, #link{channels = Channels} = State) ->
    case Channels of
        #{Ch := #channel{credit = Credit}} ->
            atomics:put(Credit, ?CREDIT, ?CLOSED),
            behind(Ch, {close, Ch, Reason}, Batch, State);
        #{} ->
            {Batch, State}
    end;
handle({'DOWN', Monitor, process, _, Reason}, _, #link{monitor = Monitor} = State) ->
    finish(Reason, State);
handle({'EXIT', Parent, Reason}, Batch, #link{parent = Parent} = State) ->
    finish(Reason, deliver(Batch, State));
handle({'EXIT', Carrier, Reason}, Batch, #link{channels = Channels, carriers = Carriers} = State) ->
    case maps:take(Carrier, Carriers) of
        {Ch, Left} ->
            #{Ch := #channel{credit = Credit} = Channel} = Channels,
            atomics:put(Credit, ?CREDIT, ?CLOSED),
            {item({close, Ch, Reason}, Batch),
             keep(Ch, Channel#channel{carrier = none}, State#link{carriers = Left})};
        error ->
            {Batch, State}
    end;
handle({system, From, Request}, Batch, #link{parent = Parent} = State) ->
    sys:handle_system_msg(Request, From, Parent, ?MODULE, [], deliver(Batch, State));
handle(Message, Batch, State) ->
    ?LOG_DEBUG(#{what => "unexpected message dropped", link => State#link.node, message => Message}),
    {Batch, State}.

-spec question(tuple(), reference(), #batch{}, #link{}) -> {#batch{}, #link{}}.
question({new, Kind, Max, Owner}, Ref, Batch, State) ->
    {Id, State1} = asked({new, Kind, Max, Owner}, Ref, State),
    {item({new, Id, Kind, Max}, Batch), State1};
question({attach, Ch}, Ref, Batch, #link{channels = Channels} = State) ->
    case Channels of
        #{Ch := _} ->
            Ref ! {Ref, ok},
            {Batch, State};
        #{} ->
            {Id, State1} = asked({attach, Ch}, Ref, State),
            {item({attach, Id, Ch}, Batch), State1}
    end;
question({info, Ch}, Ref, Batch, #link{gone = Gone} = State) ->
    case Gone of
        #{Ch := Info} ->
            Ref ! {Ref, Info},
            {Batch, State};
        #{} ->
            {Id, State1} = asked({info, Ch}, Ref, State),
            behind(Ch, {info, Id, Ch}, Batch, State1)
    end;
question({flush, Ch}, Ref, Batch, State) ->
    {Id, State1} = asked({flush, Ch}, Ref, State),
    behind(Ch, {flush, Id, Ch}, Batch, State1).

-spec asked(term(), reference(), #link{}) -> {pos_integer(), #link{}}.
asked(What, Ref, #link{next = Id, asked = Asked} = State) ->
    {Id, State#link{next = Id + 1, asked = Asked#{Id => {Ref, What}}}}.

%% --- What the node says -------------------------------------------------------------------------

-spec from_node(tuple(), #batch{}, #link{}) -> {#batch{}, #link{}}.
from_node({credit, Ch, Bytes, Share}, Batch, #link{channels = Channels} = State) ->
    case Channels of
        #{Ch := #channel{credit = Credit}} ->
            atomics:put(Credit, ?SHARE, Share),
            atomics:add(Credit, ?CREDIT, Bytes),
            atomics:put(Credit, ?WANTED, 0),
            serve(Ch, Batch, State);
        #{} ->
            {Batch, State}
    end;
from_node({reclaim, Ch, Bytes, Share}, Batch, #link{channels = Channels} = State) ->
    case Channels of
        #{Ch := #channel{credit = Credit}} ->
            atomics:put(Credit, ?SHARE, Share),
            {item({returned, Ch, give_back(Credit, Bytes)}, Batch), State};
        #{} ->
            {Batch, State}
    end;
from_node({closed, Ch, Reason, Consumed}, Batch, State) ->
    {Batch, closed(Ch, Reason, Consumed, State)};
from_node({new, Id, Result, Grant}, Batch, #link{asked = Asked} = State) ->
    case maps:take(Id, Asked) of
        {{Ref, {new, Kind, Max, Owner}}, Left} ->
            made(Result, Grant, Kind, Max, Owner, Ref, Batch, State#link{asked = Left});
        error ->
            {Batch, State}
    end;
from_node({attached, Id, Result}, Batch, #link{asked = Asked} = State) ->
    case maps:take(Id, Asked) of
        {{Ref, {attach, Ch}}, Left} ->
            attached(Result, Ch, Ref, Batch, State#link{asked = Left});
        error ->
            {Batch, State}
    end;
from_node({info, Id, Info}, Batch, State) ->
    {Batch, answer(Id, info_of(Info), State)};
from_node({flushed, Id, ok}, Batch, State) ->
    {Batch, answer(Id, ok, State)};
from_node({flushed, Id, closed}, Batch, State) ->
    {Batch, answer(Id, {error, closed}, State)};
from_node(_, Batch, State) ->
    {Batch, State}.

-spec info_of(map() | closed) -> map() | {error, closed}.
info_of(closed) -> {error, closed};
info_of(Info) -> Info.

-spec answer(pos_integer(), term(), #link{}) -> #link{}.
answer(Id, Answer, #link{asked = Asked} = State) ->
    case maps:take(Id, Asked) of
        {{Ref, _}, Left} ->
            Ref ! {Ref, Answer},
            State#link{asked = Left};
        error ->
            State
    end.

-spec made(term(), non_neg_integer(), kind(), non_neg_integer(), pid() | none, reference(),
           #batch{}, #link{}) -> {#batch{}, #link{}}.
made({ok, Ch}, Grant, Kind, Max, Owner, Ref, Batch, State) ->
    State1 = open(Ch, Kind, Max, Grant, Grant, watch(Owner, Ch), State),
    _ = [py_telemetry:channel(opened, Ch, #{}, #{kind => Kind, max_size => Max})
         || py_telemetry:on(channel)],
    Ref ! {Ref, {ok, Ch}},
    {Batch, State1};
made({error, Reason}, _, _, _, _, Ref, Batch, State) ->
    Ref ! {Ref, {error, Reason}},
    {Batch, State}.

-spec watch(pid() | none, pid()) -> reference() | none.
watch(none, _) -> none;
watch(Owner, Ch) -> erlang:monitor(process, Owner, [{tag, {'$owner', Ch}}]).

-spec attached(term(), pid(), reference(), #batch{}, #link{}) -> {#batch{}, #link{}}.
attached({Kind, Max, Grant, Share}, Ch, Ref, Batch, #link{channels = Channels} = State) ->
    State1 = case Channels of
                 #{Ch := _} -> State;
                 #{} -> open(Ch, Kind, Max, Grant, Share, none, State)
             end,
    Ref ! {Ref, ok},
    {Batch, State1};
attached(closed, _, Ref, Batch, State) ->
    Ref ! {Ref, {error, closed}},
    {Batch, State}.

-spec open(pid(), kind(), non_neg_integer(), non_neg_integer(), non_neg_integer(),
           reference() | none, #link{}) -> #link{}.
open(Ch, Kind, Max, Grant, Share, Owner, #link{channels = Channels} = State) ->
    Credit = atomics:new(3, [{signed, true}]),
    ok = atomics:put(Credit, ?CREDIT, if Max =:= 0 -> ?UNBOUNDED; true -> Grant end),
    ok = atomics:put(Credit, ?SHARE, Share),
    true = ets:insert(?TABLE, {Ch, self(), Credit, Max, Kind}),
    State#link{channels = Channels#{Ch => #channel{credit = Credit, max = Max, owner = Owner}}}.

%% Hands the messages of those who wait over, as far as the credit goes.
-spec serve(pid(), #batch{}, #link{}) -> {#batch{}, #link{}}.
serve(Ch, Batch, #link{channels = Channels} = State) ->
    #{Ch := #channel{waiters = Waiters, credit = Credit, max = Max} = Channel} = Channels,
    case queue:peek(Waiters) of
        empty ->
            {Batch, State};
        {value, {Ref, Cost, Term}} ->
            case take(Credit, Cost, Max) of
                ok ->
                    Ref ! {Ref, ok},
                    State1 = keep(Ch, Channel#channel{waiters = queue:drop(Waiters)}, State),
                    {Batch1, State2} = hand_over(Channel, Ch, Cost, Term, Batch, State1),
                    serve(Ch, Batch1, State2);
                busy ->
                    ok = atomics:put(Credit, ?WANTED, 1),
                    {item({want, Ch}, Batch), State};
                closed ->
                    {Batch, State}
            end
    end.

-spec hand_over(#channel{}, pid(), pos_integer(), term(), #batch{}, #link{}) -> {#batch{}, #link{}}.
hand_over(#channel{carrier = none}, Ch, Cost, Term, Batch, State) when Cost =< ?LARGE ->
    {put_aside(Ch, Cost, [Term], 1, Batch), State};
hand_over(_, Ch, Cost, Term, Batch, State) ->
    carry(Ch, {'$send', Ch, Cost, Term}, Batch, State).

-spec keep(pid(), #channel{}, #link{}) -> #link{}.
keep(Ch, Channel, #link{channels = Channels} = State) ->
    State#link{channels = Channels#{Ch := Channel}}.

%% Takes unused credit away, at most so much; how much it was.
-spec give_back(atomics:atomics_ref(), non_neg_integer()) -> non_neg_integer().
give_back(Credit, Bytes) ->
    Have = atomics:get(Credit, ?CREDIT),
    case min(Have, Bytes) of
        Give when Give =< 0 ->
            0;
        Give ->
            case atomics:compare_exchange(Credit, ?CREDIT, Have, Have - Give) of
                ok -> Give;
                _ -> give_back(Credit, Bytes)
            end
    end.

%% --- The end of a channel, and of the link ----------------------------------------------------------

-spec closed(pid(), term(), non_neg_integer(), #link{}) -> #link{}.
closed(Ch, Reason, Consumed, #link{channels = Channels, carriers = Carriers} = State) ->
    case maps:take(Ch, Channels) of
        {#channel{credit = Credit, owner = Owner, carrier = Carrier, waiters = Waiters, max = Max}, Left} ->
            ok = py_channel_carrier:stop(Carrier),
            ok = atomics:put(Credit, ?CREDIT, ?CLOSED),
            true = ets:delete(?TABLE, Ch),
            _ = [erlang:demonitor(Owner, [flush]) || Owner =/= none],
            _ = [Ref ! {Ref, {error, closed}} || {Ref, _, _} <- queue:to_list(Waiters)],
            Info = #{size => 0, max_size => Max, closed => true, consumed => Consumed},
            _ = [py_telemetry:channel(closed, Ch, #{consumed => Consumed}, #{reason => Reason})
                 || py_telemetry:on(channel)],
            State1 = State#link{channels = Left, carriers = maps:remove(Carrier, Carriers)},
            remember(Ch, Info, answer_about(Ch, Info, State1));
        error ->
            State
    end.

%% Questions about a channel that has ended may have ended with its carrier.
-spec answer_about(pid(), map(), #link{}) -> #link{}.
answer_about(Ch, Info, #link{asked = Asked} = State) ->
    Left = maps:filter(fun(_, {Ref, {info, C}}) when C =:= Ch -> Ref ! {Ref, Info}, false;
                          (_, {Ref, {flush, C}}) when C =:= Ch -> Ref ! {Ref, {error, closed}}, false;
                          (_, _) -> true
                       end, Asked),
    State#link{asked = Left}.

-spec remember(pid(), map(), #link{}) -> #link{}.
remember(Ch, Info, #link{gone = Gone, gone_order = Order} = State) when map_size(Gone) < ?REMEMBERED ->
    State#link{gone = Gone#{Ch => Info}, gone_order = queue:in(Ch, Order)};
remember(Ch, Info, #link{gone = Gone, gone_order = Order} = State) ->
    {{value, Oldest}, Left} = queue:out(Order),
    remember(Ch, Info, State#link{gone = maps:remove(Oldest, Gone), gone_order = Left}).

-spec finish(term(), #link{}) -> no_return().
finish(Reason, #link{node = Node, channels = Channels} = State) ->
    _ = maps:fold(fun(Ch, _, S) -> closed(Ch, {down, why(Reason)}, 0, S) end, State, Channels),
    true = ets:delete_object(?TABLE, {{link, Node}, self()}),
    exit({shutdown, why(Reason)}).

%% --- sys ----------------------------------------------------------------------------------------

-spec system_continue(pid(), [sys:dbg_opt()], #link{}) -> no_return().
system_continue(_Parent, _Debug, State) ->
    loop(State).

-spec system_terminate(term(), pid(), [sys:dbg_opt()], #link{}) -> no_return().
system_terminate(Reason, _Parent, _Debug, State) ->
    finish(Reason, State).

-spec system_code_change(State, module(), term(), term()) -> {ok, State}.
system_code_change(State, _Module, _OldVsn, _Extra) ->
    {ok, State}.

-spec system_get_state(State) -> {ok, State}.
system_get_state(State) ->
    {ok, State}.
