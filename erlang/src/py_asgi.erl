%% Hands requests of any web server on the BEAM to an ASGI or WSGI application on a Python node.
%%
%%   {ok, Status, Headers, Body} =
%%       py_asgi:request(web, <<"shop:app">>, #{method => <<"GET">>, path => <<"/tea">>, headers => Headers}),
%%
%% A small request with a small answer is one call. Everything else is streamed, under credit both ways:
%%
%%   caller ── call ─────────────────────▶ erlang_web._gateway ── scope, receive, send ──▶ application
%%   caller ◀── {start, Gateway, …} ────── the answer begins; the caller goes on with read/1,2
%%   caller ◀── {more, Gateway} ────────── the application wants the body, which the caller then sends
%%   caller ◀══ byte channels, made when they are wanted ═══▶ the application
%%   caller ◀── the call's result ──────── whatever has not been told yet
%%
%% Everything happens in the calling process, which is the one to read/1,2 and close/1: the messages above
%% come to an alias of its own, so none is left behind. The node monitors it (see erlang_web._gateway), so
%% its death tells the application http.disconnect, as close/1 does. A WebSocket has a process, py_asgi_socket.
%%
%% Target is a node or a pool. A request that a member refuses goes to the next one; one whose node is lost
%% before its answer has begun does so if it is `idempotent`, by its method and the caller's options.
-module(py_asgi).

-export([request/3, request/4, read/1, read/2, close/1, prepare/2, prepare/3, status_of/1]).
-export([websocket/3, websocket/4, send/2, send/3, recv/1, recv/2, next/1, close/3]).
-export([ask/4, item/3]).

-export_type([app/0, request/0, options/0, headers/0, body/0, next_part/0, stream/0, reason/0,
              socket/0, frame/0, ask/0]).

%% A reply tag in the form that has the answer sent to the alias.
-dialyzer({no_improper_lists, [{wait, 2}, {flush, 1}, {peek, 1}, {wants_body, 1}, {overtaken, 2}, {pulled, 2}]}).

-define(GATEWAY, 'erlang_web._gateway').
-define(TIMEOUT_MS, 30000).
-define(END_MS, 10000).          % for the last word of a node whose channel has closed
-define(INLINE, 65536).          % bytes of a body that travel in the call
-define(CHANNEL_BYTES, 262144).  % bytes of a body that may wait, in each direction
-define(TURN_MS, 20).            % how long one direction is waited for while the other could go on
-define(is_timeout(X), (X =:= infinity orelse (is_integer(X) andalso X >= 0))).

-type app() :: binary().           % <<"module:attribute">>
-type headers() :: [{binary(), binary()}].
-type address() :: {inet:ip_address() | binary(), inet:port_number()}.
-type request() :: #{
    path := binary(),               % as sent: percent-encoded, without the query
    method => binary(),             % default <<"GET">>; a WebSocket has none
    query_string => binary(),
    headers => headers(),           % names in any case; duplicates and their order are kept
    scheme => binary(),             % default <<"http">>, of a WebSocket <<"ws">>
    http_version => binary(),       % default <<"1.1">>
    client => address(),
    server => address(),
    root_path => binary(),          % the part of the path under which the application is mounted
    body => iodata() | {stream, next_part()},
    subprotocols => [binary()]      % of a WebSocket
}.
%% The next part of a body, called in the process that called request/3,4 when the application wants it. May
%% wait so many milliseconds, and says `wait` if nothing came.
-type next_part() :: fun((Ms :: non_neg_integer()) ->
    {more, iodata(), next_part()} | {done, iodata()} | {wait, next_part()} | {error, term()}).
-type options() :: #{
    timeout => timeout(),                 % ms until the answer begins; default 30000
    interface => auto | asgi | wsgi,
    key => term(),                        % in a pool: same key, same node
    idempotent => boolean(),              % in a pool: GET, HEAD, … may be asked again when a node is lost
    max_message => pos_integer(),         % of a WebSocket: bytes that may wait, so of a message too; default 1 MiB
    trace => py_trace:trace() | undefined
}.
%% {down, _}: no node took the request. {lost, _}: its node went in the middle. aborted: the application
%% failed after its answer had begun.
-type reason() :: py_link:reason() | {lost, term()} | aborted | closed.
-type body() :: binary() | {stream, stream()}.

%% How a request asks a member of a pool, or a node.
-type ask() :: fun((py_link:handle(), tuple(), timeout()) -> {ok, term()} | {error, reason()}).

%% A body on its way to the application.
-record(upload, {
    channel :: py_channel:channel(),
    ready = <<>> :: binary(),                       % taken from the source, not sent yet
    source :: {rest, binary()} | {part, next_part()} | over
}).
%% A request that was sent.
-record(exchange, {
    link :: py_link:handle(),
    call :: reference(),
    alias :: reference(),
    source :: {rest, binary()} | {part, next_part()} | over,
    upload = none :: none | #upload{}
}).
%% An answer that has begun.
-record(stream, {
    exchange :: #exchange{},
    gateway :: pid(),
    first :: binary(),                              % of the body, not handed out yet
    channel = none :: none | pull | py_channel:channel(),   % pull: the node makes none any more
    parts = 0 :: non_neg_integer()                  % received without a channel
}).
-opaque stream() :: #stream{}.
-type socket() :: py_asgi_socket:socket().
-type frame() :: py_asgi_socket:frame().

%% --- Requests -----------------------------------------------------------------------------------

%% Has App on Target answer a request.
-spec request(py:target(), app(), request()) ->
    {ok, 100..599, headers(), body()} | {error, reason()}.
request(Target, App, Request) ->
    request(Target, App, Request, #{}).

%% The same with options. A body that is whole comes as a binary, any other as {stream, Stream} for
%% read/1,2, which only this process may call. It ends with this process, or by close/1.
-spec request(py:target(), app(), request(), options()) ->
    {ok, 100..599, headers(), body()} | {error, reason()}.
request(Target, App, #{path := _} = Request, Options)
  when is_atom(Target), is_binary(App), is_map(Options) ->
    Method = maps:get(method, Request, <<"GET">>),
    Head = head(Method, <<"http">>, Request),
    {Inline, Source} = body(maps:get(body, Request, <<>>)),
    Call = {request, App, interface(Options), Head, Inline, maps:get(trace, Options, none)},
    Ask = fun(Link, Item, Timeout) -> begin_request(Link, Item, Source, Timeout) end,
    case ask(Target, Ask, Call, how(Method, Source, Options)) of
        {ok, {Status, Headers, Body}} -> {ok, Status, Headers, Body};
        {error, Reason} -> {error, Reason}
    end.

%% Imports App and runs its startup, so that the first request need not wait for it: on a node, or on
%% every member of a pool that is up.
-spec prepare(py:target(), app()) -> ok | {error, reason()}.
prepare(Target, App) ->
    prepare(Target, App, #{}).

-spec prepare(py:target(), app(), options()) -> ok | {error, reason()}.
prepare(Target, App, Options) when is_atom(Target), is_binary(App) ->
    Nodes = case py_pool:find(Target) of
        undefined -> [Target];
        _ -> py_pool:members(Target)
    end,
    Calls = [py:spawn_call(Node, ?GATEWAY, prepare, [App, interface(Options)],
                           #{binary => bytes, timeout => maps:get(timeout, Options, ?TIMEOUT_MS)})
             || Node <- Nodes],
    case [Reason || {error, Reason} <- [py:await(Call, infinity) || Call <- Calls]] of
        [] when Nodes =:= [] -> {error, {down, no_members}};
        [] -> ok;
        [Reason | _] -> {error, Reason}
    end.

%% What a web server says when a request came to nothing: 503 if no node took it, 502 if the one that did
%% was lost, 504 if it was too late, else 500.
-spec status_of(reason()) -> 500 | 502 | 503 | 504.
status_of(timeout) -> 504;
status_of(Reason) when Reason =:= overloaded; Reason =:= draining -> 503;
status_of({down, _}) -> 503;
status_of({bad_target, _}) -> 503;
status_of(Reason) when Reason =:= cancelled; Reason =:= aborted; Reason =:= closed -> 502;
status_of({lost, _}) -> 502;
status_of({worker_died, _}) -> 502;
status_of(_) -> 500.

%% --- Answers in pieces --------------------------------------------------------------------------

%% The next piece of an answer's body, or its last; an error says that it was cut off.
-spec read(stream()) -> {more, binary(), stream()} | {done, binary()} | {error, reason()}.
read(Stream) ->
    read(Stream, infinity).

%% The same, waiting so many milliseconds; after {error, timeout} the stream can be read on.
-spec read(stream(), timeout()) -> {more, binary(), stream()} | {done, binary()} | {error, reason()}.
read(#stream{first = First} = Stream, Timeout) when First =/= <<>>, ?is_timeout(Timeout) ->
    {more, First, Stream#stream{first = <<>>}};
read(#stream{channel = pull} = Stream, Timeout) when ?is_timeout(Timeout) ->
    pull(Stream, Timeout);
read(#stream{channel = none} = Stream, Timeout) when ?is_timeout(Timeout) ->
    case peek(Stream#stream.exchange) of
        none -> open(Stream, Timeout);
        Answer -> ended(Answer, Stream)
    end;
read(#stream{exchange = #exchange{source = over}} = Stream, Timeout) when ?is_timeout(Timeout) ->
    received(py_byte_channel:recv(Stream#stream.channel, Timeout), Stream);
read(#stream{} = Stream, Timeout) when ?is_timeout(Timeout) ->
    both_ways(Stream, deadline(Timeout)).

%% The client has gone: the application is told http.disconnect and cancelled a moment later. Does nothing
%% for a stream that has been read to its end.
-spec close(stream() | socket()) -> ok.
close(#stream{exchange = Exchange, gateway = Gateway, channel = Channel}) ->
    Gateway ! {gone, Exchange#exchange.alias},
    _ = [py_byte_channel:close(Channel) || is_pid(Channel)],
    drop(Exchange);
close(Socket) ->
    py_asgi_socket:close(Socket, 1000, <<>>).

%% --- WebSockets ---------------------------------------------------------------------------------

%% Has App on Target accept or refuse a WebSocket. The caller is its owner: it has to be the one that
%% receives, and the WebSocket ends with it.
-spec websocket(py:target(), app(), request()) ->
    {ok, socket(), #{subprotocol := binary() | none, headers := headers()}}
    | {refused, 100..599, headers(), binary()} | {error, reason()}.
websocket(Target, App, Request) ->
    websocket(Target, App, Request, #{}).

-spec websocket(py:target(), app(), request(), options()) ->
    {ok, socket(), #{subprotocol := binary() | none, headers := headers()}}
    | {refused, 100..599, headers(), binary()} | {error, reason()}.
websocket(Target, App, #{path := _} = Request, Options)
  when is_atom(Target), is_binary(App), is_map(Options) ->
    Head = head(<<"GET">>, <<"ws">>, Request),
    Protocols = maps:get(subprotocols, Request, []),
    Call = {websocket, App, interface(Options), Head, Protocols, maps:get(trace, Options, none)},
    py_asgi_socket:open(Target, Call, how(<<"GET">>, over, Options), Options).

%% Sends a frame to the application, waiting for room.
-spec send(socket(), {text | binary, iodata()}) -> ok | {error, closed | timeout}.
send(Socket, Frame) ->
    send(Socket, Frame, infinity).

-spec send(socket(), {text | binary, iodata()}, timeout()) -> ok | {error, closed | timeout}.
send(Socket, {Kind, Data}, Timeout) when Kind =:= text orelse Kind =:= binary, ?is_timeout(Timeout) ->
    py_asgi_socket:send(Socket, {Kind, iolist_to_binary(Data)}, Timeout).

%% The next frame from the application. {close, Code, Reason} is the last one.
-spec recv(socket()) -> {ok, frame()} | {error, closed}.
recv(Socket) ->
    recv(Socket, infinity).

-spec recv(socket(), timeout()) -> {ok, frame()} | {error, closed | timeout}.
recv(Socket, Timeout) when ?is_timeout(Timeout) ->
    py_asgi_socket:recv(Socket, Timeout).

%% Asks for one frame, which comes as the message {py_asgi, Socket, Frame}: for processes that wait for
%% other things too. Nothing comes that was not asked for.
-spec next(socket()) -> ok.
next(Socket) ->
    py_asgi_socket:next(Socket).

%% The client has closed the WebSocket (1006: it has gone).
-spec close(socket(), 1000..4999, binary()) -> ok.
close(Socket, Code, Reason) when is_integer(Code), is_binary(Reason) ->
    py_asgi_socket:close(Socket, Code, Reason).

%% --- Asking -------------------------------------------------------------------------------------

%% Finds who takes a call, and has Ask send it there; a pool's refused calls move on.
-spec ask(py:target(), ask(), tuple(), {timeout(), py_pool:how()}) ->
    {ok, term()} | {error, reason()}.
ask(Target, Ask, Call, {Timeout, How}) ->
    case py_link:find(Target) of
        undefined -> ask_pool(py_pool:find(Target), Target, Ask, Call, Timeout, How);
        Link -> asked(Ask(Link, Call, Timeout))
    end.

-spec ask_pool(py_pool:view() | undefined, py:target(), ask(), tuple(), timeout(), py_pool:how()) ->
    {ok, term()} | {error, reason()}.
ask_pool(undefined, Target, Ask, Call, Timeout, _) ->
    Deadline = deadline(Timeout),
    case py_node:await_link(Target, Timeout) of
        {ok, Link} -> asked(Ask(Link, Call, remaining(Deadline)));
        {error, Reason} -> {error, Reason}
    end;
ask_pool(Pool, _, Ask, Call, Timeout, How) ->
    case py_pool:call_with(Pool, Ask, Call, Timeout, How) of
        {error, {down, no_members}} = None -> None;
        Result -> asked(Result)
    end.

%% A node that went with a call under way was lost; else none was there.
-spec asked({ok, term()} | {error, reason()}) -> {ok, term()} | {error, reason()}.
asked({error, {down, Why}}) -> {error, {lost, Why}};
asked(Result) -> Result.

-spec how(binary(), term(), options()) -> {timeout(), py_pool:how()}.
how(Method, Source, Options) ->
    Again = maps:get(idempotent, Options, false) andalso is_idempotent(Method)
        andalso not is_part(Source),
    Timeout = maps:get(timeout, Options, ?TIMEOUT_MS),
    {Timeout, maps:merge(maps:with([key], Options), #{idempotent => Again})}.

-spec is_part(term()) -> boolean().
is_part({part, _}) -> true;
is_part(_) -> false.

-spec is_idempotent(binary()) -> boolean().
is_idempotent(Method) ->
    lists:member(Method, [<<"GET">>, <<"HEAD">>, <<"OPTIONS">>, <<"TRACE">>, <<"PUT">>, <<"DELETE">>]).

-spec interface(options()) -> auto | asgi | wsgi.
interface(Options) ->
    maps:get(interface, Options, auto).

%% What of a request goes into its scope.
-spec head(binary(), binary(), request()) -> tuple().
head(Method, Scheme, #{path := Path} = Request) ->
    {Method, Path,
     maps:get(query_string, Request, <<>>),
     maps:get(headers, Request, []),
     maps:get(http_version, Request, <<"1.1">>),
     maps:get(scheme, Request, Scheme),
     address(maps:get(client, Request, none)),
     address(maps:get(server, Request, none)),
     maps:get(root_path, Request, <<>>)}.

-spec address(address() | none) -> {binary(), inet:port_number()} | none.
address(none) -> none;
address({Host, Port}) when is_binary(Host) -> {Host, Port};
address({Ip, Port}) -> {list_to_binary(inet:ntoa(Ip)), Port}.

%% What of a body goes along with the call, and the rest.
-spec body(iodata() | {stream, next_part()}) ->
    {binary() | none, {rest, binary()} | {part, next_part()} | over}.
body({stream, Next}) when is_function(Next, 1) ->
    {none, {part, Next}};
body(Body) when is_binary(Body), byte_size(Body) =< ?INLINE ->
    {Body, over};
body(Body) when is_binary(Body) ->
    {none, {rest, Body}};
body(Body) when is_list(Body) ->
    body(iolist_to_binary(Body)).

%% The call's item for py_link.
-spec item(tuple(), pid(), reference()) -> py_link:request().
item({Function, App, Interface, Head, Body, Trace}, Caller, Alias) ->
    Options = case Trace of
        none -> #{binary => bytes};
        _ -> #{binary => bytes, trace => Trace}
    end,
    Args = [App, Interface, Head, Body, Caller, Alias],
    py_trace:onto({call, 0, ?GATEWAY, Function, Args, [], Options}).

%% --- An exchange, up to the beginning of its answer ---------------------------------------------

-spec begin_request(py_link:handle(), tuple(), term(), timeout()) -> {ok, term()} | {error, reason()}.
begin_request(Link, Call, Source, Timeout) ->
    Alias = erlang:alias(),
    case py_link:begin_call(Link, item(Call, self(), Alias)) of
        overloaded ->
            true = erlang:unalias(Alias),
            {error, overloaded};
        Ref ->
            Exchange = #exchange{link = Link, call = Ref, alias = Alias, source = Source},
            await_head(Exchange, deadline(Timeout))
    end.

-spec await_head(#exchange{}, deadline()) -> {ok, term()} | {error, reason()}.
await_head(Exchange, Deadline) ->
    case wait(Exchange, remaining(Deadline)) of
        {result, {ok, {_, _, _}} = Answer} ->
            ok = close_upload(Exchange),
            ok = drop(Exchange),
            Answer;
        {result, {error, Reason}} ->
            ok = close_upload(Exchange),
            ok = drop(Exchange),
            {error, Reason};
        {result, {ok, _} = Result} ->
            overtaken(Result, Exchange);
        {down, Reason} ->
            ok = close_upload(Exchange),
            ok = drop(Exchange),
            {error, {down, py_link:why(Reason)}};
        {start, Gateway, Status, Headers, First} ->
            Stream = #stream{exchange = Exchange, gateway = Gateway, first = First},
            {ok, {Status, Headers, {stream, Stream}}};
        {more, Gateway} ->
            await_head(start_upload(Gateway, Exchange), Deadline);
        idle ->
            await_head(upload(Exchange), Deadline);
        timeout ->
            ok = give_up(Exchange),
            {error, timeout}
    end.

%% How an answer ended whose beginning is still on its way: large messages come in fragments, between which
%% others pass.
-spec overtaken(term(), #exchange{}) -> {ok, term()} | {error, reason()}.
overtaken(Result, Exchange = #exchange{call = Call, alias = Alias}) ->
    receive
        {[alias | Alias], {start, Gateway, Status, Headers, First}} ->
            self() ! {Call, Result},
            Stream = #stream{exchange = Exchange, gateway = Gateway, first = First},
            {ok, {Status, Headers, {stream, Stream}}}
    after ?END_MS ->
        ok = close_upload(Exchange),
        ok = drop(Exchange),
        {error, aborted}
    end.

%% What the node says next. With a body under way, `idle` says that there was nothing.
-spec wait(#exchange{}, timeout()) -> term().
wait(#exchange{call = Call, alias = Alias, upload = Upload}, Timeout) ->
    receive
        {Call, Result} -> {result, Result};
        {'DOWN', Call, process, _, Reason} -> {down, Reason};
        {[alias | Alias], {whole, Answer}} -> {result, {ok, Answer}};
        {[alias | Alias], Told} -> Told
    after
        case Upload of none -> Timeout; _ -> 0 end ->
            case Upload =/= none andalso Timeout =/= 0 of
                true -> idle;
                false -> timeout
            end
    end.

%% The answer was not waited for: the application is told so.
-spec give_up(#exchange{}) -> ok.
give_up(Exchange = #exchange{link = Link, alias = Alias}) ->
    _ = py_link:cast(Link, {cast, ?GATEWAY, gone, [Alias], []}),
    ok = close_upload(Exchange),
    drop(Exchange).

%% Nothing of the exchange comes any more, and nothing is left.
-spec drop(#exchange{}) -> ok.
drop(#exchange{call = Call, alias = Alias}) ->
    true = erlang:demonitor(Call, [flush]),
    receive {Call, _} -> ok after 0 -> ok end,
    _ = erlang:unalias(Alias),
    flush(Alias).

-spec flush(reference()) -> ok.
flush(Alias) ->
    receive
        {[alias | Alias], _} -> flush(Alias)
    after 0 ->
        ok
    end.

%% --- The request's body -------------------------------------------------------------------------

-spec start_upload(pid(), #exchange{}) -> #exchange{}.
start_upload(Gateway, Exchange = #exchange{alias = Alias, source = Source}) ->
    case py_byte_channel:new(node(Gateway), #{max_size => ?CHANNEL_BYTES}) of
        {ok, Channel} ->
            Gateway ! {body, Alias, Channel},
            Exchange#exchange{upload = #upload{channel = Channel, source = Source}};
        {error, _} ->
            Gateway ! {body, Alias, none},
            Exchange#exchange{source = over}
    end.

%% Goes on with the body, but not for long.
-spec upload(#exchange{}) -> #exchange{}.
upload(Exchange = #exchange{upload = #upload{ready = <<>>, source = over, channel = Channel}}) ->
    % An empty message is the end; without it the application hears that the client has gone.
    uploaded(py_byte_channel:send(Channel, <<>>, ?TURN_MS), over, <<>>, Exchange);
upload(Exchange = #exchange{upload = Upload = #upload{ready = <<>>, source = {rest, <<>>}}}) ->
    upload(Exchange#exchange{upload = Upload#upload{source = over}});
upload(Exchange = #exchange{upload = Upload = #upload{ready = <<>>, source = {rest, Rest}}}) ->
    upload(Exchange#exchange{upload = Upload#upload{ready = Rest, source = over}});
upload(Exchange = #exchange{upload = Upload = #upload{ready = <<>>, source = {part, Next}}}) ->
    case Next(?TURN_MS) of
        {more, Data, Next1} -> ready(Data, {part, Next1}, Exchange);
        {done, Data} -> ready(Data, over, Exchange);
        {wait, Next1} -> Exchange#exchange{upload = Upload#upload{source = {part, Next1}}};
        {error, _} -> stop_upload(Exchange)
    end;
upload(Exchange = #exchange{upload = #upload{ready = <<Piece:?INLINE/binary, Rest/binary>>} = Upload}) ->
    uploaded(py_byte_channel:send(Upload#upload.channel, Piece, ?TURN_MS), sent, Rest, Exchange);
upload(Exchange = #exchange{upload = #upload{ready = Piece} = Upload}) ->
    uploaded(py_byte_channel:send(Upload#upload.channel, Piece, ?TURN_MS), sent, <<>>, Exchange).

-spec ready(iodata(), {part, next_part()} | over, #exchange{}) -> #exchange{}.
ready(Data, Source, Exchange = #exchange{upload = Upload}) ->
    Exchange#exchange{upload = Upload#upload{ready = iolist_to_binary(Data), source = Source}}.

-spec uploaded(ok | busy | {error, closed}, sent | over, binary(), #exchange{}) -> #exchange{}.
uploaded(ok, sent, Rest, Exchange = #exchange{upload = Upload}) ->
    Exchange#exchange{upload = Upload#upload{ready = Rest}};
uploaded(busy, _, _, Exchange) ->
    Exchange;
uploaded(_, _, _, Exchange) ->
    stop_upload(Exchange).

%% All sent, or nobody wants it, or the client broke off.
-spec stop_upload(#exchange{}) -> #exchange{}.
stop_upload(Exchange) ->
    ok = close_upload(Exchange),
    Exchange#exchange{upload = none, source = over}.

-spec close_upload(#exchange{}) -> ok.
close_upload(#exchange{upload = none}) -> ok;
close_upload(#exchange{upload = #upload{channel = Channel}}) -> py_byte_channel:close(Channel).

%% --- The answer's body --------------------------------------------------------------------------

%% Makes the channel for an answer that goes on. A node that is being stopped makes none, but still tells
%% one part at a time.
-spec open(#stream{}, timeout()) -> {more, binary(), stream()} | {done, binary()} | {error, reason()}.
open(#stream{gateway = Gateway, exchange = Exchange} = Stream, Timeout) ->
    case py_byte_channel:new(node(Gateway), #{max_size => ?CHANNEL_BYTES}) of
        {ok, Channel} ->
            Gateway ! {answer, Exchange#exchange.alias, Channel},
            read(Stream#stream{channel = Channel}, Timeout);
        {error, _} ->
            pull(Stream#stream{channel = pull}, Timeout)
    end.

-spec pull(#stream{}, timeout()) -> {more, binary(), stream()} | {done, binary()} | {error, reason()}.
pull(#stream{exchange = Exchange, gateway = Gateway, parts = Parts} = Stream, Timeout) ->
    Gateway ! {pull, Exchange#exchange.alias},
    case wait(Exchange#exchange{upload = none}, Timeout) of
        {part, Part} -> {more, Part, Stream#stream{parts = Parts + 1}};
        {more, _} -> pull(Stream, Timeout);
        timeout -> {error, timeout};
        Answer -> pulled(Answer, Stream)
    end.

%% The end may have overtaken a part.
-spec pulled(term(), #stream{}) -> {more, binary(), stream()} | {done, binary()} | {error, reason()}.
pulled({result, {ok, {rest, {Sent, _}}} = Answer}, #stream{parts = Parts} = Stream) when Sent > Parts ->
    #stream{exchange = #exchange{call = Call, alias = Alias}} = Stream,
    receive
        {[alias | Alias], {part, Part}} ->
            self() ! {Call, Answer},
            {more, Part, Stream#stream{parts = Parts + 1}}
    after ?END_MS ->
        ended({error, timeout}, Stream)
    end;
pulled(Answer, Stream) ->
    ended(Answer, Stream).

-spec received({ok, binary()} | {error, closed | timeout}, #stream{}) ->
    {more, binary(), stream()} | {done, binary()} | {error, reason()}.
received({ok, <<>>}, #stream{exchange = Exchange, channel = Channel}) ->
    ok = py_byte_channel:close(Channel),
    ok = close_upload(Exchange),
    ok = drop(Exchange),
    {done, <<>>};
received({ok, Data}, Stream) ->
    {more, Data, Stream};
received({error, timeout}, _) ->
    {error, timeout};
received({error, closed}, Stream) ->
    last_word(Stream).

%% The body has not been read to its end: both directions get their turns.
-spec both_ways(#stream{}, deadline()) ->
    {more, binary(), stream()} | {done, binary()} | {error, reason()}.
both_ways(#stream{exchange = #exchange{source = over}} = Stream, Deadline) ->
    read(Stream, remaining(Deadline));
both_ways(#stream{exchange = Exchange, gateway = Gateway} = Stream, Deadline) ->
    case {turn(Stream, remaining(Deadline)), wants_body(Exchange)} of
        {empty, true} ->
            both_ways(Stream#stream{exchange = start_upload(Gateway, Exchange)}, Deadline);
        {empty, false} when Exchange#exchange.upload =/= none ->
            both_ways(Stream#stream{exchange = upload(Exchange)}, Deadline);
        {empty, false} ->
            both_ways(Stream, Deadline);
        {Received, true} ->
            received(Received, Stream#stream{exchange = start_upload(Gateway, Exchange)});
        {Received, false} ->
            received(Received, Stream)
    end.

-spec turn(#stream{}, timeout()) -> {ok, binary()} | {error, closed | timeout} | empty.
turn(_, 0) ->
    {error, timeout};
turn(#stream{exchange = #exchange{upload = none}, channel = Channel}, Remaining) ->
    case py_byte_channel:recv(Channel, min(?TURN_MS, Remaining)) of
        {error, timeout} -> empty;
        Received -> Received
    end;
turn(#stream{channel = Channel}, _) ->
    case py_byte_channel:try_receive(Channel) of
        {error, empty} -> empty;
        Received -> Received
    end.

-spec wants_body(#exchange{}) -> boolean().
wants_body(#exchange{alias = Alias}) ->
    receive
        {[alias | Alias], {more, _}} -> true
    after 0 ->
        false
    end.

%% The channel is closed, or was not to be had: the call's end says how the answer ended.
-spec last_word(#stream{}) -> {more, binary(), stream()} | {done, binary()} | {error, reason()}.
last_word(#stream{exchange = Exchange} = Stream) ->
    case wait(Exchange#exchange{upload = none}, ?END_MS) of
        {more, _} -> last_word(Stream);
        timeout -> ended({error, timeout}, Stream);
        Answer -> ended(Answer, Stream)
    end.

%% The end of the call, if it has been told.
-spec peek(#exchange{}) -> term().
peek(Exchange = #exchange{call = Call, alias = Alias}) ->
    receive
        {Call, Result} -> {result, Result};
        {'DOWN', Call, process, _, Reason} -> {down, Reason};
        {[alias | Alias], {whole, Answer}} -> {result, {ok, Answer}};
        {[alias | Alias], {more, _}} -> peek(Exchange)
    after 0 ->
        none
    end.

-spec ended(term(), #stream{}) -> {done, binary()} | {error, reason()}.
ended(Answer, #stream{exchange = Exchange}) ->
    ok = close_upload(Exchange),
    ok = drop(Exchange),
    case Answer of
        {result, {ok, {rest, {_, Rest}}}} -> {done, Rest};
        {result, {ok, done}} -> {done, <<>>};
        {result, {ok, _}} -> {error, aborted};
        {result, {error, {down, Why}}} -> {error, {lost, Why}};
        {result, {error, Reason}} -> {error, Reason};
        {down, Reason} -> {error, {lost, py_link:why(Reason)}};
        {error, timeout} -> {error, aborted}
    end.

%% --- Time ---------------------------------------------------------------------------------------

-type deadline() :: integer() | infinity.

-spec deadline(timeout()) -> deadline().
deadline(infinity) -> infinity;
deadline(Timeout) -> erlang:monotonic_time(millisecond) + Timeout.

-spec remaining(deadline()) -> timeout().
remaining(infinity) -> infinity;
remaining(Deadline) -> max(0, Deadline - erlang:monotonic_time(millisecond)).
