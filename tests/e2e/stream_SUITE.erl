%% Streams between the real node and real BEAMs, both ways.
-module(stream_SUITE).

-include_lib("stdlib/include/assert.hrl").

-export([all/0, suite/0, init_per_suite/1, end_per_suite/1, end_per_testcase/2]).
-compile([export_all, nowarn_export_all]).

suite() -> [{timetrap, {seconds, 120}}].

all() ->
    [all_items_of_anything_to_iterate_over_come_as_a_list,
     arguments_options_and_targets_are_those_of_a_call,
     what_cannot_be_streamed_is_refused_at_the_start,
     a_list_ends_at_its_bound_and_at_its_timeout,
     items_come_as_messages_as_many_as_were_asked_for,
     a_generator_is_not_stepped_without_demand,
     next_pulls_one_item_after_the_other,
     an_item_does_not_wait_for_the_next_one,
     an_exception_comes_after_the_items_before_it,
     an_item_that_is_no_term_is_the_end,
     values_are_sent_and_errors_thrown_into_a_generator,
     a_cancelled_stream_closes_its_generator_and_is_silent,
     a_generator_that_computes_is_interrupted,
     a_generator_that_waits_in_c_is_closed_when_it_comes_back,
     blocked_generators_hold_no_other_stream,
     the_death_of_the_owner_cancels,
     the_loss_of_the_node_is_told,
     another_process_may_own_a_stream,
     a_slow_consumer_of_large_items_holds_the_generator,
     streams_are_bounded_for_an_owner_and_leave_nothing,
     nonsense_sent_to_a_stream_hurts_nobody,
     more_generators_than_threads_all_move_on,
     a_node_that_is_stopped_does_not_wait_for_its_streams,
     the_allow_list_counts_for_streams,
     worker_processes_make_no_streams_and_say_so,
     python_iterates_over_a_producer_of_any_kind,
     python_iterates_over_what_a_registered_function_produces,
     a_producer_makes_no_more_than_was_asked_for,
     a_producer_ends_when_python_leaves_the_loop,
     what_ends_a_producer_is_raised_after_its_items,
     a_producer_has_one_consumer,
     a_cancelled_call_ends_its_producer,
     many_items_pass_in_flat_memory].

init_per_suite(Config0) ->
    Config = sw_e2e:setup(Config0),
    Context = sw_e2e:context(Config),
    Node = sw_e2e:start_node(Context, #{args => ["--import", "streaming"]}),
    [{node, Node}, {beam, application_beam(Context, Node)} | Config].

application_beam(Context, #{name := Name}) ->
    Beam = sw_e2e:start_beam(Context, #{args => ["-pa", filename:dirname(code:which(py))]}),
    ok = sw_e2e:on(Beam, fun() ->
        _ = application:load(sidewinder),
        ok = application:set_env(sidewinder, default_node, Name),
        {ok, _} = application:ensure_all_started(sidewinder),
        ok = py_node:connect(Name),
        py:register_function(where, fun([]) -> node() end)
    end),
    Beam.

end_per_suite(Config) ->
    true = sw_e2e:alive(maps:get(program, proplists:get_value(node, Config))),
    ok = sw_e2e:stop_beam(proplists:get_value(beam, Config)),
    ok = sw_e2e:stop_node(proplists:get_value(node, Config)),
    ok = sw_e2e:teardown(Config).

%% No stream is left, whatever a test did with it.
end_per_testcase(_, Config) ->
    ok = run(Config, fun(_) -> none_is_left() end).

none_is_left() ->
    sw_e2e:eventually(fun() -> py:call(streaming, streams, []) =:= {ok, 0} end, 5000).

run(Config, Body) ->
    #{name := Node} = proplists:get_value(node, Config),
    sw_e2e:on(proplists:get_value(beam, Config), fun() -> Body(Node) end, 20000).

%% --- all items ------------------------------------------------------------------------------------

all_items_of_anything_to_iterate_over_come_as_a_list(Config) ->
    run(Config, fun(_) ->
        [?assertEqual({F, {ok, lists:seq(0, 2999)}}, {F, py:stream(streaming, F, [3000])})
         || F <- [count, acount, promised]],
        ?assertEqual({ok, [9, 8, 7, 6, 5, 4, 3, 2, 1, 0]}, py:stream(streaming, 'Pages', [10])),
        ?assertEqual({ok, [a, <<"b">>, {3}]}, py:stream(streaming, a_list, [[a, <<"b">>, {3}]])),
        ?assertEqual({ok, []}, py:stream(streaming, a_list, [[]])),
        ?assertEqual({ok, [0, 1, 2]}, py:stream(builtins, range, [3]))
    end).

arguments_options_and_targets_are_those_of_a_call(Config) ->
    run(Config, fun(Node) ->
        Kwargs = #{first => 1, last => 4},
        All = {ok, [1, 2, 3]},
        ?assertEqual(All, py:stream(streaming, keywords, [], Kwargs)),
        ?assertEqual(All, py:stream(<<"streaming">>, <<"keywords">>, [], Kwargs, 5000)),
        ?assertEqual(All, py:stream(Node, streaming, keywords, [], #{kwargs => Kwargs, binary => bytes})),
        ?assertEqual({ok, [0, 1]}, py:stream(Node, streaming, count, [2])),
        ?assertError(badarg, py:stream(Node, streaming, count, [2], #{demand => 1})),
        ?assertError(badarg, py:stream_start(streaming, count, [2], #{demand => -1})),
        {ok, Stream} = py:stream_start(Node, streaming, keywords, [], #{kwargs => Kwargs}),
        ?assertEqual([{ok, 1}, {ok, 2}, {ok, 3}, done, done], [py_stream:next(Stream) || _ <- lists:seq(1, 5)]),
        {ok, Where} = py:stream(streaming, tracked, []),
        ?assertMatch([<<"stream-", _/binary>>, _], Where),
        ?assertEqual(atom_to_binary(node()), atom_to_binary(lists:last(Where)))
    end).

what_cannot_be_streamed_is_refused_at_the_start(Config) ->
    run(Config, fun(_) ->
        ?assertMatch({error, {python, <<"TypeError">>, <<"a stream needs something", _/binary>>, _}},
                     py:stream_start(streaming, a_number, [])),
        ?assertMatch({error, {python, <<"KeyError">>, _, _}}, py:stream_start(streaming, refuses, [])),
        ?assertMatch({error, {python, <<"AttributeError">>, _, _}}, py:stream(streaming, nothing, [])),
        ?assertMatch({error, {python, <<"ModuleNotFoundError">>, _, _}}, py:stream(no_such_module, f, []))
    end).

a_list_ends_at_its_bound_and_at_its_timeout(Config) ->
    run(Config, fun(Node) ->
        ?assertEqual({error, {max_items, 10}}, py:stream(Node, streaming, noted, [bound], #{max_items => 10})),
        ?assertEqual({ok, lists:seq(0, 9)}, py:stream(Node, streaming, count, [10], #{max_items => 10})),
        ?assertEqual({error, timeout}, py:stream(Node, streaming, blocked, [late], #{timeout => 100})),
        {ok, _} = py:call(streaming, open_gate, [late])
    end).

%% --- demand -----------------------------------------------------------------------------------------

items_come_as_messages_as_many_as_were_asked_for(Config) ->
    run(Config, fun(_) ->
        [begin
            {ok, Stream} = py:stream_start(streaming, F, [5], #{demand => 2}),
            Ref = py_stream:ref(Stream),
            ?assertEqual([0, 1], take(Ref, 2)),
            ok = py_stream:ask(Stream, 1),
            ?assertEqual([2], take(Ref, 1)),
            ok = py_stream:ask(Stream, 100),
            ?assertEqual([3, 4], take(Ref, 2)),
            receive {py_stream, Ref, done} -> ok end,
            receive {py_stream, Ref, More} -> error(More) after 20 -> ok end
         end || F <- [count, acount]],
        {ok, Stream} = py:stream_start(streaming, count, [100], #{demand => 101, batch => 7}),
        Ref = py_stream:ref(Stream),
        Sizes = sizes(Ref),
        ?assertEqual(100, lists:sum(Sizes)),
        ?assert(lists:max(Sizes) =< 7)
    end).

sizes(Ref) ->
    receive
        {py_stream, Ref, {items, Items}} -> [length(Items) | sizes(Ref)];
        {py_stream, Ref, done} -> []
    end.

take(_, 0) -> [];
take(Ref, N) when N > 0 ->
    receive {py_stream, Ref, {items, Items}} -> Items ++ take(Ref, N - length(Items)) end.

a_generator_is_not_stepped_without_demand(Config) ->
    run(Config, fun(_) ->
        [begin
            {ok, Stream} = py:stream_start(streaming, F, [F]),
            timer:sleep(30),
            ?assertEqual([], noted(F)),
            ok = py_stream:ask(Stream, 3),
            ?assertEqual([0, 1, 2], take(py_stream:ref(Stream), 3)),
            timer:sleep(30),
            ?assertEqual([0, 1, 2], noted(F)),
            ok = py_stream:cancel(Stream),
            ok = closed(F)
         end || F <- [noted, anoted]]
    end).

noted(Name) ->
    {ok, Events} = py:call(streaming, events, []),
    [What || {Who, What} <- Events, Who =:= Name].

closed(Name) ->
    sw_e2e:eventually(fun() ->
        Noted = noted(Name),
        lists:member(<<"closed">>, Noted) orelse {Name, Noted}
    end, 5000).

next_pulls_one_item_after_the_other(Config) ->
    run(Config, fun(_) ->
        [begin
            {ok, Stream} = py:stream_start(streaming, F, [100], #{demand => Demand}),
            ?assertEqual([{ok, N} || N <- lists:seq(0, 99)] ++ [done, done],
                         [py_stream:next(Stream, 5000) || _ <- lists:seq(1, 102)])
         end || F <- [count, acount], Demand <- [0, 1, 2, 10, 1000]],
        {ok, Late} = py:stream_start(streaming, blocked, [next]),
        ?assertEqual({ok, <<"first">>}, py_stream:next(Late)),
        ?assertEqual({error, timeout}, py_stream:next(Late, 50)),
        {ok, _} = py:call(streaming, open_gate, [next]),
        ?assertEqual({ok, <<"second">>}, py_stream:next(Late)),
        ?assertEqual(done, py_stream:next(Late)),
        ?assertEqual([], [Key || {{py_stream, _} = Key, _} <- get()])
    end).

an_item_does_not_wait_for_the_next_one(Config) ->
    run(Config, fun(_) ->
        {ok, Slow} = py:stream_start(streaming, trickle, [5, 0.5], #{demand => 5}),
        receive {py_stream, _, {items, First}} -> ?assertEqual([0], First) after 5000 -> error(late) end,
        ok = py_stream:cancel(Slow),
        {ok, Mixed} = py:stream_start(streaming, blocked, [mixed], #{demand => 2}),
        ?assertEqual({ok, <<"first">>}, py_stream:next(Mixed, 5000)),
        {ok, _} = py:call(streaming, open_gate, [mixed]),
        ok = py_stream:cancel(Mixed),
        [begin
            {ok, Burst} = py:stream_start(streaming, F, [burst], #{demand => 10}),
            ?assertEqual([{ok, 1}, {ok, 2}], [py_stream:next(Burst, 5000) || _ <- [1, 2]]),
            ok = py_stream:cancel(Burst)
         end || F <- [burst, aburst]],
        {ok, _} = py:call(streaming, open_gate, [burst])
    end).

%% --- errors, values, cancellation -------------------------------------------------------------------

an_exception_comes_after_the_items_before_it(Config) ->
    run(Config, fun(_) ->
        [begin
            {ok, Stream} = py:stream_start(streaming, F, [3], #{demand => 10}),
            Ref = py_stream:ref(Stream),
            ?assertEqual([0, 1, 2], take(Ref, 3)),
            receive
                {py_stream, Ref, {error, {python, Type, Message, Traceback}}} ->
                    ?assertEqual({<<"ValueError">>, <<"no more of that">>}, {Type, Message}),
                    ?assertNotEqual(nomatch, string:find(Traceback, "in " ++ atom_to_list(F)))
            end,
            ?assertMatch({error, {python, <<"ValueError">>, _, _}}, py:stream(streaming, F, [3]))
         end || F <- [failing, afailing]]
    end).

an_item_that_is_no_term_is_the_end(Config) ->
    run(Config, fun(_) ->
        {ok, Stream} = py:stream_start(streaming, unsendable, [], #{demand => 10}),
        ?assertEqual([{ok, 1}, {ok, 2}], [py_stream:next(Stream) || _ <- [1, 2]]),
        ?assertMatch({error, {python, <<"TypeError">>, _, _}}, py_stream:next(Stream))
    end).

values_are_sent_and_errors_thrown_into_a_generator(Config) ->
    run(Config, fun(_) ->
        [begin
            {ok, Stream} = py:stream_start(streaming, F, []),
            ?assertEqual({ok, <<"ready">>}, py_stream:next(Stream)),
            ok = py_stream:send(Stream, #{a => 1}),
            ?assertEqual({ok, #{a => 1}}, py_stream:next(Stream)),
            ok = py_stream:throw(Stream, 'ValueError', <<"oh">>),
            ?assertEqual({ok, {<<"caught">>, <<"oh">>}}, py_stream:next(Stream)),
            ok = py_stream:throw(Stream, <<"decimal.DivisionByZero">>, <<"a">>),
            ?assertMatch({error, {python, <<"decimal.DivisionByZero">>, <<"a">>, _}}, py_stream:next(Stream))
         end || F <- [echo, aecho]],
        [begin
            {ok, Stream} = py:stream_start(streaming, echo, []),
            ok = py_stream:throw(Stream, Type, <<"x">>),
            ?assertMatch({error, {python, <<"TypeError">>, _, _}}, py_stream:next(Stream))
         end || Type <- ['print', <<"os.system">>, 'KeyboardInterrupt']],
        {ok, Unfit} = py:stream_start(streaming, count, [3]),
        ok = py_stream:send(Unfit, 1),
        ?assertMatch({error, {python, <<"TypeError">>, _, _}}, py_stream:next(Unfit)),
        {ok, List} = py:stream_start(streaming, a_list, [[1, 2]]),
        ok = py_stream:send(List, 1),
        ?assertMatch({error, {python, <<"TypeError">>, <<"'list_iterator' takes no values">>, _}}, py_stream:next(List))
    end).

a_cancelled_stream_closes_its_generator_and_is_silent(Config) ->
    run(Config, fun(_) ->
        [begin
            {ok, Stream} = py:stream_start(streaming, F, [{F, Demand}], #{demand => Demand}),
            _ = [receive {py_stream, _, {items, _}} -> ok end || Demand > 0],
            ok = py_stream:cancel(Stream),
            receive {py_stream, _, _} = Late -> error(Late) after 20 -> ok end,
            ok = sw_e2e:eventually(fun() ->
                Demand =:= 0 orelse lists:member(<<"closed">>, noted({F, Demand}))
            end, 10000),
            ok = none_is_left(),
            ok = py_stream:cancel(Stream)
         end || F <- [noted, anoted], Demand <- [0, 1, 10, 1000000000]]
    end).

a_generator_that_computes_is_interrupted(Config) ->
    run(Config, fun(_) ->
        {ok, Stream} = py:stream_start(streaming, spinning, [spinning], #{demand => 2}),
        ?assertEqual({ok, <<"first">>}, py_stream:next(Stream)),
        ok = py_stream:cancel(Stream),
        ok = closed(spinning),
        {ok, Waiting} = py:stream_start(streaming, ablocked, [ablocked], #{demand => 2}),
        ?assertEqual({ok, <<"first">>}, py_stream:next(Waiting)),
        ok = py_stream:cancel(Waiting),
        ok = closed(ablocked),
        %% The thread goes on to serve, and nobody else is interrupted.
        ?assertEqual([{ok, lists:seq(0, 99)} || _ <- lists:seq(1, 20)],
                     [py:stream(streaming, count, [100]) || _ <- lists:seq(1, 20)])
    end).

a_generator_that_waits_in_c_is_closed_when_it_comes_back(Config) ->
    run(Config, fun(_) ->
        {ok, Stream} = py:stream_start(streaming, blocked, [in_c], #{demand => 2}),
        ?assertEqual({ok, <<"first">>}, py_stream:next(Stream)),
        ok = py_stream:cancel(Stream),
        ?assertEqual({ok, 1}, py:call(streaming, streams, [])),
        {ok, _} = py:call(streaming, open_gate, [in_c]),
        ok = closed(in_c)
    end).

blocked_generators_hold_no_other_stream(Config) ->
    run(Config, fun(_) ->
        Blocked = [begin
            {ok, Stream} = py:stream_start(streaming, blocked, [many], #{demand => 2}),
            ?assertEqual({ok, <<"first">>}, py_stream:next(Stream)),
            Stream
        end || _ <- lists:seq(1, 20)],
        ?assertEqual({ok, lists:seq(0, 99)}, py:stream(streaming, count, [100])),
        ?assertEqual({ok, lists:seq(0, 99)}, py:stream(streaming, acount, [100])),
        {ok, _} = py:call(streaming, open_gate, [many]),
        ?assertEqual([{ok, <<"second">>} || _ <- Blocked], [py_stream:next(Stream) || Stream <- Blocked]),
        ?assertEqual([done || _ <- Blocked], [py_stream:next(Stream) || Stream <- Blocked])
    end).

the_death_of_the_owner_cancels(Config) ->
    run(Config, fun(_) ->
        [begin
            Self = self(),
            {Owner, Monitor} = spawn_monitor(fun() ->
                {ok, Stream} = py:stream_start(streaming, F, [{owned, F}], #{demand => 1}),
                {ok, 0} = py_stream:next(Stream),
                Self ! {stream, Stream},
                receive after infinity -> ok end
            end),
            Stream = receive {stream, S} -> S end,
            exit(Owner, kill),
            receive {'DOWN', Monitor, process, _, killed} -> ok end,
            ok = closed({owned, F}),
            ok = py_stream:cancel(Stream)
         end || F <- [noted, anoted]]
    end).

the_loss_of_the_node_is_told(Config) ->
    Context = sw_e2e:context(Config),
    Node = #{name := Name, program := Program} = sw_e2e:start_node(Context, #{args => ["--import", "streaming"]}),
    Self = self(),
    Waiter = spawn_link(fun() ->
        Self ! {result, run(Config, fun(_) ->
            {ok, Waiting} = py:stream_start(Name, streaming, blocked, [never], #{demand => 2}),
            {ok, Idle} = py:stream_start(Name, streaming, count, [10]),
            {ok, 0} = py_stream:next(Idle),
            {ok, <<"first">>} = py_stream:next(Waiting),
            persistent_term:put(stream_suite, ready),
            First = py_stream:next(Waiting),
            {First, py_stream:next(Idle), py_stream:next(Idle, 10000), py_stream:cancel(Idle)}
        end)}
    end),
    ok = run(Config, fun(_) ->
        sw_e2e:eventually(fun() -> persistent_term:get(stream_suite, none) =:= ready end)
    end),
    ok = sw_e2e:kill(Program),
    Down = {error, {down, noconnection}},
    receive {result, Result} -> ?assertEqual({Down, Down, Down, ok}, Result) end,
    unlink(Waiter),
    _ = Node.

another_process_may_own_a_stream(Config) ->
    run(Config, fun(_) ->
        Self = self(),
        Owner = spawn_link(fun() ->
            Items = receive {stream, Stream} -> [py_stream:next(Stream) || _ <- [1, 2, 3]] end,
            Self ! {items, Items}
        end),
        {ok, Stream} = py:stream_start(streaming, count, [2], #{owner => Owner}),
        ?assertError(function_clause, py_stream:next(Stream)),
        Owner ! {stream, Stream},
        receive {items, Items} -> ?assertEqual([{ok, 0}, {ok, 1}, done], Items) end
    end).

%% --- bounds -----------------------------------------------------------------------------------------

a_slow_consumer_of_large_items_holds_the_generator(Config) ->
    run(Config, fun(_) ->
        {ok, Stream} = py:stream_start(streaming, large, [100, 8388608], #{demand => 100}),
        Made = fun() ->
            {ok, Events} = py:call(streaming, events, []),
            length([large || <<"large">> <- Events])
        end,
        ok = sw_e2e:eventually(fun() -> Made() =:= 8 end, 10000),
        timer:sleep(50),
        ?assertEqual(8, Made()),
        ok = py_stream:ask(Stream, 0),
        ok = sw_e2e:eventually(fun() -> Made() =:= 16 end, 10000),
        ok = py_stream:cancel(Stream)
    end).

streams_are_bounded_for_an_owner_and_leave_nothing(Config) ->
    run(Config, fun(_) ->
        {Owner, Monitor} = spawn_monitor(fun() ->
            Starts = [py:stream_start(streaming, count, [10]) || _ <- lists:seq(1, 1001)],
            ?assertEqual({error, overloaded}, lists:last(Starts)),
            1000 = length([Stream || {ok, Stream} <- Starts])
        end),
        ?assertMatch({ok, [0]}, py:stream(streaming, count, [1])),
        receive {'DOWN', Monitor, process, Owner, Reason} -> ?assertEqual(normal, Reason) end,
        none_is_left()
    end).

nonsense_sent_to_a_stream_hurts_nobody(Config) ->
    run(Config, fun(_) ->
        {ok, Stream} = py:stream_start(streaming, count, [3]),
        _ = [py_stream:pid(Stream) ! Junk || Junk <- [nonsense, {ask, -1}, {ask, x}, {ask}, {throw, 1, 2}, [], #{}, {'DOWN', make_ref(), process, spawn(fun() -> ok end), x}]],
        ?assertEqual([{ok, 0}, {ok, 1}, {ok, 2}, done], [py_stream:next(Stream) || _ <- lists:seq(1, 4)]),
        {ok, Flooded} = py:stream_start(streaming, blocked, [flood], #{demand => 2}),
        {ok, <<"first">>} = py_stream:next(Flooded),
        _ = [py_stream:send(Flooded, N) || N <- lists:seq(1, 1100)],
        ?assertEqual({error, overloaded}, py_stream:next(Flooded, 10000)),
        {ok, _} = py:call(streaming, open_gate, [flood]),
        {ok, Killed} = py:stream_start(streaming, noted, [killed], #{demand => 1}),
        {ok, 0} = py_stream:next(Killed),
        exit(py_stream:pid(Killed), kill),
        ?assertEqual({error, cancelled}, last(Killed)),
        closed(killed)
    end).

more_generators_than_threads_all_move_on(Config) ->
    run(Config, fun(_) ->
        Streams = [begin
            {ok, Stream} = py:stream_start(streaming, F, [], #{demand => 1000000}),
            Stream
        end || F <- [toil || _ <- lists:seq(1, 80)] ++ [atoil, atoil]],
        _ = [receive {py_stream, Ref, {items, [_ | _]}} -> ok after 10000 -> error(starved) end
             || Stream <- Streams, Ref <- [py_stream:ref(Stream)]],
        [ok = py_stream:cancel(Stream) || Stream <- Streams],
        receive {py_stream, _, _} -> error(late) after 0 -> ok end
    end).

a_node_that_is_stopped_does_not_wait_for_its_streams(Config) ->
    Context = sw_e2e:context(Config),
    #{name := Name, program := Program} = sw_e2e:start_node(Context, #{args => ["--import", "streaming"]}),
    Pid = run(Config, fun(_) ->
        Self = self(),
        Owner = spawn(fun() ->
            Streams = [begin
                {ok, Stream} = py:stream_start(Name, streaming, F, [stopped], #{demand => 2}),
                {ok, _} = py_stream:next(Stream),
                Stream
            end || F <- [spinning, blocked, ablocked, noted, anoted]],
            Self ! begun,
            receive {tell, Whom} -> Whom ! [last(Stream) || Stream <- Streams] end
        end),
        receive begun -> Owner end
    end),
    ok = sw_e2e:send_signal(Program, "TERM"),
    ?assertEqual(0, sw_e2e:await_exit(Program)),
    Ends = run(Config, fun(_) ->
        Pid ! {tell, self()},
        receive Ends -> Ends end
    end),
    ?assertEqual([], [End || End <- Ends, not lists:member(End, [{error, {down, noconnection}}, {error, cancelled}])]).

the_allow_list_counts_for_streams(Config) ->
    Context = sw_e2e:context(Config),
    Arguments = ["--import", "streaming", "--allow", "streaming.echo"],
    Node = #{name := Name} = sw_e2e:start_node(Context, #{args => Arguments}),
    run(Config, fun(_) ->
        ?assertEqual({error, {not_allowed, {<<"streaming">>, <<"count">>}}}, py:stream(Name, streaming, count, [3])),
        {ok, Stream} = py:stream_start(Name, streaming, echo, []),
        ?assertEqual({ok, <<"ready">>}, py_stream:next(Stream)),
        ok = py_stream:throw(Stream, <<"decimal.DivisionByZero">>, <<"a">>),
        ?assertEqual({error, {not_allowed, {<<"decimal">>, <<"DivisionByZero">>}}}, py_stream:next(Stream))
    end),
    ok = sw_e2e:stop_node(Node).

%% --- producers --------------------------------------------------------------------------------------

python_iterates_over_a_producer_of_any_kind(Config) ->
    run(Config, fun(_) ->
        Unfold = {fun(From, N) when From + N < 1000 -> {lists:seq(From, From + N - 1), From + N};
                     (From, _) -> {done, lists:seq(From, 999)} end, 0},
        [begin
            {ok, Pid} = py_stream:producer(Source),
            ?assertEqual({ok, lists:seq(0, 999)}, py:call(streaming, F, [Pid, []]))
         end || F <- [drain, adrain], Source <- [lists:seq(0, 999), numbers(0, 1000), Unfold]],
        {ok, Empty} = py_stream:producer([]),
        ?assertEqual({ok, []}, py:call(streaming, drain, [Empty, []])),
        {ok, Named} = py_stream:producer([a, b]),
        true = register(a_producer, Named),
        ?assertEqual({ok, [a, b]}, py:call(streaming, adrain, [{a_producer, node()}, []]))
    end).

numbers(From, To) ->
    fun() when From < To -> {From, numbers(From + 1, To)};
       () -> done
    end.

python_iterates_over_what_a_registered_function_produces(Config) ->
    run(Config, fun(_) ->
        ok = py:register_function(numbers, fun([N]) -> py_stream:producer(numbers(0, N)) end),
        ?assertEqual({ok, lists:seq(0, 99)}, py:call(streaming, drain, [<<"numbers">>, [100]])),
        ?assertEqual({ok, lists:seq(0, 99)}, py:call(streaming, adrain, [<<"numbers">>, [100]])),
        ?assertMatch({error, {python, <<"erlang.exceptions.UnknownFunction">>, _, _}},
                     py:call(streaming, adrain, [<<"no_numbers">>, []])),
        ?assertMatch({error, {python, <<"TypeError">>, _, _}}, py:call(streaming, drain, [<<"where">>, []]))
    end).

%% A producer that tells how far it is.
telling(Tell) ->
    Next = fun Next(N) -> fun() -> Tell ! {made, N}, {N, Next(N + 1)} end end,
    {ok, Pid} = py_stream:producer(Next(0)),
    {Pid, monitor(process, Pid)}.

a_producer_makes_no_more_than_was_asked_for(Config) ->
    run(Config, fun(_) ->
        {Pid, Monitor} = telling(self()),
        Call = py:spawn_call(streaming, first, [Pid, 2, 0.1]),
        [receive {made, N} -> ok end || N <- [0, 1, 2, 3]],
        receive {made, N} -> error({made, N}) after 30 -> ok end,
        ?assertEqual({ok, [0, 1]}, py:await(Call)),
        receive {'DOWN', Monitor, process, _, normal} -> ok end
    end).

a_producer_ends_when_python_leaves_the_loop(Config) ->
    run(Config, fun(_) ->
        [begin
            {Pid, Monitor} = telling(self()),
            ?assertEqual({ok, [0, 1, 2]}, py:call(streaming, F, [Pid, 3])),
            receive {'DOWN', Monitor, process, _, normal} -> ok end
         end || F <- [first, afirst]]
    end).

what_ends_a_producer_is_raised_after_its_items(Config) ->
    run(Config, fun(_) ->
        {ok, Raising} = py_stream:producer(fun() -> {1, fun() -> error(no_more) end} end),
        ?assertEqual({ok, {[1], <<"ErlangError">>, error, no_more}}, py:call(streaming, until_error, [Raising])),
        {ok, Killed} = py_stream:producer(fun() -> {1, fun() -> exit(self(), kill), timer:sleep(infinity) end} end),
        ?assertEqual({ok, {[1], <<"ErlangError">>, exit, killed}}, py:call(streaming, until_error, [Killed])),
        Nobody = spawn(fun() -> ok end),
        ?assertEqual({ok, {[], <<"ErlangError">>, exit, noproc}}, py:call(streaming, until_error, [Nobody])),
        {ok, Slow} = py_stream:producer(fun() -> timer:sleep(infinity) end),
        ?assertEqual({ok, <<"late">>}, py:call(streaming, waits, [Slow])),
        exit(Slow, kill)
    end).

a_producer_has_one_consumer(Config) ->
    run(Config, fun(_) ->
        {Pid, Monitor} = telling(self()),
        Call = py:spawn_call(streaming, first, [Pid, 2, 0.2]),
        receive {made, 0} -> ok end,
        ?assertEqual({ok, {[], <<"ErlangError">>, exit, busy}}, py:call(streaming, until_error, [Pid])),
        ?assertEqual({ok, [0, 1]}, py:await(Call)),
        receive {'DOWN', Monitor, process, _, normal} -> ok end
    end).

a_cancelled_call_ends_its_producer(Config) ->
    run(Config, fun(Node) ->
        [begin
            Pid = spawn(fun() -> receive {'$py_stream', {From, _}, _} -> wait_for(From) end end),
            Monitor = monitor(process, Pid),
            ?assertEqual({error, timeout}, py:call(Node, streaming, F, [Pid, []], #{timeout => 100})),
            receive {'DOWN', Monitor, process, _, consumer_gone} -> ok end
         end || F <- [drain, adrain]]
    end).

wait_for(Pid) ->
    Monitor = monitor(process, Pid),
    receive {'DOWN', Monitor, process, _, _} -> exit(consumer_gone) end.

worker_processes_make_no_streams_and_say_so(Config) ->
    Context = sw_e2e:context(Config),
    Node = #{name := Name} = sw_e2e:start_node(Context, #{args => ["--import", "streaming", "--processes", "1"]}),
    run(Config, fun(_) ->
        ?assertMatch({error, {python, <<"RuntimeError">>, <<"no stream can be made here", _/binary>>, _}},
                     py:stream(Name, streaming, count, [3])),
        {ok, Pid} = py_stream:producer([1]),
        ?assertMatch({error, {python, <<"RuntimeError">>, _, _}}, py:call(Name, streaming, drain, [Pid, []]))
    end),
    ok = sw_e2e:stop_node(Node).

last(Stream) ->
    case py_stream:next(Stream, 10000) of
        {ok, _} -> last(Stream);
        Last -> Last
    end.

many_items_pass_in_flat_memory(Config) ->
    Items = list_to_integer(os:getenv("SIDEWINDER_STREAM_ITEMS", "100000")),
    run(Config, fun(_) ->
        [begin
            {ok, Stream} = py:stream_start(streaming, F, [Items], #{demand => 1000}),
            {ok, Before} = py:call(streaming, rss, []),
            ok = consume(Stream, 0, Items),
            {ok, After} = py:call(streaming, rss, []),
            ?assert(After - Before < 16 * 1024 * 1024, {F, Before, After})
         end || F <- [count, acount]]
    end).

%% A consumer that rests now and then.
consume(Stream, Items, Items) ->
    done = py_stream:next(Stream),
    ok;
consume(Stream, N, Items) ->
    {ok, N} = py_stream:next(Stream),
    _ = [timer:sleep(1) || N rem 5000 =:= 0],
    consume(Stream, N + 1, Items).
