%% Supervisor of the stores: the default one, and those that py_state:new/2 adds. One that crashed is
%% started again and is empty.
-module(py_state_sup).
-behaviour(supervisor).

-export([start_link/0, start_store/2, stop_store/1]).
-export([init/1]).

-spec start_link() -> supervisor:startlink_ret().
start_link() ->
    supervisor:start_link({local, ?MODULE}, ?MODULE, []).

-spec start_store(py_state:name(), py_state:options()) -> {ok, pid()} | {error, term()}.
start_store(Name, Options) ->
    try supervisor:start_child(?MODULE, py_state:child_spec(Name, Options)) of
        {ok, Pid} when is_pid(Pid) -> {ok, Pid};
        {error, already_present} -> {error, already_present};
        {error, Reason} -> {error, Reason}
    catch
        exit:{noproc, _} -> {error, {down, not_started}}
    end.

-spec stop_store(py_state:name()) -> ok | {error, not_found}.
stop_store(Name) ->
    try supervisor:terminate_child(?MODULE, {py_state, Name}) of
        ok ->
            _ = supervisor:delete_child(?MODULE, {py_state, Name}),
            ok;
        {error, not_found} ->
            {error, not_found}
    catch
        exit:{noproc, _} -> {error, not_found}
    end.

%% Python comes in by a registered function.
-spec init([]) -> {ok, {supervisor:sup_flags(), [supervisor:child_spec()]}}.
init([]) ->
    ok = py_callback:register('$py_state', {py_state, from_python}),
    Options = application:get_env(sidewinder, state, #{}),
    {ok, {#{strategy => one_for_one, intensity => 10, period => 10},
          [py_state:child_spec(default, Options)]}}.
