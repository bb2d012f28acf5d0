"""A disk that fails: one call of the operating system returns an error, put there by strace.

The instance goes back to its last commit and on from there; what was acknowledged is there.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

Launch = Callable[..., "subprocess.Popen[str]"]
Rows = Callable[..., list[tuple[object, ...]]]


@pytest.mark.parametrize(
    ("call", "file", "when"),
    [
        ("fdatasync", "one.sqlite-wal", 3),
        ("pwrite64", "one.sqlite-wal", 1),  # in the commit of the instance's birth
        ("pwrite64", "one.sqlite-wal", 12),
        ("pwrite64", "one.sqlite", 2),  # in the middle of a checkpoint
        ("fdatasync", "one.sqlite", 1),
    ],
)
@pytest.mark.parametrize("error", ["EIO", "ENOSPC"])
def test_an_instance_goes_on_after_an_error_of_the_disk(  # noqa: PLR0917 - pytest names them
    tmp_path: Path, strace: str, launch: Launch, rows_of: Rows, call: str, file: str, when: int, error: str
) -> None:
    path = tmp_path / "state" / "Job" / file
    inject = ("-P", str(path), "-e", f"trace={call}", "-e", f"inject={call}:error={error}:when={when}")
    trace = tmp_path / "trace"
    tracer = (strace, "-f", "-qq", "-o", str(trace), *inject)
    process = launch("strike", tmp_path / "state", "checkpoint", 0, "--soon", "--by-file", under=tracer)
    output, errors = process.communicate()

    assert 0 == process.returncode, errors
    assert "INJECTED" in trace.read_text("utf-8"), "the error never came about"
    assert 20540 == json.loads(output.splitlines()[-1])["result"]
    assert [("ok",)] == rows_of(tmp_path / "state" / "Job" / "one.sqlite", "PRAGMA integrity_check")


def test_a_catalog_that_cannot_be_synced_acknowledges_nothing(
    tmp_path: Path, strace: str, launch: Launch, rows_of: Rows
) -> None:
    launch("service", tmp_path / "state").communicate()  # makes the folder
    path = tmp_path / "state" / "catalog.sqlite-wal"
    # Counted in each thread: the writer's second transaction is the creation, after its own registration.
    inject = ("-P", str(path), "-e", "trace=fdatasync", "-e", "inject=fdatasync:error=EIO:when=2")
    tracer = (strace, "-f", "-qq", "-o", str(tmp_path / "trace"), *inject)
    output, errors = launch(
        "strike", tmp_path / "state", "checkpoint", 0, "--soon", under=tracer
    ).communicate()

    assert "created" not in output
    assert "StorageWriteError" in errors
    assert [("ok",)] == rows_of(tmp_path / "state" / "catalog.sqlite", "PRAGMA integrity_check")
