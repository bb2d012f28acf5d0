"""Redo: what the relay log has on disk is what the files hold after the machine's death, and nothing more."""

from __future__ import annotations

import os
import shutil
import sqlite3
import zlib
from contextlib import closing
from pathlib import Path
from typing import Any, TypeAlias

import pytest

from perdure.errors import StateUnusableError
from perdure.storage import redo as shipped
from perdure.storage.disk import Disk
from perdure.storage.redo import DECIDED, forget, log_of, segments, settle
from perdure.storage.relay_format import HEADER, MAGIC
from perdure.storage.schema import PAGE_BYTES

Yard: TypeAlias = Any  # a fixture's: test folders are no packages

FAR_FUTURE_NS = 4_000_000_000 * 10**9


class Failing(Disk):
    """A disk on which so many things can be made durable, and the next one cannot."""

    def __init__(self, left: int) -> None:
        super().__init__()
        self.left = left
        self.failed = False

    def _count(self) -> None:
        self.left -= 1
        if self.left < 0:
            self.failed = True
            raise OSError(5, "Input/output error")

    def sync_descriptor(self, descriptor: int) -> None:
        self._count()
        super().sync_descriptor(descriptor)

    def sync_directory(self, path: Path) -> None:
        self._count()
        super().sync_directory(path)

    def sync_file_system(self, path: Path) -> None:
        self._count()
        super().sync_file_system(path)


def changed_later(path: Path) -> None:
    """Have a file's last change lie beyond doubt behind whatever the log has."""
    os.utime(path, ns=(FAR_FUTURE_NS, FAR_FUTURE_NS))


# -- what comes back ---------------------------------------------------------------------------


async def test_a_newborn_of_which_the_disk_had_nothing_comes_back(yard: Yard) -> None:
    log = yard.log()
    file = yard.create(log, "Trip/one")
    yard.note(file, "first")
    await yard.sync(log, file)

    after = yard.machine_dies({})
    decision = after.redo()

    assert ["first"] == after.notes("Trip/one")
    assert (["Trip/one.sqlite"], []) == (decision.redo, decision.foreign)
    assert [] == list(after.folder.iterdir())


async def test_all_commits_of_all_files_come_back_in_their_order(yard: Yard) -> None:
    log = yard.log()
    files = [yard.create(log, f"f{number}") for number in range(3)]
    for note in range(40):
        for file in files:
            yard.note(file, note, size=note * 100)
        await yard.sync(log, *files)
        if note % 7 == 0:
            yard.checkpoint(log, files[0])

    after = yard.machine_dies({})
    after.redo()

    assert [list(range(40))] * 3 == [after.notes(f"f{number}") for number in range(3)]


async def test_what_was_not_synced_is_not_missed_by_what_was(yard: Yard) -> None:
    log = yard.log()
    file = yard.create(log, "one")
    yard.note(file, "safe")
    await yard.sync(log, file)
    yard.note(file, "nobody waited for it")

    assert ["safe"] == yard.machine_dies_and_redoes("one")


async def old_wal(yard: Yard) -> Any:
    """Return a folder whose disk has the WAL of an earlier round, which was moved into the file since."""
    log = yard.log()
    file = yard.create(log, "one")
    yard.note(file, "before")
    await yard.sync(log, file)
    had = yard.on_disk()
    yard.checkpoint(log, file)
    yard.note(file, "after")
    await yard.sync(log, file)
    return yard.machine_dies(had)


async def test_an_old_wal_that_would_shadow_the_images_goes(yard: Yard) -> None:
    after = await old_wal(yard)
    after.redo()

    assert ["before", "after"] == after.notes("one")


def never(*_facts: object) -> bool:
    return False


async def test_an_old_wal_that_stays_would_undo_what_was_acknowledged(
    yard: Yard, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shipped, "_is_behind", never)
    after = await old_wal(yard)
    after.redo()

    with pytest.raises((AssertionError, sqlite3.DatabaseError)):
        assert ["before", "after"] == after.notes("one")


async def test_a_file_is_cut_to_the_length_it_had_at_the_last_commit(yard: Yard) -> None:
    log = yard.log()
    file = yard.create(log, "one")
    for note in range(20):
        yard.note(file, note, size=5_000)
    await yard.sync(log, file)
    yard.checkpoint(log, file)
    had = yard.on_disk()
    yard.edit("one", "DELETE FROM notes")
    yard.edit("one", "VACUUM")
    yard.note(file, "short")
    await yard.sync(log, file)

    after = yard.machine_dies(had)
    after.redo()

    assert ["short"] == after.notes("one")
    with closing(sqlite3.connect(after.path("one"))) as connection:
        (pages,) = connection.execute("PRAGMA page_count").fetchone()
    assert pages * PAGE_BYTES == after.path("one").stat().st_size < len(had["one.sqlite"][0])


async def test_a_file_torn_by_an_unsynced_close_is_mended(yard: Yard) -> None:
    log = yard.log()
    file, other = yard.create(log, "one"), yard.create(log, "two")
    for note in range(20):
        yard.note(file, note, size=1_000)
    await yard.sync(log, file, other)
    yard.close(log, file)
    await yard.sync(log, other)
    had = yard.on_disk()
    whole, time_ns = had["one.sqlite"]
    had["one.sqlite"] = (whole[: len(whole) // 2].ljust(len(whole), b"\0"), time_ns)

    assert list(range(20)) == yard.machine_dies_and_redoes("one", had=had)


# -- what is left alone ------------------------------------------------------------------------


async def test_a_file_of_another_incarnation_is_not_touched(yard: Yard) -> None:
    log = yard.log()
    await yard.sync(log, file := yard.create(log, "one"))
    yard.note(file, "of the one before")
    await yard.sync(log, file)
    had = {"one.sqlite": (b"another incarnation's", 1)}

    after = yard.machine_dies(had)
    decision = after.redo(incarnation=8)

    assert ([], []) == (decision.redo, decision.foreign)
    assert b"another incarnation's" == after.path("one").read_bytes()


async def test_an_instance_that_was_deleted_does_not_come_back(yard: Yard) -> None:
    log = yard.log()
    await yard.sync(log, yard.create(log, "one"))

    after = yard.machine_dies({})
    after.redo(incarnation=8)

    assert [] == [path.name for path in after.root.iterdir() if path.is_file()]


async def behind(yard: Yard) -> Any:
    """Return a folder where one worker's log is behind another's, which was settled and has gone."""
    first, second = yard.log(worker=1), yard.log(worker=2)
    file = yard.create(first, "one")
    yard.note(file, "first")
    await yard.sync(first, file)
    yard.close(first, file)
    again = yard.take(second, "one", epoch=2)
    yard.note(again, "second")
    await yard.sync(second, again)
    yard.close(second, again)
    await second.close()
    return yard.machine_dies(yard.on_disk())


async def test_a_log_behind_what_a_later_owner_has_settled_does_not_count(yard: Yard) -> None:
    after = await behind(yard)
    after.redo(safe_epoch=2)

    assert ["first", "second"] == after.notes("one")


async def test_a_log_behind_would_undo_a_later_owners_commits(yard: Yard) -> None:
    after = await behind(yard)
    after.redo(safe_epoch=1)

    assert ["first"] == after.notes("one")


async def test_the_logs_of_two_owners_count_in_the_order_of_their_epochs(yard: Yard) -> None:
    first, second = yard.log(worker=9), yard.log(worker=2)
    file = yard.create(first, "one")
    yard.note(file, "first")
    await yard.sync(first, file)
    yard.close(first, file)
    again = yard.take(second, "one", epoch=2)
    yard.note(again, "second")
    await yard.sync(second, again)

    assert ["first", "second"] == yard.machine_dies_and_redoes("one")


# -- edits by other programs -------------------------------------------------------------------


async def closed_and_logged(yard: Yard) -> None:
    """Close an instance's file, with its close in the log."""
    log = yard.log()
    file, other = yard.create(log, "one"), yard.create(log, "two")
    yard.note(file, "ours")
    await yard.sync(log, file)
    yard.close(log, file)
    await yard.sync(log, other)


async def test_an_edit_after_the_close_is_kept_and_reported(
    yard: Yard, caplog: pytest.LogCaptureFixture
) -> None:
    await closed_and_logged(yard)
    yard.edit("one", "DELETE FROM notes")
    changed_later(yard.path("one"))

    after = yard.machine_dies(yard.on_disk())
    decision = after.redo()

    assert ["one.sqlite"] == decision.foreign
    assert [] == after.notes("one")
    assert "one.sqlite was changed by another program" in caplog.text


async def test_an_edit_after_the_close_that_is_still_in_a_wal_is_kept(yard: Yard) -> None:
    await closed_and_logged(yard)
    torn = yard.path("one").read_bytes()
    with closing(sqlite3.connect(yard.path("one"), isolation_level=None)) as theirs:
        theirs.execute("INSERT INTO notes VALUES('theirs', 0)")
        had = yard.on_disk("one")
    _, time_ns = had["one.sqlite"]
    had["one.sqlite"] = (torn[:PAGE_BYTES].ljust(len(torn), b"\0"), time_ns)

    assert ["ours", "theirs"] == yard.machine_dies_and_redoes("one", had=had)


async def test_an_edit_while_the_file_is_open_is_kept(yard: Yard) -> None:
    log = yard.log()
    file = yard.create(log, "one")
    yard.note(file, "ours")
    await yard.sync(log, file)
    yard.edit("one", "INSERT INTO notes VALUES('theirs', 0)")

    assert ["ours", "theirs"] == yard.machine_dies_and_redoes("one", had=yard.on_disk())


# -- interruptions -----------------------------------------------------------------------------


async def three_files(yard: Yard) -> Any:
    """Return a folder with a newborn, a file that was closed and one that another program has edited."""
    await closed_and_logged(yard)
    log = yard.log(worker=2)
    newborn, edited = yard.create(log, "three"), yard.create(log, "four")
    for note in range(5):
        yard.note(newborn, note, size=2_000)
    await yard.sync(log, newborn, edited)
    yard.close(log, edited)
    await yard.sync(log, newborn)
    yard.note(newborn, "last")
    await yard.sync(log, newborn)
    yard.edit("four", "INSERT INTO notes VALUES('theirs', 0)")
    changed_later(yard.path("four"))
    return yard.machine_dies(yard.on_disk("one", "four"))


async def interrupted(yard: Yard, left: int) -> bool:
    """Check redo with a disk that fails after so many syncs; say whether it came to that."""
    after = await three_files(yard)
    disk = Failing(left)
    try:
        after.redo(disk)
    except OSError:
        after.redo()
    assert ["ours"] == after.notes("one")
    assert [*range(5), "last"] == after.notes("three")
    assert ["theirs"] == after.notes("four")
    assert [] == [path.name for path in after.folder.iterdir()]
    return disk.failed


async def test_redo_may_be_interrupted_anywhere_and_repeated(yard: Yard) -> None:
    left = 0
    while await interrupted(yard, left):
        fresh(yard)
        left += 1

    assert left > 8


def fresh(yard: Yard) -> None:
    """Have nothing in a yard."""
    for file in yard.files:
        file.close()
    yard.files.clear()
    shutil.rmtree(yard.root)
    yard.root.mkdir()


async def test_a_decision_that_outlived_its_log_goes_before_there_is_another(yard: Yard) -> None:
    log = yard.log()
    await yard.sync(log, yard.create(log, "one"))
    await log.close()
    (yard.folder / DECIDED).write_text('{"redo": [], "foreign": []}')

    settle(yard.folder, yard.root, Disk())

    assert [] == list(yard.folder.iterdir())


# -- logs that go ------------------------------------------------------------------------------


async def regressed(yard: Yard, interrupted: int) -> Any:
    """Have the removal of a log interrupted, with the oldest segment the only one that the disk still has."""
    log = yard.log()
    file, busy = yard.create(log, "one"), yard.create(log, "two")
    yard.note(file, "old")
    await yard.sync(log, file, busy)
    while log.statistics().segments < 2:
        yard.note(busy, "fill", size=100_000)
        await yard.sync(log, busy)
        yard.checkpoint(log, busy)
    yard.note(file, "new")
    await yard.sync(log, file)
    oldest = min(segments(yard.folder), key=lambda each: each[1].number)[0]
    data = oldest.read_bytes()
    with pytest.raises(OSError, match="Input/output"):
        forget(yard.folder, Failing(interrupted), {log_of(oldest)})
    for path in yard.folder.glob("*.log"):
        path.unlink()
    oldest.write_bytes(data)
    return yard.machine_dies(yard.on_disk())


async def test_the_rest_of_a_log_whose_removal_was_interrupted_does_not_count(yard: Yard) -> None:
    after = await regressed(yard, interrupted=2)
    after.redo()

    assert ["old", "new"] == after.notes("one")
    assert [] == list(after.folder.iterdir())


async def test_within_a_boot_logs_are_settled_and_files_left_as_they_are(yard: Yard) -> None:
    log = yard.log()
    yard.note(file := yard.create(log, "one"), "ours")
    await yard.sync(log, file)
    before, disk = yard.on_disk(), Disk()

    settle(yard.folder, yard.root, disk)

    assert before == yard.on_disk()
    assert 1 == disk.statistics().file_system_syncs
    assert [] == list(yard.folder.iterdir())


async def test_one_workers_log_is_settled_without_the_others(yard: Yard) -> None:
    first, second = yard.log(worker=1), yard.log(worker=11)
    await yard.sync(first, yard.create(first, "one"))
    await yard.sync(second, yard.create(second, "two"))

    settle(yard.folder, yard.root, Disk(), worker=1)

    assert [11] == [segment.worker for _, segment in segments(yard.folder)]


def test_where_there_was_never_a_log_there_is_nothing_to_do(yard: Yard) -> None:
    settle(yard.folder, yard.root, Disk())

    assert not yard.folder.exists()


async def test_a_file_that_is_no_segment_is_passed_over_and_goes(yard: Yard) -> None:
    log = yard.log()
    yard.note(file := yard.create(log, "one"), "ours")
    await yard.sync(log, file)
    after = yard.machine_dies({})
    (after.folder / "1.1.9.log").write_bytes(bytes(10_000))

    after.redo()

    assert ["ours"] == after.notes("one")
    assert [] == list(after.folder.iterdir())


async def test_a_log_of_another_version_stops_everything(yard: Yard) -> None:
    log = yard.log()
    await yard.sync(log, yard.create(log, "one"))
    ((path, _),) = segments(yard.folder)
    data = bytearray(path.read_bytes())
    data[len(MAGIC) - 1] ^= 0x40
    data[HEADER.size - 4 : HEADER.size] = zlib.crc32(data[: HEADER.size - 4]).to_bytes(4, "little")
    path.write_bytes(data)

    with pytest.raises(StateUnusableError, match="another version"):
        yard.redo()
    assert path.exists()
