%% Takes the large messages of one channel to its node, and whatever follows them, for the
%% py_channel_link that started it: the link does not wait for them.
%%
%%   link ── '$send', '$item' ──▶ py_channel_carrier ── {'$py_channel', Link, [Item]} ──▶ {py, Node}
%%
%% What waits here is within the channel's credit. Ends with the link, or when it is stopped.
-module(py_channel_carrier).

-export([start_link/1, stop/1]).
-export([init/2]).

-include("py_channel.hrl").

-spec start_link(node()) -> pid().
start_link(Node) ->
    proc_lib:spawn_opt(?MODULE, init, [self(), Node], [link, {message_queue_data, off_heap}]).

-spec stop(pid() | none) -> ok.
stop(none) ->
    ok;
stop(Carrier) ->
    unlink(Carrier),
    exit(Carrier, shutdown),
    ok.

-spec init(pid(), node()) -> no_return().
init(Link, Node) ->
    receive
        Message -> take(Message, Link, Node)
    end.

-spec take(term(), pid(), node()) -> no_return().
take({'$send', Ch, Cost, Term}, Link, Node) ->
    gather(Ch, Cost, [Term], 1, Link, Node);
take({'$item', Item}, Link, Node) ->
    deliver(Item, Link, Node);
take(_, Link, Node) ->
    init(Link, Node).

%% Small ones that stand in a row go together. A large one goes alone, so that who receives it holds
%% no other's bytes.
-spec gather(pid(), non_neg_integer(), [term()], pos_integer(), pid(), node()) -> no_return().
gather(Ch, Cost, Terms, N, Link, Node) when N < ?MAX_BATCH, Cost < ?MAX_BATCH_BYTES ->
    receive
        {'$send', Ch, Own, Term} when Own < ?MAX_BATCH_BYTES ->
            gather(Ch, Cost + Own, [Term | Terms], N + 1, Link, Node);
        {'$send', Ch, Own, Term} ->
            send(batch(Ch, Cost, Terms), Link, Node),
            gather(Ch, Own, [Term], 1, Link, Node);
        {'$item', Item} ->
            send(batch(Ch, Cost, Terms), Link, Node),
            deliver(Item, Link, Node)
    after 0 ->
        deliver(batch(Ch, Cost, Terms), Link, Node)
    end;
gather(Ch, Cost, Terms, _, Link, Node) ->
    deliver(batch(Ch, Cost, Terms), Link, Node).

-spec batch(pid(), non_neg_integer(), [term()]) -> tuple().
batch(Ch, Cost, Terms) -> {send, Ch, Cost, list_to_tuple(lists:reverse(Terms))}.

-spec deliver(tuple(), pid(), node()) -> no_return().
deliver(Item, Link, Node) ->
    send(Item, Link, Node),
    init(Link, Node).

-spec send(tuple(), pid(), node()) -> ok.
send(Item, Link, Node) ->
    _ = erlang:send({py, Node}, {'$py_channel', Link, [Item]}, [noconnect]),
    ok.
