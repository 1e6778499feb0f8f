"""Row 11: 500 peers that connect and say nothing, or too slowly."""

import contextlib
import select
import socket
import statistics
import time

from harness import Row, World, at_most, equal, expect, main, text_of

COUNT = 500
PENDING = 64
STEP = 7.0  # seconds for each step of a handshake
ROW = Row(
    11,
    "500 silent or slow handshakes",
    "others connect within 100 ms; 64 half-open at most, each dropped after 7 s a step",
)


def still_open(sockets: list[socket.socket]) -> int:
    readable = set(select.select(sockets, [], [], 0)[0])
    count = 0
    for one in sockets:
        with contextlib.suppress(OSError):
            count += (
                one not in readable or one.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) != b""
            )
    return count


def body(world: World) -> str:
    host = world.here
    node, beam = host.node(), host.beam()
    beam.ping(node)
    descriptors = node.descriptors()

    def dial() -> float:
        beam.ask(f"erlang:disconnect_node({node})").is_("true")
        return beam.ping(node).took

    sockets: list[socket.socket] = []
    times: list[float] = []
    with contextlib.ExitStack() as stack:
        for number in range(COUNT):
            one = stack.enter_context(host.connect(node.port))
            if number % 2:
                one.sendall(b"\x00\x1eN")  # a name of which the rest never comes
            sockets.append(one)
            if number % 50 == 49:
                times.append(dial())
        began = time.monotonic()
        left = still_open(sockets)
        expect(left <= PENDING, f"{left} half-open connections")
        at_most(node.descriptors() - descriptors, PENDING + 8, "descriptors more than before")
        while (left := still_open(sockets)) and time.monotonic() - began < 2 * STEP:
            times.append(dial())
            time.sleep(0.5)
        gone = time.monotonic() - began
        equal(left, 0, "half-open connections left")
        at_most(gone, STEP + 2, "the last was dropped after")
    at_most(statistics.median(times), 0.1, "a dial took (median)")
    equal(node.metric("handshake_failures_total"), COUNT, "failures counted")
    return (
        f"a BEAM connects in {text_of(statistics.median(times))} (at most {text_of(max(times))}), "
        f"the last silent peer is dropped after {text_of(gone)}"
    )


if __name__ == "__main__":
    main(ROW, body)
