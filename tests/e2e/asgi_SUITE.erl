%% Applications behind a web server on the BEAM: examples/asgi/front.erl hands what clients send over
%% sockets to py_asgi, and that to tests/e2e/python/asgi_app.py on real nodes.
%%
%%   gen_tcp ──▶ front ── py_asgi ──▶ node (or a pool of them)
-module(asgi_SUITE).

-include_lib("stdlib/include/assert.hrl").

-export([all/0, suite/0, init_per_suite/1, end_per_suite/1, init_per_testcase/2, end_per_testcase/2]).
-compile([export_all, nowarn_export_all]).

suite() -> [{timetrap, {seconds, 120}}].

all() ->
    [a_small_request_is_answered_by_one_call,
     the_scope_is_what_the_specification_says,
     a_path_that_is_no_utf8_does_no_harm,
     bodies_come_back_byte_for_byte,
     bodies_stream_up_and_down_at_once,
     chunked_bodies_are_read_to_their_end,
     a_slow_reader_holds_the_application_back,
     a_slow_application_holds_the_client_back,
     a_slow_writer_is_waited_for,
     an_answer_without_a_body_has_none,
     headers_are_handed_on_as_they_are,
     a_connection_carries_one_request_after_the_other,
     an_application_that_does_not_read_answers_all_the_same,
     an_answer_in_pieces_is_not_held_back,
     an_answer_is_not_held_up_by_what_the_application_does_afterwards,
     a_client_that_leaves_is_a_disconnect_and_then_a_cancellation,
     a_client_that_leaves_an_answer_half_way_is_one_too,
     a_stream_that_is_closed_is_a_disconnect,
     a_request_that_takes_too_long_is_given_up,
     an_application_that_fails_is_an_error_of_the_server,
     an_application_that_fails_half_way_cuts_its_answer_off,
     an_application_that_is_not_there_is_tried_again,
     a_framework_gives_the_answers_that_it_gives_under_uvicorn,
     handlers_call_erlang,
     wsgi_applications_answer_too,
     nothing_is_left_in_the_mailbox,
     websockets_echo_text_and_bytes_apart,
     websockets_carry_a_thousand_messages_in_order,
     websockets_close_with_codes_both_ways,
     websockets_are_refused_with_an_answer,
     a_websocket_whose_application_fails_closes_with_1011,
     a_client_that_leaves_a_websocket_is_a_disconnect,
     a_websocket_nobody_reads_holds_the_application_back,
     a_deaf_websocket_is_cancelled_when_its_client_leaves,
     a_pool_spreads_requests_over_its_nodes,
     a_node_that_is_lost_under_load_costs_errors_for_less_than_a_second,
     safe_requests_move_on_from_a_node_that_is_lost,
     websockets_of_a_node_that_is_lost_close_with_1012,
     a_node_that_is_stopped_refuses_and_runs_the_shutdown_of_its_applications,
     an_answer_that_was_asked_for_before_the_node_was_stopped_comes_whole,
     a_node_with_an_allow_list_serves_when_the_gateway_is_on_it,
     a_node_with_worker_processes_serves_what_needs_no_stream,
     cowboy_serves_through_its_handler,
     a_plug_hands_requests_on,
     what_is_said_on_one_node_of_the_chat_is_heard_on_the_other,
     the_reasons_have_their_statuses].

init_per_suite(Config0) ->
    Config = [{context, Context} | _] = sw_e2e:setup(Config0),
    Directory = maps:get(directory, Context),
    {ok, front} = compile:file(filename:join(sw_e2e:root(), "examples/asgi/front.erl"), [{outdir, Directory}]),
    Node = start_node(Context),
    Beam = application_beam(Context, [Node]),
    Port = front(Beam, Node),
    [{node, Node}, {beam, Beam}, {port, Port} | Config].

start_node(Context) ->
    sw_e2e:start_node(Context, #{args => ["--import", "asgi_app"]}).

%% A BEAM that runs the application and knows the front.
application_beam(Context, Nodes) ->
    application_beam(Context, Nodes, []).

application_beam(Context, Nodes, Paths) ->
    Beam = sw_e2e:start_beam(Context, #{args => ["-pa", filename:dirname(code:which(py)),
                                                 maps:get(directory, Context) | Paths]}),
    ok = sw_e2e:on(Beam, fun() ->
        {ok, _} = application:ensure_all_started(sidewinder),
        [ok = py_node:connect(Name) || #{name := Name} <- Nodes],
        py:register_function(upper, fun([Text]) -> string:uppercase(Text) end)
    end),
    Beam.

front(Beam, #{name := Name}) ->
    front(Beam, Name, #{}).

front(Beam, Target, Options) ->
    sw_e2e:on(Beam, fun() ->
        {ok, Front} = front:start(#{target => Target, app => <<"asgi_app:app">>, options => Options,
                                    mounts => [{<<"/inner">>, <<"asgi_app:app">>},
                                               {<<"/wsgi">>, <<"asgi_app:plain_wsgi">>},
                                               {<<"/nowhere">>, <<"asgi_app:nothing">>},
                                               {<<>>, <<"asgi_app:app">>}]}),
        front:port(Front)
    end).

end_per_suite(Config) ->
    Program = maps:get(program, proplists:get_value(node, Config)),
    ct:log("~ts", [sw_e2e:output(Program)]),
    true = sw_e2e:alive(Program),
    ok = sw_e2e:stop_beam(proplists:get_value(beam, Config)),
    ok = sw_e2e:stop_node(proplists:get_value(node, Config)),
    ok = sw_e2e:teardown(Config).

init_per_testcase(_, Config) ->
    [{before, left(Config)} | Config].

%% Nothing runs or waits on the node or in the BEAM that did not before.
end_per_testcase(_, Config) ->
    Before = proplists:get_value(before, Config),
    ok = sw_e2e:eventually(fun() -> left(Config) =:= Before orelse {Before, left(Config)} end).

left(Config) ->
    #{name := Name} = proplists:get_value(node, Config),
    Node = maps:with([<<"tasks">>, <<"channels">>, <<"asking">>, <<"busy">>],
                     sw_e2e:stats(proplists:get_value(beam, Config), Name)),
    Node#{sockets => on(Config, fun() ->
        length([P || P <- processes(), {_, {py_asgi_socket, _, _}} <- [process_info(P, initial_call)]])
    end)}.

on(Config, Function) ->
    sw_e2e:on(proplists:get_value(beam, Config), Function).

python(Config, Function, Args) ->
    #{name := Name} = proplists:get_value(node, Config),
    {ok, Value} = on(Config, fun() -> py:call(Name, asgi_app, Function, Args) end),
    Value.

happened(Config) -> python(Config, happened, []).

eventually_happened(Config, What) ->
    ok = sw_e2e:eventually(fun() -> lists:member(What, happened(Config)) orelse happened(Config) end).

%% --- a client -----------------------------------------------------------------------------------

connect(Config) ->
    connect(Config, []).

connect(Config, Options) ->
    {ok, Socket} = gen_tcp:connect("127.0.0.1", proplists:get_value(port, Config),
                                   [binary, {active, false}, {nodelay, true} | Options]),
    Socket.

%% On a connection of its own: status, headers, body.
get(Config, Target) ->
    request(Config, "GET", Target, [], <<>>).

request(Config, Method, Target, Headers, Body) ->
    Socket = connect(Config),
    ok = send_request(Socket, Method, Target, [{"content-length", integer_to_list(iolist_size(Body))} | Headers], Body),
    Answer = answer(Socket, Method),
    ok = gen_tcp:close(Socket),
    Answer.

send_request(Socket, Method, Target, Headers, Body) ->
    gen_tcp:send(Socket, [Method, " ", Target, " HTTP/1.1\r\nHost: front\r\n",
                          [[Name, ": ", Value, "\r\n"] || {Name, Value} <- Headers], "\r\n", Body]).

answer(Socket, Method) ->
    {Status, Headers} = head(Socket),
    {Status, Headers, body(Socket, Method, Status, Headers)}.

head(Socket) ->
    ok = inet:setopts(Socket, [{packet, http_bin}]),
    {ok, {http_response, {1, 1}, Status, _}} = gen_tcp:recv(Socket, 0, 30000),
    Headers = headers(Socket),
    ok = inet:setopts(Socket, [{packet, raw}]),
    {Status, Headers}.

headers(Socket) ->
    case gen_tcp:recv(Socket, 0, 10000) of
        {ok, {http_header, _, Name, _, Value}} when is_atom(Name) ->
            [{string:lowercase(atom_to_binary(Name)), Value} | headers(Socket)];
        {ok, {http_header, _, Name, _, Value}} ->
            [{string:lowercase(Name), Value} | headers(Socket)];
        {ok, http_eoh} ->
            []
    end.

body(_, "HEAD", _, _) -> <<>>;
body(_, _, Status, _) when Status =:= 204; Status =:= 304 -> <<>>;
body(Socket, _, _, Headers) ->
    case proplists:get_value(<<"content-length">>, Headers) of
        undefined ->
            <<"chunked">> = proplists:get_value(<<"transfer-encoding">>, Headers),
            iolist_to_binary(chunks(Socket));
        <<"0">> ->
            <<>>;
        Length ->
            {ok, Body} = gen_tcp:recv(Socket, binary_to_integer(Length), 60000),
            Body
    end.

chunks(Socket) ->
    case chunk(Socket) of
        <<>> -> [];
        {error, Reason} -> [{error, Reason}];
        Data -> [Data | chunks(Socket)]
    end.

chunk(Socket) ->
    ok = inet:setopts(Socket, [{packet, line}]),
    case gen_tcp:recv(Socket, 0, 60000) of
        {ok, Line} ->
            ok = inet:setopts(Socket, [{packet, raw}]),
            Size = binary_to_integer(string:trim(Line), 16),
            {ok, Data} = gen_tcp:recv(Socket, Size + 2, 60000),
            binary:part(Data, 0, Size);
        {error, Reason} ->
            {error, Reason}
    end.

sha(Data) ->
    string:lowercase(binary:encode_hex(crypto:hash(sha256, Data))).

%% All bytes there are, so many of them.
bytes(Size) ->
    Piece = << <<Byte>> || Byte <- lists:seq(0, 255) >>,
    binary:part(binary:copy(Piece, Size div 256 + 1), 0, Size).

%% --- requests and answers -----------------------------------------------------------------------

a_small_request_is_answered_by_one_call(Config) ->
    ?assertMatch({200, _, <<"hello">>}, get(Config, "/hello")),
    #{name := Name} = proplists:get_value(node, Config),
    Sent = on(Config, fun() ->
        {_, Link, _, _} = py_link:find(Name),
        {_, Channels} = py_channel_link:ensure(Name),
        _ = [1 = erlang:trace(Each, true, [send]) || Each <- [Link, Channels, self()]],
        {ok, 200, _, <<"hello">>} = py_asgi:request(Name, <<"asgi_app:app">>, #{path => <<"/hello">>}),
        _ = [1 = erlang:trace(Each, false, [send]) || Each <- [Link, Channels, self()]],
        Traced = fun All() -> receive {trace, _, send, Message, To} -> [{Message, To} | All()] after 0 -> [] end end,
        Sent = Traced(),
        {messages, []} = process_info(self(), messages),
        Sent
    end),
    ?assertMatch([[{call, _, 'erlang_web._gateway', request, _, _, _}]],
                 [Items || {{'$py_batch', Items}, {py, To}} <- Sent, To =:= Name]),
    ?assertEqual({2, Sent}, {length(Sent), Sent}).

the_scope_is_what_the_specification_says(Config) ->
    Headers = [{"X-Twice", "1"}, {"x-twice", "2"}, {"X-Bytes", <<16#e9, 16#ff>>}],
    {200, _, Body} = request(Config, "POST", "/inner/a%20b/%C3%A9?x=%20&y", Headers, <<"1">>),
    Text = binary_to_list(Body),
    Has = fun(What) -> ?assertMatch({_, true, _}, {What, string:find(Text, What) =/= nomatch, Text}) end,
    [Has(What) || What <- [
        "\"type\": \"http\"", "\"method\": \"POST\"", "\"http_version\": \"1.1\"", "\"scheme\": \"http\"",
        "\"path\": \"/inner/a b/\\u00e9\"", "\"raw_path\": \"/inner/a%20b/%C3%A9\"", "\"root_path\": \"/inner\"",
        "\"query_string\": \"x=%20&y\"", "[\"x-twice\", \"1\"], [\"x-twice\", \"2\"], [\"x-bytes\", \"\\u00e9\\u00ff\"]",
        "\"kinds\": [\"list\", \"bytes\", \"bytes\"]", "\"asgi\": {\"spec_version\": \"2.4\", \"version\": \"3.0\"}",
        "\"client\": [\"127.0.0.1\", ", "\"server\": [\"127.0.0.1\", ", "\"extensions\": {}",
        "\"state\": {\"started\": 1}"]].

a_path_that_is_no_utf8_does_no_harm(Config) ->
    ?assertMatch({200, _, _}, get(Config, "/%ff%fe")).

bodies_come_back_byte_for_byte(Config) ->
    Text = unicode:characters_to_binary("žluťoučký kůň 馬 🐎"),
    [begin
         {Status, _, Body} = request(Config, "POST", "/echo", [], Sent),
         ?assertEqual({byte_size(Sent), 200, true}, {byte_size(Sent), Status, Body =:= Sent})
     end || Sent <- [<<>>, <<0>>, bytes(256), Text, bytes(65535), bytes(65536), bytes(65537), bytes(10_000_000)]].

bodies_stream_up_and_down_at_once(Config) ->
    Socket = connect(Config),
    Sent = bytes(10_000_000),
    Self = self(),
    Sending = spawn_link(fun() ->
        ok = send_request(Socket, "POST", "/echo_in_pieces", [{"content-length", "10000000"}], Sent),
        Self ! {self(), sent}
    end),
    {200, _, Body} = answer(Socket, "POST"),
    receive {Sending, sent} -> ok end,
    ?assert(Body =:= Sent),
    ok = gen_tcp:close(Socket).

chunked_bodies_are_read_to_their_end(Config) ->
    Socket = connect(Config),
    Parts = [bytes(N) || N <- [1, 255, 65536, 100_000]],
    Chunked = [[[integer_to_list(byte_size(Part), 16), "\r\n", Part, "\r\n"] || Part <- Parts], "0\r\n\r\n"],
    ok = send_request(Socket, "POST", "/digest", [{"transfer-encoding", "chunked"}], Chunked),
    Whole = iolist_to_binary(Parts),
    Digest = <<"165792 ", (sha(Whole))/binary>>,
    ?assertMatch({200, _, Digest}, answer(Socket, "POST")),
    ok = send_request(Socket, "POST", "/digest", [{"transfer-encoding", "chunked"}], "0\r\n\r\n"),
    Empty = <<"0 ", (sha(<<>>))/binary>>,
    ?assertMatch({200, _, Empty}, answer(Socket, "POST")),
    ok = gen_tcp:close(Socket).

%% A hundred megabytes are wanted and nobody reads them: what is on its way stays small.
a_slow_reader_holds_the_application_back(Config) ->
    Socket = connect(Config, [{recbuf, 65536}]),
    Before = on(Config, fun() -> erlang:memory(binary) + erlang:memory(processes) end),
    ok = send_request(Socket, "GET", "/pieces?number=1600", [], <<>>),
    {200, _} = head(Socket),
    ok = sw_e2e:eventually(fun() -> settled(fun() -> python(Config, count, [<<"pieces">>]) end) end),
    Produced = python(Config, count, [<<"pieces">>]),
    Waiting = on(Config, fun() -> erlang:memory(binary) + erlang:memory(processes) end) - Before,
    ?assertMatch({P, W} when P < 160 andalso W < 8_000_000, {Produced, Waiting}),
    Body = iolist_to_binary(chunks(Socket)),
    ?assertEqual({1600 * 65536, sha(binary:copy(bytes(65536), 1600))}, {byte_size(Body), sha(Body)}),
    ?assertEqual(1600, python(Config, count, [<<"pieces">>])),
    ok = gen_tcp:close(Socket).

%% The same number twice, half a second apart.
settled(Function) ->
    First = Function(),
    timer:sleep(500),
    First > 0 andalso Function() =:= First.

a_slow_application_holds_the_client_back(Config) ->
    Socket = connect(Config, [{sndbuf, 65536}]),
    Size = 50_000_000,
    Before = on(Config, fun() -> erlang:memory(binary) + erlang:memory(processes) end),
    ok = send_request(Socket, "POST", "/digest?delay=0.01", [{"content-length", integer_to_list(Size)}], <<>>),
    Self = self(),
    Body = bytes(Size),
    Sending = spawn_link(fun() -> ok = gen_tcp:send(Socket, Body), Self ! {self(), sent} end),
    timer:sleep(1500),
    Waiting = on(Config, fun() -> erlang:memory(binary) + erlang:memory(processes) end) - Before,
    ?assertMatch({R, W} when R > 0 andalso R < 20_000_000 andalso W < 8_000_000,
                 {python(Config, count, [<<"digested">>]), Waiting}),
    receive {Sending, sent} -> ok after 60000 -> error(never_sent) end,
    Digest = <<"50000000 ", (sha(Body))/binary>>,
    ?assertMatch({200, _, Digest}, answer(Socket, "POST")),
    ok = gen_tcp:close(Socket).

a_slow_writer_is_waited_for(Config) ->
    Socket = connect(Config),
    ok = send_request(Socket, "POST", "/digest", [{"content-length", "100000"}], <<>>),
    Body = bytes(100_000),
    [begin timer:sleep(50), ok = gen_tcp:send(Socket, binary:part(Body, N * 10_000, 10_000)) end || N <- lists:seq(0, 9)],
    Digest = <<"100000 ", (sha(Body))/binary>>,
    ?assertMatch({200, _, Digest}, answer(Socket, "POST")),
    ok = gen_tcp:close(Socket).

an_answer_without_a_body_has_none(Config) ->
    Socket = connect(Config),
    [begin
         ok = send_request(Socket, Method, Target, [], <<>>),
         {Status, Headers, <<>>} = answer(Socket, Method),
         ?assertEqual(Expected, {Status, proplists:get_value(Name, Headers)})
     end || {Method, Target, Expected, Name} <- [
         {"HEAD", "/length", {200, <<"12">>}, <<"content-length">>},
         {"HEAD", "/pieces?number=10", {200, undefined}, <<"content-length">>},
         {"GET", "/no_content", {204, <<"none">>}, <<"x-kind">>},
         {"GET", "/no_content", {204, undefined}, <<"transfer-encoding">>},
         {"GET", "/not_modified", {304, <<"\"1\"">>}, <<"etag">>}]],
    ok = send_request(Socket, "GET", "/length", [], <<>>),
    ?assertMatch({200, _, <<"twelve bytes">>}, answer(Socket, "GET")),
    ok = gen_tcp:close(Socket).

headers_are_handed_on_as_they_are(Config) ->
    {200, Headers, <<>>} = get(Config, "/many_headers"),
    ?assertEqual([<<"a=1">>, <<"b=2">>], proplists:get_all_values(<<"set-cookie">>, Headers)),
    ?assertEqual(<<16#e9, 16#ff>>, proplists:get_value(<<"x-bytes">>, Headers)),
    ?assertMatch({500, _, _}, get(Config, "/smuggle")).

a_connection_carries_one_request_after_the_other(Config) ->
    Socket = connect(Config),
    ok = gen_tcp:send(Socket, ["GET /hello HTTP/1.1\r\nHost: x\r\n\r\n",
                               "POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc",
                               "GET /length HTTP/1.1\r\nHost: x\r\n\r\n"]),
    ?assertMatch({200, _, <<"hello">>}, answer(Socket, "GET")),
    ?assertMatch({200, _, <<"abc">>}, answer(Socket, "POST")),
    ?assertMatch({200, _, <<"twelve bytes">>}, answer(Socket, "GET")),
    ok = gen_tcp:close(Socket).

an_application_that_does_not_read_answers_all_the_same(Config) ->
    Socket = connect(Config),
    ok = send_request(Socket, "POST", "/nobody_reads", [{"content-length", "1000000000"}, {"expect", "100-continue"}], <<>>),
    ?assertMatch({413, _, <<"no thanks">>}, answer(Socket, "POST")),
    ?assertEqual({error, closed}, gen_tcp:recv(Socket, 0, 5000)),
    ok = gen_tcp:close(Socket).

an_answer_in_pieces_is_not_held_back(Config) ->
    Socket = connect(Config),
    ok = send_request(Socket, "GET", "/ticks", [], <<>>),
    {200, _} = head(Socket),
    [?assertEqual(iolist_to_binary(["tick ", integer_to_list(N), "\n"]), chunk(Socket)) || N <- lists:seq(1, 5)],
    ok = gen_tcp:close(Socket),
    ?assertMatch({200, _, <<"one two">>}, get(Config, "/in_two")).

an_answer_is_not_held_up_by_what_the_application_does_afterwards(Config) ->
    ok = sw_e2e:within(300, fun() -> ?assertMatch({200, _, <<"done">>}, get(Config, "/background")) end),
    eventually_happened(Config, <<"background done">>).

a_client_that_leaves_is_a_disconnect_and_then_a_cancellation(Config) ->
    Seen = length([E || <<"hold", _/binary>> = E <- happened(Config)]),
    Socket = connect(Config),
    ok = send_request(Socket, "GET", "/hold", [], <<>>),
    ok = sw_e2e:eventually(fun() -> holds(Config, Seen) =:= [<<"hold begun">>] end),
    ok = gen_tcp:close(Socket),
    ok = sw_e2e:eventually(fun() ->
        [<<"hold begun">>, <<"hold http.disconnect">>, <<"hold cancelled">>] =:= holds(Config, Seen)
            orelse holds(Config, Seen)
    end).

holds(Config, Seen) ->
    lists:nthtail(Seen, [E || <<"hold", _/binary>> = E <- happened(Config)]).

a_client_that_leaves_an_answer_half_way_is_one_too(Config) ->
    Seen = length([E || <<"hold", _/binary>> = E <- happened(Config)]),
    Socket = connect(Config),
    ok = send_request(Socket, "GET", "/hold?how=begun", [], <<>>),
    {200, _} = head(Socket),
    ?assertEqual(<<"begun">>, chunk(Socket)),
    ok = sw_e2e:eventually(fun() -> holds(Config, Seen) =:= [<<"hold begun">>] end),
    ok = gen_tcp:close(Socket),
    ok = sw_e2e:eventually(fun() -> lists:last(holds(Config, Seen)) =:= <<"hold cancelled">> end),
    ?assert(lists:member(<<"hold http.disconnect">>, holds(Config, Seen))),
    Pieces = connect(Config),
    ok = send_request(Pieces, "GET", "/pieces?number=100000", [], <<>>),
    {200, _} = head(Pieces),
    ok = gen_tcp:close(Pieces),
    eventually_happened(Config, <<"pieces ClientGone">>).

a_stream_that_is_closed_is_a_disconnect(Config) ->
    #{name := Name} = proplists:get_value(node, Config),
    Seen = length([E || <<"hold", _/binary>> = E <- happened(Config)]),
    ok = on(Config, fun() ->
        {ok, 200, [], {stream, Stream}} =
            py_asgi:request(Name, <<"asgi_app:app">>, #{path => <<"/hold">>, query_string => <<"how=begun">>}),
        {more, <<"begun">>, Stream1} = py_asgi:read(Stream),
        {error, timeout} = py_asgi:read(Stream1, 100),
        ok = py_asgi:close(Stream1),
        {messages, []} = process_info(self(), messages),
        ok
    end),
    ok = sw_e2e:eventually(fun() -> [<<"hold cancelled">>] =:= [E || E <- holds(Config, Seen), E =:= <<"hold cancelled">>] end).

a_request_that_takes_too_long_is_given_up(Config) ->
    #{name := Name} = proplists:get_value(node, Config),
    Seen = length([E || <<"hold", _/binary>> = E <- happened(Config)]),
    ?assertEqual({error, timeout}, on(Config, fun() ->
        py_asgi:request(Name, <<"asgi_app:app">>, #{path => <<"/hold">>}, #{timeout => 200})
    end)),
    ok = sw_e2e:eventually(fun() ->
        [<<"hold begun">>, <<"hold http.disconnect">>, <<"hold cancelled">>] =:= holds(Config, Seen)
    end).

an_application_that_fails_is_an_error_of_the_server(Config) ->
    ?assertMatch({500, _, <<"Internal Server Error">>}, get(Config, "/boom")),
    ?assertMatch({500, _, <<"Internal Server Error">>}, get(Config, "/silent")),
    Log = sw_e2e:output(maps:get(program, proplists:get_value(node, Config))),
    ?assertNotEqual(nomatch, binary:match(Log, <<"LookupError: boom">>)).

an_application_that_fails_half_way_cuts_its_answer_off(Config) ->
    Socket = connect(Config),
    ok = send_request(Socket, "GET", "/boom_late", [], <<>>),
    {200, _} = head(Socket),
    ?assertEqual([<<"so far">>, {error, closed}], chunks(Socket)),
    ok = gen_tcp:close(Socket).

an_application_that_is_not_there_is_tried_again(Config) ->
    #{name := Name} = proplists:get_value(node, Config),
    Ask = fun() -> py_asgi:request(Name, <<"asgi_app:nothing">>, #{path => <<"/">>}) end,
    [?assertMatch({error, {python, <<"erlang_web._apps.AppError">>, _, _}}, on(Config, Ask)) || _ <- [1, 2]],
    ?assertMatch({500, _, _}, get(Config, "/nowhere/at/all")).

%% The same application twice: status, headers and every byte. How a body's end is told is the server's affair:
%% this one knows the length of what is over at once.
a_framework_gives_the_answers_that_it_gives_under_uvicorn(Config) ->
    Context = sw_e2e:context(Config),
    Venv = filename:join(sw_e2e:root(), "build/test-venv"),
    Node = #{name := Name} = sw_e2e:start_node(Context, #{args => ["--venv", Venv]}),
    Beam = application_beam(Context, [Node]),
    Behind = sw_e2e:on(Beam, fun() ->
        {ok, Front} = front:start(#{target => Name, app => <<"asgi_framework:app">>}),
        front:port(Front)
    end),
    Direct = list_to_integer(sw_e2e:free_port()),
    % It ends with its standard input, so with this test.
    Script = "\"$0\" \"$@\" & cat >/dev/null; kill -9 $!; wait $!",
    Uvicorn = sw_e2e:start_program("/bin/sh",
                                   ["-c", Script, filename:join(Venv, "bin/python"), "-m", "uvicorn",
                                    "asgi_framework:app", "--port", integer_to_list(Direct)],
                                   [{"PYTHONPATH", filename:join(sw_e2e:root(), "tests/e2e/python")}]),
    _ = sw_e2e:wait_line(Uvicorn, "Uvicorn running"),
    Requests = [{"GET", "/items/7?q=%C3%A9", [], <<>>}, {"GET", "/items/x", [], <<>>}, {"GET", "/sync", [], <<>>},
                {"GET", "/cookies", [], <<>>}, {"GET", "/stream?pieces=0", [], <<>>}, {"GET", "/stream?pieces=3", [], <<>>},
                {"GET", "/stream?pieces=3000", [], <<>>}, {"POST", "/echo", [], <<>>}, {"POST", "/echo", [], bytes(1000)},
                {"POST", "/echo", [], bytes(3_000_000)}, {"GET", "/long", [], <<>>},
                {"GET", "/long", [{"accept-encoding", "gzip"}], <<>>},
                {"GET", "/stream?pieces=100", [{"accept-encoding", "gzip"}], <<>>},
                {"GET", "/away", [], <<>>}, {"GET", "/teapot", [], <<>>}, {"GET", "/nowhere", [], <<>>},
                {"HEAD", "/items/1", [], <<>>}, {"DELETE", "/items/1", [], <<>>}, {"GET", "/later", [], <<>>},
                {"GET", "/openapi.json", [], <<>>}],
    [begin
         Own = [<<"date">>, <<"server">>, <<"connection">>, <<"transfer-encoding">>, <<"content-length">>],
         Ask = fun(Port) ->
             {Status, Got, Answer} = request([{port, Port}], Method, Target, Headers, Body),
             {Status, [H || {K, _} = H <- Got, not lists:member(K, Own)], Answer}
         end,
         ?assertEqual({Method, Target, Ask(Direct)}, {Method, Target, Ask(Behind)})
     end || {Method, Target, Headers, Body} <- Requests],
    Uvicorn ! close,
    ok = sw_e2e:stop_beam(Beam),
    ok = sw_e2e:stop_node(Node).

handlers_call_erlang(Config) ->
    ?assertMatch({200, _, <<"LOUDER">>}, get(Config, "/upper?text=louder")).

wsgi_applications_answer_too(Config) ->
    ?assertMatch({200, _, <<"GET /a b ">>}, get(Config, "/wsgi/a%20b")),
    Sent = bytes(1_000_000),
    Answer = <<"PUT / ", Sent/binary>>,
    {200, _, Body} = request(Config, "PUT", "/wsgi/", [], Sent),
    ?assert(Body =:= Answer).

nothing_is_left_in_the_mailbox(Config) ->
    #{name := Name} = proplists:get_value(node, Config),
    Ask = fun(Path, Query, Body) ->
        py_asgi:request(Name, <<"asgi_app:app">>, #{path => Path, query_string => Query, method => <<"POST">>, body => Body})
    end,
    Left = on(Config, fun() ->
        All = fun Read({more, _, Stream}) -> Read(py_asgi:read(Stream)); Read({done, _}) -> ok; Read({error, Why}) -> Why end,
        {ok, 200, _, _} = Ask(<<"/echo">>, <<>>, <<"small">>),
        {ok, 200, _, {stream, S1}} = Ask(<<"/echo">>, <<>>, binary:copy(<<"x">>, 1_000_000)),
        ok = All(py_asgi:read(S1)),
        {ok, 200, _, {stream, S2}} = Ask(<<"/in_two">>, <<>>, <<>>),
        ok = All(py_asgi:read(S2)),
        {ok, 200, _, {stream, S3}} = Ask(<<"/boom_late">>, <<>>, <<>>),
        aborted = All(py_asgi:read(S3)),
        {ok, 200, _, {stream, S4}} = Ask(<<"/pieces">>, <<"number=1000">>, <<>>),
        ok = py_asgi:close(S4),
        {ok, 200, _, _} = Ask(<<"/background">>, <<>>, <<>>),
        {ok, Ws, _} = py_asgi:websocket(Name, <<"asgi_app:app">>, #{path => <<"/ws/echo">>}),
        ok = py_asgi:next(Ws),
        ok = py_asgi:close(Ws),
        timer:sleep(700),
        element(2, process_info(self(), messages))
    end),
    ?assertEqual([], Left).

%% --- WebSockets ---------------------------------------------------------------------------------

open(Config, Target) ->
    open(Config, Target, []).

open(Config, Target, Headers) ->
    Socket = connect(Config),
    ok = send_request(Socket, "GET", Target, [{"upgrade", "websocket"}, {"connection", "Upgrade"},
                                              {"sec-websocket-version", "13"},
                                              {"sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="} | Headers], <<>>),
    {Socket, head(Socket)}.

opened(Config, Target) ->
    {Socket, {101, _}} = open(Config, Target),
    Socket.

frame(Socket, Code, Data) ->
    Mask = <<1, 2, 3, 4>>,
    Size = case byte_size(Data) of
        Small when Small < 126 -> <<1:1, Small:7>>;
        Medium when Medium < 65536 -> <<1:1, 126:7, Medium:16>>;
        Large -> <<1:1, 127:7, Large:64>>
    end,
    Masked = crypto:exor(Data, binary:part(binary:copy(Mask, byte_size(Data) div 4 + 1), 0, byte_size(Data))),
    gen_tcp:send(Socket, [<<1:1, 0:3, Code:4>>, Size, Mask, Masked]).

frame(Socket) ->
    {ok, <<1:1, 0:3, Code:4, 0:1, Short:7>>} = gen_tcp:recv(Socket, 2, 10000),
    Size = case Short of
        126 -> {ok, <<S:16>>} = gen_tcp:recv(Socket, 2, 10000), S;
        127 -> {ok, <<S:64>>} = gen_tcp:recv(Socket, 8, 10000), S;
        _ -> Short
    end,
    {Code, case Size of 0 -> <<>>; _ -> {ok, Data} = gen_tcp:recv(Socket, Size, 10000), Data end}.

websockets_echo_text_and_bytes_apart(Config) ->
    {Socket, {101, Headers}} = open(Config, "/ws/echo", [{"sec-websocket-protocol", "first, second"}]),
    ?assertEqual([<<"s3pPLMBiTxaQ9kYGzzhZRbK+xOo=">>, <<"second">>, <<"yes">>],
                 [proplists:get_value(Name, Headers)
                  || Name <- [<<"sec-websocket-accept">>, <<"sec-websocket-protocol">>, <<"x-accepted">>]]),
    Text = unicode:characters_to_binary("žluťoučký 馬 🐎"),
    [begin ok = frame(Socket, Code, Data), ?assertEqual({Code, Data}, frame(Socket)) end
     || {Code, Data} <- [{1, Text}, {2, Text}, {1, <<>>}, {2, <<>>}, {2, bytes(256)}, {2, bytes(70_000)}, {2, bytes(1_000_000)}]],
    ok = frame(Socket, 9, <<"ping">>),
    ?assertEqual({10, <<"ping">>}, frame(Socket)),
    ok = frame(Socket, 8, <<1000:16>>),
    ?assertEqual({8, <<1000:16>>}, frame(Socket)),
    eventually_happened(Config, <<"ws 1000 ">>).

websockets_carry_a_thousand_messages_in_order(Config) ->
    Socket = opened(Config, "/ws/echo"),
    Messages = [integer_to_binary(N) || N <- lists:seq(1, 1000)],
    spawn_link(fun() -> [ok = frame(Socket, 1 + N rem 2, integer_to_binary(N)) || N <- lists:seq(1, 1000)] end),
    ?assertEqual([{1 + binary_to_integer(M) rem 2, M} || M <- Messages], [frame(Socket) || _ <- Messages]),
    Upper = opened(Config, "/ws/upper"),
    [begin ok = frame(Upper, 1, <<"abc">>), ?assertEqual({1, <<"ABC">>}, frame(Upper)) end || _ <- lists:seq(1, 100)],
    [ok = gen_tcp:close(S) || S <- [Socket, Upper]].

websockets_close_with_codes_both_ways(Config) ->
    Socket = opened(Config, "/ws/close?code=4001"),
    ?assertEqual({1, <<"good bye">>}, frame(Socket)),
    ?assertEqual({8, <<4001:16, "enough">>}, frame(Socket)),
    ok = gen_tcp:close(Socket),
    Other = opened(Config, "/ws/echo"),
    ok = frame(Other, 8, <<4002:16, "tired">>),
    ?assertEqual({8, <<4002:16, "tired">>}, frame(Other)),
    eventually_happened(Config, <<"ws 4002 tired">>).

websockets_are_refused_with_an_answer(Config) ->
    {First, {403, _}} = open(Config, "/ws/refuse"),
    {Second, {401, Headers}} = open(Config, "/ws/refuse/well"),
    ?assertEqual(<<"you">>, proplists:get_value(<<"x-why">>, Headers)),
    ?assertEqual({ok, <<"who are you?">>}, gen_tcp:recv(Second, 12, 5000)),
    [ok = gen_tcp:close(Socket) || Socket <- [First, Second]].

a_websocket_whose_application_fails_closes_with_1011(Config) ->
    Socket = opened(Config, "/ws/boom"),
    ?assertEqual({8, <<1011:16>>}, frame(Socket)),
    ok = gen_tcp:close(Socket).

a_client_that_leaves_a_websocket_is_a_disconnect(Config) ->
    Socket = opened(Config, "/ws/echo"),
    ok = frame(Socket, 1, <<"here">>),
    {1, <<"here">>} = frame(Socket),
    Before = length([E || <<"ws 1006", _/binary>> = E <- happened(Config)]),
    ok = gen_tcp:close(Socket),
    ok = sw_e2e:eventually(fun() -> Before + 1 =:= length([E || <<"ws 1006", _/binary>> = E <- happened(Config)]) end).

a_websocket_nobody_reads_holds_the_application_back(Config) ->
    Socket = opened(Config, "/ws/flood"),
    ok = sw_e2e:eventually(fun() -> settled(fun() -> python(Config, count, [<<"flooded">>]) end) end),
    ?assertMatch(N when N < 200, python(Config, count, [<<"flooded">>])),
    Piece = bytes(65536),
    [?assert({2, Piece} =:= frame(Socket)) || _ <- lists:seq(1, 300)],
    ok = gen_tcp:close(Socket),
    eventually_happened(Config, <<"ws flood over">>).

a_deaf_websocket_is_cancelled_when_its_client_leaves(Config) ->
    Socket = opened(Config, "/ws/deaf"),
    ok = gen_tcp:close(Socket),
    eventually_happened(Config, <<"ws cancelled">>).

%% --- many nodes ---------------------------------------------------------------------------------

%% A BEAM with a pool `web` of nodes of their own, and a front before it.
with_pool(Config, Count, Options, Test) ->
    Context = sw_e2e:context(Config),
    Nodes = [start_node(Context) || _ <- lists:seq(1, Count)],
    Beam = application_beam(Context, Nodes),
    Names = [Name || #{name := Name} <- Nodes],
    {ok, _} = sw_e2e:on(Beam, fun() -> py_pool:start(web, #{nodes => Names}) end),
    ok = sw_e2e:eventually(fun() -> sw_e2e:on(Beam, fun() -> length(py_pool:members(web)) =:= Count end) end),
    ok = sw_e2e:on(Beam, fun() -> py_asgi:prepare(web, <<"asgi_app:app">>) end),
    Port = front(Beam, web, Options),
    try
        Test([{beam, Beam}, {port, Port} | Config], Nodes)
    after
        ok = sw_e2e:stop_beam(Beam),
        [ok = sw_e2e:stop_node(Node) || Node <- Nodes]
    end.

a_pool_spreads_requests_over_its_nodes(Config) ->
    with_pool(Config, 2, #{}, fun(Front, _) ->
        Where = [element(3, get(Front, "/where")) || _ <- lists:seq(1, 40)],
        Counts = [length([W || W <- Where, W =:= Name]) || Name <- lists:usort(Where)],
        ?assertMatch([A, B] when A >= 10 andalso B >= 10, Counts)
    end).

%% Eight clients ask all the time; one of two nodes is killed.
a_node_that_is_lost_under_load_costs_errors_for_less_than_a_second(Config) ->
    with_pool(Config, 2, #{}, fun(Front, [Doomed | _]) ->
        Clients = [spawn_monitor(fun() -> exit({asked, asking(Front, now_ms() + 3000)}) end) || _ <- lists:seq(1, 8)],
        timer:sleep(1000),
        Killed = now_ms(),
        ok = sw_e2e:stop_node(Doomed),
        Asked = lists:append([receive {'DOWN', M, process, P, {asked, List}} -> List end || {P, M} <- Clients]),
        Failed = [{At - Killed, Status} || {At, Status} <- Asked, Status =/= 200],
        ct:log("~b answers, others: ~p", [length(Asked), Failed]),
        ?assertEqual([], [F || {_, Status} = F <- Failed, Status =/= 502, Status =/= 503]),
        ?assertEqual([], [F || {At, _} = F <- Failed, At > 1000]),
        ?assert(length([ok || {At, 200} <- Asked, At > Killed + 1000]) > 10)
    end).

asking(Config, Until) ->
    case now_ms() > Until of
        true -> [];
        false ->
            {Status, _, _} = get(Config, "/where?delay=0.02"),
            [{now_ms(), Status} | asking(Config, Until)]
    end.

now_ms() -> erlang:monotonic_time(millisecond).

safe_requests_move_on_from_a_node_that_is_lost(Config) ->
    with_pool(Config, 2, #{idempotent => true}, fun(Front, Nodes) ->
        % One after the other, so that each node has one of each.
        Asking = [begin
                      Asked = spawn_monitor(fun() -> exit({M, request(Front, M, "/where?delay=2", [], <<>>)}) end),
                      timer:sleep(100),
                      Asked
                  end || M <- ["GET", "GET", "POST", "POST"]],
        [Doomed | _] = Nodes,
        ok = sw_e2e:stop_node(Doomed),
        Answers = [receive {'DOWN', Monitor, process, P, {M, {Status, _, _}}} -> {M, Status} end || {P, Monitor} <- Asking],
        ?assertEqual([{"GET", 200}, {"GET", 200}], [A || {"GET", _} = A <- Answers]),
        ?assertEqual([{"POST", 200}, {"POST", 502}], lists:sort([A || {"POST", _} = A <- Answers]))
    end).

websockets_of_a_node_that_is_lost_close_with_1012(Config) ->
    with_pool(Config, 1, #{}, fun(Front, [Node]) ->
        Socket = opened(Front, "/ws/echo"),
        ok = frame(Socket, 1, <<"here">>),
        {1, <<"here">>} = frame(Socket),
        ok = sw_e2e:stop_node(Node),
        ?assertEqual({8, <<1012:16>>}, frame(Socket)),
        ok = gen_tcp:close(Socket),
        ?assertMatch({503, _, <<"Service Unavailable">>}, get(Front, "/hello"))
    end).

%% Requests that have been accepted are answered, new ones refused, and the application hears of its end.
a_node_that_is_stopped_refuses_and_runs_the_shutdown_of_its_applications(Config) ->
    Context = sw_e2e:context(Config),
    Node = #{program := Program} = start_node(Context),
    Beam = application_beam(Context, [Node]),
    Front = [{beam, Beam}, {port, front(Beam, Node)} | Config],
    {200, _, _} = get(Front, "/hello"),
    Asking = spawn_monitor(fun() -> exit(get(Front, "/where?delay=1")) end),
    timer:sleep(200),
    ok = sw_e2e:send_signal(Program, "TERM"),
    _ = sw_e2e:wait_line(Program, "draining"),
    ?assertMatch({503, _, _}, get(Front, "/hello")),
    {Pid, Monitor} = Asking,
    ?assertMatch({200, _, _}, receive {'DOWN', Monitor, process, Pid, Answer} -> Answer end),
    ?assertEqual(0, sw_e2e:await_exit(Program)),
    ?assertNotEqual(nomatch, binary:match(sw_e2e:output(Program), <<"the application has shut down">>)),
    ok = sw_e2e:stop_beam(Beam).

%% It makes no channels any more, so the parts are asked for one by one.
an_answer_that_was_asked_for_before_the_node_was_stopped_comes_whole(Config) ->
    Context = sw_e2e:context(Config),
    Node = #{program := Program} = start_node(Context),
    Beam = application_beam(Context, [Node]),
    Front = [{beam, Beam}, {port, front(Beam, Node)} | Config],
    {200, _, _} = get(Front, "/hello"),
    Asking = [{Size, spawn_monitor(fun() -> exit(get(Front, Target)) end)}
              || {Size, Target} <- [{0, "/late?size=0"}, {3_000_000, "/late?size=3000000"}, {70_000, "/late?size=70000"}]],
    timer:sleep(300),
    ok = sw_e2e:send_signal(Program, "TERM"),
    [receive
         {'DOWN', Monitor, process, Pid, Answer} ->
             {200, _, Body} = Answer,
             ?assertEqual({Size, true}, {byte_size(Body), Body =:= bytes(Size)})
     end || {Size, {Pid, Monitor}} <- Asking],
    ?assertEqual(0, sw_e2e:await_exit(Program)),
    ok = sw_e2e:stop_beam(Beam).

a_node_with_an_allow_list_serves_when_the_gateway_is_on_it(Config) ->
    Context = sw_e2e:context(Config),
    [begin
         Node = sw_e2e:start_node(Context, #{args => ["--allow", Allowed]}),
         Beam = application_beam(Context, [Node]),
         {Status, _, _} = get([{port, front(Beam, Node)}], "/hello"),
         ?assertEqual({Allowed, Expected}, {Allowed, Status}),
         ok = sw_e2e:stop_beam(Beam),
         ok = sw_e2e:stop_node(Node)
     end || {Allowed, Expected} <- [{"erlang_web._gateway.*", 200}, {"math.*", 500}]].

a_node_with_worker_processes_serves_what_needs_no_stream(Config) ->
    Context = sw_e2e:context(Config),
    Node = #{program := Program} = sw_e2e:start_node(Context, #{args => ["--processes", "2"]}),
    Beam = application_beam(Context, [Node]),
    Front = [{port, front(Beam, Node)}],
    ?assertMatch({200, _, <<"hello">>}, get(Front, "/hello")),
    ?assertMatch({200, _, <<"one two">>}, get(Front, "/in_two")),
    ?assertMatch({200, _, <<"LOUD">>}, get(Front, "/upper?text=loud")),
    ?assertMatch({200, _, <<_:1_000_000/binary>>}, get(Front, "/large?size=1000000")),
    ?assertMatch({200, _, <<"py_", _/binary>>}, get(Front, "/where?delay=0.3")),
    ?assertMatch({500, _, _}, request(Front, "POST", "/echo", [], bytes(100_000))),
    {Socket, {500, _}} = open(Front, "/ws/echo"),
    ok = gen_tcp:close(Socket),
    ?assertNotEqual(nomatch, binary:match(sw_e2e:output(Program), <<"a worker process (--processes) has no processes">>)),
    ok = sw_e2e:stop_beam(Beam),
    ok = sw_e2e:stop_node(Node).

%% examples/asgi/py_asgi_cowboy.erl, under the Cowboy that is installed or else that of tests/run/cowboy.
cowboy_serves_through_its_handler(Config) ->
    case {code:lib_dir(cowboy), cowboy_fetched()} of
        {{error, bad_name}, []} ->
            % Cowboy is optional: the handler is compiled only where it is. tests/run/cowboy, which the whole run
            % calls first, finds none where the distribution's beams are of a later OTP than this one.
            {skip, "Cowboy is not on the code path, nor in build/cowboy, where tests/run/cowboy puts it"};
        {{error, bad_name}, Paths} ->
            through_cowboy(Config, Paths);
        _ ->
            through_cowboy(Config, [])
    end.

cowboy_fetched() ->
    filelib:wildcard(filename:join(sw_e2e:root(), "build/cowboy/*/ebin")).

through_cowboy(Config, Paths) ->
    Context = #{directory := Directory} = sw_e2e:context(Config),
    Handler = filename:join(sw_e2e:root(), "examples/asgi/py_asgi_cowboy.erl"),
    {ok, py_asgi_cowboy} = compile:file(Handler, [{outdir, Directory}]),
    Node = #{name := Name} = start_node(Context),
    Beam = application_beam(Context, [Node], Paths),
    Port = sw_e2e:on(Beam, fun() ->
        {ok, _} = application:ensure_all_started(cowboy),
        State = #{target => Name, app => <<"asgi_app:app">>},
        Routes = [{"/inner/[...]", py_asgi_cowboy, State#{root_path => <<"/inner">>}}, {"/[...]", py_asgi_cowboy, State}],
        Dispatch = cowboy_router:compile([{'_', Routes}]),
        {ok, _} = cowboy:start_clear(front, [{ip, {127, 0, 0, 1}}, {port, 0}], #{env => #{dispatch => Dispatch}}),
        ranch:get_port(front)
    end),
    Cowboy = [{node, Node}, {beam, Beam}, {port, Port} | proplists:delete(node, Config)],
    ?assertMatch({200, _, <<"hello">>}, get(Cowboy, "/hello")),
    [begin
         {200, _, Body} = request(Cowboy, "POST", "/echo", [], Sent),
         ?assert(Body =:= Sent)
     end || Sent <- [<<>>, bytes(256), bytes(65537), bytes(5_000_000)]],
    {200, _, Scope} = get(Cowboy, "/inner/a%20b?x=%20"),
    [?assertNotEqual(nomatch, binary:match(Scope, What))
     || What <- [<<"\"path\": \"/inner/a b\"">>, <<"\"query_string\": \"x=%20\"">>, <<"\"root_path\": \"/inner\"">>]],
    {200, Headers, <<>>} = get(Cowboy, "/many_headers"),
    ?assertEqual([<<"a=1">>, <<"b=2">>], proplists:get_all_values(<<"set-cookie">>, Headers)),
    ?assertMatch({204, _, <<>>}, get(Cowboy, "/no_content")),
    ?assertMatch({200, _, <<"one two">>}, get(Cowboy, "/in_two")),
    {200, _, Pieces} = get(Cowboy, "/pieces?number=100"),
    ?assertEqual(6_553_600, byte_size(Pieces)),
    ?assertMatch({500, _, _}, get(Cowboy, "/boom")),
    Leaving = connect(Cowboy),
    ok = send_request(Leaving, "GET", "/hold", [], <<>>),
    ok = sw_e2e:eventually(fun() -> lists:member(<<"hold begun">>, happened(Cowboy)) end),
    ok = gen_tcp:close(Leaving),
    eventually_happened(Cowboy, <<"hold http.disconnect">>),
    eventually_happened(Cowboy, <<"hold cancelled">>),
    {Socket, {101, Accepted}} = open(Cowboy, "/ws/echo", [{"sec-websocket-protocol", "first, second"}]),
    ?assertEqual([<<"second">>, <<"yes">>],
                 [proplists:get_value(Key, Accepted) || Key <- [<<"sec-websocket-protocol">>, <<"x-accepted">>]]),
    [begin ok = frame(Socket, Code, Data), ?assertEqual({Code, Data}, frame(Socket)) end
     || {Code, Data} <- [{1, <<"text">>}, {2, bytes(70_000)}, {1, <<>>}]],
    ok = frame(Socket, 8, <<4002:16, "tired">>),
    {8, <<4002:16, _/binary>>} = frame(Socket),
    eventually_happened(Cowboy, <<"ws 4002 tired">>),
    Closing = opened(Cowboy, "/ws/close?code=4001"),
    ?assertEqual([{1, <<"good bye">>}, {8, <<4001:16, "enough">>}], [frame(Closing), frame(Closing)]),
    {Refused, {403, _}} = open(Cowboy, "/ws/refuse"),
    [ok = gen_tcp:close(S) || S <- [Socket, Closing, Refused]],
    ok = sw_e2e:stop_beam(Beam),
    ok = sw_e2e:stop_node(Node).

%% examples/asgi/py_asgi_plug.ex: under Plug and Cowboy where plug and plug_cowboy are on the code path, else under
%% elixir/plug_stand_in.ex.
a_plug_hands_requests_on(Config) ->
    Context = #{directory := Directory} = sw_e2e:context(Config),
    Own = filename:join(sw_e2e:root(), "tests/e2e/elixir"),
    Real = code:lib_dir(plug_cowboy) =/= {error, bad_name},
    Sources = [filename:join(Own, "plug_stand_in.ex") || not Real]
        ++ [filename:join(sw_e2e:root(), "examples/asgi/py_asgi_plug.ex"), filename:join(Own, "mounted_plug.ex")],
    Known = ["-pa", filename:dirname(code:which(py_asgi))],
    {0, _, <<>>} = sw_e2e:run(os:find_executable("elixirc"), ["--warnings-as-errors", "-o", Directory | Known ++ Sources], []),
    {0, Elixir, _} = sw_e2e:run(os:find_executable("elixir"), ["-e", "IO.write(:code.lib_dir(:elixir))"], []),
    Node = #{name := Name} = start_node(Context),
    Beam = application_beam(Context, [Node], filelib:wildcard(filename:join([string:trim(binary_to_list(Elixir)), "..", "*", "ebin"]))),
    Given = [{target, Name}, {app, <<"asgi_app:app">>}],
    Port = sw_e2e:on(Beam, fun() ->
        {ok, _} = application:ensure_all_started(elixir),
        plug_port(Real, Given)
    end),
    Plug = [{node, Node}, {beam, Beam}, {port, Port} | proplists:delete(node, Config)],
    ?assertMatch({200, _, <<"hello">>}, get(Plug, "/hello")),
    [begin
         {200, _, Body} = request(Plug, "POST", "/echo", [], Sent),
         ?assert(Body =:= Sent)
     end || Sent <- [<<>>, bytes(256), bytes(65536), bytes(65537), bytes(5_000_000)]],
    {200, _, Streamed} = request(Plug, "POST", "/echo_in_pieces", [], bytes(1_000_000)),
    ?assert(Streamed =:= bytes(1_000_000)),
    {200, _, Scope} = request(Plug, "PUT", "/in%20ner/a%20b?x=%20", [{"X-Twice", "1"}, {"x-twice", "2"}], <<"1">>),
    [?assertMatch({What, true, _}, {What, binary:match(Scope, What) =/= nomatch, Scope})
     || What <- [<<"\"path\": \"/in ner/a b\"">>, <<"\"raw_path\": \"/in%20ner/a%20b\"">>, <<"\"query_string\": \"x=%20\"">>,
                 <<"\"root_path\": \"/in ner\"">>, <<"\"method\": \"PUT\"">>, <<"\"scheme\": \"http\"">>,
                 <<"\"client\": [\"127.0.0.1\", ">>, <<"\"server\": [\"front\", 80]">>]],
    {200, Headers, <<>>} = get(Plug, "/many_headers"),
    ?assertEqual([<<"a=1">>, <<"b=2">>], lists:sort(proplists:get_all_values(<<"set-cookie">>, Headers))),
    ?assertMatch({204, _, <<>>}, get(Plug, "/no_content")),
    ?assertMatch({200, _, <<"one two">>}, get(Plug, "/in_two")),
    {200, _, Pieces} = get(Plug, "/pieces?number=100"),
    ?assertEqual(6_553_600, byte_size(Pieces)),
    ?assertMatch({500, _, _}, get(Plug, "/boom")),
    Leaving = connect(Plug),
    ok = send_request(Leaving, "GET", "/pieces?number=100000", [], <<>>),
    {200, _} = head(Leaving),
    ok = gen_tcp:close(Leaving),
    eventually_happened(Plug, <<"pieces ClientGone">>),
    ok = sw_e2e:stop_beam(Beam),
    ok = sw_e2e:stop_node(Node).

plug_port(false, Given) ->
    'Elixir.PlugStandIn':start('Elixir.MountedPlug', Given);
plug_port(true, Given) ->
    {ok, _} = application:ensure_all_started(plug_cowboy),
    Handler = {'_', 'Elixir.Plug.Cowboy.Handler', {'Elixir.MountedPlug', 'Elixir.MountedPlug':init(Given)}},
    Dispatch = cowboy_router:compile([{'_', [Handler]}]),
    {ok, _} = cowboy:start_clear(front, [{ip, {127, 0, 0, 1}}, {port, 0}], #{env => #{dispatch => Dispatch}}),
    ranch:get_port(front).

%% The demo, examples/asgi/chat.erl and chat.py.
what_is_said_on_one_node_of_the_chat_is_heard_on_the_other(Config) ->
    Context = #{directory := Directory} = sw_e2e:context(Config),
    Examples = filename:join(sw_e2e:root(), "examples/asgi"),
    {ok, chat} = compile:file(filename:join(Examples, "chat.erl"), [{outdir, Directory}]),
    Nodes = [sw_e2e:start_node(Context, #{args => ["--path", Examples]}) || _ <- [1, 2]],
    Beam = application_beam(Context, Nodes),
    {ok, Port} = sw_e2e:on(Beam, fun() -> chat:start([Name || #{name := Name} <- Nodes], 0) end),
    ok = sw_e2e:eventually(fun() -> sw_e2e:on(Beam, fun() -> length(py_pool:members(chatters)) =:= 2 end) end),
    Front = [{port, Port} | Config],
    [Ada, Joe] = Clients = [opened(Front, "/lobby?name=" ++ Name) || Name <- ["ada", "joe"]],
    Elsewhere = opened(Front, "/elsewhere?name=eve"),
    ok = sw_e2e:eventually(fun() -> 2 =:= sw_e2e:on(Beam, fun() -> length(pg:get_members(chat, <<"lobby">>)) end) end),
    ok = frame(Ada, 1, <<"hello">>),
    [{1, <<"ada@", First/binary>>} = Said, Said] = [frame(Client) || Client <- Clients],
    ok = frame(Joe, 1, <<"hello">>),
    [{1, <<"joe@", Second/binary>>} = Answer, Answer] = [frame(Client) || Client <- Clients],
    ?assertNotEqual(First, Second),
    ?assertEqual({error, timeout}, gen_tcp:recv(Elsewhere, 0, 200)),
    [ok = gen_tcp:close(Socket) || Socket <- [Elsewhere | Clients]],
    ok = sw_e2e:eventually(fun() -> [] =:= sw_e2e:on(Beam, fun() -> pg:get_members(chat, <<"lobby">>) end) end),
    ok = sw_e2e:stop_beam(Beam),
    [ok = sw_e2e:stop_node(Node) || Node <- Nodes].

the_reasons_have_their_statuses(_) ->
    ?assertEqual([503, 503, 503, 502, 502, 504, 500],
                 [py_asgi:status_of(R) || R <- [overloaded, draining, {down, no_members}, {lost, noconnection}, aborted,
                                                timeout, {python, <<"ValueError">>, <<>>, <<>>}]]).
