#!/usr/bin/env python3
"""Writes frames.txt: what the `erl` on this machine sends to a hidden peer, one frame a line, for the C++ tests.

    tests/data/make_frames.py > tests/data/frames.txt

A line is: what was done, the framing, the control message's number, the frame without its length in hexadecimal.
Starts an epmd of its own on a free port, and ends it and the node again.
"""

from __future__ import annotations

import os
import pathlib
import socket
import subprocess
import sys
import time
from collections.abc import Callable

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent / "hostile"))

from raw_peer import (  # noqa: E402
    FRAGMENTS,
    HIDDEN_FLAGS,
    SPAWN_REQUEST,
    Atom,
    RawPeer,
    decode,
    epmd_port,
)

EXIT_PAYLOAD, SEND_SENDER, ALIAS = 0x400000, 0x80000, 1 << 35
LONGEST_FRAGMENT = 200  # of fragments only the beginning is written: the rest is the message's
PLAIN = HIDDEN_FLAGS & ~(FRAGMENTS | EXIT_PAYLOAD | SEND_SENDER | ALIAS)

# What the node does, with Peer, our pid, Node, our node, and Self, its own process.
STEPS = {
    "send to a pid": "Peer ! hello",
    "send to a name": "{server, Node} ! hello",
    "send to a pid, traced": "seq_trace:set_token(label, 17), Peer ! hello, seq_trace:set_token([])",
    "send to a name, traced": (
        "seq_trace:set_token(label, 17), {server, Node} ! hello, seq_trace:set_token([])"
    ),
    "link and unlink": "link(Peer), unlink(Peer)",
    "monitor a pid": "erlang:monitor(process, Peer)",
    "monitor a name": "erlang:monitor(process, {server, Node})",
    "demonitor": "erlang:demonitor(erlang:monitor(process, {server, Node}))",
    "exit signal": "exit(Peer, {shutdown, [1, 2]})",
    "exit signal, traced": (
        "seq_trace:set_token(label, 17), exit(Peer, kill), seq_trace:set_token([])"
    ),
    "exit of a linked process": "spawn(fun() -> link(Peer), exit({badarg, []}) end)",
    "group leader": "group_leader(self(), Peer)",
    "call with an alias": "catch gen_server:call({server, Node}, request, 10)",
    "erpc": "catch erpc:call(Node, math, sqrt, [16.0], 50)",
    "spawn": "catch erlang:spawn_request(Node, math, sqrt, [16.0], [])",
    "spawn_link": "catch erlang:spawn_request(Node, math, sqrt, [16.0], [link, {reply, no}])",
    "spawn, traced": (
        "seq_trace:set_token(label, 17), erlang:spawn_request(Node, m, f, [], [monitor]),"
        "seq_trace:set_token([])"
    ),
    "ping": "spawn(net_adm, ping, [Node])",
    "large message": "node(Peer) =:= 'header@127.0.0.1' andalso (Peer ! binary:copy(<<1>>, 150000))",
}

# A process called driver that evaluates what it is told to and says so when done.
DRIVER = """
register(driver, spawn(fun Loop() -> receive {Peer, Text} ->
    Node = node(Peer),
    {ok, Tokens, _} = erl_scan:string(binary_to_list(Text) ++ "."),
    {ok, Exprs} = erl_parse:parse_exprs(Tokens),
    {Pid, Ref} = spawn_monitor(fun() -> erl_eval:exprs(Exprs, [{'Node', Node}, {'Peer', Peer}]) end),
    receive {'DOWN', Ref, _, Pid, _} -> timer:sleep(100), Peer ! done end, Loop() end end)),
register(target, spawn(fun() -> receive stop -> exit({stopped, now}) end end)),
register(aliased, spawn(fun Loop() -> receive {To, Message} -> To ! Message, Loop() end end)).
"""


def frames_until_done(peer: RawPeer) -> list[bytes]:
    frames: list[bytes] = []
    while True:
        deadline = time.monotonic() + 10
        size = int.from_bytes(peer._receive(4, deadline), "big")
        body = peer._receive(size, deadline)
        if not body:
            peer.tick()
            continue
        if body.endswith(b"done"):
            return frames
        frames.append(body)


def number_of(body: bytes) -> int:
    """The control message's number; 0 where the frame is a later fragment."""
    if body[1:2] == b"F":
        return 0
    at = 2 if body[:1] == b"p" else 19 if body[1:2] == b"E" else 3
    return int(decode(body, at)[0][0])


def record(peer: RawPeer, name: str, framing: str) -> None:
    for body in frames_until_done(peer):
        kept = body if framing != "header" or body[1:2] == b"D" else body[:LONGEST_FRAGMENT]
        print(f"{name}|{framing}|{number_of(body)}|{kept.hex()}")


def drive(peer: RawPeer, framing: str) -> None:
    for name, text in STEPS.items():
        peer.reg_send("driver", (peer.pid(), text))
        record(peer, name, framing)

    def then_done(name: str) -> None:
        peer.reg_send("driver", (peer.pid(), "ok"))
        record(peer, name, framing)

    arguments = (Atom("erlang"), Atom("node"), 0)
    peer.send_control(
        (SPAWN_REQUEST, peer.ref(), peer.pid(), peer.pid(), arguments, [Atom("monitor")]), []
    )
    then_done("reply to a spawn request, and its end")
    peer.send_control(
        (SPAWN_REQUEST, peer.ref(), peer.pid(), peer.pid(), arguments, [(Atom("priority"), 5)]), []
    )
    then_done("refusal of a spawn request")
    peer.send_control((19, peer.pid(), Atom("nobody"), peer.ref()))
    then_done("down of a missing name")
    peer.reg_send("aliased", (peer.ref(), Atom("hello")))
    then_done("send to an alias")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def main() -> None:
    epmd = free_port()
    environment = os.environ | {"ERL_EPMD_PORT": str(epmd), "ERL_EPMD_ADDRESS": "127.0.0.1"}
    daemon = subprocess.Popen(["epmd"], env=environment)
    options = ["-name", "golden@127.0.0.1", "-setcookie", "golden", "-start_epmd", "false"]
    command = ["erl", "-noshell", "-noinput", *options]
    wait_for(lambda: can_connect(epmd))
    node = subprocess.Popen([*command, "-eval", DRIVER], env=environment)
    try:
        wait_for(lambda: epmd_port("127.0.0.1", "golden", epmd) is not None)
        port = epmd_port("127.0.0.1", "golden", epmd)
        assert port
        time.sleep(1)  # for -eval
        for framing, flags in (("header", HIDDEN_FLAGS), ("pass-through", PLAIN)):
            with RawPeer("127.0.0.1", port, f"{framing}@127.0.0.1", flags) as peer:
                peer.creation = 77
                drive(peer.connect("golden"), framing)
    finally:
        node.kill()
        daemon.kill()
        node.wait()
        daemon.wait()


def can_connect(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port)).close()
    except OSError:
        return False
    return True


def wait_for(happens: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not happens():
        assert time.monotonic() < deadline, "epmd or the node does not come up"
        time.sleep(0.1)


if __name__ == "__main__":
    main()
