%% What a node does: its busiest functions, its queues, how long its calls wait and for what.
%%
%%   py:top('py@host')        the figures, as a map
%%   py_top:view('py@host')   the same as a table, printed once
%%   py_top:start('py@host')  printed again every two seconds, until q and return
%%
%%   py_top ── {report, functions} ──▶ {py, Node}: answered by the thread that serves the links, so
%%                                     also by a node whose Python hangs
%%
%% The node counts from its start, so what happened within an interval is the difference of two
%% reports. How late its event loop is it finds out by a job on that loop for each question, and tells
%% at the next one; so there are always two.
-module(py_top).

-export([report/3, top/2]).
-export([view/1, view/2, start/1, start/2, format/1]).
-export([read_line/1]).

-export_type([options/0, top/0, line/0]).

-define(TIMEOUT_MS, 5000).
-define(PROBE_MS, 20).
-define(INTERVAL_MS, 2000).
-define(NAME_WIDTH, 40).
-define(is_interval(X), (is_integer(X) andalso X >= 0 andalso X =< 3600000)).

-type options() :: #{
    sort => time | calls | errors | mean | max | name,    % default time
    count => pos_integer(),         % functions at most; default 10
    interval => non_neg_integer(),  % ms to look at; default 0: all since the node was started
    refreshes => pos_integer() | infinity    % of start/2; default infinity
}.
%% Times are in microseconds.
-type line() :: #{
    name := binary(), calls := non_neg_integer(), errors := non_neg_integer(),
    cancelled := non_neg_integer(), refused := non_neg_integer(),
    time := non_neg_integer(), mean := float(), max := non_neg_integer()
}.
-type top() :: #{node := node(), functions := [line()], atom() => term()}.

%% --- For py -----------------------------------------------------------------------------------

%% What the node says of itself, now.
-spec report(node(), summary | functions, timeout()) -> {ok, map()} | {error, py_link:reason()}.
report(Node, What, Timeout) ->
    try
        gen_server:call({py, Node}, {report, What}, Timeout)
    catch
        exit:{timeout, _} -> {error, timeout};
        exit:{{nodedown, _}, _} -> {error, {down, noconnection}};
        exit:{Reason, _} -> {error, {down, Reason}}
    end.

%% The figures of a node that is connected.
-spec top(node(), options()) -> {ok, top()} | {error, py_link:reason()}.
top(Node, Options) ->
    ok = check(Options),
    Interval = maps:get(interval, Options, 0),
    case reports(Node, Interval) of
        {ok, Before, Now} -> {ok, figures(Node, Before, Now, Interval, Options)};
        {error, Reason} -> {error, Reason}
    end.

-spec reports(node(), non_neg_integer()) -> {ok, map(), map()} | {error, py_link:reason()}.
reports(Node, Interval) ->
    First = case Interval of 0 -> summary; _ -> functions end,
    case report(Node, First, ?TIMEOUT_MS) of
        {ok, Before} ->
            timer:sleep(max(?PROBE_MS, Interval)),
            case report(Node, functions, ?TIMEOUT_MS) of
                {ok, Now} -> {ok, Before, Now};
                {error, Reason} -> {error, Reason}
            end;
        {error, Reason} ->
            {error, Reason}
    end.

-spec check(map()) -> ok.
check(Options) ->
    case maps:size(maps:filter(fun is_option/2, Options)) =:= map_size(Options) of
        true -> ok;
        false -> error(badarg)
    end.

-spec is_option(term(), term()) -> boolean().
is_option(sort, By) -> lists:member(By, [time, calls, errors, mean, max, name]);
is_option(count, Count) -> is_integer(Count) andalso Count > 0;
is_option(interval, Interval) -> ?is_interval(Interval);
is_option(refreshes, infinity) -> true;
is_option(refreshes, Count) -> is_integer(Count) andalso Count > 0;
is_option(_, _) -> false.

%% --- Figures ----------------------------------------------------------------------------------

-spec figures(node(), map(), map(), non_neg_integer(), options()) -> top().
figures(Node, _, Now = #{functions := Functions}, 0, Options) ->
    figures(Node, Now, lists:map(fun line/1, Functions), Options);
figures(Node, Before, Now, _, Options) ->
    #{functions := Old} = Before,
    #{functions := New} = Now,
    Known = maps:from_list([{element(1, Each), Each} || Each <- Old]),
    Lines = [line(since(Each, Known)) || Each <- New],
    Since = maps:map(fun(Key, Value) -> since(Key, Value, Before) end, Now),
    figures(Node, Since, Lines, Options).

-spec figures(node(), map(), [line()], options()) -> top().
figures(Node, Report, Lines, Options) ->
    Busy = [Line || Line = #{calls := Calls} <- Lines, Calls > 0],
    Sorted = sort(maps:get(sort, Options, time), Busy),
    maps:merge(maps:map(fun mean/2, Report),
               #{node => Node,
                 functions => lists:sublist(Sorted, maps:get(count, Options, 10))}).

%% What only ever grows is told as what it grew by.
-spec since(atom(), term(), map()) -> term().
since(Key, {Count, Us}, Before) ->
    {Count0, Us0} = maps:get(Key, Before, {0, 0}),
    {Count - Count0, Us - Us0};
since(Key, Value, Before) when Key =:= calls; Key =:= refused; Key =:= cpu; Key =:= replaced ->
    Value - maps:get(Key, Before, 0);
since(_, Value, _) ->
    Value.

-spec since(tuple(), #{binary() => tuple()}) -> tuple().
since({Name, Ok, Error, Cancelled, Refused, Time, Max} = New, Known) ->
    case Known of
        #{Name := {_, Ok0, Error0, Cancelled0, Refused0, Time0, _}} ->
            {Name, Ok - Ok0, Error - Error0, Cancelled - Cancelled0, Refused - Refused0,
             Time - Time0, Max};
        #{} ->
            New
    end.

%% How often and how long altogether, as how often and how long on average.
-spec mean(atom(), term()) -> term().
mean(_, {Count, Us}) -> #{count => Count, mean => ratio(Us, Count)};
mean(_, Value) -> Value.

-spec line(tuple()) -> line().
line({Name, Ok, Error, Cancelled, Refused, Time, Max}) ->
    Calls = Ok + Error + Cancelled + Refused,
    #{name => Name, calls => Calls, errors => Error, cancelled => Cancelled, refused => Refused,
      time => Time, mean => ratio(Time, Calls), max => Max}.

-spec ratio(integer(), integer()) -> float().
ratio(_, 0) -> 0.0;
ratio(Sum, Count) -> Sum / Count.

-spec sort(atom(), [line()]) -> [line()].
sort(name, Lines) ->
    lists:sort(fun(#{name := A}, #{name := B}) -> A =< B end, Lines);
sort(By, Lines) ->
    lists:sort(fun(A, B) -> {maps:get(By, B), maps:get(name, A)} =< {maps:get(By, A), maps:get(name, B)} end,
               Lines).

%% --- As text ----------------------------------------------------------------------------------

%% Prints the table once.
-spec view(py:target()) -> ok | {error, py_link:reason()}.
view(Target) ->
    view(Target, #{}).

-spec view(py:target(), options()) -> ok | {error, py_link:reason()}.
view(Target, Options) ->
    case py:top(Target, maps:remove(refreshes, Options)) of
        {ok, Top} -> io:put_chars(format(Top));
        {error, Reason} -> {error, Reason}
    end.

%% Prints it again and again, each time for what happened since, until a line with q is typed, or as
%% often as `refreshes` says. A node that does not answer is asked again.
-spec start(py:target()) -> ok | {error, py_link:reason()}.
start(Target) ->
    start(Target, #{}).

-spec start(py:target(), options()) -> ok | {error, py_link:reason()}.
start(Target, Options) ->
    ok = check(Options),
    Each = maps:remove(refreshes, maps:merge(#{interval => ?INTERVAL_MS}, Options)),
    case maps:get(refreshes, Options, infinity) of
        infinity ->
            Reader = spawn_monitor(?MODULE, read_line, [self()]),
            refresh(Target, Each, infinity, Reader);
        Count ->
            refresh(Target, Each, Count, none)
    end.

-spec refresh(py:target(), options(), non_neg_integer() | infinity, none | {pid(), reference()}) -> ok.
refresh(_, _, 0, _) ->
    ok;
refresh(Target, Options, Left, Reader) ->
    Figures = py:top(Target, Options),
    case told_to_end(Reader, 0) of
        true ->
            ok;
        false ->
            io:put_chars([clear(Left), shown(Target, Figures, Left)]),
            Pause = case Figures of {ok, _} -> 0; {error, _} -> maps:get(interval, Options) end,
            case told_to_end(Reader, Pause) of
                true -> ok;
                false -> refresh(Target, Options, less(Left), Reader)
            end
    end.

-spec less(pos_integer() | infinity) -> non_neg_integer() | infinity.
less(infinity) -> infinity;
less(Left) -> Left - 1.

-spec shown(py:target(), {ok, top()} | {error, term()}, term()) -> iolist().
shown(_, {ok, Top}, infinity) -> [format(Top), "q and return: end\n"];
shown(_, {ok, Top}, _) -> [format(Top), $\n];
shown(Target, {error, Reason}, _) -> io_lib:format("~p does not answer: ~0tp~n", [Target, Reason]).

%% Where there is a terminal the last table makes way for the next.
-spec clear(term()) -> string().
clear(infinity) ->
    case io:columns() of
        {ok, _} -> "\e[H\e[2J";
        {error, _} -> ""
    end;
clear(_) ->
    "".

%% Lines are read by a process of their own, as the table goes on meanwhile.
-spec read_line(pid()) -> ok.
read_line(Viewer) ->
    Lost = erlang:monitor(process, Viewer),
    case io:get_line("") of
        Line when is_list(Line); is_binary(Line) ->
            case string:trim(unicode:characters_to_list(Line)) of
                "q" -> ok;
                _ -> erlang:demonitor(Lost), read_line(Viewer)
            end;
        _ ->
            ok    % no input, or not any more
    end.

-spec told_to_end(none | {pid(), reference()}, non_neg_integer()) -> boolean().
told_to_end(none, Pause) ->
    timer:sleep(Pause),
    false;
told_to_end({Pid, Monitor}, Pause) ->
    receive
        {'DOWN', Monitor, process, Pid, _} -> true
    after Pause -> false
    end.

%% The table of what py:top/2 said.
-spec format(top()) -> iolist().
format(#{node := Node, functions := Functions} = Top) ->
    [io_lib:format("~ts  Python ~ts  up ~ts  ~ts  cpu ~.1f s~n",
                   [Node, maps:get(python, Top, "?"), uptime(of_top(uptime, Top)),
                    bytes(of_top(memory, Top)), of_top(cpu, Top) / 1000]),
     io_lib:format("workers ~b: ~b busy, ~b wait for Erlang, ~b replaced   queue ~b   tasks ~b   "
                   "processes ~b   channels ~b   links ~b~n",
                   [of_top(threads, Top), of_top(busy, Top), of_top(blocked, Top),
                    of_top(replaced, Top), of_top(queue, Top), of_top(tasks, Top),
                    of_top(processes, Top), of_top(channels, Top), length(maps:get(links, Top, []))]),
     io_lib:format("calls ~b, ~b refused   on average: queued ~ts, run ~ts, encoded ~ts, GIL ~ts   "
                   "loop late by ~ts~n",
                   [of_top(calls, Top), of_top(refused, Top), mean_of(queue_time, Top),
                    mean_of(run_time, Top), mean_of(encode_time, Top), mean_of(gil_time, Top),
                    lag(maps:get(loop_lag, Top, undefined))]),
     io_lib:format("~n~-*s ~10s ~8s ~12s ~10s ~10s~n",
                   [?NAME_WIDTH, "function", "calls", "errors", "total", "mean", "longest"])
     | [row(Line) || Line <- Functions]].

-spec of_top(atom(), top()) -> non_neg_integer().
of_top(Key, Top) -> maps:get(Key, Top, 0).

-spec mean_of(atom(), top()) -> iolist().
mean_of(Key, Top) ->
    case Top of
        #{Key := #{count := Count, mean := Mean}} when Count > 0 -> time(Mean);
        #{} -> "-"
    end.

-spec row(line()) -> iolist().
row(#{name := Name, calls := Calls, errors := Errors, time := Time, mean := Mean, max := Max}) ->
    io_lib:format("~ts ~10b ~8b ~12ts ~10ts ~10ts~n",
                  [padded(Name), Calls, Errors, time(Time), time(Mean), time(Max)]).

%% The name of a function is Python's: it may be long, and nothing but text is to reach a terminal.
-spec padded(binary()) -> iolist().
padded(Name) ->
    Text = [case C < 32 orelse C >= 127 andalso C < 160 of true -> $?; false -> C end
            || C <- unicode:characters_to_list(Name)],
    Cut = case length(Text) > ?NAME_WIDTH of
        true -> ["...", lists:nthtail(length(Text) - ?NAME_WIDTH + 3, Text)];
        false -> Text
    end,
    string:pad(Cut, ?NAME_WIDTH).

-spec time(number()) -> iolist().
time(Us) when Us < 1000 -> io_lib:format("~.1f us", [Us * 1.0]);
time(Us) when Us < 1000000 -> io_lib:format("~.1f ms", [Us / 1000]);
time(Us) -> io_lib:format("~.2f s", [Us / 1000000]).

-spec lag(undefined | integer()) -> iolist().
lag(undefined) -> "?";
lag(Us) -> time(Us).

-spec uptime(non_neg_integer()) -> iolist().
uptime(Ms) ->
    Seconds = Ms div 1000,
    io_lib:format("~b:~2..0b:~2..0b",
                  [Seconds div 3600, Seconds div 60 rem 60, Seconds rem 60]).

-spec bytes(non_neg_integer()) -> iolist().
bytes(Bytes) -> io_lib:format("~.1f MiB", [Bytes / 1048576]).
