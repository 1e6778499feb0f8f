"""Row 1: the port mapper is killed, and comes back."""

from harness import Row, World, at_most, equal, main, text_of, until

ROW = Row(
    1,
    "epmd is killed, and comes back",
    "links live; a node without links is not ready meanwhile; registered again within 2 s",
)


def body(world: World) -> str:
    host = world.here
    node, lonely, old, new = host.node(), host.node(), host.beam(), host.beam()
    old.ping(node)
    equal((node.ready(), lonely.ready()), (True, True), "ready to begin with")

    assert host.epmd is not None
    host.epmd.kill()
    noticed = until("the loss is seen", lambda: node.metric("epmd_registered") == 0)
    until("a node without links is not ready", lambda: not lonely.ready(), 2.0)
    equal(node.ready(), True, "a node with a link is ready")
    old.ask(f"watcher:call({node}, {{call, math, sqrt, [16.0]}})").is_("{ok,4.0}")
    equal(node.metric("links_closed_total"), 0, "links lost")

    host.start_epmd()
    back = until("registered again", lambda: node.metric("epmd_registered") == 1)
    at_most(back, 2.0, "registered again after")
    until("ready again", lonely.ready, 2.0)
    new.ping(node)
    new.ping(lonely)
    return f"loss seen after {text_of(noticed)}, registered again {text_of(back)} after it was back"


if __name__ == "__main__":
    main(ROW, body)
