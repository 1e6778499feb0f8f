"""What ErlangEventLoop has that other loops have not: steps for a host program, isolated loops, ways to choose it."""

from __future__ import annotations

import asyncio
import gc
import select
import socket
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from support import Echo, Reports, script

import erlang_loop
from erlang_loop import ErlangEventLoop


@pytest.fixture(params=["epoll", "asio"])
def driven(request: pytest.FixtureRequest) -> Iterator[ErlangEventLoop]:
    """A loop of each driver for the test to turn."""
    loop = ErlangEventLoop(isolated=True, driver=request.param)
    yield loop
    loop.close()


def turn(loop: ErlangEventLoop, seconds: float = 10) -> None:
    """A host's loop: waits for the loop's descriptor, or for its next timer, and steps."""
    deadline = time.monotonic() + seconds
    wait, idle = loop.step()
    while loop.keep_on:  # type: ignore[attr-defined]
        assert time.monotonic() < deadline
        if idle:
            select.select([loop.poll_fd()], [], [], 5 if wait is None else wait)
        wait, idle = loop.step()


def complete(loop: ErlangEventLoop, coroutine: Any) -> Any:
    """run_until_complete, by steps alone."""
    loop.keep_on = True  # type: ignore[attr-defined]

    async def main() -> Any:
        try:
            return await coroutine
        finally:
            loop.keep_on = False  # type: ignore[attr-defined]

    task = loop.create_task(main())
    turn(loop)
    loop.step()
    return task.result()


# ---------------------------------------------------------------------------------------------------------------------
# Steps


def test_a_step_says_whether_there_is_something_to_do_and_when(driven: ErlangEventLoop) -> None:
    assert driven.step() == (None, True)
    ran: list[str] = []
    driven.call_soon(ran.append, "soon")
    assert driven.step() == (None, True) and ran == ["soon"]
    timer = driven.call_later(10, ran.append, "late")
    seconds, idle = driven.step()
    assert idle is True and seconds is not None and 9.9 < seconds <= 10
    driven.call_soon(lambda: driven.call_soon(ran.append, "after"))
    assert driven.step() == (0.0, False) and ran == ["soon"]
    assert driven.step()[1] is True and ran == ["soon", "after"]
    timer.cancel()
    assert driven.step() == (None, True)


def test_a_step_that_may_not_wait_does_not_and_one_that_may_waits_for_the_next_timer(
    driven: ErlangEventLoop,
) -> None:
    ran: list[float] = []
    began = time.monotonic()
    driven.call_later(0.05, lambda: ran.append(time.monotonic() - began))
    for _ in range(10):
        driven.step(blocking=False)
    assert ran == [] and time.monotonic() - began < 0.04
    driven.step(blocking=True)
    assert len(ran) == 1 and 0.05 <= ran[0] < 1


def test_run_once_is_a_step_that_waits(driven: ErlangEventLoop) -> None:
    ran: list[int] = []
    driven.call_later(0.01, ran.append, 1)
    while not ran:
        driven._run_once()
    driven.call_soon(ran.append, 2)
    driven._run_once()
    assert ran == [1, 2]


def test_the_loop_is_the_running_one_during_a_step_and_only_then(driven: ErlangEventLoop) -> None:
    seen: list[Any] = []
    driven.call_soon(lambda: seen.append((asyncio.get_running_loop(), driven.is_running())))
    driven.step()
    assert seen == [(driven, True)] and not driven.is_running()
    with pytest.raises(RuntimeError, match="no running event loop"):
        asyncio.get_running_loop()
    seen.clear()


def test_a_whole_program_runs_by_steps(driven: ErlangEventLoop) -> None:
    async def main() -> str:
        loop = asyncio.get_running_loop()
        server = await loop.create_server(Echo, "127.0.0.1", 0)
        async with server:
            reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
            for number in range(50):
                writer.write(b"%03d" % number)
                assert await reader.readexactly(3) == b"%03d" % number
                await asyncio.sleep(0.0005)
            assert await loop.run_in_executor(None, int, "8") == 8
            process = await asyncio.create_subprocess_exec("sh", "-c", "exit 4")
            assert await process.wait() == 4
            writer.close()
            await writer.wait_closed()
        await loop.shutdown_default_executor()
        return "done"

    assert complete(driven, main()) == "done"


def test_steps_and_runs_can_follow_each_other(driven: ErlangEventLoop) -> None:
    ran: list[str] = []
    driven.call_later(0.001, ran.append, "timer")
    driven.step()
    driven.run_until_complete(asyncio.sleep(0.005))
    assert ran == ["timer"]
    assert complete(driven, asyncio.sleep(0.001, "slept")) == "slept"
    driven.call_soon(driven.stop)
    driven.run_forever()
    assert driven.step() == (None, True)


def test_stop_during_a_step_does_not_stop_the_run_that_follows(driven: ErlangEventLoop) -> None:
    driven.call_soon(driven.stop)
    driven.step()
    assert driven.run_until_complete(asyncio.sleep(0.001, "ran on")) == "ran on"


def test_errors_in_a_step_are_reported_and_exits_leave_it(driven: ErlangEventLoop) -> None:
    def fails() -> None:
        raise ValueError("in a step")

    reports = Reports(driven)
    driven.call_soon(fails)
    driven.step()
    assert reports.errors == ["ValueError('in a step')"]
    driven.call_soon(sys.exit, 9)
    with pytest.raises(SystemExit) as caught:
        driven.step()
    assert caught.value.code == 9 and not driven.is_running()
    caught.value.__traceback__ = None
    assert driven.step() == (None, True)
    driven.set_exception_handler(None)


def test_a_step_inside_another_loop_and_on_a_closed_one_is_refused(driven: ErlangEventLoop) -> None:
    async def inside() -> None:
        with pytest.raises(RuntimeError, match="another loop is running"):
            driven.step()

    asyncio.run(inside())
    closed = ErlangEventLoop(isolated=True)
    closed.close()
    with pytest.raises(RuntimeError, match="Event loop is closed"):
        closed.step()
    with pytest.raises((RuntimeError, ValueError)):
        closed.poll_fd()


# ---------------------------------------------------------------------------------------------------------------------
# The descriptor that a host waits for


def readable(loop: ErlangEventLoop, seconds: float = 0) -> bool:
    return bool(select.select([loop.poll_fd()], [], [], seconds)[0])


def settled(loop: ErlangEventLoop) -> bool:
    """Not readable any more after what a host does: it may be asked for a turn too many, but not for ever."""
    return not readable(loop) or loop.step() is None or not readable(loop)


def test_the_descriptor_is_readable_when_there_is_something_to_read_and_not_before(
    driven: ErlangEventLoop,
) -> None:
    near, far = socket.socketpair()
    with near, far:
        got: list[bytes] = []
        driven.add_reader(near, lambda: got.append(near.recv(10)))
        driven.step()
        assert not readable(driven)
        far.send(b"hello")
        assert readable(driven, 5)
        driven.step()
        if not got:  # what was found ready is run at the next turn
            driven.step()
        assert got == [b"hello"] and settled(driven)
        driven.remove_reader(near)


def test_the_descriptor_becomes_readable_for_a_call_of_another_thread(
    driven: ErlangEventLoop,
) -> None:
    ran: list[int] = []
    driven.step()
    assert not readable(driven)
    for number in range(20):
        thread = threading.Timer(0.002, driven.call_soon_threadsafe, (ran.append, number))
        thread.start()
        assert readable(driven, 5)
        while len(ran) <= number:
            driven.step()
        thread.join()
        assert settled(driven)
    assert ran == list(range(20))


def test_calls_between_steps_are_seen_by_the_host_before_it_waits(driven: ErlangEventLoop) -> None:
    """Made by the host's own thread: step() has said None, but the descriptor or the next step tells."""
    ran: list[str] = []
    driven.step()
    driven.call_soon_threadsafe(ran.append, "threadsafe")
    assert readable(driven, 5)
    driven.step()
    assert ran == ["threadsafe"]


def test_another_selector_can_watch_the_descriptor(driven: ErlangEventLoop) -> None:
    """epoll, poll and another loop of asyncio's."""
    poller = select.epoll()
    poller.register(driven.poll_fd(), select.EPOLLIN)
    assert poller.poll(0) == []
    driven.call_soon_threadsafe(int)
    assert poller.poll(5) == [(driven.poll_fd(), select.EPOLLIN)]
    driven.step()
    assert settled(driven) and poller.poll(0) == []
    poller.close()

    ran: list[int] = []

    async def host() -> None:
        loop = asyncio.get_running_loop()
        woken = asyncio.Event()
        loop.add_reader(driven.poll_fd(), woken.set)
        driven.call_soon_threadsafe(ran.append, 1)
        await asyncio.wait_for(woken.wait(), 5)
        loop.remove_reader(driven.poll_fd())

    asyncio.run(host())
    driven.step()
    assert ran == [1]


def test_a_host_with_work_of_its_own_shares_one_thread_with_the_loop(
    driven: ErlangEventLoop,
) -> None:
    """One select() over the host's socket and the loop's descriptor: neither waits for the other."""
    host_side, far = socket.socketpair()
    with host_side, far:
        heard: list[bytes] = []
        ticks: list[float] = []

        async def tick() -> None:
            for number in range(10):
                await asyncio.sleep(0.002)
                ticks.append(time.monotonic())
                far.send(b"%d" % number)

        task = driven.create_task(tick())
        deadline = time.monotonic() + 10
        while len(b"".join(heard)) < 10:
            assert time.monotonic() < deadline
            wait, _ = driven.step()
            ready, _, _ = select.select([driven.poll_fd(), host_side], [], [], wait)
            if host_side in ready:
                heard.append(host_side.recv(100))
        driven.step()
        assert b"".join(heard) == b"0123456789" and task.done()


# ---------------------------------------------------------------------------------------------------------------------
# Isolated loops and drivers


def test_outside_a_node_every_loop_is_its_own() -> None:
    loops = [ErlangEventLoop(), ErlangEventLoop(), ErlangEventLoop(isolated=True)]
    ran: list[int] = []
    for number, loop in enumerate(loops):
        loop.call_soon(ran.append, number)
    loops[1].step()
    assert ran == [1] and len({loop.poll_fd() for loop in loops}) == 3
    for loop in loops:
        loop.close()


def test_isolated_loops_run_side_by_side_each_in_its_thread() -> None:
    results: dict[int, tuple[int, list[int]]] = {}

    def work(number: int) -> None:
        loop = ErlangEventLoop(isolated=True)
        ran: list[int] = []

        async def main() -> None:
            for _ in range(50):
                loop.call_soon(lambda: ran.append(threading.get_ident()))
                await asyncio.sleep(0.0005)

        loop.run_until_complete(main())
        loop.close()
        results[number] = (threading.get_ident(), ran)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert len(results) == 6
    assert all(ran == [owner] * 50 for owner, ran in results.values())


def test_an_unknown_driver_is_refused() -> None:
    with pytest.raises(ValueError, match="driver"):
        ErlangEventLoop(driver="steam")
    with pytest.raises(TypeError):
        ErlangEventLoop(True)  # type: ignore[misc]


@pytest.mark.parametrize("driver", ["epoll", "asio"])
def test_either_driver_keeps_time_and_hears_threads_and_sockets(driver: str) -> None:
    with asyncio.Runner(loop_factory=lambda: ErlangEventLoop(driver=driver)) as runner:

        async def main() -> None:
            loop = asyncio.get_running_loop()
            began = time.monotonic()
            for _ in range(50):
                await asyncio.sleep(0.001)
            assert 0.05 <= time.monotonic() - began < 1
            assert await loop.run_in_executor(None, int, "3") == 3
            async with await loop.create_server(Echo, "127.0.0.1", 0) as server:
                reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
                writer.write(b"x" * 1_000_000)
                assert await reader.readexactly(1_000_000) == b"x" * 1_000_000
                writer.close()
                await writer.wait_closed()

        runner.run(main())


def test_the_counters_count_what_is_alive() -> None:
    before = erlang_loop.debug_counters()
    loop = ErlangEventLoop()
    kept: list[Any] = [loop.call_soon(print) for _ in range(5)]
    kept += [loop.call_later(100, print) for _ in range(7)]
    during = erlang_loop.debug_counters()
    assert during["loops"] == before["loops"] + 1
    assert during["handles"] + during["timers"] >= before["handles"] + before["timers"] + 12
    loop.close()
    del loop, kept
    gc.collect()
    assert erlang_loop.debug_counters() == before


# ---------------------------------------------------------------------------------------------------------------------
# Ways to choose it


def test_it_is_a_loop_of_asyncios_own_kind() -> None:
    assert issubclass(ErlangEventLoop, asyncio.SelectorEventLoop)
    assert issubclass(ErlangEventLoop, asyncio.AbstractEventLoop)
    for name in dir(asyncio.AbstractEventLoop):
        if not name.startswith("__"):
            assert callable(getattr(ErlangEventLoop, name)), name
    loop = ErlangEventLoop()
    assert (
        abs(ErlangEventLoop.time(loop) - loop.time()) < 10
    )  # methods, for those who call through the class
    loop.close()


def test_new_event_loop_and_run_give_our_loop() -> None:
    loop = erlang_loop.new_event_loop()
    assert type(loop) is ErlangEventLoop
    loop.close()

    async def main() -> tuple[type, bool]:
        return type(asyncio.get_running_loop()), asyncio.get_running_loop().get_debug()

    assert erlang_loop.run(main(), debug=False) == (ErlangEventLoop, False)
    assert erlang_loop.run(main(), debug=True) == (ErlangEventLoop, True)
    with pytest.raises(ValueError, match="a coroutine was expected"):
        erlang_loop.run(17)  # type: ignore[arg-type]

    async def inside() -> None:
        coroutine = main()
        with pytest.raises(RuntimeError, match="cannot be called from a running event loop"):
            erlang_loop.run(coroutine)
        coroutine.close()

    asyncio.run(inside())


def test_set_event_loop_makes_it_the_current_one() -> None:
    loop = ErlangEventLoop()
    asyncio.set_event_loop(loop)
    assert asyncio.get_event_loop() is loop
    assert loop.run_until_complete(asyncio.sleep(0, "ran")) == "ran"
    asyncio.set_event_loop(None)
    loop.close()


if sys.version_info >= (3, 12):

    def test_asyncio_run_takes_it_as_its_factory() -> None:
        async def main() -> type:
            return type(asyncio.get_running_loop())

        assert asyncio.run(main(), loop_factory=ErlangEventLoop) is ErlangEventLoop


CHOSEN = """
    import erlang_loop
    async def main():
        loop = asyncio.get_running_loop()
        process = await asyncio.create_subprocess_exec("true")
        return type(loop).__name__, await process.wait()
"""


@pytest.mark.parametrize(
    "how",
    ["erlang_loop.install()", "asyncio.set_event_loop_policy(erlang_loop.ErlangEventLoopPolicy())"],
)
def test_a_policy_makes_it_the_loop_of_a_whole_program(how: str) -> None:
    ended = script(
        CHOSEN
        + f"""
    import warnings
    warnings.simplefilter("ignore", DeprecationWarning)
    {how}
    print(asyncio.run(main()))
    loop = asyncio.new_event_loop()
    print(type(loop).__name__)
    asyncio.set_event_loop(loop)
    print(asyncio.get_event_loop() is loop)
    loop.close()
    thread = threading.Thread(target=lambda: print(asyncio.run(main())))
    thread.start()
    thread.join()
    """,
        "erlang",
    )
    expected = "('ErlangEventLoop', 0)\nErlangEventLoop\nTrue\n('ErlangEventLoop', 0)\n"
    assert (ended.stdout, ended.stderr) == (expected, "")


def test_importing_it_starts_nothing_and_changes_nothing() -> None:
    ended = script(
        """
        before = open_fds(), threading.active_count(), signal.getsignal(signal.SIGINT)
        policy = type(asyncio.get_event_loop_policy())
        import erlang_loop
        assert before == (open_fds(), threading.active_count(), signal.getsignal(signal.SIGINT))
        assert type(asyncio.get_event_loop_policy()) is policy
        print(type(asyncio.new_event_loop()).__name__, erlang_loop.debug_counters()["loops"])
        """,
        "erlang",
        PYTHONWARNINGS="ignore",
    )
    name = asyncio.SelectorEventLoop.__name__
    assert ended.stdout == f"{name} 0\n", ended


def test_a_spawned_task_lives_though_nobody_keeps_it() -> None:
    ended: list[str] = []

    async def work(name: str) -> None:
        await asyncio.sleep(0.005)
        ended.append(name)

    async def main() -> None:
        task = erlang_loop.spawn_task(work("named"), name="a name")
        assert task.get_name() == "a name"
        del task
        erlang_loop.spawn_task(work("nameless"))
        gc.collect()
        await asyncio.sleep(0.02)
        assert sorted(ended) == ["named", "nameless"]

    erlang_loop.run(main())
    coroutine = work("never")
    with pytest.raises(RuntimeError, match="no running event loop"):
        erlang_loop.spawn_task(coroutine)
    coroutine.close()
