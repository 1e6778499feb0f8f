"""Modules that a context has to itself, without a node."""

from __future__ import annotations

import asyncio
import random
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from erlang._contexts import _Context, _Modules


def write(directory: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return directory


def modules(directory: Path, *roots: str) -> _Modules:
    return _Modules(roots, [str(directory)])


def run(own: _Modules, code: str) -> dict[str, Any]:
    namespace: dict[str, Any] = {"__builtins__": own.builtins}
    exec(code, namespace)
    return namespace


def test_two_versions_have_their_own_globals_and_the_interpreter_has_none(tmp_path: Path) -> None:
    one = modules(write(tmp_path / "1", {"plans.py": "VALUE = 1"}), "plans")
    two = modules(write(tmp_path / "2", {"plans.py": "VALUE = 2"}), "plans")
    assert (one.load("plans").VALUE, two.load("plans").VALUE) == (1, 2)
    assert "plans" not in sys.modules
    with pytest.raises(ModuleNotFoundError):
        __import__("plans")


@pytest.mark.parametrize(
    "statement",
    [
        "import package; got = package.inner.NAME",
        "import package.inner; got = package.inner.NAME",
        "import package.inner as inner; got = inner.NAME",
        "from package import inner; got = inner.NAME",
        "from package.inner import NAME as got",
        "from package import *; got = inner.NAME",
        "from package.relative import NAME as got",
        "from package.deep.above import NAME as got",
    ],
)
def test_every_kind_of_import_finds_the_own_copy(tmp_path: Path, statement: str) -> None:
    files = {
        "package/__init__.py": "__all__ = ['inner']\nfrom . import inner",
        "package/inner.py": "NAME = __name__",
        "package/relative.py": "from .inner import NAME",
        "package/deep/__init__.py": "",
        "package/deep/above.py": "from ..inner import NAME",
    }
    write(tmp_path, files)
    own = modules(tmp_path, "package")
    assert run(own, statement)["got"] == "package.inner"
    assert "package" not in sys.modules


def test_other_modules_are_the_interpreters(tmp_path: Path) -> None:
    own = modules(write(tmp_path, {"plans.py": "import json"}), "plans")
    assert own.load("plans").json is sys.modules["json"]


def test_a_module_that_raises_is_not_kept(tmp_path: Path) -> None:
    own = modules(write(tmp_path, {"plans.py": "1 / 0"}), "plans")
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            own.load("plans")
    assert own.loaded == {}


def test_a_missing_module_inside_a_package_is_told_by_its_own_name(tmp_path: Path) -> None:
    own = modules(
        write(tmp_path, {"package/__init__.py": "", "plans.py": "import package.none"}),
        "package",
        "plans",
    )
    with pytest.raises(ModuleNotFoundError, match="package.none"):
        own.load("plans")
    with pytest.raises(ImportError):
        run(own, "from package import none")


def test_a_reload_binds_names_to_the_new_module_even_within_one_second(tmp_path: Path) -> None:
    own = modules(
        write(tmp_path, {"plans.py": "VALUE = 1", "other.py": "import plans"}), "plans", "other"
    )
    namespace = run(own, "import plans, other")
    old = namespace["plans"]
    write(tmp_path, {"plans.py": "VALUE = 2"})
    own.reload("plans", namespace)
    assert (namespace["plans"].VALUE, namespace["other"].plans.VALUE, old.VALUE) == (2, 2, 1)


def test_a_reload_that_fails_changes_nothing(tmp_path: Path) -> None:
    write(tmp_path, {"package/__init__.py": "from . import inner", "package/inner.py": "VALUE = 1"})
    own = modules(tmp_path, "package")
    namespace = run(own, "import package")
    before = namespace["package"]
    write(tmp_path, {"package/inner.py": "VALUE = 2\nraise ValueError('no')"})
    with pytest.raises(ValueError, match="no"):
        own.reload("package", namespace)
    with pytest.raises(ValueError, match="no"):
        own.reload("package.inner", namespace)
    assert namespace["package"] is before
    assert (before.inner.VALUE, own.load("package.inner").VALUE) == (1, 1)


def test_what_is_no_python_source_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ImportError, match="part of Python"):
        modules(tmp_path, "sys").load("sys")


def test_a_context_outlives_interruptions_at_any_moment(request: pytest.FixtureRequest) -> None:
    request.addfinalizer(partial(sys.setswitchinterval, sys.getswitchinterval()))
    sys.setswitchinterval(1e-6)
    dice = random.Random(8)

    def job() -> int:
        total = 0
        for number in range(dice.randrange(3000)):
            total += number
        return total

    async def one(context: _Context) -> None:
        task = asyncio.ensure_future(context.run(job))
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task], timeout=5)
        assert task.done()

    async def main() -> None:
        context = _Context(1, {})
        for _ in range(600):
            await asyncio.gather(*(one(context) for _ in range(3)))
        assert await asyncio.wait_for(context.run(lambda: 42), 5) == 42
        context.close()
        await asyncio.wait_for(context.over, 5)

    asyncio.run(main())
