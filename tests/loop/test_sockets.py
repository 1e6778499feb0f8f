"""The native sock_* calls beside the standard loop's: the same results, errors and texts, and what a watch that is kept
between waits must not change.
"""

from __future__ import annotations

import array
import asyncio
import contextlib
import gc
import inspect
import os
import select
import socket
import ssl
import tempfile
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support import LoopFactory, gone, run, tcp_pair, until


def running() -> Any:
    return asyncio.get_running_loop()


@contextlib.contextmanager
def pair(kind: int = socket.SOCK_STREAM) -> Iterator[tuple[socket.socket, socket.socket]]:
    near, far = socket.socketpair(socket.AF_UNIX, kind)
    near.setblocking(False)
    far.setblocking(False)
    with near, far:
        yield near, far


@contextlib.contextmanager
def tcp() -> Iterator[tuple[socket.socket, socket.socket]]:
    with tcp_pair() as (near, far):
        near.setblocking(False)
        far.setblocking(False)
        yield near, far


def datagram(family: int, where: Any) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_DGRAM)
    sock.setblocking(False)
    if where is not None:
        sock.bind(where)
    return sock


def answer(call: Callable[[], Any]) -> tuple[type[BaseException], str]:
    """What a call raises."""
    with pytest.raises(BaseException) as caught:
        call()
    return caught.type, str(caught.value)


async def raises(coroutine: Any) -> tuple[type[BaseException], str]:
    with pytest.raises(BaseException) as caught:
        await coroutine
    return caught.type, str(caught.value)


# ---------------------------------------------------------------------------------------------------------------------
# Receiving


@pytest.mark.parametrize("name", ["sock_recv", "sock_sendall", "sock_accept", "sock_connect"])
def test_the_calls_are_coroutines(loop_factory: LoopFactory, name: str) -> None:
    loop = loop_factory()
    assert inspect.iscoroutinefunction(getattr(loop, name))
    loop.close()


@pytest.mark.parametrize("size", [1, 65536, 65537, 262144, 262145, 1 << 20])
def test_sock_recv_gives_at_most_what_was_asked_for_and_loses_nothing(
    loop_factory: LoopFactory, size: int
) -> None:
    async def main() -> None:
        with pair() as (near, far):
            for _ in range(3):  # what came last decides where the next is received
                data = os.urandom(10_000 if size == 1 else 150_000)
                far.send(data)
                total = b""
                while len(total) < len(data):
                    part = await running().sock_recv(near, size)
                    assert 0 < len(part) <= size
                    total += part
                assert total == data

    run(loop_factory, main)


def test_sock_recv_of_nothing_is_nothing(loop_factory: LoopFactory) -> None:
    async def main() -> None:
        with pair() as (near, far):
            assert await running().sock_recv(near, 0) == b""
            far.send(b"abc")
            assert await running().sock_recv(near, 0) == b""
            assert await running().sock_recv(near, 10) == b"abc"

    run(loop_factory, main)


@pytest.mark.parametrize("size", [-1, 1.5, "10", None, 1 << 80])
def test_a_size_that_sock_recv_refuses_is_told_as_the_socket_tells_it(
    loop_factory: LoopFactory, size: Any
) -> None:
    async def main() -> None:
        with pair() as (near, _):
            for name in ("recv", "recvfrom"):
                expected = answer(lambda name=name: getattr(near, name)(size))
                assert await raises(getattr(running(), f"sock_{name}")(near, size)) == expected

    run(loop_factory, main)


def test_a_number_like_object_is_a_size(loop_factory: LoopFactory) -> None:
    class Three:
        def __index__(self) -> int:
            return 3

    async def main() -> None:
        with pair() as (near, far):
            far.send(b"abcdef")
            assert await running().sock_recv(near, Three()) == b"abc"
            assert await running().sock_recvfrom(near, Three()) == (b"def", None)

    run(loop_factory, main)


def test_sock_recv_into_takes_what_the_socket_takes(loop_factory: LoopFactory) -> None:
    async def main() -> None:
        loop = running()
        with pair() as (near, far):
            numbers = array.array("i", [0, 0, 0])
            far.send(b"\1\0\0\0\2\0\0\0")
            assert await loop.sock_recv_into(near, numbers) == 8
            assert numbers.tolist() == [1, 2, 0]
            part = bytearray(b"......")
            far.send(b"abcdef")
            assert await loop.sock_recv_into(near, memoryview(part)[2:4]) == 2
            assert part == b"..ab.."
            assert await loop.sock_recv_into(near, bytearray()) == 0
            for wrong in (b"constant", "text", None, memoryview(bytearray(8))[::2]):
                expected = answer(lambda wrong=wrong: near.recv_into(wrong))
                assert await raises(loop.sock_recv_into(near, wrong)) == expected

    run(loop_factory, main)


def test_a_buffer_may_change_its_size_while_a_receive_waits_for_data(
    loop_factory: LoopFactory,
) -> None:
    async def main() -> None:
        with pair() as (near, far):
            buffer = bytearray(2)
            waiting = asyncio.ensure_future(running().sock_recv_into(near, buffer))
            await asyncio.sleep(0)
            buffer += b"...."
            far.send(b"abcdef")
            assert await waiting == 6
            assert buffer == b"abcdef"

    run(loop_factory, main)


def test_a_buffer_that_is_locked_meanwhile_is_the_waiters_error(loop_factory: LoopFactory) -> None:
    async def main() -> None:
        with pair() as (near, far):
            view = memoryview(bytearray(4))
            waiting = asyncio.ensure_future(running().sock_recv_into(near, view))
            await asyncio.sleep(0)
            view.release()
            far.send(b"abcd")
            with pytest.raises(TypeError, match="read-write bytes-like object"):
                await waiting

    run(loop_factory, main)


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("kind", ["v4", "v6", "path", "abstract", "nameless"])
def test_addresses_are_those_of_the_socket_module(
    loop_factory: LoopFactory, tmp_path: Path, kind: str, when: str
) -> None:
    places: dict[str, tuple[int, Any, Any]] = {
        "v4": (socket.AF_INET, ("127.0.0.1", 0), ("127.0.0.2", 0)),
        "v6": (socket.AF_INET6, ("::1", 0), ("::1", 0)),
        "path": (socket.AF_UNIX, str(tmp_path / "to"), str(tmp_path / "from-ünï")),
        "abstract": (socket.AF_UNIX, f"\0to{os.getpid()}", f"\0from\0{os.getpid()}"),
        "nameless": (socket.AF_UNIX, str(tmp_path / "to"), None),
    }
    family, to, source = places[kind]

    async def main() -> None:
        loop = running()
        with datagram(family, to) as near, datagram(family, source) as far:
            place = near.getsockname()
            far.sendto(b"plain", place)
            _, expected = near.recvfrom(100)

            async def receive(call: Callable[..., Any], *arguments: Any) -> Any:
                if when == "before":
                    assert await loop.sock_sendto(far, b"data", place) == 4
                waiting = loop.create_task(call(near, *arguments))
                await asyncio.sleep(0)
                if when == "after":
                    assert await loop.sock_sendto(far, b"data", place) == 4
                return await waiting

            buffer = bytearray(10)
            assert await receive(loop.sock_recvfrom, 100) == (b"data", expected)
            assert await receive(loop.sock_recvfrom, 2) == (b"da", expected)
            assert await receive(loop.sock_recvfrom_into, buffer) == (4, expected)
            assert await receive(loop.sock_recvfrom_into, buffer, 3) == (3, expected)
            assert buffer[:5] == b"data\0"

    run(loop_factory, main)


def test_sock_recvfrom_into_refuses_what_does_not_fit(loop_factory: LoopFactory) -> None:
    async def main() -> None:
        with pair(socket.SOCK_DGRAM) as (near, _):
            for wrong in ((bytearray(3), 4), (bytearray(3), -1), (b"abc", 2)):
                expected = answer(lambda wrong=wrong: near.recvfrom_into(*wrong))
                assert await raises(running().sock_recvfrom_into(near, *wrong)) == expected

    run(loop_factory, main)


def test_a_datagram_as_large_as_the_kernel_takes_is_whole(loop_factory: LoopFactory) -> None:
    async def main() -> None:
        with pair(socket.SOCK_DGRAM) as (near, far):
            far.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
            room = far.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
            message = os.urandom(room // 2 - 4096)
            await running().sock_sendall(far, message)
            assert await running().sock_recv(near, 1 << 21) == message
            await running().sock_sendall(far, message)
            assert (await running().sock_recvfrom(near, 1 << 21))[0] == message

    run(loop_factory, main)


# ---------------------------------------------------------------------------------------------------------------------
# Sending, connecting, accepting


@pytest.mark.parametrize(
    "make", [bytes, bytearray, memoryview, lambda data: array.array("B", data)]
)
def test_sock_sendall_sends_whatever_has_bytes(
    loop_factory: LoopFactory, make: Callable[[bytes], Any]
) -> None:
    async def main() -> None:
        data = os.urandom(3_000_000)
        with pair() as (near, far):
            sending = asyncio.ensure_future(running().sock_sendall(near, make(data)))
            received = bytearray()
            while len(received) < len(data):
                received += await running().sock_recv(far, 1 << 20)
            assert await sending is None
            assert received == data
            assert await running().sock_sendall(near, make(b"")) is None

    run(loop_factory, main)


@pytest.mark.parametrize("wrong", ["text", None, 7, memoryview(b"abcd")[::2]])
def test_what_has_no_bytes_is_refused_as_the_socket_refuses_it(
    loop_factory: LoopFactory, wrong: Any
) -> None:
    async def main() -> None:
        with pair() as (near, _):
            expected = answer(lambda: near.send(wrong))
            assert await raises(running().sock_sendall(near, wrong)) == expected
        with datagram(socket.AF_INET, None) as sock:
            place = ("127.0.0.1", 9)
            expected = answer(lambda: sock.sendto(wrong, place))
            assert await raises(running().sock_sendto(sock, wrong, place)) == expected

    run(loop_factory, main)


@pytest.mark.parametrize(
    "wrong",
    [None, "127.0.0.1", ("127.0.0.1",), ("127.0.0.1", 70_000), ("127.0.0.1", -1)]
    + [("127.0.0.1", "80"), ("127.0.0.1", 80, 0), (None, 80), ("127.0.0.1\0", 80), (b"\xff", 1.0)],
)
def test_a_wrong_address_is_told_as_the_socket_tells_it(
    loop_factory: LoopFactory, wrong: Any
) -> None:
    async def main() -> None:
        with datagram(socket.AF_INET, None) as sock:
            expected = answer(lambda: sock.sendto(b"data", wrong))
            assert await raises(running().sock_sendto(sock, b"data", wrong)) == expected

    run(loop_factory, main)


@pytest.mark.parametrize(
    "host", ["localhost", "", "<broadcast>", b"127.0.0.1", bytearray(b"localhost")]
)
def test_hosts_that_are_no_numbers_mean_what_they_mean_to_the_socket(
    loop_factory: LoopFactory, host: Any
) -> None:
    async def main() -> None:
        with datagram(socket.AF_INET, ("0.0.0.0", 0)) as near:
            with datagram(socket.AF_INET, None) as far:
                far.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
                port = near.getsockname()[1]
                assert await running().sock_sendto(far, b"data", (host, port)) == 4
                if host != "<broadcast>":
                    assert await running().sock_recv(near, 10) == b"data"

    run(loop_factory, main)


def test_paths_may_be_bytes_and_as_long_as_a_path_may_be(
    loop_factory: LoopFactory,
) -> None:
    async def main() -> None:
        with tempfile.TemporaryDirectory(dir="/tmp") as directory:
            longest = directory + "/" + "x" * (107 - len(directory) - 1)
            with datagram(socket.AF_UNIX, longest) as near, pair(socket.SOCK_DGRAM) as (far, _):
                with datagram(socket.AF_UNIX, None) as far:
                    for place in (longest, longest.encode()):
                        assert await running().sock_sendto(far, b"data", place) == 4
                        assert await running().sock_recv(near, 10) == b"data"
                    expected = answer(lambda: far.sendto(b"data", longest + "x"))
                    call = running().sock_sendto(far, b"data", longest + "x")
                    assert await raises(call) == expected

    run(loop_factory, main)


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
def test_a_connect_that_is_refused_names_the_address(
    loop_factory: LoopFactory, family: int
) -> None:
    host = "127.0.0.1" if family == socket.AF_INET else "::1"

    async def main() -> None:
        with socket.socket(family) as free:
            free.bind((host, 0))
            where = free.getsockname()
            with socket.socket(family) as sock:
                sock.setblocking(False)
                with pytest.raises(ConnectionRefusedError) as caught:
                    await running().sock_connect(sock, where[:2])
                assert caught.value.strerror == f"Connect call failed {where}"

    run(loop_factory, main)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1", "path"])
def test_what_is_accepted_is_a_socket_like_the_listener_that_does_not_block(
    loop_factory: LoopFactory, tmp_path: Path, host: str
) -> None:
    async def main() -> None:
        loop = running()
        family = {"path": socket.AF_UNIX, "::1": socket.AF_INET6}.get(host, socket.AF_INET)
        with socket.socket(family) as listener:
            listener.setblocking(False)
            listener.bind(str(tmp_path / "s") if host == "path" else (host, 0))
            listener.listen()
            place = listener.getsockname()
            for wait in (True, False):
                with socket.socket(family) as sock:
                    sock.setblocking(False)
                    if wait:
                        accepting = loop.create_task(loop.sock_accept(listener))
                        await asyncio.sleep(0)
                    to = place if host == "path" else (host, place[1])
                    assert await loop.sock_connect(sock, to) is None
                    conn, peer = await (accepting if wait else loop.sock_accept(listener))
                    with conn:
                        assert peer == sock.getsockname()
                        assert type(conn) is socket.socket
                        assert (conn.family, conn.type) == (family, socket.SOCK_STREAM)
                        assert conn.proto == listener.proto
                        assert conn.gettimeout() == 0 and not os.get_blocking(conn.fileno())
                        assert not conn.get_inheritable()
                        await loop.sock_sendall(sock, b"hello")
                        assert await loop.sock_recv(conn, 10) == b"hello"

    run(loop_factory, main)


def test_a_listener_that_blocks_gives_sockets_that_do_not(loop_factory: LoopFactory) -> None:
    """asyncio lets a listener block outside of debug mode; when somebody has come that is no harm."""

    async def main() -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            with socket.create_connection(listener.getsockname()):
                conn, _ = await running().sock_accept(listener)
                with conn:
                    assert conn.gettimeout() == 0

    run(loop_factory, main)


def test_sock_sendfile_waits_for_a_slow_reader(loop_factory: LoopFactory, tmp_path: Path) -> None:
    async def main() -> None:
        data = os.urandom(2_000_000)
        (tmp_path / "file").write_bytes(data)
        with tcp() as (near, far), (tmp_path / "file").open("rb") as file:
            assert await running().sock_sendall(near, b"head") is None
            assert await running().sock_recv(far, 4) == b"head"
            sending = asyncio.ensure_future(running().sock_sendfile(near, file, fallback=False))
            received = bytearray()
            while len(received) < len(data):
                received += await running().sock_recv(far, 100_000)
                await asyncio.sleep(0)
            assert await sending == len(data)
            assert received == data

    run(loop_factory, main)


# ---------------------------------------------------------------------------------------------------------------------
# Whose sockets


def test_subclasses_keep_the_methods_they_have(loop_factory: LoopFactory) -> None:
    class Shouting(socket.socket):
        def recv(self, *arguments: Any) -> bytes:
            return super().recv(*arguments).upper()

    async def main() -> None:
        near, far = socket.socketpair()
        with far, Shouting(fileno=near.detach()) as loud:
            loud.setblocking(False)
            waiting = asyncio.ensure_future(running().sock_recv(loud, 10))
            await asyncio.sleep(0)
            far.send(b"abc")
            assert await waiting == b"ABC"
            far.send(b"def")
            assert await running().sock_recv(loud, 10) == b"DEF"

    run(loop_factory, main)


def test_objects_that_only_look_like_sockets_work(loop_factory: LoopFactory) -> None:
    class Looks:
        def __init__(self, sock: socket.socket) -> None:
            self.recv, self.fileno, self.send = sock.recv, sock.fileno, sock.send

    async def main() -> None:
        with pair() as (near, far):
            waiting = asyncio.ensure_future(running().sock_recv(Looks(near), 10))
            await asyncio.sleep(0)
            await running().sock_sendall(Looks(far), b"abc")
            assert await waiting == b"abc"

    run(loop_factory, main)


CALLS: dict[str, Callable[[Any, Any], Any]] = {
    "sock_recv": lambda loop, sock: loop.sock_recv(sock, 10),
    "sock_recv_into": lambda loop, sock: loop.sock_recv_into(sock, bytearray(10)),
    "sock_recvfrom": lambda loop, sock: loop.sock_recvfrom(sock, 10),
    "sock_recvfrom_into": lambda loop, sock: loop.sock_recvfrom_into(sock, bytearray(10)),
    "sock_sendall": lambda loop, sock: loop.sock_sendall(sock, b"x" * 10_000_000),
    "sock_sendto": lambda loop, sock: loop.sock_sendto(sock, b"x", ("127.0.0.1", 9)),
    "sock_connect": lambda loop, sock: loop.sock_connect(sock, ("127.0.0.1", 9)),
    "sock_accept": lambda loop, sock: loop.sock_accept(sock),
}


@pytest.mark.parametrize("name", CALLS)
def test_tls_sockets_are_refused(loop_factory: LoopFactory, name: str) -> None:
    async def main() -> None:
        context = ssl.create_default_context()
        with context.wrap_socket(socket.socket(), server_hostname="a") as sock:
            with pytest.raises(TypeError, match="Socket cannot be of type SSLSocket"):
                await CALLS[name](running(), sock)

    run(loop_factory, main)


@pytest.mark.parametrize("name", ["sock_recv", "sock_recv_into", "sock_recvfrom", "sock_sendall"])
def test_the_descriptor_of_a_transport_is_nobody_elses(
    loop_factory: LoopFactory, name: str
) -> None:
    async def main() -> None:
        with pair() as (near, far):
            # Watched before it becomes a transport's: that gives no right to it.
            far.send(b"x")
            assert await running().sock_recv(near, 1) == b"x"
            waiting = asyncio.ensure_future(running().sock_recv(near, 1))
            await asyncio.sleep(0)
            far.send(b"x")
            assert await waiting == b"x"
            transport, _ = await running().create_connection(asyncio.Protocol, sock=near)
            try:
                with pytest.raises(RuntimeError, match=f"descriptor {near.fileno()} is used by"):
                    await CALLS[name](running(), near)
            finally:
                transport.abort()
                await asyncio.sleep(0.01)

    run(loop_factory, main)


# ---------------------------------------------------------------------------------------------------------------------
# Waiting


@pytest.mark.parametrize("name", ["sock_recv", "sock_recvfrom", "sock_recv_into", "sock_accept"])
def test_what_is_cancelled_before_its_data_comes_leaves_it_to_the_next(
    loop_factory: LoopFactory, name: str
) -> None:
    async def main() -> None:
        loop = running()
        with socket.create_server(("127.0.0.1", 0)) as listener, pair() as (near, far):
            listener.setblocking(False)
            sock = listener if name == "sock_accept" else near
            waiting = loop.create_task(CALLS[name](loop, sock))
            await asyncio.sleep(0.01)
            # Both in one turn: what is done for the future is done after it was cancelled.
            if sock is near:
                far.send(b"abc")
            else:
                client = socket.create_connection(listener.getsockname())
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            await asyncio.sleep(0.01)
            if sock is near:
                assert await loop.sock_recv(near, 10) == b"abc"
            else:
                conn, _ = await loop.sock_accept(listener)
                conn.close()
                client.close()

    run(loop_factory, main)


def test_after_a_wait_the_loop_has_no_reader_and_no_writer(loop_factory: LoopFactory) -> None:
    async def main() -> None:
        loop = running()
        with pair() as (near, far):
            reading = loop.create_task(loop.sock_recv(near, 10))
            writing = loop.create_task(loop.sock_sendall(near, bytes(5_000_000)))
            await asyncio.sleep(0.01)
            far.send(b"abc")
            assert await reading == b"abc"
            while not writing.done():
                await loop.sock_recv(far, 1 << 20)
            await asyncio.sleep(0)
            assert loop.remove_reader(near) is False
            assert loop.remove_writer(near) is False

    run(loop_factory, main)


def test_remove_reader_takes_the_wait_off_as_any_reader(loop_factory: LoopFactory) -> None:
    async def main() -> None:
        loop = running()
        with pair() as (near, far):
            waiting = loop.create_task(loop.sock_recv(near, 10))
            await asyncio.sleep(0.01)
            assert loop.remove_reader(near) is True
            assert loop.remove_reader(near) is False
            far.send(b"abc")
            await asyncio.sleep(0.02)
            assert not waiting.done()
            assert await loop.sock_recv(near, 10) == b"abc"
            await gone(waiting)

    run(loop_factory, main)


def test_readers_and_waits_follow_each_other_on_one_descriptor(loop_factory: LoopFactory) -> None:
    async def main() -> None:
        loop = running()
        with pair() as (near, far):
            for _ in range(3):
                waiting = loop.create_task(loop.sock_recv(near, 10))
                await asyncio.sleep(0)
                far.send(b"abc")
                assert await waiting == b"abc"
                seen: list[bytes] = []
                loop.add_reader(near, lambda seen=seen: seen.append(near.recv(1)))
                far.send(b"defg")
                await until(lambda seen=seen: len(seen) == 4)  # level-triggered, all of them
                assert loop.remove_reader(near) is True

    run(loop_factory, main)


def test_a_reader_is_told_of_all_it_does_not_read_beside_a_call_that_sends(
    loop_factory: LoopFactory,
) -> None:
    """The descriptor stays level-triggered for it, whatever the other side's watch prefers."""

    async def main() -> None:
        loop = running()
        with pair() as (near, far):
            seen: list[bytes] = []
            loop.add_reader(near, lambda: seen.append(near.recv(1)))
            sending = loop.create_task(loop.sock_sendall(near, bytes(3_000_000)))
            await asyncio.sleep(0.01)
            far.send(b"abc")
            await until(lambda: len(seen) == 3)
            while not sending.done():
                await loop.sock_recv(far, 1 << 20)
            far.send(b"def")
            await until(lambda: len(seen) == 6)
            loop.remove_reader(near)

    run(loop_factory, main)


def test_a_socket_reads_and_writes_at_once(loop_factory: LoopFactory) -> None:
    async def echo(sock: socket.socket) -> None:
        while data := await running().sock_recv(sock, 100_000):
            await running().sock_sendall(sock, data)

    async def main() -> None:
        loop = running()
        data = os.urandom(5_000_000)
        with tcp() as (near, far):
            serving = loop.create_task(echo(far))
            sending = loop.create_task(loop.sock_sendall(near, data))
            received = bytearray()
            while len(received) < len(data):
                received += await loop.sock_recv(near, 65536)
            await sending
            assert received == data
            near.shutdown(socket.SHUT_WR)
            await serving

    run(loop_factory, main)


def test_a_socket_that_takes_over_a_descriptor_is_watched_as_if_it_were_new(
    loop_factory: LoopFactory,
) -> None:
    async def main() -> None:
        loop = running()
        numbers = set()
        for _ in range(5):
            with pair() as (near, far):
                numbers.add(near.fileno())
                waiting = loop.create_task(loop.sock_recv(near, 10))
                sending = loop.create_task(loop.sock_sendall(far, bytes(1_000_000)))
                await waiting
                left = 1_000_000 - 10
                while left:
                    left -= len(await loop.sock_recv(near, left))
                await sending
        assert len(numbers) == 1

    run(loop_factory, main)


def test_a_socket_object_made_anew_for_an_open_descriptor_is_served(
    loop_factory: LoopFactory,
) -> None:
    async def main() -> None:
        loop = running()
        with pair() as (near, far):
            for _ in range(3):
                waiting = loop.create_task(loop.sock_recv(near, 10))
                await asyncio.sleep(0)
                far.send(b"abc")
                assert await waiting == b"abc"
                near = socket.socket(fileno=near.detach())
            near.close()

    run(loop_factory, main)


def test_what_a_closed_socket_leaves_open_elsewhere_disturbs_nobody(
    loop_factory: LoopFactory,
) -> None:
    """The kernel's file lives on in a copy, and with it whatever watches it."""

    async def main() -> None:
        loop = running()
        with pair() as (near, far):
            waiting = loop.create_task(loop.sock_recv(near, 10))
            await asyncio.sleep(0)
            far.send(b"abc")
            assert await waiting == b"abc"
            number = near.fileno()
            with near.dup() as copy:
                near.close()
                with pair() as (other, there):
                    assert other.fileno() == number
                    waiting = loop.create_task(loop.sock_recv(other, 10))
                    await asyncio.sleep(0)
                    began = time.process_time()
                    for _ in range(20):
                        far.send(b"for the copy")
                        await asyncio.sleep(0.05)
                    assert time.process_time() - began < 0.2
                    assert not waiting.done()
                    there.send(b"mine")
                    assert await waiting == b"mine"
                assert copy.recv(12) == b"for the copy"

    run(loop_factory, main)


def test_a_socket_closed_under_a_wait_is_the_waiters_trouble_alone(
    our_factory: LoopFactory,
) -> None:
    """asyncio's selector still knows the descriptor and fails, or waits for ever."""

    async def main() -> None:
        loop = running()
        with pair() as (near, far):
            waiting = loop.create_task(loop.sock_recv(near, 10))
            await asyncio.sleep(0.01)
            number = near.fileno()
            near.close()
            with pair() as (other, there):
                assert other.fileno() == number
                second = loop.create_task(loop.sock_recv(other, 10))
                await asyncio.sleep(0.01)
                there.send(b"abc")
                assert await second == b"abc"
                assert not waiting.done()
                waiting.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await waiting
                third = loop.create_task(loop.sock_recv(other, 10))
                await asyncio.sleep(0.01)
                there.send(b"def")
                assert await third == b"def"
            far.close()

    run(our_factory, main)


def test_what_waits_to_be_sent_is_not_written_into_the_next_socket(
    our_factory: LoopFactory,
) -> None:
    async def main() -> None:
        loop = running()
        with pair() as (near, far):
            sending = loop.create_task(loop.sock_sendall(near, bytes(5_000_000)))
            await asyncio.sleep(0.01)
            number = near.fileno()
            near.close()
            with pair() as (other, there):
                assert other.fileno() == number
                reading = loop.create_task(loop.sock_recv(other, 10))
                await asyncio.sleep(0.01)
                there.send(b"abc")
                assert await reading == b"abc"
                await asyncio.sleep(0.01)
                with pytest.raises(BlockingIOError):
                    there.recv(10)
            await gone(sending)
            far.close()

    run(our_factory, main)


def test_data_that_nobody_waits_for_does_not_keep_the_loop_busy(loop_factory: LoopFactory) -> None:
    async def main() -> None:
        loop = running()
        with pair() as (near, far):
            waiting = loop.create_task(loop.sock_recv(near, 10))
            await asyncio.sleep(0.01)
            far.send(b"abc")
            assert await waiting == b"abc"
            far.send(b"more")
            await asyncio.sleep(0.01)
            began = time.process_time()
            await asyncio.sleep(0.3)
            assert time.process_time() - began < 0.1
            for _ in range(50):  # and what comes on and on is told to nobody soon
                far.send(b"more")
                await asyncio.sleep(0.001)
            assert await loop.sock_recv(near, 1000) == b"more" * 51
            waiting = loop.create_task(loop.sock_recv(near, 10))
            await asyncio.sleep(0.01)
            far.send(b"def")
            assert await waiting == b"def"

    run(loop_factory, main)


def is_woken(loop: Any) -> bool:
    """Whether the loop would find something to do."""
    return bool(select.select([loop.poll_fd()], [], [], 0)[0])


def test_a_watch_that_nobody_claims_for_long_is_taken_off(our_factory: LoopFactory) -> None:
    async def main() -> None:
        loop = running()
        with pair() as (near, far):
            waiting = loop.create_task(loop.sock_recv(near, 10))
            await asyncio.sleep(0.01)
            far.send(b"abc")
            assert await waiting == b"abc"
            far.send(b"1")
            assert is_woken(loop)  # kept: the next wait costs nothing
            for _ in range(20):
                far.send(b"1")
                await asyncio.sleep(0.001)
            far.send(b"1")
            assert not is_woken(loop)

    run(our_factory, main)


def test_a_kept_watch_does_not_keep_the_loop_busy_beside_a_reader(our_factory: LoopFactory) -> None:
    """A reader makes the descriptor level-triggered, and there is always room to write."""

    async def main() -> None:
        loop = running()
        with pair() as (near, far):
            sending = loop.create_task(loop.sock_sendall(near, bytes(3_000_000)))
            await asyncio.sleep(0.01)
            while not sending.done():
                await loop.sock_recv(far, 1 << 20)
            loop.add_reader(near, lambda: None)
            await asyncio.sleep(0.01)
            assert not is_woken(loop)
            loop.remove_reader(near)

    run(our_factory, main)


def test_a_peer_that_hangs_up_while_nobody_waits_is_seen_by_the_next_call(
    loop_factory: LoopFactory,
) -> None:
    async def main() -> None:
        loop = running()
        with tcp() as (near, far):
            waiting = loop.create_task(loop.sock_recv(near, 10))
            await asyncio.sleep(0.01)
            far.send(b"abc")
            assert await waiting == b"abc"
            far.close()
            await asyncio.sleep(0.05)
            assert await loop.sock_recv(near, 10) == b""
            assert await loop.sock_recv(near, 10) == b""

    run(loop_factory, main)


@pytest.mark.parametrize("name", ["sock_recv", "sock_sendall", "sock_accept"])
def test_others_run_while_a_call_never_has_to_wait(our_factory: LoopFactory, name: str) -> None:
    """asyncio's own coroutine of such a loop never lets anybody else run."""

    async def main() -> None:
        loop = running()
        turns = 0

        async def count() -> None:
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0)

        with socket.create_server(("127.0.0.1", 0), backlog=300) as listener, pair() as (near, far):
            listener.setblocking(False)
            clients = [socket.create_connection(listener.getsockname()) for _ in range(200)]
            far.send(bytes(1000))
            counting = loop.create_task(count())
            await asyncio.sleep(0)
            turns = 0
            for _ in range(200):
                if name == "sock_recv":
                    assert await loop.sock_recv(near, 1) == b"\0"
                elif name == "sock_sendall":
                    assert await loop.sock_sendall(near, b"\0") is None
                else:
                    conn, _ = await loop.sock_accept(listener)
                    conn.close()
            assert 2 <= turns <= 20
            await gone(counting)
            for client in clients:
                client.close()

    run(our_factory, main)


def test_a_call_that_yields_for_others_may_be_cancelled_and_loses_nothing(
    our_factory: LoopFactory,
) -> None:
    async def main() -> None:
        loop = running()
        with pair() as (near, far):
            far.send(bytes(range(200)))
            received = bytearray()

            async def read() -> None:
                while True:
                    received.extend(await loop.sock_recv(near, 1))

            task = loop.create_task(read())
            await asyncio.sleep(0)
            assert 0 < len(received) < 200  # it yields now, without having had to wait
            task.cancel()
            await gone(task)
            received += await loop.sock_recv(near, 1000)
            assert received == bytes(range(200))

    run(our_factory, main)


# ---------------------------------------------------------------------------------------------------------------------
# What is kept


def test_no_call_keeps_what_it_was_given(loop_factory: LoopFactory) -> None:
    class Room(bytearray):
        pass

    async def main() -> None:
        loop = running()
        with pair() as (near, far):
            for end in ("data", "cancel", "error"):
                room = Room(10)
                kept = weakref.ref(room)
                waiting = loop.create_task(loop.sock_recv_into(near, room))
                await asyncio.sleep(0.01)
                if end == "data":
                    far.send(b"abc")
                    assert await waiting == 3
                elif end == "cancel":
                    waiting.cancel()
                    await asyncio.wait([waiting])
                else:
                    room[:] = b""
                    near.close()
                    waiting.cancel()
                    await asyncio.wait([waiting])
                await asyncio.sleep(0.01)
                del room, waiting
                assert kept() is None

    gc.disable()
    try:
        run(loop_factory, main)
    finally:
        gc.enable()


def test_an_error_does_not_hold_itself(our_factory: LoopFactory) -> None:
    """An exception whose traceback leads to the future that holds it would live until the next collection."""

    async def main() -> None:
        loop = running()
        with tcp() as (near, far):
            waiting = loop.create_task(loop.sock_recv(near, 10))
            await asyncio.sleep(0.01)
            far.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            far.close()
            with pytest.raises(ConnectionResetError):
                await waiting
        await asyncio.sleep(0)
        del waiting

    gc.collect()
    gc.disable()
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        run(our_factory, main)
        gc.collect()
        assert not [each for each in gc.garbage if isinstance(each, ConnectionResetError)]
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()


def test_a_watch_keeps_no_socket_open(loop_factory: LoopFactory) -> None:
    async def main() -> None:
        loop = running()
        near, far = socket.socketpair()
        near.setblocking(False)
        with far:
            waiting = loop.create_task(loop.sock_recv(near, 10))
            await asyncio.sleep(0)
            far.send(b"abc")
            assert await waiting == b"abc"
            await asyncio.sleep(0)
            del waiting
            kept = weakref.ref(near)
            with pytest.warns(ResourceWarning, match="unclosed <socket"):
                del near
            assert kept() is None
            assert far.recv(10) == b""

    gc.disable()
    try:
        run(loop_factory, main)
    finally:
        gc.enable()


def test_a_loop_closed_under_a_wait_lets_go_of_everything(loop_factory: LoopFactory) -> None:
    loop: Any = loop_factory()
    with pair() as (near, _):
        room = bytearray(10)
        waiting = loop.create_task(loop.sock_recv_into(near, room))
        waiting._log_destroy_pending = False
        loop.run_until_complete(asyncio.sleep(0.01))
        loop.close()
        kept = weakref.ref(waiting)
        del waiting, loop
        gc.collect()
        assert kept() is None


def test_a_closed_loop_refuses_to_wait(loop_factory: LoopFactory) -> None:
    loop: Any = loop_factory()
    loop.close()
    with pair() as (near, far):
        far.send(b"abc")
        call = loop.sock_recv(near, 10)
        with pytest.raises(StopIteration) as found:
            call.send(None)
        assert found.value.value == b"abc"
        with pytest.raises(RuntimeError, match="Event loop is closed"):
            loop.sock_recv(near, 10).send(None)
