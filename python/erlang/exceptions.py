"""The exceptions this package raises, beside Python's own."""

from __future__ import annotations

from typing import Any

from erlang.terms import Atom

__all__ = [
    "BadReference",
    "BatchError",
    "ByteChannelClosed",
    "Cancelled",
    "ChannelClosed",
    "DecodeError",
    "ErlangError",
    "NoConnection",
    "NotAllowed",
    "Refused",
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


class Refused(Exception):
    """Raised in a call, it answers the caller with {error, reason}: `reason` is any term."""

    def __init__(self, reason: Any) -> None:
        super().__init__(reason)
        self.reason = reason


class NotAllowed(Refused):
    """The allow-list, or `--eval off`, keeps peers from calling `module.function`."""

    def __init__(self, module: str, function: str) -> None:
        super().__init__((Atom("not_allowed"), (module, function)))
        self.args = (module, function)
        self.module = module
        self.function = function

    def __str__(self) -> str:
        return f"peers may not call {self.module}.{self.function}"


class BadReference(Refused):
    """A peer's reference leads to no object of this node: `why` is `other_node`, `released` or `unknown`."""

    def __init__(self, why: str, text: str) -> None:
        super().__init__((Atom("bad_ref"), Atom(why)))
        self.args = (why, text)
        self.why = why
        self.text = text

    def __str__(self) -> str:
        return self.text


class DecodeError(ValueError):
    """These bytes are not one whole term with a Python value; the message says where and why."""


class ChannelClosed(Exception):
    """The channel is closed, and nothing is left in it."""


class ByteChannelClosed(ChannelClosed):
    """The byte channel is closed, and nothing is left in it."""


class BatchError(RuntimeError):
    """A function of `py_batch` did not return a list of as many results as there were items."""


class Cancelled(BaseException):
    """Raised inside a running function whose caller no longer waits for it; let it pass."""
