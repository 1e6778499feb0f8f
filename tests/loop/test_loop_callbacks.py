"""What runs and what happens when it goes wrong: order, contexts, errors, debug mode, and loops closed with work to do."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import logging
import os
import re
import signal
import socket
import sys
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from support import LoopFactory, Reports, run, script

variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="outside")


# ---------------------------------------------------------------------------------------------------------------------
# Order


def test_callbacks_run_in_the_order_they_were_given_each_once(
    loop: asyncio.AbstractEventLoop,
) -> None:
    ran: list[int] = []
    for number in range(5000):
        loop.call_soon(ran.append, number)
    loop.call_soon(loop.stop)
    loop.run_forever()
    assert ran == list(range(5000))


def test_what_a_callback_schedules_waits_for_the_next_turn(loop: asyncio.AbstractEventLoop) -> None:
    ran: list[str] = []

    def first() -> None:
        ran.append("first")
        loop.call_soon(ran.append, "of first")
        loop.call_soon_threadsafe(ran.append, "of first, threadsafe")

    loop.call_soon(first)
    loop.call_soon(ran.append, "second")
    loop.call_soon(loop.stop)
    loop.run_forever()
    assert ran == ["first", "second"]
    loop.call_soon(loop.stop)
    loop.run_forever()
    assert ran[2:] == ["of first", "of first, threadsafe"]


def test_stop_before_running_lets_one_turn_pass(loop: asyncio.AbstractEventLoop) -> None:
    ran: list[str] = []
    loop.call_soon(ran.append, "soon")
    loop.call_later(0, ran.append, "timer")
    loop.stop()
    loop.run_forever()
    assert ran == ["soon", "timer"]


def test_a_stopped_loop_goes_on_where_it_was(loop: asyncio.AbstractEventLoop) -> None:
    ran: list[int] = []
    for number in range(3):
        loop.call_soon(loop.stop)
        loop.run_forever()
        ran.append(number)
    assert ran == [0, 1, 2] and not loop.is_running()


@pytest.mark.parametrize("count", [0, 1, 2, 3, 4, 5, 9, 40])
def test_callbacks_get_their_arguments_however_many(
    loop: asyncio.AbstractEventLoop, count: int
) -> None:
    got: list[tuple[int, ...]] = []

    def callback(*arguments: int) -> None:
        got.append(arguments)

    loop.call_soon(callback, *range(count))
    loop.call_soon_threadsafe(callback, *range(count))
    loop.call_later(0, callback, *range(count))
    loop.call_later(0.001, loop.stop)
    loop.run_forever()
    assert got == [tuple(range(count))] * 3


def test_a_cancelled_callback_does_not_run_and_lets_go_of_what_it_had(
    loop: asyncio.AbstractEventLoop,
) -> None:
    class Thing:
        def method(self, other: Thing) -> None:
            raise AssertionError("a cancelled callback ran")

    here, argument = Thing(), Thing()
    references = [weakref.ref(here), weakref.ref(argument)]
    soon = loop.call_soon(here.method, argument)
    later = loop.call_later(3600, here.method, argument)
    threadsafe = loop.call_soon_threadsafe(here.method, argument)
    for handle in (soon, later, threadsafe):
        assert not handle.cancelled()
        handle.cancel()
        assert handle.cancelled()
    del here, argument
    gc.collect()
    assert [reference() for reference in references] == [None, None]
    loop.call_soon(loop.stop)
    loop.run_forever()


def test_a_handle_that_ran_may_be_kept_and_cancelled_without_harm_to_others(
    loop: asyncio.AbstractEventLoop,
) -> None:
    """A loop that reuses handles must not hand one out that somebody still has."""
    ran: list[int] = []
    old = [loop.call_soon(int) for _ in range(100)] + [loop.call_later(0, int) for _ in range(100)]
    loop.call_later(0.001, loop.stop)
    loop.run_forever()
    for number in range(200):
        loop.call_soon(ran.append, number)
        loop.call_later(0, ran.append, number)
    for handle in old:
        handle.cancel()
    loop.call_later(0.001, loop.stop)
    loop.run_forever()
    assert sorted(ran) == sorted([*range(200), *range(200)])


def test_a_loop_cannot_run_twice_nor_inside_another(loop_factory: LoopFactory) -> None:
    loop, other = loop_factory(), loop_factory()
    errors: list[str] = []

    def again(runner: asyncio.AbstractEventLoop) -> None:
        with pytest.raises(RuntimeError) as caught:
            runner.run_forever()
        errors.append(str(caught.value))

    loop.call_soon(again, loop)
    loop.call_soon(again, other)
    loop.call_soon(loop.stop)
    loop.run_forever()
    assert errors == [
        "This event loop is already running",
        "Cannot run the event loop while another loop is running",
    ]
    loop.close()
    other.close()


def test_run_until_complete_returns_raises_and_complains_as_the_standard_loop(
    loop: asyncio.AbstractEventLoop,
) -> None:
    async def fine() -> str:
        return "fine"

    async def broken() -> None:
        raise ValueError("broken")

    assert loop.run_until_complete(fine()) == "fine"
    with pytest.raises(ValueError, match="broken"):
        loop.run_until_complete(broken())
    with pytest.raises(
        TypeError, match="An asyncio.Future, a coroutine or an awaitable is required"
    ):
        loop.run_until_complete(17)  # type: ignore[call-overload]
    forever = loop.create_future()
    loop.call_soon(loop.stop)
    with pytest.raises(RuntimeError, match="Event loop stopped before Future completed."):
        loop.run_until_complete(forever)


def test_the_running_loop_is_this_one_while_it_runs_and_none_after(
    loop: asyncio.AbstractEventLoop,
) -> None:
    seen: list[asyncio.AbstractEventLoop] = []
    loop.call_soon(lambda: seen.append(asyncio.get_running_loop()))
    loop.call_soon(lambda: seen.append(asyncio.get_event_loop()))
    loop.call_soon(loop.stop)
    loop.run_forever()
    assert seen == [loop, loop]
    with pytest.raises(RuntimeError, match="no running event loop"):
        asyncio.get_running_loop()


# ---------------------------------------------------------------------------------------------------------------------
# Contexts


def test_a_callback_runs_in_a_copy_of_the_context_it_was_given_in_or_in_the_one_it_got(
    loop: asyncio.AbstractEventLoop,
) -> None:
    seen: list[str] = []

    def look(change: str | None = None) -> None:
        seen.append(variable.get())
        if change:
            variable.set(change)

    token = variable.set("here")
    loop.call_soon(look, "changed")
    loop.call_soon(look)
    loop.call_later(0, look)
    loop.call_soon_threadsafe(look)
    variable.reset(token)
    given = contextvars.copy_context()
    given.run(variable.set, "given")
    loop.call_soon(look, "changed given", context=given)
    loop.call_soon(look, context=given)
    loop.call_later(0, look, context=given)
    loop.call_at(0, look, context=given)
    loop.call_soon_threadsafe(look, context=given)
    loop.call_later(0.005, loop.stop)
    loop.run_forever()
    assert (
        sorted(seen) == sorted(["here"] * 4 + ["given"] + ["changed given"] * 4)
        and variable.get() == "outside"
    )


def test_readers_signals_and_done_callbacks_run_in_the_context_of_their_making(
    loop_factory: LoopFactory,
) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        seen: dict[str, str] = {}
        done = asyncio.Event()

        def look(name: str, *_: Any) -> None:
            seen[name] = variable.get()
            if len(seen) == 3:
                done.set()

        near, far = os.pipe()
        future = loop.create_future()
        variable.set("registered")
        loop.add_reader(near, look, "reader")
        loop.add_signal_handler(signal.SIGUSR1, look, "signal")
        future.add_done_callback(lambda _: look("done"))
        variable.set("later")
        os.write(far, b"x")
        os.kill(os.getpid(), signal.SIGUSR1)
        future.set_result(None)
        await asyncio.wait_for(done.wait(), 5)
        loop.remove_reader(near)
        loop.remove_signal_handler(signal.SIGUSR1)
        os.close(near)
        os.close(far)
        assert set(seen.values()) == {"registered"}

    run(loop_factory, main)


def test_protocols_are_called_in_the_context_of_their_connection(loop_factory: LoopFactory) -> None:
    class Looks(asyncio.Protocol):
        def __init__(self) -> None:
            self.seen: list[str] = []
            self.over = asyncio.get_running_loop().create_future()

        def connection_made(self, transport: Any) -> None:
            self.seen.append(variable.get())
            variable.set("set when made")
            transport.write(b"ping")

        def data_received(self, data: bytes) -> None:
            self.seen.append(variable.get())

        def connection_lost(self, error: Exception | None) -> None:
            self.seen.append(variable.get())
            self.over.set_result(None)

    async def main() -> list[str]:
        async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(await reader.read(100))
            writer.close()

        async with await asyncio.start_server(echo, "127.0.0.1", 0) as server:
            variable.set("connected here")
            loop = asyncio.get_running_loop()
            _, protocol = await loop.create_connection(Looks, *server.sockets[0].getsockname())
            variable.set("elsewhere")
            await protocol.over
        return protocol.seen

    # As asyncio does it: each event has a context copied from where the one before it was scheduled.
    assert run(loop_factory, main) == run(asyncio.SelectorEventLoop, main)


def test_a_task_keeps_the_context_it_is_given_and_its_timers_run_in_it(
    loop_factory: LoopFactory,
) -> None:
    async def main() -> None:
        async def change() -> str:
            variable.set("changed by the task")
            await asyncio.sleep(0.001)
            return variable.get()

        context = contextvars.copy_context()
        assert await asyncio.create_task(change(), context=context) == "changed by the task"
        assert context[variable] == "changed by the task"
        assert await asyncio.create_task(change()) == "changed by the task"
        assert variable.get() == "outside"

    run(loop_factory, main)


# ---------------------------------------------------------------------------------------------------------------------
# Errors


def broken(*_: object) -> None:
    raise ValueError("broken callback")


def test_a_callback_that_raises_is_reported_and_the_loop_goes_on(
    loop: asyncio.AbstractEventLoop,
) -> None:
    reports, ran = Reports(loop), []
    for call in (loop.call_soon, loop.call_soon_threadsafe):
        call(broken, 1, "two")
        call(ran.append, call.__name__)
    loop.call_later(0, broken)
    loop.call_later(0.001, loop.stop)
    loop.run_forever()
    assert ran == ["call_soon", "call_soon_threadsafe"]
    assert reports.errors == ["ValueError('broken callback')"] * 3
    # Newer versions tell the arguments in debug mode only: they may be secrets.
    assert re.match(r"Exception in callback broken\((1, 'two')?\) at ", reports.messages[0])
    assert reports.messages[2].startswith("Exception in callback broken() at ")
    assert all({"message", "exception", "handle"} <= keys for keys in reports.keys)


def test_without_a_handler_of_its_own_a_loop_logs_the_error_with_its_traceback(
    loop: asyncio.AbstractEventLoop, caplog: pytest.LogCaptureFixture
) -> None:
    loop.call_soon(broken)
    loop.call_soon(loop.stop)
    loop.run_forever()
    [record] = [record for record in caplog.records if record.name == "asyncio"]
    assert record.levelno == logging.ERROR
    assert record.getMessage().startswith("Exception in callback broken() at ")
    assert "\nhandle: <Handle broken() at " in record.getMessage()
    assert record.exc_info and str(record.exc_info[1]) == "broken callback"


def test_debug_mode_reports_where_a_broken_callback_was_scheduled(
    loop: asyncio.AbstractEventLoop, caplog: pytest.LogCaptureFixture
) -> None:
    loop.set_debug(True)
    loop.call_soon(broken)
    loop.call_later(0, broken)
    loop.call_later(0.01, loop.stop)
    loop.run_forever()
    errors = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    assert len(errors) == 2
    for text in errors:
        assert "Object created at (most recent call last):" in text
        assert "loop.call_soon(broken)" in text or "loop.call_later(0, broken)" in text


def test_an_exception_handler_that_raises_is_reported_itself(
    loop: asyncio.AbstractEventLoop, caplog: pytest.LogCaptureFixture
) -> None:
    def handler(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        raise KeyError("the handler")

    loop.set_exception_handler(handler)
    assert loop.get_exception_handler() is handler
    loop.call_soon(broken)
    loop.call_soon(loop.stop)
    loop.run_forever()
    messages = [record.getMessage() for record in caplog.records]
    assert messages[0].startswith("Unhandled error in exception handler")
    loop.set_exception_handler(None)
    with pytest.raises(TypeError, match="A callable object or None is expected"):
        loop.set_exception_handler(17)  # type: ignore[arg-type]


def test_what_call_exception_handler_is_told_reaches_the_log_whole(
    loop: asyncio.AbstractEventLoop, caplog: pytest.LogCaptureFixture
) -> None:
    loop.call_exception_handler({"message": "something", "detail": 17})
    loop.call_exception_handler({})
    assert [record.getMessage() for record in caplog.records] == [
        "something\ndetail: 17",
        "Unhandled exception in event loop",
    ]


@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt])
def test_sys_exit_in_a_callback_leaves_the_loop_which_can_run_on(
    loop: asyncio.AbstractEventLoop, kind: type[BaseException]
) -> None:
    ran: list[str] = []

    def leave() -> None:
        raise kind("leaving")

    loop.call_soon(ran.append, "before")
    loop.call_soon(leave)
    loop.call_soon(ran.append, "after")
    with pytest.raises(kind, match="leaving"):
        loop.run_forever()
    assert ran == ["before"] and not loop.is_running()
    loop.call_soon(loop.stop)
    loop.run_forever()
    assert ran == ["before", "after"]


@pytest.mark.parametrize("where", ["timer", "reader", "task", "threadsafe", "done"])
def test_sys_exit_leaves_the_loop_from_wherever_it_is_called(
    loop: asyncio.AbstractEventLoop, where: str
) -> None:
    near, far = socket.socketpair()

    def leave(*_: object) -> None:
        loop.remove_reader(near)
        sys.exit(23)

    async def task() -> None:
        leave()

    future = loop.create_future()
    future.add_done_callback(leave)
    loop.call_soon(
        {
            "timer": lambda: loop.call_later(0.001, leave),
            "reader": lambda: (loop.add_reader(near, leave), far.send(b"x")),
            "task": lambda: loop.create_task(task()),
            "threadsafe": lambda: loop.call_soon_threadsafe(leave),
            "done": lambda: future.set_result(None),
        }[where]
    )
    with near, far, pytest.raises(SystemExit) as caught:
        loop.run_forever()
    assert caught.value.code == 23
    caught.value.__traceback__ = None


def test_sys_exit_in_a_program_ends_it_with_its_code(loop_name: str) -> None:
    ended = script(
        """
        async def main():
            asyncio.get_running_loop().call_later(0.01, sys.exit, 3)
            try:
                await asyncio.Event().wait()
            finally:
                print("cleaned up")
        run(new_loop, main)
        """,
        loop_name,
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (3, "cleaned up\n", "")


def test_a_task_that_nobody_awaits_reports_its_error_when_it_goes(
    loop_factory: LoopFactory,
) -> None:
    async def main() -> list[str]:
        reports = Reports(asyncio.get_running_loop())

        async def fails() -> None:
            raise ValueError("nobody looks")

        asyncio.create_task(fails())
        await asyncio.sleep(0.001)
        gc.collect()
        return reports.messages

    assert run(loop_factory, main) == ["Task exception was never retrieved"]


# ---------------------------------------------------------------------------------------------------------------------
# Debug mode


def test_debug_mode_refuses_calls_from_other_threads(loop: asyncio.AbstractEventLoop) -> None:
    loop.set_debug(True)
    assert loop.get_debug()
    errors: list[str] = []

    def elsewhere() -> None:
        for call in (
            lambda: loop.call_soon(print),
            lambda: loop.call_later(1, print),
            lambda: loop.call_at(1, print),
        ):
            try:
                call()
                errors.append("nothing")
            except RuntimeError as error:
                errors.append(str(error))
        loop.call_soon_threadsafe(loop.stop)

    thread = threading.Thread(target=elsewhere)
    loop.call_soon(thread.start)
    loop.run_forever()
    thread.join()
    text = "Non-thread-safe operation invoked on an event loop other than the current one"
    assert errors == [text] * 3


@pytest.mark.parametrize("bad", ["a coroutine", "a coroutine function", "no callable"])
def test_debug_mode_refuses_callbacks_that_could_never_work(
    loop: asyncio.AbstractEventLoop, bad: str
) -> None:
    async def coroutine() -> None:
        ...

    loop.set_debug(True)
    callback = {"a coroutine": coroutine(), "a coroutine function": coroutine, "no callable": 17}
    for name, call in (
        ("call_soon", lambda it: loop.call_soon(it)),
        ("call_soon_threadsafe", lambda it: loop.call_soon_threadsafe(it)),
        ("call_at", lambda it: loop.call_at(1, it)),
        ("call_at", lambda it: loop.call_later(1, it)),  # it says call_at, in asyncio too
    ):
        with pytest.raises(TypeError) as caught:
            call(callback[bad])
        expected = (
            f"a callable object was expected by {name}(), got 17"
            if bad == "no callable"
            else f"coroutines cannot be used with {name}()"
        )
        assert str(caught.value) == expected
    callback["a coroutine"].close()  # type: ignore[attr-defined]


def test_debug_mode_reports_slow_callbacks_and_steps(
    loop: asyncio.AbstractEventLoop, caplog: pytest.LogCaptureFixture
) -> None:
    def slow() -> None:
        time.sleep(0.06)

    async def slow_task() -> None:
        time.sleep(0.06)

    loop.set_debug(True)
    assert loop.slow_callback_duration == 0.1  # type: ignore[attr-defined]
    loop.call_soon(slow)
    loop.call_soon(loop.stop)
    loop.run_forever()
    assert not caplog.records
    loop.slow_callback_duration = 0.05  # type: ignore[attr-defined]
    loop.call_soon(slow)
    loop.call_soon(loop.stop)
    loop.run_forever()
    loop.run_until_complete(slow_task())
    texts = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len(texts) == 2
    assert texts[0].startswith("Executing <Handle ") and "slow() at " in texts[0]
    assert texts[1].startswith("Executing <Task finished name=") and "slow_task() done" in texts[1]
    assert all(text.endswith(" seconds") and " took 0.0" in text for text in texts)


def test_debug_mode_tracks_where_coroutines_come_from_only_while_the_loop_runs(
    loop: asyncio.AbstractEventLoop,
) -> None:
    depths: list[int] = []
    loop.set_debug(True)
    loop.call_soon(lambda: depths.append(sys.get_coroutine_origin_tracking_depth()))
    loop.call_soon(loop.stop)
    loop.run_forever()
    loop.set_debug(False)
    loop.call_soon(lambda: depths.append(sys.get_coroutine_origin_tracking_depth()))
    loop.call_soon(loop.stop)
    loop.run_forever()
    assert depths == [10, 0] and sys.get_coroutine_origin_tracking_depth() == 0


def test_the_environment_switches_debug_mode_on(loop_name: str) -> None:
    code = "loop = new_loop()\nprint(loop.get_debug())\nloop.close()"
    assert script(code, loop_name, PYTHONASYNCIODEBUG="1").stdout == "True\n"
    assert script(code, loop_name, PYTHONASYNCIODEBUG="").stdout == "False\n"


def test_a_loop_forgotten_open_warns_when_it_goes(loop_name: str) -> None:
    ended = script("loop = new_loop()\ndel loop\nimport gc\ngc.collect()", loop_name)
    assert ended.returncode == 0
    ended = script(
        "import warnings\nwarnings.simplefilter('always')\nloop = new_loop()\ndel loop\nimport gc\n"
        "gc.collect()",
        loop_name,
    )
    assert ended.returncode == 0
    assert "ResourceWarning: unclosed event loop <" in ended.stderr


# ---------------------------------------------------------------------------------------------------------------------
# The end


def test_a_closed_loop_refuses_everything(loop: asyncio.AbstractEventLoop) -> None:
    async def nothing() -> None:
        ...

    assert not loop.is_closed()
    loop.close()
    loop.close()  # once more is nothing
    assert loop.is_closed()
    coroutine = nothing()
    for call in (
        lambda: loop.call_soon(print),
        lambda: loop.call_soon_threadsafe(print),
        lambda: loop.call_later(1, print),
        lambda: loop.call_at(1, print),
        lambda: loop.run_forever(),
        lambda: loop.run_until_complete(coroutine),
        lambda: loop.create_task(coroutine),
        lambda: loop.run_in_executor(None, print),
        lambda: loop.add_reader(0, print),
        lambda: loop.add_writer(1, print),
        lambda: loop.add_signal_handler(10, print),
    ):
        with pytest.raises(RuntimeError, match="Event loop is closed"):
            call()
    coroutine.close()
    assert "closed=True" in repr(loop) and "running=False" in repr(loop)
    loop.stop()


def test_a_running_loop_cannot_be_closed(loop: asyncio.AbstractEventLoop) -> None:
    caught: list[str] = []

    def close() -> None:
        try:
            loop.close()
        except RuntimeError as error:
            caught.append(str(error))
        loop.stop()

    loop.call_soon(close)
    loop.run_forever()
    assert caught == ["Cannot close a running event loop"] and not loop.is_closed()


def test_a_loop_closed_with_work_pending_drops_it(
    loop: asyncio.AbstractEventLoop, caplog: pytest.LogCaptureFixture
) -> None:
    class Thing:
        def method(self) -> None:
            raise AssertionError("it ran")

    async def waits() -> None:
        await asyncio.Event().wait()

    things = [Thing() for _ in range(4)]
    references = [weakref.ref(thing) for thing in things]
    loop.call_soon(things[0].method)
    loop.call_later(0.001, things[1].method)
    loop.call_later(3600, things[2].method)
    loop.call_soon_threadsafe(things[3].method)
    task = loop.create_task(waits())
    things.clear()
    loop.close()
    with pytest.warns(RuntimeWarning, match="was never awaited"):
        del task
    gc.collect()
    assert [reference() for reference in references] == [None] * 4
    assert [record.getMessage().split("\n")[0] for record in caplog.records] == [
        "Task was destroyed but it is pending!"
    ]


def test_a_loop_closed_with_connections_open_leaves_no_descriptor(
    loop_factory: LoopFactory,
) -> None:
    """They go with their transports, which complain, as those of the standard loop."""
    loop = loop_factory()

    async def connect() -> None:
        server = await loop.create_server(asyncio.Protocol, "127.0.0.1", 0)
        for _ in range(3):
            await loop.create_connection(asyncio.Protocol, *server.sockets[0].getsockname())
        await loop.create_datagram_endpoint(asyncio.DatagramProtocol, ("127.0.0.1", 0))

    loop.run_until_complete(connect())
    with pytest.warns(ResourceWarning, match="unclosed transport"):
        loop.close()
        del loop
        gc.collect()


@pytest.mark.parametrize("last", ["loop.close()", "pass"])
@pytest.mark.parametrize("what", ["handles", "streams", "datagrams", "tasks", "watchers"])
def test_a_program_that_ends_with_everything_open_ends_in_order(
    our_loop: str, what: str, last: str
) -> None:
    """What is in a cycle with its own kind is taken apart with its types, in any order."""
    open_them = {
        "handles": "kept.append([loop.call_soon(int), loop.call_later(9, int), loop.call_soon_threadsafe(int)])",
        "streams": "kept.append(await loop.create_connection(asyncio.Protocol, *address))",
        "datagrams": "kept.append(await loop.create_datagram_endpoint(asyncio.DatagramProtocol, ('127.0.0.1', 0)))",
        "tasks": "kept.append(loop.create_task(asyncio.open_connection(*address)))",
        "watchers": "kept.append(socket.socketpair()); loop.add_reader(kept[-1][0], int, kept)",
    }[what]
    ended = script(
        f"""
        loop, kept = new_loop(), []
        async def main():
            server = await loop.create_server(asyncio.Protocol, "127.0.0.1", 0)
            address = server.sockets[0].getsockname()
            for _ in range(20):
                {open_them}
            kept.append([server, kept])
        loop.run_until_complete(main())
        print("end", flush=True)
        {last}
        """,
        our_loop,
        PYTHONWARNINGS="ignore",
    )
    assert (ended.stdout, ended.returncode) == ("end\n", 0), ended.stderr


def test_async_generators_left_half_way_are_closed_on_the_loop(loop_factory: LoopFactory) -> None:
    steps: list[str] = []

    async def numbers(name: str) -> Any:
        try:
            for number in range(10):
                yield number
        finally:
            await asyncio.sleep(0.001)
            steps.append(f"{name} closed on {type(asyncio.get_running_loop()).__name__}")

    kept = []

    async def main() -> str:
        kept.append(numbers("kept"))
        await kept[0].__anext__()
        async for number in numbers("dropped"):
            if number == 2:
                break
        gc.collect()
        await asyncio.sleep(0.01)
        assert [step.split()[0] for step in steps] == ["dropped"]
        return type(asyncio.get_running_loop()).__name__

    name = run(loop_factory, main)
    assert steps == [f"dropped closed on {name}", f"kept closed on {name}"]
    assert sys.get_asyncgen_hooks() == (None, None)


def test_an_async_generator_that_fails_at_shutdown_is_reported(loop_factory: LoopFactory) -> None:
    loop = loop_factory()
    reports = Reports(loop)

    async def fails() -> Any:
        try:
            yield 1
        finally:
            raise ValueError("at the end")

    async def begin() -> Any:
        generator = fails()
        await generator.__anext__()
        return generator

    generator = loop.run_until_complete(begin())
    loop.run_until_complete(loop.shutdown_asyncgens())
    assert "an error occurred during closing of asynchronous generator" in reports.messages[0]
    assert reports.errors == ["ValueError('at the end')"]
    loop.close()


def test_an_async_generator_first_used_after_the_shutdown_warns(
    loop: asyncio.AbstractEventLoop,
) -> None:
    async def one() -> Any:
        yield 1

    async def use() -> None:
        async for _ in one():
            pass

    loop.run_until_complete(loop.shutdown_asyncgens())
    with pytest.warns(ResourceWarning, match="was scheduled after loop.shutdown_asyncgens"):
        loop.run_until_complete(use())


# ---------------------------------------------------------------------------------------------------------------------
# Executors


def test_work_for_other_threads_comes_back_with_its_result_or_error(
    loop_factory: LoopFactory,
) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        here = threading.get_ident()
        assert await loop.run_in_executor(None, threading.get_ident) != here
        with pytest.raises(ZeroDivisionError):
            await loop.run_in_executor(None, divmod, 1, 0)
        results = await asyncio.gather(
            *(loop.run_in_executor(None, pow, 2, number) for number in range(200))
        )
        assert results == [2**number for number in range(200)]
        variable.set("seen by the thread")
        assert await asyncio.to_thread(variable.get) == "seen by the thread"
        with ThreadPoolExecutor(1, thread_name_prefix="mine") as own:
            name = await loop.run_in_executor(own, lambda: threading.current_thread().name)
            assert name.startswith("mine")

    run(loop_factory, main)


def test_only_thread_pools_can_be_the_default_executor(loop: asyncio.AbstractEventLoop) -> None:
    with pytest.raises(TypeError, match="executor must be ThreadPoolExecutor instance"):
        loop.set_default_executor(object())  # type: ignore[arg-type]


def test_the_default_executors_shutdown_waits_for_its_work_and_refuses_more(
    loop: asyncio.AbstractEventLoop,
) -> None:
    finished: list[int] = []

    def work(number: int) -> None:
        time.sleep(0.05)
        finished.append(number)

    async def main() -> None:
        for number in range(3):
            loop.run_in_executor(None, work, number)
        await loop.shutdown_default_executor()
        assert sorted(finished) == [0, 1, 2]
        with pytest.raises(RuntimeError, match="Executor shutdown has been called"):
            await loop.run_in_executor(None, print)

    loop.run_until_complete(main())


if sys.version_info >= (3, 13):  # 3.12 waits for its threads whatever the time-out

    def test_the_executors_shutdown_gives_up_after_its_time_out_with_a_warning(
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        release = threading.Event()

        async def main() -> None:
            loop.run_in_executor(None, release.wait)
            began = time.monotonic()
            with pytest.warns(RuntimeWarning, match="did not finishing joining its threads within"):
                await loop.shutdown_default_executor(timeout=0.05)
            assert 0.05 <= time.monotonic() - began < 2

        try:
            loop.run_until_complete(main())
        finally:
            release.set()


def test_a_cancelled_wait_for_a_thread_does_not_disturb_the_loop(loop_factory: LoopFactory) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        release = threading.Event()
        waiting = loop.run_in_executor(None, release.wait)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(waiting, 0.01)
        release.set()
        assert await loop.run_in_executor(None, int, "7") == 7

    run(loop_factory, main)


def test_work_that_ends_after_its_loop_was_closed_hurts_nobody(loop_factory: LoopFactory) -> None:
    loop = loop_factory()
    release = threading.Event()
    loop.run_until_complete(asyncio.sleep(0))

    async def begin() -> None:
        loop.run_in_executor(None, release.wait)

    loop.run_until_complete(begin())
    pool = loop._default_executor  # type: ignore[attr-defined]
    loop.close()
    release.set()
    pool.shutdown(wait=True)
