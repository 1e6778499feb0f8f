"""What objects_SUITE and contexts_SUITE call."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
from typing import Any

import erlang

_ended: list[str] = []
_alive = 0


class Counter:
    """Counts, knows how many of its kind there are, and on which thread each ends."""

    def __init__(self, value: int = 0, *, step: int = 1, slow: float = 0.0) -> None:
        global _alive
        _alive += 1
        self.value = value
        self.step = step
        self.slow = slow
        self._hidden = "hidden"

    def add(self, count: int = 1, *, times: int = 1) -> int:
        self.value += count * times * self.step
        return self.value

    async def add_later(self, count: int) -> int:
        await asyncio.sleep(0.01)
        return self.add(count)

    def child(self) -> Counter:
        return Counter(self.value)

    def nap(self, seconds: float) -> int:
        time.sleep(seconds)
        return self.value

    def fail(self) -> None:
        raise ValueError("as it was told to")

    def __call__(self, count: int) -> int:
        return self.add(count)

    def __del__(self) -> None:
        global _alive
        if self.slow:
            time.sleep(self.slow)
        _alive -= 1
        _ended.append(threading.current_thread().name)


class Heir(Counter):
    def double(self) -> int:
        return 2 * self.value


async def make_later(value: int) -> Counter:
    await asyncio.sleep(0.01)
    return Counter(value)


def value_of(counter: Counter) -> int:
    return counter.value


def values_in(nested: Any) -> list[int]:
    """Of all counters in a term."""
    if isinstance(nested, Counter):
        return [nested.value]
    if isinstance(nested, dict):
        nested = list(nested.values())
    if isinstance(nested, (list, tuple)):
        return [value for item in nested for value in values_in(item)]
    return []


def same(left: object, right: object) -> bool:
    return left is right


def alive() -> int:
    gc.collect()
    return _alive


def ended() -> list[str]:
    return _ended


def now() -> int:
    return 1


async def later() -> int:
    await asyncio.sleep(0)
    return 1


def thread() -> int:
    return threading.get_ident()


async def _relay(told: Any) -> None:
    while True:
        erlang.send(told, (erlang.Atom("relayed"), await erlang.process.receive()))


def relay(told: Any) -> Any:
    """A process that sends on what it is sent."""
    return erlang.spawn(_relay, told)


def select(connection: Any) -> Any:
    return connection.execute("select 1").fetchone()


def pair(owner: Any) -> Any:
    """Two references within a term; owned by who asks when no owner is given."""
    return {
        "first": erlang.reference(Counter(1), owner=owner),
        "more": [erlang.reference(Counter(2), lease=60)],
    }


def mine() -> Any:
    return erlang.reference(Counter(1))
