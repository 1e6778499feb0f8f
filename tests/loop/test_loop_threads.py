"""Several threads: calls from other threads, and several loops, each in a thread of its own."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from support import LoopFactory, run, script


def running() -> asyncio.AbstractEventLoop:
    return asyncio.get_running_loop()


class LoopThread:
    """A loop that runs for ever in a thread of its own until it is told to end."""

    def __init__(self, loop_factory: LoopFactory) -> None:
        ready = threading.Event()

        def main() -> None:
            self.loop = loop_factory()
            self.loop.call_soon(ready.set)
            self.loop.run_forever()
            self.loop.run_until_complete(self.loop.shutdown_default_executor())
            self.loop.close()

        self.thread = threading.Thread(target=main)
        self.thread.start()
        assert ready.wait(10)

    def __enter__(self) -> LoopThread:
        return self

    def __exit__(self, *_: object) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(10)
        assert not self.thread.is_alive()

    def do(self, coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(10)


def in_threads(count: int, work: Callable[[int], None]) -> None:
    errors: list[BaseException] = []

    def guarded(number: int) -> None:
        try:
            work(number)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=guarded, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
        assert not thread.is_alive()
    assert errors == []


def test_a_call_from_another_thread_wakes_a_loop_that_sleeps(loop_factory: LoopFactory) -> None:
    with LoopThread(loop_factory) as other:
        for _ in range(20):
            time.sleep(0.005)  # long enough for it to go to sleep
            woken = threading.Event()
            began = time.monotonic()
            other.loop.call_soon_threadsafe(woken.set)
            assert woken.wait(5)
            assert time.monotonic() - began < 1


def test_calls_from_many_threads_all_run_once_and_in_the_order_of_each_thread(
    loop_factory: LoopFactory,
) -> None:
    threads, calls = 8, 4000
    got: list[tuple[int, int]] = []
    with LoopThread(loop_factory) as other:

        def work(thread: int) -> None:
            for number in range(calls):
                other.loop.call_soon_threadsafe(got.append, (thread, number))
                if number % 1000 == 0:
                    time.sleep(0.001)  # lets the loop fall asleep now and then

        in_threads(threads, work)
        done = threading.Event()
        other.loop.call_soon_threadsafe(done.set)
        assert done.wait(10)
    assert len(got) == threads * calls
    for thread in range(threads):
        mine = [number for owner, number in got if owner == thread]
        assert mine == list(range(calls))


def test_a_call_of_another_thread_can_be_cancelled_from_there(loop_factory: LoopFactory) -> None:
    with LoopThread(loop_factory) as other:
        ran: list[int] = []
        block = threading.Event()
        other.loop.call_soon_threadsafe(block.wait, 10)
        handles = [other.loop.call_soon_threadsafe(ran.append, number) for number in range(1000)]
        for handle in handles[::2]:
            handle.cancel()
        block.set()
        done = threading.Event()
        other.loop.call_soon_threadsafe(done.set)
        assert done.wait(10)
    assert ran == list(range(1, 1000, 2))


def test_coroutines_can_be_sent_to_a_loop_and_their_results_or_errors_come_back(
    loop_factory: LoopFactory,
) -> None:
    async def divide(a: int, b: int) -> float:
        await asyncio.sleep(0.001)
        return a / b

    with LoopThread(loop_factory) as other:
        assert other.do(divide(6, 3)) == 2
        with pytest.raises(ZeroDivisionError):
            other.do(divide(1, 0))
        waiting = asyncio.run_coroutine_threadsafe(asyncio.sleep(3600), other.loop)
        with pytest.raises(TimeoutError):
            waiting.result(0.01)
        assert waiting.cancel()

        def work(thread: int) -> None:
            for number in range(50):
                assert other.do(divide(number, thread + 1)) == number / (thread + 1)

        in_threads(6, work)


def test_a_call_to_a_loop_that_is_closed_meanwhile_is_an_error_and_no_crash(
    loop_factory: LoopFactory,
) -> None:
    for _ in range(8):
        loop = loop_factory()
        began, outcomes = threading.Barrier(5), []

        def work(_: int) -> None:
            began.wait(10)
            try:
                while True:
                    loop.call_soon_threadsafe(int)
            except RuntimeError as error:
                outcomes.append(str(error))

        threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        began.wait(10)
        loop.run_until_complete(asyncio.sleep(0.001))
        loop.close()
        for thread in threads:
            thread.join(10)
        assert outcomes == ["Event loop is closed"] * 4


def test_stop_from_another_thread_ends_a_loop(loop_factory: LoopFactory) -> None:
    for _ in range(50):
        with LoopThread(loop_factory):
            pass


def test_loops_in_several_threads_do_not_disturb_each_other(loop_factory: LoopFactory) -> None:
    """Each serves itself and asks a neighbour; what runs in one runs in its own thread."""

    async def exchange(thread: int) -> None:
        owner = threading.get_ident()

        async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            assert threading.get_ident() == owner
            while data := await reader.read(1000):
                writer.write(data)
            writer.close()

        async with await asyncio.start_server(echo, "127.0.0.1", 0) as server:
            reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
            for number in range(100):
                text = b"%d of %d" % (number, thread)
                writer.write(text)
                assert await reader.readexactly(len(text)) == text
                await asyncio.sleep(0)
                assert threading.get_ident() == owner
            assert await running().run_in_executor(None, int, "5") == 5
            writer.close()
            await writer.wait_closed()

    in_threads(6, lambda thread: run(loop_factory, lambda: exchange(thread)))


def test_two_loops_can_talk_to_each_other(loop_factory: LoopFactory) -> None:
    async def served(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write((await reader.readline()).upper())
        writer.close()

    async def start() -> Any:
        return await asyncio.start_server(served, "127.0.0.1", 0)

    async def stop(server: Any) -> None:
        server.close()
        await asyncio.sleep(0.01)

    with LoopThread(loop_factory) as one, LoopThread(loop_factory) as two:
        server = one.do(start())
        address = server.sockets[0].getsockname()

        async def ask() -> bytes:
            reader, writer = await asyncio.open_connection(*address)
            writer.write(b"question\n")
            answer = await reader.read()
            writer.close()
            await writer.wait_closed()
            return answer

        async def ask_from_the_other() -> bytes:
            return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(ask(), two.loop))

        assert two.do(ask()) == b"QUESTION\n"
        assert one.do(ask_from_the_other()) == b"QUESTION\n"
        one.do(stop(server))


def test_a_loop_may_be_handed_from_one_thread_to_another(loop_factory: LoopFactory) -> None:
    loop = loop_factory()
    results: list[int] = []

    async def work(number: int) -> None:
        await asyncio.sleep(0.001)
        results.append(number + await loop.run_in_executor(None, int, "0"))

    for number in range(5):
        thread = threading.Thread(target=loop.run_until_complete, args=(work(number),))
        thread.start()
        thread.join()
    loop.run_until_complete(work(5))
    assert results == list(range(6))
    loop.run_until_complete(loop.shutdown_default_executor())
    loop.close()


def test_running_a_loop_that_runs_elsewhere_is_refused(loop_factory: LoopFactory) -> None:
    with LoopThread(loop_factory) as other:
        with pytest.raises(RuntimeError, match="This event loop is already running"):
            other.loop.run_forever()
        with pytest.raises(RuntimeError, match="Cannot close a running event loop"):
            other.loop.close()


def test_a_thread_that_computes_lets_the_loop_of_another_have_its_turn(
    loop_factory: LoopFactory,
) -> None:
    stop = threading.Event()

    def compute() -> None:
        while not stop.is_set():
            sum(range(1000))

    thread = threading.Thread(target=compute)

    async def main() -> int:
        thread.start()
        turns = 0
        deadline = time.monotonic() + 0.3
        while time.monotonic() < deadline:
            await asyncio.sleep(0.001)
            turns += 1
        stop.set()
        return turns

    assert run(loop_factory, main) > 10
    thread.join()


def test_another_thread_runs_while_the_loop_waits(loop_factory: LoopFactory) -> None:
    """The interpreter's lock is free for the whole of the wait."""
    turns = 0
    stop = threading.Event()

    def count() -> None:
        nonlocal turns
        while not stop.is_set():
            turns += 1
            time.sleep(0.0001)

    thread = threading.Thread(target=count)
    thread.start()
    run(loop_factory, lambda: asyncio.sleep(0.2))
    stop.set()
    thread.join()
    assert turns > 100


def test_daemon_threads_with_loops_do_not_keep_or_break_the_end_of_a_program(
    loop_name: str,
) -> None:
    ended = script(
        """
        def forever():
            loop = new_loop()
            loop.call_soon(ready.set)
            loop.call_later(0.001, lambda: None)
            async def busy():
                while True:
                    await asyncio.sleep(0)
            loop.create_task(busy())
            loop.run_forever()
        for kind in range(3):
            ready = threading.Event()
            threading.Thread(target=forever, daemon=True).start()
            ready.wait()
        print("end")
        """,
        loop_name,
    )
    assert (ended.stdout, ended.returncode) == ("end\n", 0), ended.stderr
