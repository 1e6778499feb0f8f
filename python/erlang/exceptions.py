"""The exceptions this package raises, beside Python's own."""

from __future__ import annotations

from typing import Any

from erlang.terms import Atom

__all__ = [
    "ByteChannelClosed",
    "Cancelled",
    "ChannelClosed",
    "DecodeError",
    "ErlangError",
    "NoConnection",
    "UnknownFunction",
]


class ErlangError(RuntimeError):
    """What was asked of Erlang failed there: `kind` (the class: `error`, `exit` or `throw`), `reason` and `stack` as terms.

    A process that was killed, or ended by a signal while it served the call, is kind `exit` with reason ('signal', why).
    """

    def __init__(self, kind: Any, reason: Any = None, stack: Any = None) -> None:
        super().__init__(kind, reason, stack)
        self.kind = kind
        self.reason = reason
        self.stack = stack if stack is not None else []

    def __str__(self) -> str:
        text = f"{self.kind}: {self.reason!r}"
        for entry in self.stack[:1] if isinstance(self.stack, list) else ():
            match entry:
                case (module, function, arity, _):
                    count = len(arity) if isinstance(arity, list) else arity
                    text += f" in {module}:{function}/{count}"
        return text


class UnknownFunction(ErlangError):
    """No function is registered under that name on the peer."""


class NoConnection(ErlangError):
    """There is no peer to ask: none is connected, or the one that was named is not."""

    def __init__(self, reason: Any = Atom("noconnection")) -> None:
        super().__init__(Atom("error"), reason)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.reason,), self.__dict__


class DecodeError(ValueError):
    """These bytes are not one whole term with a Python value; the message says where and why."""


class ChannelClosed(Exception):
    """The channel is closed, and nothing is left in it."""


class ByteChannelClosed(ChannelClosed):
    """The byte channel is closed, and nothing is left in it."""


class Cancelled(BaseException):
    """Raised inside a running function whose caller no longer waits for it; let it pass."""
