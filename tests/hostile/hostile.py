#!/usr/bin/env python3
"""Throws at a node what no well-behaved peer would send, and tells how the node took it.

    hostile.py HOST PORT COOKIE NODE [--seconds N] [--seed S] [--patience N] [--only TEXT] [--big] [--quiet] [--list]

PORT is the node's distribution port (0: ask epmd), COOKIE may be @FILE. Every attack runs once; with --seconds, random
ones go on until the time is over. One line an attack:

    ok     frame: an unknown kind of header -> closed (end of stream)

`closed` the link went, `replied` an answer came, `ignored` the link lives and nothing came. A witness, a peer that
behaves, stays connected all the while and is answered after every attack: a node that hurts it has failed.
Exit code: 0 all as it should be, 1 not so, 2 the node cannot be reached at all.
"""

from __future__ import annotations

import argparse
import pathlib
import random
import socket
import struct
import sys
import threading
import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from raw_peer import (
    ALIAS_SEND,
    ALTACT_SIG_SEND,
    DEMONITOR_P,
    EXIT,
    EXIT2,
    FRAGMENTS,
    GROUP_LEADER,
    HIDDEN_FLAGS,
    LINK,
    MONITOR_P,
    MONITOR_P_EXIT,
    NAME_ME,
    PAYLOAD_EXIT,
    PAYLOAD_EXIT2,
    PAYLOAD_MONITOR_P_EXIT,
    REG_SEND,
    SEND,
    SEND_SENDER,
    SPAWN_REPLY,
    SPAWN_REQUEST,
    UNLINK_ID,
    UNLINK_ID_ACK,
    Atom,
    Closed,
    Improper,
    Message,
    Pid,
    Raw,
    RawPeer,
    Ref,
    Refused,
    digest,
    encode,
    epmd_port,
)

CLOSED, REPLIED, IGNORED = "closed", "replied", "ignored"
ANY = (CLOSED, REPLIED, IGNORED)
PATIENCE = 10.0  # seconds for an answer that has to come
HANDSHAKE_LIMIT = (
    10.0  # seconds, beside the patience, after which no half-open connection may be left
)
PASS_THROUGH = HIDDEN_FLAGS & ~FRAGMENTS
EMPTY = Atom("")
NO_ANSWERS = (LINK, MONITOR_P, DEMONITOR_P)  # what a node may also do about its callers

Outcome = tuple[str, str]


@dataclass(frozen=True)
class Target:
    host: str
    port: int
    cookie: str
    node: str
    witness: str = "witness@127.0.0.1"


@dataclass(frozen=True)
class Attack:
    name: str
    allowed: tuple[str, ...]
    run: Callable[[Target, random.Random], Outcome]
    weight: int = 20  # how often it comes up at random
    big: bool = False


ATTACKS: list[Attack] = []
_names = 0


def fresh_name() -> str:
    """A few names over and over: a node must also bear that its peers come back."""
    global _names
    _names += 1
    return f"hostile{_names % 16}@127.0.0.1"


def opened(target: Target, flags: int = HIDDEN_FLAGS, name: str | None = None) -> RawPeer:
    return RawPeer(target.host, target.port, name or fresh_name(), flags, timeout=PATIENCE)


def linked(target: Target, flags: int = HIDDEN_FLAGS) -> RawPeer:
    """A peer that was let in, on a link that works, and has heard the node's greeting to its py_callback."""
    peer = opened(target, flags).connect(target.cookie)
    greeting = peer.receive(PATIENCE)
    if greeting.payload != (Atom("$py_hello"), py_of(peer)):
        raise Refused(f"a greeting was due, not {short(greeting)}")
    return peer


def py_of(peer: RawPeer) -> Pid:
    """The pid of `py`, the node's first process."""
    return Pid(peer.node, 1, 0, peer.node_creation)


def short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def answer(message: Message) -> str:
    """What a signal says, without whom it is for."""
    payload = message.payload
    if isinstance(payload, tuple) and len(payload) == 2 and isinstance(payload[0], Ref):
        payload = payload[1]
    return short(message.control if payload is None else payload)


# Before the link: the handshake. Each attack here does as it likes with a socket, and the node has to hang up.


def handshake(name: str, act: Callable[[RawPeer, Target], object], **options: Any) -> None:
    """Registers an attack that `act`s on a fresh connection, after which the node must close it by itself."""

    def run(target: Target, _: random.Random) -> Outcome:
        with opened(target, **options) as peer:
            try:
                act(peer, target)
                while True:
                    peer.receive_packet(PATIENCE)
            except TimeoutError:
                return "left open", ""
            except (Closed, Refused) as error:
                return CLOSED, str(error)

    ATTACKS.append(Attack(f"handshake: {name}", (CLOSED,), run))


def accepted(peer: RawPeer) -> int:
    """Goes on until the node's challenge is here."""
    peer.send_packet(peer.name_packet())
    if peer.receive_status() == "alive":
        peer.send_packet(b"strue")
    return peer.receive_challenge()


def named(name: str | bytes) -> Callable[[RawPeer, Target], None]:
    return lambda peer, _: peer.send_packet(peer.name_packet(name))


def packet(data: bytes) -> Callable[[RawPeer, Target], None]:
    return lambda peer, _: peer.send_packet(data)


def raw(data: bytes) -> Callable[[RawPeer, Target], None]:
    return lambda peer, _: peer.send_bytes(data)


def proof(make: Callable[[RawPeer, Target, int], bytes]) -> Callable[[RawPeer, Target], None]:
    return lambda peer, target: peer.send_packet(make(peer, target, accepted(peer)))


def as_the_node(peer: RawPeer, target: Target) -> None:
    peer.send_packet(peer.name_packet(target.node))


def as_the_witness(peer: RawPeer, target: Target) -> None:
    peer.name = target.witness
    challenge = accepted(peer)
    peer.send_packet(b"r" + struct.pack(">I", 1) + digest(target.cookie + "x", challenge))


OLD_NAME = b"n" + struct.pack(">HI", 5, 0x7FBC) + b"old@127.0.0.1"

handshake("a wrong cookie", lambda peer, target: peer.connect(target.cookie + "x"))
handshake("an empty cookie", lambda peer, _: peer.connect(""))
handshake("the witness's name without the cookie", as_the_witness)
handshake("the node's own name", as_the_node)
handshake("protocol version 5", packet(OLD_NAME))
handshake("no flags at all", lambda peer, _: peer.send_packet(peer.name_packet(flags=0)))
handshake("no MAP_TAG", lambda p, _: p.send_packet(p.name_packet(flags=0x7DD7FBC & ~0x4000000)))
handshake("a request for a name", lambda p, _: p.send_packet(p.name_packet("h", p.flags | NAME_ME)))
handshake("an empty packet", packet(b""))
handshake("a packet of one byte", packet(b"N"))
handshake("a packet of 64 KB", packet(b"N" * 65535))
handshake("a name of 1000 bytes", named("a" * 900 + "@" + "h" * 99))
handshake("a name cut short", packet(b"N" + struct.pack(">QIH", HIDDEN_FLAGS, 5, 200) + b"a@h"))
handshake("a proof before the name", packet(b"r" + bytes(20)))
handshake("an unknown packet", packet(b"Z" * 20))
handshake("HTTP", raw(b"GET / HTTP/1.1\r\nHost: example.org\r\n\r\n"))
handshake("a TLS client", raw(bytes.fromhex("16030100c8010000c40303") + bytes(190)))
handshake("0xFF", raw(b"\xff" * 4096))
handshake(
    "a proof of the wrong size", proof(lambda p, t, c: b"r" + bytes(4) + digest(t.cookie, c)[:15])
)
handshake("a proof too long", proof(lambda p, t, c: b"r" + bytes(4) + digest(t.cookie, c) + b"x"))
handshake("the name again instead of a proof", proof(lambda p, t, c: p.name_packet()))
handshake("a status instead of a proof", proof(lambda p, t, c: b"strue"))
BAD_NAMES: tuple[str | bytes, ...] = (
    "",
    "@",
    "nohost@",
    "@nohost",
    "a@b@c",
    "new\nline@host",
    "nul\0@host",
    b"\xff\xfe@host",
)
for bad in BAD_NAMES:
    handshake(f"the name {bad!r}", named(bad))


def attack(name: str, *allowed: str, **options: Any) -> Callable[[Any], Any]:
    """Registers a function (target, random) -> outcome."""

    def register(run: Callable[[Target, random.Random], Outcome]) -> Any:
        ATTACKS.append(Attack(name, allowed, run, **options))
        return run

    return register


@attack("handshake: gone after every number of bytes", REPLIED)
def gone_early(target: Target, _: random.Random) -> Outcome:
    with opened(target) as model:
        packet = model.name_packet()
    stream = struct.pack(">H", len(packet)) + packet
    for size in range(len(stream) + 1):
        with opened(target) as peer:
            peer.send_bytes(stream[:size])
            if size % 2:
                peer.abort()
    return still_serves(target)


@attack("handshake: gone before the proof", REPLIED)
def gone_before_proof(target: Target, _: random.Random) -> Outcome:
    for _unused in range(20):
        with opened(target) as peer:
            accepted(peer)
    return still_serves(target)


@attack("handshake: hundreds of half-open connections", REPLIED, weight=1)
def half_open(target: Target, chance: random.Random) -> Outcome:
    """Silent ones, half-names and ones that never prove: all must be gone in time, and others get in again."""
    peers: list[RawPeer] = []
    try:
        for i in range(300):
            try:
                peer = opened(target)
                peers.append(peer)
                if i % 3 == 1:
                    peer.send_bytes(b"\0\x40N")
                elif i % 3 == 2:
                    peer.send_packet(peer.name_packet(f"halfopen{i}@127.0.0.1"))
            except (OSError, Closed):
                continue  # refused at the door is an answer too
        deadline = time.monotonic() + HANDSHAKE_LIMIT + PATIENCE
        left = sum(not hung_up(peer, deadline) for peer in peers)
    finally:
        for peer in peers:
            peer.close()
    outcome, detail = still_serves(target)
    return ("left open", f"{left} of {len(peers)}") if left else (outcome, detail)


def hung_up(peer: RawPeer, deadline: float) -> bool:
    try:
        while True:
            peer.receive_packet(max(0.01, deadline - time.monotonic()))
    except TimeoutError:
        return False
    except Closed:
        return True


def still_serves(target: Target) -> Outcome:
    with linked(target) as peer:
        return (REPLIED, "a new peer is served") if peer.ping(PATIENCE) else ("wrong", "ping")


@attack("handshake: the same name again takes the old link's place", REPLIED)
def replaces(target: Target, _: random.Random) -> Outcome:
    name = fresh_name()
    with opened(target, name=name).connect(target.cookie) as old:
        old.ping(PATIENCE)
        with opened(target, name=name).connect(target.cookie) as new:
            if not new.ping(PATIENCE):
                return "wrong", "the new link does not work"
            try:
                old.ping(PATIENCE)
            except Closed:
                return REPLIED, "the old link is closed, the new one works"
            except TimeoutError:
                pass
    return "wrong", "both links stay"


@attack("handshake: the same name again, and the old link is to stay", CLOSED)
def keeps(target: Target, _: random.Random) -> Outcome:
    name = fresh_name()
    with opened(target, name=name).connect(target.cookie) as old:
        old.ping(PATIENCE)
        try:
            opened(target, name=name).connect(target.cookie, replace=False).close()
        except Refused as error:
            return (CLOSED, str(error)) if old.ping(PATIENCE) else ("wrong", "the old link is dead")
    return "wrong", "both links stay"


# On the link: frames. What does not close the link must leave it in order, so a ping follows on the same one.

Frames = Callable[[RawPeer, random.Random], list[bytes]]


def frames(
    name: str, make: Frames, *allowed: str, flags: int = HIDDEN_FLAGS, **options: Any
) -> None:
    def run(target: Target, chance: random.Random) -> Outcome:
        with linked(target, flags) as peer:
            return play(peer, make(peer, chance), allowed)

    ATTACKS.append(Attack(name, allowed, run, **options))


def play(peer: RawPeer, bodies: list[bytes], allowed: tuple[str, ...]) -> Outcome:
    outcome, detail = IGNORED, ""
    try:
        for body in bodies:
            peer.send_frame(body)
        if IGNORED not in allowed:
            while (first := peer.receive(PATIENCE)).control[0] in NO_ANSWERS:
                pass
            outcome, detail = REPLIED, answer(first)
        tag = peer.ref()
        request = (Atom("is_auth"), Atom(peer.name))
        peer.reg_send("net_kernel", (Atom("$gen_call"), (peer.pid(), tag), request))
        pong = encode((tag, Atom("yes")))
        last = b""
        while not (body := peer.receive_body(PATIENCE)).endswith(pong):
            if peer.operation_of(body) not in NO_ANSWERS:
                last = body
        if last:
            message = peer.message_of(last)
            outcome, detail = REPLIED, answer(message) if message else "fragments"
    except Closed as error:
        return CLOSED, str(error)
    except TimeoutError:
        return ("silent" if outcome == IGNORED else "stuck"), detail
    return outcome, detail


MARK = 0x5A5B5C5D


def numbered(marked: bytes, numbers: range) -> list[bytes]:
    """What was encoded with MARK for a number, once for each of `numbers`: encoding 100,000 terms takes many seconds."""
    mark = struct.pack(">I", MARK)
    assert marked.count(mark) == 1
    return [marked.replace(mark, struct.pack(">I", number)) for number in numbers]


def bodies(*data: bytes) -> Frames:
    return lambda peer, chance: list(data)


def controls(*make: Callable[[RawPeer], Any]) -> Frames:
    """Frames of a control tuple alone."""
    return lambda peer, chance: [peer.frame_of(each(peer)) for each in make]


def unknown_pid(peer: RawPeer) -> Pid:
    return Pid(peer.node, 0x00FFFFFE, 77, peer.node_creation)


def old_pid(peer: RawPeer) -> Pid:
    return Pid(peer.node, 5, 0, (peer.node_creation ^ 0x5555) or 1)


def stranger(peer: RawPeer) -> Pid:
    return Pid("stranger@127.0.0.1", 5, 0, 9)


SEQUENCE = struct.pack(">Q", 7)


def first_fragment(number: int, data: bytes, sequence: bytes = SEQUENCE) -> bytes:
    return b"\x83E" + sequence + struct.pack(">Q", number) + b"\0" + data


def next_fragment(number: int, data: bytes, sequence: bytes = SEQUENCE) -> bytes:
    return b"\x83F" + sequence + struct.pack(">Q", number) + data


def body_to_nobody(peer: RawPeer) -> bytes:
    """Control tuple and message of a harmless send, as they stand behind a distribution header."""
    return encode((REG_SEND, peer.pid(), EMPTY, Atom("nobody"))) + encode((1, 2))


frames("frame: ticks", bodies(*[b""] * 1000), IGNORED)
frames("frame: an unknown first byte", bodies(b"\x00hello"), CLOSED)
frames("frame: an unknown kind of header", bodies(b"\x83\x47\x00"), CLOSED)
frames("frame: one byte", bodies(b"\x83"), CLOSED)
frames("frame: a header and nothing", bodies(b"\x83D\x00"), CLOSED)
frames("frame: pass-through where headers were agreed", bodies(b"p\x83h\x00"), CLOSED)
frames(
    "frame: a header where pass-through was agreed",
    bodies(b"\x83D\x00h\x00"),
    CLOSED,
    flags=PASS_THROUGH,
)
frames(
    "frame: pass-through without version byte", bodies(b"ph\x01a\x05"), CLOSED, flags=PASS_THROUGH
)
frames("frame: pass-through and nothing", bodies(b"p"), CLOSED, flags=PASS_THROUGH)
frames("frame: atom cache references", bodies(b"\x83D\x01\x08\x00\x00\x01ah\x02a\x05R\x00"), CLOSED)
frames("frame: 255 atom cache references", bodies(b"\x83D\xff" + b"\xff" * 300), CLOSED)
frames(
    "frame: random bytes", lambda peer, chance: [chance.randbytes(chance.randrange(1, 300))], CLOSED
)
frames("fragments: a cut header", bodies(first_fragment(2, b"")[:11]), CLOSED)
frames("fragments: one that was never begun", bodies(next_fragment(1, b"abc")), CLOSED)
frames("fragments: number 0", bodies(first_fragment(0, b"abc")), CLOSED)
frames(
    "fragments: out of order",
    lambda p, c: [first_fragment(5, body_to_nobody(p)), next_fragment(3, b"x")],
    CLOSED,
)
frames(
    "fragments: two beginnings of one",
    lambda p, c: [first_fragment(2, body_to_nobody(p))] * 2,
    CLOSED,
)
frames(
    "fragments: a beginning of 2^64 - 1 and no more",
    lambda p, c: [first_fragment(2**64 - 1, body_to_nobody(p))],
    IGNORED,
)
frames(
    "fragments: a message cut into single bytes",
    lambda p, c: [
        first_fragment(2001, body_to_nobody(p)[:-1]),
        *[next_fragment(n, b"") for n in range(2000, 1, -1)],
        next_fragment(1, body_to_nobody(p)[-1:]),
    ],
    IGNORED,
)
frames(
    "fragments: 100,000 beginnings and no ends",
    lambda p, c: numbered(
        first_fragment(2, body_to_nobody(p), struct.pack(">Q", MARK)), range(100_000)
    ),
    CLOSED,
    weight=2,
)
frames(
    "fragments: a whole that is no control message",
    lambda p, c: [first_fragment(2, b"m\0\0\0\5"), next_fragment(1, b"hello")],
    CLOSED,
)


def announced(name: str, length: int, *allowed: str) -> None:
    """A frame whose length is announced, and of which only the beginning comes."""

    def run(target: Target, _: random.Random) -> Outcome:
        with linked(target) as peer:
            try:
                peer.send_bytes(struct.pack(">I", length) + b"\x83D\x00" + body_to_nobody(peer))
                peer.receive(0.5)
            except Closed as error:
                return CLOSED, str(error)
            except TimeoutError:
                return IGNORED, "the node waits for the rest"
        return "wrong", "half a frame was answered"

    ATTACKS.append(Attack(name, allowed, run))


announced("frame: a length of 4 GB", 0xFFFFFFFF, CLOSED, IGNORED)
announced("frame: a length of 2 GB, negative when signed", 0x80000000, CLOSED, IGNORED)
announced("frame: a length of 1 MB and 60 bytes of it", 1 << 20, CLOSED, IGNORED)


@attack("frame: one byte at a time", REPLIED)
def one_by_one(target: Target, _: random.Random) -> Outcome:
    with linked(target) as peer:
        tag = peer.ref()
        request = (Atom("$gen_call"), (peer.pid(), tag), (Atom("is_auth"), Atom(peer.name)))
        control = (REG_SEND, peer.pid(), EMPTY, Atom("net_kernel"))
        body = peer.frame_of(control, request)
        for byte in struct.pack(">I", len(body)) + body:
            peer.send_bytes(bytes([byte]))
        return REPLIED, short(peer.await_reply(tag, PATIENCE))


@attack("frame: gone in the middle of one, by close and by reset", REPLIED)
def gone_in_frame(target: Target, _: random.Random) -> Outcome:
    for size in range(0, 60, 3):
        with linked(target) as peer:
            body = peer.frame_of((REG_SEND, peer.pid(), EMPTY, Atom("py")), (1, 2))
            peer.send_bytes((struct.pack(">I", len(body)) + body)[:size])
            if size % 2:
                peer.abort()
    return still_serves(target)


@attack("frame: a call behind one that closes the link, in one write", CLOSED)
def behind_an_error(target: Target, chance: random.Random) -> Outcome:
    """What follows bytes that cannot be trusted must not be acted on."""
    marker = f"SIDEWINDER_HOSTILE_{chance.randrange(10**9)}"
    with linked(target) as peer:
        setting = (Atom("call"), Atom("os"), Atom("environ.__setitem__"), [marker, b"1"])
        stream = b"".join(
            struct.pack(">I", len(body)) + body
            for body in (b"\x83\x47\0", call_frame(peer, setting))
        )
        peer.send_bytes(stream)
        try:
            while True:
                peer.receive(PATIENCE)
        except TimeoutError:
            return "left open", ""
        except Closed as error:
            closed = str(error)
    time.sleep(0.2)
    with linked(target) as peer:
        asked = (Atom("call"), Atom("os"), Atom("environ.get"), [marker, b"0"])
        found = peer.gen_call("py", asked, PATIENCE)
    return ("went on", "the call ran") if found == (Atom("ok"), b"1") else (CLOSED, closed)


@attack("frame: half-closed, then answers are asked for", CLOSED)
def half_closed(target: Target, _: random.Random) -> Outcome:
    with linked(target) as peer:
        peer.reg_send(
            "net_kernel", (Atom("$gen_call"), (peer.pid(), peer.ref()), (Atom("is_auth"), 1))
        )
        peer.socket.shutdown(socket.SHUT_WR)
        try:
            while True:
                peer.receive(PATIENCE)
        except Closed as error:
            return CLOSED, str(error)
        except TimeoutError:
            return "left open", ""


# Control messages.

frames("control: no tuple", bodies(b"\x83D\x00a\x05"), CLOSED)
frames("control: an empty tuple", bodies(b"\x83D\x00h\x00"), CLOSED)
frames("control: no number", controls(lambda p: (Atom("send"), p.pid())), CLOSED)
frames("control: a negative number", controls(lambda p: (-2, p.pid())), CLOSED)
frames(
    "control: unknown numbers",
    lambda p, c: [
        p.frame_of((n, p.pid(), 3), (1, 2)) for n in (0, 9, 10, 38, 99, 10**30 % 2**40)
    ],
    IGNORED,
)
frames("control: SEND without a message", controls(lambda p: (SEND, EMPTY, unknown_pid(p))), CLOSED)
frames("control: SEND to no pid", lambda p, c: [p.frame_of((SEND, EMPTY, 5), 1)], CLOSED)
frames("control: SEND of two elements", lambda p, c: [p.frame_of((SEND, EMPTY), 1)], CLOSED)
frames(
    "control: REG_SEND to no name",
    lambda p, c: [p.frame_of((REG_SEND, p.pid(), EMPTY, 5), 1)],
    CLOSED,
)
frames(
    "control: LINK with a message behind it",
    lambda p, c: [p.frame_of((LINK, p.pid(), unknown_pid(p)), 1)],
    CLOSED,
)
frames("control: LINK to an atom", controls(lambda p: (LINK, p.pid(), Atom("py"))), CLOSED)
frames("control: UNLINK_ID 0", controls(lambda p: (UNLINK_ID, 0, p.pid(), unknown_pid(p))), CLOSED)
frames(
    "control: UNLINK_ID of 100 bytes",
    controls(lambda p: (UNLINK_ID, 2**800, p.pid(), unknown_pid(p))),
    CLOSED,
)
frames(
    "control: MONITOR_P without a reference",
    controls(lambda p: (MONITOR_P, p.pid(), Atom("py"), 5)),
    CLOSED,
)
frames(
    "control: SPAWN_REQUEST without arguments",
    controls(lambda p: (SPAWN_REQUEST, p.ref(), p.pid(), p.pid(), (Atom("m"), Atom("f"), 0), [])),
    CLOSED,
)
frames(
    "control: SPAWN_REQUEST with a bad function",
    lambda p, c: [
        p.frame_of((SPAWN_REQUEST, p.ref(), p.pid(), p.pid(), (Atom("m"), 5, 0), []), [])
    ],
    CLOSED,
)
frames("control: a tuple of 2^32 - 1", bodies(b"\x83D\x00i\xff\xff\xff\xffa\x02"), CLOSED)
frames("control: a number of 4 GB", bodies(b"\x83D\x00h\x02o\xff\xff\xff\xff\x00\x01"), CLOSED)
frames(
    "control: nested 100,000 deep",
    bodies(b"\x83D\x00h\x02a\x63" + b"l\0\0\0\1" * 100_000 + b"j" * 100_001),
    CLOSED,
)

frames(
    "unknown: a message to a missing name",
    lambda p, c: [p.frame_of((REG_SEND, p.pid(), EMPTY, Atom("nobody")), 1)],
    IGNORED,
)
frames(
    "unknown: a message to a missing pid",
    lambda p, c: [
        p.frame_of((SEND, EMPTY, unknown_pid(p)), 1),
        p.frame_of((SEND_SENDER, p.pid(), unknown_pid(p)), 1),
    ],
    IGNORED,
)
frames(
    "unknown: a message to a pid of an earlier run",
    lambda p, c: [p.frame_of((SEND, EMPTY, old_pid(p)), 1)],
    IGNORED,
)
frames(
    "unknown: a message to a pid of another node",
    lambda p, c: [p.frame_of((SEND, EMPTY, stranger(p)), 1)],
    IGNORED,
    CLOSED,
)
frames(
    "unknown: a message to a missing alias",
    lambda p, c: [
        p.frame_of((ALIAS_SEND, p.pid(), p.ref()), 1),
        p.frame_of((ALTACT_SIG_SEND, 4, p.pid(), p.ref()), 1),
    ],
    IGNORED,
)
frames(
    "unknown: a monitor of a missing name",
    controls(lambda p: (MONITOR_P, p.pid(), Atom("nobody"), p.ref())),
    REPLIED,
)
frames(
    "unknown: a monitor of a missing pid",
    controls(lambda p: (MONITOR_P, p.pid(), unknown_pid(p), p.ref())),
    REPLIED,
)
frames(
    "unknown: a monitor of a pid of an earlier run",
    controls(lambda p: (MONITOR_P, p.pid(), old_pid(p), p.ref())),
    REPLIED,
)
frames(
    "unknown: a link to a missing pid", controls(lambda p: (LINK, p.pid(), unknown_pid(p))), REPLIED
)
frames(
    "unknown: an unlink of a missing pid",
    controls(lambda p: (UNLINK_ID, 7, p.pid(), unknown_pid(p))),
    REPLIED,
)
frames(
    "unknown: an end of monitors and links nobody has",
    lambda p, c: [
        p.frame_of((DEMONITOR_P, p.pid(), Atom("py"), p.ref())),
        p.frame_of((DEMONITOR_P, p.pid(), unknown_pid(p), p.ref())),
        p.frame_of((UNLINK_ID_ACK, 9, p.pid(), unknown_pid(p))),
        p.frame_of((MONITOR_P_EXIT, p.pid(), unknown_pid(p), p.ref(), Atom("gone"))),
        p.frame_of((PAYLOAD_MONITOR_P_EXIT, p.pid(), unknown_pid(p), p.ref()), Atom("gone")),
        p.frame_of((SPAWN_REPLY, p.ref(), unknown_pid(p), 2, p.pid())),
    ],
    IGNORED,
)
frames(
    "unknown: exit signals to missing pids",
    lambda p, c: [
        p.frame_of((EXIT, p.pid(), unknown_pid(p), Atom("kill"))),
        p.frame_of((EXIT2, p.pid(), unknown_pid(p), Atom("kill"))),
        p.frame_of((PAYLOAD_EXIT, p.pid(), unknown_pid(p)), Atom("kill")),
        p.frame_of((PAYLOAD_EXIT2, p.pid(), unknown_pid(p)), Atom("kill")),
        p.frame_of((ALTACT_SIG_SEND, 16, p.pid(), unknown_pid(p)), Atom("kill")),
    ],
    IGNORED,
)
frames(
    "unknown: a group leader for a missing pid",
    controls(lambda p: (GROUP_LEADER, p.pid(), unknown_pid(p))),
    IGNORED,
)
frames(
    "forged: a sender of another node",
    lambda p, c: [p.frame_of((REG_SEND, stranger(p), EMPTY, Atom("nobody")), 1)],
    IGNORED,
    CLOSED,
)
frames(
    "forged: a monitor for another node",
    controls(lambda p: (MONITOR_P, stranger(p), Atom("nobody"), p.ref())),
    *ANY,
)
frames(
    "forged: a link for another node", controls(lambda p: (LINK, stranger(p), unknown_pid(p))), *ANY
)
frames(
    "forged: one monitor reference twice",
    lambda p, c: [p.frame_of((MONITOR_P, p.pid(), Atom("py"), Ref(p.name, p.creation, (1, 2, 3))))]
    * 2,
    *ANY,
)
frames(
    "many: 20,000 monitors of py, left behind",
    lambda p, c: [p.frame_of((MONITOR_P, p.pid(), Atom("py"), p.ref())) for _ in range(20_000)],
    IGNORED,
    weight=2,
)
frames(
    "many: 20,000 monitors of a missing name",
    lambda p, c: [p.frame_of((MONITOR_P, p.pid(), Atom("nobody"), p.ref())) for _ in range(20_000)],
    REPLIED,
    IGNORED,
    weight=2,
)


def spawn(name: str, mfa: Any, arguments: Any, options: Any = None) -> None:
    frames(
        f"spawn: {name}",
        lambda p, c: [
            p.frame_of(
                (
                    SPAWN_REQUEST,
                    p.ref(),
                    p.pid(),
                    p.pid(),
                    mfa,
                    [Atom("monitor")] if options is None else options,
                ),
                arguments,
            )
        ],
        REPLIED,
        CLOSED,
    )


spawn("a missing function", (Atom("no_such_module"), Atom("f"), 0), [])
spawn("arguments that are no list", (Atom("math"), Atom("sqrt"), 1), 16)
spawn("an improper list of arguments", (Atom("math"), Atom("sqrt"), 1), Improper((1,), 2))
spawn("another arity than arguments", (Atom("math"), Atom("sqrt"), 3), [1])
spawn(
    "unknown options",
    (Atom("math"), Atom("sqrt"), 1),
    [1.0],
    [Atom("monitor"), (Atom("no_such_option"), 1)],
)
spawn("options that are none", (Atom("math"), Atom("sqrt"), 1), [1.0], [Atom("monitor"), 5])
spawn("erpc with wrong arguments", (Atom("erpc"), Atom("execute_call"), 4), [1, 2])
spawn(
    "erpc of a missing function",
    (Atom("erpc"), Atom("execute_call"), 4),
    [Ref("a@b", 1, (1, 2, 3)), Atom("no_such"), Atom("f"), []],
)

# Calls: well framed, and with an argument nobody should have to read.


def call(
    name: str, argument: Any, *allowed: str, flags: int = HIDDEN_FLAGS, **options: Any
) -> None:
    """gen_server:call of a Python function with one argument, given as a term or as Raw bytes."""

    def make(peer: RawPeer, _: random.Random) -> list[bytes]:
        value = argument(peer) if callable(argument) else argument
        return [call_frame(peer, (Atom("call"), Atom("builtins"), Atom("id"), [value]))]

    frames(f"call: {name}", make, *(allowed or (REPLIED, CLOSED)), flags=flags, **options)


def call_frame(peer: RawPeer, request: Any, caller: Any = None) -> bytes:
    who = caller if caller is not None else (peer.pid(), peer.ref())
    return peer.frame_of(
        (REG_SEND, peer.pid(), EMPTY, Atom("py")), (Atom("$gen_call"), who, request)
    )


def nested(depth: int) -> Raw:
    return Raw(b"l\0\0\0\1" * depth + b"j" * (depth + 1))


call("a list 900 deep", nested(900), REPLIED)
call("a list 1,001 deep", nested(1001), REPLIED, CLOSED)
call("a list 100,000 deep", nested(100_000))
call("a list 3,000,000 deep", nested(3_000_000), weight=2)
call("tuples 100,000 deep", Raw(b"h\x01" * 100_000 + b"j"))
call("maps 100,000 deep", Raw(b"t\0\0\0\1a\1" * 100_000 + b"j"))
call("lists in tails 100,000 deep", Raw(b"l\0\0\0\1a\1" * 100_000 + b"j"))
call("a tuple of 2^32 - 1", Raw(b"i\xff\xff\xff\xff"))
call("a list of 2^32 - 1", Raw(b"l\xff\xff\xff\xff"))
call("a list of 2^31, negative when signed", Raw(b"l\x80\0\0\0"))
call("a list of none", Raw(b"l\0\0\0\0j"))
call("a map of 2^31", Raw(b"t\x80\0\0\0"))
call("a binary of 2^32 - 1", Raw(b"m\xff\xff\xff\xff"))
call("a binary of 2^31", Raw(b"m\x80\0\0\0abc"))
call("an integer of 2^32 - 1 bytes", Raw(b"o\xff\xff\xff\xff\0abc"))
call("an integer of 1,000,000 bytes", 1 << 8_000_000)
call("an integer whose sign is 7", Raw(b"n\x01\x07\x05"))
call("a string longer than its frame", Raw(b"k\xff\xffabc"))
call("an atom of 256 characters", Raw(b"v\x01\x00" + b"a" * 256))
call("an atom that is no UTF-8", Raw(b"w\x02\xff\xfe"))
call("an atom cache reference", Raw(b"R\x00"))
call("a float that is no number", Raw(b"F" + struct.pack(">d", float("nan"))))
call("an infinite float", Raw(b"F" + struct.pack(">d", float("inf"))))
call("an old float of rubbish", Raw(b"c" + b"x" * 31))
call("a bit string of 0 bits in its last byte", Raw(b"M\0\0\0\1\0x"))
call("a bit string of 9 bits in its last byte", Raw(b"M\0\0\0\1\x09x"))
call("a bit string of no bytes", Raw(b"M\0\0\0\0\1"))
call("a reference of 65,535 words", Raw(b"Z\xff\xff" + encode(Atom("a@b")) + bytes(4)))
call("a reference of no words", Raw(b"Z\0\0" + encode(Atom("a@b")) + bytes(4)))
call("a pid whose node is an integer", Raw(b"X" + encode(5) + bytes(12)))
call("a port that is cut", Raw(b"x" + encode(Atom("a@b")) + bytes(3)))
call("a fun smaller than itself", Raw(b"p\0\0\0\x05" + bytes(40)))
call("a fun with 2^32 - 1 variables", Raw(b"p\0\0\x01\0" + bytes(21) + b"\xff" * 4 + bytes(200)))
call(
    "an export of a bignum arity",
    Raw(b"q" + encode(Atom("m")) + encode(Atom("f")) + encode(2**70)),
)
call("a compressed term inside a term", Raw(b"P\0\0\0\5" + zlib.compress(b"a\1")))
call("a map with 1 and 1.0", Raw(b"t\0\0\0\2" + encode(1) + b"j" + encode(1.0) + b"j"), REPLIED)
call("a map with one key twice", Raw(b"t\0\0\0\2" + (encode(1) + b"j") * 2), REPLIED, CLOSED)
call("a map with a list as a key", Raw(b"t\0\0\0\1" + encode([1]) + b"j"), REPLIED)
call("a map with a map as a key", Raw(b"t\0\0\0\1" + b"t\0\0\0\0" + b"j"), REPLIED)
for tag in (0, 1, 67, 69, 73, 78, 81, 121, 200, 255):
    call(f"a term with tag {tag}", Raw(bytes([tag]) + bytes(20)))


def request(name: str, term: Any, *allowed: str) -> None:
    frames(f"request: {name}", lambda p, c: [call_frame(p, term)], *(allowed or (REPLIED,)))


request("an integer", 5)
request("an unknown word", (Atom("no_such_request"), 1))
request("call with numbers for names", (Atom("call"), 1, 2, 3))
request("call without a list", (Atom("call"), Atom("math"), Atom("sqrt"), 16))
request("call with an improper list", (Atom("call"), Atom("math"), Atom("sqrt"), Improper((1,), 2)))
request("call with keywords that are no map", (Atom("call"), Atom("math"), Atom("sqrt"), [1], 5))
request(
    "call with a keyword that is no name", (Atom("call"), Atom("math"), Atom("sqrt"), [1], {5: 5})
)
request("call of a dotted nothing", (Atom("call"), Atom("os"), Atom("..."), []))
request("call with a name of 10,000 characters", (Atom("call"), b"x" * 10_000, b"y" * 10_000, []))
request("call with a name of zero bytes", (Atom("call"), b"\0", b"\0", []))
request("eval of what is no code", (Atom("eval"), 5, {}))
request("eval of what does not parse", (Atom("eval"), b"((((", {}))
request("eval nested too deep to parse", (Atom("eval"), b"(" * 5000 + b")" * 5000, {}))
request("eval with locals that are no map", (Atom("eval"), b"1", 7))
request("eval that ends the interpreter", (Atom("eval"), b"__import__('sys').exit(3)", {}))
request("eval that raises a base exception", (Atom("exec"), b"raise KeyboardInterrupt"))
request("eval of endless recursion", (Atom("exec"), b"def f(): return f()\nf()"))
request("eval of an unencodable result", (Atom("eval"), b"object()", {}))
request(
    "eval of a result that holds itself", (Atom("eval"), b"(lambda a: (a.append(a), a)[1])([])", {})
)
request("hello with nothing", (Atom("hello"), []))

frames(
    "request: a caller that is no pid",
    lambda p, c: [call_frame(p, 5, caller=(5, p.ref()))],
    IGNORED,
    CLOSED,
)
frames(
    "request: a caller of another node",
    lambda p, c: [call_frame(p, 5, caller=(stranger(p), p.ref()))],
    *ANY,
)
frames(
    "request: a caller that is no pair",
    lambda p, c: [call_frame(p, 5, caller=Atom("me"))],
    IGNORED,
    CLOSED,
)
frames(
    "request: a tag as large as a message",
    lambda p, c: [call_frame(p, 5, caller=(p.pid(), b"x" * 1_000_000))],
    REPLIED,
)
frames(
    "request: a cast nobody understands",
    lambda p, c: [p.frame_of((REG_SEND, p.pid(), EMPTY, Atom("py")), (Atom("$gen_cast"), 5))],
    IGNORED,
)
frames(
    "request: a plain message nobody understands",
    lambda p, c: [p.frame_of((REG_SEND, p.pid(), EMPTY, Atom("py")), [1, 2, 3])],
    IGNORED,
)
frames(
    "request: a batch of rubbish",
    lambda p, c: [
        p.frame_of(
            (REG_SEND, p.pid(), EMPTY, Atom("py")),
            (
                Atom("$py_batch"),
                [1, (Atom("call"), -1), (Atom("cancel"), 2**70), (Atom("cancel"), 5)],
            ),
        )
    ],
    *ANY,
)
frames(
    "request: a batch that is no list",
    lambda p, c: [
        p.frame_of((REG_SEND, p.pid(), EMPTY, Atom("py")), (Atom("$py_batch"), Improper((1,), 2)))
    ],
    *ANY,
)
frames(
    "request: is_auth asked wrongly",
    lambda p, c: [
        p.frame_of(
            (REG_SEND, p.pid(), EMPTY, Atom("net_kernel")),
            (Atom("$gen_call"), (p.pid(), p.ref()), [1]),
        )
    ],
    *ANY,
)


# Items for channels.


def items_frame(peer: RawPeer, *items: Any, whole: Any = None) -> bytes:
    message = whole if whole is not None else (Atom("$py_channel"), list(items))
    return peer.frame_of((REG_SEND, peer.pid(), EMPTY, Atom("py")), message)


def channel_items(name: str, make: Callable[[RawPeer], list[Any]], *allowed: str) -> None:
    frames(f"channel: {name}", lambda p, c: [items_frame(p, *make(p))], *(allowed or ANY))


channel_items("an integer", lambda p: [1])
channel_items("an empty tuple", lambda p: [()])
channel_items("an unknown word", lambda p: [(Atom("no_such"), p.pid())], IGNORED)
channel_items("new without a bound", lambda p: [(Atom("new"), 1, Atom("terms"))])
channel_items("new of an unknown kind", lambda p: [(Atom("new"), 1, Atom("odd"), 5)], REPLIED)
channel_items("new with a negative bound", lambda p: [(Atom("new"), 1, Atom("terms"), -1)])
channel_items(
    "new with a huge bound", lambda p: [(Atom("new"), 1, Atom("terms"), 1 << 63)], REPLIED
)
channel_items(
    "new with a bound that is no word", lambda p: [(Atom("new"), 1, Atom("terms"), 1 << 80)]
)
channel_items("attach to nothing", lambda p: [(Atom("attach"), 1, unknown_pid(p))], REPLIED)
channel_items("attach to an earlier node's", lambda p: [(Atom("attach"), 1, old_pid(p))], REPLIED)
channel_items("send to nothing", lambda p: [(Atom("send"), unknown_pid(p), 5, (1, 2))], IGNORED)
channel_items("send of no tuple", lambda p: [(Atom("send"), unknown_pid(p), 5, [1, 2])])
channel_items("send of a negative cost", lambda p: [(Atom("send"), unknown_pid(p), -5, (1,))])
channel_items(
    "recv from nothing", lambda p: [(Atom("recv"), unknown_pid(p), p.ref(), 1 << 60)], REPLIED
)
channel_items("unrecv of nothing", lambda p: [(Atom("unrecv"), unknown_pid(p), 5)], REPLIED)
channel_items("flush of nothing", lambda p: [(Atom("flush"), 1 << 62, unknown_pid(p))], REPLIED)
channel_items(
    "returned by nobody", lambda p: [(Atom("returned"), unknown_pid(p), 1 << 62)], IGNORED
)
channel_items(
    "10,000 at once", lambda p: [(Atom("info"), n, unknown_pid(p)) for n in range(10_000)]
)
frames(
    "channel: items that are no list",
    lambda p, c: [items_frame(p, whole=(Atom("$py_channel"), Improper((1,), 2)))],
    *ANY,
)
frames(
    "channel: items for somebody of another node",
    lambda p, c: [items_frame(p, whole=(Atom("$py_channel"), stranger(p), []))],
    CLOSED,
)
frames(
    "channel: a new one from somebody of another node",
    lambda p, c: [
        p.frame_of(
            (REG_SEND, stranger(p), EMPTY, Atom("py")),
            (Atom("$py_channel"), [(Atom("new"), 1, Atom("terms"), 5)] * 3),
        )
    ],
    CLOSED,
)
frames(
    "channel: items for what is no pid",
    lambda p, c: [items_frame(p, whole=(Atom("$py_channel"), 5, []))],
    CLOSED,
)


def new_channel(peer: RawPeer, bound: int) -> Any:
    """The pid of a channel the node made for this peer."""
    peer.send_frame(items_frame(peer, (Atom("new"), 1, Atom("terms"), bound)))
    while True:
        message = peer.receive(PATIENCE)
        if message.control[0] in NO_ANSWERS:
            continue
        (_, [(_, _, (_, pid), _)]) = message.payload
        return pid


def in_a_channel(
    name: str, make: Callable[[RawPeer, Any], list[bytes]], *allowed: str, **options: Any
) -> None:
    def run(target: Target, _: random.Random) -> Outcome:
        with linked(target) as peer:
            return play(peer, make(peer, new_channel(peer, 1000)), allowed or ANY)

    ATTACKS.append(Attack(f"channel: {name}", allowed or ANY, run, **options))


in_a_channel(
    "credit that was never given is spent",
    lambda p, ch: [
        items_frame(p, (Atom("send"), ch, 100_010, (b"x" * 100_000,))) for _ in range(30)
    ],
    REPLIED,
)
in_a_channel(
    "messages that cost nothing",
    lambda p, ch: [items_frame(p, (Atom("send"), ch, 1, (b"x" * 100_000,)))],
    CLOSED,
)
in_a_channel(
    "a message that costs more than there are numbers",
    lambda p, ch: [items_frame(p, (Atom("send"), ch, 1 << 63, (b"x",)))],
    REPLIED,
)
in_a_channel(
    "messages that are no terms",
    lambda p, ch: [items_frame(p, (Atom("send"), ch, 5, Raw(b"h\1\xff")))],
)
in_a_channel(
    "a message nested too deep",
    lambda p, ch: [items_frame(p, (Atom("send"), ch, 700_000, (nested(100_000),)))],
    IGNORED,
    REPLIED,
)
in_a_channel(
    "more is given back than was had",
    lambda p, ch: [items_frame(p, *[(Atom("returned"), ch, 1 << 62)] * 100)],
    CLOSED,
)
in_a_channel(
    "credit is given back that was not asked for",
    lambda p, ch: [items_frame(p, (Atom("returned"), ch, 1))],
    CLOSED,
)
in_a_channel(
    "nothing is given back, again and again",
    lambda p, ch: [items_frame(p, *[(Atom("returned"), ch, 0)] * 10_000)],
    IGNORED,
)
in_a_channel(
    "more is wanted again and again",
    lambda p, ch: [items_frame(p, *[(Atom("want"), ch)] * 10_000)],
    IGNORED,
)


def told_of(peer: RawPeer, verb: str) -> tuple[Any, ...]:
    """The next item of that kind."""
    while True:
        message = peer.receive(PATIENCE)
        if message.control[0] in NO_ANSWERS:
            continue
        (_, [item]) = message.payload
        if item[0] == Atom(verb):
            return tuple(item)


@attack("channel: more is given back than was asked for", CLOSED)
def too_much_given_back(target: Target, _: random.Random) -> Outcome:
    with linked(target) as liar, linked(target) as other:
        channel = new_channel(liar, 1000)
        other.send_frame(items_frame(other, (Atom("attach"), 1, channel)))
        (_, _, asked, _) = told_of(liar, "reclaim")
        item = (Atom("returned"), channel, asked + 1)
        return play(liar, [items_frame(liar, item)], (CLOSED,))


@attack("channel: what was sent is given back as well", REPLIED)
def given_back_twice(target: Target, _: random.Random) -> Outcome:
    """The other one is given no more than its share of it, however often the first one lies."""
    with linked(target) as liar, linked(target) as other:
        channel = new_channel(liar, 1000)
        liar.send_frame(items_frame(liar, (Atom("send"), channel, 1000, (b"x" * 990,))))
        other.send_frame(items_frame(other, (Atom("attach"), 1, channel)))
        (_, _, asked, _) = told_of(liar, "reclaim")
        liar.send_frame(items_frame(liar, (Atom("returned"), channel, asked)))
        (_, _, granted, share) = told_of(other, "credit")
        if granted > 500 or share > 500:
            raise AssertionError(f"{granted} bytes of credit, share {share}")
        return play(other, [items_frame(other, (Atom("info"), 1, channel))], (REPLIED,))


in_a_channel(
    "300,000 receivers that ask",
    lambda p, ch: [
        items_frame(p, *(Raw(item) for item in items[at : at + 3000]))
        for items in [
            numbered(encode((Atom("recv"), ch, [Atom("alias"), MARK], 1)), range(300_000))
        ]
        for at in range(0, 300_000, 3000)
    ],
    weight=1,
)
in_a_channel(
    "is flooded past its bound from outside",
    lambda p, ch: [p.frame_of((SEND, EMPTY, ch), b"x" * 100_000) for _ in range(30)],
    REPLIED,
)


@attack("channel: 5,000 of them, then gone", REPLIED, weight=2)
def channels_then_gone(target: Target, _: random.Random) -> Outcome:
    with linked(target) as peer:
        for _unused in range(50):
            peer.send_frame(items_frame(peer, *[(Atom("new"), 1, Atom("terms"), 0)] * 100))
        peer.abort()
    return still_serves(target)


# What a peer says of its own accord that is due only when the node has asked for it.


def to_py(peer: RawPeer, message: Any, sender: Pid | None = None) -> bytes:
    return peer.frame_of((REG_SEND, sender or peer.pid(), EMPTY, Atom("py")), message)


def results(name: str, make: Callable[[RawPeer], Any], *allowed: str, **options: Any) -> None:
    """{'$py_results', Results}, asked for by nobody."""
    frames(
        f"results: {name}",
        lambda p, c: [to_py(p, (Atom("$py_results"), make(p)))],
        *(allowed or (CLOSED,)),
        **options,
    )


DONE = (Atom("ok"), 1)

results("an integer", lambda p: 5)
results("a string", lambda p: Raw(b"k\0\2ab"))
results("no items", lambda p: [], IGNORED)
results("an item that is an integer", lambda p: [1])
results("an item that is an empty tuple", lambda p: [()])
results("an item of three", lambda p: [(1, DONE, DONE)])
results("an id that is an atom", lambda p: [(Atom("id"), DONE)])
results("an id that is a float", lambda p: [(1.0, DONE)])
results("a negative id", lambda p: [(-1, DONE)])
results("the largest id there is", lambda p: [((1 << 64) - 1, DONE)], IGNORED)
results("an id that is no word", lambda p: [(1 << 64, DONE)])
results("an id of 10,000 bytes", lambda p: [(1 << 80_000, DONE)])
results("an improper list", lambda p: Improper(((1, DONE),), 2), IGNORED, CLOSED)
results("a list cut short", lambda p: Raw(b"l\0\0\0\2" + encode((1, DONE))))
results("a list of 2^32 - 1", lambda p: Raw(b"l\xff\xff\xff\xff"))
results("a result cut short", lambda p: Raw(b"l\0\0\0\1h\2a\1m\xff\xff\xff\xffabc"))
results("a result nested 100,000 deep", lambda p: [(1, nested(100_000)), (2, DONE)], IGNORED)
results("an id nested 100,000 deep", lambda p: [(nested(100_000), DONE)])
results("30,000 at once", lambda p: [(n, DONE) for n in range(30_000)], IGNORED)
results("one of 10 MB", lambda p: [(1, bytes(10 << 20))], IGNORED)
frames(
    "results: 10,000 messages of them",
    lambda p, c: [to_py(p, (Atom("$py_results"), [(n, DONE)])) for n in range(10_000)],
    IGNORED,
)
frames(
    "results: from somebody of another node",
    lambda p, c: [to_py(p, (Atom("$py_results"), [(n, DONE) for n in range(100)]), stranger(p))],
    IGNORED,
    CLOSED,
)


def coordinators(name: str, make: Callable[[RawPeer], list[Any]], **options: Any) -> None:
    """{'$py_callback', Pid}: the process that is to have the node's calls."""
    frames(
        f"coordinator: {name}",
        lambda p, c: [to_py(p, (Atom("$py_callback"), pid)) for pid in make(p)],
        IGNORED,
        **options,
    )


coordinators("of another node", lambda p: [stranger(p)])
coordinators("of the node itself", lambda p: [py_of(p)])
coordinators("that is no pid", lambda p: [5, Atom("py_callback"), [p.pid()], p.ref(), nested(5000)])
coordinators("cut short", lambda p: [Raw(b"X" + encode(Atom(p.name)) + bytes(5))])
coordinators("the same, 10,000 times", lambda p: [p.pid(50)] * 10_000)
frames(
    "coordinator: another each time, 100,000 times",
    lambda p, c: numbered(to_py(p, (Atom("$py_callback"), p.pid(MARK))), range(1, 100_001)),
    IGNORED,
    weight=1,
)


@attack("coordinator: 100,000 of them by one who reads nothing, then gone", REPLIED, weight=1)
def coordinators_then_gone(target: Target, _: random.Random) -> Outcome:
    with linked(target) as peer:
        body = to_py(peer, (Atom("$py_callback"), peer.pid(MARK)))
        frame = struct.pack(">I", len(body)) + body
        peer.send_bytes(b"".join(numbered(frame, range(1, 100_001))))
        peer.abort()
    return still_serves(target)


def io_requests(name: str, make: Callable[[RawPeer], list[Any]], *allowed: str) -> None:
    """What somebody writes whose group leader is `py`; one reply is due to each that can be understood."""
    frames(
        f"io: {name}",
        lambda p, c: [to_py(p, (Atom("io_request"), *each)) for each in make(p)],
        *allowed,
    )


PUT = (Atom("put_chars"), Atom("unicode"), b"text")

io_requests("text", lambda p: [(p.pid(), p.ref(), PUT)], REPLIED)
io_requests(
    "requests nobody knows",
    lambda p: [(p.pid(), p.ref(), what) for what in (5, (), [], (1,), b"x", {}, p.pid())],
    REPLIED,
)
io_requests("a request nested 100,000 deep", lambda p: [(p.pid(), 1, nested(100_000))], REPLIED)
io_requests("a tag nested 100,000 deep", lambda p: [(p.pid(), nested(100_000), PUT)], IGNORED)
io_requests("a tag of 1 MB", lambda p: [(p.pid(), bytes(1 << 20), PUT)], REPLIED)
io_requests(
    "a request cut short", lambda p: [(p.pid(), 1, Raw(b"h\xff"))], REPLIED, IGNORED, CLOSED
)
io_requests("a tag cut short", lambda p: [(p.pid(), Raw(b"h\xff"), PUT)], IGNORED, CLOSED)
io_requests("for somebody of another node", lambda p: [(stranger(p), p.ref(), PUT)], IGNORED)
io_requests("for what is no pid", lambda p: [(5, p.ref(), PUT), (Atom("me"), 1, PUT)], IGNORED)
io_requests("with too much in it", lambda p: [(p.pid(), p.ref(), PUT, PUT)], IGNORED)
io_requests("20,000 before an answer is read", lambda p: [(p.pid(), 1, PUT)] * 20_000, REPLIED)


def own_ref(peer: RawPeer, number: int) -> Ref:
    """A reference as the node makes them."""
    return Ref(peer.node, peer.node_creation, (number, 0, 0))


def unasked(name: str, make: Callable[[RawPeer, Ref], bytes]) -> None:
    """10,000 signals that answer a question: of the references in them none is open."""

    def bodies(peer: RawPeer, chance: random.Random) -> list[bytes]:
        refs = (own_ref(peer, n) for n in range(5_000))
        return [make(peer, ref) for own in refs for ref in (own, peer.ref())]

    frames(f"unasked: {name}", bodies, IGNORED)


def alias_of(ref: Ref) -> Improper:
    return Improper((Atom("alias"),), ref)


unasked("refused spawns", lambda p, r: p.frame_of((SPAWN_REPLY, r, py_of(p), 0, Atom("notsup"))))
unasked("spawned processes", lambda p, r: p.frame_of((SPAWN_REPLY, r, py_of(p), 2, p.pid(9))))
unasked(
    "ends of processes",
    lambda p, r: p.frame_of((MONITOR_P_EXIT, p.pid(9), py_of(p), r, Atom("gone"))),
)
unasked(
    "ends of processes with a payload",
    lambda p, r: p.frame_of((PAYLOAD_MONITOR_P_EXIT, Atom("name"), py_of(p), r), (Atom("gone"), 1)),
)
unasked(
    "replies to an alias", lambda p, r: p.frame_of((ALIAS_SEND, p.pid(), r), (alias_of(r), DONE))
)
unasked(
    "an alias's replies without its tag", lambda p, r: p.frame_of((ALIAS_SEND, p.pid(), r), DONE)
)
unasked(
    "one reply under another's alias",
    lambda p, r: p.frame_of((ALIAS_SEND, p.pid(), r), (alias_of(own_ref(p, 1)), DONE)),
)
unasked("replies to py", lambda p, r: to_py(p, (r, DONE)))
unasked("replies to py under an alias", lambda p, r: to_py(p, (alias_of(r), DONE)))
unasked("replies with more in their tag", lambda p, r: to_py(p, ([Atom("alias"), r], DONE)))


def asked(name: str, answer_of: Callable[[RawPeer, int], Any]) -> None:
    """Has the node ask this peer, and gives it a strange answer: the code that asked gets an error."""

    def run(target: Target, _: random.Random) -> Outcome:
        with linked(target) as peer:
            peer.send_frame(to_py(peer, (Atom("$py_callback"), peer.pid(50))))
            request = (Atom("call"), Atom("erlang"), Atom("call"), [b"anything"])
            peer.send_frame(call_frame(peer, request))
            while (message := peer.receive(PATIENCE)).control[0] in NO_ANSWERS:
                pass
            (_, [(_, number, *_)]) = message.payload
            told = (Atom("$py_results"), [(number, answer_of(peer, number))])
            outcome, detail = play(peer, [to_py(peer, told)], (REPLIED,))
            return (outcome if detail.startswith("(Atom('error')") else "wrong"), detail

    ATTACKS.append(Attack(f"asked: {name}", (REPLIED,), run))


asked("an integer for a result", lambda p, n: 5)
asked("an unknown word", lambda p, n: Atom("no_such_word"))
asked("an empty tuple", lambda p, n: ())
asked("ok and nothing", lambda p, n: (Atom("ok"),))
asked("ok and too much", lambda p, n: (Atom("ok"), 1, 2, 3))
asked("a kind that is no word", lambda p, n: (5, 5, 5))
asked("an unknown kind", lambda p, n: (Atom("odd"), b"why", {}))
asked("a stack that is none", lambda p, n: (Atom("error"), b"why", Improper((1,), 2)))
asked("a signal of nothing", lambda p, n: (Atom("signal"),))
asked("a value nested 100,000 deep", lambda p, n: (Atom("ok"), nested(100_000)))


def compressed(name: str, make: Callable[[], bytes]) -> None:
    """A message that is compressed whole, which is legal behind a version byte."""

    def bodies(peer: RawPeer, _: random.Random) -> list[bytes]:
        control = peer.frame_of((REG_SEND, peer.pid(), EMPTY, Atom("py")))
        return [control + b"\x83P" + make()]

    frames(f"compressed: {name}", bodies, *ANY, flags=PASS_THROUGH)


def zeros(megabytes: int) -> bytes:
    """A binary of `megabytes` of zeros, deflated. One megabyte, flushed to a byte's end, is repeated."""
    head = b"m" + struct.pack(">I", megabytes << 20)
    packer = zlib.compressobj(9)
    begin = packer.compress(head) + packer.flush(zlib.Z_FULL_FLUSH)
    megabyte = packer.compress(bytes(1 << 20)) + packer.flush(zlib.Z_FULL_FLUSH)
    checksum = zlib.adler32(head)
    for _ in range(megabytes):
        checksum = zlib.adler32(bytes(1 << 20), checksum)
    empty_last_block = b"\x03\x00"
    return begin + megabyte * megabytes + empty_last_block + struct.pack(">I", checksum)


compressed("600 MB of zeros", lambda: struct.pack(">I", (600 << 20) + 5) + zeros(600))
compressed("4 GB announced, nothing in it", lambda: b"\xff" * 4 + zlib.compress(b"a\1"))
compressed("5 bytes announced, 50 MB in it", lambda: struct.pack(">I", 5) + zeros(50))
compressed("rubbish", lambda: struct.pack(">I", 100) + b"rubbish" * 10)
compressed(
    "compressed twice",
    lambda: struct.pack(">I", 20) + zlib.compress(b"P\0\0\0\2" + zlib.compress(b"a\1")),
)


@attack("request: cut at every byte", REPLIED, CLOSED, IGNORED)
def cut_everywhere(target: Target, chance: random.Random) -> Outcome:
    seen: dict[str, int] = {}
    with linked(target) as model:
        size = len(call_frame(model, (Atom("call"), Atom("builtins"), Atom("id"), [1])))
    for cut in chance.sample(range(3, size), 40):
        with linked(target) as peer:
            body = call_frame(peer, (Atom("call"), Atom("builtins"), Atom("id"), [1]))
            outcome, _ = play(peer, [body[:cut]], ANY)
        seen[outcome] = seen.get(outcome, 0) + 1
        if outcome not in ANY:
            return outcome, f"cut to {cut} bytes"
    return max(seen, key=lambda key: seen[key]), short(seen)


@attack("request: valid frames with a few bytes changed", REPLIED, CLOSED, IGNORED)
def mutated(target: Target, chance: random.Random) -> Outcome:
    seen: dict[str, int] = {}
    for _ in range(40):
        with linked(target) as peer:
            body = bytearray(chance.choice(samples(peer)))
            for _unused in range(chance.randrange(1, 6)):
                body[chance.randrange(len(body))] = chance.randrange(256)
            outcome, detail = play(peer, [bytes(body)], ANY)
        seen[outcome] = seen.get(outcome, 0) + 1
        if outcome not in ANY:
            return outcome, f"{bytes(body)!r}: {detail}"
    return max(seen, key=lambda key: seen[key]), short(seen)


def samples(peer: RawPeer) -> list[bytes]:
    return [
        call_frame(
            peer, (Atom("call"), Atom("builtins"), Atom("id"), [1, 2.5, b"x", {1: [Atom("a")]}])
        ),
        items_frame(
            peer,
            (Atom("new"), 7, Atom("terms"), 1000),
            (Atom("send"), unknown_pid(peer), 5, (1, b"x")),
            (Atom("recv"), unknown_pid(peer), peer.ref(), 1000),
        ),
        to_py(peer, (Atom("$py_results"), [(1, DONE), (2, Atom("timeout"))])),
        to_py(peer, (Atom("$py_callback"), peer.pid(50))),
        to_py(peer, (Atom("io_request"), peer.pid(), peer.ref(), PUT)),
        peer.frame_of((SEND, EMPTY, unknown_pid(peer)), (1, [2])),
        peer.frame_of((MONITOR_P, peer.pid(), Atom("py"), peer.ref())),
        peer.frame_of((DEMONITOR_P, peer.pid(), Atom("py"), peer.ref())),
        peer.frame_of((LINK, peer.pid(), unknown_pid(peer))),
        peer.frame_of((UNLINK_ID, 5, peer.pid(), unknown_pid(peer))),
        peer.frame_of((PAYLOAD_EXIT2, peer.pid(), unknown_pid(peer)), Atom("no")),
        peer.frame_of((ALIAS_SEND, peer.pid(), peer.ref()), 1),
        peer.frame_of(
            (
                SPAWN_REQUEST,
                peer.ref(),
                peer.pid(),
                peer.pid(),
                (Atom("math"), Atom("sqrt"), 1),
                [Atom("monitor")],
            ),
            [16.0],
        ),
    ]


@attack("call: 500 of them, then gone by reset before any answer", REPLIED)
def calls_then_gone(target: Target, _: random.Random) -> Outcome:
    with linked(target) as peer:
        for _unused in range(500):
            peer.send_frame(call_frame(peer, (Atom("call"), Atom("time"), Atom("sleep"), [0.001])))
        peer.abort()
    return still_serves(target)


@attack("call: 20,000 pings before an answer is read", REPLIED, CLOSED, weight=2)
def unread_answers(target: Target, _: random.Random) -> Outcome:
    with linked(target) as peer:
        request = (Atom("$gen_call"), (peer.pid(), peer.ref()), (Atom("is_auth"), Atom(peer.name)))
        body = peer.frame_of((REG_SEND, peer.pid(), EMPTY, Atom("net_kernel")), request)
        try:
            peer.send_bytes((struct.pack(">I", len(body)) + body) * 20_000)
            for _unused in range(20_000):
                peer.receive(PATIENCE)
        except Closed as error:
            return CLOSED, str(error)
        return REPLIED, "20,000 answers"


# With --big: hundreds of megabytes each.


@attack("big: 100 answers of 1 MB that nobody reads, then gone", REPLIED, big=True, weight=1)
def never_reads(target: Target, _: random.Random) -> Outcome:
    with linked(target) as peer:
        peer.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        for _unused in range(100):
            request = (Atom("call"), Atom("operator"), Atom("mul"), [b"x", 1 << 20])
            peer.send_frame(call_frame(peer, request))
        time.sleep(1)
    return still_serves(target)


@attack("big: a frame of 300 MB", REPLIED, CLOSED, IGNORED, big=True, weight=1)
def large_frame(target: Target, _: random.Random) -> Outcome:
    with linked(target) as peer:
        body = call_frame(peer, (Atom("call"), Atom("builtins"), Atom("len"), [bytes(300 << 20)]))
        return play(peer, [body], ANY)


@attack("big: a message of 300 MB in fragments", REPLIED, CLOSED, big=True, weight=1)
def large_fragments(target: Target, _: random.Random) -> Outcome:
    with linked(target) as peer:
        body = call_frame(peer, (Atom("call"), Atom("builtins"), Atom("len"), [bytes(300 << 20)]))[
            3:
        ]
        pieces = [body[at : at + 65536] for at in range(0, len(body), 65536)]
        fragments = [first_fragment(len(pieces), pieces[0])]
        fragments += [next_fragment(len(pieces) - i, pieces[i]) for i in range(1, len(pieces))]
        return play(peer, fragments, (REPLIED, CLOSED))


# The run


class Witness(threading.Thread):
    """A peer that behaves, on a thread of its own: it pings all the while, and its link must outlive everything."""

    def __init__(self, target: Target) -> None:
        super().__init__(daemon=True)
        self.peer = opened(target, name=target.witness).connect(target.cookie)
        self.slowest = 0.0
        self._changed = threading.Condition()
        self._answers = 0
        self._complaint = ""
        self._leaves = False
        self.start()

    def run(self) -> None:
        while not self._leaves and not self._complaint:
            begin = time.monotonic()
            complaint = self._ping()
            with self._changed:
                self._answers += 1
                self._complaint = complaint
                self.slowest = max(self.slowest, time.monotonic() - begin)
                self._changed.notify_all()
                self._changed.wait(0.05)
        self.peer.close()

    def _ping(self) -> str:
        try:
            return "" if self.peer.ping(PATIENCE) else "the witness got a wrong answer"
        except TimeoutError:
            return f"the witness got no answer in {PATIENCE:.0f} s"
        except (Closed, OSError) as error:
            return f"the witness lost its link: {error}"

    def complaint(self) -> str:
        """Waits for the answer to a ping that was sent after this call."""
        with self._changed:
            wanted = self._answers + 2
            self._changed.notify_all()
            while self._answers < wanted and not self._complaint:
                self._changed.notify_all()
                self._changed.wait(0.05)
            return self._complaint

    def leave(self) -> None:
        with self._changed:
            self._leaves = True
            self._changed.notify_all()
        self.join()


def run_one(
    each: Attack, target: Target, chance: random.Random, witness: Witness, quiet: bool
) -> bool:
    try:
        outcome, detail = each.run(target, chance)
    except (Refused, Closed, TimeoutError, OSError) as error:
        outcome, detail = type(error).__name__, str(error)
    complaint = witness.complaint()
    fine = outcome in each.allowed and not complaint
    if not fine or not quiet:
        what = f"{outcome} ({detail})" if detail else outcome
        due = "" if outcome in each.allowed else f"; due: {' or '.join(each.allowed)}"
        hurt = f"; {complaint}" if complaint else ""
        print(f"{'ok    ' if fine else 'WRONG '} {each.name} -> {what}{due}{hurt}", flush=True)
    if complaint:
        raise Closed(complaint)
    return fine


def run_all(target: Target, options: argparse.Namespace, chosen: list[Attack]) -> int:
    chance = random.Random(options.seed)
    witness = Witness(target)
    ran = wrong = 0
    deadline = time.monotonic() + options.seconds
    rounds = list(chosen)
    while rounds or time.monotonic() < deadline:
        if rounds:
            each = rounds.pop(0)
        else:
            each = chance.choices(chosen, [candidate.weight for candidate in chosen])[0]
        ran += 1
        try:
            wrong += not run_one(each, target, chance, witness, options.quiet)
        except Closed:
            wrong += 1
            try:
                witness = Witness(target)
            except (Refused, OSError) as error:
                print(f"WRONG  the node is gone: {error}", flush=True)
                break
    witness.leave()
    slowest = witness.slowest * 1000
    print(
        f"{ran} attacks, {wrong} wrong; the witness's slowest answer took {slowest:.0f} ms",
        flush=True,
    )
    return 1 if wrong else 0


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Attacks a node with everything a peer should not send."
    )
    parser.add_argument("host")
    parser.add_argument("port", type=int, help="the node's distribution port; 0 asks epmd")
    parser.add_argument("cookie", help="or @FILE")
    parser.add_argument("node", help="its name, alive@host")
    parser.add_argument("--seconds", type=float, default=0.0, help="go on with random attacks")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--patience", type=float, default=PATIENCE, help="seconds to wait for what has to come"
    )
    parser.add_argument("--only", default="", help="attacks whose name contains this")
    parser.add_argument(
        "--big", action="store_true", help="also those that move hundreds of megabytes"
    )
    parser.add_argument("--quiet", action="store_true", help="print only what is wrong")
    parser.add_argument("--list", action="store_true", help="print the attacks' names")
    return parser.parse_args()


def main() -> int:
    global PATIENCE
    options = arguments()
    PATIENCE = options.patience
    chosen = [
        each for each in ATTACKS if options.only in each.name and (options.big or not each.big)
    ]
    if options.list:
        print("\n".join(each.name for each in chosen))
        return 0
    cookie = options.cookie
    if cookie.startswith("@"):
        cookie = pathlib.Path(cookie[1:]).read_text().strip()
    try:
        port = options.port or epmd_port(options.host, options.node.split("@")[0])
        if port is None:
            print(f"epmd does not know {options.node}", file=sys.stderr)
            return 2
        return run_all(Target(options.host, port, cookie, options.node), options, chosen)
    except (OSError, Refused) as error:
        print(f"{options.node} cannot be reached: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
