%% Pools over three real nodes, which are killed, drained, overloaded and started again under load.
%% Each run of a function leaves a line on disk, so what ran twice, or not at all, is seen afterwards.
-module(pool_SUITE).

-include_lib("stdlib/include/assert.hrl").

-export([all/0, suite/0, init_per_suite/1, end_per_suite/1, init_per_testcase/2, end_per_testcase/2]).
-compile([export_all, nowarn_export_all]).

-define(CALLERS, 32).

suite() -> [{timetrap, {seconds, 180}}].

all() ->
    [calls_spread_over_all_nodes,
     a_node_killed_under_load_fails_what_it_had_and_nothing_else,
     a_node_killed_under_load_fails_no_idempotent_call,
     a_node_that_is_back_takes_calls_within_two_seconds,
     a_node_that_drains_fails_no_call,
     a_node_tells_its_peers_that_it_drains_before_it_refuses_anything,
     an_overloaded_node_fails_no_call,
     keys_stay_with_their_nodes_when_another_is_killed_and_comes_back,
     nodes_that_connect_by_themselves_are_members,
     nodes_that_something_else_connects_are_members,
     killed_callers_leave_no_count_and_their_calls_are_cancelled,
     channels_and_event_loops_can_be_made_on_a_pool,
     whatever_happens_each_call_ends_once_and_runs_once].

init_per_suite(Config0) ->
    Config = sw_e2e:setup(Config0),
    Beam = sw_e2e:start_beam(sw_e2e:context(Config), #{args => application_path()}),
    [{beam, Beam} | Config].

end_per_suite(Config) ->
    ok = sw_e2e:stop_beam(proplists:get_value(beam, Config)),
    ok = sw_e2e:teardown(Config).

init_per_testcase(Case, Config) ->
    #{directory := Directory} = context(Config),
    Runs = filename:join(Directory, Case),
    ok = filelib:ensure_dir(filename:join(Runs, "x")),
    ok = on(Config, fun() ->
        ok = logger:set_primary_config(level, error),
        {ok, _} = application:ensure_all_started(sidewinder),
        ok
    end),
    [{runs, Runs} | Config].

end_per_testcase(_, Config) ->
    ok = on(Config, fun() -> application:stop(sidewinder) end).

context(Config) -> sw_e2e:context(Config).

on(Config, Function) -> sw_e2e:on(proplists:get_value(beam, Config), Function).

application_path() -> ["-pa", filename:dirname(code:which(py))].

%% --- Nodes ------------------------------------------------------------------------------------------

start(Config) -> start(Config, #{}).

start(Config, Options) ->
    Arguments = ["--import", "pools", "--workers", "4" | maps:get(args, Options, [])],
    sw_e2e:start_node(context(Config), Options#{args => Arguments}).

start_three(Config) -> [start(Config) || _ <- [1, 2, 3]].

names(Nodes) -> lists:sort([Name || #{name := Name} <- Nodes]).

kill(#{program := Program}) -> sw_e2e:kill(Program).

stop(Nodes) -> [ok = sw_e2e:stop_node(Node) || Node <- Nodes], ok.

%% Another process under the name of one that has ended.
restart(Config, Node) -> restart(Config, Node, []).

restart(Config, #{name := Name}, Arguments) ->
    Alive = hd(string:split(atom_to_list(Name), "@")),
    Port = maps:get(epmd_port, context(Config)),
    ok = sw_e2e:eventually(fun() -> not lists:keymember(Alive, 1, sw_e2e:epmd_names(Port)) end),
    start(Config, #{name => atom_to_list(Name), args => Arguments}).

%% A pool of these nodes, all of them up.
pool(Config, Nodes) -> pool(Config, Nodes, #{}).

pool(Config, Nodes, Options) ->
    Names = names(Nodes),
    on(Config, fun() ->
        {ok, _} = py_pool:start(pool, Options#{nodes => Names}),
        await_members(Names)
    end).

await_members(Names) ->
    ok = sw_e2e:eventually(fun() -> py_pool:members(pool) =:= Names end).

%% --- Load -------------------------------------------------------------------------------------------

%% Callers that call until they are told to stop; each call has a token of its own.
load(Config, Options, Seconds) ->
    Runs = list_to_binary(proplists:get_value(runs, Config)),
    on(Config, fun() ->
        Stop = atomics:new(1, []),
        Callers = [spawn(fun() -> call_on(Stop, Runs, Options, Seconds, []) end) || _ <- lists:seq(1, ?CALLERS)],
        {Stop, Callers}
    end).

call_on(Stop, Runs, Options, Seconds, Results) ->
    case atomics:get(Stop, 1) of
        0 ->
            Token = token(),
            Result = py:call(pool, pools, work, [Runs, Token, Seconds], Options#{timeout => 30000}),
            call_on(Stop, Runs, Options, Seconds, [{Token, Result} | Results]);
        1 ->
            receive {get, From} -> From ! {self(), Results} end,
            {messages, []} = process_info(self(), messages)
    end.

token() -> integer_to_binary(erlang:unique_integer([positive])).

%% [{Token, Result}] of all callers.
results(Config, {Stop, Callers}) ->
    on(Config, fun() ->
        ok = atomics:put(Stop, 1, 1),
        lists:append([results_of(Caller) || Caller <- Callers])
    end).

%% Nothing else may have come to the caller.
results_of(Caller) ->
    Monitor = monitor(process, Caller),
    Caller ! {get, self()},
    Results = receive {Caller, Those} -> Those; {'DOWN', Monitor, process, _, Why} -> error(Why) end,
    receive {'DOWN', Monitor, process, _, normal} -> Results end.

%% How often each token was run.
runs(Config) ->
    Files = filelib:wildcard(filename:join(proplists:get_value(runs, Config), "*.runs")),
    Lines = lists:append([begin {ok, Text} = file:read_file(File), binary:split(Text, <<"\n">>, [global, trim]) end
                          || File <- Files]),
    lists:foldl(fun(Token, Counts) -> maps:update_with(Token, fun(N) -> N + 1 end, 1, Counts) end, #{}, Lines).

%% Waits until so many calls more have been run, by whatever node.
await_runs(Config, More) ->
    Before = maps:size(runs(Config)),
    ok = sw_e2e:eventually(fun() -> maps:size(runs(Config)) >= Before + More end).

%% What was answered was run, once; what was lost was run once at most; what was refused never.
check_runs(Results, Runs) ->
    ?assertEqual([], [Wrong || Wrong = {Token, Result} <- Results, not fits(Token, Result, maps:get(Token, Runs, 0))]).

fits(Token, {ok, Token}, Times) -> Times =:= 1;
fits(_, {error, {down, no_members}}, Times) -> Times =:= 0;
fits(_, {error, {down, _}}, Times) -> Times =< 1;
fits(_, {error, overloaded}, Times) -> Times =:= 0;
fits(_, {error, timeout}, Times) -> Times =< 1;
fits(_, _, _) -> false.

in_flight() ->
    {ok, #{members := Members}} = py_pool:info(pool),
    lists:sum([InFlight || #{in_flight := InFlight} <- Members]).

%% --- Losses -----------------------------------------------------------------------------------------

calls_spread_over_all_nodes(Config) ->
    Nodes = start_three(Config),
    ok = pool(Config, Nodes),
    Counts = on(Config, fun() ->
        Refs = [py:spawn_call(pool, pools, place_after, [0.01]) || _ <- lists:seq(1, 300)],
        Places = [begin {ok, Place} = py:await(Ref), Place end || Ref <- Refs],
        [length([P || P <- Places, P =:= Place]) || Place <- lists:usort(Places)]
    end),
    ?assertEqual(3, length(Counts)),
    [?assert(Count > 60, Counts) || Count <- Counts],
    ok = stop(Nodes).

a_node_killed_under_load_fails_what_it_had_and_nothing_else(Config) ->
    [Victim = #{name := Name} | Others] = start_three(Config),
    ok = pool(Config, [Victim | Others]),
    Load = load(Config, #{}, 0.02),
    ok = await_runs(Config, 200),
    ok = kill(Victim),
    ok = await_runs(Config, 400),
    Results = results(Config, Load),
    Lost = [Result || {_, Result} <- Results, element(1, Result) =:= error],
    ?assertEqual([{error, {down, Name}}], lists:usort(Lost)),
    ?assert(length(Lost) =< ?CALLERS, length(Lost)),
    check_runs(Results, runs(Config)),
    ?assertEqual(0, on(Config, fun in_flight/0)),
    ok = stop(Others).

a_node_killed_under_load_fails_no_idempotent_call(Config) ->
    [Victim | Others] = start_three(Config),
    ok = pool(Config, [Victim | Others]),
    Load = load(Config, #{idempotent => true}, 0.02),
    ok = await_runs(Config, 200),
    ok = kill(Victim),
    ok = await_runs(Config, 400),
    Results = results(Config, Load),
    ?assertEqual([], [Wrong || Wrong = {Token, Result} <- Results, Result =/= {ok, Token}]),
    Runs = runs(Config),
    Again = [Token || {Token, _} <- Results, maps:get(Token, Runs) > 1],
    ?assert(length(Again) =< ?CALLERS, length(Again)),
    ?assertEqual([], [Token || Token <- Again, maps:get(Token, Runs) > 2]),
    ok = stop(Others).

a_node_that_is_back_takes_calls_within_two_seconds(Config) ->
    [Victim = #{name := Name} | Others] = Nodes = start_three(Config),
    ok = pool(Config, Nodes),
    Load = load(Config, #{}, 0.01),
    ok = await_runs(Config, 100),
    ok = kill(Victim),
    ok = timer:sleep(4000),    % long enough for a backoff that doubles to miss the limit
    Back = restart(Config, Victim),
    Served = fun() ->
        {ok, #{members := Members}} = on(Config, fun() -> py_pool:info(pool) end),
        [{State, Calls}] = [{S, C} || #{node := N, state := S, calls := C} <- Members, N =:= Name],
        {State, Calls}
    end,
    {_, Before} = Served(),
    ok = sw_e2e:eventually(fun() -> {State, Calls} = Served(), State =:= up andalso Calls > Before + 10 end, 2000),
    check_runs(results(Config, Load), runs(Config)),
    ok = stop([Back | Others]).

%% --- Refusals ---------------------------------------------------------------------------------------

a_node_that_drains_fails_no_call(Config) ->
    [Drained = #{name := Name, program := Program} | Others] = start_three(Config),
    ok = pool(Config, [Drained | Others]),
    Load = load(Config, #{}, 0.1),
    ok = await_runs(Config, 100),
    ok = sw_e2e:send_signal(Program, "TERM"),
    ok = sw_e2e:eventually(fun() -> not lists:member(Name, on(Config, fun() -> py_pool:members(pool) end)) end),
    ?assertEqual(0, sw_e2e:await_exit(Program)),
    ok = await_runs(Config, 100),
    Results = results(Config, Load),
    ?assertEqual([], [Wrong || Wrong = {Token, Result} <- Results, Result =/= {ok, Token}]),
    check_runs(Results, runs(Config)),
    Back = restart(Config, Drained),
    ok = on(Config, fun() -> await_members(names([Back | Others])) end),
    ok = stop([Back | Others]).

a_node_tells_its_peers_that_it_drains_before_it_refuses_anything(Config) ->
    [Drained = #{name := Name, program := Program} | Others] = start_three(Config),
    ok = pool(Config, [Drained | Others]),
    Call = on(Config, fun() ->
        Caller = spawn(fun() -> Result = py:call(Name, time, sleep, [3]), receive {get, From} -> From ! {self(), Result} end end),
        ok = sw_e2e:eventually(fun() -> in_flight() =:= 1 end),
        {ok, _} = py:exec(Name, "x = 1"),
        Caller
    end),
    Strangers = on(Config, fun() ->
        %% One that asks for no events, as older versions of the application, gets none; one that does may come late.
        {ok, #{version := 1}} = gen_server:call({py, Name}, {hello, #{version => 1}}),
        {ok, #{version := 1}} = gen_server:call({py, Name}, {hello, [improper | map]}),
        process_info(self(), messages)
    end),
    ok = sw_e2e:send_signal(Program, "TERM"),
    {Info, Refused, Greeted, Quiet, Answer} = on(Config, fun() ->
        ok = sw_e2e:eventually(fun() -> py_pool:members(pool) =:= lists:sort([N || #{name := N} <- Others]) end),
        {ok, #{members := Members}} = py_pool:info(pool),
        [Info] = [Member || Member = #{node := Node} <- Members, Node =:= Name],
        {ok, #{version := 1}} = gen_server:call({py, Name}, {hello, #{version => 1}}),
        {ok, #{version := 1}} = gen_server:call({py, Name}, {hello, #{events => true, more => [1]}}),
        Greeted = receive {'$py_node', Event} -> Event after 5000 -> nothing end,
        Refused = py:call(Name, math, sqrt, [4]),
        Call ! {get, self()},
        {Info, Refused, Greeted, process_info(self(), messages), receive {Call, Result} -> Result end}
    end),
    ?assertMatch(#{state := draining, calls := 0, failures := 0}, Info),
    ?assertEqual({error, draining}, Refused),
    ?assertEqual(draining, Greeted),
    ?assertEqual({{messages, []}, {messages, []}}, {Strangers, Quiet}),
    ?assertEqual({ok, none}, Answer),
    ?assertEqual(0, sw_e2e:await_exit(Program)),
    ok = stop(Others).

an_overloaded_node_fails_no_call(Config) ->
    Small = #{name := Name} = start(Config, #{args => ["--workers", "1", "--queue", "2"]}),
    Others = [start(Config), start(Config)],
    ok = pool(Config, [Small | Others], #{routing => round_robin}),
    Load = load(Config, #{}, 0.02),
    ok = await_runs(Config, 300),
    Results = results(Config, Load),
    ?assertEqual([], [Wrong || Wrong = {Token, Result} <- Results, Result =/= {ok, Token}]),
    check_runs(Results, runs(Config)),
    {ok, #{members := Members}} = on(Config, fun() -> py_pool:info(pool) end),
    [Refused] = [Failures || #{node := Node, failures := Failures} <- Members, Node =:= Name],
    ?assert(Refused > 0),
    ok = stop([Small | Others]).

%% --- Keys -------------------------------------------------------------------------------------------

keys_stay_with_their_nodes_when_another_is_killed_and_comes_back(Config) ->
    [Victim = #{name := Lost} | Others] = start_three(Config),
    ok = pool(Config, [Victim | Others]),
    Places = fun() ->
        on(Config, fun() ->
            [begin {ok, Place} = py:call(pool, pools, place, [], #{key => {user, N}}), Place end
             || N <- lists:seq(1, 100)]
        end)
    end,
    Before = Places(),
    ok = kill(Victim),
    ok = on(Config, fun() -> await_members(names(Others)) end),
    During = Places(),
    Back = restart(Config, Victim),
    ok = on(Config, fun() -> await_members(names([Back | Others])) end),
    ?assertEqual(3, length(lists:usort(Before))),
    ?assertEqual([], [Pair || Pair = {B, D} <- lists:zip(Before, During), B =/= Lost, B =/= D]),
    ?assertEqual(Before, Places()),
    ok = stop([Back | Others]).

%% --- Members from nodes(hidden) -----------------------------------------------------------------------

nodes_that_connect_by_themselves_are_members(Config) ->
    #{node := Peer} = proplists:get_value(beam, Config),
    Prefix = sw_e2e:unique("dials"),
    Dial = fun(N) ->
        start(Config, #{name => lists:concat([Prefix, "_", N, "@127.0.0.1"]), args => ["--peer", atom_to_list(Peer)]})
    end,
    on(Config, fun() -> {ok, _} = py_pool:start(pool, #{nodes => {hidden, Prefix ++ "_*"}, forget => 1000}) end),
    [First, Second] = Nodes = [Dial(1), Dial(2)],
    ok = on(Config, fun() -> await_members(names(Nodes)) end),
    Third = Dial(3),
    ok = on(Config, fun() -> await_members(names([Third | Nodes])) end),
    ok = kill(First),
    ok = on(Config, fun() ->
        await_members(names([Second, Third])),
        ok = sw_e2e:eventually(fun() -> {ok, #{members := Members}} = py_pool:info(pool), length(Members) =:= 2 end),
        ok
    end),
    Again = restart(Config, First, ["--peer", atom_to_list(Peer)]),
    ok = on(Config, fun() -> await_members(names([Again, Second, Third])) end),
    ok = stop([Again, Second, Third]).

%% As libcluster does it: who finds nodes connects them, and knows nothing of pools.
nodes_that_something_else_connects_are_members(Config) ->
    [A, B, C] = Nodes = start_three(Config),
    Names = names(Nodes),
    on(Config, fun() ->
        {ok, _} = py_pool:start(pool, #{nodes => {hidden, fun(Node) -> lists:member(Node, Names) end}}),
        {error, {down, no_members}} = py:call(pool, pools, place, []),
        [true = net_kernel:connect_node(Name) || Name <- Names],
        await_members(Names)
    end),
    ok = kill(B),
    ok = on(Config, fun() -> await_members(names([A, C])) end),
    Back = restart(Config, B),
    ok = on(Config, fun() -> await_members(Names) end),    % it is dialled though nobody connects it
    ok = stop([A, Back, C]).

%% --- Callers ----------------------------------------------------------------------------------------

killed_callers_leave_no_count_and_their_calls_are_cancelled(Config) ->
    Nodes = start_three(Config),
    ok = pool(Config, Nodes),
    Beam = proplists:get_value(beam, Config),
    on(Config, fun() ->
        [begin
             Callers = [spawn(fun() -> py:call(pool, probe, Nap, [60]) end) || _ <- lists:seq(1, 50)]
                 ++ [spawn(fun() -> _ = py:spawn_call(pool, probe, Nap, [60]), timer:sleep(infinity) end)
                     || _ <- lists:seq(1, 50)],
             ok = sw_e2e:eventually(fun() -> in_flight() > 50 end),
             [exit(Caller, kill) || Caller <- Callers]
         end || Nap <- [nap_async, nap_async, spin]],
        ok = sw_e2e:eventually(fun() -> in_flight() =:= 0 end),
        ok = sw_e2e:eventually(fun() -> ets:info(py_pools, size) =:= 1 end)
    end),
    [ok = sw_e2e:eventually(fun() ->
        #{<<"busy">> := Busy, <<"tasks">> := Tasks} = sw_e2e:stats(Beam, Name),
        {1, 0} =:= {Busy, Tasks}    % the question itself is the one
    end) || #{name := Name} <- Nodes],
    ok = stop(Nodes).

channels_and_event_loops_can_be_made_on_a_pool(Config) ->
    Nodes = start_three(Config),
    ok = pool(Config, Nodes),
    Names = names(Nodes),
    on(Config, fun() ->
        {ok, Ch} = py_channel:new(pool),
        {ok, Bytes} = py_byte_channel:new(pool, #{max_size => 1000}),
        {ok, Loop} = py_event_loop:new(pool),
        [true = lists:member(node(Pid), Names) || Pid <- [Ch, Bytes, Loop]],
        ok = py_channel:close(Ch),
        ok = py_event_loop:destroy(Loop),
        {ok, 42} = py:eval(pool, "x * y", #{x => 6, y => 7}),
        ok = py:cast(pool, probe, tell, [self(), cast]),
        cast = sw_e2e:tell_test(5000),
        {error, {python, <<"probe.Odd">>, <<"no">>, _}} = py:call(pool, probe, fail, [<<"no">>])
    end),
    ok = stop(Nodes).

%% --- Everything at once -------------------------------------------------------------------------------

%% Callers of every kind, some of them killed, while nodes are killed, drained and started again at
%% random. POOL_SECONDS says for how long.
whatever_happens_each_call_ends_once_and_runs_once(Config) ->
    Seconds = list_to_integer(os:getenv("POOL_SECONDS", "8")),
    Runs = list_to_binary(proplists:get_value(runs, Config)),
    Nodes = start_three(Config),
    ok = pool(Config, Nodes),
    {Stop, Callers} = on(Config, fun() ->
        Stop = atomics:new(1, []),
        {Stop, [spawn(fun() -> mix(Stop, Runs, N, []) end) || N <- lists:seq(1, ?CALLERS)]}
    end),
    Killer = on(Config, fun() -> spawn(fun() -> kill_callers(Stop, Runs) end) end),
    Until = erlang:monotonic_time(millisecond) + 1000 * Seconds,
    Left = disturb(Config, Until, Nodes),
    Results = results(Config, {Stop, Callers}),
    Counts = runs(Config),
    Idempotent = [Call || Call = {{idempotent, _}, _} <- Results],
    check_runs([{Token, Result} || {{once, Token}, Result} <- Results], Counts),
    ?assertEqual([], [Wrong || Wrong = {{_, Token}, Result} <- Idempotent,
                               not idempotent_fits(Token, Result, maps:get(Token, Counts, 0))]),
    Good = length([ok || {_, {ok, _}} <- Results]),
    ct:pal("~b calls, ~b of them answered; ~b runs", [length(Results), Good, maps:size(Counts)]),
    ?assert(Good > 20 * Seconds, Good),
    on(Config, fun() ->
        ok = sw_e2e:eventually(fun() -> not is_process_alive(Killer) end),
        ok = sw_e2e:eventually(fun() -> in_flight() =:= 0 end),
        ok = sw_e2e:eventually(fun() -> ets:info(py_pools, size) =:= 1 end)
    end),
    ok = stop(Left).

mix(Stop, Runs, N, Results) ->
    case atomics:get(Stop, 1) of
        0 -> mix(Stop, Runs, N, [mixed_call(Runs, N) | Results]);
        1 -> receive {get, From} -> From ! {self(), Results} end, {messages, []} = process_info(self(), messages)
    end.

mixed_call(Runs, N) ->
    Token = token(),
    Arguments = [Runs, Token, rand:uniform(20) / 1000],
    case N rem 4 of
        0 -> {{once, Token}, py:call(pool, pools, work, Arguments)};
        1 -> {{idempotent, Token}, py:call(pool, pools, work, Arguments, #{idempotent => true})};
        2 -> {{once, Token}, py:call(pool, pools, work, Arguments, #{key => rand:uniform(100)})};
        3 -> {{once, Token}, py:await(py:spawn_call(pool, pools, work, Arguments, #{timeout => 20000}))}
    end.

%% Run as often as nodes can be lost under it, and answered only if it was run.
idempotent_fits(Token, {ok, Token}, Times) -> Times >= 1 andalso Times =< 3;
idempotent_fits(_, {error, {down, no_members}}, Times) -> Times =:= 0;
idempotent_fits(_, {error, {down, _}}, Times) -> Times =< 3;
idempotent_fits(_, _, _) -> false.

kill_callers(Stop, Runs) ->
    case atomics:get(Stop, 1) of
        0 ->
            Callers = [spawn(fun() -> mixed_call(Runs, N) end) || N <- [0, 1, 2, 3]],
            ok = timer:sleep(rand:uniform(10)),
            [exit(Caller, kill) || Caller <- Callers],
            kill_callers(Stop, Runs);
        1 ->
            ok
    end.

%% Ends a node in one way or another, and starts it again a little later.
disturb(Config, Until, Nodes) ->
    case erlang:monotonic_time(millisecond) < Until of
        true ->
            ok = timer:sleep(rand:uniform(500)),
            Victim = #{program := Program} = lists:nth(rand:uniform(length(Nodes)), Nodes),
            ok = sw_e2e:send_signal(Program, lists:nth(rand:uniform(2), ["KILL", "TERM"])),
            _ = sw_e2e:await_exit(Program),
            ok = timer:sleep(rand:uniform(500)),
            disturb(Config, Until, [restart(Config, Victim) | lists:delete(Victim, Nodes)]);
        false ->
            Nodes
    end.
