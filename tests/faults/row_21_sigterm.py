"""Row 21: the node is told to stop while calls run."""

import signal
import time

from harness import Row, World, at_most, equal, main, text_of, until

ROW = Row(
    21,
    "SIGTERM with calls running",
    "not ready, new calls get {error, draining}, accepted ones their answer within --drain-timeout; exit code 0",
)
CALLS = 8


def body(world: World) -> str:
    host = world.here
    node, beam = host.node(None, "--drain-timeout", "5"), host.beam()
    beam.ping(node)
    sync = f"watcher:call({node}, {{call, faulty, nap, [1.5]}})"
    loop = f"watcher:call({node}, {{call, faulty, nap_async, [1.5]}})"
    running = [
        beam.begin(f"watcher:answered({CALLS}, fun() -> {call} end)") for call in (sync, loop)
    ]
    until("they run", lambda: node.metric("inflight") == CALLS and node.metric("tasks") == CALLS)

    told = node.send(signal.SIGTERM)
    until("not ready", lambda: node.get("/readyz")[1].startswith("draining"))
    refused = beam.ask(f"watcher:call({node}, {{call, faulty, ready, []}})").is_("{error,draining}")
    equal(node.live(), True, "/livez")
    for one in running:
        one().is_(f"[{{{{ok,1.5}},{CALLS}}}]")
    equal(node.wait(), 0, "the exit code")
    ended = time.monotonic() - told
    at_most(ended, 4.0, "it ended after")
    equal(beam.sees("down", node, told).reason, "connection_closed", "the reason")

    # What takes too long is cut short, and its caller is told.
    node = host.node(None, "--drain-timeout", "1", "--grace-ms", "300")
    beam.ping(node)
    late = beam.begin(f"watcher:call({node}, {{call, faulty, nap, [30]}})")
    until("it runs", lambda: node.metric("inflight") == 1)
    told = node.send(signal.SIGTERM)
    equal(node.wait(), 0, "the exit code with a call that does not end")
    cut = time.monotonic() - told
    at_most(cut, 4.0, "it ended after")
    late().like(r"^(\{failed,|\{error,)")
    return (
        f"{2 * CALLS} of {2 * CALLS} answered, refused in {text_of(refused.took)}, ended after {text_of(ended)}; "
        f"cut short {text_of(cut)} after SIGTERM with a drain-timeout of 1 s"
    )


if __name__ == "__main__":
    main(ROW, body)
