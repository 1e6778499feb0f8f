%% The trace context of a process: what its calls take to a node, and what a function that Python calls
%% finds. Against a fake node.
-module(py_trace_SUITE).

-include_lib("stdlib/include/assert.hrl").

-export([all/0, suite/0, init_per_suite/1, end_per_suite/1, init_per_testcase/2, end_per_testcase/2]).
-compile([export_all, nowarn_export_all]).

-define(PARENT, <<"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01">>).
-define(OTHER, <<"00-11111111111111111111111111111111-2222222222222222-00">>).

suite() -> [{timetrap, {seconds, 60}}].

all() ->
    [without_a_trace_context_requests_are_what_they_were,
     every_form_of_call_takes_the_option,
     what_a_process_sets_goes_along_with_its_calls_and_no_others,
     the_current_span_of_opentelemetry_goes_along_where_it_is_loaded,
     an_opentelemetry_that_fails_hurts_no_call,
     what_is_no_trace_context_fails_at_the_door,
     a_function_that_python_calls_has_the_context_of_the_call,
     a_function_of_a_call_without_a_context_has_none,
     a_trace_item_that_makes_no_sense_is_ignored].

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
    client(Config, fun() ->
        _ = application:stop(sidewinder),
        [begin _ = code:purge(M), _ = code:delete(M), code:purge(M) end || M <- [otel_propagator_text_map, otel_ctx]]
    end),
    fake(Config, fun() -> whereis(py) =/= undefined andalso fake_node:stop() end).

client(Config, Function) -> cluster:on(proplists:get_value(client, Config), Function).
fake(Config, Function) -> cluster:on(proplists:get_value(fake, Config), Function).
target(Config) -> proplists:get_value(target, Config).

%% --- To Python --------------------------------------------------------------------------------------

without_a_trace_context_requests_are_what_they_were(Config) ->
    Node = target(Config),
    ?assertEqual([{ok, [1]}, {ok, {[1], #{a => 1}}}, {ok, {[1], [], #{binary => str}}}, {ok, [1]}, ok],
                 client(Config, fun() -> forms(Node, #{}) end)),
    ?assertEqual([{cast, m, f, [1], []}], casts(Config)).

every_form_of_call_takes_the_option(Config) ->
    Node = target(Config),
    Traced = #{trace => ?PARENT},
    ?assertEqual([{ok, {[1], [], Traced}}, {ok, {[1], #{a => 1}, Traced}}, {ok, {[1], [], Traced#{binary => str}}},
                  {ok, {[1], [], Traced}}, ok],
                 client(Config, fun() -> forms(Node, Traced) end)),
    ?assertEqual([{cast, m, f, [1], [], Traced}], casts(Config)),
    State = {?PARENT, <<"a=b">>},
    ?assertEqual({ok, {[2], [], #{trace => State}}},
                 client(Config, fun() -> py:call(Node, m, echo, [2], #{trace => State}) end)).

forms(Node, Options) ->
    [py:call(Node, m, echo, [1], Options),
     py:call(Node, m, echo, [1], Options#{kwargs => #{a => 1}}),
     py:call(Node, m, echo, [1], Options#{binary => str}),
     py:await(py:spawn_call(Node, m, echo, [1], Options)),
     py:cast(Node, m, f, [1], Options)].

casts(Config) ->
    ok = cluster:eventually(fun() -> fake(Config, fun fake_node:casts/0) =/= [] end),
    fake(Config, fun fake_node:casts/0).

what_a_process_sets_goes_along_with_its_calls_and_no_others(Config) ->
    Node = target(Config),
    {Before, Mine, Overridden, Others, After} = client(Config, fun() ->
        Before = py:trace_context(),
        ok = py:set_trace_context(?PARENT),
        ?PARENT = py:trace_context(),
        Mine = [py:call(Node, m, echo, [1]), py:await(py:spawn_call(Node, m, echo, [1])), py:cast(Node, m, f, [1])],
        Overridden = py:call(Node, m, echo, [1], #{trace => ?OTHER}),
        Self = self(),
        spawn(fun() -> Self ! {other, py:call(Node, m, echo, [1])} end),
        Others = receive {other, Result} -> Result end,
        ok = py:set_trace_context(undefined),
        {Before, Mine, Overridden, Others, py:call(Node, m, echo, [1])}
    end),
    Traced = #{trace => ?PARENT},
    ?assertEqual(undefined, Before),
    ?assertEqual([{ok, {[1], [], Traced}}, {ok, {[1], [], Traced}}, ok], Mine),
    ?assertEqual({ok, {[1], [], #{trace => ?OTHER}}}, Overridden),
    ?assertEqual([{ok, [1]}, {ok, [1]}], [Others, After]),
    ?assertEqual([{cast, m, f, [1], [], Traced}], casts(Config)).

%% A module of that name with these functions.
load(Module, Functions) ->
    Exports = ["-export([" ++ lists:join(", ", [Name || {Name, _} <- Functions]) ++ "])."],
    Source = ["-module(" ++ atom_to_list(Module) ++ ")." | Exports] ++ [Body || {_, Body} <- Functions],
    Forms = [begin {ok, Tokens, _} = erl_scan:string(lists:flatten(Line)), {ok, Form} = erl_parse:parse_form(Tokens), Form end
             || Line <- Source],
    {ok, Module, Binary} = compile:forms(Forms),
    {module, Module} = code:load_binary(Module, atom_to_list(Module), Binary),
    ok.

load_opentelemetry() ->
    ok = load(otel_propagator_text_map,
              [{"inject/1", "inject(Carrier) -> case get(otel_headers) of undefined -> Carrier; Headers -> Headers ++ Carrier end."},
               {"extract/1", "extract(Headers) -> put(otel_headers, Headers), token."}]),
    ok = load(otel_ctx, [{"clear/0", "clear() -> erase(otel_headers), ok."}]).

the_current_span_of_opentelemetry_goes_along_where_it_is_loaded(Config) ->
    Node = target(Config),
    Results = client(Config, fun() ->
        ok = load_opentelemetry(),
        None = py:call(Node, m, echo, [1]),
        ok = py:set_trace_context(?OTHER),
        Fallback = py:call(Node, m, echo, [1]),
        put(otel_headers, [{<<"baggage">>, <<"x=y">>}, {<<"traceparent">>, ?PARENT}]),
        Span = py:call(Node, m, echo, [1]),
        put(otel_headers, [{<<"tracestate">>, <<"a=b">>}, {<<"traceparent">>, ?PARENT}]),
        State = py:call(Node, m, echo, [1]),
        Option = py:call(Node, m, echo, [1], #{trace => ?OTHER}),
        [None, Fallback, Span, State, Option]
    end),
    Of = fun(Trace) -> {ok, {[1], [], #{trace => Trace}}} end,
    ?assertEqual([{ok, [1]}, Of(?OTHER), Of(?PARENT), Of({?PARENT, <<"a=b">>}), Of(?OTHER)], Results).

an_opentelemetry_that_fails_hurts_no_call(Config) ->
    Node = target(Config),
    Results = client(Config, fun() ->
        [begin ok = load(otel_propagator_text_map, [{"inject/1", Body}]), py:call(Node, m, echo, [1]) end
         || Body <- ["inject(_) -> error(broken).", "inject(_) -> nonsense.", "inject(_) -> [{<<\"traceparent\">>, 7}].",
                     "inject(_) -> [{<<\"traceparent\">>, binary:copy(<<\"x\">>, 10000)}]."]]
    end),
    ?assertEqual([{ok, [1]}], lists:usort(Results)).

what_is_no_trace_context_fails_at_the_door(Config) ->
    Node = target(Config),
    Wrong = [abc, "text", 7, {?PARENT}, {?PARENT, 7}, binary:copy(<<"x">>, 257), {?PARENT, binary:copy(<<"x">>, 513)}],
    Results = client(Config, fun() ->
        [catch Function() || Trace <- Wrong, Function <- [fun() -> py:call(Node, m, echo, [1], #{trace => Trace}) end,
                                                          fun() -> py:cast(Node, m, f, [1], #{trace => Trace}) end,
                                                          fun() -> py:set_trace_context(Trace) end]]
    end),
    [?assertMatch({'EXIT', {badarg, _}}, Result) || Result <- Results],
    ?assertEqual(undefined, client(Config, fun py:trace_context/0)).

%% --- From Python --------------------------------------------------------------------------------------

%% Has the node ask for these items, and returns their results.
asked(Config, Items) ->
    #{node := Client} = proplists:get_value(client, Config),
    client(Config, fun() ->
        ok = py:register_function(context, fun([]) -> [py:trace_context(), get(otel_headers), py_trace:onto({cast, m, f, [], []})] end)
    end),
    fake(Config, fun() ->
        ok = fake_node:stop(),
        true = register(py, self()),
        {py_callback, Client} ! {'$py_hello', self()},
        Link = receive {'$py_callback', Pid} -> Pid after 5000 -> error(no_answer) end,
        Link ! {'$py_calls', Items},
        Wanted = length([Id || {call, Id, _, _, _} <- Items]),
        Results = collect(Wanted, []),
        true = unregister(py),
        lists:sort(Results)
    end).

collect(0, Results) -> Results;
collect(Left, Results) ->
    receive {'$py_results', More} -> collect(Left - length(More), More ++ Results) after 5000 -> error({missing, Left, Results}) end.

a_function_that_python_calls_has_the_context_of_the_call(Config) ->
    Stated = {?OTHER, <<"a=b">>},
    Items = [{trace, 1, ?PARENT, <<>>}, {call, 1, 0, <<"context">>, []}, {trace, 2, ?OTHER, <<"a=b">>}, {call, 2, 7, <<"context">>, []}],
    ?assertEqual([{1, {ok, [?PARENT, undefined, {cast, m, f, [], [], #{trace => ?PARENT}}]}},
                  {2, {ok, [Stated, undefined, {cast, m, f, [], [], #{trace => Stated}}]}}], asked(Config, Items)),
    ok = client(Config, fun load_opentelemetry/0),
    ok = fake(Config, fun() -> fake_node:start(#{}) end),
    ?assertMatch([{1, {ok, [_, [{<<"traceparent">>, ?PARENT}], _]}},
                  {2, {ok, [_, [{<<"traceparent">>, ?OTHER}, {<<"tracestate">>, <<"a=b">>}], _]}}], asked(Config, Items)).

%% The same process runs both calls of a thread.
a_function_of_a_call_without_a_context_has_none(Config) ->
    ok = client(Config, fun load_opentelemetry/0),
    Items = [{trace, 1, ?PARENT, <<>>}, {call, 1, 7, <<"context">>, []}, {call, 2, 7, <<"context">>, []},
             {trace, 3, ?PARENT, <<>>}, {call, 4, 7, <<"context">>, []}, {call, 3, 7, <<"context">>, []}],
    [First | Rest] = asked(Config, Items),
    ?assertMatch({1, {ok, [?PARENT | _]}}, First),
    ?assertEqual([{N, {ok, [undefined, undefined, {cast, m, f, [], []}]}} || N <- [2, 3, 4]], Rest).

a_trace_item_that_makes_no_sense_is_ignored(Config) ->
    Items = [{trace, 1, abc, <<>>}, {call, 1, 0, <<"context">>, []}, {trace, 2, ?PARENT, 7}, {call, 2, 0, <<"context">>, []},
             {trace, 3, binary:copy(<<"x">>, 300), <<>>}, {call, 3, 0, <<"context">>, []}, {trace}, {trace, 4},
             {call, 4, 0, <<"context">>, []}],
    ?assertEqual([{N, {ok, [undefined, undefined, {cast, m, f, [], []}]}} || N <- [1, 2, 3, 4]], asked(Config, Items)).
