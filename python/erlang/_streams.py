"""The node's half of `py_stream`: what a function here yields goes to a process of a BEAM, under its demand.

    py_stream ── start(…) ──▶ a generator of any kind, and a process of the node for it
       │ ── ask, send, throw, cancel ──▶ that process      ▲ monitors the owner: its end cancels
    owner ◀── {py_stream, Ref, {items, …} | done | {error, …}} ──┘

A generator is stepped only as often as its owner has asked. Synchronous ones run on threads of their own, of which there is
a bounded number, each on one thread at a time; asynchronous ones in one task of the node's loop. Items gather for one message
only while the generator runs on: what waits is sent as soon as it pauses, and the first one at once.

What is exchanged is written down in docs/protocol.md.
"""

from __future__ import annotations

import asyncio
import builtins
import contextvars
import ctypes
import inspect
import logging
import threading
import time
import types
from collections import deque
from typing import Any

from erlang import _backend
from erlang.exceptions import Cancelled, NoConnection, Refused
from erlang.process import _node_loop, _reason_of
from erlang.terms import Atom, Pid, Ref

MAX_STREAMS = 10_000  # of the node, those that are being closed included
MAX_OWNED = 1_000  # of one owner
MAX_THREADS = 64  # that step synchronous generators
IDLE_SECONDS = 5.0  # after which such a thread ends
SPARE_PORTS = 64  # processes made ahead
KEEPER_SECONDS = 0.02  # until a new stream's owner is monitored
MAX_BATCH = 10_000  # items of a message
MAX_INPUTS = 1_000  # values sent and errors thrown that wait for their turn
MESSAGE_BYTES = 32_768  # after which a message is full; over 64 KB it would travel in fragments
WINDOW_BYTES = 67_108_864  # sent without another word from the consumer
LINGER_SECONDS = 0.001  # an item that comes later than this after the last message goes at once
TURN_SECONDS = 0.005  # for which a thread steps before it looks who else wants to
HEAVY_SECONDS = 0.001  # of the processor in one turn: then it needs a ticket for the next
TICKETS = 2  # generators that compute at the same time; the interpreter runs one thread at a time
TICKET_SECONDS = 0.25  # after which one goes without, as who has them may be blocked
SLICE_SECONDS = 0.002  # for which an asynchronous generator that never waits may hold the loop

_log = logging.getLogger("erlang")

_PY_STREAM = Atom("py_stream")
_ITEMS = Atom("items")
_DONE = Atom("done")
_ERROR = Atom("error")
_OVERLOADED = Atom("overloaded")
_CANCELLED = Atom("cancelled")
_NORMAL = Atom("normal")

Event = Any


# --- starting -----------------------------------------------------------------------------------------


_GENERATORS = (types.GeneratorType, types.AsyncGeneratorType)


class _Place:
    """A stream's place among those of its node and its owner, until it is given back."""

    def __init__(self, owner: Pid) -> None:
        self._owner = owner
        self._taken = False

    def take(self) -> bool:
        with _places:
            owned = _owned.get(self._owner, 0)
            self._taken = len(_taken) < MAX_STREAMS and owned < MAX_OWNED
            if self._taken:
                _taken.add(self)
                _owned[self._owner] = owned + 1
            return self._taken

    def give_back(self) -> None:
        """Also more than once."""
        with _places:
            if self not in _taken:
                return
            _taken.remove(self)
            _owned[self._owner] -= 1
            if not _owned[self._owner]:
                del _owned[self._owner]


_places = threading.Lock()
_taken: set[_Place] = set()
_owned: dict[Pid, int] = {}
_by_ref: dict[tuple[Pid, Ref], _Stream] = {}


def start(
    owner: Pid,
    ref: Ref,
    module: str | bytes,
    function: str | bytes,
    args: list[Any],
    kwargs: dict[str | bytes, Any] | list[Any],
    options: dict[str, Any],
) -> Any:
    """Call a function, and stream what it yields to `owner`. Returns the stream's process.

    Raises: Refused when there are too many streams; what the function raises; NotAllowed; TypeError when there is nothing to iterate over.
    """
    demand = _number(options.get("demand", 0), 0, None, "demand")
    batch = _number(options.get("batch", 512), 1, MAX_BATCH, "batch")
    names = {_text(name): value for name, value in dict(kwargs).items()}
    target = _resolve(_text(module), _text(function))
    place = _Place(owner)
    if not place.take():
        raise Refused(_OVERLOADED)
    try:
        source = target(*args, **names)
        if type(source) not in _GENERATORS and inspect.isawaitable(source):
            return _start_later(source, owner, ref, demand, batch, place)
        return _make(source, owner, ref, demand, batch, place).start()
    except BaseException:
        place.give_back()
        raise


async def _start_later(
    source: Any, owner: Pid, ref: Ref, demand: int, batch: int, place: _Place
) -> Pid:
    try:
        return _make(await source, owner, ref, demand, batch, place).start()
    except BaseException:
        place.give_back()
        raise


def forget(owner: Pid, ref: Ref) -> None:
    """Cancel the stream whose start came too late for its owner."""
    stream = _by_ref.get((owner, ref))
    if stream is not None:
        stream.cancel()


def count() -> int:
    """How many streams there are, those that are being closed included."""
    return len(_taken)


def _make(source: Any, owner: Pid, ref: Ref, demand: int, batch: int, place: _Place) -> _Stream:
    kind = type(source)
    if hasattr(kind, "__aiter__"):
        return _Asynchronous(aiter(source), owner, ref, demand, batch, place)
    if not hasattr(kind, "__iter__") and not hasattr(kind, "__getitem__"):
        raise TypeError(f"a stream needs something to iterate over, not {kind.__qualname__!r}")
    return _Threaded(iter(source), owner, ref, demand, batch, place)


def _text(name: str | bytes) -> str:
    return name.decode() if isinstance(name, bytes) else str(name)


def _number(value: Any, least: int, most: int | None, what: str) -> int:
    if type(value) is not int or value < least or most is not None and value > most:
        raise ValueError(f"{what} cannot be {value!r}")
    return value


def _resolve(module: str, function: str) -> Any:
    """What a call of that name would call."""
    return _backend.native.resolve(module, function)


# --- one stream ---------------------------------------------------------------------------------------


class _Stream:
    """What streams of both kinds have in common: work to do, and items on their way to the owner."""

    def __init__(
        self, source: Any, owner: Pid, ref: Ref, demand: int, batch: int, place: _Place
    ) -> None:
        self._source = source
        self._owner = owner
        self._ref = ref
        self._batch = batch
        self._place = place
        self._loop = _node_loop()
        self._context = contextvars.copy_context()
        self._lock = threading.Lock()
        # How many items are asked for, ("send", value) or ("throw", type, message); in order. Under the lock.
        self._work: deque[Any] = deque([demand] if demand else [])
        self._inputs = 0  # of them
        self._items: list[Any] = []  # that wait for their message
        self._size = 0  # of those, about
        self._unheard = 0  # bytes since the consumer was last heard of
        self._sent_at = float("-inf")
        self._armed = False  # the loop is to send what waits
        self._over = False  # the owner has been told how it ended
        self._pid: Pid | None = None
        self._monitor: Ref | None = None

    def start(self) -> Pid:
        port = _ports.take()
        self._pid = port.pid
        _by_ref[self._owner, self._ref] = self
        port.attach(self)
        _ports.look_after(self)
        self._begin()
        return self._pid

    def watch(self) -> None:
        """Cancels it when its owner ends; the keeper does this, as it waits for the reactor."""
        if self._pid is not None and not self._over:
            self._monitor = _backend.native.monitor(self._pid, self._owner)

    # messages to the process, on the loop

    def deliver(self, messages: list[Any]) -> None:
        for message in messages:
            if message == "cancel":
                self.cancel()
            elif not isinstance(message, tuple) or not self._take_in(*message):
                _log.warning("a stream does not understand %.200r", message)

    def _take_in(self, verb: Any = None, *rest: Any) -> bool:
        """Whether that was a message of ours."""
        if verb == "ask" and len(rest) == 1 and type(rest[0]) is int and rest[0] >= 0:
            self._ask(rest[0])
        elif verb == "send" and len(rest) == 1:
            self._put(("send", rest[0]))
        elif verb == "throw" and len(rest) == 2 and all(isinstance(x, (str, bytes)) for x in rest):
            self._put(("throw", *rest))
        elif verb == "DOWN" and len(rest) == 4 and rest[2] == self._owner:
            self.cancel()
        else:
            return False
        return True

    def _ask(self, number: int) -> None:
        with self._lock:
            self._unheard = 0
            if number and not self._over:
                if self._work and type(self._work[-1]) is int:
                    self._work[-1] += number
                else:
                    self._work.append(number)
            if not self._work:
                return
        self._kick()

    def _put(self, message: Any) -> None:
        with self._lock:
            self._inputs += 1
            full = self._inputs > MAX_INPUTS
            if not full and not self._over:
                self._unheard = 0
                self._work.append(message)
        if full:
            self._end((_ERROR, _OVERLOADED))
            self._abandon()
        else:
            self._kick()

    def cancel(self) -> None:
        """Ends it: the owner is told, the generator closed. Any thread."""
        self._end((_ERROR, _CANCELLED))
        self._abandon()

    # whoever steps the generator

    def _take(self) -> Any:
        """What to do next: a number of steps, an input, or None for nothing now."""
        with self._lock:
            work = self._work
            if self._over or not work or self._unheard >= WINDOW_BYTES:
                self._send_items()
                return None
            first = work[0]
            if type(first) is not int:
                self._inputs -= 1
                return work.popleft()
            if first <= self._batch:
                return work.popleft()
            work[0] = first - self._batch
            return self._batch

    def _give_back(self, steps: int) -> None:
        with self._lock:
            if not steps or self._over:
                return
            if self._work and type(self._work[0]) is int:
                self._work[0] += steps
            else:
                self._work.appendleft(steps)

    def _item(self, item: Any) -> None:
        """One more for the owner."""
        size = _FIXED.get(type(item)) or _size_of(item)
        with self._lock:
            self._items.append(item)
            self._size += size
            self._unheard += size
            if (
                self._size >= MESSAGE_BYTES
                or len(self._items) >= self._batch
                or time.monotonic() - self._sent_at > LINGER_SECONDS
            ):
                self._send_items()
            elif not self._armed:
                self._armed = True
                self._loop.call_soon_threadsafe(self._loop.call_later, LINGER_SECONDS, self._flush)

    def _flush(self) -> None:
        with self._lock:
            self._armed = False
            self._send_items()

    def _send_items(self) -> None:
        """Under the lock."""
        items = self._items
        if not items or self._over:
            return
        self._items = []
        self._size = 0
        try:
            self._tell((_ITEMS, items))
        except Exception:
            self._send_singly(items)
        self._sent_at = time.monotonic()

    def _send_singly(self, items: list[Any]) -> None:
        """One of them is no term: those before it are sent, and it is the end."""
        for item in items:
            try:
                self._tell((_ITEMS, [item]))
            except Exception as error:
                self._finish((_ERROR, _reason_of(error)))
                self._loop.call_soon_threadsafe(self._abandon)
                return

    def _tell(self, event: Event) -> None:
        try:
            _backend.native.send(self._owner, (_PY_STREAM, self._ref, event))
        except NoConnection:
            pass  # the monitor tells

    def _end(self, event: Event) -> None:
        """Once: after what waits the owner gets `event`, and nothing more."""
        with self._lock:
            self._send_items()
            self._finish(event)

    def _finish(self, event: Event) -> None:
        """Under the lock."""
        if self._over:
            return
        self._over = True
        self._work.clear()
        self._items = []
        _by_ref.pop((self._owner, self._ref), None)
        try:
            self._tell(event)
        except Exception:
            _log.exception("the end of a stream cannot be told")
        if self._pid is not None:
            _backend.native.exit_process(self._pid, _NORMAL)

    def _closed(self) -> None:
        """The generator has been closed."""
        self._source = None
        self._place.give_back()

    def _begin(self) -> None:
        """There may be work from now on."""
        raise NotImplementedError

    def _kick(self) -> None:
        """There is work."""
        raise NotImplementedError

    def _abandon(self) -> None:
        """It has ended, and the generator is to be closed as soon as it can be."""
        raise NotImplementedError


class _Port:
    """A process of the node that is, or will be, a stream's."""

    def __init__(self) -> None:
        self._stream: _Stream | None = None
        self.alive = True
        try:
            self.pid: Pid = _backend.native.spawn_process(self._deliver, self._stopped)
        except RuntimeError as error:
            raise RuntimeError(f"no stream can be made here: {error}") from error

    def attach(self, stream: _Stream) -> None:
        self._stream = stream
        if not self.alive:
            stream.cancel()

    def _deliver(self, messages: list[Any]) -> None:
        if self._stream is not None:
            self._stream.deliver(messages)

    def _stopped(self, reason: Any) -> None:
        self.alive = False
        if self._stream is not None:
            self._stream.cancel()


class _Ports:
    """A few processes ahead, so that a start need not wait for the reactor; a thread sees to that and to monitors."""

    def __init__(self) -> None:
        self._spare: deque[_Port] = deque()
        self._unwatched: deque[_Stream] = deque()
        self._wanted = threading.Event()
        self._lock = threading.Lock()
        self._keeper: threading.Thread | None = None

    def take(self) -> _Port:
        while self._spare:
            try:
                port = self._spare.popleft()
            except IndexError:
                break
            if port.alive:
                return port
        return _Port()

    def look_after(self, stream: _Stream) -> None:
        self._unwatched.append(stream)
        if not self._wanted.is_set():
            self._wanted.set()
        if self._keeper is None:
            with self._lock:
                if self._keeper is None:
                    self._keeper = threading.Thread(target=self._keep, name="streams", daemon=True)
                    self._keeper.start()

    def _keep(self) -> None:
        while self._wanted.wait():
            time.sleep(KEEPER_SECONDS)  # what it has to do is in nobody's way then
            if not self._unwatched:
                self._wanted.clear()
                if self._unwatched:  # which came before it was cleared
                    self._wanted.set()
                continue
            while self._unwatched:
                stream = self._unwatched.popleft()
                try:
                    stream.watch()
                except Exception as error:
                    _log.warning("a stream's owner cannot be watched: %s", error)
                    stream.cancel()
            try:
                while len(self._spare) < SPARE_PORTS:
                    self._spare.append(_Port())
            except Exception as error:
                _log.debug("no processes ahead for streams: %s", error)


_ports = _Ports()


def _failure(error: BaseException) -> Event:
    if isinstance(error, Refused):
        return _ERROR, error.reason
    kind, name, message, text = _reason_of(error)
    return _ERROR, (kind, _sendable(name), _sendable(message), _sendable(text))


def _sendable(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()


def _exception(kind: str | bytes, message: str | bytes) -> BaseException:
    """The exception to throw: of a builtin class, or of `module.Class`, which has to be one that may be called."""
    name = _text(kind)
    module, dot, last = name.rpartition(".")
    found = _resolve(module, last) if dot else getattr(builtins, name, None)
    if not (isinstance(found, type) and issubclass(found, Exception)):
        raise TypeError(f"{name!r} is no exception")
    return found(_text(message))


_FIXED: dict[type, int] = {int: 9, float: 9, bool: 6, type(None): 6}


def _size_of(item: Any) -> int:
    """About how many bytes an item takes, without looking into it deeply."""
    if isinstance(item, (str, bytes, bytearray)):
        return 8 + len(item)
    if isinstance(item, (tuple, list)):
        return 8 + sum(map(_size_of_part, item))
    if isinstance(item, dict):
        return 8 + sum(map(_size_of_part, item)) + sum(map(_size_of_part, item.values()))
    return _size_of_part(item)


def _size_of_part(item: Any) -> int:
    if isinstance(item, (str, bytes, bytearray)):
        return 8 + len(item)
    if isinstance(item, (tuple, list, dict)):
        return 8 + 16 * len(item)
    size: int = getattr(item, "nbytes", 16)
    return size


# --- asynchronous generators --------------------------------------------------------------------------


class _Asynchronous(_Stream):
    """One that is stepped by a task of the node's loop."""

    _task: asyncio.Task[None] | None = None
    _wake: asyncio.Future[None] | None = None
    _leaving = False  # its task has been cancelled, or closes the generator

    def _begin(self) -> None:
        self._loop.call_soon_threadsafe(self._begin_task)

    def _begin_task(self) -> None:
        self._task = self._loop.create_task(self._run(), context=self._context)

    def _kick(self) -> None:
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)

    def _abandon(self) -> None:
        self._loop.call_soon_threadsafe(self._interrupt)

    def _interrupt(self) -> None:
        if self._task is not None and not self._leaving:
            self._leaving = True
            self._task.cancel()

    async def _run(self) -> None:
        try:
            event = await self._steps()
        except asyncio.CancelledError:
            event = _ERROR, _CANCELLED
        except BaseException as error:
            event = _failure(error)
        self._leaving = True
        self._end(event)
        try:
            close = getattr(self._source, "aclose", None)
            if close is not None:
                await close()
        except BaseException as error:
            if not isinstance(error, asyncio.CancelledError):
                _log.error("a generator raised when it was closed", exc_info=error)
        finally:
            self._closed()

    async def _steps(self) -> Event:
        source = self._source
        step = source.__anext__
        until = time.monotonic() + SLICE_SECONDS
        while True:
            work = self._take()
            if work is None:
                if self._over:
                    return _DONE
                self._wake = self._loop.create_future()
                # Work may have come since: messages are delivered by this very thread, so not in between.
                await self._wake
                until = time.monotonic() + SLICE_SECONDS
                continue
            try:
                if type(work) is not int:
                    self._item(await self._fed(work))
                    continue
                for step_number in range(work):
                    self._item(await step())
                    if self._over:
                        return _DONE
                    if self._unheard >= WINDOW_BYTES or time.monotonic() > until:
                        self._give_back(work - step_number - 1)
                        break
            except StopAsyncIteration:
                return _DONE
            if time.monotonic() > until:
                await asyncio.sleep(0)
                until = time.monotonic() + SLICE_SECONDS

    async def _fed(self, work: tuple[Any, ...]) -> Any:
        source = self._source
        if work[0] == "send":
            if not hasattr(source, "asend"):
                raise TypeError(f"{type(source).__qualname__!r} takes no values")
            return await source.asend(work[1])
        error = _exception(work[1], work[2])
        if not hasattr(source, "athrow"):
            raise error
        return await source.athrow(error)


# --- synchronous generators ---------------------------------------------------------------------------


class _Threaded(_Stream):
    """One that is stepped by a thread, which it takes while there is work."""

    _running = False  # or about to; under the lock
    _thread: _Thread | None = None
    _heavy = False  # it computes, rather than waits

    def _begin(self) -> None:
        if self._work:
            self._kick()

    def _kick(self) -> None:
        with self._lock:
            if self._running or self._source is None:
                return
            self._running = True
        _threads.submit(self)

    def _abandon(self) -> None:
        thread = self._thread
        if thread is not None:
            thread.interrupt(self)
        self._kick()

    def run(self, thread: _Thread) -> None:
        """Steps the generator for as long as there is work and nobody else waits for a thread."""
        self._thread = thread
        while True:
            ticket = self._heavy and _tickets.acquire(timeout=TICKET_SECONDS)
            began = time.thread_time()
            try:
                event = self._interruptible(thread)
            except Cancelled:  # which struck when it was out of the generator already
                event = None
            while True:
                try:
                    thread.leave()
                    break
                except Cancelled:
                    pass
            self._heavy = time.thread_time() - began > HEAVY_SECONDS
            if ticket:
                _tickets.release()
            if event is not None:
                self._end(event)
            if self._over:
                return self._close()
            with self._lock:
                if not self._work or self._unheard >= WINDOW_BYTES:
                    self._running = False
                    return
            if _threads.crowded:
                return _threads.submit(self)

    def _interruptible(self, thread: _Thread) -> Event:
        try:
            thread.enter(self)
            return self._context.run(self._steps)
        except BaseException as error:
            return None if self._over else _failure(error)

    def _close(self) -> None:
        source, self._source = self._source, None
        try:
            close = getattr(source, "close", None)
            if close is not None:
                self._context.run(close)
        except BaseException as error:
            _log.error("a generator raised when it was closed", exc_info=error)
        finally:
            del source
            self._closed()

    def _steps(self) -> Event:
        source = self._source
        step = source.__next__
        put = self._item
        until = time.monotonic() + TURN_SECONDS
        while True:
            work = self._take()
            if work is None:
                return None
            try:
                if type(work) is not int:
                    put(self._fed(work))
                    continue
                for step_number in range(work):
                    put(step())
                    if self._over:
                        break
                    if self._unheard >= WINDOW_BYTES or time.monotonic() > until:
                        self._give_back(work - step_number - 1)
                        break
            except StopIteration:
                return _DONE
            if time.monotonic() > until:
                return None

    def _fed(self, work: tuple[Any, ...]) -> Any:
        source = self._source
        if work[0] == "send":
            if not hasattr(source, "send"):
                raise TypeError(f"{type(source).__qualname__!r} takes no values")
            return source.send(work[1])
        error = _exception(work[1], work[2])
        if not hasattr(source, "throw"):
            raise error
        return source.throw(error)


class _Thread:
    """A thread for generators. What it runs for a stream can be interrupted from outside, nothing else."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._ident = threading.get_ident()
        self._stream: _Threaded | None = None
        self._interrupted = False

    def enter(self, stream: _Threaded) -> None:
        self._stream = stream

    def leave(self) -> None:
        """From here on no interruption strikes, one that was on its way included."""
        with self._lock:
            self._stream = None
            if self._interrupted:
                self._interrupted = False
                _raise_in(self._ident, None)

    def interrupt(self, stream: _Threaded) -> None:
        """As for a cancelled call: erlang.Cancelled is raised at the next bytecode of the stream's code."""
        with self._lock:
            if self._stream is stream and not self._interrupted:
                self._interrupted = _raise_in(self._ident, Cancelled)


def _raise_in(ident: int, kind: type[BaseException] | None) -> bool:
    raised = ctypes.pythonapi.PyThreadState_SetAsyncExc(
        ctypes.c_ulong(ident), None if kind is None else ctypes.py_object(kind)
    )
    return bool(raised)


class _Threads:
    """The threads, which come with work and go without."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._waiting: deque[_Threaded] = deque()
        self._idle = 0
        self._live = 0
        self._numbers = 0

    @property
    def crowded(self) -> bool:
        """Whether streams wait for a thread."""
        return bool(self._waiting) and not self._idle and self._live >= MAX_THREADS

    def submit(self, stream: _Threaded) -> None:
        with self._changed:
            self._waiting.append(stream)
            if self._idle >= len(self._waiting):
                self._changed.notify()
                return
            if self._live >= MAX_THREADS:
                return
            self._live += 1
            self._numbers += 1
            name = f"stream-{self._numbers}"
        threading.Thread(target=self._serve, name=name, daemon=True).start()

    def _serve(self) -> None:
        thread = _Thread()
        while (stream := self._next()) is not None:
            try:
                stream.run(thread)
            except BaseException:
                _log.exception("a stream failed inside the node")
            del stream

    def _next(self) -> _Threaded | None:
        with self._changed:
            self._idle += 1
            there = self._changed.wait_for(lambda: self._waiting, IDLE_SECONDS)
            self._idle -= 1
            if not there:
                self._live -= 1
                return None
            return self._waiting.popleft()


_threads = _Threads()
_tickets = threading.Semaphore(TICKETS)
