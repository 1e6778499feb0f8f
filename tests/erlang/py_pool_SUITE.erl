%% Pools: who is a member, where a call goes, and what follows when a node refuses it or is lost.
%% Against three fake nodes.
-module(py_pool_SUITE).

-include_lib("stdlib/include/assert.hrl").
-include_lib("sidewinder/src/py_pool.hrl").

-export([all/0, suite/0, init_per_suite/1, end_per_suite/1, init_per_testcase/2, end_per_testcase/2]).
-compile([export_all, nowarn_export_all]).

suite() -> [{timetrap, {seconds, 120}}].

all() ->
    [the_first_call_waits_for_a_member_to_be_up,
     round_robin_takes_the_members_in_turn,
     the_least_loaded_member_is_taken_and_equals_take_turns,
     what_others_ask_of_a_node_counts_as_its_load,
     a_key_leads_to_the_same_node_from_every_beam,
     keys_spread_evenly,
     the_loss_of_a_node_moves_its_keys_alone_and_its_return_brings_them_back,
     hashed_routing_without_a_key_keeps_a_process_at_its_node,
     a_large_pool_asks_all_of_its_members_though_never_all_at_once,
     an_overloaded_node_is_passed_over,
     a_full_link_is_passed_over,
     when_all_are_overloaded_the_call_is,
     a_node_that_drains_is_passed_over_and_taken_out_until_it_is_back,
     a_node_that_says_it_drains_is_asked_nothing_more,
     an_event_of_a_node_that_is_not_known_changes_nothing,
     a_call_in_flight_on_a_lost_node_is_not_run_again,
     an_idempotent_call_is_run_again_on_another_node,
     an_idempotent_call_is_run_again_so_often_and_no_more,
     an_idempotent_call_that_was_lost_says_so_when_nobody_else_takes_it,
     a_call_takes_no_longer_than_its_timeout_wherever_it_goes,
     without_a_member_that_is_up_a_call_says_so_at_once,
     an_answer_of_python_is_the_callers_whatever_it_says,
     casts_evals_and_questions_about_a_node_go_to_a_member,
     exec_is_refused_since_what_it_defines_lives_on_one_node,
     a_spawned_call_moves_on_like_any_other,
     a_spawned_call_is_cancelled_with_its_caller,
     a_spawned_call_that_is_given_up_is_cancelled,
     callers_that_are_killed_leave_no_count_behind,
     calls_that_a_node_lost_do_not_count_when_it_is_back,
     members_are_added_and_removed,
     a_member_that_is_removed_finishes_its_calls,
     a_function_says_who_is_a_member,
     a_function_that_fails_changes_nothing,
     hidden_nodes_of_a_pattern_are_members,
     a_hidden_node_that_stays_away_is_forgotten,
     two_pools_share_the_connection_to_a_node,
     a_pool_that_stops_ends_its_connections_but_not_those_of_others,
     a_connection_that_is_stopped_by_hand_comes_back,
     a_member_that_is_down_is_dialled_at_least_once_a_second,
     the_default_node_can_be_a_pool,
     configured_pools_are_started,
     a_pool_can_live_under_a_users_supervisor,
     info_counts_calls_and_failures,
     events_tell_what_happens,
     events_go_to_telemetry_where_it_is_loaded,
     a_killed_pool_goes_on,
     nonsense_fails_at_the_door,
     a_name_that_is_no_pool_is_told_so,
     the_end_of_the_application_leaves_no_pool].

init_per_suite(Config) ->
    Epmd = cluster:start_epmd(),
    Client = cluster:start_client(Epmd),
    Fakes = lists:sort(fun(#{node := A}, #{node := B}) -> A =< B end,
                       [cluster:start_fake(Epmd) || _ <- lists:seq(1, 3)]),
    [{epmd, Epmd}, {client, Client}, {fakes, Fakes} | Config].

end_per_suite(Config) ->
    [ok = cluster:stop(Beam) || Beam <- [proplists:get_value(client, Config) | fakes(Config)]],
    ok = cluster:stop_epmd(proplists:get_value(epmd, Config)).

init_per_testcase(_, Config) ->
    [ok = start_fake(Fake, #{}) || Fake <- fakes(Config)],
    client(Config, fun() -> {ok, _} = application:ensure_all_started(sidewinder) end),
    Config.

end_per_testcase(_, Config) ->
    client(Config, fun() ->
        _ = application:stop(sidewinder),
        [application:unset_env(sidewinder, Key) || Key <- [pools, default_node, event_handler]],
        [erlang:disconnect_node(Node) || Node <- nodes(hidden)]
    end),
    [ok = stop_fake(Fake) || Fake <- fakes(Config)],
    Config.

fakes(Config) -> proplists:get_value(fakes, Config).

nodes_of(Config) -> [Node || #{node := Node} <- fakes(Config)].

client(Config, Function) -> cluster:on(proplists:get_value(client, Config), Function).

start_fake(Fake, Options) -> cluster:on(Fake, fun() -> fake_node:start(Options) end).

stop_fake(Fake) ->
    _ = cluster:on(Fake, fun() -> whereis(py) =/= undefined andalso fake_node:stop() end),
    ok.

%% The fake node anew, with another answer to `place`.
refake(Fake, Place) ->
    ok = stop_fake(Fake),
    start_fake(Fake, #{place => Place}).

%% Runs a function in the client with a pool of all three nodes, all of them up.
with_pool(Config, Options, Function) ->
    Nodes = nodes_of(Config),
    client(Config, fun() -> up(Options#{nodes => Nodes}, Nodes), Function(Nodes) end).

%% --- Where calls go ---------------------------------------------------------------------------------

the_first_call_waits_for_a_member_to_be_up(Config) ->
    Nodes = nodes_of(Config),
    {Results, Messages} = client(Config, fun() ->
        {ok, _} = py_pool:start(pool, #{nodes => Nodes}),
        Callers = [spawn_caller(fun place/0) || _ <- lists:seq(1, 20)],
        {[result_of(Caller) || Caller <- Callers], process_info(self(), messages)}
    end),
    ?assertEqual([], [Result || Result <- Results, not lists:member(Result, [{ok, N} || N <- Nodes])]),
    ?assertEqual({messages, []}, Messages).

round_robin_takes_the_members_in_turn(Config) ->
    Places = with_pool(Config, #{routing => round_robin}, fun(_) -> places(9) end),
    [A, B, C | _] = Places,
    ?assertEqual([A, B, C, A, B, C, A, B, C], Places),
    ?assertEqual(nodes_of(Config), lists:sort([A, B, C])).

the_least_loaded_member_is_taken_and_equals_take_turns(Config) ->
    [A, B, C] = nodes_of(Config),
    {Idle, One, Two} = with_pool(Config, #{}, fun(_) ->
        Idle = lists:usort(places(6)),
        _ = [py:spawn_call(B, m, hang, []) || _ <- [1, 2]],
        ok = cluster:eventually(fun() -> in_flight(B) =:= 2 end),
        One = lists:usort(places(20)),
        _ = py:spawn_call(C, m, hang, []),
        ok = cluster:eventually(fun() -> in_flight(C) =:= 1 end),
        {Idle, One, lists:usort(places(20))}
    end),
    ?assertEqual({[A, B, C], [A, C], [A]}, {Idle, One, Two}).

what_others_ask_of_a_node_counts_as_its_load(Config) ->
    [A, B, C] = nodes_of(Config),
    Places = with_pool(Config, #{}, fun(_) ->
        up(other, #{nodes => [A, C]}, [A, C]),
        _ = [py:spawn_call(other, m, hang, []) || _ <- lists:seq(1, 10)],
        ok = cluster:eventually(fun() -> in_flight(A) =:= 5 andalso in_flight(C) =:= 5 end),
        lists:usort(places(5))
    end),
    ?assertEqual([B], Places).

a_key_leads_to_the_same_node_from_every_beam(Config) ->
    Nodes = nodes_of(Config),
    Other = cluster:start_client(proplists:get_value(epmd, Config)),
    Keys = [{user, N} || N <- lists:seq(1, 50)],
    [Here, Again, There] = [cluster:on(Beam, fun() ->
        {ok, _} = application:ensure_all_started(sidewinder),
        up(#{nodes => Nodes, routing => Routing}, Nodes),
        Places = [place(Key) || Key <- Keys],
        Places = [begin {ok, Node} = py_pool:pick(pool, Key), Node end || Key <- Keys],
        ok = py_pool:stop(pool),
        Places
    end) || {Beam, Routing} <- [{proplists:get_value(client, Config), hash},
                                {proplists:get_value(client, Config), least_loaded},
                                {Other, hash}]],
    ok = cluster:stop(Other),
    ?assertEqual(Here, Again),
    ?assertEqual(Here, There).

keys_spread_evenly(Config) ->
    Counts = with_pool(Config, #{}, fun(Nodes) ->
        Picked = [begin {ok, Node} = py_pool:pick(pool, Key), Node end || Key <- lists:seq(1, 6000)],
        [length([N || N <- Picked, N =:= Node]) || Node <- Nodes]
    end),
    [?assert(Count > 1700 andalso Count < 2300, Counts) || Count <- Counts].

the_loss_of_a_node_moves_its_keys_alone_and_its_return_brings_them_back(Config) ->
    [Victim = #{node := Lost} | _] = fakes(Config),
    Keys = lists:seq(1, 300),
    Pick = fun() -> [begin {ok, Node} = py_pool:pick(pool, Key), Node end || Key <- Keys] end,
    Before = with_pool(Config, #{}, fun(_) -> Pick() end),
    ok = stop_fake(Victim),
    During = client(Config, fun() -> await_members(pool, nodes_of(Config) -- [Lost]), Pick() end),
    ok = start_fake(Victim, #{}),
    After = client(Config, fun() -> await_members(pool, nodes_of(Config)), Pick() end),
    ?assert(lists:member(Lost, Before)),
    ?assertEqual([], [Pair || {B, D} = Pair <- lists:zip(Before, During), B =/= Lost, B =/= D]),
    ?assertEqual(2, length(lists:usort(During))),
    ?assertEqual(Before, After).

hashed_routing_without_a_key_keeps_a_process_at_its_node(Config) ->
    Places = with_pool(Config, #{routing => hash}, fun(_) ->
        Callers = [spawn_caller(fun() -> lists:usort(places(5)) end) || _ <- lists:seq(1, 60)],
        [result_of(Caller) || Caller <- Callers]
    end),
    ?assertEqual([], [Several || [_, _ | _] = Several <- Places]),
    ?assertEqual(3, length(lists:usort(Places))).

%% The choice alone, among members that need not exist.
a_large_pool_asks_all_of_its_members_though_never_all_at_once(Config) ->
    Member = fun(N) ->
        Gate = atomics:new(1, []),
        ok = atomics:put(Gate, 1, case N rem 4 of 0 -> ?SHUT; _ -> ?OPEN end),
        #slot{node = list_to_atom("py@" ++ integer_to_list(N)), seed = erlang:phash2(N, 1 bsl 32), gate = Gate,
              load = py_link:new_counters(), counts = counters:new(2, [])}
    end,
    Results = client(Config, fun() ->
        View = #view{name = large, retries = 2, routing = least_loaded, turns = atomics:new(2, []),
                     slots = list_to_tuple([Member(N) || N <- lists:seq(100, 199)])},
        [begin
             ok = persistent_term:put(?VIEW(large), View#view{routing = Routing}),
             Picked = [begin {ok, Node} = py_pool:pick(large), Node end || _ <- lists:seq(1, 7500)],
             Keyed = [begin {ok, Node} = py_pool:pick(large, N), Node end || N <- lists:seq(1, 7500)],
             true = persistent_term:erase(?VIEW(large)),
             {counted(Picked), counted(Keyed)}
         end || Routing <- [least_loaded, round_robin]]
    end),
    [begin
         ?assertEqual(75, length(Counts)),
         ?assert(lists:min(Counts) > 40 andalso lists:max(Counts) < 200, Counts)
     end || {Picked, Keyed} <- Results, Counts <- [Picked, Keyed]].

counted(Things) ->
    maps:values(lists:foldl(fun(Thing, Counts) -> maps:update_with(Thing, fun(N) -> N + 1 end, 1, Counts) end,
                            #{}, Things)).

%% --- Refusals ---------------------------------------------------------------------------------------

an_overloaded_node_is_passed_over(Config) ->
    [A, B, C] = nodes_of(Config),
    ok = refake(hd(fakes(Config)), {error, overloaded}),
    {Places, Info} = with_pool(Config, #{routing => round_robin}, fun(_) -> {places(30), info()} end),
    ?assertEqual([B, C], lists:usort(Places)),
    ?assertMatch(#{A := #{state := up, calls := 10, failures := 10}}, Info),
    ?assertMatch(#{B := #{calls := 15, failures := 0}, C := #{calls := 15, failures := 0}}, Info).

a_full_link_is_passed_over(Config) ->
    [A, B, C] = nodes_of(Config),
    Places = with_pool(Config, #{routing => round_robin, max_in_flight => 2}, fun(_) ->
        _ = [py:spawn_call(A, m, hang, []) || _ <- [1, 2]],
        ok = cluster:eventually(fun() -> in_flight(A) =:= 2 end),
        places(9)
    end),
    ?assertEqual([B, C], lists:usort(Places)).

when_all_are_overloaded_the_call_is(Config) ->
    [ok = refake(Fake, {error, overloaded}) || Fake <- fakes(Config)],
    {Results, Info} = with_pool(Config, #{}, fun(_) ->
        {[place(), py:await(py:spawn_call(pool, m, place, [])),
          py:call(pool, m, place, [], #{idempotent => true, key => 1})], info()}
    end),
    ?assertEqual([{error, overloaded}], lists:usort(Results)),
    ?assertEqual([{3, 3}], lists:usort([{C, F} || #{calls := C, failures := F} <- maps:values(Info)])).

a_node_that_drains_is_passed_over_and_taken_out_until_it_is_back(Config) ->
    [Drains = #{node := A} | _] = fakes(Config),
    [_, B, C] = nodes_of(Config),
    ok = refake(Drains, {error, draining}),
    {Places, Asked} = with_pool(Config, #{routing => round_robin}, fun(_) ->
        Places = places(6),
        ok = cluster:eventually(fun() -> py_pool:members(pool) =:= [B, C] end),
        #{A := #{state := draining, calls := Asked}} = info(),
        More = places(10),
        #{A := #{calls := Asked}} = info(),
        {Places ++ More, Asked}
    end),
    ?assertEqual([B, C], lists:usort(Places)),
    ?assert(Asked >= 1),
    ok = refake(Drains, {ok, back}),
    Back = client(Config, fun() -> await_members(pool, [A, B, C]), lists:usort(places(6)) end),
    ?assertEqual(lists:sort([back, B, C]), Back).

a_node_that_says_it_drains_is_asked_nothing_more(Config) ->
    [Drains = #{node := A} | _] = fakes(Config),
    [_, B, C] = nodes_of(Config),
    Running = with_pool(Config, #{}, fun(_) ->
        Key = key_of(A),
        Caller = reporter(fun() -> py:call(pool, m, late, [2000], #{key => Key}) end),
        ok = cluster:eventually(fun() -> in_flight(A) =:= 1 end),
        Caller
    end),
    ok = cluster:on(Drains, fun() -> fake_node:tell(draining) end),
    {Members, Late, Places, Info, Answer} = client(Config, fun() ->
        ok = cluster:eventually(fun() -> py_pool:members(pool) =:= [B, C] end),
        {ok, _} = py_pool:start(late, #{nodes => [A, B]}),    % one that watches the node from now on
        ok = cluster:eventually(fun() -> py_pool:members(late) =:= [B] end),
        {py_pool:members(pool), py_pool:members(late), places(10), info(), reported(Running)}
    end),
    ?assertEqual({[B, C], [B]}, {Members, Late}),
    ?assertEqual([B, C], lists:usort(Places)),
    ?assertMatch(#{A := #{state := draining, calls := 1, failures := 0}}, Info),
    ?assertEqual({ok, late}, Answer),    % what it had accepted it still answers
    ok = refake(Drains, {ok, back}),
    ?assertEqual(lists:sort([back, B, C]),
                 client(Config, fun() -> await_members(pool, [A, B, C]), lists:usort(places(6)) end)).

an_event_of_a_node_that_is_not_known_changes_nothing(Config) ->
    [Fake = #{node := A} | _] = fakes(Config),
    Nodes = nodes_of(Config),
    {Before, Link} = with_pool(Config, #{}, fun(_) -> {py_pool:members(pool), link_of(A)} end),
    ok = cluster:on(Fake, fun() -> fake_node:tell(tomorrow), fake_node:tell({draining, maybe}) end),
    ?assertEqual({Nodes, Link, {ok, []}}, client(Config, fun() ->
        {ok, []} = Echo = py:call(A, m, echo, []),
        _ = sys:get_state(py_link:owner(A)),
        _ = sys:get_state(pool),
        {py_pool:members(pool), link_of(A), Echo}
    end)),
    ?assertEqual(Nodes, Before).

%% --- Losses -----------------------------------------------------------------------------------------

a_call_in_flight_on_a_lost_node_is_not_run_again(Config) ->
    [Victim = #{node := A} | Others] = fakes(Config),
    Caller = with_pool(Config, #{}, fun(_) ->
        Key = key_of(A),
        Caller = reporter(fun() ->
            Ref = py:spawn_call(pool, m, hang, [], #{key => Key}),
            [py:call(pool, m, hang, [], #{key => Key}), py:await(Ref)]
        end),
        ok = cluster:eventually(fun() -> in_flight(A) =:= 2 end),
        Caller
    end),
    ok = stop_fake(Victim),
    ?assertEqual(lists:duplicate(2, {error, {down, A}}), client(Config, fun() -> reported(Caller) end)),
    ?assertEqual([[], []], [cluster:on(Fake, fun fake_node:batches/0) || Fake <- Others]).

an_idempotent_call_is_run_again_on_another_node(Config) ->
    [Victim = #{node := A} | _] = fakes(Config),
    Caller = with_pool(Config, #{}, fun(_) ->
        Options = #{key => key_of(A), idempotent => true, timeout => 60000},
        Caller = reporter(fun() ->
            Ref = py:spawn_call(pool, m, late, [500], Options),
            [py:call(pool, m, late, [500], Options), py:await(Ref)]
        end),
        ok = cluster:eventually(fun() -> in_flight(A) =:= 2 end),
        Caller
    end),
    ok = stop_fake(Victim),
    ?assertEqual([{ok, late}, {ok, late}], client(Config, fun() -> reported(Caller) end)).

an_idempotent_call_is_run_again_so_often_and_no_more(Config) ->
    Fakes = fakes(Config),
    Caller = with_pool(Config, #{retries => 1}, fun(_) ->
        reporter(fun() -> py:call(pool, m, hang, [], #{idempotent => true}) end)
    end),
    First = stop_asked(Config, Fakes),
    Second = #{node := Last} = stop_asked(Config, Fakes -- [First]),
    ?assertEqual({error, {down, Last}}, client(Config, fun() -> reported(Caller) end)),
    [Third] = Fakes -- [First, Second],
    ?assertEqual([], cluster:on(Third, fun fake_node:batches/0)).

%% Stops the node that has a call in flight.
stop_asked(Config, Fakes) ->
    Node = client(Config, fun() ->
        Asked = fun() -> [Node || #{node := Node} <- Fakes, in_flight(Node) > 0] end,
        ok = cluster:eventually(fun() -> length(Asked()) =:= 1 end),
        hd(Asked())
    end),
    [Fake] = [Fake || #{node := Name} = Fake <- Fakes, Name =:= Node],
    ok = stop_fake(Fake),
    Fake.

an_idempotent_call_that_was_lost_says_so_when_nobody_else_takes_it(Config) ->
    [Victim = #{node := A} | Others] = fakes(Config),
    ok = refake(Victim, silent),
    [ok = refake(Fake, {error, overloaded}) || Fake <- Others],
    Caller = with_pool(Config, #{}, fun(_) ->
        Key = key_of(A),
        Caller = reporter(fun() -> py:call(pool, m, place, [], #{key => Key, idempotent => true}) end),
        ok = cluster:eventually(fun() -> in_flight(A) =:= 1 end),
        Caller
    end),
    ok = stop_fake(Victim),
    ?assertEqual({error, {down, A}}, client(Config, fun() -> reported(Caller) end)),
    ?assertMatch([[_], [_]], [cluster:on(Fake, fun fake_node:batches/0) || Fake <- Others]).

a_call_takes_no_longer_than_its_timeout_wherever_it_goes(Config) ->
    [Victim = #{node := A} | _] = fakes(Config),
    Caller = with_pool(Config, #{}, fun(_) ->
        Options = #{key => key_of(A), idempotent => true, timeout => 1000},
        Caller = reporter(fun() -> timer:tc(fun() -> py:call(pool, m, hang, [], Options) end) end),
        ok = cluster:eventually(fun() -> in_flight(A) =:= 1 end),
        Caller
    end),
    ok = timer:sleep(500),
    ok = stop_fake(Victim),
    {Micros, Result} = client(Config, fun() -> reported(Caller) end),
    ?assertEqual({error, timeout}, Result),
    ?assert(Micros >= 1000000, Micros),
    ?assert(Micros < 1450000, Micros).

without_a_member_that_is_up_a_call_says_so_at_once(Config) ->
    [ok = stop_fake(Fake) || Fake <- fakes(Config)],
    Nodes = nodes_of(Config),
    {Micros, Results} = client(Config, fun() ->
        {ok, _} = py_pool:start(pool, #{nodes => Nodes}),
        {ok, _} = py_pool:start(empty, #{}),
        First = place(),
        Ask = fun() ->
            [py:call(empty, m, f, []), py:cast(pool, m, f, []), py:await(py:spawn_call(pool, m, f, [])),
             py:node_info(pool), py_pool:pick(pool), py_pool:pick(pool, key)
             | [place() || _ <- lists:seq(1, 100)]]
        end,
        {Micros, Results} = timer:tc(Ask),
        {Micros, [First | Results]}
    end),
    ?assertEqual([{error, {down, no_members}}], lists:usort(Results)),
    ?assert(Micros < 1000000, Micros).

an_answer_of_python_is_the_callers_whatever_it_says(Config) ->
    Reasons = [cancelled, {not_allowed, {os, system}}, {python, <<"E">>, <<"m">>, <<"t">>},
               {worker_died, gone}, {bad_term, <<"t">>}],
    {Results, Info} = with_pool(Config, #{}, fun(_) ->
        {[py:call(pool, m, result, [{error, Reason}], #{idempotent => true}) || Reason <- Reasons], info()}
    end),
    ?assertEqual([{error, Reason} || Reason <- Reasons], Results),
    ?assertEqual({5, 0}, totals(Info)).

%% --- Everything but call ------------------------------------------------------------------------------

casts_evals_and_questions_about_a_node_go_to_a_member(Config) ->
    [A, _, _] = nodes_of(Config),
    Results = with_pool(Config, #{}, fun(_) ->
        Key = key_of(A),
        ok = py:cast(pool, m, f, [1], #{key => Key}),
        ok = py:cast(pool, m, f, [2], #{key => Key, kwargs => #{k => v}}),
        ok = py:cast(pool, m, f, [3]),
        {ok, {eval, Self, <<"x">>, #{x := 1}}} = py:eval(pool, "x", #{x => 1}),
        {ok, #{python := _}} = py:node_info(pool),
        {ok, []} = py:call(pool, m, echo, []),
        {Self =:= self(), totals(info())}
    end),
    ?assertEqual({true, {5, 0}}, Results),
    Casts = fun() -> cluster:on(hd(fakes(Config)), fun fake_node:casts/0) end,
    ok = cluster:eventually(fun() -> length(Casts()) >= 2 end),
    ?assertMatch([{cast, m, f, [1], []}, {cast, m, f, [2], #{k := v}} | _], Casts()).

exec_is_refused_since_what_it_defines_lives_on_one_node(Config) ->
    Results = with_pool(Config, #{}, fun(_) ->
        {ok, Node} = py_pool:pick(pool),
        {py:exec(pool, "x = 1"), py:exec(pool, "x = 1", #{timeout => 1000}), py:exec(Node, "x = 1")}
    end),
    ?assertMatch({{error, {bad_target, pool}}, {error, {bad_target, pool}}, {ok, {exec, _, <<"x = 1">>}}},
                 Results).

a_spawned_call_moves_on_like_any_other(Config) ->
    [_, B, C] = nodes_of(Config),
    ok = refake(hd(fakes(Config)), {error, overloaded}),
    {Results, Left} = with_pool(Config, #{routing => round_robin}, fun(_) ->
        Refs = [py:spawn_call(pool, m, place, []) || _ <- lists:seq(1, 30)],
        Results = [receive {py_response, Ref, {ok, Place}} -> Place end || Ref <- Refs],
        {Results, spawned()}
    end),
    ?assertEqual([B, C], lists:usort(Results)),
    ?assertEqual(0, Left).

a_spawned_call_is_cancelled_with_its_caller(Config) ->
    [Fake = #{node := A} | _] = fakes(Config),
    Left = with_pool(Config, #{}, fun(_) ->
        Key = key_of(A),
        Caller = spawn(fun() -> _ = py:spawn_call(pool, m, hang, [], #{key => Key}), timer:sleep(infinity) end),
        ok = cluster:eventually(fun() -> in_flight(A) =:= 1 end),
        exit(Caller, kill),
        ok = cluster:eventually(fun() -> in_flight(A) =:= 0 end),
        ok = cluster:eventually(fun() -> spawned() =:= 0 end),
        spawned()
    end),
    ?assertMatch([_], cluster:on(Fake, fun fake_node:cancelled/0)),
    ?assertEqual(0, Left).

a_spawned_call_that_is_given_up_is_cancelled(Config) ->
    [Fake = #{node := A} | _] = fakes(Config),
    Results = with_pool(Config, #{}, fun(_) ->
        Options = #{key => key_of(A)},
        GivenUp = py:await(py:spawn_call(pool, m, hang, [], Options), 50),
        AtOnce = py:await(py:spawn_call(pool, m, hang, [], Options), 0),
        Expired = py:await(py:spawn_call(pool, m, hang, [], Options#{timeout => 50})),
        ok = cluster:eventually(fun() -> in_flight(A) =:= 0 andalso spawned() =:= 0 end),
        {[GivenUp, AtOnce, Expired], process_info(self(), messages)}
    end),
    ?assertEqual({lists:duplicate(3, {error, timeout}), {messages, []}}, Results),
    Cancelled = cluster:on(Fake, fun() -> length(fake_node:cancelled()) end),
    ?assert(Cancelled >= 2, Cancelled).    % the one given up at once may never have been sent

callers_that_are_killed_leave_no_count_behind(Config) ->
    Nodes = nodes_of(Config),
    Left = with_pool(Config, #{}, fun(_) ->
        Round = fun() ->
            Callers = [spawn(fun() -> caller(N) end) || N <- lists:seq(1, 200)],
            ok = timer:sleep(rand:uniform(20)),
            [exit(Caller, kill) || Caller <- Callers]
        end,
        [Round() || _ <- lists:seq(1, 20)],
        Quiet = fun() -> [in_flight(Node) || Node <- Nodes] =:= [0, 0, 0] andalso spawned() =:= 0 end,
        ok = cluster:eventually(Quiet),
        [InFlight || #{in_flight := InFlight} <- maps:values(info())]
    end),
    ?assertEqual([0, 0, 0], Left).

caller(N) when N rem 4 =:= 0 -> py:call(pool, m, hang, []);
caller(N) when N rem 4 =:= 1 -> _ = py:spawn_call(pool, m, hang, []), timer:sleep(infinity);
caller(N) -> _ = py:call(pool, m, late, [1]), caller(N).

calls_that_a_node_lost_do_not_count_when_it_is_back(Config) ->
    [Victim = #{node := A} | _] = fakes(Config),
    Callers = with_pool(Config, #{}, fun(_) ->
        Key = key_of(A),
        Callers = [spawn_caller(fun() -> py:call(pool, m, hang, [], #{key => Key}) end) || _ <- [1, 2, 3]],
        ok = cluster:eventually(fun() -> in_flight(A) =:= 3 end),
        Callers
    end),
    ok = stop_fake(Victim),
    ok = client(Config, fun() -> cluster:eventually(fun() -> not lists:member(A, py_pool:members(pool)) end) end),
    ok = start_fake(Victim, #{}),
    {Alive, Left} = client(Config, fun() ->
        await_members(pool, nodes_of(Config)),
        {[Caller || Caller <- Callers, is_process_alive(Caller)], in_flight(A)}
    end),
    ?assertEqual({[], 0}, {Alive, Left}).

%% --- Who is a member ----------------------------------------------------------------------------------

members_are_added_and_removed(Config) ->
    [A, B, C] = nodes_of(Config),
    Results = client(Config, fun() ->
        up(#{nodes => [A, B]}, [A, B]),
        ok = py_pool:add(pool, C),
        await_members(pool, [A, B, C]),
        ok = py_pool:remove(pool, A),
        Two = {py_pool:members(pool), lists:usort(places(6))},
        Seen = fun() -> #view{slots = Slots} = persistent_term:get(?VIEW(pool)), tuple_size(Slots) end,
        ok = cluster:eventually(fun() -> Seen() =:= 2 end),
        ok = py_pool:add(pool, A),
        await_members(pool, [A, B, C]),
        {Two, lists:usort(places(6))}
    end),
    ?assertEqual({{[B, C], [B, C]}, [A, B, C]}, Results).

a_member_that_is_removed_finishes_its_calls(Config) ->
    [A, B, C] = nodes_of(Config),
    Result = with_pool(Config, #{}, fun(_) ->
        Key = key_of(A),
        Caller = reporter(fun() -> py:call(pool, m, late, [1500], #{key => Key}) end),
        ok = cluster:eventually(fun() -> in_flight(A) =:= 1 end),
        ok = py_pool:remove(pool, A),
        [B, C] = py_pool:members(pool),
        Result = reported(Caller),
        ok = cluster:eventually(fun() -> py_link:owner(A) =:= undefined end),
        Result
    end),
    ?assertEqual({ok, late}, Result).

a_function_says_who_is_a_member(Config) ->
    [A, B, C] = nodes_of(Config),
    Members = client(Config, fun() ->
        ok = persistent_term:put(?MODULE, [A]),
        [begin
             {ok, _} = py_pool:start(pool, #{nodes => Source, interval => 20}),
             {ok, _} = place(),
             First = py_pool:members(pool),
             ok = persistent_term:put(?MODULE, [B, C]),
             await_members(pool, [B, C]),
             ok = persistent_term:put(?MODULE, [A]),
             await_members(pool, [A]),
             ok = py_pool:stop(pool),
             First
         end || Source <- [{?MODULE, listed, []}, fun listed/0]]
    end),
    ?assertEqual([[A], [A]], Members).

listed() -> persistent_term:get(?MODULE).

a_function_that_fails_changes_nothing(Config) ->
    [A, B, _] = nodes_of(Config),
    Members = client(Config, fun() ->
        ok = logger:set_primary_config(level, none),
        Table = ets:new(answers, [public]),
        ets:insert(Table, [{left, 0}, {asked, 0}]),
        Answer = fun() ->
            case ets:update_counter(Table, asked, 1) of
                1 -> [A, B];
                2 -> error(no_dns);
                3 -> [not_a_node];
                _ -> nonsense
            end
        end,
        {ok, _} = py_pool:start(pool, #{nodes => Answer, interval => 10}),
        await_members(pool, [A, B]),
        ok = cluster:eventually(fun() -> ets:lookup_element(Table, asked, 2) > 6 end),
        ok = logger:set_primary_config(level, notice),
        py_pool:members(pool)
    end),
    ?assertEqual([A, B], Members).

hidden_nodes_of_a_pattern_are_members(Config) ->
    [A, B, C] = nodes_of(Config),
    Result = client(Config, fun() ->
        ok = logger:set_primary_config(level, none),
        [Name, Host] = string:split(atom_to_list(A), "@"),
        Exactly = list_to_binary(lists:droplast(Name) ++ "?@" ++ Host),
        {ok, _} = py_pool:start(pool, #{nodes => {hidden, <<"fake_*@127.0.0.?">>}}),
        {ok, _} = py_pool:start(one, #{nodes => {hidden, fun(Node) -> Node =:= B orelse error(unlike) end}}),
        {ok, _} = py_pool:start(few, #{nodes => {hidden, Exactly}}),
        {ok, _} = py_pool:start(none, #{nodes => {hidden, "fake_"}}),
        Empty = place(),
        [true = net_kernel:connect_node(Node) || Node <- [A, B, C]],
        await_members(pool, [A, B, C]),
        await_members(one, [B]),
        ok = cluster:eventually(fun() -> lists:member(A, py_pool:members(few)) end),
        {ok, _} = py_pool:start(later, #{nodes => {hidden, <<"fake*">>}}),
        await_members(later, [A, B, C]),
        ok = logger:set_primary_config(level, notice),
        {Empty, py_pool:members(none), lists:usort(places(9))}
    end),
    ?assertEqual({{error, {down, no_members}}, [], [A, B, C]}, Result).

a_hidden_node_that_stays_away_is_forgotten(Config) ->
    Epmd = proplists:get_value(epmd, Config),
    Victim = #{node := Node} = cluster:start_fake(Epmd),
    ok = start_fake(Victim, #{}),
    Glob = hd(string:split(atom_to_list(Node), "@")) ++ "@*",
    client(Config, fun() ->
        {ok, _} = py_pool:start(pool, #{nodes => {hidden, Glob}, forget => 1500}),
        true = net_kernel:connect_node(Node),
        await_members(pool, [Node]),
        % A connection that is only cut is made again by the pool itself.
        true = erlang:disconnect_node(Node),
        ok = cluster:eventually(fun() -> place() =:= {ok, Node} end)
    end),
    ok = cluster:kill(Victim),
    States = client(Config, fun() ->
        ok = cluster:eventually(fun() -> py_pool:members(pool) =:= [] end),
        [Down] = [State || #{state := State} <- maps:values(info())],
        ok = cluster:eventually(fun() -> info() =:= #{} end),
        ok = cluster:eventually(fun() -> py_link:owner(Node) =:= undefined end),
        Down
    end),
    ?assertEqual(down, States).

%% --- Connections --------------------------------------------------------------------------------------

two_pools_share_the_connection_to_a_node(Config) ->
    [A, B, C] = nodes_of(Config),
    {Children, Shared, Ended} = with_pool(Config, #{}, fun(_) ->
        up(other, #{nodes => [B, C]}, [B, C]),
        Children = length(supervisor:which_children(py_node_sup)),
        Owner = py_link:owner(B),
        ok = py_pool:stop(pool),
        ok = cluster:eventually(fun() -> py_link:owner(A) =:= undefined end),
        Shared = {py_link:owner(B) =:= Owner, py_pool:members(other)},
        ok = py_pool:stop(other),
        ok = cluster:eventually(fun() -> supervisor:which_children(py_node_sup) =:= [] end),
        {Children, Shared, py_pool:which()}
    end),
    ?assertEqual({3, {true, [B, C]}, []}, {Children, Shared, Ended}).

a_pool_that_stops_ends_its_connections_but_not_those_of_others(Config) ->
    [A, B, C] = nodes_of(Config),
    Result = client(Config, fun() ->
        ok = py_node:connect(A),
        up(#{nodes => [A, B, C]}, [A, B, C]),
        ok = py_node:connect(B),
        Before = [py_link:owner(Node) || Node <- [A, B]],
        Caller = reporter(fun() -> py:call(pool, m, late, [300], #{key => key_of(C)}) end),
        ok = cluster:eventually(fun() -> in_flight(C) =:= 1 end),
        ok = py_pool:stop(pool),
        Gone = py:call(pool, m, place, []),
        Late = reported(Caller),
        ok = cluster:eventually(fun() -> py_link:owner(C) =:= undefined end),
        {Gone, Late, [py_link:owner(Node) || Node <- [A, B]] =:= Before, py_pool:stop(pool)}
    end),
    ?assertEqual({{error, {bad_target, pool}}, {ok, late}, true, {error, not_found}}, Result).

a_connection_that_is_stopped_by_hand_comes_back(Config) ->
    [A, B, C] = nodes_of(Config),
    Result = with_pool(Config, #{}, fun(_) ->
        ok = py_node:stop(A),
        ok = cluster:eventually(fun() -> py_pool:members(pool) =:= [B, C] end),
        Two = lists:usort(places(6)),
        await_members(pool, [A, B, C]),
        exit(py_link:owner(B), kill),
        ok = cluster:eventually(fun() -> py_pool:members(pool) =:= [A, C] end),
        await_members(pool, [A, B, C]),
        {Two, lists:usort(places(6))}
    end),
    ?assertEqual({[B, C], [A, B, C]}, Result).

%% With a backoff that doubles up to ten seconds the ninth attempt would come after sixteen at best.
a_member_that_is_down_is_dialled_at_least_once_a_second(Config) ->
    [Fake = #{node := Node} | _] = fakes(Config),
    ok = stop_fake(Fake),
    ok = start_fake(Fake, #{hello => {ok, #{version => 2}}}),
    client(Config, fun() -> {ok, _} = py_pool:start(pool, #{nodes => [Node]}) end),
    Attempts = fun() -> length([hello || {hello, _} <- cluster:on(Fake, fun fake_node:log/0)]) end,
    {Micros, ok} = timer:tc(fun() -> cluster:eventually(fun() -> Attempts() >= 9 end) end),
    ?assert(Micros < 14000000, Micros).

the_default_node_can_be_a_pool(Config) ->
    Nodes = nodes_of(Config),
    Results = client(Config, fun() ->
        ok = application:set_env(sidewinder, default_node, pool),
        up(#{nodes => Nodes, routing => round_robin}, Nodes),
        Places = [begin {ok, Place} = py:call(m, place, []), Place end || _ <- Nodes],
        {lists:sort(Places), py:await(py:spawn_call(m, echo, [1])), py:cast(m, f, []), py:version(),
         py:exec("x = 1")}
    end),
    ?assertEqual({Nodes, {ok, [1]}, ok, {ok, <<"3.11.2">>}, {error, {bad_target, '$default'}}}, Results).

configured_pools_are_started(Config) ->
    Nodes = nodes_of(Config),
    Result = client(Config, fun() ->
        ok = application:stop(sidewinder),
        ok = application:set_env(sidewinder, pools, #{pool => #{nodes => Nodes}, spare => #{}}),
        {ok, _} = application:ensure_all_started(sidewinder),
        {ok, _} = place(),
        Which = py_pool:which(),
        ok = py_pool:stop(spare),
        {Which, py_pool:which()}
    end),
    ?assertEqual({[pool, spare], [pool]}, Result).

a_pool_can_live_under_a_users_supervisor(Config) ->
    Nodes = nodes_of(Config),
    Result = client(Config, fun() ->
        {ok, Supervisor} = supervisor:start_link(cluster, [py_pool:child_spec(pool, #{nodes => Nodes})]),
        Placed = place(),
        unlink(Supervisor),
        Monitor = monitor(process, Supervisor),
        exit(Supervisor, shutdown),
        receive {'DOWN', Monitor, process, _, _} -> ok end,
        {element(1, Placed), place(), py_pool:which()}
    end),
    ?assertEqual({ok, {error, {bad_target, pool}}, []}, Result).

%% --- What is told -------------------------------------------------------------------------------------

info_counts_calls_and_failures(Config) ->
    [A, B, _] = nodes_of(Config),
    ok = stop_fake(lists:last(fakes(Config))),
    {Info, Now} = client(Config, fun() ->
        Nodes = nodes_of(Config),
        {ok, _} = py_pool:start(pool, #{nodes => Nodes}),
        await_members(pool, [A, B]),
        Key = key_of(A),
        {error, timeout} = py:call(pool, m, hang, [], #{key => Key, timeout => 20}),
        [{ok, _} = py:call(pool, m, echo, [], #{key => Key}) || _ <- lists:seq(1, 9)],
        _ = py:spawn_call(pool, m, hang, [], #{key => key_of(B)}),
        ok = cluster:eventually(fun() -> in_flight(B) =:= 1 end),
        {py_pool:info(pool), erlang:system_time(millisecond)}
    end),
    ?assertMatch({ok, #{name := pool, routing := least_loaded,
                        members := [#{state := up, in_flight := 0, calls := 10, failures := 1},
                                    #{state := up, in_flight := 1, calls := 1, failures := 0},
                                    #{state := down, in_flight := 0, calls := 0, reason := noproc}]}}, Info),
    {ok, #{members := [#{since := Since} | _]}} = Info,
    ?assert(Since =< Now andalso Since > Now - 60000).

events_tell_what_happens(Config) ->
    [Victim = #{node := A} | _] = fakes(Config),
    ok = refake(Victim, {error, overloaded}),
    {Listener, Link} = client(Config, fun() ->
        Listener = spawn(fun() -> listen([]) end),
        ok = application:set_env(sidewinder, event_handler, fun
            ([sidewinder, pool, What], #{system_time := _}, #{pool := pool} = About) ->
                Listener ! {What, maps:get(node, About, none), maps:get(reason, About, none)};
            (_, _, _) ->
                ok
        end),
        up(#{nodes => [A]}, [A]),
        _ = sys:get_state(pool),    % what the pool has to tell is told before the caller tells more
        {error, overloaded} = place(),
        {Listener, link_of(A)}
    end),
    ok = refake(Victim, {error, draining}),
    client(Config, fun() ->
        ok = cluster:eventually(fun() -> not lists:member(link_of(A), [Link, undefined]) end),
        await_members(pool, [A]),
        _ = sys:get_state(pool),
        {error, {down, no_members}} = place(),
        ok = py_pool:remove(pool, A)
    end),
    Events = client(Config, fun() -> Listener ! {get, self()}, receive {Listener, Events} -> Events end end),
    ?assertMatch([{joined, A, none}, {up, A, undefined}, {moved, A, overloaded}, {exhausted, none, overloaded},
                  {down, A, _}, {up, A, undefined}, {moved, A, draining}, {exhausted, none, {down, no_members}},
                  {draining, A, undefined}, {left, A, none}],
                 lists:sort(fun(X, Y) -> order(X) =< order(Y) end, Events)).

%% Two processes tell: the pool's and the caller's.
order({draining, _, _}) -> late;
order({left, _, _}) -> later;
order(_) -> early.

listen(Events) ->
    receive
        {get, From} -> From ! {self(), lists:reverse(Events)};
        Event -> listen([Event | Events])
    end.

events_go_to_telemetry_where_it_is_loaded(Config) ->
    [A | _] = nodes_of(Config),
    Events = client(Config, fun() ->
        register(telemetry_test, self()),
        Source = ["-module(telemetry).", "-export([execute/3]).",
                  "execute(Event, Measurements, Metadata) -> telemetry_test ! {Event, Measurements, Metadata}, ok."],
        Forms = [begin {ok, Tokens, _} = erl_scan:string(Line), {ok, Form} = erl_parse:parse_form(Tokens), Form end
                 || Line <- Source],
        {ok, telemetry, Binary} = compile:forms(Forms),
        {module, telemetry} = code:load_binary(telemetry, "telemetry", Binary),
        up(#{nodes => [A]}, [A]),
        Events = [receive {[sidewinder, pool, What], #{system_time := _}, #{pool := pool, node := A}} -> What end
                  || _ <- [1, 2]],
        true = code:delete(telemetry),
        _ = code:purge(telemetry),
        unregister(telemetry_test),
        Events
    end),
    ?assertEqual([joined, up], Events).

%% --- Ends -----------------------------------------------------------------------------------------------

a_killed_pool_goes_on(Config) ->
    [A, B, C] = nodes_of(Config),
    Results = with_pool(Config, #{}, fun(_) ->
        Server = whereis(pool),
        Callers = [spawn_caller(fun() -> [py:call(pool, m, late, [1]) || _ <- lists:seq(1, 200)] end)
                   || _ <- lists:seq(1, 10)],
        exit(Server, kill),
        Results = lists:append([result_of(Caller) || Caller <- Callers]),
        await_members(pool, [A, B, C]),
        {lists:usort(Results), whereis(pool) =/= Server, length(supervisor:which_children(py_node_sup))}
    end),
    ?assertEqual({[{ok, late}], true, 3}, Results).

nonsense_fails_at_the_door(Config) ->
    Attempts = [{'a@b', #{}}, {"pool", #{}}, {undefined, #{}}, {pool, []}, {pool, #{nodes => [a]}},
                {pool, #{nodes => {hidden, 1}}}, {pool, #{routing => random}}, {pool, #{retries => -1}},
                {pool, #{interval => 0}}, {pool, #{colour => red}}],
    {Raised, Options, Which} = client(Config, fun() ->
        Raise = fun(Function) -> try Function() of _ -> no catch error:Reason -> Reason end end,
        {[Raise(fun() -> py_pool:start(Name, Options) end) || {Name, Options} <- Attempts],
         [Raise(fun() -> py:call(pool, m, f, [], Given) end) || Given <- [#{idempotent => yes}, #{keys => 1}]],
         py_pool:which()}
    end),
    ?assertEqual([badarg], lists:usort(Raised ++ Options)),
    ?assertEqual([], Which).

a_name_that_is_no_pool_is_told_so(Config) ->
    Results = client(Config, fun() ->
        {ok, First} = py_pool:start(pool, #{}),
        [py_pool:start(pool, #{}) =:= {error, {already_started, First}},
         py:call(nobody, m, f, []), py:cast(nobody, m, f, []), py:await(py:spawn_call(nobody, m, f, [])),
         py_pool:pick(nobody), py_pool:info(nobody), py_pool:add(nobody, 'a@b'), py_pool:remove(nobody, 'a@b'),
         py_pool:stop(nobody), py_pool:members(nobody)]
    end),
    Bad = {error, {bad_target, nobody}},
    None = {error, not_found},
    ?assertEqual([true, Bad, Bad, Bad, Bad, None, None, None, None, []], Results).

the_end_of_the_application_leaves_no_pool(Config) ->
    [_, _, _] = Nodes = nodes_of(Config),
    Result = with_pool(Config, #{}, fun(_) ->
        Caller = spawn_caller(fun() -> py:await(py:spawn_call(pool, m, hang, [])) end),
        ok = cluster:eventually(fun() -> lists:sum([in_flight(Node) || Node <- Nodes]) =:= 1 end),
        ok = application:stop(sidewinder),
        {error, {down, Lost}} = result_of(Caller),
        {lists:member(Lost, Nodes), py_pool:which(), py_pool:members(pool), place(), whereis(pool),
         py_pool:start(pool, #{}), [Key || {{py_pool, _} = Key, _} <- persistent_term:get()]}
    end),
    ?assertEqual({true, [], [], {error, {bad_target, pool}}, undefined, {error, {down, not_started}}, []}, Result).

%% --- Helpers, run in the client ---------------------------------------------------------------------------

up(Options, Nodes) -> up(pool, Options, Nodes).

up(Name, Options, Nodes) ->
    {ok, _} = py_pool:start(Name, Options),
    await_members(Name, Nodes).

await_members(Name, Nodes) ->
    ok = cluster:eventually(fun() -> py_pool:members(Name) =:= Nodes end).

place() -> py:call(pool, m, place, []).

place(Key) ->
    {ok, Node} = py:call(pool, m, place, [], #{key => Key}),
    Node.

places(Count) -> [begin {ok, Place} = place(), Place end || _ <- lists:seq(1, Count)].

%% A key that leads to the node.
key_of(Node) ->
    hd([Key || Key <- lists:seq(1, 1000), py_pool:pick(pool, Key) =:= {ok, Node}]).

info() ->
    {ok, #{members := Members}} = py_pool:info(pool),
    maps:from_list([{Node, Member} || #{node := Node} = Member <- Members]).

totals(Info) ->
    {lists:sum([Calls || #{calls := Calls} <- maps:values(Info)]),
     lists:sum([Failures || #{failures := Failures} <- maps:values(Info)])}.

in_flight(Node) ->
    case py_link:find(Node) of
        {_, _, Counters, _} -> py_link:in_flight(Counters);
        undefined -> 0
    end.

link_of(Node) ->
    case py_link:find(Node) of
        {_, Link, _, _} -> Link;
        undefined -> undefined
    end.

%% Spawned calls that the table knows.
spawned() -> ets:info(py_pools, size) - length(py_pool:which()).

spawn_caller(Function) ->
    Self = self(),
    spawn(fun() -> Self ! {self(), Function()} end).

result_of(Caller) ->
    receive {Caller, Result} -> Result end.

%% Keeps the function's value until it is asked for.
reporter(Function) ->
    spawn(fun() ->
        Value = Function(),
        receive {report, Pid} -> Pid ! {self(), Value} end
    end).

reported(Reporter) ->
    Reporter ! {report, self()},
    result_of(Reporter).
