%% The program itself: its settings, its exit codes, its logs, and how it stops.
-module(program_SUITE).

-include_lib("stdlib/include/assert.hrl").
-include_lib("kernel/include/file.hrl").

-export([all/0, groups/0, suite/0, init_per_suite/1, end_per_suite/1, init_per_testcase/2]).
-compile([export_all, nowarn_export_all]).

suite() -> [{timetrap, {seconds, 60}}].

all() ->
    [{group, settings}, {group, python}, {group, limits}, {group, logs}, {group, stopping}].

groups() ->
    [{settings, [],
      [print_config_shows_every_setting_and_where_it_came_from,
       a_flag_wins_over_its_environment_variable,
       help_names_every_setting_and_exits_with_0,
       version_exits_with_0,
       a_command_line_that_cannot_be_read_exits_with_2,
       each_wrong_setting_is_one_line_that_names_it_and_exit_code_1,
       a_wrong_environment_variable_is_named_too,
       a_cookie_file_that_others_can_read_is_refused,
       the_cookie_is_read_from_the_home_directory_and_trimmed,
       a_cookie_that_changes_counts_for_new_peers_and_leaves_old_links_up,
       a_cookie_from_a_variable_is_hidden_from_python_and_proc,
       the_file_of_the_documentation_is_a_file_of_settings,
       a_wrong_file_of_settings_is_one_line_with_its_place_and_exit_code_1,
       the_documentation_lists_the_settings_the_program_has,
       a_name_is_filled_in_from_the_pod,
       a_port_that_is_taken_is_one_line_and_exit_code_1]},
     {python, [],
      [imported_modules_are_there_before_the_first_call,
       a_module_that_cannot_be_imported_is_one_line_and_exit_code_1,
       earlier_paths_win_over_later_ones,
       a_virtual_environment_is_used_with_its_pth_files,
       a_virtual_environment_of_another_python_is_refused,
       a_directory_that_is_no_virtual_environment_is_refused,
       none_is_sent_as_the_given_atom,
       binaries_become_what_the_setting_says]},
     {limits, [],
      [an_allow_list_refuses_everything_else,
       an_allow_list_cannot_be_walked_around,
       an_allow_list_does_not_reach_through_imported_modules,
       without_an_allow_list_the_program_warns_once,
       eval_can_be_switched_off,
       with_eval_off_the_builtins_cannot_be_called_either]},
     {logs, [],
      [every_line_of_a_json_log_is_valid_json,
       the_log_level_is_obeyed,
       what_python_prints_is_not_lost,
       the_cookie_is_never_logged]},
     {stopping, [parallel],
      [sigterm_finishes_what_was_accepted_and_refuses_the_rest,
       sigterm_waits_for_coroutines_and_casts,
       sigint_stops_an_idle_node_with_0,
       sigterm_lets_channels_run_dry,
       a_node_that_has_nothing_left_still_answers_what_was_on_its_way,
       a_peer_that_never_stops_asking_does_not_keep_a_node,
       a_drain_that_takes_too_long_is_cut_short,
       a_second_sigterm_stops_at_once_with_4,
       the_end_of_standard_input_stops_a_node_that_was_told_so,
       the_end_of_standard_input_means_nothing_otherwise,
       as_process_1_it_stops_on_sigterm_and_reaps_orphans]}].

init_per_suite(Config0) ->
    Config = sw_e2e:setup(Config0),
    [{beam, sw_e2e:start_beam(sw_e2e:context(Config))} | Config].

end_per_suite(Config) ->
    ok = sw_e2e:stop_beam(proplists:get_value(beam, Config)),
    ok = sw_e2e:teardown(Config).

init_per_testcase(as_process_1_it_stops_on_sigterm_and_reaps_orphans, Config) ->
    case os:cmd("unshare --pid --fork --mount-proc true && echo fine") of
        "fine\n" -> Config;
        _ -> {skip, "no new pid namespace can be made here"}
    end;
init_per_testcase(Case, Config) ->
    Directory = filename:join(maps:get(directory, sw_e2e:context(Config)), Case),
    ok = filelib:ensure_dir(filename:join(Directory, "x")),
    [{directory, Directory} | Config].

directory(Config) -> proplists:get_value(directory, Config).

context(Config) -> sw_e2e:context(Config).

%% Runs the program to its end.
program(Config, Arguments) -> program(Config, Arguments, []).

program(Config, Arguments, Environment) ->
    sw_e2e:run(sw_e2e:sidewinder(), Arguments, sw_e2e:environment(context(Config)) ++ Environment).

%% Arguments that alone would make a node.
good(Config) ->
    ["--name", "py@127.0.0.1", "--cookie-file", maps:get(cookie_file, context(Config))].

bare(Config, Node, Body) ->
    #{name := Name} = Node,
    sw_e2e:on(proplists:get_value(beam, Config), fun() -> Body(Name) end).

%% A node with these arguments, for the body, which runs in the BEAM; the node's output.
with_node(Config, Arguments, Body) ->
    Node = #{program := Program} = sw_e2e:start_node(context(Config), #{args => Arguments}),
    try
        bare(Config, Node, Body),
        sw_e2e:output(Program)
    after
        sw_e2e:stop_node(Node)
    end.

lines(Text) ->
    [Line || Line <- binary:split(iolist_to_binary(Text), <<"\n">>, [global]), Line =/= <<>>].

matches(Text, Pattern) ->
    re:run(Text, Pattern) =/= nomatch.

%% --- settings -----------------------------------------------------------------------------------

print_config_shows_every_setting_and_where_it_came_from(Config) ->
    {0, Output, <<>>} = program(Config, good(Config) ++ ["--workers", "3", "--import", "a", "--import", "b", "--print-config"],
                                [{"SIDEWINDER_QUEUE", "77"}, {"SIDEWINDER_PATH", "/x,/y"}]),
    Lines = lines(Output),
    [?assert(lists:member(Line, Lines), {Line, Lines})
     || Line <- [<<"name = py@127.0.0.1  (flag)">>, <<"workers = 3  (flag)">>, <<"import = a,b  (flag)">>,
                 <<"queue = 77  (SIDEWINDER_QUEUE)">>, <<"path = /x,/y  (SIDEWINDER_PATH)">>,
                 <<"log-format = text  (default)">>]],
    {0, Help, _} = program(Config, ["--help"]),
    {match, Flags} = re:run(Help, "^ +(?:-h,)?--([a-z-]+)", [global, multiline, {capture, [1], binary}]),
    Settings = lists:flatten(Flags) -- [<<"help">>, <<"version">>, <<"print-config">>, <<"check-config">>,
                                       <<"print-reference">>, <<"print-schema">>],
    ?assertEqual(lists:sort(Settings), lists:sort([hd(binary:split(Line, <<" = ">>)) || Line <- Lines])),
    ?assertNot(matches(Output, maps:get(cookie, context(Config)) ++ "$")).

a_flag_wins_over_its_environment_variable(Config) ->
    Show = fun(Arguments, Environment) ->
        {0, Output, <<>>} = program(Config, good(Config) ++ ["--print-config" | Arguments], Environment),
        [Line] = [Line || <<"drain-timeout", _/binary>> = Line <- lines(Output)],
        Line
    end,
    ?assertEqual(<<"drain-timeout = 20  (default)">>, Show([], [])),
    ?assertEqual(<<"drain-timeout = 5  (SIDEWINDER_DRAIN_TIMEOUT)">>, Show([], [{"SIDEWINDER_DRAIN_TIMEOUT", "5"}])),
    ?assertEqual(<<"drain-timeout = 7  (flag)">>, Show(["--drain-timeout", "7"], [{"SIDEWINDER_DRAIN_TIMEOUT", "5"}])).

help_names_every_setting_and_exits_with_0(Config) ->
    {0, Help, <<>>} = program(Config, ["--help"]),
    [?assert(matches(Help, "--" ++ Flag ++ "\\b"), Flag)
     || Flag <- ["name", "sname", "cookie-file", "import", "path", "venv", "workers", "listen", "dist-port", "peer",
                 "allow", "log-level", "log-format", "print-config"]].

version_exits_with_0(Config) ->
    {0, Output, <<>>} = program(Config, ["--version"]),
    ?assert(matches(Output, "^sidewinder [0-9]+\\.[0-9]+")).

a_command_line_that_cannot_be_read_exits_with_2(Config) ->
    [begin
        {Status, _, Errors} = program(Config, good(Config) ++ Arguments),
        ?assertEqual({Arguments, 2}, {Arguments, Status}),
        ?assert(matches(Errors, "--no-such-flag|stray|--workers"), Errors)
    end || Arguments <- [["--no-such-flag"], ["stray"], ["--workers"]]].

each_wrong_setting_is_one_line_that_names_it_and_exit_code_1(Config) ->
    Good = good(Config),
    ["--name", _ | Cookie] = Good,
    Missing = filename:join(directory(Config), "missing"),
    Empty = filename:join(directory(Config), "empty"),
    ok = file:write_file(Empty, <<"\n">>),
    ok = file:change_mode(Empty, 8#400),
    Wrong = [{"name", Cookie},
             {"name", ["--name", "py@nodots" | Cookie]},
             {"name", ["--name", "@127.0.0.1" | Cookie]},
             {"name", ["--name", "a@b@127.0.0.1" | Cookie]},
             {"name", ["--name", lists:duplicate(300, $a) ++ "@127.0.0.1" | Cookie]},
             {"name", ["--sname", "py" | Good]},
             {"name", ["--name", "undefined" | Cookie]},
             {"sname", ["--sname", "py@has.dots" | Cookie]},
             {"cookie-file", ["--name", "py@127.0.0.1", "--cookie-file", Missing]},
             {"cookie-file", ["--name", "py@127.0.0.1", "--cookie-file", Empty]},
             {"cookie-file", ["--name", "py@127.0.0.1", "--cookie-file", directory(Config)]},
             {"venv", Good ++ ["--venv", Missing]},
             {"import", Good ++ ["--import", "no_such_module"]},
             {"listen", Good ++ ["--listen", "203.0.113.9"]},
             {"dist-port", Good ++ ["--epmd", "off"]}] ++
            [{Setting, Good ++ ["--" ++ Setting, Value]}
             || {Setting, Values} <- [{"workers", ["0", "-1", "x", "4 ", "99999"]},
                                      {"dist-port", ["x", "70000", "20-10", "10-", "-"]},
                                      {"epmd", ["perhaps"]},
                                      {"eval", ["perhaps"]},
                                      {"peer", ["nobody", "a@127.0.0.1:0", "a@127.0.0.1:x", "a@127.0.0.1:99999"]},
                                      {"binary", ["text"]},
                                      {"ticktime", ["0", "x"]},
                                      {"queue", ["0", "x"]},
                                      {"grace-ms", ["0", "x"]},
                                      {"drain-timeout", ["-1", "x"]},
                                      {"log-level", ["loud"]},
                                      {"log-format", ["xml"]}],
                Value <- Values],
    Told = [{Setting, Arguments, Result}
            || {Setting, Arguments} <- Wrong,
               Result = {Status, Output, Errors} <- [program(Config, Arguments)],
               not (Status =:= 1 andalso length(lines([Output, Errors])) =:= 1 andalso
                    matches(Errors, "^sidewinder: " ++ Setting ++ ": "))],
    ?assertEqual([], Told).

a_wrong_environment_variable_is_named_too(Config) ->
    {1, <<>>, Errors} = program(Config, good(Config), [{"SIDEWINDER_WORKERS", "none"}]),
    ?assert(matches(Errors, "^sidewinder: workers: .*none")),
    {1, <<>>, Port} = program(Config, good(Config), [{"ERL_EPMD_PORT", "none"}]),
    ?assert(matches(Port, "^sidewinder: ERL_EPMD_PORT: .*none")).

a_cookie_file_that_others_can_read_is_refused(Config) ->
    File = filename:join(directory(Config), "open_cookie"),
    ok = file:write_file(File, <<"open">>),
    [begin
        ok = file:change_mode(File, Mode),
        {Status, _, Errors} = program(Config, ["--name", "py@127.0.0.1", "--cookie-file", File, "--print-config"]),
        ?assertEqual({Mode, 1}, {Mode, Status}),
        ?assert(matches(Errors, "^sidewinder: cookie-file: .*open_cookie"))
    end || Mode <- [8#644, 8#404, 8#402, 8#460]],
    [begin
        ok = file:change_mode(File, Mode),
        {Status, _, _} = program(Config, ["--name", "py@127.0.0.1", "--cookie-file", File, "--print-config"]),
        ?assertEqual({Mode, 0}, {Mode, Status})
    end || Mode <- [8#400, 8#600]].

the_cookie_is_read_from_the_home_directory_and_trimmed(Config) ->
    File = filename:join(directory(Config), ".erlang.cookie"),
    ok = file:write_file(File, maps:get(cookie, context(Config)) ++ "\n"),
    ok = file:change_mode(File, 8#400),
    Name = sw_e2e:unique("py") ++ "@127.0.0.1",
    %% The marker of the suite stands in a path.
    Program = sw_e2e:start_program(sw_e2e:sidewinder(), ["--name", Name, "--path", directory(Config)],
                                   sw_e2e:environment(context(Config)) ++ [{"HOME", directory(Config)}]),
    _ = sw_e2e:wait_line(Program, "registered with epmd"),
    bare(Config, #{name => list_to_atom(Name)}, fun(N) -> ?assertEqual(pong, net_adm:ping(N)) end),
    sw_e2e:kill(Program).

a_cookie_that_changes_counts_for_new_peers_and_leaves_old_links_up(Config) ->
    Old = maps:get(cookie, context(Config)),
    File = cookie_file(Config, Old),
    Node = #{program := Program, name := Name} =
        sw_e2e:start_node((context(Config))#{cookie_file := File}, #{}),
    Reaches = fun(Beam) -> sw_e2e:on(Beam, fun() -> net_adm:ping(Name) end) end,
    First = sw_e2e:start_beam(context(Config)),
    ?assertEqual(pong, Reaches(First)),
    ok = file:delete(File),
    _ = cookie_file(Config, "another"),
    Late = sw_e2e:start_beam(context(Config)),
    ?assertEqual(pang, Reaches(Late)),
    Right = sw_e2e:start_beam(context(Config), #{cookie => "another"}),
    ?assertEqual(pong, Reaches(Right)),
    ?assertEqual(pong, Reaches(First)),
    ?assertEqual([Name], sw_e2e:on(First, fun() -> nodes(hidden) end)),
    ?assert(matches(sw_e2e:output(Program), "the cookie was read anew")),
    ?assertNot(matches(sw_e2e:output(Program), "another")),
    [ok = sw_e2e:stop_beam(Beam) || Beam <- [First, Late, Right]],
    sw_e2e:stop_node(Node).

cookie_file(Config, Cookie) ->
    File = filename:join(directory(Config), "changing"),
    ok = file:write_file(File, Cookie),
    ok = file:change_mode(File, 8#400),
    File.

a_cookie_from_a_variable_is_hidden_from_python_and_proc(Config) ->
    Cookie = maps:get(cookie, context(Config)),
    Name = sw_e2e:unique("py") ++ "@127.0.0.1",
    Program = sw_e2e:start_program(sw_e2e:sidewinder(), ["--name", Name, "--path", directory(Config)],
                                   sw_e2e:environment(context(Config)) ++ [{"SIDEWINDER_COOKIE", Cookie}]),
    _ = sw_e2e:wait_line(Program, "registered with epmd"),
    bare(Config, #{name => list_to_atom(Name)}, fun(N) ->
        {ok, Seen} = gen_server:call({py, N}, {eval, <<"str(__import__('os').environ)">>, #{}}),
        ?assertEqual(nomatch, string:find(Seen, "SIDEWINDER_COOKIE")),
        {ok, Started} = gen_server:call({py, N}, {eval, <<"open('/proc/self/environ', 'rb').read().hex()">>, #{}}),
        ?assertEqual(nomatch, binary:match(binary:decode_hex(Started), list_to_binary(Cookie)))
    end),
    ?assert(matches(sw_e2e:output(Program), "the cookie comes from SIDEWINDER_COOKIE")),
    ?assertNot(matches(sw_e2e:output(Program), "[ =]" ++ Cookie)),
    sw_e2e:kill(Program).

documentation() ->
    {ok, Text} = file:read_file(filename:join(sw_e2e:root(), "docs/configuration.md")),
    Text.

the_file_of_the_documentation_is_a_file_of_settings(Config) ->
    {match, [Toml]} = re:run(documentation(), "```toml\n(.*?)```", [dotall, {capture, [1], binary}]),
    File = filename:join(directory(Config), "sidewinder.toml"),
    ok = file:write_file(File, Toml),
    Arguments = ["--config", File, "--workers", "8", "--check-config", "--cookie-file", maps:get(cookie_file, context(Config))],
    {0, Output, <<>>} = program(Config, Arguments),
    [?assert(lists:member(iolist_to_binary(Line), lines(Output)), {Line, Output})
     || Line <- [["name = py@127.0.0.1  (", File, ":1)"], "workers = 8  (flag)", ["import = json,math  (", File, ":3)"],
                 ["eval = off  (", File, ":5)"], "queue = 100000  (default)"]].

a_wrong_file_of_settings_is_one_line_with_its_place_and_exit_code_1(Config) ->
    File = filename:join(directory(Config), "wrong.toml"),
    ok = file:write_file(File, "workers = 2\nwokers = 3\n"),
    {1, <<>>, Errors} = program(Config, good(Config) ++ ["--config", File]),
    ?assertEqual([iolist_to_binary(["sidewinder: config: ", File, ":2: there is no setting wokers"])], lines(Errors)),
    {1, <<>>, Missing} = program(Config, good(Config) ++ ["--check-config", "--venv", "/no/such"]),
    ?assertEqual([<<"sidewinder: venv: '/no/such' is no folder">>], lines(Missing)).

the_documentation_lists_the_settings_the_program_has(Config) ->
    {0, Table, <<>>} = program(Config, ["--print-reference"]),
    ?assertNotEqual(nomatch, string:find(documentation(), Table)).

a_name_is_filled_in_from_the_pod(Config) ->
    Pod = [{"POD_IP", "127.0.0.1"}, {"POD_NAMESPACE", "prod"}],
    {0, Output, <<>>} = program(Config, ["--name", "py@{pod_ip}", "--listen", "{pod_ip}", "--print-config", "--cookie-file",
                                         maps:get(cookie_file, context(Config))], Pod),
    ?assert(lists:member(<<"name = py@127.0.0.1  (flag)">>, lines(Output))),
    {1, <<>>, Errors} = program(Config, ["--name", "py@{pod_ip}"], [{"POD_IP", false}]),
    ?assertEqual([<<"sidewinder: name: {pod_ip} needs the variable POD_IP">>], lines(Errors)).

a_port_that_is_taken_is_one_line_and_exit_code_1(Config) ->
    {ok, Socket} = gen_tcp:listen(0, [{ip, {127, 0, 0, 1}}]),
    {ok, Port} = inet:port(Socket),
    {1, <<>>, Errors} = program(Config, good(Config) ++ ["--dist-port", integer_to_list(Port), "--log-level", "error"]),
    ok = gen_tcp:close(Socket),
    ?assertMatch([_], lines(Errors)),
    ?assert(matches(Errors, lists:concat(["^sidewinder: (listen|dist-port): .*", Port]))).

%% --- Python -------------------------------------------------------------------------------------

write_module(Directory, Name, Code) ->
    File = filename:join(Directory, Name ++ ".py"),
    ok = filelib:ensure_dir(File),
    ok = file:write_file(File, Code).

imported_modules_are_there_before_the_first_call(Config) ->
    ok = write_module(directory(Config), "imported", "count = 1\ndef get(): return count\n"),
    with_node(Config, ["--path", directory(Config), "--import", "imported"], fun(N) ->
        ?assertEqual({ok, true}, gen_server:call({py, N}, {eval, <<"'imported' in __import__('sys').modules">>, #{}})),
        ?assertEqual(1, erpc:call(N, imported, get, []))
    end).

a_module_that_cannot_be_imported_is_one_line_and_exit_code_1(Config) ->
    ok = write_module(directory(Config), "broken", "x = 1\n\n1 / 0\n"),
    ok = write_module(directory(Config), "unreadable", "def\n"),
    [begin
        {1, Output, Errors} = program(Config, good(Config) ++ ["--path", directory(Config), "--import", Module,
                                                               "--log-level", "off"]),
        ?assertMatch([_], lines([Output, Errors])),
        ?assert(matches(Errors, "^sidewinder: import: " ++ Module ++ ": " ++ Exception), Errors)
    end || {Module, Exception} <- [{"broken", "ZeroDivisionError: division by zero"},
                                   {"unreadable", "SyntaxError: "},
                                   {"no_such_module", "ModuleNotFoundError: "}]].

earlier_paths_win_over_later_ones(Config) ->
    [First, Second] = [filename:join(directory(Config), Name) || Name <- ["first", "second"]],
    ok = write_module(First, "twice", "def where(): return 'first'\n"),
    ok = write_module(Second, "twice", "def where(): return 'second'\n"),
    ok = write_module(Second, "json", "def where(): return 'mine'\n"),
    with_node(Config, ["--path", First, "--path", Second], fun(N) ->
        ?assertEqual(<<"first">>, erpc:call(N, twice, where, [])),
        ?assertEqual(<<"mine">>, erpc:call(N, json, where, []))
    end).

make_venv(Config) ->
    Venv = filename:join(directory(Config), "venv"),
    {0, _, _} = sw_e2e:run("/usr/bin/python3", ["-m", "venv", "--without-pip", Venv], []),
    Venv.

a_virtual_environment_is_used_with_its_pth_files(Config) ->
    Venv = make_venv(Config),
    [Packages] = filelib:wildcard(filename:join(Venv, "lib/python3.*/site-packages")),
    Elsewhere = filename:join(directory(Config), "elsewhere"),
    ok = write_module(Packages, "inside_venv", "import sys\ndef prefix(): return sys.prefix\n"),
    ok = write_module(Elsewhere, "by_pth", "def where(): return __file__\n"),
    ok = file:write_file(filename:join(Packages, "more.pth"), Elsewhere ++ "\n"),
    with_node(Config, ["--venv", Venv], fun(N) ->
        ?assertEqual(list_to_binary(Venv), erpc:call(N, inside_venv, prefix, [])),
        ?assertEqual(list_to_binary(filename:join(Elsewhere, "by_pth.py")), erpc:call(N, by_pth, where, [])),
        ?assertEqual(4.0, erpc:call(N, math, sqrt, [16.0]))
    end),
    with_node(Config, [], fun(N) ->
        ?assertError({exception, {python, <<"ModuleNotFoundError">>, _, _}, _}, erpc:call(N, inside_venv, prefix, []))
    end).

a_virtual_environment_of_another_python_is_refused(Config) ->
    Venv = make_venv(Config),
    File = filename:join(Venv, "pyvenv.cfg"),
    {ok, Text} = file:read_file(File),
    ok = file:write_file(File, re:replace(Text, "version = [0-9.]+", "version = 3.7.9")),
    {1, <<>>, Errors} = program(Config, good(Config) ++ ["--venv", Venv]),
    ?assertMatch([_], lines(Errors)),
    ?assert(matches(Errors, "^sidewinder: venv: .*3\\.7\\.9.*Python 3\\.")).

a_directory_that_is_no_virtual_environment_is_refused(Config) ->
    {1, <<>>, Errors} = program(Config, good(Config) ++ ["--venv", directory(Config)]),
    ?assertMatch([_], lines(Errors)),
    ?assert(matches(Errors, "^sidewinder: venv: .*pyvenv.cfg")).

none_is_sent_as_the_given_atom(Config) ->
    with_node(Config, ["--none", "nil"], fun(N) ->
        ?assertEqual({ok, [nil, true]}, gen_server:call({py, N}, {eval, <<"[None, True]">>, #{}})),
        ?assertEqual(nil, erpc:call(N, probe, identity, [none])),
        ?assertEqual({ok, nil}, gen_server:call({py, N}, {exec, <<"1">>}))
    end).

binaries_become_what_the_setting_says(Config) ->
    [with_node(Config, ["--binary", Setting], fun(N) ->
        ?assertEqual(Type, erpc:call(N, probe, type_of, [<<"text">>])),
        ?assertEqual(<<"text">>, erpc:call(N, probe, identity, [<<"text">>]))
     end) || {Setting, Type} <- [{"auto", <<"str">>}, {"str", <<"str">>}, {"bytes", <<"bytes">>}]].

%% --- limits -------------------------------------------------------------------------------------

an_allow_list_refuses_everything_else(Config) ->
    with_node(Config, ["--allow", "probe.identity", "--allow", "math.*", "--allow", "os.path.**"], fun(N) ->
        Call = fun(M, F, Args) -> gen_server:call({py, N}, {call, M, F, Args}) end,
        ?assertEqual({ok, 1}, Call(probe, identity, [1])),
        ?assertEqual({ok, 4.0}, Call(math, sqrt, [16.0])),
        ?assertEqual({ok, <<"a/b">>}, Call('os.path', join, [<<"a">>, <<"b">>])),
        ?assertEqual({ok, <<"a/b">>}, Call(os, 'path.join', [<<"a">>, <<"b">>])),
        ?assertEqual(4.0, erpc:call(N, math, sqrt, [16.0])),
        ?assertEqual({error, {not_allowed, {<<"probe">>, <<"nap">>}}}, Call(probe, nap, [1])),
        ?assertEqual({error, {not_allowed, {<<"os">>, <<"getpid">>}}}, Call(os, getpid, [])),
        ?assertEqual({error, {not_allowed, {<<"builtins">>, <<"eval">>}}}, gen_server:call({py, N}, {eval, <<"1">>, #{}})),
        ?assertEqual({error, {not_allowed, {<<"builtins">>, <<"exec">>}}}, gen_server:call({py, N}, {exec, <<"1">>})),
        ?assertError({exception, {not_allowed, {<<"os">>, <<"getpid">>}}, _}, erpc:call(N, os, getpid, [])),
        Request = spawn_request(N, probe, tell, [self(), no], [monitor]),
        receive {spawn_reply, Request, error, Reason} -> ?assertEqual(not_allowed, Reason) after 5000 -> error(no_reply) end,
        ok = gen_server:cast({py, N}, {cast, probe, tell, [self(), no]}),
        ok = erpc:cast(N, probe, tell, [self(), no]),
        ?assertError(not_allowed, spawn(N, probe, tell, [self(), no])),
        ?assertEqual({ok, 1}, Call(probe, identity, [1])),
        receive {probe, no} -> error(ran) after 100 -> ok end,
        ?assertEqual(pong, net_adm:ping(N))
    end).

an_allow_list_cannot_be_walked_around(Config) ->
    with_node(Config, ["--allow", "probe.identity", "--allow", "math.*"], fun(N) ->
        [?assertMatch({F, {error, {not_allowed, _}}}, {F, gen_server:call({py, N}, {call, M, F, Args})})
         || {M, F, Args} <- [{math, '__loader__.load_module', [<<"os">>]},
                             {math, '__dict__.get', [<<"pi">>]},
                             {probe, 'identity.__globals__.get', [<<"os">>]},
                             {<<"math.">>, sqrt, [1]},
                             {<<>>, <<"math.sqrt">>, [1]},
                             {<<"builtins">>, <<"eval">>, [<<"1">>]}]],
        ?assertEqual(pong, net_adm:ping(N))
    end).

an_allow_list_does_not_reach_through_imported_modules(Config) ->
    with_node(Config, ["--allow", "os.path.**", "--allow", "json.**"], fun(N) ->
        [?assertMatch({F, {error, {not_allowed, _}}}, {F, gen_server:call({py, N}, {call, M, F, Args})})
         || {M, F, Args} <- [{'os.path', 'os.getpid', []},
                             {'os.path', 'genericpath.os.getpid', []},
                             {'os.path', 'sys.getrecursionlimit', []},
                             {'os.path', '__builtins__.get', [<<"eval">>]},
                             {json, 'codecs.sys.getrecursionlimit', []},
                             {json, 'decoder.scanner.re.escape', [<<"x">>]}]],
        ?assertEqual({ok, <<"1">>}, gen_server:call({py, N}, {call, json, dumps, [1]})),
        ?assertEqual({ok, {<<"a">>, 2}}, gen_server:call({py, N}, {call, json, 'decoder.scanstring', [<<"a\"\"">>, 0]}))
    end).

without_an_allow_list_the_program_warns_once(Config) ->
    Count = fun(Text) -> length([Line || Line <- lines(Text), matches(Line, "warning .*--allow")]) end,
    Call = fun(N) -> [4.0 = erpc:call(N, math, sqrt, [16.0]) || _ <- [1, 2, 3]] end,
    ?assertEqual(1, Count(with_node(Config, [], Call))),
    ?assertEqual(0, Count(with_node(Config, ["--allow", "math.sqrt"], Call))).

eval_can_be_switched_off(Config) ->
    with_node(Config, ["--eval", "off"], fun(N) ->
        ?assertEqual({error, {not_allowed, {<<"builtins">>, <<"eval">>}}}, gen_server:call({py, N}, {eval, <<"1">>, #{}})),
        ?assertEqual({error, {not_allowed, {<<"builtins">>, <<"exec">>}}}, gen_server:call({py, N}, {exec, <<"1">>})),
        ?assertEqual({ok, 4.0}, gen_server:call({py, N}, {call, math, sqrt, [16.0]}))
    end).

with_eval_off_the_builtins_cannot_be_called_either(Config) ->
    with_node(Config, ["--eval", "off"], fun(N) ->
        [?assertMatch({F, {error, {not_allowed, _}}}, {F, gen_server:call({py, N}, {call, M, F, Args})})
         || {M, F, Args} <- [{builtins, eval, [<<"1">>, #{}]},
                             {builtins, exec, [<<"1">>, #{}]},
                             {<<"builtins">>, <<"exec">>, [<<"1">>, #{}]}]],
        ?assertError({exception, {not_allowed, _}, _}, erpc:call(N, builtins, exec, [<<"1">>, #{}]))
    end).

%% --- logs ---------------------------------------------------------------------------------------

every_line_of_a_json_log_is_valid_json(Config) ->
    Odd = <<"say \"hi\"\nand \\ \t\r bye", 1, " größe "/utf8, 16#1F600/utf8>>,
    Node = #{name := Name, program := Program} =
        sw_e2e:start_node(context(Config), #{args => ["--log-format", "json", "--ticktime", "4"]}),
    Stranger = sw_e2e:start_beam(context(Config), #{cookie => "not_the_cookie"}),
    pang = sw_e2e:on(Stranger, fun() -> net_adm:ping(Name) end),
    ok = sw_e2e:stop_beam(Stranger),
    bare(Config, Node, fun(N) ->
        ok = gen_server:cast({py, N}, {cast, probe, fail, [Odd]}),
        {ok, 1} = gen_server:call({py, N}, {call, probe, identity, [1]})
    end),
    _ = sw_e2e:wait_line(Program, "probe.Odd"),
    ok = sw_e2e:send_signal(Program, "TERM"),
    0 = sw_e2e:await_exit(Program),
    File = filename:join(directory(Config), "log"),
    ok = file:write_file(File, sw_e2e:output(Program)),
    Check = "import json, sys\n"
            "entries = [json.loads(line) for line in open(sys.argv[1], encoding='utf-8')]\n"
            "assert all(isinstance(entry, dict) for entry in entries)\n"
            "odd = [value for entry in entries for value in entry.values() if 'probe.Odd' in str(value)]\n"
            "assert len(odd) == 1, odd\n"
            "assert sys.argv[2] in odd[0], odd\n"
            "levels = {entry['level'] for entry in entries}\n"
            "assert {'info', 'warning', 'error'} <= levels, levels\n",
    ?assertEqual({0, <<>>, <<>>}, sw_e2e:run("/usr/bin/python3", ["-c", Check, File, Odd], [{"PYTHONUTF8", "1"}])).

the_log_level_is_obeyed(Config) ->
    Quiet = #{name := Name, program := Program} =
        sw_e2e:start_node_now(context(Config), #{args => ["--log-level", "error"]}),
    Beam = proplists:get_value(beam, Config),
    ok = sw_e2e:eventually(fun() -> sw_e2e:on(Beam, fun() -> net_adm:ping(Name) end) =:= pong end),
    bare(Config, Quiet, fun(N) -> ok = gen_server:cast({py, N}, {cast, probe, fail, [<<"loud">>]}) end),
    _ = sw_e2e:wait_line(Program, "probe.Odd: loud"),
    ?assertEqual([], [Line || Line <- lines(sw_e2e:output(Program)), matches(Line, "^[-0-9T:.]+ (info|warning|debug)")]),
    ok = sw_e2e:stop_node(Quiet).

%% It is a line of the log, whatever the log's level; with the capture off, or no log, it goes out as it is.
what_python_prints_is_not_lost(Config) ->
    [begin
        Node = #{program := Program} = sw_e2e:start_node_now(context(Config), #{args => Arguments}),
        ok = sw_e2e:eventually(fun() -> bare(Config, Node, fun(N) -> net_adm:ping(N) end) =:= pong end),
        bare(Config, Node, fun(N) ->
            none = erpc:call(N, builtins, print, [<<"printed from a call">>]),
            {ok, none} = gen_server:call({py, N}, {exec, <<"import sys\nsys.stderr.write('written to stderr\\n')">>})
        end),
        _ = sw_e2e:wait_line(Program, "^" ++ Before ++ "printed from a call$"),
        _ = sw_e2e:wait_line(Program, "^" ++ Before ++ "written to stderr$"),
        ok = sw_e2e:stop_node(Node)
     end || {Arguments, Before} <- [{[], "2[-0-9T:.]+ (info|warning) "},
                                    {["--log-level", "critical"], "2[-0-9T:.]+ critical "},
                                    {["--capture", "off"], ""},
                                    {["--log-level", "off"], ""}]].

the_cookie_is_never_logged(Config) ->
    Node = #{name := Name, program := Program} = sw_e2e:start_node(context(Config), #{args => ["--log-level", "trace"]}),
    bare(Config, Node, fun(N) -> pong = net_adm:ping(N) end),
    Stranger = sw_e2e:start_beam(context(Config), #{cookie => "not_the_cookie"}),
    pang = sw_e2e:on(Stranger, fun() -> net_adm:ping(Name) end),
    ok = sw_e2e:stop_beam(Stranger),
    ok = sw_e2e:send_signal(Program, "TERM"),
    0 = sw_e2e:await_exit(Program),
    Cookie = list_to_binary(maps:get(cookie, context(Config))),
    ?assertEqual(nomatch, binary:match(sw_e2e:output(Program), Cookie)),
    ?assertEqual(nomatch, binary:match(sw_e2e:output(Program), <<"not_the_cookie">>)).

%% --- stopping -----------------------------------------------------------------------------------

%% A BEAM process that asks for this and keeps the answer for get/1.
asking(Config, Name, Request) ->
    sw_e2e:on(proplists:get_value(beam, Config), fun() ->
        spawn(fun() ->
            Answer = try gen_server:call({py, Name}, Request, 30000) catch _:Reason -> {caught, Reason} end,
            receive {get, From} -> From ! {self(), Answer} end
        end)
    end).

get(Config, Asker) ->
    sw_e2e:on(proplists:get_value(beam, Config), fun() ->
        Asker ! {get, self()},
        receive {Asker, Answer} -> Answer end
    end).

call(Config, Name, Request) ->
    sw_e2e:on(proplists:get_value(beam, Config), fun() -> gen_server:call({py, Name}, Request) end).

busy(Config, Name, Count) ->
    Beam = proplists:get_value(beam, Config),
    ok = sw_e2e:eventually(fun() ->
        #{<<"busy">> := Busy, <<"tasks">> := Tasks} = sw_e2e:stats(Beam, Name),
        Busy - 1 + Tasks =:= Count
    end).

registered(Config, Name) ->
    lists:keymember(hd(string:split(atom_to_list(Name), "@")), 1, sw_e2e:epmd_names(maps:get(epmd_port, context(Config)))).

sigterm_finishes_what_was_accepted_and_refuses_the_rest(Config) ->
    #{name := Name, program := Program} = sw_e2e:start_node(context(Config)),
    Slow = asking(Config, Name, {call, probe, nap, [2.0]}),
    busy(Config, Name, 1),
    ok = sw_e2e:send_signal(Program, "TERM"),
    _ = sw_e2e:wait_line(Program, "draining"),
    ?assertEqual({error, draining}, call(Config, Name, {call, math, sqrt, [16.0]})),
    ?assertEqual({error, draining}, call(Config, Name, {eval, <<"1">>, #{}})),
    sw_e2e:on(proplists:get_value(beam, Config), fun() ->
        ?assertError({erpc, _}, erpc:call(Name, math, sqrt, [16.0])),
        ?assertEqual(yes, gen_server:call({net_kernel, Name}, {is_auth, node()}))
    end),
    ok = sw_e2e:eventually(fun() -> not registered(Config, Name) end),
    ?assert(sw_e2e:alive(Program)),
    ?assertEqual({ok, 2.0}, get(Config, Slow)),
    ?assertEqual(0, sw_e2e:await_exit(Program)),
    ?assertEqual(pang, sw_e2e:on(proplists:get_value(beam, Config), fun() -> net_adm:ping(Name) end)).

sigterm_waits_for_coroutines_and_casts(Config) ->
    Beam = proplists:get_value(beam, Config),
    #{name := Name, program := Program} = sw_e2e:start_node(context(Config), #{args => ["--workers", "1"]}),
    Slow = asking(Config, Name, {call, probe, nap_async, [1.5]}),
    Listener = sw_e2e:on(Beam, fun() -> spawn(fun() -> listen([]) end) end),
    busy(Config, Name, 1),
    ok = sw_e2e:on(Beam, fun() ->
        [ok = gen_server:cast({py, Name}, {cast, probe, nap_watched, [Listener, I, 0.1]}) || I <- [1, 2, 3]],
        {ok, 1} = gen_server:call({py, Name}, {call, probe, nap_async, [1]}),
        ok
    end),
    ok = sw_e2e:send_signal(Program, "TERM"),
    ?assertEqual({ok, 1.5}, get(Config, Slow)),
    ?assertEqual(0, sw_e2e:await_exit(Program)),
    Told = sw_e2e:on(Beam, fun() -> Listener ! {get, self()}, receive {Listener, What} -> What end end),
    ?assertEqual([1, 2, 3], [I || {<<"done">>, I} <- lists:reverse(Told)]).

listen(Told) ->
    receive
        {probe, What} -> listen([What | Told]);
        {get, From} -> From ! {self(), Told}
    end.

sigterm_lets_channels_run_dry(Config) ->
    Beam = proplists:get_value(beam, Config),
    #{name := Name, program := Program} = sw_e2e:start_node(context(Config)),
    Other = sw_e2e:start_beam(context(Config), #{args => ["-pa", filename:dirname(code:which(py))]}),
    {Consumer, Ch} = sw_e2e:on(Other, fun() ->
        {ok, _} = application:ensure_all_started(sidewinder),
        {ok, Ch} = py_channel:new(Name, #{owner => none}),
        Self = self(),
        Consumer = spawn(fun() ->
            Ref = py:spawn_call(Name, channels, receive_slowly_then_send, [Ch, 0.05]),
            Self ! started,
            keep(py:await(Ref, 20000))
        end),
        receive started -> ok end,
        [ok = py_channel:send(Ch, N) || N <- lists:seq(1, 20)],
        {Consumer, Ch}
    end),
    ok = sw_e2e:eventually(fun() ->
        #{received := Received} = sw_e2e:on(Other, fun() -> py_channel:info(Ch) end),
        Received =:= 20
    end),
    ok = sw_e2e:send_signal(Program, "TERM"),
    _ = sw_e2e:wait_line(Program, "draining"),
    sw_e2e:on(Other, fun() ->
        ?assertEqual({error, draining}, py_channel:new(Name, #{})),
        ok = sw_e2e:eventually(fun() -> py_channel:send(Ch, late) =:= {error, closed} end),
        % What Python had is received by its consumer, and what that says by us.
        ?assertEqual({ok, lists:seq(1, 20)}, py_channel:recv(Ch, 20000)),
        Consumer ! {get, self()},
        ?assertEqual({ok, <<"done">>}, receive {Consumer, Result} -> Result after 20000 -> late end),
        ?assertEqual({error, closed}, py_channel:recv(Ch, 20000))
    end),
    ?assertEqual(0, sw_e2e:await_exit(Program)),
    ?assertEqual(pang, sw_e2e:on(Beam, fun() -> net_adm:ping(Name) end)),
    ok = sw_e2e:stop_beam(Other).

keep(Value) ->
    receive {get, From} -> From ! {self(), Value} end.

sigint_stops_an_idle_node_with_0(Config) ->
    #{program := Program} = sw_e2e:start_node(context(Config)),
    ok = sw_e2e:send_signal(Program, "INT"),
    ?assertEqual(0, sw_e2e:await_exit(Program, 5000)).

a_node_that_has_nothing_left_still_answers_what_was_on_its_way(Config) ->
    #{name := Name, program := Program} = sw_e2e:start_node(context(Config)),
    {ok, 4.0} = call(Config, Name, {call, math, sqrt, [16.0]}),
    ok = sw_e2e:send_signal(Program, "TERM"),
    _ = sw_e2e:wait_line(Program, "draining"),
    [begin
         timer:sleep(100),
         ?assertEqual({error, draining}, call(Config, Name, {call, math, sqrt, [16.0]}))
     end || _ <- lists:seq(1, 5)],
    ?assertEqual(0, sw_e2e:await_exit(Program, 5000)).

a_peer_that_never_stops_asking_does_not_keep_a_node(Config) ->
    #{name := Name, program := Program} = sw_e2e:start_node(context(Config)),
    {ok, 4.0} = call(Config, Name, {call, math, sqrt, [16.0]}),
    Asker = sw_e2e:on(proplists:get_value(beam, Config), fun() ->
        spawn(fun() -> keep(catch ask_on(Name)) end)
    end),
    ok = sw_e2e:send_signal(Program, "TERM"),
    ?assertEqual(0, sw_e2e:await_exit(Program, 6000)),
    ?assertMatch({'EXIT', {{nodedown, Name}, _}}, sw_e2e:on(proplists:get_value(beam, Config), fun() ->
        Asker ! {get, self()},
        receive {Asker, What} -> What end
    end)).

ask_on(Name) ->
    _ = gen_server:call({py, Name}, {call, math, sqrt, [16.0]}),
    timer:sleep(20),
    ask_on(Name).

a_drain_that_takes_too_long_is_cut_short(Config) ->
    #{name := Name, program := Program} =
        sw_e2e:start_node(context(Config), #{args => ["--drain-timeout", "1", "--grace-ms", "300"]}),
    Slow = asking(Config, Name, {call, probe, nap, [30]}),
    Later = asking(Config, Name, {call, probe, nap_async, [30]}),
    busy(Config, Name, 2),
    ok = sw_e2e:send_signal(Program, "TERM"),
    ?assertEqual(0, sw_e2e:await_exit(Program, 8000)),
    ?assert(matches(sw_e2e:output(Program), "warning .*unfinished")),
    [?assertMatch({caught, {{nodedown, Name}, _}}, get(Config, Asker)) || Asker <- [Slow, Later]].

a_second_sigterm_stops_at_once_with_4(Config) ->
    #{name := Name, program := Program} = sw_e2e:start_node(context(Config)),
    Slow = asking(Config, Name, {call, probe, nap, [30]}),
    busy(Config, Name, 1),
    ok = sw_e2e:send_signal(Program, "TERM"),
    _ = sw_e2e:wait_line(Program, "draining"),
    ok = sw_e2e:send_signal(Program, "TERM"),
    ?assertEqual(4, sw_e2e:await_exit(Program, 2000)),
    ?assertMatch({caught, {{nodedown, Name}, _}}, get(Config, Slow)).

%% With an input that ends, or is not there at all.
with_input(Config, Shell, Environment) ->
    Name = sw_e2e:unique("py") ++ "@127.0.0.1",
    Arguments = ["-c", Shell, sw_e2e:sidewinder(), "--name", Name | sw_e2e:node_arguments(context(Config), [])],
    Program = sw_e2e:start_program("/bin/sh", Arguments, sw_e2e:environment(context(Config)) ++ Environment),
    _ = sw_e2e:wait_line(Program, "registered with epmd"),
    {list_to_atom(Name), Program}.

the_end_of_standard_input_stops_a_node_that_was_told_so(Config) ->
    {_, Program} = with_input(Config, "sleep 3 | \"$0\" \"$@\"", []),
    ?assertEqual(0, sw_e2e:await_exit(Program)),
    ?assert(matches(sw_e2e:output(Program), "standard input")).

the_end_of_standard_input_means_nothing_otherwise(Config) ->
    {Name, Program} = with_input(Config, "exec \"$0\" \"$@\" </dev/null", [{"SIDEWINDER_STOP_ON_STDIN_EOF", false}]),
    timer:sleep(500),
    ?assertEqual({ok, 4.0}, call(Config, Name, {call, math, sqrt, [16.0]})),
    ok = sw_e2e:send_signal(Program, "TERM"),
    ?assertEqual(0, sw_e2e:await_exit(Program)).

as_process_1_it_stops_on_sigterm_and_reaps_orphans(Config) ->
    Name = sw_e2e:unique("py") ++ "@127.0.0.1",
    Arguments = ["--pid", "--fork", "--kill-child", "--mount-proc", sw_e2e:sidewinder(), "--name", Name
                 | sw_e2e:node_arguments(context(Config), [])],
    Program = sw_e2e:start_program(os:find_executable("unshare"), Arguments, sw_e2e:environment(context(Config))),
    try
        _ = sw_e2e:wait_line(Program, "registered with epmd"),
        [First] = children(integer_to_list(sw_e2e:os_pid(Program))),
        ok = sw_e2e:on(proplists:get_value(beam, Config), fun() ->
            N = list_to_atom(Name),
            0 = erpc:call(N, os, system, [<<"(sleep 0.2; exit 3) & exit 0">>]),
            ?assertEqual({ok, 4.0}, gen_server:call({py, N}, {call, math, sqrt, [16.0]})),
            ok
        end),
        timer:sleep(400),
        ok = sw_e2e:eventually(fun() -> [Child || Child <- children(First), state(Child) =:= "Z"] =:= [] end),
        "" = os:cmd("kill -TERM " ++ First),
        ?assertEqual(0, sw_e2e:await_exit(Program))
    after
        sw_e2e:kill(Program)
    end.

children(OsPid) ->
    {ok, Text} = file:read_file(["/proc/", OsPid, "/task/", OsPid, "/children"]),
    string:lexemes(binary_to_list(Text), " \n").

state(OsPid) ->
    case file:read_file(["/proc/", OsPid, "/stat"]) of
        {ok, Text} -> hd(string:lexemes(lists:last(string:split(binary_to_list(Text), ")")), " "));
        {error, _} -> "gone"
    end.
