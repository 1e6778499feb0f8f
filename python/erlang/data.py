"""numpy arrays and Arrow tables as terms: one binary each, with no conversion of their items.

    {py_array, Dtype, Shape, {bytes, Binary}}      <<"<f8">>, [2, 3], the items in C order
    {py_arrow, {bytes, Stream}}                    an Arrow IPC stream, its schema inside

Nothing here is done unasked: arrays go out as lists (docs/types.md) unless a function says otherwise with
`from_array`, is decorated with `arrays`, or `register()` was called. numpy and pyarrow are imported when they
are first needed. What a peer sends is looked at before numpy or pyarrow see it, and is never unpickled.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import inspect
import math
import re
import struct
import sys
from collections.abc import AsyncGenerator, Callable, Generator, Iterator
from typing import Any, Final, Optional, TypeVar, Union

from erlang._encoders import plain_numbers, register_late
from erlang.terms import Atom

__all__ = ["arrays", "from_array", "from_arrow", "is_data", "register", "to_array", "to_arrow"]

Data = Union[bytes, bytearray, memoryview]
F = TypeVar("F", bound=Callable[..., Any])

_ARRAY: Final = Atom("py_array")
_ARROW: Final = Atom("py_arrow")
_BYTES: Final = Atom("bytes")

MOST_DIMENSIONS: Final = 32
MOST_BYTES: Final = (
    256 * 1024 * 1024
)  # what one term may have, and what a compressed table may become
MOST_BATCHES: Final = 65_536
_MOST_ITEMS: Final = 2**63 - 1

# Numbers of a fixed size and the times that are numbers too. Text of fixed width, records and objects are not.
_KINDS: Final = "biufcmM"
_NAMES: Final = {
    "bool": "|b1",
    **{f"int{8 * size}": f"<i{size}" for size in (1, 2, 4, 8)},
    **{f"uint{8 * size}": f"<u{size}" for size in (1, 2, 4, 8)},
    **{f"float{8 * size}": f"<f{size}" for size in (2, 4, 8)},
    **{f"complex{8 * size}": f"<c{size}" for size in (8, 16)},
}
_DTYPE: Final = re.compile(
    r"[<>|](?:b1|[iu]1)|[<>](?:[iu][248]|f[248]|c8|c16"
    r"|[mM]8(?:\[(?:[1-9][0-9]{0,8})?(?:Y|M|W|D|h|m|s|ms|us|ns|ps|fs|as)\])?)"
)


# ---------------------------------------------------------------------------------------------------------------------
# numpy


def to_array(term: Any) -> Any:
    """The array that a py_array term is: a read-only view of the term's bytes, `.copy()` it to write to it.

    Raises: TypeError for what is no such term; ValueError for one that is wrong in itself.
    """
    if not _tagged(term, _ARRAY, 4):
        raise TypeError(f"wanted a py_array term, not {_short(term)}")
    numpy = _imported("numpy")

    dtype = numpy.dtype(_dtype(term[1]))
    shape = _shape(term[2])
    data = _data(term[3])
    # Python's integers do not overflow; numpy's could. The product leaves zeros out, so that an array without
    # items cannot have a side that no array can have.
    if math.prod(size or 1 for size in shape) * dtype.itemsize > _MOST_ITEMS:
        raise ValueError(f"py_array: the shape {list(shape)} is too large")
    wanted = math.prod(shape) * dtype.itemsize
    if wanted != len(data):
        what = f"{list(shape)} of {dtype.str} has {wanted} bytes"
        raise ValueError(f"py_array: {what}, the binary has {len(data)}")
    return numpy.ndarray(shape, dtype, memoryview(data).toreadonly())


def from_array(array: Any) -> tuple[Any, ...]:
    """The term of a numpy array, or of what numpy makes one of: a view if it is C-contiguous, else of a copy.

    Raises: TypeError for items that have no fixed size in bytes: objects, text, records, long doubles.
    """
    numpy = _imported("numpy")

    array = numpy.asarray(array)
    if not _has_term(array.dtype):
        raise TypeError(f"numpy's {array.dtype} has no py_array term: convert it first")
    # ascontiguousarray() would give an array without dimensions one.
    whole = array if array.flags.c_contiguous else array.copy(order="C")
    data = whole.reshape(-1).view(numpy.uint8).data if whole.size else b""
    return (_ARRAY, array.dtype.str, list(array.shape), (_BYTES, data))


def _has_term(dtype: Any) -> bool:
    return dtype.kind in _KINDS and _DTYPE.fullmatch(dtype.str) is not None


def _dtype(value: Any) -> str:
    """numpy's own parser is asked for nothing but these: it knows objects, records and more."""
    if isinstance(value, bytes):
        value = value.decode("latin-1")
    if not isinstance(value, str):
        raise TypeError(f"py_array: a dtype is a binary or an atom, not {_short(value)}")
    text = _NAMES.get(value, value)
    if _DTYPE.fullmatch(text) is None:
        raise ValueError(f"py_array: no dtype that can be sent: {_short(value)}")
    return str(text)


def _shape(value: Any) -> tuple[int, ...]:
    if not isinstance(value, (list, tuple)):
        raise TypeError(f"py_array: a shape is a list or a tuple, not {_short(value)}")
    if len(value) > MOST_DIMENSIONS:
        raise ValueError(f"py_array: {len(value)} dimensions, at most {MOST_DIMENSIONS} are read")
    for size in value:
        if type(size) is not int:
            raise TypeError(f"py_array: a side of a shape is an integer, not {_short(size)}")
        if not 0 <= size <= _MOST_ITEMS:
            raise ValueError(f"py_array: no array has a side of {_short(size)}")
    return tuple(value)


# ---------------------------------------------------------------------------------------------------------------------
# Arrow


def to_arrow(term: Any, *, most_bytes: int = MOST_BYTES, validate: bool = True) -> Any:
    """The pyarrow.Table that a py_arrow term is; columns that are not compressed are views of the term's bytes.

    What a compressed stream says it will become may be `most_bytes` in all. `validate` looks at every offset and
    every text, as one must who did not write the stream: a wrong offset reads memory that is not the table's.

    Raises: TypeError for what is no such term; ValueError for a stream that is wrong or too large.
    """
    if not _tagged(term, _ARROW, 2):
        raise TypeError(f"wanted a py_arrow term, not {_short(term)}")
    pyarrow = _imported("pyarrow")

    data = pyarrow.py_buffer(_data(term[1]))
    try:
        _check_stream(pyarrow, data, most_bytes)
        with pyarrow.ipc.open_stream(data) as reader:
            table = reader.read_all()
        table.validate(full=validate)
    except (pyarrow.ArrowException, OSError, struct.error) as error:
        raise ValueError(f"py_arrow: {error}") from error
    return table


def from_arrow(table: Any) -> tuple[Any, ...]:
    """The term of a pyarrow Table or RecordBatch; its columns are copied once, into the stream.

    Raises: TypeError for anything else.
    """
    pyarrow = _imported("pyarrow")

    if not isinstance(table, (pyarrow.Table, pyarrow.RecordBatch)):
        raise TypeError(f"wanted a pyarrow Table or RecordBatch, not {type(table).__name__}")
    sink = pyarrow.BufferOutputStream()
    with pyarrow.ipc.new_stream(sink, table.schema) as writer:
        writer.write(table)
    return (_ARROW, (_BYTES, memoryview(sink.getvalue())))


def _check_stream(pyarrow: Any, data: Any, most_bytes: int) -> None:
    """Walks over the stream's messages, which takes none of their columns, and adds up what they would become."""
    total = 0
    messages = 0
    for message in pyarrow.ipc.MessageReader.open_stream(data):
        messages += 1
        if messages > MOST_BATCHES:
            raise ValueError(f"more than {MOST_BATCHES} batches")
        if message.type != "schema":
            total += _uncompressed(memoryview(message.metadata), message.body)
        if total > most_bytes:
            raise ValueError(f"uncompressed it has more than {most_bytes} bytes")


def _uncompressed(metadata: memoryview, body: Any) -> int:
    """How many bytes the compressed buffers of a message say they have. pyarrow has verified its metadata."""
    message = _Table.root(metadata)
    batch = message.table(2)  # Message.header
    if (
        batch is not None and message.byte(1) == 2
    ):  # Message.header_type: a DictionaryBatch has a RecordBatch
        batch = batch.table(1)
    if batch is None or batch.table(3) is None:  # RecordBatch.compression
        return 0
    held = memoryview(body)
    total = 0
    for offset, length in batch.pairs(2):  # RecordBatch.buffers
        if length >= 8 and offset >= 0:
            (size,) = struct.unpack_from("<q", held, offset)
            total += max(size, 0)  # -1: this one is not compressed after all
    return total


class _Table:
    """A table of the FlatBuffers format, in which the metadata of Arrow's messages are."""

    __slots__ = ("data", "place", "fields")

    def __init__(self, data: memoryview, place: int):
        self.data = data
        self.place = place
        fields = place - struct.unpack_from("<i", data, place)[0]
        size = struct.unpack_from("<H", data, fields)[0]
        self.fields = struct.unpack_from(f"<{size // 2 - 2}H", data, fields + 4)

    @classmethod
    def root(cls, data: memoryview) -> _Table:
        return cls(data, struct.unpack_from("<I", data, 0)[0])

    def _place(self, field: int) -> Optional[int]:
        offset = self.fields[field] if field < len(self.fields) else 0
        return self.place + offset if offset else None

    def byte(self, field: int) -> int:
        place = self._place(field)
        return 0 if place is None else self.data[place]

    def table(self, field: int) -> Optional[_Table]:
        place = self._place(field)
        if place is None:
            return None
        return _Table(self.data, place + struct.unpack_from("<I", self.data, place)[0])

    def pairs(self, field: int) -> Iterator[tuple[int, int]]:
        """A vector of structs of two 64-bit integers."""
        place = self._place(field)
        if place is None:
            return iter(())
        vector = place + struct.unpack_from("<I", self.data, place)[0]
        count = struct.unpack_from("<I", self.data, vector)[0]
        return struct.iter_unpack("<qq", self.data[vector + 4 : vector + 4 + 16 * count])  # type: ignore[return-value]


# ---------------------------------------------------------------------------------------------------------------------
# Without a call for each value


def is_data(term: Any) -> bool:
    """Whether this is a term of an array or of a table; whether a good one, `to_array` and `to_arrow` find out."""
    return _tagged(term, _ARRAY, 4) or _tagged(term, _ARROW, 2)


def register() -> None:
    """From now on every array and every table that leaves this process leaves as one binary.

    That holds for results, messages and channels, wherever in a term the array is. Arrays whose items have no fixed
    size (text, objects) go as they did before: as lists, or not at all.
    """
    register_late("numpy", "ndarray", _array_or_list)
    register_late("pyarrow", "Table", from_arrow)
    register_late("pyarrow", "RecordBatch", from_arrow)


def arrays(function: F) -> F:
    """Decorates a function that is called from Erlang: it gets arrays and tables, and may return them.

    Terms that are arguments become what they stand for, and so do those in an argument that is a list, a tuple or a
    dict. What the function returns goes back in the same way, as deep. A coroutine function stays one, and so does a
    generator, plain or asynchronous, for the items that it yields and the values that it is sent.
    """
    if inspect.isasyncgenfunction(function):

        @functools.wraps(function)
        def yielded_later(*args: Any, **kwargs: Any) -> Any:
            args, kwargs = _arguments(args, kwargs)
            return _async_items(function(*args, **kwargs))

        return yielded_later  # type: ignore[return-value]

    if inspect.isgeneratorfunction(function):

        @functools.wraps(function)
        def yielded(*args: Any, **kwargs: Any) -> Any:
            args, kwargs = _arguments(args, kwargs)
            return _items(function(*args, **kwargs))

        return yielded  # type: ignore[return-value]

    if inspect.iscoroutinefunction(function):

        @functools.wraps(function)
        async def awaited(*args: Any, **kwargs: Any) -> Any:
            args, kwargs = _arguments(args, kwargs)
            return _each(_encoded, await function(*args, **kwargs))

        return awaited  # type: ignore[return-value]

    @functools.wraps(function)
    def called(*args: Any, **kwargs: Any) -> Any:
        args, kwargs = _arguments(args, kwargs)
        return _each(_encoded, function(*args, **kwargs))

    return called  # type: ignore[return-value]


def _items(source: Generator[Any, Any, Any]) -> Generator[Any, Any, Any]:
    """The generator with its items as terms. What it is sent and what is thrown into it goes to `source`."""
    with contextlib.closing(source):
        try:
            item = next(source)
            while True:
                try:
                    sent = yield _each(_encoded, item)
                except Exception as error:
                    item = source.throw(error)
                else:
                    item = source.send(_each(_decoded, sent))
        except StopIteration as stop:
            return _each(_encoded, stop.value)


async def _async_items(source: AsyncGenerator[Any, Any]) -> AsyncGenerator[Any, Any]:
    async with contextlib.aclosing(source):
        try:
            item = await anext(source)
            while True:
                try:
                    sent = yield _each(_encoded, item)
                except Exception as error:
                    item = await source.athrow(error)
                else:
                    item = await source.asend(_each(_decoded, sent))
        except StopAsyncIteration:
            return


def _arguments(
    args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return (
        tuple(_each(_decoded, value) for value in args),
        {name: _each(_decoded, value) for name, value in kwargs.items()},
    )


def _each(change: Callable[[Any], Any], value: Any) -> Any:
    """The value changed, or else, if it is a container, what it holds."""
    changed = change(value)
    if changed is not value:
        return changed
    if type(value) is dict:
        return {key: change(item) for key, item in value.items()}
    if type(value) is list or type(value) is tuple:
        return type(value)(map(change, value))
    return value


def _decoded(value: Any) -> Any:
    if type(value) is not tuple:
        return value
    if _tagged(value, _ARRAY, 4):
        return to_array(value)
    if _tagged(value, _ARROW, 2):
        return to_arrow(value)
    return value


def _encoded(value: Any) -> Any:
    if _is_a(value, "numpy", "ndarray"):
        return _array_or_list(value)
    if _is_a(value, "pyarrow", "Table", "RecordBatch"):
        return from_arrow(value)
    return value


def _array_or_list(array: Any) -> Any:
    return from_array(array) if _has_term(array.dtype) else plain_numbers(array)


# ---------------------------------------------------------------------------------------------------------------------
# Terms


def _imported(name: str) -> Any:
    return importlib.import_module(name)  # which waits for another thread that is about it


def _is_a(value: Any, module: str, *names: str) -> bool:
    """Whether it is of one of these classes; who has such a value has imported the module that it is of."""
    loaded = sys.modules.get(module)
    if loaded is None:
        return False
    return any(isinstance(value, getattr(loaded, name, ())) for name in names)


def _tagged(term: Any, tag: str, size: int) -> bool:
    return type(term) is tuple and len(term) == size and type(term[0]) is Atom and term[0] == tag


def _data(value: Any) -> Data:
    """The bytes of a term's binary. A plain binary that happens to be UTF-8 arrives as text, which is undone."""
    if isinstance(value, str) and not isinstance(value, Atom):
        return value.encode()
    if isinstance(value, tuple) and len(value) == 2 and value[0] == _BYTES:
        value = value[1]  # a term that was made here and has not been sent
    if isinstance(value, memoryview):
        return value.cast("B")
    if isinstance(value, (bytes, bytearray)):
        return value
    raise TypeError(f"the items are a binary, not {_short(value)}")


def _short(value: Any) -> str:
    text = repr(value) if isinstance(value, (int, str, bytes)) and _is_small(value) else ""
    return text or f"a {type(value).__name__}"


def _is_small(value: Any) -> bool:
    return value.bit_length() <= 128 if isinstance(value, int) else len(value) <= 40
