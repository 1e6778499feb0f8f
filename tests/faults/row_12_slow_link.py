"""Row 12: a term that takes several ticktimes on a slow link, and one that is over the limit.

Scaled: 20 MB at 20 Mbit/s and a ticktime of 2 s are as many ticktimes as 1 GB at 200 Mbit/s and ten.
"""

import statistics
import time

from harness import Needs, Row, World, at_most, equal, expect, main, text_of

TICKTIME = 2
SIZE = 20 << 20
RATE = "20mbit"
ROW = Row(
    12,
    "a slow link and a large term",
    "no false nodedown either way, small calls pass it; over --max-message {error, too_large} without allocating",
    needs=Needs.ROOT,
    quick=False,
)


def body(world: World) -> str:
    near, far = world.host(), world.host()
    node = far.node(ticktime=TICKTIME)
    beam = near.beam(ticktime=TICKTIME)
    beam.ping(node)
    small: list[float] = []
    took: list[float] = []
    for slow, request in (
        (near, f"{{call, faulty, size, [binary:copy(<<1>>, {SIZE})]}}"),
        (far, f"{{call, faulty, zeros, [{SIZE}]}}"),
    ):
        slow.slow_down(RATE)
        large = beam.begin(
            f"case watcher:call({node}, {request}, 60000) of {{ok, B}} when is_binary(B) -> byte_size(B); {{ok, N}} -> N end"
        )
        while not large.over():
            small.append(
                beam.ask(f"watcher:call({node}, {{call, math, sqrt, [16.0]}})").is_("{ok,4.0}").took
            )
            time.sleep(0.1)
        took.append(large().is_(str(SIZE)).took)
        expect(took[-1] > 2 * TICKTIME, f"the link is not slow: {took[-1]:.1f} s")
        slow.command("tc", "qdisc", "del", "dev", "eth0", "root")
    equal(beam.seen("down", node), None, "nodes that went down")
    at_most(statistics.median(small), 1.0, "a small call took (median)")
    at_most(max(small), 2.0, "a small call took")

    strict = far.node(None, "--max-message", "8", ticktime=TICKTIME)
    beam.ping(strict)
    peak = strict.status("VmHWM")
    refused = (
        f"watcher:call({strict}, {{call, faulty, size, [binary:copy(<<1>>, 100 bsl 20)]}}, 60000)"
    )
    beam.ask(refused).is_("{error,too_large}")
    at_most((strict.status("VmHWM") - peak) / 1024, 24.0, "MB more at the peak")
    beam.ask(f"watcher:call({strict}, {{call, faulty, ready, []}})").is_('{ok,<<"ready">>}')
    equal(beam.seen("down", strict), None, "nodes that went down")
    return (
        f"{SIZE >> 20} MB in {took[0]:.1f} s and back in {took[1]:.1f} s at a ticktime of {TICKTIME} s; "
        f"{len(small)} small calls meanwhile, median {text_of(statistics.median(small))}, at most {text_of(max(small))}"
    )


if __name__ == "__main__":
    main(ROW, body)
