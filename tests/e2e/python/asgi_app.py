"""The applications that asgi_SUITE asks through py_asgi, written to ASGI and WSGI themselves."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
from typing import Any
from urllib.parse import parse_qs

import erlang

events: list[str] = []
counts: dict[str, int] = {}
PIECE = bytes(range(256)) * 256


def happened() -> list[str]:
    return list(events)


def count(name: str) -> int:
    return counts.get(name, 0)


async def app(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] == "lifespan":
        await lifespan(scope, receive, send)
        return
    name = scope["path"].removeprefix(scope["root_path"]).strip("/").replace("/", "_")
    routes = sockets if scope["type"] == "websocket" else requests
    options = {key: values[0] for key, values in parse_qs(scope["query_string"].decode()).items()}
    await routes.get(name, scope_told)(scope, receive, send, **options)


async def lifespan(scope: Any, receive: Any, send: Any) -> None:
    assert (await receive())["type"] == "lifespan.startup"
    counts["startups"] = count("startups") + 1
    scope["state"]["started"] = counts["startups"]
    await send({"type": "lifespan.startup.complete"})
    assert (await receive())["type"] == "lifespan.shutdown"
    await asyncio.sleep(0.05)
    print("the application has shut down", flush=True)
    await send({"type": "lifespan.shutdown.complete"})


async def answer(
    send: Any,
    body: bytes = b"",
    status: int = 200,
    headers: Any = ((b"content-type", b"text/plain"),),
) -> None:
    await send({"type": "http.response.start", "status": status, "headers": list(headers)})
    await send({"type": "http.response.body", "body": body})


async def body_of(receive: Any) -> bytes:
    parts = []
    while True:
        message = await receive()
        assert message["type"] == "http.request", message
        parts.append(message["body"])
        if not message["more_body"]:
            return b"".join(parts)


# --- requests ---------------------------------------------------------------------------------------


async def hello(scope: Any, receive: Any, send: Any) -> None:
    await answer(send, b"hello")


async def scope_told(scope: Any, receive: Any, send: Any, **_: str) -> None:
    def plain(value: Any) -> Any:
        return value.decode("latin-1") if isinstance(value, bytes) else repr(value)

    kinds = [type(part).__name__ for part in scope["headers"][0]]
    told = {key: value for key, value in scope.items() if key != "headers"}
    told["headers"] = [
        [name.decode("latin-1"), value.decode("latin-1")] for name, value in scope["headers"]
    ]
    told["kinds"] = [type(scope["headers"][0]).__name__, *kinds]
    await answer(send, json.dumps(told, default=plain, sort_keys=True).encode())


async def echo(scope: Any, receive: Any, send: Any) -> None:
    await answer(send, await body_of(receive))


async def digest(scope: Any, receive: Any, send: Any, delay: str = "0") -> None:
    """Reads slowly, if so told."""
    digest, size, more = hashlib.sha256(), 0, True
    counts["digested"] = 0
    while more:
        message = await receive()
        if message["type"] != "http.request":
            events.append(f"digest {message['type']}")
            return
        digest.update(message["body"])
        size += len(message["body"])
        counts["digested"] = size
        more = message["more_body"]
        await asyncio.sleep(float(delay))
    await answer(send, f"{size} {digest.hexdigest()}".encode())


async def echo_in_pieces(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    more = True
    while more:
        message = await receive()
        more = message["more_body"]
        await send({"type": "http.response.body", "body": message["body"], "more_body": more})


async def large(scope: Any, receive: Any, send: Any, size: str) -> None:
    whole = PIECE * (int(size) // len(PIECE) + 1)
    await answer(send, whole[: int(size)])


async def late(scope: Any, receive: Any, send: Any, size: str) -> None:
    await asyncio.sleep(1)
    await large(scope, receive, send, size)


async def pieces(scope: Any, receive: Any, send: Any, number: str, delay: str = "") -> None:
    counts["pieces"] = 0
    await send({"type": "http.response.start", "status": 200, "headers": []})
    try:
        for _ in range(int(number)):
            await send({"type": "http.response.body", "body": PIECE, "more_body": True})
            counts["pieces"] += 1
            if delay:
                await asyncio.sleep(float(delay))
        await send({"type": "http.response.body", "body": b""})
    except OSError as error:
        events.append(f"pieces {type(error).__name__}")
        raise


async def hold(scope: Any, receive: Any, send: Any, how: str = "quiet") -> None:
    if how == "begun":
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"begun", "more_body": True})
    await receive()
    events.append("hold begun")
    events.append("hold " + (await receive())["type"])
    try:
        await asyncio.sleep(60)
    except asyncio.CancelledError:
        events.append("hold cancelled")
        raise


async def nobody_reads(scope: Any, receive: Any, send: Any) -> None:
    await answer(send, b"no thanks", 413)


async def no_content(scope: Any, receive: Any, send: Any) -> None:
    await answer(send, b"", 204, [(b"x-kind", b"none")])


async def not_modified(scope: Any, receive: Any, send: Any) -> None:
    await answer(send, b"", 304, [(b"etag", b'"1"')])


async def length(scope: Any, receive: Any, send: Any) -> None:
    await answer(send, b"twelve bytes", 200, [(b"content-length", b"12")])


async def many_headers(scope: Any, receive: Any, send: Any) -> None:
    headers = [(b"set-cookie", b"a=1"), (b"set-cookie", b"b=2"), (b"x-bytes", b"\xe9\xff")]
    await answer(send, b"", 200, headers)


async def smuggle(scope: Any, receive: Any, send: Any) -> None:
    await answer(send, b"", 200, [(b"x-a", b"1\r\nx-b: 2")])


async def boom(scope: Any, receive: Any, send: Any) -> None:
    raise LookupError("boom")


async def boom_late(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"so far", "more_body": True})
    await asyncio.sleep(0.1)
    raise LookupError("boom")


async def silent(scope: Any, receive: Any, send: Any) -> None:
    return


async def upper(scope: Any, receive: Any, send: Any, text: str) -> None:
    told = await erlang.async_call("upper", text)
    await answer(send, told.encode())


async def where(scope: Any, receive: Any, send: Any, delay: str = "0") -> None:
    await asyncio.sleep(float(delay))
    await answer(send, str(erlang.node()).encode())


async def background(scope: Any, receive: Any, send: Any) -> None:
    await answer(send, b"done")
    await asyncio.sleep(0.5)
    events.append("background done")


async def in_two(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"one ", "more_body": True})
    await asyncio.sleep(0.05)
    await send({"type": "http.response.body", "body": b"two"})


async def ticks(scope: Any, receive: Any, send: Any) -> None:
    """One event every tenth of a second, without end."""
    await send({"type": "http.response.start", "status": 200, "headers": []})
    number = 0
    while True:
        number += 1
        await send({"type": "http.response.body", "body": b"tick %d\n" % number, "more_body": True})
        await asyncio.sleep(0.1)


requests = {
    function.__name__: function
    for function in (
        hello, echo, digest, echo_in_pieces, large, late, pieces, hold, nobody_reads, no_content, not_modified,
        length, many_headers, smuggle, boom, boom_late, silent, upper, where, background, in_two, ticks,
    )
}  # fmt: skip


# --- WebSockets -------------------------------------------------------------------------------------


async def ws_echo(scope: Any, receive: Any, send: Any) -> None:
    assert (await receive())["type"] == "websocket.connect"
    chosen = scope["subprotocols"][-1] if scope["subprotocols"] else None
    await send(
        {"type": "websocket.accept", "subprotocol": chosen, "headers": [(b"x-accepted", b"yes")]}
    )
    while True:
        message = await receive()
        if message["type"] == "websocket.disconnect":
            events.append(f"ws {message['code']} {message['reason']}")
            return
        await send({**message, "type": "websocket.send"})


async def ws_close(scope: Any, receive: Any, send: Any, code: str) -> None:
    await receive()
    await send({"type": "websocket.accept"})
    await send({"type": "websocket.send", "text": "good bye"})
    await send({"type": "websocket.close", "code": int(code), "reason": "enough"})


async def ws_refuse(scope: Any, receive: Any, send: Any) -> None:
    await receive()
    await send({"type": "websocket.close"})


async def ws_refuse_well(scope: Any, receive: Any, send: Any) -> None:
    await receive()
    await send(
        {"type": "websocket.http.response.start", "status": 401, "headers": [(b"x-why", b"you")]}
    )
    await send({"type": "websocket.http.response.body", "body": b"who are you?"})


async def ws_boom(scope: Any, receive: Any, send: Any) -> None:
    await receive()
    await send({"type": "websocket.accept"})
    raise LookupError("boom")


async def ws_flood(scope: Any, receive: Any, send: Any) -> None:
    await receive()
    await send({"type": "websocket.accept"})
    counts["flooded"] = 0
    try:
        while True:
            await send({"type": "websocket.send", "bytes": PIECE})
            counts["flooded"] += 1
    except OSError:
        events.append("ws flood over")


async def ws_deaf(scope: Any, receive: Any, send: Any) -> None:
    await receive()
    await send({"type": "websocket.accept"})
    try:
        await asyncio.sleep(60)
    except asyncio.CancelledError:
        events.append("ws cancelled")
        raise


async def ws_upper(scope: Any, receive: Any, send: Any) -> None:
    await receive()
    await send({"type": "websocket.accept"})
    while (message := await receive())["type"] == "websocket.receive":
        await send(
            {"type": "websocket.send", "text": await erlang.async_call("upper", message["text"])}
        )


sockets = {
    function.__name__: function
    for function in (
        ws_echo,
        ws_close,
        ws_refuse,
        ws_refuse_well,
        ws_boom,
        ws_flood,
        ws_deaf,
        ws_upper,
    )
}


# --- WSGI -------------------------------------------------------------------------------------------


def plain_wsgi(environ: Any, start_response: Any) -> Any:
    body = environ["wsgi.input"].read()
    start_response("200 OK", [("Content-Type", "text/plain"), ("X-Pid", str(os.getpid()))])
    yield b"%s %s " % (environ["REQUEST_METHOD"].encode(), environ["PATH_INFO"].encode("latin-1"))
    yield body
