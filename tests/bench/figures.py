"""What the benchmarks share: programs that they start, goals, and how a figure is printed, one line each."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import statistics
import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
BUILD = Path(os.environ.get("BENCH_BUILD", ROOT / "build"))
SIDEWINDER = Path(os.environ.get("SIDEWINDER_BIN", BUILD / "sidewinder"))
ERL_LIBS = os.environ.get("BENCH_ERL_LIBS", str(ROOT / "_build/default/lib"))
PATIENCE = 120.0  # seconds for one measurement before something must be wrong

Values = dict[str, float]


class BenchError(Exception):
    """A program did not do its part; the message says which, and what it wrote."""


# ---------------------------------------------------------------------------------------------------------------------
# Programs


class Program:
    """A child process whose standard error goes to a file."""

    def __init__(
        self, name: str, command: Sequence[str | Path], directory: Path, env: dict[str, str]
    ):
        self.name = name
        self.log = directory / f"{name}.log"
        with self.log.open("ab") as log:
            try:
                self.process = subprocess.Popen(
                    [str(part) for part in command],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    env=os.environ | env,
                    cwd=directory,
                    text=True,
                )
            except OSError as error:
                raise BenchError(f"{name}: {error}; `make build` comes first") from error

    @property
    def pid(self) -> int:
        return self.process.pid

    def fail(self, what: str) -> BenchError:
        tail = "\n".join(self.log.read_text(errors="replace").splitlines()[-20:])
        return BenchError(f"{self.name}: {what}\n{tail}")

    def line(self) -> str:
        """The next line of its output."""
        assert self.process.stdout is not None
        with alarm(PATIENCE, lambda: self.fail("no answer in time")):
            text = self.process.stdout.readline()
        if not text:
            raise self.fail(f"ended with {self.process.wait()}")
        return text.rstrip("\n")

    def stop(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        for stream in (self.process.stdin, self.process.stdout):
            with contextlib.suppress(OSError):
                close(stream)


def close(stream: IO[str] | None) -> None:
    if stream is not None:
        stream.close()


@contextlib.contextmanager
def alarm(seconds: float, error: Callable[[], BenchError]) -> Iterator[None]:
    def ring(*_: object) -> None:
        raise error()

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


# ---------------------------------------------------------------------------------------------------------------------
# Figures


@dataclasses.dataclass(frozen=True)
class Goal:
    """What a number should be: at most or at least so much."""

    limit: float
    at_most: bool
    unit: str = "x"

    def __str__(self) -> str:
        return f"{'<=' if self.at_most else '>='} {number(self.limit)} {self.unit}"

    def verdict(self, value: float) -> str:
        return "met" if (value <= self.limit if self.at_most else value >= self.limit) else "MISSED"


def at_most(limit: float, unit: str = "x") -> Goal:
    return Goal(limit, True, unit)


def at_least(limit: float, unit: str = "x") -> Goal:
    return Goal(limit, False, unit)


def number(value: float) -> str:
    if value >= 10_000:
        return f"{value:,.0f}"
    return f"{value:.3g}" if value < 1000 else f"{value:.0f}"


def figure(
    name: str, ours: str, baseline: str = "", ratio: str = "", goal: str = "", verdict: str = ""
) -> None:
    print(
        f"{name:<54} {ours:>14} {baseline:>22} {ratio:>8}  {goal:<11} {verdict}".rstrip(),
        flush=True,
    )


def absolute(
    name: str, values: Sequence[float], unit: str, goal: Goal | None = None, note: str = ""
) -> None:
    value = statistics.median(values)
    verdict = goal.verdict(value) if goal else ""
    figure(name, f"{number(value)} {unit}", note, "", str(goal or ""), verdict)


def compared(
    name: str,
    ours: Sequence[float],
    baseline: Sequence[float],
    unit: str,
    who: str,
    goal: Goal | None = None,
) -> None:
    ratio = statistics.median(a / b for a, b in zip(ours, baseline, strict=True))
    figure(
        name,
        f"{number(statistics.median(ours))} {unit}",
        f"{who} {number(statistics.median(baseline))} {unit}",
        f"{ratio:.2f} x",
        str(goal or ""),
        goal.verdict(ratio) if goal else "",
    )


# ---------------------------------------------------------------------------------------------------------------------
# The machine


def first_line(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    except OSError:
        return "?"
    return (done.stdout or done.stderr).strip().splitlines()[0]


def cpu_seconds() -> tuple[float, float]:
    """Seconds all processors worked, and seconds this process and its children worked."""
    fields = [int(f) for f in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]]
    total = sum(fields[:8]) - fields[3] - fields[4]
    return total / os.sysconf("SC_CLK_TCK"), sum(os.times()[:4])
