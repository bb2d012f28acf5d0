"""The programs of `examples/` run as they stand, in both replay modes, and go on after a kill."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.checkout, pytest.mark.slow]

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
SAID = {  # what each prints last, so that a person sees what it has shown
    "order_saga": "record    do reserve: completed, do charge: completed, do courier: failed,"
    " rollback charge: completed, rollback reserve: completed",
    "approval": "a kettle: approved by the boss, after asking Ada, Ada, the boss",
    "agent_loop": "5 steps, 5 attempts",
    "agent_chain": "final:  Of tides: 3 notes, 1 remarks heeded.",
    "ledger": "post t4: posted, 2 entries, sound",
}
ONCE = ("reserve ", "charge ", "undo ", "courier ", "to ")
"""How lines begin that only a step function prints."""


def command(name: str, *options: str) -> list[str]:
    return [sys.executable, str(EXAMPLES / f"{name}.py"), *options]


def run(folder: Path, name: str, *options: str) -> str:
    done = subprocess.run(
        command(name, *options), cwd=folder, capture_output=True, text=True, timeout=60, check=False
    )
    assert (0, "") == (done.returncode, done.stderr)
    return done.stdout


def kill_after(folder: Path, name: str, text: str) -> None:
    """Start an example and kill it, without a warning, once it has printed this."""
    with subprocess.Popen(command(name), cwd=folder, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        seen = ""
        while not seen.endswith(text):
            read = process.stdout.read(1)
            assert read, seen
            seen += read
        process.kill()


@pytest.mark.parametrize("replay", ["warm", "always"])
@pytest.mark.parametrize("name", [name for name in SAID if name != "approval"])
def test_an_example_says_what_it_shows_and_runs_no_step_at_its_second_start(
    tmp_path: Path, name: str, replay: str
) -> None:
    first = run(tmp_path, name, "--replay", replay)
    second = run(tmp_path, name, "--replay", replay)

    assert SAID[name] == first.splitlines()[-1].strip()
    assert [line for line in first.splitlines() if not line.strip().startswith(ONCE)] == second.splitlines()


@pytest.mark.parametrize("replay", ["warm", "always"])
def test_each_approval_ends_with_a_verdict(tmp_path: Path, replay: str) -> None:
    told = run(tmp_path, "approval", "--replay", replay).splitlines()

    # who was asked how often depends on how quick the machine is: test_approval.py looks at that
    verdicts = [line.partition(", after")[0] for line in told if not line.startswith("  to ")]
    assert 3 == len(verdicts)
    assert all(
        line.endswith(("approved by Ada", "refused by Ada", "approved by the boss", "answered"))
        for line in verdicts
    )


def test_a_saga_that_was_killed_while_it_was_undone_goes_on_undoing(tmp_path: Path) -> None:
    kill_after(
        tmp_path, "order_saga", "undo      30 coins go back\n"
    )  # that attempt may be lost, no step before it

    told = run(tmp_path, "order_saga")

    assert "charge  " not in told
    assert "reserve  " not in told
    assert 1 == told.count("undo      shelf-7/kite is free again\n")
    assert told.endswith(f"{SAID['order_saga']}\n")


def test_an_agent_that_was_killed_asks_no_turn_again_that_had_ended(tmp_path: Path) -> None:
    kill_after(tmp_path, "agent_loop", "And add")

    told = run(tmp_path, "agent_loop")

    assert 1 == told.count("And add half an hour for the walk.")
    assert told.endswith("answer: High water is at 17:42; be back by 18:12.\n5 steps, 6 attempts\n")
