"""The Python side of the channel benchmarks."""

from __future__ import annotations

from typing import Any

import erlang
from erlang.channel import ByteChannel, Channel


def consume(ref: Any) -> int:
    count = 0
    for _ in Channel(ref):
        count += 1
    return count


async def consume_async(ref: Any) -> int:
    count = 0
    async for _ in Channel(ref):
        count += 1
    return count


def consume_bytes(ref: Any) -> int:
    count = 0
    for _ in ByteChannel(ref):
        count += 1
    return count


def produce(ref: Any, count: int, size: int) -> int:
    channel = Channel(ref)
    message = b"x" * size
    for _ in range(count):
        channel.send(message)
    return count


def echo(ref: Any) -> None:
    channel = Channel(ref)
    for message in channel:
        channel.send(message)


async def echo_async(ref: Any) -> None:
    channel = Channel(ref)
    async for message in channel:
        await channel.async_send(message)


def send(to: Any, count: int, size: int) -> int:
    message = b"x" * size
    for _ in range(count):
        erlang.send(to, message)
    return count
