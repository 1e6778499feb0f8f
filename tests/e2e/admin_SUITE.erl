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
     calls_are_counted_by_function_and_result,
     only_so_many_functions_have_a_name_of_their_own,
     a_functions_name_is_escaped,
     calls_that_are_refused_say_why,
     calls_that_memory_has_no_room_for_are_refused_and_the_others_go_on,
     histograms_tell_queue_run_and_encode_apart,
     traffic_ticks_and_failures_are_counted_by_their_kind,
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
        {match, [Name, Number]} = re:run(Line, "^(.*) ([^ ]+)$", [{capture, [1, 2], binary}]),
        {Name, number(Number)}
    end || Line <- Lines]).

number(Text) ->
    case string:to_float(Text) of
        {Number, <<>>} -> Number;
        _ -> number(binary:split(Text, <<"e">>), Text)
    end.

number([Whole], _) -> float(binary_to_integer(Whole));
number([Whole, Exponent], _) -> binary_to_float(<<Whole/binary, ".0e", Exponent/binary>>).

metrics_count_what_happens(Config) ->
    Node = #{name := Name} = start(context(Config), #{}),
    Before = samples(Node),
    ?assertEqual([], [Key || <<"sidewinder_calls_total", _/binary>> = Key <- maps:keys(Before)]),
    ?assertEqual(1.0, maps:get(<<"sidewinder_epmd_registered">>, Before)),
    Stranger = sw_e2e:start_beam(context(Config), #{cookie => "wrong"}),
    ?assertEqual(pang, sw_e2e:on(Stranger, fun() -> net_adm:ping(Name) end)),
    ok = sw_e2e:stop_beam(Stranger),
    ok = on(Config, fun() -> [4.0 = erpc:call(Name, math, sqrt, [16.0]) || _ <- lists:seq(1, 10)], ok end),
    After = samples(Node),
    ?assertEqual(10.0, maps:get(<<"sidewinder_calls_total{fn=\"math.sqrt\",result=\"ok\"}">>, After)),
    ?assertEqual(1.0, maps:get(<<"sidewinder_peers{state=\"up\"}">>, After)),
    ?assertEqual([1.0], [Up || {<<"sidewinder_peer_up{peer=\"beam", _/binary>>, Up} <- maps:to_list(After)]),
    ?assertEqual(1.0, maps:get(<<"sidewinder_links_opened_total">>, After)),
    ?assert(maps:get(<<"sidewinder_handshake_failures_total{reason=\"refused\"}">>, After) >= 1.0),
    ?assert(maps:get(<<"process_resident_memory_bytes">>, After) > 1.0e7),
    sw_e2e:stop_node(Node).

calls(Samples, Function) ->
    Prefix = <<"sidewinder_calls_total{fn=\"", Function/binary, "\",result=\"">>,
    Size = byte_size(Prefix),
    maps:from_list([{binary:part(Name, Size, byte_size(Name) - Size - 2), trunc(Count)}
                    || {Name, Count} <- maps:to_list(Samples), binary:longest_common_prefix([Name, Prefix]) =:= Size]).

calls_are_counted_by_function_and_result(Config) ->
    Node = #{name := Name} = start(context(Config), #{args => ["--import", "probe"]}),
    ok = on(Config, fun() ->
        Call = fun(Request) -> gen_server:call({py, Name}, Request) end,
        [{ok, 2.0} = Call({call, math, sqrt, [4]}) || _ <- [1, 2, 3]],
        {error, {python, _, _, _}} = Call({call, math, sqrt, [-1]}),
        {error, {python, _, _, _}} = Call({call, math, no_such, []}),
        {error, {python, _, _, _}} = Call({call, no_such_module, f, []}),
        {ok, 2} = Call({eval, <<"1 + 1">>, #{}}),
        {ok, none} = Call({exec, <<"x = 1">>}),
        {error, {bad_request, what}} = Call(what),
        ok = gen_server:cast({py, Name}, {cast, math, cos, [0]}),
        {ok, none} = Call({call, asyncio, sleep, [0.01]}),
        {Pid, Monitor} = spawn_monitor(fun() -> Call({call, probe, nap_async, [60]}) end),
        timer:sleep(300),
        exit(Pid, kill),
        receive {'DOWN', Monitor, process, Pid, killed} -> ok end
    end),
    Counts = fun() -> Samples = samples(Node), [{F, calls(Samples, F)} || F <- [<<"math.sqrt">>, <<"math.cos">>,
        <<"builtins.eval">>, <<"builtins.exec">>, <<"asyncio.sleep">>, <<"probe.nap_async">>, <<"other">>,
        <<"math.no_such">>]] end,
    ok = becomes([{<<"math.sqrt">>, #{<<"ok">> => 3, <<"error">> => 1}}, {<<"math.cos">>, #{<<"ok">> => 1}},
                  {<<"builtins.eval">>, #{<<"ok">> => 1}}, {<<"builtins.exec">>, #{<<"ok">> => 1}},
                  {<<"asyncio.sleep">>, #{<<"ok">> => 1}}, {<<"probe.nap_async">>, #{<<"cancelled">> => 1}},
                  {<<"other">>, #{<<"error">> => 2, <<"refused">> => 1}}, {<<"math.no_such">>, #{}}], Counts),
    sw_e2e:stop_node(Node).

only_so_many_functions_have_a_name_of_their_own(Config) ->
    Node = #{name := Name} = start(context(Config), #{}),
    ok = on(Config, fun() ->
        {ok, none} = gen_server:call({py, Name}, {exec, <<"import math\nfor i in range(300): setattr(math, f'f{i}', int)">>}),
        [{ok, 0} = gen_server:call({py, Name}, {call, math, list_to_binary("f" ++ integer_to_list(I)), []})
         || I <- lists:seq(0, 299)],
        Long = binary:copy(<<"f">>, 200),
        {ok, none} = gen_server:call({py, Name}, {exec, <<"setattr(math, 'f' * 200, int)">>}),
        {ok, 0} = gen_server:call({py, Name}, {call, math, Long, []}),
        ok
    end),
    Samples = samples(Node),
    Named = [F || <<"sidewinder_calls_total{fn=\"", F/binary>> <- maps:keys(Samples)],
    ?assertEqual(201, length(Named)),
    ?assertEqual(#{<<"ok">> => 1}, calls(Samples, <<"math.f198">>)),    % after exec, the first
    ?assertEqual(#{}, calls(Samples, <<"math.f199">>)),
    ?assertEqual(#{<<"ok">> => 102}, calls(Samples, <<"other">>)),
    sw_e2e:stop_node(Node).

a_functions_name_is_escaped(Config) ->
    Node = #{name := Name} = start(context(Config), #{}),
    ok = on(Config, fun() ->
        {ok, none} = gen_server:call({py, Name}, {exec, <<"import math\nsetattr(math, 'a\"b\\\\c\\nd} 1', int)">>}),
        {ok, 0} = gen_server:call({py, Name}, {call, math, <<"a\"b\\c\nd} 1">>, []}),
        ok
    end),
    ?assertEqual(#{<<"ok">> => 1}, calls(samples(Node), <<"math.a\\\"b\\\\c\\nd} 1">>)),
    sw_e2e:stop_node(Node).

calls_that_are_refused_say_why(Config) ->
    Node = #{name := Name, program := Program} =
        start(context(Config), #{args => ["--workers", "1", "--queue", "2", "--max-message", "1"]}),
    Refused = fun(Why) -> trunc(value(Node, <<"sidewinder_calls_refused_total{reason=\"", Why/binary, "\"}">>)) end,
    ?assertEqual([0, 0, 0], [Refused(Why) || Why <- [<<"queue">>, <<"draining">>, <<"too_large">>]]),
    {Overloaded, Large} = on(Config, fun() ->
        Ids = [gen_server:send_request({py, Name}, {call, time, sleep, [1]}) || _ <- lists:seq(1, 10)],
        Answers = [element(2, gen_server:receive_response(Id, 10000)) || Id <- Ids],
        Big = gen_server:call({py, Name}, {call, builtins, len, [binary:copy(<<0>>, 2 bsl 20)]}),
        {length([A || A <- Answers, A =:= {error, overloaded}]), Big}
    end),
    ?assertEqual({error, too_large}, Large),
    ?assert(Overloaded >= 7),
    ?assertEqual([Overloaded, 0, 1], [Refused(Why) || Why <- [<<"queue">>, <<"draining">>, <<"too_large">>]]),
    ok = on(Config, fun() -> spawn(fun() -> catch gen_server:call({py, Name}, {call, time, sleep, [2]}) end), ok end),
    ok = sw_e2e:eventually(fun() -> value(Node, <<"sidewinder_inflight">>) == 1.0 end),
    ok = sw_e2e:send_signal(Program, "TERM"),
    ok = becomes(1.0, fun() -> value(Node, <<"sidewinder_draining">>) end),
    {error, draining} = on(Config, fun() -> gen_server:call({py, Name}, {call, math, sqrt, [4]}) end),
    ?assertEqual(1, Refused(<<"draining">>)),
    ?assertEqual(0, sw_e2e:await_exit(Program)).

%% 8 MiB for all, 2 MiB for one peer but for a message that is alone.
calls_that_memory_has_no_room_for_are_refused_and_the_others_go_on(Config) ->
    Node = #{name := Name} = start(context(Config), #{args => ["--max-inflight", "8", "--workers", "2"]}),
    MiB = 1 bsl 20,
    InFlight = fun() -> value(Node, <<"sidewinder_inflight_bytes">>) end,
    ?assertEqual([0.0, 8.0 * MiB], [InFlight(), value(Node, <<"sidewinder_max_inflight_bytes">>)]),
    Sleep = fun(Seconds, Bytes) ->
        gen_server:send_request({py, Name}, {call, builtins, eval, [<<"__import__('time').sleep(", Seconds/binary, ")">>,
                                                                     #{<<"data">> => binary:copy(<<0>>, Bytes)}]})
    end,
    Answer = fun(Id) -> {reply, Reply} = gen_server:receive_response(Id, 20000), Reply end,
    {Alone, TooMuch} = on(Config, fun() -> {Answer(Sleep(<<"0">>, 7 * MiB)), Answer(Sleep(<<"0">>, 9 * MiB))} end),
    ?assertEqual({{ok, none}, {error, overloaded}}, {Alone, TooMuch}),
    ok = becomes(0.0, InFlight),
    Held = self(),
    Waiter = spawn_link(fun() ->
        Held ! {answers, on(Config, fun() ->
            Ids = [Sleep(<<"2">>, MiB div 2) || _ <- lists:seq(1, 10)],
            Small = [gen_server:call({py, Name}, {call, math, sqrt, [4]}, 20000) || _ <- lists:seq(1, 5)],
            {lists:sort([Answer(Id) || Id <- Ids]), Small}
        end)}
    end),
    ok = sw_e2e:eventually(fun() -> InFlight() > 1.5 * MiB end),
    ?assert(InFlight() =< 2.0 * MiB),
    Other = sw_e2e:start_beam(context(Config)),
    ?assertEqual({ok, 4}, sw_e2e:on(Other, fun() ->
        gen_server:call({py, Name}, {call, builtins, len, [binary:copy(<<0>>, 4)]}, 20000)
    end)),
    ok = sw_e2e:stop_beam(Other),
    {Answers, Small} = receive {answers, Got} -> Got after 30000 -> exit(Waiter, kill), none end,
    ?assertEqual(lists:duplicate(7, {error, overloaded}) ++ lists:duplicate(3, {ok, none}), Answers),
    ?assertEqual(lists:duplicate(5, {ok, 2.0}), Small),
    ok = becomes(0.0, InFlight),
    ?assertEqual(8.0, value(Node, <<"sidewinder_calls_refused_total{reason=\"memory\"}">>)),
    {ok, none} = on(Config, fun() -> Answer(Sleep(<<"0">>, MiB)) end),
    sw_e2e:stop_node(Node).

histograms_tell_queue_run_and_encode_apart(Config) ->
    Node = #{name := Name} = start(context(Config), #{args => ["--workers", "1"]}),
    ok = on(Config, fun() ->
        Ids = [gen_server:send_request({py, Name}, {call, time, sleep, [0.3]}) || _ <- [1, 2, 3]],
        [{reply, {ok, none}} = gen_server:receive_response(Id, 10000) || Id <- Ids],
        ok
    end),
    Samples = samples(Node),
    Of = fun(Phase, Suffix, Labels) ->
        maps:get(iolist_to_binary(["sidewinder_call_seconds", Suffix, "{phase=\"", Phase, "\"", Labels, "}"]), Samples)
    end,
    [?assertEqual(3.0, Of(Phase, Suffix, Labels))
     || Phase <- ["queue", "run", "encode"], {Suffix, Labels} <- [{"_count", ""}, {"_bucket", ",le=\"+Inf\""}]],
    ?assertEqual([0.0, 3.0], [Of("run", "_bucket", Le) || Le <- [",le=\"0.25\"", ",le=\"2.5\""]]),
    ?assertEqual([1.0, 3.0], [Of("queue", "_bucket", Le) || Le <- [",le=\"0.1\"", ",le=\"5\""]]),
    ?assertEqual(3.0, Of("encode", "_bucket", ",le=\"0.25\"")),
    ?assert(Of("run", "_sum", "") >= 0.9),
    ?assert(Of("queue", "_sum", "") >= 0.8),
    ?assert(Of("encode", "_sum", "") < 0.3),
    ?assert(maps:get(<<"sidewinder_gil_wait_seconds_count">>, Samples) >= 1.0),
    sw_e2e:stop_node(Node).

traffic_ticks_and_failures_are_counted_by_their_kind(Config) ->
    Absent = "absent@127.0.0.1:1",
    Node = #{name := Name} = start(context(Config), #{args => ["--ticktime", "4", "--peer", Absent]}),
    Beam = sw_e2e:start_beam(context(Config), #{args => ["-kernel", "net_ticktime", "4"]}),
    {ok, 1000000} = sw_e2e:on(Beam, fun() ->
        gen_server:call({py, Name}, {call, builtins, len, [binary:copy(<<0>>, 1000000)]})
    end),
    #{node := BeamName} = Beam,
    Samples = samples(Node),
    Get = fun(What) -> maps:get(iolist_to_binary(["sidewinder_", What]), Samples) end,
    ?assert(Get("bytes_total{dir=\"in\"}") > 1.0e6),
    ?assert(Get("bytes_total{dir=\"in\"}") < 1.1e6),
    ?assert(Get("bytes_total{dir=\"out\"}") > 100.0),
    ?assert(Get("bytes_total{dir=\"out\"}") < 1.0e4),
    ?assertEqual([1.0, 0.0], [Get(["peer_up{peer=\"", Peer, "\"}"]) || Peer <- [atom_to_list(BeamName), "absent@127.0.0.1"]]),
    Ticks = fun(Dir) -> value(Node, <<"sidewinder_ticks_total{dir=\"", Dir/binary, "\"}">>) end,
    ok = sw_e2e:eventually(fun() -> Ticks(<<"in">>) >= 1.0 andalso Ticks(<<"out">>) >= 1.0 end),
    ok = sw_e2e:stop_beam(Beam),
    ok = becomes(0.0, fun() -> value(Node, <<"sidewinder_peers{state=\"up\"}">>) end),
    ?assert(value(Node, <<"sidewinder_bytes_total{dir=\"in\"}">>) > 1.0e6),    % of links that are gone, too
    sw_e2e:stop_node(Node).

%% The rules of the text format that promtool checks: each family has HELP and TYPE before its samples,
%% only a counter ends with _total, no sample is there twice, buckets rise to +Inf, which is the count.
metrics_are_what_prometheus_reads(Config) ->
    #{name := Name} = node_of(Config),
    [4.0 = on(Config, fun() -> erpc:call(Name, math, sqrt, [16.0]) end) || _ <- [1, 2]],
    {200, Fields, Text} = request(node_of(Config), "GET /metrics HTTP/1.0\r\n\r\n"),
    ?assert(lists:member(<<"Content-Type: text/plain; version=0.0.4; charset=utf-8">>, Fields)),
    ?assertEqual($\n, binary:last(Text)),
    Families = families(binary:split(Text, <<"\n">>, [global, trim]), []),
    Names = [Family || {Family, _, _} <- Families],
    ?assertEqual(length(Names), length(lists:usort(Names))),
    lists:foreach(fun family/1, Families),
    {ok, Page} = file:read_file(filename:join(sw_e2e:root(), "docs/operations.md")),
    {match, Told} = re:run(Page, "`((?:sidewinder|process)_[a-z_]+)[`{]", [global, {capture, [1], binary}]),
    %% Those of worker processes are there with --processes only (processes_SUITE), a certificate's inside TLS (tls_SUITE),
    %% a web server's where there is one (serve_SUITE).
    Always = lists:usort([One || [One] <- Told, string:prefix(One, <<"sidewinder_worker_process">>) =:= nomatch,
                          string:prefix(One, <<"sidewinder_web_">>) =:= nomatch,
                          One =/= <<"sidewinder_cert_expiry_seconds">>]),
    ?assertEqual(lists:sort(Names), lists:sort(Always)).

families([Help, Type | Rest], Seen) ->
    {match, [Name]} = re:run(Help, "^# HELP ([a-z_]+) [A-Z1].*\\.$", [{capture, [1], binary}]),
    {match, [Name, Kind]} = re:run(Type, "^# TYPE ([a-z_]+) (counter|gauge|histogram)$", [{capture, [1, 2], binary}]),
    {Samples, More} = lists:splitwith(fun(<<First, _/binary>>) -> First =/= $# end, Rest),
    families(More, [{Name, Kind, [sample(Sample) || Sample <- Samples]} | Seen]);
families([], Seen) ->
    Seen.

sample(Line) ->
    Pattern = "^([a-z_]+)(?:\\{((?:[a-z]+=\"(?:[^\"\\\\]|\\\\[n\"\\\\])*\",?)+)\\})? ([0-9.e+-]+)$",
    {match, [Name, Labels, Number]} = re:run(Line, Pattern, [{capture, [1, 2, 3], binary}]),
    {Name, Labels, number(Number)}.

family({Name, Kind, Samples}) ->
    ?assertEqual(Kind =:= <<"counter">>, binary:longest_common_suffix([Name, <<"_total">>]) =:= 6),
    Keys = [{N, L} || {N, L, _} <- Samples],
    ?assertEqual(length(Keys), length(lists:usort(Keys))),
    case Kind of
        <<"histogram">> ->
            Suffixes = [<<Name/binary, Suffix/binary>> || Suffix <- [<<"_bucket">>, <<"_sum">>, <<"_count">>]],
            ?assertEqual([], [N || {N, _, _} <- Samples, not lists:member(N, Suffixes)]),
            rises(Samples, 0.0);
        _ ->
            ?assertEqual([], [N || {N, _, _} <- Samples, N =/= Name])
    end.

rises([{_, Labels, Count} | Rest], Before) ->
    ?assert(Count >= Before),
    case re:run(Labels, "le=\"([0-9.e-]+|\\+Inf)\"$", [{capture, [1], binary}]) of
        {match, [<<"+Inf">>]} ->
            [{_, Others, _Sum}, {_, Others, Count} | More] = Rest,
            rises(More, 0.0);
        {match, [_]} ->
            rises(Rest, Count)
    end;
rises([], _) ->
    ok.

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
