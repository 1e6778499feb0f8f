%% Registry of the functions Python may call by name, and the door at which nodes ask for the process
%% that runs their calls.
%%
%%   node ── {'$py_hello', NodePid} ──▶ ┌─────────────┐ ── start_child ──▶ py_callback_sup
%%   node ◀─ {'$py_callback', Link} ─── │ py_callback │                         │
%%                                      └─────────────┘                         ▼
%%   node ◀══ {'$py_calls', …}, {'$py_results', …}, see there ══▶ py_callback_link, one per node
%%
%% Names are binaries inside; atoms are accepted at the door. A registered function is given the list
%% of the call's arguments. The table is read by whoever serves a call and written by this process
%% alone, so a registration is complete when register/2 returns. py_sup owns the table: registrations
%% outlive this process and whoever made them, and all of them end when the application stops.
%%
%% Nothing here waits for a remote node. Who dies, and what follows:
%%   py_callback       It is started again. The links and what they run go on; who is linked to which
%%                     node it learns again, since a link is known to the supervisor by its NodePid.
%%   py_callback_link  The node's next hello starts another.
%%   node              Its link ends. A hello from a successor (another NodePid) ends the link of the
%%                     one before, should that still live.
-module(py_callback).
-behaviour(gen_server).

-include_lib("kernel/include/logger.hrl").

-export([new_table/0, start_link/0, register/2, unregister/1, lookup/1]).
-export([init/1, handle_call/3, handle_cast/2, handle_info/2]).

-export_type([name/0, target/0]).

-define(TABLE, py_functions).

-type name() :: atom() | binary().
-type target() :: fun(([term()]) -> term()) | {module(), atom()}.

%% The link of each node and the node's process that it serves.
-type state() :: #{node() => {NodePid :: pid(), Link :: pid()}}.

%% Creates the table; the caller owns it.
-spec new_table() -> ok.
new_table() ->
    ?TABLE = ets:new(?TABLE, [named_table, public, {read_concurrency, true}]),
    ok.

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
    try ets:lookup(?TABLE, key(Name)) of
        [{_, Target}] -> {ok, Target};
        [] -> {error, not_found}
    catch
        error:badarg -> {error, not_found}  % the application has stopped
    end.

-spec init([]) -> {ok, state()}.
init([]) ->
    {ok, #{}}.

-spec handle_call(term(), gen_server:from(), state()) -> {reply, term(), state()}.
handle_call({register, Key, Target}, _From, State) ->
    true = ets:insert(?TABLE, {Key, Target}),
    {reply, ok, State};
handle_call({unregister, Key}, _From, State) ->
    true = ets:delete(?TABLE, Key),
    {reply, ok, State};
handle_call(Request, _From, State) ->
    {reply, {error, {bad_request, Request}}, State}.

-spec handle_cast(term(), state()) -> {noreply, state()}.
handle_cast(_Message, State) ->
    {noreply, State}.

-spec handle_info(term(), state()) -> {noreply, state()}.
handle_info({'$py_hello', NodePid}, State) when is_pid(NodePid), node(NodePid) =/= node() ->
    {noreply, welcome(NodePid, State)};
handle_info({{'$link_down', Node}, _, process, Link, _}, State) ->
    case State of
        #{Node := {_, Link}} -> {noreply, maps:remove(Node, State)};
        #{} -> {noreply, State}
    end;
handle_info(Message, State) ->
    ?LOG_DEBUG(#{what => "unexpected message dropped", process => ?MODULE, message => Message}),
    {noreply, State}.

-spec welcome(pid(), state()) -> state().
welcome(NodePid, State) ->
    Node = node(NodePid),
    case State of
        #{Node := {NodePid, Link}} ->
            ok = introduce(Link, NodePid),
            State;
        #{Node := {_, Former}} ->
            ok = py_callback_link:stop(Former),
            welcome(NodePid, maps:remove(Node, State));
        #{} ->
            start(NodePid, State)
    end.

-spec start(pid(), state()) -> state().
start(NodePid, State) ->
    case py_callback_sup:start_link_to(NodePid) of
        {ok, Link} ->
            Node = node(NodePid),
            _ = erlang:monitor(process, Link, [{tag, {'$link_down', Node}}]),
            ok = introduce(Link, NodePid),
            State#{Node => {NodePid, Link}};
        {error, Reason} ->
            ?LOG_DEBUG(#{what => "hello of a node dropped", node => node(NodePid), reason => Reason}),
            State
    end.

%% When the connection is busy the link tells the node, for the link may wait.
-spec introduce(pid(), pid()) -> ok.
introduce(Link, NodePid) ->
    case erlang:send(NodePid, {'$py_callback', Link}, [noconnect, nosuspend]) of
        nosuspend -> py_callback_link:introduce(Link);
        _ -> ok
    end.

-spec key(name()) -> binary().
key(Name) when is_atom(Name) -> atom_to_binary(Name);
key(Name) when is_binary(Name) -> Name.
