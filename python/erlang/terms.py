"""Erlang's own kinds of value: small frozen objects that hash, compare and pickle.

Each prints so that the text pastes back.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from typing import Any, Final, Union

__all__ = ["Atom", "BitString", "Export", "Fun", "ImproperList", "Pid", "Port", "Ref"]

_MAX_ATOM_CHARACTERS: Final = 255
_FUN_TAG: Final = 112


class Atom(str):
    """An atom: a `str` that goes back to Erlang as an atom, equal to and hashed like its text."""

    __slots__ = ()

    def __new__(cls, name: str) -> Atom:
        if not isinstance(name, str):
            raise TypeError(f"an atom's name is a str, not {type(name).__name__}")
        if len(name) > _MAX_ATOM_CHARACTERS:
            raise ValueError(
                f"an atom has at most {_MAX_ATOM_CHARACTERS} characters, not {len(name)}"
            )
        name.encode()  # no lone surrogates
        return super().__new__(cls, name)

    def __repr__(self) -> str:
        return f"Atom({str.__repr__(self)})"

    def __reduce__(self) -> tuple[type[Atom], tuple[str]]:
        return Atom, (str(self),)


class _Value:
    """What the classes below share: frozen, compared by `_key()`, rebuilt from `_arguments()`."""

    __slots__ = ()

    def _key(self) -> tuple[Any, ...]:
        raise NotImplementedError

    def _arguments(self) -> tuple[Any, ...]:
        return self._key()

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"{type(self).__name__} is frozen")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"{type(self).__name__} is frozen")

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return self._key() == other._key()  # type: ignore[attr-defined, no-any-return]

    def __hash__(self) -> int:
        return hash(self._key())

    def __reduce__(self) -> tuple[type[Any], tuple[Any, ...]]:
        return type(self), self._arguments()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(map(_bare_repr, self._arguments()))})"


class _Ordered(_Value):
    """A value that Erlang's term order is kept for, among its own kind."""

    __slots__ = ()

    def _order(self) -> tuple[Any, ...]:
        return self._key()

    def __lt__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return self._order() < other._order()  # type: ignore[attr-defined, no-any-return]

    def __le__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return self._order() <= other._order()  # type: ignore[attr-defined, no-any-return]

    def __gt__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return self._order() > other._order()  # type: ignore[attr-defined, no-any-return]

    def __ge__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return self._order() >= other._order()  # type: ignore[attr-defined, no-any-return]


def _bare_repr(value: object) -> str:
    """`value` as an argument: a name is shown as its plain text, which the constructors take."""
    return str.__repr__(value) if isinstance(value, Atom) else repr(value)


def _atom(value: str, what: str) -> Atom:
    if not isinstance(value, str):
        raise TypeError(f"{what} is an Atom or a str, not {type(value).__name__}")
    return value if type(value) is Atom else Atom(value)


def _unsigned(value: int, bits: int, what: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{what} is an int, not {type(value).__name__}")
    if not 0 <= value < 1 << bits:
        raise ValueError(f"{what} is an unsigned {bits}-bit number, not {value}")
    return int(value)


_set: Final = object.__setattr__


class _Identifier(_Ordered):
    """A pid or a reference, kept as its external term: what is compared, hashed and sent."""

    __slots__ = ("raw",)
    raw: bytes

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return self.raw == other.raw  # type: ignore[attr-defined, no-any-return]

    def __hash__(self) -> int:
        return hash(self.raw)


def _node_term(node: str) -> bytes:
    text = _atom(node, "node").encode()
    if len(text) < 256:
        return bytes((119, len(text))) + text
    return b"v" + len(text).to_bytes(2, "big") + text


def _split_node(raw: bytes, at: int) -> tuple[Atom, bytes]:
    """The node's name at `at`, and the bytes behind it."""
    start = at + (2 if raw[at] == 119 else 3)
    end = start + int.from_bytes(raw[at + 1 : start], "big")
    return Atom(raw[start:end].decode()), raw[end:]


class Pid(_Identifier):
    """A process, local or remote: `Pid(node, id, serial, creation)`."""

    __slots__ = ()

    def __init__(self, node: str, id: int, serial: int, creation: int) -> None:
        numbers = (
            _unsigned(id, 32, "id"),
            _unsigned(serial, 32, "serial"),
            _unsigned(creation, 32, "creation"),
        )
        _set(self, "raw", b"X" + _node_term(node) + struct.pack(">III", *numbers))

    @property
    def node(self) -> Atom:
        """The node it lives on."""
        return _split_node(self.raw, 1)[0]

    @property
    def id(self) -> int:
        """Its number."""
        return int.from_bytes(self.raw[-12:-8], "big")

    @property
    def serial(self) -> int:
        """How often its number was used."""
        return int.from_bytes(self.raw[-8:-4], "big")

    @property
    def creation(self) -> int:
        """The incarnation of its node."""
        return int.from_bytes(self.raw[-4:], "big")

    def _key(self) -> tuple[Any, ...]:
        return self.node, self.id, self.serial, self.creation

    def _order(self) -> tuple[Any, ...]:
        return self.serial, self.id, self.node, self.creation


class Port(_Ordered):
    """A port: `Port(node, id, creation)`."""

    __slots__ = ("node", "id", "creation")
    node: Atom
    id: int
    creation: int

    def __init__(self, node: str, id: int, creation: int) -> None:
        _set(self, "node", _atom(node, "node"))
        _set(self, "id", _unsigned(id, 64, "id"))
        _set(self, "creation", _unsigned(creation, 32, "creation"))

    def _key(self) -> tuple[Any, ...]:
        return self.node, self.id, self.creation

    def _order(self) -> tuple[Any, ...]:
        return self.node, self.creation, self.id


class Ref(_Identifier):
    """A reference: `Ref(node, creation, words)`, one to five 32-bit words, the least one first."""

    __slots__ = ()

    def __init__(self, node: str, creation: int, words: Iterable[int]) -> None:
        numbers = [_unsigned(word, 32, "a word") for word in words]
        if not 1 <= len(numbers) <= 5:
            raise ValueError(f"a reference has one to five words, not {len(numbers)}")
        numbers.insert(0, _unsigned(creation, 32, "creation"))
        head = b"Z" + struct.pack(">H", len(numbers) - 1)
        _set(self, "raw", head + _node_term(node) + struct.pack(f">{len(numbers)}I", *numbers))

    @property
    def node(self) -> Atom:
        """The node that made it."""
        return _split_node(self.raw, 3)[0]

    @property
    def creation(self) -> int:
        """The incarnation of that node."""
        return int.from_bytes(_split_node(self.raw, 3)[1][:4], "big")

    @property
    def words(self) -> tuple[int, ...]:
        """What tells it from that node's other references."""
        numbers = _split_node(self.raw, 3)[1]
        return struct.unpack(f">{len(numbers) // 4 - 1}I", numbers[4:])

    def _key(self) -> tuple[Any, ...]:
        return self.node, self.creation, self.words

    def _order(self) -> tuple[Any, ...]:
        padded = self.words + (0,) * (5 - len(self.words))
        return self.node, self.creation, padded[::-1]


class Export(_Ordered):
    """`fun Module:Function/Arity`: `Export(module, function, arity)`."""

    __slots__ = ("module", "function", "arity")
    module: Atom
    function: Atom
    arity: int

    def __init__(self, module: str, function: str, arity: int) -> None:
        _set(self, "module", _atom(module, "module"))
        _set(self, "function", _atom(function, "function"))
        _set(self, "arity", _unsigned(arity, 8, "arity"))

    def _key(self) -> tuple[Any, ...]:
        return self.module, self.function, self.arity


class Fun(_Value):
    """A fun with its environment, opaque here: `Fun(raw)` keeps the very bytes that Erlang sent.

    A fun made in Python is only as good as its bytes: their form is checked when it is sent.
    """

    __slots__ = ("raw",)
    raw: bytes

    def __init__(self, raw: bytes) -> None:
        if not isinstance(raw, bytes):
            raise TypeError(f"a fun is made of bytes, not {type(raw).__name__}")
        if len(raw) < 30 or raw[0] != _FUN_TAG:
            raise ValueError("these bytes are no NEW_FUN_EXT term")
        _set(self, "raw", bytes(raw))

    @property
    def arity(self) -> int:
        """How many arguments it takes."""
        return self.raw[5]

    @property
    def uniq(self) -> bytes:
        """The 16 bytes that tell its module's version."""
        return self.raw[6:22]

    @property
    def index(self) -> int:
        """Its number within the module."""
        return int.from_bytes(self.raw[22:26], "big")

    @property
    def free(self) -> int:
        """How many variables it closes over."""
        return int.from_bytes(self.raw[26:30], "big")

    def _key(self) -> tuple[Any, ...]:
        return (self.raw,)


class BitString(_Ordered):
    """A bitstring of no whole bytes: `BitString(data, bits)`; of its last byte `bits` (1 to 7) count."""

    __slots__ = ("data", "bits")
    data: bytes
    bits: int

    def __init__(self, data: Union[bytes, bytearray, memoryview], bits: int) -> None:
        whole = bytes(data)
        if not whole or not 1 <= bits <= 7:
            raise ValueError(
                "a bitstring has at least one byte, of whose last 1 to 7 bits count; else use bytes"
            )
        last = whole[-1] & (0xFF << (8 - bits)) & 0xFF
        _set(self, "data", whole[:-1] + bytes((last,)))
        _set(self, "bits", int(bits))

    def __len__(self) -> int:
        """The length in bits."""
        return len(self.data) * 8 - 8 + self.bits

    def _key(self) -> tuple[Any, ...]:
        return self.data, self.bits


class ImproperList(_Value):
    """`[A, B | Tail]`: `ImproperList((A, B), Tail)`; the tail is no list."""

    __slots__ = ("items", "tail")
    items: tuple[Any, ...]
    tail: Any

    def __init__(self, items: Iterable[Any], tail: Any) -> None:
        elements = tuple(items)
        if not elements:
            raise ValueError("an improper list has an element before its tail")
        if isinstance(tail, list):
            raise ValueError("with a list as its tail it is a list: [*items, *tail]")
        _set(self, "items", elements)
        _set(self, "tail", tail)

    def _key(self) -> tuple[Any, ...]:
        return self.items, self.tail

    def __repr__(self) -> str:
        return f"ImproperList({self.items!r}, {self.tail!r})"
