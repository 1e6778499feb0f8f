%% Being seen: events of channels, what a node says of itself, the table of its busiest functions, trace
%% contexts of evaluated code, and Python's logging in the BEAM's logger. Real nodes throughout.
-module(seen_SUITE).

-include_lib("stdlib/include/assert.hrl").

-export([all/0, suite/0, init_per_suite/1, end_per_suite/1]).
-export([log/2]).
-compile([export_all, nowarn_export_all]).

-define(PARENT, <<"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01">>).

suite() -> [{timetrap, {seconds, 60}}].

all() ->
    [channels_tell_when_they_open_close_and_are_full,
     channels_of_a_lost_node_tell_why_they_closed,
     a_node_says_what_it_is_and_how_it_does,
     a_node_whose_python_hangs_is_looked_at_all_the_same,
     a_loop_that_is_held_up_shows,
     top_has_the_functions_that_took_the_most_first,
     top_of_an_interval_has_only_what_happened_in_it,
     an_allow_list_hides_nothing_of_the_node_itself,
     worker_processes_are_looked_at_too,
     a_bare_beam_can_ask_and_nonsense_is_refused,
     the_table_is_printed_once_or_as_often_as_told,
     the_table_goes_on_until_q_and_survives_the_node,
     evaluated_code_has_the_trace_context_of_its_call,
     records_arrive_in_logger_with_where_they_come_from,
     more_records_than_the_beam_handles_are_dropped_counted_and_told].

init_per_suite(Config0) ->
    Config = sw_e2e:setup(Config0),
    Context = sw_e2e:context(Config),
    Node = #{name := Name} = sw_e2e:start_node(Context, #{args => ["--import", "seen", "--workers", "4"]}),
    Beam = sw_e2e:start_beam(Context, #{args => ["-pa", filename:dirname(code:which(py)), "-sidewinder", "default_node",
                                                 "'" ++ atom_to_list(Name) ++ "'"]}),
    ok = sw_e2e:on(Beam, fun() -> {ok, _} = application:ensure_all_started(sidewinder), ok end),
    [{node, Node}, {beam, Beam} | Config].

end_per_suite(Config) ->
    ok = sw_e2e:stop_beam(proplists:get_value(beam, Config)),
    ok = sw_e2e:stop_node(proplists:get_value(node, Config)),
    ok = sw_e2e:teardown(Config).

on(Config, Body) ->
    #{name := Name} = proplists:get_value(node, Config),
    sw_e2e:on(proplists:get_value(beam, Config), fun() -> Body(Name) end).

with_node(Config, Args, Body) ->
    Node = sw_e2e:start_node(sw_e2e:context(Config), #{args => ["--import", "seen" | Args]}),
    try
        sw_e2e:on(proplists:get_value(beam, Config), fun() -> Body(maps:get(name, Node)) end)
    after
        sw_e2e:stop_node(Node)
    end.

%% --- Channels -----------------------------------------------------------------------------------

listen() ->
    Self = self(),
    _ = py_telemetry:detach(test),
    py_telemetry:attach_many(test, [E || [_, channel, _] = E <- py_telemetry:events()],
                             fun([_, _, What], Measured, Meta, _) -> Self ! {event, What, Measured, Meta}, ok end, none).

heard(What) ->
    receive {event, What, Measured, Meta} -> {Measured, Meta} after 5000 -> error({not_told, What}) end.

channels_tell_when_they_open_close_and_are_full(Config) ->
    on(Config, fun(Node) ->
        ok = listen(),
        {ok, Ch} = py_channel:new(Node, #{max_size => 1000}),
        ?assertMatch({#{system_time := _}, #{channel := Ch, node := Node, kind := terms, max_size := 1000}}, heard(opened)),
        Full = binary:copy(<<"x">>, 900),
        ok = py_channel:send(Ch, Full),
        busy = py_channel:send(Ch, Full),
        ?assertMatch({#{size := S}, #{channel := Ch, max_size := 1000}} when S > 900, heard(busy)),
        {ok, Full} = py:eval(Node, "__import__('erlang').channel.Channel(ch).receive(5)", #{ch => Ch}),
        ok = py_channel:flush(Ch, 5000),
        ok = py_channel:close(Ch),
        ?assertMatch({#{consumed := 1}, #{channel := Ch, reason := normal}}, heard(closed)),
        ok = py_telemetry:detach(test),
        {ok, Quiet} = py_channel:new(Node),
        ok = py_channel:close(Quiet),
        receive {event, _, _, _} = Event -> error(Event) after 100 -> ok end
    end).

channels_of_a_lost_node_tell_why_they_closed(Config) ->
    Node = #{name := Name, program := Program} = sw_e2e:start_node(sw_e2e:context(Config)),
    Ch = on(Config, fun(_) ->
        {ok, Ch} = py_channel:new(Name, #{owner => none}),
        Ch
    end),
    Beam = proplists:get_value(beam, Config),
    Test = self(),
    Listener = spawn_link(fun() ->
        Told = sw_e2e:on(Beam, fun() ->
            ok = listen(),
            Told = heard(closed),
            ok = py_telemetry:detach(test),
            Told
        end),
        Test ! {self(), Told}
    end),
    ok = sw_e2e:eventually(fun() -> sw_e2e:on(Beam, fun() -> py_telemetry:on(channel) end) end, 5000),
    ok = sw_e2e:kill(Program),
    receive {Listener, Told} -> ?assertMatch({_, #{channel := Ch, reason := {down, _}}}, Told) end,
    _ = sw_e2e:stop_node(Node),
    ok.

%% --- What a node says of itself -----------------------------------------------------------------

a_node_says_what_it_is_and_how_it_does(Config) ->
    {Info, Peer} = on(Config, fun(Node) ->
        {ok, _} = py_channel:new(Node),
        {ok, 4.0} = py:call(math, sqrt, [16.0]),
        {ok, Info} = py:node_info(Node),
        {Info, node()}
    end),
    #{name := Name, program := Program} = proplists:get_value(node, Config),
    OsPid = sw_e2e:os_pid(Program),
    ?assertMatch(#{node := Name, version := 1, node_version := <<_, _/binary>>, python := <<"3.", _/binary>>,
                   os_pid := OsPid, platform := <<"Linux ", _/binary>>, workers := 4, queue := 0, tasks := 0,
                   blocked := 0, replaced := 0, worker_processes := 0, channels := 1, links := [Peer]}, Info),
    #{uptime := Uptime, memory := Memory, cpu := Cpu, calls := Calls, threads := Threads, run_time := {Ran, Us}} = Info,
    ?assert(Uptime > 0 andalso Uptime < 600000, Uptime),
    ?assert(Memory > 10_000_000, Memory),
    ?assert(Cpu > 0 andalso Calls > 0 andalso Threads >= 1 andalso Ran > 0 andalso Us >= 0, Info).

a_node_whose_python_hangs_is_looked_at_all_the_same(Config) ->
    Top = on(Config, fun(Node) ->
        Held = py:spawn_call(Node, probe, hold_gil, [self(), 1.0]),
        <<"holding">> = sw_e2e:tell_test(5000),
        timer:sleep(50),
        {Us, {ok, #{node := Node}}} = timer:tc(fun() -> py:node_info(Node) end),
        {ok, Top} = py:top(Node),
        {error, timeout} = py:await(Held, 0),
        {ok, _} = py:call(Node, math, sqrt, [4.0]),
        {Us, Top}
    end),
    {Us, #{busy := Busy, loop_lag := Lag}} = Top,
    ?assert(Us < 500000, Us),
    ?assert(Busy >= 1, Busy),
    ?assert(Lag > 5000, Lag).    % the probe of the loop waits for the GIL

a_loop_that_is_held_up_shows(Config) ->
    {During, After} = on(Config, fun(Node) ->
        Ref = py:spawn_call(Node, seen, block_loop, [self(), 0.5]),
        <<"blocking">> = sw_e2e:tell_test(5000),
        {ok, _} = py:node_info(Node),
        timer:sleep(200),
        {ok, #{loop_lag := During}} = py:node_info(Node),
        {ok, none} = py:await(Ref),
        {ok, _} = py:top(Node),
        {ok, #{loop_lag := After}} = py:top(Node),
        {During, After}
    end),
    ?assert(During > 150000, During),
    ?assert(After < During, {During, After}).

top_has_the_functions_that_took_the_most_first(Config) ->
    with_node(Config, ["--workers", "2"], fun(Node) ->
        [{ok, 2.0} = py:call(Node, math, sqrt, [4.0]) || _ <- lists:seq(1, 50)],
        {ok, _} = py:call(Node, time, sleep, [0.15]),
        {ok, _} = py:call(Node, time, sleep, [0.05]),
        {error, {python, <<"ValueError">>, _, _}} = py:call(Node, seen, fail, []),
        {ok, #{functions := [First | _] = All, node := Node, queue := 0} = Top} = py:top(Node),
        ?assertMatch(#{name := <<"time.sleep">>, calls := 2, errors := 0}, First),
        #{time := Time, max := Max, mean := Mean} = First,
        ?assert(Time >= 200000 andalso Max >= 150000 andalso Max < Time andalso Mean =:= Time / 2, First),
        ?assertEqual(lists:sort([<<"math.sqrt">>, <<"seen.fail">>, <<"time.sleep">>]),
                     lists:sort([Name || #{name := Name} <- All])),
        {ok, #{functions := [#{name := <<"math.sqrt">>, calls := 50}]}} = py:top(Node, #{sort => calls, count => 1}),
        {ok, #{functions := [#{name := <<"seen.fail">>, errors := 1} | _]}} = py:top(Node, #{sort => errors}),
        {ok, #{functions := [#{name := <<"math.sqrt">>} | _]}} = py:top(Node, #{sort => name}),
        ?assertMatch(#{run_time := #{count := 53, mean := Ran}} when Ran > 3000.0, Top),
        ?assertMatch(#{queue_time := #{count := 53}, gil_time := #{count := Waits}, python := <<"3.", _/binary>>}
                         when Waits > 0, Top),
        ?assertError(badarg, py:top(Node, #{sort => size})),
        ?assertEqual({error, {down, noconnection}}, py:top('nobody@127.0.0.1'))
    end).

top_of_an_interval_has_only_what_happened_in_it(Config) ->
    on(Config, fun(Node) ->
        [{ok, 2.0} = py:call(Node, math, sqrt, [4.0]) || _ <- lists:seq(1, 20)],
        Self = self(),
        _ = spawn(fun() ->
            timer:sleep(100),
            Self ! {done, [py:call(Node, math, sqrt, [4.0]), py:call(Node, math, exp, [0.0])]}
        end),
        {ok, #{functions := Functions, calls := Calls}} = py:top(Node, #{interval => 1000, sort => name}),
        receive {done, [{ok, 2.0}, {ok, 1.0}]} -> ok end,
        ?assertMatch([#{name := <<"math.exp">>, calls := 1}, #{name := <<"math.sqrt">>, calls := 1}], Functions),
        ?assertEqual(2, Calls)
    end).

an_allow_list_hides_nothing_of_the_node_itself(Config) ->
    with_node(Config, ["--allow", "math.*"], fun(Node) ->
        {ok, 2.0} = py:call(Node, math, sqrt, [4.0]),
        {error, {not_allowed, _}} = py:call(Node, time, sleep, [0]),
        {ok, #{workers := _}} = py:node_info(Node),
        {ok, #{functions := Functions}} = py:top(Node, #{sort => calls}),
        ?assertMatch([#{name := <<"math.sqrt">>, calls := 1}], [F || F = #{name := <<"math.sqrt">>} <- Functions])
    end).

worker_processes_are_looked_at_too(Config) ->
    with_node(Config, ["--processes", "2", "--workers", "1"], fun(Node) ->
        {ok, 2.0} = py:call(Node, math, sqrt, [4.0]),
        Ready = fun() -> {ok, #{worker_processes := N}} = py:node_info(Node), N =:= 2 end,
        ok = sw_e2e:eventually(Ready),
        Ref = py:spawn_call(Node, seen, block, [self(), 0.5]),
        <<"blocking">> = sw_e2e:tell_test(5000),
        ?assertMatch({ok, #{worker_processes := 2, workers := 2, busy := 1}}, py:node_info(Node)),
        {ok, none} = py:await(Ref),
        {ok, #{functions := [First | _]}} = py:top(Node),
        ?assertMatch(#{name := <<"seen.block">>, calls := 1, max := Max} when Max >= 500000, First)
    end).

a_bare_beam_can_ask_and_nonsense_is_refused(Config) ->
    #{name := Name} = proplists:get_value(node, Config),
    Bare = sw_e2e:start_beam(sw_e2e:context(Config)),
    Answers = sw_e2e:on(Bare, fun() ->
        [gen_server:call({py, Name}, {report, What}) || What <- [summary, functions, everything, 7, {a, b}]]
    end),
    ok = sw_e2e:stop_beam(Bare),
    [{ok, Summary}, {ok, Functions} | Refused] = Answers,
    ?assertNot(is_map_key(functions, Summary)),
    ?assertEqual(maps:keys(Functions) -- maps:keys(Summary), [functions]),
    ?assertEqual([{error, {bad_request, {report, What}}} || What <- [everything, 7, {a, b}]], Refused).

%% --- The table ----------------------------------------------------------------------------------

%% A group leader that keeps what is printed; `Lines` are what is typed, each when it is told to.
leader(Printed) ->
    receive
        {io_request, From, As, {put_chars, _, Text}} ->
            From ! {io_reply, As, ok},
            leader([Printed, Text]);
        {io_request, From, As, {put_chars, _, M, F, A}} ->
            From ! {io_reply, As, ok},
            leader([Printed, apply(M, F, A)]);
        {io_request, From, As, {get_line, _, _}} ->
            receive {type, Line} -> From ! {io_reply, As, Line} after 0 -> self() ! {reading, From, As} end,
            leader(Printed);
        {reading, From, As} ->
            receive {type, Line} -> From ! {io_reply, As, Line} after 10 -> self() ! {reading, From, As} end,
            leader(Printed);
        {io_request, From, As, _} ->
            From ! {io_reply, As, {error, enotsup}},
            leader(Printed);
        {printed, From} ->
            From ! {self(), unicode:characters_to_binary(Printed)},
            leader(Printed)
    end.

printed(Leader) ->
    Leader ! {printed, self()},
    receive {Leader, Text} -> Text end.

%% Runs in a process of its own with that leader; its result comes as {Pid, Result}.
under(Leader, Body) ->
    Self = self(),
    spawn(fun() ->
        true = group_leader(Leader, self()),
        Self ! {self(), Body()}
    end).

tables(Text) -> length(binary:matches(Text, <<"function  ">>)).

the_table_is_printed_once_or_as_often_as_told(Config) ->
    {Once, Thrice, Name} = on(Config, fun(Node) ->
        {ok, _} = py:call(Node, math, sqrt, [4.0]),
        {ok, _} = py:eval(Node, "exec('x = 1')"),
        Leader = spawn(fun() -> leader([]) end),
        Viewer = under(Leader, fun() -> py_top:view(Node, #{sort => name, count => 50}) end),
        receive {Viewer, ok} -> ok end,
        Once = printed(Leader),
        Again = under(Leader, fun() -> py_top:start(Node, #{interval => 20, refreshes => 3}) end),
        receive {Again, ok} -> ok end,
        All = printed(Leader),
        exit(Leader, kill),
        {Once, binary:part(All, byte_size(Once), byte_size(All) - byte_size(Once)), Node}
    end),
    ?assertEqual({1, 3}, {tables(Once), tables(Thrice)}),
    [First, Second, Third, <<>>, Head | Rows] = binary:split(Once, <<"\n">>, [global]),
    ?assertEqual(0, element(1, binary:match(First, atom_to_binary(Name)))),
    ?assertMatch({match, _}, re:run(Second, "^workers [0-9]+: [0-9]+ busy, 0 wait for Erlang, 0 replaced   queue 0")),
    ?assertMatch({match, _}, re:run(Third, "loop late by [0-9.]+ (us|ms)$")),
    ?assertMatch({match, _}, re:run(Head, "^function +calls +errors +total +mean +longest$")),
    ?assertMatch([_], [Row || Row <- Rows, re:run(Row, "^math.sqrt +[0-9]+ +0 +[0-9.]+ [um]?s +[0-9.]+ us +[0-9.]+ [um]?s$") =/= nomatch],
                 Rows).

the_table_goes_on_until_q_and_survives_the_node(Config) ->
    #{name := Name, program := Program} = sw_e2e:start_node(sw_e2e:context(Config)),
    Test = sw_e2e:context(Config),
    Beam = proplists:get_value(beam, Config),
    {Leader, Viewer} = sw_e2e:on(Beam, fun() ->
        Leader = spawn(fun() -> leader([]) end),
        {Leader, spawn(fun() ->
            true = group_leader(Leader, self()),
            exit({ended, py_top:start(Name, #{interval => 50})})
        end)}
    end),
    Text = fun() -> sw_e2e:on(Beam, fun() -> printed(Leader) end) end,
    ok = sw_e2e:eventually(fun() -> tables(Text()) >= 3 end),
    ok = sw_e2e:kill(Program),
    ok = sw_e2e:eventually(fun() -> binary:match(Text(), <<"does not answer: {down,">>) =/= nomatch end),
    Before = tables(Text()),
    Again = sw_e2e:start_node(Test, #{name => atom_to_list(Name)}),
    ok = sw_e2e:eventually(fun() -> tables(Text()) > Before end, 20000),
    Ended = sw_e2e:on(Beam, fun() ->
        Monitor = monitor(process, Viewer),
        Leader ! {type, "x\n"},
        Early = receive {'DOWN', Monitor, process, Viewer, _} -> early after 300 -> on end,
        Leader ! {type, "q\n"},
        Late = receive {'DOWN', Monitor, process, Viewer, Why} -> Why after 5000 -> still end,
        exit(Leader, kill),
        {Early, Late}
    end),
    ?assertEqual({on, {ended, ok}}, Ended),
    ok = sw_e2e:stop_node(Again).

%% --- Trace contexts and logging -------------------------------------------------------------------

evaluated_code_has_the_trace_context_of_its_call(Config) ->
    Results = on(Config, fun(Node) ->
        ok = py:set_trace_context(?PARENT),
        {ok, none} = py:exec(Node, "import seen; told = seen.here()"),
        With = [py:eval(Node, "told"), py:eval(Node, "seen.here()"), py:eval(Node, "[seen.here(), x]", #{x => 1})],
        ok = py:set_trace_context(undefined),
        Bare = [gen_server:call({py, Node}, {eval, <<"__import__('seen').here()">>, #{}, #{trace => ?PARENT}}),
                gen_server:call({py, Node}, {exec, <<"import seen; x = seen.here()">>, #{trace => ?PARENT}}),
                gen_server:call({py, Node}, {eval, <<"x">>}),
                gen_server:call({py, Node}, {eval, <<"1">>, #{}, 7})],
        {With, Bare, py:eval(Node, "seen.here()")}
    end),
    ?assertMatch({[{ok, ?PARENT}, {ok, ?PARENT}, {ok, [?PARENT, 1]}],
                  [{ok, ?PARENT}, {ok, none}, {ok, ?PARENT}, {error, {bad_request, _}}], {ok, none}}, Results).

log(#{level := Level, meta := Meta, msg := {"~ts", [Text]}}, #{config := #{tester := Tester} = Handler}) ->
    timer:sleep(maps:get(sleep, Handler, 0)),
    Tester ! {logged, Level, Text, Meta};
log(_, _) ->
    ok.

with_logger(Handler, Body) ->
    ok = logger:add_handler(?MODULE, ?MODULE, #{config => Handler#{tester => self()}}),
    try Body() after ok = logger:remove_handler(?MODULE) end.

load() ->
    {module, ?MODULE} = code:ensure_loaded(?MODULE),
    ok.

records_arrive_in_logger_with_where_they_come_from(Config) ->
    {{Level, Text, Meta}, Node, Beam, Self} = on(Config, fun(Node) ->
        ok = load(),
        with_logger(#{}, fun() ->
            {ok, none} = py:call(Node, seen, say_everything, [], #{trace => ?PARENT}),
            receive {logged, Level, Text, Meta} -> {{Level, Text, Meta}, Node, node(), self()} end
        end)
    end),
    ?assertEqual(alert, Level),
    ?assertMatch(<<"sold out\nTraceback", _/binary>>, Text),
    ?assertMatch(#{module := <<"seen">>, function := <<"fail_later">>, line := Line, thread := <<_, _/binary>>,
                   python_logger := <<"shop.cart">>, task := <<"worker 7">>, node := Node, shop := <<"tea">>,
                   extra := #{<<"order">> := 7}, trace_id := <<"0af7651916cd43dd8448eb211c80319c">>,
                   span_id := <<"b7ad6b7169203331">>,
                   exception := {python, <<"ValueError">>, <<"as told">>, <<"Traceback", _/binary>>}} when Line > 0, Meta),
    #{time := Time, os_pid := OsPid, file := File} = Meta,
    ?assert(abs(Time - erlang:system_time(microsecond)) < 60_000_000),
    ?assertEqual(sw_e2e:os_pid(maps:get(program, proplists:get_value(node, Config))), OsPid),
    ?assertEqual("seen.py", filename:basename(unicode:characters_to_list(File))),
    ?assertNotEqual({Beam, Self}, {Node, maps:get(pid, Meta)}).

more_records_than_the_beam_handles_are_dropped_counted_and_told(Config) ->
    {Dropped, Texts} = on(Config, fun(Node) ->
        ok = load(),
        with_logger(#{sleep => 1}, fun() ->
            {ok, Dropped} = py:call(Node, seen, flood, [20000, 100], #{timeout => 40000}),
            {Dropped, collect()}
        end)
    end),
    ?assert(Dropped > 10000, Dropped),
    Numbers = [binary_to_integer(Text) || Text <- Texts, re:run(Text, "^[0-9]+$", [{capture, none}]) =:= match],
    ?assertEqual(Numbers, lists:usort(Numbers)),    % in order, none twice
    ?assert(length(Numbers) >= 100 andalso length(Numbers) + Dropped =:= 20000, {length(Numbers), Dropped}),
    Told = [binary_to_integer(N) || Text <- Texts,
                                    {match, [N]} <- [re:run(Text, "^([0-9]+) log records were dropped", [{capture, [1], binary}])]],
    ?assertNotEqual([], Told),
    ?assert(lists:sum(Told) >= Dropped, {Told, Dropped}).

collect() ->
    receive {logged, _, Text, _} -> [Text | collect()] after 1000 -> [] end.
