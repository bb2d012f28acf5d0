"""Commands to many instances, restart, delete, and the options of create, from a second process."""

from __future__ import annotations

import contextlib
import signal
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio

from perdure.engine.app import load_app
from perdure.engine.opening import open_runtime
from perdure.engine.remote import open_remote

pytestmark = pytest.mark.slow


def ended(place: Any, instance: str) -> None:
    """Return once an instance has ended under `perdure serve`."""
    place.run("watch", instance)


def test_an_instance_is_restarted_whoever_has_the_folder(anyplace: Any) -> None:
    anyplace.create("Approval", "a1")
    anyplace.run("terminate", "a1")

    again = anyplace.run("restart", "a1")

    assert (0, "restarted Approval/a1\n") == (again.status, again.out)
    assert 0 == anyplace.run("send-event", "a1", "approve", "7").status
    done = anyplace.run("run", "workflows.py:Approval", "--id", "a1", "--quiet")
    assert (0, {"answer": 7}) == (done.status, done.json)


def test_a_restart_from_a_step_keeps_what_was_before_it(place: Any) -> None:
    place.serve()
    place.create("Approval", "a1")
    place.run("send-event", "a1", "approve", "7")
    ended(place, "a1")

    unknown = place.run("restart", "a1", "--from", "no such step")
    senseless = place.run("restart", "a1", "--count", "2")
    place.run("restart", "a1", "--from", "approval", "--kind", "event")
    place.run("send-event", "a1", "approve", "8")
    ended(place, "a1")

    assert (5, 2) == (unknown.status, senseless.status)
    assert "it has: do 'ask'" in unknown.err
    assert "name it with from_step" in senseless.err
    assert {"answer": 8} == place.json("describe", "a1")["result"]
    assert ["asked"] == place.ran()


def test_an_instance_is_deleted_whoever_has_the_folder(anyplace: Any) -> None:
    anyplace.create("Approval", "a1")

    asked = anyplace.run("delete", "a1")
    gone = anyplace.run("delete", "a1", "--yes")

    assert 2 == asked.status
    assert "say --yes" in asked.err
    assert (0, "deleted Approval/a1\n") == (gone.status, gone.out)
    assert [] == anyplace.json("list")
    assert 3 == anyplace.run("describe", "a1").status
    anyplace.create("Approval", "a1")


def test_a_condition_reaches_all_that_meet_it(anyplace: Any) -> None:
    for id_ in ("a1", "a2", "b1"):
        anyplace.create("Approval", id_)

    meant = anyplace.json("pause", "--where", "id LIKE 'a%'", "--dry-run")
    paused = anyplace.json("pause", "--where", "id LIKE 'a%'")
    nobody = anyplace.json("resume", "--status", "dead")
    resumed = anyplace.run("resume", "--all")
    several = anyplace.json("terminate", "a1", "b1", "--yes")

    assert ["Approval/a1", "Approval/a2"] == meant["instances"]
    assert (["Approval/a1", "Approval/a2"], []) == (paused["done"], paused["refused"])
    assert [] == nobody["done"]
    assert "resumed 2 instances\n" == resumed.out
    assert ["Approval/a1", "Approval/b1"] == several["done"]
    refused = anyplace.run("terminate", "a1", "a2", "--yes")
    assert (5, "terminated Approval/a2\n") == (refused.status, refused.out)
    assert "Approval/a1 has finished (terminated)" in refused.err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["terminate"], "name an instance"),
        (["terminate", "a1", "--all"], "not both"),
        (["terminate", "--all"], "say --yes"),
        (["terminate", "--status", "done"], "'queued'"),
        (["list", "--status", "done"], "'queued'"),
        (["restart", "a1", "--count", "0", "--from", "ask"], "count=0"),
        (["restart", "a1", "--kind", "nap", "--from", "ask"], "kind='nap'"),
        (["create", "workflows.py:Approval", "--at", "tomorrow"], "ISO 8601"),
        (["create", "workflows.py:Approval", "--at", "2030-01-01T00:00"], "time zone"),
        (["create", "workflows.py:Approval", "--timeout", "5m"], "5m"),
        (["create", "workflows.py:Approval", "--retention", "5m"], "5m"),
        (["create", "workflows.py:Approval", "--retention", '{"done": 1}'], "done"),
        (["create", "workflows.py:Approval", "--event", "go=now"], "not valid JSON"),
        (["create", "workflows.py:Approval", "--event", "=1"], "event type"),
    ],
)
def test_what_makes_no_sense_is_refused_and_changes_nothing(
    place: Any, cli: Callable[..., Any], words: list[str], told: str
) -> None:
    place.create("Approval", "a1")

    refused = cli(*words)

    assert 2 == refused.status
    assert told in refused.err
    assert [("a1", "queued")] == [(row["id"], row["status"]) for row in place.json("list")]


def test_create_takes_what_the_runtime_takes(anyplace: Any) -> None:
    options = ["--tag", "nightly", "--tag", "x", "--at", "2090-01-01T00:00+00:00", "--timeout", "2 days"]
    done = anyplace.run("create", "workflows.py:Approval", "--id", "later", *options)
    assert 0 == done.status, done.err
    event = ["--event", 'approve={"by": "Ada"}', "--retention", '{"terminated": 0, "archive": true}']
    anyplace.run("create", "workflows.py:Approval", "--id", "now", *event)

    later = next(row for row in anyplace.json("list") if row["id"] == "later")

    assert ["nightly", "x"] == later["tags"]
    assert later["wake_at"].startswith("2090-01-01")
    found = anyplace.json("terminate", "--tag", "nightly", "--yes")
    assert ["Approval/later"] == found["done"]
    rows = anyplace.json("sql", "now", "SELECT type, payload FROM events")
    assert [{"type": "approve", "payload": '{"by":"Ada"}'}] == rows


def test_latest_is_the_newest_instance(place: Any) -> None:
    for workflow, id_ in (("Approval", "a1"), ("Greet", "g1"), ("Approval", "a2")):
        place.create(workflow, id_, '"x"' if workflow == "Greet" else "null")

    assert "Approval/a2" == place.json("describe", "latest")["instance"]
    assert "Greet/g1" == place.json("describe", "Greet/latest")["instance"]
    place.create("Approval", "latest")
    assert "Approval/latest" == place.json("describe", "latest")["instance"]


def test_attaching_with_other_params_says_so(place: Any) -> None:
    place.create("Greet", "g1", '"Ada"')

    refused = place.run(
        "create", "workflows.py:Greet", "--id", "g1", "--params", '"Bea"', "--if-exists", "attach"
    )

    assert 3 == refused.status
    assert "with other params" in refused.err


def wait_until_posted(state: Path) -> None:
    """Return once a command stands in the inbox: the inbox itself is the signal."""
    with contextlib.closing(
        sqlite3.connect(f"{(state / 'catalog.sqlite').as_uri()}?mode=ro", uri=True)
    ) as catalog:
        query = "SELECT count(*) FROM _perdure_inbox WHERE done_at IS NULL AND command <> 'sync'"
        while catalog.execute(query).fetchone()[0] == 0:
            pass


@pytest.mark.parametrize("words", [["restart", "a1"], ["delete", "a1", "--yes"]], ids=["restart", "delete"])
def test_a_command_survives_the_kill_of_its_owner(place: Any, words: list[str]) -> None:
    serve = place.serve()
    place.create("Approval", "a1")
    serve.send_signal(signal.SIGSTOP)
    sender = place.start(*words)
    wait_until_posted(place.state)

    serve.kill()

    assert 0 == sender.wait(30), sender.communicate()
    if words[0] == "delete":
        assert [] == place.json("list")
    else:
        (own,) = place.json("sql", "a1", "SELECT generation FROM instance")
        assert 2 == own["generation"]


async def test_a_deletion_whose_reply_was_lost_is_acknowledged(place: Any, own_imports: None) -> None:
    app = load_app(place.folder / "workflows.py")
    lost = "the token of a command whose reply was lost"
    async with open_runtime(place.state, app) as runtime:
        instance = await runtime.create("Approval", id="a1")
        await instance.delete(token=lost)

    async with open_remote(place.state, known=app) as remote:
        with trio.fail_after(30):
            assert "deleted" == await remote.command(instance.key, "delete", token=lost)
