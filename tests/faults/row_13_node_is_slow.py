"""Row 13: the node is sent more than its Python code can take."""

from harness import Row, World, at_most, equal, expect, main, text_of, until

ROW = Row(
    13,
    "calls come faster than Python takes them",
    "the link is always read: over the bound {error, overloaded} at once; no sender is suspended",
)
CALLS = 2000
QUEUE = 200
LARGE = 300  # of a megabyte each: more than the 256 MiB that may wait


def body(world: World) -> str:
    host = world.here
    node = host.node(None, "--queue", str(QUEUE), "--workers", "1")
    beam = host.beam()
    beam.ping(node)
    beam.ask(
        "Self = self(), Busy = spawn(fun() -> erlang:system_monitor(self(), [busy_dist_port]), Self ! ok,"
        " receive {monitor, P, busy_dist_port, _} -> register(suspended, self()), receive stop -> P end end end),"
        " receive ok -> is_pid(Busy) end"
    ).is_("true")
    beam.ask(f"erpc:cast({node}, faulty, spin, [2.0])")
    until("the worker is busy", lambda: node.metric("inflight") == 1)

    answer = beam.ask(
        f"watcher:answered({CALLS}, fun() -> watcher:call({node}, {{call, faulty, ready, []}}) end)",
        60,
    )
    answer.is_(f'[{{{{error,overloaded}},{CALLS - QUEUE}}},{{{{ok,<<"ready">>}},{QUEUE}}}]')
    equal(node.metric("calls_refused_total"), CALLS - QUEUE, "refusals counted")
    beam.ask("whereis(suspended)").is_("undefined")

    beam.ask(f"erpc:cast({node}, faulty, hog, [4.0])")
    until("the GIL is held", lambda: not node.ready(), 2.0)
    large = beam.begin(
        f"Large = binary:copy(<<0>>, 1 bsl 20), watcher:answered({LARGE},"
        f" fun() -> watcher:call({node}, {{call, faulty, size, [Large]}}, 20000) end)",
    )
    until("some are refused", lambda: node.metric("calls_refused_total") > CALLS - QUEUE, 3.0)
    expect(node.metric("inflight") >= 1, "the GIL is held no longer")
    pong = beam.ping(node)
    at_most(pong.took, 1.0, "ping")
    large().like(r"^\[\{\{error,overloaded\},\d+\},\{\{ok,1048576\},\d+\}\]$")
    beam.ask(f"watcher:call({node}, {{call, faulty, ready, []}})").is_('{ok,<<"ready">>}')
    equal(node.metric("links_closed_total"), 0, "links lost")
    return (
        f"{CALLS - QUEUE} of {CALLS} refused, {QUEUE} answered; ping in {text_of(pong.took)} with 256 MiB waiting; "
        "no sender was suspended"
    )


if __name__ == "__main__":
    main(ROW, body)
