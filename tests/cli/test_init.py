"""`perdure init`: what it writes runs, passes its own test, and never takes the place of anything."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

pytestmark = pytest.mark.slow


def test_the_first_workflow_passes_its_own_test_with_plain_pytest(place: Any) -> None:
    place.run("init", "hello")

    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "error"],
        cwd=place.folder / "hello", capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip

    assert 0 == done.returncode, done.stdout
    assert "2 passed" in done.stdout


def test_the_first_workflow_runs_as_the_next_commands_say(place: Any) -> None:
    told = place.run("init")
    running = place.start("run", "hello.py:Hello", "--params", '{"name": "Ada"}', "--id", "ada")
    sent = None
    while sent is None or sent.status != 0:  # the instance is there as soon as `run` has made it
        sent = place.run("send-event", "Hello/ada", "answer", '"Hello yourself"')
    out, _ = running.communicate(timeout=60)

    assert """perdure run hello.py:Hello --params '{"name": "Ada"}' --id ada""" in told.out
    assert """perdure send-event Hello/ada answer '"Hello yourself"'""" in told.out
    assert '{"letter": "Hello, Ada!", "delivered_at_attempt": 2, "answer": "Hello yourself"}' == out.strip()


@pytest.mark.parametrize("name", ["hello.py", "test_hello.py"])
def test_a_file_that_exists_is_left_and_nothing_is_written(place: Any, name: str) -> None:
    (place.folder / name).write_text("mine\n")

    done = place.run("init")

    assert 2 == done.status
    assert f"{name} exists already" in done.err
    assert "mine\n" == (place.folder / name).read_text()
    assert [name, "workflows.py"] == sorted(path.name for path in place.folder.iterdir())


def test_a_folder_that_cannot_be_made_is_an_error_in_one_line(place: Any) -> None:
    (place.folder / "taken").write_text("")

    done = place.run("init", "taken/hello")

    assert (2, 1) == (done.status, done.err.count("\n"))
    assert "cannot be written to" in done.err
