"""The loop in interpreters beside the main one: state is an interpreter's own, and so is the GIL where Python has that."""

from __future__ import annotations

import subprocess
import sys

import pytest
import support


# Such interpreters came with Python 3.12 (PEP 684): before it there is nothing that this could run. 3.11 has only ones that
# share the main interpreter's GIL, in which asyncio itself hangs.
@pytest.mark.skipif(sys.version_info < (3, 12), reason="GILs of their own came with Python 3.12")
def test_loops_of_interpreters_with_own_gils_run_side_by_side_and_leave_nothing() -> None:
    program = support.HERE / "subinterpreters.py"
    ended = subprocess.run(
        [sys.executable, str(program)],
        env=support.environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=28,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert ended.stdout.endswith("12 interpreters, 0 complaints\n"), ended.stdout
