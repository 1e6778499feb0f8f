%% `sidewinder serve`: the real program with applications of tests/e2e/python/served.py, asked over sockets.
%%
%%   gen_tcp ──▶ the web server on the node's loop ── erlang.async_call ──▶ a BEAM
-module(serve_SUITE).

-include_lib("stdlib/include/assert.hrl").

-export([all/0, suite/0, init_per_suite/1, end_per_suite/1, init_per_testcase/2]).
-compile([export_all, nowarn_export_all]).

suite() -> [{timetrap, {seconds, 60}}].

all() ->
    [an_application_is_served_without_a_name_a_cookie_and_an_epmd,
     a_node_that_serves_is_called_and_calls_in_its_handlers,
     wsgi_applications_call_erlang_from_their_threads,
     several_applications_have_their_prefixes,
     the_application_can_come_from_the_environment_or_a_file,
     it_is_ready_once_it_serves,
     sigterm_answers_what_runs_while_the_node_still_has_its_peers,
     a_body_that_is_on_its_way_when_sigterm_comes_is_taken,
     a_request_that_never_ends_is_cut_off_when_the_drain_is_over,
     a_stuck_thread_of_an_application_does_not_keep_the_program,
     a_handler_that_blocks_the_loop_does_not_keep_the_program,
     sigterm_before_it_serves_ends_it_with_0,
     an_application_that_cannot_be_had_is_one_line_and_exit_code_1,
     an_application_that_does_not_start_is_one_line_and_exit_code_1,
     an_address_that_cannot_be_had_is_one_line_and_exit_code_1,
     an_error_in_an_application_is_logged_and_answered_with_500,
     its_counters_are_metrics_and_documented].

init_per_suite(Config) -> sw_e2e:setup(Config).

end_per_suite(Config) -> sw_e2e:teardown(Config).

init_per_testcase(Case, Config) ->
    Directory = filename:join(maps:get(directory, sw_e2e:context(Config)), Case),
    ok = filelib:ensure_dir(filename:join(Directory, "x")),
    [{directory, Directory} | Config].

context(Config) -> sw_e2e:context(Config).

%% The program and its ports, once it serves.
serve(Config, Arguments) -> serve(Config, Arguments, []).

serve(Config, Arguments, Environment) ->
    serving(serve_now(Config, Arguments, Environment)).

serve_now(Config, Arguments, Environment) ->
    Program = sw_e2e:start_program(sw_e2e:sidewinder(), line(Config, Arguments), environment(Config, Environment)),
    #{program => Program}.

serving(Node = #{program := Program}) ->
    Node#{admin => port_in(sw_e2e:wait_line(Program, "admin: listening on port [0-9]+")),
          port => port_in(sw_e2e:wait_line(Program, "serving on http://127.0.0.1:[0-9]+"))}.

port_in(Line) ->
    {match, [Port]} = re:run(Line, "(?:port |127.0.0.1:)([0-9]+)", [{capture, [1], list}]),
    list_to_integer(Port).

%% The suite's folder stands in it, by which what was left behind would be found.
line(Config, Arguments) ->
    Paths = ["--path", filename:join(sw_e2e:root(), "tests/e2e/python"), "--path", proplists:get_value(directory, Config)],
    Arguments ++ ["--bind", "127.0.0.1:0", "--admin", "127.0.0.1:0" | Paths].

environment(Config, More) ->
    sw_e2e:environment(context(Config)) ++ More.

%% A node that serves, and a BEAM linked to it that has the function upper.
node_and_beam(Config, Arguments) ->
    Context = #{cookie_file := Cookie} = context(Config),
    Name = sw_e2e:unique("serve") ++ "@127.0.0.1",
    Node = serve(Config, Arguments ++ ["--name", Name, "--cookie-file", Cookie]),
    Beam = sw_e2e:start_beam(Context, #{args => ["-pa", filename:dirname(code:which(py))]}),
    ok = sw_e2e:on(Beam, fun() ->
        {ok, _} = application:ensure_all_started(sidewinder),
        ok = py_node:connect(list_to_atom(Name)),
        ok = py:register_function(upper, fun([Text]) -> string:uppercase(Text) end)
    end),
    {Node#{name => list_to_atom(Name)}, Beam}.

stop(#{program := Program}) ->
    ok = sw_e2e:send_signal(Program, "TERM"),
    ?assertEqual(0, sw_e2e:await_exit(Program)).

%% Status and body of one request; closed if it was cut off.
get(#{port := Port}, Path) -> ask(Port, Path);
get(Port, Path) -> ask(Port, Path).

ask(Port, Path) ->
    {ok, Socket} = gen_tcp:connect({127, 0, 0, 1}, Port, [binary, {active, false}]),
    ok = gen_tcp:send(Socket, ["GET ", Path, " HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"]),
    Answer = all_of(Socket, <<>>),
    ok = gen_tcp:close(Socket),
    case binary:split(Answer, <<"\r\n\r\n">>) of
        [<<"HTTP/1.1 ", Status:3/binary, _/binary>>, Body] -> {binary_to_integer(Status), Body};
        [<<>>] -> closed
    end.

all_of(Socket, Before) ->
    case gen_tcp:recv(Socket, 0, 30000) of
        {ok, More} -> all_of(Socket, <<Before/binary, More/binary>>);
        {error, Gone} when Gone =:= closed; Gone =:= econnreset -> Before
    end.

asking(Node, Path) ->
    spawn_monitor(fun() -> exit({value, get(Node, Path)}) end).

value({Pid, Monitor}) ->
    receive
        {'DOWN', Monitor, process, Pid, {value, Value}} -> Value;
        {'DOWN', Monitor, process, Pid, Why} -> error(Why)
    end.

refuses(#{port := Port}) ->
    case gen_tcp:connect({127, 0, 0, 1}, Port, []) of
        {error, econnrefused} -> true;
        {ok, Socket} -> gen_tcp:close(Socket), false
    end.

lines(Text) ->
    [Line || Line <- binary:split(iolist_to_binary(Text), <<"\n">>, [global]), Line =/= <<>>].

%% --- serving ------------------------------------------------------------------------------------

an_application_is_served_without_a_name_a_cookie_and_an_epmd(Config) ->
    Nothing = [{"HOME", proplists:get_value(directory, Config)}, {"ERL_EPMD_PORT", sw_e2e:free_port()}],
    Node = #{program := Program} = serve(Config, ["serve", "served:app"], Nothing),
    ?assertEqual({200, <<"ErlangEventLoop nonode@nohost yes ">>}, get(Node, "/where")),
    ?assertEqual({404, <<"no nothing">>}, get(Node, "/nothing")),
    ?assertEqual({200, <<"built in">>}, get(Node, "/native")),
    %% It listens for requests and for probes, and for nothing else.
    ?assertEqual(2, listening(sw_e2e:os_pid(Program))),
    stop(Node),
    ?assertMatch({match, _}, re:run(sw_e2e:output(Program), "served: ended")).

%% TCP sockets of a process in state LISTEN.
listening(OsPid) ->
    Directory = lists:concat(["/proc/", OsPid, "/fd"]),
    {ok, Files} = file:list_dir(Directory),
    Inodes = [Inode || File <- Files, {ok, "socket:[" ++ Rest} <- [file:read_link(filename:join(Directory, File))],
                       Inode <- [lists:droplast(Rest)]],
    Tables = [Text || Name <- ["tcp", "tcp6"], {ok, Text} <- [file:read_file("/proc/net/" ++ Name)]],
    length([Row || Table <- Tables, Row <- lines(Table), Fields <- [string:lexemes(binary_to_list(Row), " ")],
                   lists:nth(4, Fields) =:= "0A", lists:member(lists:nth(10, Fields), Inodes)]).

a_node_that_serves_is_called_and_calls_in_its_handlers(Config) ->
    {Node = #{name := Name}, Beam} = node_and_beam(Config, ["serve", "served:app"]),
    ?assertEqual({200, <<"GOOD-DAY">>}, get(Node, "/upper?good-day")),
    ?assertEqual({ok, 4.0}, sw_e2e:on(Beam, fun() -> py:call(Name, math, sqrt, [16.0]) end)),
    ?assertEqual({200, <<"ErlangEventLoop ", (atom_to_binary(Name))/binary, " yes ">>}, get(Node, "/where")),
    stop(Node),
    ok = sw_e2e:stop_beam(Beam).

wsgi_applications_call_erlang_from_their_threads(Config) ->
    {Node, Beam} = node_and_beam(Config, ["serve", "served:wsgi", "--wsgi"]),
    Asked = [asking(Node, "/upper?x" ++ integer_to_list(N)) || N <- lists:seq(1, 50)],
    ?assertEqual([{200, <<"X", (integer_to_binary(N))/binary>>} || N <- lists:seq(1, 50)],
                 [value(One) || One <- Asked]),
    stop(Node),
    ok = sw_e2e:stop_beam(Beam).

several_applications_have_their_prefixes(Config) ->
    Node = serve(Config, ["serve", "--mount", "/old=served:wsgi", "--mount", "/api=served:app"]),
    ?assertEqual({200, <<"wsgi /old /x">>}, get(Node, "/old/x")),
    ?assertEqual({200, <<"ErlangEventLoop nonode@nohost yes /api">>}, get(Node, "/api/where")),
    ?assertMatch({404, _}, get(Node, "/where")),
    stop(Node).

the_application_can_come_from_the_environment_or_a_file(Config) ->
    Served = serve(Config, [], [{"SIDEWINDER_SERVE", "served:app"}]),
    ?assertMatch({200, _}, get(Served, "/where")),
    stop(Served),
    File = filename:join(proplists:get_value(directory, Config), "serve.toml"),
    ok = file:write_file(File, "serve = \"served:wsgi\"\ninterface = \"wsgi\"\n"),
    Other = serve(Config, ["--config", File]),
    ?assertEqual({200, <<"wsgi  /x">>}, get(Other, "/x")),
    stop(Other).

it_is_ready_once_it_serves(Config) ->
    Gate = filename:join(proplists:get_value(directory, Config), "gate"),
    ok = file:write_file(Gate, ""),
    Starting = #{program := Program} = serve_now(Config, ["serve", "served:app"], [{"SERVED_WAITS_WHILE", Gate}]),
    _ = sw_e2e:wait_line(Program, "served: starting"),
    Admin = port_in(sw_e2e:wait_line(Program, "admin: listening on port [0-9]+")),
    ?assertEqual({503, <<"the web server does not serve\n">>}, get(Admin, "/readyz")),
    ?assertEqual({200, <<"ok\n">>}, get(Admin, "/startupz")),
    ok = file:delete(Gate),
    Node = serving(Starting),
    ok = sw_e2e:eventually(fun() -> get(Admin, "/readyz") =:= {200, <<"ok\n">>} end),
    stop(Node).

%% --- stopping -----------------------------------------------------------------------------------

sigterm_answers_what_runs_while_the_node_still_has_its_peers(Config) ->
    {Node = #{name := Name, program := Program, admin := Admin}, Beam} = node_and_beam(Config, ["serve", "served:app"]),
    Asked = asking(Node, "/waiting"),
    _ = sw_e2e:wait_line(Program, "served: waiting"),
    ok = sw_e2e:send_signal(Program, "TERM"),
    ok = sw_e2e:eventually(fun() -> refuses(Node) end),
    ?assertMatch({503, <<"draining\n", _/binary>>}, get(Admin, "/readyz")),
    ?assert(sw_e2e:alive(Program)),
    ?assertEqual({ok, none}, sw_e2e:on(Beam, fun() -> py:call(Name, served, open_gate, []) end)),
    ?assertEqual({200, <<"WAITED">>}, value(Asked)),
    ?assertEqual(0, sw_e2e:await_exit(Program)),
    ?assertMatch({match, _}, re:run(sw_e2e:output(Program), "served: ended")),
    ok = sw_e2e:stop_beam(Beam).

%% By an application that reads it already, by one whose request is not even whole, and by a thread.
a_body_that_is_on_its_way_when_sigterm_comes_is_taken(Config) ->
    Arguments = ["serve", "served:upload", "--mount", "/wsgi=served:wsgi"],
    Node = #{program := Program, port := Port} = serve(Config, Arguments),
    Body = binary:copy(<<"b">>, 300_000),
    <<Begun:100_000/binary, Rest/binary>> = Body,
    Head = fun(Path) -> ["POST ", Path, " HTTP/1.1\r\nHost: x\r\nContent-Length: 300000\r\n\r\n"] end,
    Pieces = [{[Head("/read"), Begun], Rest},
              {["POST /half HTTP/1.1\r\nHost: x\r\nContent-Le"], ["ngth: 300000\r\n\r\n", Body]},
              {[Head("/wsgi/read"), Begun], Rest}],
    Open = [begin
                {ok, Socket} = gen_tcp:connect({127, 0, 0, 1}, Port, [binary, {active, false}]),
                ok = gen_tcp:send(Socket, First),
                {Socket, Second}
            end || {First, Second} <- Pieces],
    _ = sw_e2e:wait_line(Program, "served: reads /read"),
    _ = sw_e2e:wait_line(Program, "served: reads /wsgi/read"),
    ok = sw_e2e:send_signal(Program, "TERM"),
    ok = sw_e2e:eventually(fun() -> refuses(Node) end),
    timer:sleep(200),  % the others have gone by now
    [begin
         ok = gen_tcp:send(Socket, Second),
         [Top, Told] = binary:split(all_of(Socket, <<>>), <<"\r\n\r\n">>),
         ?assertMatch(<<"HTTP/1.1 200 ", _/binary>>, Top),
         ?assertNotEqual(nomatch, binary:match(Top, <<"connection: close">>)),
         ?assertEqual(<<"300000">>, Told),
         ok = gen_tcp:close(Socket)
     end || {Socket, Second} <- Open],
    ?assertEqual(0, sw_e2e:await_exit(Program)).

a_request_that_never_ends_is_cut_off_when_the_drain_is_over(Config) ->
    Node = #{program := Program} = serve(Config, ["serve", "served:app", "--drain-timeout", "1"]),
    Asked = asking(Node, "/forever"),
    _ = sw_e2e:wait_line(Program, "served: waiting"),
    ok = sw_e2e:send_signal(Program, "TERM"),
    ?assertEqual(closed, value(Asked)),
    ?assertEqual(0, sw_e2e:await_exit(Program)),
    ?assertMatch({match, _}, re:run(sw_e2e:output(Program), "stopping with 1 requests")).

a_stuck_thread_of_an_application_does_not_keep_the_program(Config) ->
    Node = #{program := Program} = serve(Config, ["serve", "served:wsgi", "--drain-timeout", "1"]),
    Asked = asking(Node, "/stuck"),
    _ = sw_e2e:wait_line(Program, "served: stuck"),
    ok = sw_e2e:send_signal(Program, "TERM"),
    ?assertEqual(0, sw_e2e:await_exit(Program)),
    ?assertEqual(closed, value(Asked)).

a_handler_that_blocks_the_loop_does_not_keep_the_program(Config) ->
    Node = #{program := Program} = serve(Config, ["serve", "served:app", "--drain-timeout", "1"]),
    Asked = asking(Node, "/blocking"),
    _ = sw_e2e:wait_line(Program, "served: blocking"),
    ok = sw_e2e:send_signal(Program, "TERM"),
    ?assertEqual(0, sw_e2e:await_exit(Program)),
    ?assertEqual(closed, value(Asked)),
    ?assertMatch({match, _}, re:run(sw_e2e:output(Program), "something blocks the event loop")).

sigterm_before_it_serves_ends_it_with_0(Config) ->
    Gate = filename:join(proplists:get_value(directory, Config), "gate"),
    ok = file:write_file(Gate, ""),
    #{program := Program} = serve_now(Config, ["serve", "served:app"], [{"SERVED_WAITS_WHILE", Gate}]),
    _ = sw_e2e:wait_line(Program, "served: starting"),
    ok = sw_e2e:send_signal(Program, "TERM"),
    ?assertEqual(0, sw_e2e:await_exit(Program)),
    ?assertEqual(nomatch, re:run(sw_e2e:output(Program), "Traceback|never retrieved")).

%% --- what cannot start --------------------------------------------------------------------------

fails(Config, Arguments, Environment, Expected) ->
    {1, <<>>, Errors} = sw_e2e:run(sw_e2e:sidewinder(), line(Config, Arguments) ++ ["--log-level", "off"],
                                   environment(Config, Environment)),
    ?assertEqual([Expected], lines(Errors)).

an_application_that_cannot_be_had_is_one_line_and_exit_code_1(Config) ->
    fails(Config, ["serve", "nowhere:app"], [], <<"sidewinder: serve: 'nowhere:app': there is no module nowhere">>),
    fails(Config, ["serve", "served:nothing"], [], <<"sidewinder: serve: 'served:nothing': served has no nothing">>),
    fails(Config, ["serve", "--mount", "/x=served:nothing"], [],
          <<"sidewinder: mount: 'served:nothing': served has no nothing">>),
    fails(Config, ["serve", "served:gate"], [],
          <<"sidewinder: serve: 'served:gate' cannot be called, so it is no application">>),
    fails(Config, ["serve"], [], <<"sidewinder: serve: an application is needed: sidewinder serve MODULE:ATTRIBUTE">>).

an_application_that_does_not_start_is_one_line_and_exit_code_1(Config) ->
    fails(Config, ["serve", "served:app"], [{"SERVED_FAILS", "no database"}],
          <<"sidewinder: lifespan: 'served:app' did not start: no database">>).

an_address_that_cannot_be_had_is_one_line_and_exit_code_1(Config) ->
    {ok, Socket} = gen_tcp:listen(0, [{ip, {127, 0, 0, 1}}]),
    {ok, Number} = inet:port(Socket),
    Port = integer_to_binary(Number),
    fails(Config, ["serve", "served:app", "--bind", "127.0.0.1:" ++ integer_to_list(Number)], [],
          <<"sidewinder: bind: cannot listen on '127.0.0.1:", Port/binary, "': Address already in use">>),
    ok = gen_tcp:close(Socket),
    fails(Config, ["serve", "served:app", "--bind", "8000"], [],
          <<"sidewinder: bind: '8000' is neither HOST:PORT nor unix:PATH">>).

%% --- what is told -------------------------------------------------------------------------------

an_error_in_an_application_is_logged_and_answered_with_500(Config) ->
    Node = #{program := Program} = serve(Config, ["serve", "served:app", "--access-log", "on"]),
    ?assertMatch({500, _}, get(Node, "/broken")),
    ?assertMatch({200, _}, get(Node, "/where?x")),
    _ = sw_e2e:wait_line(Program, "ValueError: broken on purpose"),
    _ = sw_e2e:wait_line(Program, "erlang_web.access: 127.0.0.1 - - .* \"GET /where\\?x HTTP/1.1\" 200 "),
    stop(Node).

its_counters_are_metrics_and_documented(Config) ->
    Node = #{admin := Admin, program := Program} = serve(Config, ["serve", "served:app"]),
    [{200, _} = get(Node, "/where") || _ <- [1, 2, 3]],
    Asked = asking(Node, "/forever"),
    _ = sw_e2e:wait_line(Program, "served: waiting"),
    Value = fun(Name) ->
        {200, Text} = get(Admin, "/metrics"),
        {match, [Found]} = re:run(Text, ["^", Name, " ([0-9.e+]+)$"], [multiline, {capture, [1], binary}]),
        Found
    end,
    ok = sw_e2e:eventually(fun() -> Value("sidewinder_web_requests_total") =:= <<"4">> end),
    ?assertEqual([<<"1">>, <<"1">>, <<"0">>],
                 [Value(Name) || Name <- ["sidewinder_web_requests", "sidewinder_web_connections", "sidewinder_web_websockets"]]),
    ?assertNotEqual(<<"0">>, Value("sidewinder_web_bytes_total\\{dir=\"in\"\\}")),
    {200, Text} = get(Admin, "/metrics"),
    {match, Families} = re:run(Text, "^# TYPE (sidewinder_web_[a-z_]+) ", [global, multiline, {capture, [1], binary}]),
    {ok, Page} = file:read_file(filename:join(sw_e2e:root(), "docs/operations.md")),
    {match, Told} = re:run(Page, "`(sidewinder_web_[a-z_]+)[`{]", [global, {capture, [1], binary}]),
    ?assertEqual(lists:sort(Families), lists:usort(Told)),
    {_, Monitor} = Asked,
    demonitor(Monitor, [flush]),
    sw_e2e:kill(Program).
