"""Protocols that do things to their transport from inside its calls: what follows must be what follows on the standard loop.

Each scenario is played on both and writes down what happens; the two accounts are compared, and with what one expects.
"""

from __future__ import annotations

import asyncio
import gc
import socket
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from support import LoopFactory, run, tcp_pair

Log = list[Any]
BIG = 4 << 20


class Logging(asyncio.Protocol):
    """Writes down every call; a scenario overrides what it wants to do more."""

    def __init__(self, log: Log) -> None:
        self.log = log
        self.over = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: Any) -> None:
        self.log.append("made")
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.log.append(data)

    def eof_received(self) -> bool | None:
        self.log.append("eof")
        return None

    def pause_writing(self) -> None:
        self.log.append("pause")

    def resume_writing(self) -> None:
        self.log.append("resume")

    def connection_lost(self, error: Exception | None) -> None:
        self.log.append(f"lost {type(error).__name__}")
        self.over.set_result(None)


class Buffered(asyncio.BufferedProtocol):
    connection_made, connection_lost = Logging.connection_made, Logging.connection_lost
    eof_received, __init__ = Logging.eof_received, Logging.__init__
    pause_writing, resume_writing = Logging.pause_writing, Logging.resume_writing

    def get_buffer(self, hint: int) -> Any:
        self.room = bytearray(10)
        return self.room

    def buffer_updated(self, count: int) -> None:
        self.log.append(bytes(self.room[:count]))


def handler(log: Log) -> Callable[[Any, Any], None]:
    return lambda loop, context: log.append(
        (context["message"].split(" <")[0][:40], type(context.get("exception")).__name__)
    )


async def play(kind: Any, log: Log, act: Callable[[Any, socket.socket], Awaitable[None]]) -> Log:
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(handler(log))
    with tcp_pair() as (near, far):
        far.settimeout(5)
        _, protocol = await loop.create_connection(lambda: kind(log), sock=near)
        await act(protocol, far)
        await asyncio.sleep(0.01)
        if not protocol.over.done():
            log.append("still open")
            protocol.transport.abort()
        await asyncio.wait_for(protocol.over, 5)
    return log


async def nothing(protocol: Any, far: socket.socket) -> None:
    pass


async def some_data(protocol: Any, far: socket.socket) -> None:
    far.send(b"data")
    await asyncio.sleep(0.01)


async def data_and_end(protocol: Any, far: socket.socket) -> None:
    far.send(b"0123456789ABCDEF")
    far.close()
    await asyncio.sleep(0.01)


async def fill_and_drain(protocol: Any, far: socket.socket) -> None:
    protocol.transport.write(b"x" * BIG)
    await asyncio.sleep(0.005)
    got = 0
    while got < BIG:
        got += len(await asyncio.to_thread(far.recv, 1 << 20))
    await asyncio.sleep(0.01)


class CloseWhenMade(Logging):
    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        transport.close()


class AbortWhenMade(Logging):
    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        transport.abort()


class WriteAndCloseWhenMade(Logging):
    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        transport.write(b"x" * BIG)
        transport.close()


class PauseWhenMade(Logging):
    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        transport.pause_reading()


class FailWhenMade(Logging):
    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        raise ValueError("made")


class CloseWhenPaused(Logging):
    def pause_writing(self) -> None:
        super().pause_writing()
        self.transport.close()


class AbortWhenPaused(Logging):
    def pause_writing(self) -> None:
        super().pause_writing()
        self.transport.abort()


class RaiseLimitsWhenPaused(Logging):
    def pause_writing(self) -> None:
        super().pause_writing()
        if self.log.count("pause") < 3:
            self.transport.set_write_buffer_limits(high=100 * BIG)
            self.transport.write(b"")


class AbortWhenResumed(Logging):
    def resume_writing(self) -> None:
        super().resume_writing()
        self.transport.abort()


class WriteWhenResumed(Logging):
    def resume_writing(self) -> None:
        super().resume_writing()
        if self.log.count("resume") < 3:
            self.transport.write(b"more" * 20)


class CloseWhenResumed(Logging):
    def resume_writing(self) -> None:
        super().resume_writing()
        self.transport.close()


class PauseInData(Logging):
    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self.transport.pause_reading()


class ResumeInData(Logging):
    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self.transport.pause_reading()
        self.transport.resume_reading()


class WriteEofInData(Logging):
    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self.transport.write(b"answer")
        self.transport.write_eof()


class CloseThenFailInData(Logging):
    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self.transport.close()
        raise ValueError("after close")


class AbortThenWriteInData(Logging):
    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self.transport.abort()
        self.transport.write(b"late")
        self.transport.write_eof()
        self.transport.pause_reading()
        self.transport.resume_reading()


class BecomeBuffered(Logging):
    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        other = Buffered(self.log)
        other.transport, other.over = self.transport, self.over
        self.transport.set_protocol(other)


class BecomePlain(Buffered):
    def buffer_updated(self, count: int) -> None:
        super().buffer_updated(count)
        other = Logging(self.log)
        other.transport, other.over = self.transport, self.over
        self.transport.set_protocol(other)


class CloseInBuffer(Buffered):
    def get_buffer(self, hint: int) -> Any:
        self.transport.close()
        return super().get_buffer(hint)


class AbortInUpdate(Buffered):
    def buffer_updated(self, count: int) -> None:
        super().buffer_updated(count)
        self.transport.abort()


class PauseInUpdate(Buffered):
    def buffer_updated(self, count: int) -> None:
        super().buffer_updated(count)
        self.transport.pause_reading()


class GiveReadOnlyBuffer(Buffered):
    def get_buffer(self, hint: int) -> Any:
        return b"read only"


class GiveNoBuffer(Buffered):
    def get_buffer(self, hint: int) -> Any:
        return 17


class CloseInEof(Logging):
    def eof_received(self) -> bool:
        super().eof_received()
        self.transport.close()
        return True


class AbortInEof(Logging):
    def eof_received(self) -> None:
        super().eof_received()
        self.transport.abort()


class WriteInEof(Logging):
    def eof_received(self) -> None:
        super().eof_received()
        self.transport.write(b"last")


class TouchWhenLost(Logging):
    def connection_lost(self, error: Exception | None) -> None:
        super().connection_lost(error)
        self.transport.write(b"late")
        self.transport.close()
        self.log.append(self.transport.is_closing())
        self.log.append(self.transport.get_write_buffer_size())


class NotEvenAProtocol:
    """By its methods only, and not by all of them."""

    connection_made, connection_lost = Logging.connection_made, Logging.connection_lost
    data_received, __init__ = Logging.data_received, Logging.__init__


CLOSED = ["made", "lost NoneType"]
SCENARIOS: list[tuple[Any, Any, Log | None]] = [
    (CloseWhenMade, nothing, CLOSED),
    (AbortWhenMade, nothing, CLOSED),
    (CloseWhenMade, some_data, CLOSED),
    (AbortWhenMade, data_and_end, CLOSED),
    (WriteAndCloseWhenMade, nothing, ["made", "pause", "still open", "lost NoneType"]),
    (FailWhenMade, some_data, None),
    (CloseWhenPaused, fill_and_drain, None),
    (AbortWhenPaused, nothing, ["made", "still open", "lost NoneType"]),
    (RaiseLimitsWhenPaused, fill_and_drain, None),
    (WriteWhenResumed, fill_and_drain, None),
    (PauseInData, data_and_end, None),
    (ResumeInData, data_and_end, None),
    (WriteEofInData, data_and_end, None),
    (CloseThenFailInData, some_data, None),
    (AbortThenWriteInData, some_data, ["made", b"data", "lost NoneType"]),
    (BecomeBuffered, data_and_end, None),
    (BecomePlain, data_and_end, None),
    (CloseInBuffer, some_data, None),
    (AbortInUpdate, some_data, ["made", b"data", "lost NoneType"]),
    (PauseInUpdate, data_and_end, None),
    (GiveReadOnlyBuffer, some_data, None),
    (GiveNoBuffer, some_data, None),
    (CloseInEof, data_and_end, None),
    (AbortInEof, data_and_end, None),
    (WriteInEof, data_and_end, None),
    (TouchWhenLost, data_and_end, None),
    (NotEvenAProtocol, some_data, None),
    (NotEvenAProtocol, data_and_end, None),
    (Logging, data_and_end, ["made", b"0123456789ABCDEF", "eof", "lost NoneType"]),
    (Buffered, data_and_end, ["made", b"0123456789", b"ABCDEF", "eof", "lost NoneType"]),
]


@pytest.mark.parametrize(
    "kind, act, expected",
    SCENARIOS,
    ids=[f"{kind.__name__}-{act.__name__}" for kind, act, _ in SCENARIOS],
)
def test_what_follows_is_what_follows_on_the_standard_loop(
    our_factory: LoopFactory, kind: Any, act: Any, expected: Log | None
) -> None:
    standard = run(asyncio.SelectorEventLoop, lambda: play(kind, [], act))
    ours = run(our_factory, lambda: play(kind, [], act))
    assert ours == standard
    assert expected is None or standard == expected


@pytest.mark.parametrize(
    "kind, act, expected",
    [
        (PauseWhenMade, some_data, ["made", "still open", "lost NoneType"]),
        (AbortWhenResumed, fill_and_drain, ["made", "pause", "resume", "lost NoneType"]),
        (CloseWhenResumed, fill_and_drain, ["made", "pause", "resume", "lost NoneType"]),
    ],
)
def test_what_newer_standard_loops_mended_is_right_here(
    our_factory: LoopFactory, kind: Any, act: Any, expected: Log
) -> None:
    """That of 3.11 reads on after a pause in connection_made, and trips over an end in resume_writing."""
    assert run(our_factory, lambda: play(kind, [], act)) == expected


class Forgetful(asyncio.Protocol):
    """Keeps no transport, and nobody keeps it."""

    log: Log = []

    def data_received(self, data: bytes) -> None:
        self.log.append(data)

    def connection_lost(self, error: Exception | None) -> None:
        self.log.append("lost")


def test_a_connection_that_nobody_holds_lives_as_long_as_it_reads(
    loop_factory: LoopFactory,
) -> None:
    async def main() -> None:
        near, far = socket.socketpair()
        await asyncio.get_running_loop().create_connection(Forgetful, sock=near)
        del near
        gc.collect()
        with far:
            far.send(b"still heard")
            await asyncio.sleep(0.005)
            far.shutdown(socket.SHUT_WR)
            await asyncio.sleep(0.005)
        assert Forgetful.log == [b"still heard", "lost"]

    Forgetful.log.clear()
    run(loop_factory, main)


def test_a_paused_connection_that_nobody_holds_goes_with_a_warning(
    loop_factory: LoopFactory,
) -> None:
    async def main() -> None:
        near, far = socket.socketpair()
        transport, protocol = await asyncio.get_running_loop().create_connection(
            Forgetful, sock=near
        )
        await asyncio.sleep(0.001)
        transport.pause_reading()
        with far, pytest.warns(ResourceWarning, match="unclosed transport"):
            del near, transport, protocol
            gc.collect()
            assert far.recv(10) == b""

    run(loop_factory, main)
