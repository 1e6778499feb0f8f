%% Tells the owners of streams that a node was lost, which nobody there can.
%%
%%   py_stream ── {watch, Pid, Ref, Owner} ──▶ py_stream_server, which monitors the stream's process
%%   owner     ◀── {py_stream, Ref, {error, {down, noconnection}}} ──┘
%%
%% A stream that ends on its node has told its owner by itself: such a DOWN only ends the watch.
-module(py_stream_server).
-behaviour(gen_server).

-export([start_link/0, watch/3]).
-export([init/1, handle_call/3, handle_cast/2, handle_info/2]).

-type state() :: #{reference() => {reference(), pid()}}.

-spec start_link() -> gen_server:start_ret().
start_link() ->
    gen_server:start_link({local, ?MODULE}, ?MODULE, [], []).

%% Watches the process of a stream for its owner.
-spec watch(pid(), reference(), pid()) -> ok.
watch(Pid, Ref, Owner) ->
    gen_server:cast(?MODULE, {watch, Pid, Ref, Owner}).

-spec init([]) -> {ok, state()}.
init([]) ->
    {ok, #{}}.

-spec handle_call(term(), gen_server:from(), state()) -> {reply, {error, bad_request}, state()}.
handle_call(_, _, State) ->
    {reply, {error, bad_request}, State}.

-spec handle_cast({watch, pid(), reference(), pid()}, state()) -> {noreply, state()}.
handle_cast({watch, Pid, Ref, Owner}, State) ->
    {noreply, State#{monitor(process, Pid) => {Ref, Owner}}}.

-spec handle_info(term(), state()) -> {noreply, state()}.
handle_info({'DOWN', Monitor, process, _, Reason}, State) ->
    case maps:take(Monitor, State) of
        {{Ref, Owner}, Rest} ->
            _ = [Owner ! {py_stream, Ref, {error, {down, Reason}}} || Reason =:= noconnection],
            {noreply, Rest};
        error ->
            {noreply, State}
    end;
handle_info(_, State) ->
    {noreply, State}.
