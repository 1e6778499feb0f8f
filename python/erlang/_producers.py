"""What a process of a BEAM produces, iterated over in Python: `async for item in erlang.stream("rows")`.

    erlang.stream ── {'$py_stream', {Pid, Ref}, {ask, N}} ──▶ the producer
       a process of the node ◀── {py_stream, Ref, {items, …} | done | {error, …}} ──┘ monitored

The producer is asked for more when half of what it was asked for has been taken, so a slow loop holds it. Leaving the loop
ends the process here, which the producer sees.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from types import TracebackType
from typing import Any

from erlang import _backend
from erlang._asking import Destination, async_call, call
from erlang.exceptions import ErlangError, NoConnection
from erlang.terms import Atom, Pid, Ref

__all__ = ["Stream", "stream"]

SLICE_SECONDS = 0.1

_ASK = Atom("ask")
_EXIT = Atom("exit")
_NORMAL = Atom("normal")
_NOTHING = object()
_PY_STREAM = Atom("$py_stream")


class _End:
    """The last of what arrived: an exception to raise, or None."""

    __slots__ = ("error",)

    def __init__(self, error: Exception | None) -> None:
        self.error = error


class _Inbox:
    """The process that the producer sends to. What it knows is under a lock: the loop fills it, any thread empties it."""

    def __init__(self, producer: Destination, demand: int) -> None:
        native = _backend.native
        self._demand = demand
        self._owed = 0  # taken, not asked for again
        self._lock = threading.RLock()  # a stream may be forgotten anywhere
        self._items: deque[Any] = deque()
        self._wake: Callable[[], object] | None = None
        self._ref: Ref = native.make_ref()
        self._producer = producer
        self._open = True
        self._pid: Pid = native.spawn_process(self._deliver, self._stopped)
        try:
            native.monitor(self._pid, producer)
            self._ask(demand)
        except BaseException:
            self.close()
            raise

    def _ask(self, number: int) -> None:
        _backend.native.send(self._producer, (_PY_STREAM, (self._pid, self._ref), (_ASK, number)))

    def _deliver(self, messages: list[Any]) -> None:
        with self._lock:
            for message in messages:
                if not isinstance(message, tuple):
                    continue
                if message[:2] == ("py_stream", self._ref) and len(message) == 3:
                    self._event(message[2])
                elif message[:1] == ("DOWN",) and len(message) == 5:
                    self._end(_lost(message[4]))
            wake, self._wake = self._wake, None
        if wake is not None:
            wake()

    def _event(self, event: Any) -> None:
        match event:
            case ("items", list(items)):
                self._items.extend(items)
            case "done":
                self._end(None)
            case ("error", (kind, reason, stack)):
                self._end(ErlangError(kind, reason, stack))
            case ("error", reason):
                self._end(ErlangError(Atom("error"), reason))

    def _end(self, error: Exception | None) -> None:
        if not self._items or not isinstance(self._items[-1], _End):
            self._items.append(_End(error))

    def _stopped(self, reason: Any) -> None:
        with self._lock:
            self._open = False
            self._end(ErlangError(_EXIT, reason))
            wake, self._wake = self._wake, None
        if wake is not None:
            wake()

    def take(self, wake: Callable[[], object]) -> Any:
        """An item, `_End`, or `_NOTHING`: then `wake` is called when that has changed."""
        with self._lock:
            if not self._items:
                self._wake = wake
                return _NOTHING
            item = self._items[0]
            if isinstance(item, _End):
                return item
            self._items.popleft()
            self._owed += 1
            more = self._owed if 2 * self._owed >= self._demand else 0
            self._owed -= more
        if more:
            try:
                self._ask(more)
            except NoConnection:
                pass  # the monitor tells
        return item

    def close(self) -> None:
        with self._lock:
            was_open, self._open = self._open, False
            self._items.clear()
            self._items.append(_End(None))
            wake, self._wake = self._wake, None
        if was_open:
            _backend.native.exit_process(self._pid, _NORMAL)
        if wake is not None:
            wake()


def _lost(reason: Any) -> Exception:
    return NoConnection(reason) if reason == "noconnection" else ErlangError(_EXIT, reason)


class Stream:
    """Items of a producer, for one `for` or `async for`, or several one after the other that share it.

    It starts with the first item that is wanted, and ends with `close`, a `with` block, or when it is forgotten: leaving the
    loop is enough where the stream has no other name.
    """

    def __init__(
        self,
        source: Destination,
        args: tuple[Any, ...],
        demand: int,
        timeout: float | None,
        node: str | None,
    ) -> None:
        self._inbox: _Inbox | None = None
        if type(demand) is not int or demand < 1:
            raise ValueError("the demand must be at least 1")
        if args and not isinstance(source, str):
            raise TypeError("only a registered function takes arguments")
        self._source = source
        self._args = args
        self._demand = demand
        self._timeout = timeout
        self._node = node
        self._closed = False

    # iterating

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        inbox = self._inbox
        if inbox is None:
            if self._closed:
                raise StopIteration
            inbox = self._begin(
                call(self._source, *self._args, timeout=self._timeout, node=self._node)
                if isinstance(self._source, str)
                else self._source
            )
        while True:
            woken = threading.Lock()
            woken.acquire()
            item = inbox.take(woken.release)
            if item is not _NOTHING:
                return self._taken(item, StopIteration)
            _refuse_the_loop()
            if not self._wait(woken):
                raise TimeoutError

    def _wait(self, woken: threading.Lock) -> bool:
        """In slices: a thread that sleeps in C cannot be told that its call was cancelled."""
        deadline = None if self._timeout is None else time.monotonic() + self._timeout
        while True:
            left = SLICE_SECONDS if deadline is None else deadline - time.monotonic()
            if woken.acquire(timeout=max(0.0, min(left, SLICE_SECONDS))):
                return True
            if deadline is not None and left <= 0:
                return False

    def __aiter__(self) -> AsyncIterator[Any]:
        return self

    async def __anext__(self) -> Any:
        inbox = self._inbox
        if inbox is None:
            if self._closed:
                raise StopAsyncIteration
            inbox = self._begin(
                await async_call(self._source, *self._args, timeout=self._timeout, node=self._node)
                if isinstance(self._source, str)
                else self._source
            )
        loop = asyncio.get_running_loop()
        while True:
            future: asyncio.Future[None] = loop.create_future()
            item = inbox.take(lambda: loop.call_soon_threadsafe(_finish, future))
            if item is not _NOTHING:
                return self._taken(item, StopAsyncIteration)
            async with asyncio.timeout(self._timeout):
                await future

    def _begin(self, producer: Any) -> _Inbox:
        match producer:
            case Pid() | (str(), str()):
                self._inbox = _Inbox(producer, self._demand)
            case ("ok", Pid() as pid):
                self._inbox = _Inbox(pid, self._demand)
            case _:
                raise TypeError(f"that is no producer: {producer!r}")
        return self._inbox

    def _taken(self, item: Any, stop: type[Exception]) -> Any:
        if not isinstance(item, _End):
            return item
        error = item.error
        self.close()
        if error is not None:
            raise error
        raise stop

    # ending

    def close(self) -> None:
        """Ends the stream; the producer sees it. Again and again if you like."""
        self._closed = True
        if self._inbox is not None:
            self._inbox.close()

    async def aclose(self) -> None:
        """`close`, for symmetry: it does not wait."""
        self.close()

    def __del__(self) -> None:
        if self._inbox is not None:
            self._inbox.close()

    def __enter__(self) -> Stream:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    async def __aenter__(self) -> Stream:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _finish(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def _refuse_the_loop() -> None:
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        return
    if loop is _backend.native.event_loop():
        raise RuntimeError("a plain for would block the node's loop; use async for")


def stream(
    source: Destination,
    *args: Any,
    demand: int = 256,
    timeout: float | None = None,
    node: str | None = None,
) -> Stream:
    """Iterate over what a process of a BEAM produces: `for` in a thread, `async for` in a coroutine of any asyncio loop.

    `source` is a producer's pid or (name, node), or the name of a registered function that returns such a pid, called with
    `args` on `node` as `erlang.call` does. No more than `demand` items wait here. `timeout` is for each item.

    Raises, while iterating: ErlangError with what the producer raised, or of kind `exit` when it ended; NoConnection;
    TimeoutError; UnknownFunction.
    """
    return Stream(source, args, demand, timeout, node)
