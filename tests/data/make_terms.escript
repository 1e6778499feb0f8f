#!/usr/bin/env escript
%%! -noinput +fnu
%% Writes terms.tsv, the golden terms that the tests of every language read. Run it to remake the file:
%%
%%   escript tests/data/make_terms.escript > tests/data/terms.tsv
%%
%% A line is: name, TAB, the external term as this OTP writes it (hex), TAB, the term as it prints.
%% Most lines come from term_to_binary/2; the "old" ones are forms that only older nodes wrote, put
%% together by hand and accepted by binary_to_term/1 here.
-mode(compile).

main(_) ->
    io:setopts([{encoding, unicode}]),
    io:format("# made by make_terms.escript on OTP ~s~n", [erlang:system_info(otp_release)]),
    [line(Name, term_to_binary(T, [{minor_version, 2}])) || {Name, T} <- written()],
    [line(Name, term_to_binary(T, [{minor_version, 1}])) || {Name, T} <- latin1()],
    line("compressed", term_to_binary(lists:duplicate(50, <<"sidewinder">>), [{compressed, 9}])),
    line("compressed_atom", <<131, 80, 0, 0, 0, 4, (zlib:compress(<<119, 2, "ok">>))/binary>>),
    [line(Name, Bytes) || {Name, Bytes} <- old()].

line(Name, Bytes) ->
    Term = binary_to_term(Bytes),
    io:format("~s\t~s\t~0tp~n", [Name, binary:encode_hex(Bytes), Term]).

written() ->
    [{"zero", 0}, {"one_byte", 255}, {"four_bytes", 256}, {"minus_one", -1},
     {"least_int", -16#80000000}, {"most_int", 16#7FFFFFFF}, {"above_int", 16#80000000},
     {"below_int", -16#80000001}, {"most_small", (1 bsl 59) - 1}, {"least_small", -(1 bsl 59)},
     {"most_i64", (1 bsl 63) - 1}, {"least_i64", -(1 bsl 63)}, {"above_i64", 1 bsl 63},
     {"below_i64", -(1 bsl 63) - 1}, {"most_u64", (1 bsl 64) - 1}, {"above_u64", 1 bsl 64},
     {"minus_u64", -(1 bsl 64)}, {"big_255_bytes", (1 bsl 2040) - 1}, {"big_256_bytes", 1 bsl 2040},
     {"minus_big", -(3 bsl 4000) - 7},
     {"float", 1.5}, {"float_zero", 0.0}, {"float_third", 1 / 3}, {"float_most", 1.7976931348623157e308},
     {"float_least", 5.0e-324}, {"float_minus", -2.5e-9},
     {"atom", ok}, {"atom_empty", ''}, {"atom_spaces", 'hello world'}, {"atom_umlaut", 'fünf'},
     {"atom_greek", 'αβγ'}, {"atom_emoji", '😀'},
     {"atom_longest", list_to_atom(lists:duplicate(255, $a))},
     {"atom_most_bytes", list_to_atom(lists:duplicate(255, 16#1F600))},
     {"true", true}, {"false", false}, {"undefined", undefined}, {"nil_atom", nil}, {"none", none},
     {"binary_empty", <<>>}, {"binary_text", <<"hello">>}, {"binary_utf8", <<"grüße, 世界 😀"/utf8>>},
     {"binary_bytes", <<0, 255, 254, 128>>}, {"binary_256", binary:copy(<<"x">>, 256)},
     {"tagged_bytes", {bytes, <<"hello">>}}, {"tagged_bytes_no_binary", {bytes, 5}},
     {"bits", <<5:3>>}, {"bits_long", <<"ab", 1:1>>},
     {"list_empty", []}, {"list", [a, 1, <<"b">>]}, {"charlist", "abc"}, {"charlist_empty_inside", [[], "", "x"]},
     {"list_of_bytes_and_more", [1, 2, 300]}, {"improper", [1, 2 | 3]}, {"improper_atom", [alias | tail]},
     {"list_nested", [[[[1]]], [2]]},
     {"tuple_empty", {}}, {"tuple", {ok, 1, <<"x">>}}, {"tuple_255", list_to_tuple(lists:duplicate(255, 1))},
     {"tuple_256", list_to_tuple(lists:duplicate(256, 1))},
     {"map_empty", #{}}, {"map", #{a => 1, <<"b">> => [2], {c, 3} => #{}}},
     {"map_numbers", #{1 => one, 2.5 => half}}, {"map_33", maps:from_list([{N, N} || N <- lists:seq(1, 33)])},
     {"pid", pid(<<"a@host">>, 38, 0, 1700000000)}, {"pid_serial", pid(<<"b@10.0.0.1">>, 16#FFFFFFFF, 77, 4)},
     {"pid_umlaut", pid(<<"ü@host"/utf8>>, 1, 2, 3)},
     {"port", port(<<"a@host">>, 5, 9)}, {"port_wide", wide_port(<<"a@host">>, 1 bsl 40, 9)},
     {"reference", reference(<<"a@host">>, 9, [1, 2, 3])},
     {"reference_one", reference(<<"a@host">>, 9, [7])},
     {"reference_five", reference(<<"a@host">>, 9, [262143, 2, 3, 4, 5])},
     {"export", fun lists:map/2}, {"export_umlaut", fun 'ü':'fünf'/255},
     {"fun", closure(1)}, {"fun_with_environment", closure(2)},
     {"call", {call, math, sqrt, [2.0]}},
     {"call_like", {call, reference(<<"a@host">>, 9, [1, 2, 3]), <<"mod">>, <<"fun">>,
                    [1, 2.0, <<"abc">>, #{a => 1}]}},
     {"gen_call", {'$gen_call', {pid(<<"a@host">>, 38, 0, 9),
                                 [alias | reference(<<"a@host">>, 9, [1, 2, 3])]}, {eval, <<"1+1">>, #{}}}},
     {"deep", lists:foldl(fun(_, T) -> {T} end, x, lists:seq(1, 100))}].

%% Atoms as OTP 25 writes them unless told otherwise: Latin-1.
latin1() ->
    [{"latin1_atom", ok}, {"latin1_umlaut", 'fünf'}, {"latin1_list", [ok, <<"x">>, 'größe']}].

old() ->
    Node = <<100, 0, 6, "a@host">>,
    [{"old_float", <<131, 99, (string_float(1.5))/binary>>},
     {"old_float_minus", <<131, 99, (string_float(-1.0e-200))/binary>>},
     {"old_small_atom", <<131, 115, 2, "ok">>},
     {"old_atom_utf8", <<131, 118, 0, 2, "ok">>},
     {"old_pid", <<131, 103, Node/binary, 38:32, 2:32, 1>>},
     {"old_port", <<131, 102, Node/binary, 5:32, 1>>},
     {"old_reference", <<131, 114, 3:16, Node/binary, 1, 1:32, 2:32, 3:32>>},
     {"old_integer", <<131, 98, 1:32>>},
     {"old_big", <<131, 110, 3, 0, 1, 0, 0>>},
     {"old_minus_zero", <<131, 110, 1, 1, 0>>},
     {"old_large_big", <<131, 111, 2:32, 1, 1, 1>>},
     {"old_large_tuple", <<131, 105, 2:32, 97, 1, 97, 2>>},
     {"old_large_tagged_bytes", <<131, 105, 2:32, 100, 0, 5, "bytes", 109, 1:32, "x">>},
     {"old_whole_bits", <<131, 77, 1:32, 8, "a">>},
     {"old_empty_string", <<131, 107, 0:16>>},
     {"old_list_of_lists", <<131, 108, 1:32, 97, 1, 108, 1:32, 97, 2, 107, 2:16, 3, 4>>},
     {"old_improper_in_tail", <<131, 108, 1:32, 97, 1, 108, 1:32, 97, 2, 97, 3>>}].

string_float(Float) ->
    Text = iolist_to_binary(io_lib:format("~.20e", [Float])),
    <<Text/binary, 0:((31 - byte_size(Text)) * 8)>>.

pid(Node, Id, Serial, Creation) ->
    binary_to_term(<<131, 88, 119, (byte_size(Node)), Node/binary, Id:32, Serial:32, Creation:32>>).

port(Node, Id, Creation) ->
    binary_to_term(<<131, 89, 119, (byte_size(Node)), Node/binary, Id:32, Creation:32>>).

wide_port(Node, Id, Creation) ->
    binary_to_term(<<131, 120, 119, (byte_size(Node)), Node/binary, Id:64, Creation:32>>).

reference(Node, Creation, Words) ->
    Numbers = << <<W:32>> || W <- Words >>,
    binary_to_term(<<131, 90, (length(Words)):16, 119, (byte_size(Node)), Node/binary, Creation:32, Numbers/binary>>).

%% Real closures need a real module.
closure(Which) ->
    Source = ["-module(golden).", "-export([plain/0, over/2]).", "plain() -> fun(X) -> X end.",
              "over(A, B) -> fun() -> {A, B} end."],
    Forms = [begin {ok, Tokens, _} = erl_scan:string(Line), {ok, Form} = erl_parse:parse_form(Tokens), Form end
             || Line <- Source],
    {ok, golden, Code} = compile:forms(Forms, [deterministic]),
    {module, golden} = code:load_binary(golden, "golden.beam", Code),
    case Which of
        1 -> golden:plain();
        2 -> golden:over([none, undefined], <<"bytes">>)
    end.
