"""What is called secure is: a tap on the wire sees TLS and nothing else, and who speaks plainly gets nothing."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable

import aiohttp
import pytest
from servers import Server, Tap, tls_records, uvicorn
from support import Certificates, run
from websockets.asyncio.client import connect
from websockets.exceptions import WebSocketException

from erlang_loop import ErlangEventLoop

SECRET = b"the-marker-that-nobody-may-see"
HANDSHAKE, DATA = 22, 23
# How the clients tell that they could not talk: all of them the network's or the protocol's errors.
REFUSALS = (OSError, EOFError, aiohttp.ClientError, WebSocketException)

Serve = Callable[[bool], contextlib.AbstractContextManager[Server]]
Ask = Callable[[int, bool], None]  # sends the secret to that port, and wants it back


@pytest.fixture(params=["uvicorn h11", "uvicorn httptools", "aiohttp", "websockets", "streams"])
def service(request: pytest.FixtureRequest, certificates: Certificates) -> tuple[Serve, Ask]:
    """A server on our loop, with and without TLS, and a client on our loop that sends it the secret."""
    name = request.param
    files = [str(certificates.certificate), str(certificates.key)]

    def serve(secure: bool) -> contextlib.AbstractContextManager[Server]:
        if name.startswith("uvicorn"):
            tls = ["--ssl-certfile", files[0], "--ssl-keyfile", files[1]] if secure else []
            return uvicorn("--http", name.split()[1], *tls)
        program = "aiohttp_server.py" if name == "aiohttp" else "echo_server.py"
        kind = [] if name == "aiohttp" else [name]
        return Server(program, *kind, *(["--tls", *files] if secure else []))

    async def http(port: int, secure: bool) -> None:
        url = f"{'https' if secure else 'http'}://localhost:{port}/echo"
        url += "/" if name.startswith("uvicorn") else ""
        how = {"ssl": certificates.client()} if secure else {}
        async with aiohttp.ClientSession() as session:
            async with session.post(url, data=SECRET * 100, **how) as response:  # type: ignore[arg-type]
                assert await response.read() == SECRET * 100

    async def websocket(port: int, secure: bool) -> None:
        url = f"{'wss' if secure else 'ws'}://localhost:{port}"
        how = {"ssl": certificates.client()} if secure else {}
        async with connect(url, compression=None, **how) as connection:  # type: ignore[arg-type]
            await connection.send(SECRET * 100)
            assert await connection.recv() == SECRET * 100

    async def streams(port: int, secure: bool) -> None:
        reader, writer = await asyncio.open_connection(
            "localhost", port, ssl=certificates.client() if secure else None
        )
        writer.write(SECRET * 100)
        assert await reader.readexactly(len(SECRET) * 100) == SECRET * 100
        writer.close()
        await writer.wait_closed()

    ask = {"websockets": websocket, "streams": streams}.get(name, http)
    return serve, lambda port, secure: run(ErlangEventLoop, lambda: ask(port, secure))


def test_a_tap_sees_tls_and_nothing_of_what_is_said(service: tuple[Serve, Ask]) -> None:
    serve, ask = service
    with serve(True) as server, Tap(server.port) as tap:
        ask(tap.port, True)
        ask(tap.port, True)
    for direction in (tap.up, tap.down):
        kinds = tls_records(bytes(direction))
        assert kinds[0] == HANDSHAKE and DATA in kinds
        assert len(direction) > len(SECRET) * 200
        assert SECRET not in direction and SECRET[:10] not in direction
        assert b"HTTP" not in direction and b"websocket" not in direction


def test_the_same_tap_sees_everything_where_there_is_no_tls(service: tuple[Serve, Ask]) -> None:
    """What the test above does not see it would have seen."""
    serve, ask = service
    with serve(False) as server, Tap(server.port) as tap:
        ask(tap.port, False)
    # A WebSocket client masks what it sends; what it hears is plain.
    assert SECRET in tap.down and (SECRET in tap.up or b"Sec-WebSocket-Key" in tap.up)
    with pytest.raises(AssertionError):
        tls_records(bytes(tap.down))


def test_who_speaks_plainly_to_a_secure_server_gets_nothing_and_harms_nobody(
    service: tuple[Serve, Ask],
) -> None:
    serve, ask = service
    with serve(True) as server:
        for text in (
            b"GET /where HTTP/1.1\r\nHost: x\r\n\r\n",
            SECRET,
            b"\x16\x03\x01",
            b"\0" * 5000,
        ):
            with socket.create_connection(("127.0.0.1", server.port), timeout=10) as sock:
                sock.sendall(text)
                sock.shutdown(socket.SHUT_WR)
                got = b""
                with contextlib.suppress(ConnectionResetError):
                    while data := sock.recv(1000):
                        got += data
            assert got == b"" or tls_records(got) == [21], got  # nothing, or an alert
        ask(server.port, True)
        with pytest.raises(REFUSALS):
            ask(server.port, False)
        ask(server.port, True)


def test_a_client_that_wants_tls_does_not_talk_to_a_server_without(
    service: tuple[Serve, Ask],
) -> None:
    serve, ask = service
    with serve(False) as server, Tap(server.port) as tap:
        with pytest.raises(REFUSALS):
            ask(tap.port, True)
    assert SECRET not in tap.up
