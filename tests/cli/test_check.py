"""`perdure check` tells what changed code would do to the instances under way."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import trio
from click.testing import CliRunner

from perdure import WorkflowEntrypoint, WorkflowEvent, WorkflowStep
from perdure.cli.main import main
from perdure.testing import open_test_runtime

CODE = """
from perdure import WorkflowEntrypoint, WorkflowEvent, WorkflowStep


class Parcel(WorkflowEntrypoint):
    async def run(self, event: WorkflowEvent[str], step: WorkflowStep) -> None:
        {body}
        await step.wait_for_event("wait", type="go", timeout=None)
"""


class Parcel(WorkflowEntrypoint[None]):
    async def run(self, event: WorkflowEvent[str], step: WorkflowStep) -> None:
        await step.do("pack", str, event.payload)
        await step.wait_for_event("wait", type="go", timeout=None)


async def record(state: Path) -> None:
    async with open_test_runtime(state, workflows=[Parcel]) as runtime:
        for id_ in ("one", "two"):
            instance = await runtime.create(Parcel, params="tea", id=id_)
            while not await instance.sql("SELECT 1 FROM steps WHERE status = 'waiting'"):
                pass


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """Return a folder with two instances that wait."""
    trio.run(record, tmp_path / "state")
    return tmp_path / "state"


def check(state: Path, body: str, *words: str) -> Any:
    name = f"parcels_{abs(hash((state, body)))}.py"
    file = state.parent / name
    file.write_text(CODE.format(body=body))
    return CliRunner().invoke(main, ["check", str(file), "--state", str(state), *words])


def test_code_that_agrees_is_said_to(state: Path) -> None:
    done = check(state, 'await step.do("pack", str, event.payload)')
    assert (0, "2 looked at: 2 agree, 0 errors, 0 warnings.\n") == (done.exit_code, done.output)


def test_an_error_is_told_and_decides_the_status(state: Path) -> None:
    done = check(state, 'await step.sleep("pack", 1)', "--json")
    told = json.loads(done.output)
    assert (1, 2, 2) == (done.exit_code, told["instances"], told["errors"])
    assert ["one", "two"] == [report["id"] for report in told["found"]]
    assert "do 'pack' (use 1)" == told["found"][0]["found"][0]["recorded"]


def test_a_warning_leaves_the_status_at_0(state: Path) -> None:
    done = check(state, 'await step.do("pack", str, "coffee")', "--where", "id = 'two'")
    assert 0 == done.exit_code
    assert "Parcel/two (" in done.output
    assert "1 looked at: 0 agree, 0 errors, 1 warnings." in done.output


def test_what_can_be_seen_in_the_code_is_told_with_its_line(tmp_path: Path) -> None:
    done = check(tmp_path / "none", 'step.do("pack", str, event.payload)')
    assert 1 == done.exit_code
    assert ".py:7\n  error: step.do(...) is called and never awaited" in done.output


def test_a_folder_that_is_not_there_has_nothing_under_way(tmp_path: Path) -> None:
    done = check(tmp_path / "none", "pass")
    assert (0, False) == (done.exit_code, (tmp_path / "none").exists())
    assert "0 looked at" in done.output


def test_an_unknown_workflow_is_refused(state: Path) -> None:
    assert 2 == check(state, "pass", "--workflow", "Nobody").exit_code
