"""The public schema: what the views say, and how little the file of it takes."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from perdure.limits import VALUE_BYTES_INLINE_MAX
from perdure.storage.disk import Disk
from perdure.storage.files import InstanceFile, create_file, open_file
from perdure.storage.gate import Gate
from perdure.storage.journal import Journal
from perdure.storage.lifecycle import Lifecycle, bear
from perdure.storage.mail import Mail
from perdure.storage.records import Birth, Deadline
from perdure.storage.schema import minified, template

TEMPLATE_BYTES_MAX = 23 * 1024
LAST_MS = 253_402_300_799_999
"""The last millisecond of the year 9999."""
COLUMNS = {
    "instance": "id workflow version status reason params output output_bytes error created_at started_at"
    " ended_at wake_at replays parent tags generation rollback",
    "steps": "seq name count kind status attempts input output output_bytes sensitive error started_at"
    " ended_at duration_ms wake_at config detail",
    "attempts": "step_seq attempt started_at ended_at outcome error heartbeat cpu_ms",
    "events": "seq type payload received_at delivered_to",
    "streams": "name idx attempt chunk written_at superseded",
    "history": "commit at what step actor detail place",
}


@pytest.mark.parametrize("view", COLUMNS)
def test_each_view_has_the_columns_that_are_promised(born: InstanceFile, view: str) -> None:
    cursor = born.execute(f"SELECT * FROM {view}")

    assert COLUMNS[view].split() == [column[0] for column in cursor.description]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=300)
@given(st.integers(0, LAST_MS))
@example(0)
@example(999)
@example(1_700_000_000_001)
@example(LAST_MS)
def test_a_time_is_shown_to_the_millisecond(born: InstanceFile, at_ms: int) -> None:
    born.connection.execute("UPDATE _perdure_instance SET started_at = ?", (at_ms,))

    ((shown,),) = born.fetch("SELECT started_at FROM instance")

    moment = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=at_ms)
    assert f"{moment:%Y-%m-%dT%H:%M:%S}.{at_ms % 1000:03}Z".rjust(24, "0") == shown


LARGE = ['"' + "ä" * VALUE_BYTES_INLINE_MAX + '"', b"\x00\xff" * VALUE_BYTES_INLINE_MAX]


@pytest.mark.parametrize("value", LARGE)
def test_large_values_are_whole_in_every_view(tmp_path: Path, gate: Gate, value: str | bytes) -> None:
    path = tmp_path / "one.sqlite"
    create_file(path, disk=Disk(), durable=False)
    file = open_file(path, disk=Disk(), durability="process")
    bear(file, gate, Birth(workflow="W", id="a", incarnation=1, created_at_ms=0), value, epoch=1)
    Mail(file, gate).add("item", value, at=Deadline(wall_ms=1), token=None)
    journal = Journal(file, gate)
    journal.complete(journal.start("do", "large", 1, at_ms=1), value, at_ms=2)
    Lifecycle(file, gate).end("complete", at_ms=3, output=value)
    file.commit()

    with closing(sqlite3.connect(path)) as other:
        found = other.execute(
            "SELECT params, output, (SELECT payload FROM events), (SELECT output FROM steps) FROM instance"
        ).fetchall()
    file.close()

    assert [(value,) * 4] == found


def test_history_tells_what_happened_in_order(born: InstanceFile, gate: Gate) -> None:
    life, mail, journal = Lifecycle(born, gate), Mail(born, gate), Journal(born, gate)
    life.started(2_000, None)
    step = journal.start("do", "charge", 1, at_ms=2_000)
    born.commit()
    journal.attempt_ended(step, "failed", at_ms=3_000, error='{"message":"no","class":"Error"}')
    journal.retry_at(step, Deadline(wall_ms=4_000), error='{"message":"no","class":"Error"}')
    mail.add("go", "1", at=Deadline(wall_ms=3_000), token=None)
    life.command("pause", at_ms=3_000, actor="ada", token=None, detail="lunch")
    born.commit()
    journal.start_again(step, at_ms=4_000, counted=2)
    born.commit()
    journal.complete(step, "1", at_ms=5_000)
    life.end("complete", at_ms=5_000)
    born.commit()

    told = born.fetch('SELECT "commit", substr(at, 18, 2), what, step, actor, detail FROM history')

    assert [
        (1, "01", "instance created", None, None, None),
        (2, "02", "instance started", None, None, None),
        (2, "02", "do started", "charge", None, None),
        (3, "03", "event received", None, None, "go"),
        (3, "03", "pause", None, "ada", "lunch"),
        (3, "03", "attempt failed", "charge", None, '{"attempt":1,"error":"no"}'),
        (4, "04", "attempt started", "charge", None, '{"attempt":2}'),
        (5, "05", "do completed", "charge", None, '{"attempt":2,"error":null}'),
        (5, "05", "instance complete", None, None, None),
    ] == told
    assert [(1, "failed"), (2, "completed")] == born.fetch("SELECT attempt, outcome FROM attempts")


def test_a_commands_row_is_no_event(born: InstanceFile, gate: Gate) -> None:
    Lifecycle(born, gate).command("pause", at_ms=1, actor="ada", token=None)

    assert [] == born.fetch("SELECT * FROM events")
    assert [] == Mail(born, gate).undelivered


def test_an_empty_file_is_small() -> None:
    assert TEMPLATE_BYTES_MAX > len(template())


def test_the_schema_in_a_file_has_no_comments_and_no_needless_spaces(born: InstanceFile) -> None:
    texts = [text for (text,) in born.fetch("SELECT sql FROM sqlite_schema WHERE sql IS NOT NULL")]

    assert [] == [text for text in texts if "--" in text or "  " in text or "\n" in text]
    assert "SELECT a,'b - c' FROM d;" == minified("SELECT a,  'b - c'  -- why\n  FROM d;")
