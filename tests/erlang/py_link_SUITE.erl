%% How the link carries requests: batches, order, bound, timeouts, cancellation. Against a fake node.
-module(py_link_SUITE).

-include_lib("stdlib/include/assert.hrl").

-export([all/0, suite/0, init_per_suite/1, end_per_suite/1, init_per_testcase/2,
         end_per_testcase/2]).
-export([an_idle_link_sends_each_call_at_once_in_a_message_of_its_own/1,
         calls_that_wait_together_travel_in_one_message/1,
         a_message_holds_a_bounded_number_of_requests/1,
         large_requests_do_not_add_up_to_a_huge_message/1,
         a_large_call_does_not_block_the_link/1,
         a_large_call_is_cancelled_like_any_other/1,
         casts_of_one_process_arrive_in_order/1,
         casts_and_calls_of_one_process_keep_their_order/1,
         a_call_that_times_out_leaves_nothing_in_the_mailbox/1,
         a_call_that_times_out_is_cancelled_at_the_node/1,
         a_call_is_cancelled_within_100_ms_of_its_callers_death/1,
         a_spawned_call_is_cancelled_within_100_ms_of_its_callers_death/1,
         quick_calls_monitor_no_caller/1,
         more_calls_than_the_bound_are_refused_at_once/1,
         more_casts_than_the_bound_are_refused_at_once/1,
         finished_calls_make_room/1,
         numbers_lost_with_killed_callers_are_recovered/1,
         an_idle_link_sleeps/1,
         a_link_with_long_calls_only_sleeps_too/1,
         a_killed_link_fails_its_callers_and_is_replaced/1,
         strange_messages_do_no_harm/1]).

suite() -> [{timetrap, {seconds, 120}}].

all() ->
    [an_idle_link_sends_each_call_at_once_in_a_message_of_its_own,
     calls_that_wait_together_travel_in_one_message,
     a_message_holds_a_bounded_number_of_requests,
     large_requests_do_not_add_up_to_a_huge_message,
     a_large_call_does_not_block_the_link,
     a_large_call_is_cancelled_like_any_other,
     casts_of_one_process_arrive_in_order,
     casts_and_calls_of_one_process_keep_their_order,
     a_call_that_times_out_leaves_nothing_in_the_mailbox,
     a_call_that_times_out_is_cancelled_at_the_node,
     a_call_is_cancelled_within_100_ms_of_its_callers_death,
     a_spawned_call_is_cancelled_within_100_ms_of_its_callers_death,
     quick_calls_monitor_no_caller,
     more_calls_than_the_bound_are_refused_at_once,
     more_casts_than_the_bound_are_refused_at_once,
     finished_calls_make_room,
     numbers_lost_with_killed_callers_are_recovered,
     an_idle_link_sleeps,
     a_link_with_long_calls_only_sleeps_too,
     a_killed_link_fails_its_callers_and_is_replaced,
     strange_messages_do_no_harm].

init_per_suite(Config) ->
    Epmd = cluster:start_epmd(),
    Client = cluster:start_client(Epmd),
    Fake = cluster:start_fake(Epmd),
    [{epmd, Epmd}, {client, Client}, {fake, Fake}, {target, maps:get(node, Fake)} | Config].

end_per_suite(Config) ->
    ok = cluster:stop(proplists:get_value(client, Config)),
    ok = cluster:stop(proplists:get_value(fake, Config)),
    ok = cluster:stop_epmd(proplists:get_value(epmd, Config)).

init_per_testcase(_, Config) ->
    ok = fake(Config, fun() -> fake_node:start(#{}) end),
    Node = target(Config),
    client(Config, fun() ->
        {ok, _} = application:ensure_all_started(sidewinder),
        {ok, _} = py_node:start(Node, #{max_in_flight => 2000}),
        ok = py_node:connect(Node)
    end),
    Config.

end_per_testcase(_, Config) ->
    ok = client(Config, fun() -> application:stop(sidewinder) end),
    ok = fake(Config, fun fake_node:stop/0).

client(Config, Function) -> cluster:on(proplists:get_value(client, Config), Function).

fake(Config, Function) -> cluster:on(proplists:get_value(fake, Config), Function).

target(Config) -> proplists:get_value(target, Config).

%% --- Batches and order ----------------------------------------------------------------------------

an_idle_link_sends_each_call_at_once_in_a_message_of_its_own(Config) ->
    Node = target(Config),
    {Micros, _} = client(Config, fun() ->
        timer:tc(fun() -> [{ok, [N]} = py:call(Node, m, echo, [N]) || N <- lists:seq(1, 100)] end)
    end),
    Batches = fake(Config, fun fake_node:batches/0),
    ?assertMatch([[{call, _, m, echo, [1]}], [{call, _, m, echo, [2]}] | _], Batches),
    ?assertEqual(100, length(Batches)),
    ?assert(Micros < 1000000).

calls_that_wait_together_travel_in_one_message(Config) ->
    Node = target(Config),
    Results = client(Config, fun() ->
        Link = link_of(Node),
        ok = sys:suspend(Link),
        Callers = [spawn_caller(fun() -> py:call(Node, m, echo, [N]) end)
                   || N <- lists:seq(1, 200)],
        ok = await_queue(Link, 200),
        ok = sys:resume(Link),
        [result_of(Caller) || Caller <- Callers]
    end),
    ?assertEqual([{ok, [N]} || N <- lists:seq(1, 200)], Results),
    ?assertEqual([200], [length(Batch) || Batch <- fake(Config, fun fake_node:batches/0)]).

a_message_holds_a_bounded_number_of_requests(Config) ->
    Node = target(Config),
    client(Config, fun() ->
        ok = sys:suspend(link_of(Node)),
        [ok = py:cast(Node, m, f, [N]) || N <- lists:seq(1, 1200)],
        ok = sys:resume(link_of(Node))
    end),
    ok = await_casts(Config, 1200),
    ?assertEqual([512, 512, 176],
                 [length(Batch) || Batch <- fake(Config, fun fake_node:batches/0)]).

large_requests_do_not_add_up_to_a_huge_message(Config) ->
    Node = target(Config),
    Large = binary:copy(<<0>>, 100000),
    client(Config, fun() ->
        ok = sys:suspend(link_of(Node)),
        [ok = py:cast(Node, m, f, [N, #{nested => Large}]) || N <- lists:seq(1, 20)],
        ok = sys:resume(link_of(Node))
    end),
    ok = await_casts(Config, 20),
    Sizes = [erlang:external_size(Batch) || Batch <- fake(Config, fun fake_node:batches/0)],
    ?assertEqual([], [Size || Size <- Sizes, Size > 300000]),
    ?assert(length(Sizes) < 20),
    ?assertEqual(lists:seq(1, 20),
                 [N || {cast, m, f, [N, _], []} <- fake(Config, fun fake_node:casts/0)]).

%% The node's whole BEAM is stopped meanwhile, so that whoever sends the large call is suspended.
a_large_call_does_not_block_the_link(Config) ->
    Node = target(Config),
    OsPid = fake(Config, fun os:getpid/0),
    Large = binary:copy(<<1>>, 20000000),
    [] = os:cmd("kill -STOP " ++ OsPid),
    {Caller, Responsive} = try
        client(Config, fun() ->
            Reporter = spawn(fun() ->
                Result = py:call(Node, m, echo, [Large]),
                receive {report, Pid} -> Pid ! {self(), Result =:= {ok, [Large]}} end
            end),
            ok = cluster:eventually(fun() -> in_flight(Node) =:= 1 end),
            timer:sleep(200),
            {Reporter, responsive(link_of(Node))}
        end)
    after
        os:cmd("kill -CONT " ++ OsPid)
    end,
    ?assert(Responsive),
    {Equal, Carriers} = client(Config, fun() ->
        Caller ! {report, self()},
        Equal = result_of(Caller),
        ok = cluster:eventually(fun() -> carriers() =:= [] end),
        {Equal, carriers()}
    end),
    ?assertEqual({true, []}, {Equal, Carriers}).

a_large_call_is_cancelled_like_any_other(Config) ->
    Node = target(Config),
    ok = client(Config, fun() ->
        Large = binary:copy(<<1>>, 1000000),
        {error, timeout} = py:call(Node, m, hang, [Large], #{timeout => 100}),
        ok = cluster:eventually(fun() ->
            length(erpc:call(Node, fake_node, cancelled, [])) =:= 1
        end),
        Caller = spawn(fun() -> py:call(Node, m, hang, [Large], #{timeout => infinity}) end),
        ok = cluster:eventually(fun() -> in_flight(Node) =:= 1 end),
        exit(Caller, kill),
        ok = cluster:eventually(fun() ->
            length(erpc:call(Node, fake_node, cancelled, [])) =:= 2
        end),
        cluster:eventually(fun() -> {carriers(), in_flight(Node)} =:= {[], 0} end)
    end).

casts_of_one_process_arrive_in_order(Config) ->
    Node = target(Config),
    client(Config, fun() -> [cast_until_taken(Node, N) || N <- lists:seq(1, 20000)] end),
    ok = await_casts(Config, 20000),
    Numbers = [N || {cast, m, f, [N], []} <- fake(Config, fun fake_node:casts/0)],
    ?assert(Numbers =:= lists:seq(1, 20000)).

casts_and_calls_of_one_process_keep_their_order(Config) ->
    Node = target(Config),
    client(Config, fun() ->
        [begin
             ok = py:cast(Node, m, f, [N]),
             {ok, [N]} = py:call(Node, m, echo, [N])
         end || N <- lists:seq(1, 100)]
    end),
    Items = lists:append(fake(Config, fun fake_node:batches/0)),
    Numbers = [case Item of {cast, _, _, [N], _} -> N; {call, _, _, _, [N]} -> N end
               || Item <- Items],
    ?assertEqual(lists:append([[N, N] || N <- lists:seq(1, 100)]), Numbers),
    ?assertEqual([cast, call], lists:sublist([element(1, Item) || Item <- Items], 2)).

%% --- Timeouts and dead callers ----------------------------------------------------------------------

a_call_that_times_out_leaves_nothing_in_the_mailbox(Config) ->
    Node = target(Config),
    {Results, Messages, Monitors} = client(Config, fun() ->
        Results = [py:call(Node, m, late, [50], #{timeout => Timeout})
                   || Timeout <- [0, 1, 10, 30]],
        {ok, late} = py:call(Node, m, late, [100]),
        {Results, process_info(self(), messages), process_info(self(), monitors)}
    end),
    ?assertEqual(lists:duplicate(4, {error, timeout}), Results),
    ?assertEqual({messages, []}, Messages),
    ?assertEqual({monitors, []}, Monitors).

a_call_that_times_out_is_cancelled_at_the_node(Config) ->
    Node = target(Config),
    ok = client(Config, fun() ->
        {error, timeout} = py:call(Node, m, hang, [], #{timeout => 10}),
        cluster:eventually(fun() -> length(erpc:call(Node, fake_node, cancelled, [])) =:= 1 end)
    end),
    [{call, Id, m, hang, []}, {cancel, Cancelled}] =
        lists:append(fake(Config, fun fake_node:batches/0)),
    ?assertEqual(Id, Cancelled).

a_call_is_cancelled_within_100_ms_of_its_callers_death(Config) ->
    Node = target(Config),
    Call = fun() -> py:call(Node, m, hang, [], #{timeout => infinity}) end,
    Delays = [best_cancel_delay(Config, Call, Age) || Age <- [0, 10, 30, 60, 200]],
    ?assertEqual([], [Delay || Delay <- Delays, Delay >= 100]).

a_spawned_call_is_cancelled_within_100_ms_of_its_callers_death(Config) ->
    Node = target(Config),
    Call = fun() -> py:await(py:spawn_call(Node, m, hang, []), infinity) end,
    Delays = [best_cancel_delay(Config, Call, Age) || Age <- [0, 60]],
    ?assertEqual([], [Delay || Delay <- Delays, Delay >= 100]).

%% The best of three, since the machine may be busy with something else just then.
best_cancel_delay(Config, Call, Age) ->
    lists:min([cancel_delay(Config, Call, Age) || _ <- [1, 2, 3]]).

%% Milliseconds from the death of a caller whose call was Age ms old to the cancellation's arrival.
cancel_delay(Config, Call, Age) ->
    Before = length(fake(Config, fun fake_node:cancelled/0)),
    Killed = client(Config, fun() ->
        {Pid, Monitor} = spawn_monitor(Call),
        timer:sleep(Age + 2),
        exit(Pid, kill),
        receive {'DOWN', Monitor, process, Pid, killed} -> erlang:system_time(millisecond) end
    end),
    ok = await_cancelled(Config, Before + 1),
    {_Id, Cancelled} = lists:last(fake(Config, fun fake_node:cancelled/0)),
    Cancelled - Killed.

quick_calls_monitor_no_caller(Config) ->
    Node = target(Config),
    Monitored = client(Config, fun() ->
        [begin
             {ok, [N]} = py:call(Node, m, echo, [N]),
             {monitors, Monitors} = process_info(link_of(Node), monitors),
             Monitors
         end || N <- lists:seq(1, 50)]
    end),
    ?assertEqual([], lists:usort(lists:append(Monitored)) -- [{process, {py, Node}}]).

%% --- The bound --------------------------------------------------------------------------------------

more_calls_than_the_bound_are_refused_at_once(Config) ->
    Node = target(Config),
    {Micros, Results} = client(Config, fun() ->
        Refs = [py:spawn_call(Node, m, hang, []) || _ <- lists:seq(1, 2000)],
        timer:tc(fun() ->
            Extra = py:await(py:spawn_call(Node, m, echo, [])),
            [length(Refs), Extra, py:call(Node, m, echo, []), py:cast(Node, m, f, [])]
        end)
    end),
    ?assertEqual([2000 | lists:duplicate(3, {error, overloaded})], Results),
    ?assert(Micros < 1000000).

more_casts_than_the_bound_are_refused_at_once(Config) ->
    Node = target(Config),
    Results = client(Config, fun() ->
        ok = sys:suspend(link_of(Node)),
        Results = [py:cast(Node, m, f, [N]) || N <- lists:seq(1, 2100)],
        ok = sys:resume(link_of(Node)),
        Results
    end),
    ?assertEqual({2000, 100}, {length([ok || ok <- Results]),
                               length([no || {error, overloaded} <- Results])}).

finished_calls_make_room(Config) ->
    Node = target(Config),
    Results = client(Config, fun() ->
        Hanging = spawn(fun() ->
            [py:spawn_call(Node, m, hang, []) || _ <- lists:seq(1, 2000)],
            timer:sleep(infinity)
        end),
        ok = cluster:eventually(fun() -> in_flight(Node) =:= 2000 end),
        {error, overloaded} = py:call(Node, m, echo, []),
        exit(Hanging, kill),
        ok = cluster:eventually(fun() -> py:call(Node, m, echo, []) =:= {ok, []} end),
        lists:usort([py:call(Node, m, echo, [1]) || _ <- lists:seq(1, 5000)])
    end),
    ?assertEqual([{ok, [1]}], Results).

numbers_lost_with_killed_callers_are_recovered(Config) ->
    Node = target(Config),
    Result = client(Config, fun() ->
        {_, _, Counters, _} = py_link:find(Node),
        ok = atomics:add(Counters, 1, 1900),
        {ok, []} = py:call(Node, m, echo, []),
        cluster:eventually(fun() -> in_flight(Node) =:= 0 end)
    end),
    ?assertEqual(ok, Result).

%% --- Rest, ends and strangers -----------------------------------------------------------------------

an_idle_link_sleeps(Config) ->
    Node = target(Config),
    {Before, After} = client(Config, fun() ->
        {ok, []} = py:call(Node, m, echo, []),
        sleep_of(link_of(Node))
    end),
    ?assertEqual(Before, After).

a_link_with_long_calls_only_sleeps_too(Config) ->
    Node = target(Config),
    {Before, After} = client(Config, fun() ->
        _ = py:spawn_call(Node, m, hang, []),
        timer:sleep(200),
        {reductions, Before} = process_info(link_of(Node), reductions),
        timer:sleep(300),
        {reductions, After} = process_info(link_of(Node), reductions),
        {Before, After}
    end),
    ?assertEqual(Before, After).

sleep_of(Link) ->
    ok = cluster:eventually(fun() ->
        process_info(Link, current_function) =:= {current_function, {erlang, hibernate, 3}}
    end),
    {reductions, Before} = process_info(Link, reductions),
    timer:sleep(300),
    {reductions, After} = process_info(Link, reductions),
    {Before, After}.

a_killed_link_fails_its_callers_and_is_replaced(Config) ->
    Node = target(Config),
    {Result, Awaited} = client(Config, fun() ->
        Caller = spawn_caller(fun() -> py:call(Node, m, hang, []) end),
        Ref = py:spawn_call(Node, m, hang, []),
        ok = cluster:eventually(fun() -> in_flight(Node) =:= 2 end),
        exit(link_of(Node), kill),
        Awaited = py:await(Ref),
        ok = cluster:eventually(fun() -> py:call(Node, m, echo, []) =:= {ok, []} end),
        {result_of(Caller), Awaited}
    end),
    ?assertEqual({error, {down, killed}}, Result),
    ?assertEqual({error, {down, killed}}, Awaited).

strange_messages_do_no_harm(Config) ->
    Node = target(Config),
    Result = client(Config, fun() ->
        Link = link_of(Node),
        [Link ! Message || Message <- [hello, {'$py_replies', [{123456789, {ok, 1}}]},
                                       {'$cancel', 123456789}, {'$forget', make_ref()},
                                       {'EXIT', self(), normal},
                                       {timeout, make_ref(), sweep},
                                       {'DOWN', make_ref(), process, self(), noproc}]],
        {py:call(Node, m, echo, [1]), Link =:= link_of(Node)}
    end),
    ?assertEqual({{ok, [1]}, true}, Result).

%% --- Helpers, run in the client -----------------------------------------------------------------------

link_of(Node) ->
    {Node, Link, _, _} = py_link:find(Node),
    Link.

in_flight(Node) ->
    {_, _, Counters, _} = py_link:find(Node),
    atomics:get(Counters, 1) - atomics:get(Counters, 2).

responsive(Link) ->
    try sys:get_state(Link, 1000) of
        _ -> true
    catch
        exit:{timeout, _} -> false
    end.

carriers() ->
    [Pid || Pid <- processes(),
            process_info(Pid, initial_call) =:= {initial_call, {py_link, carry, 3}}].

spawn_caller(Function) ->
    Self = self(),
    spawn(fun() -> Self ! {self(), Function()} end).

result_of(Caller) ->
    receive {Caller, Result} -> Result end.

await_queue(Link, Length) ->
    cluster:eventually(fun() ->
        process_info(Link, message_queue_len) =:= {message_queue_len, Length}
    end).

cast_until_taken(Node, N) ->
    case py:cast(Node, m, f, [N]) of
        ok -> ok;
        {error, overloaded} -> erlang:yield(), cast_until_taken(Node, N)
    end.

await_casts(Config, Count) ->
    cluster:eventually(fun() -> length(fake(Config, fun fake_node:casts/0)) =:= Count end).

await_cancelled(Config, Count) ->
    cluster:eventually(fun() -> length(fake(Config, fun fake_node:cancelled/0)) =:= Count end).
