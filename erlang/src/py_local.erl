%% The local node: one node program as an OS process, started when somebody first calls without a
%% target and no `default_node` is configured.
%%
%%   py:call(…) ── ensure ──▶ py_local ── open_port ──▶ node program ◀── distribution ── py_node
%%
%% The program ends itself when its standard input closes, so it never outlives this process, nor
%% the whole BEAM. When it ends on its own, callers get {error, {down, {exit_status, N}}} and it is
%% started again under the same name, after a backoff. Its output lines go to logger.
%%
%% A BEAM that is not distributed yet becomes so, on the loopback interface only, under the name
%% sidewinder_<os pid>@127.0.0.1 with a random cookie; epmd is started if none runs. Distribution
%% that we started is stopped with the application; distribution that was there is left alone.
%%
%% The cookie reaches the program in a file of mode 0600 inside a directory of mode 0700, both fresh,
%% both deleted once the node is up (or its process has ended).
-module(py_local).
-behaviour(gen_statem).

-export([start_link/0, ensure/1]).
-export([init/1, callback_mode/0, terminate/3, idle/3, running/3, waiting/3]).

-include_lib("kernel/include/logger.hrl").
-include_lib("kernel/include/file.hrl").

-define(BACKOFF_MIN_MS, 100).
-define(BACKOFF_MAX_MS, 10000).
-define(LOOPBACK, {127, 0, 0, 1}).

-record(data, {
    node :: undefined | node(),                 % chosen once, kept over restarts
    port :: undefined | port(),
    directory :: undefined | file:filename(),   % holds the cookie file
    attempt = 0 :: non_neg_integer(),           % ends in a row without having been up
    partial = [] :: [binary()],                 % pieces of an output line, newest first
    distributed = false :: boolean()            % we started distribution
}).

-spec start_link() -> gen_statem:start_ret().
start_link() ->
    gen_statem:start_link({local, ?MODULE}, ?MODULE, [], []).

%% The name of the local node, started if need be. Does not wait until it is up: py_node does.
-spec ensure(timeout()) -> {ok, node()} | {error, py_link:reason()}.
ensure(Timeout) ->
    try
        gen_statem:call(?MODULE, ensure, Timeout)
    catch
        exit:{timeout, _} -> {error, timeout};
        exit:{noproc, _} -> {error, {down, not_started}};
        exit:{Reason, _} -> {error, {down, Reason}}
    end.

%% --- The state machine --------------------------------------------------------------------------

-spec callback_mode() -> gen_statem:callback_mode_result().
callback_mode() ->
    state_functions.

-spec init([]) -> gen_statem:init_result(idle).
init([]) ->
    process_flag(trap_exit, true),
    {ok, idle, #data{}}.

-spec terminate(term(), atom(), #data{}) -> ok.
terminate(_Reason, _State, Data = #data{node = Node, port = Port}) ->
    _ = [py_node:stop(Node) || Node =/= undefined, whereis(py_node_sup) =/= undefined],
    close_port(Port),
    #data{distributed = Distributed} = drop_cookie(Data),
    _ = [net_kernel:stop() || Distributed],
    ok.

-type result() :: gen_statem:event_handler_result(atom()).

%% Nobody has asked yet, or the last attempt to start could not even begin.
-spec idle(gen_statem:event_type(), term(), #data{}) -> result().
idle({call, From}, ensure, Data) ->
    case start(Data) of
        {ok, Data1} -> {next_state, running, Data1, {reply, From, {ok, Data1#data.node}}};
        {error, Why, Data1} -> {keep_state, Data1, {reply, From, {error, {down, Why}}}}
    end;
idle(_, _, _) ->
    keep_state_and_data.

-spec running(gen_statem:event_type(), term(), #data{}) -> result().
running({call, From}, ensure, #data{node = Node}) ->
    {keep_state_and_data, {reply, From, {ok, Node}}};
running(info, {Port, {data, Output}}, Data = #data{port = Port}) ->
    {keep_state, output(Output, Data)};
running(info, {Port, {exit_status, Status}}, Data = #data{port = Port}) ->
    ended({exit_status, Status}, Data);
running(info, {'EXIT', Port, Reason}, Data = #data{port = Port}) ->
    ended(Reason, Data);
running(info, {py_node_up, _}, Data) ->
    {keep_state, drop_cookie(Data#data{attempt = 0})};
running(_, _, _) ->
    keep_state_and_data.

%% The program ended; it is started again when the backoff has passed.
-spec waiting(gen_statem:event_type(), term(), #data{}) -> result().
waiting({call, From}, ensure, #data{node = Node}) ->
    {keep_state_and_data, {reply, From, {ok, Node}}};
waiting(state_timeout, start, Data = #data{node = Node}) ->
    case start(Data) of
        {ok, Data1} ->
            ok = py_node:lost(Node, starting),
            {next_state, running, Data1};
        {error, Why, Data1} ->
            ok = py_node:lost(Node, Why),
            wait(Data1)
    end;
waiting(_, _, _) ->
    keep_state_and_data.

-spec ended(term(), #data{}) -> result().
ended(Why, Data = #data{node = Node}) ->
    ok = py_node:lost(Node, Why),
    ?LOG_ERROR(#{what => "local node ended, starting it again", node => Node, reason => Why}),
    wait(drop_cookie(Data#data{port = undefined, partial = []})).

-spec wait(#data{}) -> result().
wait(Data = #data{attempt = Attempt}) ->
    Full = min(?BACKOFF_MAX_MS, ?BACKOFF_MIN_MS bsl min(Attempt, 10)),
    Delay = Full div 2 + rand:uniform(Full div 2),
    {next_state, waiting, Data#data{attempt = Attempt + 1}, {state_timeout, Delay, start}}.

%% --- Starting -----------------------------------------------------------------------------------

%% Each step may throw the reason why the node cannot be started.
-spec start(#data{}) -> {ok, #data{}} | {error, term(), #data{}}.
start(Data) ->
    try
        Executable = executable(),
        Data1 = distribute(Data),
        Node = node_name(Data1),
        {Directory, CookieFile} = write_cookie(),
        Data2 = Data1#data{node = Node, directory = Directory},
        open(Executable, arguments(Node, CookieFile), Data2)
    catch
        throw:{Why, Failed} when is_record(Failed, data) -> {error, Why, drop_cookie(Failed)};
        throw:Why -> {error, Why, Data}
    end.

-spec open(file:filename(), [string()], #data{}) -> {ok, #data{}}.
open(Executable, Arguments, Data = #data{node = Node}) ->
    Settings = [{args, Arguments}, {env, [{"SIDEWINDER_STOP_ON_STDIN_EOF", "1"}]},
                {line, 8192}, binary, exit_status, use_stdio, stderr_to_stdout, hide],
    try open_port({spawn_executable, Executable}, Settings) of
        Port ->
            case py_node:start(Node, #{local => self()}) of
                {ok, _} -> {ok, Data#data{port = Port}};
                {error, Why} -> close_port(Port), throw({Why, Data})
            end
    catch
        error:Why -> throw({{cannot_start, Executable, Why}, Data})
    end.

-spec close_port(undefined | port()) -> ok.
close_port(undefined) ->
    ok;
close_port(Port) ->
    try
        true = port_close(Port),
        ok
    catch
        error:badarg -> ok
    end.

%% Where the node program is: the environment of the application, of the OS, the checkout, PATH.
-spec executable() -> file:filename().
executable() ->
    case application:get_env(sidewinder, executable) of
        {ok, Executable} -> existing(Executable);
        undefined -> executable(os:getenv("SIDEWINDER_BIN"))
    end.

-spec executable(string() | false) -> file:filename().
executable(Executable) when is_list(Executable), Executable =/= "" ->
    existing(Executable);
executable(_) ->
    case built(code:lib_dir(sidewinder)) of
        none -> on_path(os:find_executable("sidewinder"));
        Executable -> Executable
    end.

-spec existing(file:filename_all()) -> file:filename().
existing(Executable) ->
    case os:find_executable(unicode:characters_to_list(Executable)) of
        false -> throw({executable_not_found, Executable});
        Found -> Found
    end.

-spec on_path(file:filename() | false) -> file:filename().
on_path(false) -> throw({executable_not_found, "sidewinder"});
on_path(Executable) -> Executable.

%% build/sidewinder beside _build, or beside erlang, of the checkout the application runs from.
-spec built(file:filename() | {error, bad_name}) -> file:filename() | none.
built({error, bad_name}) ->
    none;
built(LibDir) ->
    Up = fun(N) -> filename:join([LibDir | lists:duplicate(N, "..")]) end,
    Candidates = [filename:join([Up(N), "build", "sidewinder"]) || N <- [4, 1]],
    case [File || File <- Candidates, filelib:is_regular(File)] of
        [File | _] -> filename:absname(File);
        [] -> none
    end.

-spec node_name(#data{}) -> node().
node_name(#data{node = undefined}) ->
    [Name, Host] = string:split(atom_to_list(node()), "@"),
    list_to_atom(lists:concat(["py_", Name, "_", random_hex(4), "@", Host]));
node_name(#data{node = Node}) ->
    Node.

-spec arguments(node(), file:filename()) -> [string()].
arguments(Node, CookieFile) ->
    NameFlag = case net_kernel:longnames() of
        true -> "--name";
        _ -> "--sname"
    end,
    Path = application:get_env(sidewinder, python_path, []),
    [NameFlag, atom_to_list(Node), "--cookie-file", CookieFile]
        ++ lists:append([["--path", Directory] || Directory <- Path])
        ++ application:get_env(sidewinder, node_args, []).

%% --- Distribution and the cookie ----------------------------------------------------------------

-spec distribute(#data{}) -> #data{}.
distribute(Data) ->
    case is_alive() of
        true -> Data;
        false -> start_distribution(Data)
    end.

-spec start_distribution(#data{}) -> #data{}.
start_distribution(Data) ->
    start_epmd(),
    _ = [application:set_env(kernel, inet_dist_use_interface, ?LOOPBACK)
         || application:get_env(kernel, inet_dist_use_interface) =:= undefined],
    Name = list_to_atom("sidewinder_" ++ os:getpid() ++ "@127.0.0.1"),
    case net_kernel:start(Name, #{name_domain => longnames}) of
        {ok, _} ->
            true = erlang:set_cookie(list_to_atom(random_hex(20))),
            Data#data{distributed = true};
        {error, Reason} ->
            throw({distribution, Reason})
    end.

%% net_kernel does not start epmd, the `erl` program does. Like it, we leave epmd running; ours
%% listens on the loopback interface alone.
-spec start_epmd() -> ok.
start_epmd() ->
    case erl_epmd:names(?LOOPBACK) of
        {ok, _} -> ok;
        {error, _} -> run_epmd(find_epmd())
    end.

-spec run_epmd(file:filename() | false) -> ok.
run_epmd(false) ->
    throw({distribution, epmd_not_found});
run_epmd(Epmd) ->
    Port = open_port({spawn_executable, Epmd},
                     [{args, ["-daemon", "-address", "127.0.0.1"]}, exit_status, hide]),
    receive
        {Port, {exit_status, _}} -> await_epmd(100)
    after 5000 ->
        close_port(Port),
        throw({distribution, epmd_not_started})
    end.

-spec await_epmd(non_neg_integer()) -> ok.
await_epmd(0) ->
    throw({distribution, epmd_not_started});
await_epmd(Tries) ->
    case erl_epmd:names(?LOOPBACK) of
        {ok, _} -> ok;
        {error, _} -> timer:sleep(20), await_epmd(Tries - 1)
    end.

-spec find_epmd() -> file:filename() | false.
find_epmd() ->
    Erts = filename:join([code:root_dir(), "erts-" ++ erlang:system_info(version), "bin"]),
    case os:find_executable("epmd", Erts) of
        false -> os:find_executable("epmd");
        Epmd -> Epmd
    end.

-spec write_cookie() -> {file:filename(), file:filename()}.
write_cookie() ->
    Directory = filename:join(temporary_directory(), "sidewinder-" ++ random_hex(8)),
    File = filename:join(Directory, "cookie"),
    Steps = [
        fun() -> file:make_dir(Directory) end,
        fun() -> file:change_mode(Directory, 8#700) end,
        fun() -> file:write_file(File, <<>>, [exclusive]) end,
        fun() -> file:change_mode(File, 8#600) end,
        fun() -> file:write_file(File, atom_to_binary(erlang:get_cookie())) end
    ],
    lists:foreach(fun(Step) -> check_cookie(Step(), Directory) end, Steps),
    {Directory, File}.

-spec check_cookie(ok | {error, term()}, file:filename()) -> ok.
check_cookie(ok, _) -> ok;
check_cookie({error, Reason}, Directory) -> throw({cookie_file, Directory, Reason}).

-spec drop_cookie(#data{}) -> #data{}.
drop_cookie(Data = #data{directory = undefined}) ->
    Data;
drop_cookie(Data = #data{directory = Directory}) ->
    _ = file:delete(filename:join(Directory, "cookie")),
    _ = file:del_dir(Directory),
    Data#data{directory = undefined}.

-spec temporary_directory() -> file:filename().
temporary_directory() ->
    Named = [Name || Variable <- ["XDG_RUNTIME_DIR", "TMPDIR"],
                     Name <- [os:getenv(Variable)], Name =/= false, filelib:is_dir(Name)],
    hd(Named ++ ["/tmp"]).

%% From the kernel's generator, without depending on the crypto application.
-spec random_hex(pos_integer()) -> string().
random_hex(Bytes) ->
    {ok, Device} = file:open("/dev/urandom", [read, raw, binary]),
    {ok, Random} = file:read(Device, Bytes),
    ok = file:close(Device),
    lists:flatten([io_lib:format("~2.16.0b", [Byte]) || <<Byte>> <= Random]).

%% --- Output of the program ------------------------------------------------------------------------

-spec output({eol | noeol, binary()}, #data{}) -> #data{}.
output({noeol, Piece}, Data = #data{partial = Partial}) when length(Partial) < 8 ->
    Data#data{partial = [Piece | Partial]};
output({_, Piece}, Data = #data{partial = Partial, node = Node}) ->
    Line = iolist_to_binary(lists:reverse(Partial, [Piece])),
    ?LOG(level(Line), #{what => "node output", node => Node, line => Line}),
    Data#data{partial = []}.

%% The level the program logged at: its lines read `<time> <level> <text>`. What Python prints is a
%% notice, so that it is seen at logger's default level.
-spec level(binary()) -> logger:level().
level(Line) ->
    case binary:split(Line, <<" ">>, [global]) of
        [_Time, <<"critical">> | _] -> critical;
        [_Time, <<"error">> | _] -> error;
        [_Time, <<"warning">> | _] -> warning;
        [_Time, <<"info">> | _] -> info;
        [_Time, <<"debug">> | _] -> debug;
        [_Time, <<"trace">> | _] -> debug;
        _ -> notice
    end.
