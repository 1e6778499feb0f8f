"""The native pipe transports beside the standard loop's: pipes, sockets, terminals and what is none of these."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import fcntl
import gc
import io
import logging
import os
import pty
import socket
import sys
import tty
import weakref
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from support import LoopFactory, Reports, reset, run, tcp_pair, until


def running() -> Any:
    return asyncio.get_running_loop()


class Notes(asyncio.Protocol):
    """Notes what happens to it."""

    def __init__(self) -> None:
        self.events: list[Any] = []
        self.received = b""
        self.lost: asyncio.Future[Exception | None] = asyncio.get_running_loop().create_future()

    def note(self, event: Any) -> None:
        self.events.append(event)

    def connection_made(self, transport: Any) -> None:
        self.note("made")
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.note("data")
        self.received += data

    def eof_received(self) -> None:
        self.note("eof")

    def pause_writing(self) -> None:
        self.note("pause")

    def resume_writing(self) -> None:
        self.note("resume")

    def connection_lost(self, exc: Exception | None) -> None:
        self.note("lost")
        self.lost.set_result(exc)


@contextlib.asynccontextmanager
async def reading(file: Any, factory: Callable[[], Any] = Notes) -> AsyncIterator[tuple[Any, Any]]:
    transport, protocol = await running().connect_read_pipe(factory, file)
    try:
        yield transport, protocol
    finally:
        transport.close()
        await until(lambda: file.closed if isinstance(file, io.IOBase) else file.fileno() == -1)


@contextlib.asynccontextmanager
async def writing(file: Any, factory: Callable[[], Any] = Notes) -> AsyncIterator[tuple[Any, Any]]:
    transport, protocol = await running().connect_write_pipe(factory, file)
    try:
        yield transport, protocol
    finally:
        if not transport.is_closing() or transport.get_write_buffer_size():
            transport.abort()
        await until(lambda: file.closed if isinstance(file, io.IOBase) else file.fileno() == -1)


def pipe() -> tuple[Any, Any]:
    """Both ends of a pipe, as files without buffers."""
    read, write = os.pipe()
    return open(read, "rb", 0), open(write, "wb", 0)


def pair() -> tuple[socket.socket, socket.socket]:
    return socket.socketpair()


async def read_all(fd: int, size: int) -> bytes:
    """Reads from a descriptor that is nobody's, as its other end lets it."""
    os.set_blocking(fd, False)
    data = b""
    while len(data) < size:
        try:
            data += os.read(fd, 65536)
        except BlockingIOError:
            await asyncio.sleep(0.001)
    return data


# ---------------------------------------------------------------------------------------------------------------------
# Reading


@pytest.mark.parametrize("kind", [pipe, pair])
def test_what_is_written_is_received_until_the_end(
    loop_factory: LoopFactory, kind: Callable[[], tuple[Any, Any]]
) -> None:
    async def main() -> None:
        near, far = kind()
        async with reading(near) as (transport, notes):
            assert notes.events == ["made"]
            assert transport.get_extra_info("pipe") is near
            assert not os.get_blocking(near.fileno())
            os.write(far.fileno(), b"abc")
            await until(lambda: notes.received == b"abc")
            os.write(far.fileno(), b"def")
            far.close()
            assert await notes.lost is None
            assert notes.received == b"abcdef"
            assert notes.events[-2:] == ["eof", "lost"]

    run(loop_factory, main)


def test_much_data_arrives_whole_and_in_order(loop_factory: LoopFactory) -> None:
    async def main() -> None:
        near, far = pipe()
        data = os.urandom(3_000_000)
        fcntl.fcntl(near.fileno(), fcntl.F_SETPIPE_SZ, 1 << 19)
        async with reading(near) as (_, received), writing(far) as (transport, sent):
            for at in range(0, len(data), 250_000):
                transport.write(data[at : at + 250_000])
            transport.write_eof()
            assert await received.lost is None
            assert received.received == data
            assert await sent.lost is None
            assert sent.events == ["made", "pause", "resume", "lost"]

    run(loop_factory, main)


def test_a_fifo_by_its_name_is_a_pipe(loop_factory: LoopFactory, tmp_path: Path) -> None:
    async def main() -> None:
        os.mkfifo(tmp_path / "fifo")
        near = open(os.open(tmp_path / "fifo", os.O_RDONLY | os.O_NONBLOCK), "rb", 0)
        with open(tmp_path / "fifo", "wb", 0) as far:
            async with reading(near) as (_, notes):
                far.write(b"abc")
                await until(lambda: notes.received == b"abc")

    run(loop_factory, main)


def test_pausing_holds_data_back(loop_factory: LoopFactory) -> None:
    async def main() -> None:
        near, far = pipe()
        with far:
            async with reading(near) as (transport, notes):
                transport.pause_reading()
                transport.pause_reading()
                far.write(b"abc")
                await asyncio.sleep(0.02)
                assert notes.received == b""
                transport.resume_reading()
                transport.resume_reading()
                await until(lambda: notes.received == b"abc")

    run(loop_factory, main)


def test_a_protocol_that_pauses_when_it_is_made_gets_nothing(our_factory: LoopFactory) -> None:
    """asyncio's of 3.11 reads all the same."""

    class Pauses(Notes):
        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            transport.pause_reading()

    async def main() -> None:
        near, far = pipe()
        with far:
            async with reading(near, Pauses) as (transport, notes):
                far.write(b"abc")
                await asyncio.sleep(0.02)
                assert notes.received == b"" and not transport.is_reading()
                transport.resume_reading()
                assert transport.is_reading()
                await until(lambda: notes.received == b"abc")

    run(our_factory, main)


def test_a_protocol_that_closes_gets_nothing_more(loop_factory: LoopFactory) -> None:
    class Closes(Notes):
        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self.transport.close()
            self.transport.close()

    async def main() -> None:
        near, far = pipe()
        with far:
            async with reading(near, Closes) as (transport, notes):
                far.write(b"abc")
                assert await notes.lost is None
                assert notes.events == ["made", "data", "lost"]
                assert near.closed and transport.is_closing()
                transport.pause_reading()
                transport.resume_reading()

    run(loop_factory, main)


def test_what_a_protocol_raises_is_reported_and_the_transport_goes_on(
    loop_factory: LoopFactory,
) -> None:
    class Raises(Notes):
        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            raise ValueError(data)

        def eof_received(self) -> None:
            super().eof_received()
            raise LookupError

        def connection_lost(self, exc: Exception | None) -> None:
            super().connection_lost(exc)
            raise ArithmeticError

    async def main() -> None:
        reports = Reports(running())
        near, far = pipe()
        async with reading(near, Raises) as (transport, notes):
            far.write(b"abc")
            await until(lambda: reports.errors == ["ValueError(b'abc')"])
            assert not transport.is_closing()
            far.close()
            await notes.lost
            await until(lambda: len(reports.errors) == 3)
            assert reports.errors[1:] == ["LookupError()", "ArithmeticError()"]
            assert all(text.startswith("Exception in callback") for text in reports.messages)

    run(loop_factory, main)


def test_an_error_of_what_is_read_is_reported_and_ends_it(loop_factory: LoopFactory) -> None:
    async def main() -> None:
        reports = Reports(running())
        with tcp_pair() as (near, far):
            async with reading(near) as (_, notes):
                reset(far)
                error = await notes.lost
                assert isinstance(error, ConnectionResetError)
                assert notes.events == ["made", "lost"]
                assert reports.messages == ["Fatal read error on pipe transport"]
                assert reports.errors == [repr(error)]
                assert {"transport", "protocol"} <= reports.keys[0]

    run(loop_factory, main)


def test_a_terminal_whose_other_end_is_closed_ends_with_its_error(
    loop_factory: LoopFactory,
) -> None:
    async def main() -> None:
        reports = Reports(running())
        near, far = pty.openpty()
        tty.setraw(far)
        async with reading(open(near, "rb", 0)) as (_, notes):
            os.write(far, b"abc")
            await until(lambda: notes.received == b"abc")
            os.close(far)
            error = await notes.lost
            assert isinstance(error, OSError) and error.errno == 5
            assert notes.events[-1] == "lost" and "eof" not in notes.events
            assert reports.messages == []

    run(loop_factory, main)


# ---------------------------------------------------------------------------------------------------------------------
# Writing


@pytest.mark.parametrize("kind", [pipe, pair])
@pytest.mark.parametrize("make", [bytes, bytearray, memoryview])
def test_what_is_written_arrives(
    loop_factory: LoopFactory, kind: Callable[[], tuple[Any, Any]], make: Callable[[bytes], Any]
) -> None:
    async def main() -> None:
        near, far = kind()
        with near:
            async with writing(far) as (transport, notes):
                transport.write(make(b"abc"))
                transport.write(make(b""))
                transport.writelines([b"d", make(b"ef")])
                assert await read_all(near.fileno(), 6) == b"abcdef"
                assert transport.get_write_buffer_size() == 0
                assert transport.can_write_eof()
                transport.close()
                assert await notes.lost is None
                assert os.read(near.fileno(), 10) == b""

    run(loop_factory, main)


@pytest.mark.parametrize("wrong", ["text", None, 7])
def test_only_bytes_are_written(loop_factory: LoopFactory, wrong: Any) -> None:
    async def main() -> None:
        near, far = pipe()
        with near:
            async with writing(far) as (transport, _):
                with pytest.raises(AssertionError) as caught:
                    transport.write(wrong)
                assert repr(wrong) in str(caught.value)

    run(loop_factory, main)


@pytest.mark.parametrize("kind", [pipe, pair])
def test_what_does_not_fit_waits_and_the_protocol_is_told(
    loop_factory: LoopFactory, kind: Callable[[], tuple[Any, Any]]
) -> None:
    async def main() -> None:
        near, far = kind()
        data = os.urandom(1_000_000)
        with near:
            async with writing(far) as (transport, notes):
                buffer = bytearray(data)
                transport.write(buffer)
                buffer[:] = bytes(len(buffer))  # what waits is a copy
                waiting = transport.get_write_buffer_size()
                assert 0 < waiting < len(data)
                assert notes.events == ["made", "pause"]
                transport.write(b"more")
                assert transport.get_write_buffer_size() == waiting + 4
                assert "polling" in repr(transport)
                assert f"bufsize={waiting + 4}" in repr(transport)
                assert await read_all(near.fileno(), len(data) + 4) == data + b"more"
                await until(lambda: notes.events == ["made", "pause", "resume"])
                assert transport.get_write_buffer_size() == 0
                assert "idle" in repr(transport)

    run(loop_factory, main)


@pytest.mark.parametrize("kind", [pipe, pair])
def test_hundreds_of_writes_that_wait_leave_in_order(
    loop_factory: LoopFactory, kind: Callable[[], tuple[Any, Any]]
) -> None:
    async def main() -> None:
        near, far = kind()
        parts = [bytes(1_000_000), *(b"%d," % number for number in range(500))]
        with near:
            async with writing(far) as (transport, _):
                for part in parts:
                    transport.write(part)
                whole = b"".join(parts)
                assert await read_all(near.fileno(), len(whole)) == whole

    run(loop_factory, main)


def test_closing_writes_what_waits_first(loop_factory: LoopFactory) -> None:
    async def main() -> None:
        near, far = pipe()
        data = os.urandom(300_000)
        with near:
            async with writing(far) as (transport, notes):
                transport.write(data)
                transport.close()
                transport.close()
                transport.write(b"too late")
                assert transport.is_closing() and not far.closed
                assert await read_all(near.fileno(), len(data)) == data
                assert await notes.lost is None
                assert far.closed and notes.events[-1] == "lost"
                assert os.read(near.fileno(), 10) == b""

    run(loop_factory, main)


def test_aborting_drops_what_waits(loop_factory: LoopFactory) -> None:
    async def main() -> None:
        near, far = pipe()
        with near:
            async with writing(far) as (transport, notes):
                transport.write(bytes(300_000))
                transport.abort()
                assert transport.get_write_buffer_size() == 0
                assert await notes.lost is None
                assert len(await read_all(near.fileno(), 65536)) == 65536
                assert os.read(near.fileno(), 10) == b""

    run(loop_factory, main)


@pytest.mark.parametrize("kind", [pipe, pair])
@pytest.mark.parametrize("waits", [False, True])
def test_a_reader_that_goes_is_noticed_without_a_write(
    loop_factory: LoopFactory, kind: Callable[[], tuple[Any, Any]], waits: bool
) -> None:
    async def main() -> None:
        near, far = kind()
        async with writing(far) as (transport, notes):
            if waits:
                transport.write(bytes(3_000_000))
            near.close()
            assert isinstance(await notes.lost, OSError if waits else type(None))
            assert transport.is_closing() and notes.events[-1] == "lost"

    run(loop_factory, main)


def test_writes_into_a_pipe_that_nobody_reads_are_lost_and_warned_of(
    loop_factory: LoopFactory, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        near, far = pipe()
        async with writing(far) as (transport, notes):
            near.close()
            transport.write(b"now")  # at once an error: nothing is told of it but the end
            with caplog.at_level(logging.WARNING):
                for _ in range(8):
                    transport.write(b"later")
            texts = [each.message for each in caplog.records]
            text = "pipe closed by peer or os.write(pipe, data) raised exception."
            assert texts == [text] * 4
            assert isinstance(await notes.lost, BrokenPipeError)

    run(loop_factory, main)


def test_write_limits_are_asyncios(loop_factory: LoopFactory) -> None:
    async def main() -> None:
        near, far = pipe()
        with near:
            async with writing(far) as (transport, notes):
                assert transport.get_write_buffer_limits() == (16384, 65536)
                transport.set_write_buffer_limits(high=1_000_000)
                transport.write(bytes(500_000))
                assert notes.events == ["made"]
                transport.set_write_buffer_limits(high=1000)
                assert notes.events == ["made", "pause"]
                with pytest.raises(ValueError, match=r"high \(1\) must be >= low \(2\) must be >="):
                    transport.set_write_buffer_limits(high=1, low=2)

    run(loop_factory, main)


def test_a_terminal_can_be_written(loop_factory: LoopFactory) -> None:
    async def main() -> None:
        near, far = pty.openpty()
        tty.setraw(near)
        async with writing(open(far, "wb", 0)) as (transport, _):
            transport.write(b"abc")
            assert await read_all(near, 3) == b"abc"
        os.close(near)

    run(loop_factory, main)


# ---------------------------------------------------------------------------------------------------------------------
# Both


@pytest.mark.parametrize("end", ["connect_read_pipe", "connect_write_pipe"])
def test_what_is_no_pipe_is_refused_and_stays_open(
    loop_factory: LoopFactory, tmp_path: Path, end: str
) -> None:
    text = {
        "connect_read_pipe": "Pipe transport is for pipes/sockets only.",
        "connect_write_pipe": "Pipe transport is only for pipes, sockets and character devices",
    }[end]

    async def main() -> None:
        with open(tmp_path / "file", "wb+") as file:
            with pytest.raises(ValueError) as caught:
                await getattr(running(), end)(Notes, file)
            assert str(caught.value) == text
            assert not file.closed and os.get_blocking(file.fileno())

    run(loop_factory, main)


@pytest.mark.parametrize("end", ["connect_read_pipe", "connect_write_pipe"])
def test_a_number_and_a_closed_file_are_no_pipes(our_factory: LoopFactory, end: str) -> None:
    """Nor are they asyncio's, whose half made transport fails once more when it is dropped."""

    async def main() -> None:
        with pytest.raises(AttributeError, match="fileno"):
            await getattr(running(), end)(Notes, 3)
        near, far = pipe()
        near.close()
        far.close()
        with pytest.raises(ValueError, match="closed file"):
            await getattr(running(), end)(Notes, near)

    run(our_factory, main)


def test_transports_are_what_asyncio_says_they_are(loop_factory: LoopFactory) -> None:
    async def main() -> None:
        near, far = pipe()
        async with reading(near) as (reader, first), writing(far) as (writer, second):
            assert isinstance(reader, asyncio.ReadTransport)
            assert not isinstance(reader, asyncio.WriteTransport)
            assert isinstance(writer, asyncio.WriteTransport)
            for transport, protocol in ((reader, first), (writer, second)):
                transport.mine = 1
                assert vars(transport)["mine"] == 1
                assert weakref.ref(transport)() is transport
                assert transport.get_extra_info("nothing", 7) == 7
                assert f"fd={transport.get_extra_info('pipe').fileno()}" in repr(transport)
                assert transport.get_protocol() is protocol
            other = Notes()
            reader.set_protocol(other)
            writer.write(b"abc")
            await until(lambda: other.received == b"abc")
            assert first.received == b""
            reader.set_protocol(first)
            writer.close()
            assert "closing" in repr(writer)
            await second.lost
            assert "closed" in repr(writer)

    run(loop_factory, main)


@pytest.mark.parametrize("end", ["reading", "writing"])
def test_a_protocol_that_ends_when_it_is_made_is_told_of_the_end(
    our_factory: LoopFactory, end: str
) -> None:
    """asyncio's of 3.11 goes on to watch a descriptor that is about to be closed."""

    class Ends(Notes):
        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            transport.close()

    async def main() -> None:
        near, far = pipe()
        with near, far:
            connect = {"reading": (reading, near), "writing": (writing, far)}[end]
            async with connect[0](connect[1], Ends) as (_, notes):
                assert await notes.lost is None
                assert notes.events == ["made", "lost"]

    run(our_factory, main)


@pytest.mark.parametrize("leaves", [KeyboardInterrupt, SystemExit])
def test_an_interrupt_in_a_callback_leaves_the_loop(
    loop_factory: LoopFactory, leaves: type[BaseException]
) -> None:
    class Raises(Notes):
        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            raise leaves

    near, far = pipe()
    loop = loop_factory()

    async def make() -> Any:
        return await loop.connect_read_pipe(Raises, near)

    _, notes = loop.run_until_complete(make())
    far.write(b"abc")
    with pytest.raises(leaves):
        loop.run_forever()
    far.close()
    loop.run_until_complete(notes.lost)
    loop.close()


def test_callbacks_run_in_the_context_that_made_the_transport(loop_factory: LoopFactory) -> None:
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="none")

    class Looks(Notes):
        def note(self, event: Any) -> None:
            super().note((event, variable.get()))

    async def main() -> None:
        variable.set("inside")
        near, far = pipe()
        async with reading(near, Looks) as (_, notes):
            variable.set("later")
            far.write(b"abc")
            far.close()
            await notes.lost
            assert notes.events[:2] == [("made", "inside"), ("data", "inside")]

    run(loop_factory, main)


@pytest.mark.parametrize("end", ["connect_read_pipe", "connect_write_pipe"])
def test_a_transport_that_nobody_closed_is_warned_of_and_its_pipe_closed(
    loop_factory: LoopFactory, end: str
) -> None:
    files = pipe()
    file = files[end == "connect_write_pipe"]
    loop: Any = loop_factory()

    async def make() -> Any:
        return await getattr(loop, end)(Notes, file)

    transport, notes = loop.run_until_complete(make())
    loop.close()
    assert "open" in repr(transport)
    del notes
    with pytest.warns(ResourceWarning, match="unclosed transport <.*fd="):
        del transport, loop
        gc.collect()
    assert file.closed
    for each in files:
        each.close()


def test_debug_mode_tells_of_pauses_and_of_the_peer(
    loop_factory: LoopFactory, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        near, far = pipe()
        async with reading(near) as (transport, notes):
            transport.pause_reading()
            transport.resume_reading()
            far.close()
            await notes.lost

    with caplog.at_level(logging.DEBUG, "asyncio"):
        run(loop_factory, main, debug=True)
    texts = [each.message.partition("> ")[2] for each in caplog.records]
    for text in ("pauses reading", "resumes reading", "was closed by peer"):
        assert text in texts


def test_subprocesses_talk_through_them(loop_factory: LoopFactory) -> None:
    async def main() -> None:
        data = os.urandom(2_000_000)
        code = "import sys; sys.stdout.buffer.write(sys.stdin.buffer.read()[::-1])"
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-c",
            code,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        out, _ = await process.communicate(data)
        assert out == data[::-1]
        assert process.returncode == 0

    run(loop_factory, main)
