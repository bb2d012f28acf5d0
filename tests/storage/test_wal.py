"""Commits read back from a WAL: exactly what was committed, compared with SQLite's own checkpoint."""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perdure.storage.wal import (
    FRAME_HEADER_BYTES,
    HEADER_BYTES,
    Commits,
    WalFound,
    WalTooLong,
    examine_wal,
    last_commit_is_whole,
    read_commits,
)

PAGE_BYTES = 1024
FRAME_BYTES = FRAME_HEADER_BYTES + PAGE_BYTES
ALL = 1 << 30


class Database:
    """A database in WAL mode with nothing in its WAL, and a descriptor of that WAL."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.connection = self.connect()
        self.connection.execute(f"PRAGMA page_size={PAGE_BYTES}")
        self.connection.execute("PRAGMA journal_mode=WAL")
        self.connection.execute("CREATE TABLE t(k INTEGER PRIMARY KEY, v BLOB)")
        self.checkpoint()
        self.wal = os.open(f"{path}-wal", os.O_RDWR)

    def connect(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self.path, isolation_level=None)
        connection.execute("PRAGMA wal_autocheckpoint=0")
        return connection

    def commit(self, *keys: int, size: int = 10) -> None:
        self.connection.execute("BEGIN")
        for key in keys:
            self.connection.execute("REPLACE INTO t VALUES(?, randomblob(?))", (key, size))
        self.connection.execute("COMMIT")

    def checkpoint(self) -> None:
        self.connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()

    def roll_back(self, pages: int) -> None:
        """Write frames of a transaction into the WAL that then does not take place."""
        self.connection.execute("PRAGMA cache_size=2")
        self.connection.execute("BEGIN")
        for key in range(pages):
            self.connection.execute("INSERT INTO t VALUES(?, zeroblob(?))", (1_000_000 + key, PAGE_BYTES))
        self.connection.execute("ROLLBACK")

    def read(self, commits: int | None = None, bytes_max: int = ALL) -> tuple[Commits, bool]:
        return read_commits(self.wal, after=HEADER_BYTES, salts=None, commits=commits, bytes_max=bytes_max)

    def go_on(self, found: Commits, commits: int | None = None) -> tuple[Commits, bool]:
        return read_commits(
            self.wal, after=found.end, salts=found.salts, commits=commits, bytes_max=ALL
        )  # fmt: skip

    def frames(self) -> int:
        """Return how many frames the WAL's file has, of whatever kind."""
        return (os.fstat(self.wal).st_size - HEADER_BYTES) // FRAME_BYTES

    def applied(self, *found: Commits) -> bytes:
        """Return the database file as it would be with these images over it."""
        data = bytearray(self.path.read_bytes())
        for each in found:
            data.extend(bytes(max(0, each.file_pages * PAGE_BYTES - len(data))))
            for page, image in each.images.items():
                data[(page - 1) * PAGE_BYTES : page * PAGE_BYTES] = image
            del data[each.file_pages * PAGE_BYTES :]
        return bytes(data)

    def checkpointed(self) -> bytes:
        """Return the database file as SQLite's own checkpoint of a copy leaves it."""
        copy = self.path.with_name("copy.sqlite")
        shutil.copy(self.path, copy)
        shutil.copy(f"{self.path}-wal", f"{copy}-wal")
        with closing(sqlite3.connect(copy)) as connection:
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        return copy.read_bytes()

    def close(self) -> None:
        os.close(self.wal)
        self.connection.close()


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    database = Database(tmp_path / "one.sqlite")
    yield database
    database.close()


# -- what is read ------------------------------------------------------------------------------


def test_an_empty_wal_holds_no_commits(database: Database) -> None:
    found, more = database.read()

    assert ({}, 0, False) == (found.images, found.commits, more)


def test_the_images_read_make_what_a_checkpoint_makes(database: Database) -> None:
    for key in range(20):
        database.commit(key, key // 2, size=600)

    found, more = database.read()

    assert (20, False) == (found.commits, more)
    assert database.checkpointed() == database.applied(found)


def test_a_page_written_twice_is_read_as_it_was_last(database: Database) -> None:
    database.commit(1)
    database.commit(1)

    found, _ = database.read()

    assert len(found.images) < database.frames()
    assert database.checkpointed() == database.applied(found)


def test_a_file_that_grew_shorter_is_read_with_its_new_length(database: Database) -> None:
    database.commit(*range(50), size=900)
    database.checkpoint()
    long = database.path.stat().st_size
    database.connection.execute("DELETE FROM t")
    database.connection.execute("VACUUM")

    found, _ = database.read()

    assert found.file_pages * PAGE_BYTES < long
    assert database.checkpointed() == database.applied(found)


@given(
    shape=st.lists(st.tuples(st.integers(0, 9), st.integers(1, 20_000)), min_size=1, max_size=8),
    cut=st.integers(0, 8),
)
def test_reading_in_parts_is_reading_the_whole(
    tmp_path_factory: pytest.TempPathFactory, shape: list[tuple[int, int]], cut: int
) -> None:
    database = Database(tmp_path_factory.mktemp("wal") / "one.sqlite")
    try:
        for key, size in shape[:cut]:
            database.commit(key, size=size)
        first, _ = database.read()
        for key, size in shape[cut:]:
            database.commit(key, size=size)
        second, _ = database.go_on(first)

        assert len(shape) == first.commits + second.commits
        parts = [part for part in (first, second) if part.commits]
        assert database.checkpointed() == database.applied(*parts)
    finally:
        database.close()


def test_reading_goes_on_behind_what_was_read_and_finds_nothing_twice(database: Database) -> None:
    database.commit(1)
    first, _ = database.read()
    nothing, more = database.go_on(first)

    assert ({}, 0, False) == (nothing.images, nothing.commits, more)
    assert (first.end, first.salts) == (nothing.end, nothing.salts)


# -- where it stops ----------------------------------------------------------------------------


def test_frames_of_a_transaction_under_way_are_not_taken(database: Database) -> None:
    database.commit(1)
    committed = database.checkpointed()
    before = database.frames()
    database.connection.execute("PRAGMA cache_size=2")
    database.connection.execute("BEGIN")
    for key in range(50):
        database.connection.execute("INSERT INTO t VALUES(?, zeroblob(?))", (1_000 + key, PAGE_BYTES))

    found, _ = database.read()

    assert database.frames() > before
    assert 1 == found.commits
    assert committed == database.applied(found)
    database.connection.execute("ROLLBACK")


def test_what_was_rolled_back_is_not_taken(database: Database) -> None:
    database.commit(1)
    committed = database.checkpointed()
    database.roll_back(50)

    found, _ = database.read()

    assert database.frames() > found.end // FRAME_BYTES
    assert committed == database.applied(found)


def test_a_commit_over_the_remnant_of_a_rollback_is_read_and_the_remnant_is_not(database: Database) -> None:
    database.roll_back(50)
    database.commit(1)
    database.commit(2)

    found, _ = database.read()

    assert 2 == found.commits
    assert database.checkpointed() == database.applied(found)
    assert last_commit_is_whole(database.wal, found.end, PAGE_BYTES)


def test_reading_stops_after_the_commits_asked_for_and_tells_of_more(database: Database) -> None:
    database.commit(1)
    first_only = database.checkpointed()
    database.commit(2)

    found, more = database.read(commits=1)
    rest, no_more = database.go_on(found, commits=1)

    assert (1, True) == (found.commits, more)
    assert first_only == database.applied(found)
    assert (1, False) == (rest.commits, no_more)


def test_commits_of_another_program_between_ours_are_seen_as_more(database: Database) -> None:
    database.commit(1)
    first, _ = database.read()
    with closing(database.connect()) as other:
        other.execute("INSERT INTO t VALUES(77, 'theirs')")
    database.commit(2)

    _, more = database.go_on(first, commits=1)
    both, _ = database.go_on(first)

    assert more
    assert 2 == both.commits
    assert database.checkpointed() == database.applied(first, both)


def test_a_wal_that_started_over_is_read_from_its_beginning(database: Database) -> None:
    database.commit(*range(30), size=500)
    before, _ = database.read()
    database.connection.execute("PRAGMA wal_checkpoint(RESTART)").fetchone()
    database.commit(1)

    after, _ = database.go_on(before)

    assert before.salts != after.salts
    assert 1 == after.commits
    assert after.end < before.end
    assert database.checkpointed() == database.applied(after)


def test_frames_of_an_earlier_round_of_the_wal_are_not_taken(database: Database) -> None:
    database.commit(*range(30), size=500)
    frames = database.frames()
    database.connection.execute("PRAGMA wal_checkpoint(RESTART)").fetchone()
    database.commit(1)

    found, more = database.read()

    assert frames == database.frames()
    assert (1, False) == (found.commits, more)


def test_more_bytes_than_asked_for_are_refused_before_they_are_all_read(database: Database) -> None:
    database.commit(1, size=300_000)

    with pytest.raises(WalTooLong):
        database.read(bytes_max=100_000)
    found, _ = database.read(bytes_max=400_000)
    assert 1 == found.commits


# -- whether it is whole -----------------------------------------------------------------------


def test_a_commit_is_whole_whether_it_is_the_first_or_a_later_one_of_one_page_or_many(
    database: Database,
) -> None:
    for keys in ((1,), (2,), range(40), (3,)):
        database.commit(*keys, size=700)
        found, _ = database.read()
        assert last_commit_is_whole(database.wal, found.end, PAGE_BYTES)


@pytest.mark.parametrize("frames_back", [1, 2, 5])
def test_a_frame_that_says_commit_over_data_that_was_never_written_is_found_out(
    database: Database, frames_back: int
) -> None:
    database.commit(1)
    database.commit(*range(40), size=700)
    found, _ = database.read()
    stale = found.end - frames_back * FRAME_BYTES + FRAME_HEADER_BYTES
    os.pwrite(database.wal, b"\xa5" * PAGE_BYTES, stale)

    assert not last_commit_is_whole(database.wal, found.end, PAGE_BYTES)


def test_a_header_of_a_commit_written_before_its_page_is_no_commit_to_sqlite_either(
    database: Database,
) -> None:
    database.commit(1)
    first, _ = database.read()
    committed = database.checkpointed()
    database.commit(2)
    found, _ = database.read()
    os.pwrite(database.wal, bytes(PAGE_BYTES), found.end - PAGE_BYTES)

    assert not last_commit_is_whole(database.wal, found.end, PAGE_BYTES)
    assert last_commit_is_whole(database.wal, first.end, PAGE_BYTES)
    assert committed == database.checkpointed() == database.applied(first)


def test_behind_a_torn_commit_nothing_counts_however_whole_it_looks(database: Database) -> None:
    """Reordered writes leave whole commits behind a lost one: SQLite stops there, and so must a reader."""
    for key in range(5):
        database.commit(key)
    first, _ = database.read(commits=2)
    os.pwrite(database.wal, bytes(PAGE_BYTES), first.end + FRAME_HEADER_BYTES)

    unchecked, _ = database.read()
    checked, _ = read_commits(
        database.wal, after=HEADER_BYTES, salts=None, commits=None, bytes_max=ALL, checked=True
    )

    assert 5 == unchecked.commits
    assert last_commit_is_whole(database.wal, unchecked.end, PAGE_BYTES)
    assert (2, first.end, first.images) == (checked.commits, checked.end, checked.images)
    assert database.checkpointed() == database.applied(checked)
    assert WalFound(first.salts, first.end, 1) == examine_wal(Path(f"{database.path}-wal"))


def test_what_is_read_on_with_checks_is_what_is_read_without(database: Database) -> None:
    database.commit(1)
    first, _ = database.read()
    database.commit(2, 3, size=3 * PAGE_BYTES)
    plain, _ = database.go_on(first)

    checked, _ = read_commits(
        database.wal, after=first.end, salts=first.salts, commits=None, bytes_max=ALL, checked=True
    )

    assert (plain.end, plain.images, 1) == (checked.end, checked.images, checked.commits)


def test_a_wal_without_a_commit_is_nothing(database: Database) -> None:
    assert None is examine_wal(Path(f"{database.path}-wal"))
    assert None is examine_wal(database.path.with_name("none"))
    database.roll_back(8)

    assert None is examine_wal(Path(f"{database.path}-wal"))
