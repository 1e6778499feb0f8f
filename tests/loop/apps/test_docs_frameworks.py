"""The programs of docs/event_loop.md that need a framework print what it says; so do its ways to start uvicorn."""

from __future__ import annotations

import pytest
import test_docs
from servers import Server

PROGRAMS = test_docs.numbered("program", test_docs.programs(of_frameworks=True))


@pytest.mark.parametrize("program, output", PROGRAMS)
def test_a_program_of_the_page_prints_what_the_page_says(program: str, output: str) -> None:
    test_docs.check(program, output)


def test_the_pages_ways_to_start_uvicorn_start_it_on_our_loop() -> None:
    options = "uvicorn --loop erlang_loop:new_event_loop"
    call = 'uvicorn.run(app, loop="erlang_loop:new_event_loop")'
    assert options in test_docs.PAGE and call in test_docs.PAGE
    with Server("-m", *options.split(), "--port", "0", "asgi_app:app") as server:
        assert server.port
    program = "import uvicorn; from asgi_app import app; " + call[:-1] + ", port=0)"
    with Server("-c", program) as server:
        assert server.port
