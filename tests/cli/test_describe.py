"""`perdure describe`, `list` and `sql` show what is there: the timeline, why it waits, and the rows."""

from __future__ import annotations

import csv
import io
from typing import Any

import pytest

pytestmark = pytest.mark.slow


def test_the_timeline_has_attempts_durations_and_errors(place: Any) -> None:
    place.run("run", "workflows.py:Declined", "--id", "d1", "-q")

    out = place.run("describe", "d1").out

    head, _, timeline = out.partition("\n\n")
    assert head.startswith("Declined/d1  errored\n")
    assert "error    perdure.errors.NonRetryableError: card declined by the bank" in head
    assert timeline.startswith("✗  charge  do  ")
    assert "attempt 1 failed: NonRetryableError: card declined by the bank" in timeline


def test_a_waiting_instance_says_for_what_and_until_when(anyplace: Any) -> None:
    anyplace.create("Approval", "a1")
    if anyplace.started:
        while anyplace.status("a1") != "waiting":
            continue

        described = anyplace.json("describe", "a1")

        assert "event 'approval'" == described["reason"]
        assert described["wake_at"] is not None
        assert "waits for 'approve', 2 d 23 h left" in anyplace.run("describe", "a1").out
    else:
        assert "none yet: it has not started" in anyplace.run("describe", "a1").out


def test_an_instance_that_is_kept_in_memory_names_the_line(place: Any) -> None:
    place.serve()
    place.create("Idler", "i1")

    reason = None
    while reason is None:  # it is told once the instance has been idle for a second
        reason = place.json("describe", "i1")["reason"]

    assert "waits outside any step at" in reason
    assert "workflows.py:" in reason


def test_an_instance_whose_process_died_is_shown_as_parked(place: Any) -> None:
    serve = place.serve()
    place.create("Approval", "a1")
    while place.status("a1") != "waiting":
        continue
    serve.kill()
    serve.wait()

    described = place.run("describe", "a1")

    assert "parked   no process runs this folder: `perdure serve FILE --state" in described.out
    assert "approval" in described.out
    assert "Approval/a1" in place.run("list", "--workflow", "Approval").out


def test_list_filters_by_workflow_and_status_and_says_when_there_are_more(place: Any) -> None:
    for id_ in ("a1", "a2"):
        place.create("Approval", id_)
    place.create("Greet", "g1", '"Ada"')
    place.run("pause", "a1")

    paused = place.json("list", "--status", "paused")
    approvals = place.json("list", "--workflow", "Approval")
    limited = place.run("list", "--limit", "1")

    assert ["Approval/a1"] == [row["instance"] for row in paused]
    assert {"a1", "a2"} == {row["id"] for row in approvals}
    assert "and more: --limit" in limited.err


def test_sql_prints_a_table_csv_or_json(place: Any) -> None:
    place.run("run", "workflows.py:Greet", "--id", "g1", "--params", '"Ada"', "-q")
    query = "SELECT name, attempts, output, NULL AS missing FROM steps"

    table = place.run("sql", "g1", query).out.splitlines()
    rows = list(csv.reader(io.StringIO(place.run("sql", "g1", query, "--csv").out)))
    objects = place.json("sql", "g1", query)

    assert ["name", "attempts", "output", "missing"] == table[0].split()
    assert ["greet", "1", '"Ada"', "null"] == table[1].split()
    assert [["name", "attempts", "output", "missing"], ["greet", "1", '"Ada"', ""]] == rows
    assert [{"name": "greet", "attempts": 1, "output": '"Ada"', "missing": None}] == objects


def test_watch_as_json_is_one_fact_a_line_and_goes_on_behind_a_commit(place: Any) -> None:
    place.run("run", "workflows.py:Declined", "--id", "d1", "-q")

    all_facts = place.run("watch", "d1", "--json")
    later = place.run("watch", "d1", "--json", "--after", "1")

    assert 1 == all_facts.status == later.status
    assert '"what": "instance errored"' in all_facts.out.splitlines()[-1]
    assert 0 < len(later.out.splitlines()) < len(all_facts.out.splitlines())


def test_sensitive_values_are_shown_on_demand_alone(place: Any) -> None:
    place.run("run", "workflows.py:Secret", "--id", "s1", "-q")
    query = "SELECT input, output FROM steps"
    shows = [
        ("describe", "s1", "--json"), ("sql", "s1", query, "--json"), ("sql", "--all", "Secret", query),
    ]  # fmt: skip

    hidden = [place.run(*words) for words in (*shows, ("describe", "s1"), ("list", "--json"))]
    shown = [place.run(*words, "--reveal").out for words in shows]

    assert [(0, False)] * 5 == [(done.status, "sesame" in done.out) for done in hidden]
    assert [True] * 3 == ["open sesame" in text and "sesame!" in text for text in shown]


def test_the_heartbeat_of_a_running_attempt_is_shown(place: Any) -> None:
    place.serve()
    place.create("Beating", "b1")

    heartbeat = None
    while heartbeat is None:
        heartbeat = next((each["heartbeat"] for each in place.json("describe", "b1")["attempts"]), None)

    assert {"page": 7} == heartbeat
    assert 'heartbeat: {"page":7}' in place.run("describe", "b1").out
