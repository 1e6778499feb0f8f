"""Runs one module of CPython's asyncio tests on a loop of our choice: the process that conformance.py starts.

    python3 -P tests/loop/conformance_worker.py MODULE LOOP TIERS EVENTS TIME_OUT

Standard input names the classes or tests to run as a JSON list (null: all of the tiers; []: list them and run none).
What happens is told line by line in the file EVENTS, as JSON, so that a test that hangs or takes the process with it
leaves its name behind. This file also says which tests there are to run and how the loop gets into them:

  - classes that make their loop in `create_event_loop` or `new_loop` get that method replaced;
  - everything else asks the default factory, so that is what we set: on the policy *class*, because every module
    resets the policy, and as `asyncio.EventLoop` where that exists (3.13).
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import faulthandler
import functools
import importlib
import json
import signal
import sys
import threading
import time
import unittest
from collections.abc import Callable, Container, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, TextIO

STANDARD_CLASS = "looks inside the standard loop's own class, or runs its methods over mocks"
OTHER_SELECTOR = "the tests of EPollEventLoopTests again, on another selector of the standard loop"
TEST_DOUBLE = "runs on the suite's own TestLoop, whatever the default loop is"
WINDOWS = "for Windows only"
NO_LOOP = "needs no event loop"

# What touches sockets, pipes, processes and TLS; all the rest is tier B.
TIER_A = (
    "test_buffered_proto",
    "test_events.EPollEventLoopTests",
    "test_sendfile",
    "test_server",
    "test_sock_lowlevel",
    "test_ssl",
    "test_sslproto.SelectorStartTLSTests",
    "test_streams",
    "test_subprocess",
    "test_unix_events.TestFunctional",
    "test_unix_events.TestFork",
)

# The loop is put in place of asyncio.SelectorEventLoop for these, on request only (--tiers W): they bind the standard
# class's private parts, so that a failure tells something about the inheritance and nothing about the interface.
WHITE_BOX = {
    "test_base_events.BaseEventLoopWithSelectorTests": STANDARD_CLASS,
    "test_unix_events.SelectorEventLoopSignalTests": STANDARD_CLASS,
    "test_unix_events.SelectorEventLoopUnixSocketTests": STANDARD_CLASS,
    "test_unix_events.SelectorEventLoopUnixSockSendfileTests": STANDARD_CLASS,
}

# Not run, and why. A class named in no list is run: what a new version of Python adds is in without being asked.
LEFT_OUT = WHITE_BOX | {
    "test_base_events.BaseEventTests": NO_LOOP,
    "test_base_events.BaseEventLoopTests": STANDARD_CLASS,
    "test_base_events.BaseLoopSockSendfileTests": STANDARD_CLASS,
    "test_base_events.TestSelectorUtils": NO_LOOP,
    "test_buffered_proto.BufferedProtocolProactorTests": WINDOWS,
    "test_events.PollEventLoopTests": OTHER_SELECTOR,
    "test_events.SelectEventLoopTests": OTHER_SELECTOR,
    "test_proactor_events": WINDOWS,
    "test_selector_events": STANDARD_CLASS,
    "test_sendfile.PollEventLoopTests": OTHER_SELECTOR,
    "test_sendfile.SelectEventLoopTests": OTHER_SELECTOR,
    "test_server.ProactorStartServerTests": WINDOWS,
    "test_sock_lowlevel.PollEventLoopTests": OTHER_SELECTOR,
    "test_sock_lowlevel.SelectEventLoopTests": OTHER_SELECTOR,
    "test_sslproto.ProactorStartTLSTests": WINDOWS,
    "test_subprocess.MultiLoopChildWatcherTests": NO_LOOP,
    "test_subprocess.SubprocessTransportTests": TEST_DOUBLE,
    "test_unix_events.AbstractChildWatcherTests": NO_LOOP,
    "test_unix_events.BaseChildWatcherTests": NO_LOOP,
    "test_unix_events.FastChildWatcherTests": TEST_DOUBLE,
    "test_unix_events.SafeChildWatcherTests": TEST_DOUBLE,
    "test_unix_events.UnixReadPipeTransportTests": TEST_DOUBLE,
    "test_unix_events.UnixWritePipeTransportTests": TEST_DOUBLE,
    "test_windows_events": WINDOWS,
    "test_windows_utils": WINDOWS,
}

PR_SET_PDEATHSIG = 1
LoopClass = type[asyncio.AbstractEventLoop]


def within(name: str, names: Container[str]) -> bool:
    """Whether this module, class or test is named there, or one that it belongs to."""
    parts = name.split(".")
    return any(".".join(parts[:length]) in names for length in range(1, len(parts) + 1))


def tier_of(name: str) -> str | None:
    """The tier of a class or test: "A", "B", "W" for white-box ones, None for those that never run."""
    if within(name, WHITE_BOX):
        return "W"
    if within(name, LEFT_OUT):
        return None
    return "A" if within(name, TIER_A) else "B"


def short_id(test: unittest.TestCase) -> str:
    return test.id().removeprefix("test.test_asyncio.")


# ---------------------------------------------------------------------------------------------------------------------
# Putting the loop in


KNOWN = {
    "asyncio": "asyncio:SelectorEventLoop",
    "erlang": "erlang_loop:ErlangEventLoop",
    "erlang-asio": "erlang_loop:ErlangEventLoop",
    "uvloop": "uvloop:Loop",
}


def loop_class(name: str) -> LoopClass:
    module, _, attribute = KNOWN.get(name, name).partition(":")
    found: LoopClass = getattr(importlib.import_module(module), attribute)
    return driven_by_asio(found) if name == "erlang-asio" else found


def driven_by_asio(loop: Any) -> LoopClass:
    """The loop that waits in an Asio io_context, where nobody asks for it in particular."""

    class OnAsio(loop):  # type: ignore[misc]
        def __new__(cls) -> Any:
            return super().__new__(cls, driver="asio")

        def __init__(self) -> None:
            super().__init__(driver="asio")

    return OnAsio


class Counter:
    """How many loops have been made: a test that makes none says nothing about the loop."""

    made = 0


def count_loops(loop: LoopClass) -> None:
    construct: Callable[..., None] = loop.__init__

    @functools.wraps(construct)
    def __init__(self: object, *args: Any, **kwargs: Any) -> None:
        Counter.made += 1
        construct(self, *args, **kwargs)

    setattr(loop, "__init__", __init__)


def set_default_factory(loop: LoopClass) -> None:
    """Every way to ask asyncio for a loop without naming a class, on this version, now makes ours."""
    unix_events = importlib.import_module("asyncio.unix_events")
    policies = [found for found in vars(unix_events).values() if "_loop_factory" in vars_of(found)]
    for policy in policies:
        policy._loop_factory = loop
    if hasattr(asyncio, "EventLoop"):
        setattr(asyncio, "EventLoop", loop)
        setattr(unix_events, "EventLoop", loop)
    if not policies:
        for module in (asyncio, asyncio.events):
            setattr(module, "new_event_loop", lambda: loop())


def vars_of(found: object) -> dict[str, Any]:
    return dict(vars(found)) if isinstance(found, type) else {}


def inject(module: ModuleType, loop: LoopClass) -> None:
    def make(_test: unittest.TestCase) -> asyncio.AbstractEventLoop:
        return loop()

    for name, found in list(vars(module).items()):
        if isinstance(found, type) and issubclass(found, unittest.TestCase):
            if tier_of(f"{module.__name__.rpartition('.')[2]}.{name}") == "A":
                for hook in ("create_event_loop", "new_loop"):
                    if hasattr(found, hook):
                        setattr(found, hook, make)


def spare_private_attributes(loop: LoopClass) -> None:
    """The suite's clean-up reads `loop._default_executor`, which only heirs of the standard class have."""
    if issubclass(loop, asyncio.BaseEventLoop):
        return
    utils = importlib.import_module("test.test_asyncio.utils")

    def close_loop(loop: asyncio.AbstractEventLoop) -> None:
        if not loop.is_closed():
            with contextlib.suppress(
                Exception
            ):  # some tests leave a loop with broken methods behind
                loop.run_until_complete(loop.shutdown_default_executor())
        loop.close()

    utils.TestCase.close_loop = staticmethod(close_loop)


# ---------------------------------------------------------------------------------------------------------------------
# Running and telling


class Events(unittest.TestResult):
    """A TestResult that writes each thing down as it happens."""

    def __init__(self, output: TextIO, time_out: float) -> None:
        super().__init__()
        self.output = output
        self.time_out = time_out
        self.verdict = "passed"
        self.message = ""
        self.began = 0.0
        self.made = 0

    def tell(self, event: str, **fields: Any) -> None:
        self.output.write(json.dumps({"event": event} | fields) + "\n")
        self.output.flush()

    def startTest(self, test: unittest.TestCase) -> None:
        super().startTest(test)
        self.verdict, self.message = "passed", ""
        self.made, self.began = Counter.made, time.monotonic()
        self.tell("start", id=short_id(test))
        print(f"--- {short_id(test)}", file=sys.stderr, flush=True)
        faulthandler.dump_traceback_later(self.time_out)

    def stopTest(self, test: unittest.TestCase) -> None:
        faulthandler.cancel_dump_traceback_later()
        took = time.monotonic() - self.began
        self.tell(
            "stop",
            id=short_id(test),
            verdict=self.verdict,
            message=self.message,
            seconds=round(took, 3),
            loops=Counter.made - self.made,
        )
        super().stopTest(test)

    def conclude(self, verdict: str, message: str) -> None:
        """The worst of what happened counts, and all of it is told: sub-tests fail one by one."""
        ranks = ("passed", "skipped", "failed")
        self.verdict = max(self.verdict, verdict, key=ranks.index)
        self.message = "\n".join(filter(None, [self.message, message]))

    def stray(self, message: str) -> None:
        """An exception that nobody caught: in a destructor, or in a thread."""
        print(message, file=sys.stderr, flush=True)
        self.conclude("failed", message)

    def addFailure(self, test: unittest.TestCase, err: Any) -> None:
        super().addFailure(test, err)
        self.fault(test, self.failures[-1][1])

    def addError(self, test: unittest.TestCase, err: Any) -> None:
        super().addError(test, err)
        self.fault(test, self.errors[-1][1])

    def fault(self, test: unittest.TestCase, trace: str) -> None:
        if isinstance(test, unittest.TestCase):
            self.conclude("failed", trace)
        else:  # setUpClass or setUpModule: the tests below it will not run
            self.tell("fixture", id=short_id(test), verdict="failed", message=trace)

    def addSubTest(self, test: unittest.TestCase, subtest: unittest.TestCase, err: Any) -> None:
        super().addSubTest(test, subtest, err)
        if err is not None:
            trace = (self.failures + self.errors)[-1][1]
            self.conclude("failed", f"{subtest}\n{trace}")

    def addSkip(self, test: unittest.TestCase, reason: str) -> None:
        super().addSkip(test, reason)
        if isinstance(test, unittest.TestCase):
            self.conclude("skipped", reason)
        else:
            self.tell("fixture", id=short_id(test), verdict="skipped", message=reason)

    def addUnexpectedSuccess(self, test: unittest.TestCase) -> None:
        super().addUnexpectedSuccess(test)
        self.conclude("failed", "expected to fail, and passed")


def flat(suite: unittest.TestSuite) -> Iterator[unittest.TestCase]:
    for test in suite:
        if isinstance(test, unittest.TestSuite):
            yield from flat(test)
        else:
            yield test


@contextlib.contextmanager
def told_of_strays(events: Events) -> Iterator[None]:
    def unraisable(stray: Any) -> None:
        where = stray.err_msg or "Exception ignored in"
        events.stray(f"{where}: {stray.object!r}: {stray.exc_type.__name__}: {stray.exc_value}")

    def in_thread(stray: threading.ExceptHookArgs) -> None:
        events.stray(f"in a thread: {stray.exc_type.__name__}: {stray.exc_value}")

    hooks = sys.unraisablehook, threading.excepthook
    sys.unraisablehook, threading.excepthook = unraisable, in_thread
    try:
        yield
    finally:
        sys.unraisablehook, threading.excepthook = hooks


def main(module_name: str, loop_name: str, tiers: str, events_path: str, time_out: str) -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    # A shell starts background jobs with SIGINT ignored, and tests send it to themselves.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    faulthandler.enable()
    loop = loop_class(loop_name)
    count_loops(loop)
    set_default_factory(loop)
    if tiers == "W":
        setattr(asyncio, "SelectorEventLoop", loop)
    spare_private_attributes(loop)
    module = importlib.import_module(f"test.test_asyncio.{module_name}")
    inject(module, loop)
    with Path(events_path).open("w") as output:
        run(module, tiers, json.load(sys.stdin), Events(output, float(time_out)))


def run(module: ModuleType, tiers: str, only: list[str] | None, events: Events) -> None:
    found = list(flat(unittest.defaultTestLoader.loadTestsFromModule(module)))
    tests = [test for test in found if (tier_of(short_id(test)) or "none") in tiers]
    tests = [test for test in tests if not only or within(short_id(test), frozenset(only))]
    events.tell("plan", tests=[short_id(test) for test in tests])
    if only != []:
        with told_of_strays(events):
            unittest.TestSuite(tests).run(events)
    events.tell("done")


if __name__ == "__main__":
    main(*sys.argv[1:])
