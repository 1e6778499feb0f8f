"""Choosing the loop: by factory, by policy, or for the whole program."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Coroutine
from typing import Any, TypeVar

from erlang_loop._loop import ErlangEventLoop

_T = TypeVar("_T")
_tasks: set[asyncio.Task[Any]] = set()  # a loop itself does not keep its tasks


def new_event_loop() -> ErlangEventLoop:
    """A new loop: what `loop_factory` arguments want.

    Raises OSError when there are no descriptors left.
    """
    return ErlangEventLoop(isolated=True)


def run(main: Coroutine[Any, Any, _T], *, debug: bool | None = None) -> _T:
    """`asyncio.run` on an ErlangEventLoop.

    Raises what the coroutine raises, and RuntimeError where a loop runs already.
    """
    if asyncio._get_running_loop() is not None:
        raise RuntimeError("erlang_loop.run() cannot be called from a running event loop")
    with asyncio.Runner(debug=debug, loop_factory=new_event_loop) as runner:
        return runner.run(main)


def spawn_task(coroutine: Coroutine[Any, Any, _T], *, name: str | None = None) -> asyncio.Task[_T]:
    """Start a coroutine on the running loop and keep its task until it has ended.

    Raises RuntimeError where no loop runs.
    """
    task = asyncio.get_running_loop().create_task(coroutine, name=name)
    _tasks.add(task)
    task.add_done_callback(_tasks.discard)
    return task


if sys.version_info < (3, 14):
    # asyncio's own default: it has the child watchers of the versions that still have them.
    _Policy = asyncio.DefaultEventLoopPolicy
else:
    _Policy = getattr(asyncio, "_DefaultEventLoopPolicy", object)


class ErlangEventLoopPolicy(_Policy):
    """The policy whose new loops are ErlangEventLoops."""

    _loop_factory = ErlangEventLoop

    def new_event_loop(self) -> ErlangEventLoop:
        """A new loop.

        Raises OSError when there are no descriptors left.
        """
        return ErlangEventLoop(isolated=True)


def install() -> None:
    """Make ErlangEventLoop the loop of the whole program: of `asyncio.run` and of everything that asks the policy.

    Raises RuntimeError on versions of Python that have no policies.
    """
    set_policy = getattr(asyncio, "_set_event_loop_policy", None) or getattr(
        asyncio, "set_event_loop_policy", None
    )
    if set_policy is None:
        raise RuntimeError("this Python has no event loop policies: use loop_factory")
    set_policy(ErlangEventLoopPolicy())
