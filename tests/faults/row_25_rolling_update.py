"""Row 25: three BEAMs are restarted again and again while they call.

FAULT_RESTARTS is how often each is: 100 in the table, fewer with `make test`.
"""

import os
import statistics

from harness import Beam, Row, World, at_most, equal, main, until

RESTARTS = int(os.environ.get("FAULT_RESTARTS", "100"))
BEAMS = 3
WARM = 3  # restarts after which memory is compared
ROW = Row(
    25,
    "three BEAMs in a rolling update, 100 restarts each",
    "no leak of peers, descriptors, threads or memory; every call ends in a result or an error",
    limit=900.0,
)


def body(world: World) -> str:
    host = world.here
    node = host.node()
    witness = host.beam(application=True)
    witness.ask(f"py:call({node}, math, sqrt, [16.0])").is_("{ok,4.0}")
    call = f"watcher:call({node}, {{call, faulty, nap, [0.01]}})"
    witness.ask(
        f"watcher:load(other, 2, fun() -> {call} end, fun({{ok, 0.01}}) -> good; (Other) -> Other end)"
    ).is_("ok")

    def start(number: int) -> Beam:
        beam = host.beam(f"rolling{number}")
        beam.ping(node)
        beam.ask(
            f"watcher:load(mine, 8, fun() -> {call} end, fun({{ok, 0.01}}) -> good; (Other) -> Other end)"
        )
        return beam

    beams = [start(number) for number in range(BEAMS)]
    memory: list[int] = []
    killed = 0
    for restart in range(RESTARTS):
        for number, beam in enumerate(beams):
            if (restart + number) % 2:
                beam.kill()
                killed += 1
            else:
                beam.ask("watcher:stopped(mine)").like(r"^\[\{good,\d+\}\]$")
                beam.begin("init:stop()")
                beam.wait()
            beams[number] = start(number)
        memory.append(node.status("VmRSS"))
        if restart == min(WARM, RESTARTS - 1):
            descriptors, threads = node.descriptors(), node.status("Threads")
    for beam in beams:
        beam.ask("watcher:stopped(mine)").like(r"^\[\{good,\d+\}\]$")
    witness.ask("watcher:stopped(other)").like(r"^\[\{good,\d+\}\]$")
    equal(node.peers(), BEAMS + 1, "peers")
    equal(node.metric("links_opened_total"), 1 + BEAMS * (RESTARTS + 1), "links opened")
    until("nothing runs", lambda: node.metric("inflight") + node.metric("queue_depth") == 0, 5)
    at_most(node.descriptors(), descriptors + 2, "descriptors")
    at_most(node.status("Threads"), threads + 2, "threads")
    grown = (
        statistics.median(memory[-5:]) - statistics.median(memory[WARM : WARM + 5] or memory)
    ) / 1024
    at_most(grown, 8.0, "MB more")
    return (
        f"{BEAMS * RESTARTS} restarts, {killed} of them kills: every call answered, {grown:+.1f} MB"
    )


if __name__ == "__main__":
    main(ROW, body)
