"""Law 2, the output gate: what leaves an actor rests on writes that are committed and on disk.

A power cut is played by a disk that keeps of each segment of the relay log, or of a WAL that is
synced by itself, what it held when it was last synced: the file that redo makes of that is the one
that the machine would find when it comes up again.
"""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Awaitable, Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from perdure import WorkflowEntrypoint, WorkflowEvent, WorkflowStep, open_runtime
from perdure.actors.host import Replay
from perdure.engine.loop import GameLoop
from perdure.storage.disk import Disk
from perdure.storage.gate import Gate
from perdure.storage.query import QueryHost
from perdure.storage.records import Key
from perdure.storage.redo import redo
from perdure.storage.relay_format import read_header
from perdure.storage.schema import template

Broken = Callable[[type, str, Callable[..., Any]], None]
WAL_MAGIC = (b"\x37\x7f\x06\x82", b"\x37\x7f\x06\x83")


class CutDisk(Disk):
    """A disk whose power may be cut: `rows` asks what would be there. With `lying` it syncs nothing."""

    def __init__(self, folder: Path, *, lying: bool = False) -> None:
        super().__init__()
        self.go_on = threading.Event()
        self.go_on.set()
        self._folder = folder
        self._lying = lying
        self._wal = b""
        self._segments: dict[int, bytes] = {}

    def sync_descriptor(self, descriptor: int) -> None:
        self.go_on.wait()
        super().sync_descriptor(descriptor)
        if self._lying:
            return
        try:
            data = os.pread(descriptor, os.fstat(descriptor).st_size, 0)
        except OSError:  # the new file itself, open for writing only
            return
        if data[:4] in WAL_MAGIC:
            self._wal = data
        elif read_header(data) is not None:
            self._segments[os.fstat(descriptor).st_ino] = data

    def rows(self, query: str, *bindings: object) -> list[Any]:
        path = self._folder / "found.sqlite"
        for suffix, data in (("", template()), ("-wal", self._wal)):
            Path(f"{path}{suffix}").write_bytes(data)
        Path(f"{path}-shm").unlink(missing_ok=True)
        relay = self._folder / "found-relay"
        relay.mkdir(exist_ok=True)
        for number, data in self._segments.items():
            (relay / f"1.1.{number}.log").write_bytes(data)

        def locate(_name: str, _incarnation: int) -> tuple[Path, int]:
            return path, 0

        redo(relay, self._folder, Disk(), boot=0, locate=locate)
        with closing(sqlite3.connect(path)) as connection:
            return connection.execute(query, bindings).fetchall()


@pytest.fixture
def disk(tmp_path: Path) -> CutDisk:
    return CutDisk(tmp_path)


@pytest.fixture
def lying_disk(tmp_path: Path) -> CutDisk:
    return CutDisk(tmp_path, lying=True)


def waiter(found: list[Any], disk: CutDisk, arrived: trio.Event) -> type[WorkflowEntrypoint]:
    """Return a workflow that looks at the disk from inside a step, and then waits for an event."""

    async def look() -> str:
        found.extend(disk.rows("SELECT name, status, attempt FROM _perdure_steps WHERE kind = 'do'"))
        return "looked"

    class Waiter(WorkflowEntrypoint):
        async def run(self, event: WorkflowEvent[Any], step: WorkflowStep) -> str:
            await step.do("look", look)
            await step.random("nobody waits for this row")
            arrived.set()
            await step.wait_for_event("go", type="go", timeout=None)
            return "gone"

    return Waiter


# -- the checks, one for each thing that leaves ------------------------------------------------


async def check_the_start_of_a_function(folder: Path, replay: Replay, disk: CutDisk) -> None:
    found: list[Any] = []
    arrived = trio.Event()
    workflow = waiter(found, disk, arrived)
    async with open_runtime(folder, workflows=[workflow], replay=replay, disk=disk) as runtime:
        await runtime.create(workflow, id="a")
        await arrived.wait()
    assert [("look", "running", 1)] == found


async def check_an_acknowledged_event(folder: Path, replay: Replay, disk: CutDisk) -> None:
    arrived = trio.Event()
    workflow = waiter([], disk, arrived)
    async with open_runtime(folder, workflows=[workflow], replay=replay, disk=disk) as runtime:
        instance = await runtime.create(workflow, id="a")
        await arrived.wait()
        await instance.send_event("other", {"n": 1})
        assert [("other", '{"n":1}')] == disk.rows("SELECT type, payload FROM events")


async def check_an_acknowledged_command(folder: Path, replay: Replay, disk: CutDisk) -> None:
    arrived = trio.Event()
    workflow = waiter([], disk, arrived)
    async with open_runtime(folder, workflows=[workflow], replay=replay, disk=disk) as runtime:
        instance = await runtime.create(workflow, id="a")
        await arrived.wait()
        await trio.testing.wait_all_tasks_blocked()
        await instance.pause(who="ada")
        assert [("pause", "ada")] == disk.rows("SELECT name, actor FROM _perdure_messages")
        assert [("paused",)] == disk.rows("SELECT status FROM instance")


async def check_a_status(folder: Path, replay: Replay, disk: CutDisk) -> None:
    arrived = trio.Event()
    workflow = waiter([], disk, arrived)
    async with open_runtime(folder, workflows=[workflow], replay=replay, disk=disk) as runtime:
        instance = await runtime.create(workflow, id="a")
        await arrived.wait()
        await trio.testing.wait_all_tasks_blocked()
        assert "waiting" == (await instance.status()).status
        assert [("go", "waiting")] == disk.rows("SELECT name, status FROM steps WHERE kind = 'event'")


async def check_rows(folder: Path, replay: Replay, disk: CutDisk) -> None:
    arrived = trio.Event()
    workflow = waiter([], disk, arrived)
    query = "SELECT seq, name, status FROM steps ORDER BY seq"
    async with open_runtime(folder, workflows=[workflow], replay=replay, disk=disk) as runtime:
        instance = await runtime.create(workflow, id="a")
        await arrived.wait()
        await trio.testing.wait_all_tasks_blocked()
        rows = [tuple(row) for row in await instance.sql(query)]
        assert 3 == len(rows)
        assert rows == disk.rows(query)


async def check_a_result(folder: Path, replay: Replay, disk: CutDisk) -> None:
    arrived = trio.Event()
    workflow = waiter([], disk, arrived)
    async with open_runtime(folder, workflows=[workflow], replay=replay, disk=disk) as runtime:
        instance = await runtime.create(workflow, id="a")
        await instance.send_event("go")
        assert "gone" == await instance.result()
        assert [("complete", '"gone"')] == disk.rows("SELECT status, output FROM instance")


class Speaker(WorkflowEntrypoint):
    """Writes a chunk to a stream that stays open."""

    async def run(self, event: WorkflowEvent[Any], step: WorkflowStep) -> None:
        async with step.writable("tokens") as out:
            await out.write("high water")
            await step.wait_for_event("go", type="go", timeout=None)


async def check_a_chunk(folder: Path, replay: Replay, disk: CutDisk) -> None:
    async with open_runtime(folder, workflows=[Speaker], replay=replay, disk=disk) as runtime:
        instance = await runtime.create(Speaker, id="a")
        assert "high water" == await anext(instance.stream("tokens"))
        assert [(0, '"high water"')] == disk.rows("SELECT idx, chunk FROM streams")


Check = Callable[[Path, Replay, CutDisk], Awaitable[None]]
CHECKS = (
    check_the_start_of_a_function, check_an_acknowledged_event, check_an_acknowledged_command, check_a_status,
    check_rows, check_a_result, check_a_chunk,
)  # fmt: skip


@pytest.mark.parametrize("check", CHECKS)
async def test_nothing_leaves_before_it_is_on_disk(
    check: Check, folder: Path, replay: Replay, disk: CutDisk
) -> None:
    await check(folder, replay, disk)


@pytest.mark.parametrize("check", CHECKS)
async def test_each_check_fails_with_a_sync_that_does_nothing(
    check: Check, folder: Path, replay: Replay, lying_disk: CutDisk
) -> None:
    with pytest.raises((AssertionError, sqlite3.Error)):
        await check(folder, replay, lying_disk)


@pytest.mark.parametrize("check", CHECKS)
async def test_each_check_fails_with_a_gate_that_opens_at_once(
    check: Check, folder: Path, replay: Replay, disk: CutDisk, broken: Broken
) -> None:
    async def open_at_once(_gate: Gate, _file: object) -> None:
        await trio.lowlevel.checkpoint()

    broken(Gate, "passed", open_at_once)
    broken(Gate, "is_open", lambda *_: True)

    with pytest.raises((AssertionError, sqlite3.Error)):
        await check(folder, replay, disk)


# -- what is written while the answer is on its way ----------------------------------------------


async def check_rows_of_a_moment_ago(folder: Path, disk: CutDisk, broken: Broken) -> None:
    """Have an event committed between the moment when `sql` passes the gate and the one when it reads."""
    arrived = trio.Event()
    workflow = waiter([], disk, arrived)
    fetch = QueryHost.fetch
    async with trio.open_nursery() as nursery:

        async def fetch_later(host: QueryHost, *args: Any, **options: Any) -> list[Any]:
            disk.go_on.clear()
            nursery.start_soon(instance.send_event, "late")
            await trio.testing.wait_all_tasks_blocked()  # it is committed and waits for the disk
            rows = await fetch(host, *args, **options)
            nursery.start_soon(trio.to_thread.run_sync, disk.go_on.set)
            return rows

        async with open_runtime(folder, workflows=[workflow], disk=disk) as runtime:
            instance = await runtime.create(workflow, id="a")
            await arrived.wait()
            await trio.testing.wait_all_tasks_blocked()
            broken(QueryHost, "fetch", fetch_later)
            rows = [tuple(row) for row in await instance.sql("SELECT type FROM events")]
            assert [("late",)] == rows
            assert rows == disk.rows("SELECT type FROM events")


async def test_rows_are_on_disk_though_they_were_written_a_moment_ago(
    folder: Path, disk: CutDisk, broken: Broken
) -> None:
    await check_rows_of_a_moment_ago(folder, disk, broken)


async def test_the_moment_check_fails_when_nobody_asks_the_gate_afterwards(
    folder: Path, disk: CutDisk, broken: Broken
) -> None:
    asked: list[Key] = []

    async def synced(_loop: GameLoop, key: Key) -> None:
        asked.append(key)

    broken(GameLoop, "synced", synced)

    with pytest.RaisesGroup(AssertionError):
        await check_rows_of_a_moment_ago(folder, disk, broken)
    assert [Key(workflow="Waiter", id="a")] == asked


# -- without syncs -----------------------------------------------------------------------------


async def check_a_function_starts_after_the_commit(folder: Path, replay: Replay) -> None:
    found: list[Any] = []

    async def look() -> None:
        with closing(sqlite3.connect(folder / "Look" / "a.sqlite")) as connection:
            found.extend(connection.execute("SELECT name, status FROM steps"))

    class Look(WorkflowEntrypoint):
        async def run(self, event: WorkflowEvent[Any], step: WorkflowStep) -> None:
            await step.do("look", look)

    disk = Disk()
    async with open_runtime(
        folder, workflows=[Look], replay=replay, durability="process", disk=disk
    ) as runtime:
        instance = await runtime.create(Look, id="a")
        await instance.result()

    assert [("look", "running")] == found
    assert 0 == disk.statistics().file_syncs


async def test_with_durability_process_a_function_starts_after_the_commit(
    folder: Path, replay: Replay
) -> None:
    await check_a_function_starts_after_the_commit(folder, replay)


async def test_the_commit_check_fails_with_a_gate_that_opens_at_once(folder: Path, broken: Broken) -> None:
    async def open_at_once(_gate: Gate, _file: object) -> None:
        return

    broken(Gate, "passed", open_at_once)

    with pytest.raises(AssertionError):
        await check_a_function_starts_after_the_commit(folder, "warm")
