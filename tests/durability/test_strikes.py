"""`kill -9` in the middle of a creation, an event, a large value, a checkpoint: nothing half-done is left.

A program kills itself before or after the n-th statement or system call of the job, is looked at as
it lies, and is started again. The suite tries a few n of each job, spread over it, other ones each
time; `make chaos` tries up to PERDURE_CHAOS_KILLS of them.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow

STRIKES = int(os.environ.get("PERDURE_CHAOS_KILLS", "2"))
SEED = int(os.environ.get("PERDURE_CHAOS_SEED", random.SystemRandom().randrange(10**6)))
RESULTS = {
    "create": 20540,
    "event": "now",
    "large": "6ca41633343f162f0f0604879eeac607e5e5087adeee2e4247199301968790d0",
    "checkpoint": 20540,
}
LARGE_PIECES = 12

Launch = Callable[..., "subprocess.Popen[str]"]
Rows = Callable[..., list[tuple[object, ...]]]


def live(launch: Launch, state: Path, job: str, point: int) -> tuple[int, list[str]]:
    """Let the program live; return its status and the lines it printed."""
    process = launch("strike", state, job, point)
    output, errors = process.communicate()
    assert process.returncode in (0, -9), errors
    return process.returncode, output.splitlines()


def report(lines: list[str]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(lines[-1])
    return found


def spread(points: int, job: str) -> list[int]:
    """Return points to strike at, one from each of as many equal stretches of the job."""
    rng = random.Random(f"{SEED}-{job}")
    count = min(STRIKES, points)
    return [1 + rng.randrange(points * n // count, points * (n + 1) // count) for n in range(count)]


@pytest.mark.parametrize("job", list(RESULTS))
def test_nothing_half_done_is_visible_after_a_kill_in_the_middle(
    tmp_path: Path, launch: Launch, damage_in: Callable[[Path], dict[str, str]], rows_of: Rows, job: str
) -> None:
    status, lines = live(launch, tmp_path / "undisturbed", job, 0)
    assert (0, RESULTS[job]) == (status, report(lines)["result"])

    for point in spread(report(lines)["points"], job):
        state = tmp_path / f"at-{point}"
        print(f"PERDURE_CHAOS_SEED={SEED} {job}: point {point}")  # noqa: T201 - to repeat a finding
        struck, told = live(launch, state, job, point)
        assert {} == damage_in(state)
        assert_no_half_values(rows_of, tmp_path / "autopsy" / "Job" / "one.sqlite")
        assert_acknowledged_is_there(rows_of, tmp_path / "autopsy", told)
        if struck == -9:
            status, lines = live(launch, state, job, 0)
        assert (0, RESULTS[job]) == (status, report(lines)["result"])
        assert_whole(rows_of, state, job)


def assert_no_half_values(rows_of: Rows, path: Path) -> None:
    """In the killed state: a large value has all its pieces, or none."""
    if not path.exists():
        return
    pieces = rows_of(path, "SELECT count(*), sum(length(chunk)) FROM _perdure_chunks")
    recorded = rows_of(path, "SELECT output_bytes FROM _perdure_steps WHERE output_ref IS NOT NULL")

    assert pieces == ([(LARGE_PIECES, recorded[0][0])] if recorded else [(0, None)])


def assert_acknowledged_is_there(rows_of: Rows, state: Path, told: list[str]) -> None:
    """In the killed state: what the program was told to be safe is there."""
    if "created" in told:
        assert [("one",)] == rows_of(state / "catalog.sqlite", "SELECT id FROM _perdure_instances")
    if "sent" in told:
        assert [("go",)] == rows_of(state / "Job" / "one.sqlite", "SELECT type FROM events")


def assert_whole(rows_of: Rows, state: Path, job: str) -> None:
    instance = state / "Job" / "one.sqlite"

    assert [("one", "complete", 0)] == rows_of(
        state / "catalog.sqlite", "SELECT id, status, open FROM _perdure_instances"
    )
    assert ["one.sqlite"] == [path.name for path in instance.parent.iterdir()]
    assert [(1 if job == "event" else 0,)] == rows_of(instance, "SELECT count(*) FROM events")
    assert [(0,)] == rows_of(instance, "SELECT count(*) FROM steps WHERE status <> 'completed'")


@pytest.mark.parametrize("write", [1, 2, 3])
def test_a_kill_between_the_pages_of_a_checkpoint_leaves_a_whole_file(  # noqa: PLR0917 - pytest names them
    tmp_path: Path,
    strace: str,
    launch: Launch,
    damage_in: Callable[[Path], dict[str, str]],
    rows_of: Rows,
    write: int,
) -> None:
    state = tmp_path / "state"
    inject = ("-e", "trace=pwrite64", "-e", f"inject=pwrite64:signal=SIGKILL:when={write}")
    only_the_file = ("-P", str(state / "Job" / "one.sqlite"))
    tracer = (strace, "-f", "-qq", "-o", str(tmp_path / "trace"), *only_the_file, *inject)
    struck = launch("strike", state, "checkpoint", 0, under=tracer)
    struck.communicate()
    assert -9 == struck.returncode
    assert {} == damage_in(state)

    status, lines = live(launch, state, "checkpoint", 0)

    assert (0, RESULTS["checkpoint"]) == (status, report(lines)["result"])
    assert_whole(rows_of, state, "checkpoint")
