%% Registry of the functions Python may call by name.
%%
%% The table is read by whoever serves a call and written only by this process, so a registration
%% is complete when register/2 returns. Names are binaries inside; atoms are accepted at the door.
%% A registered function is given the list of the call's arguments. The registry dies with the
%% application, not with the process that registered.
-module(py_callback).
-behaviour(gen_server).

-export([start_link/0, register/2, unregister/1, lookup/1]).
-export([init/1, handle_call/3, handle_cast/2]).

-export_type([name/0, target/0]).

-define(TABLE, py_functions).

-type name() :: atom() | binary().
-type target() :: fun(([term()]) -> term()) | {module(), atom()}.

-spec start_link() -> gen_server:start_ret().
start_link() ->
    gen_server:start_link({local, ?MODULE}, ?MODULE, [], []).

-spec register(name(), target()) -> ok.
register(Name, Target) ->
    gen_server:call(?MODULE, {register, key(Name), Target}).

-spec unregister(name()) -> ok.
unregister(Name) ->
    gen_server:call(?MODULE, {unregister, key(Name)}).

-spec lookup(name()) -> {ok, target()} | {error, not_found}.
lookup(Name) ->
    case ets:lookup(?TABLE, key(Name)) of
        [{_, Target}] -> {ok, Target};
        [] -> {error, not_found}
    end.

-spec init([]) -> {ok, undefined}.
init([]) ->
    ?TABLE = ets:new(?TABLE, [named_table, protected, {read_concurrency, true}]),
    {ok, undefined}.

-spec handle_call(term(), gen_server:from(), undefined) -> {reply, term(), undefined}.
handle_call({register, Key, Target}, _From, State) ->
    true = ets:insert(?TABLE, {Key, Target}),
    {reply, ok, State};
handle_call({unregister, Key}, _From, State) ->
    true = ets:delete(?TABLE, Key),
    {reply, ok, State};
handle_call(Request, _From, State) ->
    {reply, {error, {bad_request, Request}}, State}.

-spec handle_cast(term(), undefined) -> {noreply, undefined}.
handle_cast(_Message, State) ->
    {noreply, State}.

-spec key(name()) -> binary().
key(Name) when is_atom(Name) -> atom_to_binary(Name);
key(Name) when is_binary(Name) -> Name.
