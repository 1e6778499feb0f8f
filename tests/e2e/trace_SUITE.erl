%% Trace contexts through a real node: to Python code of every kind, back into Erlang and down again, and
%% into the log.
-module(trace_SUITE).

-include_lib("stdlib/include/assert.hrl").

-export([all/0, suite/0, init_per_suite/1, end_per_suite/1]).
-export([log/2]).
-compile([export_all, nowarn_export_all]).

-define(TRACE, "0af7651916cd43dd8448eb211c80319c").
-define(SPAN, "b7ad6b7169203331").
-define(PARENT, <<"00-" ?TRACE "-" ?SPAN "-01">>).
-define(OTHER, <<"00-11111111111111111111111111111111-2222222222222222-00">>).

suite() -> [{timetrap, {seconds, 60}}].

all() ->
    [functions_coroutines_and_their_threads_see_the_context_of_their_call,
     calls_without_a_context_see_none,
     contexts_do_not_mix_however_many_calls_run,
     a_beam_without_the_application_sends_one_too,
     worker_processes_have_it_too,
     what_is_no_context_is_ignored_and_the_call_is_run,
     a_call_into_erlang_and_down_again_carries_it,
     lines_of_the_log_have_the_ids_of_their_call,
     lines_of_a_text_log_have_them_too,
     lines_for_a_beams_logger_have_them_too].

init_per_suite(Config0) ->
    Config = sw_e2e:setup(Config0),
    Context = sw_e2e:context(Config),
    Node = #{name := Name} = start(Context, "json"),
    Beam = sw_e2e:start_beam(Context, #{args => ["-pa", filename:dirname(code:which(py)), "-sidewinder", "default_node",
                                                 "'" ++ atom_to_list(Name) ++ "'"]}),
    ok = sw_e2e:on(Beam, fun() ->
        {ok, _} = application:ensure_all_started(sidewinder),
        ok = py:register_function(context, fun([]) -> py:trace_context() end),
        ok = py:register_function(further, fun([]) -> {ok, Seen} = py:call(traces, down, [context]), Seen end)
    end),
    [{node, Node}, {beam, Beam} | Config].

end_per_suite(Config) ->
    ok = sw_e2e:stop_beam(proplists:get_value(beam, Config)),
    ok = sw_e2e:stop_node(proplists:get_value(node, Config)),
    ok = sw_e2e:teardown(Config).

start(Context, Format) ->
    sw_e2e:start_node(Context, #{args => ["--import", "traces", "--log-format", Format, "--log-level", "info"]}).

on(Config, Body) ->
    #{name := Name} = proplists:get_value(node, Config),
    sw_e2e:on(proplists:get_value(beam, Config), fun() -> Body(Name) end).

%% --- To Python --------------------------------------------------------------------------------------

functions_coroutines_and_their_threads_see_the_context_of_their_call(Config) ->
    {Sync, Async, Thread, Spawned, Set} = on(Config, fun(Node) ->
        Traced = #{trace => ?PARENT},
        Spawned = py:await(py:spawn_call(Node, traces, here, [], Traced)),
        Results = {py:call(Node, traces, here, [], Traced), py:call(Node, traces, here_later, [0.01], Traced),
                   py:call(Node, traces, elsewhere, [], Traced), Spawned},
        ok = py:set_trace_context({?OTHER, <<"a=b">>}),
        Set = [py:call(traces, here, []), py:call(traces, here, [], #{})],
        ok = py:set_trace_context(undefined),
        erlang:append_element(Results, Set)
    end),
    ?assertEqual([{ok, ?PARENT}, {ok, ?PARENT}], [Sync, Spawned]),
    ?assertEqual({ok, lists:duplicate(4, ?PARENT)}, Async),
    ?assertEqual({ok, [none]}, Thread),
    ?assertEqual([{ok, ?OTHER}, {ok, ?OTHER}], Set).

calls_without_a_context_see_none(Config) ->
    Results = on(Config, fun(Node) ->
        {ok, ?PARENT} = py:call(Node, traces, here, [], #{trace => ?PARENT}),
        {error, {python, <<"ValueError">>, _, _}} = py:call(Node, traces, fail, [], #{trace => ?PARENT}),
        {ok, _} = py:call(Node, traces, here_later, [0], #{trace => ?PARENT}),
        [py:call(traces, here, []) || _ <- lists:seq(1, 20)]
            ++ [py:eval(<<"__import__('traces').here()">>), erpc:call(Node, traces, here, [])]
    end),
    ?assertEqual([none, {ok, none}], lists:usort(Results)),
    {ok, [none, none, none, none]} = on(Config, fun(Node) -> py:call(Node, traces, here_later, [0]) end).

contexts_do_not_mix_however_many_calls_run(Config) ->
    Wrong = on(Config, fun(Node) ->
        Parent = fun(N) -> iolist_to_binary(io_lib:format("00-~32.16.0b-~16.16.0b-01", [N, N])) end,
        Calls = [{Parent(N), py:spawn_call(Node, traces, here_later, [0.001 * (N rem 7)], #{trace => Parent(N)})}
                 || N <- lists:seq(1, 300)],
        [{P, Result} || {P, Ref} <- Calls, Result <- [py:await(Ref)], Result =/= {ok, lists:duplicate(4, P)}]
    end),
    ?assertEqual([], Wrong).

a_beam_without_the_application_sends_one_too(Config) ->
    #{name := Name} = proplists:get_value(node, Config),
    Bare = sw_e2e:start_beam(sw_e2e:context(Config)),
    Results = sw_e2e:on(Bare, fun() ->
        Options = #{trace => ?PARENT, unknown => 1},
        [gen_server:call({py, Name}, {call, traces, here, [], [], Options}),
         gen_server:call({py, Name}, {call, traces, here, [], #{}, #{trace => {?PARENT, <<"a=b">>}}}),
         gen_server:call({py, Name}, {call, traces, here_later, [0], [], Options}),
         gen_server:call({py, Name}, {call, traces, here, [], []})]
    end),
    ok = sw_e2e:stop_beam(Bare),
    ?assertEqual([{ok, ?PARENT}, {ok, ?PARENT}, {ok, lists:duplicate(4, ?PARENT)}, {ok, none}], Results).

worker_processes_have_it_too(Config) ->
    Arguments = ["--import", "traces", "--processes", "1", "--log-level", "info"],
    Node = #{name := Name, program := Program} = sw_e2e:start_node(sw_e2e:context(Config), #{args => Arguments}),
    Traced = #{trace => ?PARENT},
    Results = on(Config, fun(_) ->
        [py:call(Name, traces, here, [], Traced), py:call(Name, traces, here_later, [0], Traced),
         py:call(Name, traces, here, []), py:call(Name, traces, say, [<<"there">>], Traced),
         py:call(Name, traces, down, [context], Traced), py:call(Name, traces, down_later, [context], Traced),
         py:call(Name, traces, down, [context])]
    end),
    ?assertEqual([{ok, ?PARENT}, {ok, lists:duplicate(4, ?PARENT)}, {ok, none}, {ok, none}, {ok, [?PARENT, ?PARENT]},
                  {ok, lists:duplicate(4, ?PARENT)}, {ok, [none, none]}], Results),
    sw_e2e:wait_line(Program, "traces: there trace_id=" ?TRACE " span_id=" ?SPAN "$"),
    sw_e2e:stop_node(Node).

what_is_no_context_is_ignored_and_the_call_is_run(Config) ->
    Results = on(Config, fun(Node) ->
        Wrong = [<<>>, abc, 7, "00", <<"nonsense">>, <<"00-\"\n\\", 255, "-x-01">>, binary:copy(<<"0">>, 1 bsl 20), {?PARENT},
                 {?PARENT, 7}, {<<"x">>, <<>>}, <<?PARENT/binary, "-">>, [], #{}],
        [gen_server:call({py, Node}, {call, traces, here, [], [], #{trace => Trace}}) || Trace <- Wrong]
            ++ [gen_server:call({py, Node}, {call, traces, here, [], [], #{trace => {?PARENT, <<"\n">>}}})]
    end),
    ?assertEqual([{ok, none}], lists:usort(lists:droplast(Results))),
    ?assertEqual({ok, ?PARENT}, lists:last(Results)).

%% --- Into Erlang --------------------------------------------------------------------------------------

a_call_into_erlang_and_down_again_carries_it(Config) ->
    Results = on(Config, fun(Node) ->
        Traced = #{trace => {?PARENT, <<"a=b">>}},
        [py:call(Node, traces, down, [context], Traced), py:call(Node, traces, down_later, [context], Traced),
         py:call(Node, traces, down, [further], Traced), py:call(Node, traces, down, [context], #{trace => ?OTHER}),
         py:call(Node, traces, down, [context])]
    end),
    Both = {?PARENT, <<"a=b">>},
    ?assertEqual([{ok, [?PARENT, Both]}, {ok, [?PARENT, Both, Both, Both]}, {ok, [?PARENT, [?PARENT, Both]]},
                  {ok, [?OTHER, ?OTHER]}, {ok, [none, none]}],
                 Results).    % an `undefined` of Erlang is None in Python, which comes back as `none`

%% --- The log ------------------------------------------------------------------------------------------

lines_of_the_log_have_the_ids_of_their_call(Config) ->
    #{program := Program} = proplists:get_value(node, Config),
    Text = <<"a \"b\" \\ \n c">>,
    on(Config, fun(Node) ->
        {ok, none} = py:call(Node, traces, say, [<<"sync ", Text/binary>>], #{trace => ?PARENT}),
        {ok, none} = py:call(Node, traces, say_later, [<<"async">>], #{trace => ?PARENT}),
        {ok, none} = py:call(Node, traces, say, [<<"without">>]),
        ok = py:cast(Node, traces, fail, [], #{trace => ?PARENT})
    end),
    Ids = "\",\"trace_id\":\"" ?TRACE "\",\"span_id\":\"" ?SPAN "\"}$",
    [sw_e2e:wait_line(Program, Line ++ Ids)
     || Line <- ["\"msg\":\"traces: sync a \\\\\"b\\\\\" \\\\\\\\ \\\\u000a c", "printed sync a \\\\\"b\\\\\" \\\\\\\\ ",
                 "traces: async", "printed async", "a cast or process raised ValueError: as told.*"]],
    sw_e2e:wait_line(Program, "\"msg\":\"traces: without\"}$"),
    sw_e2e:wait_line(Program, "\"msg\":\"printed without\"}$").

lines_of_a_text_log_have_them_too(Config) ->
    Node = #{name := Name, program := Program} = start(sw_e2e:context(Config), "text"),
    {ok, none} = on(Config, fun(_) ->
        {ok, none} = py:call(Name, traces, say, [<<"plain">>]),
        py:call(Name, traces, say, [<<"here">>], #{trace => ?PARENT})
    end),
    sw_e2e:wait_line(Program, " warning traces: here trace_id=" ?TRACE " span_id=" ?SPAN "$"),
    sw_e2e:wait_line(Program, " warning traces: plain$"),
    sw_e2e:stop_node(Node).

log(#{meta := Meta, msg := Message}, #{config := #{tester := Tester}}) ->
    Tester ! {logged, Message, maps:with([trace_id, span_id], Meta)}.

lines_for_a_beams_logger_have_them_too(Config) ->
    Code = code:which(?MODULE),
    Logged = on(Config, fun(Node) ->
        {module, ?MODULE} = code:load_abs(filename:rootname(Code)),
        ok = logger:add_handler(?MODULE, ?MODULE, #{config => #{tester => self()}}),
        {ok, none} = py:call(Node, traces, to_beam, [<<"traced">>], #{trace => ?PARENT}),
        {ok, none} = py:call(Node, traces, to_beam, [<<"plain">>]),
        Logged = [receive {logged, {"~ts", [Text]}, Meta} -> {Text, Meta} after 5000 -> nothing end || _ <- [1, 2]],
        ok = logger:remove_handler(?MODULE),
        Logged
    end),
    ?assertEqual([{<<"traced">>, #{trace_id => <<?TRACE>>, span_id => <<?SPAN>>}}, {<<"plain">>, #{}}], Logged).
