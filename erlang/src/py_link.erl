%% The link to one node: gathers the requests of every local process into few distribution messages
%% and hands the replies back.
%%
%%   caller ── '$call' ──▶ ┌─────────┐ ── {'$py_batch', [Item]} ──────────▶ {py, Node}
%%   caller ── {cast,…} ─▶ │ py_link │
%%   caller ◀── alias ──── └─────────┘ ◀── {'$py_replies', [{Id, Result}]} ── the node
%%
%% Batching adapts by itself: a message that finds the link idle goes out alone and at once; what
%% arrives while the link is busy is drained in one go and travels in one message, order kept. Items
%% and results are listed in docs/protocol.md.
%%
%% A call with large arguments is sent by a process of its own (see carry/3), which may be suspended
%% by a busy connection without the small calls being held up.
%%
%% Bound. `admit/2` runs in the caller: two atomic counters say how many requests were issued and
%% how many are finished, so an overloaded link refuses without being asked. The issue number is the
%% request's id. A cast is finished when it has been sent, a call when it has been answered. The
%% counters belong to py_node and serve one link after the other, so that a pool can read them
%% without asking anybody; each link puts them level when it starts.
%%
%% Who dies, and what follows:
%%   caller   Calls not answered within one or two sweeps (20 to 40 ms) have their caller monitored;
%%            its death cancels them at the node. Quick calls never pay for that monitor.
%%   node     Every caller is answered {error, {down, Why}}, the row disappears from the table,
%%            py_node is told, and the link ends once no late request comes any more.
%%   link     Callers hold a monitor on it and see {error, {down, Reason}}. A spawn_call, answered by
%%            message, then gets {py_response, Ref, process, Pid, Reason}, which await/2 understands.
%%
%% A timer runs only while there are calls whose caller is not monitored yet; without it and without
%% calls the process hibernates.
-module(py_link).

-export([new_table/0, new_counters/0, in_flight/1, claim/1, release/1, start_link/3, close/2, lost/2, serve/2,
         forget_link/1]).
-export([find/1, owner/1, call/3, begin_call/2, why/1, cast/2, spawn_call/3, spawn_call/4, await/2, forget/1]).
-export([init/3, loop/1, carry/3]).
-export([system_continue/3, system_terminate/4, system_code_change/4, system_get_state/1,
         system_replace_state/2]).

-export_type([handle/0, key/0, options/0, request/0, result/0, reason/0]).

-include_lib("kernel/include/logger.hrl").

-define(TABLE, py_links).
-define(ISSUED, 1).
-define(FINISHED, 2).
-define(SWEEP_MS, 20).
-define(LINGER_MS, 50).
-define(MAX_BATCH, 512).
-define(MAX_BATCH_BYTES, 262144).

-type key() :: node() | '$default'.
-type handle() :: {key(), pid(), atomics:atomics_ref(), pos_integer()}.
-type id() :: pos_integer().
-type name() :: atom() | binary().
-type kwargs() :: #{name() => term()} | [].
-type options() :: #{
    keys := [key()],                % rows of the table that lead to this link
    counters := atomics:atomics_ref(),
    max_in_flight := pos_integer(),
    settle := non_neg_integer()     % ms to wait for lost/2 to tell why the node went
}.
-type request() ::
    {call, 0, name(), name(), [term()]}
    | {call, 0, name(), name(), [term()], kwargs()}
    | {call, 0, name(), name(), [term()], kwargs(), item_options()}
    | {eval, 0, pid(), binary(), #{name() => term()}}
    | {eval, 0, pid(), binary(), #{name() => term()}, item_options()}
    | {exec, 0, pid(), binary()}
    | {exec, 0, pid(), binary(), item_options()}.
-type cast() ::
    {cast, name(), name(), [term()], kwargs()}
    | {cast, name(), name(), [term()], kwargs(), item_options()}.
-type item_options() :: #{
    binary => auto | str | bytes,
    trace => py_trace:trace() | undefined
}.
-type item() :: tuple().
-type reason() ::
    timeout | overloaded | cancelled | draining
    | {down, term()}
    | {not_allowed, {name(), name()}}
    | {python, Type :: binary(), Message :: binary(), Traceback :: binary()}
    | {bad_target, term()}
    | {bad_request, term()}
    | {bad_term, binary()}
    | {bad_ref, other_node | released | unknown}
    | {too_many_refs, node | owner}
    | {bad_context, closed | other_node | unknown} | too_many_contexts
    | {unsupported, binary()}
    | {worker_died, term()}.
-type result() :: {ok, term()} | {error, reason()}.

%% Who waits for a call: [Alias | Caller] in a receive of ours, or by message with a deadline, or in a
%% receive for a call that a carrier has taken to the node.
-type waiter() :: nonempty_improper_list(reference(), pid())
                | {reference(), pid(), integer() | infinity}
                | {reference(), pid(), carrier, pid()}.
%% A call whose caller is monitored, with the timer of its deadline.
-type watched() :: {waiter(), reference(), reference() | none}.

-record(link, {
    parent :: pid(),
    node :: node(),
    target :: {py, node()},
    monitor :: reference(),
    settle :: non_neg_integer(),
    counters :: atomics:atomics_ref(),
    max :: pos_integer(),
    timer = none :: reference() | none,
    middle = #{} :: #{id() => waiter()},      % calls that have seen one sweep
    old = #{} :: #{id() => watched()},        % calls that have seen two
    refs = #{} :: #{reference() => id()},     % spawn_calls, to find them for forget/1
    watches = #{} :: #{reference() => py_telemetry:watch()}    % those whose end is to be told
}).

%% Calls younger than the last sweep; an argument of its own because every call changes it.
-type young() :: #{id() => waiter()}.

%% --- The table of links -----------------------------------------------------------------------

%% Creates the table; the caller owns it.
-spec new_table() -> ok.
new_table() ->
    ?TABLE = ets:new(?TABLE, [named_table, public, {read_concurrency, true}]),
    ok.

-spec new_counters() -> atomics:atomics_ref().
new_counters() ->
    atomics:new(2, [{signed, true}]).

%% Requests admitted and not finished.
-spec in_flight(atomics:atomics_ref()) -> integer().
in_flight(Counters) ->
    Finished = atomics:get(Counters, ?FINISHED),
    atomics:get(Counters, ?ISSUED) - Finished.

%% The link of a node that is up, or of the default node.
-spec find(key() | term()) -> handle() | undefined.
find(Key) when is_atom(Key) -> row(Key);
find(_) -> undefined.

%% The py_node of a node.
-spec owner(node()) -> pid() | undefined.
owner(Node) ->
    case row({node, Node}) of
        {_, Pid} -> Pid;
        undefined -> undefined
    end.

-spec row(term()) -> tuple() | undefined.
row(Key) ->
    try ets:lookup(?TABLE, Key) of
        [Row] -> Row;
        [] -> undefined
    catch
        error:badarg -> undefined
    end.

%% Makes the calling process the py_node of a node, if no other lives.
-spec claim(node()) -> ok | {error, {already_started, pid()}}.
claim(Node) ->
    case ets:insert_new(?TABLE, {{node, Node}, self()}) of
        true -> ok;
        false -> reclaim(Node, owner(Node))
    end.

-spec reclaim(node(), pid() | undefined) -> ok | {error, {already_started, pid()}}.
reclaim(Node, Owner) ->
    case Owner =/= undefined andalso is_process_alive(Owner) of
        true ->
            {error, {already_started, Owner}};
        false ->
            true = ets:match_delete(?TABLE, {{node, Node}, Owner}),
            claim(Node)
    end.

-spec release(node()) -> ok.
release(Node) ->
    true = ets:delete_object(?TABLE, {{node, Node}, self()}),
    ok.

%% Removes the rows of a link, which its process does itself unless it was killed.
-spec forget_link(pid()) -> ok.
forget_link(Link) ->
    true = ets:match_delete(?TABLE, {'_', Link, '_', '_'}),
    ok.

%% --- Callers ----------------------------------------------------------------------------------

%% Sends a request and waits for its result. Leaves nothing in the mailbox, whatever happens.
-spec call(handle(), request(), timeout()) -> result().
call({_, Link, Counters, Max}, Request, Timeout) ->
    case admit(Counters, Max) of
        overloaded ->
            {error, overloaded};
        Id ->
            Ref = erlang:monitor(process, Link, [{alias, reply_demonitor}]),
            Link ! {call_tag(Request), Ref, self(), setelement(2, Request, Id)},
            receive
                {Ref, Result} -> Result;
                {'DOWN', Ref, process, _, Reason} -> {error, {down, why(Reason)}}
            after Timeout ->
                erlang:demonitor(Ref, [flush]),
                receive
                    {Ref, Result} -> Result
                after 0 ->
                    Link ! {'$cancel', Id},
                    {error, timeout}
                end
            end
    end.

%% Sends a request whose result comes as {Ref, Result}, unless 'DOWN' of Ref says that the link ended
%% (see why/1). Neither a timeout nor the death of the caller cancels it: py_asgi sees to both.
-spec begin_call(handle(), request()) -> reference() | overloaded.
begin_call({_, Link, Counters, Max}, Request) ->
    case admit(Counters, Max) of
        overloaded ->
            overloaded;
        Id ->
            Ref = erlang:monitor(process, Link, [{alias, reply_demonitor}]),
            Link ! {call_tag(Request), Ref, Link, setelement(2, Request, Id)},
            Ref
    end.

%% A large call goes a way of its own, past the small ones. Nobody can tell: the caller sends nothing
%% else until it is answered.
-spec call_tag(request()) -> '$call' | '$large_call'.
call_tag(Request) ->
    case erlang:external_size(Request) =< ?MAX_BATCH_BYTES of
        true -> '$call';
        false -> '$large_call'
    end.

%% Sends a request that wants no reply.
-spec cast(handle(), cast()) -> ok | {error, overloaded}.
cast({_, Link, Counters, Max}, Cast) ->
    case admit(Counters, Max) of
        overloaded ->
            {error, overloaded};
        _Id ->
            Link ! Cast,
            ok
    end.

%% Sends a request whose result comes to the caller as {py_response, Ref, Result}.
-spec spawn_call(handle(), request(), timeout()) -> reference() | overloaded.
spawn_call({_, Link, Counters, Max}, Request, Timeout) ->
    case admit(Counters, Max) of
        overloaded ->
            overloaded;
        Id ->
            Ref = erlang:monitor(process, Link, [{alias, reply_demonitor}, {tag, py_response}]),
            Link ! {'$spawn_call', Ref, self(), deadline(Timeout), setelement(2, Request, Id)},
            Ref
    end.

%% The same for one whose end is to be told to py_telemetry.
-spec spawn_call(handle(), request(), timeout(), py_telemetry:watch()) -> reference() | overloaded.
spawn_call({_, Link, Counters, Max}, Request, Timeout, Watch) ->
    case admit(Counters, Max) of
        overloaded ->
            ok = py_telemetry:answered(Watch, {error, overloaded}),
            overloaded;
        Id ->
            Ref = erlang:monitor(process, Link, [{alias, reply_demonitor}, {tag, py_response}]),
            Link ! {'$watch', Ref, Watch},
            Link ! {'$spawn_call', Ref, self(), deadline(Timeout), setelement(2, Request, Id)},
            Ref
    end.

%% Waits for the result of a spawn_call. After a timeout the call is cancelled and silent.
-spec await(reference(), timeout()) -> result().
await(Ref, Timeout) ->
    receive
        {py_response, Ref, Result} -> Result;
        {py_response, Ref, process, _, Reason} -> {error, {down, why(Reason)}}
    after Timeout ->
        erlang:demonitor(Ref, [flush]),
        receive
            {py_response, Ref, Result} -> Result
        after 0 ->
            forget(Ref),
            {error, timeout}
        end
    end.

%% Cancels the spawn_call behind Ref, whichever link carries it.
-spec forget(reference()) -> ok.
forget(Ref) ->
    Links = lists:usort([Link || [Link] <- ets:match(?TABLE, {'_', '$1', '_', '_'})]),
    lists:foreach(fun(Link) -> Link ! {'$forget', Ref} end, Links).

-spec admit(atomics:atomics_ref(), pos_integer()) -> id() | overloaded.
admit(Counters, Max) ->
    Id = atomics:add_get(Counters, ?ISSUED, 1),
    case Id - atomics:get(Counters, ?FINISHED) of
        InFlight when InFlight =< Max ->
            Id;
        _ ->
            atomics:add(Counters, ?FINISHED, 1),
            overloaded
    end.

-spec deadline(timeout()) -> integer() | infinity.
deadline(infinity) -> infinity;
deadline(Timeout) -> erlang:monotonic_time(millisecond) + Timeout.

%% Why a link ended, from its exit reason.
-spec why(term()) -> term().
why({shutdown, Why}) -> Why;
why(noproc) -> noconnection;
why(Reason) -> Reason.

%% --- The process: start and end, called by py_node ----------------------------------------------

-spec start_link(node(), options(), timeout()) -> {ok, pid()} | {error, term()}.
start_link(Node, Options, Timeout) ->
    proc_lib:start_link(?MODULE, init, [self(), Node, Options], Timeout,
                        [{message_queue_data, off_heap}, {fullsweep_after, 50},
                         {min_heap_size, 4096}]).

%% Ends the link: refuses new work, answers everyone who waits, returns when the process is gone.
-spec close(pid(), term()) -> ok.
close(Link, Why) ->
    Monitor = erlang:monitor(process, Link),
    Link ! {'$close', Why},
    receive
        {'DOWN', Monitor, process, _, _} -> ok
    after 1000 ->
        exit(Link, kill),
        receive {'DOWN', Monitor, process, _, _} -> ok end
    end.

%% Tells the link why its node went, ahead of or just after the loss of the connection.
-spec lost(pid(), term()) -> ok.
lost(Link, Why) ->
    Link ! {'$lost', Why},
    ok.

%% Adds a row that leads to the link.
-spec serve(pid(), key()) -> ok.
serve(Link, Key) ->
    Link ! {'$serve', Key},
    ok.

-spec init(pid(), node(), options()) -> no_return().
init(Parent, Node, #{keys := Keys, counters := Counters, max_in_flight := Max, settle := Settle}) ->
    process_flag(trap_exit, true),
    ok = level(Counters),
    State = #link{parent = Parent,
                  node = Node,
                  target = {py, Node},
                  monitor = erlang:monitor(process, {py, Node}),
                  settle = Settle,
                  counters = Counters,
                  max = Max},
    ok = insert(Keys, State),
    proc_lib:init_ack(Parent, {ok, self()}),
    loop(State, #{}).

-spec insert([key()], #link{}) -> ok.
insert(Keys, #link{counters = Counters, max = Max}) ->
    true = ets:insert(?TABLE, [{Key, self(), Counters, Max} || Key <- Keys]),
    ok.

%% --- The loop ---------------------------------------------------------------------------------

%% Entry after hibernation, when no call is in flight.
-spec loop(#link{}) -> no_return().
loop(State) ->
    loop(State, #{}).

-spec loop(#link{}, young()) -> no_return().
loop(State, Young) ->
    receive
        Message -> accept(Message, 0, [], 0, Young, State)
    end.

%% N requests gathered in Items (newest first), Done of all requests finished with this batch.
-spec accept(term(), non_neg_integer(), [item()], non_neg_integer(), young(), #link{}) ->
    no_return().
accept({cast, _, _, _, _} = Item, N, Items, Done, Young, State) ->
    next(N + 1, [Item | Items], Done + 1, Young, State);
accept({cast, _, _, _, _, _} = Item, N, Items, Done, Young, State) ->
    next(N + 1, [Item | Items], Done + 1, Young, State);
accept({'$call', Alias, Caller, Item}, N, Items, Done, Young, State) ->
    next(N + 1, [Item | Items], Done, Young#{element(2, Item) => [Alias | Caller]}, State);
accept({'$py_replies', Replies}, N, Items, Done, Young, State) ->
    answer(Replies, N, Items, Done, Young, State);
accept({'$spawn_call', Alias, Caller, Deadline, Item}, N, Items, Done, Young, State) ->
    Id = element(2, Item),
    Refs = (State#link.refs)#{Alias => Id},
    Waiter = {Alias, Caller, Deadline},
    next(N + 1, [Item | Items], Done, Young#{Id => Waiter}, State#link{refs = Refs});
accept({'$watch', Alias, Watch}, N, Items, Done, Young, State = #link{watches = Watches}) ->
    next(N, Items, Done, Young, State#link{watches = Watches#{Alias => Watch}});
accept({'$large_call', Alias, Caller, Item}, N, Items, Done, Young, State) ->
    Carrier = spawn(?MODULE, carry, [self(), State#link.target, Item]),
    Waiter = {Alias, Caller, carrier, Carrier},
    next(N, Items, Done, Young#{element(2, Item) => Waiter}, start_sweeping(State));
accept({'$cancel', Id}, N, Items, Done, Young, State) ->
    cancel(Id, N, Items, Done, Young, State);
accept({'$forget', Ref}, N, Items, Done, Young, State) ->
    cancel(maps:get(Ref, State#link.refs, none), N, Items, Done, Young, State);
accept({{'$caller_down', Id}, _, process, _, _}, N, Items, Done, Young, State) ->
    cancel(Id, N, Items, Done, Young, State);
accept({timeout, _, {expire, Id}}, N, Items, Done, Young, State) ->
    expire(Id, N, Items, Done, Young, State);
accept(Message, _, Items, Done, Young, State) ->
    State1 = flush(Items, Done, State),
    control(Message, Young, State1).

%% Goes on with what already waits; sends when nothing does, or when the batch is full.
-spec next(non_neg_integer(), [item()], non_neg_integer(), young(), #link{}) -> no_return().
next(N, Items, Done, Young, State) when N < ?MAX_BATCH ->
    receive
        Message -> accept(Message, N, Items, Done, Young, State)
    after 0 ->
        loop(flush(Items, Done, State), Young)
    end;
next(_, Items, Done, Young, State) ->
    loop(flush(Items, Done, State), Young).

-spec answer([{id(), result()}], non_neg_integer(), [item()], non_neg_integer(), young(),
             #link{}) -> no_return().
answer([{Id, Result} | Replies], N, Items, Done, Young, State) ->
    case maps:take(Id, Young) of
        {[Alias | _], Young1} ->
            Alias ! {Alias, Result},
            answer(Replies, N, Items, Done + 1, Young1, State);
        {Waiter, Young1} ->
            State1 = reply(Waiter, Result, State),
            answer(Replies, N, Items, Done + 1, Young1, State1);
        error ->
            case take(Id, State) of
                {Waiter, State1} ->
                    State2 = reply(Waiter, Result, State1),
                    answer(Replies, N, Items, Done + 1, Young, State2);
                error ->
                    answer(Replies, N, Items, Done, Young, State)
            end
    end;
answer([_ | Replies], N, Items, Done, Young, State) ->
    answer(Replies, N, Items, Done, Young, State);
answer(_, N, Items, Done, Young, State) ->
    next(N, Items, Done, Young, State).

-spec reply(waiter(), result(), #link{}) -> #link{}.
reply([Alias | _], Result, State) ->
    Alias ! {Alias, Result},
    State;
reply({Alias, _, carrier, Carrier}, Result, State) ->
    Alias ! {Alias, Result},
    Carrier ! done,
    State;
reply({Alias, _, _}, Result, State = #link{refs = Refs}) ->
    Alias ! {py_response, Alias, Result},
    watched(Alias, Result, State#link{refs = maps:remove(Alias, Refs)}).

%% Handlers are called in a process of their own: nobody else's call is to wait for them.
-spec watched(reference(), result(), #link{}) -> #link{}.
watched(_, _, State = #link{watches = Watches}) when map_size(Watches) =:= 0 ->
    State;
watched(Alias, Result, State = #link{watches = Watches}) ->
    case maps:take(Alias, Watches) of
        {Watch, Left} ->
            Outcome = case Result of {ok, _} -> ok; Error -> Error end,
            _ = spawn(py_telemetry, answered, [Watch, Outcome, erlang:monotonic_time()]),
            State#link{watches = Left};
        error ->
            State
    end.

%% Takes a call that has seen a sweep out of the books.
-spec take(id(), #link{}) -> {waiter(), #link{}} | error.
take(Id, State = #link{middle = Middle, old = Old}) ->
    case maps:take(Id, Middle) of
        {Waiter, Middle1} ->
            {Waiter, State#link{middle = Middle1}};
        error ->
            case maps:take(Id, Old) of
                {{Waiter, Monitor, Timer}, Old1} ->
                    true = erlang:demonitor(Monitor),
                    stop_timer(Timer),
                    {Waiter, State#link{old = Old1}};
                error ->
                    error
            end
    end.

-spec take(id() | none, young(), #link{}) -> {waiter(), young(), #link{}} | error.
take(Id, Young, State) ->
    case maps:take(Id, Young) of
        {Waiter, Young1} ->
            {Waiter, Young1, State};
        error ->
            case take(Id, State) of
                {Waiter, State1} -> {Waiter, Young, State1};
                error -> error
            end
    end.

%% The caller gave up or died: its call leaves the books and the node is told. Nobody is answered.
-spec cancel(id() | none, non_neg_integer(), [item()], non_neg_integer(), young(), #link{}) ->
    no_return().
cancel(Id, N, Items, Done, Young, State) ->
    case take(Id, Young, State) of
        {{_, _, carrier, Carrier}, Young1, State1} ->
            Carrier ! cancel,
            next(N, Items, Done + 1, Young1, State1);
        {Waiter, Young1, State1} ->
            next(N + 1, [{cancel, Id} | Items], Done + 1, Young1, drop_ref(Waiter, State1));
        error ->
            next(N, Items, Done, Young, State)
    end.

%% The deadline of a spawn_call passed: the same, but the caller is told.
-spec expire(id(), non_neg_integer(), [item()], non_neg_integer(), young(), #link{}) ->
    no_return().
expire(Id, N, Items, Done, Young, State) ->
    case take(Id, Young, State) of
        {Waiter, Young1, State1} ->
            State2 = reply(Waiter, {error, timeout}, State1),
            next(N + 1, [{cancel, Id} | Items], Done + 1, Young1, State2);
        error ->
            next(N, Items, Done, Young, State)
    end.

-spec drop_ref(waiter(), #link{}) -> #link{}.
drop_ref({Ref, _, _}, State = #link{refs = Refs}) ->
    watched(Ref, {error, cancelled}, State#link{refs = maps:remove(Ref, Refs)});
drop_ref(_, State) -> State.

%% --- Sending ----------------------------------------------------------------------------------

-spec flush([item()], non_neg_integer(), #link{}) -> #link{}.
flush([], 0, State) ->
    State;
flush([], Done, State = #link{counters = Counters}) ->
    atomics:add(Counters, ?FINISHED, Done),
    State;
flush([_] = Items, Done, State = #link{target = Target, counters = Counters}) ->
    send(Target, Items),
    atomics:add(Counters, ?FINISHED, Done),
    start_sweeping(State);
flush(Items, Done, State = #link{target = Target, counters = Counters}) ->
    send_within(Target, lists:reverse(Items)),
    atomics:add(Counters, ?FINISHED, Done),
    start_sweeping(State).

%% `noconnect`: a request must not dial, it would reach the successor of the node it was meant for.
-spec send({py, node()}, [item()]) -> ok.
send(Target, Items) ->
    _ = erlang:send(Target, {'$py_batch', Items}, [noconnect]),
    ok.

%% One message if it is of modest size; else as many as keep each within the limit, so that many
%% large requests do not add up to a message the node must refuse.
-spec send_within({py, node()}, [item()]) -> ok.
send_within(Target, Items) ->
    case erlang:external_size(Items) =< ?MAX_BATCH_BYTES of
        true -> send(Target, Items);
        false -> send_split(Target, Items, [], 0)
    end.

-spec send_split({py, node()}, [item()], [item()], non_neg_integer()) -> ok.
send_split(Target, [], Part, _) ->
    send(Target, lists:reverse(Part));
send_split(Target, [Item | Items], Part, Size) ->
    case Size + erlang:external_size(Item) of
        Size1 when Part =:= []; Size1 =< ?MAX_BATCH_BYTES ->
            send_split(Target, Items, [Item | Part], Size1);
        _ ->
            send(Target, lists:reverse(Part)),
            send_split(Target, [Item | Items], [], 0)
    end.

%% --- Carriers -----------------------------------------------------------------------------------

%% Takes one large call to the node, which may take its time, while the link goes on. The node answers
%% and cancels by the process that sent the request, so both pass through here.
-spec carry(pid(), {py, node()}, item()) -> ok.
carry(Link, Target, Item) ->
    Monitor = erlang:monitor(process, Link),
    send(Target, [Item]),
    Id = element(2, Item),
    erlang:garbage_collect(),
    carried(Link, Target, Id, Monitor).

-spec carried(pid(), {py, node()}, id(), reference()) -> ok.
carried(Link, Target, Id, Monitor) ->
    receive
        {'$py_replies', [{Id, _}]} = Reply ->
            Link ! Reply,
            carried(Link, Target, Id, Monitor);
        cancel ->
            send(Target, [{cancel, Id}]);
        done ->
            ok;
        {'DOWN', Monitor, process, _, _} ->
            ok
    end.

%% --- Sweeps -----------------------------------------------------------------------------------

-spec start_sweeping(#link{}) -> #link{}.
start_sweeping(State = #link{timer = none}) ->
    State#link{timer = erlang:start_timer(?SWEEP_MS, self(), sweep)};
start_sweeping(State) ->
    State.

%% Ages the calls by one generation. Ends sweeping when no call is left unwatched.
-spec sweep(young(), #link{}) -> no_return().
sweep(Young, State = #link{middle = Middle, old = Old}) ->
    Old1 = maps:fold(fun watch/3, Old, Middle),
    State1 = State#link{timer = none, middle = Young, old = Old1},
    case {map_size(Young), map_size(Old1)} of
        {0, 0} -> rest(State1);
        {0, _} -> loop(State1, #{});
        {_, _} -> loop(start_sweeping(State1), #{})
    end.

-spec watch(id(), waiter(), #{id() => watched()}) -> #{id() => watched()}.
watch(Id, Waiter, Old) ->
    Monitor = erlang:monitor(process, caller(Waiter), [{tag, {'$caller_down', Id}}]),
    Old#{Id => {Waiter, Monitor, deadline_timer(Id, Waiter)}}.

-spec caller(waiter()) -> pid().
caller([_ | Caller]) -> Caller;
caller({_, Caller, carrier, _}) -> Caller;
caller({_, Caller, _}) -> Caller.

-spec deadline_timer(id(), waiter()) -> reference() | none.
deadline_timer(Id, {_, _, Deadline}) when is_integer(Deadline) ->
    Left = max(0, Deadline - erlang:monotonic_time(millisecond)),
    erlang:start_timer(Left, self(), {expire, Id});
deadline_timer(_, _) ->
    none.

-spec stop_timer(reference() | none) -> ok.
stop_timer(none) -> ok;
stop_timer(Timer) -> erlang:cancel_timer(Timer, [{async, true}, {info, false}]).

%% Nothing is in flight. A caller killed between admission and sending has left its number in the
%% counters; they are put level here.
-spec rest(#link{}) -> no_return().
rest(State = #link{counters = Counters}) ->
    case process_info(self(), message_queue_len) of
        {message_queue_len, 0} ->
            ok = level(Counters),
            proc_lib:hibernate(?MODULE, loop, [State]);
        _ ->
            loop(State, #{})
    end.

-spec level(atomics:atomics_ref()) -> ok.
level(Counters) ->
    atomics:put(Counters, ?FINISHED, atomics:get(Counters, ?ISSUED)).

%% --- Control messages and the end -----------------------------------------------------------------

-spec control(term(), young(), #link{}) -> no_return().
control({timeout, Timer, sweep}, Young, State = #link{timer = Timer}) ->
    sweep(Young, State);
control({'DOWN', Monitor, process, _, Reason}, Young, State = #link{monitor = Monitor}) ->
    finish(settle(Reason, State), ?LINGER_MS, Young, State);
control({'$lost', Why}, Young, State) ->
    finish(Why, ?LINGER_MS, Young, State);
control({'$close', Why}, Young, State) ->
    finish(Why, 0, Young, State);
control({'EXIT', Parent, Reason}, Young, State = #link{parent = Parent}) ->
    finish(why(Reason), 0, Young, State);
control({'$serve', Key}, Young, State) ->
    ok = insert([Key], State),
    loop(State, Young);
control({system, From, Request}, Young, State = #link{parent = Parent}) ->
    sys:handle_system_msg(Request, From, Parent, ?MODULE, [], {State, Young});
control(Message, Young, State) ->
    ?LOG_DEBUG(#{what => "unexpected message dropped", link => State#link.node,
                 message => Message}),
    loop(State, Young).

%% A local node's exit status says more than the lost connection, but may come just after it.
-spec settle(term(), #link{}) -> term().
settle(Reason, #link{settle = 0}) ->
    Reason;
settle(Reason, #link{settle = Settle}) ->
    receive
        {'$lost', Why} -> Why
    after Settle -> Reason
    end.

-spec finish(term(), non_neg_integer(), young(), #link{}) -> no_return().
finish(Why, Linger, Young, #link{parent = Parent, middle = Middle, old = Old} = State) ->
    ok = forget_link(self()),
    Parent ! {'$link_down', self(), Why},
    Result = {error, {down, Why}},
    Tell = fun(_, Waiter) -> tell(Waiter, Result) end,
    maps:foreach(Tell, Young),
    maps:foreach(Tell, Middle),
    maps:foreach(fun(_, {Waiter, _, _}) -> tell(Waiter, Result) end, Old),
    maps:foreach(fun(Ref, _) -> watched(Ref, Result, State) end, State#link.watches),
    linger(Result, Linger),
    unlink(Parent),
    exit({shutdown, Why}).

%% Answers those whose request was still on its way.
-spec linger(result(), non_neg_integer()) -> ok.
linger(Result, Linger) ->
    receive
        {'$call', Alias, Caller, _} ->
            tell([Alias | Caller], Result),
            linger(Result, Linger);
        {'$large_call', Alias, Caller, _} ->
            tell([Alias | Caller], Result),
            linger(Result, Linger);
        {'$spawn_call', Alias, Caller, Deadline, _} ->
            tell({Alias, Caller, Deadline}, Result),
            linger(Result, Linger);
        {'$watch', _, Watch} ->
            _ = spawn(py_telemetry, answered, [Watch, Result, erlang:monotonic_time()]),
            linger(Result, Linger);
        {'$close', _} ->
            linger(Result, 0);
        _ ->
            linger(Result, Linger)
    after Linger -> ok
    end.

-spec tell(waiter(), result()) -> ok.
tell([Alias | _], Result) ->
    Alias ! {Alias, Result},
    ok;
tell({Alias, _, carrier, _}, Result) ->
    Alias ! {Alias, Result},
    ok;
tell({Alias, _, _}, Result) ->
    Alias ! {py_response, Alias, Result},
    ok.

%% --- sys ----------------------------------------------------------------------------------------

-spec system_continue(pid(), [sys:dbg_opt()], {#link{}, young()}) -> no_return().
system_continue(_Parent, _Debug, {State, Young}) ->
    loop(State, Young).

-spec system_terminate(term(), pid(), [sys:dbg_opt()], {#link{}, young()}) -> no_return().
system_terminate(Reason, _Parent, _Debug, {State, Young}) ->
    finish(why(Reason), 0, Young, State).

-spec system_code_change(State, module(), term(), term()) -> {ok, State}.
system_code_change(State, _Module, _OldVsn, _Extra) ->
    {ok, State}.

-spec system_get_state(State) -> {ok, State}.
system_get_state(State) ->
    {ok, State}.

-spec system_replace_state(fun((State) -> State), State) -> {ok, State, State}.
system_replace_state(Change, State) ->
    New = Change(State),
    {ok, New, New}.
