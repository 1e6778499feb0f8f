from collections.abc import Iterable
from typing import Any, Literal

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
