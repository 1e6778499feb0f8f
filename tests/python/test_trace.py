"""The trace context of a call, with OpenTelemetry and without."""

from __future__ import annotations

import asyncio
import sys
import threading
import types
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

import pytest

import erlang
from erlang import _trace

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
PARENT = f"00-{TRACE}-{SPAN}-01"
OTHER = f"00-{'1' * 32}-{'2' * 16}-00"


def test_outside_a_call_there_is_none() -> None:
    assert erlang.trace_context() is None
    assert _trace.current() is None
    assert _trace.ids() is None


def test_it_is_that_of_the_innermost_call() -> None:
    outer = _trace.enter(PARENT, "a=b")
    assert erlang.trace_context() == PARENT
    assert _trace.current() == (PARENT, "a=b")
    assert _trace.ids() == (TRACE, SPAN)
    inner = _trace.enter(OTHER, "")
    assert erlang.trace_context() == OTHER
    _trace.leave(inner)
    assert erlang.trace_context() == PARENT
    _trace.leave(outer)
    assert erlang.trace_context() is None


def test_tasks_and_to_thread_see_it_and_other_threads_do_not() -> None:
    async def main() -> list[str | None]:
        tokens = _trace.enter(PARENT, "")
        task = asyncio.create_task(inner())
        _trace.leave(tokens)
        return [*await task, erlang.trace_context()]

    async def inner() -> list[str | None]:
        seen: list[str | None] = [
            erlang.trace_context(),
            await asyncio.to_thread(erlang.trace_context),
        ]
        thread = threading.Thread(target=lambda: seen.append(erlang.trace_context()))
        thread.start()
        thread.join()
        return seen

    assert asyncio.run(main()) == [PARENT, PARENT, None, None]


class Telemetry:
    """As much of OpenTelemetry's API as is used, and a way to break it."""

    def __init__(self) -> None:
        self.span: ContextVar[dict[str, str] | None] = ContextVar("span", default=None)
        self.broken = False

    def extract(self, carrier: dict[str, str]) -> dict[str, str]:
        self._check()
        return carrier

    def inject(self, carrier: dict[str, str]) -> None:
        self._check()
        carrier.update(self.span.get() or {})

    def attach(self, context: dict[str, str]) -> Any:
        self._check()
        return self.span.set(context)

    def detach(self, token: Any) -> None:
        self._check()
        self.span.reset(token)

    def _check(self) -> None:
        if self.broken:
            raise RuntimeError("broken")


@pytest.fixture
def telemetry(monkeypatch: pytest.MonkeyPatch) -> Iterator[Telemetry]:
    telemetry = Telemetry()
    for name in ("propagate", "context"):
        module = types.ModuleType(f"opentelemetry.{name}")
        module.__dict__.update(
            {verb: getattr(telemetry, verb) for verb in ("extract", "inject", "attach", "detach")}
        )
        monkeypatch.setitem(sys.modules, module.__name__, module)
    yield telemetry


def test_opentelemetry_gets_it_for_the_time_of_the_call(telemetry: Telemetry) -> None:
    tokens = _trace.enter(PARENT, "a=b")
    assert telemetry.span.get() == {"traceparent": PARENT, "tracestate": "a=b"}
    _trace.leave(tokens)
    assert telemetry.span.get() is None
    assert erlang.trace_context() is None


def test_its_current_span_goes_before_that_of_the_call(telemetry: Telemetry) -> None:
    tokens = _trace.enter(PARENT, "")
    telemetry.span.set({"traceparent": OTHER})
    assert _trace.current() == (OTHER, "")
    telemetry.span.set({})
    assert _trace.current() == (PARENT, "")
    _trace.leave(tokens)


def test_when_it_is_broken_calls_go_on(telemetry: Telemetry) -> None:
    telemetry.broken = True
    tokens = _trace.enter(PARENT, "")
    assert erlang.trace_context() == PARENT
    _trace.leave(tokens)
    telemetry.broken = False
    tokens = _trace.enter(PARENT, "")
    telemetry.broken = True
    _trace.leave(tokens)
    telemetry.broken = False
    telemetry.span.set(None)
    assert erlang.trace_context() is None


def test_a_propagator_that_says_nonsense_gives_the_log_no_ids(telemetry: Telemetry) -> None:
    for nonsense in ("", "x", "1-2", 7):
        telemetry.span.set({"traceparent": nonsense})  # type: ignore[dict-item]
        assert _trace.ids() is None
