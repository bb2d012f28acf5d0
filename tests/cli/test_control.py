"""Control commands from a second process: against a running `serve`, and where no process runs."""

from __future__ import annotations

import contextlib
import signal
import sqlite3
from pathlib import Path
from typing import Any

import pytest
import trio

from perdure import InstanceFinishedError
from perdure.engine.app import load_app
from perdure.engine.inbox import EventBody
from perdure.engine.opening import open_runtime
from perdure.engine.remote import open_remote

pytestmark = pytest.mark.slow
LOST = "the token of a command whose reply was lost"


def wait_until_posted(state: Path, command: str) -> None:
    """Return once a command stands in the inbox: the inbox itself is the signal."""
    with contextlib.closing(
        sqlite3.connect(f"{(state / 'catalog.sqlite').as_uri()}?mode=ro", uri=True)
    ) as catalog:
        query = "SELECT count(*) FROM _perdure_inbox WHERE command = ? AND done_at IS NULL"
        while catalog.execute(query, (command,)).fetchone()[0] == 0:
            pass


def test_an_instance_is_created_and_listed_and_described(anyplace: Any) -> None:
    anyplace.create("Approval", "a1")

    (row,) = anyplace.json("list")
    described = anyplace.json("describe", "a1")

    assert "Approval/a1" == row["instance"] == described["instance"]
    assert described["status"] in ("queued", "running", "waiting")


def test_a_created_instance_runs_to_its_end_under_serve(place: Any) -> None:
    place.serve()
    place.create("Greet", "g1", '"Ada"')

    watched = place.run("watch", "g1")

    assert 0 == watched.status
    assert "instance complete" in watched.out
    assert "hello Ada" == place.json("describe", "g1")["result"]


def test_an_event_is_delivered_once_to_the_wait(anyplace: Any) -> None:
    anyplace.create("Approval", "a1")

    assert 0 == anyplace.run("send-event", "Approval/a1", "approve", "7").status

    done = anyplace.run("run", "workflows.py:Approval", "--id", "a1", "--quiet")
    assert (0, {"answer": 7}) == (done.status, done.json)
    assert ["asked"] == anyplace.ran()


def test_an_event_with_no_wait_stays_visible_as_undelivered(anyplace: Any) -> None:
    anyplace.create("Approval", "a1")

    anyplace.run("send-event", "a1", "reject", '{"by": "Ada"}')

    (event,) = anyplace.json("describe", "a1")["undelivered_events"]
    assert ("reject", {"by": "Ada"}) == (event["type"], event["payload"])


def test_pause_and_resume_are_acknowledged_after_their_effect(anyplace: Any) -> None:
    anyplace.create("Approval", "a1")

    paused = anyplace.run("pause", "a1")
    assert "paused Approval/a1\n" == paused.out
    assert "paused" == anyplace.status("a1")

    resumed = anyplace.run("resume", "a1")
    assert "resumed Approval/a1\n" == resumed.out
    assert "paused" != anyplace.status("a1")


def test_terminate_ends_an_instance_and_the_history_says_who_gave_it(anyplace: Any) -> None:
    anyplace.create("Approval", "a1")

    assert 0 == anyplace.run("terminate", "a1").status

    described = anyplace.json("describe", "a1")
    (command,) = described["commands"]
    assert "terminated" == described["status"]
    assert "terminate" == command["what"]
    assert command["actor"]


def test_a_command_to_a_finished_instance_is_an_error_for_its_sender(anyplace: Any) -> None:
    anyplace.create("Approval", "a1")
    anyplace.run("terminate", "a1")

    refused = anyplace.run("send-event", "a1", "approve")

    assert 5 == refused.status
    assert 1 == refused.err.count("\n")
    assert "has finished (terminated)" in refused.err


def test_sql_asks_one_instance_all_of_a_workflow_and_the_catalog(anyplace: Any) -> None:
    for id_ in ("a1", "a2"):
        anyplace.create("Approval", id_)

    one = anyplace.json("sql", "a1", "SELECT id, workflow FROM instance")
    united = anyplace.json("sql", "--all", "Approval", "SELECT id FROM instance")
    catalog = anyplace.json("sql", "--catalog", "SELECT workflow, count(*) AS n FROM instances GROUP BY 1")

    assert [{"id": "a1", "workflow": "Approval"}] == one
    assert "a1" in {row["instance_id"] for row in united}
    assert [{"workflow": "Approval", "n": 2}] == catalog


def test_sql_reads_only_and_leaves_nothing_beside_a_closed_file(place: Any) -> None:
    place.create("Approval", "a1")

    refused = place.run("sql", "a1", "DELETE FROM steps")
    place.run("sql", "a1", "SELECT * FROM steps", "--csv")

    assert 6 == refused.status
    assert ["a1.sqlite"] == [path.name for path in (place.state / "Approval").iterdir()]


def test_a_command_whose_owner_is_killed_before_the_reply_is_taken_over_once(place: Any) -> None:
    serve = place.serve()
    place.create("Approval", "a1")
    serve.send_signal(signal.SIGSTOP)
    sender = place.start("send-event", "a1", "approve", "7")
    wait_until_posted(place.state, "send-event")

    serve.kill()

    assert 0 == sender.wait(30)
    rows = place.json("sql", "a1", "SELECT type, payload FROM events")
    assert [{"type": "approve", "payload": "7"}] == rows


@pytest.mark.parametrize("command", ["create", "pause", "resume", "terminate"])
def test_every_command_survives_the_kill_of_its_owner(place: Any, command: str) -> None:
    serve = place.serve()
    place.create("Approval", "a1")
    serve.send_signal(signal.SIGSTOP)
    words = ["workflows.py:Approval", "--id", "a2"] if command == "create" else ["a1"]
    sender = place.start(command, *words)
    wait_until_posted(place.state, command)

    serve.kill()

    assert 0 == sender.wait(30), sender.communicate()
    expected = {"create": "queued", "pause": "paused", "terminate": "terminated"}
    if command in expected:
        assert expected[command] == place.status("a2" if command == "create" else "a1")


def test_a_killed_serve_goes_on_where_it_was(place: Any) -> None:
    serve = place.serve()
    place.create("Approval", "a1")
    place.run("send-event", "a1", "other")  # acknowledged, so the file exists
    serve.kill()
    serve.wait()

    place.serve()
    place.run("send-event", "a1", "approve", "7")

    assert 0 == place.run("watch", "a1").status
    assert {"answer": 7} == place.json("describe", "a1")["result"]


@pytest.mark.parametrize("command", ["send-event", "terminate", "create"])
async def test_a_command_that_was_carried_out_and_not_replied_to_is_acknowledged(
    place: Any, command: str, own_imports: None
) -> None:
    app = load_app(place.folder / "workflows.py")
    body = EventBody(type="approve", payload="7") if command == "send-event" else None
    async with open_runtime(place.state, app) as runtime:
        instance = await runtime.create("Approval", id="a1", token=LOST)
        match command:
            case "send-event":
                await instance.send_event("approve", 7, token=LOST)
                await instance.result()
            case "terminate":
                await instance.terminate(token=LOST)
            case _:
                pass

    async with open_remote(place.state, known=app) as remote:
        with trio.fail_after(30):
            await remote.command(instance.key, command, body, token=LOST)

        assert 1 == len(remote.rows())
        if command != "create":
            with pytest.raises(InstanceFinishedError):
                await remote.command(instance.key, command, body)
