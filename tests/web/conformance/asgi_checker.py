"""A strict reading of the ASGI specification, put between a server and an application.

    server ── scope, receive, send ──▶ Checked(application) ── the same ──▶ application

What a server gives is looked at key by key and message by message; what is wrong is written to standard error, one
line each that begins with MARK, where the tests look for it after every server has ended. It checks servers: what an
application sends goes through as it is.
"""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any
from urllib.parse import unquote

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Any, Receive, Send], Awaitable[None]]

MARK = "ASGI VIOLATION:"
TOKEN = frozenset(b"!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyz")
SCHEMES = {"http": ("http", "https"), "websocket": ("ws", "wss")}
MAY_BE_MISSING = {
    "http": {"raw_path", "root_path", "client", "server", "state", "extensions", "scheme"},
    "websocket": {"raw_path", "root_path", "client", "server", "state", "extensions"},
}
KEYS = {
    "lifespan": {"type", "asgi", "state"},
    "http": {
        *("type", "asgi", "http_version", "method", "scheme", "path", "raw_path", "query_string"),
        *("root_path", "headers", "client", "server", "state", "extensions"),
    },
    "websocket": {
        *("type", "asgi", "http_version", "scheme", "path", "raw_path", "query_string"),
        *("root_path", "headers", "client", "server", "subprotocols", "state", "extensions"),
    },
}


def faults_of_scope(scope: Any) -> Iterable[str]:
    if type(scope) is not dict:
        yield f"the scope is a {type(scope).__name__}"
        return
    kind = scope.get("type")
    if kind not in KEYS:
        yield f"unknown type {kind!r}"
        return
    for key in scope.keys() - KEYS[kind]:
        yield f"{kind}: a key that the specification does not have: {key!r}"
    for key in KEYS[kind] - scope.keys() - MAY_BE_MISSING.get(kind, {"state"}):
        yield f"{kind}: no {key!r}"
    asgi = scope.get("asgi")
    if type(asgi) is not dict or not asgi.keys() <= {"version", "spec_version"}:
        yield f"{kind}: asgi is {asgi!r}"
    elif not all(type(value) is str for value in asgi.values()) or asgi.get("version") != "3.0":
        yield f"{kind}: asgi is {asgi!r}"
    if "state" in scope and type(scope["state"]) is not dict:
        yield f"{kind}: state is {scope['state']!r}"
    if kind != "lifespan":
        yield from faults_of_request(kind, scope)


def faults_of_request(kind: str, scope: dict[str, Any]) -> Iterable[str]:
    strings = ["http_version", "path", "root_path", "scheme"]
    strings += ["method"] if kind == "http" else []
    for key in strings:
        if key in scope and type(scope[key]) is not str:
            yield f"{key} is {scope[key]!r}"
            return
    if scope["http_version"] not in ("1.0", "1.1", "2"):
        yield f"http_version is {scope['http_version']!r}"
    if kind == "http" and scope["method"] != scope["method"].upper():
        yield f"method is {scope['method']!r}"
    if scope.get("scheme", SCHEMES[kind][0]) not in SCHEMES[kind]:
        yield f"scheme is {scope['scheme']!r}"
    if type(scope["query_string"]) is not bytes:
        yield f"query_string is {scope['query_string']!r}"
    raw = scope.get("raw_path")
    if raw is not None:
        if type(raw) is not bytes or b"?" in raw:
            yield f"raw_path is {raw!r}"
        elif unquote(raw.decode("latin-1")) != scope["path"] and raw.isascii():
            yield f"path is {scope['path']!r} beside raw_path {raw!r}"
    for name in ("client", "server"):
        yield from faults_of_address(name, scope.get(name))
    if kind == "websocket":
        protocols = scope["subprotocols"]
        if type(protocols) not in (list, tuple) or any(type(name) is not str for name in protocols):
            yield f"subprotocols is {protocols!r}"
    extensions = scope.get("extensions")
    if extensions is not None:
        if type(extensions) is not dict or any(type(v) is not dict for v in extensions.values()):
            yield f"extensions is {extensions!r}"
    yield from faults_of_headers(scope["headers"])


def faults_of_address(name: str, address: Any) -> Iterable[str]:
    if address is None:
        return
    if type(address) not in (list, tuple) or len(address) != 2 or type(address[0]) is not str:
        yield f"{name} is {address!r}"
    elif not (type(address[1]) is int or (name == "server" and address[1] is None)):
        yield f"{name} is {address!r}"


def faults_of_headers(headers: Any) -> Iterable[str]:
    if type(headers) not in (list, tuple):
        yield f"headers is a {type(headers).__name__}"
        return
    for pair in headers:
        if type(pair) not in (list, tuple) or len(pair) != 2:
            yield f"a header is {pair!r}"
        elif type(pair[0]) is not bytes or type(pair[1]) is not bytes:
            yield f"a header is {pair!r}"
        elif not pair[0] or not TOKEN.issuperset(pair[0]):
            yield f"the name of a header is {pair[0]!r}"
        elif pair[1] != pair[1].strip(b" \t") or set(pair[1]) & set(b"\r\n\0"):
            yield f"the value of a header is {pair[1]!r}"


REQUEST, DISCONNECT = "http.request", "http.disconnect"


class Incoming:
    """What one connection's receive may give next."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.began = False
        self.whole = False  # of the body
        self.over = False

    def faults(self, message: Any) -> Iterable[str]:
        if type(message) is not dict or type(message.get("type")) is not str:
            yield f"a message is {message!r}"
            return
        name = message["type"]
        check = getattr(self, name.replace(".", "_"), None)
        if check is None or not name.startswith(self.kind + "."):
            yield f"{self.kind} got {name!r}"
            return
        yield from check({key: value for key, value in message.items() if key != "type"})
        self.began = True

    def http_request(self, fields: dict[str, Any]) -> Iterable[str]:
        if self.whole or self.over:
            yield "http.request after the end of the body"
        if not fields.keys() <= {"body", "more_body"}:
            yield f"http.request has {sorted(fields)}"
        body, more = fields.get("body", b""), fields.get("more_body", False)
        if type(body) is not bytes or type(more) is not bool:
            yield f"http.request has body {type(body).__name__}, more_body {more!r}"
        self.whole = not more

    def http_disconnect(self, fields: dict[str, Any]) -> Iterable[str]:
        if fields:
            yield f"http.disconnect has {sorted(fields)}"
        self.over = True

    def websocket_connect(self, fields: dict[str, Any]) -> Iterable[str]:
        if fields or self.began:
            yield f"websocket.connect has {sorted(fields)}, began {self.began}"

    def websocket_receive(self, fields: dict[str, Any]) -> Iterable[str]:
        given = {key for key, value in fields.items() if value is not None}
        if not self.began or self.over:
            yield "websocket.receive before the connect or after the disconnect"
        if given not in ({"text"}, {"bytes"}) or not fields.keys() <= {"text", "bytes"}:
            yield f"websocket.receive has {fields!r}"
        elif type(fields[given.pop()]) not in (str, bytes):
            yield f"websocket.receive has {fields!r}"
        elif type(fields.get("text")) is bytes or type(fields.get("bytes")) is str:
            yield f"websocket.receive has {fields!r}"

    def websocket_disconnect(self, fields: dict[str, Any]) -> Iterable[str]:
        if not fields.keys() <= {"code", "reason"} or type(fields.get("code", 1005)) is not int:
            yield f"websocket.disconnect has {fields!r}"
        elif type(fields.get("reason", "")) not in (str, type(None)):
            yield f"websocket.disconnect has {fields!r}"
        if not self.began:
            yield "websocket.disconnect before the connect"
        self.over = True

    def lifespan_startup(self, fields: dict[str, Any]) -> Iterable[str]:
        if fields or self.began:
            yield f"lifespan.startup has {sorted(fields)}, began {self.began}"

    def lifespan_shutdown(self, fields: dict[str, Any]) -> Iterable[str]:
        if fields or not self.began:
            yield f"lifespan.shutdown has {sorted(fields)}, began {self.began}"


def tell(fault: str) -> None:
    print(MARK, fault, file=sys.stderr, flush=True)


class Checked:
    def __init__(self, application: Application) -> None:
        self.application = application

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        for fault in faults_of_scope(scope):
            tell(fault)
        incoming = Incoming(scope["type"])

        async def checked() -> Message:
            message = await receive()
            for fault in incoming.faults(message):
                tell(fault)
            return message

        async def sent(message: Message) -> None:
            result: object = await send(message)  # type: ignore[func-returns-value]
            if result is not None:
                tell(f"send() gave {result!r}")

        await self.application(scope, checked, sent)
