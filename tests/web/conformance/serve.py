"""One server of one application, on a free port of the loopback; its first line says where: "at 40123".

    serve.py KIND MODULE:ATTRIBUTE [OPTIONS-AS-JSON]
    with uvicorn, uvicorn-h11, uvicorn-websockets, uvloop, granian, wsgiref, ours, ours-loop, server or program as KIND

"ours" is the native protocol on asyncio's own loop, "ours-loop" on ErlangEventLoop, "server" is erlang_web.Server, and
"program" is `sidewinder serve` (SIDEWINDER_BIN, or build/sidewinder), which says where in a line of its log. The options are those of erlang_web._http.Service; the others are given what they have of them. "wsgi": true
for an application of that kind.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import importlib
import json
import logging
import os
import signal
import socket
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[3]
Options = dict[str, Any]
PR_SET_PDEATHSIG = 1  # Linux


def imported(target: str) -> Any:
    module, name = target.split(":")
    return getattr(importlib.import_module(module), name)


def listener() -> socket.socket:
    listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listening.bind(("127.0.0.1", 0))
    return listening


def told(listening: socket.socket) -> None:
    print("at", listening.getsockname()[1], flush=True)


def uvicorn(kind: str, target: str, options: Options) -> None:
    from uvicorn import Config, Server

    config = Config(
        target,
        loop="uvloop" if kind == "uvloop" else "asyncio",
        http="h11" if kind == "uvicorn-h11" else "httptools",
        ws="websockets-sansio" if kind == "uvicorn-websockets" else "wsproto",
        interface="wsgi" if options.get("wsgi") else "auto",
        log_level="warning",
        access_log=False,
        timeout_keep_alive=int(options.get("idle_seconds", 5)),
        ws_max_size=options.get("max_message", 16777216),
        ws_ping_interval=options.get("ping_seconds", 20) or None,
        ws_per_message_deflate=options.get("compress", True),
        timeout_graceful_shutdown=2,
    )
    listening = listener()
    listening.listen(1024)
    told(listening)
    Server(config).run([listening])


def granian(target: str, options: Options) -> None:
    from granian.constants import Interfaces, Loops
    from granian.server import Server

    with listener() as probe:
        port = probe.getsockname()[1]
    server = Server(
        target,
        address="127.0.0.1",
        port=port,
        interface=Interfaces.WSGI if options.get("wsgi") else Interfaces.ASGI,
        loop=Loops.uvloop if options.get("uvloop") else Loops.asyncio,
        log_enabled=False,
        log_access=False,
        backlog=1024,
    )
    server.on_startup(lambda: print("at", port, flush=True))
    server.serve()


def wsgiref(target: str) -> None:
    from wsgiref.simple_server import WSGIRequestHandler, make_server

    class Handler(WSGIRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    server = make_server("127.0.0.1", 0, imported(target), handler_class=Handler)
    told(server.socket)
    server.serve_forever()


class Lifespan:
    """Just enough of it: what the native protocol leaves to its user."""

    def __init__(self, application: Any, state: dict[str, Any]) -> None:
        self.to_application: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.from_application: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        asgi = {"version": "3.0", "spec_version": "2.0"}
        scope = {"type": "lifespan", "asgi": asgi, "state": state}
        send = self.from_application.put
        self.task = asyncio.ensure_future(application(scope, self.to_application.get, send))

    async def tell(self, what: str) -> None:
        await self.to_application.put({"type": f"lifespan.{what}"})
        getting = asyncio.ensure_future(self.from_application.get())
        await asyncio.wait([getting, self.task], return_when=asyncio.FIRST_COMPLETED)
        getting.cancel()


async def native(target: str, options: Options) -> None:
    from erlang_web import _http

    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    application = imported(target)
    state: dict[str, Any] = {}
    lifespan = Lifespan(application, state)
    await lifespan.tell("startup")
    service = _http.Service(loop, [("", application, state)], **options)
    listening = listener()
    server = await loop.create_server(service, sock=listening, backlog=1024)
    told(listening)

    async def sweeping() -> None:
        while True:
            await asyncio.sleep(1)
            service.sweep()

    sweeper = loop.create_task(sweeping())
    await stop.wait()
    server.close()
    service.drain()
    deadline = loop.time() + 2
    while service.stats()["connections"] and loop.time() < deadline:
        await asyncio.sleep(0.02)
    service.abort()
    await asyncio.sleep(0)
    sweeper.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await sweeper
    await lifespan.tell("shutdown")


async def whole(target: str, options: Options) -> None:
    from erlang_web import Mount
    from erlang_web import Options as Settings
    from erlang_web import Server

    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    interface = "wsgi" if options.pop("wsgi", False) else "auto"
    mounts = [Mount(prefix="", target=target, interface=interface)]
    server = Server(Settings(mounts=mounts, bind=["127.0.0.1:0"], **options))
    await server.start()
    print("at", server.addresses[0].rpartition(":")[2], flush=True)
    await stop.wait()
    await server.stop(2)


def ours(kind: str, target: str, options: Options) -> None:
    factory = None
    if kind == "ours-loop":
        from erlang_loop import ErlangEventLoop

        factory = ErlangEventLoop
    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(whole(target, options) if kind == "server" else native(target, options))


def program(target: str, options: Options) -> None:
    """Becomes the program."""
    binary = os.environ.get("SIDEWINDER_BIN") or str(ROOT / "build" / "sidewinder")
    command = [binary, "serve", target, "--bind", "127.0.0.1:0", "--drain-timeout", "2"]
    command += ["--venv", sys.prefix]
    if options.pop("wsgi", False):
        command.append("--wsgi")
    for name, value in options.items():
        setting = "web-" + name.replace("_seconds", "_timeout").replace("_", "-")
        setting = "web-ping" if name == "ping_seconds" else setting
        text = ("on" if value else "off") if isinstance(value, bool) else f"{value:g}"
        command += [f"--{setting}", text]
    os.execv(binary, command)


def main() -> None:
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # none outlives its test
    kind, target, options = sys.argv[1], sys.argv[2], json.loads((sys.argv + ["{}"])[3])
    logging.basicConfig(level=logging.WARNING)
    if kind.startswith("uv"):
        uvicorn(kind, target, options)
    elif kind == "wsgiref":
        wsgiref(target)
    elif kind == "granian":
        granian(target, options)
    elif kind == "program":
        program(target, options)
    else:
        ours(kind, target, options)


if __name__ == "__main__":
    main()
