"""What the end-to-end suites call: functions that sleep, spin and wedge, and say what becomes of them.

`told` arguments are pids of the test: it gets {probe, What} when something happens here.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import threading
import time
from collections.abc import Callable
from typing import Any

import erlang

_libc_with_gil = ctypes.PyDLL(None)  # PyDLL, unlike CDLL, keeps the GIL while the function runs
_seen: list[Any] = []


class Odd(Exception):
    """An exception of a module, so that its type's name has a dot."""


class Vocal(str):
    """Part of a dotted name."""

    class Inner:
        @staticmethod
        def shout(text: str) -> str:
            return text.upper()


def tell(told: Any, what: Any) -> None:
    """Send {probe, What} to a process of the test."""
    erlang.send(told, (erlang.Atom("probe"), what))


def identity(value: Any) -> Any:
    return value


def keywords(*args: Any, **kwargs: Any) -> Any:
    return [list(args), kwargs]


def type_of(value: Any) -> str:
    return type(value).__name__


def fail(message: str) -> None:
    raise Odd(message)


def unencodable() -> Any:
    return {"lock": threading.Lock()}


async def fail_later(message: str) -> None:
    await asyncio.sleep(0)
    raise Odd(message)


def see(what: Any) -> None:
    """Remember something for `seen`."""
    _seen.append(what)


def seen() -> list[Any]:
    return list(_seen)


def forget() -> None:
    _seen.clear()


def nap(seconds: float) -> float:
    """Sleep in C, without the GIL."""
    time.sleep(seconds)
    return seconds


async def nap_async(seconds: float) -> float:
    await asyncio.sleep(seconds)
    return seconds


def spin(seconds: float) -> float:
    """Stay in the interpreter's own loop."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pass
    return seconds


def hold_gil(told: Any, seconds: float) -> float:
    """Sleep in C and keep the GIL, so that no other Python code runs."""
    tell(told, "holding")
    time.sleep(0.02)  # lets that message go
    _libc_with_gil.usleep(int(seconds * 1_000_000))
    return seconds


def hold_gil_silently(seconds: float) -> float:
    _libc_with_gil.usleep(int(seconds * 1_000_000))
    return seconds


def _watched(told: Any, name: Any, body: Callable[[], Any]) -> Any:
    tell(told, ("begun", name))
    try:
        value = body()
    except BaseException as error:
        tell(told, (type(error).__name__, name))
        raise
    tell(told, ("done", name))
    return value


def nap_watched(told: Any, name: Any, seconds: float) -> Any:
    return _watched(told, name, lambda: nap(seconds))


def spin_watched(told: Any, name: Any, seconds: float) -> Any:
    return _watched(told, name, lambda: spin(seconds))


async def nap_async_watched(told: Any, name: Any, seconds: float) -> Any:
    tell(told, ("begun", name))
    try:
        await asyncio.sleep(seconds)
    except BaseException as error:
        tell(told, (type(error).__name__, name))
        raise
    tell(told, ("done", name))
    return seconds


def stubborn(told: Any, seconds: float) -> str:
    """Swallow whatever is raised in here, for so long."""
    tell(told, "stubborn")
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            spin(end - time.monotonic())
        except BaseException:
            pass
    return "not impressed"


class Canary:
    """Tells a process that it was freed."""

    def __init__(self, told: Any) -> None:
        self.told = told

    def __del__(self) -> None:
        tell(self.told, "freed")


def threads() -> int:
    return len(os.listdir("/proc/self/task"))


def big(size: int) -> bytes:
    return b"x" * size


def nested(depth: int) -> Any:
    value: Any = []
    for _ in range(depth):
        value = [value]
    return value


class Counter(erlang.GenServer):
    """A server that counts, and ends as it is told."""

    def init(self, start: int = 0, told: Any = None) -> None:
        self.count = start
        self.told = told

    def handle_call(self, request: Any, sender: Any) -> Any:
        match request:
            case "increment":
                self.count += 1
                return self.count
            case ("later", seconds):
                asyncio.run_coroutine_threadsafe(self._later(sender, seconds), _loop())
                return erlang.NO_REPLY
            case ("crash", message):
                raise Odd(message)
            case ("stop", reason):
                raise erlang.Exit(reason)
            case other:
                return (erlang.Atom("unknown"), other)

    async def _later(self, sender: Any, seconds: float) -> None:
        await asyncio.sleep(seconds)
        erlang.reply(sender, "late")

    def handle_cast(self, request: Any) -> None:
        self.count += request

    def handle_info(self, message: Any) -> None:
        if self.told is not None:
            tell(self.told, ("info", message))


def _loop() -> asyncio.AbstractEventLoop:
    from erlang import _native

    loop = _native.event_loop()
    assert loop is not None
    return loop


def start_counter(start: int, told: Any, name: Any = None) -> Any:
    return Counter.start(start, told, name=name)


async def watch(told: Any, target: Any) -> Any:
    """As a process of the node: monitor a process, tell when it is watched and how it ended."""
    async with erlang.Process() as process:
        process.monitor(target)
        tell(told, "watching")
        message = await process.receive(lambda m: m[0] == "DOWN")
        tell(told, (message[0], message[3], message[4]))
        return message[4]


async def join(told: Any, target: Any, trap: bool) -> None:
    """As a process of the node: link to a process and wait."""
    async with erlang.Process(trap_exit=trap) as process:
        process.link(target)
        tell(told, ("linked", process.pid))
        message = await process.receive()
        tell(told, message)
