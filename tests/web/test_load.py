"""Many WebSockets, slow readers and slow writers at a server of its own process, whose memory is watched.

WEB_SECONDS (5) is how long the traffic lasts; a minute by hand.
"""

from __future__ import annotations

import asyncio
import os
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

SECONDS = float(os.environ.get("WEB_SECONDS", "5"))
SOCKETS = 1000
SLOW = 50
PATIENCE = 20.0

APPLICATION = """
async def app(scope, receive, send):
    if scope["type"] == "http":
        if scope["path"] == "/read":
            size = 0
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    return
                size += len(message["body"])
                if not message["more_body"]:
                    break
            await answer(send, b"%d" % size)
        elif scope["path"] == "/flood":
            await send({"type": "http.response.start", "status": 200, "headers": []})
            while True:
                await send({"type": "http.response.body", "body": bytes(65536), "more_body": True})
        else:
            await answer(send, b"quick")
        return
    await receive()
    await send({"type": "websocket.accept"})
    while True:
        message = await receive()
        if message["type"] == "websocket.disconnect":
            return
        if scope["path"] == "/flood":
            while True:
                await send({"type": "websocket.send", "bytes": bytes(65536)})
        await send({"type": "websocket.send", "text": message["text"]})

async def answer(send, body):
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
    await send({"type": "http.response.body", "body": body})
"""

PROGRAM = """
import asyncio, signal, sys
import erlang_loop
from erlang_web import Mount, Options, Server

async def main():
    server = Server(Options(mounts=(Mount(prefix="", target="many:app"),), bind=("127.0.0.1:0",), body_seconds=5, lifespan="off"))
    over = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, over.set)
    await server.start()
    print(server.addresses[0].rpartition(":")[2], flush=True)
    await over.wait()
    await server.stop(2)

erlang_loop.run(main())
"""


class Served:
    def __init__(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        self.process = process
        self.port = int(process.stdout.readline())

    def megabytes(self) -> float:
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        line = next(line for line in status.splitlines() if line.startswith("VmRSS"))
        return int(line.split()[1]) / 1024

    def descriptors(self) -> int:
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    (tmp_path / "many.py").write_text(APPLICATION)
    python = Path(__file__).parents[2] / "python"
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(python)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield Served(process)
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE) == 0
    finally:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def frame(text: bytes) -> bytes:
    """A client's text frame, shorter than 126 bytes; the mask is zero."""
    return bytes([0x81, 0x80 | len(text)]) + bytes(4) + text


async def websocket(
    port: int, path: str = "/echo"
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(
        f"GET {path} HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n".encode()
    )
    head = await reader.readuntil(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 101 "), head
    return reader, writer


async def get(port: int, path: str = "/") -> float:
    """How long a request takes on a connection of its own."""
    began = time.monotonic()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(f"GET {path} HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n".encode())
    assert (await reader.read()).endswith(b"quick")
    writer.close()
    return time.monotonic() - began


async def settles(wanted: int, number: object) -> None:
    deadline = time.monotonic() + PATIENCE
    while callable(number) and number() > wanted:
        assert time.monotonic() < deadline, f"{number()} are left, more than {wanted}"
        await asyncio.sleep(0.05)


def test_a_thousand_websockets_are_answered_each_its_own_and_leave_no_memory(
    served: Served,
) -> None:
    async def main() -> None:
        idle = served.descriptors()
        until = time.monotonic() + SECONDS

        async def talk(number: int) -> int:
            reader, writer = await websocket(served.port)
            said = 0
            while time.monotonic() < until or said == 0:
                text = b"%d %d" % (number, said)
                writer.write(frame(text))
                assert await reader.readexactly(2 + len(text)) == bytes([0x81, len(text)]) + text
                said += 1
                await asyncio.sleep(0.1)
            writer.write(b"\x88\x82\0\0\0\0" + struct.pack(">H", 1000))
            assert await reader.readexactly(4) == b"\x88\x02\x03\xe8"
            assert await reader.read() == b""  # the server closes first, as it should
            writer.close()
            return said

        async def watch() -> list[float]:
            sizes = []
            while time.monotonic() < until:
                await asyncio.sleep(SECONDS / 10)
                sizes.append(served.megabytes())
            return sizes

        *said, sizes = await asyncio.gather(*map(talk, range(SOCKETS)), watch())
        assert min(said) > 0
        half = len(sizes) // 2
        assert max(sizes[half:]) < sizes[half] + 8, sizes
        await settles(idle, served.descriptors)

    asyncio.run(main())


def test_readers_that_do_not_read_and_writers_that_hardly_write_cost_nobody_else(
    served: Served,
) -> None:
    async def main() -> None:
        idle, before = served.descriptors(), served.megabytes()
        deaf = []
        for number in range(SLOW):
            if number % 2:
                reader, writer = await websocket(served.port, "/flood")
                writer.write(frame(b"begin"))
            else:
                reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
                writer.write(b"GET /flood HTTP/1.1\r\nHost: h\r\n\r\n")
            writer.transport.pause_reading()  # type: ignore[attr-defined]
            deaf.append((reader, writer))

        async def drip() -> None:
            reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
            body = b"0123456789"
            writer.write(
                b"POST /read HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n" % len(body)
            )
            for at in range(len(body)):
                await asyncio.sleep(0.1)
                writer.write(body[at : at + 1])
            assert b"200 OK" in await reader.readuntil(b"\r\n\r\n")
            assert await reader.readexactly(2) == b"10"
            writer.close()

        async def others() -> list[float]:
            times = []
            for _ in range(50):
                times.append(await get(served.port))
                await asyncio.sleep(0.02)
            return sorted(times)

        times, *_ = await asyncio.gather(others(), *(drip() for _ in range(SLOW)))
        assert times[25] < 0.05, times
        # The kernel's buffers are full, and the high-water mark of each transport.
        assert served.megabytes() < before + SLOW * 0.5 + 10
        # Five seconds without a byte taken, and they are cut off.
        await settles(idle, served.descriptors)
        for _, writer in deaf:
            writer.transport.abort()

    asyncio.run(main())


def test_a_head_that_does_not_end_is_cut_off(served: Served) -> None:
    async def main() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
        writer.write(b"GET / HTTP/1.1\r\nHost: h\r\n")
        began = time.monotonic()

        async def drip() -> None:
            while True:
                writer.write(b"X: y\r\n")
                await asyncio.sleep(0.5)

        dripping = asyncio.create_task(drip())
        answer = await reader.read()
        dripping.cancel()
        assert answer.startswith(b"HTTP/1.1 408 "), answer
        assert 9 < time.monotonic() - began < 14
        writer.close()

    asyncio.run(main())
