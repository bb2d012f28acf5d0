"""An instance's file: made whole, opened with care, closed as one file."""

from __future__ import annotations

import errno
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

import perdure.storage.schema
from perdure.errors import InstanceDamagedError, StateVersionError, StorageFullError, StorageWriteError
from perdure.storage.disk import Disk
from perdure.storage.files import InstanceFile, create_file, open_file, remove_file, storage_error
from perdure.storage.gate import Gate
from perdure.storage.lifecycle import Lifecycle
from perdure.storage.schema import SCHEMA_VERSION, template


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Return the path of a new, empty instance file."""
    path = tmp_path / "Letters" / "one.sqlite"
    create_file(path, disk=Disk(), durable=False)
    return path


def beside(path: Path) -> list[str]:
    return sorted(each.name for each in path.parent.iterdir())


# -- making ------------------------------------------------------------------------------------


def test_a_new_file_is_the_template_and_nothing_else(path: Path) -> None:
    assert template() == path.read_bytes()
    assert ["one.sqlite"] == beside(path)


def test_a_new_file_is_synced_before_it_has_its_name(tmp_path: Path) -> None:
    disk = Disk()
    create_file(tmp_path / "Letters" / "one.sqlite", disk=disk, durable=True)

    assert 1 == disk.statistics().file_syncs
    assert 1 == disk.statistics().directory_syncs  # of the folder that holds the new folder


def test_every_table_of_the_runtime_is_strict_and_carries_its_mark(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        tables = connection.execute(
            "SELECT name, strict FROM pragma_table_list WHERE type = 'table'"
        ).fetchall()
        views = {name for (name,) in connection.execute("SELECT name FROM sqlite_schema WHERE type = 'view'")}

    assert [] == [row for row in tables if not row[0].startswith(("_perdure_", "sqlite_"))]
    assert [] == [row for row in tables if row[0].startswith("_perdure_") and not row[1]]
    public = {view for view in views if not view.startswith("_perdure_")}
    assert {"instance", "steps", "attempts", "events", "streams", "history"} == public


def test_removing_leaves_nothing(path: Path) -> None:
    for suffix in ("-wal", "-shm"):
        Path(f"{path}{suffix}").touch()

    remove_file(path)
    remove_file(path)

    assert [] == beside(path)


# -- opening -----------------------------------------------------------------------------------


def set_pragma(path: Path, name: str, value: int) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(f"PRAGMA {name}={value}")


def refused(path: Path, error: type[Exception], text: str) -> None:
    """Open the file, which is refused with that text, and leaves it as it was."""
    before = path.read_bytes()
    with pytest.raises(error, match=text):
        open_file(path, disk=Disk(), durability="full")
    assert before == path.read_bytes()
    assert [path.name] == beside(path)


def test_a_file_of_a_newer_version_is_refused_with_the_version_it_needs(path: Path) -> None:
    set_pragma(path, "user_version", SCHEMA_VERSION + 1)
    refused(path, StateVersionError, f"schema version {SCHEMA_VERSION + 1}.*upgrade perdure")


def test_a_database_of_another_program_is_refused(path: Path) -> None:
    set_pragma(path, "application_id", 77)
    refused(path, InstanceDamagedError, "not an instance of Perdure")


def test_what_is_no_database_is_refused_with_a_way_out(path: Path) -> None:
    path.write_bytes(b"once upon a time " * 500)
    refused(path, InstanceDamagedError, "salvage it with: sqlite3 .* .recover")


def test_a_file_that_is_missing_is_told_as_damaged(tmp_path: Path) -> None:
    with pytest.raises(InstanceDamagedError, match="is missing"):
        open_file(tmp_path / "none.sqlite", disk=Disk(), durability="full")
    assert [] == beside(tmp_path / "none.sqlite")


def test_an_older_file_is_migrated_step_by_step(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = {SCHEMA_VERSION: "CREATE TABLE one (n)", SCHEMA_VERSION + 1: "CREATE TABLE two (n)"}
    monkeypatch.setattr(perdure.storage.schema, "MIGRATIONS", steps)
    monkeypatch.setattr(perdure.storage.schema, "SCHEMA_VERSION", SCHEMA_VERSION + 2)

    for _ in range(2):
        file = open_file(path, disk=Disk(), durability="process")
        assert [(SCHEMA_VERSION + 2,)] == file.fetch("PRAGMA user_version")
        assert [] == file.fetch("SELECT * FROM one, two")
        file.close()


def test_a_migration_that_fails_changes_nothing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        perdure.storage.schema, "MIGRATIONS", {SCHEMA_VERSION: "CREATE TABLE one (n); SELECT nonsense"}
    )
    monkeypatch.setattr(perdure.storage.schema, "SCHEMA_VERSION", SCHEMA_VERSION + 1)

    with pytest.raises(StorageWriteError):
        open_file(path, disk=Disk(), durability="process")
    with closing(sqlite3.connect(path)) as connection:
        assert (SCHEMA_VERSION,) == connection.execute("PRAGMA user_version").fetchone()
        assert (0,) == connection.execute("SELECT count(*) FROM sqlite_schema WHERE name = 'one'").fetchone()


# -- the tick's transaction --------------------------------------------------------------------


def test_a_commit_is_seen_outside_and_counted(born: InstanceFile, gate: Gate) -> None:
    generation, stamp = born.generation, born.stamp
    life = Lifecycle(born, gate)
    life.set_status("waiting")
    with closing(sqlite3.connect(born.path)) as other:
        assert ("queued",) == other.execute("SELECT status FROM instance").fetchone()
        born.commit()
        assert ("waiting",) == other.execute("SELECT status FROM instance").fetchone()

    assert (generation + 1, stamp + 1, False) == (born.generation, born.stamp, born.in_transaction)


def test_a_rollback_drops_what_was_written(born: InstanceFile, gate: Gate) -> None:
    Lifecycle(born, gate).set_status("waiting")
    born.rollback()

    assert [("queued",)] == born.fetch("SELECT status FROM instance")
    assert not born.in_transaction


def test_a_statement_that_fails_marks_the_file_and_nothing_is_written_after_it(
    born: InstanceFile, gate: Gate
) -> None:
    gate.touch(born)
    with pytest.raises(StorageWriteError):
        born.execute("INSERT INTO _perdure_messages (seq) VALUES (1)")

    assert born.failure is not None
    with pytest.raises(StorageWriteError):
        born.execute("SELECT 1")
    with pytest.raises(StorageWriteError):
        born.execute_many("SELECT ?", [(1,)])


def test_a_file_without_the_runtimes_tables_is_told_as_damaged(born: InstanceFile) -> None:
    born.connection.execute("DROP TABLE _perdure_chunks")

    with pytest.raises(InstanceDamagedError, match="lost some of the runtime's tables"):
        born.fetch("SELECT * FROM _perdure_chunks")


# -- durable -----------------------------------------------------------------------------------


def test_the_first_sync_makes_the_wals_name_durable_too(path: Path) -> None:
    disk = Disk()
    file = open_file(path, disk=disk, durability="full")
    file.connection.execute("CREATE TABLE something (n)")
    for _ in range(3):
        file.sync()
    file.close()

    assert (3, 1) == (disk.statistics().file_syncs, disk.statistics().directory_syncs)


@pytest.mark.parametrize("durability", ["full", "process"])
def test_a_closed_file_is_one_file_with_everything_in_it(path: Path, durability: str) -> None:
    file = open_file(path, disk=Disk(), durability="full" if durability == "full" else "process")
    file.begin()
    file.connection.execute("CREATE TABLE something (n)")
    file.commit()
    file.begin()
    file.connection.execute("CREATE TABLE uncommitted (n)")
    assert "one.sqlite-wal" in beside(path)

    file.close()
    file.close()

    assert ["one.sqlite"] == beside(path)
    with closing(sqlite3.connect(path)) as connection:
        names = [
            name
            for (name,) in connection.execute(
                "SELECT name FROM sqlite_schema WHERE name NOT LIKE '%perdure%'"
            )
        ]
    assert "something" in names
    assert "uncommitted" not in names


def test_a_checkpoint_moves_what_is_committed_into_the_file(path: Path) -> None:
    file = open_file(path, disk=Disk(), durability="full")
    file.begin()
    file.connection.execute("CREATE TABLE something (n)")
    file.connection.executemany("INSERT INTO something VALUES (?)", [("x" * 1_000,)] * 500)
    file.commit()
    size = path.stat().st_size

    file.prepare_checkpoint()
    file.checkpoint()

    assert 0 == file.bytes_since_checkpoint
    assert size + 500_000 < path.stat().st_size
    file.close()


# -- what went wrong ---------------------------------------------------------------------------


def error_of(code: int) -> sqlite3.Error:
    error = sqlite3.OperationalError("as SQLite puts it")
    error.sqlite_errorcode = code
    return error


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (error_of(sqlite3.SQLITE_FULL), StorageFullError),
        (error_of(sqlite3.SQLITE_CORRUPT), InstanceDamagedError),
        (error_of(sqlite3.SQLITE_NOTADB), InstanceDamagedError),
        (error_of(sqlite3.SQLITE_IOERR_FSYNC), StorageWriteError),
        (error_of(sqlite3.SQLITE_BUSY), StorageWriteError),
        (OSError(errno.ENOSPC, "no space"), StorageFullError),
        (OSError(errno.EDQUOT, "quota"), StorageFullError),
        (OSError(errno.EIO, "input/output error"), StorageWriteError),
    ],
)
def test_what_went_wrong_is_told_by_class(
    tmp_path: Path, error: sqlite3.Error | OSError, expected: type[Exception]
) -> None:
    told = storage_error(error, tmp_path / "one.sqlite")

    assert expected is type(told)
    assert "one.sqlite" in str(told)
