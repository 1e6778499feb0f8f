"""Python's logging and print in the node's log, or in the logger of a BEAM.

The node sets the first up by itself (`--capture off` leaves Python's output alone). For the second:

    logging.getLogger().addHandler(erlang.logs.BeamHandler())
"""

from __future__ import annotations

import io
import logging
import sys
import threading
from typing import Any

from erlang import _backend, _trace
from erlang.terms import Atom

__all__ = ["BeamHandler", "NodeHandler", "install"]

_LEVELS = (
    (logging.CRITICAL, Atom("critical")),
    (logging.ERROR, Atom("error")),
    (logging.WARNING, Atom("warning")),
    (logging.INFO, Atom("info")),
)

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


class BeamHandler(logging.Handler):
    """Sends records to the `logger` of a BEAM that runs the application: as `erlang.call`, to the peer that is being
    served, else the home node, else the first; `node` overrides.

    The metadata says where the record was made: `file`, `line`, `function`, `python_logger`, `thread`, `node`, `pid`
    of the process it was made in, `caller` where the Erlang process being served is known, `trace_id` and `span_id`
    where there is a trace context, and what was given as `extra={'erlang': {...}}`. A record that finds no peer goes to `fallback`, if there is one.
    """

    def __init__(
        self,
        node: str | None = None,
        level: int = logging.NOTSET,
        fallback: logging.Handler | None = None,
    ) -> None:
        super().__init__(level)
        self.node = node
        self.fallback = fallback

    def emit(self, record: logging.LogRecord) -> None:
        from erlang.process import self_pid
        from erlang.terms import Pid

        try:
            metadata: dict[Any, Any] = {
                Atom("file"): record.pathname,
                Atom("line"): record.lineno,
                Atom("function"): record.funcName,
                Atom("python_logger"): record.name,
                Atom("thread"): record.threadName,
                Atom("node"): _backend.native.node(),
                Atom("pid"): self_pid(),
            }
            caller = _backend.native.served()
            if isinstance(caller, Pid):
                metadata[Atom("caller")] = caller
            if ids := _trace.ids():
                metadata.update(zip((Atom("trace_id"), Atom("span_id")), ids))
            extra = getattr(record, "erlang", None)
            if isinstance(extra, dict):
                metadata.update((Atom(str(key)), value) for key, value in extra.items())
            name = next((atom for level, atom in _LEVELS if record.levelno >= level), "debug")
            if not _backend.native.log_to_peer(name, self.format(record), metadata, self.node):
                if self.fallback is not None:
                    self.fallback.handle(record)
        except Exception:
            self.handleError(record)


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
