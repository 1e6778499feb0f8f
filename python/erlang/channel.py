"""Channels: streams of messages between Erlang and Python, with back-pressure in both directions.

A channel is made in Erlang (`py_channel:new/0,1,2`, `py_byte_channel:new/0,1,2`) and arrives here as a pid. Any number of
threads and coroutines may receive from one; each message goes to exactly one of them, and who waits is served in order.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncIterator, Callable, Iterator
from types import TracebackType
from typing import Any, TypeVar

from erlang import _backend, _native
from erlang.exceptions import ByteChannelClosed, ChannelClosed
from erlang.terms import Pid

__all__ = ["ByteChannel", "ByteChannelClosed", "Channel", "ChannelClosed", "reply"]

_Self = TypeVar("_Self", bound="_Base")
_NOTHING = _native.NOTHING


def _finish(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def reply(pid: Pid, term: object) -> None:
    """Send `term` to an Erlang process, as `erlang.send` does."""
    _backend.native.send(pid, term)


class _Base(_native.Channel):
    __slots__ = ()

    def __enter__(self: _Self) -> _Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    async def __aenter__(self: _Self) -> _Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.pid}{' closed' if self.closed else ''}>"

    @staticmethod
    async def _turn(
        queue_up: Callable[[Callable[[], object]], _native.Turn | None]
    ) -> _native.Turn | None:
        """Waits for its turn in the queue; None when it is better to try again at once."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[None] = loop.create_future()
        if _native.wakes_in(loop):

            def wake() -> object:
                _finish(future)
                return None

        else:

            def wake() -> object:
                return loop.call_soon_threadsafe(_finish, future)

        turn = queue_up(wake)
        if turn is not None:
            try:
                await future
            except BaseException:
                turn.leave()  # a message that was meant for us is the next one's
                raise
        return turn

    async def _receive(self) -> Any:
        value = self._take()
        while value is _NOTHING:
            value = self._take(await self._turn(self._wait))
        return value

    async def _send(self, term: object) -> None:
        while size := self._try_send(term):
            turn = await self._turn(functools.partial(self._room, size))
            if turn is not None:
                turn.leave()

    def _room(self, size: int, wake: Callable[[], object]) -> _native.Turn | None:
        return self._wait_for_room(wake, size)

    async def __anext__(self) -> Any:
        try:
            return await self._receive()
        except ChannelClosed:
            raise StopAsyncIteration from None


class Channel(_Base):
    """A channel of terms. `binary` says what binaries become: 'auto', 'str' or 'bytes'.

    Iteration, plain or asynchronous, ends when the channel is closed and what was in it has been received.
    One that is no more is a closed and empty channel. Raises ValueError for a channel of another node.
    """

    __slots__ = ()

    def __iter__(self) -> Iterator[Any]:
        return self

    def __aiter__(self) -> AsyncIterator[Any]:
        return self

    def try_receive(self, default: Any = None) -> Any:
        """The next message, or `default` when there is none now. Raises ChannelClosed."""
        value = self._take()
        return default if value is _NOTHING else value

    async def async_receive(self) -> Any:
        """The next message. Raises ChannelClosed."""
        return await self._receive()

    def try_send(self, term: object) -> bool:
        """Send if there is room. Raises ChannelClosed."""
        return not self._try_send(term)

    async def async_send(self, term: object) -> None:
        """Send, waiting for room. Raises ChannelClosed."""
        await self._send(term)


class ByteChannel(_Base):
    """A channel of bytes, for bodies and files: what was sent as one binary is received as one `bytes`."""

    __slots__ = ()

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    def receive_bytes(self, timeout: float | None = None) -> bytes:
        """The next bytes. Raises TimeoutError, ByteChannelClosed."""
        value: bytes = self.receive(timeout)
        return value

    def try_receive_bytes(self) -> bytes | None:
        """The next bytes, or None when there are none now. Raises ByteChannelClosed."""
        value = self._take()
        return None if value is _NOTHING else value

    def receive_view(self, timeout: float | None = None) -> memoryview:
        """The next bytes where they lie, without a copy: read-only, and held as long as the view is.

        Raises TimeoutError, ByteChannelClosed.
        """
        return self._receive_view(timeout)

    def try_receive_view(self) -> memoryview | None:
        """The next bytes as a view, or None when there are none now. Raises ByteChannelClosed."""
        value = self._take_view()
        return None if value is _NOTHING else value

    async def async_receive_view(self) -> memoryview:
        """The next bytes as a view. Raises ByteChannelClosed."""
        value = self._take_view()
        while value is _NOTHING:
            value = self._take_view(await self._turn(self._wait))
        view: memoryview = value
        return view

    async def async_receive_bytes(self) -> bytes:
        """The next bytes. Raises ByteChannelClosed."""
        value: bytes = await self._receive()
        return value

    def send_bytes(self, data: bytes, timeout: float | None = None) -> None:
        """Send, waiting for room. Raises TimeoutError, ByteChannelClosed."""
        self.send(data, timeout)

    def try_send_bytes(self, data: bytes) -> bool:
        """Send if there is room. Raises ByteChannelClosed."""
        return not self._try_send(data)

    async def async_send_bytes(self, data: bytes) -> None:
        """Send, waiting for room. Raises ByteChannelClosed."""
        await self._send(data)
