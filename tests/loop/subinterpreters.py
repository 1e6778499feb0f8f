"""ErlangEventLoops in sub-interpreters that each have a GIL of their own, side by side in threads of one process.

    python3 subinterpreters.py [--interpreters N] [--rounds N]

Each interpreter serves echoes over TCP and Unix sockets, wakes its loop from a thread of its own and lets timers fire;
its loops must see nothing of the others'. Before them the main interpreter runs a loop, and after them again. Ends with
0, 1 for a wrong answer, or 3 where Python has no such interpreters (before 3.12).
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import os
import sys
import threading
import traceback
from pathlib import Path
from typing import Any

PACKAGES = Path(__file__).resolve().parents[2] / "python"

SCRIPT = """
import asyncio, os, socket, threading
import erlang_loop

async def answer(reader, writer):
    while data := await reader.read(65536):
        writer.write(data)
    writer.close()

async def echoed(streams, data):
    reader, writer = await streams
    writer.write(data)
    back = await reader.readexactly(len(data))
    writer.close()
    await writer.wait_closed()
    assert back == data

async def main(mark):
    loop = asyncio.get_running_loop()
    assert type(loop) is erlang_loop.ErlangEventLoop
    woken = asyncio.Event()
    thread = threading.Thread(target=loop.call_soon_threadsafe, args=(woken.set,))
    thread.start()
    await asyncio.wait_for(woken.wait(), 20)
    thread.join()
    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    data = mark * 30_000
    await asyncio.gather(*(echoed(asyncio.open_connection("127.0.0.1", port), data) for _ in range(10)))
    ends = socket.socketpair(socket.AF_UNIX)
    other = await asyncio.open_connection(sock=ends[0])
    answering = asyncio.create_task(answer(*other))
    await echoed(asyncio.open_connection(sock=ends[1]), data)
    await answering
    begin = loop.time()
    await asyncio.gather(*(asyncio.sleep(0.001 * n) for n in range(20)))
    assert loop.time() - begin >= 0.019
    server.close()
    await server.wait_closed()
    return len(data)

def loops():
    for _ in range(3):
        total = erlang_loop.run(main(bytes([MARK])))
        assert total == 30_000, total
    left = {what: count for what, count in erlang_loop.debug_counters().items() if count}
    assert not left, left

try:
    loops()
    result = b"done"
except BaseException as error:
    import traceback
    result = traceback.format_exc().encode()[-4000:]
os.write(RESULT, result)
"""


def interpreters() -> Any:
    """What makes and runs interpreters, a module whose name differs by version; None before 3.12."""
    if sys.version_info < (3, 12):
        return None
    return importlib.import_module(
        "_interpreters" if sys.version_info >= (3, 13) else "_xxsubinterpreters"
    )


def created(module: Any) -> Any:
    return module.create("isolated") if sys.version_info >= (3, 13) else module.create()


def one(module: Any, mark: int, complaints: list[str]) -> None:
    """Runs SCRIPT in an interpreter of its own, from making it to destroying it."""
    reading, writing = os.pipe()
    try:
        interpreter = created(module)
        path = f"import sys; sys.path[:] = {sys.path!r}\n"
        head = f"{path}MARK = {mark}\nRESULT = {writing}\n"
        failed = module.run_string(interpreter, head + SCRIPT)
        if failed is not None:
            complaints.append(str(failed))
        module.destroy(interpreter)
    except Exception:
        complaints.append(traceback.format_exc())
    finally:
        os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        if (told := pipe.read()) != b"done":
            complaints.append(f"interpreter {mark}: {told.decode(errors='replace') or 'nothing'}")


def in_main(complaints: list[str]) -> None:
    reading, writing = os.pipe()
    exec(SCRIPT, {"MARK": 77, "RESULT": writing, "__name__": "script"})
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        if (told := pipe.read()) != b"done":
            complaints.append(f"main interpreter: {told.decode(errors='replace')}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--interpreters", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    module = interpreters()
    if module is None:
        print("this Python has no interpreters with a GIL of their own")
        return 3
    if importlib.util.find_spec("erlang_loop") is None:
        sys.path.insert(0, str(PACKAGES))
    complaints: list[str] = []
    in_main(complaints)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(options.rounds):
        threads = [
            threading.Thread(target=one, args=(module, mark, complaints))
            for mark in range(1, options.interpreters + 1)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    in_main(complaints)
    after = len(os.listdir("/proc/self/fd"))
    if after > before:
        complaints.append(f"{after - before} descriptors are left")
    for complaint in complaints:
        print(complaint)
    done = options.interpreters * options.rounds
    print(f"{done} interpreters, {len(complaints)} complaints")
    return 1 if complaints else 0


if __name__ == "__main__":
    sys.exit(main())
