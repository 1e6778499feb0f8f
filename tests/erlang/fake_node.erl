%% A node for tests: a process registered as `py`, in a BEAM of its own, that speaks the protocol of
%% docs/protocol.md. What it answers is decided by the function's name; everything it received can
%% be asked for afterwards.
%%
%%   echo     {ok, Args}
%%   result   the first argument is the result, as it is
%%   hang     no answer until the call is cancelled
%%   late     {ok, late} after as many milliseconds as the first argument says
%%   crash    the BEAM halts at once
%%   place    {ok, node()}, or what the option `place` says; `silent`: nothing
-module(fake_node).

-export([start/1, stop/0, tell/1, log/0, batches/0, casts/0, cancelled/0]).
-export([init/2]).

-record(fake, {
    hello :: term(),                                  % the whole answer to hello, or `silent`
    report :: term(),                                 % the whole answer to report
    place :: term(),                                  % the result of `place`
    greeters = [] :: [pid()],                         % said hello and want events
    batches = [] :: [[tuple()]],                      % newest first
    casts = [] :: [tuple()],                          % newest first
    cancelled = [] :: [{integer(), integer()}],       % {Id, millisecond of the system's clock}
    log = [] :: [term()]                              % everything else, newest first
}).

-spec start(map()) -> ok.
start(Options) ->
    Pid = spawn(?MODULE, init, [self(), Options]),
    receive {Pid, ready} -> ok end.

-spec stop() -> ok.
stop() ->
    Monitor = monitor(process, py),
    exit(whereis(py), stopped),
    receive {'DOWN', Monitor, process, _, _} -> ok end.

%% Sends {'$py_node', Event} to those who asked for events.
-spec tell(term()) -> ok.
tell(Event) ->
    py ! {'$tell', Event},
    ok.

-spec batches() -> [[tuple()]].
batches() -> ask(batches).

-spec casts() -> [tuple()].
casts() -> ask(casts).

-spec cancelled() -> [{integer(), integer()}].
cancelled() -> ask(cancelled).

-spec log() -> [term()].
log() -> ask(log).

-spec ask(atom()) -> term().
ask(What) ->
    py ! {'$ask', self(), What},
    receive {'$answer', Answer} -> Answer end.

-spec init(pid(), map()) -> no_return().
init(Starter, Options) ->
    register(py, self()),
    Starter ! {self(), ready},
    Info = #{version => 1, python => <<"3.11.2">>, workers => 4, node_version => <<"0">>},
    loop(#fake{hello = maps:get(hello, Options, {ok, Info}),
               report = maps:get(report, Options, {ok, #{queue => 3, platform => <<"fake">>}}),
               place = maps:get(place, Options, {ok, node()})}).

-spec loop(#fake{}) -> no_return().
loop(Fake = #fake{batches = Batches, log = Log}) ->
    receive
        {'$py_batch', Items} ->
            Fake1 = lists:foldl(fun note/2, Fake#fake{batches = [Items | Batches]}, Items),
            reply([{Id, Placed} || Item <- Items, {Id, Result} <- perform(Item),
                                   Placed <- placed(Result, Fake)]),
            loop(Fake1);
        {'$gen_call', From, {hello, _} = Hello} ->
            greet(From, Fake#fake.hello),
            loop(Fake#fake{log = [Hello | Log], greeters = greeters(From, Hello) ++ Fake#fake.greeters});
        {'$gen_call', From, {report, _}} ->
            gen_server:reply(From, Fake#fake.report),
            loop(Fake);
        {'$tell', Event} ->
            lists:foreach(fun(Pid) -> Pid ! {'$py_node', Event} end, Fake#fake.greeters),
            loop(Fake);
        {'$ask', Pid, What} ->
            Pid ! {'$answer', answer(What, Fake)},
            loop(Fake);
        {later, Reply} ->
            reply([Reply]),
            loop(Fake);
        Other ->
            loop(Fake#fake{log = [Other | Log]})
    end.

-spec greet(gen_server:from(), term()) -> ok.
greet(_From, silent) -> ok;
greet(From, Hello) -> gen_server:reply(From, Hello).

-spec greeters(gen_server:from(), tuple()) -> [pid()].
greeters({Pid, _}, {hello, #{events := true}}) -> [Pid];
greeters(_, _) -> [].

-spec answer(atom(), #fake{}) -> [term()].
answer(batches, #fake{batches = Batches}) -> lists:reverse(Batches);
answer(casts, #fake{casts = Casts}) -> lists:reverse(Casts);
answer(cancelled, #fake{cancelled = Cancelled}) -> lists:reverse(Cancelled);
answer(log, #fake{log = Log}) -> lists:reverse(Log).

-spec note(tuple(), #fake{}) -> #fake{}.
note(Item, Fake = #fake{casts = Casts}) when element(1, Item) =:= cast ->
    Fake#fake{casts = [Item | Casts]};
note({cancel, Id}, Fake = #fake{cancelled = Cancelled}) ->
    Fake#fake{cancelled = [{Id, erlang:system_time(millisecond)} | Cancelled]};
note(_, Fake) ->
    Fake.

%% The replies an item leads to at once.
-spec perform(tuple()) -> [{integer(), term()}].
perform({call, Id, M, F, Args}) -> perform(F, Id, M, Args);
perform({call, Id, M, F, Args, Kwargs}) -> perform(F, Id, M, {Args, Kwargs});
perform({call, Id, M, F, Args, Kwargs, Options}) -> perform(F, Id, M, {Args, Kwargs, Options});
perform({eval, Id, Caller, Code, Locals}) -> [{Id, {ok, {eval, Caller, Code, Locals}}}];
perform({eval, Id, Caller, Code, Locals, Options}) -> [{Id, {ok, {eval, Caller, Code, Locals, Options}}}];
perform({exec, Id, Caller, Code, Options}) -> [{Id, {ok, {exec, Caller, Code, Options}}}];
perform({exec, Id, Caller, Code}) -> [{Id, {ok, {exec, Caller, Code}}}];
perform({cast, _, _, _, _}) -> [];
perform({cast, _, _, _, _, _}) -> [];
perform({cancel, Id}) -> [{Id, {error, cancelled}}].

-spec perform(atom() | binary(), integer(), atom() | binary(), term()) -> [{integer(), term()}].
perform(echo, Id, _, Arguments) -> [{Id, {ok, Arguments}}];
perform(result, Id, _, [Result]) -> [{Id, Result}];
perform(place, Id, _, _) -> [{Id, place}];
perform(hang, _, _, _) -> [];
perform(late, Id, _, [Delay]) -> later(Delay, {Id, {ok, late}});
perform(crash, _, _, _) -> erlang:halt(3, [{flush, false}]).

-spec placed(term(), #fake{}) -> [term()].
placed(place, #fake{place = silent}) -> [];
placed(place, #fake{place = Place}) -> [Place];
placed(Result, _) -> [Result].

-spec later(non_neg_integer(), {integer(), term()}) -> [].
later(Delay, Reply) ->
    _ = erlang:send_after(Delay, self(), {later, Reply}),
    [].

%% One message with all the replies of a batch. A node sees which process sent it a batch; a BEAM
%% process does not, but the link monitors `py`, which shows its pid.
-spec reply([{integer(), term()}]) -> ok.
reply([]) ->
    ok;
reply(Replies) ->
    {monitored_by, Watchers} = process_info(self(), monitored_by),
    lists:foreach(fun(Link) -> Link ! {'$py_replies', Replies} end,
                  [Pid || Pid <- Watchers, node(Pid) =/= node()]).
