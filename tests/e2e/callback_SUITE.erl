%% Calls from Python into Erlang, and Python code as processes, with the real node and real BEAMs.
-module(callback_SUITE).

-include_lib("stdlib/include/assert.hrl").

-export([all/0, suite/0, init_per_suite/1, end_per_suite/1, end_per_testcase/2]).
-compile([export_all, nowarn_export_all]).

suite() -> [{timetrap, {seconds, 240}}].

all() ->
    [a_registered_function_is_called_from_threads_and_coroutines_of_any_loop,
     what_a_function_raises_arrives_with_class_reason_and_stack,
     a_call_goes_to_the_peer_that_is_served_or_that_is_named,
     a_call_without_a_peer_is_no_connection_at_once,
     background_threads_call_the_home_node_or_the_first_that_runs_the_application,
     a_call_on_the_loop_thread_is_refused,
     threads_and_coroutines_get_their_own_answers,
     calls_of_one_thread_are_served_in_order_by_one_process,
     the_gil_is_free_while_a_call_waits,
     a_timeout_stops_the_function_and_the_next_call_is_served,
     a_cancelled_coroutine_stops_the_function,
     a_caller_that_gives_up_ends_the_call_python_waits_in,
     short_lived_threads_leave_nothing_behind,
     calls_that_call_back_find_a_worker_at_any_depth,
     a_worker_that_may_not_wait_is_refused_and_nothing_deadlocks,
     the_thread_that_waits_hears_of_each_death_at_once,
     a_node_that_is_killed_in_mid_call_stops_its_functions,
     a_node_that_is_stopped_tells_the_threads_that_wait,
     an_application_that_stops_is_noproc_and_one_that_starts_again_serves,
     gen_call_is_answered_or_told_why_not,
     erpc_reaches_a_beam_with_nothing_of_ours,
     monitors_links_and_exits_work_both_ways,
     nodes_that_come_and_go_are_told,
     a_spawned_function_is_a_process,
     blocking_servers_call_each_other_without_deadlock,
     a_server_under_a_supervisor_is_hammered_killed_and_restarted,
     logging_and_print_reach_the_log_and_the_logger].

init_per_suite(Config0) ->
    Config = sw_e2e:setup(Config0),
    Context = sw_e2e:context(Config),
    Node = start_node(Context, ["--workers", "4"]),
    [{node, Node}, {beam, application_beam(Context, Node)} | Config].

start_node(Context, Arguments) ->
    sw_e2e:start_node(Context, #{args => ["--import", "callbacks" | Arguments]}).

application_beam(Context, #{name := Name}) ->
    Beam = sw_e2e:start_beam(Context, #{args => ["-pa", filename:dirname(code:which(py))]}),
    ok = sw_e2e:on(Beam, fun() -> start_application(Name) end),
    Beam.

start_application(Name) ->
    _ = application:load(sidewinder),
    ok = application:set_env(sidewinder, default_node, Name),
    {ok, _} = application:ensure_all_started(sidewinder),
    ok = py_node:connect(Name),
    ok = py:register_function(echo, fun([X]) -> X end),
    ok = py:register_function(double, fun([X]) -> 2 * X end),
    ok = py:register_function(where, fun([]) -> node() end),
    ok = py:register_function(whoami, fun([]) -> self() end),
    ok = py:register_function(sleep, fun([Ms]) -> timer:sleep(Ms) end),
    ok = py:register_function(forever, fun([]) -> timer:sleep(infinity) end),
    ok = py:register_function(raise, ?MODULE, raise),
    ok = py:register_function(down, fun([Depth]) -> value(py:call(callbacks, down, [Depth])) end),
    ok = py:register_function(down_async, fun([Depth]) -> value(py:call(callbacks, down_async, [Depth])) end),
    ok = py:register_function(down_mixed, fun mixed/1),
    ok.

value({ok, Value}) -> Value;
value({error, Reason}) -> error(Reason).

%% Another way down at every level: by erpc, by gen_server:call, by py:call, sync and async.
mixed([Depth]) ->
    Name = application:get_env(sidewinder, default_node, none),
    F = case Depth rem 2 of 0 -> down_mixed; 1 -> down end,
    case Depth rem 3 of
        0 -> value(py:call(callbacks, F, [Depth]));
        1 -> erpc:call(Name, callbacks, F, [Depth]);
        2 -> value(gen_server:call({py, Name}, {call, callbacks, F, [Depth]}, infinity))
    end.

raise([error, Reason]) -> error(Reason);
raise([exit, Reason]) -> exit(Reason);
raise([throw, Reason]) -> throw(Reason).

end_per_suite(Config) ->
    true = sw_e2e:alive(maps:get(program, proplists:get_value(node, Config))),
    ok = sw_e2e:stop_beam(proplists:get_value(beam, Config)),
    ok = sw_e2e:stop_node(proplists:get_value(node, Config)),
    ok = sw_e2e:teardown(Config).

%% No call, task or question of a test is left behind.
end_per_testcase(_, Config) ->
    ok = sw_e2e:eventually(fun() -> nothing_is_left(Config) end, 10000).

nothing_is_left(Config) ->
    case stats(Config) of
        #{<<"busy">> := Busy, <<"tasks">> := 0, <<"asking">> := 0, <<"blocked">> := 0} when Busy =< 1 -> true;
        Left -> {left, Left}
    end.

stats(Config) ->
    #{name := Name} = proplists:get_value(node, Config),
    sw_e2e:stats(proplists:get_value(beam, Config), Name).

run(Config, Body) ->
    #{name := Node} = proplists:get_value(node, Config),
    sw_e2e:on(proplists:get_value(beam, Config), fun() -> Body(Node) end, 200000).

call(F, Args) -> py:call(callbacks, F, Args, #{}, 120000).

ask(Name, Args) -> ask(call, Name, Args, #{}).
ask(How, Name, Args, Options) -> value(call(How, [Name, Args, Options])).

%% --- Calls ------------------------------------------------------------------------------------------

a_registered_function_is_called_from_threads_and_coroutines_of_any_loop(Config) ->
    run(Config, fun(Node) ->
        [?assertEqual({ok, Term}, ask(How, echo, [Term], #{}))
         || How <- [call, async_call, foreign_call],
            Term <- [1, 1.5, ok, <<"text">>, <<255>>, [1, {a, b}], #{k => v}, self(), true, [], none]],
        ?assertEqual({ok, [8, 8]}, call(shorthand, [4])),
        ?assertEqual({ok, lists:seq(0, 99)}, call(in_executor, [100])),
        ?assertEqual({ok, lists:seq(0, 49)}, call(in_the_loops_executor, [50])),
        ?assertEqual({ok, lists:seq(0, 999)}, call(gather, [1000])),
        ?assertEqual({ok, lists:seq(0, 299)}, call(gather_elsewhere, [300])),
        % In whatever way Python was called itself.
        ?assertEqual({ok, 6}, erpc:call(Node, callbacks, call, [double, [3], #{}])),
        ?assertEqual({ok, {ok, 6}}, gen_server:call({py, Node}, {call, callbacks, async_call, [double, [3], #{}]})),
        ?assertEqual({ok, 14}, py:eval("__import__('erlang').call('double', 7)")),
        % A large argument and a large result.
        Large = binary:copy(<<"0123456789">>, 1_000_000),
        ?assertEqual({ok, Large}, ask(echo, [Large])),
        ok = py:register_function(<<"with spaces">>, ?MODULE, second),
        ?assertEqual({ok, 2}, ask(<<"with spaces">>, [1, 2])),
        ok = py:unregister_function(<<"with spaces">>),
        ?assertMatch({<<"UnknownFunction">>, _, error, undef}, ask(<<"with spaces">>, []))
    end).

second([_, Second]) -> Second.

what_a_function_raises_arrives_with_class_reason_and_stack(Config) ->
    run(Config, fun(_) ->
        [?assertMatch({<<"ErlangError">>, _, Class, {my, reason}}, ask(How, raise, [Class, {my, reason}], #{}))
         || Class <- [error, exit, throw], How <- [call, async_call, foreign_call]],
        {_, Message, _, _} = ask(raise, [error, badarg]),
        ?assertMatch({match, _}, re:run(Message, "badarg.*callback_SUITE:raise/1"), Message),
        ok = py:register_function(fails, fun([]) -> error(oops) end),
        {ok, [{?MODULE, _, 1, _} | _]} = call(stack_of, [fails]),
        ?assertMatch({<<"UnknownFunction">>, _, error, undef}, ask(nobody_registered_this, [])),
        % An argument that is no term never leaves Python.
        {error, {python, <<"TypeError">>, What, _}} = py:eval("__import__('erlang').call('echo', [1, object()])"),
        ?assertMatch({match, _}, re:run(What, "arguments\\[0\\]\\[1\\]"), What)
    end).

a_call_goes_to_the_peer_that_is_served_or_that_is_named(Config) ->
    Context = sw_e2e:context(Config),
    Second = #{node := SecondName} = application_beam(Context, proplists:get_value(node, Config)),
    #{node := FirstName} = proplists:get_value(beam, Config),
    On = fun(How, Options) -> ask(How, where, [], Options) end,
    run(Config, fun(_) ->
        [begin
            ?assertEqual({ok, FirstName}, On(How, #{})),
            ?assertEqual({ok, SecondName}, On(How, #{node => SecondName})),
            ?assertMatch({<<"NoConnection">>, _, _, _}, On(How, #{node => 'nobody@127.0.0.1'}))
         end || How <- [call, async_call, foreign_call]]
    end),
    ok = sw_e2e:on(Second, fun() ->
        [?assertEqual({ok, SecondName}, On(How, #{})) || How <- [call, async_call, foreign_call]], ok
    end),
    ok = sw_e2e:stop_beam(Second).

a_call_without_a_peer_is_no_connection_at_once(Config) ->
    Context = sw_e2e:context(Config),
    Node = #{name := Name} = start_node(Context, []),
    Bare = #{node := BareName} = sw_e2e:start_beam(Context),
    ok = sw_e2e:on(Bare, fun() ->
        % It is served from a BEAM without the application: there is nobody who could answer.
        ?assertMatch({<<"ErlangError">>, _, exit, noproc}, erpc:call(Name, callbacks, call, [where, [], #{}])),
        ?assertMatch({<<"ErlangError">>, _, exit, noproc},
                     erpc:call(Name, callbacks, async_call, [where, [], #{node => BareName}])),
        % Nobody is served in a thread of its own, and nobody runs the application.
        ?assertMatch({exception, {python, <<"erlang.exceptions.NoConnection">>, _, _}, _},
                     try erpc:call(Name, callbacks, in_one_thread_raising, [where]) catch error:E -> E end),
        ok
    end),
    ok = sw_e2e:stop_beam(Bare),
    ok = sw_e2e:stop_node(Node).

background_threads_call_the_home_node_or_the_first_that_runs_the_application(Config) ->
    Context = sw_e2e:context(Config),
    Node = start_node(Context, []),
    First = #{node := FirstName} = application_beam(Context, Node),
    Second = #{node := SecondName} = application_beam(Context, Node),
    Background = fun() -> py:call(callbacks, in_one_thread_of_its_own, [where]) end,
    ok = sw_e2e:eventually(fun() -> sw_e2e:on(Second, Background) =:= {ok, [FirstName]} end),
    Home = #{name := HomeName} = start_node(Context, ["--home", atom_to_list(SecondName)]),
    [ok = sw_e2e:on(Beam, fun() -> py_node:connect(HomeName) end) || Beam <- [First, Second]],
    ?assertEqual({ok, [SecondName]},
                 sw_e2e:on(First, fun() -> py:call(HomeName, callbacks, in_one_thread_of_its_own, [where]) end)),
    ok = sw_e2e:stop_beam(First),
    % The first has gone: the next one is it.
    ok = sw_e2e:eventually(fun() -> sw_e2e:on(Second, Background) =:= {ok, [SecondName]} end),
    ok = sw_e2e:stop_beam(Second),
    [ok = sw_e2e:stop_node(N) || N <- [Node, Home]].

a_call_on_the_loop_thread_is_refused(Config) ->
    run(Config, fun(_) ->
        {ok, {<<"RuntimeError">>, Message}} = call(call_on_the_loop, [double]),
        ?assertMatch({match, _}, re:run(Message, "async_call"))
    end).

threads_and_coroutines_get_their_own_answers(Config) ->
    run(Config, fun(_) ->
        Threads = py:spawn_call(callbacks, in_threads, [64, 1000]),
        Coroutines = py:spawn_call(callbacks, in_coroutines, [64, 1000]),
        ?assertEqual({ok, 0}, py:await(Threads, 180000)),
        ?assertEqual({ok, 0}, py:await(Coroutines, 180000))
    end).

calls_of_one_thread_are_served_in_order_by_one_process(Config) ->
    run(Config, fun(_) ->
        {ok, Pids} = call(handler_pids, [10]),
        ?assertMatch([_], lists:usort(Pids)),
        Self = self(),
        ok = py:register_function(note, fun([N]) -> Self ! {noted, N}, N end),
        {ok, _} = call(in_one_thread, [note, lists:seq(1, 200)]),
        ?assertEqual(lists:seq(1, 200), [receive {noted, N} -> N after 0 -> none end || _ <- lists:seq(1, 200)])
    end).

the_gil_is_free_while_a_call_waits(Config) ->
    run(Config, fun(_) ->
        {ok, Turns} = call(spins_meanwhile, [sleep, 300]),
        ?assert(Turns > 20, Turns)
    end).

a_timeout_stops_the_function_and_the_next_call_is_served(Config) ->
    run(Config, fun(_) ->
        Self = self(),
        ok = py:register_function(stay, fun(_) -> Self ! {staying, self()}, timer:sleep(infinity) end),
        [begin
            {Micros, {<<"TimeoutError">>, _}} = timer:tc(fun() -> ask(How, stay, [], #{timeout => 0.2}) end),
            ?assert(Micros >= 200_000 andalso Micros < 5_000_000, Micros),
            Pid = receive {staying, P} -> P after 5000 -> error(not_started) end,
            ok = sw_e2e:eventually(fun() -> not is_process_alive(Pid) end),
            ?assertEqual({ok, 1}, ask(How, echo, [1], #{}))
         end || How <- [call, async_call, foreign_call]],
        ?assertMatch({<<"ValueError">>, _}, ask(call, echo, [1], #{timeout => -1}))
    end).

a_cancelled_coroutine_stops_the_function(Config) ->
    run(Config, fun(_) ->
        Self = self(),
        ok = py:register_function(stay_and_tell, fun([Told]) -> Told ! {staying, self()}, timer:sleep(infinity) end),
        ok = py:register_function(await_started, fun([]) -> Self ! {ask, self()}, receive started -> <<"started">> end end),
        Ref = py:spawn_call(callbacks, cancel_while_waiting, [stay_and_tell, Self]),
        Pid = receive {staying, P} -> P after 5000 -> error(not_started) end,
        receive {ask, Asking} -> Asking ! started after 5000 -> error(not_asked) end,
        ?assertEqual({ok, <<"cancelled">>}, py:await(Ref, 10000)),
        ok = sw_e2e:eventually(fun() -> not is_process_alive(Pid) end)
    end).

%% The chain is taken down from its far end: Erlang stops waiting, Python is interrupted, and so is what Python waits for.
a_caller_that_gives_up_ends_the_call_python_waits_in(Config) ->
    run(Config, fun(_) ->
        Self = self(),
        ok = py:register_function(stay, fun(_) -> Self ! {staying, self()}, timer:sleep(infinity) end),
        [begin
            ?assertEqual({error, timeout}, py:call(callbacks, How, [stay, [], #{}], #{}, 300)),
            Pid = receive {staying, P} -> P after 5000 -> error(not_started) end,
            ok = sw_e2e:eventually(fun() -> not is_process_alive(Pid) end)
         end || How <- [call, async_call]]
    end).

short_lived_threads_leave_nothing_behind(Config) ->
    #{program := Program} = proplists:get_value(node, Config),
    Os = integer_to_list(sw_e2e:os_pid(Program)),
    Measure = fun() ->
        Status = os:cmd("cat /proc/" ++ Os ++ "/status"),
        {match, [Kb]} = re:run(Status, "VmRSS:\\s+(\\d+)", [{capture, all_but_first, list}]),
        {match, [Threads]} = re:run(Status, "Threads:\\s+(\\d+)", [{capture, all_but_first, list}]),
        #{kb => list_to_integer(Kb), threads => list_to_integer(Threads),
          fds => length(string:lexemes(os:cmd("ls /proc/" ++ Os ++ "/fd"), "\n")),
          processes => run(Config, fun(_) -> length(processes()) end)}
    end,
    run(Config, fun(_) -> ?assertEqual({ok, 1000}, call(short_lived_threads, [1000])) end),
    #{<<"asking_threads">> := Mailboxes} = stats(Config),
    Before = Measure(),
    run(Config, fun(_) -> ?assertEqual({ok, 5000}, call(short_lived_threads, [5000])) end),
    ok = sw_e2e:eventually(fun() -> maps:get(<<"asking_threads">>, stats(Config)) =< Mailboxes end),
    After = Measure(),
    Grown = fun(Key) -> maps:get(Key, After) - maps:get(Key, Before) end,
    [?assert(Grown(Key) =< Most, {Key, Before, After})
     || {Key, Most} <- [{kb, 4096}, {threads, 4}, {fds, 2}, {processes, 10}]].

%% --- Re-entry -----------------------------------------------------------------------------------------

calls_that_call_back_find_a_worker_at_any_depth(Config) ->
    Seconds = list_to_integer(os:getenv("REENTRY_SECONDS", "10")),
    run(Config, fun(_) ->
        % Deeper than there are workers, and then many at once.
        ?assertEqual({ok, 100}, call(down, [100])),
        ?assertEqual({ok, 60}, call(down_async, [60])),
        ?assertEqual({ok, 60}, call(down_mixed, [60])),
        End = erlang:monotonic_time(millisecond) + Seconds * 1000,
        Callers = [spawn_monitor(fun() -> exit({rounds, reenter(N, End, 0)}) end) || N <- lists:seq(1, 16)],
        Rounds = [receive {'DOWN', M, process, P, {rounds, Count}} -> Count;
                          {'DOWN', M, process, P, Why} -> error(Why)
                  after Seconds * 1000 + 60000 -> error(deadlock) end || {P, M} <- Callers],
        ?assert(lists:min(Rounds) > 0, Rounds)
    end),
    % The threads that were added go again.
    ok = sw_e2e:eventually(fun() -> maps:get(<<"worker_threads">>, stats(Config)) =< 4 end, 30000).

reenter(N, End, Count) ->
    case erlang:monotonic_time(millisecond) < End of
        true ->
            F = element(1 + (N + Count) rem 3, {down, down_async, down_mixed}),
            {ok, 20} = py:call(callbacks, F, [20], #{}, 60000),
            reenter(N, End, Count + 1);
        false ->
            Count
    end.

a_worker_that_may_not_wait_is_refused_and_nothing_deadlocks(Config) ->
    Context = sw_e2e:context(Config),
    Node = start_node(Context, ["--workers", "2", "--max-workers", "6"]),
    Beam = application_beam(Context, Node),
    ok = sw_e2e:on(Beam, fun() ->
        ?assertEqual({ok, 5}, call(down, [5])),
        {error, {python, <<"erlang.exceptions.ErlangError">>, Message, _}} = call(down, [6]),
        ?assertMatch({match, _}, re:run(Message, "overloaded"), Message),
        Callers = [spawn_monitor(fun() -> exit({answer, call(down, [6])}) end) || _ <- lists:seq(1, 20)],
        [receive {'DOWN', M, process, P, {answer, _}} -> ok after 60000 -> error(deadlock) end || {P, M} <- Callers],
        ?assertEqual({ok, 5}, call(down, [5])),
        ok
    end),
    ok = sw_e2e:stop_beam(Beam),
    ok = sw_e2e:stop_node(Node).

%% --- Deaths: the table in docs/calls.md ----------------------------------------------------------------

the_thread_that_waits_hears_of_each_death_at_once(Config) ->
    run(Config, fun(_) ->
        Self = self(),
        ok = py:register_function(stay, fun(_) -> Self ! {staying, self()}, timer:sleep(infinity) end),
        [begin
            Ref = py:spawn_call(callbacks, How, [stay, [], #{}]),
            receive {staying, Pid} -> exit(Pid, kill) after 5000 -> error(not_started) end,
            ?assertMatch({ok, {<<"ErlangError">>, _, exit, {signal, killed}}}, py:await(Ref, 5000))
         end || How <- [call, async_call, foreign_call]]
    end),
    [begin
        Answers = while_python_waits_for(Config, Kill),
        [?assertMatch({Class, _, Kind, Reason}, Answer, {What, Answer}) || Answer <- Answers]
     end || {What, Kill, Class, Kind, Reason} <- deaths()].

%% What is done to the BEAM whose function Python waits for, and what Python sees.
deaths() ->
    Coordinator = fun(Beam) -> sw_e2e:on(Beam, fun() ->
        exit(hd([P || P <- processes(), {py_callback_link, _, _} <- [proc_lib:translate_initial_call(P)]]), kill), ok
    end) end,
    Disconnect = fun(Beam, Name) -> sw_e2e:on(Beam, fun() -> true = erlang:disconnect_node(Name), ok end) end,
    [{node_killed, fun(Beam, _) -> sw_e2e:kill_beam(Beam) end, <<"NoConnection">>, error, noconnection},
     {link_cut, Disconnect, <<"NoConnection">>, error, noconnection},
     {coordinator_killed, fun(Beam, _) -> Coordinator(Beam) end, <<"ErlangError">>, exit, killed},
     {application_stopped, fun(Beam, _) -> sw_e2e:on(Beam, fun() -> application:stop(sidewinder) end) end,
      <<"ErlangError">>, exit, {shutdown, shutdown}}].

while_python_waits_for(Config, Kill) ->
    Context = sw_e2e:context(Config),
    Node = #{name := Name} = proplists:get_value(node, Config),
    Beam = #{node := Other} = application_beam(Context, Node),
    Asking = run(Config, fun(_) -> [asking(How, [forever, [], #{node => Other}])
                                    || How <- [call, async_call, foreign_call]] end),
    ok = sw_e2e:eventually(fun() -> maps:get(<<"asking">>, stats(Config)) >= 3 end),
    _ = Kill(Beam, Name),
    Answers = run(Config, fun(_) -> [told(Pid) || Pid <- Asking] end),
    catch sw_e2e:stop_beam(Beam),
    Answers.

%% A process that asks through Python and keeps the answer.
asking(How, Args) ->
    spawn(fun() ->
        Answer = py:call(callbacks, How, Args, #{}, 60000),
        receive {tell, From} -> From ! {self(), Answer} end
    end).

told(Pid) ->
    Monitor = monitor(process, Pid),
    Pid ! {tell, self()},
    receive
        {Pid, {ok, Answer}} -> demonitor(Monitor, [flush]), Answer;
        {Pid, Other} -> error(Other);
        {'DOWN', Monitor, process, Pid, Why} -> error(Why)
    after 10000 -> error(not_told)
    end.

a_node_that_is_killed_in_mid_call_stops_its_functions(Config) ->
    Context = sw_e2e:context(Config),
    Node = start_node(Context, []),
    Beam = application_beam(Context, Node),
    Functions = sw_e2e:on(Beam, fun() ->
        Self = self(),
        ok = py:register_function(stay, fun(_) -> Self ! {staying, self()}, timer:sleep(infinity) end),
        Asking = [asking(How, [stay, [], #{}]) || How <- [call, async_call, foreign_call]],
        {Asking, [receive {staying, Pid} -> Pid after 5000 -> error(not_started) end || _ <- Asking]}
    end),
    ok = sw_e2e:kill(maps:get(program, Node)),
    ok = sw_e2e:on(Beam, fun() ->
        {Asking, Staying} = Functions,
        [?assertMatch({error, {down, _}}, try told(Pid) catch error:E -> E end) || Pid <- Asking],
        ok = sw_e2e:eventually(fun() -> not lists:any(fun is_process_alive/1, Staying) end),
        ok = sw_e2e:eventually(fun() -> [] =:= coordinators() end)
    end),
    ok = sw_e2e:stop_beam(Beam).

a_node_that_is_stopped_tells_the_threads_that_wait(Config) ->
    Context = sw_e2e:context(Config),
    Node = #{name := Name, program := Program} = start_node(Context, []),
    Beam = application_beam(Context, Node),
    ok = sw_e2e:on(Beam, fun() ->
        none = erpc:call(Name, callbacks, wait_in_threads, [self()]),
        receive waiting -> ok after 5000 -> error(not_waiting) end,
        sw_e2e:eventually(fun() -> asking(Name) =:= 2 end)
    end),
    ok = sw_e2e:send_signal(Program, "TERM"),
    % They are no daemon threads: the node would not end before them.
    ?assertEqual(0, sw_e2e:await_exit(Program)),
    ?assertMatch([_, _], [Line || Line <- binary:split(sw_e2e:output(Program), <<"\n">>, [global]),
                                  binary:match(Line, <<"a waiting thread was told">>) =/= nomatch]),
    ok = sw_e2e:stop_beam(Beam).

asking(Name) -> maps:get(<<"asking">>, erpc:call(Name, erlang, stats, [])).

coordinators() ->
    [P || P <- processes(), {py_callback_link, _, _} <- [proc_lib:translate_initial_call(P)]].

an_application_that_stops_is_noproc_and_one_that_starts_again_serves(Config) ->
    Context = sw_e2e:context(Config),
    Node = #{name := Name} = proplists:get_value(node, Config),
    Beam = #{node := Other} = application_beam(Context, Node),
    Ask = fun(How) -> run(Config, fun(_) -> ask(How, double, [4], #{node => Other}) end) end,
    ?assertEqual({ok, 8}, Ask(call)),
    ok = sw_e2e:on(Beam, fun() -> application:stop(sidewinder) end),
    [?assertMatch({<<"ErlangError">>, _, exit, noproc}, Ask(How)) || How <- [call, async_call, foreign_call]],
    ok = sw_e2e:on(Beam, fun() -> start_application(Name) end),
    [?assertEqual({ok, 8}, Ask(How)) || How <- [call, async_call, foreign_call]],
    ok = sw_e2e:stop_beam(Beam).

%% --- Talking to any process ---------------------------------------------------------------------------

%% From a BEAM that has nothing of ours.
on_a_bare_beam(Config, Body) ->
    #{name := Name} = proplists:get_value(node, Config),
    Beam = sw_e2e:start_beam(sw_e2e:context(Config)),
    ok = sw_e2e:on(Beam, fun() -> Body(Name), ok end, 100000),
    ok = sw_e2e:stop_beam(Beam).

gen_call_is_answered_or_told_why_not(Config) ->
    on_a_bare_beam(Config, fun(Name) ->
        Server = spawn(fun serve/0),
        register(server, Server),
        [begin
            Ask = fun(Dest, Request, Timeout) -> erpc:call(Name, callbacks, How, [Dest, Request, Timeout]) end,
            [begin
                ?assertEqual({ok, {answer, 1}}, Ask(Dest, {echo, {answer, 1}}, 5)),
                ?assertEqual({ok, plain}, Ask(Dest, {plain_reply, plain}, 5))
             end || Dest <- [Server, {server, node()}]],
            ?assertMatch({<<"ErlangError">>, _, exit, noproc}, Ask({nobody, node()}, x, 5)),
            ?assertMatch({<<"NoConnection">>, _, _, _}, Ask({server, 'nobody@127.0.0.1'}, x, 5)),
            ?assertMatch({<<"ErlangError">>, _, exit, noproc}, Ask(nobody_here, x, 5)),
            ?assertMatch({<<"TimeoutError">>, _}, Ask(server_pid(), silence, 0.1)),
            % The late reply reaches nobody, and the next call has its own.
            ?assertEqual({ok, {answer, 2}}, Ask(server_pid(), {late_and_then, {answer, 2}}, 5)),
            Mortal = spawn(fun serve/0),
            ?assertMatch({<<"ErlangError">>, _, exit, {went, away}}, Ask(Mortal, {exit, {went, away}}, 5)),
            ?assertMatch({<<"ErlangError">>, _, exit, noproc}, Ask(Mortal, x, 5))
         end || How <- [gen_call, async_gen_call]],
        % No monitor stays behind at the server.
        ok = sw_e2e:eventually(fun() -> {monitored_by, []} =:= process_info(Server, monitored_by) end),
        none = erpc:call(Name, callbacks, cast, [{server, node()}, {tell, self()}]),
        receive cast_arrived -> ok after 5000 -> error(no_cast) end
    end).

server_pid() -> whereis(server).

serve() -> serve(none).
serve(Late) ->
    receive
        {'$gen_call', From, {echo, X}} -> gen_server:reply(From, X), serve(Late);
        {'$gen_call', {Pid, Tag}, {plain_reply, X}} -> Pid ! {Tag, X}, serve(Late);
        {'$gen_call', From, silence} -> serve(From);
        {'$gen_call', From, {late_and_then, X}} -> gen_server:reply(Late, too_late), gen_server:reply(From, X), serve(none);
        {'$gen_call', _, {exit, Reason}} -> exit(Reason);
        {'$gen_cast', {tell, Pid}} -> Pid ! cast_arrived, serve(Late)
    end.

erpc_reaches_a_beam_with_nothing_of_ours(Config) ->
    on_a_bare_beam(Config, fun(Name) ->
        [begin
            Ask = fun(N, M, F, A) -> erpc:call(Name, callbacks, How, [N, M, F, A]) end,
            ?assertEqual({ok, 6}, Ask(node(), lists, sum, [[1, 2, 3]])),
            ?assertMatch({<<"ErlangError">>, _, error, badarg}, Ask(node(), erlang, error, [badarg])),
            ?assertMatch({<<"ErlangError">>, _, exit, bye}, Ask(node(), erlang, exit, [bye])),
            ?assertMatch({<<"ErlangError">>, _, throw, ball}, Ask(node(), erlang, throw, [ball])),
            ?assertMatch({<<"ErlangError">>, _, error, undef}, Ask(node(), no_such_module, f, [])),
            ?assertMatch({<<"NoConnection">>, _, _, _}, Ask('nobody@127.0.0.1', lists, sum, [[]])),
            % What it writes is taken, and does not hold it up.
            ?assertEqual({ok, ok}, Ask(node(), io, format, ["written~n"]))
         end || How <- [erpc, async_erpc]],
        ?assertMatch({<<"TimeoutError">>, _}, erpc:call(Name, callbacks, erpc, [node(), timer, sleep, [60000], 0.2])),
        % A Python node is no BEAM to spawn on for others: our own name is not connected to.
        ?assertMatch({<<"NoConnection">>, _, _, _}, erpc:call(Name, callbacks, erpc, [Name, lists, sum, [[]]]))
    end).

monitors_links_and_exits_work_both_ways(Config) ->
    on_a_bare_beam(Config, fun(Name) ->
        Watch = fun(Target) -> erpc:send_request(Name, callbacks, watch, [Target]) end,
        Is = fun(Request) -> erpc:receive_response(Request, 10000) end,
        Sleeper = spawn(fun() -> receive Reason -> exit(Reason) end end),
        Watching = Watch(Sleeper),
        ok = sw_e2e:eventually(fun() -> process_info(Sleeper, monitored_by) =/= {monitored_by, []} end),
        Sleeper ! {my, reason},
        ?assertEqual({process, Sleeper, {my, reason}}, Is(Watching)),
        ?assertEqual({process, Sleeper, noproc}, Is(Watch(Sleeper))),
        ?assertEqual({process, {nobody, node()}, noproc}, Is(Watch({nobody, node()}))),
        ?assertEqual({process, {nobody, 'no@127.0.0.1'}, noconnection}, Is(Watch({nobody, 'no@127.0.0.1'}))),
        % A link from Python; each side's end is the other's.
        Linked = spawn(fun() -> receive Reason -> exit(Reason) end end),
        Linking = erpc:send_request(Name, callbacks, linked_to, [Linked, self()]),
        receive {linked, _} -> Linked ! {your, turn} after 5000 -> error(not_linked) end,
        ?assertEqual({'EXIT', Linked, {your, turn}}, Is(Linking)),
        Server = erpc:call(Name, callbacks, start, []),
        {Victim, M} = spawn_monitor(fun() -> link(Server), receive never -> ok end end),
        ok = sw_e2e:eventually(fun() -> process_info(Victim, links) =:= {links, [Server]} end),
        {'EXIT', {{python, <<"ValueError">>, <<"told to">>, Trace}, _}} = (catch gen_server:call(Server, crash)),
        ?assertMatch({match, _}, re:run(Trace, "Traceback")),
        receive {'DOWN', M, process, Victim, Why} -> ?assertMatch({python, <<"ValueError">>, <<"told to">>, _}, Why)
        after 5000 -> error(victim_lives) end,
        % An exit signal from Python.
        {Target, TM} = spawn_monitor(fun() -> receive never -> ok end end),
        _ = erpc:call(Name, callbacks, send_exit, [Target, {sent, signal}]),
        receive {'DOWN', TM, process, Target, Sent} -> ?assertEqual({sent, signal}, Sent)
        after 5000 -> error(no_signal) end,
        ?assertMatch({'EXIT', {noproc, _}}, catch gen_server:call(Server, x))
    end).

nodes_that_come_and_go_are_told(Config) ->
    #{name := Name} = proplists:get_value(node, Config),
    Context = sw_e2e:context(Config),
    Other = list_to_atom(sw_e2e:unique("comes") ++ "@127.0.0.1"),
    {Asking, OtherName} = run(Config, fun(_) ->
        Self = self(),
        Pid = spawn(fun() ->
            Answer = py:call(callbacks, nodes_come_and_go, [Self, Other], #{}, 60000),
            receive {tell, From} -> From ! {self(), Answer} end
        end),
        receive {watching, _} -> {Pid, Other} after 5000 -> error(not_watching) end
    end),
    [Short, _] = string:split(atom_to_list(OtherName), "@"),
    Beam = sw_e2e:start_beam(Context, #{name => Short}),
    ok = sw_e2e:on(Beam, fun() -> pong = net_adm:ping(Name), ok end),
    ok = sw_e2e:stop_beam(Beam),
    ?assertEqual([{nodeup, Other}, {nodedown, Other}], run(Config, fun(_) -> told(Asking) end)).

a_spawned_function_is_a_process(Config) ->
    on_a_bare_beam(Config, fun(Name) ->
        Spawn = fun(How) ->
            Pid = erpc:call(Name, callbacks, spawned, [self(), How]),
            ?assertEqual(Name, node(Pid)),
            receive {spawned, Pid} -> Pid after 5000 -> error(not_spawned) end
        end,
        Ends = fun(Pid, Do) ->
            Monitor = monitor(process, Pid),
            Do(Pid),
            receive {'DOWN', Monitor, process, Pid, Reason} -> Reason after 5000 -> error(no_down) end
        end,
        ?assertEqual(normal, Ends(Spawn(async), fun(P) -> P ! <<"end">> end)),
        ?assertMatch({python, <<"ValueError">>, <<"as asked">>, _}, Ends(Spawn(async), fun(P) -> P ! <<"fail">> end)),
        ?assertEqual(my_reason, Ends(Spawn(async), fun(P) -> P ! <<"exit">> end)),
        ?assertEqual(because, Ends(Spawn(async), fun(P) -> exit(P, because) end)),
        Pid = erpc:call(Name, callbacks, spawned, [self(), plain]),
        receive {spawned, Pid} -> ok after 5000 -> error(not_spawned) end,
        ?assertMatch(R when R =:= noproc; element(1, R) =:= python, Ends(Pid, fun(_) -> ok end))
    end).

blocking_servers_call_each_other_without_deadlock(Config) ->
    run(Config, fun(_) ->
        {ok, Servers} = call(start_blocking, [60]),
        [First | Rest] = Servers,
        % Sixty blocking callbacks at once, each waiting for the next; there are four workers.
        ?assertEqual(59, gen_server:call(First, {chain, Rest, 0}, 30000)),
        ?assertEqual(10, gen_server:call(First, {ask, double, 5}, 5000)),
        ok = gen_server:cast(First, self()),
        receive cast_arrived -> ok after 5000 -> error(no_cast) end,
        [exit(Pid, kill) || Pid <- Servers],
        ok
    end).

%% --- Supervision ----------------------------------------------------------------------------------------

%% A plain supervisor of OTP: the connection, and a server on the node that is started through erpc.
init({supervised, Node}) ->
    {ok, {#{strategy => rest_for_one, intensity => 1000, period => 1},
          [py_node:child_spec(Node),
           #{id => counter, start => {erpc, call, [Node, callbacks, start_link, [<<"counter">>], 5000]}}]}}.

a_server_under_a_supervisor_is_hammered_killed_and_restarted(Config) ->
    Context = sw_e2e:context(Config),
    Node = #{name := Name} = start_node(Context, []),
    Beam = sw_e2e:start_beam(Context, #{args => ["-pa", filename:dirname(code:which(py))]}),
    ok = sw_e2e:on(Beam, fun() ->
        {ok, _} = application:ensure_all_started(sidewinder),
        pong = net_adm:ping(Name),
        process_flag(trap_exit, true),
        {ok, Supervisor} = supervisor:start_link(?MODULE, {supervised, Name}),
        [{counter, First, worker, _} | _] = supervisor:which_children(Supervisor),
        ?assertEqual(Name, node(First)),
        Server = {counter, Name},
        Callers = [spawn_monitor(fun() -> exit({tally, hammer(Server, N, 0, #{})}) end) || N <- lists:seq(1, 8)],
        [begin timer:sleep(100), exit_of(Server, Kill) end
         || Kill <- [kill, crash, kill, crash, kill, crash, kill, crash, kill, crash]],
        timer:sleep(100),
        [P ! stop || {P, _} <- Callers],
        Tallies = [receive {'DOWN', M, process, P, {tally, T}} -> T;
                           {'DOWN', M, process, P, Other} -> error(Other)
                   after 20000 -> error(hangs) end || {P, M} <- Callers],
        % Every answer was for its own question; of each incarnation's counts none came twice.
        Answers = lists:append([A || {_, A} <- Tallies]),
        ?assertEqual(length(Answers), length(lists:usort(Answers))),
        ?assert(length(lists:usort([I || {I, _} <- Answers])) >= 5),
        ?assert(length(Answers) > 100, length(Answers)),
        % None was lost: what was not answered was told of a death.
        [?assertEqual(Asked, length(A) + Deaths) || {{Asked, Deaths}, A} <- Tallies],
        unlink(Supervisor),
        exit(Supervisor, shutdown),
        ok = sw_e2e:eventually(fun() -> erpc:call(Name, erlang, whereis, [<<"counter">>]) =:= none end),
        ok
    end, 60000),
    ok = sw_e2e:stop_beam(Beam),
    ok = sw_e2e:stop_node(Node).

exit_of({Name, Node}, kill) ->
    case erpc:call(Node, erlang, whereis, [atom_to_binary(Name)]) of
        Pid when is_pid(Pid) -> exit(Pid, kill);
        none -> ok
    end;
exit_of(Server, crash) ->
    {'EXIT', _} = (catch gen_server:call(Server, crash)).

hammer(Server, N, Count, Seen) ->
    receive
        stop -> {{Count, maps:get(deaths, Seen, 0)}, maps:get(answers, Seen, [])}
    after 0 ->
        Token = {N, Count},
        try gen_server:call(Server, {add, Token}, 10000) of
            {Token, Incarnation, Value} ->
                hammer(Server, N, Count + 1, Seen#{answers => [{Incarnation, Value} | maps:get(answers, Seen, [])]})
        catch
            exit:{Reason, _} when Reason =/= timeout ->
                hammer(Server, N, Count + 1, Seen#{deaths => 1 + maps:get(deaths, Seen, 0)})
        end
    end.

%% --- Logs -------------------------------------------------------------------------------------------------

log(#{msg := Message, meta := Meta, level := Level}, #{config := #{test := Test}}) ->
    Test ! {logged, Level, Message, Meta}.

logging_and_print_reach_the_log_and_the_logger(Config) ->
    #{program := Program, name := Name} = proplists:get_value(node, Config),
    Mark = sw_e2e:unique("mark"),
    run(Config, fun(_) ->
        {ok, _} = call(say, [list_to_binary(Mark)]),
        ok = logger:add_handler(?MODULE, ?MODULE, #{config => #{test => self()}, filter_default => log}),
        {ok, _} = call(log_to_beam, [<<"for the ", (list_to_binary(Mark))/binary>>]),
        receive
            {logged, Level, Message, Meta} ->
                ?assertEqual(warning, Level),
                ?assertEqual("for the " ++ Mark, text(Message)),
                ?assertMatch(#{file := _, line := _, function := _, python_logger := _, request_id := 7,
                               node := Name, pid := _}, Meta)
        after 5000 -> error(not_logged) end,
        ok = logger:remove_handler(?MODULE)
    end),
    _ = sw_e2e:wait_line(Program, " info " ++ Mark ++ "$"),
    _ = sw_e2e:wait_line(Program, " warning callbacks.test: logged " ++ Mark ++ "$").

text({string, Text}) -> unicode:characters_to_list(Text);
text({Format, Args}) -> lists:flatten(io_lib:format(Format, Args)).
