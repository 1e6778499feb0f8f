"""One table of requests, asked of every server and of uvicorn: the same answers, but for what DIFFERENCES explains."""

from __future__ import annotations

import json
import socket
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from typing import Any

import pytest
from app import WRONG
from client import Client, Response
from servers import Server, Start

BODY = bytes(range(256)) * 4
BIG = bytes(range(256)) * 4096  # 1 MB
HOST = b"host: test"


def request(
    target: str | bytes = "/",
    *headers: str | bytes,
    method: str = "GET",
    body: bytes = b"",
    version: str = "1.1",
) -> bytes:
    """A request as a good client writes it: with a host, and a content-length if it has a body."""
    lines = [b" ".join([method.encode(), encoded(target), b"HTTP/" + version.encode()])]
    given = [encoded(header) for header in headers]
    names = {header.partition(b":")[0].lower() for header in given}
    if b"host" not in names:
        lines.append(HOST)
    if body and not names & {b"content-length", b"transfer-encoding"}:
        given.append(b"content-length: %d" % len(body))
    return b"\r\n".join([*lines, *given, b"", body])


def encoded(text: str | bytes) -> bytes:
    return text.encode("latin-1") if isinstance(text, str) else text


def chunked(*pieces: bytes, end: bytes = b"0\r\n\r\n") -> bytes:
    return b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces) + end


def chunked_request(target: str, body: bytes, *headers: str) -> bytes:
    fields = ("transfer-encoding: chunked", *headers)
    return request(target, *fields, method="POST") + body


@dataclass(frozen=True)
class Case:
    name: str
    pieces: tuple[bytes, ...]
    statuses: tuple[int, ...]
    methods: tuple[str, ...] = ()  # of the requests that are answered; GET if there are not so many
    pause: float = 0.0  # between the pieces
    closes: bool | None = (
        False  # whether the server closes after the last answer; None: either is right
    )
    unlike: str = ""  # why uvicorn's answer is not the yardstick; `check` is, then
    check: Callable[[Outcome], None] | None = None

    def method(self, number: int) -> str:
        return self.methods[number] if number < len(self.methods) else "GET"


@dataclass
class Outcome:
    responses: list[Response] = field(default_factory=list)
    interim: list[int] = field(default_factory=list)
    closed: bool = False
    fault: str = ""

    def told(self) -> list[tuple[Any, ...]]:
        return [
            (answer.status, answer.told, content(answer), answer.trailers, answer.whole)
            for answer in self.responses
        ]


def content(answer: Response) -> Any:
    """The body; of a report what does not tell one server, or one connection, from another."""
    if answer.one("content-type") != "application/json" or not answer.body:
        return answer.body
    told = json.loads(answer.body)
    for key in ("client", "server", "asgi", "extensions"):
        told["scope"].pop(key, None)
    return told


def asked(server: Server, case: Case) -> Outcome:
    outcome = Outcome()
    with Client(server.connect()) as client:
        client.send(*case.pieces, pause=case.pause)
        methods = [case.method(number) for number in range(len(case.statuses))]
        outcome.responses = client.responses(methods)
        outcome.interim = client.interim
        # A kept connection says so by staying open: for a moment, that is.
        outcome.closed = client.at_end(5 if case.closes else 0.03)
        outcome.fault = repr(client.data[:200]) if client.data else ""
    return outcome


def one(name: str, data: bytes, status: int = 200, method: str = "GET", **more: Any) -> Case:
    return Case(name, (data,), (status,), (method,), **more)


# Checks of answers that uvicorn is no yardstick for.


def headers_are(*wanted: list[str]) -> Callable[[Outcome], None]:
    def check(outcome: Outcome) -> None:
        scope = json.loads(outcome.responses[0].body)["scope"]
        assert scope["headers"] == [["host", "test"], *wanted]

    return check


def paths_are(*wanted: str) -> Callable[[Outcome], None]:
    def check(outcome: Outcome) -> None:
        told = [json.loads(answer.body)["scope"] for answer in outcome.responses]
        assert [scope["path"] for scope in told] == list(wanted)
        assert [scope["raw_path"] for scope in told] == list(wanted)

    return check


def length_is(wanted: str) -> Callable[[Outcome], None]:
    def check(outcome: Outcome) -> None:
        assert outcome.responses[0].one("content-length") == wanted

    return check


HELD_BACK = "uvicorn sends the head at once; ASGI: not before the first message of the body"


def nothing(outcome: Outcome) -> None:
    """The status says it."""
    assert len(outcome.responses) == 1


def says_keep_alive(outcome: Outcome) -> None:
    assert outcome.responses[0].one("connection") == "keep-alive"


# ---------------------------------------------------------------------------------------------------------------------
# The table


def simple() -> list[Case]:
    methods = ("GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "PROPFIND")
    cases = [one(f"{name} /", request(method=name), method=name) for name in methods]
    cases += [
        one(f"{name} with a body", request("/echo", method=name, body=BODY), method=name)
        for name in ("GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS")
    ]
    cases += [
        one("OPTIONS *", request("*", method="OPTIONS"), method="OPTIONS"),
        one("a body of length 0", request("/", "content-length: 0", method="POST")),
        one("a POST without a length", request("/", method="POST")),
        one("a length with zeros in front", request("/", "content-length: 0004", body=b"four")),
        one("an empty header value", request("/", "x-empty:", "x-spaces:   ", "x-last: 1")),
        one(
            "whitespace around values",
            request("/", "x-a: \t a b \t", "x-b:b"),
            unlike="httptools leaves a tab at the end; RFC 9112, 5.1: not part of the value",
            check=headers_are(["x-a", "a b"], ["x-b", "b"]),
        ),
        one("duplicate headers", request("/", "x-a: 1", "x-b: 2", "x-a: 3", "cookie: a=1")),
        one("two cookies", request("/", "cookie: a=1", "cookie: b=2")),
        one("mixed case names", request("/", "X-Mixed-CASE: Value", "ACCEPT: */*")),
        one("values of eight bits", request("/", b"x-a: caf\xe9 \xc3\xa9")),
        one("all that a name may have", request("/", "!#$%&'*+-.^_`|~09az: 1")),
        one("a hundred headers", request("/", *[f"x-{n}: {n}" for n in range(100)])),
        one("a header of 4 KB", request("/", "x-long: " + "v" * 4096)),
        one("a target of 4 KB", request("/" + "p" * 4000)),
        one("an empty line before the request", b"\r\n" + request("/")),
        one("a host with a port", request("/", "host: test:8000")),
        one("a host of IPv6", request("/", "host: [::1]:8000")),
        one("an upgrade nobody speaks", request("/", "connection: upgrade", "upgrade: tls/1.0")),
        one("an unknown expectation's header beside", request("/", "te: trailers")),
    ]
    return cases


def targets() -> list[Case]:
    wanted = {
        "a path": "/a/b/c",
        "two slashes": "//a//b",
        "dots": "/a/../b/./c",
        "percent": "/a%20b%2Fc%25",
        "percent, small letters": "/%e2%82%ac",
        "percent, of UTF-8": "/%E2%82%AC/caf%C3%A9",
        "percent, not UTF-8": "/%ff%fe",
        "percent at the end": "/a%",
        "percent, no number": "/a%zz%1",
        "percent zero": "/a%00b",
        "percent CR LF": "/a%0d%0ab",
        "plus": "/a+b",
        "a query": "/a?b=c&d=e%20f",
        "an empty query": "/a?",
        "question marks": "/a?b?c=?",
        "only a query": "/?a",
        "a semicolon": "/a;b=c",
        "marks": "/-._~!$&'()*+,;=:@",
        "brackets and bars": '/a[1]{2}|3^4`5"6<7>\\8',
        "a colon": "/http://inner/",
    }
    return [one(f"target: {name}", request(target)) for name, target in wanted.items()]


def bodies() -> list[Case]:
    trailer = b"0\r\nx-trailer: after\r\nx-more: 1\r\n\r\n"
    return [
        one("a large body", request("/echo", method="POST", body=BIG)),
        one("a large body, reported", request("/", method="POST", body=BIG)),
        one("chunks", chunked_request("/echo", chunked(b"one", b"two", b"three"))),
        one("a chunked body of nothing", chunked_request("/echo", chunked())),
        one("large chunks", chunked_request("/echo", chunked(*[BIG[:100000]] * 8))),
        one("chunks of one byte", chunked_request("/echo", chunked(*[b"x"] * 2000))),
        one("chunk sizes in capitals", chunked_request("/echo", b"A\r\n0123456789\r\n0\r\n\r\n")),
        one(
            "chunk sizes with zeros",
            chunked_request("/echo", b"00000a\r\n0123456789\r\n000\r\n\r\n"),
        ),
        one(
            "chunk extensions",
            chunked_request("/echo", b'3;a=b;c="d e"\r\none\r\n0;last\r\n\r\n'),
        ),
        one("trailers", chunked_request("/echo", chunked(b"one", end=trailer), "trailer: x-more")),
        one(
            "trailers do not become headers",
            chunked_request("/", chunked(b"1", end=trailer)),
            unlike="uvicorn adds them to the scope's headers; RFC 9110, 6.5.1: not without knowing",
            check=headers_are(["transfer-encoding", "chunked"]),
        ),
        one(
            "chunked, in capitals",
            request("/echo", "Transfer-Encoding: CHUNKED", method="POST") + chunked(b"one"),
        ),
        Case(
            "a head in pieces",
            tuple(bytes([byte]) for byte in request("/", "x-a: 1", body=b"body")),
            (200,),
            pause=0.0005,
        ),
        Case(
            "chunks in pieces",
            (
                *(request("/echo", "transfer-encoding: chunked", method="POST"), b"3", b"\r"),
                *(b"\non", b"e", b"\r", b"\n0", b"\r\n", b"\r", b"\n"),
            ),
            (200,),
            pause=0.004,
        ),
        Case(
            "a body in pieces",
            (request("/echo", "content-length: 6", method="POST"), b"on", b"et", b"wo"),
            (200,),
            pause=0.004,
        ),
        Case(
            "an echo as it comes",
            (request("/echo-stream", "content-length: 6", method="POST"), b"one", b"two"),
            (200,),
            pause=0.02,
        ),
        one("a large echo as it comes", request("/echo-stream", method="POST", body=BIG)),
        # The client waits for 100 in a test of its own; here it sends at once.
        one(
            "an expectation not waited for",
            request("/echo", "expect: 100-continue", body=BODY),
            unlike="uvicorn says 100 for a body it has; RFC 9110, 10.1.1: that may be left out",
            check=nothing,
        ),
    ]


def answers() -> list[Case]:
    codes = [200, 201, 202, 204, 205, 206, 301, 302, 304, 400, 404, 418, 451, 500, 503, 599]
    cases = [one(f"status {code}", request(f"/status/{code}"), code) for code in codes]
    cases += [
        one(f"HEAD, status {code}", request(f"/status/{code}", method="HEAD"), code, "HEAD")
        for code in (200, 204, 304, 404)
    ]
    cases += [
        one(
            "304 with the length it would have",
            request("/status/304?length=100"),
            304,
            unlike="uvicorn misses the hundred bytes; RFC 9110, 8.6: a 304 says what a 200 would have",
            check=length_is("100"),
        ),
        one("HEAD with a length", request("/bytes/1000", method="HEAD"), 200, "HEAD"),
        one("HEAD of a stream", request("/stream/3/10", method="HEAD"), 200, "HEAD"),
        one(
            "HEAD of a stream with a length",
            request("/stream/3/10?length=1", method="HEAD"),
            200,
            "HEAD",
        ),
        one("no bytes", request("/bytes/0")),
        one("one byte", request("/bytes/1")),
        one("a large answer", request("/bytes/3000000")),
        one("a stream", request("/stream/64/1024")),
        one("a stream with a length", request("/stream/64/1024?length=1")),
        one("a stream of large pieces", request("/stream/10/300000")),
        one("a stream that takes time", request("/stream/5/10?pause=0.01")),
        one("a stream of nothing", request("/stream/0/0")),
        one("pieces of nothing", request("/empty")),
        one("many small pieces", request("/buffers")),
        one("headers of an application", request("/headers")),
        one("server and date of an application", request("/own-names")),
        one("connection: close of an application", request("/closing"), closes=True),
        one("a whole resource", request("/range")),
        one("a range", request("/range", "range: bytes=10-19"), 206),
        one("a range beyond", request("/range", "range: bytes=5000-5001"), 416),
        one("the state of the lifespan", request("/state")),
        one("not reading a small body", request("/ignore", method="POST", body=b"unread")),
        one("not reading a chunked body", chunked_request("/ignore", chunked(b"unread"))),
        one("an exception before the start", request("/raise/before"), 500, closes=None),
        one(
            "an exception after the start",
            request("/raise/start"),
            500,
            closes=None,
            unlike=HELD_BACK,
            check=nothing,
        ),
        one("an exception in the middle", request("/raise/midway"), 200, closes=True),
        one("an exception after the answer", request("/raise/after"), 200, closes=None),
        one("no answer at all", request("/silent/before"), 500, closes=None),
        one(
            "a start without a body",
            request("/silent/start"),
            500,
            closes=None,
            unlike=HELD_BACK,
            check=nothing,
        ),
        one("half a streamed answer", request("/silent/midway"), 200, closes=True),
        one("less than its content-length", request("/length/10/5"), 200, closes=True),
        one(
            "more than its content-length",
            request("/length/5/10"),
            500,
            closes=None,
            unlike="uvicorn sends the head before it looks at the body: the client waits in vain",
            check=nothing,
        ),
    ]
    return cases


def connections() -> list[Case]:
    get = request("/a")
    last = request("/last", "connection: close")
    post = request("/echo", method="POST", body=b"body")
    ten = request("/ten", version="1.0")
    kept = request("/ten", "connection: keep-alive", version="1.0")
    slow = [request(f"/slow/{n}?seconds={0.03 * (3 - n)}") for n in range(3)]
    return [
        Case("two on one connection", (get, get), (200, 200), pause=0.02),
        Case("a close", (last,), (200,), closes=True),
        Case("a close in capitals", (request("/", "Connection: CLOSE"),), (200,), closes=True),
        Case("a close in a list", (request("/", "connection: x, close"),), (200,), closes=True),
        Case("pipelined", (get * 5 + last,), (200,) * 6, closes=True),
        Case("pipelined with bodies", (post * 3 + get + last,), (200,) * 5, closes=True),
        Case(
            "pipelined, chunked",
            (chunked_request("/echo", chunked(b"a", b"bc")) * 3 + last,),
            (200,) * 4,
            closes=True,
        ),
        Case("pipelined and answered in order", (b"".join(slow) + last,), (200,) * 4, closes=True),
        Case(
            "pipelined past a body nobody reads",
            (request("/ignore", body=b"GET /smuggled HTTP/1.1\r\nhost: x\r\n\r\n") + last,),
            (200, 200),
            closes=True,
        ),
        Case(
            "pipelined heads",
            (request("/bytes/5", method="HEAD") * 2 + last,),
            (200,) * 3,
            ("HEAD", "HEAD"),
            closes=True,
        ),
        Case(
            "pipelined large answers",
            (request("/bytes/500000") * 4 + last,),
            (200,) * 5,
            closes=True,
        ),
        Case(
            "pipelined streams", (request("/stream/20/1000") * 4 + last,), (200,) * 5, closes=True
        ),
        Case("nothing after the last", (last + get,), (200,), closes=True),
        Case("204 and another", (request("/status/204") + last,), (204, 200), closes=True),
        Case("304 and another", (request("/status/304") + last,), (304, 200), closes=True),
        Case(
            "pipelined in pieces",
            tuple((get + post + last)[at : at + 7] for at in range(0, len(get + post + last), 7)),
            (200,) * 3,
            pause=0.001,
            closes=True,
        ),
        Case("HTTP/1.0", (ten,), (200,), closes=True),
        Case("HTTP/1.0 without a host", (b"GET / HTTP/1.0\r\n\r\n",), (200,), closes=True),
        Case(
            "HTTP/1.0 kept alive",
            (kept, request("/ten", version="1.0")),
            (200, 200),
            pause=0.02,
            closes=True,
            unlike="uvicorn closes after the first; RFC 9112, 9.3: it may be kept",
            check=says_keep_alive,
        ),
        Case(
            "HTTP/1.0, a body", (request("/echo", version="1.0", body=BODY),), (200,), closes=True
        ),
        Case("HTTP/1.0, a stream", (request("/stream/3/10", version="1.0"),), (200,), closes=True),
        Case("absolute-form", (request("http://test/abs/path?query=1"),), (200,)),
        Case(
            "absolute-form without a path",
            (request("http://test"), request("http://test?query=1")),
            (200, 200),
            unlike="httptools refuses it; RFC 9112, 3.2.2: a server must accept it",
            check=paths_are("/", "/"),
        ),
        Case("absolute-form, another host", (request("http://other:81/p", "host: test"),), (200,)),
        Case("absolute-form of https", (request("https://test/p"),), (200,)),
    ]


CASES = [*simple(), *targets(), *bodies(), *answers(), *connections()]


@pytest.mark.everywhere
@pytest.mark.parametrize(
    "case", [case for case in CASES if not case.unlike], ids=lambda case: case.name
)
def test_the_answer_is_the_same_as_the_reference_gives(
    server: Server, reference: Server, case: Case
) -> None:
    ours = asked(server, case)
    theirs = asked(reference, case)
    assert [answer.status for answer in theirs.responses] == list(case.statuses), "the reference"
    check(ours, case)
    assert ours.told() == theirs.told()
    assert ours.interim == theirs.interim


@pytest.mark.everywhere
@pytest.mark.parametrize(
    "case", [case for case in CASES if case.unlike], ids=lambda case: case.name
)
def test_the_answer_is_what_the_standard_says_where_the_reference_is_not(
    server: Server, case: Case
) -> None:
    ours = asked(server, case)
    check(ours, case)
    assert case.check
    case.check(ours)


def check(ours: Outcome, case: Case) -> None:
    assert [answer.status for answer in ours.responses] == list(case.statuses), ours.fault
    assert case.closes is None or ours.closed == case.closes, ours.fault
    assert not ours.fault


# ---------------------------------------------------------------------------------------------------------------------
# What no table of answers shows: when something is sent, and what the handler saw


def ask(server: Server, data: bytes, method: str = "GET") -> Response:
    with Client(server.connect()) as client:
        client.send(data)
        return client.response(method)


def noted(server: Server, token: str, seconds: float = 5, at_least: int = 1) -> list[Any]:
    """What handlers have noted under the token, once they have noted so much."""
    deadline = time.monotonic() + seconds
    while True:
        told: list[Any] = json.loads(ask(server, request(f"/notes?token={token}")).body)
        if len(told) >= at_least or time.monotonic() > deadline:
            return told
        time.sleep(0.02)


@pytest.mark.parametrize("version", ["1.0", "1.1"])
def test_a_stream_without_a_length_is_chunked_only_for_who_knows_chunks(
    server: Server, version: str
) -> None:
    answer = ask(server, request("/stream/3/10", version=version))
    assert answer.framing == ("chunked" if version == "1.1" else "close")
    assert answer.body == b"0123456789" * 3


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("code", [204, 304])
def test_an_answer_that_has_no_body_says_no_transfer_encoding(
    server: Server, code: int, method: str
) -> None:
    answer = ask(server, request(f"/status/{code}", method=method), method)
    assert answer.all("transfer-encoding") == []
    assert code != 204 or answer.all("content-length") == []


def test_every_answer_has_one_date_that_is_now(server: Server) -> None:
    for target in ("/", "/raise/before", "/status/204", "/stream/1/1"):
        date = ask(server, request(target)).one("date")
        assert date is not None, target
        assert abs(parsedate_to_datetime(date).timestamp() - time.time()) < 3
    assert ask(server, request("/own-names")).one("date") == "Thu, 01 Jan 1970 00:00:00 GMT"


def test_the_server_header_is_there_once_and_the_applications_own_wins(server: Server) -> None:
    assert ask(server, request("/")).one("server")
    assert ask(server, request("/own-names")).one("server") == "mine"


def test_an_answer_after_which_the_connection_closes_says_so(server: Server) -> None:
    last = request("/", "connection: close")
    assert ask(server, last).closes
    assert ask(server, request("/closing")).closes
    assert ask(server, request("/", version="1.0")).closes
    assert not ask(server, request("/")).closes


def test_continue_is_said_when_the_application_wants_the_body(server: Server) -> None:
    fields = ("expect: 100-continue", "content-length: 4")
    with Client(server.connect()) as client:
        client.send(request("/echo", *fields, method="POST"))
        deadline = time.monotonic() + 5
        assert client.until(b"\r\n\r\n", deadline).startswith(b"HTTP/1.1 100")
        client.send(b"body")
        answer = client.response()
        assert (answer.status, answer.body) == (200, b"body")
        client.send(request("/"))
        assert client.response().status == 200


def test_continue_is_not_said_to_who_gets_the_answer_without_it(server: Server) -> None:
    """And since the body may or may not follow, the connection cannot go on as if it were a request."""
    fields = ("expect: 100-continue", "content-length: 4")
    with Client(server.connect()) as client:
        client.send(request("/ignore", *fields, method="POST"))
        answer = client.response()
        assert (answer.status, client.interim) == (200, [])
        client.send(b"body" + request("/after", "connection: close"))
        rest = client.responses(["GET"])
        assert not rest or json.loads(rest[0].body)["scope"]["path"] == "/after"


def test_continue_is_not_said_to_http_1_0(server: Server) -> None:
    fields = ("expect: 100-continue", "content-length: 4")
    with Client(server.connect()) as client:
        client.send(request("/echo", *fields, method="POST", version="1.0"), b"body", pause=0.05)
        answer = client.response()
        assert (answer.status, answer.body, client.interim) == (200, b"body", [])


def test_pieces_of_an_answer_leave_when_they_are_sent(server: Server) -> None:
    began = time.monotonic()
    with Client(server.connect()) as client:
        client.send(request("/stream/4/10?pause=0.3"))
        deadline = time.monotonic() + 5
        client.until(b"\r\n\r\n", deadline)
        assert client.until(b"\r\n", deadline) == b"a"
        assert client.exactly(10, deadline) == b"0123456789"
        assert time.monotonic() - began < 0.3
        client.until(b"0\r\n\r\n", deadline)
    assert time.monotonic() - began > 0.9


def test_the_body_reaches_the_application_as_it_comes(server: Server) -> None:
    with Client(server.connect()) as client:
        client.send(request("/echo-stream", "transfer-encoding: chunked", method="POST"))
        deadline = time.monotonic() + 5
        for piece in (b"one", b"two", b"three"):
            client.send(b"%x\r\n%s\r\n" % (len(piece), piece))
            if piece == b"one":
                client.until(b"\r\n\r\n", deadline)
            assert client.until(b"\r\n", deadline) == b"%x" % len(piece)
            assert client.until(b"\r\n", deadline) == piece
        client.send(b"0\r\n\r\n")
        assert client.until(b"\r\n\r\n", deadline) == b"0"


@pytest.mark.parametrize("how", ["close", "reset"])
def test_a_waiting_application_is_told_that_the_client_has_gone(
    server: Server, token: str, how: str
) -> None:
    client = Client(server.connect())
    client.send(request(f"/wait?token={token}&again=1"))
    assert noted(server, token, at_least=2) == ["began", "read"]
    if how == "reset":
        client.peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.peer.close()
    told = noted(server, token, at_least=5)
    assert told[2:4] == ["http.disconnect", "http.disconnect"]
    assert told[4] in ("sent into the void", "refused")


def test_an_application_that_wants_the_body_of_who_went_away_is_told(
    server: Server, token: str
) -> None:
    with Client(server.connect()) as client:
        client.send(request(f"/wait?token={token}", "content-length: 9", method="POST") + b"half")
        assert noted(server, token) == ["began"]
    assert noted(server, token, at_least=2) == ["began", "http.disconnect"]


def test_an_application_streaming_to_who_went_away_ends_and_the_server_goes_on(
    server: Server, token: str
) -> None:
    with Client(server.connect()) as client:
        client.send(request(f"/stream/2000/100000?token={token}"))
        client.until(b"\r\n\r\n", time.monotonic() + 5)
    assert ask(server, request("/")).status == 200


def test_a_stream_waits_for_a_client_that_does_not_read(server: Server, token: str) -> None:
    """Two thousand pieces of a hundred kilobytes are more than the sockets and the server's buffers hold."""
    with Client(server.connect()) as client:
        client.send(request(f"/stream/2000/100000?token={token}"))
        noted(server, token)
        before = -1
        while (sent := len(noted(server, token, 0))) != before:
            before = sent
            time.sleep(0.15)
        assert 0 < sent < 1000
        answer = client.response(seconds=30)
        assert len(answer.body) == 2000 * 100000


def test_a_body_waits_for_an_application_that_does_not_read(server: Server) -> None:
    with Client(server.connect(2)) as client:
        client.send(request("/slow/1?seconds=1", f"content-length: {1 << 30}", method="POST"))
        taken = 0
        client.peer.settimeout(0.3)
        try:
            while taken < 1 << 28:
                taken += client.peer.send(BIG)
        except (TimeoutError, ConnectionError):
            pass
        assert taken < 1 << 26


def test_who_reads_after_the_answer_gets_the_rest_or_the_disconnect(
    server: Server, token: str
) -> None:
    with Client(server.connect()) as client:
        client.send(request(f"/late?token={token}", body=b"body"))
        assert client.response().body == b"answered first"
    assert noted(server, token)[0] in ("http.request", "http.disconnect")


def test_a_thousand_requests_go_over_one_connection(server: Server) -> None:
    with Client(server.connect()) as client:
        for _ in range(10):
            client.send(request("/bytes/10") * 100)
            answers = client.responses(["GET"] * 100)
            assert [answer.body for answer in answers] == [b"0123456789"] * 100


def test_fifty_connections_at_once_get_their_own_answers(server: Server) -> None:
    clients = [Client(server.connect()) for _ in range(50)]
    for number, client in enumerate(clients):
        client.send(request(f"/slow/{number}?seconds=0.05"))
    bodies = [client.response().body.decode() for client in clients]
    for client in clients:
        client.peer.close()
    assert bodies == [f"/slow/{number}" for number in range(50)]


def test_the_state_of_the_lifespan_is_copied_for_each_request_and_shared_one_level_down(
    server: Server,
) -> None:
    for _ in range(2):
        told = json.loads(ask(server, request("/state")).body)
        assert told == {"database": "open", "shared": "list", "mine": 1}


@pytest.mark.parametrize("name", sorted(WRONG))
def test_what_an_application_may_not_send_is_refused_and_never_reaches_the_client(
    start: Start, server: Server, token: str, name: str
) -> None:
    with Client(server.connect()) as client:
        client.send(request(f"/wrong/{name}?token={token}", "connection: close"))
        raw = client.rest()
    assert b"evil" not in raw
    told = noted(server, token)
    assert told and told[0] != "all of it was taken", told
    number = told[0][0]
    assert number > 0 or raw.startswith(b"HTTP/1.1 500")
    assert ask(server, request("/")).status == 200
