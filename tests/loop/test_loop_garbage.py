"""What the garbage collector sees of a loop: handles that wait are not shown to it one by one."""

from __future__ import annotations

import asyncio
import gc
import warnings
import weakref
from typing import Any

import pytest
from support import LoopFactory


class Holder:
    """Something that the loop's callbacks hold, and that holds the loop."""

    loop: Any
    kept: list[Any]


def abandon(new_loop: LoopFactory, keep: bool, run: bool) -> weakref.ref[Holder]:
    """Makes a loop that is never closed, with callbacks planned at every time; nobody holds it afterwards."""
    loop = new_loop()
    holder = Holder()
    holder.loop = loop
    planned: list[Any] = [loop.call_soon(lambda: holder), loop.call_later(100, lambda: holder)]

    async def main() -> None:
        planned.append(loop.call_later(100, lambda: holder))
        planned.append(loop.call_later(0, lambda: holder))
        planned.append(loop.call_soon(lambda: holder))
        loop.call_later(100, lambda: holder)  # nobody but the loop has this one
        await asyncio.sleep(0.001)

    if run:
        loop.run_until_complete(main())
    planned.append(loop.call_later(200, lambda: holder))
    planned.append(loop.call_soon(lambda: holder))
    holder.kept = planned if keep else []
    return weakref.ref(holder)


@pytest.mark.parametrize("run", [False, True], ids=["never-run", "run"])
@pytest.mark.parametrize("keep", [False, True], ids=["dropped", "kept"])
def test_a_loop_that_nobody_closed_is_collected_with_its_callbacks(
    loop_factory: LoopFactory, keep: bool, run: bool
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        held = abandon(loop_factory, keep, run)
        gc.collect()
        assert held() is None


def test_a_handle_that_is_kept_after_its_run_is_collected_with_a_cycle_through_it(
    loop_factory: LoopFactory,
) -> None:
    async def main() -> list[weakref.ref[Holder]]:
        loop = asyncio.get_running_loop()
        held = []
        for plan in (loop.call_soon, lambda *rest: loop.call_later(0, *rest)):
            holder = Holder()
            holder.kept = [plan(lambda one: None, holder)]
            held.append(weakref.ref(holder))
            cancelled = Holder()
            cancelled.kept = [plan(lambda one: None, cancelled)]
            cancelled.kept[0].cancel()
            held.append(weakref.ref(cancelled))
            del holder, cancelled
        await asyncio.sleep(0.01)
        return held

    loop = loop_factory()
    try:
        held = loop.run_until_complete(main())
        gc.collect()
        assert [one() for one in held] == [None] * 4
    finally:
        loop.close()


def test_what_waits_in_a_running_loop_survives_a_collection(loop_factory: LoopFactory) -> None:
    async def main() -> list[int]:
        loop = asyncio.get_running_loop()
        seen: list[int] = []
        for number in range(50):
            loop.call_soon(lambda box: seen.append(box[0]), [number])
            loop.call_later(0.001, lambda box: seen.append(box[0]), [number])
        gc.collect()
        await asyncio.sleep(0.05)
        gc.collect()
        return seen

    loop = loop_factory()
    try:
        assert loop.run_until_complete(main()) == [*range(50), *range(50)]
    finally:
        loop.close()
