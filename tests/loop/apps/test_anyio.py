"""anyio on our loop: task groups, streams of every kind, TLS, processes, threads, signals."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import ssl
import threading
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import anyio
import anyio.from_thread
import anyio.to_thread
import pytest
from anyio.streams.tls import TLSListener, TLSStream
from support import Certificates, reset, script

from erlang_loop import ErlangEventLoop

T = TypeVar("T")


def on_our_loop(main: Callable[[], Awaitable[T]]) -> T:
    """anyio's own way to choose the loop of its asyncio backend."""

    async def checked() -> T:
        assert type(asyncio.get_running_loop()) is ErlangEventLoop
        return await main()

    options = {"loop_factory": ErlangEventLoop}
    return anyio.run(checked, backend="asyncio", backend_options=options)


def test_task_groups_cancel_and_collect_errors() -> None:
    ended: list[str] = []

    async def sleeps(name: str) -> None:
        try:
            await anyio.sleep(3600)
        except anyio.get_cancelled_exc_class():
            ended.append(name)
            raise

    async def fails() -> None:
        await anyio.sleep(0.005)
        raise ValueError("one of them")

    async def main() -> None:
        with pytest.raises(ExceptionGroup) as caught:
            async with anyio.create_task_group() as group:
                for number in range(10):
                    group.start_soon(sleeps, f"task {number}")
                group.start_soon(fails)
        assert [str(error) for error in caught.value.exceptions] == ["one of them"]
        assert len(ended) == 10
        began = time.monotonic()
        with anyio.move_on_after(0.03) as scope:
            await anyio.sleep(3600)
        assert scope.cancelled_caught and 0.03 <= time.monotonic() - began < 1
        with pytest.raises(TimeoutError):
            with anyio.fail_after(0.01):
                async with anyio.create_task_group() as group:
                    group.start_soon(anyio.sleep, 3600)
                    await anyio.sleep(3600)

    on_our_loop(main)


def test_start_waits_until_a_task_says_it_is_ready() -> None:
    async def serves(*, task_status: anyio.abc.TaskStatus[int]) -> None:
        listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
        task_status.started(listener.extra(anyio.abc.SocketAttribute.local_port))
        await listener.serve(echo)

    async def main() -> None:
        async with anyio.create_task_group() as group:
            port = await group.start(serves)
            async with await anyio.connect_tcp("127.0.0.1", port) as stream:
                await stream.send(b"ready")
                assert await stream.receive() == b"ready"
            group.cancel_scope.cancel()

    on_our_loop(main)


async def echo(stream: Any) -> None:
    async with stream:
        try:
            async for data in stream:
                await stream.send(data)
        except (anyio.BrokenResourceError, ssl.SSLError):
            pass


async def exchange(stream: Any, payload: bytes) -> None:
    async with anyio.create_task_group() as group:
        group.start_soon(stream.send, payload)
        got = bytearray()
        while len(got) < len(payload):
            got += await stream.receive()
    assert got == payload


def test_tcp_streams_carry_megabytes_and_ends() -> None:
    async def main() -> None:
        listener = await anyio.create_tcp_listener(local_host="localhost")
        async with anyio.create_task_group() as group:
            group.start_soon(listener.serve, echo)
            port = listener.extra(anyio.abc.SocketAttribute.local_port)
            async with await anyio.connect_tcp("localhost", port) as stream:
                await exchange(stream, os.urandom(3_000_000))
                await stream.send(b"last words")
                await stream.send_eof()
                assert await stream.receive() == b"last words"
                with pytest.raises(anyio.EndOfStream):
                    await stream.receive()

            async def one(number: int) -> None:
                async with await anyio.connect_tcp("localhost", port) as stream:
                    for turn in range(5):
                        await stream.send(b"%d %d" % (number, turn))
                        assert await stream.receive() == b"%d %d" % (number, turn)

            async with anyio.create_task_group() as clients:
                for number in range(100):
                    clients.start_soon(one, number)
            group.cancel_scope.cancel()
        await listener.aclose()

    on_our_loop(main)


def test_unix_streams_datagrams_and_sockets_that_others_made(tmp_path: Path) -> None:
    async def main() -> None:
        listener = await anyio.create_unix_listener(tmp_path / "stream")
        async with anyio.create_task_group() as group:
            group.start_soon(listener.serve, echo)
            async with await anyio.connect_unix(tmp_path / "stream") as stream:
                await exchange(stream, os.urandom(1_000_000))
                near, far = os.pipe()
                await stream.send_fds(b"with a descriptor", [far])
                os.close(near)
                os.close(far)
            group.cancel_scope.cancel()
        await listener.aclose()
        async with await anyio.create_udp_socket(local_host="127.0.0.1") as one:
            address = one.extra(anyio.abc.SocketAttribute.local_address)
            async with await anyio.create_connected_udp_socket(*address) as two:
                await two.send(b"datagram")
                data, sender = await one.receive()
                await one.sendto(data + b" back", *sender)
                assert await two.receive() == b"datagram back"
        async with await anyio.create_unix_datagram_socket(local_path=tmp_path / "a") as one:
            async with await anyio.create_connected_unix_datagram_socket(
                tmp_path / "a", local_path=tmp_path / "b"
            ) as two:
                await two.send(b"unix datagram")
                assert await one.receive() == (b"unix datagram", str(tmp_path / "b"))

    on_our_loop(main)


def test_tls_listeners_and_streams_wrap_and_unwrap(certificates: Certificates) -> None:
    async def main() -> None:
        plain = await anyio.create_tcp_listener(local_host="127.0.0.1")
        listener: Any = TLSListener(plain, certificates.server())
        async with anyio.create_task_group() as group:
            group.start_soon(listener.serve, echo)
            port = plain.extra(anyio.abc.SocketAttribute.local_port)
            async with await anyio.connect_tcp(
                "localhost", port, tls=True, ssl_context=certificates.client()
            ) as stream:
                assert isinstance(stream, TLSStream)
                assert stream.extra(anyio.streams.tls.TLSAttribute.tls_version) == "TLSv1.3"
                await exchange(stream, os.urandom(2_000_000))
            with pytest.raises(ssl.SSLCertVerificationError):
                await anyio.connect_tcp("localhost", port, tls=True)
            group.cancel_scope.cancel()
        await listener.aclose()

    on_our_loop(main)


def test_a_connection_that_breaks_is_a_broken_resource() -> None:
    async def main() -> None:
        async with await anyio.create_tcp_listener(local_host="127.0.0.1") as listener:
            port = listener.extra(anyio.abc.SocketAttribute.local_port)
            with socket.create_connection(("127.0.0.1", port)) as client:
                accepted: list[Any] = []
                async with anyio.create_task_group() as group:

                    async def take(stream: Any) -> None:
                        accepted.append(stream)
                        group.cancel_scope.cancel()

                    group.start_soon(listener.serve, take)
                async with accepted[0] as stream:
                    reset(client)
                    with pytest.raises(anyio.BrokenResourceError):
                        await stream.receive()

    on_our_loop(main)


def test_processes_run_and_their_streams_are_streams() -> None:
    async def main() -> None:
        done = await anyio.run_process(["sh", "-c", "cat; echo err >&2"], input=b"given")
        assert (done.stdout, done.stderr, done.returncode) == (b"given", b"err\n", 0)
        async with await anyio.open_process(["cat"]) as process:
            assert process.stdin and process.stdout
            for number in range(10):
                await process.stdin.send(b"%d" % number)
                assert await process.stdout.receive() == b"%d" % number
            await process.stdin.aclose()
            assert await process.wait() == 0
        with anyio.move_on_after(0.05) as scope:
            async with await anyio.open_process(["sleep", "60"]) as process:
                await process.wait()
        assert scope.cancelled_caught and process.returncode == -signal.SIGKILL

    on_our_loop(main)


def test_threads_work_for_the_loop_and_call_back_into_it() -> None:
    async def main() -> None:
        main_thread = threading.get_ident()
        assert await anyio.to_thread.run_sync(threading.get_ident) != main_thread

        def work(number: int) -> int:
            assert anyio.from_thread.run_sync(threading.get_ident) == main_thread
            return anyio.from_thread.run(asyncio.sleep, 0.001, number * 2)

        results: list[int] = []

        async def one(number: int) -> None:
            results.append(await anyio.to_thread.run_sync(work, number))

        async with anyio.create_task_group() as group:
            for number in range(50):
                group.start_soon(one, number)
        assert sorted(results) == [number * 2 for number in range(50)]

    on_our_loop(main)


def test_a_portal_gives_other_threads_a_loop_of_ours() -> None:
    async def name() -> str:
        await anyio.sleep(0.001)
        return type(asyncio.get_running_loop()).__name__

    options = {"loop_factory": ErlangEventLoop}
    with anyio.from_thread.start_blocking_portal("asyncio", options) as portal:
        assert portal.call(name) == "ErlangEventLoop"
        assert [portal.start_task_soon(name).result(10) for _ in range(20)] == [
            "ErlangEventLoop"
        ] * 20


def test_signals_events_and_memory_streams() -> None:
    async def main() -> None:
        with anyio.open_signal_receiver(signal.SIGUSR1, signal.SIGUSR2) as signals:
            os.kill(os.getpid(), signal.SIGUSR1)
            os.kill(os.getpid(), signal.SIGUSR2)
            got = [await anext(signals), await anext(signals)]
        assert sorted(got) == [signal.SIGUSR1, signal.SIGUSR2]
        send, receive = anyio.create_memory_object_stream[int](5)
        async with anyio.create_task_group() as group:

            async def produce() -> None:
                async with send:
                    for number in range(1000):
                        await send.send(number)

            group.start_soon(produce)
            async with receive:
                assert [number async for number in receive] == list(range(1000))
        lock, inside = anyio.Lock(), 0

        async def critical() -> None:
            nonlocal inside
            async with lock:
                inside += 1
                assert inside == 1
                await anyio.sleep(0)
                inside -= 1

        async with anyio.create_task_group() as group:
            for _ in range(100):
                group.start_soon(critical)

    on_our_loop(main)


def test_files_are_read_and_descriptors_waited_for(tmp_path: Path) -> None:
    async def main() -> None:
        path = anyio.Path(tmp_path / "file")
        await path.write_text("text")
        async with await anyio.open_file(path) as file:
            assert await file.read() == "text"
        near, far = socket.socketpair()
        with near, far:
            with pytest.raises(TimeoutError), anyio.fail_after(0.02):
                await anyio.wait_readable(near)
            far.send(b"x")
            await anyio.wait_readable(near)
            await anyio.wait_writable(near)

    on_our_loop(main)


def test_work_in_worker_processes() -> None:
    """In a program of its own: anyio keeps the loop that had worker processes, whichever it is."""
    ended = script(
        """
        import anyio, anyio.to_process
        async def main():
            print(type(asyncio.get_running_loop()).__name__)
            print(await anyio.to_process.run_sync(pow, 2, 70))
        if __name__ == "__main__":
            anyio.run(main, backend_options={"loop_factory": new_loop})
        """,
        "erlang",
    )
    expected = f"ErlangEventLoop\n{2**70}\n"
    assert (ended.stdout, ended.stderr, ended.returncode) == (expected, "", 0)
