"""A BEAM to compare with: `beam.escript` behind a pipe."""

from __future__ import annotations

import struct
import subprocess
from pathlib import Path

SCRIPT = Path(__file__).with_name("beam.escript")


class Beam:
    """Asks a real BEAM what terms are; use it in a `with`."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            ["escript", str(SCRIPT)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )

    def __enter__(self) -> Beam:
        return self

    def __exit__(self, *exception: object) -> None:
        assert self._process.stdin and self._process.stdout
        self._process.stdin.close()
        self._process.wait(30)
        self._process.stdout.close()

    def ask(self, operation: str, argument: bytes) -> bytes:
        assert self._process.stdin and self._process.stdout
        request = operation.encode() + argument
        self._process.stdin.write(struct.pack(">I", len(request)) + request)
        self._process.stdin.flush()
        (size,) = struct.unpack(">I", self._process.stdout.read(4))
        answer = self._process.stdout.read(size)
        if answer[:1] != b"+":
            raise RuntimeError(answer[1:].decode())
        return answer[1:]

    def rewrite(self, term: bytes) -> bytes:
        return self.ask("e", term)

    def text(self, term: bytes) -> str:
        return self.ask("p", term).decode()

    def evaluate(self, expression: str) -> bytes:
        return self.ask("x", expression.encode())

    def is_same(self, expression: str, term: bytes) -> bool:
        text = expression.encode()
        return b"true" in self.ask("=", struct.pack(">I", len(text)) + text + term)

    def sort(self, terms: bytes) -> bytes:
        return self.ask("s", terms)
