"""One process owns a state folder: another is refused by name, and takes over the moment it is dead."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

Launch = Callable[..., "subprocess.Popen[str]"]
NextLine = Callable[["subprocess.Popen[str]"], str]


@pytest.fixture
def owner(tmp_path: Path, launch: Launch, next_line: NextLine) -> subprocess.Popen[str]:
    """Return a program that has opened the folder and is in the middle of a step."""
    process = launch("service", tmp_path / "state", "rest")
    assert ["open", "busy rest"] == [next_line(process), next_line(process)]
    return process


def refused(launch: Launch, state: Path) -> str:
    process = launch("service", state)
    output, errors = process.communicate()
    assert 0 == process.returncode, errors
    return output.strip()


def test_a_second_process_is_told_who_has_the_folder(
    tmp_path: Path, launch: Launch, owner: subprocess.Popen[str]
) -> None:
    assert f"locked by {owner.pid}" == refused(launch, tmp_path / "state")
    assert owner.poll() is None


def test_a_second_process_goes_on_the_moment_the_first_is_killed(
    tmp_path: Path, launch: Launch, owner: subprocess.Popen[str]
) -> None:
    owner.kill()
    owner.wait()
    output, errors = launch("service", tmp_path / "state", "--finish", "rest").communicate()

    assert ["open", "busy rest", "result rest 2"] == output.splitlines(), errors


def test_a_process_that_is_frozen_keeps_the_folder(
    tmp_path: Path, launch: Launch, next_line: NextLine, owner: subprocess.Popen[str]
) -> None:
    owner.send_signal(signal.SIGSTOP)
    assert f"locked by {owner.pid}" == refused(launch, tmp_path / "state")

    owner.send_signal(signal.SIGCONT)
    owner.send_signal(signal.SIGTERM)
    assert "left" == next_line(owner)
