#!/usr/bin/env escript
%%! -noinput +fnu
%% A BEAM at the other end of a pipe: it does what binary_to_term and term_to_binary do, for the tests
%% of the codec to compare with. Requests and answers are 4-byte length framed; a request is an operation's
%% letter and its argument, an answer is $+ and the result or $- and the text of the error.
-mode(compile).

main(_) ->
    Port = open_port({fd, 0, 1}, [binary, {packet, 4}, eof]),
    loop(Port).

loop(Port) ->
    receive
        {Port, {data, Request}} ->
            Answer = try [$+, answer(Request)]
                     catch _:Reason -> [$-, unicode:characters_to_binary(io_lib:format("~0tp", [Reason]))]
                     end,
            port_command(Port, Answer),
            loop(Port);
        {Port, eof} -> ok
    end.

%% e: the term of these bytes, written anew.
answer(<<$e, Bytes/binary>>) -> write(binary_to_term(Bytes));
%% p: the term as it prints.
answer(<<$p, Bytes/binary>>) -> unicode:characters_to_binary(io_lib:format("~0tp", [binary_to_term(Bytes)]));
%% x: the value of an Erlang expression.
answer(<<$x, Text/binary>>) -> write(evaluate(Text));
%% =: whether an expression's value and a term are the same.
answer(<<$=, Size:32, Text:Size/binary, Bytes/binary>>) -> write(evaluate(Text) =:= binary_to_term(Bytes));
%% s: a list in Erlang's order.
answer(<<$s, Bytes/binary>>) -> write(lists:sort(binary_to_term(Bytes)));
%% g: Count random terms from a seed, each an external term in some legal form, as a list of binaries.
answer(<<$g, Seed:32, Count:32>>) -> write([dump(T) || T <- terms(Seed, Count)]);
%% c: those terms again, against what came back: the first that is not the same, or `same`.
answer(<<$c, Seed:32, Count:32, Bytes/binary>>) ->
    Terms = terms(Seed, Count),
    Back = [binary_to_term(B) || B <- binary_to_term(Bytes)],
    write(case [{T, B} || {T, B} <- lists:zip(Terms, Back), T =/= B] of
              [] -> same;
              [{T, B} | _] -> {differ, unicode:characters_to_binary(io_lib:format("~0tp and ~0tp", [T, B]))}
          end).

write(Term) -> term_to_binary(Term, [{minor_version, 2}]).

evaluate(Text) ->
    {ok, Tokens, _} = erl_scan:string(unicode:characters_to_list(Text) ++ "."),
    {ok, Expressions} = erl_parse:parse_exprs(Tokens),
    {value, Value, _} = erl_eval:exprs(Expressions, []),
    Value.

%% In one of the forms that nodes write.
dump(Term) ->
    case rand:uniform(8) of
        1 -> term_to_binary(Term, [compressed]);
        2 -> term_to_binary(Term, [{minor_version, 1}]);
        _ -> term_to_binary(Term, [{minor_version, 2}])
    end.

terms(Seed, Count) ->
    rand:seed(exsss, Seed),
    [term(rand:uniform(6)) || _ <- lists:seq(1, Count)].

%% Random terms, of all kinds that come back as they were: no `undefined` or `nil` (they become `none`), no
%% {bytes, Binary}, no map with keys that Python cannot tell apart or hash.
term(0) -> leaf();
term(Depth) ->
    case rand:uniform(12) of
        1 -> list_to_tuple(many(Depth));
        2 -> many(Depth);
        3 -> improper(many(Depth), leaf());
        4 -> maps:from_list([{key(), term(Depth - 1)} || _ <- lists:seq(1, rand:uniform(5) - 1)]);
        5 -> {leaf(), term(Depth - 1)};
        6 -> [rand:uniform(256) - 1 || _ <- lists:seq(1, rand:uniform(20))];
        _ -> leaf()
    end.

many(Depth) -> [term(Depth - 1) || _ <- lists:seq(1, rand:uniform(6) - 1)].

improper([], Tail) -> [Tail];
improper(Items, Tail) when is_list(Tail) -> Items;
improper(Items, Tail) -> Items ++ Tail.

%% Keys of kinds that never meet in Python: text, atoms, odd integers, halves.
key() ->
    case rand:uniform(5) of
        1 -> unicode:characters_to_binary(text());
        2 -> atom();
        3 -> integer() * 2 + 1;
        4 -> rand:uniform(1000) + 0.5;
        5 -> {key(), leaf_key()}
    end.

leaf_key() -> element(rand:uniform(3), {pid(), reference(), fun lists:map/2}).

leaf() ->
    case rand:uniform(14) of
        1 -> integer();
        2 -> rand:uniform(256) - 1;
        3 -> rand:normal() * math:pow(10, rand:uniform(40) - 20);
        4 -> atom();
        5 -> element(rand:uniform(3), {true, false, none});
        6 -> unicode:characters_to_binary(text());
        7 -> rand:bytes(rand:uniform(40) - 1);
        8 -> Bits = rand:uniform(70), <<(rand:uniform(1 bsl 60)):Bits>>;
        9 -> pid();
        10 -> port();
        11 -> reference();
        12 -> fun lists:map/2;
        13 -> Closed = integer(), fun(X) -> {X, Closed, undefined} end;
        14 -> element(rand:uniform(4), {[], {}, #{}, <<>>})
    end.

integer() -> (rand:uniform(1 bsl (rand:uniform(200))) - 1) * (1 - 2 * rand:uniform(2) + 2).

text() -> [character() || _ <- lists:seq(1, rand:uniform(12) - 1)].

character() ->
    case rand:uniform(4) of
        1 -> 16#80 + rand:uniform(16#700);
        2 -> 16#3FFF + rand:uniform(16#4000);
        3 -> 16#1F5FF + rand:uniform(64);
        4 -> 31 + rand:uniform(90)
    end.

%% A few hundred atoms, made for the purpose.
atom() -> list_to_atom([$a + rand:uniform(26) - 1, element(rand:uniform(4), {$x, $ä, $λ, 16#1F600}),
                        $0 + rand:uniform(10) - 1]).

node_name() -> element(rand:uniform(3), {<<"a@h">>, <<"node@127.0.0.1">>, <<"ü@h"/utf8>>}).

number() -> rand:uniform(1 bsl 32) - 1.

pid() ->
    N = node_name(),
    binary_to_term(<<131, 88, 119, (byte_size(N)), N/binary, (number()):32, (number()):32, (number()):32>>).

port() ->
    N = node_name(),
    binary_to_term(<<131, 120, 119, (byte_size(N)), N/binary, (number()):32, (number()):32, (number()):32>>).

reference() ->
    N = node_name(),
    Words = << <<(rand:uniform(1 bsl 18) - 1):32>> || _ <- lists:seq(1, rand:uniform(5)) >>,
    binary_to_term(<<131, 90, (byte_size(Words) div 4):16, 119, (byte_size(N)), N/binary, (number()):32, Words/binary>>).
