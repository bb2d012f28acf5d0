"""The relay log where something is in its way: large commits, failing disks, files that dead owners left."""

from __future__ import annotations

import logging
from typing import Any, TypeAlias

import pytest
import trio

from perdure.storage import relay
from perdure.storage.redo import segments
from perdure.storage.relay_format import CLOSED, IMAGES, VOID

Yard: TypeAlias = Any  # a fixture's: test folders are no packages

LARGE = 400 * 1024
"""More than the log takes of one commit."""


# -- large commits -----------------------------------------------------------------------------


async def test_a_large_commit_takes_its_file_out_of_the_log(yard: Yard) -> None:
    disk, own = yard.diary(), yard.diary()
    log = yard.log(disk)
    file = yard.create(log, "one", disk=own)
    await yard.sync(log, file)
    yard.note(file, "large", size=LARGE)

    assert [] == await yard.sync(log, file)

    assert VOID == yard.batches()[-1][-1].kind
    assert "all" in disk.lines
    assert 1 == log.statistics().direct
    batches = log.statistics().batches
    yard.note(file, "small")
    assert [] == await yard.sync(log, file)
    assert (batches, ["one.sqlite-wal"]) == (log.statistics().batches, own.lines)
    assert ["large", "small"] == yard.machine_dies_and_redoes("one", had=yard.on_disk())


async def test_a_file_out_of_the_log_is_synced_by_sqlite_when_it_is_closed(yard: Yard) -> None:
    log = yard.log()
    logged, large = yard.create(log, "one"), yard.create(log, "two")
    await yard.sync(log, logged, large)
    yard.note(large, "large", size=LARGE)
    await yard.sync(log, large)
    said: dict[str, list[str]] = {"one": [], "two": []}
    for file in (logged, large):
        file.connection.set_trace_callback(said[file.relay.name].append)
        yard.close(log, file)

    assert {"one": [], "two": ["PRAGMA synchronous=FULL"]} == said


async def test_a_large_commit_shares_its_tick_with_small_ones(yard: Yard) -> None:
    log = yard.log()
    small, large = yard.create(log, "one"), yard.create(log, "two")
    yard.note(small, "small")
    yard.note(large, "large", size=9 * 1024 * 1024)

    assert [] == await yard.sync(log, large, small)

    assert ["small"] == yard.machine_dies_and_redoes("one")
    assert ["large"] == yard.machine_dies_and_redoes("two", had=yard.on_disk("two"))


# -- failures ----------------------------------------------------------------------------------


async def test_an_append_that_fails_is_told_for_every_file_in_it(yard: Yard) -> None:
    disk = yard.diary()
    log = yard.log(disk)
    files = [yard.create(log, name) for name in ("one", "two")]
    await yard.sync(log, *files)
    disk.fails = True
    for file in files:
        yard.note(file, "lost")

    failures = await yard.sync(log, *files)

    assert set(files) == {file for file, _ in failures}
    assert {5} == {error.errno for _, error in failures}
    assert [False, False] == [log.may_write(file) for file in files]


async def test_files_whose_batch_fails_when_the_segment_is_full_are_told_too(yard: Yard) -> None:
    disk = yard.diary()
    log = yard.log(disk)
    files = [yard.create(log, f"f{number}") for number in range(9)]
    await yard.sync(log, *files)
    disk.fails = True
    for file in files:
        yard.note(file, "lost", size=200_000)  # more than there is room for: a part goes before the rest

    async def mend() -> None:
        while log.statistics().segments:  # the first one is given up
            await trio.lowlevel.checkpoint()
        disk.fails = False

    async with trio.open_nursery() as nursery:
        nursery.start_soon(mend)
        failures = await yard.sync(log, *files)

    failed = {file.relay.name for file, _ in failures}
    logged = {entry.name for batch in yard.batches()[1:] for entry in batch}
    assert failed
    assert {file.relay.name for file in files} == failed | logged


async def test_after_a_failure_all_is_synced_before_anything_goes_into_another_segment(yard: Yard) -> None:
    disk = yard.diary()
    log = yard.log(disk)
    broken, other = yard.create(log, "one"), yard.create(log, "two")
    yard.note(other, "safe")
    await yard.sync(log, broken, other)
    (first,) = (path for path, _ in segments(yard.folder))
    disk.fails = True
    yard.note(broken, "lost")
    await yard.sync(log, broken)
    disk.fails = False
    disk.lines.clear()
    yard.note(other, "after")

    assert [] == await yard.sync(log, other)

    assert "all" == disk.lines[0]
    assert first.name not in disk.lines
    assert ["safe", "after"] == yard.machine_dies_and_redoes("two")


async def test_what_could_not_be_made_safe_beneath_new_commits_fails_them(yard: Yard) -> None:
    disk = yard.diary()
    log = yard.log(disk)
    yard.create(log, "one").close()
    file = yard.take(log, "one", epoch=2, unsettled=True)
    disk.file_systems_fail = 1

    failures = await yard.sync(log, file)

    assert [file] == [failed for failed, _ in failures]
    assert not log.may_write(file)


async def test_a_wal_that_cannot_be_read_fails_its_file_alone(yard: Yard) -> None:
    log = yard.log()
    good, bad = yard.create(log, "one"), yard.create(log, "two")
    with yard.wal_away(bad):
        failures = await yard.sync(log, bad, good)

    assert [bad] == [file for file, _ in failures]
    assert ["one"] == [entry.name for entry in yard.batches()[0] if entry.kind == IMAGES]


async def test_a_file_system_that_cannot_be_synced_keeps_its_segments(
    yard: Yard, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(relay, "RETRY_S", 0)
    disk = yard.diary()
    log = yard.log(disk, idle_s=0)
    file = yard.create(log, "one")
    await yard.sync(log, file)
    disk.file_systems_fail = 1
    with caplog.at_level(logging.ERROR):
        async with yard.running(log):
            while not caplog.records:
                await trio.lowlevel.checkpoint()
            while log.statistics().segments:
                await trio.lowlevel.checkpoint()

    assert "cannot be synced, and is tried again" in caplog.text
    assert ["all", "all"] == [line for line in disk.lines if line == "all"]


# -- when the file itself may be written -------------------------------------------------------


async def test_a_file_may_be_written_only_when_all_of_it_is_in_the_current_segment(yard: Yard) -> None:
    log = yard.log()
    file, other = yard.create(log, "one"), yard.create(log, "two")
    assert not log.may_write(file)
    await yard.sync(log, file, other)
    assert log.may_write(file)
    yard.note(file, "new")
    assert not log.may_write(file)
    await yard.sync(log, file)
    assert log.may_write(file)
    await yard.fill(log, other, segments=2)
    assert not log.may_write(file)


async def test_a_file_in_which_nothing_was_written_may_be_closed_at_once(yard: Yard) -> None:
    log = yard.log()
    yard.create(log, "one").close()
    file = yard.take(log, "one", epoch=2)
    file.generation = 0

    assert log.may_write(file)


async def test_a_file_that_a_dead_owner_left_is_not_written_before_it_is_logged(yard: Yard) -> None:
    log = yard.log()
    dead = yard.create(log, "one")
    dead.abandon()
    file = yard.take(log, "one", epoch=2)
    file.generation = 0

    assert not log.may_write(file)


async def test_a_close_is_logged_with_the_time_of_the_files_last_change(yard: Yard) -> None:
    log = yard.log()
    file, other = yard.create(log, "one"), yard.create(log, "two")
    await yard.sync(log, file)
    yard.close(log, file)
    await yard.sync(log, other)

    (closed,) = [entry for entry in yard.batches()[-1] if entry.kind == CLOSED]

    assert ("one", file.path.stat().st_mtime_ns) == (closed.name, closed.number)


# -- what dead owners left ---------------------------------------------------------------------


@pytest.mark.parametrize("unsettled", [False, True])
async def test_what_a_dead_owner_left_is_synced_before_anything_new_counts(
    yard: Yard, unsettled: bool
) -> None:
    disk = yard.diary()
    log = yard.log(disk)
    dead = yard.create(log, "one")
    if unsettled:
        dead.close()
    else:
        dead.abandon()
    file = yard.take(log, "one", epoch=2, unsettled=unsettled)
    disk.lines.clear()

    assert [] == await yard.sync(log, file)

    assert "all" == disk.lines[0]


async def test_a_file_that_was_closed_in_order_needs_no_sync_of_its_own(yard: Yard) -> None:
    disk = yard.diary()
    log = yard.log(disk)
    await yard.sync(log, first := yard.create(log, "one"))
    yard.close(log, first)

    await yard.sync(log, yard.take(log, "one", epoch=2))

    assert "all" not in disk.lines


async def test_half_a_commit_that_a_killed_owner_left_is_not_logged(yard: Yard) -> None:
    log = yard.log()
    dead = yard.create(log, "one")
    yard.note(dead, "whole")
    yard.note(dead, "half")
    dead.abandon()
    yard.spoil_last_page(dead)  # the header of its frame is there, not its page
    file = yard.take(log, "one", epoch=2)

    assert [] == await yard.sync(log, file)

    assert ["whole"] == yard.machine_dies_and_redoes("one", had=yard.on_disk())


async def test_a_file_is_abandoned_with_its_wal_as_it_was(yard: Yard) -> None:
    log = yard.log()
    file = yard.create(log, "one")
    yard.note(file, "in the WAL")
    before = yard.on_disk()
    file.begin()
    file.execute("INSERT INTO notes VALUES('never committed', 0)")
    file.abandon()
    log.abandoned(file)

    after = yard.on_disk()

    assert before["one.sqlite"] == after["one.sqlite"]
    assert before["one.sqlite-wal"][0] == after["one.sqlite-wal"][0][: len(before["one.sqlite-wal"][0])]
    assert ["in the WAL"] == yard.notes("one")


# -- several logs ------------------------------------------------------------------------------


async def test_what_is_safe_without_a_segment_is_written_down_before_it_goes(yard: Yard) -> None:
    marked: dict[str, int] = {}

    async def mark(epochs: Any) -> None:
        assert 2 == len(segments(yard.folder))
        marked.update(epochs)

    log = yard.log(mark=mark)
    at_work, closed, other = (yard.create(log, name) for name in ("one", "two", "three"))
    await yard.sync(log, at_work, closed, other)
    yard.close(log, closed)
    await yard.fill(log, other, segments=2)
    async with yard.running(log):
        await yard.settled(log)

    assert {"one": 1, "two": 1} == marked
