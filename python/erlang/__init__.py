"""Python as a node of an Erlang cluster."""

from erlang._encoders import register_encoder
from erlang._native import (
    decode,
    encode,
    make_ref,
    node,
    nodes,
    register,
    registered,
    send,
    set_none_atom,
    set_none_atoms,
    stats,
    unregister,
    whereis,
)
from erlang.channel import ByteChannel, ByteChannelClosed, Channel, ChannelClosed
from erlang.exceptions import Cancelled, DecodeError, ErlangError, NoConnection
from erlang.process import NO_REPLY, Exit, GenServer, Process, reply
from erlang.process import self_pid as self
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
    "decode",
    "encode",
    "make_ref",
    "node",
    "nodes",
    "register",
    "register_encoder",
    "registered",
    "reply",
    "self",
    "send",
    "set_none_atom",
    "set_none_atoms",
    "stats",
    "unregister",
    "whereis",
]
