"""A folder is taken after its process or its machine has died: what was acknowledged is there again."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import trio

from perdure import WorkflowEntrypoint, WorkflowEvent, WorkflowStep
from perdure.engine.remote import open_remote
from perdure.engine.repair import repair_state
from perdure.storage.check import remove_unless_whole
from perdure.storage.disk import Disk
from perdure.storage.files import create_file
from perdure.storage.records import Durability, Key
from perdure.storage.relay import RelayLog
from perdure.testing import VirtualClock, open_test_runtime

pytestmark = pytest.mark.skipif(not Disk().syncs_file_systems, reason="no relay log on this system")

RAN: list[str] = []
ROWS = "SELECT name, status FROM steps ORDER BY seq"


class Letter(WorkflowEntrypoint[None]):
    async def run(self, event: WorkflowEvent[str], step: WorkflowStep) -> str:
        await step.do("write", lambda: RAN.append(event.payload))
        answer = await step.wait_for_event("answer", type="answer", timeout=None)
        await step.do("read", lambda: RAN.append(f"{event.payload} read"))
        return str(answer.payload)


class Diary(Disk):
    """Counts how often the whole file system was synced before the first file."""

    def __init__(self) -> None:
        super().__init__()
        self.first: list[str] = []

    def sync_descriptor(self, descriptor: int) -> None:
        self.first.append("file")
        super().sync_descriptor(descriptor)

    def sync_file_system(self, path: Path) -> None:
        self.first.append("all")
        super().sync_file_system(path)


@pytest.fixture(autouse=True)
def nothing_ran(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forget what ran before, and keep logs from being settled in the middle of a test on a busy machine."""
    RAN.clear()
    monkeypatch.setitem(RelayLog.__init__.__kwdefaults__ or {}, "idle_s", math.inf)


async def copied(state: Path, name: str) -> Path:
    """Return a copy of a folder that is in use, made by another process."""
    copy = state.with_name(name)
    # A file beside another may go meanwhile: that is no failure.
    await trio.run_process(["cp", "-r", str(state), str(copy)], check=False, capture_stderr=True)
    (copy / "doorbell.sock").unlink(missing_ok=True)
    return copy


async def dead(
    state: Path, name: str = "dead", *, answered: bool = True, durability: Durability = "full"
) -> Path:
    """Return the folder of a process that dies with one letter done, and one that waits or is answered."""
    async with open_test_runtime(
        state, workflows=[Letter], durability=durability, clock=VirtualClock(boot=1), replay="warm"
    ) as runtime:
        done = await runtime.create(Letter, params="done", id="done")
        await done.send_event("answer", "yes")
        assert "yes" == await done.result()
        waits = await runtime.create(Letter, params="waits", id="waits")
        while not await waits.sql("SELECT 1 FROM steps WHERE status = 'waiting'"):
            pass
        if answered:
            await waits.send_event("answer", "late")
            await waits.result()
        return await copied(state, name)


def without_files(state: Path) -> Path:
    """Have a disk that had nothing of the instances' files when the machine died."""
    shutil.rmtree(state / "Letter")
    return state


def with_torn_files(state: Path) -> Path:
    """Have a disk that had half of each file, and nothing of its WAL."""
    for path in (state / "Letter").iterdir():
        if path.suffix != ".sqlite":
            path.unlink()
            continue
        data = path.read_bytes()
        path.write_bytes(data[: len(data) // 2].ljust(len(data), b"\0"))
        os.utime(path, (0, 0))  # the time of its last change is no later than what was synced
    return state


@pytest.mark.parametrize("lose", [without_files, with_torn_files])
@pytest.mark.parametrize("durability", ["full", "process"])
async def test_after_the_machines_death_all_that_was_acknowledged_is_there(
    tmp_path: Path, lose: Callable[[Path], Path], durability: Durability
) -> None:
    state = lose(await dead(tmp_path / "state"))
    RAN.clear()

    async with open_test_runtime(
        state, workflows=[Letter], durability=durability, clock=VirtualClock(boot=2)
    ) as runtime:
        results = [await (await runtime.get(Letter, id_)).result() for id_ in ("done", "waits")]

    assert ["yes", "late"] == results
    assert "waits" not in RAN
    assert [] == [path for path in (state / "relay").iterdir() if path.suffix == ".log"]


# -- without a runtime -------------------------------------------------------------------------


async def test_commands_show_what_was_acknowledged_before_any_runtime_opens(tmp_path: Path) -> None:
    state = without_files(await dead(tmp_path / "state"))

    async with open_remote(state) as remote:
        async with remote.read(Key("Letter", "done")) as reader:
            rows = await reader.fetch(ROWS)
            status = reader.status.status
        united = await remote.read_all("Letter", "SELECT status FROM instance", timeout_s=30)

    assert ("complete", ["write", "answer", "read"]) == (status, [row.name for row in rows])
    assert {"done", "waits"} == {row.instance_id for row in united.rows}
    assert [] == list((state / "relay").iterdir())


@pytest.mark.parametrize("with_catalog", [True, False])
async def test_repair_finds_what_was_acknowledged(tmp_path: Path, with_catalog: bool) -> None:
    state = without_files(await dead(tmp_path / "state"))
    if not with_catalog:
        for path in state.glob("catalog.sqlite*"):
            path.unlink()

    report = await trio.to_thread.run_sync(repair_state, state)

    assert (2, []) == (report.files, report.damaged)
    async with open_test_runtime(state, workflows=[Letter], durability="full") as runtime:
        assert "yes" == await (await runtime.get(Letter, "done")).result()
        assert "late" == await (await runtime.get(Letter, "waits")).result()


# -- within a boot, and between durabilities ---------------------------------------------------


async def test_after_a_processs_death_its_log_is_settled_and_what_it_wrote_is_gone_on_with(
    tmp_path: Path,
) -> None:
    state = await dead(tmp_path / "state")
    assert list((state / "relay").glob("*.log"))
    RAN.clear()
    disk = Diary()

    async with open_test_runtime(
        state, workflows=[Letter], durability="full", clock=VirtualClock(boot=1), disk=disk
    ) as runtime:
        assert "late" == await (await runtime.get(Letter, "waits")).result()

    assert "all" == disk.first[0]
    assert "waits" not in RAN
    assert [] == list((state / "relay").iterdir())


async def test_what_was_written_without_syncs_is_synced_before_full_durability_rests_on_it(
    tmp_path: Path,
) -> None:
    state = await dead(tmp_path / "state", durability="process")
    assert not (state / "relay").exists()
    disk = Diary()

    async with open_test_runtime(
        state, workflows=[Letter], durability="full", clock=VirtualClock(boot=1), disk=disk
    ) as runtime:
        assert "late" == await (await runtime.get(Letter, "waits")).result()

    assert "all" == disk.first[0]


# -- files that were being made ----------------------------------------------------------------


def test_a_file_that_was_being_made_and_is_not_whole_makes_way(tmp_path: Path) -> None:
    garbage, empty, missing = (tmp_path / f"{name}.sqlite" for name in ("garbage", "empty", "missing"))
    garbage.write_bytes(bytes(20_000))
    create_file(empty, disk=Disk(), durable=False)

    for path in (garbage, empty, missing):
        remove_unless_whole(path)

    assert [] == list(tmp_path.iterdir())


async def test_a_file_with_its_instance_in_it_is_kept(tmp_path: Path) -> None:
    state = await dead(tmp_path / "state", answered=False)
    path = state / "Letter" / "waits.sqlite"

    remove_unless_whole(path)

    assert path.exists()
