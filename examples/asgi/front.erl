%% A small HTTP/1.1 server that hands every request to py_asgi: what an adapter for a web server does, in one
%% file, and enough of a server for the tests, the demo and the benchmark. For production take a real server.
%%
%%   client ──▶ connection ── requests ──▶ asker ──▶ py_asgi ──▶ a Python node
%%                  │                        └── writes the answers to the socket
%%                  └── watches the socket meanwhile: a client that leaves ends the asker, and so py_asgi knows
%%
%% A connection's asker is made with its first request. A WebSocket is served by the connection's own process.
%%
%% The socket is told `{active, once}` as soon as it has sent something, so that whoever waits for data just
%% receives; only what nobody asked for is bounded by not telling it.
-module(front).

-export([start/1, stop/1, port/1]).
-export([init/2, accept/2, asker/3]).

-define(WHOLE, 65536).           % bodies of up to so many bytes are handed over in one piece
-define(MAX_HEAD, 65536).
-define(IDLE_MS, 60000).
-define(BUFFER, 65536).
-define(MAX_FRAME, 16777216).
-define(GUID, "258EAFA5-E914-47DA-95CA-C5AB0DC85B11").

%% target: a node or a pool. Mounts are tried in order: {Prefix, App}.
-type config() :: #{target := atom(), app => binary(), mounts => [{binary(), binary()}],
                    port => inet:port_number(), ip => inet:ip_address(), acceptors => pos_integer(),
                    options => py_asgi:options()}.

-record(request, {method, path, query, version, headers, client, server, keep, body, rest}).

%% --- The server ---------------------------------------------------------------------------------

-spec start(config()) -> {ok, pid()} | {error, term()}.
start(Config) ->
    proc_lib:start(?MODULE, init, [self(), Config]).

-spec port(pid()) -> inet:port_number().
port(Server) ->
    Server ! {port, self()},
    receive {port, Server, Port} -> Port end.

-spec stop(pid()) -> ok.
stop(Server) ->
    Monitor = monitor(process, Server),
    Server ! stop,
    receive {'DOWN', Monitor, process, _, _} -> ok end.

init(Starter, Config0) ->
    Config = Config0#{mounts => maps:get(mounts, Config0, [{<<>>, maps:get(app, Config0, <<>>)}])},
    Ip = maps:get(ip, Config, {127, 0, 0, 1}),
    Options = [binary, {ip, Ip}, {active, false}, {backlog, 1024}, {nodelay, true}, {reuseaddr, true},
               {send_timeout, 30000}, {send_timeout_close, true}, {buffer, ?BUFFER}],
    case gen_tcp:listen(maps:get(port, Config, 0), Options) of
        {ok, Listening} ->
            [spawn_link(?MODULE, accept, [Listening, Config])
             || _ <- lists:seq(1, maps:get(acceptors, Config, 4))],
            {ok, Port} = inet:port(Listening),
            proc_lib:init_ack(Starter, {ok, self()}),
            serve(Port);
        {error, Reason} ->
            proc_lib:init_ack(Starter, {error, Reason})
    end.

serve(Port) ->
    receive
        {port, From} -> From ! {port, self(), Port}, serve(Port);
        stop -> exit(shutdown)      % and with it the acceptors and the socket
    end.

accept(Listening, Config) ->
    {ok, Socket} = gen_tcp:accept(Listening),
    Connection = spawn(fun() -> receive {yours, S} -> connected(S, Config) end end),
    case gen_tcp:controlling_process(Socket, Connection) of
        ok -> Connection ! {yours, Socket};
        {error, _} -> exit(Connection, kill)
    end,
    accept(Listening, Config).

%% --- A connection -------------------------------------------------------------------------------

connected(Socket, Config) ->
    case {inet:peername(Socket), inet:sockname(Socket)} of
        {{ok, Client}, {ok, Server}} ->
            arm(Socket),
            next_request(Socket, <<>>, #request{client = text_of(Client), server = text_of(Server)}, none, Config);
        _ ->
            gen_tcp:close(Socket)
    end.

text_of({Ip, Port}) -> {list_to_binary(inet:ntoa(Ip)), Port};
text_of(Address) -> Address.

next_request(Socket, Buffer, Blank, Asker, Config) ->
    case head(Socket, Buffer, Blank) of
        {ok, Request} -> handle(Socket, Request, Blank, Asker, Config);
        {error, bad_request} -> refuse(Socket, 400), leave_client(Socket, Asker);
        {error, _} -> leave_client(Socket, Asker)
    end.

leave_client(Socket, Asker) ->
    _ = [exit(Pid, kill) || {Pid, _} <- [Asker]],
    gen_tcp:close(Socket).

handle(Socket, #request{headers = Headers} = Request, Blank, Asker, Config) ->
    case lowercase(header(<<"upgrade">>, Headers)) of
        <<"websocket">> when Asker =:= none ->
            websocket(Socket, Request, Config);
        <<"websocket">> ->
            _ = [exit(Pid, kill) || {Pid, _} <- [Asker]],
            websocket(Socket, Request, Config);
        _ ->
            handle_http(Socket, Request, Blank, Asker, Config)
    end.

handle_http(Socket, Request, Blank, none, Config) ->
    Asker = spawn_monitor(?MODULE, asker, [self(), Socket, Config]),
    handle_http(Socket, Request, Blank, Asker, Config);
handle_http(Socket, Request, Blank, {Pid, Monitor} = Asker, Config) ->
    Pid ! {request, self(), Request},
    Body = case Request#request.body of {whole, _} -> over; Coming -> Coming end,
    case watch(Socket, Pid, Monitor, Request#request.rest, Body) of
        {keep, Rest} ->
            _ = [arm(Socket) || byte_size(Rest) >= ?BUFFER],
            next_request(Socket, Rest, Blank, Asker, Config);
        close ->
            leave_client(Socket, Asker)
    end.

arm(Socket) ->
    ignore(inet:setopts(Socket, [{active, once}])).

%% Buffer: what the client sent and nobody has asked for; Body: what of the body is still to come.
watch(Socket, Pid, Monitor, Buffer, Body) ->
    receive
        {over, Pid, keep} when Body =:= over ->
            {keep, Buffer};
        {over, Pid, _} ->
            close;
        {tcp, Socket, Data} ->
            _ = [arm(Socket) || byte_size(Buffer) + byte_size(Data) < ?BUFFER],
            watch(Socket, Pid, Monitor, <<Buffer/binary, Data/binary>>, Body);
        {tcp_closed, Socket} ->
            ended(Pid, Monitor);
        {tcp_error, Socket, _} ->
            ended(Pid, Monitor);
        {part, Pid, Ms} ->
            part(Socket, Pid, Monitor, Buffer, Body, Ms);
        {'DOWN', Monitor, process, Pid, _} ->
            close
    end.

%% The client has gone.
ended(Pid, Monitor) ->
    exit(Pid, kill),
    receive {'DOWN', Monitor, process, Pid, _} -> close end.

part(Socket, Pid, Monitor, Buffer, Body0, Ms) ->
    Body = asked_for(Socket, Body0),
    case decode(Buffer, Body) of
        {wait, Rest, Body1} ->
            receive
                {tcp, Socket, Data} ->
                    arm(Socket),
                    part(Socket, Pid, Monitor, <<Rest/binary, Data/binary>>, Body1, Ms);
                {tcp_closed, Socket} ->
                    ended(Pid, Monitor);
                {'DOWN', Monitor, process, Pid, _} ->
                    close
            after Ms ->
                Pid ! {part, wait},
                watch(Socket, Pid, Monitor, Rest, Body1)
            end;
        {error, _} = Error ->
            Pid ! {part, Error},
            watch(Socket, Pid, Monitor, <<>>, broken);
        {Kind, Data, Rest, Body1} ->
            Pid ! {part, {Kind, Data}},
            _ = [arm(Socket) || byte_size(Buffer) >= ?BUFFER, byte_size(Rest) < ?BUFFER],
            watch(Socket, Pid, Monitor, Rest, Body1)
    end.

asked_for(Socket, {expects, Body}) ->
    ok = ignore(gen_tcp:send(Socket, <<"HTTP/1.1 100 Continue\r\n\r\n">>)),
    Body;
asked_for(_, Body) ->
    Body.

%% A piece of the body from what has arrived.
decode(Buffer, {left, Left}) when byte_size(Buffer) >= Left ->
    <<Data:Left/binary, Rest/binary>> = Buffer,
    {done, Data, Rest, over};
decode(<<>>, {left, _} = Body) ->
    {wait, <<>>, Body};
decode(Buffer, {left, Left}) ->
    {more, Buffer, <<>>, {left, Left - byte_size(Buffer)}};
decode(Buffer, chunked) ->
    case binary:split(Buffer, <<"\r\n">>) of
        [Line, Rest] -> chunk(chunk_size(Line), Rest);
        [_] when byte_size(Buffer) > 1024 -> {error, bad_chunk};
        [_] -> {wait, Buffer, chunked}
    end;
decode(Buffer, {chunk, 0}) ->
    case Buffer of
        <<"\r\n", Rest/binary>> -> decode(Rest, chunked);
        _ when byte_size(Buffer) < 2 -> {wait, Buffer, {chunk, 0}};
        _ -> {error, bad_chunk}
    end;
decode(<<>>, {chunk, _} = Body) ->
    {wait, <<>>, Body};
decode(Buffer, {chunk, Left}) ->
    Size = min(Left, byte_size(Buffer)),
    <<Data:Size/binary, Rest/binary>> = Buffer,
    {more, Data, Rest, {chunk, Left - Size}};
decode(Buffer, trailers) ->
    case binary:split(Buffer, <<"\r\n">>) of
        [<<>>, Rest] -> {done, <<>>, Rest, over};
        [_, Rest] -> decode(Rest, trailers);
        [_] when byte_size(Buffer) > ?MAX_HEAD -> {error, bad_trailers};
        [_] -> {wait, Buffer, trailers}
    end;
decode(_, _) ->
    {error, no_body}.

chunk_size(Line) ->
    [Size | _] = binary:split(Line, <<";">>),
    try binary_to_integer(string:trim(Size), 16) catch error:badarg -> error end.

chunk(error, _) -> {error, bad_chunk};
chunk(0, Rest) -> decode(Rest, trailers);
chunk(Size, Rest) -> decode(Rest, {chunk, Size}).

%% --- The head of a request ----------------------------------------------------------------------

head(Socket, Buffer, Blank) ->
    case erlang:decode_packet(http_bin, Buffer, [{line_length, 8192}]) of
        {ok, {http_request, Method, Target, Version}, Rest} ->
            headers(Socket, Rest, [], Blank#request{method = text(Method), version = Version}, Target);
        {ok, {http_error, Line}, Rest} when Line =:= <<"\r\n">>; Line =:= <<"\n">> ->
            head(Socket, Rest, Blank);
        {more, _} when byte_size(Buffer) < ?MAX_HEAD ->
            more(Socket, Buffer, fun(More) -> head(Socket, More, Blank) end);
        _ ->
            {error, bad_request}
    end.

headers(Socket, Buffer, Headers, Request, Target) ->
    case erlang:decode_packet(httph_bin, Buffer, [{line_length, 16384}]) of
        {ok, {http_header, _, Name, _, Value}, Rest} when length(Headers) < 128 ->
            headers(Socket, Rest, [{name(Name), Value} | Headers], Request, Target);
        {ok, http_eoh, Rest} ->
            whole(Socket, Rest, Request#request{headers = lists:reverse(Headers)}, Target);
        {more, _} when byte_size(Buffer) < ?MAX_HEAD ->
            more(Socket, Buffer, fun(More) -> headers(Socket, More, Headers, Request, Target) end);
        _ ->
            {error, bad_request}
    end.

more(Socket, Buffer, Continue) ->
    receive
        {tcp, Socket, Data} -> arm(Socket), Continue(<<Buffer/binary, Data/binary>>);
        {tcp_closed, Socket} -> {error, closed};
        {tcp_error, Socket, Reason} -> {error, Reason}
    after ?IDLE_MS ->
        {error, timeout}
    end.

whole(Socket, Rest, #request{headers = Headers, version = Version} = Request0, Target) ->
    {Path, Query} = path(Target),
    Connection = lowercase(header(<<"connection">>, Headers)),
    Keep = case Version of
        {1, 1} -> Connection =/= <<"close">>;
        _ -> Connection =:= <<"keep-alive">>
    end,
    Request = Request0#request{path = Path, query = Query, keep = Keep},
    case {body_of(Headers), header(<<"expect">>, Headers)} of
        {error, _} -> {error, bad_request};
        {{left, 0}, _} -> {ok, Request#request{body = over, rest = Rest}};
        {{left, Size}, <<>>} when Size =< ?WHOLE -> small(Socket, Rest, Size, Request);
        {Body, <<>>} -> {ok, Request#request{body = Body, rest = Rest}};
        {Body, _} -> {ok, Request#request{body = {expects, Body}, rest = Rest}}
    end.

%% A small body is fetched before anybody is asked.
small(_, Rest, Size, Request) when byte_size(Rest) >= Size ->
    <<Body:Size/binary, Rest1/binary>> = Rest,
    {ok, Request#request{body = {whole, Body}, rest = Rest1}};
small(Socket, Rest, Size, Request) ->
    more(Socket, Rest, fun(More) -> small(Socket, More, Size, Request) end).

body_of(Headers) ->
    case {header(<<"transfer-encoding">>, Headers), header(<<"content-length">>, Headers)} of
        {<<>>, <<>>} -> {left, 0};
        {<<>>, Length} -> try {left, binary_to_integer(Length)} catch error:badarg -> error end;
        {Coding, <<>>} -> case lowercase(Coding) of <<"chunked">> -> chunked; _ -> error end;
        _ -> error
    end.

path({abs_path, Target}) -> query(Target);
path({absoluteURI, _, _, _, Target}) -> query(Target);
path('*') -> {<<"*">>, <<>>};
path({_, Target}) -> query(Target);
path(Target) when is_binary(Target) -> query(Target).

query(Target) ->
    case binary:split(Target, <<"?">>) of
        [Path, Query] -> {Path, Query};
        [Path] -> {Path, <<>>}
    end.

header(Name, Headers) ->
    proplists:get_value(Name, Headers, <<>>).

text(Name) when is_atom(Name) -> atom_to_binary(Name);
text(Name) -> Name.

%% The names that come with nearly every request, and any other.
name('Host') -> <<"host">>;
name('User-Agent') -> <<"user-agent">>;
name('Accept') -> <<"accept">>;
name('Connection') -> <<"connection">>;
name('Content-Type') -> <<"content-type">>;
name('Content-Length') -> <<"content-length">>;
name(Name) -> lowercase(text(Name)).

lowercase(Text) -> << <<(if C >= $A, C =< $Z -> C + 32; true -> C end)>> || <<C>> <= Text >>.

%% --- Asking, in a process of its own -------------------------------------------------------------

asker(Connection, Socket, Config) ->
    _ = monitor(process, Connection),
    asked_by(Connection, Socket, Config).

asked_by(Connection, Socket, Config) ->
    receive
        {request, Connection, Request} ->
            Connection ! {over, self(), request(Connection, Socket, Request, Config)},
            asked_by(Connection, Socket, Config);
        {'DOWN', _, process, Connection, _} ->
            ok
    end.

request(Connection, Socket, #request{method = Method} = Request, Config) ->
    {App, Asked} = asked(Request, Config),
    Body = case Request#request.body of
        {whole, Whole} -> Whole;
        over -> <<>>;
        _ -> {stream, fun(Ms) -> next_part(Connection, Ms) end}
    end,
    Options = maps:get(options, Config, #{}),
    case py_asgi:request(maps:get(target, Config), App, Asked#{method => Method, body => Body}, Options) of
        {ok, Status, Headers, Answer} -> answer(Socket, Status, Headers, Answer, Request);
        {error, Reason} -> failed(Socket, Reason)
    end.

%% The application under the longest matching prefix, in the order of the mounts.
asked(#request{path = Path, query = Query, headers = Headers, version = {Major, Minor}} = Request, Config) ->
    [{Prefix, App} | _] = [Mount || {Prefix, _} = Mount <- maps:get(mounts, Config), under(Path, Prefix)]
        ++ [{<<>>, <<"nobody:app">>}],
    Version = <<($0 + Major), $., ($0 + Minor)>>,
    {App, #{path => Path, query_string => Query, headers => Headers, http_version => Version,
            client => Request#request.client, server => Request#request.server, root_path => Prefix}}.

under(Path, Prefix) ->
    Size = byte_size(Prefix),
    case Path of
        <<Prefix:Size/binary>> -> true;
        <<Prefix:Size/binary, "/", _/binary>> -> true;
        _ -> false
    end.

next_part(Connection, Ms) ->
    Connection ! {part, self(), Ms},
    Next = fun(Later) -> next_part(Connection, Later) end,
    receive
        {part, wait} -> {wait, Next};
        {part, {more, Data}} -> {more, Data, Next};
        {part, {done, Data}} -> {done, Data};
        {part, {error, Reason}} -> {error, Reason}
    end.

%% A connection is kept where both sides know where the answer ends.
answer(Socket, Status, Headers, Body, #request{method = Method, keep = Keep, version = Version}) ->
    Bodiless = Method =:= <<"HEAD">> orelse Status =:= 204 orelse Status =:= 304,
    Length = has(<<"content-length">>, Headers),
    Framing = case Body of
        _ when Bodiless; Length -> plain;
        Whole when is_binary(Whole) -> {length, byte_size(Whole)};
        {stream, _} when Version =:= {1, 1} -> chunked;
        {stream, _} -> until_close
    end,
    Kept = Keep andalso Framing =/= until_close,
    Head = head_of(Status, Headers, Framing, Kept),
    case Body of
        {stream, Stream} when Bodiless -> send(Socket, Head), py_asgi:close(Stream), keep(Kept);
        {stream, Stream} -> send(Socket, Head), stream(Socket, py_asgi:read(Stream), Framing, Kept);
        _ when Bodiless -> send(Socket, Head), keep(Kept);
        _ -> send(Socket, [Head, Body]), keep(Kept)
    end.

head_of(Status, Headers, Framing, Kept) ->
    [<<"HTTP/1.1 ">>, integer_to_binary(Status), <<" ">>, phrase(Status), <<"\r\n">>,
     [[Name, <<": ">>, Value, <<"\r\n">>] || {Name, Value} <- Headers],
     case Framing of
         {length, Size} -> [<<"content-length: ">>, integer_to_binary(Size), <<"\r\n">>];
         chunked -> <<"transfer-encoding: chunked\r\n">>;
         _ -> <<>>
     end,
     case Kept of true -> <<"\r\n">>; false -> <<"connection: close\r\n\r\n">> end].

has(Name, Headers) ->
    lists:any(fun({N, _}) -> lowercase(N) =:= Name end, Headers).

stream(Socket, {more, Data, Stream}, Framing, Kept) ->
    send(Socket, framed(Data, Framing)),
    stream(Socket, py_asgi:read(Stream), Framing, Kept);
stream(Socket, {done, Data}, Framing, Kept) ->
    send(Socket, [framed(Data, Framing) | [<<"0\r\n\r\n">> || Framing =:= chunked]]),
    keep(Kept);
stream(_, {error, _}, _, _) ->
    close.    % cut off: the client is not told that this was all

framed(<<>>, _) -> <<>>;
framed(Data, chunked) -> [integer_to_binary(byte_size(Data), 16), <<"\r\n">>, Data, <<"\r\n">>];
framed(Data, _) -> Data.

failed(Socket, Reason) ->
    refuse(Socket, py_asgi:status_of(Reason)),
    close.

refuse(Socket, Status) ->
    Text = phrase(Status),
    ok = ignore(gen_tcp:send(Socket, [head_of(Status, [{<<"content-type">>, <<"text/plain">>}],
                                              {length, byte_size(Text)}, false), Text])).

send(Socket, Data) ->
    case gen_tcp:send(Socket, Data) of
        ok -> ok;
        {error, _} -> exit(normal)      % and the application hears of it
    end.

keep(true) -> keep;
keep(false) -> close.

phrase(200) -> <<"OK">>;
phrase(204) -> <<"No Content">>;
phrase(304) -> <<"Not Modified">>;
phrase(400) -> <<"Bad Request">>;
phrase(403) -> <<"Forbidden">>;
phrase(404) -> <<"Not Found">>;
phrase(500) -> <<"Internal Server Error">>;
phrase(502) -> <<"Bad Gateway">>;
phrase(503) -> <<"Service Unavailable">>;
phrase(504) -> <<"Gateway Timeout">>;
phrase(_) -> <<"Status">>.

ignore(_) -> ok.

%% --- WebSockets ---------------------------------------------------------------------------------

websocket(Socket, #request{headers = Headers, rest = Rest} = Request, Config) ->
    {App, Asked} = asked(Request, Config),
    Protocols = [string:trim(Each) || {<<"sec-websocket-protocol">>, Value} <- Headers,
                                      Each <- binary:split(Value, <<",">>, [global])],
    Options = maps:get(options, Config, #{}),
    case py_asgi:websocket(maps:get(target, Config), App, Asked#{subprotocols => Protocols}, Options) of
        {ok, Ws, #{subprotocol := Protocol, headers := More}} ->
            Key = header(<<"sec-websocket-key">>, Headers),
            Chosen = [{<<"sec-websocket-protocol">>, Protocol} || is_binary(Protocol)],
            Head = [{<<"upgrade">>, <<"websocket">>}, {<<"connection">>, <<"Upgrade">>},
                    {<<"sec-websocket-accept">>, base64:encode(crypto:hash(sha, [Key, ?GUID]))} | Chosen ++ More],
            ok = ignore(gen_tcp:send(Socket, [<<"HTTP/1.1 101 Switching Protocols\r\n">>,
                                              [[N, <<": ">>, V, <<"\r\n">>] || {N, V} <- Head], <<"\r\n">>])),
            ok = py_asgi:next(Ws),
            frames(Rest, #{socket => Socket, ws => Ws, parts => none});
        {refused, Status, More, Body} ->
            ok = ignore(gen_tcp:send(Socket, [head_of(Status, More, {length, byte_size(Body)}, false), Body])),
            gen_tcp:close(Socket);
        {error, Reason} ->
            refuse(Socket, py_asgi:status_of(Reason)),
            gen_tcp:close(Socket)
    end.

%% Takes the frames there are, then waits for more.
frames(Buffer, #{socket := Socket} = State) ->
    case frame(Buffer) of
        {ok, Frame, Rest} -> from_client(Frame, Rest, State);
        more -> _ = inet:setopts(Socket, [{active, once}]), either(Buffer, State);
        {error, Code} -> leave(Code, State)
    end.

either(Buffer, #{socket := Socket, ws := Ws} = State) ->
    receive
        {tcp, Socket, Data} -> frames(<<Buffer/binary, Data/binary>>, State);
        {tcp_closed, Socket} -> py_asgi:close(Ws, 1006, <<>>);
        {tcp_error, Socket, _} -> py_asgi:close(Ws, 1006, <<>>);
        {py_asgi, Ws, Frame} -> to_client(Frame, State), either(Buffer, State)
    end.

from_client({Fin, Code, Data}, Rest, #{parts := Parts} = State) ->
    case {Code, Fin, Parts} of
        {8, _, _} -> closed_by_client(Data, State);
        {9, _, _} -> send_frame(10, Data, State), frames(Rest, State);
        {10, _, _} -> frames(Rest, State);
        {0, 1, {Kind, All}} -> hand_over(Kind, [All, Data], Rest, State#{parts := none});
        {0, 0, {Kind, All}} -> frames(Rest, State#{parts := {Kind, [All, Data]}});
        {_, 1, none} when Code =:= 1; Code =:= 2 -> hand_over(kind(Code), Data, Rest, State);
        {_, 0, none} when Code =:= 1; Code =:= 2 -> frames(Rest, State#{parts := {kind(Code), Data}});
        _ -> leave(1002, State)
    end.

kind(1) -> text;
kind(2) -> binary.

%% Waits for room, and goes on handing out what the application sends.
hand_over(Kind, Data, Rest, #{ws := Ws} = State) ->
    case py_asgi:send(Ws, {Kind, Data}, 20) of
        ok ->
            frames(Rest, State);
        {error, timeout} ->
            receive {py_asgi, Ws, Frame} -> to_client(Frame, State) after 0 -> ok end,
            hand_over(Kind, Data, Rest, State);
        {error, closed} ->
            receive {py_asgi, Ws, Frame} -> to_client(Frame, State), hand_over(Kind, Data, Rest, State)
            after 2000 -> leave(1011, State)
            end
    end.

to_client({text, Data}, State) -> send_frame(1, Data, State), py_asgi:next(maps:get(ws, State));
to_client({binary, Data}, State) -> send_frame(2, Data, State), py_asgi:next(maps:get(ws, State));
to_client({close, Code, Reason}, #{socket := Socket} = State) ->
    send_frame(8, <<Code:16, Reason/binary>>, State),
    _ = gen_tcp:shutdown(Socket, write),
    _ = inet:setopts(Socket, [{active, true}]),
    receive {tcp_closed, Socket} -> ok after 1000 -> ok end,
    gen_tcp:close(Socket),
    exit(normal).

closed_by_client(<<Code:16, Reason/binary>> = Data, State) ->
    ok = py_asgi:close(maps:get(ws, State), Code, Reason),
    send_frame(8, Data, State),
    gen_tcp:close(maps:get(socket, State));
closed_by_client(_, State) ->
    ok = py_asgi:close(maps:get(ws, State), 1005, <<>>),
    send_frame(8, <<>>, State),
    gen_tcp:close(maps:get(socket, State)).

leave(Code, State) ->
    ok = py_asgi:close(maps:get(ws, State), Code, <<>>),
    send_frame(8, <<Code:16>>, State),
    gen_tcp:close(maps:get(socket, State)).

send_frame(Code, Data, #{socket := Socket}) ->
    Size = case byte_size(Data) of
        Small when Small < 126 -> <<Small>>;
        Medium when Medium < 65536 -> <<126, Medium:16>>;
        Large -> <<127, Large:64>>
    end,
    ok = ignore(gen_tcp:send(Socket, [<<1:1, 0:3, Code:4>>, Size, Data])).

frame(<<Fin:1, 0:3, Code:4, 1:1, Size:7, Rest/binary>>) when Size < 126 -> payload(Fin, Code, Size, Rest);
frame(<<Fin:1, 0:3, Code:4, 1:1, 126:7, Size:16, Rest/binary>>) -> payload(Fin, Code, Size, Rest);
frame(<<Fin:1, 0:3, Code:4, 1:1, 127:7, Size:64, Rest/binary>>) -> payload(Fin, Code, Size, Rest);
frame(Buffer) when byte_size(Buffer) < 10 -> more;
frame(_) -> {error, 1002}.

payload(_, _, Size, _) when Size > ?MAX_FRAME -> {error, 1009};
payload(Fin, Code, Size, <<Mask:4/binary, Rest/binary>>) when byte_size(Rest) >= Size ->
    <<Data:Size/binary, Left/binary>> = Rest,
    {ok, {Fin, Code, unmask(Data, Mask)}, Left};
payload(_, _, _, _) ->
    more.

unmask(Data, Mask) ->
    Size = byte_size(Data),
    Times = Size div 4 + 1,
    Pad = binary:part(binary:copy(Mask, Times), 0, Size),
    crypto:exor(Data, Pad).
