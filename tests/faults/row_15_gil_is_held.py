"""Row 15: Python code keeps the GIL for longer than the ticktime."""

import time

from harness import Row, World, at_most, equal, expect, main, text_of, until

TICKTIME = 4
HELD = 8.0  # stands for the 30 s of the table, as the ticktime of 4 s does for 60
ROW = Row(
    15,
    "Python code holds the GIL for two ticktimes",
    "ticks, ping, /livez and /metrics are answered, /readyz is 503, calls end at their timeout; then all goes on",
)


def body(world: World) -> str:
    host = world.here
    node = host.node(ticktime=TICKTIME)
    beam = host.beam(ticktime=TICKTIME, application=True)
    idle = host.beam(ticktime=TICKTIME)  # whose link has nothing but ticks
    for one in (beam, idle):
        one.ping(node)
    beam.ask(f"py:call({node}, faulty, ready, [])").is_('{ok,<<"ready">>}')
    began = time.monotonic()
    beam.begin(f"watcher:call({node}, {{call, faulty, hog, [{HELD}]}})")
    until("not ready", lambda: node.get("/readyz") == (503, "python does not answer\n"))
    call = beam.begin(f"py:call({node}, faulty, ready, [], #{{timeout => 2000}})")
    pings: list[float] = []
    probes: list[float] = []
    while time.monotonic() - began < HELD - 1:
        pings.append(beam.ping(node).took)
        asked = time.monotonic()
        expect(node.live(), "/livez")
        node.metrics()
        probes.append(time.monotonic() - asked)
        time.sleep(0.2)
    at_most(max(pings), 0.5, "a ping took")
    at_most(max(probes), 0.5, "/livez and /metrics took")
    at_most(abs(call().is_("{error,timeout}").took - 2.0), 0.5, "off its timeout of 2 s")
    until("ready again", node.ready, 5)
    beam.ask(f"py:call({node}, faulty, ready, [])").is_('{ok,<<"ready">>}')
    equal([one.seen("down", node) for one in (beam, idle)], [None, None], "nodes that went down")
    return f"{len(pings)} pings, the slowest {text_of(max(pings))}; {len(probes)} probes, the slowest {text_of(max(probes))}"


if __name__ == "__main__":
    main(ROW, body)
