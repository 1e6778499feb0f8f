"""Generators that the stream suite consumes."""

import asyncio
import threading
import time

import erlang

EVENTS = []  # what generators say of themselves
GATES = {}


def gate(name):
    return GATES.setdefault(name, threading.Event())


def open_gate(name):
    gate(name).set()


def events():
    return list(EVENTS)


def count(n):
    for i in range(n):
        yield i


async def acount(n):
    for i in range(n):
        yield i
        if i % 3 == 0:
            await asyncio.sleep(0)


async def promised(n):
    await asyncio.sleep(0)
    return range(n)


def a_list(items):
    return items


def a_number():
    return 7


class Pages:
    """Something that can only be asynchronously iterated over."""

    def __init__(self, n):
        self.left = n

    def __aiter__(self):
        return self

    async def __anext__(self):
        if not self.left:
            raise StopAsyncIteration
        self.left -= 1
        await asyncio.sleep(0.001)
        return self.left


def keywords(*, first, last):
    return range(first, last)


def noted(name):
    """Endless; says how far it was stepped and when it was closed."""
    i = 0
    try:
        while True:
            EVENTS.append((name, i))
            yield i
            i += 1
    finally:
        EVENTS.append((name, "closed"))


async def anoted(name):
    i = 0
    try:
        while True:
            EVENTS.append((name, i))
            yield i
            i += 1
    finally:
        await asyncio.sleep(0)
        EVENTS.append((name, "closed"))


def blocked(name):
    """Yields one item, then waits for its gate in C."""
    try:
        yield "first"
        gate(name).wait()
        yield "second"
    finally:
        EVENTS.append((name, "closed"))


def toil():
    """Computes for a moment for each item."""
    while True:
        yield sum(range(30000))


async def atoil():
    """The same, and never waits."""
    while True:
        yield sum(range(30000))


def burst(name):
    """Two items at once, then none."""
    yield 1
    yield 2
    gate(name).wait()


async def aburst(name):
    yield 1
    yield 2
    await asyncio.Event().wait()


async def ablocked(name):
    try:
        yield "first"
        await asyncio.Event().wait()
    finally:
        EVENTS.append((name, "closed"))


def spinning(name):
    """Yields one item, then computes for ever."""
    try:
        yield "first"
        while True:
            pass
    finally:
        EVENTS.append((name, "closed"))


def failing(n):
    yield from range(n)
    raise ValueError("no more of that")


async def afailing(n):
    for i in range(n):
        yield i
    raise ValueError("no more of that")


def unsendable():
    yield 1
    yield 2
    yield object()
    yield 4


def echo():
    """Answers what it is sent; a ValueError thrown in is answered too."""
    got = "ready"
    while True:
        try:
            got = yield got
        except ValueError as error:
            got = ("caught", str(error))


async def aecho():
    got = "ready"
    while True:
        try:
            got = yield got
        except ValueError as error:
            got = ("caught", str(error))


def trickle(n, seconds):
    for i in range(n):
        yield i
        time.sleep(seconds)


def large(n, size):
    data = bytes(size)
    for _ in range(n):
        EVENTS.append("large")
        yield data


def tracked():
    yield threading.current_thread().name
    yield erlang.call("where")


def refuses():
    raise KeyError("not today")


def streams():
    from erlang import _streams

    return _streams.count()


def rss():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096


def drain(source, args, demand=4):
    return list(erlang.stream(source, *args, demand=demand))


async def adrain(source, args, demand=4):
    return [item async for item in erlang.stream(source, *args, demand=demand)]


def first(source, count, pause=0.0):
    """The first so many items, and what is heard of the rest: nothing."""
    items = []
    for item in erlang.stream(source, demand=4):
        items.append(item)
        time.sleep(pause)
        if len(items) == count:
            break
    return items


async def afirst(source, count):
    items = []
    async for item in erlang.stream(source, demand=4):
        items.append(item)
        if len(items) == count:
            break
    return items


def until_error(source):
    items = []
    try:
        for item in erlang.stream(source, demand=4):
            items.append(item)
    except erlang.ErlangError as error:
        return items, type(error).__name__, error.kind, error.reason
    return items


def waits(source):
    try:
        with erlang.stream(source, timeout=0.05) as items:
            return next(items)
    except TimeoutError:
        return "late"


def wait_for_item(source):
    return next(erlang.stream(source))
