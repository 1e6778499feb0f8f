"""The codec and the classes of erlang.terms, against golden terms, a real BEAM, and hostile bytes."""

from __future__ import annotations

import array
import collections
import contextlib
import copy
import dataclasses
import datetime
import decimal
import enum
import fractions
import gc
import ipaddress
import itertools
import math
import os
import pathlib
import pickle
import random
import re
import struct
import sys
import threading
import time
import types
import uuid
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import golden
import pytest
from beam import Beam

import erlang
from erlang import (
    Atom,
    BitString,
    DecodeError,
    Export,
    Fun,
    ImproperList,
    Pid,
    Port,
    Ref,
    decode,
    encode,
)

DOCUMENT = pathlib.Path(__file__).parents[2] / "docs" / "types.md"


def same(left: Any, right: Any) -> bool:
    """Equal and of the same types all the way down (1 is not True, an Atom is not a str)."""
    if type(left) is not type(right):
        return False
    if isinstance(left, (list, tuple)):
        return len(left) == len(right) and all(map(same, left, right))
    if isinstance(left, dict):
        pairs = {(type(key), key): value for key, value in right.items()}
        return len(left) == len(right) and all(
            same(value, pairs.get((type(key), key), same)) for key, value in left.items()
        )
    if isinstance(left, ImproperList):
        return same(left.items, right.items) and same(left.tail, right.tail)
    return bool(left == right)


@pytest.fixture
def usual_none() -> Iterator[None]:
    yield
    erlang.set_none_atom("none")
    erlang.set_none_atoms(["undefined", "nil", "none"])


# Golden terms


def test_every_golden_term_has_its_python_value_written_down() -> None:
    assert golden.TERMS.keys() == golden.VALUES.keys()


@pytest.mark.parametrize("name", golden.TERMS)
def test_a_golden_term_decodes_to_its_value(name: str) -> None:
    value = decode(golden.TERMS[name])

    assert same(value, golden.VALUES[name]), value


@pytest.mark.parametrize("name", golden.TERMS.keys() - golden.MANY_TO_ONE)
def test_a_golden_value_is_the_same_term_to_a_beam(name: str, beam: Beam) -> None:
    assert beam.rewrite(encode(golden.VALUES[name])) == beam.rewrite(golden.TERMS[name])


@pytest.mark.parametrize("name", ["call", "call_like", "gen_call", "fun", "pid", "reference"])
def test_common_terms_are_written_exactly_as_otp_writes_them(name: str) -> None:
    assert encode(decode(golden.TERMS[name])) == golden.TERMS[name]


# The document


def document_rows(columns: int) -> list[list[str]]:
    """The rows of the tables with so many columns whose first cell is code."""
    rows = []
    for line in DOCUMENT.read_text(encoding="utf-8").splitlines():
        cells = [cell.strip().replace(r"\|", "|") for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        if len(cells) == columns and cells[0].startswith("`"):
            rows.append(
                [match[1] if (match := re.match("`(.*?)`", cell)) else "" for cell in cells]
            )
    return rows


class Point(NamedTuple):
    x: int
    y: int


@dataclasses.dataclass
class Options:
    retries: int


class Color(enum.Enum):
    RED = "red"


def evaluate(expression: str) -> Any:
    names = dict(vars(erlang), Point=Point, Options=Options, Color=Color)
    if "numpy" in expression:
        names["numpy"] = pytest.importorskip("numpy")
    modules = (array, collections, datetime, decimal, fractions, ipaddress, pathlib, types, uuid)
    names.update({module.__name__: module for module in modules})
    return eval(expression, names)


@pytest.mark.parametrize("term, python, back", document_rows(3))
def test_the_table_of_terms_is_true(term: str, python: str, back: str, beam: Beam) -> None:
    value = decode(beam.evaluate(term))

    assert same(value, evaluate(python)), value
    assert beam.is_same(back or term, encode(value))


@pytest.mark.parametrize("python, term", document_rows(2))
def test_the_table_of_python_values_is_true(python: str, term: str, beam: Beam) -> None:
    assert beam.is_same(term, encode(evaluate(python)))


def test_the_tables_are_found() -> None:
    assert len(document_rows(3)) > 20 and len(document_rows(2)) > 30


# Random terms


@pytest.mark.parametrize("seed", range(20))
def test_random_terms_of_a_beam_come_back_as_they_were(seed: int, beam: Beam) -> None:
    request = struct.pack(">II", seed, 1000)
    terms = decode(beam.ask("g", request), binary="bytes")

    back = [encode(decode(term)) for term in terms]

    assert decode(beam.ask("c", request + encode(back))) == "same"


class Generator:
    """Random Python values that come back from the codec as they were."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)

    def value(self, depth: int) -> Any:
        kind = self.random.randrange(8) if depth else 8
        if kind == 0:
            return [self.value(depth - 1) for _ in range(self.random.randrange(6))]
        if kind == 1:
            return tuple(self.value(depth - 1) for _ in range(self.random.randrange(6)))
        if kind == 2:
            return {self.key(): self.value(depth - 1) for _ in range(self.random.randrange(6))}
        if kind == 3:
            items = [self.value(depth - 1) for _ in range(self.random.randrange(1, 4))]
            return ImproperList(items, self.key())
        return self.leaf()

    def key(self) -> Any:
        return self.random.choice([self.text, self.atom, self.integer, self.pid])()

    def leaf(self) -> Any:
        makers = [
            self.text,
            self.atom,
            self.integer,
            self.pid,
            lambda: self.random.choice([None, True, False, [], (), {}]),
            lambda: self.random.uniform(-1e9, 1e9),
            lambda: b"\xff" + self.random.randbytes(self.random.randrange(20)),
            lambda: Ref("a@h", self.random.getrandbits(32), [self.random.getrandbits(18)] * 3),
            lambda: Port("a@h", self.random.getrandbits(64), self.random.getrandbits(32)),
            lambda: BitString(self.random.randbytes(3), self.random.randrange(1, 8)),
        ]
        return self.random.choice(makers)()

    def text(self) -> str:
        letters = "abcxyz \n\0äöüλ世😀"
        return "".join(self.random.choices(letters, k=self.random.randrange(12)))

    def atom(self) -> Atom:
        return Atom("x" + self.text()[:5])

    def integer(self) -> int:
        return self.random.getrandbits(self.random.randrange(1, 200)) * self.random.choice([1, -1])

    def pid(self) -> Pid:
        return Pid("b@h", *(self.random.getrandbits(32) for _ in range(3)))


@pytest.mark.parametrize("seed", range(5))
def test_random_python_values_come_back_also_through_a_beam(seed: int, beam: Beam) -> None:
    generator = Generator(seed)
    values = [generator.value(5) for _ in range(300)]

    assert same(decode(encode(values)), values)
    assert same(decode(beam.rewrite(encode(values))), values)


# Hostile bytes

PLAIN = {name: term for name, term in golden.TERMS.items() if len(term) < 3000}


@pytest.mark.parametrize("name", PLAIN)
def test_a_term_cut_anywhere_is_refused(name: str) -> None:
    term = golden.TERMS[name]

    for size in range(len(term)):
        with pytest.raises(DecodeError):
            decode(term[:size])
    with pytest.raises(DecodeError, match="bytes after"):
        decode(term + b"\x00")


@pytest.mark.parametrize("name", PLAIN)
def test_a_corrupt_byte_is_refused_or_makes_another_whole_term(name: str) -> None:
    term = golden.TERMS[name]

    for place, change in itertools.product(range(1, min(len(term), 400)), (1, 0x80, 0x42, 0xFF)):
        damaged = bytearray(term)
        damaged[place] ^= change
        try:
            value = decode(damaged)
        except DecodeError:
            continue
        assert len(repr(value)) > 0
        decode(encode(value))


def nested(depth: int, header: bytes, middle: bytes, footer: bytes = b"") -> bytes:
    return b"\x83" + header * depth + middle + footer * depth


HOSTILE = {
    "nothing": b"",
    "another version": b"\x82a\x01",
    "a version and nothing": b"\x83",
    "an unknown tag": b"\x83\x00",
    "an atom cache reference": b"\x83R\x00",
    "a node's local term": b"\x83y\x00\x00\x00\x00\x00\x00\x00\x00a\x01",
    "a list longer than the bytes": b"\x83l\xff\xff\xff\xffa\x01j",
    "a list of no elements": b"\x83l\x00\x00\x00\x00j",
    "a tuple larger than the bytes": b"\x83i\xff\xff\xff\xffa\x01",
    "a map larger than the bytes": b"\x83t\xff\xff\xff\xffa\x01a\x01",
    "a map whose size overflows": b"\x83t\x80\x00\x00\x00a\x01a\x01",
    "a binary longer than the bytes": b"\x83m\xff\xff\xff\xffabc",
    "an integer larger than the bytes": b"\x83o\xff\xff\xff\xff\x00\x01",
    "an integer with a third sign": b"\x83n\x01\x02\x01",
    "bits of nothing": b"\x83M\x00\x00\x00\x00\x03",
    "nine bits in a byte": b"\x83M\x00\x00\x00\x01\x09a",
    "no bits in a byte": b"\x83M\x00\x00\x00\x01\x00a",
    "a float that is no number": b"\x83F\x7f\xf8\x00\x00\x00\x00\x00\x00",
    "an infinite float": b"\x83F\xff\xf0\x00\x00\x00\x00\x00\x00",
    "an old float of letters": b"\x83c" + b"x" * 31,
    "an old float that is infinite": b"\x83c" + b"inf".ljust(31, b"\0"),
    "an old float too large": b"\x83c" + b"1e999".ljust(31, b"\0"),
    "an atom that is not UTF-8": b"\x83w\x02\xc3\x28",
    "an atom with a surrogate": b"\x83w\x03\xed\xa0\x80",
    "an atom of 256 characters": b"\x83v\x01\x00" + b"a" * 256,
    "a Latin-1 atom of 256 characters": b"\x83d\x01\x00" + b"a" * 256,
    "a pid of no node": b"\x83Xa\x01" + bytes(12),
    "a port of no node": b"\x83Ya\x01" + bytes(8),
    "a reference of no words": b"\x83Z\x00\x00w\x01a" + bytes(4),
    "a reference of six words": b"\x83Z\x00\x06w\x01a" + bytes(28),
    "a reference of 65535 words": b"\x83Z\xff\xffw\x01a" + bytes(28),
    "an export of no atoms": b"\x83qa\x01a\x01a\x01",
    "an export of a large arity": b"\x83qw\x01aw\x01bb\x00\x00\x01\x00",
    "a fun too short for itself": b"\x83p\x00\x00\x00\x01" + bytes(40),
    "a fun larger than the bytes": b"\x83p\xff\xff\xff\xff" + bytes(40),
    "the same key twice": b"\x83t\x00\x00\x00\x02a\x01a\x01a\x01a\x02",
    "an integer and a float key": b"\x83t\x00\x00\x00\x02a\x01a\x01F"
    + struct.pack(">d", 1)
    + b"a\x02",
    "a truth and an integer key": b"\x83t\x00\x00\x00\x02w\x04truea\x01a\x01a\x01",
    "an atom and a text key": b"\x83t\x00\x00\x00\x02w\x01aa\x01m\x00\x00\x00\x01aa\x01",
    "a list as a key": b"\x83t\x00\x00\x00\x01k\x00\x01aa\x01",
    "a map in a tuple as a key": b"\x83t\x00\x00\x00\x01h\x02a\x01t\x00\x00\x00\x00a\x01",
    "a compressed nothing": b"\x83P",
    "a compressed size and nothing": b"\x83P\x00\x00\x00\x05",
    "a compressed term that is none": b"\x83P\x00\x00\x00\x05hello",
    "1001 tuples in one another": nested(1001, b"h\x01", b"a\x01"),
    "1001 lists in one another": nested(1001, b"l\x00\x00\x00\x01", b"j", b"j"),
    "1001 maps in one another": nested(1001, b"t\x00\x00\x00\x01a\x01", b"a\x01"),
    "1001 tails of tails": nested(1001, b"l\x00\x00\x00\x01a\x01", b"j"),
    "a million lists in one another": nested(1_000_000, b"l\x00\x00\x00\x01", b"j", b"j"),
    "a thousand tuples that each promise everything": nested(
        900, b"i\x00\x00\x03\x00", b"a\x01" * 500
    ),
}


@pytest.mark.parametrize("bytes_", HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_bytes_are_refused(bytes_: bytes) -> None:
    with pytest.raises(DecodeError, match="at byte"):
        decode(bytes_)


@pytest.mark.parametrize(
    "header, middle, footer",
    [
        (b"h\x01", b"a\x01", b""),
        (b"l\x00\x00\x00\x01", b"j", b"j"),
        (b"t\x00\x00\x00\x01a\x01", b"j", b""),
    ],
)
def test_a_thousand_levels_are_accepted(header: bytes, middle: bytes, footer: bytes) -> None:
    value = decode(nested(1000, header, middle, footer))

    assert encode(value) == nested(1000, header, middle, footer)


def test_a_promise_of_many_elements_costs_no_memory() -> None:
    import resource

    promise = nested(400, b"i\x00\x03\x00\x00", b"a\x01")  # each alone could be kept
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    with pytest.raises(DecodeError, match="truncated"):
        decode(promise + bytes(200_000))

    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000


def compressed(term: bytes, says: int | None = None) -> bytes:
    import zlib

    return b"\x83P" + struct.pack(">I", len(term) if says is None else says) + zlib.compress(term)


def test_a_compressed_term_is_held_to_the_size_it_says() -> None:
    assert decode(compressed(b"a\x05")) == 5
    for says in (0, 1, 3, 2**28, 2**32 - 1):
        with pytest.raises(DecodeError):
            decode(compressed(b"a\x05", says))
    with pytest.raises(DecodeError, match="after"):
        decode(compressed(b"a\x05") + b"x")
    with pytest.raises(DecodeError, match="after"):
        decode(compressed(b"a\x05\x00"))


def test_a_zip_bomb_is_refused_before_it_unfolds() -> None:
    import resource
    import zlib

    packer = zlib.compressobj(9)
    bomb = b"".join(packer.compress(bytes(1 << 20)) for _ in range(400)) + packer.flush()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    with pytest.raises(DecodeError, match="too large"):
        decode(b"\x83P" + struct.pack(">I", 400 << 20) + bomb)
    with pytest.raises(DecodeError, match="larger than it says"):
        decode(b"\x83P" + struct.pack(">I", 1000) + bomb)

    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000


def test_the_policy_for_binaries_is_obeyed() -> None:
    text, other = b"\x83m\x00\x00\x00\x02hi", b"\x83m\x00\x00\x00\x02\xff\xfe"
    key = b"\x83t\x00\x00\x00\x01m\x00\x00\x00\x02hia\x01"

    assert decode(text) == decode(text, binary="str") == "hi"
    assert decode(text, binary="bytes") == b"hi"
    assert decode(other) == decode(other, binary="bytes") == b"\xff\xfe"
    assert decode(key) == {"hi": 1}
    assert decode(key, binary="bytes") == {b"hi": 1}
    with pytest.raises(DecodeError, match="UTF-8"):
        decode(other, binary="str")
    with pytest.raises(ValueError, match="binary is"):
        decode(text, binary="utf8")  # type: ignore[arg-type]


# What Python may send

REFUSED: dict[str, tuple[Any, type[Exception], str]] = {
    "an object": (object(), TypeError, r"^value: cannot encode 'object'"),
    "deep in": ([1, (2, {"x": [object()]})], TypeError, r"^value\[1\]\[1\]\['x'\]\[0\]: cannot"),
    "in a key": ({(1, object()): 2}, TypeError, r"^value\.keys\(\)\[0\]\[1\]: cannot"),
    "in a tail": (ImproperList((1,), object()), TypeError, r"^value\.tail: cannot"),
    "in an improper list": (
        ImproperList((1, object()), 2),
        TypeError,
        r"^value\.items\[1\]: cannot",
    ),
    "in a set": ({object()}, TypeError, r"^value\[0\]: cannot"),
    "a lone surrogate": (["\ud800"], ValueError, r"^value\[0\]: .*surrogate"),
    "too large a number": (1 << 65535 * 64, ValueError, "larger than any Erlang"),
    "too large a negative one": (-(1 << 65535 * 64), ValueError, "larger than any Erlang"),
    "two keys of one term": ({"a": 1, b"a": 2}, ValueError, "another key is the same Erlang term"),
    "none twice": ({None: 1, Atom("none"): 2}, ValueError, "another key is the same Erlang term"),
    "true twice": ({True: 1, Atom("true"): 2}, ValueError, "another key is the same Erlang term"),
    "nan twice": ({math.nan: 1, Atom("nan"): 2}, ValueError, "another key is the same Erlang term"),
    "tuples of one term": ({("a",): 1, (b"a",): 2}, ValueError, "another key is the same"),
    "a strided view": (memoryview(b"abcd")[::2], TypeError, "not contiguous"),
    "a made-up fun": (Fun(b"p" + bytes(40)), ValueError, "not a fun's"),
    "half a pid": (Pid.__new__(Pid), TypeError, "not whole"),
    "half a reference": (Ref.__new__(Ref), TypeError, "not whole"),
    "half an improper list": (ImproperList.__new__(ImproperList), TypeError, "not whole"),
    "a complex number": (1j, TypeError, "cannot encode 'complex'"),
    "a generator": ((x for x in ()), TypeError, "cannot encode 'generator'"),
    "a class": (int, TypeError, "cannot encode 'type'"),
}


@pytest.mark.parametrize("value, kind, message", REFUSED.values(), ids=REFUSED.keys())
def test_what_has_no_term_is_refused_by_name(
    value: Any, kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind, match=message):
        encode(value)


def test_the_largest_integer_a_beam_can_have_is_sent(beam: Beam) -> None:
    most = (1 << 65535 * 64) - 1

    assert decode(beam.rewrite(encode(most))) == most


def test_keys_that_differ_in_erlang_are_sent_though_their_kinds_are_mixed() -> None:
    value = {"a": 1, b"\xff": 2, None: 3, Atom("b"): 4, True: 5, (1, "x"): 6, 2.5: 7}

    assert decode(encode(value))["a"] == 1


def test_containers_that_contain_themselves_are_refused() -> None:
    loop: list[Any] = []
    loop.append({"again": (loop,)})

    with pytest.raises(ValueError, match="contains itself"):
        encode(loop)


def test_values_nested_too_deep_are_refused_with_a_short_path() -> None:
    value: Any = 1
    for _ in range(1001):
        value = [value]

    with pytest.raises(ValueError, match="nested deeper than 1000 levels") as caught:
        encode(value)

    assert len(str(caught.value)) < 200
    assert encode(value[0])[:6] == b"\x83l\x00\x00\x00\x01"


def test_containers_that_an_encoder_changes_meanwhile_are_refused() -> None:
    class Meddler:
        pass

    shrinking: list[Any] = [Meddler(), 2, 3]
    growing: dict[Any, Any] = {1: Meddler(), 2: 2}
    targets: list[Any] = [shrinking, growing]

    def meddle(_: Meddler) -> int:
        shrinking.clear()
        growing[len(growing) + 10] = 1
        return 1

    erlang.register_encoder(Meddler, meddle)
    for target in targets:
        with pytest.raises(RuntimeError, match="changed"):
            encode(target)


@pytest.fixture()
def meanwhile() -> Iterator[Callable[[Callable[[], None]], Callable[[], None]]]:
    """meanwhile(action)() lets another thread do it as soon as this one gives the GIL up."""
    threads = []

    def prepare(action: Callable[[], None]) -> Callable[[], None]:
        def other() -> None:
            with gate:
                action()

        gate = threading.Lock()
        gate.acquire()
        threads.append(threading.Thread(target=other))
        threads[-1].start()
        time.sleep(0.05)  # for it to stand at the gate
        return gate.release

    before = sys.getswitchinterval()
    sys.setswitchinterval(1000)  # who has the GIL keeps it until he gives it up himself
    yield prepare
    sys.setswitchinterval(before)
    for thread in threads:
        thread.join()


LONG = 64_000_000


@pytest.mark.parametrize(
    "value", [bytes(LONG), bytearray(LONG), "x" * LONG, "é" * (LONG // 2)], ids=type
)
def test_others_run_while_a_long_value_is_encoded(meanwhile: Any, value: Any) -> None:
    # It is nobody else's, and the other thread takes it away: the encoder must hold it.
    holder = [value + value[:1], 1]
    begin = meanwhile(holder.clear)
    begin()
    with pytest.raises(RuntimeError, match="changed while it was encoded"):
        encode(holder)


def test_a_long_key_survives_what_others_do_to_its_dictionary(meanwhile: Any) -> None:
    holder = {bytes(LONG): "value" * 20}
    begin = meanwhile(holder.clear)
    begin()
    with pytest.raises(RuntimeError, match="changed while it was encoded"):
        encode(holder)


def test_others_run_while_a_long_value_is_decoded(meanwhile: Any) -> None:
    data = encode(bytes(LONG))
    ran: list[bool] = []
    begin = meanwhile(lambda: ran.append(True))
    begin()
    decode(data)
    assert ran


def test_short_values_are_copied_without_giving_the_gil_up(meanwhile: Any) -> None:
    holder = [bytes(100_000)]
    begin = meanwhile(holder.clear)
    begin()
    assert len(encode(holder)) > 100_000  # none was lost


# Encoders


def test_the_nearest_class_decides_how_a_value_is_sent() -> None:
    class Base:
        pass

    class Derived(Base):
        pass

    class Text(str):
        pass

    class Level(enum.IntEnum):
        HIGH = 7

    erlang.register_encoder(Base, lambda value: [type(value).__name__])
    assert decode(encode([Base(), Derived()])) == [["Base"], ["Derived"]]
    erlang.register_encoder(Derived, lambda value: 2)
    assert decode(encode([Base(), Derived(), Text("t"), Level.HIGH])) == [["Base"], 2, "t", 7]
    assert decode(encode(collections.defaultdict(int, a=1))) == {"a": 1}


def test_an_encoder_may_return_what_needs_an_encoder() -> None:
    class Wrapped:
        pass

    class Endless:
        pass

    erlang.register_encoder(Wrapped, lambda value: {decimal.Decimal("1.5")})
    erlang.register_encoder(Endless, lambda value: value)

    assert decode(encode(Wrapped())) == ["1.5"]
    with pytest.raises(ValueError, match="without end"):
        encode([Endless()])


def test_an_encoder_that_fails_says_where() -> None:
    class Bad:
        pass

    erlang.register_encoder(Bad, lambda value: 1 // 0)

    with pytest.raises(ZeroDivisionError) as caught:
        encode({"x": [Bad()]})
    assert caught.value.__notes__ == ["while encoding value['x'][0]"]


def test_only_other_classes_can_be_registered() -> None:
    for taken in (str, dict, bool, Atom, Pid):
        with pytest.raises(ValueError, match="a term of its own"):
            erlang.register_encoder(taken, str)
    with pytest.raises(TypeError):
        erlang.register_encoder("str", str)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        erlang.register_encoder(complex, "str")  # type: ignore[arg-type]


def test_numpy_is_not_imported_for_its_sake() -> None:
    import subprocess

    script = "import erlang, sys; erlang.encode({1, 2}); sys.exit('numpy' in sys.modules)"
    path = str(pathlib.Path(erlang.__file__).parents[1])

    done = subprocess.run([sys.executable, "-c", script], env=dict(os.environ, PYTHONPATH=path))

    assert done.returncode == 0


def test_numpy_values_without_an_exact_term_are_refused() -> None:
    numpy = pytest.importorskip("numpy")

    for value in (numpy.datetime64("2024-01-01"), numpy.longdouble(1), numpy.complex64(1)):
        with pytest.raises(TypeError):
            encode(value)


# Settings


def test_none_is_sent_as_the_atom_that_was_set(usual_none: None, beam: Beam) -> None:
    erlang.set_none_atom("nil")

    assert beam.text(encode([None])) == "[nil]"
    with pytest.raises(ValueError, match="cannot stand for"):
        erlang.set_none_atom("true")


def test_only_the_chosen_atoms_arrive_as_none(usual_none: None) -> None:
    assert decode(golden.TERMS["undefined"]) is None

    erlang.set_none_atoms(["nil"])

    assert decode(golden.TERMS["nil_atom"]) is None
    assert same(decode(golden.TERMS["undefined"]), Atom("undefined"))
    with pytest.raises(ValueError, match="cannot stand for"):
        erlang.set_none_atoms(["false"])


# The classes

VALUES = [
    Atom("ok"),
    Atom('it\'s\n"quoted"'),
    Pid("a@h", 1, 2, 3),
    Port("a@h", 2**63, 3),
    Ref("a@h", 1, (1, 2, 3)),
    Export("m", "f", 2),
    Fun(golden.TERMS["fun"][1:]),
    BitString(b"\xff\xe0", 3),
    ImproperList((1, [2]), "tail"),
]


@pytest.mark.parametrize("value", VALUES, ids=lambda value: type(value).__name__)
def test_a_value_prints_so_that_it_pastes_back(value: Any) -> None:
    assert same(eval(repr(value), dict(vars(erlang))), value)


@pytest.mark.parametrize("value", VALUES, ids=lambda value: type(value).__name__)
def test_a_value_survives_pickle_and_copy(value: Any) -> None:
    assert same(pickle.loads(pickle.dumps(value)), value)
    assert same(copy.deepcopy(value), value)


@pytest.mark.parametrize("value", VALUES, ids=lambda value: type(value).__name__)
def test_a_value_is_frozen_and_takes_no_other_attributes(value: Any) -> None:
    for name in ("node", "items", "extra"):
        with pytest.raises(AttributeError):
            setattr(value, name, 1)
    assert not hasattr(value, "__dict__")


@pytest.mark.parametrize("name", ["pid", "port", "reference", "export", "fun", "bits"])
def test_equal_values_hash_alike_and_differ_from_others(name: str) -> None:
    first, second = decode(golden.TERMS[name]), decode(golden.TERMS[name])

    assert first == second and hash(first) == hash(second) and first is not second
    assert first != decode(golden.TERMS["improper"]) and first != 1
    assert {first: 1}[second] == 1


def test_an_atom_is_its_text() -> None:
    atom = Atom("ok")

    assert atom == "ok" and hash(atom) == hash("ok") and {"ok": 1}[atom] == 1
    assert type(str(atom)) is str and f"{atom}" == "ok"
    assert decode(b"\x83w\x02ok") is decode(b"\x83w\x02ok")


@pytest.mark.parametrize(
    "make, kind",
    [
        (lambda: Atom("a" * 256), ValueError),
        (lambda: Atom("\ud800"), ValueError),
        (lambda: Atom(1), TypeError),  # type: ignore[arg-type]
        (lambda: Pid("a@h", -1, 0, 0), ValueError),
        (lambda: Pid("a@h", 2**32, 0, 0), ValueError),
        (lambda: Pid(1, 0, 0, 0), TypeError),  # type: ignore[arg-type]
        (lambda: Ref("a@h", 0, ()), ValueError),
        (lambda: Ref("a@h", 0, range(6)), ValueError),
        (lambda: Port("a@h", 2**64, 0), ValueError),
        (lambda: Export("m", "f", 256), ValueError),
        (lambda: BitString(b"", 1), ValueError),
        (lambda: BitString(b"a", 8), ValueError),
        (lambda: ImproperList((), 1), ValueError),
        (lambda: ImproperList((1,), []), ValueError),
        (lambda: Fun(b"x" * 40), ValueError),
    ],
)
def test_a_value_that_cannot_be_is_refused_when_it_is_made(
    make: Any, kind: type[Exception]
) -> None:
    with pytest.raises(kind):
        make()


def test_bits_beyond_the_last_do_not_count() -> None:
    assert BitString(b"\xff", 3) == BitString(b"\xe0", 3) and len(BitString(b"a\xe0", 3)) == 11
    assert decode(b"\x83M\x00\x00\x00\x01\x03\xa2") == BitString(b"\xa0", 3)
    assert bytes([0xA2])[0] == 0xA2  # Python shares one-byte objects: it must not be that one


def test_a_fun_tells_what_it_can() -> None:
    fun = decode(golden.TERMS["fun_with_environment"])

    assert (fun.arity, fun.free, len(fun.uniq)) == (0, 2, 16)


def test_identifiers_sort_as_in_erlang(beam: Beam) -> None:
    numbers = random.Random(1)
    nodes = ["a@h", "b@h", "aa@h"]

    def some(bits: int) -> int:
        return numbers.randrange(3) if numbers.random() < 0.7 else numbers.getrandbits(bits)

    kinds: list[Any] = [
        lambda node: Pid(node, some(28), some(13), some(2)),
        lambda node: Port(node, some(28), some(2)),
        lambda node: Ref(node, some(2), (some(18), some(32), some(32))),
        lambda node: Export(node, numbers.choice(nodes), some(8)),
        lambda node: BitString(bytes([some(8), some(8)])[: 1 + some(1)], 1 + some(2)),
    ]
    for make in kinds:
        values = list({make(numbers.choice(nodes)) for _ in range(300)})
        assert decode(beam.sort(encode(values))) == sorted(values)


# Memory


def test_nothing_is_kept_of_terms_that_came_and_went() -> None:
    damaged = [bytes(term[:-1]) for term in PLAIN.values()]

    def work() -> None:
        for term in PLAIN.values():
            encode(decode(term))
        for term in itertools.chain(damaged, HOSTILE.values()):
            with contextlib.suppress(DecodeError):
                decode(term)
        for value, kind, _ in REFUSED.values():
            with contextlib.suppress(kind):
                encode(value)

    counts = []
    for _ in range(4):
        for _ in range(200):
            work()
        gc.collect()
        counts.append(sys.getallocatedblocks())
    growth = [after - before for before, after in itertools.pairwise(counts)]
    assert min(growth) < 100, growth  # the least leak would be 200 blocks each time


def test_nothing_holds_on_to_values_that_were_refused_or_sent() -> None:
    marker = ["marker"]
    value = {"a": [marker, (marker, {marker[0]: marker})], "set": {1, 2}}
    bad = [marker, {"x": marker, (1, object()): marker}, object()]
    before = sys.getrefcount(marker)

    for _ in range(100):
        encode(value)
        with pytest.raises(TypeError):
            encode(bad)

    assert sys.getrefcount(marker) == before
