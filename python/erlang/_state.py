"""State that is shared with the BEAM: what a store of `py_state` holds, read through a cache of this node.

    state_get ── hit ──▶ _Cache of the store            ◀── ('$py_state', version, ids) ── py_state_server
        │                   ▲  dropped when the store or its node has gone (DOWN)               ▲
        └─── miss, write ───┴── erlang.call("$py_state", …) ────────────────────────────────────┘

A cache has a process of this node, which the store monitors and tells what has changed; it monitors the store. It is joined
before anything is cached: each of the two then hears of a lost link, so that neither believes in the other for longer.

An answer carries the version at which the store gave it. Answers and invalidations come by different ways, in any order, so
while somebody asks for a key, the highest version seen of it is kept: an older answer is not cached.

Keys are known by their external term, since 1, 1.0 and True, or 'a' and Atom('a'), are different keys to Erlang. So are
values that can be changed: each reader gets one of his own.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Generator
from typing import Any, NamedTuple, TypeVar

from erlang import _asking, _backend, _native, _trace
from erlang.exceptions import ErlangError, NoConnection
from erlang.process import _node_loop, _on_loop
from erlang.terms import Atom, Pid, Port, Ref

__all__ = [
    "StateChange",
    "StateWatch",
    "async_state_cas",
    "async_state_delete",
    "async_state_get",
    "async_state_incr",
    "async_state_keys",
    "async_state_put",
    "async_state_put_new",
    "state_cache",
    "state_cas",
    "state_delete",
    "state_get",
    "state_incr",
    "state_keys",
    "state_put",
    "state_put_new",
    "state_watch",
]

DEFAULT = "default"

_FUNCTION = "$py_state"
_ENTRY = 200  # bytes, about what an entry takes beside key and value
_CONSTANT = frozenset({str, int, float, bool, bytes, type(None), Atom, Pid, Ref, Port})
_MISSING: Any = object()
_HELLO, _JOIN, _GET, _KEYS, _WATCH, _ALL = map(
    Atom, ("hello", "join", "get", "keys", "watch", "all")
)
_PUT, _PUT_NEW, _INCR, _CAS, _DELETE = map(Atom, ("put", "put_new", "incr", "cas", "delete"))
_NORMAL = Atom("normal")
_SLICE = 0.2  # seconds

_T = TypeVar("_T")
# What is asked, of which peer; it is sent the answer. The same steps serve threads and coroutines.
Steps = Generator[tuple[list[Any], str | None], Any, _T]


# --- the cache of a store -----------------------------------------------------------------------------


class _Entry:
    """A value as of a version; one that can be changed as its external term."""

    __slots__ = ("constant", "size", "value", "version")

    def __init__(self, key_id: bytes, version: int, term: bytes) -> None:
        value = _native.decode(term)
        self.version = version
        self.constant = _is_constant(value)
        self.value = value if self.constant else term
        self.size = len(key_id) + len(term) + _ENTRY

    def read(self) -> Any:
        return self.value if self.constant else _native.decode(self.value)


def _is_constant(value: object) -> bool:
    if type(value) is tuple:
        return all(map(_is_constant, value))
    return type(value) in _CONSTANT


class _Cache:
    """What this node holds of one store, and the process that hears what is not true any more."""

    def __init__(self, states: _States, store: str) -> None:
        self.store = store
        self.peer = ""
        self.ended = False
        self.entries: dict[bytes, _Entry] = {}  # oldest first
        self._asked: dict[bytes, list[int]] = {}  # how many ask, and the highest version seen
        self._states = states
        self.pid: Pid = _backend.native.spawn_process(self._deliver, self._stopped)

    def get(self, key_id: bytes) -> Any:
        """The value, or _MISSING."""
        entry = self.entries.get(key_id)
        if entry is None:
            return _MISSING
        self._states.hits += 1
        return entry.read()

    # while somebody asks

    def ask(self, key_id: bytes) -> None:
        with self._states.lock:
            self._asked.setdefault(key_id, [0, 0])[0] += 1

    def answered(self, key_id: bytes) -> None:
        with self._states.lock:
            asked = self._asked[key_id]
            asked[0] -= 1
            if asked[0] == 0:
                del self._asked[key_id]

    def keep(self, key_id: bytes, entry: _Entry) -> None:
        """An answer; an older one is forgotten. It is cached unless something newer has been seen."""
        states = self._states
        with states.lock:
            newest = self._saw(key_id, entry.version)
            if self.ended or entry.version < newest or key_id in self.entries:
                return
            if entry.size > states.max_bytes or not states.max_entries:
                return
            states.make_room(entry.size)
            self.entries[key_id] = entry
            states.bytes += entry.size
            states.count += 1

    def seen(self, key_ids: list[bytes], version: int) -> None:
        """What is older than this version is not true any more."""
        with self._states.lock:
            for key_id in key_ids:
                self._saw(key_id, version)

    def _saw(self, key_id: bytes, version: int) -> int:
        newest = version
        asked = self._asked.get(key_id)
        if asked is not None:
            newest = asked[1] = max(asked[1], version)
        entry = self.entries.get(key_id)
        if entry is not None and entry.version < version:
            self.drop(key_id)
        return newest

    def drop(self, key_id: bytes) -> None:
        """Under the lock."""
        entry = self.entries.pop(key_id)
        self._states.bytes -= entry.size
        self._states.count -= 1

    # its process

    def _deliver(self, messages: list[Any]) -> None:
        for message in messages:
            match message:
                case ("$py_state", int(version), list(key_ids)):
                    self._states.invalidations += 1
                    self.seen(key_ids, version)
                case ("DOWN", *_):
                    self.end()

    def _stopped(self, reason: Any) -> None:
        self.end()

    def end(self) -> None:
        """Nobody says any more what has changed."""
        if self._states.forget(self):
            try:
                _backend.native.exit_process(self.pid, _NORMAL)
            except RuntimeError:
                pass  # the node has ended


class _States:
    """The caches of a node, together not larger than their bounds."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.max_entries = 10_000
        self.max_bytes = 67_108_864
        self.bytes = 0
        self.count = 0
        self.hits = 0
        self.misses = 0
        self.invalidations = 0
        self.evicted = 0
        self.unable = False  # a worker process of --processes has no process of the node's kind
        self._caches: dict[tuple[str, str], _Cache] = {}
        self._usual: str | None = None  # the peer that is asked where none is served or named
        self._epoch = 0
        self._name = _backend.native.node()

    def peer(self, node: str | None) -> str | None:
        """The peer that `erlang.call` would ask; None where it has to be asked for."""
        if node is not None:
            return node
        served = _backend.native.served()
        if served is not None:
            name = served.node if type(served) is Pid else served
            if name != self._name:
                peer: str = name
                return peer
        return self._usual

    def find(self, store: str, node: str | None) -> _Cache | None:
        peer = self.peer(node)
        return None if peer is None else self._caches.get((peer, store))

    def joined(self, store: str, node: str | None) -> Steps[_Cache | None]:
        """The store's cache, made if there is none."""
        cache = self.find(store, node)
        if cache is not None or self.unable:
            return cache
        peer = self.peer(node)
        try:
            cache = _Cache(self, store)
        except RuntimeError:
            self.unable = True
            return None
        try:
            epoch = self._epoch
            owner = yield [_HELLO, store], peer
            cache.peer = str(owner.node)
            _backend.native.monitor(cache.pid, owner)
            try:
                yield [_JOIN, store, cache.pid], cache.peer
            except ErlangError as error:
                if type(error) is ErlangError and _is_full(error):
                    cache.end()
                    return None
                raise
        except BaseException:
            cache.end()
            raise
        return self._enter(cache, peer is None, epoch)

    def _enter(self, cache: _Cache, usual: bool, epoch: int) -> _Cache:
        with self.lock:
            first = self._caches.get((cache.peer, cache.store))
            if first is None and not cache.ended:
                self._caches[cache.peer, cache.store] = first = cache
            if usual and epoch == self._epoch:
                self._usual = cache.peer
        if first is None:
            raise NoConnection()  # it has gone in the meantime
        if first is not cache:
            cache.end()
        return first

    def forget(self, cache: _Cache) -> bool:
        with self.lock:
            if cache.ended:
                return False
            cache.ended = True
            for key_id in list(cache.entries):
                cache.drop(key_id)
            if self._caches.get((cache.peer, cache.store)) is cache:
                del self._caches[cache.peer, cache.store]
                self._epoch += 1
                if self._usual == cache.peer:
                    self._usual = None
        return True

    def seen(self, cache: _Cache, key_ids: list[bytes], version: int) -> None:
        """What an answer says; the cache that it was asked for may have had a successor meanwhile."""
        cache.seen(key_ids, version)
        current = self._caches.get((cache.peer, cache.store))
        if current is not None and current is not cache:
            current.seen(key_ids, version)

    def make_room(self, size: int) -> None:
        """Under the lock. The fullest cache gives its oldest."""
        more = 1 if size else 0
        while self.count and (
            self.count + more > self.max_entries or self.bytes + size > self.max_bytes
        ):
            cache = max(self._caches.values(), key=lambda one: len(one.entries))
            cache.drop(next(iter(cache.entries)))
            self.evicted += 1


def _is_full(error: ErlangError) -> bool:
    return isinstance(error.reason, tuple) and error.reason[:1] == ("full",)


_of: tuple[Any, _States] | None = None
_creating = threading.Lock()


def _states() -> _States:
    """Those of the node; `erlang.testing` has nodes of its own."""
    global _of
    of = _of
    if of is not None and of[0] is _backend.native:
        return of[1]
    with _creating:
        if _of is None or _of[0] is not _backend.native:
            _of = _backend.native, _States()
        return _of[1]


# --- what is done, step by step ---------------------------------------------------------------------


def _read(key: object, default: Any, store: str, node: str | None) -> Steps[Any]:
    states = _states()
    key_id = _native.encode(key)
    cache = yield from states.joined(store, node)
    if cache is None:
        answer = yield [_GET, store, False, key_id], states.peer(node)
        return default if len(answer) == 2 else _native.decode(answer[2])
    states.misses += 1
    cache.ask(key_id)
    try:
        answer = yield [_GET, store, cache.pid, key_id], cache.peer
        if len(answer) == 2:
            states.seen(cache, [key_id], answer[0])
            return default
        version, cached, term = answer
        entry = _Entry(key_id, version, term)
        if cached == "yes":
            cache.keep(key_id, entry)
        elif cached == "left":
            cache.end()
        states.seen(cache, [key_id], version)
        return entry.read()
    finally:
        cache.answered(key_id)


def _write(verb: Atom, key: object, args: list[Any], store: str, node: str | None) -> Steps[Any]:
    states = _states()
    key_id = _native.encode(key)
    cache = yield from states.joined(store, node)
    if cache is None:
        result, _, _ = yield [verb, store, False, key_id, *args], states.peer(node)
    else:
        cache.ask(key_id)
        try:
            request = [verb, store, cache.pid, key_id, *args]
            result, version, key_ids = yield request, cache.peer
            # This node's readers do not see what was before it, whenever the store's message comes.
            states.seen(cache, [key_id, *key_ids], version)
        finally:
            cache.answered(key_id)
    match result:
        case "ok":
            return True
        case ("ok", value):
            return value
        case ("error", "changed" | "exists" | "not_found"):
            return False
        case _:
            raise ErlangError(Atom("error"), result[1])


def _list(store: str, node: str | None) -> Steps[list[Any]]:
    states = _states()
    keys: list[Any] = yield [_KEYS, store], states.peer(node)
    return keys


def _run(steps: Steps[_T], timeout: float | None) -> _T:
    native = _backend.native
    until = None if timeout is None else time.monotonic() + timeout
    try:
        args, peer = next(steps)
        while True:
            left = None if until is None else max(0.0, until - time.monotonic())
            try:
                answer = native.call(_FUNCTION, args, left, peer, _trace.current())
            except BaseException as error:
                args, peer = steps.throw(error)
            else:
                args, peer = steps.send(answer)
    except StopIteration as stop:
        value: _T = stop.value
        return value


async def _run_async(steps: Steps[_T], timeout: float | None) -> _T:
    async with asyncio.timeout(timeout):
        try:
            args, peer = next(steps)
            while True:
                try:
                    answer = await _asking._call(_FUNCTION, tuple(args), peer)
                except BaseException as error:
                    args, peer = steps.throw(error)
                else:
                    args, peer = steps.send(answer)
        except StopIteration as stop:
            value: _T = stop.value
            return value


def _cached(key: object, store: str, node: str | None) -> Any:
    cache = _states().find(store, node)
    return _MISSING if cache is None else cache.get(_native.encode(key))


# --- for users --------------------------------------------------------------------------------------


def state_get(
    key: Any,
    default: Any = None,
    *,
    fresh: bool = False,
    store: str = DEFAULT,
    node: str | None = None,
    timeout: float | None = None,
) -> Any:
    """The value of a key in a store of the BEAM, or `default`; from this node's cache where that has it.

    The peer is the one that `erlang.call` would ask. What is cached may be older than the store by the time an
    invalidation takes to come here; with `fresh` the store is asked.

    Raises: ErlangError where there is no such store; NoConnection; TimeoutError; RuntimeError on the node's loop thread
    when it is not cached: use `await async_state_get(…)` there.
    """
    if not fresh:
        value = _cached(key, store, node)
        if value is not _MISSING:
            return value
    return _run(_read(key, default, store, node), timeout)


def state_put(
    key: Any,
    value: Any,
    *,
    store: str = DEFAULT,
    node: str | None = None,
    timeout: float | None = None,
) -> None:
    """Set a key's value.

    Raises: what `state_get` does; ErlangError with reason ('full', 'entries' or 'bytes', bound).
    """
    _run(_write(_PUT, key, [value], store, node), timeout)


def state_put_new(
    key: Any,
    value: Any,
    *,
    store: str = DEFAULT,
    node: str | None = None,
    timeout: float | None = None,
) -> bool:
    """Set a key's value if it has none; whether it was set. Raises: what `state_put` does."""
    return bool(_run(_write(_PUT_NEW, key, [value], store, node), timeout))


def state_incr(
    key: Any,
    by: float = 1,
    *,
    store: str = DEFAULT,
    node: str | None = None,
    timeout: float | None = None,
) -> Any:
    """Add to a number, 0 where there is none, and return the sum.

    Raises: what `state_put` does; ErlangError with reason 'not_a_number'.
    """
    return _run(_write(_INCR, key, [by], store, node), timeout)


def state_cas(
    key: Any,
    old: Any,
    new: Any,
    *,
    store: str = DEFAULT,
    node: str | None = None,
    timeout: float | None = None,
) -> bool:
    """Compare and swap: set `new` if the value is `old`, as Erlang tells terms apart; whether it was set.

    A key without a value equals nothing: see `state_put_new`. Raises: what `state_put` does.
    """
    return bool(_run(_write(_CAS, key, [old, new], store, node), timeout))


def state_delete(
    key: Any,
    *,
    store: str = DEFAULT,
    node: str | None = None,
    timeout: float | None = None,
) -> None:
    """Take a key away, if it is there. Raises: what `state_get` does."""
    _run(_write(_DELETE, key, [], store, node), timeout)


def state_keys(
    *, store: str = DEFAULT, node: str | None = None, timeout: float | None = None
) -> list[Any]:
    """All keys, asked of the store, in no order. Raises: what `state_get` does."""
    return _run(_list(store, node), timeout)


async def async_state_get(
    key: Any,
    default: Any = None,
    *,
    fresh: bool = False,
    store: str = DEFAULT,
    node: str | None = None,
    timeout: float | None = None,
) -> Any:
    """`state_get` for coroutines."""
    if not fresh:
        value = _cached(key, store, node)
        if value is not _MISSING:
            return value
    return await _run_async(_read(key, default, store, node), timeout)


async def async_state_put(
    key: Any,
    value: Any,
    *,
    store: str = DEFAULT,
    node: str | None = None,
    timeout: float | None = None,
) -> None:
    """`state_put` for coroutines."""
    await _run_async(_write(_PUT, key, [value], store, node), timeout)


async def async_state_put_new(
    key: Any,
    value: Any,
    *,
    store: str = DEFAULT,
    node: str | None = None,
    timeout: float | None = None,
) -> bool:
    """`state_put_new` for coroutines."""
    return bool(await _run_async(_write(_PUT_NEW, key, [value], store, node), timeout))


async def async_state_incr(
    key: Any,
    by: float = 1,
    *,
    store: str = DEFAULT,
    node: str | None = None,
    timeout: float | None = None,
) -> Any:
    """`state_incr` for coroutines."""
    return await _run_async(_write(_INCR, key, [by], store, node), timeout)


async def async_state_cas(
    key: Any,
    old: Any,
    new: Any,
    *,
    store: str = DEFAULT,
    node: str | None = None,
    timeout: float | None = None,
) -> bool:
    """`state_cas` for coroutines."""
    return bool(await _run_async(_write(_CAS, key, [old, new], store, node), timeout))


async def async_state_delete(
    key: Any,
    *,
    store: str = DEFAULT,
    node: str | None = None,
    timeout: float | None = None,
) -> None:
    """`state_delete` for coroutines."""
    await _run_async(_write(_DELETE, key, [], store, node), timeout)


async def async_state_keys(
    *, store: str = DEFAULT, node: str | None = None, timeout: float | None = None
) -> list[Any]:
    """`state_keys` for coroutines."""
    return await _run_async(_list(store, node), timeout)


# --- watching ---------------------------------------------------------------------------------------


class StateChange(NamedTuple):
    """What a watch tells: the key's value, or that it was deleted and has none."""

    key: Any
    value: Any
    deleted: bool


class StateWatch:
    """The changes of a key, or of every key: made by `state_watch`, entered by `with` or `async with`.

    Who is slow is told the latest of each key, keys in the order in which they changed first. Any number of threads and
    coroutines of any loop may receive: each change goes to one.
    """

    def __init__(self, key: Any, store: str, node: str | None, timeout: float | None) -> None:
        self._what: Any = _ALL if key is _MISSING else _native.encode(key)
        self._store = store
        self._node = node
        self._timeout = timeout
        self._news = threading.Condition()
        self._changes: dict[bytes, StateChange] = {}
        self._waiting: list[tuple[asyncio.AbstractEventLoop, asyncio.Future[None]]] = []
        self._pid: Pid | None = None
        self._lost = False
        self._closed = False

    def _begin(self) -> Steps[None]:
        self._pid = pid = _backend.native.spawn_process(self._deliver, self._stopped)
        try:
            owner = yield [_HELLO, self._store], _states().peer(self._node)
            _backend.native.monitor(pid, owner)
            yield [_WATCH, self._store, pid, self._what], str(owner.node)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> StateWatch:
        _run(self._begin(), self._timeout)
        return self

    async def __aenter__(self) -> StateWatch:
        await _run_async(self._begin(), self._timeout)
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    async def __aexit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the watch: what it has told can still be received. Again and again if you like."""
        self._end(closed=True)
        if self._pid is not None:
            try:
                _backend.native.exit_process(self._pid, _NORMAL)
            except RuntimeError:
                pass  # the node has ended

    def receive(self, timeout: float | None = None) -> StateChange:
        """The next change, for threads.

        Raises: TimeoutError; NoConnection when the store or its node has gone; RuntimeError when the watch was closed, and
        on the node's loop thread.
        """
        loop = _node_loop()
        if _on_loop(loop):
            raise RuntimeError("this would block the node's event loop; use await async_receive()")
        until = None if timeout is None else time.monotonic() + timeout
        with self._news:
            while not self._changes:
                self._check()
                left = None if until is None else until - time.monotonic()
                if left is not None and left <= 0:
                    raise TimeoutError("nothing has changed in time")
                # In slices: a call that is cancelled is told between two.
                self._news.wait(_SLICE if left is None else min(left, _SLICE))
            return self._changes.pop(next(iter(self._changes)))

    async def async_receive(self) -> StateChange:
        """`receive` for coroutines."""
        while True:
            with self._news:
                if self._changes:
                    return self._changes.pop(next(iter(self._changes)))
                self._check()
                loop = asyncio.get_running_loop()
                place = loop, loop.create_future()
                self._waiting.append(place)
            try:
                await place[1]
            finally:
                with self._news:
                    if place in self._waiting:
                        self._waiting.remove(place)

    def __iter__(self) -> StateWatch:
        return self

    def __next__(self) -> StateChange:
        try:
            return self.receive()
        except _Closed:
            raise StopIteration from None

    def __aiter__(self) -> StateWatch:
        return self

    async def __anext__(self) -> StateChange:
        try:
            return await self.async_receive()
        except _Closed:
            raise StopAsyncIteration from None

    def _check(self) -> None:
        if self._closed or self._pid is None:
            raise _Closed("the watch is not open")
        if self._lost:
            raise NoConnection()

    def _deliver(self, messages: list[Any]) -> None:
        for message in messages:
            match message:
                case ("py_state", "changed", _, key, what):
                    deleted = what == "deleted"
                    change = StateChange(key, None if deleted else what[1], deleted)
                    with self._news:
                        self._changes[_native.encode(key)] = change
                        self._wake()
                case ("DOWN", *_):
                    self._end()

    def _stopped(self, reason: Any) -> None:
        self._end()

    def _end(self, closed: bool = False) -> None:
        with self._news:
            self._closed |= closed
            self._lost = True
            self._wake()

    def _wake(self) -> None:
        """Everybody looks, under the lock: who is woken may have been cancelled."""
        self._news.notify_all()
        waiting, self._waiting = self._waiting, []
        for loop, future in waiting:
            try:
                loop.call_soon_threadsafe(_asking._finish, future)
            except RuntimeError:
                pass  # that loop has been closed


class _Closed(RuntimeError):
    """Whoever iterates has come to the end."""


def state_watch(
    key: Any = _MISSING,
    *,
    store: str = DEFAULT,
    node: str | None = None,
    timeout: float | None = None,
) -> StateWatch:
    """The changes of a key from now on; of every key, where none is given.

        async with erlang.state_watch("limit") as changes:
            async for change in changes:
                print(change.key, change.value, change.deleted)

    In threads it is `with` and `for`. Entering raises what `state_get` does, ErlangError with reason ('full', 'watches',
    bound), and RuntimeError in a worker process of --processes.
    """
    return StateWatch(key, store, node, timeout)


# --- the caches' bounds -----------------------------------------------------------------------------


def state_cache(*, max_entries: int | None = None, max_bytes: int | None = None) -> dict[str, int]:
    """How full this node's caches are and what they did; sets their bounds first, where any is given.

    The bounds are 10,000 entries and 64 MiB unless set, for all stores together; 0 entries switch caching off.
    """
    states = _states()
    with states.lock:
        if max_entries is not None:
            states.max_entries = max_entries
        if max_bytes is not None:
            states.max_bytes = max_bytes
        states.make_room(0)
        return {
            "entries": states.count,
            "max_entries": states.max_entries,
            "bytes": states.bytes,
            "max_bytes": states.max_bytes,
            "hits": states.hits,
            "misses": states.misses,
            "invalidations": states.invalidations,
            "evicted": states.evicted,
        }
