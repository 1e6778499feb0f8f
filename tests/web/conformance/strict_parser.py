"""HTTP/1.1 as RFC 9110 and 9112 have it, read the one way that nobody can misunderstand: what the servers are held to.

Where the standard leaves a choice that no two parsers could take differently to somebody's harm (empty lines before a
request, however they end, several spaces in its line, a fragment, an extension of a chunk, the same length twice) it accepts; a server may
refuse that. What it refuses a server must refuse.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

Fields = list[tuple[str, str]]

REQUEST_LINE = re.compile(
    rb"([!#$%&'*+\-.^_`|~0-9A-Za-z]+) +([^\x00-\x20\x7f]+) +HTTP/1\.([01])", re.DOTALL
)
FIELD = re.compile(
    rb"([!#$%&'*+\-.^_`|~0-9A-Za-z]+):[ \t]*((?:[^\x00-\x08\x0a-\x1f\x7f]*[^\x00-\x20\x7f])?)[ \t]*",
    re.DOTALL,
)
CHUNK = re.compile(rb"([0-9A-Fa-f]{1,16})(?:[ \t]*;[^\x00-\x08\x0a-\x1f\x7f]*)?", re.DOTALL)
ABSOLUTE = re.compile(rb"https?://([^/?#]+)([^?#]*)", re.IGNORECASE)


class Refused(Exception):
    pass


class Incomplete(Exception):
    pass


@dataclass
class Request:
    method: str
    path: str
    query: str
    version: str
    headers: Fields
    body: bytes = b""

    def all(self, name: str) -> list[str]:
        return [value for key, value in self.headers if key == name]

    @property
    def last(self) -> bool:
        words = [
            word.strip().lower() for value in self.all("connection") for word in value.split(",")
        ]
        return "close" in words or (self.version == "1.0" and "keep-alive" not in words)


@dataclass
class Reading:
    requests: list[Request] = field(default_factory=list)
    end: str = "end"  # end, incomplete, refused; closed: what follows is not read


def read(data: bytes) -> Reading:
    reading, source = Reading(), Source(data)
    try:
        while True:
            while source.data[source.at : source.at + 1] in (b"\r", b"\n"):
                source.at += 1
            if source.at == len(data):
                return reading
            reading.requests.append(source.request())
            if reading.requests[-1].last:
                reading.end = "closed"
                return reading
    except Incomplete:
        reading.end = "incomplete"
    except Refused:
        reading.end = "refused"
    return reading


class Source:
    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0

    def line(self) -> bytes:
        """Up to the next CR LF; a CR or LF alone is refused as soon as it is seen."""
        end = re.compile(rb"[\r\n]").search(self.data, self.at)
        if end is None or self.data[end.start() :] == b"\r":
            raise Incomplete
        if not self.data.startswith(b"\r\n", end.start()):
            raise Refused("a line that ends otherwise than with CR LF")
        line = self.data[self.at : end.start()]
        self.at = end.end() + 1
        return line

    def exactly(self, size: int) -> bytes:
        if self.at + size > len(self.data):
            raise Incomplete
        self.at += size
        return self.data[self.at - size : self.at]

    def fields(self) -> Fields:
        fields: Fields = []
        while line := self.line():
            match = FIELD.fullmatch(line)
            if match is None:
                raise Refused("a header")
            fields.append((match[1].decode().lower(), match[2].decode("latin-1")))
        return fields

    def request(self) -> Request:
        match = REQUEST_LINE.fullmatch(self.line())
        if match is None:
            raise Refused("the request line")
        path, query = target(match[1], match[2])
        version = "1." + match[3].decode()
        request = Request(match[1].decode(), path, query, version, self.fields())
        hosts = len(request.all("host"))
        if hosts > 1 or (version == "1.1" and not hosts):
            raise Refused("the host")
        codings, lengths = request.all("transfer-encoding"), request.all("content-length")
        if codings:
            if lengths or version == "1.0" or [coding.lower() for coding in codings] != ["chunked"]:
                raise Refused("how long the body is")
            request.body = self.chunks()
        elif lengths:
            if len(set(lengths)) > 1 or not re.fullmatch("[0-9]{1,18}", lengths[0]):
                raise Refused("content-length")
            request.body = self.exactly(int(lengths[0]))
        return request

    def chunks(self) -> bytes:
        parts = []
        while True:
            match = CHUNK.fullmatch(self.line())
            if match is None:
                raise Refused("the size of a chunk")
            size = int(match[1], 16)
            if size == 0:
                self.fields()
                return b"".join(parts)
            parts.append(self.exactly(size))
            if self.at < len(self.data) and not b"\r\n".startswith(
                self.data[self.at : self.at + 2]
            ):
                raise Refused("the end of a chunk")
            self.exactly(2)


def target(method: bytes, text: bytes) -> tuple[str, str]:
    if method == b"CONNECT":
        raise Refused("the target")
    text = text.partition(b"#")[0]
    if absolute := ABSOLUTE.fullmatch(text.partition(b"?")[0]):
        path = absolute[2] or b"/"
    elif text.startswith(b"/") or text == b"*":
        path = text.partition(b"?")[0]
    else:
        raise Refused("the target")
    return path.decode("latin-1"), text.partition(b"?")[2].decode("latin-1")
