#!/usr/bin/env python3
"""An echo over UDP: a server that answers each datagram, and a client that asks again when an answer is lost.

    PYTHONPATH=python python3 examples/loop/udp_echo.py serve             says where it listens; Ctrl-C ends it
    PYTHONPATH=python python3 examples/loop/udp_echo.py ask PORT hello    sends each word and prints the answers
"""

from __future__ import annotations

import argparse
import asyncio
import signal
from typing import Any

import erlang_loop


class Echo(asyncio.DatagramProtocol):
    """The server's one socket hears all its clients, so each datagram comes with its sender."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.DatagramTransport)
        self.transport = transport

    def datagram_received(self, data: bytes, sender: Any) -> None:
        self.transport.sendto(data, sender)


class Asker(asyncio.DatagramProtocol):
    """The client's socket is connected: it hears its server only, and of its server's absence."""

    def __init__(self) -> None:
        self.answers: asyncio.Queue[bytes | Exception] = asyncio.Queue()

    def datagram_received(self, data: bytes, sender: Any) -> None:
        self.answers.put_nowait(data)

    def error_received(self, error: Exception) -> None:
        self.answers.put_nowait(error)  # nobody listens there, says the other machine


async def serve(host: str, port: int) -> None:
    loop = asyncio.get_running_loop()
    stopped = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stopped.set)
    transport, _ = await loop.create_datagram_endpoint(Echo, local_addr=(host, port))
    print("listening on %s:%d" % transport.get_extra_info("sockname")[:2], flush=True)
    await stopped.wait()
    transport.close()
    print("stopped", flush=True)


async def ask(host: str, port: int, words: list[str], tries: int = 5) -> None:
    loop = asyncio.get_running_loop()
    transport, protocol = await loop.create_datagram_endpoint(Asker, remote_addr=(host, port))
    for word in words:
        for _ in range(tries):  # datagrams get lost, and nobody tells
            transport.sendto(word.encode())
            try:
                answer = await asyncio.wait_for(protocol.answers.get(), 1)
                break
            except TimeoutError:
                continue
        else:
            raise SystemExit(f"no answer to {word!r} in {tries} tries")
        if isinstance(answer, Exception):
            raise SystemExit(f"no answer: {answer}")
        print(answer.decode())
    transport.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="An echo server and its client over UDP.")
    parser.add_argument("--host", default="127.0.0.1")
    commands = parser.add_subparsers(dest="command", required=True)
    serving = commands.add_parser("serve")
    serving.add_argument("--port", type=int, default=0)
    asking = commands.add_parser("ask")
    asking.add_argument("port", type=int)
    asking.add_argument("words", nargs="+")
    options = parser.parse_args()
    if options.command == "serve":
        erlang_loop.run(serve(options.host, options.port))
    else:
        erlang_loop.run(ask(options.host, options.port, options.words))
