"""How values that are not Erlang's own kinds become terms: a registry from type to a function.

The native encoder asks `resolve()` once for each type it does not know; `resolved` keeps the answer.
"""

from __future__ import annotations

import collections
import dataclasses
import datetime
import decimal
import enum
import fractions
import ipaddress
import operator
import pathlib
import reprlib
import sys
import types
import uuid
from collections.abc import Callable
from typing import Any, Final, Optional, TypeVar, Union

from erlang.terms import Atom, BitString, Export, Fun, ImproperList, Pid, Port, Ref

__all__ = ["register_encoder"]

T = TypeVar("T")
Encoder = Callable[[Any], Any]

# What the native encoder writes itself. It knows these by their place, which is that of `Native` in
# cnode/term/classes.hpp.
NATIVE: Final[tuple[type, ...]] = (
    str,
    int,
    float,
    bool,
    type(None),
    bytes,
    bytearray,
    list,
    tuple,
    dict,
    set,
    frozenset,
    Atom,
    Pid,
    Port,
    Ref,
    Export,
    Fun,
    BitString,
    ImproperList,
)

# For a type met before: its encoder, the place in NATIVE of what it is written as, or None. The
# native encoder looks in here first.
resolved: dict[type, Union[Encoder, int, None]] = {}
_MOST_RESOLVED: Final = 4096


def _timedelta(value: datetime.timedelta) -> int:
    return value // datetime.timedelta(microseconds=1)


_registry: dict[type, Encoder] = {
    enum.Enum: operator.attrgetter("value"),
    datetime.datetime: operator.methodcaller("isoformat"),
    datetime.date: operator.methodcaller("isoformat"),
    datetime.time: operator.methodcaller("isoformat"),
    datetime.timedelta: _timedelta,
    decimal.Decimal: str,
    fractions.Fraction: lambda value: (value.numerator, value.denominator),
    uuid.UUID: str,
    pathlib.PurePath: str,
    ipaddress.IPv4Address: str,
    ipaddress.IPv6Address: str,
    range: list,
    collections.deque: list,
    type({}.keys()): list,
    type({}.values()): list,
    types.MappingProxyType: dict,
}


def register_encoder(cls: type[T], encoder: Callable[[T], Any]) -> None:
    """Sends each `cls`, and what derives from it, as whatever `encoder(value)` returns.

    The nearest class in a value's method resolution order wins; a later registration replaces an
    earlier one.

    Raises: TypeError for what is no class or no function; ValueError for a class that has a term of
    its own.
    """
    if not isinstance(cls, type):
        raise TypeError(f"register_encoder() wants a class, not {cls!r}")
    if not callable(encoder):
        raise TypeError(f"register_encoder() wants a function, not {encoder!r}")
    if cls in NATIVE:
        raise ValueError(f"{cls.__name__} has a term of its own")
    _registry[cls] = encoder
    resolved.clear()


def resolve(cls: type) -> Union[Encoder, int, None]:
    """Finds how `cls` is encoded, and remembers it. None: not here (it may still be a buffer)."""
    if len(resolved) >= _MOST_RESOLVED:
        resolved.clear()
    found = resolved[cls] = _find(cls)
    return found


def _find(cls: type) -> Union[Encoder, int, None]:
    for base in cls.__mro__[:-1]:
        encoder = _registry.get(base) or _late_encoder(base)
        if encoder is not None:
            return encoder
        if base in NATIVE:
            return NATIVE.index(base)
    if dataclasses.is_dataclass(cls):
        return _dataclass_encoder(cls)
    return _registry.get(object)


def object_of(reference: tuple[Any, ...]) -> Any:
    """The object that a peer refers to: what the native decoder puts in the place of such a tuple."""
    from erlang import _objects  # at its first use: it needs the node, which needs this module

    return _objects.held(reference)


def _dataclass_encoder(cls: Any) -> Encoder:
    names = [(Atom(field.name), field.name) for field in dataclasses.fields(cls)]
    return lambda value: {atom: getattr(value, name) for atom, name in names}


def register_late(module: str, name: str, encoder: Encoder) -> None:
    """The same for a class of a module that need not be there: who has such a value has imported it."""
    _late[module, name] = encoder
    resolved.clear()


def _late_encoder(base: type) -> Optional[Encoder]:
    for (module, name), encoder in _late.items():
        if base.__name__ == name and base is getattr(sys.modules.get(module), name, None):
            return encoder
    return None


def plain_numbers(value: Any) -> Any:
    """A numpy value as Python's own numbers and texts, in lists.

    Raises: TypeError for what has no exact term.
    """
    if value.dtype.kind not in "biufUSO" or value.dtype.char == "g":
        raise TypeError(f"numpy's {value.dtype} has no exact term: convert it first")
    return value.tolist()


# Classes of modules that are not imported for it.
_late: dict[tuple[str, str], Encoder] = {
    ("numpy", "ndarray"): plain_numbers,
    ("numpy", "generic"): plain_numbers,
}

short_repr: Final = reprlib.repr
