%% What must not get out of a node and what must not get in, where no other suite looks: the cookie, pickles, atoms,
%% addresses. docs/operations.md lists each limit with the test that shows it.
-module(security_SUITE).

-include_lib("stdlib/include/assert.hrl").

-export([all/0, suite/0, init_per_suite/1, end_per_suite/1]).
-compile([export_all, nowarn_export_all]).

suite() -> [{timetrap, {seconds, 120}}].

all() ->
    [the_cookie_is_in_no_log_metric_argument_or_environment,
     the_cookie_is_in_none_of_these_with_worker_processes_and_not_in_their_memory,
     a_pickle_is_only_bytes,
     what_python_calls_things_makes_no_atoms_in_a_beam,
     many_atoms_cost_a_node_no_memory,
     an_exception_of_any_size_is_an_answer,
     a_node_listens_on_the_address_of_its_name_alone].

init_per_suite(Config0) ->
    Config1 = sw_e2e:setup(Config0),
    %% A cookie that is found nowhere by chance.
    Shared = #{cookie_file := File} = sw_e2e:context(Config1),
    Cookie = binary_to_list(binary:encode_hex(rand:bytes(24))),
    ok = file:change_mode(File, 8#600),
    ok = file:write_file(File, Cookie),
    ok = file:change_mode(File, 8#400),
    Context = Shared#{cookie => Cookie},
    Config = lists:keystore(context, 1, Config1, {context, Context}),
    [{beam, sw_e2e:start_beam(Context)}, {node, sw_e2e:start_node(Context)} | Config].

end_per_suite(Config) ->
    ok = sw_e2e:stop_beam(proplists:get_value(beam, Config)),
    ok = sw_e2e:stop_node(proplists:get_value(node, Config)),
    ok = sw_e2e:teardown(Config).

context(Config) -> sw_e2e:context(Config).

%% Runs a function of the node's name in the BEAM.
on(Config, Body) ->
    #{name := Node} = proplists:get_value(node, Config),
    on(Config, Node, Body).

on(Config, Node, Body) ->
    sw_e2e:on(proplists:get_value(beam, Config), fun() -> Body(Node) end).

call(Node, Request) -> gen_server:call({py, Node}, Request, 30000).

eval(Node, Code) -> call(Node, {eval, Code, #{}}).

%% --- The cookie ---------------------------------------------------------------------------------

the_cookie_is_in_no_log_metric_argument_or_environment(Config) ->
    cookie_is_nowhere(Config, [], fun(_) -> ok end).

the_cookie_is_in_none_of_these_with_worker_processes_and_not_in_their_memory(Config) ->
    cookie_is_nowhere(Config, ["--processes", "2", "--workers", "2"], fun(Cookie) -> fun(Pid) ->
        ?assertEqual(false, in_memory(Pid, Cookie))
    end end).

%% The cookie comes as a file and stands in a variable besides, which the program must clear. All that can go wrong with
%% a cookie happens, at the most talkative log level; then everything that could show it is searched.
cookie_is_nowhere(Config, Arguments, OfWorkers) ->
    Context = #{cookie := Cookie} = context(Config),
    Variables = [{"SIDEWINDER_COOKIE", Cookie}, {"RELEASE_COOKIE", Cookie}],
    Node = #{name := N, program := Program} =
        sw_e2e:start_node(Context, #{args => ["--log-level", "trace", "--admin", "127.0.0.1:0" | Arguments], env => Variables}),
    Stranger = sw_e2e:start_beam(Context, #{cookie => "another"}),
    ?assertEqual(pang, sw_e2e:on(Stranger, fun() -> net_adm:ping(N) end)),
    ok = sw_e2e:stop_beam(Stranger),
    Seen = on(Config, N, fun(_) ->
        [eval(N, <<"dict(__import__('os').environ)">>),
         eval(N, <<"__import__('sys').argv">>),
         eval(N, <<"1/0">>),
         call(N, {call, nothing, nothing, []}),
         call(N, {what, is, this}),
         catch gen_server:call({nobody, N}, x)]
    end),
    Children = children(sw_e2e:os_pid(Program)),
    Pids = [sw_e2e:os_pid(Program) | Children],
    Places = [{answers, term_to_binary(Seen)}, {log, sw_e2e:output(Program)}, {metrics, metrics(Program)}
              | [{{File, Pid}, read(Pid, File)} || Pid <- Pids, File <- ["cmdline", "environ"]]],
    [?assertEqual({Place, nomatch}, {Place, binary:match(Text, list_to_binary(Cookie))}) || {Place, Text} <- Places],
    ?assertMatch([{ok, #{<<"HOME">> := _}} | _], Seen),
    ?assert(in_memory(hd(Pids), Cookie)),  % so that the search is known to find it
    case OfWorkers(Cookie) of
        ok -> ok;
        Check -> ?assertMatch([_, _ | _], Children), lists:foreach(Check, Children)
    end,
    ok = sw_e2e:stop_node(Node).

children(Pid) ->
    Direct = [list_to_integer(Child) || Child <- string:lexemes(os:cmd(lists:concat(["ps -o pid= --ppid ", Pid])), " \n")],
    Direct ++ lists:flatmap(fun children/1, Direct).

read(Pid, File) ->
    {ok, Text} = file:read_file(lists:concat(["/proc/", Pid, "/", File])),
    Text.

metrics(Program) ->
    Line = sw_e2e:wait_line(Program, "admin: listening on port [0-9]+"),
    {match, [Port]} = re:run(Line, "port ([0-9]+)", [{capture, [1], list}]),
    {ok, Socket} = gen_tcp:connect({127, 0, 0, 1}, list_to_integer(Port), [binary, {active, false}]),
    ok = gen_tcp:send(Socket, "GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"),
    Text = all_of(Socket, <<>>),
    ?assertNotEqual(nomatch, binary:match(Text, <<"sidewinder_build_info">>)),
    Text.

all_of(Socket, Before) ->
    case gen_tcp:recv(Socket, 0, 15000) of
        {ok, More} -> all_of(Socket, <<Before/binary, More/binary>>);
        {error, closed} -> Before
    end.

%% Whether a text stands anywhere in the memory that a process can write.
in_memory(Pid, Text) ->
    Code = "import re, sys\n"
           "pid, text = sys.argv[1], sys.stdin.readline().strip().encode()\n"
           "found = False\n"
           "with open(f'/proc/{pid}/mem', 'rb', 0) as memory, open(f'/proc/{pid}/maps') as maps:\n"
           "    for line in maps:\n"
           "        area = re.match(r'([0-9a-f]+)-([0-9a-f]+) rw', line)\n"
           "        if area and '[v' not in line:\n"
           "            begin, end = int(area[1], 16), int(area[2], 16)\n"
           "            try:\n"
           "                memory.seek(begin)\n"
           "                found = found or text in memory.read(end - begin)\n"
           "            except OSError:\n"
           "                pass\n"
           "print(found)\n",
    Command = lists:concat(["echo '", Text, "' | /usr/bin/python3 -c \"$CODE\" ", Pid]),
    {0, Output, <<>>} = sw_e2e:run("/bin/sh", ["-c", Command], [{"CODE", Code}]),
    string:trim(binary_to_list(Output)) =:= "True".

%% --- What comes in --------------------------------------------------------------------------------

%% pickle.dumps of something that, loaded, makes a file.
a_pickle_is_only_bytes(Config) ->
    #{directory := Directory} = context(Config),
    File = filename:join(Directory, "unpickled"),
    Pickle = iolist_to_binary(["cos\nsystem\n(S'touch ", File, "'\ntR."]),
    Answers = on(Config, fun(N) ->
        Request = {call, probe, identity, [Pickle]},
        {py, N} ! Pickle,
        ok = gen_server:cast({py, N}, Pickle),
        [call(N, Request),
         call(N, {call, probe, type_of, [<<128, 4, Pickle/binary>>]}),
         element(1, call(N, Pickle)),
         eval(N, <<"'pickle' in __import__('sys').modules">>)]
    end),
    ?assertEqual([{ok, Pickle}, {ok, <<"bytes">>}, error, {ok, false}], Answers),
    ?assertNot(filelib:is_file(File)).

what_python_calls_things_makes_no_atoms_in_a_beam(Config) ->
    {Before, After} = on(Config, fun(N) ->
        Raise = fun(I) ->
            Name = integer_to_list(erlang:unique_integer([positive])) ++ "_" ++ integer_to_list(I),
            Code = "(_ for _ in ()).throw(type('Made" ++ Name ++ "', (Exception,), {})('" ++ Name ++ "'))",
            {error, {python, <<"__main__.Made", _/binary>>, _, _}} = eval(N, list_to_binary(Code)),
            {ok, #{}} = eval(N, list_to_binary("{'key" ++ Name ++ "': 'value" ++ Name ++ "'}")),
            ?assertError({exception, {python, _, _, _}, _}, erpc:call(N, nothing, list_to_atom("f"), []))
        end,
        ok = lists:foreach(Raise, lists:seq(1, 10)),
        Count = erlang:system_info(atom_count),
        ok = lists:foreach(Raise, lists:seq(1, 200)),
        {Count, erlang:system_info(atom_count)}
    end),
    ?assertEqual(Before, After).

%% A BEAM would keep them for ever.
many_atoms_cost_a_node_no_memory(Config) ->
    #{program := Program} = proplists:get_value(node, Config),
    Pid = sw_e2e:os_pid(Program),
    Round = fun() -> on(Config, fun many_atoms/1), resident_kb(Pid) end,
    Warm = Round(),
    _ = Round(),
    After = Round(),
    ?assert(After - Warm < 8 * 1024, {Warm, After}).

many_atoms(N) ->
    Base = integer_to_list(erlang:unique_integer([positive])) ++ lists:duplicate(200, $x),
    Atoms = [list_to_atom(Base ++ integer_to_list(I)) || I <- lists:seq(1, 20000)],
    {ok, 20000} = call(N, {call, builtins, len, [Atoms]}),
    {ok, Atoms} = call(N, {call, probe, identity, [Atoms]}),
    ok.

resident_kb(Pid) ->
    {match, [Kb]} = re:run(read(Pid, "status"), "VmRSS:\\s+([0-9]+)", [{capture, [1], list}]),
    list_to_integer(Kb).

%% --- What goes out --------------------------------------------------------------------------------

an_exception_of_any_size_is_an_answer(Config) ->
    ok = on(Config, fun(N) ->
        true = monitor_node(N, true),
        {error, {python, <<"ValueError">>, Message, _}} = eval(N, <<"(_ for _ in ()).throw(ValueError('x' * 300_000_000))">>),
        ?assert(byte_size(Message) =< 300_000_000),
        {ok, 4.0} = call(N, {call, math, sqrt, [16.0]}),
        true = monitor_node(N, false),
        receive {nodedown, N} -> error(link_lost) after 0 -> ok end
    end).

a_node_listens_on_the_address_of_its_name_alone(Config) ->
    #{program := Program} = proplists:get_value(node, Config),
    Pid = sw_e2e:os_pid(Program),
    Links = [Target || File <- filelib:wildcard(lists:concat(["/proc/", Pid, "/fd/*"])),
                       {ok, Target} <- [file:read_link(File)]],
    Inodes = [Inode || Target <- Links,
                       {match, [Inode]} <- [re:run(Target, "^socket:\\[([0-9]+)\\]$", [{capture, [1], list}])]],
    %% sl local_address rem_address st … inode; state 0A is LISTEN, 0100007F is 127.0.0.1.
    Listening = [lists:sublist(Address, 8)
                 || File <- ["tcp", "tcp6"],
                    Line <- string:split(binary_to_list(read(Pid, "net/" ++ File)), "\n", all),
                    [_, Address, _, "0A", _, _, _, _, _, Inode | _] <- [string:lexemes(Line, " ")],
                    lists:member(Inode, Inodes)],
    ?assertEqual(["0100007F"], Listening).
