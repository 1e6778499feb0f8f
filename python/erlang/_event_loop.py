"""Loops that Erlang operates: the node's half of `py_event_loop` and `py_event_router`.

    py_event_loop ── py:call ──▶ the node's loop ── jobs ──▶ the loop's own thread
    router ◀───────── {py_event, Loop, Event} ───────────────┘

A loop is a process of the node: it ends with its owner, by an exit signal or by `destroy`, and takes its thread with it. What
is watched, what has happened and who is told belongs to that thread alone, so every request becomes a job there. What the
functions at the end return is what `py_event_loop` hands to its callers.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import importlib
import logging
import os
import socket
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future, InvalidStateError
from typing import Any, TypeVar

from erlang import _backend
from erlang.exceptions import NoConnection
from erlang.process import Exit, monitor, receive, self_pid, spawn
from erlang.terms import Atom, Pid, Ref

MAX_LOOPS = 64  # each has a thread
MAX_WATCHES = 1024
MAX_TIMERS = 1024  # with those that are over and nobody has been told of
MAX_PENDING = MAX_WATCHES + MAX_TIMERS
MAX_POLLERS = 1024
MAX_SOCKETS = 64

_log = logging.getLogger("erlang")
_RETRY = 0.05  # seconds until a router that could not be told is told again
_OK = Atom("ok")
_NONE = (_OK, 0)
_CLOSED = (Atom("error"), Atom("closed"))
_PY_EVENT = Atom("py_event")
_GONE = Atom("closed")
_TIMEOUT = Atom("timeout")

_Job = TypeVar("_Job", bound=Callable[..., Any])
_jobs: dict[str, Callable[..., Any]] = {}


def _job(function: _Job) -> _Job:
    """What `do` may be asked for."""
    _jobs[function.__name__] = function
    return function


def _new_event_loop() -> asyncio.AbstractEventLoop:
    """A loop that shares nothing with others: ours, or asyncio's where ours has not been built."""
    try:
        package = importlib.import_module("erlang_loop")
    except ImportError:
        return asyncio.SelectorEventLoop()
    loop: asyncio.AbstractEventLoop = package.ErlangEventLoop(isolated=True)
    return loop


def _ok(value: Any) -> tuple[Atom, Any]:
    return _OK, value


def _too_many(what: str) -> tuple[Atom, Any]:
    return Atom("error"), (Atom("too_many"), Atom(what))


def _posix(error: OSError) -> tuple[Atom, Any]:
    """As `inet` and `file` name it."""
    return Atom("error"), Atom(errno.errorcode.get(error.errno or 0, "EIO").lower())


class _Watch:
    """One direction of one descriptor: in the poll set while armed, and no longer once it has been told of."""

    __slots__ = ("armed", "fd", "id", "kind", "ref")

    def __init__(self, kind: Atom, fd: int, id: int) -> None:
        self.kind, self.fd, self.id = kind, fd, id
        self.ref: Ref = _backend.native.make_ref()
        self.armed = False


class _Events:
    """What one loop watches, what has happened, and who is told. Everything here runs on the loop's thread.

    Each reader and each timer has one event at most under way to the router or waiting to be collected, so what waits
    is bounded by what is watched.
    """

    def __init__(
        self, loop: asyncio.AbstractEventLoop, pid: Pid, happened: Callable[[], object]
    ) -> None:
        self._loop = loop
        self._pid = pid
        self._happened = (
            happened  # called when there is something to collect and was nothing before
        )
        self._watches: dict[tuple[Atom, int], _Watch] = {}
        self._refs: dict[Ref, _Watch] = {}
        self._timers: dict[Ref, asyncio.TimerHandle] = {}
        self._pending: dict[Ref, tuple[Atom, Any, int]] = {}
        self._sockets: dict[int, socket.socket] = {}
        self._router: Pid | None = None
        self._router_monitor: Ref | None = None
        self._retry: asyncio.TimerHandle | None = None

    def close(self) -> None:
        for watch in list(self._refs.values()):
            self._forget(watch)
        for timer in [*self._timers.values(), self._retry]:
            if timer is not None:
                timer.cancel()
        for own in self._sockets.values():
            own.close()

    # --- what is watched --------------------------------------------------------------------------

    @_job
    def add(self, kind: Atom, fd: int, id: int) -> Any:
        """Watches one direction of a descriptor, in place of what watched it before."""
        before = self._watches.get((kind, fd))
        full = len(self._watches) >= MAX_WATCHES or len(self._pending) >= MAX_PENDING
        if before is not None:
            self._forget(before)
        elif full:
            return _too_many("readers")
        watch = _Watch(kind, fd, id)
        self._arm(watch)
        self._watches[kind, fd] = self._refs[watch.ref] = watch
        return _ok(watch.ref)

    @_job
    def remove(self, kind: Atom, which: Ref | int) -> Any:
        for watch in self._find(which):
            if watch.kind == kind:
                self._forget(watch)
        return _OK

    @_job
    def rearm(self, which: Ref | int) -> Any:
        """What waits to be collected is armed when it is."""
        for watch in self._find(which):
            if not watch.armed and watch.ref not in self._pending:
                try:
                    self._arm(watch)
                except OSError:
                    self._forget(watch)
                    raise
        return _OK

    def _find(self, which: Ref | int) -> list[_Watch]:
        if isinstance(which, Ref):
            found = [self._refs.get(which)]
        else:
            found = [self._watches.get((Atom(kind), which)) for kind in ("readable", "writable")]
        return [watch for watch in found if watch is not None]

    def _arm(self, watch: _Watch) -> None:
        os.fstat(watch.fd)  # not every loop notices at once that a descriptor has been closed
        add = self._loop.add_reader if watch.kind == "readable" else self._loop.add_writer
        add(watch.fd, self._ready, watch)
        watch.armed = True

    def _take_off(self, watch: _Watch) -> None:
        off = self._loop.remove_reader if watch.kind == "readable" else self._loop.remove_writer
        with contextlib.suppress(OSError):  # closed, and watched in the other direction too
            off(watch.fd)
        watch.armed = False

    def _forget(self, watch: _Watch) -> None:
        self._take_off(watch)
        self._pending.pop(watch.ref, None)
        self._refs.pop(watch.ref, None)
        self._watches.pop((watch.kind, watch.fd), None)

    def _rearm_all(self, watches: Iterable[_Watch]) -> None:
        """For whom nobody asked: that a descriptor is gone is an event, its last."""
        for watch in watches:
            try:
                self._arm(watch)
            except OSError:
                self._forget(watch)
                self._tell(watch.ref, (_GONE, watch.fd, watch.id))

    @_job
    def start_timer(self, milliseconds: int, id: int) -> Any:
        if len(self._timers) >= MAX_TIMERS:
            return _too_many("timers")
        ref: Ref = _backend.native.make_ref()
        event = (_TIMEOUT, ref, id)
        self._timers[ref] = self._loop.call_later(milliseconds / 1000, self._tell, ref, event)
        return _ok(ref)

    @_job
    def cancel_timer(self, ref: Ref) -> Any:
        timer = self._timers.pop(ref, None)
        if timer is not None:
            timer.cancel()
            self._pending.pop(ref, None)
        return _OK

    # --- what has happened ------------------------------------------------------------------------

    def _ready(self, watch: _Watch) -> None:
        self._take_off(watch)
        self._tell(watch.ref, (watch.kind, watch.fd, watch.id))

    def _tell(self, ref: Ref, event: tuple[Atom, Any, int]) -> None:
        self._pending[ref] = event
        if self._router is not None:
            self._flush()
        elif len(self._pending) == 1:
            self._happened()

    def _flush(self) -> None:
        """To the router, in order. One that cannot be told may be later, if its DOWN is not on its way."""
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None
        for ref, event in list(self._pending.items()) if self._router is not None else ():
            try:
                _backend.native.send(self._router, (_PY_EVENT, self._pid, event))
            except (NoConnection, BlockingIOError):
                self._retry = self._loop.call_later(_RETRY, self._flush)
                return
            del self._pending[ref]
            self._timers.pop(ref, None)

    @_job
    def get_pending(self) -> Any:
        """Hands over what has happened. Its readers are armed again: what is still ready will happen again."""
        taken, self._pending = self._pending, {}
        for ref in taken:
            self._timers.pop(ref, None)
        self._rearm_all([self._refs[ref] for ref in taken if ref in self._refs])
        return _ok(list(taken.values()))

    def count(self) -> int:
        """Of what waits to be collected; what waits for a router does not."""
        return len(self._pending) if self._router is None else 0

    # --- who is told ------------------------------------------------------------------------------

    @_job
    def set_router(self, router: Pid | None) -> Any:
        if router != self._router:
            if self._router_monitor is not None:
                _backend.native.demonitor(self._pid, self._router_monitor)
            self._change_router(router)
        return _OK

    def router_down(self, ref: Ref) -> None:
        if ref == self._router_monitor:
            self._change_router(None)

    def _change_router(self, router: Pid | None) -> None:
        """Nobody knows what was left to read when the one before went, so whatever is ready is told of again."""
        watch = _backend.native.monitor
        self._router = router
        self._router_monitor = None if router is None else watch(self._pid, router)
        told = [
            one for one in self._refs.values() if not one.armed and one.ref not in self._pending
        ]
        self._rearm_all(told)
        self._flush()
        if self.count():
            self._happened()

    @_job
    def info(self) -> Any:
        kinds = [kind for kind, _ in self._watches]
        return _ok(
            {
                Atom("readers"): kinds.count(Atom("readable")),
                Atom("writers"): kinds.count(Atom("writable")),
                Atom("timers"): len(self._timers),
                Atom("pending"): len(self._pending),
                Atom("sockets"): len(self._sockets),
                Atom("router"): self._router or Atom("none"),
            }
        )

    # --- sockets for tests ------------------------------------------------------------------------

    @_job
    def open_udp(self, port: int) -> Any:
        if len(self._sockets) >= MAX_SOCKETS:
            return _too_many("sockets")
        own = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        try:
            own.bind(("127.0.0.1", port))
        except OSError:
            own.close()
            raise
        self._sockets[own.fileno()] = own
        return _ok((own.fileno(), own.getsockname()[1]))

    @_job
    def send_udp(self, fd: int, host: str, port: int, data: bytes) -> Any:
        self._own(fd).sendto(data, (host, port))
        return _OK

    @_job
    def receive_udp(self, fd: int, size: int) -> Any:
        """A socket that is found empty has been drained: what watches it is armed again."""
        try:
            data, (host, port) = self._own(fd).recvfrom(size)
        except BlockingIOError:
            self.rearm(fd)
            raise
        return _ok((data, (host, port)))

    @_job
    def close_udp(self, fd: int) -> Any:
        own = self._own(fd)
        for watch in self._find(fd):
            self._forget(watch)
        del self._sockets[fd]
        own.close()
        return _OK

    def _own(self, fd: int) -> socket.socket:
        if fd not in self._sockets:
            raise OSError(errno.EBADF, "not a socket of this loop")
        return self._sockets[fd]


class _Loop:
    """A loop: its process on the node's loop, and its thread."""

    def __init__(self, owner: Pid) -> None:
        self._owner = owner
        self.pid: Pid
        self._task: asyncio.Task[Any] | None = None
        self._abandoned = False
        self._leaving = False
        self._node_loop = asyncio.get_running_loop()
        #: {ok, Pid} or {error, Reason}.
        self.started: asyncio.Future[Any] = self._node_loop.create_future()
        self._running: asyncio.Future[None] = self._node_loop.create_future()
        self._ended: asyncio.Future[None] = self._node_loop.create_future()
        self._news = asyncio.Event()  # set, and replaced, when there is something to collect
        self._pollers = 0
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None  # while jobs are taken; under the lock
        self._asked: set[Future[Any]] = set()  # under the lock
        self._events: _Events  # of the thread

    # --- the process ------------------------------------------------------------------------------

    async def live(self) -> None:
        """As long as this runs there is a loop.

        Raises: Exit with the owner's reason.
        """
        self.pid = pid = self_pid()
        self._task = asyncio.current_task()
        name = f"py_event_loop {pid}"
        thread = threading.Thread(target=self._run, args=(pid,), name=name, daemon=True)
        try:
            if self._abandoned:
                return
            thread.start()
            await asyncio.shield(self._running)
            _loops[pid] = self
            if not self.started.done():
                self.started.set_result(_ok(pid))
            await self._serve(monitor(self._owner))
        except asyncio.CancelledError:
            if not self._abandoned:
                raise
        except Exception as error:
            if self.started.done():
                raise
            self.started.set_exception(error)
        finally:
            self._leaving = True
            _loops.pop(pid, None)
            if thread.ident is not None:
                await self._stop()
            _alive.discard(self)

    async def _serve(self, owner: Ref) -> None:
        while True:
            match await receive():
                case ("DOWN", ref, "process", _, reason):
                    if ref == owner:
                        raise Exit(reason)
                    await self.do(_Events.router_down, ref)

    async def _stop(self) -> None:
        """The thread leaves at once, so nothing is gained by leaving before it, whoever is impatient."""
        with self._lock:
            self._abandoned = True
            if self._loop is not None:
                self._loop.call_soon_threadsafe(self._loop.stop)
        while not self._ended.done():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.shield(self._ended)
        self._wake()

    def abandon(self) -> None:
        """Ends the process with reason normal."""
        self._abandoned = True
        if self._task is not None and not self._leaving:
            self._task.cancel()

    async def destroy(self) -> None:
        self.abandon()
        await asyncio.shield(self._ended)

    def _fail(self, error: BaseException) -> None:
        if self._running.done():
            _log.error("the loop of %s ended", self.pid, exc_info=error)
        else:
            self._running.set_exception(error)

    def _set_ended(self) -> None:
        self._ended.set_result(None)
        if self._task is not None and self.started.done() and not self._leaving:
            self._task.cancel()  # the thread ended unasked

    # --- asking the thread ------------------------------------------------------------------------

    async def do(self, job: Callable[..., Any], *args: Any) -> Any:
        """What `job` returns on the thread, or {error, closed}."""
        future: Future[Any] = Future()
        with self._lock:
            if self._loop is None:
                return _CLOSED
            self._asked.add(future)
            self._loop.call_soon_threadsafe(self._perform, future, job, args)
        return await asyncio.wrap_future(future)

    async def poll(self, timeout: float | None) -> Any:
        """How many events wait to be collected, once there are any or the time is over."""
        if self._pollers >= MAX_POLLERS:
            return _too_many("pollers")
        self._pollers += 1
        try:
            news = self._news  # before it looks, so that nothing happens unseen
            result = await self._count()
            if timeout == 0:
                return result
            async with asyncio.timeout(timeout):
                while result == _NONE:
                    await news.wait()
                    news = self._news
                    result = await self._count()
            return result
        except TimeoutError:
            return _NONE
        finally:
            self._pollers -= 1

    async def _count(self) -> Any:
        count = await self.do(_Events.count)
        return _ok(count) if isinstance(count, int) else count

    def _wake(self) -> None:
        self._news.set()
        self._news = asyncio.Event()

    # --- the thread -------------------------------------------------------------------------------

    def _run(self, pid: Pid) -> None:
        try:
            self._turn(pid)
        except BaseException as error:
            self._report(self._fail, error)
        self._report(self._set_ended)

    def _turn(self, pid: Pid) -> None:
        loop = _new_event_loop()
        self._events = _Events(loop, pid, lambda: self._report(self._wake))
        with self._lock:
            self._loop = loop
            if self._abandoned:
                loop.call_soon(loop.stop)
        self._report(self._running.set_result, None)
        try:
            loop.run_forever()
        finally:
            with self._lock:
                self._loop = None
            self._events.close()
            del self._events
            loop.close()
            for future in self._asked:  # of the thread alone by now
                _answer(future, _CLOSED)

    def _report(self, news: Callable[..., object], *args: Any) -> None:
        with contextlib.suppress(RuntimeError):  # the node has ended
            self._node_loop.call_soon_threadsafe(news, *args)

    def _perform(self, future: Future[Any], job: Callable[..., Any], args: tuple[Any, ...]) -> None:
        with self._lock:
            self._asked.discard(future)
        if future.cancelled():
            return
        try:
            _answer(future, job(self._events, *args))
        except OSError as error:
            _answer(future, _posix(error))
        except Exception as error:
            with contextlib.suppress(InvalidStateError):
                future.set_exception(error)


def _answer(future: Future[Any], result: Any) -> None:
    with contextlib.suppress(InvalidStateError):  # nobody waits any more
        future.set_result(result)


# --- what py_event_loop calls, on the node's loop ---------------------------------------------------

_alive: set[_Loop] = set()
_loops: dict[Pid, _Loop] = {}  # those that can be asked


async def new(owner: Pid) -> Any:
    """A loop that ends with `owner`."""
    if len(_alive) >= MAX_LOOPS:
        return _too_many("loops")
    loop = _Loop(owner)
    spawn(loop.live)
    _alive.add(loop)
    try:
        return await loop.started
    except OSError as error:
        return _posix(error)
    except asyncio.CancelledError:  # nobody would ever know of it
        loop.abandon()
        raise


async def destroy(pid: Pid) -> Any:
    """Returns when the descriptors are closed."""
    loop = _loops.get(pid)
    if loop is not None:
        await loop.destroy()
    return _OK


async def do(pid: Pid, what: str, *args: Any) -> Any:
    """What the job of that name says, or {error, closed}."""
    loop = _loops.get(pid)
    return _CLOSED if loop is None else await loop.do(_jobs[what], *args)


async def poll(pid: Pid, milliseconds: int | str) -> Any:
    """How many events wait to be collected, once there are any or the time is over; it may be `infinity`."""
    loop = _loops.get(pid)
    if loop is None:
        return _CLOSED
    return await loop.poll(milliseconds / 1000 if isinstance(milliseconds, int) else None)
