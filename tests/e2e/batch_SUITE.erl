%% Batches: many callers, one call of a real node.
-module(batch_SUITE).

-include_lib("stdlib/include/assert.hrl").

-export([all/0, suite/0, init_per_suite/1, end_per_suite/1, init_per_testcase/2, end_per_testcase/2]).
-compile([export_all, nowarn_export_all]).

suite() -> [{timetrap, {seconds, 60}}].

all() ->
    [each_caller_gets_the_result_of_its_item,
     what_comes_together_is_one_call,
     an_item_waits_for_others_no_longer_than_it_should,
     so_many_batches_run_at_once_as_are_allowed,
     an_exception_at_an_items_place_is_that_callers_alone,
     an_exception_of_the_function_is_everybodys,
     a_result_that_is_no_list_of_that_length_is_everybodys_error,
     a_full_queue_refuses,
     the_item_of_a_caller_that_has_gone_leaves_the_queue,
     a_batch_whose_callers_have_all_gone_is_cancelled,
     a_batch_that_takes_too_long_is_a_timeout_for_all,
     a_batcher_that_ends_tells_its_callers_and_cancels_its_calls,
     a_supervisor_starts_it_again_under_its_name,
     wrong_options_fail_at_the_door,
     the_allow_list_is_asked_for_the_function,
     a_pool_is_a_target,
     a_node_that_dies_is_told_to_the_callers_of_its_batch].

init_per_suite(Config0) ->
    Config = sw_e2e:setup(Config0),
    Context = sw_e2e:context(Config),
    Node = #{name := Name} = start_node(Context),
    Beam = sw_e2e:start_beam(Context, #{args => ["-pa", filename:dirname(code:which(py))]}),
    ok = sw_e2e:on(Beam, fun() ->
        _ = application:load(sidewinder),
        ok = application:set_env(sidewinder, default_node, Name),
        {ok, _} = application:ensure_all_started(sidewinder),
        py_node:connect(Name)
    end),
    [{node, Node}, {beam, Beam} | Config].

start_node(Context) ->
    sw_e2e:start_node(Context, #{args => ["--import", "batches", "--workers", "4"]}).

end_per_suite(Config) ->
    ok = sw_e2e:stop_beam(proplists:get_value(beam, Config)),
    ok = sw_e2e:stop_node(proplists:get_value(node, Config)),
    ok = sw_e2e:teardown(Config).

init_per_testcase(_, Config) ->
    run(Config, fun(_) -> _ = [{ok, _} = py:call(batches, F, []) || F <- [seen, close_gate, were_cancelled]], ok end),
    Config.

%% No process of a batch or batcher is left behind.
end_per_testcase(_, Config) ->
    ok = sw_e2e:eventually(fun() -> run(Config, fun(_) -> left() =:= [] end) end, 10000).

left() ->
    [Pid || Pid <- processes(), {current_function, {M, _, _}} <- [process_info(Pid, current_function)],
            {dictionary, D} <- [process_info(Pid, dictionary)],
            M =:= py_batch orelse lists:keyfind('$initial_call', 1, D) =:= {'$initial_call', {py_batch, init, 1}}].

run(Config, Body) ->
    #{name := Node} = proplists:get_value(node, Config),
    sw_e2e:on(proplists:get_value(beam, Config), fun() -> Body(Node) end, 50000).

%% A batcher for the time of a test.
with(Options, Body) ->
    {ok, Batcher} = py_batch:start_link(maps:merge(#{module => batches}, Options)),
    try
        Body(Batcher)
    after
        unlink(Batcher),
        gen_server:stop(Batcher)
    end.

%% The results of callers that call all at once, in the order of the items.
all_call(Batcher, Items) ->
    results(start_callers(Batcher, Items)).

start_callers(Batcher, Items) ->
    Self = self(),
    [spawn_monitor(fun() -> Self ! {self(), py_batch:call(Batcher, Item)} end) || Item <- Items].

results(Callers) ->
    [receive
         {Pid, Result} -> true = demonitor(Ref, [flush]), Result;
         {'DOWN', Ref, process, Pid, Reason} -> {died, Reason}
     after 30000 ->
         never
     end || {Pid, Ref} <- Callers].

seen() ->
    {ok, Sizes} = py:call(batches, seen, []),
    Sizes.

eventually(Look, Wanted) ->
    eventually(Look, Wanted, erlang:monotonic_time(millisecond) + 5000).

eventually(Look, Wanted, Deadline) ->
    case Look() of
        Wanted -> ok;
        Other ->
            ?assert(erlang:monotonic_time(millisecond) < Deadline, {Wanted, Other}),
            timer:sleep(5),
            eventually(Look, Wanted, Deadline)
    end.

queued(Batcher) -> maps:get(queued, py_batch:info(Batcher)).

%% --- What comes back ----------------------------------------------------------------------------------

each_caller_gets_the_result_of_its_item(Config) ->
    run(Config, fun(Node) ->
        Items = lists:seq(1, 1000),
        Squares = [{ok, N * N} || N <- Items],
        [with(Options, fun(B) -> ?assertEqual(Squares, all_call(B, Items)) end)
         || Options <- [#{function => square}, #{function => square, target => Node, concurrency => 3},
                        #{function => square_async, max_items => 7}, #{function => square, max_wait => 2}]],
        with(#{function => 'model.predict'}, fun(B) -> ?assertEqual({ok, 1.5}, py_batch:call(B, 1.0)) end),
        Terms = [1, 1.5, ok, <<"text">>, <<255>>, [1, {a, b}], #{k => v}, self(), true, [], none],
        with(#{function => same, max_wait => 5}, fun(B) -> ?assertEqual([{ok, T} || T <- Terms], all_call(B, Terms)) end),
        with(#{function => kinds, binary => bytes}, fun(B) -> ?assertEqual({ok, <<"bytes">>}, py_batch:call(B, <<"x">>)) end)
    end).

what_comes_together_is_one_call(Config) ->
    run(Config, fun(_) ->
        with(#{function => square, max_items => 20, max_wait => 5000}, fun(B) ->
            % Full batches do not wait.
            _ = all_call(B, lists:seq(1, 60)),
            ?assertEqual([20, 20, 20], seen()),
            ?assertMatch(#{batches := 3, items := 60, queued := 0}, py_batch:info(B))
        end),
        with(#{function => slow, max_items => 100}, fun(B) ->
            % What comes while one runs is the next.
            One = start_callers(B, [0]),
            eventually(fun() -> maps:get(running, py_batch:info(B)) end, 1),
            Others = start_callers(B, lists:seq(1, 50)),
            _ = results(One ++ Others),
            ?assertEqual([1, 50], seen())
        end)
    end).

an_item_waits_for_others_no_longer_than_it_should(Config) ->
    run(Config, fun(_) ->
        with(#{function => square, max_wait => 100}, fun(B) ->
            {Alone, {ok, 9}} = timer:tc(fun() -> py_batch:call(B, 3) end),
            ?assert(Alone >= 95_000, Alone),
            [1] = seen()
        end),
        with(#{function => square, max_wait => 600}, fun(B) ->
            Callers = start_callers(B, [1]),
            timer:sleep(30),
            _ = results(Callers ++ start_callers(B, [2])),
            ?assertEqual([2], seen())
        end)
    end).

so_many_batches_run_at_once_as_are_allowed(Config) ->
    run(Config, fun(_) ->
        with(#{function => slow, max_items => 2, concurrency => 3}, fun(B) ->
            ?assertEqual([{ok, N} || N <- lists:seq(1, 16)], all_call(B, lists:seq(1, 16))),
            ?assertEqual({ok, 3}, py:call(batches, most_at_once, [])),
            ?assertEqual(16, lists:sum(seen()))
        end)
    end).

%% --- What goes wrong -----------------------------------------------------------------------------------

an_exception_at_an_items_place_is_that_callers_alone(Config) ->
    run(Config, fun(_) ->
        with(#{function => reciprocal, max_items => 4, max_wait => 5000}, fun(B) ->
            [Half, Zero, Again, Quarter] = all_call(B, [2, 0, 0, 4]),
            ?assertEqual({{ok, 0.5}, {ok, 0.25}}, {Half, Quarter}),
            ?assertMatch({error, {python, <<"ZeroDivisionError">>, <<"division by zero">>, _}}, Zero),
            {error, {python, _, _, Traceback}} = Again,
            ?assertNotEqual(nomatch, string:find(Traceback, "in reciprocal")),
            ?assertMatch(#{batches := 1}, py_batch:info(B))
        end)
    end).

an_exception_of_the_function_is_everybodys(Config) ->
    run(Config, fun(_) ->
        with(#{function => fails, max_items => 3, max_wait => 5000}, fun(B) ->
            [?assertMatch({error, {python, <<"LookupError">>, <<"all 3">>, _}}, Result) || Result <- all_call(B, [1, 2, 3])]
        end),
        with(#{function => no_term}, fun(B) ->
            ?assertMatch({error, {python, <<"TypeError">>, _, _}}, py_batch:call(B, 1))
        end),
        with(#{function => missing}, fun(B) ->
            ?assertMatch({error, {python, <<"AttributeError">>, _, _}}, py_batch:call(B, 1))
        end)
    end).

a_result_that_is_no_list_of_that_length_is_everybodys_error(Config) ->
    run(Config, fun(_) ->
        with(#{function => too_few, max_items => 3, max_wait => 5000}, fun(B) ->
            [?assertMatch({error, {python, <<"erlang.exceptions.BatchError">>,
                                   <<"the function returned 2 results for 3 items">>, _}}, Result)
             || Result <- all_call(B, [1, 2, 3])]
        end),
        with(#{function => no_list}, fun(B) ->
            ?assertMatch({error, {python, <<"erlang.exceptions.BatchError">>, _, _}}, py_batch:call(B, 1))
        end)
    end).

a_full_queue_refuses(Config) ->
    run(Config, fun(_) ->
        with(#{function => gated, max_items => 1, max_queue => 3}, fun(B) ->
            First = start_callers(B, [0]),
            eventually(fun() -> maps:get(running, py_batch:info(B)) end, 1),
            Waiting = start_callers(B, [1, 2, 3]),
            eventually(fun() -> queued(B) end, 3),
            ?assertEqual({error, overloaded}, py_batch:call(B, 4)),
            ?assertMatch(#{refused := 1, queued := 3}, py_batch:info(B)),
            {ok, _} = py:call(batches, open_gate, []),
            ?assertEqual([{ok, N} || N <- [0, 1, 2, 3]], results(First ++ Waiting))
        end)
    end).

the_item_of_a_caller_that_has_gone_leaves_the_queue(Config) ->
    run(Config, fun(_) ->
        with(#{function => gated, max_items => 10}, fun(B) ->
            First = start_callers(B, [first]),
            eventually(fun() -> maps:get(running, py_batch:info(B)) end, 1),
            [{Doomed, _}, Stays] = start_callers(B, [doomed, stays]),
            eventually(fun() -> queued(B) end, 2),
            exit(Doomed, kill),
            eventually(fun() -> queued(B) end, 1),
            ?assertEqual({error, timeout}, py_batch:call(B, late, 20)),
            eventually(fun() -> queued(B) end, 1),
            {ok, _} = py:call(batches, open_gate, []),
            ?assertEqual([{ok, first}, {ok, stays}], results(First ++ [Stays])),
            ?assertEqual([1, 1], seen()),
            receive {_, {ok, late}} = Late -> ?assertEqual(none, Late) after 50 -> ok end
        end)
    end).

a_batch_whose_callers_have_all_gone_is_cancelled(Config) ->
    run(Config, fun(_) ->
        with(#{function => gated_async, max_items => 2, max_wait => 5000}, fun(B) ->
            [{One, _}, {Two, _}] = start_callers(B, [1, 2]),
            eventually(fun() -> maps:get(running, py_batch:info(B)) end, 1),
            exit(One, kill),
            timer:sleep(50),
            ?assertMatch(#{running := 1}, py_batch:info(B)),
            exit(Two, kill),
            eventually(fun() -> py:call(batches, were_cancelled, []) end, {ok, [<<"CancelledError">>]}),
            eventually(fun() -> maps:get(running, py_batch:info(B)) end, 0)
        end)
    end).

a_batch_that_takes_too_long_is_a_timeout_for_all(Config) ->
    run(Config, fun(_) ->
        with(#{function => gated_async, max_items => 2, max_wait => 5000, timeout => 100}, fun(B) ->
            ?assertEqual([{error, timeout}, {error, timeout}], all_call(B, [1, 2])),
            eventually(fun() -> py:call(batches, were_cancelled, []) end, {ok, [<<"CancelledError">>]})
        end)
    end).

a_batcher_that_ends_tells_its_callers_and_cancels_its_calls(Config) ->
    run(Config, fun(_) ->
        [begin
             {ok, B} = py_batch:start_link(#{module => batches, function => gated_async, max_items => 1}),
             unlink(B),
             Callers = start_callers(B, [1, 2]),
             eventually(fun() -> queued(B) end, 1),
             eventually(fun seen/0, [1]),
             End(B),
             ?assertMatch([{error, {down, _}}, {error, {down, _}}], results(Callers)),
             eventually(fun() -> py:call(batches, were_cancelled, []) end, {ok, [<<"CancelledError">>]}),
             ?assertMatch({error, {down, noproc}}, py_batch:call(B, 3))
         end || End <- [fun gen_server:stop/1, fun(B) -> exit(B, kill) end]],
        ?assertMatch({error, {down, noproc}}, py_batch:call(nobody_of_that_name, 3))
    end).

a_supervisor_starts_it_again_under_its_name(Config) ->
    run(Config, fun(_) ->
        {ok, Sup} = supervisor:start_link(?MODULE, [#{module => batches, function => square, name => squares}]),
        {ok, 4} = py_batch:call(squares, 2),
        Before = whereis(squares),
        exit(Before, kill),
        eventually(fun() -> is_pid(whereis(squares)) andalso whereis(squares) =/= Before end, true),
        ?assertEqual({ok, 9}, py_batch:call(squares, 3)),
        ?assertEqual({ok, 16}, py_batch:call({squares, node()}, 4)),
        unlink(Sup),
        gen_server:stop(Sup)
    end).

%% As a supervisor.
init(Options) ->
    {ok, {#{}, [py_batch:child_spec(One) || One <- Options]}}.

wrong_options_fail_at_the_door(Config) ->
    run(Config, fun(_) ->
        [?assertError(badarg, py_batch:start_link(Options))
         || Options <- [#{}, #{module => m}, #{module => m, function => f, max_items => 0},
                        #{module => m, function => f, max_wait => -1}, #{module => "m", function => f},
                        #{module => m, function => f, unheard => 1}]]
    end).

%% Not for the entry through which a batch comes, which is no way round it.
the_allow_list_is_asked_for_the_function(Config) ->
    Context = sw_e2e:context(Config),
    Other = #{name := Name} = sw_e2e:start_node(Context, #{args => ["--import", "batches", "--allow", "batches.square"]}),
    run(Config, fun(_) ->
        with(#{function => square, target => Name}, fun(B) -> ?assertEqual({ok, 9}, py_batch:call(B, 3)) end),
        with(#{function => same, target => Name}, fun(B) ->
            ?assertMatch({error, {not_allowed, {_, _}}}, py_batch:call(B, 3))
        end),
        ?assertMatch({error, {not_allowed, _}}, py:call(Name, 'erlang._batch', run, [batches, same, [1]]))
    end),
    ok = sw_e2e:stop_node(Other).

%% --- Nodes ------------------------------------------------------------------------------------------------

a_pool_is_a_target(Config) ->
    Context = sw_e2e:context(Config),
    Other = #{name := Second} = start_node(Context),
    run(Config, fun(First) ->
        {ok, _} = py_pool:start(models, #{nodes => [First, Second]}),
        with(#{function => slow, target => models, max_items => 5, concurrency => 2}, fun(B) ->
            ?assertEqual([{ok, N} || N <- lists:seq(1, 20)], all_call(B, lists:seq(1, 20)))
        end),
        ?assert(lists:sum(seen()) > 0),
        {ok, Sizes} = py:call(Second, batches, seen, []),
        ?assert(lists:sum(Sizes) > 0),
        ok = py_pool:stop(models)
    end),
    ok = sw_e2e:stop_node(Other).

a_node_that_dies_is_told_to_the_callers_of_its_batch(Config) ->
    Context = sw_e2e:context(Config),
    Other = #{name := Name} = start_node(Context),
    run(Config, fun(_) ->
        with(#{function => crash, target => Name, max_items => 2, max_wait => 200}, fun(B) ->
            ?assertMatch([{error, {down, _}}, {error, {down, _}}], all_call(B, [1, 2])),
            ?assertMatch({error, {down, _}}, py_batch:call(B, 3))
        end)
    end),
    ok = sw_e2e:stop_node(Other).
