"""Arrays and tables as terms, for data_SUITE. numpy and pyarrow are the node's environment's."""

from __future__ import annotations

from typing import Any

import erlang.data
from erlang import Channel


def same(term: Any) -> Any:
    """There and back, through numpy."""
    return erlang.data.from_array(erlang.data.to_array(term))


def same_table(term: Any) -> Any:
    return erlang.data.from_arrow(erlang.data.to_arrow(term))


def items(term: Any) -> Any:
    """As Python's own numbers, in lists."""
    return erlang.data.to_array(term).tolist()


@erlang.data.arrays
async def doubled(values: Any) -> Any:
    return values * 2


@erlang.data.arrays
def table(rows: int) -> Any:
    import pyarrow

    return pyarrow.table({"n": list(range(rows)), "name": [f"row {n}" for n in range(rows)]})


@erlang.data.arrays
def rows_of(frame: Any) -> Any:
    return frame.to_pylist()


@erlang.data.arrays
def rows(values: Any) -> Any:
    yield from values


@erlang.data.arrays
async def rows_later(values: Any) -> Any:
    for row in values:
        yield row


def register() -> None:
    erlang.data.register()


def nested(count: int) -> Any:
    import numpy

    return {"values": [numpy.arange(count)], "text": numpy.array(["a"])}


def into(channel: Any, count: int) -> None:
    import numpy

    with Channel(channel) as ch:
        for each in range(count):
            ch.send(numpy.full(3, each, "uint8"))
