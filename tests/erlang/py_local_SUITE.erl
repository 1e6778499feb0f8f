%% The local node: started on demand, restarted when it ends, gone with the application. The node
%% program is played by a script that runs a fake node in a BEAM.
-module(py_local_SUITE).

-include_lib("stdlib/include/assert.hrl").
-include_lib("kernel/include/file.hrl").

-export([all/0, suite/0, init_per_suite/1, end_per_suite/1, init_per_testcase/2,
         end_per_testcase/2]).
-export([the_first_call_starts_distribution_and_the_node/1,
         a_distributed_beam_keeps_its_name_and_cookie/1,
         epmd_is_started_if_none_runs/1,
         many_first_callers_share_one_process/1,
         nobody_else_can_read_the_cookie_and_it_is_deleted/1,
         the_program_gets_its_arguments_and_environment/1,
         callers_learn_the_exit_status_and_the_node_comes_back/1,
         a_program_that_ends_at_once_says_why/1,
         a_program_that_does_not_exist_is_an_error/1,
         output_of_the_program_goes_to_logger/1,
         the_end_of_the_application_ends_the_program/1,
         the_death_of_the_beam_ends_the_program/1]).
-export([log/2]).

suite() -> [{timetrap, {seconds, 180}}].

all() ->
    [the_first_call_starts_distribution_and_the_node,
     a_distributed_beam_keeps_its_name_and_cookie,
     epmd_is_started_if_none_runs,
     many_first_callers_share_one_process,
     nobody_else_can_read_the_cookie_and_it_is_deleted,
     the_program_gets_its_arguments_and_environment,
     callers_learn_the_exit_status_and_the_node_comes_back,
     a_program_that_ends_at_once_says_why,
     a_program_that_does_not_exist_is_an_error,
     output_of_the_program_goes_to_logger,
     the_end_of_the_application_ends_the_program,
     the_death_of_the_beam_ends_the_program].

init_per_suite(Config) ->
    [{epmd, cluster:start_epmd()} | Config].

end_per_suite(Config) ->
    ok = cluster:stop_epmd(proplists:get_value(epmd, Config)).

%% Each test has a BEAM of its own that is not distributed, and a directory for its files.
init_per_testcase(Case, Config) ->
    Directory = filename:join(proplists:get_value(priv_dir, Config), Case),
    ok = file:make_dir(Directory),
    Program = write_program(Directory),
    Plain = cluster:start_plain(proplists:get_value(epmd, Config)),
    cluster:on(Plain, fun() ->
        true = os:putenv("XDG_RUNTIME_DIR", Directory),
        ok = logger:set_primary_config(level, none),
        ok = application:load(sidewinder),
        ok = application:set_env(sidewinder, executable, Program),
        ok = application:set_env(sidewinder, start_timeout, 60000),
        {ok, _} = application:ensure_all_started(sidewinder)
    end),
    [{beam, Plain}, {directory, Directory} | Config].

end_per_testcase(_, Config) ->
    cluster:stop_if_alive(proplists:get_value(beam, Config)),
    Config.

on(Config, Function) -> cluster:on(proplists:get_value(beam, Config), Function).

%% A program that runs a fake node under the name and the cookie it is given, and ends when its
%% standard input does.
write_program(Directory) ->
    Beams = filename:dirname(code:which(fake_node)),
    Script = [
        "#!/bin/sh\n",
        "arguments=\"$*\"\n",
        "while [ $# -gt 0 ]; do case \"$1\" in\n",
        "    --name) name=\"-name $2\"; shift 2 ;;\n",
        "    --sname) name=\"-sname $2\"; shift 2 ;;\n",
        "    --cookie-file) cookie=\"$2\"; shift 2 ;;\n",
        "    --fail) echo 'cannot start'; exit \"$2\" ;;\n",
        "    *) shift ;;\n",
        "esac; done\n",
        "ls -ld \"$(dirname \"$cookie\")\" \"$cookie\" | cut -c1-10 >'", Directory, "/modes'\n",
        "echo \"$SIDEWINDER_STOP_ON_STDIN_EOF $arguments\" >'", Directory, "/arguments'\n",
        "echo $$ >'", Directory, "/pid'\n",
        "echo 'fake program starts'\n",
        "echo '2026-01-01T00:00:00.000 error it burns'\n",
        "export ERL_FLAGS=\"-setcookie $(cat \"$cookie\")\"\n",
        "exec erl -noshell -hidden $name -pa '", Beams, "' -eval '",
        "ok = fake_node:start(#{}), eof = io:get_line([]), halt(0)'\n"
    ],
    Program = filename:join(Directory, "program"),
    ok = file:write_file(Program, Script),
    ok = file:change_mode(Program, 8#755),
    Program.

%% --- Coming up --------------------------------------------------------------------------------------

the_first_call_starts_distribution_and_the_node(Config) ->
    {Before, Result, After, [Node]} = on(Config, fun() ->
        {is_alive(), py:call(m, echo, [1]), is_alive(), nodes(connected)}
    end),
    ?assertEqual({false, {ok, [1]}, true}, {Before, Result, After}),
    ?assertMatch("py_sidewinder_" ++ _, atom_to_list(Node)),
    ?assertMatch([_, "127.0.0.1"], string:split(atom_to_list(Node), "@")).

a_distributed_beam_keeps_its_name_and_cookie(Config) ->
    Client = cluster:start_client(proplists:get_value(epmd, Config)),
    Program = on(Config, fun() -> application:get_env(sidewinder, executable) end),
    {Before, After, Result, Stopped} = cluster:on(Client, fun() ->
        {ok, File} = Program,
        ok = application:load(sidewinder),
        ok = application:set_env(sidewinder, executable, File),
        {ok, _} = application:ensure_all_started(sidewinder),
        Before = {node(), erlang:get_cookie()},
        Result = py:call(m, echo, [1]),
        After = {node(), erlang:get_cookie()},
        ok = application:stop(sidewinder),
        {Before, After, Result, is_alive()}
    end),
    ok = cluster:stop(Client),
    ?assertEqual({ok, [1]}, Result),
    ?assertEqual(Before, After),
    ?assert(Stopped).

epmd_is_started_if_none_runs(Config) ->
    Number = cluster:free_port(),
    Plain = cluster:start_plain(#{port => Number, process => none}),
    {ok, Program} = on(Config, fun() -> application:get_env(sidewinder, executable) end),
    Result = cluster:on(Plain, fun() ->
        {error, address} = erl_epmd:names({127, 0, 0, 1}),
        ok = application:load(sidewinder),
        ok = application:set_env(sidewinder, executable, Program),
        {ok, _} = application:ensure_all_started(sidewinder),
        Result = py:call(m, echo, [1]),
        ok = application:stop(sidewinder),
        Result
    end),
    ok = cluster:stop(Plain),
    ok = kill_epmd(Number),
    ?assertEqual({ok, [1]}, Result).

many_first_callers_share_one_process(Config) ->
    {Results, Nodes} = on(Config, fun() ->
        Self = self(),
        Callers = [spawn(fun() -> Self ! {self(), py:call(m, echo, [N])} end)
                   || N <- lists:seq(1, 20)],
        {[receive {Caller, Result} -> Result end || Caller <- Callers], nodes(connected)}
    end),
    ?assertEqual([{ok, [N]} || N <- lists:seq(1, 20)], Results),
    ?assertMatch([_], Nodes).

nobody_else_can_read_the_cookie_and_it_is_deleted(Config) ->
    Directory = proplists:get_value(directory, Config),
    {ok, [1]} = on(Config, fun() -> py:call(m, echo, [1]) end),
    ?assertEqual({ok, <<"drwx------\n-rw-------\n">>},
                 file:read_file(filename:join(Directory, "modes"))),
    ok = cluster:eventually(fun() ->
        filelib:wildcard(filename:join(Directory, "sidewinder-*")) =:= []
    end).

the_program_gets_its_arguments_and_environment(Config) ->
    Node = on(Config, fun() ->
        ok = application:set_env(sidewinder, python_path, ["/first", "/second"]),
        ok = application:set_env(sidewinder, node_args, ["--workers", "3"]),
        {ok, [1]} = py:call(m, echo, [1]),
        hd(nodes(connected))
    end),
    {ok, Line} = file:read_file(filename:join(proplists:get_value(directory, Config), "arguments")),
    [Value, NameFlag, Name, CookieFlag, _CookieFile | Rest] =
        string:lexemes(binary_to_list(Line), " \n"),
    ?assertEqual({"1", "--name", atom_to_list(Node), "--cookie-file"},
                 {Value, NameFlag, Name, CookieFlag}),
    ?assertEqual(["--path", "/first", "--path", "/second", "--workers", "3"], Rest).

%% --- Ends ---------------------------------------------------------------------------------------------

callers_learn_the_exit_status_and_the_node_comes_back(Config) ->
    {First, Later} = on(Config, fun() ->
        {ok, [1]} = py:call(m, echo, [1]),
        First = py:call(m, crash, []),
        {First, py:call(m, echo, [2])}
    end),
    ?assertEqual({error, {down, {exit_status, 3}}}, First),
    ?assertEqual({error, {down, {exit_status, 3}}}, Later),
    ok = on(Config, fun() ->
        cluster:eventually(fun() -> py:call(m, echo, [3]) =:= {ok, [3]} end)
    end).

a_program_that_ends_at_once_says_why(Config) ->
    {Micros, Result} = on(Config, fun() ->
        ok = application:set_env(sidewinder, node_args, ["--fail", "7"]),
        timer:tc(fun() -> py:call(m, echo, [1]) end)
    end),
    ?assertEqual({error, {down, {exit_status, 7}}}, Result),
    ?assert(Micros < 29000000),
    ok = on(Config, fun() ->
        ok = application:unset_env(sidewinder, node_args),
        cluster:eventually(fun() -> py:call(m, echo, [2]) =:= {ok, [2]} end)
    end).

a_program_that_does_not_exist_is_an_error(Config) ->
    Missing = filename:join(proplists:get_value(directory, Config), "missing"),
    Results = on(Config, fun() ->
        ok = application:set_env(sidewinder, executable, Missing),
        {py:call(m, f, []), is_alive()}
    end),
    ?assertEqual({{error, {down, {executable_not_found, Missing}}}, false}, Results).

output_of_the_program_goes_to_logger(Config) ->
    Lines = on(Config, fun() ->
        ok = logger:add_handler(?MODULE, ?MODULE, #{config => self()}),
        ok = logger:set_primary_config(level, notice),
        {ok, [1]} = py:call(m, echo, [1]),
        [receive {line, Level, Line} -> {Level, Line} end || _ <- [1, 2]]
    end),
    ?assertEqual([{notice, <<"fake program starts">>},
                  {error, <<"2026-01-01T00:00:00.000 error it burns">>}], Lines).

log(#{level := Level, msg := {report, #{line := Line}}}, #{config := Pid}) ->
    Pid ! {line, Level, Line};
log(_, _) -> ok.

the_end_of_the_application_ends_the_program(Config) ->
    {ok, [1]} = on(Config, fun() -> py:call(m, echo, [1]) end),
    OsPid = os_pid(Config),
    true = runs(OsPid),
    {Alive, Tables} = on(Config, fun() ->
        ok = application:stop(sidewinder),
        {is_alive(), [ets:info(Table) || Table <- [py_links, py_functions]]}
    end),
    ?assertEqual({false, [undefined, undefined]}, {Alive, Tables}),
    ok = cluster:eventually(fun() -> not runs(OsPid) end).

the_death_of_the_beam_ends_the_program(Config) ->
    {ok, [1]} = on(Config, fun() -> py:call(m, echo, [1]) end),
    OsPid = os_pid(Config),
    true = runs(OsPid),
    ok = cluster:kill(proplists:get_value(beam, Config)),
    ok = cluster:eventually(fun() -> not runs(OsPid) end).

%% --- Helpers --------------------------------------------------------------------------------------------

os_pid(Config) ->
    {ok, Line} = file:read_file(filename:join(proplists:get_value(directory, Config), "pid")),
    string:trim(binary_to_list(Line)).

runs(OsPid) ->
    filelib:is_dir("/proc/" ++ OsPid).

%% Asks the epmd on a port for nothing but its end; it does so when nobody is registered.
kill_epmd(Number) ->
    cluster:eventually(fun() ->
        string:find(os:cmd("epmd -port " ++ Number ++ " -kill"), "Killed") =/= nomatch
    end).
