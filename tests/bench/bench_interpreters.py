"""The same function of pure Python in threads of one interpreter, in interpreters with a GIL of their own, and in
processes: what each is worth on this machine, without a node. Needs Python 3.12 or later, where there are such interpreters.

    python3.13 tests/bench/bench_interpreters.py [seconds]
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import statistics
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

SECONDS = float(sys.argv[1]) if len(sys.argv) > 1 else 1.0
HERE = str(Path(__file__).resolve().parent)
CODE = f"""
import sys, time
sys.path.insert(0, {HERE!r})
from bench_spin import spin
end = time.monotonic() + {SECONDS}
calls = 0
while time.monotonic() < end:
    spin(10000)
    calls += 1
import os
os.write({{out}}, calls.to_bytes(8, "big"))
"""


def in_threads(run: Callable[[int], object], count: int) -> float:
    """Calls a second of `count` loops, each run in a thread and saying how far it came through a pipe."""
    source, sink = os.pipe()
    threads = [threading.Thread(target=run, args=(sink,)) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    calls = sum(int.from_bytes(os.read(source, 8), "big") for _ in range(count))
    os.close(source)
    os.close(sink)
    return calls / SECONDS


def interpreters(count: int) -> float:
    module: Any = importlib.import_module(
        "_interpreters" if sys.version_info >= (3, 13) else "_xxsubinterpreters"
    )

    def run(sink: int) -> None:
        if sys.version_info >= (3, 13):
            interpreter = module.create("isolated")
        else:
            interpreter = module.create(isolated=True)
        module.run_string(interpreter, CODE.format(out=sink))
        module.destroy(interpreter)

    return in_threads(run, count)


def threads(count: int) -> float:
    return in_threads(lambda sink: exec(CODE.format(out=sink), {}), count)


def processes(count: int) -> float:
    def run(sink: int) -> None:
        process = multiprocessing.get_context("fork").Process(
            target=exec, args=(CODE.format(out=sink), {})
        )
        process.start()
        process.join()

    return in_threads(run, count)


def extension(name: str) -> str:
    """Whether a module can be had in an interpreter with a GIL of its own."""
    module: Any = importlib.import_module(
        "_interpreters" if sys.version_info >= (3, 13) else "_xxsubinterpreters"
    )
    interpreter = (
        module.create("isolated") if sys.version_info >= (3, 13) else module.create(isolated=True)
    )
    code = f"import sys; sys.path[:] = {sys.path!r}\nimport {name}"
    try:
        failed = module.run_string(interpreter, code)
    except Exception as error:  # 3.12 raises what 3.13 returns
        failed = error
    finally:
        module.destroy(interpreter)
    if failed is None:
        return "imports"
    lines = [
        line.strip() for line in str(getattr(failed, "msg", failed)).splitlines() if line.strip()
    ]
    return next((line for line in lines if "support" in line), lines[0])


def main() -> None:
    if sys.version_info < (3, 12):
        sys.exit("needs Python 3.12 or later")
    print(f"Python {sys.version.split()[0]}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    ways = {"threads": threads, "interpreters": interpreters, "processes": processes}
    rates: dict[tuple[str, int], list[float]] = {}
    for _ in range(5):
        for count in (1, 2):
            for name, way in ways.items():
                rates.setdefault((name, count), []).append(way(count))
    for (name, count), values in rates.items():
        print(f"{count} {name:<13} {statistics.median(values):>8.0f} calls/s")
    for name in ("numpy", "_ctypes", "_ssl"):
        print(f"import {name} in an interpreter of its own: {extension(name)}")


if __name__ == "__main__":
    main()
