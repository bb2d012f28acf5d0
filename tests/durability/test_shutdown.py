"""A graceful shutdown: finish or park, commit, and exit within the stated time (laws 4 and 5)."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

EXIT_OVERRUN = 75
ATTEMPTS = "SELECT attempt, outcome FROM attempts ORDER BY attempt"

Launch = Callable[..., "subprocess.Popen[str]"]
NextLine = Callable[["subprocess.Popen[str]"], str]
Rows = Callable[..., list[tuple[object, ...]]]


def begin(launch: Launch, next_line: NextLine, state: Path, *words: str) -> subprocess.Popen[str]:
    """Start the service and return once every work is under way."""
    process = launch("service", state, *words)
    works = {f"busy {word}" for word in words if not word.startswith("--")}
    while works:
        works.discard(next_line(process))
    return process


def settled(rows_of: Rows, state: Path) -> dict[object, tuple[object, object]]:
    rows = rows_of(state / "catalog.sqlite", "SELECT id, status, open FROM _perdure_instances")
    return {id_: (status, is_open) for id_, status, is_open in rows}


@pytest.mark.parametrize(
    ("stop", "options"), [(signal.SIGTERM, ()), (signal.SIGINT, ()), (signal.SIGINT, ("--plain",))]
)
def test_a_signal_parks_what_is_under_way_and_the_next_start_goes_on(  # noqa: PLR0917 - pytest names them
    tmp_path: Path,
    launch: Launch,
    next_line: NextLine,
    rows_of: Rows,
    stop: signal.Signals,
    options: tuple[str, ...],
) -> None:
    process = begin(launch, next_line, tmp_path, "rest", "ticks", "linger", *options)
    process.send_signal(stop)
    output, errors = process.communicate()

    assert process.returncode in ((1, -stop) if options else (0,)), errors
    assert ("KeyboardInterrupt" if options else "left") in output + errors
    assert {"rest": ("running", 0), "ticks": ("running", 0), "linger": ("running", 0)} == settled(
        rows_of, tmp_path
    )
    assert {"rest.sqlite", "ticks.sqlite", "linger.sqlite"} == {
        path.name for path in (tmp_path / "Work").iterdir()
    }
    for work in ("rest", "linger"):
        path = tmp_path / "Work" / f"{work}.sqlite"
        assert [(1, "interrupted")] == rows_of(path, "SELECT attempt, outcome FROM _perdure_attempts")
        assert [(1, 0)] == rows_of(path, "SELECT attempt, counted FROM _perdure_steps")
    assert [(1,)] == rows_of(
        tmp_path / "catalog.sqlite", "SELECT stopped_at IS NOT NULL FROM _perdure_workers"
    )

    output, errors = launch("service", tmp_path, "rest", "linger", "--finish").communicate()
    assert {"result rest 2", "result linger 2"} <= set(output.splitlines()), errors


def test_a_plain_function_that_overruns_the_shutdown_is_left_to_the_exit_of_the_process(
    tmp_path: Path, launch: Launch, next_line: NextLine, rows_of: Rows
) -> None:
    process = begin(launch, next_line, tmp_path, "block", "rest", "--grace=0.5")
    began = time.monotonic()
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate()

    assert EXIT_OVERRUN == process.returncode, errors
    assert time.monotonic() - began < 5
    assert "Work/block: 'block'" in errors
    assert {"block": ("running", 1), "rest": ("running", 0)} == settled(rows_of, tmp_path)

    output, errors = launch("service", tmp_path, "block", "rest", "--finish").communicate()
    assert {"result block 2", "result rest 2"} <= set(output.splitlines()), errors
    assert [(1, "lost"), (2, "completed")] == rows_of(tmp_path / "Work" / "block.sqlite", ATTEMPTS)
    assert [(1, "interrupted"), (2, "completed")] == rows_of(tmp_path / "Work" / "rest.sqlite", ATTEMPTS)
