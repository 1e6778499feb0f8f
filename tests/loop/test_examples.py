"""Every program of examples/loop, run as its users run it; warnings of the interpreter count as faults."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import support

EXAMPLES = support.ROOT / "examples" / "loop"


def started(name: str, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-X", "dev", str(EXAMPLES / name), *arguments],
        env=support.environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def ran(name: str, *arguments: str) -> str:
    """Runs an example to its end, and returns what it printed; it must end well and complain of nothing."""
    ended = support.finish(started(name, *arguments), 20)
    assert (ended.returncode, ended.stderr) == (0, ""), ended
    return ended.stdout


@contextlib.contextmanager
def serving(name: str, *arguments: str, by: int = signal.SIGTERM) -> Iterator[int]:
    """An example that serves until it is told to stop, and the port that it says it has."""
    process = started(name, *arguments)
    try:
        assert process.stdout
        line = process.stdout.readline()
        found = re.search(r"(\d+)$", line.strip())
        assert found, (line, process.poll(), support.end(process))
        yield int(found[1])
        process.send_signal(by)
        ended = support.finish(process, 20)
        assert (ended.returncode, ended.stderr) == (0, "")
    finally:
        support.end(process)


ECHOES = ["tcp_streams.py", "tcp_protocols.py", "udp_echo.py"]


@pytest.mark.parametrize("name, by", zip(ECHOES, (signal.SIGTERM, signal.SIGINT, signal.SIGTERM)))
def test_an_echo_answers_word_by_word_and_ends_in_peace(name: str, by: int) -> None:
    with serving(name, "serve", by=by) as port:
        words = ["hello", "two words", "ünïcödé", "x" * 5000]
        assert ran(name, "ask", str(port), *words) == "\n".join(words) + "\n"


@pytest.mark.parametrize("pair", [ECHOES[:2], ECHOES[1::-1]], ids=["streams", "protocols"])
def test_streams_and_protocols_understand_each_other(pair: list[str]) -> None:
    server, client = pair
    with serving(server, "serve") as port:
        assert ran(client, "ask", str(port), "across", "the border") == "across\nthe border\n"


@pytest.mark.parametrize("name", ECHOES)
def test_a_client_whose_server_is_not_there_says_so_and_fails(name: str) -> None:
    kind = socket.SOCK_DGRAM if name.startswith("udp") else socket.SOCK_STREAM
    with socket.socket(type=kind) as nobody:
        nobody.bind(("127.0.0.1", 0))
        port = nobody.getsockname()[1]
    ended = support.finish(started(name, "ask", str(port), "anybody?"), 20)
    assert ended.returncode == 1 and "refused" in ended.stderr.lower() and ended.stdout == ""


@pytest.mark.parametrize("name", ECHOES[:2])
def test_a_server_survives_clients_that_reset_or_do_not_read(name: str) -> None:
    with serving(name, "serve") as port:
        for _ in range(20):
            rude = socket.create_connection(("127.0.0.1", port))
            rude.send(b"half a line")
            support.reset(rude)
        with socket.create_connection(("127.0.0.1", port)) as deaf:
            deaf.settimeout(0.2)
            with contextlib.suppress(TimeoutError):
                while True:  # until it refuses to take more: its memory stays bounded
                    deaf.send(b"x" * 1000 + b"\n")
            assert ran(name, "ask", str(port), "still there?") == "still there?\n"


def test_a_question_to_everybody_is_answered_by_all_who_listen() -> None:
    with serving("udp_broadcast.py", "answer", "Ada") as port:
        with serving("udp_broadcast.py", "answer", "Bob", "--port", str(port)):
            asked = ran("udp_broadcast.py", "ask", str(port), "--seconds", "0.4")
            assert sorted(asked.splitlines()) == [
                "2 answered",
                "Ada at 127.0.0.1",
                "Bob at 127.0.0.1",
            ]
        asked = ran("udp_broadcast.py", "ask", str(port), "--seconds", "0.2")
        assert asked == "Ada at 127.0.0.1\n1 answered\n"
    assert ran("udp_broadcast.py", "ask", str(port), "--seconds", "0.1") == "0 answered\n"


def test_each_isolated_loop_works_in_its_own_thread() -> None:
    lines = ran("isolated_loops.py", "--loops", "4", "--questions", "50").splitlines()
    assert lines == [
        f"loop-{number}: 50 of 50 answered, all of it in loop-{number}" for number in range(1, 5)
    ]


def test_a_host_reads_its_input_while_the_loop_works_and_the_other_way_round() -> None:
    process = started("host_select.py", "--questions", "20")
    assert process.stdin
    for number in range(5):
        process.stdin.write(f"line {number}\n")
        process.stdin.flush()
        time.sleep(0.02)
    ended = support.finish(process, 20)  # ends the input as well
    expected = "the host read 5 lines while the loop answered 20 questions\n"
    assert (ended.stdout, ended.stderr, ended.returncode) == (expected, "", 0)


def test_a_host_waits_for_its_input_without_spinning() -> None:
    process = started("host_select.py", "--questions", "1")
    time.sleep(0.5)  # long done with asking
    with open(f"/proc/{process.pid}/stat") as file:
        ticks = sum(int(field) for field in file.read().rpartition(")")[2].split()[11:13])
    time.sleep(0.3)
    with open(f"/proc/{process.pid}/stat") as file:
        later = sum(int(field) for field in file.read().rpartition(")")[2].split()[11:13])
    ended = support.finish(process, 20)
    assert ended.stdout == "the host read 0 lines while the loop answered 1 questions\n"
    assert (later - ticks) / os.sysconf("SC_CLK_TCK") < 0.08


def test_no_example_is_left_out_here() -> None:
    text = Path(__file__).read_text()
    mine = {path.name for path in EXAMPLES.glob("*.py")} - {"benchmark.py"}  # has tests of its own
    assert mine and all(f'"{name}"' in text for name in mine), mine
