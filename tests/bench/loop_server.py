"""The measured process of the loop's benchmarks: one event loop, chosen by name, and one thing that it does.

    loop_server.py asyncio|uvloop|erlang operations               answers "NAME SECONDS" lines
    loop_server.py asyncio|uvloop|erlang WORKLOAD [SOCKET-PATH] [CERTIFICATE]

An echo (and an HTTP answer) is served until the process is ended; its first line says where: "at 40123". Whoever asks
takes the processor time of this process. Operations measure themselves: for each line of standard input they run for
so long and print one line "cpu=... rate=...", nanoseconds of processor time an operation and operations a second, or
"p50=... p99=..." in microseconds.
"""

from __future__ import annotations

import asyncio
import gc
import importlib
import socket
import ssl
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

CHUNK = 100 * 1024  # what streams and sockets ask for at once
RECEIVE = 256 * 1024  # a buffered protocol's buffer


def new_loop(name: str) -> asyncio.AbstractEventLoop:
    if name == "asyncio":
        return asyncio.new_event_loop()
    module = importlib.import_module({"uvloop": "uvloop", "erlang": "erlang_loop"}[name])
    loop: asyncio.AbstractEventLoop = module.new_event_loop()
    return loop


# ---------------------------------------------------------------------------------------------------------------------
# Operations: each batch does a number of them, tens of milliseconds' worth, and returns the number

Loop = asyncio.AbstractEventLoop
Batch = Callable[[Loop], int]
Sample = Callable[[Loop, float], list[float]]


def nothing() -> None:
    pass


def nothing_of(_a: object, _b: object, _c: object) -> None:
    pass


def repeat(loop: Loop, turns: int, turn: Callable[[], None]) -> None:
    """Runs one turn of the loop after the other, each with what the callback made ready."""

    def next_turn() -> None:
        nonlocal turns
        turn()
        turns -= 1
        loop.call_soon(next_turn if turns else loop.stop)

    loop.call_soon(next_turn)
    loop.run_forever()


def call_soon(loop: Loop) -> int:
    def turn() -> None:
        for _ in range(1000):
            loop.call_soon(nothing)

    repeat(loop, 20, turn)
    return 20_000


def call_soon_3(loop: Loop) -> int:
    def turn() -> None:
        for _ in range(1000):
            loop.call_soon(nothing_of, 1, 2, 3)

    repeat(loop, 20, turn)
    return 20_000


def one_a_turn(loop: Loop) -> int:
    left = 10_000

    def turn() -> None:
        nonlocal left
        left -= 1
        loop.call_soon(turn if left else loop.stop)

    loop.call_soon(turn)
    loop.run_forever()
    return 10_000


def timer_fired(loop: Loop) -> int:
    """Ten thousand timers, all of which are due when the last of them is made, or soon after."""
    left = 10_000

    def fired() -> None:
        nonlocal left
        left -= 1
        if left == 0:
            loop.stop()

    def create() -> None:
        for at in range(10_000):
            loop.call_later(0.001 + at % 10 * 1e-4, fired)

    loop.call_soon(create)
    loop.run_forever()
    return 10_000


def timer_cancelled(loop: Loop) -> int:
    """What a time-out that never happens costs, with the turns in which a loop may tidy up after it."""

    def turn() -> None:
        for _ in range(500):
            loop.call_later(60, nothing).cancel()

    repeat(loop, 20, turn)
    return 10_000


async def sleep_often(times: int) -> None:
    for _ in range(times):
        await asyncio.sleep(0)


def sleep_0(loop: Loop) -> int:
    loop.run_until_complete(sleep_often(10_000))
    return 10_000


def sleep_0_100(loop: Loop) -> int:
    async def main() -> None:
        await asyncio.gather(*(sleep_often(100) for _ in range(100)))

    loop.run_until_complete(main())
    return 10_000


def create_task(loop: Loop) -> int:
    async def main() -> None:
        for _ in range(50):
            await asyncio.gather(*[loop.create_task(sleep_often(0)) for _ in range(100)])

    loop.run_until_complete(main())
    return 5000


def wait_for(loop: Loop) -> int:
    async def main() -> None:
        for _ in range(2000):
            await asyncio.wait_for(asyncio.sleep(0), 10)

    loop.run_until_complete(main())
    return 2000


def executor(loop: Loop) -> int:
    async def main() -> None:
        for _ in range(200):
            await loop.run_in_executor(None, nothing)

    loop.run_until_complete(main())
    return 200


def beside(loop: Loop, work: Callable[[], None]) -> None:
    """Runs the loop while a thread works, and until it has done so."""

    def whole() -> None:
        work()
        loop.call_soon_threadsafe(loop.stop)

    thread = threading.Thread(target=whole)
    loop.call_soon(thread.start)
    loop.run_forever()
    thread.join()


def threadsafe(loop: Loop) -> int:
    """A thread calls in bursts of a thousand and waits for the last one of each."""

    def work() -> None:
        done = threading.Lock()
        done.acquire()
        for _ in range(10):
            for _ in range(999):
                loop.call_soon_threadsafe(nothing)
            loop.call_soon_threadsafe(done.release)
            done.acquire()

    beside(loop, work)
    return 10_000


def threadsafe_latency(loop: Loop, seconds: float) -> list[float]:
    """From a call in another thread to the callback, of a loop that had nothing to do."""
    took: list[float] = []

    def work() -> None:
        done = threading.Lock()
        done.acquire()

        def called(sent: int) -> None:
            took.append((time.perf_counter_ns() - sent) / 1000)
            done.release()

        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            time.sleep(0.0005)
            loop.call_soon_threadsafe(called, time.perf_counter_ns())
            done.acquire()

    beside(loop, work)
    return took


def sleep_late(loop: Loop, seconds: float) -> list[float]:
    """How much later than after two milliseconds."""
    late: list[float] = []

    async def main() -> None:
        end = time.perf_counter() + seconds
        while (start := time.perf_counter()) < end:
            await asyncio.sleep(0.002)
            late.append((time.perf_counter() - start - 0.002) * 1e6)

    loop.run_until_complete(main())
    return late


BATCHES: dict[str, Batch] = {
    function.__name__: function
    for function in (
        call_soon,
        call_soon_3,
        one_a_turn,
        timer_fired,
        timer_cancelled,
        sleep_0,
        sleep_0_100,
        create_task,
        wait_for,
        threadsafe,
        executor,
    )
}
SAMPLES: dict[str, Sample] = {
    "threadsafe_latency": threadsafe_latency,
    "sleep_late": sleep_late,
}


def measured(loop: Loop, batch: Batch, seconds: float) -> str:
    batch(loop)  # warms up
    gc.collect()
    operations = 0
    began, cpu = time.perf_counter(), time.process_time_ns()
    while time.perf_counter() - began < seconds:
        operations += batch(loop)
    cpu, took = time.process_time_ns() - cpu, time.perf_counter() - began
    return f"cpu={cpu / operations:.1f} rate={operations / took:.1f}"


def sampled(loop: Loop, sample: Sample, seconds: float) -> str:
    values = sorted(sample(loop, seconds))
    return " ".join(f"p{at}={values[len(values) * at // 100]:.1f}" for at in (50, 99))


def operations(loop: Loop) -> None:
    """On a loop that watches a descriptor, as every loop with a connection does: its turns look at it."""
    watched, other = socket.socketpair()
    loop.add_reader(watched, nothing)
    for line in sys.stdin:
        name, seconds = line.split()
        if name in BATCHES:
            print(measured(loop, BATCHES[name], float(seconds)), flush=True)
        else:
            print(sampled(loop, SAMPLES[name], float(seconds)), flush=True)
    loop.remove_reader(watched)
    watched.close()
    other.close()
    loop.close()


# ---------------------------------------------------------------------------------------------------------------------
# Echoes


class Echo(asyncio.Protocol):
    transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]

    def data_received(self, data: bytes) -> None:
        self.transport.write(data)


class BufferedEcho(asyncio.BufferedProtocol):
    transport: asyncio.Transport

    def __init__(self) -> None:
        self.buffer = memoryview(bytearray(RECEIVE))

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]

    def get_buffer(self, sizehint: int) -> memoryview:
        return self.buffer

    def buffer_updated(self, nbytes: int) -> None:
        # A copy: the transport may keep what it is given until after the next bytes have come.
        self.transport.write(bytes(self.buffer[:nbytes]))


class DatagramEcho(asyncio.DatagramProtocol):
    transport: asyncio.DatagramTransport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]

    def datagram_received(self, data: bytes, addr: Any) -> None:
        self.transport.sendto(data, addr)


async def stream_echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(CHUNK):
            writer.write(data)
            await writer.drain()
    except ConnectionError:
        pass
    finally:
        writer.close()


async def socket_echo(loop: Loop, peer: socket.socket) -> None:
    with peer:
        try:
            while data := await loop.sock_recv(peer, CHUNK):
                await loop.sock_sendall(peer, data)
        except ConnectionError:
            pass


async def socket_server(loop: Loop, listener: socket.socket) -> None:
    serving = set()
    while True:
        peer, _ = await loop.sock_accept(listener)
        peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        task = loop.create_task(socket_echo(loop, peer))
        serving.add(task)
        task.add_done_callback(serving.discard)


# ---------------------------------------------------------------------------------------------------------------------
# What is served


async def hello(
    scope: dict[str, Any], receive: Any, send: Callable[[Any], Awaitable[None]]
) -> None:
    headers = [(b"content-type", b"text/plain"), (b"content-length", b"13")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": b"Hello, world!"})


async def serve_http(parser: str, listener: socket.socket) -> None:
    import uvicorn

    config = uvicorn.Config(
        hello,
        loop="none",
        http=parser,
        ws="none",
        lifespan="off",
        log_level="warning",
        access_log=False,
    )
    await uvicorn.Server(config).serve([listener])


kept: list[object] = []  # what serves lives as long as the process


def serving_task(loop: Loop, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
    task = loop.create_task(work)
    task.add_done_callback(lambda done: done.result())  # so that a failure is in the log at once
    return task


async def start(loop: Loop, workload: str, path: str, certificate: str) -> str:
    """Serves in the background; returns the port, or the path of a Unix socket."""
    if workload == "udp":
        transport, _ = await loop.create_datagram_endpoint(
            DatagramEcho, local_addr=("127.0.0.1", 0)
        )
        kept.append(transport)
        return str(transport.get_extra_info("sockname")[1])
    if workload == "unix_protocol":
        kept.append(await loop.create_unix_server(Echo, path, backlog=1024))
        return path
    if workload == "unix_streams":
        kept.append(await asyncio.start_unix_server(stream_echo, path, backlog=1024))
        return path
    # With its protocol named, as getaddrinfo does: else asyncio leaves its connections without TCP_NODELAY.
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.bind(("127.0.0.1", 0))
    listener.listen(1024)
    listener.setblocking(False)
    context: ssl.SSLContext | None = None
    if workload.startswith("tls"):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
    if workload in ("protocol", "buffered", "tls_protocol"):
        protocol = BufferedEcho if workload == "buffered" else Echo
        server = await loop.create_server(protocol, sock=listener, ssl=context, backlog=1024)
        kept.append(server)
    elif workload in ("streams", "tls_streams"):
        kept.append(
            await asyncio.start_server(stream_echo, sock=listener, ssl=context, backlog=1024)
        )
    elif workload == "sockets":
        kept.append(serving_task(loop, socket_server(loop, listener)))
    elif workload in ("h11", "httptools"):
        kept.append(serving_task(loop, serve_http(workload, listener)))
    else:
        raise SystemExit(f"no such workload: {workload}")
    return str(listener.getsockname()[1])


def main() -> None:
    name, workload, path, certificate = (sys.argv[1:] + ["", ""])[:4]
    loop = new_loop(name)
    asyncio.set_event_loop(loop)
    if workload == "operations":
        operations(loop)
        return
    print("at", loop.run_until_complete(start(loop, workload, path, certificate)), flush=True)
    loop.run_forever()


if __name__ == "__main__":
    main()
