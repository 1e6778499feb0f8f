"""Functions for the suite of batches: each is given a list of items."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from typing import Any

sizes: list[int] = []
_lock = threading.Lock()
_running = [0, 0]  # now, at most
_gate = threading.Event()
cancelled: list[str] = []


def seen() -> list[int]:
    """The sizes of the batches since the last time."""
    result = sizes[:]
    sizes.clear()
    return result


def square(items: list[int]) -> list[int]:
    sizes.append(len(items))
    return [item * item for item in items]


async def square_async(items: list[int]) -> list[int]:
    sizes.append(len(items))
    await asyncio.sleep(0.001)
    return [item * item for item in items]


def same(items: list[Any]) -> list[Any]:
    return items


def kinds(items: list[Any]) -> list[str]:
    return [type(item).__name__ for item in items]


def slow(items: list[Any]) -> list[Any]:
    with _lock:
        _running[0] += 1
        _running[1] = max(_running)
    sizes.append(len(items))
    time.sleep(0.1)
    with _lock:
        _running[0] -= 1
    return items


def most_at_once() -> int:
    result = _running[1]
    _running[1] = 0
    return result


def gated(items: list[Any]) -> list[Any]:
    """Waits until `open_gate` is called."""
    sizes.append(len(items))
    try:
        _gate.wait(20)
    except BaseException as error:
        cancelled.append(type(error).__name__)
        raise
    return items


async def gated_async(items: list[Any]) -> list[Any]:
    sizes.append(len(items))
    try:
        await asyncio.sleep(20)
    except asyncio.CancelledError:
        cancelled.append("CancelledError")
        raise
    return items


def open_gate() -> None:
    _gate.set()


def close_gate() -> None:
    _gate.clear()


def were_cancelled() -> list[str]:
    result = cancelled[:]
    cancelled.clear()
    return result


def reciprocal(items: list[int]) -> list[Any]:
    """An exception at the place of each zero."""
    results: list[Any] = []
    for item in items:
        try:
            results.append(1 / item)
        except ZeroDivisionError as error:
            results.append(error)
    return results


def fails(items: list[Any]) -> list[Any]:
    raise LookupError(f"all {len(items)}")


def too_few(items: list[Any]) -> list[Any]:
    return items[1:]


def no_list(items: list[Any]) -> Any:
    return "abc"


def no_term(items: list[Any]) -> list[Any]:
    return [object() for _ in items]


def crash(items: list[Any]) -> list[Any]:
    os.kill(os.getpid(), signal.SIGKILL)
    return items


class Model:
    def predict(self, items: list[float]) -> tuple[float, ...]:
        return tuple(item + 0.5 for item in items)


model = Model()
