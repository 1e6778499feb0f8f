%% Contexts: shared namespaces with a thread of their own, their own copies of modules, and an end.
-module(contexts_SUITE).

-include_lib("stdlib/include/assert.hrl").

-export([all/0, suite/0, init_per_suite/1, end_per_suite/1]).
-compile([export_all, nowarn_export_all]).

suite() -> [{timetrap, {seconds, 120}}].

all() ->
    [what_is_defined_in_a_context_is_there_for_everybody_who_has_it,
     a_context_has_one_thread_of_its_own,
     a_name_finds_the_same_context,
     calls_run_in_the_order_they_were_made,
     coroutines_of_a_context_run_on_the_loop,
     casts_and_spawned_calls_go_to_contexts,
     options_prepare_the_namespace,
     a_context_whose_preparation_fails_is_not_made,
     a_thread_affine_object_is_used_and_freed_on_its_thread,
     a_full_queue_refuses,
     a_cancelled_call_is_interrupted_or_never_begins,
     a_closed_context_says_so,
     a_context_ends_with_its_owner,
     what_runs_in_a_context_whose_owner_ends_is_interrupted,
     versions_of_a_module_live_side_by_side,
     a_module_of_a_context_is_reloaded_while_a_call_of_the_old_one_runs,
     a_reload_that_fails_leaves_the_old_module,
     a_module_of_the_node_is_reloaded,
     the_allow_list_holds_in_contexts,
     evaluation_that_is_off_is_off_in_contexts,
     what_is_no_context_is_a_bad_target,
     memory_can_be_looked_at_and_collected,
     worker_processes_say_that_they_have_no_contexts].

init_per_suite(Config0) ->
    Config = sw_e2e:setup(Config0),
    Context = sw_e2e:context(Config),
    Beam = sw_e2e:start_beam(Context, #{args => ["-pa", filename:dirname(code:which(py))]}),
    Node = sw_e2e:start_node(Context, #{args => ["--import", "objects", "--workers", "2"]}),
    #{name := N} = Node,
    ok = sw_e2e:on(Beam, fun() ->
        ok = logger:set_primary_config(level, error),
        ok = application:load(sidewinder),
        ok = application:set_env(sidewinder, default_node, N),
        {ok, _} = application:ensure_all_started(sidewinder),
        ok
    end),
    [{beam, Beam}, {node, Node} | Config].

end_per_suite(Config) ->
    ok = sw_e2e:stop_node(proplists:get_value(node, Config)),
    ok = sw_e2e:stop_beam(proplists:get_value(beam, Config)),
    ok = sw_e2e:teardown(Config).

%% In a process of the BEAM that ends with the test.
with(Config, Function) ->
    #{name := N} = proplists:get_value(node, Config),
    sw_e2e:on(proplists:get_value(beam, Config), fun() -> Function(N) end).

with_node(Config, Args, Function) ->
    Node = #{name := N} = sw_e2e:start_node(sw_e2e:context(Config), #{args => ["--import", "objects" | Args]}),
    try
        ok = sw_e2e:on(proplists:get_value(beam, Config), fun() -> Function(N), ok end)
    after
        ok = sw_e2e:stop_node(Node)
    end.

what_is_defined_in_a_context_is_there_for_everybody_who_has_it(Config) ->
    with(Config, fun(N) ->
        {ok, Context} = py:context(),
        ?assertEqual({ok, none}, py:exec(Context, <<"total = 1\ndef more(n, *, by=1):\n    global total\n    total += n * by\n    return total">>)),
        ?assertEqual({ok, 1}, py:eval(Context, "total")),
        ?assertEqual({ok, 4}, py:call(Context, '__main__', more, [3])),
        Self = self(),
        spawn(fun() -> Self ! {other, py:call(Context, '__main__', more, [2], #{kwargs => #{by => 3}})} end),
        ?assertEqual({ok, 10}, receive {other, Got} -> Got after 5000 -> late end),
        ?assertEqual({ok, [10, 11]}, py:eval(Context, <<"[total + n for n in range(upto)]">>, #{upto => 2})),
        ?assertMatch({error, {python, <<"NameError">>, _, _}}, py:eval(Context, <<"upto">>)),
        ?assertEqual({ok, 4.0}, py:call(Context, math, sqrt, [16.0])),
        {ok, Other} = py:context(N, #{}),
        ?assertMatch({error, {python, <<"NameError">>, _, _}}, py:eval(Other, <<"total">>)),
        ?assertMatch({error, {python, <<"AttributeError">>, _, _}}, py:call(Other, '__main__', more, [1])),
        ?assertMatch({error, {python, <<"ZeroDivisionError">>, _, <<"Traceback", _/binary>>}}, py:eval(Other, <<"1 / 0">>)),
        ?assertMatch({error, {python, <<"RuntimeError">>, _, _}}, py:exec(Other, <<"raise SystemExit(1)">>)),
        ?assertMatch({error, {python, <<"RuntimeError">>, _, _}}, py:exec(Other, <<"raise StopIteration">>)),
        ?assertEqual({ok, 2}, py:eval(Other, <<" 1 + 1">>))
    end).

a_context_has_one_thread_of_its_own(Config) ->
    with(Config, fun(N) ->
        [{ok, One}, {ok, Two}] = [py:context(N, #{}) || _ <- [1, 2]],
        Threads = fun(Context) -> lists:usort([py:call(Context, objects, thread, []) || _ <- lists:seq(1, 20)]) end,
        [{ok, First}] = Threads(One),
        [{ok, Second}] = Threads(Two),
        ?assertNotEqual(First, Second),
        ?assertEqual({ok, First}, py:eval(One, <<"__import__('threading').get_ident()">>)),
        {ok, #{thread := Thread}} = py_context:info(One),
        ?assertEqual(First, Thread)
    end).

a_name_finds_the_same_context(Config) ->
    with(Config, fun(N) ->
        {Pid, Monitor} = spawn_monitor(fun() -> {ok, C} = py:context(shared), {ok, none} = py:exec(C, <<"x = 5">>) end),
        receive {'DOWN', Monitor, process, Pid, Why} -> ?assertEqual(normal, Why) end,
        {ok, Again} = py:context(<<"shared">>),
        ?assertEqual({ok, Again}, py:context(N, shared)),
        ?assertEqual({ok, 5}, py:eval(Again, <<"x">>)),
        {ok, List} = py_context:list(N),
        ?assertMatch([#{owner := permanent}], [C || #{name := <<"shared">>} = C <- List]),
        ?assertEqual(ok, py_context:close(Again)),
        {ok, Fresh} = py:context(shared),
        ?assertMatch({error, {python, <<"NameError">>, _, _}}, py:eval(Fresh, <<"x">>)),
        ?assertEqual(ok, py_context:close(Fresh))
    end).

%% Casts and calls alike, also while all workers are busy with something else.
calls_run_in_the_order_they_were_made(Config) ->
    with(Config, fun(N) ->
        {ok, Context} = py:context(),
        {ok, none} = py:exec(Context, <<"import time\nseen = []\ndef see(n):\n    time.sleep(0.02 if n == 1 else 0)\n    seen.append(n)">>),
        Busy = [py:spawn_call(N, probe, nap, [0.3]) || _ <- [1, 2, 3]],
        Refs = [case Number rem 3 of
                    0 -> ok = py:cast(Context, '__main__', see, [Number]), none;
                    _ -> py:spawn_call(Context, '__main__', see, [Number])
                end || Number <- lists:seq(1, 300)],
        ?assertEqual({ok, lists:seq(1, 300)}, py:eval(Context, <<"seen">>)),
        [?assertMatch({ok, _}, py:await(Ref)) || Ref <- Busy ++ Refs, Ref =/= none]
    end).

coroutines_of_a_context_run_on_the_loop(Config) ->
    with(Config, fun(_) ->
        {ok, Context} = py:context(),
        {ok, none} = py:exec(Context, <<"import asyncio, threading\n"
                                        "async def later():\n"
                                        "    await asyncio.sleep(0.2)\n"
                                        "    return threading.get_ident()">>),
        [First, Second] = [py:spawn_call(Context, '__main__', later, []) || _ <- [1, 2]],
        {ok, Own} = py:call(Context, objects, thread, []),
        {ok, Loop} = py:await(First),
        ?assertEqual({ok, Loop}, py:await(Second)),
        ?assertNotEqual(Own, Loop),
        ?assertEqual({ok, 1}, py:call(Context, objects, later, []))
    end).

casts_and_spawned_calls_go_to_contexts(Config) ->
    with(Config, fun(_) ->
        {ok, Context} = py:context(#{binary => bytes}),
        {ok, none} = py:exec(Context, <<"kinds = []\ndef kind(value):\n    kinds.append(type(value).__name__)\n    return kinds">>),
        ok = py:cast(Context, '__main__', kind, [<<"a">>]),
        Ref = py:spawn_call(Context, '__main__', kind, [<<"b">>], #{binary => str}),
        ?assertEqual({ok, [<<"bytes">>, <<"str">>]}, py:await(Ref)),
        ?assertEqual({ok, [<<"bytes">>, <<"str">>, <<"bytes">>]}, py:call(Context, '__main__', kind, [<<"c">>]))
    end).

options_prepare_the_namespace(Config) ->
    with(Config, fun(N) ->
        {ok, Context} = py:context(N, #{imports => [json, 'os.path'], environ => #{'DB_URL' => <<"sqlite://">>},
                                        preload => "import math\nroot = math.sqrt(4)\nurl = environ['DB_URL']"}),
        ?assertEqual({ok, <<"[1]">>}, py:eval(Context, <<"json.dumps([1])">>)),
        ?assertEqual({ok, <<"a/b">>}, py:eval(Context, <<"os.path.join('a', 'b')">>)),
        ?assertEqual({ok, [2.0, <<"sqlite://">>]}, py:eval(Context, <<"[root, url]">>)),
        ?assertEqual({ok, false}, py:eval(Context, <<"'DB_URL' in os.environ">>)),
        [?assertError(badarg, py:context(N, Bad)) || Bad <- [#{foo => 1}, #{imports => json}, #{owner => me}, #{max_queue => 0}]]
    end).

a_context_whose_preparation_fails_is_not_made(Config) ->
    with(Config, fun(N) ->
        {ok, Before} = py_context:list(N),
        ?assertMatch({error, {python, <<"ModuleNotFoundError">>, _, _}}, py:context(#{imports => [no_such_module]})),
        ?assertMatch({error, {python, <<"ZeroDivisionError">>, _, _}}, py:context(#{name => bad, preload => <<"1 / 0">>})),
        ?assertMatch({error, {python, <<"SyntaxError">>, _, _}}, py:context(#{preload => <<"(">>})),
        ?assertEqual({ok, Before}, within_age(py_context:list(N), Before))
    end).

%% The ages of contexts that were there before are not compared.
within_age({ok, Now}, Before) ->
    {ok, [maps:merge(One, maps:with([age_ms], Old)) || {One, Old} <- lists:zip(Now, Before)]}.

%% sqlite3 refuses a connection in any other thread than its own.
a_thread_affine_object_is_used_and_freed_on_its_thread(Config) ->
    with(Config, fun(N) ->
        {ok, Context} = py:context(N, #{imports => [objects]}),
        {ok, Db} = py:call(Context, sqlite3, connect, [<<":memory:">>], #{return => ref}),
        {ok, Cursor} = py:call_method(Db, execute, [<<"select 6 * 7">>], #{}, #{return => ref}),
        ?assertEqual({ok, [{42}]}, py:call_method(Cursor, fetchall, [])),
        ?assertMatch({error, {python, <<"sqlite3.ProgrammingError">>, _, _}}, py:call(N, objects, select, [Db])),
        {ok, Made} = py:call(Context, objects, 'Counter', [1], #{return => ref}),
        ?assertEqual({ok, 3}, py:call_method(Made, add, [2])),
        Ended = fun() -> {ok, Threads} = py:call(N, objects, ended, []), lists:last(Threads) end,
        ?assertEqual(ok, py:release(Made)),
        ?assertMatch(<<"erlang-context-", _/binary>>, Ended()),
        {ok, Kept} = py:call(Context, objects, 'Counter', [1], #{return => ref}),
        ?assertEqual(ok, py_context:close(Context)),
        ?assertMatch(<<"erlang-context-", _/binary>>, Ended()),
        ?assertEqual({error, {bad_ref, released}}, py:getattr(Kept, value)),
        ?assertEqual({error, {bad_ref, released}}, py:call_method(Db, execute, [<<"select 1">>]))
    end).

a_full_queue_refuses(Config) ->
    with(Config, fun(_) ->
        {ok, Context} = py:context(#{max_queue => 3}),
        {ok, none} = py:exec(Context, <<"import threading\ngate = threading.Event()\ndef wait():\n    gate.wait(10)\n    return 1">>),
        First = py:spawn_call(Context, '__main__', wait, []),
        ok = sw_e2e:eventually(fun() -> {ok, #{busy := Busy}} = py_context:info(Context), Busy end),
        Waiting = [py:spawn_call(Context, '__main__', wait, []) || _ <- [1, 2, 3]],
        ok = sw_e2e:eventually(fun() -> {ok, #{waiting := Count}} = py_context:info(Context), Count =:= 3 end),
        ?assertEqual({error, overloaded}, py:eval(Context, <<"1">>)),
        {ok, _} = py:exec(<<"import erlang._contexts as c\nfor one in c._contexts.values():\n    'gate' in one.namespace and one.namespace['gate'].set()">>),
        ?assertEqual([{ok, 1}, {ok, 1}, {ok, 1}, {ok, 1}], [py:await(Ref) || Ref <- [First | Waiting]])
    end).

a_cancelled_call_is_interrupted_or_never_begins(Config) ->
    with(Config, fun(_) ->
        {ok, Context} = py:context(),
        {ok, none} = py:exec(Context, <<"begun = []\ndef spin(n):\n    begun.append(n)\n    while True:\n        pass\ndef note(n):\n    begun.append(n)">>),
        {Caller, _} = spawn_monitor(fun() -> py:call(Context, '__main__', spin, [1]) end),
        ok = sw_e2e:eventually(fun() -> {ok, #{busy := Busy}} = py_context:info(Context), Busy end),
        ?assertEqual({error, timeout}, py:call(Context, '__main__', note, [2], #{timeout => 100})),
        exit(Caller, kill),
        ?assertEqual({ok, [1]}, py:eval(Context, <<"begun">>)),
        ?assertEqual({error, timeout}, py:call(Context, '__main__', spin, [3], #{timeout => 100})),
        ?assertEqual({ok, [1, 3]}, py:eval(Context, <<"begun">>))
    end).

a_closed_context_says_so(Config) ->
    with(Config, fun(N) ->
        {ok, Context} = py:context(),
        ?assertEqual(ok, py_context:close(Context)),
        ?assertEqual(ok, py_context:close(Context)),
        ?assertEqual({error, {bad_context, closed}}, py:eval(Context, <<"1">>)),
        ?assertEqual({error, {bad_context, closed}}, py_context:info(Context)),
        ?assertEqual({error, {bad_context, unknown}}, py:eval(setelement(4, Context, 1000000), <<"1">>)),
        ?assertEqual({error, {bad_context, closed}}, py:eval(setelement(3, Context, 1), <<"1">>)),
        ?assertEqual({error, {bad_context, other_node}},
                     py:call(N, 'erlang._contexts', ask, [eval, {other@host, 1, 1}, <<"1">>]))
    end).

a_context_ends_with_its_owner(Config) ->
    with(Config, fun(N) ->
        Owner = spawn(fun() -> receive stop -> ok end end),
        {ok, Context} = py:context(N, #{owner => Owner, imports => [objects], preload => <<"c = objects.Counter()">>}),
        Alive = fun() -> {ok, Alive} = py:call(N, objects, alive, []), Alive end,
        ?assertEqual(1, Alive()),
        exit(Owner, kill),
        ok = sw_e2e:eventually(fun() -> Alive() =:= 0 end),
        ?assertEqual({error, {bad_context, closed}}, py:eval(Context, <<"1">>))
    end).

what_runs_in_a_context_whose_owner_ends_is_interrupted(Config) ->
    with(Config, fun(N) ->
        Owner = spawn(fun() -> receive stop -> ok end end),
        {ok, Context} = py:context(N, #{owner => Owner}),
        Spin = py:spawn_call(Context, builtins, exec, [<<"while True: pass">>]),
        ok = sw_e2e:eventually(fun() -> {ok, #{busy := Busy}} = py_context:info(Context), Busy end),
        Waits = py:spawn_call(Context, math, sqrt, [1.0]),
        ok = sw_e2e:eventually(fun() -> {ok, #{waiting := Count}} = py_context:info(Context), Count =:= 1 end),
        exit(Owner, kill),
        ?assertEqual({error, {bad_context, closed}}, py:await(Waits)),
        ?assertMatch({error, _}, py:await(Spin))
    end).

%% --- modules ----------------------------------------------------------------------------------------

write(Directory, Name, Lines) ->
    File = filename:join(Directory, Name),
    ok = filelib:ensure_dir(File),
    ok = file:write_file(File, lists:join("\n", Lines)).

directory(Config, Name) ->
    filename:join(proplists:get_value(priv_dir, Config), Name).

versions_of_a_module_live_side_by_side(Config) ->
    [Old, New] = [directory(Config, Name) || Name <- ["old", "new"]],
    [begin
         write(Directory, "plans/__init__.py", ["from .core import price", "import plans.tax", "from . import tax as again"]),
         write(Directory, "plans/core.py", ["import json", "from plans import tax", "def price(n):", "    return n * " ++ Factor ++ " + tax.RATE"]),
         write(Directory, "plans/tax.py", ["RATE = " ++ Factor])
     end || {Directory, Factor} <- [{Old, "10"}, {New, "20"}]],
    with(Config, fun(N) ->
        [One, Two] = [begin {ok, C} = py:context(N, #{isolated => [plans], path => [Directory]}), C end || Directory <- [Old, New]],
        ?assertEqual({ok, 30}, py:call(One, plans, price, [2])),
        ?assertEqual({ok, 60}, py:call(Two, plans, price, [2])),
        ?assertEqual({ok, 30}, py:call(One, 'plans.core', price, [2])),
        {ok, none} = py:exec(Two, <<"import plans\nfrom plans.tax import RATE">>),
        ?assertEqual({ok, [20, 20, true]}, py:eval(Two, <<"[RATE, plans.again.RATE, plans.tax is plans.again]">>)),
        ?assertEqual({ok, false}, py:eval(N, <<"'plans' in __import__('sys').modules">>)),
        ?assertMatch({error, {python, <<"ModuleNotFoundError">>, _, _}}, py:call(N, plans, price, [2])),
        {ok, #{modules := Modules}} = py_context:info(One),
        ?assertEqual([<<"plans">>, <<"plans.core">>, <<"plans.tax">>], Modules),
        ?assertMatch({error, {python, <<"ModuleNotFoundError">>, _, _}}, py:call(One, 'plans.none', f, [])),
        {ok, Native} = py:context(N, #{isolated => [math]}),
        ?assertMatch({error, {python, <<"ImportError">>, _, _}}, py:call(Native, math, sqrt, [1.0]))
    end).

a_module_of_a_context_is_reloaded_while_a_call_of_the_old_one_runs(Config) ->
    Directory = directory(Config, "reloaded"),
    Write = fun(Version) ->
        write(Directory, "rated.py", ["import asyncio", "VERSION = " ++ Version, "def now():", "    return VERSION",
                                      "async def later(event):", "    event.set()", "    await asyncio.sleep(0.3)", "    return VERSION"])
    end,
    Write("1"),
    with(Config, fun(N) ->
        {ok, Context} = py:context(N, #{isolated => [rated], path => [Directory], preload => <<"import rated">>}),
        ?assertEqual({ok, 1}, py:call(Context, rated, now, [])),
        {ok, Begun} = py:call(Context, asyncio, 'Event', [], #{return => ref}),
        Old = py:spawn_call(Context, rated, later, [Begun]),
        ok = sw_e2e:eventually(fun() -> {ok, true} =:= py:call_method(Begun, is_set, []) end),
        Write("2"),
        ?assertEqual(ok, py:reload(Context, rated)),
        ?assertEqual({ok, 2}, py:call(Context, rated, now, [])),
        ?assertEqual({ok, 2}, py:eval(Context, <<"rated.now()">>)),
        ?assertEqual({ok, 1}, py:await(Old)),
        ?assertMatch({error, {python, <<"ValueError">>, _, _}}, py:reload(Context, json))
    end).

a_reload_that_fails_leaves_the_old_module(Config) ->
    Directory = directory(Config, "broken"),
    write(Directory, "breaks.py", ["def now():", "    return 1"]),
    with(Config, fun(N) ->
        {ok, Context} = py:context(N, #{isolated => [breaks], path => [Directory]}),
        ?assertEqual({ok, 1}, py:call(Context, breaks, now, [])),
        write(Directory, "breaks.py", ["def now():", "    return 2", "raise ValueError('no')"]),
        ?assertMatch({error, {python, <<"ValueError">>, <<"no">>, _}}, py:reload(Context, breaks)),
        ?assertEqual({ok, 1}, py:call(Context, breaks, now, []))
    end).

a_module_of_the_node_is_reloaded(Config) ->
    Directory = directory(Config, "node"),
    write(Directory, "changing.py", ["def now():", "    return 1"]),
    with_node(Config, ["--path", Directory], fun(N) ->
        ?assertEqual(ok, py:import(N, changing)),
        ?assertEqual({ok, 1}, py:call(N, changing, now, [])),
        write(Directory, "changing.py", ["def now():", "    return 'another'"]),
        ?assertEqual(ok, py:reload(N, changing)),
        ?assertEqual({ok, <<"another">>}, py:call(N, changing, now, [])),
        ?assertMatch({error, {python, <<"ModuleNotFoundError">>, _, _}}, py:import(N, no_such_module)),
        ?assertMatch({error, {python, <<"ModuleNotFoundError">>, _, _}}, py:reload(N, no_such_module)),
        ?assertEqual(ok, py:reload(N, colorsys))
    end).

%% --- the allow-list ---------------------------------------------------------------------------------

the_allow_list_holds_in_contexts(Config) ->
    with_node(Config, ["--allow", "math.*"], fun(N) ->
        {ok, Context} = py:context(N, #{}),
        Refused = fun(M, F) -> {error, {not_allowed, {M, F}}} end,
        ?assertEqual({ok, 2.0}, py:call(Context, math, sqrt, [4.0])),
        ?assertEqual(Refused(<<"os">>, <<"getpid">>), py:call(Context, os, getpid, [])),
        ?assertEqual(Refused(<<"__main__">>, <<"environ">>), py:call(Context, '__main__', environ, [])),
        ?assertEqual(Refused(<<"builtins">>, <<"eval">>), py:eval(Context, <<"1">>)),
        ?assertEqual(Refused(<<"builtins">>, <<"exec">>), py:exec(Context, <<"1">>)),
        ?assertEqual(Refused(<<"builtins">>, <<"exec">>), py:context(N, #{preload => <<"1">>})),
        [?assertEqual(Refused(<<"importlib">>, <<"import_module">>), py:context(N, Options))
         || Options <- [#{imports => [os]}, #{isolated => [os]}, #{path => [<<"/">>]}]],
        ?assertEqual(Refused(<<"importlib">>, <<"import_module">>), py:import(N, os)),
        ?assertEqual(Refused(<<"importlib">>, <<"reload">>), py:reload(N, math)),
        Ask = fun(F) -> gen_server:call({py, N}, {call, 'erlang._contexts', F, []}) end,
        [?assertMatch({F, {error, {not_allowed, _}}}, {F, Ask(F)})
         || F <- ['_find', '_make', '_Context', 'Atom', 'Pid', 'importlib.import_module', '_contexts.clear', 'asyncio.run']]
    end).

evaluation_that_is_off_is_off_in_contexts(Config) ->
    with_node(Config, ["--eval", "off"], fun(N) ->
        {ok, Context} = py:context(N, #{imports => [builtins]}),
        ?assertEqual({error, {not_allowed, {<<"builtins">>, <<"eval">>}}}, py:eval(Context, <<"1">>)),
        ?assertEqual({error, {not_allowed, {<<"builtins">>, <<"exec">>}}}, py:exec(Context, <<"1">>)),
        ?assertEqual({error, {not_allowed, {<<"builtins">>, <<"eval">>}}}, py:call(Context, builtins, eval, [<<"1">>])),
        ?assertEqual({error, {not_allowed, {<<"builtins">>, <<"eval">>}}}, py:call(Context, '__main__', '__builtins__.get', [<<"eval">>], #{return => ref}))
    end).

what_is_no_context_is_a_bad_target(Config) ->
    with(Config, fun(_) ->
        ?assertEqual({error, {bad_target, {no, context}}}, py:call({no, context}, math, sqrt, [1.0])),
        ?assertEqual({error, {bad_target, {}}}, py:eval({}, <<"1">>)),
        ?assertEqual({error, {bad_target, {a}}}, py:cast({a}, math, sqrt, [1.0])),
        ?assertEqual({error, {bad_target, {a}}}, py:await(py:spawn_call({a}, math, sqrt, [1.0])))
    end).

memory_can_be_looked_at_and_collected(Config) ->
    with(Config, fun(N) ->
        {ok, #{rss := Rss, max_rss := Max, refs := Refs, contexts := Contexts, threads := Threads}} = py:memory_stats(N),
        ?assert(Rss > 10000000),
        ?assert(Max >= Rss),
        ?assert(is_integer(Refs) andalso is_integer(Contexts) andalso Threads > 0),
        {ok, none} = py:exec(N, <<"import gc\ngc.disable()\nclass K: pass\nfor _ in range(50):\n    k = K(); k.me = k\nk = None">>),
        {ok, Collected} = py:gc(N),
        {ok, none} = py:exec(N, <<"gc.enable()">>),
        ?assert(Collected >= 50),
        ?assertMatch({ok, #{}}, py:memory_stats()),
        ?assertMatch({ok, _}, py:gc())
    end).

worker_processes_say_that_they_have_no_contexts(Config) ->
    with_node(Config, ["--processes", "1"], fun(N) ->
        ?assertMatch({error, {unsupported, _}}, py:context(N, #{})),
        ?assertEqual({ok, 1}, py:call(N, objects, now, []))
    end).
