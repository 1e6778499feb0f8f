"""The golden terms of tests/data/terms.tsv, and what each of them is in Python."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from erlang import Atom, BitString, Export, Fun, ImproperList, Pid, Port, Ref

FILE = Path(__file__).parents[1] / "data" / "terms.tsv"


def read() -> dict[str, bytes]:
    """Each golden term's name and bytes."""
    lines = FILE.read_text(encoding="utf-8").splitlines()
    rows = [line.split("\t") for line in lines if not line.startswith("#")]
    return {row[0]: bytes.fromhex(row[1]) for row in rows}


TERMS = read()

_ref = Ref("a@host", 9, (1, 2, 3))
_deep: Any = Atom("x")
for _ in range(100):
    _deep = (_deep,)

# Funs are opaque: their value is their bytes.
VALUES: dict[str, Any] = {
    "zero": 0,
    "one_byte": 255,
    "four_bytes": 256,
    "minus_one": -1,
    "least_int": -(2**31),
    "most_int": 2**31 - 1,
    "above_int": 2**31,
    "below_int": -(2**31) - 1,
    "most_small": 2**59 - 1,
    "least_small": -(2**59),
    "most_i64": 2**63 - 1,
    "least_i64": -(2**63),
    "above_i64": 2**63,
    "below_i64": -(2**63) - 1,
    "most_u64": 2**64 - 1,
    "above_u64": 2**64,
    "minus_u64": -(2**64),
    "big_255_bytes": 2**2040 - 1,
    "big_256_bytes": 2**2040,
    "minus_big": -(3 << 4000) - 7,
    "float": 1.5,
    "float_zero": 0.0,
    "float_third": 1 / 3,
    "float_most": 1.7976931348623157e308,
    "float_least": 5e-324,
    "float_minus": -2.5e-9,
    "atom": Atom("ok"),
    "atom_empty": Atom(""),
    "atom_spaces": Atom("hello world"),
    "atom_umlaut": Atom("fünf"),
    "atom_greek": Atom("αβγ"),
    "atom_emoji": Atom("😀"),
    "atom_longest": Atom("a" * 255),
    "atom_most_bytes": Atom("😀" * 255),
    "true": True,
    "false": False,
    "undefined": None,
    "nil_atom": None,
    "none": None,
    "binary_empty": "",
    "binary_text": "hello",
    "binary_utf8": "grüße, 世界 😀",
    "binary_bytes": b"\x00\xff\xfe\x80",
    "binary_256": "x" * 256,
    "tagged_bytes": b"hello",
    "tagged_bytes_no_binary": (Atom("bytes"), 5),
    "bits": BitString(b"\xa0", 3),
    "bits_long": BitString(b"ab\x80", 1),
    "list_empty": [],
    "list": [Atom("a"), 1, "b"],
    "charlist": [97, 98, 99],
    "charlist_empty_inside": [[], [], [120]],
    "list_of_bytes_and_more": [1, 2, 300],
    "improper": ImproperList((1, 2), 3),
    "improper_atom": ImproperList((Atom("alias"),), Atom("tail")),
    "list_nested": [[[[1]]], [2]],
    "tuple_empty": (),
    "tuple": (Atom("ok"), 1, "x"),
    "tuple_255": (1,) * 255,
    "tuple_256": (1,) * 256,
    "map_empty": {},
    "map": {Atom("a"): 1, (Atom("c"), 3): {}, "b": [2]},
    "map_numbers": {1: Atom("one"), 2.5: Atom("half")},
    "map_33": {n: n for n in range(1, 34)},
    "pid": Pid("a@host", 38, 0, 1700000000),
    "pid_serial": Pid("b@10.0.0.1", 0xFFFFFFFF, 77, 4),
    "pid_umlaut": Pid("ü@host", 1, 2, 3),
    "port": Port("a@host", 5, 9),
    "port_wide": Port("a@host", 1 << 40, 9),
    "reference": _ref,
    "reference_one": Ref("a@host", 9, (7,)),
    "reference_five": Ref("a@host", 9, (262143, 2, 3, 4, 5)),
    "export": Export("lists", "map", 2),
    "export_umlaut": Export("ü", "fünf", 255),
    "fun": Fun(TERMS["fun"][1:]),
    "fun_with_environment": Fun(TERMS["fun_with_environment"][1:]),
    "call": (Atom("call"), Atom("math"), Atom("sqrt"), [2.0]),
    "call_like": (Atom("call"), _ref, "mod", "fun", [1, 2.0, "abc", {Atom("a"): 1}]),
    "gen_call": (
        Atom("$gen_call"),
        (Pid("a@host", 38, 0, 9), ImproperList((Atom("alias"),), _ref)),
        (Atom("eval"), "1+1", {}),
    ),
    "deep": _deep,
    "latin1_atom": Atom("ok"),
    "latin1_umlaut": Atom("fünf"),
    "latin1_list": [Atom("ok"), "x", Atom("größe")],
    "compressed": ["sidewinder"] * 50,
    "compressed_atom": Atom("ok"),
    "old_float": 1.5,
    "old_float_minus": -1e-200,
    "old_small_atom": Atom("ok"),
    "old_atom_utf8": Atom("ok"),
    "old_pid": Pid("a@host", 38, 2, 1),
    "old_port": Port("a@host", 5, 1),
    "old_reference": Ref("a@host", 1, (1, 2, 3)),
    "old_integer": 1,
    "old_big": 1,
    "old_minus_zero": 0,
    "old_large_big": -257,
    "old_large_tuple": (1, 2),
    "old_large_tagged_bytes": b"x",
    "old_whole_bits": "a",
    "old_empty_string": [],
    "old_list_of_lists": [1, 2, 3, 4],
    "old_improper_in_tail": ImproperList((1, 2), 3),
}

# These do not go back as the term they were: the documented rules that map several terms to one value.
MANY_TO_ONE = {"undefined", "nil_atom", "tagged_bytes", "old_large_tagged_bytes"}
