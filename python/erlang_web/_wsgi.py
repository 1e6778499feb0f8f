"""WSGI (PEP 3333) applications as ASGI applications.

    loop ── body, a chunk at a time ──▶ wsgi.input ──▶ ┌─ a thread ──┐ ──▶ status, headers, blocks ──▶ loop
                                                       │ application │
                                                       └─────────────┘

The application runs on one of a bounded number of threads and holds it until its iterable is closed. Bodies stream both
ways: a thread that reads waits for the client's next bytes, one that writes for the client to take what it has written.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextvars
import io
import logging
import threading
from collections.abc import Callable, Coroutine, Iterable, Iterator
from types import TracebackType
from typing import Any, Protocol, TypeVar
from urllib.parse import unquote_to_bytes

from erlang_web._apps import Message, Receive, Scope, Send

_log = logging.getLogger("erlang_web")

_T = TypeVar("_T")
Environ = dict[str, Any]
ExcInfo = tuple[type[BaseException], BaseException, TracebackType] | tuple[None, None, None]
Write = Callable[[bytes], object]
WSGIApplication = Callable[[Environ, Callable[..., Write]], Iterable[bytes]]

# Between the server and its client; an application has no say in them.
_HOP_BY_HOP = frozenset(
    "connection keep-alive proxy-authenticate proxy-authorization te trailer trailers transfer-encoding upgrade".split()
)
_BLOCK = 64 * 1024


class Disconnected(ConnectionResetError):
    """The client has gone, so there is nobody to read from or write to."""


class File(Protocol):
    """What wsgi.file_wrapper wraps."""

    def read(self, size: int, /) -> bytes:
        ...


class FileWrapper:
    """wsgi.file_wrapper: the blocks of a file, which is closed with it."""

    def __init__(self, filelike: File, blksize: int = _BLOCK) -> None:
        self.filelike = filelike
        self.blksize = blksize
        if hasattr(filelike, "close"):
            self.close = filelike.close

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        block = self.filelike.read(self.blksize)
        if not block:
            raise StopIteration
        return block


class _Errors(io.TextIOBase):
    """wsgi.errors: whole lines go to the log; flush() sends what is not one yet."""

    def __init__(self) -> None:
        self._line = ""

    def writable(self) -> bool:
        return True

    def write(self, text: str, /) -> int:
        *lines, self._line = (self._line + text).split("\n")
        for line in lines:
            self._tell(line)
        return len(text)

    def flush(self) -> None:
        line, self._line = self._line, ""
        self._tell(line)

    def _tell(self, line: str) -> None:
        if line:
            _log.getChild("wsgi").error("%s", line)


class _Bridge:
    """Lets the application's thread wait for what only the loop's may do."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._lock = threading.Lock()
        self._waiting: concurrent.futures.Future[Any] | None = None  # under the lock
        self._over = False  # under the lock

    def wait(self, coroutine: Coroutine[Any, Any, _T]) -> _T:
        """Thread. Raises: Disconnected once nobody waits for the answer."""
        with self._lock:
            if self._over:
                coroutine.close()
                raise Disconnected("the client has gone")
            self._waiting = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        try:
            result: _T = self._waiting.result()
            return result
        except (concurrent.futures.CancelledError, OSError) as error:
            raise Disconnected("the client has gone") from error

    def end(self) -> None:
        """Loop: who waits does so in vain."""
        with self._lock:
            self._over = True
            if self._waiting is not None:
                self._waiting.cancel()


class _Input:
    """wsgi.input: ends where the body does, however that is framed, and holds one chunk of it at most.

    Raises Disconnected (an OSError) from whatever reads when the client goes before the end of its body.
    """

    def __init__(self, bridge: _Bridge, receive: Receive, *, empty: bool) -> None:
        self._bridge = bridge
        self._receive = receive
        self._chunk = b""
        self._at = 0  # what is before it was taken
        self._ended = empty

    async def prefetch(self) -> None:
        """Loop: takes the whole body, which is known to be small."""
        parts = []
        while not self._ended:
            body, more = await self._next()
            parts.append(body)
            self._ended = not more
        self._chunk = b"".join(parts)

    async def _next(self) -> tuple[bytes, bool]:
        message = await self._receive()
        if message["type"] != "http.request":
            raise Disconnected("the client has gone before the end of its request")
        return message.get("body", b""), message.get("more_body", False)

    def _fill(self) -> bool:
        """Whether there is something to take."""
        while self._at == len(self._chunk) and not self._ended:
            body, more = self._bridge.wait(self._next())
            self._chunk, self._at, self._ended = body, 0, not more
        return self._at < len(self._chunk)

    def _take(self, end: int) -> bytes:
        taken = self._chunk[self._at : end]
        self._at += len(taken)
        return taken

    def read(self, size: int | None = -1, /) -> bytes:
        return self._read(size, lambda: len(self._chunk))

    def readline(self, size: int | None = -1, /) -> bytes:
        return self._read(size, lambda: self._chunk.find(b"\n", self._at) + 1, until=b"\n")

    def _read(self, size: int | None, end: Callable[[], int], until: bytes | None = None) -> bytes:
        """`end` says where in the chunk to stop; 0: not in this one."""
        left = -1 if size is None else size
        parts = []
        while left != 0 and self._fill():
            stop = end() or len(self._chunk)
            part = self._take(stop if left < 0 else min(stop, self._at + left))
            parts.append(part)
            left -= len(part) if left > 0 else 0
            if until is not None and part.endswith(until):
                break
        return b"".join(parts)

    def readlines(self, hint: int | None = -1, /) -> list[bytes]:
        lines: list[bytes] = []
        total = 0
        for line in self:
            lines.append(line)
            total += len(line)
            if hint is not None and 0 < hint <= total:
                break
        return lines

    def __iter__(self) -> Iterator[bytes]:
        return iter(self.readline, b"")


class _Answer:
    """What the application says, on its thread: start_response, write, and the blocks of its iterable."""

    def __init__(self, bridge: _Bridge, send: Send, method: str) -> None:
        self._bridge = bridge
        self._send = send
        self._head_only = method == "HEAD"
        self._start: dict[str, Any] | None = None
        self._sent = False  # the head
        self._length: int | None = None  # as the application announces it; what is left of it

    def start_response(
        self, status: str, headers: list[tuple[str, str]], exc_info: ExcInfo | None = None, /
    ) -> Write:
        if exc_info is not None:
            try:
                if self._sent and exc_info[1] is not None:
                    raise exc_info[1].with_traceback(exc_info[2])
            finally:
                exc_info = None
        elif self._start is not None:
            raise RuntimeError("start_response was called twice without exc_info")
        code = status[:3]
        if not (code.isascii() and code.isdigit() and len(code) == 3 and status[3:4] in ("", " ")):
            raise ValueError(f"the status {status!r} does not begin with three digits and a space")
        fields = [
            (name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in headers
        ]
        kept = [
            (name, value) for name, value in fields if name.decode("latin-1") not in _HOP_BY_HOP
        ]
        length = dict(kept).get(b"content-length")
        self._length = int(length) if length is not None else None
        self._start = {"type": "http.response.start", "status": int(code), "headers": kept}
        return self.write

    def write(self, block: bytes, /) -> None:
        """The imperative way: returns when the client has room for more."""
        self._bridge.wait(self._transmit(self._messages(block, more=True)))

    def run(self, blocks: Iterable[bytes]) -> list[Message]:
        """Sends what an application's iterable gives, but for the end, which is returned for the loop to send."""
        if not self._sent and isinstance(blocks, (list, tuple)) and len(blocks) == 1:
            self._complete(blocks[0])
            return self._messages(blocks[0], more=False)
        for block in blocks:
            if block:
                self._bridge.wait(self._transmit(self._messages(block, more=True)))
            if self._sent and self._head_only:
                break  # the rest would be for nobody
        return self._messages(b"", more=False)

    def _complete(self, block: bytes) -> None:
        """Of an answer in one piece the length is known."""
        if self._start is None or self._length is not None:
            return
        status = self._start["status"]
        if status >= 200 and status not in (204, 304):
            self._start["headers"].append((b"content-length", b"%d" % len(block)))

    def _messages(self, block: bytes, *, more: bool) -> list[Message]:
        if not isinstance(block, bytes):
            raise TypeError(f"an application gives bytes, not {type(block).__name__}")
        if self._start is None:
            raise RuntimeError("the application gave a body before it called start_response")
        if self._length is not None:  # what is beyond it would be taken for the next answer
            block = block[: self._length]
            self._length -= len(block)
        messages: list[Message] = [] if self._sent else [self._start]
        self._sent = True
        return [*messages, {"type": "http.response.body", "body": block, "more_body": more}]

    async def _transmit(self, messages: list[Message]) -> None:
        for message in messages:
            await self._send(message)


class WsgiAdapter:
    """An ASGI application that runs a WSGI application, on at most so many threads at once."""

    def __init__(self, app: WSGIApplication, threads: concurrent.futures.Executor) -> None:
        self._app = app
        self._threads = threads
        self._lock = threading.Lock()
        self._running = 0  # under the lock

    @property
    def running(self) -> int:
        """How many threads are in the application."""
        return self._running

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.close"})  # before it is accepted: refused
            return
        if scope["type"] != "http":
            raise RuntimeError(f"a WSGI application has no {scope['type']}")
        loop = asyncio.get_running_loop()
        bridge = _Bridge(loop)
        empty = not any(
            name in (b"content-length", b"transfer-encoding") for name, _ in scope["headers"]
        )
        body = _Input(bridge, receive, empty=empty)
        answer = _Answer(bridge, send, scope["method"])
        try:
            if 0 < _length_of(scope) <= _BLOCK:
                await body.prefetch()  # so that a slow client holds no thread
            environ = environ_of(scope, body)
            context = contextvars.copy_context()

            def job() -> list[Message]:
                return context.run(self._run, environ, answer)

            for message in await loop.run_in_executor(self._threads, job):
                await send(message)
        except Disconnected:
            _log.debug("a client has gone before it was answered")
        finally:
            bridge.end()

    def _run(self, environ: Environ, answer: _Answer) -> list[Message]:
        with self._lock:
            self._running += 1
        try:
            blocks = self._app(environ, answer.start_response)
            try:
                return answer.run(blocks)
            finally:
                if hasattr(blocks, "close"):
                    blocks.close()
        except (StopIteration, SystemExit, KeyboardInterrupt) as error:
            # Of these the first cannot leave through a future, and the others would end the loop.
            raise RuntimeError(f"the application raised {error!r}") from error
        finally:
            environ["wsgi.errors"].flush()
            with self._lock:
                self._running -= 1


def _length_of(scope: Scope) -> int:
    """Of the body, as announced; 0 if it is not, or if the client waits to be asked for it."""
    headers = dict(scope["headers"])
    length = headers.get(b"content-length", b"")
    return int(length) if length.isdigit() and b"expect" not in headers else 0


def environ_of(scope: Scope, body: _Input) -> Environ:
    """The environ of a request: texts hold bytes as latin-1, as PEP 3333 wants them."""
    script = scope.get("root_path", "").encode().decode("latin-1").rstrip("/")
    raw = scope.get("raw_path")
    path = unquote_to_bytes(raw) if raw is not None else scope["path"].encode()
    info = path.decode("latin-1")
    if script and (info == script or info.startswith(script + "/")):
        info = info[len(script) :]
    server = scope.get("server") or ("localhost", None)
    if server[1] is None:  # a Unix socket's
        server = ("localhost", 443 if scope.get("scheme") == "https" else 80)
    environ: Environ = {
        "REQUEST_METHOD": scope["method"],
        "SCRIPT_NAME": script,
        "PATH_INFO": info,
        "QUERY_STRING": scope["query_string"].decode("latin-1"),
        "SERVER_NAME": server[0],
        "SERVER_PORT": str(server[1]),
        "SERVER_PROTOCOL": f"HTTP/{scope['http_version']}",
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": scope.get("scheme", "http"),
        "wsgi.input": body,
        "wsgi.input_terminated": True,
        "wsgi.errors": _Errors(),
        "wsgi.file_wrapper": FileWrapper,
        "wsgi.multithread": True,
        "wsgi.multiprocess": False,
        "wsgi.run_once": False,
    }
    if scope.get("client"):
        environ["REMOTE_ADDR"] = scope["client"][0]
        environ["REMOTE_PORT"] = str(scope["client"][1])
    for name, value in scope["headers"]:
        # Of two that differ only in - and _ the application could not tell which one a proxy had checked; and HTTP_PROXY
        # is what programs started by the application take for their own setting.
        if b"_" in name or name == b"proxy":
            continue
        key = name.decode("latin-1").upper().replace("-", "_")
        if key not in ("CONTENT_TYPE", "CONTENT_LENGTH"):
            key = f"HTTP_{key}"
        text = value.decode("latin-1")
        if key in environ and key.startswith("HTTP_"):
            text = environ[key] + (";" if key == "HTTP_COOKIE" else ",") + text
        environ[key] = text
    return environ
