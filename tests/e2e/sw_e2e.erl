%% Support for the end-to-end suites: a private epmd, real nodes and real BEAMs, each an operating
%% system's process that is known by its pid, watched until its end, and ended with the suite.
%%
%%   suite ──▶ program (an Erlang process owning the port) ──▶ epmd, sidewinder, elixir, …
%%   suite ──▶ peer (over standard input and output)       ──▶ BEAM
%%
%% BEAMs are driven over their standard input and output, so that their distribution can be cut, and
%% so that what a test does runs where a user would do it: in a node with nothing of ours loaded.
-module(sw_e2e).

-include_lib("stdlib/include/assert.hrl").

-export([setup/1, teardown/1, context/1, root/0, sidewinder/0, free_port/0, unique/1]).
-export([start_epmd/1, start_epmd/2, stop_epmd/1, epmd_names/1]).
-export([start_node/1, start_node/2, start_node_now/2, node_arguments/2, environment/1, stop_node/1,
         stats/2]).
-export([start_program/3, run/3, os_pid/1, output/1, wait_line/2, wait_line/3, await_exit/1,
         await_exit/2, send_signal/2, kill/1, alive/1]).
-export([start_beam/1, start_beam/2, elixir/4, stop_beam/1, kill_beam/1, beam_os_pid/1, on/2, on/3]).
-export([eventually/1, eventually/2, within/2, elapsed/1, tell_test/1, flush/0]).

-define(COOKIE, "sidewinder_e2e").
-define(PATIENCE, 30000).     % ms; met only by a failure
-define(TRIES, 20).

-type context() :: #{directory := string(), epmd := program(), epmd_port := string(),
                     cookie := string(), cookie_file := string()}.
-type program() :: pid().
-type sidewinder() :: #{name := node(), program := program()}.
-type beam() :: #{peer := pid(), node := node()}.
-export_type([context/0, program/0, sidewinder/0, beam/0]).

%% --- a suite's surroundings ---------------------------------------------------------------------

%% For init_per_suite: an epmd of its own and a cookie.
setup(Config) ->
    Directory = filename:join(proplists:get_value(priv_dir, Config), unique("e2e")),
    ok = filelib:ensure_dir(filename:join(Directory, "x")),
    CookieFile = filename:join(Directory, "cookie"),
    ok = file:write_file(CookieFile, ?COOKIE),
    ok = file:change_mode(CookieFile, 8#400),
    Port = free_port(),
    Context = #{directory => Directory, epmd => start_epmd(Port), epmd_port => Port,
                cookie => ?COOKIE, cookie_file => CookieFile},
    [{context, Context} | Config].

%% For end_per_suite: nothing that the suite started may be left.
teardown(Config) ->
    #{directory := Directory, epmd := Epmd} = context(Config),
    ok = stop_epmd(Epmd),
    ok = eventually(fun() -> leftovers(Directory) =:= [] end).

context(Config) ->
    proplists:get_value(context, Config).

%% Processes whose command line names the suite's directory: our nodes and BEAMs do.
leftovers(Directory) ->
    Mark = list_to_binary(Directory),
    [Entry || Entry <- filelib:wildcard("/proc/[0-9]*/cmdline"),
              {ok, Line} <- [file:read_file(Entry)],
              binary:match(Line, Mark) =/= nomatch].

%% The checkout under test: above this file's source, or where the tests were started.
root() ->
    Source = proplists:get_value(source, ?MODULE:module_info(compile)),
    Starts = [filename:dirname(filename:absname(Source)), os:getenv("PWD", "/")],
    hd([Root || Start <- Starts, Root <- up(Start)]).

up(Directory) ->
    Is = fun(File) -> filelib:is_regular(filename:join(Directory, File)) end,
    case Is("CMakeLists.txt") andalso Is("rebar.config") of
        true -> [Directory];
        false when Directory =:= "/" -> [];
        false -> up(filename:dirname(Directory))
    end.

%% The program under test.
sidewinder() ->
    case os:getenv("SIDEWINDER_BIN") of
        Given when is_list(Given), Given =/= "" -> Given;
        _ -> filename:join(root(), "build/sidewinder")
    end.

python_directory() ->
    filename:join(root(), "tests/e2e/python").

free_port() ->
    {ok, Socket} = gen_tcp:listen(0, [{ip, {127, 0, 0, 1}}]),
    {ok, Number} = inet:port(Socket),
    ok = gen_tcp:close(Socket),
    integer_to_list(Number).

unique(Prefix) ->
    lists:concat([Prefix, "_", os:getpid(), "_", erlang:unique_integer([positive])]).

%% --- epmd ---------------------------------------------------------------------------------------

start_epmd(Port) ->
    start_epmd(Port, "127.0.0.1").

%% It ends with its standard input, as the nodes do, and with the shell that watches that.
start_epmd(Port, Address) ->
    Script = "\"$0\" \"$@\" & cat >/dev/null; kill -9 $!; wait $!",
    Program = start_program("/bin/sh", ["-c", Script, find_epmd(), "-port", Port, "-address", Address], []),
    ok = eventually(fun() ->
        case gen_tcp:connect("127.0.0.1", list_to_integer(Port), []) of
            {ok, Socket} -> gen_tcp:close(Socket), true;
            {error, _} -> false
        end
    end),
    Program.

stop_epmd(Program) ->
    Program ! close,
    Lost = monitor(process, Program),
    receive {'DOWN', Lost, process, Program, closed} -> ok end.

%% The names that epmd knows, with their ports; none while it does not listen yet.
epmd_names(Port) ->
    case gen_tcp:connect("127.0.0.1", list_to_integer(Port), [binary, {active, false}]) of
        {ok, Socket} -> epmd_names_from(Socket);
        {error, econnrefused} -> []
    end.

epmd_names_from(Socket) ->
    ok = gen_tcp:send(Socket, <<1:16, $n>>),
    <<_:32, Text/binary>> = iolist_to_binary(receive_all(Socket)),
    {match, Names} = case re:run(Text, "name (\\S+) at port ([0-9]+)", [global, {capture, [1, 2], list}]) of
        nomatch -> {match, []};
        Match -> Match
    end,
    [{Name, list_to_integer(Number)} || [Name, Number] <- Names].

receive_all(Socket) ->
    case gen_tcp:recv(Socket, 0, 5000) of
        {ok, Data} -> [Data | receive_all(Socket)];
        {error, closed} -> []
    end.

find_epmd() ->
    Erts = filename:join([code:root_dir(), "erts-" ++ erlang:system_info(version), "bin"]),
    case os:find_executable("epmd", Erts) of
        false -> os:find_executable("epmd");
        Epmd -> Epmd
    end.

%% --- nodes --------------------------------------------------------------------------------------

start_node(Context) ->
    start_node(Context, #{}).

%% A node that is up: registered, or having said what `ready` matches. Options: name (a string with
%% host), args, env, ready.
start_node(Context, Options) ->
    Node = #{program := Program} = start_node_now(Context, Options),
    _ = wait_line(Program, maps:get(ready, Options, "registered with epmd")),
    Node.

%% A node that has been started, whatever becomes of it.
start_node_now(Context, Options) ->
    Name = maps:get(name, Options, unique("py") ++ "@127.0.0.1"),
    Arguments = ["--name", Name | node_arguments(Context, maps:get(args, Options, []))],
    Program = start_program(sidewinder(), Arguments, environment(Context) ++ maps:get(env, Options, [])),
    #{name => list_to_atom(Name), program => Program}.

node_arguments(#{cookie_file := File}, More) ->
    ["--cookie-file", File, "--path", python_directory(), "--import", "probe" | More].

%% A node ends with its standard input, so that none outlives the suite's VM.
environment(#{epmd_port := Port}) ->
    Strange = [{Name, false} || Line <- os:getenv(), "SIDEWINDER_" ++ _ = Name <- [hd(string:split(Line, "="))]],
    Strange ++ [{"ERL_EPMD_PORT", Port}, {"ERL_EPMD_ADDRESS", "127.0.0.1"},
                {"SIDEWINDER_STOP_ON_STDIN_EOF", "1"}].

stop_node(#{program := Program}) ->
    kill(Program).

%% The node's own counters, asked by a BEAM.
stats(Beam, Node) ->
    on(Beam, fun() -> erpc:call(Node, erlang, stats, []) end).

%% --- programs -----------------------------------------------------------------------------------

%% Starts a program whose output and end are watched.
start_program(Executable, Arguments, Environment) ->
    Self = self(),
    {Program, Reference} = spawn_monitor(fun() -> own(Self, Executable, Arguments, Environment) end),
    receive
        {Program, started} -> demonitor(Reference, [flush]), Program;
        {'DOWN', Reference, process, Program, Why} -> error({cannot_start, Executable, Why})
    end.

%% The port belongs to a process of its own: whoever starts a suite does not live as long as it.
own(Starter, Executable, Arguments, Environment) ->
    Port = open_port({spawn_executable, Executable},
                     [{args, Arguments}, {env, Environment}, {line, 100000}, binary, exit_status,
                      stderr_to_stdout, hide]),
    {os_pid, OsPid} = erlang:port_info(Port, os_pid),
    Starter ! {self(), started},
    own(#{port => Port, os_pid => OsPid, lines => [], status => running, waiting => []}).

own(State = #{port := Port, lines := Lines, waiting := Waiting}) ->
    receive
        {Port, {data, {_, Line}}} ->
            own(settle(State#{lines := [Line | Lines]}));
        {Port, {exit_status, Status}} ->
            own(settle(State#{status := Status}));
        close ->
            true = port_close(Port),
            exit(closed);
        {ask, From, Reference, Question} ->
            own(settle(State#{waiting := [{From, Reference, Question} | Waiting]}))
    end.

%% Answers the questions that can be answered now.
settle(State = #{waiting := Waiting}) ->
    State#{waiting := [Asked || Asked = {From, Reference, Question} <- Waiting,
                                not answered(From, Reference, Question(State))]}.

answered(_, _, later) -> false;
answered(From, Reference, Answer) -> From ! {Reference, Answer}, true.

ask(Program, Question, Timeout) ->
    Reference = monitor(process, Program),
    Program ! {ask, self(), Reference, Question},
    receive
        {Reference, Answer} ->
            demonitor(Reference, [flush]),
            {ok, Answer};
        {'DOWN', Reference, process, Program, Reason} ->
            error({program_lost, Reason})
    after Timeout ->
        demonitor(Reference, [flush]),
        timeout
    end.

%% Runs a program to its end: its exit code, its standard output and its standard error.
run(Executable, Arguments, Environment) ->
    Errors = filename:join("/tmp", unique("sw_e2e_stderr")),
    try
        Program = start_program("/bin/sh", ["-c", "exec \"$0\" \"$@\" 2>" ++ Errors, Executable | Arguments],
                                Environment),
        Status = await_exit(Program),
        {ok, Text} = file:read_file(Errors),
        {Status, output(Program), Text}
    after
        file:delete(Errors)
    end.

os_pid(Program) ->
    {ok, Pid} = ask(Program, fun(#{os_pid := Pid}) -> Pid end, ?PATIENCE),
    Pid.

%% Everything printed so far.
output(Program) ->
    {ok, Text} = ask(Program, fun(#{lines := Lines}) -> join(Lines) end, ?PATIENCE),
    Text.

join(Lines) ->
    iolist_to_binary([[Line, $\n] || Line <- lists:reverse(Lines)]).

wait_line(Program, Pattern) ->
    wait_line(Program, Pattern, ?PATIENCE).

%% The first line, printed already or not yet, that matches the regular expression.
wait_line(Program, Pattern, Timeout) ->
    Question = fun(#{lines := Lines, status := Status}) ->
        case [Line || Line <- lists:reverse(Lines), re:run(Line, Pattern) =/= nomatch] of
            [Line | _] -> {line, Line};
            [] when Status =:= running -> later;
            [] -> {ended, Status, join(Lines)}
        end
    end,
    case ask(Program, Question, Timeout) of
        {ok, {line, Line}} -> Line;
        {ok, Other} -> error({no_line, Pattern, Other});
        timeout -> error({no_line, Pattern, {in_ms, Timeout}, output(Program)})
    end.

await_exit(Program) ->
    await_exit(Program, ?PATIENCE).

%% The exit code; 128 and more: ended by a signal.
await_exit(Program, Timeout) ->
    Question = fun(#{status := running}) -> later; (#{status := Status}) -> Status end,
    case ask(Program, Question, Timeout) of
        {ok, Status} -> Status;
        timeout -> error({still_running, output(Program)})
    end.

alive(Program) ->
    {ok, Running} = ask(Program, fun(#{status := Status}) -> Status =:= running end, ?PATIENCE),
    Running.

send_signal(Program, Signal) ->
    "" = os:cmd(lists:concat(["kill -", Signal, " ", os_pid(Program)])),
    ok.

%% Ends a program as a crash would, if it has not ended by itself.
kill(Program) ->
    case alive(Program) of
        true -> _ = os:cmd(lists:concat(["kill -9 ", os_pid(Program)])), ok;
        false -> ok
    end,
    _ = await_exit(Program),
    ok.

%% --- BEAMs --------------------------------------------------------------------------------------

start_beam(Context) ->
    start_beam(Context, #{}).

%% A BEAM with the suites on its path and nothing else of ours. Options: name (without host), host,
%% longnames, args, env; `name => none` for one that is not distributed.
start_beam(Context = #{directory := Directory, cookie := Cookie}, Options) ->
    Path = filename:dirname(code:which(?MODULE)),
    Distributed = case maps:get(name, Options, unique("beam")) of
        none -> #{};
        Name -> #{name => Name, host => maps:get(host, Options, "127.0.0.1"),
                  longnames => maps:get(longnames, Options, true)}
    end,
    Arguments = ["-pa", Path, "-setcookie", maps:get(cookie, Options, Cookie), "-suite_directory", Directory,
                 "-connect_all", "false" | maps:get(args, Options, [])],
    {ok, Peer, Node} = peer:start(Distributed#{
        connection => standard_io,
        wait_boot => 60000,
        args => Arguments,
        env => beam_environment(Context) ++ maps:get(env, Options, [])
    }),
    #{peer => Peer, node => Node}.

%% Runs a piece of Elixir in a node of its own: exit code, output, errors. `make test` installs Elixir.
elixir(Context = #{cookie := Cookie}, Options, Code, Arguments) ->
    run(os:find_executable("elixir"),
        ["--name", unique("elixir") ++ "@127.0.0.1", "--cookie", Cookie] ++ Options ++ ["-e", Code, "--" | Arguments],
        beam_environment(Context)).

beam_environment(#{epmd_port := Port}) ->
    [{"ERL_EPMD_PORT", Port}, {"ERL_EPMD_ADDRESS", "127.0.0.1"}].

stop_beam(#{peer := Peer}) ->
    peer:stop(Peer).

beam_os_pid(Beam) ->
    on(Beam, fun os:getpid/0).

kill_beam(Beam = #{peer := Peer}) ->
    OsPid = beam_os_pid(Beam),
    Monitor = monitor(process, Peer),
    "" = os:cmd("kill -9 " ++ OsPid),
    receive {'DOWN', Monitor, process, Peer, _} -> ok end.

%% Runs a function in a BEAM and returns its value, or raises as it did.
on(Beam, Function) ->
    on(Beam, Function, 120000).

on(#{peer := Peer}, Function, Timeout) ->
    peer:call(Peer, erlang, apply, [Function, []], Timeout).

%% --- time ---------------------------------------------------------------------------------------

eventually(Function) ->
    eventually(Function, ?PATIENCE).

eventually(Function, Timeout) ->
    until(Function, erlang:monotonic_time(millisecond) + Timeout).

until(Function, Deadline) ->
    case Function() of
        true -> ok;
        Last ->
            erlang:monotonic_time(millisecond) < Deadline orelse error({never, Last}),
            timer:sleep(10),
            until(Function, Deadline)
    end.

%% Milliseconds that the function takes.
elapsed(Function) ->
    {Time, _} = timer:tc(Function),
    Time / 1000.

%% A bound on time that a machine busy with other things may break now and then: the function is run
%% again, up to so many times, until it keeps the limit once.
within(Limit, Function) ->
    within(Limit, Function, ?TRIES, []).

within(Limit, _, 0, Times) ->
    error({slower_than_ms, Limit, lists:reverse(Times)});
within(Limit, Function, Tries, Times) ->
    case elapsed(Function) of
        Time when Time < Limit -> ok;
        Time -> within(Limit, Function, Tries - 1, [Time | Times])
    end.

%% What Python told this process by {probe, Told}; see probe.tell.
tell_test(Timeout) ->
    receive
        {probe, Told} -> Told
    after Timeout ->
        error({probe_told_nothing, process_info(self(), messages)})
    end.

flush() ->
    receive _ -> flush() after 0 -> ok end.
