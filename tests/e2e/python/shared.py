"""What the suite of shared state has a node do."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections.abc import Callable
from typing import Any

import erlang


def get(key: Any, default: Any = None, **options: Any) -> Any:
    return erlang.state_get(key, default, **options)


async def async_get(key: Any, default: Any = None, **options: Any) -> Any:
    return await erlang.async_state_get(key, default, **options)


def get_elsewhere(key: Any) -> Any:
    """In a loop that is not the node's."""
    return asyncio.run(erlang.async_state_get(key))


def all_verbs(store: str) -> list[Any]:
    """What each function answers, in order."""
    return [
        erlang.state_get("k", "nothing", store=store),
        erlang.state_put("k", [1, {"a": 2.5}], store=store),
        erlang.state_get("k", store=store),
        erlang.state_put_new("k", 3, store=store),
        erlang.state_put_new("n", 3, store=store),
        erlang.state_incr("n", store=store),
        erlang.state_incr("n", -1.5, store=store),
        erlang.state_cas("n", 2.5, "done", store=store),
        erlang.state_cas("n", 2.5, "again", store=store),
        erlang.state_cas("missing", None, 1, store=store),
        sorted(erlang.state_keys(store=store)),
        erlang.state_delete("k", store=store),
        erlang.state_delete("k", store=store),
        erlang.state_get("k", "gone", store=store),
        erlang.state_get("n", store=store),
    ]


async def all_verbs_async(store: str) -> list[Any]:
    return [
        await erlang.async_state_get("k", "nothing", store=store),
        await erlang.async_state_put("k", [1, {"a": 2.5}], store=store),
        await erlang.async_state_get("k", store=store),
        await erlang.async_state_put_new("k", 3, store=store),
        await erlang.async_state_put_new("n", 3, store=store),
        await erlang.async_state_incr("n", store=store),
        await erlang.async_state_incr("n", -1.5, store=store),
        await erlang.async_state_cas("n", 2.5, "done", store=store),
        await erlang.async_state_cas("n", 2.5, "again", store=store),
        await erlang.async_state_cas("missing", None, 1, store=store),
        sorted(await erlang.async_state_keys(store=store)),
        await erlang.async_state_delete("k", store=store),
        await erlang.async_state_delete("k", store=store),
        await erlang.async_state_get("k", "gone", store=store),
        await erlang.async_state_get("n", store=store),
    ]


def raised(what: str, *args: Any, **options: Any) -> Any:
    """How a function of the package fails: class, reason."""
    try:
        return "returned", getattr(erlang, what)(*args, **options)
    except erlang.ErlangError as error:
        return type(error).__name__, error.reason
    except Exception as error:
        return type(error).__name__, str(error)


async def get_on_the_loop(key: Any) -> Any:
    """The plain function in a coroutine: it works where nothing has to be asked."""
    return raised("state_get", key)


def hits(keys: list[Any], **options: Any) -> tuple[int, int]:
    """Hits and misses of one read of each key."""
    before = erlang.state_cache()
    for key in keys:
        erlang.state_get(key, **options)
    after = erlang.state_cache()
    return after["hits"] - before["hits"], after["misses"] - before["misses"]


def mutate(key: Any) -> Any:
    """What the next reader sees when one changes what he was given."""
    erlang.state_get(key).append("mine")
    first: list[Any] = erlang.state_get(key)
    first.append("mine")
    return erlang.state_get(key)


def distinct() -> list[Any]:
    """Keys that are equal to Python but not to Erlang."""
    keys: list[Any] = [1, 1.0, True, "a", erlang.Atom("a"), (1,), [1]]
    for index, key in enumerate(keys):
        erlang.state_put(key, index)
    return [[erlang.state_get(key) for key in keys] for _ in range(2)][1]


def aliases() -> list[Any]:
    """One key, written in two ways."""
    one, other = {"a": 1, "b": 2}, {"b": 2, "a": 1}
    seen = []
    for value in range(3):
        erlang.state_put(one, value)
        seen += [erlang.state_get(one), erlang.state_get(other)]
    return seen


# --- many at once ----------------------------------------------------------------------------------


def _together(count: int, work: Callable[[int], None]) -> None:
    failures: list[BaseException] = []

    def run(index: int) -> None:
        try:
            work(index)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=run, args=(index,)) for index in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]


def add(threads: int, each: int) -> None:
    """Adds by incr and by cas, in threads and in coroutines."""

    def by_cas() -> None:
        while True:
            seen = erlang.state_get("cas")
            if erlang.state_cas("cas", seen, seen + 1):
                return

    async def coroutines() -> None:
        async def one() -> None:
            for _ in range(each):
                await erlang.async_state_incr("incr")

        await asyncio.gather(*(one() for _ in range(2)))

    def work(index: int) -> None:
        if index == 0:
            asyncio.run(coroutines())
            return
        for _ in range(each):
            erlang.state_incr("incr")
            by_cas()

    _together(threads + 1, work)


def own_writes(threads: int, each: int, name: str) -> int:
    """Counts reads that missed a write of this node which had returned."""
    written = [0]
    lock = threading.Lock()
    wrong = [0]

    def work(index: int) -> None:
        for _ in range(each):
            if index % 2:
                with lock:
                    erlang.state_put(name, written[0] + 1)
                    written[0] += 1
            else:
                least = written[0]
                if erlang.state_get(name, 0) < least:
                    wrong[0] += 1

    _together(threads, work)
    return wrong[0]


def hunt(keys: list[str], seconds: float, threads: int) -> list[Any]:
    """Reads of numbers that somebody counts up: those that went back."""
    until = time.monotonic() + seconds
    back: list[Any] = []

    def work(index: int) -> None:
        highest = dict.fromkeys(keys, 0)
        chance = random.Random(index)
        while time.monotonic() < until:
            key = chance.choice(keys)
            value = erlang.state_get(key, 0, fresh=chance.random() < 0.02)
            if value < highest[key]:
                back.append((key, highest[key], value))
            highest[key] = value

    _together(threads, work)
    return back


def read_all(keys: list[str]) -> list[Any]:
    return [erlang.state_get(key) for key in keys]


def keep_reading(key: str, seconds: float) -> list[Any]:
    """What is read while the connection comes and goes: values, and the names of exceptions."""
    until = time.monotonic() + seconds
    seen: list[Any] = []
    while time.monotonic() < until:
        try:
            value = erlang.state_get(key)
        except erlang.NoConnection:
            value = "NoConnection"
        if not seen or seen[-1] != value:
            seen.append(value)
        time.sleep(0.001)
    return seen


def read_in_background(key: str) -> None:
    """Reads at once, and again when the home node has gone; see `background`."""

    def work() -> None:
        until = time.monotonic() + 20
        results.append(erlang.state_get(key))
        while erlang.nodes() and time.monotonic() < until:
            time.sleep(0.01)
        time.sleep(0.1)
        results.append(raised("state_get", key))
        results.append(erlang.state_cache()["entries"])

    results.clear()
    threading.Thread(target=work, daemon=True).start()


results: list[Any] = []


def background() -> list[Any]:
    return results


# --- watching --------------------------------------------------------------------------------------


def watch(key: Any, count: int, pid: erlang.Pid) -> list[Any]:
    """So many changes of a key, as they come; the process is told when the watch is there."""
    with erlang.state_watch(key) as changes:
        erlang.send(pid, erlang.Atom("watching"))
        return [tuple(next(changes)) for _ in range(count)]


async def watch_async(count: int, pid: erlang.Pid) -> list[Any]:
    """The same, of every key."""
    seen: list[Any] = []
    async with erlang.state_watch() as changes:
        erlang.send(pid, erlang.Atom("watching"))
        async for change in changes:
            seen.append(tuple(change))
            if len(seen) == count:
                return seen
    return seen


async def watch_slowly(key: Any, pid: erlang.Pid, seconds: float) -> list[Any]:
    """What there is for one who comes late."""
    async with erlang.state_watch(key) as changes:
        erlang.send(pid, erlang.Atom("watching"))
        await asyncio.sleep(seconds)
        first = await changes.async_receive()
        try:
            async with asyncio.timeout(0.1):
                return [tuple(first), tuple(await changes.async_receive())]
        except TimeoutError:
            return [tuple(first)]


def watch_lost(key: Any, pid: erlang.Pid, store: str) -> str:
    with erlang.state_watch(key, store=store) as changes:
        erlang.send(pid, erlang.Atom("watching"))
        try:
            changes.receive(20)
        except Exception as error:
            return type(error).__name__
    return "changed"


def all_of(calls: list[tuple[str, list[Any]]]) -> None:
    for name, args in calls:
        getattr(erlang, name)(*args)


def raised_by_watch() -> tuple[str, str]:
    try:
        with erlang.state_watch("k"):
            return "returned", ""
    except Exception as error:
        return type(error).__name__, str(error)
