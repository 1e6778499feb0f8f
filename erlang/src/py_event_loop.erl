%% Event loops of a node, operated from Erlang: descriptors of the node's process are watched, timers
%% run, and what happens is collected here or sent to a router.
%%
%%   {ok, Loop} = py_event_loop:new('py@host'),
%%   {ok, {Fd, Port}} = py_event_loop:create_test_udp_socket(Loop, 0),
%%   {ok, _} = py_event_loop:add_reader(Loop, Fd, 1),
%%   {ok, N} = py_event_loop:poll_events(Loop, 1000),
%%   {ok, [{readable, Fd, 1}]} = py_event_loop:get_pending(Loop).
%%
%% A loop is an ErlangEventLoop in a thread of its own, and a process of the node: it can be
%% monitored and linked. It ends with its owner, the process that called new/0,1, with the owner's
%% exit reason; by destroy/1; by an exit signal; with the node.
%%
%% Readiness is level-triggered and told of once: a reader or writer whose event has been told is
%% disarmed until rearm/2 or, where events are collected, until get_pending/1 has handed it over. So
%% nobody is flooded by a descriptor that nobody reads.
%%
%% With a router (see py_event_router, or any process) events are sent to it as {py_event, Loop,
%% Event} instead of being collected. When it ends, or another takes over, everything that is ready
%% is told of again, to the new router or to who collects.
-module(py_event_loop).

-export([new/0, new/1, destroy/1, set_router/2, info/1]).
-export([add_reader/3, remove_reader/2, add_writer/3, remove_writer/2, rearm/2]).
-export([start_timer/3, cancel_timer/2, poll_events/2, get_pending/1]).
-export([create_test_udp_socket/2, sendto_test_udp/5, recvfrom_test_udp/3,
         close_test_udp_socket/2]).

-export_type([loop/0, fd/0, id/0, event/0, reason/0]).

-define(TIMEOUT_MS, 30000).
-define(PYTHON, 'erlang._event_loop').
-define(is_loop(X), (is_pid(X) andalso node(X) =/= node())).
-define(is_fd(X), (is_integer(X) andalso X >= 0 andalso X =< 16#7fffffff)).
-define(is_watch(X), (is_reference(X) orelse ?is_fd(X))).
-define(is_id(X), (is_integer(X) andalso X >= 0)).
-define(is_ms(X), (is_integer(X) andalso X >= 0 andalso X =< 16#ffffffff)).
-define(is_port_number(X), (is_integer(X) andalso X >= 0 andalso X =< 65535)).

-type loop() :: pid().
-type fd() :: non_neg_integer().        % a descriptor of the node's process
-type id() :: non_neg_integer().        % says what an event is about; chosen by the caller
-type event() ::
    {readable | writable, fd(), id()}
    | {timeout, reference(), id()}
    | {closed, fd(), id()}.             % watched, and found closed; it is watched no more
-type reason() ::
    closed                              % no such loop, or not any more
    | {too_many, loops | readers | timers | pollers | sockets}
    | inet:posix()                      % ebadf: no such descriptor; eperm: not one that can wait
    | py:reason().

%% --- Loops --------------------------------------------------------------------------------------

%% Makes a loop on the default node; the caller owns it.
-spec new() -> {ok, loop()} | {error, reason()}.
new() ->
    result(py:call(?PYTHON, new, [self()])).

%% Makes a loop on Target.
-spec new(py:target()) -> {ok, loop()} | {error, reason()}.
new(Target) when is_atom(Target) ->
    result(py:call(Target, ?PYTHON, new, [self()])).

%% Ends the loop; its descriptors are closed when this returns. As often as you like.
-spec destroy(loop()) -> ok | {error, reason()}.
destroy(Loop) when ?is_loop(Loop) ->
    request(Loop, destroy, [Loop], ?TIMEOUT_MS).

%% Who is sent {py_event, Loop, event()} from now on; what waits to be collected is sent first. With
%% `none` events are collected.
-spec set_router(loop(), pid() | none) -> ok | {error, reason()}.
set_router(Loop, Router) when ?is_loop(Loop), is_pid(Router) orelse Router =:= none ->
    do(Loop, set_router, [Router]).

%% How many of what the loop has, and its router.
-spec info(loop()) -> {ok, #{readers | writers | timers | pending | sockets := non_neg_integer(),
                             router := pid() | none}} | {error, reason()}.
info(Loop) when ?is_loop(Loop) ->
    do(Loop, info, []).

%% --- Descriptors --------------------------------------------------------------------------------

%% Tells when a descriptor is readable, in place of a reader it may already have. The reference is
%% good for remove_reader/2 and rearm/2, as is the descriptor itself.
-spec add_reader(loop(), fd(), id()) -> {ok, reference()} | {error, reason()}.
add_reader(Loop, Fd, Id) when ?is_loop(Loop), ?is_fd(Fd), ?is_id(Id) ->
    do(Loop, add, [readable, Fd, Id]).

%% `ok` also if there is none. An event may be on its way to the router. To be done before the
%% descriptor is closed: what is closed while it is armed is never heard of again.
-spec remove_reader(loop(), reference() | fd()) -> ok | {error, reason()}.
remove_reader(Loop, Reader) when ?is_loop(Loop), ?is_watch(Reader) ->
    do(Loop, remove, [readable, Reader]).

%% Tells when a descriptor is writable.
-spec add_writer(loop(), fd(), id()) -> {ok, reference()} | {error, reason()}.
add_writer(Loop, Fd, Id) when ?is_loop(Loop), ?is_fd(Fd), ?is_id(Id) ->
    do(Loop, add, [writable, Fd, Id]).

-spec remove_writer(loop(), reference() | fd()) -> ok | {error, reason()}.
remove_writer(Loop, Writer) when ?is_loop(Loop), ?is_watch(Writer) ->
    do(Loop, remove, [writable, Writer]).

%% Arms a reader or writer again (or both of a descriptor) after its event was sent to the router:
%% it is told of at once if it still is ready. Of no effect on one that is armed or not there.
-spec rearm(loop(), reference() | fd()) -> ok | {error, reason()}.
rearm(Loop, Watch) when ?is_loop(Loop), ?is_watch(Watch) ->
    do(Loop, rearm, [Watch]).

%% --- Timers -------------------------------------------------------------------------------------

%% After so many milliseconds {timeout, Ref, Id} happens.
-spec start_timer(loop(), 0..16#ffffffff, id()) -> {ok, reference()} | {error, reason()}.
start_timer(Loop, Ms, Id) when ?is_loop(Loop), ?is_ms(Ms), ?is_id(Id) ->
    do(Loop, start_timer, [Ms, Id]).

%% `ok` also if it is over. Its event may be on its way to the router.
-spec cancel_timer(loop(), reference()) -> ok | {error, reason()}.
cancel_timer(Loop, Ref) when ?is_loop(Loop), is_reference(Ref) ->
    do(Loop, cancel_timer, [Ref]).

%% --- Collecting events --------------------------------------------------------------------------

%% How many events wait to be collected, once there are any or so many milliseconds have passed.
%% None ever do while there is a router.
-spec poll_events(loop(), 0..16#ffffffff | infinity) -> {ok, non_neg_integer()} | {error, reason()}.
poll_events(Loop, infinity) when ?is_loop(Loop) ->
    request(Loop, poll, [Loop, infinity], infinity);
poll_events(Loop, Ms) when ?is_loop(Loop), ?is_ms(Ms) ->
    request(Loop, poll, [Loop, Ms], Ms + ?TIMEOUT_MS).

%% Takes what has happened, in order. Readers and writers among it are armed again.
-spec get_pending(loop()) -> {ok, [event()]} | {error, reason()}.
get_pending(Loop) when ?is_loop(Loop) ->
    do(Loop, get_pending, []).

%% --- UDP sockets for tests ----------------------------------------------------------------------

%% A socket of the node on its loopback interface; port 0 takes any. It ends with the loop.
-spec create_test_udp_socket(loop(), inet:port_number()) ->
    {ok, {fd(), inet:port_number()}} | {error, reason()}.
create_test_udp_socket(Loop, Port) when ?is_loop(Loop), ?is_port_number(Port) ->
    do(Loop, open_udp, [Port]).

-spec sendto_test_udp(loop(), fd(), inet:ip4_address() | string() | binary(),
                      inet:port_number(), iodata()) -> ok | {error, reason()}.
sendto_test_udp(Loop, Fd, Host, Port, Data)
  when ?is_loop(Loop), ?is_fd(Fd), ?is_port_number(Port) ->
    do(Loop, send_udp, [Fd, literal(Host), Port, {bytes, iolist_to_binary(Data)}]).

%% {error, eagain} when there is nothing to read; the socket's reader is then armed again.
-spec recvfrom_test_udp(loop(), fd(), 1..65535) ->
    {ok, {binary(), {Host :: binary(), inet:port_number()}}} | {error, reason()}.
recvfrom_test_udp(Loop, Fd, Size)
  when ?is_loop(Loop), ?is_fd(Fd), is_integer(Size), Size >= 1, Size =< 65535 ->
    do(Loop, receive_udp, [Fd, Size]).

%% Removes its reader and writer as well.
-spec close_test_udp_socket(loop(), fd()) -> ok | {error, reason()}.
close_test_udp_socket(Loop, Fd) when ?is_loop(Loop), ?is_fd(Fd) ->
    do(Loop, close_udp, [Fd]).

%% Names are not looked up: that would hold up the loop.
-spec literal(inet:ip4_address() | string() | binary()) -> binary().
literal(Host) when is_binary(Host) ->
    literal(binary_to_list(Host));
literal(Host) when is_list(Host) ->
    case inet:parse_ipv4strict_address(Host) of
        {ok, Address} -> literal(Address);
        {error, _} -> error(badarg)
    end;
literal(Address) ->
    case inet:ntoa(Address) of
        {error, _} -> error(badarg);
        Text -> list_to_binary(Text)
    end.

%% --- Ways to the loop ---------------------------------------------------------------------------

-spec do(loop(), atom(), [term()]) -> term().
do(Loop, What, Args) ->
    request(Loop, do, [Loop, What | Args], ?TIMEOUT_MS).

-spec request(loop(), atom(), [term()], timeout()) -> term().
request(Loop, F, Args, Timeout) ->
    result(py:call(node(Loop), ?PYTHON, F, Args, #{timeout => Timeout})).

-spec result(py:result()) -> term().
result({ok, Result}) -> Result;
result({error, Reason}) -> {error, Reason}.
