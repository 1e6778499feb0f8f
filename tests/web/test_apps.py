"""Applications by name, and which interface they have."""

from __future__ import annotations

import functools
import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from erlang_web import _apps

MODULE = """
class Box:
    async def inner(scope, receive, send): pass
box = Box()
async def app(scope, receive, send): pass
def make(): return app
def make_nothing(argument): return app
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working directory with a module `shop`; what was imported from it is forgotten."""
    (tmp_path / "shop.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [one for one in sys.path if one])
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        del sys.modules[name]


def test_an_attribute_of_a_module_in_the_working_directory_is_found() -> None:
    assert _apps.load("shop:app").__name__ == "app"


def test_an_attribute_of_an_attribute_is_found() -> None:
    assert _apps.load("shop:box.inner").__name__ == "inner"


def test_a_name_with_parentheses_is_called_for_the_application() -> None:
    assert _apps.load("shop:make()") is sys.modules["shop"].app


def test_a_folder_that_is_looked_in_before_wins_over_the_working_directory(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = folder / "other"
    other.mkdir()
    (other / "shop.py").write_text("app = 'the other'")
    monkeypatch.setattr(sys, "path", [str(other), str(folder), *sys.path])
    assert _apps.load("shop:app") == "the other"


@pytest.mark.parametrize(
    "target, told",
    [
        ("shop", "'shop' is neither MODULE:ATTRIBUTE nor MODULE:FACTORY()"),
        ("shop:", "'shop:' is neither MODULE:ATTRIBUTE nor MODULE:FACTORY()"),
        ("shop:app;x", "'shop:app;x' is neither MODULE:ATTRIBUTE nor MODULE:FACTORY()"),
        ("nowhere:app", "'nowhere:app': there is no module nowhere"),
        ("shop.cart:app", "'shop.cart:app': there is no module shop.cart"),
        ("shop:nothing", "'shop:nothing': shop has no nothing"),
        ("shop:box.nothing", "'shop:box.nothing': shop has no box.nothing"),
    ],
)
def test_what_is_not_there_is_told_in_one_line(target: str, told: str) -> None:
    with pytest.raises(_apps.AppError) as raised:
        _apps.load(target)
    assert str(raised.value) == told


def test_a_module_that_raises_is_told_in_one_line_and_its_traceback_is_logged(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (folder / "broken.py").write_text("def f():\n    raise ValueError('two\\nlines')\nf()\n")
    with pytest.raises(_apps.AppError) as raised, caplog.at_level(logging.ERROR):
        _apps.load("broken:app")
    assert str(raised.value) == "'broken:app': ValueError: two lines"
    assert 'broken.py", line 2, in f' in caplog.text


def test_a_module_that_misses_another_names_that_one(folder: Path) -> None:
    (folder / "needy.py").write_text("import not_there_at_all")
    with pytest.raises(
        _apps.AppError, match="ModuleNotFoundError: No module named 'not_there_at_all'"
    ):
        _apps.load("needy:app")


def test_a_factory_that_raises_is_told_in_one_line() -> None:
    with pytest.raises(_apps.AppError, match="^'shop:make_nothing\\(\\)': TypeError: "):
        _apps.load("shop:make_nothing()")


async def asgi3(scope: Any, receive: Any, send: Any) -> None:
    ...


class Asgi3:
    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        ...


class Asgi3Plain:
    def __call__(self, scope: Any, receive: Any, send: Any) -> Any:
        return asgi3(scope, receive, send)


class Asgi3Class:
    def __init__(self, scope: Any, receive: Any, send: Any) -> None:
        ...

    def __await__(self) -> Any:
        ...


class Asgi2Class:
    def __init__(self, scope: Any) -> None:
        ...

    async def __call__(self, receive: Any, send: Any) -> None:
        ...


class WsgiClass:
    def __init__(self, environ: Any, start_response: Any) -> None:
        ...

    def __iter__(self) -> Any:
        ...


class Wsgi:
    def __call__(self, environ: Any, start_response: Any) -> Any:
        ...


def wsgi(environ: Any, start_response: Any) -> Any:
    ...


def wsgi_with_more(environ: Any, start_response: Any, more: int = 1, **options: Any) -> Any:
    ...


def asgi2(scope: Any) -> Any:
    ...


def anything(*args: Any) -> Any:
    ...


@pytest.mark.parametrize(
    "app, kind",
    [
        (asgi3, "asgi3"),
        (Asgi3(), "asgi3"),
        (Asgi3Plain(), "asgi3"),
        (Asgi3Class, "asgi3"),
        (functools.partial(asgi3), "asgi3"),
        (Asgi3().__call__, "asgi3"),
        (Asgi2Class, "asgi2"),
        (asgi2, "asgi2"),
        (wsgi, "wsgi"),
        (wsgi_with_more, "wsgi"),
        (Wsgi(), "wsgi"),
        (WsgiClass, "wsgi"),
        (functools.partial(wsgi_with_more, more=2), "wsgi"),
    ],
)
def test_the_interface_shows_in_how_an_application_is_called(app: Any, kind: str) -> None:
    assert _apps.kind(app, "auto", "x:y") == kind


def test_an_interface_that_does_not_show_has_to_be_said() -> None:
    with pytest.raises(_apps.AppError, match="say --asgi or --wsgi"):
        _apps.kind(anything, "auto", "x:y")
    assert _apps.kind(anything, "wsgi", "x:y") == "wsgi"
    assert _apps.kind(anything, "asgi", "x:y") == "asgi3"


def test_an_interface_that_is_said_counts() -> None:
    assert _apps.kind(asgi3, "wsgi", "x:y") == "wsgi"
    assert _apps.kind(wsgi, "asgi", "x:y") == "asgi3"
    assert _apps.kind(asgi2, "asgi", "x:y") == "asgi2"


@pytest.mark.parametrize("app", ["text", 7, None])
def test_what_cannot_be_called_is_no_application(app: Any) -> None:
    with pytest.raises(_apps.AppError, match="'x:y' cannot be called, so it is no application"):
        _apps.kind(app, "wsgi", "x:y")


def test_a_function_of_no_or_many_arguments_is_no_application() -> None:
    with pytest.raises(_apps.AppError, match="takes 0 arguments"):
        _apps.kind(lambda: None, "auto", "x:y")
    with pytest.raises(_apps.AppError, match="takes 4 arguments"):
        _apps.kind(lambda a, b, c, d: None, "auto", "x:y")
