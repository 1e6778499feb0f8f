%% Trace context (W3C: a `traceparent`, with or without a `tracestate`) of the calling process: what a
%% call takes along to Python, and what a function that Python called is given.
%%
%%   #{trace => T} ──▶ the call      otherwise OpenTelemetry's current span, where it is loaded,
%%                                   otherwise what set/1 or the call being served left here
%%
%% Nothing here depends on OpenTelemetry: its modules are asked only if they are there.
-module(py_trace).

-export([onto/1, here/0, set/1, serve/2, is_trace/1]).

-export_type([trace/0]).

-define(KEY, '$py_trace').
-define(PROPAGATOR, otel_propagator_text_map).
-define(MAX_PARENT, 256).
-define(MAX_STATE, 512).
-define(is_parent(P), (is_binary(P) andalso byte_size(P) =< ?MAX_PARENT)).
-define(is_state(S), (is_binary(S) andalso byte_size(S) =< ?MAX_STATE)).

-type trace() :: TraceParent :: binary() | {TraceParent :: binary(), TraceState :: binary()}.

%% The request with the trace context of this process, unless it has one of its own or there is none.
-spec onto(Request) -> Request when Request :: tuple().
onto({call, Id, M, F, Args} = Request) ->
    case current() of
        undefined -> Request;
        Trace -> {call, Id, M, F, Args, [], #{trace => Trace}}
    end;
onto({call, Id, M, F, Args, Kwargs} = Request) ->
    case current() of
        undefined -> Request;
        Trace -> {call, Id, M, F, Args, Kwargs, #{trace => Trace}}
    end;
onto({call, Id, M, F, Args, Kwargs, Options} = Request) when not is_map_key(trace, Options) ->
    case current() of
        undefined -> Request;
        Trace -> {call, Id, M, F, Args, Kwargs, Options#{trace => Trace}}
    end;
onto({cast, M, F, Args, Kwargs} = Request) ->
    case current() of
        undefined -> Request;
        Trace -> {cast, M, F, Args, Kwargs, #{trace => Trace}}
    end;
onto({eval, Id, Caller, Code, Locals} = Request) ->
    case current() of
        undefined -> Request;
        Trace -> {eval, Id, Caller, Code, Locals, #{trace => Trace}}
    end;
onto({exec, Id, Caller, Code} = Request) ->
    case current() of
        undefined -> Request;
        Trace -> {exec, Id, Caller, Code, #{trace => Trace}}
    end;
onto(Request) ->
    Request.

-spec current() -> trace() | undefined.
current() ->
    case erlang:function_exported(?PROPAGATOR, inject, 1) of
        true -> injected(?PROPAGATOR);
        false -> here()
    end.

-spec injected(module()) -> trace() | undefined.
injected(Propagator) ->
    try Propagator:inject([]) of
        Headers when is_list(Headers) ->
            trace_in(header(<<"traceparent">>, Headers), header(<<"tracestate">>, Headers));
        _ ->
            here()
    catch
        _:_ -> here()
    end.

-spec trace_in(binary() | undefined, binary() | undefined) -> trace() | undefined.
trace_in(Parent, State) when ?is_parent(Parent), ?is_state(State) -> {Parent, State};
trace_in(Parent, _) when ?is_parent(Parent) -> Parent;
trace_in(_, _) -> here().

-spec header(binary(), list()) -> binary() | undefined.
header(Name, Headers) ->
    case lists:keyfind(Name, 1, Headers) of
        {Name, Value} when is_binary(Value), Value =/= <<>> -> Value;
        _ -> undefined
    end.

%% What set/1 or the call being served left here.
-spec here() -> trace() | undefined.
here() ->
    get(?KEY).

-spec set(trace() | undefined) -> ok.
set(undefined) ->
    _ = erase(?KEY),
    ok;
set(Trace) ->
    true = is_trace(Trace) orelse error(badarg),
    _ = put(?KEY, Trace),
    ok.

%% Whether it has the form and is not too long. What it says is the node's to judge.
-spec is_trace(term()) -> boolean().
is_trace({Parent, State}) -> ?is_parent(Parent) andalso ?is_state(State);
is_trace(Parent) -> ?is_parent(Parent).

%% Runs a function on behalf of a call that came with a trace context, and leaves nothing behind.
-spec serve(trace(), fun(() -> Result)) -> Result.
serve(Trace, Function) ->
    Before = here(),
    ok = set(Trace),
    Extracted = erlang:function_exported(?PROPAGATOR, extract, 1),
    ok = if_loaded(Extracted, ?PROPAGATOR, extract, [headers(Trace)]),
    try
        Function()
    after
        ok = if_loaded(Extracted, otel_ctx, clear, []),
        ok = set(Before)
    end.

-spec if_loaded(boolean(), module(), atom(), [term()]) -> ok.
if_loaded(true, M, F, Args) ->
    try
        _ = apply(M, F, Args),
        ok
    catch
        _:_ -> ok
    end;
if_loaded(false, _, _, _) ->
    ok.

-spec headers(trace()) -> [{binary(), binary()}].
headers({Parent, State}) -> [{<<"traceparent">>, Parent}, {<<"tracestate">>, State}];
headers(Parent) -> [{<<"traceparent">>, Parent}].
