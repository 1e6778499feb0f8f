"""Applications by name: `module:attribute`, and what kind of application that turns out to be."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import inspect
import logging
import os
import re
import sys
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

_log = logging.getLogger("erlang_web")

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
ASGIApplication = Callable[[Scope, Receive, Send], Awaitable[None]]

_TARGET = re.compile(
    r"(?P<module>[^\W\d]\w*(\.[^\W\d]\w*)*):(?P<path>[^\W\d]\w*(\.[^\W\d]\w*)*)(?P<call>\(\))?"
)


class AppError(Exception):
    """An application that cannot be had, in one line."""


def load(target: str) -> Any:
    """What `module:attribute` names; with `()` at its end, what that returns.

    Modules are also found in the working directory. A module that raises is logged with its traceback.

    Raises: AppError.
    """
    found = _TARGET.fullmatch(target)
    if found is None:
        raise AppError(f"'{target}' is neither MODULE:ATTRIBUTE nor MODULE:FACTORY()")
    here = os.getcwd()
    if not {"", here} & set(sys.path):
        sys.path.insert(0, here)
    value: Any = _module(target, found["module"])
    for name in found["path"].split("."):
        try:
            value = getattr(value, name)
        except AttributeError:
            raise AppError(f"'{target}': {found['module']} has no {found['path']}") from None
    if not found["call"]:
        return value
    try:
        return value()
    except Exception as error:
        raise _failed(target, error) from error


def _module(target: str, name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and f"{name}.".startswith(f"{error.name}."):
            raise AppError(f"'{target}': there is no module {error.name}") from None
        raise _failed(target, error) from error
    except Exception as error:
        raise _failed(target, error) from error


def _failed(target: str, error: Exception) -> AppError:
    _log.error("the application %s cannot be loaded", target, exc_info=error)
    told = " ".join(str(error).split())
    return AppError(
        f"'{target}': {type(error).__name__}: {told}" if told else f"'{target}': {error!r}"
    )


def kind(app: Any, interface: str, target: str) -> str:
    """Which interface an application has: "asgi3", "asgi2" or "wsgi".

    Raises: AppError if it is none, or if that cannot be told.
    """
    if not callable(app):
        raise AppError(f"'{target}' cannot be called, so it is no application")
    if interface == "wsgi":
        return "wsgi"
    if _is_async(app):
        return "asgi3"
    # An ASGI 2 application is called with the scope, and then what that gave with receive and send.
    if inspect.isclass(app) and _is_coroutine_function(getattr(app, "__call__", None)):
        return "asgi2"
    wanted = _arguments(app)
    if interface == "asgi":
        return "asgi2" if wanted == 1 else "asgi3"
    if wanted is None:
        raise AppError(f"'{target}' does not show whether it is ASGI or WSGI; say --asgi or --wsgi")
    if wanted not in (1, 2, 3):
        raise AppError(f"'{target}' takes {wanted} arguments: it is neither ASGI nor WSGI")
    return {1: "asgi2", 2: "wsgi", 3: "asgi3"}[wanted]


def _is_async(app: Any) -> bool:
    while isinstance(app, functools.partial):
        app = app.func
    if inspect.isclass(app):
        return hasattr(app, "__await__")
    if _is_coroutine_function(app):
        return True
    return not inspect.isroutine(app) and _is_coroutine_function(getattr(app, "__call__", None))


def _is_coroutine_function(function: Any) -> bool:
    # Frameworks mark plain functions that return coroutines with asyncio's attribute, which inspect does not look for.
    return inspect.iscoroutinefunction(function) or hasattr(function, "_is_coroutine")


def _arguments(app: Any) -> int | None:
    """How many positional arguments have to be given; None where that is not to be seen."""
    try:
        parameters = inspect.signature(app).parameters.values()
    except (TypeError, ValueError):
        return None
    if any(one.kind is one.VAR_POSITIONAL for one in parameters):
        return None
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return sum(one.kind in positional and one.default is one.empty for one in parameters)


def asgi2(app: Callable[[Scope], Callable[[Receive, Send], Awaitable[None]]]) -> ASGIApplication:
    """An application of ASGI 2 as one of ASGI 3."""

    async def call(scope: Scope, receive: Receive, send: Send) -> None:
        await app(scope)(receive, send)

    return call
