%% Event loops of a real node, operated from a BEAM with the application: py_event_loop and
%% py_event_router.
-module(loop_SUITE).

-include_lib("stdlib/include/assert.hrl").

-export([all/0, suite/0, init_per_suite/1, end_per_suite/1, end_per_testcase/2]).
-compile([export_all, nowarn_export_all]).

suite() -> [{timetrap, {seconds, 120}}].

all() ->
    [what_is_readable_is_collected_and_then_armed_again,
     what_is_writable_is_told_of_once,
     poll_waits_no_longer_than_it_may_and_wakes_for_an_event,
     readiness_reaches_who_subscribed_to_its_id,
     a_process_can_be_the_router_itself,
     what_nobody_has_subscribed_to_is_kept_and_what_is_too_much_dropped,
     a_descriptor_that_nobody_reads_is_told_of_once_until_it_is_armed_again,
     a_drained_socket_is_armed_again,
     timers_fire_in_order_and_not_early,
     a_cancelled_timer_is_never_heard_of,
     a_removed_reader_is_never_heard_of,
     a_reader_takes_the_place_of_the_one_before,
     what_is_collected_when_a_router_comes_is_sent_to_it_first,
     a_router_that_dies_leaves_its_events_to_who_comes_next,
     a_subscriber_that_dies_is_forgotten,
     a_closed_descriptor_is_refused_and_found_out,
     arguments_of_the_wrong_kind_raise_in_the_caller,
     every_bound_is_told_where_it_is,
     a_node_without_descriptors_makes_no_loop_and_can_later,
     a_destroyed_loop_is_closed_and_leaves_nothing,
     a_loop_is_a_process,
     an_owner_that_dies_takes_its_loop_with_it,
     a_loop_of_an_owner_that_is_dead_already_ends,
     who_polls_when_the_loop_ends_is_told,
     a_caller_that_gives_up_leaves_nothing_behind,
     many_callers_share_a_loop,
     a_node_that_is_stopped_ends_its_loops_first,
     a_node_that_dies_is_down_and_a_new_one_knows_nothing_of_its_loops].

init_per_suite(Config0) ->
    Config = sw_e2e:setup(Config0),
    Context = sw_e2e:context(Config),
    Node = sw_e2e:start_node(Context),
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

%% No loop, and no thread or descriptor of one, outlives its test.
end_per_testcase(_, Config) ->
    case proplists:get_value(node, Config) of
        undefined -> ok;
        _ -> run(Config, fun(_) -> ok = sw_e2e:eventually(fun() -> left() =:= {0, 0, 0} end, 10000) end)
    end.

left() ->
    {ok, Left} = call(left, []),
    Left.

run(Config, Body) ->
    #{name := Node} = proplists:get_value(node, Config),
    sw_e2e:on(proplists:get_value(beam, Config), fun() -> Body(Node) end, 110000).

call(F, Args) -> py:call(loops, F, Args).

%% A loop with a socket to be written to and one to write from.
sockets(N) ->
    {ok, Loop} = py_event_loop:new(N),
    {ok, {Fd, Port}} = py_event_loop:create_test_udp_socket(Loop, 0),
    {ok, {From, _}} = py_event_loop:create_test_udp_socket(Loop, 0),
    Send = fun(Data) -> ok = py_event_loop:sendto_test_udp(Loop, From, "127.0.0.1", Port, Data) end,
    {Loop, Fd, Send}.

%% What the router's messages say until there are none for so long.
events(Loop, Quiet) ->
    receive
        {py_event, Loop, Event} -> [Event | events(Loop, Quiet)]
    after Quiet -> []
    end.

event(Loop) ->
    receive
        {py_event, Loop, Event} -> Event
    after 10000 -> error({no_event, process_info(self(), messages)})
    end.

down(Monitor) ->
    receive
        {'DOWN', Monitor, process, _, Reason} -> Reason
    after 10000 -> error(no_down)
    end.

%% A process that does as it is told; its end is the test's to choose.
puppet() ->
    spawn(fun Live() -> receive {Who, Do} -> Who ! {self(), Do()}, Live() end end).

tell(Puppet, Do) ->
    Puppet ! {self(), Do},
    receive {Puppet, Result} -> Result after 10000 -> error(silent) end.

%% --- collected events ---------------------------------------------------------------------------

what_is_readable_is_collected_and_then_armed_again(Config) ->
    run(Config, fun(N) ->
        ?assertEqual({ok, <<"ErlangEventLoop">>}, call(kind, [])),
        {Loop, Fd, Send} = sockets(N),
        ?assertEqual(N, node(Loop)),
        {ok, Ref} = py_event_loop:add_reader(Loop, Fd, 7),
        ?assert(is_reference(Ref)),
        ?assertEqual({ok, 0}, py_event_loop:poll_events(Loop, 50)),
        ?assertEqual({ok, []}, py_event_loop:get_pending(Loop)),
        Send(<<"one">>),
        Send(["t", <<"wo">>]),
        ?assertEqual({ok, 1}, py_event_loop:poll_events(Loop, 10000)),
        ?assertEqual({ok, 1}, py_event_loop:poll_events(Loop, infinity)),
        ?assertEqual({ok, [{readable, Fd, 7}]}, py_event_loop:get_pending(Loop)),
        % Not read yet, so it happens again.
        ?assertEqual({ok, 1}, py_event_loop:poll_events(Loop, 10000)),
        ?assertMatch({ok, {<<"one">>, {<<"127.0.0.1">>, _}}}, py_event_loop:recvfrom_test_udp(Loop, Fd, 100)),
        ?assertMatch({ok, {<<"t">>, _}}, py_event_loop:recvfrom_test_udp(Loop, Fd, 1)),
        ?assertEqual({ok, [{readable, Fd, 7}]}, py_event_loop:get_pending(Loop)),
        % Read, so it does not.
        ?assertEqual({ok, 0}, py_event_loop:poll_events(Loop, 50)),
        ?assertEqual({error, eagain}, py_event_loop:recvfrom_test_udp(Loop, Fd, 100)),
        Send(<<255>>),
        ?assertEqual({ok, 1}, py_event_loop:poll_events(Loop, 10000)),
        ?assertMatch({ok, {<<255>>, _}}, py_event_loop:recvfrom_test_udp(Loop, Fd, 100)),
        ?assertEqual(ok, py_event_loop:destroy(Loop))
    end).

what_is_writable_is_told_of_once(Config) ->
    run(Config, fun(N) ->
        {ok, Loop} = py_event_loop:new(N),
        {ok, {Reader, Writer}} = call(pipe, []),
        {ok, _} = py_event_loop:add_reader(Loop, Reader, 1),
        {ok, Ref} = py_event_loop:add_writer(Loop, Writer, 2),
        ?assertEqual({ok, 1}, py_event_loop:poll_events(Loop, 10000)),
        ?assertEqual({ok, #{readers => 1, writers => 1, timers => 0, pending => 1, sockets => 0, router => none}},
                     py_event_loop:info(Loop)),
        ok = py_event_loop:set_router(Loop, self()),
        ?assertEqual([{writable, Writer, 2}], events(Loop, 100)),
        % One that is removed as a reader stays a writer.
        ok = py_event_loop:remove_reader(Loop, Ref),
        ok = py_event_loop:remove_reader(Loop, Writer),
        ok = py_event_loop:rearm(Loop, Ref),
        ?assertEqual([{writable, Writer, 2}], events(Loop, 100)),
        ok = py_event_loop:remove_writer(Loop, Writer),
        ok = py_event_loop:rearm(Loop, Writer),
        ?assertEqual([], events(Loop, 50)),
        {ok, 1} = call(write, [Writer, <<"x">>]),
        ?assertEqual({readable, Reader, 1}, event(Loop)),
        ok = py_event_loop:destroy(Loop),
        {ok, _} = call(close, [Reader, Writer])
    end).

poll_waits_no_longer_than_it_may_and_wakes_for_an_event(Config) ->
    run(Config, fun(N) ->
        {Loop, Fd, Send} = sockets(N),
        {ok, _} = py_event_loop:add_reader(Loop, Fd, 1),
        ?assertEqual({ok, 0}, py_event_loop:poll_events(Loop, 0)),
        Late = sw_e2e:elapsed(fun() -> ?assertEqual({ok, 0}, py_event_loop:poll_events(Loop, 100)) end),
        ?assert(Late >= 100),
        ok = sw_e2e:within(1000, fun() -> py_event_loop:poll_events(Loop, 100) end),
        Test = self(),
        Pollers = [spawn_link(fun() -> Test ! {self(), py_event_loop:poll_events(Loop, infinity)} end) || _ <- lists:seq(1, 3)],
        timer:sleep(100),
        Send(<<"x">>),
        [receive {Poller, Result} -> ?assertEqual({ok, 1}, Result) after 10000 -> error(not_woken) end || Poller <- Pollers],
        % What was collected by another in the meantime is no reason to wake, nor to give up.
        {ok, _} = py_event_loop:recvfrom_test_udp(Loop, Fd, 10),
        {ok, [_]} = py_event_loop:get_pending(Loop),
        {ok, _} = py_event_loop:start_timer(Loop, 300, 2),
        ?assertEqual({ok, 1}, py_event_loop:poll_events(Loop, 10000)),
        ok = py_event_loop:destroy(Loop)
    end).

%% --- routers --------------------------------------------------------------------------------------

readiness_reaches_who_subscribed_to_its_id(Config) ->
    run(Config, fun(N) ->
        {Loop, Fd, Send} = sockets(N),
        {ok, Router} = py_event_router:start_link(Loop),
        ?assertMatch({ok, #{router := Router}}, py_event_loop:info(Loop)),
        Test = self(),
        [All, One, Other] = [spawn_link(fun() ->
            ok = Subscribe(),
            Test ! {self(), subscribed},
            (fun Pass() -> receive Message -> Test ! {self(), Message}, Pass() end end)()
        end) || Subscribe <- [fun() -> py_event_router:subscribe(Router) end,
                              fun() -> py_event_router:subscribe(Router, 1) end,
                              fun() -> py_event_router:subscribe(Router, 2) end]],
        [receive {Pid, subscribed} -> ok end || Pid <- [All, One, Other]],
        % However often, and to its Id and to all: each event comes once.
        [ok = py_event_router:subscribe(Router, Id) || Id <- [1, 1, 5]],
        {ok, _} = py_event_loop:add_reader(Loop, Fd, 1),
        Send(<<"x">>),
        Message = {py_event, Loop, {readable, Fd, 1}},
        [receive {Pid, Got} -> ?assertEqual(Message, Got) after 10000 -> error(not_told) end || Pid <- [All, One]],
        ?assertEqual([{readable, Fd, 1}], events(Loop, 100)),
        ?assertEqual(nothing, receive {Other, M} -> M after 0 -> nothing end),
        ?assertEqual({ok, 0}, py_event_loop:poll_events(Loop, 20)),
        {ok, Ref} = py_event_loop:start_timer(Loop, 1, 2),
        [receive {Pid, Got} -> ?assertEqual({py_event, Loop, {timeout, Ref, 2}}, Got) after 10000 -> error(not_told) end
         || Pid <- [All, Other]],
        ?assertEqual([], events(Loop, 50)),
        ok = py_event_router:subscribe(Router),
        {ok, Both} = py_event_loop:start_timer(Loop, 1, 5),
        ?assertEqual([{timeout, Both, 5}], events(Loop, 50)),
        [receive {Pid, {py_event, Loop, {timeout, Both, 5}}} -> ok after 10000 -> error(not_told) end || Pid <- [All]],
        ok = py_event_router:unsubscribe(Router),
        [ok = py_event_router:subscribe(Router, Id) || Id <- [1, 5]],
        ok = py_event_router:unsubscribe(Router, 1),
        {ok, Five} = py_event_loop:start_timer(Loop, 1, 5),
        ?assertEqual([{timeout, Five, 5}], events(Loop, 50)),
        [receive {Pid, {py_event, Loop, {timeout, Five, 5}}} -> ok after 10000 -> error(not_told) end || Pid <- [All]],
        ok = py_event_loop:rearm(Loop, Fd),
        [receive {Pid, Got} -> ?assertEqual(Message, Got) after 10000 -> error(not_told) end || Pid <- [All, One]],
        ?assertEqual([], events(Loop, 50)),
        Monitor = monitor(process, Router),
        ok = py_event_loop:destroy(Loop),
        ?assertEqual(normal, down(Monitor)),
        ?assertMatch({error, {down, _}}, py_event_router:subscribe(Router)),
        ?assertEqual(ok, py_event_router:stop(Router)),
        {links, Links} = process_info(self(), links),
        [?assertEqual({error, closed}, py_event_router:start_link(Loop)) || _ <- lists:seq(1, 100)],
        ?assertEqual({links, Links}, process_info(self(), links))
    end).

a_process_can_be_the_router_itself(Config) ->
    run(Config, fun(N) ->
        {Loop, Fd, Send} = sockets(N),
        ok = py_event_loop:set_router(Loop, self()),
        {ok, Ref} = py_event_loop:add_reader(Loop, Fd, 3),
        Send(<<"x">>),
        ?assertEqual({readable, Fd, 3}, event(Loop)),
        ok = py_event_loop:rearm(Loop, Ref),
        ?assertEqual({readable, Fd, 3}, event(Loop)),
        ok = py_event_loop:set_router(Loop, none),
        % The reader was disarmed; who collects is told.
        ?assertEqual({ok, 1}, py_event_loop:poll_events(Loop, 10000)),
        ?assertEqual([], events(Loop, 50)),
        ok = py_event_loop:destroy(Loop)
    end).

what_nobody_has_subscribed_to_is_kept_and_what_is_too_much_dropped(Config) ->
    run(Config, fun(N) ->
        {Loop, Fd, Send} = sockets(N),
        {ok, Router} = py_event_router:start_link(Loop),
        {ok, _} = py_event_loop:add_reader(Loop, Fd, 1),
        Send(<<"x">>),
        Kept = fun() -> element(6, sys:get_state(Router)) end,
        ok = sw_e2e:eventually(fun() -> length(Kept()) =:= 1 end),
        {ok, Ref} = py_event_loop:start_timer(Loop, 0, 2),
        ok = sw_e2e:eventually(fun() -> length(Kept()) =:= 2 end),
        ok = py_event_router:subscribe(Router, 2),
        ?assertEqual([{timeout, Ref, 2}], events(Loop, 50)),
        ok = py_event_router:subscribe(Router),
        ?assertEqual([{readable, Fd, 1}], events(Loop, 50)),
        ok = py_event_router:unsubscribe(Router),
        % The oldest make room.
        [Router ! {py_event, Loop, {timeout, Ref, I}} || I <- lists:seq(1, 1030)],
        ?assertEqual(1024, length(Kept())),
        ok = py_event_router:subscribe(Router),
        ?assertEqual([{timeout, Ref, I} || I <- lists:seq(7, 1030)], events(Loop, 100)),
        ?assertEqual([], Kept()),
        ok = py_event_loop:destroy(Loop)
    end).

a_descriptor_that_nobody_reads_is_told_of_once_until_it_is_armed_again(Config) ->
    run(Config, fun(N) ->
        {Loop, Fd, Send} = sockets(N),
        ok = py_event_loop:set_router(Loop, self()),
        {ok, Ref} = py_event_loop:add_reader(Loop, Fd, 1),
        [Send(<<"x">>) || _ <- lists:seq(1, 50)],
        ?assertEqual([{readable, Fd, 1}], events(Loop, 300)),
        [begin
            ok = py_event_loop:rearm(Loop, Ref),
            ?assertEqual([{readable, Fd, 1}], events(Loop, 50))
         end || _ <- [1, 2, 3]],
        % Armed more than once, it is armed.
        {ok, _} = py_event_loop:recvfrom_test_udp(Loop, Fd, 10),
        ok = py_event_loop:set_router(Loop, none),
        ok = sw_e2e:eventually(fun() -> py_event_loop:poll_events(Loop, 0) =:= {ok, 1} end),
        [ok = py_event_loop:rearm(Loop, Fd) || _ <- [1, 2, 3]],
        timer:sleep(50),
        ?assertEqual({ok, [{readable, Fd, 1}]}, py_event_loop:get_pending(Loop)),
        ok = py_event_loop:destroy(Loop)
    end).

a_drained_socket_is_armed_again(Config) ->
    run(Config, fun(N) ->
        {Loop, Fd, Send} = sockets(N),
        ok = py_event_loop:set_router(Loop, self()),
        {ok, _} = py_event_loop:add_reader(Loop, Fd, 1),
        Send(<<"1">>),
        ?assertEqual({readable, Fd, 1}, event(Loop)),
        {ok, {<<"1">>, _}} = py_event_loop:recvfrom_test_udp(Loop, Fd, 10),
        Send(<<"2">>),
        ?assertEqual([], events(Loop, 50)),
        {ok, {<<"2">>, _}} = py_event_loop:recvfrom_test_udp(Loop, Fd, 10),
        {error, eagain} = py_event_loop:recvfrom_test_udp(Loop, Fd, 10),
        Send(<<"3">>),
        ?assertEqual([{readable, Fd, 1}], events(Loop, 100)),
        ok = py_event_loop:destroy(Loop)
    end).

%% --- timers ---------------------------------------------------------------------------------------

timers_fire_in_order_and_not_early(Config) ->
    run(Config, fun(N) ->
        {ok, Loop} = py_event_loop:new(N),
        Start = erlang:monotonic_time(),
        Refs = [{I, element(2, {ok, _} = py_event_loop:start_timer(Loop, Ms, I))} || {I, Ms} <- [{1, 300}, {2, 100}, {3, 200}]],
        ?assertEqual({ok, 1}, py_event_loop:poll_events(Loop, 10000)),
        ?assert(erlang:convert_time_unit(erlang:monotonic_time() - Start, native, millisecond) >= 100),
        ?assertEqual({ok, [{timeout, proplists:get_value(2, Refs), 2}]}, py_event_loop:get_pending(Loop)),
        ok = sw_e2e:eventually(fun() -> py_event_loop:poll_events(Loop, 0) =:= {ok, 2} end),
        ?assert(erlang:convert_time_unit(erlang:monotonic_time() - Start, native, millisecond) >= 300),
        ?assertEqual({ok, [{timeout, proplists:get_value(I, Refs), I} || I <- [3, 1]]}, py_event_loop:get_pending(Loop)),
        ?assertEqual({ok, []}, py_event_loop:get_pending(Loop)),
        ?assertMatch({ok, #{timers := 0}}, py_event_loop:info(Loop)),
        % To the router as well.
        {ok, Router} = py_event_router:start_link(Loop),
        ok = py_event_router:subscribe(Router),
        Again = [element(2, {ok, _} = py_event_loop:start_timer(Loop, Ms, 9)) || Ms <- [0, 200]],
        ?assertEqual([{timeout, Ref, 9} || Ref <- Again], events(Loop, 1000)),
        ?assertMatch({ok, #{timers := 0, pending := 0}}, py_event_loop:info(Loop)),
        ok = py_event_loop:destroy(Loop)
    end).

a_cancelled_timer_is_never_heard_of(Config) ->
    run(Config, fun(N) ->
        {ok, Loop} = py_event_loop:new(N),
        {ok, Soon} = py_event_loop:start_timer(Loop, 50, 1),
        {ok, Over} = py_event_loop:start_timer(Loop, 0, 2),
        {ok, Never} = py_event_loop:start_timer(Loop, 16#ffffffff, 3),
        {ok, 1} = py_event_loop:poll_events(Loop, 10000),
        ok = py_event_loop:cancel_timer(Loop, Soon),
        ok = py_event_loop:cancel_timer(Loop, Over),
        ok = py_event_loop:cancel_timer(Loop, Over),
        ok = py_event_loop:cancel_timer(Loop, make_ref()),
        ?assertEqual({ok, 0}, py_event_loop:poll_events(Loop, 150)),
        ?assertMatch({ok, #{timers := 1, pending := 0}}, py_event_loop:info(Loop)),
        ok = py_event_loop:cancel_timer(Loop, Never),
        ?assertMatch({ok, #{timers := 0, pending := 0}}, py_event_loop:info(Loop)),
        ok = py_event_loop:destroy(Loop)
    end).

%% --- removing and replacing -------------------------------------------------------------------------

a_removed_reader_is_never_heard_of(Config) ->
    run(Config, fun(N) ->
        {Loop, Fd, Send} = sockets(N),
        {ok, Ref} = py_event_loop:add_reader(Loop, Fd, 1),
        ok = py_event_loop:remove_reader(Loop, Ref),
        Send(<<"x">>),
        ?assertEqual({ok, 0}, py_event_loop:poll_events(Loop, 50)),
        ok = py_event_loop:remove_reader(Loop, Ref),
        ok = py_event_loop:remove_reader(Loop, Fd),
        ok = py_event_loop:remove_reader(Loop, 9999),
        % Nor is one whose event waits to be collected.
        {ok, _} = py_event_loop:add_reader(Loop, Fd, 2),
        {ok, 1} = py_event_loop:poll_events(Loop, 10000),
        ok = py_event_loop:remove_reader(Loop, Fd),
        ?assertEqual({ok, []}, py_event_loop:get_pending(Loop)),
        ?assertEqual({ok, 0}, py_event_loop:poll_events(Loop, 50)),
        ?assertMatch({ok, #{readers := 0, pending := 0}}, py_event_loop:info(Loop)),
        ok = py_event_loop:destroy(Loop)
    end).

a_reader_takes_the_place_of_the_one_before(Config) ->
    run(Config, fun(N) ->
        {Loop, Fd, Send} = sockets(N),
        {ok, First} = py_event_loop:add_reader(Loop, Fd, 1),
        Send(<<"x">>),
        {ok, 1} = py_event_loop:poll_events(Loop, 10000),
        {ok, Second} = py_event_loop:add_reader(Loop, Fd, 2),
        ?assertNotEqual(First, Second),
        % The reference of the one before removes nothing.
        ok = py_event_loop:remove_reader(Loop, First),
        {ok, 1} = py_event_loop:poll_events(Loop, 10000),
        ?assertEqual({ok, [{readable, Fd, 2}]}, py_event_loop:get_pending(Loop)),
        ?assertMatch({ok, #{readers := 1}}, py_event_loop:info(Loop)),
        ok = py_event_loop:destroy(Loop)
    end).

what_is_collected_when_a_router_comes_is_sent_to_it_first(Config) ->
    run(Config, fun(N) ->
        {Loop, Fd, Send} = sockets(N),
        {ok, Ref} = py_event_loop:start_timer(Loop, 0, 1),
        {ok, 1} = py_event_loop:poll_events(Loop, 10000),
        {ok, _} = py_event_loop:add_reader(Loop, Fd, 2),
        Send(<<"x">>),
        ok = sw_e2e:eventually(fun() -> py_event_loop:poll_events(Loop, 0) =:= {ok, 2} end),
        % What waits to be told cannot be armed yet.
        {ok, _} = py_event_loop:recvfrom_test_udp(Loop, Fd, 10),
        {error, eagain} = py_event_loop:recvfrom_test_udp(Loop, Fd, 10),
        ok = py_event_loop:rearm(Loop, Fd),
        ok = py_event_loop:set_router(Loop, self()),
        ?assertEqual([{timeout, Ref, 1}, {readable, Fd, 2}], events(Loop, 100)),
        Send(<<"y">>),
        ?assertEqual([], events(Loop, 50)),
        ok = py_event_loop:rearm(Loop, Fd),
        ?assertEqual([{readable, Fd, 2}], events(Loop, 100)),
        % The same router again is no change.
        ok = py_event_loop:set_router(Loop, self()),
        ?assertEqual([], events(Loop, 50)),
        ?assertEqual({ok, []}, py_event_loop:get_pending(Loop)),
        ok = py_event_loop:destroy(Loop)
    end).

%% --- those who die ----------------------------------------------------------------------------------

a_router_that_dies_leaves_its_events_to_who_comes_next(Config) ->
    run(Config, fun(N) ->
        process_flag(trap_exit, true),
        {Loop, Fd, Send} = sockets(N),
        {ok, Router} = py_event_router:start_link(Loop),
        {ok, _} = py_event_loop:add_reader(Loop, Fd, 1),
        ok = py_event_router:subscribe(Router, 1),
        Send(<<"x">>),
        ?assertEqual({readable, Fd, 1}, event(Loop)),
        exit(Router, kill),
        % It was disarmed, and is collected now.
        ?assertEqual({ok, 1}, py_event_loop:poll_events(Loop, 10000)),
        ?assertMatch({ok, #{router := none}}, py_event_loop:info(Loop)),
        ?assertEqual([], events(Loop, 50)),
        {ok, Next} = py_event_router:start_link(Loop),
        ok = py_event_router:subscribe(Next, 1),
        ?assertEqual([{readable, Fd, 1}], events(Loop, 100)),
        % One that takes over while the other lives, and the end of the other then.
        {ok, Last} = py_event_router:start_link(Loop),
        ok = py_event_router:subscribe(Last, 1),
        ?assertEqual([{readable, Fd, 1}], events(Loop, 100)),
        ok = py_event_router:stop(Next),
        timer:sleep(50),
        ?assertMatch({ok, #{router := Last, pending := 0}}, py_event_loop:info(Loop)),
        % A router that is dead already is none.
        ok = py_event_loop:set_router(Loop, Router),
        ?assertEqual({ok, 1}, py_event_loop:poll_events(Loop, 10000)),
        ok = py_event_loop:destroy(Loop)
    end).

a_subscriber_that_dies_is_forgotten(Config) ->
    run(Config, fun(N) ->
        {Loop, Fd, Send} = sockets(N),
        {ok, Router} = py_event_router:start_link(Loop),
        Puppet = puppet(),
        ok = tell(Puppet, fun() -> py_event_router:subscribe(Router, 1) end),
        ok = tell(Puppet, fun() -> py_event_router:subscribe(Router) end),
        exit(Puppet, kill),
        ok = sw_e2e:eventually(fun() -> {element(4, sys:get_state(Router)), element(5, sys:get_state(Router))} =:= {#{}, #{}} end),
        {ok, _} = py_event_loop:add_reader(Loop, Fd, 1),
        Send(<<"x">>),
        ok = sw_e2e:eventually(fun() -> element(6, sys:get_state(Router)) =/= [] end),
        ok = py_event_router:subscribe(Router, 1),
        ?assertEqual({readable, Fd, 1}, event(Loop)),
        ok = py_event_router:unsubscribe(Router, 1),
        ?assertEqual(#{}, element(5, sys:get_state(Router))),
        ok = py_event_loop:destroy(Loop)
    end).

a_closed_descriptor_is_refused_and_found_out(Config) ->
    run(Config, fun(N) ->
        {ok, Loop} = py_event_loop:new(N),
        ?assertEqual({error, ebadf}, py_event_loop:add_reader(Loop, 9999, 1)),
        ?assertEqual({error, ebadf}, py_event_loop:add_writer(Loop, 16#7fffffff, 1)),
        {ok, File} = call(regular_file, []),
        ?assertEqual({error, eperm}, py_event_loop:add_reader(Loop, File, 1)),
        ?assertEqual({error, ebadf}, py_event_loop:recvfrom_test_udp(Loop, File, 1)),
        ?assertEqual({error, ebadf}, py_event_loop:close_test_udp_socket(Loop, File)),
        ?assertMatch({ok, #{readers := 0, writers := 0}}, py_event_loop:info(Loop)),
        % Closed while its event waits to be collected: that is its last.
        {ok, {Reader, Writer}} = call(pipe, []),
        {ok, _} = py_event_loop:add_reader(Loop, Reader, 1),
        {ok, 1} = call(write, [Writer, <<"x">>]),
        {ok, 1} = py_event_loop:poll_events(Loop, 10000),
        {ok, _} = call(close, [Reader]),
        ?assertEqual({ok, [{readable, Reader, 1}]}, py_event_loop:get_pending(Loop)),
        ?assertEqual({ok, 1}, py_event_loop:poll_events(Loop, 10000)),
        ?assertEqual({ok, [{closed, Reader, 1}]}, py_event_loop:get_pending(Loop)),
        ?assertMatch({ok, #{readers := 0}}, py_event_loop:info(Loop)),
        % Closed while disarmed: who arms it again is told.
        ok = py_event_loop:set_router(Loop, self()),
        {ok, _} = py_event_loop:add_writer(Loop, Writer, 2),
        ?assertEqual({writable, Writer, 2}, event(Loop)),
        {ok, _} = call(close, [Writer]),
        ?assertEqual({error, ebadf}, py_event_loop:rearm(Loop, Writer)),
        ?assertMatch({ok, #{writers := 0}}, py_event_loop:info(Loop)),
        % Closed while armed, and its number used again: the reader of the new one works.
        {ok, {R1, W1}} = call(pipe, []),
        {ok, {R2, W2}} = call(pipe, []),
        {ok, _} = py_event_loop:add_reader(Loop, R1, 3),
        {ok, _} = call(replace, [R1, R2]),
        {ok, _} = py_event_loop:add_reader(Loop, R1, 4),
        {ok, 1} = call(write, [W2, <<"x">>]),
        ?assertEqual([{readable, R1, 4}], events(Loop, 100)),
        {ok, _} = call(close, [File, R1, W1, R2, W2]),
        ok = py_event_loop:destroy(Loop)
    end).

arguments_of_the_wrong_kind_raise_in_the_caller(Config) ->
    run(Config, fun(N) ->
        {Loop, Fd, _} = sockets(N),
        Wrong = [fun() -> py_event_loop:new("py@host") end,
                 fun() -> py_event_loop:add_reader(not_a_loop, Fd, 1) end,
                 fun() -> py_event_loop:add_reader(self(), Fd, 1) end,
                 fun() -> py_event_loop:add_reader(Loop, -1, 1) end,
                 fun() -> py_event_loop:add_reader(Loop, 1 bsl 31, 1) end,
                 fun() -> py_event_loop:add_reader(Loop, Fd, undefined) end,
                 fun() -> py_event_loop:remove_reader(Loop, Loop) end,
                 fun() -> py_event_loop:rearm(Loop, all) end,
                 fun() -> py_event_loop:start_timer(Loop, -1, 1) end,
                 fun() -> py_event_loop:start_timer(Loop, 1.5, 1) end,
                 fun() -> py_event_loop:start_timer(Loop, 1 bsl 32, 1) end,
                 fun() -> py_event_loop:cancel_timer(Loop, 1) end,
                 fun() -> py_event_loop:poll_events(Loop, -1) end,
                 fun() -> py_event_loop:set_router(Loop, router) end,
                 fun() -> py_event_loop:create_test_udp_socket(Loop, 65536) end,
                 fun() -> py_event_loop:recvfrom_test_udp(Loop, Fd, 0) end,
                 fun() -> py_event_router:start_link(self()) end,
                 fun() -> py_event_router:subscribe(self(), all) end],
        [?assertError(function_clause, Call()) || Call <- Wrong],
        Strange = ["localhost", <<"127.1">>, {1, 2, 3}, {256, 0, 0, 1}],
        [?assertError(badarg, py_event_loop:sendto_test_udp(Loop, Fd, Host, 1, <<>>)) || Host <- Strange],
        ?assertError(badarg, py_event_loop:sendto_test_udp(Loop, Fd, "127.0.0.1", 1, nothing)),
        ?assertEqual({error, emsgsize}, py_event_loop:sendto_test_udp(Loop, Fd, {127, 0, 0, 1}, 1, binary:copy(<<0>>, 70000))),
        % A pid of the node that is no loop, and a node that is not there.
        ?assertEqual({error, closed}, py_event_loop:info(erpc:call(N, erlang, self, []))),
        ?assertMatch({error, {down, _}}, py_event_loop:new('nobody@127.0.0.1')),
        ok = py_event_loop:destroy(Loop)
    end).

every_bound_is_told_where_it_is(Config) ->
    run(Config, fun(N) ->
        {Loop, Fd, Send} = sockets(N),
        {ok, Copies} = call(duplicates, [Fd, 1025]),
        {ok, _} = py_event_loop:add_reader(Loop, Fd, 0),
        Added = [py_event_loop:add_reader(Loop, Copy, 1) || Copy <- lists:sublist(Copies, 1023)],
        ?assertEqual([ok], lists:usort([element(1, Result) || Result <- Added])),
        ?assertEqual({error, {too_many, readers}}, py_event_loop:add_reader(Loop, lists:last(Copies), 1)),
        ?assertEqual({error, {too_many, readers}}, py_event_loop:add_writer(Loop, Fd, 1)),
        % One in place of another is no more than before.
        {ok, _} = py_event_loop:add_reader(Loop, Fd, 2),
        Timers = [py_event_loop:start_timer(Loop, 0, 3) || _ <- lists:seq(1, 1024)],
        ?assertEqual([ok], lists:usort([element(1, Result) || Result <- Timers])),
        % They are over and count until somebody collects them.
        ?assertEqual({error, {too_many, timers}}, py_event_loop:start_timer(Loop, 0, 3)),
        Send(<<"x">>),
        ok = sw_e2e:eventually(fun() -> py_event_loop:poll_events(Loop, 0) =:= {ok, 2048} end),
        [Send(<<"x">>) || _ <- lists:seq(1, 10)],
        timer:sleep(50),
        {ok, Events} = py_event_loop:get_pending(Loop),
        ?assertEqual({1024, 1024}, {length([T || {timeout, _, _} = T <- Events]), length(lists:usort([F || {readable, F, _} <- Events]))}),
        {ok, _} = py_event_loop:start_timer(Loop, 0, 3),
        Sockets = [py_event_loop:create_test_udp_socket(Loop, 0) || _ <- lists:seq(1, 63)],
        ?assertEqual({62, [{error, {too_many, sockets}}]}, {length([S || {ok, S} <- Sockets]), [S || {error, _} = S <- Sockets]}),
        {ok, _} = py:call(loops, close, Copies),
        % Loops, each with a thread.
        More = [py_event_loop:new(N) || _ <- lists:seq(1, 63)],
        ?assertEqual([ok], lists:usort([element(1, Result) || Result <- More])),
        ?assertEqual({error, {too_many, loops}}, py_event_loop:new(N)),
        ?assertEqual({64, 64, 64}, left()),
        ok = py_event_loop:destroy(Loop),
        {ok, Last} = py_event_loop:new(N),
        [ok = py_event_loop:destroy(Each) || Each <- [Last | [Each || {ok, Each} <- More]]]
    end).

a_node_without_descriptors_makes_no_loop_and_can_later(Config) ->
    run(Config, fun(N) ->
        {ok, Loop} = py_event_loop:new(N),
        {ok, Before} = call(limit_descriptors, []),
        Refused = {py_event_loop:new(N), py_event_loop:create_test_udp_socket(Loop, 0)},
        {ok, _} = call(limit_descriptors, [Before]),
        ?assertEqual({{error, emfile}, {error, emfile}}, Refused),
        ?assertEqual({1, 1, 1}, left()),
        {ok, Later} = py_event_loop:new(N),
        ok = py_event_loop:destroy(Later),
        ok = py_event_loop:destroy(Loop)
    end).

%% --- the end of a loop ------------------------------------------------------------------------------

a_destroyed_loop_is_closed_and_leaves_nothing(Config) ->
    run(Config, fun(N) ->
        {ok, Warm} = py_event_loop:new(N),
        ok = py_event_loop:destroy(Warm),
        {ok, Before} = call(descriptors, []),
        {Loop, Fd, Send} = sockets(N),
        {ok, Ref} = py_event_loop:add_reader(Loop, Fd, 1),
        {ok, Timer} = py_event_loop:start_timer(Loop, 50, 2),
        ok = py_event_loop:set_router(Loop, self()),
        Monitor = monitor(process, Loop),
        ?assertEqual(ok, py_event_loop:destroy(Loop)),
        ?assertEqual({ok, Before}, call(descriptors, [])),
        ?assertEqual(normal, down(Monitor)),
        ?assertEqual(ok, py_event_loop:destroy(Loop)),
        ?assertEqual([], events(Loop, 100)),
        Closed = [py_event_loop:add_reader(Loop, Fd, 1), py_event_loop:remove_reader(Loop, Ref),
                  py_event_loop:add_writer(Loop, Fd, 1), py_event_loop:remove_writer(Loop, Fd),
                  py_event_loop:rearm(Loop, Ref), py_event_loop:start_timer(Loop, 0, 1),
                  py_event_loop:cancel_timer(Loop, Timer), py_event_loop:poll_events(Loop, 10),
                  py_event_loop:get_pending(Loop), py_event_loop:set_router(Loop, self()),
                  py_event_loop:info(Loop), py_event_loop:create_test_udp_socket(Loop, 0),
                  py_event_loop:recvfrom_test_udp(Loop, Fd, 1), py_event_loop:close_test_udp_socket(Loop, Fd)],
        ?assertEqual([{error, closed}], lists:usort(Closed)),
        ?assertError({badmatch, {error, closed}}, Send(<<"x">>))
    end).

a_loop_is_a_process(Config) ->
    run(Config, fun(N) ->
        process_flag(trap_exit, true),
        {ok, Killed} = py_event_loop:new(N),
        {ok, {Fd, _}} = py_event_loop:create_test_udp_socket(Killed, 0),
        {ok, Router} = py_event_router:start_link(Killed),
        link(Killed),
        exit(Killed, enough),
        receive {'EXIT', Killed, Reason} -> ?assertEqual(enough, Reason) after 10000 -> error(no_exit) end,
        receive {'EXIT', Router, Why} -> ?assertEqual({shutdown, {loop, enough}}, Why) after 10000 -> error(no_exit) end,
        ok = sw_e2e:eventually(fun() -> left() =:= {0, 0, 0} end),
        ?assertEqual({ok, false}, call(is_open, [Fd])),
        {ok, Linked} = py_event_loop:new(N),
        Puppet = puppet(),
        true = tell(Puppet, fun() -> link(Linked) end),
        exit(Puppet, kill),
        ?assertEqual(killed, down(monitor(process, Linked))),
        {ok, Strange} = py_event_loop:new(N),
        Strange ! hello,
        Self = self(),
        ok = py_event_loop:set_router(Strange, Self),
        Strange ! {'DOWN', make_ref(), process, Self, not_really},
        ok = py_event_loop:rearm(Strange, 0),
        ?assertMatch({ok, #{router := Self}}, py_event_loop:info(Strange)),
        ok = py_event_loop:destroy(Strange)
    end).

an_owner_that_dies_takes_its_loop_with_it(Config) ->
    run(Config, fun(N) ->
        [begin
            Owner = puppet(),
            {Loop, Fd, Send} = tell(Owner, fun() -> sockets(N) end),
            ok = py_event_loop:set_router(Loop, self()),
            {ok, _} = py_event_loop:add_reader(Loop, Fd, 1),
            Send(<<"x">>),
            ?assertEqual({readable, Fd, 1}, event(Loop)),
            Monitor = monitor(process, Loop),
            exit(Owner, Why),
            ?assertEqual(Reason, down(Monitor)),
            ?assertEqual({error, closed}, py_event_loop:rearm(Loop, Fd)),
            ok = sw_e2e:eventually(fun() -> call(is_open, [Fd]) =:= {ok, false} end),
            ?assertEqual([], events(Loop, 50))
         end || {Why, Reason} <- [{kill, killed}, {shutdown, shutdown}, {{a, "reason"}, {a, "reason"}}]]
    end).

a_loop_of_an_owner_that_is_dead_already_ends(Config) ->
    run(Config, fun(N) ->
        Puppet = puppet(),
        exit(Puppet, kill),
        {ok, {ok, Loop}} = py:call(N, 'erlang._event_loop', new, [Puppet]),
        ?assertEqual(noproc, down(monitor(process, Loop)))
    end).

who_polls_when_the_loop_ends_is_told(Config) ->
    run(Config, fun(N) ->
        {ok, Loop} = py_event_loop:new(N),
        Test = self(),
        [spawn_link(fun() -> Test ! {polled, py_event_loop:poll_events(Loop, Ms)} end) || Ms <- [infinity, 60000]],
        timer:sleep(100),
        ok = py_event_loop:destroy(Loop),
        [receive {polled, Result} -> ?assertEqual({error, closed}, Result) after 10000 -> error(still_polling) end || _ <- [1, 2]]
    end).

a_caller_that_gives_up_leaves_nothing_behind(Config) ->
    run(Config, fun(N) ->
        {Loop, Fd, Send} = sockets(N),
        {ok, _} = py_event_loop:add_reader(Loop, Fd, 1),
        Pollers = [spawn(fun() -> py_event_loop:poll_events(Loop, infinity) end) || _ <- lists:seq(1, 1100)],
        ok = sw_e2e:eventually(fun() -> length([Poller || Poller <- Pollers, is_process_alive(Poller)]) =:= 1024 end),
        ?assertEqual({error, {too_many, pollers}}, py_event_loop:poll_events(Loop, 0)),
        [exit(Poller, kill) || Poller <- Pollers],
        ok = sw_e2e:eventually(fun() -> py_event_loop:poll_events(Loop, 0) =:= {ok, 0} end),
        Send(<<"x">>),
        ?assertEqual({ok, 1}, py_event_loop:poll_events(Loop, 10000)),
        ok = py_event_loop:destroy(Loop)
    end).

many_callers_share_a_loop(Config) ->
    run(Config, fun(N) ->
        {ok, Loop} = py_event_loop:new(N),
        {ok, Router} = py_event_router:start_link(Loop),
        Test = self(),
        Workers = [spawn_link(fun() ->
            ok = py_event_router:subscribe(Router, Id),
            {ok, {Fd, Port}} = py_event_loop:create_test_udp_socket(Loop, 0),
            {ok, Reader} = py_event_loop:add_reader(Loop, Fd, Id),
            Round = fun(I) ->
                Data = <<Id:16, I:16>>,
                ok = py_event_loop:sendto_test_udp(Loop, Fd, "127.0.0.1", Port, Data),
                {readable, Fd, Id} = event(Loop),
                {ok, {Data, _}} = py_event_loop:recvfrom_test_udp(Loop, Fd, 10),
                {ok, Timer} = py_event_loop:start_timer(Loop, rand:uniform(3), Id),
                {timeout, Timer, Id} = event(Loop),
                ok = py_event_loop:rearm(Loop, Reader)
            end,
            lists:foreach(Round, lists:seq(1, 50)),
            ok = py_event_loop:close_test_udp_socket(Loop, Fd),
            Test ! {self(), events(Loop, 50)}
        end) || Id <- lists:seq(1, 16)],
        [receive {Worker, Left} -> ?assertEqual([], Left) after 60000 -> error(slow) end || Worker <- Workers],
        ?assertMatch({ok, #{readers := 0, timers := 0, pending := 0, sockets := 0}}, py_event_loop:info(Loop)),
        ok = py_event_loop:destroy(Loop)
    end).

a_node_that_is_stopped_ends_its_loops_first(Config) ->
    #{program := Program} = Node = sw_e2e:start_node(sw_e2e:context(Config)),
    #{name := Name} = Node,
    Beam = proplists:get_value(beam, Config),
    Test = sw_e2e:on(Beam, fun() -> puppet() end),
    [_ | _] = sw_e2e:on(Beam, fun() -> tell(Test, fun() ->
        [begin {ok, Loop} = py_event_loop:new(Name), Loop end || _ <- lists:seq(1, 8)]
    end) end),
    ok = sw_e2e:send_signal(Program, "TERM"),
    ?assertEqual(0, sw_e2e:await_exit(Program)),
    ?assertEqual(nomatch, re:run(sw_e2e:output(Program), "rror|Traceback|never"), sw_e2e:output(Program)),
    sw_e2e:on(Beam, fun() -> true = exit(Test, kill) end).

a_node_that_dies_is_down_and_a_new_one_knows_nothing_of_its_loops(Config) ->
    Context = sw_e2e:context(Config),
    #{name := Name, program := Program} = sw_e2e:start_node(Context),
    Beam = proplists:get_value(beam, Config),
    OsPid = sw_e2e:os_pid(Program),
    Old = sw_e2e:on(Beam, fun() ->
        process_flag(trap_exit, true),
        {Loop, Fd, _} = sockets(Name),
        {ok, Router} = py_event_router:start_link(Loop),
        {ok, _} = py_event_loop:add_reader(Loop, Fd, 1),
        Monitor = monitor(process, Loop),
        Poller = spawn_monitor(fun() -> exit(py_event_loop:poll_events(Loop, infinity)) end),
        timer:sleep(100),
        "" = os:cmd(lists:concat(["kill -9 ", OsPid])),
        ?assertEqual(noconnection, down(Monitor)),
        ?assertMatch({error, {down, _}}, down(element(2, Poller))),
        receive {'EXIT', Router, Why} -> ?assertEqual({shutdown, {loop, noconnection}}, Why) after 10000 -> error(no_exit) end,
        ?assertMatch({error, {down, _}}, py_event_loop:add_reader(Loop, Fd, 1)),
        ?assertMatch({error, {down, _}}, py_event_loop:destroy(Loop)),
        ?assertMatch({error, {down, _}}, py_event_loop:new(Name)),
        Loop
    end),
    _ = sw_e2e:await_exit(Program),
    Again = sw_e2e:start_node(Context, #{name => atom_to_list(Name)}),
    sw_e2e:on(Beam, fun() ->
        ok = sw_e2e:eventually(fun() -> py_node:connect(Name) =:= ok end),
        ?assertEqual({error, closed}, py_event_loop:info(Old)),
        ?assertEqual(ok, py_event_loop:destroy(Old))
    end),
    ok = sw_e2e:stop_node(Again).
