"""Row 10: two nodes with one name."""

import time

from harness import Row, World, at_most, equal, expect, main, text_of

ROW = Row(
    10,
    "two nodes with one name",
    "the second retries for 5 s, then ends with exit code 3 and one line; the first is not touched",
)


def body(world: World) -> str:
    host = world.here
    first, beam = host.node("twin"), host.beam()
    beam.ping(first)
    began = time.monotonic()
    second = host.start_node("twin")
    equal(second.wait(), 3, "the exit code")
    passed = time.monotonic() - began
    at_most(passed, 10.0, "the second ended after")
    expect("another node is registered with epmd as twin@" in second.log(), second.log())
    equal(first.metric("epmd_registered"), 1, "the first is registered")
    equal(first.metric("links_closed_total"), 0, "links it lost")
    host.beam().ping(first)

    # A name that becomes free in time is taken: the second was started while the first was still ending.
    third = host.start_node("twin")
    third.wait_line("the name is taken")
    first.kill()
    third.registered()
    host.beam().ping(third)
    return f"exit code 3 after {text_of(passed)}; a name that becomes free meanwhile is taken"


if __name__ == "__main__":
    main(ROW, body)
