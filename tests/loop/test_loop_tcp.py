"""TCP transports and servers: protocols that raise, peers that go in every state, flow control, and long transfers."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import hashlib
import os
import random
import socket
import struct
import sys
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from support import Echo, LoopFactory, Recorder, Reports, reset, run, script, tcp_pair, until

BIG = 8 << 20  # more than the buffers of the kernel take at once


def running() -> asyncio.AbstractEventLoop:
    return asyncio.get_running_loop()


@contextlib.asynccontextmanager
async def serving(factory: Callable[[], asyncio.BaseProtocol]) -> AsyncIterator[tuple[str, int]]:
    """A server on a port of its own; its connections are the test's to end."""
    server = await running().create_server(factory, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()


@contextlib.asynccontextmanager
async def recorded() -> AsyncIterator[tuple[Recorder, Any, socket.socket]]:
    """A recording protocol on one end of a TCP connection, its transport, and the other end as a bare socket."""
    with tcp_pair() as (near, far):
        far.settimeout(10)
        transport, protocol = await running().create_connection(Recorder, sock=near)
        try:
            yield protocol, transport, far
        finally:
            if not protocol.lost.done():
                transport.abort()
            await protocol.lost


async def fill(transport: Any) -> None:
    """Writes until the kernel takes no more."""
    while not transport.get_write_buffer_size():
        transport.write(b"x" * 1_000_000)


# ---------------------------------------------------------------------------------------------------------------------
# Protocols that raise


class Faulty(asyncio.Protocol):
    """Raises in one of its methods, and keeps what connection_lost was told."""

    def __init__(self, where: str, error: BaseException) -> None:
        self.where, self.error = where, error
        self.lost: list[Exception | None] = []
        self.transport: Any = None

    def step(self, here: str) -> None:
        if here == self.where:
            raise self.error

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        transport.set_write_buffer_limits(high=1000, low=10)
        self.step("connection_made")

    def data_received(self, data: bytes) -> None:
        self.step("data_received")
        if data == b"much":
            self.transport.write(b"x" * BIG)

    def eof_received(self) -> None:
        self.step("eof_received")

    def pause_writing(self) -> None:
        self.step("pause_writing")

    def resume_writing(self) -> None:
        self.step("resume_writing")

    def connection_lost(self, error: Exception | None) -> None:
        self.lost.append(error)
        self.step("connection_lost")


class FaultyBuffered(asyncio.BufferedProtocol):
    connection_made, eof_received = Faulty.connection_made, Faulty.eof_received
    connection_lost, step, __init__ = Faulty.connection_lost, Faulty.step, Faulty.__init__

    def get_buffer(self, size: int) -> bytearray:
        self.step("get_buffer")
        return bytearray(0 if self.where == "empty" else 100)

    def buffer_updated(self, size: int) -> None:
        self.step("buffer_updated")


FAULTS = {
    "connection_made": ("Exception in callback ", False),
    "data_received": ("Fatal error: protocol.data_received() call failed.", True),
    "eof_received": ("Fatal error: protocol.eof_received() call failed.", True),
    "pause_writing": ("protocol.pause_writing() failed", False),
    "resume_writing": ("protocol.resume_writing() failed", False),
    "connection_lost": ("Exception in callback ", False),
    "get_buffer": ("Fatal error: protocol.get_buffer() call failed.", True),
    "buffer_updated": ("Fatal error: protocol.buffer_updated() call failed.", True),
}


async def meet(where: str, error: BaseException, made: list[Any]) -> Any:
    """A server whose first connection has a protocol that raises there, and a second one that works."""

    def factory() -> asyncio.BaseProtocol:
        if made:
            return Echo()
        kind = Faulty if hasattr(Faulty, where) else FaultyBuffered
        made.append(kind(where, error))
        return made[0]

    async with serving(factory) as address:
        with socket.create_connection(address) as peer:
            peer.setblocking(False)
            peer.send(b"much" if where.endswith("writing") else b"some")
            got = 0
            while where == "resume_writing" and got < BIG:
                got += len(await running().sock_recv(peer, 1 << 20))
            if where == "eof_received":
                peer.shutdown(socket.SHUT_WR)
            await until(lambda: made and made[0].transport)
            await asyncio.sleep(0.02)
        await until(lambda: made[0].lost)
        reader, writer = await asyncio.open_connection(*address)
        writer.write(b"still here")
        assert await reader.readexactly(10) == b"still here"
        writer.close()
        await writer.wait_closed()
        return made[0]


@pytest.mark.parametrize("where", FAULTS)
def test_a_protocol_that_raises_is_reported_and_hurts_only_its_connection(
    loop_factory: LoopFactory, where: str
) -> None:
    async def main() -> None:
        reports = Reports(running())
        protocol = await meet(where, ValueError(where), [])
        message, fatal = FAULTS[where]
        assert [text[: len(message)] for text in reports.messages] == [message]
        assert reports.errors == [f"ValueError('{where}')"]
        if fatal:
            assert [repr(error) for error in protocol.lost] == [f"ValueError('{where}')"]
            assert {"transport", "protocol"} <= reports.keys[0]
        else:
            assert len(protocol.lost) == 1 and not isinstance(protocol.lost[0], ValueError)
        protocol.lost.clear()

    run(loop_factory, main)


def test_a_buffered_protocol_without_room_is_a_reported_error(loop_factory: LoopFactory) -> None:
    async def main() -> None:
        reports = Reports(running())
        protocol = await meet("empty", ValueError(), [])
        assert reports.messages == ["Fatal error: protocol.get_buffer() call failed."]
        assert reports.errors == ["RuntimeError('get_buffer() returned an empty buffer')"]
        assert isinstance(protocol.lost.pop(), RuntimeError)

    run(loop_factory, main)


@pytest.mark.parametrize("where", FAULTS)
def test_sys_exit_in_a_protocol_leaves_the_loop(loop_factory: LoopFactory, where: str) -> None:
    loop, made = loop_factory(), []
    with pytest.raises(SystemExit) as caught:
        loop.run_until_complete(meet(where, SystemExit(17), made))
    assert caught.value.code == 17
    caught.value.__traceback__ = None
    made[0].where = "nowhere"
    if not made[0].lost:
        made[0].transport.abort()
    made.clear()
    tasks = asyncio.all_tasks(loop)
    for task in tasks:
        task.cancel()
    loop.run_until_complete(asyncio.wait(tasks))
    loop.run_until_complete(asyncio.sleep(0.005))
    loop.run_until_complete(loop.shutdown_default_executor())
    loop.close()


def test_a_protocol_factory_that_raises_costs_a_server_that_connection_and_a_client_its_call(
    loop_factory: LoopFactory,
) -> None:
    async def main() -> None:
        reports, answers = Reports(running()), iter([None, Echo(), Echo()])

        def factory() -> asyncio.Protocol:
            if (answer := next(answers)) is None:
                raise ValueError("no protocol")
            return answer

        async with serving(factory) as address:
            reader, writer = await asyncio.open_connection(*address)
            await until(lambda: reports.messages)
            gc.collect()  # asyncio closes that socket by forgetting it, and its error refers to itself
            assert await reader.read() == b""
            writer.close()
            reader, writer = await asyncio.open_connection(*address)
            writer.write(b"echo")
            assert await reader.readexactly(4) == b"echo"
            writer.close()

            def fails() -> asyncio.Protocol:
                raise KeyError("no protocol")

            with pytest.raises(KeyError):
                await running().create_connection(fails, *address)
        assert reports.messages == ["Error on transport creation for incoming connection"]
        await asyncio.sleep(0.01)

    run(loop_factory, main, debug=True)


# ---------------------------------------------------------------------------------------------------------------------
# Peers that go


def test_a_refused_connection_says_so(loop_factory: LoopFactory) -> None:
    async def main() -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            address = listener.getsockname()
        with pytest.raises(ConnectionRefusedError, match="Connect call failed"):
            await asyncio.open_connection(*address)

    run(loop_factory, main)


def test_a_peer_that_resets_as_soon_as_it_is_connected_is_an_ordinary_event(
    loop_factory: LoopFactory,
) -> None:
    async def main() -> None:
        reports, made = Reports(running()), []

        def factory() -> Recorder:
            made.append(Recorder())
            return made[-1]

        async with serving(factory) as address:
            for _ in range(50):  # the loop accepts them when they are gone already
                reset(socket.create_connection(address))
            await until(lambda: len(made) == 50 and all(one.lost.done() for one in made))
        assert all(one.events[0] == "made" and one.events[-1] == "lost" for one in made)
        assert {type(one.error) for one in made} == {ConnectionResetError}
        assert reports.messages == []

    run(loop_factory, main)


def test_a_connect_to_a_listener_that_goes_meanwhile_ends(loop_factory: LoopFactory) -> None:
    async def main() -> None:
        listener = socket.create_server(("127.0.0.1", 0), backlog=0)
        address = listener.getsockname()
        held = [socket.socket() for _ in range(3)]
        for sock in held:  # its queue is full: what comes after has to wait
            sock.setblocking(False)
            sock.connect_ex(address)
        waiting = asyncio.ensure_future(asyncio.open_connection(*address))
        await asyncio.sleep(0.05)
        assert not waiting.done()
        listener.close()
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        for sock in held:
            sock.close()

    run(loop_factory, main)


def test_a_peer_that_resets_while_we_read_ends_the_connection_with_its_error(
    loop_factory: LoopFactory,
) -> None:
    async def main() -> None:
        reports = Reports(running())
        async with recorded() as (protocol, transport, far):
            await asyncio.sleep(0.005)
            reset(far)
            await asyncio.wait_for(protocol.lost, 5)
            assert protocol.events == ["made", "lost"]
            assert isinstance(protocol.error, ConnectionResetError)
            assert transport.is_closing()
        assert reports.messages == []

    run(loop_factory, main)


def test_a_peer_that_resets_while_reading_is_paused_is_noticed_when_it_goes_on(
    loop_factory: LoopFactory,
) -> None:
    """Until then it must not cost time either: epoll reports a hang-up that nobody asked for."""

    async def main() -> None:
        async with recorded() as (protocol, transport, far):
            transport.pause_reading()
            await asyncio.sleep(0.005)
            reset(far)
            used = time.process_time()
            await asyncio.sleep(0.3)
            assert time.process_time() - used < 0.1
            assert protocol.events == ["made"]
            transport.resume_reading()
            await asyncio.wait_for(protocol.lost, 5)
            assert isinstance(protocol.error, ConnectionResetError)

    run(loop_factory, main)


@pytest.mark.parametrize("paused", [False, True], ids=["reading", "not reading"])
def test_a_peer_that_resets_while_our_buffers_are_full_ends_the_connection_once(
    loop_factory: LoopFactory, paused: bool
) -> None:
    async def main() -> None:
        reports = Reports(running())
        async with recorded() as (protocol, transport, far):
            if paused:
                transport.pause_reading()
            await fill(transport)
            await asyncio.sleep(0.01)
            assert transport.get_write_buffer_size() > 0
            reset(far)
            await asyncio.wait_for(protocol.lost, 5)
            assert protocol.events == ["made", "pause", "lost"]
            assert isinstance(protocol.error, (ConnectionResetError, BrokenPipeError))
            assert transport.get_write_buffer_size() == 0
            await asyncio.sleep(0.02)  # a second connection_lost would fail on its future
        assert reports.messages == []

    run(loop_factory, main)


def test_a_peer_that_resets_while_we_close_with_full_buffers_ends_the_close(
    loop_factory: LoopFactory,
) -> None:
    async def main() -> None:
        async with recorded() as (protocol, transport, far):
            await fill(transport)
            transport.close()
            await asyncio.sleep(0.02)
            assert not protocol.lost.done() and transport.is_closing()
            reset(far)
            await asyncio.wait_for(protocol.lost, 5)
            assert protocol.events == ["made", "pause", "lost"]

    run(loop_factory, main)


def test_a_peer_that_ends_while_we_close_still_gets_all_we_wrote(loop_factory: LoopFactory) -> None:
    async def main() -> None:
        async with recorded() as (protocol, transport, far):
            transport.write(b"x" * BIG)
            transport.close()
            far.shutdown(socket.SHUT_WR)

            def rest() -> int:
                got = 0
                while data := far.recv(1 << 20):
                    got += len(data)
                return got

            assert await asyncio.to_thread(rest) == BIG
            await asyncio.wait_for(protocol.lost, 5)
            assert protocol.error is None and protocol.events[-1] == "lost"

    run(loop_factory, main)


def test_abort_with_full_buffers_drops_them_and_the_peer_sees_a_reset_or_an_end(
    loop_factory: LoopFactory,
) -> None:
    async def main() -> None:
        async with recorded() as (protocol, transport, far):
            await fill(transport)
            transport.abort()
            assert transport.is_closing()
            transport.abort()
            transport.close()
            await protocol.lost
            assert protocol.error is None and protocol.events == ["made", "pause", "lost"]

    run(loop_factory, main)


def test_a_drain_that_waits_when_the_peer_resets_raises(loop_factory: LoopFactory) -> None:
    async def main() -> None:
        with tcp_pair() as (near, far):
            reader, writer = await asyncio.open_connection(sock=near)
            writer.write(b"x" * BIG)
            drains = [asyncio.ensure_future(writer.drain()) for _ in range(3)]
            await asyncio.sleep(0.02)
            reset(far)
            results = await asyncio.gather(*drains, return_exceptions=True)
            assert all(isinstance(one, ConnectionError) for one in results), results
            with pytest.raises(ConnectionError):
                await reader.read()
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()

    run(loop_factory, main)


def test_writing_on_after_the_connection_is_lost_is_harmless_and_logged_after_a_while(
    loop_factory: LoopFactory, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        async with recorded() as (protocol, transport, far):
            reset(far)
            await protocol.lost
            for _ in range(10):
                transport.write(b"into the void")
            assert transport.get_write_buffer_size() == 0
            assert transport.get_extra_info("peername")[0] == "127.0.0.1"

    run(loop_factory, main)
    texts = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert texts == ["socket.send() raised exception."] * 6


def test_ending_a_transport_that_is_at_its_end_already_is_nothing(our_factory: LoopFactory) -> None:
    """The standard transport's abort() fails then."""

    async def main() -> None:
        async with recorded() as (protocol, transport, far):
            transport.write(b"x" * BIG)
            far.close()
            await protocol.lost
            for method in ("abort", "close", "write_eof", "pause_reading", "resume_reading"):
                getattr(transport, method)()
            assert transport.is_closing() and transport.get_write_buffer_size() == 0
            await asyncio.sleep(0.001)
            assert protocol.events[-1] == "lost"

    run(our_factory, main)


@pytest.mark.parametrize("how", ["close", "abort", "pause_reading", "set_protocol"])
def test_a_transport_may_be_ended_or_changed_from_inside_data_received(
    loop_factory: LoopFactory, how: str
) -> None:
    async def main() -> None:
        later = Recorder()

        class Once(Recorder):
            def data_received(self, data: bytes) -> None:
                super().data_received(data)
                if how == "set_protocol":
                    later.transport = self.transport
                    self.transport.set_protocol(later)  # type: ignore[union-attr]
                else:
                    getattr(self.transport, how)()

        with tcp_pair() as (near, far):
            transport, protocol = await running().create_connection(Once, sock=near)
            far.send(b"one")
            await until(lambda: protocol.received)
            far.send(b"two")
            await asyncio.sleep(0.02)
            assert protocol.events[:2] == ["made", "data"] and protocol.received == b"one"
            if how == "set_protocol":
                assert later.received == b"two" and transport.get_protocol() is later
            transport.abort()
            await (later if how == "set_protocol" else protocol).lost

    run(loop_factory, main)


def test_nothing_is_received_after_close_though_it_has_come_already(
    loop_factory: LoopFactory,
) -> None:
    async def main() -> None:
        async with recorded() as (protocol, transport, far):
            far.send(b"there before the close")
            transport.close()
            await protocol.lost
            assert protocol.events == ["made", "lost"]

    run(loop_factory, main)


# ---------------------------------------------------------------------------------------------------------------------
# Ends


def test_an_end_of_the_peer_closes_unless_the_protocol_wants_to_go_on_writing(
    loop_factory: LoopFactory,
) -> None:
    class Keeps(Recorder):
        def eof_received(self) -> bool:
            super().eof_received()
            return True

    async def main() -> None:
        async with recorded() as (protocol, transport, far):
            far.sendall(b"last words")
            far.shutdown(socket.SHUT_WR)
            await asyncio.wait_for(protocol.lost, 5)
            assert protocol.events == ["made", "data", "eof", "lost"]
            assert protocol.error is None and protocol.received == b"last words"
            assert far.recv(10) == b""
        with tcp_pair() as (near, far):
            transport, protocol = await running().create_connection(Keeps, sock=near)
            far.shutdown(socket.SHUT_WR)
            await until(lambda: "eof" in protocol.events)
            used = time.process_time()
            await asyncio.sleep(
                0.2
            )  # the end stays readable; a loop that asks again and again burns time
            assert time.process_time() - used < 0.1
            transport.write(b"answer")
            assert await asyncio.to_thread(far.recv, 10) == b"answer"
            assert protocol.events == ["made", "eof"]
            transport.close()
            await protocol.lost

    run(loop_factory, main)


def test_write_eof_ends_our_half_after_all_that_was_written(loop_factory: LoopFactory) -> None:
    async def main() -> None:
        async with recorded() as (protocol, transport, far):
            assert transport.can_write_eof()
            transport.write(b"y" * BIG)
            transport.write_eof()
            transport.write_eof()
            with pytest.raises(RuntimeError, match=r"Cannot call write\(\) after write_eof\(\)"):
                transport.write(b"more")

            def rest() -> int:
                got = 0
                while data := far.recv(1 << 20):
                    got += len(data)
                return got

            assert await asyncio.to_thread(rest) == BIG
            far.sendall(b"the other half is open")
            await until(lambda: protocol.received == b"the other half is open")

    run(loop_factory, main)


# ---------------------------------------------------------------------------------------------------------------------
# Flow control


def test_writing_pauses_above_the_high_mark_and_resumes_at_the_low_one(
    loop_factory: LoopFactory,
) -> None:
    async def main() -> None:
        async with recorded() as (protocol, transport, far):
            assert transport.get_write_buffer_limits() == (16384, 65536)
            await fill(transport)
            assert protocol.events == ["made", "pause"]
            while "resume" not in protocol.events:
                size = transport.get_write_buffer_size()
                await asyncio.to_thread(far.recv, 1 << 16)
                await asyncio.sleep(0)
                assert transport.get_write_buffer_size() <= size
            assert transport.get_write_buffer_size() <= 16384
            assert protocol.events == ["made", "pause", "resume"]

    run(loop_factory, main)


def test_the_marks_can_be_set_and_bad_ones_are_refused(loop_factory: LoopFactory) -> None:
    async def main() -> None:
        async with recorded() as (_, transport, _far):
            for arguments, limits in (
                ({"high": 100}, (25, 100)),
                ({"low": 100}, (100, 400)),
                ({"high": 7, "low": 7}, (7, 7)),
                ({"high": 0}, (0, 0)),
                ({}, (16384, 65536)),
            ):
                transport.set_write_buffer_limits(**arguments)
                assert transport.get_write_buffer_limits() == limits
            for arguments in ({"high": 1, "low": 2}, {"high": -1, "low": -2}):
                with pytest.raises(ValueError, match=r"must be >= low .* must be >= 0"):
                    transport.set_write_buffer_limits(**arguments)

    run(loop_factory, main)


def test_a_low_mark_below_what_is_waiting_pauses_at_once(loop_factory: LoopFactory) -> None:
    async def main() -> None:
        async with recorded() as (protocol, transport, far):
            transport.set_write_buffer_limits(high=1 << 30)
            transport.write(b"x" * BIG)
            assert protocol.events == ["made"] and transport.get_write_buffer_size() > 65536
            transport.set_write_buffer_limits()
            assert protocol.events == ["made", "pause"]

    run(loop_factory, main)


def test_pausing_and_resuming_reading_is_counted_by_nobody_and_checked(
    loop_factory: LoopFactory,
) -> None:
    async def main() -> None:
        async with recorded() as (protocol, transport, far):
            assert transport.is_reading()
            transport.pause_reading()
            transport.pause_reading()
            assert not transport.is_reading()
            far.send(b"data")
            await asyncio.sleep(0.02)
            assert protocol.received == b""
            transport.resume_reading()
            transport.resume_reading()
            await until(lambda: protocol.received == b"data")
            transport.close()
            assert not transport.is_reading()
            transport.pause_reading()
            transport.resume_reading()

    run(loop_factory, main)


def test_a_reader_that_pauses_at_each_packet_gets_all_of_them(loop_factory: LoopFactory) -> None:
    class Hesitant(Recorder):
        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            transport: Any = self.transport
            transport.pause_reading()
            running().call_later(0.0005, transport.resume_reading)

    async def main() -> None:
        payload = os.urandom(3_000_000)
        with tcp_pair() as (near, far):
            transport, protocol = await running().create_connection(Hesitant, sock=near)
            await asyncio.to_thread(far.sendall, payload)
            await until(lambda: len(protocol.received) == len(payload))
            assert protocol.received == payload
            transport.abort()
            await protocol.lost

    run(loop_factory, main)


# ---------------------------------------------------------------------------------------------------------------------
# What is written


def test_bytes_like_objects_are_written_and_others_refused(loop_factory: LoopFactory) -> None:
    async def main() -> None:
        async with recorded() as (_, transport, far):
            transport.write(b"bytes ")
            transport.write(bytearray(b"bytearray "))
            transport.write(memoryview(b"memoryview "))
            transport.write(memoryview(bytearray(b"-s-l-i-c-e-"))[1::2].tobytes())
            transport.write(b"")
            transport.writelines([b" of", b"", bytearray(b" many"), memoryview(b" lines")])
            transport.writelines([])
            transport.writelines((b" in", b" tuples"))
            transport.writelines(part for part in (b" and", b" generated"))
            wanted = b"bytes bytearray memoryview slice of many lines in tuples and generated"
            got = b""
            while len(got) < len(wanted):
                got += await asyncio.to_thread(far.recv, 100)
            assert got == wanted
            for bad, name in (("text", "'str'"), (17, "'int'"), (None, "'NoneType'")):
                text = f"data argument must be a bytes-like object, not {name}"
                with pytest.raises(TypeError, match=text):
                    transport.write(bad)

    run(loop_factory, main)


def test_what_is_written_may_be_changed_afterwards(our_factory: LoopFactory) -> None:
    """asyncio's own transports keep views of mutable objects from 3.12 on; ours copy what does not leave at once."""

    async def main() -> None:
        async with recorded() as (_, transport, far):
            block = bytearray(b"a" * BIG)
            transport.write(block)
            transport.write(memoryview(block))
            block[:] = b"b" * BIG
            block.clear()

            def rest() -> int:
                got = 0
                while got < 2 * BIG:
                    data = far.recv(1 << 20)
                    assert data.count(b"a") == len(data)
                    got += len(data)
                return got

            assert await asyncio.to_thread(rest) == 2 * BIG

    run(our_factory, main)


def test_the_first_write_of_a_turn_leaves_at_once(loop_factory: LoopFactory) -> None:
    """A callback that blocks after it wrote does not hold back what it wrote."""

    async def main() -> None:
        async with recorded() as (_, transport, far):
            transport.write(b"now")
            assert far.recv(10) == b"now"

    run(loop_factory, main)


async def bursting(transport: Any, far: socket.socket) -> None:
    """Makes it a transport that writes several times in a turn, which may change when its writes leave."""
    for _ in range(3):
        transport.write(b"a")
        transport.write(b"b")
        transport.write(b"c")
        got = b""
        while len(got) < 3:
            got += await asyncio.to_thread(far.recv, 3 - len(got))
        assert got == b"abc"


@pytest.mark.parametrize("end", ["close", "write_eof", "turn", "abort", "sendfile", "large"])
def test_what_is_written_in_pieces_leaves_in_order_whatever_follows_in_the_same_turn(
    loop_factory: LoopFactory, end: str
) -> None:
    async def main() -> bytes:
        with open(__file__, "rb") as file:
            async with recorded() as (protocol, transport, far):
                await bursting(transport, far)
                transport.write(b"one ")
                transport.write(b"two ")
                transport.writelines([b"three ", b"four"])
                match end:
                    case "close" | "write_eof" | "abort":
                        getattr(transport, end)()
                    case "sendfile":
                        await running().sendfile(transport, file, 0, 3)
                    case "large":
                        transport.write(b"x" * BIG)
                await asyncio.sleep(0.005)
                return await asyncio.to_thread(far.recv, 21)

    more = {"sendfile": b'"""', "large": b"xxx"}.get(end, b"")
    try:
        assert run(loop_factory, main) == b"one two three four" + more
    except ConnectionResetError:
        assert end == "abort"


def test_a_transport_that_writes_in_pieces_pauses_its_protocol_all_the_same(
    loop_factory: LoopFactory,
) -> None:
    async def main() -> None:
        async with recorded() as (protocol, transport, far):
            await bursting(transport, far)
            for _ in range(3000):
                transport.write(b"x" * 10_000)
                if protocol.events[-1] == "pause":
                    break
            assert protocol.events[-1] == "pause"
            assert transport.get_write_buffer_size() < 1_000_000

    run(loop_factory, main)


@pytest.mark.parametrize("how", ["exits", "is interrupted", "stops"])
def test_what_was_written_leaves_though_the_turn_ends_badly(
    loop_factory: LoopFactory, how: str
) -> None:
    loop = loop_factory()

    async def prepare() -> None:
        nonlocal near_transport
        near_transport, _ = await loop.create_connection(asyncio.Protocol, sock=near)
        await bursting(near_transport, far)

    def last() -> None:
        near_transport.write(b"last ")
        near_transport.write(b"words")
        if how == "stops":
            loop.stop()
        else:
            raise {"exits": SystemExit, "is interrupted": KeyboardInterrupt}[how]

    near_transport: Any = None
    with tcp_pair() as (near, far):
        far.settimeout(5)
        loop.run_until_complete(prepare())
        loop.run_until_complete(loop.shutdown_default_executor())
        loop.call_soon(last)
        with contextlib.suppress(SystemExit, KeyboardInterrupt):
            loop.run_forever()
        got = b""
        while len(got) < 10:
            got += far.recv(10)
        assert got == b"last words"
        near_transport.abort()
        loop.run_until_complete(asyncio.sleep(0.001))
        loop.close()


def test_a_socket_of_ones_own_sends_small_packets_at_once_too(our_factory: LoopFactory) -> None:
    """asyncio sets TCP_NODELAY only on sockets that name their protocol, which an accepted one need not."""

    async def main() -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            near = socket.socket(socket.AF_INET, socket.SOCK_STREAM, 0)
            near.connect(listener.getsockname())
            far, _ = listener.accept()
            with near, far:
                transport, _ = await running().create_connection(asyncio.Protocol, sock=near)
                assert near.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
                transport.abort()
                await asyncio.sleep(0.001)

    run(our_factory, main)


def test_readers_and_protocols_of_streams_may_be_of_ones_own_making(
    loop_factory: LoopFactory,
) -> None:
    """A quick way past asyncio's own must not go past those that override it."""
    seen: list[str] = []

    class Reader(asyncio.StreamReader):
        def feed_data(self, data: bytes) -> None:
            seen.append("reader")
            super().feed_data(data.upper())

        def feed_eof(self) -> None:
            seen.append("reader's end")
            super().feed_eof()

    class Protocol(asyncio.StreamReaderProtocol):
        def data_received(self, data: bytes) -> None:
            seen.append("protocol")
            super().data_received(data)

    async def one(make: Callable[[], asyncio.Protocol]) -> None:
        with tcp_pair() as (near, far):
            transport, protocol = await running().create_connection(make, sock=near)
            far.send(b"some data")
            await until(lambda: bytes(reader._buffer) == b"SOME DATA")  # type: ignore[attr-defined]
            far.close()
            assert await reader.read() == b"SOME DATA"
            transport.abort()
            await asyncio.sleep(0.001)

    async def main() -> None:
        nonlocal reader
        reader = Reader()
        await one(lambda: asyncio.StreamReaderProtocol(reader))
        assert list(dict.fromkeys(seen)) == ["reader", "reader's end"]
        seen.clear()
        reader = Reader()
        await one(lambda: Protocol(reader))
        assert list(dict.fromkeys(seen)) == ["protocol", "reader", "reader's end"]
        seen.clear()
        reader = asyncio.StreamReader()
        feed = reader.feed_data
        reader.feed_data = lambda data: (seen.append("patched"), feed(data.upper()))  # type: ignore[method-assign, assignment, misc]
        await one(lambda: asyncio.StreamReaderProtocol(reader))
        assert seen == ["patched"]
        del reader.feed_data

    reader: Any = None
    run(loop_factory, main)


@pytest.mark.parametrize("size", [1, 100, 1400, 16384, 70_000, 300_000])
def test_a_long_transfer_arrives_whole_and_in_order(loop_factory: LoopFactory, size: int) -> None:
    """An echo of pieces of about that size, some of them written several in a turn."""
    count = max(40, min(3000, 4_000_000 // size))

    async def main() -> None:
        pieces = random.Random(size)
        sent, got = hashlib.sha256(), hashlib.sha256()
        total = received = 0
        async with serving(Echo) as address:
            reader, writer = await asyncio.open_connection(*address)

            async def read() -> None:
                nonlocal received
                while data := await reader.read(1 << 18):
                    received += len(data)
                    got.update(data)

            reading = asyncio.ensure_future(read())
            for number in range(count):
                piece = pieces.randbytes(pieces.randint(1, 2 * size))
                total += len(piece)
                sent.update(piece)
                writer.write(piece)
                if number % 3 == 0:
                    await writer.drain()
            writer.write_eof()
            await asyncio.wait_for(reading, 20)
            writer.close()
            await writer.wait_closed()
        assert received == total and got.digest() == sent.digest()

    run(loop_factory, main)


@pytest.mark.parametrize("room", [1, 1000, 65536, 1_000_000])
def test_a_buffered_protocol_gets_all_in_buffers_of_its_own(
    loop_factory: LoopFactory, room: int
) -> None:
    class Buffered(asyncio.BufferedProtocol):
        def __init__(self) -> None:
            self.room = bytearray(room)
            self.received = bytearray()
            self.lost = running().create_future()

        def get_buffer(self, size: int) -> memoryview:
            assert size == -1 or size > 0
            return memoryview(self.room)

        def buffer_updated(self, count: int) -> None:
            assert 0 < count <= room
            self.received += self.room[:count]

        def eof_received(self) -> None:
            self.received += b"end"

        def connection_lost(self, error: Exception | None) -> None:
            self.lost.set_result(error)

    async def main() -> None:
        payload = os.urandom(5000 if room == 1 else 2_000_000)
        with tcp_pair() as (near, far):
            _, protocol = await running().create_connection(Buffered, sock=near)

            def send() -> None:
                far.sendall(payload)
                far.shutdown(socket.SHUT_WR)

            await asyncio.to_thread(send)
            assert await asyncio.wait_for(protocol.lost, 10) is None
            assert protocol.received == payload + b"end"

    run(loop_factory, main)


def test_many_connections_at_once_get_their_own_answers(loop_factory: LoopFactory) -> None:
    async def main() -> None:
        async def one(number: int, address: tuple[str, int]) -> None:
            reader, writer = await asyncio.open_connection(*address)
            for turn in range(5):
                line = f"{number} {turn}\n".encode()
                writer.write(line)
                assert await reader.readline() == line
            writer.close()
            await writer.wait_closed()

        async with serving(Echo) as address:
            await asyncio.gather(*(one(number, address) for number in range(90)))

    run(loop_factory, main)


# ---------------------------------------------------------------------------------------------------------------------
# Facts about a connection


def test_a_transport_tells_what_the_standard_one_tells(loop_factory: LoopFactory) -> None:
    async def main() -> None:
        async with recorded() as (protocol, transport, far):
            assert isinstance(transport, asyncio.Transport)
            assert transport.get_protocol() is protocol
            assert transport.get_extra_info("sockname") == far.getpeername()
            assert transport.get_extra_info("peername") == far.getsockname()
            sock = transport.get_extra_info("socket")
            assert type(sock).__name__ == "TransportSocket" and sock.fileno() > 0
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            assert transport.get_extra_info("sslcontext") is None
            assert transport.get_extra_info("what is that", "nothing") == "nothing"
            text = repr(transport)
            assert f"fd={sock.fileno()}" in text and "read=polling" in text and "bufsize=0" in text
            transport.close()
            assert "closing" in repr(transport)
            await protocol.lost
            assert "closed" in repr(transport)

    run(loop_factory, main)


def test_sockets_that_are_no_streams_are_refused(loop_factory: LoopFactory) -> None:
    async def main() -> None:
        with socket.socket(type=socket.SOCK_DGRAM) as datagram:
            for call in (
                running().create_connection(Echo, sock=datagram),
                running().create_server(Echo, sock=datagram),
                running().connect_accepted_socket(Echo, sock=datagram),
            ):
                with pytest.raises(ValueError, match="A Stream Socket was expected, got "):
                    await call

    run(loop_factory, main)


def test_an_accepted_socket_of_somebody_elses_listener_can_be_served(
    loop_factory: LoopFactory,
) -> None:
    async def main() -> None:
        with tcp_pair() as (near, far):
            transport, _ = await running().connect_accepted_socket(Echo, near)
            far.send(b"hello")
            assert await asyncio.to_thread(far.recv, 10) == b"hello"
            transport.close()
            assert await asyncio.to_thread(far.recv, 10) == b""

    run(loop_factory, main)


def test_a_transport_forgotten_open_warns_and_closes_its_socket(loop_factory: LoopFactory) -> None:
    async def main() -> None:
        with tcp_pair() as (near, far):
            transport, protocol = await running().create_connection(asyncio.Protocol, sock=near)
            running().remove_reader  # noqa: B018  (the loop itself keeps it while it reads)
            transport.pause_reading()
            running()._transports.clear()  # type: ignore[attr-defined]
            with pytest.warns(ResourceWarning, match="unclosed transport"):
                del transport, protocol
                gc.collect()
            far.settimeout(5)
            assert far.recv(1) == b""

    run(loop_factory, main)


# ---------------------------------------------------------------------------------------------------------------------
# Servers


def test_a_server_has_its_sockets_and_ends_when_it_is_told(loop_factory: LoopFactory) -> None:
    async def main() -> None:
        server = await running().create_server(Echo, "127.0.0.1", 0, start_serving=False)
        assert not server.is_serving() and isinstance(server.sockets, tuple)
        address = server.sockets[0].getsockname()
        assert server.get_loop() is running()
        forever = asyncio.ensure_future(server.serve_forever())
        await asyncio.sleep(0.005)
        assert server.is_serving()
        with pytest.raises(RuntimeError, match="is already being awaited on serve_forever"):
            await server.serve_forever()
        forever.cancel()
        with pytest.raises(asyncio.CancelledError):
            await forever
        assert not server.is_serving() and server.sockets == ()
        with pytest.raises(RuntimeError, match="is closed"):
            await server.serve_forever()
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection(*address)
        await server.wait_closed()

    run(loop_factory, main)


def test_a_taken_port_is_an_error_that_names_it(loop_factory: LoopFactory) -> None:
    async def main() -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            with pytest.raises(
                OSError, match=f"error while attempting to bind on address .*{port}"
            ):
                await running().create_server(Echo, "127.0.0.1", port)

    run(loop_factory, main)


def test_a_server_listens_on_every_address_it_is_given(loop_factory: LoopFactory) -> None:
    async def main() -> None:
        server = await running().create_server(Echo, ["127.0.0.1", "::1"], 0)
        families = {sock.family for sock in server.sockets}
        assert families == {socket.AF_INET, socket.AF_INET6}
        for sock in server.sockets:
            reader, writer = await asyncio.open_connection(*sock.getsockname()[:2])
            writer.write(b"hello")
            assert await reader.readexactly(5) == b"hello"
            writer.close()
        server.close()
        await server.wait_closed()

    run(loop_factory, main)


def test_connections_outlive_a_closed_server(loop_factory: LoopFactory) -> None:
    async def main() -> None:
        server = await running().create_server(Echo, "127.0.0.1", 0)
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        writer.write(b"a")
        assert await reader.readexactly(1) == b"a"
        server.close()
        assert not server.is_serving()
        writer.write(b"b")
        assert await reader.readexactly(1) == b"b"
        writer.close()
        await writer.wait_closed()
        await server.wait_closed()

    run(loop_factory, main)


def test_a_server_without_descriptors_says_so_and_goes_on_when_there_are_some(
    loop_name: str,
) -> None:
    """It stops accepting for a second, or it would spin; those who waited are served then."""
    ended = script(
        """
        import resource

        async def main():
            loop = asyncio.get_running_loop()
            reports = Reports(loop)
            server = await loop.create_server(Echo, "127.0.0.1", 0, backlog=10)
            address = server.sockets[0].getsockname()
            waiting = [socket.create_connection(address) for _ in range(3)]
            hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
            held = []
            resource.setrlimit(resource.RLIMIT_NOFILE, (60, hard))
            try:
                while True:
                    held.append(os.open("/dev/null", os.O_RDONLY))
            except OSError:
                pass
            used = time.process_time()
            await asyncio.sleep(0.5)
            assert time.process_time() - used < 0.25, "it spins"
            assert set(reports.messages) == {"socket.accept() out of system resource"}, reports.messages
            assert set(reports.errors) == {repr(OSError(24, "Too many open files"))}, reports.errors
            try:
                await asyncio.open_connection(*address)
            except OSError as error:
                assert error.errno == 24
            for fd in held:
                os.close(fd)
            for number, sock in enumerate(waiting):
                sock.setblocking(False)
                await loop.sock_sendall(sock, b"hello %d" % number)
                assert await asyncio.wait_for(loop.sock_recv(sock, 100), 5) == b"hello %d" % number
                sock.close()
            server.close()
            await asyncio.sleep(0.01)
            print("served", len(waiting))
        run(new_loop, main)
        """,
        loop_name,
    )
    assert (ended.stdout, ended.stderr, ended.returncode) == ("served 3\n", "", 0)


def test_a_thousand_connections_that_come_and_go_leave_nothing(loop_factory: LoopFactory) -> None:
    """In every manner: an end, a reset, half an end, data that nobody read. The fixture looks at what is left."""

    class Counted(Echo):
        made = lost = 0

        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            super().connection_made(transport)
            Counted.made += 1

        def connection_lost(self, error: Exception | None) -> None:
            Counted.lost += 1

    async def main() -> None:
        async with serving(Counted) as address:
            for number in range(1000):
                sock = socket.create_connection(address)
                if number % 2:
                    sock.send(struct.pack("!I", number))
                if number % 4 == 1:
                    await asyncio.sleep(0)
                if number % 3 == 0:
                    sock.shutdown(socket.SHUT_WR)
                (sock.close if number % 5 else lambda: reset(sock))()
                if number % 50 == 0:
                    await asyncio.sleep(0.001)
            await until(lambda: Counted.made == Counted.lost == 1000)

    run(loop_factory, main)


if sys.version_info >= (3, 13):

    def test_a_server_can_close_or_abort_its_clients(loop_factory: LoopFactory) -> None:
        async def main() -> None:
            for end in ("close_clients", "abort_clients"):
                server = await running().create_server(Echo, "127.0.0.1", 0)
                reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
                writer.write(b"x")
                assert await reader.readexactly(1) == b"x"
                server.close()
                getattr(server, end)()
                await asyncio.wait_for(server.wait_closed(), 5)
                with contextlib.suppress(ConnectionError):
                    assert await reader.read() == b""
                writer.close()

        run(loop_factory, main)
