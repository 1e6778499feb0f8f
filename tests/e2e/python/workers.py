"""What processes_SUITE calls: functions that say in which process they run, and end it."""

from __future__ import annotations

import asyncio
import ctypes
import multiprocessing
import os
import signal
import threading
import time
from pathlib import Path

import erlang


def pid() -> int:
    return os.getpid()


def note(path: str, text: str) -> None:
    """A line in a file, so that it is known how often something ran."""
    with Path(path).open("a", encoding="utf-8") as file:
        file.write(text + "\n")


def noted(path: str, text: str, seconds: float) -> int:
    note(path, text)
    time.sleep(seconds)
    return os.getpid()


def spin(seconds: float) -> int:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        pass
    return os.getpid()


def meet(mine: str, other: str) -> int:
    """Returns once the other one is there, too; it spins, and nobody else runs in this interpreter."""
    Path(mine).touch()
    end = time.monotonic() + 20
    while not Path(other).exists():
        if time.monotonic() > end:
            raise TimeoutError(other)
    return os.getpid()


def _fault() -> None:
    ctypes.string_at(1)


def die(how: str, path: str | None = None, seconds: float = 0) -> None:
    """End this process; first say that it was called, and wait."""
    if path is not None:
        note(path, "died")
    time.sleep(seconds)
    if how == "segfault":
        _fault()
    elif how == "exit":
        os._exit(3)
    else:
        os.kill(os.getpid(), getattr(signal, how))
        time.sleep(10)


async def die_later(how: str) -> None:
    await asyncio.sleep(0.05)
    die(how)


async def nap(seconds: float) -> int:
    await asyncio.sleep(seconds)
    return os.getpid()


def echo(value: object) -> object:
    return value


def blob(size: int) -> bytes:
    return b"x" * size


def say(text: str) -> None:
    print(text)


def stuck(path: str) -> None:
    """In C, without the GIL, for long."""
    note(path, str(os.getpid()))
    ctypes.CDLL(None).usleep(20_000_000)


def stuck_with_gil(path: str) -> None:
    note(path, str(os.getpid()))
    ctypes.PyDLL(None).usleep(20_000_000)


def secrets(cookie: str) -> list[str]:
    """Where the cookie can be read in this process, or leads to it."""
    found = []
    here = Path("/proc/self")
    for name in ("environ", "cmdline"):
        if cookie.encode() in (here / name).read_bytes():
            found.append(name)
    for entry in (here / "fd").iterdir():
        try:
            target = os.readlink(entry)
        except OSError:
            continue
        if "cookie" in target:
            found.append(target)
    return found


def sockets() -> int:
    """How many sockets of another process this one could have inherited."""
    count = 0
    for entry in Path("/proc/self/fd").iterdir():
        try:
            count += os.readlink(entry).startswith("socket:")
        except OSError:
            continue
    return count


def in_subprocess() -> list[int]:
    """Two forked processes of the standard library's, one of which is ended by SIGTERM."""
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    first = context.Process(target=lambda: queue.put(os.getpid()))
    second = context.Process(target=time.sleep, args=(30,))
    first.start()
    second.start()
    value = queue.get(timeout=10)
    first.join(10)
    second.terminate()
    second.join(10)
    return [int(value == first.pid), first.exitcode or 0, second.exitcode or 0]


def up(depth: int) -> int:
    """Calls back as deep as it is told, through Erlang's function `down`."""
    return 0 if depth == 0 else 1 + erlang.call("down", depth - 1)


async def gather(count: int) -> list[int]:
    return list(await asyncio.gather(*(erlang.async_call("double", i) for i in range(count))))


def ask(pid: erlang.Pid, request: object) -> object:
    return erlang.gen_call(pid, request, 5.0)


def remote(node: str, module: str, function: str, *args: object) -> object:
    try:
        return erlang.erpc(node, module, function, args, 5.0)
    except erlang.ErlangError as error:
        return (error.kind, error.reason)


async def remote_later(node: str, module: str, function: str, *args: object) -> object:
    return await erlang.async_erpc(node, module, function, args, 5.0)


def tell(pid: erlang.Pid, count: int) -> None:
    for i in range(count):
        erlang.send(pid, i)


def unknown() -> list[str]:
    """What comes of asking for what is not there."""
    told = []
    for ask_for in (
        lambda: erlang.call("nobody"),
        lambda: erlang.send(("x", "nowhere@127.0.0.1"), 1),
        lambda: erlang.gen_call("nobody_here", 1),
        lambda: erlang.erpc("nowhere@127.0.0.1", "m", "f"),
        lambda: erlang.call("slow", timeout=0.1),
        lambda: erlang.spawn(print),
    ):
        try:
            ask_for()
            told.append("")
        except Exception as error:
            told.append(type(error).__name__)
    return told


def surroundings() -> list[object]:
    return [erlang.node(), erlang.nodes(), erlang.whereis("py"), erlang.whereis("nobody")]


def die_asking() -> None:
    """Ends this process while Erlang works for it."""
    threading.Thread(target=lambda: erlang.call("slow")).start()
    time.sleep(0.3)
    os.kill(os.getpid(), signal.SIGKILL)
