"""Runs CPython's own asyncio tests against an event loop and holds the outcome against the standard loop's.

    python3 tests/loop/conformance.py                                  ErlangEventLoop, tiers A and B
    python3 tests/loop/conformance.py --loop uvloop --tiers A          another loop, the I/O tests only
    python3 tests/loop/conformance.py --only test_events.EPollEventLoopTests.test_call_later
    python3 tests/loop/conformance.py --debug --report conformance.xml
    python3 tests/loop/conformance.py --list                           what runs, and what is left out and why

One rule: what passes on the standard loop passes on ours. The exceptions stand in known_failures.txt, each with its
reason, and an exception that is none any more is a failure as well. A test that is skipped here and runs there
counts as one that fails. Tests that fail on both are nobody's fault and reported as skipped.

        conformance.py ── a module ──▶ conformance_worker.py ── one line per event ──▶ conformance.py
                                       (a process, a session, a scratch directory of its own)

A worker that hangs or dies is a result: the test it was at is written down, and the next worker takes up the rest.
Nothing that a test started is left running. Needs CPython's test package for the Python that runs this (on Debian
libpython3.11-testsuite, and so on for other versions).
"""

from __future__ import annotations

import argparse
import collections
import concurrent.futures
import contextlib
import ctypes
import dataclasses
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TextIO

import conformance_worker as worker

ROOT = Path(__file__).resolve().parents[2]
KNOWN_FAILURES = Path(__file__).with_name("known_failures.txt")
VERSION = sys.version_info[:3]
EXIT_TIME_OUT = 20.0
PR_SET_CHILD_SUBREAPER = 36

# Slowest first, so that no long module starts when all else is done.
SLOW = (
    "test_subprocess",
    "test_events",
    "test_ssl",
    "test_streams",
    "test_tasks",
    "test_sslproto",
    "test_waitfor",
)

# Fewer tests than this with a loop of ours mean that the loop no longer gets into them.
LEAST_WITH_A_LOOP = {"A": 200, "B": 400}


@dataclasses.dataclass
class Result:
    """How one test ended on one loop: passed, failed, hung, crashed, skipped, or one of the judge's verdicts."""

    id: str
    verdict: str
    message: str = ""
    seconds: float = 0.0
    loops: int = 1

    @property
    def bad(self) -> bool:
        return self.verdict in ("failed", "hung", "crashed", "stale")


@dataclasses.dataclass(frozen=True)
class Options:
    loop: str
    tiers: str
    only: tuple[str, ...]
    debug: bool
    time_out: float
    jobs: int
    logs: Path | None


# ---------------------------------------------------------------------------------------------------------------------
# Workers

libc = ctypes.CDLL(None, use_errno=True)
sessions: set[int] = set()  # workers that run, each the leader of its own session


def end_session(leader: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(leader, signal.SIGKILL)


def end_orphans() -> None:
    """Processes that a test put into sessions of their own have come down to us, as we are their subreaper."""
    with contextlib.suppress(ChildProcessError):
        while True:
            for child in children():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(child, signal.SIGKILL)
            os.waitpid(-1, 0)


def children() -> list[int]:
    listed = Path(f"/proc/self/task/{os.getpid()}/children")
    return [int(child) for child in listed.read_text().split()] if listed.exists() else []


def stop(number: int, _frame: object) -> None:
    for leader in list(sessions):
        end_session(leader)
    os._exit(128 + number)


def environment_of(options: Options, scratch: Path) -> dict[str, str]:
    path = [str(ROOT / "python"), os.environ.get("PYTHONPATH", "")]
    ours = {"PYTHONPATH": os.pathsep.join(filter(None, path)), "TMPDIR": str(scratch)}
    ours |= {"PYTHONASYNCIODEBUG": "1" if options.debug else ""}
    return os.environ | ours


class Worker:
    """One worker process: `watch` follows its events to the end, whichever end that is."""

    def __init__(
        self, module: str, loop: str, options: Options, only: Sequence[str] | None, scratch: Path
    ) -> None:
        self.module = module
        self.time_out = options.time_out
        self.plan: list[str] = []
        self.results: list[Result] = []
        self.fixtures: list[Result] = []
        self.running = ""
        self.done = False
        self.cut = ""  # the beginning of a line whose end is still to come
        self.events = scratch / "events"
        self.events.touch()
        self.log = scratch / "log"
        asked = scratch / "only"
        asked.write_text(json.dumps(only))
        program = [sys.executable, "-P", "-W", "default", worker.__file__]
        program += [module, loop, options.tiers, str(self.events), str(self.time_out)]
        with asked.open() as stdin, self.log.open("wb") as output:
            self.process = subprocess.Popen(
                program,
                cwd=scratch,
                env=environment_of(options, scratch),
                stdin=stdin,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        sessions.add(self.process.pid)

    def watch(self) -> Worker:
        with self.events.open() as events:
            try:
                code = self.follow(events)
            finally:
                end_session(self.process.pid)
                self.process.wait()
                sessions.discard(self.process.pid)
            self.take(events.read())
        self.conclude(code)
        return self

    def follow(self, events: TextIO) -> int | None:
        """The exit code, or None when nothing has moved for too long."""
        moved = time.monotonic()
        while (code := self.process.poll()) is None:
            if self.take(events.read()):
                moved = time.monotonic()
            # A second more than the worker waits itself, which then writes down where its threads stand.
            if time.monotonic() - moved > self.limit() + 1:
                return None
            time.sleep(0.02)
        return code

    def limit(self) -> float:
        return EXIT_TIME_OUT if self.done else self.time_out

    def take(self, text: str) -> bool:
        *lines, self.cut = (self.cut + text).split("\n")
        for line in lines:
            event = json.loads(line)
            kind = event.pop("event")
            if kind == "plan":
                self.plan = event["tests"]
            elif kind == "start":
                self.running = event["id"]
            elif kind == "stop":
                self.running = ""
                self.results.append(Result(**event))
            elif kind == "fixture":
                self.fixtures.append(Result(**event))
            else:
                self.done = True
        return bool(lines)

    def conclude(self, code: int | None) -> None:
        """Writes the end of the process down as the result of the test that it was at."""
        if self.done and code == 0:
            return
        verdict = "hung" if code is None else "crashed"
        message = f"{died(code, self.limit())}\n{self.tail()}"
        if self.running:
            self.results.append(Result(self.running, verdict, message))
        else:
            where = "at exit" if self.done else "outside tests"
            self.fixtures.append(Result(f"{self.module}.{where}", verdict, message))

    def tail(self) -> str:
        text = self.log.read_text(errors="replace")
        return "\n".join(text.rpartition(f"--- {self.running}\n")[2].splitlines()[-60:])


def died(code: int | None, limit: float) -> str:
    if code is None:
        return f"nothing moved for {limit:.0f} s"
    return (
        f"died of {signal.Signals(-code).name}" if code < 0 else f"the process exited with {code}"
    )


@dataclasses.dataclass
class Run:
    """A module on one loop, after as many workers as it took."""

    plan: list[str]
    results: dict[str, Result]


def run_module(module: str, loop: str, options: Options, only: Sequence[str] | None) -> Run:
    run: Run | None = None
    while only is None or only or run is None:
        with scratch_directory(f"{loop}-{module}", options.logs) as scratch:
            ended = Worker(module, loop, options, only, scratch).watch()
        run = run or Run(ended.plan, {})
        run.results |= {result.id: result for result in ended.results + ended.fixtures}
        # Only a test that took the worker with it is stepped over; whatever else stopped one would stop the next too.
        only = [id for id in ended.plan if id not in run.results] if ended.running else []
    for id in run.plan:
        run.results.setdefault(id, Result(id, "failed", "did not run"))
    return run


@contextlib.contextmanager
def scratch_directory(name: str, logs: Path | None) -> Iterator[Path]:
    """A short path, for a unix socket's address has 108 bytes."""
    scratch = Path(tempfile.mkdtemp(prefix="loop-"))
    try:
        yield scratch
    finally:
        if logs:
            with (logs / f"{name}.log").open("ab") as kept:
                kept.write((scratch / "log").read_bytes())
        shutil.rmtree(scratch, ignore_errors=True)


# ---------------------------------------------------------------------------------------------------------------------
# Judging


@dataclasses.dataclass(frozen=True)
class Known:
    """A line of known_failures.txt: a test that fails on ours and passes on the standard loop, and why we accept it."""

    id: str
    versions: str  # "*", "3.11", "3.12-3.13", "3.13.1-"
    mode: str  # "any", "plain" or "debug"
    reason: str

    def applies(self, debug: bool) -> bool:
        first, dash, last = self.versions.replace("*", "0-").partition("-")
        low, high = version(first), version(last if dash else first)
        return (
            low <= VERSION
            and VERSION[: len(high)] <= high
            and self.mode in ("any", "debug" if debug else "plain")
        )


def version(text: str) -> tuple[int, ...]:
    """An open end is every version."""
    return tuple(int(part) for part in text.split(".")) if text else ()


def read_known(path: Path) -> list[Known]:
    """Raises ValueError for a line that is not `test | versions | mode | reason`."""
    known = []
    for number, line in enumerate(path.read_text().splitlines(), 1):
        if line.strip() and not line.startswith("#"):
            fields = [field.strip() for field in line.split("|", 3)]
            if len(fields) != 4 or not all(fields) or fields[2] not in ("any", "plain", "debug"):
                raise ValueError(
                    f"{path.name}, line {number}: not `test | versions | mode | reason`"
                )
            known.append(Known(*fields))
    return known


def judge(ours: Result, standard: Result | None) -> Result:
    """What a result that is no pass means beside the same test on the standard loop."""
    if standard is None:
        return ours
    if ours.verdict == "skipped" and standard.verdict == "passed":
        told = f"skipped, and runs on the standard loop: {ours.message}"
        return dataclasses.replace(ours, verdict="failed", message=told)
    no_worse = ours.verdict == "failed" or standard.verdict in ("hung", "crashed")
    if ours.bad and standard.bad and no_worse:
        told = f"{standard.verdict} on the standard loop too: {standard.message}"
        return dataclasses.replace(ours, verdict="skipped", message=told)
    return ours


def judge_module(module: str, options: Options) -> Run:
    run = run_module(module, options.loop, options, options.only or None)
    suspects = [id for id in run.plan if run.results[id].verdict != "passed"]
    if suspects and options.loop != "asyncio":
        standard = run_module(module, "asyncio", options, suspects).results
        run.results |= {id: judge(run.results[id], standard.get(id)) for id in suspects}
    return run


def excuse(
    results: dict[str, Result], known: Iterable[Known], complete: Callable[[str], bool]
) -> list[Result]:
    """Takes the known failures off; entries that excuse nothing come back as failures of their own."""
    stale = []
    for entry in known:
        result = results.get(entry.id)
        if result is not None and result.bad:
            told = f"known failure: {entry.reason}\n{result.message}"
            results[entry.id] = dataclasses.replace(result, verdict="skipped", message=told)
        elif result is not None and result.verdict == "passed":
            stale.append(
                Result(f"known_failures.{entry.id}", "stale", "passes: take it off the list")
            )
        elif result is None and complete(entry.id):
            stale.append(Result(f"known_failures.{entry.id}", "stale", "there is no such test"))
    return stale


def loops_were_made(results: Iterable[Result], tiers: str) -> list[Result]:
    """Tests that never met our loop pass for nothing; the loop must have got into each class of tier A."""
    with_loop: collections.Counter[str] = collections.Counter()
    classes: collections.Counter[str] = collections.Counter()
    for result in results:
        tier = worker.tier_of(result.id) or "B"
        met = int(result.loops > 0 and result.verdict != "skipped")
        with_loop[tier] += met
        if tier == "A" and result.verdict != "skipped":
            classes[result.id.rpartition(".")[0]] += met
    faults = [f"{name}: no test of it made a loop" for name, met in classes.items() if not met]
    for tier in tiers:
        if with_loop[tier] < (least := LEAST_WITH_A_LOOP.get(tier, 1)):
            faults.append(f"tier {tier}: {with_loop[tier]} tests made a loop, not {least} or more")
    return [
        Result(f"injection.{number}", "failed", fault) for number, fault in enumerate(faults, 1)
    ]


# ---------------------------------------------------------------------------------------------------------------------
# Telling


def write_junit(report: Path, results: Sequence[Result]) -> None:
    suite = ElementTree.Element("testsuite", name="conformance", tests=str(len(results)))
    for result in results:
        where, _, name = result.id.rpartition(".")
        case = ElementTree.SubElement(
            suite, "testcase", classname=where, name=name, time=str(result.seconds)
        )
        if result.bad:
            fault = ElementTree.SubElement(case, "failure", message=result.verdict)
            fault.text = printable(result.message)
        elif result.verdict == "skipped":
            ElementTree.SubElement(case, "skipped", message=printable(result.message)[:500])
    report.parent.mkdir(parents=True, exist_ok=True)
    ElementTree.ElementTree(suite).write(report, encoding="utf-8", xml_declaration=True)


def printable(text: str, limit: int = 8000) -> str:
    """XML has no way to write most control characters; of a long text the end says more."""
    return re.sub(r"[^\t\n\x20-\ud7ff\ue000-\ufffd]", "?", text[-limit:])


def print_table(results: Sequence[Result]) -> None:
    rows: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    for result in results:
        rows[f"{worker.tier_of(result.id) or '-'} {result.id.partition('.')[0]}"][
            result.verdict
        ] += 1
    verdicts = ("passed", "failed", "hung", "crashed", "stale", "skipped")
    print(f"{'tier, module':34}", *(f"{verdict:>8}" for verdict in verdicts))
    for name in sorted(rows):
        print(f"{name:34}", *(f"{rows[name][verdict]:8}" for verdict in verdicts))
    for result in results:
        if result.bad:
            print(f"{result.verdict}: {result.id}: {gist(result)}")


def gist(result: Result) -> str:
    """A traceback says in its last line what is the matter, and the end of a process in its first."""
    lines = [line for line in result.message.splitlines() if line.strip()] or [""]
    return lines[0 if result.verdict in ("hung", "crashed") else -1]


def print_selection(modules: Sequence[str], options: Options) -> None:
    with concurrent.futures.ThreadPoolExecutor(options.jobs) as pool:
        for run in pool.map(lambda module: run_module(module, options.loop, options, []), modules):
            print("\n".join(f"{worker.tier_of(id)} {id}" for id in run.plan))
    print("\nleft out:")
    for name, reason in sorted(worker.LEFT_OUT.items()):
        print(f"  {name}: {reason}")


# ---------------------------------------------------------------------------------------------------------------------


def modules_of(options: Options) -> list[str]:
    """Raises SystemExit when this Python comes without its tests."""
    try:
        package = importlib.util.find_spec("test.test_asyncio")
    except ModuleNotFoundError:
        package = None
    if package is None or not package.submodule_search_locations:
        name = f"libpython{VERSION[0]}.{VERSION[1]}-testsuite"
        raise SystemExit(f"conformance: no test.test_asyncio here; on Debian, install {name}")
    found = {
        path.stem
        for place in package.submodule_search_locations
        for path in Path(place).glob("test_*.py")
    }
    wanted = {name.partition(".")[0] for name in options.only} or found
    if unknown := wanted - found:
        raise SystemExit(f"conformance: no such module: {', '.join(sorted(unknown))}")
    running = {
        name
        for name in wanted
        if not worker.within(name, worker.LEFT_OUT) and may_have(name, options.tiers)
    }
    return sorted(running, key=lambda name: (SLOW.index(name) if name in SLOW else len(SLOW), name))


def may_have(module: str, tiers: str) -> bool:
    """Whether a module can have tests of these tiers: most of tier B has none of the others."""
    tables: dict[str, Iterable[str]] = {"A": worker.TIER_A, "W": worker.WHITE_BOX}
    inside = {
        tier: any(name.partition(".")[0] == module for name in table)
        for tier, table in tables.items()
    }
    return any(inside.get(tier, module not in worker.TIER_A) for tier in tiers)


def parse(arguments: Sequence[str]) -> tuple[Options, argparse.Namespace]:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    loops = f"{', '.join(worker.KNOWN)} or module:class"
    parser.add_argument("--loop", default="erlang", help=loops)
    parser.add_argument(
        "--tiers", default="AB", help="A: I/O; B: the rest; W: the standard class's own tests"
    )
    parser.add_argument(
        "--only", nargs="+", default=[], metavar="TEST", help="modules, classes or tests"
    )
    parser.add_argument("--debug", action="store_true", help="with PYTHONASYNCIODEBUG=1")
    parser.add_argument("--report", type=Path, help="where to write a JUnit file")
    parser.add_argument("--logs", type=Path, help="a directory to keep what the tests printed")
    parser.add_argument("--time-out", type=float, default=30.0, help="seconds for one test")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument(
        "--list", action="store_true", help="what runs, and what is left out and why"
    )
    given = parser.parse_args(arguments)
    only = tuple(name.removeprefix("test.test_asyncio.") for name in given.only)
    given.tiers = "".join(sorted(set(given.tiers)))
    if given.tiers not in ("A", "B", "AB", "W"):
        parser.error("--tiers is A, B, AB or W")
    return (
        Options(given.loop, given.tiers, only, given.debug, given.time_out, given.jobs, given.logs),
        given,
    )


def main(arguments: Sequence[str]) -> int:
    options, given = parse(arguments)
    modules = modules_of(options)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, stop)
    if options.logs:
        options.logs.mkdir(parents=True, exist_ok=True)
    libc.prctl(PR_SET_CHILD_SUBREAPER, 1)
    try:
        if given.list:
            print_selection(modules, options)
            return 0
        results = run_all(modules, options)
    finally:
        end_orphans()
    if given.report:
        write_junit(given.report, results)
    print_table(results)
    counts = collections.Counter("failed" if result.bad else result.verdict for result in results)
    print(
        f"{counts['passed']} passed, {counts['failed']} failed, {counts['skipped']} skipped on {options.loop}, "
        f"Python {sys.version.split()[0]}"
    )
    return 1 if counts["failed"] or not counts["passed"] else 0


def run_all(modules: Sequence[str], options: Options) -> list[Result]:
    results: dict[str, Result] = {}
    with concurrent.futures.ThreadPoolExecutor(options.jobs) as pool:
        for run in pool.map(lambda module: judge_module(module, options), modules):
            results |= run.results
    extra: list[Result] = []
    if options.loop.startswith("erlang"):
        known = [entry for entry in read_known(KNOWN_FAILURES) if entry.applies(options.debug)]
        extra += excuse(
            results,
            known,
            lambda id: not options.only and (worker.tier_of(id) or "") in options.tiers,
        )
    if not options.only:
        extra += loops_were_made(results.values(), options.tiers)
    # A test that made no loop says nothing about ours, unless it failed.
    return [
        result for result in results.values() if result.loops or result.verdict != "passed"
    ] + extra


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
