%% Streams of items from Python generators, under the demand of their owner, and producers for Python to
%% iterate over.
%%
%%   py:stream_start ── call ──▶ erlang._streams: a process of the node for the generator
%%   anybody ── ask, send, throw, cancel ──▶ that process
%%   owner   ◀── {py_stream, Ref, {items, [Item]} | done | {error, Reason}} ── that process
%%
%% The generator is stepped as often as was asked, and not at all in between. The owner takes the messages
%% by itself, after ask/2, or calls next/1,2, which asks as well. An error or `done` is the last message. The
%% owner's end, the loss of its node, or an exit signal to the stream's process cancels a stream, as cancel/1
%% does. Should the node be lost, py_stream_server tells the owner.
-module(py_stream).

-export([ask/2, next/1, next/2, send/2, throw/3, cancel/1, ref/1, pid/1]).
-export([producer/1]).
-export([start/6, all/6]).

-export_type([stream/0, options/0, all_options/0, event/0, reason/0, source/0]).

-define(MODULE_THERE, 'erlang._streams').
-define(TIMEOUT_MS, 30000).
-define(CANCEL_MS, 5000).        % met only when the node's loop does not turn
-define(DEMAND, 1000).           % of all/6
-define(MAX_ITEMS, 1000000).
-define(FIRST_ASK_MS, 30000).    % a producer that nobody has asked by then ends
-define(PRODUCER_BATCH, 512).    % items of a message
-define(is_timeout(X), (X =:= infinity orelse (is_integer(X) andalso X >= 0))).

-record(stream, {
    ref :: reference(),
    pid :: pid(),
    owner :: pid(),
    demand :: non_neg_integer()   % asked for at the start; next/1,2 keeps so many on their way
}).
-opaque stream() :: #stream{}.

%% What next/1,2 knows of a stream, in the dictionary of the owner.
-record(pull, {
    out :: integer(),                   % asked for, not arrived
    owed = 0 :: non_neg_integer(),      % handed out, not asked for again
    items = [] :: [term()]
}).

-type options() :: #{
    demand => non_neg_integer(),        % items asked for at once; default 0
    owner => pid(),                     % who gets the messages; default: the caller
    batch => pos_integer(),             % items of one message at most; default 512
    kwargs => py:kwargs(),
    timeout => timeout(),               % ms for the function to return its generator; default 30000
    binary => auto | str | bytes,
    key => term(),                      % in a pool: same key, same node
    trace => py_trace:trace() | undefined
}.
-type all_options() :: #{
    max_items => pos_integer() | infinity,  % default 1000000
    batch => pos_integer(),
    kwargs => py:kwargs(),
    timeout => timeout(),               % ms for all of it; default 30000
    binary => auto | str | bytes,
    key => term(),
    trace => py_trace:trace() | undefined
}.
-type reason() :: py:reason() | {max_items, pos_integer()}.
-type event() :: {items, [term()]} | done | {error, reason()}.
%% A list; a function that returns an item and the function for the rest; or one that makes up to N items
%% of a state, given the demand.
-type source() :: [term()] | next_fun() | {fun((State, pos_integer()) -> {[term()], State} | {done, [term()]}), State}.
-type next_fun() :: fun(() -> {term(), next_fun()} | done).

%% --- Consuming ----------------------------------------------------------------------------------

%% The reference in the stream's messages, and the process that is asked.
-spec ref(stream()) -> reference().
ref(#stream{ref = Ref}) -> Ref.

-spec pid(stream()) -> pid().
pid(#stream{pid = Pid}) -> Pid.

%% Asks for N more items. 64 MiB are sent without another word; ask(Stream, 0) is one.
-spec ask(stream(), non_neg_integer()) -> ok.
ask(#stream{ref = Ref, pid = Pid}, N) when is_integer(N), N >= 0 ->
    _ = case get({?MODULE, Ref}) of
        #pull{out = Out} = Pull -> put({?MODULE, Ref}, Pull#pull{out = Out + N});
        undefined -> ok
    end,
    Pid ! {ask, N},
    ok.

%% The next item, asked for unless it was already. For the owner alone, and instead of its taking the
%% messages itself.
-spec next(stream()) -> {ok, term()} | done | {error, reason()}.
next(Stream) ->
    next(Stream, infinity).

%% The same, waiting so many milliseconds. After {error, timeout} the item is still to come.
-spec next(stream(), timeout()) -> {ok, term()} | done | {error, reason()}.
next(#stream{ref = Ref, owner = Owner, demand = Demand} = Stream, Timeout)
  when Owner =:= self(), ?is_timeout(Timeout) ->
    case get({?MODULE, Ref}) of
        #pull{items = [Item | Items]} = Pull -> hand_out(Stream, Item, Pull#pull{items = Items});
        #pull{} = Pull -> await(Stream, Pull, Timeout);
        undefined -> begin_to_pull(Stream, #pull{out = Demand}, Timeout)
    end.

%% The stream may have ended long ago, with its messages taken: then nobody would answer.
-spec begin_to_pull(stream(), #pull{}, timeout()) -> {ok, term()} | done | {error, reason()}.
begin_to_pull(#stream{ref = Ref, pid = Pid} = Stream, Pull, Timeout) ->
    Monitor = monitor(process, Pid),
    Asked = ask_if_needed(Stream, Pull),
    put({?MODULE, Ref}, Asked),
    receive
        {py_stream, Ref, Event} ->
            demonitor(Monitor, [flush]),
            arrived(Stream, Event, Asked);
        {'DOWN', Monitor, process, _, Why} ->
            last_word(Stream, Why, Asked)
    after Timeout ->
        demonitor(Monitor, [flush]),
        {error, timeout}
    end.

%% What a process that has ended said before, and what py_stream_server says of one whose node was lost.
-spec last_word(stream(), term(), #pull{}) -> {ok, term()} | done | {error, reason()}.
last_word(#stream{ref = Ref} = Stream, Why, Pull) ->
    {Patience, Otherwise} = case Why of
        noconnection -> {?CANCEL_MS, {error, {down, noconnection}}};
        _ -> {0, done}
    end,
    receive
        {py_stream, Ref, Event} -> arrived(Stream, Event, Pull)
    after Patience ->
        arrived(Stream, Otherwise, Pull)
    end.

-spec await(stream(), #pull{}, timeout()) -> {ok, term()} | done | {error, reason()}.
await(#stream{ref = Ref} = Stream, Pull, Timeout) ->
    Asked = ask_if_needed(Stream, Pull),
    put({?MODULE, Ref}, Asked),
    receive
        {py_stream, Ref, Event} -> arrived(Stream, Event, Asked)
    after Timeout ->
        {error, timeout}
    end.

-spec arrived(stream(), event(), #pull{}) -> {ok, term()} | done | {error, reason()}.
arrived(Stream, {items, [Item | Items] = All}, #pull{out = Out} = Pull) ->
    hand_out(Stream, Item, Pull#pull{out = Out - length(All), items = Items});
arrived(#stream{ref = Ref}, End, _) ->
    erase({?MODULE, Ref}),
    End.

%% Half of the demand is asked for again when half of it was handed out.
-spec hand_out(stream(), term(), #pull{}) -> {ok, term()}.
hand_out(#stream{ref = Ref, pid = Pid, demand = Demand}, Item, #pull{out = Out, owed = Owed} = Pull)
  when Demand > 0, 2 * (Owed + 1) >= Demand ->
    Pid ! {ask, Owed + 1},
    put({?MODULE, Ref}, Pull#pull{out = Out + Owed + 1, owed = 0}),
    {ok, Item};
hand_out(#stream{ref = Ref}, Item, #pull{owed = Owed} = Pull) ->
    put({?MODULE, Ref}, Pull#pull{owed = Owed + 1}),
    {ok, Item}.

-spec ask_if_needed(stream(), #pull{}) -> #pull{}.
ask_if_needed(#stream{pid = Pid}, #pull{out = Out} = Pull) when Out =< 0 ->
    Pid ! {ask, 1},
    Pull#pull{out = 1};
ask_if_needed(_, Pull) ->
    Pull.

%% Resumes the generator with Value, as its send() does, once what was asked for before has come; the item
%% it yields next comes as any other.
-spec send(stream(), term()) -> ok.
send(Stream, Value) ->
    feed(Stream, {send, Value}).

%% Raises an exception where the generator waits: of a builtin class, or `module.Class`. Should it go on,
%% the item it yields next comes as any other.
-spec throw(stream(), atom() | binary(), binary()) -> ok.
throw(Stream, Type, Message) when is_atom(Type) ->
    throw(Stream, atom_to_binary(Type), Message);
throw(Stream, Type, Message) when is_binary(Type), is_binary(Message) ->
    feed(Stream, {throw, Type, Message}).

-spec feed(stream(), tuple()) -> ok.
feed(#stream{ref = Ref, pid = Pid}, Input) ->
    _ = case get({?MODULE, Ref}) of
        #pull{out = Out} = Pull -> put({?MODULE, Ref}, Pull#pull{out = Out + 1});
        undefined -> ok
    end,
    Pid ! Input,
    ok.

%% Ends a stream: the generator is closed, code of it that is running gets erlang.Cancelled. No message of
%% the stream comes to the caller after this, and none is left. `ok` also for one that has ended.
-spec cancel(stream()) -> ok | {error, timeout}.
cancel(#stream{ref = Ref, pid = Pid}) ->
    Monitor = monitor(process, Pid),
    Pid ! cancel,
    Result = receive
        {'DOWN', Monitor, process, _, _} -> ok
    after ?CANCEL_MS ->
        demonitor(Monitor, [flush]),
        {error, timeout}
    end,
    erase({?MODULE, Ref}),
    flush(Ref),
    Result.

-spec flush(reference()) -> ok.
flush(Ref) ->
    receive {py_stream, Ref, _} -> flush(Ref)
    after 0 -> ok
    end.

%% --- Producing for Python -----------------------------------------------------------------------

%% A process that hands out Source to the first who asks, for `erlang.stream` in Python, under its demand.
%% It ends with its consumer, when all was handed out, or when nobody asks within 30 s.
-spec producer(source()) -> {ok, pid()}.
producer(Source) when is_list(Source); is_function(Source, 0) ->
    {ok, spawn(fun() -> wait_for_consumer(Source) end)};
producer({More, _} = Source) when is_function(More, 2) ->
    {ok, spawn(fun() -> wait_for_consumer(Source) end)}.

-record(producer, {
    consumer :: pid(),
    ref :: term(),
    monitor :: reference(),
    sender :: pid(),
    demand :: non_neg_integer()
}).

-spec wait_for_consumer(source()) -> ok.
wait_for_consumer(Source) ->
    receive
        {'$py_stream', {Consumer, Ref}, {ask, N}} when is_pid(Consumer), is_integer(N), N >= 0 ->
            Sender = spawn_link(fun() -> gather(Consumer, Ref) end),
            produce(Source, #producer{consumer = Consumer, ref = Ref, sender = Sender, demand = N,
                                      monitor = monitor(process, Consumer)})
    after ?FIRST_ASK_MS ->
        ok
    end.

%% Looks into its mailbox between any two pieces, and waits there when there is no demand.
-spec produce(source(), #producer{}) -> ok.
produce(Source, #producer{ref = Ref, monitor = Monitor, demand = Demand} = Producer) ->
    Patience = case Demand of 0 -> infinity; _ -> 0 end,
    receive
        {'$py_stream', {_, Ref}, {ask, N}} when is_integer(N), N >= 0 ->
            produce(Source, Producer#producer{demand = Demand + N});
        {'$py_stream', {_, Ref}, cancel} ->
            over(Producer);
        {'$py_stream', {Other, OtherRef}, {ask, _}} when is_pid(Other) ->
            Other ! {py_stream, OtherRef, {error, {exit, busy, []}}},
            produce(Source, Producer);
        {'DOWN', Monitor, process, _, _} ->
            over(Producer);
        _ ->
            produce(Source, Producer)
    after Patience ->
        try piece(Source, min(Demand, ?PRODUCER_BATCH)) of
            Piece -> produced(Piece, Producer)
        catch
            Class:Reason:Stack -> finish(Producer, {error, {Class, Reason, Stack}})
        end
    end.

-spec produced({[term()], source() | done}, #producer{}) -> ok.
produced({Items, Rest}, #producer{sender = Sender, demand = Demand} = Producer) ->
    _ = [Sender ! {items, Items} || Items =/= []],
    case Rest of
        done -> finish(Producer, done);
        _ -> produce(Rest, Producer#producer{demand = max(0, Demand - length(Items))})
    end.

%% Up to N items, and where the rest comes from.
-spec piece(source(), pos_integer()) -> {[term()], source() | done}.
piece([], _) ->
    {[], done};
piece(List, N) when is_list(List) ->
    try lists:split(N, List)
    catch error:badarg -> {List, done}
    end;
piece(Next, _) when is_function(Next, 0) ->
    case Next() of
        done -> {[], done};
        {Item, Rest} when is_function(Rest, 0) -> {[Item], Rest}
    end;
piece({More, State}, N) ->
    case More(State, N) of
        {done, Items} when is_list(Items) -> {Items, done};
        {Items, Rest} when is_list(Items) -> {Items, {More, Rest}}
    end.

-spec finish(#producer{}, done | {error, term()}) -> ok.
finish(#producer{sender = Sender} = Producer, Event) ->
    Monitor = monitor(process, Sender),
    Sender ! Event,
    receive {'DOWN', Monitor, process, _, _} -> over(Producer) end.

-spec over(#producer{}) -> ok.
over(#producer{sender = Sender}) ->
    unlink(Sender),
    exit(Sender, kill),
    ok.

%% The sender: sends what comes at once, and what comes meanwhile together; so no item waits for the next
%% one to be made.
-spec gather(pid(), term()) -> ok.
gather(Consumer, Ref) ->
    receive
        {items, Items} ->
            {All, End} = gathered([Items], length(Items)),
            Consumer ! {py_stream, Ref, {items, All}},
            ended(Consumer, Ref, End);
        End ->
            ended(Consumer, Ref, End)
    end.

-spec ended(pid(), term(), none | done | {error, term()}) -> ok.
ended(Consumer, Ref, none) ->
    gather(Consumer, Ref);
ended(Consumer, Ref, End) ->
    Consumer ! {py_stream, Ref, End},
    ok.

-spec gathered([[term()]], non_neg_integer()) -> {[term()], none | done | {error, term()}}.
gathered(Pieces, Count) when Count >= ?PRODUCER_BATCH ->
    {lists:append(lists:reverse(Pieces)), none};
gathered(Pieces, Count) ->
    receive
        {items, Items} -> gathered([Items | Pieces], Count + length(Items));
        End -> {lists:append(lists:reverse(Pieces)), End}
    after 0 ->
        {lists:append(lists:reverse(Pieces)), none}
    end.

%% --- Starting, for py ---------------------------------------------------------------------------

%% `Call` calls a function with options, where the stream is to be; `Cast` does without options.
-type call() :: fun((atom(), atom(), [term()], map()) -> py:result()).
-type cast() :: fun((atom(), atom(), [term()]) -> term()).

-spec start(call(), cast(), py:name(), py:name(), [term()], options()) ->
    {ok, stream()} | {error, reason()}.
start(Call, Cast, M, F, Args, Options) ->
    Owner = owner(Options),
    Demand = maps:get(demand, Options, 0),
    Ref = make_ref(),
    There = [Owner, Ref, M, F, Args, maps:get(kwargs, Options, []), maps:with([demand, batch], Options)],
    case Call(?MODULE_THERE, start, There, maps:with([timeout, binary, key, trace], Options)) of
        {ok, Pid} when is_pid(Pid) ->
            ok = py_stream_server:watch(Pid, Ref, Owner),
            {ok, #stream{ref = Ref, pid = Pid, owner = Owner, demand = Demand}};
        {error, timeout} ->
            _ = Cast(?MODULE_THERE, forget, [Owner, Ref]),
            {error, timeout};
        {error, Reason} ->
            {error, Reason}
    end.

-spec owner(options()) -> pid().
owner(#{owner := Owner}) when is_pid(Owner) -> Owner;
owner(#{owner := _}) -> error(badarg);
owner(#{}) -> self().

%% All items of a stream, asked for as they are taken.
-spec all(call(), cast(), py:name(), py:name(), [term()], all_options()) ->
    {ok, [term()]} | {error, reason()}.
all(Call, Cast, M, F, Args, Options) ->
    Max = maps:get(max_items, Options, ?MAX_ITEMS),
    Timeout = maps:get(timeout, Options, ?TIMEOUT_MS),
    Deadline = deadline(Timeout),
    How = maps:without([max_items], Options),
    case start(Call, Cast, M, F, Args, How#{demand => ?DEMAND, timeout => Timeout}) of
        {ok, Stream} -> collect(Stream, [], 0, Max, Deadline);
        {error, Reason} -> {error, Reason}
    end.

-spec collect(stream(), [[term()]], non_neg_integer(), pos_integer() | infinity,
              integer() | infinity) -> {ok, [term()]} | {error, reason()}.
collect(Stream, _, Count, Max, _) when Count > Max ->
    _ = cancel(Stream),
    {error, {max_items, Max}};
collect(#stream{ref = Ref, pid = Pid} = Stream, Lists, Count, Max, Deadline) ->
    receive
        {py_stream, Ref, {items, Items}} ->
            Pid ! {ask, length(Items)},
            collect(Stream, [Items | Lists], Count + length(Items), Max, Deadline);
        {py_stream, Ref, done} ->
            {ok, lists:append(lists:reverse(Lists))};
        {py_stream, Ref, {error, Reason}} ->
            {error, Reason}
    after remaining(Deadline) ->
        _ = cancel(Stream),
        {error, timeout}
    end.

-spec deadline(timeout()) -> integer() | infinity.
deadline(infinity) -> infinity;
deadline(Timeout) -> erlang:monotonic_time(millisecond) + Timeout.

-spec remaining(integer() | infinity) -> timeout().
remaining(infinity) -> infinity;
remaining(Deadline) -> max(0, Deadline - erlang:monotonic_time(millisecond)).
