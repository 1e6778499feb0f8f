"""The event loop's figures: ours beside uvloop, the standard loop and, for echoes, what the kernel alone costs.

    tests/bench/run loop                         every row, in some eight minutes
    tests/bench/run loop --rows tcp,tls          only these groups of rows
    tests/bench/run loop --loops asyncio,uvloop  only these loops
    tests/bench/run loop --loops erlang,perf     ours beside ours of `cmake --build --preset perf`

    bench_loop.py ──starts──▶ loop_server.py erlang ◀──┐
             │    ──starts──▶ loop_server.py uvloop ◀──┤ one after the other: requests, and the
             │    ──starts──▶ loop_server.py asyncio ◀─┤ server's processor time meanwhile
             │    ──starts──▶ echo_floor ◀─────────────┤
             └─────────────────runs──────────────▶ loop_load

All loops do the same in turn, in another order each round, in processes that live for one round. A cell is processor
time of the measured process for one operation or request, and how many there were a second: medians of the rounds. A
ratio is the median of the rounds' ratios, what the other spent over what we spent, so that more is better; only
beside the floor it is ours over the floor's. "level" means that a goal of being no worse was missed by no more than
5 %, which is what two runs of the same program differ by.

The server has a processor of its own, but a single connection shares it with its client: with one request at a time,
waking another processor would be most of what is measured.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import os
import re
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from figures import BUILD, HERE, PATIENCE, ROOT, BenchError, Program, Values, first_line

VENV = ROOT / "build" / "bench-venv"
LOOPS = ("erlang", "uvloop", "asyncio")
OURS, FLOOR, PERF = "erlang", "floor", "perf"
NOISE = 0.05
IDLE_LIMIT = 0.1  # per cent of a processor

Results = dict[str, list[Values]]  # by loop, one for each round

# What a row shows, and what it is judged by. Of all but the rate less is better.
CPU, RATE, P50, P99, IDLE, WARM_UP = "cpu", "rate", "p50", "p99", "idle", "warm-up"


@dataclasses.dataclass(frozen=True)
class Scale:
    rounds: int
    seconds: float  # of one measurement
    idle: float  # seconds


FULL = Scale(5, 0.25, 1.0)
QUICK = Scale(1, 0.04, 0.2)


@dataclasses.dataclass(frozen=True)
class Goals:
    """By how much to be better than the loops, and how close to stay to the floor; 0 asks for nothing."""

    uvloop: float = 0
    asyncio: float = 0
    floor: float = 0

    def of(self) -> dict[str, float]:
        return {name: goal for name, goal in dataclasses.asdict(self).items() if goal}

    def __str__(self) -> str:
        goals = self.of()
        if self.uvloop and self.uvloop == self.asyncio:
            goals = {"both": goals.pop("uvloop"), **goals}
            del goals["asyncio"]
        return ", ".join(f"{name} {goal}" for name, goal in goals.items())


LEVEL = Goals(1.0, 1.0)


def better(factor: float) -> Goals:
    """Than the better of the two."""
    return Goals(factor, factor)


@dataclasses.dataclass(frozen=True)
class Row:
    name: str
    what: str  # an operation of loop_server.py, or a kind of load
    goals: Goals
    by: str = CPU
    connections: int = 1
    size: int = 0

    @property
    def key(self) -> tuple[str, int, int]:
        return self.what, self.connections, self.size


@dataclasses.dataclass(frozen=True)
class Group:
    """Rows that the same servers are asked for."""

    workload: str
    rows: tuple[Row, ...]
    floor: str = ""  # what echo_floor serves
    pinned: bool = True


# ---------------------------------------------------------------------------------------------------------------------
# The rows


def echoes(
    name: str,
    what: str,
    goals: Mapping[int, Goals],
    at: Sequence[int] = (1, 10, 100),
) -> tuple[Row, ...]:
    """One row for each size, in KB, and number of connections."""
    return tuple(
        Row(
            f"{name} {size} KB, {connections}",
            what,
            goal,
            CPU,
            connections,
            size * 1024,
        )
        for size, goal in goals.items()
        for connections in at
    )


TWICE = Goals(2.0, 1.0)
# From 100 KB on it is the kernel's copying that counts, and the floor does not read ahead of its writes.
AT_THE_FLOOR = {
    1: Goals(1.0, 1.0, 1.1),
    10: Goals(1.0, 1.0, 1.1),
    100: Goals(1.0, 1.0),
}
STREAMS = {size: better(1.3) for size in (1, 10, 100)}
SOCKETS = {size: better(1.5) for size in (1, 10, 100)}
TLS = {size: better(1.3) for size in (1, 100)}

GROUPS: dict[str, tuple[Group, ...]] = {
    "schedule": (
        Group(
            "operations",
            (
                Row("call_soon, 1,000 a turn", "call_soon", TWICE),
                Row("the same with 3 arguments", "call_soon_3", TWICE),
                Row("call_soon, one a turn", "one_a_turn", TWICE),
                Row("call_later, made and fired", "timer_fired", TWICE),
                Row("call_later, made and cancelled", "timer_cancelled", TWICE),
                Row("sleep(0), 1 task", "sleep_0", TWICE),
                Row("sleep(0), 100 tasks", "sleep_0_100", TWICE),
                Row("create_task and gather", "create_task", LEVEL),
                Row("wait_for", "wait_for", LEVEL),
            ),
        ),
    ),
    "wakeups": (
        Group(
            "operations",
            (
                Row("call_soon_threadsafe, rate", "threadsafe", Goals(1.5, 1.0), RATE),
                Row(
                    "the same, idle loop, p50",
                    "threadsafe_latency",
                    Goals(1.2, 1.0),
                    P50,
                ),
                Row("the same, p99", "threadsafe_latency", Goals(), P99),
                Row("run_in_executor, there and back", "executor", LEVEL),
                Row("sleep(0.002), late by, p50", "sleep_late", LEVEL, P50),
                Row("the same, p99", "sleep_late", Goals(), P99),
            ),
            pinned=False,
        ),
    ),
    "idle": (
        Group(
            "protocol",
            (Row("idle, 200 connections", "hold", Goals(), IDLE, 200),),
        ),
    ),
    "tcp": (Group("protocol", echoes("TCP protocol", "tcp", AT_THE_FLOOR), "tcp"),),
    "buffered": (Group("buffered", echoes("TCP buffered", "tcp", AT_THE_FLOOR), "tcp"),),
    "streams": (Group("streams", echoes("TCP streams", "tcp", STREAMS)),),
    "sockets": (Group("sockets", echoes("sock_recv/sendall", "tcp", SOCKETS)),),
    "churn": (
        Group(
            "protocol",
            (Row("connect, echo 1 KB, close, 10", "churn", LEVEL, CPU, 10, 1024),),
            "tcp",
        ),
    ),
    "udp": (
        Group(
            "udp",
            echoes("UDP", "udp", {1: AT_THE_FLOOR[1]})
            # A hundred clients' would not fit into the socket's buffer.
            + echoes("UDP", "udp", {10: AT_THE_FLOOR[10]}, (1, 10)),
            "udp",
        ),
    ),
    "unix": (
        Group(
            "unix_protocol",
            echoes("Unix protocol", "unix", AT_THE_FLOOR, (1, 100)),
            "unix",
        ),
        Group("unix_streams", echoes("Unix streams", "unix", STREAMS, (1, 100))),
    ),
    "tls": (
        Group("tls_protocol", echoes("TLS protocol", "tls", TLS, (1, 10))),
        Group("tls_streams", echoes("TLS streams", "tls", TLS, (1, 10))),
    ),
    "http": tuple(
        Group(
            parser,
            (Row(f"HTTP, uvicorn + {parser}, 64", "http", better(1.1), CPU, 64),),
        )
        for parser in ("h11", "httptools")
    ),
}


# ---------------------------------------------------------------------------------------------------------------------
# Measuring


def processors() -> tuple[int, int]:
    """The server's and the clients'."""
    usable = sorted(os.sched_getaffinity(0))
    return usable[-1], usable[0]


def fields(line: str) -> Values:
    return {key: float(value) for key, value in re.findall(r"(\w+)=(\S+)", line)}


@dataclasses.dataclass
class Server:
    program: Program
    where: str = ""  # a port, or the path of a socket


class Contest:
    """The loops that are measured, and where their servers find what they need."""

    def __init__(self, directory: Path, loops: Sequence[str], scale: Scale):
        self.directory = directory
        self.loops = loops
        self.scale = scale
        self.failures = 0
        self.certificate = directory / "certificate.pem"
        command = [
            "openssl",
            "req",
            "-x509",
            "-newkey",
            "rsa:2048",
            "-nodes",
            "-days",
            "2",
        ]
        command += ["-subj", "/CN=localhost", "-keyout", str(self.certificate)]
        command += ["-out", str(self.certificate)]
        subprocess.run(command, check=True, capture_output=True, timeout=PATIENCE)

    def fail(self, what: str, error: Exception) -> None:
        self.failures += 1
        print(f"bench: {what}: {error}", file=sys.stderr, flush=True)

    def start(self, name: str, group: Group) -> Program:
        path = self.directory / f"{name}.sock"
        path.unlink(missing_ok=True)
        command: list[str | Path] = []
        if group.pinned:
            command += ["taskset", "-c", str(processors()[0])]
        if name == FLOOR:
            command += [BUILD / "bench/echo_floor", group.floor, path]
        else:
            loop = OURS if name == PERF else name
            command += [
                VENV / "bin/python",
                HERE / "loop_server.py",
                loop,
                group.workload,
            ]
            command += [path, self.certificate]
        packages = ROOT / ("build-perf/python" if name == PERF else "python")
        return Program(name, command, self.directory, {"PYTHONPATH": str(packages)})

    @contextlib.contextmanager
    def servers(self, group: Group) -> Iterator[dict[str, Server]]:
        """One for each loop, and the floor; without those that cannot do their part."""
        names = [*self.loops, FLOOR] if group.floor else self.loops
        servers = {name: Server(self.start(name, group)) for name in names}
        started = dict(servers)
        try:
            for name, server in servers.items():
                if group.workload == "operations":
                    continue
                try:
                    server.where = server.program.line().split()[1]
                    self.warm_up(server, group)
                except BenchError as error:
                    self.fail(f"{group.workload} on {name}", error)
                    del started[name]
            yield started
        finally:
            for server in servers.values():
                server.program.stop()

    def warm_up(self, server: Server, group: Group) -> None:
        """Lets connections come and go before anything is measured.

        A closed connection makes glibc's allocator keep large blocks instead of returning each to the kernel, which
        more than halves the cost of a read on the standard loop: a server that never lost a client is none.
        """
        kind = group.rows[0].what
        self.load(
            server,
            Row("warm-up", "tcp" if kind == "hold" else kind, Goals(), WARM_UP, 2, 1024),
        )

    def operation(self, program: Program, row: Row) -> Values:
        assert program.process.stdin is not None
        program.process.stdin.write(f"{row.what} {self.scale.seconds}\n")
        program.process.stdin.flush()
        return fields(program.line())

    def load(self, server: Server, row: Row) -> Values:
        seconds = {IDLE: self.scale.idle, WARM_UP: 0.02}.get(row.by, self.scale.seconds)
        theirs, ours = processors()
        command = ["taskset", "-c", str(theirs if row.connections == 1 else ours)]
        command += [str(BUILD / "bench/loop_load"), row.what, server.where]
        command += [
            str(row.connections),
            str(row.size),
            str(seconds),
            str(server.program.pid),
        ]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            raise server.program.fail("the clients did not end") from None
        if done.returncode != 0:
            raise server.program.fail(done.stderr.strip())
        got = fields(done.stdout)
        if row.by == IDLE:
            share = 100 * got["cpu"] / 1e9 / got["seconds"]
            return {IDLE: share, RATE: got["switches"] / got["seconds"]}
        if row.by == WARM_UP:
            return got
        if got["count"] == 0:
            raise server.program.fail("answered nothing")
        return {CPU: got["cpu"] / got["count"], RATE: got["count"] / got["seconds"]}

    def measure(self, group: Group) -> dict[Row, Results]:
        """Rows that differ only in what they are judged by share their measurements."""
        measured: dict[tuple[str, int, int], Results] = {row.key: {} for row in group.rows}
        distinct = {row.key: row for row in group.rows}.values()
        for turn in range(self.scale.rounds):
            with self.servers(group) as servers:
                names = list(servers)
                for _ in range(turn % max(1, len(names))):
                    names.append(names.pop(0))
                for row in distinct:
                    for name in [name for name in names if name in servers]:
                        try:
                            if group.workload == "operations":
                                values = self.operation(servers[name].program, row)
                            else:
                                values = self.load(servers[name], row)
                        except BenchError as error:
                            self.fail(f"{row.name} on {name}", error)
                            del servers[name]
                            continue
                        measured[row.key].setdefault(name, []).append(values)
        return {row: measured[row.key] for row in group.rows}


# ---------------------------------------------------------------------------------------------------------------------
# The table


def short(value: float) -> str:
    """Three digits, and thousands or millions by their letter."""
    for limit, letter in ((1e6, "M"), (1e3, "k")):
        if value >= limit * 0.9995:
            return f"{value / limit:.3g}{letter}"
    return f"{value:.3g}"


def cell(row: Row, values: Sequence[Values]) -> str:
    if not values:
        return ""

    def middle(name: str) -> float:
        return statistics.median(one[name] for one in values)

    if row.by == IDLE:
        return f"{middle(IDLE):.2f} %, {short(middle(RATE))} wakes/s"
    if row.by in (P50, P99):
        return f"{short(middle(row.by))} us"
    cpu = middle(CPU)
    spent = f"{cpu:.0f} ns" if cpu < 10_000 else f"{short(cpu / 1000)} us"
    return f"{spent} {short(middle(RATE)):>5}/s"


def ratio(row: Row, results: Results, other: str) -> float | None:
    """How much better than the other loop we are; beside the floor, how far above it."""
    pairs = list(zip(results.get(OURS, ()), results.get(other, ())))
    if not pairs or row.by == IDLE:
        return None
    upside_down = (row.by == RATE) != (other == FLOOR)
    return statistics.median(
        ours[row.by] / theirs[row.by] if upside_down else theirs[row.by] / ours[row.by]
        for ours, theirs in pairs
    )


def judged(row: Row, results: Results, ratios: Mapping[str, float | None]) -> str:
    """Whether every goal was met, and if not which was not."""
    missed, level = [], False
    if row.by == IDLE and OURS in results:
        middle = statistics.median(one[IDLE] for one in results[OURS])
        return "met" if middle <= IDLE_LIMIT else "MISSED"
    for name, goal in row.goals.of().items():
        value = ratios.get(name)
        if value is None:
            continue
        if name == FLOOR:
            if value > goal:
                missed.append(name)
        elif value < goal:
            if goal == 1.0 and value >= 1 - NOISE:
                level = True
            else:
                missed.append(name)
    if OURS not in results or not any((*row.goals.of().values(),)):
        return ""
    return f"MISSED {', '.join(missed)}" if missed else "level" if level else "met"


def line(*columns: str) -> None:
    widths = (32, -17, -17, -17, -17, -7, -7, -7)
    text = " ".join(
        f"{column:<{width}}" if width > 0 else f"{column:>{-width}}"
        for column, width in zip(columns, widths)
    )
    print(f"{text}  {columns[-2]:<24} {columns[-1]}".rstrip(), flush=True)


def show(row: Row, results: Results) -> str:
    names = ("uvloop", "asyncio", FLOOR)
    ratios = {name: ratio(row, results, name) for name in names}
    verdict = judged(row, results, ratios)
    line(
        row.name,
        *(cell(row, results.get(name, ())) for name in (OURS, *names)),
        *("" if ratios[name] is None else f"{ratios[name]:.2f}" for name in names),
        str(row.goals) if row.by != IDLE else f"<= {IDLE_LIMIT} %",
        verdict,
    )
    if (perf := ratio(row, results, PERF)) is not None:
        line(
            "",
            cell(row, results[PERF]),
            *[""] * 6,
            f"PERF_BUILD takes {perf:.2f} of it",
            "",
        )
    return verdict


def names_of(known: Iterable[str]) -> Callable[[str], list[str]]:
    """Reads names with commas between them."""
    allowed = list(known)

    def read(text: str) -> list[str]:
        names = text.split(",")
        unknown = [name for name in names if name not in allowed]
        if unknown:
            raise argparse.ArgumentTypeError(f"{unknown[0]} is none of {', '.join(allowed)}")
        return names

    return read


def add_options(parser: argparse.ArgumentParser) -> None:
    options = parser.add_argument_group("of the group loop")
    options.add_argument(
        "--rows",
        type=names_of(GROUPS),
        default=[*GROUPS],
        help=",".join(GROUPS),
        metavar="A,B",
    )
    options.add_argument(
        "--loops",
        type=names_of([*LOOPS, PERF]),
        default=[*LOOPS],
        help=",".join([*LOOPS, PERF]),
        metavar="A,B",
    )


def prepare() -> None:
    done = subprocess.run(
        [ROOT / "tests/run/venv", "bench"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    if done.returncode != 0:
        raise BenchError(f"tests/run/venv bench: {done.stdout}{done.stderr}")


def run(quick: bool, groups: Sequence[str], loops: Sequence[str]) -> None:
    prepare()
    python = str(VENV / "bin/python")
    version = "import uvloop, uvicorn, ssl; print('uvloop', uvloop.__version__, end=', ')"
    version += "; print('uvicorn', uvicorn.__version__, end=', '); print(ssl.OPENSSL_VERSION)"
    print(f"loop: beside {first_line(python, '-c', version)}")
    heads = (
        "ours",
        "uvloop",
        "standard",
        "floor",
        "/uvloop",
        "/std",
        "floor x",
        "goal",
        "verdict",
    )
    line("processor time, rate", *heads)
    verdicts: list[str] = []
    with tempfile.TemporaryDirectory(prefix="sidewinder-loop-") as directory:
        contest = Contest(Path(directory), loops, QUICK if quick else FULL)
        for name in groups:
            for group in GROUPS[name]:
                for row, results in contest.measure(group).items():
                    verdicts.append(show(row, results).split(" ")[0])
    counts = [f"{verdicts.count(word)} {word}" for word in ("met", "level", "MISSED")]
    print(f"loop: {', '.join(counts)}")
    if contest.failures:
        raise BenchError(f"{contest.failures} measurements of the loop failed")
