"""Datagrams, Unix sockets and finding a way to a host."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from support import Echo, LoopFactory, Reports, run, until


def running() -> asyncio.AbstractEventLoop:
    return asyncio.get_running_loop()


class Datagrams(asyncio.DatagramProtocol):
    """Notes what happens, and answers each datagram if it is told how."""

    def __init__(self, answer: bytes | None = None) -> None:
        self.answer = answer
        self.events: list[str] = []
        self.received: list[tuple[bytes, Any]] = []
        self.errors: list[Exception] = []
        self.lost = running().create_future()
        self.transport: Any = None

    def connection_made(self, transport: Any) -> None:
        self.events.append("made")
        self.transport = transport

    def datagram_received(self, data: bytes, address: Any) -> None:
        self.received.append((data, address))
        if self.answer is not None:
            self.transport.sendto(self.answer + data, address)

    def error_received(self, error: Exception) -> None:
        self.events.append("error")
        self.errors.append(error)

    def pause_writing(self) -> None:
        self.events.append("pause")

    def resume_writing(self) -> None:
        self.events.append("resume")

    def connection_lost(self, error: Exception | None) -> None:
        self.events.append("lost")
        self.lost.set_result(error)


@contextlib.asynccontextmanager
async def endpoint(answer: bytes | None = None, **how: Any) -> AsyncIterator[Datagrams]:
    transport, protocol = await running().create_datagram_endpoint(lambda: Datagrams(answer), **how)
    try:
        yield protocol
    finally:
        if not protocol.lost.done():
            transport.abort()
        await protocol.lost


HERE = ("127.0.0.1", 0)


# ---------------------------------------------------------------------------------------------------------------------
# UDP


@pytest.mark.parametrize("address", [("127.0.0.1", 0), ("::1", 0)], ids=["IPv4", "IPv6"])
def test_datagrams_are_answered_to_whom_they_came_from(
    loop_factory: LoopFactory, address: tuple[str, int]
) -> None:
    async def main() -> None:
        async with endpoint(b"re: ", local_addr=address) as server:
            to = server.transport.get_extra_info("sockname")
            async with endpoint(remote_addr=to[:2]) as one, endpoint(local_addr=address) as two:
                one.transport.sendto(b"connected")
                two.transport.sendto(b"not connected", to)
                await until(lambda: one.received and two.received)
                assert one.received == [(b"re: connected", to)]
                assert two.received == [(b"re: not connected", to)]
                assert [data for data, _ in server.received] == [b"connected", b"not connected"]
                assert one.transport.get_extra_info("peername") == to
                assert two.transport.get_extra_info("peername") is None

    run(loop_factory, main)


def test_a_datagram_of_nothing_is_received_and_sent_as_the_version_of_python_does(
    loop_factory: LoopFactory,
) -> None:
    async def main() -> list[bytes]:
        async with endpoint(local_addr=HERE) as server:
            to = server.transport.get_extra_info("sockname")
            with socket.socket(type=socket.SOCK_DGRAM) as bare:
                bare.sendto(b"", to)
                bare.sendto(b"one", to)
            async with endpoint(remote_addr=to) as client:
                client.transport.sendto(b"")
                client.transport.sendto(b"two")
                await until(lambda: server.received and server.received[-1][0] == b"two")
            return [data for data, _ in server.received]

    received = run(loop_factory, main)
    assert received[:2] == [b"", b"one"] and received == run(asyncio.SelectorEventLoop, main)


@pytest.mark.parametrize("size", [1, 1400, 9000, 65507])
def test_each_datagram_arrives_as_it_was_sent_and_in_order(
    loop_factory: LoopFactory, size: int
) -> None:
    async def main() -> None:
        sent = [os.urandom(size) for _ in range(60)]
        async with endpoint(local_addr=HERE) as server:
            async with endpoint(remote_addr=server.transport.get_extra_info("sockname")) as client:
                for number, data in enumerate(sent):
                    client.transport.sendto((data, bytearray(data), memoryview(data))[number % 3])
                    if number % 3 == 2:  # the kernel drops what nobody takes
                        await until(lambda: len(server.received) == number + 1)
        assert [data for data, _ in server.received] == sent

    run(loop_factory, main)


def test_a_burst_of_datagrams_is_received_whole_and_others_get_their_turn(
    loop_factory: LoopFactory,
) -> None:
    async def main() -> None:
        async with endpoint(local_addr=HERE) as server:
            sock = server.transport.get_extra_info("socket")
            with socket.socket(type=socket.SOCK_DGRAM) as bare:
                for number in range(200):
                    bare.sendto(b"%d" % number, sock.getsockname())
            await until(lambda: len(server.received) == 200)
            assert [int(data) for data, _ in server.received] == list(range(200))

    run(loop_factory, main)


def test_nobody_there_is_told_to_error_received_and_the_endpoint_goes_on(
    loop_factory: LoopFactory,
) -> None:
    async def main() -> None:
        with socket.socket(type=socket.SOCK_DGRAM) as gone:
            gone.bind(HERE)
            address = gone.getsockname()
        reports = Reports(running())
        async with endpoint(remote_addr=address) as client:
            client.transport.sendto(b"anybody?")
            await until(lambda: client.errors)
            assert isinstance(client.errors[0], ConnectionRefusedError)
            with socket.socket(type=socket.SOCK_DGRAM) as back:
                back.bind(address)
                back.settimeout(5)
                client.transport.sendto(b"and now?")
                if len(client.errors) > 1:  # the refusal before may be told at this send
                    client.transport.sendto(b"and now?")
                assert await asyncio.to_thread(back.recv, 100) == b"and now?"
        assert reports.messages == [] and client.lost.result() is None

    run(loop_factory, main)


def test_a_datagram_too_long_is_an_error_of_its_own(loop_factory: LoopFactory) -> None:
    async def main() -> None:
        async with endpoint(local_addr=HERE) as server:
            to = server.transport.get_extra_info("sockname")
            async with endpoint(local_addr=HERE) as client:
                client.transport.sendto(b"x" * 70_000, to)
                client.transport.sendto(b"short", to)
                await until(lambda: server.received)
                assert [data for data, _ in server.received] == [b"short"]
                assert [error.errno for error in client.errors] == [errno.EMSGSIZE]  # type: ignore[attr-defined]

    run(loop_factory, main)


def test_sendto_refuses_what_is_no_data_and_addresses_that_are_not_the_peers(
    loop_factory: LoopFactory,
) -> None:
    async def main() -> None:
        async with endpoint(local_addr=HERE) as server:
            to = server.transport.get_extra_info("sockname")
            async with endpoint(remote_addr=to) as client:
                with pytest.raises(TypeError, match="data argument must be a bytes-like object"):
                    client.transport.sendto("text")
                with pytest.raises(ValueError, match="Invalid address: must be None or"):
                    client.transport.sendto(b"x", ("127.0.0.1", 1))
                client.transport.sendto(b"to the peer by name", to)
                await until(lambda: server.received)

    run(loop_factory, main)


def test_a_broadcast_reaches_a_socket_that_may_receive_it(loop_factory: LoopFactory) -> None:
    async def main() -> None:
        with socket.socket(type=socket.SOCK_DGRAM) as forbidden, pytest.raises(PermissionError):
            forbidden.sendto(b"x", ("127.255.255.255", 9))
        async with endpoint(local_addr=("0.0.0.0", 0), allow_broadcast=True) as server:
            port = server.transport.get_extra_info("sockname")[1]
            sock = server.transport.get_extra_info("socket")
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST)
            async with endpoint(local_addr=HERE, allow_broadcast=True) as client:
                client.transport.sendto(b"everybody", ("127.255.255.255", port))
                await until(lambda: server.received)
                assert server.received[0][0] == b"everybody"

    run(loop_factory, main)


def test_a_broadcast_that_is_not_allowed_is_told_to_error_received(
    loop_factory: LoopFactory,
) -> None:
    async def main() -> None:
        async with endpoint(local_addr=HERE) as client:
            client.transport.sendto(b"x", ("127.255.255.255", 9))
            await until(lambda: client.errors or client.lost.done())
            assert [type(error) for error in client.errors] == [PermissionError]

    run(loop_factory, main)


def test_datagrams_that_cannot_leave_wait_in_order_and_pause_the_protocol(
    loop_factory: LoopFactory, tmp_path: Path
) -> None:
    """With Unix datagrams, whose sender waits for the receiver; UDP never does on one machine."""

    async def main() -> None:
        path = str(tmp_path / "slow")
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as slow:
            slow.bind(path)
            slow.setblocking(False)
            async with endpoint(remote_addr=path, family=socket.AF_UNIX) as client:
                client.transport.set_write_buffer_limits(high=100, low=20)
                for number in range(600):
                    client.transport.sendto(b"%03d" % number)
                assert client.events == ["made", "pause"]
                assert client.transport.get_write_buffer_size() > 100
                got: list[bytes] = []
                while len(got) < 600:
                    with contextlib.suppress(BlockingIOError):
                        while True:
                            got.append(slow.recv(10))
                    await asyncio.sleep(0)
                assert got == [b"%03d" % number for number in range(600)]
                await until(lambda: "resume" in client.events)
                assert client.transport.get_write_buffer_size() == 0
                for number in range(600):
                    client.transport.sendto(b"%03d" % number)
                client.transport.close()  # what waits still leaves
                while len(got) < 1200:
                    with contextlib.suppress(BlockingIOError):
                        while True:
                            got.append(slow.recv(10))
                    await asyncio.sleep(0)
                await client.lost
                assert got[600:] == got[:600]

    run(loop_factory, main)


def test_abort_drops_the_datagrams_that_wait(loop_factory: LoopFactory, tmp_path: Path) -> None:
    async def main() -> None:
        path = str(tmp_path / "slow")
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as slow:
            slow.bind(path)
            async with endpoint(remote_addr=path, family=socket.AF_UNIX) as client:
                for _ in range(600):
                    client.transport.sendto(b"x")
                assert client.transport.get_write_buffer_size() > 0
                client.transport.abort()
                await asyncio.wait_for(client.lost, 5)
                client.transport.sendto(b"after the end")

    run(loop_factory, main)


@pytest.mark.parametrize("where", ["datagram_received", "error_received", "connection_lost"])
def test_a_datagram_protocol_that_raises_is_reported(loop_factory: LoopFactory, where: str) -> None:
    async def main() -> list[str]:
        reports = Reports(running())

        class Faulty(Datagrams):
            pass

        def fails(self: Any, *arguments: Any) -> None:
            getattr(Datagrams, where)(self, *arguments)
            raise ValueError(where)

        setattr(Faulty, where, fails)
        transport, protocol = await running().create_datagram_endpoint(Faulty, local_addr=HERE)
        to = transport.get_extra_info("sockname")
        if where == "error_received":  # told during the call, whose caller then gets it
            with pytest.raises(ValueError, match=where):
                transport.sendto(b"x" * 70_000, to)
        else:
            transport.sendto(b"one", to)
        await asyncio.sleep(0.01)
        transport.abort()
        await protocol.lost
        await asyncio.sleep(0)
        return reports.errors

    expected = [] if where == "error_received" else [f"ValueError('{where}')"]
    assert run(loop_factory, main) == expected


def test_an_endpoint_can_be_had_in_all_the_ways_and_not_in_the_wrong_ones(
    loop_factory: LoopFactory,
) -> None:
    async def main() -> None:
        with socket.socket(type=socket.SOCK_DGRAM) as bare:
            bare.bind(HERE)
            address = bare.getsockname()
            async with endpoint(b"", sock=bare) as one:
                async with endpoint(remote_addr=address, local_addr=HERE) as two:
                    two.transport.sendto(b"hello")
                    await until(lambda: two.received == [(b"hello", address)])
                assert one.transport.get_extra_info("sockname") == address
        async with endpoint(local_addr=HERE, reuse_port=True) as one:
            port = one.transport.get_extra_info("sockname")[1]
            async with endpoint(local_addr=("127.0.0.1", port), reuse_port=True):
                pass
        with socket.socket() as stream, pytest.raises(
            ValueError, match="A (UDP S|datagram s)ocket was "
        ):
            await running().create_datagram_endpoint(Datagrams, sock=stream)
        with pytest.raises(ValueError, match="unexpected address family"):
            await running().create_datagram_endpoint(Datagrams)
        with socket.socket(type=socket.SOCK_DGRAM) as bare:
            with pytest.raises(ValueError, match="socket modifier keyword arguments can not be"):
                await running().create_datagram_endpoint(Datagrams, sock=bare, local_addr=HERE)
        with pytest.raises(TypeError, match="2-tuple is expected"):
            await running().create_datagram_endpoint(Datagrams, local_addr="localhost")  # type: ignore[arg-type]

    run(loop_factory, main)


def test_multicast_is_received_by_those_who_joined(loop_factory: LoopFactory) -> None:
    group = "239.255.42.99"

    async def main() -> None:
        async with endpoint(local_addr=("0.0.0.0", 0)) as server, endpoint(
            local_addr=HERE
        ) as client:
            membership = socket.inet_aton(group) + socket.inet_aton("127.0.0.1")
            sock = server.transport.get_extra_info("socket")
            sock.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, membership)
            sender = client.transport.get_extra_info("socket")
            sender.setsockopt(
                socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton("127.0.0.1")
            )
            sender.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_LOOP, 1)
            client.transport.sendto(b"members", (group, sock.getsockname()[1]))
            await until(lambda: server.received)
            assert server.received[0][0] == b"members"

    run(loop_factory, main)


# ---------------------------------------------------------------------------------------------------------------------
# Unix sockets


def test_a_unix_server_answers_its_clients(loop_factory: LoopFactory, tmp_path: Path) -> None:
    async def main() -> None:
        path = tmp_path / "server"
        server = await running().create_unix_server(Echo, path)
        assert path.is_socket()
        reader, writer = await asyncio.open_unix_connection(path)
        payload = os.urandom(3_000_000)

        async def write() -> None:
            writer.write(payload)
            await writer.drain()

        writing = asyncio.ensure_future(write())
        assert await reader.readexactly(len(payload)) == payload
        await writing
        assert writer.get_extra_info("peername") == str(path)
        writer.close()
        await writer.wait_closed()
        server.close()
        await server.wait_closed()

    run(loop_factory, main)


def test_an_abstract_name_leaves_no_file(loop_factory: LoopFactory) -> None:
    async def main() -> None:
        name = f"\0loop-test-{os.getpid()}-{time.monotonic_ns()}"
        server = await running().create_unix_server(Echo, name)
        reader, writer = await asyncio.open_unix_connection(name)
        writer.write(b"abstract")
        assert await reader.readexactly(8) == b"abstract"
        writer.close()
        server.close()
        await writer.wait_closed()

    run(loop_factory, main)


def test_a_stale_socket_file_is_replaced_and_another_file_is_not(
    loop_factory: LoopFactory, tmp_path: Path
) -> None:
    async def main() -> None:
        stale = tmp_path / "stale"
        with socket.socket(socket.AF_UNIX) as old:
            old.bind(str(stale))
        server = await running().create_unix_server(Echo, stale)
        server.close()
        await server.wait_closed()
        (tmp_path / "file").write_text("mine")
        with pytest.raises(OSError, match="Address .* is already in use"):
            await running().create_unix_server(Echo, tmp_path / "file")
        assert (tmp_path / "file").read_text() == "mine"
        with pytest.raises(FileNotFoundError):
            await asyncio.open_unix_connection(tmp_path / "nobody")
        with pytest.raises(ValueError, match="no path and sock were specified"):
            await running().create_unix_connection(Echo)  # type: ignore[call-overload]
        with socket.socket() as tcp, pytest.raises(ValueError, match="A UNIX Domain Stream Socket"):
            await running().create_unix_connection(Echo, sock=tcp)

    run(loop_factory, main)


def test_unix_datagrams_go_both_ways_and_say_when_nobody_listens(
    loop_factory: LoopFactory, tmp_path: Path
) -> None:
    async def main() -> None:
        here, there = str(tmp_path / "here"), str(tmp_path / "there")
        async with endpoint(b"re: ", local_addr=there, family=socket.AF_UNIX) as server:
            async with endpoint(
                local_addr=here, remote_addr=there, family=socket.AF_UNIX
            ) as client:
                client.transport.sendto(b"hello")
                await until(lambda: client.received == [(b"re: hello", there)])
                assert server.received == [(b"hello", here)]
                server.transport.abort()
                await server.lost
                client.transport.sendto(b"still there?")
                await until(lambda: client.errors or client.lost.done())
                assert [type(error) for error in client.errors] == [ConnectionRefusedError]

    run(loop_factory, main)


# ---------------------------------------------------------------------------------------------------------------------
# Names and many addresses


def test_numbers_and_names_are_looked_up_as_libc_does(loop_factory: LoopFactory) -> None:
    async def main() -> None:
        for host, port, more in (
            ("127.0.0.1", 80, {}),
            ("127.0.0.1", "80", {"type": socket.SOCK_STREAM}),
            ("127.0.0.1", 80, {"type": socket.SOCK_DGRAM}),
            ("::1", 443, {}),
            ("::1", 443, {"type": socket.SOCK_STREAM, "proto": socket.IPPROTO_TCP}),
            ("fe80::1%lo", 80, {"type": socket.SOCK_STREAM}),
            ("127.1", 80, {"type": socket.SOCK_STREAM}),
            ("0x7f000001", 80, {"type": socket.SOCK_STREAM}),
            ("localhost", 80, {"type": socket.SOCK_STREAM}),
            ("localhost", "http", {"type": socket.SOCK_STREAM}),
            (None, 80, {"type": socket.SOCK_STREAM, "flags": socket.AI_PASSIVE}),
            (None, 80, {"type": socket.SOCK_STREAM}),
            ("127.0.0.1", None, {"type": socket.SOCK_STREAM}),
            ("127.0.0.1", 80, {"family": socket.AF_INET}),
            ("127.0.0.1", 80, {"flags": socket.AI_CANONNAME, "type": socket.SOCK_STREAM}),
            (b"127.0.0.1", 80, {"type": socket.SOCK_STREAM}),
        ):
            found = await running().getaddrinfo(host, port, **more)
            assert found == socket.getaddrinfo(host, port, **more), (host, port, more)  # type: ignore[arg-type]
        for host, port, more in (
            ("::1", 80, {"family": socket.AF_INET}),
            ("127.0.0.1", 80, {"family": socket.AF_INET6}),
            ("127.0.0.1", "no-such-service", {}),
            ("256.0.0.1", 80, {"flags": socket.AI_NUMERICHOST}),
            ("name.invalid", 80, {"flags": socket.AI_NUMERICHOST}),
        ):
            with pytest.raises(socket.gaierror) as ours:
                await running().getaddrinfo(host, port, **more)
            with pytest.raises(socket.gaierror) as libcs:
                socket.getaddrinfo(host, port, **more)  # type: ignore[arg-type]
            assert ours.value.args == libcs.value.args

    run(loop_factory, main)


def test_addresses_are_turned_to_names(loop_factory: LoopFactory) -> None:
    async def main() -> None:
        for address, flags in (
            (("127.0.0.1", 80), socket.NI_NUMERICHOST | socket.NI_NUMERICSERV),
            (("::1", 80, 0, 0), socket.NI_NUMERICHOST | socket.NI_NUMERICSERV),
            (("127.0.0.1", 80), 0),
        ):
            assert await running().getnameinfo(address, flags) == socket.getnameinfo(address, flags)

    run(loop_factory, main)


class Resolver:
    """Answers for a host name with addresses of the test's choice."""

    def __init__(self, loop: Any, addresses: list[tuple[str, int]]) -> None:
        self.addresses = addresses
        loop.getaddrinfo = self

    async def __call__(self, host: str, port: int, **how: Any) -> list[Any]:
        found = []
        for address, real_port in self.addresses:
            family = socket.AF_INET6 if ":" in address else socket.AF_INET
            sockaddr = (address, real_port, 0, 0) if ":" in address else (address, real_port)
            found.append((family, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", sockaddr))
        return found


@contextlib.contextmanager
def deaf(address: str) -> Any:
    """A listener whose queue is full: who connects gets no answer at all."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    listener = socket.create_server((address, 0), family=family, backlog=0)
    held = [socket.socket(family) for _ in range(3)]
    for sock in held:
        sock.setblocking(False)
        sock.connect_ex(listener.getsockname())
    try:
        yield listener.getsockname()[1]
    finally:
        for sock in [*held, listener]:
            sock.close()


def test_happy_eyeballs_does_not_wait_for_an_address_that_does_not_answer(
    loop_factory: LoopFactory,
) -> None:
    async def main() -> None:
        with deaf("::1") as silent:
            async with await running().create_server(Echo, "127.0.0.1", 0) as server:
                port = server.sockets[0].getsockname()[1]
                Resolver(running(), [("::1", silent), ("127.0.0.1", port)])
                began = time.monotonic()
                transport, _ = await running().create_connection(
                    asyncio.Protocol, "both", 80, happy_eyeballs_delay=0.05
                )
                assert 0.05 <= time.monotonic() - began < 1
                assert transport.get_extra_info("peername") == ("127.0.0.1", port)
                transport.abort()
                await asyncio.sleep(0.001)

    run(loop_factory, main)


def test_an_address_that_refuses_is_followed_by_the_next(loop_factory: LoopFactory) -> None:
    async def main() -> None:
        with socket.create_server(("127.0.0.1", 0)) as gone:
            refused = gone.getsockname()[1]
        async with await running().create_server(Echo, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            Resolver(running(), [("::1", refused), ("127.0.0.1", refused), ("127.0.0.1", port)])
            for delay in (None, 5.0):
                began = time.monotonic()
                transport, _ = await running().create_connection(
                    asyncio.Protocol, "many", 80, happy_eyeballs_delay=delay
                )
                assert time.monotonic() - began < 2
                assert transport.get_extra_info("peername") == ("127.0.0.1", port)
                transport.abort()
            Resolver(running(), [("::1", refused), ("127.0.0.1", refused)])
            with pytest.raises(OSError, match="Multiple exceptions: "):
                await running().create_connection(asyncio.Protocol, "many", 80)
            Resolver(running(), [])
            with pytest.raises(OSError, match=r"getaddrinfo\(\) returned empty list"):
                await running().create_connection(asyncio.Protocol, "none", 80)
            await asyncio.sleep(0.001)

    run(loop_factory, main)


def test_a_cancelled_connect_among_several_addresses_leaves_nothing(
    loop_factory: LoopFactory,
) -> None:
    async def main() -> None:
        with deaf("::1") as one, deaf("127.0.0.1") as two:
            Resolver(running(), [("::1", one), ("127.0.0.1", two)])
            connecting = asyncio.ensure_future(
                running().create_connection(asyncio.Protocol, "many", 80, happy_eyeballs_delay=0.01)
            )
            await asyncio.sleep(0.05)
            connecting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await connecting

    run(loop_factory, main)


def test_a_local_address_is_bound_before_connecting(loop_factory: LoopFactory) -> None:
    async def main() -> None:
        async with await running().create_server(Echo, "127.0.0.1", 0) as server:
            address = server.sockets[0].getsockname()
            transport, _ = await running().create_connection(
                asyncio.Protocol, *address, local_addr=("127.0.0.2", 0)
            )
            assert transport.get_extra_info("sockname")[0] == "127.0.0.2"
            transport.abort()
            with pytest.raises(OSError, match="error while attempting to bind on address"):
                await running().create_connection(
                    asyncio.Protocol, *address, local_addr=("192.0.2.1", 0)
                )
            await asyncio.sleep(0.001)

    run(loop_factory, main)
