%% Load for the soak: one BEAM that calls a node in every way it knows for some seconds, kills callers in the middle of
%% their calls, and checks every answer it gets. main/1: Node, Milliseconds, Seed. Halts with 0, or 1 on a wrong answer.
-module(soak_load).

-export([main/1]).

main([NodeText, MillisText, SeedText]) ->
    Node = list_to_atom(NodeText),
    End = erlang:monotonic_time(millisecond) + list_to_integer(MillisText),
    wait_for(Node, 200),
    Seed = list_to_integer(SeedText),
    Self = self(),
    Workers = [
        spawn_monitor(fun() ->
            rand:seed(exsss, {Seed, N, 7}),
            loop(Node, End),
            Self ! {done, self()}
        end)
     || N <- lists:seq(1, 12)
    ],
    lists:foreach(
        fun({Pid, Ref}) ->
            receive
                {'DOWN', Ref, process, Pid, normal} -> ok;
                {'DOWN', Ref, process, Pid, Why} -> fail(Why)
            end
        end,
        Workers
    ),
    io:format("calls done~n"),
    halt(0).

wait_for(Node, 0) ->
    fail({no_connection, Node});
wait_for(Node, Tries) ->
    case net_adm:ping(Node) of
        pong -> ok;
        pang -> timer:sleep(50), wait_for(Node, Tries - 1)
    end.

fail(Why) ->
    io:format("WRONG ~tp~n", [Why]),
    halt(1).

loop(Node, End) ->
    case erlang:monotonic_time(millisecond) < End of
        true -> step(rand:uniform(14), Node), loop(Node, End);
        false -> ok
    end.

step(1, Node) ->
    4.0 = erpc:call(Node, math, sqrt, [16.0], 20000);
step(2, Node) ->
    N = rand:uniform(1 bsl 70),
    {ok, N} = call(Node, {call, soak_target, same, [N]});
step(3, Node) ->
    Binary = rand:bytes(rand:uniform(300000)),
    {ok, Binary} = call(Node, {call, soak_target, same, [{bytes, Binary}]});
step(4, Node) ->
    {ok, done} = call(Node, {call, asyncio, sleep, [0.01, done]});
step(5, Node) ->
    {_, Ref} = spawn_monitor(Node, time, sleep, [0.01]),
    normal = ended(Ref);
step(6, Node) ->
    {Pid, Ref} = spawn_monitor(Node, soak_target, spin, [10]),
    timer:sleep(rand:uniform(20)),
    exit(Pid, kill),
    killed = ended(Ref);
step(7, Node) ->
    % A caller that dies in mid-call, in Python code and in a coroutine.
    Victims = [
        spawn(fun() -> call(Node, {call, soak_target, spin, [5]}) end),
        spawn(fun() -> call(Node, {call, asyncio, sleep, [5]}) end)
    ],
    timer:sleep(rand:uniform(30)),
    [exit(V, kill) || V <- Victims];
step(8, Node) ->
    {_, Ref} = spawn_monitor(fun() ->
        {ok, none} = call(Node, {exec, <<"x = [0] * 1000">>}),
        {ok, 1000} = call(Node, {eval, <<"len(x)">>, #{}})
    end),
    receive {'DOWN', Ref, process, _, normal} -> ok; {'DOWN', Ref, process, _, Why} -> error(Why) end;
step(9, Node) ->
    {error, {python, <<"ZeroDivisionError">>, _, _}} = call(Node, {eval, <<"1/0">>, #{}});
step(10, Node) ->
    ok = gen_server:cast({py, Node}, {cast, soak_target, same, [lists:seq(1, 100)]});
step(11, Node) ->
    {'EXIT', {noproc, _}} = catch gen_server:call({nobody, Node}, x, 20000);
step(12, Node) ->
    Requests = [erpc:send_request(Node, soak_target, same, [N]) || N <- lists:seq(1, 30)],
    Expected = lists:seq(1, 30),
    Expected = [erpc:receive_response(R, 20000) || R <- Requests];
step(13, Node) ->
    {ok, Pid} = call(Node, {call, soak_target, server, []}),
    Ref = monitor(process, Pid),
    7 = gen_server:call(Pid, {add, 7}, 20000),
    exit(Pid, bye),
    bye = ended(Ref);
step(14, Node) ->
    {error, {bad_term, _}} = call(Node, {call, soak_target, same, [nested(3000, [])]}).

ended(Ref) ->
    receive {'DOWN', Ref, process, _, Reason} -> Reason after 20000 -> late end.

nested(0, Term) -> Term;
nested(N, Term) -> nested(N - 1, [Term]).

call(Node, Request) ->
    gen_server:call({py, Node}, Request, 20000).
