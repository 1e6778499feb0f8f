%% A pool's process: knows who its members are and how they do, and leaves that for callers to see
%% (see py_pool). No call passes through here.
%%
%%   a list, a function, nodes(hidden) ──▶ members ── py_node:watch ──▶ py_node, one per node
%%                                            ▲ ◀── {py_node, Node, {up, Link, Counters} | draining | {down, Why}}
%%            caller ── draining ─────────────┘
%%
%% A member is `connecting` until its node is first heard of, then `up` or `down`; `draining`
%% once the node says that it is being stopped, or refuses a call for that reason, until its link goes. Its gate is open while it is
%% up. The gate is one atomic number: that a node goes and comes back changes nothing else. The view is
%% a persistent term, which costs every process of the BEAM a look when it is replaced, so it is only
%% when a member comes or goes; changes that come together are published together.
%%
%% A function that is asked for the members runs in a process of its own. If it fails, is late or
%% returns nonsense, that is logged and the members stay as they are.
%%
%% Who dies, and what follows:
%%   py_node          The member is down; the connection is asked for again a second later.
%%   this process     py_node notices that nobody watches any more, and ends unless others use it. The
%%                    view stays for the process that the supervisor starts; what add/2 and remove/2
%%                    changed is lost.
-module(py_pool_server).
-behaviour(gen_server).

-export([start_link/2, ask/2, await/2, draining/3]).
-export([init/1, handle_continue/2, handle_call/3, handle_cast/2, handle_info/2, terminate/2]).
-export([run/1]).

-export_type([info/0, member_info/0]).

-include_lib("kernel/include/logger.hrl").
-include("py_pool.hrl").

-define(ASK_MS, 5000).
-define(REWATCH_MS, 1000).
-define(LATE_MS, 30000).
-define(INTERVAL_MS, 5000).
-define(FORGET_MS, 60000).

-type health() :: connecting | up | draining | down.
-type info() :: #{name := py_pool:name(), routing := py_pool:routing(), members := [member_info()]}.
-type member_info() :: #{
    node := node(),
    state := health(),
    reason := term(),                    % why it is down
    since := integer(),                  % system time in ms at which that state began
    in_flight := non_neg_integer(),      % at this node, from all of this BEAM
    calls := non_neg_integer(),          % that this pool sent there
    failures := non_neg_integer()        % of these: refused, timed out, or lost with the node
}.

-record(member, {
    node :: node(),
    health = connecting :: health(),
    reason :: term(),
    since = erlang:monotonic_time() :: integer(),
    watched :: undefined | {pid(), reference()},    % its py_node
    link :: undefined | pid(),
    slot :: #slot{} | undefined                     % undefined until it is first up
}).

-record(pool, {
    name :: py_pool:name(),
    options :: py_pool:options(),
    source :: py_pool:source() | {matching, fun((node()) -> boolean())},
    found :: undefined | ordsets:ordset(node()),    % what the source says; undefined before its answer
    added = [] :: ordsets:ordset(node()),
    removed = [] :: ordsets:ordset(node()),
    members = #{} :: #{node() => #member{}},
    asking :: undefined | {pid(), reference()},     % runs the function
    missing = #{} :: #{node() => reference()},      % hidden nodes that are gone, with their timers
    waiting = [] :: [gen_server:from()],            % for a member to be up, or all to be down
    turns = atomics:new(2, [{signed, false}]) :: atomics:atomics_ref(),
    stale = false :: boolean()                      % the view is to be replaced
}).

%% --- For py_pool ----------------------------------------------------------------------------------

-spec start_link(py_pool:name(), py_pool:options()) -> gen_server:start_ret().
start_link(Name, Options) ->
    gen_server:start_link({local, Name}, ?MODULE, {Name, Options}, []).

-spec ask(py_pool:name(), info | {add | remove, node()}) -> ok | {ok, info()} | {error, not_found}.
ask(Name, Request) ->
    try
        gen_server:call(Name, Request, ?ASK_MS)
    catch
        exit:{noproc, _} -> {error, not_found}
    end.

%% Waits until a member is up: not for those that are known to be down.
-spec await(py_pool:name(), timeout()) -> ok | {error, py_link:reason()}.
await(Name, Timeout) ->
    try
        gen_server:call(Name, await, Timeout)
    catch
        exit:{timeout, _} -> {error, timeout};
        exit:_ -> {error, {down, no_members}}
    end.

%% The node refused a call that came over this link because it is being stopped.
-spec draining(py_pool:name(), node(), pid()) -> ok.
draining(Name, Node, Link) ->
    gen_server:cast(Name, {draining, Node, Link}).

%% --- The process ----------------------------------------------------------------------------------

-spec init({py_pool:name(), py_pool:options()}) ->
    {ok, #pool{}, {continue, discover}} | {stop, term()}.
init({Name, Options}) ->
    process_flag(trap_exit, true),
    State = #pool{name = Name, options = Options, source = source(Options)},
    case ets:whereis(?POOLS) of
        undefined ->
            {stop, {down, not_started}};
        _ ->
            true = ets:insert(?POOLS, {Name, self()}),
            ok = publish(State),
            {ok, State, {continue, discover}}
    end.

-spec source(py_pool:options()) -> py_pool:source() | {matching, fun((node()) -> boolean())}.
source(#{nodes := {hidden, Pattern}}) -> {matching, matcher(Pattern)};
source(Options) -> maps:get(nodes, Options, []).

-spec terminate(term(), #pool{}) -> ok.
terminate(_Reason, #pool{name = Name}) ->
    _ = persistent_term:erase(?VIEW(Name)),
    true = ets:delete(?POOLS, Name),
    ok.

-type next() :: {noreply, #pool{}} | {noreply, #pool{}, 0}.

-spec handle_continue(discover, #pool{}) -> next().
handle_continue(discover, State = #pool{source = Nodes}) when is_list(Nodes) ->
    next(reconcile(State#pool{found = ordsets:from_list(Nodes)}));
handle_continue(discover, State = #pool{source = {matching, Matches}}) ->
    ok = net_kernel:monitor_nodes(true, [{node_type, hidden}, nodedown_reason]),
    Found = [Node || Node <- nodes(hidden), Matches(Node)],
    next(reconcile(State#pool{found = ordsets:from_list(Found)}));
handle_continue(discover, State) ->
    next(ask_source(State)).

-spec handle_call(term(), gen_server:from(), #pool{}) -> {reply, term(), #pool{}} | next().
handle_call(info, _, State) ->
    {reply, {ok, info(State)}, State, timeout(State)};
handle_call(await, From, State = #pool{waiting = Waiting}) ->
    next(State#pool{waiting = [From | Waiting]});
handle_call({add, Node}, From, State = #pool{added = Added, removed = Removed}) ->
    gen_server:reply(From, ok),
    next(reconcile(State#pool{added = ordsets:add_element(Node, Added),
                              removed = ordsets:del_element(Node, Removed)}));
handle_call({remove, Node}, From, State = #pool{added = Added, removed = Removed}) ->
    State1 = reconcile(State#pool{added = ordsets:del_element(Node, Added),
                                  removed = ordsets:add_element(Node, Removed)}),
    gen_server:reply(From, ok),
    next(State1).

-spec handle_cast({draining, node(), pid()}, #pool{}) -> next().
handle_cast({draining, Node, Link}, State = #pool{members = Members}) ->
    case Members of
        #{Node := Member = #member{health = up, link = Link}} ->
            next(changed(draining, undefined, Member, State));
        #{} ->
            next(State)
    end.

-spec handle_info(term(), #pool{}) -> next().
handle_info(timeout, State) ->
    ok = publish(State),
    next(State#pool{stale = false});
handle_info({py_node, Node, News}, State = #pool{members = Members}) ->
    case Members of
        #{Node := Member} -> next(heard(News, Member, State));
        #{} -> next(State)
    end;
handle_info({'DOWN', Monitor, process, Pid, Reason}, State = #pool{asking = {Pid, Monitor}}) ->
    next(answered(Reason, State#pool{asking = undefined}));
handle_info({'DOWN', Monitor, process, Pid, Reason}, State) ->
    next(lost({Pid, Monitor}, Reason, State));
handle_info({nodeup, Node, _}, State = #pool{source = {matching, Matches}}) ->
    next(appeared(Matches(Node), Node, State));
handle_info({nodedown, Node, _}, State) ->
    next(disappeared(Node, State));
handle_info({timeout, Timer, {forget, Node}}, State) ->
    next(forget(Node, Timer, State));
handle_info({rewatch, Node}, State = #pool{members = Members}) ->
    case Members of
        #{Node := Member = #member{watched = undefined}} -> next(watch(Member, State));
        #{} -> next(State)
    end;
handle_info(ask, State) ->
    next(ask_source(State));
handle_info({late, Pid}, State = #pool{asking = {Pid, _}}) ->
    true = exit(Pid, kill),
    next(State);
handle_info(_, State) ->
    next(State).

%% After every message: who waits is answered, but never before the view shows what it waited for.
-spec next(#pool{}) -> next().
next(State = #pool{stale = true}) ->
    {noreply, State, timeout(State)};
next(State = #pool{waiting = []}) ->
    {noreply, State};
next(State = #pool{waiting = Waiting}) ->
    case outlook(State) of
        unknown ->
            {noreply, State};
        Outlook ->
            lists:foreach(fun(From) -> gen_server:reply(From, Outlook) end, Waiting),
            {noreply, State#pool{waiting = []}}
    end.

%% A stale view is replaced once no message waits.
-spec timeout(#pool{}) -> 0 | infinity.
timeout(#pool{stale = true}) -> 0;
timeout(#pool{}) -> infinity.

-spec outlook(#pool{}) -> ok | unknown | {error, {down, no_members}}.
outlook(#pool{found = Found, members = Members}) ->
    Healths = [Health || #member{health = Health} <- maps:values(Members)],
    case {lists:member(up, Healths), Found =:= undefined orelse lists:member(connecting, Healths)} of
        {true, _} -> ok;
        {false, true} -> unknown;
        {false, false} -> {error, {down, no_members}}
    end.

-spec publish(#pool{}) -> ok.
publish(#pool{name = Name, options = Options, turns = Turns, members = Members}) ->
    Slots = [Slot || #member{slot = Slot} <- maps:values(Members), Slot =/= undefined],
    persistent_term:put(?VIEW(Name), #view{name = Name,
                                           routing = maps:get(routing, Options, least_loaded),
                                           retries = maps:get(retries, Options, 2),
                                           turns = Turns,
                                           slots = list_to_tuple(lists:keysort(#slot.node, Slots))}).

%% --- Who is a member ------------------------------------------------------------------------------

%% Brings the members in line with what the source, add/2 and remove/2 say.
-spec reconcile(#pool{}) -> #pool{}.
reconcile(State = #pool{found = Found, added = Added, removed = Removed, members = Members}) ->
    Known = case Found of undefined -> []; _ -> Found end,
    Wanted = ordsets:subtract(ordsets:union(Known, Added), Removed),
    Present = ordsets:from_list(maps:keys(Members)),
    State1 = lists:foldl(fun leave/2, State, ordsets:subtract(Present, Wanted)),
    lists:foldl(fun join/2, State1, ordsets:subtract(Wanted, Present)).

-spec join(node(), #pool{}) -> #pool{}.
join(Node, State) ->
    event(joined, Node, #{}, #{}, State),
    watch(#member{node = Node}, State).

-spec leave(node(), #pool{}) -> #pool{}.
leave(Node, State = #pool{members = Members}) ->
    {Member, Others} = maps:take(Node, Members),
    ok = gate(?SHUT, Member),
    ok = unwatch(Member),
    event(left, Node, #{}, #{}, State),
    State#pool{members = Others, stale = true}.

-spec watch(#member{}, #pool{}) -> #pool{}.
watch(Member = #member{node = Node}, State = #pool{members = Members, options = Options}) ->
    case py_node:watch(Node, maps:with([max_in_flight], Options)) of
        {ok, Pid} ->
            Watched = {Pid, erlang:monitor(process, Pid)},
            State#pool{members = Members#{Node => Member#member{watched = Watched}}};
        {error, Reason} ->
            _ = erlang:send_after(?REWATCH_MS, self(), {rewatch, Node}),
            changed(down, Reason, Member#member{watched = undefined}, State)
    end.

-spec unwatch(#member{}) -> ok.
unwatch(#member{watched = undefined}) ->
    ok;
unwatch(#member{watched = {Pid, Monitor}}) ->
    true = erlang:demonitor(Monitor, [flush]),
    py_node:unwatch(Pid).

%% --- How it does ----------------------------------------------------------------------------------

-spec heard(py_node:news(), #member{}, #pool{}) -> #pool{}.
heard(connecting, _, State) ->
    State;
heard({up, Link, Load}, Member = #member{slot = #slot{load = Load}}, State) ->
    changed(up, undefined, Member#member{link = Link}, State);
heard({up, Link, Load}, Member = #member{node = Node, slot = Slot}, State) ->
    Member1 = Member#member{link = Link, slot = slot(Node, Load, Slot)},
    changed(up, undefined, Member1, State#pool{stale = true});
heard(draining, Member = #member{health = up}, State) ->
    changed(draining, undefined, Member, State);
heard(draining, _, State) ->
    State;
heard({down, Why}, Member, State) ->
    changed(down, Why, Member#member{link = undefined}, State).

%% py_node started anew has new counters of load; the gate and ours stay.
-spec slot(node(), atomics:atomics_ref(), #slot{} | undefined) -> #slot{}.
slot(Node, Load, undefined) ->
    #slot{node = Node, seed = erlang:phash2(Node, 1 bsl 32), gate = atomics:new(1, []),
          load = Load, counts = counters:new(2, [write_concurrency])};
slot(_, Load, Slot) ->
    Slot#slot{load = Load}.

%% py_node ended: it crashed, or somebody stopped it.
-spec lost({pid(), reference()}, term(), #pool{}) -> #pool{}.
lost(Watched, Reason, State = #pool{members = Members}) ->
    case [Member || Member <- maps:values(Members), Member#member.watched =:= Watched] of
        [Member = #member{node = Node}] ->
            _ = erlang:send_after(?REWATCH_MS, self(), {rewatch, Node}),
            Member1 = Member#member{watched = undefined, link = undefined},
            changed(down, Reason, Member1, State);
        [] ->
            State
    end.

-spec changed(health(), term(), #member{}, #pool{}) -> #pool{}.
changed(Health, Reason, Member = #member{health = Health, node = Node}, State) ->
    State#pool{members = (State#pool.members)#{Node => Member#member{reason = Reason}}};
changed(Health, Reason, Member = #member{node = Node, since = Since}, State) ->
    ok = gate(case Health of up -> ?OPEN; _ -> ?SHUT end, Member),
    Now = erlang:monotonic_time(),
    event(Health, Node, #{duration => Now - Since}, #{reason => Reason}, State),
    Member1 = Member#member{health = Health, reason = Reason, since = Now},
    State#pool{members = (State#pool.members)#{Node => Member1}}.

-spec gate(?SHUT | ?OPEN, #member{}) -> ok.
gate(_, #member{slot = undefined}) -> ok;
gate(Position, #member{slot = #slot{gate = Gate}}) -> atomics:put(Gate, 1, Position).

-spec event(atom(), node(), map(), map(), #pool{}) -> ok.
event(What, Node, Measurements, Metadata, #pool{name = Name}) ->
    py_event:emit([sidewinder, pool, What], Measurements#{system_time => erlang:system_time()},
                  Metadata#{pool => Name, node => Node}).

%% --- Members from a function ----------------------------------------------------------------------

-spec ask_source(#pool{}) -> #pool{}.
ask_source(State = #pool{source = Source}) ->
    Asking = {Pid, _} = spawn_monitor(?MODULE, run, [Source]),
    _ = erlang:send_after(?LATE_MS, self(), {late, Pid}),
    State#pool{asking = Asking}.

%% The process that asks; its exit reason is the answer.
-spec run(py_pool:source()) -> no_return().
run({M, F, Args}) -> exit({nodes, apply(M, F, Args)});
run(Function) when is_function(Function, 0) -> exit({nodes, Function()}).

-spec answered(term(), #pool{}) -> #pool{}.
answered(Answer, State = #pool{options = Options}) ->
    _ = erlang:send_after(maps:get(interval, Options, ?INTERVAL_MS), self(), ask),
    case nodes_in(Answer) of
        {ok, Nodes} ->
            reconcile(State#pool{found = Nodes});
        error ->
            ?LOG_WARNING(#{what => "no list of nodes, members stay as they are",
                           pool => State#pool.name, answer => Answer}),
            reconcile(State#pool{found = known(State)})
    end.

-spec known(#pool{}) -> ordsets:ordset(node()).
known(#pool{found = undefined}) -> [];
known(#pool{found = Found}) -> Found.

-spec nodes_in(term()) -> {ok, ordsets:ordset(node())} | error.
nodes_in({nodes, Nodes}) when is_list(Nodes) ->
    case lists:all(fun(Node) -> is_atom(Node) andalso py_node:is_node_name(Node) end, Nodes) of
        true -> {ok, ordsets:from_list(Nodes)};
        false -> error
    end;
nodes_in(_) ->
    error.

%% --- Members from nodes(hidden) -------------------------------------------------------------------

%% A glob as a question: * is any text, ? any character, everything else itself. A function of the
%% user's own that fails says no.
-spec matcher(binary() | string() | fun((node()) -> boolean())) -> fun((node()) -> boolean()).
matcher(Matches) when is_function(Matches, 1) ->
    fun(Node) ->
        try
            Matches(Node) =:= true
        catch
            Class:Reason:Stack ->
                ?LOG_ERROR(#{what => "pattern of a pool failed", node => Node, class => Class,
                             reason => Reason, stack => Stack}),
                false
        end
    end;
matcher(Glob) ->
    Expression = [expression(Character) || Character <- unicode:characters_to_list(Glob)],
    {ok, Compiled} = re:compile(["^", Expression, "$"], [unicode, dollar_endonly]),
    fun(Node) -> re:run(atom_to_binary(Node), Compiled, [{capture, none}]) =:= match end.

-spec expression(char()) -> iodata().
expression($*) -> ".*";
expression($?) -> ".";
expression(Character) -> unicode:characters_to_binary(io_lib:format("\\x{~.16b}", [Character])).

-spec appeared(boolean(), node(), #pool{}) -> #pool{}.
appeared(false, _, State) ->
    State;
appeared(true, Node, State = #pool{found = Found, missing = Missing}) ->
    Still = case maps:take(Node, Missing) of
        {Timer, Others} -> _ = erlang:cancel_timer(Timer), Others;
        error -> Missing
    end,
    reconcile(State#pool{found = ordsets:add_element(Node, Found), missing = Still}).

%% It stays a member for a while, and is dialled: whatever connected it may not do so again.
-spec disappeared(node(), #pool{}) -> #pool{}.
disappeared(Node, State = #pool{found = Found, missing = Missing, options = Options}) ->
    case ordsets:is_element(Node, Found) andalso not is_map_key(Node, Missing) of
        true ->
            After = maps:get(forget, Options, ?FORGET_MS),
            Timer = erlang:start_timer(After, self(), {forget, Node}),
            State#pool{missing = Missing#{Node => Timer}};
        false ->
            State
    end.

-spec forget(node(), reference(), #pool{}) -> #pool{}.
forget(Node, Timer, State = #pool{found = Found, missing = Missing}) ->
    case Missing of
        #{Node := Timer} ->
            reconcile(State#pool{found = ordsets:del_element(Node, Found),
                                 missing = maps:remove(Node, Missing)});
        #{} ->
            State
    end.

%% --- For the curious ------------------------------------------------------------------------------

-spec info(#pool{}) -> info().
info(#pool{name = Name, options = Options, members = Members}) ->
    #{name => Name,
      routing => maps:get(routing, Options, least_loaded),
      members => [member_info(Member) || {_, Member} <- lists:sort(maps:to_list(Members))]}.

-spec member_info(#member{}) -> member_info().
member_info(#member{node = Node, health = Health, reason = Reason, since = Since, link = Link,
                    slot = Slot}) ->
    {Calls, Failures} = counts(Slot),
    #{node => Node, state => Health, reason => Reason,
      since => erlang:convert_time_unit(Since + erlang:time_offset(), native, millisecond),
      in_flight => in_flight(Link, Slot), calls => Calls, failures => Failures}.

-spec counts(#slot{} | undefined) -> {non_neg_integer(), non_neg_integer()}.
counts(undefined) -> {0, 0};
counts(#slot{counts = Counts}) -> {counters:get(Counts, ?CALLS), counters:get(Counts, ?FAILURES)}.

-spec in_flight(pid() | undefined, #slot{} | undefined) -> non_neg_integer().
in_flight(undefined, _) -> 0;
in_flight(_, #slot{load = Load}) -> max(0, py_link:in_flight(Load)).
