from asyncio import AbstractEventLoop
from collections.abc import Callable, Iterable, Sequence
from contextvars import ContextVar
from typing import Any, Literal

from erlang.terms import Atom, Pid, Ref

def encode(value: object, /) -> bytes:
    """`value` as one external term (131, ...).

    Raises: TypeError naming the path to a value that has no term; ValueError naming the path to
    one that is too deep or too large.
    """

def decode(
    data: bytes | bytearray | memoryview, /, binary: Literal["auto", "str", "bytes"] = "auto"
) -> Any:
    """The one external term that `data` is, plain or compressed.

    Raises: DecodeError saying where and why the bytes are refused.
    """

def set_none_atom(name: str, /) -> None:
    """Sets the atom that `None` is sent as; `none` unless set, Elixir users set `nil`."""

def set_none_atoms(names: Iterable[str], /) -> None:
    """Sets which atoms arrive as `None`; `undefined`, `nil` and `none` unless set."""

# What follows needs a running node and raises RuntimeError without one, but for node().

def node() -> Atom | None:
    """This node's name; `None` outside a node."""

def nodes() -> list[Atom]:
    """The connected peers."""

def make_ref() -> Ref:
    """A new unique reference."""

def server_pid() -> Pid:
    """The process `py`."""

def send(dest: Pid | str | tuple[str, str], term: object, /) -> None:
    """Sends `term` to a pid, a name on this node, or (name, node).

    Raises: NoConnection when the node is not connected; BlockingIOError when a mailbox here is full.
    """

def reply(pid: Pid, tag: object, term: object, /) -> None:
    """Answers a `$gen_call` that came from `(pid, tag)`."""

def spawn_process(
    deliver: Callable[[list[Any]], None],
    stop: Callable[[Any], None],
    name: str | None = None,
    begin: Callable[[Pid], object] | None = None,
    /,
) -> Pid:
    """A new process. The loop thread calls `begin` once, whatever becomes of the caller, `deliver` with messages, and
    `stop` when a signal ends it.

    Raises: ValueError when the name is taken.
    """

def exit_process(pid: Pid, reason: object, /) -> None:
    """Ends a process of this node made by spawn_process."""

def set_trap_exit(pid: Pid, on: bool, /) -> None:
    """Whether exit signals arrive as ('EXIT', from, reason) instead of ending the process."""

def whereis(name: str, /) -> Pid | None:
    """The process registered under `name` here."""

def register(name: str, pid: Pid, /) -> None:
    """Registers a process of this node.

    Raises: ValueError when the name is taken, or the process has one, is elsewhere or gone.
    """

def unregister(name: str, /) -> None:
    """Raises: ValueError when nothing is registered under `name`."""

def registered() -> list[Atom]:
    """All names registered here."""

def monitor(owner: Pid, target: Pid | str | tuple[str, str], /) -> Ref:
    """Watches `target` for the process `owner`, who gets ('DOWN', ref, 'process', who, reason)."""

def demonitor(owner: Pid, ref: Ref, /) -> None: ...
def link(owner: Pid, pid: Pid, /) -> None: ...
def unlink(owner: Pid, pid: Pid, /) -> None: ...
def stats() -> dict[str, int]:
    """Counters of this node."""

def resolve(module: str, function: str, /) -> Any:
    """What a peer's call of `module.function` would call; imports the module.

    Raises: NotAllowed where that call would be refused; what the import and the lookup raise.
    """

def allowed(module: str, function: str, /) -> bool:
    """Whether the allow-list has this name, be there such a thing or not."""

def wakes_in(loop: AbstractEventLoop) -> bool: ...
def event_loop() -> AbstractEventLoop | None:
    """The node's asyncio loop; `None` before it runs."""

# What follows asks Erlang; erlang._asking says what it raises. Those that wait may not be called on the loop thread.

SERVED: ContextVar[Any]

class Question:
    """What a coroutine asked."""

    def result(self) -> Any: ...
    def leave(self) -> None: ...

def call(
    name: str,
    arguments: Sequence[Any],
    timeout: float | None,
    node: str | None,
    trace: tuple[str, str] | None,
    /,
) -> Any: ...
def gen_call(
    dest: Pid | str | tuple[str, str],
    request: object,
    timeout: float | None,
    process: Pid | None,
    /,
) -> Any: ...
def erpc(
    node: str,
    module: str,
    function: str,
    arguments: Sequence[Any],
    timeout: float | None,
    /,
) -> Any: ...
def ask_call(
    name: str,
    arguments: Sequence[Any],
    node: str | None,
    wake: Callable[[], object],
    trace: tuple[str, str] | None,
    /,
) -> Question:
    """Asks and returns; the node's loop thread calls `wake` when there is an answer. It leaves with the next flush()."""

def ask_request(
    dest: Pid | str | tuple[str, str],
    request: object,
    process: Pid | None,
    wake: Callable[[], object],
    /,
) -> Question: ...
def ask_remote(
    node: str,
    module: str,
    function: str,
    arguments: Sequence[Any],
    wake: Callable[[], object],
    /,
) -> Question: ...
def flush() -> None:
    """Sends what was asked with ask_call since the last time."""

def served() -> Pid | Atom | None:
    """For whom this code runs: the process, or its node where the process is not told."""

def run_in_worker(job: Callable[[], Any], done: Callable[[Any, Any], object], /) -> None:
    """Runs `job` on a worker, then `done(value, exception)` on the loop thread."""

def log(level: int, text: str, always: bool = False, ids: tuple[str, str] | None = None, /) -> None:
    """A line of the node's log; the level is one of logging's. With `always` no log level is too high for it.

    `ids` are a trace id and a span id.
    """

def log_to_peer(level: str, text: str, metadata: object, node: str | None, /) -> bool:
    """A line for the logger of a peer that runs the application; False where there is none."""

def exit_signal(process: Pid, pid: Pid, reason: object, /) -> None: ...
def watch_nodes(process: Pid, on: bool, /) -> None: ...

NOTHING: object

class Turn:
    """A place in the queue of those who wait for a message, or for room."""

    def leave(self) -> None: ...

class Channel:
    """The native half of erlang.channel."""

    def __init__(self, pid: Pid, binary: str = "auto") -> None: ...
    def __next__(self) -> Any: ...
    @property
    def pid(self) -> Pid: ...
    @property
    def closed(self) -> bool: ...
    def receive(self, timeout: float | None = None) -> Any:
        """The next message, waiting so many seconds. Raises TimeoutError, ChannelClosed."""
    def send(self, term: object, /, timeout: float | None = None) -> None:
        """To whoever receives in Erlang; waits for room. Raises TimeoutError, ChannelClosed."""
    def close(self) -> None:
        """Ends the channel: what is in it can still be received. Again and again if you like."""
    def info(self) -> dict[str, int]:
        """size and size_out in bytes, max_size (0: none), closed, and messages received, consumed, sent."""
    def _receive_view(self, timeout: float | None = None) -> memoryview: ...
    def _take(self, turn: Turn | None = None, /) -> Any: ...
    def _take_view(self, turn: Turn | None = None, /) -> Any: ...
    def _try_send(self, term: object, /) -> int: ...
    def _wait(self, wake: Callable[[], object], /) -> Turn | None: ...
    def _wait_for_room(self, wake: Callable[[], object], size: int, /) -> Turn | None: ...
