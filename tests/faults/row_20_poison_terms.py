"""Row 20: terms that no peer should send, on links that are otherwise good."""

import contextlib
import struct
import sys
import zlib

from harness import HERE, Row, World, at_most, equal, expect, main

sys.path.insert(0, str(HERE.parent / "hostile"))

from raw_peer import REG_SEND, Atom, Closed, Raw, RawPeer  # noqa: E402

ROW = Row(
    20,
    "poison terms",
    "that link is closed, or the call answered with an error; memory flat, others unaffected",
)
ROUNDS = 3
POISON = {
    "a binary that is cut": b"m" + struct.pack(">I", 1 << 30) + b"x",
    "a million tuples in each other": b"h\x01" * 1_000_000 + b"j",
    "a list of 2^32-1 items": b"l\xff\xff\xff\xff" + b"a\x01" * 8 + b"j",
    "a tuple of 2^32-1 items": b"i\xff\xff\xff\xff" + b"a\x01" * 8,
    "a map of 2^32-1 pairs": b"t\xff\xff\xff\xff" + b"a\x01" * 8,
    "an integer of 2^32-1 bytes": b"o\xff\xff\xff\xff\x00" + b"\xff" * 64,
    "atoms of 255 bytes that are no text": b"l\x00\x00\x03\xe8"
    + (b"w\xff" + b"\xff" * 255) * 1000
    + b"j",
    "a gigabyte of zeros, compressed": b"P"
    + struct.pack(">I", 1 << 30)
    + zlib.compress(bytes(1 << 24)) * 4,
    "an unknown tag": b"\xfe" * 32,
}


def body(world: World) -> str:
    host = world.here
    node, beam = host.node(), host.beam()
    beam.ping(node)

    def attack_call(what: str, poison: bytes) -> None:
        peer = RawPeer("127.0.0.1", node.port, "poisoner@127.0.0.1", timeout=10.0).connect(
            world.cookie
        )
        with contextlib.closing(peer):
            request = (Atom("call"), Atom("faulty"), Atom("same"), [Raw(poison)])
            answer = peer.gen_call("py", request)
            expect(answer[0] == Atom("error"), f"{what}: answered with {answer!r:.200}")

    def attack_control(what: str, poison: bytes) -> None:
        peer = RawPeer("127.0.0.1", node.port, "poisoner@127.0.0.1", timeout=10.0).connect(
            world.cookie
        )
        with contextlib.closing(peer), contextlib.suppress(Closed):
            peer.send_control((REG_SEND, Raw(poison), Atom(""), Atom("py")), 1)
            while True:  # what the node says to a new peer, and then nothing more
                peer.receive()

    def round_of_all() -> int:
        for what, poison in POISON.items():
            attack_call(what, poison)
            attack_control(what, poison)
            beam.ask(f"watcher:call({node}, {{call, math, sqrt, [16.0]}})").is_("{ok,4.0}")
        return node.status("VmRSS")

    first = round_of_all()
    for _ in range(ROUNDS):
        last = round_of_all()
    at_most((last - first) / 1024, 16.0, "MB more than after the first round")
    equal(beam.seen("down", node), None, "the other link")
    equal(node.metric("decode_rejects_total"), len(POISON) * (ROUNDS + 1), "rejects counted")
    return (
        f"{len(POISON)} terms, each as an argument (an error) and as a control message (the link closed): "
        f"{(last - first) / 1024:+.1f} MB after {ROUNDS} rounds more"
    )


if __name__ == "__main__":
    main(ROW, body)
