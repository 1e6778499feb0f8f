#!/usr/bin/env python3
"""Writes the seeds of the fuzz target channel: each item a py_channel_link or a receiver sends.

The node of the target numbers its processes from 1: `py` is 1, the first channel 2. Run it after a change of the items
and commit what it writes: tests/fuzz/make_channel_corpus.py
"""

import struct

from make_dist_corpus import CORPUS, FROM, REF, atom, lst, small, tup

CHANNEL = b"X" + atom("py@host") + struct.pack(">II", 2, 0) + b"CREA"
NEW = tup(atom("new"), small(1), atom("terms"), small(200))
SEND = tup(atom("send"), CHANNEL, small(10), tup(small(1), atom("a"), lst(small(1))))
ALIAS = b"l" + struct.pack(">I", 1) + atom("alias") + REF

ITEMS = {
    "new": [NEW],
    "bytes": [tup(atom("new"), small(1), atom("bytes"), small(0))],
    "send": [NEW, SEND, SEND],
    "attach": [NEW, tup(atom("attach"), small(2), CHANNEL)],
    "info": [NEW, tup(atom("info"), small(2), CHANNEL)],
    "flush": [NEW, SEND, tup(atom("flush"), small(2), CHANNEL)],
    "want": [NEW, SEND, tup(atom("want"), CHANNEL)],
    "returned": [NEW, tup(atom("returned"), CHANNEL, small(9))],
    "recv": [NEW, tup(atom("recv"), CHANNEL, ALIAS, small(9)), tup(atom("unrecv"), CHANNEL, ALIAS)],
    "try_recv": [NEW, tup(atom("try_recv"), CHANNEL, ALIAS, small(9))],
    "close": [NEW, SEND, tup(atom("close"), CHANNEL, atom("normal"))],
}


def batch(*items: bytes) -> bytes:
    return tup(atom("$py_channel"), lst(*items))


def main() -> None:
    directory = CORPUS / "channel"
    directory.mkdir(parents=True, exist_ok=True)
    for name, items in ITEMS.items():
        (directory / name).write_bytes(batch(*items))
        (directory / f"{name}_apart").write_bytes(b"".join(batch(item) for item in items))
    carried = tup(atom("$py_channel"), FROM, lst(SEND))
    (directory / "carried").write_bytes(batch(NEW) + carried)


if __name__ == "__main__":
    main()
