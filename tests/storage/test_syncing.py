"""The gate's threads: every file is synced or told to have failed, and no thread outlives them."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio
import trio.testing

from perdure.storage.disk import Disk
from perdure.storage.files import InstanceFile, create_file, open_file
from perdure.storage.syncing import FileSync
from perdure.storage.threads import open_threads


class SlowDisk(Disk):
    """Syncs only when it is let, and notes in which threads."""

    def __init__(self) -> None:
        super().__init__()
        self.let = threading.Event()
        self.threads: set[str] = set()

    def sync_descriptor(self, descriptor: int) -> None:
        self.let.wait()
        self.threads.add(threading.current_thread().name)
        super().sync_descriptor(descriptor)


class BadDisk(Disk):
    def sync_descriptor(self, descriptor: int) -> None:
        raise OSError(5, "Input/output error")


class MisbehavedDisk(Disk):
    def sync_descriptor(self, descriptor: int) -> None:
        raise RuntimeError("a defect")


class Folder:
    """Makes open files on a disk that a test chooses."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.files: list[InstanceFile] = []

    def open(self, disk: Disk) -> InstanceFile:
        path = self._path / f"{len(self.files)}.sqlite"
        create_file(path, disk=Disk(), durable=False)
        file = open_file(path, disk=disk, durability="full")
        file.begin()
        file.commit()
        file.connection.execute("PRAGMA user_version")  # the WAL is there once the file has been read
        self.files.append(file)
        return file


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Folder]:
    found = Folder(tmp_path)
    yield found
    for file in found.files:
        file.close()


def sync_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("perdure sync")]


async def test_files_are_spread_over_no_more_threads_than_allowed(folder: Folder) -> None:
    disk = SlowDisk()
    disk.let.set()
    with open_threads("perdure sync", 3) as threads:
        assert [] == await FileSync().sync([folder.open(disk) for _ in range(7)], threads)
        assert 3 == len(sync_threads())

    assert 7 == disk.statistics().file_syncs


async def test_a_thread_is_started_when_it_is_needed(folder: Folder) -> None:
    with open_threads("perdure sync", 3) as threads:
        assert [] == sync_threads()
        await FileSync().sync([folder.open(Disk())], threads)
        assert 1 == len(sync_threads())


async def test_a_file_that_cannot_be_synced_is_told_apart(folder: Folder) -> None:
    good, bad = folder.open(Disk()), folder.open(BadDisk())
    with open_threads("perdure sync", 1) as threads:
        ((file, error),) = await FileSync().sync([bad, good], threads)
        assert [] == await FileSync().sync([good], threads)

    assert bad is file
    assert 5 == error.errno


async def test_a_defect_in_a_thread_is_raised_in_the_loop_and_hangs_nobody(folder: Folder) -> None:
    broken, good = folder.open(MisbehavedDisk()), folder.open(Disk())
    with open_threads("perdure sync", 1) as threads:
        with pytest.raises(RuntimeError, match="a defect"):
            await FileSync().sync([broken], threads)
        assert [] == await FileSync().sync([good], threads)


async def test_a_sync_under_way_is_waited_for_when_its_task_is_cancelled(folder: Folder) -> None:
    disk = SlowDisk()
    returned = False
    with open_threads("perdure sync", 1) as threads:
        async with trio.open_nursery() as nursery:

            async def sync() -> None:
                nonlocal returned
                await FileSync().sync([folder.open(disk)], threads)
                returned = True

            nursery.start_soon(sync)
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
            disk.let.set()

    assert returned
    assert {"perdure sync 0"} == disk.threads


async def test_no_thread_is_left(folder: Folder) -> None:
    with open_threads("perdure sync", 2) as threads:
        await FileSync().sync([folder.open(Disk()), folder.open(Disk())], threads)

    assert [] == sync_threads()
