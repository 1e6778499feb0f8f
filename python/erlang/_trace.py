"""The W3C trace context of the call that is being served, and what goes along with calls to Erlang.

OpenTelemetry is used where the program has imported it, and never imported from here.
"""

from __future__ import annotations

import sys
from contextvars import ContextVar, Token
from typing import Any

__all__ = ["current", "enter", "ids", "leave", "trace_context"]

#: A traceparent and a tracestate, which may be empty.
Trace = tuple[str, str]

_served: ContextVar[Trace | None] = ContextVar("erlang_trace", default=None)


def _module(name: str) -> Any:
    return sys.modules.get(f"opentelemetry.{name}")


def enter(parent: str, state: str) -> tuple[Token[Trace | None], Any]:
    """Called by the node before the code of a call that came with a trace context; both are well-formed."""
    token = _served.set((parent, state))
    propagate, context = _module("propagate"), _module("context")
    if propagate is None or context is None:
        return token, None
    try:
        carrier = {"traceparent": parent, "tracestate": state}
        return token, context.attach(propagate.extract(carrier))
    except Exception:
        return token, None


def leave(tokens: tuple[Token[Trace | None], Any]) -> None:
    """Called by the node after it."""
    ours, theirs = tokens
    if theirs is not None:
        try:
            _module("context").detach(theirs)
        except Exception:
            pass
    _served.reset(ours)


def current() -> Trace | None:
    """What a call made here is to carry: OpenTelemetry's current span, or the context of the call being served."""
    propagate = _module("propagate")
    if propagate is not None:
        carrier: dict[str, str] = {}
        try:
            propagate.inject(carrier)
        except Exception:
            carrier = {}
        if "traceparent" in carrier:
            return str(carrier["traceparent"]), str(carrier.get("tracestate", ""))
    return _served.get()


def ids() -> tuple[str, str] | None:
    """The trace id and the span id for a line of a log made here."""
    trace = current()
    if trace is None:
        return None
    parts = trace[0].split("-")
    return (parts[1], parts[2]) if len(parts) >= 4 else None


def trace_context() -> str | None:
    """The W3C `traceparent` of the call that is being served, or of OpenTelemetry's current span; None without one.

    It is a context variable: coroutines, tasks and `asyncio.to_thread` see it, other threads do not. Calls to Erlang
    made where it is set carry it, with its `tracestate`, and lines of the log have its ids.
    """
    trace = current()
    return None if trace is None else trace[0]
