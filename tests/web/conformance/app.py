"""One raw ASGI application that does whatever a test asks for, by the first part of its path.

A path that is none of the routes answers with a report of what the server gave: that is what servers are compared by.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import parse_qs

from asgi_checker import Application, Checked, Receive, Send

Scope = dict[str, Any]
Header = tuple[bytes, bytes]
SMALL = 4096  # a longer body is reported by its digest

seen: list[str] = []  # the paths of all requests, in order
notes: dict[str, list[Any]] = {}  # what handlers want a test to know, by the token the test gave
state: dict[str, Any] = {}


def query(scope: Scope) -> dict[str, str]:
    return {k: v[-1] for k, v in parse_qs(scope["query_string"].decode("latin-1")).items()}


def note(scope: Scope, what: Any) -> None:
    token = query(scope).get("token")
    if token is not None:
        notes.setdefault(token, []).append(what)


def plain(value: Any) -> Any:
    """The same in what JSON has."""
    if isinstance(value, bytes):
        return value.decode("latin-1")
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value if isinstance(value, str | int | float | None) else repr(value)


async def whole_body(receive: Receive) -> tuple[bytes, int]:
    """The body and in how many messages it came; raises ConnectionError for a peer that went away meanwhile."""
    parts, messages = [], 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ConnectionError("the client went away")
        messages += 1
        parts.append(message.get("body", b""))
        if not message.get("more_body", False):
            return b"".join(parts), messages


async def answer(
    send: Send, body: bytes, status: int = 200, headers: list[Header] | None = None
) -> None:
    if headers is None:
        headers = [(b"content-type", b"application/octet-stream")]
    headers = [*headers, (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def report(scope: Scope, receive: Receive, send: Send) -> None:
    body, _ = await whole_body(receive)
    told = body.decode("latin-1") if len(body) <= SMALL else hashlib.sha256(body).hexdigest()
    given = plain({key: value for key, value in scope.items() if key != "state"})
    text = json.dumps({"scope": given, "body": told, "length": len(body)})
    await answer(send, text.encode(), headers=[(b"content-type", b"application/json")])


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    body, _ = await whole_body(receive)
    await answer(send, body)


async def echo_stream(scope: Scope, receive: Receive, send: Send) -> None:
    """Answers before it has read, with each piece of the body as it comes."""
    await send({"type": "http.response.start", "status": 200, "headers": []})
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        more = message.get("more_body", False)
        piece = {"type": "http.response.body", "body": message.get("body", b""), "more_body": more}
        await send(piece)


async def status(scope: Scope, receive: Receive, send: Send) -> None:
    """/status/CODE[?length=N]: no body, and a content-length only if asked for."""
    code = int(scope["path"].split("/")[2])
    headers: list[Header] = [(b"x-code", str(code).encode())]
    if (length := query(scope).get("length")) is not None:
        headers.append((b"content-length", length.encode()))
    await send({"type": "http.response.start", "status": code, "headers": headers})
    await send({"type": "http.response.body"})


async def sized(scope: Scope, receive: Receive, send: Send) -> None:
    """/bytes/N: so many, in one message."""
    await answer(send, pattern(int(scope["path"].split("/")[2])))


def pattern(size: int) -> bytes:
    return (b"0123456789abcdef" * (size // 16 + 1))[:size]


async def stream(scope: Scope, receive: Receive, send: Send) -> None:
    """/stream/PIECES/SIZE[?length=1][&pause=S]: with a content-length only if asked for."""
    pieces, size = (int(part) for part in scope["path"].split("/")[2:4])
    headers: list[Header] = [(b"content-type", b"text/plain")]
    if "length" in query(scope):
        headers.append((b"content-length", str(pieces * size).encode()))
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    pause = float(query(scope).get("pause", 0))
    for number in range(pieces):
        await send({"type": "http.response.body", "body": pattern(size), "more_body": True})
        note(scope, number)
        if pause:
            await asyncio.sleep(pause)
    await send({"type": "http.response.body", "body": b""})


async def ignore(scope: Scope, receive: Receive, send: Send) -> None:
    await answer(send, b"not read")


async def late(scope: Scope, receive: Receive, send: Send) -> None:
    """Answers at once and reads what was sent afterwards."""
    await answer(send, b"answered first")
    while True:
        message = await receive()
        note(scope, message["type"])
        if message["type"] == "http.disconnect" or not message.get("more_body", False):
            break


async def wait(scope: Scope, receive: Receive, send: Send) -> None:
    """Answers never: notes that the client has gone."""
    note(scope, "began")
    await whole_body(receive)
    note(scope, "read")
    message = await receive()
    note(scope, message["type"])
    if "again" in query(scope):
        note(scope, (await receive())["type"])
        try:
            await answer(send, b"too late")
            note(scope, "sent into the void")
        except OSError:
            note(scope, "refused")


async def slow(scope: Scope, receive: Receive, send: Send) -> None:
    await asyncio.sleep(float(query(scope).get("seconds", 0.2)))
    await answer(send, scope["path"].encode())


async def boom(scope: Scope, receive: Receive, send: Send) -> None:
    """/raise/WHEN"""
    when = scope["path"].split("/")[2]
    if when != "before":
        await send(
            {"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"10")]}
        )
    if when == "midway":
        await send({"type": "http.response.body", "body": b"half", "more_body": True})
    if when == "after":
        await send({"type": "http.response.body", "body": pattern(10)})
    raise ValueError(f"asked to fail: {when}")


async def silent(scope: Scope, receive: Receive, send: Send) -> None:
    """/silent/WHEN: returns without having answered, or not wholly."""
    when = scope["path"].split("/")[2]
    if when == "before":
        return
    await send(
        {"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/x")]}
    )
    if when == "midway":
        await send({"type": "http.response.body", "body": b"half", "more_body": True})


async def wrong_length(scope: Scope, receive: Receive, send: Send) -> None:
    """/length/SAID/SENT"""
    said, sent = (int(part) for part in scope["path"].split("/")[2:4])
    headers = [(b"content-length", str(said).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    try:
        await send({"type": "http.response.body", "body": pattern(sent)})
        note(scope, "sent")
    except Exception as error:
        note(scope, f"refused: {type(error).__name__}")
        raise


async def headers(scope: Scope, receive: Receive, send: Send) -> None:
    """Headers as applications write them."""
    given: list[Header] = [
        (b"Content-Type", b"text/plain; charset=utf-8"),
        (b"set-cookie", b"a=1; Path=/"),
        (b"set-cookie", b"b=2; Path=/"),
        (b"x-empty", b""),
        (b"x-latin", "caf\u00e9".encode("latin-1")),
        (b"x-inner", b"a  b\tc"),
        (b"X-Mixed-Case", b"Value"),
        (b"vary", b"accept, origin"),
    ]
    await answer(send, b"headers", headers=given)


async def own_names(scope: Scope, receive: Receive, send: Send) -> None:
    """Gives the headers that servers add by themselves."""
    given: list[Header] = [(b"server", b"mine"), (b"date", b"Thu, 01 Jan 1970 00:00:00 GMT")]
    await answer(send, b"named", headers=given)


async def closing(scope: Scope, receive: Receive, send: Send) -> None:
    await answer(send, b"last one", headers=[(b"connection", b"close")])


async def ranged(scope: Scope, receive: Receive, send: Send) -> None:
    """A resource of a thousand bytes, and one range of it."""
    whole = pattern(1000)
    wanted = dict(scope["headers"]).get(b"range", b"")
    if not wanted.startswith(b"bytes="):
        await answer(send, whole, headers=[(b"accept-ranges", b"bytes")])
        return
    first, last = (int(part) for part in wanted[6:].split(b"-"))
    if first >= len(whole):
        await answer(send, b"", 416, [(b"content-range", b"bytes */1000")])
        return
    said = f"bytes {first}-{last}/1000".encode()
    await answer(send, whole[first : last + 1], 206, [(b"content-range", said)])


START: Scope = {"type": "http.response.start", "status": 200, "headers": []}
BODY: Scope = {"type": "http.response.body", "body": b"fine"}


def with_header(name: Any, value: Any) -> list[Scope]:
    return [START | {"headers": [(name, value)]}, BODY]


# What an application may not send, and the message of it that has to be refused.
WRONG: dict[str, list[Scope]] = {
    "value-crlf": with_header(b"x-a", b"1\r\nset-cookie: evil=1"),
    "value-lf": with_header(b"x-a", b"1\nset-cookie: evil=1"),
    "value-cr": with_header(b"x-a", b"1\rset-cookie: evil=1"),
    "value-nul": with_header(b"x-a", b"1\0"),
    "value-split": with_header(
        b"x-a", b"1\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nevil"
    ),
    "name-crlf": with_header(b"x-a: 1\r\nevil", b"1"),
    "name-colon": with_header(b"x-a:", b"1"),
    "name-space": with_header(b"x a", b"1"),
    "name-empty": with_header(b"", b"1"),
    "name-nul": with_header(b"x\0", b"1"),
    "name-str": with_header("x-a", b"1"),
    "value-str": with_header(b"x-a", "1"),
    "value-int": with_header(b"x-a", 1),
    "pair-of-three": [START | {"headers": [(b"a", b"b", b"c")]}, BODY],
    "headers-none": [START | {"headers": 7}, BODY],
    "length-word": with_header(b"content-length", b"four"),
    "length-negative": with_header(b"content-length", b"-4"),
    "length-twice": [
        START | {"headers": [(b"content-length", b"4"), (b"content-length", b"5")]},
        BODY,
    ],
    "status-str": [START | {"status": "200"}, BODY],
    "status-none": [START | {"status": None}, BODY],
    "status-0": [START | {"status": 0}, BODY],
    "status-99": [START | {"status": 99}, BODY],
    "status-1000": [START | {"status": 1000}, BODY],
    "no-status": [{"type": "http.response.start", "headers": []}, BODY],
    "no-type": [{"status": 200}],
    "type-int": [{"type": 1}],
    "unknown-type": [{"type": "http.response.unknown"}],
    "websocket-type": [{"type": "websocket.accept"}],
    "body-first": [BODY],
    "message-none": [None],  # type: ignore[list-item]
    "message-list": [[]],  # type: ignore[list-item]
    "body-str": [START, BODY | {"body": "text"}],
    "body-int": [START, BODY | {"body": 4}],
    "start-twice": [START, START],
    "body-after-end": [START, BODY, BODY],
}


async def wrong(scope: Scope, receive: Receive, send: Send) -> None:
    """/wrong/NAME: sends what WRONG says, and notes which of its messages was refused, and how."""
    for number, message in enumerate(WRONG[scope["path"].split("/")[2]]):
        try:
            await send(message)
        except Exception as error:
            note(scope, [number, type(error).__name__])
            raise
    note(scope, "all of it was taken")


async def told(scope: Scope, receive: Receive, send: Send) -> None:
    """What a token's handlers noted."""
    await answer(send, json.dumps(notes.get(query(scope)["token"], [])).encode())


async def requests(scope: Scope, receive: Receive, send: Send) -> None:
    await answer(send, json.dumps(seen).encode())


async def told_state(scope: Scope, receive: Receive, send: Send) -> None:
    """The lifespan's state, which each request has a copy of its own of."""
    scope["state"]["mine"] = scope["state"].get("mine", 0) + 1
    scope["state"]["shared"].append(1)
    await answer(send, json.dumps(scope["state"] | {"shared": "list"}).encode())


async def empty(scope: Scope, receive: Receive, send: Send) -> None:
    """No body message's body, several empty ones, and then one."""
    await send({"type": "http.response.start", "status": 200})
    for _ in range(3):
        await send({"type": "http.response.body", "more_body": True})
    await send({"type": "http.response.body", "body": b"at last"})


async def buffers(scope: Scope, receive: Receive, send: Send) -> None:
    """Two requests' worth of sends at once, from tasks: their order is that of the calls."""
    await send({"type": "http.response.start", "status": 200, "headers": []})
    for number in range(200):
        piece = {"type": "http.response.body", "body": b"%d," % number, "more_body": True}
        await send(piece)
    await send({"type": "http.response.body", "body": b"end"})


Handler = Callable[[Scope, Receive, Send], Awaitable[None]]
ROUTES: dict[str, Handler] = {
    "echo": echo,
    "echo-stream": echo_stream,
    "status": status,
    "bytes": sized,
    "stream": stream,
    "ignore": ignore,
    "late": late,
    "wait": wait,
    "slow": slow,
    "raise": boom,
    "silent": silent,
    "length": wrong_length,
    "headers": headers,
    "own-names": own_names,
    "closing": closing,
    "range": ranged,
    "wrong": wrong,
    "notes": told,
    "seen": requests,
    "state": told_state,
    "empty": empty,
    "buffers": buffers,
}


# ---------------------------------------------------------------------------------------------------------------------
# WebSockets


async def ws_echo(scope: Scope, receive: Receive, send: Send) -> None:
    await send({"type": "websocket.accept"})
    while True:
        message = await receive()
        if message["type"] == "websocket.disconnect":
            note(scope, [message["code"], message.get("reason") or ""])
            return
        if message.get("text") is not None:
            await send({"type": "websocket.send", "text": message["text"]})
        else:
            await send({"type": "websocket.send", "bytes": message["bytes"]})


async def ws_report(scope: Scope, receive: Receive, send: Send) -> None:
    await send({"type": "websocket.accept", "headers": [(b"x-accepted", b"yes")]})
    given = plain({key: value for key, value in scope.items() if key != "state"})
    await send({"type": "websocket.send", "text": json.dumps(given)})
    await send({"type": "websocket.close"})


async def ws_protocol(scope: Scope, receive: Receive, send: Send) -> None:
    """/ws/protocol/NAME: takes that one."""
    await send({"type": "websocket.accept", "subprotocol": scope["path"].split("/")[3]})
    await send({"type": "websocket.send", "text": json.dumps(list(scope["subprotocols"]))})
    await send({"type": "websocket.close"})


async def ws_reject(scope: Scope, receive: Receive, send: Send) -> None:
    await send({"type": "websocket.close"})


async def ws_deny(scope: Scope, receive: Receive, send: Send) -> None:
    if "websocket.http.response" not in (scope.get("extensions") or {}):
        raise RuntimeError("no denial response")
    headers = [(b"content-type", b"text/plain"), (b"www-authenticate", b"Basic")]
    await send({"type": "websocket.http.response.start", "status": 401, "headers": headers})
    await send({"type": "websocket.http.response.body", "body": b"who ", "more_body": True})
    await send({"type": "websocket.http.response.body", "body": b"are you?"})


async def ws_close(scope: Scope, receive: Receive, send: Send) -> None:
    """/ws/close/CODE/REASON"""
    code, reason = scope["path"].split("/")[3:5]
    await send({"type": "websocket.accept"})
    await send({"type": "websocket.close", "code": int(code), "reason": reason})
    note(scope, (await receive())["type"])


async def ws_raise(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["path"].endswith("/after"):
        await send({"type": "websocket.accept"})
    raise ValueError("asked to fail")


async def ws_return(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["path"].endswith("/after"):
        await send({"type": "websocket.accept"})


async def ws_flood(scope: Scope, receive: Receive, send: Send) -> None:
    """/ws/flood/COUNT/SIZE"""
    count, size = (int(part) for part in scope["path"].split("/")[3:5])
    await send({"type": "websocket.accept"})
    data = pattern(size)
    for number in range(count):
        await send({"type": "websocket.send", "bytes": data})
        note(scope, number)
    await send({"type": "websocket.close"})


async def ws_wrong(scope: Scope, receive: Receive, send: Send) -> None:
    """/ws/wrong/NAME"""
    name = scope["path"].split("/")[3]
    if name != "send-first":
        await send({"type": "websocket.accept"})
    messages: dict[str, Any] = {
        "send-first": {"type": "websocket.send", "text": "early"},
        "accept-twice": {"type": "websocket.accept"},
        "nothing": {"type": "websocket.send"},
        "text-bytes": {"type": "websocket.send", "text": b"bytes"},
        "bytes-text": {"type": "websocket.send", "bytes": "text"},
        "http": {"type": "http.response.start", "status": 200},
        "header": {"type": "websocket.accept", "headers": [(b"a", b"b\r\nc: d")]},
    }
    try:
        await send(messages[name])
    except Exception as error:
        note(scope, f"refused: {type(error).__name__}")
        raise
    note(scope, "taken")


WEBSOCKETS: dict[str, Handler] = {
    "echo": ws_echo,
    "report": ws_report,
    "protocol": ws_protocol,
    "reject": ws_reject,
    "deny": ws_deny,
    "close": ws_close,
    "raise": ws_raise,
    "return": ws_return,
    "flood": ws_flood,
    "wrong": ws_wrong,
}


async def lifespan(scope: Scope, receive: Receive, send: Send) -> None:
    while True:
        message = await receive()
        if message["type"] == "lifespan.startup":
            if "state" in scope:
                scope["state"].update(database="open", shared=[])
            await send({"type": "lifespan.startup.complete"})
        else:
            print("lifespan: shut down", flush=True)
            await send({"type": "lifespan.shutdown.complete"})
            return


async def application(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "lifespan":
        await lifespan(scope, receive, send)
        return
    parts = scope["path"].split("/")
    if scope["type"] == "websocket":
        message = await receive()
        assert message["type"] == "websocket.connect", message
        await WEBSOCKETS.get(parts[2], ws_report)(scope, receive, send)
        return
    seen.append(scope["path"])
    try:
        await ROUTES.get(parts[1] if len(parts) > 1 else "", report)(scope, receive, send)
    except ConnectionError:
        note(scope, "http.disconnect")


app: Application = Checked(application)
