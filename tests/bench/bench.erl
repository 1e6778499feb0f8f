%% The BEAM's half of the benchmark: does one small measurement after another, as told on standard
%% input, and prints what it found as one line. tests/bench/run says what to do, interleaves the
%% nodes it compares, and makes figures of the lines.
%%
%%   {latency, Via, Node, 500}.   ──▶   ok p50=61.2 p99=143.9
%%
%% Via says how a node is asked: `gen` is a bare gen_server:call to the process `py`, `echo` the
%% same to the baseline's `echo`, `py` is py:call through the application. Times are microseconds
%% unless the name says otherwise.
-module(bench).

-export([main/0, no/1]).

-define(TIMEOUT_MS, 30000).

-type via() :: gen | echo | py.
-type value() :: {atom(), number()}.

-spec main() -> no_return().
main() ->
    {ok, _} = application:ensure_all_started(sidewinder),
    ok = py:register_function(bench_echo, fun([Value]) -> Value end),
    loop().

-spec loop() -> no_return().
loop() ->
    case io:read("") of
        {ok, Command} ->
            print(catch run(Command)),
            loop();
        eof ->
            halt(0);
        {error, Reason} ->
            print({error, Reason}),
            halt(1)
    end.

-spec print([value()] | term()) -> ok.
print(Values = [{_, _} | _]) ->
    Fields = [[" ", atom_to_list(Name), "=", text(Value)] || {Name, Value} <- Values],
    io:put_chars(["ok", Fields, "\n"]);
print(Other) ->
    io:format("error ~0p~n", [Other]).

-spec text(number()) -> string().
text(Value) when is_integer(Value) -> integer_to_list(Value);
text(Value) -> float_to_list(Value, [{decimals, 3}]).

-spec run(tuple()) -> [value()] | {error, term()}.
run({connect, Node}) ->
    true = net_kernel:connect_node(Node),
    [{connected, 1}];
run({latency, Via, Node, Count}) ->
    quantiles([timed(Via, Node) || _ <- lists:seq(1, Count)]);
run({callers, Via, Node, Callers, Ms}) ->
    callers(Via, Node, Callers, Ms);
run({spinners, Node, Callers, Ms}) ->
    spinners(Node, Callers, Ms);
run({window, Via, Node, Width, Ms}) ->
    window(Via, Node, Width, Ms);
run({objects, How, Node, Count}) ->
    objects(How, Node, Count);
run({owners, Node, Owners, Each}) ->
    owners(Node, Owners, Each);
run({first_item, F, Node, Count}) ->
    first_item(F, Node, Count);
run({items, F, How, Node, Count}) ->
    items(F, How, Node, Count);
run({seen, look, _, Count}) ->
    look(Count * 100);
run({seen, none, Node, Count}) ->
    quantiles([timed(py, Node) || _ <- lists:seq(1, Count)]);
run({seen, handler, Node, Count}) ->
    handled(Node, Count);
run({sleepers, Via, Node, Module, Count}) ->
    sleepers(Via, Node, Module, Count);
run({transfer, Via, Direction, Node, Bytes, Parts}) ->
    transfer(Via, Direction, Node, Bytes, Parts);
run({cast, Node, Count, Size}) ->
    cast(Node, Count, Size);
run({blast, Node, Count, Size}) ->
    blast(Node, Count, Size);
run({stream, Node, Count, Size}) ->
    stream(Node, Count, Size);
run({channel, Consumer, Node, Count, Size}) ->
    channel(Consumer, Node, Count, Size);
run({produce, Node, Count, Size}) ->
    produce(Node, Count, Size);
run({pingpong, Echo, Node, Count}) ->
    pingpong(Echo, Node, Count);
run({send, Node, Count, Size}) ->
    send(Node, Count, Size);
run({stopped, Node, Seconds}) ->
    stopped(Node, Seconds);
run({spinning, Node, Seconds}) ->
    spinning(Node, Seconds);
run({data, Kind, Node, Bytes}) ->
    data(Kind, Node, Bytes);
run({bodies, Node, Bytes, Parts}) ->
    bodies(Node, Bytes, Parts);
run({blobs, Node, Bytes, Parts}) ->
    blobs(Node, Bytes, Parts);
run({callbacks, Node, Count}) ->
    quantiles(call(py, Node, bench_callbacks, one_after_another, [Count]));
run({callbacks, How, Node, Width, Ms}) ->
    [{rate, call(py, Node, bench_callbacks, How, [Width, Ms / 1000])}];
run({state, Kind, Node, Count}) ->
    ok = py_state:put(<<"number">>, 16.0),
    ok = py_state:put(<<"map">>, maps:from_list([{<<"key", N>>, N} || N <- lists:seq($0, $9)])),
    quantiles(call(py, Node, bench_state, Kind, [Count]));
run({batch, Kind, Node, Callers, Ms}) ->
    batch(Kind, Node, Callers, Ms);
run({open, Node, Count}) ->
    open(Node, Count);
run({close_opened, now}) ->
    close_opened().

%% --- One call -----------------------------------------------------------------------------------

-spec call(via(), node()) -> ok.
call(gen, Node) ->
    {ok, 4.0} = gen_server:call({py, Node}, {call, math, sqrt, [16.0]}, ?TIMEOUT_MS),
    ok;
call(py, Node) ->
    {ok, 4.0} = py:call(Node, math, sqrt, [16.0]),
    ok;
call(echo, Node) ->
    Request = {call, math, sqrt, [16.0]},
    Request = gen_server:call({echo, Node}, Request, ?TIMEOUT_MS),
    ok.

-spec call(gen | py, node(), atom(), atom(), [term()]) -> term().
call(gen, Node, M, F, Args) ->
    {ok, Value} = gen_server:call({py, Node}, {call, M, F, Args}, ?TIMEOUT_MS),
    Value;
call(py, Node, M, F, Args) ->
    {ok, Value} = py:call(Node, M, F, Args, #{timeout => ?TIMEOUT_MS}),
    Value.

-spec timed(via(), node()) -> integer().
timed(Via, Node) ->
    Start = erlang:monotonic_time(nanosecond),
    ok = call(Via, Node),
    erlang:monotonic_time(nanosecond) - Start.

-spec quantiles([integer(), ...]) -> [value()].
quantiles(Nanoseconds) ->
    Sorted = lists:sort(Nanoseconds),
    Count = length(Sorted),
    At = fun(Share) -> lists:nth(max(1, ceil(Share * Count)), Sorted) / 1000 end,
    [{p50, At(0.5)}, {p99, At(0.99)}, {max, lists:last(Sorted) / 1000}, {calls, Count}].

%% --- Calls that are watched -----------------------------------------------------------------------

%% What py:call pays for the question whether anybody listens, in microseconds.
-spec look(pos_integer()) -> [value()].
look(Count) ->
    {Looking, ok} = timer:tc(fun() -> looks(Count) end),
    {Nothing, ok} = timer:tc(fun() -> nothing(Count) end),
    [{p50, max(0, Looking - Nothing) / Count}].

-spec looks(non_neg_integer()) -> ok.
looks(0) -> ok;
looks(Count) -> false = py_telemetry:on(call), looks(Count - 1).

-spec nothing(non_neg_integer()) -> ok.
nothing(0) -> ok;
nothing(Count) -> false = ?MODULE:no(Count), nothing(Count - 1).

-spec no(integer()) -> false.
no(_) -> false.

-spec handled(node(), pos_integer()) -> [value()].
handled(Node, Count) ->
    Events = [[sidewinder, call, start], [sidewinder, call, stop]],
    ok = py_telemetry:attach_many(?MODULE, Events, fun(_, _, _, _) -> ok end, none),
    Times = [timed(py, Node) || _ <- lists:seq(1, Count)],
    ok = py_telemetry:detach(?MODULE),
    quantiles(Times).

%% --- Many callers -------------------------------------------------------------------------------

%% So many processes call, each again as soon as it is answered.
-spec callers(via(), node(), pos_integer(), pos_integer()) -> [value()].
callers(Via, Node, Callers, Ms) ->
    Start = erlang:monotonic_time(microsecond),
    End = Start + Ms * 1000,
    Calls = in_processes(Callers, fun() -> call_until(Via, Node, End, 0) end),
    rate(lists:sum(Calls), Start).

%% Calls of about a millisecond of pure Python.
-spec spinners(node(), pos_integer(), pos_integer()) -> [value()].
spinners(Node, Callers, Ms) ->
    Start = erlang:monotonic_time(microsecond),
    End = Start + Ms * 1000,
    Calls = in_processes(Callers, fun() -> spin_until(Node, End, 0) end),
    rate(lists:sum(Calls), Start).

-spec spin_until(node(), integer(), non_neg_integer()) -> non_neg_integer().
spin_until(Node, End, Calls) ->
    {ok, 49995000} = gen_server:call({py, Node}, {call, bench_spin, spin, [10000]}, ?TIMEOUT_MS),
    case erlang:monotonic_time(microsecond) < End of
        true -> spin_until(Node, End, Calls + 1);
        false -> Calls + 1
    end.

%% A function of numpy's, called by each process for itself or by a batcher for all of them.
-spec batch(single | batched, node(), pos_integer(), pos_integer()) -> [value()].
batch(Kind, Node, Callers, Ms) ->
    Options = #{binary => bytes},
    {ok, Batcher} = py_batch:start_link(Options#{target => Node, module => bench_batch,
                                                 function => classify, max_items => 256}),
    Item = binary:copy(<<0.5:32/float-little>>, 16),
    Score = case Kind of
        single -> fun() -> py:call(Node, bench_batch, classify_one, [Item], Options) end;
        batched -> fun() -> py_batch:call(Batcher, Item) end
    end,
    {ok, _} = Score(),
    Start = erlang:monotonic_time(microsecond),
    End = Start + Ms * 1000,
    Calls = in_processes(Callers, fun() -> score_until(Score, End, 0) end),
    #{batches := Batches, items := Items} = py_batch:info(Batcher),
    ok = gen_server:stop(Batcher),
    [{size, Items / max(1, Batches)} | rate(lists:sum(Calls), Start)].

-spec score_until(fun(() -> {ok, term()}), integer(), non_neg_integer()) -> non_neg_integer().
score_until(Score, End, Calls) ->
    {ok, _} = Score(),
    case erlang:monotonic_time(microsecond) < End of
        true -> score_until(Score, End, Calls + 1);
        false -> Calls + 1
    end.

%% The values of a function run by so many processes at once. The first failure is ours.
-spec in_processes(pos_integer(), fun(() -> Value)) -> [Value].
in_processes(Count, Function) ->
    Workers = [spawn_monitor(fun() -> exit({value, Function()}) end) || _ <- lists:seq(1, Count)],
    [receive
         {'DOWN', Ref, process, Pid, {value, Value}} -> Value;
         {'DOWN', Ref, process, Pid, Why} -> exit(Why)
     end || {Pid, Ref} <- Workers].

-spec call_until(via(), node(), integer(), non_neg_integer()) -> non_neg_integer().
call_until(Via, Node, End, Calls) ->
    ok = call(Via, Node),
    case erlang:monotonic_time(microsecond) < End of
        true -> call_until(Via, Node, End, Calls + 1);
        false -> Calls + 1
    end.

%% One process keeps so many requests under way, without the monitor of a gen_server:call: the
%% quickest an unbatched client can be.
-spec window(gen | echo, node(), pos_integer(), pos_integer()) -> [value()].
window(Via, Node, Width, Ms) ->
    To = {case Via of gen -> py; echo -> echo end, Node},
    Request = fun() -> To ! {'$gen_call', {self(), make_ref()}, {call, math, sqrt, [16.0]}} end,
    Start = erlang:monotonic_time(microsecond),
    End = Start + Ms * 1000,
    lists:foreach(fun(_) -> Request() end, lists:seq(1, Width)),
    rate(window_until(Request, End, Width, 0), Start).

-spec window_until(fun(() -> term()), integer(), non_neg_integer(), non_neg_integer()) ->
    non_neg_integer().
window_until(_, _, 0, Calls) ->
    Calls;
window_until(Request, End, Open, Calls) ->
    receive {Ref, _} when is_reference(Ref) -> ok end,
    case erlang:monotonic_time(microsecond) < End of
        true -> Request(), window_until(Request, End, Open, Calls + 1);
        false -> window_until(Request, End, Open - 1, Calls + 1)
    end.

-spec rate(non_neg_integer(), integer()) -> [value()].
rate(Count, Start) ->
    Took = erlang:monotonic_time(microsecond) - Start,
    [{rate, Count * 1.0e6 / Took}, {count, Count}].

%% --- Sleeping calls -----------------------------------------------------------------------------

-spec sleepers(gen | py, node(), time | asyncio, pos_integer()) -> [value()].
sleepers(Via, Node, Module, Count) ->
    Start = erlang:monotonic_time(microsecond),
    _ = in_processes(Count, fun() -> none = call(Via, Node, Module, sleep, [0.05]) end),
    [{ms, (erlang:monotonic_time(microsecond) - Start) / 1000}].

%% --- Objects and contexts ---------------------------------------------------------------------------

%% One call after the other: of a function, of an object's method, with an object among the arguments,
%% of a function in a context; and objects made and released.
%% From the start of a stream until its first item is here.
-spec first_item(count | acount, node(), pos_integer()) -> [value()].
first_item(F, Node, Count) ->
    quantiles([begin
        Began = erlang:monotonic_time(nanosecond),
        {ok, Stream} = py:stream_start(Node, bench_streams, F, [3], #{demand => 1}),
        Ref = py_stream:ref(Stream),
        receive {py_stream, Ref, {items, [0]}} -> ok end,
        Took = erlang:monotonic_time(nanosecond) - Began,
        ok = py_stream:cancel(Stream),
        Took
    end || _ <- lists:seq(1, Count)]).

%% All items of a stream, as quickly as they come or with rests; the rate, and by how much the node's memory
%% was larger meanwhile than before, at most.
-spec items(count | acount, quick | slow, node(), pos_integer()) -> [value()].
items(F, How, Node, Count) ->
    Before = call(py, Node, bench_streams, memory, []),
    {ok, Stream} = py:stream_start(Node, bench_streams, F, [Count], #{demand => 4000}),
    Began = erlang:monotonic_time(millisecond),
    Most = drain(Stream, How, Node, Count, Before),
    Took = max(1, erlang:monotonic_time(millisecond) - Began),
    [{rate, Count * 1000 / Took}, {grown, Most - Before}].

drain(Stream, How, Node, Left, Most) ->
    Ref = py_stream:ref(Stream),
    receive
        {py_stream, Ref, {items, Items}} ->
            Length = length(Items),
            ok = py_stream:ask(Stream, Length),
            Rests = How =:= slow andalso Left div 20000 =/= (Left - Length) div 20000,
            _ = [timer:sleep(10) || Rests],
            Now = case Rests orelse Left =:= Length of
                true -> call(py, Node, bench_streams, memory, []);
                false -> Most
            end,
            drain(Stream, How, Node, Left - Length, max(Most, Now));
        {py_stream, Ref, done} when Left =:= 0 ->
            Most
    end.

-spec objects(call | method | argument | context | made, node(), pos_integer()) -> [value()].
objects(How, Node, Count) ->
    {ok, Object} = py:call(Node, builtins, list, [[3, 1, 2]], #{return => ref}),
    {ok, Context} = py:context(Node, #{}),
    Once = once(How, Node, Object, Context),
    _ = [Once() || _ <- lists:seq(1, 20)],
    Values = quantiles([timed(Once) || _ <- lists:seq(1, Count)]),
    ok = py:release(Object),
    ok = py_context:close(Context),
    Values.

-spec once(call | method | argument | context | made, node(), py:object(), py_context:context()) ->
    fun(() -> term()).
once(call, Node, _, _) -> fun() -> {ok, 3} = py:call(Node, builtins, len, [[3, 1, 2]]) end;
once(method, _, Object, _) -> fun() -> {ok, 1} = py:call_method(Object, count, [2]) end;
once(argument, Node, Object, _) -> fun() -> {ok, 3} = py:call(Node, builtins, len, [Object]) end;
once(context, _, _, Context) -> fun() -> {ok, 3} = py:call(Context, builtins, len, [[3, 1, 2]]) end;
once(made, Node, _, _) ->
    fun() ->
        {ok, Ref} = py:call(Node, builtins, list, [[3, 1, 2]], #{return => ref}),
        ok = py:release(Ref)
    end.

-spec timed(fun(() -> term())) -> integer().
timed(Once) ->
    Start = erlang:monotonic_time(nanosecond),
    _ = Once(),
    erlang:monotonic_time(nanosecond) - Start.

%% So many processes make so many objects each, and are killed: how long both take, and by how much
%% the node has grown when all are gone.
-spec owners(node(), pos_integer(), pos_integer()) -> [value()].
owners(Node, Owners, Each) ->
    {ok, #{rss := Before}} = py:memory_stats(Node),
    Parent = self(),
    Make = fun() -> [{ok, _} = py:call(Node, builtins, list, [[1]], #{return => ref}) || _ <- lists:seq(1, Each)] end,
    Start = erlang:monotonic_time(microsecond),
    Pids = [spawn(fun() -> _ = Make(), Parent ! made, receive stop -> ok end end) || _ <- lists:seq(1, Owners)],
    _ = [receive made -> ok end || _ <- Pids],
    Made = erlang:monotonic_time(microsecond),
    {ok, #{refs := Most, owners := Owners}} = py_object:counts(Node),
    true = Most =:= Owners * Each,
    _ = [exit(Pid, kill) || Pid <- Pids],
    ok = until_none(Node),
    Gone = erlang:monotonic_time(microsecond),
    {ok, #{rss := After}} = py:memory_stats(Node),
    [{made_per_s, Most * 1.0e6 / (Made - Start)}, {freed_per_s, Most * 1.0e6 / (Gone - Made)},
     {left_mb, (After - Before) / 1.0e6}].

-spec until_none(node()) -> ok.
until_none(Node) ->
    case py_object:counts(Node) of
        {ok, #{refs := 0, owners := 0}} -> ok;
        {ok, _} -> timer:sleep(5), until_none(Node)
    end.

%% --- Arrays ---------------------------------------------------------------------------------------

%% So many bytes there and back, as a binary, an array, a table or a list of floats.
-spec data(binary | array | table | items, node(), pos_integer()) -> [value()].
data(Kind, Node, Bytes) ->
    Term = data_term(Kind, Node, Bytes),
    true = erlang:garbage_collect(),
    {Time, {ok, Back}} = timer:tc(fun() ->
        py:call(Node, bench_data, Kind, [Term], #{timeout => ?TIMEOUT_MS})
    end),
    true = data_size(Back) >= Bytes,
    [{mb_per_s, Bytes / Time}].

-spec data_term(binary | array | table | items, node(), pos_integer()) -> term().
data_term(binary, _, Bytes) ->
    {bytes, floats(Bytes)};
data_term(array, _, Bytes) ->
    py_data:array(float64, [Bytes div 8], floats(Bytes));
data_term(table, Node, Bytes) ->
    {ok, Table} = py:call(Node, bench_data, made_table, [Bytes]),
    Table;
data_term(items, _, Bytes) ->
    lists:duplicate(Bytes div 8, 1.5).

-spec floats(pos_integer()) -> binary().
floats(Bytes) -> binary:copy(<<1.5/float-little>>, Bytes div 8).

-spec data_size(term()) -> pos_integer().
data_size(Binary) when is_binary(Binary) -> byte_size(Binary);
data_size(Items) when is_list(Items) -> 8 * length(Items);
data_size(Data) -> byte_size(py_data:binary(Data)).

%% --- Small calls beside a large transfer --------------------------------------------------------

%% Only the small calls that began while the transfer ran are counted. The echo node drops what it
%% is sent and makes what it sends, so that its figures are the link's and the BEAM's own share.
-spec transfer(via(), to | from, node(), pos_integer(), pos_integer()) -> [value()].
transfer(Via, Direction, Node, Bytes, Parts) ->
    Size = Bytes div Parts,
    Blob = case Direction of to -> binary:copy(<<0>>, Size); from -> <<>> end,
    Move = fun() ->
        lists:foreach(fun(_) -> move(Via, Direction, Node, Size, Blob) end, lists:seq(1, Parts))
    end,
    Start = erlang:monotonic_time(microsecond),
    {Mover, Ref} = spawn_monitor(Move),
    Samples = call_beside(Via, Node, Mover, Ref, []),
    Took = erlang:monotonic_time(microsecond) - Start,
    quantiles(Samples) ++ [{mb_per_s, Bytes / Took}].

-spec move(via(), to | from, node(), pos_integer(), binary()) -> ok.
move(echo, to, Node, _, Blob) ->
    {echo, Node} ! {Blob},
    call(echo, Node);
move(echo, from, Node, Size, _) ->
    {echo, Node} ! {stream, self(), 1, Size},
    receive <<_:Size/binary>> -> ok end;
move(Via, to, Node, Size, Blob) ->
    Size = call(Via, Node, builtins, len, [{bytes, Blob}]),
    ok;
move(Via, from, Node, Size, _) ->
    Size = byte_size(call(Via, Node, builtins, bytes, [Size])),
    ok.

-spec call_beside(via(), node(), pid(), reference(), [integer()]) -> [integer()].
call_beside(Via, Node, Mover, Ref, Samples) ->
    Sample = timed(Via, Node),
    receive
        {'DOWN', Ref, process, Mover, normal} -> [Sample | Samples];
        {'DOWN', Ref, process, Mover, Why} -> error(Why)
    after 0 ->
        call_beside(Via, Node, Mover, Ref, [Sample | Samples])
    end.

%% --- Streams ------------------------------------------------------------------------------------

%% The call at the end is answered after the last cast was taken up: the queue has one order.
-spec cast(node(), pos_integer(), pos_integer()) -> [value()].
cast(Node, Count, Size) ->
    Blob = binary:copy(<<"x">>, Size),
    Start = erlang:monotonic_time(microsecond),
    lists:foreach(fun(_) -> ok = py:cast(Node, builtins, len, [Blob]) end, lists:seq(1, Count)),
    ok = call(py, Node),
    rate(Count, Start).

%% The sink prints how many it counted and how fast.
-spec blast(node(), pos_integer(), pos_integer()) -> [value()].
blast(Node, Count, Size) ->
    Blob = binary:copy(<<"x">>, Size),
    Start = erlang:monotonic_time(microsecond),
    lists:foreach(fun(_) -> {sink, Node} ! {ch, Blob} end, lists:seq(1, Count)),
    rate(Count, Start).

%% From the echo node, one frame a message.
-spec stream(node(), pos_integer(), pos_integer()) -> [value()].
stream(Node, Count, Size) ->
    Start = erlang:monotonic_time(microsecond),
    {echo, Node} ! {stream, self(), Count, Size},
    lists:foreach(fun(_) -> receive <<_:Size/binary>> -> ok end end, lists:seq(1, Count)),
    rate(Count, Start).

%% --- Channels -----------------------------------------------------------------------------------

-define(BOUND, 4_000_000).

%% From the first message until Python has counted the last.
-spec channel(atom(), node(), pos_integer(), pos_integer()) -> [value()].
channel(Consumer, Node, Count, Size) ->
    Module = case Consumer of
                 consume_bytes -> py_byte_channel;
                 _ -> py_channel
             end,
    {ok, Ch} = Module:new(Node, #{max_size => ?BOUND}),
    Consuming = py:spawn_call(Node, bench_channels, Consumer, [Ch]),
    Blob = binary:copy(<<"x">>, Size),
    Start = erlang:monotonic_time(microsecond),
    lists:foreach(fun(_) -> ok = Module:send(Ch, Blob, ?TIMEOUT_MS) end, lists:seq(1, Count)),
    ok = Module:close(Ch),
    {ok, Count} = py:await(Consuming, ?TIMEOUT_MS),
    rate(Count, Start).

%% Until this process has received the last that Python sent.
-spec produce(node(), pos_integer(), pos_integer()) -> [value()].
produce(Node, Count, Size) ->
    {ok, Ch} = py_channel:new(Node, #{max_size => ?BOUND}),
    Start = erlang:monotonic_time(microsecond),
    Producing = py:spawn_call(Node, bench_channels, produce, [Ch, Count, Size]),
    lists:foreach(fun(_) -> {ok, <<_:Size/binary>>} = py_channel:recv(Ch, ?TIMEOUT_MS) end, lists:seq(1, Count)),
    Rate = rate(Count, Start),
    {ok, Count} = py:await(Producing, ?TIMEOUT_MS),
    ok = py_channel:close(Ch),
    Rate.

-spec pingpong(atom(), node(), pos_integer()) -> [value()].
pingpong(Echo, Node, Count) ->
    {ok, Ch} = py_channel:new(Node, #{}),
    Echoing = py:spawn_call(Node, bench_channels, Echo, [Ch]),
    Times = [begin
        Start = erlang:monotonic_time(nanosecond),
        ok = py_channel:send(Ch, ping),
        {ok, ping} = py_channel:recv(Ch, ?TIMEOUT_MS),
        erlang:monotonic_time(nanosecond) - Start
    end || _ <- lists:seq(1, Count)],
    ok = py_channel:close(Ch),
    {ok, _} = py:await(Echoing, ?TIMEOUT_MS),
    quantiles(Times).

%% From erlang.send in Python to this process.
-spec send(node(), pos_integer(), pos_integer()) -> [value()].
send(Node, Count, Size) ->
    Start = erlang:monotonic_time(microsecond),
    Sending = py:spawn_call(Node, bench_channels, send, [self(), Count, Size]),
    lists:foreach(fun(_) -> receive <<_:Size/binary>> -> ok end end, lists:seq(1, Count)),
    Rate = rate(Count, Start),
    {ok, Count} = py:await(Sending, ?TIMEOUT_MS),
    Rate.

%% A channel whose consumer takes nothing for so long, and a sender that sends on and on: what becomes
%% of memory, of the processes of this BEAM, and of another channel.
-spec stopped(node(), pos_integer()) -> [value()].
stopped(Node, Seconds) ->
    {ok, Full} = py_channel:new(Node, #{max_size => 1_000_000}),
    {ok, Ch} = py_channel:new(Node, #{}),
    Echoing = py:spawn_call(Node, bench_channels, echo, [Ch]),
    _ = [ping(Ch) || _ <- lists:seq(1, 200)],
    _ = erlang:system_monitor(self(), [busy_dist_port]),
    Before = erlang:memory(total),
    {Sender, Monitor} = spawn_monitor(fun() -> send_on(Full, binary:copy(<<"x">>, 1000), 0, 0) end),
    Times = pings_until(Ch, erlang:monotonic_time(millisecond) + Seconds * 1000, []),
    After = erlang:memory(total),
    Sender ! {stop, self()},
    {Sent, Busy} = receive {Sender, Counts} -> Counts end,
    receive {'DOWN', Monitor, process, Sender, _} -> ok end,
    #{size := Size} = py_channel:info(Full),
    _ = erlang:system_monitor(undefined),
    {ok, Sent} = begin
        ok = py_channel:close(Full),
        py:call(Node, bench_channels, consume, [Full])  % nothing is lost
    end,
    ok = py_channel:close(Ch),
    {ok, _} = py:await(Echoing, ?TIMEOUT_MS),
    quantiles(Times) ++ [{sent, Sent}, {busy, Busy}, {size, Size}, {suspended, suspended(0)},
                         {beam_mb, (After - Before) / 1.0e6}].

%% The same pings beside a process that needs a scheduler for itself and sends nothing.
-spec spinning(node(), pos_integer()) -> [value()].
spinning(Node, Seconds) ->
    {ok, Ch} = py_channel:new(Node, #{}),
    Echoing = py:spawn_call(Node, bench_channels, echo, [Ch]),
    _ = [ping(Ch) || _ <- lists:seq(1, 200)],
    Spinner = spawn(fun spin/0),
    Times = pings_until(Ch, erlang:monotonic_time(millisecond) + Seconds * 1000, []),
    exit(Spinner, kill),
    ok = py_channel:close(Ch),
    {ok, _} = py:await(Echoing, ?TIMEOUT_MS),
    quantiles(Times).

-spec spin() -> no_return().
spin() ->
    receive never -> spin() after 0 -> spin() end.

-spec send_on(pid(), binary(), non_neg_integer(), non_neg_integer()) -> term().
send_on(Ch, Message, Sent, Busy) ->
    receive
        {stop, From} -> From ! {self(), {Sent, Busy}}
    after 0 ->
        case py_channel:send(Ch, Message) of
            ok -> send_on(Ch, Message, Sent + 1, Busy);
            busy -> send_on(Ch, Message, Sent, Busy + 1)
        end
    end.

-spec suspended(non_neg_integer()) -> non_neg_integer().
suspended(Count) ->
    receive {monitor, _, busy_dist_port, _} -> suspended(Count + 1) after 0 -> Count end.

-spec ping(pid()) -> integer().
ping(Ch) ->
    Start = erlang:monotonic_time(nanosecond),
    ok = py_channel:send(Ch, ping),
    {ok, ping} = py_channel:recv(Ch, ?TIMEOUT_MS),
    erlang:monotonic_time(nanosecond) - Start.

-spec pings_until(pid(), integer(), [integer()]) -> [integer()].
pings_until(Ch, End, Times) ->
    case erlang:monotonic_time(millisecond) < End of
        true -> pings_until(Ch, End, [ping(Ch) | Times]);
        false -> Times
    end.

%% Pings over one channel while bodies go through another.
-spec bodies(node(), pos_integer(), pos_integer()) -> [value()].
bodies(Node, Bytes, Parts) ->
    {ok, Ch} = py_channel:new(Node, #{}),
    Echoing = py:spawn_call(Node, bench_channels, echo, [Ch]),
    {ok, Bulk} = py_byte_channel:new(Node, #{max_size => 4 * Bytes}),
    Body = binary:copy(<<0>>, Bytes div Parts),
    _ = [ping(Ch) || _ <- lists:seq(1, 200)],
    Start = erlang:monotonic_time(microsecond),
    {Mover, Monitor} = spawn_monitor(fun() ->
        Consuming = py:spawn_call(Node, bench_channels, consume_bytes, [Bulk]),
        lists:foreach(fun(_) -> ok = py_byte_channel:send(Bulk, Body, ?TIMEOUT_MS) end, lists:seq(1, Parts)),
        ok = py_byte_channel:close(Bulk),
        {ok, Parts} = py:await(Consuming, ?TIMEOUT_MS)
    end),
    Times = pings_beside(Ch, Mover, Monitor, []),
    Took = erlang:monotonic_time(microsecond) - Start,
    ok = py_channel:close(Ch),
    {ok, _} = py:await(Echoing, ?TIMEOUT_MS),
    quantiles(Times) ++ [{mb_per_s, Bytes / Took}].

-spec pings_beside(pid(), pid(), reference(), [integer()]) -> [integer()].
pings_beside(Ch, Mover, Monitor, Times) ->
    Time = ping(Ch),
    receive
        {'DOWN', Monitor, process, Mover, normal} -> [Time | Times];
        {'DOWN', Monitor, process, Mover, Why} -> error(Why)
    after 0 ->
        pings_beside(Ch, Mover, Monitor, [Time | Times])
    end.

%% The same with bare messages to the echo node, which drops them, and calls of it.
-spec blobs(node(), pos_integer(), pos_integer()) -> [value()].
blobs(Node, Bytes, Parts) ->
    Blob = binary:copy(<<0>>, Bytes div Parts),
    Start = erlang:monotonic_time(microsecond),
    {Mover, Monitor} = spawn_monitor(fun() ->
        lists:foreach(fun(_) -> {echo, Node} ! {Blob} end, lists:seq(1, Parts)),
        ok = call(echo, Node)
    end),
    Times = call_beside(echo, Node, Mover, Monitor, []),
    quantiles(Times) ++ [{mb_per_s, Bytes / (erlang:monotonic_time(microsecond) - Start)}].

%% So many channels, owned by this process; bytes of this BEAM for each.
-spec open(node(), pos_integer()) -> [value()].
open(Node, Count) ->
    _ = [py_channel:close(Ch) || {ok, Ch} <- [py_channel:new(Node, #{}) || _ <- lists:seq(1, 100)]],
    Owner = self(),
    Before = erlang:memory(total),
    Opened = in_processes(20, fun() ->
        [begin {ok, Ch} = py_channel:new(Node, #{owner => Owner}), Ch end || _ <- lists:seq(1, Count div 20)]
    end),
    put(opened, []),
    _ = [erlang:garbage_collect(Process) || Process <- processes()],
    List = lists:append(Opened),
    ListBytes = erts_debug:flat_size(List) * erlang:system_info(wordsize),
    Bytes = erlang:memory(total) - Before - ListBytes,
    put(opened, List),
    [{count, length(List)}, {bytes, Bytes / length(List)}].

-spec close_opened() -> [value()].
close_opened() ->
    Opened = erase(opened),
    lists:foreach(fun(Ch) -> ok = py_channel:close(Ch) end, Opened),
    ok = wait_until_closed(lists:last(Opened)),
    [{count, length(Opened)}].

-spec wait_until_closed(pid()) -> ok.
wait_until_closed(Ch) ->
    case py_channel:info(Ch) of
        #{closed := true} -> ok;
        _ -> timer:sleep(10), wait_until_closed(Ch)
    end.
