"""The relay log: one sync for all files of a tick, first the log and then the files, and nothing acknowledged
that is in neither.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import trio
import trio.lowlevel
import trio.testing

from perdure.storage.disk import Disk
from perdure.storage.redo import segments
from perdure.storage.relay_format import IMAGES, TEMPLATE

Yard: TypeAlias = Any  # a fixture's: test folders are no packages


# -- ticks -------------------------------------------------------------------------------------


async def test_one_sync_makes_the_commits_of_many_files_durable(yard: Yard) -> None:
    disk = Disk()
    log = yard.log(disk)
    files = [yard.create(log, f"f{number}") for number in range(7)]
    assert [] == await yard.sync(log, *files)
    before = disk.statistics()
    for file in files:
        yard.note(file, "one")

    assert [] == await yard.sync(log, *files)

    after = disk.statistics()
    assert before.file_syncs + 1 == after.file_syncs
    assert (before.directory_syncs, 0) == (after.directory_syncs, after.file_system_syncs)
    assert 2 == log.statistics().batches
    assert {file.relay.name for file in files} == {entry.name for entry in yard.batches()[-1]}


async def test_a_second_tick_logs_only_what_is_new(yard: Yard) -> None:
    log = yard.log()
    file = yard.create(log, "one")
    await yard.sync(log, file)
    yard.note(file, "two")
    await yard.sync(log, file)
    yard.note(file, "three")
    await yard.sync(log, file)

    first, second, third = yard.batches()

    assert [TEMPLATE, IMAGES] == [entry.kind for entry in first]
    assert (True, False, False) == (first[1].born, second[0].born, third[0].born)
    assert len(first[1].images) > len(second[0].images) == len(third[0].images) == 1


async def test_commits_since_the_last_tick_are_logged_together(yard: Yard) -> None:
    log = yard.log()
    file = yard.create(log, "one")
    for note in range(5):
        yard.note(file, note)
    await yard.sync(log, file)

    assert list(range(5)) == yard.machine_dies_and_redoes("one")


async def test_a_template_stands_once_in_a_segment(yard: Yard) -> None:
    log = yard.log()
    for name in ("one", "two", "three"):
        await yard.sync(log, yard.create(log, name))

    kinds = [entry.kind for batch in yard.batches() for entry in batch]

    assert (1, 3) == (kinds.count(TEMPLATE), kinds.count(IMAGES))


async def test_what_another_program_commits_between_ours_is_logged_too(yard: Yard) -> None:
    log = yard.log()
    file = yard.create(log, "one")
    yard.note(file, "ours")
    await yard.sync(log, file)
    yard.edit("one", "INSERT INTO notes VALUES('theirs', 0)")
    yard.note(file, "ours again")
    await yard.sync(log, file)

    assert ["ours", "theirs", "ours again"] == yard.machine_dies_and_redoes("one")


async def test_a_wal_that_was_started_over_is_logged_as_far_as_it_goes(yard: Yard) -> None:
    log = yard.log()
    file = yard.create(log, "one")
    yard.note(file, "before")
    await yard.sync(log, file)
    yard.checkpoint(log, file)
    yard.note(file, "after")
    await yard.sync(log, file)

    assert ["before", "after"] == yard.machine_dies_and_redoes("one")


# -- segments ----------------------------------------------------------------------------------


async def test_the_first_images_in_another_segment_are_of_the_whole_wal(yard: Yard) -> None:
    log = yard.log()
    first, second = yard.create(log, "one"), yard.create(log, "two")
    for note in range(3):
        yard.note(first, note)
    await yard.sync(log, first, second)
    base = yard.on_disk()
    await yard.fill(log, second, segments=2)
    yard.note(first, "last")
    await yard.sync(log, first)

    entry = yard.batches()[-1][-1]

    assert "one" == entry.name
    (wal, _) = base["one.sqlite-wal"]
    assert len(entry.images) > 1
    assert len(wal) > 0
    segments(yard.folder)[0][0].unlink()
    assert [0, 1, 2, "last"] == yard.machine_dies_and_redoes("one", had=yard.on_disk("one"))


async def test_no_more_segments_are_made_than_allowed_and_each_is_used_again(yard: Yard) -> None:
    log = yard.log(segments_max=3)
    file = yard.create(log, "one")
    async with yard.running(log):
        for note in range(60):
            await yard.write_much(log, file, note)

    assert log.statistics().bytes > 4 * 1024 * 1024
    assert len(list(yard.folder.iterdir())) <= 3
    assert list(range(60)) == yard.machine_dies_and_redoes("one", had=yard.on_disk())


async def test_with_all_segments_waiting_to_be_settled_a_tick_waits(yard: Yard) -> None:
    log = yard.log(segments_max=1)
    file = yard.create(log, "one")
    await yard.sync(log, file)
    done = trio.Event()

    async def tick() -> None:
        for note in range(12):
            yard.note(file, note, size=80_000)
            await yard.sync(log, file)
        done.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(tick)
        while log.statistics().batches < 5:
            await trio.lowlevel.checkpoint()
        await trio.testing.wait_all_tasks_blocked()
        assert not done.is_set()
        nursery.cancel_scope.cancel()


async def test_a_segment_goes_only_when_a_close_under_way_is_over(yard: Yard) -> None:
    log = yard.log()
    file, other = yard.create(log, "one"), yard.create(log, "two")
    await yard.sync(log, file, other)
    log.write_begins(file)
    await yard.fill(log, other, segments=2)
    async with yard.running(log):
        await trio.testing.wait_all_tasks_blocked()
        assert (0, 2) == (log.statistics().settled, log.statistics().segments)
        file.close()
        log.write_ended(file, closed=True)
        await yard.settled(log)

    assert (1, 1) == (log.statistics().settled, log.statistics().segments)


async def test_a_settled_segment_is_found_by_redo_no_more(yard: Yard) -> None:
    log = yard.log()
    file, other = yard.create(log, "one"), yard.create(log, "two")
    await yard.sync(log, file, other)
    await yard.fill(log, other, segments=2)
    assert 2 == len(segments(yard.folder))
    async with yard.running(log):
        await yard.settled(log)

    assert {"two"} == {entry.name for batch in yard.batches() for entry in batch if entry.name}
    assert 1 == len(segments(yard.folder))


async def test_an_older_segment_never_outlives_a_newer_one(yard: Yard) -> None:
    log = yard.log()
    idle, busy = yard.create(log, "one"), yard.create(log, "two")
    await yard.sync(log, idle, busy)
    await yard.fill(log, busy, segments=3)
    yard.note(idle, "last")
    await yard.sync(log, idle)
    await yard.fill(log, busy, segments=4)
    async with yard.running(log):
        await yard.settled(log)
        for note in range(40):  # the same slots are used again, and not in the order of their age
            await yard.write_much(log, busy, note)

    assert ["last"] == yard.machine_dies_and_redoes("one", had=yard.on_disk())


async def test_a_log_that_is_idle_settles_all(yard: Yard) -> None:
    log = yard.log(idle_s=0)
    file = yard.create(log, "one")
    await yard.sync(log, file)
    async with yard.running(log):
        while log.statistics().segments:
            await trio.lowlevel.checkpoint()

    assert [] == segments(yard.folder)
    assert not log.may_write(file)
    yard.note(file, "later")
    await yard.sync(log, file)
    assert ["later"] == yard.machine_dies_and_redoes("one", had=yard.on_disk())


async def test_a_log_that_is_closed_leaves_nothing(yard: Yard) -> None:
    disk = yard.diary()
    log = yard.log(disk)
    file = yard.create(log, "one")
    await yard.sync(log, file)
    yard.close(log, file)
    disk.lines.clear()

    await log.close()

    assert "all" == disk.lines[0]
    assert [] == list(yard.folder.iterdir())


async def test_a_log_that_nothing_was_written_to_makes_no_folder(yard: Yard) -> None:
    await yard.log().close()

    assert not yard.folder.exists()
