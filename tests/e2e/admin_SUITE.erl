%% The admin port and the service manager's socket: what an operator's machinery is told about a node.
-module(admin_SUITE).

-include_lib("stdlib/include/assert.hrl").

-export([all/0, suite/0, init_per_suite/1, end_per_suite/1]).
-compile([export_all, nowarn_export_all]).

suite() -> [{timetrap, {seconds, 60}}].

all() ->
    [a_healthy_node_is_alive_started_and_ready,
     who_keeps_the_gil_makes_the_node_unready_but_not_dead,
     a_blocked_event_loop_makes_the_node_unready_but_not_dead,
     without_epmd_a_node_is_alive_and_says_why_it_is_not_ready,
     a_draining_node_says_so,
     metrics_count_what_happens,
     metrics_are_what_prometheus_reads,
     what_is_no_get_is_refused_with_its_reason,
     a_head_without_end_is_refused_and_a_slow_one_cut_off,
     more_connections_than_it_takes_hurt_nobody,
     an_admin_port_that_is_taken_or_wrong_is_one_line_and_exit_code_1,
     without_an_admin_port_none_is_open,
     the_service_manager_hears_of_ready_watchdog_and_stopping,
     the_service_manager_is_told_ready_only_once_the_node_is].

init_per_suite(Config0) ->
    Config = sw_e2e:setup(Config0),
    Context = sw_e2e:context(Config),
    [{beam, sw_e2e:start_beam(Context)}, {node, start(Context, #{})} | Config].

end_per_suite(Config) ->
    ok = sw_e2e:stop_beam(proplists:get_value(beam, Config)),
    ok = sw_e2e:stop_node(proplists:get_value(node, Config)),
    ok = sw_e2e:teardown(Config).

%% A node with an admin port.
start(Context, Options) ->
    Ready = maps:get(ready, Options, "registered with epmd"),
    Arguments = ["--admin", "127.0.0.1:0" | maps:get(args, Options, [])],
    Node = #{program := Program} = sw_e2e:start_node_now(Context, Options#{args => Arguments}),
    Line = sw_e2e:wait_line(Program, "admin: listening on port [0-9]+"),
    _ = sw_e2e:wait_line(Program, Ready),
    {match, [Port]} = re:run(Line, "port ([0-9]+)", [{capture, [1], list}]),
    Node#{admin => list_to_integer(Port)}.

node_of(Config) -> proplists:get_value(node, Config).
context(Config) -> sw_e2e:context(Config).

on(Config, Body) -> sw_e2e:on(proplists:get_value(beam, Config), Body).

get(Node, Path) ->
    {Status, _, Body} = request(Node, ["GET ", Path, " HTTP/1.1\r\nHost: x\r\n\r\n"]),
    {Status, Body}.

request(#{admin := Port}, Bytes) ->
    {ok, Socket} = gen_tcp:connect({127, 0, 0, 1}, Port, [binary, {active, false}]),
    ok = gen_tcp:send(Socket, Bytes),
    Answer = all_of(Socket, <<>>),
    ok = gen_tcp:close(Socket),
    [Head, Body] = binary:split(Answer, <<"\r\n\r\n">>),
    [<<"HTTP/1.1 ", Status:3/binary, _/binary>> | Fields] = binary:split(Head, <<"\r\n">>, [global]),
    {binary_to_integer(Status), Fields, Body}.

all_of(Socket, Before) ->
    case gen_tcp:recv(Socket, 0, 15000) of
        {ok, More} -> all_of(Socket, <<Before/binary, More/binary>>);
        {error, closed} -> Before
    end.

becomes(Expected, Ask) ->
    sw_e2e:eventually(fun() -> case Ask() of Expected -> true; Other -> Other end end).

a_healthy_node_is_alive_started_and_ready(Config) ->
    [?assertEqual({200, <<"ok\n">>}, get(node_of(Config), Path))
     || Path <- ["/livez", "/startupz", "/readyz", "/livez?verbose", "/readyz"]].

%% PyDLL keeps the GIL during the call.
who_keeps_the_gil_makes_the_node_unready_but_not_dead(Config) ->
    unready_during(Config, <<"__import__('ctypes').PyDLL(None).usleep(3000000)">>).

a_blocked_event_loop_makes_the_node_unready_but_not_dead(Config) ->
    unready_during(Config, <<"__import__('erlang._native', fromlist=['']).event_loop().call_soon_threadsafe("
                             "__import__('time').sleep, 3) and None">>).

unready_during(Config, Code) ->
    Node = #{name := Name} = node_of(Config),
    ok = on(Config, fun() -> spawn(fun() -> catch gen_server:call({py, Name}, {eval, Code, #{}}, 20000) end), ok end),
    ok = becomes({503, <<"python does not answer\n">>}, fun() -> get(Node, "/readyz") end),
    ?assertEqual({200, <<"ok\n">>}, get(Node, "/livez")),
    ?assertEqual({200, <<"ok\n">>}, get(Node, "/startupz")),
    ?assertMatch({200, _}, get(Node, "/metrics")),
    ok = becomes({200, <<"ok\n">>}, fun() -> get(Node, "/readyz") end).

without_epmd_a_node_is_alive_and_says_why_it_is_not_ready(Config) ->
    Port = sw_e2e:free_port(),
    Node = start(context(Config), #{ready => "listening on", env => [{"ERL_EPMD_PORT", Port}]}),
    ?assertEqual({200, <<"ok\n">>}, get(Node, "/livez")),
    ?assertEqual({200, <<"ok\n">>}, get(Node, "/startupz")),
    ?assertEqual({503, <<"not registered with epmd\n">>}, get(Node, "/readyz")),
    Epmd = sw_e2e:start_epmd(Port),
    ok = becomes({200, <<"ok\n">>}, fun() -> get(Node, "/readyz") end),
    ok = sw_e2e:stop_epmd(Epmd),
    ok = becomes({503, <<"not registered with epmd\n">>}, fun() -> get(Node, "/readyz") end),
    sw_e2e:stop_node(Node).

a_draining_node_says_so(Config) ->
    Node = #{name := Name, program := Program} = start(context(Config), #{}),
    ok = on(Config, fun() ->
        spawn(fun() -> catch gen_server:call({py, Name}, {call, time, sleep, [2]}, 20000) end),
        ok
    end),
    ok = sw_e2e:eventually(fun() -> value(Node, <<"sidewinder_inflight">>) == 1.0 end),
    ok = sw_e2e:send_signal(Program, "TERM"),
    ok = becomes(draining, fun() ->
        case get(Node, "/readyz") of
            {503, <<"draining\n", _/binary>>} -> draining;
            Other -> Other
        end
    end),
    ?assertEqual({200, <<"ok\n">>}, get(Node, "/livez")),
    ?assertEqual(1.0, value(Node, <<"sidewinder_draining">>)),
    ?assertEqual(0, sw_e2e:await_exit(Program)).

value(Node, Name) -> maps:get(Name, samples(Node)).

samples(Node) ->
    {200, Text} = get(Node, "/metrics"),
    Lines = [Line || <<C, _/binary>> = Line <- binary:split(Text, <<"\n">>, [global]), C =/= $#],
    maps:from_list([begin
        [Name, Number] = binary:split(Line, <<" ">>),
        {Name, number(Number)}
    end || Line <- Lines]).

number(Text) ->
    try binary_to_float(Text) catch error:badarg -> float(binary_to_integer(Text)) end.

metrics_count_what_happens(Config) ->
    Node = #{name := Name} = start(context(Config), #{}),
    Before = samples(Node),
    ?assertEqual(0.0, maps:get(<<"sidewinder_calls_completed_total">>, Before)),
    ?assertEqual(1.0, maps:get(<<"sidewinder_epmd_registered">>, Before)),
    Stranger = sw_e2e:start_beam(context(Config), #{cookie => "wrong"}),
    ?assertEqual(pang, sw_e2e:on(Stranger, fun() -> net_adm:ping(Name) end)),
    ok = sw_e2e:stop_beam(Stranger),
    ok = on(Config, fun() -> [4.0 = erpc:call(Name, math, sqrt, [16.0]) || _ <- lists:seq(1, 10)], ok end),
    After = samples(Node),
    ?assertEqual(10.0, maps:get(<<"sidewinder_calls_completed_total">>, After)),
    ?assertEqual(1.0, maps:get(<<"sidewinder_peers">>, After)),
    ?assertEqual(1.0, maps:get(<<"sidewinder_links_opened_total">>, After)),
    ?assert(maps:get(<<"sidewinder_handshake_failures_total">>, After) >= 1.0),
    ?assert(maps:get(<<"process_resident_memory_bytes">>, After) > 1.0e7),
    sw_e2e:stop_node(Node).

%% The rules of the text format that promtool checks: each name has HELP and TYPE before its samples,
%% and only a counter ends with _total.
metrics_are_what_prometheus_reads(Config) ->
    {200, Fields, Text} = request(node_of(Config), "GET /metrics HTTP/1.0\r\n\r\n"),
    ?assert(lists:member(<<"Content-Type: text/plain; version=0.0.4; charset=utf-8">>, Fields)),
    ?assertEqual($\n, binary:last(Text)),
    check(binary:split(Text, <<"\n">>, [global, trim]), []).

check([Help, Type, Sample | Rest], Seen) ->
    {match, [Name]} = re:run(Help, "^# HELP ([a-z_]+) [A-Z1].*\\.$", [{capture, [1], binary}]),
    {match, [Name, Kind]} = re:run(Type, "^# TYPE ([a-z_]+) (counter|gauge)$", [{capture, [1, 2], binary}]),
    {match, [Name]} = re:run(Sample, "^([a-z_]+)(?:{version=\"[0-9.]+\"})? [0-9.e+-]+$", [{capture, [1], binary}]),
    ?assertEqual(Kind =:= <<"counter">>, binary:longest_common_suffix([Name, <<"_total">>]) =:= 6),
    ?assertNot(lists:member(Name, Seen)),
    check(Rest, [Name | Seen]);
check([], Seen) ->
    {ok, Page} = file:read_file(filename:join(sw_e2e:root(), "docs/operations.md")),
    {match, Told} = re:run(Page, "`((?:sidewinder|process)_[a-z_]+)[`{]", [global, {capture, [1], binary}]),
    ?assertEqual(lists:sort(Seen), lists:sort(lists:append(Told))).

what_is_no_get_is_refused_with_its_reason(Config) ->
    Node = node_of(Config),
    ?assertMatch({404, _}, get(Node, "/")),
    ?assertMatch({404, _}, get(Node, "/metrics/../livez")),
    {405, Fields, _} = request(Node, "POST /livez HTTP/1.1\r\nContent-Length: 0\r\n\r\n"),
    ?assert(lists:member(<<"Allow: GET, HEAD">>, Fields)),
    ?assertMatch({200, _, <<>>}, request(Node, "HEAD /readyz HTTP/1.1\r\n\r\n")),
    [?assertMatch({400, _, _}, request(Node, [Line, "\r\n\r\n"]))
     || Line <- ["", "GET", "GET /livez", "GET  HTTP/1.1x", [0, 255, 254], "GET /livez HTTP/2.0", " HTTP/1.1"]].

a_head_without_end_is_refused_and_a_slow_one_cut_off(Config) ->
    Node = #{admin := Port} = node_of(Config),
    ?assertMatch({431, _, _}, request(Node, ["GET /livez HTTP/1.1\r\nX: ", lists:duplicate(9000, $a)])),
    {ok, Slow} = gen_tcp:connect({127, 0, 0, 1}, Port, [binary, {active, false}]),
    ok = gen_tcp:send(Slow, "GET /livez HT"),
    Begin = erlang:monotonic_time(millisecond),
    ?assertEqual({error, closed}, gen_tcp:recv(Slow, 0, 20000)),
    Taken = erlang:monotonic_time(millisecond) - Begin,
    ?assert(Taken > 4000 andalso Taken < 10000, Taken),
    ?assertEqual({200, <<"ok\n">>}, get(Node, "/livez")).

more_connections_than_it_takes_hurt_nobody(Config) ->
    Node = #{admin := Port, name := Name} = start(context(Config), #{}),
    Sockets = [begin {ok, S} = gen_tcp:connect({127, 0, 0, 1}, Port, [binary, {active, false}]), S end
               || _ <- lists:seq(1, 200)],
    ?assertEqual(pong, on(Config, fun() -> net_adm:ping(Name) end)),
    ok = sw_e2e:eventually(fun() ->
        Open = [S || S <- Sockets, gen_tcp:recv(S, 0, 0) =:= {error, timeout}],
        length(Open) =< 64 orelse length(Open)
    end),
    [ok = gen_tcp:close(S) || S <- Sockets],
    ok = becomes({200, <<"ok\n">>}, fun() -> try get(Node, "/livez") catch _:Why -> Why end end),
    ok = sw_e2e:eventually(fun() -> value(Node, <<"process_open_fds">>) < 40.0 end),
    sw_e2e:stop_node(Node).

an_admin_port_that_is_taken_or_wrong_is_one_line_and_exit_code_1(Config) ->
    #{cookie_file := File} = context(Config),
    #{admin := Port} = node_of(Config),
    Run = fun(Admin) ->
        Arguments = ["--name", "py@127.0.0.1", "--cookie-file", File, "--log-level", "error", "--admin", Admin],
        {1, <<>>, Errors} = sw_e2e:run(sw_e2e:sidewinder(), Arguments, sw_e2e:environment(context(Config))),
        [Line] = binary:split(Errors, <<"\n">>, [global, trim]),
        Line
    end,
    [?assertMatch({match, _}, re:run(Run(Admin), "^sidewinder: admin: .*" ++ What))
     || {Admin, What} <- [{"127.0.0.1:" ++ integer_to_list(Port), "already in use"}, {"nonsense", "neither"},
                          {"127.0.0.1:99999", "neither"}, {"1.2.3:1", "cannot listen"}]].

without_an_admin_port_none_is_open(Config) ->
    Node = #{program := Program} = sw_e2e:start_node(context(Config)),
    ?assertEqual(nomatch, re:run(sw_e2e:output(Program), "admin")),
    sw_e2e:stop_node(Node).

%% A socket's path has to be short.
manager(Name) ->
    Path = filename:join("/tmp", sw_e2e:unique(Name)),
    {ok, Socket} = gen_udp:open(0, [local, {ifaddr, {local, Path}}, binary, {active, true}]),
    {Socket, Path}.

close(Socket, Path) ->
    ok = gen_udp:close(Socket),
    ok = file:delete(Path).

heard(Socket) ->
    receive {udp, Socket, _, _, Text} -> Text after 10000 -> nothing end.

the_service_manager_hears_of_ready_watchdog_and_stopping(Config) ->
    {Socket, Path} = manager("notify"),
    Node = #{program := Program, name := Name} =
        start(context(Config), #{env => [{"NOTIFY_SOCKET", Path}, {"WATCHDOG_USEC", "200000"}]}),
    ?assertEqual(<<"READY=1\nSTATUS=serving">>, heard(Socket)),
    Begin = erlang:monotonic_time(millisecond),
    [?assertEqual(<<"WATCHDOG=1">>, heard(Socket)) || _ <- lists:seq(1, 6)],
    Taken = erlang:monotonic_time(millisecond) - Begin,
    ?assert(Taken >= 400 andalso Taken < 2000, Taken),
    ?assertEqual({ok, none}, on(Config, fun() ->
        gen_server:call({py, Name}, {eval, <<"__import__('os').environ.get('NOTIFY_SOCKET')">>, #{}})
    end)),
    ok = sw_e2e:send_signal(Program, "TERM"),
    ?assertEqual(0, sw_e2e:await_exit(Program)),
    ?assertEqual(<<"STOPPING=1\nSTATUS=draining">>, last(Socket, nothing)),
    _ = Node,
    close(Socket, Path).

%% The last that is no watchdog's.
last(Socket, Before) ->
    receive
        {udp, Socket, _, _, <<"WATCHDOG=1">>} -> last(Socket, Before);
        {udp, Socket, _, _, Text} -> last(Socket, Text)
    after 200 -> Before
    end.

the_service_manager_is_told_ready_only_once_the_node_is(Config) ->
    {Socket, Path} = manager("late"),
    Port = sw_e2e:free_port(),
    Node = start(context(Config), #{ready => "listening on",
                                    env => [{"NOTIFY_SOCKET", Path}, {"ERL_EPMD_PORT", Port}]}),
    receive {udp, Socket, _, _, Early} -> ct:fail({early, Early}) after 500 -> ok end,
    Epmd = sw_e2e:start_epmd(Port),
    ?assertEqual(<<"READY=1\nSTATUS=serving">>, heard(Socket)),
    ok = close(Socket, Path),
    ok = sw_e2e:stop_node(Node),
    sw_e2e:stop_epmd(Epmd).
