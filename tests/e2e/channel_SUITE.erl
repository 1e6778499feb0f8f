%% Channels between a BEAM with the application and the real node.
-module(channel_SUITE).

-include_lib("stdlib/include/assert.hrl").

-export([all/0, suite/0, init_per_suite/1, end_per_suite/1, end_per_testcase/2]).
-compile([export_all, nowarn_export_all]).

suite() -> [{timetrap, {seconds, 240}}].

all() ->
    [messages_arrive_once_and_in_order_and_iteration_ends_at_the_close,
     a_channel_is_a_process,
     what_is_not_there_is_told_apart_from_what_is_closed,
     busy_is_told_where_the_bound_is_and_nothing_was_sent,
     send_waits_for_room_and_no_longer_than_it_may,
     a_message_as_large_as_the_bound_goes_and_a_larger_one_never,
     several_beams_share_the_bound_and_the_channel,
     a_beam_that_comes_while_another_sends_loses_nothing_of_its_share,
     a_beam_that_is_idle_lends_half_of_its_share_to_one_that_sends,
     a_beam_that_does_not_answer_keeps_its_credit_until_it_answers_or_ends,
     two_beams_that_never_stop_sending_have_each_a_fair_part,
     a_beam_that_never_met_the_node_is_as_good_as_any,
     threads_and_coroutines_share_a_channel,
     who_leaves_a_loop_or_gives_up_loses_nothing_for_others,
     a_cancelled_consumer_stops_waiting,
     an_owner_that_ends_closes_the_channel_behind_its_messages,
     a_lost_link_closes_the_channel_on_both_sides,
     a_node_that_dies_is_closed_channels,
     a_flood_outside_the_credit_closes_the_channel_with_overflow,
     python_sends_and_erlang_receives,
     python_waits_for_room_too,
     receivers_share_and_a_dead_one_takes_nothing,
     a_byte_channel_carries_bytes,
     a_view_is_the_bytes_where_they_lie,
     large_and_small_messages_keep_their_order,
     a_large_body_holds_up_no_other_channel,
     a_carrier_that_is_killed_closes_its_channel,
     flush_waits_for_the_consumer_and_info_counts,
     a_link_process_that_is_killed_is_closed_channels,
     many_senders_and_many_consumers_lose_double_and_reorder_nothing,
     ten_thousand_channels_leave_nothing_behind].

init_per_suite(Config0) ->
    Config = sw_e2e:setup(Config0),
    Context = sw_e2e:context(Config),
    Node = sw_e2e:start_node(Context, #{args => ["--workers", "8"]}),
    [{node, Node}, {beam, application_beam(Context, Node)} | Config].

application_beam(Context, #{name := Name}) ->
    Beam = sw_e2e:start_beam(Context, #{args => ["-pa", filename:dirname(code:which(py))]}),
    ok = sw_e2e:on(Beam, fun() ->
        ok = application:load(sidewinder),
        ok = application:set_env(sidewinder, default_node, Name),
        {ok, _} = application:ensure_all_started(sidewinder),
        ok = py_node:connect(Name)
    end),
    Beam.

end_per_suite(Config) ->
    true = sw_e2e:alive(maps:get(program, proplists:get_value(node, Config))),
    ok = sw_e2e:stop_beam(proplists:get_value(beam, Config)),
    ok = sw_e2e:stop_node(proplists:get_value(node, Config)),
    ok = sw_e2e:teardown(Config).

end_per_testcase(_, Config) ->
    _ = [ok = sw_e2e:eventually(fun() -> nobody_waits(Config) end, 10000) || proplists:get_value(node, Config) =/= undefined],
    ok.

%% No call and no task of a test is left behind.
nobody_waits(Config) ->
    #{name := Name} = proplists:get_value(node, Config),
    #{<<"busy">> := Busy, <<"tasks">> := Tasks} = sw_e2e:stats(proplists:get_value(beam, Config), Name),
    case {Busy, Tasks} of
        {B, 0} when B =< 1 -> true;
        Left -> {left, Left}
    end.

run(Config, Body) ->
    #{name := Node} = proplists:get_value(node, Config),
    sw_e2e:on(proplists:get_value(beam, Config), fun() -> Body(Node) end, 110000).

start(F, Args) -> py:spawn_call(channels, F, Args).
await(Ref) -> py:await(Ref, 30000).
call(F, Args) -> py:call(channels, F, Args).

%% --- Erlang to Python -----------------------------------------------------------------------------

messages_arrive_once_and_in_order_and_iteration_ends_at_the_close(Config) ->
    run(Config, fun(_) ->
        Odd = [none, undefined, <<"text">>, <<255>>, 1.5, [1, 2], {a, []}, #{k => [v]}, self(), true, []],
        Numbers = lists:seq(1, 5000),
        [begin
            {ok, Ch} = py_channel:new(#{max_size => infinity}),
            Consumer = start(Collect, [Ch]),
            [ok = py_channel:send(Ch, N) || N <- Numbers],
            [ok = py_channel:send(Ch, Term) || Term <- Odd],
            ok = py_channel:close(Ch),
            {ok, All} = await(Consumer),
            ?assertEqual(Numbers, lists:sublist(All, 5000)),
            {ok, Same} = py:call(probe, identity, [Odd]),
            ?assertEqual(Same, lists:nthtail(5000, All)),
            % After the end there is nothing, and it says so.
            ?assertEqual({ok, []}, call(collect, [Ch])),
            ?assertEqual({error, closed}, py_channel:send(Ch, late)),
            ?assertEqual(ok, py_channel:close(Ch))
         end || Collect <- [collect, collect_async, collect_elsewhere]],
        % What was in it can be had after the close.
        {ok, Ch} = py_channel:new(),
        [ok = py_channel:send(Ch, N) || N <- [1, 2, 3]],
        ok = py_channel:close(Ch),
        ?assertEqual({ok, [1, 2, 3]}, call(collect, [Ch]))
    end).

a_channel_is_a_process(Config) ->
    run(Config, fun(N) ->
        {ok, Ch} = py_channel:new(),
        ?assertEqual(N, node(Ch)),
        Monitor = monitor(process, Ch),
        ok = py_channel:close(Ch),
        receive {'DOWN', Monitor, process, Ch, Reason} -> ?assertEqual(normal, Reason) after 5000 -> error(no_down) end,
        process_flag(trap_exit, true),
        {ok, Linked} = py_channel:new(),
        link(Linked),
        exit(Linked, because),
        receive {'EXIT', Linked, Why} -> ?assertEqual(because, Why) after 5000 -> error(no_exit) end,
        ?assertEqual({error, closed}, eventually_closed(Linked)),
        {ok, Plain} = py_channel:new(#{owner => none}),
        Plain ! {straight, "to it"},
        ?assertEqual({ok, [{straight, "to it"}]}, call(receive_one(), [Plain])),
        ok = py_channel:close(Plain)
    end).

receive_one() -> 'receive'.

eventually_closed(Ch) ->
    ok = sw_e2e:eventually(fun() -> py_channel:send(Ch, x) =:= {error, closed} end, 5000),
    py_channel:send(Ch, x).

what_is_not_there_is_told_apart_from_what_is_closed(Config) ->
    run(Config, fun(N) ->
        {ok, Ch} = py_channel:new(),
        ?assertEqual({ok, {none, <<"empty">>}}, call(try_receive, [Ch])),
        ?assertMatch({error, {python, <<"TimeoutError">>, _, _}}, call('receive', [Ch, 1, 0.05])),
        ?assertMatch({error, {python, <<"TimeoutError">>, _, _}}, call('receive', [Ch, 1, 0])),
        ?assertEqual({error, empty}, py_channel:try_receive(Ch)),
        ?assertEqual({error, timeout}, py_channel:recv(Ch, 20)),
        ok = py_channel:close(Ch),
        ?assertEqual({error, closed}, py_channel:recv(Ch)),
        ?assertEqual({error, closed}, py_channel:try_receive(Ch)),
        ?assertMatch({error, {python, <<"erlang.exceptions.ChannelClosed">>, _, _}}, call('receive', [Ch])),
        % The channel of an earlier node of that name: the same pid but for its creation.
        {ok, New} = py_channel:new(),
        Encoded = term_to_binary(New),
        Head = byte_size(Encoded) - 4,
        <<Before:Head/binary, Creation:32>> = Encoded,
        Old = binary_to_term(<<Before/binary, (Creation bxor 1):32>>),
        ?assertEqual({error, closed}, py_channel:send(Old, x)),
        ?assertEqual({error, closed}, py_channel:recv(Old, 5000)),
        ?assertEqual(ok, py_channel:close(Old)),
        ?assertEqual({error, empty}, py_channel:try_receive(New)),
        ?assertMatch({error, {python, <<"ValueError">>, _, _}}, call('receive', [Old])),
        % A pid that is no channel, and one of nowhere.
        ?assertEqual({error, closed}, py_channel:send(erpc:call(N, erlang, self, []), x)),
        ?assertMatch({error, {python, <<"ValueError">>, _, _}}, call('receive', [self()])),
        ?assertError(badarg, py_channel:new(#{max_size => -1})),
        ?assertError(badarg, py_channel:new(#{maximum => 1}))
    end).

busy_is_told_where_the_bound_is_and_nothing_was_sent(Config) ->
    run(Config, fun(_) ->
        Message = binary:copy(<<"x">>, 100 - 6),
        100 = erlang:external_size(Message),
        {ok, Ch} = py_channel:new(#{max_size => 1000}),
        ?assertEqual(lists:duplicate(10, ok) ++ [busy, busy], [py_channel:send(Ch, Message) || _ <- lists:seq(1, 12)]),
        ok = sw_e2e:eventually(fun() -> maps:get(size, py_channel:info(Ch)) =:= 1000 end),
        {ok, [_, _, _]} = call('receive', [Ch, 3]),
        [ok = sw_e2e:eventually(fun() -> py_channel:send(Ch, Message) =:= ok end) || _ <- [1, 2, 3]],
        ?assertEqual([busy, busy, busy], [begin timer:sleep(20), py_channel:send(Ch, Message) end || _ <- [1, 2, 3]]),
        {ok, Ten} = call('receive', [Ch, 10]),
        ?assertEqual(lists:duplicate(10, Message), Ten),
        ?assertEqual({ok, {none, <<"empty">>}}, call(try_receive, [Ch])),
        % Whatever was consumed is credit again, to the last byte.
        ok = sw_e2e:eventually(fun() -> py_channel:send(Ch, Message, 0) =:= ok end),
        ok = py_channel:close(Ch)
    end).

send_waits_for_room_and_no_longer_than_it_may(Config) ->
    run(Config, fun(_) ->
        {ok, Ch} = py_channel:new(#{max_size => 100}),
        Large = binary:copy(<<"x">>, 80),
        ok = py_channel:send(Ch, Large),
        {Time, Result} = timer:tc(fun() -> py_channel:send(Ch, Large, 100) end),
        ?assertEqual(busy, Result),
        ?assert(Time >= 100_000),
        % Those who wait are served in their order.
        Test = self(),
        Senders = [begin
            Sender = spawn_link(fun() -> Test ! {sent, I, py_channel:send(Ch, {I, Large}, 10000)} end),
            ok = sw_e2e:eventually(fun() -> process_info(Sender, status) =:= {status, waiting} end),
            Sender
        end || I <- [1, 2, 3]],
        ?assertEqual({ok, [Large]}, call('receive', [Ch])),
        ?assertMatch({ok, [{1, _}]}, call('receive', [Ch])),
        ?assertMatch({ok, [{2, _}]}, call('receive', [Ch])),
        ?assertMatch({ok, [{3, _}]}, call('receive', [Ch])),
        [receive {sent, I, ok} -> ok after 5000 -> error({not_sent, I}) end || I <- [1, 2, 3]],
        ?assertEqual([false, false, false], [is_process_alive(S) || S <- Senders]),
        % The close ends the waiting.
        ok = py_channel:send(Ch, Large, 1000),
        spawn(fun() -> timer:sleep(50), py_channel:close(Ch) end),
        ?assertEqual({error, closed}, py_channel:send(Ch, Large, 10000))
    end).

a_message_as_large_as_the_bound_goes_and_a_larger_one_never(Config) ->
    run(Config, fun(_) ->
        {ok, Ch} = py_channel:new(#{max_size => 1000}),
        Whole = binary:copy(<<"x">>, 994),
        ok = py_channel:send(Ch, Whole),
        ?assertEqual(busy, py_channel:send(Ch, 1)),
        ?assertEqual({ok, [Whole]}, call('receive', [Ch])),
        ?assertEqual(busy, py_channel:send(Ch, <<Whole/binary, "x">>)),
        ?assertEqual(busy, py_channel:send(Ch, <<Whole/binary, "x">>, infinity)),
        ok = py_channel:send(Ch, Whole, 5000),
        ok = py_channel:close(Ch)
    end).

several_beams_share_the_bound_and_the_channel(Config) ->
    #{name := Name} = Node = proplists:get_value(node, Config),
    Other = application_beam(sw_e2e:context(Config), Node),
    Ch = run(Config, fun(_) ->
        {ok, Ch} = py_channel:new(Name, #{max_size => 1000, owner => none}),
        Ch
    end),
    Message = binary:copy(<<"x">>, 94),
    Fill = fun() -> [py_channel:send(Ch, Message) || _ <- lists:seq(1, 12)] end,
    Oks = fun(Results) -> length([ok || ok <- Results]) end,
    % The first has it all; the second gets what the first gives back.
    First = Oks(run(Config, fun(_) -> [py_channel:send(Ch, Message) || _ <- lists:seq(1, 3)] end)),
    ?assertEqual(3, First),
    ok = sw_e2e:eventually(fun() -> Oks([sw_e2e:on(Other, fun() -> py_channel:send(Ch, Message) end)]) =:= 1 end),
    Second = Oks(sw_e2e:on(Other, Fill)),
    ?assertEqual(4, Second),
    ?assertEqual(2, Oks(run(Config, fun(_) -> Fill() end))),
    ok = sw_e2e:eventually(fun() -> maps:get(size, run(Config, fun(_) -> py_channel:info(Ch) end)) =:= 1000 end),
    % A BEAM that goes takes its messages not along, and its share is free again.
    ok = sw_e2e:kill_beam(Other),
    run(Config, fun(_) ->
        ?assertEqual({ok, lists:duplicate(10, Message)}, call('receive', [Ch, 10])),
        ok = sw_e2e:eventually(fun() -> py_channel:send(Ch, Message, 100) =:= ok end),
        ?assertEqual(ok, py_channel:send(Ch, binary:copy(<<"x">>, 800), 5000)),
        ok = py_channel:close(Ch)
    end).

%% Consumers return credit while a BEAM is attached: what it is granted then must not be there before the news that it is
%% attached. A message larger than the share goes only where none of it is missing.
a_beam_that_comes_while_another_sends_loses_nothing_of_its_share(Config) ->
    Other = application_beam(sw_e2e:context(Config), proplists:get_value(node, Config)),
    [begin
        {ok, Ch} = run(Config, fun(_) -> py_channel:new(#{max_size => 65536, owner => none}) end),
        Counted = meanwhile(fun() -> run(Config, fun(_) -> call(count, [Ch, 4, 4]) end) end),
        Sent = meanwhile(fun() -> run(Config, fun(_) -> in_parallel(4, fun() -> hammer(Ch, 50) end) end) end),
        timer:sleep(20),
        ?assertEqual(ok, sw_e2e:on(Other, fun() -> py_channel:send(Ch, first, 10000) end)),
        Counts = result(Sent),
        Large = fun() -> py_channel:send(Ch, binary:copy(<<"x">>, 60000), 10000) end,
        ?assertEqual({Round, ok}, {Round, sw_e2e:on(Other, Large)}),
        ok = sw_e2e:on(Other, fun() -> py_channel:flush(Ch, 10000) end),
        ?assertEqual({Round, ok}, {Round, run(Config, fun(_) -> Large() end)}),
        ok = run(Config, fun(_) -> py_channel:close(Ch) end),
        ?assertEqual({ok, lists:sum(Counts) + 3}, result(Counted))
    end || Round <- lists:seq(1, list_to_integer(os:getenv("CHANNEL_ROUNDS", "10")))],
    ok = sw_e2e:stop_beam(Other).

a_beam_that_is_idle_lends_half_of_its_share_to_one_that_sends(Config) ->
    Other = application_beam(sw_e2e:context(Config), proplists:get_value(node, Config)),
    Here = fun(Function) -> run(Config, fun(_) -> Function() end) end,
    There = fun(Function) -> sw_e2e:on(Other, Function) end,
    {ok, Ch} = Here(fun() -> py_channel:new(#{max_size => 40000, owner => none}) end),
    Send = fun(Size) -> py_channel:send(Ch, binary:copy(<<"x">>, Size - 6), 3000) end,
    Fill = fun() -> fill(Ch, binary:copy(<<"x">>, 994), 0) end,
    ?assertEqual(ok, There(fun() -> Send(1000) end)),
    timer:sleep(200),
    % Its own half, and half of the other's. What the idle one kept it needs no leave to send.
    ?assertEqual(29, There(Fill)),
    ?assertEqual(lists:duplicate(10, ok), Here(fun() -> [py_channel:send(Ch, binary:copy(<<"x">>, 994)) || _ <- lists:seq(1, 10)] end)),
    ?assertEqual(busy, Here(fun() -> py_channel:send(Ch, binary:copy(<<"x">>, 994)) end)),
    % It wants more: as soon as there is room that is its own half again, and the other has no more than its own.
    ?assertMatch({ok, [_ | _]}, Here(fun() -> call('receive', [Ch, 20]) end)),
    ?assertEqual(10, Here(Fill)),
    ?assertEqual(10, There(Fill)),
    ?assertMatch({ok, [_ | _]}, Here(fun() -> call('receive', [Ch, 40]) end)),
    [begin
        ?assertEqual(ok, On(fun() -> Send(40000) end)),
        ?assertMatch({ok, [_]}, Here(fun() -> call('receive', [Ch, 1]) end))
     end || On <- [Here, There]],
    ok = Here(fun() -> py_channel:close(Ch) end),
    ok = sw_e2e:stop_beam(Other).

a_beam_that_does_not_answer_keeps_its_credit_until_it_answers_or_ends(Config) ->
    #{name := Name} = Node = proplists:get_value(node, Config),
    Silent = application_beam(sw_e2e:context(Config), Node),
    Link = fun() -> [{_, Pid}] = ets:lookup(py_channels, {link, Name}), Pid end,
    Sends = fun(Ch, Timeout) -> run(Config, fun(_) -> py_channel:send(Ch, binary:copy(<<"x">>, 400), Timeout) end) end,
    Full = fun() ->
        {ok, Ch} = sw_e2e:on(Silent, fun() -> py_channel:new(#{max_size => 1000, owner => none}) end),
        ok = sw_e2e:on(Silent, fun() -> sys:suspend(Link()) end),
        ?assertEqual(busy, Sends(Ch, 300)),
        ?assertEqual(busy, Sends(Ch, 300)),
        Ch
    end,
    First = Full(),
    ok = sw_e2e:on(Silent, fun() -> sys:resume(Link()) end),
    ?assertEqual(ok, Sends(First, 3000)),
    ok = run(Config, fun(_) -> py_channel:close(First) end),
    Second = Full(),
    ok = sw_e2e:kill_beam(Silent),
    % The end of its link closes the channel that it made: as ever.
    run(Config, fun(_) -> ?assertEqual({error, closed}, eventually_closed(Second)) end).

two_beams_that_never_stop_sending_have_each_a_fair_part(Config) ->
    Other = application_beam(sw_e2e:context(Config), proplists:get_value(node, Config)),
    [begin
        {ok, Ch} = run(Config, fun(_) -> py_channel:new(#{max_size => Max, owner => none}) end),
        Counted = meanwhile(fun() -> run(Config, fun(_) -> call(count, [Ch, 2, 2]) end) end),
        Hammer = fun() -> lists:sum(in_parallel(3, fun() -> hammer(Ch, 1500) end)) end,
        Parts = [meanwhile(fun() -> sw_e2e:on(Beam, Hammer) end) || Beam <- [proplists:get_value(beam, Config), Other]],
        [Here, There] = [result(Part) || Part <- Parts],
        ct:pal("bound ~p: ~p and ~p messages", [Max, Here, There]),
        ok = sw_e2e:on(Other, fun() -> py_channel:flush(Ch, 30000) end),
        ok = run(Config, fun(_) -> py_channel:close(Ch) end),
        ?assertEqual({ok, Here + There}, result(Counted)),
        ?assert(min(Here, There) * 5 > Here + There, {Max, Here, There})
    end || Max <- [200, 4000, 65536]],
    ok = sw_e2e:stop_beam(Other).

%% How many of them there is room for.
fill(Ch, Message, Count) ->
    case py_channel:send(Ch, Message, 300) of
        ok -> fill(Ch, Message, Count + 1);
        busy -> Count
    end.

in_parallel(Count, Function) -> [result(Each) || Each <- [meanwhile(Function) || _ <- lists:seq(1, Count)]].

meanwhile(Function) -> spawn_monitor(fun() -> exit({done, Function()}) end).

result({Pid, Monitor}) ->
    receive {'DOWN', Monitor, process, Pid, Why} -> {done, Result} = Why, Result end.

hammer(Ch, Milliseconds) -> hammer_until(Ch, erlang:monotonic_time(millisecond) + Milliseconds, 0).

%% How many messages were sent.
hammer_until(Ch, End, Count) ->
    _ = [ok = py_channel:send(Ch, {N, <<"a message">>}, 10000) || N <- lists:seq(1, 20)],
    case erlang:monotonic_time(millisecond) < End of
        true -> hammer_until(Ch, End, Count + 20);
        false -> Count + 20
    end.

a_beam_that_never_met_the_node_is_as_good_as_any(Config) ->
    Context = sw_e2e:context(Config),
    Ch = run(Config, fun(_) ->
        {ok, Ch} = py_channel:new(#{owner => none}),
        {ok, 2} = call(send_all, [Ch, [1, 2]]),
        Ch
    end),
    [begin
        Stranger = sw_e2e:start_beam(Context, #{args => ["-pa", filename:dirname(code:which(py))]}),
        sw_e2e:on(Stranger, fun() ->
            {ok, _} = application:ensure_all_started(sidewinder),
            First()
        end),
        ok = sw_e2e:stop_beam(Stranger)
     end || First <- [fun() -> ?assertEqual({ok, 1}, py_channel:recv(Ch, 5000)) end,
                      fun() -> ?assertEqual({ok, 2}, py_channel:try_receive(Ch)) end,
                      fun() -> ?assertEqual(ok, py_channel:send(Ch, 3, 5000)), ?assertEqual({error, timeout}, py_channel:flush(Ch, 50)) end]],
    run(Config, fun(_) ->
        ?assertEqual({ok, [3]}, call('receive', [Ch])),
        ok = py_channel:close(Ch)
    end).

threads_and_coroutines_share_a_channel(Config) ->
    run(Config, fun(_) ->
        {ok, Ch} = py_channel:new(#{max_size => 20000}),
        Consumers = start(consumers, [Ch, 4, 4]),
        Senders = [spawn_monitor(fun() ->
            [ok = py_channel:send(Ch, {S, N}, infinity) || N <- lists:seq(1, 2000)]
        end) || S <- lists:seq(1, 8)],
        [receive {'DOWN', M, process, P, Why} -> ?assertEqual(normal, Why) end || {P, M} <- Senders],
        ok = py_channel:close(Ch),
        {ok, Each} = await(Consumers),
        ?assertEqual(8, length(Each)),
        ?assertEqual(lists:sort([{S, N} || S <- lists:seq(1, 8), N <- lists:seq(1, 2000)]), lists:sort(lists:append(Each))),
        % Every consumer saw every sender's in their order.
        [?assertEqual(Of, lists:sort(Of)) || Messages <- Each, S <- lists:seq(1, 8), Of <- [[N || {T, N} <- Messages, T =:= S]]]
    end).

who_leaves_a_loop_or_gives_up_loses_nothing_for_others(Config) ->
    run(Config, fun(_) ->
        {ok, Ch} = py_channel:new(),
        [ok = py_channel:send(Ch, N) || N <- lists:seq(1, 100)],
        ok = py_channel:close(Ch),
        ?assertEqual({ok, lists:seq(1, 10)}, call(break_off, [Ch, 10])),
        ?assertEqual({ok, lists:seq(11, 100)}, call(collect, [Ch])),
        {ok, Two} = py_channel:new(),
        [?assertEqual({ok, <<"message">>}, call(lose_a_waiter, [Two])) || _ <- lists:seq(1, 50)],
        ok = py_channel:close(Two)
    end).

a_cancelled_consumer_stops_waiting(Config) ->
    run(Config, fun(_) ->
        [begin
            {ok, Ch} = py_channel:new(#{owner => none}),
            Test = self(),
            Caller = spawn(fun() -> py:call(channels, F, [Test, Ch]) end),
            ?assertEqual(<<"begun">>, sw_e2e:tell_test(5000)),
            ok = py_channel:send(Ch, one),
            ?assertEqual(one, sw_e2e:tell_test(5000)),
            exit(Caller, kill),
            ?assertEqual(Exception, sw_e2e:tell_test(5000)),
            ok = py_channel:send(Ch, two),
            ?assertEqual({ok, [two]}, call('receive', [Ch])),
            ok = py_channel:close(Ch)
        end || {F, Exception} <- [{tell_each, <<"Cancelled">>}, {tell_each_async, <<"CancelledError">>}]]
    end).

%% --- The end --------------------------------------------------------------------------------------

an_owner_that_ends_closes_the_channel_behind_its_messages(Config) ->
    run(Config, fun(_) ->
        Test = self(),
        [begin
            {Owner, Monitor} = spawn_monitor(fun() ->
                {ok, Ch} = py_channel:new(),
                Test ! {channel, Ch},
                receive go -> ok end,
                [ok = py_channel:send(Ch, N) || N <- lists:seq(1, 1000)],
                exit(Reason)
            end),
            Ch = receive {channel, C} -> C after 5000 -> error(no_channel) end,
            Watch = monitor(process, Ch),
            Consumer = start(collect, [Ch]),
            Owner ! go,
            receive {'DOWN', Monitor, process, Owner, Reason} -> ok after 5000 -> error(owner) end,
            ?assertEqual({ok, lists:seq(1, 1000)}, await(Consumer)),
            receive {'DOWN', Watch, process, Ch, Told} -> ?assertEqual(Reason, Told) after 5000 -> error(no_down) end,
            ?assertEqual({error, closed}, py_channel:send(Ch, x))
        end || Reason <- [normal, {because, 1}]]
    end).

a_lost_link_closes_the_channel_on_both_sides(Config) ->
    Lost = application_beam(sw_e2e:context(Config), proplists:get_value(node, Config)),
    Ch = sw_e2e:on(Lost, fun() ->
        {ok, Ch} = py_channel:new(#{owner => none}),
        [ok = py_channel:send(Ch, N) || N <- lists:seq(1, 100)],
        Ch
    end),
    Watch = run(Config, fun(_) ->
        ok = sw_e2e:eventually(fun() -> maps:get(received, py_channel:info(Ch)) =:= 100 end),
        Test = self(),
        Pid = spawn(fun() ->
            Monitor = monitor(process, Ch),
            Test ! watching,
            receive {'DOWN', Monitor, process, Ch, Why} -> receive {get, From} -> From ! {ended, Why} end end
        end),
        receive watching -> Pid end
    end),
    ok = sw_e2e:kill_beam(Lost),
    run(Config, fun(_) ->
        Watch ! {get, self()},
        receive {ended, Why} -> ?assertEqual(noconnection, Why) after 5000 -> error(not_closed) end,
        % What arrived is still there.
        ?assertEqual({ok, lists:seq(1, 100)}, call(collect, [Ch])),
        ?assertEqual({error, closed}, eventually_closed(Ch))
    end).

a_node_that_dies_is_closed_channels(Config) ->
    Context = sw_e2e:context(Config),
    Node = #{name := Name, program := Program} = sw_e2e:start_node(Context, #{args => ["--workers", "2"]}),
    Beam = application_beam(Context, Node),
    Pids = sw_e2e:on(Beam, fun() ->
        {ok, Ch} = py_channel:new(Name, #{max_size => 100}),
        ok = py_channel:send(Ch, binary:copy(<<"x">>, 90)),
        Result = fun(What) -> {Pid, _} = spawn_monitor(fun() -> exit({result, What()}) end), Pid end,
        {Ch, [Result(fun() -> py_channel:send(Ch, binary:copy(<<"x">>, 90), infinity) end),
              Result(fun() -> py_channel:recv(Ch) end),
              Result(fun() -> py_channel:flush(Ch, infinity) end)]}
    end),
    {Ch, Waiting} = Pids,
    Answers = sw_e2e:on(Beam, fun() ->
        [begin M = monitor(process, P), {M, P} end || P <- Waiting]
    end),
    ?assertEqual(3, length(Answers)),
    ok = sw_e2e:kill(Program),
    sw_e2e:on(Beam, fun() ->
        ok = sw_e2e:eventually(fun() -> not lists:any(fun is_process_alive/1, Waiting) end, 5000),
        ?assertEqual({error, closed}, py_channel:send(Ch, 1)),
        ?assertEqual({error, closed}, py_channel:recv(Ch)),
        ?assertMatch(#{closed := true}, py_channel:info(Ch)),
        ?assertEqual(ok, py_channel:close(Ch))
    end),
    ok = sw_e2e:stop_beam(Beam).

a_flood_outside_the_credit_closes_the_channel_with_overflow(Config) ->
    run(Config, fun(_) ->
        {ok, Ch} = py_channel:new(#{max_size => 1000}),
        Monitor = monitor(process, Ch),
        Blob = binary:copy(<<"x">>, 100_000),
        [Ch ! Blob || _ <- lists:seq(1, 30)],
        receive {'DOWN', Monitor, process, Ch, Why} -> ?assertEqual(overflow, Why) after 5000 -> error(no_down) end,
        ?assertEqual({error, closed}, eventually_closed(Ch)),
        % What came before is whole.
        {ok, All} = call(collect, [Ch]),
        ?assert(length(All) >= 10),
        ?assertEqual([Blob], lists:usort(All))
    end).

%% --- Python to Erlang -----------------------------------------------------------------------------

python_sends_and_erlang_receives(Config) ->
    run(Config, fun(_) ->
        Terms = [1, {a, b}, [], [1, 2, 3], <<"text">>, #{k => v}, 1.5, self()],
        [begin
            {ok, Ch} = py_channel:new(),
            Sender = start(Send, [Ch, 3000]),
            ?assertEqual(lists:seq(0, 2999), [begin {ok, N} = py_channel:recv(Ch, 5000), N end || _ <- lists:seq(1, 3000)]),
            ?assertEqual({ok, 3000}, await(Sender)),
            ?assertEqual({error, empty}, py_channel:try_receive(Ch)),
            {ok, 8} = call(send_all, [Ch, Terms]),
            ?assertEqual([{ok, T} || T <- Terms], [py_channel:recv(Ch, 5000) || _ <- Terms]),
            % What was sent before the close is received, in both directions.
            {ok, 3} = call(send_all, [Ch, [1, 2, 3]]),
            {ok, Told} = call(close, [Ch]),
            ?assertEqual(<<"the channel is closed: normal">>, Told),
            ?assertEqual([{ok, 1}, {ok, 2}, {ok, 3}, {error, closed}], [py_channel:recv(Ch, 5000) || _ <- [1, 2, 3, 4]])
         end || Send <- [send_numbers, send_numbers_async]],
        {ok, Echo} = py_channel:new(),
        Echoing = start(echo, [Echo]),
        [begin
            ok = py_channel:send(Echo, N),
            ?assertEqual({ok, N}, py_channel:recv(Echo, 5000))
         end || N <- lists:seq(1, 200)],
        ok = py_channel:close(Echo),
        ?assertEqual({ok, none}, await(Echoing))
    end).

python_waits_for_room_too(Config) ->
    run(Config, fun(_) ->
        Message = binary:copy(<<"x">>, 95),
        {ok, Ch} = py_channel:new(#{max_size => 1000}),
        ?assertEqual({ok, {10, <<"TimeoutError">>}}, call(fill, [Ch, Message])),
        ?assertMatch(#{size_out := 1000}, py_channel:info(Ch)),
        Sender = start(send_all, [Ch, [Message, Message]]),
        AsyncSender = start(send_numbers_async, [Ch, 100]),
        All = [begin {ok, M} = py_channel:recv(Ch, 5000), M end || _ <- lists:seq(1, 112)],
        ?assertEqual(12, length([M || M <- All, M =:= Message])),
        ?assertEqual(lists:seq(0, 99), [N || N <- All, is_integer(N)]),
        ?assertEqual({ok, 2}, await(Sender)),
        ?assertEqual({ok, 100}, await(AsyncSender)),
        {ok, _} = call(fill, [Ch, Message]),
        Late = start(send_all, [Ch, [Message]]),
        timer:sleep(50),
        ok = py_channel:close(Ch),
        ?assertMatch({error, {python, <<"erlang.exceptions.ChannelClosed">>, _, _}}, await(Late))
    end).

receivers_share_and_a_dead_one_takes_nothing(Config) ->
    run(Config, fun(_) ->
        {ok, Ch} = py_channel:new(),
        Test = self(),
        Dead = [spawn(fun() -> py_channel:recv(Ch) end) || _ <- lists:seq(1, 5)],
        timer:sleep(100),
        [exit(P, kill) || P <- Dead],
        timer:sleep(100),
        Workers = [spawn_link(fun() -> receiver(Ch, Test, 0) end) || _ <- lists:seq(1, 4)],
        {ok, 2000} = call(send_numbers, [Ch, 2000]),
        Got = [receive {got, W, N} -> {W, N} after 5000 -> error({missing, I}) end || I <- lists:seq(1, 2000)],
        ?assertEqual(lists:seq(0, 1999), lists:sort([N || {_, N} <- Got])),
        ok = py_channel:close(Ch),
        [receive {done, W, closed} -> ok after 5000 -> error(not_done) end || W <- Workers]
    end).

receiver(Ch, Test, N) ->
    case py_channel:recv(Ch) of
        {ok, Message} -> Test ! {got, self(), Message}, receiver(Ch, Test, N + 1);
        {error, Reason} -> Test ! {done, self(), Reason}
    end.

a_byte_channel_carries_bytes(Config) ->
    run(Config, fun(_) ->
        {ok, Ch} = py_byte_channel:new(#{max_size => 8_000_000}),
        Echoing = start(echo_bytes, [Ch]),
        Bodies = [<<>>, <<"text">>, <<0, 255>>, crypto:strong_rand_bytes(70_000), binary:copy(<<"y">>, 3_000_000)],
        [ok = py_byte_channel:send(Ch, Body, 5000) || Body <- Bodies],
        ok = py_byte_channel:send(Ch, [<<"io">>, "data"]),
        ?assertEqual([{ok, B} || B <- Bodies ++ [<<"iodata">>]], [py_byte_channel:recv(Ch, 5000) || _ <- lists:seq(1, 6)]),
        ?assertEqual({error, empty}, py_byte_channel:try_receive(Ch)),
        ?assertEqual({error, timeout}, py_byte_channel:recv(Ch, 10)),
        ok = py_byte_channel:close(Ch),
        ?assertEqual({ok, lists:duplicate(6, <<"bytes">>)}, await(Echoing)),
        ?assertEqual({error, closed}, py_byte_channel:recv(Ch)),
        ?assertError(badarg, py_byte_channel:send(Ch, not_bytes)),
        {ok, Bound} = py_byte_channel:new(#{max_size => 10}),
        ?assertEqual([ok, busy], [py_byte_channel:send(Bound, <<"0123456789">>) || _ <- [1, 2]]),
        ok = py_byte_channel:close(Bound)
    end).

a_view_is_the_bytes_where_they_lie(Config) ->
    run(Config, fun(_) ->
        [begin
            {ok, Ch} = py_byte_channel:new(#{max_size => 8_000_000}),
            Bodies = [<<>>, <<"small">>, crypto:strong_rand_bytes(65_531), crypto:strong_rand_bytes(65_600), crypto:strong_rand_bytes(3_000_000)],
            [ok = py_byte_channel:send(Ch, Body) || Body <- Bodies],
            ok = py_channel:close(Ch),
            % Digests of all views, taken when the channel is gone and all are held.
            Digests = [crypto:hash(sha256, Body) || Body <- Bodies],
            ?assertEqual({ok, [{<<"memoryview">>, true, {bytes, D}} || D <- Digests]},
                         tagged(call(View, [Ch])))
         end || View <- [views, views_async]]
    end).

%% Python's bytes, whatever is in them.
tagged({ok, Views}) -> {ok, [{Type, ReadOnly, {bytes, Digest}} || {Type, ReadOnly, Digest} <- Views]};
tagged(Other) -> Other.

large_and_small_messages_keep_their_order(Config) ->
    run(Config, fun(_) ->
        Large = fun(N) -> {N, binary:copy(<<"z">>, 70_000 + N)} end,
        Message = fun(N) when N rem 7 =:= 0 -> Large(N); (N) -> {N, small} end,
        Sent = [Message(N) || N <- lists:seq(1, 200)],
        % Small ones first, so that the carrier takes over from the link in the middle; and one that
        % waits for room as well as one that does not.
        [begin
            {ok, Ch} = py_channel:new(#{max_size => Max}),
            Consumer = start(Collect, [Ch]),
            [ok = py_channel:send(Ch, Term, 10000) || Term <- Sent],
            ?assertEqual(ok, py_channel:flush(Ch, 10000)),
            ?assertMatch(#{size := 0, received := 200, consumed := 200}, py_channel:info(Ch)),
            [ok = py_channel:send(Ch, Term, 10000) || Term <- Sent],
            ok = py_channel:close(Ch),
            ?assertEqual({ok, Sent ++ Sent}, await(Consumer)),
            ?assertEqual({error, closed}, py_channel:send(Ch, element(2, Large(1))))
         end || Collect <- [collect, collect_async], Max <- [infinity, 80_000]],
        % Its owner's end stays behind them as well.
        Told = self(),
        Owner = spawn(fun() ->
            {ok, Ch} = py_channel:new(#{max_size => infinity}),
            [ok = py_channel:send(Ch, Term) || Term <- Sent],
            Told ! {sent, Ch}
        end),
        Monitor = monitor(process, Owner),
        Owned = receive {sent, Its} -> Its after 10000 -> error(not_sent) end,
        receive {'DOWN', Monitor, process, Owner, _} -> ok end,
        ?assertEqual({ok, Sent}, call(collect, [Owned])),
        ok = sw_e2e:eventually(fun() -> carriers() =:= [] end, 5000)
    end).

carriers() -> [P || P <- processes(), proc_lib:translate_initial_call(P) =:= {py_channel_carrier, init, 2}].

a_large_body_holds_up_no_other_channel(Config) ->
    run(Config, fun(_) ->
        {ok, Ch} = py_channel:new(),
        Echoing = start(echo, [Ch]),
        Body = binary:copy(<<0>>, 100_000_000),
        Beside = fun() ->
            {ok, Bulk} = py_byte_channel:new(#{max_size => infinity}),
            {Counting, Monitor} = spawn_monitor(fun() -> exit(call(count_bytes, [Bulk])) end),
            Start = erlang:monotonic_time(microsecond),
            ok = py_byte_channel:send(Bulk, Body),
            ok = py_byte_channel:send(Bulk, Body),
            ok = py_byte_channel:close(Bulk),
            Longest = longest_ping(Ch, {Counting, Monitor}, 0),
            Longest / (erlang:monotonic_time(microsecond) - Start)
        end,
        % Behind the bodies a ping would take most of the time they take.
        Shares = [Beside() || _ <- [1, 2, 3]],
        ok = py_channel:close(Ch),
        {ok, none} = await(Echoing),
        ?assert(lists:min(Shares) < 0.25, Shares)
    end).

longest_ping(Ch, {Counting, Monitor} = Until, Longest) ->
    {Time, {ok, ping}} = timer:tc(fun() -> ok = py_channel:send(Ch, ping), py_channel:recv(Ch, 30000) end),
    receive
        {'DOWN', Monitor, process, Counting, Result} ->
            ?assertEqual({ok, 200_000_000}, Result),
            max(Time, Longest)
    after 0 ->
        longest_ping(Ch, Until, max(Time, Longest))
    end.

a_carrier_that_is_killed_closes_its_channel(Config) ->
    run(Config, fun(_) ->
        {ok, Ch} = py_channel:new(#{owner => none}),
        Monitor = monitor(process, Ch),
        ok = py_channel:send(Ch, binary:copy(<<"z">>, 70_000)),
        ?assertMatch(#{received := 1}, py_channel:info(Ch)),
        [Carrier] = carriers(),
        % Questions that stand behind its messages end with it, and are answered all the same.
        true = erlang:suspend_process(Carrier),
        Asking = [spawn_monitor(fun() -> exit({answer, Ask()}) end)
                  || Ask <- [fun() -> maps:get(closed, py_channel:info(Ch)) end,
                             fun() -> py_channel:flush(Ch, infinity) end]],
        ok = sw_e2e:eventually(fun() -> {message_queue_len, 2} =:= process_info(Carrier, message_queue_len) end),
        exit(Carrier, kill),
        ?assertEqual([true, {error, closed}],
                     [receive {'DOWN', M, process, P, {answer, Answer}} -> Answer after 5000 -> unanswered end
                      || {P, M} <- Asking]),
        receive {'DOWN', Monitor, process, Ch, Reason} -> ?assertEqual(killed, Reason) after 5000 -> error(no_down) end,
        ?assertEqual({error, closed}, eventually_closed(Ch)),
        {ok, [_]} = call(collect, [Ch])
    end).

flush_waits_for_the_consumer_and_info_counts(Config) ->
    run(Config, fun(_) ->
        {ok, Ch} = py_channel:new(),
        ?assertEqual(ok, py_channel:flush(Ch, 5000)),
        [ok = py_channel:send(Ch, N) || N <- lists:seq(1, 10)],
        ?assertEqual({error, timeout}, py_channel:flush(Ch, 50)),
        Consumer = start(receive_slowly, [Ch, 0.01]),
        ?assertEqual(ok, py_channel:flush(Ch, 5000)),
        ?assertMatch(#{received := 10, consumed := 10, size := 0, max_size := 1048576, closed := false}, py_channel:info(Ch)),
        ok = py_channel:close(Ch),
        ?assertEqual({ok, lists:seq(1, 10)}, await(Consumer)),
        ?assertEqual({error, closed}, py_channel:flush(Ch, 5000)),
        ok = sw_e2e:eventually(fun() -> maps:get(closed, py_channel:info(Ch)) end),
        ?assertMatch(#{consumed := 10}, py_channel:info(Ch))
    end).

%% The process that carries the channels of a node has no more rights than others.
a_link_process_that_is_killed_is_closed_channels(Config) ->
    run(Config, fun(N) ->
        {ok, Ch} = py_channel:new(#{max_size => 100, owner => none}),
        Monitor = monitor(process, Ch),
        ok = py_channel:send(Ch, binary:copy(<<"x">>, 80)),
        Waiting = spawn_monitor(fun() -> exit({result, py_channel:send(Ch, binary:copy(<<"x">>, 80), infinity)}) end),
        timer:sleep(50),
        {ok, Link} = py_channel_link:ensure(N),
        exit(Link, kill),
        {Waiter, Watch} = Waiting,
        receive {'DOWN', Watch, process, Waiter, Result} -> ?assertEqual({result, {error, closed}}, Result) after 5000 -> error(waits) end,
        receive {'DOWN', Monitor, process, Ch, _} -> ok after 5000 -> error(no_down) end,
        ?assertEqual({error, closed}, eventually_closed(Ch)),
        {ok, Another} = py_channel:new(),
        ok = py_channel:send(Another, 1),
        ?assertEqual({ok, [1]}, call('receive', [Another])),
        ok = py_channel:close(Another)
    end).

%% Eight senders on two BEAMs, four threads and four coroutines, a bound that is nearly always
%% reached: for CHANNEL_SECONDS.
many_senders_and_many_consumers_lose_double_and_reorder_nothing(Config) ->
    Seconds = list_to_integer(os:getenv("CHANNEL_SECONDS", "5")),
    #{name := Name} = Node = proplists:get_value(node, Config),
    Beam = proplists:get_value(beam, Config),
    Other = application_beam(sw_e2e:context(Config), Node),
    Pads = [<<>>, <<"x">>, binary:copy(<<"x">>, 100), binary:copy(<<"x">>, 1000)],
    Patience = (Seconds + 60) * 1000,
    Ch = sw_e2e:on(Beam, fun() -> {ok, Ch} = py_channel:new(Name, #{max_size => 65536, owner => none}), Ch end),
    Self = self(),
    Apart = fun(Tag, Where, Function) ->
        spawn_link(fun() -> Self ! {Tag, sw_e2e:on(Where, Function, Patience)} end)
    end,
    Sending = fun(From) ->
        End = erlang:monotonic_time(second) + Seconds,
        Senders = [spawn_monitor(fun() -> exit({sent, send_until(Ch, Id, End, 0, Pads)}) end)
                   || Id <- lists:seq(From, From + 3)],
        [receive {'DOWN', M, process, P, {sent, Count}} -> Count end || {P, M} <- Senders]
    end,
    Apart(tallied, Beam, fun() -> py:call(channels, tally, [Ch, 8, 4, 4], #{}, Patience) end),
    Apart(here, Beam, fun() -> Sending(0) end),
    Apart(there, Other, fun() -> Sending(4) end),
    Counts = receive {here, Here} -> Here end ++ receive {there, There} -> There end,
    % The close is behind what its own BEAM sent, not behind the other's.
    ok = sw_e2e:on(Other, fun() -> py_channel:flush(Ch, 30000) end),
    ok = sw_e2e:on(Beam, fun() -> py_channel:close(Ch) end),
    ?assertEqual({ok, Counts}, receive {tallied, Tallied} -> Tallied end),
    ct:pal("~p messages a second", [lists:sum(Counts) div Seconds]),
    ok = sw_e2e:stop_beam(Other),
    ?assert(lists:min(Counts) > 100 * Seconds, Counts).

send_until(Ch, Id, End, N, [Pad | Pads]) ->
    ok = py_channel:send(Ch, {Id, N, Pad}, 30000),
    case N rem 64 =:= 0 andalso erlang:monotonic_time(second) >= End of
        true -> N + 1;
        false -> send_until(Ch, Id, End, N + 1, Pads ++ [Pad])
    end.

ten_thousand_channels_leave_nothing_behind(Config) ->
    run(Config, fun(_) ->
        Rows = ets:info(py_channels, size),
        {ok, Before} = py:call(erlang, stats, []),
        [begin
            Some = [begin {ok, Ch} = py_channel:new(), Ch end || _ <- lists:seq(1, 100)],
            [ok = py_channel:send(Ch, x) || Ch <- Some],
            {ok, _} = py:call(channels, 'receive', [hd(Some)]),
            [ok = py_channel:close(Ch) || Ch <- Some]
        end || _ <- lists:seq(1, 100)],
        ok = sw_e2e:eventually(fun() -> ets:info(py_channels, size) =:= Rows end),
        {ok, After} = py:call(erlang, stats, []),
        ?assertEqual(maps:get(<<"channels">>, Before), maps:get(<<"channels">>, After))
    end).
