"""What `_gateway` needs of applications until `_apps`, `_lifespan` and `_wsgi` are there: ASGI 3 and lifespan, no more."""

from __future__ import annotations

import asyncio
import importlib
import logging
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

_log = logging.getLogger("erlang_web")

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
ASGIApplication = Callable[[Scope, Receive, Send], Awaitable[None]]


class AppError(Exception):
    """An application that cannot be had, in one line."""


def load(target: str) -> Any:
    """What `module:attribute` names. Raises: AppError."""
    module, _, name = target.partition(":")
    try:
        value: Any = importlib.import_module(module)
        for part in name.split("."):
            value = getattr(value, part)
    except Exception as error:
        raise AppError(f"'{target}': {type(error).__name__}: {error}") from error
    return value


def kind(app: Any, interface: str, target: str) -> str:
    """Raises: AppError for what is no ASGI application."""
    if interface == "wsgi" or not callable(app):
        raise AppError(f"'{target}' is no ASGI application")
    return "asgi3"


class Lifespan:
    """The lifespan of one application; one that knows nothing of it is fine."""

    def __init__(self, app: ASGIApplication, mode: str) -> None:
        self.state: dict[str, Any] = {}
        self._app = app
        self._events: asyncio.Queue[Message] = asyncio.Queue()
        self._started = asyncio.Event()
        self._failure: str | None = None
        self._task: asyncio.Task[None] | None = None

    async def startup(self) -> None:
        """Raises: AppError when the application says that it cannot start."""
        self._task = asyncio.create_task(self._run(), name="lifespan")
        self._events.put_nowait({"type": "lifespan.startup"})
        await self._started.wait()
        if self._failure is not None:
            raise AppError(self._failure or "the application could not start")

    async def _run(self) -> None:
        asgi = {"version": "3.0", "spec_version": "2.0"}
        scope = {"type": "lifespan", "asgi": asgi, "state": self.state}
        try:
            await self._app(scope, self._events.get, self._send)
        except Exception as error:
            _log.debug("lifespan: not supported by the application (%r)", error)
        finally:
            self._started.set()

    async def _send(self, message: Message) -> None:
        if message["type"] == "lifespan.startup.failed":
            self._failure = str(message.get("message", ""))
        self._started.set()
