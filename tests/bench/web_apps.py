"""What the benchmarks of the web server serve: four answers, each by the shortest application that gives it.

Run as a program, `web_apps.py PATH SECONDS`, it asks its application itself, with no server and no socket, and prints the
microseconds of processor time that one request takes then: no server can answer for less.
"""

from __future__ import annotations

import asyncio
import sys
import time
from typing import Any

from fastapi import FastAPI

LARGE = b"x" * 65536
PIECE = b"x" * 1024

api = FastAPI()


@api.get("/json")
async def json() -> dict[str, object]:
    return {"message": "Hello, world!", "numbers": [1, 2, 3], "nested": {"true": True}}


async def app(scope: dict[str, Any], receive: Any, send: Any) -> None:
    if scope["type"] != "http":
        raise RuntimeError("only HTTP")
    path = scope["path"]
    if path == "/json":
        await api(scope, receive, send)
    elif path == "/stream":
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for _ in range(64):
            await send({"type": "http.response.body", "body": PIECE, "more_body": True})
        await send({"type": "http.response.body", "body": b""})
    else:
        body = LARGE if path == "/large" else b"Hello, world!"
        length = str(len(body)).encode()
        headers = [(b"content-type", b"text/plain"), (b"content-length", length)]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})


async def alone(path: str, seconds: float) -> float:
    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: dict[str, Any]) -> None:
        pass

    scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "http_version": "1.1",
        "method": "GET",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": [(b"host", b"127.0.0.1")],
        "client": ("127.0.0.1", 40000),
        "server": ("127.0.0.1", 8000),
    }
    count, until, began = 0, time.monotonic() + seconds, time.process_time()
    while time.monotonic() < until:
        for _ in range(100):
            await app(scope.copy(), receive, send)
        count += 100
    return (time.process_time() - began) / count * 1e6


if __name__ == "__main__":
    print(asyncio.run(alone(sys.argv[1], float(sys.argv[2]))))
