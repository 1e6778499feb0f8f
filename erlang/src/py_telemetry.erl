%% Being told what happens: functions that are called with events, in the shape of `telemetry`.
%%
%%   ok = py_telemetry:attach(slow, [sidewinder, call, stop],
%%                            fun(_Event, #{duration := D}, #{function := F}, Log) -> Log(F, D) end,
%%                            fun my_log:slow/2).
%%
%% A handler is called in the process where the event happens, and is to be quick. One that fails is
%% logged and taken away. See docs/observing.md for the events.
%%
%%   py, py_link, py_channel_link ── on(call | channel)? ──▶ py_event ──▶ telemetry, where it is loaded
%%   py_node, py_pool, …          ─────────────────────────▶    └───────▶ what was attached here
%%
%% Calls and messages are many: whether anybody wants to hear of them is one number in an atomic
%% array, which costs who is not heard some nanoseconds. It counts the handlers of each kind of event,
%% and `telemetry` once for each. Whether that is loaded is looked at when the application starts, when
%% a handler comes or goes, and with every event of a node or pool.
-module(py_telemetry).

-export([attach/4, attach_many/4, detach/1, list_handlers/1, events/0]).
-export([new_table/0, forget_table/0, refresh/0, on/1, attached/3]).
-export([span/3, span/4, begin_call/3, answered/2, answered/3, cast/3, channel/4]).

-export_type([event/0, handler/0, watch/0]).

-include_lib("kernel/include/logger.hrl").

-define(TABLE, py_telemetry).
-define(FLAGS, py_telemetry).
-define(CALL, 1).
-define(CHANNEL, 2).
-define(OTHER, 3).
-define(TELEMETRY, 4).          % 1: it is loaded, and counted among the others

-type event() :: [atom(), ...].
-type handler() ::
    fun((event(), Measurements :: map(), Metadata :: map(), Config :: term()) -> term()).
%% A call that has begun: when, and its metadata.
-type watch() :: {integer(), map()}.

%% --- For users --------------------------------------------------------------------------------

%% Has Function called with each event of that name: with its measurements, its metadata and Config.
-spec attach(Id :: term(), event(), handler(), Config :: term()) ->
    ok | {error, already_exists | {down, not_started}}.
attach(Id, Event, Function, Config) ->
    attach_many(Id, [Event], Function, Config).

%% The same for several names.
-spec attach_many(Id :: term(), [event()], handler(), Config :: term()) ->
    ok | {error, already_exists | {down, not_started}}.
attach_many(Id, Events, Function, Config) when is_list(Events), is_function(Function, 4) ->
    Known = events(),
    Wanted = lists:usort(Events),
    true = lists:all(fun(Event) -> lists:member(Event, Known) end, Wanted) orelse error(badarg),
    try ets:insert_new(?TABLE, {{id, Id}, Wanted}) of
        true ->
            true = ets:insert(?TABLE, [{Event, Id, Function, Config} || Event <- Wanted]),
            ok = count(Wanted, 1),
            refresh();
        false ->
            {error, already_exists}
    catch
        error:badarg -> {error, {down, not_started}}
    end.

%% Takes it back.
-spec detach(Id :: term()) -> ok | {error, not_found}.
detach(Id) ->
    try ets:take(?TABLE, {id, Id}) of
        [{_, Events}] ->
            _ = [ets:match_delete(?TABLE, {Event, Id, '_', '_'}) || Event <- Events],
            ok = count(Events, -1),
            refresh();
        [] ->
            {error, not_found}
    catch
        error:badarg -> {error, not_found}
    end.

%% What is attached to events whose names begin so.
-spec list_handlers(Prefix :: [atom()]) ->
    [#{id := term(), event_name := event(), function := handler(), config := term()}].
list_handlers(Prefix) ->
    try ets:match_object(?TABLE, {'_', '_', '_', '_'}) of
        Rows ->
            [#{id => Id, event_name => Event, function => Function, config => Config}
             || {Event, Id, Function, Config} <- lists:sort(Rows), lists:prefix(Prefix, Event)]
    catch
        error:badarg -> []
    end.

%% The names of all events.
-spec events() -> [event(), ...].
events() ->
    [[sidewinder, Of, What]
     || {Of, Names} <- [{call, [start, stop, exception, cast]},
                        {channel, [opened, closed, busy]},
                        {node, [up, draining, down]},
                        {pool, [joined, left, up, draining, down, moved, exhausted]}],
        What <- Names].

%% --- Whether anybody listens ------------------------------------------------------------------

%% Creates the table; the caller owns it.
-spec new_table() -> ok.
new_table() ->
    ?TABLE = ets:new(?TABLE, [bag, named_table, public, {read_concurrency, true}]),
    ok = persistent_term:put(?FLAGS, atomics:new(?TELEMETRY, [{signed, true}])),
    _ = code:ensure_loaded(telemetry),
    refresh().

%% The application has ended.
-spec forget_table() -> ok.
forget_table() ->
    _ = persistent_term:erase(?FLAGS),
    ok.

-spec on(call | channel) -> boolean().
on(Of) ->
    case persistent_term:get(?FLAGS, undefined) of
        undefined -> false;
        Flags -> atomics:get(Flags, index(Of)) > 0
    end.

-spec index(atom()) -> pos_integer().
index(call) -> ?CALL;
index(channel) -> ?CHANNEL;
index(_) -> ?OTHER.

-spec count([event()], integer()) -> ok.
count(Events, By) ->
    Flags = persistent_term:get(?FLAGS),
    lists:foreach(fun([_, Of, _]) -> atomics:add(Flags, index(Of), By) end, Events).

%% Looks whether `telemetry` has come or gone.
-spec refresh() -> ok.
refresh() ->
    case persistent_term:get(?FLAGS, undefined) of
        undefined ->
            ok;
        Flags ->
            Now = case erlang:function_exported(telemetry, execute, 3) of true -> 1; false -> 0 end,
            case atomics:exchange(Flags, ?TELEMETRY, Now) of
                Now -> ok;
                Before -> [atomics:add(Flags, Of, Now - Before) || Of <- [?CALL, ?CHANNEL]], ok
            end
    end.

%% --- Handing events over ----------------------------------------------------------------------

%% For py_event: calls what is attached here.
-spec attached(event(), map(), map()) -> ok.
attached(Event, Measurements, Metadata) ->
    try ets:lookup(?TABLE, Event) of
        Rows -> lists:foreach(fun(Row) -> run(Row, Measurements, Metadata) end, Rows)
    catch
        error:badarg -> ok
    end.

-spec run({event(), term(), handler(), term()}, map(), map()) -> ok.
run({Event, Id, Function, Config}, Measurements, Metadata) ->
    try Function(Event, Measurements, Metadata, Config) of
        _ -> ok
    catch
        Class:Reason:Stack ->
            _ = detach(Id),
            ?LOG_ERROR(#{what => "event handler failed and was detached", handler => Id,
                         event => Event, class => Class, reason => Reason, stack => Stack})
    end.

%% --- Calls ------------------------------------------------------------------------------------

%% A call that the caller waits for. Only while on(call).
-spec span(Target :: term(), Request :: tuple(), fun(() -> Result)) -> Result.
span(Target, Request, Function) ->
    span(element(1, Request), Target, Request, Function).

-spec span(Type :: atom(), Target :: term(), Request :: tuple(), fun(() -> Result)) -> Result.
span(Type, Target, Request, Function) ->
    Watch = begin_call(Type, Target, Request),
    try Function() of
        Result -> ok = answered(Watch, Result), Result
    catch
        Class:Reason:Stack ->
            ok = failed(Watch, Class, Reason, Stack, erlang:monotonic_time()),
            erlang:raise(Class, Reason, Stack)
    end.

%% A call begins: what answered/2 wants to have at its end.
-spec begin_call(Type :: atom(), Target :: term(), Request :: tuple()) -> watch().
begin_call(Type, Target, Request) ->
    Begin = erlang:monotonic_time(),
    Metadata = metadata(Type, Target, Request),
    py_event:tell([sidewinder, call, start],
                  #{monotonic_time => Begin, system_time => erlang:system_time()}, Metadata),
    {Begin, Metadata}.

%% A call has ended: {error, Reason} is an exception.
-spec answered(watch(), ok | {ok, term()} | {error, term()}) -> ok.
answered(Watch, Result) ->
    answered(Watch, Result, erlang:monotonic_time()).

%% The same when it has ended before.
-spec answered(watch(), ok | {ok, term()} | {error, term()}, integer()) -> ok.
answered(Watch, {error, Reason}, End) ->
    failed(Watch, error, Reason, [], End);
answered({Begin, Metadata}, _, End) ->
    py_event:tell([sidewinder, call, stop], duration(Begin, End), Metadata).

-spec failed(watch(), atom(), term(), list(), integer()) -> ok.
failed({Begin, Metadata}, Class, Reason, Stack, End) ->
    py_event:tell([sidewinder, call, exception], duration(Begin, End),
                  Metadata#{kind => Class, reason => Reason, stacktrace => Stack}).

-spec duration(integer(), integer()) -> map().
duration(Begin, End) ->
    #{monotonic_time => End, duration => End - Begin}.

%% A cast has been sent, or refused.
-spec cast(Target :: term(), Request :: tuple(), ok | {error, term()}) -> ok.
cast(Target, Request, Result) ->
    Metadata = maps:remove(telemetry_span_context, metadata(cast, Target, Request)),
    py_event:tell([sidewinder, call, cast], #{system_time => erlang:system_time()},
                  Metadata#{result => Result}).

%% `kind` is that of an exception in telemetry's conventions, so ours is `type`.
-spec metadata(atom(), term(), tuple()) -> map().
metadata(Type, Target, Request) ->
    {M, F} = function(Request),
    Metadata = #{type => Type, target => target(Target), module => M, function => F,
                 telemetry_span_context => make_ref()},
    case trace(Request) of
        undefined -> Metadata;
        Trace -> Metadata#{trace => Trace}
    end.

-spec target(term()) -> term().
target('$default') -> default;
target(Target) -> Target.

-spec function(tuple()) -> {term(), term()}.
function({cast, M, F, _, _}) -> {M, F};
function({cast, M, F, _, _, _}) -> {M, F};
function(Request) when element(1, Request) =:= call -> {element(3, Request), element(4, Request)};
function(Request) -> {builtins, element(1, Request)}.

-spec trace(tuple()) -> py_trace:trace() | undefined.
trace({call, _, _, _, _, _, #{trace := Trace}}) -> Trace;
trace({cast, _, _, _, _, #{trace := Trace}}) -> Trace;
trace({eval, _, _, _, _, #{trace := Trace}}) -> Trace;
trace({exec, _, _, _, #{trace := Trace}}) -> Trace;
trace(_) -> undefined.

%% --- Channels ---------------------------------------------------------------------------------

%% Only while on(channel).
-spec channel(opened | closed | busy, pid(), map(), map()) -> ok.
channel(What, Channel, Measurements, Metadata) ->
    py_event:tell([sidewinder, channel, What], Measurements#{system_time => erlang:system_time()},
                  Metadata#{channel => Channel, node => node(Channel)}).
