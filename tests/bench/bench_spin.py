"""A call that is nothing but Python: half a millisecond or so of the interpreter's own loop."""

from __future__ import annotations


def spin(count: int) -> int:
    total = 0
    for i in range(count):
        total += i
    return total
