"""A FastAPI application that needs nothing of Erlang: asgi_SUITE compares its answers with those it gives under uvicorn."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Any

from fastapi import BackgroundTasks, FastAPI, HTTPException, Request
from fastapi.responses import JSONResponse, RedirectResponse, Response, StreamingResponse
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.middleware.gzip import GZipMiddleware


@contextlib.asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[dict[str, Any]]:
    yield {"greeting": "good day"}


app = FastAPI(lifespan=lifespan)


class Seal(BaseHTTPMiddleware):
    async def dispatch(self, request: Request, call_next: Any) -> Any:
        response = await call_next(request)
        response.headers["x-seal"] = request.method
        return response


app.add_middleware(Seal)
app.add_middleware(GZipMiddleware, minimum_size=500)


@app.get("/items/{item}")
async def item(item: int, request: Request, q: str = "none") -> dict[str, Any]:
    return {"item": item, "q": q, "greeting": request.state.greeting, "path": request.url.path}


@app.get("/sync")
def in_a_thread() -> dict[str, str]:
    return {"from": "a thread"}


@app.get("/cookies")
async def cookies() -> Response:
    response = JSONResponse({"é": "馬"})
    response.set_cookie("a", "1")
    response.set_cookie("b", "2", httponly=True)
    return response


@app.get("/stream")
async def stream(pieces: int) -> StreamingResponse:
    async def parts() -> AsyncIterator[bytes]:
        for number in range(pieces):
            yield bytes([number % 256]) * 1000

    return StreamingResponse(parts(), media_type="application/octet-stream")


@app.post("/echo")
async def echo(request: Request) -> Response:
    return Response(await request.body(), media_type="application/octet-stream")


@app.get("/long")
async def long() -> dict[str, str]:
    return {"text": "long " * 1000}


@app.get("/away")
async def away() -> RedirectResponse:
    return RedirectResponse("/items/1")


@app.get("/teapot")
async def teapot() -> None:
    raise HTTPException(418, "short and stout")


@app.get("/later")
async def later(tasks: BackgroundTasks) -> dict[str, str]:
    tasks.add_task(lambda: None)
    return {"said": "now"}
