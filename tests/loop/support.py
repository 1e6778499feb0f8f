"""What the tests of the event loop share: which loops there are, scripts in processes of their own, counting what is open.

The loop under test is chosen by name: "erlang", "asio" (ours in an io_context), "asyncio" (the standard loop, the
oracle) or "module:factory".
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import importlib
import os
import signal
import socket
import ssl
import struct
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any, TypeVar

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
KNOWN = {
    "erlang": "erlang_loop:ErlangEventLoop",
    "asio": "asio_loop:AsioLoop",
    "asyncio": "asyncio:SelectorEventLoop",
}

T = TypeVar("T")
LoopFactory = Callable[[], asyncio.AbstractEventLoop]


def factory_of(name: str) -> LoopFactory:
    module, _, attribute = KNOWN.get(name, name).partition(":")
    factory: LoopFactory = getattr(importlib.import_module(module), attribute)
    return factory


def run(
    loop_factory: LoopFactory, main: Callable[[], Coroutine[Any, Any, T]], *, debug: bool = False
) -> T:
    """asyncio.run(main(), loop_factory=loop_factory), which 3.11 does not have yet."""
    with asyncio.Runner(loop_factory=loop_factory, debug=debug) as runner:
        return runner.run(main())


async def until(condition: Callable[[], Any], seconds: float = 10) -> None:
    """Waits for a condition, and fails with its source line if it never holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"never held: {condition}"
        await asyncio.sleep(0.002)


def wait_for(condition: Callable[[], Any], seconds: float = 10) -> None:
    """The same for code that has no loop."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"never held: {condition}"
        time.sleep(0.002)


# ---------------------------------------------------------------------------------------------------------------------
# Programs of their own


def environment(loop: str = "erlang", **more: str) -> dict[str, str]:
    """The environment of a test's own process: our packages, this folder, and the loop that `new_loop()` makes there."""
    path = os.pathsep.join(
        filter(None, [str(ROOT / "python"), str(HERE), os.environ.get("PYTHONPATH")])
    )
    return os.environ | {"PYTHONPATH": path, "TEST_LOOP": loop, "PYTHONUNBUFFERED": "1"} | more


def new_loop() -> asyncio.AbstractEventLoop:
    """In a script: the loop its test is about."""
    return factory_of(os.environ["TEST_LOOP"])()


def start(code: str, loop: str, *arguments: str, **environ: str) -> subprocess.Popen[str]:
    """Starts a script in a process of its own, with its output and errors in pipes."""
    preamble = "import asyncio, os, signal, socket, sys, threading, time\nfrom support import *\n"
    return subprocess.Popen(
        [sys.executable, "-c", preamble + textwrap.dedent(code), *arguments],
        env=environment(loop, **environ),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def end(process: subprocess.Popen[str]) -> tuple[str, str]:
    """Kills a script and what it started, and returns what it had to say."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    return process.communicate()


def finish(process: subprocess.Popen[str], seconds: float = 30) -> subprocess.CompletedProcess[str]:
    """Waits for a script's end; one that does not end is killed and its test fails."""
    try:
        out, err = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        raise AssertionError(f"did not end in {seconds} s: {end(process)}") from None
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def script(
    code: str, loop: str, *arguments: str, seconds: float = 30, **environ: str
) -> subprocess.CompletedProcess[str]:
    return finish(start(code, loop, *arguments, **environ), seconds)


# ---------------------------------------------------------------------------------------------------------------------
# What is open


def open_fds() -> dict[int, str]:
    """This process's descriptors and what each one is."""
    found = {}
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # the one that reads the directory is gone by now
            found[int(name)] = os.readlink(f"/proc/self/fd/{name}")
    return found


def native_objects() -> dict[str, int]:
    """How many native objects of the loop's are alive, by kind; nothing where the loop cannot tell."""
    package = sys.modules.get("erlang_loop")
    count = getattr(package, "debug_counters", None)
    return dict(count()) if count else {}


class Belongings:
    """What a process has open at one moment, to be compared with what it has later."""

    def __init__(self) -> None:
        gc.collect()
        self.fds = open_fds()
        self.natives = native_objects()
        self.threads = set(threading.enumerate())

    def left_behind(self) -> list[str]:
        """What is there now and was not before, in words."""
        gc.collect()
        fds = open_fds()
        natives = native_objects()
        left = [f"descriptor {fd}: {fds[fd]}" for fd in sorted(fds.keys() - self.fds.keys())]
        left += [
            f"{count - self.natives.get(kind, 0):+d} {kind}"
            for kind, count in natives.items()
            if count > self.natives.get(kind, 0)
        ]
        left += [f"thread {thread.name}" for thread in set(threading.enumerate()) - self.threads]
        return left

    patience = 3.0  # seconds

    def expect_nothing_left(self, forget: Callable[[], None] = lambda: None) -> None:
        """Fails unless all that came has gone; threads that were told to end get a moment to do it."""
        deadline = time.monotonic() + self.patience
        forget()
        while left := self.left_behind():
            assert time.monotonic() < deadline, "left behind: " + "; ".join(left)
            time.sleep(0.01)
            forget()


# ---------------------------------------------------------------------------------------------------------------------
# Peers that are no part of any loop


def reset(sock: socket.socket) -> None:
    """Closes a TCP socket with a reset instead of an orderly end."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


@contextlib.contextmanager
def tcp_pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Two connected TCP sockets of the loopback interface."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        near = socket.create_connection(listener.getsockname())
        far, _ = listener.accept()
    with near, far:
        yield near, far


# ---------------------------------------------------------------------------------------------------------------------
# TLS


class Certificates:
    """A certificate authority of the test's own, and a certificate of localhost that it signed."""

    def __init__(self, directory: Path) -> None:
        self.authority = directory / "authority.pem"
        self.certificate = directory / "localhost.pem"
        self.key = directory / "localhost.key"
        authority_key = directory / "authority.key"
        request = directory / "localhost.csr"
        names = directory / "names"
        names.write_text(
            "subjectAltName=DNS:localhost,IP:127.0.0.1,IP:::1\n"
            "basicConstraints=critical,CA:FALSE\n"
            "keyUsage=critical,digitalSignature\n"
            "extendedKeyUsage=serverAuth,clientAuth\n"
            "subjectKeyIdentifier=hash\n"
            "authorityKeyIdentifier=keyid\n"
        )
        new_key = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes"
        for command in (
            f"req -x509 {new_key} -keyout {authority_key} -out {self.authority}"
            " -days 30 -subj /CN=authority -addext keyUsage=critical,keyCertSign,cRLSign",
            f"req {new_key} -keyout {self.key} -out {request} -subj /CN=localhost",
            f"x509 -req -in {request} -CA {self.authority} -CAkey {authority_key}"
            f" -set_serial 1 -days 30 -extfile {names} -out {self.certificate}",
        ):
            subprocess.run(["openssl", *command.split()], check=True, capture_output=True)

    def server(self) -> ssl.SSLContext:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(self.certificate, self.key)
        return context

    def client(self) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=str(self.authority))


# ---------------------------------------------------------------------------------------------------------------------
# Protocols


class Recorder(asyncio.Protocol):
    """A protocol that notes what happens to it."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport | None = None
        self.events: list[str] = []
        self.received = bytearray()
        self.error: Exception | None = None
        loop = asyncio.get_running_loop()
        self.connected: asyncio.Future[None] = loop.create_future()
        self.lost: asyncio.Future[None] = loop.create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.events.append("made")
        self.transport = transport  # type: ignore[assignment]
        self.connected.set_result(None)

    def data_received(self, data: bytes) -> None:
        self.events.append("data")
        self.received += data

    def eof_received(self) -> bool | None:
        self.events.append("eof")
        return None

    def pause_writing(self) -> None:
        self.events.append("pause")

    def resume_writing(self) -> None:
        self.events.append("resume")

    def connection_lost(self, error: Exception | None) -> None:
        self.events.append("lost")
        self.error = error
        self.transport = None
        self.lost.set_result(None)


class Echo(asyncio.Protocol):
    """Sends back what it gets."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: Any = transport

    def data_received(self, data: bytes) -> None:
        self.transport.write(data)


class Reports:
    """An exception handler that keeps what it is told, as strings: what is kept must not keep the failing objects."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.messages: list[str] = []
        self.errors: list[str] = []
        self.keys: list[set[str]] = []
        loop.set_exception_handler(self)

    def __call__(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        self.messages.append(context["message"])
        self.errors.append(repr(context.get("exception")))
        self.keys.append(set(context))


async def gone(*awaitables: Awaitable[Any]) -> None:
    """Cancels what is still running among the given tasks, and waits for all of them."""
    for one in awaitables:
        if isinstance(one, asyncio.Future):
            one.cancel()
    await asyncio.gather(*awaitables, return_exceptions=True)
