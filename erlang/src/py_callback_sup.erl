%% Supervisor of what serves calls from Python: py_callback, and one py_callback_link per node that
%% said hello. They are siblings: the links and what runs in them outlive a crash of py_callback. A
%% link is not started again: what it ran is lost, and the node's next hello starts a new one.
-module(py_callback_sup).
-behaviour(supervisor).

-export([start_link/0, start_link_to/1]).
-export([init/1]).

-spec start_link() -> supervisor:startlink_ret().
start_link() ->
    supervisor:start_link({local, ?MODULE}, ?MODULE, []).

%% The link that serves a node's process, started if there is none.
-spec start_link_to(pid()) -> {ok, pid()} | {error, term()}.
start_link_to(NodePid) ->
    Child = #{id => NodePid, start => {py_callback_link, start_link, [NodePid]}, restart => temporary},
    try supervisor:start_child(?MODULE, Child) of
        {ok, Link} when is_pid(Link) -> {ok, Link};
        {ok, undefined} -> {error, noconnection};
        {error, {already_started, Link}} when is_pid(Link) -> found(Link, NodePid);
        {error, Reason} -> {error, Reason}
    catch
        exit:Reason -> {error, Reason}
    end.

%% The supervisor may be about to hear that the link died.
-spec found(pid(), pid()) -> {ok, pid()} | {error, term()}.
found(Link, NodePid) ->
    case is_process_alive(Link) of
        true -> {ok, Link};
        false -> start_link_to(NodePid)
    end.

-spec init([]) -> {ok, {supervisor:sup_flags(), [supervisor:child_spec()]}}.
init([]) ->
    Registry = #{id => py_callback, start => {py_callback, start_link, []}},
    {ok, {#{strategy => one_for_one, intensity => 5, period => 10}, [Registry]}}.
