%% The router of a loop: receives the events of one py_event_loop and passes them on to whoever
%% subscribed, by the Id that the reader or timer was given.
%%
%%   the node ── {py_event, Loop, Event} ──▶ py_event_router ── the same ──▶ subscribers of its Id
%%                                                                      └──▶ subscribers of all
%%
%% An event that nobody has subscribed to is kept for who does, up to 1024 of them; past that the
%% oldest is dropped and a warning logged. A subscriber that handled {readable, Fd, Id} calls
%% py_event_loop:rearm/2 to hear of that descriptor again.
%%
%% Who dies, and what follows:
%%   subscriber   Its subscriptions end. What it was sent and did not handle is lost with it, so who
%%                takes over its descriptors rearms them.
%%   router       Events are collected by the loop again, or go to the next router.
%%   loop         The router ends: with `normal` if the loop did, else {shutdown, {loop, Reason}}.
-module(py_event_router).
-behaviour(gen_server).

-export([start_link/1, subscribe/1, subscribe/2, unsubscribe/1, unsubscribe/2, stop/1]).
-export([init/1, handle_call/3, handle_cast/2, handle_info/2]).

-include_lib("kernel/include/logger.hrl").

-define(MAX_KEPT, 1024).

-type topic() :: py_event_loop:id() | all.

-record(router, {
    loop :: py_event_loop:loop(),
    monitor :: reference() | undefined,             % of the loop, once it knows its router
    topics = #{} :: #{topic() => [pid()]},
    monitors = #{} :: #{pid() => reference()},
    kept = [] :: [py_event_loop:event()],           % for nobody yet, newest first
    dropped = 0 :: non_neg_integer()
}).

%% Starts a router and makes it the one of Loop.
-spec start_link(py_event_loop:loop()) -> {ok, pid()} | {error, py_event_loop:reason()}.
start_link(Loop) when is_pid(Loop), node(Loop) =/= node() ->
    {ok, Router} = gen_server:start_link(?MODULE, Loop, []),
    case py_event_loop:set_router(Loop, Router) of
        ok ->
            ok = gen_server:call(Router, watch, infinity),
            {ok, Router};
        {error, Reason} ->
            true = unlink(Router),
            ok = stop(Router),
            {error, Reason}
    end.

%% From now on the caller is sent {py_event, Loop, Event} for all events.
-spec subscribe(pid()) -> ok | {error, {down, term()}}.
subscribe(Router) when is_pid(Router) ->
    request(Router, {subscribe, all, self()}).

%% The same for the events of readers, writers and timers that were given this Id.
-spec subscribe(pid(), py_event_loop:id()) -> ok | {error, {down, term()}}.
subscribe(Router, Id) when is_pid(Router), is_integer(Id), Id >= 0 ->
    request(Router, {subscribe, Id, self()}).

%% Takes back every subscription of the caller.
-spec unsubscribe(pid()) -> ok | {error, {down, term()}}.
unsubscribe(Router) when is_pid(Router) ->
    request(Router, {unsubscribe, self()}).

%% Takes back the one to this Id.
-spec unsubscribe(pid(), py_event_loop:id()) -> ok | {error, {down, term()}}.
unsubscribe(Router, Id) when is_pid(Router), is_integer(Id), Id >= 0 ->
    request(Router, {unsubscribe, Id, self()}).

%% `ok` also if it has ended already.
-spec stop(pid()) -> ok.
stop(Router) when is_pid(Router) ->
    try
        gen_server:stop(Router)
    catch
        exit:_ -> ok
    end.

-spec request(pid(), tuple()) -> ok | {error, {down, term()}}.
request(Router, Request) ->
    try
        gen_server:call(Router, Request, infinity)
    catch
        exit:{Reason, _} -> {error, {down, Reason}}
    end.

%% --- The server ---------------------------------------------------------------------------------

-spec init(py_event_loop:loop()) -> {ok, #router{}}.
init(Loop) ->
    {ok, #router{loop = Loop}}.

-spec handle_call(term(), gen_server:from(), #router{}) -> {reply, ok, #router{}}.
handle_call(watch, _, State = #router{loop = Loop}) ->
    {reply, ok, State#router{monitor = monitor(process, Loop)}};
handle_call({subscribe, Topic, Pid}, _, State) ->
    {reply, ok, hand_over(Topic, Pid, add(Topic, Pid, watch(Pid, State)))};
handle_call({unsubscribe, Topic, Pid}, _, State) ->
    {reply, ok, unwatch(Pid, remove(Topic, Pid, State))};
handle_call({unsubscribe, Pid}, _, State) ->
    {reply, ok, forget(Pid, State)}.

-spec handle_cast(term(), #router{}) -> {noreply, #router{}}.
handle_cast(_, State) ->
    {noreply, State}.

-spec handle_info(term(), #router{}) -> {noreply, #router{}} | {stop, term(), #router{}}.
handle_info({py_event, Loop, Event}, State = #router{loop = Loop}) ->
    {noreply, dispatch(Event, State)};
handle_info({'DOWN', Monitor, process, _, normal}, State = #router{monitor = Monitor}) ->
    {stop, normal, State};
handle_info({'DOWN', Monitor, process, _, Reason}, State = #router{monitor = Monitor}) ->
    {stop, {shutdown, {loop, Reason}}, State};
handle_info({'DOWN', _, process, Pid, _}, State) ->
    {noreply, forget(Pid, State)};
handle_info(_, State) ->
    {noreply, State}.

%% --- Events -------------------------------------------------------------------------------------

-spec dispatch(py_event_loop:event(), #router{}) -> #router{}.
dispatch(Event = {_, _, Id}, State = #router{loop = Loop, topics = Topics}) ->
    case lists:usort(maps:get(Id, Topics, []) ++ maps:get(all, Topics, [])) of
        [] ->
            keep(Event, State);
        Subscribers ->
            lists:foreach(fun(Pid) -> Pid ! {py_event, Loop, Event} end, Subscribers),
            State
    end.

-spec keep(py_event_loop:event(), #router{}) -> #router{}.
keep(Event, State = #router{kept = Kept}) when length(Kept) < ?MAX_KEPT ->
    State#router{kept = [Event | Kept]};
keep(Event, State = #router{kept = Kept, dropped = Dropped, loop = Loop}) ->
    _ = [?LOG_WARNING(#{what => "events that nobody subscribed to are dropped", loop => Loop})
         || Dropped =:= 0],
    State#router{kept = [Event | lists:droplast(Kept)], dropped = Dropped + 1}.

-spec hand_over(topic(), pid(), #router{}) -> #router{}.
hand_over(Topic, Pid, State = #router{kept = Kept, loop = Loop}) ->
    {Theirs, Left} = lists:partition(fun({_, _, Id}) -> Topic =:= all orelse Topic =:= Id end, Kept),
    lists:foreach(fun(Event) -> Pid ! {py_event, Loop, Event} end, lists:reverse(Theirs)),
    State#router{kept = Left}.

%% --- Subscribers --------------------------------------------------------------------------------

-spec watch(pid(), #router{}) -> #router{}.
watch(Pid, State = #router{monitors = Monitors}) when is_map_key(Pid, Monitors) ->
    State;
watch(Pid, State = #router{monitors = Monitors}) ->
    State#router{monitors = Monitors#{Pid => monitor(process, Pid)}}.

%% Who has no subscription left is of no interest any more.
-spec unwatch(pid(), #router{}) -> #router{}.
unwatch(Pid, State = #router{topics = Topics}) ->
    case lists:any(fun(Pids) -> lists:member(Pid, Pids) end, maps:values(Topics)) of
        true -> State;
        false -> forget(Pid, State)
    end.

-spec add(topic(), pid(), #router{}) -> #router{}.
add(Topic, Pid, State = #router{topics = Topics}) ->
    Others = lists:delete(Pid, maps:get(Topic, Topics, [])),
    State#router{topics = Topics#{Topic => [Pid | Others]}}.

-spec remove(topic(), pid(), #router{}) -> #router{}.
remove(Topic, Pid, State = #router{topics = Topics}) ->
    case lists:delete(Pid, maps:get(Topic, Topics, [])) of
        [] -> State#router{topics = maps:remove(Topic, Topics)};
        Others -> State#router{topics = Topics#{Topic => Others}}
    end.

-spec forget(pid(), #router{}) -> #router{}.
forget(Pid, State = #router{topics = Topics, monitors = Monitors}) ->
    _ = [demonitor(Monitor, [flush]) || Monitor <- maps:values(maps:with([Pid], Monitors))],
    Forget = fun(Topic, Known) -> remove(Topic, Pid, Known) end,
    lists:foldl(Forget, State#router{monitors = maps:remove(Pid, Monitors)}, maps:keys(Topics)).
