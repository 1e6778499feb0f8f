#!/usr/bin/env python3
"""Who is out there? A question to everybody on a network, and the answers of those who heard it.

    PYTHONPATH=python python3 examples/loop/udp_broadcast.py answer NAME    waits for questions; Ctrl-C ends it
    PYTHONPATH=python python3 examples/loop/udp_broadcast.py ask PORT       asks, and prints who answers

The default is the broadcast address of the loopback network; give --to 255.255.255.255 and a --port for a real one.
Several of the former may share a port: each hears every question.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import time
from typing import Any

import erlang_loop

QUESTION = b"who is there?"


class Answerer(asyncio.DatagramProtocol):
    def __init__(self, name: str) -> None:
        self.name = name

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.DatagramTransport)
        self.transport = transport

    def datagram_received(self, data: bytes, sender: Any) -> None:
        if data == QUESTION:  # a port may be another program's as well
            self.transport.sendto(self.name.encode(), sender)


class Asker(asyncio.DatagramProtocol):
    def __init__(self) -> None:
        self.answers: asyncio.Queue[str] = asyncio.Queue()

    def datagram_received(self, data: bytes, sender: Any) -> None:
        self.answers.put_nowait(f"{data.decode(errors='replace')} at {sender[0]}")


async def answer(name: str, port: int) -> None:
    loop = asyncio.get_running_loop()
    stopped = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stopped.set)
    # All addresses: a socket bound to one of the machine's own does not hear broadcasts.
    transport, _ = await loop.create_datagram_endpoint(
        lambda: Answerer(name), local_addr=("0.0.0.0", port), reuse_port=True
    )
    print("waiting on port %d" % transport.get_extra_info("sockname")[1], flush=True)
    await stopped.wait()
    transport.close()


async def ask(to: str, port: int, seconds: float) -> None:
    loop = asyncio.get_running_loop()
    # The kernel sends to a broadcast address only from sockets that say they mean it.
    transport, protocol = await loop.create_datagram_endpoint(
        Asker, local_addr=("0.0.0.0", 0), allow_broadcast=True
    )
    transport.sendto(QUESTION, (to, port))
    deadline = time.monotonic() + seconds
    heard = 0
    while (left := deadline - time.monotonic()) > 0:
        try:
            print(await asyncio.wait_for(protocol.answers.get(), left), flush=True)
            heard += 1
        except TimeoutError:
            break
    transport.close()
    print(f"{heard} answered")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="A question to everybody on a network.")
    commands = parser.add_subparsers(dest="command", required=True)
    answering = commands.add_parser("answer")
    answering.add_argument("name")
    answering.add_argument("--port", type=int, default=0)
    asking = commands.add_parser("ask")
    asking.add_argument("port", type=int)
    asking.add_argument("--to", default="127.255.255.255")
    asking.add_argument("--seconds", type=float, default=1.0)
    options = parser.parse_args()
    if options.command == "answer":
        erlang_loop.run(answer(options.name, options.port))
    else:
        erlang_loop.run(ask(options.to, options.port, options.seconds))
