%% A handler for Cowboy 2: requests and WebSockets of a route go to a Python application.
%%
%%   Routes = [{"/api/[...]", py_asgi_cowboy, #{target => web, app => <<"shop:app">>, root_path => <<"/api">>}}],
%%   {ok, _} = cowboy:start_clear(http, [{port, 8080}],
%%                                #{env => #{dispatch => cowboy_router:compile([{'_', Routes}])}}).
%%
%% Needs Cowboy on the code path. Cowboy ends a request's process when its client leaves, and so the
%% application hears of it.
-module(py_asgi_cowboy).

-export([init/2, websocket_init/1, websocket_handle/2, websocket_info/2, terminate/3]).

%% State: #{target, app} and, if you like, root_path and options (of py_asgi:request/4).
init(Req, #{target := Target, app := App} = State) ->
    Options = maps:get(options, State, #{}),
    case cowboy_websocket_asked(Req) of
        true -> upgrade(Req, Target, App, Options, State);
        false -> request(Req, Target, App, Options, State)
    end.

cowboy_websocket_asked(Req) ->
    string:lowercase(cowboy_req:header(<<"upgrade">>, Req, <<>>)) =:= <<"websocket">>.

asked(Req, State) ->
    #{method => cowboy_req:method(Req),
      path => cowboy_req:path(Req),
      query_string => cowboy_req:qs(Req),
      headers => maps:to_list(cowboy_req:headers(Req)),
      scheme => cowboy_req:scheme(Req),
      http_version => version(cowboy_req:version(Req)),
      client => cowboy_req:peer(Req),
      server => {cowboy_req:host(Req), cowboy_req:port(Req)},
      root_path => maps:get(root_path, State, <<>>)}.

version('HTTP/1.0') -> <<"1.0">>;
version('HTTP/1.1') -> <<"1.1">>;
version('HTTP/2') -> <<"2">>;
version(_) -> <<"3">>.

%% --- Requests -----------------------------------------------------------------------------------

request(Req, Target, App, Options, State) ->
    Body = case cowboy_req:has_body(Req) of
        true -> {stream, next_part(Req)};
        false -> <<>>
    end,
    case py_asgi:request(Target, App, (asked(Req, State))#{body => Body}, Options) of
        {ok, Status, Headers, {stream, Stream}} ->
            {Plain, Cookies} = headers(Headers),
            Streaming = cowboy_req:stream_reply(Status, Plain, cookies(Cookies, Req)),
            {ok, stream(py_asgi:read(Stream), Streaming), State};
        {ok, Status, Headers, Whole} ->
            {Plain, Cookies} = headers(Headers),
            {ok, cowboy_req:reply(Status, Plain, Whole, cookies(Cookies, Req)), State};
        {error, Reason} ->
            {ok, cowboy_req:reply(py_asgi:status_of(Reason), Req), State}
    end.

next_part(Req) ->
    fun(Ms) ->
        case cowboy_req:read_body(Req, #{length => 65536, period => Ms, timeout => Ms + 5000}) of
            {ok, Data, _} -> {done, Data};
            {more, <<>>, Req1} -> {wait, next_part(Req1)};
            {more, Data, Req1} -> {more, Data, next_part(Req1)}
        end
    end.

stream({more, Data, Stream}, Req) ->
    ok = cowboy_req:stream_body(Data, nofin, Req),
    stream(py_asgi:read(Stream), Req);
stream({done, Data}, Req) ->
    ok = cowboy_req:stream_body(Data, fin, Req),
    Req;
stream({error, Reason}, _) ->
    exit({shutdown, Reason}).    % the client must not take it for the whole

%% Cowboy's headers are a map; only cookies may come more than once, and have a place of their own.
headers(Headers) ->
    Low = [{string:lowercase(Name), Value} || {Name, Value} <- Headers],
    {Cookies, Others} = lists:partition(fun({Name, _}) -> Name =:= <<"set-cookie">> end, Low),
    Join = fun({Name, Value}, Map) ->
        maps:update_with(Name, fun(Before) -> [Before, <<", ">>, Value] end, Value, Map)
    end,
    {lists:foldl(Join, #{}, Others), [Value || {_, Value} <- Cookies]}.

%% As they are: cowboy_req:set_resp_cookie would put them together anew.
cookies([], Req) -> Req;
cookies(Values, Req) -> Req#{resp_cookies => maps:from_list(lists:enumerate(Values))}.

%% --- WebSockets ---------------------------------------------------------------------------------

%% The application is asked before the upgrade, by the request's process, which with HTTP/1.1 ends then: the
%% connection's serves the WebSocket. So its owner is a process of its own.
upgrade(Req, Target, App, Options, State) ->
    Protocols = case cowboy_req:parse_header(<<"sec-websocket-protocol">>, Req) of
        undefined -> [];
        Some -> Some
    end,
    Request = (asked(Req, State))#{scheme => ws(Req), subprotocols => Protocols},
    case own(fun() -> py_asgi:websocket(Target, App, Request, Options) end) of
        {ok, Owner, Socket, #{subprotocol := Protocol, headers := Headers}} ->
            {Plain, Cookies} = headers(Headers),
            Chosen = case is_binary(Protocol) of
                true -> #{<<"sec-websocket-protocol">> => Protocol};
                false -> #{}
            end,
            Accepted = cowboy_req:set_resp_headers(maps:merge(Plain, Chosen), cookies(Cookies, Req)),
            {cowboy_websocket, Accepted, #{owner => Owner, socket => Socket}};
        {refused, Status, Headers, Body} ->
            {Plain, Cookies} = headers(Headers),
            {ok, cowboy_req:reply(Status, Plain, Body, cookies(Cookies, Req)), State};
        {error, Reason} ->
            {ok, cowboy_req:reply(py_asgi:status_of(Reason), Req), State}
    end.

ws(Req) ->
    case cowboy_req:scheme(Req) of <<"https">> -> <<"wss">>; _ -> <<"ws">> end.

own(Open) ->
    Asker = self(),
    {Owner, Monitor} = spawn_monitor(fun() -> owner(Asker, Open()) end),
    receive
        {Owner, Answer} -> demonitor(Monitor, [flush]), Answer;
        {'DOWN', Monitor, process, Owner, Reason} -> {error, {down, Reason}}
    end.

owner(Asker, {ok, Socket, Accepted}) ->
    Asker ! {self(), {ok, self(), Socket, Accepted}},
    receive
        {serve, Connection} ->
            ok = py_asgi:next(Socket),
            owner(Socket, Connection, monitor(process, Connection))
    after 10000 ->
        ok      % the client left before the upgrade
    end;
owner(Asker, Other) ->
    Asker ! {self(), Other}.

owner(Socket, Connection, Monitor) ->
    receive
        {py_asgi, Socket, _} = Message -> Connection ! Message, owner(Socket, Connection, Monitor);
        {'DOWN', Monitor, process, _, _} -> py_asgi:close(Socket, 1006, <<>>)
    end.

websocket_init(#{owner := Owner} = State) ->
    Owner ! {serve, self()},
    {ok, State}.

%% Waits for room, so a slow application slows its client down.
websocket_handle({Kind, Data}, #{socket := Socket} = State) when Kind =:= text; Kind =:= binary ->
    case py_asgi:send(Socket, {Kind, Data}, 30000) of
        ok -> {ok, State};
        {error, _} -> {[{close, 1011, <<>>}], State}
    end;
websocket_handle(_, State) ->
    {ok, State}.

websocket_info({py_asgi, Socket, {close, Code, Reason}}, #{socket := Socket} = State) ->
    {[{close, Code, Reason}], State};
websocket_info({py_asgi, Socket, Frame}, #{socket := Socket} = State) ->
    ok = py_asgi:next(Socket),
    {[Frame], State};
websocket_info(_, State) ->
    {ok, State}.

terminate({remote, Code, Reason}, _, #{socket := Socket}) when is_integer(Code) ->
    py_asgi:close(Socket, Code, Reason);
terminate({remote, _, _}, _, #{socket := Socket}) ->
    py_asgi:close(Socket, 1005, <<>>);
terminate(remote, _, #{socket := Socket}) ->
    py_asgi:close(Socket, 1005, <<>>);
terminate(_, _, #{socket := Socket}) ->
    py_asgi:close(Socket, 1006, <<>>);
terminate(_, _, _) ->
    ok.
