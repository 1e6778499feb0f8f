"""What the fault scripts have a node run."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import signal
import threading
import time

import erlang

_with_gil = ctypes.PyDLL(None)  # PyDLL, unlike CDLL, keeps the GIL while the function runs
_kept: list[bytearray] = []
_open: list[int] = []


def ready() -> str:
    return "ready"


def same(value: object) -> object:
    return value


def nap(seconds: float) -> float:
    """Sleep in C, without the GIL."""
    time.sleep(seconds)
    return seconds


def hold(data: bytes, seconds: float) -> str:
    """Have much in memory for a while."""
    time.sleep(seconds)
    return "held"


def wait(seconds: float) -> float:
    """Wait for what nobody does. libfaketime breaks time.sleep, but not this."""
    threading.Event().wait(seconds)
    return seconds


async def nap_async(seconds: float) -> float:
    await asyncio.sleep(seconds)
    return seconds


def spin(seconds: float) -> float:
    """Run bytecode."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pass
    return seconds


def hog(seconds: float) -> float:
    """Sleep in C and keep the GIL."""
    _with_gil.usleep(int(seconds * 1_000_000))
    return seconds


def note(path: str, text: str, seconds: float = 0.0) -> str:
    """Leave a line in a file, so that what ran twice is seen."""
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(descriptor, f"{text}\n".encode())
    finally:
        os.close(descriptor)
    time.sleep(seconds)
    return text


def work(number: int) -> tuple[int, str | None]:
    """One call of tests/faults/chaos: says that it runs, and takes its time."""
    note(os.environ["CHAOS_RUNS"], str(number), 0.05)
    return number, erlang.node()


def size(value: bytes | str) -> int:
    return len(value)


def zeros(length: int) -> bytes:
    return bytes(length)


def eat(megabytes: int) -> int:
    """Take memory for good, and use it."""
    for _ in range(megabytes):
        _kept.append(bytearray(b"x" * (1 << 20)))
    return len(_kept)


def take_descriptors() -> int:
    """Open files until no more can be."""
    with contextlib.suppress(OSError):
        while True:
            _open.append(os.open(os.devnull, os.O_RDONLY))
    return len(_open)


def give_descriptors() -> None:
    while _open:
        os.close(_open.pop())


def crash() -> None:
    """Read through a null pointer."""
    ctypes.string_at(0)


def leave(code: int) -> None:
    os._exit(code)


def fork_and_return() -> int:
    """Go on twice."""
    return os.fork()


def fork_and_sleep(seconds: float) -> int:
    """Leave a child behind that does nothing."""
    child = os.fork()
    if child == 0:
        time.sleep(seconds)
        os._exit(0)
    return child


def set_handler() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
