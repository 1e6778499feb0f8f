"""Row 3: a BEAM with another cookie dials the node, and the node dials one."""

import re
import time

from harness import Row, World, equal, expect, main, text_of

ROW = Row(
    3,
    "the cookies differ",
    "refused in one round trip, counted and logged with the address; no busy retry",
)
WATCHED = 4.0


def body(world: World) -> str:
    host = world.here
    stranger = host.beam(cookie="another")
    node = host.node()
    refused = stranger.ping(node, "pang")
    line = node.wait_line(r"handshake with (127\.0\.0\.1:\d+) failed: .*the cookie does not match")
    equal(node.metric("handshake_failures_total"), 1, "failures counted")
    equal(node.metric('peers{state="up"}'), 0, "peers")

    before = time.monotonic()
    dialer = host.node(None, "--peer", stranger.node)
    dialer.wait_line(f"cannot reach peer {re.escape(stranger.node)}")
    time.sleep(WATCHED)
    tries = dialer.metric("handshake_failures_total")
    passed = time.monotonic() - before
    # 0.1 s, doubling, at least half of each pause: 8 in the first 12.7 s at the most.
    expect(2 <= tries <= 8, f"{tries:.0f} tries in {passed:.1f} s")
    equal(dialer.lines("cannot reach peer"), 1, "lines about it in the log")
    for program in (node, dialer, stranger):
        expect(world.cookie not in program.log(), f"the cookie is in the log of {program.name}")
    return f"pang after {text_of(refused.took)}, logged with {line[1]}; {tries:.0f} tries in {passed:.1f} s"


if __name__ == "__main__":
    main(ROW, body)
