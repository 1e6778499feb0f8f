"""A client of raw sockets: it writes the bytes it is given and reads answers strictly, framing and all."""

from __future__ import annotations

import re
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

PATIENCE = 10.0
HEAD_LIMIT = 1 << 20
FRAMING = {"content-length", "transfer-encoding", "connection", "keep-alive"}
OF_THE_SERVER = {"server", "date"}
TOKEN = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
STATUS_LINE = re.compile(rb"HTTP/(1\.[01]) ([1-5][0-9][0-9]) ([\t -~\x80-\xff]*)")


class Broken(Exception):
    """The answer is not HTTP, or ended in the middle."""


@dataclass
class Response:
    status: int
    version: str
    headers: list[tuple[str, str]]
    body: bytes = b""
    framing: str = ""  # none, length, chunked, close
    whole: bool = True  # false: the connection ended before the body did
    trailers: list[tuple[str, str]] = field(default_factory=list)

    def all(self, name: str) -> list[str]:
        return [value for key, value in self.headers if key == name]

    def one(self, name: str) -> str | None:
        values = self.all(name)
        if len(values) > 1:
            raise Broken(f"{name} is there {len(values)} times")
        return values[0] if values else None

    @property
    def told(self) -> list[tuple[str, str]]:
        """The headers that are neither the server's own nor of one connection."""
        return [pair for pair in self.headers if pair[0] not in FRAMING | OF_THE_SERVER]

    @property
    def closes(self) -> bool:
        words = [word.strip().lower() for word in (self.one("connection") or "").split(",")]
        return self.framing == "close" or "close" in words


class Client:
    """One connection. Every wait has a deadline; reading past it raises TimeoutError."""

    def __init__(self, peer: socket.socket) -> None:
        self.peer = peer
        self.data = b""
        self.ended = False

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.peer.close()

    def send(self, *pieces: bytes, pause: float = 0.0) -> None:
        """Sends pieces one after the other; that the other side has stopped reading is no error."""
        for number, piece in enumerate(pieces):
            if number and pause:
                time.sleep(pause)
            try:
                self.peer.sendall(piece)
            except (BrokenPipeError, ConnectionResetError):
                return

    def end_of_sending(self) -> None:
        try:
            self.peer.shutdown(socket.SHUT_WR)
        except OSError:
            pass

    def more(self, deadline: float) -> bool:
        """Reads once; false at the end."""
        if self.ended:
            return False
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError(f"no more than {self.data[:300]!r} in time")
        self.peer.settimeout(left)
        try:
            data = self.peer.recv(1 << 18)
        except ConnectionResetError:
            data = b""
        self.data += data
        self.ended = not data
        return not self.ended

    def until(self, mark: bytes, deadline: float) -> bytes:
        while mark not in self.data:
            if len(self.data) > HEAD_LIMIT:
                raise Broken("a head without an end")
            if not self.more(deadline):
                raise Broken(f"ended in the middle of {self.data[:300]!r}")
        found, _, self.data = self.data.partition(mark)
        return found

    def exactly(self, size: int, deadline: float) -> bytes:
        parts, have = [self.data], len(self.data)
        self.data = b""
        while have < size and self.more(deadline):
            parts.append(self.data)
            have += len(self.data)
            self.data = b""
        whole = b"".join(parts)
        self.data = whole[size:]
        return whole[:size]

    def response(self, method: str = "GET", seconds: float = PATIENCE) -> Response:
        """The next final answer; 1xx before it are in `interim`."""
        deadline = time.monotonic() + seconds
        while True:
            answer = self.head(deadline)
            if answer.status >= 200 or answer.status == 101:
                break
            self.interim.append(answer.status)
        self.body_of(answer, method, deadline)
        return answer

    @property
    def interim(self) -> list[int]:
        if not hasattr(self, "_interim"):
            self._interim: list[int] = []
        return self._interim

    def head(self, deadline: float) -> Response:
        text = self.until(b"\r\n\r\n", deadline)
        line, *fields = text.split(b"\r\n")
        match = STATUS_LINE.fullmatch(line)
        if match is None:
            raise Broken(f"the status line is {line!r}")
        headers = parsed_fields(fields)
        return Response(int(match[2]), match[1].decode(), headers)

    def body_of(self, answer: Response, method: str, deadline: float) -> None:
        length, coding = answer.one("content-length"), answer.one("transfer-encoding")
        if length is not None and coding is not None:
            raise Broken("both content-length and transfer-encoding")
        if length is not None and not re.fullmatch("[0-9]+", length):
            raise Broken(f"content-length is {length!r}")
        if method == "HEAD" or answer.status in (101, 204, 304):
            answer.framing = "none"
        elif coding is not None:
            if coding.lower() != "chunked" or answer.version != "1.1":
                raise Broken(f"transfer-encoding is {coding!r} in HTTP/{answer.version}")
            answer.framing = "chunked"
            self.chunks(answer, deadline)
        elif length is not None:
            answer.framing = "length"
            answer.body = self.exactly(int(length), deadline)
            answer.whole = len(answer.body) == int(length)
        else:
            answer.framing = "close"
            while self.more(deadline):
                pass
            answer.body, self.data = self.data, b""

    def chunks(self, answer: Response, deadline: float) -> None:
        parts: list[bytes] = []
        try:
            while True:
                line = self.until(b"\r\n", deadline)
                if not re.fullmatch(rb"[0-9A-Fa-f]+", line):
                    raise ValueError(f"the size of a chunk is {line!r}")
                size = int(line, 16)
                if size == 0:
                    break
                part = self.exactly(size + 2, deadline)
                parts.append(part[:size])
                if len(part) == size + 2 and part[size:] != b"\r\n":
                    raise ValueError(f"a chunk ends with {part[size:]!r}")
            trailers = []
            while line := self.until(b"\r\n", deadline):
                trailers.append(line)
            answer.trailers = parsed_fields(trailers)
        except Broken:
            answer.whole = False
        except ValueError as error:
            raise Broken(str(error)) from None
        answer.body = b"".join(parts)

    def at_end(self, seconds: float = PATIENCE) -> bool:
        """Whether the other side closes in time, and says nothing more before."""
        deadline = time.monotonic() + seconds
        try:
            while self.more(deadline):
                pass
        except TimeoutError:
            return False
        return self.data == b""

    def rest(self, seconds: float = PATIENCE) -> bytes:
        """Everything up to the end."""
        deadline = time.monotonic() + seconds
        while self.more(deadline):
            pass
        return self.data

    def responses(self, methods: Sequence[str], seconds: float = PATIENCE) -> list[Response]:
        """Answers for these methods in order, fewer if the connection ends between two of them."""
        answers: list[Response] = []
        deadline = time.monotonic() + seconds
        for method in methods:
            if not self.data and not self.more(deadline):
                break
            answers.append(self.response(method, deadline - time.monotonic()))
        return answers


def parsed(raw: bytes) -> tuple[Response, bytes]:
    """The first answer in these bytes, which are all that came, and what is behind it."""
    with Client(socket.socket()) as client:
        client.data, client.ended = raw, True
        return client.response(), client.data


def parsed_fields(fields: Sequence[bytes]) -> list[tuple[str, str]]:
    headers = []
    for text in fields:
        name, colon, value = text.partition(b":")
        if not colon or not TOKEN.fullmatch(name) or re.search(rb"[\x00\r\n]", value):
            raise Broken(f"a header is {text!r}")
        headers.append((name.decode().lower(), value.strip(b" \t").decode("latin-1")))
    return headers
