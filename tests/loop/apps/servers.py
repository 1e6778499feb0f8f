"""Servers as processes of their own, and a tap that shows what goes over the wire to them."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import support

HERE = Path(__file__).resolve().parent
OURS = "ErlangEventLoop"


class Server:
    """A program that serves until it is told to end; its output says where."""

    def __init__(self, *command: str, where: str = r"unning on \S*?:(\d+)\b") -> None:
        self.process = subprocess.Popen(
            [sys.executable, *command],
            env=support.environment(),
            cwd=HERE,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self.lines: list[str] = []
        self.reader = threading.Thread(target=self.read)
        self.reader.start()
        try:
            found = self.said(where)
            self.port = int(found[1]) if found.groups() else 0
        except BaseException:
            self.end()
            raise

    def read(self) -> None:
        assert self.process.stdout
        for line in self.process.stdout:
            self.lines.append(line.rstrip("\n"))

    @property
    def output(self) -> str:
        return "\n".join(self.lines)

    def said(self, pattern: str, seconds: float = 15) -> re.Match[str]:
        """Waits until the output has that."""
        deadline = time.monotonic() + seconds
        while (found := re.search(pattern, self.output)) is None:
            assert time.monotonic() < deadline and self.reader.is_alive(), self.output
            time.sleep(0.01)
        return found

    def stop(self, how: int = signal.SIGTERM) -> int:
        """Ends it as an operator does, and returns its exit code."""
        self.process.send_signal(how)
        try:
            return self.process.wait(15)
        finally:
            self.end()

    def end(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)  # with its workers
        self.process.wait()
        self.reader.join()
        assert self.process.stdout
        self.process.stdout.close()

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()


class Tap:
    """Forwards connections to a port and keeps every byte that passes, in each direction."""

    def __init__(self, port: int) -> None:
        self.target = port
        self.up = bytearray()  # from clients
        self.down = bytearray()  # to clients
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.threads = [threading.Thread(target=self.accept)]
        self.threads[0].start()

    def accept(self) -> None:
        while True:
            try:
                client, _ = self.listener.accept()
            except OSError:
                return
            server = socket.create_connection(("127.0.0.1", self.target))
            ends = [(client, server, self.up), (server, client, self.down)]
            threads = [threading.Thread(target=self.forward, args=end) for end in ends]
            self.threads += threads
            for thread in threads:
                thread.start()

    def forward(self, source: socket.socket, sink: socket.socket, kept: bytearray) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                kept += data
                sink.sendall(data)
        with contextlib.suppress(OSError):
            sink.shutdown(socket.SHUT_WR)
        if kept is self.down:  # the last to end: servers close after their clients
            self.threads[self.threads.index(threading.current_thread()) - 1].join(10)
            source.close()
            sink.close()

    def __enter__(self) -> Tap:
        return self

    def __exit__(self, *_: object) -> None:
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        for thread in self.threads:
            thread.join(10)
            assert not thread.is_alive()


def tls_records(data: bytes) -> list[int]:
    """The types of the TLS records that this is, to its last byte; fails where it is something else."""
    types = []
    at = 0
    while at < len(data):
        kind, major, size = data[at], data[at + 1], int.from_bytes(data[at + 3 : at + 5], "big")
        assert kind in (20, 21, 22, 23) and major == 3 and size <= (1 << 14) + 256, data[
            at : at + 20
        ]
        types.append(kind)
        at += 5 + size
    assert at == len(data)
    return types


@contextlib.contextmanager
def uvicorn(*options: str) -> Iterator[Server]:
    """uvicorn's own program on our loop, chosen by its own option."""
    command = ("-m", "uvicorn", "asgi_app:app", "--port", "0", "--no-use-colors")
    with Server(*command, "--loop", "erlang_loop:new_event_loop", *options) as server:
        yield server
