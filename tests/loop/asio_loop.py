"""ErlangEventLoop waiting in an Asio io_context, as a class without arguments: what tests want of a loop factory."""

from __future__ import annotations

from erlang_loop import ErlangEventLoop


class AsioLoop(ErlangEventLoop):
    def __new__(cls) -> AsioLoop:
        made = super().__new__(cls, driver="asio")
        assert isinstance(made, AsioLoop) and made.driver == "asio"
        return made

    def __init__(self) -> None:
        super().__init__(driver="asio")
