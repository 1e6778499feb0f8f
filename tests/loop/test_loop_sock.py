"""The sock_… methods: all of them, what they refuse, and that a cancelled one takes its watcher off."""

from __future__ import annotations

import asyncio
import contextlib
import io
import os
import socket
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support import LoopFactory, reset, run, until

BIG = 4 << 20


def running() -> asyncio.AbstractEventLoop:
    return asyncio.get_running_loop()


@contextlib.contextmanager
def pair(kind: int = socket.SOCK_STREAM) -> Iterator[tuple[socket.socket, socket.socket]]:
    """Two connected sockets; stream sockets are TCP, so that they can be reset."""
    if kind == socket.SOCK_STREAM:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            near = socket.create_connection(listener.getsockname())
            far, _ = listener.accept()
    else:
        near, far = (socket.socket(type=kind) for _ in range(2))
        for sock in (near, far):
            sock.bind(("127.0.0.1", 0))
    near.setblocking(False)
    far.setblocking(False)
    with near, far:
        yield near, far


def fill(sock: socket.socket) -> int:
    """Sends until the kernel takes no more, and says how much that was."""
    sent = 0
    with contextlib.suppress(BlockingIOError):
        while True:
            sent += sock.send(b"x" * 65536)
    return sent


@pytest.mark.parametrize("when", ["before", "after"])
def test_sock_recv_gets_what_is_there_or_waits_for_it(loop_factory: LoopFactory, when: str) -> None:
    async def main() -> None:
        with pair() as (near, far):
            if when == "before":
                far.send(b"hello")
            waiting = asyncio.ensure_future(running().sock_recv(near, 100))
            await asyncio.sleep(0.002)
            if when == "after":
                assert not waiting.done()
                far.send(b"hello")
            assert await asyncio.wait_for(waiting, 5) == b"hello"
            far.close()
            assert await running().sock_recv(near, 100) == b""

    run(loop_factory, main)


@pytest.mark.parametrize("when", ["before", "after"])
def test_sock_recv_into_fills_a_buffer_and_says_how_much(
    loop_factory: LoopFactory, when: str
) -> None:
    async def main() -> None:
        with pair() as (near, far):
            room = bytearray(b"........")
            if when == "before":
                far.send(b"hello")
            waiting = asyncio.ensure_future(running().sock_recv_into(near, room))
            await asyncio.sleep(0.002)
            if when == "after":
                far.send(b"hello")
            assert await asyncio.wait_for(waiting, 5) == 5
            assert room == b"hello..."
            far.send(b"xyz")
            assert await running().sock_recv_into(near, memoryview(room)[5:]) == 3
            assert room == b"helloxyz"

    run(loop_factory, main)


@pytest.mark.parametrize("when", ["before", "after"])
def test_datagrams_are_received_with_their_senders_and_sent_to_addresses(
    loop_factory: LoopFactory, when: str
) -> None:
    async def main() -> None:
        with pair(socket.SOCK_DGRAM) as (near, far):
            here, there = near.getsockname(), far.getsockname()
            for receive in ("sock_recvfrom", "sock_recvfrom_into"):
                room = bytearray(10)
                if when == "before":
                    assert await running().sock_sendto(far, b"datagram", here) == 8
                argument: Any = 10 if receive == "sock_recvfrom" else room
                waiting = asyncio.ensure_future(getattr(running(), receive)(near, argument))
                await asyncio.sleep(0.002)
                if when == "after":
                    assert not waiting.done()
                    assert await running().sock_sendto(far, b"datagram", here) == 8
                got = await asyncio.wait_for(waiting, 5)
                assert got == (b"datagram" if receive == "sock_recvfrom" else 8, there)
                assert receive == "sock_recvfrom" or room == b"datagram\0\0"
            assert await running().sock_sendto(far, b"", here) == 0
            assert await running().sock_recvfrom(near, 10) == (b"", there)

    run(loop_factory, main)


def test_sock_sendall_sends_all_however_slowly_it_is_read(loop_factory: LoopFactory) -> None:
    async def main() -> None:
        with pair() as (near, far):
            payload = os.urandom(BIG)
            sending = asyncio.ensure_future(running().sock_sendall(near, payload))
            got = bytearray()
            while len(got) < BIG:
                got += await running().sock_recv(far, 100_000)
            assert await sending is None and got == payload
            assert await running().sock_sendall(near, b"") is None
            await running().sock_sendall(near, bytearray(b"array"))
            await running().sock_sendall(near, memoryview(b"view"))
            while not got.endswith(b"arrayview"):
                got += await running().sock_recv(far, 100)

    run(loop_factory, main)


def test_sock_sendto_waits_for_room(loop_factory: LoopFactory) -> None:
    async def main() -> None:
        with tempfile.TemporaryDirectory() as directory:
            name = os.path.join(directory, "receiver")
            sender, far = (socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) for _ in range(2))
            with sender, far:
                far.bind(name)
                far.setblocking(False)
                sender.setblocking(False)
                sent = 0
                with contextlib.suppress(BlockingIOError):
                    while True:
                        sender.sendto(b"x", name)
                        sent += 1
                waiting = asyncio.ensure_future(running().sock_sendto(sender, b"late", name))
                await asyncio.sleep(0.01)
                assert not waiting.done()
                for _ in range(sent):
                    assert far.recv(10) == b"x"
                assert await asyncio.wait_for(waiting, 5) == 4
                assert far.recv(10) == b"late"

    run(loop_factory, main)


def test_sock_accept_and_sock_connect_meet(loop_factory: LoopFactory) -> None:
    async def main() -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            listener.setblocking(False)
            waiting = asyncio.ensure_future(running().sock_accept(listener))
            await asyncio.sleep(0.002)
            assert not waiting.done()
            with socket.socket() as near:
                near.setblocking(False)
                await running().sock_connect(near, listener.getsockname())
                far, address = await asyncio.wait_for(waiting, 5)
                with far:
                    assert address == near.getsockname() and far.getblocking() is False
                    await running().sock_sendall(near, b"met")
                    assert await running().sock_recv(far, 10) == b"met"
            with socket.socket() as near:  # names are looked up
                near.setblocking(False)
                await running().sock_connect(near, ("localhost", listener.getsockname()[1]))
                far, _ = await running().sock_accept(listener)
                far.close()

    run(loop_factory, main)


def test_sock_connect_tells_of_refusals_and_of_paths(loop_factory: LoopFactory) -> None:
    async def main() -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            address = listener.getsockname()
        with socket.socket() as near:
            near.setblocking(False)
            with pytest.raises(ConnectionRefusedError):
                await running().sock_connect(near, address)
        with tempfile.TemporaryDirectory() as directory:
            path = os.path.join(directory, "listener")
            with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as near:
                near.setblocking(False)
                with pytest.raises(FileNotFoundError):
                    await running().sock_connect(near, path)
                listener.bind(path)
                listener.listen()
                await running().sock_connect(near, path)

    run(loop_factory, main)


@pytest.mark.parametrize("offset, count", [(0, None), (1000, None), (7, 100_000), (0, 0)])
def test_sock_sendfile_sends_a_file_or_a_part_of_it(
    loop_factory: LoopFactory, tmp_path: Path, offset: int, count: int | None
) -> None:
    async def main() -> None:
        payload = os.urandom(BIG)
        path = tmp_path / "file"
        path.write_bytes(payload)
        wanted = payload[offset:] if count is None else payload[offset : offset + (count or BIG)]
        if count == 0:
            with path.open("rb") as file, pair() as (near, _):
                with pytest.raises(ValueError, match="count must be a positive integer"):
                    await running().sock_sendfile(near, file, 0, 0)
            return
        with path.open("rb") as file, pair() as (near, far):
            sending = asyncio.ensure_future(running().sock_sendfile(near, file, offset, count))
            got = bytearray()
            while len(got) < len(wanted):
                got += await running().sock_recv(far, 1 << 18)
            assert await sending == len(wanted) and got == wanted
            assert file.tell() == offset + len(wanted)

    run(loop_factory, main)


def test_sock_sendfile_falls_back_for_what_is_no_file_and_refuses_text(
    loop_factory: LoopFactory, tmp_path: Path
) -> None:
    async def main() -> None:
        with pair() as (near, far):
            assert await running().sock_sendfile(near, io.BytesIO(b"from memory")) == 11
            assert await running().sock_recv(far, 100) == b"from memory"
            with pytest.raises(asyncio.SendfileNotAvailableError):
                await running().sock_sendfile(near, io.BytesIO(b"x"), fallback=False)
            (tmp_path / "text").write_text("text")
            with (tmp_path / "text").open() as file:
                with pytest.raises(ValueError, match="file should be opened in binary mode"):
                    await running().sock_sendfile(near, file)  # type: ignore[arg-type]

    run(loop_factory, main)


# ---------------------------------------------------------------------------------------------------------------------
# What is refused

CALLS: dict[str, Callable[[asyncio.AbstractEventLoop, socket.socket], Any]] = {
    "sock_recv": lambda loop, sock: loop.sock_recv(sock, 10),
    "sock_recv_into": lambda loop, sock: loop.sock_recv_into(sock, bytearray(10)),
    "sock_recvfrom": lambda loop, sock: loop.sock_recvfrom(sock, 10),
    "sock_recvfrom_into": lambda loop, sock: loop.sock_recvfrom_into(sock, bytearray(10)),
    "sock_sendall": lambda loop, sock: loop.sock_sendall(sock, b"x" * BIG),
    "sock_sendto": lambda loop, sock: loop.sock_sendto(sock, b"x", ("127.0.0.1", 9)),
    "sock_connect": lambda loop, sock: loop.sock_connect(sock, ("127.0.0.1", 9)),
    "sock_accept": lambda loop, sock: loop.sock_accept(sock),
}


@pytest.mark.parametrize("name", CALLS)
def test_debug_mode_refuses_blocking_sockets(loop_factory: LoopFactory, name: str) -> None:
    async def main() -> None:
        with socket.socket() as sock:
            with pytest.raises(ValueError, match="the socket must be non-blocking"):
                await CALLS[name](running(), sock)

    run(loop_factory, main, debug=True)


@pytest.mark.parametrize("name", CALLS)
def test_a_closed_socket_is_an_error_and_not_a_wait(loop_factory: LoopFactory, name: str) -> None:
    async def main() -> None:
        sock = socket.socket()
        sock.setblocking(False)
        sock.close()
        with pytest.raises((OSError, ValueError)):
            await CALLS[name](running(), sock)

    run(loop_factory, main)


def test_a_buffer_that_cannot_be_written_is_refused(loop_factory: LoopFactory) -> None:
    async def main() -> None:
        with pair() as (near, far):
            far.send(b"data")
            await asyncio.sleep(0.002)
            with pytest.raises(TypeError):
                await running().sock_recv_into(near, b"immutable")  # type: ignore[arg-type]
            with pytest.raises(TypeError):
                await running().sock_sendall(near, "text")  # type: ignore[arg-type]
            with pytest.raises(ValueError):
                await running().sock_recv(near, -1)
            assert await running().sock_recv(near, 10) == b"data"

    run(loop_factory, main)


# ---------------------------------------------------------------------------------------------------------------------
# Peers and tasks that go


@pytest.mark.parametrize("name", ["sock_recv", "sock_recv_into", "sock_sendall"])
def test_a_reset_ends_what_waits_with_its_error(loop_factory: LoopFactory, name: str) -> None:
    async def main() -> None:
        with pair() as (near, far):
            if name == "sock_sendall":
                fill(near)
            waiting = asyncio.ensure_future(CALLS[name](running(), near))
            await asyncio.sleep(0.005)
            assert not waiting.done()
            reset(far)
            with pytest.raises((ConnectionResetError, BrokenPipeError)):
                await asyncio.wait_for(waiting, 5)

    run(loop_factory, main)


async def waits(name: str, near: socket.socket, listener: socket.socket) -> Any:
    """One of the calls, in a state in which it has to wait."""
    if name == "sock_sendall":
        fill(near)
    sock = listener if name == "sock_accept" else near
    return await CALLS[name](running(), sock)


@pytest.mark.parametrize(
    "name",
    [name for name in CALLS if name not in ("sock_sendto", "sock_connect")],
)
def test_a_cancelled_call_takes_its_watcher_off(loop_factory: LoopFactory, name: str) -> None:
    """What comes afterwards is there for the next call; nothing is watched, nothing is eaten."""

    async def main() -> None:
        kind = socket.SOCK_DGRAM if "from" in name else socket.SOCK_STREAM
        with pair(kind) as (near, far), socket.create_server(("127.0.0.1", 0)) as listener:
            listener.setblocking(False)
            waiting = asyncio.ensure_future(waits(name, near, listener))
            await asyncio.sleep(0.005)
            assert not waiting.done()
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            await asyncio.sleep(0)
            sock = listener if name == "sock_accept" else near
            assert running().remove_reader(sock) is False
            assert running().remove_writer(sock) is False
            if name == "sock_sendall":
                got = 0
                with contextlib.suppress(TimeoutError):
                    while True:
                        got += len(await asyncio.wait_for(running().sock_recv(far, BIG), 0.02))
                await running().sock_sendall(near, b"usable")
                assert await running().sock_recv(far, 10) == b"usable"
            elif name == "sock_accept":
                with socket.create_connection(listener.getsockname()) as client:
                    accepted, address = await running().sock_accept(listener)
                    assert address == client.getsockname()
                    accepted.close()
            else:
                far.sendto(b"first", near.getsockname()) if "from" in name else far.send(b"first")
                await asyncio.sleep(0.005)
                assert await running().sock_recv(near, 10) == b"first"

    run(loop_factory, main)


def test_a_cancelled_connect_takes_its_watcher_off(loop_factory: LoopFactory) -> None:
    async def main() -> None:
        with socket.create_server(("127.0.0.1", 0), backlog=0) as listener:
            held = [socket.socket() for _ in range(3)]
            for sock in held:
                sock.setblocking(False)
                sock.connect_ex(listener.getsockname())
            with socket.socket() as near:
                near.setblocking(False)
                connecting = asyncio.ensure_future(
                    running().sock_connect(near, listener.getsockname())
                )
                await asyncio.sleep(0.02)
                assert not connecting.done()
                connecting.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await connecting
                await asyncio.sleep(0)
                assert running().remove_writer(near) is False
            for sock in held:
                sock.close()

    run(loop_factory, main)


def test_a_wait_that_times_out_again_and_again_loses_nothing(loop_factory: LoopFactory) -> None:
    async def main() -> None:
        with pair() as (near, far):
            got = bytearray()
            for number in range(200):
                if number % 2:
                    far.send(b"%03d" % number)
                with contextlib.suppress(TimeoutError):
                    got += await asyncio.wait_for(running().sock_recv(near, 100), 0.0005)
            far.close()
            while data := await running().sock_recv(near, 100):
                got += data
            assert got == b"".join(b"%03d" % number for number in range(1, 200, 2))

    run(loop_factory, main)


def test_one_task_may_read_while_another_writes_the_same_socket(loop_factory: LoopFactory) -> None:
    async def main() -> None:
        with pair() as (near, far):

            async def echo() -> None:
                while data := await running().sock_recv(far, 65536):
                    await running().sock_sendall(far, data)

            async def read() -> bytes:
                got = bytearray()
                while len(got) < BIG:
                    got += await running().sock_recv(near, 65536)
                return bytes(got)

            payload = os.urandom(BIG)
            echoing = asyncio.ensure_future(echo())
            reading = asyncio.ensure_future(read())
            await running().sock_sendall(near, payload)
            assert await asyncio.wait_for(reading, 20) == payload
            near.close()
            await echoing

    run(loop_factory, main)


def test_others_run_while_one_task_reads_what_never_ends(loop_factory: LoopFactory) -> None:
    """A call that need not wait must still let the loop turn now and then."""

    async def main() -> None:
        with pair() as (near, far):
            turns = 0

            def turn() -> None:
                nonlocal turns
                turns += 1
                running().call_soon(turn)

            async def produce() -> None:
                while True:
                    await running().sock_sendall(far, b"x" * 1000)

            producing = asyncio.ensure_future(produce())
            running().call_soon(turn)
            for _ in range(2000):
                await running().sock_recv(near, 10)
            # It may read many in one turn, as the standard loop does when the data is there, but not for ever.
            await until(lambda: turns > 3)
            producing.cancel()
            await asyncio.wait([producing])

    run(loop_factory, main)
