"""`perdure schedules`, `perdure backfill`, and what the command line says of those that wait."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

SCHEDULED = """
import perdure
from perdure import Concurrency, Cron, Every, WorkflowEntrypoint, WorkflowEvent, WorkflowStep


class Report(WorkflowEntrypoint):
    schedules = [Cron("0 9 * * *", tz="Europe/Paris"), Every("1 day", id="daily", overlap="skip")]

    async def run(self, event: WorkflowEvent[None], step: WorkflowStep) -> str:
        return event.schedule.scheduled_at.isoformat()


class Gate(WorkflowEntrypoint):
    concurrency = Concurrency(limit=1)

    async def run(self, event: WorkflowEvent[None], step: WorkflowStep) -> None:
        await step.wait_for_event("go", type="go", timeout=None)
"""
DAYS = ("--from", "2020-03-01", "--to", "2020-03-03T12:00+01:00")


def serve(place: Any) -> subprocess.Popen[str]:
    Path(place.folder / "workflows.py").write_text(SCHEDULED)
    served: subprocess.Popen[str] = place.serve()
    return served


def test_a_folder_that_was_never_served_has_no_schedules(place: Any) -> None:
    place.run("create", "workflows.py:Greet", "--params", '"Ada"')

    assert "No schedules in" in place.run("schedules").out


def test_schedules_are_listed_paused_and_filled_in_by_who_serves_and_by_who_does_not(place: Any) -> None:
    served = serve(place)
    listed = place.run("schedules", "--json").json
    assert ["0 9 * * *", "daily"] == [each["id"] for each in listed]
    assert ("Europe/Paris", False, "one") == tuple(listed[0][name] for name in ("tz", "paused", "catch_up"))
    assert "Report/daily" in place.run("schedules").out

    paused = place.run("schedules", "--pause", "daily", "--json").json
    assert (True, None) == (paused["paused"], paused["next_at"])
    assert "paused" in place.run("schedules").out
    place.run("schedules", "--resume", "Report/daily")

    planned = place.run("backfill", "0 9 * * *", *DAYS, "--dry-run", "--json").json
    assert ["Report/0 9 * * *-1583049600000"] == planned["created"][:1]
    done = place.run("backfill", "0 9 * * *", *DAYS)
    assert planned["created"] == done.out.splitlines()
    assert "created 3" in done.err
    assert "created 0" in place.run("backfill", "0 9 * * *", *DAYS).err

    served.terminate()
    served.wait()
    nobody = place.run("backfill", "daily", *DAYS)
    assert (2, True) == (nobody.status, "say where it is with --file" in nobody.err)
    assert "created 3" in place.run("backfill", "daily", *DAYS, "--file", "workflows.py").err


def test_bad_input_is_told_in_one_line(place: Any) -> None:
    serve(place)
    for words, told in (
        (("backfill", "weekly", *DAYS), "there is no schedule 'weekly'; there are: 'Report/0 9 * * *'"),
        (("backfill", "daily", "--from", "soon", "--to", "2030-01-01"), "--from: 'soon' is no time"),
        (("backfill", "daily", "--from", "2030-01-02", "--to", "2030-01-01"), "goes backwards"),
        (("schedules", "--pause", "weekly"), "there is no schedule 'weekly'"),
        (("schedules", "--pause", "daily", "--resume", "daily"), "say one of them"),
    ):
        done = place.run(*words)
        assert done.status != 0
        assert told in done.err


def test_the_list_says_what_a_queued_instance_waits_for(place: Any) -> None:
    serve(place)
    for number in range(2):
        place.run("create", "Gate", "--id", str(number), "--priority", str(number))

    rows = place.run("list", "--workflow", "Gate", "--status", "queued", "--json").json
    assert [("1 of Gate run already (limit 1)", 1)] == [(row["reason"], row["priority"]) for row in rows]
