"""Children and parents that run in different processes."""

from __future__ import annotations

import os
import signal
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from types import ModuleType

import pytest
import trio

from perdure import InstanceTerminatedError, Runtime
from perdure.engine.front import Front

pytestmark = pytest.mark.slow

OpenShared = Callable[..., AbstractAsyncContextManager[Runtime]]
LinesOf = Callable[[Path], Counter[str]]
PARTS = 40


def steps_of(names: list[str]) -> dict[str, int]:
    """Return the lines that children write: each step once."""
    return {f"{name} {step}": 1 for name in names for step in range(3)}


async def test_a_parent_hears_of_children_in_other_workers(
    open_shared: OpenShared, shared: ModuleType, tmp_path: Path, lines_of: LinesOf
) -> None:
    lines = tmp_path / "lines"
    job = shared.Job(lines=str(lines), name="f", steps=PARTS)
    async with open_shared(workers=2) as runtime:
        pids = await (await runtime.create(shared.Family, params=job, id="f")).result()

    assert PARTS + 1 == len(pids)
    assert 2 == len(set(pids)), "both workers had a share of the children"
    assert steps_of(["f-first", *(f"f-{n}" for n in range(PARTS))]) == lines_of(lines)


async def test_a_worker_that_is_killed_loses_no_child_and_no_end(
    open_shared: OpenShared, shared: ModuleType, tmp_path: Path, lines_of: LinesOf
) -> None:
    lines = tmp_path / "lines"
    job = shared.Job(lines=str(lines), name="f", steps=PARTS, nap_s=0.01)
    async with open_shared(workers=2) as runtime:
        front: Front = vars(runtime)["_access"]
        family = await runtime.create(shared.Family, params=job, id="f")
        for number in range(2):
            with trio.fail_after(30):
                while not lines.exists() or len(lines_of(lines)) < 20 * (number + 1):
                    await trio.lowlevel.checkpoint()
            os.kill(front.supervisor.running[0].pid, signal.SIGKILL)
        with trio.fail_after(50):
            pids = await family.result()
        rows = runtime.rows(workflow="Counted")

    assert PARTS + 1 == len(pids) == len(rows)
    assert set(steps_of(["f-first", *(f"f-{n}" for n in range(PARTS))])) == set(lines_of(lines))


async def test_terminating_a_parent_reaches_children_in_all_workers(
    open_shared: OpenShared, shared: ModuleType, tmp_path: Path
) -> None:
    lines = tmp_path / "lines"
    job = shared.Job(lines=str(lines), name="f", steps=PARTS, nap_s=600)
    async with open_shared(workers=2) as runtime:
        family = await runtime.create(shared.Family, params=job, id="f")
        with trio.fail_after(30):
            while len(runtime.rows(workflow="Counted", status="running")) < PARTS:
                await trio.lowlevel.checkpoint()
        await family.terminate()
        for n in range(PARTS):
            child = await runtime.get(shared.Counted, f"f.part[{n}]")
            with trio.fail_after(30), pytest.raises(InstanceTerminatedError):
                await child.result()
