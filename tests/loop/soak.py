"""Makes, uses and closes a loop over and over in one process, and wants everything back.

    python3 tests/loop/soak.py                       500 cycles on ErlangEventLoop
    python3 tests/loop/soak.py --cycles 100 --loop asyncio

Each cycle makes a loop and does with it what programs do: timers, threads, executors, TCP, TLS, Unix sockets, UDP,
pipes, subprocesses, signals; it also ends in one of the ways programs end, some of them untidy, with timers, watchers,
transports and tasks left to the loop's close. After the last cycle there must be no more descriptors, threads,
processes and native objects of the loop than after the first ones, and no growth of Python's blocks and of the C heap
that a leak of even a small object in every cycle would make. Prints a line a sample and the verdict; exits with 1 if
anything leaked, and if a destructor raised.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import ctypes
import dataclasses
import gc
import itertools
import logging
import os
import signal
import socket
import statistics
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
import support  # noqa: E402

sys.path.insert(0, str(support.ROOT / "python"))

# Growth allowed per cycle, once the first two rounds have filled the interpreter's caches. One small object lost in
# each cycle is one block, or some 50 bytes of the C heap; what the samples themselves take is below a third of a block.
BLOCKS = 0.5
HEAP_BYTES = 24.0
SECONDS = 30.0  # for one cycle

Work = Callable[["Place"], Coroutine[Any, Any, None]]
libc = ctypes.CDLL(None)


# ---------------------------------------------------------------------------------------------------------------------
# What a cycle does


class Place:
    """What the cycles share: certificates, and a directory for their sockets."""

    def __init__(self, directory: Path) -> None:
        self.certificates = support.Certificates(directory)
        self.socket = str(directory / "socket")


async def scheduling(_place: Place) -> None:
    loop = asyncio.get_running_loop()
    fired: asyncio.Future[None] = loop.create_future()
    cancelled = [loop.call_later(3600, print) for _ in range(20)]
    loop.call_later(0.001, fired.set_result, None)
    await asyncio.gather(fired, *(asyncio.sleep(0) for _ in range(20)))
    for timer in cancelled:
        timer.cancel()


async def threads(_place: Place) -> None:
    loop = asyncio.get_running_loop()
    called: asyncio.Future[int] = loop.create_future()
    thread = threading.Thread(target=loop.call_soon_threadsafe, args=(called.set_result, 42))
    thread.start()
    assert await called == 42
    thread.join()
    assert await loop.run_in_executor(None, sum, (1, 2)) == 3
    assert await loop.getaddrinfo("127.0.0.1", 80, type=socket.SOCK_STREAM)


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
    writer.close()


async def exchange(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    data = os.urandom(100_000)
    writer.write(data)
    assert await reader.readexactly(len(data)) == data
    writer.close()
    await writer.wait_closed()


async def tcp(_place: Place) -> None:
    async with await asyncio.start_server(echo, "127.0.0.1", 0) as server:
        for _ in range(3):
            await exchange(*await asyncio.open_connection(*server.sockets[0].getsockname()))


async def tls(place: Place) -> None:
    """With contexts of its own each time: they collect sessions."""
    near, far = place.certificates.client(), place.certificates.server()
    async with await asyncio.start_server(echo, "127.0.0.1", 0, ssl=far) as server:
        port = server.sockets[0].getsockname()[1]
        connecting = asyncio.open_connection("localhost", port, ssl=near)
        await exchange(*await connecting)


async def unix_sockets(place: Place) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(place.socket)
    async with await asyncio.start_unix_server(echo, place.socket):
        await exchange(*await asyncio.open_unix_connection(place.socket))


class Datagrams(asyncio.DatagramProtocol):
    def __init__(self) -> None:
        self.received: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    def datagram_received(self, data: bytes, _address: Any) -> None:
        self.received.set_result(data)


async def udp(_place: Place) -> None:
    loop = asyncio.get_running_loop()
    at, far = await loop.create_datagram_endpoint(Datagrams, local_addr=("127.0.0.1", 0))
    address = at.get_extra_info("sockname")
    near, _ = await loop.create_datagram_endpoint(Datagrams, remote_addr=address)
    near.sendto(b"datagram")
    assert await far.received == b"datagram"
    at.close()
    near.close()


async def raw_sockets(_place: Place) -> None:
    loop = asyncio.get_running_loop()
    near, far = socket.socketpair()
    with near, far:
        near.setblocking(False)
        far.setblocking(False)
        waiting = loop.create_task(loop.sock_recv(far, 10))
        await asyncio.sleep(0)
        await loop.sock_sendall(near, b"bytes")
        assert await waiting == b"bytes"
        abandoned = loop.create_task(loop.sock_recv(far, 10))
        await asyncio.sleep(0)
        await support.gone(abandoned)


async def pipes(_place: Place) -> None:
    loop = asyncio.get_running_loop()
    reading, writing = os.pipe()
    reader = asyncio.StreamReader()
    protocol = asyncio.StreamReaderProtocol(reader)
    near, _ = await loop.connect_read_pipe(lambda: protocol, os.fdopen(reading, "rb"))
    far, _ = await loop.connect_write_pipe(asyncio.BaseProtocol, os.fdopen(writing, "wb"))
    far.write(b"line\n")
    assert await reader.readline() == b"line\n"
    far.close()
    assert await reader.read() == b""
    near.close()


async def subprocesses(_place: Place) -> None:
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec("/bin/cat", stdin=pipe, stdout=pipe)
    out, _ = await process.communicate(b"through a process")
    assert (out, process.returncode) == (b"through a process", 0)


async def signals(_place: Place) -> None:
    loop = asyncio.get_running_loop()
    caught = asyncio.Event()
    loop.add_signal_handler(signal.SIGUSR1, caught.set)
    os.kill(os.getpid(), signal.SIGUSR1)
    await caught.wait()
    loop.remove_signal_handler(signal.SIGUSR1)


async def errors(_place: Place) -> None:
    loop = asyncio.get_running_loop()
    reports = support.Reports(loop)
    loop.call_soon(divmod, 1, 0)
    loop.call_later(0.001, divmod, 1, 0)
    await support.until(lambda: len(reports.messages) == 2)
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(loop.create_future(), 0.001)


async def open_generator(_place: Place) -> None:
    """A generator that is left in the middle is closed by shutdown_asyncgens."""

    async def numbers() -> AsyncIterator[int]:
        try:
            yield 1
            yield 2
        finally:
            await asyncio.sleep(0)

    left = numbers()
    assert await anext(left) == 1
    asyncio.get_running_loop().left = left  # type: ignore[attr-defined]


WORK: tuple[Work, ...] = (
    scheduling,
    threads,
    tcp,
    tls,
    unix_sockets,
    udp,
    raw_sockets,
    pipes,
    subprocesses,
    signals,
    errors,
    open_generator,
)


# ---------------------------------------------------------------------------------------------------------------------
# How a cycle ends


def tidily(loop: asyncio.AbstractEventLoop) -> None:
    loop.run_until_complete(loop.shutdown_asyncgens())
    loop.run_until_complete(loop.shutdown_default_executor())
    loop.close()


def with_much_to_do(loop: asyncio.AbstractEventLoop) -> None:
    """Callbacks, timers and watchers that will never be called."""
    near, far = socket.socketpair()
    with near, far:
        loop.add_reader(near, print, "readable")
        loop.add_writer(far, print, "writable")
        for _ in range(5):
            loop.call_soon(print, "soon")
            loop.call_soon_threadsafe(print, "from a thread")
            loop.call_later(3600, print, "later")
        tidily_without_turning(loop)


def tidily_without_turning(loop: asyncio.AbstractEventLoop) -> None:
    executor = getattr(loop, "_default_executor", None)
    loop.close()
    if executor:
        executor.shutdown()


def with_open_transports(loop: asyncio.AbstractEventLoop) -> None:
    """A server and both ends of a connection, with bytes on the way, when the loop is closed."""

    async def leave_open() -> None:
        server = await asyncio.start_server(echo, "127.0.0.1", 0)
        address = server.sockets[0].getsockname()
        _, writer = await asyncio.open_connection(*address)
        writer.write(bytes(1_000_000))
        await asyncio.sleep(0.005)

    loop.run_until_complete(leave_open())
    tidily_without_turning(loop)


def with_waiting_tasks(loop: asyncio.AbstractEventLoop) -> None:
    async def wait() -> None:
        await asyncio.sleep(3600)

    async def start() -> None:
        loop.waiting = [loop.create_task(wait()) for _ in range(3)]  # type: ignore[attr-defined]
        await asyncio.sleep(0)

    loop.run_until_complete(start())
    tidily_without_turning(loop)


def by_being_forgotten(loop: asyncio.AbstractEventLoop) -> None:
    """Nobody closes it: its finalizer does."""
    loop.run_until_complete(loop.shutdown_default_executor())


ENDS = (
    tidily,
    with_much_to_do,
    tidily,
    with_open_transports,
    with_waiting_tasks,
    by_being_forgotten,
)


# ---------------------------------------------------------------------------------------------------------------------
# Watching


class MallInfo(ctypes.Structure):
    _fields_ = [
        (name, ctypes.c_size_t)
        for name in "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost".split()
    ]


def without_thread_caches() -> None:
    """Starts this program again with a C heap that keeps nothing back for the next call, so that it can be counted."""
    if "GLIBC_TUNABLES" not in os.environ:
        os.environ["GLIBC_TUNABLES"] = "glibc.malloc.tcache_count=0"
        os.execv(sys.executable, sys.orig_argv)


def heap_in_use() -> int:
    """Bytes that the C heap has given out and not got back; 0 where the C library cannot tell."""
    if not hasattr(libc, "mallinfo2"):
        return 0
    libc.mallinfo2.restype = MallInfo
    info = libc.mallinfo2()
    return int(info.uordblks + info.hblkhd)


def forget_attributes() -> None:
    """The cache of attributes keeps their names, and fills for thousands of cycles."""
    clear = getattr(sys, "_clear_internal_caches", None) or getattr(sys, "_clear_type_cache")
    clear()


@dataclasses.dataclass
class Sample:
    cycle: int
    fds: int
    threads: int
    children: int
    natives: dict[str, int]
    blocks: int
    heap: int
    resident: int

    @staticmethod
    def take(cycle: int) -> Sample:
        for _ in range(3):
            gc.collect()
        forget_attributes()
        threads = len(os.listdir("/proc/self/task"))
        children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
        resident = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")
        fds, natives = len(support.open_fds()), support.native_objects()
        blocks, heap = sys.getallocatedblocks(), heap_in_use()
        return Sample(cycle, fds, threads, len(children), natives, blocks, heap, resident)

    def __str__(self) -> str:
        natives = " ".join(f"{count} {kind}" for kind, count in self.natives.items())
        return (
            f"cycle {self.cycle:4}: {self.fds} descriptors, {self.threads} threads, {self.children} children, "
            f"{self.blocks} blocks, {self.heap / 1024:.0f} KB of heap, {self.resident / 1024:.0f} KB resident; "
            + natives
        )


def leaks(samples: list[Sample]) -> list[str]:
    """What grew from the first sample to the last, in words; of memory, what grew in most rounds.

    A table that is made larger once is no leak.
    """
    first, last = samples[0], samples[-1]
    found = []
    for name in ("fds", "threads", "children"):
        if getattr(last, name) > getattr(first, name):
            found.append(f"{name}: {getattr(first, name)} became {getattr(last, name)}")
    for kind, count in last.natives.items():
        if count > first.natives.get(kind, 0):
            found.append(f"native {kind}: {first.natives.get(kind, 0)} became {count}")
    for name, limit in (("blocks", BLOCKS), ("heap", HEAP_BYTES)):
        growth = statistics.median(
            (getattr(after, name) - getattr(before, name)) / (after.cycle - before.cycle)
            for before, after in itertools.pairwise(samples)
        )
        if growth > limit:
            found.append(f"{name}: {growth:.1f} more in each cycle, allowed are {limit}")
    return found


# ---------------------------------------------------------------------------------------------------------------------


def cycle(number: int, factory: support.LoopFactory, place: Place) -> None:
    loop = factory()
    loop.set_debug(number % 7 == 3)

    async def work() -> None:
        for one in WORK:
            await asyncio.wait_for(one(place), SECONDS)

    asyncio.set_event_loop(loop)  # the child watchers of older versions go by it
    loop.run_until_complete(work())
    asyncio.set_event_loop(None)
    ENDS[number % len(ENDS)](loop)


def stray_errors() -> list[str]:
    """A list that fills with the exceptions that destructors raise: a forgotten loop must end without one."""
    found: list[str] = []

    def note(stray: sys.UnraisableHookArgs) -> None:
        found.append(f"{stray.err_msg or 'raised in'} {stray.object!r}: {stray.exc_value!r}")

    sys.unraisablehook = note
    return found


def soak(cycles: int, factory: support.LoopFactory, place: Place) -> list[str]:
    """Cycles come in rounds that are all alike: one for each way to end and to debug. Samples lie between rounds."""
    a_round = len(ENDS) * 7
    rounds = max(5, round(cycles / a_round))
    samples = []
    for number in range(rounds * a_round):
        cycle(number, factory, place)
        if (number + 1) % a_round == 0:
            samples.append(Sample.take(number + 1))
            print(samples[-1], flush=True)
    return leaks(samples[1:])


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--cycles", type=int, default=500)
    parser.add_argument("--loop", default="erlang", help="erlang, asyncio or module:factory")
    given = parser.parse_args()
    without_thread_caches()
    # Leaving things open is what half of the ends are about, and being slow is no leak.
    warnings.simplefilter("ignore", ResourceWarning)
    logging.getLogger("asyncio").setLevel(logging.CRITICAL + 1)
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="soak-") as directory:
        strays = stray_errors()
        found = soak(given.cycles, support.factory_of(given.loop), Place(Path(directory)))
        found += sorted(set(strays))
    print(
        f"{time.monotonic() - began:.0f} s on {given.loop}:", "; ".join(found) or "nothing leaked"
    )
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
