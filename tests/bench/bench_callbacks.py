"""The Python side of the benchmarks of calls from Python to Erlang: of `bench_echo`, which returns its argument."""

from __future__ import annotations

import asyncio
import threading
import time

import erlang


def one_after_another(count: int) -> list[int]:
    """Nanoseconds of each call."""
    times = []
    for _ in range(count):
        start = time.perf_counter_ns()
        erlang.call("bench_echo", 16.0)
        times.append(time.perf_counter_ns() - start)
    return times


def threads(count: int, seconds: float) -> float:
    """Calls a second of so many threads, each of which calls again as soon as it is answered."""
    counts: list[int] = []
    times: list[float] = []
    ready = threading.Barrier(count, lambda: times.append(time.perf_counter()))

    def work() -> None:
        erlang.call("bench_echo", 16.0)
        ready.wait()
        end = times[0] + seconds
        calls = 0
        while time.perf_counter() < end:
            erlang.call("bench_echo", 16.0)
            calls += 1
        counts.append(calls)

    workers = [threading.Thread(target=work) for _ in range(count)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return sum(counts) / (time.perf_counter() - times[0])


async def gather(count: int, seconds: float) -> float:
    """Calls a second of this loop, so many at once and again when all are answered."""
    calls = 0
    start = time.perf_counter()
    while time.perf_counter() - start < seconds:
        await asyncio.gather(*(erlang.async_call("bench_echo", 16.0) for _ in range(count)))
        calls += count
    return calls / (time.perf_counter() - start)


def gather_elsewhere(count: int, seconds: float) -> float:
    """The same on a loop that is not the node's."""
    return asyncio.run(gather(count, seconds))
