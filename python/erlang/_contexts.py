"""Contexts: namespaces that peers share by handle, each with a thread of its own and, if it wants, its own copies of modules.

    py:call(Context, …), eval, exec ── a coroutine on the node's loop ──▶ the context's queue ──▶ its thread, one by one
                                          ▲   the value; a coroutine it returned is awaited here      │
                                          └───────────────────────────────────────────────────────────┘

Nothing waits on a worker. What was asked for and not begun is taken out of the queue when its caller goes; what runs has
Cancelled raised in it. A context ends with its owner, unless it is permanent; what it defined and the objects that peers
hold of it end on its thread.

Isolated modules are loaded from source into the context alone: `import` means the context's copy in its own code and in
those modules, and the node's for everything else. All calls by name go by the allow-list (`native.resolve`).
"""

from __future__ import annotations

import asyncio
import builtins
import collections
import contextvars
import ctypes
import gc
import importlib
import importlib.machinery
import importlib.util
import inspect
import logging
import sys
import threading
import time
import types
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from typing import Any, Final

from erlang import _backend, _objects
from erlang.exceptions import Cancelled, NotAllowed, Refused
from erlang.terms import Atom, Pid, Ref

__all__: list[str] = []

MOST_CONTEXTS: Final = 256
MAX_QUEUE: Final = 1000  # unless the context says otherwise
MAIN: Final = "__main__"

_OPTIONS: Final = frozenset(
    {"environ", "imports", "isolated", "max_queue", "name", "owner", "path", "preload"}
)
_text = _objects._text
_log = logging.getLogger("erlang")

Target = tuple[str, int, int]  # Node, Creation, Id


class _Job:
    __slots__ = ("context", "future", "interrupted", "job", "loop")

    def __init__(self, job: Callable[[], Any], loop: asyncio.AbstractEventLoop | None) -> None:
        self.job: Callable[[], Any] | None = job
        self.loop = loop
        self.interrupted = False
        self.context = contextvars.copy_context()
        self.future: asyncio.Future[Any] | None = loop.create_future() if loop is not None else None

    def tell(self, value: Any, error: BaseException | None) -> None:
        if self.loop is not None:
            try:
                self.loop.call_soon_threadsafe(self._told, value, error)
            except RuntimeError:
                pass  # the node stops

    def _told(self, value: Any, error: BaseException | None) -> None:
        self.job = None
        future = self.future
        if future is None or future.done():
            if inspect.iscoroutine(value):
                value.close()
        elif error is None:
            future.set_result(value)
        elif isinstance(error, Exception) and not isinstance(error, StopIteration):
            future.set_exception(error)
        else:  # neither the loop nor its tasks survive those
            future.set_exception(RuntimeError(f"the code raised {error!r}"))


class _Modules:
    """A context's own copies of modules: those of the given names and everything inside them."""

    def __init__(self, roots: Iterable[str], path: Sequence[str]) -> None:
        self._roots = frozenset(roots)
        self._path = list(path)
        self.loaded: dict[str, types.ModuleType] = {}
        self.builtins: dict[str, Any] = dict(vars(builtins))
        if self._roots:
            self.builtins["__import__"] = self._import

    def own(self, name: str) -> bool:
        return name.partition(".")[0] in self._roots

    def load(self, name: str) -> types.ModuleType:
        """Raises: ImportError, what the module raises."""
        known = self.loaded.get(name)
        if known is not None:
            return known
        above, _, last = name.rpartition(".")
        search = self._search_of(above)
        spec = importlib.machinery.PathFinder.find_spec(name, search)
        if spec is None and name in sys.builtin_module_names:
            raise ImportError(f"{name} cannot be isolated: it is a part of Python", name=name)
        if spec is None:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        source = isinstance(spec.loader, importlib.machinery.SourceFileLoader)
        if not source and spec.origin is not None:  # a package without __init__.py has none
            raise ImportError(f"{name} cannot be isolated: it is not Python source", name=name)
        module = importlib.util.module_from_spec(spec)
        module.__dict__["__builtins__"] = self.builtins
        self.loaded[name] = module
        try:
            if isinstance(spec.loader, importlib.machinery.SourceFileLoader):
                # Never from a cache, which cannot tell two versions of one second apart.
                path = spec.loader.get_filename(name)
                code = spec.loader.source_to_code(spec.loader.get_data(path), path)
                exec(code, module.__dict__)
        except BaseException:
            self.loaded.pop(name, None)
            raise
        if above:
            setattr(self.loaded[above], last, module)
        return module

    def _search_of(self, above: str) -> Sequence[str]:
        if not above:
            return self._path + sys.path
        package = self.load(above)
        search: Sequence[str] | None = getattr(package, "__path__", None)
        if search is None:
            raise ModuleNotFoundError(f"{above!r} is not a package", name=above)
        return list(search)

    def reload(self, name: str, namespace: dict[str, Any]) -> None:
        """Loads a module and what is inside it anew; names bound to the old one are bound to the new. All or nothing."""
        importlib.invalidate_caches()
        before = dict(self.loaded)
        old = {
            key: module
            for key, module in before.items()
            if key == name or key.startswith(name + ".")
        }
        for key in old:
            del self.loaded[key]
        try:
            for key in sorted(old) or [name]:
                self.load(key)
        except BaseException:
            self.loaded.clear()
            self.loaded.update(before)
            above, _, last = name.rpartition(".")
            if above in before and name in before:
                setattr(before[above], last, before[name])
            raise
        new = {id(module): self.loaded[key] for key, module in old.items()}
        for names in [namespace, *(module.__dict__ for module in self.loaded.values())]:
            for key, value in list(names.items()):
                if isinstance(value, types.ModuleType) and id(value) in new:
                    names[key] = new[id(value)]

    def _import(
        self,
        name: str,
        globals: Mapping[str, Any] | None = None,
        locals: Mapping[str, Any] | None = None,
        fromlist: Sequence[str] | None = (),
        level: int = 0,
    ) -> types.ModuleType:
        full = name
        if level:
            package = (globals or {}).get("__package__") or ""
            full = importlib.util.resolve_name("." * level + name, package)
        if not self.own(full):
            return builtins.__import__(name, globals, locals, fromlist or (), level)
        module = self.load(full)
        if not fromlist:
            return self.loaded[full.partition(".")[0]]
        for item in fromlist:
            names = getattr(module, "__all__", ()) if item == "*" else (item,)
            for one in names:
                if not hasattr(module, one) and hasattr(module, "__path__"):
                    try:
                        self.load(f"{full}.{one}")
                    except ModuleNotFoundError as error:
                        if error.name != f"{full}.{one}":
                            raise
        return module


class _Context:
    """One context. Its thread runs the jobs; everybody else puts them into the queue, under the lock."""

    def __init__(self, number: int, options: Mapping[str, Any]) -> None:
        self.number = number
        self.name = _text(options["name"]) if options.get("name") is not None else None
        self.owner: Pid | None = None
        self.monitor: Ref | None = None
        self.max_queue = int(options.get("max_queue", MAX_QUEUE))
        self.modules = _Modules(
            (_text(name) for name in options.get("isolated", ())),
            [_text(directory) for directory in options.get("path", ())],
        )
        environ = {_text(key): _text(value) for key, value in options.get("environ", {}).items()}
        self.namespace: dict[str, Any] = {
            "__builtins__": self.modules.builtins,
            "__name__": MAIN,
            "environ": environ,
        }
        self.made = time.monotonic()
        self.done = 0
        self.ready: asyncio.Task[Any] | None = None
        self._changed = threading.Condition()
        self._jobs: collections.deque[_Job] = collections.deque()
        self._current: _Job | None = None
        self._closed = False
        self._loop = asyncio.get_running_loop()
        self.over: asyncio.Future[None] = self._loop.create_future()
        self._thread = threading.Thread(
            target=self._serve, name=f"erlang-context-{self.name or number}", daemon=True
        )
        self._thread.start()

    # --- the node's loop

    async def run(self, job: Callable[[], Any]) -> Any:
        """What the job returns on the context's thread; a coroutine that it returns is awaited here.

        Raises: Refused; what the job raises.
        """
        item = _Job(job, asyncio.get_running_loop())
        self._put(item)
        assert item.future is not None
        try:
            value = await item.future
        except asyncio.CancelledError:
            self._cancel(item)
            raise
        if inspect.iscoroutine(value):
            return await value
        return value

    def _put(self, item: _Job) -> None:
        with self._changed:
            if self._closed:
                raise Refused((Atom("bad_context"), Atom("closed")))
            if len(self._jobs) >= self.max_queue:
                raise Refused(Atom("overloaded"))
            self._jobs.append(item)
            self._changed.notify()

    def _cancel(self, item: _Job) -> None:
        with self._changed:
            if item in self._jobs:
                self._jobs.remove(item)
            elif self._current is item:
                self._interrupt()

    def _interrupt(self) -> None:
        """Has the thread raise Cancelled at its next bytecode, once for a job. The lock is held."""
        if self._current is not None and not self._current.interrupted:
            self._current.interrupted = True
            self._set_exception(ctypes.py_object(Cancelled))

    def _set_exception(self, error: Any) -> None:
        thread = ctypes.c_ulong(self._thread.ident or 0)
        ctypes.pythonapi.PyThreadState_SetAsyncExc(thread, error)

    def drop(self, entries: list[Any]) -> None:
        """Lets go of peers' objects, after what was asked for before."""
        with self._changed:
            if not self._closed:
                self._jobs.append(_Job(lambda: _objects._empty(entries), None))
                self._changed.notify()
                return
        _objects._let_go(entries)

    def close(self, interrupt: bool = False) -> None:
        """Takes no more, and ends when what runs has ended."""
        with self._changed:
            if self._closed:
                return
            self._closed = True
            waiting = [item for item in self._jobs if item.loop is not None]
            for item in waiting:
                self._jobs.remove(item)
            if interrupt:
                self._interrupt()
            self._changed.notify()
        for item in waiting:
            item.tell(None, Refused((Atom("bad_context"), Atom("closed"))))

    def info(self) -> dict[Atom, Any]:
        with self._changed:
            return {
                Atom("id"): self.number,
                Atom("name"): self.name,
                Atom("owner"): self.owner if self.owner is not None else Atom("permanent"),
                Atom("waiting"): len(self._jobs),
                Atom("busy"): self._current is not None,
                Atom("done"): self.done,
                Atom("thread"): self._thread.ident,
                Atom("modules"): sorted(self.modules.loaded),
                Atom("age_ms"): int((time.monotonic() - self.made) * 1000),
            }

    # --- its thread

    def _serve(self) -> None:
        while self._wait():
            self._run_next()
        _objects._empty(_objects._leave(self))
        self.namespace.clear()
        self.modules.loaded.clear()
        try:
            self._loop.call_soon_threadsafe(self.over.set_result, None)
        except RuntimeError:
            pass  # the node stops

    def _wait(self) -> bool:
        with self._changed:
            while not self._jobs and not self._closed:
                self._changed.wait()
            return bool(self._jobs)

    def _run_next(self) -> None:
        # An interruption comes once, from when the job is the current one until it is not, and may come anywhere.
        item: _Job | None = None
        value: Any = None
        error: BaseException | None = None
        try:
            with self._changed:
                if self._jobs:
                    item = self._current = self._jobs.popleft()
            if item is not None and item.job is not None:
                value = item.context.run(item.job)
        except BaseException as raised:
            error = raised
        while self._current is not None:
            try:
                with self._changed:
                    item, self._current = self._current, None
                    self.done += 1
                    self._set_exception(None)  # what was set and not raised yet
            except Cancelled as raised:
                error = raised
        if item is not None:
            item.tell(value, error)


# --- the node's contexts --------------------------------------------------------------------------

_contexts: dict[int, _Context] = {}  # all that follows: the loop thread's
_names: dict[str, _Context] = {}
_numbered = 0


class _Keeper:
    """The process that monitors owners."""

    def __init__(self) -> None:
        self._pid: Pid | None = None

    @property
    def running(self) -> bool:
        return self._pid is not None

    def pid(self) -> Pid:
        if self._pid is None:
            try:
                self._pid = _backend.native.spawn_process(self._deliver, self._stopped)
            except RuntimeError:
                raise Refused(
                    (Atom("unsupported"), "contexts, by a node with --processes")
                ) from None
        return self._pid

    def _deliver(self, messages: list[Any]) -> None:
        for message in messages:
            match message:
                case ("DOWN", _, "process", Pid() as owner, _):
                    for context in [one for one in _contexts.values() if one.owner == owner]:
                        _end(context, interrupt=True)

    def _stopped(self, reason: Any) -> None:
        self._pid = None
        for context in [one for one in _contexts.values() if one.owner is not None]:
            _end(context, interrupt=True)


_keeper = _Keeper()


def _end(context: _Context, interrupt: bool = False) -> None:
    _contexts.pop(context.number, None)
    if context.name is not None and _names.get(context.name) is context:
        del _names[context.name]
    if context.monitor is not None and _keeper.running:
        _backend.native.demonitor(_keeper.pid(), context.monitor)
        context.monitor = None
    context.close(interrupt)


def _find(target: Target) -> _Context:
    match target:
        case (str(node), int(creation), int(number)):
            pass
        case _:
            raise Refused((Atom("bad_context"), Atom("unknown")))
    own, own_creation = _objects._here()
    if node != own:
        raise Refused((Atom("bad_context"), Atom("other_node")))
    context = _contexts.get(number)
    if creation != own_creation or (context is None and 0 < number <= _numbered):
        raise Refused((Atom("bad_context"), Atom("closed")))
    if context is None:
        raise Refused((Atom("bad_context"), Atom("unknown")))
    return context


async def _start(_: Any, options: Mapping[Any, Any]) -> tuple[Atom, int, int]:
    """Makes a context, or finds the one of that name: (node, creation, id).

    Raises: Refused; ValueError for an option there is not; what imports and preloaded code raise.
    """
    given = {_text(key): value for key, value in options.items()}
    unknown = sorted(set(given) - _OPTIONS)
    if unknown:
        raise ValueError(f"a context has no option {unknown[0]!r}")
    name = _text(given["name"]) if given.get("name") is not None else None
    context = _names.get(name) if name is not None else None
    if context is None:
        context = _make(given)
    assert context.ready is not None
    await asyncio.shield(context.ready)
    node, creation = _objects._here()
    return node, creation, context.number


def _make(options: dict[str, Any]) -> _Context:
    global _numbered
    resolve = _backend.native.resolve
    imports = [_text(module) for module in options.get("imports", ())]
    if imports or options.get("isolated") or options.get("path"):
        resolve("importlib", "import_module")
    preload = options.get("preload")
    if preload is not None:
        resolve("builtins", "exec")
    owner = options.get("owner")
    if not (owner == "permanent" or isinstance(owner, Pid)):
        raise TypeError(f"a context's owner is a pid or permanent, not {owner!r}")
    if len(_contexts) >= MOST_CONTEXTS:
        raise Refused(Atom("too_many_contexts"))
    keeper = _keeper.pid()
    _numbered += 1
    context = _Context(_numbered, options)
    _contexts[context.number] = context
    if context.name is not None:
        _names[context.name] = context
    if isinstance(owner, Pid):
        context.owner = owner
        context.monitor = _backend.native.monitor(keeper, owner)

    def prepare() -> None:
        for module in imports:
            top = context.modules.builtins["__import__"](module, {}, {}, (), 0)
            context.namespace[module.partition(".")[0]] = top
        if preload is not None:
            exec(compile(_text(preload), "<preload>", "exec"), context.namespace)

    async def prepared() -> None:
        try:
            await context.run(prepare)
        except BaseException:
            _end(context)
            raise

    # Nobody's context: others may wait for it too.
    context.ready = asyncio.get_running_loop().create_task(
        prepared(), context=contextvars.Context()
    )
    return context


async def _call(
    target: Target,
    module: Any,
    function: Any,
    args: Any,
    kwargs: Any = None,
    owner: _objects.Keep = None,
) -> Any:
    """`module.function(*args, **kwargs)` in a context; `__main__` is its own namespace."""
    context = _find(target)
    where, what = _text(module), _text(function)
    named = _objects._keywords(kwargs)
    value = await context.run(lambda: _function(context, where, what)(*args, **named))
    return _objects._keep(value, owner, context) if owner else value


def _function(context: _Context, module: str, function: str) -> Any:
    if module != MAIN and not context.modules.own(module):
        return _backend.native.resolve(module, function)
    if not _backend.native.allowed(module, function):
        raise NotAllowed(module, function)
    names = function.split(".")
    if module == MAIN:
        if names[0] not in context.namespace:
            raise AttributeError(f"the context has no {names[0]!r}")
        value = context.namespace[names.pop(0)]
    else:
        value = context.modules.load(module)
    path = module
    for name in names:
        value = getattr(value, name)
        path += f".{name}"
        # A name is not a way into what a module imports.
        if isinstance(value, types.ModuleType) and context.modules.loaded.get(path) is not value:
            raise NotAllowed(module, function)
    _objects._check_evaluator(value)
    return value


async def _cast(target: Target, module: Any, function: Any, args: Any, kwargs: Any = None) -> None:
    try:
        await _call(target, module, function, args, kwargs)
    except Exception:
        _log.exception("a cast to a context raised")


async def _evaluate(target: Target, code: Any, names: Mapping[Any, Any] | None = None) -> Any:
    """An expression's value, with these names beside the context's own."""
    context = _find(target)
    _backend.native.resolve("builtins", "eval")
    return await context.run(
        lambda: eval(
            compile(_text(code).lstrip(" \t"), "<erlang>", "eval"), _globals(context, names)
        )
    )


def _globals(context: _Context, names: Mapping[Any, Any] | None) -> dict[str, Any]:
    if not names:
        return context.namespace
    return {**context.namespace, **{_text(name): value for name, value in names.items()}}


async def _execute(target: Target, code: Any) -> None:
    """Runs statements."""
    context = _find(target)
    _backend.native.resolve("builtins", "exec")
    await context.run(lambda: exec(compile(_text(code), "<erlang>", "exec"), context.namespace))


async def _stop(target: Target) -> bool:
    """Ends a context when what runs in it has ended; False if it was closed before."""
    try:
        context = _find(target)
    except Refused as error:
        if error.reason == (Atom("bad_context"), Atom("closed")):
            return False
        raise
    _end(context)
    await asyncio.shield(context.over)
    return True


async def _info(target: Target) -> dict[Atom, Any]:
    return _find(target).info()


async def _list(_: Any) -> list[dict[Atom, Any]]:
    return [context.info() for context in _contexts.values()]


async def _reload(target: Target, module: Any) -> None:
    """Loads a context's own copy of a module anew; what runs on with the old one ends with it."""
    context = _find(target)
    name = _text(module)
    _backend.native.resolve("importlib", "reload")
    if not context.modules.own(name):
        raise ValueError(f"{name} is not isolated in this context")
    await context.run(lambda: context.modules.reload(name, context.namespace))


_VERBS: Final[Mapping[str, Callable[..., Coroutine[Any, Any, Any]]]] = {
    "start": _start,
    "call": _call,
    "cast": _cast,
    "eval": _evaluate,
    "exec": _execute,
    "info": _info,
    "list": _list,
    "reload": _reload,
    "close": _stop,
}


# --- what peers call: through py and py_context, or as docs/protocol.md says ------------------------


async def ask(verb: Any, target: Any, *arguments: Any) -> Any:
    """All that is asked of contexts comes by this one name, so that the node keeps it in order."""
    return await _VERBS[_text(verb)](target, *arguments)


# --- the node's own modules and memory --------------------------------------------------------------


def import_module(module: Any) -> None:
    """Imports a module on the node; with an allow-list where importlib.import_module is in it."""
    _backend.native.resolve("importlib", "import_module")(_text(module))


def reload_module(module: Any) -> None:
    """importlib.reload, or the first import; with an allow-list where importlib.reload is in it."""
    name = _text(module)
    _backend.native.resolve("importlib", "reload")
    importlib.invalidate_caches()
    known = sys.modules.get(name)
    if known is None:
        importlib.import_module(name)
    else:
        importlib.reload(known)


def collect() -> int:
    """Runs the garbage collector; how many objects it found unreachable."""
    return gc.collect()


def memory_stats() -> dict[Atom, Any]:
    """What this process and its interpreter use."""
    with open("/proc/self/status", encoding="utf-8", errors="replace") as file:
        status = dict(line.split(":", 1) for line in file if ":" in line)
    return {
        Atom("rss"): int(status["VmRSS"].split()[0]) * 1024,
        Atom("max_rss"): int(status["VmHWM"].split()[0]) * 1024,
        Atom("blocks"): sys.getallocatedblocks(),
        Atom("gc_count"): list(gc.get_count()),
        Atom("gc_collected"): [generation["collected"] for generation in gc.get_stats()],
        Atom("modules"): len(sys.modules),
        Atom("threads"): threading.active_count(),
        Atom("refs"): _objects.counts()[Atom("refs")],
        Atom("contexts"): len(_contexts),
    }
