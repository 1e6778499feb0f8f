%% What a BEAM with nothing of ours loaded can do with a Python node: every operation it has for nodes of
%% its own kind. All tests share one BEAM and one node of 16 workers; those that break a node start another.
-module(bare_SUITE).

-include_lib("stdlib/include/assert.hrl").

-export([all/0, groups/0, suite/0, init_per_suite/1, end_per_suite/1, init_per_testcase/2,
         end_per_testcase/2]).
-compile([export_all, nowarn_export_all]).

-define(NO_SUCH_TIME, 100).    % ms within which a missing thing is reported

suite() -> [{timetrap, {seconds, 60}}].

all() ->
    [{group, Group} || {Group, _, _} <- groups()].

groups() ->
    [{calls, [],
      [a_ping_is_answered_and_the_node_is_hidden,
       erpc_call_runs_python,
       erpc_cast_runs_python,
       erpc_send_request_gives_its_answer_later,
       erpc_multicall_asks_every_node,
       rpc_call_runs_python,
       a_python_exception_through_erpc_is_an_error_with_reason_python,
       a_python_exception_through_rpc_is_badrpc,
       functions_and_modules_that_do_not_exist_are_python_exceptions,
       erpc_of_a_coroutine_function_waits_for_its_result]},
     {processes, [],
      [spawn_runs_a_python_function_as_a_process_of_the_node,
       spawn_monitor_tells_the_exit_reason,
       spawn_link_tells_the_exit_reason,
       a_normal_end_does_not_hurt_a_linked_process,
       a_linked_process_dies_with_python,
       python_dies_with_a_linked_process,
       unlink_saves_python_from_a_dying_process,
       spawn_request_gives_pid_and_reply,
       spawn_request_of_what_does_not_exist_is_a_process_that_fails,
       a_spawned_process_can_be_killed,
       exit_2_ends_a_process_with_its_reason,
       exit_2_with_reason_normal_is_ignored,
       the_process_py_cannot_be_killed_from_outside]},
     {requests, [],
      [a_call_takes_atoms_or_binaries_as_names,
       a_call_takes_keyword_arguments,
       a_function_name_may_be_dotted,
       a_python_exception_is_an_error_value,
       a_result_without_a_term_is_a_type_error,
       eval_gives_the_value_of_an_expression,
       eval_sees_its_locals_and_forgets_them,
       exec_defines_what_the_same_caller_sees_again,
       a_namespace_is_seen_by_its_caller_alone,
       a_namespace_is_freed_when_its_caller_ends,
       a_namespace_is_freed_when_the_callers_node_is_lost,
       what_nobody_understands_is_a_bad_request,
       a_cast_runs_and_its_exception_is_logged,
       a_request_deeper_than_the_limit_is_a_bad_term_and_the_link_lives]},
     {missing, [],
      [a_call_to_a_name_that_does_not_exist_exits_with_noproc_at_once,
       a_monitor_of_a_missing_name_is_noproc_at_once,
       a_monitor_of_an_ended_process_is_noproc_at_once,
       a_link_to_an_ended_process_is_noproc_at_once,
       a_message_to_a_missing_name_is_harmless,
       a_message_to_an_ended_process_is_harmless,
       a_demonitored_name_is_silent,
       the_loss_of_a_node_is_noconnection_everywhere]},
     {servers, [],
      [a_named_genserver_answers_calls_casts_and_messages,
       a_genserver_may_answer_later,
       a_genserver_is_reached_by_its_pid,
       a_genserver_that_stops_tells_its_reason,
       a_genserver_that_raises_tells_the_waiting_caller,
       a_genserver_can_be_stopped_with_gen_server_stop,
       a_name_that_is_taken_is_refused,
       python_monitors_a_beam_process,
       python_hears_of_the_loss_of_a_beam,
       python_links_to_a_beam_process]},
     {concurrency, [],
      [sixteen_sleeping_calls_run_at_once,
       two_hundred_sleeping_coroutines_run_at_once,
       a_quick_call_does_not_wait_for_slow_ones,
       a_coroutine_runs_while_all_workers_are_busy,
     a_coroutine_function_that_becomes_an_ordinary_one_leaves_the_loop,
       a_ping_is_quick_while_python_spins,
       a_ping_is_quick_while_c_code_holds_the_gil,
       what_is_missing_is_missed_at_once_while_c_code_holds_the_gil,
       many_processes_call_at_once_and_each_gets_its_own_answer,
       two_large_binaries_pass_both_ways_while_small_calls_go_on]}].

init_per_suite(Config0) ->
    Config = sw_e2e:setup(Config0),
    Context = sw_e2e:context(Config),
    Node = sw_e2e:start_node(Context, #{args => ["--workers", "16"]}),
    Beam = sw_e2e:start_beam(Context),
    [{node, Node}, {beam, Beam} | Config].

end_per_suite(Config) ->
    true = sw_e2e:alive(maps:get(program, proplists:get_value(node, Config))),
    ok = sw_e2e:stop_beam(proplists:get_value(beam, Config)),
    ok = sw_e2e:stop_node(proplists:get_value(node, Config)),
    ok = sw_e2e:teardown(Config).

init_per_testcase(_, Config) ->
    Config.

end_per_testcase(_, _) ->
    ok.

%% Runs a test's body in the BEAM, with the name of the node.
bare(Config, Body) ->
    #{name := Node} = proplists:get_value(node, Config),
    sw_e2e:on(proplists:get_value(beam, Config), fun() -> Body(Node) end).

call(Node, F, Args) ->
    gen_server:call({py, Node}, {call, probe, F, Args}, 30000).

%% --- calls --------------------------------------------------------------------------------------

a_ping_is_answered_and_the_node_is_hidden(Config) ->
    bare(Config, fun(N) ->
        ?assertEqual(pong, net_adm:ping(N)),
        ?assert(lists:member(N, nodes(hidden))),
        ?assertNot(lists:member(N, nodes()))
    end).

erpc_call_runs_python(Config) ->
    bare(Config, fun(N) ->
        ?assertEqual(4.0, erpc:call(N, math, sqrt, [16.0])),
        ?assertEqual(<<"a/b">>, erpc:call(N, 'os.path', join, [<<"a">>, <<"b">>], 5000)),
        ?assertEqual(<<"a/b">>, erpc:call(N, os, 'path.join', [<<"a">>, <<"b">>]))
    end).

erpc_cast_runs_python(Config) ->
    bare(Config, fun(N) ->
        ?assertEqual(ok, erpc:cast(N, probe, tell, [self(), here])),
        ?assertEqual(here, sw_e2e:tell_test(5000))
    end).

erpc_send_request_gives_its_answer_later(Config) ->
    bare(Config, fun(N) ->
        Slow = erpc:send_request(N, probe, nap, [0.3]),
        Quick = erpc:send_request(N, math, sqrt, [4.0]),
        ?assertEqual({response, 2.0}, erpc:wait_response(Quick, 5000)),
        ?assertEqual(no_response, erpc:wait_response(Slow, 0)),
        ?assertEqual(0.3, erpc:receive_response(Slow, 5000))
    end).

erpc_multicall_asks_every_node(Config) ->
    bare(Config, fun(N) ->
        ?assertMatch([{ok, 3.0}, {ok, 3.0}, {error, {erpc, noconnection}}],
                     erpc:multicall([N, N, 'nobody@127.0.0.1'], math, sqrt, [9.0])),
        ?assertEqual(ok, erpc:multicast([N, N], probe, tell, [self(), twice])),
        ?assertEqual([twice, twice], [sw_e2e:tell_test(5000) || _ <- [1, 2]])
    end).

rpc_call_runs_python(Config) ->
    bare(Config, fun(N) ->
        ?assertEqual(4.0, rpc:call(N, math, sqrt, [16.0])),
        ?assertEqual({[4.0], ['nobody@127.0.0.1']}, rpc:multicall([N, 'nobody@127.0.0.1'], math, sqrt, [16.0])),
        ?assertEqual(5.0, rpc:yield(rpc:async_call(N, math, sqrt, [25.0]))),
        ?assertEqual(true, rpc:cast(N, probe, tell, [self(), cast])),
        ?assertEqual(cast, sw_e2e:tell_test(5000))
    end).

a_python_exception_through_erpc_is_an_error_with_reason_python(Config) ->
    bare(Config, fun(N) ->
        {Class, Reason} = try erpc:call(N, probe, fail, [<<"no">>]) catch C:R -> {C, R} end,
        ?assertEqual(error, Class),
        ?assertMatch({exception, {python, <<"probe.Odd">>, <<"no">>, _}, Stack} when is_list(Stack), Reason),
        {exception, {python, _, _, Traceback}, _} = Reason,
        ?assertMatch({match, _}, re:run(Traceback, "^Traceback.*probe\\.py.*in fail.*probe\\.Odd: no", [dotall])),
        %% Its message differs between versions of Python.
        ?assertError({exception, {python, <<"ValueError">>, <<_, _/binary>>, _}, _},
                     erpc:call(N, math, sqrt, [-1])),
        ?assertMatch([{error, {exception, {python, <<"probe.Odd">>, <<"no">>, _}, _}}],
                     erpc:multicall([N], probe, fail, [<<"no">>]))
    end).

a_python_exception_through_rpc_is_badrpc(Config) ->
    bare(Config, fun(N) ->
        ?assertMatch({badrpc, {'EXIT', {{python, <<"probe.Odd">>, <<"no">>, _}, _}}},
                     rpc:call(N, probe, fail, [<<"no">>]))
    end).

functions_and_modules_that_do_not_exist_are_python_exceptions(Config) ->
    bare(Config, fun(N) ->
        ?assertError({exception, {python, <<"ModuleNotFoundError">>, _, _}, _}, erpc:call(N, no_such_module, f, [])),
        ?assertError({exception, {python, <<"AttributeError">>, _, _}, _}, erpc:call(N, math, no_such_function, [])),
        ?assertError({exception, {python, <<"TypeError">>, _, _}, _}, erpc:call(N, math, pi, [])),
        ?assertError({exception, {python, <<"TypeError">>, _, _}, _}, erpc:call(N, math, sqrt, [1, 2, 3]))
    end).

erpc_of_a_coroutine_function_waits_for_its_result(Config) ->
    bare(Config, fun(N) ->
        ?assertEqual(0.01, erpc:call(N, probe, nap_async, [0.01])),
        ?assertError({exception, {python, <<"probe.Odd">>, <<"later">>, _}, _},
                     erpc:call(N, probe, fail_later, [<<"later">>]))
    end).

%% --- processes ----------------------------------------------------------------------------------

spawn_runs_a_python_function_as_a_process_of_the_node(Config) ->
    bare(Config, fun(N) ->
        Pid = spawn(N, probe, tell, [self(), ran]),
        ?assertEqual(ran, sw_e2e:tell_test(5000)),
        ?assertEqual(N, node(Pid)),
        Other = spawn(N, probe, tell, [self(), ran]),
        ?assertNotEqual(Pid, Other)
    end).

spawn_monitor_tells_the_exit_reason(Config) ->
    bare(Config, fun(N) ->
        ?assertEqual(normal, monitored(N, math, sqrt, [1.0])),
        ?assertMatch({python, <<"probe.Odd">>, <<"no">>, <<"Traceback", _/binary>>},
                     monitored(N, probe, fail, [<<"no">>])),
        ?assertEqual(normal, monitored(N, probe, nap_async, [0.01])),
        ?assertMatch({python, <<"probe.Odd">>, <<"no">>, _}, monitored(N, probe, fail_later, [<<"no">>]))
    end).

monitored(Node, M, F, Args) ->
    {Pid, Monitor} = spawn_monitor(Node, M, F, Args),
    reason_of(Pid, Monitor).

reason_of(Pid, Monitor) ->
    receive
        {'DOWN', Monitor, process, Pid, Reason} -> Reason
    after 5000 ->
        error(no_down)
    end.

spawn_link_tells_the_exit_reason(Config) ->
    bare(Config, fun(N) ->
        process_flag(trap_exit, true),
        Good = spawn_link(N, math, sqrt, [1.0]),
        ?assertEqual(normal, exit_of(Good)),
        Bad = spawn_link(N, probe, fail, [<<"no">>]),
        ?assertMatch({python, <<"probe.Odd">>, <<"no">>, _}, exit_of(Bad))
    end).

exit_of(Pid) ->
    receive
        {'EXIT', Pid, Reason} -> Reason
    after 5000 ->
        error(no_exit)
    end.

a_normal_end_does_not_hurt_a_linked_process(Config) ->
    bare(Config, fun(N) ->
        Pid = spawn_link(N, probe, tell, [self(), ran]),
        ran = sw_e2e:tell_test(5000),
        ?assertEqual(noproc, reason_of(Pid, ended(Pid))),
        ?assertEqual(4.0, erpc:call(N, math, sqrt, [16.0]))
    end).

%% A monitor of a process that has ended.
ended(Pid) ->
    ok = sw_e2e:eventually(fun() ->
        Monitor = monitor(process, Pid),
        receive {'DOWN', Monitor, process, Pid, Reason} -> Reason =:= noproc end
    end),
    monitor(process, Pid).

a_linked_process_dies_with_python(Config) ->
    bare(Config, fun(N) ->
        {Pid, Monitor} = spawn_monitor(fun() ->
            spawn_link(N, probe, fail, [<<"both">>]),
            receive never -> ok end
        end),
        ?assertMatch({python, <<"probe.Odd">>, <<"both">>, _}, reason_of(Pid, Monitor))
    end).

python_dies_with_a_linked_process(Config) ->
    bare(Config, fun(N) ->
        Test = self(),
        Linked = spawn(fun() ->
            Test ! {python, spawn_link(N, probe, nap_async_watched, [Test, linked, 30])},
            receive never -> ok end
        end),
        Python = receive {python, Pid} -> Pid after 5000 -> error(no_pid) end,
        ?assertEqual({<<"begun">>, linked}, sw_e2e:tell_test(5000)),
        Monitor = monitor(process, Python),
        exit(Linked, {gone, [1, <<"two">>]}),
        ?assertEqual({gone, [1, <<"two">>]}, reason_of(Python, Monitor)),
        ?assertEqual({<<"CancelledError">>, linked}, sw_e2e:tell_test(5000))
    end).

unlink_saves_python_from_a_dying_process(Config) ->
    bare(Config, fun(N) ->
        Test = self(),
        Linked = spawn(fun() ->
            Python = spawn_link(N, probe, nap_async, [0.3]),
            true = unlink(Python),
            Test ! {python, Python},
            receive go -> exit(gone) end
        end),
        Python = receive {python, Pid} -> Pid after 5000 -> error(no_pid) end,
        Monitor = monitor(process, Python),
        Linked ! go,
        ?assertEqual(normal, reason_of(Python, Monitor))
    end).

spawn_request_gives_pid_and_reply(Config) ->
    bare(Config, fun(N) ->
        Request = spawn_request(N, probe, nap, [0.05], [monitor, {reply_tag, born}]),
        Pid = receive {born, Request, ok, Born} -> Born after 5000 -> error(no_reply) end,
        ?assertEqual(N, node(Pid)),
        ?assertEqual(normal, reason_of(Pid, Request)),
        process_flag(trap_exit, true),
        Linking = spawn_request(N, probe, fail, [<<"no">>], [link]),
        Linked = receive {spawn_reply, Linking, ok, Child} -> Child after 5000 -> error(no_reply) end,
        ?assertMatch({python, <<"probe.Odd">>, _, _}, exit_of(Linked)),
        {Both, Monitor} = erlang:spawn_opt(N, math, sqrt, [1], [link, monitor]),
        ?assertEqual(normal, reason_of(Both, Monitor)),
        ?assertEqual(normal, exit_of(Both)),
        Silent = spawn_request(N, probe, tell, [self(), silently], [{reply, no}]),
        ?assertEqual(silently, sw_e2e:tell_test(5000)),
        receive {spawn_reply, Silent, _, _} -> error(a_reply) after 50 -> ok end
    end).

spawn_request_of_what_does_not_exist_is_a_process_that_fails(Config) ->
    bare(Config, fun(N) ->
        Request = spawn_request(N, no_such_module, f, [], [monitor]),
        Pid = receive {spawn_reply, Request, ok, Born} -> Born after 5000 -> error(no_reply) end,
        ?assertMatch({python, <<"ModuleNotFoundError">>, _, _}, reason_of(Pid, Request)),
        ?assertMatch({python, <<"TypeError">>, _, _}, monitored(N, math, sqrt, []))
    end).

a_spawned_process_can_be_killed(Config) ->
    bare(Config, fun(N) ->
        [begin
            {Pid, Monitor} = spawn_monitor(N, probe, Function, [self(), Function, 30]),
            ?assertEqual({<<"begun">>, Function}, sw_e2e:tell_test(5000)),
            exit(Pid, kill),
            ?assertEqual(killed, reason_of(Pid, Monitor)),
            ?assertMatch({_, Function}, sw_e2e:tell_test(5000))
        end || Function <- [spin_watched, nap_async_watched]]
    end).

exit_2_ends_a_process_with_its_reason(Config) ->
    bare(Config, fun(N) ->
        {Pid, Monitor} = spawn_monitor(N, probe, nap_async_watched, [self(), me, 30]),
        ?assertEqual({<<"begun">>, me}, sw_e2e:tell_test(5000)),
        exit(Pid, {shutdown, #{why => "tired"}}),
        ?assertEqual({shutdown, #{why => "tired"}}, reason_of(Pid, Monitor)),
        ?assertEqual({<<"CancelledError">>, me}, sw_e2e:tell_test(5000))
    end).

exit_2_with_reason_normal_is_ignored(Config) ->
    bare(Config, fun(N) ->
        {Pid, Monitor} = spawn_monitor(N, probe, nap_async_watched, [self(), me, 0.2]),
        ?assertEqual({<<"begun">>, me}, sw_e2e:tell_test(5000)),
        exit(Pid, normal),
        ?assertEqual({<<"done">>, me}, sw_e2e:tell_test(5000)),
        ?assertEqual(normal, reason_of(Pid, Monitor))
    end).

the_process_py_cannot_be_killed_from_outside(Config) ->
    bare(Config, fun(N) ->
        Py = gen_server:call({py, N}, {eval, <<"__import__('erlang').whereis('py')">>, #{}}),
        ?assertMatch({ok, Pid} when is_pid(Pid), Py),
        exit(element(2, Py), kill),
        ?assertEqual({ok, 4.0}, gen_server:call({py, N}, {call, math, sqrt, [16.0]}))
    end).

%% --- requests -----------------------------------------------------------------------------------

a_call_takes_atoms_or_binaries_as_names(Config) ->
    bare(Config, fun(N) ->
        [?assertEqual({ok, 4.0}, gen_server:call({py, N}, {call, M, F, [16.0]}))
         || M <- [math, <<"math">>], F <- [sqrt, <<"sqrt">>]]
    end).

a_call_takes_keyword_arguments(Config) ->
    bare(Config, fun(N) ->
        Call = fun(Args, Kwargs) -> gen_server:call({py, N}, {call, probe, keywords, Args, Kwargs}) end,
        ?assertEqual({ok, [[1], #{<<"a">> => 2, <<"b">> => three}]}, Call([1], #{a => 2, <<"b">> => three})),
        ?assertEqual({ok, [[], #{}]}, Call([], #{})),
        ?assertEqual({ok, [[1, 2], #{}]}, Call([1, 2], [])),
        ?assertMatch({error, {python, <<"TypeError">>, _, _}}, Call([], #{1 => 2}))
    end).

a_function_name_may_be_dotted(Config) ->
    bare(Config, fun(N) ->
        ?assertEqual({ok, <<"HI">>}, gen_server:call({py, N}, {call, probe, 'Vocal.Inner.shout', [<<"hi">>]})),
        ?assertEqual({ok, <<"x/y">>}, gen_server:call({py, N}, {call, <<"os">>, <<"path.join">>, [<<"x">>, <<"y">>]})),
        ?assertMatch({error, {python, <<"AttributeError">>, _, _}},
                     gen_server:call({py, N}, {call, probe, 'Vocal.No.shout', []}))
    end).

a_python_exception_is_an_error_value(Config) ->
    bare(Config, fun(N) ->
        {error, {python, Type, Message, Traceback}} = call(N, fail, [<<"größe"/utf8>>]),
        ?assertEqual(<<"probe.Odd">>, Type),
        ?assertEqual(<<"größe"/utf8>>, Message),
        ?assertMatch({match, _}, re:run(Traceback, "in fail")),
        ?assertMatch({error, {python, <<"probe.Odd">>, <<"late">>, _}}, call(N, fail_later, [<<"late">>])),
        ?assertMatch({error, {python, <<"SystemExit">>, _, _}}, gen_server:call({py, N}, {call, sys, exit, [3]}))
    end).

a_result_without_a_term_is_a_type_error(Config) ->
    bare(Config, fun(N) ->
        {error, {python, Type, Message, _}} = call(N, unencodable, []),
        ?assertEqual(<<"TypeError">>, Type),
        ?assertMatch({match, _}, re:run(Message, "lock")),
        ?assertError({exception, {python, <<"TypeError">>, _, _}, _}, erpc:call(N, probe, unencodable, []))
    end).

eval_gives_the_value_of_an_expression(Config) ->
    bare(Config, fun(N) ->
        Eval = fun(Code) -> gen_server:call({py, N}, {eval, Code, #{}}) end,
        ?assertEqual({ok, 285}, Eval(<<"sum(n * n for n in range(10))">>)),
        ?assertEqual({ok, [1, 2]}, Eval(<<"[1,\n 2]">>)),
        ?assertEqual({ok, 3}, gen_server:call({py, N}, {eval, <<"1 + 2">>})),
        ?assertMatch({error, {python, <<"SyntaxError">>, _, _}}, Eval(<<"1 +">>)),
        ?assertMatch({error, {python, <<"SyntaxError">>, _, _}}, Eval(<<"x = 1">>)),
        ?assertMatch({error, {python, <<"NameError">>, _, _}}, Eval(<<"never_defined">>)),
        ?assertMatch({error, {python, <<"ZeroDivisionError">>, _, _}}, Eval(<<"1 / 0">>))
    end).

eval_sees_its_locals_and_forgets_them(Config) ->
    bare(Config, fun(N) ->
        Eval = fun(Code, Locals) -> gen_server:call({py, N}, {eval, Code, Locals}) end,
        ?assertEqual({ok, [2, 4]}, Eval(<<"[x * k for x in xs]">>, #{xs => [1, 2], <<"k">> => 2})),
        ?assertMatch({error, {python, <<"NameError">>, _, _}}, Eval(<<"xs">>, #{})),
        ?assertMatch({error, {python, <<"TypeError">>, _, _}}, Eval(<<"1">>, #{1 => 2}))
    end).

exec_defines_what_the_same_caller_sees_again(Config) ->
    bare(Config, fun(N) ->
        Exec = fun(Code) -> gen_server:call({py, N}, {exec, Code}) end,
        ?assertEqual({ok, none}, Exec(<<"import math\nx = 1\ndef twice(n):\n    return 2 * n * x\n">>)),
        ?assertEqual({ok, none}, Exec(<<"x += 1">>)),
        ?assertEqual({ok, 12}, gen_server:call({py, N}, {eval, <<"twice(3)">>, #{}})),
        ?assertEqual({ok, 20}, gen_server:call({py, N}, {eval, <<"twice(y)">>, #{y => 5}})),
        ?assertMatch({error, {python, <<"RuntimeError">>, <<"bad">>, _}}, Exec(<<"raise RuntimeError('bad')">>))
    end).

a_namespace_is_seen_by_its_caller_alone(Config) ->
    bare(Config, fun(N) ->
        {ok, none} = gen_server:call({py, N}, {exec, <<"mine = 1">>}),
        Other = in_process(fun() -> gen_server:call({py, N}, {eval, <<"mine">>, #{}}) end),
        ?assertMatch({error, {python, <<"NameError">>, _, _}}, Other),
        ?assertEqual({ok, 1}, gen_server:call({py, N}, {eval, <<"mine">>, #{}}))
    end).

in_process(Function) ->
    {Pid, Monitor} = spawn_monitor(fun() -> exit({value, Function()}) end),
    receive {'DOWN', Monitor, process, Pid, {value, Value}} -> Value end.

a_namespace_is_freed_when_its_caller_ends(Config) ->
    bare(Config, fun(N) ->
        Test = self(),
        Caller = spawn(fun() -> hold_canary(N, Test, Test) end),
        receive {holding, Caller} -> ok after 5000 -> error(not_holding) end,
        receive {probe, Early} -> error({too_early, Early}) after 100 -> ok end,
        exit(Caller, kill),
        ?assertEqual(<<"freed">>, sw_e2e:tell_test(5000))
    end).

a_namespace_is_freed_when_the_callers_node_is_lost(Config) ->
    Context = sw_e2e:context(Config),
    #{name := N} = proplists:get_value(node, Config),
    Lost = sw_e2e:start_beam(Context),
    Keeper = sw_e2e:on(proplists:get_value(beam, Config), fun() ->
        Keeper = spawn(fun() -> receive {get, From} -> From ! {kept, receive M -> M end} end end),
        Keeper
    end),
    ok = sw_e2e:on(Lost, fun() ->
        Relay = self(),
        Holder = spawn(fun() -> hold_canary(N, Keeper, Relay) end),
        receive {holding, Holder} -> ok after 5000 -> error(not_holding) end
    end),
    ok = sw_e2e:kill_beam(Lost),
    Freed = sw_e2e:on(proplists:get_value(beam, Config), fun() ->
        Keeper ! {get, self()},
        receive {kept, Message} -> Message after 5000 -> error(not_freed) end
    end),
    ?assertEqual({probe, <<"freed">>}, Freed).

%% Keeps an object in this process's namespace that tells when it is freed.
hold_canary(Node, Told, Test) ->
    {ok, none} = gen_server:call({py, Node}, {exec, <<"import probe\nkept = []">>}),
    {ok, none} = gen_server:call({py, Node}, {eval, <<"kept.append(probe.Canary(test))">>, #{test => Told}}),
    Test ! {holding, self()},
    receive never -> ok end.

what_nobody_understands_is_a_bad_request(Config) ->
    bare(Config, fun(N) ->
        [?assertEqual({error, {bad_request, Request}}, gen_server:call({py, N}, Request))
         || Request <- [nonsense, {}, [], {call}, {call, math, sqrt}, {call, math, 1, []}, {call, "math", sqrt, [1]},
                        {eval}, {eval, 1, #{}}, {exec, <<"1">>, 2}, {frobnicate, <<"x">>}, {call, math, sqrt, [1], #{}, 1, 2},
                        #{call => math}, 42, <<"call">>, fun lists:map/2]],
        ?assertMatch({error, {bad_term, Text}} when is_binary(Text), gen_server:call({py, N}, {call, math, sqrt, foo})),
        ?assertMatch({error, {bad_term, Text}} when is_binary(Text), gen_server:call({py, N}, {call, math, sqrt, [1 | 2]}))
    end).

a_cast_runs_and_its_exception_is_logged(Config) ->
    #{program := Program} = proplists:get_value(node, Config),
    Message = sw_e2e:unique("no_cast"),
    bare(Config, fun(N) ->
        ok = gen_server:cast({py, N}, {cast, probe, tell, [self(), cast]}),
        ?assertEqual(cast, sw_e2e:tell_test(5000)),
        ok = gen_server:cast({py, N}, {cast, probe, keywords, [], #{a => 1}}),
        ok = gen_server:cast({py, N}, {cast, probe, fail, [list_to_binary(Message)]}),
        ok = gen_server:cast({py, N}, nonsense)
    end),
    ?assertMatch({match, _}, re:run(sw_e2e:wait_line(Program, Message), "probe.Odd")).

a_request_deeper_than_the_limit_is_a_bad_term_and_the_link_lives(Config) ->
    bare(Config, fun(N) ->
        pong = net_adm:ping(N),
        true = monitor_node(N, true),
        Deep = lists:foldl(fun(_, Term) -> [Term] end, [], lists:seq(1, 100000)),
        ?assertMatch({error, {bad_term, Text}} when is_binary(Text), call(N, identity, [Deep])),
        ?assertMatch({error, {bad_term, Text}} when is_binary(Text), gen_server:call({py, N}, {call, probe, identity, Deep})),
        ?assertMatch({error, _}, gen_server:call({py, N}, Deep)),
        Fits = lists:foldl(fun(_, Term) -> [Term] end, [], lists:seq(1, 900)),
        ?assertEqual({ok, Fits}, call(N, identity, [Fits])),
        ?assertMatch({error, {python, <<"ValueError">>, _, _}}, call(N, nested, [5000])),
        true = monitor_node(N, false),
        receive {nodedown, N} -> error(the_link_was_lost) after 0 -> ok end
    end).

%% --- what is missing ----------------------------------------------------------------------------

a_call_to_a_name_that_does_not_exist_exits_with_noproc_at_once(Config) ->
    bare(Config, fun(N) ->
        pong = net_adm:ping(N),
        sw_e2e:within(?NO_SUCH_TIME, fun() ->
            ?assertExit({noproc, {gen_server, call, _}}, gen_server:call({nobody, N}, hello, 5000))
        end)
    end).

a_monitor_of_a_missing_name_is_noproc_at_once(Config) ->
    bare(Config, fun(N) ->
        sw_e2e:within(?NO_SUCH_TIME, fun() ->
            Monitor = monitor(process, {nobody, N}),
            receive {'DOWN', Monitor, process, {nobody, N}, Reason} -> ?assertEqual(noproc, Reason) end
        end),
        Alias = monitor(process, {nobody, N}, [{alias, demonitor}, {tag, gone}]),
        receive {gone, Alias, process, {nobody, N}, noproc} -> ok after 5000 -> error(no_down) end
    end).

a_monitor_of_an_ended_process_is_noproc_at_once(Config) ->
    bare(Config, fun(N) ->
        {Pid, First} = spawn_monitor(N, math, sqrt, [1.0]),
        normal = reason_of(Pid, First),
        sw_e2e:within(?NO_SUCH_TIME, fun() -> ?assertEqual(noproc, reason_of(Pid, monitor(process, Pid))) end)
    end).

a_link_to_an_ended_process_is_noproc_at_once(Config) ->
    bare(Config, fun(N) ->
        process_flag(trap_exit, true),
        {Pid, Monitor} = spawn_monitor(N, math, sqrt, [1.0]),
        normal = reason_of(Pid, Monitor),
        sw_e2e:within(?NO_SUCH_TIME, fun() ->
            true = link(Pid),
            ?assertEqual(noproc, exit_of(Pid))
        end)
    end).

a_message_to_a_missing_name_is_harmless(Config) ->
    bare(Config, fun(N) ->
        pong = net_adm:ping(N),
        true = monitor_node(N, true),
        {nobody, N} ! hello,
        {py, N} ! hello,
        {net_kernel, N} ! hello,
        {rex, N} ! {self(), features_request},
        ok = gen_server:cast({nobody, N}, hello),
        ?assertEqual({ok, 1}, call(N, identity, [1])),
        true = monitor_node(N, false),
        receive {nodedown, N} -> error(the_link_was_lost) after 0 -> ok end
    end).

a_message_to_an_ended_process_is_harmless(Config) ->
    bare(Config, fun(N) ->
        {Pid, Monitor} = spawn_monitor(N, math, sqrt, [1.0]),
        normal = reason_of(Pid, Monitor),
        Pid ! hello,
        exit(Pid, kill),
        true = unlink(Pid),
        ?assertEqual({ok, 1}, call(N, identity, [1]))
    end).

a_demonitored_name_is_silent(Config) ->
    Node = #{name := N} = sw_e2e:start_node(sw_e2e:context(Config)),
    bare(Config, fun(_) ->
        Silent = monitor(process, {py, N}),
        Loud = monitor(process, {py, N}),
        {ok, 1} = call(N, identity, [1]),
        true = demonitor(Silent),
        ok = erpc:cast(N, os, '_exit', [0]),
        receive {'DOWN', Loud, process, {py, N}, Reason} -> ?assertEqual(noconnection, Reason)
        after 5000 -> error(no_down) end,
        receive {'DOWN', Silent, _, _, _} -> error(not_silent) after 100 -> ok end
    end),
    sw_e2e:stop_node(Node).

the_loss_of_a_node_is_noconnection_everywhere(Config) ->
    Node = #{name := N, program := Program} = sw_e2e:start_node(sw_e2e:context(Config)),
    OsPid = integer_to_list(sw_e2e:os_pid(Program)),
    bare(Config, fun(_) ->
        process_flag(trap_exit, true),
        pong = net_adm:ping(N),
        true = monitor_node(N, true),
        Named = monitor(process, {py, N}),
        Linked = spawn_link(N, probe, nap, [30]),
        {Watched, Monitor} = spawn_monitor(N, probe, nap_async, [30]),
        Erpc = erpc:send_request(N, probe, nap, [30]),
        Call = gen_server:send_request({py, N}, {call, probe, nap, [30]}),
        {ok, 1} = call(N, identity, [1]),
        "" = os:cmd("kill -9 " ++ OsPid),
        ?assertEqual(noconnection, reason_of({py, N}, Named)),
        ?assertEqual(noconnection, exit_of(Linked)),
        ?assertEqual(noconnection, reason_of(Watched, Monitor)),
        ?assertError({erpc, noconnection}, erpc:receive_response(Erpc, 5000)),
        ?assertMatch({error, {noconnection, _}}, gen_server:receive_response(Call, 5000)),
        receive {nodedown, N} -> ok after 5000 -> error(no_nodedown) end,
        ?assertEqual(pang, net_adm:ping(N)),
        ?assertExit({{nodedown, N}, _}, call(N, identity, [1]))
    end),
    ?assertEqual(137, sw_e2e:await_exit(Program)),
    sw_e2e:stop_node(Node).

%% --- Python's own processes ---------------------------------------------------------------------

start_counter(Node, Name) ->
    {ok, Pid} = gen_server:call({py, Node}, {call, probe, start_counter, [10, self(), Name]}),
    Pid.

a_named_genserver_answers_calls_casts_and_messages(Config) ->
    bare(Config, fun(N) ->
        Pid = start_counter(N, counter),
        ?assertEqual(N, node(Pid)),
        ?assertEqual(11, gen_server:call({counter, N}, increment)),
        ok = gen_server:cast({counter, N}, 100),
        ?assertEqual(112, gen_server:call({counter, N}, increment)),
        ?assertEqual({unknown, {1, two}}, gen_server:call({counter, N}, {1, two})),
        {counter, N} ! {hello, [1]},
        ?assertEqual({<<"info">>, {hello, [1]}}, sw_e2e:tell_test(5000)),
        Monitor = monitor(process, {counter, N}),
        ok = gen_server:stop({counter, N}),
        ?assertEqual(normal, reason_of({counter, N}, Monitor)),
        ?assertExit({noproc, _}, gen_server:call({counter, N}, increment))
    end).

a_genserver_may_answer_later(Config) ->
    bare(Config, fun(N) ->
        Pid = start_counter(N, none),
        Slow = gen_server:send_request(Pid, {later, 0.2}),
        ?assertEqual(11, gen_server:call(Pid, increment)),
        ?assertEqual({reply, <<"late">>}, gen_server:receive_response(Slow, 5000)),
        exit(Pid, kill)
    end).

a_genserver_is_reached_by_its_pid(Config) ->
    bare(Config, fun(N) ->
        Pid = start_counter(N, none),
        ?assertEqual(11, gen_server:call(Pid, increment)),
        ok = gen_server:cast(Pid, 1),
        ?assertEqual(13, gen_server:call(Pid, increment)),
        Pid ! plain,
        ?assertEqual({<<"info">>, plain}, sw_e2e:tell_test(5000)),
        Monitor = monitor(process, Pid),
        exit(Pid, enough),
        ?assertEqual(enough, reason_of(Pid, Monitor))
    end).

a_genserver_that_stops_tells_its_reason(Config) ->
    bare(Config, fun(N) ->
        Pid = start_counter(N, none),
        ?assertExit({{shutdown, tired}, {gen_server, call, _}}, gen_server:call(Pid, {stop, {shutdown, tired}}))
    end).

a_genserver_that_raises_tells_the_waiting_caller(Config) ->
    bare(Config, fun(N) ->
        process_flag(trap_exit, true),
        Pid = start_counter(N, none),
        true = link(Pid),
        ?assertExit({{python, <<"probe.Odd">>, <<"oops">>, _}, {gen_server, call, _}},
                    gen_server:call(Pid, {crash, <<"oops">>})),
        ?assertMatch({python, <<"probe.Odd">>, <<"oops">>, _}, exit_of(Pid))
    end).

a_genserver_can_be_stopped_with_gen_server_stop(Config) ->
    bare(Config, fun(N) ->
        Pid = start_counter(N, none),
        ?assertEqual(ok, gen_server:stop(Pid, normal, 5000)),
        Other = start_counter(N, none),
        Monitor = monitor(process, Other),
        ?assertEqual(ok, gen_server:stop(Other, {shutdown, 1}, 5000)),
        ?assertEqual({shutdown, 1}, reason_of(Other, Monitor))
    end).

a_name_that_is_taken_is_refused(Config) ->
    bare(Config, fun(N) ->
        First = start_counter(N, taken),
        ?assertMatch({error, {python, <<"ValueError">>, _, _}}, call(N, start_counter, [1, self(), taken])),
        ?assertMatch({error, {python, <<"ValueError">>, _, _}}, call(N, start_counter, [1, self(), py])),
        Monitor = monitor(process, First),
        exit(First, kill),
        killed = reason_of(First, Monitor),
        Second = start_counter(N, taken),
        ?assertEqual(11, gen_server:call({taken, N}, increment)),
        exit(Second, kill)
    end).

python_monitors_a_beam_process(Config) ->
    bare(Config, fun(N) ->
        Mortal = spawn(fun() -> receive {die, Reason} -> exit(Reason) end end),
        Watch = gen_server:send_request({py, N}, {call, probe, watch, [self(), Mortal]}),
        ?assertEqual(<<"watching">>, sw_e2e:tell_test(5000)),
        Mortal ! {die, {because, 1}},
        ?assertEqual({'DOWN', Mortal, {because, 1}}, sw_e2e:tell_test(5000)),
        ?assertEqual({reply, {ok, {because, 1}}}, gen_server:receive_response(Watch, 5000)),
        ?assertEqual({ok, noproc}, call(N, watch, [self(), Mortal])),
        _ = sw_e2e:flush(),
        ?assertEqual({ok, noproc}, call(N, watch, [self(), {<<"nobody">>, node()}])),
        ?assertEqual({ok, noconnection}, call(N, watch, [self(), {<<"x">>, 'nobody@127.0.0.1'}]))
    end).

python_hears_of_the_loss_of_a_beam(Config) ->
    Context = sw_e2e:context(Config),
    #{name := N} = proplists:get_value(node, Config),
    Lost = sw_e2e:start_beam(Context),
    {Pid, Reference} = sw_e2e:on(Lost, fun() ->
        pong = net_adm:ping(N),
        {spawn(fun() -> receive never -> ok end end), make_ref()}
    end),
    Asked = bare(Config, fun(_) ->
        Test = self(),
        Watcher = spawn(fun() ->
            Request = gen_server:send_request({py, N}, {call, probe, watch, [self(), Pid]}),
            receive {probe, <<"watching">>} -> Test ! watching end,
            {reply, Answer} = gen_server:receive_response(Request, 20000),
            receive {get, From} -> From ! {Reference, Answer} end
        end),
        receive watching -> ok after 5000 -> error(not_watching) end,
        Watcher
    end),
    ok = sw_e2e:kill_beam(Lost),
    bare(Config, fun(_) ->
        Asked ! {get, self()},
        receive {Reference, Answer} -> ?assertEqual({ok, noconnection}, Answer) after 5000 -> error(not_told) end
    end).

python_links_to_a_beam_process(Config) ->
    bare(Config, fun(N) ->
        Mortal = spawn(fun() -> receive {die, Reason} -> exit(Reason) end end),
        ok = gen_server:cast({py, N}, {cast, probe, join, [self(), Mortal, true]}),
        {<<"linked">>, Python} = sw_e2e:tell_test(5000),
        Mortal ! {die, torn},
        ?assertEqual({'EXIT', Mortal, torn}, sw_e2e:tell_test(5000)),
        ok = gen_server:cast({py, N}, {cast, probe, join, [self(), self(), false]}),
        {<<"linked">>, Second} = sw_e2e:tell_test(5000),
        ?assertNotEqual(Python, Second),
        process_flag(trap_exit, true),
        Monitor = monitor(process, Second),
        exit(Second, {torn, too}),
        ?assertEqual({torn, too}, reason_of(Second, Monitor)),
        ?assertEqual({torn, too}, exit_of(Second))
    end).

%% --- concurrency --------------------------------------------------------------------------------

%% Runs so many functions at once; all their results.
at_once(Functions) ->
    Test = self(),
    Started = [spawn_monitor(fun() -> Test ! {self(), Function()} end) || Function <- Functions],
    [receive
         {Pid, Result} -> demonitor(Monitor, [flush]), Result;
         {'DOWN', Monitor, process, Pid, Reason} -> error(Reason)
     end || {Pid, Monitor} <- Started].

sixteen_sleeping_calls_run_at_once(Config) ->
    bare(Config, fun(N) ->
        sw_e2e:within(100, fun() ->
            Results = at_once(lists:duplicate(16, fun() -> call(N, nap, [0.05]) end)),
            ?assertEqual(lists:duplicate(16, {ok, 0.05}), Results)
        end)
    end).

two_hundred_sleeping_coroutines_run_at_once(Config) ->
    bare(Config, fun(N) ->
        sw_e2e:within(100, fun() ->
            Results = at_once(lists:duplicate(200, fun() -> call(N, nap_async, [0.05]) end)),
            ?assertEqual(lists:duplicate(200, {ok, 0.05}), Results)
        end)
    end).

%% So many calls that sleep; given back once they have all begun.
busy(Node, Count, Seconds) ->
    Requests = [gen_server:send_request({py, Node}, {call, probe, nap_watched, [self(), I, Seconds]})
                || I <- lists:seq(1, Count)],
    [{<<"begun">>, _} = sw_e2e:tell_test(5000) || _ <- Requests],
    Requests.

responses(Requests) ->
    [element(2, {reply, _} = gen_server:receive_response(Request, 20000)) || Request <- Requests].

a_quick_call_does_not_wait_for_slow_ones(Config) ->
    bare(Config, fun(N) ->
        Slow = busy(N, 15, 1.0),
        sw_e2e:within(50, fun() -> {ok, 4.0} = gen_server:call({py, N}, {call, math, sqrt, [16.0]}) end),
        ?assertEqual(lists:duplicate(15, {ok, 1.0}), responses(Slow)),
        sw_e2e:flush()
    end).

a_coroutine_runs_while_all_workers_are_busy(Config) ->
    bare(Config, fun(N) ->
        {ok, _} = call(N, nap_async, [0.001]),
        Slow = busy(N, 16, 1.5),
        sw_e2e:within(100, fun() -> {ok, 0.01} = call(N, nap_async, [0.01]) end),
        sw_e2e:within(100, fun() -> 0.01 = erpc:call(N, probe, nap_async, [0.01]) end),
        ?assertEqual([], [done || {reply, _} <- [gen_server:wait_response(Request, 0) || Request <- Slow]])
    end).

%% The node remembers whose calls went to the loop thread; a function that would hold it up may not.
a_coroutine_function_that_becomes_an_ordinary_one_leaves_the_loop(Config) ->
    bare(Config, fun(N) ->
        Defined = fun(Code) ->
            Define = <<"import sys, types, threading\nmodule = types.ModuleType('turncoat')\nexec(", $', $', $',
                       Code/binary, $', $', $', ", module.__dict__)\nsys.modules['turncoat'] = module\n">>,
            {ok, _} = gen_server:call({py, N}, {exec, Define})
        end,
        Where = fun() ->
            {ok, Thread} = gen_server:call({py, N}, {call, turncoat, where, []}),
            Thread
        end,
        Async = <<"import threading\nasync def where(): return threading.current_thread().name">>,
        Plain = <<"import threading\ndef where(): return threading.current_thread().name">>,
        Defined(Async),
        Loop = Where(),
        ?assertEqual([Loop, Loop], [Where(), Where()]),
        Defined(Plain),
        ?assertEqual([], [on_loop || _ <- lists:seq(1, 5), Where() =:= Loop]),
        Defined(Async),
        ?assertEqual([Loop, Loop], [Where(), Where()])
    end).

a_ping_is_quick_while_python_spins(Config) ->
    bare(Config, fun(N) ->
        Spinning = [gen_server:send_request({py, N}, {call, probe, spin_watched, [self(), I, 1.0]}) || I <- [1, 2]],
        [{<<"begun">>, _} = sw_e2e:tell_test(5000) || _ <- Spinning],
        sw_e2e:within(20, fun() -> pong = ping(N) end),
        ?assertEqual([no_reply, no_reply], [reply_yet(Request) || Request <- Spinning]),
        ?assertEqual([{ok, 1.0}, {ok, 1.0}], responses(Spinning)),
        sw_e2e:flush()
    end).

%% What net_adm:ping asks, without its shortcut for a node that is connected already.
ping(Node) ->
    case gen_server:call({net_kernel, Node}, {is_auth, node()}, 5000) of
        yes -> pong;
        _ -> pang
    end.

reply_yet(Request) ->
    case gen_server:wait_response(Request, 0) of
        timeout -> no_reply;
        Other -> Other
    end.

a_ping_is_quick_while_c_code_holds_the_gil(Config) ->
    while_gil_is_held(Config, fun(N) -> sw_e2e:within(20, fun() -> pong = ping(N) end) end).

what_is_missing_is_missed_at_once_while_c_code_holds_the_gil(Config) ->
    while_gil_is_held(Config, fun(N) ->
        sw_e2e:within(?NO_SUCH_TIME, fun() ->
            ?assertExit({noproc, _}, gen_server:call({nobody, N}, hello, 5000)),
            Monitor = monitor(process, {nobody, N}),
            ?assertEqual(noproc, reason_of({nobody, N}, Monitor))
        end)
    end).

while_gil_is_held(Config, Body) ->
    bare(Config, fun(N) ->
        Held = gen_server:send_request({py, N}, {call, probe, hold_gil, [self(), 1.0]}),
        ?assertEqual(<<"holding">>, sw_e2e:tell_test(5000)),
        timer:sleep(50),
        Other = gen_server:send_request({py, N}, {call, math, sqrt, [4.0]}),
        Body(N),
        ?assertEqual(no_reply, reply_yet(Other)),
        ?assertEqual([{ok, 1.0}, {ok, 2.0}], responses([Held, Other]))
    end).

many_processes_call_at_once_and_each_gets_its_own_answer(Config) ->
    bare(Config, fun(N) ->
        Numbers = lists:seq(1, 200),
        Each = fun(I) -> fun() -> [call(N, identity, [{I, J}]) || J <- lists:seq(1, 20)] end end,
        ?assertEqual([[{ok, {I, J}} || J <- lists:seq(1, 20)] || I <- Numbers], at_once([Each(I) || I <- Numbers]))
    end).

two_large_binaries_pass_both_ways_while_small_calls_go_on(Config) ->
    bare(Config, fun(N) ->
        Large = binary:copy(<<255>>, 30_000_000),
        Transfers = [gen_server:send_request({py, N}, {call, probe, identity, [Large]}) || _ <- [1, 2]],
        Small = [call(N, identity, [I]) || I <- lists:seq(1, 50)],
        ?assertEqual([{ok, I} || I <- lists:seq(1, 50)], Small),
        [?assert(Result =:= {ok, Large}) || Result <- responses(Transfers)]
    end).
