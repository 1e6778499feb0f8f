#!/usr/bin/env python3
"""How quick is an event loop here? Callbacks, timers, tasks and the way from a ready descriptor to its callback.

    PYTHONPATH=python python3 examples/loop/benchmark.py            ErlangEventLoop beside the standard loop
    ... benchmark.py --only timers                                  only what has "timers" in its name
    ... benchmark.py --loop uvloop:new_event_loop                   another loop beside the standard one
    ... benchmark.py --loop asyncio:new_event_loop                  what two equal loops differ by, on this machine

The loops take turns, each measurement on a new loop, and a figure is the median of the rounds. Rates count processor
time that other programs took as the loop's, so compare only figures of one run. The last column tells how many times
better than the standard loop the other one is.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import importlib
import socket
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterable

Loop = asyncio.AbstractEventLoop
Factory = Callable[[], Loop]


class Rate:
    """Operations a second; more is better."""

    @staticmethod
    def better(ours: float, theirs: float) -> float:
        return ours / theirs

    @staticmethod
    def text(value: float) -> str:
        return f"{value:,.0f} /s"


class Late:
    """Microseconds; less is better."""

    @staticmethod
    def better(ours: float, theirs: float) -> float:
        return theirs / ours

    @staticmethod
    def text(value: float) -> str:
        return f"{value:,.1f} us"


Figures = dict[str, tuple[type[Rate] | type[Late], float]]


def quantiles(name: str, seconds: Iterable[float]) -> Figures:
    ordered = sorted(value * 1e6 for value in seconds)
    return {f"{name}, p{at}": (Late, ordered[len(ordered) * at // 100]) for at in (50, 99)}


# ---------------------------------------------------------------------------------------------------------------------
# What is measured


def callbacks(loop: Loop, seconds: float) -> Figures:
    """call_soon, a thousand callbacks for each turn of the loop."""
    called = 0
    end = time.perf_counter() + seconds

    def callback() -> None:
        nonlocal called
        called += 1

    def turn() -> None:
        for _ in range(1000):
            loop.call_soon(callback)
        if time.perf_counter() < end:
            loop.call_soon(turn)
        else:
            loop.call_soon(loop.stop)

    loop.call_soon(turn)
    start = time.perf_counter()
    loop.run_forever()
    return {"callbacks": (Rate, called / (time.perf_counter() - start))}


def turns(loop: Loop, seconds: float) -> Figures:
    """call_soon, one callback for each turn: what a turn itself costs."""
    turned = 0
    end = time.perf_counter() + seconds

    def turn() -> None:
        nonlocal turned
        turned += 1
        if turned % 1000 or time.perf_counter() < end:
            loop.call_soon(turn)
        else:
            loop.stop()

    loop.call_soon(turn)
    start = time.perf_counter()
    loop.run_forever()
    return {"turns of the loop": (Rate, turned / (time.perf_counter() - start))}


def timers(loop: Loop, seconds: float) -> Figures:
    """call_later: a thousand at a time that fire, and as many that are cancelled, as most time-outs are."""
    fired = cancelled = 0
    started = time.perf_counter()

    def callback() -> None:
        nonlocal fired
        fired += 1
        if fired % 1000 == 0:
            loop.stop()

    def create() -> None:
        for _ in range(1000):
            loop.call_later(1e-6, callback)

    def cancel() -> None:
        nonlocal cancelled
        for _ in range(1000):
            loop.call_later(60, callback).cancel()
        cancelled += 1000
        loop.call_soon(loop.stop)

    spent = {create: 0.0, cancel: 0.0}
    while time.perf_counter() - started < seconds:
        for work in (create, cancel):
            start = time.perf_counter()
            loop.call_soon(work)
            loop.run_forever()
            spent[work] += time.perf_counter() - start
    return {
        "timers made and fired": (Rate, fired / spent[create]),
        "timers made and cancelled": (Rate, cancelled / spent[cancel]),
    }


def lateness(loop: Loop, seconds: float) -> Figures:
    """How much later than asked for asyncio.sleep(0.001) ends."""
    late: list[float] = []

    async def main() -> None:
        end = time.perf_counter() + seconds
        while (start := time.perf_counter()) < end:
            await asyncio.sleep(0.001)
            late.append(time.perf_counter() - start - 0.001)

    loop.run_until_complete(main())
    return quantiles("timers of 1 ms, late by", late)


def tasks(loop: Loop, seconds: float) -> Figures:
    """Tasks that give way once and end, a hundred at a time."""
    done = 0

    async def task() -> None:
        await asyncio.sleep(0)

    async def main() -> None:
        nonlocal done
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            await asyncio.gather(*(task() for _ in range(100)))
            done += 100

    start = time.perf_counter()
    loop.run_until_complete(main())
    return {"tasks": (Rate, done / (time.perf_counter() - start))}


def readiness(loop: Loop, seconds: float) -> Figures:
    """From a thread's write into a socket to the reader's callback, while the loop has nothing else to do."""
    took: list[float] = []
    sent = [0.0]
    answered = threading.Semaphore(0)
    near, far = socket.socketpair()

    def readable() -> None:
        arrived = time.perf_counter()
        near.recv(1)
        took.append(arrived - sent[0])
        answered.release()

    def write() -> None:
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            time.sleep(0.0005)  # so that the loop sleeps, too
            sent[0] = time.perf_counter()
            far.send(b"x")
            answered.acquire()
        loop.call_soon_threadsafe(loop.stop)

    with near, far:
        near.setblocking(False)
        loop.add_reader(near, readable)
        writer = threading.Thread(target=write)
        loop.call_soon(writer.start)
        loop.run_forever()
        writer.join()
        loop.remove_reader(near)
    return quantiles("readable to callback", took)


def events(loop: Loop, seconds: float) -> Figures:
    """Ready descriptors a second: a byte goes to and fro between two sockets that the loop watches."""
    count = 0
    end = time.perf_counter() + seconds
    near, far = socket.socketpair()

    def readable(sock: socket.socket) -> None:
        nonlocal count
        sock.send(sock.recv(1))
        count += 1
        if count % 100 == 0 and time.perf_counter() > end:
            loop.stop()

    with near, far:
        for sock in (near, far):
            sock.setblocking(False)
            loop.add_reader(sock, readable, sock)
        far.send(b"x")
        start = time.perf_counter()
        loop.run_forever()
        took = time.perf_counter() - start
        for sock in (near, far):
            loop.remove_reader(sock)
    return {"readable descriptors": (Rate, count / took)}


def wake_ups(loop: Loop, seconds: float) -> Figures:
    """From a thread's call_soon_threadsafe to the callback, while the loop has nothing else to do."""
    took: list[float] = []
    answered = threading.Semaphore(0)

    def callback(sent: float) -> None:
        took.append(time.perf_counter() - sent)
        answered.release()

    def call() -> None:
        end = time.perf_counter() + seconds
        while time.perf_counter() < end:
            time.sleep(0.0005)
            loop.call_soon_threadsafe(callback, time.perf_counter())
            answered.acquire()
        loop.call_soon_threadsafe(loop.stop)

    caller = threading.Thread(target=call)
    loop.call_soon(caller.start)
    loop.run_forever()
    caller.join()
    return quantiles("call_soon_threadsafe to callback", took)


MEASUREMENTS = {
    "callbacks": callbacks,
    "turns": turns,
    "timers": timers,
    "timers late": lateness,
    "tasks": tasks,
    "readable": readiness,
    "readable descriptors": events,
    "threadsafe": wake_ups,
}


# ---------------------------------------------------------------------------------------------------------------------
# The program


def once(factory: Factory, name: str, seconds: float) -> Figures:
    loop = factory()
    asyncio.set_event_loop(loop)
    try:
        return MEASUREMENTS[name](loop, seconds)
    finally:
        asyncio.set_event_loop(None)
        loop.close()


def factory_of(name: str) -> Factory:
    """Finds what makes loops by its name, MODULE:FACTORY."""
    module, _, attribute = name.partition(":")
    try:
        factory: Factory = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        hint = "; is python/ in PYTHONPATH?" if module == "erlang_loop" else ""
        raise argparse.ArgumentTypeError(f"{name}: {error}{hint}") from error
    return factory


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measures an event loop beside the standard one")
    parser.add_argument(
        "--loop",
        type=factory_of,
        default="erlang_loop:new_event_loop",
        metavar="MODULE:FACTORY",
        help="what makes the loop to measure (default: %(default)s)",
    )
    parser.add_argument("--only", metavar="WORD", default="", help=f"of {', '.join(MEASUREMENTS)}")
    parser.add_argument(
        "--seconds", type=float, default=0.1, help="for one measurement (default: %(default)s)"
    )
    parser.add_argument(
        "--rounds", type=int, default=5, help="of each measurement (default: %(default)s)"
    )
    chosen = parser.parse_args()
    if not any(chosen.only in name for name in MEASUREMENTS):
        parser.error(f"--only {chosen.only}: there is no such measurement")
    if chosen.seconds <= 0 or chosen.rounds < 1:
        parser.error("--seconds and --rounds have to be more than nothing")
    return chosen


def main() -> None:
    chosen = options()
    with contextlib.closing(chosen.loop()) as loop:
        kind = type(loop)
    print(f"Python {sys.version.split()[0]}, {kind.__module__}.{kind.__qualname__}")
    print(f"{'':<38} {'standard loop':>16} {'this loop':>16} {'times better':>14}")
    for name in (name for name in MEASUREMENTS if chosen.only in name):
        theirs, ours = [], []
        for _ in range(chosen.rounds):
            theirs.append(once(asyncio.SelectorEventLoop, name, chosen.seconds))
            ours.append(once(chosen.loop, name, chosen.seconds))
        for figure, (kind_of, _) in ours[0].items():
            standard = statistics.median(one[figure][1] for one in theirs)
            this = statistics.median(one[figure][1] for one in ours)
            print(
                f"{figure:<38} {kind_of.text(standard):>16} {kind_of.text(this):>16} "
                f"{kind_of.better(this, standard):>14.2f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
