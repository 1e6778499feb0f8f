"""What the web servers serve: a FastAPI application with a bit of everything, and that says on which loop it runs."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import BackgroundTasks, FastAPI, Request, WebSocket, WebSocketDisconnect
from starlette.responses import FileResponse, StreamingResponse

events: list[str] = []


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[dict[str, str]]:
    events.append("started")
    print("lifespan: started", flush=True)
    yield {"from_lifespan": "state"}
    await asyncio.sleep(0.001)
    print("lifespan: stopped", flush=True)


class LoopHeader:
    """Middleware: each answer says on which loop it was made."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def marked(message: Any) -> None:
            if message["type"] == "http.response.start":
                name = type(asyncio.get_running_loop()).__name__
                message["headers"] = [*message["headers"], (b"x-loop", name.encode())]
            await send(message)

        await self.app(scope, receive, marked if scope["type"] == "http" else send)


app = FastAPI(lifespan=lifespan)
app.add_middleware(LoopHeader)


@app.get("/where")
async def where(request: Request) -> dict[str, object]:
    return {
        "loop": type(asyncio.get_running_loop()).__name__,
        "state": request.state.from_lifespan,
        "scheme": request.url.scheme,
        "http": request.scope["http_version"],
    }


@app.get("/thread")
def thread() -> dict[str, bool]:
    """Not a coroutine: on a thread of the pool."""
    return {"main": threading.current_thread() is threading.main_thread()}


async def echo(scope: Any, receive: Any, send: Any) -> None:
    """Sends the body back while it arrives: bare ASGI, as Starlette's responses listen for the client's end meanwhile."""
    await send({"type": "http.response.start", "status": 200, "headers": []})
    more = True
    while more:
        message = await receive()
        more = message.get("more_body", False)
        await send({"type": "http.response.body", "body": message["body"], "more_body": more})


app.mount("/echo", echo)


@app.get("/numbers/{count}")
async def numbers(count: int) -> StreamingResponse:
    async def body() -> AsyncIterator[str]:
        for number in range(count):
            yield f"{number}\n"
            if number % 50 == 0:
                await asyncio.sleep(0.001)

    return StreamingResponse(body(), media_type="text/plain")


@app.get("/endless")
async def endless() -> StreamingResponse:
    """Until the client goes; then it says so."""

    async def body() -> AsyncIterator[bytes]:
        try:
            while True:
                yield b"x" * 10_000
                await asyncio.sleep(0)
        finally:
            events.append("endless: ended")

    return StreamingResponse(body())


@app.get("/file")
async def file() -> FileResponse:
    return FileResponse(__file__)


@app.post("/later")
async def later(background: BackgroundTasks) -> str:
    background.add_task(events.append, "in the background")
    return "promised"


@app.get("/events")
async def all_events() -> list[str]:
    return events


@app.get("/broken")
async def broken() -> None:
    raise ValueError("broken route")


@app.websocket("/ws")
async def websocket(socket: WebSocket) -> None:
    await socket.accept()
    try:
        while True:
            message = await socket.receive()
            if message["type"] == "websocket.disconnect":
                events.append("websocket: gone")
                return
            if message.get("text") == "loop?":
                await socket.send_text(type(asyncio.get_running_loop()).__name__)
            elif message.get("text") == "close, please":
                await socket.close(4001, "as you wish")
                return
            elif message.get("text") is not None:
                await socket.send_text(message["text"].upper())
            else:
                await socket.send_bytes(message["bytes"][::-1])
    except WebSocketDisconnect:
        events.append("websocket: gone")
