%% State that Erlang and Python share: named stores of keys and values, owned by this BEAM.
%%
%%   Erlang processes ── get ──▶ [ table ] ◀── put, incr, cas ── py_state_server, one per store
%%                                                                  ▲            │ what has changed
%%   Python: erlang.state_get, … ── '$py_state', a registered ──────┘            ▼
%%           function, in a process of py_callback_link              the caches of nodes, the watchers
%%
%% The default store is there as long as the application is; new/2 adds others. All writes to a store
%% are done one after the other by its process; get/1,2,3 read its table. Keys and values are any
%% terms, keys are told apart as by =:=. docs/state.md says what a reader sees, and when.
%%
%% A store ends with its process, and what is in it too. Where the store does not exist every function
%% answers {error, {no_store, Name}}, but for get/3, which raises it.
-module(py_state).

-export([new/1, new/2, stop/1, start_link/1, start_link/2, child_spec/2, pid/1]).
-export([get/1, get/2, get/3, put/2, put/3, put_new/2, put_new/3, incr/1, incr/2, incr/3,
         cas/3, cas/4, delete/1, delete/2, keys/0, keys/1, info/0, info/1]).
-export([watch/1, watch/2, watch_all/0, watch_all/1, unwatch/1, unwatch/2]).
-export([new_table/0, from_python/1]).

-export_type([name/0, key/0, options/0, reason/0]).

-define(DEFAULT, default).

-type name() :: atom().
-type key() :: term().
-type options() :: #{
    max_entries => pos_integer(),       % default 100,000
    max_bytes => pos_integer(),         % keys and values as external terms; default 256 MiB
    max_watches => pos_integer(),       % default 10,000
    max_caches => pos_integer()         % nodes that may cache; default 1,000
}.
-type reason() ::
    {no_store, name()}
    | not_found
    | {changed, Current :: term()}      % cas
    | {exists, Current :: term()}       % put_new
    | not_a_number                      % incr of a value that is none
    | {full, entries | bytes | watches, Max :: pos_integer()}.

%% --- Stores -------------------------------------------------------------------------------------

%% Starts a store under the application's supervisor.
-spec new(name()) -> {ok, pid()} | {error, term()}.
new(Name) -> new(Name, #{}).

-spec new(name(), options()) -> {ok, pid()} | {error, term()}.
new(Name, Options) when is_atom(Name), is_map(Options) ->
    py_state_sup:start_store(Name, py_state_server:checked(Options)).

%% Ends a store that new/1,2 started.
-spec stop(name()) -> ok | {error, not_found}.
stop(Name) when is_atom(Name) ->
    py_state_sup:stop_store(Name).

%% Starts a store linked to the caller; for a supervisor of yours, see child_spec/2.
-spec start_link(name()) -> gen_server:start_ret().
start_link(Name) -> start_link(Name, #{}).

-spec start_link(name(), options()) -> gen_server:start_ret().
start_link(Name, Options) when is_atom(Name), is_map(Options) ->
    py_state_server:start_link(Name, py_state_server:checked(Options)).

-spec child_spec(name(), options()) -> supervisor:child_spec().
child_spec(Name, Options) when is_atom(Name), is_map(Options) ->
    #{id => {?MODULE, Name}, start => {?MODULE, start_link, [Name, Options]}}.

%% The process of a store, to be monitored.
-spec pid(name()) -> {ok, pid()} | {error, reason()}.
pid(Name) when is_atom(Name) ->
    case py_state_server:find(Name) of
        {Pid, _} -> {ok, Pid};
        none -> {error, {no_store, Name}}
    end.

%% --- Reading ------------------------------------------------------------------------------------

%% The value of a key of the default store.
-spec get(key()) -> {ok, term()} | {error, reason()}.
get(Key) -> get(?DEFAULT, Key).

-spec get(name(), key()) -> {ok, term()} | {error, reason()}.
get(Store, Key) when is_atom(Store) ->
    py_state_server:get(Store, Key).

%% The value itself, or Default where there is none.
-spec get(name(), key(), term()) -> term().
get(Store, Key, Default) when is_atom(Store) ->
    case get(Store, Key) of
        {ok, Value} -> Value;
        {error, not_found} -> Default;
        {error, Reason} -> error(Reason, [Store, Key, Default])
    end.

%% All keys, in no order. Those that are put or deleted meanwhile may be among them or not.
-spec keys() -> [key()] | {error, reason()}.
keys() -> keys(?DEFAULT).

-spec keys(name()) -> [key()] | {error, reason()}.
keys(Store) when is_atom(Store) ->
    py_state_server:keys(Store).

%% Entries, bytes, their bounds, and how much caches and watchers make the store remember.
-spec info() -> {ok, py_state_server:info()} | {error, reason()}.
info() -> info(?DEFAULT).

-spec info(name()) -> {ok, py_state_server:info()} | {error, reason()}.
info(Store) when is_atom(Store) ->
    ask(Store, info).

%% --- Writing ------------------------------------------------------------------------------------

%% Sets a key's value.
-spec put(key(), term()) -> ok | {error, reason()}.
put(Key, Value) -> put(?DEFAULT, Key, Value).

-spec put(name(), key(), term()) -> ok | {error, reason()}.
put(Store, Key, Value) when is_atom(Store) ->
    write(Store, {put, Key, Value}).

%% Sets it if the key has no value; else {error, {exists, Value}}.
-spec put_new(key(), term()) -> ok | {error, reason()}.
put_new(Key, Value) -> put_new(?DEFAULT, Key, Value).

-spec put_new(name(), key(), term()) -> ok | {error, reason()}.
put_new(Store, Key, Value) when is_atom(Store) ->
    write(Store, {put_new, Key, Value}).

%% Adds to a number, 0 where there is none, and returns the sum.
-spec incr(key()) -> {ok, number()} | {error, reason()}.
incr(Key) -> incr(?DEFAULT, Key, 1).

-spec incr(key(), number()) -> {ok, number()} | {error, reason()}.
incr(Key, By) -> incr(?DEFAULT, Key, By).

-spec incr(name(), key(), number()) -> {ok, number()} | {error, reason()}.
incr(Store, Key, By) when is_atom(Store), is_number(By) ->
    write(Store, {incr, Key, By}).

%% Compare and swap: sets New if the value is Old, as by =:=. Otherwise {error, {changed, Value}}, or
%% {error, not_found}.
-spec cas(key(), Old :: term(), New :: term()) -> ok | {error, reason()}.
cas(Key, Old, New) -> cas(?DEFAULT, Key, Old, New).

-spec cas(name(), key(), Old :: term(), New :: term()) -> ok | {error, reason()}.
cas(Store, Key, Old, New) when is_atom(Store) ->
    write(Store, {cas, Key, Old, New}).

%% Takes a key away; `ok` also if it was not there.
-spec delete(key()) -> ok | {error, reason()}.
delete(Key) -> delete(?DEFAULT, Key).

-spec delete(name(), key()) -> ok | {error, reason()}.
delete(Store, Key) when is_atom(Store) ->
    write(Store, {delete, Key}).

%% --- Watching -----------------------------------------------------------------------------------

%% From now on each change of the key is a message to the calling process:
%%   {py_state, changed, Ref, Key, {ok, Value} | deleted}
%% in the order of the changes. Should the store end: {'DOWN', Ref, process, Pid, Reason}. A watcher on
%% another node that takes them too slowly is told the latest of each key.
-spec watch(key()) -> {ok, reference()} | {error, reason()}.
watch(Key) -> watch(?DEFAULT, Key).

-spec watch(name(), key()) -> {ok, reference()} | {error, reason()}.
watch(Store, Key) when is_atom(Store) ->
    subscribe(Store, {key, Key}).

%% The same for every key of the store.
-spec watch_all() -> {ok, reference()} | {error, reason()}.
watch_all() -> watch_all(?DEFAULT).

-spec watch_all(name()) -> {ok, reference()} | {error, reason()}.
watch_all(Store) when is_atom(Store) ->
    subscribe(Store, all).

%% Ends a watch of the calling process; none of its messages is left or will come.
-spec unwatch(reference()) -> ok.
unwatch(Ref) -> unwatch(?DEFAULT, Ref).

-spec unwatch(name(), reference()) -> ok.
unwatch(Store, Ref) when is_atom(Store), is_reference(Ref) ->
    _ = ask(Store, {unwatch, Ref}),
    true = erlang:demonitor(Ref, [flush]),
    flush(Ref).

-spec subscribe(name(), {key, key()} | all) -> {ok, reference()} | {error, reason()}.
subscribe(Store, What) ->
    case pid(Store) of
        {ok, Pid} ->
            Ref = erlang:monitor(process, Pid),
            case ask(Store, {watch, self(), Ref, What}) of
                ok ->
                    {ok, Ref};
                {error, Reason} ->
                    true = erlang:demonitor(Ref, [flush]),
                    {error, Reason}
            end;
        {error, Reason} ->
            {error, Reason}
    end.

-spec flush(reference()) -> ok.
flush(Ref) ->
    receive
        {py_state, changed, Ref, _, _} -> flush(Ref)
    after 0 ->
        ok
    end.

%% --- For Python ---------------------------------------------------------------------------------

%% Creates the table of stores; the caller owns it.
-spec new_table() -> ok.
new_table() ->
    py_state_server:new_table().

%% What erlang._state calls under the name '$py_state'; docs/protocol.md has the list. A key travels as
%% the external term that the node made of it, which is also what its cache knows it by.
-spec from_python([term()]) -> term().
from_python([hello, Store]) ->
    {Pid, _} = existing(Store),
    Pid;
from_python([join, Store, Cache]) when is_pid(Cache) ->
    request(Store, {join, Cache});
from_python([get, Store, Cache, Id]) ->
    case request(Store, {get, Cache, Id, key(Id)}) of
        {Seq, Cached, {ok, Value}} -> {Seq, Cached, term_to_binary(Value)};
        {Seq, Cached, {error, not_found}} -> {Seq, Cached}
    end;
from_python([put, Store, Cache, Id, Value]) ->
    write(Store, Cache, {put, key(Id), Value});
from_python([put_new, Store, Cache, Id, Value]) ->
    write(Store, Cache, {put_new, key(Id), Value});
from_python([incr, Store, Cache, Id, By]) when is_number(By) ->
    write(Store, Cache, {incr, key(Id), By});
from_python([cas, Store, Cache, Id, Old, New]) ->
    write(Store, Cache, {cas, key(Id), Old, New});
from_python([delete, Store, Cache, Id]) ->
    write(Store, Cache, {delete, key(Id)});
from_python([keys, Store]) ->
    {_, Table} = existing(Store),
    py_state_server:keys_of(Table);
from_python([watch, Store, Watcher, all]) when is_pid(Watcher) ->
    request(Store, {watch, Watcher, make_ref(), all});
from_python([watch, Store, Watcher, Id]) when is_pid(Watcher) ->
    request(Store, {watch, Watcher, make_ref(), {key, key(Id)}});
from_python(Request) ->
    error({bad_request, Request}).

%% Why nothing was written, without the value that is there.
-spec write(term(), pid() | false, py_state_server:write()) -> term().
write(Store, Cache, Write) ->
    case request(Store, {write, Cache, Write}) of
        {{error, {changed, _}}, Seq, Ids} -> {{error, changed}, Seq, Ids};
        {{error, {exists, _}}, Seq, Ids} -> {{error, exists}, Seq, Ids};
        Done -> Done
    end.

%% A compressed one could be of any size.
-spec key(term()) -> key().
key(<<131, Tag, _/binary>> = Id) when Tag =/= 80 -> binary_to_term(Id);
key(Id) -> error({bad_key, Id}).

-spec request(term(), py_state_server:request()) -> term().
request(Store, Request) ->
    {Pid, _} = existing(Store),
    case py_state_server:request(Pid, Request) of
        {error, noproc} -> error({no_store, Store});
        {error, Reason} -> error(Reason);
        Answer -> Answer
    end.

-spec existing(term()) -> {pid(), ets:tid()}.
existing(Store) ->
    case py_state_server:find(name(Store)) of
        none -> error({no_store, Store});
        Found -> Found
    end.

%% No atom is made of what a node says.
-spec name(term()) -> name().
name(Name) when is_atom(Name) ->
    Name;
name(Text) ->
    try
        binary_to_existing_atom(Text)
    catch
        error:_ -> error({no_store, Text})
    end.

%% --- Asking the store ---------------------------------------------------------------------------

-spec write(name(), py_state_server:write()) -> term().
write(Store, Write) ->
    case ask(Store, {write, false, Write}) of
        {Result, _, _} -> Result;
        {error, Reason} -> {error, Reason}
    end.

-spec ask(name(), py_state_server:request()) -> term().
ask(Store, Request) ->
    case py_state_server:find(Store) of
        {Pid, _} ->
            case py_state_server:request(Pid, Request) of
                {error, noproc} -> {error, {no_store, Store}};
                Answer -> Answer
            end;
        none ->
            {error, {no_store, Store}}
    end.
