"""What the package asks for its native half: the node's own module, or a stand-in of `erlang.testing`."""

from __future__ import annotations

from typing import Any

from erlang import _native

__all__ = ["native"]

native: Any = _native
