"""Workers: several processes share one state folder, and each instance is one's at a time."""

from __future__ import annotations

import os
import signal
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, closing
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import trio

import perdure.engine.workers
from perdure import (
    App,
    InvalidArgumentError,
    PerdureError,
    Runtime,
    StateLockedError,
    WorkflowEntrypoint,
    WorkflowEvent,
    WorkflowStep,
    open_runtime,
)
from perdure.engine.app import load_app
from perdure.engine.front import Front
from perdure.engine.supervisor import Supervisor
from perdure.storage.catalog_file import open_catalog
from perdure.testing import VirtualClock

pytestmark = pytest.mark.slow

OpenShared = Callable[..., AbstractAsyncContextManager[Runtime]]
LinesOf = Callable[[Path], Counter[str]]


PAGES_BEFORE_A_CHECKPOINT = 1_000
"""SQLite's own setting."""


def supervisor_of(runtime: Runtime) -> Supervisor:
    front: Front = vars(runtime)["_access"]
    return front.supervisor


async def run_all(runtime: Runtime, shared: ModuleType, lines: Path, count: int, **job: Any) -> list[int]:
    """Run that many instances to their end and return which process ended each."""
    jobs: list[Any] = [
        {"params": shared.Job(lines=str(lines), name=str(number), **job), "id": str(number)}
        for number in range(count)
    ]
    ended: list[int] = []

    async def result(instance: Any) -> None:
        ended.append(await instance.result())

    async with trio.open_nursery() as nursery:
        for instance in await runtime.create_batch(shared.Counted, jobs):
            nursery.start_soon(result, instance)
    return ended


# -- sharing the work --------------------------------------------------------------------------


async def test_two_workers_share_the_instances_and_run_each_step_once(
    open_shared: OpenShared, shared: ModuleType, tmp_path: Path, lines_of: LinesOf
) -> None:
    lines = tmp_path / "lines"
    async with open_shared(workers=2) as runtime:
        ended = await run_all(runtime, shared, lines, 200)
        pids = {worker.pid for worker in supervisor_of(runtime).running}

    assert {f"{name} {step}": 1 for name in range(200) for step in range(3)} == lines_of(lines)
    assert pids == set(ended)
    assert os.getpid() not in pids


async def test_replacing_the_workers_under_load_loses_and_doubles_no_step(
    open_shared: OpenShared, shared: ModuleType, tmp_path: Path, lines_of: LinesOf
) -> None:
    lines = tmp_path / "lines"
    async with open_shared(workers=2) as runtime:
        before = {worker.pid for worker in supervisor_of(runtime).running}
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run_all_of, runtime, shared, lines)
            await runtime.restart_workers()
        after = {worker.pid for worker in supervisor_of(runtime).running}

    assert {f"{name} {step}": 1 for name in range(60) for step in range(4)} == lines_of(lines)
    assert (2, set()) == (len(after), before & after)


async def run_all_of(runtime: Runtime, shared: ModuleType, lines: Path) -> None:
    await run_all(runtime, shared, lines, 60, steps=4, nap_s=0.3)


async def test_a_worker_that_ends_is_replaced_and_its_instances_go_on(
    open_shared: OpenShared, shared: ModuleType, tmp_path: Path, lines_of: LinesOf
) -> None:
    lines = tmp_path / "lines"
    async with open_shared(workers=2) as runtime:
        supervisor = supervisor_of(runtime)
        first = supervisor.running[0]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run_all_of, runtime, shared, lines)
            os.kill(first.pid, signal.SIGTERM)
            await first.gone.wait()
        while len(supervisor.running) < 2:
            await supervisor.changed(1)

        assert first not in supervisor.running
    assert 1 == max(lines_of(lines).values())


async def test_an_event_reaches_an_instance_whoever_owns_it(
    open_shared: OpenShared, shared: ModuleType
) -> None:
    async with open_shared(workers=3) as runtime:
        instances = await runtime.create_batch(shared.Approval, [{"id": str(number)} for number in range(30)])
        for number, instance in enumerate(instances):
            await instance.send_event("go", number)
            await instance.send_event("go", number + 1)

        assert [[number, number + 1] for number in range(30)] == [
            await instance.result() for instance in instances
        ]


async def test_statistics_are_those_of_all_workers(open_shared: OpenShared, shared: ModuleType) -> None:
    async with open_shared(workers=2) as runtime:
        assert 2 == runtime.statistics().workers


# -- one folder --------------------------------------------------------------------------------


async def test_the_folder_is_locked_for_others(open_shared: OpenShared) -> None:
    async with open_shared(workers=2):
        with pytest.raises(StateLockedError, match="in use by this very process"):
            async with open_shared(workers=2):
                pass
        with pytest.raises(StateLockedError):
            async with open_shared():
                pass
    async with open_shared():
        pass


async def test_what_one_process_left_the_workers_go_on_with_and_back(
    open_shared: OpenShared, shared: ModuleType
) -> None:
    async with open_shared() as runtime:
        instance = await runtime.create(shared.Approval, id="a")
        await instance.send_event("go", 1)
    async with open_shared(workers=2) as runtime:
        await runtime.create(shared.Approval, id="b")
        assert {"a", "b"} == {instance.id for instance in await runtime.list(shared.Approval)}
        await (await runtime.get(shared.Approval, "b")).send_event("go", 2)
    async with open_shared() as runtime:
        for id_, first in (("a", 1), ("b", 2)):
            instance = await runtime.get(shared.Approval, id_)
            await instance.send_event("go", 3)
            assert [first, 3] == await instance.result()


async def test_only_the_supervisor_checkpoints_the_catalog(
    open_shared: OpenShared, shared: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its size tells: with the supervisor's checkpoints off, all stays in the WAL, long as it is.

    Any connection with SQLite's own setting would checkpoint at a commit behind so many pages.
    """
    catalog = tmp_path / "state" / "catalog.sqlite"
    async with open_shared():
        pass
    monkeypatch.setattr(perdure.engine.workers, "CHECKPOINT_BYTES", 1 << 40)
    before = (catalog.stat().st_size, catalog.stat().st_mtime_ns)
    async with open_shared(workers=2) as runtime:
        later = datetime(2100, 1, 1, tzinfo=UTC)
        await runtime.create_batch(shared.Approval, [{"at": later} for _ in range(12_000)])
        await run_all(runtime, shared, tmp_path / "lines", 40, steps=1)
        wal_bytes = catalog.with_name("catalog.sqlite-wal").stat().st_size
        assert before == (catalog.stat().st_size, catalog.stat().st_mtime_ns)
    assert wal_bytes > PAGES_BEFORE_A_CHECKPOINT * 4096
    assert catalog.stat().st_size > before[0]


def test_a_workers_connection_leaves_checkpoints_alone(tmp_path: Path) -> None:
    with closing(open_catalog(tmp_path / "catalog.sqlite", checkpointer=False)) as connection:
        assert (0,) == connection.execute("PRAGMA wal_autocheckpoint").fetchone()


# -- what is refused ---------------------------------------------------------------------------


async def opened_by(path: Path, **options: Any) -> None:
    async with open_runtime(path / "state", **options):
        pass


async def test_a_class_that_no_other_process_can_import_is_refused(tmp_path: Path) -> None:
    class Local(WorkflowEntrypoint):
        async def run(self, event: WorkflowEvent[None], step: WorkflowStep) -> None:
            pass

    with pytest.raises(InvalidArgumentError, match=r"<locals>\.Local cannot be imported by that name"):
        await opened_by(tmp_path, workflows=[Local], workers=2)


async def test_an_environment_that_is_a_value_is_refused(tmp_path: Path, shared: ModuleType) -> None:
    with pytest.raises(InvalidArgumentError, match="env is .* a value of this process"):
        await opened_by(tmp_path, app=App([shared.Sum], env={"a": 1}), workers=2)


@pytest.mark.parametrize("workers", [0, -1, 1.5, True, 1_000, "2"])
async def test_a_number_that_is_none_is_refused(tmp_path: Path, shared_app: App, workers: Any) -> None:
    with pytest.raises(InvalidArgumentError, match="a whole number from 1 to 256"):
        await opened_by(tmp_path, app=shared_app, workers=workers)


async def test_a_clock_cannot_be_shared(tmp_path: Path, shared_app: App) -> None:
    with pytest.raises(InvalidArgumentError, match="run with one worker"):
        await opened_by(tmp_path, app=shared_app, workers=2, clock=VirtualClock())


async def test_workers_that_cannot_load_the_file_say_why(tmp_path: Path) -> None:
    file = tmp_path / "loads_only_once.py"
    file.write_text(
        "import os, perdure\n"
        "if os.environ.get('LOADED_BY') != str(os.getpid()):\n"
        "    raise LookupError('not twice')\n"
        "class Once(perdure.WorkflowEntrypoint):\n"
        "    async def run(self, event, step):\n"
        "        pass\n"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LOADED_BY", str(os.getpid()))
        app = load_app(file)
        with pytest.raises(PerdureError, match="LookupError: not twice"):
            await opened_by(tmp_path, app=app, workers=2)


async def test_one_process_has_no_workers_to_replace(open_shared: OpenShared) -> None:
    async with open_shared() as runtime:
        with pytest.raises(InvalidArgumentError, match="has no workers"):
            await runtime.restart_workers()


async def test_a_local_function_is_no_environment(tmp_path: Path, shared: ModuleType) -> None:
    with pytest.raises(InvalidArgumentError, match="cannot be imported by that name"):
        await opened_by(tmp_path, app=App([shared.Sum], env=lambda: None), workers=2)
