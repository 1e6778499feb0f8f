"""Row 17: Python code calls os._exit, forks, and changes what signals do."""

import signal
import subprocess
import time

from harness import Row, World, equal, expect, main, text_of, until

ROW = Row(
    17,
    "Python code calls os._exit, forks, sets signal handlers",
    "_exit ends the process as in row 5; a forked child neither answers nor keeps a link or the name; SIGTERM drains",
)


def body(world: World) -> str:
    host = world.here
    beam = host.beam(application=True)

    node = host.node()
    beam.ask(f"py:call({node}, faulty, ready, [])").is_('{ok,<<"ready">>}')
    call = beam.begin(f"py:call({node}, faulty, leave, [7])")
    equal(node.wait(), 7, "the exit code of os._exit(7)")
    call().like(r"^\{error,\{down,")

    node = host.node("forker")
    beam.ask(f"py:call({node}, faulty, fork_and_return, [])").like(r"^\{ok,\d+\}$")
    # The child that returned from the function must be gone: it would answer for its parent.
    until("the child that returned is gone", lambda: children(node.pid) == [], 5)
    beam.ask(f"py:call({node}, faulty, fork_and_sleep, [30])").like(r"^\{ok,\d+\}$")
    expect(children(node.pid), "a forked child that sleeps")
    killed = time.monotonic()
    node.process.kill()  # the child of the fork lives on
    down = beam.sees("down", node, killed, 3)
    equal(down.reason, "connection_closed", "the reason")
    again = host.node("forker")
    beam.sees("up", again, killed)
    beam.ask(f"py:call({again}, faulty, ready, [])").is_('{ok,<<"ready">>}')

    node = host.node(None, "--import", "deaf")
    beam.ask(f"py:call({node}, faulty, ready, [])").is_('{ok,<<"ready">>}')
    beam.ask(f"py:call({node}, faulty, set_handler, [])").like(
        r"^\{error,\{python,<<\"ValueError\">>"
    )
    told = node.send(signal.SIGTERM)
    equal(node.wait(), 0, "the exit code")
    return f"with a forked child alive nodedown {text_of(down.at - killed)} after the kill; drained in {text_of(time.monotonic() - told)}"


def children(pid: int) -> list[str]:
    """Those that still run."""
    done = subprocess.run(
        ["ps", "-o", "pid=,stat=", "--ppid", str(pid)], capture_output=True, text=True
    )
    return [line for line in done.stdout.splitlines() if "Z" not in line.split()[1]]


if __name__ == "__main__":
    main(ROW, body)
