%% The application `sidewinder` and Elixir, against the real node.
-module(app_SUITE).

-include_lib("stdlib/include/assert.hrl").

-export([all/0, suite/0, init_per_suite/1, end_per_suite/1]).
-compile([export_all, nowarn_export_all]).

-define(TERMS, 100_000).
-define(BATCH, 500).

suite() -> [{timetrap, {seconds, 180}}].

all() ->
    [calls_casts_evals_and_await_work_against_a_node,
     a_target_is_connected_on_its_first_use_and_told_of_when_it_goes,
     a_call_that_times_out_is_cancelled_in_python,
     a_call_whose_caller_dies_is_cancelled_in_python,
     overload_and_drain_are_told_as_errors,
     fifty_callers_get_their_own_answers,
     the_calls_of_one_process_run_in_order,
     a_hundred_thousand_random_terms_come_back_identical,
     random_terms_come_back_identical_without_the_application,
     a_plain_beam_starts_its_own_node,
     a_local_node_that_is_killed_is_an_error_and_comes_back,
     a_local_node_ends_with_the_application,
     a_local_node_ends_with_its_beam,
     elixir_calls_python].

init_per_suite(Config0) ->
    Config = sw_e2e:setup(Config0),
    Context = sw_e2e:context(Config),
    Node = #{name := Name} = sw_e2e:start_node(Context, #{args => ["--workers", "8"]}),
    Beam = sw_e2e:start_beam(Context, #{args => application_path()}),
    ok = sw_e2e:on(Beam, fun() ->
        ok = application:load(sidewinder),
        ok = application:set_env(sidewinder, default_node, Name),
        {ok, _} = application:ensure_all_started(sidewinder),
        ok = py_node:connect(Name)
    end),
    [{node, Node}, {beam, Beam} | Config].

end_per_suite(Config) ->
    true = sw_e2e:alive(maps:get(program, proplists:get_value(node, Config))),
    ok = sw_e2e:stop_beam(proplists:get_value(beam, Config)),
    ok = sw_e2e:stop_node(proplists:get_value(node, Config)),
    ok = sw_e2e:teardown(Config).

application_path() ->
    ["-pa", filename:dirname(code:which(py))].

with_application(Config, Body) ->
    #{name := Node} = proplists:get_value(node, Config),
    sw_e2e:on(proplists:get_value(beam, Config), fun() -> Body(Node) end, 170000).

%% A BEAM that is not distributed and will start its own node, below the suite's directory.
plain(Config) ->
    Context = #{directory := Directory} = sw_e2e:context(Config),
    Beam = sw_e2e:start_beam(Context, #{name => none, args => application_path(),
                                        env => [{"XDG_RUNTIME_DIR", Directory}]}),
    Program = sw_e2e:sidewinder(),
    Path = filename:join(sw_e2e:root(), "tests/e2e/python"),
    ok = sw_e2e:on(Beam, fun() ->
        ok = logger:set_primary_config(level, error),
        ok = application:load(sidewinder),
        ok = application:set_env(sidewinder, executable, Program),
        ok = application:set_env(sidewinder, python_path, [Path]),
        {ok, _} = application:ensure_all_started(sidewinder),
        ok
    end),
    Beam.

%% --- a node elsewhere ---------------------------------------------------------------------------

calls_casts_evals_and_await_work_against_a_node(Config) ->
    with_application(Config, fun(N) ->
        ?assertEqual({ok, math:sqrt(2.0)}, py:call(math, sqrt, [2.0])),
        ?assertEqual({ok, math:sqrt(2.0)}, py:call(N, math, sqrt, [2.0])),
        ?assertEqual({ok, <<"a/b">>}, py:call(os, 'path.join', [<<"a">>, <<"b">>])),
        ?assertEqual({ok, [[1], #{<<"k">> => 2}]}, py:call(probe, keywords, [1], #{k => 2})),
        ?assertEqual({ok, [[1], #{<<"k">> => 2}]}, py:call(N, probe, keywords, [1], #{kwargs => #{k => 2}})),
        ?assertEqual({ok, <<"bytes">>}, py:call(N, probe, type_of, [<<"x">>], #{binary => bytes})),
        ?assertEqual({ok, <<"str">>}, py:call(N, probe, type_of, [<<"x">>], #{binary => str})),
        ?assertEqual({ok, 0.01}, py:call(probe, nap_async, [0.01])),
        ?assertMatch({error, {python, <<"probe.Odd">>, <<"no">>, <<"Traceback", _/binary>>}}, py:call(probe, fail, [<<"no">>])),
        ?assertEqual(ok, py:cast(probe, tell, [self(), cast])),
        ?assertEqual(cast, sw_e2e:tell_test(5000)),
        ?assertEqual({ok, none}, py:exec(<<"x = 20">>)),
        ?assertEqual({ok, 42}, py:eval(<<"x + y">>, #{y => 22})),
        Other = self(),
        spawn(fun() -> Other ! {other, py:eval(<<"x">>)} end),
        receive {other, Result} -> ?assertMatch({error, {python, <<"NameError">>, _, _}}, Result) end,
        Slow = py:spawn_call(probe, nap, [0.2]),
        Quick = py:spawn_call(probe, identity, [quick]),
        ?assertEqual({ok, quick}, py:await(Quick)),
        ?assertEqual({ok, 0.2}, py:await(Slow)),
        ?assertMatch({ok, <<"3.", _/binary>>}, py:version()),
        ?assertMatch({ok, #{workers := 8}}, py:node_info(N))
    end).

a_target_is_connected_on_its_first_use_and_told_of_when_it_goes(Config) ->
    Node = #{name := Name, program := Program} = sw_e2e:start_node(sw_e2e:context(Config)),
    with_application(Config, fun(_) ->
        ?assertEqual({ok, 4.0}, py:call(Name, math, sqrt, [16.0])),
        ?assert(lists:member(Name, nodes(hidden)))
    end),
    Waiting = with_application(Config, fun(_) ->
        Test = self(),
        Waiter = spawn(fun() ->
            Slow = py:spawn_call(Name, probe, nap, [30], #{}),
            Test ! waiting,
            Result = py:await(Slow, infinity),
            receive {get, From} -> From ! {self(), Result} end
        end),
        receive waiting -> Waiter end
    end),
    ok = sw_e2e:kill(Program),
    with_application(Config, fun(_) ->
        Waiting ! {get, self()},
        receive {Waiting, Result} -> ?assertMatch({error, {down, _}}, Result) after 10000 -> error(not_told) end,
        ?assertMatch({error, {down, _}}, py:call(Name, math, sqrt, [16.0]))
    end),
    Again = sw_e2e:start_node(sw_e2e:context(Config), #{name => atom_to_list(Name)}),
    with_application(Config, fun(_) ->
        ok = sw_e2e:eventually(fun() -> py:call(Name, math, sqrt, [16.0]) =:= {ok, 4.0} end, 25000)
    end),
    ok = sw_e2e:stop_node(Node),
    ok = sw_e2e:stop_node(Again).

a_call_that_times_out_is_cancelled_in_python(Config) ->
    with_application(Config, fun(_) ->
        [begin
            ?assertEqual({error, timeout}, py:call(probe, F, [self(), F, 30], #{}, 200)),
            ?assertEqual({<<"begun">>, F}, sw_e2e:tell_test(0)),
            ?assertEqual({Exception, F}, sw_e2e:tell_test(2000))
        end || {F, Exception} <- [{spin_watched, <<"Cancelled">>}, {nap_async_watched, <<"CancelledError">>}]]
    end).

a_call_whose_caller_dies_is_cancelled_in_python(Config) ->
    with_application(Config, fun(_) ->
        Test = self(),
        [sw_e2e:within(100, fun() ->
            Caller = spawn(fun() -> py:call(probe, F, [Test, F, 30], #{}, infinity) end),
            {<<"begun">>, F} = sw_e2e:tell_test(5000),
            exit(Caller, kill),
            ?assertEqual({Exception, F}, sw_e2e:tell_test(5000))
        end) || {F, Exception} <- [{spin_watched, <<"Cancelled">>}, {nap_async_watched, <<"CancelledError">>}]]
    end).

overload_and_drain_are_told_as_errors(Config) ->
    Node = #{name := Name, program := Program} =
        sw_e2e:start_node(sw_e2e:context(Config), #{args => ["--workers", "1", "--queue", "10"]}),
    OsPid = integer_to_list(sw_e2e:os_pid(Program)),
    with_application(Config, fun(_) ->
        Busy = py:spawn_call(Name, probe, nap_watched, [self(), it, 1.0], #{}),
        {<<"begun">>, it} = sw_e2e:tell_test(5000),
        Many = [py:spawn_call(Name, probe, identity, [I], #{}) || I <- lists:seq(1, 50)],
        Results = [py:await(One) || One <- Many],
        ?assertEqual([{ok, I} || I <- lists:seq(1, 10)], lists:sublist(Results, 10)),
        ?assertEqual(lists:duplicate(40, {error, overloaded}), lists:nthtail(10, Results)),
        ?assertEqual({ok, 1.0}, py:await(Busy)),
        sw_e2e:flush(),
        Last = py:spawn_call(Name, probe, nap_watched, [self(), it, 1.0], #{}),
        {<<"begun">>, it} = sw_e2e:tell_test(5000),
        "" = os:cmd("kill -TERM " ++ OsPid),
        % A call that was quicker than the signal waits behind the other, so it is given up soon.
        ok = sw_e2e:eventually(fun() ->
            py:call(Name, math, sqrt, [16.0], #{timeout => 50}) =:= {error, draining}
        end, 900),
        ?assertEqual({ok, 1.0}, py:await(Last))
    end),
    ?assertEqual(0, sw_e2e:await_exit(Program)),
    ok = sw_e2e:stop_node(Node).

fifty_callers_get_their_own_answers(Config) ->
    with_application(Config, fun(_) ->
        Test = self(),
        Callers = [spawn_link(fun() ->
            Right = [py:call(probe, identity, [{I, J}]) =:= {ok, {I, J}} || J <- lists:seq(1, 200)],
            Test ! {self(), lists:all(fun(X) -> X end, Right)}
        end) || I <- lists:seq(1, 50)],
        ?assertEqual(lists:duplicate(50, true), [receive {Caller, Right} -> Right end || Caller <- Callers])
    end).

the_calls_of_one_process_run_in_order(Config) ->
    Node = #{name := Name} = sw_e2e:start_node(sw_e2e:context(Config), #{args => ["--workers", "1"]}),
    with_application(Config, fun(_) ->
        Numbers = lists:seq(1, 2000),
        Calls = [case I rem 2 of
            0 -> py:spawn_call(Name, probe, see, [I], #{});
            1 -> ok = py:cast(Name, probe, see, [I]), cast
        end || I <- Numbers],
        [?assertEqual({ok, none}, py:await(Call)) || Call <- Calls, Call =/= cast],
        ?assertEqual({ok, Numbers}, py:call(Name, probe, seen, []))
    end),
    ok = sw_e2e:stop_node(Node).

%% --- random terms -------------------------------------------------------------------------------

a_hundred_thousand_random_terms_come_back_identical(Config) ->
    with_application(Config, fun(N) ->
        identical(N, ?TERMS, {1, 2, 3}, fun(Terms) -> py:call(N, probe, identity, [Terms]) end)
    end).

random_terms_come_back_identical_without_the_application(Config) ->
    with_application(Config, fun(N) ->
        identical(N, 5000, {4, 5, 6}, fun(Terms) -> gen_server:call({py, N}, {call, probe, identity, [Terms]}) end),
        identical(N, 5000, {7, 8, 9}, fun(Terms) -> {ok, erpc:call(N, probe, identity, [Terms])} end)
    end).

identical(Node, Count, Seed, Send) ->
    _ = rand:seed(exsss, Seed),
    Foreign = foreign(Node),
    lists:foreach(fun(Batch) ->
        Terms = [term(6, Foreign) || _ <- lists:seq(1, ?BATCH)],
        {ok, Back} = Send(Terms),
        Back =:= Terms andalso term_to_binary(Back) =:= term_to_binary(Terms) orelse
            error({changed, Batch, [{Sent, Got} || {Sent, Got} <- lists:zip(Terms, Back), Sent =/= Got]})
    end, lists:seq(1, Count div ?BATCH)).

%% Identifiers of this node, of the Python node, and of one that never was.
foreign(Node) ->
    {ok, Python} = py:call(Node, probe, start_counter, [0, self(), none]),
    exit(Python, kill),
    Pid = binary_to_term(<<131, 88, 119, 13, "never@nowhere", 1234567:32, 89:32, 4294967295:32>>),
    Port = binary_to_term(<<131, 120, 119, 13, "never@nowhere", 123456789012:64, 17:32>>),
    Reference = binary_to_term(<<131, 90, 3:16, 119, 13, "never@nowhere", 99:32, 200000:32, 5:32, 6:32>>),
    list_to_tuple([Python, Pid, Port, Reference, self(), hd(erlang:ports()), make_ref()]).

%% Whatever Erlang has, but for what docs/types.md maps many to one: undefined, nil, and {bytes, _}.
term(0, Foreign) -> leaf(Foreign);
term(Depth, Foreign) ->
    case rand:uniform(10) of
        1 -> [term(Depth - 1, Foreign) || _ <- few()];
        2 -> list_to_tuple([term(Depth - 1, Foreign) || _ <- few()]);
        3 -> maps:from_list([{key(I, Foreign), term(Depth - 1, Foreign)} || I <- few()]);
        4 -> [term(Depth - 1, Foreign), term(Depth - 1, Foreign) | leaf_no_list(Foreign)];
        5 -> Value = term(Depth - 1, Foreign), fun(X) -> {X, Value} end;
        _ -> leaf(Foreign)
    end.

few() -> lists:seq(1, rand:uniform(6) - 1).

%% Keys that Python can tell apart: by a number of their own.
key(I, Foreign) ->
    case rand:uniform(7) of
        1 -> 1000 * I + 7;
        2 -> integer_to_binary(I);
        3 -> list_to_atom("key_" ++ integer_to_list(I));
        4 -> {I, key(I, Foreign)};
        5 -> <<I, 255, 254>>;
        6 -> 1.5 * I + 0.25;
        7 -> {element(rand:uniform(tuple_size(Foreign)), Foreign), I}
    end.

leaf_no_list(Foreign) ->
    case leaf(Foreign) of
        List when is_list(List) -> not_a_list;
        Leaf -> Leaf
    end.

leaf(Foreign) ->
    case rand:uniform(20) of
        1 -> rand:uniform(256) - 1;
        2 -> rand:uniform(1 bsl 32) - (1 bsl 31);
        3 -> integer(64);
        4 -> integer(rand:uniform(3000));
        5 -> element(rand:uniform(6), {1 bsl 59, -(1 bsl 59), 1 bsl 63, -(1 bsl 63), -(1 bsl 63) - 1, 1 bsl 64});
        6 -> float();
        7 -> element(rand:uniform(6), {0.0, -0.0, 1.7976931348623157e308, 5.0e-324, -1.0, 0.1});
        8 -> rand:bytes(rand:uniform(60) - 1);
        9 -> unicode:characters_to_binary([character() || _ <- lists:seq(1, rand:uniform(20))]);
        10 -> Bits = rand:uniform(200), <<Bytes:Bits/bitstring, _/bitstring>> = rand:bytes(26), Bytes;
        11 -> element(rand:uniform(8), {true, false, ok, none, 'Zürich', 'with space', 'ατόμο', ''});
        12 -> list_to_atom([character() || _ <- lists:seq(1, rand:uniform(4))] ++ "_");
        13 -> element(rand:uniform(tuple_size(Foreign)), Foreign);
        14 -> make_ref();
        15 -> element(rand:uniform(4), {fun lists:map/2, fun erlang:self/0, fun 'Elixir.No':'f?'/255, fun app_SUITE:all/0});
        16 -> element(rand:uniform(4), {[], {}, #{}, <<>>});
        17 -> [rand:uniform(256) - 1 || _ <- lists:seq(1, rand:uniform(30))];
        18 -> lists:seq(250, 250 + rand:uniform(10));
        19 -> element(rand:uniform(4), {nan, infinity, neg_infinity, '\t"\\'});
        20 -> list_to_tuple(lists:seq(1, element(rand:uniform(3), {1, 255, 300})))
    end.

integer(Bits) ->
    Sign = 1 - 2 * (rand:uniform(2) - 1),
    Sign * binary:decode_unsigned(rand:bytes(max(1, Bits div 8))).

float() ->
    case rand:bytes(8) of
        <<Float/float>> -> Float;
        _ -> float()    % not a number
    end.

character() ->
    case rand:uniform(4) of
        1 -> $a + rand:uniform(26) - 1;
        2 -> 16#A0 + rand:uniform(16#500);
        3 -> 16#4E00 + rand:uniform(16#5000);
        4 -> 16#1F600 + rand:uniform(60)
    end.

%% --- a node of its own --------------------------------------------------------------------------

%% As a user does it: one erl, no name, no epmd yet, one line.
a_plain_beam_starts_its_own_node(Config) ->
    #{directory := Directory, epmd_port := Port} = sw_e2e:context(Config),
    Line = "{ok, _} = application:ensure_all_started(sidewinder),"
           "io:format(\"~p ~p~n\", [node(), py:call(math, sqrt, [2.0])]),"
           "io:format(\"~p~n\", [py:call(os, getpid, [])]),"
           "init:stop().",
    {Status, Output, Errors} = sw_e2e:run(os:find_executable("erl"), ["-noshell", "-eval", Line | application_path()],
                                          [{"ERL_EPMD_PORT", Port}, {"XDG_RUNTIME_DIR", Directory},
                                           {"SIDEWINDER_BIN", sw_e2e:sidewinder()}]),
    ?assertEqual(0, Status, {Output, Errors}),
    ?assertMatch({match, _}, re:run(Output, "\\{ok,1\\.4142135623730951\\}"), Output),
    {match, [OsPid]} = re:run(Output, "^\\{ok,([0-9]+)\\}$", [multiline, {capture, [1], list}]),
    ok = sw_e2e:eventually(fun() -> not filelib:is_dir("/proc/" ++ OsPid) end).

local_os_pid(Beam) ->
    {ok, OsPid} = sw_e2e:on(Beam, fun() -> py:call(os, getpid, []) end),
    integer_to_list(OsPid).

gone(OsPid) ->
    sw_e2e:eventually(fun() -> not filelib:is_dir("/proc/" ++ OsPid) end).

a_local_node_that_is_killed_is_an_error_and_comes_back(Config) ->
    Beam = plain(Config),
    First = local_os_pid(Beam),
    ok = sw_e2e:on(Beam, fun() ->
        Slow = py:spawn_call(probe, nap_watched, [self(), it, 30]),
        {<<"begun">>, it} = sw_e2e:tell_test(5000),
        "" = os:cmd("kill -9 " ++ First),
        ?assertMatch({error, {down, _}}, py:await(Slow)),
        ok = sw_e2e:eventually(fun() ->
            case py:call(math, sqrt, [16.0]) of
                {ok, 4.0} -> true;
                {error, {down, _}} = Down -> Down
            end
        end)
    end),
    Second = local_os_pid(Beam),
    ?assertNotEqual(First, Second),
    ok = sw_e2e:stop_beam(Beam),
    ok = gone(Second).

a_local_node_ends_with_the_application(Config) ->
    Beam = plain(Config),
    OsPid = local_os_pid(Beam),
    ok = sw_e2e:on(Beam, fun() -> application:stop(sidewinder) end),
    ok = gone(OsPid),
    ok = sw_e2e:stop_beam(Beam).

a_local_node_ends_with_its_beam(Config) ->
    Beam = plain(Config),
    OsPid = local_os_pid(Beam),
    ok = sw_e2e:kill_beam(Beam),
    ok = gone(OsPid).

%% --- Elixir -------------------------------------------------------------------------------------

elixir_calls_python(Config) ->
    Context = sw_e2e:context(Config),
    Node = #{name := Name} = sw_e2e:start_node(Context, #{args => ["--none", "nil"]}),
    Code = "[name] = System.argv()\n"
           "node = String.to_atom(name)\n"
           "true = Node.connect(node)\n"
           "4.0 = :erpc.call(node, :math, :sqrt, [16.0])\n"
           "{:ok, \"a/b\"} = :gen_server.call({:py, node}, {:call, :os, :\"path.join\", [\"a\", \"b\"]})\n"
           "{:ok, nil} = GenServer.call({:py, node}, {:eval, \"None\", %{}})\n"
           "{:ok, %{\"x\" => [1, 2]}} = GenServer.call({:py, node}, {:eval, \"{'x': xs}\", %{xs: [1, 2]}})\n"
           "{:error, {:python, \"ZeroDivisionError\", _, _}} = GenServer.call({:py, node}, {:eval, \"1 / 0\", %{}})\n"
           "e = try do :erpc.call(node, :math, :sqrt, [-1]) rescue e in ErlangError -> e.original end\n"
           "{:exception, {:python, \"ValueError\", _, _}, _} = e\n"
           "{:noproc, _} = try do GenServer.call({:nobody, node}, :hi) catch :exit, r -> r end\n"
           "pid = Node.spawn(node, :time, :sleep, [0.1])\n"
           "ref = Process.monitor(pid)\n"
           "receive do {:DOWN, ^ref, :process, ^pid, :normal} -> IO.puts(\"all is well\") end\n",
    {Status, Output, Errors} = sw_e2e:elixir(Context, [], Code, [atom_to_list(Name)]),
    ?assertEqual({0, <<"all is well\n">>}, {Status, Output}, Errors),
    ok = sw_e2e:stop_node(Node).
