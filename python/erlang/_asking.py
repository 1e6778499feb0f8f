"""What Python asks of Erlang: registered functions, processes of any peer, functions of any BEAM.

Each has two forms. The plain one is for threads: it waits without the GIL, in any thread but that of the node's event
loop. The one called `async_…` is for coroutines of any asyncio loop. Where neither a timeout nor the end of the peer
comes first, they wait for as long as it takes.
"""

from __future__ import annotations

import asyncio
import functools
import threading
from collections.abc import Awaitable, Callable
from typing import Any

from erlang import _backend, _trace
from erlang.process import current_pid
from erlang.terms import Pid

__all__ = [
    "RegisteredFunction",
    "async_call",
    "async_cast",
    "async_erpc",
    "async_gen_call",
    "async_send",
    "call",
    "cast",
    "erpc",
    "gen_call",
    "send",
]

Destination = Pid | str | tuple[str, str]


def call(name: str, *args: Any, timeout: float | None = None, node: str | None = None) -> Any:
    """Call a function that was registered on the BEAM with `py:register_function`, and return its result.

    Goes to the peer whose request is being served, else to the home node, else to the first peer that runs the
    application; `node` overrides. Calls of one thread are served in order by one process there, those of different
    threads side by side.

    Raises: ErlangError with what the function raised; UnknownFunction; NoConnection when there is no such peer or it
    goes; TimeoutError after `timeout` seconds, when the function is stopped.
    """
    return _backend.native.call(name, args, timeout, node, _trace.current())


async def async_call(
    name: str, *args: Any, timeout: float | None = None, node: str | None = None
) -> Any:
    """`call` for coroutines. Each runs in a process of its own; one that is cancelled is stopped there too."""
    if timeout is None:
        return await _call(name, args, node)
    async with asyncio.timeout(timeout):
        return await _call(name, args, node)


def gen_call(dest: Destination, request: Any, timeout: float | None = 5.0) -> Any:
    """`gen_server:call` to a process: by pid, name on this node, or (name, node).

    Raises: ErlangError of kind `exit` with the process's exit reason, `noproc` at once when there is none;
    NoConnection; TimeoutError. A reply that comes later is dropped.
    """
    return _backend.native.gen_call(dest, request, timeout, current_pid())


async def async_gen_call(dest: Destination, request: Any, timeout: float | None = 5.0) -> Any:
    """`gen_call` for coroutines."""
    ask = _backend.native.ask_request
    return await _ask(functools.partial(ask, dest, request, current_pid()), timeout)


def erpc(
    node: str, module: str, function: str, args: Any = (), timeout: float | None = None
) -> Any:
    """`erpc:call`: apply a function on any BEAM, with or without our application.

    What it writes to its standard output is dropped.

    Raises: ErlangError with class, reason and stack as erpc tells them; NoConnection; TimeoutError, when the function
    goes on and its result is dropped.
    """
    return _backend.native.erpc(node, module, function, args, timeout)


async def async_erpc(
    node: str, module: str, function: str, args: Any = (), timeout: float | None = None
) -> Any:
    """`erpc` for coroutines."""
    ask = _backend.native.ask_remote
    return await _ask(functools.partial(ask, node, module, function, args), timeout)


def send(dest: Destination, term: Any) -> None:
    """Send `term` to a pid, a name on this node, or (name, node). Never waits.

    Raises: NoConnection when the node is not connected; BlockingIOError when a mailbox here is full.
    """
    _backend.native.send(dest, term)


async def async_send(dest: Destination, term: Any) -> None:
    """`send`, for symmetry: it does not wait either."""
    _backend.native.send(dest, term)


def cast(dest: Destination, request: Any) -> None:
    """`gen_server:cast`: as `send`, but a node that is not connected is no error."""
    from erlang.exceptions import NoConnection
    from erlang.terms import Atom

    try:
        _backend.native.send(dest, (Atom("$gen_cast"), request))
    except NoConnection:
        pass


async def async_cast(dest: Destination, request: Any) -> None:
    """`cast`, for symmetry: it does not wait either."""
    cast(dest, request)


def _finish(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


class _Scheduled(threading.local):
    """The loop of this thread that is to flush at the end of its turn."""

    loop: asyncio.AbstractEventLoop | None = None


_scheduled = _Scheduled()


def _flush() -> None:
    _scheduled.loop = None
    _backend.native.flush()


async def _call(name: str, args: tuple[Any, ...], node: str | None) -> Any:
    loop = asyncio.get_running_loop()
    future: asyncio.Future[None] = loop.create_future()
    native = _backend.native
    question = native.ask_call(name, args, node, _waker(loop, future), _trace.current())
    if _scheduled.loop is not loop:  # the calls of one turn of a loop leave together
        _scheduled.loop = loop
        loop.call_soon(_flush)
    try:
        await future
    except BaseException:
        question.leave()
        raise
    return question.result()


async def _ask(ask: Callable[[Callable[[], object]], Any], timeout: float | None) -> Any:
    loop = asyncio.get_running_loop()
    future: asyncio.Future[None] = loop.create_future()
    async with asyncio.timeout(timeout):
        question = ask(_waker(loop, future))
        try:
            await future
        except BaseException:
            question.leave()
            raise
    return question.result()


def _waker(loop: asyncio.AbstractEventLoop, future: asyncio.Future[None]) -> Callable[[], object]:
    if _backend.native.wakes_in(loop):
        return functools.partial(
            future.set_result, None
        )  # of one that is cancelled: no error there
    return functools.partial(loop.call_soon_threadsafe, _finish, future)


class RegisteredFunction:
    """A function registered on the BEAM, as `erlang.NAME`: calling it is `erlang.call(NAME, …)`."""

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        self.name = name

    def __call__(self, *args: Any, timeout: float | None = None, node: str | None = None) -> Any:
        return call(self.name, *args, timeout=timeout, node=node)

    def asynchronous(
        self, *args: Any, timeout: float | None = None, node: str | None = None
    ) -> Awaitable[Any]:
        """`erlang.async_call(NAME, …)`."""
        return async_call(self.name, *args, timeout=timeout, node=node)

    def __repr__(self) -> str:
        return f"erlang.{self.name}"
