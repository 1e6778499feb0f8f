%% Many callers, one call of Python: items are gathered, the function is given a list of them, and each
%% caller gets what stands at its item's place in the list that comes back.
%%
%%   callers ── call/2,3 ──▶ ┌──────────┐ ── a process per batch ── py:call ──▶ function([Item, …])
%%      ▲                    │ py_batch │                │
%%      │                    └──────────┘                │
%%      └────────────── {ok, Result} | {error, Reason} ──┘
%%
%% A batch starts when `max_items` are there, or when the first of them has waited `max_wait`
%% milliseconds, and fewer than `concurrency` batches run. With `max_wait` 0 an idle batcher starts at
%% once, and what comes while a batch runs is the next one. docs/batching.md is the guide.
%%
%% Who dies, and what follows:
%%   caller   Its item leaves the queue. In a batch that runs the item stays, unless all of the batch's
%%            callers have gone: then the call is cancelled. The same when a caller's time is over.
%%   batch    Its process can only be killed: its callers are told {error, {down, Reason}}.
%%   batcher  Its callers are told {error, {down, Reason}}, and the calls that run are cancelled.
-module(py_batch).
-behaviour(gen_server).

-export([start_link/1, child_spec/1, call/2, call/3, info/1]).
-export([init/1, handle_call/3, handle_cast/2, handle_info/2]).

-export_type([options/0, info/0]).

-define(TIMEOUT_MS, 30000).
-define(SWEEP_MS, 20).
-define(HEAP_WORDS, 4096).     % enough for small items: the process of a batch collects no garbage
-define(SPAWN, [{spawn_opt, [{message_queue_data, off_heap}, {min_heap_size, 4096}]}]).
-define(is_timeout(X), (X =:= infinity orelse (is_integer(X) andalso X >= 0))).

-type options() :: #{
    module := py:name(),
    function := py:name(),
    target => py:target(),              % default: the default node
    max_items => pos_integer(),         % in one call; default 64
    max_wait => non_neg_integer(),      % ms that an item waits for others; default 0
    max_queue => pos_integer(),         % items that wait, beyond them `overloaded`; default 10,000
    concurrency => pos_integer(),       % batches that run at once; default 1
    timeout => timeout(),               % of the call of a batch; default 30000 ms
    binary => auto | str | bytes,       % what Erlang binaries become in Python
    idempotent => boolean(),            % in a pool: may be run again when its node is lost
    name => atom()                      % registers the process; default: it has no name
}.
-type info() :: #{queued := non_neg_integer(), running := non_neg_integer(),
                  batches := non_neg_integer(), items := non_neg_integer(),
                  refused := non_neg_integer()}.
-type id() :: pos_integer().
%% An alias of the caller's, that its answer goes to, and what it wants to know.
-type entry() :: {Ref :: reference(), Caller :: pid(), Item :: term()}.

%% Items are gathered in groups; a group becomes a batch. One that is full, or runs, stands among
%% `groups`. It leaves when its batch has ended.
-record(batcher, {
    options :: options(),
    id = 1 :: id(),                     % of the group that is gathered
    gathered = [] :: [entry()],         % newest first
    count = 0 :: non_neg_integer(),     % of those
    since = 0 :: integer(),             % when the first of them came, in ms
    groups = #{} :: #{id() => [entry()]},
    ready = queue:new() :: queue:queue(id()),
    waiting = 0 :: non_neg_integer(),   % items of ready groups
    running = #{} :: #{Monitor :: reference() => {id(), pid()}},
    watched = #{} :: #{reference() => {id(), Monitor :: reference()}},   % old items, by alias
    callers = #{} :: #{Monitor :: reference() => reference()},
    old = 1 :: id(),                    % groups before this one are watched
    young = 1 :: id(),                  % and those before this one at the next sweep
    sweep :: reference() | undefined,
    due :: reference() | undefined,     % the timer of max_wait
    counts = {0, 0, 0} :: {Batches :: non_neg_integer(), Items :: non_neg_integer(),
                           Refused :: non_neg_integer()}
}).

%% --- For users ----------------------------------------------------------------------------------

%% Starts a batcher. Raises badarg for wrong options.
-spec start_link(options()) -> gen_server:start_ret().
start_link(Options) when is_map(Options) ->
    case checked(Options) of
        #{name := Name} = All -> gen_server:start_link({local, Name}, ?MODULE, All, ?SPAWN);
        All -> gen_server:start_link(?MODULE, All, ?SPAWN)
    end.

%% For a supervisor; the child's id is the name, or module and function.
-spec child_spec(options()) -> supervisor:child_spec().
child_spec(#{module := M, function := F} = Options) ->
    _ = checked(Options),
    #{id => {?MODULE, maps:get(name, Options, {M, F})}, start => {?MODULE, start_link, [Options]}}.

%% What the function makes of Item.
-spec call(gen_server:server_ref(), term()) -> py:result().
call(Batcher, Item) ->
    call(Batcher, Item, ?TIMEOUT_MS).

%% The same within a time of the caller's. {error, overloaded}: the queue is full.
-spec call(gen_server:server_ref(), term(), timeout()) -> py:result().
call(Batcher, Item, Timeout) when ?is_timeout(Timeout) ->
    Ref = erlang:monitor(process, Batcher, [{alias, reply_demonitor}]),
    ok = send(Batcher, {'$item', self(), Ref, Item}),
    receive
        {Ref, Result} -> Result;
        {'DOWN', Ref, process, _, Reason} -> {error, {down, Reason}}
    after Timeout ->
        _ = erlang:demonitor(Ref, [flush]),
        ok = send(Batcher, {'$gone', Ref}),
        receive {Ref, Result} -> Result after 0 -> {error, timeout} end
    end.

%% Who is not there is told by the monitor.
-spec send(gen_server:server_ref(), term()) -> ok.
send(Batcher, Message) ->
    try
        _ = erlang:send(Batcher, Message),
        ok
    catch
        error:badarg -> ok
    end.

%% What waits and runs now, and what there was since the start.
-spec info(gen_server:server_ref()) -> info().
info(Batcher) ->
    gen_server:call(Batcher, info).

-spec checked(options()) -> options().
checked(Given) ->
    Defaults = #{max_items => 64, max_wait => 0, max_queue => 10000, concurrency => 1,
                 timeout => ?TIMEOUT_MS},
    Options = maps:merge(Defaults, Given),
    Good = maps:is_key(module, Options) andalso maps:is_key(function, Options)
        andalso lists:all(fun is_option/1, maps:to_list(Options)),
    Good orelse error(badarg, [Given]),
    Options.

-spec is_option({term(), term()}) -> boolean().
is_option({Key, N}) when Key =:= max_items; Key =:= max_queue; Key =:= concurrency ->
    is_integer(N) andalso N > 0;
is_option({Key, Name}) when Key =:= module; Key =:= function ->
    is_atom(Name) orelse is_binary(Name);
is_option({max_wait, N}) -> is_integer(N) andalso N >= 0;
is_option({timeout, Timeout}) -> ?is_timeout(Timeout);
is_option({target, Target}) -> is_atom(Target);
is_option({name, Name}) -> is_atom(Name);
is_option({binary, Policy}) -> lists:member(Policy, [auto, str, bytes]);
is_option({idempotent, Is}) -> is_boolean(Is);
is_option(_) -> false.

%% --- The process --------------------------------------------------------------------------------

-spec init(options()) -> {ok, #batcher{}}.
init(Options) ->
    {ok, #batcher{options = Options}}.

-spec handle_call(term(), gen_server:from(), #batcher{}) ->
    {reply, term(), #batcher{}} | {reply, term(), #batcher{}, 0}.
handle_call(info, _From, #batcher{counts = {Batches, Items, Refused}} = Batcher) ->
    Info = #{queued => queued(Batcher), running => map_size(Batcher#batcher.running),
             batches => Batches, items => Items, refused => Refused},
    reply(Info, go_on(Batcher));
handle_call(Request, _From, Batcher) ->
    reply({error, {bad_request, Request}}, go_on(Batcher)).

-spec reply(term(), {noreply, #batcher{}} | {noreply, #batcher{}, 0}) ->
    {reply, term(), #batcher{}} | {reply, term(), #batcher{}, 0}.
reply(Answer, {noreply, Batcher}) -> {reply, Answer, Batcher};
reply(Answer, {noreply, Batcher, 0}) -> {reply, Answer, Batcher, 0}.

-spec handle_cast(term(), #batcher{}) -> {noreply, #batcher{}} | {noreply, #batcher{}, 0}.
handle_cast(_Message, Batcher) ->
    go_on(Batcher).

-spec handle_info(term(), #batcher{}) -> {noreply, #batcher{}} | {noreply, #batcher{}, 0}.
handle_info({'$item', Caller, Ref, Item}, Batcher) ->
    go_on(gather({Ref, Caller, Item}, Batcher));
handle_info(timeout, Batcher) ->
    {noreply, start_due(Batcher)};
handle_info({'$gone', Ref}, Batcher) ->
    go_on(gone(Ref, Batcher));
handle_info({timeout, Timer, due}, #batcher{due = Timer} = Batcher) ->
    go_on(Batcher#batcher{due = undefined});
handle_info({timeout, Timer, sweep}, #batcher{sweep = Timer} = Batcher) ->
    go_on(swept(Batcher#batcher{sweep = undefined}));
handle_info({'DOWN', Monitor, process, _, Reason}, #batcher{callers = Callers} = Batcher) ->
    case Callers of
        #{Monitor := Ref} -> go_on(gone(Ref, Batcher));
        #{} -> go_on(ended(Monitor, Reason, Batcher))
    end;
handle_info(_Message, Batcher) ->
    go_on(Batcher).

%% --- Gathering ----------------------------------------------------------------------------------

-spec queued(#batcher{}) -> non_neg_integer().
queued(#batcher{waiting = Waiting, count = Count}) -> Waiting + Count.

-spec gather(entry(), #batcher{}) -> #batcher{}.
gather({Ref, _, _}, #batcher{waiting = W, count = C, options = #{max_queue := Max},
                             counts = {B, I, R}} = Batcher)
  when W + C >= Max ->
    Ref ! {Ref, {error, overloaded}},
    Batcher#batcher{counts = {B, I, R + 1}};
gather(Entry, #batcher{count = 0, options = #{max_items := 1}} = Batcher) ->
    close(Batcher#batcher{gathered = [Entry], count = 1});
gather(Entry, #batcher{count = 0} = Batcher) ->
    Now = erlang:monotonic_time(millisecond),
    sweeping(Batcher#batcher{gathered = [Entry], count = 1, since = Now});
gather(Entry, #batcher{gathered = Entries, count = C, options = #{max_items := Max}} = Batcher) ->
    Batcher1 = Batcher#batcher{gathered = [Entry | Entries], count = C + 1},
    case C + 1 of
        Max -> close(Batcher1);
        _ -> Batcher1
    end.

%% The group is whole.
-spec close(#batcher{}) -> #batcher{}.
close(#batcher{id = Id, gathered = Entries, count = Count, groups = Groups, ready = Ready} = Batcher) ->
    sweeping(Batcher#batcher{id = Id + 1, gathered = [], count = 0,
                             groups = Groups#{Id => lists:reverse(Entries)},
                             ready = queue:in(Id, Ready),
                             waiting = Batcher#batcher.waiting + Count}).

%% Starts what is full. What is not, though its time has come, starts when the mailbox is empty: there
%% may be more in it.
-spec go_on(#batcher{}) -> {noreply, #batcher{}} | {noreply, #batcher{}, 0}.
go_on(#batcher{running = Running, options = #{concurrency := Concurrency}} = Batcher)
  when map_size(Running) >= Concurrency ->
    {noreply, Batcher};
go_on(#batcher{waiting = 0, count = 0} = Batcher) ->
    {noreply, Batcher};
go_on(#batcher{waiting = 0, due = Timer} = Batcher) ->
    case {left(Batcher), Timer} of
        {0, _} ->
            {noreply, Batcher, 0};
        {Left, undefined} ->
            {noreply, Batcher#batcher{due = erlang:start_timer(Left, self(), due)}};
        {_, _} ->
            {noreply, Batcher}
    end;
go_on(Batcher) ->
    go_on(start(Batcher)).

%% Milliseconds that the oldest item of the group still waits for others.
-spec left(#batcher{}) -> non_neg_integer().
left(#batcher{options = #{max_wait := 0}}) ->
    0;
left(#batcher{options = #{max_wait := MaxWait}, since = Since}) ->
    max(0, Since + MaxWait - erlang:monotonic_time(millisecond)).

-spec start_due(#batcher{}) -> #batcher{}.
start_due(#batcher{running = Running, count = Count, options = #{concurrency := Max}} = Batcher)
  when Count > 0, map_size(Running) < Max ->
    case left(Batcher) of
        0 -> start(close(Batcher));
        _ -> Batcher
    end;
start_due(Batcher) ->
    Batcher.

-spec start(#batcher{}) -> #batcher{}.
start(#batcher{ready = Ready, groups = Groups, options = Options} = Batcher) ->
    {{value, Id}, Left} = queue:out(Ready),
    #{Id := Entries} = Groups,
    Self = self(),
    {Pid, Monitor} = spawn_opt(fun() -> run(Self, Entries, Options) end,
                               [monitor, {min_heap_size, ?HEAP_WORDS}]),
    Count = length(Entries),
    {B, I, R} = Batcher#batcher.counts,
    Batcher#batcher{ready = Left, waiting = Batcher#batcher.waiting - Count,
                    running = (Batcher#batcher.running)#{Monitor => {Id, Pid}},
                    counts = {B + 1, I + Count, R}}.

%% --- The end of batches and callers -------------------------------------------------------------

%% Everybody has been answered, unless the process was killed. Who was does not hear this.
-spec ended(reference(), term(), #batcher{}) -> #batcher{}.
ended(Monitor, Reason, #batcher{running = Running, groups = Groups, watched = Watched} = Batcher) ->
    case maps:take(Monitor, Running) of
        {{Id, _}, Left} ->
            {Entries, Groups1} = maps:take(Id, Groups),
            _ = [Ref ! {Ref, {error, {down, Reason}}} || Reason =/= normal, {Ref, _, _} <- Entries],
            Batcher1 = Batcher#batcher{running = Left, groups = Groups1},
            case map_size(Watched) of
                0 -> Batcher1;
                _ -> lists:foldl(fun({Ref, _, _}, B) -> unwatch(Ref, B) end, Batcher1, Entries)
            end;
        error ->
            Batcher
    end.

%% Nobody waits for this item any more. It is looked for where it can be: an old one's group is known.
-spec gone(reference(), #batcher{}) -> #batcher{}.
gone(Ref, #batcher{watched = Watched, groups = Groups, old = Old} = Batcher) ->
    case Watched of
        #{Ref := {Id, _}} ->
            leave(Ref, Id, unwatch(Ref, Batcher));
        #{} ->
            Young = [Id || {Id, Entries} <- maps:to_list(Groups), Id >= Old,
                           lists:keymember(Ref, 1, Entries)],
            lists:foldl(fun(Id, B) -> leave(Ref, Id, B) end, Batcher, [Batcher#batcher.id | Young])
    end.

-spec leave(reference(), id(), #batcher{}) -> #batcher{}.
leave(Ref, Id, #batcher{id = Id, gathered = Entries} = Batcher) ->
    Left = lists:keydelete(Ref, 1, Entries),
    Batcher#batcher{gathered = Left, count = length(Left)};
leave(Ref, Id, #batcher{groups = Groups, running = Running, waiting = Waiting} = Batcher) ->
    #{Id := Entries} = Groups,
    Left = lists:keydelete(Ref, 1, Entries),
    case [Pid || {_, {Running1, Pid}} <- maps:to_list(Running), Running1 =:= Id] of
        [Pid] ->
            _ = [exit(Pid, kill) || Left =:= []],  % that cancels the call
            Batcher#batcher{groups = Groups#{Id := Left}};
        [] when Left =:= [] ->
            Ready = queue:filter(fun(Other) -> Other =/= Id end, Batcher#batcher.ready),
            Batcher#batcher{groups = maps:remove(Id, Groups), waiting = Waiting - 1, ready = Ready};
        [] ->
            Batcher#batcher{groups = Groups#{Id := Left}, waiting = Waiting - 1}
    end.

%% --- Watching callers ---------------------------------------------------------------------------

%% Only the callers of groups that are there for one or two sweeps are monitored: quick batches do not
%% pay for it.
-spec sweeping(#batcher{}) -> #batcher{}.
sweeping(#batcher{sweep = undefined} = Batcher) ->
    Batcher#batcher{sweep = erlang:start_timer(?SWEEP_MS, self(), sweep)};
sweeping(Batcher) ->
    Batcher.

%% Those of the group that is gathered are few, and may wait for long: they are at every sweep.
-spec swept(#batcher{}) -> #batcher{}.
swept(#batcher{old = Old, young = Young, groups = Groups, id = Id} = Batcher) ->
    Aged = [{Group, Entries} || {Group, Entries} <- maps:to_list(Groups), Group >= Old, Group < Young],
    Batcher1 = lists:foldl(fun watch/2, Batcher#batcher{old = Young, young = Id}, Aged),
    Batcher2 = watch({Id, Batcher1#batcher.gathered}, Batcher1),
    case map_size(Batcher2#batcher.groups) + Batcher2#batcher.count of
        0 -> Batcher2;
        _ -> sweeping(Batcher2)
    end.

-spec watch({id(), [entry()]}, #batcher{}) -> #batcher{}.
watch({Id, Entries}, Batcher) ->
    lists:foldl(fun({Ref, Caller, _}, #batcher{watched = Watched, callers = Callers} = B) ->
        case Watched of
            #{Ref := _} ->
                B;
            #{} ->
                Monitor = erlang:monitor(process, Caller),
                B#batcher{watched = Watched#{Ref => {Id, Monitor}},
                          callers = Callers#{Monitor => Ref}}
        end
    end, Batcher, Entries).

%% Without `flush`, which would look through a mailbox that may be long: a message that comes in spite
%% of this means nothing.
-spec unwatch(reference(), #batcher{}) -> #batcher{}.
unwatch(Ref, #batcher{watched = Watched, callers = Callers} = Batcher) ->
    case maps:take(Ref, Watched) of
        {{_, Monitor}, Left} ->
            true = erlang:demonitor(Monitor),
            Batcher#batcher{watched = Left, callers = maps:remove(Monitor, Callers)};
        error ->
            Batcher
    end.

%% --- The process of a batch ---------------------------------------------------------------------

%% Its end cancels the call. So it ends with the batcher, whichever way that does.
-spec run(pid(), [entry()], options()) -> ok.
run(Batcher, Entries, Options) ->
    Batch = self(),
    _ = spawn(fun() -> end_with(Batcher, Batch) end),
    Refs = [Ref || {Ref, _, _} <- Entries],
    answer(Refs, request([Item || {_, _, Item} <- Entries], Options)).

-spec end_with(pid(), pid()) -> true.
end_with(Batcher, Batch) ->
    Monitor = erlang:monitor(process, Batch),
    _ = erlang:monitor(process, Batcher),
    receive
        {'DOWN', Monitor, process, _, _} -> true;
        {'DOWN', _, process, _, _} -> exit(Batch, kill)
    end.

-spec request([term()], options()) -> py:result().
request(Items, #{module := M, function := F, timeout := Timeout} = Options) ->
    Call = maps:with([timeout, binary, idempotent], Options),
    case target(Options, Timeout) of
        {ok, Target} -> py:call(Target, 'erlang._batch', run, [M, F, Items], Call);
        {error, Reason} -> {error, Reason}
    end.

-spec target(options(), timeout()) -> {ok, py:target()} | {error, py:reason()}.
target(#{target := Target}, _) -> {ok, Target};
target(#{}, Timeout) -> py_node:default(Timeout).

-spec answer([reference()], py:result()) -> ok.
answer(Refs, {ok, {Results, []}}) ->
    each(Refs, Results);
answer(Refs, {ok, {Results, Failed}}) ->
    failed(Refs, Results, 0, lists:keysort(1, Failed));
answer(Refs, {error, Reason}) ->
    lists:foreach(fun(Ref) -> Ref ! {Ref, {error, Reason}} end, Refs).

-spec each([reference()], [term()]) -> ok.
each([Ref | Refs], [Result | Results]) ->
    Ref ! {Ref, {ok, Result}},
    each(Refs, Results);
each([], []) ->
    ok.

-spec failed([reference()], [term()], non_neg_integer(), [{non_neg_integer(), term()}]) -> ok.
failed([Ref | Refs], [_ | Results], Index, [{Index, Reason} | Failed]) ->
    Ref ! {Ref, {error, Reason}},
    failed(Refs, Results, Index + 1, Failed);
failed([Ref | Refs], [Result | Results], Index, Failed) ->
    Ref ! {Ref, {ok, Result}},
    failed(Refs, Results, Index + 1, Failed);
failed([], [], _, []) ->
    ok.
