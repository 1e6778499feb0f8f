"""Row 6: the node's process is stopped for longer than the ticktime, and goes on."""

import signal

from harness import Row, World, at_most, equal, expect, main, text_of, until

TICKTIME = 4
ROW = Row(
    6,
    "the node is frozen (SIGSTOP), and goes on",
    "net_tick_timeout after 0.75 to 1.25 ticktimes, callers' own timeouts earlier, a dial fails at net_setuptime; "
    "linked again once it goes on",
)


def body(world: World) -> str:
    host = world.here
    node = host.node(ticktime=TICKTIME)
    beam = host.beam(ticktime=TICKTIME, application=True)
    dialer = host.beam(ticktime=TICKTIME, options=["-kernel", "net_setuptime", "3"])
    beam.ask(f"py:call({node}, math, sqrt, [16.0])").is_("{ok,4.0}")

    frozen = node.send(signal.SIGSTOP)
    until("it stands still", lambda: node.state() == "T")
    early = beam.begin(f"py:call({node}, math, sqrt, [16.0], #{{timeout => 1000}})")
    late = beam.begin(f"py:call({node}, math, sqrt, [16.0], #{{timeout => 60000}})")
    dial = dialer.begin(f"net_adm:ping({node})")
    at_most(abs(early().is_("{error,timeout}").took - 1.0), 0.5, "off its timeout of 1 s")
    at_most(abs(dial().is_("pang").took - 3.0), 1.0, "a dial off net_setuptime of 3 s")
    down = beam.sees("down", node, frozen, 2 * TICKTIME)
    equal(down.reason, "net_tick_timeout", "the reason")
    passed = down.at - frozen
    expect(0.7 * TICKTIME <= passed <= 1.3 * TICKTIME + 0.5, f"given up after {passed:.2f} s")
    answer = late().like(r"^\{error,\{down,")
    at_most(answer.ended - down.at, 0.5, "the caller was told after")

    onward = node.send(signal.SIGCONT)
    until(
        "a call is answered",
        lambda: beam.ask(f"py:call({node}, math, sqrt, [16.0])").text == "{ok,4.0}",
        10,
    )
    up = beam.sees("up", node, onward)
    until("one link each", lambda: node.peers() == 1, 5)
    dialer.ping(node)
    equal(node.peers(), 2, "peers")
    return (
        f"given up after {passed / TICKTIME:.2f} ticktimes, callers told with it; "
        f"linked again {text_of(up.at - onward)} after it went on"
    )


if __name__ == "__main__":
    main(ROW, body)
