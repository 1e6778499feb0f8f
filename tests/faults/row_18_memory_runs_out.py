"""Row 18: the node's control group has no memory left."""

import pathlib
import signal

from harness import Lacking, Needs, Row, World, equal, main, text_of, until

LIMIT = 192  # MB
ROW = Row(
    18,
    "the memory limit of the control group is reached",
    "before it large calls are refused; Python code that eats it all is ended by the kernel with SIGKILL, seen as in row "
    "5; it starts again under its name",
    needs=Needs.CGROUP,
    quick=False,
)


def make_group(world: World) -> pathlib.Path:
    """A memory group of version 1 or 2, as this machine has."""
    first, second = pathlib.Path("/sys/fs/cgroup/memory"), pathlib.Path("/sys/fs/cgroup")
    try:
        if first.is_dir():
            group = first / world.prefix
            group.mkdir()
            (group / "memory.limit_in_bytes").write_text(f"{LIMIT}M")
        else:
            group = second / world.prefix
            group.mkdir()
            (group / "memory.max").write_text(f"{LIMIT}M")
            (group / "memory.swap.max").write_text("0")
    except OSError as why:
        raise Lacking(f"a memory cgroup ({why})") from why
    world.stack.callback(group.rmdir)
    return group


def body(world: World) -> str:
    group = make_group(world)
    host = world.here
    beam = host.beam(application=True)
    join = ["sh", "-c", f'echo $$ > {group}/cgroup.procs && exec "$@"', "sh"]
    node = host.node("hungry", command=join)
    beam.ask(f"py:call({node}, faulty, ready, [])").is_('{ok,<<"ready">>}')
    flood = (
        f"begin D = binary:copy(<<255>>, 8 bsl 20), "
        f"Refs = [py:spawn_call({node}, faulty, hold, [D, 0.3]) || _ <- lists:seq(1, 60)], "
        f"lists:usort([py:await(R, 60000) || R <- Refs]) end"
    )
    beam.ask(flood, 90).is_('[{error,overloaded},{ok,<<"held">>}]')
    refused = node.metric('calls_refused_total{reason="memory"}')
    beam.ask(f"py:call({node}, faulty, ready, [])").is_('{ok,<<"ready">>}')
    call = beam.begin(f"py:call({node}, faulty, eat, [{4 * LIMIT}], #{{timeout => 60000}})")
    equal(node.wait(60), -signal.SIGKILL, "how the process ended")
    answer = call().like(r"^\{error,\{down,")
    down = beam.sees("down", node, answer.began)
    equal(down.reason, "connection_closed", "the reason")
    again = host.node("hungry", command=join)
    ready = f"py:call({again}, faulty, ready, [])"
    until("its successor is called", lambda: beam.ask(ready).text == '{ok,<<"ready">>}', 5)
    return f"{LIMIT} MB: {refused:.0f} of 60 calls of 8 MB refused; ended by SIGKILL, the caller told {text_of(answer.ended - down.at)} after nodedown"


if __name__ == "__main__":
    main(ROW, body)
