"""Row 22: the name server does not answer, and a name comes to mean another host."""

import time

from harness import NETWORK, Needs, Row, World, at_most, equal, expect, main, text_of

ROW = Row(
    22,
    "the name server does not answer; a name changes",
    "nothing waits for it: links live, peers given by address are dialled; a name is looked up at every dial",
    needs=Needs.ROOT,
    quick=False,
)


def body(world: World) -> str:
    near, far = world.host(resolver=f"{NETWORK}.99"), world.host()
    late = f"late@{far.address}"
    node = near.node(None, "--peer", "moved@peer.test", "--peer", late)
    beam = near.beam()
    beam.ping(node)
    began = time.monotonic()
    pings: list[float] = []
    while time.monotonic() - began < 4.0:
        pings.append(beam.ping(node).took)
        expect(node.live(), "/livez")
        time.sleep(0.1)
    at_most(max(pings), 0.5, "a ping took while the name was looked up")
    started = time.monotonic()
    by_address = far.beam("late")
    linked = by_address.sees("up", node, started, 12)

    near.hosts.write_text(f"127.0.0.1 localhost\n{NETWORK}.98 peer.test\n")
    time.sleep(2.0)
    far_hosts = "127.0.0.1 localhost\n" + f"{far.address} peer.test\n"
    moved = far.beam("moved", domain="peer.test")
    near.hosts.write_text(far_hosts)
    known = time.monotonic()
    up = moved.sees("up", node, 0.0, 45)
    node.wait_line("cannot reach peer moved@peer.test")
    equal(beam.seen("down", node), None, "the link by address")
    return (
        f"pings take {text_of(max(pings))} at most meanwhile; a peer given by address is linked "
        f"{text_of(linked.at - started)} after its start, one whose name changed {text_of(max(0.0, up.at - known))} after that"
    )


if __name__ == "__main__":
    main(ROW, body)
