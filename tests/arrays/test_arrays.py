"""numpy's arrays and Arrow's tables as terms, with the packages from the registry; see tests/run/venv."""

from __future__ import annotations

import asyncio
import random
import struct
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import numpy
import pyarrow
import pytest

import erlang
import erlang._encoders
import erlang.data
from erlang import Atom
from erlang.data import from_array, from_arrow, is_data, to_array, to_arrow

ARRAY, ARROW, BYTES = Atom("py_array"), Atom("py_arrow"), Atom("bytes")


def over(term: Any) -> Any:
    """A term as it arrives elsewhere."""
    return erlang.decode(erlang.encode(term))


@pytest.fixture
def registered() -> Iterator[None]:
    before = dict(erlang._encoders._late)
    erlang.data.register()
    yield
    erlang._encoders._late.clear()
    erlang._encoders._late.update(before)
    erlang._encoders.resolved.clear()


# --- numpy ---------------------------------------------------------------------------------------


SENDABLE = [
    "?",
    "i1",
    "<i2",
    "<i4",
    "<i8",
    "u1",
    "<u2",
    "<u4",
    "<u8",
    "<f2",
    "<f4",
    "<f8",
    "<c8",
    "<c16",
]
SENDABLE += [">i2", ">u8", ">f4", ">c16", "<M8[ns]", "<m8[D]", ">M8[25s]", "<M8"]


@pytest.mark.parametrize("dtype", SENDABLE)
@pytest.mark.parametrize("shape", [(), (0,), (1,), (7,), (2, 3), (3, 0, 2), (2, 2, 2, 2)])
def test_an_array_comes_back_with_its_dtype_its_shape_and_its_bytes(
    dtype: str, shape: tuple[int, ...]
) -> None:
    size = int(numpy.prod(shape)) * numpy.dtype(dtype).itemsize
    array = numpy.frombuffer(random.randbytes(size), numpy.uint8).view(dtype).reshape(shape)
    back = to_array(over(from_array(array)))
    assert (back.dtype, back.shape, back.tobytes()) == (array.dtype, shape, array.tobytes())


def test_nothing_of_a_number_is_lost_not_even_of_those_that_are_none() -> None:
    bits = numpy.array([0x7FF8000000000001, 0xFFF0000000000000, 1, 0x8000000000000000], "<u8")
    back = to_array(over(from_array(bits.view("<f8"))))
    assert back.view("<u8").tolist() == bits.tolist()


def test_a_contiguous_array_is_sent_from_its_own_memory() -> None:
    array = numpy.zeros(4)
    view = from_array(array)[3][1]
    array[0] = 1.5
    assert struct.unpack_from("<d", view) == (1.5,)


@pytest.mark.parametrize(
    "change", [lambda a: a.T, lambda a: a[:, ::2], lambda a: a[::-1], numpy.asfortranarray]
)
def test_an_array_that_lies_otherwise_is_sent_in_c_order(change: Any) -> None:
    array = change(numpy.arange(12).reshape(3, 4))
    assert to_array(over(from_array(array))).tolist() == array.tolist()


def test_an_array_that_arrives_is_a_view_of_the_bytes_and_cannot_be_written_to() -> None:
    data = bytes(range(16))
    array = to_array((ARRAY, "<u4", [4], data))
    assert not array.flags.owndata and not array.flags.writeable
    assert (
        array.__array_interface__["data"][0]
        == numpy.frombuffer(data, "u1").__array_interface__["data"][0]
    )
    with pytest.raises(ValueError):
        array[0] = 1


@pytest.mark.parametrize(
    "data", [b"abcdefgh", bytearray(b"abcdefgh"), memoryview(b"__abcdefgh")[2:], "abcdefgh"]
)
def test_bytes_are_taken_in_any_form_and_undone_where_they_arrived_as_text(data: Any) -> None:
    array = to_array((ARRAY, "|u1", (8,), data))
    assert array.tobytes() == b"abcdefgh" and not array.flags.writeable


@pytest.mark.parametrize(
    "name, dtype",
    [
        ("float64", "<f8"),
        (Atom("int16"), "<i2"),
        (b"bool", "|b1"),
        ("complex128", "<c16"),
        (b">u4", ">u4"),
    ],
)
def test_a_dtype_may_be_a_name_which_is_little_endian(name: Any, dtype: str) -> None:
    itemsize = numpy.dtype(dtype).itemsize
    assert to_array((ARRAY, name, [1], bytes(itemsize))).dtype.str == dtype


def test_lists_and_scalars_are_made_arrays_of() -> None:
    assert from_array([1.0, 2.0])[1:3] == ("<f8", [2])
    assert to_array(over(from_array(numpy.float32(0.5)))).item() == 0.5


RECORD = numpy.dtype([("x", "<f8")])


@pytest.mark.parametrize(
    "array",
    [
        numpy.array([object()]),
        numpy.array(["a"]),
        numpy.array([b"a"]),
        numpy.zeros(1, RECORD),
        numpy.zeros(1, "g"),
    ],
)
def test_items_without_a_fixed_size_are_refused(array: Any) -> None:
    with pytest.raises(TypeError, match="convert it first"):
        from_array(array)


BAD_DTYPES = [
    "O",
    "|O8",
    "<U4",
    "S3",
    "V8",
    "f8,i4",
    "{'names':[]}",
    "<f16",
    "<i3",
    "=f8",
    "f8",
    "",
    "<f8 ",
    "<f8\n",
]
BAD_DTYPES += [
    "<M8[ns",
    "<M8[x]",
    "<M8[9999999999s]",
    "<M8[0s]",
    "|f8",
    "float65",
    "object",
    "<" * 1000,
]


@pytest.mark.parametrize("dtype", BAD_DTYPES)
def test_a_dtype_that_is_none_of_ours_is_not_shown_to_numpy(dtype: str) -> None:
    with pytest.raises((ValueError, TypeError)):
        to_array((ARRAY, dtype, [1], bytes(8)))


@pytest.mark.parametrize(
    "shape, data",
    [
        ([2], bytes(8)),
        ([1], bytes(16)),
        ([], b""),
        ([0], bytes(8)),
        ([-1], bytes(8)),
        ([-1, -1], bytes(8)),
        ([2**63], b""),
        ([2**32, 2**32, 2**32], b""),
        ([2**61 + 1, 8], bytes(64)),
        ([0, 2**62], b""),
        ([1] * 33, bytes(8)),
    ],
)
def test_a_shape_that_does_not_fit_the_bytes_is_a_value_error(
    shape: list[int], data: bytes
) -> None:
    with pytest.raises(ValueError, match="py_array"):
        to_array((ARRAY, "<f8", shape, data))


@pytest.mark.parametrize(
    "term",
    [
        None,
        [],
        (ARRAY, "<f8", [1]),
        ("py_array", "<f8", [1], bytes(8)),
        (ARRAY, 5, [1], bytes(8)),
        (ARRAY, "<f8", 1, bytes(8)),
        (ARRAY, "<f8", "1", bytes(8)),
        (ARRAY, "<f8", [True], bytes(8)),
        (ARRAY, "<f8", [1.0], bytes(8)),
        (ARRAY, "<f8", [1], [0] * 8),
        (ARRAY, "<f8", [1], Atom("eightchr")),
    ],
)
def test_what_is_no_array_is_a_type_error(term: Any) -> None:
    with pytest.raises(TypeError):
        to_array(term)


# --- Arrow ---------------------------------------------------------------------------------------


def table() -> Any:
    return pyarrow.table(
        {
            "id": pyarrow.array([1, None, 3], pyarrow.int64()),
            "name": ["a", "größe", None],
            "kind": pyarrow.array(["x", "y", "x"]).dictionary_encode(),
            "parts": [[1.5], [], [2.5, None]],
            "at": pyarrow.array([0, 1, 2], pyarrow.timestamp("us", "UTC")),
        },
        metadata={"made": "here"},
    )


def compressed(many: int) -> bytes:
    sink = pyarrow.BufferOutputStream()
    columns = pyarrow.table(
        {
            "x": pyarrow.array([0] * many, pyarrow.int64()),
            "k": pyarrow.array(["k"] * many).dictionary_encode(),
        }
    )
    options = pyarrow.ipc.IpcWriteOptions(compression="zstd")
    with pyarrow.ipc.new_stream(sink, columns.schema, options=options) as writer:
        writer.write(columns)
    return bytes(sink.getvalue())


def test_a_table_comes_back_with_its_schema_and_its_columns() -> None:
    back = to_arrow(over(from_arrow(table())))
    assert back.equals(table(), check_metadata=True)
    back.validate(full=True)


def test_a_record_batch_is_a_table_of_one_batch() -> None:
    batch = table().to_batches()[0]
    back = to_arrow(over(from_arrow(batch)))
    assert back.to_batches() == [batch]


def test_a_table_without_rows_keeps_its_schema() -> None:
    empty = table().slice(0, 0)
    assert to_arrow(over(from_arrow(empty))).equals(empty)


def test_the_columns_that_arrive_are_views_of_the_bytes() -> None:
    numbers = pyarrow.table({"x": numpy.arange(100_000)})
    term = over(from_arrow(numbers))
    whole = numpy.frombuffer(term[1], "u1").__array_interface__["data"][0]
    column = to_arrow(term)["x"].chunk(0).buffers()[1].address
    assert whole <= column < whole + len(term[1])


def test_a_compressed_table_is_read_up_to_a_size() -> None:
    term = (ARROW, compressed(100_000))
    assert to_arrow(term).num_rows == 100_000
    with pytest.raises(ValueError, match="more than 100000 bytes"):
        to_arrow(term, most_bytes=100_000)


def test_no_more_batches_than_a_table_may_have_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(erlang.data, "MOST_BATCHES", 3)
    batch = pyarrow.record_batch({"x": [1]})
    few, many = pyarrow.Table.from_batches([batch] * 2), pyarrow.Table.from_batches([batch] * 3)
    assert to_arrow(over(from_arrow(few))).num_rows == 2
    with pytest.raises(ValueError, match="batches"):
        to_arrow(over(from_arrow(many)))


def test_offsets_that_lead_out_of_a_column_are_found() -> None:
    stream = bytes(from_arrow(pyarrow.table({"s": ["aaaa", "bbbb"]}))[1][1])
    place = stream.index(struct.pack("<3i", 0, 4, 8))
    bad = stream[:place] + struct.pack("<3i", 0, 4, 2**30) + stream[place + 12 :]
    with pytest.raises(ValueError, match="py_arrow"):
        to_arrow((ARROW, bad))


@pytest.mark.parametrize("term", [None, (ARROW,), ("py_arrow", b""), (ARROW, 5), (ARRAY, b"")])
def test_what_is_no_table_is_a_type_error(term: Any) -> None:
    with pytest.raises(TypeError):
        to_arrow(term)


def test_any_bytes_are_a_table_or_a_value_error() -> None:
    """Streams cut and changed at random, in a process of its own: what pyarrow does not survive is seen."""
    script = f"""
import random, sys
sys.path[:0] = {sys.path!r}
import test_arrays as t
random.seed(7)
taken = 0
for stream in (bytes(t.from_arrow(t.table())[1][1]), t.compressed(1000)):
    for _ in range(2500):
        bad = bytearray(stream)
        for _ in range(random.randint(1, 4)):
            bad[random.randrange(len(bad))] = random.randrange(256)
        try:
            t.to_arrow((t.ARROW, bytes(bad[: random.randrange(2 * len(bad))])), most_bytes=10_000_000)
            taken += 1
        except ValueError:
            pass
print(taken)
"""
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        cwd=__file__.rpartition("/")[0],
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 0


def test_a_table_that_is_no_table_is_refused() -> None:
    with pytest.raises(TypeError, match="dict"):
        from_arrow({"x": [1]})


# --- without a call for each value ---------------------------------------------------------------


def test_without_being_told_an_array_is_a_list() -> None:
    assert over(numpy.array([[1, 2]])) == [[1, 2]]


def test_registered_every_array_and_every_table_goes_as_one_binary(registered: None) -> None:
    sent = over({"a": [numpy.arange(3)], "t": table(), "b": table().to_batches()[0]})
    assert to_array(sent["a"][0]).tolist() == [0, 1, 2]
    assert to_arrow(sent["t"]).equals(table())
    assert to_arrow(sent["b"]).num_rows == 3


def test_registered_what_has_no_fixed_size_goes_as_it_did(registered: None) -> None:
    assert over(numpy.array(["a", "b"])) == ["a", "b"]
    assert over(numpy.float64(1.5)) == 1.5
    with pytest.raises(TypeError):
        erlang.encode(numpy.zeros(1, "g"))


def test_registering_imports_neither_package() -> None:
    script = f"import sys; sys.path[:0] = {sys.path!r}; import erlang.data; erlang.data.register(); sys.exit('numpy' in sys.modules or 'pyarrow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script]).returncode == 0


def test_the_first_arrays_may_come_to_many_threads_at_once() -> None:
    """A module that another thread is still importing is in sys.modules already."""
    script = f"""
import sys, threading
sys.path[:0] = {sys.path!r}
import erlang.data
from erlang import Atom
term = (Atom("py_array"), "<f8", [1], bytes(8))
same = erlang.data.arrays(lambda value: [value, 1])
start, good = threading.Barrier(8), []
def run():
    start.wait()
    for _ in range(2000):
        same(1)
    good.append(same(term)[0][2])
threads = [threading.Thread(target=run) for _ in range(4)]
threads += [threading.Thread(target=lambda: (start.wait(), good.append(same(term)[0][2]))) for _ in range(4)]
for thread in threads: thread.start()
for thread in threads: thread.join()
print(good)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout == f"{[[1]] * 8}\n", done.stderr


def test_a_decorated_function_gets_arrays_and_returns_them() -> None:
    @erlang.data.arrays
    def both(values: Any, plain: Any, *, frame: Any, inside: Any) -> Any:
        """Its docstring."""
        assert isinstance(inside["k"], numpy.ndarray) and plain == [[1], "x"]
        return values * 2, frame, [1], inside["k"].sum()

    array, kept, plain, total = over(
        both(
            over(from_array(numpy.arange(3))),
            [[1], "x"],
            frame=over(from_arrow(table())),
            inside={"k": over(from_array([1, 2]))},
        )
    )
    assert to_array(array).tolist() == [0, 2, 4]
    assert to_arrow(kept).equals(table())
    assert (plain, total) == ([1], 3)
    assert both.__doc__ == "Its docstring."


def test_a_decorated_coroutine_function_stays_one() -> None:
    @erlang.data.arrays
    async def double(values: Any) -> Any:
        return values * 2

    assert asyncio.iscoroutinefunction(double)
    assert to_array(asyncio.run(double(from_array([1, 2])))).tolist() == [2, 4]


def test_a_decorated_generator_yields_terms_and_is_sent_arrays() -> None:
    ended = []

    @erlang.data.arrays
    def sums(start: Any) -> Any:
        total = start.sum()
        try:
            while True:
                try:
                    total += (yield numpy.array([total])).sum()
                except LookupError:
                    yield "thrown"
        finally:
            ended.append(True)

    items = sums(over(from_array([1, 2])))
    assert to_array(next(items)).tolist() == [3]
    assert to_array(items.send(over(from_array([4, 5])))).tolist() == [12]
    assert items.throw(LookupError()) == "thrown"
    items.close()
    assert ended == [True]


def test_a_decorated_generator_ends_as_it_does() -> None:
    @erlang.data.arrays
    def two() -> Any:
        yield numpy.zeros(1)
        yield {"x": numpy.ones(2)}
        return numpy.zeros(3)

    items = two()
    assert to_array(next(items)).shape == (1,)
    assert to_array(next(items)["x"]).shape == (2,)
    with pytest.raises(StopIteration) as stop:
        next(items)
    assert to_array(stop.value.value).shape == (3,)


def test_a_decorated_asynchronous_generator_stays_one() -> None:
    ended = []

    @erlang.data.arrays
    async def doubled(values: Any) -> Any:
        try:
            while True:
                values = (yield values * 2) + 0
        except LookupError:
            yield values
        finally:
            ended.append(True)

    async def take() -> None:
        items = doubled(from_array([1]))
        assert to_array(await anext(items)).tolist() == [2]
        assert to_array(await items.asend(from_array([5]))).tolist() == [10]
        assert to_array(await items.athrow(LookupError())).tolist() == [5]
        with pytest.raises(StopAsyncIteration):
            await anext(items)
        assert ended == [True]

    asyncio.run(take())


def test_a_term_is_known_by_its_tag() -> None:
    assert is_data(from_array([1])) and is_data(from_arrow(table()))
    assert not is_data(("py_array", "<f8", [1], b"")) and not is_data([1])
