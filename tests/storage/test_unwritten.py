"""Files in memory: what is written of them, and that nothing of one gets into another."""

from __future__ import annotations

import sqlite3
import threading
from contextlib import closing
from pathlib import Path

import pytest

from perdure.errors import StorageFullError
from perdure.storage.disk import Disk
from perdure.storage.files import InstanceFile
from perdure.storage.schema import template
from perdure.storage.unwritten import SPARE_MAX, MemoryFiles

BORN = """
    INSERT INTO _perdure_instance (one, workflow, id, incarnation, epoch, status, created_at, created_commit)
    VALUES (1, 'W', ?, 1, 1, 'running', 1, 1)"""
STEP = """
    INSERT INTO _perdure_steps (seq, kind, name, count, status, attempt, counted, started_at, started_commit)
    VALUES (?, 'do', ?, 1, 'running', 1, 1, 1, 1)"""


class FullDisk(Disk):
    """A disk with no room, until it is given some."""

    has_room = False

    def write_new(self, path: Path, data: bytes, *, durable: bool) -> None:
        if not self.has_room:
            raise OSError(28, "No space left on device")
        super().write_new(path, data, durable=durable)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "W" / "one.sqlite"


@pytest.fixture
def memory() -> MemoryFiles:
    return MemoryFiles(disk=Disk(), durability="full")


def made(memory: MemoryFiles, path: Path, text: str = "one") -> InstanceFile:
    """Return a file in memory with one commit."""
    file = memory.make(path)
    file.begin()
    file.execute(BORN, (text,))
    file.execute(STEP, (1, text))
    file.commit()
    return file


def names_in(path: Path) -> list[str]:
    with closing(sqlite3.connect(path)) as connection:
        assert ("wal",) == connection.execute("PRAGMA journal_mode").fetchone()
        assert ("ok",) == connection.execute("PRAGMA integrity_check").fetchone()
        return [row[0] for row in connection.execute("SELECT name FROM steps ORDER BY seq")]


def in_a_thread(function: object) -> None:
    thread = threading.Thread(target=function)  # type: ignore[arg-type]  # any function will do
    thread.start()
    thread.join()


def test_a_file_is_written_whole_when_it_is_closed(memory: MemoryFiles, path: Path) -> None:
    file = made(memory, path)
    file.begin()
    file.execute(STEP, (2, "never committed"))
    assert not path.exists()

    in_a_thread(file.close)

    assert ["one"] == names_in(path)
    assert ["one.sqlite"] == [entry.name for entry in path.parent.iterdir()]
    assert (0, 0) == (memory.in_use, memory.unwritten)


def test_a_database_serves_another_instance_before_the_file_of_the_first_is_written(
    memory: MemoryFiles, path: Path
) -> None:
    first = made(memory, path, "one")
    connection = first.connection

    first.give_memory_back()
    second = made(memory, path.with_name("two.sqlite"), "two")

    assert second.connection is connection
    assert (1, 2) == (memory.in_use, memory.unwritten)
    with pytest.raises(sqlite3.ProgrammingError, match="closed"):
        first.connection.execute("SELECT 1")
    in_a_thread(first.close)
    second.close()
    assert (["one"], ["two"]) == (names_in(path), names_in(second.path))
    assert (0, 0) == (memory.in_use, memory.unwritten)


def test_a_file_that_has_committed_nothing_is_not_written(memory: MemoryFiles, path: Path) -> None:
    memory.make(path).close()

    assert not path.exists()


def test_a_file_goes_on_where_it_was_once_it_is_written(memory: MemoryFiles, path: Path) -> None:
    file = made(memory, path)
    file.epoch = 1

    file.write_out()
    file.begin()
    file.execute(STEP, (2, "two"))
    file.commit()

    assert file.unwritten is None
    assert 2 == file.generation
    assert ["one", "two"] == names_in(path)
    file.close()
    assert ["one", "two"] == names_in(path)


@pytest.mark.parametrize("how", ["close", "abandon"])
def test_a_file_for_which_there_is_no_room_stays_as_it_is(path: Path, how: str) -> None:
    disk = FullDisk()
    memory = MemoryFiles(disk=disk, durability="full")
    file = made(memory, path)

    with pytest.raises(StorageFullError):
        file.write_out()
    with pytest.raises(OSError, match="No space"):
        getattr(file, how)()
    assert 1 == memory.unwritten
    disk.has_room = True
    getattr(file, how)()

    assert ["one"] == names_in(path)


def test_a_database_is_used_again_and_nothing_of_the_instance_before_is_left(
    memory: MemoryFiles, path: Path
) -> None:
    private = "nobody else is to see this"
    first = made(memory, path, private)
    connection = first.connection
    first.close()
    assert private.encode() in path.read_bytes()

    second = made(memory, path.with_name("two.sqlite"), "two")
    assert second.connection is connection
    second.close()

    assert private.encode() not in second.path.read_bytes()
    assert ["two"] == names_in(second.path)


def test_a_database_that_is_not_as_it_was_made_is_not_used_again(memory: MemoryFiles, path: Path) -> None:
    file = made(memory, path)
    file.begin()
    file.execute("CREATE TABLE notes (text TEXT)")
    file.commit()
    connection = file.connection
    file.close()

    another = memory.make(path.with_name("two.sqlite"))

    assert another.connection is not connection
    assert len(template()) == len(another.connection.serialize())


def test_no_more_databases_are_kept_than_are_of_use(memory: MemoryFiles, path: Path) -> None:
    made_at_once = [made(memory, path.with_name(f"{n}.sqlite")) for n in range(SPARE_MAX + 3)]
    last = made_at_once[-1].connection
    for file in made_at_once:
        file.close()

    with pytest.raises(sqlite3.ProgrammingError, match="closed"):
        last.execute("SELECT 1")
    memory.close()
