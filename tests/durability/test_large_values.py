"""Large values: written once, into a file on disk, which goes on while they are moved out of its WAL."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.lowlevel
import trio.testing

import perdure
from perdure.storage.codec import Codec
from perdure.storage.disk import Disk
from perdure.storage.files import InstanceFile, create_file, open_file
from perdure.storage.gate import HELD_BYTES, LARGE_BYTES, Gate
from perdure.storage.journal import Journal
from perdure.storage.lifecycle import bear
from perdure.storage.records import Birth
from perdure.storage.track import DIRECT_BYTES
from perdure.storage.unwritten import MemoryFiles
from perdure.testing import open_test_runtime

BIRTH = Birth(workflow="Letters", id="one", incarnation=1, created_at_ms=0)
TEXT = "tide \n潮" * (DIRECT_BYTES // 4)


class HeldFile(InstanceFile):
    """A file whose checkpoints say that they have begun, and wait until they are let go."""

    def __init__(self, path: Path) -> None:
        create_file(path, disk=Disk(), durable=False)
        file = open_file(path, disk=Disk(), durability="full")
        super().__init__(path, file.connection, disk=Disk(), durability="full")
        self.begun = threading.Event()
        self.let_go = threading.Event()

    def checkpoint(self) -> None:
        self.begun.set()
        self.let_go.wait(10)
        super().checkpoint()


class Yard:
    """A held file, born, and its gate."""

    def __init__(self, folder: Path) -> None:
        self.file = HeldFile(folder / "one.sqlite")
        self.gate = Gate(durability="full", threads_max=2)

    async def commit(self, large_bytes: int = 0) -> None:
        """Commit something as if so many bytes of large values were in it."""
        self.gate.touch(self.file)
        self.file.execute("UPDATE _perdure_instance SET replays = replays + 1")
        self.file.large_bytes += large_bytes
        await self.gate.passed(self.file)

    async def begun(self) -> None:
        """Return when a checkpoint has begun."""
        assert await trio.to_thread.run_sync(self.file.begun.wait, 10)

    async def ended(self) -> None:
        """Let the checkpoint go, and return when it has ended and nothing else is due."""
        self.file.let_go.set()
        while self.gate.busy:
            await trio.lowlevel.checkpoint()
        self.file.begun.clear()
        self.file.let_go.clear()


@contextlib.asynccontextmanager
async def opened(folder: Path) -> AsyncGenerator[Yard]:
    yard = Yard(folder)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(yard.gate.run)
        bear(yard.file, yard.gate, BIRTH, None, epoch=1)
        await yard.gate.passed(yard.file)
        try:
            yield yard
        finally:
            yard.file.let_go.set()
            with trio.CancelScope(shield=True):
                await yard.gate.release(yard.file)
            yard.file.close()
        nursery.cancel_scope.cancel()


async def test_a_file_goes_on_while_large_values_are_moved_out_of_its_wal(tmp_path: Path) -> None:
    async with opened(tmp_path) as yard:
        await yard.commit(LARGE_BYTES + 1)
        await yard.begun()

        await yard.commit()

        assert yard.gate.busy
        assert 0 == yard.gate.statistics().checkpoints


async def test_a_file_is_held_once_its_wal_is_long(tmp_path: Path) -> None:
    async with opened(tmp_path) as yard, trio.open_nursery() as nursery:
        passed = trio.Event()

        async def commit() -> None:
            await yard.commit(HELD_BYTES + 1)
            passed.set()

        nursery.start_soon(commit)
        await yard.begun()
        await trio.testing.wait_all_tasks_blocked()
        assert not passed.is_set()

        yard.file.let_go.set()
        await passed.wait()

        assert 0 == yard.file.large_bytes


async def test_no_checkpoint_begins_that_could_have_nothing_to_move(tmp_path: Path) -> None:
    """SQLite before 3.51.3 can lose frames where such a one meets the commit that starts the WAL over."""
    async with opened(tmp_path) as yard:
        await yard.commit(LARGE_BYTES + 1)
        await yard.begun()
        await yard.commit(LARGE_BYTES + 1)  # the checkpoint under way may move this already
        await yard.ended()

        await yard.commit()
        assert not yard.file.begun.is_set()
        await yard.commit(LARGE_BYTES + 1)
        await yard.begun()


async def test_a_file_is_not_released_while_large_values_are_moved(tmp_path: Path) -> None:
    async with opened(tmp_path) as yard:
        await yard.commit(LARGE_BYTES + 1)
        await yard.begun()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(yard.gate.release, yard.file)
            await trio.testing.wait_all_tasks_blocked()
            assert yard.gate.busy

            yard.file.let_go.set()
        assert 1 == yard.gate.statistics().checkpoints


def test_a_file_in_memory_is_written_before_a_large_value_goes_into_it(tmp_path: Path) -> None:
    gate = Gate(durability="process", threads_max=1)
    file = MemoryFiles(disk=Disk(), durability="process").make(tmp_path / "Letters" / "one.sqlite")
    bear(file, gate, BIRTH, None, epoch=1)
    journal = Journal(file, gate)
    step = journal.start("do", "write", 1, at_ms=1)
    file.commit()
    stored, _ = Codec().coder(str).record_result(TEXT)

    journal.complete(step, stored, at_ms=2)

    assert file.unwritten is None
    assert file.path.stat().st_size < DIRECT_BYTES
    file.commit()
    journal.load()
    record = journal.take("do", "write", 1)
    assert record is not None
    assert TEXT == Codec().coder(str).decode(journal.output(record))
    file.close()


@pytest.mark.parametrize("replay", ["warm", "always"])
@pytest.mark.parametrize("durability", ["full", "process"])
@pytest.mark.parametrize("value", [TEXT, "a" * len(TEXT), TEXT.encode()], ids=["text", "ascii", "bytes"])
async def test_large_results_come_back_the_same_whatever_they_are(
    tmp_path: Path, replay: Any, durability: Any, value: str | bytes
) -> None:
    async def write() -> str | bytes:
        return value

    class Letters(perdure.WorkflowEntrypoint):
        async def run(self, event: perdure.WorkflowEvent[None], step: perdure.WorkflowStep) -> list[bool]:
            found = [await step.do("write", write, key=n, returns=type(value)) == value for n in range(3)]
            await step.sleep("long enough to hibernate", "1 hour")
            return found

    async with open_test_runtime(
        tmp_path, workflows=[Letters], replay=replay, durability=durability
    ) as runtime:
        instance = await runtime.create(Letters)

        assert [True, True, True] == await instance.result()
        rows = await instance.sql("SELECT typeof(output) AS kind, output FROM steps WHERE name LIKE 'write%'")
    kind = "blob" if isinstance(value, bytes) else "text"
    assert [kind] * 3 == [row.kind for row in rows]
    if isinstance(value, bytes):
        assert [value] * 3 == [row.output for row in rows]
