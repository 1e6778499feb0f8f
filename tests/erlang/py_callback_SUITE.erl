%% How functions are run for Python: handlers, results, cancellation, ends. The node is a process in a
%% BEAM of its own; the bodies of most tests run in it (see as_node/2), the application in another.
-module(py_callback_SUITE).

-include_lib("stdlib/include/assert.hrl").

-export([all/0, suite/0, init_per_suite/1, end_per_suite/1, init_per_testcase/2,
         end_per_testcase/2]).
-export([a_registered_fun_and_a_function_of_a_module_answer/1,
         an_unknown_function_is_not_registered/1,
         what_a_function_raises_is_told_with_class_reason_and_stack/1,
         a_stack_holds_no_arguments/1,
         a_killed_handler_is_told_at_once/1,
         calls_of_two_threads_run_side_by_side/1,
         calls_of_one_thread_keep_their_order_and_their_process/1,
         a_thousand_coroutines_run_at_once/1,
         threads_that_have_ended_leave_no_more_than_the_pool/1,
         a_coroutine_uses_the_handler_of_a_thread_that_has_ended/1,
         a_handler_with_anything_left_in_it_serves_nobody_else/1,
         a_thread_finds_what_its_functions_left/1,
         a_late_message_does_not_reach_the_next_who_uses_the_handler/1,
         a_cancelled_function_is_killed_and_not_answered/1,
         a_call_that_waits_behind_another_can_be_cancelled/1,
         calls_behind_a_killed_one_are_run/1,
         a_thread_that_ends_amidst_its_call_leaves_a_handler_for_others/1,
         an_idle_thread_whose_handler_died_gets_another/1,
         the_death_of_the_node_kills_what_runs_for_it/1,
         a_lost_connection_ends_the_link_and_is_not_dialled/1,
         a_killed_link_takes_its_handlers_with_it_and_is_replaced/1,
         a_function_that_traps_exits_ends_after_its_link_was_killed/1,
         a_large_result_does_not_pass_through_the_link/1,
         a_large_result_does_not_hold_the_link_up/1,
         more_calls_than_the_bound_are_refused_at_once/1,
         malformed_items_are_ignored/1,
         a_log_item_reaches_logger_with_its_metadata/1,
         log_items_do_no_harm_to_loggers_handlers/1,
         an_idle_link_sends_each_result_at_once_in_a_message_of_its_own/1,
         results_that_wait_together_travel_in_one_message/1,
         a_message_holds_a_bounded_number_of_results/1,
         results_do_not_add_up_to_a_huge_message/1,
         a_second_hello_gets_the_same_link/1,
         a_hello_of_a_successor_replaces_the_link/1,
         a_hello_of_nobody_is_ignored/1,
         a_killed_py_callback_loses_neither_registrations_nor_calls/1,
         nothing_is_left_when_the_application_stops/1]).
-export([gate/1, trapping_gate/1, deaf_gate/1, raise/1, only_atoms/1, leave/1, me/1, zeros/1, log/2]).

suite() -> [{timetrap, {seconds, 120}}].

all() ->
    [a_registered_fun_and_a_function_of_a_module_answer,
     an_unknown_function_is_not_registered,
     what_a_function_raises_is_told_with_class_reason_and_stack,
     a_stack_holds_no_arguments,
     a_killed_handler_is_told_at_once,
     calls_of_two_threads_run_side_by_side,
     calls_of_one_thread_keep_their_order_and_their_process,
     a_thousand_coroutines_run_at_once,
     threads_that_have_ended_leave_no_more_than_the_pool,
     a_coroutine_uses_the_handler_of_a_thread_that_has_ended,
     a_handler_with_anything_left_in_it_serves_nobody_else,
     a_thread_finds_what_its_functions_left,
     a_late_message_does_not_reach_the_next_who_uses_the_handler,
     a_cancelled_function_is_killed_and_not_answered,
     a_call_that_waits_behind_another_can_be_cancelled,
     calls_behind_a_killed_one_are_run,
     a_thread_that_ends_amidst_its_call_leaves_a_handler_for_others,
     an_idle_thread_whose_handler_died_gets_another,
     the_death_of_the_node_kills_what_runs_for_it,
     a_lost_connection_ends_the_link_and_is_not_dialled,
     a_killed_link_takes_its_handlers_with_it_and_is_replaced,
     a_function_that_traps_exits_ends_after_its_link_was_killed,
     a_large_result_does_not_pass_through_the_link,
     a_large_result_does_not_hold_the_link_up,
     more_calls_than_the_bound_are_refused_at_once,
     malformed_items_are_ignored,
     a_log_item_reaches_logger_with_its_metadata,
     log_items_do_no_harm_to_loggers_handlers,
     an_idle_link_sends_each_result_at_once_in_a_message_of_its_own,
     results_that_wait_together_travel_in_one_message,
     a_message_holds_a_bounded_number_of_results,
     results_do_not_add_up_to_a_huge_message,
     a_second_hello_gets_the_same_link,
     a_hello_of_a_successor_replaces_the_link,
     a_hello_of_nobody_is_ignored,
     a_killed_py_callback_loses_neither_registrations_nor_calls,
     nothing_is_left_when_the_application_stops].

init_per_suite(Config) ->
    Epmd = cluster:start_epmd(),
    Client = cluster:start_client(Epmd),
    Fake = cluster:start_fake(Epmd),
    [{epmd, Epmd}, {client, Client}, {fake, Fake} | Config].

end_per_suite(Config) ->
    ok = cluster:stop(proplists:get_value(client, Config)),
    ok = cluster:stop(proplists:get_value(fake, Config)),
    ok = cluster:stop_epmd(proplists:get_value(epmd, Config)).

init_per_testcase(_, Config) ->
    client(Config, fun() ->
        {ok, _} = application:ensure_all_started(sidewinder),
        ok = py:register_function(echo, fun(Args) -> Args end),
        [ok = py:register_function(Name, ?MODULE, Name)
         || Name <- [gate, trapping_gate, deaf_gate, raise, only_atoms, leave, me, zeros]]
    end),
    Config.

end_per_testcase(_, Config) ->
    client(Config, fun() ->
        _ = application:stop(sidewinder),
        application:unset_env(sidewinder, max_callbacks)
    end),
    fake(Config, fun() -> end_node(whereis(py)) end).

client(Config, Function) -> cluster:on(proplists:get_value(client, Config), Function).

fake(Config, Function) -> cluster:on(proplists:get_value(fake, Config), Function).

client_node(Config) -> maps:get(node, proplists:get_value(client, Config)).

%% Runs a body in the fake node, in a process that plays the node's `py` as long as the body lasts.
as_node(Config, Body) ->
    Client = client_node(Config),
    fake(Config, fun() ->
        true = register(py, self()),
        Body(hello(Client, self()))
    end).

%% A body that failed may still be there.
end_node(undefined) ->
    ok;
end_node(Pid) ->
    Monitor = monitor(process, Pid),
    exit(Pid, kill),
    receive {'DOWN', Monitor, process, Pid, _} -> ok end.

%% --- Functions that Python calls, run in the client -------------------------------------------------

%% Tells who runs it, then returns what it is told to.
gate([Tester | _]) ->
    Tester ! {at_gate, self()},
    receive {open, Value} -> Value end.

trapping_gate(Args) ->
    process_flag(trap_exit, true),
    gate(Args).

%% Does not let anybody know of the exits it heard of.
deaf_gate(Args) ->
    Value = trapping_gate(Args),
    receive {'EXIT', _, _} -> Value end.

raise([error, Reason]) -> error(Reason);
raise([exit, Reason]) -> exit(Reason);
raise([throw, Reason]) -> throw(Reason).

only_atoms([Atom]) when is_atom(Atom) -> Atom.

me(_) -> self().

zeros([Size]) -> binary:copy(<<0>>, Size).

%% Leaves something behind in its process, whose pid it returns.
leave([<<"nothing">>]) -> self();
leave([<<"dictionary">>]) -> put(key, value), self();
leave([<<"message">>]) -> self() ! message, self();
leave([<<"link">>]) -> link(whereis(init)), self();
leave([<<"monitor">>]) -> monitor(process, whereis(init)), self();
leave([<<"trap_exit">>]) -> process_flag(trap_exit, true), self();
leave([<<"name">>]) -> register(py_callback_SUITE_name, self()), self();
leave([<<"leader">>]) -> group_leader(whereis(init), self()), self();
leave([<<"priority">>]) -> process_flag(priority, high), self();
leave([<<"heap">>]) -> leave_heap(lists:seq(1, 1000000)), self().

leave_heap(List) -> length([N || N <- List]).

%% --- Calls and results ------------------------------------------------------------------------------

a_registered_fun_and_a_function_of_a_module_answer(Config) ->
    client(Config, fun() ->
        ok = py:register_function(<<"sum">>, fun lists:sum/1),
        ok = py:register_function(maximum, lists, max)
    end),
    Results = as_node(Config, fun(Link) ->
        calls(Link, [{call, 1, 1, <<"sum">>, [1, 2, 3]}, {call, 2, 2, <<"maximum">>, [1, 3, 2]},
                     {call, 3, 0, <<"sum">>, []}]),
        results(3)
    end),
    ?assertEqual(#{1 => {ok, 6}, 2 => {ok, 3}, 3 => {ok, 0}}, Results).

an_unknown_function_is_not_registered(Config) ->
    Results = as_node(Config, fun(Link) ->
        calls(Link, [{call, 1, 1, <<"nobody">>, []}, {call, 2, 0, <<"nobody">>, [1]}]),
        results(2)
    end),
    ?assertEqual(#{1 => not_registered, 2 => not_registered}, Results).

what_a_function_raises_is_told_with_class_reason_and_stack(Config) ->
    Results = as_node(Config, fun(Link) ->
        calls(Link, [{call, N, 1, <<"raise">>, [Class, {Class, N}]}
                     || {N, Class} <- [{1, error}, {2, exit}, {3, throw}]]),
        results(3)
    end),
    ?assertMatch(#{1 := {error, {error, 1}, [{?MODULE, raise, 1, [{file, _}, {line, _}]}]},
                   2 := {exit, {exit, 2}, [{?MODULE, raise, 1, _}]},
                   3 := {throw, {throw, 3}, [{?MODULE, raise, 1, _}]}}, Results).

a_stack_holds_no_arguments(Config) ->
    Fun = fun(nobody) -> ok end,
    client(Config, fun() ->
        ok = py:register_function(missing, no_such_module, no_such_function),
        ok = py:register_function(picky, Fun),
        ok = py:register_function(length_of, fun([Text]) -> atom_to_list(Text) end)
    end),
    Results = as_node(Config, fun(Link) ->
        Large = binary:copy(<<1>>, 1000),
        calls(Link, [{call, N, 0, Name, [Large]}
                     || {N, Name} <- [{1, <<"only_atoms">>}, {2, <<"missing">>}, {3, <<"picky">>},
                                      {4, <<"length_of">>}]]),
        results(4)
    end),
    ?assertMatch(#{1 := {error, function_clause, [{?MODULE, only_atoms, 1, _}]},
                   2 := {error, undef, [{no_such_module, no_such_function, 1, []}]},
                   3 := {error, function_clause, [{?MODULE, _, 1, _}]},
                   4 := {error, badarg, [{erlang, atom_to_list, 1, []}, {?MODULE, _, 1, _}]}},
                 Results),
    ?assert(erlang:external_size(Results) < 4000).

a_killed_handler_is_told_at_once(Config) ->
    Results = as_node(Config, fun(Link) ->
        Killed = gated(Link, 1, 1),
        exit(Killed, kill),
        Result = result(1),
        Told = gated(Link, 2, 0),
        exit(Told, {some, reason}),
        {Result, result(2)}
    end),
    ?assertEqual({{signal, killed}, {signal, {some, reason}}}, Results).

%% --- Threads and coroutines -------------------------------------------------------------------------

calls_of_two_threads_run_side_by_side(Config) ->
    Results = as_node(Config, fun(Link) ->
        Blocked = gated(Link, 1, 1),
        calls(Link, [{call, 2, 2, <<"echo">>, [2]}]),
        Second = result(2),
        Blocked ! {open, now},
        {Second, result(1)}
    end),
    ?assertEqual({{ok, [2]}, {ok, now}}, Results).

calls_of_one_thread_keep_their_order_and_their_process(Config) ->
    {Ids, Pids} = as_node(Config, fun(Link) ->
        calls(Link, [{call, N, 1, <<"me">>, []} || N <- lists:seq(1, 100)]),
        Together = entries(100),
        OneByOne = [begin
                        calls(Link, [{call, N, 1, <<"me">>, []}]),
                        {N, result(N)}
                    end || N <- lists:seq(101, 200)],
        lists:unzip(Together ++ OneByOne)
    end),
    ?assertEqual(lists:seq(1, 200), Ids),
    ?assertMatch([{ok, _}], lists:usort(Pids)).

a_thousand_coroutines_run_at_once(Config) ->
    {Pids, Results} = as_node(Config, fun(Link) ->
        calls(Link, [{call, N, 0, <<"gate">>, [self()]} || N <- lists:seq(1, 1000)]),
        Pids = [at_gate() || _ <- lists:seq(1, 1000)],
        [Pid ! {open, done} || Pid <- Pids],
        {Pids, results(1000)}
    end),
    ?assertEqual(1000, length(lists:usort(Pids))),
    ?assertEqual([{ok, done}], lists:usort(maps:values(Results))).

threads_that_have_ended_leave_no_more_than_the_pool(Config) ->
    Client = client_node(Config),
    {Pids, Left} = as_node(Config, fun(Link) ->
        Threads = lists:seq(1, 5000),
        calls(Link, [{call, N, N, <<"me">>, []} || N <- Threads]),
        Results = results(5000),
        calls(Link, [{gone, N} || N <- Threads]),
        Handlers = fun() -> length(on(Client, fun() -> handlers(Link) end)) end,
        ok = cluster:eventually(fun() -> Handlers() =< 64 end),
        {lists:usort(maps:values(Results)), Handlers()}
    end),
    ?assertEqual(5000, length(Pids)),
    ?assertEqual(64, Left).

a_coroutine_uses_the_handler_of_a_thread_that_has_ended(Config) ->
    Client = client_node(Config),
    {Thread, Pooled, Coroutine} = as_node(Config, fun(Link) ->
        calls(Link, [{call, 1, 1, <<"me">>, []}]),
        Thread = result(1),
        calls(Link, [{gone, 1}]),
        ok = cluster:eventually(fun() -> length(pool(Client, Link)) =:= 1 end),
        Pooled = pool(Client, Link),
        calls(Link, [{call, 2, 0, <<"me">>, []}]),
        {Thread, Pooled, result(2)}
    end),
    ?assertEqual({{ok, hd(Pooled)}, {ok, hd(Pooled)}}, {Thread, Coroutine}).

a_handler_with_anything_left_in_it_serves_nobody_else(Config) ->
    Client = client_node(Config),
    Kinds = [<<"dictionary">>, <<"message">>, <<"link">>, <<"monitor">>, <<"trap_exit">>,
             <<"name">>, <<"leader">>, <<"priority">>, <<"heap">>],
    {Clean, Reused} = as_node(Config, fun(Link) ->
        Clean = leave_as_coroutine(Client, Link, <<"nothing">>),
        {Clean, [{Kind, How(Client, Link, Kind)}
                 || Kind <- Kinds, How <- [fun leave_as_coroutine/3, fun leave_as_thread/3]]}
    end),
    ?assertEqual(same, Clean),
    ?assertEqual([], [Kind || {Kind, Who} <- Reused, Who =/= other]).

%% Whether the next coroutine is served by the process that something was left in.
leave_as_coroutine(_Client, Link, Kind) ->
    Id = erlang:unique_integer([positive]),
    calls(Link, [{call, Id, 0, <<"leave">>, [Kind]}]),
    {ok, Pid} = result(Id),
    next_after(Link, Pid).

leave_as_thread(Client, Link, Kind) ->
    Id = erlang:unique_integer([positive]),
    calls(Link, [{call, Id, Id, <<"leave">>, [Kind]}]),
    {ok, Pid} = result(Id),
    calls(Link, [{gone, Id}]),
    Alive = fun() -> on(Client, fun() -> is_process_alive(Pid) end) end,
    ok = cluster:eventually(fun() -> lists:member(Pid, pool(Client, Link)) orelse not Alive() end),
    next_after(Link, Pid).

next_after(Link, Pid) ->
    Ids = [erlang:unique_integer([positive]) || _ <- lists:seq(1, 3)],
    calls(Link, [{call, Id, 0, <<"gate">>, [self()]} || Id <- Ids]),
    Pids = [at_gate() || _ <- Ids],
    [Next ! {open, ok} || Next <- Pids],
    _ = results(3),
    case lists:member(Pid, Pids) of
        true -> same;
        false -> other
    end.

a_thread_finds_what_its_functions_left(Config) ->
    client(Config, fun() ->
        ok = py:register_function(remember, fun([Value]) -> put(key, Value) end)
    end),
    Results = as_node(Config, fun(Link) ->
        calls(Link, [{call, 1, 1, <<"remember">>, [a]}]),
        First = result(1),
        calls(Link, [{call, 2, 1, <<"remember">>, [b]}]),
        {First, result(2)}
    end),
    ?assertEqual({{ok, undefined}, {ok, a}}, Results).

a_late_message_does_not_reach_the_next_who_uses_the_handler(Config) ->
    client(Config, fun() ->
        ok = py:register_function(mailbox, fun(_) -> process_info(self(), messages) end)
    end),
    {First, Second, Messages} = as_node(Config, fun(Link) ->
        calls(Link, [{call, 1, 0, <<"me">>, []}]),
        {ok, First} = result(1),
        First ! late,
        calls(Link, [{call, 2, 0, <<"mailbox">>, []}, {call, 3, 0, <<"me">>, []}]),
        #{2 := {ok, Messages}, 3 := {ok, Second}} = results(2),
        {First, Second, Messages}
    end),
    ?assertNotEqual(First, Second),     % the first served call 2
    ?assertEqual({messages, []}, Messages).

%% --- Cancellation and deaths ------------------------------------------------------------------------

a_cancelled_function_is_killed_and_not_answered(Config) ->
    {Reasons, Next, Stray} = as_node(Config, fun(Link) ->
        Pids = [gated(Link, 1, 7), gated(Link, 2, 0)],
        Monitors = [monitor(process, Pid) || Pid <- Pids],
        calls(Link, [{cancel, 1}, {cancel, 2}, {cancel, 3}, {cancel, nonsense}]),
        Reasons = [receive {'DOWN', Monitor, process, _, Reason} -> Reason end
                   || Monitor <- Monitors],
        calls(Link, [{call, 4, 7, <<"me">>, []}]),
        {ok, Next} = result(4),
        {Reasons, lists:member(Next, Pids), stray(Link)}
    end),
    ?assertEqual({[killed, killed], false, none}, {Reasons, Next, Stray}).

a_call_that_waits_behind_another_can_be_cancelled(Config) ->
    {Results, Stray} = as_node(Config, fun(Link) ->
        First = gated(Link, 1, 1),
        calls(Link, [{call, 2, 1, <<"echo">>, [2]}, {call, 3, 1, <<"echo">>, [3]}, {cancel, 2}]),
        First ! {open, 1},
        {results(2), stray(Link)}
    end),
    ?assertEqual({#{1 => {ok, 1}, 3 => {ok, [3]}}, none}, {Results, Stray}).

calls_behind_a_killed_one_are_run(Config) ->
    Results = as_node(Config, fun(Link) ->
        Cancelled = gated(Link, 1, 1),
        calls(Link, [{call, 2, 1, <<"gate">>, [self()]}, {call, 3, 1, <<"me">>, []}, {cancel, 1}]),
        Killed = at_gate(),
        exit(Killed, kill),
        #{2 := Second, 3 := {ok, Third}} = results(2),
        {Second, length(lists:usort([Cancelled, Killed, Third]))}
    end),
    ?assertEqual({{signal, killed}, 3}, Results).

a_thread_that_ends_amidst_its_call_leaves_a_handler_for_others(Config) ->
    Client = client_node(Config),
    {Result, Waited, Pooled} = as_node(Config, fun(Link) ->
        Pid = gated(Link, 1, 1),
        calls(Link, [{call, 2, 1, <<"echo">>, [2]}, {gone, 1}]),
        Waited = result(2),
        Pid ! {open, done},
        Result = result(1),
        ok = cluster:eventually(fun() -> lists:member(Pid, pool(Client, Link)) end),
        {Result, Waited, on(Client, fun() -> length(handlers(Link)) end)}
    end),
    ?assertEqual({{ok, done}, {ok, [2]}, 2}, {Result, Waited, Pooled}).

an_idle_thread_whose_handler_died_gets_another(Config) ->
    Client = client_node(Config),
    {First, Second, Stray} = as_node(Config, fun(Link) ->
        calls(Link, [{call, 1, 1, <<"me">>, []}]),
        {ok, First} = result(1),
        exit(First, kill),
        ok = cluster:eventually(fun() -> on(Client, fun() -> handlers(Link) end) =:= [] end),
        calls(Link, [{call, 2, 1, <<"me">>, []}]),
        {ok, Second} = result(2),
        {First, Second, stray(Link)}
    end),
    ?assertNotEqual(First, Second),
    ?assertEqual(none, Stray).

the_death_of_the_node_kills_what_runs_for_it(Config) ->
    {Link, Pids} = as_node(Config, fun(Link) ->
        calls(Link, [{call, 1, 1, <<"trapping_gate">>, [self()]},
                     {call, 2, 0, <<"trapping_gate">>, [self()]}, {call, 3, 0, <<"gate">>, [self()]}]),
        {Link, [at_gate(), at_gate(), at_gate()]}
    end),
    ok = client(Config, fun() -> gone([Link | Pids]) end).

%% More results wait than one message holds, so that one is sent before the loss is seen.
a_lost_connection_ends_the_link_and_is_not_dialled(Config) ->
    Client = client_node(Config),
    Node = maps:get(node, proplists:get_value(fake, Config)),
    {Link, Handlers} = fake(Config, fun() ->
        Link = hello(Client, lasting_node()),
        calls(Link, [{call, N, 0, <<"gate">>, [self()]} || N <- lists:seq(1, 600)]),
        {Link, [at_gate() || _ <- lists:seq(1, 600)]}
    end),
    Connection = client(Config, fun() ->
        ok = sys:suspend(Link),
        [Handler ! {open, done} || Handler <- Handlers],
        ok = cluster:eventually(fun() -> queue_len(Link) =:= 600 end),
        true = erlang:disconnect_node(Node),
        ok = sys:resume(Link),
        ok = gone([Link | Handlers]),
        _ = sys:get_state(net_kernel),  % it has seen any wish to connect
        net_kernel:node_info(Node)
    end),
    ?assertEqual({error, bad_node}, Connection).

a_killed_link_takes_its_handlers_with_it_and_is_replaced(Config) ->
    Client = client_node(Config),
    {Replaced, Result} = as_node(Config, fun(Link) ->
        Handler = gated(Link, 1, 1),
        exit(Link, kill),
        ok = on(Client, fun() -> gone([Link, Handler]) end),
        Next = hello(Client, self()),
        calls(Next, [{call, 2, 1, <<"echo">>, []}]),
        {Link =/= Next, result(2)}
    end),
    ?assertEqual({true, {ok, []}}, {Replaced, Result}).

a_function_that_traps_exits_ends_after_its_link_was_killed(Config) ->
    Client = client_node(Config),
    ok = as_node(Config, fun(Link) ->
        calls(Link, [{call, 1, 1, <<"trapping_gate">>, [self()]},
                     {call, 2, 2, <<"deaf_gate">>, [self()]},
                     {call, 3, 0, <<"trapping_gate">>, [self()]}]),
        Pids = [at_gate(), at_gate(), at_gate()],
        exit(Link, kill),
        ok = on(Client, fun() -> gone([Link]) end),
        [Pid ! {open, done} || Pid <- Pids],
        on(Client, fun() -> gone(Pids) end)
    end).

%% --- Large results, the bound -----------------------------------------------------------------------

a_large_result_does_not_pass_through_the_link(Config) ->
    {Batch, Next} = as_node(Config, fun(Link) ->
        Handler = gated(Link, 1, 1),
        ok = sys:suspend(Link),
        Handler ! {open, binary:copy(<<7>>, 1000000)},
        Batch = batch(),
        calls(Link, [{call, 2, 1, <<"me">>, []}]),
        ok = sys:resume(Link),
        {Batch, result(2) =:= {ok, Handler}}
    end),
    ?assertEqual([{1, {ok, binary:copy(<<7>>, 1000000)}}], Batch),
    ?assert(Next).

%% The node's whole BEAM is stopped meanwhile, so that whoever sends the large result is suspended.
a_large_result_does_not_hold_the_link_up(Config) ->
    Client = client_node(Config),
    OsPid = fake(Config, fun os:getpid/0),
    {Node, Link, Handler} = fake(Config, fun() ->
        Node = lasting_node(),
        Link = hello(Client, Node),
        {Node, Link, gated(Link, 1, 0)}
    end),
    [] = os:cmd("kill -STOP " ++ OsPid),
    try
        client(Config, fun() ->
            Handler ! {open, binary:copy(<<1>>, 20000000)},
            ok = cluster:eventually(fun() ->
                process_info(Handler, status) =:= {status, suspended}
            end),
            _ = sys:get_state(Link, 5000)
        end)
    after
        os:cmd("kill -CONT " ++ OsPid)
    end,
    Size = fake(Config, fun() ->
        [{1, {ok, Binary}}] = batch_of(Node),
        byte_size(Binary)
    end),
    ?assertEqual(20000000, Size).

more_calls_than_the_bound_are_refused_at_once(Config) ->
    client(Config, fun() -> application:set_env(sidewinder, max_callbacks, 10) end),
    {Refused, Opened, Next} = as_node(Config, fun(Link) ->
        calls(Link, [{call, N, N rem 2 * N, <<"gate">>, [self()]} || N <- lists:seq(1, 10)]),
        Pids = [at_gate() || _ <- lists:seq(1, 10)],
        calls(Link, [{call, 11, 11, <<"echo">>, []}, {call, 12, 0, <<"echo">>, []},
                     {call, 13, 1, <<"echo">>, []}]),
        Refused = results(3),
        hd(Pids) ! {open, done},
        Opened = maps:values(results(1)),
        calls(Link, [{call, 14, 0, <<"echo">>, []}]),
        {Refused, Opened, result(14)}
    end),
    ?assertEqual(#{11 => overloaded, 12 => overloaded, 13 => overloaded}, Refused),
    ?assertEqual({[{ok, done}], {ok, []}}, {Opened, Next}).

%% --- Strange and log items --------------------------------------------------------------------------

malformed_items_are_ignored(Config) ->
    {Before, After, Stray} = as_node(Config, fun(Link) ->
        Blocked = gated(Link, 1, 1),
        Items = [hello, {}, {call}, {call, 0, 1, <<"echo">>, []}, {call, a, 1, <<"echo">>, []},
                 {call, 2, -1, <<"echo">>, []}, {call, 2, a, <<"echo">>, []},
                 {call, 2, 1, echo, []}, {call, 2, 1, <<"echo">>, a},
                 {call, 1, 0, <<"echo">>, [twice]}, {cancel, a}, {cancel, 9}, {cancel}, {gone, a},
                 {gone, 0}, {gone, 9}, {log, a}, {1, 2, 3, 4, 5}],
        calls(Link, Items),
        [calls(Link, Strange) || Strange <- [[], a, [a | b], #{}, [{gone, 8} | {gone, 9}]]],
        [Link ! Message || Message <- [hello, {'$done', self(), 1, sent, clean}, {'$clean', self()},
                                       {'$done', Blocked, 9, sent, kept}, {'$clean', Blocked},
                                       {'EXIT', self(), normal},
                                       {'DOWN', make_ref(), process, self(), normal}]],
        calls(Link, [{call, 3, 3, <<"echo">>, [3]}]),
        Before = result(3),
        Blocked ! {open, done},
        {Before, result(1), stray(Link)}
    end),
    ?assertEqual({{ok, [3]}, {ok, done}, none}, {Before, After, Stray}).

a_log_item_reaches_logger_with_its_metadata(Config) ->
    Client = client_node(Config),
    Logged = as_node(Config, fun(Link) ->
        ok = listen_to_log(Client),
        calls(Link, [{log, warning, <<"gr", 195, 188, 195, 159, "e ~p">>,
                      #{suite => 1, python => #{logger => <<"a.b">>}, file => <<"a.py">>, line => 7}},
                     {log, debug, <<"too low a level">>, #{suite => 2}},
                     {log, nonsense, <<"no level">>, #{suite => 3}},
                     {log, warning, <<"no metadata">>, []},
                     {log, error, <<"last">>, #{suite => 4}}]),
        {logged(), logged()}
    end),
    ok = client(Config, fun() -> logger:remove_handler(?MODULE) end),
    {{warning, Text, Meta}, {error, "last", #{suite := 4}}} = Logged,
    ?assertEqual([$g, $r, 252, 223, $e | " ~p"], Text),
    ?assertMatch(#{suite := 1, python := #{logger := <<"a.b">>}, file := <<"a.py">>, line := 7,
                   time := _, pid := _}, Meta).

log_items_do_no_harm_to_loggers_handlers(Config) ->
    Client = client_node(Config),
    {Before, After, Meta} = as_node(Config, fun(Link) ->
        ok = listen_to_log(Client),
        Before = on(Client, fun logger:get_handler_ids/0),
        Wrong = #{time => now, pid => 1, gl => x, mfa => y, file => 1, line => a, domain => a,
                  report_cb => 1, error_logger => 1, suite => 1},
        calls(Link, [{log, error, <<255, 254, 0>>, Wrong}, {log, error, [self() | a], #{suite => 2}},
                     {log, error, #{}, #{suite => 3}}, {log, error, <<"last">>, #{suite => 4}}]),
        {error, _, Meta} = logged(),
        {error, "last", #{suite := 4}} = logged(),
        {Before, on(Client, fun logger:get_handler_ids/0), Meta}
    end),
    ok = client(Config, fun() -> logger:remove_handler(?MODULE) end),
    ?assertEqual(Before, After),
    ?assertEqual([gl, pid, suite, time], lists:sort(maps:keys(Meta))),
    #{time := Time, pid := Pid, gl := Leader} = Meta,
    ?assert(is_integer(Time) andalso is_pid(Pid) andalso is_pid(Leader)).

%% --- Batches ----------------------------------------------------------------------------------------

an_idle_link_sends_each_result_at_once_in_a_message_of_its_own(Config) ->
    Batches = as_node(Config, fun(Link) ->
        [begin
             calls(Link, [{call, N, 1, <<"echo">>, [N]}]),
             batch()
         end || N <- lists:seq(1, 100)]
    end),
    ?assertEqual([[{N, {ok, [N]}}] || N <- lists:seq(1, 100)], Batches).

results_that_wait_together_travel_in_one_message(Config) ->
    ?assertEqual([200], [length(Batch) || Batch <- held_up(Config, 200, done)]).

a_message_holds_a_bounded_number_of_results(Config) ->
    ?assertEqual([512, 512, 176], [length(Batch) || Batch <- held_up(Config, 1200, done)]).

results_do_not_add_up_to_a_huge_message(Config) ->
    Batches = held_up(Config, 20, binary:copy(<<0>>, 20000)),
    ?assertEqual(lists:duplicate(10, 2), [length(Batch) || Batch <- Batches]).

%% The messages in which so many results come that gathered while the link was suspended.
held_up(Config, Count, Result) ->
    Client = client_node(Config),
    as_node(Config, fun(Link) ->
        calls(Link, [{call, N, 0, <<"gate">>, [self()]} || N <- lists:seq(1, Count)]),
        Pids = [at_gate() || _ <- lists:seq(1, Count)],
        ok = sys:suspend(Link),
        [Pid ! {open, Result} || Pid <- Pids],
        Length = fun() -> on(Client, fun() -> queue_len(Link) end) end,
        ok = cluster:eventually(fun() -> Length() =:= Count end),
        ok = sys:resume(Link),
        batches(Count)
    end).

batches(0) ->
    [];
batches(Count) ->
    Batch = batch(),
    [Batch | batches(Count - length(Batch))].

%% --- Hello and ends ---------------------------------------------------------------------------------

a_second_hello_gets_the_same_link(Config) ->
    Client = client_node(Config),
    Links = as_node(Config, fun(Link) -> [Link, hello(Client, self()), hello(Client, self())] end),
    ?assertMatch([_], lists:usort(Links)).

a_hello_of_a_successor_replaces_the_link(Config) ->
    Client = client_node(Config),
    {Former, Handler, Same} = as_node(Config, fun(Link) ->
        Former = hello(Client, lasting_node()),
        Handler = gated(Former, 1, 1),
        Next = hello(Client, self()),
        calls(Next, [{call, 2, 1, <<"me">>, []}]),
        {ok, _} = result(2),
        {Former, Handler, lists:member(Former, [Link, Next])}
    end),
    ok = client(Config, fun() -> gone([Former, Handler]) end),
    ?assertNot(Same).

%% The last one is of a node that is not there, and is not looked for.
a_hello_of_nobody_is_ignored(Config) ->
    Stranger = pid_of(<<"stranger@127.0.0.1">>),
    {Links, Nodes} = client(Config, fun() ->
        Door = whereis(py_callback),
        [Door ! Message || Message <- [hello, {'$py_hello', self()}, {'$py_hello', a},
                                       {'$py_hello', node()}, {'$py_hello', Stranger}]],
        _ = sys:get_state(Door),
        Door = whereis(py_callback),
        {links(), [Node || Node <- nodes(known), Node =:= 'stranger@127.0.0.1',
                           lists:member(Node, nodes(connected))]}
    end),
    ?assertEqual({[], []}, {Links, Nodes}).

a_killed_py_callback_loses_neither_registrations_nor_calls(Config) ->
    Client = client_node(Config),
    {Same, Results} = as_node(Config, fun(Link) ->
        Handler = gated(Link, 1, 1),
        {Others, Now} = on(Client, fun() ->
            Names = [py_sup, py_callback_sup, py_node_sup, py_channel_sup],
            Before = [whereis(Name) || Name <- Names],
            Door = whereis(py_callback),
            exit(Door, kill),
            Back = fun() -> not lists:member(whereis(py_callback), [Door, undefined]) end,
            ok = cluster:eventually(Back),
            {Before, [whereis(Name) || Name <- Names]}
        end),
        Again = hello(Client, self()),
        Handler ! {open, done},
        calls(Again, [{call, 2, 2, <<"echo">>, [2]}]),
        {{Others =:= Now, Link =:= Again}, results(2)}
    end),
    ?assertEqual({true, true}, Same),
    ?assertEqual(#{1 => {ok, done}, 2 => {ok, [2]}}, Results).

nothing_is_left_when_the_application_stops(Config) ->
    Client = client_node(Config),
    Left = as_node(Config, fun(Link) ->
        calls(Link, [{call, N, N rem 2 * N, <<"trapping_gate">>, [self()]}
                     || N <- lists:seq(1, 5000)]),
        _ = [at_gate() || _ <- lists:seq(1, 5000)],
        calls(Link, [{call, 5001, 5001, <<"me">>, []}, {call, 5002, 0, <<"me">>, []}]),
        _ = results(2),
        on(Client, fun() ->
            Processes = [Link | handlers(Link)],
            5003 = length(Processes),
            ok = application:stop(sidewinder),
            Alive = processes(),
            {[Pid || Pid <- Processes, lists:member(Pid, Alive)],
             [Name || Name <- [py_sup, py_callback_sup, py_callback], whereis(Name) =/= undefined],
             ets:info(py_functions), py_callback:lookup(echo)}
        end)
    end),
    ?assertEqual({[], [], undefined, {error, not_found}}, Left).

%% --- Helpers, run in the fake node ------------------------------------------------------------------

%% The link for a process of the node's.
hello(Client, NodePid) ->
    {py_callback, Client} ! {'$py_hello', NodePid},
    introduced(NodePid).

introduced(NodePid) when NodePid =:= self() ->
    receive {'$py_callback', Link} -> Link end;
introduced(NodePid) ->
    NodePid ! {next, self()},
    receive {NodePid, {'$py_callback', Link}} -> Link end.

%% A node's process that outlives who starts it and hands its messages out when asked.
lasting_node() ->
    spawn(fun hand_out/0).

hand_out() ->
    receive
        {next, Who} ->
            receive
                Message when element(1, Message) =:= '$py_callback';
                             element(1, Message) =:= '$py_results' ->
                    Who ! {self(), Message}
            end
    end,
    hand_out().

batch_of(Node) ->
    Node ! {next, self()},
    receive {Node, {'$py_results', Batch}} -> Batch end.

calls(Link, Items) ->
    Link ! {'$py_calls', Items},
    ok.

batch() ->
    receive {'$py_results', Batch} -> Batch end.

entries(Count) when Count =< 0 ->
    [];
entries(Count) ->
    Batch = batch(),
    Batch ++ entries(Count - length(Batch)).

results(Count) ->
    Entries = entries(Count),
    Count = length(Entries),
    maps:from_list(Entries).

result(Id) ->
    #{Id := Result} = results(1),
    Result.

%% A result nobody waits for, of what the link has done so far.
stray(Link) ->
    _ = sys:get_state(Link),
    receive {'$py_results', Batch} -> Batch after 0 -> none end.

%% The process of a call that waits for {open, Value}.
gated(Link, Id, Caller) ->
    calls(Link, [{call, Id, Caller, <<"gate">>, [self()]}]),
    at_gate().

at_gate() ->
    receive {at_gate, Pid} -> Pid end.

on(Client, Function) ->
    erpc:call(Client, Function).

%% The handlers that wait for anybody: what a link holds in its last field.
pool(Client, Link) ->
    on(Client, fun() ->
        State = sys:get_state(Link),
        element(tuple_size(State), State)
    end).

listen_to_log(Client) ->
    Tester = self(),
    on(Client, fun() ->
        logger:add_handler(?MODULE, ?MODULE, #{config => #{tester => Tester}})
    end).

logged() ->
    receive {logged, Level, Text, Meta} -> {Level, Text, Meta} end.

%% --- Helpers, run in the client ---------------------------------------------------------------------

%% As a handler of logger's.
log(#{level := Level, msg := {Format, Args}, meta := #{suite := _} = Meta},
    #{config := #{tester := Tester}}) ->
    Tester ! {logged, Level, lists:flatten(io_lib:format(Format, Args)), Meta},
    ok;
log(_, _) ->
    ok.

handlers(Link) ->
    {links, Links} = process_info(Link, links),
    Links -- [whereis(py_callback_sup)].

links() ->
    [Pid || {_, Pid, _, [py_callback_link]} <- supervisor:which_children(py_callback_sup)].

queue_len(Pid) ->
    {message_queue_len, Length} = process_info(Pid, message_queue_len),
    Length.

%% Waits until all of them have ended.
gone(Pids) ->
    Monitors = [monitor(process, Pid) || Pid <- Pids],
    lists:foreach(fun(Monitor) -> receive {'DOWN', Monitor, process, _, _} -> ok end end, Monitors).

%% A pid of a node that may not exist.
pid_of(Node) ->
    binary_to_term(<<131, 88, 119, (byte_size(Node)), Node/binary, 7:32, 0:32, 1:32>>).
