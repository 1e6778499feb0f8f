"""Row 16: Python code reads through a null pointer."""

import signal

from harness import BIN, Row, World, at_most, equal, main, text_of, until

ROW = Row(
    16,
    "Python code segfaults",
    "--processes: its own calls get {worker_died, sigsegv}, no others; one process: it ends by the signal, seen as in row "
    "5, and the local node of a BEAM is started again",
)


def body(world: World) -> str:
    host = world.here
    beam = host.beam(application=True)

    node = host.node(None, "--processes", "2", "--workers", "2")
    until("both processes are up", lambda: node.metric("worker_processes") == 2)
    beam.ask(
        f"watcher:load(other, 2, fun() -> watcher:call({node}, {{call, faulty, nap, [0.02]}}) end,"
        " fun({ok, _}) -> good; ({error, {worker_died, _}}) -> died; (Other) -> Other end)"
    )
    for _ in range(3):
        beam.ask(f"py:call({node}, faulty, crash, [])").is_("{error,{worker_died,sigsegv}}")
        until("both processes are up", lambda: node.metric("worker_processes") == 2, 10)
    beam.ask("watcher:stopped(other)").like(r"^\[(\{died,[1-6]\},)?\{good,\d+\}\]$")
    equal(
        node.metrics()['sidewinder_worker_process_deaths_total{signal="sigsegv"}'],
        3,
        "deaths counted",
    )
    equal(beam.seen("down", node), None, "the link")

    node = host.node()
    beam.ask(f"py:call({node}, faulty, ready, [])").is_('{ok,<<"ready">>}')
    call = beam.begin(f"py:call({node}, faulty, crash, [])")
    equal(node.wait(), -signal.SIGSEGV, "how the process ended")
    answer = call().like(r"^\{error,\{down,")
    down = beam.sees("down", node, answer.began)
    equal(down.reason, "connection_closed", "the reason")

    # The node that the application itself runs.
    beam.ask(f'application:set_env(sidewinder, executable, "{BIN}")').is_("ok")
    code = "<<\"__import__('ctypes').string_at(0)\">>"
    beam.ask("py:call(math, sqrt, [16.0])").is_("{ok,4.0}")
    crash = beam.ask(f"py:eval({code})").like(r"^\{error,\{down,")
    back = until(
        "it is back", lambda: beam.ask("py:call(math, sqrt, [16.0])").text == "{ok,4.0}", 10
    )
    at_most(back, 5.0, "the local node was back after")
    return (
        "three worker processes died, the link lived; one process: "
        f"the caller is told {text_of(crash.took)} after its call, the local node is back after {text_of(back)}"
    )


if __name__ == "__main__":
    main(ROW, body)
