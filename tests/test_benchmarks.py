"""Each benchmark runs here at its smallest size, as its users run it, so that none of them rots.

What they measure is not looked at: the machine that runs the suite is busy with the suite. That
both sides of a comparison did the same work is, by the checksum, which no machine changes.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.checkout, pytest.mark.slow]

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"
CHECKSUMS = {
    "bench_loop_interference.py": "83a7df39790983ce",
    "bench_step.py": "cb5b74389b65ff59",
}


def run(program: str, folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, BENCHMARKS / program, "--tiny", "--folder", folder, *options],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
        env=os.environ | {"PYTHONWARNINGS": "error", "PYTHONIOENCODING": "utf-8"},
    )


def report(program: str, folder: Path, *options: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(run(program, folder, "--json", "--quiet", *options).stdout)
    return found


def figures(found: dict[str, Any]) -> dict[str, dict[str, float]]:
    return {row["name"]: row["figures"] for section in found["sections"] for row in section["rows"]}


def test_every_benchmark_runs_here() -> None:
    assert set(CHECKSUMS) == {path.name for path in BENCHMARKS.glob("bench_*.py")}


@pytest.mark.parametrize("program", sorted(CHECKSUMS))
def test_a_benchmark_does_the_work_that_its_checksum_says(program: str, tmp_path: Path) -> None:
    found = report(program, tmp_path)

    assert CHECKSUMS[program] == found["checksum"]
    assert {"python", "sqlite", "perdure"} < set(found["environment"])
    assert all(row["figures"] for section in found["sections"] for row in section["rows"])


@pytest.mark.parametrize("program", sorted(CHECKSUMS))
def test_a_benchmark_leaves_nothing_behind(program: str, tmp_path: Path) -> None:
    run(program, tmp_path, "--rounds", "1")

    assert [] == list(tmp_path.iterdir())


def test_progress_is_told_apart_from_the_table(tmp_path: Path) -> None:
    done = run("bench_step.py", tmp_path, "--rounds", "1")

    assert "round 1 of 1, " in done.stderr
    assert "round 1 of 1, " not in done.stdout
    assert f"checksum {CHECKSUMS['bench_step.py']}" == done.stdout.splitlines()[-1]


def test_a_chain_costs_one_commit_and_one_sync_per_step(tmp_path: Path) -> None:
    found = figures(report("bench_step.py", tmp_path, "--rounds", "1"))

    assert 1.0 == found["full, 20 steps: Perdure"]["syncs per step"]
    assert 1.0 == found["full, 20 steps: Perdure"]["commits per step"]
    assert 0.0 == found["process, 20 steps: Perdure"]["syncs per step"]
    assert 1.0 == found["process, 20 steps: Perdure"]["commits per step"]
