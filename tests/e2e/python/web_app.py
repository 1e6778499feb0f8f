"""A web application that asks Erlang wherever one may ask, as its users would write it, and how the web suite serves it.

    client ──▶ uvicorn, a task of the node's event loop ──▶ middleware ──▶ route ── erlang.async_call ──▶ BEAM
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Annotated, Any

import uvicorn
from fastapi import Depends, FastAPI, Request, Response, WebSocket, WebSocketDisconnect
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic import BaseModel

import erlang


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    app.state.greeting = await erlang.async_call("greeting")
    yield
    await erlang.async_call("farewell", app.state.greeting)


app = FastAPI(lifespan=lifespan)


class Order(BaseModel):
    room: str
    people: int
    payload: Any


@app.middleware("http")
async def know_the_user(
    request: Request, call_next: Callable[[Request], Awaitable[Response]]
) -> Response:
    user = await erlang.async_call("user_of", request.headers.get("authorization"))
    if user is None:
        return JSONResponse({"detail": "who are you?"}, 401)
    request.state.user = user
    response = await call_next(request)
    response.headers["x-seal"] = await erlang.async_call("seal", user, response.status_code)
    return response


@app.exception_handler(erlang.ErlangError)
async def erlang_failed(request: Request, error: erlang.ErlangError) -> JSONResponse:
    name = type(error).__name__
    return JSONResponse({"error": name, "kind": error.kind, "reason": str(error.reason)}, 500)


@app.exception_handler(TimeoutError)
async def too_late(request: Request, error: TimeoutError) -> JSONResponse:
    return JSONResponse({"error": "too late"}, 504)


async def greeting(request: Request) -> str:
    return await erlang.async_call("upper", request.app.state.greeting)


@app.get("/hello/{name}")
async def hello(name: str, greeting: Annotated[str, Depends(greeting)]) -> dict[str, str]:
    return {"hello": f"{greeting} {await erlang.async_call('upper', name)}"}


@app.get("/hello-from-a-thread/{name}")
def hello_from_a_thread(name: str) -> dict[str, str]:
    return {"hello": erlang.call("upper", name)}


@app.get("/together/{count}")
async def together(count: int) -> list[int]:
    """Each call is answered when all of them have come."""
    calls = (erlang.async_call("meet", "together", count, number) for number in range(count))
    return await asyncio.gather(*calls)


@app.post("/order")
async def order(order: Order, request: Request) -> dict[str, Any]:
    answer = await erlang.async_call("meet", order.room, order.people, order.payload)
    return {"user": request.state.user, "answer": answer}


@app.get("/fail/{function}")
async def fail(function: str) -> Any:
    return await erlang.async_call(function)


@app.get("/late")
async def late() -> Any:
    return await erlang.async_call("never", timeout=0.05)


@app.get("/stream")
async def stream() -> StreamingResponse:
    async def lines() -> AsyncIterator[str]:
        yield "begun\n"
        yield await erlang.async_call("never")

    return StreamingResponse(lines(), media_type="text/plain")


@app.websocket("/upper")
async def upper(socket: WebSocket) -> None:
    await socket.accept()
    try:
        while True:
            await socket.send_text(await erlang.async_call("upper", await socket.receive_text()))
    except WebSocketDisconnect as left:
        await erlang.async_call("left", left.code)


# --- for the suite ---------------------------------------------------------------------------------------------------

_serving: dict[int, tuple[uvicorn.Server, asyncio.Task[None]]] = {}


async def start() -> int:
    """Serve on the node's event loop until `stop`; the port."""
    listener = socket.create_server(("127.0.0.1", 0))
    port: int = listener.getsockname()[1]
    server = uvicorn.Server(uvicorn.Config(app, lifespan="on", log_config=None))
    task = erlang.spawn_task(server.serve(sockets=[listener]), name="web server")
    assert isinstance(task, asyncio.Task)
    _serving[port] = server, task
    return port


async def stop(port: int) -> None:
    """End as uvicorn does: what runs is finished first, then the lifespan. Nothing to do the second time."""
    if port in _serving:
        server, task = _serving.pop(port)
        server.should_exit = True
        await task
