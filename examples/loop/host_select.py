#!/usr/bin/env python3
"""A program with a main loop of its own drives the event loop: one thread, one select(), neither waits for the other.

    PYTHONPATH=python python3 examples/loop/host_select.py < some_file

The host reads lines from its standard input, as an editor, a game or a GUI reads what its user does. Between them an
asyncio server echoes and a client asks it. Three things are all it takes:

    seconds, idle = loop.step()    one turn: runs what is ready and says when the next timer is due
    loop.poll_fd()                 a descriptor that is readable when there is something to do
    select.select(...)             the host's own wait, for its own descriptors and that one
"""

from __future__ import annotations

import argparse
import asyncio
import os
import select
import sys

from erlang_loop import ErlangEventLoop


async def talk(times: int) -> int:
    """The asyncio side: a server and a client that asks it something every now and then."""

    served = asyncio.Event()

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while line := await reader.readline():
            writer.write(line)
        writer.close()
        await writer.wait_closed()
        served.set()

    async with await asyncio.start_server(echo, "127.0.0.1", 0) as server:
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        for number in range(times):
            writer.write(b"%d\n" % number)
            assert await reader.readline() == b"%d\n" % number
            await asyncio.sleep(0.01)
        writer.close()
        await writer.wait_closed()
        await served.wait()
    return times


def main(times: int) -> None:
    loop = ErlangEventLoop()
    task = loop.create_task(talk(times))
    inputs = [sys.stdin.fileno()]
    lines = 0
    while True:
        seconds, idle = loop.step()  # never waits
        if task.done() and not inputs:
            break  # asked after the step: it may have been the last one
        if not idle:
            seconds = 0  # there is more to run: only look whether the host has something
        ready, _, _ = select.select([loop.poll_fd(), *inputs], [], [], seconds)
        if inputs and inputs[0] in ready:
            data = os.read(inputs[0], 4096)
            lines += data.count(b"\n")
            if not data:
                inputs.clear()
    print(f"the host read {lines} lines while the loop answered {task.result()} questions")
    loop.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="A host program that drives the loop by steps.")
    parser.add_argument("--questions", type=int, default=20)
    main(parser.parse_args().questions)
