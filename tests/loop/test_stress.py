"""The stress program for a few seconds; by itself it can go on for as long as anybody likes."""

from __future__ import annotations

import subprocess
import sys

import pytest
import support


@pytest.mark.parametrize(
    "loop, options",
    [("erlang", ["--seconds", "10"]), ("asio", ["--seconds", "2", "--debug"])],
)
def test_everything_at_once_gives_right_answers_and_leaves_nothing(
    loop: str, options: list[str]
) -> None:
    program = support.HERE / "stress.py"
    ended = subprocess.run(
        [sys.executable, str(program), "--loop", loop, *options],
        env=support.environment(loop),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=28,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    done = dict(reversed(line.strip().split(" ", 1)) for line in ended.stdout.splitlines()[1:-1])
    idle = [name for name, count in done.items() if int(count.replace(",", "")) == 0]
    assert len(done) >= 15 and not idle, done


def test_a_wrong_answer_ends_it_with_an_error(our_loop: str) -> None:
    """What would be worth a stress test that overlooks what it is for?"""
    code = """
        import random, stress
        stress.Answers.data_received = lambda self, data: self.transport.write(data[::-1])
        sys.argv = ["stress", "--seconds", "0.5", "--loop", os.environ["TEST_LOOP"]]
        sys.exit(stress.main())
    """
    ended = support.script(code, our_loop)
    assert ended.returncode == 1 and "bytes came back as others" in ended.stderr


def test_a_descriptor_left_behind_ends_it_with_an_error(our_loop: str) -> None:
    code = """
        import stress
        async def watched(self):
            self.count["left"] += 1
            os.dup(0)
        stress.Stress.watched = watched
        Belongings.patience = 0.2
        sys.argv = ["stress", "--seconds", "0.2", "--loop", os.environ["TEST_LOOP"]]
        sys.exit(stress.main())
    """
    ended = support.script(code, our_loop)
    assert ended.returncode == 1 and "left behind: descriptor" in ended.stdout
