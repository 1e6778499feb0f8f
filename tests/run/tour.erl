%% The tour that `make run` gives: each line is printed, evaluated, and checked against what it
%% should answer. `main/1` waits for the node, runs the tour and halts: 0, or 1 after a wrong
%% answer or without a node.
-module(tour).

-export([main/1]).

-define(NODE_START_MS, 20_000).

-spec main(node()) -> no_return().
main(Node) ->
    case wait_for(Node, erlang:monotonic_time(millisecond) + ?NODE_START_MS) of
        up -> tour(Node);
        down -> io:format("~ts did not answer~n", [Node]), halt(1)
    end.

%% {Text, Pattern}: the expression as one would type it, and what its value must match.
steps() ->
    [{heading, "Any BEAM node, with nothing of Sidewinder loaded"},
     {"net_adm:ping(Py).", "pong"},
     {"nodes(hidden).", "[_ | _]"},
     {"erpc:call(Py, math, sqrt, [16.0]).", "4.0"},
     {"erpc:call(Py, 'os.path', join, [<<\"a\">>, <<\"b\">>]).", "<<\"a/b\">>"},
     {"gen_server:call({py, Py}, {eval, <<\"sum(range(n))\">>, #{n => 101}}).", "{ok, 5050}"},
     {"gen_server:call({py, Py}, {exec, <<\"def double(x): return 2 * x\">>}).", "{ok, _}"},
     {"gen_server:call({py, Py}, {eval, <<\"double(21)\">>, #{}}).", "{ok, 42}"},
     {heading, "Python's exceptions, and processes that are not there, as OTP tells them"},
     {"gen_server:call({py, Py}, {call, operator, truediv, [1, 0]}).",
      "{error, {python, <<\"ZeroDivisionError\">>, _, _}}"},
     {"catch gen_server:call({nobody, Py}, hello).", "{'EXIT', {noproc, _}}"},
     {heading, "Python functions as processes"},
     {"{Pid, Monitor} = spawn_monitor(Py, time, sleep, [0.1]).", "{_, _}"},
     {"receive {'DOWN', Monitor, process, Pid, Reason} -> Reason after 5000 -> late end.",
      "normal"},
     {heading, "The Erlang application"},
     {"application:set_env(sidewinder, default_node, Py).", "ok"},
     {"application:ensure_all_started(sidewinder).", "{ok, _}"},
     {"py:call(math, sqrt, [2.0]).", "{ok, _}"},
     {"py:call(json, dumps, [#{<<\"a\">> => [1, 2]}], #{indent => none}).",
      "{ok, <<\"{\\\"a\\\": [1, 2]}\">>}"},
     {"Calls = [py:spawn_call(time, sleep, [0.1]) || _ <- lists:seq(1, 4)].", "[_ | _]"},
     {"[py:await(Call) || Call <- Calls].", "[{ok, none}, {ok, none}, {ok, none}, {ok, none}]"}].

tour(Node) ->
    io:format("Py = ~p.~n", [Node]),
    Bindings = erl_eval:add_binding('Py', Node, erl_eval:new_bindings()),
    {_, Wrong} = lists:foldl(fun step/2, {Bindings, 0}, steps()),
    case Wrong of
        0 -> halt(0);
        _ -> io:format("~n~b answers were not as expected~n", [Wrong]), halt(1)
    end.

step({heading, Text}, State) ->
    io:format("~n%% ~ts~n", [Text]),
    State;
step({Text, Pattern}, {Bindings, Wrong}) ->
    io:format("> ~ts~n", [Text]),
    {value, Value, Next} = evaluate(Text, Bindings),
    io:format("~tP~n", [Value, 12]),
    case matches(Pattern, Value) of
        true -> {Next, Wrong};
        false -> io:format("  expected ~ts~n", [Pattern]), {Next, Wrong + 1}
    end.

evaluate(Text, Bindings) ->
    try
        erl_eval:exprs(parse(Text), Bindings)
    catch
        Class:Reason -> {value, {Class, Reason}, Bindings}
    end.

matches(Pattern, Value) ->
    Bindings = erl_eval:add_binding('Value', Value, erl_eval:new_bindings()),
    Text = "case Value of " ++ Pattern ++ " -> true; _ -> false end.",
    {value, Matches, _} = erl_eval:exprs(parse(Text), Bindings),
    Matches.

parse(Text) ->
    {ok, Tokens, _} = erl_scan:string(Text),
    {ok, Expressions} = erl_parse:parse_exprs(Tokens),
    Expressions.

wait_for(Node, Deadline) ->
    case net_adm:ping(Node) of
        pong -> up;
        pang ->
            case erlang:monotonic_time(millisecond) < Deadline of
                true -> timer:sleep(50), wait_for(Node, Deadline);
                false -> down
            end
    end.
