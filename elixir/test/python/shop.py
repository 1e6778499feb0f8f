"""What the tests call."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import erlang
from erlang.channel import Channel


def doubled(ref: Any) -> str:
    with Channel(ref) as channel:
        for number in channel:
            channel.send(2 * number)
    return "done"


def nothing() -> dict[str, Any]:
    return {"inside": [None], "kept": erlang.Atom("some_atom")}


def names(**kwargs: Any) -> list[str]:
    return sorted(kwargs)


def counted(limit: int) -> Iterator[int]:
    for number in range(limit):
        yield number
    raise LookupError("no more")


LOGS: dict[int, list[str]] = {}


def new_log() -> int:
    number = len(LOGS)
    LOGS[number] = []
    return number


def noted(log: int) -> Iterator[int]:
    try:
        for number in range(1000):
            yield number
    finally:
        LOGS[log].append("closed")


def noted_in(log: int) -> list[str]:
    return LOGS[log]
