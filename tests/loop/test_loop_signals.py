"""Signals: handlers, Ctrl-C in every state, and other threads that want the loop's attention."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import threading
import time

import pytest
from support import LoopFactory, finish, run, script, start


def running() -> asyncio.AbstractEventLoop:
    return asyncio.get_running_loop()


# ---------------------------------------------------------------------------------------------------------------------
# Handlers


def test_a_handler_runs_in_the_loop_with_its_arguments(loop_factory: LoopFactory) -> None:
    async def main() -> None:
        got: list[object] = []
        came = asyncio.Event()

        def handler(*arguments: object) -> None:
            got.extend([*arguments, running() is loop])
            came.set()

        loop = running()
        loop.add_signal_handler(signal.SIGUSR1, handler, "one", 2)
        for _ in range(3):
            came.clear()
            os.kill(os.getpid(), signal.SIGUSR1)
            await asyncio.wait_for(came.wait(), 5)
        assert got == ["one", 2, True] * 3
        loop.add_signal_handler(signal.SIGUSR1, got.append, "another")  # in its place
        os.kill(os.getpid(), signal.SIGUSR1)
        await asyncio.sleep(0.01)
        assert got[9:] == ["another"]
        assert loop.remove_signal_handler(signal.SIGUSR1) is True
        assert loop.remove_signal_handler(signal.SIGUSR1) is False
        assert signal.getsignal(signal.SIGUSR1) is signal.SIG_DFL

    run(loop_factory, main)


def test_a_signal_wakes_a_loop_that_waits_for_nothing_else(loop_factory: LoopFactory) -> None:
    async def main() -> float:
        came = running().create_future()
        running().add_signal_handler(signal.SIGUSR1, lambda: came.set_result(time.monotonic()))
        sent: list[float] = []

        def send() -> None:
            time.sleep(0.05)
            sent.append(time.monotonic())
            os.kill(os.getpid(), signal.SIGUSR1)

        thread = threading.Thread(target=send)
        thread.start()
        late = await asyncio.wait_for(came, 5) - sent[0]
        thread.join()
        running().remove_signal_handler(signal.SIGUSR1)
        return late

    assert run(loop_factory, main) < 1


def test_a_burst_of_signals_runs_each_handler_at_least_once(loop_factory: LoopFactory) -> None:
    async def main() -> None:
        counts = {number: 0 for number in (signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP)}

        def count(number: signal.Signals) -> None:
            counts[number] += 1

        for number in counts:
            running().add_signal_handler(number, count, number)
        for _ in range(30):
            for number in counts:
                os.kill(os.getpid(), number)
        await asyncio.sleep(0.05)
        assert all(1 <= seen <= 30 for seen in counts.values())
        for number in counts:
            running().remove_signal_handler(number)

    run(loop_factory, main)


def test_signals_that_interrupt_a_wait_do_not_make_a_timer_early(loop_factory: LoopFactory) -> None:
    """A handler of Python's own, which the loop knows nothing of, runs in between."""
    seen: list[int] = []
    before = signal.signal(signal.SIGUSR1, lambda number, _: seen.append(number))

    def annoy() -> None:
        for _ in range(20):
            os.kill(os.getpid(), signal.SIGUSR1)
            time.sleep(0.002)

    async def main() -> float:
        thread = threading.Thread(target=annoy)
        began = time.monotonic()
        thread.start()
        await asyncio.sleep(0.06)
        took = time.monotonic() - began
        thread.join()
        return took

    try:
        assert run(loop_factory, main) >= 0.06
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert len(seen) >= 1


def test_a_handler_of_pythons_own_runs_while_the_loop_sleeps(loop_name: str) -> None:
    """A long wait is interrupted for it, and goes on afterwards."""
    process = start(
        """
        signal.signal(signal.SIGUSR1, lambda *_: print("handled", flush=True))
        async def main():
            print("ready", flush=True)
            await asyncio.sleep(0.4)
            print("slept", flush=True)
        run(new_loop, main)
        """,
        loop_name,
    )
    assert process.stdout and process.stdout.readline() == "ready\n"
    time.sleep(0.1)
    began = time.monotonic()
    process.send_signal(signal.SIGUSR1)
    assert process.stdout.readline() == "handled\n"
    assert time.monotonic() - began < 0.25
    ended = finish(process)
    assert (ended.stdout, ended.stderr, ended.returncode) == ("slept\n", "", 0)


def test_what_a_signal_handler_of_pythons_own_raises_leaves_the_loop(
    loop: asyncio.AbstractEventLoop,
) -> None:
    def handler(*_: object) -> None:
        raise LookupError("from a handler")

    before = signal.signal(signal.SIGUSR1, handler)
    thread = threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGUSR1))
    thread.start()
    with pytest.raises(LookupError, match="from a handler"):
        loop.run_forever()
    signal.signal(signal.SIGUSR1, before)
    thread.join()
    loop.run_until_complete(asyncio.sleep(0))


def test_impossible_handlers_are_refused(loop_factory: LoopFactory) -> None:
    async def main() -> None:
        async def coroutine() -> None:
            ...

        loop = running()
        with pytest.raises(TypeError, match="sig must be an int"):
            loop.add_signal_handler("SIGINT", print)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="invalid signal number 0"):
            loop.add_signal_handler(0, print)
        with pytest.raises(ValueError, match="invalid signal number 1000"):
            loop.remove_signal_handler(1000)
        with pytest.raises(RuntimeError, match="sig .* cannot be caught"):
            loop.add_signal_handler(signal.SIGKILL, print)
        with pytest.raises(TypeError, match="coroutines cannot be used with add_signal_handler"):
            loop.add_signal_handler(signal.SIGUSR1, coroutine)
        assert signal.getsignal(signal.SIGUSR1) is signal.SIG_DFL

    run(loop_factory, main)


def test_only_the_main_thread_may_have_handlers(loop_factory: LoopFactory) -> None:
    errors: list[Exception] = []

    async def main() -> None:
        try:
            running().add_signal_handler(signal.SIGUSR1, print)
        except (RuntimeError, ValueError) as error:
            errors.append(error.with_traceback(None))

    thread = threading.Thread(target=run, args=(loop_factory, main))
    thread.start()
    thread.join()
    assert len(errors) == 1 and "main thread" in str(errors[0])


def test_closing_a_loop_gives_the_signals_back(loop_factory: LoopFactory) -> None:
    loop = loop_factory()
    loop.add_signal_handler(signal.SIGUSR1, print)
    loop.add_signal_handler(signal.SIGINT, print)
    loop.close()
    assert signal.getsignal(signal.SIGUSR1) is signal.SIG_DFL
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert signal.set_wakeup_fd(-1) == -1


def test_a_signal_handler_that_raises_is_reported(
    loop_factory: LoopFactory, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        def handler() -> None:
            raise ValueError("in a signal handler")

        running().add_signal_handler(signal.SIGUSR1, handler)
        os.kill(os.getpid(), signal.SIGUSR1)
        await asyncio.sleep(0.01)
        running().remove_signal_handler(signal.SIGUSR1)

    run(loop_factory, main)
    assert [record.getMessage()[:22] for record in caplog.records] == ["Exception in callback "]


def test_a_second_loop_takes_over_the_signals_of_the_first(loop_factory: LoopFactory) -> None:
    for _ in range(3):

        async def main() -> None:
            came = asyncio.Event()
            running().add_signal_handler(signal.SIGUSR1, came.set)
            os.kill(os.getpid(), signal.SIGUSR1)
            await asyncio.wait_for(came.wait(), 5)

        run(loop_factory, main)


# ---------------------------------------------------------------------------------------------------------------------
# Ctrl-C


def interrupt(process: subprocess.Popen[str]) -> subprocess.CompletedProcess[str]:
    """Waits until the script says that it is ready, and interrupts it as a terminal does."""
    assert process.stdout and process.stdout.readline() == "ready\n"
    time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    return finish(process)


STATES = {
    "waiting": "await asyncio.Event().wait()",
    "sleeping": "await asyncio.sleep(3600)",
    "reading": "await asyncio.get_running_loop().sock_recv(near, 1)",
    "turning": "while True: await asyncio.sleep(0)",
}


@pytest.mark.parametrize("state", STATES)
def test_ctrl_c_cancels_the_main_task_and_ends_in_keyboard_interrupt(
    loop_name: str, state: str
) -> None:
    """asyncio.Runner: the first one cancels the task, which may clean up; the program ends as others do."""
    process = start(
        f"""
        async def main():
            near, far = socket.socketpair()
            near.setblocking(False)
            print("ready", flush=True)
            try:
                {STATES[state]}
            except asyncio.CancelledError:
                await asyncio.sleep(0.01)
                print("cleaned up", flush=True)
                raise
        try:
            run(new_loop, main)
        except KeyboardInterrupt:
            print("interrupted")
        """,
        loop_name,
    )
    ended = interrupt(process)
    assert ended.stdout == "cleaned up\ninterrupted\n" and ended.stderr == ""


def test_a_second_ctrl_c_does_not_wait_for_the_task_even_if_it_computes(loop_name: str) -> None:
    process = start(
        """
        async def main():
            print("ready", flush=True)
            while True:
                try:
                    await asyncio.sleep(3600)
                except asyncio.CancelledError:
                    print("stubborn", flush=True)
                    while True:
                        pass
        try:
            run(new_loop, main)
        except KeyboardInterrupt:
            print("interrupted", flush=True)
            os._exit(0)
        """,
        loop_name,
    )
    assert process.stdout and process.stdout.readline() == "ready\n"
    time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    assert process.stdout.readline() == "stubborn\n"
    process.send_signal(signal.SIGINT)
    ended = finish(process)
    assert ended.stdout.endswith("interrupted\n") and ended.returncode == 0


@pytest.mark.parametrize(
    "state", ["loop.run_forever()", "loop.run_until_complete(loop.create_future())"]
)
def test_ctrl_c_without_a_runner_leaves_the_loop_at_once(loop_name: str, state: str) -> None:
    process = start(
        f"""
        loop = new_loop()
        loop.call_soon(print, "ready")
        try:
            {state}
        except KeyboardInterrupt:
            print("interrupted", loop.is_running())
            loop.run_until_complete(asyncio.sleep(0.001))
            print("and runs on")
        loop.close()
        """,
        loop_name,
    )
    ended = interrupt(process)
    assert (ended.stdout, ended.stderr) == ("interrupted False\nand runs on\n", "")


def test_ctrl_c_that_nobody_catches_ends_the_program_by_its_signal(loop_name: str) -> None:
    process = start(
        """
        async def main():
            print("ready", flush=True)
            await asyncio.sleep(3600)
        run(new_loop, main)
        """,
        loop_name,
    )
    ended = interrupt(process)
    assert ended.returncode == -signal.SIGINT and ended.stderr.endswith("KeyboardInterrupt\n")


def test_a_handler_of_the_loops_for_ctrl_c_replaces_all_that(loop_name: str) -> None:
    process = start(
        """
        async def main():
            stopped = asyncio.Event()
            asyncio.get_running_loop().add_signal_handler(signal.SIGINT, stopped.set)
            asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
            print("ready", flush=True)
            await stopped.wait()
            print("in peace")
        run(new_loop, main)
        """,
        loop_name,
    )
    ended = interrupt(process)
    assert (ended.stdout, ended.stderr, ended.returncode) == ("in peace\n", "", 0)


def test_a_terminated_program_ends_as_one_without_a_loop(loop_name: str) -> None:
    process = start(
        "async def main():\n    print('ready', flush=True)\n    await asyncio.sleep(3600)\nrun(new_loop, main)",
        loop_name,
    )
    assert process.stdout and process.stdout.readline() == "ready\n"
    process.terminate()
    assert finish(process).returncode == -signal.SIGTERM


def test_ctrl_c_in_the_middle_of_everything_leaves_an_orderly_loop(loop_name: str) -> None:
    """Interrupts at random moments of a busy loop; each leaves it able to run on and to close."""
    ended = script(
        """
        import random
        async def echo(reader, writer):
            while data := await reader.read(1000):
                writer.write(data)
            writer.close()

        async def busy():
            server = await asyncio.start_server(echo, "127.0.0.1", 0)
            async with server:
                reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
                try:
                    while True:
                        writer.write(b"x" * 100)
                        await reader.readexactly(100)
                        await asyncio.gather(*(asyncio.sleep(0) for _ in range(5)))
                finally:
                    writer.close()

        interrupted = 0
        for turn in range(30):
            delay = random.uniform(0.001, 0.01)
            timer = threading.Timer(delay, os.kill, (os.getpid(), signal.SIGINT))
            try:
                with asyncio.Runner(loop_factory=new_loop) as runner:
                    timer.start()
                    runner.run(busy())
            except KeyboardInterrupt:
                interrupted += 1
            timer.join()
        print(interrupted)
        """,
        loop_name,
    )
    assert ended.stdout == "30\n", ended.stderr
