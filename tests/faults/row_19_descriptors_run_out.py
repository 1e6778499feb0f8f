"""Row 19: the node has no file descriptor left."""

import contextlib
import time

from harness import Row, World, at_most, equal, expect, main, text_of, until

LIMIT = 64
ROW = Row(
    19,
    "file descriptors run out",
    "links live on, accepting pauses without spinning; connects again within 1 s of their return",
)


def body(world: World) -> str:
    host = world.here
    node = host.node(command=["prlimit", f"--nofile={LIMIT}"])
    old, new = host.beam(), host.beam()
    old.ping(node)
    expect(node.metrics()["process_open_fds"] < LIMIT, "room for descriptors to begin with")

    with contextlib.ExitStack() as stack:
        # The handshake's own bound on half-open peers is as high as the limit: Python code takes the rest.
        take = f"watcher:call({node}, {{call, faulty, take_descriptors, []}})"

        def taken() -> bool:
            # Again, for what was being closed: the connection that asked for the metrics.
            old.ask(take).like(r"^\{ok,\d+\}$")
            return node.descriptors() == LIMIT

        until("all descriptors are in use", taken, 5)
        for port in (node.port, node.admin):
            for _ in range(10):
                stack.enter_context(host.connect(port))
        refused = new.begin(f"net_adm:ping({node})")
        before, began = node.cpu_seconds(), time.monotonic()
        time.sleep(2.0)
        spent = (node.cpu_seconds() - before) / (time.monotonic() - began)
        at_most(spent, 0.1, "share of a processor while there are none")
        old.ask(f"watcher:call({node}, {{call, math, sqrt, [16.0]}})").is_("{ok,4.0}")
        equal(node.lines("cannot accept connections"), 1, "lines about it in the log")
        equal(node.alive(), True, "the node")
        old.ask(f"watcher:call({node}, {{call, faulty, give_descriptors, []}})").is_("{ok,none}")
        freed = time.monotonic()
        refused().like("^(pong|pang)$")
    back = until("a BEAM connects", lambda: new.ask(f"net_adm:ping({node})").text == "pong", 5)
    at_most(time.monotonic() - freed, 3.0, "connected again after")
    until("the admin port answers", lambda: node.live())
    return f"{spent * 100:.1f} % of a processor meanwhile; a BEAM connects {text_of(back)} after"


if __name__ == "__main__":
    main(ROW, body)
