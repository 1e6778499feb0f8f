"""Python as a node of an Erlang cluster."""

from erlang._encoders import register_encoder
from erlang._native import decode, encode, set_none_atom, set_none_atoms
from erlang.exceptions import Cancelled, DecodeError, ErlangError, NoConnection
from erlang.terms import Atom, BitString, Export, Fun, ImproperList, Pid, Port, Ref

__all__ = [
    "Atom",
    "BitString",
    "Cancelled",
    "DecodeError",
    "ErlangError",
    "Export",
    "Fun",
    "ImproperList",
    "NoConnection",
    "Pid",
    "Port",
    "Ref",
    "decode",
    "encode",
    "register_encoder",
    "set_none_atom",
    "set_none_atoms",
]
