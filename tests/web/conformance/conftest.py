"""Which servers the tests speak to.

WEB_SERVERS names them: "ours,ours-loop", or "granian" to see what a test says of another one. Unset, it is the program
itself, and for tests that are marked `everywhere` the native protocol on asyncio's own loop, too.
A server is started when the first test asks for it, one for each set of options, and all are looked at when they end:
none may have crashed, given an application what ASGI does not have, or left a traceback that no test asked for.
"""

from __future__ import annotations

import functools
import os
import secrets
from collections.abc import Iterator
from typing import Any

import pytest
from servers import REFERENCE, Server, Start

SUBJECTS = tuple(filter(None, os.environ.get("WEB_SERVERS", "").split(",")))


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "everywhere: not of the program alone")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "kind" in metafunc.fixturenames:
        everywhere = metafunc.definition.get_closest_marker("everywhere")
        kinds = ("program", "ours") if everywhere else ("program",)
        metafunc.parametrize("kind", SUBJECTS or kinds, scope="session")


@pytest.fixture(scope="session")
def start() -> Iterator[Start]:
    """Starts a server, or gives the one that runs with the same options."""
    servers: list[Server] = []

    @functools.cache
    def started(kind: str, target: str = "app:app", **options: Any) -> Server:
        server = Server(kind, target, **options)
        servers.append(server)
        return server

    yield started
    faults = []
    for server in servers:
        alive = server.process.poll() is None
        code = server.stop()
        if not alive or code not in (0, -15):
            faults.append(f"{server.kind}: exited with {code}:\n{server.output[-4000:]}")
        faults += [f"{server.kind}: {fault}" for fault in sorted(set(server.violations))]
        server.log.close()
    assert not faults, "\n".join(faults)


@pytest.fixture(scope="session")
def server(start: Start, kind: str) -> Server:
    return start(kind)


@pytest.fixture(scope="session")
def reference(start: Start) -> Server:
    return start(REFERENCE)


@pytest.fixture
def token() -> str:
    """What a test's handlers note things under, and nobody else's."""
    return secrets.token_hex(8)
