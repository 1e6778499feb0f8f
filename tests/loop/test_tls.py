"""The native SSLProtocol by itself: driven by hand over a transport that is only memory, beside asyncio's own.

    Memory ◀─ write ── SSLProtocol ── data_received ─▶ Recorder
      │  ▲                  ▲
      ▼  └── buffer_updated ┘
    Peer: an ssl.SSLObject

Each of these runs with asyncio's SSLProtocol, which is the oracle, and with ours in both of its ways to OpenSSL. What
needs a network, another program or another interpreter follows. TLS as users of a loop see it is in test_loop_tls.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import random
import socket
import ssl
import subprocess
import sys
import threading
import warnings
import weakref
from asyncio import sslproto
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support import Certificates, Echo, LoopFactory, Recorder, Reports, run, script, until

CLOSE_NOTIFY_FIRST_BYTES = b"\x17\x03\x03"  # TLS 1.3 dresses alerts up as data
BIG = 3_000_000


class Memory(asyncio.Transport):
    """A transport that keeps what is written and ends when it is told to."""

    def __init__(self, protocol: Any) -> None:
        super().__init__({"peername": "memory"})
        self.protocol = protocol
        self.sent = bytearray()
        self.writes = 0
        self.events: list[str] = []
        self.ended = False

    def write(self, data: Any) -> None:
        self.writes += 1
        self.sent += data

    def pause_reading(self) -> None:
        self.events.append("pause_reading")

    def resume_reading(self) -> None:
        self.events.append("resume_reading")

    def is_closing(self) -> bool:
        return self.ended

    def close(self) -> None:
        self._end("close", None)

    def abort(self) -> None:
        self._end("abort", None)

    def _force_close(self, error: BaseException | None) -> None:
        self._end("abort", error)

    def _end(self, how: str, error: BaseException | None) -> None:
        self.events.append(how)
        if not self.ended:
            self.ended = True
            asyncio.get_running_loop().call_soon(self.protocol.connection_lost, error)

    def take(self) -> bytes:
        sent = bytes(self.sent)
        self.sent.clear()
        return sent


class PlainSSLObject(ssl.SSLObject):
    """Replaces the methods that carry data, so that nobody may go round them."""

    calls = 0

    def read(self, len: int = 1024, buffer: Any = None) -> Any:
        type(self).calls += 1
        return super().read(len, buffer)

    def write(self, data: Any) -> int:
        type(self).calls += 1
        return super().write(data)


class Connection:
    """One SSLProtocol, the memory under it and the peer on the other side of that."""

    def __init__(
        self,
        make: Callable[..., Any],
        certificates: Certificates,
        application: Any,
        server_side: bool = False,
        mine: ssl.SSLContext | None = None,
        theirs: ssl.SSLContext | None = None,
        **how: Any,
    ) -> None:
        client, server = certificates.client(), certificates.server()
        if theirs is None:
            theirs = client if server_side else server
        if mine is None:
            mine = server if server_side else client
        loop = asyncio.get_running_loop()
        self.waiter: asyncio.Future[None] = loop.create_future()
        name = None if server_side else "localhost"
        self.tls = make(loop, application, mine, self.waiter, server_side, name, **how)
        self.transport = self.tls._app_transport
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.peer = theirs.wrap_bio(
            self.incoming,
            self.outgoing,
            server_side=not server_side,
            server_hostname="localhost" if server_side else None,
        )
        self.memory = Memory(self.tls)

    def feed(self, data: bytes, size: int = 1 << 20) -> None:
        """As a transport does with what it receives, in pieces of at most that size."""
        while data and not self.memory.ended:
            room = self.tls.get_buffer(-1)
            count = min(len(room), len(data), size)
            room[:count] = data[:count]
            data = data[count:]
            self.tls.buffer_updated(count)

    def pump(self) -> None:
        """Everything that was sent reaches the peer."""
        self.incoming.write(self.memory.take())

    def answer(self, size: int = 1 << 20) -> None:
        """Everything the peer has to say reaches us."""
        self.feed(self.outgoing.read(), size)

    def handshake(self, size: int = 1 << 20) -> Connection:
        self.tls.connection_made(self.memory)
        for _ in range(5):
            self.pump()
            with contextlib.suppress(ssl.SSLWantReadError):
                self.peer.do_handshake()
            self.answer(size)
        assert self.waiter.done() and self.waiter.exception() is None
        return self

    def peer_sends(self, data: bytes) -> bytes:
        """The records of that, which have not reached us yet."""
        done = 0
        while done < len(data):
            done += self.peer.write(memoryview(data)[done:])
        return self.outgoing.read()

    def peer_receives(self) -> bytes:
        self.pump()
        got = []
        with contextlib.suppress(ssl.SSLWantReadError):
            while data := self.peer.read(1 << 14):
                got.append(data)
        return b"".join(got)

    async def end(self) -> None:
        if not self.memory.ended:
            self.transport.abort()
        await asyncio.sleep(0)
        await asyncio.sleep(0)


Make = Callable[..., Any]


def native(*arguments: Any, **how: Any) -> Any:
    from erlang_loop import _loop

    return _loop._core.SSLProtocol(*arguments, **how)


def make_direct(*arguments: Any, **how: Any) -> Any:
    made = native(*arguments, **how)
    assert made._direct
    return made


def make_through_python(loop: Any, application: Any, context: Any, *rest: Any, **how: Any) -> Any:
    context.sslobject_class = PlainSSLObject
    made = native(loop, application, context, *rest, **how)
    assert not made._direct
    return made


def make_asyncio(*arguments: Any, **how: Any) -> Any:
    return sslproto.SSLProtocol(*arguments, **how)


OURS = {"direct": make_direct, "python": make_through_python}
ALL = OURS | {"asyncio": make_asyncio}


@pytest.fixture(params=list(ALL))
def make(request: pytest.FixtureRequest) -> Make:
    return ALL[request.param]


@pytest.fixture(params=list(OURS))
def make_ours(request: pytest.FixtureRequest) -> Make:
    return OURS[request.param]


@pytest.fixture(params=[False, True], ids=["client", "server"])
def server_side(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


class Quiet(Recorder):
    """A Recorder whose error keeps no frames alive."""

    def connection_lost(self, error: Exception | None) -> None:
        super().connection_lost(error.with_traceback(None) if error else None)


# ---------------------------------------------------------------------------------------------------------------------
# Data


@pytest.mark.parametrize("version", ["TLSv1_2", "TLSv1_3"])
@pytest.mark.parametrize("size", [1, 7, 1000, 1 << 20])
def test_what_comes_in_pieces_of_any_size_arrives_whole(
    loop_factory: LoopFactory,
    certificates: Certificates,
    make: Make,
    server_side: bool,
    version: str,
    size: int,
) -> None:
    async def main() -> None:
        theirs = certificates.client() if server_side else certificates.server()
        theirs.minimum_version = theirs.maximum_version = ssl.TLSVersion[version]
        recorder = Quiet()
        connection = Connection(make, certificates, recorder, server_side, theirs=theirs)
        connection.handshake(size)
        sent = b""
        for length in (1, 100, 1500) if size < 1000 else (1, 5000, 16384, 16385, 70_000):
            sent += (piece := random.randbytes(length))
            connection.feed(connection.peer_sends(piece), size)
        assert recorder.received == sent
        connection.transport.write(sent)
        assert connection.peer_receives() == sent
        await connection.end()
        assert recorder.events.count("lost") == 1

    run(loop_factory, main)


def test_many_records_at_once_are_one_call_and_one_write_is_one_write_below(
    loop_factory: LoopFactory, certificates: Certificates, make: Make
) -> None:
    async def main() -> None:
        recorder = Quiet()
        connection = Connection(make, certificates, recorder).handshake()
        connection.feed(connection.peer_sends(bytes(100_000)))
        assert recorder.events == ["made", "data"]
        connection.memory.writes = 0
        connection.transport.write(bytes(100_000))
        connection.transport.writelines([b"a", b"bc", bytes(20_000)])
        assert connection.memory.writes == 2
        assert connection.peer_receives() == bytes(100_000) + b"abc" + bytes(20_000)
        await connection.end()

    run(loop_factory, main)


def test_small_pieces_of_a_list_share_records(
    loop_factory: LoopFactory, certificates: Certificates, make_ours: Make
) -> None:
    async def main() -> None:
        connection = Connection(make_ours, certificates, Quiet()).handshake()
        connection.transport.write(b"ab")
        one_write = len(connection.memory.sent)
        connection.peer_receives()
        connection.transport.writelines([b"a", bytearray(b"b")])
        assert len(connection.memory.sent) == one_write
        assert connection.peer_receives() == b"ab"
        pieces = [random.randbytes(size) for size in (0, 1, 16383, 2, 16384, 50_000, 3)]
        connection.transport.writelines(iter(pieces))
        assert connection.peer_receives() == b"".join(pieces)
        await connection.end()

    run(loop_factory, main)


def test_any_kind_of_bytes_is_written_and_nothing_else(
    loop_factory: LoopFactory, certificates: Certificates, make: Make
) -> None:
    async def main() -> None:
        connection = Connection(make, certificates, Quiet()).handshake()
        transport = connection.transport
        mutable = bytearray(b"array")
        for data in (b"bytes", mutable, memoryview(b"view"), b"", bytearray()):
            transport.write(data)
        mutable[:] = b"other"
        assert connection.peer_receives() == b"bytesarrayview"
        for wrong in ("text", None, 1, [b"x"]):
            with pytest.raises(TypeError, match="expecting a bytes-like instance, got"):
                transport.write(wrong)
        assert not transport.can_write_eof()
        with pytest.raises(NotImplementedError):
            transport.write_eof()
        transport.write(b"still there")
        assert connection.peer_receives() == b"still there"
        await connection.end()

    run(loop_factory, main)


class Buffered(asyncio.BufferedProtocol):
    """Takes data in a buffer of a given size."""

    def __init__(self, size: int, view: bool) -> None:
        self.memory = bytearray(size)
        self.room: Any = memoryview(self.memory) if view else self.memory
        self.received = bytearray()
        self.calls = 0

    def get_buffer(self, sizehint: int) -> Any:
        return self.room

    def buffer_updated(self, nbytes: int) -> None:
        self.calls += 1
        self.received += self.memory[:nbytes]


@pytest.mark.parametrize("size", [1, 100, 16384, 1 << 18])
def test_a_buffered_protocol_gets_everything_a_buffer_at_a_time(
    loop_factory: LoopFactory, certificates: Certificates, make: Make, size: int
) -> None:
    async def main() -> None:
        protocol = Buffered(size, view=True)
        connection = Connection(make, certificates, protocol).handshake()
        sent = random.randbytes(300 if size == 1 else 60_000)
        connection.feed(connection.peer_sends(sent))
        assert protocol.calls == 1  # the rest when others have had their turn
        await until(lambda: len(protocol.received) == len(sent))
        assert protocol.received == sent
        await connection.end()

    run(loop_factory, main)


def test_a_buffer_that_is_a_bytearray_is_filled_across_records(
    loop_factory: LoopFactory, certificates: Certificates, make_ours: Make
) -> None:
    async def main() -> None:
        protocol = Buffered(100_000, view=False)
        connection = Connection(make_ours, certificates, protocol).handshake()
        sent = random.randbytes(50_000)
        connection.feed(connection.peer_sends(sent))
        assert protocol.received == sent
        await connection.end()

    run(loop_factory, main)


def test_a_protocol_may_change_to_another_kind_in_the_middle(
    loop_factory: LoopFactory, certificates: Certificates, make: Make
) -> None:
    async def main() -> None:
        plain, buffered = Quiet(), Buffered(10, view=True)
        connection = Connection(make, certificates, plain).handshake()
        connection.feed(connection.peer_sends(b"plain"))
        connection.transport.set_protocol(buffered)
        assert connection.transport.get_protocol() is buffered
        connection.feed(connection.peer_sends(b"in a buffer of ten"))
        connection.transport.set_protocol(plain)
        await until(lambda: len(plain.received) == 13)  # what did not fit
        assert (plain.received, buffered.received) == (b"plainr of ten", b"in a buffe")
        await connection.end()

    run(loop_factory, main)


def test_nothing_is_delivered_while_reading_is_paused_and_the_transport_is_held_back(
    loop_factory: LoopFactory, certificates: Certificates, make: Make
) -> None:
    async def main() -> None:
        recorder = Quiet()
        connection = Connection(make, certificates, recorder).handshake()
        transport = connection.transport
        transport.pause_reading()
        assert not transport.is_reading()
        sent = random.randbytes(400_000)
        records = connection.peer_sends(sent)
        connection.feed(records[:200_000])
        assert transport.get_read_buffer_size() == 200_000
        assert connection.memory.events == []
        connection.feed(records[200_000:])
        assert connection.memory.events == ["pause_reading"]
        assert recorder.received == b""
        transport.resume_reading()
        assert transport.is_reading() and recorder.received == b""
        await until(lambda: recorder.received)
        assert recorder.received == sent
        assert connection.memory.events == ["pause_reading", "resume_reading"]
        assert transport.get_read_buffer_size() == 0
        await connection.end()

    run(loop_factory, main)


def test_limits_are_checked_and_told_as_asyncio_does(
    loop_factory: LoopFactory, certificates: Certificates, make: Make
) -> None:
    async def main() -> None:
        recorder = Quiet()
        connection = Connection(make, certificates, recorder).handshake()
        transport = connection.transport
        assert transport.get_write_buffer_limits() == (128 * 1024, 512 * 1024)
        assert transport.get_read_buffer_limits() == (64 * 1024, 256 * 1024)
        for kind in ("write", "read"):
            put = getattr(transport, f"set_{kind}_buffer_limits")
            limits = getattr(transport, f"get_{kind}_buffer_limits")
            for arguments, expected in (
                ({"high": 1000}, (250, 1000)),
                ({"low": 1000}, (1000, 4000)),
                ({"high": 0}, (0, 0)),
                ({"high": 5, "low": 5}, (5, 5)),
            ):
                put(**arguments)
                assert limits() == expected
            for wrong in ({"high": 1, "low": 2}, {"high": -1}, {"low": -1}):
                with pytest.raises(ValueError, match=r"high \(-?\d+\) must be >= low"):
                    put(**wrong)
            put()
        # A limit of zero means that an empty buffer is a full one.
        assert recorder.events == ["made", "pause", "resume"]
        transport.set_write_buffer_limits(high=1000, low=500)
        connection.tls.pause_writing()
        transport.write(bytes(900))
        assert recorder.events[-1] == "resume"
        transport.write(bytes(900))
        assert recorder.events[-1] == "pause"
        assert transport.get_write_buffer_size() >= 1800
        connection.tls.resume_writing()
        assert recorder.events[-1] == "resume" and transport.get_write_buffer_size() == 0
        assert connection.peer_receives() == bytes(1800)
        await connection.end()

    run(loop_factory, main)


def resident() -> int:
    pages = Path("/proc/self/statm").read_text().split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


def test_what_a_slow_transport_does_not_take_is_not_kept_twice(
    loop_factory: LoopFactory, certificates: Certificates, make_ours: Make
) -> None:
    """A protocol that ignores pause_writing() pays for what it wrote, not for its encryption as well."""

    async def main() -> None:
        recorder = Quiet()
        connection = Connection(make_ours, certificates, recorder).handshake()
        piece = bytes(1 << 20)
        connection.tls.pause_writing()
        before = resident()
        for _ in range(40):
            connection.transport.write(piece)
        assert resident() - before < 10 << 20
        assert connection.transport.get_write_buffer_size() == 40 << 20
        assert recorder.events.count("pause") == 1
        connection.tls.resume_writing()
        assert connection.transport.get_write_buffer_size() == 0
        assert connection.peer_receives() == bytes(40 << 20)
        assert recorder.events.count("resume") == 1
        await connection.end()

    run(loop_factory, main)


def test_a_close_sends_what_the_transport_has_not_taken_yet(
    loop_factory: LoopFactory, certificates: Certificates, make: Make
) -> None:
    async def main() -> None:
        recorder = Quiet()
        connection = Connection(make, certificates, recorder).handshake()
        connection.tls.pause_writing()
        sent = random.randbytes(BIG)
        connection.transport.write(sent)
        connection.transport.close()
        assert connection.memory.sent == b""
        connection.tls.resume_writing()
        assert connection.peer_receives() == sent
        with pytest.raises(ssl.SSLWantReadError):  # the farewell has been said, and is answered
            connection.peer.unwrap()
            raise ssl.SSLWantReadError
        connection.answer()
        await asyncio.wait_for(recorder.lost, 5)
        assert recorder.error is None

    run(loop_factory, main)


def test_a_close_while_reading_is_paused_loses_nothing_that_was_written(
    loop_factory: LoopFactory, certificates: Certificates, make_ours: Make
) -> None:
    async def main() -> None:
        recorder = Quiet()
        connection = Connection(make_ours, certificates, recorder).handshake()
        connection.transport.pause_reading()
        connection.tls.pause_writing()
        sent = random.randbytes(BIG)
        connection.transport.write(sent)
        connection.transport.close()
        connection.tls.resume_writing()
        assert connection.peer_receives() == sent
        await connection.end()

    run(loop_factory, main)


# ---------------------------------------------------------------------------------------------------------------------
# Bad input


def outcome(error: BaseException | None) -> tuple[str, str | None]:
    return type(error).__name__, getattr(error, "reason", None)


GARBAGE = {
    "text": b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "zeros": bytes(100),
    "a record that is too long": b"\x16\x03\x01\xff\xff" + bytes(70_000),
    "an alert": b"\x15\x03\x01\x00\x02\x02\x28",
    "a handshake of nonsense": b"\x16\x03\x01\x00\x10" + b"\xff" * 16,
}


@pytest.mark.parametrize("kind", list(GARBAGE))
def test_garbage_instead_of_a_handshake_fails_it_as_in_asyncio(
    loop_factory: LoopFactory, certificates: Certificates, server_side: bool, kind: str
) -> None:
    async def main() -> None:
        outcomes = set()
        for make in ALL.values():
            recorder, reports = Quiet(), Reports(asyncio.get_running_loop())
            connection = Connection(make, certificates, recorder, server_side)
            connection.tls.connection_made(connection.memory)
            connection.feed(GARBAGE[kind])
            outcomes.add(outcome(connection.waiter.exception()))
            assert connection.memory.events[0] == "abort"
            await connection.end()
            assert recorder.events == [] and reports.messages == []
        assert len(outcomes) == 1 and outcomes.pop()[0].startswith("SSL")

    run(loop_factory, main)


@pytest.mark.parametrize("version", ["TLSv1_2", "TLSv1_3"])
@pytest.mark.parametrize("harm", ["flipped", "unknown", "plain alert"])
def test_a_spoilt_record_ends_the_connection_as_in_asyncio_after_what_came_before_it(
    loop_factory: LoopFactory, certificates: Certificates, version: str, harm: str
) -> None:
    async def main() -> None:
        outcomes = set()
        for make in ALL.values():
            recorder, reports = Quiet(), Reports(asyncio.get_running_loop())
            theirs = certificates.server()
            theirs.minimum_version = theirs.maximum_version = ssl.TLSVersion[version]
            connection = Connection(make, certificates, recorder, theirs=theirs).handshake()
            good, bad = connection.peer_sends(b"good"), bytearray(connection.peer_sends(b"bad"))
            if harm == "flipped":
                bad[-1] ^= 1
            elif harm == "unknown":
                bad[0] = 99
            else:
                bad[:] = b"\x15\x03\x03\x00\x02\x02\x14"
            connection.feed(good)
            connection.feed(bytes(bad))
            await asyncio.wait_for(recorder.lost, 5)
            outcomes.add(outcome(recorder.error))
            assert recorder.received == b"good"
            assert recorder.events[-1] == "lost" and reports.messages == []
        assert len(outcomes) == 1 and outcomes.pop()[0] == "SSLError"

    run(loop_factory, main)


def test_what_came_before_a_spoilt_record_in_the_same_packet_is_delivered(
    loop_factory: LoopFactory, certificates: Certificates, make_ours: Make
) -> None:
    async def main() -> None:
        recorder = Quiet()
        connection = Connection(make_ours, certificates, recorder).handshake()
        records = bytearray(connection.peer_sends(b"good") + connection.peer_sends(b"bad"))
        records[-1] ^= 1
        connection.feed(bytes(records))
        assert recorder.received == b"good"
        await asyncio.wait_for(recorder.lost, 5)
        assert outcome(recorder.error) == ("SSLError", "DECRYPTION_FAILED_OR_BAD_RECORD_MAC")

    run(loop_factory, main)


def test_what_is_written_to_a_connection_that_has_just_failed_is_lost_quietly(
    loop_factory: LoopFactory, certificates: Certificates, make: Make
) -> None:
    async def main() -> None:
        recorder, reports = Quiet(), Reports(asyncio.get_running_loop())
        connection = Connection(make, certificates, recorder).handshake()
        spoilt = bytearray(connection.peer_sends(b"bad"))
        spoilt[-1] ^= 1
        connection.feed(bytes(spoilt))
        for data in (b"too late", bytes(100_000), bytes(1_000_000)):
            connection.transport.write(data)
        connection.transport.writelines([b"too", b"late"])
        connection.transport.close()
        await asyncio.wait_for(recorder.lost, 5)
        assert outcome(recorder.error) == ("SSLError", "DECRYPTION_FAILED_OR_BAD_RECORD_MAC")
        assert reports.messages == []

    run(loop_factory, main)


def test_random_noise_never_does_more_than_end_a_connection(
    loop_factory: LoopFactory, certificates: Certificates, make_ours: Make, server_side: bool
) -> None:
    async def main() -> None:
        chance = random.Random(1)
        for attempt in range(60):
            recorder = Quiet()
            connection = Connection(make_ours, certificates, recorder, server_side)
            if attempt % 3:
                connection.handshake()
                noise = bytearray(
                    connection.peer_sends(chance.randbytes(chance.randrange(1, 4000)))
                )
            else:
                connection.tls.connection_made(connection.memory)
                with contextlib.suppress(ssl.SSLWantReadError):
                    connection.peer.do_handshake()
                noise = bytearray(connection.outgoing.read()) or bytearray(chance.randbytes(500))
            for _ in range(chance.randrange(1, 5)):
                noise[chance.randrange(len(noise))] = chance.randrange(256)
            connection.feed(
                bytes(noise[: chance.randrange(len(noise)) + 1]), chance.randrange(1, 500)
            )
            connection.tls.eof_received()
            await connection.end()
            assert recorder.events.count("lost") == recorder.events.count("made")

    run(loop_factory, main)


# ---------------------------------------------------------------------------------------------------------------------
# Ends


def state(connection: Connection) -> str:
    return str(connection.tls._state.name)


def test_a_connection_is_made_once(
    loop_factory: LoopFactory, certificates: Certificates, make: Make
) -> None:
    async def main() -> None:
        connection = Connection(make, certificates, Quiet()).handshake()
        text = "cannot switch state from SSLProtocolState.WRAPPED to SSLProtocolState.DO_HANDSHAKE"
        with pytest.raises(RuntimeError, match=text):
            connection.tls.connection_made(connection.memory)
        await connection.end()

    run(loop_factory, main)


def test_both_sides_say_farewell(
    loop_factory: LoopFactory, certificates: Certificates, make: Make, server_side: bool
) -> None:
    async def main() -> None:
        recorder = Quiet()
        connection = Connection(make, certificates, recorder, server_side).handshake()
        assert state(connection) == "WRAPPED"
        connection.transport.close()
        assert connection.transport.is_closing() and state(connection) == "SHUTDOWN"
        connection.pump()
        connection.peer.unwrap()
        connection.answer()
        await asyncio.wait_for(recorder.lost, 5)
        assert recorder.events == ["made", "eof", "lost"] and recorder.error is None
        assert connection.memory.events == ["close"] and state(connection) == "UNWRAPPED"

    run(loop_factory, main)


def test_a_transport_that_is_closed_may_still_be_asked_anything(
    loop_factory: LoopFactory, certificates: Certificates, make_ours: Make
) -> None:
    async def main() -> None:
        connection = Connection(make_ours, certificates, Quiet()).handshake()
        await connection.end()
        transport = connection.transport
        for _ in range(2):
            transport.close()
            transport.abort()
        transport.write(b"into nothing")
        transport.pause_reading()
        transport.resume_reading()
        assert transport.is_closing() and transport.get_protocol() is None
        assert transport.get_extra_info("peername", "nobody") == "nobody"
        assert transport.get_write_buffer_size() == transport.get_read_buffer_size() == 0
        await asyncio.sleep(0)

    run(loop_factory, main)


def test_a_farewell_of_the_peer_is_answered_after_its_last_data(
    loop_factory: LoopFactory, certificates: Certificates, make: Make
) -> None:
    async def main() -> None:
        recorder = Quiet()
        connection = Connection(make, certificates, recorder).handshake()
        last = connection.peer_sends(b"last")
        with contextlib.suppress(ssl.SSLWantReadError):
            connection.peer.unwrap()
        connection.feed(last + connection.outgoing.read())
        assert recorder.received == b"last" and connection.transport.is_closing()
        connection.pump()
        connection.peer.unwrap()
        await asyncio.wait_for(recorder.lost, 5)
        assert recorder.events == ["made", "data", "eof", "lost"]

    run(loop_factory, main)


def test_an_end_without_a_farewell_is_an_end_of_the_data(
    loop_factory: LoopFactory, certificates: Certificates, make: Make
) -> None:
    async def main() -> None:
        recorder = Quiet()
        connection = Connection(make, certificates, recorder).handshake()
        connection.feed(connection.peer_sends(b"cut ") + connection.peer_sends(b"off")[:-1])
        assert not connection.tls.eof_received()
        await asyncio.wait_for(recorder.lost, 5)
        assert recorder.received == b"cut "
        assert recorder.events == ["made", "data", "eof", "lost"] and recorder.error is None

    run(loop_factory, main)


def test_an_end_while_reading_is_paused_waits_for_the_reader(
    loop_factory: LoopFactory, certificates: Certificates, make: Make
) -> None:
    async def main() -> None:
        recorder = Quiet()
        connection = Connection(make, certificates, recorder).handshake()
        connection.transport.pause_reading()
        connection.feed(connection.peer_sends(b"unread"))
        assert connection.tls.eof_received() is True
        assert recorder.events == ["made"]
        connection.transport.resume_reading()
        await asyncio.wait_for(recorder.lost, 5)
        assert recorder.events == ["made", "data", "eof", "lost"] and recorder.received == b"unread"

    run(loop_factory, main)


@pytest.mark.parametrize("how", ["close", "abort", "end", "lost"])
def test_an_end_in_the_middle_of_a_handshake_is_told_once(
    loop_factory: LoopFactory, certificates: Certificates, make: Make, how: str
) -> None:
    async def main() -> None:
        recorder, reports = Quiet(), Reports(asyncio.get_running_loop())
        connection = Connection(make, certificates, recorder)
        connection.tls.connection_made(connection.memory)
        assert state(connection) == "DO_HANDSHAKE"
        if how == "end":
            connection.tls.eof_received()
        elif how == "lost":
            connection.tls.connection_lost(ConnectionResetError("gone"))
        else:
            getattr(connection.transport, how)()
            assert connection.transport.is_closing()
        await connection.end()
        assert recorder.events == [] and reports.messages == []
        assert connection.waiter.done()
        if how in ("end", "lost"):
            assert isinstance(connection.waiter.exception(), ConnectionResetError)
        assert connection.tls._handshake_timeout_handle is None

    run(loop_factory, main)


def test_a_handshake_that_takes_too_long_is_given_up(
    loop_factory: LoopFactory, certificates: Certificates, make: Make
) -> None:
    async def main() -> None:
        connection = Connection(make, certificates, Quiet(), ssl_handshake_timeout=0.01)
        connection.tls.connection_made(connection.memory)
        with pytest.raises(ConnectionAbortedError, match="longer than 0.01 seconds: aborting"):
            await asyncio.wait_for(connection.waiter, 5)
        assert connection.memory.events == ["abort"]

    run(loop_factory, main)


def test_a_farewell_that_is_not_answered_is_given_up(
    loop_factory: LoopFactory, certificates: Certificates, make: Make
) -> None:
    async def main() -> None:
        recorder = Quiet()
        connection = Connection(make, certificates, recorder, ssl_shutdown_timeout=0.01).handshake()
        connection.transport.close()
        await asyncio.wait_for(recorder.lost, 5)
        assert isinstance(recorder.error, TimeoutError)
        assert str(recorder.error) == "SSL shutdown timed out"

    run(loop_factory, main)


def test_a_transport_that_cannot_send_its_rest_is_given_up_too(
    loop_factory: LoopFactory, certificates: Certificates, make_ours: Make
) -> None:
    """The farewells are said, but the transport below never closes: asyncio waits for ever before Python 3.14."""

    async def main() -> None:
        recorder = Quiet()
        connection = Connection(
            make_ours, certificates, recorder, ssl_shutdown_timeout=0.02
        ).handshake()
        connection.memory.close = lambda: None  # type: ignore[method-assign]
        connection.transport.close()
        connection.pump()
        connection.peer.unwrap()
        connection.answer()
        await asyncio.wait_for(recorder.lost, 5)
        assert isinstance(recorder.error, TimeoutError)

    run(loop_factory, main)


@pytest.mark.parametrize("name", ["ssl_handshake_timeout", "ssl_shutdown_timeout"])
@pytest.mark.parametrize("wrong", [0, -1, 0.0])
def test_time_outs_are_positive(
    loop_factory: LoopFactory, certificates: Certificates, make: Make, name: str, wrong: float
) -> None:
    async def main() -> None:
        with pytest.raises(ValueError, match=f"{name} should be a positive number, got {wrong}"):
            Connection(make, certificates, Quiet(), **{name: wrong})

    run(loop_factory, main)


def test_writes_to_a_connection_that_is_gone_are_warned_of(
    loop_factory: LoopFactory,
    certificates: Certificates,
    make: Make,
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def main() -> None:
        connection = Connection(make, certificates, Quiet()).handshake()
        await connection.end()
        for _ in range(10):
            connection.transport.write(b"lost")
        assert connection.memory.sent == b""

    run(loop_factory, main)
    assert [record.message for record in caplog.records].count("SSL connection is closed") >= 4


def test_a_transport_that_nobody_closed_is_warned_of(
    loop_factory: LoopFactory, certificates: Certificates, make: Make
) -> None:
    async def main() -> None:
        with pytest.warns(
            ResourceWarning, match="unclosed transport <asyncio._SSLProtocolTransport"
        ):
            Connection(make, certificates, Quiet())
            gc.collect()

    run(loop_factory, main)


def test_a_transport_whose_connection_was_lost_needs_no_close(
    loop_factory: LoopFactory, certificates: Certificates, make: Make
) -> None:
    async def main() -> None:
        recorder = Quiet()
        connection = Connection(make, certificates, recorder).handshake()
        transport = connection.transport
        connection.memory.abort()
        await recorder.lost
        assert transport.is_closing()
        del connection, transport
        gc.collect()

    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        run(loop_factory, main)
        gc.collect()
    assert [str(warning.message) for warning in warned] == []


# ---------------------------------------------------------------------------------------------------------------------
# Applications that raise


@pytest.mark.parametrize(
    "where", ["data_received", "eof_received", "pause_writing", "resume_writing"]
)
def test_what_an_application_raises_is_told_as_in_asyncio(
    loop_factory: LoopFactory, certificates: Certificates, where: str
) -> None:
    async def main() -> None:
        told = []
        for make in ALL.values():
            reports = Reports(asyncio.get_running_loop())

            def fails(self: Any, *_: Any) -> None:
                raise ValueError("mine")

            recorder = type("Faulty", (Quiet,), {where: fails})()
            connection = Connection(make, certificates, recorder).handshake()
            connection.transport.set_write_buffer_limits(high=10)
            connection.tls.pause_writing()
            connection.transport.write(b"more than ten bytes")
            connection.tls.resume_writing()
            connection.feed(connection.peer_sends(b"data"))
            with contextlib.suppress(ssl.SSLWantReadError):
                connection.peer.unwrap()
            connection.answer()
            await connection.end()
            told.append((reports.messages, reports.errors, reports.keys, recorder.events[-1]))
        assert told[0] == told[1] == told[2]
        assert told[0][1] == ["ValueError('mine')"]

    run(loop_factory, main)


@pytest.mark.parametrize("where", ["get_buffer", "buffer_updated", "empty"])
def test_a_buffered_application_that_fails_loses_its_connection(
    loop_factory: LoopFactory, certificates: Certificates, make_ours: Make, where: str
) -> None:
    async def main() -> None:
        reports = Reports(asyncio.get_running_loop())

        class Faulty(Buffered):
            armed = False

            def get_buffer(self, sizehint: int) -> Any:
                if where == "get_buffer" and self.armed:
                    raise ValueError("mine")
                return bytearray() if where == "empty" and self.armed else self.room

            def buffer_updated(self, nbytes: int) -> None:
                raise ValueError("mine")

        protocol = Faulty(10, view=True)
        connection = Connection(make_ours, certificates, protocol).handshake()
        protocol.armed = True
        connection.feed(connection.peer_sends(b"data"))
        assert connection.memory.events == ["abort"]
        await connection.end()
        text = "RuntimeError('get_buffer() returned an empty buffer')"
        assert reports.errors == [text if where == "empty" else "ValueError('mine')"]

    run(loop_factory, main)


def test_an_interrupt_leaves_through_the_transport(
    loop_factory: LoopFactory, certificates: Certificates, make: Make
) -> None:
    async def main() -> None:
        class Interrupted(Quiet):
            def data_received(self, data: bytes) -> None:
                raise KeyboardInterrupt

        connection = Connection(make, certificates, Interrupted()).handshake()
        with pytest.raises(KeyboardInterrupt):
            connection.feed(connection.peer_sends(b"data"))
        await connection.end()

    run(loop_factory, main)


@pytest.mark.parametrize("verb", ["close", "abort", "write", "pause_reading", "lost"])
def test_an_application_may_do_anything_when_it_gets_data(
    loop_factory: LoopFactory, certificates: Certificates, make: Make, verb: str
) -> None:
    async def main() -> None:
        class Acts(Quiet):
            def data_received(self, data: bytes) -> None:
                super().data_received(data)
                if verb == "write":
                    for _ in range(3):
                        connection.transport.write(data)
                elif verb == "lost":
                    connection.memory.ended = True
                    connection.tls.connection_lost(None)
                else:
                    getattr(connection.transport, verb)()

        recorder, reports = Acts(), Reports(asyncio.get_running_loop())
        connection = Connection(make, certificates, recorder).handshake()
        connection.feed(connection.peer_sends(b"do it"))
        assert recorder.received == b"do it"
        if verb == "write":
            assert connection.peer_receives() == 3 * b"do it"
        if verb == "close":
            assert state(connection) == "SHUTDOWN"
        await connection.end()
        if make is not make_asyncio or verb not in ("abort", "lost"):
            assert reports.messages == []

    run(loop_factory, main)


# ---------------------------------------------------------------------------------------------------------------------
# What is known of a connection


def test_extra_info_grows_with_the_handshake_and_asks_the_transport_for_the_rest(
    loop_factory: LoopFactory, certificates: Certificates, make: Make
) -> None:
    async def main() -> None:
        context = certificates.client()
        context.set_alpn_protocols(["h2", "http/1.1"])
        theirs = certificates.server()
        theirs.set_alpn_protocols(["http/1.1"])
        connection = Connection(make, certificates, Quiet(), mine=context, theirs=theirs)
        info = connection.transport.get_extra_info
        assert info("sslcontext") is context
        assert info("ssl_object") is None and info("peername") is None
        connection.handshake()
        assert info("ssl_object").selected_alpn_protocol() == "http/1.1"
        assert info("cipher") == info("ssl_object").cipher()
        assert info("peercert")["subject"] and info("compression") is None
        assert info("peername") == "memory"
        assert info("nothing") is None and info("nothing", default=7) == 7
        assert connection.tls._get_extra_info("nothing", 8) == 8
        await connection.end()
        assert info("peername") is None and info("cipher")

    run(loop_factory, main)


def test_an_ssl_object_outlives_its_connection(
    loop_factory: LoopFactory, certificates: Certificates, make_ours: Make
) -> None:
    async def main() -> None:
        connection = Connection(make_ours, certificates, Quiet()).handshake()
        mine = connection.transport.get_extra_info("ssl_object")
        assert mine.version() == "TLSv1.3" and mine.pending() == 0
        with pytest.raises(ssl.SSLWantReadError):
            mine.read()
        await connection.end()
        del connection
        gc.collect()
        for call in (mine.read, mine.unwrap, lambda: mine.write(bytes(100_000))):
            with contextlib.suppress(ssl.SSLError):
                call()
        assert mine.cipher() and mine.session

    run(loop_factory, main)


def test_the_transport_is_one_of_asyncios_kind(
    loop_factory: LoopFactory, certificates: Certificates, make: Make
) -> None:
    async def main() -> None:
        connection = Connection(make, certificates, Quiet()).handshake()
        transport = connection.transport
        assert isinstance(transport, asyncio.Transport)
        assert isinstance(transport, asyncio.transports._FlowControlMixin)  # type: ignore[attr-defined]
        assert isinstance(connection.tls, asyncio.BufferedProtocol)
        assert transport._start_tls_compatible is True
        assert transport._sendfile_compatible is asyncio.constants._SendfileMode.FALLBACK  # type: ignore[attr-defined]
        assert transport._loop is asyncio.get_running_loop()
        assert transport._ssl_protocol is connection.tls
        assert transport._protocol_paused is False
        assert connection.tls._get_app_transport() is transport
        transport.note = "attributes of one's own"
        assert weakref.ref(transport)().note
        await connection.end()

    run(loop_factory, main)


def test_a_server_may_choose_its_certificate_by_name_when_it_hears_it(
    loop_factory: LoopFactory, certificates: Certificates, make: Make
) -> None:
    async def main() -> None:
        heard = []
        other = certificates.server()
        first = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)

        def choose(ssl_object: ssl.SSLObject, name: str | None, context: ssl.SSLContext) -> None:
            heard.append(name)
            ssl_object.context = other

        first.sni_callback = choose
        recorder = Quiet()
        connection = Connection(make, certificates, recorder, True, mine=first).handshake()
        assert heard == ["localhost"]
        connection.feed(connection.peer_sends(b"over the other"))
        assert recorder.received == b"over the other"
        await connection.end()

    run(loop_factory, main)


def test_a_callback_that_raises_fails_the_handshake(
    loop_factory: LoopFactory, certificates: Certificates, make: Make
) -> None:
    async def main() -> None:
        context = certificates.server()

        def refuse(*_: Any) -> int:
            return ssl.ALERT_DESCRIPTION_ACCESS_DENIED

        context.sni_callback = refuse
        connection = Connection(make, certificates, Quiet(), True, mine=context)
        connection.tls.connection_made(connection.memory)
        with contextlib.suppress(ssl.SSLWantReadError):
            connection.peer.do_handshake()
        connection.answer()
        assert outcome(connection.waiter.exception())[0] == "SSLError"
        await connection.end()

    run(loop_factory, main)


def test_keys_are_logged_where_they_are_asked_for(
    loop_factory: LoopFactory, certificates: Certificates, make: Make, tmp_path: Path
) -> None:
    async def main() -> None:
        context = certificates.client()
        context.keylog_filename = str(tmp_path / "keys")
        recorder = Quiet()
        connection = Connection(make, certificates, recorder, mine=context).handshake()
        connection.feed(connection.peer_sends(b"logged"))
        assert recorder.received == b"logged"
        await connection.end()

    run(loop_factory, main)
    assert "CLIENT_TRAFFIC_SECRET_0" in (tmp_path / "keys").read_text()


def test_a_replaced_way_to_read_is_not_gone_round(
    loop_factory: LoopFactory, certificates: Certificates
) -> None:
    async def main() -> None:
        recorder = Quiet()
        connection = Connection(make_through_python, certificates, recorder).handshake()
        PlainSSLObject.calls = 0
        connection.feed(connection.peer_sends(b"data"))
        connection.transport.write(b"data")
        assert recorder.received == b"data" and PlainSSLObject.calls >= 2
        await connection.end()

    run(loop_factory, main)


def test_nothing_keeps_a_connection_that_is_over(
    loop_factory: LoopFactory, certificates: Certificates, make_ours: Make
) -> None:
    """Not even until the collector of garbage comes."""

    async def main() -> None:
        gc.disable()
        try:
            context = certificates.client()
            connection = Connection(make_ours, certificates, Quiet(), mine=context).handshake()
            connection.transport.write(b"data")
            await connection.end()
            dead = [weakref.ref(one) for one in (connection.tls, connection.transport, context)]
            del connection, context
            await asyncio.sleep(0)
            assert [one() for one in dead] == [None, None, None]
        finally:
            gc.enable()

    run(loop_factory, main)


def test_an_application_that_keeps_its_transport_goes_with_it_even_if_the_loop_runs_no_more(
    loop_factory: LoopFactory, certificates: Certificates, make: Make
) -> None:
    """The peer has said farewell and the application closes: connection_lost() was not called yet."""
    dead: list[weakref.ref[Any]] = []

    async def main() -> None:
        recorder = Quiet()
        connection = Connection(make, certificates, recorder).handshake()
        with contextlib.suppress(ssl.SSLWantReadError):
            connection.peer.unwrap()
        connection.answer()
        assert recorder.transport is connection.transport
        recorder.transport.close()
        connection.memory.protocol = None  # as a transport that has told its protocol of the end
        dead.append(weakref.ref(recorder))

    loop = loop_factory()
    gc.disable()
    try:
        loop.run_until_complete(main())
        assert dead[0]() is None
    finally:
        gc.enable()
        loop.close()


def test_a_cycle_through_a_connection_is_collected(
    loop_factory: LoopFactory, certificates: Certificates, make_ours: Make
) -> None:
    async def main() -> None:
        recorder = Quiet()
        connection = Connection(make_ours, certificates, recorder).handshake()
        connection.tls.pause_writing()
        connection.transport.write(bytes(1000))
        recorder.connection = connection  # type: ignore[attr-defined]
        connection.transport.itself = connection.transport
        dead = weakref.ref(connection.tls)
        await connection.end()
        del connection, recorder
        gc.collect()
        assert dead() is None

    run(loop_factory, main)


# ---------------------------------------------------------------------------------------------------------------------
# Over the network


class Recording:
    """Forwards one connection after the other to an address, and keeps every byte that passes."""

    def __init__(self, address: tuple[str, int]) -> None:
        self.passed = bytearray()
        self.address = address
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.threads = [threading.Thread(target=self._accept)]
        self.threads[0].start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self.listener.accept()
                far = socket.create_connection(self.address)
                for source, sink in ((near, far), (far, near)):
                    self.threads.append(threading.Thread(target=self._copy, args=(source, sink)))
                    self.threads[-1].start()

    def _copy(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                self.passed += data
                sink.sendall(data)
        with contextlib.suppress(OSError):
            sink.shutdown(socket.SHUT_WR)
        if sum(thread.is_alive() for thread in self.threads[1:]) == 1:  # the last one of a pair
            source.close()
            sink.close()

    def stop(self) -> None:
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        for thread in self.threads:
            thread.join(5)


@contextlib.asynccontextmanager
async def recorded(certificates: Certificates) -> AsyncIterator[Recording]:
    server = await asyncio.get_running_loop().create_server(
        Echo, "127.0.0.1", 0, ssl=certificates.server()
    )
    recording = Recording(server.sockets[0].getsockname())
    try:
        yield recording
    finally:
        await asyncio.to_thread(recording.stop)
        server.close()
        await server.wait_closed()


PAYLOAD = b"the quick brown fox jumps over the lazy dog, and nobody else may know"


def test_nobody_on_the_way_can_read_what_is_said_and_nobody_gets_in_without_tls(
    loop_factory: LoopFactory, certificates: Certificates
) -> None:
    async def main() -> None:
        async with recorded(certificates) as recording:
            address = recording.listener.getsockname()
            reader, writer = await asyncio.open_connection(
                *address, ssl=certificates.client(), server_hostname="localhost"
            )
            for _ in range(50):
                writer.write(PAYLOAD)
            writer.writelines([PAYLOAD] * 50)
            assert await reader.readexactly(100 * len(PAYLOAD)) == 100 * PAYLOAD
            writer.close()
            await writer.wait_closed()
            assert len(recording.passed) > 200 * len(PAYLOAD)
            for start in range(0, len(PAYLOAD) - 8, 4):
                assert PAYLOAD[start : start + 8] not in recording.passed
            # The same without TLS: the bytes are on the wire, as they are when nobody hides them, and no echo comes.
            reader, writer = await asyncio.open_connection(*address)
            writer.write(PAYLOAD)
            with contextlib.suppress(ConnectionError):
                assert PAYLOAD not in await reader.read()
            assert recording.passed.count(PAYLOAD) == 1
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()

    run(loop_factory, main)


def test_tls_inside_tls(loop_factory: LoopFactory, certificates: Certificates) -> None:
    """As to a server behind a proxy that is spoken to over TLS itself."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        served: list[asyncio.Task[None]] = []

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            assert await reader.readline() == b"INNER\n"
            writer.write(b"GO\n")
            await writer.drain()
            inner = await loop.start_tls(
                writer.transport,  # type: ignore[arg-type]
                writer.transport.get_protocol(),
                certificates.server(),
                server_side=True,
            )
            served.append(asyncio.current_task())  # type: ignore[arg-type]
            while data := await reader.read(1 << 16):
                inner.write(data)  # type: ignore[union-attr]
            inner.close()  # type: ignore[union-attr]

        server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=certificates.server())
        async with server:
            reader, writer = await asyncio.open_connection(
                *server.sockets[0].getsockname(),
                ssl=certificates.client(),
                server_hostname="localhost",
            )
            outer = writer.transport
            writer.write(b"INNER\n")
            assert await reader.readline() == b"GO\n"
            inner = await loop.start_tls(
                outer,  # type: ignore[arg-type]
                outer.get_protocol(),
                certificates.client(),
                server_hostname="localhost",
            )
            assert inner is not outer and isinstance(inner, asyncio.Transport)
            sent = os.urandom(BIG)
            inner.write(sent)
            assert await reader.readexactly(BIG) == sent
            inner.close()
            assert await reader.read() == b""
            await until(lambda: served)
            await served[0]
            outer.close()
            await asyncio.sleep(0.02)

    run(loop_factory, main)


def test_what_a_server_has_read_ahead_begins_the_handshake(
    certificates: Certificates, our_factory: LoopFactory
) -> None:
    """As with the PROXY protocol: one packet has a line of text and the start of TLS."""

    async def main() -> None:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            assert await reader.readline() == b"PROXY\n"
            await until(lambda: reader._buffer)  # type: ignore[attr-defined]
            transport = await asyncio.get_running_loop().start_tls(
                writer.transport,  # type: ignore[arg-type]
                writer.transport.get_protocol(),
                certificates.server(),
                server_side=True,
            )
            transport.write(b"welcome")  # type: ignore[union-attr]
            transport.close()  # type: ignore[union-attr]

        def client(address: tuple[str, int]) -> bytes:
            incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
            peer = certificates.client().wrap_bio(incoming, outgoing, server_hostname="localhost")
            with socket.create_connection(address, timeout=10) as sock:
                start = b"PROXY\n"
                while True:
                    try:
                        return peer.read(100)
                    except ssl.SSLWantReadError:
                        sock.sendall(start + outgoing.read())
                        start = b""
                        incoming.write(sock.recv(1 << 16))

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        async with server:
            got = await asyncio.to_thread(client, server.sockets[0].getsockname())
            assert got == b"welcome"
            await asyncio.sleep(0.02)

    run(our_factory, main)


@contextlib.contextmanager
def openssl(*arguments: Any) -> Iterator[subprocess.Popen[bytes]]:
    """The program, with its input and output in pipes; it is ended with the scope."""
    with subprocess.Popen(
        ["openssl", *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        bufsize=0,
    ) as program:
        try:
            yield program
        finally:
            program.kill()


def say(program: subprocess.Popen[bytes], text: bytes) -> None:
    assert program.stdin is not None
    program.stdin.write(text)


def hear(program: subprocess.Popen[bytes], text: bytes) -> bytes:
    """Reads what the program prints, until it is that."""
    assert program.stdout is not None
    heard = b""
    while text not in heard:
        piece = program.stdout.read(1000)
        assert piece, heard
        heard += piece
    return heard


@pytest.mark.parametrize("update", [b"k\n", b"K\n"], ids=["its keys", "both sides' keys"])
def test_a_peer_may_change_the_keys_in_the_middle(
    loop_factory: LoopFactory, certificates: Certificates, update: bytes
) -> None:
    def talk(address: tuple[str, int]) -> None:
        where = f"{address[0]}:{address[1]}"
        with openssl(
            "s_client", "-connect", where, "-tls1_3", "-CAfile", certificates.authority
        ) as it:
            hear(it, b"Verify return code: 0")
            for number in range(20):
                say(it, b"line %d.\n" % number)
                hear(it, b"line %d.\n" % number)
                say(it, update)
                hear(it, b"KEYUPDATE")

    async def main() -> None:
        server = await asyncio.get_running_loop().create_server(
            Echo, "127.0.0.1", 0, ssl=certificates.server()
        )
        async with server:
            await asyncio.to_thread(talk, server.sockets[0].getsockname())
            await asyncio.sleep(0.02)

    run(loop_factory, main)


@contextlib.contextmanager
def openssl_server(certificates: Certificates) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """One that speaks TLS 1.2, prints every message and what it gets, and starts a new handshake when it reads "r"."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    files = ("-cert", certificates.certificate, "-key", certificates.key)
    with openssl("s_server", "-accept", port, "-tls1_2", "-msg", *files) as server:
        hear(server, b"ACCEPT")
        yield server, port


def test_a_server_may_negotiate_anew_in_the_middle(
    loop_factory: LoopFactory, certificates: Certificates
) -> None:
    async def main() -> None:
        with openssl_server(certificates) as (server, port):
            reader, writer = await asyncio.open_connection(
                "127.0.0.1", port, ssl=certificates.client(), server_hostname="localhost"
            )
            await asyncio.to_thread(hear, server, b"CIPHER is")
            for number in range(5):
                say(server, b"r\n")
                await asyncio.to_thread(hear, server, b", ClientHello")
                writer.write(b"line %d.\n" % number)
                await asyncio.to_thread(hear, server, b"line %d.\n" % number)
                say(server, b"answer %d.\n" % number)
                assert await reader.readline() == b"answer %d.\n" % number
            writer.transport.abort()
            await asyncio.sleep(0.02)

    run(loop_factory, main)


def test_what_is_written_during_a_new_handshake_waits_for_its_end(
    loop_factory: LoopFactory, certificates: Certificates, make: Make
) -> None:
    async def main() -> None:
        with openssl_server(certificates) as (server, port):
            with socket.create_connection(("127.0.0.1", port), timeout=10) as sock:
                recorder = Quiet()
                connection = Connection(make, certificates, recorder)

                def exchange() -> None:
                    sock.sendall(connection.memory.take())
                    connection.feed(sock.recv(1 << 16))

                connection.tls.connection_made(connection.memory)
                while not connection.waiter.done():
                    exchange()
                say(server, b"r\n")
                while not connection.memory.sent:
                    connection.feed(sock.recv(1 << 16))
                for data in (b"one, ", b"two, ", bytes(100_000), b"three."):
                    connection.transport.write(data)
                assert connection.transport.get_write_buffer_size() == 100_016
                while connection.transport.get_write_buffer_size() > 0:
                    exchange()
                sock.sendall(connection.memory.take())
                await asyncio.to_thread(hear, server, b"three.")
                say(server, b"heard.\n")
                while b"heard" not in recorder.received:
                    exchange()
                await connection.end()

    run(loop_factory, main)


def test_many_connections_at_once_keep_to_themselves(
    loop_factory: LoopFactory, certificates: Certificates
) -> None:
    async def main() -> None:
        server = await asyncio.get_running_loop().create_server(
            Echo, "127.0.0.1", 0, ssl=certificates.server()
        )
        address = server.sockets[0].getsockname()
        context = certificates.client()

        async def talk(number: int) -> None:
            chance = random.Random(number)
            reader, writer = await asyncio.open_connection(
                *address, ssl=context, server_hostname="localhost"
            )
            for _ in range(20):
                sent = chance.randbytes(chance.randrange(1, 100_000))
                for start in range(0, len(sent), 30_000):
                    writer.write(sent[start : start + 30_000])
                assert await reader.readexactly(len(sent)) == sent
            writer.close()
            await writer.wait_closed()

        async with server:
            await asyncio.gather(*(talk(number) for number in range(20)))
            await asyncio.sleep(0.02)

    run(loop_factory, main)


def test_an_application_may_turn_the_loop_while_its_buffer_is_full(
    certificates: Certificates, our_factory: LoopFactory
) -> None:
    """What it has not taken lies in the buffer that the next connection is read into."""

    async def main() -> None:
        loop: Any = asyncio.get_running_loop()
        turned: list[Any] = []
        sent = [random.randbytes(40_000) for _ in range(2)]

        class Turns(Buffered):
            def __init__(self) -> None:
                super().__init__(1000, view=True)

            def buffer_updated(self, nbytes: int) -> None:
                super().buffer_updated(nbytes)
                if not turned:
                    turned.append(self)
                    loop._run_once()

        def peer(listener: socket.socket) -> list[ssl.SSLSocket]:
            context = certificates.server()
            socks = [listener.accept()[0] for _ in range(2)]
            return [context.wrap_socket(sock, server_side=True) for sock in socks]

        with socket.create_server(("127.0.0.1", 0)) as listener:
            accepting = asyncio.ensure_future(asyncio.to_thread(peer, listener))
            connections = await asyncio.gather(
                *(
                    loop.create_connection(
                        Turns,
                        *listener.getsockname(),
                        ssl=certificates.client(),
                        server_hostname="localhost",
                    )
                    for _ in range(2)
                )
            )
            peers = await accepting
            by_port = {one.getpeername()[1]: one for one in peers}
            for (transport, _), data in zip(connections, sent):  # both before the loop looks again
                by_port[transport.get_extra_info("sockname")[1]].sendall(data)
            for (_, protocol), data in zip(connections, sent):
                await until(lambda: len(protocol.received) == len(data))
                assert protocol.received == data
            assert turned
            for transport, _ in connections:
                transport.abort()
            for one in peers:
                one.close()
            await asyncio.sleep(0.02)

    run(our_factory, main)


# ---------------------------------------------------------------------------------------------------------------------
# Interpreters

ECHO = """
import asyncio, ssl, sys
import erlang_loop

async def main(certificate, key, authority):
    server_context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server_context.load_cert_chain(certificate, key)
    async def serve(reader, writer):
        while data := await reader.read(1 << 16):
            writer.write(data)
        writer.close()
    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=server_context)
    async with server:
        client = ssl.create_default_context(cafile=authority)
        reader, writer = await asyncio.open_connection(
            *server.sockets[0].getsockname(), ssl=client, server_hostname="localhost")
        assert writer.transport._ssl_protocol._direct
        writer.write(bytes(300_000))
        assert await reader.readexactly(300_000) == bytes(300_000)
        writer.close()
        await writer.wait_closed()

loop = erlang_loop.ErlangEventLoop(isolated=True)
try:
    loop.run_until_complete(main(*ARGUMENTS))
finally:
    loop.close()
print("echoed", flush=True)
"""


@pytest.mark.skipif(sys.version_info >= (3, 13), reason="_xxsubinterpreters has another name")
def test_every_interpreter_has_a_tls_of_its_own(our_loop: str, certificates: Certificates) -> None:
    arguments = [str(certificates.certificate), str(certificates.key), str(certificates.authority)]
    program = f"""
        import _xxsubinterpreters as interpreters
        code = {ECHO!r}.replace("ARGUMENTS", repr(sys.argv[1:]))
        for _ in range(3):
            one = interpreters.create()
            interpreters.run_string(one, code)
            interpreters.destroy(one)
        exec(code)
    """
    result = script(program, our_loop, *arguments)
    assert (result.returncode, result.stdout.split(), result.stderr) == (0, ["echoed"] * 4, "")


def test_loops_in_threads_do_not_share_what_they_encrypt(
    certificates: Certificates, our_factory: LoopFactory
) -> None:
    failures: list[BaseException] = []

    async def main() -> None:
        server = await asyncio.get_running_loop().create_server(
            Echo, "127.0.0.1", 0, ssl=certificates.server()
        )
        async with server:
            reader, writer = await asyncio.open_connection(
                *server.sockets[0].getsockname(),
                ssl=certificates.client(),
                server_hostname="localhost",
            )
            for _ in range(30):
                sent = os.urandom(200_000)
                writer.write(sent)
                assert await reader.readexactly(len(sent)) == sent
            writer.close()
            await writer.wait_closed()

    def work() -> None:
        try:
            run(our_factory, main)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
