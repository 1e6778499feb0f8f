%% A node under attack, by peers that break the protocol and by BEAMs that send more than is good: those
%% who behave notice nothing, and afterwards everything is as before.
-module(hostile_SUITE).

-include_lib("stdlib/include/assert.hrl").

-export([all/0, suite/0, init_per_suite/1, end_per_suite/1]).
-compile([export_all, nowarn_export_all]).

-define(PATIENCE, 5000).            % ms that a call may take while the node is attacked
-define(GROWTH, 150_000_000).       % bytes that a node may have kept after an attack of any kind

suite() -> [{timetrap, {seconds, 280}}].

all() ->
    [hostile_peers_hurt_nobody_and_leave_nothing_behind,
     terms_too_deep_are_refused_wherever_they_stand,
     an_exit_reason_too_deep_is_replaced_and_the_link_lives,
     a_message_over_the_limit_is_too_large_and_the_link_lives,
     a_peer_that_stops_reading_holds_up_nobody,
     hundreds_of_half_open_connections_do_not_keep_a_beam_out,
     a_flood_of_spawns_monitors_and_names_leaves_nothing_behind].

init_per_suite(Config0) ->
    Config = sw_e2e:setup(Config0),
    Context = sw_e2e:context(Config),
    Node = sw_e2e:start_node_now(Context, #{args => ["--ticktime", "8", "--log-level", "error"]}),
    Beam = sw_e2e:start_beam(Context, #{args => ["-kernel", "net_ticktime", "8"]}),
    #{name := Name} = Node,
    ok = sw_e2e:eventually(fun() -> sw_e2e:on(Beam, fun() -> net_adm:ping(Name) end) =:= pong end),
    [{node, Node}, {beam, Beam} | Config].

end_per_suite(Config) ->
    true = sw_e2e:alive(maps:get(program, proplists:get_value(node, Config))),
    ok = sw_e2e:stop_beam(proplists:get_value(beam, Config)),
    ok = sw_e2e:stop_node(proplists:get_value(node, Config)),
    ok = sw_e2e:teardown(Config).

bare(Config, Body) ->
    #{name := Node} = proplists:get_value(node, Config),
    sw_e2e:on(proplists:get_value(beam, Config), fun() -> Body(Node) end, 250000).

call(Node, F, Args) ->
    gen_server:call({py, Node}, {call, probe, F, Args}, 30000).

%% --- what is measured ---------------------------------------------------------------------------

%% What a node holds: descriptors, threads, Python processes, work, and memory.
holdings(Config) ->
    #{name := Name, program := Program} = proplists:get_value(node, Config),
    OsPid = integer_to_list(sw_e2e:os_pid(Program)),
    {ok, Descriptors} = file:list_dir("/proc/" ++ OsPid ++ "/fd"),
    {ok, Threads} = file:list_dir("/proc/" ++ OsPid ++ "/task"),
    {ok, Status} = file:read_file("/proc/" ++ OsPid ++ "/status"),
    {match, [Resident]} = re:run(Status, "VmRSS:\\s+([0-9]+) kB", [{capture, [1], list}]),
    Stats = maps:with([<<"busy">>, <<"waiting">>, <<"tasks">>, <<"processes">>, <<"replaced_workers">>],
                      sw_e2e:stats(proplists:get_value(beam, Config), Name)),
    {Stats#{descriptors => length(Descriptors), threads => length(Threads)}, list_to_integer(Resident) * 1024}.

%% Runs something after which the node must hold what it held before.
leaving_nothing_behind(Config, Function) ->
    warm_up(Config),
    {Before, Memory} = holdings(Config),
    Result = Function(),
    ok = sw_e2e:eventually(fun() ->
        {After, Now} = holdings(Config),
        case After =:= Before of
            false -> {differs, Before, After};
            true when Now - Memory > ?GROWTH -> {memory, Memory, Now};
            true -> true
        end
    end, 30000),
    Result.

%% All workers and whatever grows with the first calls.
warm_up(Config) ->
    bare(Config, fun(N) ->
        Requests = [gen_server:send_request({py, N}, {call, probe, nap, [0.02]}) || _ <- lists:seq(1, 50)],
        [{reply, {ok, _}} = gen_server:receive_response(Request, 10000) || Request <- Requests],
        {ok, _} = call(N, nap_async, [0.001])
    end).

%% Has a BEAM call all the while; ends it and tells how many calls were answered, how long the slowest took,
%% and whether the link was lost.
while_a_beam_calls(Config, Function) ->
    #{name := Name} = proplists:get_value(node, Config),
    Beam = proplists:get_value(beam, Config),
    Caller = sw_e2e:on(Beam, fun() ->
        spawn(fun() ->
            true = monitor_node(Name, true),
            calling(Name, 0, 0)
        end)
    end),
    Result = Function(),
    {Answered, Slowest} = sw_e2e:on(Beam, fun() ->
        Monitor = monitor(process, Caller),
        Caller ! {stop, self()},
        receive
            {stopped, Answered, Slowest} -> {Answered, Slowest};
            {'DOWN', Monitor, process, Caller, Reason} -> error({caller_ended, Reason})
        end
    end),
    ct:log("~b calls answered meanwhile, the slowest in ~.1f ms", [Answered, Slowest / 1000]),
    ?assert(Answered > 10),
    ?assert(Slowest < ?PATIENCE * 1000, Slowest),
    Result.

calling(Name, Answered, Slowest) ->
    receive
        {nodedown, Name} -> exit(link_lost);
        {stop, From} -> From ! {stopped, Answered, Slowest}
    after 2 ->
        {Time, {ok, Answered}} = timer:tc(fun() -> call(Name, identity, [Answered]) end),
        calling(Name, Answered + 1, max(Time, Slowest))
    end.

%% --- attacks ------------------------------------------------------------------------------------

hostile_peers_hurt_nobody_and_leave_nothing_behind(Config) ->
    leaving_nothing_behind(Config, fun() ->
        while_a_beam_calls(Config, fun() -> attack(Config, [], 240000) end)
    end).

attack(Config, Options, Timeout) ->
    #{name := Name} = proplists:get_value(node, Config),
    #{cookie_file := Cookie, epmd_port := EpmdPort} = sw_e2e:context(Config),
    Script = filename:join(sw_e2e:root(), "tests/hostile/hostile.py"),
    Program = sw_e2e:start_program("/usr/bin/python3", [Script, "127.0.0.1", "0", "@" ++ Cookie, atom_to_list(Name) | Options],
                                   [{"ERL_EPMD_PORT", EpmdPort}]),
    Status = sw_e2e:await_exit(Program, Timeout),
    Output = sw_e2e:output(Program),
    ct:log("~ts", [Output]),
    Wrong = [Line || <<"WRONG", _/binary>> = Line <- binary:split(Output, <<"\n">>, [global])],
    ?assertEqual({0, []}, {Status, Wrong}, Output).

deep(Depth) ->
    lists:foldl(fun(_, Term) -> [Term] end, [], lists:seq(1, Depth)).

terms_too_deep_are_refused_wherever_they_stand(Config) ->
    leaving_nothing_behind(Config, fun() ->
        while_a_beam_calls(Config, fun() ->
            bare(Config, fun(N) ->
                Deep = deep(100000),
                Tuples = lists:foldl(fun(_, Term) -> {Term} end, {}, lists:seq(1, 100000)),
                Maps = lists:foldl(fun(_, Term) -> #{a => Term} end, #{}, lists:seq(1, 100000)),
                [?assertMatch({error, {bad_term, Text}} when is_binary(Text), call(N, identity, [Term]))
                 || Term <- [Deep, Tuples, Maps]],
                ?assertMatch({error, {bad_term, _}}, gen_server:call({py, N}, {call, probe, identity, [], #{a => Deep}})),
                ?assertMatch({error, _}, gen_server:call({py, N}, {eval, <<"x">>, #{x => Deep}})),
                ?assertMatch({error, _}, gen_server:call({py, N}, {Deep, Deep})),
                ?assertMatch({raised, Raised} when element(1, Raised) =/= erpc,
                             try erpc:call(N, probe, identity, [Deep]) catch _:Why -> {raised, Why} end),
                {Pid, Monitor} = spawn_monitor(N, probe, identity, [Deep]),
                receive {'DOWN', Monitor, process, Pid, Reason} -> ?assertNotEqual(normal, Reason) after 5000 -> error(no_down) end,
                ok = gen_server:cast({py, N}, {cast, probe, identity, [Deep]}),
                {py, N} ! Deep,
                {nobody, N} ! Deep,
                ?assertEqual({ok, deep(900)}, call(N, identity, [deep(900)]))
            end)
        end)
    end).

%% Exit reasons a BEAM may well have, so they are no reason to drop its link.
an_exit_reason_too_deep_is_replaced_and_the_link_lives(Config) ->
    leaving_nothing_behind(Config, fun() ->
        while_a_beam_calls(Config, fun() ->
            [bare(Config, fun(N) ->
                Deep = deep(100000),
                {Asleep, Watch} = spawn_monitor(N, probe, nap_async, [30]),
                exit(Asleep, Deep),
                receive {'DOWN', Watch, process, Asleep, Given} -> ?assertEqual(reason_too_deep, Given)
                after 5000 -> error(no_down) end,
                Mortal = spawn(fun() -> receive die -> exit(Deep) end end),
                ok = gen_server:cast({py, N}, {cast, probe, join, [self(), Mortal, true]}),
                {<<"linked">>, _} = sw_e2e:tell_test(5000),
                ok = gen_server:cast({py, N}, {cast, probe, watch, [self(), Mortal]}),
                <<"watching">> = sw_e2e:tell_test(5000),
                Mortal ! die,
                ?assertEqual(lists:sort([{'EXIT', Mortal, reason_too_deep}, {'DOWN', Mortal, reason_too_deep}]),
                             lists:sort([sw_e2e:tell_test(5000), sw_e2e:tell_test(5000)]))
            end) || _ <- lists:seq(1, 20)]
        end)
    end).

a_message_over_the_limit_is_too_large_and_the_link_lives(Config) ->
    leaving_nothing_behind(Config, fun() ->
        bare(Config, fun(N) ->
            true = monitor_node(N, true),
            Large = binary:copy(<<0>>, 257 * 1024 * 1024),
            ?assertEqual({error, too_large}, gen_server:call({py, N}, {call, builtins, len, [Large]}, 60000)),
            {py, N} ! {large, Large},
            ?assertEqual({ok, 4.0}, gen_server:call({py, N}, {call, math, sqrt, [16.0]}, 60000)),
            ?assertMatch({error, {python, <<"ValueError">>, _, _}}, gen_server:call({py, N}, {call, probe, big, [257 * 1024 * 1024]}, 60000)),
            ?assertEqual({ok, 4.0}, gen_server:call({py, N}, {call, math, sqrt, [16.0]}, 60000)),
            true = monitor_node(N, false),
            receive {nodedown, N} -> error(link_lost) after 0 -> ok end
        end),
        bare(Config, fun(_) -> [true = erlang:garbage_collect(Pid) || Pid <- processes()], ok end)
    end).

%% A BEAM asks for much and is then stopped: it reads nothing any more.
a_peer_that_stops_reading_holds_up_nobody(Config) ->
    #{name := N} = proplists:get_value(node, Config),
    leaving_nothing_behind(Config, fun() ->
        while_a_beam_calls(Config, fun() ->
            Deaf = sw_e2e:start_beam(sw_e2e:context(Config), #{args => ["-kernel", "net_ticktime", "8"]}),
            OsPid = sw_e2e:beam_os_pid(Deaf),
            ok = sw_e2e:on(Deaf, fun() ->
                pong = net_adm:ping(N),
                [spawn(fun() -> gen_server:call({py, N}, {call, probe, big, [5_000_000]}, infinity) end) || _ <- lists:seq(1, 20)],
                [spawn(fun() -> gen_server:call({py, N}, {call, probe, nap, [0.3]}, infinity) end) || _ <- lists:seq(1, 100)],
                ok
            end),
            "" = os:cmd("kill -STOP " ++ OsPid),
            try
                timer:sleep(3000)
            after
                "" = os:cmd("kill -CONT " ++ OsPid)
            end,
            ok = sw_e2e:eventually(fun() -> sw_e2e:on(Deaf, fun() -> net_adm:ping(N) end) =:= pong end),
            ?assertEqual({ok, 4.0}, sw_e2e:on(Deaf, fun() -> gen_server:call({py, N}, {call, math, sqrt, [16.0]}) end)),
            ok = sw_e2e:kill_beam(Deaf)
        end)
    end).

hundreds_of_half_open_connections_do_not_keep_a_beam_out(Config) ->
    #{name := N} = proplists:get_value(node, Config),
    #{epmd_port := EpmdPort} = sw_e2e:context(Config),
    {_, Port} = lists:keyfind(hd(string:split(atom_to_list(N), "@")), 1, sw_e2e:epmd_names(EpmdPort)),
    leaving_nothing_behind(Config, fun() ->
        while_a_beam_calls(Config, fun() ->
            Sockets = [Socket || _ <- lists:seq(1, 300),
                                 {ok, Socket} <- [gen_tcp:connect("127.0.0.1", Port, [binary, {active, false}])]],
            [begin
                Newcomer = sw_e2e:start_beam(sw_e2e:context(Config), #{args => ["-kernel", "net_ticktime", "8"]}),
                ?assertEqual(pong, sw_e2e:on(Newcomer, fun() -> net_adm:ping(N) end)),
                ok = sw_e2e:stop_beam(Newcomer)
            end || _ <- [1, 2]],
            %% The node has hung up on all but those it still waits for, and soon on these.
            ok = sw_e2e:eventually(fun() ->
                [open || Socket <- Sockets, gen_tcp:recv(Socket, 0, 0) =:= {error, timeout}] =:= []
            end, 20000),
            [gen_tcp:close(Socket) || Socket <- Sockets]
        end)
    end).

a_flood_of_spawns_monitors_and_names_leaves_nothing_behind(Config) ->
    leaving_nothing_behind(Config, fun() ->
        while_a_beam_calls(Config, fun() ->
            bare(Config, fun(N) ->
                Numbers = lists:seq(1, 5000),
                Spawned = [spawn_monitor(N, probe, identity, [I]) || I <- Numbers],
                [receive {'DOWN', Monitor, process, Pid, Reason} -> ?assertEqual(normal, Reason) end
                 || {Pid, Monitor} <- Spawned],
                Missing = [monitor(process, {list_to_atom("nobody_" ++ integer_to_list(I rem 100)), N}) || I <- Numbers],
                [receive {'DOWN', Monitor, process, _, Reason} -> ?assertEqual(noproc, Reason) end || Monitor <- Missing],
                Watching = [monitor(process, {py, N}) || _ <- Numbers],
                [true = demonitor(Monitor) || Monitor <- Watching],
                process_flag(trap_exit, true),
                [begin {Pid, _} = One, true = link(Pid) end || One <- Spawned],
                [receive {'EXIT', Pid, Reason} -> ?assertEqual(noproc, Reason) end || {Pid, _} <- Spawned],
                [Pid ! hello || {Pid, _} <- Spawned],
                {ok, 1} = call(N, identity, [1])
            end)
        end)
    end).
