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
