"""The applications that serve_SUITE serves: ASGI and WSGI, which ask Erlang."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

import erlang

Receive = Callable[[], Awaitable[Any]]
Send = Callable[[Any], Awaitable[None]]

gate = asyncio.Event()


async def app(scope: Any, receive: Receive, send: Send) -> None:
    """What each path answers is the coroutine or value of that name."""
    if scope["type"] == "lifespan":
        return await live(scope, receive, send)
    name = scope["path"].removeprefix(scope["root_path"]).strip("/")
    try:
        text = str(await ANSWERS[name](scope))
        status = 200
    except KeyError:
        status, text = 404, f"no {name}"
    body = text.encode()
    headers = [(b"content-type", b"text/plain"), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def upload(scope: Any, receive: Receive, send: Send) -> None:
    """Answers with the size of the body."""
    if scope["type"] == "lifespan":
        return await live(scope, receive, send)
    print(f"served: reads {scope['path']}")
    size, more = 0, True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return print("served: the body is lost")
        size += len(message["body"])
        more = message["more_body"]
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"%d" % size})


async def live(scope: Any, receive: Receive, send: Send) -> None:
    await receive()
    if "SERVED_FAILS" in os.environ:
        await send({"type": "lifespan.startup.failed", "message": os.environ["SERVED_FAILS"]})
        return
    print("served: starting")
    while os.path.exists(os.environ.get("SERVED_WAITS_WHILE", "")):
        await asyncio.sleep(0.02)
    scope["state"]["started"] = "yes"
    await send({"type": "lifespan.startup.complete"})
    await receive()
    print("served: ended")
    await send({"type": "lifespan.shutdown.complete"})


async def where(scope: Any) -> str:
    loop = type(asyncio.get_running_loop()).__name__
    return f"{loop} {erlang.node()} {scope['state']['started']} {scope['root_path']}"


async def native(scope: Any) -> str:
    return str(getattr(sys.modules["erlang_web._http"], "__file__", "built in"))


async def upper(scope: Any) -> Any:
    return await erlang.async_call("upper", scope["query_string"].decode())


async def waiting(scope: Any) -> str:
    print("served: waiting")
    await gate.wait()
    return str(await erlang.async_call("upper", "waited"))


async def forever(scope: Any) -> None:
    print("served: waiting")
    await asyncio.sleep(600)


async def opened(scope: Any) -> str:
    gate.set()
    return "open"


async def blocking(scope: Any) -> None:
    print("served: blocking")
    time.sleep(600)


async def broken(scope: Any) -> None:
    raise ValueError("broken on purpose")


ANSWERS = {
    one.__name__: one for one in (where, native, upper, waiting, forever, opened, blocking, broken)
}


def open_gate() -> None:
    """From a BEAM, on a worker."""
    gate._loop.call_soon_threadsafe(gate.set)  # type: ignore[attr-defined]


def wsgi(environ: Any, start_response: Any) -> Iterable[bytes]:
    start_response("200 OK", [("Content-Type", "text/plain")])
    if environ["PATH_INFO"] == "/stuck":
        print("served: stuck")
        time.sleep(600)
    if environ["PATH_INFO"] == "/read":
        print("served: reads /wsgi/read")
        size = 0
        while data := environ["wsgi.input"].read(1000):
            size += len(data)
        return [b"%d" % size]
    if environ["PATH_INFO"] == "/upper":
        return [str(erlang.call("upper", environ["QUERY_STRING"])).encode()]
    return [f"wsgi {environ['SCRIPT_NAME']} {environ['PATH_INFO']}".encode()]
