"""What callback_SUITE has Python ask of Erlang."""

from __future__ import annotations

import asyncio
import concurrent.futures
import logging
import threading
import time
from typing import Any

import erlang
from erlang import Atom, GenServer, Pid


def outcome(function: Any, *args: Any, **kwargs: Any) -> Any:
    """What it returned, or raised: ('ok', value) or (class, message, kind, reason)."""
    try:
        return Atom("ok"), function(*args, **kwargs)
    except erlang.ErlangError as error:
        return type(error).__name__, str(error), error.kind, error.reason
    except Exception as error:
        return type(error).__name__, str(error)


async def outcome_async(awaitable: Any) -> Any:
    try:
        return Atom("ok"), await awaitable
    except erlang.ErlangError as error:
        return type(error).__name__, str(error), error.kind, error.reason
    except Exception as error:
        return type(error).__name__, str(error)


def call(name: str, args: list[Any], options: dict[str, Any]) -> Any:
    return outcome(erlang.call, name, *args, **options)


async def async_call(name: str, args: list[Any], options: dict[str, Any]) -> Any:
    return await outcome_async(erlang.async_call(name, *args, **options))


def foreign_call(name: str, args: list[Any], options: dict[str, Any]) -> Any:
    """async_call on a loop that is not the node's."""
    return asyncio.run(async_call(name, args, options))


def stack_of(name: str) -> Any:
    try:
        erlang.call(name)
    except erlang.ErlangError as error:
        return error.stack
    return None


async def call_on_the_loop(name: str) -> Any:
    return outcome(erlang.call, name)


def shorthand(x: Any) -> Any:
    from erlang import double

    return [erlang.double(x), double(x)]


# --- threads and coroutines ------------------------------------------------------------------------


def in_threads(threads: int, calls: int) -> int:
    """Each thread calls `echo` with payloads of its own; how many answers were not theirs."""
    wrong: list[Any] = []

    def work(number: int) -> None:
        for i in range(calls):
            payload = (number, i, "x" * (i % 50))
            if erlang.call("echo", payload) != payload:
                wrong.append(payload)

    workers = [threading.Thread(target=work, args=(number,)) for number in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return len(wrong)


async def in_coroutines(coroutines: int, calls: int) -> int:
    """The same in coroutines."""

    async def work(number: int) -> int:
        wrong = 0
        for i in range(calls):
            payload = ("c", number, i, "x" * (i % 50))
            wrong += await erlang.async_call("echo", payload) != payload
        return wrong

    return sum(await asyncio.gather(*(work(number) for number in range(coroutines))))


def in_executor(calls: int) -> list[Any]:
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        return list(pool.map(lambda i: erlang.call("echo", i), range(calls)))


async def in_the_loops_executor(calls: int) -> list[Any]:
    return await asyncio.gather(*(asyncio.to_thread(erlang.call, "echo", i) for i in range(calls)))


async def gather(calls: int) -> list[Any]:
    return await asyncio.gather(*(erlang.async_call("echo", i) for i in range(calls)))


def gather_elsewhere(calls: int) -> list[Any]:
    return asyncio.run(gather(calls))


def short_lived_threads(count: int) -> int:
    """Threads that call once and end, a few at a time."""
    right = 0
    for start in range(0, count, 50):
        results: list[Any] = []
        threads = [
            threading.Thread(target=lambda i=i: results.append(erlang.call("echo", i)))
            for i in range(start, min(start + 50, count))
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        right += len(results)
    return right


def handler_pids(calls: int) -> list[Any]:
    return [erlang.call("whoami") for _ in range(calls)]


def in_one_thread(name: str, arguments: list[Any]) -> list[Any]:
    """Calls of a thread of its own, one after the other."""
    results: list[Any] = []
    thread = threading.Thread(
        target=lambda: results.extend(erlang.call(name, argument) for argument in arguments)
    )
    thread.start()
    thread.join()
    return results


def in_one_thread_of_its_own(name: str) -> list[Any]:
    """One call in a thread that serves nobody."""
    results: list[Any] = []
    thread = threading.Thread(target=lambda: results.append(erlang.call(name)))
    thread.start()
    thread.join()
    return results


def in_one_thread_raising(name: str) -> Any:
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        return pool.submit(erlang.call, name).result()


def spins_meanwhile(name: str, milliseconds: int) -> int:
    """How often another thread came to run Python while a call waits."""
    turns = 0
    over = threading.Event()

    def spin() -> None:
        nonlocal turns
        while not over.is_set():
            turns += 1
            time.sleep(0.001)

    thread = threading.Thread(target=spin)
    thread.start()
    erlang.call(name, milliseconds)
    over.set()
    thread.join()
    return turns


async def timeout_of_async(name: str, seconds: float) -> Any:
    return await outcome_async(erlang.async_call(name, timeout=seconds))


async def cancel_while_waiting(name: str, told: Pid) -> str:
    task = asyncio.ensure_future(erlang.async_call(name, told))
    started = await erlang.async_call("await_started")
    assert started == "started"
    task.cancel()
    try:
        await task
    except asyncio.CancelledError:
        return "cancelled"
    return "finished"


# --- re-entry ---------------------------------------------------------------------------------------


def down(depth: int) -> int:
    """Erlang calls Python calls Erlang …"""
    return 0 if depth == 0 else 1 + erlang.call("down", depth - 1)


async def down_async(depth: int) -> int:
    return 0 if depth == 0 else 1 + await erlang.async_call("down_async", depth - 1)


async def down_mixed(depth: int) -> int:
    return 0 if depth == 0 else 1 + await erlang.async_call("down_mixed", depth - 1)


# --- processes ----------------------------------------------------------------------------------------


def gen_call(dest: Any, request: Any, timeout: float | None = 5.0) -> Any:
    return outcome(erlang.gen_call, dest, request, timeout)


async def async_gen_call(dest: Any, request: Any, timeout: float | None = 5.0) -> Any:
    return await outcome_async(erlang.async_gen_call(dest, request, timeout))


def erpc(node: str, module: str, function: str, args: list[Any], timeout: Any = None) -> Any:
    return outcome(erlang.erpc, node, module, function, args, timeout)


async def async_erpc(node: str, module: str, function: str, args: list[Any]) -> Any:
    return await outcome_async(erlang.async_erpc(node, module, function, args))


def cast(dest: Any, request: Any) -> None:
    erlang.cast(dest, request)


async def watch(target: Any) -> Any:
    """The DOWN of whatever is watched."""
    async with erlang.Process() as process:
        ref = process.monitor(target)
        message = await process.receive(("DOWN", ref, ..., ..., ...), timeout=10)
        return message[2:]


async def linked_to(pid: Pid, told: Pid) -> Any:
    async with erlang.Process(trap_exit=True) as process:
        process.link(pid)
        erlang.send(told, (Atom("linked"), process.pid))
        return await process.receive(("EXIT", pid, ...), timeout=10)


async def nodes_come_and_go(told: Pid, node: str) -> Any:
    async with erlang.Process() as process:
        erlang.monitor_nodes(True)
        erlang.send(told, (Atom("watching"), process.pid))
        up = await process.receive(("nodeup", node), timeout=20)
        down = await process.receive(("nodedown", node), timeout=20)
        erlang.monitor_nodes(False)
        return [up, down]


def send_exit(pid: Pid, reason: Any) -> None:
    erlang.exit(pid, reason)


class Counter(GenServer):
    """Counts; every answer says which incarnation gave it."""

    def init(self, start: int = 0) -> None:
        self.count = start
        self.incarnation = time.monotonic_ns()

    async def handle_call(self, request: Any, sender: Any) -> Any:
        match request:
            case ("add", token):
                self.count += 1
                return token, self.incarnation, self.count
            case "crash":
                raise ValueError("told to")
            case ("ask", name, *args):
                return await erlang.async_call(str(name), *args)
            case _:
                return await super().handle_call(request, sender)


class Blocking(GenServer):
    """The same with plain functions, which block."""

    def handle_call(self, request: Any, sender: Any) -> Any:
        match request:
            case ("ask", name, *args):
                return erlang.call(str(name), *args)
            case ("chain", [next_server, *rest], value):
                return erlang.gen_call(next_server, (Atom("chain"), rest, value + 1), 10.0)
            case ("chain", [], value):
                return value
        return None

    def handle_cast(self, request: Any) -> None:
        erlang.send(request, Atom("cast_arrived"))


def start(name: str | None = None) -> Pid:
    return Counter.start(name=name)


def start_link(name: str) -> tuple[Atom, Pid]:
    """For a supervisor."""
    return Atom("ok"), Counter.start_link(name=name)


def start_blocking(count: int) -> list[Pid]:
    return [Blocking.start() for _ in range(count)]


def spawned(told: Pid, how: str) -> Pid:
    async def run() -> None:
        erlang.send(told, (Atom("spawned"), erlang.self()))
        request = await erlang.receive()
        if request == "fail":
            raise ValueError("as asked")
        if request == "exit":
            erlang.exit(Atom("my_reason"))

    def run_plain() -> None:
        erlang.send(told, (Atom("spawned"), erlang.self()))
        raise ValueError("as asked")

    return erlang.spawn(run if how == "async" else run_plain)


# --- logs ----------------------------------------------------------------------------------------------


def log_to_beam(text: str) -> None:
    handler = erlang.logs.BeamHandler()
    logger = logging.getLogger("callbacks.test")
    logger.setLevel(logging.INFO)
    logger.addHandler(handler)
    try:
        logger.warning(text, extra={"erlang": {"request_id": 7}})
    finally:
        logger.removeHandler(handler)


def say(text: str) -> None:
    print(text)
    logging.getLogger("callbacks.test").warning("logged %s", text)


class Silent(GenServer):
    """Never answers."""

    def handle_call(self, request: Any, sender: Any) -> Any:
        return erlang.NO_REPLY


def wait_in_threads(told: Pid) -> None:
    """Threads that wait for ever: for Erlang, and for a process of this node."""
    silent = Silent.start()

    def work(wait: Any) -> None:
        try:
            wait()
        except erlang.NoConnection:
            print("a waiting thread was told")

    waits = [
        lambda: erlang.call("forever"),
        lambda: erlang.gen_call(silent, Atom("x"), None),
    ]
    for wait in waits:
        threading.Thread(target=work, args=(wait,)).start()
    erlang.send(told, Atom("waiting"))
