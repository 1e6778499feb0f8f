"""Row 9: a second link from a peer whose name has one already."""

import pathlib
import sys

from harness import HERE, Row, World, at_most, equal, expect, main, text_of

sys.path.insert(0, str(pathlib.Path(HERE).parent / "hostile"))

from raw_peer import Closed, RawPeer, Refused  # noqa: E402

ROW = Row(
    9,
    "a second link from a name that has one",
    "asked with `alive`: a peer that says its old link is dead gets the new one, else the old one stays; never two",
)


def body(world: World) -> str:
    host = world.here
    node = host.node()
    first = RawPeer("127.0.0.1", node.port, "twin@127.0.0.1").connect(world.cookie)
    keeps = RawPeer("127.0.0.1", node.port, "twin@127.0.0.1")
    try:
        keeps.connect(world.cookie, replace=False)
        expect(False, "a second link was let in beside the first")
    except Refused as why:
        expect("closed" in str(why), f"refused with {why}")
    expect(first.ping(), "the first link is not answered")
    equal((node.peers(), node.metric("links_closed_total")), (1, 0), "links")

    second = RawPeer("127.0.0.1", node.port, "twin@127.0.0.1").connect(world.cookie)
    expect(second.ping(), "the second link is not answered")
    try:
        first.receive(5.0)
        expect(False, "the first link still says something")
    except Closed:
        pass
    equal((node.peers(), node.metric("links_closed_total")), (1, 1), "links")

    # As after a crash whose end never arrived: the BEAM knows of no link, the node still has one.
    RawPeer("127.0.0.1", node.port, "reborn@127.0.0.1").connect(world.cookie)
    beam = host.beam("reborn")
    pong = beam.ping(node)
    at_most(pong.took, 1.0, "taking over took")
    beam.ask(f"watcher:call({node}, {{call, math, sqrt, [16.0]}})").is_("{ok,4.0}")
    equal(node.peers(), 2, "peers")
    return f"kept when the peer keeps it, replaced else; a BEAM takes over from its dead self in {text_of(pong.took)}"


if __name__ == "__main__":
    main(ROW, body)
