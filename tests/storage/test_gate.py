"""The gate: nothing passes before it is safe, and a tick's files are committed and synced together."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import AsyncGenerator, Iterator
from contextlib import closing
from pathlib import Path

import pytest
import trio
import trio.testing

from perdure.errors import StorageWriteError
from perdure.storage.disk import Disk
from perdure.storage.files import InstanceFile, create_file, open_file
from perdure.storage.gate import Gate
from perdure.storage.lifecycle import Lifecycle, bear
from perdure.storage.records import Birth, Durability


class CountingDisk(Disk):
    """A disk that fails from its `fails_from`-th sync on."""

    def __init__(self, fails_from: int = 1_000) -> None:
        super().__init__()
        self.syncs = 0
        self._fails_from = fails_from

    def sync_descriptor(self, descriptor: int) -> None:
        self.syncs += 1
        if self.syncs >= self._fails_from:
            raise OSError(5, "input/output error")
        super().sync_descriptor(descriptor)


class Yard:
    """Files that share a disk, and what their gate said of them."""

    def __init__(self, folder: Path) -> None:
        self.files: list[InstanceFile] = []
        self.committed: list[InstanceFile] = []
        self.failed: list[tuple[InstanceFile, Exception]] = []
        self._folder = folder

    def gate(self, durability: Durability = "full") -> Gate:
        return Gate(
            durability=durability, threads_max=2, on_commit=self.committed.append,
            on_failure=lambda file, error: self.failed.append((file, error)),
        )  # fmt: skip

    def open(self, disk: Disk) -> InstanceFile:
        path = self._folder / f"{len(self.files)}.sqlite"
        create_file(path, disk=Disk(), durable=False)
        file = open_file(path, disk=disk, durability="full")
        self.files.append(file)
        return file


@pytest.fixture
def yard(tmp_path: Path) -> Iterator[Yard]:
    yard = Yard(tmp_path)
    yield yard
    for file in yard.files:
        file.close()


def write(gate: Gate, file: InstanceFile) -> None:
    """Write something into a file: its birth at first, another epoch later."""
    if file.generation == 0 and not file.in_transaction:
        bear(file, gate, Birth(workflow="W", id="i", incarnation=1, created_at_ms=0), None, epoch=1)
    else:
        gate.touch(file)
        file.execute("UPDATE _perdure_instance SET replays = replays + 1")


@contextlib.asynccontextmanager
async def running(gate: Gate) -> AsyncGenerator[None]:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(gate.run)
        yield
        nursery.cancel_scope.cancel()


def replays(file: InstanceFile) -> int:
    """Return what another process sees."""
    with closing(sqlite3.connect(file.path)) as connection:
        count: int = connection.execute("SELECT replays FROM instance").fetchone()[0]
        return count


# -- passing -----------------------------------------------------------------------------------


async def test_who_has_passed_finds_everything_committed_and_synced(yard: Yard) -> None:
    gate, disk = yard.gate(), CountingDisk()
    file = yard.open(disk)
    async with running(gate):
        write(gate, file)
        assert not gate.is_open(file)
        await gate.passed(file)
        assert gate.is_open(file)
        write(gate, file)
        await gate.passed(file)
        assert (1, 2) == (replays(file), disk.syncs)


async def test_with_durability_process_nothing_is_synced(yard: Yard) -> None:
    gate, disk = yard.gate("process"), CountingDisk()
    file = yard.open(disk)
    async with running(gate):
        for _ in range(3):
            write(gate, file)
            await gate.passed(file)
        assert (2, 0) == (replays(file), disk.syncs)
        assert gate.is_open(file)


async def test_where_nothing_was_written_the_gate_is_open(yard: Yard) -> None:
    gate = yard.gate()
    file = yard.open(CountingDisk())
    assert gate.is_open(file)
    with trio.fail_after(1):
        await gate.passed(file)


async def test_what_nobody_waits_for_is_committed_and_synced_only_when_somebody_asks(yard: Yard) -> None:
    gate, disk = yard.gate(), CountingDisk()
    file = yard.open(disk)
    async with running(gate):
        write(gate, file)
        await trio.testing.wait_all_tasks_blocked()
        assert (0, 0, 1) == (replays(file), disk.syncs, gate.statistics().commits)
        assert not gate.is_open(file)
        await gate.passed(file)
        assert (1, 1) == (disk.syncs, gate.statistics().commits)


async def test_all_that_is_written_in_one_tick_is_one_commit_for_each_file(yard: Yard) -> None:
    gate, disk = yard.gate(), CountingDisk()
    files = [yard.open(disk) for _ in range(5)]

    async def use(file: InstanceFile) -> None:
        for _ in range(3):
            write(gate, file)
        await gate.passed(file)

    async with running(gate):
        async with trio.open_nursery() as nursery:
            for file in files:
                for _ in range(2):
                    nursery.start_soon(use, file)
        statistics = gate.statistics()

    assert [5] * 5 == [replays(file) for file in files]
    assert (5, 5) == (statistics.commits, disk.syncs)
    assert 2 >= statistics.rounds


async def test_those_who_wait_for_one_file_share_its_sync(yard: Yard) -> None:
    gate, disk = yard.gate(), CountingDisk()
    file = yard.open(disk)
    async with running(gate):
        write(gate, file)
        async with trio.open_nursery() as nursery:
            for _ in range(10):
                nursery.start_soon(gate.passed, file)
    assert 1 == disk.syncs


async def test_a_sync_under_way_is_finished_though_the_gate_is_cancelled(yard: Yard) -> None:
    gate, disk = yard.gate(), CountingDisk()
    file = yard.open(disk)
    async with running(gate):
        write(gate, file)
        with trio.move_on_after(0):
            await gate.passed(file)
    assert disk.syncs == gate.statistics().syncs


# -- failing -----------------------------------------------------------------------------------


async def test_a_failed_sync_is_told_to_all_who_wait_and_to_no_other_file(yard: Yard) -> None:
    gate = yard.gate()
    bad, good = yard.open(CountingDisk(fails_from=1)), yard.open(CountingDisk())
    told: list[str] = []

    async def wait(file: InstanceFile) -> None:
        try:
            await gate.passed(file)
        except StorageWriteError as error:
            told.append(str(error))

    async with running(gate):
        write(gate, bad)
        write(gate, good)
        async with trio.open_nursery() as nursery:
            for file in (bad, bad, good):
                nursery.start_soon(wait, file)
        with pytest.raises(StorageWriteError):
            await gate.passed(bad)
        with pytest.raises(StorageWriteError):
            gate.touch(bad)

    assert 2 == len(told)
    assert "input/output error" in told[0]
    assert {bad} == {file for file, _ in yard.failed}
    assert (False, True) == (gate.is_open(bad), gate.is_open(good))


async def test_a_failed_statement_drops_the_ticks_writes_and_is_told_to_who_waits(yard: Yard) -> None:
    gate = yard.gate()
    file = yard.open(CountingDisk())
    async with running(gate):
        write(gate, file)
        await gate.passed(file)
        write(gate, file)
        with pytest.raises(StorageWriteError):
            file.execute("INSERT INTO _perdure_messages (seq) VALUES (1)")
        with pytest.raises(StorageWriteError):
            await gate.passed(file)
        await trio.testing.wait_all_tasks_blocked()

    assert 0 == replays(file)
    assert [file] == [failed for failed, _ in yard.failed]


async def test_a_file_taken_over_is_refused_at_the_first_touch(yard: Yard) -> None:
    gate = yard.gate()
    file = yard.open(CountingDisk())
    async with running(gate):
        write(gate, file)
        await gate.passed(file)
        with closing(sqlite3.connect(file.path)) as other:
            other.execute("UPDATE _perdure_instance SET epoch = 2")
            other.commit()
        with pytest.raises(StorageWriteError, match="taken over"):
            Lifecycle.run_again(lifecycle_of(gate, file))
    assert 0 == replays(file)


def lifecycle_of(gate: Gate, file: InstanceFile) -> Lifecycle:
    """Return a lifecycle that still believes in the epoch of before."""
    lifecycle = Lifecycle(file, gate)
    file.epoch = 1
    return lifecycle


# -- what is told ------------------------------------------------------------------------------


async def test_each_commit_is_told_in_the_loop(yard: Yard) -> None:
    gate = yard.gate()
    files = [yard.open(CountingDisk()) for _ in range(2)]
    async with running(gate):
        for file in files:
            write(gate, file)
            await gate.passed(file)
        assert gate.statistics().waiting_files == 0
        assert not gate.busy
    assert files == yard.committed
