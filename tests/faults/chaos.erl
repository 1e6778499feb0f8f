%% The callers of tests/faults/chaos: each calls through a pool again and again, every call with a number of its own, and
%% one process writes down how each ended: "Number Kind Began Ended Class Node", times in nanoseconds of the machine's clock.
-module(chaos).

-export([start/3, stop/0, calls/0]).

-define(PAUSE_MS, 20).  % after a call that found nobody

%% Kind is `once`, or `again` for the calls that are marked idempotent: a quarter of them.
start(Path, Callers, Timeout) ->
    Self = self(),
    _ = spawn(fun() ->
        true = register(?MODULE, self()),
        {ok, File} = file:open(Path, [write, raw, {delayed_write, 65536, 200}]),
        Stop = atomics:new(1, []),
        Count = atomics:new(1, []),
        Writer = self(),
        Workers = [spawn_monitor(fun() -> again(Writer, Stop, Count, Timeout) end) || _ <- lists:seq(1, Callers)],
        Self ! started,
        write(File, Stop, Workers)
    end),
    receive started -> ok end.

stop() ->
    ?MODULE ! {stop, self()},
    receive {?MODULE, Result} -> Result end.

%% How many calls have ended.
calls() ->
    ?MODULE ! {calls, self()},
    receive {?MODULE, Number} -> Number end.

write(File, Stop, Workers) -> write(File, Stop, Workers, 0).

write(File, Stop, Workers, Number) ->
    receive
        {line, Line} ->
            ok = file:write(File, Line),
            write(File, Stop, Workers, Number + 1);
        {calls, From} ->
            From ! {?MODULE, Number},
            write(File, Stop, Workers, Number);
        {stop, From} ->
            ok = atomics:put(Stop, 1, 1),
            Ends = ended(File, Workers),
            ok = file:close(File),
            From ! {?MODULE, lists:usort(Ends)}
    end.

%% The callers are through with their last calls; their last lines are there before their ends.
ended(_, []) -> [];
ended(File, Workers) ->
    receive
        {line, Line} -> ok = file:write(File, Line), ended(File, Workers);
        {'DOWN', Monitor, process, Pid, Why} -> [Why | ended(File, lists:delete({Pid, Monitor}, Workers))]
    end.

again(Writer, Stop, Count, Timeout) ->
    case atomics:get(Stop, 1) of
        1 -> ok;
        0 -> one(Writer, atomics:add_get(Count, 1, 1), Timeout), again(Writer, Stop, Count, Timeout)
    end.

one(Writer, Number, Timeout) ->
    Idempotent = Number rem 4 =:= 0,
    Began = os:perf_counter(nanosecond),
    Answer = py:call(crew, faulty, work, [Number], #{timeout => Timeout, idempotent => Idempotent}),
    Ended = os:perf_counter(nanosecond),
    {Class, Node} = class(Number, Answer),
    Kind = case Idempotent of true -> again; false -> once end,
    Writer ! {line, io_lib:format("~b ~s ~b ~b ~s ~s~n", [Number, Kind, Began, Ended, Class, Node])},
    case Class of
        ok -> ok;
        _ -> timer:sleep(?PAUSE_MS)
    end.

%% Only what the documentation names; anything else is printed whole and fails the run.
class(Number, {ok, {Number, Node}}) -> {ok, Node};
class(_, {error, {down, no_members}}) -> {no_members, none};
class(_, {error, {down, Node}}) when is_atom(Node) -> {down, Node};
class(_, {error, timeout}) -> {timeout, none};
class(_, {error, overloaded}) -> {overloaded, none};
class(_, {error, cancelled}) -> {cancelled, none};
class(_, {error, draining}) -> {draining, none};
class(_, Other) -> {io_lib:format("strange:~s", [base64:encode(term_to_binary(Other))]), none}.
