%% References to Python objects: made, used, passed back and let go, by a BEAM with the application and
%% by one that has nothing of ours loaded.
-module(objects_SUITE).

-include_lib("stdlib/include/assert.hrl").

-export([all/0, suite/0, init_per_suite/1, end_per_suite/1]).
-compile([export_all, nowarn_export_all]).

suite() -> [{timetrap, {seconds, 120}}].

all() ->
    [an_object_is_made_used_and_released,
     a_result_can_be_a_reference_again,
     coroutines_make_references_and_are_methods,
     a_reference_in_arguments_is_the_object_itself_at_any_depth,
     a_bare_node_uses_references_too,
     python_makes_references_within_a_result,
     an_exception_of_a_method_is_told_like_any_other,
     a_reference_that_leads_nowhere_says_why,
     a_tuple_that_looks_like_a_reference_is_an_error_and_no_crash,
     a_message_with_a_dead_reference_does_not_take_others_with_it,
     an_exit_reason_with_a_dead_reference_ends_the_process_and_nothing_else,
     references_of_another_node_are_refused,
     references_of_a_restarted_node_are_released,
     an_owners_death_frees_its_objects,
     the_loss_of_an_owners_node_frees_its_objects,
     another_process_can_be_the_owner,
     a_lease_ends_when_nobody_uses_it,
     many_owners_that_are_killed_leave_nothing,
     owners_beyond_one_process_are_monitored_by_another,
     a_slow_del_holds_nobody_up,
     the_list_of_references_finds_a_leak,
     an_owner_may_not_have_too_many,
     the_allow_list_holds_for_entry_modules,
     the_allow_list_holds_for_attributes,
     evaluation_that_is_off_is_not_had_through_objects,
     worker_processes_say_that_they_keep_no_objects].

init_per_suite(Config0) ->
    Config = sw_e2e:setup(Config0),
    Context = sw_e2e:context(Config),
    Beam = sw_e2e:start_beam(Context, #{args => ["-pa", filename:dirname(code:which(py))]}),
    ok = sw_e2e:on(Beam, fun() ->
        ok = logger:set_primary_config(level, error),
        {ok, _} = application:ensure_all_started(sidewinder),
        ok
    end),
    Node = sw_e2e:start_node(Context, #{args => ["--import", "objects", "--workers", "4"]}),
    [{beam, Beam}, {node, Node} | Config].

end_per_suite(Config) ->
    ok = sw_e2e:stop_node(proplists:get_value(node, Config)),
    ok = sw_e2e:stop_beam(proplists:get_value(beam, Config)),
    ok = sw_e2e:teardown(Config).

%% Runs in a process of the BEAM with the name of the node; what it owned must be gone afterwards.
with(Config, Function) ->
    #{name := N} = proplists:get_value(node, Config),
    Result = sw_e2e:on(proplists:get_value(beam, Config), fun() -> Function(N) end),
    ok = on(Config, fun() -> sw_e2e:eventually(fun() -> refs(N) =:= 0 andalso alive(N) =:= 0 end) end),
    Result.

on(Config, Function) -> sw_e2e:on(proplists:get_value(beam, Config), Function).

with_node(Config, Args, Function) ->
    Node = #{name := N} = sw_e2e:start_node(sw_e2e:context(Config), #{args => ["--import", "objects" | Args]}),
    try
        ok = on(Config, fun() -> Function(N), ok end)
    after
        ok = sw_e2e:stop_node(Node)
    end.

refs(N) ->
    {ok, #{refs := Refs}} = py_object:counts(N),
    Refs.

alive(N) ->
    {ok, Alive} = py:call(N, objects, alive, []),
    Alive.

counter(N, Value) ->
    {ok, Ref} = py:call(N, objects, 'Counter', [Value], #{return => ref}),
    Ref.

%% --- use --------------------------------------------------------------------------------------------

an_object_is_made_used_and_released(Config) ->
    with(Config, fun(N) ->
        {ok, Ref} = py:call(N, objects, 'Counter', [5], #{return => ref, kwargs => #{step => 2}}),
        ?assertMatch({'$py_object', N, _, _, <<"objects.Counter">>}, Ref),
        ?assert(py_object:is_ref(Ref)),
        ?assertEqual({N, <<"objects.Counter">>}, {py_object:node(Ref), py_object:type(Ref)}),
        ?assertEqual({ok, 7}, py:call_method(Ref, add, [])),
        ?assertEqual({ok, 13}, py:call_method(Ref, <<"add">>, [1], #{times => 3})),
        ?assertEqual({ok, 15}, py:call_ref(Ref, [1])),
        ?assertEqual({ok, 15}, py:getattr(Ref, value)),
        ?assertEqual(ok, py:setattr(Ref, value, 100)),
        ?assertEqual({ok, 102}, py:call_method(Ref, add, [], [], #{timeout => 5000})),
        ?assertMatch({error, {python, <<"TypeError">>, _, _}}, py:to_term(Ref)),
        ?assertEqual(ok, py:release(Ref)),
        ?assertEqual(ok, py:release(Ref)),
        ?assertEqual(0, alive(N)),
        ?assertEqual({error, {bad_ref, released}}, py:call_method(Ref, add, []))
    end).

a_result_can_be_a_reference_again(Config) ->
    with(Config, fun(N) ->
        Ref = counter(N, 3),
        {ok, Child} = py:call_method(Ref, child, [], [], #{return => ref}),
        ?assertEqual({ok, 4}, py:call_method(Child, add, [])),
        ?assertEqual({ok, 3}, py:getattr(Ref, value)),
        {ok, Method} = py:getattr(Ref, add, #{return => ref}),
        ?assertEqual({ok, 13}, py:call_ref(Method, [10])),
        {ok, Class} = py:call(N, builtins, getattr, [Ref, <<"__class__">>], #{return => ref}),
        {ok, Other} = py:call_ref(Class, [9], #{}, #{return => ref}),
        ?assertEqual({ok, 9}, py:getattr(Other, value)),
        {ok, List} = py:call(N, builtins, list, [[1, 2]], #{return => ref}),
        ?assertEqual(<<"list">>, py_object:type(List)),
        ?assertEqual({ok, none}, py:call_method(List, append, [3])),
        ?assertEqual({ok, [1, 2, 3]}, py:to_term(List)),
        Asked = py:spawn_call(N, objects, 'Counter', [1], #{return => ref}),
        {ok, Spawned} = py:await(Asked),
        ?assertEqual({ok, 1}, py:getattr(Spawned, value)),
        ?assertError(badarg, py:call(N, objects, now, [], #{return => no})),
        ?assertError(badarg, py:call(N, objects, now, [], #{return => ref, owner => me}))
    end).

coroutines_make_references_and_are_methods(Config) ->
    with(Config, fun(N) ->
        {ok, Ref} = py:call(N, objects, make_later, [5], #{return => ref}),
        ?assertEqual({ok, 7}, py:call_method(Ref, add_later, [2])),
        {ok, Sum} = py:call_method(Ref, add_later, [2], [], #{return => ref}),
        ?assertEqual({ok, 9}, py:to_term(Sum))
    end).

a_reference_in_arguments_is_the_object_itself_at_any_depth(Config) ->
    with(Config, fun(N) ->
        [A, B, C] = [counter(N, Value) || Value <- [1, 2, 3]],
        ?assertEqual({ok, 1}, py:call(N, objects, value_of, [A])),
        ?assertEqual({ok, true}, py:call(N, objects, same, [A, A])),
        ?assertEqual({ok, [2]}, py:call(N, objects, values_in, [{B}])),
        ?assertEqual({ok, [1, 2, 3]}, py:call(N, objects, values_in, [[A, {x, [[B | [{C, 1}]]]}]])),
        ?assertEqual({ok, [3]}, py:call(N, objects, values_in, [#{key => #{<<"k">> => C}}])),
        ?assertEqual({ok, 2}, py:call(N, objects, value_of, [], #{kwargs => #{counter => B}})),
        ?assertEqual({ok, 6}, py:eval(N, <<"a.value + b['x'].value + c.value">>, #{a => A, b => #{x => B}, c => C})),
        ?assertEqual(3, erpc:call(N, objects, value_of, [C]))
    end).

%% The messages of docs/protocol.md, sent by hand.
a_bare_node_uses_references_too(Config) ->
    Bare = sw_e2e:start_beam(sw_e2e:context(Config)),
    #{name := N} = proplists:get_value(node, Config),
    ok = sw_e2e:on(Bare, fun() ->
        Ask = fun(F, Args) -> gen_server:call({py, N}, {call, 'erlang._objects', F, Args}) end,
        {ok, {'$py_object', N, Creation, Id, _} = Ref} = Ask(call, [self(), objects, 'Counter', [4]]),
        Object = {N, Creation, Id},
        ?assertEqual({ok, 5}, Ask(call_method, [Object, add, [1]])),
        ?assertEqual({ok, 5}, gen_server:call({py, N}, {call, objects, value_of, [Ref]})),
        ?assertEqual(5, erpc:call(N, objects, value_of, [Ref])),
        ?assertEqual({ok, true}, Ask(release, [Object])),
        ?assertEqual({ok, false}, Ask(release, [Object])),
        ?assertEqual({error, {bad_ref, released}}, gen_server:call({py, N}, {call, objects, value_of, [Ref]})),
        ?assertError({exception, {bad_ref, released}, _}, erpc:call(N, objects, value_of, [Ref])),
        ok
    end),
    ok = sw_e2e:stop_beam(Bare).

python_makes_references_within_a_result(Config) ->
    with(Config, fun(N) ->
        {ok, #{<<"first">> := First, <<"more">> := [More]}} = py:call(N, objects, pair, [self()]),
        ?assertEqual({ok, [1, 2]}, py:call(N, objects, values_in, [[First, More]])),
        Self = self(),
        {ok, [#{owner := One}, #{owner := Two}]} = py:refs(N),
        ?assertEqual({Self, {lease, 60000}}, {One, Two}),
        {ok, Own} = gen_server:call({py, N}, {call, objects, mine, []}),
        {ok, [_, _, #{owner := Three}]} = py:refs(N),
        ?assertEqual(Self, Three),
        ?assertMatch({error, {python, <<"ValueError">>, _, _}}, py:call(N, objects, mine, [])),
        [ok = py:release(Ref) || Ref <- [Own, More]]
    end).

an_exception_of_a_method_is_told_like_any_other(Config) ->
    with(Config, fun(N) ->
        Ref = counter(N, 1),
        ?assertMatch({error, {python, <<"ValueError">>, <<"as it was told to">>, _}}, py:call_method(Ref, fail, [])),
        ?assertMatch({error, {python, <<"AttributeError">>, _, _}}, py:getattr(Ref, nothing)),
        ?assertMatch({error, {python, <<"AttributeError">>, _, _}}, py:call_method(Ref, 'add.__func__', [])),
        ?assertMatch({error, {python, <<"ValueError">>, _, _}}, py:call(N, builtins, int, [<<"x">>], #{return => ref}))
    end).

%% --- references that lead nowhere -------------------------------------------------------------------

a_reference_that_leads_nowhere_says_why(Config) ->
    with(Config, fun(N) ->
        Ref = {'$py_object', N, Creation, Id, Type} = counter(N, 1),
        ok = py:release(Ref),
        ?assertEqual({error, {bad_ref, released}}, py:getattr(Ref, value)),
        ?assertEqual({error, {bad_ref, released}}, py:call(N, objects, values_in, [[Ref]])),
        ?assertEqual({error, {bad_ref, unknown}}, py:getattr(setelement(4, Ref, Id + 1000000), value)),
        ?assertEqual({error, {bad_ref, unknown}}, py:getattr({'$py_object', N, Creation, -1, Type}, value)),
        ?assertEqual({error, {bad_ref, released}}, py:getattr(setelement(3, Ref, Creation + 1), value)),
        ?assertEqual({error, {bad_ref, other_node}}, py:call(N, objects, value_of, [setelement(2, Ref, other@host)]))
    end).

a_tuple_that_looks_like_a_reference_is_an_error_and_no_crash(Config) ->
    with(Config, fun(N) ->
        Bad = fun(Tuple) -> py:call(N, probe, identity, [[Tuple]]) end,
        ?assertEqual({error, {bad_ref, unknown}}, Bad({'$py_object', 1, 2, 3, 4})),
        ?assertEqual({error, {bad_ref, unknown}}, Bad({'$py_object', N, [], #{}, {}})),
        ?assertEqual({error, {bad_ref, unknown}}, Bad({'$py_object', N, 1 bsl 100, x, <<>>})),
        ?assertEqual({error, {bad_ref, other_node}}, Bad({'$py_object', a, 1, 1, a})),
        [?assertEqual({ok, Fine}, py:call(N, probe, identity, [Fine]))
         || Fine <- [{'$py_object', 1, 2, 3}, {'$py_object', 1, 2, 3, 4, 5}, {'$py_objects', 1, 2, 3, 4},
                     {<<"$py_object">>, 1, 2, 3, 4}, '$py_object', ['$py_object', 1, 2, 3, 4]]]
    end).

a_message_with_a_dead_reference_does_not_take_others_with_it(Config) ->
    with(Config, fun(N) ->
        Ref = counter(N, 1),
        ok = py:release(Ref),
        Pid = erpc:call(N, objects, relay, [self()]),
        [Pid ! Message || Message <- [{first, 1}, {dead, Ref}, {last, 2}]],
        Got = [receive {relayed, Message} -> Message after 5000 -> error(lost) end || _ <- [1, 2]],
        ?assertEqual([{first, 1}, {last, 2}], Got),
        exit(Pid, kill)
    end).

an_exit_reason_with_a_dead_reference_ends_the_process_and_nothing_else(Config) ->
    with(Config, fun(N) ->
        Pid = erpc:call(N, objects, relay, [self()]),
        Monitor = monitor(process, Pid),
        Reason = {gone, {'$py_object', N, 1, 1, <<>>}},
        exit(Pid, Reason),
        ?assertEqual(Reason, receive {'DOWN', Monitor, process, Pid, Why} -> Why after 5000 -> error(alive) end),
        ?assertEqual({ok, 1}, py:call(N, objects, later, [])),
        ?assertError({exception, {bad_ref, released}, _}, erpc:call(N, objects, value_of, [element(2, Reason)]))
    end).

references_of_another_node_are_refused(Config) ->
    with_node(Config, [], fun(Other) ->
        #{name := N} = proplists:get_value(node, Config),
        Ref = counter(Other, 1),
        ?assertEqual({error, {bad_ref, other_node}}, py:call(N, objects, value_of, [Ref])),
        ?assertEqual({ok, 1}, py:call(Other, objects, value_of, [Ref]))
    end).

references_of_a_restarted_node_are_released(Config) ->
    Context = sw_e2e:context(Config),
    First = #{name := N, program := Program} = sw_e2e:start_node(Context, #{args => ["--import", "objects"]}),
    Ref = on(Config, fun() -> {ok, Made} = py:call(N, objects, 'Counter', [1], #{return => ref, owner => whereis(init)}), Made end),
    ok = sw_e2e:kill(Program),
    ok = on(Config, fun() ->
        sw_e2e:eventually(fun() -> case py:getattr(Ref, value, #{timeout => 100}) of {error, _} -> true; _ -> false end end)
    end),
    Alive = hd(string:split(atom_to_list(N), "@")),
    Port = maps:get(epmd_port, Context),
    ok = sw_e2e:eventually(fun() -> not lists:keymember(Alive, 1, sw_e2e:epmd_names(Port)) end),
    Second = sw_e2e:start_node(Context, #{name => atom_to_list(N), args => ["--import", "objects"]}),
    ok = on(Config, fun() ->
        sw_e2e:eventually(fun() -> {error, {bad_ref, released}} =:= py:getattr(Ref, value) end),
        _ = counter(N, 1),
        ?assertEqual({error, {bad_ref, released}}, py:getattr(Ref, value)),
        ok
    end),
    _ = First,
    ok = sw_e2e:stop_node(Second).

%% --- owners -----------------------------------------------------------------------------------------

an_owners_death_frees_its_objects(Config) ->
    with(Config, fun(N) ->
        Mine = counter(N, 1),
        Owner = owner(fun() -> [counter(N, Value) || Value <- [1, 2, 3]] end),
        Refs = made(Owner),
        ?assertEqual({ok, [1, 2, 3]}, py:call(N, objects, values_in, [Refs])),
        exit(Owner, kill),
        ok = sw_e2e:eventually(fun() -> alive(N) =:= 1 end),
        ?assertEqual({error, {bad_ref, released}}, py:getattr(hd(Refs), value)),
        ?assertEqual({ok, 1}, py:getattr(Mine, value)),
        {ok, Threads} = py:call(N, objects, ended, []),
        ?assertEqual([<<"erlang-objects">>, <<"erlang-objects">>, <<"erlang-objects">>], lists:nthtail(length(Threads) - 3, Threads))
    end).

the_loss_of_an_owners_node_frees_its_objects(Config) ->
    #{name := N} = proplists:get_value(node, Config),
    Beam = sw_e2e:start_beam(sw_e2e:context(Config), #{args => ["-pa", filename:dirname(code:which(py))]}),
    Ref = sw_e2e:on(Beam, fun() ->
        {ok, _} = application:ensure_all_started(sidewinder),
        {ok, Made} = py:call(N, objects, 'Counter', [1], #{return => ref, owner => whereis(init)}),
        Made
    end),
    ?assertEqual({ok, 1}, on(Config, fun() -> py:getattr(Ref, value) end)),
    ok = sw_e2e:kill_beam(Beam),
    ok = on(Config, fun() -> sw_e2e:eventually(fun() -> alive(N) =:= 0 end) end),
    ?assertEqual({error, {bad_ref, released}}, on(Config, fun() -> py:getattr(Ref, value) end)).

another_process_can_be_the_owner(Config) ->
    with(Config, fun(N) ->
        Other = spawn(fun() -> receive stop -> ok end end),
        {ok, Ref} = py:call(N, objects, 'Counter', [1], #{return => ref, owner => Other}),
        {ok, [#{owner := Owner}]} = py:refs(N),
        ?assertEqual(Other, Owner),
        ?assertEqual({ok, 1}, py:getattr(Ref, value)),
        Other ! stop,
        ok = sw_e2e:eventually(fun() -> alive(N) =:= 0 end),
        Dead = Other,
        ?assertMatch({ok, _}, py:call(N, objects, 'Counter', [1], #{return => ref, owner => Dead})),
        ok = sw_e2e:eventually(fun() -> refs(N) =:= 0 end)
    end).

a_lease_ends_when_nobody_uses_it(Config) ->
    with(Config, fun(N) ->
        Lease = fun(Ms) -> {ok, Ref} = py:call(N, objects, 'Counter', [1], #{return => ref, owner => {lease, Ms}}), Ref end,
        Long = Lease(60000),
        Used = Lease(400),
        Left = Lease(100),
        {ok, Listed} = py:refs(N),
        ?assertEqual([{lease, 60000}, {lease, 400}, {lease, 100}], [Owner || #{owner := Owner} <- Listed]),
        Deadline = erlang:monotonic_time(millisecond) + 1000,
        Use = fun Use() ->
            ?assertEqual({ok, 1}, py:getattr(Used, value)),
            timer:sleep(50),
            erlang:monotonic_time(millisecond) < Deadline andalso Use()
        end,
        Use(),
        ?assertEqual({error, {bad_ref, released}}, py:getattr(Left, value)),
        ok = sw_e2e:eventually(fun() -> alive(N) =:= 1 end),
        ?assertEqual({error, {bad_ref, released}}, py:getattr(Used, value)),
        ?assertEqual({ok, 1}, py:getattr(Long, value)),
        ?assertEqual(ok, py:release(Long)),
        {ok, #{leases := Leases}} = py_object:counts(N),
        ?assertEqual(0, Leases)
    end).

%% As many as OBJECTS says, of owners with OBJECTS_EACH; 100,000 take about half a minute.
many_owners_that_are_killed_leave_nothing(Config) ->
    Count = list_to_integer(os:getenv("OBJECTS", "2000")),
    with(Config, fun(N) ->
        Each = list_to_integer(os:getenv("OBJECTS_EACH", "5")),
        Make = fun() -> owner(fun() -> [counter(N, 1) || _ <- lists:seq(1, Each)] end) end,
        Wave = fun(_) ->  % no more callers at a time than a link takes
            Some = [Make() || _ <- lists:seq(1, 200)],
            _ = [made(Owner) || Owner <- Some],
            Some
        end,
        Owners = lists:flatmap(Wave, lists:seq(1, Count div Each div 200)),
        ?assertEqual(Count div Each * Each, refs(N)),
        _ = [exit(Owner, kill) || Owner <- Owners],
        ok = sw_e2e:eventually(fun() -> refs(N) =:= 0 andalso alive(N) =:= 0 end),
        {ok, #{owners := Left}} = py_object:counts(N),
        ?assertEqual(0, Left)
    end).

owners_beyond_one_process_are_monitored_by_another(Config) ->
    with_node(Config, [], fun(N) ->
        {ok, _} = py:exec(N, <<"import erlang._objects as o; o.MOST_WATCHED = 3">>),
        Owners = [owner(fun() -> [counter(N, 1), counter(N, 2)] end) || _ <- lists:seq(1, 8)],
        _ = [made(Owner) || Owner <- Owners],
        Watched = <<"[len(watch.owners) for watch in o._watcher._watches]">>,
        ?assertEqual({ok, [3, 3, 2]}, py:eval(N, Watched)),
        _ = [exit(Owner, kill) || Owner <- Owners],
        ok = sw_e2e:eventually(fun() -> refs(N) =:= 0 end),
        ?assertEqual({ok, [0, 0, 0]}, py:eval(N, Watched)),
        % Whoever ends the process that watches gives the objects up.
        Owner = owner(fun() -> [counter(N, 1)] end),
        _ = made(Owner),
        {ok, Pid} = py:eval(N, <<"o._watcher._watches[0].pid">>),
        exit(Pid, kill),
        ok = sw_e2e:eventually(fun() -> refs(N) =:= 0 end),
        _ = counter(N, 1),
        ?assertEqual(1, refs(N))
    end).

a_slow_del_holds_nobody_up(Config) ->
    with(Config, fun(N) ->
        Owner = owner(fun() ->
            [begin {ok, Ref} = py:call(N, objects, 'Counter', [1], #{return => ref, kwargs => #{slow => 0.3}}), Ref end || _ <- [1, 2]]
        end),
        _ = made(Owner),
        exit(Owner, kill),
        ok = sw_e2e:eventually(fun() -> refs(N) =:= 0 end),
        {Us, _} = timer:tc(fun() -> [{ok, 1} = py:call(N, objects, F, []) || F <- [now, later, now, later]] end),
        ?assertEqual({ok, 2}, py:eval(N, <<"__import__('objects')._alive">>)),
        ?assert(Us < 250000)
    end).

the_list_of_references_finds_a_leak(Config) ->
    with(Config, fun(N) ->
        Refs = [First | _] = [counter(N, Value) || Value <- [1, 2, 3]],
        {ok, Listed} = py:refs(N),
        Self = self(),
        ?assertMatch([#{owner := Self, type := <<"objects.Counter">>, age_ms := _, idle_ms := _} | _], Listed),
        ?assertEqual(Refs, [Ref || #{ref := Ref} <- Listed]),
        ?assertMatch({ok, [#{ref := First}]}, py_object:refs(N, 1)),
        {ok, Counts} = py_object:counts(N),
        ?assertMatch(#{refs := 3, owners := 1, types := #{<<"objects.Counter">> := 3}}, Counts)
    end).

an_owner_may_not_have_too_many(Config) ->
    with_node(Config, [], fun(N) ->
        {ok, _} = py:exec(N, <<"import erlang._objects as o; o.MOST_OF_OWNER = 3; o.MOST_OBJECTS = 5">>),
        Make = fun(Owner) -> py:call(N, objects, 'Counter', [1], #{return => ref, owner => Owner}) end,
        Self = self(),
        [First | _] = [begin {ok, Ref} = Make(Self), Ref end || _ <- [1, 2, 3]],
        ?assertEqual({error, {too_many_refs, owner}}, Make(Self)),
        [{ok, _} = Make({lease, 60000}) || _ <- [1, 2]],
        ?assertEqual({error, {too_many_refs, node}}, Make({lease, 60000})),
        ok = py:release(First),
        ?assertMatch({ok, _}, Make(Self))
    end).

%% A process that has made what Make makes, and lives on.
owner(Make) ->
    Parent = self(),
    spawn(fun() -> Parent ! {made, self(), Make()}, receive stop -> ok end end).

made(Owner) ->
    receive {made, Owner, Refs} -> Refs after 60000 -> error(not_made) end.

%% --- the allow-list ---------------------------------------------------------------------------------

the_allow_list_holds_for_entry_modules(Config) ->
    with_node(Config, ["--allow", "math.*", "--allow", "objects.now"], fun(N) ->
        Ask = fun(F, Args) -> gen_server:call({py, N}, {call, 'erlang._objects', F, Args}) end,
        ?assertMatch({ok, {'$py_object', N, _, _, <<"float">>}}, Ask(call, [self(), math, sqrt, [4.0]])),
        ?assertEqual({error, {not_allowed, {<<"os">>, <<"getpid">>}}}, Ask(call, [self(), os, getpid, []])),
        ?assertEqual({error, {not_allowed, {<<"builtins">>, <<"eval">>}}}, Ask(call, [self(), builtins, eval, [<<"1">>]])),
        ?assertEqual({error, {not_allowed, {<<"objects">>, <<"Counter">>}}}, py:call(N, objects, 'Counter', [], #{return => ref})),
        % What is no function of that module's own, or is not public.
        [?assertMatch({F, {error, {not_allowed, _}}}, {F, Ask(F, [x])})
         || F <- ['_drop', '_find', '_leave', 'Atom', 'Any', 'Counter', 'call.__globals__', 'threading.Thread', 'inspect.iscoroutine', '_table.get']],
        ?assertMatch({error, {not_allowed, _}}, gen_server:call({py, N}, {call, 'erlang._objects.call', '__globals__', []})),
        ?assertMatch({error, {not_allowed, _}}, gen_server:call({py, N}, {call, 'erlang._backend', native, []})),
        ?assertError({exception, {not_allowed, {<<"os">>, <<"getpid">>}}, _},
                     erpc:call(N, 'erlang._objects', call, [self(), os, getpid, []]))
    end).

the_allow_list_holds_for_attributes(Config) ->
    Allow = ["objects.Counter", "objects.Heir", "objects.Counter.add", "objects.Counter.value", "objects.Counter.child"],
    with_node(Config, lists:append([["--allow", Name] || Name <- Allow]), fun(N) ->
        {ok, Ref} = py:call(N, objects, 'Counter', [1], #{return => ref}),
        {ok, Heir} = py:call(N, objects, 'Heir', [10], #{return => ref}),
        ?assertEqual({ok, 2}, py:call_method(Ref, add, [])),
        ?assertEqual({ok, 11}, py:call_method(Heir, add, [])),
        ?assertEqual({ok, 2}, py:getattr(Ref, value)),
        {ok, Child} = py:call_method(Ref, child, [], [], #{return => ref}),
        ?assertEqual({ok, 3}, py:call_method(Child, add, [])),
        Refused = fun(Class, Name) -> {error, {not_allowed, {<<"objects">>, <<Class/binary, ".", Name/binary>>}}} end,
        [?assertEqual(Refused(<<"Counter">>, Name), py:getattr(Ref, Name, #{return => ref}))
         || Name <- [<<"nap">>, <<"__class__">>, <<"__dict__">>, <<"__init__">>, <<"_hidden">>]],
        ?assertEqual(Refused(<<"Counter">>, <<"nap">>), py:call_method(Ref, nap, [1])),
        ?assertEqual(Refused(<<"Heir">>, <<"double">>), py:call_method(Heir, double, [])),
        ?assertEqual(Refused(<<"Counter">>, <<"__call__">>), py:call_ref(Ref, [1])),
        ?assertEqual(Refused(<<"Counter">>, <<"__setattr__">>), py:setattr(Ref, value, 1)),
        {ok, Add} = py:getattr(Ref, add, #{return => ref}),
        ?assertEqual({ok, 4}, py:call_ref(Add, [2])),
        ?assertMatch({error, {not_allowed, {<<"builtins">>, _}}}, py:getattr(Add, '__globals__', #{return => ref})),
        ?assertEqual(ok, py:release(Ref))
    end).

evaluation_that_is_off_is_not_had_through_objects(Config) ->
    with_node(Config, ["--eval", "off"], fun(N) ->
        {ok, Module} = py:call(N, importlib, import_module, [<<"builtins">>], #{return => ref}),
        ?assertEqual({error, {not_allowed, {<<"builtins">>, <<"eval">>}}}, py:call_method(Module, eval, [<<"1">>])),
        ?assertEqual({error, {not_allowed, {<<"builtins">>, <<"exec">>}}}, py:getattr(Module, exec, #{return => ref})),
        ?assertEqual({ok, 3}, py:call_method(Module, abs, [-3]))
    end).

worker_processes_say_that_they_keep_no_objects(Config) ->
    with_node(Config, ["--processes", "1"], fun(N) ->
        ?assertMatch({error, {unsupported, _}}, py:call(N, objects, 'Counter', [1], #{return => ref})),
        ?assertMatch({error, {bad_ref, _}}, py:call(N, objects, value_of, [{'$py_object', N, 1, 1, <<>>}])),
        ?assertEqual({ok, 1}, py:call(N, objects, now, []))
    end).
