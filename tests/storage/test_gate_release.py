"""A file is let go while somebody waits at its gate: told an error only where something is lost."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio
import trio.testing

from perdure.errors import StorageWriteError
from perdure.storage.disk import Disk
from perdure.storage.files import InstanceFile, create_file, open_file
from perdure.storage.gate import Gate
from perdure.storage.lifecycle import bear
from perdure.storage.records import Birth

BIRTH = Birth(workflow="Letters", id="one", incarnation=1, created_at_ms=0)


class HeldDisk(Disk):
    """A disk whose syncs say that they have begun, and wait until they are let go."""

    def __init__(self) -> None:
        super().__init__()
        self.begun = threading.Event()
        self.let_go = threading.Event()

    def sync_descriptor(self, descriptor: int) -> None:
        self.begun.set()
        self.let_go.wait(10)
        super().sync_descriptor(descriptor)


@pytest.fixture
def disk() -> HeldDisk:
    return HeldDisk()


@pytest.fixture
def file(tmp_path: Path, disk: HeldDisk) -> Iterator[InstanceFile]:
    path = tmp_path / "one.sqlite"
    create_file(path, disk=Disk(), durable=False)
    opened = open_file(path, disk=disk, durability="full")
    yield opened
    opened.close()


@pytest.mark.parametrize("_turn", range(16))  # trio runs ready tasks in random order
async def test_who_came_during_the_last_sync_passes_when_the_file_is_let_go(
    disk: HeldDisk, file: InstanceFile, _turn: int
) -> None:
    gate = Gate(durability="full", threads_max=1)
    bear(file, gate, BIRTH, "null", epoch=1)

    async def owner() -> None:
        await gate.passed(file)
        await gate.release(file)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(gate.run)
        async with trio.open_nursery() as waiting:
            waiting.start_soon(owner)
            await trio.to_thread.run_sync(disk.begun.wait, 10)
            waiting.start_soon(gate.passed, file)
            await trio.testing.wait_all_tasks_blocked()
            disk.let_go.set()
        nursery.cancel_scope.cancel()

    assert gate.is_open(file)


async def test_who_waits_for_a_write_that_is_rolled_back_is_told(disk: HeldDisk, file: InstanceFile) -> None:
    gate = Gate(durability="full", threads_max=1)
    bear(file, gate, BIRTH, "null", epoch=1)

    with pytest.RaisesGroup(StorageWriteError):
        async with trio.open_nursery() as waiting:
            waiting.start_soon(gate.passed, file)
            await trio.testing.wait_all_tasks_blocked()
            await gate.release(file)
