"""What the benchmarks of the web server serve: four answers, each by the shortest application that gives it."""

from __future__ import annotations

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
