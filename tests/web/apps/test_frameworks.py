"""Applications of frameworks, served by erlang_web: what each of them needs of a server."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import urllib.request
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest
import websockets

import erlang_loop
from erlang_web import Mount, Options, Server, ServerError

STARLETTE = """
import asyncio, contextlib
from starlette.applications import Starlette
from starlette.responses import FileResponse, JSONResponse, StreamingResponse
from starlette.routing import Route, WebSocketRoute

@contextlib.asynccontextmanager
async def lifespan(app):
    yield {"greeting": "good day"}

async def hello(request):
    body = (await request.body()).decode()
    return JSONResponse({"greeting": request.state.greeting, "root": request.scope["root_path"], "body": body})

async def stream(request):
    async def numbers():
        for number in range(1000):
            yield f"{number}\\n"
    return StreamingResponse(numbers())

async def echo(websocket):
    await websocket.accept(subprotocol="shout")
    async for text in websocket.iter_text():
        await websocket.send_text(text.upper())

async def source(request):
    return FileResponse(__file__)

app = Starlette(lifespan=lifespan, routes=[
    Route("/hello", hello, methods=["GET", "POST"]), Route("/stream", stream), Route("/source", source),
    WebSocketRoute("/echo", echo)])

@contextlib.asynccontextmanager
async def broken_lifespan(app):
    raise ValueError("no database")
    yield

broken = Starlette(lifespan=broken_lifespan)
"""

FASTAPI = """
from fastapi import FastAPI, WebSocket
from pydantic import BaseModel

class Order(BaseModel):
    number: int

app = FastAPI()

@app.post("/order/{name}")
async def order(name: str, order: Order, loud: bool = False):
    return {"name": name.upper() if loud else name, "number": order.number}

@app.get("/thread")
def thread():
    import threading
    return threading.current_thread() is not threading.main_thread()
"""

DJANGO = """
import os, threading
import django
from django.conf import settings
from django.http import JsonResponse, StreamingHttpResponse
from django.urls import path

def hello(request):
    return JsonResponse({"path": request.path, "root": request.META.get("SCRIPT_NAME", ""), "q": request.GET.get("q"), "body": request.body.decode()})

async def later(request):
    return JsonResponse({"later": True})

def stream(request):
    return StreamingHttpResponse(f"{number}\\n" for number in range(1000))

def upload(request):
    return JsonResponse({name: len(file.read()) for name, file in request.FILES.items()})

urlpatterns = [path("hello", hello), path("later", later), path("stream", stream), path("upload", upload)]
settings.configure(ROOT_URLCONF=__name__, ALLOWED_HOSTS=["*"], SECRET_KEY="x", DEBUG=False)
django.setup()
from django.core.asgi import get_asgi_application
from django.core.wsgi import get_wsgi_application
asgi = get_asgi_application()
wsgi = get_wsgi_application()
"""

FLASK = """
from flask import Flask, jsonify, request, stream_with_context

app = Flask(__name__)

@app.route("/hello", methods=["GET", "POST"])
def hello():
    return jsonify(root=request.script_root, path=request.path, q=request.args.get("q"), body=request.get_data(as_text=True))

@app.route("/stream")
def stream():
    return app.response_class(f"{number}\\n" for number in range(1000))

@app.route("/upload", methods=["POST"])
def upload():
    return jsonify({name: len(file.read()) for name, file in request.files.items()})

@app.route("/source")
def source():
    from flask import send_file
    return send_file(__file__)

def make():
    return app
"""

NUMBERS = "".join(f"{number}\n" for number in range(1000)).encode()
Run = Callable[[Coroutine[Any, Any, Any]], Any]


@pytest.fixture(params=["erlang", "asyncio"])
def run(request: pytest.FixtureRequest) -> Run:
    make = erlang_loop.new_event_loop if request.param == "erlang" else asyncio.new_event_loop

    def runs(coroutine: Coroutine[Any, Any, Any]) -> Any:
        with asyncio.Runner(loop_factory=make) as runner:
            return runner.run(coroutine)

    return runs


@pytest.fixture(autouse=True, scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    made = tmp_path_factory.mktemp("frameworks")
    texts = {"starlette": STARLETTE, "fastapi": FASTAPI, "django": DJANGO, "flask": FLASK}
    for name, text in texts.items():
        (made / f"my_{name}.py").write_text(text)
    sys.path.insert(0, str(made))
    yield made
    sys.path.remove(str(made))


@contextlib.asynccontextmanager
async def serving(target: str, prefix: str = "") -> AsyncIterator[str]:
    options = Options(mounts=[Mount(prefix=prefix, target=target)], bind=["127.0.0.1:0"])
    server = Server(options)
    await server.start()
    try:
        yield server.addresses[0] + prefix
    finally:
        await server.stop(10)


async def get(
    url: str, data: bytes | None = None, kind: str = "text/plain", method: str | None = None
) -> tuple[bytes, Any]:
    """Body and headers."""

    def ask() -> tuple[bytes, Any]:
        asked = urllib.request.Request(f"http://{url}", data, {"Content-Type": kind}, method=method)
        with urllib.request.urlopen(asked, timeout=10) as answer:
            return answer.read(), answer.headers

    return await asyncio.to_thread(ask)


def test_starlette_streams_and_has_its_state_and_its_prefix(run: Run, folder: Path) -> None:
    async def test() -> None:
        async with serving("my_starlette:app", "/api") as base:
            wanted = b'{"greeting":"good day","root":"/api","body":"text"}'
            assert (await get(f"{base}/hello", b"text"))[0] == wanted
            assert (await get(f"{base}/stream"))[0] == NUMBERS
            assert (await get(f"{base}/source"))[0] == (folder / "my_starlette.py").read_bytes()

    run(test())


def test_starlette_has_websockets(run: Run) -> None:
    async def test() -> None:
        async with serving("my_starlette:app") as base:
            async with websockets.connect(f"ws://{base}/echo", subprotocols=["shout"]) as socket:  # type: ignore[list-item]
                assert socket.subprotocol == "shout"
                for number in range(100):
                    await socket.send(f"text {number}")
                    assert await socket.recv() == f"TEXT {number}"

    run(test())


def test_a_websocket_is_told_that_the_server_restarts(run: Run) -> None:
    async def test() -> None:
        async with serving("my_starlette:app") as base:
            socket = await websockets.connect(f"ws://{base}/echo", subprotocols=["shout"])  # type: ignore[list-item]
            await socket.send("text")
            assert await socket.recv() == "TEXT"
        with pytest.raises(websockets.ConnectionClosed):
            await socket.recv()
        assert socket.close_code == 1012

    run(test())


def test_a_lifespan_of_starlette_that_raises_ends_the_start(run: Run) -> None:
    async def test() -> None:
        with pytest.raises(ServerError, match="did not start: ValueError: no database$"):
            async with serving("my_starlette:broken"):
                pass

    run(test())


def test_fastapi_answers_from_coroutines_and_threads(run: Run) -> None:
    async def test() -> None:
        async with serving("my_fastapi:app") as base:
            answer, _ = await get(f"{base}/order/tea?loud=1", b'{"number": 7}', "application/json")
            assert answer == b'{"name":"TEA","number":7}'
            assert (await get(f"{base}/thread"))[0] == b"true"

    run(test())


MULTIPART = (
    b'--cut\r\nContent-Disposition: form-data; name="one"; filename="one"\r\n\r\n'
    + b"x" * 3_000_000
    + b"\r\n--cut--\r\n"
)


@pytest.mark.parametrize("target", ["my_django:asgi", "my_django:wsgi"])
def test_django_is_served_either_way(run: Run, target: str) -> None:
    async def test() -> None:
        async with serving(target, "/site") as base:
            answer, _ = await get(f"{base}/hello?q=%C3%A9", b"text")
            wanted = '{"path": "/site/hello", "root": "/site", "q": "\\u00e9", "body": "text"}'
            assert answer.decode() == wanted
            assert (await get(f"{base}/later"))[0] == b'{"later": true}'
            assert (await get(f"{base}/stream"))[0] == NUMBERS
            upload = await get(f"{base}/upload", MULTIPART, "multipart/form-data; boundary=cut")
            assert upload[0] == b'{"one": 3000000}'

    run(test())


@pytest.mark.parametrize("target", ["my_flask:app", "my_flask:make()", "my_flask:app.wsgi_app"])
def test_flask_is_served(run: Run, folder: Path, target: str) -> None:
    async def test() -> None:
        async with serving(target, "/shop") as base:
            answer, _ = await get(f"{base}/hello?q=%C3%A9", b"text")
            assert answer == b'{"body":"text","path":"/hello","q":"\\u00e9","root":"/shop"}\n'
            assert (await get(f"{base}/stream"))[0] == NUMBERS
            upload = await get(f"{base}/upload", MULTIPART, "multipart/form-data; boundary=cut")
            assert upload[0] == b'{"one":3000000}\n'
            body, headers = await get(f"{base}/source")
            assert body == (folder / "my_flask.py").read_bytes()
            nothing, head = await get(f"{base}/source", method="HEAD")
            assert nothing == b"" and head["Content-Length"] == headers["Content-Length"]

    run(test())
