%% Contexts: namespaces on a node, each with a Python thread of its own, for whoever has the handle.
%%
%%   {ok, Db} = py:context(Node, #{name => db, imports => [sqlite3]}),
%%   {ok, _} = py:exec(Db, <<"connection = sqlite3.connect(':memory:')">>),
%%   {ok, [[1]]} = py:eval(Db, <<"connection.execute('select 1').fetchall()">>).
%%
%% A context is a target of py:call, cast, spawn_call, eval and exec. What is asked of it runs on its
%% thread, one after the other in the order in which it arrives at the node, whoever asks; coroutines
%% run on the node's loop. Its options are those of docs/contexts.md.
%%
%% Who dies, and what follows:
%%   owner    the node monitors it: the context ends, what runs in it is interrupted
%%   caller   its call is taken out of the queue, or interrupted if it runs
%%   node     every use is {error, {down, _}}, and {bad_context, closed} once the node is back
-module(py_context).

-export([new/1, new/2, close/1, info/1, list/0, list/1, reload/2]).
-export([onto/2]).

-export_type([context/0, options/0, info/0]).

%% What is in it is nobody's business: it may change.
-type context() :: {'$py_context', node(), non_neg_integer(), pos_integer(), auto | str | bytes | default}.
-type name() :: atom() | binary().
-type options() :: #{
    name => name(),                     % found by it, once it is there
    owner => pid() | permanent,         % default: permanent with a name, else the calling process
    imports => [name()],                % modules, whose names stand in the namespace
    preload => binary() | string(),     % code run once, in the namespace
    isolated => [name()],               % modules of which the context has a copy of its own
    path => [binary() | string()],      % directories in which those are looked for first
    environ => #{name() => binary()},   % what `environ` is in the namespace
    binary => auto | str | bytes,       % what Erlang binaries become in it
    max_queue => pos_integer()          % calls that wait; default 1000
}.
-type info() :: #{id := pos_integer(), name := binary() | none, owner := pid() | permanent,
                  waiting := non_neg_integer(), busy := boolean(), done := non_neg_integer(),
                  thread := integer(), modules := [binary()], age_ms := non_neg_integer()}.

%% A context on the default node.
-spec new(options()) -> {ok, context()} | {error, py:reason()}.
new(Options) when is_map(Options) ->
    Given = given(Options),
    made(py:call('erlang._contexts', ask, [start, none, Given]), Options).

%% A context on a node; with the name of one that is there, that one, whatever the other options say.
-spec new(py:target(), options()) -> {ok, context()} | {error, py:reason()}.
new(Target, Options) when is_map(Options) ->
    Given = given(Options),
    made(py:call(Target, 'erlang._contexts', ask, [start, none, Given]), Options).

%% Ends a context when the call that runs in it has ended; those that wait get {error, {bad_context, closed}}.
-spec close(context()) -> ok | {error, py:reason()}.
close(Context) ->
    done(ask(Context, close, [])).

-spec info(context()) -> {ok, info()} | {error, py:reason()}.
info(Context) ->
    ask(Context, info, []).

%% The contexts of the default node.
-spec list() -> {ok, [info()]} | {error, py:reason()}.
list() ->
    py:call('erlang._contexts', ask, [list, none]).

%% Those of a node.
-spec list(py:target()) -> {ok, [info()]} | {error, py:reason()}.
list(Target) ->
    py:call(Target, 'erlang._contexts', ask, [list, none]).

%% Loads a context's own copy of a module anew.
-spec reload(context(), name()) -> ok | {error, py:reason()}.
reload(Context, Module) when is_atom(Module) orelse is_binary(Module) ->
    done(ask(Context, reload, [Module])).

-spec done({ok, term()} | {error, py:reason()}) -> ok | {error, py:reason()}.
done({ok, _}) -> ok;
done({error, Reason}) -> {error, Reason}.

-spec ask(context(), atom(), [term()]) -> py:result().
ask({'$py_context', Node, Creation, Id, _}, Verb, Args) ->
    py:call(Node, 'erlang._contexts', ask, [Verb, {Node, Creation, Id} | Args]).

%% --- Options --------------------------------------------------------------------------------------

-spec made(py:result(), options()) -> {ok, context()} | {error, py:reason()}.
made({ok, {Node, Creation, Id}}, Options) ->
    {ok, {'$py_context', Node, Creation, Id, maps:get(binary, Options, default)}};
made({error, Reason}, _) ->
    {error, Reason}.

-spec given(options()) -> map().
given(Options) ->
    case maps:size(maps:filter(fun is_option/2, Options)) =:= map_size(Options) of
        true -> ok;
        false -> error(badarg)
    end,
    Owner = case Options of
        #{owner := Given} -> Given;
        #{name := _} -> permanent;
        #{} -> self()
    end,
    maps:map(fun text/2, maps:remove(binary, Options#{owner => Owner})).

-spec is_option(atom(), term()) -> boolean().
is_option(name, Name) -> is_name(Name);
is_option(owner, Owner) -> is_pid(Owner) orelse Owner =:= permanent;
is_option(imports, Names) -> is_list(Names) andalso lists:all(fun is_name/1, Names);
is_option(isolated, Names) -> is_list(Names) andalso lists:all(fun is_name/1, Names);
is_option(path, Directories) -> is_list(Directories);
is_option(preload, Code) -> is_binary(Code) orelse is_list(Code);
is_option(environ, Environ) -> is_map(Environ);
is_option(binary, Policy) -> lists:member(Policy, [auto, str, bytes]);
is_option(max_queue, Most) -> is_integer(Most) andalso Most > 0;
is_option(_, _) -> false.

-spec is_name(term()) -> boolean().
is_name(Name) -> is_atom(Name) orelse is_binary(Name).

%% Strings as binaries.
-spec text(atom(), term()) -> term().
text(preload, Code) -> to_binary(Code);
text(path, Directories) -> [to_binary(Directory) || Directory <- Directories];
text(_, Value) -> Value.

-spec to_binary(binary() | string()) -> binary().
to_binary(Text) when is_binary(Text) ->
    Text;
to_binary(Text) ->
    case unicode:characters_to_binary(Text) of
        Binary when is_binary(Binary) -> Binary;
        _ -> error(badarg)
    end.

%% --- For py ---------------------------------------------------------------------------------------

%% What a request to a context asks of its node: always a call of the same function, which keeps what one
%% process asks in order. A cast is a call that nobody waits for.
-spec onto(tuple(), tuple()) -> {node(), py_link:request()} | no_context.
onto({'$py_context', Node, Creation, Id, Binary}, Request) ->
    {Args, Options} = translated({Node, Creation, Id}, Request),
    {Node, {call, 0, 'erlang._contexts', ask, Args, [], with_policy(Binary, Options)}};
onto(_, _) ->
    no_context.

-spec translated(tuple(), tuple()) -> {[term()], map()}.
translated(At, {call, 0, M, F, Args}) -> {arguments(At, M, F, Args, []), #{}};
translated(At, {call, 0, M, F, Args, Kwargs}) -> {arguments(At, M, F, Args, Kwargs), #{}};
translated(At, {call, 0, M, F, Args, Kwargs, Options}) -> {arguments(At, M, F, Args, Kwargs), Options};
translated(At, {cast, M, F, Args, Kwargs}) -> {[cast, At, M, F, Args, Kwargs], #{}};
translated(At, {cast, M, F, Args, Kwargs, Options}) -> {[cast, At, M, F, Args, Kwargs], Options};
translated(At, {eval, 0, _, Code, Locals}) -> {[eval, At, Code, Locals], #{}};
translated(At, {exec, 0, _, Code}) -> {[exec, At, Code], #{}}.

%% A call whose result is to be a reference is one of py_object's, and its object is to be the context's.
-spec arguments(tuple(), py:name(), py:name(), [term()], py:kwargs()) -> [term()].
arguments(At, 'erlang._objects', call, [Owner, M, F, Args, Kwargs], _) ->
    [call, At, M, F, Args, Kwargs, Owner];
arguments(At, M, F, Args, Kwargs) ->
    [call, At, M, F, Args, Kwargs].

-spec with_policy(auto | str | bytes | default, map()) -> map().
with_policy(default, Options) -> Options;
with_policy(Binary, Options) -> maps:merge(#{binary => Binary}, Options).
