"""A rollback survives the death of its process: the program kills itself with SIGKILL in a handler."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow

PROGRAM = Path(__file__).parent / "programs" / "undoing.py"
PROGRAM_S_MAX = 60


def run(folder: Path, *words: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(PROGRAM), str(folder), *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=PROGRAM_S_MAX, check=False)


@pytest.mark.parametrize("replay", ["warm", "always"])
@pytest.mark.parametrize(
    ("how", "status", "error"),
    [("fails", "errored", "RuntimeError"), ("terminates", "terminated", "InstanceTerminatedError")],
)
def test_a_rollback_goes_on_where_its_process_was_killed(
    tmp_path: Path, replay: str, how: str, status: str, error: str
) -> None:
    folder = tmp_path / "state"
    for _ in range(2):
        killed = run(folder, replay, how, 2)
        assert -signal.SIGKILL == killed.returncode, killed.stderr
    ended = run(folder, replay, how, 2)
    assert 0 == ended.returncode, ended.stderr
    told: Any = json.loads(ended.stdout)

    assert (status, "complete") == (told["status"], told["rollback"])
    assert [
        "book 1",
        "book 2",
        "book 3",
        f"undo car 30 1 {error}",
        f"undo hotel 20 1 {error}",
        f"undo hotel 20 2 {error}",
        f"undo hotel 20 3 {error}",
        f"undo flight 10 1 {error}",
    ] == told["notes"]
    assert [
        ["car", 1, "completed"],
        ["hotel", 1, "lost"],
        ["hotel", 2, "lost"],
        ["hotel", 3, "completed"],
        ["flight", 1, "completed"],
    ] == told["attempts"]
