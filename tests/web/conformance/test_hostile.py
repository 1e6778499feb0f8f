"""Requests that two servers could read differently, that never end, or that are none: refused, and the server goes on."""

from __future__ import annotations

import json
import random
import re
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import strict_parser
from client import Broken, Client, Response, parsed
from servers import Server, Start
from test_requests import HOST, ask, chunked, chunked_request, request

SMUGGLED = b"GET /smuggled HTTP/1.1\r\nhost: x\r\n\r\n"
LIMITS = {
    "max_line": 1024,
    "max_head": 4096,
    "max_headers": 20,
    "max_body": 10_000,
    "head_seconds": 1.0,
    "idle_seconds": 1.0,
    "body_seconds": 1.0,
}
MUTATIONS = 1500
MUTATION_SECONDS = 15.0


@pytest.fixture(scope="module")
def limited(start: Start, kind: str) -> Server:
    return start(kind, **LIMITS)


def head(*lines: bytes, end: bytes = b"\r\n\r\n") -> bytes:
    return b"\r\n".join(lines) + end


def get(*lines: bytes) -> bytes:
    return head(b"GET / HTTP/1.1", *lines)


def post(*lines: bytes, body: bytes = b"") -> bytes:
    return head(b"POST /echo HTTP/1.1", HOST, *lines) + body


CHUNKED = b"transfer-encoding: chunked"
LENGTH_4 = b"content-length: 4"


def with_chunks(body: bytes) -> bytes:
    return post(CHUNKED, body=body)


FRAMING = {
    "both lengths": post(CHUNKED, LENGTH_4, body=b"0\r\n\r\n"),
    "both lengths, the other way around": post(LENGTH_4, CHUNKED, body=b"0\r\n\r\n"),
    "two different lengths": post(LENGTH_4, b"content-length: 40", body=b"body"),
    "two different lengths in one": post(b"content-length: 4, 40", body=b"body"),
    "a negative length": post(b"content-length: -4", body=b"body"),
    "a length with a plus": post(b"content-length: +4", body=b"body"),
    "a length of hexadecimal digits": post(b"content-length: 0x4", body=b"body"),
    "a length with an underscore": post(b"content-length: 1_0", body=b"body"),
    "a length with a space inside": post(b"content-length: 1 0", body=b"body"),
    "a length of a word": post(b"content-length: four", body=b"body"),
    "a fraction of a length": post(b"content-length: 4.0", body=b"body"),
    "an empty length": post(b"content-length:", body=b"body"),
    "a length beyond 64 bits": post(b"content-length: 18446744073709551620", body=b"body"),
    "a length beyond 63 bits": post(b"content-length: 9223372036854775812", body=b"body"),
    "a length of other digits": post("content-length: \u0664".encode(), body=b"body"),
    "gzip, chunked": post(b"transfer-encoding: gzip, chunked", body=b"0\r\n\r\n"),
    "chunked, identity": post(b"transfer-encoding: chunked, identity", body=b"0\r\n\r\n"),
    "chunked, chunked": post(b"transfer-encoding: chunked, chunked", body=b"0\r\n\r\n"),
    "chunked twice": post(CHUNKED, CHUNKED, body=b"0\r\n\r\n"),
    "chunked and then gzip": post(CHUNKED, b"transfer-encoding: gzip", body=b"0\r\n\r\n"),
    "identity": post(b"transfer-encoding: identity"),
    "xchunked": post(b"transfer-encoding: xchunked", body=b"0\r\n\r\n"),
    "chunkedx": post(b"transfer-encoding: chunkedx", body=b"0\r\n\r\n"),
    "chunked in quotes": post(b'transfer-encoding: "chunked"', body=b"0\r\n\r\n"),
    "chunked with a parameter": post(b"transfer-encoding: chunked;q=1", body=b"0\r\n\r\n"),
    "chunked with a vertical tab": post(b"transfer-encoding: \x0bchunked", body=b"0\r\n\r\n"),
    "an empty transfer-encoding": post(b"transfer-encoding:", body=b"0\r\n\r\n"),
    "chunked in HTTP/1.0": head(b"POST /echo HTTP/1.0", HOST, CHUNKED) + b"0\r\n\r\n",
}
CHUNKS = {
    "a size with a plus": with_chunks(b"+3\r\none\r\n0\r\n\r\n"),
    "a negative size": with_chunks(b"-3\r\none\r\n0\r\n\r\n"),
    "a size with 0x": with_chunks(b"0x3\r\none\r\n0\r\n\r\n"),
    "a size with a space before": with_chunks(b" 3\r\none\r\n0\r\n\r\n"),
    "a size with a space inside": with_chunks(b"1 0\r\none\r\n0\r\n\r\n"),
    "a size with an underscore": with_chunks(b"1_0\r\none\r\n0\r\n\r\n"),
    "no size": with_chunks(b"\r\none\r\n0\r\n\r\n"),
    "only an extension": with_chunks(b";a=b\r\none\r\n0\r\n\r\n"),
    "a size of a word": with_chunks(b"three\r\none\r\n0\r\n\r\n"),
    "a size beyond 64 bits": with_chunks(b"10000000000000003\r\none\r\n0\r\n\r\n"),
    "a size of all bits": with_chunks(b"ffffffffffffffff\r\none\r\n0\r\n\r\n"),
    "a size far beyond": with_chunks(b"f" * 100 + b"\r\none\r\n0\r\n\r\n"),
    "a size that ends with LF": with_chunks(b"3\none\r\n0\r\n\r\n"),
    "a size that ends with CR": with_chunks(b"3\rone\r\n0\r\n\r\n"),
    "data longer than its size": with_chunks(b"3\r\nones\r\n0\r\n\r\n"),
    "data that ends with LF": with_chunks(b"3\r\none\n0\r\n\r\n"),
    "data that ends with CR": with_chunks(b"3\r\none\r0\r\n\r\n"),
    "data that ends with nothing": with_chunks(b"3\r\none0\r\n\r\n"),
    "an extension with LF": with_chunks(b"3;a\n=b\r\none\r\n0\r\n\r\n"),
    "an extension with CR": with_chunks(b"3;a\r=b\r\none\r\n0\r\n\r\n"),
    "an extension with NUL": with_chunks(b"3;a\0b\r\none\r\n0\r\n\r\n"),
    "an extension that has no end": with_chunks(b"3;" + b"a" * 200_000 + b"\r\none\r\n0\r\n\r\n"),
    "the last chunk ends with LF": with_chunks(b"3\r\none\r\n0\n\r\n"),
    "a trailer without a colon": with_chunks(b"3\r\none\r\n0\r\ntrailer\r\n\r\n"),
    "a trailer with a space before the colon": with_chunks(b"3\r\none\r\n0\r\na : b\r\n\r\n"),
    "a trailer with LF": with_chunks(b"3\r\none\r\n0\r\na: b\n\r\n"),
    "trailers without an end": with_chunks(b"3\r\none\r\n0\r\n" + b"a: b\r\n" * 100_000),
}
LINES = {
    "LF after the request line": b"GET / HTTP/1.1\nhost: test\r\n\r\n",
    "LF after a header": b"GET / HTTP/1.1\r\nhost: test\nx: y\r\n\r\n",
    "LF everywhere": b"GET / HTTP/1.1\nhost: test\n\n",
    "LF at the end of the head": b"GET / HTTP/1.1\r\nhost: test\r\n\n" + SMUGGLED,
    "CR after the request line": b"GET / HTTP/1.1\rhost: test\r\n\r\n",
    "CR after a header": b"GET / HTTP/1.1\r\nhost: test\rx: y\r\n\r\n",
    "CR in a value": get(HOST, b"x: a\rb"),
    "CR CR LF": b"GET / HTTP/1.1\r\r\nhost: test\r\n\r\n",
    "LF in a value": get(HOST, b"x: a\nb: c"),
    "a folded header": get(HOST, b"x: a", b" b"),
    "a header folded with a tab": get(HOST, b"x: a", b"\tb"),
    "a folded first header": get(b" x: a", HOST),
    "a folded transfer-encoding": post(b"transfer-encoding:", b" chunked", body=b"0\r\n\r\n"),
    "NUL in a value": get(HOST, b"x: a\0b"),
    "NUL in a name": get(HOST, b"x\0: b"),
    "NUL in the target": head(b"GET /\0 HTTP/1.1", HOST),
    "a control character in a value": get(HOST, b"x: a\x01b"),
    "DEL in a value": get(HOST, b"x: a\x7fb"),
    "a space before the colon": get(HOST, b"x : a"),
    "a tab before the colon": get(HOST, b"x\t: a"),
    "a space before the colon of a length": post(b"content-length : 4", body=b"body"),
    "a space before the colon of transfer-encoding": post(
        b"transfer-encoding : chunked", body=b"0\r\n\r\n"
    ),
    "a space in a name": get(HOST, b"x y: a"),
    "no name": get(HOST, b": a"),
    "no colon": get(HOST, b"header"),
    "a name in quotes": get(HOST, b'"x": a'),
    "a name of eight bits": get(HOST, b"caf\xe9: a"),
    "a name with a slash": get(HOST, b"a/b: c"),
    "a name with a parenthesis": get(HOST, b"a(b): c"),
}
HOSTS = {
    "no host": get(b"x: y"),
    "two hosts": get(HOST, b"host: other"),
    "the same host twice": get(HOST, HOST),
    "no host beside an absolute target": head(b"GET http://test/ HTTP/1.1"),
}
START_LINES = {
    "no version": head(b"GET /", HOST),
    "HTTP/0.9": b"GET /\r\n\r\n",
    "HTTP/2.0": head(b"GET / HTTP/2.0", HOST),
    "HTTP/1.2": head(b"GET / HTTP/1.2", HOST),
    "HTTP/1.10": head(b"GET / HTTP/1.10", HOST),
    "HTTP/01.1": head(b"GET / HTTP/01.1", HOST),
    "http/1.1": head(b"GET / http/1.1", HOST),
    "HTTP 1.1": head(b"GET / HTTP 1.1", HOST),
    "another protocol": head(b"GET / ICY/1.1", HOST),
    "a space behind the version": head(b"GET / HTTP/1.1 ", HOST),
    "two spaces": head(b"GET  / HTTP/1.1", HOST),
    "two spaces behind the target": head(b"GET /  HTTP/1.1", HOST),
    "a tab": head(b"GET\t/ HTTP/1.1", HOST),
    "a space before the method": head(b" GET / HTTP/1.1", HOST),
    "no method": head(b"/ HTTP/1.1", HOST),
    "no target": head(b"GET HTTP/1.1", HOST),
    "an empty target": head(b"GET  HTTP/1.1", HOST),
    "a method that is no token": head(b"G(E)T / HTTP/1.1", HOST),
    "a method with a colon": head(b"GET: / HTTP/1.1", HOST),
    "a method of eight bits": head(b"G\xc9T / HTTP/1.1", HOST),
    "a space in the target": head(b"GET /a b HTTP/1.1", HOST),
    "a relative target": head(b"GET a/b HTTP/1.1", HOST),
    "a fragment": head(b"GET /a#b HTTP/1.1", HOST),
    "a tab in the target": head(b"GET /a\tb HTTP/1.1", HOST),
    "a control character in the target": head(b"GET /a\x01b HTTP/1.1", HOST),
    "DEL in the target": head(b"GET /a\x7fb HTTP/1.1", HOST),
    "* of GET": head(b"GET * HTTP/1.1", HOST),
    "CONNECT": head(b"CONNECT test:443 HTTP/1.1", HOST),
    "the preface of HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "a client hello of TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(range(200)),
    "an answer": b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n",
    "NULs": b"\0" * 1000,
    "noise": bytes(random.Random(1).randrange(128, 256) for _ in range(1000)),
}
# A server may also take these for what they can only mean, or wait for a body that long.
HARMLESS = {"* of GET", "a fragment", "an empty transfer-encoding"}
VECTORS = FRAMING | CHUNKS | LINES | HOSTS | START_LINES
HOSTILE = [name for name in VECTORS if name not in HARMLESS]


def seen(server: Server, path: str) -> bool:
    return path in json.loads(ask(server, request("/seen")).body)


def refusal(raw: bytes) -> None:
    """Nothing, or one whole answer of 4xx (or 501, 505) that says that it is the last."""
    if not raw:
        return
    answer, rest = parsed(raw)
    assert 400 <= answer.status < 500 or answer.status in (501, 505), raw[:300]
    assert answer.closes and answer.whole and not rest, raw[:300]


@pytest.mark.everywhere
@pytest.mark.parametrize("name", HOSTILE)
def test_it_is_refused_the_connection_closed_and_what_follows_is_no_request(
    server: Server, name: str, token: str
) -> None:
    with Client(server.connect()) as client:
        client.send(VECTORS[name] + request(f"/smuggled-{token}"))
        raw = client.rest(5)
    if name in CHUNKS and raw.startswith(b"HTTP/1.1 500"):
        raw = b""  # the application had begun, and lost its client
    refusal(raw)
    assert not seen(server, f"/smuggled-{token}")


@pytest.mark.parametrize("name", [name for name in HOSTILE if name not in CHUNKS])
def test_what_is_refused_is_answered_and_not_only_hung_up_on(server: Server, name: str) -> None:
    with Client(server.connect()) as client:
        client.send(VECTORS[name])
        assert client.rest(5).startswith(b"HTTP/1.1 "), name


@pytest.mark.parametrize("name", sorted(HARMLESS))
def test_what_is_harmless_is_refused_or_answered_once_or_waited_for(
    server: Server, token: str, name: str
) -> None:
    with Client(server.connect()) as client:
        client.send(VECTORS[name])
        try:
            assert client.response(seconds=1).status in (200, 400, 404, 501)
        except TimeoutError:
            client.send(request(f"/smuggled-{token}"))
            assert not client.at_end(0.2)
            assert not seen(server, f"/smuggled-{token}")


def test_a_refusal_reaches_a_client_that_is_still_sending(server: Server) -> None:
    """Closing with unread data in the socket would reset the connection and take the answer with it."""
    for _ in range(5):
        with Client(server.connect()) as client:
            client.send(post(b"content-length: x", body=b"b" * 200_000))
            assert client.rest(5).startswith(b"HTTP/1.1 400")


def test_a_refusal_reaches_a_client_that_sends_a_body_too_large(limited: Server) -> None:
    for _ in range(5):
        with Client(limited.connect()) as client:
            client.send(request("/echo", "content-length: 15000000", method="POST"))
            client.peer.sendall(b"b" * 15_000_000)  # which nobody wants, and yet
            assert client.response(seconds=5).status == 413


# ---------------------------------------------------------------------------------------------------------------------
# Limits


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (request("/" + "p" * 1100), 414),
        (request("/" + "p" * 1011), 414),
        (request("/" + "p" * 1007, method="OPTIONS"), 414),
        (request("/" + "p" * 100_000), 414),
        (b"G" * 2000, 400),
        (request("/", "x: " + "v" * 5000), 431),
        (request("/", "x: " + "v" * 500_000), 431),
        (request("/", "x" * 5000 + ": v"), 431),
        (request("/", *[f"x-{n}: v" for n in range(20)]), 431),
        (request("/", *[f"x-{n}: v" for n in range(20_000)]), 431),
        (request("/echo", "content-length: 10001", method="POST"), 413),
        (request("/echo", "content-length: 10000000000", method="POST"), 413),
        (request("/echo", method="POST", body=b"b" * 10_001), 413),
        (chunked_request("/echo", chunked(*[b"b" * 1000] * 11)), 413),
        (chunked_request("/echo", chunked(*[b"b" * 1000] * 1000)), 413),
        (chunked_request("/echo", b"2711\r\n"), 413),
        (chunked_request("/echo", chunked(b"b" * 9_999, end=b"2\r\n")), 413),
    ],
    ids=[
        *("long target", "a line a byte too long", "a method that is", "longer target", "no line"),
        *("long value", "longer value", "long name"),
        *("a header too many", "many headers", "a byte too long a body", "long body"),
        *("a body that comes", "a chunk too many", "many chunks"),
        *("a chunk to come", "a chunk to come that is too many"),
    ],
)
def test_what_exceeds_a_limit_is_refused_with_the_status_for_it(
    limited: Server, data: bytes, status: int
) -> None:
    with Client(limited.connect()) as client:
        client.send(data)
        answer = client.response(seconds=5)
        assert answer.status == status or (data.startswith(b"GGG") and answer.status == 414)
        assert answer.closes
        assert client.at_end(5)
    assert ask(limited, request("/")).status == 200


def test_what_stays_within_the_limits_is_served(limited: Server) -> None:
    for data in (
        request("/" + "p" * 1010),
        request("/", "x: " + "v" * 3000),
        request("/", *[f"x-{n}: v" for n in range(19)]),
        request("/echo", method="POST", body=b"b" * 10_000),
        chunked_request("/echo", chunked(*[b"b" * 1000] * 10)),
    ):
        assert ask(limited, data).status == 200


def drip(server: Server, first: bytes, drop: bytes, seconds: float) -> tuple[float, bytes]:
    """Sends `drop` over and over; after how many seconds it was hung up on, and what was said."""
    began = time.monotonic()
    with Client(server.connect()) as client:
        client.send(first)
        while (took := time.monotonic() - began) < seconds:
            client.send(drop)
            try:
                if not client.more(time.monotonic() + 0.1):
                    break
            except TimeoutError:
                pass
        return took, client.data


@pytest.mark.parametrize(
    ("first", "drop"),
    [
        (b"", b""),
        (b"", b"\r\n"),
        (b"GET / HT", b""),
        (b"G", b"E"),
        (b"GET / HTTP/1.1\r\nhost: test\r\n", b"x: y\r\n"),
        (b"GET / HTTP/1.1\r\nhost: test\r\nx: ", b"v"),
    ],
    ids=["nothing", "empty lines", "half a line", "a method", "headers", "a value"],
)
def test_a_head_that_never_ends_is_cut_off(limited: Server, first: bytes, drop: bytes) -> None:
    took, said = drip(limited, first, drop, 6)
    assert took < 4
    assert not said or said[9:12] in (b"400", b"408", b"414", b"431"), said


def test_a_body_that_never_comes_is_cut_off(limited: Server) -> None:
    took, said = drip(limited, request("/echo", "content-length: 10", method="POST") + b"x", b"", 6)
    assert took < 4
    assert not said.startswith(b"HTTP/1.1 200")


def test_a_kept_connection_that_asks_nothing_more_is_closed(limited: Server) -> None:
    with Client(limited.connect()) as client:
        client.send(request("/"))
        assert client.response().status == 200
        began = time.monotonic()
        assert client.at_end(6)
        assert 0.5 < time.monotonic() - began < 4


def test_an_answer_nobody_reads_is_cut_off_and_frees_its_application(limited: Server) -> None:
    with Client(limited.connect()) as client:
        client.send(request("/stream/2000/100000?token=unread"))
        time.sleep(4)
        before = ask(limited, request("/notes?token=unread")).body
        client.peer.settimeout(5)
        total = 0
        try:
            while data := client.peer.recv(1 << 20):
                total += len(data)
        except ConnectionResetError:
            pass
        assert total < 2000 * 100000
    assert ask(limited, request("/notes?token=unread")).body == before


def test_a_slow_application_is_not_cut_off(limited: Server) -> None:
    """The limits are for clients: between a request and its answer there is no time limit."""
    assert ask(limited, request("/slow/x?seconds=3")).status == 200


# ---------------------------------------------------------------------------------------------------------------------
# Random mutations


SEEDS = [
    request("/a/b?c=d", "x-a: 1", "accept: */*"),
    request("/echoed", method="POST", body=b"hello world"),
    chunked_request("/chunks", chunked(b"hello", b" ", b"world"), "x-a: 1"),
    chunked_request("/trailers", chunked(b"hello", end=b"0\r\nx-t: 1\r\n\r\n")),
    chunked_request("/ext", b'5;a="b"\r\nhello\r\n0;c\r\n\r\n'),
    request("/one") + request("/two", "content-length: 3", method="PUT") + b"abc" + request("/3"),
    chunked_request("/first", chunked(b"GET /in HTTP/1.1\r\n\r\n")) + request("/second"),
    request("http://test/absolute?x=y", "connection: close"),
    request("/ten", "connection: keep-alive", version="1.0") + request("/eleven", version="1.0"),
    request("/cl", "content-length: 10", method="POST") + b"0123456789" + request("/after"),
]
SPICE = [
    *(b"\r", b"\n", b"\r\n", b"\r\n\r\n", b"\0", b" ", b"\t", b":", b";", b",", b"\x0b", b"\x7f"),
    *(b"\xff", b"0", b"1", b"-", b"+", b"0x", b"f", b"%", b"?", b"/", b"HTTP/1.1", b"HTTP/1.0"),
    *(b"content-length: 5\r\n", b"content-length: 0\r\n", b"transfer-encoding: chunked\r\n"),
    *(b"transfer-encoding: identity\r\n", b"host: other\r\n", b"connection: close\r\n", b"chunked"),
    *(b" \r\n", b"\r\n ", b"GET ", b"0\r\n\r\n", b"5\r\nhello\r\n", b"x" * 300, b"\x80"),
]


def mutated(random: random.Random) -> bytes:
    data = bytearray(random.choice(SEEDS))
    for _ in range(random.choice([1, 1, 1, 2, 3])):
        at = random.randrange(len(data) + 1)
        length = random.choice([1, 1, 2, 4, 8])
        match random.randrange(6):
            case 0:
                data[at:at] = random.choice(SPICE)
            case 1:
                data[at : at + length] = b""
            case 2:
                data[at : at + length] = random.choice(SPICE)
            case 3:
                data[at:at] = data[at : at + 4 * length]
            case 4 if at < len(data):
                data[at] ^= 1 << random.randrange(8)
            case _:  # whole lines change places, or come twice
                lines = bytes(data).split(b"\r\n")
                first, second = random.randrange(len(lines)), random.randrange(len(lines))
                lines.insert(first, lines[second])
                data = bytearray(b"\r\n".join(lines))
    return bytes(data)


def told(answer: Response) -> strict_parser.Request:
    """The request as the application saw it."""
    report = json.loads(answer.body)
    scope = report["scope"]
    return strict_parser.Request(
        scope["method"],
        scope["raw_path"],
        scope["query_string"],
        scope["http_version"],
        [(name, value) for name, value in scope["headers"]],
        report["body"].encode("latin-1"),
    )


def answers_to(server: Server, data: bytes, wanted: strict_parser.Reading) -> list[Response]:
    methods = [one.method for one in wanted.requests]
    with Client(server.connect()) as client:
        client.send(data)
        answers = client.responses(methods, 8)
        if wanted.end in ("end", "incomplete") and len(answers) == len(methods):
            if answers and answers[-1].closes:
                return answers
            # Nothing more is to come, but for a refusal of what is not whole.
            try:
                if client.more(time.monotonic() + 0.01):
                    answers.append(client.response(seconds=8))
            except TimeoutError:
                pass
            return answers
        while not answers or not answers[-1].closes:
            if not client.data and not client.more(time.monotonic() + 8):
                break
            answers.append(client.response(seconds=8))
        assert client.at_end(8), "the connection stayed open"
    return answers


def judged(server: Server, data: bytes) -> str:
    """How it ended; raises AssertionError if that was not as it must."""
    wanted = strict_parser.read(data)
    try:
        answers = answers_to(server, data, wanted)
    except (Broken, TimeoutError) as error:
        raise AssertionError(f"{error!r} for {data!r}, which is {wanted}") from error
    for number, answer in enumerate(answers):
        if answer.status == 200:
            assert number < len(wanted.requests), f"{answer} for {data!r}, which is {wanted}"
            if wanted.requests[number].method != "HEAD":
                assert told(answer) == wanted.requests[number], f"{data!r} is {wanted}"
        else:
            refused = 400 <= answer.status < 500 or answer.status in (501, 505)
            assert refused and answer.closes, f"{answer} for {data!r}, which is {wanted}"
            assert number == len(answers) - 1
            return "refused" if number == len(wanted.requests) else "refused more"
    whole = len(answers) == len(wanted.requests)
    return "read" if whole else "hung up"


def test_a_mutated_request_is_refused_or_read_exactly_as_the_strict_parser_does(
    limited: Server,
) -> None:
    chance = random.Random(20261122)
    vectors = [mutated(chance) for _ in range(MUTATIONS)]
    deadline = time.monotonic() + MUTATION_SECONDS

    def one(data: bytes) -> str:
        return judged(limited, data) if time.monotonic() < deadline else "late"

    with ThreadPoolExecutor(4) as pool:
        ends = list(pool.map(one, vectors))
    counts = {end: ends.count(end) for end in sorted(set(ends))}
    print(counts)
    # It must have read what is right and refused what is wrong, or the comparison would say nothing.
    assert counts.get("read", 0) > 100 and counts.get("refused", 0) > 100, counts
    # What the strict parser takes and a server refuses, it refuses for a reason: there cannot be much of it.
    assert counts.get("refused more", 0) < len(ends) // 5, counts
    assert counts.get("hung up", 0) < len(ends) // 20, counts
    assert ask(limited, request("/")).status == 200


def test_the_seeds_of_the_mutations_are_read_as_the_strict_parser_does(limited: Server) -> None:
    for data in SEEDS:
        assert strict_parser.read(data).end in ("end", "closed"), data
        assert judged(limited, data) == "read", data


def test_random_bytes_in_random_pieces_never_stop_the_server(limited: Server) -> None:
    chance = random.Random(7)
    for _ in range(200):
        data = bytes(chance.choices(b"GET /HTP1.\r\n: \0\xffabc0123", k=chance.randrange(1, 400)))
        with Client(limited.connect()) as client:
            cut = chance.randrange(len(data))
            client.send(data[:cut], data[cut:])
    assert ask(limited, request("/")).status == 200
