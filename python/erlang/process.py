"""Python code as processes of the node: with a pid, a mailbox, monitors and links.

Both kinds here live on the node's asyncio loop. Synchronous callbacks run in its executor, one at a time for each
process, so a slow one holds up nobody but its own process.
"""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import traceback
from collections import deque
from collections.abc import Callable
from typing import Any

from erlang import _native
from erlang.terms import Atom, Pid, Ref

__all__ = ["Exit", "GenServer", "NO_REPLY", "Process", "reply", "self_pid"]

_NORMAL = Atom("normal")
_current: contextvars.ContextVar[Pid | None] = contextvars.ContextVar(
    "erlang_process", default=None
)


class _NoReply:
    __slots__ = ()

    def __repr__(self) -> str:
        return "erlang.NO_REPLY"


#: What `handle_call` returns when it will answer later, with `reply`.
NO_REPLY = _NoReply()


class Exit(Exception):
    """Ends the process that raises it, with `reason` as its exit reason."""

    def __init__(self, reason: Any = _NORMAL) -> None:
        super().__init__(reason)
        self.reason = reason


def self_pid() -> Pid:
    """The pid of the process this code runs in; outside of any, that of the node's server `py`."""
    pid = _current.get()
    return _native.server_pid() if pid is None else pid


def reply(sender: tuple[Pid, Any], value: Any) -> None:
    """Answer a call that `handle_call` was given `sender` for."""
    _native.reply(sender[0], sender[1], value)


def _reason_of(error: BaseException) -> Any:
    if isinstance(error, Exit):
        return error.reason
    kind = type(error)
    name = (
        kind.__qualname__
        if kind.__module__ == "builtins"
        else f"{kind.__module__}.{kind.__qualname__}"
    )
    text = "".join(traceback.format_exception(error))
    return Atom("python"), name, str(error), text


def _node_loop() -> asyncio.AbstractEventLoop:
    loop = _native.event_loop()
    if loop is None:
        raise RuntimeError("the node's loop does not run yet")
    return loop


def _on_loop(loop: asyncio.AbstractEventLoop) -> bool:
    try:
        return asyncio.get_running_loop() is loop
    except RuntimeError:
        return False


class Process:
    """A mailbox with a pid, for a coroutine on the node's loop: `async with Process(name) as process`."""

    def __init__(self, name: str | None = None, *, trap_exit: bool = False) -> None:
        self._name = name
        self._trap_exit = trap_exit
        self._messages: deque[Any] = deque()
        self._arrived: asyncio.Event = asyncio.Event()
        self._owner: asyncio.Task[Any] | None = None
        self._pid: Pid | None = None
        self._killed: Any = None

    @property
    def pid(self) -> Pid:
        if self._pid is None:
            raise RuntimeError("the process has not been entered yet")
        return self._pid

    async def __aenter__(self) -> Process:
        if not _on_loop(_node_loop()):
            raise RuntimeError("a Process lives on the node's own loop")
        self._owner = asyncio.current_task()
        self._pid = _native.spawn_process(self._deliver, self._stop, self._name)
        if self._trap_exit:
            _native.set_trap_exit(self._pid, True)
        self._token = _current.set(self._pid)
        return self

    async def __aexit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        _current.reset(self._token)
        _native.exit_process(self.pid, _NORMAL if error is None else _reason_of(error))

    def _deliver(self, messages: list[Any]) -> None:
        self._messages.extend(messages)
        self._arrived.set()

    def _stop(self, reason: Any) -> None:
        self._killed = reason
        if self._owner is not None:
            self._owner.cancel()

    async def receive(
        self, match: Callable[[Any], bool] | None = None, timeout: float | None = None
    ) -> Any:
        """The first message that `match` accepts; the others stay, in order.

        Raises TimeoutError when none came in time.
        """
        loop = asyncio.get_running_loop()
        deadline = None if timeout is None else loop.time() + timeout
        seen = 0
        while True:
            while seen < len(self._messages):
                message = self._messages[seen]
                if match is None or match(message):
                    del self._messages[seen]
                    return message
                seen += 1
            self._arrived.clear()
            left = None if deadline is None else deadline - loop.time()
            if left is not None and left <= 0:
                raise TimeoutError
            try:
                await asyncio.wait_for(self._arrived.wait(), left)
            except asyncio.TimeoutError:
                raise TimeoutError from None

    def monitor(self, target: Pid | str | tuple[str, str]) -> Ref:
        """Watch a process: its end arrives as ('DOWN', ref, 'process', who, reason)."""
        return _native.monitor(self.pid, target)

    def demonitor(self, ref: Ref) -> None:
        _native.demonitor(self.pid, ref)

    def link(self, pid: Pid) -> None:
        _native.link(self.pid, pid)

    def unlink(self, pid: Pid) -> None:
        _native.unlink(self.pid, pid)


class GenServer:
    """A server that `gen_server:call`, `cast` and plain messages reach, by pid or by name.

    Override what is needed; every callback may be a plain function or a coroutine function. An exception in one ends
    the server with reason {python, Type, Message, Traceback}, so that a waiting caller hears at once.
    """

    pid: Pid

    def init(self, *args: Any, **kwargs: Any) -> Any:
        """Called with the arguments of `start` before it returns."""

    def handle_call(self, request: Any, sender: tuple[Pid, Any]) -> Any:
        """The returned value is the reply, unless it is NO_REPLY."""
        raise NotImplementedError(f"unexpected call {request!r}")

    def handle_cast(self, request: Any) -> Any:
        raise NotImplementedError(f"unexpected cast {request!r}")

    def handle_info(self, message: Any) -> Any:
        """Any other message; ignored by default, as in OTP."""

    def terminate(self, reason: Any) -> Any:
        """Called when the server ends by itself or by an exception."""

    @classmethod
    def start(cls, *args: Any, name: str | None = None, **kwargs: Any) -> Pid:
        """Start a server and return its pid. Raises what `init` raises, ValueError when the name is taken.

        From a coroutine on the node's loop only servers with a synchronous `init` can be started like this; use
        `await start_async(…)` for the others.
        """
        loop = _node_loop()
        server = cls()
        if _on_loop(loop):
            if inspect.iscoroutinefunction(server.init):
                raise RuntimeError("init is a coroutine function: use await start_async()")
            server.init(*args, **kwargs)
        else:
            result = server.init(*args, **kwargs)
            if inspect.iscoroutine(result):
                asyncio.run_coroutine_threadsafe(result, loop).result()
        return server._run(loop, name)

    @classmethod
    async def start_async(cls, *args: Any, name: str | None = None, **kwargs: Any) -> Pid:
        """`start` for coroutines on the node's loop."""
        server = cls()
        result = server.init(*args, **kwargs)
        if inspect.isawaitable(result):
            await result
        return server._run(_node_loop(), name)

    def _run(self, loop: asyncio.AbstractEventLoop, name: str | None) -> Pid:
        self._messages: deque[Any] = deque()
        self._waiter: asyncio.Future[None] | None = None
        self._task: asyncio.Task[None] | None = None
        self._stopped = False
        self._loop = loop
        self.pid = _native.spawn_process(self._deliver, self._stop, name, self._begin)
        return self.pid

    def _begin(self, pid: Pid) -> None:
        self.pid = pid
        if not self._stopped:
            context = contextvars.copy_context()
            context.run(_current.set, pid)
            self._task = self._loop.create_task(self._serve(), context=context)

    def _deliver(self, messages: list[Any]) -> None:
        self._messages.extend(messages)
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _stop(self, reason: Any) -> None:
        self._stopped = True
        if self._task is not None:
            self._task.cancel()

    async def _next(self) -> Any:
        while not self._messages:
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        return self._messages.popleft()

    async def _call(self, callback: Callable[..., Any], *args: Any) -> Any:
        if inspect.iscoroutinefunction(callback):
            return await callback(*args)
        context = contextvars.copy_context()
        loop = asyncio.get_running_loop()
        result: Any = await loop.run_in_executor(None, lambda: context.run(callback, *args))
        return await result if inspect.isawaitable(result) else result

    async def _serve(self) -> None:
        reason: Any = _NORMAL
        try:
            while True:
                await self._handle(await self._next())
        except asyncio.CancelledError:
            return  # ended by an exit signal: the node has told everybody
        except Exception as error:
            reason = _reason_of(error)
        try:
            await self._call(self.terminate, reason)
        except Exception as error:
            reason = _reason_of(error)
        _native.exit_process(self.pid, reason)

    async def _handle(self, message: Any) -> None:
        match message:
            case ("$gen_call", (Pid(), _) as sender, request):
                value = await self._call(self.handle_call, request, sender)
                if value is not NO_REPLY:
                    reply(sender, value)
            case ("$gen_cast", request):
                await self._call(self.handle_cast, request)
            case ("system", (Pid(), _) as sender, ("terminate", reason)):
                reply(sender, Atom("ok"))
                raise Exit(reason)
            case _:
                await self._call(self.handle_info, message)
