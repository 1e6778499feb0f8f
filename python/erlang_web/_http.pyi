"""The native server: what it needs of Python is an asyncio loop."""

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from typing import Any, final

_Event = MutableMapping[str, Any]
_Application = Callable[
    [
        MutableMapping[str, Any],
        Callable[[], Awaitable[_Event]],
        Callable[[_Event], Awaitable[None]],
    ],
    Awaitable[None],
]

class ClientDisconnected(OSError):
    """send() after the client has gone. An application may let it pass."""

@final
class Service:
    """What the connections of one server share. Its call makes the protocol of a new connection.

    `apps` are (prefix, application, state): prefixes are "" or begin with a slash, the longest that fits counts; the
    state of an application's lifespan, if any, is copied into every scope. Limits are bytes, times are seconds.

    `access` is called for each request that was answered and each WebSocket that has ended, with client, method, target,
    version ("1.1"), status, bytes of the body or of the messages, seconds and the close code of a WebSocket.

    Raises:
        ValueError: a limit, a time or a prefix that makes no sense.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        apps: Sequence[tuple[str, _Application, dict[str, Any] | None]],
        *,
        scheme: str = "http",
        access: Callable[[str, str, str, str, int, int, float, int | None], None] | None = None,
        server_header: bytes | str = b"sidewinder",
        max_line: int = 8192,
        max_head: int = 65536,
        max_headers: int = 128,
        max_body: int = 0,
        max_message: int = 16777216,
        head_seconds: float = 10.0,
        idle_seconds: float = 5.0,
        body_seconds: float = 30.0,
        ping_seconds: float = 20.0,
        compress: bool = True,
        proxy_protocol: bool = False,
    ) -> None: ...
    def __call__(self) -> asyncio.BufferedProtocol: ...
    def sweep(self) -> None:
        """To be called once a second: cuts off who is late, sends pings."""
    def drain(self) -> None:
        """Idle connections close, the others after their answer, WebSockets with 1012."""
    def abort(self) -> None:
        """Closes what is left, unsent bytes and all."""
    def stats(self) -> dict[str, int]:
        """connections, requests and websockets now; requests_total, refused_total, bytes_in_total, bytes_out_total."""
