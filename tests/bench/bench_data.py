"""The Python side of the benchmark of arrays: the same bytes back, taken for nothing, for an array, for a table."""

from __future__ import annotations

from typing import Any

import numpy
import pyarrow

from erlang.data import from_array, from_arrow, to_array, to_arrow


def binary(data: Any) -> Any:
    return data


def array(term: Any) -> Any:
    return from_array(to_array(term))


def table(term: Any) -> Any:
    return from_arrow(to_arrow(term))


def items(values: Any) -> Any:
    """As lists, each number an object of its own."""
    return numpy.array(values).tolist()


def made_table(size: int) -> Any:
    return from_arrow(pyarrow.table({"x": numpy.full(size // 8, 1.5)}))
