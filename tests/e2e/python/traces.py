"""What the end-to-end suite of trace contexts calls."""

from __future__ import annotations

import asyncio
import logging
import threading
from typing import Any

import erlang


def here() -> Any:
    return erlang.trace_context()


async def here_later(seconds: float) -> Any:
    """Before and after others ran, and in what a coroutine starts."""
    before = erlang.trace_context()
    await asyncio.sleep(seconds)
    task = asyncio.create_task(there())
    return [before, erlang.trace_context(), await task, await asyncio.to_thread(here)]


async def there() -> Any:
    await asyncio.sleep(0)
    return erlang.trace_context()


def elsewhere() -> Any:
    """In a thread of one's own, which has nobody's context."""
    seen: list[Any] = []
    thread = threading.Thread(target=lambda: seen.append(erlang.trace_context()))
    thread.start()
    thread.join()
    return seen


def down(name: str) -> Any:
    return [erlang.trace_context(), erlang.call(name)]


async def down_later(name: str) -> Any:
    return [
        erlang.trace_context(),
        *await asyncio.gather(*[erlang.async_call(name) for _ in range(3)]),
    ]


def fail() -> None:
    raise ValueError("as told")


def say(text: str) -> None:
    logging.getLogger("traces").warning(text)
    print(f"printed {text}")


async def say_later(text: str) -> None:
    await asyncio.sleep(0)
    say(text)


def to_beam(text: str) -> None:
    erlang.logs.BeamHandler().handle(
        logging.LogRecord("traces", logging.WARNING, __file__, 1, text, None, None)
    )
