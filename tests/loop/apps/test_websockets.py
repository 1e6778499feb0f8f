"""The websockets package on our loop: servers, clients, TLS, and what the ends of connections look like."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator
from typing import Any

import pytest
from support import Certificates, run, until
from websockets.asyncio.client import connect, unix_connect
from websockets.asyncio.server import ServerConnection, broadcast, serve, unix_serve
from websockets.exceptions import ConnectionClosed, ConnectionClosedError, ConnectionClosedOK

from erlang_loop import ErlangEventLoop


async def echo(connection: ServerConnection) -> None:
    async for message in connection:
        await connection.send(message)


@contextlib.asynccontextmanager
async def serving(handler: Any = echo, **how: Any) -> AsyncIterator[str]:
    async with serve(handler, "127.0.0.1", 0, **how) as server:
        scheme = "wss" if how.get("ssl") else "ws"
        yield "%s://localhost:%d" % (scheme, server.sockets[0].getsockname()[1])


@pytest.mark.parametrize("secure", [False, True], ids=["ws", "wss"])
def test_messages_of_every_size_come_back(certificates: Certificates, secure: bool) -> None:
    async def main() -> None:
        server = {"ssl": certificates.server()} if secure else {}
        client = {"ssl": certificates.client()} if secure else {}
        async with serving(max_size=None, **server) as url:
            async with connect(url, max_size=None, **client) as connection:
                for size in (0, 1, 125, 126, 65_535, 65_536, 3_000_000):
                    for message in ("é" * size, os.urandom(size)):
                        await connection.send(message)
                        assert await connection.recv() == message
                pong = await connection.ping()
                assert await asyncio.wait_for(pong, 5) >= 0
                if secure:
                    cipher = connection.transport.get_extra_info("cipher")
                    assert cipher and cipher[1].startswith("TLS")
        assert type(asyncio.get_running_loop()) is ErlangEventLoop

    run(ErlangEventLoop, main)


def test_a_hundred_clients_hear_a_broadcast_and_talk_at_once() -> None:
    async def main() -> None:
        connected: set[ServerConnection] = set()

        async def handler(connection: ServerConnection) -> None:
            connected.add(connection)
            await echo(connection)

        async def client(number: int, url: str) -> None:
            async with connect(url, compression=None) as connection:
                assert await connection.recv() == "hello, everybody"
                for turn in range(10):
                    await connection.send(f"{number} {turn}")
                    assert await connection.recv() == f"{number} {turn}"

        async with serving(handler) as url:
            clients = [asyncio.create_task(client(number, url)) for number in range(100)]
            await until(lambda: len(connected) == 100)
            broadcast(connected, "hello, everybody")
            await asyncio.gather(*clients)

    run(ErlangEventLoop, main)


def test_either_side_closes_with_code_and_reason() -> None:
    async def main() -> None:
        async def closes(connection: ServerConnection) -> None:
            await connection.close(4000, "had enough")

        closed: list[tuple[int | None, str | None]] = []

        async def listens(connection: ServerConnection) -> None:
            try:
                await connection.recv()
            except ConnectionClosed:
                closed.append((connection.close_code, connection.close_reason))

        async with serving(closes) as url, connect(url) as connection:
            with pytest.raises(ConnectionClosedError, match="had enough"):
                await connection.recv()
        async with serving(listens) as url:
            async with connect(url) as connection:
                await connection.close(4001, "goodbye")
            await until(lambda: closed == [(4001, "goodbye")])

    run(ErlangEventLoop, main)


def test_a_connection_that_breaks_is_told_to_both_and_reconnected() -> None:
    async def main() -> None:
        tries = 0

        async def breaks(connection: ServerConnection) -> None:
            nonlocal tries
            tries += 1
            if tries < 3:
                connection.transport.abort()
            else:
                await connection.send("third time")
                await connection.wait_closed()

        os.environ["WEBSOCKETS_BACKOFF_INITIAL_DELAY"] = "0"
        async with serving(breaks) as url:
            async for connection in connect(url, open_timeout=5):
                try:
                    assert await connection.recv() == "third time"
                    await connection.close()
                    break
                except ConnectionClosed:
                    continue
        assert tries == 3

    run(ErlangEventLoop, main)


def test_keepalive_ends_a_connection_whose_peer_is_silent() -> None:
    async def main() -> None:
        async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            """Shakes hands and says nothing any more."""
            import base64
            import hashlib

            request = await reader.readuntil(b"\r\n\r\n")
            key = next(
                line.split(b": ")[1]
                for line in request.split(b"\r\n")
                if line.lower().startswith(b"sec-websocket-key")
            )
            digest = hashlib.sha1(key + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest()
            writer.write(
                b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                b"Sec-WebSocket-Accept: " + base64.b64encode(digest) + b"\r\n\r\n"
            )
            await reader.read()
            writer.close()

        async with await asyncio.start_server(silent, "127.0.0.1", 0) as server:
            url = "ws://127.0.0.1:%d" % server.sockets[0].getsockname()[1]
            how = {"ping_interval": 0.05, "ping_timeout": 0.05, "close_timeout": 0.05}
            async with connect(url, **how) as connection:  # type: ignore[arg-type]
                with pytest.raises(ConnectionClosedError, match="keepalive ping timeout"):
                    await asyncio.wait_for(connection.recv(), 5)

    run(ErlangEventLoop, main)


def test_a_unix_socket_carries_it_too(tmp_path: Any) -> None:
    async def main() -> None:
        path = str(tmp_path / "ws")
        async with unix_serve(echo, path):
            async with unix_connect(path) as connection:
                await connection.send("unix")
                assert await connection.recv() == "unix"

    run(ErlangEventLoop, main)


def test_a_slow_reader_holds_up_its_own_writer_only() -> None:
    async def main() -> None:
        sent = 0

        async def floods(connection: ServerConnection) -> None:
            nonlocal sent
            with contextlib.suppress(ConnectionClosed):
                while True:
                    await connection.send(b"x" * 100_000)
                    sent += 1

        async with serving(floods, close_timeout=1) as url:
            async with connect(url, close_timeout=0.1, compression=None) as slow:
                await asyncio.sleep(0.1)
                held = sent
                await asyncio.sleep(0.1)
                assert sent == held > 0
                for _ in range(held):
                    assert len(await slow.recv()) == 100_000
                await until(lambda: sent > held)
                slow.transport.abort()

    run(ErlangEventLoop, main)


def test_a_signal_ends_a_server_as_its_manual_shows() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        async with serve(echo, "127.0.0.1", 0) as server:
            loop.add_signal_handler(signal.SIGTERM, server.close)
            async with connect(
                "ws://127.0.0.1:%d" % server.sockets[0].getsockname()[1]
            ) as connection:
                os.kill(os.getpid(), signal.SIGTERM)
                await asyncio.wait_for(server.wait_closed(), 5)
                with pytest.raises((ConnectionClosedOK, ConnectionClosedError)):
                    await connection.recv()
                assert connection.close_code == 1001
            loop.remove_signal_handler(signal.SIGTERM)

    run(ErlangEventLoop, main)
