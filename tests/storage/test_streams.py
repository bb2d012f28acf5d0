"""The table of streams: made at first need, kept by migrations, void where an attempt has not succeeded."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from perdure import EncodingError
from perdure.limits import STREAM_CHUNK_BYTES_MAX
from perdure.storage import schema
from perdure.storage.disk import Disk
from perdure.storage.files import InstanceFile, open_file
from perdure.storage.gate import Gate
from perdure.storage.journal import Journal
from perdure.storage.lifecycle import bear
from perdure.storage.records import Birth
from perdure.storage.streams import Extent, detail_of, extent_in
from perdure.storage.unwritten import MemoryFiles

Reopen = Callable[[InstanceFile], InstanceFile]
VIEW = "SELECT name, idx, attempt, chunk, superseded FROM streams"
MADE = "SELECT name FROM sqlite_schema WHERE name LIKE '\\_perdure\\_stream%' ESCAPE '\\' ORDER BY name"
VERSION_1 = Path(__file__).parent / "versions" / "instance_1.sql"


@pytest.fixture
def journal(born: InstanceFile, gate: Gate) -> Journal:
    return Journal(born, gate)


def written(journal: Journal, *chunks: str) -> None:
    """Write chunks from the first attempt of a step, which then fails."""
    stream = journal.open_stream("tokens", 1, at_ms=1_000, sensitive=None)
    step = journal.start("do", "ask", 1, at_ms=1_000)
    for chunk in chunks:
        journal.streams.add(stream.seq, (step.seq, 1), chunk, at_ms=1_000)


def test_the_table_is_made_with_the_first_chunk(journal: Journal, born: InstanceFile) -> None:
    journal.open_stream("tokens", 1, at_ms=1_000, sensitive=None)
    assert ([], []) == (born.fetch(MADE), born.fetch(VIEW))

    journal.streams.add(1, (1, 1), '"a"', at_ms=1_000)

    assert [("_perdure_stream_marks",), ("_perdure_streams",)] == born.fetch(MADE)
    assert [("tokens", 0, 1, '"a"', 0)] == born.fetch(VIEW)


def test_the_table_goes_with_a_transaction_that_is_rolled_back(journal: Journal, born: InstanceFile) -> None:
    written(journal, '"a"')
    born.rollback()

    assert ([], []) == (born.fetch(MADE), born.fetch(VIEW))


def test_what_an_attempt_of_an_earlier_life_wrote_can_be_made_void(
    journal: Journal, gate: Gate, born: InstanceFile, reopened: Reopen
) -> None:
    written(journal, '"a"', '"b"')
    again = reopened(born)
    found = Journal(again, gate)
    found.load()
    step = found.take("do", "ask", 1)
    assert step is not None

    found.attempt_ended(step, "lost", at_ms=None, error=None)

    assert [("tokens", 0, 1, '"a"', 1), ("tokens", 1, 1, '"b"', 1)] == again.fetch(VIEW)
    assert (None, Extent()) == (found.streams.next_live(1, 0), found.streams.extent(1))
    assert 3 == found.streams.add(1, (step.seq, 2), '"c"', at_ms=2_000)
    again.commit()


def test_places_go_on_where_they_were(
    journal: Journal, gate: Gate, born: InstanceFile, reopened: Reopen
) -> None:
    written(journal, '"a"', '"b"')
    again = reopened(born)

    assert 2 == Journal(again, gate).streams.add(1, (2, 1), b"c", at_ms=2_000)
    again.commit()


def test_a_chunk_above_the_bound_is_refused_and_changes_nothing(journal: Journal, born: InstanceFile) -> None:
    with pytest.raises(EncodingError, match="in pieces"):
        journal.streams.add(1, (1, 1), bytes(STREAM_CHUNK_BYTES_MAX + 1), at_ms=1_000)

    assert [] == born.fetch(MADE)


def test_a_file_in_memory_takes_streams_and_is_written_with_them(tmp_path: Path, gate: Gate) -> None:
    memory = MemoryFiles(disk=Disk(), durability="process")
    path = tmp_path / "one.sqlite"
    file = memory.make(path)
    bear(file, gate, Birth(workflow="Letters", id="one", incarnation=7, created_at_ms=1), '"p"', epoch=1)
    written(Journal(file, gate), '"a"')
    file.commit()
    file.close()
    other = memory.make(tmp_path / "other.sqlite")  # its database is not that of the one before
    assert [] == other.fetch(MADE)
    other.close()
    memory.close()

    with closing(sqlite3.connect(path)) as connection:
        assert [("tokens", 0, 1, '"a"', 0)] == connection.execute(VIEW).fetchall()


def test_a_migration_keeps_the_view_of_a_file_that_has_streams(tmp_path: Path) -> None:
    path = tmp_path / "old.sqlite"
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.executescript(VERSION_1.read_text("utf-8"))
        connection.executescript(";".join(schema.stream_schema()))
        connection.execute(f"PRAGMA application_id={schema.APPLICATION_ID}")
        connection.execute("PRAGMA user_version=1")
        connection.execute(
            "INSERT INTO _perdure_steps (seq, kind, name, count, status, attempt, counted, started_at,"
            " started_commit) VALUES (1, 'stream', 'tokens', 1, 'running', 0, 0, 1, 1)"
        )
        connection.execute("INSERT INTO _perdure_streams VALUES (1 << 32, 1, 1, 3, 1, '\"a\"')")

    file = open_file(path, disk=Disk(), durability="process")

    assert [("tokens", 0, 1, '"a"', 0)] == file.fetch(VIEW)
    file.close()


def test_how_much_a_closed_stream_holds_stands_in_its_row() -> None:
    extent = Extent(chunks=3, bytes=12)

    assert '{"stream":{"chunks":3,"bytes":12}}' == detail_of(extent)
    assert [extent, extent, Extent()] == [
        extent_in(detail_of(extent)),
        extent_in('{"rollback":true,"stream":{"chunks":3,"bytes":12}}'),
        extent_in('{"rollback":true}'),
    ]
