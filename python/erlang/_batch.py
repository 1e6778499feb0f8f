"""The node's half of `py_batch`: a function of a list of items, and what stands at each item's place in its result.

    py_batch ── py:call ──▶ run(module, function, items) ──▶ function(items)
       ◀── ([result, …], [(index, ('python', Type, Message, Traceback)), …]) ── an exception at a place is that item's alone
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Sequence
from typing import Any

from erlang import _backend
from erlang.exceptions import BatchError
from erlang.process import _reason_of

__all__ = ["run"]

Outcome = tuple[list[Any], list[tuple[int, Any]]]


def run(module: str, function: str, items: list[Any]) -> Outcome | Awaitable[Outcome]:
    """The results of one batch. Raises: what the function raises, which is told every caller; BatchError."""
    value = _backend.native.resolve(module, function)(items)
    if inspect.isawaitable(value):
        return _later(value, len(items))
    return _outcome(value, len(items))


async def _later(value: Awaitable[Any], count: int) -> Outcome:
    return _outcome(await value, count)


def _outcome(value: Any, count: int) -> Outcome:
    results = _as_list(value)
    if len(results) != count:
        raise BatchError(f"the function returned {len(results)} results for {count} items")
    failed: list[tuple[int, Any]] = []
    for index, result in enumerate(results):
        if isinstance(result, BaseException):
            failed.append((index, _reason_of(result)))
            results[index] = None
    return results, failed


def _as_list(value: Any) -> list[Any]:
    """A list of our own: of an array its numbers as Python's, or its rows."""
    if getattr(value, "ndim", 0) == 1 and hasattr(value, "tolist"):
        value = value.tolist()
    elif getattr(value, "ndim", 0) > 1:
        value = list(value)
    if isinstance(value, Sequence) and not isinstance(value, (str, bytes, bytearray)):
        return list(value)
    raise BatchError(f"the function returned a {type(value).__name__}, no list of results")
