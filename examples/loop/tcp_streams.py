#!/usr/bin/env python3
"""An echo server and its client over TCP, with asyncio's streams.

    PYTHONPATH=python python3 examples/loop/tcp_streams.py serve             says where it listens; Ctrl-C ends it
    PYTHONPATH=python python3 examples/loop/tcp_streams.py ask PORT hello    sends each word and prints the answers

Nothing in it knows of ErlangEventLoop but its last line: programs for asyncio run on it as they are.
"""

from __future__ import annotations

import argparse
import asyncio
import signal

import erlang_loop


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Serves one connection: each line goes back as it came, until the client has said all."""
    try:
        while line := await reader.readline():
            writer.write(line)
            await writer.drain()  # waits while the client does not read: what it is owed stays bounded
    except ConnectionError:
        pass  # a client that goes in the middle is no fault of ours
    finally:
        writer.close()


async def serve(host: str, port: int) -> None:
    stopped = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    async with await asyncio.start_server(echo, host, port) as server:
        # Port 0 lets the kernel choose one, so ask the socket which it is.
        print("listening on %s:%d" % server.sockets[0].getsockname()[:2], flush=True)
        await stopped.wait()
    print("stopped", flush=True)


async def ask(host: str, port: int, words: list[str]) -> None:
    reader, writer = await asyncio.open_connection(host, port)
    for word in words:
        writer.write(word.encode() + b"\n")
        print((await reader.readline()).decode().rstrip("\n"))
    writer.close()
    await writer.wait_closed()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="An echo server and its client with streams.")
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
