%% What the functions of `py` return and refuse, against a fake node.
-module(py_call_SUITE).

-include_lib("stdlib/include/assert.hrl").

-export([all/0, suite/0, init_per_suite/1, end_per_suite/1, init_per_testcase/2,
         end_per_testcase/2]).
-export([a_call_returns_what_python_returned/1,
         every_form_of_call_sends_its_arguments/1,
         every_reason_of_the_node_reaches_the_caller/1,
         eval_and_exec_name_the_calling_process/1,
         a_cast_returns_ok_and_arrives/1,
         a_spawned_call_is_answered_by_message/1,
         a_spawned_call_that_cannot_be_sent_is_answered_by_message_too/1,
         an_await_that_times_out_cancels_and_silences_the_call/1,
         a_spawned_call_with_a_timeout_is_answered_when_it_passes/1,
         functions_without_a_target_use_the_default_node/1,
         a_connected_node_can_become_the_default_node/1,
         a_target_that_is_no_node_is_an_error/1,
         wrong_types_of_arguments_raise_in_the_caller/1,
         registered_functions_can_be_looked_up_until_they_are_taken_back/1,
         node_info_is_the_greeting_and_what_the_node_reports/1]).

suite() -> [{timetrap, {seconds, 120}}].

all() ->
    [a_call_returns_what_python_returned,
     every_form_of_call_sends_its_arguments,
     every_reason_of_the_node_reaches_the_caller,
     eval_and_exec_name_the_calling_process,
     a_cast_returns_ok_and_arrives,
     a_spawned_call_is_answered_by_message,
     a_spawned_call_that_cannot_be_sent_is_answered_by_message_too,
     an_await_that_times_out_cancels_and_silences_the_call,
     a_spawned_call_with_a_timeout_is_answered_when_it_passes,
     functions_without_a_target_use_the_default_node,
     a_connected_node_can_become_the_default_node,
     a_target_that_is_no_node_is_an_error,
     wrong_types_of_arguments_raise_in_the_caller,
     registered_functions_can_be_looked_up_until_they_are_taken_back,
     node_info_is_the_greeting_and_what_the_node_reports].

init_per_suite(Config) ->
    Epmd = cluster:start_epmd(),
    Client = cluster:start_client(Epmd),
    Fake = cluster:start_fake(Epmd),
    [{epmd, Epmd}, {client, Client}, {fake, Fake}, {target, maps:get(node, Fake)} | Config].

end_per_suite(Config) ->
    ok = cluster:stop(proplists:get_value(client, Config)),
    ok = cluster:stop(proplists:get_value(fake, Config)),
    ok = cluster:stop_epmd(proplists:get_value(epmd, Config)).

init_per_testcase(_, Config) ->
    ok = fake(Config, fun() -> fake_node:start(#{}) end),
    {ok, _} = client(Config, fun() -> application:ensure_all_started(sidewinder) end),
    Config.

end_per_testcase(_, Config) ->
    ok = client(Config, fun() -> application:stop(sidewinder) end),
    ok = client(Config, fun() -> application:unset_env(sidewinder, default_node) end),
    ok = fake(Config, fun fake_node:stop/0).

client(Config, Function) -> cluster:on(proplists:get_value(client, Config), Function).

fake(Config, Function) -> cluster:on(proplists:get_value(fake, Config), Function).

target(Config) -> proplists:get_value(target, Config).

%% --- Results ----------------------------------------------------------------------------------

a_call_returns_what_python_returned(Config) ->
    Node = target(Config),
    Result = client(Config, fun() -> py:call(Node, m, echo, [1, <<"two">>, #{three => 3.0}]) end),
    ?assertEqual({ok, [1, <<"two">>, #{three => 3.0}]}, Result).

every_form_of_call_sends_its_arguments(Config) ->
    Node = target(Config),
    Results = client(Config, fun() ->
        ok = application:set_env(sidewinder, default_node, Node),
        [py:call(m, echo, [1]),
         py:call(m, echo, [1], #{key => 2}),
         py:call(m, echo, [1], [], 1000),
         py:call(Node, m, echo, [1]),
         py:call(Node, m, echo, [1], #{}),
         py:call(Node, m, echo, [1], #{timeout => 1000}),
         py:call(Node, m, echo, [1], #{kwargs => #{key => 2}, timeout => infinity}),
         py:call(Node, m, echo, [1], #{binary => bytes})]
    end),
    ?assertEqual([{ok, [1]},
                  {ok, {[1], #{key => 2}}},
                  {ok, {[1], []}},
                  {ok, [1]},
                  {ok, [1]},
                  {ok, [1]},
                  {ok, {[1], #{key => 2}}},
                  {ok, {[1], [], #{binary => bytes}}}], Results).

every_reason_of_the_node_reaches_the_caller(Config) ->
    Node = target(Config),
    Reasons = [overloaded, cancelled, draining, {not_allowed, {os, system}},
               {bad_request, whatever}, {bad_term, <<"depth">>},
               {python, <<"ValueError">>, <<"no">>, <<"Traceback">>}, {worker_died, 1}],
    Results = client(Config, fun() ->
        [py:call(Node, m, result, [{error, Reason}]) || Reason <- Reasons]
    end),
    ?assertEqual([{error, Reason} || Reason <- Reasons], Results).

eval_and_exec_name_the_calling_process(Config) ->
    Node = target(Config),
    {Self, Results} = client(Config, fun() ->
        ok = application:set_env(sidewinder, default_node, Node),
        {self(),
         [py:eval("1 + 1"), py:eval(<<"x">>, #{x => 1}), py:eval(<<"x">>, #{x => 1}, 1000),
          py:eval(Node, "x"), py:eval(Node, "x", #{x => 1}),
          py:eval(Node, "x", #{x => 1}, #{timeout => 1000}),
          py:exec("x = 1"), py:exec(Node, <<"x = 1">>), py:exec(Node, "x = 1", #{timeout => 9})]}
    end),
    ?assertEqual([{ok, {eval, Self, <<"1 + 1">>, #{}}},
                  {ok, {eval, Self, <<"x">>, #{x => 1}}},
                  {ok, {eval, Self, <<"x">>, #{x => 1}}},
                  {ok, {eval, Self, <<"x">>, #{}}},
                  {ok, {eval, Self, <<"x">>, #{x => 1}}},
                  {ok, {eval, Self, <<"x">>, #{x => 1}}},
                  {ok, {exec, Self, <<"x = 1">>}},
                  {ok, {exec, Self, <<"x = 1">>}},
                  {ok, {exec, Self, <<"x = 1">>}}], Results).

a_cast_returns_ok_and_arrives(Config) ->
    Node = target(Config),
    Results = client(Config, fun() ->
        ok = application:set_env(sidewinder, default_node, Node),
        [py:cast(m, f, [1]), py:cast(m, f, [2], #{key => 1}), py:cast(Node, m, f, [3]),
         py:cast(Node, m, f, [4], #{kwargs => #{key => 1}})]
    end),
    ?assertEqual([ok, ok, ok, ok], Results),
    ok = cluster:eventually(fun() -> length(fake(Config, fun fake_node:casts/0)) =:= 4 end),
    ?assertEqual([{cast, m, f, [1], []}, {cast, m, f, [2], #{key => 1}}, {cast, m, f, [3], []},
                  {cast, m, f, [4], #{key => 1}}], fake(Config, fun fake_node:casts/0)).

%% --- spawn_call ---------------------------------------------------------------------------------

a_spawned_call_is_answered_by_message(Config) ->
    Node = target(Config),
    Results = client(Config, fun() ->
        ok = application:set_env(sidewinder, default_node, Node),
        ByHand = py:spawn_call(Node, m, echo, [1]),
        Received = receive {py_response, ByHand, Result} -> Result end,
        Refs = [py:spawn_call(m, echo, [2]), py:spawn_call(m, echo, [3], #{key => 1}),
                py:spawn_call(m, echo, [4], [], 1000),
                py:spawn_call(Node, m, echo, [5], #{timeout => 1000})],
        [Received | [py:await(Ref, 1000) || Ref <- lists:reverse(Refs)]]
    end),
    ?assertEqual([{ok, [1]}, {ok, [5]}, {ok, {[4], []}}, {ok, {[3], #{key => 1}}}, {ok, [2]}],
                 Results).

a_spawned_call_that_cannot_be_sent_is_answered_by_message_too(Config) ->
    Result = client(Config, fun() -> py:await(py:spawn_call(nowhere, m, f, [])) end),
    ?assertEqual({error, {bad_target, nowhere}}, Result).

an_await_that_times_out_cancels_and_silences_the_call(Config) ->
    Node = target(Config),
    Result = client(Config, fun() ->
        Ref = py:spawn_call(Node, m, late, [100]),
        Timeout = py:await(Ref, 10),
        Late = receive {py_response, Ref, _} = Message -> Message after 300 -> silent end,
        {Timeout, Late, length(erpc:call(Node, fake_node, cancelled, []))}
    end),
    ?assertEqual({{error, timeout}, silent, 1}, Result).

a_spawned_call_with_a_timeout_is_answered_when_it_passes(Config) ->
    Node = target(Config),
    {Micros, Result} = client(Config, fun() ->
        {ok, _} = py:call(Node, m, echo, []),
        Timed = timer:tc(fun() ->
            py:await(py:spawn_call(Node, m, hang, [], #{timeout => 150}), infinity)
        end),
        Cancelled = fun() -> length(erpc:call(Node, fake_node, cancelled, [])) =:= 1 end,
        ok = cluster:eventually(Cancelled),
        Timed
    end),
    ?assertEqual({error, timeout}, Result),
    ?assert(Micros >= 149000).

%% --- Targets and arguments ------------------------------------------------------------------------

functions_without_a_target_use_the_default_node(Config) ->
    Node = target(Config),
    Result = client(Config, fun() ->
        ok = application:set_env(sidewinder, default_node, Node),
        [py:call(m, echo, [1]), py:call(m, echo, [2])]
    end),
    ?assertEqual([{ok, [1]}, {ok, [2]}], Result).

a_connected_node_can_become_the_default_node(Config) ->
    Node = target(Config),
    {Result, {_, Link, _, _}, {_, Default, _, _}} = client(Config, fun() ->
        ok = py_node:connect(Node),
        ok = application:set_env(sidewinder, default_node, Node),
        {py:call(m, echo, [1]), py_link:find(Node), py_link:find('$default')}
    end),
    ?assertEqual({ok, [1]}, Result),
    ?assertEqual(Link, Default).

a_target_that_is_no_node_is_an_error(Config) ->
    Targets = [nowhere, '@host', 'name@', undefined, "py@host", <<"py@host">>, 7,
               {node, target(Config)}],
    Results = client(Config, fun() ->
        {ok, [1]} = py:call(target(Config), m, echo, [1]),
        [[py:call(Target, m, f, []), py:cast(Target, m, f, []), py:eval(Target, <<"1">>, #{}),
          py:exec(Target, <<"1">>)] || Target <- Targets]
    end),
    ?assertEqual([lists:duplicate(4, {error, {bad_target, Target}}) || Target <- Targets], Results).

wrong_types_of_arguments_raise_in_the_caller(Config) ->
    Node = target(Config),
    Wrong = [fun() -> py:call("m", f, []) end,
             fun() -> py:call(m, 1, []) end,
             fun() -> py:call(m, f, not_a_list) end,
             fun() -> py:call(m, f, [1 | 2]) end,
             fun() -> py:call(m, f, [], [{key, 1}], 1000) end,
             fun() -> py:call(m, f, [], #{}, -1) end,
             fun() -> py:call(m, f, [], #{}, 1.5) end,
             fun() -> py:call(Node, m, f, [], []) end,
             fun() -> py:call(Node, m, f, [], #{timeout => soon}) end,
             fun() -> py:call(Node, m, f, [], #{kwargs => [{key, 1}]}) end,
             fun() -> py:call(Node, m, f, [], #{binary => text}) end,
             fun() -> py:call(Node, m, f, [], #{unknown => 1}) end,
             fun() -> py:cast(m, f, #{}) end,
             fun() -> py:cast(Node, m, f, [], #{timeout => 1}) end,
             fun() -> py:eval(1) end,
             fun() -> py:eval([a, b]) end,
             fun() -> py:eval(<<"x">>, #{}, never) end,
             fun() -> py:exec(code) end,
             fun() -> py:exec(Node, "x", #{kwargs => #{}}) end,
             fun() -> py:spawn_call(m, f, {}) end,
             fun() -> py:await(not_a_ref) end,
             fun() -> py:await(make_ref(), later) end,
             fun() -> py:register_function(name, fun() -> 1 end) end,
             fun() -> py:register_function("name", fun(_) -> 1 end) end,
             fun() -> py:register_function(name, m, <<"f">>) end,
             fun() -> py:unregister_function(1) end,
             fun() -> py:node_info(<<"py@host">>) end],
    Raised = client(Config, fun() ->
        [try Function() of Value -> {returned, Value} catch error:Reason -> Reason end
         || Function <- Wrong]
    end),
    ?assertEqual([], [{N, Reason} || {N, Reason} <- lists:enumerate(Raised),
                                     Reason =/= function_clause, Reason =/= badarg]).

%% --- Others ------------------------------------------------------------------------------------

registered_functions_can_be_looked_up_until_they_are_taken_back(Config) ->
    Found = client(Config, fun() ->
        ok = py:register_function(sum, fun lists:sum/1),
        ok = py:register_function(<<"max">>, lists, max),
        Before = [py_callback:lookup(Name) || Name <- [<<"sum">>, sum, max, none]],
        ok = py:unregister_function(<<"sum">>),
        ok = py:unregister_function(never_registered),
        Before ++ [py_callback:lookup(sum)]
    end),
    ?assertEqual([{ok, fun lists:sum/1}, {ok, fun lists:sum/1}, {ok, {lists, max}},
                  {error, not_found}, {error, not_found}], Found).

node_info_is_the_greeting_and_what_the_node_reports(Config) ->
    Node = target(Config),
    {Info, Version} = client(Config, fun() ->
        ok = application:set_env(sidewinder, default_node, Node),
        {py:node_info(Node), py:version()}
    end),
    ?assertMatch({ok, #{version := 1, workers := 4, queue := 3, platform := <<"fake">>, node := Node}}, Info),
    ?assertEqual({ok, <<"3.11.2">>}, Version),
    ?assertMatch([{hello, #{version := 1, application := <<_, _/binary>>}}],
                 fake(Config, fun fake_node:log/0)).
