%% The tour of `make run`: evaluates each line in the shell's own manner, prints it and what it came to.
%% tour:run(Node) ends with the number of lines that did not come to what was expected.
-module(tour).

-export([run/1]).

run(Node) ->
    io:format("~nA BEAM (~s, OTP ~s) and a Python node (~s).~n", [
        node(), erlang:system_info(otp_release), Node
    ]),
    Bindings = erl_eval:add_binding('Node', Node, erl_eval:new_bindings()),
    {_, Wrong} = lists:foldl(fun step/2, {Bindings, 0}, lines()),
    Wrong.

lines() ->
    [
        {"The node is there, hidden, and answers like one of OTP:", comment},
        {"net_adm:ping(Node).", pong},
        {"lists:member(Node, nodes(hidden)).", true},
        {"Python with the calls every BEAM has:", comment},
        {"erpc:call(Node, math, sqrt, [16.0]).", 4.0},
        {"rpc:call(Node, os, 'path.join', [<<\"a\">>, <<\"b\">>]).", <<"a/b">>},
        {"gen_server:call({py, Node}, {eval, <<\"sum(n * n for n in range(10))\">>, #{}}).", {ok, 285}},
        {"A missing process is missed at once:", comment},
        {"catch gen_server:call({nobody, Node}, hello).",
            fun({'EXIT', {noproc, _}}) -> true; (_) -> false end},
        {"A Python function as a process, watched from here:", comment},
        {"{Pid, Ref} = spawn_monitor(Node, time, sleep, [0.05]), is_pid(Pid).", true},
        {"receive {'DOWN', Ref, process, Pid, Reason} -> Reason after 5000 -> late end.", normal},
        {"With the application there are results instead of exceptions, and batching:", comment},
        {"element(1, application:ensure_all_started(sidewinder)).", ok},
        {"py:call(Node, math, sqrt, [2.0]).", {ok, math:sqrt(2.0)}},
        {"py:call(Node, math, sqrt, [-1]).",
            fun({error, {python, <<"ValueError">>, _, _}}) -> true; (_) -> false end}
    ].

step({Text, comment}, State) ->
    io:format("~n%% ~s~n", [Text]),
    State;
step({Text, Expected}, {Bindings, Wrong}) ->
    io:format("> ~s~n", [Text]),
    {ok, Tokens, _} = erl_scan:string(Text),
    {ok, Expressions} = erl_parse:parse_exprs(Tokens),
    {value, Value, Bound} = erl_eval:exprs(Expressions, Bindings),
    io:format("~tP~n", [Value, 12]),
    {Bound, Wrong + is_wrong(Value, Expected)}.

is_wrong(Value, Expected) when is_function(Expected, 1) -> is_wrong(Expected(Value), true);
is_wrong(Value, Value) -> 0;
is_wrong(_, Expected) -> io:format("%% WRONG, should be ~tp~n", [Expected]), 1.
