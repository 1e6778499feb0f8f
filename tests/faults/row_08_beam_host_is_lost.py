"""Row 8: the host of a BEAM loses its power: no FIN, no RST, nothing."""

import time

from harness import Needs, Row, World, at_most, main, until

TICKTIME = 4
LARGE = 64 << 20
ROW = Row(
    8,
    "a BEAM's host is lost without a word",
    "the peer is dropped within 1.25 ticktimes, its calls cancelled, their memory freed",
    needs=Needs.ROOT,
    quick=False,
)


def body(world: World) -> str:
    near, far = world.host(), world.host()
    node = far.node(None, "--workers", "1", ticktime=TICKTIME)
    beam = near.beam(ticktime=TICKTIME)
    beam.ping(node)
    before = node.status("VmRSS")
    beam.begin(f"watcher:call({node}, {{call, faulty, spin, [60]}}, 60000)")
    beam.begin(f"watcher:call({node}, {{call, faulty, nap_async, [60]}}, 60000)")
    until("they run", lambda: node.metric("inflight") == 1 and node.metric("tasks") == 1)
    beam.begin(
        f"watcher:call({node}, {{call, faulty, same, [binary:copy(<<1>>, {LARGE})]}}, 60000)"
    )
    until("a large one waits", lambda: node.status("VmRSS") - before > LARGE // 1024)

    lost = near.unplug()
    beam.kill()
    until("the peer is dropped", lambda: node.peers() == 0, 3 * TICKTIME)
    gone = time.monotonic() - lost
    at_most(gone / TICKTIME, 1.3, "ticktimes until the peer was dropped")
    until(
        "its calls ended",
        lambda: node.metric("inflight") + node.metric("tasks") + node.metric("queue_depth") == 0,
        2,
    )
    until("its memory is given back", lambda: node.status("VmRSS") - before < LARGE // 4096, 5)
    near.plug()
    near.beam().ping(node)
    return f"dropped after {gone / TICKTIME:.2f} ticktimes, {LARGE >> 20} MB given back"


if __name__ == "__main__":
    main(ROW, body)
