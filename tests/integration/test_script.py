"""A plain script runs a workflow through the portal: `examples/script.py`, as it stands."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.checkout, pytest.mark.slow]

SCRIPT = Path(__file__).resolve().parents[2] / "examples" / "script.py"


def run(folder: Path, *files: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), *files]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60, check=False)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, text in {"a.txt": "one two three", "b.txt": "four five"}.items():
        (tmp_path / name).write_text(text)
    return tmp_path


def test_a_script_counts_once_and_then_answers_from_its_record(folder: Path) -> None:
    first = run(folder, "a.txt", "b.txt")
    second = run(folder, "a.txt", "b.txt")

    assert (0, "") == (first.returncode, first.stderr)
    assert {"counted a.txt", "counted b.txt"} == {
        line for line in first.stdout.splitlines() if line.startswith("counted")
    }
    assert ["       3 a.txt", "       2 b.txt"] == second.stdout.splitlines()[2:4]
    assert "counted" not in second.stdout
    assert (0, "") == (second.returncode, second.stderr)


def test_a_script_that_was_killed_counts_only_what_it_has_not_counted_yet(folder: Path) -> None:
    os.mkfifo(folder / "late.txt")  # whoever reads it waits for a writer
    command = [sys.executable, str(SCRIPT), "a.txt", "late.txt"]
    with subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, text=True) as killed:
        assert killed.stdout is not None
        assert ["counted a.txt\n", "on record: count[0]\n"] == [killed.stdout.readline() for _ in range(2)]
        with (folder / "late.txt").open("w"):  # returns when the other step reads
            killed.kill()
    (folder / "late.txt").unlink()
    (folder / "late.txt").write_text("four five")
    done = run(folder, "a.txt", "late.txt")

    assert 0 == done.returncode, done.stderr
    assert "counted a.txt" not in done.stdout
    assert "counted late.txt" in done.stdout
    assert ["       3 a.txt", "       2 late.txt"] == done.stdout.splitlines()[-3:-1]
