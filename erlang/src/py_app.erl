%% Application callback: starts the supervision tree, then the connections the configuration names
%% (`default_node` and `nodes`). Nothing waits for a node here: connections come up on their own.
-module(py_app).
-behaviour(application).

-export([start/2, stop/1]).

-spec start(application:start_type(), term()) -> {ok, pid()} | {error, term()}.
start(_Type, _Args) ->
    case py_sup:start_link() of
        {ok, Supervisor} ->
            lists:foreach(fun py_node:start/1, configured_nodes()),
            {ok, Supervisor};
        {error, Reason} ->
            {error, Reason};
        ignore ->
            {error, ignore}
    end.

-spec stop(term()) -> ok.
stop(_State) ->
    py_telemetry:forget_table().

-spec configured_nodes() -> [node()].
configured_nodes() ->
    Nodes = application:get_env(sidewinder, nodes, []),
    case application:get_env(sidewinder, default_node) of
        {ok, Node} -> lists:usort([Node | Nodes]);
        undefined -> lists:usort(Nodes)
    end.
