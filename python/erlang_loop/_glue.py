"""What the native core calls where Python says it best: messages, texts and warnings that have to be asyncio's own."""

from __future__ import annotations

import asyncio
import socket
import warnings
from asyncio import base_events, format_helpers, transports
from asyncio.log import logger
from typing import Any

# As socket.getaddrinfo() shows what libc says.
FAMILIES = {int(family): family for family in socket.AddressFamily}
KINDS = {int(kind): kind for kind in socket.SocketKind}


class DatagramBase(asyncio.Transport, asyncio.DatagramTransport):
    """What our datagram transports are: both, as asyncio's own."""

    __slots__ = ()


class WritePipeBase(transports._FlowControlMixin, asyncio.WriteTransport):
    """What the write ends of pipes are, as asyncio's own."""

    __slots__ = ()


def note(level: int, text: str, *arguments: Any) -> None:
    """Write to asyncio's log."""
    logger.log(level, text, *arguments)


def report_callback(loop: Any, handle: Any, error: BaseException) -> None:
    """Hand what a callback raised to the loop's exception handler."""
    options = {"debug": True} if _TAKES_DEBUG and loop.get_debug() else {}
    text = format_helpers._format_callback_source(handle._callback, handle._args, **options)
    context = {"message": f"Exception in callback {text}", "exception": error, "handle": handle}
    if handle._source_traceback:
        context["source_traceback"] = handle._source_traceback
    loop.call_exception_handler(context)


def report_slow(loop: Any, handle: Any, seconds: float) -> None:
    """Say that a callback held up the loop; debug mode only."""
    text = base_events._format_handle(handle)  # type: ignore[attr-defined]
    logger.warning("Executing %s took %.3f seconds", text, seconds)


def report_fatal(transport: Any, error: BaseException, message: str) -> None:
    """Tell of an error that ends a transport: quietly if it is the network's, else to the exception handler."""
    loop = transport._loop
    if isinstance(error, OSError):
        if loop.get_debug():
            logger.debug("%r: %s", transport, message, exc_info=error)
        return
    loop.call_exception_handler(
        {
            "message": message,
            "exception": error,
            "transport": transport,
            "protocol": transport.get_protocol(),
        }
    )


def warn_lost_writes() -> None:
    logger.warning("socket.send() raised exception.")


def unclosed(transport: Any) -> None:
    warnings.warn(f"unclosed transport {transport!r}", ResourceWarning, source=transport)


def transport_repr(transport: Any) -> str:
    """As asyncio writes its own: <Name fd=7 read=polling write=<idle, bufsize=0>>."""
    info = [type(transport).__name__]
    if transport._sock is None:
        info.append("closed")
    elif transport.is_closing():
        info.append("closing")
    info.append(f"fd={transport._sock_fd}")
    if transport._loop is not None and not transport._loop.is_closed():
        info.append("read=polling" if transport._polls_read() else "read=idle")
        state = "polling" if transport._polls_write() else "idle"
        info.append(f"write=<{state}, bufsize={transport.get_write_buffer_size()}>")
    return f"<{' '.join(info)}>"


def _takes_debug() -> bool:
    code = format_helpers._format_callback_source.__code__
    return "debug" in code.co_varnames


_TAKES_DEBUG = _takes_debug()


def set_result_unless_cancelled(future: asyncio.Future[Any], result: Any) -> None:
    if not future.cancelled():
        future.set_result(result)
