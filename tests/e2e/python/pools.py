"""What pool_SUITE calls: functions that leave a line on disk for each time they were run.

A line outlives the node, which may be killed the moment after.
"""

from __future__ import annotations

import os
import time

import erlang

_files: dict[str, int] = {}


def _note(directory: str, token: str) -> None:
    if directory not in _files:
        path = os.path.join(directory, f"{os.getpid()}.runs")
        _files[directory] = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(_files[directory], f"{token}\n".encode())


def work(directory: str, token: str, seconds: float) -> str:
    """Note that this was run, take so long, and return the token."""
    _note(directory, token)
    time.sleep(seconds)
    return token


def place() -> str:
    """The node that runs this."""
    return erlang.Atom(erlang.node())


def place_after(seconds: float) -> str:
    time.sleep(seconds)
    return place()
