"""Runs the benchmarks and prints one line a figure: ours, its baseline from the same run, the ratio, the goal.

    tests/bench/run                       every figure
    tests/bench/run --quick               short runs, to see that everything works
    tests/bench/run sequential callers    only these groups
    tests/bench/run loop                  the event loop's, which need no BEAM; see bench_loop.py
    tests/bench/run web asgi              web applications, by the program itself and behind a BEAM; bench_web.py, bench_asgi.py

    bench.py ── commands ──▶ a BEAM with bench.erl ──▶ sidewinder
        ▲◀── one line each ──┘                   ├──▶ echo_node   the baseline of calls
        └──────── counts ─────────────────────── └──▶ sink_node   the baseline of streams

Ours and the baseline take turns, so that whatever else the machine does meets both; a figure is the median of the
rounds, a ratio the median of the rounds' ratios. The last line says how much of the machine others used meanwhile:
figures from a busy machine are worth little. The exit code only tells whether everything could be measured, never
whether a goal was met.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import os
import platform
import re
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import bench_loop
from figures import (
    BUILD,
    ERL_LIBS,
    HERE,
    PATIENCE,
    ROOT,
    SIDEWINDER,
    BenchError,
    Program,
    Values,
    absolute,
    at_least,
    at_most,
    compared,
    cpu_seconds,
    figure,
    first_line,
    number,
)


@dataclasses.dataclass(frozen=True)
class Scale:
    """How long each measurement lasts."""

    rounds: int
    calls: int  # of one sequential run
    milliseconds: int  # of one run with many callers
    transfer: int  # bytes
    transfers: int  # rounds of them
    stream: int  # messages
    idle: float  # seconds


FULL = Scale(11, 1000, 700, 200_000_000, 3, 100_000, 30.0)
QUICK = Scale(2, 100, 100, 20_000_000, 1, 5_000, 1.0)


# ---------------------------------------------------------------------------------------------------------------------
# The programs


class Cluster:
    """A private epmd, a BEAM that measures, and the nodes it measures; gone at the end of the `with`."""

    def __init__(self, erl_flags: Sequence[str]):
        self.directory = Path(tempfile.mkdtemp(prefix="sidewinder-bench-"))
        self.baselines: dict[str, Program] = {}
        self.cookie = self.directory / "cookie"
        self.cookie.write_text("bench")
        self.cookie.chmod(0o400)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.env = {"ERL_EPMD_PORT": str(port), "ERL_EPMD_ADDRESS": "127.0.0.1"}
        self.programs: list[Program] = []
        try:
            self.start("epmd", [shutil.which("epmd") or "epmd"])
            self.wait_for_port(port)
            self.run_tool(["erlc", "-o", self.directory, HERE / "bench.erl"])
            erl: list[str | Path] = ["erl", *erl_flags, "-noshell", "-name", "beam@127.0.0.1"]
            erl += ["-setcookie", "bench", "-kernel", "inet_dist_use_interface", "{127,0,0,1}"]
            # Standard output is for answers alone.
            log = "[{handler,default,logger_std_h,#{config=>#{type=>standard_error}}}]"
            erl += ["-kernel", "logger", log]
            erl += ["-pa", self.directory, "-s", "bench", "main"]
            self.beam = self.start("beam", erl, {"ERL_LIBS": ERL_LIBS})
        except BaseException:
            self.__exit__()
            raise

    def __enter__(self) -> Cluster:
        return self

    def __exit__(self, *_: object) -> None:
        for program in reversed(self.programs):
            program.stop()
        shutil.rmtree(self.directory)

    def start(
        self, name: str, command: Sequence[str | Path], env: dict[str, str] | None = None
    ) -> Program:
        program = Program(name, command, self.directory, self.env | (env or {}))
        self.programs.append(program)
        return program

    def run_tool(self, command: Sequence[str | Path]) -> None:
        done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
        if done.returncode != 0:
            raise BenchError(f"{command[0]}: {done.stdout}{done.stderr}")

    def wait_for_port(self, port: int) -> None:
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                return
            time.sleep(0.02)
        raise BenchError(f"nothing listens on port {port}")

    def node(self, name: str, *options: str) -> Program:
        command: list[str | Path] = [SIDEWINDER, "--name", f"{name}@127.0.0.1", *options]
        command += ["--cookie-file", self.cookie, "--log-level", "warning"]
        return self.connect(name, self.start(name, command))

    def baseline(self, name: str) -> Program:
        if name not in self.baselines:
            program = self.start(
                name, [BUILD / f"bench/{name}_node", f"{name}@127.0.0.1", self.cookie]
            )
            self.baselines[name] = self.connect(name, program)
        return self.baselines[name]

    def connect(self, name: str, program: Program) -> Program:
        """Waits until the BEAM is linked to it."""
        deadline = time.monotonic() + 15
        while self.ask(f"connect, '{name}@127.0.0.1'", fails=True) is None:
            if program.process.poll() is not None or time.monotonic() > deadline:
                raise program.fail("cannot be connected to")
            time.sleep(0.05)
        return program

    def ask(self, command: str, fails: bool = False) -> Values | None:
        assert self.beam.process.stdin is not None
        self.beam.process.stdin.write(f"{{{command}}}.\n")
        self.beam.process.stdin.flush()
        line = self.beam.line()
        if line.startswith("ok "):
            return {name: float(value) for name, value in (p.split("=") for p in line.split()[1:])}
        if fails:
            return None
        raise self.beam.fail(f"{command}: {line}")

    def measure(self, command: str) -> Values:
        values = self.ask(command)
        assert values is not None
        return values


# ---------------------------------------------------------------------------------------------------------------------
# Figures


def rounds(
    cluster: Cluster, count: int, commands: dict[str, str]
) -> dict[str, dict[str, list[float]]]:
    """Runs the commands in turns, and gathers by command and by what they measured. One more round warms up."""
    results: dict[str, dict[str, list[float]]] = {name: {} for name in commands}
    for turn in range(count + 1):
        for name, command in commands.items():
            values = cluster.measure(command)
            if turn == 0:
                continue
            for key, value in values.items():
                results[name].setdefault(key, []).append(value)
    return results


PY, ECHO, SINK = "'py@127.0.0.1'", "'echo@127.0.0.1'", "'sink@127.0.0.1'"


def sequential(cluster: Cluster, scale: Scale) -> None:
    got = rounds(
        cluster,
        scale.rounds,
        {
            "gen": f"latency, gen, {PY}, {scale.calls}",
            "echo": f"latency, echo, {ECHO}, {scale.calls}",
            "py": f"latency, py, {PY}, {scale.calls}",
        },
    )
    for quantile, goal in (("p50", at_most(1.35)), ("p99", None)):
        echo = got["echo"][quantile]
        compared(
            f"sequential gen_server:call, math.sqrt, {quantile}",
            got["gen"][quantile],
            echo,
            "us",
            "echo",
            goal,
        )
    for quantile in ("p50", "p99"):
        compared(
            f"sequential py:call, math.sqrt, {quantile}",
            got["py"][quantile],
            got["echo"][quantile],
            "us",
            "echo",
        )


def callers(cluster: Cluster, scale: Scale) -> None:
    ms = scale.milliseconds
    got = rounds(
        cluster,
        scale.rounds,
        {
            "py": f"callers, py, {PY}, 50, {ms}",
            "echo": f"callers, echo, {ECHO}, 64, {ms}",
            "window": f"window, echo, {ECHO}, 64, {ms}",
            "gen": f"callers, gen, {PY}, 50, {ms}",
            "gen window": f"window, gen, {PY}, 64, {ms}",
        },
    )
    rate = {name: values["rate"] for name, values in got.items()}
    compared(
        "py:call by 50 callers; echo: 64 gen_server:calls",
        rate["py"],
        rate["echo"],
        "/s",
        "echo",
        at_least(4),
    )
    # What a window without monitors saves is the BEAM's work, and no part of what a call is.
    compared(
        "py:call by 50 callers; echo: raw window of 64",
        rate["py"],
        rate["window"],
        "/s",
        "echo",
    )
    compared("bare gen_server:call by 50 callers", rate["gen"], rate["echo"], "/s", "echo")
    compared("bare calls, one window of 64", rate["gen window"], rate["window"], "/s", "echo")


def callbacks(cluster: Cluster, scale: Scale) -> None:
    """Python calls a function of the BEAM. The other way round the echo node is called."""
    ms = scale.milliseconds
    got = rounds(
        cluster,
        scale.rounds,
        {
            "call": f"callbacks, {PY}, {scale.calls}",
            "echo": f"latency, echo, {ECHO}, {scale.calls}",
            "threads": f"callbacks, threads, {PY}, 16, {ms}",
            "echoes": f"callers, echo, {ECHO}, 64, {ms}",
            "gather": f"callbacks, gather, {PY}, 1000, {ms}",
            "elsewhere": f"callbacks, gather_elsewhere, {PY}, 1000, {ms}",
        },
    )
    for quantile, goal in (("p50", at_most(1.5)), ("p99", None)):
        compared(
            f"erlang.call from a thread, {quantile}",
            got["call"][quantile],
            got["echo"][quantile],
            "us",
            "echo",
            goal,
        )
    for how, name, bar in (
        ("threads", "erlang.call by 16 threads; echo: 64 gen_server:calls", at_least(4)),
        ("gather", "gather of 1,000 erlang.async_calls; echo as above", at_least(4)),
        ("elsewhere", "the same on a loop that is not the node's", None),
    ):
        compared(name, got[how]["rate"], got["echoes"]["rate"], "/s", "echo", bar)


def sleepers(cluster: Cluster, scale: Scale) -> None:
    got = rounds(
        cluster,
        min(scale.rounds, 5),
        {
            "16 gen_server:calls of time.sleep(0.05)": f"sleepers, gen, {PY}, time, 16",
            "16 py:calls of time.sleep(0.05)": f"sleepers, py, {PY}, time, 16",
            "16 gen_server:calls of asyncio.sleep(0.05)": f"sleepers, gen, {PY}, asyncio, 16",
            "16 py:calls of asyncio.sleep(0.05)": f"sleepers, py, {PY}, asyncio, 16",
        },
    )
    for name, values in got.items():
        absolute(name, values["ms"], "ms", at_most(60, "ms"))


def transfers(cluster: Cluster, scale: Scale) -> None:
    """Small calls one after another while a large transfer goes on; those of the transfer itself do not count."""
    size = scale.transfer
    megabytes = size // 1_000_000
    commands: dict[str, str] = {}
    for to, arrow in (("to", "into"), ("from", "out of")):
        commands |= {
            f"beside {megabytes} x 1 MB {arrow} Python, py:call, p99": (
                f"transfer, py, {to}, {PY}, {size}, {megabytes}"
            ),
            f"beside {megabytes} MB in one term {arrow} Python, py:call, p99": (
                f"transfer, py, {to}, {PY}, {size}, 1"
            ),
            f"beside {megabytes} MB in one term {arrow} Python, bare, p99": (
                f"transfer, gen, {to}, {PY}, {size}, 1"
            ),
            f"beside {megabytes} MB in one term {arrow} the echo node, p99": (
                f"transfer, echo, {to}, {ECHO}, {size}, 1"
            ),
        }
    for name, values in rounds(cluster, scale.transfers, commands).items():
        middle = {key: statistics.median(series) for key, series in values.items()}
        absolute(
            name,
            [p99 / 1000 for p99 in values["p99"]],
            "ms",
            at_most(10, "ms") if "Python" in name else None,
            f"p50 {number(middle['p50'] / 1000)} ms, {middle['mb_per_s']:.0f} MB/s",
        )


def streams(cluster: Cluster, scale: Scale) -> None:
    sink = cluster.baseline("sink")
    ours, baseline = [], []
    for turn in range(min(scale.rounds, 5) + 1):
        cast = cluster.measure(f"cast, {PY}, {scale.stream}, 64")["rate"]
        cluster.measure(f"blast, {SINK}, {scale.stream}, 64")
        counted: Values = {}
        while counted.get("messages", 0) < scale.stream:
            counted = {key: float(value) for key, value in re.findall(r"(\w+)=(\S+)", sink.line())}
        if turn > 0:
            ours.append(cast)
            baseline.append(counted["messages"] / counted["seconds"])
    compared("py:cast of 64 B; sink: 64 B by unbatched !", ours, baseline, "/s", "sink")
    got = rounds(cluster, min(scale.rounds, 5), {"stream": f"stream, {ECHO}, {scale.stream}, 64"})
    absolute("echo node to the BEAM, 64 B, one frame a message", got["stream"]["rate"], "/s")


def channels(cluster: Cluster, scale: Scale) -> None:
    """Streams in both directions and ping-pong. The sink's rate is that of unbatched `!` of the same size."""
    sink = cluster.baseline("sink")
    turns = min(scale.rounds, 9) + 1
    for size, part, goal in ((64, 1, 6), (1024, 2, 3), (16_384, 20, 1)):
        count = max(2 * scale.stream // part, 1000)
        ours: dict[str, list[float]] = {"consume": [], "consume_async": [], "consume_bytes": []}
        baseline: list[float] = []
        for turn in range(turns):
            got = {
                name: cluster.measure(f"channel, {name}, {PY}, {count}, {size}")["rate"]
                for name in ours
            }
            cluster.measure(f"blast, {SINK}, {count}, {size}")
            counted: Values = {}
            while counted.get("messages", 0) < count:
                counted = {
                    key: float(value) for key, value in re.findall(r"(\w+)=(\S+)", sink.line())
                }
            if turn > 0:
                baseline.append(counted["messages"] / counted["seconds"])
                for name, rate in got.items():
                    ours[name].append(rate)
        for name, title, bar in (
            ("consume", "`for`", float(goal)),
            ("consume_async", "`async for`", goal / 2),
            ("consume_bytes", "ByteChannel, `for`", float(goal)),
        ):
            compared(
                f"channel into Python, {title}, {size} B; sink: unbatched !",
                ours[name],
                baseline,
                "/s",
                "sink",
                at_least(bar),
            )
        compared(
            f"ByteChannel beside Channel, {size} B",
            ours["consume_bytes"],
            ours["consume"],
            "/s",
            "Channel",
            at_least(1),
        )
    got2 = rounds(
        cluster,
        turns - 1,
        {
            "send": f"send, {PY}, {scale.stream}, 64",
            "produce": f"produce, {PY}, {scale.stream}, 64",
            "echo": f"stream, {ECHO}, {scale.stream}, 64",
            "sync": f"pingpong, echo, {PY}, {scale.calls}",
            "async": f"pingpong, echo_async, {PY}, {scale.calls}",
            "call": f"latency, echo, {ECHO}, {scale.calls}",
        },
    )
    compared(
        "ch.send of 64 B to recv; echo node: one frame a message",
        got2["produce"]["rate"],
        got2["echo"]["rate"],
        "/s",
        "echo",
        at_least(4),
    )
    compared(
        "erlang.send of 64 B to a process; echo node as above",
        got2["send"]["rate"],
        got2["echo"]["rate"],
        "/s",
        "echo",
        at_least(4),
    )
    for name in ("sync", "async"):
        compared(
            f"ping-pong over a channel, {name}, p50",
            got2[name]["p50"],
            got2["call"]["p50"],
            "us",
            "echo",
            at_most(1.35),
        )


def bodies(cluster: Cluster, scale: Scale) -> None:
    """Pings over one channel while bodies go through another; calls of the echo node while it is sent the same."""
    size = scale.transfer
    megabytes = size // 1_000_000
    for parts in (megabytes, 1):
        got = rounds(
            cluster,
            scale.transfers,
            {
                "ours": f"bodies, {PY}, {size}, {parts}",
                "echo": f"blobs, {ECHO}, {size}, {parts}",
            },
        )
        what = f"{megabytes} MB in {parts} bod{'y' if parts == 1 else 'ies'}"
        for quantile in ("p50", "p99"):
            compared(
                f"ping over a channel beside {what}, {quantile}",
                got["ours"][quantile],
                got["echo"][quantile],
                "us",
                "echo",
            )
        compared(
            f"{what} through a byte channel",
            got["ours"]["mb_per_s"],
            got["echo"]["mb_per_s"],
            "MB/s",
            "echo",
        )


def stopped(cluster: Cluster, scale: Scale) -> None:
    """A consumer that takes nothing while a sender sends on and on; p99 of another channel.

    A sender that never waits takes a scheduler for itself; so does the process beside which the baseline is taken.
    """
    node = cluster.node("stopped", "--path", str(HERE))
    who = "'stopped@127.0.0.1'"
    seconds = 10 if scale is FULL else 1
    spinning = cluster.measure(f"spinning, {who}, {seconds}")
    before = Usage.of(node.pid).rss
    got = cluster.measure(f"stopped, {who}, {seconds}")
    after = Usage.of(node.pid).rss
    name = f"consumer stopped for {seconds} s"
    absolute(f"{name}: sent, then busy", [got["sent"]], "", None, f"{got['busy']:,.0f} busy")
    absolute(f"{name}: bytes waiting of 1,000,000", [got["size"]], "B", at_most(1_000_000, "B"))
    absolute(f"{name}: the node's memory grew by", [after - before], "MB", at_most(3, "MB"))
    absolute(f"{name}: the BEAM's memory grew by", [got["beam_mb"]], "MB", at_most(3, "MB"))
    absolute(f"{name}: suspended processes", [got["suspended"]], "", at_most(0, ""))
    for quantile in ("p50", "p99"):
        compared(
            f"{name}: ping over another channel, {quantile}",
            [got[quantile]],
            [spinning[quantile]],
            "us",
            "beside a spinner",
        )
    node.stop()


def opened(cluster: Cluster, scale: Scale) -> None:
    """Idle channels, and what is left of them when they are closed."""
    node = cluster.node("opened", "--path", str(HERE))
    who = "'opened@127.0.0.1'"
    count = scale.stream
    cluster.measure(f"latency, gen, {who}, 100")
    before = Usage.of(node.pid).rss
    got = cluster.measure(f"open, {who}, {count}")
    rss = Usage.of(node.pid).rss
    absolute(
        f"{count:,} open idle channels, on the node",
        [(rss - before) * 1e6 / count],
        "B each",
        at_most(1024, "B"),
    )
    absolute(
        f"{count:,} open idle channels, on the BEAM", [got["bytes"]], "B each", at_most(1024, "B")
    )
    cluster.measure("close_opened, now")
    again = cluster.measure(f"open, {who}, {count}")
    rss_again = Usage.of(node.pid).rss
    absolute("closed and opened again, the node's growth", [rss_again - rss], "MB")
    assert again["count"] == got["count"]
    cluster.measure("close_opened, now")
    node.stop()


# --- The idle node ---------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Usage:
    cpu: float  # seconds
    wakeups: int
    rss: float  # MB

    @staticmethod
    def of(pid: int) -> Usage:
        cpu = wakeups = 0
        for task in Path(f"/proc/{pid}/task").iterdir():
            cpu += int((task / "schedstat").read_text().split()[0])
            status = (task / "status").read_text()
            wakeups += int(re.search(r"^voluntary_ctxt_switches:\s+(\d+)", status, re.M)[1])  # type: ignore[index]
        status = Path(f"/proc/{pid}/status").read_text()
        rss = int(re.search(r"^VmRSS:\s+(\d+)", status, re.M)[1])  # type: ignore[index]
        return Usage(cpu / 1e9, wakeups, rss / 1000 * 1.024)


def idle(cluster: Cluster, scale: Scale) -> None:
    """The codec's lines come while the idle node idles; a process of its own does not make it busier."""
    node = cluster.node("idle")
    time.sleep(1)
    start = Usage.of(node.pid)
    began = time.monotonic()
    codec(scale)
    time.sleep(max(0.0, scale.idle - (time.monotonic() - began)))
    took = time.monotonic() - began
    after = Usage.of(node.pid)
    cluster.measure("latency, gen, 'idle@127.0.0.1', 1000")
    busy = Usage.of(node.pid)
    share = 100 * (after.cpu - start.cpu) / took
    absolute(f"idle node with one link, CPU over {took:.0f} s", [share], "%", at_most(0.1, "%"))
    per_tick = (after.wakeups - start.wakeups) / took * 15
    absolute(
        "idle node, wake-ups of all threads per tick interval",
        [per_tick],
        "",
        None,
        "15 s; ticks both ways",
    )
    absolute("resident memory after the start", [start.rss], "MB", at_most(40, "MB"))
    absolute("resident memory after 1,000 calls", [busy.rss], "MB", at_most(40, "MB"))
    node.stop()


def codec(scale: Scale) -> None:
    program = BUILD / "bench/bench_codec"
    if not program.exists():
        figure("term codec", "not measured", "no bench_codec")
        return
    quick = ["sqrt"] if scale is QUICK else []  # only this term
    done = subprocess.run([program, *quick], capture_output=True, text=True, timeout=PATIENCE)
    print(done.stdout, end="", flush=True)
    if done.returncode != 0:
        raise BenchError(f"bench_codec: exited with {done.returncode}\n{done.stderr}")


def processes(cluster: Cluster, scale: Scale) -> None:
    """The same calls run by the node's own process, by one worker process, by two."""
    kinds = {"0": "'none@127.0.0.1'", "1": "'one@127.0.0.1'", "2": "'two@127.0.0.1'"}
    for count, node in kinds.items():
        name = node.strip("'").removesuffix("@127.0.0.1")
        cluster.node(name, "--processes", count, "--path", str(HERE), "--import", "bench_spin")
    ms = scale.milliseconds
    commands: dict[str, str] = {}
    for count, node in kinds.items():
        commands |= {
            f"spin {count}": f"spinners, {node}, 8, {ms}",
            f"callers {count}": f"callers, py, {node}, 50, {ms}",
            f"gen {count}": f"callers, gen, {node}, 50, {ms}",
            f"lone {count}": f"latency, gen, {node}, {scale.calls}",
        }
    got = rounds(cluster, scale.rounds, commands)
    for count in ("1", "2"):
        beside = f"--processes {count}"
        for key, what in (
            ("spin", "8 callers of 1 ms of pure Python"),
            ("callers", "py:call of math.sqrt by 50 callers"),
            ("gen", "bare gen_server:call by 50 callers"),
        ):
            ours, base = got[f"{key} {count}"]["rate"], got[f"{key} 0"]["rate"]
            compared(f"{what}, {beside}", ours, base, "/s", "one process")
        for quantile in ("p50", "p99"):
            ours, base = got[f"lone {count}"][quantile], got["lone 0"][quantile]
            compared(f"lone gen_server:call, {quantile}, {beside}", ours, base, "us", "one process")


def data(cluster: Cluster, scale: Scale) -> None:
    """An array there and back beside a binary of as many bytes, in a node whose Python has numpy and pyarrow."""
    cluster.run_tool([ROOT / "tests/run/venv", "data"])
    options = [
        "--venv",
        str(ROOT / "build/data-venv"),
        "--path",
        str(HERE),
        "--import",
        "bench_data",
    ]
    node = cluster.node("data", *options)
    who = "'data@127.0.0.1'"
    size, few = scale.transfer // 2, scale.transfer // 200
    commands = {kind: f"data, {kind}, {who}, {size}" for kind in ("binary", "array", "table")}
    commands |= {"few": f"data, array, {who}, {few}", "items": f"data, items, {who}, {few}"}
    got = {
        name: values["mb_per_s"] for name, values in rounds(cluster, scale.rounds, commands).items()
    }
    megabytes = f"{size // 1_000_000} MB there and back"
    compared(
        f"numpy array, {megabytes}", got["array"], got["binary"], "MB/s", "binary", at_least(0.5)
    )
    compared(
        f"Arrow table, {megabytes}", got["table"], got["binary"], "MB/s", "binary", at_least(0.5)
    )
    floats = f"{few // 8:,} floats there and back, as an array"
    compared(floats, got["few"], got["items"], "MB/s", "as a list")
    node.stop()


def objects(cluster: Cluster, scale: Scale) -> None:
    """Objects by reference and contexts, beside a plain call."""
    node = cluster.node("objects", "--workers", "16")
    who = "'objects@127.0.0.1'"
    kinds = {
        "method": "py:call_method of a small object",
        "argument": "py:call with an object as argument",
        "context": "py:call in a context",
        "made": "an object made and released",
    }
    commands = {kind: f"objects, {kind}, {who}, {scale.calls}" for kind in ("call", *kinds)}
    got = rounds(cluster, scale.rounds, commands)
    for kind, what in kinds.items():
        compared(f"{what}, p50", got[kind]["p50"], got["call"]["p50"], "us", "py:call")
    count = scale.stream
    command = {"owners": f"owners, {who}, 1000, {count // 1000}"}
    values = rounds(cluster, 2, command)["owners"]
    for key, what, unit in (
        ("made_per_s", f"{count:,} objects made by 1,000 processes", "/s"),
        ("freed_per_s", "freed when these are killed", "/s"),
        ("left_mb", "memory of the node afterwards, more than before", "MB"),
    ):
        absolute(what, values[key], unit)
    node.stop()


def generators(cluster: Cluster, scale: Scale) -> None:
    """Items of generators under demand: how soon the first, how many a second, in how much memory."""
    options = ["--path", str(HERE), "--import", "bench_streams"]
    node = cluster.node("generators", *options)
    who = "'generators@127.0.0.1'"
    kinds = {"count": "a generator", "acount": "an async generator"}
    commands = {kind: f"first_item, {kind}, {who}, {scale.calls}" for kind in kinds}
    commands["call"] = f"latency, py, {who}, {scale.calls}"
    got = rounds(cluster, scale.rounds, commands)
    for kind, what in kinds.items():
        first, call = got[kind]["p50"], got["call"]["p50"]
        compared(f"first item of {what}, p50", first, call, "us", "py:call", at_most(1.5))
    count = 10 * scale.stream
    for kind, what in kinds.items():
        for how in ("quick", "slow"):
            values = rounds(cluster, 3, {how: f"items, {kind}, {how}, {who}, {count}"})[how]
            name = f"{count:,} items of {what}, {how} consumer"
            absolute(name, values["rate"], "/s")
            absolute(f"{name}: memory of the node", values["grown"], "MB more")
    node.stop()


def seen(cluster: Cluster, scale: Scale) -> None:
    """What events of calls cost: who has no handler, and who has one for start and stop."""
    kinds = ("look", "none", "handler")
    commands = {kind: f"seen, {kind}, {PY}, {scale.calls}" for kind in kinds}
    got = rounds(cluster, scale.rounds, commands)
    look, none, handler = (got[kind]["p50"] for kind in kinds)
    what = "py:call without a handler, the look for one, share of its p50"
    compared(what, look, none, "us", "py:call", at_most(0.02))
    compared("py:call with a handler for start and stop, p50", handler, none, "us", "without")


def state(cluster: Cluster, scale: Scale) -> None:
    """Reads of shared state beside the round trip that a miss is."""
    kinds = ("call", "miss", "incr", "hit", "hit_map")
    got = rounds(
        cluster, scale.rounds, {kind: f"state, {kind}, {PY}, {scale.calls}" for kind in kinds}
    )
    for kind, what, goal in (
        ("miss", "state_get that asks the store", at_most(1.5)),
        ("incr", "state_incr", at_most(1.5)),
        ("hit", "state_get from the cache, a number", at_most(0.1)),
        ("hit_map", "state_get from the cache, a map of ten", at_most(0.2)),
    ):
        ours, base = got[kind]["p50"], got["call"]["p50"]
        compared(f"{what}, p50", ours, base, "us", "erlang.call", goal)


def batch(cluster: Cluster, scale: Scale) -> None:
    """A function of numpy's for each caller by itself, and for all that wait, in a node whose Python has numpy."""
    cluster.run_tool([ROOT / "tests/run/venv", "data"])
    venv = str(ROOT / "build/data-venv")
    node = cluster.node("batch", "--venv", venv, "--path", str(HERE), "--import", "bench_batch")
    commands = {
        f"{kind} {callers}": f"batch, {kind}, 'batch@127.0.0.1', {callers}, {scale.milliseconds}"
        for callers in (50, 500)
        for kind in ("single", "batched")
    }
    got = rounds(cluster, scale.rounds, commands)
    for callers in (50, 500):
        compared(
            f"py_batch:call of a numpy function by {callers} callers",
            got[f"batched {callers}"]["rate"],
            got[f"single {callers}"]["rate"],
            "/s",
            "py:call",
            at_least(5) if callers == 500 else None,
        )
        absolute("items in a batch", got[f"batched {callers}"]["size"], "")
    node.stop()


GROUPS = {
    "sequential": sequential,
    "callers": callers,
    "callbacks": callbacks,
    "sleepers": sleepers,
    "transfers": transfers,
    "streams": streams,
    "channels": channels,
    "bodies": bodies,
    "stopped": stopped,
    "opened": opened,
    "idle": idle,
    "processes": processes,
    "data": data,
    "objects": objects,
    "generators": generators,
    "seen": seen,
    "state": state,
    "batch": batch,
}
LOOP = "loop"


@dataclasses.dataclass(frozen=True)
class Apart:
    """A program of its own, and what it needs: installed when it is run, so that nobody else waits for it."""

    program: str
    venv: str  # as tests/run/venv calls it
    tools: Sequence[str] = ()  # Debian's packages, of the name of their program


APART = {
    "web": Apart("bench_web.py", "web", ["wrk"]),
    "asgi": Apart("bench_asgi.py", ""),
}


def prepared(*command: str | Path) -> None:
    done = subprocess.run(
        [str(part) for part in command if part],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    if done.returncode != 0:
        raise BenchError(f"{command[0]}: {done.stdout}{done.stderr}")


def apart(name: str, quick: bool) -> None:
    what = APART[name]
    for tool in what.tools:
        if not shutil.which(tool):
            prepared(ROOT / "tests/run/deps", tool)
    prepared(ROOT / "tests/run/venv", what.venv)
    command: list[str | Path] = [sys.executable, HERE / what.program]
    if subprocess.run([*command, *(["--quick"] if quick else [])]).returncode != 0:
        raise BenchError(f"{what.program} failed")


def nodes(groups: Sequence[str], scale: Scale, erl_flags: Sequence[str]) -> None:
    figure("figure", "ours", "baseline", "ratio", "goal", "verdict")
    with Cluster(erl_flags) as cluster:
        cluster.baseline("echo")
        cluster.node("py", "--workers", "16", "--path", str(HERE))
        for name in groups:
            GROUPS[name](cluster, scale)


# ---------------------------------------------------------------------------------------------------------------------
# The machine


def machine() -> str:
    model = re.search(r"^model name\s*:\s*(.*)$", Path("/proc/cpuinfo").read_text(), re.M)
    script = 'io:format("OTP ~s, erts ~s", [erlang:system_info(X) || X <- [otp_release, version]]), halt().'
    erl = first_line("erl", "-noshell", "-eval", script)
    python = first_line("/usr/bin/python3", "--version")
    return (
        f"{os.cpu_count()} x {model[1] if model else '?'}, Linux {platform.release()}, {erl}, {python}, "
        f"{first_line(str(SIDEWINDER), '--version')}, {time.strftime('%Y-%m-%d')}"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description="Benchmarks of the node beside their baselines")
    parser.add_argument(
        "groups", nargs="*", choices=[[], *GROUPS, LOOP, *APART], help="all unless told"
    )
    parser.add_argument("--quick", action="store_true", help="only see that it works")
    parser.add_argument("--erl-flags", default="", help="for the BEAM that measures, '+sbwt none'")
    bench_loop.add_options(parser)
    arguments = parser.parse_args()
    scale = QUICK if arguments.quick else FULL
    groups = arguments.groups or [*GROUPS, LOOP, *APART]
    began = time.monotonic()
    work_before, own_before = cpu_seconds()
    print(f"machine: {machine()}")
    policy = {os.SCHED_OTHER: "", os.SCHED_RR: "; SCHED_RR", os.SCHED_FIFO: "; SCHED_FIFO"}
    print(
        f"load average at the start: {os.getloadavg()[0]:.2f}; "
        f"BEAM: {arguments.erl_flags or 'default flags'}{policy.get(os.sched_getscheduler(0), '')}"
    )
    if arguments.quick:
        print("quick run: these figures only show that the programs work")
    try:
        of_the_node = [name for name in groups if name in GROUPS]
        if of_the_node:
            nodes(of_the_node, scale, arguments.erl_flags.split())
        if LOOP in groups:
            bench_loop.run(arguments.quick, arguments.rows, arguments.loops)
        for name in groups:
            if name in APART:
                sys.stdout.flush()
                apart(name, arguments.quick)
    except BenchError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    work_after, own_after = cpu_seconds()
    took = time.monotonic() - began
    others = max(0.0, (work_after - work_before) - (own_after - own_before))
    share = 100 * others / took / (os.cpu_count() or 1)
    remark = "noisy: do not quote these figures" if share > 10 else "quiet"
    print(f"took {took:.0f} s; others used {share:.0f} % of the machine ({remark})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
