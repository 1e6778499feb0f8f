"""Applications of frameworks answer the same bytes as under uvicorn, and those of WSGI as under wsgiref."""

from __future__ import annotations

import pytest
from client import Response
from servers import REFERENCE, Start
from test_requests import BIG, ask, chunked, chunked_request, request

REQUESTS = {
    "a page": request("/hello"),
    "a query": request("/hello?name=caf%C3%A9+x"),
    "HEAD": request("/hello", method="HEAD"),
    "nothing there": request("/nowhere"),
    "a method not allowed": request("/upload", method="DELETE"),
    "an upload": request("/upload", "x-type: a", method="POST", body=BIG),
    "JSON": request("/upload", "x-type: a", "content-type: application/json", method="POST",
                    body=b"[1, 2, 3]"),
    "chunks": chunked_request("/upload", chunked(b"[1,", b"2]"), "x-type: a",
                              "content-type: application/json"),
    "a stream": request("/pieces"),
}  # fmt: skip


def told(answer: Response) -> tuple[object, ...]:
    return answer.status, sorted(answer.told), answer.body, answer.whole


def method(data: bytes) -> str:
    return data.split(b" ")[0].decode()


@pytest.mark.parametrize("name", REQUESTS)
@pytest.mark.parametrize("framework", ["starlette", "fastapi", "django_app"])
def test_a_frameworks_answers_are_those_it_gives_under_the_reference(
    start: Start, kind: str, framework: str, name: str
) -> None:
    data = REQUESTS[name]
    target = f"frameworks:{framework}"
    ours = ask(start("server" if kind == "ours" else kind, target), data, method(data))
    theirs = ask(start(REFERENCE, target), data, method(data))
    assert told(ours) == told(theirs)


@pytest.mark.parametrize("name", [name for name in REQUESTS if name != "chunks"])
def test_flasks_answers_are_those_it_gives_under_wsgiref(
    start: Start, kind: str, name: str
) -> None:
    data = REQUESTS[name]
    target = "frameworks:flask_app"
    ours = ask(start("server" if kind == "ours" else kind, target, wsgi=True), data, method(data))
    theirs = ask(start("wsgiref", target), data, method(data))
    assert told(ours) == told(theirs)
