%% Top supervisor. It also owns the tables of handlers, functions, links, channels, pools and stores,
%% which must outlive every process that uses them.
%%
%%   py_sup (rest_for_one) ─┬─ py_callback_sup  py_callback, and one py_callback_link per calling node
%%                          ├─ py_node_sup      one py_node per node, each with its py_link
%%                          ├─ py_channel_sup   one py_channel_link per node with channels
%%                          ├─ py_pool_sup      one py_pool_server per pool
%%                          ├─ py_state_sup     one py_state_server per store
%%                          ├─ py_stream_server tells the owners of streams that a node was lost
%%                          └─ py_local         the local node's OS process; idle until it is wanted
%%
%% Callbacks come first and so end last: the local node may still call while it is being stopped.
-module(py_sup).
-behaviour(supervisor).

-export([start_link/0]).
-export([init/1]).

-spec start_link() -> supervisor:startlink_ret().
start_link() ->
    supervisor:start_link({local, ?MODULE}, ?MODULE, []).

-spec init([]) -> {ok, {supervisor:sup_flags(), [supervisor:child_spec()]}}.
init([]) ->
    ok = py_telemetry:new_table(),
    ok = py_callback:new_table(),
    ok = py_link:new_table(),
    ok = py_channel_link:new_table(),
    ok = py_pool:new_table(),
    ok = py_state:new_table(),
    Flags = #{strategy => rest_for_one, intensity => 5, period => 10},
    {ok, {Flags, [
        #{id => py_callback_sup, start => {py_callback_sup, start_link, []}, type => supervisor},
        #{id => py_node_sup, start => {py_node_sup, start_link, []}, type => supervisor},
        #{id => py_channel_sup, start => {py_channel_sup, start_link, []}, type => supervisor},
        #{id => py_pool_sup, start => {py_pool_sup, start_link, []}, type => supervisor},
        #{id => py_state_sup, start => {py_state_sup, start_link, []}, type => supervisor},
        #{id => py_stream_server, start => {py_stream_server, start_link, []}},
        #{id => py_local, start => {py_local, start_link, []}}
    ]}}.
