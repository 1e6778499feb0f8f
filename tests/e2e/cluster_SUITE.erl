%% Joining, losing and finding each other again: epmd, names, cookies, ticks, and peers that die, hang or
%% come back. Each test has nodes and BEAMs of its own, and an epmd of its own where it ends one.
-module(cluster_SUITE).

-include_lib("stdlib/include/assert.hrl").

-export([all/0, groups/0, suite/0, init_per_suite/1, end_per_suite/1, init_per_testcase/2]).
-compile([export_all, nowarn_export_all]).

suite() -> [{timetrap, {seconds, 120}}].

all() ->
    [{group, finding}, {group, losing}].

%% What mostly waits runs side by side.
groups() ->
    [{finding, [],
      [several_beams_at_once_are_served_and_do_not_disturb_each_other,
       both_sides_dial_at_once_again_and_again,
       a_node_without_epmd_is_reached_on_its_fixed_port,
       a_node_without_epmd_dials_its_peer,
       a_listening_port_is_taken_from_the_given_range,
       a_port_is_computed_from_the_name_on_both_sides,
       a_node_that_only_dials_listens_nowhere,
       a_node_is_the_epmd_of_a_host_that_has_none,
       the_built_in_epmd_obeys_no_orders_and_takes_no_malformed_request,
       of_two_nodes_without_epmd_one_is_it_and_the_other_takes_over,
       an_epmd_that_is_there_is_used,
       a_node_is_named_by_the_peer_it_dials,
       a_node_is_reached_by_ipv6,
       short_names_meet,
       a_beam_with_a_wrong_cookie_is_refused_and_the_log_says_so,
       a_node_with_a_wrong_cookie_is_refused_by_its_peer]},
     {losing, [parallel],
      [a_node_registers_again_when_epmd_comes_back,
       a_node_waits_for_an_epmd_that_is_not_there_yet,
       a_killed_node_comes_back_under_its_name,
       a_killed_beam_comes_back_under_its_name,
       a_beam_that_comes_back_takes_over_a_link_that_hangs,
       a_peer_that_is_not_there_yet_is_dialled_until_it_is,
       a_peer_that_comes_back_is_dialled_again,
       a_second_node_with_the_same_name_exits_with_3,
       a_stopped_beam_is_given_up_after_one_and_a_quarter_ticktimes,
       a_stopped_node_is_given_up_and_comes_back,
       ticks_keep_an_idle_link_alive]}].

init_per_suite(Config) ->
    sw_e2e:setup(Config).

end_per_suite(Config) ->
    ok = sw_e2e:teardown(Config).

init_per_testcase(a_node_is_reached_by_ipv6, Config) ->
    case gen_tcp:listen(0, [inet6, {ip, {0, 0, 0, 0, 0, 0, 0, 1}}]) of
        {ok, Socket} -> ok = gen_tcp:close(Socket), Config;
        {error, _} -> {skip, "there is no ::1"}
    end;
init_per_testcase(_, Config) ->
    Config.

context(Config) -> sw_e2e:context(Config).

%% The suite's surroundings with an epmd of the test's own, not started yet.
own_epmd(Config) ->
    (context(Config))#{epmd_port := sw_e2e:free_port()}.

ping(Beam, #{name := Name}) -> ping(Beam, Name);
ping(Beam, Name) -> sw_e2e:on(Beam, fun() -> net_adm:ping(Name) end).

call(Beam, #{name := Name}) -> call(Beam, Name);
call(Beam, Name) -> sw_e2e:on(Beam, fun() -> gen_server:call({py, Name}, {call, math, sqrt, [16.0]}) end).

hidden(Beam) -> sw_e2e:on(Beam, fun() -> nodes(hidden) end).

%% Has a process in the BEAM note when the node is lost; lost/1 says whether it was.
watch(Beam, #{name := Name}) ->
    sw_e2e:on(Beam, fun() ->
        Asked = self(),
        Watcher = spawn(fun() -> watching(Name, Asked) end),
        receive {Watcher, watching} -> Watcher end
    end).

watching(Name, Asked) ->
    true = monitor_node(Name, true),
    Asked ! {self(), watching},
    receive {nodedown, Name} -> answer(true) end.

answer(Lost) ->
    receive {get, From} -> From ! {self(), Lost}, answer(Lost) end.

lost(Beam, Watcher) ->
    sw_e2e:on(Beam, fun() ->
        Watcher ! {get, self()},
        receive {Watcher, Lost} -> Lost after 100 -> false end
    end).

stop(Nodes, Beams) ->
    [ok = sw_e2e:stop_node(Node) || Node <- Nodes],
    [ok = sw_e2e:stop_beam(Beam) || Beam <- Beams],
    ok.

%% --- finding ------------------------------------------------------------------------------------

several_beams_at_once_are_served_and_do_not_disturb_each_other(Config) ->
    Node = #{name := Name} = sw_e2e:start_node(context(Config)),
    Beams = [Victim | Others] = [sw_e2e:start_beam(context(Config)) || _ <- lists:seq(1, 6)],
    Test = self(),
    Callers = [spawn_link(fun() ->
        Answers = sw_e2e:on(Beam, fun() ->
            [gen_server:call({py, Name}, {call, probe, identity, [{node(), I}]}) || I <- lists:seq(1, 500)]
        end),
        #{node := Own} = Beam,
        Test ! {self(), Answers =:= [{ok, {Own, I}} || I <- lists:seq(1, 500)]}
    end) || Beam <- Others],
    ?assertEqual(pong, ping(Victim, Node)),
    ok = sw_e2e:kill_beam(Victim),
    ?assertEqual([true || _ <- Others], [receive {Caller, Right} -> Right end || Caller <- Callers]),
    ?assertEqual([true || _ <- Others], [lists:member(Name, hidden(Beam)) || Beam <- Others]),
    ok = stop([Node], tl(Beams)).

%% The node dials within 50 to 100 ms of a loss, the BEAM in between: now and then at the same moment.
both_sides_dial_at_once_again_and_again(Config) ->
    Beam = #{node := BeamName} = sw_e2e:start_beam(context(Config)),
    Greater = sw_e2e:start_node(context(Config), #{name => "zz" ++ sw_e2e:unique("py") ++ "@127.0.0.1",
                                                   args => ["--peer", atom_to_list(BeamName)]}),
    Lesser = sw_e2e:start_node(context(Config), #{name => "aa" ++ sw_e2e:unique("py") ++ "@127.0.0.1",
                                                  args => ["--peer", atom_to_list(BeamName)]}),
    [begin
        sw_e2e:on(Beam, fun() ->
            lists:foreach(fun(I) ->
                _ = erlang:disconnect_node(Name),
                timer:sleep((I * 7) rem 110),
                ?assertEqual({I, pong}, {I, net_adm:ping(Name)}),
                ?assertEqual({ok, I}, gen_server:call({py, Name}, {call, probe, identity, [I]}))
            end, lists:seq(1, 60))
        end),
        Watcher = watch(Beam, Node),
        timer:sleep(300),
        ?assertNot(lost(Beam, Watcher))
    end || Node = #{name := Name} <- [Greater, Lesser]],
    ok = stop([Greater, Lesser], [Beam]).

a_node_without_epmd_is_reached_on_its_fixed_port(Config) ->
    Port = sw_e2e:free_port(),
    Context = own_epmd(Config),
    Node = sw_e2e:start_node(Context, #{args => ["--epmd", "off", "--dist-port", Port], ready => "listening on"}),
    Beam = sw_e2e:start_beam(Context, #{args => ["-start_epmd", "false", "-epmd_module", "sw_epmd"],
                                        env => [{"SW_E2E_PORT", Port}]}),
    ?assertEqual(pong, ping(Beam, Node)),
    ?assertEqual({ok, 4.0}, call(Beam, Node)),
    ok = stop([Node], [Beam]).

a_node_without_epmd_dials_its_peer(Config) ->
    Beam = #{node := BeamName} = sw_e2e:start_beam(context(Config)),
    [_, Alive] = string:split(atom_to_list(BeamName), "@"),
    "127.0.0.1" = Alive,
    {_, Port} = lists:keyfind(hd(string:split(atom_to_list(BeamName), "@")), 1,
                              sw_e2e:epmd_names(maps:get(epmd_port, context(Config)))),
    Node = #{name := Name} = sw_e2e:start_node(own_epmd(Config), #{
        args => ["--epmd", "off", "--peer", lists:concat([BeamName, ":", Port])],
        ready => lists:concat([BeamName, " is up"])
    }),
    ok = sw_e2e:eventually(fun() -> lists:member(Name, hidden(Beam)) end),
    ?assertEqual({ok, 4.0}, call(Beam, Node)),
    ok = stop([Node], [Beam]).

a_listening_port_is_taken_from_the_given_range(Config) ->
    {ok, Taken} = gen_tcp:listen(0, [{ip, {127, 0, 0, 1}}]),
    {ok, First} = inet:port(Taken),
    Range = lists:concat([First, "-", min(First + 20, 65535)]),
    Node = #{name := Name} = sw_e2e:start_node(context(Config), #{args => ["--dist-port", Range]}),
    {_, Port} = lists:keyfind(hd(string:split(atom_to_list(Name), "@")), 1,
                              sw_e2e:epmd_names(maps:get(epmd_port, context(Config)))),
    ?assert(Port > First andalso Port =< First + 20),
    Beam = sw_e2e:start_beam(context(Config)),
    ?assertEqual(pong, ping(Beam, Node)),
    ok = gen_tcp:close(Taken),
    ok = stop([Node], [Beam]).

a_port_is_computed_from_the_name_on_both_sides(Config) ->
    Port = list_to_integer(sw_e2e:free_port()),
    Base = integer_to_list(Port - 7) ++ "+",
    Context = own_epmd(Config),
    Listening = #{name := Name} = sw_e2e:start_node(Context, #{
        name => sw_e2e:unique("py") ++ "x7@127.0.0.1", args => ["--epmd", "off", "--dist-port", Base],
        ready => lists:concat(["listening on 127.0.0.1 port ", Port])
    }),
    Dialling = sw_e2e:start_node(Context, #{
        args => ["--listen", "none", "--peer-port", Base, "--peer", atom_to_list(Name)],
        ready => lists:concat([Name, " is up"])
    }),
    ok = stop([Listening, Dialling], []).

a_node_that_only_dials_listens_nowhere(Config) ->
    Beam = #{node := BeamName} = sw_e2e:start_beam(context(Config)),
    Node = #{program := Program, name := Name} = sw_e2e:start_node(context(Config), #{
        args => ["--listen", "none", "--peer", atom_to_list(BeamName)], ready => lists:concat([BeamName, " is up"])
    }),
    ok = sw_e2e:eventually(fun() -> hidden(Beam) =:= [Name] end),
    ?assertEqual({ok, 4.0}, call(Beam, Node)),
    ?assertEqual(nomatch, re:run(sw_e2e:output(Program), "listening")),
    ?assertNot(lists:keymember(hd(string:split(atom_to_list(Name), "@")), 1,
                               sw_e2e:epmd_names(maps:get(epmd_port, context(Config))))),
    ok = stop([Node], [Beam]).

alive_part(Name) -> hd(string:split(atom_to_list(Name), "@")).

%% The node's own, then two BEAMs that find each other and the node through it.
a_node_is_the_epmd_of_a_host_that_has_none(Config) ->
    Context = #{epmd_port := Port} = own_epmd(Config),
    Node = #{name := Name} = sw_e2e:start_node(Context, #{args => ["--epmd", "builtin"], ready => "serving as epmd on port " ++ Port}),
    One = sw_e2e:start_beam(Context, #{args => ["-start_epmd", "false"]}),
    Two = #{node := TwoName} = sw_e2e:start_beam(Context),
    ?assertEqual({ok, 4.0}, call(One, Node)),
    ?assertEqual(pong, ping(One, TwoName)),
    Known = fun() -> lists:sort([Alive || {Alive, _} <- sw_e2e:epmd_names(Port)]) end,
    ?assertEqual(3, length(Known())),
    ?assert(lists:member(alive_part(Name), Known())),
    Lines = sw_e2e:on(One, fun() -> net_adm:names() end),
    ?assertMatch({ok, [_, _, _]}, Lines),
    %% Whoever looks with epmd's own program sees the same.
    ?assertMatch({match, _}, re:run(os:cmd("ERL_EPMD_PORT=" ++ Port ++ " epmd -names"), "name " ++ alive_part(Name) ++ " at port")),
    Second = #{program := Program} =
        sw_e2e:start_node_now(Context, #{name => atom_to_list(Name), args => ["--epmd", "on"]}),
    ?assertEqual(3, sw_e2e:await_exit(Program)),
    ok = sw_e2e:kill_beam(Two),
    ok = sw_e2e:eventually(fun() -> length(Known()) =:= 2 end),
    ok = sw_e2e:send_signal(maps:get(program, Node), "TERM"),
    ?assertEqual(0, sw_e2e:await_exit(maps:get(program, Node))),
    ok = stop([Second], [One]).

the_built_in_epmd_obeys_no_orders_and_takes_no_malformed_request(Config) ->
    Context = #{epmd_port := Port} = own_epmd(Config),
    Node = #{name := Name, program := Program} =
        sw_e2e:start_node(Context, #{args => ["--epmd", "builtin"], ready => "serving as epmd"}),
    Ask = fun(Bytes) ->
        {ok, Socket} = gen_tcp:connect("127.0.0.1", list_to_integer(Port), [binary, {active, false}]),
        ok = gen_tcp:send(Socket, Bytes),
        Answer = gen_tcp:recv(Socket, 0, 8000),
        ok = gen_tcp:close(Socket),
        Answer
    end,
    Frame = fun(Bytes) -> [<<(iolist_size(Bytes)):16>>, Bytes] end,
    Alive = list_to_binary(alive_part(Name)),
    %% Kill, stop, dump; nothing, too much, names that are none, a registration cut short.
    [?assertEqual({Bytes, {error, closed}}, {Bytes, Ask(Frame(Bytes))})
     || Bytes <- ["k", ["s", Alive], "d", "", binary:copy(<<0>>, 1025), ["z", <<1, 2>>], ["x", <<80:16, 77, 0, 6:16, 5:16, 200:16>>, "ab"],
                  ["x", <<0:16, 77, 0, 6:16, 5:16, 2:16>>, "ab", <<0:16>>],
                  ["x", <<80:16, 77, 0, 6:16, 5:16, 3:16>>, "a\nb", <<0:16>>]]],
    ?assertEqual({ok, <<119, 1>>}, Ask(Frame("znobody"))),
    ?assertMatch({ok, <<119, 0, _/binary>>}, Ask(Frame(["z", Alive]))),
    ?assertEqual({ok, <<118, 1, 0:32>>}, Ask(Frame(["x", <<80:16, 77, 0, 6:16, 5:16, (byte_size(Alive)):16>>, Alive, <<0:16>>]))),
    ?assertMatch({ok, <<121, 0, _:16>>}, Ask(Frame(["x", <<80:16, 77, 0, 5:16, 5:16, 2:16>>, "ab", <<0:16>>]))),
    %% Who says nothing is ended, and holds nobody up.
    ?assertEqual({error, closed}, Ask("")),
    ?assert(sw_e2e:alive(Program)),
    ok = stop([Node], []).

of_two_nodes_without_epmd_one_is_it_and_the_other_takes_over(Config) ->
    Context = #{epmd_port := Port} = own_epmd(Config),
    First = #{name := FirstName} = sw_e2e:start_node(Context, #{args => ["--epmd", "auto"], ready => "serving as epmd"}),
    Second = #{name := SecondName, program := Program} = sw_e2e:start_node(Context, #{args => ["--epmd", "auto"]}),
    Beam = sw_e2e:start_beam(Context, #{args => ["-start_epmd", "false"]}),
    ?assertEqual(pong, ping(Beam, FirstName)),
    ok = sw_e2e:stop_node(First),
    _ = sw_e2e:wait_line(Program, "serving as epmd"),
    %% A BEAM registers again by itself.
    ok = sw_e2e:eventually(fun() -> length(sw_e2e:epmd_names(Port)) =:= 2 end),
    ?assertEqual(pong, ping(Beam, SecondName)),
    ok = stop([Second], [Beam]).

an_epmd_that_is_there_is_used(Config) ->
    Node = #{program := Program} = sw_e2e:start_node(context(Config), #{args => ["--epmd", "auto"]}),
    ?assertEqual(nomatch, re:run(sw_e2e:output(Program), "serving as epmd")),
    ok = stop([Node], []).

a_node_is_named_by_the_peer_it_dials(Config) ->
    Name = sw_e2e:unique("beam"),
    Beam = #{node := BeamName} = sw_e2e:start_beam(context(Config), #{name => Name}),
    Node = #{program := Program} = sw_e2e:start_node(context(Config), #{
        name => "undefined", args => ["--peer", atom_to_list(BeamName)],
        ready => lists:concat([BeamName, " is up"])
    }),
    ok = sw_e2e:eventually(fun() -> length(hidden(Beam)) =:= 1 end),
    [Given] = hidden(Beam),
    ?assertEqual({ok, 4.0}, call(Beam, Given)),
    ?assertEqual(Given, sw_e2e:on(Beam, fun() -> erpc:call(Given, erlang, node, []) end)),
    Pid = sw_e2e:on(Beam, fun() -> spawn(Given, probe, nap, [0.1]) end),
    ?assertEqual(Given, sw_e2e:on(Beam, fun() -> node(Pid) end)),
    ok = sw_e2e:kill_beam(Beam),
    _ = sw_e2e:wait_line(Program, lists:concat([BeamName, " is down"])),
    Again = sw_e2e:start_beam(context(Config), #{name => Name}),
    ok = sw_e2e:eventually(fun() -> length(hidden(Again)) =:= 1 end, 20000),
    [GivenAgain] = hidden(Again),
    ?assertEqual({ok, 4.0}, call(Again, GivenAgain)),
    ?assertEqual(GivenAgain, sw_e2e:on(Again, fun() -> erpc:call(GivenAgain, erlang, node, []) end)),
    ok = stop([Node], [Again]).

a_node_is_reached_by_ipv6(Config) ->
    Context = #{epmd_port := Port} = own_epmd(Config),
    Epmd = sw_e2e:start_epmd(Port, "127.0.0.1,::1"),
    Node = sw_e2e:start_node(Context, #{name => sw_e2e:unique("py") ++ "@::1"}),
    Beam = #{node := BeamName} = sw_e2e:start_beam(Context, #{host => "::1", args => ["-proto_dist", "inet6_tcp"]}),
    ?assertEqual(pong, ping(Beam, Node)),
    ?assertEqual({ok, 4.0}, call(Beam, Node)),
    Dialling = #{name := Name} = sw_e2e:start_node(Context, #{name => sw_e2e:unique("py") ++ "@::1",
                                                              args => ["--peer", atom_to_list(BeamName)]}),
    ok = sw_e2e:eventually(fun() -> lists:member(Name, hidden(Beam)) end),
    ok = stop([Node, Dialling], [Beam]),
    ok = sw_e2e:stop_epmd(Epmd).

short_names_meet(Config) ->
    Name = sw_e2e:unique("py"),
    Program = sw_e2e:start_program(sw_e2e:sidewinder(),
                                   ["--sname", Name ++ "@localhost" | sw_e2e:node_arguments(context(Config), [])],
                                   sw_e2e:environment(context(Config))),
    _ = sw_e2e:wait_line(Program, "registered with epmd"),
    Beam = sw_e2e:start_beam(context(Config), #{host => "localhost", longnames => false}),
    Node = list_to_atom(Name ++ "@localhost"),
    ?assertEqual(pong, ping(Beam, Node)),
    ?assertEqual({ok, 4.0}, call(Beam, Node)),
    ok = stop([#{program => Program}], [Beam]).

a_beam_with_a_wrong_cookie_is_refused_and_the_log_says_so(Config) ->
    Node = #{program := Program} = sw_e2e:start_node(context(Config)),
    Friend = sw_e2e:start_beam(context(Config)),
    ?assertEqual(pong, ping(Friend, Node)),
    Watcher = watch(Friend, Node),
    Stranger = sw_e2e:start_beam(context(Config), #{cookie => "not_the_cookie"}),
    ?assertEqual(pang, ping(Stranger, Node)),
    ?assertMatch({match, _}, re:run(sw_e2e:wait_line(Program, "handshake .* failed"), "cookie|digest|closed")),
    ?assertEqual([], hidden(Stranger)),
    ?assertEqual({ok, 4.0}, call(Friend, Node)),
    ?assertNot(lost(Friend, Watcher)),
    ok = stop([Node], [Friend, Stranger]).

a_node_with_a_wrong_cookie_is_refused_by_its_peer(Config) ->
    Beam = #{node := BeamName} = sw_e2e:start_beam(context(Config), #{cookie => "not_the_cookie"}),
    Node = #{program := Program} = sw_e2e:start_node(context(Config), #{args => ["--peer", atom_to_list(BeamName)]}),
    ?assertMatch({match, _}, re:run(sw_e2e:wait_line(Program, "cannot reach peer"), atom_to_list(BeamName))),
    ?assertEqual([], hidden(Beam)),
    ok = stop([Node], [Beam]).

%% --- losing and finding again -------------------------------------------------------------------

a_node_registers_again_when_epmd_comes_back(Config) ->
    Context = #{epmd_port := Port} = own_epmd(Config),
    Epmd = sw_e2e:start_epmd(Port),
    Node = #{name := Name, program := Program} = sw_e2e:start_node(Context),
    Beam = sw_e2e:start_beam(Context),
    ?assertEqual(pong, ping(Beam, Node)),
    Watcher = watch(Beam, Node),
    [Registered] = [Entry || Entry = {N, _} <- sw_e2e:epmd_names(Port), N ++ "@127.0.0.1" =:= atom_to_list(Name)],
    ok = sw_e2e:stop_epmd(Epmd),
    _ = sw_e2e:wait_line(Program, "lost epmd"),
    Back = sw_e2e:start_epmd(Port),
    ok = sw_e2e:eventually(fun() -> lists:member(Registered, sw_e2e:epmd_names(Port)) end, 4500),
    ?assertNot(lost(Beam, Watcher)),
    Newcomer = sw_e2e:start_beam(Context),
    ?assertEqual(pong, ping(Newcomer, Node)),
    ok = stop([Node], [Beam, Newcomer]),
    ok = sw_e2e:stop_epmd(Back).

a_node_waits_for_an_epmd_that_is_not_there_yet(Config) ->
    Context = #{epmd_port := Port} = own_epmd(Config),
    Node = #{program := Program} = sw_e2e:start_node_now(Context, #{}),
    _ = sw_e2e:wait_line(Program, "not registered with epmd"),
    Epmd = sw_e2e:start_epmd(Port),
    _ = sw_e2e:wait_line(Program, "info registered with epmd", 4500),
    Beam = sw_e2e:start_beam(Context),
    ?assertEqual(pong, ping(Beam, Node)),
    ok = stop([Node], [Beam]),
    ok = sw_e2e:stop_epmd(Epmd).

a_killed_node_comes_back_under_its_name(Config) ->
    Name = sw_e2e:unique("py") ++ "@127.0.0.1",
    Beam = sw_e2e:start_beam(context(Config)),
    First = sw_e2e:start_node(context(Config), #{name => Name}),
    ?assertEqual(pong, ping(Beam, First)),
    {ok, Old} = sw_e2e:on(Beam, fun() ->
        gen_server:call({py, list_to_atom(Name)}, {call, probe, start_counter, [0, self(), none]})
    end),
    Watcher = watch(Beam, First),
    ok = sw_e2e:stop_node(First),
    ok = sw_e2e:eventually(fun() -> lost(Beam, Watcher) end),
    ?assertEqual(pang, ping(Beam, First)),
    Second = sw_e2e:start_node(context(Config), #{name => Name}),
    ?assertEqual(pong, ping(Beam, Second)),
    ?assertEqual({ok, 4.0}, call(Beam, Second)),
    %% A pid of the first incarnation is nobody in the second, whatever its number.
    ok = sw_e2e:on(Beam, fun() ->
        {ok, New} = gen_server:call({py, list_to_atom(Name)}, {call, probe, start_counter, [0, self(), none]}),
        ?assertNotEqual(Old, New),
        Old ! {not_for, you},
        Monitor = monitor(process, Old),
        receive {'DOWN', Monitor, process, Old, Reason} -> ?assertEqual(noproc, Reason) after 5000 -> error(no_down) end,
        ?assertEqual(1, gen_server:call(New, increment)),
        ok
    end),
    ok = stop([Second], [Beam]).

a_killed_beam_comes_back_under_its_name(Config) ->
    Node = sw_e2e:start_node(context(Config)),
    Name = sw_e2e:unique("beam"),
    lists:foreach(fun(_) ->
        Beam = sw_e2e:start_beam(context(Config), #{name => Name}),
        ?assertEqual(pong, ping(Beam, Node)),
        ?assertEqual({ok, 4.0}, call(Beam, Node)),
        ok = sw_e2e:kill_beam(Beam)
    end, lists:seq(1, 3)),
    ok = stop([Node], []).

%% The first of two BEAMs with one name hangs; the node still has its link when the second comes, says
%% `alive` and is told to give the old one up.
a_beam_that_comes_back_takes_over_a_link_that_hangs(Config) ->
    Node = #{program := Program} = sw_e2e:start_node(context(Config)),
    Options = #{name => sw_e2e:unique("beam"), args => ["-dist_listen", "false"]},
    Hanging = sw_e2e:start_beam(context(Config), Options),
    ?assertEqual(pong, ping(Hanging, Node)),
    Watcher = watch(Hanging, Node),
    OsPid = sw_e2e:beam_os_pid(Hanging),
    "" = os:cmd("kill -STOP " ++ OsPid),
    try
        Back = sw_e2e:start_beam(context(Config), Options),
        ?assertEqual(pong, ping(Back, Node)),
        ?assertEqual({ok, 4.0}, call(Back, Node)),
        _ = sw_e2e:wait_line(Program, "replaced by a new connection"),
        "" = os:cmd("kill -CONT " ++ OsPid),
        ok = sw_e2e:eventually(fun() -> lost(Hanging, Watcher) end),
        ?assertEqual({ok, 4.0}, call(Back, Node)),
        ok = stop([Node], [Hanging, Back])
    after
        os:cmd("kill -CONT " ++ OsPid)
    end.

a_peer_that_is_not_there_yet_is_dialled_until_it_is(Config) ->
    Name = sw_e2e:unique("late"),
    Node = #{name := NodeName, program := Program} =
        sw_e2e:start_node(context(Config), #{args => ["--peer", Name ++ "@127.0.0.1"]}),
    _ = sw_e2e:wait_line(Program, "cannot reach peer " ++ Name),
    timer:sleep(1000),
    ?assertMatch([_], [Line || Line <- binary:split(sw_e2e:output(Program), <<"\n">>, [global]),
                               re:run(Line, "cannot reach") =/= nomatch]),    % one line, not one a try
    Beam = sw_e2e:start_beam(context(Config), #{name => Name}),
    ok = sw_e2e:eventually(fun() -> lists:member(NodeName, hidden(Beam)) end, 12000),
    ?assertEqual({ok, 4.0}, call(Beam, Node)),
    ok = stop([Node], [Beam]).

a_peer_that_comes_back_is_dialled_again(Config) ->
    Name = sw_e2e:unique("beam"),
    First = #{node := BeamName} = sw_e2e:start_beam(context(Config), #{name => Name}),
    Node = #{name := NodeName, program := Program} =
        sw_e2e:start_node(context(Config), #{args => ["--peer", atom_to_list(BeamName)],
                                             ready => atom_to_list(BeamName) ++ " is up"}),
    ok = sw_e2e:kill_beam(First),
    _ = sw_e2e:wait_line(Program, atom_to_list(BeamName) ++ " is down"),
    Second = sw_e2e:start_beam(context(Config), #{name => Name}),
    ok = sw_e2e:eventually(fun() -> lists:member(NodeName, hidden(Second)) end, 12000),
    true = sw_e2e:on(Second, fun() -> erlang:disconnect_node(NodeName) end),
    ok = sw_e2e:eventually(fun() -> lists:member(NodeName, hidden(Second)) end, 12000),
    ok = stop([Node], [Second]).

a_second_node_with_the_same_name_exits_with_3(Config) ->
    Name = sw_e2e:unique("py") ++ "@127.0.0.1",
    First = sw_e2e:start_node(context(Config), #{name => Name}),
    #{program := Program} = sw_e2e:start_node_now(context(Config), #{name => Name}),
    ?assertEqual(3, sw_e2e:await_exit(Program)),
    ?assertMatch({match, _}, re:run(sw_e2e:output(Program), "name: another node is registered .*" ++ Name)),
    Beam = sw_e2e:start_beam(context(Config)),
    ?assertEqual({ok, 4.0}, call(Beam, First)),
    ok = stop([First], [Beam]).

a_stopped_beam_is_given_up_after_one_and_a_quarter_ticktimes(Config) ->
    Node = #{program := Program} = sw_e2e:start_node(context(Config), #{args => ["--ticktime", "4"]}),
    Beam = #{node := BeamName} = sw_e2e:start_beam(context(Config), #{args => ["-kernel", "net_ticktime", "4"]}),
    ?assertEqual(pong, ping(Beam, Node)),
    OsPid = sw_e2e:beam_os_pid(Beam),
    "" = os:cmd("kill -STOP " ++ OsPid),
    try
        Begin = erlang:monotonic_time(millisecond),
        _ = sw_e2e:wait_line(Program, atom_to_list(BeamName) ++ " is down: nothing heard"),
        Took = erlang:monotonic_time(millisecond) - Begin,
        ?assert(Took > 2900, Took),
        ?assert(Took < 6000, Took)    % 5 s after its last tick
    after
        os:cmd("kill -CONT " ++ OsPid)
    end,
    ok = sw_e2e:eventually(fun() -> ping(Beam, Node) =:= pong end),
    ok = stop([Node], [Beam]).

a_stopped_node_is_given_up_and_comes_back(Config) ->
    Node = #{name := Name, program := Program} = sw_e2e:start_node(context(Config), #{args => ["--ticktime", "4"]}),
    Beam = sw_e2e:start_beam(context(Config), #{args => ["-kernel", "net_ticktime", "4"]}),
    ?assertEqual(pong, ping(Beam, Node)),
    Watcher = watch(Beam, Node),
    ok = sw_e2e:send_signal(Program, "STOP"),
    ok = sw_e2e:eventually(fun() -> lost(Beam, Watcher) end, 8000),
    ok = sw_e2e:send_signal(Program, "CONT"),
    ok = sw_e2e:eventually(fun() -> ping(Beam, Node) =:= pong end, 10000),
    ?assertEqual({ok, 4.0}, call(Beam, Name)),
    ok = stop([Node], [Beam]).

ticks_keep_an_idle_link_alive(Config) ->
    Node = sw_e2e:start_node(context(Config), #{args => ["--ticktime", "2"]}),
    Beam = sw_e2e:start_beam(context(Config), #{args => ["-kernel", "net_ticktime", "2"]}),
    ?assertEqual(pong, ping(Beam, Node)),
    Watcher = watch(Beam, Node),
    timer:sleep(3 * 2000 + 500),
    ?assertNot(lost(Beam, Watcher)),
    ?assertEqual({ok, 4.0}, call(Beam, Node)),
    ok = stop([Node], [Beam]).
