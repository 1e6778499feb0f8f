#!/usr/bin/env python3
"""Writes the seeds of the fuzz targets http and websocket: one of every kind of input there is.

Run it after a change of what the web server reads and commit what it writes: tests/fuzz/make_web_corpus.py
"""

import pathlib
import struct
import zlib

CORPUS = pathlib.Path(__file__).parent / "corpus"


def http(name: str, text: bytes, step: int = 255) -> None:
    write("http", name, bytes([step]) + text)


def frame(first: int, payload: bytes) -> bytes:
    head = bytes([first])
    if len(payload) < 126:
        head += bytes([0x80 | len(payload)])
    else:
        head += bytes([0x80 | 126]) + struct.pack(">H", len(payload))
    mask = b"\x11\x22\x33\x44"
    return head + mask + bytes(byte ^ mask[i % 4] for i, byte in enumerate(payload))


def websocket(name: str, data: bytes, flags: int = 0, step: int = 255) -> None:
    write("websocket", name, bytes([flags, step]) + data)


def write(target: str, name: str, data: bytes) -> None:
    directory = CORPUS / target
    directory.mkdir(parents=True, exist_ok=True)
    (directory / name).write_bytes(data)


def compressed(data: bytes) -> bytes:
    compressor = zlib.compressobj(wbits=-12)
    return (compressor.compress(data) + compressor.flush(zlib.Z_SYNC_FLUSH))[:-4]


def main() -> None:
    host = b"Host: h\r\n"
    chunked = b"POST /c HTTP/1.1\r\n" + host + b"Transfer-Encoding: chunked\r\n\r\n"
    http("get", b"GET /a%20b?x=1#y HTTP/1.1\r\n" + host + b"X-A: b\r\nX-Empty:\r\n\r\n")
    http("get_in_pieces", b"GET / HTTP/1.1\r\n" + host + b"\r\n", step=0)
    http("absolute", b"GET http://h/a HTTP/1.1\r\n" + host + b"\r\n")
    http("old", b"POST / HTTP/1.0\r\nContent-Length: 3\r\nConnection: keep-alive\r\n\r\nabc")
    http("chunked", chunked + b'3;a=b\r\nabc\r\n2;x="y"\r\nde\r\n0\r\nT: t\r\n\r\n', step=3)
    http("pipelined", (b"GET / HTTP/1.1\r\n" + host + b"\r\n") * 3)
    http(
        "upgrade",
        b"GET / HTTP/1.1\r\n" + host + b"Connection: Upgrade\r\nUpgrade: websocket\r\n"
        b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n",
    )
    http("connect", b"CONNECT h:1 HTTP/1.1\r\n" + host + b"\r\n")
    http(
        "expect",
        b"PUT / HTTP/1.1\r\n" + host + b"Expect: 100-continue\r\nContent-Length: 1\r\n\r\na",
    )
    http(
        "two_lengths",
        b"POST / HTTP/1.1\r\n" + host + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\n",
    )
    http("both_lengths", chunked[:-2] + b"Content-Length: 1\r\n\r\n0\r\n\r\n")
    http("folded", b"GET / HTTP/1.1\r\n" + host + b"A: b\r\n c\r\n\r\n")
    http("proxy_text", b"PROXY TCP4 192.0.2.1 198.51.100.2 56324 443\r\n")
    http("proxy_six", b"PROXY TCP6 2001:db8::1 ::1 1 65535\r\n")
    signature = b"\r\n\r\n\0\r\nQUIT\n"
    http("proxy_binary", signature + b"\x21\x11" + struct.pack(">H", 12) + bytes(range(12)))
    http("proxy_binary_six", signature + b"\x21\x21" + struct.pack(">H", 36) + bytes(range(36)))
    http("proxy_local", signature + b"\x20\x00" + struct.pack(">H", 0))

    websocket("text", frame(0x81, b"hello"))
    websocket("fragments", frame(0x01, b"a") + frame(0x89, b"p") + frame(0x80, b"b"), step=0)
    websocket("binary", frame(0x82, bytes(300)))
    websocket("close", frame(0x88, struct.pack(">H", 1000) + b"bye"))
    websocket("not_utf8", frame(0x81, b"\xc3\x28"))
    websocket("long", b"\x82\xff" + struct.pack(">Q", 70_000) + b"\0\0\0\0x")
    websocket("compressed", frame(0xC1, compressed(b"hello hello hello")), flags=1)
    websocket("compressed_twice", frame(0xC1, compressed(b"a")) * 2, flags=1, step=2)
    websocket("bomb", frame(0xC2, compressed(bytes(100_000))), flags=1)
    websocket(
        "offer",
        b'x, permessage-deflate; client_max_window_bits; server_max_window_bits="10"; server_no_context_takeover',
        flags=2,
    )


if __name__ == "__main__":
    main()
