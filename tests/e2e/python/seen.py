"""What the end-to-end suite of being seen calls."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import Any

import erlang
import erlang.logs


def block(told: Any, seconds: float) -> None:
    """Holds a worker, and says that it does."""
    erlang.send(told, (erlang.Atom("probe"), "blocking"))
    time.sleep(seconds)


async def block_loop(told: Any, seconds: float) -> None:
    """Holds the event loop up, as no coroutine should."""
    erlang.send(told, (erlang.Atom("probe"), "blocking"))
    time.sleep(seconds)


def fail() -> None:
    raise ValueError("as told")


def here() -> Any:
    return erlang.trace_context()


def _logger(**options: Any) -> tuple[logging.Logger, erlang.logs.BeamHandler]:
    logger = logging.Logger("shop.cart")
    handler = erlang.logs.BeamHandler(**options)
    logger.addHandler(handler)
    return logger, handler


async def say_everything() -> None:
    logger, _ = _logger(levels={logging.ERROR: "alert"})

    async def fail_later() -> None:
        try:
            fail()
        except ValueError:
            logger.exception("sold out", extra={"order": 7, "erlang": {"shop": "tea"}})

    await asyncio.create_task(fail_later(), name="worker 7")


def flood(count: int, window: int) -> int:
    """Logs as fast as it can; how many records found no room."""
    logger, handler = _logger(window=window)
    for number in range(count):
        logger.warning("%d", number)
    dropped = handler.dropped
    deadline = time.monotonic() + 10
    while handler._windows and time.monotonic() < deadline:
        before = handler.dropped
        logger.warning("last")
        if handler.dropped == before:
            break
        time.sleep(0.01)
    return dropped
