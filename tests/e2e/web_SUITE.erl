%% A FastAPI application, served by uvicorn on the node's event loop, that asks Erlang in its routes,
%% middleware, dependencies and WebSockets: tests/e2e/python/web_app.py. Asked over sockets.
%%
%%   httpc, gen_tcp, web_client.py ──▶ uvicorn in the node ── erlang.async_call ──▶ a BEAM
%%
%% Python's packages are those of tests/e2e/requirements.txt, which tests/run/venv installs.
-module(web_SUITE).

-include_lib("stdlib/include/assert.hrl").

-export([all/0, suite/0, init_per_suite/1, end_per_suite/1, init_per_testcase/2, end_per_testcase/2]).
-compile([export_all, nowarn_export_all]).

suite() -> [{timetrap, {seconds, 120}}].

all() ->
    [routes_dependencies_and_middleware_ask_erlang,
     the_calls_of_a_route_run_side_by_side,
     fifty_requests_at_once_get_their_own_answers,
     what_fails_in_erlang_meets_the_exception_handler_of_the_application,
     a_call_that_is_too_late_is_stopped_and_the_request_told,
     a_client_that_leaves_a_stream_stops_the_function_it_waits_for,
     websockets_carry_many_messages_through_erlang_in_order,
     a_server_that_stops_finishes_the_requests_it_has,
     a_node_that_is_stopped_while_it_serves_ends_well,
     a_server_outlives_the_beam_that_started_it].

init_per_suite(Config0) ->
    {ok, _} = application:ensure_all_started(inets),
    Config = sw_e2e:setup(Config0),
    Context = sw_e2e:context(Config),
    Node = start_node(Context),
    [{node, Node}, {beam, application_beam(Context, Node)} | Config].

start_node(Context) ->
    sw_e2e:start_node(Context, #{args => ["--venv", venv(), "--import", "web_app"]}).

venv() ->
    filename:join(sw_e2e:root(), "build/test-venv").

application_beam(Context, #{name := Name}) ->
    Beam = sw_e2e:start_beam(Context, #{args => ["-pa", filename:dirname(code:which(py))]}),
    ok = sw_e2e:on(Beam, fun() ->
        {ok, _} = application:ensure_all_started(sidewinder),
        ok = py_node:connect(Name),
        register(hall, spawn(fun() -> hall(#{}) end)),
        register_functions()
    end),
    Beam.

end_per_suite(Config) ->
    true = sw_e2e:alive(maps:get(program, proplists:get_value(node, Config))),
    ok = sw_e2e:stop_beam(proplists:get_value(beam, Config)),
    ok = sw_e2e:stop_node(proplists:get_value(node, Config)),
    ok = sw_e2e:teardown(Config).

%% Each test has a server of its own. What it told of is in its own `told`.
init_per_testcase(_, Config) ->
    ok = on(Config, fun() -> register(told, spawn(fun() -> teller([]) end)), ok end),
    Before = left(Config),
    [{port, serve(Config)}, {before, Before} | Config].

%% The port is closed, and nothing runs or waits that did not before.
end_per_testcase(_, Config) ->
    ok = stop(Config),
    ?assert(refuses(Config)),
    Before = proplists:get_value(before, Config),
    ok = sw_e2e:eventually(fun() -> left(Config) =:= Before orelse {Before, left(Config)} end),
    ?assertEqual([{farewell, <<"good day">>}], [T || {farewell, _} = T <- told(Config)]),
    true = on(Config, fun() -> exit(whereis(told), kill) end),
    ok = sw_e2e:eventually(fun() -> on(Config, fun() -> whereis(told) =:= undefined end) end).

left(Config) ->
    #{name := Name} = proplists:get_value(node, Config),
    maps:with([<<"tasks">>, <<"asking">>, <<"busy">>], sw_e2e:stats(proplists:get_value(beam, Config), Name)).

on(Config, Function) ->
    sw_e2e:on(proplists:get_value(beam, Config), Function).

serve(Config) ->
    #{name := Name} = proplists:get_value(node, Config),
    {ok, Port} = on(Config, fun() -> py:call(Name, web_app, start, []) end),
    Port.

%% Nothing more to do when the test has done it.
stop(Config) ->
    #{name := Name} = proplists:get_value(node, Config),
    {ok, none} = on(Config, fun() -> py:call(Name, web_app, stop, [proplists:get_value(port, Config)]) end),
    ok.

%% --- the functions of the BEAM ------------------------------------------------------------------

register_functions() ->
    ok = py:register_function(greeting, fun([]) -> <<"good day">> end),
    ok = py:register_function(farewell, fun([Greeting]) -> tell({farewell, Greeting}) end),
    ok = py:register_function(user_of, fun user_of/1),
    ok = py:register_function(seal, fun([User, Status]) -> <<User/binary, " ", (integer_to_binary(Status))/binary>> end),
    ok = py:register_function(upper, fun([Text]) -> string:uppercase(Text) end),
    ok = py:register_function(meet, fun meet/1),
    ok = py:register_function(never, fun([]) -> tell({begun, self()}), receive never -> ok end end),
    ok = py:register_function(left, fun([Code]) -> tell({left, Code}) end),
    ok = py:register_function(boom, fun([]) -> error({boom, 1}) end),
    ok = py:register_function(die, fun([]) -> exit(self(), kill), receive never -> ok end end).

user_of([<<"Bearer ", User/binary>>]) -> User;
user_of([_]) -> none.

%% Returns the value when so many have come to the room.
meet([Room, People, Value]) ->
    hall ! {come, Room, People, self()},
    receive {go_on, Room} -> Value end.

hall(Rooms) ->
    receive
        {come, Room, People, Who} ->
            hall(come([Who | maps:get(Room, Rooms, [])], Room, People, Rooms));
        {ask, From, Room} ->
            From ! {in, Room, length(maps:get(Room, Rooms, []))},
            hall(Rooms)
    end.

come(All, Room, People, Rooms) when length(All) =:= People ->
    _ = [Who ! {go_on, Room} || Who <- All],
    maps:remove(Room, Rooms);
come(All, Room, _, Rooms) ->
    Rooms#{Room => All}.

%% How many are in a room.
in(Config, Room) ->
    on(Config, fun() -> hall ! {ask, self(), Room}, receive {in, Room, Count} -> Count end end).

tell(What) ->
    told ! {tell, What},
    ok.

%% Keeps what was told.
teller(Told) ->
    receive
        {tell, What} -> teller([What | Told]);
        {ask, From} -> From ! {told, lists:reverse(Told)}, teller(Told)
    end.

told(Config) ->
    on(Config, fun() -> told ! {ask, self()}, receive {told, Told} -> Told end end).

%% --- clients ------------------------------------------------------------------------------------

get(Config, Path) ->
    request(Config, get, Path, "someone", none).

%% On a connection of its own.
request(Config, Method, Path, User, Body) ->
    Url = lists:concat(["http://127.0.0.1:", proplists:get_value(port, Config), Path]),
    Headers = [{"authorization", "Bearer " ++ User}, {"connection", "close"}],
    Request = case Body of
        none -> {Url, Headers};
        _ -> {Url, Headers, "application/json", Body}
    end,
    {ok, {{_, Status, _}, Answered, Text}} =
        httpc:request(Method, Request, [{timeout, 60000}], [{body_format, binary}]),
    {Status, proplists:get_value("x-seal", Answered), Text}.

in_processes(Functions) ->
    Running = [spawn_monitor(fun() -> exit({value, Function()}) end) || Function <- Functions],
    [receive
         {'DOWN', Monitor, process, Pid, {value, Value}} -> Value;
         {'DOWN', Monitor, process, Pid, Why} -> error(Why)
     end || {Pid, Monitor} <- Running].

begun(Config) ->
    ok = sw_e2e:eventually(fun() -> [] =/= [begun || {begun, _} <- told(Config)] end),
    [Pid] = [Pid || {begun, Pid} <- told(Config)],
    Pid.

refuses(Config) ->
    case gen_tcp:connect("127.0.0.1", proplists:get_value(port, Config), []) of
        {error, econnrefused} -> true;
        {ok, Socket} -> ok = gen_tcp:close(Socket), false
    end.

eventually_stopped(Config, Pid) ->
    ok = sw_e2e:eventually(fun() -> not on(Config, fun() -> is_process_alive(Pid) end) end).

%% --- tests --------------------------------------------------------------------------------------

routes_dependencies_and_middleware_ask_erlang(Config) ->
    ?assertEqual({200, "someone 200", <<"{\"hello\":\"GOOD DAY ADA\"}">>}, get(Config, "/hello/ada")),
    ?assertEqual({200, "someone 200", <<"{\"hello\":\"ADA\"}">>}, get(Config, "/hello-from-a-thread/ada")),
    ?assertEqual({404, "someone 404", <<"{\"detail\":\"Not Found\"}">>}, get(Config, "/nowhere")),
    Url = lists:concat(["http://127.0.0.1:", proplists:get_value(port, Config), "/hello/ada"]),
    {ok, {{_, Status, _}, _, Text}} = httpc:request(get, {Url, []}, [], []),
    ?assertEqual({401, "{\"detail\":\"who are you?\"}"}, {Status, Text}).

the_calls_of_a_route_run_side_by_side(Config) ->
    ?assertEqual({200, "someone 200", <<"[0,1,2,3,4,5,6,7,8,9]">>}, get(Config, "/together/10")).

%% None of them is answered before all of them have been asked.
fifty_requests_at_once_get_their_own_answers(Config) ->
    Order = fun(N) ->
        User = "user " ++ integer_to_list(N),
        Payload = io_lib:format("{\"number\":~b,\"text\":\"~s\"}", [N, lists:duplicate(N, $a + N rem 26)]),
        Body = ["{\"room\":\"fifty\",\"people\":50,\"payload\":", Payload, "}"],
        Answer = ["{\"user\":\"", User, "\",\"answer\":", Payload, "}"],
        ?assertEqual({200, User ++ " 200", iolist_to_binary(Answer)},
                     request(Config, post, "/order", User, iolist_to_binary(Body)))
    end,
    _ = [in_processes([fun() -> Order(N) end || N <- lists:seq(1, 50)]) || _ <- [1, 2, 3]],
    ok.

what_fails_in_erlang_meets_the_exception_handler_of_the_application(Config) ->
    Failure = fun(Error, Kind, Reason) ->
        Text = io_lib:format("{\"error\":\"~s\",\"kind\":\"~s\",\"reason\":\"~s\"}", [Error, Kind, Reason]),
        {500, "someone 500", iolist_to_binary(Text)}
    end,
    ?assertEqual(Failure("ErlangError", "error", "(Atom('boom'), 1)"), get(Config, "/fail/boom")),
    ?assertEqual(Failure("ErlangError", "exit", "(Atom('signal'), Atom('killed'))"), get(Config, "/fail/die")),
    ?assertEqual(Failure("UnknownFunction", "error", "undef"), get(Config, "/fail/nobody")).

a_call_that_is_too_late_is_stopped_and_the_request_told(Config) ->
    ?assertEqual({504, "someone 504", <<"{\"error\":\"too late\"}">>}, get(Config, "/late")),
    eventually_stopped(Config, begun(Config)).

a_client_that_leaves_a_stream_stops_the_function_it_waits_for(Config) ->
    {ok, Socket} = gen_tcp:connect("127.0.0.1", proplists:get_value(port, Config), [binary, {active, false}]),
    ok = gen_tcp:send(Socket, "GET /stream HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer someone\r\n\r\n"),
    ok = receive_until(Socket, <<"begun\n">>, <<>>),
    Function = begun(Config),
    ?assert(on(Config, fun() -> is_process_alive(Function) end)),
    ok = gen_tcp:close(Socket),
    eventually_stopped(Config, Function).

receive_until(Socket, Mark, Before) ->
    {ok, Data} = gen_tcp:recv(Socket, 0, 10000),
    Text = <<Before/binary, Data/binary>>,
    case binary:match(Text, Mark) of
        nomatch -> receive_until(Socket, Mark, Text);
        _ -> ok
    end.

websockets_carry_many_messages_through_erlang_in_order(Config) ->
    Url = lists:concat(["ws://127.0.0.1:", proplists:get_value(port, Config), "/upper"]),
    Client = filename:join(sw_e2e:root(), "tests/e2e/python/web_client.py"),
    ?assertEqual({0, <<"[300, 300, 300, 300, 300, 300, 300, 300]\n">>, <<>>},
                 sw_e2e:run(filename:join(venv(), "bin/python"), [Client, Url, "8", "300"], [])),
    % Each of them has seen its client go.
    Left = lists:duplicate(8, {left, 1000}),
    ok = sw_e2e:eventually(fun() -> [T || {left, _} = T <- told(Config)] =:= Left end).

a_server_that_stops_finishes_the_requests_it_has(Config) ->
    Order = <<"{\"room\":\"door\",\"people\":2,\"payload\":1}">>,
    Requesting = spawn_monitor(fun() -> exit({value, request(Config, post, "/order", "last", Order)}) end),
    ok = sw_e2e:eventually(fun() -> in(Config, <<"door">>) =:= 1 end),
    Stopping = spawn_monitor(fun() -> exit({value, stop(Config)}) end),
    ok = sw_e2e:eventually(fun() -> refuses(Config) end),
    on(Config, fun() -> hall ! {come, <<"door">>, 2, self()} end),
    ?assertEqual([{value, {200, "last 200", <<"{\"user\":\"last\",\"answer\":1}">>}}, {value, ok}],
                 [receive {'DOWN', Monitor, process, Pid, Why} -> Why end || {Pid, Monitor} <- [Requesting, Stopping]]).

a_node_that_is_stopped_while_it_serves_ends_well(Config) ->
    Node = #{name := Name, program := Program} = start_node(sw_e2e:context(Config)),
    ok = on(Config, fun() -> py_node:connect(Name) end),
    Port = serve([{node, Node} | Config]),
    Asked = get([{port, Port} | Config], "/hello/ada"),
    ?assertMatch({200, _, _}, Asked),
    ok = sw_e2e:send_signal(Program, "TERM"),
    ?assertEqual(0, sw_e2e:await_exit(Program)),
    ?assertEqual(nomatch, re:run(sw_e2e:output(Program), "never retrieved|was destroyed")).

a_server_outlives_the_beam_that_started_it(Config) ->
    Context = sw_e2e:context(Config),
    Node = start_node(Context),
    First = application_beam(Context, Node),
    Other = application_beam(Context, Node),
    Served = [{port, serve([{node, Node}, {beam, First} | Config])} | Config],
    Hello = {200, "someone 200", <<"{\"hello\":\"GOOD DAY ADA\"}">>},
    ?assertEqual(Hello, get(Served, "/hello/ada")),
    ok = sw_e2e:kill_beam(First),
    ok = sw_e2e:eventually(fun() -> Hello =:= get(Served, "/hello/ada") orelse get(Served, "/hello/ada") end),
    ok = stop([{node, Node}, {beam, Other} | Served]),
    ok = sw_e2e:stop_beam(Other),
    ok = sw_e2e:stop_node(Node).
