"""Row 7: the network between a BEAM and the node drops everything for longer than the ticktime."""

import time

from harness import Needs, Row, World, at_most, equal, main, text_of, until

TICKTIME = 4
ROW = Row(
    7,
    "the network is cut for longer than the ticktime, and heals",
    "both sides give up within 1.25 ticktimes; one link again within 2 s of the heal",
    needs=Needs.ROOT,
    quick=False,
)


def body(world: World) -> str:
    near, far = world.host(), world.host()
    node = far.node(ticktime=TICKTIME)
    beam = near.beam(ticktime=TICKTIME, application=True)
    beam.ask(f"{{ok, _}} = py_pool:start(crew, #{{nodes => [{node}]}}), ok").is_("ok")
    beam.ask("py:call(crew, math, sqrt, [16.0])").is_("{ok,4.0}")
    beam.begin(f"watcher:call({node}, {{call, faulty, nap_async, [60]}}, 60000)")
    until("it runs", lambda: node.metric("tasks") == 1)

    cut = far.cut()
    call = beam.begin("py:call(crew, faulty, ready, [], #{timeout => 60000})")
    down = beam.sees("down", node, cut, 3 * TICKTIME)
    equal(down.reason, "net_tick_timeout", "the reason")
    until("the node gives the BEAM up", lambda: node.peers() == 0, 3 * TICKTIME)
    gone = time.monotonic()
    equal(node.metric("tasks"), 0, "calls of the lost BEAM")
    for who, at in (("the BEAM", down.at), ("the node", gone)):
        at_most((at - cut) / TICKTIME, 1.3, f"ticktimes until {who} gave up")
    call().like(r"^\{error,\{down,")

    far.command("sleep", str(2 * TICKTIME))  # dials of both sides fail meanwhile
    healed = far.heal()
    until(
        "a call is answered",
        lambda: beam.ask("py:call(crew, math, sqrt, [16.0])").text == "{ok,4.0}",
    )
    up = beam.sees("up", node, cut)
    at_most(up.at - healed, 2.0, "linked again after")
    equal(node.peers(), 1, "links")
    return (
        f"given up after {(down.at - cut) / TICKTIME:.2f} ticktimes by the BEAM and {(gone - cut) / TICKTIME:.2f} "
        f"by the node; linked again {text_of(max(0.0, up.at - healed))} after the heal"
    )


if __name__ == "__main__":
    main(ROW, body)
