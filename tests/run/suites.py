"""Runs the test suites in order, counts what passed and failed, and prints one table.

    /usr/bin/python3 tests/run/suites.py               every suite
    /usr/bin/python3 tests/run/suites.py cpp erlang    only these (or TEST_SUITES="cpp erlang")
    /usr/bin/python3 tests/run/suites.py --list        their names

Counts come from machine-readable reports (JUnit XML, TAP). A program that fails, crashes, hangs or leaves an
unreadable report counts as at least one failure, whatever its report says, and so does one that ran no test. A suite
is skipped only when the tree does not have it. The last line is "N passed, N failed"; the exit code is 1 if anything
failed. Reports and logs stay in build/test-results.

Environment: FUZZ_SECONDS for each fuzz target (15), CHANNEL_SECONDS for the channels under tsan (30), REENTRY_SECONDS
for calls that call back (10), DEPLOY=full for the tests of deploy/ that need more than Debian's packages and time, LOOP_CYCLES for the soak of the event loop (210), SOAK_SECONDS (60), TEST_TIMEOUT for one
program (900), TEST_JOBS for programs run side by side (the number of processors).
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "build" / "test-results"
PYTHON = "/usr/bin/python3"
Command = Sequence[str | Path]
FUZZ_SECONDS = int(os.environ.get("FUZZ_SECONDS", "15"))
CHANNEL_SECONDS = int(os.environ.get("CHANNEL_SECONDS", "30"))
REENTRY_SECONDS = int(os.environ.get("REENTRY_SECONDS", "10"))
LOOP_CYCLES = int(os.environ.get("LOOP_CYCLES", "210"))
SOAK_SECONDS = int(os.environ.get("SOAK_SECONDS", "60"))
TIMEOUT = float(os.environ.get("TEST_TIMEOUT", "900"))
JOBS = int(os.environ.get("TEST_JOBS", "0")) or os.cpu_count() or 1

LIBRARY_LEAKS = ROOT / "tests" / "run" / "lsan.supp"
SANITIZER_ENV = {
    "ASAN_OPTIONS": "detect_leaks=1:abort_on_error=0:strict_string_checks=1:check_initialization_order=1",
    "UBSAN_OPTIONS": "print_stacktrace=1:halt_on_error=1",
    "LSAN_OPTIONS": f"suppressions={LIBRARY_LEAKS}:print_suppressions=0",
    "TSAN_OPTIONS": "second_deadlock_stack=1",
    "PYTHONMALLOC": "malloc",
}


@dataclasses.dataclass
class Count:
    """What one program, or a whole suite, passed and failed."""

    passed: int = 0
    failed: int = 0
    skipped: int = 0
    notes: list[str] = dataclasses.field(default_factory=list)

    def add(self, other: Count) -> Count:
        self.passed += other.passed
        self.failed += other.failed
        self.skipped += other.skipped
        self.notes += other.notes
        return self

    def fail(self, note: str) -> Count:
        self.failed += 1
        self.notes.append(note)
        return self


# ---------------------------------------------------------------------------------------------------------------------
# Running programs


@dataclasses.dataclass
class Outcome:
    """How a program ended: its exit code (negative for a signal, None for a time-out) and where its output lies."""

    code: int | None
    log: Path

    def tail(self, lines: int = 30) -> str:
        text = self.log.read_text(errors="replace").splitlines()
        return "\n".join("    " + line for line in text[-lines:])

    def describe(self) -> str:
        if self.code is None:
            return "did not end in time"
        if self.code < 0:
            return f"died of {signal.Signals(-self.code).name}"
        # What a sanitizer found stands in one line, wherever in the log it is.
        text = self.log.read_text(errors="replace").splitlines() if self.log.exists() else []
        found = sorted({line for line in text if line.startswith("SUMMARY: ")})
        return "; ".join([f"exited with {self.code}", *found[:3]])


running: set[int] = set()  # process groups started by run() that have not ended


def end_group(group: int, how: signal.Signals = signal.SIGKILL) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, how)


def stop(number: int, _frame: object) -> None:
    """Ends what runs when the driver itself is told to end: the programs are in groups of their own."""
    for how in (signal.SIGTERM, signal.SIGKILL):
        for group in list(running):
            end_group(group, how)
        time.sleep(0.5)
    os._exit(128 + number)


def run(
    command: Command,
    log: Path,
    env: dict[str, str] | None = None,
    timeout: float = TIMEOUT,
) -> Outcome:
    """Runs a program in its own process group with no stdin; a late one is ended with its whole group."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as output:
        process = subprocess.Popen(
            [str(part) for part in command],
            cwd=ROOT,
            env=os.environ | (env or {}),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        running.add(process.pid)
        code: int | None
        try:
            code = process.wait(timeout)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            end_group(process.pid)  # whatever it left behind goes too
            process.wait()
            running.discard(process.pid)
    return Outcome(code, log)


def side_by_side(names: Sequence[str], work: Callable[[str], Count]) -> Count:
    total = Count()
    with ThreadPoolExecutor(JOBS) as pool:
        for count in pool.map(work, names):
            total.add(count)
    return total


def build(preset: str, *targets: str) -> Count | None:
    """Builds a preset ("" is the default one, with the Erlang application); a Count only if that failed."""
    log = RESULTS / f"build-{preset or 'default'}.log"
    outcome = run([ROOT / "tests/run/build", preset, *targets], log, timeout=3600)
    if outcome.code == 0:
        return None
    print(outcome.tail(60), flush=True)
    return Count().fail(
        f"the {preset or 'default'} build {outcome.describe()} ({log.relative_to(ROOT)})"
    )


def listed(path: Path) -> list[str]:
    return path.read_text().split() if path.exists() else []


# ---------------------------------------------------------------------------------------------------------------------
# Reading reports


def count_junit(report: Path) -> Count:
    """Counts the test cases of a JUnit file. Raises ParseError or OSError where there is none to read."""
    count = Count()
    for case in ElementTree.parse(report).getroot().iter("testcase"):
        faults = [*case.iter("failure"), *case.iter("error")]
        if faults:
            count.fail(f"{case.get('classname', '')} {case.get('name', '')}".strip())
            text = "\n".join(
                f"{fault.get('message') or ''}\n{fault.text or ''}" for fault in faults
            )
            lines = [line for line in text.splitlines() if line.strip()]
            print("\n".join([f"  {count.notes[-1]}:", *("    " + line for line in lines[:40])]))
        elif case.find("skipped") is not None:
            count.skipped += 1
        elif not case.get("name", "").startswith(("init_per_", "end_per_")):  # Common Test's
            count.passed += 1
    return count


def judge(name: str, outcome: Outcome, reports: Sequence[Path]) -> Count:
    """The count of one program from its reports and from how it ended."""
    count = Count()
    unreadable = []
    for report in reports:
        try:
            count.add(count_junit(report))
        except (ElementTree.ParseError, OSError) as error:
            unreadable.append(f"{name}: unreadable report: {error}")
    if outcome.code != 0 and (count.failed == 0 or outcome.code is None or outcome.code < 0):
        count.fail(f"{name}: {outcome.describe()}")
    elif unreadable:
        count.fail(unreadable[0])
    elif count.passed + count.failed + count.skipped == 0:
        count.fail(f"{name}: ran no test")
    if count.failed:
        print(f"  {name}: {outcome.describe()}\n{outcome.tail()}", flush=True)
    return count


# ---------------------------------------------------------------------------------------------------------------------
# The suites


def catch_programs(
    preset: str, env: dict[str, str], prefix: Sequence[str] = (), names: str = "list.txt"
) -> Count:
    directory = ROOT / (f"build-{preset}" if preset else "build") / "tests"
    results = RESULTS / (f"cpp-{preset}" if preset else "cpp")

    def one(name: str) -> Count:
        report = results / f"{name}.xml"
        report.parent.mkdir(parents=True, exist_ok=True)
        command: Command = [*prefix, directory / name, "-r", "junit", "-o", report]
        return judge(name, run(command, results / f"{name}.log", env), [report])

    programs = listed(directory / names)
    if not programs:
        return Count().fail(f"{directory.relative_to(ROOT)}: no test program")
    return side_by_side(programs, one)


def suite_build() -> Count:
    return build("") or Count()


def suite_cpp() -> Count:
    return catch_programs("", {})


def suite_asan() -> Count:
    targets = ["cnode_tests"]
    if (ROOT / "cnode/main/CMakeLists.txt").exists():
        targets.append("sidewinder")
    return build("asan", *targets) or catch_programs("asan", SANITIZER_ENV)


def suite_tsan() -> Count:
    failed = build("tsan", "cnode_threaded_tests")
    if failed:
        return failed
    if not listed(ROOT / "build-tsan/tests/threaded.txt"):
        return Count()
    # tsan needs its shadow memory where it expects it: no address randomization, where that may be switched off.
    fixed = ["setarch", "-R"]
    able = (
        shutil.which("setarch")
        and subprocess.run([*fixed, "true"], stderr=subprocess.DEVNULL).returncode == 0
    )
    prefix = fixed if able else []
    count = catch_programs("tsan", SANITIZER_ENV, prefix, "threaded.txt")
    if (ROOT / "cnode/main/CMakeLists.txt").exists() and (failed := build("tsan", "sidewinder")):
        return count.add(failed)
    case = "many_senders_and_many_consumers_lose_double_and_reorder_nothing"
    count.add(node_under_tsan(prefix, "channels", "channel_SUITE", case))
    cases = "threads_and_coroutines_get_their_own_answers,calls_that_call_back_find_a_worker_at_any_depth"
    return count.add(node_under_tsan(prefix, "calls", "callback_SUITE", cases))


def node_under_tsan(prefix: list[str], what: str, suite: str, cases: str) -> Count:
    """Long end-to-end tests with the whole node under tsan: the Python half of it is in no unit test."""
    logs = RESULTS / f"tsan-{what}"
    command: Command = [*prefix, "rebar3", "ct", "--suite", f"tests/e2e/{suite}"]
    command = [*command, "--case", cases, "--logdir", logs, "--readable", "false"]
    logs.mkdir(parents=True, exist_ok=True)
    with private_epmd() as env:
        env |= SANITIZER_ENV | {
            "SIDEWINDER_BIN": str(ROOT / "build-tsan/sidewinder"),
            "CHANNEL_SECONDS": str(CHANNEL_SECONDS),
            "REENTRY_SECONDS": str(REENTRY_SECONDS),
            "TSAN_OPTIONS": f"log_path={logs}/report second_deadlock_stack=1",
        }
        outcome = run(command, RESULTS / f"tsan-{what}.log", env)
    count = judge(f"{what} under tsan", outcome, sorted(logs.glob("**/junit_report.xml")))
    for report in sorted(logs.glob("report.*")):
        text = report.read_text(errors="replace")
        print(text, flush=True)
        summary = next((line for line in text.splitlines() if line.startswith("SUMMARY: ")), "")
        count.fail(f"{what} under tsan: {summary}")
    return count


def suite_fuzz() -> Count:
    failed = build("fuzz", "cnode_fuzzers")
    if failed:
        return failed
    directory = ROOT / "build-fuzz/fuzz"
    findings = RESULTS / "fuzz"

    def one(name: str) -> Count:
        grown = findings / f"{name}.corpus"
        grown.mkdir(parents=True, exist_ok=True)
        short = name.removeprefix("fuzz_")
        kept = [
            path
            for path in (ROOT / "tests/fuzz/corpus" / short, ROOT / "tests/fuzz/corpus" / name)
            if path.is_dir()
        ]
        words = ROOT / "tests/fuzz" / f"{short}.dict"
        command: list[str | Path] = [
            directory / name,
            f"-max_total_time={FUZZ_SECONDS}",
            "-timeout=20",
        ]
        command += [
            "-rss_limit_mb=4096",
            "-print_final_stats=1",
            f"-artifact_prefix={findings}/{name}-",
        ]
        command += [f"-dict={words}"] if words.exists() else []
        outcome = run(
            [*command, grown, *kept],
            findings / f"{name}.log",
            SANITIZER_ENV,
            FUZZ_SECONDS + TIMEOUT,
        )
        runs = re.search(
            r"number_of_executed_units: *([0-9]+)", outcome.log.read_text(errors="replace")
        )
        if outcome.code == 0 and runs and int(runs[1]) > 0:
            print(f"  {name}: {int(runs[1]):,} inputs", flush=True)
            return Count(passed=1)
        print(f"  {name}: {outcome.describe()}\n{outcome.tail(60)}", flush=True)
        return Count().fail(f"{name}: {outcome.describe()}, see {findings.relative_to(ROOT)}")

    targets = listed(directory / "list.txt")
    return side_by_side(targets, one) if targets else Count().fail("tests/fuzz: no fuzz target")


def pytest(name: str, python: str | Path, *arguments: str) -> Count:
    report = RESULTS / f"{name}.xml"
    path = os.pathsep.join(filter(None, [str(ROOT / "python"), os.environ.get("PYTHONPATH")]))
    command: Command = [python, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    command = [*command, f"--junitxml={report}", *arguments]
    outcome = run(command, RESULTS / f"{name}.log", {"PYTHONPATH": path})
    return judge(f"pytest {name}", outcome, [report])


def suite_python() -> Count:
    return pytest("python", PYTHON, "tests/python")


def suite_loop() -> Count:
    """The event loop: CPython's own tests of asyncio, ours, the frameworks, and many loops in one process."""
    count = conformance("loop-conformance")
    # The other tier's tests switch debug mode on themselves, most of them.
    count.add(conformance("loop-conformance-debug", "--debug", "--tiers", "A"))
    count.add(pytest("loop", PYTHON, "tests/loop", "--ignore=tests/loop/apps"))
    if any((ROOT / "tests/loop/apps").glob("test_*.py")):
        count.add(pytest("loop-apps", ROOT / "build/test-venv/bin/python", "tests/loop/apps"))
    soak: Command = [PYTHON, "tests/loop/soak.py", "--cycles", str(LOOP_CYCLES)]
    outcome = run(soak, RESULTS / "loop-soak.log")
    print(outcome.tail(3), flush=True)
    if outcome.code != 0:
        return count.fail(f"the soak of the event loop {outcome.describe()}")
    return count.add(Count(passed=1))


def suite_web() -> Count:
    """The web server under a plain interpreter; then with frameworks, in the environment that has them."""
    count = pytest(
        "web", PYTHON, "tests/web", "--ignore=tests/web/apps", "--ignore=tests/web/conformance"
    )
    if any((ROOT / "tests/web/apps").glob("test_*.py")):
        count.add(pytest("web-apps", ROOT / "build/test-venv/bin/python", "tests/web/apps"))
    return count


def suite_http() -> Count:
    """`sidewinder serve` from raw sockets, beside other servers and with other clients."""
    venv = run([ROOT / "tests/run/venv", "web"], RESULTS / "http-venv.log")
    if venv.code != 0:
        return Count().fail(f"tests/run/venv web {venv.describe()}")
    own = "--confcutdir=tests/web/conformance"  # not the other web tests' conftest.py
    return pytest("http", ROOT / "build/web-venv/bin/python", "tests/web/conformance", own)


def suite_arrays() -> Count:
    """numpy's arrays and Arrow's tables as terms. data_SUITE of e2e uses the same environment."""
    venv = run([ROOT / "tests/run/venv", "data"], RESULTS / "arrays-venv.log")
    if venv.code == 77:
        print(f"  arrays: no wheel for this Python\n{venv.tail(5)}", flush=True)
        return Count(skipped=1)
    if venv.code != 0:
        return Count().fail(f"tests/run/venv data {venv.describe()}")
    return pytest("arrays", ROOT / "build/data-venv/bin/python", "tests/arrays")


def conformance(name: str, *options: str) -> Count:
    report = RESULTS / f"{name}.xml"
    command: Command = [PYTHON, "tests/loop/conformance.py", "--report", report, *options]
    command = [*command, "--logs", RESULTS / name, "--jobs", str(JOBS)]
    outcome = run(command, RESULTS / f"{name}.log")
    return judge(name, outcome, [report])


@contextlib.contextmanager
def private_epmd() -> Iterator[dict[str, str]]:
    """An epmd of our own on a free loopback port, so that no test meets a stranger's nodes; ended on the way out."""
    program = shutil.which("epmd") or "epmd"
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    env = {"ERL_EPMD_PORT": str(port), "ERL_EPMD_ADDRESS": "127.0.0.1"}
    epmd = subprocess.Popen(
        [program],
        env=os.environ | env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    running.add(epmd.pid)
    try:
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            time.sleep(0.02)
        yield env
    finally:
        epmd.kill()
        epmd.wait()
        running.discard(epmd.pid)


def common_test(directory: str) -> Count:
    """Runs one directory of Common Test suites; the cth_surefire hook of rebar.config writes the reports."""
    name = directory.replace("tests/", "")
    logs = RESULTS / name
    command: Command = ["rebar3", "ct", "--dir", directory, "--logdir", logs, "--readable", "false"]
    with private_epmd() as env:
        env["SIDEWINDER_BIN"] = str(ROOT / "build/sidewinder")
        outcome = run(command, RESULTS / f"{name}.log", env, 2 * TIMEOUT)
    return judge(name, outcome, sorted(logs.glob("**/junit_report.xml")))


def suite_erlang() -> Count:
    return common_test("tests/erlang")


def suite_e2e() -> Count:
    cowboy = run([ROOT / "tests/run/cowboy"], RESULTS / "cowboy.log")
    if cowboy.code != 0:  # the test that wants it is skipped then
        print(cowboy.tail(3), flush=True)
    return common_test("tests/e2e")


def suite_faults() -> Count:
    """The rows of the fault table that need neither a privilege nor much time."""
    report = RESULTS / "faults.xml"
    command: Command = [PYTHON, "tests/faults/run", "--quick", "--jobs", str(JOBS)]
    outcome = run([*command, "--junit", report], RESULTS / "faults.log")
    print(outcome.log.read_text(errors="replace").rstrip(), flush=True)
    return judge("faults", outcome, [report])


def suite_soak() -> Count:
    failed = build("asan", "sidewinder")
    if failed:
        return failed
    with private_epmd() as env:
        env |= SANITIZER_ENV | {"SIDEWINDER_BIN": str(ROOT / "build-asan/sidewinder")}
        command: Command = [ROOT / "tests/soak/run", str(SOAK_SECONDS)]
        outcome = run(command, RESULTS / "soak.log", env, SOAK_SECONDS + TIMEOUT)
    print(outcome.tail(12), flush=True)
    return Count(passed=1) if outcome.code == 0 else Count().fail(f"soak {outcome.describe()}")


def suite_check() -> Count:
    outcome = run([ROOT / "tests/run/check"], RESULTS / "check.log", timeout=3600)
    text = outcome.log.read_text(errors="replace")
    results = re.findall(r"^(ok|not ok) [0-9]+ - (\w+)(.*)$", text, re.MULTILINE)
    plan = re.search(r"^1\.\.([0-9]+)$", text, re.MULTILINE)
    count = Count()
    for verdict, name, rest in results:
        if verdict == "not ok":
            count.fail(f"check {name}")
        elif "# SKIP" in rest:
            count.skipped += 1
        else:
            count.passed += 1
    if (outcome.code != 0 and count.failed == 0) or plan is None or int(plan[1]) != len(results):
        count.fail(f"check {outcome.describe()} before its end")
    if count.failed:
        print(text.rstrip(), flush=True)
    return count


# What needs neither an image nor a cluster. DEPLOY=full runs every test.sh below deploy/.
QUICK_DEPLOY = (
    "systemd",
    "k8s",
    "examples/any-beam",
    "examples/workers-on-hosts",
    "examples/rolling-update",
    "examples/partition",
)


def suite_deploy() -> Count:
    """The examples' own test.sh: TAP lines and an exit code; 77 is what this machine cannot show, and why is printed."""
    total = Count()
    scripts = [ROOT / "deploy" / name / "test.sh" for name in QUICK_DEPLOY]
    if os.environ.get("DEPLOY") == "full":
        scripts = sorted((ROOT / "deploy").glob("**/test.sh"))
    for script in scripts:
        name = str(script.parent.relative_to(ROOT / "deploy"))
        log = RESULTS / "deploy" / f"{name.replace('/', '-')}.log"
        outcome = run([script], log, timeout=3600 if os.environ.get("DEPLOY") == "full" else 300)
        text = log.read_text(errors="replace")
        count = Count(passed=len(re.findall(r"^ok [0-9]+ - ", text, re.MULTILINE)))
        for line in re.findall(r"^not ok [0-9]+ - (.*)$", text, re.MULTILINE):
            count.fail(f"{name}: {line}")
        if outcome.code == 77:
            count = Count(skipped=1)
            print(f"  {name}: {outcome.tail(1).strip()}", flush=True)
        elif not count.failed and (outcome.code != 0 or f"1..{count.passed}\n" not in text):
            count.fail(f"{name}: {outcome.describe()} before its end")
        if count.failed:
            print(f"  {name}: {outcome.describe()}\n{outcome.tail(60)}", flush=True)
        total.add(count)
    return total


@dataclasses.dataclass(frozen=True)
class Suite:
    name: str
    run: Callable[[], Count]
    needs: str  # the suite is skipped while the tree has nothing under this path


SUITES = (
    Suite("build", suite_build, "CMakeLists.txt"),
    Suite("cpp", suite_cpp, "tests/cpp/CMakeLists.txt"),
    Suite("asan", suite_asan, "tests/cpp/CMakeLists.txt"),
    Suite("tsan", suite_tsan, "tests/cpp/CMakeLists.txt"),
    Suite("fuzz", suite_fuzz, "tests/fuzz/CMakeLists.txt"),
    Suite("python", suite_python, "tests/python"),
    Suite("loop", suite_loop, "tests/loop"),
    Suite("web", suite_web, "tests/web"),
    Suite("http", suite_http, "tests/web/conformance"),
    Suite("arrays", suite_arrays, "tests/arrays"),
    Suite("erlang", suite_erlang, "tests/erlang"),
    Suite("e2e", suite_e2e, "tests/e2e"),
    Suite("faults", suite_faults, "tests/faults/run"),
    Suite("soak", suite_soak, "tests/soak/run"),
    Suite("deploy", suite_deploy, "deploy/systemd/test.sh"),
    Suite("check", suite_check, "tests/run/check"),
)


def present(path: Path) -> bool:
    return path.is_file() or any(below.is_file() for below in path.glob("**/*"))


def main(arguments: list[str]) -> int:
    names = [suite.name for suite in SUITES]
    if arguments == ["--list"]:
        print("\n".join(names))
        return 0
    wanted = arguments or os.environ.get("TEST_SUITES", "").split() or names
    unknown = set(wanted) - set(names)
    if unknown:
        print(
            f"no such suite: {', '.join(sorted(unknown))} (there are {', '.join(names)})",
            file=sys.stderr,
        )
        return 2
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, stop)
    os.environ["PATH"] = os.pathsep.join(
        ["/usr/bin", "/bin", os.environ.get("PATH", "")]
    )  # the system's python3
    shutil.rmtree(RESULTS, ignore_errors=True)
    RESULTS.mkdir(parents=True)

    total = Count()
    rows: list[tuple[str, str, str, str, str]] = [("suite", "passed", "failed", "skipped", "time")]
    for suite in SUITES:
        if suite.name not in wanted:
            continue
        if not present(ROOT / suite.needs):
            rows.append((suite.name, "-", "-", "-", f"no {suite.needs}"))
            continue
        print(f"== {suite.name}", flush=True)
        began = time.monotonic()
        try:
            count = suite.run()
        except Exception as error:  # a fault of the driver must not hide the other suites
            count = Count().fail(f"the driver failed: {error!r}")
        count.notes = [f"{suite.name}: {note}" for note in count.notes]
        took = f"{time.monotonic() - began:.0f} s"
        rows.append((suite.name, str(count.passed), str(count.failed), str(count.skipped), took))
        total.add(count)

    print()
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    for row in rows:
        print(
            row[0].ljust(widths[0]), *(row[i].rjust(widths[i]) for i in (1, 2, 3)), row[4], sep="  "
        )
    if total.notes:
        print("\nfailed:", *total.notes, sep="\n  ")
    print(f"\n{total.passed} passed, {total.failed} failed", flush=True)
    return 1 if total.failed or not total.passed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
