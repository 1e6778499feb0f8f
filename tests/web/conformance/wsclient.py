"""A WebSocket client of raw sockets: it sends any frame, right or wrong, and takes only right ones."""

from __future__ import annotations

import base64
import hashlib
import os
import socket
import struct
import time
import zlib
from dataclasses import dataclass

from client import PATIENCE, Client, Response

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10
GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
TAIL = b"\x00\x00\xff\xff"


class Wrong(Exception):
    """A frame that a server may not send."""


@dataclass
class Frame:
    fin: bool
    rsv: int
    opcode: int
    payload: bytes


@dataclass
class End:
    """How the server ended the connection: its close frame's code (None: no close frame, 1005: none in it)."""

    code: int | None
    reason: str = ""


def frame(
    opcode: int,
    payload: bytes = b"",
    *,
    fin: bool = True,
    rsv: int = 0,
    masked: bool = True,
    length_bytes: int | None = None,
    said: int | None = None,
) -> bytes:
    """`length_bytes` is 0, 2 or 8 to write the length otherwise than as short as it goes, `said` to lie about it."""
    size = len(payload) if said is None else said
    if length_bytes is None:
        length_bytes = 0 if size < 126 else 2 if size < 1 << 16 else 8
    first = (0x80 if fin else 0) | rsv << 4 | opcode
    mask_bit = 0x80 if masked else 0
    if length_bytes == 0:
        head = struct.pack("!BB", first, mask_bit | size)
    elif length_bytes == 2:
        head = struct.pack("!BBH", first, mask_bit | 126, size)
    else:
        head = struct.pack("!BBQ", first, mask_bit | 127, size)
    if not masked:
        return head + payload
    mask = os.urandom(4)
    return head + mask + xor(payload, mask)


def xor(data: bytes, mask: bytes) -> bytes:
    whole = (mask * (len(data) // 4 + 1))[: len(data)]
    number = int.from_bytes(data, "big") ^ int.from_bytes(whole, "big")
    return number.to_bytes(len(data), "big")


def close(code: int | None = None, reason: bytes = b"") -> bytes:
    return frame(CLOSE, b"" if code is None else struct.pack("!H", code) + reason)


def handshake(
    path: str = "/ws/echo",
    *headers: str,
    method: str = "GET",
    version: str = "1.1",
    leave: tuple[str, ...] = (),
    key: bytes | None = None,
    **instead: str,
) -> tuple[bytes, bytes]:
    """A request to upgrade, without the headers of `leave`, others `instead`; and its key."""
    key = base64.b64encode(os.urandom(16)) if key is None else key
    fields = {
        "host": "test",
        "upgrade": "websocket",
        "connection": "Upgrade",
        "sec-websocket-key": key.decode(),
        "sec-websocket-version": "13",
    }
    fields |= {name.replace("_", "-"): value for name, value in instead.items()}
    lines = [f"{method} {path} HTTP/{version}"]
    lines += [f"{name}: {value}" for name, value in fields.items() if name not in leave]
    return "\r\n".join([*lines, *headers, "", ""]).encode("latin-1"), key


def accepted(key: bytes) -> str:
    return base64.b64encode(hashlib.sha1(key + GUID).digest()).decode()


class WebSocket(Client):
    """Open once made. What came besides what was asked for is counted, not lost: pings, pongs."""

    def __init__(self, peer: socket.socket, path: str = "/ws/echo", *headers: str) -> None:
        super().__init__(peer)
        data, key = handshake(path, *headers)
        self.send(data)
        self.answer: Response = self.response()
        assert self.answer.status == 101, (self.answer, self.data)
        assert (self.answer.one("upgrade") or "").lower() == "websocket"
        assert (self.answer.one("connection") or "").lower() == "upgrade"
        assert self.answer.one("sec-websocket-accept") == accepted(key)
        self.pongs: list[bytes] = []
        self.pings: list[bytes] = []
        self.answers_pings = True
        self.inflater = Inflater(self.answer.one("sec-websocket-extensions") or "")

    def __enter__(self) -> WebSocket:
        return self

    def frame(self, seconds: float = PATIENCE) -> Frame | None:
        """The next frame, or None at the end of the connection."""
        deadline = time.monotonic() + seconds
        head = self.exactly(2, deadline)
        if len(head) < 2:
            return None
        size = head[1] & 0x7F
        if head[1] & 0x80:
            raise Wrong("a masked frame")
        if size >= 126:
            length = self.exactly(2 if size == 126 else 8, deadline)
            shortest = 126 if size == 126 else 1 << 16
            size = int.from_bytes(length, "big")
            if size < shortest:
                raise Wrong("a length that is longer than it need be")
        got = Frame(
            bool(head[0] & 0x80), head[0] >> 4 & 7, head[0] & 15, self.exactly(size, deadline)
        )
        if len(got.payload) != size:
            raise Wrong("half a frame")
        if got.opcode >= 8 and (size > 125 or not got.fin):
            raise Wrong("a control frame that is long or in pieces")
        if got.rsv & 3 or (got.rsv and (got.opcode >= 8 or not self.inflater.able)):
            raise Wrong("a reserved bit")
        return got

    def message(self, seconds: float = PATIENCE) -> str | bytes | End:
        """The next message, or how it ended; answers pings meanwhile."""
        deadline = time.monotonic() + seconds
        opcode, parts, squeezed = 0, [], False
        while True:
            got = self.frame(deadline - time.monotonic())
            if got is None:
                return End(None)
            if got.opcode == CLOSE:
                return ending(got.payload)
            if got.opcode == PING:
                self.pings.append(got.payload)
                if self.answers_pings:
                    self.send(frame(PONG, got.payload))
            elif got.opcode == PONG:
                self.pongs.append(got.payload)
            elif got.opcode in (TEXT, BINARY, CONTINUATION):
                if (got.opcode == CONTINUATION) != bool(opcode):
                    raise Wrong("fragments out of order")
                opcode = opcode or got.opcode
                squeezed = squeezed or bool(got.rsv)
                parts.append(got.payload)
                if got.fin:
                    data = b"".join(parts)
                    data = self.inflater.inflate(data) if squeezed else data
                    return data.decode() if opcode == TEXT else data
            else:
                raise Wrong(f"opcode {got.opcode}")

    def end(self, seconds: float = PATIENCE) -> End:
        """The end that must come, whatever messages come before it; the connection is closed after it."""
        while True:
            got = self.message(seconds)
            if isinstance(got, End):
                break
        if got.code is not None:
            self.send(close(1000))
        assert self.at_end(seconds), "the connection stayed open after the close frame"
        return got

    def pong(self, seconds: float = PATIENCE) -> bytes:
        got = self.frame(seconds)
        assert got is not None and got.opcode == PONG, got
        return got.payload


def ending(payload: bytes) -> End:
    if not payload:
        return End(1005)
    if len(payload) < 2:
        raise Wrong("a close frame of one byte")
    return End(int.from_bytes(payload[:2], "big"), payload[2:].decode())


class Inflater:
    """The client's half of permessage-deflate, as the answer of the server has it."""

    def __init__(self, answer: str) -> None:
        words = [word.strip() for word in answer.split(";")]
        self.able = words[0] == "permessage-deflate"
        assert self.able or not answer, answer
        self.given = dict(word.partition("=")[::2] for word in words[1:])
        assert len(self.given) == len(words) - 1, answer
        self.server_bits = int(self.given.get("server_max_window_bits") or 15)
        self.client_bits = int(self.given.get("client_max_window_bits") or 15)
        self.server_fresh = "server_no_context_takeover" in self.given
        self.client_fresh = "client_no_context_takeover" in self.given
        self.reading = zlib.decompressobj(-max(self.server_bits, 9))
        self.writing = self.compressor()

    def compressor(self) -> zlib._Compress:
        return zlib.compressobj(6, zlib.DEFLATED, -max(self.client_bits, 9))

    def inflate(self, data: bytes) -> bytes:
        if self.server_fresh:
            self.reading = zlib.decompressobj(-max(self.server_bits, 9))
        return self.reading.decompress(data + TAIL)

    def deflate(self, data: bytes) -> bytes:
        if self.client_fresh:
            self.writing = self.compressor()
        squeezed = self.writing.compress(data) + self.writing.flush(zlib.Z_SYNC_FLUSH)
        assert squeezed.endswith(TAIL)
        return squeezed[:-4]
