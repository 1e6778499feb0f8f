%% Runs the calls of one node: hands each to a handler process and takes the results back in few
%% distribution messages.
%%
%%   node ── {'$py_calls', [Item]} ──────────────▶ ┌──────────────────┐ ── '$run' ──▶ handlers
%%   node ◀─ {'$py_results', [{Id, Result}]} ───── │ py_callback_link │ ◀─ '$done' ──
%%                                                 └──────────────────┘
%%
%%   {call, Id, Caller, Name, Args}   Caller: the number of the calling thread, 0 for a coroutine
%%   {trace, Id, Parent, State}       the trace context of the call that comes next, which has this Id
%%   {cancel, Id}                     nobody waits any more: the handler is killed, nothing answered
%%   {gone, Caller}                   the thread has ended: its handler goes back to the pool
%%   {log, Level, Text, Meta}         for logger
%%
%%   Result   what py_callback_handler says, or {signal, Reason}: the handler was killed by an exit
%%            signal, or overloaded: too many calls at once
%%
%% Handlers. A thread has one of its own from its first call on, so its calls run in one process and
%% in order. A coroutine's call takes one from the pool, or a new one, and gives it back. Nobody waits
%% for a handler. What does not fit into the pool ends.
%%
%% A call of a thread whose call before is not done yet waits here, never in the handler's mailbox.
%% That happens after a large result, which the handler sends itself: the thread may call again before
%% '$done' has come.
%%
%% Batching is that of py_link: a result that finds the link idle goes out at once and alone, what
%% arrives meanwhile is drained in one go.
%%
%% Who dies, and what follows:
%%   node     Every handler is killed and the link ends. Nothing sent here ever dials the node.
%%   handler  Whatever it ran is answered {signal, Reason}; a thread's next call gets another.
%%   link     So do the handlers. py_callback hears of it, and the node's next hello starts another.
-module(py_callback_link).

-include_lib("kernel/include/logger.hrl").

-export([start_link/1, introduce/1, stop/1]).
-export([init/2, loop/1]).
-export([system_continue/3, system_terminate/4, system_code_change/4, system_get_state/1]).

-define(MAX_BATCH, 512).
-define(MAX_BATCH_BYTES, 49152).
-define(SMALL, 32).             % bytes, more than a result without a term of the user's takes
-define(MAX_IDLE, 64).
-define(MAX_CALLBACKS, 100000).
-define(REST_MS, 1000).         % idle for so long, it hibernates
-define(FAREWELL_MS, 1000).     % that killed handlers get to be gone; they may be amidst a large result

-type id() :: pos_integer().
-type caller() :: pos_integer().
-type call() :: py_callback_handler:call().
-type result() :: py_callback_handler:result() | {signal, term()} | overloaded.

%% What a handler is at: nothing, in the pool; nothing, asked whether it is clean; a coroutine's call,
%% or one whose thread has ended; a thread's call or none, and calls that wait behind it.
-type role() ::
    pooled
    | leaving
    | {single, id()}
    | {thread, caller(), id() | none, [call()]}.

-record(link, {
    parent :: pid(),
    node_pid :: pid(),
    monitor :: reference(),
    max :: pos_integer(),
    calls = #{} :: #{id() => pid()},            % every call not done, with its handler
    threads = #{} :: #{caller() => pid()},
    handlers = #{} :: #{pid() => role()},
    trace = none :: none | {id(), py_trace:trace()},   % of the call that comes next
    pool = [] :: [pid()]
}).

%% Results gathered for the node, newest first.
-record(batch, {
    count = 0 :: non_neg_integer(),
    bytes = 0 :: non_neg_integer(),
    results = [] :: [{id(), result()}]
}).

%% --- For py_callback ------------------------------------------------------------------------------

%% Returns `ignore` if the node is not connected: watching it would dial it.
-spec start_link(pid()) -> {ok, pid()} | ignore | {error, term()}.
start_link(NodePid) ->
    proc_lib:start_link(?MODULE, init, [self(), NodePid], 5000,
                        [{message_queue_data, off_heap}, {fullsweep_after, 50},
                         {min_heap_size, 4096}]).

%% Makes the link tell its node who it is.
-spec introduce(pid()) -> ok.
introduce(Link) ->
    Link ! '$introduce',
    ok.

%% Ends the link, since its node has a successor.
-spec stop(pid()) -> ok.
stop(Link) ->
    Link ! '$stop',
    ok.

%% --- The process ----------------------------------------------------------------------------------

-spec init(pid(), pid()) -> no_return().
init(Parent, NodePid) ->
    process_flag(trap_exit, true),
    case lists:member(node(NodePid), nodes(connected)) of
        true ->
            State = #link{parent = Parent,
                          node_pid = NodePid,
                          monitor = erlang:monitor(process, NodePid),
                          max = application:get_env(sidewinder, max_callbacks, ?MAX_CALLBACKS)},
            proc_lib:init_ack(Parent, {ok, self()}),
            loop(State);
        false ->
            proc_lib:init_ack(Parent, ignore),
            exit(normal)
    end.

-spec loop(#link{}) -> no_return().
loop(State) ->
    receive
        Message -> accept(Message, #batch{}, State)
    after ?REST_MS ->
        proc_lib:hibernate(?MODULE, loop, [State])
    end.

-spec accept(term(), #batch{}, #link{}) -> no_return().
accept(Message, Batch, State) ->
    {Batch1, State1} = handle(Message, Batch, State),
    next(Batch1, State1).

%% Goes on with what already waits; sends when nothing does.
-spec next(#batch{}, #link{}) -> no_return().
next(Batch, State) ->
    receive
        Message -> accept(Message, Batch, State)
    after 0 ->
        loop(deliver(Batch, State))
    end.

-spec handle(term(), #batch{}, #link{}) -> {#batch{}, #link{}} | no_return().
handle({'$done', Handler, Id, Answer, Fate}, Batch, #link{handlers = Handlers} = State) ->
    case Handlers of
        #{Handler := {single, Id}} ->
            {answered(Id, Answer, Batch, State), freed(Fate, Handler, finished(Id, State))};
        #{Handler := {thread, Caller, Id, Waiting}} ->
            {answered(Id, Answer, Batch, State),
             continue(Waiting, Caller, Handler, finished(Id, State))};
        #{} ->
            {Batch, State}  % cancelled
    end;
handle({'$py_calls', Items}, Batch, State) ->
    items(Items, Batch, State);
handle({'$clean', Handler}, Batch, #link{handlers = Handlers} = State) ->
    case Handlers of
        #{Handler := leaving} -> {Batch, pool(Handler, State)};
        #{} -> {Batch, State}
    end;
handle({'EXIT', Parent, Reason}, Batch, #link{parent = Parent} = State) ->
    finish(Reason, deliver(Batch, State));
handle({'EXIT', Handler, Reason}, Batch, #link{handlers = Handlers} = State) ->
    case maps:take(Handler, Handlers) of
        {Role, Left} -> died(Role, Handler, Reason, Batch, State#link{handlers = Left});
        error -> {Batch, State}
    end;
handle({'DOWN', Monitor, process, _, Reason}, _, #link{monitor = Monitor} = State) ->
    finish(Reason, State);
handle('$introduce', Batch, #link{node_pid = NodePid} = State) ->
    _ = erlang:send(NodePid, {'$py_callback', self()}, [noconnect]),
    {Batch, State};
handle('$stop', _, State) ->
    finish(replaced, State);
handle({system, From, Request}, Batch, #link{parent = Parent} = State) ->
    sys:handle_system_msg(Request, From, Parent, ?MODULE, [], deliver(Batch, State));
handle(Message, Batch, State) ->
    ignored(Message, Batch, State).

-spec ignored(term(), #batch{}, #link{}) -> {#batch{}, #link{}}.
ignored(What, Batch, #link{node_pid = NodePid} = State) ->
    ?LOG_DEBUG(#{what => "unexpected message dropped", callbacks => node(NodePid), message => What}),
    {Batch, State}.

%% --- What the node says ---------------------------------------------------------------------------

-spec items(term(), #batch{}, #link{}) -> {#batch{}, #link{}}.
items([Item | Items], Batch, State) ->
    {Batch1, State1} = item(Item, Batch, State),
    items(Items, Batch1, State1);
items([], Batch, State) ->
    {Batch, State};
items(Other, Batch, State) ->
    ignored(Other, Batch, State).

-spec item(term(), #batch{}, #link{}) -> {#batch{}, #link{}}.
item({call, Id, Caller, Name, Args}, Batch, #link{calls = Calls} = State)
  when is_integer(Id), Id > 0, is_integer(Caller), Caller >= 0, is_binary(Name), is_list(Args),
       not is_map_key(Id, Calls) ->
    call(Caller, {Id, traced(Id, Name, State), Args}, Batch, State#link{trace = none});
item({trace, Id, Parent, TraceState} = Item, Batch, State) ->
    Trace = case TraceState of <<>> -> Parent; _ -> {Parent, TraceState} end,
    case py_trace:is_trace(Trace) of
        true -> {Batch, State#link{trace = {Id, Trace}}};
        false -> ignored(Item, Batch, State)
    end;
item({cancel, Id}, Batch, State) ->
    cancel(Id, Batch, State);
item({gone, Caller}, Batch, State) ->
    gone(Caller, Batch, State);
item({log, Level, Text, Meta}, Batch, State)
  when Level =:= debug; Level =:= info; Level =:= notice; Level =:= warning; Level =:= error;
       Level =:= critical; Level =:= alert; Level =:= emergency ->
    log(Level, Text, Meta, deliver(Batch, State));
item(Other, Batch, State) ->
    ignored(Other, Batch, State).

-spec traced(id(), binary(), #link{}) -> binary() | {binary(), py_trace:trace()}.
traced(Id, Name, #link{trace = {Id, Trace}}) -> {Name, Trace};
traced(_, Name, _) -> Name.

-spec call(caller() | 0, call(), #batch{}, #link{}) -> {#batch{}, #link{}}.
call(_, {Id, _, _}, Batch, #link{calls = Calls, max = Max} = State) when map_size(Calls) >= Max ->
    {gather(Id, overloaded, ?SMALL, Batch, State), State};
call(Caller, {Id, _, _} = Call, Batch, #link{threads = Threads, handlers = Handlers} = State) ->
    case Threads of
        #{Caller := Handler} ->
            case Handlers of
                #{Handler := {thread, Caller, none, []}} ->
                    {Batch, run(Call, Caller, Handler, State)};
                #{Handler := {thread, Caller, Current, Waiting}} ->
                    Role = {thread, Caller, Current, Waiting ++ [Call]},
                    {Batch, started(Id, Handler, Role, State)}
            end;
        #{} ->
            case take_handler(State) of
                {Handler, State1} -> {Batch, run(Call, Caller, Handler, State1)};
                system_limit -> {gather(Id, overloaded, ?SMALL, Batch, State), State}
            end
    end.

-spec run(call(), caller() | 0, pid(), #link{}) -> #link{}.
run({Id, _, _} = Call, 0, Handler, State) ->
    ok = py_callback_handler:run(Handler, Call, give_back, self()),
    started(Id, Handler, {single, Id}, State);
run({Id, _, _} = Call, Caller, Handler, #link{threads = Threads} = State) ->
    ok = py_callback_handler:run(Handler, Call, keep, self()),
    started(Id, Handler, {thread, Caller, Id, []},
            State#link{threads = Threads#{Caller => Handler}}).

-spec started(id(), pid(), role(), #link{}) -> #link{}.
started(Id, Handler, Role, #link{calls = Calls, handlers = Handlers} = State) ->
    State#link{calls = Calls#{Id => Handler}, handlers = Handlers#{Handler => Role}}.

-spec finished(id(), #link{}) -> #link{}.
finished(Id, #link{calls = Calls} = State) ->
    State#link{calls = maps:remove(Id, Calls)}.

%% The waiting calls of a thread, which has lost its handler, start over.
-spec call_again(caller() | 0, [call()], #batch{}, #link{}) -> {#batch{}, #link{}}.
call_again(Caller, Waiting, Batch, State) ->
    lists:foldl(fun({Id, _, _} = Call, {B, S}) -> call(Caller, Call, B, finished(Id, S)) end,
                {Batch, State}, Waiting).

-spec cancel(term(), #batch{}, #link{}) -> {#batch{}, #link{}}.
cancel(Id, Batch, #link{calls = Calls, handlers = Handlers} = State) ->
    case maps:take(Id, Calls) of
        {Handler, Left} ->
            State1 = State#link{calls = Left},
            case Handlers of
                #{Handler := {single, Id}} ->
                    {Batch, drop(Handler, State1)};
                #{Handler := {thread, Caller, Id, Waiting}} ->
                    call_again(Caller, Waiting, Batch, leave(Caller, drop(Handler, State1)));
                #{Handler := {thread, Caller, Current, Waiting}} ->
                    Role = {thread, Caller, Current, lists:keydelete(Id, 1, Waiting)},
                    {Batch, State1#link{handlers = Handlers#{Handler := Role}}}
            end;
        error ->
            {Batch, State}  % answered already
    end.

%% A call that still runs ends as a coroutine's does.
-spec gone(term(), #batch{}, #link{}) -> {#batch{}, #link{}}.
gone(Caller, Batch, #link{threads = Threads, handlers = Handlers} = State) ->
    case Threads of
        #{Caller := Handler} ->
            State1 = leave(Caller, State),
            case Handlers of
                #{Handler := {thread, _, none, []}} ->
                    {Batch, release(Handler, State1)};
                #{Handler := {thread, _, Id, Waiting}} ->
                    State2 = State1#link{handlers = Handlers#{Handler := {single, Id}}},
                    call_again(0, Waiting, Batch, State2)
            end;
        #{} ->
            {Batch, State}
    end.

-spec leave(caller(), #link{}) -> #link{}.
leave(Caller, #link{threads = Threads} = State) ->
    State#link{threads = maps:remove(Caller, Threads)}.

%% --- Logging --------------------------------------------------------------------------------------

%% What logger and its handlers rely on is what it should be: a handler that crashes is removed.
-spec log(logger:level(), term(), term(), #link{}) -> {#batch{}, #link{}}.
log(Level, Text, Meta, State) when is_binary(Text), is_map(Meta) ->
    try
        logger:log(Level, "~ts", [Text], maps:filter(fun is_sound/2, Meta))
    catch
        _:_ -> ok
    end,
    {#batch{}, State};
log(Level, Text, Meta, State) ->
    ignored({log, Level, Text, Meta}, #batch{}, State).

-spec is_sound(term(), term()) -> boolean().
is_sound(time, Time) -> is_integer(Time);
is_sound(pid, Pid) -> is_pid(Pid);
is_sound(gl, Leader) -> is_pid(Leader) andalso node(Leader) =:= node();
is_sound(mfa, {M, F, A}) -> is_atom(M) andalso is_atom(F) andalso is_integer(A);
is_sound(mfa, _) -> false;
is_sound(file, File) -> is_list(File) orelse is_binary(File);
is_sound(line, Line) -> is_integer(Line) andalso Line >= 0;
is_sound(domain, Domain) -> is_list(Domain) andalso length(Domain) > 0;
is_sound(report_cb, _) -> false;
is_sound(error_logger, _) -> false;
is_sound(_, _) -> true.

%% --- Handlers -------------------------------------------------------------------------------------

-spec take_handler(#link{}) -> {pid(), #link{}} | system_limit.
take_handler(#link{pool = [Handler | Pool]} = State) ->
    {Handler, State#link{pool = Pool}};
take_handler(#link{node_pid = NodePid} = State) ->
    try
        {py_callback_handler:start_link(NodePid), State}
    catch
        error:system_limit -> system_limit
    end.

-spec continue([call()], caller(), pid(), #link{}) -> #link{}.
continue([], Caller, Handler, #link{handlers = Handlers} = State) ->
    State#link{handlers = Handlers#{Handler := {thread, Caller, none, []}}};
continue([{Id, _, _} = Call | Waiting], Caller, Handler, State) ->
    ok = py_callback_handler:run(Handler, Call, keep, self()),
    started(Id, Handler, {thread, Caller, Id, Waiting}, State).

-spec freed(py_callback_handler:fate(), pid(), #link{}) -> #link{}.
freed(clean, Handler, State) ->
    pool(Handler, State);
freed(kept, Handler, State) ->
    release(Handler, State);
freed(dirty, Handler, #link{handlers = Handlers} = State) ->
    State#link{handlers = maps:remove(Handler, Handlers)}.

-spec release(pid(), #link{}) -> #link{}.
release(Handler, #link{handlers = Handlers} = State) ->
    ok = py_callback_handler:release(Handler),
    State#link{handlers = Handlers#{Handler := leaving}}.

-spec pool(pid(), #link{}) -> #link{}.
pool(Handler, #link{pool = Pool, handlers = Handlers} = State) when length(Pool) < ?MAX_IDLE ->
    State#link{pool = [Handler | Pool], handlers = Handlers#{Handler := pooled}};
pool(Handler, State) ->
    drop(Handler, State).

-spec drop(pid(), #link{}) -> #link{}.
drop(Handler, #link{handlers = Handlers} = State) ->
    ok = py_callback_handler:stop(Handler),
    State#link{handlers = maps:remove(Handler, Handlers)}.

-spec died(role(), pid(), term(), #batch{}, #link{}) -> {#batch{}, #link{}}.
died(pooled, Handler, _, Batch, #link{pool = Pool} = State) ->
    {Batch, State#link{pool = lists:delete(Handler, Pool)}};
died(leaving, _, _, Batch, State) ->
    {Batch, State};
died({single, Id}, _, Reason, Batch, State) ->
    {killed(Id, Reason, Batch, State), finished(Id, State)};
died({thread, Caller, none, []}, _, _, Batch, State) ->
    {Batch, leave(Caller, State)};
died({thread, Caller, Id, Waiting}, _, Reason, Batch, State) ->
    State1 = leave(Caller, finished(Id, State)),
    call_again(Caller, Waiting, killed(Id, Reason, Batch, State), State1).

%% --- Results --------------------------------------------------------------------------------------

-spec answered(id(), py_callback_handler:answer(), #batch{}, #link{}) -> #batch{}.
answered(_, sent, Batch, _) -> Batch;
answered(Id, {Size, Result}, Batch, State) -> gather(Id, Result, Size, Batch, State).

-spec killed(id(), term(), #batch{}, #link{}) -> #batch{}.
killed(Id, Reason, Batch, State) ->
    gather(Id, {signal, Reason}, ?SMALL + erlang:external_size(Reason), Batch, State).

%% Adds a result; what does not fit with it goes out before.
-spec gather(id(), result(), pos_integer(), #batch{}, #link{}) -> #batch{}.
gather(Id, Result, Size, #batch{count = Count, bytes = Bytes, results = Results}, _)
  when Count < ?MAX_BATCH, Bytes + Size =< ?MAX_BATCH_BYTES; Count =:= 0 ->
    #batch{count = Count + 1, bytes = Bytes + Size, results = [{Id, Result} | Results]};
gather(Id, Result, Size, Batch, State) ->
    gather(Id, Result, Size, #batch{}, deliver(Batch, State)).

-spec deliver(#batch{}, #link{}) -> #link{}.
deliver(#batch{results = []}, State) ->
    State;
deliver(#batch{results = Results}, #link{node_pid = NodePid} = State) ->
    _ = erlang:send(NodePid, {'$py_results', lists:reverse(Results)}, [noconnect]),
    State.

%% --- The end --------------------------------------------------------------------------------------

-spec finish(term(), #link{}) -> no_return().
finish(Reason, #link{handlers = Handlers}) ->
    maps:foreach(fun(Handler, _) -> exit(Handler, kill) end, Handlers),
    ok = farewell(Handlers, erlang:monotonic_time(millisecond) + ?FAREWELL_MS),
    exit({shutdown, why(Reason)}).

%% Nothing is left of the handlers when the link has ended.
-spec farewell(#{pid() => role()}, integer()) -> ok.
farewell(Handlers, _) when map_size(Handlers) =:= 0 ->
    ok;
farewell(Handlers, Deadline) ->
    receive
        {'EXIT', Handler, _} -> farewell(maps:remove(Handler, Handlers), Deadline);
        _ -> farewell(Handlers, Deadline)
    after max(0, Deadline - erlang:monotonic_time(millisecond)) ->
        ok
    end.

-spec why(term()) -> term().
why({shutdown, Why}) -> Why;
why(Reason) -> Reason.

%% --- sys ------------------------------------------------------------------------------------------

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
