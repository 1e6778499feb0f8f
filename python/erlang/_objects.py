"""Objects of this node that peers hold references to: who owns each, and when it is let go.

    {'$py_object', Node, Creation, Id, Type} ── the decoder ──▶ held() ──▶ the object itself, in any arguments
    call, call_method, get, …  ◀── py_object ── the reference's own verbs, which are given {Node, Creation, Id}
    a process of the node ◀── DOWN ── the monitor of each owner; a timer looks after leases

An object has one owner: a process of any node, whose end frees it, or a lease, which ends when the object was not used for
so long. What is freed because its owner went is let go on a thread of its own, so that a slow `__del__` holds up neither
the loop nor a worker; an object that was made in a context is used and let go on that context's thread.

A call by name goes by the allow-list (`native.resolve`). With one, an attribute NAME of an object is had where
MODULE.CLASS.NAME is allowed, of its class or of the one that defines it.
"""

from __future__ import annotations

import heapq
import inspect
import queue
import threading
import time
import types
from collections import Counter
from collections.abc import Callable, Coroutine
from typing import Any, Final, Protocol

from erlang import _backend
from erlang.exceptions import BadReference, Refused
from erlang.terms import Atom, Pid

__all__ = ["held", "reference"]

MOST_OBJECTS: Final = 1_000_000
MOST_OF_OWNER: Final = 250_000
MOST_LISTED: Final = 10_000
MOST_WATCHED: Final = 50_000  # half of what a mailbox takes

_TAG: Final = Atom("$py_object")
_LEASE: Final = Atom("lease")
_EVALUATORS: Final = (eval, exec, compile, __import__)

Reference = tuple[Atom, Atom, int, int, str]
Target = tuple[str, int, int]  # Node, Creation, Id
Owner = Pid | tuple[str, int]
Keep = Any  # an Owner, of a reference to the result; [] or None: the result itself


class Place(Protocol):
    """Where the objects that were made there are used: a context."""

    def run(self, job: Callable[[], Any]) -> Coroutine[Any, Any, Any]:
        """What `job` returns there; a coroutine that it returns is awaited."""

    def drop(self, entries: list[Any]) -> None:
        """Has the list emptied there."""


class _Entry:
    __slots__ = ("lease", "made", "object", "owner", "place", "type", "used")

    def __init__(self, value: Any, owner: Pid | None, lease: float, place: Place | None) -> None:
        self.object = value
        self.type = _name_of(type(value))
        self.owner = owner
        self.lease = lease
        self.place = place
        self.made = self.used = time.monotonic()


_lock = threading.Lock()  # over all that follows
_table: dict[int, _Entry] = {}
_owners: dict[Pid, set[int]] = {}  # each of them is monitored
_leases: list[tuple[float, int]] = []  # a heap; who was used meanwhile is put back
_leased = 0
_created = 0
_orphaned = 0  # freed because the owner went
_expired = 0


def _name_of(cls: type) -> str:
    return (
        cls.__qualname__ if cls.__module__ == "builtins" else f"{cls.__module__}.{cls.__qualname__}"
    )


_known: tuple[bytes, Atom, int] = (b"", Atom(""), 0)


def _here() -> tuple[Atom, int]:
    """This node's name and creation; names may be given by a peer, so they are not for ever."""
    global _known
    pid: Pid = _backend.native.server_pid()
    if pid.raw != _known[0]:
        _known = pid.raw, pid.node, pid.creation
    return _known[1:]


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


# --- making references ----------------------------------------------------------------------------


def _keep(value: Any, owner: Owner, place: Place | None = None) -> Reference:
    """The reference by which a peer may have `value` from now on.

    Raises: Refused where there are too many, or it is not to be had; TypeError for an owner that is none.
    """
    pid, lease = _owner(owner)
    _check_evaluator(value)
    _watcher.start()
    node, creation = _here()
    entry = _Entry(value, pid, lease, place)
    number = _enter(entry, pid)
    if pid is not None and number < 0:
        number = -number
        try:
            _watcher.watch(pid)
        except BaseException:
            _drop(_take_of(pid))
            raise
    elif pid is None:
        _watcher.look_at_leases()
    return _TAG, node, creation, number, entry.type


def reference(value: Any, *, owner: Pid | None = None, lease: float | None = None) -> Reference:
    """A reference to `value`, to be sent to Erlang, alone or within a term.

    The owner is a process, by default the one whose request is being served, or, with `lease`, nobody: then the object is
    let go when it was not used for so many seconds.

    Raises: ValueError where it is not told whose request this is; Refused where there are too many.
    """
    if lease is not None:
        return _keep(value, (_LEASE, max(1, round(lease * 1000))))
    if owner is None:
        owner = _backend.native.served()
    if not isinstance(owner, Pid):
        raise ValueError("whose request this is was not told: a reference needs an owner")
    return _keep(value, owner)


def _owner(owner: Any) -> tuple[Pid | None, float]:
    if isinstance(owner, Pid):
        return owner, 0.0
    if isinstance(owner, tuple) and len(owner) == 2 and owner[0] == "lease":
        milliseconds = owner[1]
        if isinstance(milliseconds, int) and 0 < milliseconds < 1 << 40:
            return None, milliseconds / 1000
    raise TypeError(f"an owner is a pid or {{lease, Milliseconds}}, not {owner!r}")


def _enter(entry: _Entry, pid: Pid | None) -> int:
    """The number of a new entry; below zero if its owner is not monitored yet."""
    global _created, _leased
    with _lock:
        if len(_table) >= MOST_OBJECTS:
            raise Refused((Atom("too_many_refs"), Atom("node")))
        new = pid is not None and pid not in _owners
        if pid is not None:
            own = _owners.setdefault(pid, set())
            if len(own) >= MOST_OF_OWNER:
                raise Refused((Atom("too_many_refs"), Atom("owner")))
        _created += 1
        number = _created
        _table[number] = entry
        if pid is not None:
            own.add(number)
        else:
            _leased += 1
            heapq.heappush(_leases, (entry.used + entry.lease, number))
        return -number if new else number


# --- finding and freeing --------------------------------------------------------------------------


def held(reference: tuple[Any, ...]) -> Any:
    """The object that a peer's reference stands for, wherever in a term it came.

    Raises: BadReference.
    """
    return _find(reference[1:4]).object


def _find(target: Any) -> _Entry:
    match target:
        case (str(node), int(creation), int(number)):
            pass
        case _:
            raise BadReference("unknown", "this is no reference to an object")
    if not _backend.native.in_node():
        raise BadReference("other_node", f"the object is on {node}, and this is no node")
    own, own_creation = _here()
    if node != own:
        raise BadReference("other_node", f"the object is on {node}, and this is {own}")
    if creation != own_creation:
        raise BadReference("released", f"{node} has been started anew since the object was made")
    entry = _table.get(number)
    if entry is None and 0 < number <= _created:
        raise BadReference("released", f"object {number} has been released")
    if entry is None:
        raise BadReference("unknown", f"there never was an object {number}")
    entry.used = time.monotonic()
    return entry


def _forget(number: int) -> _Entry | None:
    """Takes an entry out. The lock is held."""
    global _leased
    entry = _table.pop(number, None)
    if entry is None:
        return None
    if entry.owner is None:
        _leased -= 1
        if len(_leases) > 2 * _leased + 1000:  # mostly of objects that were released
            _leases[:] = [lease for lease in _leases if lease[1] in _table]
            heapq.heapify(_leases)
    elif entry.owner in _owners:
        # The owner stays, without objects: it is monitored, and will have others.
        _owners[entry.owner].discard(number)
    return entry


def _take_of(owner: Pid) -> list[Any]:
    with _lock:
        numbers = _owners.pop(owner, set())
        return [_table.pop(number) for number in numbers if number in _table]


def _drop(entries: list[Any]) -> None:
    """Lets go of what these hold, each in its place. The caller has no other reference to them."""
    placed: dict[Place, list[_Entry]] = {}
    for index, entry in enumerate(entries):
        if entry.place is not None:
            placed.setdefault(entry.place, []).append(entry)
            entries[index] = None
    entry = None
    if entries:
        _releaser.take(entries)
    for place, some in placed.items():
        place.drop(some)


def _leave(place: Place) -> list[Any]:
    """All that was made in a place, which is about to end; the caller lets go of it there."""
    with _lock:
        numbers = [number for number, entry in _table.items() if entry.place is place]
        return [_forget(number) for number in numbers]


class _Releaser:
    """The thread on which orphaned objects end."""

    def __init__(self) -> None:
        self._batches: queue.SimpleQueue[list[Any]] = queue.SimpleQueue()
        self._started = False

    def take(self, entries: list[Any]) -> None:
        if not self._started:
            self._started = True
            threading.Thread(target=self._run, name="erlang-objects", daemon=True).start()
        self._batches.put(entries)

    def _run(self) -> None:
        while True:
            _empty(self._batches.get())


def _empty(entries: list[Any]) -> None:
    """Lets go of one after the other."""
    while entries:
        entries.pop()


_releaser = _Releaser()


def _let_go(entries: list[Any]) -> None:
    """Has the list emptied on that thread."""
    _releaser.take(entries)


class _Watch:
    """A process that monitors owners, so few that its mailbox has room for the end of all of them at once."""

    def __init__(self) -> None:
        self.owners: set[Pid] = set()
        self.pid: Pid = _backend.native.spawn_process(self._deliver, self._stopped)

    def _deliver(self, messages: list[Any]) -> None:
        global _orphaned
        entries: list[Any] = []
        for message in messages:
            match message:
                case ("DOWN", _, "process", Pid() as owner, _):
                    self.owners.discard(owner)
                    entries += _take_of(owner)
        _orphaned += len(entries)
        if entries:
            _drop(entries)

    def _stopped(self, reason: Any) -> None:
        # Somebody ended it, and its monitors with it: nobody would tell of those owners any more.
        _watcher.forget(self)
        for owner in list(self.owners):
            _drop(_take_of(owner))


class _Watcher:
    """The processes that monitor owners, and the timer of the leases."""

    def __init__(self) -> None:
        self._watches: list[_Watch] = []
        self._choosing = threading.Lock()
        self._armed: float | None = None  # what for; loop thread
        self._loop: Any = None

    def start(self) -> None:
        """Raises: Refused where there can be no processes."""
        if not self._watches:
            with self._choosing:
                self._loop = _backend.native.event_loop()
                self._with_room()

    def _with_room(self) -> _Watch:
        for watch in self._watches:
            if len(watch.owners) < MOST_WATCHED:
                return watch
        try:
            self._watches.append(_Watch())
        except RuntimeError:
            raise Refused(
                (Atom("unsupported"), "object references, by a node with --processes")
            ) from None
        return self._watches[-1]

    def watch(self, owner: Pid) -> None:
        with self._choosing:
            watch = self._with_room()
            watch.owners.add(owner)
        _backend.native.monitor(watch.pid, owner)

    def forget(self, watch: _Watch) -> None:
        with self._choosing:
            self._watches.remove(watch)

    def look_at_leases(self) -> None:
        self._loop.call_soon_threadsafe(self._arm)

    def _arm(self) -> None:
        with _lock:
            due = _leases[0][0] if _leases else None
        if due is None or (self._armed is not None and self._armed <= due):
            return
        self._armed = due
        self._loop.call_later(max(due - time.monotonic(), 0.001), self._look, due)

    def _look(self, due: float) -> None:
        global _expired
        if self._armed != due:
            return  # an earlier one has been set meanwhile, and will set the next
        self._armed = None
        now = time.monotonic()
        over: list[Any] = []
        with _lock:
            while _leases and _leases[0][0] <= now:
                _, number = heapq.heappop(_leases)
                entry = _table.get(number)
                if entry is None:
                    continue
                end = entry.used + entry.lease
                if end > now:
                    heapq.heappush(_leases, (end, number))
                else:
                    over.append(_forget(number))
                entry = None
        _expired += len(over)
        if over:
            _drop(over)
        self._arm()


_watcher = _Watcher()


# --- what the allow-list says of attributes -------------------------------------------------------


def _attribute(value: Any, name: str) -> Any:
    _check(value, name)
    found = getattr(value, name)
    _check_evaluator(found)
    return found


def _check(value: Any, name: str) -> None:
    """Raises: NotAllowed; AttributeError for what is no name."""
    if not name.isidentifier():
        raise AttributeError(f"{name!r} is no attribute's name")
    allowed = _backend.native.allowed
    if type(value) is types.ModuleType:
        homes = [(value.__name__, name)]
    else:
        cls = value if isinstance(value, type) else type(value)
        definer = next((base for base in cls.__mro__ if name in base.__dict__), cls)
        homes = [(base.__module__, f"{base.__qualname__}.{name}") for base in (cls, definer)]
    if not any(allowed(module, path) for module, path in homes):
        _backend.native.resolve(*homes[0])  # raises NotAllowed


def _check_callable(value: Any) -> None:
    """Raises: NotAllowed."""
    home: tuple[str, str]
    if isinstance(value, (type, types.FunctionType, types.MethodType)):
        home = value.__module__, value.__qualname__
    elif isinstance(value, types.BuiltinFunctionType):
        module = value.__module__ or type(value.__self__).__module__
        home = module, value.__qualname__
    else:
        home = type(value).__module__, f"{type(value).__qualname__}.__call__"
    if not _backend.native.allowed(*home):
        _backend.native.resolve(*home)
    _check_evaluator(value)


def _check_evaluator(value: Any) -> None:
    """With `--eval off` evaluation is not to be had by way of objects either."""
    for evaluator in _EVALUATORS:
        if value is evaluator:
            _backend.native.resolve("builtins", evaluator.__name__)


# --- what peers call: through py_object, or as docs/protocol.md says --------------------------------


def call(owner: Owner, module: Any, function: Any, args: Any, kwargs: Any = None) -> Any:
    """The reference of what `module.function(*args, **kwargs)` returns."""
    target = _backend.native.resolve(_text(module), _text(function))
    _owner(owner)
    return _answer(None, lambda: target(*args, **_keywords(kwargs)), owner)


def call_method(
    target: Target, name: Any, args: Any, kwargs: Any = None, owner: Keep = None
) -> Any:
    """`object.name(*args, **kwargs)`: the value, or with an owner a reference to it."""
    entry = _find(target)
    value = entry.object
    return _answer(
        entry.place,
        lambda: _attribute(value, _text(name))(*args, **_keywords(kwargs)),
        owner,
    )


def call_object(target: Target, args: Any, kwargs: Any = None, owner: Keep = None) -> Any:
    """`object(*args, **kwargs)`."""
    entry = _find(target)
    value = entry.object
    _check_callable(value)
    return _answer(entry.place, lambda: value(*args, **_keywords(kwargs)), owner)


def get(target: Target, name: Any, owner: Keep = None) -> Any:
    """`object.name`."""
    entry = _find(target)
    value = entry.object
    return _answer(entry.place, lambda: _attribute(value, _text(name)), owner, calls=False)


def assign(target: Target, name: Any, value: Any) -> Any:
    """`object.name = value`; with an allow-list where MODULE.CLASS.__setattr__ is spelled out in it."""
    entry = _find(target)
    changed = entry.object
    _check(changed, "__setattr__")
    return _answer(entry.place, lambda: setattr(changed, _text(name), value), None)


def term(target: Target) -> Any:
    """The object as a term."""
    return _find(target).object


def release(target: Target) -> Any:
    """Lets go of the object; True if it was there. It ends on the worker that runs this, or in its context."""
    try:
        _find(target)
    except BadReference as error:
        if error.why == "released":
            return False
        raise
    with _lock:
        entry = _forget(target[2])
    if entry is None:
        return False
    if entry.place is not None:
        return _released_in(entry.place, [entry])
    return True


async def _released_in(place: Place, entries: list[Any]) -> bool:
    await place.run(lambda: _empty(entries))
    return True


def refs(most: int = 1000) -> list[dict[Atom, Any]]:
    """The oldest references first."""
    node, creation = _here()
    now = time.monotonic()
    with _lock:
        entries = [entry for entry, _ in zip(_table.items(), range(min(most, MOST_LISTED)))]
    return [_listed(node, creation, now, number, entry) for number, entry in entries]


def _listed(node: Atom, creation: int, now: float, number: int, entry: _Entry) -> dict[Atom, Any]:
    return {
        Atom("id"): number,
        Atom("ref"): (_TAG, node, creation, number, entry.type),
        Atom("type"): entry.type,
        Atom("owner"): entry.owner
        if entry.owner is not None
        else (_LEASE, round(entry.lease * 1000)),
        Atom("age_ms"): int((now - entry.made) * 1000),
        Atom("idle_ms"): int((now - entry.used) * 1000),
    }


def counts() -> dict[Atom, Any]:
    """How many there are, were and have been freed because nobody owned them any more."""
    with _lock:
        kinds = Counter(entry.type for entry in _table.values())
        owners = sum(1 for own in _owners.values() if own)
        return {
            Atom("refs"): len(_table),
            Atom("owners"): owners,
            Atom("leases"): _leased,
            Atom("created"): _created,
            Atom("orphaned"): _orphaned,
            Atom("expired"): _expired,
            Atom("types"): dict(kinds.most_common(20)),
        }


def _keywords(kwargs: Any) -> dict[str, Any]:
    return {_text(name): value for name, value in kwargs.items()} if kwargs else {}


def _answer(place: Place | None, job: Callable[[], Any], owner: Keep, calls: bool = True) -> Any:
    """The job's value or a reference to it: at once, or as a coroutine for the node's loop."""
    if place is not None:
        return _answer_there(place, job, owner)
    value = job()
    if not owner:
        return value
    if calls and inspect.iscoroutine(value):
        return _answer_later(value, owner)
    return _keep(value, owner)


async def _answer_there(place: Place, job: Callable[[], Any], owner: Keep) -> Any:
    value = await place.run(job)
    return _keep(value, owner, place) if owner else value


async def _answer_later(coroutine: Coroutine[Any, Any, Any], owner: Owner) -> Any:
    return _keep(await coroutine, owner)
