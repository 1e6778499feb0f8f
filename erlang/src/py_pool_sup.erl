%% Supervisor of the pools: those of the application environment's `pools`, and those that
%% py_pool:start/2 adds. The name of a pool is its child id.
-module(py_pool_sup).
-behaviour(supervisor).

-export([start_link/0, start_pool/2, stop_pool/1]).
-export([init/1]).

-spec start_link() -> supervisor:startlink_ret().
start_link() ->
    supervisor:start_link({local, ?MODULE}, ?MODULE, []).

-spec start_pool(py_pool:name(), py_pool:options()) -> {ok, pid()} | {error, term()}.
start_pool(Name, Options) ->
    try supervisor:start_child(?MODULE, py_pool:child_spec(Name, Options)) of
        {ok, Pid} when is_pid(Pid) -> {ok, Pid};
        {error, Reason} -> {error, Reason}
    catch
        exit:{noproc, _} -> {error, {down, not_started}}
    end.

-spec stop_pool(py_pool:name()) -> ok | {error, not_found}.
stop_pool(Name) ->
    try supervisor:terminate_child(?MODULE, {py_pool, Name}) of
        ok ->
            _ = supervisor:delete_child(?MODULE, {py_pool, Name}),
            ok;
        {error, not_found} ->
            {error, not_found}
    catch
        exit:{noproc, _} -> {error, not_found}
    end.

-spec init([]) -> {ok, {supervisor:sup_flags(), [supervisor:child_spec()]}}.
init([]) ->
    Pools = maps:to_list(application:get_env(sidewinder, pools, #{})),
    {ok, {#{strategy => one_for_one, intensity => 10, period => 10},
          [py_pool:child_spec(Name, Options) || {Name, Options} <- Pools]}}.
