%% State that Erlang and Python share, with real nodes and a real BEAM that owns it.
-module(state_SUITE).

-include_lib("stdlib/include/assert.hrl").

-export([all/0, suite/0, init_per_suite/1, end_per_suite/1, init_per_testcase/2, end_per_testcase/2]).
-compile([export_all, nowarn_export_all]).

suite() -> [{timetrap, {seconds, 120}}].

all() ->
    [a_store_does_what_it_says_in_erlang,
     a_store_does_the_same_for_python,
     a_full_store_says_so_and_stays_as_it_is,
     stores_come_and_go,
     an_erlang_process_watches_keys,
     python_watches_keys,
     a_watch_ends_with_its_watcher_and_its_store,
     what_was_read_once_is_read_from_the_cache_until_it_changes,
     the_caches_stay_within_their_bounds,
     keys_and_values_are_what_erlang_takes_them_for,
     everybody_adds_to_one_number_and_the_sum_is_right,
     a_node_reads_its_own_writes,
     no_read_goes_back_and_none_stays_behind,
     a_busy_store_does_not_wait_for_a_node_that_does_not_read,
     a_lost_connection_empties_the_cache,
     a_connection_that_flaps_leaves_nothing_stale,
     a_beam_without_the_application_has_no_state,
     a_worker_process_reads_uncached,
     a_node_that_dies_is_forgotten].

init_per_suite(Config0) ->
    Config = sw_e2e:setup(Config0),
    Context = sw_e2e:context(Config),
    Nodes = [sw_e2e:start_node(Context, #{args => ["--import", "shared", "--workers", "4"]}) || _ <- [1, 2]],
    [{nodes, Nodes}, {beam, application_beam(Context, Nodes)} | Config].

application_beam(Context, Nodes) ->
    Beam = sw_e2e:start_beam(Context, #{args => ["-pa", filename:dirname(code:which(py))]}),
    Names = [Name || #{name := Name} <- Nodes],
    ok = sw_e2e:on(Beam, fun() -> start_application(Names) end),
    Beam.

start_application([First | _] = Names) ->
    _ = application:load(sidewinder),
    ok = application:set_env(sidewinder, default_node, First),
    {ok, _} = application:ensure_all_started(sidewinder),
    lists:foreach(fun(Name) -> ok = py_node:connect(Name) end, Names).

end_per_suite(Config) ->
    ok = sw_e2e:stop_beam(proplists:get_value(beam, Config)),
    [ok = sw_e2e:stop_node(Node) || Node <- proplists:get_value(nodes, Config)],
    ok = sw_e2e:teardown(Config).

%% Every test begins with an empty store.
init_per_testcase(_, Config) ->
    ok = sw_e2e:on(proplists:get_value(beam, Config), fun() ->
        lists:foreach(fun py_state:delete/1, py_state:keys())
    end),
    Config.

%% No watch of a test is left behind.
end_per_testcase(_, Config) ->
    ok = sw_e2e:eventually(fun() ->
        {ok, #{watches := Watches}} = sw_e2e:on(proplists:get_value(beam, Config), fun py_state:info/0),
        Watches =:= 0
    end, 10000).

run(Config, Body) ->
    Names = [Name || #{name := Name} <- proplists:get_value(nodes, Config)],
    sw_e2e:on(proplists:get_value(beam, Config), fun() -> Body(Names) end, 100000).

call(Node, F, Args) -> call(Node, F, Args, #{}).

call(Node, F, Args, Kwargs) ->
    case py:call(Node, shared, F, Args, #{kwargs => Kwargs, timeout => 60000}) of
        {ok, Value} -> Value;
        {error, Reason} -> error(Reason)
    end.

%% A call beside the test's own doings.
beside(Node, F, Args) -> py:spawn_call(Node, shared, F, Args, #{timeout => 60000}).

result(Ref) ->
    {ok, Value} = py:await(Ref, 60000),
    Value.

%% --- What a store does ------------------------------------------------------------------------------

a_store_does_what_it_says_in_erlang(Config) ->
    run(Config, fun(_) ->
        ?assertEqual({error, not_found}, py_state:get(k)),
        ?assertEqual(nothing, py_state:get(default, k, nothing)),
        ok = py_state:put(k, #{a => [1]}),
        ?assertEqual({ok, #{a => [1]}}, py_state:get(k)),
        ?assertEqual(#{a => [1]}, py_state:get(default, k, nothing)),
        ?assertEqual({error, {exists, #{a => [1]}}}, py_state:put_new(k, 1)),
        ?assertEqual(ok, py_state:put_new(n, 1)),
        ?assertEqual({ok, 2}, py_state:incr(n)),
        ?assertEqual({ok, 0.5}, py_state:incr(n, -1.5)),
        ?assertEqual({ok, 10}, py_state:incr(other, 10)),
        ?assertEqual({error, not_a_number}, py_state:incr(k)),
        ?assertEqual({error, {changed, 10}}, py_state:cas(other, 10.0, x)),
        ?assertEqual(ok, py_state:cas(other, 10, x)),
        ?assertEqual({error, not_found}, py_state:cas(missing, undefined, x)),
        ?assertEqual([k, n, other], lists:sort(py_state:keys())),
        ?assertMatch({ok, #{entries := 3, watches := 0}}, py_state:info()),
        ok = py_state:delete(k),
        ok = py_state:delete(k),
        ok = py_state:delete(n),
        ok = py_state:delete(other),
        ?assertMatch({ok, #{entries := 0, bytes := 0}}, py_state:info())
    end).

a_store_does_the_same_for_python(Config) ->
    run(Config, fun([Node, _]) ->
        {ok, _} = py_state:new(verbs),
        Wanted = [<<"nothing">>, none, [1, #{<<"a">> => 2.5}], false, true, 4, 2.5, true, false, false,
                  [<<"k">>, <<"n">>], none, none, <<"gone">>, <<"done">>],
        [begin
             ?assertEqual(Wanted, call(Node, F, [verbs])),
             ok = py_state:delete(verbs, <<"n">>)
         end || F <- [all_verbs, all_verbs_async]],
        ok = py_state:stop(verbs),
        ok = py_state:put(<<"word">>, x),
        [ok, ok] = [py_state:put(K, V) || {K, V} <- [{<<"a">>, 1}, {a, 2}]],
        ?assertEqual(x, call(Node, get_elsewhere, [<<"word">>])),
        ?assertEqual({<<"ErlangError">>, not_a_number}, call(Node, raised, [state_incr, <<"word">>])),
        ?assertMatch({<<"ErlangError">>, {no_store, <<"none of that name">>}},
                     call(Node, raised, [state_get, 1], #{store => <<"none of that name">>})),
        ?assertMatch({<<"TypeError">>, _}, call(Node, raised, [state_get, {bytes, <<"x">>}, 1, 2])),
        % On the loop's thread the plain function reads what is cached, and only that.
        ?assertEqual({<<"returned">>, x}, call(Node, get_on_the_loop, [<<"word">>])),
        ok = py_state:put(<<"word">>, y),
        ?assertMatch({<<"RuntimeError">>, <<"this would block", _/binary>>},
                     eventually(fun() -> call(Node, get_on_the_loop, [<<"word">>]) end,
                                fun({Kind, _}) -> Kind =:= <<"RuntimeError">> end))
    end).

a_full_store_says_so_and_stays_as_it_is(Config) ->
    run(Config, fun([Node, _]) ->
        {ok, _} = py_state:new(small, #{max_entries => 2, max_bytes => 1000, max_watches => 1}),
        ok = py_state:put(small, 1, a),
        ok = py_state:put(small, 2, b),
        ?assertEqual({error, {full, entries, 2}}, py_state:put(small, 3, c)),
        ?assertEqual({error, {full, entries, 2}}, py_state:incr(small, 3, 1)),
        ?assertEqual({error, {full, entries, 2}}, py_state:put_new(small, 3, 1)),
        ?assertEqual({<<"ErlangError">>, {full, entries, 2}},
                     call(Node, raised, [state_put, 3, 1], #{store => small})),
        Large = binary:copy(<<"x">>, 2000),
        ?assertEqual({error, {full, bytes, 1000}}, py_state:put(small, 1, Large)),
        ?assertEqual({error, {full, bytes, 1000}}, py_state:cas(small, 1, a, Large)),
        ?assertEqual({ok, a}, py_state:get(small, 1)),
        ok = py_state:delete(small, 2),
        ok = py_state:put(small, 3, c),
        {ok, Ref} = py_state:watch(small, 1),
        ?assertEqual({error, {full, watches, 1}}, py_state:watch(small, 1)),
        ok = py_state:unwatch(small, Ref),
        {ok, _} = py_state:watch(small, 1),
        ok = py_state:stop(small),
        ?assertError(badarg, py_state:new(small, #{max_entries => 0})),
        ?assertError(badarg, py_state:new(small, #{unheard => 1}))
    end).

stores_come_and_go(Config) ->
    run(Config, fun([Node, _]) ->
        ?assertEqual({error, {no_store, mine}}, py_state:get(mine, 1)),
        ?assertEqual({error, {no_store, mine}}, py_state:put(mine, 1, 2)),
        ?assertEqual({error, {no_store, mine}}, py_state:keys(mine)),
        ?assertEqual({error, {no_store, mine}}, py_state:watch(mine, 1)),
        ?assertError({no_store, mine}, py_state:get(mine, 1, 2)),
        {ok, Pid} = py_state:new(mine),
        ?assertEqual({error, {already_started, Pid}}, py_state:new(mine)),
        ok = py_state:put(mine, 1, first),
        ?assertEqual(first, call(Node, get, [1], #{store => mine})),
        ?assertEqual({ok, Pid}, py_state:pid(mine)),
        ok = py_state:stop(mine),
        ?assertEqual({error, not_found}, py_state:stop(mine)),
        ?assertEqual({error, {no_store, mine}}, py_state:get(mine, 1)),
        ?assertMatch({<<"ErlangError">>, {no_store, mine}},
                     eventually(fun() -> call(Node, raised, [state_get, 1], #{store => mine}) end,
                                fun({Kind, _}) -> Kind =:= <<"ErlangError">> end)),
        % Its successor knows nothing of it, and no node takes the one for the other.
        {ok, _} = py_state:start_link(mine, #{max_entries => 1}),
        ?assertEqual(none, call(Node, get, [1], #{store => mine})),
        ok = py_state:put(mine, 1, second),
        ?assertEqual(second, call(Node, get, [1], #{store => mine})),
        % One that crashes is started again by its supervisor, empty, and nothing of it is in a cache.
        {ok, Default} = py_state:pid(default),
        ok = py_state:put(1, kept),
        ?assertEqual(kept, call(Node, get, [1])),
        exit(Default, kill),
        _ = eventually(fun() -> py_state:put(2, new) end, fun(Answer) -> Answer =:= ok end),
        ?assertEqual(none, eventually(fun() -> call(Node, get, [1]) end, fun(V) -> V =:= none end)),
        ?assertEqual(new, call(Node, get, [2]))
    end).

%% --- Watching -----------------------------------------------------------------------------------------

an_erlang_process_watches_keys(Config) ->
    run(Config, fun([Node, _]) ->
        {ok, Ref} = py_state:watch(k),
        {ok, All} = py_state:watch_all(),
        ok = py_state:put(k, 1),
        none = call(Node, all_of, [[{<<"state_put">>, [<<"other">>, 2]}]]),
        ok = py_state:delete(k),
        ok = py_state:delete(k),
        ok = py_state:cas(<<"other">>, 2, 3),
        {error, _} = py_state:cas(<<"other">>, 2, 3),
        ?assertEqual([{k, {ok, 1}}, {k, deleted}], changes(Ref, 2)),
        ?assertEqual([{k, {ok, 1}}, {<<"other">>, {ok, 2}}, {k, deleted}, {<<"other">>, {ok, 3}}], changes(All, 4)),
        ok = py_state:put(k, 2),
        ok = py_state:unwatch(Ref),
        ok = py_state:put(k, 3),
        ?assertEqual([{k, {ok, 2}}, {k, {ok, 3}}], changes(All, 2)),
        ok = py_state:unwatch(All),
        receive Other -> ?assertEqual(none, Other) after 50 -> ok end
    end).

changes(Ref, Count) ->
    [receive {py_state, changed, Ref, Key, What} -> {Key, What} after 5000 -> timeout end || _ <- lists:seq(1, Count)].

python_watches_keys(Config) ->
    run(Config, fun([Node, Other]) ->
        One = beside(Node, watch, [<<"k">>, 2, self()]),
        All = beside(Other, watch_async, [3, self()]),
        ok = watching(2),
        ok = py_state:put(<<"unwatched">>, 0),
        timer:sleep(50),
        ok = py_state:put(<<"k">>, [1]),
        timer:sleep(50),
        ok = py_state:delete(<<"k">>),
        ?assertEqual([{<<"k">>, [1], false}, {<<"k">>, none, true}], result(One)),
        ?assertEqual([{<<"unwatched">>, 0, false}, {<<"k">>, [1], false}, {<<"k">>, none, true}], result(All)),
        % Who is late is told the latest.
        Late = beside(Node, watch_slowly, [<<"k">>, self(), 0.3]),
        ok = watching(1),
        [ok = py_state:put(<<"k">>, N) || N <- lists:seq(1, 100)],
        ?assertEqual([{<<"k">>, 100, false}], result(Late))
    end).

watching(0) -> ok;
watching(Count) -> receive watching -> watching(Count - 1) after 10000 -> timeout end.

a_watch_ends_with_its_watcher_and_its_store(Config) ->
    run(Config, fun([Node, _]) ->
        Watcher = spawn(fun() -> {ok, _} = py_state:watch(k), receive stop -> ok end end),
        Watches = fun(Count) -> fun({ok, #{watches := N}}) -> N =:= Count end end,
        _ = eventually(fun py_state:info/0, Watches(1)),
        exit(Watcher, kill),
        _ = eventually(fun py_state:info/0, Watches(0)),
        % A caller that dies ends the call, and that the watch.
        Caller = spawn(fun() -> py:call(Node, shared, watch_lost, [k, self(), default]) end),
        _ = eventually(fun py_state:info/0, Watches(1)),
        exit(Caller, kill),
        _ = eventually(fun py_state:info/0, Watches(0)),
        {ok, _} = py_state:new(short),
        {ok, Ref} = py_state:watch(short, k),
        Lost = beside(Node, watch_lost, [k, self(), short]),
        ok = watching(1),
        ok = py_state:stop(short),
        ?assertEqual(<<"NoConnection">>, result(Lost)),
        receive {'DOWN', Ref, process, _, _} -> ok end
    end).

%% --- The caches -----------------------------------------------------------------------------------------

what_was_read_once_is_read_from_the_cache_until_it_changes(Config) ->
    run(Config, fun([Node, Other]) ->
        Keys = lists:seq(1, 20),
        [ok = py_state:put(K, {K, v}) || K <- Keys],
        [begin
             ?assertEqual({0, 20}, call(N, hits, [Keys])),
             ?assertEqual({20, 0}, call(N, hits, [Keys]))
         end || N <- [Node, Other]],
        ?assertMatch({ok, #{cached := 40}}, py_state:info()),
        ?assertEqual({0, 20}, call(Node, hits, [Keys], #{fresh => true})),
        ok = py_state:put(7, changed),
        ?assertMatch({ok, #{cached := 38}}, py_state:info()),
        [?assertEqual(changed, eventually(fun() -> call(N, get, [7]) end, fun(V) -> V =:= changed end))
         || N <- [Node, Other]],
        ?assertEqual({20, 0}, call(Node, hits, [Keys])),
        ok = py_state:delete(7),
        ?assertEqual(none, eventually(fun() -> call(Node, get, [7]) end, fun(V) -> V =:= none end)),
        % What is not there is not cached.
        ?assertEqual({19, 1}, call(Node, hits, [Keys])),
        ?assertEqual({19, 1}, call(Node, hits, [Keys]))
    end).

the_caches_stay_within_their_bounds(Config) ->
    run(Config, fun([Node, _]) ->
        Keys = lists:seq(1, 100),
        [ok = py_state:put(K, binary:copy(<<"x">>, 1000)) || K <- Keys],
        Set = fun(Bounds) -> {ok, Info} = py:call(Node, erlang, state_cache, [], #{kwargs => Bounds}), Info end,
        #{<<"entries">> := 0} = Set(#{max_entries => 0}),
        ?assertEqual({0, 100}, call(Node, hits, [Keys])),
        ?assertEqual({0, 100}, call(Node, hits, [Keys])),
        #{<<"entries">> := 0, <<"bytes">> := 0} = Set(#{max_entries => 10}),
        ?assertEqual({0, 100}, call(Node, hits, [Keys])),
        #{<<"entries">> := 10, <<"bytes">> := Bytes} = Set(#{}),
        ?assert(Bytes > 10_000 andalso Bytes < 15_000),
        ?assertEqual({10, 0}, call(Node, hits, [lists:seq(91, 100)])),
        #{<<"entries">> := 4} = Set(#{max_entries => 10_000, max_bytes => 6000}),
        ?assertEqual({0, 100}, call(Node, hits, [Keys])),
        #{<<"entries">> := 4} = Set(#{max_bytes => 67_108_864}),
        ?assertEqual({4, 96}, call(Node, hits, [lists:reverse(Keys)])),
        ?assertEqual({100, 0}, call(Node, hits, [Keys]))
    end).

keys_and_values_are_what_erlang_takes_them_for(Config) ->
    run(Config, fun([Node, _]) ->
        ?assertEqual([0, 1, 2, 3, 4, 5, 6], call(Node, distinct, [])),
        ?assertEqual([], py_state:keys() -- [1, 1.0, true, <<"a">>, a, {1}, [1]]),
        ?assertMatch({ok, #{entries := 7}}, py_state:info()),
        ?assertEqual([0, 0, 1, 1, 2, 2], call(Node, aliases, [])),
        % Each reader has a list of his own, and nobody changes the cache.
        ok = py_state:put(<<"list">>, [1, [2]]),
        ?assertEqual([1, [2]], call(Node, mutate, [<<"list">>]))
    end).

%% --- Many at once ---------------------------------------------------------------------------------------

everybody_adds_to_one_number_and_the_sum_is_right(Config) ->
    run(Config, fun(Nodes) ->
        ok = py_state:put(<<"cas">>, 0),
        ok = py_state:put(<<"incr">>, 0),
        {Threads, Each, Processes} = {4, 60, 4},
        Calls = [beside(Node, add, [Threads, Each]) || Node <- Nodes],
        Workers = [spawn_monitor(fun() -> [add_in_erlang() || _ <- lists:seq(1, Each)] end)
                   || _ <- lists:seq(1, Processes)],
        [receive {'DOWN', Ref, process, _, Reason} -> ?assertEqual(normal, Reason) end || {_, Ref} <- Workers],
        [none = result(Call) || Call <- Calls],
        ?assertEqual({ok, Each * (2 * Threads + Processes)}, py_state:get(<<"cas">>)),
        ?assertEqual({ok, Each * (2 * (Threads + 2) + Processes)}, py_state:get(<<"incr">>))
    end).

add_in_erlang() ->
    {ok, _} = py_state:incr(<<"incr">>),
    by_cas().

by_cas() ->
    {ok, Seen} = py_state:get(<<"cas">>),
    case py_state:cas(<<"cas">>, Seen, Seen + 1) of
        ok -> ok;
        {error, {changed, _}} -> by_cas()
    end.

a_node_reads_its_own_writes(Config) ->
    run(Config, fun(Nodes) ->
        Calls = [beside(Node, own_writes, [8, 300, atom_to_binary(Node)]) || Node <- Nodes],
        ?assertEqual([0, 0], [result(Call) || Call <- Calls])
    end).

%% While numbers are counted up as fast as they can be, no thread of a node reads one that is less than
%% what it has read; and when that is over every node reads the last ones at once.
no_read_goes_back_and_none_stays_behind(Config) ->
    run(Config, fun(Nodes) ->
        Keys = [<<"key", ($0 + N)>> || N <- lists:seq(0, 4)],
        [begin
             Calls = [beside(Node, hunt, [Keys, 1.0, 4]) || Node <- Nodes],
             Until = erlang:monotonic_time(millisecond) + 1000,
             Writers = [spawn_monitor(fun() -> count_up(Keys, Until, Pause) end) || _ <- [1, 2]],
             [receive {'DOWN', Ref, process, _, normal} -> ok end || {_, Ref} <- Writers],
             ?assertEqual([[], []], [result(Call) || Call <- Calls]),
             Last = [Value || Key <- Keys, {ok, Value} <- [py_state:get(Key)]],
             [?assertEqual(Last, call(Node, read_all, [Keys])) || Node <- Nodes]
         end || Pause <- [0, 1]]
    end).

count_up(Keys, Until, Pause) ->
    [{ok, _} = py_state:incr(lists:nth(rand:uniform(length(Keys)), Keys)) || _ <- lists:seq(1, 20)],
    timer:sleep(Pause),
    case erlang:monotonic_time(millisecond) < Until of
        true -> count_up(Keys, Until, Pause);
        false -> ok
    end.

%% A stopped node takes nothing from its connection; writes go on meanwhile, and afterwards it is told.
a_busy_store_does_not_wait_for_a_node_that_does_not_read(Config) ->
    Context = sw_e2e:context(Config),
    Node = #{name := Name, program := Program} = sw_e2e:start_node(Context, #{args => ["--import", "shared"]}),
    OsPid = integer_to_list(sw_e2e:os_pid(Program)),
    run(Config, fun(_) ->
        ok = py_node:connect(Name),
        Large = binary:copy(<<"x">>, 1_000_000),
        Watch = beside(Name, watch_slowly, [<<"large">>, self(), 3.0]),
        ok = watching(1),
        ok = py_state:put(<<"k">>, 1),
        1 = call(Name, get, [<<"k">>]),
        [] = os:cmd("kill -STOP " ++ OsPid),
        [ok = py_state:put(<<"large">>, {N, Large}) || N <- lists:seq(1, 20)],
        ok = py_state:put(<<"k">>, 2),
        ?assertEqual({ok, 2}, py_state:get(<<"k">>)),
        ok = py_state:put(<<"large">>, last),
        [] = os:cmd("kill -CONT " ++ OsPid),
        ?assertEqual(2, eventually(fun() -> call(Name, get, [<<"k">>]) end, fun(V) -> V =:= 2 end)),
        ?assertEqual([{<<"large">>, last, false}], result(Watch))
    end),
    ok = sw_e2e:stop_node(Node).

%% --- When something goes ---------------------------------------------------------------------------------

a_lost_connection_empties_the_cache(Config) ->
    Context = sw_e2e:context(Config),
    Node = #{name := Name} = sw_e2e:start_node(Context, #{args => ["--import", "shared"]}),
    Owner = application_beam(Context, [Node]),
    none = sw_e2e:on(Owner, fun() ->
        ok = py_state:put(<<"k">>, held),
        call(Name, read_in_background, [<<"k">>])
    end),
    ok = sw_e2e:eventually(fun() -> sw_e2e:on(Owner, fun() -> call(Name, background, []) end) =:= [held] end),
    ok = sw_e2e:kill_beam(Owner),
    timer:sleep(200),
    Successor = sw_e2e:start_beam(Context),
    ?assertMatch([held, {<<"NoConnection">>, _}, 0],
                 sw_e2e:on(Successor, fun() ->
                     eventually(fun() -> erpc:call(Name, shared, background, []) end, fun(L) -> length(L) =:= 3 end)
                 end)),
    ok = sw_e2e:stop_beam(Successor),
    ok = sw_e2e:stop_node(Node).

a_connection_that_flaps_leaves_nothing_stale(Config) ->
    run(Config, fun([Node, _]) ->
        [begin
             ok = py_state:put(<<"k">>, N),
             _ = [call(Node, get, [<<"k">>]) || _ <- [1, 2]],
             true = erlang:disconnect_node(Node),
             ok = py_state:put(<<"k">>, {after_cut, N}),
             _ = eventually(fun() -> py_node:connect(Node) end, fun(Answer) -> Answer =:= ok end),
             Read = eventually(fun() -> py:call(Node, shared, get, [<<"k">>]) end,
                               fun({ok, _}) -> true; (_) -> false end),
             ?assertEqual({ok, {after_cut, N}}, Read),
             ok = py_state:put(<<"k">>, {later, N}),
             ?assertEqual({later, N}, eventually(fun() -> call(Node, get, [<<"k">>]) end,
                                                 fun(V) -> V =:= {later, N} end))
         end || N <- lists:seq(1, 5)],
        _ = eventually(fun py_state:info/0, fun({ok, #{caches := Caches}}) -> Caches =< 2 end)
    end).

a_beam_without_the_application_has_no_state(Config) ->
    Context = sw_e2e:context(Config),
    Node = #{name := Name} = sw_e2e:start_node(Context, #{args => ["--import", "shared"]}),
    Bare = sw_e2e:start_beam(Context),
    ?assertEqual({<<"ErlangError">>, noproc}, sw_e2e:on(Bare, fun() -> erpc:call(Name, shared, raised, [state_get, 1]) end)),
    ok = sw_e2e:stop_beam(Bare),
    ok = sw_e2e:stop_node(Node).

%% With --processes there is no process to hear of changes.
a_worker_process_reads_uncached(Config) ->
    Context = sw_e2e:context(Config),
    Node = #{name := Name} = sw_e2e:start_node(Context, #{args => ["--import", "shared", "--processes", "1"]}),
    run(Config, fun(_) ->
        ok = py_node:connect(Name),
        [begin
             ok = py_state:put(<<"k">>, N),
             ?assertEqual(N, call(Name, get, [<<"k">>])),
             ?assertEqual(N, call(Name, async_get, [<<"k">>]))
         end || N <- [1, 2]],
        ?assertMatch({<<"RuntimeError">>, _}, call(Name, raised_by_watch, []))
    end),
    ok = sw_e2e:stop_node(Node).

a_node_that_dies_is_forgotten(Config) ->
    Context = sw_e2e:context(Config),
    Node = #{name := Name} = sw_e2e:start_node(Context, #{args => ["--import", "shared"]}),
    run(Config, fun(_) ->
        {ok, #{caches := Before, cached := CachedBefore}} = py_state:info(),
        ok = py_node:connect(Name),
        Keys = lists:seq(1, 500),
        [ok = py_state:put(K, K) || K <- Keys],
        {0, 500} = call(Name, hits, [Keys]),
        {ok, #{caches := More, cached := Cached}} = py_state:info(),
        ?assertEqual({Before + 1, CachedBefore + 500}, {More, Cached})
    end),
    ok = sw_e2e:stop_node(Node),
    run(Config, fun(_) ->
        _ = eventually(fun py_state:info/0, fun({ok, #{cached := Cached}}) -> Cached < 500 end)
    end).

%% --- Waiting ---------------------------------------------------------------------------------------------

%% What it comes to, as soon as that is good; after five seconds as it is.
eventually(Look, IsGood) -> eventually(Look, IsGood, erlang:monotonic_time(millisecond) + 5000).

eventually(Look, IsGood, Deadline) ->
    Seen = Look(),
    case IsGood(Seen) orelse erlang:monotonic_time(millisecond) > Deadline of
        true -> Seen;
        false -> timer:sleep(5), eventually(Look, IsGood, Deadline)
    end.
