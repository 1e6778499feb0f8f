"""The Python side of the web server: applications, lifespan, the WSGI adapter, sockets. No third-party packages.

What needs a framework is in tests/web/apps, which runs in the environment of tests/run/venv.
"""

from __future__ import annotations

import gc
import importlib.util
import os
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

HERE = Path(__file__).parent
for path in (HERE, HERE.parents[1] / "python"):
    if str(path) not in sys.path:
        sys.path.insert(0, str(path))

collect_ignore_glob = [] if importlib.util.find_spec("starlette") else ["apps/*"]
SECONDS = 30.0 + float(os.environ.get("WEB_SECONDS", "5"))  # for one test; see test_load.py


def late(*_: object) -> None:
    raise TimeoutError(f"the test did not end in {SECONDS} s")


@pytest.fixture(autouse=True)
def a_hang_is_a_failure() -> Iterator[None]:
    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture(autouse=True)
def no_descriptor_and_no_thread_is_left_behind() -> Iterator[None]:
    files, threads = len(os.listdir("/proc/self/fd")), set(threading.enumerate())
    yield
    for thread in set(threading.enumerate()) - threads:
        thread.join(5)
        assert not thread.is_alive(), f"{thread.name} still runs"
    gc.collect()  # what frameworks leave in circles
    assert len(os.listdir("/proc/self/fd")) <= files
