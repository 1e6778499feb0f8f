"""Tests of code that uses `erlang`, without a BEAM and without a node, under any Python.

    with erlang.testing.FakePeer({"add": lambda a, b: a + b}) as peer:
        assert erlang.call("add", 1, 2) == 3
        assert peer.calls == [("add", (1, 2))]

While a FakePeer is active this process is a node with one connected peer, played by the test. Functions of the package
mean what they mean on a real node: every term is encoded and decoded on its way, GenServers and Processes run on a loop in
a thread of its own, monitors, links and names work on both sides. Channels are the one thing that is missing.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import Any

from erlang import _backend, _native
from erlang._fake import Actor, Destination, Node, Question, copied, raised
from erlang.exceptions import ErlangError, UnknownFunction
from erlang.process import NO_REPLY, Match, _matcher, _reason_of
from erlang.terms import Atom, Pid, Ref

__all__ = ["FakePeer", "FakeProcess"]

_NORMAL = Atom("normal")
_entering = threading.Lock()


class FakeProcess:
    """A process of the peer, made by `FakePeer.process`."""

    def __init__(self, node: Node, name: str | None, handler: Callable[[Any], Any] | None) -> None:
        self._actor = _PeerActor(node, name, self)
        self._node = node
        self._handler = handler
        self._requests: deque[tuple[tuple[Pid, Any], Any]] = deque()
        self._busy = False
        self._cancel: Callable[[], object] | None = None
        self._changed = threading.Condition(node.lock)
        self._unread: list[Any] = []
        #: The requests of `gen_call`, those of `cast`, and all other messages, each in order.
        self.calls: list[Any] = []
        self.casts: list[Any] = []
        self.received: list[Any] = []
        node.add(self._actor)

    @property
    def pid(self) -> Pid:
        return self._actor.pid

    @property
    def alive(self) -> bool:
        return not self._actor.ended

    @property
    def trap_exit(self) -> bool:
        """Whether exit signals arrive as ('EXIT', pid, reason) instead of ending the process."""
        return self._actor.trap_exit

    @trap_exit.setter
    def trap_exit(self, on: bool) -> None:
        self._actor.trap_exit = on

    def receive(self, match: Match | None = None, timeout: float | None = 5.0) -> Any:
        """The first message of `received` that matches and was not taken yet, waiting for one; `match` is that of
        `Process.receive`.

        Raises: TimeoutError.
        """
        likes = _matcher(match)

        def look() -> tuple[int, Any] | None:
            found = enumerate(self._unread)
            return next((one for one in found if likes is None or likes(one[1])), None)

        with self._changed:
            found = self._changed.wait_for(look, timeout)
            if found is None:
                raise TimeoutError(f"{self!r} has not received it; unread are {self._unread!r}")
            del self._unread[found[0]]
            return found[1]

    def monitor(self, target: Destination) -> Ref:
        """Watch a process: its end is received as ('DOWN', ref, 'process', who, reason)."""
        return self._node.monitor(self.pid, target)

    def demonitor(self, ref: Ref) -> None:
        self._node.demonitor(self.pid, ref)

    def link(self, pid: Pid) -> None:
        self._node.link(self.pid, pid)

    def unlink(self, pid: Pid) -> None:
        self._node.unlink(self.pid, pid)

    def exit(self, reason: Any = _NORMAL) -> None:
        """End this process: those who monitor it, are linked to it or wait for its reply hear of it."""
        self._node.end(self._actor, copied(reason, "reason"))

    def __repr__(self) -> str:
        return f"<FakeProcess {self._actor.name or ''} {self.pid}{'' if self.alive else ' ended'}>"

    def _accept(self, message: Any) -> None:
        match message:
            case ("$gen_call", (Pid() as pid, tag), request):
                self.calls.append(request)
                self._requests.append(((pid, tag), request))
                if self._handler is not None and not self._busy:
                    self._busy = True
                    self._node.start(self._serve, self._handler)
            case ("$gen_cast", request):
                self.casts.append(request)
            case _:
                self.received.append(message)
                self._unread.append(message)
                self._changed.notify_all()

    def _over(self) -> None:
        self._requests.clear()
        self._cancel_with(self._cancel)

    def _cancel_with(self, cancel: Callable[[], object] | None) -> None:
        with self._node.lock:
            self._cancel = cancel
            if self._actor.ended and cancel is not None:
                cancel()

    def _serve(self, handler: Callable[[Any], Any]) -> None:
        """Answers, one request at a time, until there is none."""
        while True:
            with self._node.lock:
                if not self._requests:
                    self._busy = False
                    return
                sender, request = self._requests.popleft()
            try:
                value = self._node.finish(handler(request), self._cancel_with)
                if value is not NO_REPLY:
                    self._node.reply(*sender, value)
            except BaseException as error:
                own = isinstance(error, ErlangError) and error.kind == "exit"
                self.exit(raised(error).reason if own else _reason_of(error))


class _PeerActor(Actor):
    def __init__(self, node: Node, name: str | None, process: FakeProcess) -> None:
        super().__init__(node, node.peer, name)
        self._process = process

    def accept(self, message: Any) -> None:
        self._process._accept(message)

    def over(self, reason: Any, by_signal: bool) -> None:
        self._process._over()


class FakePeer:
    """A node and its one peer, for `with` or `async with`; entered once.

    `functions` are what the BEAM would have registered, by name: each is given the arguments themselves, runs in a thread
    or, if it is a coroutine function, on the node's loop, and may raise ErlangError to fail as it says. Any other
    exception is, to the caller, an ErlangError of kind `error` with reason ('python', Type, Message, Traceback).

    Leaving ends all processes and waits for the functions that still run.

    Raises: RuntimeError where there is a FakePeer or a real node already; when left, for a function that does not return.
    """

    #: How many seconds leaving waits for what still runs.
    patience = 5.0

    def __init__(
        self,
        functions: Mapping[str, Callable[..., Any]] | None = None,
        *,
        name: str = "beam@fake",
        node: str = "py@fake",
    ) -> None:
        if name == node:
            raise ValueError("the peer and the node have the same name")
        #: The peer's name.
        self.name = Atom(name)
        #: What was called, in order: (name, arguments) for `erlang.call`, ('module:function', arguments) for `erlang.erpc`.
        self.calls: list[tuple[str, tuple[Any, ...]]] = []
        self._node_name = Atom(node)
        self._functions = dict(functions or {})
        self._remote: dict[str, Callable[..., Any]] = {}
        self._entered: Node | None = None

    # --- what the peer has -------------------------------------------------------------------------

    def register(self, name: str, function: Callable[..., Any]) -> None:
        """As `py:register_function`; replaces a former one."""
        self._functions[name] = function

    def unregister(self, name: str) -> None:
        """Take a function away; never an error."""
        self._functions.pop(name, None)

    def module(self, name: str, **functions: Callable[..., Any]) -> None:
        """Functions for `erlang.erpc`: `peer.module("lists", sum=sum)`."""
        self._remote.update((f"{name}:{key}", function) for key, function in functions.items())

    def process(
        self, name: str | None = None, handler: Callable[[Any], Any] | None = None
    ) -> FakeProcess:
        """A process of the peer. `handler(request)` returns the reply to a `gen_call`, or NO_REPLY; its exception ends
        the process, one of ErlangError's kind `exit` with its reason. Without a handler calls are not answered.

        Raises: ValueError when the name is taken.
        """
        return FakeProcess(self._node, name, handler)

    @property
    def logged(self) -> list[tuple[str, str, Any]]:
        """What `erlang.logs.BeamHandler` sent: (level, text, metadata)."""
        return self._node.logged

    @property
    def node_log(self) -> list[tuple[int, str]]:
        """What `erlang.logs.NodeHandler` wrote: (level, text)."""
        return self._node.lines

    # --- what the peer does ------------------------------------------------------------------------

    def call(self, dest: Destination, request: Any, timeout: float | None = 5.0) -> Any:
        """`gen_server:call` to a process of the node, by pid or name.

        Raises: ErlangError of kind `exit` with the process's exit reason; NoConnection; TimeoutError.
        """
        self._node._off_loop("gen_call")
        question = Question(self._node, None)
        sender = self._node.new_pid(self.name)
        self._node.request_from(self.name, sender, question, self._there(dest), request)
        return question.wait(timeout)

    def cast(self, dest: Destination, request: Any) -> None:
        """`gen_server:cast`. Raises: NoConnection."""
        self.send(dest, (Atom("$gen_cast"), request))

    def send(self, dest: Destination, term: Any) -> None:
        """A message to a process of the node, by pid or name. Raises: NoConnection."""
        self._node.send_from(self.name, self._there(dest), term)

    def exit(self, pid: Pid, reason: Any) -> None:
        """An exit signal to a process of the node, as `exit(Pid, Reason)`."""
        self._node.exit_signal(self._node.new_pid(self.name), pid, reason)

    def connect(self) -> None:
        self._node.set_connected(True)

    def disconnect(self) -> None:
        """Cut the connection: who waits for the peer gets NoConnection, who asks it later too, until `connect`."""
        self._node.set_connected(False)

    @contextmanager
    def serving(self, process: FakeProcess | None = None) -> Iterator[None]:
        """What runs inside, in this thread or task, does so at the request of the peer: of `process`, where it is told."""
        token = self._node.SERVED.set(self.name if process is None else process.pid)
        try:
            yield
        finally:
            self._node.SERVED.reset(token)

    # --- from its beginning to its end -------------------------------------------------------------

    def __enter__(self) -> FakePeer:
        with _entering:
            if self._entered is not None:
                raise RuntimeError("a FakePeer is entered once")
            if _backend.native is not _native:
                raise RuntimeError("there is a FakePeer already")
            if _native.node() is not None:
                raise RuntimeError("there is a real node already")
            self._entered = Node(self._node_name, self.name, self._call, self._erpc)
            _backend.native = self._entered
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        left = self._leave()
        if left and error is None:
            raise RuntimeError(f"still running when the FakePeer was left: {', '.join(left)}")

    async def __aenter__(self) -> FakePeer:
        return self.__enter__()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # In a thread: what still runs may need this loop to come to its end.
        await asyncio.shield(asyncio.to_thread(self.__exit__, kind, error, trace))

    def _leave(self) -> list[str]:
        try:
            return self._node.close(self.patience)
        finally:
            _backend.native = _native

    @property
    def _node(self) -> Node:
        if self._entered is None:
            raise RuntimeError("the FakePeer has not been entered yet")
        return self._entered

    def _there(self, dest: Destination) -> Destination:
        """A plain name is one of the node's."""
        return (dest, self._node_name) if isinstance(dest, str) else dest

    def _call(self, question: Question, name: str, arguments: list[Any]) -> None:
        self._serve(question, name, arguments, self._functions.get(name), UnknownFunction)

    def _erpc(self, question: Question, name: str, arguments: list[Any]) -> None:
        self._serve(question, name, arguments, self._remote.get(name), ErlangError)

    def _serve(
        self,
        question: Question,
        name: str,
        arguments: list[Any],
        function: Callable[..., Any] | None,
        unknown: type[ErlangError],
    ) -> None:
        self.calls.append((name, tuple(arguments)))
        if function is None:
            question.tell(error=unknown(Atom("error"), Atom("undef")))
        else:
            self._node.start(self._run, question, function, arguments)

    def _run(self, question: Question, function: Callable[..., Any], arguments: list[Any]) -> None:
        try:
            value = self._node.finish(function(*arguments), question.cancel_with)
        except BaseException as error:
            told = raised(error)
            told.__cause__ = error
            question.tell(error=told)
            return
        try:
            question.tell(copied(value, "result"))
        except (TypeError, ValueError) as error:
            question.tell(error=error)
