%% Sidewinder's face: call Python from Erlang.
%%
%%   1> application:ensure_all_started(sidewinder).
%%   2> py:call(math, sqrt, [2.0]).
%%   {ok,1.4142135623730951}
%%
%% Functions without a target use the application environment's `default_node`; if none is set, one
%% local node is started. A target is the name of a node, which is connected to on its first use, or
%% of a pool (see py_pool), one of whose members is asked, or a context (see py_context).
%%
%% Modules and functions are atoms or binaries; a function may be dotted ('path.join'). Calls and
%% targeted calls are told apart by where the list of arguments stands. Wrong types of arguments are
%% the caller's mistake and raise; everything that can go wrong later is {error, Reason}.
-module(py).

-export([call/3, call/4, call/5, cast/3, cast/4, cast/5]).
-export([eval/1, eval/2, eval/3, eval/4, exec/1, exec/2, exec/3]).
-export([spawn_call/3, spawn_call/4, spawn_call/5, await/1, await/2]).
-export([call_method/3, call_method/4, call_method/5, call_ref/2, call_ref/3, call_ref/4]).
-export([getattr/2, getattr/3, setattr/3, to_term/1, to_term/2, release/1, refs/0, refs/1]).
-export([context/0, context/1, context/2, import/1, import/2, reload/1, reload/2]).
-export([memory_stats/0, memory_stats/1, gc/0, gc/1]).
-export([stream/3, stream/4, stream/5, stream_start/3, stream_start/4, stream_start/5]).
-export([register_function/2, register_function/3, unregister_function/1]).
-export([trace_context/0, set_trace_context/1]).
-export([version/0, node_info/1, top/1, top/2]).

-export_type([target/0, name/0, kwargs/0, options/0, result/0, reason/0, object/0]).

-define(TIMEOUT_MS, 30000).
-define(DEFAULT, '$default').    % the row of the default node in the table of links
-define(is_name(X), (is_atom(X) orelse is_binary(X))).
-define(is_kwargs(X), (is_map(X) orelse X =:= [])).
-define(is_timeout(X), (X =:= infinity orelse (is_integer(X) andalso X >= 0))).
-define(is_args(X), (length(X) >= 0)).
-define(is_code(X), (is_binary(X) orelse is_list(X))).

-type target() :: node() | py_pool:name() | py_context:context().
-type name() :: atom() | binary().
-type object() :: py_object:ref().
-type kwargs() :: #{name() => term()} | [].
-type options() :: #{
    kwargs => kwargs(),
    timeout => timeout(),               % default 30000 ms
    binary => auto | str | bytes,       % what Erlang binaries become in Python
    return => term | ref,               % the result, or a reference to it (see py_object)
    owner => py_object:owner(),         % of that reference; default: the calling process
    key => term(),                      % in a pool: same key, same node, as long as that is up
    idempotent => boolean(),            % in a pool: may be run again when its node is lost
    trace => py_trace:trace() | undefined   % the W3C trace context; default: the process's own
}.
-type code() :: binary() | string().
-type reason() :: py_link:reason().
-type result() :: {ok, term()} | {error, reason()}.

%% --- call ---------------------------------------------------------------------------------------

%% Calls M.F(*Args) on the default node.
-spec call(name(), name(), [term()]) -> result().
call(M, F, Args) when ?is_name(M), ?is_name(F), ?is_args(Args) ->
    request(?DEFAULT, {call, 0, M, F, Args}, ?TIMEOUT_MS).

%% Calls M.F(*Args, **Kwargs) on the default node, or M.F(*Args) on Target.
-spec call(name(), name(), [term()], kwargs()) -> result();
          (target(), name(), name(), [term()]) -> result().
call(M, F, Args, Kwargs) when ?is_name(M), ?is_name(F), ?is_args(Args), ?is_kwargs(Kwargs) ->
    request(?DEFAULT, {call, 0, M, F, Args, Kwargs}, ?TIMEOUT_MS);
call(Target, M, F, Args) when ?is_name(M), ?is_name(F), ?is_args(Args) ->
    request(Target, {call, 0, M, F, Args}, ?TIMEOUT_MS).

%% The same with a timeout, or with options for a call on Target.
-spec call(name(), name(), [term()], kwargs(), timeout()) -> result();
          (target(), name(), name(), [term()], options()) -> result().
call(M, F, Args, Kwargs, Timeout)
  when ?is_name(M), ?is_name(F), ?is_args(Args), ?is_kwargs(Kwargs), ?is_timeout(Timeout) ->
    request(?DEFAULT, {call, 0, M, F, Args, Kwargs}, Timeout);
call(Target, M, F, Args, Options)
  when ?is_name(M), ?is_name(F), ?is_args(Args), is_map(Options) ->
    request(Target, call_request(M, F, Args, Options), timeout_of(Options, ?TIMEOUT_MS),
            how(Options)).

%% --- cast ---------------------------------------------------------------------------------------

%% Calls M.F(*Args) on the default node and drops the result; `ok` says that the request is under
%% way, nothing more.
-spec cast(name(), name(), [term()]) -> ok | {error, reason()}.
cast(M, F, Args) when ?is_name(M), ?is_name(F), ?is_args(Args) ->
    cast_to(?DEFAULT, {cast, M, F, Args, []}, #{}).

%% The same with keyword arguments, or on Target.
-spec cast(name(), name(), [term()], kwargs()) -> ok | {error, reason()};
          (target(), name(), name(), [term()]) -> ok | {error, reason()}.
cast(M, F, Args, Kwargs) when ?is_name(M), ?is_name(F), ?is_args(Args), ?is_kwargs(Kwargs) ->
    cast_to(?DEFAULT, {cast, M, F, Args, Kwargs}, #{});
cast(Target, M, F, Args) when ?is_name(M), ?is_name(F), ?is_args(Args) ->
    cast_to(Target, {cast, M, F, Args, []}, #{}).

%% The same on Target with options; `kwargs`, `key` and `trace` mean something to a cast.
-spec cast(target(), name(), name(), [term()],
           #{kwargs => kwargs(), key => term(), trace => py_trace:trace() | undefined}) ->
    ok | {error, reason()}.
cast(Target, M, F, Args, Options)
  when ?is_name(M), ?is_name(F), ?is_args(Args), is_map(Options) ->
    ok = check_options(Options, [kwargs, key, trace]),
    Kwargs = maps:get(kwargs, Options, []),
    Cast = case Options of
        #{trace := Trace} -> {cast, M, F, Args, Kwargs, #{trace => Trace}};
        #{} -> {cast, M, F, Args, Kwargs}
    end,
    cast_to(Target, Cast, how(Options)).

%% --- eval and exec --------------------------------------------------------------------------------

%% Evaluates a Python expression in the calling process's own namespace on the default node.
-spec eval(code()) -> result().
eval(Code) when ?is_code(Code) ->
    eval_on(?DEFAULT, Code, #{}, ?TIMEOUT_MS).

%% The same with local variables, or on Target.
-spec eval(code(), #{name() => term()}) -> result();
          (target(), code()) -> result().
eval(Code, Locals) when ?is_code(Code), is_map(Locals) ->
    eval_on(?DEFAULT, Code, Locals, ?TIMEOUT_MS);
eval(Target, Code) when ?is_code(Code) ->
    eval_on(Target, Code, #{}, ?TIMEOUT_MS).

%% The same with local variables and a timeout, or with local variables on Target.
-spec eval(code(), #{name() => term()}, timeout()) -> result();
          (target(), code(), #{name() => term()}) -> result().
eval(Code, Locals, Timeout) when ?is_code(Code), is_map(Locals), ?is_timeout(Timeout) ->
    eval_on(?DEFAULT, Code, Locals, Timeout);
eval(Target, Code, Locals) when ?is_code(Code), is_map(Locals) ->
    eval_on(Target, Code, Locals, ?TIMEOUT_MS).

%% The same on Target with local variables and options, of which `timeout` has a meaning here.
-spec eval(target(), code(), #{name() => term()}, #{timeout => timeout()}) -> result().
eval(Target, Code, Locals, Options) when ?is_code(Code), is_map(Locals), is_map(Options) ->
    ok = check_options(Options, [timeout]),
    eval_on(Target, Code, Locals, timeout_of(Options, ?TIMEOUT_MS)).

%% Runs Python statements in the calling process's own namespace on the default node.
-spec exec(code()) -> result().
exec(Code) when ?is_code(Code) ->
    exec_on(?DEFAULT, Code, ?TIMEOUT_MS).

%% The same on Target, which must be a node or a context: what code defines lives on one.
-spec exec(target(), code()) -> result().
exec(Target, Code) when ?is_code(Code) ->
    exec_on(Target, Code, ?TIMEOUT_MS).

%% The same on Target with options, of which `timeout` has a meaning here.
-spec exec(target(), code(), #{timeout => timeout()}) -> result().
exec(Target, Code, Options) when ?is_code(Code), is_map(Options) ->
    ok = check_options(Options, [timeout]),
    exec_on(Target, Code, timeout_of(Options, ?TIMEOUT_MS)).

%% --- spawn_call and await -------------------------------------------------------------------------

%% Like call/3, but returns at once; the result comes as the message {py_response, Ref, Result}, to
%% be received by await/1,2 or by hand. Without an explicit timeout the call may take for ever; it
%% is cancelled when the calling process dies.
-spec spawn_call(name(), name(), [term()]) -> reference().
spawn_call(M, F, Args) when ?is_name(M), ?is_name(F), ?is_args(Args) ->
    spawn_item(?DEFAULT, {call, 0, M, F, Args}, infinity, #{}).

%% Like call/4.
-spec spawn_call(name(), name(), [term()], kwargs()) -> reference();
                (target(), name(), name(), [term()]) -> reference().
spawn_call(M, F, Args, Kwargs)
  when ?is_name(M), ?is_name(F), ?is_args(Args), ?is_kwargs(Kwargs) ->
    spawn_item(?DEFAULT, {call, 0, M, F, Args, Kwargs}, infinity, #{});
spawn_call(Target, M, F, Args) when ?is_name(M), ?is_name(F), ?is_args(Args) ->
    spawn_item(Target, {call, 0, M, F, Args}, infinity, #{}).

%% Like call/5; when the timeout passes the message says {error, timeout}.
-spec spawn_call(name(), name(), [term()], kwargs(), timeout()) -> reference();
                (target(), name(), name(), [term()], options()) -> reference().
spawn_call(M, F, Args, Kwargs, Timeout)
  when ?is_name(M), ?is_name(F), ?is_args(Args), ?is_kwargs(Kwargs), ?is_timeout(Timeout) ->
    spawn_item(?DEFAULT, {call, 0, M, F, Args, Kwargs}, Timeout, #{});
spawn_call(Target, M, F, Args, Options)
  when ?is_name(M), ?is_name(F), ?is_args(Args), is_map(Options) ->
    spawn_item(Target, call_request(M, F, Args, Options), timeout_of(Options, infinity),
               how(Options)).

%% Waits for the result of a spawn_call made by this process.
-spec await(reference()) -> result().
await(Ref) when is_reference(Ref) ->
    await_within(Ref, ?TIMEOUT_MS).

%% The same with a timeout, after which the call is cancelled and its message will never come.
-spec await(reference(), timeout()) -> result().
await(Ref, Timeout) when is_reference(Ref), ?is_timeout(Timeout) ->
    await_within(Ref, Timeout).

%% Whichever process carries the call is told when it is given up.
-spec await_within(reference(), timeout()) -> result().
await_within(Ref, Timeout) ->
    Result = py_link:await(Ref, Timeout),
    _ = [py_pool:forget(Ref) || Result =:= {error, timeout}],
    Result.

%% --- Objects by reference -------------------------------------------------------------------------

%% Calls a method of an object.
-spec call_method(object(), name(), [term()]) -> result().
call_method(Ref, Name, Args) ->
    call_method(Ref, Name, Args, [], #{}).

%% The same with keyword arguments.
-spec call_method(object(), name(), [term()], kwargs()) -> result().
call_method(Ref, Name, Args, Kwargs) ->
    call_method(Ref, Name, Args, Kwargs, #{}).

%% The same with options; with `return => ref` the result is a reference too.
-spec call_method(object(), name(), [term()], kwargs(), py_object:options()) -> result().
call_method(Ref, Name, Args, Kwargs, Options)
  when ?is_name(Name), ?is_args(Args), ?is_kwargs(Kwargs), is_map(Options) ->
    on_object(Ref, Options#{kwargs => Kwargs}, call_method, fun(Named, Owner) -> [Name, Args, Named, Owner] end).

%% Calls the object itself.
-spec call_ref(object(), [term()]) -> result().
call_ref(Ref, Args) ->
    call_ref(Ref, Args, [], #{}).

%% The same with keyword arguments.
-spec call_ref(object(), [term()], kwargs()) -> result().
call_ref(Ref, Args, Kwargs) ->
    call_ref(Ref, Args, Kwargs, #{}).

%% The same with options.
-spec call_ref(object(), [term()], kwargs(), py_object:options()) -> result().
call_ref(Ref, Args, Kwargs, Options) when ?is_args(Args), ?is_kwargs(Kwargs), is_map(Options) ->
    on_object(Ref, Options#{kwargs => Kwargs}, call_object, fun(Named, Owner) -> [Args, Named, Owner] end).

%% The value of an object's attribute.
-spec getattr(object(), name()) -> result().
getattr(Ref, Name) ->
    getattr(Ref, Name, #{}).

%% The same with options; with `return => ref` a reference to it.
-spec getattr(object(), name(), py_object:options()) -> result().
getattr(Ref, Name, Options) when ?is_name(Name), is_map(Options) ->
    on_object(Ref, Options, get, fun(_, Owner) -> [Name, Owner] end).

%% Sets an attribute of an object.
-spec setattr(object(), name(), term()) -> ok | {error, reason()}.
setattr(Ref, Name, Value) when ?is_name(Name) ->
    done(on_object(Ref, #{}, assign, fun(_, _) -> [Name, Value] end)).

%% The object as a term, where it has one (see docs/types.md).
-spec to_term(object()) -> result().
to_term(Ref) ->
    to_term(Ref, #{}).

%% The same with options, of which `timeout` has a meaning here.
-spec to_term(object(), #{timeout => timeout()}) -> result().
to_term(Ref, Options) when is_map(Options) ->
    on_object(Ref, Options, term, fun(_, _) -> [] end).

%% Lets go of an object before its owner ends; `ok` also if that has happened already.
-spec release(object()) -> ok | {error, reason()}.
release(Ref) ->
    done(on_object(Ref, #{}, release, fun(_, _) -> [] end)).

%% The references that the default node keeps, the oldest first: see py_object for more.
-spec refs() -> {ok, [py_object:info()]} | {error, reason()}.
refs() ->
    call('erlang._objects', refs, []).

%% Those of a node.
-spec refs(target()) -> {ok, [py_object:info()]} | {error, reason()}.
refs(Target) ->
    py_object:refs(Target).

-spec on_object(object(), py_object:options(), atom(),
                fun((kwargs(), py_object:owner() | []) -> [term()])) -> result().
on_object(Ref, Options, Verb, Arguments) ->
    ok = check_options(Options, [kwargs, timeout, binary, return, owner, trace]),
    {Node, Object, Kwargs, Owner} = py_object:options(Ref, Options),
    Args = [Object | Arguments(Kwargs, Owner)],
    call(Node, 'erlang._objects', Verb, Args, maps:with([timeout, binary, trace], Options)).

-spec done(result()) -> ok | {error, reason()}.
done({ok, _}) -> ok;
done({error, Reason}) -> {error, Reason}.

%% --- Contexts, modules and memory -----------------------------------------------------------------

%% A namespace of the calling process's own on the default node, with a Python thread of its own.
-spec context() -> {ok, py_context:context()} | {error, reason()}.
context() ->
    py_context:new(#{}).

%% The one of that name, made when there is none, or one with options.
-spec context(name() | py_context:options()) -> {ok, py_context:context()} | {error, reason()}.
context(Name) when ?is_name(Name) -> py_context:new(#{name => Name});
context(Options) -> py_context:new(Options).

%% The same on a node.
-spec context(target(), name() | py_context:options()) -> {ok, py_context:context()} | {error, reason()}.
context(Target, Name) when ?is_name(Name) -> py_context:new(Target, #{name => Name});
context(Target, Options) -> py_context:new(Target, Options).

%% Imports a module on the default node, so that the first call does not have to.
-spec import(name()) -> ok | {error, reason()}.
import(Module) when ?is_name(Module) ->
    done(call('erlang._contexts', import_module, [Module])).

%% The same on a node.
-spec import(target(), name()) -> ok | {error, reason()}.
import(Target, Module) when ?is_name(Module) ->
    done(call(Target, 'erlang._contexts', import_module, [Module])).

%% Loads a module of the default node anew, as importlib.reload does; calls that run end with the code
%% they have.
-spec reload(name()) -> ok | {error, reason()}.
reload(Module) when ?is_name(Module) ->
    done(call('erlang._contexts', reload_module, [Module])).

%% The same on a node, or a context's own copy of a module.
-spec reload(target(), name()) -> ok | {error, reason()}.
reload(Context, Module) when is_tuple(Context), ?is_name(Module) ->
    py_context:reload(Context, Module);
reload(Target, Module) when ?is_name(Module) ->
    done(call(Target, 'erlang._contexts', reload_module, [Module])).

%% What the default node's process and interpreter use.
-spec memory_stats() -> {ok, #{atom() => term()}} | {error, reason()}.
memory_stats() ->
    call('erlang._contexts', memory_stats, []).

%% Likewise a node's.
-spec memory_stats(target()) -> {ok, #{atom() => term()}} | {error, reason()}.
memory_stats(Target) ->
    call(Target, 'erlang._contexts', memory_stats, []).

%% Runs Python's garbage collector on the default node: how many objects it found unreachable.
-spec gc() -> {ok, non_neg_integer()} | {error, reason()}.
gc() ->
    call('erlang._contexts', collect, []).

%% The same on a node.
-spec gc(target()) -> {ok, non_neg_integer()} | {error, reason()}.
gc(Target) ->
    call(Target, 'erlang._contexts', collect, []).

%% --- Streams ------------------------------------------------------------------------------------

%% All items of the generator, or of anything else to iterate over, that M.F(*Args) returns on the
%% default node: at most a million.
-spec stream(name(), name(), [term()]) -> {ok, [term()]} | {error, py_stream:reason()}.
stream(M, F, Args) when ?is_name(M), ?is_name(F), ?is_args(Args) ->
    stream_on(?DEFAULT, M, F, Args, #{}).

%% The same with keyword arguments, or on Target.
-spec stream(name(), name(), [term()], kwargs()) -> {ok, [term()]} | {error, py_stream:reason()};
            (target(), name(), name(), [term()]) -> {ok, [term()]} | {error, py_stream:reason()}.
stream(M, F, Args, Kwargs) when ?is_name(M), ?is_name(F), ?is_args(Args), ?is_kwargs(Kwargs) ->
    stream_on(?DEFAULT, M, F, Args, #{kwargs => Kwargs});
stream(Target, M, F, Args) when ?is_name(M), ?is_name(F), ?is_args(Args) ->
    stream_on(Target, M, F, Args, #{}).

%% The same with a timeout for all of it, or with options on Target.
-spec stream(name(), name(), [term()], kwargs(), timeout()) ->
                {ok, [term()]} | {error, py_stream:reason()};
            (target(), name(), name(), [term()], py_stream:all_options()) ->
                {ok, [term()]} | {error, py_stream:reason()}.
stream(M, F, Args, Kwargs, Timeout)
  when ?is_name(M), ?is_name(F), ?is_args(Args), ?is_kwargs(Kwargs), ?is_timeout(Timeout) ->
    stream_on(?DEFAULT, M, F, Args, #{kwargs => Kwargs, timeout => Timeout});
stream(Target, M, F, Args, Options)
  when ?is_name(M), ?is_name(F), ?is_args(Args), is_map(Options) ->
    ok = check_options(Options, [kwargs, timeout, binary, key, trace, batch, max_items]),
    stream_on(Target, M, F, Args, Options).

%% Has M.F(*Args) on the default node return a generator, whose items this process asks for: see
%% py_stream.
-spec stream_start(name(), name(), [term()]) ->
    {ok, py_stream:stream()} | {error, py_stream:reason()}.
stream_start(M, F, Args) when ?is_name(M), ?is_name(F), ?is_args(Args) ->
    start_stream(?DEFAULT, M, F, Args, #{}).

%% The same with options, or on Target.
-spec stream_start(name(), name(), [term()], py_stream:options()) ->
                      {ok, py_stream:stream()} | {error, py_stream:reason()};
                  (target(), name(), name(), [term()]) ->
                      {ok, py_stream:stream()} | {error, py_stream:reason()}.
stream_start(M, F, Args, Options)
  when ?is_name(M), ?is_name(F), ?is_args(Args), is_map(Options) ->
    start_stream(?DEFAULT, M, F, Args, Options);
stream_start(Target, M, F, Args) when ?is_name(M), ?is_name(F), ?is_args(Args) ->
    start_stream(Target, M, F, Args, #{}).

%% The same on Target with options.
-spec stream_start(target(), name(), name(), [term()], py_stream:options()) ->
    {ok, py_stream:stream()} | {error, py_stream:reason()}.
stream_start(Target, M, F, Args, Options)
  when ?is_name(M), ?is_name(F), ?is_args(Args), is_map(Options) ->
    start_stream(Target, M, F, Args, Options).

-spec stream_on(destination(), name(), name(), [term()], py_stream:all_options()) ->
    {ok, [term()]} | {error, py_stream:reason()}.
stream_on(Target, _, _, _, _) when not is_atom(Target) ->
    {error, {bad_target, Target}};
stream_on(Target, M, F, Args, Options) ->
    py_stream:all(caller(Target), caster(Target), M, F, Args, Options).

-spec start_stream(destination(), name(), name(), [term()], py_stream:options()) ->
    {ok, py_stream:stream()} | {error, py_stream:reason()}.
start_stream(Target, _, _, _, _) when not is_atom(Target) ->
    {error, {bad_target, Target}};
start_stream(Target, M, F, Args, Options) ->
    ok = check_options(Options, [kwargs, timeout, binary, key, trace, demand, owner, batch]),
    py_stream:start(caller(Target), caster(Target), M, F, Args, Options).

%% How a stream's own calls go there.
-spec caller(destination()) -> fun((atom(), atom(), [term()], options()) -> result()).
caller(Target) ->
    fun(M, F, Args, Options) ->
        request(Target, call_request(M, F, Args, Options), timeout_of(Options, ?TIMEOUT_MS),
                how(Options))
    end.

%% To all members of a pool: which of them was called nobody knows any more.
-spec caster(destination()) -> fun((atom(), atom(), [term()]) -> ok).
caster(Target) ->
    fun(M, F, Args) ->
        Targets = case pool(Target) of
            undefined -> [Target];
            _ when Target =/= ?DEFAULT -> py_pool:members(Target);
            _ -> py_pool:members(application:get_env(sidewinder, default_node, Target))
        end,
        lists:foreach(fun(Each) -> cast_to(Each, {cast, M, F, Args, []}, #{}) end, Targets)
    end.

%% --- Functions for Python ---------------------------------------------------------------------------

%% Makes a function callable from Python under Name; it is given the list of arguments.
-spec register_function(name(), fun(([term()]) -> term())) -> ok.
register_function(Name, Function) when ?is_name(Name), is_function(Function, 1) ->
    py_callback:register(Name, Function).

%% The same for M:F/1, looked up when it is called.
-spec register_function(name(), module(), atom()) -> ok.
register_function(Name, M, F) when ?is_name(Name), is_atom(M), is_atom(F) ->
    py_callback:register(Name, {M, F}).

%% Takes a function back; `ok` also if it never was there.
-spec unregister_function(name()) -> ok.
unregister_function(Name) when ?is_name(Name) ->
    py_callback:unregister(Name).

%% --- Trace context ------------------------------------------------------------------------------

%% The W3C trace context of this process: that of the call from Python which it serves, or what
%% set_trace_context/1 said.
-spec trace_context() -> py_trace:trace() | undefined.
trace_context() ->
    py_trace:here().

%% What the calls of this process carry to Python from now on: a traceparent, or one with a
%% tracestate. Where OpenTelemetry is loaded its current span goes before it.
-spec set_trace_context(py_trace:trace() | undefined) -> ok.
set_trace_context(Trace) ->
    py_trace:set(Trace).

%% --- About nodes --------------------------------------------------------------------------------

%% The version of Python on the default node.
-spec version() -> {ok, binary()} | {error, reason()}.
version() ->
    case py_node:default(?TIMEOUT_MS) of
        {ok, Target} -> python_version(hello(Target));
        {error, Reason} -> {error, Reason}
    end.

%% What a node, or a member of a pool, says of itself: versions, workers, queue, calls, memory, … See
%% docs/observing.md. Answered without Python, so also by a node that hangs.
-spec node_info(target()) -> {ok, py_node:info()} | {error, reason()}.
node_info(Target) when is_atom(Target) ->
    case hello(Target) of
        {ok, Hello = #{node := Node}} ->
            case py_top:report(Node, summary, ?TIMEOUT_MS) of
                {ok, Report} -> {ok, maps:merge(Report, Hello)};
                {error, {bad_request, _}} -> {ok, Hello};    % of a version that does not report
                {error, Reason} -> {error, Reason}
            end;
        {error, Reason} ->
            {error, Reason}
    end.

%% What a node does: its busiest functions, its queues, how long calls wait and for what, since it was
%% started. py_top:view/1 prints it.
-spec top(target()) -> {ok, py_top:top()} | {error, reason()}.
top(Target) ->
    top(Target, #{}).

%% The same sorted by something else, for more functions or fewer, or of the next so many ms.
-spec top(target(), py_top:options()) -> {ok, py_top:top()} | {error, reason()}.
top(Target, Options) when is_atom(Target), is_map(Options) ->
    case hello(Target) of
        {ok, #{node := Node, python := Python}} ->
            case py_top:top(Node, Options) of
                {ok, Top} -> {ok, Top#{python => Python}};
                {error, Reason} -> {error, Reason}
            end;
        {error, Reason} ->
            {error, Reason}
    end.

%% What it said when it was connected, and its name.
-spec hello(target()) -> {ok, py_node:info()} | {error, reason()}.
hello(Target) ->
    case py_pool:resolve(Target, ?TIMEOUT_MS) of
        {ok, Node} ->
            case py_node:info(Node, ?TIMEOUT_MS) of
                {ok, Info} -> {ok, Info#{node => Node}};
                {error, Reason} -> {error, Reason}
            end;
        {error, Reason} ->
            {error, Reason}
    end.

-spec python_version({ok, py_node:info()} | {error, reason()}) ->
    {ok, binary()} | {error, reason()}.
python_version({ok, Info}) -> {ok, maps:get(python, Info, <<"unknown">>)};
python_version({error, Reason}) -> {error, Reason}.

%% --- Ways to the link ---------------------------------------------------------------------------

-type destination() :: '$default' | target().

-spec request(destination(), py_link:request(), timeout()) -> result().
request(Target, Request, Timeout) ->
    request(Target, Request, Timeout, #{}).

%% The quick way to a node is one table lookup; without a link in the table the target may be a pool,
%% which has no row there, and only then py_node is asked.
-spec request(destination(), py_link:request(), timeout(), py_pool:how()) -> result().
request(Target, Plain, Timeout, How) when is_tuple(Target) ->
    case py_context:onto(Target, Plain) of
        {Node, Request} -> request(Node, Request, Timeout, How);
        no_context -> {error, {bad_target, Target}}
    end;
request(Target, Plain, Timeout, How) ->
    Request = py_trace:onto(Plain),
    case py_telemetry:on(call) of
        false -> ask(Target, Request, Timeout, How);
        true -> py_telemetry:span(Target, Request, fun() -> ask(Target, Request, Timeout, How) end)
    end.

-spec ask(destination(), py_link:request(), timeout(), py_pool:how()) -> result().
ask(Target, Request, Timeout, How) ->
    case py_link:find(Target) of
        undefined -> request_of_pool(pool(Target), Target, Request, Timeout, How);
        Link -> py_link:call(Link, Request, Timeout)
    end.

-spec request_of_pool(py_pool:view() | undefined, destination(), py_link:request(), timeout(),
                      py_pool:how()) -> result().
request_of_pool(undefined, Target, Request, Timeout, _) ->
    slow_request(Target, Request, Timeout);
request_of_pool(_, Target, Request, _, _) when element(1, Request) =:= exec ->
    {error, {bad_target, Target}};
request_of_pool(Pool, _, Request, Timeout, How) ->
    py_pool:call(Pool, Request, Timeout, How).

%% The pool that a target is. The default node may be one.
-spec pool(destination()) -> py_pool:view() | undefined.
pool(?DEFAULT) ->
    case application:get_env(sidewinder, default_node) of
        {ok, Name} -> py_pool:find(Name);
        undefined -> undefined
    end;
pool(Target) ->
    py_pool:find(Target).

-spec slow_request(destination(), py_link:request(), timeout()) -> result().
slow_request(Target, Request, Timeout) ->
    Deadline = deadline(Timeout),
    case find_link(Target, Timeout) of
        {ok, Link} -> py_link:call(Link, Request, remaining(Deadline));
        {error, Reason} -> {error, Reason}
    end.

-spec cast_to(destination(), tuple(), py_pool:how()) -> ok | {error, reason()}.
cast_to(Target, Plain, _) when is_tuple(Target) ->
    case py_context:onto(Target, Plain) of
        {Node, Request} -> call_unheard(Node, py_trace:onto(Request));
        no_context -> {error, {bad_target, Target}}
    end;
cast_to(Target, Plain, How) ->
    Cast = py_trace:onto(Plain),
    Result = case py_link:find(Target) of
        undefined -> cast_to_pool(pool(Target), Target, Cast, How);
        Link -> py_link:cast(Link, Cast)
    end,
    _ = [py_telemetry:cast(Target, Cast, Result) || py_telemetry:on(call)],
    Result.

%% The answer goes to an alias that is no more.
-spec call_unheard(node(), py_link:request()) -> ok | {error, reason()}.
call_unheard(Node, Request) ->
    case find_link(Node, ?TIMEOUT_MS) of
        {ok, Link} ->
            case py_link:begin_call(Link, Request) of
                overloaded ->
                    {error, overloaded};
                Ref ->
                    true = erlang:demonitor(Ref, [flush]),
                    ok
            end;
        {error, Reason} ->
            {error, Reason}
    end.

-spec cast_to_pool(py_pool:view() | undefined, destination(), tuple(), py_pool:how()) ->
    ok | {error, reason()}.
cast_to_pool(undefined, Target, Cast, _) ->
    case find_link(Target, ?TIMEOUT_MS) of
        {ok, Link} -> py_link:cast(Link, Cast);
        {error, Reason} -> {error, Reason}
    end;
cast_to_pool(Pool, _, Cast, How) ->
    py_pool:cast(Pool, Cast, How).

-spec spawn_item(destination(), py_link:request(), timeout(), py_pool:how()) -> reference().
spawn_item(Target, Plain, Timeout, How) when is_tuple(Target) ->
    case py_context:onto(Target, Plain) of
        {Node, Request} -> spawn_item(Node, Request, Timeout, How);
        no_context -> spawned({bad_target, Target})
    end;
spawn_item(Target, Plain, Timeout, How) ->
    Request = py_trace:onto(Plain),
    case py_link:find(Target) of
        undefined -> spawn_in_pool(pool(Target), Target, Request, Timeout, How);
        Link -> spawn_on(Link, Target, Request, Timeout)
    end.

-spec spawn_in_pool(py_pool:view() | undefined, destination(), py_link:request(), timeout(),
                    py_pool:how()) -> reference().
spawn_in_pool(undefined, Target, Request, Timeout, _) ->
    slow_spawn(Target, Request, Timeout);
spawn_in_pool(Pool, _, Request, Timeout, How) ->
    py_pool:spawn_call(Pool, Request, Timeout, How).

-spec slow_spawn(destination(), py_link:request(), timeout()) -> reference().
slow_spawn(Target, Request, Timeout) ->
    Deadline = deadline(Timeout),
    case find_link(Target, Timeout) of
        {ok, Link} -> spawn_on(Link, Target, Request, remaining(Deadline));
        {error, Reason} -> spawned(Reason)
    end.

%% Where somebody listens the link tells of the end of the call, whoever receives its result.
-spec spawn_on(py_link:handle(), destination(), py_link:request(), timeout()) -> reference().
spawn_on(Link, Target, Request, Timeout) ->
    case py_telemetry:on(call) of
        false ->
            spawned(py_link:spawn_call(Link, Request, Timeout));
        true ->
            Watch = py_telemetry:begin_call(spawn_call, Target, Request),
            spawned(py_link:spawn_call(Link, Request, Timeout, Watch))
    end.

%% What never got as far as a link is answered by message as well.
-spec spawned(reference() | reason()) -> reference().
spawned(Ref) when is_reference(Ref) ->
    Ref;
spawned(Reason) ->
    Ref = make_ref(),
    self() ! {py_response, Ref, {error, Reason}},
    Ref.

-spec find_link(destination(), timeout()) -> {ok, py_link:handle()} | {error, reason()}.
find_link(Target, Timeout) ->
    case py_link:find(Target) of
        undefined when Target =:= ?DEFAULT -> default_link(Timeout);
        undefined when is_atom(Target) -> py_node:await_link(Target, Timeout);
        undefined -> {error, {bad_target, Target}};
        Link -> {ok, Link}
    end.

-spec default_link(timeout()) -> {ok, py_link:handle()} | {error, reason()}.
default_link(Timeout) ->
    Deadline = deadline(Timeout),
    case py_node:default(Timeout) of
        {ok, Node} -> py_node:await_link(Node, remaining(Deadline));
        {error, Reason} -> {error, Reason}
    end.

-spec deadline(timeout()) -> integer() | infinity.
deadline(infinity) -> infinity;
deadline(Timeout) -> erlang:monotonic_time(millisecond) + Timeout.

-spec remaining(integer() | infinity) -> timeout().
remaining(infinity) -> infinity;
remaining(Deadline) -> max(0, Deadline - erlang:monotonic_time(millisecond)).

%% --- Arguments ----------------------------------------------------------------------------------

-spec eval_on(destination(), code(), map(), timeout()) -> result().
eval_on(Target, Code, Locals, Timeout) ->
    request(Target, {eval, 0, self(), to_binary(Code), Locals}, Timeout).

-spec exec_on(destination(), code(), timeout()) -> result().
exec_on(Target, Code, Timeout) ->
    request(Target, {exec, 0, self(), to_binary(Code)}, Timeout).

-spec to_binary(code()) -> binary().
to_binary(Code) when is_binary(Code) ->
    Code;
to_binary(Code) ->
    case unicode:characters_to_binary(Code) of
        Binary when is_binary(Binary) -> Binary;
        _ -> error(badarg)
    end.

-spec call_request(name(), name(), [term()], options()) -> py_link:request().
call_request(M, F, Args, #{return := ref} = Options) ->
    {Objects, Call, Ours} = py_object:call_request(M, F, Args, Options),
    call_request(Objects, Call, Ours, maps:without([return, owner, kwargs], Options));
call_request(M, F, Args, Options) ->
    ok = check_options(Options, [kwargs, timeout, binary, key, idempotent, trace, return]),
    Kwargs = maps:get(kwargs, Options, []),
    case Options of
        #{binary := _} -> {call, 0, M, F, Args, Kwargs, maps:with([binary, trace], Options)};
        #{trace := _} -> {call, 0, M, F, Args, Kwargs, maps:with([trace], Options)};
        #{kwargs := _} -> {call, 0, M, F, Args, Kwargs};
        #{} -> {call, 0, M, F, Args}
    end.

-spec timeout_of(options(), timeout()) -> timeout().
timeout_of(Options, Default) ->
    maps:get(timeout, Options, Default).

-spec how(options()) -> py_pool:how().
how(Options) ->
    maps:with([key, idempotent], Options).

-spec check_options(map(), [atom()]) -> ok.
check_options(Options, Known) ->
    Good = fun(Key, Value) -> lists:member(Key, Known) andalso is_option(Key, Value) end,
    case maps:size(maps:filter(Good, Options)) =:= map_size(Options) of
        true -> ok;
        false -> error(badarg)
    end.

-spec is_option(atom(), term()) -> boolean().
is_option(kwargs, Value) -> ?is_kwargs(Value);
is_option(timeout, Value) -> ?is_timeout(Value);
is_option(binary, Value) -> lists:member(Value, [auto, str, bytes]);
is_option(return, Value) -> Value =:= term orelse Value =:= ref;
is_option(owner, _) -> true;    % py_object and py_stream look at it
is_option(idempotent, Value) -> is_boolean(Value);
is_option(trace, Value) -> Value =:= undefined orelse py_trace:is_trace(Value);
is_option(demand, Value) -> is_integer(Value) andalso Value >= 0;
is_option(batch, Value) -> is_integer(Value) andalso Value > 0;
is_option(max_items, Value) -> Value =:= infinity orelse (is_integer(Value) andalso Value > 0);
is_option(key, _) -> true.
