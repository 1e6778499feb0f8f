"""Row 4: a BEAM is killed in mid-call and comes back under its name."""

from harness import Row, World, at_most, equal, main, text_of, until

ROW = Row(
    4,
    "a BEAM is killed, and comes back under its name",
    "its calls are cancelled, their answers dropped, the new link is accepted at once",
)


def body(world: World) -> str:
    host = world.here
    node, beam = host.node(), host.beam("victim")
    beam.ping(node)
    for function in ("spin", "nap_async"):
        beam.begin(f"watcher:call({node}, {{call, faulty, {function}, [60]}}, 60000)")
    until("both calls run", lambda: node.metric("inflight") == 1 and node.metric("tasks") == 1)

    beam.kill()
    gone = until("the link is closed", lambda: node.metric('peers{state="up"}') == 0)
    idle = until("both calls ended", lambda: node.metric("inflight") + node.metric("tasks") == 0)
    at_most(gone + idle, 2.0, "calls cancelled after")

    again = host.beam("victim")
    pong = again.ping(node)
    at_most(pong.took, 1.0, "the new link took")
    again.ask(f"watcher:call({node}, {{call, math, sqrt, [16.0]}})").is_("{ok,4.0}")
    # A process with the number of an old caller would have its answer in its mailbox.
    again.ask("[P || P <- processes(), {messages, [_ | _]} <- [process_info(P, messages)]]").is_(
        "[]"
    )
    equal(node.metric("python_worker_restarts_total"), 0, "workers replaced")
    return (
        f"calls cancelled {text_of(gone + idle)} after the kill, new link in {text_of(pong.took)}"
    )


if __name__ == "__main__":
    main(ROW, body)
