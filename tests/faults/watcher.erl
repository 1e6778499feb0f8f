%% A BEAM that a fault script drives, and that watches the nodes for it.
%%
%%   script ── "ID EXPRESSION" a line ──▶ a process of its own for each
%%          ◀── "done ID BEGAN ENDED TEXT", "raised ID BEGAN ENDED TEXT", "event AT up|down NODE TEXT"
%%
%% Times are nanoseconds of the machine's monotonic clock, which is Python's time.monotonic_ns(). It ends with its
%% standard input, so that it does not outlive the script.
-module(watcher).

-export([main/0]).
-export([call/2, call/3, answered/2, load/4, stopped/1, holdings/0]).

main() ->
    Self = self(),
    _ = spawn_link(fun() -> ok = net_kernel:monitor_nodes(true, [nodedown_reason, {node_type, all}]),
                            Self ! watching, watch() end),
    receive watching -> ok end,
    say("ready ~s", [os:getpid()]),
    lines().

lines() ->
    case io:get_line("") of
        Line when is_list(Line) ->
            [Id, Text] = string:split(string:trim(Line), " "),
            _ = spawn(fun() -> evaluate(Id, Text) end),
            lines();
        _ ->
            halt(0)
    end.

evaluate(Id, Text) ->
    {ok, Tokens, _} = erl_scan:string(Text),
    {ok, Expressions} = erl_parse:parse_exprs(Tokens),
    Began = now_ns(),
    {How, Value} =
        try {value, What, _} = erl_eval:exprs(Expressions, []), {done, What}
        catch Class:Reason -> {raised, {Class, Reason}}
        end,
    say("~s ~s ~b ~b ~0tp", [How, Id, Began, now_ns(), Value]).

watch() ->
    receive
        {nodeup, Node, _} -> say("event ~b up ~s none", [now_ns(), Node]);
        {nodedown, Node, Info} ->
            At = now_ns(),
            say("event ~b down ~s ~0tp", [At, Node, proplists:get_value(nodedown_reason, Info)])
    end,
    watch().

say(Format, Arguments) ->
    io:format(Format ++ "~n", Arguments).

now_ns() ->
    os:perf_counter(nanosecond).

%% --- What scripts ask for -----------------------------------------------------------------------------------------

%% A call as any BEAM makes it, with none of our code: its answer, or how it failed.
call(Node, Request) ->
    call(Node, Request, 30000).

call(Node, Request, Timeout) ->
    try gen_server:call({py, Node}, Request, Timeout)
    catch exit:{Why, {gen_server, call, _}} -> {failed, Why}
    end.

%% How many of so many calls at once were answered in which way.
answered(Count, Call) ->
    Self = self(),
    Pids = [spawn_link(fun() -> Self ! {self(), Call()} end) || _ <- lists:seq(1, Count)],
    tally([receive {Pid, Answer} -> Answer end || Pid <- Pids]).

%% So many callers that call again and again until stopped/1; each answer is judged by `Kind`.
load(Name, Callers, Call, Kind) ->
    Self = self(),
    Pid = spawn(fun() ->
        register(Name, self()),
        Stop = atomics:new(1, []),
        Workers = [spawn_monitor(fun() -> exit({counted, again(Call, Kind, Stop, #{})}) end)
                   || _ <- lists:seq(1, Callers)],
        Self ! {self(), running},
        receive {stop, From} -> atomics:put(Stop, 1, 1), From ! {Name, add([ended(Worker) || Worker <- Workers])} end
    end),
    receive {Pid, running} -> ok end.

again(Call, Kind, Stop, Counts) ->
    case atomics:get(Stop, 1) of
        1 -> Counts;
        0 -> again(Call, Kind, Stop, maps:update_with(Kind(Call()), fun(N) -> N + 1 end, 1, Counts))
    end.

ended({Pid, Monitor}) ->
    receive
        {'DOWN', Monitor, process, Pid, {counted, Counts}} -> Counts;
        {'DOWN', Monitor, process, Pid, Why} -> #{{crashed, Why} => 1}
    end.

stopped(Name) ->
    Name ! {stop, self()},
    receive {Name, Counts} -> lists:sort(maps:to_list(Counts)) end.

add(Maps) ->
    lists:foldl(fun(One, All) -> maps:merge_with(fun(_, A, B) -> A + B end, One, All) end, #{}, Maps).

tally(Answers) ->
    lists:sort(maps:to_list(add([#{Answer => 1} || Answer <- Answers]))).

%% What a leak would show in.
holdings() ->
    erlang:garbage_collect(),
    {erlang:system_info(process_count), erlang:system_info(port_count), erlang:memory(total)}.
