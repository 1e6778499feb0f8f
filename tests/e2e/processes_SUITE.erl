%% A node whose calls run in worker processes: to a BEAM it is the same node, and what ends a process
%% costs that process's calls and nothing else.
-module(processes_SUITE).

-include_lib("stdlib/include/assert.hrl").

-export([all/0, suite/0, init_per_suite/1, end_per_suite/1]).
-compile([export_all, nowarn_export_all]).

suite() -> [{timetrap, {seconds, 90}}].

all() ->
    [every_form_of_call_works,
     two_calls_run_at_the_same_time_in_two_processes,
     every_form_of_call_is_told_how_its_process_died,
     what_ends_a_process_costs_its_own_calls_only_and_nothing_runs_twice,
     fifty_deaths_leave_no_zombie_no_descriptor_and_no_memory,
     a_callers_namespace_lives_in_one_process,
     a_coroutine_does_not_wait_for_slow_calls,
     a_quick_call_does_not_wait_for_a_slow_one_while_a_process_is_free,
     a_call_is_cancelled_in_its_process,
     a_process_wedged_in_native_code_is_replaced_and_costs_nobody_else,
     a_process_that_keeps_the_gil_is_killed,
     more_calls_than_the_queue_holds_are_refused,
     large_arguments_and_results_pass,
     the_allow_list_holds,
     what_python_prints_is_in_the_log,
     programs_that_python_starts_are_ended_by_their_signals,
     no_process_outlives_a_node_that_was_killed,
     a_signal_to_the_whole_group_drains,
     a_second_signal_ends_the_processes_too,
     the_cookie_is_not_in_a_process,
     without_a_living_process_the_node_is_not_ready,
     python_in_a_process_calls_erlang_to_any_depth,
     python_in_a_process_talks_to_other_processes,
     what_a_dead_process_had_asked_is_stopped].

init_per_suite(Config0) ->
    Config = sw_e2e:setup(Config0),
    [{beam, sw_e2e:start_beam(sw_e2e:context(Config))} | Config].

end_per_suite(Config) ->
    ok = sw_e2e:stop_beam(proplists:get_value(beam, Config)),
    ok = sw_e2e:teardown(Config).

%% A node of the test's own, for which Body runs in the BEAM; none of its processes may be left.
with_node(Config, Arguments, Body) ->
    Node = #{name := Name, program := Program} = start(Config, Arguments),
    Result = try
        sw_e2e:on(proplists:get_value(beam, Config), fun() -> Body(Name) end)
    after
        Workers = workers(Node),
        true = sw_e2e:alive(Program),
        sw_e2e:stop_node(Node),
        ok = sw_e2e:eventually(fun() -> [Pid || Pid <- Workers, exists(Pid)] =:= [] end)
    end,
    {Result, sw_e2e:output(Program)}.

start(Config, Arguments) ->
    Node = #{program := Program} =
        sw_e2e:start_node(sw_e2e:context(Config),
                          #{args => ["--processes", "2", "--import", "workers" | Arguments]}),
    ok = sw_e2e:eventually(fun() ->
        {match, Ready} = re:run(sw_e2e:output(Program), "(worker process [0-9]+ is ready)|^", [global]),
        length(Ready) >= 3    % and the beginning
    end),
    Node.

%% The processes that the node has started and that are alive.
workers(#{program := Program}) -> children(sw_e2e:os_pid(Program)).

children(Parent) ->
    Mark = integer_to_list(Parent),
    [list_to_integer(Pid)
     || "/proc/" ++ Rest <- filelib:wildcard("/proc/[0-9]*"), Pid <- [Rest],
        {ok, Stat} <- [file:read_file("/proc/" ++ Pid ++ "/stat")],
        [_, After] <- [string:split(Stat, ") ", trailing)],
        [State, Of | _] <- [string:lexemes(After, " ")],
        binary_to_list(Of) =:= Mark, State =/= <<"Z">>].

zombies(Parent) ->
    Mark = integer_to_binary(Parent),
    [Pid || "/proc/" ++ Pid <- filelib:wildcard("/proc/[0-9]*"),
            {ok, Stat} <- [file:read_file("/proc/" ++ Pid ++ "/stat")],
            [_, After] <- [string:split(Stat, ") ", trailing)],
            [<<"Z">>, Of | _] <- [string:lexemes(After, " ")], Of =:= Mark].

exists(Pid) ->
    case file:read_file(lists:concat(["/proc/", Pid, "/stat"])) of
        {ok, Stat} -> string:find(Stat, ") Z ") =:= nomatch;
        {error, _} -> false
    end.

request(N, F, A) -> gen_server:send_request({py, N}, {call, workers, F, A}).
answer(Request) -> {reply, Reply} = gen_server:receive_response(Request, 30000), Reply.
call(N, F, A) -> answer(request(N, F, A)).

%% One item of a batch, as the application's link process sends it.
item(N, Item) ->
    {py, N} ! {'$py_batch', [Item]},
    receive {'$py_replies', [{Id, Result}]} when Id =:= element(2, Item) -> Result after 30000 -> error(no_reply) end.

file(Config, Name) ->
    #{directory := Directory} = sw_e2e:context(Config),
    list_to_binary(filename:join(Directory, sw_e2e:unique(Name))).

lines(File) ->
    case file:read_file(File) of
        {ok, Text} -> lists:sort(string:lexemes(Text, "\n"));
        {error, enoent} -> []
    end.

%% --- calls --------------------------------------------------------------------------------------

every_form_of_call_works(Config) ->
    File = file(Config, "forms"),
    {_, _} = with_node(Config, [], fun(N) ->
        ?assertEqual(pong, net_adm:ping(N)),
        ?assertEqual(4.0, erpc:call(N, math, sqrt, [16.0])),
        ?assertEqual({ok, 4.0}, gen_server:call({py, N}, {call, math, sqrt, [16.0]})),
        ?assertEqual({ok, [1, 2]}, gen_server:call({py, N}, {call, builtins, sorted, [[2, 1]], #{reverse => false}})),
        ?assertEqual({ok, 3}, gen_server:call({py, N}, {eval, <<"a + b">>, #{a => 1, b => 2}})),
        ?assertEqual({ok, none}, gen_server:call({py, N}, {exec, <<"x = 1">>})),
        ?assertMatch({ok, Pid} when is_integer(Pid), gen_server:call({py, N}, {call, workers, nap, [0.01]})),
        ?assertEqual({ok, 4.0}, item(N, {call, 1, math, sqrt, [16.0]})),
        ?assertEqual({ok, 7}, item(N, {eval, 2, self(), <<"3 + 4">>})),
        ?assertEqual({error, {bad_request, nonsense}}, gen_server:call({py, N}, nonsense)),
        ?assertMatch({error, {python, <<"ValueError">>, _, _}}, gen_server:call({py, N}, {call, math, sqrt, [-1]})),
        ?assertError({exception, {python, <<"ValueError">>, _, _}, _}, erpc:call(N, math, sqrt, [-1])),
        {Pid1, Monitor1} = spawn_monitor(N, math, sqrt, [4]),
        receive {'DOWN', Monitor1, process, Pid1, Normal} -> ?assertEqual(normal, Normal) end,
        {Pid2, Monitor2} = spawn_monitor(N, math, sqrt, [-1]),
        receive {'DOWN', Monitor2, process, Pid2, Why} -> ?assertMatch({python, <<"ValueError">>, _, _}, Why) end,
        ok = gen_server:cast({py, N}, {cast, workers, note, [File, <<"cast">>]}),
        ok = erpc:cast(N, workers, note, [File, <<"erpc">>]),
        {py, N} ! {'$py_batch', [{cast, workers, note, [File, <<"item">>]}]},
        ok = sw_e2e:eventually(fun() -> lines(File) =:= [<<"cast">>, <<"erpc">>, <<"item">>] end),
        Many = [request(N, echo, [I]) || I <- lists:seq(1, 500)],
        ?assertEqual([{ok, I} || I <- lists:seq(1, 500)], [answer(R) || R <- Many])
    end).

two_calls_run_at_the_same_time_in_two_processes(Config) ->
    {A, B} = {file(Config, "a"), file(Config, "b")},
    with_node(Config, ["--workers", "1"], fun(N) ->
        First = request(N, meet, [A, B]),
        Second = request(N, meet, [B, A]),
        {ok, One} = answer(First),
        {ok, Other} = answer(Second),
        ?assertNotEqual(One, Other)
    end).

%% --- death --------------------------------------------------------------------------------------

every_form_of_call_is_told_how_its_process_died(Config) ->
    {_, Log} = with_node(Config, [], fun(N) ->
        ?assertEqual({error, {worker_died, sigkill}}, call(N, die, [<<"SIGKILL">>])),
        ?assertEqual({error, {worker_died, sigsegv}}, call(N, die, [<<"segfault">>])),
        ?assertEqual({error, {worker_died, {exit, 3}}}, call(N, die, [<<"exit">>])),
        ?assertEqual({error, {worker_died, sigabrt}}, call(N, die_later, [<<"SIGABRT">>])),
        ?assertError({exception, {worker_died, sigkill}, _}, erpc:call(N, workers, die, [<<"SIGKILL">>])),
        ?assertEqual({error, {worker_died, sigbus}}, item(N, {call, 1, workers, die, [<<"SIGBUS">>]})),
        {Pid, Monitor} = spawn_monitor(N, workers, die, [<<"SIGFPE">>]),
        receive {'DOWN', Monitor, process, Pid, Why} -> ?assertEqual({worker_died, sigfpe}, Why) end,
        ?assertEqual({error, {worker_died, {exit, 3}}},
                     gen_server:call({py, N}, {exec, <<"import os; os._exit(3)">>})),
        ok = gen_server:cast({py, N}, {cast, workers, die, [<<"SIGKILL">>]}),
        ?assertEqual({ok, 1}, call(N, echo, [1]))
    end),
    ?assertMatch({match, _}, re:run(Log, "worker process [0-9]+ ended: sigsegv; 1 calls are lost")),
    ok.

what_ends_a_process_costs_its_own_calls_only_and_nothing_runs_twice(Config) ->
    File = file(Config, "once"),
    with_node(Config, ["--workers", "1"], fun(N) ->
        %% One in each process, and three that wait for them.
        Fatal = request(N, die, [<<"SIGKILL">>, File, 0.5]),
        Slow = request(N, noted, [File, <<"slow">>, 1.5]),
        ok = sw_e2e:eventually(fun() -> lines(File) =:= [<<"died">>, <<"slow">>] end),
        Waiting = [request(N, noted, [File, integer_to_binary(I), 0]) || I <- lists:seq(1, 3)],
        ?assertEqual({error, {worker_died, sigkill}}, answer(Fatal)),
        {ok, Survivor} = answer(Slow),
        Answers = [answer(R) || R <- Waiting],
        ?assertMatch([{ok, _}, {ok, _}, {ok, _}], Answers),
        ?assertNotEqual([Survivor], lists:usort([Pid || {ok, Pid} <- Answers])),
        ?assertEqual([<<"1">>, <<"2">>, <<"3">>, <<"died">>, <<"slow">>], lines(File))
    end).

fifty_deaths_leave_no_zombie_no_descriptor_and_no_memory(Config) ->
    Node = #{name := N, program := Program} = start(Config, []),
    OsPid = sw_e2e:os_pid(Program),
    Beam = proplists:get_value(beam, Config),
    Die = fun(Times) ->
        sw_e2e:on(Beam, fun() ->
            [?assertEqual({error, {worker_died, sigkill}}, call(N, die, [<<"SIGKILL">>]))
             || _ <- lists:seq(1, Times)],
            ?assertEqual({ok, 1}, call(N, echo, [1]))
        end),
        ok = sw_e2e:eventually(fun() -> length(workers(Node)) =:= 2 end)
    end,
    Die(5),
    {Descriptors, Memory} = used(OsPid),
    Die(50),
    ok = sw_e2e:eventually(fun() -> {Now, _} = used(OsPid), Now =< Descriptors end),
    {_, MemoryAfter} = used(OsPid),
    ?assert(MemoryAfter < Memory + 4 * 1024, {Memory, MemoryAfter}),
    ?assertEqual([], zombies(OsPid)),
    ok = sw_e2e:stop_node(Node).

%% Descriptors, and KiB.
used(OsPid) ->
    Directory = lists:concat(["/proc/", OsPid]),
    {ok, Names} = file:list_dir(Directory ++ "/fd"),
    {ok, Status} = file:read_file(Directory ++ "/status"),
    {match, [Size]} = re:run(Status, "VmRSS:\\s+([0-9]+)", [{capture, [1], list}]),
    {length(Names), list_to_integer(Size)}.

%% --- who runs what ------------------------------------------------------------------------------

a_callers_namespace_lives_in_one_process(Config) ->
    with_node(Config, ["--workers", "2"], fun(N) ->
        Callers = [spawn_monitor(fun() ->
            {ok, none} = gen_server:call({py, N}, {exec, <<"import os; mine = ", (integer_to_binary(I))/binary>>}),
            Seen = [gen_server:call({py, N}, {eval, <<"(mine, os.getpid())">>}) || _ <- lists:seq(1, 20)],
            [{ok, {I, Pid}}] = lists:usort(Seen),
            exit({same, Pid})
        end) || I <- lists:seq(1, 8)],
        Pids = [receive {'DOWN', Monitor, process, Caller, {same, Pid}} -> Pid end || {Caller, Monitor} <- Callers],
        ?assertMatch([_, _], lists:usort(Pids)),
        ?assertMatch({error, {python, <<"NameError">>, _, _}}, gen_server:call({py, N}, {eval, <<"mine">>})),
        %% With its process a caller's namespace is gone, and the caller has a new one.
        {ok, none} = gen_server:call({py, N}, {exec, <<"mine = 1">>}),
        {error, {worker_died, _}} = gen_server:call({py, N}, {exec, <<"import os; os._exit(1)">>}),
        ?assertMatch({error, {python, <<"NameError">>, _, _}}, gen_server:call({py, N}, {eval, <<"mine">>})),
        {ok, none} = gen_server:call({py, N}, {exec, <<"mine = 2">>}),
        ?assertEqual({ok, 2}, gen_server:call({py, N}, {eval, <<"mine">>}))
    end).

a_coroutine_does_not_wait_for_slow_calls(Config) ->
    File = file(Config, "slow"),
    with_node(Config, ["--workers", "2"], fun(N) ->
        %% Known to both processes before.
        [{ok, _} = call(N, pid, []) || _ <- lists:seq(1, 10)],
        Slow = [request(N, noted, [File, integer_to_binary(I), 3]) || I <- lists:seq(1, 4)],
        ok = sw_e2e:eventually(fun() -> length(lines(File)) =:= 4 end),
        Begin = erlang:monotonic_time(millisecond),
        Quick = [request(N, nap, [0.01]) || _ <- lists:seq(1, 50)],
        [?assertMatch({ok, _}, answer(R)) || R <- Quick],
        ?assert(erlang:monotonic_time(millisecond) - Begin < 2000),
        [?assertMatch({ok, _}, answer(R)) || R <- Slow]
    end).

a_quick_call_does_not_wait_for_a_slow_one_while_a_process_is_free(Config) ->
    File = file(Config, "ahead"),
    with_node(Config, ["--workers", "1"], fun(N) ->
        %% Both processes are quick, and so are given calls ahead; then come two that are not.
        Quick = [request(N, echo, [I]) || I <- lists:seq(1, 2000)],
        Slow = request(N, noted, [File, <<"slow">>, 3]),
        More = [request(N, echo, [I]) || I <- lists:seq(1, 100)],
        Begin = erlang:monotonic_time(millisecond),
        [?assertMatch({ok, _}, answer(R)) || R <- Quick ++ More],
        ?assert(erlang:monotonic_time(millisecond) - Begin < 2500),
        ?assertMatch({ok, _}, answer(Slow))
    end).

%% --- cancelling ---------------------------------------------------------------------------------

a_call_is_cancelled_in_its_process(Config) ->
    {File, After} = {file(Config, "spin"), file(Config, "after")},
    Code = fun(Wait) ->
        <<"import time, workers\nworkers.note('", File/binary, "', 'begun')\ntry:\n    ", Wait/binary,
          "\nexcept BaseException as e:\n    workers.note('", File/binary, "', type(e).__name__)\n    raise">>
    end,
    {Before, _} = with_node(Config, ["--workers", "1"], fun(N) ->
        ?assertExit({timeout, _}, gen_server:call({py, N}, {exec, Code(<<"workers.spin(30)">>)}, 300)),
        ok = sw_e2e:eventually(fun() -> lines(File) =:= [<<"Cancelled">>, <<"begun">>] end, 5000),
        %% One that waits is never run.
        Slow = [request(N, noted, [File, <<"slow">>, 0.5]) || _ <- [1, 2]],
        ?assertExit({timeout, _}, gen_server:call({py, N}, {call, workers, note, [After, <<"ran">>]}, 100)),
        [?assertMatch({ok, _}, answer(R)) || R <- Slow],
        ?assertExit({timeout, _}, gen_server:call({py, N}, {call, workers, nap, [30]}, 200)),
        {Caller, Monitor} = spawn_monitor(fun() -> erpc:call(N, workers, spin, [30]) end),
        timer:sleep(100),
        exit(Caller, kill),
        receive {'DOWN', Monitor, process, Caller, _} -> ok end,
        Begin = erlang:monotonic_time(millisecond),
        ?assertMatch({ok, _}, call(N, meet, [File, File])),
        ?assertMatch([{ok, _}, {ok, _}], [answer(R) || R <- [request(N, spin, [0.1]), request(N, spin, [0.1])]]),
        erlang:monotonic_time(millisecond) - Begin
    end),
    ?assert(Before < 10000, Before),
    ?assertEqual([], lines(After)).

a_process_wedged_in_native_code_is_replaced_and_costs_nobody_else(Config) ->
    File = file(Config, "wedged"),
    {_, Log} = with_node(Config, ["--workers", "2", "--grace-ms", "300"], fun(N) ->
        ?assertExit({timeout, _}, gen_server:call({py, N}, {call, workers, stuck, [File]}, 200)),
        [Wedged] = [binary_to_integer(Line) || Line <- lines(File)],
        %% The other threads of that process are at work, and end their calls.
        Others = [request(N, noted, [File, <<"other">>, 1.5]) || _ <- lists:seq(1, 3)],
        ok = sw_e2e:eventually(fun() -> not exists(Wedged) end),
        Pids = [Pid || {ok, Pid} <- [answer(R) || R <- Others]],
        ?assertEqual(3, length(Pids)),
        ?assert(lists:member(Wedged, Pids)),
        ?assertEqual({ok, 1}, call(N, echo, [1]))
    end),
    ?assertMatch({match, _}, re:run(Log, "has not ended a cancelled call for 300 ms.*replacing the process")).

a_process_that_keeps_the_gil_is_killed(Config) ->
    File = file(Config, "gil"),
    with_node(Config, ["--workers", "2", "--grace-ms", "200"], fun(N) ->
        ?assertExit({timeout, _}, gen_server:call({py, N}, {call, workers, stuck_with_gil, [File]}, 200)),
        [Wedged] = [binary_to_integer(Line) || Line <- lines(File)],
        ok = sw_e2e:eventually(fun() -> not exists(Wedged) end, 5000),
        ?assertEqual({ok, 1}, call(N, echo, [1]))
    end).

%% --- bounds -------------------------------------------------------------------------------------

more_calls_than_the_queue_holds_are_refused(Config) ->
    File = file(Config, "full"),
    with_node(Config, ["--workers", "1", "--queue", "10"], fun(N) ->
        Busy = [request(N, noted, [File, <<"busy">>, 2]) || _ <- [1, 2]],
        ok = sw_e2e:eventually(fun() -> length(lines(File)) =:= 2 end),
        Waiting = [request(N, echo, [I]) || I <- lists:seq(1, 10)],
        ?assertEqual({error, overloaded}, call(N, echo, [11])),
        ?assertEqual({error, overloaded}, item(N, {call, 1, math, sqrt, [16.0]})),
        ?assertError({erpc, system_limit}, erpc:call(N, math, sqrt, [16.0])),
        ?assertEqual(pong, net_adm:ping(N)),
        [?assertMatch({ok, _}, answer(R)) || R <- Busy],
        ?assertEqual([{ok, I} || I <- lists:seq(1, 10)], [answer(R) || R <- Waiting])
    end).

large_arguments_and_results_pass(Config) ->
    with_node(Config, [], fun(N) ->
        Large = binary:copy(<<255, 1, 2, 3, 4>>, 10_000_000),
        ?assertEqual({ok, Large}, call(N, echo, [Large])),
        {ok, Made} = call(N, blob, [50_000_000]),
        ?assertEqual(50_000_000, byte_size(Made)),
        ?assertEqual({ok, 50_000_000}, gen_server:call({py, N}, {call, builtins, len, [Large]}, 30000)),
        %% Small ones pass meanwhile.
        Big = [request(N, echo, [Large]) || _ <- [1, 2]],
        ?assertEqual([{ok, I} || I <- lists:seq(1, 100)], [call(N, echo, [I]) || I <- lists:seq(1, 100)]),
        [?assertEqual({ok, Large}, answer(R)) || R <- Big],
        ok
    end).

the_allow_list_holds(Config) ->
    with_node(Config, ["--allow", "math.*", "--eval", "off"], fun(N) ->
        ?assertEqual({ok, 4.0}, gen_server:call({py, N}, {call, math, sqrt, [16.0]})),
        ?assertEqual({error, {not_allowed, {<<"workers">>, <<"pid">>}}}, call(N, pid, [])),
        ?assertEqual({error, {not_allowed, {<<"builtins">>, <<"eval">>}}}, gen_server:call({py, N}, {eval, <<"1">>})),
        ?assertError({exception, {not_allowed, _}, _}, erpc:call(N, os, getpid, [])),
        ?assertEqual({error, {not_allowed, {<<"os">>, <<"getpid">>}}}, item(N, {call, 1, os, getpid, []}))
    end).

%% --- surroundings -------------------------------------------------------------------------------

what_python_prints_is_in_the_log(Config) ->
    {_, Log} = with_node(Config, [], fun(N) ->
        ?assertEqual({ok, none}, call(N, say, [<<"hello from below">>])),
        ok = gen_server:cast({py, N}, {cast, math, sqrt, [-1]}),
        ?assertEqual({ok, 1}, call(N, echo, [1])),
        timer:sleep(100)
    end),
    ?assertMatch({match, _}, re:run(Log, "info.* hello from below")),
    ?assertMatch({match, _}, re:run(Log, "a cast or process raised ValueError")).

programs_that_python_starts_are_ended_by_their_signals(Config) ->
    with_node(Config, [], fun(N) ->
        ?assertEqual({ok, [1, 0, -15]}, call(N, in_subprocess, [])),
        Code = <<"__import__('subprocess').run(['sh', '-c', 'kill -TERM $$; echo on'], stdout=-1).returncode">>,
        ?assertEqual({ok, -15}, gen_server:call({py, N}, {eval, Code})),
        ?assertEqual({ok, 1}, call(N, echo, [1]))
    end).

no_process_outlives_a_node_that_was_killed(Config) ->
    Node = #{name := N} = start(Config, []),
    ok = sw_e2e:eventually(fun() -> length(workers(Node)) =:= 2 end),
    sw_e2e:on(proplists:get_value(beam, Config), fun() -> _ = request(N, spin, [30]), timer:sleep(100) end),
    Workers = workers(Node),
    ok = sw_e2e:stop_node(Node),
    ok = sw_e2e:eventually(fun() -> [Pid || Pid <- Workers, exists(Pid)] =:= [] end, 5000).

a_signal_to_the_whole_group_drains(Config) ->
    Node = #{name := N, program := Program} = start(Config, ["--workers", "1"]),
    ok = sw_e2e:eventually(fun() -> length(workers(Node)) =:= 2 end),
    Beam = proplists:get_value(beam, Config),
    Workers = workers(Node),
    Group = [sw_e2e:os_pid(Program) | Workers],
    sw_e2e:on(Beam, fun() ->
        Accepted = [request(N, spin, [0.7]) || _ <- lists:seq(1, 3)],
        timer:sleep(100),
        [os:cmd(lists:concat(["kill -TERM ", Pid])) || Pid <- Group],
        ok = sw_e2e:eventually(fun() -> call(N, echo, [1]) =:= {error, draining} end),
        [?assertMatch({ok, _}, answer(R)) || R <- Accepted]
    end),
    ?assertEqual(0, sw_e2e:await_exit(Program)),
    ?assertEqual([], [Pid || Pid <- Workers, exists(Pid)]).

a_second_signal_ends_the_processes_too(Config) ->
    Node = #{name := N, program := Program} = start(Config, []),
    ok = sw_e2e:eventually(fun() -> length(workers(Node)) =:= 2 end),
    Workers = workers(Node),
    sw_e2e:on(proplists:get_value(beam, Config), fun() ->
        spawn(fun() -> call(N, spin, [30]) end),
        timer:sleep(200)
    end),
    ok = sw_e2e:send_signal(Program, "TERM"),
    _ = sw_e2e:wait_line(Program, "draining"),
    ok = sw_e2e:send_signal(Program, "TERM"),
    ?assertEqual(4, sw_e2e:await_exit(Program)),
    ok = sw_e2e:eventually(fun() -> [Pid || Pid <- Workers, exists(Pid)] =:= [] end, 5000).

the_cookie_is_not_in_a_process(Config) ->
    #{cookie := Cookie} = sw_e2e:context(Config),
    Node = #{name := N} = start(Config, []),
    ?assertEqual({ok, []}, sw_e2e:on(proplists:get_value(beam, Config), fun() ->
        call(N, secrets, [list_to_binary(Cookie)])
    end)),
    %% Its own socket, and its loop's wake-up.
    {ok, Sockets} = sw_e2e:on(proplists:get_value(beam, Config), fun() -> call(N, sockets, []) end),
    ?assert(Sockets =< 3, Sockets),
    ok = sw_e2e:stop_node(Node).

without_a_living_process_the_node_is_not_ready(Config) ->
    Node = #{name := N, program := Program} =
        start(Config, ["--admin", "127.0.0.1:0"]),
    Line = sw_e2e:wait_line(Program, "admin: listening on port [0-9]+"),
    {match, [Port]} = re:run(Line, "port ([0-9]+)", [{capture, [1], list}]),
    Get = fun(Path) -> get(list_to_integer(Port), Path) end,
    ok = sw_e2e:eventually(fun() -> Get("/readyz") =:= {200, <<"ok\n">>} end),
    ok = sw_e2e:eventually(fun() -> value(Get, <<"sidewinder_worker_processes">>) =:= <<"2">> end),
    [os:cmd(lists:concat(["kill -9 ", Pid])) || Pid <- workers(Node)],
    ok = sw_e2e:eventually(fun() -> Get("/readyz") =:= {503, <<"no worker process is ready\n">>} end),
    {200, _} = Get("/livez"),
    ok = sw_e2e:eventually(fun() -> Get("/readyz") =:= {200, <<"ok\n">>} end),
    ?assertEqual(<<"2">>, value(Get, <<"sidewinder_worker_process_deaths_total{signal=\"sigkill\"}">>)),
    sw_e2e:on(proplists:get_value(beam, Config), fun() -> {ok, 1} = call(N, echo, [1]) end),
    ?assertEqual(<<"1">>, value(Get, <<"sidewinder_calls_total{fn=\"workers.echo\",result=\"ok\"}">>)),
    ok = sw_e2e:stop_node(Node).

%% --- asking Erlang ------------------------------------------------------------------------------

%% A BEAM with the application, and the node as its default.
with_application(Config, Arguments, Body) ->
    Node = #{name := Name} = start(Config, Arguments),
    Beam = sw_e2e:start_beam(sw_e2e:context(Config), #{args => ["-pa", filename:dirname(code:which(py))]}),
    try
        sw_e2e:on(Beam, fun() ->
            _ = application:load(sidewinder),
            ok = application:set_env(sidewinder, default_node, Name),
            {ok, _} = application:ensure_all_started(sidewinder),
            ok = py_node:connect(Name),
            ok = py:register_function(double, fun([X]) -> 2 * X end),
            ok = py:register_function(down, fun([N]) -> {ok, V} = py:call(workers, up, [N]), V end),
            ok = py:register_function(slow, fun([]) -> timer:sleep(20000) end),
            Body(Name)
        end)
    after
        sw_e2e:stop_beam(Beam),
        sw_e2e:stop_node(Node)
    end.

python_in_a_process_calls_erlang_to_any_depth(Config) ->
    with_application(Config, ["--workers", "1"], fun(_) ->
        ?assertEqual({ok, 1}, py:call(workers, up, [1])),
        ?assertEqual({ok, 30}, py:call(workers, up, [30])),
        ?assertEqual({ok, [2 * I || I <- lists:seq(0, 199)]}, py:call(workers, gather, [200])),
        Many = [py:spawn_call(workers, up, [3]) || _ <- lists:seq(1, 20)],
        ?assertEqual([{ok, 3} || _ <- Many], [py:await(Ref) || Ref <- Many]),
        ?assertEqual({ok, 7}, py:eval(<<"7">>))
    end).

python_in_a_process_talks_to_other_processes(Config) ->
    with_application(Config, [], fun(N) ->
        Self = self(),
        Server = spawn(fun Loop() ->
            receive {'$gen_call', From, Request} -> gen_server:reply(From, {answer, Request}), Loop() end
        end),
        ?assertEqual({ok, {answer, <<"question">>}}, py:call(workers, ask, [Server, <<"question">>])),
        ?assertEqual({ok, [3, 2, 1]}, py:call(workers, remote, [node(), lists, reverse, [1, 2, 3]])),
        ?assertEqual({ok, [3, 2, 1]}, py:call(workers, remote_later, [node(), lists, reverse, [1, 2, 3]])),
        ?assertEqual({ok, {error, badarg}}, py:call(workers, remote, [node(), erlang, list_to_atom, [x]])),
        ?assertEqual({ok, none}, py:call(workers, tell, [Self, 100])),
        [receive Next -> ?assertEqual(I, Next) after 5000 -> error(nothing) end || I <- lists:seq(0, 99)],
        ?assertEqual({ok, [<<"UnknownFunction">>, <<"NoConnection">>, <<"ErlangError">>, <<"NoConnection">>,
                           <<"TimeoutError">>, <<"RuntimeError">>]}, py:call(workers, unknown, [])),
        {ok, [Own, Peers, Py, none]} = py:call(workers, surroundings, []),
        ?assertEqual({N, [node()], N}, {Own, Peers, node(Py)})
    end).

what_a_dead_process_had_asked_is_stopped(Config) ->
    with_application(Config, [], fun(_) ->
        Before = length(processes()),
        ?assertEqual({error, {worker_died, sigkill}}, py:call(workers, die_asking, [])),
        ok = sw_e2e:eventually(fun() -> length(processes()) =< Before + 2 end, 5000),
        ?assertEqual({ok, 1}, py:call(workers, up, [1]))
    end).

value(Get, Name) ->
    {200, Text} = Get("/metrics"),
    hd([Value || Line <- binary:split(Text, <<"\n">>, [global]),
                 [Key, Value] <- [binary:split(Line, <<" ">>)], Key =:= Name] ++ [none]).

get(Port, Path) ->
    {ok, Socket} = gen_tcp:connect({127, 0, 0, 1}, Port, [binary, {active, false}]),
    ok = gen_tcp:send(Socket, ["GET ", Path, " HTTP/1.1\r\nHost: x\r\n\r\n"]),
    Answer = all_of(Socket, <<>>),
    ok = gen_tcp:close(Socket),
    [<<"HTTP/1.1 ", Status:3/binary, _/binary>>, Body] = binary:split(Answer, <<"\r\n\r\n">>),
    {binary_to_integer(Status), Body}.

all_of(Socket, Before) ->
    case gen_tcp:recv(Socket, 0, 15000) of
        {ok, More} -> all_of(Socket, <<Before/binary, More/binary>>);
        {error, closed} -> Before
    end.
