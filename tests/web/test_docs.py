"""docs/web.md: its files, served with its commands, answer what it says; its defaults are the program's."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = Path(os.environ.get("SIDEWINDER_BIN", ROOT / "build/sidewinder"))
PAGE = (ROOT / "docs/web.md").read_text()
BLOCKS = re.findall(r"^```(\w+)(?: (\S+))?\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
FILES = {name: text for kind, name, text in BLOCKS if kind == "python"}
#: Each command, with the lines that follow it.
SERVED = [
    (text.strip(), BLOCKS[at + 1][2])
    for at, (kind, name, text) in enumerate(BLOCKS)
    if (kind, name) == ("sh", "serve")
]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path) -> Iterator[Path]:
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    yield tmp_path


@pytest.fixture
def port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def test_there_are_commands_to_try() -> None:
    assert len(SERVED) >= 2 and {"hello.py", "blog.py", "orders.py"} <= set(FILES)


@pytest.mark.parametrize("command, console", SERVED)
def test_what_a_command_serves_answers_what_the_page_says(
    command: str, console: str, folder: Path, port: str
) -> None:
    words = shlex.split(command.replace("8000", port))
    assert words[0] == "sidewinder"
    words += [] if "--bind" in words else ["--bind", f"127.0.0.1:{port}"]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("SIDEWINDER_")}
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [PROGRAM, *words[1:]], cwd=folder, env=environment, stdout=log, stderr=log
        )
    try:
        until_it_serves(process, folder / "log")
        for line, expected in re.findall(r"^\$ (.*)\n((?:[^$].*\n)*)", console, re.MULTILINE):
            asked = shlex.split(line.replace("8000", port))
            answer = subprocess.run(asked, cwd=folder, capture_output=True, text=True, timeout=10)
            assert answer.stdout == expected, (line, (folder / "log").read_text())
    finally:
        process.send_signal(signal.SIGTERM)
        code = process.wait(20)
    assert code == 0


def until_it_serves(process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 20
    while "serving on" not in log.read_text():
        assert process.poll() is None and time.monotonic() < deadline, log.read_text()
        time.sleep(0.02)


def test_the_server_in_a_program_of_ones_own_does_what_the_page_says(
    folder: Path, port: str
) -> None:
    expected = next(text for kind, _, text in BLOCKS if kind == "text")
    program = FILES["program.py"].replace("8000", port)
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-c", program],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT / "python")},
        capture_output=True,
        text=True,
        timeout=20,
    )
    assert (done.stdout.replace(port, "8000"), done.stderr) == (expected, "")


def test_every_setting_the_page_names_is_one_of_the_program() -> None:
    printed = subprocess.run([PROGRAM, "--print-schema"], capture_output=True, check=True).stdout
    settings = set(json.loads(printed)["properties"])
    assert {"serve", "wsgi-threads"} <= settings
    flags = set(re.findall(r"--([a-z][a-z-]+)", re.sub(r"curl.*", "", PAGE)))
    assert flags - settings == {"asgi", "wsgi"}
    assert set(re.findall(r"`(web-[a-z-]+)`", PAGE)) <= settings
