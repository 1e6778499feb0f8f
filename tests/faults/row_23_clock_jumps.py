"""Row 23: the wall clock jumps by an hour, forward and back."""

import pathlib
import re
import time

from harness import Needs, Row, World, at_most, equal, expect, main

TICKTIME = 4
ROW = Row(
    23,
    "the wall clock jumps by an hour, forward and back",
    "no timeout moves, no link is lost; the stamps of the log move",
    needs=Needs.FAKETIME,
)


def body(world: World) -> str:
    host = world.here
    library = next(pathlib.Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))
    clock = world.folder / "clock"

    def set_clock(offset: str) -> None:
        new = clock.with_suffix(".new")
        new.write_text(f"{offset}\n")
        new.rename(clock)

    set_clock("+0s")
    env = {
        "LD_PRELOAD": str(library),
        "FAKETIME_TIMESTAMP_FILE": str(clock),
        "FAKETIME_NO_CACHE": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    }
    node = host.node(env=env, ticktime=TICKTIME)
    beam = host.beam(ticktime=TICKTIME)
    beam.ping(node)
    deviations: list[float] = []

    def wall() -> float:
        return float(beam.ask(f"erpc:call({node}, time, time, [])").text)

    for offset, seconds in (("+3600s", 3600), ("-3600s", -3600), ("+0s", 0)):
        naps = [
            beam.begin(f"watcher:call({node}, {{call, faulty, {nap}, [2.0]}})")
            for nap in ("wait", "nap_async")
        ]
        late = beam.begin(f"watcher:call({node}, {{call, faulty, nap_async, [60]}}, 2000)")
        time.sleep(0.3)
        set_clock(offset)
        at_most(abs(wall() - time.time() - seconds), 5.0, "the node's clock is off by")
        for nap in naps:
            deviations.append(abs(nap().is_("{ok,2.0}").took - 2.0))
        deviations.append(abs(late().is_("{failed,timeout}").took - 2.0))
        host.beam(f"at{abs(seconds)}{'ab'[seconds < 0]}").ping(node)  # a line in the log
    time.sleep(TICKTIME)
    beam.ask(f"watcher:call({node}, {{call, math, sqrt, [16.0]}})").is_("{ok,4.0}")
    equal(beam.seen("down", node), None, "the link")
    equal(node.metric("python_worker_restarts_total"), 0, "workers replaced")
    at_most(max(deviations), 0.5, "a timeout or sleep moved by")
    hours = {int(hour) for hour in re.findall(r"(?m)^\S+T(\d\d):\S+ info at\S+ is up", node.log())}
    expect(len(hours) >= 3, f"the stamps of the log are of the hours {hours}")
    return f"{len(deviations)} sleeps and timeouts of 2 s, the furthest off by {max(deviations) * 1000:.0f} ms"


if __name__ == "__main__":
    main(ROW, body)
