"""The Python side of the benchmarks of shared state, beside `erlang.call` of a function that returns its argument."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import erlang

AT_ONCE = 100  # hits that are timed together: one is about as long as reading the clock


def call(count: int) -> list[float]:
    """Nanoseconds of each `erlang.call`."""
    return _each(count, lambda: erlang.call("bench_echo", 16.0))


def miss(count: int) -> list[float]:
    """Of each read that asks the store."""
    return _each(count, lambda: erlang.state_get("number", fresh=True))


def incr(count: int) -> list[float]:
    """Of each write, to a key that nobody has read."""
    return _each(count, lambda: erlang.state_incr("counter"))


def hit(count: int) -> list[float]:
    """Of a read that the cache answers, a number."""
    return _many(count, lambda: erlang.state_get("number"))


def hit_map(count: int) -> list[float]:
    """The same of a map of ten keys, which each reader is given anew."""
    return _many(count, lambda: erlang.state_get("map"))


def _each(count: int, ask: Callable[[], Any]) -> list[float]:
    times = []
    for _ in range(count):
        start = time.perf_counter_ns()
        ask()
        times.append(float(time.perf_counter_ns() - start))
    return times


def _many(count: int, ask: Callable[[], Any]) -> list[float]:
    ask()
    times = []
    for _ in range(count):
        start = time.perf_counter_ns()
        for _ in range(AT_ONCE):
            ask()
        times.append((time.perf_counter_ns() - start) / AT_ONCE)
    return times
