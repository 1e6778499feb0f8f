"""The server: what it serves, where, and how it starts and stops. Asked over sockets, on our loop and on asyncio's own."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
import shutil
import socket
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest

import erlang_loop
from erlang_web import Mount, Options, Server, ServerError

PATIENCE = 10.0
Run = Callable[[Coroutine[Any, Any, Any]], Any]

MODULE = """
import asyncio, os, threading

told = []
gate = asyncio.Event()

async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        assert (await receive())["type"] == "lifespan.startup"
        scope["state"]["greeting"] = "good day"
        told.append("started")
        await send({"type": "lifespan.startup.complete"})
        assert (await receive())["type"] == "lifespan.shutdown"
        told.append("ended")
        await send({"type": "lifespan.shutdown.complete"})
        return
    body = b""
    more = True
    while more:
        message = await receive()
        body += message.get("body", b"")
        more = message.get("more_body", False)
    if scope["path"] == "/gate":
        told.append("waiting")
        await gate.wait()
    text = f"{scope['scheme']} {scope['root_path']}|{scope['path']} {scope['state']['greeting']} ".encode() + body
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(text))]})
    await send({"type": "http.response.body", "body": text})

def wsgi(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [f"{environ['SCRIPT_NAME']}|{environ['PATH_INFO']} ".encode() + environ["wsgi.input"].read()]

async def talk(scope, receive, send):
    if scope["type"] == "lifespan":
        raise NotImplementedError
    await receive()
    if scope["path"] == "/reject":
        return await send({"type": "websocket.close"})
    if scope["path"] == "/deny":
        await send({"type": "websocket.http.response.start", "status": 401, "headers": []})
        return await send({"type": "websocket.http.response.body", "body": b"who?"})
    if scope["path"] == "/fail":
        raise ValueError("on purpose")
    await send({"type": "websocket.accept"})
    while (message := await receive())["type"] == "websocket.receive":
        if message["text"] == "bye":
            return await send({"type": "websocket.close", "code": 4000})
        await send({"type": "websocket.send", "text": message["text"] * 2})

async def failing(scope, receive, send):
    await receive()
    await send({"type": "lifespan.startup.failed", "message": "no database"})
"""


@pytest.fixture(params=["erlang", "asyncio"])
def run(request: pytest.FixtureRequest) -> Run:
    make = erlang_loop.new_event_loop if request.param == "erlang" else asyncio.new_event_loop

    def runs(coroutine: Coroutine[Any, Any, Any]) -> Any:
        with asyncio.Runner(loop_factory=make) as runner:
            return runner.run(coroutine)

    return runs


@pytest.fixture(autouse=True)
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A working directory with a module `shop`."""
    (tmp_path / "shop.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [one for one in sys.path if one])
    yield
    sys.modules.pop("shop", None)


def options(*, mounts: dict[str, str] | None = None, **more: Any) -> Options:
    names = mounts if mounts is not None else {"": "shop:app"}
    more.setdefault("bind", ["127.0.0.1:0"])
    return Options(
        mounts=[Mount(prefix=one, target=target) for one, target in names.items()], **more
    )


@contextlib.asynccontextmanager
async def serving(**more: Any) -> AsyncIterator[Server]:
    server = Server(options(**more))
    await server.start()
    try:
        yield server
    finally:
        await server.stop(PATIENCE)


async def connect(address: str, **more: Any) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    if address.startswith("unix:"):
        return await asyncio.open_unix_connection(address[5:], **more)
    host, _, port = address.rpartition(":")
    return await asyncio.open_connection(host.strip("[]"), int(port), **more)


async def ask(address: str, path: str = "/", body: bytes = b"", **more: Any) -> tuple[int, bytes]:
    """Status and body of one request on a connection of its own."""
    reader, writer = await connect(address, **more)
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n"
    writer.write(head.encode() + body)
    try:
        async with asyncio.timeout(PATIENCE):
            status = int((await reader.readline()).split()[1])
            fields = dict([line async for line in fields_of(reader)])
            return status, await reader.readexactly(int(fields.get(b"content-length", b"0")))
    finally:
        writer.close()


async def fields_of(reader: asyncio.StreamReader) -> AsyncIterator[tuple[bytes, bytes]]:
    while line := (await reader.readline()).strip():
        name, _, value = line.partition(b":")
        yield name.lower(), value.strip()


async def until(what: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not what():
            await asyncio.sleep(0.01)


def told() -> list[str]:
    found: list[str] = sys.modules["shop"].told
    return found


# --- applications ---------------------------------------------------------------------------------


def test_an_application_is_served_between_its_start_and_its_end(run: Run) -> None:
    async def test() -> None:
        async with serving() as server:
            assert told() == ["started"]
            assert await ask(server.addresses[0], "/x", b"body") == (200, b"http |/x good day body")
        assert told() == ["started", "ended"]

    run(test())


def test_without_lifespan_an_application_is_not_told(run: Run) -> None:
    async def test() -> None:
        async with serving(lifespan="off"):
            assert told() == []

    run(test())


def test_applications_have_prefixes_and_the_longest_one_counts(run: Run) -> None:
    async def test() -> None:
        mounts = {"/a": "shop:app", "": "shop:wsgi", "/a/b": "shop:wsgi"}
        async with serving(mounts=mounts) as server:
            (address,) = server.addresses
            assert await ask(address, "/x") == (200, b"|/x ")
            assert await ask(address, "/a/x") == (200, b"http /a|/a/x good day ")
            assert await ask(address, "/a") == (200, b"http /a|/a good day ")
            assert await ask(address, "/a/b/c", b"body") == (200, b"/a/b|/c body")
            assert await ask(address, "/ab") == (200, b"|/ab ")

    run(test())


def test_what_no_prefix_covers_is_not_found(run: Run) -> None:
    async def test() -> None:
        async with serving(mounts={"/a": "shop:wsgi"}) as server:
            assert (await ask(server.addresses[0], "/b"))[0] == 404
            assert (await ask(server.addresses[0], "/a/b"))[0] == 200

    run(test())


@pytest.mark.parametrize(
    "more, line",
    [
        ({"mounts": {}}, "serve: there is no application"),
        ({"mounts": {"": "nowhere:app"}}, "serve: 'nowhere:app': there is no module nowhere"),
        ({"mounts": {"/a": "shop:nothing"}}, "mount: 'shop:nothing': shop has no nothing"),
        ({"mounts": {"a": "shop:app"}}, "mount: 'a' does not begin, or ends, with a /"),
        ({"mounts": {"/": "shop:app"}}, "mount: '/' does not begin, or ends, with a /"),
        (
            {"mounts": {"": "shop:failing"}},
            "lifespan: 'shop:failing' did not start: no database",
        ),
        ({"bind": ["localhost"]}, "bind: 'localhost' is neither HOST:PORT nor unix:PATH"),
        (
            {"bind": ["127.0.0.1:65536"]},
            "bind: '127.0.0.1:65536' is neither HOST:PORT nor unix:PATH",
        ),
        ({"bind": ["::1:80"]}, "bind: '::1:80': an IPv6 address stands in brackets"),
        (
            {"bind": ["192.0.2.1:0"]},
            "bind: cannot listen on '192.0.2.1:0': Cannot assign requested address",
        ),
        (
            {"bind": ["unix:/nowhere/x"]},
            "bind: cannot listen on 'unix:/nowhere/x': No such file or directory",
        ),
        ({"tls_cert": "x"}, "web-tls-key: TLS takes both --web-tls-cert and --web-tls-key"),
        ({"tls_key": "x"}, "web-tls-cert: TLS takes both --web-tls-cert and --web-tls-key"),
    ],
)
def test_what_cannot_start_is_one_line_that_names_the_setting(
    run: Run, more: dict[str, Any], line: str
) -> None:
    async def test() -> None:
        with pytest.raises(ServerError) as raised:
            await Server(options(**more)).start()
        assert str(raised.value) == line

    run(test())


def test_a_start_that_fails_leaves_nothing_listening_and_ends_what_it_had_started(run: Run) -> None:
    async def test() -> None:
        mounts = {"/a/longer": "shop:app", "": "shop:failing"}
        with pytest.raises(ServerError):
            await Server(options(mounts=mounts, bind=["unix:x.sock"])).start()
        assert told() == ["started", "ended"]
        assert not os.path.exists("x.sock")

    run(test())


# --- sockets --------------------------------------------------------------------------------------


def test_it_listens_on_several_addresses_ipv6_and_a_unix_socket_among_them(run: Run) -> None:
    async def test() -> None:
        async with serving(bind=["127.0.0.1:0", "[::1]:0", "unix:web.sock"]) as server:
            assert [one.rpartition(":")[0] for one in server.addresses] == [
                "127.0.0.1",
                "[::1]",
                "unix",
            ]
            for address in server.addresses:
                assert (await ask(address))[0] == 200
        assert not os.path.exists("web.sock")

    run(test())


def test_without_a_host_it_listens_on_all_addresses(run: Run) -> None:
    async def test() -> None:
        async with serving(bind=[":0"]) as server:
            hosts = {one.rpartition(":")[0] for one in server.addresses}
            assert hosts == {"0.0.0.0", "[::]"}

    run(test())


def test_a_port_that_is_taken_is_told_before_an_application_starts(run: Run) -> None:
    async def test() -> None:
        with socket.create_server(("127.0.0.1", 0)) as other:
            address = f"127.0.0.1:{other.getsockname()[1]}"
            with pytest.raises(
                ServerError, match=f"^bind: cannot listen on '{address}': Address already in use$"
            ):
                await Server(options(bind=[address])).start()
        assert told() == []

    run(test())


def test_a_unix_socket_that_was_left_behind_is_replaced_and_one_in_use_is_not(run: Run) -> None:
    async def test() -> None:
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind("web.sock")
        async with serving(bind=["unix:web.sock"]) as server:
            assert (await ask("unix:web.sock"))[0] == 200
            with pytest.raises(ServerError, match="Address already in use"):
                await Server(options(bind=["unix:web.sock"])).start()
            assert (await ask(server.addresses[0]))[0] == 200

    run(test())


def test_a_file_in_the_place_of_a_unix_socket_is_left_alone(run: Run) -> None:
    async def test() -> None:
        Path("web.sock").write_text("mine")
        with pytest.raises(ServerError, match="Address already in use"):
            await Server(options(bind=["unix:web.sock"])).start()
        assert Path("web.sock").read_text() == "mine"

    run(test())


# --- TLS ------------------------------------------------------------------------------------------


def certificate(name: str) -> None:
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2"
    names = ["-subj", f"/CN={name}", "-keyout", f"{name}.key", "-out", f"{name}.pem"]
    subprocess.run([*command.split(), *names], check=True, capture_output=True)


def trusting(*names: str, version: ssl.TLSVersion | None = None) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    for name in names:
        context.load_verify_locations(f"{name}.pem")
    if version is not None:
        context.minimum_version = context.maximum_version = version
        context.set_ciphers("ALL:@SECLEVEL=0")
    return context


def test_it_speaks_tls_from_1_2_on(run: Run) -> None:
    async def test() -> None:
        certificate("one")
        async with serving(tls_cert="one.pem", tls_key="one.key") as server:
            (address,) = server.addresses
            wanted = (200, b"https |/ good day ")
            assert await ask(address, ssl=trusting("one")) == wanted
            assert await ask(address, ssl=trusting("one", version=ssl.TLSVersion.TLSv1_2)) == wanted
            with pytest.raises((ssl.SSLError, ConnectionError)):
                await ask(address, ssl=trusting("one", version=ssl.TLSVersion.TLSv1_1))

    run(test())


def test_a_renewed_certificate_counts_without_a_restart_and_a_broken_one_changes_nothing(
    run: Run,
) -> None:
    async def test() -> None:
        certificate("one")
        certificate("two")
        shutil.copy("one.pem", "now.pem")
        shutil.copy("one.key", "now.key")
        async with serving(tls_cert="now.pem", tls_key="now.key") as server:
            (address,) = server.addresses
            shutil.copy("two.pem", "now.pem")  # with the key of the other
            await asyncio.sleep(1.2)
            assert (await ask(address, ssl=trusting("one")))[0] == 200
            shutil.copy("two.key", "now.key")
            async with asyncio.timeout(PATIENCE):
                while True:
                    with contextlib.suppress(ssl.SSLError):
                        assert (await ask(address, ssl=trusting("two")))[0] == 200
                        break
                    await asyncio.sleep(0.1)

    run(test())


def test_files_that_are_no_certificate_are_told(run: Run) -> None:
    async def test() -> None:
        Path("bad.pem").write_text("nothing")
        with pytest.raises(ServerError, match="^web-tls-cert: cannot use 'bad.pem' with 'bad.pem'"):
            await Server(options(tls_cert="bad.pem", tls_key="bad.pem")).start()

    run(test())


# --- stopping -------------------------------------------------------------------------------------


def test_a_request_that_runs_is_answered_before_the_end_and_nobody_new_is_let_in(run: Run) -> None:
    async def test() -> None:
        server = Server(options())
        await server.start()
        (address,) = server.addresses
        asking = asyncio.create_task(ask(address, "/gate"))
        await until(lambda: "waiting" in told())
        stopping = asyncio.create_task(server.stop(PATIENCE))
        await asyncio.sleep(0.1)
        with pytest.raises(ConnectionRefusedError):
            await ask(address)
        assert told() == ["started", "waiting"] and server.stats()["requests"] == 1
        sys.modules["shop"].gate.set()
        assert (await asking)[0] == 200
        await stopping
        assert told() == ["started", "waiting", "ended"]

    run(test())


def test_connections_that_are_idle_do_not_hold_up_a_stop(run: Run) -> None:
    async def test() -> None:
        server = Server(options())
        await server.start()
        reader, writer = await connect(server.addresses[0])
        await until(lambda: server.stats()["connections"] == 1)
        async with asyncio.timeout(2):
            await server.stop(PATIENCE)
        assert await reader.read() == b""
        writer.close()

    run(test())


def test_a_request_that_does_not_end_is_cut_off_after_its_time(
    run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    async def test() -> None:
        server = Server(options())
        await server.start()
        asking = asyncio.create_task(ask(server.addresses[0], "/gate"))
        await until(lambda: "waiting" in told())
        async with asyncio.timeout(PATIENCE):
            await server.stop(0.2)
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError, IndexError)):
            await asking
        assert told()[-1] == "ended"
        sys.modules["shop"].gate.set()
        await asyncio.sleep(0.05)

    run(test())
    assert "1 requests" in caplog.text


def test_a_server_that_never_started_can_be_stopped(run: Run) -> None:
    run(Server(options()).stop(0))


# --- options that reach the native part -----------------------------------------------------------


async def exchange(address: str, sent: bytes) -> bytes:
    """What comes back until the server closes."""
    reader, writer = await connect(address)
    writer.write(sent)
    try:
        async with asyncio.timeout(PATIENCE):
            return await reader.read()
    finally:
        writer.close()


REQUEST = b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
POST = b"POST / HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 9\r\n\r\n123456789"


@pytest.mark.parametrize(
    "more, sent, status",
    [
        ({}, POST, 200),
        ({"max_body": 8}, POST, 413),
        ({"max_body": 9}, POST, 200),
        ({"max_line": 16}, REQUEST.replace(b"/ ", b"/a-target-beyond-that "), 414),
        ({"max_head": 64}, REQUEST.replace(b"Host", b"A: " + b"a" * 64 + b"\r\nHost"), 431),
        ({"max_headers": 1}, REQUEST, 431),
        ({"head_seconds": 0.5}, b"GET / HTTP/1.1\r\n", 408),
        ({"body_seconds": 0.5}, POST[:-1], 408),
    ],
)
def test_a_limit_that_is_set_is_kept(
    run: Run, more: dict[str, Any], sent: bytes, status: int
) -> None:
    async def test() -> None:
        async with serving(**more) as server:
            answer = await exchange(server.addresses[0], sent)
            assert answer.startswith(b"HTTP/1.1 %d " % status)

    run(test())


def test_a_connection_that_says_nothing_is_closed_after_its_time(run: Run) -> None:
    async def test() -> None:
        async with serving(idle_seconds=0.5) as server:
            answer = await exchange(
                server.addresses[0], REQUEST.replace(b"Connection: close\r\n", b"")
            )
            assert (
                answer.startswith(b"HTTP/1.1 200 ") and b"connection: close" not in answer.lower()
            )

    run(test())


def test_the_server_header_is_what_it_is_told(run: Run) -> None:
    async def test() -> None:
        for header, line in [
            ("shop/1", b"server: shop/1\r\n"),
            ("sidewinder", b"server: sidewinder\r\n"),
        ]:
            async with serving(server_header=header) as server:
                assert line in await exchange(server.addresses[0], REQUEST)
        async with serving(server_header="") as server:
            assert b"server:" not in (await exchange(server.addresses[0], REQUEST)).lower()

    run(test())


def test_behind_a_proxy_the_client_is_who_the_proxy_says(
    run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    async def test() -> None:
        async with serving(proxy_protocol=True, access_log=True) as server:
            proxied = b"PROXY TCP4 192.0.2.7 192.0.2.8 5000 80\r\n" + REQUEST
            answer = await exchange(server.addresses[0], proxied)
            assert answer.startswith(b"HTTP/1.1 200 ")
            with contextlib.suppress(ConnectionResetError):
                assert await exchange(server.addresses[0], REQUEST) == b""

    with caplog.at_level(logging.INFO, "erlang_web.access"):
        run(test())
    lines = [one.message for one in caplog.records if one.name == "erlang_web.access"]
    assert [line.split()[0] for line in lines] == ["192.0.2.7"]


# --- the log and the counters ---------------------------------------------------------------------


WHEN = r"\[\d\d/\w{3}/\d{4}:\d\d:\d\d:\d\d [+-]\d{4}\]"


def logged(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [one.message for one in caplog.records if one.name == "erlang_web.access"]


def test_requests_are_in_the_access_log_with_their_version(
    run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    async def test() -> None:
        async with serving(access_log=True) as server:
            await ask(server.addresses[0], "/x?q=%22")
            await exchange(server.addresses[0], b"GET /old HTTP/1.0\r\n\r\n")

    with caplog.at_level(logging.INFO, "erlang_web.access"):
        run(test())
    new, old = logged(caplog)
    assert re.fullmatch(
        rf'127\.0\.0\.1 - - {WHEN} "POST /x\?q=%22 HTTP/1\.1" 200 18 0\.\d{{6}}', new
    )
    assert re.fullmatch(rf'127\.0\.0\.1 - - {WHEN} "GET /old HTTP/1\.0" 200 20 0\.\d{{6}}', old)


HANDSHAKE = (
    b"GET /PATH HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
)


def frame(opcode: int, payload: bytes) -> bytes:
    """A client's: with a mask that changes nothing."""
    return bytes([0x80 | opcode, 0x80 | len(payload), 0, 0, 0, 0]) + payload


@pytest.mark.parametrize(
    ("path", "sent", "told"),
    [
        (b"hello", frame(8, b"\x03\xe8"), r"101 10 \d+\.\d{6} 1000"),
        (b"bye", frame(1, b"bye") + frame(8, b"\x0f\xa0"), r"101 0 \d+\.\d{6} 4000"),
        (b"nothing", frame(8, b""), r"101 0 \d+\.\d{6} 1005"),
        (b"broken", frame(3, b""), r"101 0 \d+\.\d{6} 1002"),
        (b"lost", b"", r"101 0 \d+\.\d{6} 1006"),
        (b"reject", b"", r"403 9 \d+\.\d{6}"),
        (b"deny", b"", r"401 4 \d+\.\d{6}"),
        (b"fail", b"", r"500 21 \d+\.\d{6}"),
    ],
)
def test_a_websocket_is_in_the_access_log_when_it_ends(
    run: Run, caplog: pytest.LogCaptureFixture, path: bytes, sent: bytes, told: str
) -> None:
    async def test() -> None:
        async with serving(access_log=True, mounts={"": "shop:talk"}) as server:
            reader, writer = await connect(server.addresses[0])
            writer.write(HANDSHAKE.replace(b"PATH", path))
            assert await reader.readuntil(b"\r\n\r\n")
            assert path in (b"reject", b"deny", b"fail") or logged(caplog) == []
            if path == b"hello":
                writer.write(frame(1, b"hello"))
                assert await reader.readexactly(12) == b"\x81\x0ahellohello"
            writer.write(sent)
            if path == b"lost":
                writer.close()
            await until(lambda: logged(caplog) != [])
            writer.close()

    with caplog.at_level(logging.INFO, "erlang_web.access"):
        run(test())
    (line,) = logged(caplog)
    where = path.decode()
    assert re.fullmatch(rf'127\.0\.0\.1 - - {WHEN} "GET /{where} HTTP/1\.1" {told}', line), line


@pytest.mark.parametrize(
    ("request_", "told"),
    [
        (HANDSHAKE.replace(b"n: 13", b"n: 12"), '"GET /PATH HTTP/1.1" 426 '),
        (HANDSHAKE.replace(b"AAAA==", b"=="), '"GET /PATH HTTP/1.1" 400 '),
        (HANDSHAKE.replace(b"/PATH", b"/nowhere"), '"GET /nowhere HTTP/1.1" 404 '),
    ],
)
def test_what_no_application_was_asked_is_in_the_access_log(
    run: Run, caplog: pytest.LogCaptureFixture, request_: bytes, told: str
) -> None:
    async def test() -> None:
        async with serving(access_log=True, mounts={"/PATH": "shop:talk"}) as server:
            await exchange(server.addresses[0], request_)

    with caplog.at_level(logging.INFO, "erlang_web.access"):
        run(test())
    (line,) = logged(caplog)
    assert told in line


def test_without_the_access_log_there_is_no_line(
    run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    async def test() -> None:
        async with serving() as server:
            await ask(server.addresses[0])

    with caplog.at_level(logging.INFO):
        run(test())
    assert [one for one in caplog.records if one.name == "erlang_web.access"] == []


def test_the_counters_tell_what_there_was(run: Run) -> None:
    async def test() -> None:
        async with serving() as server:
            for _ in range(3):
                await ask(server.addresses[0])
            stats = server.stats()
            assert (stats["requests_total"], stats["requests"]) == (3, 0)
            assert {type(one) for one in stats.values()} == {int}

    run(test())
