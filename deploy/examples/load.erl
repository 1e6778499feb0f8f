%% Load on a pool of Python nodes, and an account of it.
%%
%%   erl … -run load main STOP CALLERS NODE...
%%
%% Connects to the nodes, makes the pool crew of what is hidden and called py@…, and has CALLERS processes call work:job/1 without
%% a pause. Each tenth of a second there is a line `tick MILLISECONDS ANSWERED FAILED`, on the system's clock, with
%% ` NODE CALLS` for each member: all calls that it was given so far. When the
%% file STOP is there the callers finish their last call, and the end is a line `total ANSWERED FAILED`, a line `failed
%% COUNT REASON` for each way to fail, and a line `node NAME CALLS` for each member.
-module(load).

-export([main/1]).

main([Stop, Callers | Nodes]) ->
    ok = logger:set_primary_config(level, error),
    {ok, _} = application:ensure_all_started(sidewinder),
    [true = net_kernel:connect_node(list_to_atom(Node)) || Node <- Nodes],
    {ok, _} = py_pool:start(crew, #{nodes => {hidden, <<"py@*">>}}),
    wait_for(length(Nodes)),
    Table = ets:new(load, [public, {write_concurrency, true}]),
    true = ets:insert(Table, [{answered, 0}, {failed, 0}, {next, 0}, {stop, false}]),
    Pids = [spawn_monitor(fun() -> caller(Table) end) || _ <- lists:seq(1, list_to_integer(Callers))],
    io:format("started~n"),
    ticks(Stop, Table, 0, 0),
    true = ets:insert(Table, {stop, true}),
    [receive {'DOWN', Ref, process, Pid, Reason} -> normal = Reason end || {Pid, Ref} <- Pids],
    [{answered, Answered}] = ets:lookup(Table, answered),
    [{failed, Failed}] = ets:lookup(Table, failed),
    io:format("total ~b ~b~n", [Answered, Failed]),
    [io:format("failed ~b ~0p~n", [Count, Reason]) || {{reason, Reason}, Count} <- ets:tab2list(Table)],
    [io:format("node ~s ~b~n", [Node, Calls]) || {Node, Calls} <- members()],
    halt(0).

members() ->
    {ok, #{members := Members}} = py_pool:info(crew),
    [{Node, Calls} || #{node := Node, calls := Calls} <- Members].

wait_for(Count) ->
    case length(py_pool:members(crew)) of
        Count -> ok;
        _ -> timer:sleep(50), wait_for(Count)
    end.

caller(Table) ->
    case ets:lookup(Table, stop) of
        [{stop, true}] -> ok;
        [{stop, false}] -> call(Table, ets:update_counter(Table, next, 1)), caller(Table)
    end.

call(Table, Number) ->
    case py:call(crew, work, job, [Number]) of
        {ok, Number} ->
            ets:update_counter(Table, answered, 1);
        {error, Reason} ->
            ets:update_counter(Table, failed, 1),
            ets:update_counter(Table, {reason, Reason}, 1, {{reason, Reason}, 0}),
            timer:sleep(10)
    end.

ticks(Stop, Table, Answered0, Failed0) ->
    timer:sleep(100),
    [{answered, Answered}] = ets:lookup(Table, answered),
    [{failed, Failed}] = ets:lookup(Table, failed),
    Members = [[" ", atom_to_list(Node), " ", integer_to_list(Calls)] || {Node, Calls} <- members()],
    io:format("tick ~b ~b ~b~s~n", [os:system_time(millisecond), Answered - Answered0, Failed - Failed0, Members]),
    case filelib:is_file(Stop) of
        true -> ok;
        false -> ticks(Stop, Table, Answered, Failed)
    end.
