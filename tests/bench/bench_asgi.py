"""Requests per second of one small ASGI application behind a web server on the BEAM, and behind one in Python.

    tests/bench/run asgi
    tests/run/venv && /usr/bin/python3 tests/bench/bench_asgi.py [--quick] [--seconds S] [--rounds N] [--connections N]

    loop_load ── http ──▶ examples/asgi/front.erl in a BEAM ── py_asgi ──▶ sidewinder     ours
              ├─ http ──▶ sidewinder serve
              └─ http ──▶ uvicorn with httptools (build/test-venv)                        the baseline

All answer the same GET with the same application, in turns. The BEAM, the node and the load share the machine's
processors. A single connection measures the round trip through three processes.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from figures import (
    BUILD,
    ERL_LIBS,
    PATIENCE,
    ROOT,
    SIDEWINDER,
    BenchError,
    Program,
    absolute,
    at_least,
    compared,
    first_line,
)

APP = """
async def app(scope, receive, send):
    if scope["type"] == "http":
        headers = [(b"content-type", b"text/plain"), (b"content-length", b"13")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"Hello, world!"})
"""
LOAD = Path(os.environ.get("BENCH_LOAD", BUILD / "bench/loop_load"))
VENV = ROOT / "build/test-venv/bin/python"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def wait_for_port(port: int) -> None:
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.02)
    raise BenchError(f"nothing listens on port {port}")


@contextlib.contextmanager
def servers() -> Iterator[dict[str, tuple[int, int]]]:
    """The ports of the servers, and the processes whose processor time counts."""
    directory = Path(tempfile.mkdtemp(prefix="sidewinder-bench-"))
    programs: list[Program] = []

    def start(name: str, command: list[str | Path], env: dict[str, str]) -> Program:
        programs.append(Program(name, command, directory, env))
        return programs[-1]

    try:
        (directory / "bench_hello.py").write_text(APP)
        cookie = directory / "cookie"
        cookie.write_text("bench")
        cookie.chmod(0o400)
        epmd = free_port()
        env = {"ERL_EPMD_PORT": str(epmd), "ERL_EPMD_ADDRESS": "127.0.0.1", "ERL_LIBS": ERL_LIBS}
        start("epmd", [shutil.which("epmd") or "epmd"], env)
        wait_for_port(epmd)
        front = ROOT / "examples/asgi/front.erl"
        subprocess.run(["erlc", "-o", directory, front], check=True, capture_output=True)
        node: list[str | Path] = [SIDEWINDER, "--name", "py@127.0.0.1", "--cookie-file", cookie]
        node += ["--path", directory, "--log-level", "warning"]
        program = start("node", node, env)
        serve = """
            {ok, _} = application:ensure_all_started(sidewinder),
            (fun Dial() -> case py_node:connect('py@127.0.0.1') of ok -> ok; _ -> timer:sleep(50), Dial() end end)(),
            ok = py_asgi:prepare('py@127.0.0.1', <<"bench_hello:app">>),
            {ok, F} = front:start(#{target => 'py@127.0.0.1', app => <<"bench_hello:app">>}),
            io:format("~b~n", [front:port(F)]).
        """
        erl: list[str | Path] = [
            "erl",
            "-noshell",
            "-name",
            "beam@127.0.0.1",
            "-setcookie",
            "bench",
        ]
        erl += ["-kernel", "inet_dist_use_interface", "{127,0,0,1}", "-pa", directory]
        beam = start("beam", [*erl, "-eval", " ".join(serve.split())], env)
        ours = int(beam.line())
        theirs = free_port()
        uvicorn: list[str | Path] = [
            VENV,
            "-m",
            "uvicorn",
            "bench_hello:app",
            "--port",
            str(theirs),
        ]
        uvicorn += [
            "--http",
            "httptools",
            "--loop",
            "asyncio",
            "--no-access-log",
            "--log-level",
            "warning",
        ]
        direct = start("uvicorn", uvicorn, {"PYTHONPATH": str(directory)})
        wait_for_port(theirs)
        own = free_port()
        serve_command: list[str | Path] = [
            SIDEWINDER,
            "serve",
            "bench_hello:app",
            "--path",
            directory,
        ]
        serve_command += ["--bind", f"127.0.0.1:{own}", "--log-level", "warning"]
        served = start("serve", serve_command, {})
        wait_for_port(own)
        yield {
            "ours": (ours, program.pid),
            "serve": (own, served.pid),
            "uvicorn": (theirs, direct.pid),
        }
    finally:
        for each in reversed(programs):
            each.stop()
        shutil.rmtree(directory)


def measure(port: int, pid: int, connections: int, seconds: float) -> tuple[float, float]:
    """Requests per second, and microseconds of the Python process per request."""
    command = [str(LOAD), "http", str(port), str(connections), "0", str(seconds), str(pid)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise BenchError(done.stderr)
    got = {key: float(value) for key, value in re.findall(r"(\w+)=(\S+)", done.stdout)}
    return got["count"] / got["seconds"], got["cpu"] / got["count"] / 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--connections", type=int, nargs="*", default=[1, 64])
    parser.add_argument("--quick", action="store_true", help="only see that it works")
    options = parser.parse_args()
    if options.quick:
        options.seconds, options.rounds = 0.3, 1
    print(f"{os.cpu_count()} processors, {first_line('uname', '-sr')}")
    with servers() as places:
        for connections in options.connections:
            rates: dict[str, list[float]] = {name: [] for name in places}
            costs: dict[str, list[float]] = {name: [] for name in places}
            for turn in range(options.rounds + 1):
                for name, (port, pid) in places.items():
                    rate, cost = measure(port, pid, connections, options.seconds)
                    if turn > 0:
                        rates[name].append(rate)
                        costs[name].append(cost)
            what = f"hello behind a BEAM, {connections} connection{'s' * (connections > 1)}"
            compared(what, rates["ours"], rates["uvicorn"], "/s", "uvicorn", at_least(0.5))
            compared("  beside sidewinder serve", rates["ours"], rates["serve"], "/s", "serve")
            absolute("  processor time of the node", costs["ours"], "us")
            absolute("  processor time of uvicorn", costs["uvicorn"], "us")


if __name__ == "__main__":
    main()
