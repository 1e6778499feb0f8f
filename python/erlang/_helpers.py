"""Helpers that work from synchronous and asynchronous code alike."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Coroutine, Generator
from concurrent.futures import Future
from typing import Any, TypeVar

from erlang import _backend

__all__ = ["run", "sleep", "spawn_task"]

_T = TypeVar("_T")
_tasks: set[asyncio.Task[Any]] = set()  # a loop itself does not keep its tasks


def _node_loop() -> asyncio.AbstractEventLoop | None:
    try:
        loop: asyncio.AbstractEventLoop | None = _backend.native.event_loop()
    except RuntimeError:
        return None
    return loop


def run(coroutine: Coroutine[Any, Any, _T], timeout: float | None = None) -> _T:
    """Run a coroutine from synchronous code and return its result: on the node's loop, or with `asyncio.run` outside a node.

    Raises: what the coroutine raises; TimeoutError, when it is cancelled; RuntimeError in a thread with a running loop.
    """
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        pass
    else:
        coroutine.close()
        raise RuntimeError("erlang.run would block the running event loop; await the coroutine")
    loop = _node_loop()
    if loop is None:
        return asyncio.run(asyncio.wait_for(coroutine, timeout))
    future = asyncio.run_coroutine_threadsafe(coroutine, loop)
    try:
        return future.result(timeout)
    except BaseException:
        future.cancel()
        raise


def spawn_task(
    coroutine: Coroutine[Any, Any, _T], *, name: str | None = None
) -> asyncio.Task[_T] | Future[_T]:
    """Start a coroutine and go on: a Task of the running loop, or from synchronous code a Future of the node's loop.

    Raises: RuntimeError outside a node where no loop runs.
    """
    try:
        task = asyncio.get_running_loop().create_task(coroutine, name=name)
    except RuntimeError:
        pass
    else:
        _tasks.add(task)
        task.add_done_callback(_tasks.discard)
        return task
    loop = _node_loop()
    if loop is None:
        coroutine.close()
        raise RuntimeError("no loop runs here, and there is no node")
    return asyncio.run_coroutine_threadsafe(_named(coroutine, name), loop)


async def _named(coroutine: Coroutine[Any, Any, _T], name: str | None) -> _T:
    task = asyncio.current_task()
    if name is not None and task is not None:
        task.set_name(name)
    return await coroutine


class _Done:
    """An awaitable that is over."""

    __slots__ = ()

    def __await__(self) -> Generator[None, None, None]:
        return
        yield  # a generator, if an empty one


_DONE = _Done()


def sleep(seconds: float) -> Awaitable[None]:
    """`await erlang.sleep(s)` in a coroutine; plain `erlang.sleep(s)` in synchronous code blocks its thread."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        time.sleep(seconds)
        return _DONE
    return asyncio.sleep(seconds)
