"""docs/event_loop.md: its programs print what it says, its console lines do, and its tables name what there is.

Those of its programs that need a framework are run by tests/loop/apps/test_docs_frameworks.py.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from typing import Any

import pytest
import support

import erlang_loop

PAGE = (support.ROOT / "docs" / "event_loop.md").read_text()
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
BLOCKS = [(kind, text) for kind, text in BLOCK.findall(PAGE)]
FRAMEWORKS = {"aiohttp", "anyio", "fastapi", "uvicorn", "websockets"}
Program = tuple[str, str]  # and its output


def programs(*, of_frameworks: bool) -> list[Program]:
    """Every Python block that uses a framework, or that uses none, with the text that follows as its output."""
    found = []
    for number, (kind, text) in enumerate(BLOCKS):
        if kind == "python" and bool(imported(text) & FRAMEWORKS) is of_frameworks:
            follows, output = BLOCKS[number + 1]
            assert follows == "text", f"no output after:\n{text}"
            found.append((text, output))
    return found


def imported(program: str) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(program)):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module.split(".")[0])
    return names


def numbered(name: str, pairs: list[Program]) -> list[Any]:
    return [pytest.param(*pair, id=f"{name} {at}") for at, pair in enumerate(pairs, 1)]


def check(program: str, output: str) -> None:
    """Runs a program of the page with every warning on; it must print what the page says, and nothing else."""
    ended = subprocess.run(
        [sys.executable, "-X", "dev", "-c", program],
        env=support.environment(),
        cwd=support.ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=25,
    )
    # Development mode says when a callback took more than 0.1 s, which a busy machine makes of any.
    errors = re.sub(r"^Executing <.*> took [0-9.]+ seconds\n", "", ended.stderr, flags=re.MULTILINE)
    if program.startswith("# Python 3.12 and later") and sys.version_info < (3, 12):
        assert "unexpected keyword argument 'loop_factory'" in ended.stderr
    else:
        assert (ended.stdout, errors, ended.returncode) == (output, "", 0)


@pytest.mark.parametrize("program, output", numbered("program", programs(of_frameworks=False)))
def test_a_program_of_the_page_prints_what_the_page_says(program: str, output: str) -> None:
    check(program, output)


def console_lines() -> list[Program]:
    found = []
    for kind, text in BLOCKS:
        if kind == "console":
            for part in re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]:
                command, _, output = part.partition("\n")
                found.append((command, output))
    return found


@pytest.mark.parametrize("command, output", numbered("line", console_lines()))
def test_a_console_line_of_the_page_prints_what_the_page_says(command: str, output: str) -> None:
    ended = subprocess.run(
        ["bash", "-c", command.replace("python3", sys.executable)],
        cwd=support.ROOT,
        capture_output=True,
        text=True,
        timeout=25,
    )
    assert (ended.stdout, ended.stderr, ended.returncode) == (output, "", 0)


def test_the_page_has_programs_of_every_kind() -> None:
    assert len(programs(of_frameworks=False)) >= 6 and len(programs(of_frameworks=True)) >= 2
    assert len(console_lines()) >= 2
    assert {kind for kind, _ in BLOCKS} == {"python", "text", "console"}


def test_the_page_names_every_public_name_and_every_example() -> None:
    for name in erlang_loop.__all__:
        assert name in PAGE, name
    for path in (support.ROOT / "examples" / "loop").glob("*.py"):
        assert f"`{path.name}`" in PAGE, path.name
    for name in re.findall(r"erlang_loop[.:](\w+)", PAGE):
        assert hasattr(erlang_loop, name), name
    for name in re.findall(r"\bloop\.(\w+)", PAGE):
        assert hasattr(erlang_loop.ErlangEventLoop, name), name
