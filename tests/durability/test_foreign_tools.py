"""An instance's file opens in SQLite's own program, while the instance runs and after."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow

VIEWS = ("instance", "steps", "attempts", "events", "streams", "history")

Launch = Callable[..., "subprocess.Popen[str]"]
NextLine = Callable[["subprocess.Popen[str]"], str]


@pytest.fixture
def ask(sqlite3_program: str) -> Callable[[Path, str], list[dict[str, Any]]]:
    """Return a function that puts a query to a file by way of the sqlite3 program."""

    def run(path: Path, query: str) -> list[dict[str, Any]]:
        done = subprocess.run(
            [sqlite3_program, "-json", path, query], capture_output=True, text=True, check=False
        )
        assert (0, "") == (done.returncode, done.stderr)
        rows: list[dict[str, Any]] = json.loads(done.stdout or "[]")
        return rows

    return run


def test_a_running_instance_is_read_by_the_sqlite3_program(
    tmp_path: Path, launch: Launch, next_line: NextLine, ask: Callable[[Path, str], list[dict[str, Any]]]
) -> None:
    process = launch("service", tmp_path, "ticks")
    assert ["open", "busy ticks"] == [next_line(process), next_line(process)]
    path = tmp_path / "Work" / "ticks.sqlite"
    seen: list[int] = []
    for _ in range(5):
        assert [{"integrity_check": "ok"}] == ask(path, "PRAGMA integrity_check")
        assert [{"status": "running"}] == ask(path, "SELECT status FROM instance")
        seen.append(ask(path, "SELECT count(*) AS n FROM steps WHERE status = 'completed'")[0]["n"])
        for view in VIEWS:
            ask(path, f"SELECT * FROM {view}")
    assert sorted(set(seen)) == seen, "it went on, and nobody was in its way"
    assert [{"id": "ticks"}] == ask(tmp_path / "catalog.sqlite", "SELECT id FROM instances")

    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate()

    assert (0, "") == (process.returncode, errors)
    for file in (path, tmp_path / "catalog.sqlite"):
        assert [{"integrity_check": "ok"}] == ask(file, "PRAGMA integrity_check")
    for view in VIEWS:
        ask(path, f"SELECT * FROM {view}")
    assert ask(path, "SELECT count(*) AS n FROM steps")[0]["n"] > seen[-1]


def test_what_a_foreign_tool_writes_while_the_instance_runs_is_kept(
    tmp_path: Path, launch: Launch, next_line: NextLine, ask: Callable[[Path, str], list[dict[str, Any]]]
) -> None:
    process = launch("service", tmp_path, "ticks")
    assert ["open", "busy ticks"] == [next_line(process), next_line(process)]
    path = tmp_path / "Work" / "ticks.sqlite"
    ask(path, "PRAGMA busy_timeout = 10000; CREATE TABLE notes (text TEXT)")
    ask(path, "PRAGMA busy_timeout = 10000; INSERT INTO notes VALUES ('by hand')")
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate()

    assert (0, "") == (process.returncode, errors)
    assert [{"text": "by hand"}] == ask(path, "SELECT text FROM notes")
    assert [{"integrity_check": "ok"}] == ask(path, "PRAGMA integrity_check")
