"""The exceptions this package raises, beside Python's own."""

from __future__ import annotations

from typing import Any

__all__ = [
    "ByteChannelClosed",
    "Cancelled",
    "ChannelClosed",
    "DecodeError",
    "ErlangError",
    "NoConnection",
]


class ErlangError(RuntimeError):
    """A call to Erlang failed there: `kind` (`error`, `exit` or `throw`), `reason` and `stack`."""

    def __init__(self, kind: Any, reason: Any = None, stack: Any = None) -> None:
        super().__init__(kind, reason, stack)
        self.kind = kind
        self.reason = reason
        self.stack = stack

    def __str__(self) -> str:
        return f"{self.kind}: {self.reason!r}"


class NoConnection(ErlangError):
    """There is no peer to ask: none is connected, or the one that was named is not."""

    def __init__(self, reason: Any = "noconnection") -> None:
        super().__init__("error", reason)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.reason,)


class DecodeError(ValueError):
    """These bytes are not one whole term with a Python value; the message says where and why."""


class ChannelClosed(Exception):
    """The channel is closed, and nothing is left in it."""


class ByteChannelClosed(ChannelClosed):
    """The byte channel is closed, and nothing is left in it."""


class Cancelled(BaseException):
    """Raised inside a running function whose caller no longer waits for it; let it pass."""
