#!/usr/bin/python3
"""The web server beside uvicorn (uvloop, httptools) and granian, one worker each, asked by wrk in the same run.

    tests/bench/run web                                                all rows, in some six minutes; gets wrk, if need be
    tests/run/venv web && /usr/bin/python3 tests/bench/bench_web.py    the same where wrk is
    tests/bench/bench_web.py --quick                                   to see that it works; figures of no worth
    tests/bench/bench_web.py --rows hello,json

    bench_web.py ──starts──▶ sidewinder serve web_apps:app ◀──┐
           │     ──starts──▶ granian web_apps:app           ◀──┤ one after the other, in another order each round
           │     ──starts──▶ uvicorn web_apps:app           ◀──┤
           └──────────────────────runs──────────────────▶ wrk -t1

A cell is requests a second, and processor time of the server for one request; both are medians of the rounds. A ratio
is the median of the rounds' ratios, ours over theirs, of requests a second: more is better.

Beside an application that costs something itself stands what it costs without any server, in the same turns, and from that
the ceiling: how many requests for each of uvicorn's a server could answer that takes no time at all, neither its own nor the
kernel's. It is a loose one: alone, the application has the processor's caches to itself; and with one connection the client's
time and the way to it count as well.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from figures import HERE, ROOT, SIDEWINDER, BenchError, Program, cpu_seconds, figure, number

VENV = Path(os.environ.get("BENCH_VENV", ROOT / "build/web-venv"))
OURS, GRANIAN, UVICORN = "sidewinder", "granian", "uvicorn"
SERVERS = (OURS, GRANIAN, UVICORN)
DEAR = {"json"}  # rows whose application costs more than a server
ROWS = {"hello": "/", "json": "/json", "large": "/large", "stream": "/stream"}
NAMES = {
    "hello": "hello world",
    "json": "JSON by FastAPI",
    "large": "64 KB",
    "stream": "64 pieces of 1 KB",
}
TICK = os.sysconf("SC_CLK_TCK")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def command(name: str, port: int) -> list[str | Path]:
    at: list[str | Path] = ["--host", "127.0.0.1", "--port", str(port)]
    if name == OURS:
        bind = f"127.0.0.1:{port}"
        paths: list[str | Path] = ["--path", HERE, "--venv", VENV]
        return [SIDEWINDER, "serve", "web_apps:app", "--asgi", "--bind", bind, *paths]
    if name == GRANIAN:
        options = ["--interface", "asginl", "--loop", "uvloop", "--workers", "1", "--no-ws"]
        return [VENV / "bin/granian", *options, "--no-log", *at, "web_apps:app"]
    options = ["--loop", "uvloop", "--http", "httptools", "--no-access-log", "--lifespan", "off"]
    return [VENV / "bin/uvicorn", *options, "--log-level", "warning", *at, "web_apps:app"]


def family(pid: int) -> list[int]:
    """The process and all below it: granian's worker is a child."""
    found = [pid]
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text().split():
            found += family(int(child))
    return found


def spent(pid: int) -> float:
    """Seconds of processor time."""
    total = 0.0
    for one in family(pid):
        fields = Path(f"/proc/{one}/stat").read_text().rpartition(")")[2].split()
        total += (int(fields[11]) + int(fields[12])) / TICK
    return total


class Server:
    def __init__(self, name: str, directory: Path) -> None:
        self.port = free_port()
        self.program = Program(name, command(name, self.port), directory, {"PYTHONPATH": str(HERE)})
        deadline = time.monotonic() + 30
        while True:
            with contextlib.suppress(OSError):
                socket.create_connection(("127.0.0.1", self.port), 1).close()
                return
            if time.monotonic() > deadline or self.program.process.poll() is not None:
                raise self.program.fail("does not listen")
            time.sleep(0.05)

    def asked(self, path: str, connections: int, seconds: float) -> tuple[float, float]:
        """Requests a second, and microseconds of the server's processor time for each."""
        before = spent(self.program.pid)
        url = f"http://127.0.0.1:{self.port}{path}"
        options = ["-t1", f"-c{connections}", f"-d{max(1, round(seconds))}s", "--timeout", "10s"]
        done = subprocess.run(["wrk", *options, url], capture_output=True, text=True)
        work = spent(self.program.pid) - before
        rate = re.search(r"^Requests/sec: *([0-9.]+)", done.stdout, re.M)
        count = re.search(r"([0-9]+) requests in", done.stdout)
        if not rate or not count or not int(count[1]) or "Non-2xx" in done.stdout:
            raise self.program.fail(f"wrk: {done.stdout}{done.stderr}")
        if errors := re.search(r"Socket errors:.*", done.stdout):
            raise self.program.fail(f"wrk: {errors[0]}")
        return float(rate[1]), work / int(count[1]) * 1e6


def alone(path: str, seconds: float, directory: Path) -> float:
    """Microseconds of processor time that the application takes for one request, without a server."""
    asked: list[str | Path] = [VENV / "bin/python", HERE / "web_apps.py", path, str(seconds)]
    done = subprocess.run(asked, capture_output=True, text=True, cwd=directory)
    if done.returncode:
        raise BenchError(f"web_apps.py: {done.stderr}")
    return float(done.stdout)


Cells = dict[str, list[tuple[float, float]]]  # by server, one for each round


def tell(row: str, connections: int, cells: Cells) -> None:
    rates = {name: [rate for rate, _ in cells[name]] for name in SERVERS}
    works = {name: statistics.median(work for _, work in cells[name]) for name in SERVERS}
    many = "connection" if connections == 1 else "connections"
    for other in (GRANIAN, UVICORN):
        ratio = statistics.median(a / b for a, b in zip(rates[OURS], rates[other], strict=True))
        figure(
            f"{NAMES[row]}, {connections} {many}; {works[OURS]:.1f} and {works[other]:.1f} us of CPU",
            f"{number(statistics.median(rates[OURS]))}/s",
            f"{other} {number(statistics.median(rates[other]))}/s",
            f"{ratio:.2f} x",
        )


def tell_alone(row: str, connections: int, cells: Cells, floor: list[float]) -> None:
    theirs = [work for _, work in cells[UVICORN]]
    ceiling = statistics.median(a / b for a, b in zip(theirs, floor, strict=True))
    many = "connection" if connections == 1 else "connections"
    figure(
        f"{NAMES[row]}, {connections} {many}; the application alone",
        f"{statistics.median(floor):.1f} us of CPU",
        f"{UVICORN} {statistics.median(theirs):.1f} us",
        f"{ceiling:.2f} x",
        "ceiling",
    )


def measure(rows: list[str], rounds: int, seconds: float, directory: Path) -> None:
    with contextlib.ExitStack() as stack:
        servers = {}
        for name in SERVERS:
            servers[name] = Server(name, directory)
            stack.callback(servers[name].program.stop)
        for row in rows:
            for connections in (1, 100):
                cells: Cells = {name: [] for name in SERVERS}
                floor: list[float] = []
                for turn in range(rounds + 1):
                    order = SERVERS[turn % 3 :] + SERVERS[: turn % 3]
                    for name in order:
                        cell = servers[name].asked(ROWS[row], connections, seconds)
                        if turn:  # the first round warms up
                            cells[name].append(cell)
                    if turn and row in DEAR:
                        floor.append(alone(ROWS[row], seconds, directory))
                tell(row, connections, cells)
                if floor:
                    tell_alone(row, connections, cells, floor)


def main() -> int:
    parser = argparse.ArgumentParser(description="The web server beside uvicorn and granian")
    parser.add_argument("--quick", action="store_true", help="only see that it works")
    parser.add_argument("--rows", default=",".join(ROWS), help="only these, with commas between")
    arguments = parser.parse_args()
    rows = arguments.rows.split(",")
    if unknown := set(rows) - ROWS.keys():
        parser.error(f"no such row: {', '.join(sorted(unknown))}")
    if not shutil.which("wrk") or not VENV.exists():
        print("bench: needs wrk (Debian's package) and `tests/run/venv web`", file=sys.stderr)
        return 1
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    began = time.monotonic()
    work_before, _ = cpu_seconds()
    rounds, seconds = (1, 1.0) if arguments.quick else (5, 2.0)
    print(f"load average at the start: {os.getloadavg()[0]:.2f}")
    figure("figure", "ours", "baseline", "ratio")
    try:
        with tempfile.TemporaryDirectory(prefix="sidewinder-bench-web-") as directory:
            measure(rows, rounds, seconds, Path(directory))
    except BenchError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    took = time.monotonic() - began
    busy = 100 * (cpu_seconds()[0] - work_before) / took / (os.cpu_count() or 1)
    print(f"took {took:.0f} s; the machine was {busy:.0f} % busy, with others or with this")
    return 0


if __name__ == "__main__":
    sys.exit(main())
