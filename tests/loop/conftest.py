"""Every test here runs on ErlangEventLoop and, where both must do the same, on the standard loop, which is the oracle.

    pytest tests/loop                               both loops
    pytest tests/loop --loops asyncio               only the oracle
    pytest tests/loop --loops asyncio,uvloop:new_event_loop

After every test there must be no more descriptors, threads and native objects of the loop than before it.
"""

from __future__ import annotations

import asyncio
import faulthandler
import gc
import importlib.util
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
import support  # noqa: E402
from support import LoopFactory  # noqa: E402

if str(support.ROOT / "python") not in sys.path:
    sys.path.insert(0, str(support.ROOT / "python"))
os.environ["PYTHONPATH"] = support.environment()["PYTHONPATH"]

# The frameworks are in an environment of their own (tests/run/venv), whose interpreter runs that folder.
collect_ignore_glob = [] if importlib.util.find_spec("uvicorn") else ["apps/*"]
SECONDS = float(os.environ.get("LOOP_TEST_SECONDS", "30"))  # for one test


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--loops", default="erlang,asyncio", help="names, or module:factory")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    names = metafunc.config.getoption("--loops").split(",")
    if "loop_name" in metafunc.fixturenames:
        metafunc.parametrize("loop_name", names)
    elif "our_loop" in metafunc.fixturenames:  # what only our loop has or promises
        metafunc.parametrize("our_loop", [name for name in names if name != "asyncio"])


def pytest_collection_finish() -> None:
    gc.collect()
    gc.freeze()  # the many collections below then look at little more than what the tests made


@pytest.fixture
def loop_factory(loop_name: str) -> LoopFactory:
    return support.factory_of(loop_name)


@pytest.fixture
def our_factory(our_loop: str) -> LoopFactory:
    return support.factory_of(our_loop)


@pytest.fixture
def loop(loop_factory: LoopFactory) -> Iterator[asyncio.AbstractEventLoop]:
    """A loop that nothing else has or sets, for tests that run it themselves; closed when the test is over."""
    made = loop_factory()
    yield made
    if not made.is_closed():
        made.run_until_complete(made.shutdown_default_executor())
        made.close()


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> support.Certificates:
    return support.Certificates(tmp_path_factory.mktemp("certificates"))


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    outcome = yield
    report = outcome.get_result()  # type: ignore[attr-defined]
    if report.when == "call":
        item.stash[PASSED] = report.passed


PASSED = pytest.StashKey[bool]()


def late(*_: object) -> None:
    raise TimeoutError(f"the test did not end in {SECONDS} s")


@pytest.fixture(autouse=True)
def a_hang_is_a_failure() -> Iterator[None]:
    """SIGALRM, which no test uses, interrupts whatever waits."""
    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture(scope="module", autouse=True)
def a_hang_that_nothing_interrupts_ends_the_run() -> Iterator[None]:
    faulthandler.dump_traceback_later(10 * SECONDS, exit=True)
    yield
    faulthandler.cancel_dump_traceback_later()


@pytest.fixture(autouse=True)
def nothing_is_left_behind(
    request: pytest.FixtureRequest, caplog: pytest.LogCaptureFixture
) -> Iterator[None]:
    before = support.Belongings()
    yield
    logging_plugin = request.config.pluginmanager.get_plugin("logging-plugin")

    def forget() -> None:
        """What pytest itself keeps: values of fixtures, and records of the log with the frames of their exceptions."""
        request.node.funcargs.clear()
        for when in ("setup", "call", "teardown"):
            caplog.get_records(when).clear()
        logging_plugin.report_handler.records.clear()

    if request.node.stash.get(PASSED, False):  # a failure's traceback keeps whatever it met
        before.expect_nothing_left(forget)
