%% Runs functions for Python, one call at a time, for the py_callback_link that started it.
%%
%%   py_callback_link ── '$run' ─────▶ ┌─────────────────────┐
%%                    ◀── '$done' ──── │ py_callback_handler │ ── {'$py_results', [{Id, Result}]} ──▶ node
%%   py_callback_link ── '$release' ─▶ │                     │    (large results only)
%%                    ◀── '$clean' ─── └─────────────────────┘
%%
%% A thread of Python keeps its handler, so that what a function leaves in its process (dictionary,
%% links, monitors, messages) is there at the thread's next call. A handler that is to serve somebody
%% else must be as it was born; otherwise it ends. While it is in the pool it drops what others send,
%% late replies for example.
%%
%% A result of more than 64 KB goes to the node from here: a busy connection then suspends this
%% process and not the link.
%%
%% It is linked to the link and ends with it: killed when the link ends, by the exit signal when the
%% link is killed, and if a function made it trap exits, when it finds the link gone.
-module(py_callback_handler).

-export([start_link/1, run/4, release/1, stop/1]).
-export([init/2, kept/1, pooled/1]).

-export_type([answer/0, call/0, fate/0, result/0]).

-define(LARGE, 65536).              % bytes; larger results do not pass through the link
-define(REST_MS, 1000).             % idle for so long, it hibernates
-define(MAX_HEAP_WORDS, 131072).    % who has grown beyond that does not go back to the pool
-define(MAX_FRAMES, 32).
-define(TRAITS, [dictionary, links, monitors, registered_name, trap_exit, group_leader, priority,
                 error_handler, message_queue_data]).

-type call() :: {Id :: pos_integer(), name(), Args :: [term()]}.
%% A function's name, with the trace context of the call where it has one.
-type name() :: binary() | {binary(), py_trace:trace()}.
-type result() ::
    {ok, term()}
    | {error | exit | throw, Reason :: term(), Stack :: [frame()]}
    | not_registered.
-type frame() :: {module(), atom(), arity(), [{file | line, term()}]}.
%% The result with its size, or that the node has it.
-type answer() :: {pos_integer(), result()} | sent.
%% What becomes of the handler after a call: it stays with its thread, it may serve anybody, it ends.
-type fate() :: kept | clean | dirty.

-record(handler, {
    link :: pid(),
    node_pid :: pid(),
    born :: [tuple()]       % the traits of a handler that has run nothing
}).

%% --- For py_callback_link -----------------------------------------------------------------------

%% A new handler, as from the pool.
-spec start_link(pid()) -> pid().
start_link(NodePid) ->
    proc_lib:spawn_opt(?MODULE, init, [self(), NodePid], [link]).

%% Runs a call, then stays with the caller (`keep`) or offers itself to the pool (`give_back`). Tells
%% {'$done', Handler, Id, answer(), fate()}.
-spec run(pid(), call(), keep | give_back, pid()) -> ok.
run(Handler, {Id, Name, Args}, Then, Link) ->
    Handler ! {'$run', Link, Id, Name, Args, Then},
    ok.

%% Its thread has ended: it tells {'$clean', Handler} and can serve others, or ends.
-spec release(pid()) -> ok.
release(Handler) ->
    Handler ! {'$release', self()},
    ok.

%% Ends a handler, whatever it does. The link hears nothing of it any more, unless it is on its way.
-spec stop(pid()) -> ok.
stop(Handler) ->
    unlink(Handler),
    exit(Handler, kill),
    ok.

%% --- The process --------------------------------------------------------------------------------

-spec init(pid(), pid()) -> ok.
init(Link, NodePid) ->
    pooled(#handler{link = Link, node_pid = NodePid, born = process_info(self(), ?TRAITS)}).

%% Idle and nobody's.
-spec pooled(#handler{}) -> ok.
pooled(#handler{link = Link} = Handler) ->
    receive
        {'$run', Link, Id, Name, Args, Then} -> serve(Id, Name, Args, Then, Handler);
        _ -> pooled(Handler)
    after ?REST_MS ->
        proc_lib:hibernate(?MODULE, pooled, [Handler])
    end.

%% Idle, and a thread's: messages the thread's functions have left stay where they are.
-spec kept(#handler{}) -> ok.
kept(#handler{link = Link} = Handler) ->
    receive
        {'$run', Link, Id, Name, Args, Then} -> serve(Id, Name, Args, Then, Handler);
        {'$release', Link} -> released(Handler);
        {'EXIT', Link, _} -> ok
    after ?REST_MS ->
        rest(is_process_alive(Link), Handler)
    end.

-spec rest(boolean(), #handler{}) -> ok.
rest(false, _) ->
    ok;
rest(true, Handler) ->
    case process_info(self(), message_queue_len) of
        {message_queue_len, 0} -> proc_lib:hibernate(?MODULE, kept, [Handler]);
        _ -> kept(Handler)  % would wake at once, over and over
    end.

-spec released(#handler{}) -> ok.
released(#handler{link = Link} = Handler) ->
    case fate(give_back, Handler) of
        clean ->
            Link ! {'$clean', self()},
            pooled(Handler);
        dirty ->
            ok
    end.

-spec serve(pos_integer(), name(), [term()], keep | give_back, #handler{}) -> ok.
serve(Id, Name, Args, Then, #handler{link = Link, node_pid = NodePid} = Handler) ->
    Answer = answer(Id, perform(Name, Args), NodePid),
    Fate = fate(Then, Handler),
    Link ! {'$done', self(), Id, Answer, Fate},
    case Fate of
        kept -> kept(Handler);
        clean -> pooled(Handler);
        dirty -> ok
    end.

-spec answer(pos_integer(), result(), pid()) -> answer().
answer(Id, Result, NodePid) ->
    case erlang:external_size({Id, Result}) of
        Size when Size > ?LARGE ->
            _ = erlang:send(NodePid, {'$py_results', [{Id, Result}]}, [noconnect]),
            sent;
        Size ->
            {Size, Result}
    end.

-spec fate(keep | give_back, #handler{}) -> fate().
fate(keep, _) ->
    kept;
fate(give_back, #handler{born = Born}) ->
    case process_info(self(), [message_queue_len, total_heap_size | ?TRAITS]) of
        [{message_queue_len, 0}, {total_heap_size, Words} | Born] when Words =< ?MAX_HEAP_WORDS ->
            clean;
        _ ->
            dirty
    end.

%% --- The call -----------------------------------------------------------------------------------

-spec perform(name(), [term()]) -> result().
perform({Name, Trace}, Args) ->
    py_trace:serve(Trace, fun() -> perform(Name, Args) end);
perform(Name, Args) ->
    case py_callback:lookup(Name) of
        {ok, Target} ->
            try
                {ok, apply_to(Target, Args)}
            catch
                Class:Reason:Stack -> {Class, Reason, stack(Stack)}
            end;
        {error, not_found} ->
            not_registered
    end.

-spec apply_to(py_callback:target(), [term()]) -> term().
apply_to({M, F}, Args) -> M:F(Args);
apply_to(Function, Args) -> Function(Args).

%% The frames of the function and what it called, without arguments and other terms.
-spec stack([tuple()]) -> [frame()].
stack(Stack) ->
    Theirs = lists:takewhile(fun(Frame) -> element(1, Frame) =/= ?MODULE end, Stack),
    lists:sublist([{M, F, arity(ArityOrArgs), place(Location)}
                   || {M, F, ArityOrArgs, Location} <- Theirs], ?MAX_FRAMES).

-spec place([term()]) -> [{file | line, term()}].
place(Location) ->
    [{Key, Where} || {Key, Where} <- Location, Key =:= file orelse Key =:= line].

-spec arity(arity() | [term()]) -> arity().
arity(Args) when is_list(Args) -> length(Args);
arity(Arity) -> Arity.
