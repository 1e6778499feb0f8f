"""examples/loop/benchmark.py, run as its users run it, only shorter."""

from __future__ import annotations

import re
import subprocess
import sys

import support

PROGRAM = support.ROOT / "examples/loop/benchmark.py"
FIGURES = [
    "callbacks",
    "turns of the loop",
    "timers made and fired",
    "timers made and cancelled",
    "timers of 1 ms, late by, p50",
    "timers of 1 ms, late by, p99",
    "tasks",
    "readable to callback, p50",
    "readable to callback, p99",
    "readable descriptors",
    "call_soon_threadsafe to callback, p50",
    "call_soon_threadsafe to callback, p99",
]
ROW = re.compile(r"(.*?) +([\d,.]+) (/s|us) +([\d,.]+) (/s|us) +([\d.]+)")


def benchmark(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "always", str(PROGRAM), *arguments],
        env=support.environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=25,
    )


def number(text: str) -> float:
    return float(text.replace(",", ""))


def rows(output: str) -> dict[str, tuple[float, float, float]]:
    """By figure: the standard loop's, the other's, and how many times better that is."""
    found = (ROW.fullmatch(line) for line in output.splitlines()[2:])
    return {
        row[1]: (number(row[2]), number(row[4]), number(row[6])) for row in found if row is not None
    }


def test_it_measures_every_figure_on_both_loops_and_complains_of_nothing(our_loop: str) -> None:
    name = support.KNOWN.get(our_loop, our_loop)
    done = benchmark("--loop", name, "--seconds", "0.01", "--rounds", "1")
    assert (done.returncode, done.stderr) == (0, "")
    figures = rows(done.stdout)
    assert list(figures) == FIGURES
    assert all(min(values[:2]) > 0 for values in figures.values()), done.stdout


def test_it_says_which_loop_it_measured(our_loop: str) -> None:
    name = support.KNOWN.get(our_loop, our_loop)
    with_class = support.factory_of(name)()
    with_class.close()
    done = benchmark("--loop", name, "--only", "turns", "--seconds", "0.01", "--rounds", "1")
    assert done.stdout.splitlines()[0].endswith(type(with_class).__qualname__)


def test_more_is_better_for_rates_and_less_for_times() -> None:
    done = benchmark("--loop", "asyncio:new_event_loop", "--seconds", "0.01", "--rounds", "1")
    figures = rows(done.stdout)
    assert list(figures) == FIGURES
    for name, (standard, this, better) in figures.items():
        ratio = standard / this if name.endswith(("p50", "p99")) else this / standard
        assert abs(better - ratio) <= 0.01 * ratio + 0.006, (name, done.stdout)


def test_only_what_was_asked_for_is_measured() -> None:
    done = benchmark("--loop", "asyncio:new_event_loop", "--only", "tasks", "--seconds", "0.01")
    assert list(rows(done.stdout)) == ["tasks"]


def test_a_loop_that_does_not_exist_is_a_wrong_option() -> None:
    done = benchmark("--loop", "asyncio:no_such_thing")
    assert done.returncode == 2
    assert "asyncio:no_such_thing" in done.stderr


def test_a_measurement_that_does_not_exist_is_a_wrong_option() -> None:
    done = benchmark("--loop", "asyncio:new_event_loop", "--only", "sorcery")
    assert done.returncode == 2
    assert "sorcery" in done.stderr


def test_no_time_and_no_rounds_are_wrong_options() -> None:
    for option in (["--seconds", "0"], ["--rounds", "0"]):
        assert benchmark("--loop", "asyncio:new_event_loop", *option).returncode == 2
