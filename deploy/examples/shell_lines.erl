%% What a page shows of a shell, `1> Expression.` and the value below it, is what happens.
%%
%%   erl -noinput -name … -run shell_lines main FILE
%%
%% Evaluates each expression in turn and compares; ends with 0 if all values are as shown, blanks aside.
-module(shell_lines).

-export([main/1]).

main([File]) ->
    ok = logger:set_primary_config(level, error),
    {ok, Text} = file:read_file(File),
    [_ | Parts] = re:split(Text, "^[0-9]+> ", [multiline, {return, list}]),
    halt(steps(Parts, erl_eval:new_bindings(), 0)).

steps([], _, 0) -> io:format("nothing to evaluate~n"), 1;
steps([], _, _) -> 0;
steps([Part | Parts], Bindings0, Done) ->
    {ok, Tokens, _} = erl_scan:string(Part),
    {Expression, [{dot, _} | _]} = lists:splitwith(fun(Token) -> element(1, Token) =/= dot end, Tokens),
    {ok, Forms} = erl_parse:parse_exprs(Expression ++ [{dot, 1}]),
    {value, Value, Bindings} = erl_eval:exprs(Forms, Bindings0),
    {match, [Shown]} = re:run(Part, "\\.\\n(.*)$", [dotall, {capture, [1], list}]),
    case {bare(Shown), bare(io_lib:format("~p", [Value]))} of
        {Same, Same} -> steps(Parts, Bindings, Done + 1);
        _ -> io:format("~s    gave ~p~n", [Part, Value]), 1
    end.

bare(Text) -> re:replace(Text, "\\s", "", [global, {return, binary}]).
