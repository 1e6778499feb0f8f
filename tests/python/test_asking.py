"""What Python asks of Erlang, from threads and coroutines, and the helpers for both."""

from __future__ import annotations

import asyncio
import copy
import gc
import pickle
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

import erlang
from erlang import Atom, ErlangError, NoConnection, UnknownFunction
from erlang.testing import FakePeer


@pytest.fixture
def peer() -> Iterator[FakePeer]:
    with FakePeer({"add": lambda a, b: a + b, "fail": fail}) as peer:
        yield peer


def fail(kind: str, reason: Any) -> None:
    raise ErlangError(kind, reason, [(Atom("shop"), Atom("price"), 2, [])])


class Never:
    """A function that is asked and does not answer before `release`."""

    def __init__(self, peer: FakePeer) -> None:
        self.asked = threading.Semaphore(0)
        self.release = threading.Event()
        self.stopped = threading.Event()
        peer.register("never", self._plain)
        peer.register("never_async", self._coroutine)

    def _plain(self) -> str:
        self.asked.release()
        assert self.release.wait(5)
        return "late"

    async def _coroutine(self) -> None:
        self.asked.release()
        try:
            await asyncio.Event().wait()
        finally:
            self.stopped.set()

    async def has_been_asked(self) -> None:
        assert await asyncio.to_thread(self.asked.acquire, timeout=5)


@pytest.fixture
def never(peer: FakePeer) -> Iterator[Never]:
    never = Never(peer)
    yield never
    never.release.set()


# --- call -----------------------------------------------------------------------------------------------


def test_a_call_returns_what_the_function_does(peer: FakePeer) -> None:
    assert erlang.call("add", 1, 2) == 3
    assert erlang.call("add", "a", "b", timeout=5, node="beam@fake") == "ab"


def test_a_call_raises_class_reason_and_stack(peer: FakePeer) -> None:
    for kind in ("error", "exit", "throw"):
        with pytest.raises(ErlangError) as caught:
            erlang.call("fail", kind, (Atom("badarg"), [1]))
        error = caught.value
        assert (error.kind, error.reason) == (Atom(kind), (Atom("badarg"), [1]))
        assert error.stack == [("shop", "price", 2, [])]
        assert isinstance(error, RuntimeError)


def test_a_name_nobody_registered_is_an_unknown_function(peer: FakePeer) -> None:
    with pytest.raises(UnknownFunction, match="^error: Atom\\('undef'\\)$"):
        erlang.call("nope")
    with pytest.raises(UnknownFunction):
        asyncio.run(erlang.async_call("nope"))


@pytest.mark.parametrize("node", ["nobody@nowhere", "py@fake", ""])
def test_a_node_that_is_no_peer_is_no_connection(peer: FakePeer, node: str) -> None:
    asks = [
        lambda: erlang.call("add", 1, 2, node=node),
        lambda: asyncio.run(erlang.async_call("add", 1, 2, node=node)),
        lambda: erlang.erpc(node, "m", "f"),
        lambda: asyncio.run(erlang.async_erpc(node, "m", "f")),
    ]
    for ask in asks:
        with pytest.raises(NoConnection):
            ask()
    assert peer.calls == []


def test_what_is_no_name_is_a_type_error(peer: FakePeer) -> None:
    for ask in (
        lambda: erlang.call(1),  # type: ignore[arg-type]
        lambda: erlang.call("add", node=1),  # type: ignore[arg-type]
        lambda: erlang.erpc("beam@fake", "m", None),  # type: ignore[arg-type]
    ):
        with pytest.raises(TypeError, match="must be a str"):
            ask()


def test_a_call_gives_up_after_its_timeout_and_a_late_result_is_nobodys(
    peer: FakePeer, never: Never
) -> None:
    with pytest.raises(TimeoutError):
        erlang.call("never", timeout=0.01)
    never.release.set()
    assert erlang.call("add", 1, 2) == 3


def test_calls_of_many_threads_run_side_by_side(peer: FakePeer) -> None:
    together = threading.Barrier(8)
    peer.register("meet", lambda: together.wait(5) >= 0)
    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(lambda _: erlang.call("meet"), range(8)))


def test_asking_on_the_nodes_loop_says_what_to_do_instead(peer: FakePeer) -> None:
    async def on_loop(ask: Any) -> None:
        ask()

    for ask, instead in (
        (lambda: erlang.call("add", 1, 2), "async_call"),
        (lambda: erlang.gen_call("p", 1), "async_gen_call"),
        (lambda: erlang.erpc("beam@fake", "m", "f"), "async_erpc"),
    ):
        with pytest.raises(RuntimeError, match=f"use await erlang.{instead}"):
            erlang.run(on_loop(ask))


@pytest.mark.parametrize(
    "ask",
    [
        lambda: erlang.call("add", 1, 2),
        lambda: erlang.send("p", 1),
        lambda: erlang.cast("p", 1),
        lambda: erlang.gen_call("p", 1),
        lambda: erlang.erpc("a@b", "m", "f"),
        lambda: erlang.nodes(),
        lambda: asyncio.run(erlang.async_call("add", 1, 2)),
    ],
)
def test_without_a_node_everything_says_so(ask: Any) -> None:
    with pytest.raises(RuntimeError, match="does not run inside a node"):
        ask()


# --- async_call -----------------------------------------------------------------------------------------


def test_coroutines_call_from_any_loop(peer: FakePeer) -> None:
    async def user() -> list[Any]:
        return await asyncio.gather(*(erlang.async_call("add", i, 1) for i in range(50)))

    assert asyncio.run(user()) == list(range(1, 51))
    assert erlang.run(user()) == list(range(1, 51))


def test_gathered_calls_run_at_once(peer: FakePeer) -> None:
    together = threading.Barrier(8)
    peer.register("meet", lambda: together.wait(5) >= 0)

    async def user() -> list[Any]:
        return await asyncio.gather(*(erlang.async_call("meet") for _ in range(8)))

    assert asyncio.run(user()) == [True] * 8


def test_one_failure_does_not_disturb_the_others(peer: FakePeer) -> None:
    async def user() -> list[Any]:
        asked = [erlang.async_call("add", 1, 2), erlang.async_call("fail", "error", "no")]
        return await asyncio.gather(*asked, return_exceptions=True)

    three, error = asyncio.run(user())
    assert three == 3
    assert isinstance(error, ErlangError)


@pytest.mark.parametrize("run", [asyncio.run, lambda coroutine: erlang.run(coroutine)])
def test_a_cancelled_call_is_stopped_on_the_other_side(
    peer: FakePeer, never: Never, run: Any
) -> None:
    async def user() -> bool:
        task = asyncio.create_task(erlang.async_call("never_async"))
        await never.has_been_asked()
        task.cancel()
        await asyncio.wait([task])
        return task.cancelled()

    assert run(user())
    assert never.stopped.wait(5)
    assert erlang.stats()["asking"] == 0


def test_a_timeout_is_a_timeout_error_and_stops_the_function(peer: FakePeer, never: Never) -> None:
    with pytest.raises(TimeoutError):
        asyncio.run(erlang.async_call("never_async", timeout=0.01))
    assert never.stopped.wait(5)


def test_an_answer_for_a_loop_that_is_closed_is_dropped(peer: FakePeer, never: Never) -> None:
    async def user() -> asyncio.Task[Any]:
        task = asyncio.create_task(erlang.async_call("never"))
        await never.has_been_asked()
        return task

    loop = asyncio.new_event_loop()
    task = loop.run_until_complete(user())
    loop.close()
    never.release.set()
    assert erlang.call("add", 1, 2) == 3
    assert not task.done()
    task._log_destroy_pending = False  # type: ignore[attr-defined]


def test_who_waits_in_a_coroutine_hears_that_the_connection_is_lost(
    peer: FakePeer, never: Never
) -> None:
    async def user() -> None:
        task = asyncio.create_task(erlang.async_call("never"))
        await never.has_been_asked()
        peer.disconnect()
        await task

    with pytest.raises(NoConnection):
        asyncio.run(user())


# --- processes of the peer ------------------------------------------------------------------------------


def test_gen_call_asks_by_pid_and_by_name(peer: FakePeer) -> None:
    process = peer.process("double", lambda request: 2 * request)
    assert erlang.gen_call(process.pid, 2) == 4
    assert erlang.gen_call(("double", "beam@fake"), 3) == 6
    assert asyncio.run(erlang.async_gen_call(process.pid, "a")) == "aa"


def test_gen_call_gives_up_and_a_late_reply_is_nobodys(peer: FakePeer, never: Never) -> None:
    process = peer.process(handler=lambda request: never._plain() if request else "next")
    with pytest.raises(TimeoutError):
        erlang.gen_call(process.pid, True, timeout=0.01)
    never.release.set()
    assert erlang.gen_call(process.pid, False) == "next"
    assert erlang.stats()["asking"] == 0


def test_async_gen_call_raises_the_reason_the_process_ends_with(peer: FakePeer) -> None:
    process = peer.process()

    async def user() -> None:
        task = asyncio.create_task(erlang.async_gen_call(process.pid, 1, timeout=None))
        await asyncio.sleep(0)
        process.exit(Atom("killed"))
        await task

    with pytest.raises(ErlangError) as caught:
        asyncio.run(user())
    assert (caught.value.kind, caught.value.reason) == ("exit", "killed")


def test_send_to_nobody_is_lost_and_cast_without_a_connection_too(peer: FakePeer) -> None:
    erlang.send("nobody", 1)
    erlang.send(("nobody", "beam@fake"), 1)
    with pytest.raises(NoConnection, match="nowhere"):
        erlang.send(("nobody", "x@nowhere"), 1)
    erlang.cast(("nobody", "x@nowhere"), 1)
    asyncio.run(erlang.async_cast(("nobody", "x@nowhere"), 1))


# --- names of functions ---------------------------------------------------------------------------------


def test_a_registered_function_is_an_attribute_of_the_package(peer: FakePeer) -> None:
    from erlang import add  # type: ignore[attr-defined]

    assert erlang.add(1, 2) == add(1, 2) == 3
    assert erlang.add(1, 2, timeout=5, node="beam@fake") == 3
    assert asyncio.run(add.asynchronous(1, 2)) == 3
    assert repr(add) == "erlang.add"
    with pytest.raises(UnknownFunction):
        erlang.nope()


def test_names_that_begin_with_an_underscore_are_no_functions() -> None:
    with pytest.raises(AttributeError, match="module 'erlang' has no attribute '_x'"):
        erlang._x
    assert not hasattr(erlang, "__wrapped__")


def test_the_modules_of_the_package_are_no_functions() -> None:
    code = "import types; from erlang import logs, testing; assert type(logs) is type(testing) is types.ModuleType"
    subprocess.run([sys.executable, "-c", code], check=True)


# --- exceptions -----------------------------------------------------------------------------------------


def test_an_error_prints_class_reason_and_place() -> None:
    stack = [(Atom("shop"), Atom("price"), 2, []), (Atom("m"), Atom("f"), 1, [])]
    assert str(ErlangError("error", "badarg", stack)) == "error: 'badarg' in shop:price/2"
    assert str(ErlangError("error", 1, [("m", "f", ["a", "b"], [])])) == "error: 1 in m:f/2"
    for stack_like in (None, [], ["odd"], (1, 2), "text"):
        assert str(ErlangError("exit", "normal", stack_like)) == "exit: 'normal'"
    assert str(NoConnection()) == "error: Atom('noconnection')"


@pytest.mark.parametrize(
    "again", [lambda error: pickle.loads(pickle.dumps(error)), copy.copy, copy.deepcopy]
)
@pytest.mark.parametrize(
    "error",
    [
        ErlangError(Atom("throw"), ("x", [1]), [("m", "f", 1, [])]),
        ErlangError("exit"),
        UnknownFunction("error", Atom("undef")),
        NoConnection(),
        NoConnection("beam@host"),
    ],
)
def test_errors_survive_pickle_and_copy(error: ErlangError, again: Any) -> None:
    error.add_note("a note")
    copied = again(error)
    assert type(copied) is type(error)
    assert (copied.kind, copied.reason, copied.stack) == (error.kind, error.reason, error.stack)
    assert str(copied) == str(error)
    assert copied.__notes__[-1] == "a note"


# --- run, spawn_task, sleep -----------------------------------------------------------------------------


def test_run_uses_the_nodes_loop_and_without_one_its_own(peer: FakePeer) -> None:
    async def thread() -> threading.Thread:
        return threading.current_thread()

    assert erlang.run(thread()) is not threading.current_thread()
    with ThreadPoolExecutor(1) as pool:
        here, loop = pool.submit(erlang.run, thread()).result(), erlang.run(thread())
    assert here is loop


def test_run_works_without_a_node() -> None:
    async def thread() -> threading.Thread:
        return threading.current_thread()

    assert erlang.run(thread()) is threading.current_thread()
    with pytest.raises(TimeoutError):
        erlang.run(asyncio.sleep(60), timeout=0.01)


def test_run_raises_what_the_coroutine_does_and_cancels_it_after_its_timeout(
    peer: FakePeer,
) -> None:
    cancelled = threading.Event()

    async def failing() -> None:
        raise KeyError("k")

    async def slow() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    with pytest.raises(KeyError):
        erlang.run(failing())
    with pytest.raises(TimeoutError):
        erlang.run(slow(), timeout=0.05)
    assert cancelled.wait(5)


def test_run_refuses_to_block_a_running_loop(peer: FakePeer) -> None:
    async def user() -> None:
        erlang.run(asyncio.sleep(0))

    for run in (asyncio.run, erlang.run):
        with pytest.raises(RuntimeError, match="would block the running event loop"):
            run(user())


def test_a_task_is_spawned_on_the_running_loop_or_the_nodes(peer: FakePeer) -> None:
    async def name() -> str:
        task = asyncio.current_task()
        assert task is not None
        return task.get_name()

    async def user() -> str:
        task = erlang.spawn_task(name(), name="here")
        assert isinstance(task, asyncio.Task)
        return await task

    assert asyncio.run(user()) == "here"
    future = erlang.spawn_task(name(), name="there")
    assert not isinstance(future, asyncio.Task)
    assert future.result(5) == "there"


def test_a_task_that_nobody_keeps_goes_on() -> None:
    async def user() -> int:
        async def waiting() -> None:
            await asyncio.get_running_loop().create_future()

        erlang.spawn_task(waiting(), name="kept")
        await asyncio.sleep(0)
        gc.collect()
        return sum(task.get_name() == "kept" for task in asyncio.all_tasks())

    assert asyncio.run(user()) == 1


def test_a_task_needs_a_loop() -> None:
    with pytest.raises(RuntimeError, match="no loop runs here"):
        erlang.spawn_task(asyncio.sleep(0))


def test_sleep_is_for_both_kinds_of_code(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr("time.sleep", slept.append)
    erlang.sleep(7)
    assert slept == [7]

    async def user() -> list[int]:
        order = [1]
        asyncio.get_running_loop().call_soon(order.append, 2)
        await erlang.sleep(0.001)
        return order

    assert asyncio.run(user()) == [1, 2]
    assert slept == [7]


def test_what_sleep_returns_in_synchronous_code_is_over() -> None:
    over = erlang.sleep(0)

    async def user() -> None:
        return await over

    assert asyncio.run(user()) is None
