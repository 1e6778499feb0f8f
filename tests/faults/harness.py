"""What the fault scripts are made of: hosts, port mappers, BEAMs that watch, nodes and their metrics.

    world ──▶ host ──▶ epmd, node (sidewinder), beam (erl with watcher.erl)

A host is the loopback with a port mapper of its own, or a network namespace that is a machine of its own but for the
kernel. Whatever a script starts ends with it, however it ends. Only the standard library is used.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import enum
import os
import pathlib
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import IO, NoReturn, TypeVar

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent.parent
BIN = os.environ.get("SIDEWINDER_BIN", str(ROOT / "build" / "sidewinder"))
APPLICATION = ROOT / "_build/default/lib/sidewinder/ebin"
PATIENCE = 30.0  # seconds; met only by a failure
NOT_HERE = 77  # exit code of a script that needs what this machine lacks
NETWORK = "198.18.0"  # of the range that is set aside for benchmarks: routed nowhere
CLONE_NEWNET = 0x40000000

Value = TypeVar("Value")


class Failure(Exception):
    """The node did not do what the row says."""


class Lacking(Exception):
    """This machine cannot run the row."""


class Needs(enum.Enum):
    LOOPBACK = "nothing"
    ROOT = "root: network namespaces"
    FAKETIME = "libfaketime"
    CGROUP = "root: a memory cgroup"


@dataclasses.dataclass(frozen=True)
class Row:
    """One row of the fault table."""

    number: int
    fault: str
    expected: str
    needs: Needs = Needs.LOOPBACK
    quick: bool = True  # runs with `make test`
    limit: float = 180.0  # seconds it may take


# ---------------------------------------------------------------------------------------------------------------------
# Saying what should be


def expect(condition: object, what: str) -> None:
    if not condition:
        raise Failure(what)


def equal(actual: object, wanted: object, what: str) -> None:
    if actual != wanted:
        raise Failure(f"{what}: {actual!r}, not {wanted!r}")


def at_most(actual: float, limit: float, what: str) -> None:
    if actual > limit:
        raise Failure(f"{what}: {actual:.3f}, which is over {limit}")


def until(what: str, probe: Callable[[], object], seconds: float = PATIENCE) -> float:
    """Waits until the probe says something true. Returns how long that took."""
    began = time.monotonic()
    while True:
        last = probe()
        passed = time.monotonic() - began
        if last:
            return passed
        if passed > seconds:
            raise Failure(f"{what}: not within {seconds} s")
        time.sleep(0.01)


def text_of(seconds: float) -> str:
    """A time as the tables show it."""
    return f"{seconds * 1000:.1f} ms" if seconds < 0.1 else f"{seconds:.2f} s"


# ---------------------------------------------------------------------------------------------------------------------
# Programs


class Program:
    """A process of a script, with its output in a file and its end known."""

    def __init__(self, host: Host, name: str, command: Sequence[str], env: dict[str, str]) -> None:
        self.name = name
        self.log_path = host.world.folder / f"{name}.log"
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                [*host.prefix, *command],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=env,
                start_new_session=True,
            )
        host.world.stack.callback(self.kill)

    @property
    def pid(self) -> int:
        return self.process.pid

    def log(self) -> str:
        return self.log_path.read_text(errors="replace")

    def wait_line(self, pattern: str, seconds: float = PATIENCE) -> re.Match[str]:
        """The first line, logged already or not yet, that matches."""
        deadline = time.monotonic() + seconds
        while True:
            found = re.search(pattern, self.log())
            if found:
                return found
            if self.process.poll() is not None or time.monotonic() > deadline:
                tail = "\n".join(self.log().splitlines()[-15:])
                raise Failure(f"{self.name} does not say {pattern!r} but\n{tail}")
            time.sleep(0.01)

    def lines(self, pattern: str) -> int:
        return len(re.findall(pattern, self.log()))

    def send(self, number: signal.Signals) -> float:
        """Sends a signal, and says when."""
        at = time.monotonic()
        self.process.send_signal(number)
        return at

    def alive(self) -> bool:
        return self.process.poll() is None

    def wait(self, seconds: float = PATIENCE) -> int:
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise Failure(f"{self.name} does not end within {seconds} s") from None

    def kill(self) -> float:
        at = time.monotonic()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        if self.process.stdin:
            with contextlib.suppress(OSError):
                self.process.stdin.close()
        return at

    def status(self, key: str) -> int:
        """A line of /proc/PID/status: VmRSS in kB, Threads."""
        text = pathlib.Path(f"/proc/{self.pid}/status").read_text()
        found = re.search(rf"^{key}:\s+(\d+)", text, re.MULTILINE)
        if not found:
            raise Failure(f"{self.name} has no {key}")
        return int(found[1])

    def state(self) -> str:
        """T: every thread is stopped."""
        tasks = pathlib.Path(f"/proc/{self.pid}/task").glob("*/stat")
        return "".join(sorted({task.read_text().rsplit(")", 1)[1].split()[0] for task in tasks}))

    def cpu_seconds(self) -> float:
        fields = pathlib.Path(f"/proc/{self.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def descriptors(self) -> int:
        return len(os.listdir(f"/proc/{self.pid}/fd"))


class Node(Program):
    """A sidewinder, and what its admin port says of it."""

    def __init__(
        self,
        host: Host,
        name: str,
        options: Sequence[str] = (),
        env: dict[str, str] | None = None,
        cookie: pathlib.Path | None = None,
        command: Sequence[str] = (),
    ) -> None:
        self.host = host
        self.node = f"{name}@{host.address}"
        arguments = [*command, BIN, "--name", self.node, "--admin", f"{host.address}:0"]
        arguments += ["--cookie-file", str(cookie or host.world.cookie_file)]
        arguments += ["--path", str(HERE), "--import", "faulty", *options]
        ours = {"SIDEWINDER_STOP_ON_STDIN_EOF": "1"} | (env or {})
        super().__init__(host, f"{name}-{secrets.token_hex(2)}", arguments, host.env() | ours)
        self.admin = 0

    def __str__(self) -> str:
        return f"'{self.node}'"

    def started(self) -> Node:
        """Waits for the admin port."""
        self.admin = int(self.wait_line(r"admin: listening on port (\d+)")[1])
        return self

    def registered(self) -> Node:
        self.started().wait_line(r"(?m)^\S+ info registered with epmd")
        return self

    @property
    def port(self) -> int:
        return int(self.wait_line(r"listening on [0-9.]+ port (\d+)")[1])

    def get(self, path: str, seconds: float = 5.0) -> tuple[int, str]:
        """What the admin port answers."""
        with self.host.connect(self.admin, seconds) as connection:
            connection.sendall(
                f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode()
            )
            answer = b""
            while part := connection.recv(65536):
                answer += part
        head, _, body = answer.partition(b"\r\n\r\n")
        return int(head.split()[1]), body.decode()

    def ready(self) -> bool:
        return self.get("/readyz")[0] == 200

    def live(self) -> bool:
        return self.get("/livez")[0] == 200

    def metrics(self) -> dict[str, float]:
        status, body = self.get("/metrics")
        equal(status, 200, "GET /metrics")
        return {
            name: float(value)
            for name, _, value in (line.rpartition(" ") for line in body.splitlines())
            if name and not name.startswith("#")
        }

    def peers(self) -> int:
        """Links that are up."""
        return int(self.metrics()['sidewinder_peers{state="up"}'])

    def metric(self, name: str) -> float:
        """One sample, or the sum of all that have the name and labels."""
        samples = self.metrics()
        wanted = f"sidewinder_{name}"
        if wanted in samples:
            return samples[wanted]
        labelled = [value for key, value in samples.items() if key.startswith(f"{wanted}{{")]
        expect(labelled, f"there is no metric {wanted}")
        return sum(labelled)


@dataclasses.dataclass(frozen=True)
class Answer:
    """What an expression came to, and how long the BEAM took for it."""

    raised: bool
    text: str
    began: float
    ended: float

    @property
    def took(self) -> float:
        return self.ended - self.began

    def is_(self, wanted: str) -> Answer:
        equal((self.raised, self.text), (False, wanted), "the answer")
        return self

    def like(self, pattern: str) -> Answer:
        expect(re.search(pattern, self.text), f"the answer {self.text!r} is not like {pattern!r}")
        return self


class Pending:
    """An expression that a BEAM evaluates; called, it waits for what the expression comes to."""

    def __init__(self, beam: Beam, number: int, expression: str) -> None:
        self.beam = beam
        self.expression = expression
        self.pattern = re.compile(rf"(?m)^(done|raised) {number} (\d+) (\d+) (.*)$")

    def over(self) -> bool:
        return self.pattern.search(self.beam.log()) is not None

    def __call__(self, seconds: float = PATIENCE) -> Answer:
        deadline = time.monotonic() + seconds
        while True:
            found = self.pattern.search(self.beam.log())
            if found:
                began, ended = int(found[2]) / 1e9, int(found[3]) / 1e9
                return Answer(found[1] == "raised", found[4], began, ended)
            if not self.beam.alive():
                raise Failure(f"{self.beam.name} ended:\n{self.beam.log()[-1500:]}")
            if time.monotonic() > deadline:
                raise Failure(f"no answer within {seconds} s to {self.expression}")
            time.sleep(0.005)


@dataclasses.dataclass(frozen=True)
class Event:
    at: float
    kind: str
    node: str
    reason: str


class Beam(Program):
    """An erl that evaluates expressions and sees nodes come and go."""

    def __init__(
        self,
        host: Host,
        name: str,
        ticktime: int = 8,
        application: bool = False,
        cookie: str | None = None,
        options: Sequence[str] = (),
        domain: str | None = None,
    ) -> None:
        self.node = f"{name}@{domain or host.address}"
        home = host.world.folder / f"home-{name}-{secrets.token_hex(2)}"
        home.mkdir()
        secret = home / ".erlang.cookie"
        secret.write_text(cookie or host.world.cookie)
        secret.chmod(0o400)
        command = ["erl", "-noshell", "-name", self.node, "-pa", str(host.world.code)]
        command += ["-pa", str(APPLICATION)] if application else []
        command += ["-connect_all", "false", "-kernel", "net_ticktime", str(ticktime), *options]
        command += ["-run", "watcher", "main"]
        env = host.env() | {"HOME": str(home)}
        super().__init__(host, f"{name}-{secrets.token_hex(2)}", command, env)
        self._next = 0
        self.erlang_pid = int(self.wait_line(r"(?m)^ready (\d+)$")[1])
        if application:
            self.ask("{ok, _} = application:ensure_all_started(sidewinder), ok").is_("ok")

    def begin(self, expression: str) -> Pending:
        """Has an expression evaluated by a process of its own."""
        self._next += 1
        assert self.process.stdin is not None and "\n" not in expression
        self.process.stdin.write(f"{self._next} {expression.rstrip('.')}.\n".encode())
        self.process.stdin.flush()
        return Pending(self, self._next, expression)

    def ask(self, expression: str, seconds: float = PATIENCE) -> Answer:
        return self.begin(expression)(seconds)

    def ping(self, node: Node | Beam, wanted: str = "pong") -> Answer:
        return self.ask(f"net_adm:ping('{node.node}')").is_(wanted)

    def seen(self, kind: str, node: Node | Beam, since: float = 0.0) -> Event | None:
        for at, how, name, reason in re.findall(
            r"(?m)^event (\d+) (up|down) (\S+) (.*)$", self.log()
        ):
            if how == kind and name == node.node and int(at) / 1e9 >= since:
                return Event(int(at) / 1e9, how, name, reason)
        return None

    def sees(self, kind: str, node: Node | Beam, since: float, seconds: float = PATIENCE) -> Event:
        """The first such event after `since`."""
        until(f"{self.name} sees {node.node} {kind}", lambda: self.seen(kind, node, since), seconds)
        event = self.seen(kind, node, since)
        assert event is not None
        return event


# ---------------------------------------------------------------------------------------------------------------------
# Hosts


class Host:
    """Where programs run: an address, a port mapper, and the commands that put a program there."""

    def __init__(self, world: World, address: str, epmd_port: int, prefix: Sequence[str]) -> None:
        self.world = world
        self.address = address
        self.epmd_port = epmd_port
        self.prefix = list(prefix)
        self.epmd: Program | None = None

    def env(self) -> dict[str, str]:
        kept = {
            k: v
            for k, v in os.environ.items()
            if not k.startswith(("SIDEWINDER_", "ERL_", "RELEASE_"))
        }
        return kept | {"ERL_EPMD_PORT": str(self.epmd_port), "ERL_EPMD_ADDRESS": self.address}

    def start_epmd(self) -> Program:
        command = [epmd_program(), "-port", str(self.epmd_port), "-address", self.address]
        self.epmd = Program(self, f"epmd-{secrets.token_hex(2)}", command, self.env())
        until("epmd listens", lambda: self.reachable(self.epmd_port))
        return self.epmd

    def reachable(self, port: int) -> bool:
        with contextlib.suppress(OSError):
            self.connect(port, 1.0).close()
            return True
        return False

    def connect(self, port: int, seconds: float = 5.0) -> socket.socket:
        """A connection that comes from this very host."""
        return self.inside(lambda: socket.create_connection((self.address, port), seconds))

    def inside(self, work: Callable[[], Value]) -> Value:
        return work()

    def node(
        self, name: str | None = None, *options: str, ticktime: int = 8, **more: object
    ) -> Node:
        """A node that has its admin port open and is registered."""
        return self.start_node(name, *options, ticktime=ticktime, **more).registered()

    def start_node(
        self, name: str | None = None, *options: str, ticktime: int = 8, **more: object
    ) -> Node:
        chosen = ["--ticktime", str(ticktime), *options]
        return Node(self, name or f"py{secrets.token_hex(3)}", chosen, **more)  # type: ignore[arg-type]

    def beam(self, name: str | None = None, **more: object) -> Beam:
        return Beam(self, name or f"beam{secrets.token_hex(3)}", **more)  # type: ignore[arg-type]


class Namespace(Host):
    """A host of its own: its own interfaces, its own loopback, its own firewall; a veth to a switch between all."""

    def __init__(self, world: World, number: int, resolver: str | None = None) -> None:
        self.namespace = f"{world.prefix}-h{number}"
        super().__init__(
            world, f"{NETWORK}.{number}", 4369, ["ip", "netns", "exec", self.namespace]
        )
        switch = f"{world.prefix}-sw"
        if number == 1:
            world.make_namespace(switch)
            ip("-n", switch, "link", "add", "br0", "type", "bridge")
            ip("-n", switch, "link", "set", "br0", "up")
        if resolver is not None:
            self.name_server(resolver)
        self.port = f"p{number}"
        world.make_namespace(self.namespace)
        ip("link", "add", "eth0", "netns", self.namespace, "type", "veth",
           "peer", "name", self.port, "netns", switch)  # fmt: skip
        ip("-n", switch, "link", "set", self.port, "master", "br0", "up")
        ip("-n", self.namespace, "link", "set", "lo", "up")
        ip("-n", self.namespace, "addr", "add", f"{self.address}/24", "dev", "eth0")
        ip("-n", self.namespace, "link", "set", "eth0", "up")

    def inside(self, work: Callable[[], Value]) -> Value:
        """Runs a function in a thread that has moved into the namespace: what it opens stays there."""
        results: list[Value] = []
        errors: list[BaseException] = []

        def body() -> None:
            try:
                with open(f"/run/netns/{self.namespace}") as namespace:
                    libc = ctypes.CDLL(None, use_errno=True)
                    if libc.setns(namespace.fileno(), CLONE_NEWNET) != 0:
                        raise OSError(ctypes.get_errno(), "setns")
                results.append(work())
            except BaseException as error:  # handed to the caller
                errors.append(error)

        thread = threading.Thread(target=body)
        thread.start()
        thread.join()
        if errors:
            raise errors[0]
        return results[0]

    def name_server(self, address: str) -> None:
        """A resolv.conf and a hosts file of its own, which its programs see."""
        folder = pathlib.Path("/etc/netns") / self.namespace
        folder.mkdir(parents=True)
        self.world.stack.callback(shutil.rmtree, folder)
        (folder / "resolv.conf").write_text(f"nameserver {address}\n")
        self.hosts = folder / "hosts"
        self.hosts.write_text("127.0.0.1 localhost\n")

    def command(self, *arguments: str) -> None:
        done = subprocess.run([*self.prefix, *arguments], capture_output=True, text=True)
        equal((done.returncode, done.stderr), (0, ""), " ".join(arguments))

    def cut(self, directions: Sequence[str] = ("input", "output")) -> float:
        """Drops every packet of these directions, without a word to anybody."""
        self.command("nft", "add", "table", "inet", "fault")
        for hook in directions:
            chain = f"{{ type filter hook {hook} priority 0; policy accept; }}"
            self.command("nft", "add", "chain", "inet", "fault", hook, chain)
            interface = "iifname" if hook == "input" else "oifname"
            self.command("nft", "add", "rule", "inet", "fault", hook, interface, "eth0", "drop")
        return time.monotonic()

    def heal(self) -> float:
        self.command("nft", "delete", "table", "inet", "fault")
        return time.monotonic()

    def unplug(self) -> float:
        ip("-n", self.namespace, "link", "set", "eth0", "down")
        return time.monotonic()

    def plug(self) -> float:
        ip("-n", self.namespace, "link", "set", "eth0", "up")
        return time.monotonic()

    def slow_down(self, rate: str) -> None:
        """Limits what leaves this host."""
        self.command("tc", "qdisc", "replace", "dev", "eth0", "root", "tbf",
                     "rate", rate, "burst", "32k", "latency", "400ms")  # fmt: skip


def ip(*arguments: str) -> None:
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True)
    if done.returncode != 0:
        raise Lacking(f"ip {' '.join(arguments)}: {done.stderr.strip()}")


def epmd_program() -> str:
    found = shutil.which("epmd")
    if found:
        return found
    code = "io:put_chars(code:root_dir()), halt()."
    home = subprocess.run(["erl", "-noshell", "-eval", code], capture_output=True, text=True)
    return str(next(pathlib.Path(home.stdout).glob("erts-*/bin/epmd")))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class World:
    """Everything a script starts, and its end."""

    def __init__(self) -> None:
        self.stack = contextlib.ExitStack()
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="swf-"))
        self.stack.callback(shutil.rmtree, self.folder, ignore_errors=True)
        self.prefix = f"swf{os.getpid()}"
        self.cookie = secrets.token_hex(24)
        self.cookie_file = self.secret("cookie", self.cookie)
        self.code = self.folder / "code"
        self.code.mkdir()
        subprocess.run(["erlc", "-o", str(self.code), str(HERE / "watcher.erl")], check=True)
        self._here: Host | None = None
        self._namespaces = 0

    def secret(self, name: str, text: str) -> pathlib.Path:
        path = self.folder / name
        path.write_text(text)
        path.chmod(0o400)
        return path

    @property
    def here(self) -> Host:
        """The loopback, with a port mapper of its own."""
        if self._here is None:
            self._here = Host(self, "127.0.0.1", free_port(), [])
            self._here.start_epmd()
        return self._here

    def bare(self) -> Host:
        """The loopback once more, with no port mapper yet."""
        return Host(self, "127.0.0.1", free_port(), [])

    def host(self, resolver: str | None = None) -> Namespace:
        """A machine of its own, with a port mapper."""
        self._namespaces += 1
        host = Namespace(self, self._namespaces, resolver)
        host.start_epmd()
        return host

    def make_namespace(self, name: str) -> None:
        ip("netns", "add", name)
        self.stack.callback(delete_namespace, name)
        self.stack.callback(end_all_in, name)


def delete_namespace(name: str) -> None:
    subprocess.run(["ip", "netns", "del", name], capture_output=True)


def end_all_in(namespace: str) -> None:
    done = subprocess.run(["ip", "netns", "pids", namespace], capture_output=True, text=True)
    for pid in done.stdout.split():
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(pid), signal.SIGKILL)


def purge() -> None:
    """Takes away namespaces of scripts that were killed."""
    done = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True)
    for name in re.findall(r"(?m)^(swf\d+-\w+)", done.stdout):
        if not pathlib.Path(f"/proc/{name[3:].split('-')[0]}").exists():
            end_all_in(name)
            delete_namespace(name)


@contextlib.contextmanager
def world() -> Iterator[World]:
    def stop(number: int, _frame: object) -> NoReturn:
        raise SystemExit(128 + number)

    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        signal.signal(number, stop)
    made = World()
    with made.stack:
        yield made


# ---------------------------------------------------------------------------------------------------------------------
# Running a row


def lacking(needs: Needs) -> str | None:
    """What this machine lacks for a row."""
    if not pathlib.Path(BIN).exists():
        raise SystemExit(f"{BIN} is not there: run tests/run/build first")
    if needs is Needs.FAKETIME and not list(
        pathlib.Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1")
    ):
        return "libfaketime"
    if needs is Needs.CGROUP and os.geteuid() != 0:
        return "root"
    if needs is Needs.ROOT:
        missing = [tool for tool in ("ip", "nft", "tc") if not shutil.which(tool)]
        if os.geteuid() != 0 or missing:
            return "root" if not missing else f"root, {', '.join(missing)}"
        purge()
        probe = f"swf{os.getpid()}-probe"
        done = subprocess.run(["ip", "netns", "add", probe], capture_output=True, text=True)
        delete_namespace(probe)
        return f"network namespaces ({done.stderr.strip()})" if done.returncode else None
    return None


def main(row: Row, body: Callable[[World], str]) -> NoReturn:
    """Runs one row: prints one line with what was measured, exits with 0, 1, or 77 if this machine cannot."""
    began = time.monotonic()
    head = f"row {row.number:2}  {row.fault}"
    try:
        if missing := lacking(row.needs):
            raise Lacking(missing)
        with world() as made:
            try:
                measured = body(made)
            except Failure:
                show_logs(made)
                raise
    except Lacking as why:
        print(f"n/a   {head}: needs {why}", flush=True)
        sys.exit(NOT_HERE)
    except Failure as why:
        print(f"FAIL  {head}: {why}", flush=True)
        sys.exit(1)
    print(f"ok    {head}: {measured} [{time.monotonic() - began:.0f} s]", flush=True)
    sys.exit(0)


def show_logs(made: World, out: IO[str] = sys.stderr) -> None:
    for path in sorted(made.folder.glob("*.log")):
        text = path.read_text(errors="replace").replace(made.cookie, "COOKIE")
        print(f"--- {path.name}", *text.splitlines()[-25:], sep="\n    ", file=out)
