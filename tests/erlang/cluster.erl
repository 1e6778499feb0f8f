%% Support for the suites: a private epmd, and BEAMs of their own for the application under test
%% (the client) and for the fake nodes. They are driven over standard input and output, so that
%% distribution between them can be cut without losing hold of them.
-module(cluster).

-export([start_epmd/0, stop_epmd/1, free_port/0]).
-export([start_client/1, start_plain/1, start_fake/1, start_fake/2, stop/1, stop_if_alive/1, kill/1]).
-export([on/2, eventually/1, unique/1]).
-export([init/1]).

-define(COOKIE, "sidewinder_tests").
-define(BOOT_MS, 60000).        % a busy machine may take its time
-define(DEADLINE_MS, 30000).    % only ever met by a failure

-type epmd() :: #{port := string(), process := pid() | none}.
-type beam() :: #{peer := pid(), node := node()}.
-export_type([epmd/0, beam/0]).

%% The epmd given by ERL_EPMD_PORT, or a new one on a free port, which ends with its port.
-spec start_epmd() -> epmd().
start_epmd() ->
    case os:getenv("ERL_EPMD_PORT") of
        false -> start_epmd(free_port());
        Given -> #{port => Given, process => none}
    end.

-spec start_epmd(string()) -> epmd().
start_epmd(Number) ->
    Script = "exec 2>/dev/null; \"$0\" -port " ++ Number ++ " -address 127.0.0.1 & cat >/dev/null; kill $!; wait $!",
    Process = spawn(fun() -> hold(["-c", Script, epmd()]) end),
    Connect = fun() ->
        case gen_tcp:connect("127.0.0.1", list_to_integer(Number), []) of
            {ok, Socket} -> gen_tcp:close(Socket), true;
            {error, _} -> false
        end
    end,
    ok = eventually(Connect),
    #{port => Number, process => Process}.

-spec epmd() -> string().
epmd() ->
    Erts = filename:join([code:root_dir(), "erts-" ++ erlang:system_info(version), "bin"]),
    case os:find_executable("epmd", Erts) of
        false -> os:find_executable("epmd");
        Epmd -> Epmd
    end.

-spec free_port() -> string().
free_port() ->
    {ok, Socket} = gen_tcp:listen(0, [{ip, {127, 0, 0, 1}}]),
    {ok, Number} = inet:port(Socket),
    ok = gen_tcp:close(Socket),
    integer_to_list(Number).

-spec stop_epmd(epmd()) -> ok.
stop_epmd(#{process := none}) ->
    ok;
stop_epmd(#{process := Process}) ->
    Monitor = monitor(process, Process),
    Process ! stop,
    receive {'DOWN', Monitor, process, Process, _} -> ok end.

%% Owns the port, since the process that starts a suite does not live as long as the suite.
-spec hold([string()]) -> true.
hold(Arguments) ->
    Port = open_port({spawn_executable, "/bin/sh"}, [{args, Arguments}, hide]),
    receive stop -> port_close(Port) end.

%% A BEAM that has the application on its path.
-spec start_client(epmd()) -> beam().
start_client(Epmd) ->
    start(Epmd, "client", "127.0.0.1", []).

%% The same, not distributed.
-spec start_plain(epmd()) -> beam().
start_plain(#{port := Number}) ->
    {ok, Peer, Node} = peer:start(#{connection => standard_io, wait_boot => ?BOOT_MS,
                                    args => path_arguments(),
                                    env => [{"ERL_EPMD_PORT", Number}]}),
    #{peer => Peer, node => Node}.

%% A hidden BEAM that runs a fake node when fake_node:start/1 is called in it.
-spec start_fake(epmd()) -> beam().
start_fake(Epmd) ->
    start_fake(Epmd, "127.0.0.1").

%% The same with another address of the loopback for a host.
-spec start_fake(epmd(), string()) -> beam().
start_fake(Epmd, Host) ->
    start(Epmd, "fake", Host, ["-hidden"]).

-spec start(epmd(), string(), string(), [string()]) -> beam().
start(#{port := Number}, Prefix, Host, Arguments) ->
    {ok, Address} = inet:parse_ipv4_address(Host),
    {ok, Peer, Node} = peer:start(#{
        name => unique(Prefix),
        host => Host,
        longnames => true,
        connection => standard_io,
        wait_boot => ?BOOT_MS,
        args => ["-setcookie", ?COOKIE, "-kernel", "inet_dist_use_interface",
                 lists:flatten(io_lib:format("~w", [Address]))
                 | Arguments] ++ path_arguments(),
        env => [{"ERL_EPMD_PORT", Number}]
    }),
    #{peer => Peer, node => Node}.

-spec path_arguments() -> [string()].
path_arguments() ->
    lists:append([["-pa", filename:dirname(code:which(Module))] || Module <- [py, ?MODULE]]).

-spec unique(string()) -> string().
unique(Prefix) ->
    lists:concat([Prefix, "_", os:getpid(), "_", erlang:unique_integer([positive])]).

-spec stop(beam()) -> ok.
stop(#{peer := Peer}) ->
    peer:stop(Peer).

-spec stop_if_alive(beam()) -> ok.
stop_if_alive(Beam = #{peer := Peer}) ->
    case is_process_alive(Peer) of
        true -> stop(Beam);
        false -> ok
    end.

%% Ends a BEAM as a crash would.
-spec kill(beam()) -> ok.
kill(Beam = #{peer := Peer}) ->
    OsPid = on(Beam, fun os:getpid/0),
    Monitor = monitor(process, Peer),
    "" = os:cmd("kill -9 " ++ OsPid),
    receive {'DOWN', Monitor, process, Peer, _} -> ok end.

%% Runs a function in a BEAM and returns its value, or raises as it did.
-spec on(beam(), fun(() -> Result)) -> Result.
on(#{peer := Peer}, Function) ->
    peer:call(Peer, erlang, apply, [Function, []], 60000).

%% Waits until the function says true.
-spec eventually(fun(() -> boolean())) -> ok.
eventually(Function) ->
    eventually(Function, erlang:monotonic_time(millisecond) + ?DEADLINE_MS).

-spec eventually(fun(() -> boolean()), integer()) -> ok.
eventually(Function, Deadline) ->
    case Function() of
        true ->
            ok;
        false ->
            true = erlang:monotonic_time(millisecond) < Deadline,
            timer:sleep(5),
            eventually(Function, Deadline)
    end.

%% As a supervisor's callback module: one that has the given children.
-spec init([supervisor:child_spec()]) -> {ok, {supervisor:sup_flags(), [supervisor:child_spec()]}}.
init(Children) ->
    {ok, {#{}, Children}}.
