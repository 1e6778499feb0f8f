"""What the channel suite runs in Python."""

from __future__ import annotations

import asyncio
import hashlib
import threading
import time
from typing import Any

import erlang
from erlang.channel import ByteChannel, ByteChannelClosed, Channel, ChannelClosed


def tell(told: Any, what: Any) -> None:
    erlang.send(told, (erlang.Atom("probe"), what))


def collect(ref: Any) -> list[Any]:
    return list(Channel(ref))


async def collect_async(ref: Any) -> list[Any]:
    return [message async for message in Channel(ref)]


def collect_elsewhere(ref: Any) -> list[Any]:
    """In a coroutine on a loop that is not the node's."""
    return asyncio.run(collect_async(ref))


def receive(ref: Any, count: int = 1, timeout: float | None = None) -> list[Any]:
    channel = Channel(ref)
    return [channel.receive(timeout=timeout) for _ in range(count)]


def receive_slowly(ref: Any, seconds: float) -> list[Any]:
    messages = []
    for message in Channel(ref):
        messages.append(message)
        time.sleep(seconds)
    return messages


def try_receive(ref: Any) -> tuple[Any, Any]:
    channel = Channel(ref)
    return channel.try_receive(), channel.try_receive("empty")


def tell_each(told: Any, ref: Any) -> str:
    tell(told, "begun")
    try:
        for message in Channel(ref):
            tell(told, message)
    except BaseException as error:
        tell(told, type(error).__name__)
        raise
    return "ended"


async def tell_each_async(told: Any, ref: Any) -> str:
    tell(told, "begun")
    try:
        async for message in Channel(ref):
            tell(told, message)
    except BaseException as error:
        tell(told, type(error).__name__)
        raise
    return "ended"


async def consumers(ref: Any, threads: int, coroutines: int) -> list[list[Any]]:
    """What each of so many threads and coroutines receives from one channel until it closes."""
    by_thread: list[list[Any]] = [[] for _ in range(threads)]

    def consume(messages: list[Any]) -> None:
        messages.extend(Channel(ref))

    running = [threading.Thread(target=consume, args=(messages,)) for messages in by_thread]
    for thread in running:
        thread.start()
    by_coroutine = await asyncio.gather(*(collect_async(ref) for _ in range(coroutines)))
    for thread in running:
        await asyncio.get_running_loop().run_in_executor(None, thread.join)
    return by_thread + list(by_coroutine)


async def count(ref: Any, threads: int, coroutines: int) -> int:
    """How many messages so many threads and coroutines receive until the channel closes."""

    def consume() -> int:
        return sum(1 for _ in Channel(ref))

    async def consume_async() -> int:
        return sum([1 async for _ in Channel(ref)])

    in_threads = [asyncio.to_thread(consume) for _ in range(threads)]
    return sum(await asyncio.gather(*in_threads, *(consume_async() for _ in range(coroutines))))


def break_off(ref: Any, after: int) -> list[Any]:
    """Leaves the loop with messages decoded and not handed out."""
    messages = []
    for message in Channel(ref):
        messages.append(message)
        if len(messages) == after:
            break
    return messages


async def lose_a_waiter(ref: Any) -> Any:
    """One of two who wait gives up in the moment its message comes: the other gets it."""
    channel = Channel(ref)
    first = asyncio.create_task(channel.async_receive())
    second = asyncio.create_task(channel.async_receive())
    await asyncio.sleep(0.05)
    erlang.send(ref, "message")
    first.cancel()
    return await asyncio.wait_for(second, 5)


def send_all(ref: Any, messages: list[Any]) -> int:
    channel = Channel(ref)
    for message in messages:
        channel.send(message)
    return len(messages)


def send_numbers(ref: Any, count: int) -> int:
    channel = Channel(ref)
    for number in range(count):
        channel.send(number)
    return count


async def send_numbers_async(ref: Any, count: int) -> int:
    channel = Channel(ref)
    for number in range(count):
        await channel.async_send(number)
    return count


def fill(ref: Any, message: Any) -> tuple[int, str]:
    """Sends without waiting until there is no room, and says what a bounded wait then raises."""
    channel = Channel(ref)
    count = 0
    while channel.try_send(message):
        count += 1
    try:
        channel.send(message, timeout=0.05)
    except TimeoutError:
        return count, "TimeoutError"
    return count, "sent"


def close(ref: Any) -> str:
    with Channel(ref) as channel:
        channel.close()
    try:
        channel.send(1)
    except ChannelClosed as error:
        return str(error)
    return "open"


async def echo(ref: Any) -> None:
    async with Channel(ref) as channel:
        async for message in channel:
            await channel.async_send(message)


def echo_bytes(ref: Any) -> list[str]:
    kinds = []
    with ByteChannel(ref) as channel:
        for data in channel:
            kinds.append(type(data).__name__)
            channel.send_bytes(data)
    return kinds


def described(views: list[memoryview]) -> list[tuple[str, bool, bytes]]:
    return [(type(v).__name__, v.readonly, hashlib.sha256(v).digest()) for v in views]


def views(ref: Any) -> list[tuple[str, bool, bytes]]:
    channel = ByteChannel(ref)
    held = []
    try:
        while True:
            view = channel.try_receive_view()
            held.append(channel.receive_view(timeout=5) if view is None else view)
    except ByteChannelClosed:
        return described(held)


async def views_async(ref: Any) -> list[tuple[str, bool, bytes]]:
    channel = ByteChannel(ref)
    held = []
    try:
        while True:
            held.append(await channel.async_receive_view())
    except ByteChannelClosed:
        return described(held)


def count_bytes(ref: Any) -> int:
    return sum(len(data) for data in ByteChannel(ref))


async def tally(ref: Any, senders: int, threads: int, coroutines: int) -> list[int]:
    """How many messages (Sender, N, …) came from each, once every N from 0 came once, to a consumer behind the last."""
    seen = [bytearray() for _ in range(senders)]

    def note(message: Any, last: list[int]) -> None:
        sender, n, _ = message
        if n <= last[sender]:
            raise AssertionError(f"{n} of sender {sender} came behind {last[sender]}")
        last[sender] = n
        while len(seen[sender]) <= n:
            seen[sender].extend(bytes(100_000))
        seen[sender][n] += 1

    def consume() -> None:
        last = [-1] * senders
        for message in Channel(ref):
            note(message, last)

    async def consume_async() -> None:
        last = [-1] * senders
        async for message in Channel(ref):
            note(message, last)

    in_threads = [asyncio.to_thread(consume) for _ in range(threads)]
    await asyncio.gather(*in_threads, *(consume_async() for _ in range(coroutines)))
    counts = [each.count(1) for each in seen]
    for sender, (each, count) in enumerate(zip(seen, counts)):
        if each != bytes([1]) * count + bytes(len(each) - count):
            raise AssertionError(f"a message of sender {sender} is lost or doubled")
    return counts


def receive_slowly_then_send(ref: Any, seconds: float) -> str:
    Channel(ref).send(receive_slowly(ref, seconds))
    return "done"
