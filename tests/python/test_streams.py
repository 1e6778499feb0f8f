"""Iterating over a producer of the peer, without a BEAM and without a node."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from typing import Any

import pytest

import erlang
from erlang.terms import Atom, Pid
from erlang.testing import FakePeer, FakeProcess


@pytest.fixture
def peer() -> Iterator[FakePeer]:
    with FakePeer() as peer:
        yield peer


class Producer:
    """A process of the peer that a test lets answer."""

    def __init__(self, peer: FakePeer) -> None:
        self._peer = peer
        self.process: FakeProcess = peer.process()
        self.consumer: tuple[Pid, Any] | None = None

    def asked(self) -> int:
        _, self.consumer, (_, number) = self.process.receive(lambda m: m[0] == "$py_stream")
        assert isinstance(number, int)
        return number

    def tell(self, event: Any) -> None:
        assert self.consumer is not None
        pid, ref = self.consumer
        self._peer.send(pid, (Atom("py_stream"), ref, event))


def in_a_thread(function: Any) -> tuple[threading.Thread, list[Any]]:
    result: list[Any] = []

    def run() -> None:
        try:
            result.append(function())
        except Exception as error:
            result.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    return thread, result


def test_half_of_the_demand_is_asked_for_again_when_half_was_taken(peer: FakePeer) -> None:
    producer = Producer(peer)
    thread, result = in_a_thread(lambda: list(erlang.stream(producer.process.pid, demand=4)))
    assert producer.asked() == 4
    producer.tell(("items", [1, 2]))
    assert producer.asked() == 2
    producer.tell(("items", [3]))
    producer.tell(Atom("done"))
    thread.join(5)
    assert result == [[1, 2, 3]]


def test_an_error_is_raised_after_the_items_before_it(peer: FakePeer) -> None:
    producer = Producer(peer)
    stream = erlang.stream(producer.process.pid)
    thread, result = in_a_thread(lambda: [next(stream), next(stream)])
    producer.asked()
    producer.tell(("items", ["a"]))
    producer.tell(("error", (Atom("error"), Atom("badarg"), [])))
    thread.join(5)
    assert isinstance(result[0], erlang.ErlangError)
    assert (result[0].kind, result[0].reason) == ("error", "badarg")
    assert list(stream) == []


def test_the_end_of_the_producer_is_an_error(peer: FakePeer) -> None:
    producer = Producer(peer)
    thread, result = in_a_thread(lambda: next(erlang.stream(producer.process.pid)))
    producer.asked()
    producer.process.exit(Atom("tired"))
    thread.join(5)
    assert isinstance(result[0], erlang.ErlangError)
    assert (result[0].kind, result[0].reason) == ("exit", "tired")


def test_leaving_the_loop_ends_the_process_that_the_producer_sees(peer: FakePeer) -> None:
    producer = Producer(peer)

    def first() -> Any:
        for item in erlang.stream(producer.process.pid):
            return item

    thread, result = in_a_thread(first)
    producer.asked()
    assert producer.consumer is not None
    ref = producer.process.monitor(producer.consumer[0])
    producer.tell(("items", [1, 2]))
    thread.join(5)
    assert result == [1]
    down = producer.process.receive(lambda m: m[0] == "DOWN")
    assert down[1] == ref and down[4] == "normal"


def test_coroutines_of_any_loop_iterate_too(peer: FakePeer) -> None:
    producer = Producer(peer)

    async def total() -> int:
        return sum([item async for item in erlang.stream(producer.process.pid)])

    thread, result = in_a_thread(lambda: asyncio.run(total()))
    producer.asked()
    producer.tell(("items", [1, 2]))
    producer.tell(("items", [3]))
    producer.tell(Atom("done"))
    thread.join(5)
    assert result == [6]


def test_a_registered_function_names_the_producer(peer: FakePeer) -> None:
    producer = Producer(peer)
    peer.register("rows", lambda *args: (Atom("ok"), producer.process.pid))
    thread, result = in_a_thread(lambda: list(erlang.stream("rows", 1, 2)))
    producer.asked()
    producer.tell(Atom("done"))
    thread.join(5)
    assert result == [[]]
    assert peer.calls == [("rows", (1, 2))]


def test_an_item_that_is_late_is_a_timeout_and_comes_later(peer: FakePeer) -> None:
    producer = Producer(peer)
    stream = erlang.stream(producer.process.pid, timeout=0.01)
    with pytest.raises(TimeoutError):
        next(stream)
    producer.asked()
    producer.tell(("items", [7]))
    patient = erlang.stream(producer.process.pid)
    patient.close()
    assert list(patient) == []
    thread, result = in_a_thread(lambda: _patiently(stream))
    thread.join(5)
    assert result == [7]


def _patiently(stream: erlang.Stream) -> Any:
    while True:
        try:
            return next(stream)
        except TimeoutError:
            pass


def test_what_cannot_be_streamed_is_refused() -> None:
    with pytest.raises(ValueError):
        erlang.stream("rows", demand=0)
    with pytest.raises(TypeError):
        erlang.stream(("rows", "n@h"), 1)
