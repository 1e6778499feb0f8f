%% What handlers are told of calls, nodes and pools, against a fake node; and that nobody else pays.
-module(py_telemetry_SUITE).

-include_lib("stdlib/include/assert.hrl").

-export([all/0, suite/0, init_per_suite/1, end_per_suite/1, init_per_testcase/2, end_per_testcase/2]).
-compile([export_all, nowarn_export_all]).

suite() -> [{timetrap, {seconds, 60}}].

all() ->
    [a_call_is_a_start_and_a_stop_with_the_same_span,
     what_goes_wrong_is_an_exception_with_its_reason,
     a_cast_is_one_event_with_its_result,
     a_spawned_call_ends_when_its_answer_is_there_whoever_receives_it,
     a_spawned_call_that_is_given_up_or_lost_ends_too,
     calls_of_a_pool_name_the_pool,
     the_trace_context_of_a_call_stands_in_its_events,
     nobody_is_told_when_nothing_is_attached,
     a_handler_that_fails_is_taken_away_and_hurts_no_call,
     handlers_have_names_of_their_own_and_events_that_exist,
     handlers_that_come_and_go_at_once_leave_nothing,
     nodes_and_pools_tell_attached_handlers_too,
     telemetry_on_the_path_is_told_of_calls].

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
    ok = cluster:on(proplists:get_value(fake, Config), fun() -> fake_node:start(#{}) end),
    {ok, _} = client(Config, fun() -> application:ensure_all_started(sidewinder) end),
    Config.

end_per_testcase(_, Config) ->
    ok = client(Config, fun() -> application:stop(sidewinder) end),
    ok = cluster:on(proplists:get_value(fake, Config), fun fake_node:stop/0).

client(Config, Body) -> cluster:on(proplists:get_value(client, Config), Body).

%% The body's result, and the events of calls that were told meanwhile. Runs in the client.
told(Config, Body) ->
    client(Config, fun() ->
        ok = listen(),
        Result = Body(proplists:get_value(target, Config)),
        Events = heard(),
        ok = py_telemetry:detach(test),
        {Result, Events}
    end).

listen() ->
    Self = self(),
    py_telemetry:attach_many(test, [E || [_, call, _] = E <- py_telemetry:events()],
                             fun([_, _, What], Measured, Meta, To) -> To ! {event, What, Measured, Meta}, ok end, Self).

%% What was told, the last within 200 ms.
heard() ->
    receive {event, What, Measured, Meta} -> [{What, Measured, Meta} | heard()] after 200 -> [] end.

a_call_is_a_start_and_a_stop_with_the_same_span(Config) ->
    {_, Events} = told(Config, fun(Node) ->
        {ok, _} = py:call(Node, m, echo, [1]),
        {ok, _} = py:call(Node, <<"m.n">>, echo, [1], #{kwargs => #{a => 1}}),
        {ok, _} = py:eval(Node, "1"),
        {ok, _} = py:exec(Node, "pass"),
        {ok, late} = py:call(Node, m, late, [30])
    end),
    Node = proplists:get_value(target, Config),
    ?assertMatch([{start, #{monotonic_time := _, system_time := _},
                   #{type := call, target := Node, module := m, function := echo}},
                  {stop, #{duration := _, monotonic_time := _}, #{type := call, module := m, function := echo}},
                  {start, _, #{module := <<"m.n">>, function := echo}}, {stop, _, _},
                  {start, _, #{type := eval, module := builtins, function := eval}}, {stop, _, _},
                  {start, _, #{type := exec, module := builtins, function := exec}}, {stop, _, _},
                  {start, _, _}, {stop, _, _}], Events),
    Spans = [Span || {_, _, #{telemetry_span_context := Span}} <- Events],
    ?assertEqual([{A, A} || A <- lists:usort(Spans)], lists:sort(pairs(Spans))),
    {stop, #{duration := Late}, _} = lists:last(Events),
    Ms = erlang:convert_time_unit(Late, native, millisecond),
    ?assert(Ms >= 29 andalso Ms < 5000, Ms).

pairs([A, B | More]) -> [{A, B} | pairs(More)];
pairs([]) -> [].

what_goes_wrong_is_an_exception_with_its_reason(Config) ->
    Reason = {python, <<"E">>, <<"m">>, <<"t">>},
    {_, Events} = told(Config, fun(Node) ->
        {error, Reason} = py:call(Node, m, result, [{error, Reason}]),
        {error, timeout} = py:call(Node, m, hang, [], #{timeout => 10}),
        {error, {down, _}} = py:call('nobody@127.0.0.1', m, f, [])
    end),
    ?assertMatch([{start, _, _},
                  {exception, #{duration := _}, #{kind := error, reason := Reason, stacktrace := [], function := result}},
                  {start, _, _}, {exception, _, #{reason := timeout}},
                  {start, _, _}, {exception, _, #{reason := {down, _}, target := 'nobody@127.0.0.1'}}], Events).

a_cast_is_one_event_with_its_result(Config) ->
    {_, Events} = told(Config, fun(Node) ->
        ok = py:cast(Node, m, echo, [1]),
        ok = py:cast(Node, m, echo, [1], #{kwargs => #{a => 1}}),
        {error, _} = py:cast('nobody@127.0.0.1', m, f, [])
    end),
    ?assertMatch([{cast, #{system_time := _}, #{type := cast, module := m, function := echo, result := ok}},
                  {cast, _, #{result := ok}},
                  {cast, _, #{target := 'nobody@127.0.0.1', result := {error, {down, _}}}}], Events).

a_spawned_call_ends_when_its_answer_is_there_whoever_receives_it(Config) ->
    {_, Events} = told(Config, fun(Node) ->
        {ok, [1]} = py:await(py:spawn_call(Node, m, echo, [1])),
        Ref = py:spawn_call(Node, m, result, [{error, cancelled}]),
        receive {py_response, Ref, {error, cancelled}} -> ok end
    end),
    % The ends are told by processes of their own.
    ?assertMatch([{start, _, #{type := spawn_call, function := echo}}, {stop, #{duration := _}, #{type := spawn_call}},
                  {start, _, _}, {exception, _, #{reason := cancelled}}],
                 lists:sort(fun({_, _, A}, {_, _, B}) -> span(A) =< span(B) end, Events)).

span(#{function := Function}) -> Function.

a_spawned_call_that_is_given_up_or_lost_ends_too(Config) ->
    {_, Events} = told(Config, fun(Node) ->
        {error, timeout} = py:await(py:spawn_call(Node, m, hang, []), 10),
        {error, timeout} = py:await(py:spawn_call(Node, m, hang, [], #{timeout => 10})),
        Caller = spawn(fun() -> _ = py:spawn_call(Node, m, hang, []), timer:sleep(infinity) end),
        timer:sleep(100),
        exit(Caller, kill),
        timer:sleep(200),
        Ref = py:spawn_call(Node, m, hang, []),
        ok = py_node:stop(Node),
        {error, {down, stopped}} = py:await(Ref)
    end),
    Reasons = [Reason || {exception, _, #{reason := Reason}} <- Events],
    ?assertEqual([cancelled, timeout, cancelled, {down, stopped}], Reasons),
    ?assertEqual(4, length([start || {start, _, _} <- Events])).

calls_of_a_pool_name_the_pool(Config) ->
    {_, Events} = told(Config, fun(Node) ->
        {ok, _} = py_pool:start(pool, #{nodes => [Node]}),
        {ok, _} = py:call(pool, m, echo, [1]),
        {ok, _} = py:await(py:spawn_call(pool, m, echo, [1])),
        ok = py:cast(pool, m, echo, [])
    end),
    ?assertMatch([{cast, _, #{target := pool}},
                  {start, _, #{target := pool, type := call}}, {stop, _, #{target := pool}},
                  {start, _, #{target := pool, type := spawn_call}}, {stop, _, #{target := pool}}],
                 lists:sort(fun({_, _, #{type := A}}, {_, _, #{type := B}}) -> rank(A) =< rank(B) end, Events)).

rank(cast) -> 1;
rank(call) -> 2;
rank(spawn_call) -> 3.

the_trace_context_of_a_call_stands_in_its_events(Config) ->
    Trace = <<"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01">>,
    {Results, Events} = told(Config, fun(Node) ->
        {ok, _} = py:call(Node, m, echo, [], #{trace => Trace}),
        ok = py:set_trace_context(Trace),
        Results = [py:eval(Node, "1"), py:exec(Node, "pass")],
        ok = py:set_trace_context(undefined),
        {ok, _} = py:call(Node, m, echo, []),
        Results
    end),
    ?assertMatch([{ok, {eval, _, _, _, #{trace := Trace}}}, {ok, {exec, _, _, #{trace := Trace}}}], Results),
    ?assertEqual([Trace, Trace, Trace, none], [maps:get(trace, Meta, none) || {start, _, Meta} <- Events]).

nobody_is_told_when_nothing_is_attached(Config) ->
    Node = proplists:get_value(target, Config),
    Result = client(Config, fun() ->
        Before = {py_telemetry:on(call), py_telemetry:on(channel)},
        ok = listen(),
        During = {py_telemetry:on(call), py_telemetry:on(channel)},
        ok = py_telemetry:detach(test),
        {ok, _} = py:call(Node, m, echo, [1]),
        {Before, During, {py_telemetry:on(call), py_telemetry:on(channel)}, heard()}
    end),
    ?assertEqual({{false, false}, {true, false}, {false, false}, []}, Result).

a_handler_that_fails_is_taken_away_and_hurts_no_call(Config) ->
    Node = proplists:get_value(target, Config),
    Result = client(Config, fun() ->
        ok = logger:set_primary_config(level, none),
        ok = py_telemetry:attach(bad, [sidewinder, call, start], fun(_, _, _, _) -> error(bad) end, none),
        ok = listen(),
        {ok, _} = py:call(Node, m, echo, [1]),
        ok = logger:set_primary_config(level, notice),
        Left = [Id || #{id := Id} <- py_telemetry:list_handlers([sidewinder, call, start])],
        Events = heard(),
        ok = py_telemetry:detach(test),
        {Left, length(Events), py_telemetry:on(call)}
    end),
    ?assertEqual({[test], 2, false}, Result).

handlers_have_names_of_their_own_and_events_that_exist(Config) ->
    Result = client(Config, fun() ->
        F = fun(_, _, _, _) -> ok end,
        ok = py_telemetry:attach(one, [sidewinder, node, up], F, c),
        Again = py_telemetry:attach(one, [sidewinder, node, down], F, c),
        Wrong = try py_telemetry:attach(two, [sidewinder, node, upp], F, c) catch error:badarg -> badarg end,
        Listed = py_telemetry:list_handlers([sidewinder]),
        ok = py_telemetry:detach(one),
        ok = application:stop(sidewinder),
        Stopped = {py_telemetry:attach(one, [sidewinder, node, up], F, c), py_telemetry:detach(one),
                   py_telemetry:list_handlers([]), py_telemetry:on(call)},
        {ok, _} = application:ensure_all_started(sidewinder),
        {Again, Wrong, [maps:remove(function, Each) || Each <- Listed], Stopped}
    end),
    ?assertEqual({{error, already_exists}, badarg, [#{id => one, event_name => [sidewinder, node, up], config => c}],
                  {{error, {down, not_started}}, {error, not_found}, [], false}}, Result).

handlers_that_come_and_go_at_once_leave_nothing(Config) ->
    Result = client(Config, fun() ->
        Work = fun(N) ->
            fun() ->
                [begin
                     _ = py_telemetry:attach({id, N rem 3}, [sidewinder, call, stop], fun(_, _, _, _) -> ok end, x),
                     _ = py_telemetry:detach({id, N rem 3})
                 end || _ <- lists:seq(1, 500)]
            end
        end,
        Workers = [spawn_monitor(Work(N)) || N <- lists:seq(1, 8)],
        [receive {'DOWN', Monitor, process, Pid, normal} -> ok end || {Pid, Monitor} <- Workers],
        _ = [py_telemetry:detach({id, N}) || N <- [0, 1, 2]],
        {py_telemetry:on(call), py_telemetry:list_handlers([])}
    end),
    ?assertEqual({false, []}, Result).

nodes_and_pools_tell_attached_handlers_too(Config) ->
    Node = proplists:get_value(target, Config),
    Events = client(Config, fun() ->
        Self = self(),
        Wanted = [E || [_, Of, _] = E <- py_telemetry:events(), Of =/= call, Of =/= channel],
        ok = py_telemetry:attach_many(test, Wanted,
                                      fun([_, Of, What], _, Meta, _) -> Self ! {event, {Of, What}, x, Meta} end, x),
        {ok, _} = py_pool:start(pool, #{nodes => [Node]}),
        {ok, _} = py:call(pool, m, echo, [1]),
        ok = py_pool:stop(pool),
        {error, _} = py:call('nobody@127.0.0.1', m, f, []),
        heard()
    end),
    Names = [{What, maps:get(node, Meta, none)} || {What, _, Meta} <- Events],
    [?assert(lists:member(Each, Names), {Each, Names})
     || Each <- [{{node, up}, Node}, {{node, down}, 'nobody@127.0.0.1'}, {{pool, joined}, Node}, {{pool, up}, Node}]].

%% An application named telemetry, which stands in for the one of Hex.
telemetry_on_the_path_is_told_of_calls(Config) ->
    Node = proplists:get_value(target, Config),
    Directory = filename:join(proplists:get_value(priv_dir, Config), "telemetry/ebin"),
    ok = filelib:ensure_dir(filename:join(Directory, "x")),
    ok = write_telemetry(Directory),
    Result = client(Config, fun() ->
        ok = application:stop(sidewinder),
        true = code:add_patha(Directory),
        {ok, Started} = application:ensure_all_started(telemetry),
        {ok, _} = application:ensure_all_started(sidewinder),
        true = register(telemetry_test, self()),
        On = {py_telemetry:on(call), py_telemetry:on(channel)},
        {ok, [1]} = py:call(Node, m, echo, [1]),
        Told = heard(),
        ok = application:stop(sidewinder),
        ok = application:stop(telemetry),
        true = code:del_path(Directory),
        true = code:delete(telemetry),
        _ = code:purge(telemetry),
        ok = application:unload(telemetry),
        {ok, _} = application:ensure_all_started(sidewinder),
        true = unregister(telemetry_test),
        {Started, On, [What || {[sidewinder, call, What], _, _} <- Told], py_telemetry:on(call)}
    end),
    ?assertEqual({[telemetry], {true, true}, [start, stop], false}, Result).

write_telemetry(Directory) ->
    Source = ["-module(telemetry).", "-export([execute/3]).",
              "execute(Event, Measurements, Metadata) -> "
              "case whereis(telemetry_test) of undefined -> ok; Pid -> Pid ! {event, Event, Measurements, Metadata}, ok end."],
    Forms = [begin {ok, Tokens, _} = erl_scan:string(Line), {ok, Form} = erl_parse:parse_form(Tokens), Form end
             || Line <- Source],
    {ok, telemetry, Binary} = compile:forms(Forms),
    ok = file:write_file(filename:join(Directory, "telemetry.beam"), Binary),
    App = {application, telemetry, [{vsn, "1.0.0"}, {modules, [telemetry]}, {registered, []},
                                    {applications, [kernel, stdlib]}]},
    file:write_file(filename:join(Directory, "telemetry.app"), io_lib:format("~p.~n", [App])).
