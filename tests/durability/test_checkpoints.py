"""A file that stays open is checkpointed: its WAL stays short, and starts over without a risk."""

from __future__ import annotations

import os
import re
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

import perdure
from perdure.storage.disk import Disk
from perdure.storage.files import OPENING, InstanceFile, create_file, open_file
from perdure.storage.gate import Gate
from perdure.storage.lifecycle import bear
from perdure.storage.records import Birth
from perdure.storage.schema import PAGE_BYTES
from perdure.testing import open_test_runtime

WAL_PAGES_MAX = 20
STEPS = 300
BIRTH = Birth(workflow="Long", id="one", incarnation=1, created_at_ms=0)


async def double(n: int) -> int:
    return 2 * n


class Long(perdure.WorkflowEntrypoint[Path]):
    """Runs many steps and returns how long its WAL is before it rests."""

    async def run(self, event: perdure.WorkflowEvent[None], step: perdure.WorkflowStep) -> int:
        for n in range(STEPS):
            assert 2 * n == await step.do(f"double {n}", double, n)
        return await step.do("look", self.wal_bytes)

    async def wal_bytes(self) -> int:
        return self.env.stat().st_size


@pytest.mark.parametrize("durability", ["full", "process"])
async def test_the_wal_of_a_long_run_stays_short(tmp_path: Path, durability: Any) -> None:
    wal = tmp_path / "Long" / "one.sqlite-wal"
    limits = perdure.Limits(wal_pages_max=WAL_PAGES_MAX, unwritten_s=0)
    async with open_test_runtime(
        tmp_path, workflows=[Long], env=wal, limits=limits, durability=durability, replay="warm"
    ) as runtime:
        instance = await runtime.create(Long, id="one")

        assert await instance.result() < 4 * WAL_PAGES_MAX * PAGE_BYTES
        assert runtime.statistics().gate.checkpoints > 5


class HeldFile(InstanceFile):
    """A file whose checkpoint says that it has begun, and waits until it is let go."""

    def __init__(self, file: InstanceFile) -> None:
        super().__init__(file.path, file.connection, disk=Disk(), durability="full")
        self.begun = threading.Event()
        self.let_go = threading.Event()

    def checkpoint(self) -> None:
        self.begun.set()
        self.let_go.wait(10)
        super().checkpoint()


async def test_a_file_is_not_closed_while_it_is_checkpointed(tmp_path: Path) -> None:
    path = tmp_path / "one.sqlite"
    create_file(path, disk=Disk(), durable=False)
    file = HeldFile(open_file(path, disk=Disk(), durability="full"))
    gate = Gate(durability="full", threads_max=2, checkpoint_bytes=0)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(gate.run)
        bear(file, gate, BIRTH, None, epoch=1)
        nursery.start_soon(gate.passed, file)
        await trio.to_thread.run_sync(file.begun.wait)
        released = trio.Event()

        async def release() -> None:
            await gate.release(file)
            released.set()

        nursery.start_soon(release)
        await trio.testing.wait_all_tasks_blocked()
        assert not released.is_set()
        assert gate.busy

        file.let_go.set()
        await released.wait()
        file.close()
        nursery.cancel_scope.cancel()
    assert ["one.sqlite"] == os.listdir(tmp_path)  # noqa: PTH208 - names are what is compared


def test_the_header_with_which_a_wal_starts_over_is_synced_before_its_frames(
    tmp_path: Path, strace: str, launch: Callable[..., subprocess.Popen[str]]
) -> None:
    """Else a power failure could leave new frames under the old header, and old ones be played back."""
    wal = tmp_path / "state" / "Job" / "one.sqlite-wal"
    trace = tmp_path / "trace"
    tracer = (strace, "-f", "-qq", "-P", str(wal), "-e", "trace=pwrite64,fdatasync", "-o", str(trace))
    _, errors = launch("strike", tmp_path / "state", "checkpoint", 0, "--by-file", under=tracer).communicate()
    calls = [line for line in trace.read_text("utf-8").splitlines() if not re.search(r"resumed>", line)]
    headers = [n for n, line in enumerate(calls) if re.search(r"pwrite64\(\d+, .*, 32, 0\)", line)]

    assert len(headers) > 2, errors
    assert [True] * (len(headers) - 1) == ["fdatasync" in calls[n + 1] for n in headers[1:]]
    assert "PRAGMA synchronous=OFF" in OPENING, (
        "the first header of a WAL needs no sync: there are no old frames"
    )
