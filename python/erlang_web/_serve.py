"""The web server of the program: what cnode/main/web_server.cpp starts and stops, on the node's own loop."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from typing import Any

_log = logging.getLogger("erlang_web")


class Program:
    """A server whose fate is told by `told(what, value)`, on the loop:

    "serving"   None
    "failed"    one line that names the setting
    "stats"     Server.stats(), once a second
    "stopped"   how many threads are in applications still
    """

    def __init__(self, options: dict[str, Any], told: Callable[[str, object], None]) -> None:
        self._options = options
        self._told = told
        self._server: Any = None
        self._starting: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._telling: asyncio.TimerHandle | None = None

    def start(self) -> None:
        self._starting = self._task(self._start())

    def stop(self, grace: float) -> None:
        self._task(self._stop(grace))

    def _task(self, coroutine: Any) -> asyncio.Task[None]:
        task: asyncio.Task[None] = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _start(self) -> None:
        try:
            from erlang_web import Mount, Options, Server, ServerError
        except ImportError as error:
            return self._told("failed", f"serve: {error}")
        options = dict(self._options)
        mounts = [Mount(prefix=prefix, target=target) for prefix, target in options.pop("mounts")]
        try:
            server = Server(Options(mounts=mounts, **options))
            await server.start()
        except ServerError as error:
            return self._told("failed", str(error))
        except Exception as error:
            _log.error("the web server did not start", exc_info=error)
            return self._told("failed", f"serve: {type(error).__name__}: {error}")
        self._server = server
        self._tell()
        self._told("serving", None)

    def _tell(self) -> None:
        self._telling = asyncio.get_running_loop().call_later(1.0, self._tell)
        self._told("stats", self._server.stats())

    async def _stop(self, grace: float) -> None:
        stuck = 0
        try:
            if self._starting is not None and not self._starting.done():
                self._starting.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await self._starting
            if self._server is not None:
                await self._server.stop(grace)
                stuck = self._server.stuck
        except Exception as error:
            _log.error("the web server did not stop well", exc_info=error)
        finally:
            if self._telling is not None:
                self._telling.cancel()
            self._told("stopped", stuck)
