%% The BEAM's half of the chat: a pool of Python nodes behind a web server, and the rooms.
%%
%% A room is a group of `pg`, so it may span BEAMs as well. A member is a process here that passes on what
%% is said to the Python process it stands for, and ends with it.
-module(chat).

-export([start/2]).

%% Serves the chat on a port; 0: any. Returns the one it is.
-spec start([node()], inet:port_number()) -> {ok, inet:port_number()}.
start(Nodes, Port) ->
    {ok, _} = application:ensure_all_started(sidewinder),
    {ok, _} = pg:start(chat),
    ok = py:register_function(chat_join, fun([Room, Pid]) -> join(Room, Pid) end),
    ok = py:register_function(chat_say, fun([Room, Text]) -> say(Room, Text) end),
    {ok, _} = py_pool:start(chatters, #{nodes => Nodes}),
    {ok, Front} = front:start(#{target => chatters, app => <<"chat:app">>, port => Port}),
    {ok, front:port(Front)}.

join(Room, Pid) ->
    Self = self(),
    Member = spawn(fun() ->
        Monitor = monitor(process, Pid),
        ok = pg:join(chat, Room, self()),
        Self ! {self(), joined},
        pass_on(Pid, Monitor)
    end),
    receive {Member, joined} -> ok end.

pass_on(Pid, Monitor) ->
    receive
        {said, _} = Said -> Pid ! Said, pass_on(Pid, Monitor);
        {'DOWN', Monitor, process, Pid, _} -> ok
    end.

say(Room, Text) ->
    _ = [Member ! {said, Text} || Member <- pg:get_members(chat, Room)],
    ok.
