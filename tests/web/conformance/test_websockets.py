"""WebSockets by RFC 6455 and 7692, case by case in the manner of the Autobahn test suite, from raw sockets."""

from __future__ import annotations

import asyncio
import json
import os
import random
import socket
import struct
import time
import zlib
from collections.abc import Sequence

import pytest
import wsproto
import wsproto.events as events
from client import Client, Response
from servers import Server, Start
from test_requests import ask, content, noted, request
from websockets.asyncio.client import connect as connect_async
from websockets.exceptions import ConnectionClosedError
from websockets.sync.client import connect
from wsclient import (
    BINARY,
    CLOSE,
    CONTINUATION,
    PING,
    PONG,
    TAIL,
    TEXT,
    End,
    WebSocket,
    close,
    frame,
    handshake,
)

SIZES = [0, 1, 125, 126, 127, 128, 65535, 65536, 1 << 20]
DEFLATE = "sec-websocket-extensions: permessage-deflate"
LIMIT = 100_000


def opened(server: Server, path: str = "/ws/echo", *headers: str) -> WebSocket:
    return WebSocket(server.connect(), path, *headers)


def echoes(peer: WebSocket) -> bool:
    peer.send(frame(TEXT, b"still there"))
    return peer.message() == "still there"


def ends_with(server: Server, data: bytes, *codes: int, headers: Sequence[str] = ()) -> None:
    """Sent on a connection of its own, this makes the server close with one of these codes."""
    with opened(server, "/ws/echo", *headers) as peer:
        peer.send(data)
        assert peer.end().code in codes


# ---------------------------------------------------------------------------------------------------------------------
# 1 Framing


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("opcode", [TEXT, BINARY], ids=["text", "binary"])
def test_a_message_of_any_size_comes_back(server: Server, opcode: int, size: int) -> None:
    data = b"*" * size
    with opened(server) as peer:
        peer.send(frame(opcode, data))
        assert peer.message() == (data.decode() if opcode == TEXT else data)


@pytest.mark.parametrize("size", [125, 126, 65536])
def test_a_message_that_arrives_in_small_pieces_comes_back(server: Server, size: int) -> None:
    data = os.urandom(size)
    sent = frame(BINARY, data)
    step = max(1, len(sent) // 200)
    with opened(server) as peer:
        peer.send(*[sent[at : at + step] for at in range(0, len(sent), step)], pause=0.0002)
        assert peer.message() == data


def test_many_messages_in_one_piece_come_back_in_order(server: Server) -> None:
    with opened(server) as peer:
        peer.send(b"".join(frame(TEXT, b"%d" % number) for number in range(1000)))
        assert [peer.message() for _ in range(1000)] == [str(number) for number in range(1000)]


def test_frames_in_the_same_packet_as_the_handshake_are_read(server: Server) -> None:
    data, _ = handshake()
    peer = WebSocket.__new__(WebSocket)
    Client.__init__(peer, server.connect())
    with peer:
        peer.send(data + frame(TEXT, b"early"))
        assert peer.response().status == 101
        peer.pings, peer.pongs = [], []
        assert peer.exactly(7, time.monotonic() + 5) == b"\x81\x05early"


# ---------------------------------------------------------------------------------------------------------------------
# 2 Pings and pongs


@pytest.mark.parametrize(
    "payload", [b"", b"hello", bytes(range(0, 250, 2)), b"\x00\xff\xfe"], ids=["0", "5", "125", "3"]
)
def test_a_ping_is_answered_with_its_payload(server: Server, payload: bytes) -> None:
    with opened(server) as peer:
        peer.send(frame(PING, payload))
        assert peer.pong() == payload
        assert echoes(peer)


def test_a_ping_of_126_bytes_is_an_error(server: Server) -> None:
    ends_with(server, frame(PING, b"x" * 126), 1002)


def test_a_ping_in_pieces_of_a_byte_is_answered(server: Server) -> None:
    with opened(server) as peer:
        peer.send(*[bytes([byte]) for byte in frame(PING, b"hello")], pause=0.001)
        assert peer.pong() == b"hello"


def test_a_pong_nobody_asked_for_is_ignored(server: Server) -> None:
    with opened(server) as peer:
        peer.send(frame(PONG), frame(PONG, b"unasked"), frame(PING, b"asked"))
        assert peer.pong() == b"asked"
        assert echoes(peer)


def test_ten_pings_are_answered_in_order(server: Server) -> None:
    with opened(server) as peer:
        peer.send(b"".join(frame(PING, b"%d" % number) for number in range(10)))
        assert [peer.pong() for _ in range(10)] == [b"%d" % number for number in range(10)]


# ---------------------------------------------------------------------------------------------------------------------
# 3, 4 Reserved bits and opcodes, and other frames that cannot be


@pytest.mark.parametrize("rsv", range(1, 8))
@pytest.mark.parametrize("opcode", [TEXT, BINARY, PING, CLOSE])
def test_a_reserved_bit_is_an_error(server: Server, rsv: int, opcode: int) -> None:
    payload = b"" if opcode == CLOSE else b"x"
    with opened(server) as peer:
        assert echoes(peer)
        peer.send(frame(opcode, payload, rsv=rsv))
        assert peer.end().code == 1002


@pytest.mark.parametrize("opcode", [3, 4, 5, 6, 7, 11, 12, 13, 14, 15])
def test_a_reserved_opcode_is_an_error(server: Server, opcode: int) -> None:
    ends_with(server, frame(opcode), 1002)
    ends_with(server, frame(opcode, b"payload"), 1002)


@pytest.mark.parametrize("opcode", [TEXT, PING, CLOSE])
def test_a_frame_without_a_mask_is_an_error(server: Server, opcode: int) -> None:
    ends_with(server, frame(opcode, b"", masked=False), 1002)
    ends_with(server, frame(opcode, b"\x03\xe8hello", masked=False), 1002)


@pytest.mark.parametrize(("size", "length_bytes"), [(5, 2), (125, 2), (5, 8), (65535, 8)])
def test_a_length_longer_than_it_need_be_is_an_error(
    server: Server, size: int, length_bytes: int
) -> None:
    ends_with(server, frame(BINARY, b"x" * size, length_bytes=length_bytes), 1002)


def test_a_length_with_its_first_bit_set_is_an_error(server: Server) -> None:
    ends_with(server, frame(BINARY, b"x", length_bytes=8, said=1 << 63), 1002)


# ---------------------------------------------------------------------------------------------------------------------
# 5 Fragments


@pytest.mark.parametrize("opcode", [PING, PONG, CLOSE])
def test_a_control_frame_in_fragments_is_an_error(server: Server, opcode: int) -> None:
    ends_with(server, frame(opcode, b"", fin=False) + frame(CONTINUATION, b""), 1002)


@pytest.mark.parametrize(
    "parts",
    [
        (b"frag", b"ment"),
        (b"", b"", b""),
        (b"", b"middle", b""),
        (b"a", b"", b"b"),
        tuple(b"x" for _ in range(500)),
        (b"y" * 70_000, b"z" * 70_000),
    ],
    ids=["two", "empty", "a middle", "an empty middle", "many", "large"],
)
def test_fragments_come_back_as_one_message(server: Server, parts: tuple[bytes, ...]) -> None:
    with opened(server) as peer:
        peer.send(fragments(TEXT, parts))
        assert peer.message() == b"".join(parts).decode()
        peer.send(*[fragments(BINARY, parts)])
        assert peer.message() == b"".join(parts)


def fragments(opcode: int, parts: Sequence[bytes], between: bytes = b"", rsv: int = 0) -> bytes:
    frames = [
        frame(
            CONTINUATION if number else opcode,
            part,
            fin=number == len(parts) - 1,
            rsv=0 if number else rsv,
        )
        for number, part in enumerate(parts)
    ]
    return between.join(frames)


def test_pings_between_fragments_are_answered_before_the_message(server: Server) -> None:
    with opened(server) as peer:
        peer.send(fragments(TEXT, [b"a", b"b", b"c"], frame(PING, b"between")))
        assert [peer.pong(), peer.pong()] == [b"between", b"between"]
        assert peer.message() == "abc"


def test_a_ping_between_fragments_is_answered_at_once(server: Server) -> None:
    with opened(server) as peer:
        peer.send(frame(TEXT, b"a", fin=False), frame(PING, b"now"))
        assert peer.pong() == b"now"
        peer.send(frame(CONTINUATION, b"b"))
        assert peer.message() == "ab"


@pytest.mark.parametrize("fin", [True, False])
def test_a_continuation_of_nothing_is_an_error(server: Server, fin: bool) -> None:
    ends_with(server, frame(CONTINUATION, b"of nothing", fin=fin), 1002)


def test_a_continuation_after_the_end_of_a_message_is_an_error(server: Server) -> None:
    with opened(server) as peer:
        peer.send(fragments(TEXT, [b"a", b"b"]))
        assert peer.message() == "ab"
        peer.send(frame(CONTINUATION, b"c"))
        assert peer.end().code == 1002


@pytest.mark.parametrize("opcode", [TEXT, BINARY])
def test_a_new_message_within_fragments_is_an_error(server: Server, opcode: int) -> None:
    ends_with(server, frame(TEXT, b"a", fin=False) + frame(opcode, b"b"), 1002)


# ---------------------------------------------------------------------------------------------------------------------
# 6 UTF-8


VALID = [
    "Hello-µ@ßöäüàá-UTF-8!!",
    "κόσμε",
    "\0",
    "\x7f\x80\u07ff\u0800\uffff\U00010000\U0010ffff",
    "\ud7ff\ue000\ufffd",
    "\ufeff begins with a mark",
    "\ufffe\uffff\U0001fffe",
]
INVALID = [
    b"\xce\xba\xe1\xbd\xb9\xcf\x83\xce\xbc\xce\xb5\xed\xa0\x80edited",  # a surrogate
    b"\x80",
    b"\xbf",
    b"\xc0\x80",  # longer than need be
    b"\xc1\xbf",
    b"\xe0\x80\xaf",
    b"\xe0\x9f\xbf",
    b"\xf0\x8f\xbf\xbf",
    b"\xf4\x90\x80\x80",  # beyond the last
    b"\xf8\x88\x80\x80\x80",
    b"\xfc\x84\x80\x80\x80\x80",
    b"\xfe",
    b"\xff",
    b"\xed\xbf\xbf",
    b"\xed\xa0\x80\xed\xb0\x80",
    b"\xc3",  # cut off
    b"\xe2\x82",
    b"\xf0\x9f\x98",
    b"a\xe2(\xa1",
]


@pytest.mark.parametrize("text", VALID, ids=ascii)
def test_valid_utf_8_comes_back_wherever_it_is_cut(server: Server, text: str) -> None:
    data = text.encode()
    with opened(server) as peer:
        for cut in range(len(data) + 1):
            peer.send(fragments(TEXT, [data[:cut], data[cut:]]))
            assert peer.message() == text
        peer.send(fragments(TEXT, [data[at : at + 1] for at in range(len(data))]))
        assert peer.message() == text


@pytest.mark.parametrize("data", INVALID, ids=ascii)
def test_invalid_utf_8_in_text_is_an_error_and_in_bytes_is_none(
    server: Server, data: bytes
) -> None:
    ends_with(server, frame(TEXT, data), 1007)
    ends_with(server, fragments(TEXT, [data[:1], data[1:]]), 1007)
    with opened(server) as peer:
        peer.send(frame(BINARY, data))
        assert peer.message() == data


def test_invalid_utf_8_before_the_last_fragment_is_an_error_in_the_end(server: Server) -> None:
    ends_with(server, fragments(TEXT, [b"a\xff", b"b", b"c"]), 1007)


# ---------------------------------------------------------------------------------------------------------------------
# 7 Closing


def test_a_close_is_answered_with_its_code_and_the_connection_ends(server: Server) -> None:
    with opened(server) as peer:
        peer.send(close(1000, b"done"))
        got = peer.message()
        assert isinstance(got, End) and got.code == 1000
        assert peer.at_end(3)


def test_a_close_without_a_code_is_answered_without_one(server: Server) -> None:
    with opened(server) as peer:
        peer.send(close())
        got = peer.message()
        assert isinstance(got, End) and got.code in (1005, 1000)
        assert peer.at_end(3)


def test_what_comes_after_a_close_is_ignored(server: Server) -> None:
    for after in (close(1000), frame(PING, b"late"), frame(TEXT, b"late"), frame(3)):
        with opened(server) as peer:
            peer.send(close(1000) + after)
            got = peer.message()
            assert isinstance(got, End) and got.code == 1000
            assert peer.at_end(3) and not peer.pongs


def test_messages_before_a_close_are_answered(server: Server) -> None:
    with opened(server) as peer:
        peer.send(frame(TEXT, b"before") + close(1000))
        got = peer.message()
        assert got == "before" or isinstance(got, End) and got.code == 1000


GOOD_CODES = [*range(1000, 1004), *range(1007, 1015), 3000, 3999, 4000, 4999]
BAD_CODES = [0, 1, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000, 65535]


@pytest.mark.parametrize("code", GOOD_CODES)
def test_a_code_that_may_be_sent_is_sent_back_and_told_the_application(
    server: Server, token: str, code: int
) -> None:
    with opened(server, f"/ws/echo?token={token}") as peer:
        peer.send(close(code, "why, \u00e9".encode()))
        assert peer.end(3).code == code
    assert noted(server, token) == [[code, "why, \u00e9"]]


@pytest.mark.parametrize("code", BAD_CODES)
def test_a_code_that_may_not_be_sent_is_an_error(server: Server, code: int) -> None:
    ends_with(server, close(code), 1002)


def test_a_close_frame_of_one_byte_is_an_error(server: Server) -> None:
    ends_with(server, frame(CLOSE, b"\x03"), 1002)


def test_a_reason_of_123_bytes_is_taken_and_one_more_is_an_error(server: Server) -> None:
    ends_with(server, close(1000, b"r" * 123), 1000)
    ends_with(server, close(1000, b"r" * 124), 1002)


def test_a_reason_that_is_not_utf_8_is_an_error(server: Server) -> None:
    ends_with(server, close(1000, b"\xff\xfe"), 1007)
    ends_with(server, close(1000, b"cut \xe2\x82"), 1007)


def test_a_close_without_a_code_is_1005_to_the_application(server: Server, token: str) -> None:
    with opened(server, f"/ws/echo?token={token}") as peer:
        peer.send(close())
        peer.end()
    assert noted(server, token) == [[1005, ""]]


@pytest.mark.parametrize("how", ["end", "reset"])
def test_a_connection_that_is_lost_is_1006_to_the_application(
    server: Server, token: str, how: str
) -> None:
    peer = opened(server, f"/ws/echo?token={token}")
    assert echoes(peer)
    if how == "reset":
        peer.peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    peer.peer.close()
    assert noted(server, token)[0][0] == 1006


@pytest.mark.parametrize(("code", "reason"), [(1000, ""), (1001, "away"), (4001, "né")])
def test_the_application_closes_with_a_code_and_a_reason(
    server: Server, token: str, code: int, reason: str
) -> None:
    path = f"/ws/close/{code}/{reason}?token={token}".replace("é", "%C3%A9")
    with opened(server, path) as peer:
        assert peer.end(5) == End(code, reason)
    assert noted(server, token) == ["websocket.disconnect"]


# ---------------------------------------------------------------------------------------------------------------------
# 9 Limits


@pytest.fixture(scope="module")
def limited(start: Start, kind: str) -> Server:
    return start(kind, max_message=LIMIT, ping_seconds=1.0)


def test_a_message_of_the_limit_is_taken_and_a_byte_more_is_1009(limited: Server) -> None:
    with opened(limited) as peer:
        peer.send(frame(BINARY, b"x" * LIMIT))
        assert peer.message() == b"x" * LIMIT
        peer.send(frame(BINARY, b"x" * (LIMIT + 1)))
        assert peer.end().code == 1009


def test_fragments_beyond_the_limit_are_1009(limited: Server) -> None:
    ends_with(limited, fragments(BINARY, [b"x" * 10_000] * 11), 1009)
    ends_with(limited, fragments(TEXT, [b"x" * 60_000] * 2), 1009)


@pytest.mark.parametrize("said", [LIMIT + 1, 1 << 31, 1 << 40, (1 << 63) - 1])
def test_a_frame_that_says_it_is_too_long_is_1009_before_it_came(
    limited: Server, said: int
) -> None:
    ends_with(limited, frame(BINARY, b"first", length_bytes=8, said=said), 1009)


def test_who_is_still_sending_a_message_too_long_hears_1009(limited: Server) -> None:
    """Closing with unread bytes in the socket would reset the connection and take the close frame with it."""
    for _ in range(5):
        with opened(limited) as peer:
            peer.peer.sendall(frame(BINARY, b"x" * 20_000_000)[:15_000_000])
            assert peer.end().code == 1009
        with connect(f"ws://127.0.0.1:{limited.port}/ws/echo", compression=None) as client:
            with pytest.raises(ConnectionClosedError) as caught:
                client.send(b"x" * 15_000_000)
                client.recv()
            assert caught.value.rcvd is not None and caught.value.rcvd.code == 1009


def test_endless_empty_fragments_do_not_hurt(limited: Server) -> None:
    with opened(limited) as peer:
        peer.send(frame(TEXT, b"a", fin=False) + frame(CONTINUATION, b"", fin=False) * 20_000)
        peer.send(frame(CONTINUATION, b"b"))
        got = peer.message()
        assert got == "ab" or isinstance(got, End) and got.code in (1008, 1009)
    assert ask(limited, request("/")).status == 200


def test_a_client_that_does_not_answer_pings_is_closed_with_1011(limited: Server) -> None:
    with opened(limited) as peer:
        peer.answers_pings = False
        began = time.monotonic()
        got = peer.message(8)
        assert got == End(None) or isinstance(got, End) and got.code == 1011
        assert 1 <= time.monotonic() - began < 6 and peer.pings


def test_a_client_that_answers_pings_is_kept(limited: Server) -> None:
    with opened(limited) as peer:
        until = time.monotonic() + 4
        while time.monotonic() < until:
            got = peer.frame(3)
            assert got is not None and got.opcode == PING
            peer.pings.append(got.payload)
            peer.send(frame(PONG, got.payload))
        assert len(peer.pings) >= 2
        assert echoes(peer)


def test_a_client_that_does_not_read_stops_the_application_and_nothing_is_lost(
    server: Server, token: str
) -> None:
    with opened(server, f"/ws/flood/1000/100000?token={token}") as peer:
        noted(server, token)
        before = -1
        while (sent := len(noted(server, token, 0))) != before:
            before = sent
            time.sleep(0.15)
        assert sent < 800
        for _ in range(1000):
            assert len(peer.message(20)) == 100_000  # type: ignore[arg-type]
        assert peer.end() == End(1000)


def test_a_client_that_only_sends_is_stopped_and_nothing_is_lost(server: Server) -> None:
    """The echoes fill every buffer on the way back, so the server has to stop reading."""
    data = frame(BINARY, b"x" * 100_000)
    with opened(server) as peer:
        peer.peer.settimeout(0.5)
        sent = 0
        try:
            while sent < 2000 * len(data):
                at = sent % len(data)
                sent += peer.peer.send(data[at:])
        except TimeoutError:
            pass
        assert sent < 2000 * len(data)
        for _ in range(sent // len(data)):
            assert peer.message() == b"x" * 100_000
        peer.send(data[sent % len(data) :])
        assert peer.message() == b"x" * 100_000


# ---------------------------------------------------------------------------------------------------------------------
# The handshake


def answered(server: Server, data: bytes) -> Response:
    return ask(server, data)


@pytest.mark.parametrize(
    "given",
    [
        {"upgrade": "WebSocket"},
        {"upgrade": "WEBSOCKET"},
        {"connection": "keep-alive, Upgrade"},
        {"connection": "upgrade"},
        {"connection": "Upgrade,keep-alive"},
        {"origin": "https://example.org"},
    ],
    ids=str,
)
def test_a_handshake_is_taken_however_it_is_spelled(server: Server, given: dict[str, str]) -> None:
    data, _ = handshake(**given)
    assert answered(server, data).status == 101


@pytest.mark.parametrize(
    "data",
    [
        handshake(leave=("sec-websocket-key",))[0],
        handshake(key=b"")[0],
        handshake(key=b"short")[0],
        handshake(key=b"AAAAAAAAAAAAAAAAAAAAAAAAAAAA")[0],
        handshake(key=b"!!!!!!!!!!!!!!!!!!!!!!==")[0],
        handshake("/ws/echo", "sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==")[0],
        handshake(sec_websocket_version="12")[0],
        handshake(sec_websocket_version="0")[0],
        handshake(sec_websocket_version="13x")[0],
        handshake(leave=("sec-websocket-version",))[0],
        handshake(leave=("host",))[0],
        handshake(method="POST")[0],
    ],
    ids=[
        *("no key", "empty key", "short key", "long key", "key of no base64", "two keys"),
        *("version 12", "version 0", "version 13x", "no version", "no host", "POST"),
    ],
)
def test_a_wrong_handshake_is_no_websocket(server: Server, data: bytes) -> None:
    answer = answered(server, data)
    assert answer.status in (400, 405, 426) or (b"POST" in data and answer.status == 200)
    assert answer.status != 426 or answer.one("sec-websocket-version") == "13"


def test_another_version_is_told_which_one_is_spoken(server: Server) -> None:
    answer = answered(server, handshake(sec_websocket_version="8")[0])
    assert answer.status in (400, 426)
    assert answer.one("sec-websocket-version") == "13"


@pytest.mark.parametrize(
    "data",
    [
        handshake("/", leave=("upgrade",))[0],
        handshake("/", leave=("connection",))[0],
        handshake("/", upgrade="h2c")[0],
        handshake("/", connection="keep-alive")[0],
    ],
    ids=["no upgrade", "no connection", "another protocol", "not in connection"],
)
def test_what_does_not_ask_for_a_websocket_is_a_request(server: Server, data: bytes) -> None:
    answer = answered(server, data)
    assert answer.status == 200
    assert json.loads(answer.body)["scope"]["type"] == "http"


def test_a_handshake_of_http_1_0_is_no_websocket(server: Server) -> None:
    assert answered(server, handshake("/", version="1.0")[0]).status in (200, 400, 426)


def test_a_websocket_on_a_kept_connection_after_a_request(server: Server) -> None:
    data, _ = handshake()
    with Client(server.connect()) as client:
        client.send(request("/"))
        assert client.response().status == 200
        client.send(data)
        assert client.response().status == 101


@pytest.mark.parametrize(
    ("headers", "offered"),
    [
        ((), []),
        (("sec-websocket-protocol: one",), ["one"]),
        (("sec-websocket-protocol: one, two",), ["one", "two"]),
        (("sec-websocket-protocol: one,two ,  three",), ["one", "two", "three"]),
        (("sec-websocket-protocol: one", "sec-websocket-protocol: two"), ["one", "two"]),
    ],
    ids=["none", "one", "two", "spaces", "two headers"],
)
def test_the_application_sees_the_subprotocols_and_takes_one(
    server: Server, headers: tuple[str, ...], offered: list[str]
) -> None:
    if not offered:
        with opened(server, "/ws/report") as peer:
            assert peer.answer.all("sec-websocket-protocol") == []
            assert json.loads(str(peer.message()))["subprotocols"] == []
        return
    with opened(server, f"/ws/protocol/{offered[-1]}", *headers) as peer:
        assert peer.answer.one("sec-websocket-protocol") == offered[-1]
        assert json.loads(str(peer.message())) == offered
        assert peer.end().code == 1000


def test_the_applications_headers_are_in_the_answer(server: Server) -> None:
    with opened(server, "/ws/report") as peer:
        assert peer.answer.one("x-accepted") == "yes"


def test_the_scope_of_a_websocket_is_the_references(server: Server, reference: Server) -> None:
    def scope(of: Server) -> dict[str, object]:
        with opened(of, "/ws/report/caf%C3%A9?a=b", "x-a: 1", "sec-websocket-protocol: p") as peer:
            told: dict[str, object] = json.loads(str(peer.message()))
        for key in ("client", "server", "asgi", "extensions"):
            told.pop(key, None)
        pairs = told["headers"]
        assert isinstance(pairs, list)
        # The key is another each time, and wsproto keeps the offered subprotocols to itself.
        own = ("sec-websocket-key", "sec-websocket-protocol")
        told["headers"] = [pair for pair in pairs if pair[0] not in own]
        return told

    assert scope(server) == scope(reference)


def test_an_application_that_closes_before_it_accepts_is_a_403(server: Server) -> None:
    assert answered(server, handshake("/ws/reject")[0]).status == 403


def test_an_application_may_deny_with_an_answer_of_its_own(
    server: Server, reference: Server
) -> None:
    ours = answered(server, handshake("/ws/deny")[0])
    theirs = answered(reference, handshake("/ws/deny")[0])
    assert (ours.status, ours.body, ours.told) == (401, b"who are you?", theirs.told)
    assert content(theirs) == b"who are you?"


@pytest.mark.parametrize("path", ["/ws/raise/before", "/ws/return/before", "/ws/wrong/send-first"])
def test_an_application_that_fails_before_it_accepts_is_a_500(server: Server, path: str) -> None:
    assert answered(server, handshake(path)[0]).status == 500


def test_an_exception_after_the_accept_is_1011(server: Server) -> None:
    with opened(server, "/ws/raise/after") as peer:
        assert peer.end(5).code == 1011


def test_an_application_that_returns_without_a_close_is_closed(server: Server) -> None:
    with opened(server, "/ws/return/after") as peer:
        assert peer.end(5).code in (1000, 1006, 1011)


@pytest.mark.parametrize(
    "name", ["accept-twice", "nothing", "text-bytes", "bytes-text", "http", "header"]
)
def test_what_an_application_may_not_send_to_a_websocket_is_refused(
    server: Server, token: str, name: str
) -> None:
    with opened(server, f"/ws/wrong/{name}?token={token}") as peer:
        assert peer.end(5).code in (1011, None)
    assert noted(server, token)[0].startswith("refused")


# ---------------------------------------------------------------------------------------------------------------------
# 12, 13 Compression


def negotiated(server: Server, *offers: str) -> str | None:
    headers = [f"sec-websocket-extensions: {offer}" for offer in offers]
    with opened(server, "/ws/echo", *headers) as peer:
        assert echoes(peer)
        return peer.answer.one("sec-websocket-extensions")


PARAMETERS = [
    "",
    "; client_no_context_takeover",
    "; server_no_context_takeover",
    "; client_no_context_takeover; server_no_context_takeover",
    "; client_max_window_bits",
    "; client_max_window_bits=9",
    "; client_max_window_bits=15",
    "; server_max_window_bits=9",
    "; server_max_window_bits=12; client_max_window_bits=10",
    '; server_max_window_bits="10"',
    "; server_max_window_bits=15; server_no_context_takeover; client_max_window_bits",
]


@pytest.mark.parametrize("parameters", PARAMETERS)
def test_compressed_messages_come_back_with_any_parameters(server: Server, parameters: str) -> None:
    chance = random.Random(3)
    with opened(server, "/ws/echo", DEFLATE + parameters) as peer:
        deflate = peer.inflater
        assert deflate.able
        asked_for = parameters.replace('"', "")
        if "server_no" in asked_for:
            assert deflate.server_fresh
        if "server_max_window_bits=" in asked_for:
            wanted = int(asked_for.partition("server_max_window_bits=")[2].partition(";")[0])
            assert deflate.server_bits <= wanted
        if "client_max" not in asked_for:
            assert "client_max_window_bits" not in deflate.given
        for number in range(60):
            size = chance.choice([0, 1, 10, 200, 5000, 70_000])
            words = chance.choices([b"the ", b"same ", b"few ", b"words ", b"again "], k=size // 5)
            data = b"".join(words) + b"%d" % number
            peer.send(frame(TEXT, deflate.deflate(data), rsv=4))
            assert peer.message() == data.decode()
            noise = os.urandom(size)
            peer.send(frame(BINARY, deflate.deflate(noise), rsv=4))
            assert peer.message() == noise


def test_what_compresses_well_is_sent_compressed(server: Server) -> None:
    with opened(server, "/ws/echo", DEFLATE) as peer:
        peer.send(frame(TEXT, peer.inflater.deflate(b"again " * 10_000), rsv=4))
        got = peer.frame()
        assert got is not None and got.rsv == 4 and len(got.payload) < 5000
        assert peer.inflater.inflate(got.payload) == b"again " * 10_000


def test_a_message_that_is_not_compressed_is_taken_beside_compressed_ones(server: Server) -> None:
    with opened(server, "/ws/echo", DEFLATE) as peer:
        for data in (b"first", b"second" * 100, b"third"):
            peer.send(frame(TEXT, data), frame(TEXT, peer.inflater.deflate(data), rsv=4))
            assert [peer.message(), peer.message()] == [data.decode()] * 2


def test_a_compressed_message_in_fragments_with_pings_between_comes_back(server: Server) -> None:
    with opened(server, "/ws/echo", DEFLATE) as peer:
        data = os.urandom(1000) * 3
        squeezed = peer.inflater.deflate(data)
        parts = [squeezed[at : at + 100] for at in range(0, len(squeezed), 100)]
        peer.send(fragments(BINARY, [b"", *parts, b""], frame(PING, b"x"), rsv=4))
        assert peer.message() == data
        assert len(peer.pongs) == len(parts) + 1


@pytest.mark.parametrize(
    ("payload", "text"),
    [
        (b"\xf2\x48\xcd\xc9\xc9\x07\x00", "Hello"),
        (b"\x00\x05\x00\xfa\xff\x48\x65\x6c\x6c\x6f\x00", "Hello"),
        (b"\xf3\x48\xcd\xc9\xc9\x07\x00\x00", "Hello"),
        (b"\xf2\x48\x05\x00\x00\x00\xff\xff\xca\xc9\xc9\x07\x00", "Hello"),
        (b"\x00", ""),
    ],
    ids=["one block", "stored", "BFINAL", "two blocks", "empty"],
)
def test_the_examples_of_the_standard_are_read(server: Server, payload: bytes, text: str) -> None:
    """RFC 7692, 7.2.3: among them a block without compression and one that says that it is the last."""
    with opened(server, "/ws/echo", DEFLATE) as peer:
        peer.send(frame(TEXT, payload, rsv=4))
        assert peer.message() == text


@pytest.mark.parametrize(
    "offer",
    [
        "permessage-deflate; unknown",
        "permessage-deflate; server_max_window_bits=7",
        "permessage-deflate; server_max_window_bits=16",
        "permessage-deflate; server_max_window_bits=010",
        "permessage-deflate; server_max_window_bits",
        "permessage-deflate; server_max_window_bits=x",
        "permessage-deflate; client_max_window_bits=16",
        "permessage-deflate; server_no_context_takeover=1",
        "permessage-deflate; client_no_context_takeover; client_no_context_takeover",
        "permessage-deflate; client_max_window_bits=9; client_max_window_bits=10",
        "x-webkit-deflate-frame",
        "permessage-deflat",
        "permessage-bzip2",
    ],
)
def test_an_offer_that_is_wrong_or_unknown_is_declined(server: Server, offer: str) -> None:
    assert negotiated(server, offer) is None


def test_the_first_offer_that_can_be_taken_is(server: Server) -> None:
    for offers in (
        ("permessage-deflate; unknown, permessage-deflate; server_no_context_takeover",),
        ("foo; bar=1", "permessage-deflate; server_no_context_takeover, permessage-deflate"),
    ):
        answer = negotiated(server, *offers)
        assert answer and answer.startswith("permessage-deflate")
        assert "server_no_context_takeover" in answer


def test_compression_that_is_switched_off_is_not_taken(start: Start, kind: str) -> None:
    assert negotiated(start(kind, compress=False), "permessage-deflate") is None


def test_a_compressed_continuation_or_control_frame_is_an_error(server: Server) -> None:
    with opened(server, "/ws/echo", DEFLATE) as peer:
        squeezed = peer.inflater.deflate(b"data")
        peer.send(frame(TEXT, squeezed[:2], rsv=4, fin=False))
        peer.send(frame(CONTINUATION, squeezed[2:], rsv=4))
        assert peer.end().code == 1002
    ends_with(server, frame(PING, b"x", rsv=4), 1002, headers=[DEFLATE])
    for rsv in (1, 2, 3, 5, 6, 7):
        ends_with(server, frame(TEXT, b"x", rsv=rsv), 1002, headers=[DEFLATE])


@pytest.mark.parametrize(
    "data", [b"\xff\xff\xff\xff", b"\x06\x00", b"\xf2\x48\xcd\xc9\xc9\x07\xff"]
)
def test_what_cannot_be_inflated_is_an_error(server: Server, data: bytes) -> None:
    ends_with(server, frame(BINARY, data, rsv=4), 1002, 1003, 1007, headers=[DEFLATE])


def test_compressed_text_that_is_not_utf_8_is_an_error(server: Server) -> None:
    with opened(server, "/ws/echo", DEFLATE) as peer:
        peer.send(frame(TEXT, peer.inflater.deflate(b"\xff"), rsv=4))
        assert peer.end().code == 1007


@pytest.mark.parametrize("pieces", [1, 20])
def test_a_bomb_is_1009(limited: Server, pieces: int) -> None:
    """A hundred kilobytes that would be a hundred megabytes."""
    with opened(limited, "/ws/echo", DEFLATE) as peer:
        squeezer = zlib.compressobj(9, zlib.DEFLATED, -15)
        bomb = squeezer.compress(bytes(50_000_000)) + squeezer.flush(zlib.Z_SYNC_FLUSH)
        bomb = bomb.removesuffix(TAIL)
        assert len(bomb) < LIMIT
        step = len(bomb) // pieces + 1
        parts = [bomb[at : at + step] for at in range(0, len(bomb), step)]
        peer.send(fragments(BINARY, parts, rsv=4))
        assert peer.end().code == 1009
    with opened(limited, "/ws/echo", DEFLATE) as peer:
        data = bytes(LIMIT)
        peer.send(frame(BINARY, peer.inflater.deflate(data), rsv=4))
        assert peer.message() == data


# ---------------------------------------------------------------------------------------------------------------------
# Other clients


MESSAGES: list[str | bytes] = [
    *("", "text", "€" * 1000, b"", b"bytes", bytes(range(256)) * 1000),
    *("a" * 500_000, "the same again " * 5000, os.urandom(100_000)),
]


@pytest.mark.parametrize("compression", [None, "deflate"])
def test_the_client_of_websockets_gets_every_message_back(
    server: Server, compression: str | None
) -> None:
    uri = f"ws://127.0.0.1:{server.port}/ws/echo"
    with connect(uri, compression=compression, max_size=None) as peer:
        for _ in range(3):
            for message in MESSAGES:
                peer.send(message)
                assert peer.recv(timeout=10) == message
        peer.send(["in ", "frag", "", "ments"])
        assert peer.recv(timeout=10) == "in fragments"
        peer.ping().wait(10)
    assert peer.close_code == 1000


def test_a_hundred_clients_of_websockets_talk_at_once(server: Server) -> None:
    async def one(number: int) -> bool:
        async with connect_async(f"ws://127.0.0.1:{server.port}/ws/echo") as peer:
            for turn in range(10):
                await peer.send(f"{number} {turn}")
                assert await asyncio.wait_for(peer.recv(), 20) == f"{number} {turn}"
        return peer.close_code == 1000

    async def all_of_them() -> list[bool]:
        return await asyncio.gather(*(one(number) for number in range(100)))

    assert all(asyncio.run(all_of_them()))


@pytest.mark.parametrize("compressed", [False, True])
def test_the_client_of_wsproto_gets_every_message_back(server: Server, compressed: bool) -> None:
    from wsproto.extensions import PerMessageDeflate

    extensions: list[wsproto.extensions.Extension] = [PerMessageDeflate()] if compressed else []
    connection = wsproto.WSConnection(wsproto.ConnectionType.CLIENT)
    with Client(server.connect()) as client:

        def next_event(wanted: type) -> object:
            while True:
                for event in connection.events():
                    if isinstance(event, wanted):
                        return event
                assert client.more(time.monotonic() + 10)
                connection.receive_data(client.data)
                client.data = b""

        client.send(
            connection.send(events.Request(host="test", target="/ws/echo", extensions=extensions))
        )
        accepted = next_event(events.AcceptConnection)
        assert isinstance(accepted, events.AcceptConnection)
        assert bool(accepted.extensions) == compressed
        for message in MESSAGES:
            event = (
                events.TextMessage(message)
                if isinstance(message, str)
                else events.BytesMessage(message)
            )
            client.send(connection.send(event))
            parts: list[str | bytes | bytearray] = []
            while True:
                got = next_event(events.Message)
                assert isinstance(got, events.Message)
                parts.append(got.data)
                if got.message_finished:
                    break
            whole = type(message)().join(parts)  # type: ignore[arg-type]
            assert whole == message
        client.send(connection.send(events.CloseConnection(1000, "bye")))
        closed = next_event(events.CloseConnection)
        assert isinstance(closed, events.CloseConnection) and closed.code == 1000


def test_random_frames_never_stop_the_server(server: Server) -> None:
    chance = random.Random(5)
    for _ in range(150):
        with opened(server, "/ws/echo", DEFLATE if chance.random() < 0.5 else "x-a: b") as peer:
            for _ in range(chance.randrange(1, 6)):
                sent = bytearray(
                    frame(
                        chance.choice([0, 1, 2, 8, 9, 10, 3, 11]),
                        chance.randbytes(chance.choice([0, 1, 2, 10, 126, 1000])),
                        fin=chance.random() < 0.7,
                        rsv=chance.choice([0, 0, 0, 4, 1]),
                    )
                )
                if chance.random() < 0.3:
                    sent[chance.randrange(len(sent))] ^= 1 << chance.randrange(8)
                peer.send(bytes(sent))
    with opened(server) as peer:
        assert echoes(peer)
