"""The Python side of the benchmark of streams."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator


def count(number: int) -> Iterator[int]:
    yield from range(number)


async def acount(number: int) -> AsyncIterator[int]:
    for i in range(number):
        yield i


def memory() -> float:
    """Resident, in MB."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096 / 1e6
