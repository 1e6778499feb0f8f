"""Everything at once for some seconds, on one loop: connections that end in every way, cancellations, threads.

    python3 tests/loop/stress.py                                30 seconds on ErlangEventLoop
    python3 tests/loop/stress.py --seconds 300 --seed 17        as long and as random as you like
    python3 tests/loop/stress.py --loop asyncio --debug         another loop, asyncio's debug mode

Every answer is compared with its question, every call from another thread is counted, no timer may be early and none
that was cancelled may run. At the end nothing may be left: no descriptor, no thread, no transport, handle or timer.
Prints what was done, a line a worker, and exits with 1 if anything was wrong. Meant to be run under sanitizers as well.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import random
import socket
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
import support  # noqa: E402

sys.path.insert(0, str(support.ROOT / "python"))

# What a connection may say when its other end is gone on purpose. A time-out is never on purpose.
GONE = (ConnectionError, asyncio.IncompleteReadError)


class Wrong(Exception):
    """An answer that is not the one to the question."""


class Answers(asyncio.Protocol):
    """A server that answers with what it got; a connection it likes less it ends in the middle."""

    def __init__(self, stress: Stress) -> None:
        self.stress = stress

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self.stress.count["accepted"] += 1

    def data_received(self, data: bytes) -> None:
        if data.startswith(b"\xffabort"):
            self.transport.abort()
        elif data.startswith(b"\xffclose"):
            self.transport.close()
        elif data.startswith(b"\xffraise"):
            raise ZeroDivisionError("as it was told")
        else:
            self.transport.write(data)

    def connection_lost(self, error: Exception | None) -> None:
        self.stress.count["accepted and lost"] += 1


class BufferedAnswers(asyncio.BufferedProtocol):
    def __init__(self, stress: Stress) -> None:
        self.room = bytearray(stress.random.choice((1000, 70_000)))
        self.stress = stress

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self.stress.count["accepted"] += 1

    def get_buffer(self, hint: int) -> bytearray:
        return self.room

    def buffer_updated(self, size: int) -> None:
        self.transport.write(memoryview(self.room)[:size])

    def connection_lost(self, error: Exception | None) -> None:
        self.stress.count["accepted and lost"] += 1


class DatagramAnswers(asyncio.DatagramProtocol):
    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def datagram_received(self, data: bytes, address: Any) -> None:
        self.transport.sendto(data, address)


class Stress:
    """One run: the servers, the workers, and what they counted."""

    def __init__(self, seconds: float, seed: int, directory: str) -> None:
        self.seconds = seconds
        self.random = random.Random(seed)
        self.count: Counter[str] = Counter()
        self.directory = directory
        self.certificates = support.Certificates(Path(directory))
        self.unexpected: list[str] = []

    @property
    def over(self) -> bool:
        return time.monotonic() >= self.end

    def payload(self) -> bytes:
        size = self.random.choice((1, 10, 100, 1000, 10_000, 100_000, 300_000))
        return b"\0" + self.random.randbytes(self.random.randint(1, size))

    # --- the whole of it

    async def main(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.loop.set_exception_handler(self.reported)
        self.end = time.monotonic() + self.seconds
        path = os.path.join(self.directory, "socket")
        tcp = await self.loop.create_server(lambda: Answers(self), "127.0.0.1", 0)
        buffered = await self.loop.create_server(lambda: BufferedAnswers(self), "127.0.0.1", 0)
        secure = await self.loop.create_server(
            lambda: Answers(self), "127.0.0.1", 0, ssl=self.certificates.server()
        )
        unix = await self.loop.create_unix_server(lambda: Answers(self), path)
        datagrams, _ = await self.loop.create_datagram_endpoint(DatagramAnswers, ("127.0.0.1", 0))
        address = tcp.sockets[0].getsockname()
        workers: list[Callable[[], Awaitable[None]]] = [
            *[lambda: self.streams("TCP", *address)] * 3,
            lambda: self.streams("buffered", *buffered.sockets[0].getsockname()),
            lambda: self.streams("Unix", path),
            lambda: self.secure(*secure.sockets[0].getsockname()),
            lambda: self.sockets(address),
            lambda: self.peers_that_go(address),
            lambda: self.datagrams(datagrams.get_extra_info("sockname")),
            lambda: self.cancelled(address),
            lambda: self.timers(),
            lambda: self.from_threads(),
            lambda: self.in_threads(),
            lambda: self.watched(),
            lambda: self.programs(),
            lambda: self.other_loops(),
        ]
        await asyncio.gather(*(worker() for worker in workers))
        for server in (tcp, buffered, secure, unix):
            server.close()
        datagrams.abort()
        deadline = time.monotonic() + 30
        while self.count["accepted"] != self.count["accepted and lost"]:
            if time.monotonic() > deadline:
                raise Wrong("connections of the servers are still open")
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.01)
        assert not self.unexpected, self.unexpected

    def reported(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        if isinstance(error, ZeroDivisionError):
            self.count["reported errors"] += 1
        elif not isinstance(error, GONE) and not isinstance(error, OSError):
            self.unexpected.append(f"{context['message']}: {error!r}")

    # --- connections

    async def exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for _ in range(self.random.randint(1, 20)):
            question = self.payload()
            pieces = self.random.randint(1, 4)
            step = len(question) // pieces + 1
            for start in range(0, len(question), step):
                writer.write(question[start : start + step])
            if self.random.random() < 0.5:
                await writer.drain()
            answer = await asyncio.wait_for(reader.readexactly(len(question)), 20)
            if answer != question:
                raise Wrong(f"{len(question)} bytes came back as others")
            self.count["answers"] += 1

    async def ended(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Ends a connection in one of the ways there are."""
        match self.random.choice(("close", "close", "abort", "eof", "reset", "ask", "full")):
            case "close":
                writer.close()
            case "abort":
                writer.transport.abort()
            case "eof" if writer.can_write_eof():
                writer.write(b"\0last words")
                writer.write_eof()
                assert await asyncio.wait_for(reader.read(), 20) == b"\0last words"
            case "ask":
                writer.write(self.random.choice((b"\xffabort", b"\xffclose", b"\xffraise")))
                assert await asyncio.wait_for(reader.read(), 20) in (b"", b"\xff")
            case "full":
                writer.write(b"\0" * 3_000_000)
                if self.random.random() < 0.5:
                    await asyncio.sleep(0.001)
                writer.transport.abort()
            case _:
                sock = writer.get_extra_info("socket")
                if sock.family != socket.AF_UNIX:
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
                writer.transport.abort()
        writer.close()

    async def streams(self, name: str, *address: Any) -> None:
        while not self.over:
            if len(address) == 2:
                reader, writer = await asyncio.open_connection(*address)
            else:
                reader, writer = await asyncio.open_unix_connection(*address)
            await self.exchange(reader, writer)
            if name == "buffered":
                writer.close()
            else:
                with contextlib.suppress(*GONE):
                    await self.ended(reader, writer)
            with contextlib.suppress(*GONE):
                await writer.wait_closed()
            self.count[f"{name} connections"] += 1

    async def secure(self, *address: Any) -> None:
        context = self.certificates.client()
        while not self.over:
            reader, writer = await asyncio.open_connection(
                *address, ssl=context, server_hostname="localhost"
            )
            await self.exchange(reader, writer)
            if self.random.random() < 0.5:
                writer.transport.abort()
            writer.close()
            with contextlib.suppress(*GONE):
                await writer.wait_closed()
            self.count["TLS connections"] += 1
            await asyncio.sleep(0.01)

    async def sockets(self, address: Any) -> None:
        while not self.over:
            with socket.socket() as sock:
                sock.setblocking(False)
                await self.loop.sock_connect(sock, address)
                for _ in range(self.random.randint(1, 20)):
                    question, answer = self.payload(), bytearray()
                    sending = asyncio.ensure_future(self.loop.sock_sendall(sock, question))
                    while len(answer) < len(question):
                        receiving = self.loop.sock_recv(sock, 65536)
                        if self.random.random() < 0.3:
                            with contextlib.suppress(TimeoutError):  # a cancelled one loses nothing
                                answer += await asyncio.wait_for(receiving, 0.0005)
                        else:
                            answer += await asyncio.wait_for(receiving, 20)
                    await sending
                    if answer != question:
                        raise Wrong("sock_recv got others than sock_sendall sent")
                    self.count["answers to sock_sendall"] += 1
                if self.random.random() < 0.3:
                    support.reset(sock)

    async def peers_that_go(self, address: Any) -> None:
        """Clients that are no part of the loop and go at once, or with data on the way."""
        while not self.over:
            sock = socket.create_connection(address)
            if self.random.random() < 0.7:
                sock.send(self.payload()[:1000])
            if self.random.random() < 0.3:
                await asyncio.sleep(0)
            (support.reset if self.random.random() < 0.6 else socket.socket.close)(sock)
            self.count["peers that went"] += 1
            await asyncio.sleep(self.random.choice((0, 0, 0.0005)))

    async def datagrams(self, address: Any) -> None:
        stress = self

        class Asks(asyncio.DatagramProtocol):
            def __init__(self) -> None:
                self.answer: asyncio.Future[bytes] = stress.loop.create_future()
                self.lost = stress.loop.create_future()

            def datagram_received(self, data: bytes, sender: Any) -> None:
                if not self.answer.done():
                    self.answer.set_result(data)

            def connection_lost(self, error: Exception | None) -> None:
                self.lost.set_result(None)

        while not self.over:
            transport, protocol = await self.loop.create_datagram_endpoint(
                Asks, remote_addr=address
            )
            for _ in range(self.random.randint(1, 50)):
                question = self.payload()[:60_000]
                protocol.answer = self.loop.create_future()
                transport.sendto(question)
                if await asyncio.wait_for(protocol.answer, 20) != question:
                    raise Wrong("a datagram came back as another")
                self.count["datagrams"] += 1
            (transport.close if self.random.random() < 0.5 else transport.abort)()
            await protocol.lost

    # --- cancellations and time

    async def cancelled(self, address: Any) -> None:
        """Tasks that are cancelled at a moment of chance, wherever they are."""

        async def connect_and_wait() -> None:
            reader, writer = await asyncio.open_connection(*address)
            try:
                writer.write(self.payload())
                await reader.read(10)
                await reader.readexactly(10_000_000)
            finally:
                writer.transport.abort()

        async def wait_for_a_thread() -> None:
            await self.loop.run_in_executor(None, time.sleep, 0.001)

        async def nested() -> None:
            async with asyncio.timeout(self.random.uniform(0.0001, 0.01)):
                async with asyncio.TaskGroup() as group:
                    group.create_task(connect_and_wait())
                    group.create_task(asyncio.sleep(3600))

        kinds = (connect_and_wait, wait_for_a_thread, nested, lambda: asyncio.sleep(3600))
        while not self.over:
            tasks = [
                asyncio.ensure_future(self.random.choice(kinds)()) for _ in range(10)  # type: ignore[operator]
            ]
            await asyncio.sleep(self.random.uniform(0, 0.01))
            for task in tasks:
                task.cancel()
            for result in await asyncio.gather(*tasks, return_exceptions=True):
                if isinstance(result, BaseException) and not isinstance(
                    result, (asyncio.CancelledError, TimeoutError, ExceptionGroup, *GONE)
                ):
                    raise result
            self.count["cancelled tasks"] += len(tasks)

    async def timers(self) -> None:
        fired = 0

        def fire(due: float) -> None:
            nonlocal fired
            if self.loop.time() < due:
                raise Wrong("a timer was early")
            fired += 1

        def never() -> None:
            self.unexpected.append("a cancelled timer ran")

        while not self.over:
            fired, wanted = 0, 0
            doomed = [
                self.loop.call_later(self.random.uniform(0.001, 0.02), never) for _ in range(50)
            ]
            for _ in range(50):
                delay = self.random.uniform(0, 0.01)
                self.loop.call_later(delay, fire, self.loop.time() + delay)
                wanted += 1
            for handle in doomed:
                handle.cancel()
            del doomed
            self.count["timers"] += wanted
            while fired < wanted:
                await asyncio.sleep(0.001)

    # --- threads

    async def from_threads(self) -> None:
        """Threads that call into the loop; each call counts once."""
        got, sent = Counter[int](), Counter[int]()

        async def square(number: int) -> int:
            if number % 3 == 0:
                await asyncio.sleep(0)
            return number * number

        def work(thread: int) -> None:
            mine = random.Random(thread)
            while not self.over:
                for _ in range(mine.randint(1, 200)):
                    handle = self.loop.call_soon_threadsafe(got.update, (thread,))
                    sent[thread] += 1
                    if mine.random() < 0.01:
                        handle.cancel()  # it may have run: then it counts
                        sent[thread] -= 1
                        self.count["maybe"] += 1
                number = mine.randint(0, 1000)
                answer = asyncio.run_coroutine_threadsafe(square(number), self.loop).result(20)
                if answer != number * number:
                    self.unexpected.append("a thread got the answer of another")
                time.sleep(mine.choice((0, 0, 0.001)))

        threads = [threading.Thread(target=work, args=(number,)) for number in range(3)]
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            await asyncio.sleep(0.01)
        for thread in threads:
            thread.join()
        await asyncio.sleep(0.01)
        for number in range(3):
            surplus = got[number] - sent[number]
            if not 0 <= surplus <= self.count["maybe"]:
                raise Wrong(f"of {sent[number]} calls of a thread {got[number]} ran")
        self.count["calls from threads"] += sum(got.values())

    async def in_threads(self) -> None:
        while not self.over:
            numbers = [self.random.randint(0, 100) for _ in range(20)]
            answers = await asyncio.gather(
                *(self.loop.run_in_executor(None, pow, number, 3) for number in numbers)
            )
            if answers != [number**3 for number in numbers]:
                raise Wrong("an executor gave another answer")
            self.count["answers of executors"] += len(numbers)
            await asyncio.sleep(0.001)

    async def other_loops(self) -> None:
        """Loops that are made, used and closed in other threads meanwhile."""

        def work() -> str:
            async def short() -> str:
                near, far = socket.socketpair()
                with near, far:
                    near.setblocking(False)
                    far.send(b"hello")
                    await asyncio.sleep(0.001)
                    return (await asyncio.get_running_loop().sock_recv(near, 10)).decode()

            return support.run(type(self.loop), short)

        while not self.over:
            if await asyncio.to_thread(work) != "hello":
                raise Wrong("another loop got another answer")
            self.count["other loops"] += 1
            await asyncio.sleep(0.02)

    # --- the rest

    async def watched(self) -> None:
        """Readers and writers that come and go, of pairs that are closed in either order."""
        while not self.over:
            near, far = socket.socketpair()
            near.setblocking(False)
            got, want = bytearray(), self.random.randbytes(self.random.randint(1, 1000))
            done = self.loop.create_future()

            def readable() -> None:
                got.extend(near.recv(100))
                if len(got) >= len(want) and not done.done():
                    done.set_result(None)

            self.loop.add_reader(near, readable)
            if self.random.random() < 0.5:
                self.loop.add_writer(near, int)
            far.send(want)
            await asyncio.wait_for(done, 20)
            if got != want:
                raise Wrong("a reader read something else")
            self.loop.remove_writer(near)
            self.loop.remove_reader(near)
            for sock in self.random.sample((near, far), 2):
                sock.close()
            self.count["watched descriptors"] += 1
            await asyncio.sleep(0.001)

    async def programs(self) -> None:
        while not self.over:
            question = self.random.randbytes(100_000)
            process = await asyncio.create_subprocess_exec(
                "cat", stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
            )
            if self.random.random() < 0.3:
                process.kill()
                await process.communicate()
            else:
                answer, _ = await process.communicate(question)
                if answer != question:
                    raise Wrong("a program gave something else")
            self.count["programs"] += 1
            await asyncio.sleep(0.05)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--seconds", type=float, default=30)
    parser.add_argument("--seed", type=int, default=None, help="a random one unless given")
    parser.add_argument("--loop", default="erlang", help="erlang, asio, asyncio, or module:factory")
    parser.add_argument("--debug", action="store_true", help="asyncio's debug mode")
    arguments = parser.parse_args()
    seed = arguments.seed if arguments.seed is not None else random.randrange(1 << 32)
    print(f"stress: seed {seed}, {arguments.seconds} s on {arguments.loop}", flush=True)
    factory = support.factory_of(arguments.loop)
    support.run(factory, lambda: asyncio.sleep(0))  # what is made once and kept is made now
    before = support.Belongings()
    with tempfile.TemporaryDirectory() as directory:
        stress = Stress(arguments.seconds, seed, directory)
        support.run(factory, stress.main, debug=arguments.debug)
        count = stress.count
        del stress
    try:
        before.expect_nothing_left()
    except AssertionError as error:
        print(f"stress: {error}")
        return 1
    for name in sorted(count):
        print(f"{count[name]:9,} {name}")
    print("stress: every answer was right, and nothing is left")
    return 0


if __name__ == "__main__":
    sys.exit(main())
