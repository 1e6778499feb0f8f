"""Row 2: there is no port mapper when the node starts."""

import time

from harness import Row, World, at_most, equal, expect, main, text_of, until

ROW = Row(
    2,
    "epmd is absent at the start",
    "starts, waits, says so once a minute, is not ready; registered within 2 s once it is there; --epmd auto: is it",
)
WATCHED = 5.0


def body(world: World) -> str:
    host = world.bare()
    node = host.start_node().started()
    time.sleep(WATCHED)
    expect(node.alive(), "the node ended")
    equal(node.get("/livez")[0], 200, "/livez")
    equal(node.get("/startupz")[0], 200, "/startupz")
    equal(node.get("/readyz"), (503, "not registered with epmd\n"), "/readyz")
    equal(node.lines("not registered with epmd"), 1, "lines about it in the log")

    host.start_epmd()
    back = until("registered", lambda: node.metric("epmd_registered") == 1)
    at_most(back, 2.0, "registered after")
    equal(node.ready(), True, "ready")
    host.beam().ping(node)

    # Where nobody else is going to be the port mapper, the node is.
    alone = world.bare()
    own = alone.start_node(None, "--epmd", "auto").started()
    until("registered with itself", lambda: own.metric("epmd_registered") == 1)
    beam, other = alone.beam(), alone.start_node(None, "--epmd", "auto").started()
    beam.ping(own)
    until("registered with the first", lambda: other.metric("epmd_registered") == 1)
    beam.ping(other)
    return f"one line in {WATCHED:.0f} s, registered {text_of(back)} after epmd was there"


if __name__ == "__main__":
    main(ROW, body)
