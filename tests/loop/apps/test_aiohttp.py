"""aiohttp on our loop: its server, its client, WebSockets, files by sendfile, TLS, and an orderly end."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from servers import OURS, Server
from support import Certificates, reset, run

from erlang_loop import ErlangEventLoop


@pytest.fixture(scope="module", params=["http", "https"])
def server(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    certificates: Certificates,
) -> Iterator[tuple[Server, str]]:
    path = tmp_path_factory.mktemp("aiohttp") / "file"
    path.write_bytes(os.urandom(3_000_000))
    secure = ["--tls", str(certificates.certificate), str(certificates.key)]
    options = ["--file", str(path), *(secure if request.param == "https" else [])]
    with Server("aiohttp_server.py", *options) as serving:
        yield serving, f"{request.param}://localhost:{serving.port}"


@pytest.fixture
def ssl_of(certificates: Certificates) -> dict[str, Any]:
    return {"ssl": certificates.client()}


def test_run_app_takes_our_loop(server: tuple[Server, str], ssl_of: dict[str, Any]) -> None:
    async def main() -> None:
        async with aiohttp.ClientSession() as session:
            async with session.get(server[1] + "/where", **ssl_of) as response:
                secure = server[1].startswith("https")
                assert await response.json() == {"loop": OURS, "secure": secure}

    run(ErlangEventLoop, main)


def test_bodies_are_echoed_while_they_arrive(
    server: tuple[Server, str], ssl_of: dict[str, Any]
) -> None:
    async def main() -> None:
        payload = os.urandom(5_000_000)

        async def pieces() -> AsyncIterator[bytes]:
            for start in range(0, len(payload), 30_000):
                yield payload[start : start + 30_000]

        async with aiohttp.ClientSession() as session:
            async with session.post(server[1] + "/echo", data=pieces(), **ssl_of) as response:
                assert await response.read() == payload

            async def one(number: int) -> None:
                data = b"%d" % number * (number % 5 * 5000 + 1)
                async with session.post(server[1] + "/echo", data=data, **ssl_of) as response:
                    assert await response.read() == data

            await asyncio.gather(*(one(number) for number in range(200)))

    run(ErlangEventLoop, main)


def test_files_are_sent_whole_and_in_part(
    server: tuple[Server, str], ssl_of: dict[str, Any]
) -> None:
    """aiohttp sends them with loop.sendfile, its client goes through the fallback for TLS."""

    async def main() -> None:
        async with aiohttp.ClientSession() as session:
            async with session.get(server[1] + "/file", **ssl_of) as response:
                whole = await response.read()
                assert len(whole) == 3_000_000
            part = {"Range": "bytes=1000-2000999"}
            async with session.get(server[1] + "/file", headers=part, **ssl_of) as response:
                assert response.status == 206 and await response.read() == whole[1000:2_001_000]
            async with session.get(server[1] + "/file", **ssl_of) as response:
                await response.content.readexactly(100_000)
                response.close()  # goes in the middle of it
            async with session.get(server[1] + "/where", **ssl_of) as response:
                assert response.status == 200

    run(ErlangEventLoop, main)


def test_websockets_carry_text_and_bytes_of_any_size(
    server: tuple[Server, str], ssl_of: dict[str, Any]
) -> None:
    async def main() -> None:
        async with aiohttp.ClientSession() as session:
            async with session.ws_connect(server[1] + "/ws", **ssl_of) as ws:
                for size in (0, 1, 126, 70_000, 1_000_000):
                    await ws.send_str("é" * size)
                    assert await ws.receive_str() == "É" * size
                    data = os.urandom(size)
                    await ws.send_bytes(data)
                    assert await ws.receive_bytes() == data[::-1]
                await ws.ping()
            assert ws.close_code == 1000

            async def one(number: int) -> None:
                async with session.ws_connect(server[1] + "/ws", **ssl_of) as ws:
                    for turn in range(10):
                        await ws.send_str(f"n{number} t{turn}")
                        assert await ws.receive_str() == f"N{number} T{turn}"

            await asyncio.gather(*(one(number) for number in range(50)))

    run(ErlangEventLoop, main)


def test_clients_that_are_cancelled_time_out_or_reset_leave_the_server_serving(
    server: tuple[Server, str], ssl_of: dict[str, Any]
) -> None:
    async def main() -> None:
        for _ in range(30):
            sock = socket.create_connection(("127.0.0.1", server[0].port))
            sock.send(b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\nhalf")
            reset(sock)
        async with aiohttp.ClientSession() as session:
            for seconds in (0.001, 0.01, 0.05):
                with pytest.raises(TimeoutError):
                    limit = aiohttp.ClientTimeout(total=seconds)
                    async with session.get(
                        server[1] + "/slow", timeout=limit, **ssl_of
                    ) as response:
                        await response.read()
            tasks = [
                asyncio.ensure_future(session.get(server[1] + "/slow", **ssl_of)) for _ in range(20)
            ]
            await asyncio.sleep(0.05)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            async with session.get(server[1] + "/where", **ssl_of) as response:
                assert response.status == 200

    run(ErlangEventLoop, main)


def test_a_client_does_not_trust_a_certificate_that_it_has_no_reason_to(
    certificates: Certificates,
) -> None:
    async def main(port: int) -> None:
        async with aiohttp.ClientSession() as session:
            with pytest.raises(aiohttp.ClientConnectorCertificateError):
                await session.get(f"https://localhost:{port}/where")

    with Server(
        "aiohttp_server.py", "--tls", str(certificates.certificate), str(certificates.key)
    ) as server:
        run(ErlangEventLoop, lambda: main(server.port))


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_it_ends_as_run_app_does_with_what_runs_finished(how: int) -> None:
    with Server("aiohttp_server.py") as server:
        with socket.create_connection(("127.0.0.1", server.port), timeout=10) as sock:
            sock.sendall(b"GET /slow HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            # It is being served when the signal comes.
            sock.settimeout(0.1)
            with pytest.raises(TimeoutError):
                sock.recv(1)
            sock.settimeout(10)
            server.process.send_signal(how)
            got = b""
            while data := sock.recv(1000):
                got += data
            assert got.endswith(b"finished")
        assert server.process.wait(15) == 0
        server.reader.join()
        assert "started" in server.output and "cleaned up" in server.output
        assert "Traceback" not in server.output, server.output


@asynccontextmanager
async def site(handler: Any) -> AsyncIterator[str]:
    """A server on the test's own loop, by aiohttp's runners."""
    app = web.Application()
    app.router.add_get("/", handler)
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield "http://127.0.0.1:%d/" % runner.addresses[0][1]
    finally:
        await runner.cleanup()


def test_server_and_client_share_one_loop(tmp_path: Path) -> None:
    async def main() -> None:
        async def handler(request: web.Request) -> web.Response:
            return web.Response(text=type(asyncio.get_running_loop()).__name__)

        async with site(handler) as url, aiohttp.ClientSession() as session:
            for _ in range(50):
                async with session.get(url) as response:
                    assert await response.text() == OURS

    run(ErlangEventLoop, main)
    run(ErlangEventLoop, main, debug=True)


def test_names_are_found_and_both_families_tried() -> None:
    """aiohttp has happy eyeballs of its own, over sock_connect; nothing listens on ::1."""

    async def main() -> None:
        async def handler(request: web.Request) -> web.Response:
            return web.Response(text=str(request.remote))

        async with site(handler) as url, aiohttp.ClientSession() as session:
            async with session.get(url.replace("127.0.0.1", "localhost")) as response:
                assert await response.text() == "127.0.0.1"
            with pytest.raises(aiohttp.ClientConnectorError):
                await session.get("http://[::1]:%s/" % url.rsplit(":", 1)[1].strip("/"))

    run(ErlangEventLoop, main)
