%% Many nodes behind one name. A pool's name is a target of py:call and its kin: each call goes to
%% one member that is up, and on to another if that one refuses it.
%%
%%   {ok, _} = py_pool:start(gpu, #{nodes => ['py@gpu1', 'py@gpu2']}),
%%   py:call(gpu, model, predict, [Input]),
%%   py:call(gpu, model, predict, [Input], #{idempotent => true}),
%%   py:call(gpu, sessions, get, [User], #{key => User}).
%%
%% Everything a call needs happens in the caller:
%%
%%   py:call ──▶ view of the pool (a persistent term) ──▶ a member ──▶ its py_link ──▶ the node
%%                 ▲ members, and a gate each               gates and loads are read here, as atomics
%%   py_pool_server ── opens and shuts the gates; replaces the view when members come or go
%%
%% In-flight counts are those of py_link, two numbers per node that every caller raises and py_link
%% lowers: when it answers, when it learns of a caller's death (which it watches anyway, to cancel
%% the call), and altogether when the link rests or is replaced. So no count is left behind by a
%% caller that dies, and what others ask of the same node counts as load too. The numbers of calls
%% and failures only ever grow.
%%
%% What follows an answer: `overloaded` and `draining` say that the call was not begun, so it moves
%% on to the next member, each of which is tried once. {down, _} says that it may have been, so it is
%% the caller's {down, Node}, unless the call is idempotent. Anything else is the caller's answer.
%%
%% A spawned call has a process of its own, which asks, moves on, answers, and ends when the caller
%% dies or gives up.
-module(py_pool).

-export([start/2, start_link/2, child_spec/2, stop/1, add/2, remove/2]).
-export([members/1, info/1, which/0, pick/1, pick/2]).
-export([new_table/0, find/1, resolve/2, call/4, call_with/5, cast/3, spawn_call/4, forget/1, carry/5]).

-export_type([name/0, options/0, routing/0, source/0, how/0, view/0]).

-include("py_pool.hrl").

-define(PICK_MS, 30000).
-define(LOOKS, 16).
-define(is_interval(X), (is_integer(X) andalso X > 0)).

-type name() :: atom().    % without an @, which names of nodes have
-type routing() :: least_loaded | round_robin | hash.
-type source() ::
    [node()]
    | fun(() -> [node()])                             % asked at each `interval`
    | {module(), atom(), [term()]}                    % the same
    | {hidden, glob() | fun((node()) -> boolean())}.  % those of nodes(hidden) that match
-type glob() :: binary() | string().                  % <<"py@*">>: * and ? as in a shell
-type options() :: #{
    nodes => source(),                  % default []
    routing => routing(),               % default least_loaded
    retries => non_neg_integer(),       % of idempotent calls, after the loss of a node; default 2
    interval => pos_integer(),          % ms between questions to a function; default 5000
    forget => pos_integer(),            % ms until a hidden node that is gone is none; default 60000
    max_in_flight => pos_integer()      % of connections that the pool starts; see py_node
}.
-type how() :: #{key => term(), idempotent => boolean()}.
-opaque view() :: #view{}.

%% --- For users --------------------------------------------------------------------------------

%% Starts a supervised pool. Does not wait for its nodes: the first call does.
-spec start(name(), options()) -> {ok, pid()} | {error, term()}.
start(Name, Options) ->
    py_pool_sup:start_pool(Name, Options).

%% For a supervisor of the user's own.
-spec child_spec(name(), options()) -> supervisor:child_spec().
child_spec(Name, Options) ->
    ok = check(Name, Options),
    #{id => {?MODULE, Name}, start => {?MODULE, start_link, [Name, Options]}, shutdown => 5000}.

-spec start_link(name(), options()) -> gen_server:start_ret().
start_link(Name, Options) ->
    ok = check(Name, Options),
    py_pool_server:start_link(Name, Options).

%% Ends a pool that start/2 or the configuration started. Calls under way are still answered; the
%% connections to its nodes end unless others use them.
-spec stop(name()) -> ok | {error, not_found}.
stop(Name) when is_atom(Name) ->
    py_pool_sup:stop_pool(Name).

%% Makes a node a member, wherever members come from otherwise.
-spec add(name(), node()) -> ok | {error, not_found}.
add(Name, Node) when is_atom(Name), is_atom(Node) ->
    true = is_node_name(Node) orelse error(badarg),
    asked(Name, {add, Node}).

%% Takes a node out, and keeps it out until it is added. Calls under way there are still answered.
-spec remove(name(), node()) -> ok | {error, not_found}.
remove(Name, Node) when is_atom(Name), is_atom(Node) ->
    asked(Name, {remove, Node}).

%% The members that take calls.
-spec members(name()) -> [node()].
members(Name) when is_atom(Name) ->
    case find(Name) of
        undefined -> [];
        #view{slots = Slots} -> [Slot#slot.node || Slot <- tuple_to_list(Slots), is_open(Slot, [])]
    end.

%% All members: how they are and since when (system time, ms), what was asked of them and what failed.
-spec info(name()) -> {ok, py_pool_server:info()} | {error, not_found}.
info(Name) when is_atom(Name) ->
    asked(Name, info).

%% The pools that run.
-spec which() -> [name()].
which() ->
    case ets:whereis(?POOLS) of
        undefined -> [];
        _ -> lists:sort(ets:select(?POOLS, [{{'$1', '_'}, [{is_atom, '$1'}], ['$1']}]))
    end.

%% A member to do with as you like: the one that the next call would go to.
-spec pick(name()) -> {ok, node()} | {error, py_link:reason()}.
pick(Name) when is_atom(Name) ->
    pick_from(find(Name), Name, #{}, ?PICK_MS).

%% The member that calls with this key go to.
-spec pick(name(), Key :: term()) -> {ok, node()} | {error, py_link:reason()}.
pick(Name, Key) when is_atom(Name) ->
    pick_from(find(Name), Name, #{key => Key}, ?PICK_MS).

%% --- Arguments ----------------------------------------------------------------------------------

-spec check(name(), options()) -> ok.
check(Name, Options) ->
    Good = is_pool_name(Name) andalso is_map(Options)
        andalso maps:size(maps:filter(fun is_option/2, Options)) =:= map_size(Options),
    case Good of
        true -> ok;
        false -> error(badarg)
    end.

-spec is_pool_name(term()) -> boolean().
is_pool_name(Name) when is_atom(Name), Name =/= undefined, Name =/= '$default' ->
    not lists:member($@, atom_to_list(Name));
is_pool_name(_) ->
    false.

-spec is_option(atom(), term()) -> boolean().
is_option(nodes, Nodes) when is_list(Nodes) -> lists:all(fun is_node_name/1, Nodes);
is_option(nodes, Function) when is_function(Function, 0) -> true;
is_option(nodes, {hidden, Pattern}) -> is_pattern(Pattern);
is_option(nodes, {M, F, Args}) -> is_atom(M) andalso is_atom(F) andalso is_list(Args);
is_option(routing, Routing) -> lists:member(Routing, [least_loaded, round_robin, hash]);
is_option(retries, Retries) -> is_integer(Retries) andalso Retries >= 0;
is_option(interval, Interval) -> ?is_interval(Interval);
is_option(forget, Interval) -> ?is_interval(Interval);
is_option(max_in_flight, Max) -> ?is_interval(Max);
is_option(_, _) -> false.

-spec is_pattern(term()) -> boolean().
is_pattern(Pattern) ->
    is_binary(Pattern) orelse io_lib:char_list(Pattern) orelse is_function(Pattern, 1).

-spec is_node_name(term()) -> boolean().
is_node_name(Node) ->
    is_atom(Node) andalso py_node:is_node_name(Node).

-spec asked(name(), term()) -> term().
asked(Name, Request) ->
    case find(Name) of
        undefined -> {error, not_found};
        #view{} -> py_pool_server:ask(Name, Request)
    end.

%% --- For py -------------------------------------------------------------------------------------

%% Creates the table of pools; the caller owns it.
-spec new_table() -> ok.
new_table() ->
    ?POOLS = ets:new(?POOLS, [named_table, public, {write_concurrency, true}]),
    ok.

%% The pool of that name, if there is one.
-spec find(term()) -> view() | undefined.
find(Name) ->
    persistent_term:get(?VIEW(Name), undefined).

%% A node for what happens on one node: a pool's name becomes one of its members.
-spec resolve(atom(), timeout()) -> {ok, node()} | {error, py_link:reason()}.
resolve(Target, Timeout) ->
    case find(Target) of
        undefined -> {ok, Target};
        View -> pick_from(View, Target, #{}, Timeout)
    end.

%% How a member is asked, and what is known of a call that is looking for one.
-record(call, {
    send :: fun((py_link:handle(), tuple(), timeout()) -> ok | py_link:result()),
    request :: tuple(),
    how :: how(),
    deadline :: integer() | infinity,
    tried = [] :: [node()],
    outcome = none :: none | overloaded | {down, node()},   % if no other member takes it
    losses = 0 :: non_neg_integer(),
    waited = false :: boolean()
}).

%% Sends a request and waits for its result.
-spec call(view(), py_link:request(), timeout(), how()) -> py_link:result().
call(View, Request, Timeout, How) ->
    attempt(View, #call{send = fun py_link:call/3, request = Request, how = How,
                        deadline = deadline(Timeout)}).

%% The same with a way of one's own to ask a member.
-spec call_with(view(), Ask, tuple(), timeout(), how()) -> py_link:result()
      when Ask :: fun((py_link:handle(), tuple(), timeout()) -> py_link:result()).
call_with(View, Ask, Request, Timeout, How) ->
    case attempt(View, #call{send = Ask, request = Request, how = How,
                             deadline = deadline(Timeout)}) of
        {_, _} = Result -> Result
    end.

%% Sends a request that wants no reply.
-spec cast(view(), tuple(), how()) -> ok | {error, py_link:reason()}.
cast(View, Cast, How) ->
    Send = fun(Handle, Request, _) -> py_link:cast(Handle, Request) end,
    attempt(View, #call{send = Send, request = Cast, how = How, deadline = deadline(?PICK_MS)}).

-spec attempt(view(), #call{}) -> ok | py_link:result().
attempt(View, Call = #call{how = How, tried = Tried}) ->
    case choose(View, How, Tried) of
        none -> exhausted(View, Call);
        Slot -> ask(View, Slot, py_link:find(Slot#slot.node), Call)
    end.

%% A link that has gone since the gate was looked at was never asked.
-spec ask(view(), #slot{}, py_link:handle() | undefined, #call{}) -> ok | py_link:result().
ask(View, #slot{node = Node}, undefined, Call = #call{tried = Tried}) ->
    attempt(View, Call#call{tried = [Node | Tried]});
ask(View, Slot, Link, Call = #call{send = Send, request = Request, deadline = Deadline}) ->
    ok = counters:add(Slot#slot.counts, ?CALLS, 1),
    case Send(Link, Request, remaining(Deadline)) of
        {error, Reason} -> failed(Reason, View, Slot, Link, Call);
        Result -> Result
    end.

-spec failed(py_link:reason(), view(), #slot{}, py_link:handle(), #call{}) -> ok | py_link:result().
failed(overloaded, View, Slot, _, Call = #call{outcome = Outcome}) ->
    move_on(overloaded, View, Slot, Call#call{outcome = worse(Outcome, overloaded)});
failed(draining, View, Slot = #slot{node = Node, gate = Gate}, {_, Link, _, _}, Call) ->
    _ = [py_pool_server:draining(View#view.name, Node, Link) || atomics:get(Gate, 1) =:= ?OPEN],
    move_on(draining, View, Slot, Call);
failed({down, _}, View, Slot = #slot{node = Node}, _, Call = #call{losses = Losses}) ->
    Lost = {down, Node},
    case Call#call.how of
        #{idempotent := true} when Losses < View#view.retries ->
            move_on(Lost, View, Slot, Call#call{outcome = Lost, losses = Losses + 1});
        #{} ->
            failed(Lost, Slot)
    end;
failed(timeout, _, Slot, _, _) ->
    failed(timeout, Slot);
failed(Reason, _, _, _, _) ->
    {error, Reason}.

-spec failed(py_link:reason(), #slot{}) -> py_link:result().
failed(Reason, #slot{counts = Counts}) ->
    ok = counters:add(Counts, ?FAILURES, 1),
    {error, Reason}.

%% A call that may have been run stays one that may have been run.
-spec worse(Outcome, Outcome) -> Outcome when Outcome :: none | overloaded | {down, node()}.
worse({down, _} = Lost, _) -> Lost;
worse(_, Outcome) -> Outcome.

-spec move_on(py_link:reason(), view(), #slot{}, #call{}) -> ok | py_link:result().
move_on(Why, View, Slot = #slot{node = Node}, Call = #call{tried = Tried, deadline = Deadline}) ->
    {error, Why} = failed(Why, Slot),
    event(moved, View, #{node => Node, reason => Why}),
    case remaining(Deadline) of
        0 -> {error, timeout};
        _ -> attempt(View, Call#call{tried = [Node | Tried]})
    end.

%% Nobody is left to ask. Members that are still connecting for the first time are waited for.
-spec exhausted(view(), #call{}) -> ok | py_link:result().
exhausted(#view{name = Name} = View, Call = #call{outcome = none, tried = [], waited = false}) ->
    case py_pool_server:await(Name, remaining(Call#call.deadline)) of
        ok -> attempt(find_again(Name, View), Call#call{waited = true});
        {error, Reason} -> refused(Reason, View)
    end;
exhausted(View, #call{outcome = none}) ->
    refused({down, no_members}, View);
exhausted(View, #call{outcome = Outcome}) ->
    refused(Outcome, View).

-spec refused(py_link:reason(), view()) -> py_link:result().
refused(Reason, View) ->
    event(exhausted, View, #{reason => Reason}),
    {error, Reason}.

%% The view may be another by now.
-spec find_again(name(), view()) -> view().
find_again(Name, View) ->
    persistent_term:get(?VIEW(Name), View).

-spec event(moved | exhausted, view(), map()) -> ok.
event(What, #view{name = Name}, Metadata) ->
    py_event:emit([sidewinder, pool, What], #{system_time => erlang:system_time()},
                  Metadata#{pool => Name}).

-spec pick_from(view() | undefined, name(), how(), timeout()) ->
    {ok, node()} | {error, py_link:reason()}.
pick_from(undefined, Name, _, _) ->
    {error, {bad_target, Name}};
pick_from(View, Name, How, Timeout) ->
    case choose(View, How, []) of
        #slot{node = Node} -> {ok, Node};
        none -> pick_later(py_pool_server:await(Name, Timeout), Name, How)
    end.

-spec pick_later(ok | {error, py_link:reason()}, name(), how()) ->
    {ok, node()} | {error, py_link:reason()}.
pick_later(ok, Name, How) ->
    pick_from(find(Name), Name, How, 0);
pick_later({error, Reason}, _, _) ->
    {error, Reason}.

-spec deadline(timeout()) -> integer() | infinity.
deadline(infinity) -> infinity;
deadline(Timeout) -> erlang:monotonic_time(millisecond) + Timeout.

-spec remaining(integer() | infinity) -> timeout().
remaining(infinity) -> infinity;
remaining(Deadline) -> max(0, Deadline - erlang:monotonic_time(millisecond)).

%% --- Choosing a member ----------------------------------------------------------------------------

-spec choose(view(), how(), [node()]) -> #slot{} | none.
choose(#view{slots = Slots}, #{key := Key}, Tried) ->
    hashed(Slots, Key, Tried);
choose(#view{slots = Slots, routing = hash}, _, Tried) ->
    hashed(Slots, self(), Tried);
choose(View, _, Tried) ->
    case open(View, Tried, ?LOOKS) of
        [] -> none;
        [Slot] -> Slot;
        Slots -> choose_from(Slots, View, Tried)
    end.

-spec choose_from([#slot{}, ...], view(), [node()]) -> #slot{}.
choose_from(Slots, #view{routing = round_robin, turns = Turns}, Tried) ->
    lists:nth(turn(Turns, Tried, length(Slots)) + 1, Slots);
choose_from([First | Others], #view{turns = Turns}, Tried) ->
    Skipped = turn(Turns, Tried, length(Others) + 1),
    least_loaded(Others, First, py_link:in_flight(First#slot.load), Skipped).

%% Calls that move on take turns of their own: those of the others stay even.
-spec turn(atomics:atomics_ref(), [node()], pos_integer()) -> non_neg_integer().
turn(Turns, [], Length) -> atomics:add_get(Turns, 1, 1) rem Length;
turn(Turns, _, Length) -> atomics:add_get(Turns, 2, 1) rem Length.

%% Members that take calls and have not been tried. Of a pool too large to look at all of them for
%% each call, some, and others the next time.
-spec open(view(), [node()], pos_integer()) -> [#slot{}].
open(#view{slots = Slots}, Tried, Most) when tuple_size(Slots) =< Most ->
    open_from(1, tuple_size(Slots), Most, Slots, Tried);
open(#view{slots = Slots, turns = Turns}, Tried, Most) ->
    First = atomics:get(Turns, 1) rem tuple_size(Slots) + 1,
    open_from(First, tuple_size(Slots), Most, Slots, Tried).

-spec open_from(pos_integer(), non_neg_integer(), non_neg_integer(), tuple(), [node()]) -> [#slot{}].
open_from(_, Left, Most, _, _) when Left =:= 0; Most =:= 0 ->
    [];
open_from(N, Left, Most, Slots, Tried) when N > tuple_size(Slots) ->
    open_from(1, Left, Most, Slots, Tried);
open_from(N, Left, Most, Slots, Tried) ->
    Slot = element(N, Slots),
    case is_open(Slot, Tried) of
        true -> [Slot | open_from(N + 1, Left - 1, Most - 1, Slots, Tried)];
        false -> open_from(N + 1, Left - 1, Most, Slots, Tried)
    end.

-spec is_open(#slot{}, [node()]) -> boolean().
is_open(#slot{gate = Gate, node = Node}, Tried) ->
    atomics:get(Gate, 1) =:= ?OPEN andalso not lists:member(Node, Tried).

%% Among equals the choice goes round: the first of them after those that are to be skipped.
-spec least_loaded([#slot{}], #slot{}, integer(), integer()) -> #slot{}.
least_loaded([], Best, _, _) ->
    Best;
least_loaded([Slot | Slots], Best, Least, Skipped) ->
    case py_link:in_flight(Slot#slot.load) of
        Load when Load < Least; Load =:= Least, Skipped > 0 ->
            least_loaded(Slots, Slot, Load, Skipped - 1);
        _ ->
            least_loaded(Slots, Best, Least, Skipped - 1)
    end.

%% Rendezvous: each member draws a number from the key, the highest wins. Who loses a member asks the
%% next highest, so only the keys of that member move, and every BEAM comes to the same member.
-spec hashed(tuple(), term(), [node()]) -> #slot{} | none.
hashed(Slots, Key, Tried) ->
    hashed(tuple_size(Slots), Slots, erlang:phash2(Key, 1 bsl 32), Tried, -1, none).

-spec hashed(non_neg_integer(), tuple(), non_neg_integer(), [node()], integer(), #slot{} | none) ->
    #slot{} | none.
hashed(0, _, _, _, _, Best) ->
    Best;
hashed(N, Slots, Hash, Tried, Highest, Best) ->
    Slot = element(N, Slots),
    Number = mix(Hash bxor Slot#slot.seed),
    case Number > Highest andalso is_open(Slot, Tried) of
        true -> hashed(N - 1, Slots, Hash, Tried, Number, Slot);
        false -> hashed(N - 1, Slots, Hash, Tried, Highest, Best)
    end.

%% 32 bits well stirred; no product leaves the range of small integers.
-spec mix(non_neg_integer()) -> non_neg_integer().
mix(X0) ->
    X1 = ((X0 bxor (X0 bsr 16)) * 16#45d9f3b) band 16#ffffffff,
    X2 = ((X1 bxor (X1 bsr 16)) * 16#45d9f3b) band 16#ffffffff,
    X2 bxor (X2 bsr 16).

%% --- Spawned calls --------------------------------------------------------------------------------

%% Sends a request whose result comes to the caller as {py_response, Ref, Result}.
-spec spawn_call(view(), py_link:request(), timeout(), how()) -> reference().
spawn_call(#view{name = Name}, Request, Timeout, How) ->
    Carrier = spawn(?MODULE, carry, [self(), Name, Request, deadline(Timeout), How]),
    Ref = erlang:monitor(process, Carrier, [{alias, reply_demonitor}, {tag, py_response}]),
    true = ets:insert(?POOLS, {Ref, Carrier}),
    Carrier ! {start, Ref},
    Ref.

%% Cancels the call behind Ref, if it is one of a pool.
-spec forget(reference()) -> ok.
forget(Ref) ->
    try ets:lookup(?POOLS, Ref) of
        [{Ref, Carrier}] -> Carrier ! cancel, ok;
        [] -> ok
    catch
        error:badarg -> ok
    end.

%% The process of a spawned call.
-spec carry(pid(), name(), py_link:request(), integer() | infinity, how()) -> ok.
carry(Caller, Name, Request, Deadline, How) ->
    Monitor = monitor(process, Caller),
    receive
        {start, Ref} ->
            Call = #call{send = sender(Monitor), request = Request, how = How, deadline = Deadline},
            answer(Ref, carried(find(Name), Name, Call));
        {'DOWN', Monitor, process, _, _} ->
            % The caller may have died between its last two steps.
            settle({'_', self()})
    end.

-spec carried(view() | undefined, name(), #call{}) -> py_link:result() | cancelled.
carried(undefined, Name, _) -> {error, {bad_target, Name}};
carried(View, Name, Call) ->
    Attempt = fun() -> attempt(View, Call) end,
    catch_cancel(case py_telemetry:on(call) of
                     false -> Attempt;
                     true -> fun() -> py_telemetry:span(spawn_call, Name, Call#call.request, Attempt) end
                 end).

-spec catch_cancel(fun(() -> ok | py_link:result())) -> py_link:result() | cancelled.
catch_cancel(Function) ->
    try Function() of
        {_, _} = Result -> Result
    catch
        throw:cancelled -> cancelled
    end.

-spec answer(reference(), py_link:result() | cancelled) -> ok.
answer(Ref, Result) ->
    ok = settle({Ref, self()}),
    _ = [Ref ! {py_response, Ref, Result} || Result =/= cancelled],
    ok.

-spec settle({reference() | '_', pid()}) -> ok.
settle(Row) ->
    try ets:match_delete(?POOLS, Row) of
        true -> ok
    catch
        error:badarg -> ok
    end.

%% As py_link:call/3, but wakes up for the caller too. py_link cancels the call when we end.
-spec sender(reference()) -> fun((py_link:handle(), tuple(), timeout()) -> py_link:result()).
sender(Monitor) ->
    fun(Handle, Request, Timeout) ->
        case py_link:spawn_call(Handle, Request, Timeout) of
            overloaded -> {error, overloaded};
            Ref -> await(Ref, Monitor)
        end
    end.

-spec await(reference(), reference()) -> py_link:result().
await(Ref, Monitor) ->
    receive
        {py_response, Ref, Result} -> Result;
        {py_response, Ref, process, _, Reason} -> {error, {down, Reason}};
        {'DOWN', Monitor, process, _, _} -> throw(cancelled);
        cancel -> throw(cancelled)
    end.
