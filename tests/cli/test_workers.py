"""`perdure serve --workers N`: commands of other processes reach instances, whichever worker has them."""

from __future__ import annotations

import signal
import sqlite3
import subprocess
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow

Run = Callable[..., Any]
COUNT = 6


def workers_of(state: Path) -> set[int]:
    """Return the process ids of the workers that have not ended."""
    with closing(sqlite3.connect(state / "catalog.sqlite")) as connection:
        rows = connection.execute(
            "SELECT pid FROM _perdure_workers WHERE doorbell IS NULL AND stopped_at IS NULL"
        ).fetchall()
    return {pid for (pid,) in rows}


def said(process: subprocess.Popen[str], text: str) -> str:
    """Return the next line on standard error that has this text in it."""
    assert process.stderr is not None
    for line in process.stderr:
        if text in line:
            return line
    raise AssertionError(f"it ended without saying {text!r}")


def test_events_of_other_processes_reach_every_worker(cli: Run, place: Any) -> None:
    place.serve("--workers", "2")
    for number in range(COUNT):
        place.create("Approval", f"a{number}")
    for number in range(COUNT):
        done = cli("send-event", f"a{number}", "approve", "7")
        assert 0 == done.status, done.err
        watched = cli("watch", f"a{number}")
        assert 0 == watched.status, watched.err

    assert {"complete"} == {place.status(f"a{number}") for number in range(COUNT)}


def test_hangup_replaces_the_workers_and_instances_go_on(cli: Run, place: Any) -> None:
    serve = place.serve("--workers", "2")
    place.create("Approval", "a")
    before = workers_of(place.state)
    serve.send_signal(signal.SIGHUP)
    said(serve, "all workers are new")
    after = workers_of(place.state)

    assert (2, 2, set()) == (len(before), len(after), before & after)
    assert 0 == cli("send-event", "a", "approve", "7").status
    assert 0 == cli("watch", "a").status


def test_workers_of_code_that_cannot_be_loaded_do_not_replace_those_that_run(cli: Run, place: Any) -> None:
    serve = place.serve("--workers", "2")
    before = workers_of(place.state)
    (place.folder / "workflows.py").write_text("a mistake")
    serve.send_signal(signal.SIGHUP)

    assert "cannot be imported: SyntaxError" in said(serve, "not restarted")
    assert before == workers_of(place.state)


def test_a_stop_parks_what_the_workers_have_and_another_serve_goes_on(cli: Run, place: Any) -> None:
    serve = place.serve("--workers", "2")
    place.create("Approval", "a")
    serve.send_signal(signal.SIGTERM)
    _, errors = serve.communicate()
    assert 0 == serve.returncode, errors
    assert set() == workers_of(place.state)
    place.serve()

    assert 0 == cli("send-event", "a", "approve", "7").status


def test_a_second_serve_is_told_who_has_the_folder(cli: Run, place: Any) -> None:
    serve = place.serve("--workers", "2")
    done = cli("serve", "workflows.py", "--workers", "2")

    assert 4 == done.status
    assert f"is in use by process {serve.pid}" in done.err


@pytest.mark.parametrize("workers", ["0", "-1", "many", "1000"])
def test_a_number_of_workers_that_is_none_is_refused(cli: Run, place: Any, workers: str) -> None:
    done = cli("serve", "workflows.py", "--workers", workers)

    assert 2 == done.status
    assert "--workers" in done.err
