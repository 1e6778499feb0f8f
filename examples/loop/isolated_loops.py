#!/usr/bin/env python3
"""Several loops in one process, each in a thread of its own: a little server and its clients in every one.

    PYTHONPATH=python python3 examples/loop/isolated_loops.py --loops 3

`isolated=True` asks for a loop with a poll set and an inbox of its own. In a plain Python program every loop is one;
on a node `ErlangEventLoop()` in the node's loop thread is the node's. What a loop runs it runs in the thread that
runs the loop; call_soon_threadsafe and run_coroutine_threadsafe are the ways in from other threads.
"""

from __future__ import annotations

import argparse
import asyncio
import threading

from erlang_loop import ErlangEventLoop


class Worker:
    """A thread with a loop, ready for coroutines from elsewhere."""

    def __init__(self, name: str) -> None:
        self.loop = ErlangEventLoop(isolated=True)
        self.thread = threading.Thread(target=self.main, name=name)
        self.thread.start()

    def main(self) -> None:
        self.loop.run_forever()  # until stop() says otherwise
        self.loop.run_until_complete(self.loop.shutdown_asyncgens())
        self.loop.close()

    def stop(self) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()


async def count(name: str, questions: int) -> str:
    """Runs on a worker's loop: serves itself over TCP, and tells in which threads that happened."""
    threads: set[str] = set()
    served = asyncio.Event()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        threads.add(threading.current_thread().name)
        while line := await reader.readline():
            writer.write(line.upper())
        writer.close()
        await writer.wait_closed()
        served.set()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        right = 0
        for number in range(questions):
            writer.write(b"question %d\n" % number)
            right += await reader.readline() == b"QUESTION %d\n" % number
        writer.close()
        await writer.wait_closed()
        await served.wait()
    threads.add(threading.current_thread().name)
    return f"{name}: {right} of {questions} answered, all of it in {', '.join(sorted(threads))}"


def main(loops: int, questions: int) -> None:
    workers = [Worker(f"loop-{number}") for number in range(1, loops + 1)]
    # All of them work at the same time; the main thread waits for their answers, and has no loop at all.
    futures = [
        asyncio.run_coroutine_threadsafe(count(worker.thread.name, questions), worker.loop)
        for worker in workers
    ]
    for future in futures:
        print(future.result())
    for worker in workers:
        worker.stop()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Several loops, each in a thread of its own.")
    parser.add_argument("--loops", type=int, default=3)
    parser.add_argument("--questions", type=int, default=100)
    options = parser.parse_args()
    main(options.loops, options.questions)
