#!/usr/bin/env python3
"""The same echo with protocols: callbacks instead of coroutines, the quickest way through the loop.

    PYTHONPATH=python python3 examples/loop/tcp_protocols.py serve             says where it listens; Ctrl-C ends it
    PYTHONPATH=python python3 examples/loop/tcp_protocols.py ask PORT hello    sends each word and prints the answers
"""

from __future__ import annotations

import argparse
import asyncio
import signal

import erlang_loop


class Echo(asyncio.Protocol):
    """One connection of the server. Its methods run on the loop's thread, one at a time: nothing needs a lock."""

    transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.transport.write(data)  # as it comes: TCP knows no messages

    # The transport buffers what the client does not read. Reading no more from it until it has caught up keeps
    # that bounded.
    def pause_writing(self) -> None:
        self.transport.pause_reading()

    def resume_writing(self) -> None:
        self.transport.resume_reading()


class Asker(asyncio.Protocol):
    """The client: asks one word after the other, and sets `done` when the last answer is there."""

    def __init__(self, words: list[str], done: asyncio.Future[None]) -> None:
        self.words = words
        self.done = done
        self.waiting = b""  # of the answer that is on its way

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self.ask()

    def ask(self) -> None:
        if self.words:
            self.transport.write(self.words.pop(0).encode() + b"\n")
        else:
            self.transport.close()

    def data_received(self, data: bytes) -> None:
        self.waiting += data
        while b"\n" in self.waiting:  # an answer may come in pieces
            line, self.waiting = self.waiting.split(b"\n", 1)
            print(line.decode())
            self.ask()

    def connection_lost(self, error: Exception | None) -> None:
        if error is not None:
            self.done.set_exception(error)
        elif self.words:
            self.done.set_exception(ConnectionError("the server went before it had answered"))
        else:
            self.done.set_result(None)


async def serve(host: str, port: int) -> None:
    loop = asyncio.get_running_loop()
    stopped = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stopped.set)
    async with await loop.create_server(Echo, host, port) as server:
        print("listening on %s:%d" % server.sockets[0].getsockname()[:2], flush=True)
        await stopped.wait()
    print("stopped", flush=True)


async def ask(host: str, port: int, words: list[str]) -> None:
    loop = asyncio.get_running_loop()
    done = loop.create_future()
    await loop.create_connection(lambda: Asker(words, done), host, port)
    await done


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="An echo server and its client with protocols.")
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
