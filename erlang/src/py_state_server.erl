%% The process of one store: does its writes, and tells caches and watchers what they changed.
%%
%%   py_state ── write ──▶ ┌─────────────────┐ ── {'$py_state', Seq, [Id]} ────────────▶ caches of nodes
%%                         │ py_state_server │ ── {py_state, changed, Ref, Key, What} ─▶ watchers
%%   caches ──── get ────▶ └─────────────────┘
%%
%% A number, Seq, goes up by one with each change, and every answer to a node carries it. A node that
%% reads for its cache is remembered with the key until that changes; then it is told once, and
%% forgotten. A node knows a key by Id, the bytes it wrote it as. Two Ids may be the same key: a map
%% can be written in several orders. So a key remembers up to ?MAX_IDS for each cache.
%%
%% It never waits for a node. What a busy connection does not take goes to a process that waits, one
%% per destination; what comes meanwhile waits here, the changes of a key as the latest one alone.
%%
%% Who dies, and what follows:
%%   cache, watcher, or their node   They are forgotten.
%%   this process                    So is the store. Caches hear of it, since they monitor it, and
%%                                   forget what they hold; watchers hear it the same way.
-module(py_state_server).
-behaviour(gen_server).

-export([new_table/0, start_link/2, checked/1, find/1, get/2, keys/1, keys_of/1, request/2]).
-export([init/1, handle_call/3, handle_cast/2, handle_info/2]).

-export_type([info/0, request/0, write/0]).

-define(STORES, py_state_stores).
-define(MAX_IDS, 8).

-type key() :: py_state:key().
-type id() :: binary().
-type seq() :: non_neg_integer().
-type cache() :: pid() | false.
-type write() ::
    {put, key(), term()}
    | {put_new, key(), term()}
    | {incr, key(), number()}
    | {cas, key(), term(), term()}
    | {delete, key()}.
-type request() ::
    {write, cache(), write()}
    | {get, cache(), id(), key()}
    | {join, pid()}
    | {watch, pid(), reference(), {key, key()} | all}
    | {unwatch, reference()}
    | info.
-type info() :: #{entries := non_neg_integer(), max_entries := pos_integer(),
                  bytes := non_neg_integer(), max_bytes := pos_integer(),
                  caches := non_neg_integer(), cached := non_neg_integer(),
                  watches := non_neg_integer(), version := seq()}.
-type what() :: {ok, term()} | deleted.

-record(store, {
    table :: ets:tid(),                 % {Key, Value, Bytes}
    options :: py_state:options(),
    seq = 0 :: seq(),
    bytes = 0 :: non_neg_integer(),
    holders :: ets:tid(),               % a bag of {Key, Cache, Id}
    held :: ets:tid(),                  % {{Cache, Id}, Key}, in order, for the death of a cache
    caches = #{} :: #{pid() => reference()},
    watches = #{} :: #{reference() => {pid(), Monitor :: reference(), {key, key()} | all}},
    watched = #{} :: #{{key, key()} | all => #{reference() => pid()}},
    monitors = #{} :: #{reference() => {cache | waiting, pid()} | {watch, reference()}},
    waiting = #{} :: #{pid() => #{term() => term()}}   % what a busy connection has not taken, by tag
}).

%% --- For py_state -------------------------------------------------------------------------------

-spec new_table() -> ok.
new_table() ->
    ?STORES = ets:new(?STORES, [named_table, public, {read_concurrency, true}]),
    ok.

%% Whole options. Raises badarg for what is none.
-spec checked(map()) -> py_state:options().
checked(Given) ->
    Defaults = #{max_entries => 100000, max_bytes => 268435456, max_watches => 10000,
                 max_caches => 1000},
    Options = maps:merge(Defaults, Given),
    Sound = maps:size(Options) =:= maps:size(Defaults)
        andalso lists:all(fun(N) -> is_integer(N) andalso N > 0 end, maps:values(Options)),
    Sound orelse error(badarg, [Given]),
    Options.

%% The registered name sees to it that there is one store of a name.
-spec start_link(py_state:name(), py_state:options()) -> gen_server:start_ret().
start_link(Name, Options) ->
    Registered = list_to_atom("py_state_" ++ atom_to_list(Name)),
    gen_server:start_link({local, Registered}, ?MODULE, {Name, Options}, []).

-spec find(py_state:name()) -> {pid(), ets:tid()} | none.
find(Name) ->
    try ets:lookup(?STORES, Name) of
        [{_, Pid, Table}] ->
            case is_process_alive(Pid) of
                true -> {Pid, Table};
                false -> none
            end;
        [] ->
            none
    catch
        error:badarg -> none  % the application has stopped
    end.

-spec get(py_state:name(), key()) -> {ok, term()} | {error, py_state:reason()}.
get(Name, Key) ->
    try
        ets:lookup_element(?STORES, Name, 3)
    of
        Table -> lookup(Name, Table, Key)
    catch
        error:badarg -> {error, {no_store, Name}}
    end.

-spec lookup(py_state:name(), ets:tid(), key()) -> {ok, term()} | {error, py_state:reason()}.
lookup(Name, Table, Key) ->
    try ets:lookup(Table, Key) of
        [{_, Value, _}] -> {ok, Value};
        [] -> {error, not_found}
    catch
        error:badarg -> {error, {no_store, Name}}  % it has ended
    end.

-spec keys(py_state:name()) -> [key()] | {error, py_state:reason()}.
keys(Name) ->
    try
        {_, Table} = find(Name),
        keys_of(Table)
    catch
        error:_ -> {error, {no_store, Name}}
    end.

-spec keys_of(ets:tid()) -> [key()].
keys_of(Table) ->
    ets:select(Table, [{{'$1', '_', '_'}, [], ['$1']}]).

%% The store's answer; {error, noproc} where it has ended.
-spec request(pid(), request()) -> term().
request(Pid, Request) ->
    try
        gen_server:call(Pid, Request, infinity)
    catch
        exit:_ -> {error, noproc}
    end.

%% --- The process --------------------------------------------------------------------------------

-spec init({py_state:name(), py_state:options()}) -> {ok, #store{}}.
init({Name, Options}) ->
    Table = ets:new(?MODULE, [protected, {read_concurrency, true}]),
    true = ets:insert(?STORES, {Name, self(), Table}),
    {ok, #store{table = Table,
                options = Options,
                holders = ets:new(py_state_holders, [bag, private]),
                held = ets:new(py_state_held, [ordered_set, private])}}.

-spec handle_call(request(), gen_server:from(), #store{}) -> {reply, term(), #store{}}.
handle_call({write, Cache, Write}, _From, Store) ->
    Ids = [Id || is_pid(Cache), {_, Holder, Id} <- ets:lookup(Store#store.holders, element(2, Write)),
                 Holder =:= Cache],
    {Result, Store1} = write(Write, Store),
    {reply, {Result, Store1#store.seq, Ids}, Store1};
handle_call({get, Cache, Id, Key}, _From, #store{table = Table, seq = Seq} = Store) ->
    case ets:lookup(Table, Key) of
        [{_, Value, _}] -> {reply, {Seq, hold(Cache, Id, Key, Store), {ok, Value}}, Store};
        [] -> {reply, {Seq, no, {error, not_found}}, Store}
    end;
handle_call({join, Cache}, _From, Store) ->
    {Reply, Store1} = join(Cache, Store),
    {reply, Reply, Store1};
handle_call({watch, Watcher, Ref, What}, _From, Store) ->
    {Reply, Store1} = watch(Watcher, Ref, What, Store),
    {reply, Reply, Store1};
handle_call({unwatch, Ref}, _From, Store) ->
    {reply, ok, unwatch(Ref, Store)};
handle_call(info, _From, Store) ->
    {reply, {ok, info(Store)}, Store};
handle_call(Request, _From, Store) ->
    {reply, {error, {bad_request, Request}}, Store}.

-spec handle_cast(term(), #store{}) -> {noreply, #store{}}.
handle_cast(_Message, Store) ->
    {noreply, Store}.

-spec handle_info(term(), #store{}) -> {noreply, #store{}}.
handle_info({'DOWN', Ref, process, _, _}, #store{monitors = Monitors} = Store) ->
    case maps:take(Ref, Monitors) of
        {{cache, Cache}, Left} -> {noreply, leave(Cache, Store#store{monitors = Left})};
        {{watch, Watch}, _} -> {noreply, unwatch(Watch, Store)};
        {{waiting, To}, Left} -> {noreply, taken(To, Store#store{monitors = Left})};
        error -> {noreply, Store}
    end;
handle_info(_Message, Store) ->
    {noreply, Store}.

-spec info(#store{}) -> info().
info(#store{table = Table, options = Options, bytes = Bytes, seq = Seq} = Store) ->
    #{max_entries := MaxEntries, max_bytes := MaxBytes} = Options,
    #{entries => ets:info(Table, size), max_entries => MaxEntries,
      bytes => Bytes, max_bytes => MaxBytes,
      caches => map_size(Store#store.caches), cached => ets:info(Store#store.held, size),
      watches => map_size(Store#store.watches), version => Seq}.

%% --- Writing ------------------------------------------------------------------------------------

-spec write(write(), #store{}) -> {ok | {ok, number()} | {error, py_state:reason()}, #store{}}.
write(Write, #store{table = Table} = Store) ->
    Key = element(2, Write),
    case {Write, ets:lookup(Table, Key)} of
        {{put, _, Value}, Row} -> insert(Key, Value, ok, Row, Store);
        {{put_new, _, Value}, []} -> insert(Key, Value, ok, [], Store);
        {{put_new, _, _}, [{_, Current, _}]} -> {{error, {exists, Current}}, Store};
        {{incr, _, By}, Row} -> add(Key, By, Row, Store);
        {{cas, _, Old, New}, [{_, Current, _}] = Row} when Old =:= Current ->
            insert(Key, New, ok, Row, Store);
        {{cas, _, _, _}, [{_, Current, _}]} -> {{error, {changed, Current}}, Store};
        {{cas, _, _, _}, []} -> {{error, not_found}, Store};
        {{delete, _}, []} -> {ok, Store};
        {{delete, _}, [{_, _, Bytes}]} ->
            true = ets:delete(Table, Key),
            {ok, changed(Key, deleted, Store#store{bytes = Store#store.bytes - Bytes})}
    end.

-spec add(key(), number(), [tuple()], #store{}) ->
    {{ok, number()} | {error, py_state:reason()}, #store{}}.
add(Key, By, [], Store) ->
    insert(Key, By, {ok, By}, [], Store);
add(Key, By, [{_, Number, _}] = Row, Store) when is_number(Number) ->
    try Number + By of
        Sum -> insert(Key, Sum, {ok, Sum}, Row, Store)
    catch
        error:badarith -> {{error, not_a_number}, Store}  % no float is as large
    end;
add(_, _, _, Store) ->
    {{error, not_a_number}, Store}.

-spec insert(key(), term(), Done, [tuple()], #store{}) ->
    {Done | {error, py_state:reason()}, #store{}}.
insert(Key, Value, Done, Row, #store{table = Table, bytes = Bytes, options = Options} = Store) ->
    #{max_entries := MaxEntries, max_bytes := MaxBytes} = Options,
    Size = erlang:external_size(Key) + erlang:external_size(Value),
    Before = case Row of
        [{_, _, Former}] -> Former;
        [] -> 0
    end,
    After = Bytes - Before + Size,
    Entries = ets:info(Table, size),
    if
        Row =:= [], Entries >= MaxEntries ->
            {{error, {full, entries, MaxEntries}}, Store};
        After > MaxBytes, Size > Before ->
            {{error, {full, bytes, MaxBytes}}, Store};
        true ->
            true = ets:insert(Table, {Key, Value, Size}),
            {Done, changed(Key, {ok, Value}, Store#store{bytes = After})}
    end.

-spec changed(key(), what(), #store{}) -> #store{}.
changed(Key, What, #store{seq = Before, holders = Holders, held = Held, watched = Watched} = Store) ->
    Seq = Before + 1,
    Told = lists:foldl(fun({_, Cache, Id}, Ids) ->
        true = ets:delete(Held, {Cache, Id}),
        maps:update_with(Cache, fun(More) -> [Id | More] end, [Id], Ids)
    end, #{}, ets:take(Holders, Key)),
    Store1 = maps:fold(fun(Cache, Ids, S) ->
        post(Cache, {stale, Seq}, {'$py_state', Seq, Ids}, S)
    end, Store#store{seq = Seq}, Told),
    lists:foldl(fun(Group, S0) ->
        maps:fold(fun(Ref, Watcher, S) ->
            post(Watcher, {Ref, Key}, {py_state, changed, Ref, Key, What}, S)
        end, S0, maps:get(Group, Watched, #{}))
    end, Store1, [{key, Key}, all]).

%% --- Caches -------------------------------------------------------------------------------------

-spec join(pid(), #store{}) -> {ok | {error, py_state:reason()}, #store{}}.
join(Cache, #store{caches = Caches} = Store) when is_map_key(Cache, Caches) ->
    {ok, Store};
join(_, #store{caches = Caches, options = #{max_caches := Max}} = Store)
  when map_size(Caches) >= Max ->
    {{error, {full, caches, Max}}, Store};
join(Cache, #store{caches = Caches, monitors = Monitors} = Store) ->
    Ref = erlang:monitor(process, Cache),
    {ok, Store#store{caches = Caches#{Cache => Ref}, monitors = Monitors#{Ref => {cache, Cache}}}}.

%% Whether the cache may keep what it was told: `left` says that it is not known here any more.
-spec hold(cache(), id(), key(), #store{}) -> yes | no | left.
hold(false, _, _, _) ->
    no;
hold(Cache, Id, Key, #store{caches = Caches, holders = Holders, held = Held})
  when is_map_key(Cache, Caches) ->
    Ids = [Known || {_, Holder, Known} <- ets:lookup(Holders, Key), Holder =:= Cache],
    case lists:member(Id, Ids) of
        true ->
            yes;
        false when length(Ids) < ?MAX_IDS ->
            true = ets:insert(Holders, {Key, Cache, Id}),
            true = ets:insert(Held, {{Cache, Id}, Key}),
            yes;
        false ->
            no
    end;
hold(_, _, _, _) ->
    left.

-spec leave(pid(), #store{}) -> #store{}.
leave(Cache, #store{caches = Caches, holders = Holders, held = Held} = Store) ->
    Rows = ets:select(Held, [{{{Cache, '$1'}, '$2'}, [], [{{'$1', '$2'}}]}]),
    lists:foreach(fun({Id, Key}) ->
        true = ets:delete(Held, {Cache, Id}),
        true = ets:delete_object(Holders, {Key, Cache, Id})
    end, Rows),
    Store#store{caches = maps:remove(Cache, Caches)}.

%% --- Watches ------------------------------------------------------------------------------------

-spec watch(pid(), reference(), {key, key()} | all, #store{}) ->
    {ok | {error, py_state:reason()}, #store{}}.
watch(_, _, _, #store{watches = Watches, options = #{max_watches := Max}} = Store)
  when map_size(Watches) >= Max ->
    {{error, {full, watches, Max}}, Store};
watch(Watcher, Ref, What, #store{watches = Watches, watched = Watched} = Store) ->
    Monitor = erlang:monitor(process, Watcher),
    Group = maps:get(What, Watched, #{}),
    {ok, Store#store{watches = Watches#{Ref => {Watcher, Monitor, What}},
                     watched = Watched#{What => Group#{Ref => Watcher}},
                     monitors = (Store#store.monitors)#{Monitor => {watch, Ref}}}}.

-spec unwatch(reference(), #store{}) -> #store{}.
unwatch(Ref, #store{watches = Watches, watched = Watched, monitors = Monitors} = Store) ->
    case maps:take(Ref, Watches) of
        {{_, Monitor, What}, Left} ->
            true = erlang:demonitor(Monitor, [flush]),
            Watched1 = case maps:remove(Ref, maps:get(What, Watched)) of
                Group when map_size(Group) =:= 0 -> maps:remove(What, Watched);
                Group -> Watched#{What := Group}
            end,
            Store#store{watches = Left, watched = Watched1,
                        monitors = maps:remove(Monitor, Monitors)};
        error ->
            Store
    end.

%% --- Telling ------------------------------------------------------------------------------------

%% In order for each destination, but that a later message takes the place of one of the same tag.
-spec post(pid(), term(), term(), #store{}) -> #store{}.
post(To, Tag, Message, #store{waiting = Waiting} = Store) ->
    case Waiting of
        #{To := Messages} ->
            Store#store{waiting = Waiting#{To := Messages#{Tag => Message}}};
        #{} ->
            case erlang:send(To, Message, [noconnect, nosuspend]) of
                nosuspend -> wait([Message], To, Store);
                _ -> Store
            end
    end.

-spec wait([term()], pid(), #store{}) -> #store{}.
wait(Messages, To, #store{waiting = Waiting, monitors = Monitors} = Store) ->
    {_, Ref} = spawn_monitor(fun() ->
        lists:foreach(fun(Message) -> erlang:send(To, Message, [noconnect]) end, Messages)
    end),
    Store#store{waiting = Waiting#{To => #{}}, monitors = Monitors#{Ref => {waiting, To}}}.

-spec taken(pid(), #store{}) -> #store{}.
taken(To, #store{waiting = Waiting} = Store) ->
    {Messages, Left} = maps:take(To, Waiting),
    case maps:values(Messages) of
        [] -> Store#store{waiting = Left};
        More -> wait(More, To, Store#store{waiting = Left})
    end.
