"""The cache of shared state: what it keeps when answers, invalidations and ends cross each other."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import erlang
from erlang import _native, testing
from erlang.terms import Atom, Pid


class Store:
    """The BEAM's side, played by the test: answers are given when it says so."""

    def __init__(self) -> None:
        self.values: dict[bytes, Any] = {}
        self.version = 0
        self.asked: list[Any] = []
        self.joined: list[Pid] = []
        self.cached = Atom("yes")
        self._held: dict[str, list[threading.Event]] = {}
        self._arrived = threading.Semaphore(0)

    def __call__(self, verb: str, store: str, *args: Any) -> Any:
        match verb, args:
            case "hello", ():
                return self.process.pid
            case "join", (pid,):
                self.joined.append(pid)
                return Atom("ok")
            case "get", (_, key_id):
                found = key_id in self.values
                answer: Any = (self.version, self.cached, _native.encode(self.values.get(key_id)))
                self._hold("get")
                return answer if found else answer[:2]
            case "put", (_, key_id, value):
                self._hold("before put")
                self.change(key_id, value)
                answer = (Atom("ok"), self.version, [])
                self._hold("put")
                return answer
        raise AssertionError((verb, args))

    def change(self, key_id: bytes, value: Any) -> None:
        self.version += 1
        self.values[key_id] = value

    def tell(self, *key_ids: bytes) -> None:
        """The invalidation of the last change, taken by the node when this returns."""
        before = erlang.state_cache()["invalidations"]
        self.peer.send(self.joined[-1], (Atom("$py_state"), self.version, list(key_ids)))
        until(lambda: erlang.state_cache()["invalidations"] > before)

    # answers that are held back

    def hold(self, verb: str) -> threading.Event:
        """The next answer to this verb comes when the event is set."""
        event = threading.Event()
        self._held.setdefault(verb, []).append(event)
        return event

    def _hold(self, verb: str) -> None:
        held = self._held.get(verb)
        if held:
            event = held.pop(0)
            self._arrived.release()
            assert event.wait(10)

    def until_held(self) -> None:
        assert self._arrived.acquire(timeout=10)


def until(good: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not good():
        assert time.monotonic() < deadline
        time.sleep(0.001)


KEY = _native.encode("k")


@pytest.fixture
def store() -> Iterator[Store]:
    store = Store()
    with testing.FakePeer({"$py_state": store}) as peer:
        store.peer = peer
        store.process = peer.process()
        yield store


class Reader:
    """A read in a thread."""

    def __init__(self, key: Any = "k") -> None:
        self.values: list[Any] = []
        self.thread = threading.Thread(target=lambda: self.values.append(erlang.state_get(key)))
        self.thread.start()

    def value(self) -> Any:
        self.thread.join(10)
        return self.values[0]


def reads() -> tuple[int, int]:
    info = erlang.state_cache()
    return info["hits"], info["misses"]


def test_what_was_read_is_kept_until_it_changes(store: Store) -> None:
    store.change(KEY, 1)
    assert [erlang.state_get("k") for _ in range(3)] == [1, 1, 1]
    assert reads() == (2, 1)
    store.change(KEY, 2)
    store.tell(KEY)
    assert erlang.state_get("k") == 2


def test_an_answer_that_an_invalidation_has_overtaken_is_not_kept(store: Store) -> None:
    store.change(KEY, 1)
    answer = store.hold("get")
    reader = Reader()
    store.until_held()
    store.change(KEY, 2)
    store.tell(KEY)
    answer.set()
    assert reader.value() == 1
    assert erlang.state_get("k") == 2


def test_an_answer_that_a_write_of_this_node_has_overtaken_is_not_kept(store: Store) -> None:
    store.change(KEY, 1)
    answer = store.hold("get")
    reader = Reader()
    store.until_held()
    erlang.state_put("k", 2)
    answer.set()
    assert reader.value() == 1
    assert erlang.state_get("k") == 2


def test_a_write_that_has_returned_is_read_though_no_invalidation_has_come(store: Store) -> None:
    store.change(KEY, 1)
    assert erlang.state_get("k") == 1
    erlang.state_put("k", 2)
    assert erlang.state_get("k") == 2


def test_an_older_answer_does_not_take_the_place_of_a_newer_one(store: Store) -> None:
    store.change(KEY, 1)
    answer = store.hold("get")
    reader = Reader()
    store.until_held()
    store.change(KEY, 2)
    assert erlang.state_get("k") == 2
    answer.set()
    assert reader.value() == 1
    assert erlang.state_get("k") == 2
    assert reads() == (1, 2)


def test_an_older_answer_is_not_kept_where_a_newer_one_was_evicted(store: Store) -> None:
    erlang.state_cache(max_entries=1)
    store.change(KEY, 1)
    store.change(_native.encode("other"), "o")
    answer = store.hold("get")
    reader = Reader()
    store.until_held()
    store.change(KEY, 2)
    assert erlang.state_get("k") == 2
    assert erlang.state_get("other") == "o"
    answer.set()
    assert reader.value() == 1
    assert erlang.state_get("k") == 2


def test_an_answer_for_a_cache_that_has_ended_is_not_kept(store: Store) -> None:
    store.change(KEY, 1)
    assert erlang.state_get("other") is None
    answer = store.hold("get")
    reader = Reader()
    store.until_held()
    ended = store.process
    store.process = store.peer.process()
    ended.exit("killed")
    until(lambda: erlang.state_get("other") is None and len(store.joined) == 2)
    store.change(KEY, 2)
    answer.set()
    assert reader.value() == 1
    assert erlang.state_cache()["entries"] == 0
    assert erlang.state_get("k") == 2
    assert erlang.state_cache()["entries"] == 1


def test_a_write_by_a_cache_that_has_ended_counts_for_its_successor(store: Store) -> None:
    store.change(KEY, 1)
    assert erlang.state_get("other") is None
    write = store.hold("before put")
    writer = threading.Thread(target=lambda: erlang.state_put("k", 2))
    writer.start()
    store.until_held()
    ended = store.process
    store.process = store.peer.process()
    ended.exit("killed")
    until(lambda: erlang.state_get("other") is None and len(store.joined) == 2)
    answer = store.hold("get")
    reader = Reader()
    store.until_held()
    write.set()
    writer.join(10)
    answer.set()
    assert reader.value() == 1
    assert erlang.state_get("k") == 2


def test_a_lost_link_empties_the_cache_and_the_next_read_begins_anew(store: Store) -> None:
    store.change(KEY, 1)
    assert erlang.state_get("k") == 1
    store.peer.disconnect()
    until(lambda: erlang.state_cache()["entries"] == 0)
    with pytest.raises(erlang.NoConnection):
        erlang.state_get("k")
    store.change(KEY, 2)
    store.peer.connect()
    assert erlang.state_get("k") == 2
    assert len(set(store.joined)) == 2


def test_a_store_that_does_not_know_the_cache_any_more_is_joined_again(store: Store) -> None:
    store.change(KEY, 1)
    store.cached = Atom("left")
    assert erlang.state_get("k") == 1
    store.cached = Atom("yes")
    store.change(KEY, 2)
    assert [erlang.state_get("k"), erlang.state_get("k")] == [2, 2]
    assert len(set(store.joined)) == 2


def test_readers_that_begin_together_come_to_share_a_cache(store: Store) -> None:
    store.change(KEY, 1)
    readers = [Reader() for _ in range(8)]
    assert [reader.value() for reader in readers] == [1] * 8
    store.change(KEY, 2)
    for pid in store.joined:
        store.peer.send(pid, (Atom("$py_state"), store.version, [KEY]))
    until(lambda: erlang.state_get("k") == 2)
    assert [Reader().value() for _ in range(8)] == [2] * 8


def test_a_coroutine_that_is_cancelled_leaves_nothing_behind(store: Store) -> None:
    store.change(KEY, 1)

    async def cancelled() -> None:
        answer = store.hold("get")
        task = asyncio.create_task(erlang.async_state_get("k"))
        await asyncio.to_thread(store.until_held)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        answer.set()
        assert await erlang.async_state_get("k") == 1

    asyncio.run(cancelled())


def test_values_that_can_be_changed_are_each_readers_own(store: Store) -> None:
    store.change(KEY, ([1], "x"))
    erlang.state_get("k")[0].append(2)
    erlang.state_get("k")[0].append(2)
    assert erlang.state_get("k") == ([1], "x")


def test_a_watch_tells_the_latest_of_each_key_and_its_end(store: Store) -> None:
    def serve(verb: str, name: str, *args: Any) -> Any:
        if verb != "watch":
            return store(verb, name, *args)
        store.joined.append(args[0])
        return Atom("ok")

    store.peer.register("$py_state", serve)
    with erlang.state_watch() as changes:
        ok, ref = Atom("ok"), erlang.make_ref()
        for key, what in (("a", (ok, 1)), ("b", (ok, [2])), ("a", Atom("deleted"))):
            message = (Atom("py_state"), Atom("changed"), ref, key, what)
            store.peer.send(store.joined[-1], message)
        until(lambda: len(changes._changes) == 2 and changes._changes[_native.encode("a")].deleted)
        assert tuple(next(changes)) == ("a", None, True)
        assert tuple(asyncio.run(changes.async_receive())) == ("b", [2], False)
        with pytest.raises(TimeoutError):
            changes.receive(0.01)
        store.process.exit("shutdown")
        with pytest.raises(erlang.NoConnection):
            changes.receive(10)
    assert list(changes) == []
