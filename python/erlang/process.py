"""Python code as processes of the node: with a pid, a mailbox, monitors and links.

Processes live on the node's asyncio loop. Synchronous callbacks run on the node's workers, one at a time for each process,
so a slow one holds up nobody but its own process.
"""

from __future__ import annotations

import asyncio
import contextvars
import functools
import inspect
import logging
import threading
import traceback
from collections import deque
from collections.abc import Callable
from typing import Any, NoReturn, overload

from erlang import _backend
from erlang.terms import Atom, Pid, Ref

__all__ = [
    "Exit",
    "GenServer",
    "NO_REPLY",
    "Process",
    "current_pid",
    "demonitor",
    "exit",
    "link",
    "monitor",
    "monitor_nodes",
    "receive",
    "reply",
    "self_pid",
    "spawn",
    "unlink",
]

_NORMAL = Atom("normal")
_current: contextvars.ContextVar[Pid | None] = contextvars.ContextVar(
    "erlang_process", default=None
)
_mailbox: contextvars.ContextVar[Process | None] = contextvars.ContextVar(
    "erlang_mailbox", default=None
)
_log = logging.getLogger("erlang")

Target = Pid | str | tuple[str, str]
Match = Callable[[Any], object] | tuple[Any, ...]


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


# --- operations of the process this code runs in ---------------------------------------------------


def current_pid() -> Pid | None:
    """The process this code runs in, if it runs in one."""
    return _current.get()


def self_pid() -> Pid:
    """The pid of the process this code runs in; outside of any, that of the node's server `py`."""
    pid = _current.get()
    if pid is None:
        pid = _backend.native.server_pid()
    return pid


def _own(what: str) -> Pid:
    pid = _current.get()
    if pid is None:
        raise RuntimeError(f"{what} needs a process: a GenServer, a Process or erlang.spawn")
    return pid


def reply(sender: tuple[Pid, Any], value: Any) -> None:
    """Answer a call that `handle_call` was given `sender` for."""
    _backend.native.reply(sender[0], sender[1], value)


def monitor(target: Target) -> Ref:
    """Watch a process: its end arrives here as ('DOWN', ref, 'process', who, reason), `noproc` when there is none.

    Raises: RuntimeError outside a process.
    """
    ref: Ref = _backend.native.monitor(_own("monitor"), target)
    return ref


def demonitor(ref: Ref, flush: bool = False) -> None:
    """Stop watching; with `flush` also a DOWN that has arrived already is taken away."""
    _backend.native.demonitor(_own("demonitor"), ref)
    process = _mailbox.get()
    if flush and process is not None:
        down = _matcher(("DOWN", ref, ..., ..., ...))
        process._drop(lambda message: down is not None and bool(down(message)))


def link(pid: Pid) -> None:
    """Link this process with another: when one ends abnormally so does the other, unless it traps exits."""
    _backend.native.link(_own("link"), pid)


def unlink(pid: Pid) -> None:
    """Take a link back. Never an error."""
    _backend.native.unlink(_own("unlink"), pid)


@overload
def exit(reason: Any = ..., /) -> NoReturn:
    ...


@overload
def exit(pid: Pid, reason: Any, /) -> None:
    ...


def exit(*arguments: Any) -> None:
    """`exit(reason)` ends this process, `exit(pid, reason)` sends an exit signal to another, as in Erlang."""
    if len(arguments) == 2:
        _backend.native.exit_signal(self_pid(), *arguments)
        return
    raise Exit(*arguments)


def monitor_nodes(on: bool = True) -> None:
    """Whether ('nodeup', node) and ('nodedown', node) arrive here.

    Raises: RuntimeError outside a process.
    """
    _backend.native.watch_nodes(_own("monitor_nodes"), on)


async def receive(match: Match | None = None, timeout: float | None = None) -> Any:
    """`Process.receive` of the process this coroutine runs in.

    Raises: TimeoutError; RuntimeError where there is no mailbox.
    """
    process = _mailbox.get()
    if process is None:
        raise RuntimeError("receive needs a mailbox: a Process, or a coroutine of erlang.spawn")
    return await process.receive(match, timeout)


def spawn(
    function: Callable[..., Any],
    *args: Any,
    name: str | None = None,
    link: bool = False,
    **kwargs: Any,
) -> Pid:
    """Run a function as a process and return its pid at once; an exception is its exit reason.

    A coroutine function runs on the node's loop, has a mailbox (`erlang.receive`) and is cancelled by an exit signal. A
    plain one runs in a thread of its own; an exit signal ends the process, and the thread when the function returns.

    Raises: ValueError when the name is taken.
    """
    return _Spawned(function, args, kwargs)._start(name, link)


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
    try:
        message = str(error)
    except Exception:
        message = f"<{name} without a message>"
    return Atom("python"), name, message, text


def _node_loop() -> asyncio.AbstractEventLoop:
    loop: asyncio.AbstractEventLoop | None = _backend.native.event_loop()
    if loop is None:
        raise RuntimeError("the node's loop does not run yet")
    return loop


def _on_loop(loop: asyncio.AbstractEventLoop) -> bool:
    try:
        return asyncio.get_running_loop() is loop
    except RuntimeError:
        return False


def _exit_process(pid: Pid, reason: Any) -> None:
    """Ends a process of ours; a reason that is no term becomes its text."""
    try:
        _backend.native.exit_process(pid, reason)
    except (TypeError, ValueError) as error:
        _log.warning("an exit reason is no term (%s)", error)
        _backend.native.exit_process(pid, repr(reason))


def _matcher(match: Match | None) -> Callable[[Any], object] | None:
    """A predicate; a tuple is a pattern: as long, equal where it is not `...`."""
    if match is None or not isinstance(match, tuple):
        return match
    pattern = match

    def fits(message: Any) -> bool:
        return (
            isinstance(message, tuple)
            and len(message) == len(pattern)
            and all(want is ... or want == got for want, got in zip(pattern, message))
        )

    return fits


class Process:
    """A mailbox with a pid, for a coroutine on the node's loop: `async with Process(name) as process`.

    With `trap_exit` exit signals arrive as ('EXIT', pid, reason). Without, one cancels the task that entered it.
    """

    def __init__(self, name: str | None = None, *, trap_exit: bool = False) -> None:
        self._name = name
        self._trap_exit = trap_exit
        self._messages: deque[Any] = deque()
        self._taken = 0
        self._arrived: asyncio.Event = asyncio.Event()
        self._owner: asyncio.Task[Any] | None = None
        self._pid: Pid | None = None
        self._ended = False

    @property
    def pid(self) -> Pid:
        if self._pid is None:
            raise RuntimeError("the process has not been entered yet")
        return self._pid

    async def __aenter__(self) -> Process:
        if not _on_loop(_node_loop()):
            raise RuntimeError("a Process lives on the node's own loop")
        self._owner = asyncio.current_task()
        self._pid = _backend.native.spawn_process(self._deliver, self._stop, self._name)
        if self._trap_exit:
            _backend.native.set_trap_exit(self._pid, True)
        self._tokens = _current.set(self._pid), _mailbox.set(self)
        return self

    async def __aexit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        _current.reset(self._tokens[0])
        _mailbox.reset(self._tokens[1])
        self._ended = True
        _exit_process(self.pid, _NORMAL if error is None else _reason_of(error))

    def _deliver(self, messages: list[Any]) -> None:
        self._messages.extend(messages)
        self._arrived.set()

    def _drop(self, which: Callable[[Any], bool]) -> None:
        kept = [message for message in self._messages if not which(message)]
        self._messages = deque(kept)
        self._taken += 1

    def _stop(self, reason: Any) -> None:
        if self._owner is not None and not self._ended:
            self._owner.cancel()

    async def receive(self, match: Match | None = None, timeout: float | None = None) -> Any:
        """The first message that matches; the others stay, in order.

        `match` is a predicate, or a tuple that the message must be as long as and equal to where it is not `...`.

        Raises: TimeoutError when none came in `timeout` seconds; 0 only looks.
        """
        likes = _matcher(match)
        loop = asyncio.get_running_loop()
        deadline = None if timeout is None else loop.time() + timeout
        seen = 0
        taken = self._taken
        while True:
            if taken != self._taken:  # by another coroutine: the others have moved up
                seen, taken = 0, self._taken
            while seen < len(self._messages):
                message = self._messages[seen]
                if likes is None or likes(message):
                    del self._messages[seen]
                    self._taken += 1
                    return message
                seen += 1
            self._arrived.clear()
            left = None if deadline is None else deadline - loop.time()
            if left is not None and left <= 0:
                raise TimeoutError
            async with asyncio.timeout(left):  # wait_for may swallow a cancellation
                await self._arrived.wait()

    def monitor(self, target: Target) -> Ref:
        """Watch a process: its end arrives as ('DOWN', ref, 'process', who, reason)."""
        ref: Ref = _backend.native.monitor(self.pid, target)
        return ref

    def demonitor(self, ref: Ref) -> None:
        _backend.native.demonitor(self.pid, ref)

    def link(self, pid: Pid) -> None:
        _backend.native.link(self.pid, pid)

    def unlink(self, pid: Pid) -> None:
        _backend.native.unlink(self.pid, pid)


class _Birth:
    """What a process is given before it does anything: by who starts it or by the loop, whoever comes first.

    Later it might have ended already, and the parent would hear `noproc`; by the parent alone a cancellation may
    prevent it.
    """

    def __init__(self, trap_exit: bool, parent: Pid | None) -> None:
        self._trap_exit = trap_exit
        self._parent = parent
        self._lock = threading.Lock()
        self._given = False

    def give(self, pid: Pid) -> None:
        with self._lock:
            if self._given:
                return
            if self._trap_exit:
                _backend.native.set_trap_exit(pid, True)
            if self._parent is not None:
                _backend.native.link(pid, self._parent)
            self._given = True


class _Spawned:
    """A function as a process."""

    def __init__(
        self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        self._function = functools.partial(function, *args, **kwargs)
        self._asynchronous = inspect.iscoroutinefunction(function)
        self._process = Process()
        self._task: asyncio.Task[None] | None = None
        self._stopped = False

    def _start(self, name: str | None, linked: bool) -> Pid:
        self._birth = _Birth(False, _own("spawn(link=True)") if linked else None)
        self._loop = _node_loop()
        self._context = contextvars.copy_context()
        pid: Pid = _backend.native.spawn_process(
            self._process._deliver, self._stop, name, self._begin
        )
        self._birth.give(pid)
        return pid

    def _begin(self, pid: Pid) -> None:
        self._birth.give(pid)
        self._process._pid = pid
        self._context.run(_current.set, pid)
        self._context.run(_mailbox.set, self._process if self._asynchronous else None)
        if self._stopped:
            return
        if self._asynchronous:
            self._task = self._loop.create_task(self._serve(pid), context=self._context)
        else:
            run = functools.partial(self._context.run, self._run, pid)
            threading.Thread(target=run, name=f"erlang.spawn {pid}", daemon=True).start()

    def _stop(self, reason: Any) -> None:
        self._stopped = True
        if self._task is not None:
            self._task.cancel()

    async def _serve(self, pid: Pid) -> None:
        reason: Any = _NORMAL
        try:
            await self._function()
        except asyncio.CancelledError as error:
            reason = _reason_of(error)  # its own doing, unless a signal has ended it already
        except Exception as error:
            reason = _reason_of(error)
            if not isinstance(error, Exit):
                _log.error("a spawned process raised", exc_info=error)
        _exit_process(pid, reason)

    def _run(self, pid: Pid) -> None:
        reason: Any = _NORMAL
        try:
            self._function()
        except BaseException as error:
            reason = _reason_of(error)
            if not isinstance(error, Exit):
                _log.error("a spawned process raised", exc_info=error)
        _exit_process(pid, reason)


class GenServer:
    """A server that `gen_server:call`, `cast` and plain messages reach, by pid or by name.

    Override what is needed; every callback may be a plain function or a coroutine function. An exception in one ends
    the server with reason {python, Type, Message, Traceback}, so that a waiting caller hears at once.
    """

    #: Whether exit signals arrive in `handle_info` as ('EXIT', pid, reason), and `terminate` is called when the
    #: process that `start_link` linked it to ends.
    trap_exit = False

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
        """Called when the server ends by itself or by an exception, or, trapping exits, with its parent."""

    @classmethod
    def start(cls, *args: Any, name: str | None = None, **kwargs: Any) -> Pid:
        """Start a server and return its pid. Raises what `init` raises, ValueError when the name is taken.

        From a coroutine on the node's loop only servers with a synchronous `init` can be started like this; use
        `await start_async(…)` for the others.
        """
        server = cls()
        loop = server._initialize(args, kwargs)
        return server._run(loop, name, None)

    @classmethod
    def start_link(cls, *args: Any, name: str | None = None, **kwargs: Any) -> Pid:
        """`start`, linked to the process this code runs in, else to the Erlang process whose request it serves.

        That is the supervisor when a supervisor starts it through erpc or gen_server:call. A request that came through
        the Erlang application's `py:call` does not tell its process.

        Raises: RuntimeError when there is neither.
        """
        parent = _parent()
        server = cls()
        loop = server._initialize(args, kwargs)
        return server._run(loop, name, parent)

    @classmethod
    async def start_async(
        cls, *args: Any, name: str | None = None, link: bool = False, **kwargs: Any
    ) -> Pid:
        """`start`, or with `link` `start_link`, for coroutines on the node's loop."""
        parent = _parent() if link else None
        server = cls()
        result = server.init(*args, **kwargs)
        if inspect.isawaitable(result):
            await result
        return server._run(_node_loop(), name, parent)

    def _initialize(
        self, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> asyncio.AbstractEventLoop:
        loop = _node_loop()
        if _on_loop(loop):
            if inspect.iscoroutinefunction(self.init):
                raise RuntimeError("init is a coroutine function: use await start_async()")
            self.init(*args, **kwargs)
        else:
            result = self.init(*args, **kwargs)
            if inspect.iscoroutine(result):
                asyncio.run_coroutine_threadsafe(result, loop).result()
        return loop

    def _run(self, loop: asyncio.AbstractEventLoop, name: str | None, parent: Pid | None) -> Pid:
        self._messages: deque[Any] = deque()
        self._waiter: asyncio.Future[None] | None = None
        self._task: asyncio.Task[None] | None = None
        self._stopped = False
        self._loop = loop
        self._parent = parent
        self._birth = _Birth(self.trap_exit, parent)
        self.pid = _backend.native.spawn_process(self._deliver, self._stop, name, self._begin)
        self._birth.give(self.pid)
        return self.pid

    def _begin(self, pid: Pid) -> None:
        self._birth.give(pid)
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
        result = await _in_worker(functools.partial(context.run, callback, *args))
        return await result if inspect.isawaitable(result) else result

    async def _serve(self) -> None:
        reason: Any = _NORMAL
        try:
            while True:
                await self._handle(await self._next())
        except asyncio.CancelledError as error:
            if self._task is None or self._task.cancelling():
                return  # ended by an exit signal: the node has told everybody
            reason = _reason_of(error)  # something it waited for was cancelled
        except Exception as error:
            reason = _reason_of(error)
            if not isinstance(error, Exit):
                _log.error("%s %s ends", type(self).__name__, self.pid, exc_info=error)
        try:
            await self._call(self.terminate, reason)
        except (Exception, asyncio.CancelledError) as error:
            reason = _reason_of(error)
        _exit_process(self.pid, reason)

    async def _handle(self, message: Any) -> None:
        match message:
            case ("$gen_call", (Pid() as caller, _) as sender, request):
                served = _backend.native.SERVED.set(caller)
                try:
                    value = await self._call(self.handle_call, request, sender)
                finally:
                    _backend.native.SERVED.reset(served)
                if value is not NO_REPLY:
                    reply(sender, value)
            case ("$gen_cast", request):
                await self._call(self.handle_cast, request)
            case ("system", (Pid(), _) as sender, ("terminate", reason)):
                reply(sender, Atom("ok"))
                raise Exit(reason)
            case ("EXIT", _, reason) if self._parent is not None and message[1] == self._parent:
                raise Exit(reason)
            case _:
                await self._call(self.handle_info, message)


def _parent() -> Pid:
    pid = current_pid()
    if pid is not None:
        return pid
    served = _backend.native.served()
    if isinstance(served, Pid):
        return served
    raise RuntimeError("start_link needs a process to link to; use start, or start it through erpc")


async def _in_worker(job: Callable[[], Any]) -> Any:
    """What `job` returns or raises on one of the node's workers."""
    future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

    def done(value: Any, error: BaseException | None) -> None:
        if future.done():
            return
        if isinstance(error, Exception):
            future.set_exception(error)
        elif error is not None:
            future.set_exception(RuntimeError(f"the callback raised {error!r}"))
        else:
            future.set_result(value)

    _backend.native.run_in_worker(job, done)
    return await future
