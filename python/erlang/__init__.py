"""Python as a node of an Erlang cluster."""

import importlib
from typing import Any

from erlang._asking import (
    RegisteredFunction,
    async_call,
    async_cast,
    async_erpc,
    async_gen_call,
    async_send,
    call,
    cast,
    erpc,
    gen_call,
    send,
)
from erlang._encoders import register_encoder
from erlang._helpers import run, sleep, spawn_task
from erlang._native import decode, encode, set_none_atom, set_none_atoms
from erlang._objects import reference
from erlang._producers import Stream, stream
from erlang._registry import make_ref, node, nodes, register, registered, stats, unregister, whereis
from erlang._state import (
    StateChange,
    StateWatch,
    async_state_cas,
    async_state_delete,
    async_state_get,
    async_state_incr,
    async_state_keys,
    async_state_put,
    async_state_put_new,
    state_cache,
    state_cas,
    state_delete,
    state_get,
    state_incr,
    state_keys,
    state_put,
    state_put_new,
    state_watch,
)
from erlang._trace import trace_context
from erlang.channel import ByteChannel, ByteChannelClosed, Channel, ChannelClosed
from erlang.exceptions import Cancelled, DecodeError, ErlangError, NoConnection, UnknownFunction
from erlang.process import (
    NO_REPLY,
    Exit,
    GenServer,
    Process,
    demonitor,
    exit,
    link,
    monitor,
    monitor_nodes,
    receive,
    reply,
)
from erlang.process import self_pid as self
from erlang.process import spawn, unlink
from erlang.terms import Atom, BitString, Export, Fun, ImproperList, Pid, Port, Ref

__all__ = [
    "Atom",
    "BitString",
    "ByteChannel",
    "ByteChannelClosed",
    "Cancelled",
    "Channel",
    "ChannelClosed",
    "DecodeError",
    "ErlangError",
    "Exit",
    "Export",
    "Fun",
    "GenServer",
    "ImproperList",
    "NO_REPLY",
    "NoConnection",
    "Pid",
    "Port",
    "Process",
    "Ref",
    "Stream",
    "StateChange",
    "StateWatch",
    "UnknownFunction",
    "async_call",
    "async_cast",
    "async_erpc",
    "async_gen_call",
    "async_send",
    "async_state_cas",
    "async_state_delete",
    "async_state_get",
    "async_state_incr",
    "async_state_keys",
    "async_state_put",
    "async_state_put_new",
    "call",
    "cast",
    "decode",
    "demonitor",
    "encode",
    "erpc",
    "exit",
    "gen_call",
    "link",
    "make_ref",
    "monitor",
    "monitor_nodes",
    "node",
    "nodes",
    "receive",
    "reference",
    "register",
    "register_encoder",
    "registered",
    "reply",
    "run",
    "self",
    "send",
    "set_none_atom",
    "set_none_atoms",
    "sleep",
    "spawn",
    "spawn_task",
    "state_cache",
    "state_cas",
    "state_delete",
    "state_get",
    "state_incr",
    "state_keys",
    "state_put",
    "state_put_new",
    "state_watch",
    "stats",
    "stream",
    "trace_context",
    "unlink",
    "unregister",
    "whereis",
]


_MODULES = frozenset({"channel", "data", "exceptions", "logs", "process", "terms", "testing"})


def __getattr__(name: str) -> Any:
    """`erlang.NAME(…)` and `from erlang import NAME`: the function registered on the BEAM as NAME."""
    if name in _MODULES:
        return importlib.import_module(f"erlang.{name}")
    if name.startswith("_"):
        raise AttributeError(f"module 'erlang' has no attribute {name!r}")
    return RegisteredFunction(name)
