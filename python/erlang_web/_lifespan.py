"""Lifespan: tells an application that it starts and that it ends, as the ASGI specification says.

    server ── lifespan.startup ──▶ application ── startup.complete or startup.failed ──▶ server
    server ── lifespan.shutdown ─▶ application ── shutdown.complete or shutdown.failed ─▶ server

The application is called once and stays in that call as long as the server runs.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from erlang_web._apps import ASGIApplication, Message

_log = logging.getLogger("erlang_web")


class LifespanError(Exception):
    """An application that could not start, in one line."""


class Lifespan:
    """The lifespan of one application. `mode` is "auto" (an application that knows nothing of it is fine) or "on"."""

    def __init__(self, app: ASGIApplication, mode: str) -> None:
        self.state: dict[str, Any] = {}
        self._app = app
        self._mode = mode
        self._events: asyncio.Queue[Message] = asyncio.Queue()
        self._started = asyncio.Event()
        self._stopped = asyncio.Event()
        self._failure: str | None = None  # of the startup
        self._error: BaseException | None = None
        self._told = False  # that it failed, with the reason
        self._stopping = False
        self._over = False
        self._task: asyncio.Task[None] | None = None

    async def startup(self) -> None:
        """Returns when the application has started, or knows no lifespan.

        Raises: LifespanError with what startup.failed said, or, where the mode is "on", with what the application raised.
        """
        self._task = asyncio.create_task(self._run(), name="lifespan")
        self._events.put_nowait({"type": "lifespan.startup"})
        await self._started.wait()
        if self._failure is not None:
            await asyncio.wait([self._task], timeout=1)  # frameworks raise after they have said it
            raise LifespanError(self._failure or "the application could not start")
        if self._error is not None and self._mode == "on":
            what = f"{type(self._error).__name__}: {self._error}"
            raise LifespanError(" ".join(what.split()))

    async def shutdown(self, seconds: float) -> None:
        """Returns when the application has cleaned up, or the time is over; what fails is logged."""
        if self._task is None:
            return
        if not self._over:
            self._stopping = True
            self._events.put_nowait({"type": "lifespan.shutdown"})
            try:
                async with asyncio.timeout(seconds):
                    await self._stopped.wait()
                    await asyncio.wait([self._task])
            except TimeoutError:
                _log.error("lifespan: the application did not shut down within %.0f s", seconds)
        await self.cancel()

    async def cancel(self) -> None:
        """Ends the application's call, wherever it is."""
        if self._task is not None and not self._task.done():
            self._task.cancel()
            await asyncio.wait([self._task], timeout=1)

    async def _run(self) -> None:
        scope = {
            "type": "lifespan",
            "asgi": {"version": "3.0", "spec_version": "2.0"},
            "state": self.state,
        }
        try:
            await self._app(scope, self._events.get, self._send)
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            self._failed(error)
        finally:
            # One that just returns has nothing to say: that is no fault.
            self._over = True
            self._started.set()
            self._stopped.set()

    def _failed(self, error: BaseException) -> None:
        self._error = error
        if self._told:
            return  # it said itself what is wrong
        if self._started.is_set():
            _log.error("lifespan: the application ended", exc_info=error)
        elif self._mode == "on":
            _log.error("lifespan: the application did not start", exc_info=error)
        else:
            _log.debug("lifespan: not supported by the application (%r)", error)

    async def _send(self, message: Message) -> None:
        match message["type"]:
            case "lifespan.startup.complete" if not self._started.is_set():
                self._started.set()
            case "lifespan.startup.failed" if not self._started.is_set():
                self._failure = str(message.get("message", "")).strip()
                self._told = self._failure != ""
                if "\n" in self._failure:  # a traceback
                    _log.error("lifespan: %s", self._failure)
                    self._failure = self._failure.splitlines()[-1]
                self._started.set()
            case "lifespan.shutdown.complete" if self._stopping and not self._stopped.is_set():
                self._stopped.set()
            case "lifespan.shutdown.failed" if self._stopping and not self._stopped.is_set():
                _log.error(
                    "lifespan: the application failed to shut down: %s", message.get("message", "")
                )
                self._told = True
                self._stopped.set()
            case kind:
                raise RuntimeError(f"lifespan: {kind!r} is no message to be sent now")
