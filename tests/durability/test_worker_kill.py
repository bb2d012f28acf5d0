"""Workers that are killed or stopped by the system: the others take over, and no step runs twice.

Each kill here is real. Only what was under way in the very moment may run again, as after any crash;
these steps are over at once, and an instance rests between them.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import trio

from perdure import App, Limits, Runtime, StateLockedError, open_runtime
from perdure.engine.app import load_app, load_module
from perdure.engine.front import Front
from perdure.engine.supervisor import Supervisor, Worker
from perdure.storage.locks import FolderLock

pytestmark = pytest.mark.slow

WORKFLOWS = Path(__file__).resolve().parents[1] / "engine" / "programs" / "shared_workflows.py"
COUNT = 100
STEPS = 4
LOOK_S = 0.02
OWNED = "SELECT id FROM _perdure_instances WHERE id = ? AND (owner = ? OR owner IS NULL)"
Launch = Callable[..., "subprocess.Popen[str]"]
NextLine = Callable[["subprocess.Popen[str]"], str]


@pytest.fixture
def shared() -> ModuleType:
    return load_module(WORKFLOWS)


@pytest.fixture
def shared_app() -> App:
    return load_app(WORKFLOWS)


def supervisor_of(runtime: Runtime) -> Supervisor:
    front: Front = vars(runtime)["_access"]
    return front.supervisor


def ran(lines: Path) -> Counter[str]:
    """Return how often each step ran; a step under way at the kill ran again under the next owner."""
    return Counter(line.rpartition(" ")[0] for line in lines.read_text().splitlines())


def all_steps() -> set[str]:
    return {f"{name} {step}" for name in range(COUNT) for step in range(STEPS)}


async def start(runtime: Runtime, shared: ModuleType, lines: Path) -> list[Any]:
    jobs: list[Any] = [
        {
            "params": shared.Job(lines=str(lines), name=str(number), steps=STEPS, nap_s=0.3),
            "id": str(number),
        }
        for number in range(COUNT)
    ]
    instances: list[Any] = await runtime.create_batch(shared.Counted, jobs)
    return instances


async def until_both_have_some(runtime: Runtime) -> Worker:
    """Return a worker that owns instances, once it does."""
    supervisor = supervisor_of(runtime)
    while True:
        rows = await runtime.sql("SELECT owner, count(*) AS n FROM _perdure_instances WHERE open GROUP BY 1")
        owners = {row.owner: row.n for row in rows}
        if len(owners) == 2 and all(owners.values()):
            return supervisor.running[0]
        await supervisor.changed(LOOK_S)


def has_run_elsewhere(lines: Path, worker: Worker, names: set[str]) -> bool:
    """Whether a step of an instance that the dead worker had has run in another."""
    steps = [line.split() for line in lines.read_text().splitlines()]
    return any(name in names and int(pid) != worker.pid for name, _, pid in steps)


async def test_the_instances_of_a_killed_worker_are_taken_over_at_once(
    tmp_path: Path, shared: ModuleType, shared_app: App, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = tmp_path / "lines"
    lines.touch()
    async with open_runtime(tmp_path / "state", shared_app, workers=2) as runtime:
        instances = await start(runtime, shared, lines)
        worker = await until_both_have_some(runtime)
        owned = await runtime.sql("SELECT id FROM _perdure_instances WHERE open AND owner = ?", worker.number)
        killed_s = time.perf_counter()
        os.kill(worker.pid, signal.SIGKILL)
        names = [row.id for row in owned]
        while await runtime.sql(OWNED, names[0], worker.number):
            await supervisor_of(runtime).changed(LOOK_S / 10)
        claimed_s = time.perf_counter()
        while not has_run_elsewhere(lines, worker, set(names)):
            await supervisor_of(runtime).changed(LOOK_S / 10)
        taken_s = time.perf_counter()
        for instance in instances:
            await instance.result()

    with capsys.disabled():
        claimed_ms, taken_ms = 1000 * (claimed_s - killed_s), 1000 * (taken_s - killed_s)
        sys.stdout.write(
            f" [{len(owned)} instances of a killed worker: claimed by another after {claimed_ms:.0f} ms, the"
            f" first step there, behind what was left of its sleep, after {taken_ms:.0f} ms]"
        )
    assert all_steps() == set(ran(lines))
    doubled = {step for step, times in ran(lines).items() if times > 1}
    assert {step.split()[0] for step in doubled} <= {row.id for row in owned}
    assert max(ran(lines).values()) <= 2


async def test_a_worker_that_the_system_stopped_is_killed_and_taken_over(
    tmp_path: Path, shared: ModuleType, shared_app: App
) -> None:
    lines = tmp_path / "lines"
    limits = Limits(worker_silence_s=2)
    async with open_runtime(tmp_path / "state", shared_app, workers=2, limits=limits) as runtime:
        instances = await start(runtime, shared, lines)
        worker = await until_both_have_some(runtime)
        os.kill(worker.pid, signal.SIGSTOP)
        for instance in instances:
            await instance.result()

        assert worker.gone.is_set()
        assert -signal.SIGKILL == worker.process.returncode
    assert all_steps() == set(ran(lines))


async def test_every_worker_may_be_killed_and_all_goes_on(
    tmp_path: Path, shared: ModuleType, shared_app: App
) -> None:
    lines = tmp_path / "lines"
    async with open_runtime(tmp_path / "state", shared_app, workers=2) as runtime:
        instances = await start(runtime, shared, lines)
        await until_both_have_some(runtime)
        for worker in supervisor_of(runtime).running:
            os.kill(worker.pid, signal.SIGKILL)
        for instance in instances:
            await instance.result()
    assert all_steps() == set(ran(lines))


def test_workers_whose_supervisor_is_killed_park_and_end(
    tmp_path: Path, launch: Launch, next_line: NextLine
) -> None:
    """The folder stays locked until they have ended, and another program goes on from there."""
    state, lines = tmp_path / "state", tmp_path / "lines"
    process = launch("supervisor", state, lines, COUNT, "")
    assert "open" == next_line(process)
    pids = [int(pid) for pid in next_line(process).split()]
    descriptors = [os.pidfd_open(pid) for pid in pids]
    process.kill()
    process.wait()
    wait_for_all(descriptors)

    assert FolderLock.holder(state / "owner.lock") is None
    trio.run(finish, state)
    assert all_steps() == set(ran(lines))
    assert 1 == max(ran(lines).values())


async def finish(state: Path) -> None:
    async with open_runtime(state, load_app(WORKFLOWS)) as runtime:
        for instance in await runtime.list(limit=None):
            await instance.result()


def test_who_comes_before_the_workers_have_ended_is_told_to_wait(
    tmp_path: Path, launch: Launch, next_line: NextLine
) -> None:
    """A step that cannot be stopped holds one of them up, and the folder with it."""
    state, pipe = tmp_path / "state", tmp_path / "pipe"
    os.mkfifo(pipe)
    process = launch("supervisor", state, tmp_path / "lines", 0, pipe)
    assert "open" == next_line(process)
    pids = [int(pid) for pid in next_line(process).split()]
    descriptors = [os.pidfd_open(pid) for pid in pids]
    with pipe.open("w"):  # it opens when the step reads, and the step ends when it closes
        process.kill()
        process.wait()
        with pytest.raises(StateLockedError, match="workers of process .* which has died") as refused:
            FolderLock.acquire(state / "owner.lock")
    wait_for_all(descriptors)

    assert (True, process.pid) == (refused.value.is_orphaned, refused.value.pid)
    FolderLock.acquire(state / "owner.lock").release()


def wait_for_all(descriptors: list[int]) -> None:
    """Wait until the processes have ended."""
    for descriptor in descriptors:
        trio.run(trio.lowlevel.wait_readable, descriptor)
        os.close(descriptor)
