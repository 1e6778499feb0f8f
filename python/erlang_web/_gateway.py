"""The node's half of `py_asgi`: requests of a web server on the BEAM, answered by an application here.

    py_asgi ── py_link ──▶ request(…) ── scope, receive, send ──▶ the application
       ▲                      │  the call's result: the whole answer, where it is small and comes at once
       ├◀── {[alias|A], …} ───┤  else what happens meanwhile: the beginning of an answer, a body wanted, accept
       └──── {Verb, A, …} ───▶ the gateway, one process of the node: channels for bodies and frames; the client has gone

The call's own task runs the application, so a request costs one task. Bodies that are large or take their time go through
byte channels, which `py_asgi` makes when they are wanted; until there is one, no more than `INLINE` bytes wait here. Who
waits for an answer for long is monitored: its end, like `{gone, A}`, is the application's http.disconnect, and a moment
later its task is cancelled. All of this runs on the node's loop.

What is exchanged is written down in docs/protocol.md.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextvars
import functools
import logging
import re
from itertools import chain
from typing import Any
from urllib.parse import unquote

from erlang import _backend
from erlang.channel import ByteChannel, ByteChannelClosed, Channel, ChannelClosed
from erlang.terms import Atom, ImproperList, Pid, Ref
from erlang_web import _apps
from erlang_web._apps import ASGIApplication, Message, Receive, Scope, Send
from erlang_web._lifespan import Lifespan
from erlang_web._wsgi import WsgiAdapter

INLINE = 65536  # bytes of a body that travel in a call, or wait for a channel
FLUSH_SECONDS = 0.001  # until an answer that has begun is handed out, and twice that where the application goes on
SWEEP_SECONDS = 0.05  # an asker is monitored after one or two of these
MAX_WHOLE = 16777216  # bytes of an answer where nothing can be streamed
MAX_DENIAL = 1048576  # bytes of the answer that refuses a WebSocket
WSGI_THREADS = 32  # requests of WSGI applications that run at once
GRACE_SECONDS = 1.0  # from http.disconnect to the cancellation of the task

_log = logging.getLogger("erlang_web")

_ALIAS = [Atom("alias")]
_START = Atom("start")
_WHOLE = Atom("whole")
_MORE = Atom("more")
_ACCEPT = Atom("accept")
_PART = Atom("part")
_REST = Atom("rest")
_DONE = Atom("done")
_CUT = Atom("cut")
_TEXT = Atom("text")
_BINARY = Atom("binary")
_CLOSE = Atom("close")
_ASGI = {"version": "3.0", "spec_version": "2.4"}
_BODILESS = frozenset({204, 304})
_control_in = re.compile(rb"[\0\r\n]").search
# What nearly every request says, as text.
_TEXT_OF = {
    text.encode(): text
    for text in (
        "1.0",
        "1.1",
        "2",
        "GET",
        "HEAD",
        "POST",
        "PUT",
        "DELETE",
        "http",
        "https",
        "ws",
        "wss",
    )
}
_FAILED = 500, [(b"content-type", b"text/plain; charset=utf-8")], b"Internal Server Error"

# Method, path as sent, query, headers, HTTP version, scheme, client, server, prefix.
Head = tuple[
    bytes,
    bytes,
    bytes,
    list[tuple[bytes, bytes]],
    bytes,
    bytes,
    tuple[bytes, int] | None,
    tuple[bytes, int | None] | None,
    bytes,
]
Headers = list[tuple[bytes, bytes]]


class ClientGone(OSError):
    """What an application is told that sends to a client who has left."""


# --- applications -----------------------------------------------------------------------------------


class _Application:
    """One application, imported and started once."""

    __slots__ = ("call", "lifespan", "state")

    def __init__(self, call: ASGIApplication, lifespan: Lifespan | None) -> None:
        self.call = call
        self.lifespan = lifespan
        self.state = lifespan.state if lifespan is not None else {}


@functools.cache
def _wsgi_threads() -> concurrent.futures.ThreadPoolExecutor:
    return concurrent.futures.ThreadPoolExecutor(WSGI_THREADS, "wsgi")


_applications: dict[tuple[bytes, str], _Application] = {}
_loading: dict[tuple[bytes, str], asyncio.Task[_Application]] = {}


async def _application(target: bytes, interface: str) -> _Application:
    """The application of that name. Those who ask while it starts wait for the same start; one that failed is tried again."""
    key = target, interface
    task = _loading.get(key)
    if task is None:
        # Nobody's context: it lives longer than the request that happens to be the first.
        task = asyncio.get_running_loop().create_task(
            _load(target.decode(), interface), context=contextvars.Context()
        )
        _loading[key] = task
        task.add_done_callback(lambda task: _loaded(key, task))
    return await asyncio.shield(task)


def _loaded(key: tuple[bytes, str], task: asyncio.Task[_Application]) -> None:
    del _loading[key]
    if not task.cancelled() and task.exception() is None:
        _applications[key] = task.result()


async def _load(target: str, interface: str) -> _Application:
    value = await asyncio.to_thread(_apps.load, target)
    kind = _apps.kind(value, interface, target)
    if kind == "wsgi":
        return _Application(WsgiAdapter(value, _wsgi_threads()), None)
    call: ASGIApplication = value if kind == "asgi3" else _apps.asgi2(value)
    lifespan = Lifespan(_until_the_end(call), "auto")
    await lifespan.startup()
    return _Application(call, lifespan)


def _until_the_end(app: ASGIApplication) -> ASGIApplication:
    """The application's lifespan, which ends with the node: the loop's end cancels the task, and that is its shutdown."""

    async def call(scope: Scope, receive: Receive, send: Send) -> None:
        ending = False

        async def next_event() -> Message:
            nonlocal ending
            try:
                return await receive()
            except asyncio.CancelledError:
                if ending:
                    raise
                ending = True
                return {"type": "lifespan.shutdown"}

        async def told(message: Message) -> None:
            if not ending:
                await send(message)
            elif message["type"] == "lifespan.shutdown.failed":
                _log.error("lifespan: failed to shut down: %s", message.get("message", ""))

        await app(scope, next_event, told)

    return call


# --- the gateway process ------------------------------------------------------------------------------


class _Gateway:
    """The process that `py_asgi` talks to, the exchanges it knows, and the timer that has their askers monitored."""

    def __init__(self) -> None:
        self.new: dict[Ref, _Exchange] = {}
        self.seen: dict[Ref, _Exchange] = {}  # by one sweep
        self.old: dict[Ref, _Exchange] = {}  # monitored
        self._monitors: dict[Ref, _Exchange] = {}
        self._sweeping = False
        self._over: dict[_Request, None] = {}  # answered, and the application goes on
        self._looked_at: list[_Request] = []  # likewise, for a while already
        self._handing_over = False
        self._pid: Pid | None = None

    @functools.cached_property
    def there(self) -> bool:
        """Whether there can be such a process: a worker process of --processes has none."""
        try:
            return self.pid is not None
        except RuntimeError:
            return False

    @property
    def pid(self) -> Pid:
        """Raises: RuntimeError in a worker process."""
        if self._pid is None:
            self._pid = _backend.native.spawn_process(self._deliver, self._stopped)
        return self._pid

    def enter(self, alias: Ref, exchange: _Exchange) -> None:
        self.new[alias] = exchange
        if not self._sweeping and self.there:
            self._sweeping = True
            exchange.loop.call_later(SWEEP_SECONDS, self._sweep, exchange.loop)

    def leave(self, alias: Ref) -> None:
        if self.new.pop(alias, None) is None and self.seen.pop(alias, None) is None:
            exchange = self.old.pop(alias, None)
            if exchange is not None and exchange.monitor is not None:
                del self._monitors[exchange.monitor]
                _backend.native.demonitor(self.pid, exchange.monitor)

    def find(self, alias: Ref) -> _Exchange | None:
        return self.new.get(alias) or self.seen.get(alias) or self.old.get(alias)

    def _sweep(self, loop: asyncio.AbstractEventLoop) -> None:
        for alias, exchange in self.seen.items():
            self.old[alias] = exchange
            exchange.monitor = _backend.native.monitor(self.pid, exchange.caller)
            assert exchange.monitor is not None
            self._monitors[exchange.monitor] = exchange
        self.seen, self.new = self.new, {}
        self._sweeping = bool(self.seen)
        if self._sweeping:
            loop.call_later(SWEEP_SECONDS, self._sweep, loop)

    def answered(self, request: _Request) -> None:
        """Its answer is whole. Who does not return soon is not waited for; one timer for all of them."""
        self._over[request] = None
        if not self._handing_over:
            self._handing_over = True
            request.loop.call_later(FLUSH_SECONDS, self._hand_over, request.loop)

    def returned(self, request: _Request) -> None:
        self._over.pop(request, None)

    def _hand_over(self, loop: asyncio.AbstractEventLoop) -> None:
        for request in self._looked_at:
            if request in self._over:
                del self._over[request]
                request.hand_over()
        self._looked_at = list(self._over)
        self._handing_over = bool(self._over)
        if self._handing_over:
            loop.call_later(FLUSH_SECONDS, self._hand_over, loop)

    def _deliver(self, messages: list[Any]) -> None:
        for message in messages:
            try:
                self._take(message)
            except Exception:
                _log.exception("the gateway does not understand %r", message)

    def _take(self, message: Any) -> None:
        if message[0] == "DOWN":
            exchange = self._monitors.get(message[1])
            if exchange is not None:
                exchange.disconnect()
            return
        verb, alias, *rest = message
        exchange = self.find(alias)
        if exchange is not None:
            exchange.told(verb, *rest)
        elif rest and rest[0] is not None:  # a channel that came too late
            _backend.native.Channel(rest[0]).close()

    def _stopped(self, reason: Any) -> None:
        self._pid = None


_gateway = _Gateway()


class _Exchange:
    """What a request and a WebSocket have in common: who asks, and that it may go away."""

    # Defaults, so that a request costs no more than it says.
    monitor: Ref | None = None
    gone = False  # the client
    over = False  # the application has said all it has to say
    waiters: list[asyncio.Future[None]] = []  # never added to

    def __init__(self, caller: Pid, alias: Ref) -> None:
        self.caller = caller
        self.alias = alias
        self.loop = asyncio.get_running_loop()
        self.task = asyncio.current_task()

    def tell(self, *what: Any) -> None:
        """Sends to the asker, who may have gone: then it goes nowhere."""
        _backend.native.reply(self.caller, ImproperList(_ALIAS, self.alias), what)

    def told(self, verb: str, *rest: Any) -> None:
        self.disconnect()

    def disconnect(self) -> None:
        if not self.gone and not self.over:
            self.gone = True
            self.loop.call_later(GRACE_SECONDS, self._give_up)
            self.wake()

    def _give_up(self) -> None:
        if self.task is not None:
            self.task.cancel()

    async def news(self) -> None:
        """Waits until something has changed."""
        waiter = self.loop.create_future()
        if self.waiters:
            self.waiters.append(waiter)
        else:
            self.waiters = [waiter]
        await waiter

    def wake(self) -> None:
        if not self.waiters:
            return
        waiters, self.waiters = self.waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    def end(self) -> None:
        """The application has returned."""
        self.task = None
        self.over = True
        _gateway.leave(self.alias)
        self.wake()


# --- requests ----------------------------------------------------------------------------------------


class _Request(_Exchange):
    """One request and its answer: `receive` and `send` of the application."""

    upload: ByteChannel | None = None
    download: ByteChannel | None = None
    status = 0
    headers: Headers = []
    pending: list[bytes] = []  # of the answer's body; this one is never added to
    size = 0
    pulled = False  # a part of it is to be told without a channel
    parts = 0  # told like that
    started = False  # the asker has been told the status
    answer: Any = None
    timer: asyncio.TimerHandle | None = None

    def __init__(self, caller: Pid, alias: Ref, bodiless: bool, body: bytes | None) -> None:
        super().__init__(caller, alias)
        self.bodiless = bodiless
        self.body = body  # the request's, until it has been received; None: it comes in pieces
        self.uploading = body is None

    # the request's body

    async def receive(self) -> Message:
        if self.body is not None:
            body, self.body = self.body, None
            return {"type": "http.request", "body": body, "more_body": False}
        if self.uploading and not self.gone:
            return await self._receive_more()
        while not self.gone and not self.over:
            await self.news()
        return {"type": "http.disconnect"}

    async def _receive_more(self) -> Message:
        if self.upload is None:
            self.tell(_MORE, _gateway.pid)
            while self.upload is None:
                if self.gone or self.over:
                    return {"type": "http.disconnect"}
                await self.news()
        try:
            data = await self.upload.async_receive_bytes()
        except ByteChannelClosed:
            self.uploading = False
            self.disconnect()
            return {"type": "http.disconnect"}
        if data:
            return {"type": "http.request", "body": data, "more_body": True}
        self.uploading = False
        return {"type": "http.request", "body": b"", "more_body": False}

    # the answer

    async def send(self, message: Message) -> None:
        kind = message["type"]
        if self.gone:
            raise ClientGone("the client has gone")
        if kind == "http.response.body" and self.status and not self.over:
            body = b"" if self.bodiless else message.get("body", b"")
            if message.get("more_body", False):
                self._add(body)
                await self._go_on()
            elif self.started or self.size + len(body) > INLINE:
                self._add(body)
                await self._finish()
            else:
                self._whole(b"".join((*self.pending, body)) if self.pending else bytes(body))
        elif kind == "http.response.start" and not self.status:
            self.headers = _checked(message.get("headers", ()))
            self.status = int(message["status"])
            self.bodiless |= self.status in _BODILESS
        else:
            raise RuntimeError(f"{kind!r} is no message to be sent now")

    def _add(self, body: bytes) -> None:
        if body:
            if self.pending:
                self.pending.append(body)
            else:
                self.pending = [body]
            self.size += len(body)

    def _whole(self, body: bytes) -> None:
        """The answer goes out with the end of the call."""
        self.answer = self.status, self.headers, body
        self.over = True
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None
        _gateway.answered(self)
        self.wake()

    async def _go_on(self) -> None:
        """There will be more. What is little waits for it a moment: many answers in pieces are over at once."""
        if self.started:
            await self._flush()
        elif not _gateway.there:
            if self.size > MAX_WHOLE:
                raise RuntimeError(f"with --processes an answer has up to {MAX_WHOLE} bytes")
        elif self.size > INLINE:
            self._start()
            await self._flush()
        elif self.timer is None:
            self.timer = self.loop.call_later(FLUSH_SECONDS, self._start)

    async def _finish(self) -> None:
        if not self.started:
            if not _gateway.there:
                return self._whole(b"".join(self.pending))
            self._start()
        await self._flush()
        if self.download is not None:
            await self._write(b"")
            self.download.close()
            self.answer = _DONE
        else:
            self.answer = _REST, (self.parts, b"".join(self.pending))
            _gateway.answered(self)
        self.over = True
        self.wake()

    def hand_over(self) -> None:
        """The answer is whole but the application goes on: its asker does not wait for that."""
        if _gateway.there:
            self.tell(_WHOLE, self.answer)

    def _start(self) -> None:
        """The asker is told the status, and as much of the body as there is."""
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None
        self.started = True
        self.tell(_START, _gateway.pid, self.status, self.headers, self._first())

    def _first(self) -> bytes:
        """What is pending, up to INLINE bytes of it."""
        data = b"".join(self.pending)
        first = data[:INLINE]
        self.pending = [data[INLINE:]] if len(data) > INLINE else []
        self.size = len(data) - len(first)
        return first

    def _pull(self) -> None:
        """A node that is being stopped makes no channels: its asker takes one part after the other."""
        if self.pulled and self.size:
            self.pulled = False
            self.parts += 1
            self.tell(_PART, self._first())

    async def _flush(self) -> None:
        """Sends what is pending; without a channel no more than INLINE may be."""
        self._pull()
        while self.download is None and self.size > INLINE:
            await self.news()
            if self.gone:
                raise ClientGone("the client has gone")
        if self.download is not None:
            pending, self.pending, self.size = self.pending, [], 0
            for data in pending:
                for start in range(0, len(data), INLINE):
                    await self._write(data[start : start + INLINE])

    async def _write(self, data: bytes) -> None:
        assert self.download is not None
        try:
            if not self.download.try_send_bytes(data):
                await self.download.async_send_bytes(data)
        except ByteChannelClosed:
            self.disconnect()
            raise ClientGone("the client has gone") from None

    def told(self, verb: str, *rest: Any) -> None:
        if verb == "body":
            if rest[0] is None:  # none can be made: the node is being stopped
                self.disconnect()
            else:
                self.upload = ByteChannel(rest[0])
        elif verb == "pull":
            self.pulled = True
            if not self.over:
                self._pull()
        elif verb == "answer" and self.over:
            Channel(rest[0]).close()  # the rest is told with the end
        elif verb == "answer":
            self.download = ByteChannel(rest[0])
            if self.size <= INLINE:  # else somebody waits to write it
                for data in self.pending:
                    self.download.try_send_bytes(data)
                self.pending, self.size = [], 0
        else:
            self.disconnect()
        self.wake()

    def result(self, error: BaseException | None) -> Any:
        """What the call returns: whatever has not been told before."""
        self.end()
        if self.timer is not None:
            self.timer.cancel()
        _gateway.returned(self)
        if self.upload is not None:
            self.upload.close()
        if self.download is not None:
            self.download.close()
        if self.answer is not None:
            return self.answer
        if error is None and not self.gone:
            _log.error("the application returned without having answered")
        return _CUT if self.started else _FAILED


def _checked(headers: Any) -> Headers:
    """Headers as pairs of bytes. Raises ValueError, TypeError: nothing may smuggle in a line of its own."""
    pairs = [(name, value) for name, value in headers]
    if _control_in(b"".join(chain.from_iterable(pairs))):
        raise ValueError("a header with a control character in it")
    return pairs


async def request(
    target: bytes, interface: str, head: Head, body: bytes | None, caller: Pid, alias: Ref
) -> Any:
    """One HTTP request. Returns (status, headers, body), or how an answer ended whose beginning `caller` was told."""
    app = _applications.get((target, interface))
    if app is None:
        app = await _application(target, interface)
    method = head[0]
    exchange = _Request(caller, alias, method == b"HEAD", body)
    _gateway.enter(alias, exchange)
    scope = _scope(head, app)
    scope["type"] = "http"
    scope["method"] = _text(method)
    try:
        await app.call(scope, exchange.receive, exchange.send)
    except asyncio.CancelledError as error:
        if not exchange.gone:
            exchange.result(error)
            raise
        return exchange.result(error)
    except (Exception, SystemExit) as error:
        if not (exchange.gone and isinstance(error, ClientGone)):
            _log.error("the application raised", exc_info=error)
        return exchange.result(error)
    return exchange.result(None)


def _scope(head: Head, app: _Application) -> Scope:
    """What requests and WebSockets have in common."""
    _, raw_path, query, headers, version, scheme, client, server, root_path = head
    path = raw_path.decode("utf-8", "replace")
    scope: Scope = {
        "asgi": _ASGI,
        "http_version": _text(version),
        "scheme": _text(scheme),
        "path": unquote(path) if b"%" in raw_path else path,
        "raw_path": raw_path,
        "query_string": query,
        "root_path": unquote(root_path.decode()) if root_path else "",
        "headers": [[name.lower(), value] for name, value in headers],
        "client": _address(client),
        "server": _address(server),
        "extensions": {},
    }
    if app.lifespan is not None:
        scope["state"] = app.state.copy()
    return scope


def _text(data: bytes) -> str:
    return _TEXT_OF.get(data) or data.decode("latin-1")


def _address(address: tuple[bytes, Any] | None) -> tuple[str, Any] | None:
    return None if address is None else (address[0].decode("latin-1"), address[1])


# --- WebSockets --------------------------------------------------------------------------------------


class _Socket(_Exchange):
    """One WebSocket: `receive` and `send` of the application. Frames go through a channel of terms, both ways."""

    __slots__ = ("asked", "body", "channel", "closed", "denial", "headers", "size", "status")

    def __init__(self, caller: Pid, alias: Ref) -> None:
        super().__init__(caller, alias)
        self.asked = False  # the application has been told websocket.connect
        self.channel: Channel | None = None  # once accepted
        self.closed: tuple[int, str] | None = None
        self.status = 0  # of a refusal
        self.headers: Headers = []
        self.body: list[bytes] = []
        self.size = 0
        self.denial: Any = None

    async def receive(self) -> Message:
        if not self.asked:
            self.asked = True
            return {"type": "websocket.connect"}
        while self.channel is None and not self.gone and not self.over:
            await self.news()
        if self.closed is None:
            self.closed = 1006, ""
            if self.channel is not None:
                self.closed = None
                return await self._frame(self.channel)
        return {"type": "websocket.disconnect", "code": self.closed[0], "reason": self.closed[1]}

    async def _frame(self, channel: Channel) -> Message:
        try:
            frame = await channel.async_receive()
        except ChannelClosed:
            frame = _CLOSE, 1006, b""
        if frame[0] == "binary":
            return {"type": "websocket.receive", "bytes": frame[1]}
        if frame[0] == "text":
            return {"type": "websocket.receive", "text": frame[1].decode("utf-8", "replace")}
        if self.closed is None:
            self.closed = frame[1], frame[2].decode("utf-8", "replace")
        channel.close()
        return {"type": "websocket.disconnect", "code": self.closed[0], "reason": self.closed[1]}

    async def send(self, message: Message) -> None:
        kind = message["type"]
        if self.gone or self.closed is not None and self.channel is not None:
            raise ClientGone("the client has gone")
        if self.channel is not None and kind == "websocket.send":
            text = message.get("text")
            await self._put((_BINARY, message["bytes"]) if text is None else (_TEXT, text))
        elif self.channel is not None and kind == "websocket.close":
            await self.close(message.get("code", 1000), message.get("reason") or "")
        elif (
            self.channel is None
            and not self.over
            and kind == "websocket.accept"
            and not self.status
        ):
            headers = _checked(message.get("headers", ()))
            self.tell(_ACCEPT, _gateway.pid, message.get("subprotocol"), headers)
            while self.channel is None:
                if self.gone:
                    raise ClientGone("the client has gone")
                await self.news()
        elif self.channel is None and not self.over:
            self._deny(kind, message)
        else:
            raise RuntimeError(f"{kind!r} is no message to be sent now")

    def _deny(self, kind: str, message: Message) -> None:
        """A refusal, plain or with an answer of its own."""
        if kind == "websocket.close" and not self.status:
            self.denial = 403, [], b""
        elif kind == "websocket.http.response.start" and not self.status:
            self.headers = _checked(message.get("headers", ()))
            self.status = int(message["status"])
            return
        elif kind == "websocket.http.response.body" and self.status:
            self.body.append(message.get("body", b""))
            self.size += len(self.body[-1])
            if self.size > MAX_DENIAL:
                raise ValueError(f"the answer of a refusal is larger than {MAX_DENIAL} bytes")
            if message.get("more_body", False):
                return
            self.denial = self.status, self.headers, b"".join(self.body)
        else:
            raise RuntimeError(f"{kind!r} is no message to be sent now")
        self.over = True
        self.closed = 1006, ""
        if _gateway.there:
            self.tell(_WHOLE, self.denial)
        self.wake()

    async def _put(self, frame: tuple[Any, ...]) -> None:
        assert self.channel is not None
        try:
            await self.channel.async_send(frame)
        except ChannelClosed:
            raise ClientGone("the client has gone") from None

    async def close(self, code: int, reason: str) -> None:
        """Once; what the application is still to receive is the end."""
        assert self.channel is not None
        self.closed = code, reason
        try:
            await self._put((_CLOSE, code, reason))
        finally:
            self.channel.close()

    def told(self, verb: str, *rest: Any) -> None:
        if verb == "socket" and self.channel is None and not self.over:
            self.channel = Channel(rest[0], binary="bytes")
        else:
            self.disconnect()
        self.wake()

    async def result(self, error: BaseException | None) -> Any:
        """How it ended: refused, or done."""
        if self.channel is not None and self.closed is None:
            try:
                await self.close(1000 if error is None else 1011, "")
            except ClientGone:
                pass
        self.end()
        if self.channel is not None:
            return _DONE
        if self.denial is None and error is None and not self.gone:
            _log.error("the application returned without having accepted or refused a WebSocket")
        return _FAILED if self.denial is None else self.denial


async def websocket(
    target: bytes, interface: str, head: Head, protocols: list[bytes], caller: Pid, alias: Ref
) -> Any:
    """One WebSocket. Returns the answer of a refusal, or `done`."""
    app = _applications.get((target, interface))
    if app is None:
        app = await _application(target, interface)
    scope = _scope(head, app)
    scope["type"] = "websocket"
    scope["subprotocols"] = [each.decode("latin-1") for each in protocols]
    scope["extensions"] = {"websocket.http.response": {}}
    socket = _Socket(caller, alias)
    _gateway.enter(alias, socket)
    try:
        await app.call(scope, socket.receive, socket.send)
    except asyncio.CancelledError as error:
        result = await socket.result(error)
        if not socket.gone:
            raise
        return result
    except (Exception, SystemExit) as error:
        if not (socket.gone or socket.closed) or not isinstance(error, ClientGone):
            _log.error("the application raised", exc_info=error)
        return await socket.result(error)
    return await socket.result(None)


async def gone(alias: Ref) -> None:
    """The client has gone, before anything was heard of the request."""
    exchange = _gateway.find(alias)
    if exchange is not None:
        exchange.disconnect()


async def prepare(target: bytes, interface: str) -> bool:
    """Imports and starts an application, so that the first request need not wait for it."""
    await _application(target, interface)
    return True
