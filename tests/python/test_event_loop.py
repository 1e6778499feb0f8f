"""Loops that Erlang operates, without a BEAM: routers that cannot be told, and those who poll meanwhile.

tests/e2e/loop_SUITE.erl has what can be seen from Erlang.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import erlang
from erlang import Atom, NoConnection, _backend, _event_loop
from erlang.testing import FakePeer, FakeProcess

OK = Atom("ok")


@pytest.fixture(params=["ours", "asyncio"])
def peer(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakePeer]:
    if request.param == "asyncio":
        monkeypatch.setattr(_event_loop, "_new_event_loop", asyncio.SelectorEventLoop)
    with FakePeer({}) as peer:
        yield peer


@pytest.fixture
def loop(peer: FakePeer) -> Iterator[Any]:
    ok, pid = erlang.run(_event_loop.new(peer.process().pid), 10)
    assert ok == "ok"
    yield pid
    erlang.run(_event_loop.destroy(pid), 10)
    for thread in threading.enumerate():
        if thread.name.startswith("py_event_loop "):
            thread.join(5)
            assert not thread.is_alive()


def do(loop: Any, what: str, *args: Any) -> Any:
    return erlang.run(_event_loop.do(loop, what, *args), 10)


def poll(loop: Any, milliseconds: Any) -> Any:
    return erlang.run(_event_loop.poll(loop, milliseconds), 10)


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert condition()


def unreachable(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> tuple[threading.Event, Callable[[], None]]:
    """From now on nothing can be sent: set when it has been tried, and what ends it."""
    tried = threading.Event()

    def send(dest: Any, term: Any) -> None:
        tried.set()
        raise error

    monkeypatch.setattr(_backend.native, "send", send)
    return tried, monkeypatch.undo


def told(router: FakeProcess, loop: Any) -> Any:
    tag, where, event = router.receive()
    assert (tag, where) == ("py_event", loop)
    return event


@pytest.mark.parametrize("error", [NoConnection(), BlockingIOError()])
def test_a_router_that_cannot_be_told_is_told_when_it_can_in_order(
    peer: FakePeer, loop: Any, error: Exception
) -> None:
    router = peer.process()
    assert do(loop, "set_router", router.pid) == OK
    with pytest.MonkeyPatch.context() as patch:
        tried, mend = unreachable(patch, error)
        timers = [do(loop, "start_timer", 0, number)[1] for number in range(3)]
        assert tried.wait(5)
        # What waits for a router is nobody else's.
        assert poll(loop, 100) == (OK, 0)
        mend()
    assert [told(router, loop) for _ in timers] == [
        ("timeout", ref, number) for number, ref in enumerate(timers)
    ]
    assert do(loop, "info")[1]["timers"] == 0


def test_what_a_router_could_not_be_told_is_for_who_polls_when_it_is_gone(
    peer: FakePeer, loop: Any
) -> None:
    router = peer.process()
    do(loop, "set_router", router.pid)
    polled = erlang.spawn_task(_event_loop.poll(loop, Atom("infinity")))
    with pytest.MonkeyPatch.context() as patch:
        tried, _ = unreachable(patch, NoConnection())
        _, timer = do(loop, "start_timer", 0, 7)
        assert tried.wait(5)
        router.exit()
        assert polled.result(5) == (OK, 1)  # type: ignore[call-arg]
        assert do(loop, "get_pending") == (OK, [("timeout", timer, 7)])
    assert router.received == []


def test_who_polls_is_not_sent_away_because_another_was_quicker(peer: FakePeer, loop: Any) -> None:
    polled = erlang.spawn_task(_event_loop.poll(loop, 10_000))

    async def another_was_quicker() -> None:
        await _event_loop.do(loop, "info")
        _event_loop._loops[loop]._wake()
        await asyncio.sleep(0.1)

    erlang.run(another_was_quicker(), 10)
    assert not polled.done()
    do(loop, "start_timer", 0, 1)
    assert polled.result(5) == (OK, 1)  # type: ignore[call-arg]


def test_a_loop_that_cannot_be_made_is_an_error_and_leaves_nothing(
    peer: FakePeer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken() -> asyncio.AbstractEventLoop:
        raise LookupError("no loop today")

    monkeypatch.setattr(_event_loop, "_new_event_loop", broken)
    with pytest.raises(LookupError, match="no loop today"):
        erlang.run(_event_loop.new(peer.process().pid), 10)
    until(lambda: not _event_loop._alive)
    assert not _event_loop._loops
