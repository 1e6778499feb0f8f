"""Servers as processes of their own, each ended with whatever it started."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from asgi_checker import MARK

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[2]
REFERENCE = "uvicorn"
PATIENCE = 20.0


class Server:
    def __init__(self, kind: str, target: str = "app:app", **options: Any) -> None:
        self.kind = kind
        self.log: IO[bytes] = tempfile.TemporaryFile()
        path = os.pathsep.join(
            filter(None, [str(ROOT / "python"), str(HERE), os.environ.get("PYTHONPATH")])
        )
        self.process = subprocess.Popen(
            [sys.executable, str(HERE / "serve.py"), kind, target, json.dumps(options)],
            env=os.environ | {"PYTHONPATH": path, "PYTHONUNBUFFERED": "1", "PYTHONHASHSEED": "0"},
            cwd=HERE,
            stdin=subprocess.DEVNULL,
            stdout=self.log,
            stderr=self.log,
            start_new_session=True,
        )
        try:
            self.port = int(self.said(r"(?:^at |serving on http://127\.0\.0\.1:)(\d+)$")[1])
            self.wait_until_open()
        except BaseException:
            self.end()
            raise

    @property
    def output(self) -> str:
        return os.pread(self.log.fileno(), 16 << 20, 0).decode(errors="replace")

    def said(self, what: str, seconds: float = PATIENCE) -> re.Match[str]:
        """Waits until the output has that."""
        deadline = time.monotonic() + seconds
        while (found := re.search(what, self.output, re.MULTILINE)) is None:
            alive = self.process.poll() is None
            assert alive and time.monotonic() < deadline, f"{self.kind}: no {what}\n{self.output}"
            time.sleep(0.01)
        return found

    def wait_until_open(self) -> None:
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                self.connect().close()
                return
            except OSError:
                assert time.monotonic() < deadline, self.output
                time.sleep(0.02)

    def connect(self, seconds: float = 10) -> socket.socket:
        peer = socket.create_connection(("127.0.0.1", self.port), seconds)
        peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return peer

    @property
    def violations(self) -> list[str]:
        return [line for line in self.output.splitlines() if MARK in line]

    def stop(self) -> int:
        """Ends it as an operator does, and returns its exit code."""
        self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(15)
        finally:
            self.end()

    def end(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


Start = Callable[..., Server]
