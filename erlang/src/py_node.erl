%% The connection to one node: a gen_statem that dials, greets, keeps a py_link while the node is up,
%% and dials again when it is not.
%%
%%   connecting ── {hello, …} answered ──▶ up ── py_link lost the node ──▶ down
%%       ▲  └────────── refused, timed out, wrong version ──────────────▶  │
%%       └───────────── backoff (0.1 to 10 s, jitter), or nodeup ──────────┘
%%
%% Who asks for the link of a node that is connecting for the first time waits; who asks when the
%% node is known to be down is told so at once. Dialling blocks, so a helper process does it.
%%
%% A node that is told to stop says so: {'$py_node', draining}, to whoever said hello and asked for
%% events. It stays up for what it has accepted, and refuses the rest.
%%
%% Who watches a node (see watch/2; a pool does) is sent {py_node, Node, {up, Link, Counters}},
%% {py_node, Node, draining} and {py_node, Node, {down, Why}}. A connection that only watchers asked for ends when the last of them
%% has gone and nothing is in flight. A node that is watched is dialled at least once in 1.2 s.
%%
%% A local node (see py_local) is given time to start: until `start_timeout` has passed a failed
%% attempt is simply repeated, and py_local says through lost/2 when its process has ended.
%%
%% Events are [sidewinder, node, up | draining | down]; see py_event.
-module(py_node).
-behaviour(gen_statem).

-export([start/1, start/2, stop/1, connect/1, connect/2, child_spec/1, child_spec/2]).
-export([start_link/2, default/1, await_link/2, info/2, lost/2, watch/2, unwatch/1,
         is_node_name/1]).
-export([init/1, callback_mode/0, terminate/3, connecting/3, up/3, down/3]).
-export([dial_node/1]).

-export_type([options/0, info/0, news/0]).

-include_lib("kernel/include/logger.hrl").

-define(PROTOCOL, 1).
-define(HELLO_MS, 5000).
-define(CONNECT_MS, 10000).
-define(BACKOFF_MIN_MS, 100).
-define(BACKOFF_MAX_MS, 10000).
-define(BACKOFF_WATCHED_MS, 500).
-define(PORT_MAPPER_MS, 700).
-define(UNUSED_MS, 1000).
-define(LOCAL_RETRY_MS, 25).
-define(LOCAL_SETTLE_MS, 100).

-type options() :: #{
    max_in_flight => pos_integer(),    % requests admitted and not finished; default 100000
    local => pid(),                    % py_local, when it runs the node
    keep => boolean()                  % false: only for as long as it is watched
}.
%% What watchers are told; `connecting` only to begin with.
-type news() :: connecting | {up, pid(), atomics:atomics_ref()} | draining | {down, term()}.
%% What the node said of itself in answer to hello.
-type info() :: #{version := 1, atom() => term()}.

-record(data, {
    node :: node(),
    options :: options(),
    why :: undefined | {down, term()},           % why it is down; undefined while still hopeful
    attempt = 0 :: non_neg_integer(),            % failed attempts in a row
    helper :: undefined | {pid(), reference()},  % dials
    hello :: undefined | gen_server:request_id(),
    info :: undefined | info(),
    link :: undefined | pid(),
    draining = false :: boolean(),               % the node told us so; only while it is up
    counters = py_link:new_counters() :: atomics:atomics_ref(),  % of all its links
    keep :: boolean(),                           % somebody asked for it who does not watch it
    watchers = #{} :: #{pid() => reference()},
    dialling = [] :: [gen_statem:from()],        % who asked us to dial, and waits for the outcome
    since = erlang:monotonic_time() :: integer() % begin of the present state of affairs
}).

%% --- For users --------------------------------------------------------------------------------

%% Starts the supervised connection to a node, or finds it running. Does not wait for the node.
-spec start(node()) -> {ok, pid()} | {error, term()}.
start(Node) ->
    start(Node, #{}).

-spec start(node(), options()) -> {ok, pid()} | {error, term()}.
start(Node, Options) when is_atom(Node), is_map(Options) ->
    case find_or_start(Node, Options) of
        {ok, Pid} -> gen_statem:cast(Pid, keep), {ok, Pid};
        {error, Reason} -> {error, Reason}
    end.

-spec find_or_start(node(), options()) -> {ok, pid()} | {error, term()}.
find_or_start(Node, Options) ->
    case {is_node_name(Node), py_link:owner(Node)} of
        {false, _} ->
            {error, {bad_target, Node}};
        {true, Pid} when is_pid(Pid) ->
            {ok, Pid};
        {true, undefined} ->
            try
                py_node_sup:start_node(Node, Options)
            catch
                exit:{noproc, _} -> {error, {down, not_started}};
                exit:Reason -> {error, {down, Reason}}
            end
    end.

%% Ends the connection; who waits for an answer gets {error, {down, stopped}}.
-spec stop(node()) -> ok | {error, not_found}.
stop(Node) when is_atom(Node) ->
    py_node_sup:stop_node(Node).

%% Starts the connection if need be and waits until the node is up or known to be down. Dials at
%% once when the last attempt failed.
-spec connect(node()) -> ok | {error, term()}.
connect(Node) ->
    connect(Node, ?CONNECT_MS).

-spec connect(node(), timeout()) -> ok | {error, term()}.
connect(Node, Timeout) when is_atom(Node) ->
    case request(Node, connect, Timeout) of
        {ok, _Handle} -> ok;
        {error, Reason} -> {error, Reason}
    end.

%% For a supervisor of the user's own.
-spec child_spec(node()) -> supervisor:child_spec().
child_spec(Node) ->
    child_spec(Node, #{}).

-spec child_spec(node(), options()) -> supervisor:child_spec().
child_spec(Node, Options) when is_atom(Node), is_map(Options) ->
    #{id => {?MODULE, Node}, start => {?MODULE, start_link, [Node, Options]}, shutdown => 5000}.

%% --- For the other modules ----------------------------------------------------------------------

%% The node of functions that are given none: the configured one, or a local one.
-spec default(timeout()) -> {ok, node()} | {error, py_link:reason()}.
default(Timeout) ->
    case application:get_env(sidewinder, default_node) of
        {ok, Node} -> {ok, Node};
        undefined -> py_local:ensure(Timeout)
    end.

%% The link of a node, started on demand; waits for a node that is connecting for the first time.
-spec await_link(node(), timeout()) -> {ok, py_link:handle()} | {error, py_link:reason()}.
await_link(Node, Timeout) ->
    request(Node, link, Timeout).

-spec info(node(), timeout()) -> {ok, info()} | {error, py_link:reason()}.
info(Node, Timeout) ->
    request(Node, info, Timeout).

%% The local node's process has ended, or (`starting`) has been started again.
-spec lost(node(), term()) -> ok.
lost(Node, Why) ->
    case py_link:owner(Node) of
        undefined -> ok;
        Pid -> gen_statem:cast(Pid, {lost, Why})
    end.

%% Has the calling process told how the node is, now and whenever that changes. The connection is
%% started if need be, with these options.
-spec watch(node(), options()) -> {ok, pid()} | {error, term()}.
watch(Node, Options) ->
    case find_or_start(Node, Options#{keep => false}) of
        {ok, Pid} -> gen_statem:cast(Pid, {watch, self()}), {ok, Pid};
        {error, Reason} -> {error, Reason}
    end.

%% Takes that back.
-spec unwatch(pid()) -> ok.
unwatch(Pid) ->
    gen_statem:cast(Pid, {unwatch, self()}).

-spec start_link(node(), options()) -> gen_statem:start_ret().
start_link(Node, Options) ->
    gen_statem:start_link(?MODULE, {Node, Options}, []).

-spec request(node(), link | info | connect, timeout()) -> {ok, term()} | {error, term()}.
request(Node, Request, Timeout) ->
    case start(Node) of
        {ok, Pid} ->
            try
                gen_statem:call(Pid, Request, Timeout)
            catch
                exit:{timeout, _} -> {error, timeout};
                exit:{Reason, _} -> {error, {down, Reason}}
            end;
        {error, Reason} ->
            {error, Reason}
    end.

-spec is_node_name(atom()) -> boolean().
is_node_name(Node) ->
    case string:split(atom_to_list(Node), "@") of
        [[_ | _], [_ | _]] -> true;
        _ -> false
    end.

%% --- The state machine --------------------------------------------------------------------------

-spec callback_mode() -> gen_statem:callback_mode_result().
callback_mode() ->
    [state_functions, state_enter].

-spec init({node(), options()}) -> gen_statem:init_result(connecting).
init({Node, Options}) ->
    process_flag(trap_exit, true),
    case py_link:claim(Node) of
        ok ->
            ok = net_kernel:monitor_nodes(true, #{node_type => all}),
            Keep = maps:get(keep, Options, true),
            % Started again after a crash it may find that nobody watches any more.
            {ok, connecting, #data{node = Node, options = Options, keep = Keep},
             {{timeout, unused}, ?CONNECT_MS, check}};
        {error, {already_started, Pid}} ->
            {stop, {already_started, Pid}}
    end.

-spec terminate(term(), atom(), #data{}) -> ok.
terminate(_Reason, _State, #data{link = Link, node = Node, helper = Helper}) ->
    stop_helper(Helper),
    close_link(Link, stopped),
    py_link:release(Node).

-type result() :: gen_statem:event_handler_result(atom()) | gen_statem:state_enter_result(atom()).

-spec connecting(gen_statem:event_type() | enter, term(), #data{}) -> result().
connecting(enter, _, Data) ->
    {keep_state, dial(Data), {state_timeout, ?CONNECT_MS, {failed, timeout}}};
connecting(state_timeout, redial, Data) ->
    {keep_state, dial(Data), {state_timeout, ?CONNECT_MS, {failed, timeout}}};
connecting(state_timeout, {failed, Why}, Data) ->
    failed(Why, Data);
connecting(info, {'DOWN', Ref, process, Pid, Reason}, Data = #data{helper = {Pid, Ref}}) ->
    dialled(Reason, Data#data{helper = undefined});
connecting(info, {nodeup, _, _}, _) ->
    keep_state_and_data;
connecting(info, {'$watcher_down', _, _, _, _} = Down, Data) ->
    common(info, Down, Data);
connecting(info, Message, Data = #data{hello = Hello}) when Hello =/= undefined ->
    case gen_server:check_response(Message, Hello) of
        {reply, Reply} -> greeted(Reply, Data#data{hello = undefined});
        {error, {Reason, _}} -> failed(Reason, Data#data{hello = undefined});
        no_reply -> keep_state_and_data
    end;
connecting({call, From}, connect, Data = #data{dialling = Dialling}) ->
    {keep_state, Data#data{dialling = [From | Dialling]}};
connecting({call, _}, _, #data{why = undefined}) ->
    {keep_state_and_data, postpone};
connecting(cast, {lost, starting}, _) ->
    keep_state_and_data;
connecting(cast, {lost, Why}, Data) ->
    gone(Why, Data);
connecting(Type, Event, Data) ->
    common(Type, Event, Data).

-spec up(gen_statem:event_type() | enter, term(), #data{}) -> result().
up(enter, _, Data = #data{options = Options, node = Node}) ->
    tell_local(Options, {py_node_up, Node}),
    event(up, Data, #{info => Data#data.info}),
    tell_watchers(news(Data), Data),
    ?LOG_INFO(#{what => "node up", node => Node}),
    Handle = py_link:find(Node),
    {keep_state, Data#data{why = undefined, attempt = 0, since = erlang:monotonic_time(),
                           draining = false, dialling = []},
     [{reply, From, {ok, Handle}} || From <- Data#data.dialling]};
up({call, From}, info, #data{info = Info}) ->
    {keep_state_and_data, {reply, From, {ok, Info}}};
up({call, From}, _, Data = #data{node = Node}) ->
    case py_link:find(Node) of
        undefined ->
            {keep_state_and_data, {reply, From, {error, {down, noconnection}}}};
        Handle ->
            ok = serve_default(Data),
            {keep_state_and_data, {reply, From, {ok, Handle}}}
    end;
up(info, {'$py_node', draining}, Data = #data{draining = false, node = Node}) ->
    event(draining, Data, #{}),
    tell_watchers(draining, Data),
    ?LOG_INFO(#{what => "node is draining", node => Node}),
    {keep_state, Data#data{draining = true}};
up(info, {'$link_down', Link, Why}, Data = #data{link = Link}) ->
    gone(Why, Data#data{link = undefined});
up(info, {'EXIT', Link, Reason}, Data = #data{link = Link}) ->
    ok = py_link:forget_link(Link),
    gone(Reason, Data#data{link = undefined});
up(cast, {lost, Why}, #data{link = Link}) when Why =/= starting ->
    py_link:lost(Link, Why),
    keep_state_and_data;
up(Type, Event, Data) ->
    common(Type, Event, Data).

-spec down(gen_statem:event_type() | enter, term(), #data{}) -> result().
down(enter, Before, Data = #data{why = {down, Why}, node = Node, attempt = Attempt}) ->
    case Before =:= up orelse Attempt =:= 1 of
        true ->
            event(down, Data, #{reason => Why}),
            tell_watchers(news(Data), Data),
            ?LOG_NOTICE(#{what => "node down, dialling again", node => Node, reason => Why});
        false ->
            ok
    end,
    {keep_state, Data#data{since = erlang:monotonic_time(), dialling = []},
     [{state_timeout, backoff(Data), redial}
      | [{reply, From, {error, {down, Why}}} || From <- Data#data.dialling]]};
down(state_timeout, redial, Data) ->
    {next_state, connecting, Data};
down(info, {nodeup, Node, _}, Data = #data{node = Node}) ->
    {next_state, connecting, Data};
down(cast, {lost, starting}, Data) ->
    {next_state, connecting, Data#data{since = erlang:monotonic_time()}};
down(cast, {lost, Why}, Data) ->
    {keep_state, Data#data{why = {down, Why}}};
down({call, From}, connect, Data = #data{dialling = Dialling}) ->
    {next_state, connecting, Data#data{dialling = [From | Dialling]}};
down(Type, Event, Data) ->
    common(Type, Event, Data).

%% What every state does alike: questions about a node that is down, watchers, and stray messages.
-spec common(gen_statem:event_type(), term(), #data{}) -> result().
common({call, From}, _, #data{why = {down, _} = Down}) ->
    {keep_state_and_data, {reply, From, {error, Down}}};
common(cast, keep, Data) ->
    {keep_state, Data#data{keep = true}};
common(cast, {watch, Pid}, Data = #data{watchers = Watchers, node = Node}) ->
    Pid ! {py_node, Node, news(Data)},
    _ = [Pid ! {py_node, Node, draining} || Data#data.draining, is_pid(Data#data.link)],
    {keep_state, Data#data{watchers = add_watcher(Pid, Watchers)}};
common(cast, {unwatch, Pid}, Data) ->
    unwatched(Pid, Data);
common(info, {'$watcher_down', _, process, Pid, _}, Data) ->
    unwatched(Pid, Data);
common({timeout, unused}, check, Data) ->
    end_if_unused(Data);
common(_, _, _) ->
    keep_state_and_data.

%% --- Steps --------------------------------------------------------------------------------------

-spec dial(#data{}) -> #data{}.
dial(Data = #data{node = Node}) ->
    Data#data{helper = spawn_monitor(?MODULE, dial_node, [Node]), hello = undefined}.

%% The helper process; its exit reason is its news.
-spec dial_node(node()) -> no_return().
dial_node(Node) ->
    exit({dialled, may_answer(Node) andalso net_kernel:connect_node(Node)}).

%% Whether its port mapper knows the node. An attempt to connect that begins while a host is cut off
%% is over only when net_setuptime is, 7 s, however soon the host is back. The port mapper is asked
%% with less patience, and the attempt is not begun. What else there is to find out it leaves alone:
%% a port mapper of another kind, a node that is connected, a BEAM that is not distributed.
-spec may_answer(node()) -> boolean().
may_answer(Node) ->
    [Name, Host] = string:split(atom_to_list(Node), "@"),
    not is_alive()
        orelse lists:member(Node, nodes(connected))
        orelse net_kernel:epmd_module() =/= erl_epmd
        orelse erl_epmd:port_please(Name, Host, ?PORT_MAPPER_MS) =/= noport.

-spec dialled(term(), #data{}) -> result().
dialled({dialled, true}, Data = #data{node = Node}) ->
    Request = {hello, #{version => ?PROTOCOL, application => vsn(), events => true}},
    Hello = gen_server:send_request({py, Node}, Request),
    {keep_state, Data#data{hello = Hello}, {state_timeout, ?HELLO_MS, {failed, timeout}}};
dialled({dialled, false}, Data) ->
    failed(noconnection, Data);
dialled({dialled, ignored}, Data) ->
    failed(not_alive, Data);
dialled(Reason, Data) ->
    failed(Reason, Data).

-spec greeted(term(), #data{}) -> result().
greeted({ok, #{version := ?PROTOCOL} = Info}, Data = #data{node = Node}) ->
    case py_link:start_link(Node, link_options(Data), ?HELLO_MS) of
        {ok, Link} -> {next_state, up, Data#data{link = Link, info = Info}};
        {error, Reason} -> failed(Reason, Data)
    end;
greeted({ok, #{version := Version}}, Data) ->
    failed({version_mismatch, Version}, Data);
greeted({error, Reason}, Data) ->
    failed({hello, Reason}, Data);
greeted(Reply, Data) ->
    failed({hello, Reply}, Data).

-spec link_options(#data{}) -> py_link:options().
link_options(#data{node = Node, options = Options, counters = Counters}) ->
    Default = application:get_env(sidewinder, max_in_flight, 100000),
    #{keys => [Node | ['$default' || is_default(Node, Options)]],
      counters => Counters,
      max_in_flight => maps:get(max_in_flight, Options, Default),
      settle => case Options of #{local := _} -> ?LOCAL_SETTLE_MS; #{} -> 0 end}.

%% The node may have become the default one since its link was started.
-spec serve_default(#data{}) -> ok.
serve_default(#data{node = Node, options = Options, link = Link}) ->
    case is_default(Node, Options) andalso py_link:find('$default') =:= undefined of
        true -> py_link:serve(Link, '$default');
        false -> ok
    end.

-spec is_default(node(), options()) -> boolean().
is_default(Node, Options) ->
    case application:get_env(sidewinder, default_node) of
        {ok, Default} -> Default =:= Node;
        undefined -> is_map_key(local, Options)
    end.

%% An attempt failed. A local node that is still starting is simply dialled again.
-spec failed(term(), #data{}) -> result().
failed(Why, Data = #data{options = #{local := _}, since = Since, helper = Helper}) ->
    stop_helper(Helper),
    Patience = application:get_env(sidewinder, start_timeout, 15000),
    Passed = erlang:convert_time_unit(erlang:monotonic_time() - Since, native, millisecond),
    case Passed < Patience of
        true -> {keep_state, Data#data{helper = undefined, hello = undefined},
                 {state_timeout, ?LOCAL_RETRY_MS, redial}};
        false -> gone(Why, Data#data{helper = undefined})
    end;
failed(Why, Data = #data{helper = Helper}) ->
    stop_helper(Helper),
    gone(Why, Data#data{helper = undefined}).

-spec add_watcher(pid(), #{pid() => reference()}) -> #{pid() => reference()}.
add_watcher(Pid, Watchers) when is_map_key(Pid, Watchers) ->
    Watchers;
add_watcher(Pid, Watchers) ->
    Watchers#{Pid => erlang:monitor(process, Pid, [{tag, '$watcher_down'}])}.

-spec unwatched(pid(), #data{}) -> result().
unwatched(Pid, Data = #data{watchers = Watchers}) ->
    case maps:take(Pid, Watchers) of
        {Monitor, Others} ->
            true = erlang:demonitor(Monitor, [flush]),
            {keep_state, Data#data{watchers = Others}, {{timeout, unused}, ?UNUSED_MS, check}};
        error ->
            keep_state_and_data
    end.

%% Not at once: a watcher that crashed will be back. And not while something is in flight, which was
%% admitted before the last watcher left or is asked of this node by name. Only another process can
%% have the supervisor end this one.
-spec end_if_unused(#data{}) -> result().
end_if_unused(Data = #data{keep = Keep, watchers = Watchers}) when Keep; Watchers =/= #{} ->
    {keep_state, Data};
end_if_unused(Data = #data{link = Link, counters = Counters, node = Node}) ->
    case is_pid(Link) andalso py_link:in_flight(Counters) > 0 of
        true -> ok;
        false -> _ = spawn(?MODULE, stop, [Node]), ok
    end,
    {keep_state, Data, {{timeout, unused}, ?UNUSED_MS, check}}.

-spec tell_watchers(news(), #data{}) -> ok.
tell_watchers(News, #data{watchers = Watchers, node = Node}) ->
    maps:foreach(fun(Pid, _) -> Pid ! {py_node, Node, News} end, Watchers).

-spec news(#data{}) -> news().
news(#data{link = Link, counters = Counters}) when is_pid(Link) -> {up, Link, Counters};
news(#data{why = undefined}) -> connecting;
news(#data{why = Down}) -> Down.

-spec stop_helper(undefined | {pid(), reference()}) -> ok.
stop_helper(undefined) ->
    ok;
stop_helper({Pid, Monitor}) ->
    true = erlang:demonitor(Monitor, [flush]),
    true = exit(Pid, kill),
    ok.

-spec gone(term(), #data{}) -> result().
gone(Why, Data = #data{attempt = Attempt}) ->
    {next_state, down, Data#data{why = {down, Why}, info = undefined, hello = undefined,
                                 attempt = Attempt + 1}}.

%% Doubles with every failure; between half and the whole of it, so that many do not dial at once.
-spec backoff(#data{}) -> pos_integer().
backoff(#data{attempt = Attempt, watchers = Watchers}) ->
    Max = case map_size(Watchers) of 0 -> ?BACKOFF_MAX_MS; _ -> ?BACKOFF_WATCHED_MS end,
    Full = min(Max, ?BACKOFF_MIN_MS bsl min(Attempt, 10)),
    Full div 2 + rand:uniform(Full div 2).

-spec close_link(undefined | pid(), term()) -> ok.
close_link(undefined, _) -> ok;
close_link(Link, Why) -> py_link:close(Link, Why).

-spec tell_local(options(), term()) -> ok.
tell_local(#{local := Local}, Message) ->
    Local ! Message,
    ok;
tell_local(#{}, _) ->
    ok.

-spec vsn() -> binary().
vsn() ->
    {ok, Vsn} = application:get_key(sidewinder, vsn),
    list_to_binary(Vsn).

%% --- Events -------------------------------------------------------------------------------------

-spec event(up | draining | down, #data{}, map()) -> ok.
event(Name, #data{node = Node, since = Since}, Metadata) ->
    Measurements = #{system_time => erlang:system_time(),
                     duration => erlang:monotonic_time() - Since},
    py_event:emit([sidewinder, node, Name], Measurements, Metadata#{node => Node}).
