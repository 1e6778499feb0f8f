%% Cancel means cancel: whose caller is gone, or waits no longer, does not run on; and what cannot be
%% stopped or taken on is reported and replaced, or refused at once.
-module(cancel_SUITE).

-include_lib("stdlib/include/assert.hrl").

-export([all/0, suite/0, init_per_suite/1, end_per_suite/1]).
-compile([export_all, nowarn_export_all]).

-define(LIMIT, 100).     % ms between the end of a caller and that of its call
-define(LONG, 30).       % s that a call to be cancelled would take

suite() -> [{timetrap, {seconds, 60}}].

all() ->
    [a_coroutine_is_cancelled_when_its_caller_dies,
     a_python_loop_is_interrupted_when_its_caller_dies,
     an_erpc_coroutine_is_cancelled_when_its_caller_dies,
     an_erpc_python_loop_is_interrupted_when_its_caller_dies,
     a_gen_server_call_that_times_out_is_cancelled,
     an_erpc_call_that_times_out_is_cancelled,
     an_erpc_request_that_is_abandoned_is_cancelled,
     a_lost_link_cancels_the_calls_that_came_by_it,
     a_disconnected_peer_cancels_its_calls,
     a_spawned_process_that_is_merely_watched_runs_on,
     a_waiting_call_whose_caller_dies_never_runs,
     a_call_that_ends_in_time_is_not_interrupted_afterwards,
     many_callers_killed_at_random_leave_nothing_behind,
     a_worker_wedged_in_c_is_replaced_and_counted,
     code_that_swallows_its_interruption_is_replaced_too,
     more_calls_than_the_queue_holds_are_refused_at_once,
     more_erpc_calls_than_the_queue_holds_are_refused_at_once,
     evals_of_one_caller_run_in_order].

init_per_suite(Config0) ->
    Config = sw_e2e:setup(Config0),
    Context = sw_e2e:context(Config),
    Node = sw_e2e:start_node(Context, #{args => ["--workers", "8"]}),
    [{node, Node}, {beam, sw_e2e:start_beam(Context)} | Config].

end_per_suite(Config) ->
    true = sw_e2e:alive(maps:get(program, proplists:get_value(node, Config))),
    ok = sw_e2e:stop_beam(proplists:get_value(beam, Config)),
    ok = sw_e2e:stop_node(proplists:get_value(node, Config)),
    ok = sw_e2e:teardown(Config).

bare(Config, Body) ->
    #{name := Node} = proplists:get_value(node, Config),
    sw_e2e:on(proplists:get_value(beam, Config), fun() -> Body(Node) end).

%% A node of its own for the test, with these arguments.
with_node(Config, Arguments, Body) ->
    Node = #{name := Name, program := Program} =
        sw_e2e:start_node(sw_e2e:context(Config), #{args => Arguments}),
    try
        sw_e2e:on(proplists:get_value(beam, Config), fun() -> Body(Name) end),
        ?assert(sw_e2e:alive(Program)),
        sw_e2e:output(Program)
    after
        sw_e2e:stop_node(Node)
    end.

%% --- the caller dies ----------------------------------------------------------------------------

%% Starts the call in a process of its own, waits until Python has begun with it, ends it as `End`
%% says and waits until Python says that it ended: this has to come within the limit.
cancelled_within_limit(Start, End, Exception) ->
    cancelled_within_limit(Start, End, Exception, 20, []).

cancelled_within_limit(_, _, _, 0, Times) ->
    error({slower_than_ms, ?LIMIT, Times});
cancelled_within_limit(Start, End, Exception, Tries, Times) ->
    Test = self(),
    {Caller, Monitor} = spawn_monitor(fun() -> Start(Test) end),
    {<<"begun">>, _} = sw_e2e:tell_test(5000),
    Time = sw_e2e:elapsed(fun() ->
        End(Caller),
        ?assertMatch({Exception, _}, sw_e2e:tell_test(10000))
    end),
    receive {'DOWN', Monitor, process, Caller, _} -> ok end,
    case Time < ?LIMIT of
        true -> ok;
        false -> cancelled_within_limit(Start, End, Exception, Tries - 1, [Time | Times])
    end.

die(Caller) -> exit(Caller, kill).

request(Function) ->
    fun(N) -> fun(Test) -> gen_server:call({py, N}, {call, probe, Function, [Test, it, ?LONG]}, infinity) end end.

erpc(Function) ->
    fun(N) -> fun(Test) -> erpc:call(N, probe, Function, [Test, it, ?LONG]) end end.

a_coroutine_is_cancelled_when_its_caller_dies(Config) ->
    bare(Config, fun(N) ->
        cancelled_within_limit((request(nap_async_watched))(N), fun die/1, <<"CancelledError">>)
    end).

a_python_loop_is_interrupted_when_its_caller_dies(Config) ->
    bare(Config, fun(N) ->
        cancelled_within_limit((request(spin_watched))(N), fun die/1, <<"Cancelled">>)
    end).

an_erpc_coroutine_is_cancelled_when_its_caller_dies(Config) ->
    bare(Config, fun(N) ->
        cancelled_within_limit((erpc(nap_async_watched))(N), fun die/1, <<"CancelledError">>)
    end).

an_erpc_python_loop_is_interrupted_when_its_caller_dies(Config) ->
    bare(Config, fun(N) ->
        cancelled_within_limit((erpc(spin_watched))(N), fun die/1, <<"Cancelled">>)
    end).

%% --- the caller waits no longer -----------------------------------------------------------------

a_gen_server_call_that_times_out_is_cancelled(Config) ->
    bare(Config, fun(N) ->
        [begin
            ?assertExit({timeout, _}, gen_server:call({py, N}, {call, probe, F, [self(), F, ?LONG]}, 200)),
            ?assertEqual({<<"begun">>, F}, sw_e2e:tell_test(0)),
            ?assertEqual({Exception, F}, sw_e2e:tell_test(2000))
        end || {F, Exception} <- [{nap_async_watched, <<"CancelledError">>}, {spin_watched, <<"Cancelled">>}]]
    end).

an_erpc_call_that_times_out_is_cancelled(Config) ->
    bare(Config, fun(N) ->
        [begin
            ?assertError({erpc, timeout}, erpc:call(N, probe, F, [self(), F, ?LONG], 200)),
            ?assertEqual({<<"begun">>, F}, sw_e2e:tell_test(0)),
            ?assertEqual({Exception, F}, sw_e2e:tell_test(2000))
        end || {F, Exception} <- [{nap_async_watched, <<"CancelledError">>}, {spin_watched, <<"Cancelled">>}]]
    end).

an_erpc_request_that_is_abandoned_is_cancelled(Config) ->
    bare(Config, fun(N) ->
        Request = erpc:send_request(N, probe, nap_async_watched, [self(), it, ?LONG]),
        ?assertEqual({<<"begun">>, it}, sw_e2e:tell_test(5000)),
        ?assertEqual(no_response, erpc:wait_response(Request, 0)),
        ?assertError({erpc, timeout}, erpc:receive_response(Request, 50)),
        ?assertEqual({<<"CancelledError">>, it}, sw_e2e:tell_test(2000))
    end).

%% --- the link goes ------------------------------------------------------------------------------

%% A second BEAM calls; the test's BEAM is told.
calls_from_elsewhere(Config, End) ->
    Beam = proplists:get_value(beam, Config),
    #{name := N} = proplists:get_value(node, Config),
    Listener = sw_e2e:on(Beam, fun() -> spawn(fun() -> listen([]) end) end),
    Elsewhere = sw_e2e:start_beam(sw_e2e:context(Config)),
    ok = sw_e2e:on(Elsewhere, fun() ->
        [spawn(fun() -> gen_server:call({py, N}, {call, probe, F, [Listener, F, ?LONG]}, infinity) end)
         || F <- [nap_async_watched, spin_watched]],
        spawn(fun() -> erpc:call(N, probe, nap_async_watched, [Listener, erpc, ?LONG]) end),
        ok
    end),
    Told = fun() ->
        sw_e2e:on(Beam, fun() -> Listener ! {get, self()}, receive {Listener, What} -> lists:sort(What) end end)
    end,
    ok = sw_e2e:eventually(fun() -> length(Told()) =:= 3 end),
    End(Elsewhere),
    ok = sw_e2e:eventually(fun() -> length(Told()) =:= 6 end, 5000),
    ?assertEqual([{<<"Cancelled">>, spin_watched}, {<<"CancelledError">>, erpc},
                  {<<"CancelledError">>, nap_async_watched}],
                 [What || What = {State, _} <- Told(), State =/= <<"begun">>]),
    Elsewhere.

listen(Told) ->
    receive
        {probe, What} -> listen([What | Told]);
        {get, From} -> From ! {self(), Told}, listen(Told)
    end.

a_lost_link_cancels_the_calls_that_came_by_it(Config) ->
    calls_from_elsewhere(Config, fun sw_e2e:kill_beam/1).

a_disconnected_peer_cancels_its_calls(Config) ->
    #{name := N} = proplists:get_value(node, Config),
    Elsewhere = calls_from_elsewhere(Config, fun(Beam) ->
        true = sw_e2e:on(Beam, fun() -> erlang:disconnect_node(N) end)
    end),
    ?assertEqual(pong, sw_e2e:on(Elsewhere, fun() -> net_adm:ping(N) end)),
    sw_e2e:stop_beam(Elsewhere).

%% --- what is not cancelled ----------------------------------------------------------------------

a_spawned_process_that_is_merely_watched_runs_on(Config) ->
    bare(Config, fun(N) ->
        {_, Monitor} = spawn_monitor(N, probe, nap_async_watched, [self(), it, 0.3]),
        ?assertEqual({<<"begun">>, it}, sw_e2e:tell_test(5000)),
        true = demonitor(Monitor),
        ?assertEqual({<<"done">>, it}, sw_e2e:tell_test(5000))
    end).

a_waiting_call_whose_caller_dies_never_runs(Config) ->
    with_node(Config, ["--workers", "1"], fun(N) ->
        Test = self(),
        Busy = gen_server:send_request({py, N}, {call, probe, nap_watched, [Test, first, 0.4]}),
        {<<"begun">>, first} = sw_e2e:tell_test(5000),
        {Caller, Monitor} = spawn_monitor(fun() ->
            Request = gen_server:send_request({py, N}, {call, probe, tell, [Test, second]}),
            gen_server:receive_response(Request, infinity)
        end),
        Last = gen_server:send_request({py, N}, {call, probe, tell, [Test, third]}),
        timer:sleep(50),
        exit(Caller, kill),
        receive {'DOWN', Monitor, process, Caller, killed} -> ok end,
        ?assertEqual({reply, {ok, 0.4}}, gen_server:receive_response(Busy, 5000)),
        ?assertEqual({<<"done">>, first}, sw_e2e:tell_test(5000)),
        ?assertEqual({reply, {ok, none}}, gen_server:receive_response(Last, 5000)),
        ?assertEqual(third, sw_e2e:tell_test(5000))
    end).

%% Callers leave just when their calls end; what runs next in the same worker must not be hit.
a_call_that_ends_in_time_is_not_interrupted_afterwards(Config) ->
    with_node(Config, ["--workers", "1"], fun(N) ->
        lists:foreach(fun(I) ->
            catch gen_server:call({py, N}, {call, probe, spin, [0.002]}, 1 + I rem 5),
            ?assertEqual({ok, 0.001}, gen_server:call({py, N}, {call, probe, spin, [0.001]}))
        end, lists:seq(1, 200)),
        sw_e2e:flush()
    end).

many_callers_killed_at_random_leave_nothing_behind(Config) ->
    #{name := N} = proplists:get_value(node, Config),
    Beam = proplists:get_value(beam, Config),
    bare(Config, fun(_) ->
        _ = rand:seed(exsss, {1, 2, 3}),
        Callers = [spawn(fun() ->
            case I rem 4 of
                0 -> gen_server:call({py, N}, {call, probe, nap_async, [?LONG]}, infinity);
                1 -> erpc:call(N, probe, nap_async, [?LONG]);
                2 -> gen_server:call({py, N}, {call, probe, spin, [?LONG]}, infinity);
                3 -> erpc:call(N, probe, spin, [?LONG])
            end
        end) || I <- lists:seq(1, 200)],
        [begin
            timer:sleep(rand:uniform(3)),
            exit(Caller, kill)
        end || {_, Caller} <- lists:sort([{rand:uniform(), Caller} || Caller <- Callers])]
    end),
    ok = sw_e2e:eventually(fun() ->
        Stats = sw_e2e:stats(Beam, N),
        maps:with([<<"busy">>, <<"waiting">>, <<"tasks">>], Stats) =:=
            #{<<"busy">> => 1, <<"waiting">> => 0, <<"tasks">> => 0}    % the one is this request
    end, 10000),
    ?assertMatch(#{<<"replaced_workers">> := 0}, sw_e2e:stats(Beam, N)).

%% --- what cannot be stopped ---------------------------------------------------------------------

replaced(Node) ->
    maps:get(<<"replaced_workers">>, erpc:call(Node, erlang, stats, [])).

a_worker_wedged_in_c_is_replaced_and_counted(Config) ->
    Log = with_node(Config, ["--workers", "1", "--grace-ms", "300"], fun(N) ->
        ?assertEqual(0, replaced(N)),
        Threads = erpc:call(N, probe, threads, []),
        ?assertExit({timeout, _}, gen_server:call({py, N}, {call, probe, nap_watched, [self(), it, 3]}, 100)),
        ?assertEqual({<<"begun">>, it}, sw_e2e:tell_test(0)),
        Begin = erlang:monotonic_time(millisecond),
        ?assertEqual({ok, 4.0}, gen_server:call({py, N}, {call, math, sqrt, [16.0]}, 2500)),
        ?assert(erlang:monotonic_time(millisecond) - Begin < 2000),
        ?assertEqual(1, replaced(N)),
        ?assertMatch({State, it} when State =/= <<"begun">>, sw_e2e:tell_test(5000)),
        ok = sw_e2e:eventually(fun() -> erpc:call(N, probe, threads, []) =:= Threads end),
        ?assertEqual(1, replaced(N))
    end),
    ?assertMatch({match, _}, re:run(Log, "error worker .* 300 ms.*replacing")).

code_that_swallows_its_interruption_is_replaced_too(Config) ->
    with_node(Config, ["--workers", "1", "--grace-ms", "300"], fun(N) ->
        Test = self(),
        Caller = spawn(fun() -> gen_server:call({py, N}, {call, probe, stubborn, [Test, 2]}, infinity) end),
        ?assertEqual(<<"stubborn">>, sw_e2e:tell_test(5000)),
        exit(Caller, kill),
        ?assertEqual({ok, 4.0}, gen_server:call({py, N}, {call, math, sqrt, [16.0]}, 1800)),
        ?assertEqual(1, replaced(N))
    end).

%% --- what cannot be taken on --------------------------------------------------------------------

more_calls_than_the_queue_holds_are_refused_at_once(Config) ->
    with_node(Config, ["--workers", "1", "--queue", "10"], fun(N) ->
        Busy = gen_server:send_request({py, N}, {call, probe, nap_watched, [self(), it, 2]}),
        {<<"begun">>, it} = sw_e2e:tell_test(5000),
        Waiting = [gen_server:send_request({py, N}, {call, probe, identity, [I]}) || I <- lists:seq(1, 10)],
        sw_e2e:within(100, fun() ->
            ?assertEqual({error, overloaded}, gen_server:call({py, N}, {call, math, sqrt, [16.0]}))
        end),
        ?assertEqual({error, overloaded}, gen_server:call({py, N}, {eval, <<"1">>, #{}})),
        ?assertEqual(pong, net_adm:ping(N)),
        ?assertEqual({reply, {ok, 2}}, gen_server:receive_response(Busy, 5000)),
        ?assertEqual([{reply, {ok, I}} || I <- lists:seq(1, 10)],
                     [gen_server:receive_response(Request, 5000) || Request <- Waiting]),
        ?assertEqual({ok, 4.0}, gen_server:call({py, N}, {call, math, sqrt, [16.0]})),
        ?assert(maps:get(<<"refused">>, erpc:call(N, erlang, stats, [])) >= 2)
    end).

more_erpc_calls_than_the_queue_holds_are_refused_at_once(Config) ->
    with_node(Config, ["--workers", "1", "--queue", "10"], fun(N) ->
        Busy = gen_server:send_request({py, N}, {call, probe, nap_watched, [self(), it, 1]}),
        {<<"begun">>, it} = sw_e2e:tell_test(5000),
        Waiting = [gen_server:send_request({py, N}, {call, probe, identity, [I]}) || I <- lists:seq(1, 10)],
        sw_e2e:within(100, fun() ->
            ?assertError({erpc, system_limit}, erpc:call(N, math, sqrt, [16.0]))
        end),
        ?assertEqual({reply, {ok, 1}}, gen_server:receive_response(Busy, 5000)),
        [{reply, {ok, _}} = gen_server:receive_response(Request, 5000) || Request <- Waiting],
        ?assertEqual(4.0, erpc:call(N, math, sqrt, [16.0]))
    end).

evals_of_one_caller_run_in_order(Config) ->
    bare(Config, fun(N) ->
        {ok, none} = gen_server:call({py, N}, {exec, <<"import time\norder = []">>}),
        Numbers = lists:seq(1, 200),
        Requests = [gen_server:send_request({py, N}, {exec, code(I)}) || I <- Numbers],
        [?assertEqual({reply, {ok, none}}, gen_server:receive_response(Request, 10000)) || Request <- Requests],
        ?assertEqual({ok, Numbers}, gen_server:call({py, N}, {eval, <<"order">>, #{}}))
    end).

code(I) when I rem 10 =:= 0 -> iolist_to_binary(io_lib:format("time.sleep(0.005)\norder.append(~b)", [I]));
code(I) -> iolist_to_binary(io_lib:format("order.append(~b)", [I])).
