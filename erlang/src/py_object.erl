%% Python objects by reference: they stay on their node, and a process here owns each.
%%
%%   {ok, Model} = py:call(mymodule, 'Model', [Path], #{}, …)      a term, copied; or, for what is none:
%%   {ok, Model} = py:call(Node, mymodule, 'Model', [Path], #{return => ref}),
%%   {ok, Label} = py:call_method(Model, predict, [Data]).
%%
%% A reference is {'$py_object', Node, Creation, Id, Type}. In the arguments of any call to its node,
%% at any depth, and in messages to Python processes and channels there, it stands for the object
%% itself; anywhere else it is {error, {bad_ref, other_node | released | unknown}}. Creation is the
%% node's: one that was started again does not take old references for its own.
%%
%% Who dies, and what follows:
%%   owner    the node monitors it and lets its objects go, as it does when the owner's node is lost
%%   node     every use of its references is {error, {down, _}}, and {bad_ref, released} once it is back
-module(py_object).

-export([node/1, type/1, is_ref/1]).
-export([refs/1, refs/2, counts/0, counts/1]).
-export([call_request/4, options/2]).

-export_type([ref/0, owner/0, options/0, info/0, counts/0]).

-opaque ref() :: {'$py_object', node(), non_neg_integer(), pos_integer(), binary()}.
-type owner() :: pid() | {lease, Milliseconds :: pos_integer()}.
-type options() :: #{
    kwargs => py:kwargs(),
    timeout => timeout(),           % default 30000 ms
    binary => auto | str | bytes,
    return => term | ref,           % default: term
    owner => owner(),               % of what `return => ref` gives; default: the calling process
    trace => py_trace:trace() | undefined
}.
-type info() :: #{id := pos_integer(), ref := ref(), type := binary(), owner := owner(),
                  age_ms := non_neg_integer(), idle_ms := non_neg_integer()}.
-type counts() :: #{refs := non_neg_integer(), owners := non_neg_integer(),
                    leases := non_neg_integer(), created := non_neg_integer(),
                    orphaned := non_neg_integer(), expired := non_neg_integer(),
                    types := #{binary() => pos_integer()}}.

-define(is_owner(X), (is_pid(X) orelse (tuple_size(X) =:= 2 andalso element(1, X) =:= lease
                                        andalso is_integer(element(2, X)) andalso element(2, X) > 0))).

%% The node that has the object.
-spec node(ref()) -> node().
node({'$py_object', Node, _, _, _}) -> Node.

%% The name of the object's class, with its module unless that is `builtins`.
-spec type(ref()) -> binary().
type({'$py_object', _, _, _, Type}) -> Type.

%% Whether a term looks like a reference.
-spec is_ref(term()) -> boolean().
is_ref({'$py_object', Node, Creation, Id, Type}) ->
    is_atom(Node) andalso is_integer(Creation) andalso is_integer(Id) andalso is_binary(Type);
is_ref(_) ->
    false.

%% The oldest references of a node, up to 1000.
-spec refs(py:target()) -> {ok, [info()]} | {error, py:reason()}.
refs(Target) ->
    refs(Target, 1000).

%% Up to so many of them, at most 10000.
-spec refs(py:target(), pos_integer()) -> {ok, [info()]} | {error, py:reason()}.
refs(Target, Most) when is_integer(Most), Most > 0 ->
    py:call(Target, 'erlang._objects', refs, [Most]).

%% How many references the default node has, and has had.
-spec counts() -> {ok, counts()} | {error, py:reason()}.
counts() ->
    py:call('erlang._objects', counts, []).

%% Likewise for a node.
-spec counts(py:target()) -> {ok, counts()} | {error, py:reason()}.
counts(Target) ->
    py:call(Target, 'erlang._objects', counts, []).

%% --- For py ---------------------------------------------------------------------------------------

%% What a call with `return => ref` asks of the node.
-spec call_request(py:name(), py:name(), [term()], map()) -> {py:name(), py:name(), [term()]}.
call_request(M, F, Args, Options) ->
    Owner = owner(Options),
    {'erlang._objects', call, [Owner, M, F, Args, maps:get(kwargs, Options, [])]}.

%% The node to ask about an object, and the arguments that say which and how: the last two are
%% keyword arguments and who is to own a reference to the result, [] for the result itself.
-spec options(ref(), options()) -> {node(), Object :: tuple(), py:kwargs(), owner() | []}.
options({'$py_object', Node, Creation, Id, _}, Options) ->
    Owner = case Options of
        #{return := ref} -> owner(Options);
        #{} -> []
    end,
    {Node, {Node, Creation, Id}, maps:get(kwargs, Options, []), Owner}.

-spec owner(map()) -> owner().
owner(Options) ->
    case maps:get(owner, Options, self()) of
        Owner when ?is_owner(Owner) -> Owner;
        _ -> error(badarg)
    end.
