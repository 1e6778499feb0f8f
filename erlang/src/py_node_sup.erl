%% Supervisor of the connections: one py_node child per node, the node name being the child id, so
%% that two callers who want the same node at once get the same process.
-module(py_node_sup).
-behaviour(supervisor).

-export([start_link/0, start_node/2, stop_node/1]).
-export([init/1]).

-spec start_link() -> supervisor:startlink_ret().
start_link() ->
    supervisor:start_link({local, ?MODULE}, ?MODULE, []).

-spec start_node(node(), py_node:options()) -> {ok, pid()} | {error, term()}.
start_node(Node, Options) ->
    case supervisor:start_child(?MODULE, py_node:child_spec(Node, Options)) of
        {ok, Pid} when is_pid(Pid) -> {ok, Pid};
        {error, {already_started, Pid}} when is_pid(Pid) -> {ok, Pid};
        {error, Reason} -> {error, Reason}
    end.

-spec stop_node(node()) -> ok | {error, not_found}.
stop_node(Node) ->
    case supervisor:terminate_child(?MODULE, {py_node, Node}) of
        ok ->
            _ = supervisor:delete_child(?MODULE, {py_node, Node}),
            ok;
        {error, not_found} ->
            {error, not_found}
    end.

-spec init([]) -> {ok, {supervisor:sup_flags(), [supervisor:child_spec()]}}.
init([]) ->
    {ok, {#{strategy => one_for_one, intensity => 10, period => 10}, []}}.
