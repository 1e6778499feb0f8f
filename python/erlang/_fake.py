"""The node that `erlang.testing` puts in the place of the real one: its name, loop, processes and signals.

    erlang.call, GenServer, … ──▶ _backend.native = Node ──▶ the functions of a FakePeer
                                        │
                                        └──▶ processes of both sides: messages, links, monitors, names

All tables are under one lock, and nothing of the user's runs under it. What the real node calls on its loop thread is
called on this one's: `deliver`, `begin`, `stop`, `wake`. Every term is encoded and decoded on its way.
"""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import itertools
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from erlang import _native
from erlang.exceptions import ErlangError, NoConnection, UnknownFunction
from erlang.terms import Atom, ImproperList, Pid, Ref

__all__ = ["Actor", "Node", "Question", "copied", "raised"]

Destination = Pid | str | tuple[str, str]
Serve = Callable[["Question", str, list[Any]], None]

_NORMAL = Atom("normal")
_NOCONNECTION = Atom("noconnection")
_COUNTERS = (
    "workers worker_threads blocked asking asking_threads busy waiting tasks completed refused replaced_workers "
    "processes channels handshakes_failed frames_rejected links_opened links_closed"
).split()


def copied(value: object, what: str) -> Any:
    """`value` as it arrives on the other side.

    Raises: TypeError or ValueError naming the path to what has no term.
    """
    try:
        return _native.decode(_native.encode(value))
    except (TypeError, ValueError) as error:
        kind = TypeError if isinstance(error, TypeError) else ValueError
        raise kind(f"{what}{str(error).removeprefix('value')}") from error


def raised(error: BaseException) -> ErlangError:
    """What a function of the peer raised, as its caller sees it."""
    from erlang.process import _reason_of

    if isinstance(error, ErlangError):
        try:
            reason, stack = copied(error.reason, "reason"), copied(error.stack, "stack")
        except (TypeError, ValueError) as failure:
            error = failure
        else:
            if isinstance(error, NoConnection):
                return NoConnection(reason)
            kind = UnknownFunction if isinstance(error, UnknownFunction) else ErlangError
            return kind(Atom(str(error.kind)), reason, stack)
    return ErlangError(Atom("error"), _reason_of(error))


def _text(value: object, what: str) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{what} must be a str")
    return str(value)


def _list(values: Sequence[Any]) -> list[Any]:
    return [copied(value, f"arguments[{index}]") for index, value in enumerate(values)]


class Question:
    """What somebody asked, in a thread or in a coroutine. Answered once, or left."""

    def __init__(self, node: Node, wake: Callable[[], object] | None) -> None:
        self.ref = node.make_ref()
        self.crosses = True  # to the other node
        self.asked: Actor | None = None
        self._node = node
        self._wake = wake
        self._over = threading.Event()
        self._value: Any = None
        self._error: BaseException | None = None
        self._cancel: Callable[[], object] | None = None

    def tell(self, value: Any = None, error: BaseException | None = None) -> None:
        with self._node.lock:
            if self._over.is_set():
                return
            self._value, self._error = value, error
            wake, self._wake = self._wake, None
            self._end()
        if wake is not None:
            self._node.post(_wake, wake)

    def leave(self) -> None:
        with self._node.lock:
            self._wake = None
            if not self._over.is_set():
                self._end()

    def _end(self) -> None:
        self._over.set()
        self._node.questions.pop(self.ref, None)
        if self._cancel is not None:
            self._cancel()

    def cancel_with(self, cancel: Callable[[], object]) -> None:
        """What is to be called when nobody waits any more."""
        with self._node.lock:
            self._cancel = cancel
            if self._over.is_set():
                cancel()

    def result(self) -> Any:
        if self._error is not None:
            raise self._error
        return self._value

    def wait(self, timeout: float | None) -> Any:
        try:
            if not self._over.wait(timeout):
                raise TimeoutError("Erlang has not answered in time")
        except BaseException:
            self.leave()
            raise
        return self.result()


def _wake(wake: Callable[[], object]) -> None:
    try:
        wake()
    except RuntimeError:
        pass  # the loop of who asked has been closed


class Actor:
    """A process of either side."""

    def __init__(self, node: Node, home: str, name: str | None = None) -> None:
        self.node = node
        self.pid = node.new_pid(home)
        self.name = name
        self.trap_exit = False
        self.system = False
        self.ended = False

    def accept(self, message: Any) -> None:
        """A message, in order. Under the lock."""

    def over(self, reason: Any, by_signal: bool) -> None:
        """It has ended. Under the lock."""


class _PythonActor(Actor):
    """A process of this node: `spawn_process`."""

    def __init__(
        self,
        node: Node,
        name: str | None,
        deliver: Callable[[list[Any]], None],
        stop: Callable[[Any], None],
    ) -> None:
        super().__init__(node, node.name, name)
        self._deliver = deliver
        self._stop = stop
        self._messages: list[Any] = []

    def accept(self, message: Any) -> None:
        self._messages.append(message)
        if len(self._messages) == 1:
            self.node.post(self._hand_over)

    def _hand_over(self) -> None:
        with self.node.lock:
            messages, self._messages = self._messages, []
        if not self.ended:
            self._deliver(messages)

    def over(self, reason: Any, by_signal: bool) -> None:
        if by_signal:
            self.node.post(self._stop, reason)


class Node:
    """What `erlang._backend.native` is while a FakePeer is active. `call` and `remote` serve the peer's functions."""

    def __init__(self, name: str, peer: str, call: Serve, remote: Serve) -> None:
        self.name = name
        self.peer = peer
        self.lock = threading.RLock()
        self.connected = True
        self.questions: dict[Ref, Question] = {}
        self.logged: list[tuple[str, str, Any]] = []
        self.lines: list[tuple[int, str]] = []
        self.SERVED = _native.SERVED
        self._serve_call = call
        self._serve_remote = remote
        self._closed = False
        self._numbers = itertools.count(1)
        self._actors: dict[Pid, Actor] = {}
        self._names: dict[tuple[str, str], Actor] = {}
        self._monitors: dict[Ref, tuple[Actor, Actor, Any]] = {}  # owner, target, who
        self._links: set[frozenset[Pid]] = set()
        self._watchers: list[Actor] = []
        self._threads: list[threading.Thread] = []
        self._strangers = set(threading.enumerate())
        self._py = Actor(self, name, "py")
        self._py.system = True
        self.add(self._py)
        self._ready = threading.Event()
        self._loop_thread = threading.Thread(
            target=lambda: asyncio.run(self._run_loop()), name=f"loop of {name}", daemon=True
        )
        self._loop_thread.start()
        self._ready.wait()

    # --- threads -----------------------------------------------------------------------------------

    async def _run_loop(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._stopping = asyncio.Event()
        self._ready.set()
        await self._stopping.wait()

    def post(self, callback: Callable[..., object], *arguments: Any) -> None:
        """Calls it on the loop thread; not at all when that has ended."""
        try:
            self._loop.call_soon_threadsafe(callback, *arguments, context=contextvars.Context())
        except RuntimeError:
            pass

    def start(self, job: Callable[..., object], *arguments: Any) -> None:
        """Runs it in a thread, for which `close` waits."""
        run = contextvars.Context().run
        thread = threading.Thread(
            target=run, args=(job, *arguments), name=f"job of {self.name}", daemon=True
        )
        with self.lock:
            self._threads = [one for one in self._threads if one.is_alive()] + [thread]
            thread.start()

    def finish(self, value: Any, cancel_with: Callable[[Callable[[], object]], None]) -> Any:
        """What a function returned; a coroutine runs on the loop, and `cancel_with` is given the way to stop it."""
        if not inspect.isawaitable(value):
            return value
        with self.lock:  # the loop does not end meanwhile
            if self._closed and inspect.iscoroutine(value):
                value.close()
            self._open()
            future = asyncio.run_coroutine_threadsafe(_awaited(value), self._loop)
        cancel_with(future.cancel)
        return future.result()

    def close(self, patience: float) -> list[str]:
        """Ends everything and returns the threads that are not to be ended within `patience` seconds."""
        with self.lock:
            self._closed = True
            for question in list(self.questions.values()):
                question.tell(error=NoConnection())
            for actor in list(self._actors.values()):
                self.end(actor, Atom("shutdown"), by_signal=True)
        self.post(lambda: self._stopping.set())
        spawned = [
            thread
            for thread in threading.enumerate()
            if thread not in self._strangers and thread.name.startswith("erlang.spawn ")
        ]
        until = time.monotonic() + patience
        with self.lock:
            threads = [self._loop_thread, *self._threads, *spawned]
        for thread in threads:
            thread.join(max(0.0, until - time.monotonic()))
        return [thread.name for thread in threads if thread.is_alive()]

    def _open(self) -> None:
        if self._closed:
            raise RuntimeError("the FakePeer has been left")

    def _off_loop(self, instead: str) -> None:
        if threading.current_thread() is self._loop_thread:
            raise RuntimeError(
                f"this would block the node's event loop; use await erlang.{instead}"
            )

    # --- processes and signals, of both sides ------------------------------------------------------

    def new_pid(self, home: str) -> Pid:
        return Pid(home, next(self._numbers), 0, 1)

    def make_ref(self) -> Ref:
        return Ref(self.name, 1, (next(self._numbers), 0, 0))

    def add(self, actor: Actor) -> None:
        """Raises: ValueError when its name is taken."""
        with self.lock:
            self._open()
            if actor.name is not None:
                if (actor.pid.node, actor.name) in self._names:
                    raise ValueError(f"the name '{actor.name}' is taken")
                self._names[actor.pid.node, actor.name] = actor
            self._actors[actor.pid] = actor

    def _find(self, dest: Destination, origin: str) -> tuple[str, Actor | None]:
        """The node and the process, as seen from the node `origin`."""
        if isinstance(dest, Pid):
            return dest.node, self._actors.get(dest)
        name, node = dest if isinstance(dest, tuple) and len(dest) == 2 else (dest, origin)
        if not isinstance(name, str) or not isinstance(node, str):
            raise TypeError("a process is a Pid, a name or (name, node)")
        return node, self._names.get((node, name))

    def reaches(self, node: str, origin: str) -> bool:
        return node == origin or (self.connected and {node, origin} == {self.name, self.peer})

    def send_from(self, origin: str, dest: Destination, term: object) -> None:
        with self.lock:
            self._open()
            node, actor = self._find(dest, origin)
            message = copied(term, "message")
            if not self.reaches(node, origin):
                raise NoConnection(node)
            if actor is not None:
                actor.accept(message)

    def request_from(
        self, origin: str, sender: Pid, question: Question, dest: Destination, request: object
    ) -> None:
        with self.lock:
            self._open()
            node, actor = self._find(dest, origin)
            request = copied(request, "request")
            if not self.reaches(node, origin):
                raise NoConnection()
            if actor is None:
                raise ErlangError(Atom("exit"), Atom("noproc"))
            question.crosses, question.asked = node != origin, actor
            self.questions[question.ref] = question
            tag = ImproperList((Atom("alias"),), question.ref)
            actor.accept((Atom("$gen_call"), (sender, tag), request))

    def reply(self, pid: Pid, tag: Any, term: object) -> None:
        tag, value = copied(tag, "tag"), copied(term, "reply")
        alias = isinstance(tag, ImproperList)
        with self.lock:
            question = self.questions.get(tag.tail if alias else tag) if _is_tag(tag) else None
            if question is not None:
                question.tell(value)
            elif not alias and (actor := self._actors.get(pid)) is not None:
                actor.accept((tag, value))

    def end(self, actor: Actor, reason: Any, by_signal: bool = False) -> None:
        with self.lock:
            if actor.ended:
                return
            actor.ended = True
            del self._actors[actor.pid]
            if actor.name is not None:
                del self._names[actor.pid.node, actor.name]
            actor.over(reason, by_signal)
            for ref, (owner, target, who) in list(self._monitors.items()):
                if actor in (owner, target):
                    del self._monitors[ref]
                if target is actor and owner is not actor:
                    self._down(owner, ref, who, reason)
            self._cut({pair for pair in self._links if actor.pid in pair}, reason)
            for question in list(self.questions.values()):
                if question.asked is actor:
                    question.tell(error=ErlangError(Atom("exit"), reason))

    def _down(self, owner: Actor, ref: Ref, who: Any, reason: Any) -> None:
        owner.accept((Atom("DOWN"), ref, Atom("process"), who, reason))

    def _exit(self, actor: Actor, sender: Pid, reason: Any, sent: bool = False) -> None:
        """An exit signal arrives: of a link, or one that was sent."""
        kill = sent and reason == "kill"
        if actor.system or actor.ended:
            return
        if actor.trap_exit and not kill:
            actor.accept((Atom("EXIT"), sender, reason))
        elif reason != _NORMAL:
            self.end(actor, Atom("killed") if kill else reason, by_signal=True)

    def _cut(self, links: set[frozenset[Pid]], reason: Any) -> None:
        """Those who still live hear of it."""
        self._links -= links
        for one, other in sorted(tuple(sorted(link)) for link in links):
            for pid, sender in ((one, other), (other, one)):
                if (actor := self._actors.get(pid)) is not None:
                    self._exit(actor, sender, reason)

    def set_connected(self, on: bool) -> None:
        with self.lock:
            if self._closed or self.connected == on:
                return
            self.connected = on
            for actor in self._watchers:
                word = Atom("nodeup" if on else "nodedown")
                if not actor.ended:
                    actor.accept((word, Atom(self.peer)))
            if on:
                return
            for question in list(self.questions.values()):
                if question.crosses:
                    question.tell(error=NoConnection())
            for ref, (owner, target, who) in list(self._monitors.items()):
                if owner.pid.node != target.pid.node:
                    del self._monitors[ref]
                    self._down(owner, ref, who, _NOCONNECTION)
            crossing = {link for link in self._links if len({pid.node for pid in link}) == 2}
            self._cut(crossing, _NOCONNECTION)

    # --- what the package asks for: see _native.pyi ------------------------------------------------

    def in_node(self) -> bool:
        return True

    def node(self) -> Atom:
        return Atom(self.name)

    def nodes(self) -> list[Atom]:
        return [Atom(self.peer)] if self.connected else []

    def server_pid(self) -> Pid:
        return self._py.pid

    def wakes_in(self, loop: asyncio.AbstractEventLoop) -> bool:
        return loop is self._loop

    def event_loop(self) -> asyncio.AbstractEventLoop:
        return self._loop

    def stats(self) -> dict[str, int]:
        with self.lock:
            here = sum(isinstance(actor, _PythonActor) for actor in self._actors.values())
            return dict.fromkeys(_COUNTERS, 0) | {"asking": len(self.questions), "processes": here}

    def send(self, dest: Destination, term: object) -> None:
        self.send_from(self.name, dest, term)

    def spawn_process(
        self,
        deliver: Callable[[list[Any]], None],
        stop: Callable[[Any], None],
        name: str | None = None,
        begin: Callable[[Pid], object] | None = None,
    ) -> Pid:
        if name is not None:
            _text(name, "a process's name")
        actor = _PythonActor(self, name, deliver, stop)

        def birth() -> None:
            if begin is not None and not actor.ended:
                begin(actor.pid)

        with self.lock:
            self.add(actor)
            self.post(birth)
        return actor.pid

    def exit_process(self, pid: Pid, reason: object) -> None:
        why = copied(reason, "reason")
        with self.lock:
            if isinstance(actor := self._actors.get(pid), _PythonActor):
                self.end(actor, why)

    def set_trap_exit(self, pid: Pid, on: bool) -> None:
        with self.lock:
            if (actor := self._actors.get(pid)) is not None:
                actor.trap_exit = bool(on)

    def whereis(self, name: str) -> Pid | None:
        with self.lock:
            actor = self._names.get((self.name, _text(name, "a process's name")))
            return None if actor is None else actor.pid

    def register(self, name: str, pid: Pid) -> None:
        _text(name, "a process's name")
        with self.lock:
            actor = self._actors.get(pid)
            if pid.node != self.name:
                raise ValueError("only processes of this node can be registered")
            if actor is None or actor.name is not None or (self.name, name) in self._names:
                raise ValueError("the name is taken, or the process has one or is gone")
            actor.name = name
            self._names[self.name, name] = actor

    def unregister(self, name: str) -> None:
        with self.lock:
            actor = self._names.get((self.name, _text(name, "a process's name")))
            if actor is None or actor.system:
                raise ValueError("no process of that name")
            del self._names[self.name, name]
            actor.name = None

    def registered(self) -> list[Atom]:
        with self.lock:
            return [Atom(name) for node, name in self._names if node == self.name]

    def monitor(self, owner: Pid, target: Destination) -> Ref:
        ref = self.make_ref()
        with self.lock:
            own = self._actors.get(owner)
            node, actor = self._find(target, owner.node)
            who: Any = target
            if not isinstance(target, Pid):
                who = (Atom(target if isinstance(target, str) else target[0]), Atom(node))
            if own is None:
                pass
            elif not self.reaches(node, owner.node):
                self._down(own, ref, who, _NOCONNECTION)
            elif actor is None:
                self._down(own, ref, who, Atom("noproc"))
            else:
                self._monitors[ref] = own, actor, who
        return ref

    def demonitor(self, owner: Pid, ref: Ref) -> None:
        with self.lock:
            if ref in self._monitors and self._monitors[ref][0].pid == owner:
                del self._monitors[ref]

    def link(self, owner: Pid, pid: Pid) -> None:
        with self.lock:
            own = self._actors.get(owner)
            if own is None or owner == pid:
                return
            if not self.reaches(pid.node, owner.node):
                self._exit(own, pid, _NOCONNECTION)
            elif pid not in self._actors:
                self._exit(own, pid, Atom("noproc"))
            else:
                self._links.add(frozenset((owner, pid)))

    def unlink(self, owner: Pid, pid: Pid) -> None:
        with self.lock:
            self._links.discard(frozenset((owner, pid)))

    def exit_signal(self, process: Pid, pid: Pid, reason: object) -> None:
        why = copied(reason, "reason")
        with self.lock:
            actor = self._actors.get(pid)
            if actor is not None and self.reaches(pid.node, process.node):
                self._exit(actor, process, why, sent=True)

    def watch_nodes(self, process: Pid, on: bool) -> None:
        with self.lock:
            self._watchers = [actor for actor in self._watchers if actor.pid != process]
            if on and (own := self._actors.get(process)) is not None:
                self._watchers.append(own)

    def served(self) -> Pid | Atom | None:
        return self.SERVED.get(None)

    def run_in_worker(self, job: Callable[[], Any], done: Callable[[Any, Any], object]) -> None:
        def work() -> None:
            try:
                value = job()
            except BaseException as error:
                self.post(done, None, error)
            else:
                self.post(done, value, None)

        self.start(work)

    def log(
        self,
        level: int,
        text: str,
        always: bool = False,
        ids: tuple[str, str] | None = None,
    ) -> None:
        self.lines.append((level, text))

    def log_to_peer(self, level: str, text: str, metadata: object, node: str | None) -> bool:
        if not self.connected or node not in (None, self.peer):
            return False
        self.logged.append((level, text, copied(metadata, "metadata")))
        return True

    # --- questions ---------------------------------------------------------------------------------

    def call(
        self,
        name: str,
        arguments: Sequence[Any],
        timeout: float | None,
        node: str | None,
        trace: tuple[str, str] | None,
    ) -> Any:
        self._off_loop("async_call")
        return self._ask_call(name, arguments, node, None).wait(timeout)

    def gen_call(
        self, dest: Destination, request: object, timeout: float | None, process: Pid | None
    ) -> Any:
        self._off_loop("async_gen_call")
        return self._ask_request(dest, request, process, None).wait(timeout)

    def erpc(
        self,
        node: str,
        module: str,
        function: str,
        arguments: Sequence[Any],
        timeout: float | None,
    ) -> Any:
        self._off_loop("async_erpc")
        return self._ask_remote(node, module, function, arguments, None).wait(timeout)

    def ask_call(
        self,
        name: str,
        arguments: Sequence[Any],
        node: str | None,
        wake: Callable[[], object],
        trace: tuple[str, str] | None,
    ) -> Question:
        return self._ask_call(name, arguments, node, wake)

    def ask_request(
        self, dest: Destination, request: object, process: Pid | None, wake: Callable[[], object]
    ) -> Question:
        return self._ask_request(dest, request, process, wake)

    def ask_remote(
        self,
        node: str,
        module: str,
        function: str,
        arguments: Sequence[Any],
        wake: Callable[[], object],
    ) -> Question:
        return self._ask_remote(node, module, function, arguments, wake)

    def _ask_call(
        self,
        name: str,
        arguments: Sequence[Any],
        node: str | None,
        wake: Callable[[], object] | None,
    ) -> Question:
        _text(name, "a function's name")
        peer = self.peer if node is None else _text(node, "a node's name")
        values = _list(arguments)
        return self._ask(peer, wake, lambda asked: self._serve_call(asked, name, values))

    def _ask_remote(
        self,
        node: str,
        module: str,
        function: str,
        arguments: Sequence[Any],
        wake: Callable[[], object] | None,
    ) -> Question:
        _text(node, "a node's name")
        name = f"{_text(module, 'a module')}:{_text(function, 'a function')}"
        values = _list(arguments)
        return self._ask(node, wake, lambda asked: self._serve_remote(asked, name, values))

    def _ask(
        self, peer: str, wake: Callable[[], object] | None, serve: Callable[[Question], None]
    ) -> Question:
        question = Question(self, wake)
        with self.lock:
            self._open()
            if peer == self.name or not self.reaches(peer, self.name):
                raise NoConnection()
            self.questions[question.ref] = question
            serve(question)
        return question

    def _ask_request(
        self,
        dest: Destination,
        request: object,
        process: Pid | None,
        wake: Callable[[], object] | None,
    ) -> Question:
        question = Question(self, wake)
        sender = self._py.pid if process is None else process
        self.request_from(self.name, sender, question, dest, request)
        return question


def _is_tag(tag: Any) -> bool:
    return isinstance(tag.tail if isinstance(tag, ImproperList) else tag, Ref)


async def _awaited(value: Awaitable[Any]) -> Any:
    return await value
