"""`perdure terminate --rollback`: against a running `serve`, its workers, and where no process runs."""

from __future__ import annotations

import textwrap
from typing import Any

import pytest

pytestmark = pytest.mark.slow

SAGA = """
from pathlib import Path

import perdure
from perdure import Rollback, RollbackContext, WorkflowEntrypoint, WorkflowEvent, WorkflowStep


def note(text: str) -> str:
    with Path(__file__).with_name("ran.txt").open("a") as file:
        file.write(text + "\\n")
    return text


def undo(context: RollbackContext[str]) -> None:
    note(f"undo-{context.output}")


def refuse(context: RollbackContext[str]) -> None:
    raise ValueError("the hotel is closed")


class Trip(WorkflowEntrypoint):
    async def run(self, event: WorkflowEvent[str], step: WorkflowStep) -> None:
        await step.do("flight", note, "flight", rollback=undo)
        handler = refuse if event.payload == "stuck" else undo
        await step.do("hotel", note, "hotel", rollback=Rollback(handler, retries=0))
        await step.wait_for_event("home", type="home", timeout=None)


app = perdure.App([Trip])
"""


@pytest.fixture
def trips(place: Any) -> Any:
    """Return the place with a workflow of steps that can be undone."""
    place.folder.joinpath("workflows.py").write_text(textwrap.dedent(SAGA))
    return place


@pytest.mark.parametrize("workers", [(), ("--workers", "2")], ids=["one process", "workers"])
def test_an_instance_is_rolled_back_by_the_process_that_runs_it(trips: Any, workers: tuple[str, ...]) -> None:
    trips.serve(*workers)
    trips.create("Trip", "t1", '"quick"')
    until_it_waits(trips)

    done = trips.run("terminate", "t1", "--rollback")
    trips.run("watch", "t1")
    described = trips.json("describe", "t1")

    assert 0 == done.status, done.err
    assert "Trip/t1" in done.out
    assert ["flight", "hotel", "undo-hotel", "undo-flight"] == trips.ran()
    assert ("terminated", {"outcome": "complete", "error": None}) == (
        described["status"],
        described["rollback"],
    )


def test_without_a_process_the_rollback_waits_for_one_that_has_the_workflow(trips: Any) -> None:
    server = trips.serve()
    trips.create("Trip", "t1", '"quick"')
    until_it_waits(trips)
    server.terminate()
    server.wait()

    done = trips.run("terminate", "t1", "--rollback")
    assert "rolling back Trip/t1" in done.out
    assert ["flight", "hotel"] == trips.ran()

    trips.serve()
    trips.run("watch", "t1")
    assert ["flight", "hotel", "undo-hotel", "undo-flight"] == trips.ran()
    assert "terminated" == trips.status("t1")


def test_describe_tells_what_stopped_a_rollback(trips: Any) -> None:
    trips.serve()
    trips.create("Trip", "t1", '"stuck"')
    until_it_waits(trips)

    trips.run("terminate", "t1", "--rollback")
    trips.run("watch", "t1")
    told = trips.run("describe", "t1").out

    assert "rollback failed: ValueError: the hotel is closed" in told
    assert ["flight", "hotel"] == trips.ran()


def until_it_waits(trips: Any) -> None:
    """Return once the instance waits for its event."""
    watching = trips.start("watch", "t1")
    for line in watching.stdout:
        if "event started" in line:
            break
    watching.kill()
