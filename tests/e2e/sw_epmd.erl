%% An epmd module for BEAMs without epmd: every node listens on the port given by SW_E2E_PORT.
-module(sw_epmd).

-export([start_link/0, register_node/2, register_node/3, port_please/2, port_please/3, address_please/3,
         listen_port_please/2, names/1]).

start_link() -> ignore.

register_node(Name, Port) -> register_node(Name, Port, inet_tcp).
register_node(_, _, _) -> {ok, 4 + rand:uniform(1000)}.

port_please(Name, Host) -> port_please(Name, Host, infinity).
port_please(_, _, _) -> {port, port(), 6}.

address_please(_, _, inet) -> {ok, {127, 0, 0, 1}, port(), 6};
address_please(_, _, inet6) -> {ok, {0, 0, 0, 0, 0, 0, 0, 1}, port(), 6}.

listen_port_please(_, _) -> {ok, 0}.

names(_) -> {error, address}.

port() -> list_to_integer(os:getenv("SW_E2E_PORT")).
