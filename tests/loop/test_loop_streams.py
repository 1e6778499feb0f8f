"""asyncio's own streams, whose reader our loop fills itself: as if feed_data() had been called, on either loop."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import pytest
from support import LoopFactory, run, until

SIZES = [1, 1000, 65_536, 100_000, 300_000, 2_000_000]


async def pair(
    loop: asyncio.AbstractEventLoop, reader: asyncio.StreamReader
) -> tuple[socket.socket, asyncio.Transport]:
    """A socket to write to, and the transport of the other end, whose data `reader` gets."""
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    transport, _ = await loop.create_connection(
        lambda: asyncio.StreamReaderProtocol(reader, loop=loop), sock=theirs
    )
    return ours, transport


def close(ours: socket.socket, transport: asyncio.Transport) -> None:
    ours.close()
    transport.close()


@pytest.mark.parametrize("size", SIZES)
def test_every_byte_arrives_in_order_however_it_is_read(
    loop_factory: LoopFactory, size: int
) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader(loop=loop)
        ours, transport = await pair(loop, reader)
        data = bytes(n % 251 for n in range(size))
        for _ in range(4):  # the later ones find that much came before
            sending = asyncio.create_task(loop.sock_sendall(ours, data))
            assert await reader.readexactly(size) == data
            await sending
        sending = asyncio.create_task(loop.sock_sendall(ours, data + b"\n"))
        got = b""
        while len(got) <= size:
            got += await reader.read(70_001)
        assert got == data + b"\n"
        await sending
        ours.close()
        assert await reader.read() == b""
        transport.close()

    run(loop_factory, main)


def test_a_full_reader_pauses_its_transport_and_goes_on_when_it_is_read(
    loop_factory: LoopFactory,
) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader(limit=1000, loop=loop)
        ours, transport = await pair(loop, reader)
        await loop.sock_sendall(ours, b"a" * 2000)
        await until(lambda: len(reader._buffer) == 2000)  # type: ignore[attr-defined]
        assert transport.is_reading()
        await loop.sock_sendall(ours, b"b")
        await until(lambda: not transport.is_reading())
        await loop.sock_sendall(ours, b"c")
        assert await reader.readexactly(2001) == b"a" * 2000 + b"b"
        assert transport.is_reading()
        assert await reader.readexactly(1) == b"c"
        close(ours, transport)

    run(loop_factory, main)


@pytest.mark.parametrize("how", ["subclass", "instance", "class"])
def test_a_feed_data_of_ones_own_is_called(
    loop_factory: LoopFactory, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = asyncio.StreamReader.feed_data
    fed: list[bytes] = []

    def feed_data(self: asyncio.StreamReader, data: bytes) -> None:
        fed.append(bytes(data))
        original(self, data.upper())

    async def main() -> None:
        loop = asyncio.get_running_loop()
        made: type[asyncio.StreamReader] = asyncio.StreamReader
        if how == "subclass":
            made = type("Own", (asyncio.StreamReader,), {"feed_data": feed_data})
        reader = made(loop=loop)
        if how == "instance":
            monkeypatch.setattr(reader, "feed_data", lambda data: feed_data(reader, data))
        elif how == "class":
            monkeypatch.setattr(asyncio.StreamReader, "feed_data", feed_data)
        ours, transport = await pair(loop, reader)
        await loop.sock_sendall(ours, b"hello")
        assert await reader.readexactly(5) == b"HELLO"
        close(ours, transport)

    run(loop_factory, main)
    assert fed == [b"hello"]


def test_a_reader_that_cannot_pause_its_transport_takes_all(loop_factory: LoopFactory) -> None:
    class Cannot:
        def pause_reading(self) -> None:
            raise NotImplementedError

        def is_closing(self) -> bool:
            return False

    async def main() -> None:
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader(limit=100, loop=loop)
        ours, transport = await pair(loop, reader)
        reader._transport = Cannot()  # type: ignore[attr-defined]
        await loop.sock_sendall(ours, b"x" * 1000)
        assert await reader.readexactly(1000) == b"x" * 1000
        assert reader._transport is None  # type: ignore[attr-defined]
        assert transport.is_reading()
        close(ours, transport)

    run(loop_factory, main)


@pytest.mark.parametrize("size", [10, 400_000])
def test_data_for_a_buffer_that_is_in_use_is_a_fatal_error_that_the_reader_sees(
    loop_factory: LoopFactory, size: int
) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        told: list[dict[str, Any]] = []
        loop.set_exception_handler(lambda _, context: told.append(context))
        reader = asyncio.StreamReader(loop=loop, limit=1 << 20)
        ours, transport = await pair(loop, reader)
        await loop.sock_sendall(ours, b"x" * 100_000)
        await until(lambda: len(reader._buffer) == 100_000)  # type: ignore[attr-defined]
        with memoryview(reader._buffer):  # type: ignore[attr-defined]
            sending = asyncio.create_task(loop.sock_sendall(ours, b"y" * size))
            await until(lambda: told)
        assert isinstance(told[0]["exception"], BufferError)
        assert told[0]["message"] == "Fatal error: protocol.data_received() call failed."
        await until(transport.is_closing)
        await asyncio.gather(sending, return_exceptions=True)
        with pytest.raises(BufferError):
            await reader.readexactly(200_000)
        ours.close()

    run(loop_factory, main)


def test_data_for_a_reader_that_is_gone_is_dropped(loop_factory: LoopFactory) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        reader = asyncio.StreamReader(loop=loop)
        ours, transport = await pair(loop, reader)
        protocol = transport.get_protocol()
        protocol._stream_reader_wr = None  # type: ignore[attr-defined]
        await loop.sock_sendall(ours, b"x" * 1000)
        await asyncio.sleep(0.01)
        assert not reader._buffer  # type: ignore[attr-defined]
        assert not transport.is_closing()
        close(ours, transport)

    run(loop_factory, main)
