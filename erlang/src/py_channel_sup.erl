%% Supervisor of the py_channel_links, one a node. They are not started again: their channels are
%% closed, and who makes or uses another channel starts a new one.
-module(py_channel_sup).
-behaviour(supervisor).

-export([start_link/0, start_link_to/1]).
-export([init/1]).

-spec start_link() -> supervisor:startlink_ret().
start_link() ->
    supervisor:start_link({local, ?MODULE}, ?MODULE, []).

-spec start_link_to(node()) -> {ok, pid()} | {error, term()}.
start_link_to(Node) ->
    try supervisor:start_child(?MODULE, [Node]) of
        {ok, Pid} when is_pid(Pid) -> {ok, Pid};
        {error, {already_started, Pid}} when is_pid(Pid) -> {ok, Pid};
        {error, Reason} -> {error, {down, Reason}}
    catch
        exit:{noproc, _} -> {error, {down, not_started}};
        exit:Reason -> {error, {down, Reason}}
    end.

-spec init([]) -> {ok, {supervisor:sup_flags(), [supervisor:child_spec()]}}.
init([]) ->
    Child = #{id => py_channel_link, start => {py_channel_link, start_link, []}, restart => temporary},
    {ok, {#{strategy => simple_one_for_one}, [Child]}}.
