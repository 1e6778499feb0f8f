"""Server: applications behind sockets, from their import to the end of their last request.

    start   import ──▶ bind ──▶ lifespan.startup ──▶ listen          stop   close ──▶ drain ──▶ abort ──▶ lifespan.shutdown

A port is bound first, so that one that is taken is told before an application has begun, and listened on last, so that nobody
is accepted who would have to wait.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import dataclasses
import errno
import logging
import os
import socket
import ssl
import stat
import time
from collections.abc import Sequence
from typing import Any

from erlang_web import _apps
from erlang_web._apps import ASGIApplication
from erlang_web._http import Service
from erlang_web._lifespan import Lifespan, LifespanError
from erlang_web._wsgi import WsgiAdapter

_log = logging.getLogger("erlang_web")
_access = logging.getLogger("erlang_web.access")

_ON_ITS_WAY = 0.05  # seconds for a request that was sent before its client could know of the end
_LOOK = 0.02  # seconds between looks at a server that drains


class ServerError(Exception):
    """A server that cannot start: one line that begins with the setting at fault."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Mount:
    """An application, and the paths that are its own: those below `prefix`, all if that is empty."""

    prefix: str
    target: str  # module:attribute, or module:factory()
    interface: str = "auto"  # or asgi, wsgi


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What a server serves, where, and within which limits. Each is described in docs/configuration.md."""

    mounts: Sequence[Mount]
    bind: Sequence[str] = ("127.0.0.1:8000",)  # host:port, [address]:port, :port, unix:/path
    interface: str = "auto"  # of the mounts that say auto
    lifespan: str = "auto"  # or on, off
    tls_cert: str = ""
    tls_key: str = ""
    access_log: bool = False
    proxy_protocol: bool = False
    backlog: int = 2048
    server_header: str = "sidewinder"
    max_line: int = 8192
    max_head: int = 65536
    max_headers: int = 128
    max_body: int = 0
    max_message: int = 16 * 1024 * 1024
    head_seconds: float = 10.0
    idle_seconds: float = 5.0
    body_seconds: float = 30.0
    ping_seconds: float = 20.0
    compress: bool = True
    wsgi_threads: int = 8


@dataclasses.dataclass
class _App:
    mount: Mount
    app: ASGIApplication
    lifespan: Lifespan | None


class Server:
    """A web server on the running loop: start() once, then stop() once."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.addresses: list[str] = []  # host:port or unix:/path, of what it listens on
        self._threads = concurrent.futures.ThreadPoolExecutor(
            options.wsgi_threads, thread_name_prefix="wsgi"
        )
        self._apps: list[_App] = []
        self._adapters: list[WsgiAdapter] = []
        self._sockets: list[socket.socket] = []
        self._paths: dict[str, tuple[int, int]] = {}  # of Unix sockets, with device and inode
        self._tls: _Certificate | None = None
        self._service: Service | None = None
        self._servers: list[asyncio.Server] = []
        self._sweeping: asyncio.TimerHandle | None = None

    async def start(self) -> None:
        """Returns when requests are accepted.

        Raises: ServerError with one line that names the setting.
        """
        try:
            self._load()
            if self.options.tls_cert or self.options.tls_key:
                self._tls = _Certificate(self.options.tls_cert, self.options.tls_key)
            for address in self.options.bind:
                await self._bind(address)
            for one in self._apps:
                await self._startup(one)
            await self._listen()
        except BaseException:
            await self.stop(0)
            raise
        self._sweep()

    async def stop(self, grace: float) -> None:
        """Accepts nobody any more, lets requests end within `grace` seconds, cuts off the others, ends the applications."""
        until = time.monotonic() + grace
        for server in self._servers:
            server.close()
        self._release()
        if self._service is not None:
            if grace > 0 and self._service.stats()["connections"] > 0:
                await asyncio.sleep(min(grace, _ON_ITS_WAY))
            self._service.drain()
            await self._drained(self._service, until)
        if self._sweeping is not None:
            self._sweeping.cancel()
        for one in reversed(self._apps):
            if one.lifespan is not None:
                await one.lifespan.shutdown(max(1.0, until - time.monotonic()))
        self._apps.clear()
        self._threads.shutdown(wait=False, cancel_futures=True)

    def stats(self) -> dict[str, int]:
        """Counters since the start, and what there is now."""
        return self._service.stats() if self._service is not None else {}

    @property
    def stuck(self) -> int:
        """How many threads are in WSGI applications."""
        return sum(adapter.running for adapter in self._adapters)

    # --- applications -----------------------------------------------------------------------------

    def _load(self) -> None:
        if not self.options.mounts:
            raise ServerError("serve: there is no application")
        for mount in self.options.mounts:
            setting = "mount" if mount.prefix else "serve"
            if mount.prefix and (not mount.prefix.startswith("/") or mount.prefix.endswith("/")):
                raise ServerError(f"mount: '{mount.prefix}' does not begin, or ends, with a /")
            if any(mount.prefix == other.mount.prefix for other in self._apps):
                raise ServerError(f"{setting}: there are two applications at '{mount.prefix}'")
            try:
                self._apps.append(self._app(mount))
            except _apps.AppError as error:
                raise ServerError(f"{setting}: {error}") from error

    def _app(self, mount: Mount) -> _App:
        found = _apps.load(mount.target)
        interface = self.options.interface if mount.interface == "auto" else mount.interface
        kind = _apps.kind(found, interface, mount.target)
        if kind == "wsgi":
            adapter = WsgiAdapter(found, self._threads)
            self._adapters.append(adapter)
            return _App(mount, adapter, None)
        app = _apps.asgi2(found) if kind == "asgi2" else found
        mode = self.options.lifespan
        return _App(mount, app, None if mode == "off" else Lifespan(app, mode))

    async def _startup(self, one: _App) -> None:
        if one.lifespan is None:
            return
        try:
            await one.lifespan.startup()
        except LifespanError as error:
            raise ServerError(f"lifespan: '{one.mount.target}' did not start: {error}") from error

    # --- sockets ----------------------------------------------------------------------------------

    async def _bind(self, address: str) -> None:
        try:
            if address.startswith("unix:"):
                self._bind_path(address.removeprefix("unix:"))
            else:
                await self._bind_name(address)
        except OSError as error:
            told = error.strerror or str(error)
            raise ServerError(f"bind: cannot listen on '{address}': {told}") from error

    async def _bind_name(self, address: str) -> None:
        host, port = _split(address)
        loop = asyncio.get_running_loop()
        found = await loop.getaddrinfo(
            host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        for family, kind, protocol, _, where in dict.fromkeys(found):
            try:
                made = socket.socket(family, kind, protocol)
            except OSError as error:
                if error.errno == errno.EAFNOSUPPORT and not host:  # no IPv6 here
                    continue
                raise
            self._sockets.append(made)
            made.setblocking(False)
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            made.bind(where)

    def _bind_path(self, path: str) -> None:
        """One that a server left which has ended is replaced, one that somebody listens on is not."""
        made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._sockets.append(made)
        made.setblocking(False)
        with contextlib.suppress(FileNotFoundError):
            if stat.S_ISSOCK(os.stat(path).st_mode):
                with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
                    if probe.connect_ex(path) == errno.ECONNREFUSED:
                        os.unlink(path)
        made.bind(path)
        own = os.stat(path)
        self._paths[path] = (own.st_dev, own.st_ino)

    async def _listen(self) -> None:
        loop = asyncio.get_running_loop()
        tls = self._tls.context if self._tls is not None else None
        service = self._service = self._make_service(loop)
        scheme = "https" if tls is not None else "http"
        for one in self._sockets:
            try:
                server = await loop.create_server(
                    service,
                    sock=one,
                    ssl=tls,
                    backlog=self.options.backlog,
                    ssl_handshake_timeout=self.options.head_seconds if tls is not None else None,
                )
            except OSError as error:
                raise ServerError(
                    f"bind: cannot listen on '{_name(one)}': {error.strerror}"
                ) from error
            self._servers.append(server)
            self.addresses.append(_name(one))
            where = _name(one) if one.family == socket.AF_UNIX else f"{scheme}://{_name(one)}"
            _log.info("serving on %s", where)
        self._sockets.clear()

    def _make_service(self, loop: asyncio.AbstractEventLoop) -> Service:
        options = self.options
        return Service(
            loop,
            [
                (
                    one.mount.prefix,
                    one.app,
                    one.lifespan.state if one.lifespan is not None else None,
                )
                for one in self._apps
            ],
            scheme="https" if self._tls is not None else "http",
            access=_log_access if options.access_log else None,
            server_header=options.server_header.encode("latin-1"),
            max_line=options.max_line,
            max_head=options.max_head,
            max_headers=options.max_headers,
            max_body=options.max_body,
            max_message=options.max_message,
            head_seconds=options.head_seconds,
            idle_seconds=options.idle_seconds,
            body_seconds=options.body_seconds,
            ping_seconds=options.ping_seconds,
            compress=options.compress,
            proxy_protocol=options.proxy_protocol,
        )

    def _release(self) -> None:
        """What was bound: nobody listens on it any more."""
        for one in self._sockets:
            one.close()
        self._sockets.clear()
        for path, own in self._paths.items():
            with contextlib.suppress(OSError):
                found = os.stat(path)
                if (found.st_dev, found.st_ino) == own:  # not that of a server that came after us
                    os.unlink(path)
        self._paths.clear()

    # --- while it runs ----------------------------------------------------------------------------

    def _sweep(self) -> None:
        assert self._service is not None, "only a server that listens is swept"
        self._sweeping = asyncio.get_running_loop().call_later(1.0, self._sweep)
        self._service.sweep()
        if self._tls is not None:
            self._tls.look()

    async def _drained(self, service: Service, until: float) -> None:
        while service.stats()["connections"] > 0:
            if time.monotonic() >= until:
                left = service.stats()
                if left["requests"] or left["websockets"]:
                    _log.warning(
                        "stopping with %d requests and %d WebSockets unfinished",
                        left["requests"],
                        left["websockets"],
                    )
                service.abort()
                await asyncio.sleep(0)  # applications see that their clients have gone
                return
            await asyncio.sleep(_LOOK)


class _Certificate:
    """The context of TLS, with files that are read anew when they change."""

    def __init__(self, cert: str, key: str) -> None:
        if not cert or not key:
            missing = "web-tls-key" if cert else "web-tls-cert"
            raise ServerError(f"{missing}: TLS takes both --web-tls-cert and --web-tls-key")
        self._cert, self._key = cert, key
        self._seen = self._state()
        try:
            self.context = self._read()
        except (OSError, ssl.SSLError) as error:
            raise ServerError(f"web-tls-cert: cannot use '{cert}' with '{key}': {error}") from error

    def _read(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_alpn_protocols(["http/1.1"])
        context.load_cert_chain(self._cert, self._key, password=_no_password)
        return context

    def _state(self) -> list[tuple[int, int, int] | None]:
        found: list[tuple[int, int, int] | None] = []
        for path in (self._cert, self._key):
            try:
                info = os.stat(path)
                found.append((info.st_mtime_ns, info.st_ino, info.st_size))
            except OSError:
                found.append(None)
        return found

    def look(self) -> None:
        """Later handshakes have what the files have now; files that do not fit together change nothing."""
        now = self._state()
        if now == self._seen:
            return
        self._seen = now
        try:
            self._read()  # in a context of their own first: a failure would leave half of them in ours
            self.context.load_cert_chain(self._cert, self._key, password=_no_password)
            _log.info("web-tls-cert: read anew")
        except (OSError, ssl.SSLError) as error:
            _log.error("web-tls-cert: the files have changed and cannot be used: %s", error)


def _no_password() -> str:
    raise ssl.SSLError("the key is encrypted")


def _split(address: str) -> tuple[str, int]:
    host, colon, port = address.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise ServerError(f"bind: '{address}': an IPv6 address stands in brackets")
    if not colon or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise ServerError(f"bind: '{address}' is neither HOST:PORT nor unix:PATH")
    return host, int(port)


def _name(one: socket.socket) -> str:
    where = one.getsockname()
    if one.family == socket.AF_UNIX:
        return f"unix:{where}"
    return f"[{where[0]}]:{where[1]}" if one.family == socket.AF_INET6 else f"{where[0]}:{where[1]}"


def _log_access(
    client: str,
    method: str,
    target: str,
    version: str,
    status: int,
    size: int,
    seconds: float,
    code: int | None,
) -> None:
    """A line of the common log format; behind it the seconds it took, and the close code of a WebSocket."""
    host = client.rpartition(":")[0] or client or "-"
    when = time.strftime("%d/%b/%Y:%H:%M:%S %z")
    line = f"{method} {target} HTTP/{version}".encode("unicode_escape").decode()
    line = line.replace('"', '\\"')
    closed = "" if code is None else f" {code}"
    _access.info('%s - - [%s] "%s" %d %d %.6f%s', host, when, line, status, size, seconds, closed)
