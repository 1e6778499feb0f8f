"""The same few pages by Starlette, FastAPI, Django and Flask."""

from __future__ import annotations

from typing import Any

import django
from django.conf import settings
from django.core.handlers.asgi import ASGIHandler
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.urls import path
from fastapi import FastAPI
from flask import Flask
from flask import request as flask_request
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route


async def hello(request: Request) -> Response:
    answer = PlainTextResponse("Hello, " + request.query_params.get("name", "world"))
    answer.set_cookie("seen", "1")
    answer.set_cookie("other", "2")
    return answer


async def upload(request: Request) -> Response:
    return JSONResponse({"length": len(await request.body()), "type": request.headers["x-type"]})


async def pieces(request: Request) -> Response:
    return StreamingResponse((b"%d," % number for number in range(100)), media_type="text/plain")


starlette = Starlette(
    routes=[
        Route("/hello", hello),
        Route("/upload", upload, methods=["POST"]),
        Route("/pieces", pieces),
    ]
)

fastapi = FastAPI()


@fastapi.get("/hello")
async def fastapi_hello(name: str = "world") -> dict[str, str]:
    return {"hello": name}


@fastapi.post("/upload")
def fastapi_upload(items: list[int]) -> dict[str, int]:
    return {"sum": sum(items)}


def django_hello(request: HttpRequest) -> HttpResponse:
    answer = HttpResponse("Hello, " + request.GET.get("name", "world"))
    answer.set_cookie("seen", "1")
    return answer


def django_upload(request: HttpRequest) -> HttpResponse:
    return JsonResponse({"length": len(request.body), "type": request.headers["x-type"]})


urlpatterns = [path("hello", django_hello), path("upload", django_upload)]
settings.configure(ROOT_URLCONF=__name__, ALLOWED_HOSTS=["test"], SECRET_KEY="a test", DEBUG=False)
django.setup()
django_app: Any = ASGIHandler()

flask_app = Flask(__name__)


@flask_app.get("/hello")
def flask_hello() -> tuple[str, dict[str, str]]:
    return "Hello, " + flask_request.args.get("name", "world"), {"x-script": flask_request.path}


@flask_app.post("/upload")
def flask_upload() -> dict[str, object]:
    return {"length": len(flask_request.get_data()), "type": flask_request.headers["x-type"]}


@flask_app.get("/pieces")
def flask_pieces() -> Any:
    return flask_app.response_class((b"%d," % number for number in range(100)))
