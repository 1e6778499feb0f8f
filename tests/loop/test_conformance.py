"""What conformance.py makes of tests that fail, hang, crash, are skipped or are excused."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import conformance
import conformance_worker
import pytest
from conformance import Known, Result

BAD_LOOP = """
    import asyncio, os, signal, subprocess, sys, time, unittest

    def running(name):
        frame = sys._getframe()
        while frame:
            if getattr(frame.f_locals.get("self"), "_testMethodName", "") == name:
                return True
            frame = frame.f_back
        return False

    class Loop(asyncio.SelectorEventLoop):
        def call_later(self, *args, **kwargs):
            if running("test_call_later"):
                os.kill(os.getpid(), signal.SIGSEGV)
            return super().call_later(*args, **kwargs)

        def run_forever(self):
            if running("test_run_until_complete_stopped"):
                for new_session in (False, True):
                    subprocess.Popen(["sleep", "4321"], start_new_session=new_session)
                time.sleep(4321)
            if running("test_internal_fds"):
                raise unittest.SkipTest("no")
            if running("test_run_in_executor"):
                raise ValueError("no")
            super().run_forever()
"""
TESTS = (
    "test_call_later",
    "test_run_until_complete_stopped",
    "test_run_in_executor",
    "test_reader_callback",
)


def verdicts(report: Path) -> dict[str, str]:
    found = {}
    for case in ElementTree.parse(report).getroot().iter("testcase"):
        fault = case.find("failure")
        other = "passed" if case.find("skipped") is None else "skipped"
        found[case.get("name", "")] = other if fault is None else fault.get("message", "")
    return found


def test_a_test_that_fails_hangs_or_crashes_is_named_and_nothing_is_left_running(
    tmp_path: Path,
) -> None:
    (tmp_path / "bad_loop.py").write_text(textwrap.dedent(BAD_LOOP))
    report = tmp_path / "report.xml"
    only = [f"test_events.EPollEventLoopTests.{name}" for name in TESTS]
    command = [sys.executable, conformance.__file__, "--loop", "bad_loop:Loop", "--time-out", "3"]
    ended = subprocess.run(
        [*command, "--report", str(report), "--only", *only],
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 1, ended.stdout + ended.stderr
    assert verdicts(report) == dict(zip(TESTS, ("crashed", "hung", "failed", "passed")))
    left = subprocess.run(["pgrep", "-f", "sleep 4321"], capture_output=True, text=True)
    assert left.stdout == ""


def result(verdict: str) -> Result:
    return Result("test_events.Tests.test_one", verdict)


@pytest.mark.parametrize(
    ("ours", "standard", "together"),
    [
        ("failed", "passed", "failed"),
        ("failed", "skipped", "failed"),
        ("failed", "failed", "skipped"),
        ("hung", "failed", "hung"),
        ("crashed", "hung", "skipped"),
        ("skipped", "passed", "failed"),
        ("skipped", "skipped", "skipped"),
        ("skipped", "failed", "skipped"),
    ],
)
def test_only_what_the_standard_loop_does_no_better_is_let_pass(
    ours: str, standard: str, together: str
) -> None:
    assert conformance.judge(result(ours), result(standard)).verdict == together


@pytest.mark.parametrize(
    ("verdict", "afterwards", "complaints"),
    [
        ("failed", "skipped", []),
        ("hung", "skipped", []),
        ("passed", "passed", ["passes: take it off the list"]),
        ("skipped", "skipped", []),
    ],
)
def test_a_known_failure_is_excused_and_one_that_passes_is_not(
    verdict: str, afterwards: str, complaints: list[str]
) -> None:
    one = result(verdict)
    results = {one.id: one}
    stale = conformance.excuse(results, [Known(one.id, "*", "any", "why")], lambda _: True)
    assert results[one.id].verdict == afterwards
    assert [found.message for found in stale] == complaints


def test_a_known_failure_of_a_test_that_is_not_there_is_a_failure() -> None:
    known = [Known("test_events.Tests.test_gone", "*", "any", "why")]
    assert [found.bad for found in conformance.excuse({}, known, lambda _: True)] == [True]
    assert conformance.excuse({}, known, lambda _: False) == []  # as with --only


@pytest.mark.parametrize(
    ("versions", "inside", "outside"),
    [
        ("*", [(3, 11, 2), (3, 15, 0)], []),
        ("3.12", [(3, 12, 0), (3, 12, 9)], [(3, 11, 9), (3, 13, 0)]),
        ("3.12-3.13", [(3, 12, 0), (3, 13, 9)], [(3, 11, 9), (3, 14, 0)]),
        ("3.13.1-", [(3, 13, 1), (3, 14, 0)], [(3, 13, 0), (3, 12, 9)]),
    ],
)
def test_a_known_failure_applies_to_its_versions_of_python(
    monkeypatch: pytest.MonkeyPatch,
    versions: str,
    inside: list[tuple[int, ...]],
    outside: list[tuple[int, ...]],
) -> None:
    for version in inside + outside:
        monkeypatch.setattr(conformance, "VERSION", version)
        assert Known("test", versions, "any", "why").applies(debug=False) == (version in inside)


def test_a_line_of_the_list_without_a_reason_is_refused(tmp_path: Path) -> None:
    listed = tmp_path / "known_failures.txt"
    listed.write_text("# comment\n\ntest_events.Tests.test_one | * | any |\n")
    with pytest.raises(ValueError, match="line 3"):
        conformance.read_known(listed)


def test_the_list_of_the_project_can_be_read() -> None:
    for entry in conformance.read_known(conformance.KNOWN_FAILURES):
        assert conformance_worker.tier_of(entry.id) in ("A", "B"), entry


def test_tests_that_never_met_the_loop_do_not_pass_for_it() -> None:
    met = [Result(f"test_streams.Tests.test_{n}", "passed", loops=1) for n in range(300)]
    missed = [Result(f"test_streams.Tests.test_{n}", "passed", loops=0) for n in range(300)]
    assert conformance.loops_were_made(met, "A") == []
    told = [fault.message for fault in conformance.loops_were_made(missed, "A")]
    assert told == [
        "test_streams.Tests: no test of it made a loop",
        "tier A: 0 tests made a loop, not 200 or more",
    ]


def test_a_report_holds_whatever_a_test_said(tmp_path: Path) -> None:
    report = tmp_path / "report.xml"
    said = Result("test_events.Tests.test_one", "failed", "a \x00 \x1b[31m \ud800 </failure> &")
    conformance.write_junit(report, [said])
    failure = ElementTree.parse(report).getroot().find("testcase/failure")
    assert failure is not None and failure.text == "a ? ?[31m ? </failure> &"
