"""`pip install ./python` into a fresh environment, and the node under that environment's interpreter with its packages.

    /usr/bin/python3 -m pytest tests/wheel
    WHEEL_PYTHON=python3.13 /usr/bin/python3 -m pytest tests/wheel      # under another interpreter

It needs the program and the Erlang application built (`make build`), with which the node is compared and called, and a package
registry for pip.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PYTHON = os.environ.get("WHEEL_PYTHON", "/usr/bin/python3")
PROGRAM = Path(os.environ.get("SIDEWINDER_BIN", ROOT / "build/sidewinder"))
COOKIE = "wheelcookie"
DEADLINE = 60.0

BUILD_ENV = dict(os.environ)
if shutil.which(
    "ccache"
):  # the compiler by the name it has in the other builds: what they compiled is found
    BUILD_ENV.setdefault("CMAKE_CXX_COMPILER_LAUNCHER", "ccache")
    BUILD_ENV.setdefault("CXX", "/usr/bin/c++")
    BUILD_ENV.setdefault("CC", "/usr/bin/cc")


def checked(*command: str | Path, **options: object) -> str:
    done = subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, **options  # type: ignore[call-overload]
    )
    assert done.returncode == 0, f"{command}:\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    return str(done.stdout)


@pytest.fixture(scope="session")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of a fresh environment with what `pip install ./python` installs, and numpy."""
    venv = tmp_path_factory.mktemp("venv")
    checked(PYTHON, "-m", "venv", venv)
    found = venv / "bin" / "python"
    checked(found, "-m", "pip", "install", ROOT / "python", "numpy", env=BUILD_ENV)
    return found


@pytest.fixture(scope="session")
def wheel(python: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("wheel")
    checked(
        python, "-m", "pip", "wheel", "--no-deps", "-w", directory, ROOT / "python", env=BUILD_ENV
    )
    (built,) = directory.glob("*.whl")
    return built


@pytest.fixture(scope="session")
def epmd() -> Iterator[dict[str, str]]:
    """An epmd of our own, as the environment that leads to it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    env = {"ERL_EPMD_PORT": str(port), "ERL_EPMD_ADDRESS": "127.0.0.1"}
    process = subprocess.Popen(["epmd"], env=os.environ | env, stderr=subprocess.DEVNULL)
    try:
        wait_for(lambda: connects(port), "epmd does not listen")
        yield env
    finally:
        process.kill()
        process.wait()


def connects(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
        return True
    except OSError:
        return False


def wait_for(what: Callable[[], bool], otherwise: str) -> None:
    deadline = time.monotonic() + DEADLINE
    while not what():
        assert time.monotonic() < deadline, otherwise
        time.sleep(0.05)


class Node:
    """A node in the environment's interpreter, started in a directory of its own."""

    def __init__(
        self, python: Path, directory: Path, epmd: dict[str, str], *arguments: str, **env: str
    ) -> None:
        self.name = f"wheel{os.getpid()}_{time.monotonic_ns()}@127.0.0.1"
        self.cookie_file = directory / "cookie"
        self.cookie_file.write_text(COOKIE)
        self.cookie_file.chmod(0o400)
        self.epmd = epmd
        self.log = directory / "log"
        secret = [] if "SIDEWINDER_COOKIE" in env else ["--cookie-file", str(self.cookie_file)]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [str(python), "-m", "sidewinder", "--name", self.name, *secret, *arguments],
                cwd=directory,
                env=clean_env() | epmd | env,
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
            )

    def __enter__(self) -> Node:
        wait_for(self.registered, "the node does not register with epmd")
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()

    def registered(self) -> bool:
        assert self.process.poll() is None, self.log.read_text()
        names = subprocess.run(["epmd", "-names"], env=os.environ | self.epmd, capture_output=True)
        return f"name {self.name.split('@')[0]} at".encode() in names.stdout

    def erl(self, expression: str) -> str:
        """What a BEAM prints of an expression in which N is the node."""
        code = f"N = '{self.name}', io:format(\"~tp\", [begin {expression} end]), halt(0)."
        # The cookie is read from the home folder, as everybody's.
        home = self.log.parent / "home"
        home.mkdir(exist_ok=True)
        cookie = home / ".erlang.cookie"
        if not cookie.exists():
            cookie.write_text(COOKIE)
            cookie.chmod(0o400)
        name = f"beam{time.monotonic_ns()}@127.0.0.1"
        env = os.environ | self.epmd
        env |= {"HOME": str(home), "ERL_LIBS": str(ROOT / "_build/default/lib")}
        return checked("erl", "-name", name, "-noinput", "-eval", code, env=env, timeout=DEADLINE)

    def ended(self) -> int:
        return self.process.wait(DEADLINE)


def clean_env() -> dict[str, str]:
    return {k: v for k, v in os.environ.items() if k != "PYTHONPATH" and "SIDEWINDER_" not in k}


@pytest.fixture(scope="module")
def node(
    python: Path, epmd: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Node]:
    directory = tmp_path_factory.mktemp("node")
    (directory / "beside.py").write_text("def here(): return 'from the working directory'\n")
    with Node(python, directory, epmd) as started:
        yield started


def test_numpy_of_the_environment_is_called_by_a_beam_with_nothing_of_ours(node: Node) -> None:
    assert node.erl("net_adm:ping(N)") == "pong"
    assert node.erl("erpc:call(N, numpy, sum, [[1, 2, 39]])") == "42"


def test_numpy_of_the_environment_is_called_through_the_application(node: Node) -> None:
    started = "{ok, _} = application:ensure_all_started(sidewinder), "
    assert node.erl(started + "py:call(N, numpy, dot, [[1, 2], [3, 4]])") == "{ok,11}"


def test_the_interpreter_is_the_users_with_its_prefix_and_its_working_directory(
    node: Node, python: Path
) -> None:
    code = "{ok, P} = gen_server:call({py, N}, {eval, <<\"__import__('sys').prefix\">>, #{}}), P"
    assert node.erl(code) == f'<<"{python.parent.parent}">>'
    assert node.erl("erpc:call(N, beside, here, [])") == '<<"from the working directory">>'


def test_coroutines_run_on_the_native_loop(node: Node) -> None:
    code = "import asyncio\\nasync def kind(): return type(asyncio.get_running_loop()).__name__"
    program = (
        f'ok = element(1, gen_server:call({{py, N}}, {{exec, <<"{code}">>}})), '
        'gen_server:call({py, N}, {eval, <<"kind()">>, #{}})'
    )
    assert node.erl(program) == '{ok,<<"ErlangEventLoop">>}'


@pytest.mark.parametrize(
    "arguments",
    [
        ["--version"],
        ["--help"],
        ["--print-reference"],
        ["--name", "py@127.0.0.1", "--print-config"],
        ["--name", "py@127.0.0.1", "--path", "/nowhere", "--check-config"],
        ["--name", "py@127.0.0.1", "--workers", "none"],
        ["--name", "no node name"],
        ["--name", "py@127.0.0.1", "--import", "no_such_module"],
        ["serve", "--help"],
        ["serve", "no_such_module:app", "--bind", "127.0.0.1:0"],
        ["--frobnicate"],
    ],
    ids=" ".join,
)
def test_what_it_prints_and_its_exit_code_are_those_of_the_program(
    python: Path, arguments: list[str]
) -> None:
    env = clean_env() | {"SIDEWINDER_COOKIE": COOKIE}

    def outcome(*command: str | Path) -> tuple[int, str, str]:
        line = [*map(str, command), *arguments]
        done = subprocess.run(line, env=env, capture_output=True, text=True, timeout=DEADLINE)
        return done.returncode, done.stdout, without_log(done.stderr)

    assert outcome(python, "-m", "sidewinder") == outcome(PROGRAM)
    assert outcome(python.parent / "sidewinder") == outcome(PROGRAM)


def without_log(text: str) -> str:
    """The lines that do not begin with a time."""
    return "".join(line for line in text.splitlines(True) if not line[:2].isdigit())


def test_an_application_is_served_on_the_native_loop_with_the_native_server_of_the_program(
    python: Path, tmp_path: Path
) -> None:
    (tmp_path / "shop.py").write_text(
        "import asyncio, sys\n"
        "async def app(scope, receive, send):\n"
        "    assert scope['type'] == 'http'\n"
        "    loop = type(asyncio.get_running_loop()).__name__\n"
        "    file = sys.modules['erlang_web._http'].__file__\n"
        "    text = f'{loop} {file == sys.modules[\"sidewinder._program\"].__file__}'.encode()\n"
        "    await send({'type': 'http.response.start', 'status': 200, 'headers': []})\n"
        "    await send({'type': 'http.response.body', 'body': text})\n"
    )
    command = [python, "-m", "sidewinder", "serve", "shop:app", "--bind", "127.0.0.1:0"]
    log = tmp_path / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, cwd=tmp_path, env=clean_env(), stdout=output, stderr=output
        )
    try:
        wait_for(lambda: "serving on" in log.read_text(), "it does not serve")
        address = log.read_text().partition("serving on ")[2].split()[0]
        with urllib.request.urlopen(address, timeout=DEADLINE) as answer:
            assert answer.read() == b"ErlangEventLoop True"
        process.send_signal(signal.SIGTERM)
        assert process.wait(DEADLINE) == 0
    finally:
        process.kill()
        process.wait()


def test_an_environment_of_its_own_is_refused_in_one_line(python: Path) -> None:
    env = clean_env() | {"SIDEWINDER_COOKIE": COOKIE}
    command = [python, "-m", "sidewinder", "--name", "py@127.0.0.1", "--venv", "/some/venv"]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=DEADLINE)
    assert done.returncode == 1
    assert without_log(done.stderr).startswith("sidewinder: venv: the node runs in the environment")
    assert len(without_log(done.stderr).splitlines()) == 1


def test_a_package_that_was_imported_before_the_node_is_told_in_one_line(python: Path) -> None:
    code = "import erlang, runpy; runpy.run_module('sidewinder', run_name='__main__')"
    done = subprocess.run([python, "-c", code], env=clean_env(), capture_output=True, text=True)
    assert done.returncode == 1
    assert "erlang._native was imported before the node started" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_checkout_that_pip_has_not_built_says_so_in_one_line() -> None:
    env = clean_env() | {"PYTHONPATH": str(ROOT / "python")}
    command = [PYTHON, "-m", "sidewinder", "--version"]
    done = subprocess.run(command, env=env, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 1
    assert "_program" in done.stderr and len(done.stderr.splitlines()) == 1


def test_a_cookie_in_the_environment_is_not_seen_by_python(
    python: Path, epmd: dict[str, str], tmp_path: Path
) -> None:
    with Node(python, tmp_path, epmd, SIDEWINDER_COOKIE=COOKIE, NOTIFY_SOCKET="") as started:
        code = "\"'SIDEWINDER_COOKIE' in __import__('os').environ\""
        assert (
            started.erl(f"gen_server:call({{py, N}}, {{eval, <<{code}>>, #{{}}}})") == "{ok,false}"
        )
        environ = Path(f"/proc/{started.process.pid}/environ").read_bytes()
        assert COOKIE.encode() not in environ


def test_worker_processes_run_the_same_interpreter(
    python: Path, epmd: dict[str, str], tmp_path: Path
) -> None:
    with Node(python, tmp_path, epmd, "--processes", "1") as started:
        started.erl("erpc:call(N, math, sqrt, [4.0])")
        assert started.erl("erpc:call(N, os, getpid, [])") != str(started.process.pid)
        code = (
            "{ok, P} = gen_server:call({py, N}, {eval, <<\"__import__('sys').prefix\">>, #{}}), P"
        )
        assert started.erl(code) == f'<<"{python.parent.parent}">>'
        started.process.send_signal(signal.SIGTERM)
        assert started.ended() == 0


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_drains_and_what_was_accepted_is_answered(
    python: Path, epmd: dict[str, str], tmp_path: Path, how: signal.Signals
) -> None:
    with Node(python, tmp_path, epmd) as started:
        code = (
            "R = erpc:send_request(N, time, sleep, [1]), "
            f"erpc:call(N, os, kill, [{started.process.pid}, {int(how)}]), "
            "erpc:receive_response(R, 20000)"
        )
        assert started.erl(code) in ("none", "undefined", "nil")
        assert started.ended() == 0
        assert "Traceback" not in started.log.read_text()


def test_a_second_signal_stops_at_once(python: Path, epmd: dict[str, str], tmp_path: Path) -> None:
    with Node(python, tmp_path, epmd) as started:
        started.erl("erpc:cast(N, time, sleep, [30]), timer:sleep(300)")
        started.process.send_signal(signal.SIGTERM)
        wait_for(lambda: "draining" in started.log.read_text(), "it does not drain")
        started.process.send_signal(signal.SIGINT)
        assert started.ended() == 4


@pytest.mark.skipif(os.geteuid() != 0, reason="process 1 takes root")
def test_as_process_1_it_leaves_a_parent_in_front(
    python: Path, epmd: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "ids.py").write_text("import os\ndef parent(): return os.getppid()\n")
    shim = tmp_path / "python"
    shim.write_text(f'#!/bin/sh\nexec unshare --pid --fork --kill-child "{python}" "$@"\n')
    shim.chmod(0o755)
    with Node(shim, tmp_path, epmd) as started:
        assert started.erl("erpc:call(N, ids, parent, [])") == "1"


def test_the_loop_works_alone(python: Path) -> None:
    code = (
        "import asyncio, erlang_loop, sys\n"
        "async def main(): await asyncio.sleep(0); return 'done'\n"
        "print(erlang_loop.run(main()), 'erlang' in sys.modules)"
    )
    assert checked(python, "-c", code, env=clean_env()) == "done False\n"


def test_terms_work_without_a_node(python: Path) -> None:
    code = "import erlang; print(erlang.decode(erlang.encode({'a': [1, 2.5]})))"
    assert checked(python, "-c", code, env=clean_env()) == "{'a': [1, 2.5]}\n"


def test_the_wheel_has_types_and_modules_and_knows_nothing_of_the_machine(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    for package, module in (
        ("erlang", "_native"),
        ("erlang_loop", "_core"),
        ("sidewinder", "_program"),
    ):
        assert f"{package}/py.typed" in files
        assert [n for n in files if n.startswith(f"{package}/{module}.cpython-")], sorted(files)
    assert "erlang/_native.pyi" in files and "sidewinder/_program.pyi" in files
    places = [str(ROOT), str(Path.home()) + "/", "/tmp/"]
    found = [(n, p) for n, data in files.items() for p in places if p.encode() in data]
    assert not found


if __name__ == "__main__":
    sys.exit(pytest.main([__file__]))
