"""Python's logging and print in the node's log, or in the logger of a BEAM.

The node sets the first up by itself (`--capture off` leaves Python's output alone). For the second:

    logging.getLogger().addHandler(erlang.logs.BeamHandler())
"""

from __future__ import annotations

import asyncio
import io
import logging
import sys
import threading
import traceback
from collections.abc import Mapping
from typing import Any

from erlang import _backend, _native, _trace
from erlang.terms import Atom

__all__ = ["BeamHandler", "NodeHandler", "install"]

_LEVELS = (
    (logging.CRITICAL, Atom("critical")),
    (logging.ERROR, Atom("error")),
    (logging.WARNING, Atom("warning")),
    (logging.INFO, Atom("info")),
)

_LOGGER_LEVELS = (
    "emergency",
    "alert",
    "critical",
    "error",
    "warning",
    "notice",
    "info",
    "debug",
)

#: What every record has; whatever else it has was given as `extra`.
_OWN_FIELDS = {*vars(logging.makeLogRecord({})), "message", "asctime", "taskName", "erlang"}

#: Characters of a text, or of a traceback.
_LONGEST = 65536

#: A name that nobody registers.
_QUESTION = "$erlang.logs"

#: Levels of the node that `logging` does not know by name.
_NODE_LEVELS = {"trace": logging.DEBUG, "err": logging.ERROR, "off": logging.CRITICAL}


class NodeHandler(logging.Handler):
    """Writes records to the node's log: `logger: message`, with the traceback if there is one."""

    def __init__(self, level: int = logging.NOTSET) -> None:
        super().__init__(level)
        self.setFormatter(logging.Formatter("%(name)s: %(message)s"))

    def emit(self, record: logging.LogRecord) -> None:
        try:
            _backend.native.log(record.levelno, self.format(record), False, _trace.ids())
        except Exception:
            self.handleError(record)


class _NoLock:
    """For `logging`, which would hold a lock while a record is sent: a thread that never came back from there, as at
    the end of the program, would keep `logging.shutdown` waiting."""

    def acquire(self) -> bool:
        return True

    def release(self) -> None:
        pass

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        pass


class _Window:
    """Records on their way to one peer: no more than `size` that it has not handled."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._lock = threading.Lock()  # never held while anything is sent
        self._on_their_way = 0
        self._question: Any = None
        self._lost = 0
        self.dropped = 0

    def enter(self) -> bool:
        """Whether there is room for one more."""
        with self._lock:
            if self._on_their_way < self._size:
                self._on_their_way += 1
                return True
            self._lost += 1
            self.dropped += 1
            return False

    def lost(self) -> int:
        """How many found no room since the last time."""
        with self._lock:
            lost, self._lost = self._lost, 0
            return lost

    def ask(self, node: str | None) -> None:
        """Asks the peer to say when it has handled what was sent, once there is enough of that.

        The question is a call of a function that is not registered: whoever answers it has handled what came before.
        """
        with self._lock:
            if self._question is not None or self._on_their_way < max(1, self._size // 4):
                return
            told = self._on_their_way
            mine = object()
            self._question = (mine, None)

        def handled() -> None:
            with self._lock:
                if self._question is not None and self._question[0] is mine:
                    self._on_their_way -= told
                    self._question = None

        try:
            question = _backend.native.ask_call(_QUESTION, (), node, handled, None)
        except Exception:  # nobody to ask, and so nobody on whose way anything is
            handled()
            return
        with self._lock:
            if self._question is not None and self._question[0] is mine:
                self._question = (mine, question)  # it would be taken back with its last reference
        _backend.native.flush()


class BeamHandler(logging.Handler):
    """Sends records to the `logger` of a BEAM that runs the application: as `erlang.call`, to the peer that is being
    served, else the home node, else the first; `node` overrides.

    The metadata says where the record was made: `time`, `file`, `line`, `function`, `module`, `python_logger`,
    `thread`, `task` in a coroutine, `os_pid`, `node`, `pid` of the process it was made in, `caller` where the Erlang
    process being served is known, `trace_id` and `span_id` where there is a trace context, `exception` as
    `{python, Type, Message, Traceback}`, the fields given as `extra` in a map `extra`, and what was given as
    `extra={'erlang': {...}}` as keys of its own.

    `levels` says which level of `logger` a level of Python's and those above it become; without it they are
    `critical`, `error`, `warning`, `info` and `debug`. Emitting never waits. No more than `window` records are under
    way that the BEAM has not handled: what comes then is counted in `dropped`, and told by a warning once there is
    room. A record that finds no peer, or no room, goes to `fallback`, if there is one.
    """

    def __init__(
        self,
        node: str | None = None,
        level: int = logging.NOTSET,
        fallback: logging.Handler | None = None,
        *,
        levels: Mapping[int, str] | None = None,
        window: int = 1000,
    ) -> None:
        super().__init__(level)
        if window < 1:
            raise ValueError("a window has room for one record at least")
        self.node = node
        self.fallback = fallback
        self._levels = _LEVELS if levels is None else _levels_of(levels)
        self._size = window
        self._windows: dict[str | None, _Window] = {}
        self._sending = threading.local()

    @property
    def dropped(self) -> int:
        """How many records found no room."""
        return sum(window.dropped for window in list(self._windows.values()))

    def createLock(self) -> None:
        self.lock = _NoLock()  # type: ignore[assignment]

    def emit(self, record: logging.LogRecord) -> None:
        if getattr(self._sending, "now", False):
            return  # what sending a record logs itself
        self._sending.now = True
        try:
            self._emit(record)
        except Exception:
            self.handleError(record)
        finally:
            self._sending.now = False

    def _emit(self, record: logging.LogRecord) -> None:
        from erlang.terms import Pid

        caller = _backend.native.served()
        peer = self.node
        if peer is None and caller is not None:
            peer = str(caller.node if isinstance(caller, Pid) else caller)
        window = self._windows.get(peer)
        if window is None:
            window = self._windows.setdefault(peer, _Window(self._size))
        if not window.enter():
            window.ask(self.node)
            self._fall_back(record)
            return
        metadata = _metadata(record)
        if isinstance(caller, Pid):
            metadata[Atom("caller")] = caller
        extra = getattr(record, "erlang", None)
        if isinstance(extra, dict):
            metadata.update((Atom(str(key)), value) for key, value in extra.items())
        lost = window.lost()
        if lost:
            text = f"{lost} log records were dropped: more than {self._size} were under way"
            told = {Atom("python_logger"): __name__, Atom("dropped"): lost}
            _backend.native.log_to_peer("warning", text, told, self.node)
        name = next((atom for level, atom in self._levels if record.levelno >= level), "debug")
        text = self.format(record)
        if len(text) > _LONGEST:
            text = text[:_LONGEST] + "…"
        if not _backend.native.log_to_peer(name, text, metadata, self.node):
            self._fall_back(record)
        window.ask(self.node)

    def _fall_back(self, record: logging.LogRecord) -> None:
        if self.fallback is not None:
            self.fallback.handle(record)


def _levels_of(levels: Mapping[int, str]) -> tuple[tuple[int, Atom], ...]:
    for name in levels.values():
        if name not in _LOGGER_LEVELS:
            raise ValueError(f"logger has no level '{name}'")
    return tuple((level, Atom(name)) for level, name in sorted(levels.items(), reverse=True))


def _metadata(record: logging.LogRecord) -> dict[Any, Any]:
    from erlang.process import self_pid

    metadata: dict[Any, Any] = {
        Atom("time"): int(record.created * 1_000_000),
        Atom("file"): record.pathname,
        Atom("line"): record.lineno,
        Atom("function"): record.funcName,
        Atom("module"): record.module,
        Atom("python_logger"): record.name,
        Atom("thread"): record.threadName,
        Atom("os_pid"): record.process,
        Atom("node"): _backend.native.node(),
        Atom("pid"): self_pid(),
    }
    if task := _task_name(record):
        metadata[Atom("task")] = task
    if ids := _trace.ids():
        metadata.update(zip((Atom("trace_id"), Atom("span_id")), ids))
    if record.exc_info and record.exc_info[1] is not None:
        exception = record.exc_info[1]
        lines = traceback.format_exception(exception)
        told = (_type_name(exception), str(exception), "".join(lines)[-_LONGEST:])
        metadata[Atom("exception")] = (Atom("python"), *told)
    if fields := _fields(record):
        metadata[Atom("extra")] = fields
    return metadata


def _type_name(exception: BaseException) -> str:
    """As it is told to callers."""
    module, name = type(exception).__module__, type(exception).__qualname__
    return name if module == "builtins" else f"{module}.{name}"


def _task_name(record: logging.LogRecord) -> str | None:
    name: str | None = getattr(record, "taskName", None)  # from Python 3.12 on
    if name is None and asyncio._get_running_loop() is not None:
        task = asyncio.current_task()
        name = None if task is None else task.get_name()
    return name


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    """What was given as `extra`; of values that have no term, their repr."""
    fields = {}
    for name, value in record.__dict__.items():
        if name not in _OWN_FIELDS:
            try:
                size = len(_native.encode(value))
                small = size <= _LONGEST
                fields[name] = value if small else f"{type(value).__name__} of {size} bytes"
            except Exception:
                fields[name] = repr(value)[:_LONGEST]
    return fields


class _Lines(io.TextIOBase):
    """A text stream whose lines go to the node's log."""

    def __init__(self, level: int, plain: Any) -> None:
        self._level = level
        self._plain = plain
        self._lock = threading.Lock()
        self._rest = ""

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return "utf-8"

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        number: int = self._plain.fileno()
        return number

    @property
    def buffer(self) -> Any:
        return self._plain.buffer

    def write(self, text: str) -> int:
        with self._lock:
            *lines, self._rest = (self._rest + text).split("\n")
        for line in lines:
            _backend.native.log(self._level, line, True, _trace.ids())
        return len(text)

    def flush(self) -> None:
        with self._lock:
            rest, self._rest = self._rest, ""
        if rest:
            _backend.native.log(self._level, rest, True, _trace.ids())


def install(level: str) -> None:
    """Has the root logger, print and sys.stderr write to the node's log. Called by the node with its log level."""
    root = logging.getLogger()
    root.addHandler(NodeHandler())
    root.setLevel(_NODE_LEVELS.get(level) or level.upper())
    sys.stdout = _Lines(logging.INFO, sys.__stdout__)  # type: ignore[assignment]
    sys.stderr = _Lines(logging.WARNING, sys.__stderr__)  # type: ignore[assignment]
