"""A node that speaks the distribution protocol byte by byte, for tests that need a peer which does not behave.

    peer = RawPeer("127.0.0.1", port, "beam@127.0.0.1")
    peer.connect("secret")                          # the handshake; Refused when the node says no
    peer.gen_call("py", (Atom("call"), Atom("math"), Atom("sqrt"), [16.0]))
    peer.send_frame(b"\\x83D\\x00 anything at all")   # or send_bytes() for what is not even a frame

Atoms are Atom, other strings go out as binaries and come back as bytes; Raw is bytes that stand where a term should.
Only the standard library is used. A RawPeer belongs to one thread.
"""

from __future__ import annotations

import hashlib
import os
import random
import socket
import struct
import time
from dataclasses import dataclass
from typing import Any

FRAGMENTS = 0x800000
NAME_ME = 1 << 33
# What a hidden OTP 25 node says it can do, without the atom cache; and alias signals of OTP 28.
HIDDEN_FLAGS = (0xD07DF7FBC & ~0x2000) | 1 << 37

LINK, SEND, EXIT, REG_SEND, GROUP_LEADER, EXIT2 = 1, 2, 3, 6, 7, 8
MONITOR_P, DEMONITOR_P, MONITOR_P_EXIT, SEND_SENDER = 19, 20, 21, 22
PAYLOAD_EXIT, PAYLOAD_EXIT2, PAYLOAD_MONITOR_P_EXIT = 24, 26, 28
SPAWN_REQUEST, SPAWN_REPLY, ALIAS_SEND, UNLINK_ID, UNLINK_ID_ACK, ALTACT_SIG_SEND = (
    29,
    31,
    33,
    35,
    36,
    37,
)


class Refused(Exception):
    """The node did not let us in; the text says at which step and how."""


class Closed(Exception):
    """The node closed the connection."""


class Atom(str):
    def __repr__(self) -> str:
        return f"Atom({str.__repr__(self)})"


class Raw(bytes):
    """Bytes put into a term as they are."""


@dataclass(frozen=True)
class Pid:
    node: str
    number: int
    serial: int
    creation: int


@dataclass(frozen=True)
class Ref:
    node: str
    creation: int
    words: tuple[int, ...]


@dataclass(frozen=True)
class Improper:
    items: tuple[Any, ...]
    tail: Any


# Terms


def encode(term: Any) -> bytes:
    """The external format of `term`, without version byte."""
    if isinstance(term, Raw):
        return bytes(term)
    if isinstance(term, bool):
        return encode(Atom("true" if term else "false"))
    if isinstance(term, Atom):
        text = term.encode()
        return (
            b"w" + bytes([len(text)]) + text
            if len(text) < 256
            else b"v" + struct.pack(">H", len(text)) + text
        )
    if isinstance(term, int):
        if 0 <= term < 256:
            return b"a" + bytes([term])
        if -(2**31) <= term < 2**31:
            return b"b" + struct.pack(">i", term)
        size = (abs(term).bit_length() + 7) // 8
        head = b"n" + bytes([size]) if size < 256 else b"o" + struct.pack(">I", size)
        return head + bytes([term < 0]) + abs(term).to_bytes(size, "little")
    if isinstance(term, float):
        return b"F" + struct.pack(">d", term)
    if isinstance(term, str):
        return encode(term.encode())
    if isinstance(term, bytes):
        return b"m" + struct.pack(">I", len(term)) + term
    if isinstance(term, tuple):
        head = b"h" + bytes([len(term)]) if len(term) < 256 else b"i" + struct.pack(">I", len(term))
        return head + b"".join(map(encode, term))
    if isinstance(term, list):
        return (
            b"l" + struct.pack(">I", len(term)) + b"".join(map(encode, term)) + b"j"
            if term
            else b"j"
        )
    if isinstance(term, Improper):
        return (
            b"l"
            + struct.pack(">I", len(term.items))
            + b"".join(map(encode, term.items))
            + encode(term.tail)
        )
    if isinstance(term, dict):
        pairs = b"".join(encode(key) + encode(value) for key, value in term.items())
        return b"t" + struct.pack(">I", len(term)) + pairs
    if isinstance(term, Pid):
        return (
            b"X"
            + encode(Atom(term.node))
            + struct.pack(">III", term.number, term.serial, term.creation)
        )
    if isinstance(term, Ref):
        words = struct.pack(f">{1 + len(term.words)}I", term.creation, *term.words)
        return b"Z" + struct.pack(">H", len(term.words)) + encode(Atom(term.node)) + words
    raise TypeError(f"no term for {type(term).__name__}")


def decode(data: bytes, at: int = 0) -> tuple[Any, int]:
    """The term at `at`, and where it ends. What this file has no type for comes back as Raw, up to the end."""
    tag = data[at : at + 1]
    at += 1
    if tag == b"a":
        return data[at], at + 1
    if tag == b"b":
        return struct.unpack_from(">i", data, at)[0], at + 4
    if tag in b"no":
        size = data[at] if tag == b"n" else struct.unpack_from(">I", data, at)[0]
        at += 1 if tag == b"n" else 4
        value = int.from_bytes(data[at + 1 : at + 1 + size], "little")
        return -value if data[at] else value, at + 1 + size
    if tag == b"F":
        return struct.unpack_from(">d", data, at)[0], at + 8
    if tag in b"sw":
        return (
            Atom(data[at + 1 : at + 1 + data[at]].decode("utf-8" if tag == b"w" else "latin-1")),
            at + 1 + data[at],
        )
    if tag in b"dv":
        end = at + 2 + struct.unpack_from(">H", data, at)[0]
        return Atom(data[at + 2 : end].decode("utf-8" if tag == b"v" else "latin-1")), end
    if tag == b"m":
        end = at + 4 + struct.unpack_from(">I", data, at)[0]
        return data[at + 4 : end], end
    if tag == b"k":
        end = at + 2 + struct.unpack_from(">H", data, at)[0]
        return list(data[at + 2 : end]), end
    if tag == b"j":
        return [], at
    if tag in b"hi":
        count = data[at] if tag == b"h" else struct.unpack_from(">I", data, at)[0]
        items, at = decode_many(data, at + (1 if tag == b"h" else 4), count)
        return tuple(items), at
    if tag == b"l":
        items, at = decode_many(data, at + 4, struct.unpack_from(">I", data, at)[0])
        tail, at = decode(data, at)
        return (items if tail == [] else Improper(tuple(items), tail)), at
    if tag == b"t":
        items, at = decode_many(data, at + 4, 2 * struct.unpack_from(">I", data, at)[0])
        return dict(zip(items[::2], items[1::2])), at
    if tag == b"X":
        node, at = decode(data, at)
        return Pid(node, *struct.unpack_from(">III", data, at)), at + 12
    if tag == b"Z":
        count = struct.unpack_from(">H", data, at)[0]
        node, at = decode(data, at + 2)
        numbers = struct.unpack_from(f">{1 + count}I", data, at)
        return Ref(node, numbers[0], numbers[1:]), at + 4 + 4 * count
    return Raw(data[at - 1 :]), len(data)


def decode_many(data: bytes, at: int, count: int) -> tuple[list[Any], int]:
    items = []
    for _ in range(count):
        item, at = decode(data, at)
        items.append(item)
    return items, at


# epmd


def epmd_port(host: str, alive: str, epmd: int | None = None) -> int | None:
    """The port a node listens on, or None when epmd does not know it."""
    port = epmd or int(os.environ.get("ERL_EPMD_PORT", "4369"))
    with socket.create_connection((host, port), timeout=5) as connection:
        connection.sendall(struct.pack(">HB", 1 + len(alive), 122) + alive.encode())
        answer = b""
        while chunk := connection.recv(4096):
            answer += chunk
    if len(answer) < 4 or answer[1] != 0:
        return None
    return int(struct.unpack_from(">H", answer, 2)[0])


# The peer


@dataclass(frozen=True)
class Message:
    """One signal from the node: its control tuple and, where there is one, what follows it."""

    control: tuple[Any, ...]
    payload: Any = None


def digest(cookie: str, challenge: int) -> bytes:
    return hashlib.md5(f"{cookie}{challenge}".encode()).digest()


class RawPeer:
    """One connection to a node, from this side; every step of it can be done wrong on purpose."""

    def __init__(
        self,
        host: str,
        port: int,
        name: str,
        flags: int = HIDDEN_FLAGS,
        timeout: float = 10.0,
    ) -> None:
        self.name = name
        self.flags = flags
        self.creation = random.randrange(4, 2**32)
        self.timeout = timeout
        self.node = ""
        self.node_creation = 0
        self.fragments = False  # which framing was negotiated
        self.ticks = 0
        self._unfinished: dict[int, bytes] = {}
        self._received = bytearray()
        self._serial = 0
        self.socket = socket.create_connection((host, port), timeout=timeout)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def __enter__(self) -> RawPeer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self.socket.close()

    def abort(self) -> None:
        """Closes with a reset, as a killed machine would."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()

    # Bytes

    def send_bytes(self, data: bytes) -> None:
        try:
            self.socket.settimeout(self.timeout)
            self.socket.sendall(data)
        except (ConnectionError, socket.timeout) as error:
            raise Closed(str(error)) from error

    def _receive(self, size: int, deadline: float) -> bytes:
        while len(self._received) < size:
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError
            self.socket.settimeout(left)
            try:
                chunk = self.socket.recv(1 << 16)
            except socket.timeout:
                raise TimeoutError from None
            except ConnectionError as error:
                raise Closed(str(error)) from error
            if not chunk:
                raise Closed("end of stream")
            self._received += chunk
        taken = bytes(self._received[:size])
        del self._received[:size]
        return taken

    # Handshake

    def send_packet(self, packet: bytes) -> None:
        self.send_bytes(struct.pack(">H", len(packet)) + packet)

    def receive_packet(self, timeout: float | None = None) -> bytes:
        deadline = time.monotonic() + (timeout or self.timeout)
        return self._receive(struct.unpack(">H", self._receive(2, deadline))[0], deadline)

    def name_packet(self, name: str | bytes | None = None, flags: int | None = None) -> bytes:
        raw = name if name is not None else self.name
        text = raw.encode() if isinstance(raw, str) else raw
        return (
            b"N"
            + struct.pack(">QIH", self.flags if flags is None else flags, self.creation, len(text))
            + text
        )

    def receive_status(self) -> str:
        packet = self.receive_packet()
        if packet[:1] != b"s":
            raise Refused(f"a status was due, not {packet!r}")
        return packet[1:].decode("latin-1")

    def receive_challenge(self) -> int:
        packet = self.receive_packet()
        if packet[:1] != b"N":
            raise Refused(f"a challenge was due, not {packet!r}")
        flags, challenge, self.node_creation, size = struct.unpack_from(">QIIH", packet, 1)
        self.node = packet[19 : 19 + size].decode()
        self.fragments = bool(flags & self.flags & FRAGMENTS)
        return int(challenge)

    def connect(self, cookie: str, replace: bool = True) -> RawPeer:
        """The whole handshake as it should be. `replace` answers `alive` with true."""
        try:
            self.send_packet(self.name_packet())
            status = self.receive_status()
            if status == "alive":
                self.send_packet(b"strue" if replace else b"sfalse")
            elif status not in ("ok", "ok_simultaneous"):
                raise Refused(f"status {status}")
            challenge = self.receive_challenge()
            ours = random.getrandbits(32)
            self.send_packet(b"r" + struct.pack(">I", ours) + digest(cookie, challenge))
            ack = self.receive_packet()
        except Closed as error:
            raise Refused(f"closed in the handshake: {error}") from error
        if ack != b"a" + digest(cookie, ours):
            raise Refused("the node's own proof is wrong")
        return self

    # Frames

    def send_frame(self, body: bytes) -> None:
        self.send_bytes(struct.pack(">I", len(body)) + body)

    def frame_of(self, control: Any, *payload: Any) -> bytes:
        """The body of a frame with this control tuple and, optionally, one term after it."""
        terms = [encode(term) for term in (control, *payload)]
        if self.fragments:
            return b"\x83D\x00" + b"".join(terms)
        return b"p" + b"".join(b"\x83" + term for term in terms)

    def send_control(self, control: Any, *payload: Any) -> None:
        self.send_frame(self.frame_of(control, *payload))

    def tick(self) -> None:
        self.send_bytes(bytes(4))

    def receive(self, timeout: float | None = None) -> Message:
        """The next signal. Ticks are answered on the way. TimeoutError when none comes, Closed when none can."""
        deadline = time.monotonic() + (self.timeout if timeout is None else timeout)
        while True:
            message = self.message_of(self._receive_body(deadline))
            if message is not None:
                return message

    def receive_body(self, timeout: float) -> bytes:
        """The next frame that is no tick, as it came: for those who get too many to decode them all."""
        return self._receive_body(time.monotonic() + timeout)

    def _receive_body(self, deadline: float) -> bytes:
        while True:
            size = struct.unpack(">I", self._receive(4, deadline))[0]
            try:
                body = self._receive(size, time.monotonic() + self.timeout)
            except TimeoutError:
                raise Closed("the node sent half a frame") from None
            if size != 0:
                return body
            self.ticks += 1
            self.tick()

    def message_of(self, body: bytes) -> Message | None:
        """None for a fragment that others follow."""
        if body[:1] == b"p":
            control, at = decode(body, 2)
            return Message(control, decode(body, at + 1)[0] if at < len(body) else None)
        if body[:3] == b"\x83D\x00":
            return self._terms(body[3:])
        sequence, fragment = struct.unpack_from(">QQ", body, 2)
        if body[1:2] == b"E":
            self._unfinished[sequence] = body[19:]
        else:
            self._unfinished[sequence] += body[18:]
        return self._terms(self._unfinished.pop(sequence)) if fragment == 1 else None

    @staticmethod
    def _terms(data: bytes) -> Message:
        control, at = decode(data)
        return Message(control, decode(data, at)[0] if at < len(data) else None)

    @staticmethod
    def operation_of(body: bytes) -> int | None:
        """The first element of a whole signal's control tuple, without decoding the rest. None for a fragment."""
        if body[:3] == b"\x83D\x00":
            return body[6]
        return body[5] if body[:2] == b"p\x83" else None

    # Processes

    def pid(self, number: int = 1) -> Pid:
        return Pid(self.name, number, 0, self.creation)

    def ref(self) -> Ref:
        self._serial += 1
        return Ref(self.name, self.creation, (self._serial, 1, 2))

    def reg_send(self, name: str, message: Any, sender: Pid | None = None) -> None:
        self.send_control((REG_SEND, sender or self.pid(), Atom(""), Atom(name)), message)

    def gen_call(self, name: str, request: Any, timeout: float | None = None) -> Any:
        """gen_server:call without a monitor. TimeoutError when there is no answer."""
        tag = self.ref()
        self.reg_send(name, (Atom("$gen_call"), (self.pid(), tag), request))
        return self.await_reply(tag, timeout)

    def await_reply(self, tag: Any, timeout: float | None = None) -> Any:
        deadline = time.monotonic() + (self.timeout if timeout is None else timeout)
        while True:
            payload = self.receive(max(0.0, deadline - time.monotonic())).payload
            if isinstance(payload, tuple) and len(payload) == 2 and payload[0] == tag:
                return payload[1]

    def ping(self, timeout: float | None = None) -> bool:
        """net_adm:ping, seen from the peer."""
        request = (Atom("is_auth"), Atom(self.name))
        return bool(self.gen_call("net_kernel", request, timeout) == Atom("yes"))
