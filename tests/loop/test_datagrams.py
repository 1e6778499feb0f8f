"""The native datagram transport beside the standard loop's: what arrives and from where, what waits, errors and ends."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import gc
import logging
import os
import socket
import struct
import weakref
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from support import LoopFactory, Reports, run, until


def running() -> Any:
    return asyncio.get_running_loop()


class Notes(asyncio.DatagramProtocol):
    """Notes what happens to it."""

    def __init__(self) -> None:
        self.events: list[Any] = []
        self.received: list[tuple[bytes, Any]] = []
        self.errors: list[Exception] = []
        self.lost: asyncio.Future[Exception | None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: Any) -> None:
        self.events.append("made")
        self.transport = transport

    def datagram_received(self, data: bytes, addr: Any) -> None:
        self.events.append("data")
        self.received.append((data, addr))

    def error_received(self, exc: Exception) -> None:
        self.events.append("error")
        self.errors.append(exc)

    def pause_writing(self) -> None:
        self.events.append("pause")

    def resume_writing(self) -> None:
        self.events.append("resume")

    def connection_lost(self, exc: Exception | None) -> None:
        self.events.append("lost")
        self.lost.set_result(exc)

    async def some(self, count: int) -> list[tuple[bytes, Any]]:
        await until(lambda: len(self.received) >= count)
        return self.received


@contextlib.asynccontextmanager
async def endpoint(
    factory: Callable[[], Any] = Notes, **options: Any
) -> AsyncIterator[tuple[Any, Any]]:
    transport, protocol = await running().create_datagram_endpoint(factory, **options)
    try:
        yield transport, protocol
    finally:
        if transport.get_extra_info("socket").fileno() != -1:
            transport.abort()
        await until(lambda: transport.get_extra_info("socket").fileno() == -1)


def pair() -> tuple[socket.socket, socket.socket]:
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)


def name(transport: Any) -> Any:
    return transport.get_extra_info("sockname")


@contextlib.asynccontextmanager
async def crowded(where: str | None = None) -> AsyncIterator[tuple[Any, Any, Any, int]]:
    """A transport whose peer reads nothing until it is asked to: the transport, its protocol, the peer, what was sent."""
    near, far = (socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) for _ in range(2))
    with far:
        far.setblocking(False)
        far.bind(where or "")  # or a name of the kernel's choice
        if where is None:
            near.connect(far.getsockname())
        async with endpoint(sock=near) as (transport, notes):
            yield transport, notes, far, fill(transport, where)


async def received(sock: socket.socket, count: int) -> list[bytes]:
    return [(await running().sock_recv(sock, 2000)) for _ in range(count)]


def numbers(first: int, last: int) -> list[bytes]:
    return [b"%05d" % number + b"x" * 1000 for number in range(first, last + 1)]


def fill(transport: Any, where: Any) -> int:
    """Sends until something waits; returns how many were sent, the last of which waits."""
    for count in range(1, 10_000):
        transport.sendto(b"%05d" % count + b"x" * 1000, where)
        if transport.get_write_buffer_size():
            return count
    raise AssertionError("the kernel takes everything")


# ---------------------------------------------------------------------------------------------------------------------
# What arrives


@pytest.mark.parametrize("kind", ["v4", "v6", "path", "abstract"])
@pytest.mark.parametrize("connected", [False, True])
def test_datagrams_go_there_and_back(
    loop_factory: LoopFactory, tmp_path: Path, kind: str, connected: bool
) -> None:
    mine, others = {
        "v4": (("127.0.0.1", 0), ("127.0.0.1", 0)),
        "v6": (("::1", 0), ("::1", 0)),
        "path": (str(tmp_path / "to"), str(tmp_path / "fröm")),
        "abstract": (f"\0to{os.getpid()}", f"\0from{os.getpid()}"),
    }[kind]
    family = {"v4": socket.AF_INET, "v6": socket.AF_INET6}.get(kind, socket.AF_UNIX)

    async def main() -> None:
        async with endpoint(local_addr=mine, family=family) as (near, server):
            to = os.fsdecode(name(near)) if family == socket.AF_UNIX else name(near)[:2]
            where = {"remote_addr": to} if connected else {}
            async with endpoint(local_addr=others, family=family, **where) as (far, client):
                assert far.get_extra_info("peername") == (name(near) if connected else None)
                for round in range(3):
                    far.sendto(b"there", None if connected else name(near))
                    (data, source) = (await server.some(round + 1))[-1]
                    assert (data, source) == (b"there", name(far))
                    near.sendto(b"back", source)
                    assert (await client.some(round + 1))[-1] == (b"back", name(near))

    run(loop_factory, main)


def test_the_object_of_an_address_is_what_the_socket_module_makes(
    loop_factory: LoopFactory,
) -> None:
    async def main() -> None:
        for family, host in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
            with contextlib.ExitStack() as stack:
                peers = [
                    stack.enter_context(socket.socket(family, socket.SOCK_DGRAM)) for _ in range(70)
                ]
                for peer in peers:
                    peer.bind((host, 0))
                async with endpoint(local_addr=(host, 0)) as (near, notes):
                    for _ in range(3):  # more peers than are remembered
                        for peer in peers:
                            peer.sendto(b"hello", name(near))
                    await notes.some(210)
                    names = [peer.getsockname() for peer in peers]
                    assert [source for _, source in notes.received] == names * 3
                    for source in names:  # and each of them is answered
                        near.sendto(repr(source).encode(), source)
                    for peer, source in zip(peers, names):
                        assert peer.recv(100) == repr(source).encode()

    run(loop_factory, main)


def test_peers_of_one_port_are_told_apart(loop_factory: LoopFactory) -> None:
    async def main() -> None:
        with socket.socket(type=socket.SOCK_DGRAM) as one, socket.socket(
            type=socket.SOCK_DGRAM
        ) as two:
            one.bind(("127.0.0.1", 0))
            two.bind(("127.0.0.2", one.getsockname()[1]))
            async with endpoint(local_addr=("127.0.0.1", 0)) as (near, notes):
                for _ in range(3):
                    one.sendto(b"1", name(near))
                    two.sendto(b"2", name(near))
                for data, source in await notes.some(6):
                    assert source[0] == "127.0.0." + data.decode()
                    near.sendto(data, source)
                for peer, number in ((one, b"1"), (two, b"2")):
                    peer.setblocking(False)
                    assert [peer.recv(9) for _ in range(3)] == [number] * 3
                    with pytest.raises(BlockingIOError):
                        peer.recv(9)

    run(loop_factory, main)


def test_hundreds_of_datagrams_at_once_arrive_in_order(loop_factory: LoopFactory) -> None:
    async def main() -> None:
        async with endpoint(local_addr=("127.0.0.1", 0)) as (near, notes):
            with socket.socket(type=socket.SOCK_DGRAM) as far:
                for count in (1, 2, 3, 40, 150, 1, 17):
                    for number in range(count):
                        far.sendto(b"%d" % number, name(near))
                    await notes.some(count)
                    assert [data for data, _ in notes.received] == [b"%d" % n for n in range(count)]
                    notes.received.clear()

    run(loop_factory, main)


def test_others_run_while_datagrams_come_without_end(loop_factory: LoopFactory) -> None:
    class Endless(Notes):
        def datagram_received(self, data: bytes, addr: Any) -> None:
            super().datagram_received(data, addr)
            self.transport.sendto(data, name(self.transport))  # to itself

    async def main() -> None:
        async with endpoint(Endless, local_addr=("127.0.0.1", 0)) as (near, notes):
            for _ in range(100):
                near.sendto(b"hello", name(near))
            await notes.some(100)
            for _ in range(20):
                before = len(notes.received)
                await asyncio.sleep(0)
                await asyncio.sleep(0)
                assert len(notes.received) - before <= 100

    run(loop_factory, main)


@pytest.mark.parametrize("size", [0, 1, 4096, 65_507])
def test_datagrams_of_every_size_arrive_whole(loop_factory: LoopFactory, size: int) -> None:
    async def main() -> None:
        async with endpoint(local_addr=("127.0.0.1", 0)) as (near, notes):
            with socket.socket(type=socket.SOCK_DGRAM) as far:
                data = os.urandom(size)
                for _ in range(2):
                    far.sendto(data, name(near))
                assert [each for each, _ in await notes.some(2)] == [data] * 2

    run(loop_factory, main)


def test_what_is_too_large_for_a_datagram_is_an_error_of_the_protocol(
    loop_factory: LoopFactory,
) -> None:
    async def main() -> None:
        async with endpoint(local_addr=("127.0.0.1", 0)) as (near, notes):
            near.sendto(bytes(70_000), name(near))
            assert [type(error) for error in notes.errors] == [OSError]
            assert notes.errors[0].errno == 90  # type: ignore[attr-defined]
            near.sendto(b"and on", name(near))
            assert (await notes.some(1))[0][0] == b"and on"

    run(loop_factory, main)


def test_a_large_unix_datagram_arrives_whole(loop_factory: LoopFactory) -> None:
    async def main() -> None:
        near, far = pair()
        with far:
            far.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
            size = min(250_000, far.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) // 2 - 4096)
            async with endpoint(sock=near) as (_, notes):
                far.send(b"x" * size)
                assert await notes.some(1) == [(b"x" * size, None)]

    run(loop_factory, main)


def test_sockets_of_families_that_only_the_socket_module_knows_work(
    loop_factory: LoopFactory,
) -> None:
    """Netlink: a request for the list of network interfaces is answered by the kernel, pid 0."""

    async def main() -> None:
        sock = socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM, 0)
        sock.bind((0, 0))
        async with endpoint(sock=sock) as (transport, notes):
            message = struct.pack("=IHHIIBxxx", 20, 18, 0x301, 1, 0, 0)  # RTM_GETLINK, dump
            transport.sendto(message, (0, 0))
            for data, source in await notes.some(1):
                assert source == (0, 0)
                assert struct.unpack_from("=IHHI", data)[1] in (16, 3)  # RTM_NEWLINK, done
            assert transport.get_extra_info("sockname") == sock.getsockname()

    run(loop_factory, main)


# ---------------------------------------------------------------------------------------------------------------------
# What is sent


@pytest.mark.parametrize("make", [bytes, bytearray, memoryview])
def test_sendto_takes_bytes_of_all_kinds(
    loop_factory: LoopFactory, make: Callable[[bytes], Any]
) -> None:
    async def main() -> None:
        async with endpoint(local_addr=("127.0.0.1", 0)) as (near, notes):
            near.sendto(make(b"data"), name(near))
            near.sendto(data=make(b"more"), addr=name(near))
            near.sendto(make(b""), name(near))  # sent from 3.13 on
            near.sendto(make(b"last"), name(near))
            await until(lambda: notes.received and notes.received[-1][0] == b"last")
            assert [data for data, _ in notes.received if data] == [b"data", b"more", b"last"]

    run(loop_factory, main)


@pytest.mark.parametrize("wrong", ["text", None, 7, [1, 2]])
def test_sendto_refuses_what_is_not_bytes(loop_factory: LoopFactory, wrong: Any) -> None:
    async def main() -> None:
        async with endpoint(local_addr=("127.0.0.1", 0)) as (near, _):
            with pytest.raises(TypeError) as caught:
                near.sendto(wrong, name(near))
            text = f"data argument must be a bytes-like object, not {type(wrong).__name__!r}"
            assert str(caught.value) == text

    run(loop_factory, main)


def test_a_transport_with_a_remote_address_sends_nowhere_else(loop_factory: LoopFactory) -> None:
    async def main() -> None:
        async with endpoint(local_addr=("127.0.0.1", 0)) as (near, notes):
            async with endpoint(remote_addr=name(near)) as (far, _):
                far.sendto(b"1")
                far.sendto(b"2", name(near))
                far.sendto(b"3", ("127.0.0.1", name(near)[1]))
                assert [data for data, _ in await notes.some(3)] == [b"1", b"2", b"3"]
                with pytest.raises(ValueError) as caught:
                    far.sendto(b"4", ("127.0.0.1", 9))
                assert str(caught.value) == f"Invalid address: must be None or {name(near)}"

    run(loop_factory, main)


def test_a_socket_that_was_connected_before_sends_to_its_peer_whatever_it_is_told(
    loop_factory: LoopFactory,
) -> None:
    async def main() -> None:
        async with endpoint(local_addr=("127.0.0.1", 0)) as (near, notes):
            sock = socket.socket(type=socket.SOCK_DGRAM)
            sock.connect(name(near))
            async with endpoint(sock=sock) as (far, _):
                far.sendto(b"1")
                far.sendto(b"2", ("127.0.0.1", 9))
                assert [data for data, _ in await notes.some(2)] == [b"1", b"2"]

    run(loop_factory, main)


@pytest.mark.parametrize("host", ["localhost", "", b"127.0.0.1"])
def test_names_are_resolved_by_the_socket(loop_factory: LoopFactory, host: Any) -> None:
    async def main() -> None:
        async with endpoint(local_addr=("127.0.0.1", 0)) as (near, notes):
            near.sendto(b"data", (host, name(near)[1]))
            near.sendto(b"more", (host, name(near)[1]))
            assert [data for data, _ in await notes.some(2)] == [b"data", b"more"]

    run(loop_factory, main)


def test_broadcasts_go_out_if_they_are_allowed(loop_factory: LoopFactory) -> None:
    async def main() -> None:
        async with endpoint(local_addr=("0.0.0.0", 0)) as (near, notes):
            where = ("127.255.255.255", name(near)[1])
            near.sendto(b"forbidden", where)
            assert [type(error) for error in notes.errors] == [PermissionError]
            async with endpoint(local_addr=("127.0.0.1", 0), allow_broadcast=True) as (far, _):
                far.sendto(b"hello", where)
                assert await notes.some(1) == [(b"hello", name(far))]

    run(loop_factory, main)


def test_a_remote_address_to_broadcast_to_is_not_connected_to(loop_factory: LoopFactory) -> None:
    async def main() -> None:
        async with endpoint(local_addr=("0.0.0.0", 0)) as (near, notes):
            where = ("127.255.255.255", name(near)[1])
            async with endpoint(remote_addr=where, allow_broadcast=True) as (far, others):
                assert far.get_extra_info("peername") is None
                far.sendto(b"hello")
                data, source = (await notes.some(1))[0]
                near.sendto(b"answer", source)  # from an address that it was not sent to
                assert (await others.some(1))[0][0] == b"answer"
                with pytest.raises(ValueError, match="Invalid address: must be None or"):
                    far.sendto(b"hello", source)

    run(loop_factory, main)


@pytest.mark.parametrize("where", [None, "nowhere", ("127.0.0.1", 70_000), ("127.0.0.1",)])
def test_an_address_that_is_none_is_fatal(loop_factory: LoopFactory, where: Any) -> None:
    """As it is in asyncio: only errors of the network are told to the protocol."""

    async def main() -> None:
        reports = Reports(running())
        async with endpoint(local_addr=("127.0.0.1", 0)) as (near, notes):
            near.sendto(b"data", where)
            error = await notes.lost
            assert isinstance(error, (TypeError, OverflowError))
            assert reports.messages == ["Fatal write error on datagram transport"]
            assert reports.errors == [repr(error)]
            assert {"transport", "protocol"} <= reports.keys[0]
            assert notes.errors == []

    run(loop_factory, main)


def test_nobody_there_is_an_error_of_a_connected_protocol(loop_factory: LoopFactory) -> None:
    async def main() -> None:
        with socket.socket(type=socket.SOCK_DGRAM) as free:
            free.bind(("127.0.0.1", 0))
            where = free.getsockname()
        async with endpoint(remote_addr=where) as (far, notes):
            far.sendto(b"1")
            await until(lambda: notes.errors)
            assert [type(error) for error in notes.errors] == [ConnectionRefusedError]
            far.sendto(b"2")
            await until(lambda: len(notes.errors) == 2)
            assert not far.is_closing()

    run(loop_factory, main)


# ---------------------------------------------------------------------------------------------------------------------
# What waits


@pytest.mark.parametrize("connected", [True, False])
def test_what_the_kernel_does_not_take_waits_and_leaves_in_order(
    loop_factory: LoopFactory, tmp_path: Path, connected: bool
) -> None:
    async def main() -> None:
        where = None if connected else str(tmp_path / "s")
        async with crowded(where) as (transport, notes, far, sent):
            assert transport.get_write_buffer_size() in (1005, 1013)
            for each in numbers(sent + 1, sent + 100):
                transport.sendto(each, where)
            assert notes.events == ["made", "pause"]
            assert transport.get_write_buffer_size() in (101 * 1005, 101 * 1013)
            assert await received(far, sent + 100) == numbers(1, sent + 100)
            await until(lambda: "write=<idle" in repr(transport))
            transport.sendto(b"and on", where)
            assert await received(far, 1) == [b"and on"]

    run(loop_factory, main)


def test_what_has_left_is_counted_no_more_and_the_protocol_may_go_on(
    our_factory: LoopFactory,
) -> None:
    """asyncio of 3.13 forgets to subtract the headers."""

    async def main() -> None:
        async with crowded() as (transport, notes, far, sent):
            for each in numbers(sent + 1, sent + 100):
                transport.sendto(each)
            await received(far, sent + 100)
            await until(lambda: transport.get_write_buffer_size() == 0)
            assert notes.events == ["made", "pause", "resume"]

    run(our_factory, main)


def test_what_waits_does_not_change_with_the_buffer_it_came_from(loop_factory: LoopFactory) -> None:
    async def main() -> None:
        async with crowded() as (transport, _, far, sent):
            buffer = bytearray(b"before")
            transport.sendto(buffer)
            buffer[:] = b"after!"
            assert (await received(far, sent + 1))[-1] == b"before"

    run(loop_factory, main)


def test_closing_sends_what_waits_first(loop_factory: LoopFactory) -> None:
    async def main() -> None:
        async with crowded() as (transport, notes, far, sent):
            transport.sendto(b"last")
            transport.close()
            assert transport.is_closing()
            transport.close()
            await asyncio.sleep(0.01)
            assert not notes.lost.done()
            assert await received(far, sent + 1) == [*numbers(1, sent), b"last"]
            assert await notes.lost is None
            assert notes.events == ["made", "lost"]

    run(loop_factory, main)


def test_aborting_drops_what_waits(loop_factory: LoopFactory) -> None:
    async def main() -> None:
        async with crowded() as (transport, notes, far, sent):
            transport.abort()
            transport.abort()
            transport.close()
            assert await notes.lost is None
            assert await received(far, sent - 1) == numbers(1, sent - 1)
            with pytest.raises(BlockingIOError):
                far.recv(2000)
            assert notes.events == ["made", "lost"]

    run(loop_factory, main)


def test_write_limits_are_asyncios(loop_factory: LoopFactory) -> None:
    async def main() -> None:
        async with crowded() as (transport, notes, _, _):
            assert transport.get_write_buffer_limits() == (16384, 65536)
            transport.set_write_buffer_limits(low=2000)
            assert transport.get_write_buffer_limits() == (2000, 8000)
            with pytest.raises(ValueError, match=r"high \(1\) must be >= low \(2\) must be >= 0"):
                transport.set_write_buffer_limits(high=1, low=2)
            assert notes.events == ["made"]
            transport.set_write_buffer_limits(high=100)  # less than waits
            assert transport.get_write_buffer_limits() == (25, 100)
            assert notes.events == ["made", "pause"]

    run(loop_factory, main)


def test_an_error_drops_the_datagram_it_is_about_and_no_other(
    loop_factory: LoopFactory, tmp_path: Path
) -> None:
    async def main() -> None:
        where = str(tmp_path / "s")
        async with crowded(where) as (transport, notes, far, sent):
            transport.sendto(b"to nowhere", str(tmp_path / "nowhere"))
            transport.sendto(b"after it", where)
            assert (await received(far, sent + 1))[-1] == b"after it"
            assert [type(error) for error in notes.errors] == [FileNotFoundError]

    run(loop_factory, main)


def test_what_waits_for_an_address_that_is_none_is_fatal_in_its_turn(
    loop_factory: LoopFactory, tmp_path: Path
) -> None:
    async def main() -> None:
        reports = Reports(running())
        async with crowded(str(tmp_path / "s")) as (transport, notes, far, sent):
            transport.sendto(b"nowhere", 17)
            await received(far, sent)
            assert isinstance(await notes.lost, TypeError)
            assert reports.messages[0] == "Fatal write error on datagram transport"

    run(loop_factory, main)


# ---------------------------------------------------------------------------------------------------------------------
# Protocols that do as they like


def test_a_protocol_that_closes_gets_nothing_more(loop_factory: LoopFactory) -> None:
    class Closes(Notes):
        def datagram_received(self, data: bytes, addr: Any) -> None:
            super().datagram_received(data, addr)
            if len(self.received) == 3:
                self.transport.close()

    async def main() -> None:
        async with endpoint(Closes, local_addr=("127.0.0.1", 0)) as (near, notes):
            for _ in range(30):
                near.sendto(b"data", name(near))
            assert await notes.lost is None
            assert notes.events == ["made", "data", "data", "data", "lost"]

    run(loop_factory, main)


@pytest.mark.parametrize("end", ["abort", "close"])
def test_a_protocol_that_ends_when_it_is_made_is_told_of_the_end(
    loop_factory: LoopFactory, end: str
) -> None:
    class Ends(Notes):
        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            getattr(transport, end)()

    async def main() -> None:
        async with endpoint(Ends, local_addr=("127.0.0.1", 0)) as (_, notes):
            assert await notes.lost is None
            assert notes.events == ["made", "lost"]

    run(loop_factory, main)


def test_what_a_protocol_raises_is_reported_and_the_transport_goes_on(
    loop_factory: LoopFactory,
) -> None:
    class Raises(Notes):
        def datagram_received(self, data: bytes, addr: Any) -> None:
            super().datagram_received(data, addr)
            raise ValueError(data)

        def connection_lost(self, exc: Exception | None) -> None:
            super().connection_lost(exc)
            raise LookupError

    async def main() -> None:
        reports = Reports(running())
        async with endpoint(Raises, local_addr=("127.0.0.1", 0)) as (near, notes):
            for number in range(3):
                near.sendto(b"%d" % number, name(near))
            await until(lambda: len(reports.errors) == 3)
            assert reports.errors == [f"ValueError(b'{n}')" for n in range(3)]
            assert all(text.startswith("Exception in callback") for text in reports.messages)
            assert not near.is_closing()
            near.close()
            await notes.lost
            await until(lambda: len(reports.errors) == 4)
            assert reports.errors[3] == "LookupError()"

    run(loop_factory, main)


def test_what_error_received_raises_in_sendto_is_the_callers(loop_factory: LoopFactory) -> None:
    class Raises(Notes):
        def error_received(self, exc: Exception) -> None:
            raise LookupError from exc

    async def main() -> None:
        async with endpoint(Raises, local_addr=("127.0.0.1", 0)) as (near, _):
            with pytest.raises(LookupError):
                near.sendto(bytes(70_000), name(near))

    run(loop_factory, main)


@pytest.mark.parametrize("leaves", [KeyboardInterrupt, SystemExit])
def test_an_interrupt_in_a_callback_leaves_the_loop(
    loop_factory: LoopFactory, leaves: type[BaseException]
) -> None:
    class Raises(Notes):
        def datagram_received(self, data: bytes, addr: Any) -> None:
            super().datagram_received(data, addr)
            raise leaves

    loop = loop_factory()
    transport, notes = loop.run_until_complete(make(loop, Raises))
    transport.sendto(b"data", name(transport))
    with pytest.raises(leaves):
        loop.run_forever()
    transport.close()
    loop.run_until_complete(notes.lost)
    loop.close()


async def make(loop: Any, factory: Callable[[], Any]) -> Any:
    return await loop.create_datagram_endpoint(factory, local_addr=("127.0.0.1", 0))


def test_callbacks_run_in_the_context_that_made_the_transport(loop_factory: LoopFactory) -> None:
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="none")

    class Looks(Notes):
        def datagram_received(self, data: bytes, addr: Any) -> None:
            super().datagram_received(data, addr)
            self.events[-1] = variable.get()

        def connection_lost(self, exc: Exception | None) -> None:
            super().connection_lost(exc)
            self.events[-1] = variable.get()

    async def main() -> None:
        variable.set("inside")
        transport, notes = await make(running(), Looks)
        variable.set("later")
        transport.sendto(b"data", name(transport))
        await notes.some(1)
        variable.set("last")
        transport.abort()
        await notes.lost
        assert notes.events[:2] == ["made", "inside"]

    run(loop_factory, main)


def test_another_protocol_takes_over(loop_factory: LoopFactory) -> None:
    async def main() -> None:
        async with endpoint(local_addr=("127.0.0.1", 0)) as (near, notes):
            assert near.get_protocol() is notes
            other = Notes()
            near.set_protocol(other)
            assert near.get_protocol() is other
            near.sendto(b"data", name(near))
            assert (await other.some(1))[0][0] == b"data"
            assert notes.received == []

    run(loop_factory, main)


# ---------------------------------------------------------------------------------------------------------------------
# What a transport is


def test_a_transport_is_what_asyncio_says_it_is(loop_factory: LoopFactory) -> None:
    async def main() -> None:
        async with endpoint(local_addr=("127.0.0.1", 0)) as (near, _):
            assert isinstance(near, asyncio.Transport)
            near.mine = "users hang things on transports"
            assert near.mine == vars(near)["mine"]
            assert weakref.ref(near)() is near
            sock = near.get_extra_info("socket")
            assert type(sock).__name__ == "TransportSocket" and sock.fileno() == near._sock_fd
            assert near.get_extra_info("peername", "default") is None
            assert near.get_extra_info("nothing") is None
            assert near.get_extra_info("nothing", "default") == "default"
            assert f"fd={sock.fileno()} read=polling write=<idle, bufsize=0>" in repr(near)
            near.close()
            assert "closing" in repr(near)
            await asyncio.sleep(0.01)
            assert "closed" in repr(near)

    run(loop_factory, main)


def test_the_descriptor_of_a_transport_is_nobody_elses(loop_factory: LoopFactory) -> None:
    async def main() -> None:
        async with endpoint(local_addr=("127.0.0.1", 0)) as (near, notes):
            number = near.get_extra_info("socket").fileno()
            for call in (running().add_reader, running().add_writer):
                with pytest.raises(RuntimeError, match="is used by transport"):
                    call(number, print)
            for call in (running().remove_reader, running().remove_writer):
                with pytest.raises(RuntimeError, match="is used by transport"):
                    call(number)
            near.close()
            await notes.lost
            assert running().remove_reader(number) is False

    run(loop_factory, main)


def test_our_transport_is_a_datagram_transport_in_every_version(our_factory: LoopFactory) -> None:
    async def main() -> None:
        async with endpoint(local_addr=("127.0.0.1", 0)) as (near, _):
            assert isinstance(near, asyncio.DatagramTransport)
            for clone in (lambda: type(near)(), lambda: object.__new__(type(near))):
                with pytest.raises(TypeError):
                    clone()

    run(our_factory, main)


def test_sockets_with_methods_of_their_own_keep_them(loop_factory: LoopFactory) -> None:
    class Shouting(socket.socket):
        def recvfrom(self, *arguments: Any) -> Any:
            data, source = super().recvfrom(*arguments)
            return data.upper(), source

    async def main() -> None:
        sock = Shouting(type=socket.SOCK_DGRAM)
        sock.bind(("127.0.0.1", 0))
        async with endpoint(sock=sock) as (near, notes):
            near.sendto(b"data", name(near))
            assert (await notes.some(1))[0][0] == b"DATA"

    run(loop_factory, main)


def test_writes_into_a_closed_connected_transport_are_warned_of(
    loop_factory: LoopFactory, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        async with endpoint(local_addr=("127.0.0.1", 0)) as (near, _):
            async with endpoint(remote_addr=name(near)) as (far, notes):
                far.close()
                await notes.lost
                with caplog.at_level(logging.WARNING):
                    for _ in range(8):
                        far.sendto(b"data")
                texts = [each.message for each in caplog.records]
                assert texts == ["socket.send() raised exception."] * 4

    run(loop_factory, main)


def test_a_transport_that_nobody_closed_is_warned_of_and_its_socket_closed(
    loop_factory: LoopFactory,
) -> None:
    loop: Any = loop_factory()
    transport, notes = loop.run_until_complete(make(loop, Notes))
    sock = transport.get_extra_info("socket")
    loop.close()
    del notes
    with pytest.warns(ResourceWarning, match="unclosed transport <.*fd="):
        del transport, loop
        gc.collect()
    assert sock.fileno() == -1


def test_a_transport_that_cannot_be_made_leaves_the_socket_to_its_owner(
    our_factory: LoopFactory,
) -> None:
    """asyncio's closes it, with a warning."""

    class NoProtocol:
        pass

    async def main() -> None:
        with socket.socket(type=socket.SOCK_DGRAM) as sock:
            sock.setblocking(False)
            sock.bind(("127.0.0.1", 0))
            with pytest.raises(AttributeError, match="connection_made"):
                running()._make_datagram_transport(sock, NoProtocol())
            assert sock.fileno() != -1
            sock.sendto(b"data", sock.getsockname())
            assert await running().sock_recv(sock, 10) == b"data"

    run(our_factory, main)
