"""Law 9 under two workers: an instance is one process's at a time, and is taken over from the dead alone."""

from __future__ import annotations

import os
import signal
from collections import Counter
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import trio

from perdure import Runtime, open_runtime
from perdure.actors.host import Replay
from perdure.engine.app import load_app, load_module
from perdure.engine.front import Front
from perdure.engine.messages import Look
from perdure.engine.supervisor import Supervisor, Worker

pytestmark = pytest.mark.slow

PROGRAMS = Path(__file__).parent / "programs"
COUNT = 30


@pytest.fixture
def shared() -> ModuleType:
    return load_module(PROGRAMS / "owned_workflows.py")


def supervisor_of(runtime: Runtime) -> Supervisor:
    front: Front = vars(runtime)["_access"]
    return front.supervisor


def opened(folder: Path, replay: Replay) -> Any:
    app = load_app(PROGRAMS / "owned_workflows.py")
    return open_runtime(folder, app, workers=2, replay=replay, durability="process")


# -- one owner at a time -----------------------------------------------------------------------


async def check_one_owner_at_a_time(folder: Path, replay: Replay, shared: ModuleType) -> None:
    """Two workers claim from one queue: each step of each instance runs once, in one of them."""
    lines = folder.parent / "lines"
    async with opened(folder, replay) as runtime:
        jobs: list[Any] = [{"id": str(number), "params": str(lines)} for number in range(COUNT)]
        async with trio.open_nursery() as nursery:
            for instance in await runtime.create_batch(shared.Owned, jobs):
                nursery.start_soon(instance.result)
    steps = Counter(line.rpartition(" ")[0] for line in lines.read_text().splitlines())
    assert {f"{name} {step}": 1 for name in range(COUNT) for step in range(3)} == steps


async def test_each_instance_is_run_by_one_worker_at_a_time(
    folder: Path, replay: Replay, shared: ModuleType
) -> None:
    await check_one_owner_at_a_time(folder, replay, shared)


async def test_the_check_fails_when_a_claim_marks_no_row(
    folder: Path, shared: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BREAK_LAW_9", "claims-mark-no-row")

    with pytest.raises((AssertionError, ExceptionGroup)):
        await check_one_owner_at_a_time(folder, "warm", shared)


# -- killed before it is taken over ------------------------------------------------------------


async def check_a_silent_worker_is_dead_before_it_is_taken_over(
    folder: Path, replay: Replay, shared: ModuleType
) -> None:
    """Stop a worker as the system does; when others have what it had, its process is no more."""
    async with opened(folder, replay) as runtime:
        waiting = await runtime.create(shared.Waiting)
        await waiting.sql("SELECT 1")  # it is born now, in some worker
        worker = await owner_of(runtime)
        assert worker is not None
        os.kill(worker.pid, signal.SIGSTOP)
        supervisor = supervisor_of(runtime)
        while await owner_of(runtime) is worker:
            await supervisor.changed(0.05)
        try:
            os.kill(worker.pid, 0)
        except ProcessLookupError:
            pass
        else:
            os.kill(worker.pid, signal.SIGKILL)
            raise AssertionError("it was taken over while it lived")
        await waiting.send_event("go", 5)
        assert 5 == await waiting.result()


async def owner_of(runtime: Runtime) -> Worker | None:
    """Return the worker that has the one instance open, once there is one."""
    supervisor = supervisor_of(runtime)
    while True:
        for row in await runtime.sql("SELECT owner FROM _perdure_instances WHERE open = 1 AND owner > 0"):
            return supervisor.workers.get(row.owner)
        await supervisor.changed(0.05)


async def test_a_worker_that_lives_and_is_silent_is_killed_before_it_is_taken_over(
    folder: Path, replay: Replay, shared: ModuleType
) -> None:
    await check_a_silent_worker_is_dead_before_it_is_taken_over(folder, replay, shared)


async def test_the_check_fails_when_a_silent_worker_is_only_written_off(
    folder: Path, shared: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    supervisors: list[Supervisor] = []
    run = vars(Supervisor)["run"]

    async def run_noted(supervisor: Supervisor, **options: Any) -> None:
        supervisors.append(supervisor)
        await run(supervisor, **options)

    async def give_up(worker: Worker) -> None:
        await vars(Supervisor)["_release"](supervisors[0], worker)
        supervisors[0].tell_all(Look())

    def write_off(worker: Worker) -> None:
        """Give up what it has, and let it live."""
        vars(supervisors[0])["_nursery"].start_soon(give_up, worker)

    monkeypatch.setattr(Supervisor, "run", run_noted)
    monkeypatch.setattr(Worker, "kill", write_off)

    with pytest.raises(AssertionError, match="taken over while it lived"):
        await check_a_silent_worker_is_dead_before_it_is_taken_over(folder, "warm", shared)
