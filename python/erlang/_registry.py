"""The node's name, its peers, and names of processes here."""

from __future__ import annotations

from erlang import _backend
from erlang.terms import Atom, Pid, Ref

__all__ = ["make_ref", "node", "nodes", "register", "registered", "stats", "unregister", "whereis"]


def node() -> Atom | None:
    """This node's name; None outside a node."""
    name: Atom | None = _backend.native.node()
    return name


def nodes() -> list[Atom]:
    """The connected peers."""
    names: list[Atom] = _backend.native.nodes()
    return names


def make_ref() -> Ref:
    """A new unique reference."""
    ref: Ref = _backend.native.make_ref()
    return ref


def whereis(name: str) -> Pid | None:
    """The process registered under `name` on this node."""
    pid: Pid | None = _backend.native.whereis(name)
    return pid


def register(name: str, pid: Pid) -> None:
    """Register a process of this node.

    Raises: ValueError when the name is taken, or the process has one, is elsewhere or gone.
    """
    _backend.native.register(name, pid)


def unregister(name: str) -> None:
    """Raises: ValueError when nothing is registered under `name`."""
    _backend.native.unregister(name)


def registered() -> list[Atom]:
    """All names registered here."""
    names: list[Atom] = _backend.native.registered()
    return names


def stats() -> dict[str, int]:
    """Counters of this node."""
    counters: dict[str, int] = _backend.native.stats()
    return counters
