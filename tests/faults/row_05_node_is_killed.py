"""Row 5: the node is killed in mid-call and comes back under its name."""

from harness import Row, World, at_most, equal, main, text_of

ROW = Row(
    5,
    "the node is killed, and comes back",
    "connection_closed at once; callers get {down, Node}; only idempotent calls run again elsewhere",
)


def body(world: World) -> str:
    host = world.here
    node, other = host.node("py_killed"), host.node("py_other")
    beam = host.beam(application=True)
    beam.ask(f"{{ok, _}} = py_pool:start(crew, #{{nodes => [{node}, {other}]}}), ok").is_("ok")
    for one in (node, other):
        beam.ask(f"py:call({one}, faulty, ready, [])").is_('{ok,<<"ready">>}')
    runs = world.folder / "runs"

    def noted(target: str, text: str, options: str = "") -> str:
        arguments = f'[<<"{runs}">>, <<"{text}">>, 1.0]'
        return f"py:call({target}, faulty, note, {arguments}, #{{timeout => 20000{options}}})"

    # The key goes to the node that is killed.
    keys = f"hd([K || K <- lists:seq(1, 1000), py_pool:pick(crew, K) =:= {{ok, {node}}}])"
    key = beam.ask(keys).text
    direct = beam.begin(noted(str(node), "direct"))
    plain = beam.begin(noted("crew", "plain", f", key => {key}"))
    twice = beam.begin(noted("crew", "twice", f", key => {key}, idempotent => true"))
    raw = beam.begin(f"watcher:call({node}, {{call, faulty, nap, [20]}})")
    begun = beam.ask(f"erpc:call({node}, time, sleep, [0.3])")
    equal(begun.raised, False, "all are running")

    killed = node.kill()
    down = beam.sees("down", node, killed)
    equal(down.reason, "connection_closed", "the reason")
    raw().like(r"^\{failed,(\{nodedown|noconnection|\{noconnection)")
    for call in (direct, plain):
        answer = call().is_(f"{{error,{{down,{node}}}}}" if call is plain else call().text)
        answer.like(r"^\{error,\{down,")
        at_most(answer.ended - killed, 1.0, "the caller was told after")
    twice().is_('{ok,<<"twice">>}')
    equal(sorted(runs.read_text().split()), ["direct", "plain", "twice", "twice"], "what ran")

    again = host.node("py_killed")
    beam.sees("up", again, killed)
    beam.ask(f"py:call({again}, faulty, ready, [])").is_('{ok,<<"ready">>}')
    return f"nodedown {text_of(down.at - killed)} after the kill, same name taken again"


if __name__ == "__main__":
    main(ROW, body)
