"""FastAPI under uvicorn on our loop: routes, streams both ways, WebSockets, lifespan, and how it ends."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
from collections.abc import Iterator
from typing import Any

import aiohttp
import pytest
from servers import OURS, Server, uvicorn
from support import Certificates, reset, run, wait_for

from erlang_loop import ErlangEventLoop

HTTP = ["h11", "httptools"]


@pytest.fixture(scope="module", params=HTTP)
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    with uvicorn("--http", request.param) as serving:
        yield serving


def get(server: Server, path: str, *, scheme: str = "http", **how: Any) -> tuple[int, bytes, Any]:
    async def ask() -> tuple[int, bytes, Any]:
        async with aiohttp.ClientSession() as session:
            method = how.pop("method", "GET")
            url = f"{scheme}://localhost:{server.port}{path}"
            async with session.request(method, url, **how) as response:
                return response.status, await response.read(), response.headers.copy()

    return run(ErlangEventLoop, ask)


def test_the_application_runs_on_our_loop_with_its_lifespan(server: Server) -> None:
    status, body, headers = get(server, "/where")
    assert status == 200 and headers["x-loop"] == OURS
    assert body == b'{"loop":"ErlangEventLoop","state":"state","scheme":"http","http":"1.1"}'


def test_plain_functions_run_on_threads_and_files_are_sent(server: Server) -> None:
    assert get(server, "/thread")[1] == b'{"main":false}'
    with open(os.path.join(os.path.dirname(__file__), "asgi_app.py"), "rb") as file:
        assert get(server, "/file")[1] == file.read()


def test_a_body_of_megabytes_is_echoed_while_it_arrives(server: Server) -> None:
    payload = os.urandom(5_000_000)

    async def pieces() -> Any:
        for start in range(0, len(payload), 50_000):
            yield payload[start : start + 50_000]

    assert get(server, "/echo/", method="POST", data=pieces())[1] == payload


def test_a_streamed_answer_comes_whole(server: Server) -> None:
    assert get(server, "/numbers/2000")[1] == b"".join(b"%d\n" % number for number in range(2000))


def test_a_client_that_goes_ends_an_endless_stream(server: Server) -> None:
    for end in ("close", "reset"):
        before = get(server, "/events")[1].count(b"endless: ended")
        sock = socket.create_connection(("127.0.0.1", server.port))
        sock.sendall(b"GET /endless HTTP/1.1\r\nHost: x\r\n\r\n")
        got = 0
        while got < 1_000_000:
            got += len(sock.recv(65536))
        (sock.close if end == "close" else lambda: reset(sock))()

        async def ended() -> None:
            async with aiohttp.ClientSession() as session:
                while True:
                    async with session.get(f"http://localhost:{server.port}/events") as answer:
                        if (await answer.json()).count("endless: ended") > before:
                            return
                    await asyncio.sleep(0.02)

        run(ErlangEventLoop, lambda: asyncio.wait_for(ended(), 10))


def test_background_tasks_run_after_the_answer_and_errors_are_answers(server: Server) -> None:
    assert get(server, "/later", method="POST")[1] == b'"promised"'
    wait_for(lambda: b"in the background" in get(server, "/events")[1])
    assert get(server, "/broken")[0] == 500
    assert get(server, "/where")[0] == 200
    assert "ValueError: broken route" in server.output


def test_many_clients_at_once_get_their_own_answers(server: Server) -> None:
    async def main() -> None:
        async with aiohttp.ClientSession() as session:

            async def one(number: int) -> None:
                data = b"%d " % number * (number % 7 * 1000 + 1)
                url = f"http://localhost:{server.port}/echo/"
                async with session.post(url, data=data) as response:
                    assert await response.read() == data

            await asyncio.gather(*(one(number) for number in range(300)))

    run(ErlangEventLoop, main)


def test_requests_in_one_connection_are_answered_in_order(server: Server) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as sock:
        sock.sendall(b"GET /numbers/3 HTTP/1.1\r\nHost: x\r\n\r\n" * 5)
        sock.sendall(b"GET /numbers/1 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        got = b""
        while data := sock.recv(65536):
            got += data
    assert got.count(b"HTTP/1.1 200") == 6 and got.count(b"2\n\r\n") == 5


@pytest.mark.parametrize("implementation", ["websockets", "websockets-sansio"])
def test_websockets_talk_both_ways_and_close_from_either_side(implementation: str) -> None:
    async def main(port: int) -> None:
        async with aiohttp.ClientSession() as session:
            url = f"http://localhost:{port}/ws"
            async with session.ws_connect(url) as ws:
                await ws.send_str("loop?")
                assert await ws.receive_str() == OURS
                for size in (1, 200, 70_000, 500_000):
                    await ws.send_str("x" * size)
                    assert await ws.receive_str() == "X" * size
                    await ws.send_bytes(bytes(range(250)) * (size // 250 + 1))
                    assert await ws.receive_bytes() == (bytes(range(250)) * (size // 250 + 1))[::-1]
                await ws.send_str("close, please")
                message = await ws.receive()
                assert message.type is aiohttp.WSMsgType.CLOSE and message.data == 4001
            async with session.ws_connect(url) as ws:
                await ws.send_str("and now I go")
                assert await ws.receive_str() == "AND NOW I GO"
            async with asyncio.timeout(10):
                while True:
                    async with session.get(f"http://localhost:{port}/events") as response:
                        if "websocket: gone" in await response.json():
                            break
                    await asyncio.sleep(0.02)

    with uvicorn("--ws", implementation, "--ws-max-size", "1000000") as server:
        run(ErlangEventLoop, lambda: main(server.port))


def test_everything_works_over_tls_as_well(certificates: Certificates) -> None:
    options = ["--ssl-keyfile", certificates.key, "--ssl-certfile", certificates.certificate]
    with uvicorn(*map(str, options)) as server:
        secure = {"ssl": certificates.client(), "scheme": "https"}
        status, body, headers = get(server, "/where", **secure)
        assert (status, headers["x-loop"]) == (200, OURS) and b'"scheme":"https"' in body
        payload = os.urandom(3_000_000)
        assert get(server, "/echo/", method="POST", data=payload, **secure)[1] == payload

        async def websocket() -> None:
            async with aiohttp.ClientSession() as session:
                url = f"wss://localhost:{server.port}/ws"
                async with session.ws_connect(url, ssl=certificates.client()) as ws:
                    await ws.send_str("secure")
                    assert await ws.receive_str() == "SECURE"

        run(ErlangEventLoop, websocket)
        assert server.stop() in (0, -signal.SIGTERM)
        assert "Traceback" not in server.output


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_it_ends_as_uvicorn_does_with_what_runs_finished_and_its_lifespan_over(how: int) -> None:
    with uvicorn() as server:
        with socket.create_connection(("127.0.0.1", server.port), timeout=10) as sock:
            sock.sendall(b"GET /numbers/20000 HTTP/1.1\r\nHost: x\r\n\r\n")
            got = sock.recv(1000)
            server.process.send_signal(how)
            with contextlib.suppress(ConnectionResetError):
                while data := sock.recv(65536):
                    got += data
            assert b"\n19999\n" in got
        code = server.process.wait(15)
        server.reader.join()
        assert code in (0, -how, 128 + how)
        text = server.output
        assert "lifespan: started" in text and "lifespan: stopped" in text
        assert "Finished server process" in text and "Traceback" not in text, text


def test_uvicorn_run_in_a_program_takes_our_loop_by_name() -> None:
    code = (
        "import uvicorn; uvicorn.run('asgi_app:app', port=0, loop='erlang_loop:ErlangEventLoop',"
        " use_colors=False)"
    )
    with Server("-c", code) as server:
        assert get(server, "/where")[2]["x-loop"] == OURS
        assert server.stop() in (0, -signal.SIGTERM)


def test_several_worker_processes_each_have_our_loop() -> None:
    with uvicorn("--workers", "2") as server:
        server.said(r"(?s)(Application startup complete.*){2}")
        for _ in range(10):
            assert get(server, "/where")[2]["x-loop"] == OURS
        assert server.stop() in (0, -signal.SIGTERM)
        assert server.output.count("lifespan: stopped") == 2


def test_a_unix_socket_serves_as_well(tmp_path: Any) -> None:
    path = str(tmp_path / "uvicorn.sock")

    async def ask() -> str:
        async with aiohttp.ClientSession(connector=aiohttp.UnixConnector(path)) as session:
            async with session.get("http://anything/where") as response:
                return str(response.headers["x-loop"])

    command = ("-m", "uvicorn", "asgi_app:app", "--uds", path, "--no-use-colors")
    command = (*command, "--loop", "erlang_loop:new_event_loop")
    with Server(*command, where="running on unix socket"):
        assert run(ErlangEventLoop, ask) == OURS
