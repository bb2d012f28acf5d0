"""Bounded concurrency and schedules where several workers share a folder, and one of them is killed."""

from __future__ import annotations

import itertools
import os
import signal
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import trio

from perdure import App, Runtime, open_runtime
from perdure.engine.app import load_app, load_module
from perdure.engine.front import Front

pytestmark = pytest.mark.slow

PROGRAM = Path(__file__).resolve().parents[1] / "engine" / "programs" / "flow_workflows.py"
COUNT = 40
KEYS = 5
LOOK_S = 0.02


@pytest.fixture
def flow() -> ModuleType:
    return load_module(PROGRAM)


@pytest.fixture
def flow_app() -> App:
    return load_app(PROGRAM)


def crowd_of(lines: Path) -> tuple[int, int]:
    """Return how many were inside at most, in all and of one key."""
    inside: set[tuple[str, str]] = set()
    most = most_of_key = 0
    for line in lines.read_text().splitlines():
        what, key, id_ = line.split()
        if what == "enter":
            inside.add((key, id_))
        else:
            inside.discard((key, id_))
        most = max(most, len(inside))
        most_of_key = max(most_of_key, sum(other == key for other, _ in inside))
    return most, most_of_key


async def until(true: Callable[[], bool]) -> None:
    while not true():  # noqa: ASYNC110 - it happens in other processes
        await trio.sleep(LOOK_S)


async def kill_one(runtime: Runtime) -> None:
    front: Front = vars(runtime)["_access"]
    os.kill(front.supervisor.running[0].pid, signal.SIGKILL)


@pytest.mark.parametrize("durability", ["full", "process"])
@pytest.mark.parametrize("killed", [False, True])
async def test_a_bound_holds_across_workers_and_the_death_of_one(
    tmp_path: Path, flow: ModuleType, flow_app: App, durability: Any, killed: bool
) -> None:
    lines = tmp_path / "lines"
    async with open_runtime(tmp_path / "state", flow_app, workers=2, durability=durability) as runtime:
        entries: list[Any] = [
            {"params": flow.Guest(lines=str(lines), key=f"k{number % KEYS}")} for number in range(COUNT)
        ]
        instances = await runtime.create_batch(flow.Turn, entries)
        if killed:
            await until(lambda: lines.exists() and len(lines.read_text().splitlines()) > COUNT // 2)
            await kill_one(runtime)
        for instance in instances:
            await instance.result()

    most, most_of_key = crowd_of(lines)
    assert (1, True) == (most_of_key, 1 < most <= 3)


async def test_with_workers_each_moment_makes_one_instance(
    tmp_path: Path, flow: ModuleType, flow_app: App
) -> None:
    async with open_runtime(tmp_path / "state", flow_app, workers=2, durability="process") as runtime:
        await until(lambda: len(runtime.rows(workflow="Tick")) >= 1)
        await kill_one(runtime)
        await until(lambda: len(runtime.rows(workflow="Tick")) >= 3)
        times = [await instance.result() for instance in await runtime.list(flow.Tick)]

    assert len(times) == len(set(times))
    assert {1.0} == {before - after for before, after in itertools.pairwise(sorted(times, reverse=True))}
