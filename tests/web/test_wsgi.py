"""WSGI applications behind the adapter, called as the ASGI applications they then are."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextvars
import io
import logging
import sys
import threading
import wsgiref.validate
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest

from erlang_web._wsgi import Disconnected, FileWrapper, WsgiAdapter

Headers = list[tuple[bytes, bytes]]
PATIENCE = 10.0


class Client:
    """The ASGI side of one request: what it sends, a chunk at a time, and what it was sent."""

    def __init__(self, method: str = "GET", path: str = "/", *chunks: bytes, **more: Any) -> None:
        headers: Headers = [(b"host", b"x"), *more.pop("headers", [])]
        if chunks:
            headers.append(more.pop("framing", (b"transfer-encoding", b"chunked")))
        self.scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.5"},
            "http_version": "1.1",
            "method": method,
            "scheme": "http",
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "root_path": "",
            "headers": headers,
            "client": ("192.0.2.1", 4711),
            "server": ("127.0.0.1", 8000),
            **more,
        }
        self.chunks = list(chunks)
        self.asked = 0  # how often for a chunk
        self.sent: list[Any] = []
        self.room = asyncio.Event()  # for more of the answer
        self.room.set()

    async def receive(self) -> Any:
        self.asked += 1
        if not self.chunks:
            return {"type": "http.disconnect"}
        body = self.chunks.pop(0)
        return {"type": "http.request", "body": body, "more_body": bool(self.chunks)}

    async def send(self, message: Any) -> None:
        self.sent.append(message)
        await self.room.wait()

    @property
    def status(self) -> int:
        return int(self.sent[0]["status"])

    @property
    def headers(self) -> dict[bytes, bytes]:
        return dict(self.sent[0]["headers"])

    @property
    def body(self) -> bytes:
        assert [one["type"] for one in self.sent[1:]] == ["http.response.body"] * (
            len(self.sent) - 1
        )
        assert [one["more_body"] for one in self.sent[1:]] == [True] * (len(self.sent) - 2) + [
            False
        ]
        return b"".join(one["body"] for one in self.sent[1:])


Application = Callable[..., Iterable[bytes]]


@pytest.fixture
def threads() -> Iterator[concurrent.futures.ThreadPoolExecutor]:
    with concurrent.futures.ThreadPoolExecutor(2) as executor:
        yield executor


Ask = Callable[..., Client]


@pytest.fixture
def ask(threads: concurrent.futures.Executor) -> Ask:
    """What an application, checked by wsgiref's validator, answers."""

    def asked(app: Application, *request: Any, validated: bool = True, **more: Any) -> Client:
        async def run() -> Client:
            client = Client(*request, **more)
            checked: Any = wsgiref.validate.validator(app) if validated else app  # type: ignore[arg-type]
            adapter = WsgiAdapter(checked, threads)
            await adapter(client.scope, client.receive, client.send)
            assert adapter.running == 0
            return client

        return asyncio.run(run())

    return asked


def hello(environ: Any, start_response: Any) -> list[bytes]:
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"hello"]


def test_an_answer_in_one_piece_has_its_length(ask: Ask) -> None:
    client = ask(hello, validated=False)  # the validator's iterable shows no length
    assert client.status == 200
    assert client.headers == {b"content-type": b"text/plain", b"content-length": b"5"}
    assert client.body == b"hello"


def test_blocks_are_sent_as_they_come(ask: Ask) -> None:
    def app(environ: Any, start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", [("Content-Type", "text/plain")])
        yield b"one"
        yield b""
        yield b"two"

    client = ask(app)
    assert [one["body"] for one in client.sent[1:]] == [b"one", b"two", b""]
    assert b"content-length" not in client.headers


def test_an_answer_without_a_body_is_one(ask: Ask) -> None:
    def app(environ: Any, start_response: Any) -> list[bytes]:
        start_response("204 No Content", [])
        return []

    client = ask(app)
    assert (client.status, client.headers, client.body) == (204, {}, b"")


def test_the_environ_is_what_pep_3333_says(ask: Ask) -> None:
    seen: dict[str, Any] = {}

    def app(environ: Any, start_response: Any) -> list[bytes]:
        seen.update(environ)
        return hello(environ, start_response)

    headers: Headers = [(b"x-a", b"1"), (b"x-a", b"2"), (b"cookie", b"a=1"), (b"cookie", b"b=2")]
    headers += [(b"content-type", b"text/x"), (b"x-\xe9", b"\xff")]
    ask(
        app,
        "POST",
        "/shop/it%20em",
        b"body",
        headers=headers,
        root_path="/shop",
        query_string=b"q=%20",
    )
    wanted = {
        "REQUEST_METHOD": "POST",
        "SCRIPT_NAME": "/shop",
        "PATH_INFO": "/it em",
        "QUERY_STRING": "q=%20",
        "CONTENT_TYPE": "text/x",
        "SERVER_NAME": "127.0.0.1",
        "SERVER_PORT": "8000",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "REMOTE_ADDR": "192.0.2.1",
        "REMOTE_PORT": "4711",
        "HTTP_HOST": "x",
        "HTTP_X_A": "1,2",
        "HTTP_COOKIE": "a=1;b=2",
        "HTTP_X_É": "\xff",
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": "http",
        "wsgi.multithread": True,
        "wsgi.multiprocess": False,
        "wsgi.run_once": False,
        "wsgi.input_terminated": True,
    }
    assert {name: seen.get(name) for name in wanted} == wanted


@pytest.mark.parametrize(
    "raw, root, script, info",
    [
        ("/", "", "", "/"),
        ("/caf%C3%A9", "", "", "/caf\xc3\xa9"),
        ("/%FF%2Fx", "", "", "/\xff/x"),
        ("/a", "/a", "/a", ""),
        ("/a/", "/a", "/a", "/"),
        ("/ab", "/a", "/a", "/ab"),
        ("/a/b", "/a/", "/a", "/b"),
    ],
)
def test_paths_are_bytes_as_latin_1(ask: Ask, raw: str, root: str, script: str, info: str) -> None:
    seen: dict[str, Any] = {}

    def app(environ: Any, start_response: Any) -> list[bytes]:
        seen.update(environ)
        return hello(environ, start_response)

    ask(app, "GET", raw, root_path=root, validated=False)
    assert (seen["SCRIPT_NAME"], seen["PATH_INFO"]) == (script, info)


def test_names_that_a_client_could_forge_are_left_out(ask: Ask) -> None:
    seen: dict[str, Any] = {}

    def app(environ: Any, start_response: Any) -> list[bytes]:
        seen.update(environ)
        return hello(environ, start_response)

    ask(app, headers=[(b"proxy", b"http://evil"), (b"x_user", b"root"), (b"x-user", b"me")])
    assert seen["HTTP_X_USER"] == "me"
    assert "HTTP_PROXY" not in seen


def test_a_unix_socket_has_a_server_name_too(ask: Ask) -> None:
    seen: dict[str, Any] = {}

    def app(environ: Any, start_response: Any) -> list[bytes]:
        seen.update(environ)
        return hello(environ, start_response)

    ask(app, server=("/run/web.sock", None), client=None)
    assert (seen["SERVER_NAME"], seen["SERVER_PORT"]) == ("localhost", "80")
    assert "REMOTE_ADDR" not in seen


BODY = b"one\ntwo two\n\nthree"


@pytest.mark.parametrize("cut", range(1, len(BODY)))
def test_a_body_reads_as_a_file_wherever_it_was_cut(ask: Ask, cut: int) -> None:
    read: list[Any] = []

    def app(environ: Any, start_response: Any) -> list[bytes]:
        stream, oracle = environ["wsgi.input"], io.BytesIO(BODY)
        for how in (
            lambda file: file.readline(2),
            lambda file: file.readline(),
            lambda file: file.read(5),
            lambda file: file.read(0),
            lambda file: file.readlines(1),
            lambda file: next(iter(file)),
            lambda file: file.read(-1),
            lambda file: file.read(3),
            lambda file: file.readline(),
            lambda file: file.readlines(),
        ):
            try:
                expected = how(oracle)
            except StopIteration:
                expected = None
            try:
                found = how(stream)
            except StopIteration:
                found = None
            read.append((found, expected))
        return hello(environ, start_response)

    ask(app, "POST", "/", BODY[:cut], BODY[cut:])
    assert len(read) == 10
    for found, expected in read:
        assert found == expected


def test_a_body_is_read_by_lines(ask: Ask) -> None:
    lines: list[bytes] = []

    def app(environ: Any, start_response: Any) -> list[bytes]:
        lines.extend(environ["wsgi.input"])
        return hello(environ, start_response)

    ask(app, "POST", "/", *[bytes([one]) for one in BODY])
    assert lines == BODY.splitlines(True)


def test_a_request_without_a_body_asks_for_none(ask: Ask) -> None:
    def app(environ: Any, start_response: Any) -> list[bytes]:
        assert environ["wsgi.input"].read(-1) == b""
        return hello(environ, start_response)

    assert ask(app).asked == 0


def test_no_more_of_a_body_is_taken_than_is_read(ask: Ask) -> None:
    def app(environ: Any, start_response: Any) -> list[bytes]:
        assert environ["wsgi.input"].read(3) == b"aaa"
        return hello(environ, start_response)

    assert ask(app, "POST", "/", b"aa", b"aa", b"aa", b"aa").asked == 2


def test_a_small_body_is_there_before_the_application_takes_a_thread(ask: Ask) -> None:
    before: list[int] = []

    async def receive() -> Any:
        before.append(threading.get_ident())
        return {"type": "http.request", "body": b"ab", "more_body": len(before) < 2}

    def app(environ: Any, start_response: Any) -> list[bytes]:
        assert len(before) == 2
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [environ["wsgi.input"].read()]

    with concurrent.futures.ThreadPoolExecutor(1) as threads:
        client = Client("POST", "/", b"", framing=(b"content-length", b"4"))
        asyncio.run(WsgiAdapter(app, threads)(client.scope, receive, client.send))
    assert client.body == b"abab"


def test_a_client_that_goes_before_the_end_of_its_body_is_an_os_error(ask: Ask) -> None:
    raised: list[Any] = []

    def app(environ: Any, start_response: Any) -> list[bytes]:
        try:
            environ["wsgi.input"].read()
        except OSError as error:
            raised.append(error)
        return hello(environ, start_response)

    headers: Headers = [(b"transfer-encoding", b"chunked")]
    ask(app, "POST", "/", headers=headers, validated=False)
    assert isinstance(raised[0], Disconnected)


def test_write_sends_at_once(ask: Ask) -> None:
    def app(environ: Any, start_response: Any) -> list[bytes]:
        write = start_response("200 OK", [("Content-Type", "text/plain")])
        write(b"one ")
        write(b"two ")
        return [b"three"]

    client = ask(app)
    assert [one["body"] for one in client.sent[1:]] == [b"one ", b"two ", b"three", b""]
    assert client.body == b"one two three"


def test_start_response_may_change_its_mind_before_anything_was_sent(ask: Ask) -> None:
    def app(environ: Any, start_response: Any) -> list[bytes]:
        start_response("200 OK", [("Content-Type", "text/plain")])
        try:
            raise ValueError("late")
        except ValueError:
            start_response("500 Oh No", [("Content-Type", "text/plain")], sys.exc_info())
        return [b"sorry"]

    client = ask(app)
    assert (client.status, client.body) == (500, b"sorry")


def test_start_response_raises_what_it_was_given_once_something_was_sent(ask: Ask) -> None:
    def app(environ: Any, start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", [("Content-Type", "text/plain")])
        yield b"begun"
        try:
            raise ValueError("too late")
        except ValueError:
            start_response("500 Oh No", [("Content-Type", "text/plain")], sys.exc_info())

    with pytest.raises(ValueError, match="too late"):
        ask(app)


def test_start_response_twice_is_an_error(ask: Ask) -> None:
    def app(environ: Any, start_response: Any) -> list[bytes]:
        start_response("200 OK", [])
        start_response("200 OK", [])
        return []

    with pytest.raises(RuntimeError, match="called twice without exc_info"):
        ask(app, validated=False)


@pytest.mark.parametrize("status", ["OK", "20 OK", "200OK", "2000", "", "２００ OK"])
def test_a_status_that_is_none_is_an_error(ask: Ask, status: str) -> None:
    def app(environ: Any, start_response: Any) -> list[bytes]:
        start_response(status, [])
        return []

    with pytest.raises(ValueError, match="does not begin with three digits"):
        ask(app, validated=False)


def test_a_body_without_a_start_is_an_error(ask: Ask) -> None:
    with pytest.raises(RuntimeError, match="before it called start_response"):
        ask(lambda environ, start_response: [b"x"], validated=False)


def test_a_body_of_texts_is_an_error(ask: Ask) -> None:
    def app(environ: Any, start_response: Any) -> Any:
        start_response("200 OK", [])
        return ["text"]

    with pytest.raises(TypeError, match="gives bytes, not str"):
        ask(app, validated=False)


def test_headers_between_server_and_client_are_the_servers_business(ask: Ask) -> None:
    def app(environ: Any, start_response: Any) -> list[bytes]:
        start_response(
            "200 OK", [("Connection", "close"), ("Transfer-Encoding", "x"), ("X-Y", "z")]
        )
        return [b""]

    assert ask(app, validated=False).headers == {b"x-y": b"z", b"content-length": b"0"}


def test_what_is_beyond_the_announced_length_is_not_sent(ask: Ask) -> None:
    def app(environ: Any, start_response: Any) -> list[bytes]:
        start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "4")])
        return [b"abc", b"def", b"ghi"]

    assert ask(app).body == b"abcd"


class Closing:
    """An iterable that says whether it was closed."""

    def __init__(self, *blocks: Any) -> None:
        self.blocks = iter(blocks)
        self.closed = 0

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        block = next(self.blocks)
        if isinstance(block, BaseException):
            raise block
        return bytes(block)

    def close(self) -> None:
        self.closed += 1


def closing_app(blocks: Closing) -> Application:
    def app(environ: Any, start_response: Any) -> Closing:
        start_response("200 OK", [("Content-Type", "text/plain")])
        return blocks

    return app


def test_the_iterable_is_closed_when_it_has_ended(ask: Ask) -> None:
    blocks = Closing(b"a", b"b")
    assert ask(closing_app(blocks)).body == b"ab"
    assert blocks.closed == 1


@pytest.mark.parametrize(
    "error", [ValueError("x"), SystemExit(3), StopIteration("y"), KeyboardInterrupt()]
)
def test_the_iterable_is_closed_when_it_fails_and_no_error_ends_the_loop(
    ask: Ask, error: Any
) -> None:
    blocks = Closing(b"a", error, b"b")
    if isinstance(error, StopIteration):
        assert ask(closing_app(blocks), validated=False).body == b"a"
    else:
        with pytest.raises((ValueError, RuntimeError)):
            ask(closing_app(blocks), validated=False)
    assert blocks.closed == 1


def test_an_application_that_raises_stop_iteration_is_an_error_and_no_hang(ask: Ask) -> None:
    def app(environ: Any, start_response: Any) -> Any:
        raise StopIteration

    with pytest.raises(RuntimeError, match="the application raised StopIteration"):
        ask(app, validated=False)


def test_no_more_of_an_answer_is_made_than_its_head_needs(ask: Ask) -> None:
    blocks = Closing(b"a", b"b", b"c")
    client = ask(closing_app(blocks), "HEAD")
    assert [one["body"] for one in client.sent[1:]] == [
        b"a",
        b"",
    ]  # the server leaves out the bodies
    assert b"content-length" not in client.headers
    assert blocks.closed == 1
    assert ask(hello, "HEAD", validated=False).headers[b"content-length"] == b"5"


def test_the_file_wrapper_sends_a_file_and_closes_it(ask: Ask) -> None:
    file = io.BytesIO(b"x" * 200_000)

    def app(environ: Any, start_response: Any) -> Any:
        assert environ["wsgi.file_wrapper"] is FileWrapper
        start_response("200 OK", [("Content-Type", "text/plain")])
        return environ["wsgi.file_wrapper"](file)

    client = ask(app)
    assert client.body == b"x" * 200_000
    assert file.closed


def test_errors_go_to_the_log_a_line_each(ask: Ask, caplog: pytest.LogCaptureFixture) -> None:
    def app(environ: Any, start_response: Any) -> list[bytes]:
        errors = environ["wsgi.errors"]
        errors.write("one\ntw")
        errors.writelines(["o\n", "three"])
        return hello(environ, start_response)

    with caplog.at_level(logging.ERROR):
        ask(app)
    assert [(one.name, one.message) for one in caplog.records] == [
        ("erlang_web.wsgi", "one"),
        ("erlang_web.wsgi", "two"),
        ("erlang_web.wsgi", "three"),
    ]


def test_a_websocket_is_refused(threads: concurrent.futures.Executor) -> None:
    sent: list[Any] = []

    async def receive() -> Any:
        return {"type": "websocket.connect"}

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(WsgiAdapter(hello, threads)({"type": "websocket"}, receive, send))
    assert sent == [{"type": "websocket.close"}]


def test_the_context_of_the_request_is_that_of_the_application(ask: Ask) -> None:
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable")

    def app(environ: Any, start_response: Any) -> list[bytes]:
        start_response("200 OK", [])
        return [variable.get().encode()]

    variable.set("seen")
    assert ask(app, validated=False).body == b"seen"


# --- threads and back-pressure --------------------------------------------------------------------


async def until(what: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not what():
            await asyncio.sleep(0.005)


def test_as_many_requests_run_at_once_as_there_are_threads(
    threads: concurrent.futures.ThreadPoolExecutor,
) -> None:
    gate, inside = threading.Event(), []

    def app(environ: Any, start_response: Any) -> list[bytes]:
        inside.append(threading.get_ident())
        gate.wait(PATIENCE)
        return hello(environ, start_response)

    async def run() -> None:
        adapter = WsgiAdapter(app, threads)
        clients = [Client() for _ in range(5)]
        tasks = [
            asyncio.create_task(adapter(one.scope, one.receive, one.send))  # type: ignore[arg-type]
            for one in clients
        ]
        await until(lambda: len(inside) == 2)
        await asyncio.sleep(0.05)
        assert len(inside) == 2 and adapter.running == 2
        gate.set()
        await asyncio.gather(*tasks)
        assert [one.body for one in clients] == [b"hello"] * 5

    asyncio.run(run())
    assert len(set(inside)) == 2


def test_an_application_waits_until_its_client_has_room(
    threads: concurrent.futures.Executor,
) -> None:
    given: list[int] = []

    def app(environ: Any, start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", [])
        for number in range(10):
            given.append(number)
            yield b"x" * 1000

    async def run() -> None:
        client = Client()
        client.room.clear()
        task = asyncio.create_task(
            WsgiAdapter(app, threads)(client.scope, client.receive, client.send)  # type: ignore[arg-type]
        )
        await until(lambda: len(client.sent) == 1)
        await asyncio.sleep(0.05)
        assert given == [0]
        client.room.set()
        await task
        assert given == list(range(10)) and client.body == b"x" * 10_000

    asyncio.run(run())


def test_an_endless_answer_ends_with_its_client(threads: concurrent.futures.Executor) -> None:
    closed = threading.Event()

    def app(environ: Any, start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", [])
        try:
            while True:
                yield b"x"
        finally:
            closed.set()

    class Leaving(Client):
        async def send(self, message: Any) -> None:
            await super().send(message)
            if len(self.sent) == 5:
                raise ConnectionResetError

    async def run() -> None:
        client = Leaving()
        await WsgiAdapter(app, threads)(client.scope, client.receive, client.send)  # type: ignore[arg-type]

    asyncio.run(run())
    assert closed.is_set()


def test_a_request_that_is_cancelled_lets_its_thread_go(
    threads: concurrent.futures.Executor,
) -> None:
    closed = threading.Event()

    def app(environ: Any, start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", [])
        try:
            while True:
                yield b"x"
        finally:
            closed.set()

    async def run() -> None:
        client = Client()
        client.room.clear()
        adapter = WsgiAdapter(app, threads)
        task = asyncio.create_task(adapter(client.scope, client.receive, client.send))  # type: ignore[arg-type]
        await until(lambda: len(client.sent) == 1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await until(lambda: closed.is_set() and adapter.running == 0)

    asyncio.run(run())
