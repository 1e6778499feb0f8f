"""ErlangEventLoop: the native scheduler and transports under asyncio's own loop of Unix.

What happens once a connection or less often (connecting, serving, executors, subprocesses, name resolution) is asyncio's,
in the version that runs; what happens once a callback or a packet is native. See cnode/loop.
"""

from __future__ import annotations

import asyncio
import errno
import importlib
import os
import selectors
import socket
import sys
import threading
from asyncio import constants, events, trsock
from contextvars import Context
from types import ModuleType
from typing import Any

from erlang_loop._sockets import SocketCalls

# Linked into the node under a name of its own, as built-in modules have no packages; an extension module elsewhere.
_BUILT_IN = "_sidewinder_loop"


def _load_core() -> ModuleType:
    if _BUILT_IN not in sys.builtin_module_names:
        return importlib.import_module("erlang_loop._core")
    core = importlib.import_module(_BUILT_IN)
    sys.modules["erlang_loop._core"] = core
    return core


_core: Any = _load_core()

_DRIVER = "ERLANG_LOOP_DRIVER"  # what loops are driven by that are not told
_USED_UP = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


class _NoSelector(selectors.BaseSelector):
    """In the place of the selector that asyncio's base class wants: the core has one of its own."""

    def register(self, fileobj: Any, events: Any, data: Any = None) -> Any:
        raise RuntimeError("ErlangEventLoop has no selector: use add_reader and add_writer")

    def unregister(self, fileobj: Any) -> Any:
        raise KeyError(fileobj)

    def modify(self, fileobj: Any, events: Any, data: Any = None) -> Any:
        raise KeyError(fileobj)

    def select(self, timeout: float | None = None) -> list[Any]:
        return []

    def close(self) -> None:
        pass

    def get_map(self) -> dict[Any, Any]:
        return {}


class ErlangEventLoop(_core.Loop, SocketCalls):  # type: ignore[misc]
    """A complete asyncio event loop, native where it counts.

    `isolated=True` asks for a loop of its own even on a node's loop thread; outside a node every loop is its own.
    `driver` chooses how it waits: "epoll" in its own poll set, "asio" in an Asio io_context that watches that set; if it
    is None the environment's ERLANG_LOOP_DRIVER does, and else it is "epoll", the faster one.

    Raises OSError when there are no descriptors left, ValueError for an unknown driver.
    """

    def __new__(cls, *, isolated: bool = False, driver: str | None = None) -> ErlangEventLoop:
        if not isolated and cls is ErlangEventLoop and _node is not None and _node.here():
            return _node
        driver = driver or os.environ.get(_DRIVER)
        loop: ErlangEventLoop = super().__new__(cls, driver=driver)
        return loop

    def __init__(self, *, isolated: bool = False, driver: str | None = None) -> None:
        if hasattr(self, "isolated"):
            return  # the node's, which was there before
        self._ssock: socket.socket | None
        self._csock: socket.socket | None
        self._thread_id: int | None
        self.isolated = isolated
        super(_core.Loop, self).__init__(_NoSelector())
        self.slow_callback_duration = 0.1
        if type(self).time is not _core.Loop.time:  # a subclass with a clock of its own
            self._set_clock(self.time)

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "time":  # in the place of the loop's clock, as programs do that skip time
            self._set_clock(value)
        super().__setattr__(name, value)

    def __delattr__(self, name: str) -> None:
        super().__delattr__(name)
        if name == "time":
            self._set_clock(None if type(self).time is _core.Loop.time else self.time)

    def here(self) -> bool:
        """Whether this is the loop that runs in the calling thread."""
        return bool(self._thread_id == threading.get_ident())

    if hasattr(events, "_ThreadSafeHandle"):  # from Python 3.14

        def call_soon_threadsafe(
            self, callback: Any, *args: Any, context: Context | None = None
        ) -> Any:
            """call_soon() for any thread; cancelling the handle waits for a callback that runs."""
            self._check_closed()
            if self._debug:
                self._check_callback(callback, "call_soon_threadsafe")
            handle = getattr(events, "_ThreadSafeHandle")(callback, args, self, context)
            for _ in range(2):  # the frames of its constructor and of this method
                if handle._source_traceback:
                    del handle._source_traceback[-1]
            super().call_soon_threadsafe(handle._run)
            return handle

    # --- running

    def run_forever(self) -> None:
        """Run until stop() is called."""
        state = self._enter()
        try:
            self._run()
        finally:
            self._leave(state)

    def _enter(self) -> Any:
        self._check_closed()
        self._check_running()
        self._set_coroutine_origin_tracking(self._debug)
        hooks = sys.get_asyncgen_hooks()
        self._thread_id = threading.get_ident()
        sys.set_asyncgen_hooks(
            firstiter=self._asyncgen_firstiter_hook, finalizer=self._asyncgen_finalizer_hook
        )
        events._set_running_loop(self)
        return hooks

    def _leave(self, hooks: Any) -> None:
        self._stopping = False
        self._thread_id = None
        events._set_running_loop(None)
        self._set_coroutine_origin_tracking(False)
        sys.set_asyncgen_hooks(*hooks)

    def _run_once(self) -> None:
        """Pump one iteration: wait until there is something to do, and run what is ready."""
        self._pump(True)

    def step(self, blocking: bool = False) -> tuple[float | None, bool]:
        """Run one turn of the loop for a program that has a loop of its own.

        Returns the seconds until the next timer (0.0 if something is ready, None if nothing is planned) and whether the
        loop is idle, that is, has nothing to run before that time. Between steps, wait for `poll_fd()` to be readable
        for at most that long. With `blocking` the turn waits for something to do.

        Raises RuntimeError when the loop is closed or runs already.
        """
        self._pump(blocking)
        seconds: float | None = self._until_next()
        return seconds, seconds != 0

    def _pump(self, may_wait: bool) -> None:
        if self.is_running():  # as asyncio's own: a loop that runs may be turned from inside
            self._turn(may_wait)
            return
        state = self._enter()
        try:
            self._turn(may_wait)
        finally:
            self._leave(state)

    def close(self) -> None:
        """Close the loop; what waits to be run is dropped."""
        if self.is_running():
            raise RuntimeError("Cannot close a running event loop")
        if self.is_closed():
            return
        self._close_base()
        self._close_core()

    # By itself: at the end of the interpreter the module's names are gone before the last loop is.
    _close_base = asyncio.SelectorEventLoop.close

    # --- what the base class asks of its selector

    def _make_self_pipe(self) -> None:
        """Made when the first signal handler is: nothing else needs one."""
        self._ssock = self._csock = None
        self._internal_fds += 1

    def _close_self_pipe(self) -> None:
        self._internal_fds -= 1
        if self._ssock is None or self._csock is None:
            return
        if self._ssock.fileno() >= 0:  # the collector may have closed it before a forgotten loop
            self._remove_reader(self._ssock.fileno())
        self._ssock.close()
        self._csock.close()
        self._ssock = self._csock = None

    def add_signal_handler(self, sig: int, callback: Any, *args: Any) -> None:
        """Add a handler for a signal; main thread only.

        Raises ValueError and RuntimeError as asyncio's own loop.
        """
        if self._csock is None and threading.current_thread() is threading.main_thread():
            self._check_closed()
            self._ssock, self._csock = socket.socketpair()
            self._ssock.setblocking(False)
            self._csock.setblocking(False)
            self._add_reader(self._ssock.fileno(), self._read_from_self)
        if self._csock is None:  # says what asyncio says of other threads
            with socket.socket() as unused:
                self._csock = unused
                try:
                    super().add_signal_handler(sig, callback, *args)
                finally:
                    self._csock = None
            return
        super().add_signal_handler(sig, callback, *args)

    def _add_callback(self, handle: Any) -> None:
        if not handle._cancelled:
            self.call_soon(handle._run)

    def _ensure_fd_no_transport(self, fd: Any) -> None:
        fileno = fd
        if not isinstance(fileno, int):
            try:
                fileno = int(fileno.fileno())
            except (AttributeError, TypeError, ValueError):
                raise ValueError(f"Invalid file object: {fd!r}") from None
        transport = self._transport_of(fileno) or self._transports.get(fileno)
        if transport is not None and not transport.is_closing():
            raise RuntimeError(f"File descriptor {fd!r} is used by transport {transport!r}")

    # --- transports

    def _make_socket_transport(
        self, sock: Any, protocol: Any, waiter: Any = None, *, extra: Any = None, server: Any = None
    ) -> Any:
        return _core.StreamTransport(self, sock, protocol, waiter, extra, server)

    def _make_ssl_transport(
        self,
        rawsock: Any,
        protocol: Any,
        sslcontext: Any,
        waiter: Any = None,
        *,
        server_side: bool = False,
        server_hostname: Any = None,
        extra: Any = None,
        server: Any = None,
        ssl_handshake_timeout: float | None = None,
        ssl_shutdown_timeout: float | None = None,
    ) -> Any:
        tls = _core.SSLProtocol(
            self,
            protocol,
            sslcontext,
            waiter,
            server_side,
            server_hostname,
            ssl_handshake_timeout=ssl_handshake_timeout,
            ssl_shutdown_timeout=ssl_shutdown_timeout,
        )
        _core.StreamTransport(self, rawsock, tls, None, extra, server)
        return tls._app_transport

    async def start_tls(
        self,
        transport: Any,
        protocol: Any,
        sslcontext: Any,
        *,
        server_side: bool = False,
        server_hostname: str | None = None,
        ssl_handshake_timeout: float | None = None,
        ssl_shutdown_timeout: float | None = None,
    ) -> Any:
        """Go on with TLS on a connection; returns the transport that `protocol` uses from now on.

        What the StreamReader of a server has received and nobody has read begins the handshake.

        Raises TypeError for what is no SSLContext or cannot be upgraded, OSError for a handshake that fails.
        """
        import ssl

        if not isinstance(sslcontext, ssl.SSLContext):
            raise TypeError(
                f"sslcontext is expected to be an instance of ssl.SSLContext, got {sslcontext!r}"
            )
        if not getattr(transport, "_start_tls_compatible", False):
            raise TypeError(f"transport {transport!r} is not supported by start_tls()")
        waiter: Any = self.create_future()
        tls = _core.SSLProtocol(
            self,
            protocol,
            sslcontext,
            waiter,
            server_side,
            server_hostname,
            call_connection_made=False,
            ssl_handshake_timeout=ssl_handshake_timeout,
            ssl_shutdown_timeout=ssl_shutdown_timeout,
        )
        transport.pause_reading()  # until the handshake has begun
        if server_side and isinstance(protocol, asyncio.StreamReaderProtocol):
            reader: Any = getattr(protocol, "_stream_reader", None)
            if reader is not None and reader._buffer:
                tls._incoming.write(reader._buffer)
                reader._buffer.clear()
        transport.set_protocol(tls)
        made = self.call_soon(tls.connection_made, transport)
        resumed = self.call_soon(transport.resume_reading)
        try:
            await waiter
        except BaseException:
            transport.close()
            made.cancel()
            resumed.cancel()
            waiter = None
            raise
        return tls._app_transport

    def _accept_connection(
        self,
        protocol_factory: Any,
        sock: Any,
        sslcontext: Any = None,
        server: Any = None,
        backlog: int = 100,
        *rest: Any,
        **options: Any,
    ) -> None:
        if sslcontext is not None:
            super()._accept_connection(
                protocol_factory, sock, sslcontext, server, backlog, *rest, **options
            )
            return
        try:
            _core.accept_streams(self, protocol_factory, sock, server, backlog)
        except OSError as error:
            if error.errno not in _USED_UP:
                raise
            # Nothing else can be told, and the listener stays readable: try again in a while.
            self.call_exception_handler(
                {
                    "message": "socket.accept() out of system resource",
                    "exception": error,
                    "socket": trsock.TransportSocket(sock),
                }
            )
            self._remove_reader(sock.fileno())
            self.call_later(
                constants.ACCEPT_RETRY_DELAY,
                self._start_serving,
                protocol_factory,
                sock,
                sslcontext,
                server,
                backlog,
                *rest,
                **options,
            )

    async def _sendfile_native(self, transport: Any, file: Any, offset: int, count: Any) -> int:
        descriptor = transport._sock_fd
        resume = transport.is_reading()
        transport.pause_reading()
        await transport._make_empty_waiter()
        self._set_owner(descriptor, None)  # sock_sendfile watches it meanwhile
        try:
            sent: int = await self.sock_sendfile(
                transport._sock, file, offset, count, fallback=False
            )
            return sent
        finally:
            if transport._sock is not None:
                self._set_owner(descriptor, transport)
            transport._reset_empty_waiter()
            if resume:
                transport.resume_reading()


_node: ErlangEventLoop | None = None


def node_loop() -> ErlangEventLoop:
    """Make the loop of a node's loop thread: the node calls this once."""
    global _node
    _node = ErlangEventLoop(isolated=True)
    return _node
