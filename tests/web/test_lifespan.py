"""Lifespan: what applications say when they start and end, and what becomes of it."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest

from erlang_web._lifespan import Lifespan, LifespanError


class App:
    """Follows a script: what it does at startup, and at shutdown."""

    def __init__(self, *script: Any) -> None:
        self.script = list(script)
        self.heard: list[str] = []
        self.scope: Any = None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.scope = scope
        while self.script:
            message = await receive()
            self.heard.append(message["type"])
            for step in self.script.pop(0):
                if isinstance(step, BaseException):
                    raise step
                await send(step)


def complete(what: str) -> dict[str, str]:
    return {"type": f"lifespan.{what}.complete"}


def failed(what: str, message: str) -> dict[str, str]:
    return {"type": f"lifespan.{what}.failed", "message": message}


def run(app: Any, mode: str = "auto") -> Lifespan:
    async def both() -> Lifespan:
        lifespan = Lifespan(app, mode)
        await lifespan.startup()
        await lifespan.shutdown(5)
        return lifespan

    return asyncio.run(both())


@pytest.mark.parametrize("mode", ["auto", "on"])
def test_an_application_is_told_of_its_start_and_of_its_end(mode: str) -> None:
    app = App([complete("startup")], [complete("shutdown")])
    run(app, mode)
    assert app.heard == ["lifespan.startup", "lifespan.shutdown"]
    assert app.scope["type"] == "lifespan"
    assert app.scope["asgi"] == {"version": "3.0", "spec_version": "2.0"}


def test_what_it_puts_into_the_state_is_there_afterwards() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        scope["state"]["pool"] = 7
        await send(complete("startup"))
        await receive()
        await send(complete("shutdown"))

    assert run(app).state == {"pool": 7}


@pytest.mark.parametrize("mode", ["auto", "on"])
def test_a_startup_that_failed_is_told_with_its_message(mode: str) -> None:
    with pytest.raises(LifespanError, match="^no database$"):
        run(App([failed("startup", "no database")]), mode)


@pytest.mark.parametrize("mode", ["auto", "on"])
def test_what_is_raised_after_a_startup_that_failed_changes_nothing(mode: str) -> None:
    with pytest.raises(LifespanError, match="^no database$"):
        run(App([failed("startup", "no database"), ValueError("x")]), mode)


def test_a_traceback_as_message_is_logged_and_its_last_line_told(
    caplog: pytest.LogCaptureFixture,
) -> None:
    text = "Traceback (most recent call last):\n  line 1\nValueError: no database\n"
    with pytest.raises(LifespanError, match="^ValueError: no database$"):
        run(App([failed("startup", text), ValueError("no database")]))
    assert "line 1" in caplog.text and caplog.text.count("Traceback") == 1


def test_one_that_raises_at_once_does_not_support_it_which_is_fine() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "http"

    run(app, "auto")


def test_one_that_raises_at_once_ends_the_start_where_it_has_to_support_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        raise ValueError("not\nthis")

    with pytest.raises(LifespanError, match="^ValueError: not this$"):
        run(app, "on")
    assert "Traceback" in caplog.text


@pytest.mark.parametrize("mode", ["auto", "on"])
def test_one_that_just_returns_has_started(mode: str) -> None:
    run(App(), mode)


def test_an_application_that_ends_before_its_time_is_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def both() -> None:
        lifespan = Lifespan(App([complete("startup"), ValueError("too early")]), "auto")
        await lifespan.startup()
        await asyncio.sleep(0.05)
        assert "too early" in caplog.text
        await lifespan.shutdown(5)

    asyncio.run(both())


def test_a_shutdown_that_failed_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    run(App([complete("startup")], [failed("shutdown", "not saved")]))
    assert "not saved" in caplog.text


def test_a_shutdown_that_takes_too_long_is_cut_off(caplog: pytest.LogCaptureFixture) -> None:
    cancelled = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send(complete("startup"))
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            cancelled.append(True)
            raise

    async def both() -> None:
        lifespan = Lifespan(app, "auto")
        await lifespan.startup()
        await lifespan.shutdown(0.1)

    asyncio.run(both())
    assert cancelled and "did not shut down" in caplog.text


@pytest.mark.parametrize(
    "message",
    [
        complete("shutdown"),
        failed("shutdown", ""),
        {"type": "http.response.start"},
        {"type": "lifespan.startup"},
    ],
)
def test_a_message_out_of_its_order_is_an_error_in_the_application(
    message: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(LifespanError, match="is no message to be sent now"):
        run(App([message]), "on")


def test_a_second_startup_complete_is_an_error_in_the_application(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.ERROR):
        run(App([complete("startup"), complete("startup")]))
    assert "is no message to be sent now" in caplog.text
