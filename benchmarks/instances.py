"""Whole instances, from `create` to their results: what `short`, `latency` and `bytes` measure.

Invariants:
    An instance's result shows that each of its steps was run.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncGenerator
from functools import partial
from pathlib import Path

import msgspec
import trio

import perdure
from perdure.benchmarks.bare import BareFolder, Durability, Finished, read_finished
from perdure.benchmarks.chains import sum_of
from perdure.benchmarks.harness import WorkNotDoneError
from perdure.benchmarks.workflows import Lap, Short
from perdure.storage.schema import template


class Batch(msgspec.Struct, frozen=True, kw_only=True):
    """How many instances of how many steps."""

    instances: int
    steps: int


@contextlib.asynccontextmanager
async def warm_runtime(
    folder: Path, durability: Durability, workers: int = 1
) -> AsyncGenerator[perdure.Runtime]:
    """Open a runtime that has run an instance before."""
    async with perdure.open_runtime(
        folder, workflows=[Short], durability=durability, workers=workers
    ) as runtime:
        await (await runtime.create(Short, params=1, id="first")).result()
        yield runtime


async def run_batch(folder: Path, durability: Durability, batch: Batch, workers: int = 1) -> Lap:
    """Create instances as fast as the runtime takes them, and wait for all results."""
    results: list[int] = []

    async def one(number: int) -> None:
        instance = await runtime.create(Short, params=batch.steps, id=f"{number}")
        results.append(await instance.result())

    async with warm_runtime(folder, durability, workers) as runtime:
        before = runtime.statistics()
        began_s, cpu_s = time.perf_counter(), time.thread_time()
        async with trio.open_nursery() as nursery:
            for number in range(batch.instances):
                nursery.start_soon(one, number)
        seconds, cpu_s = time.perf_counter() - began_s, time.thread_time() - cpu_s
        after = runtime.statistics()
    check(results, batch)
    return Lap(
        steps=batch.instances * batch.steps,
        seconds=seconds,
        cpu_s=cpu_s,
        commits=after.gate.commits - before.gate.commits,
        syncs=after.disk.file_syncs - before.disk.file_syncs,
    )


def check(results: list[int], batch: Batch) -> None:
    """Raise `WorkNotDoneError` where the results are not those of so many chains."""
    if results != [sum_of(batch.steps)] * batch.instances:
        raise WorkNotDoneError(f"{batch.instances} instances gave {len(results)} results, or wrong ones")


class OneByOne(msgspec.Struct, frozen=True, kw_only=True):
    """The seconds from `create` to the result of each instance, and the runtime's syncs for one."""

    took_s: list[float]
    syncs: float = 0.0


async def run_one_by_one(folder: Path, durability: Durability, batch: Batch) -> OneByOne:
    """Run instances one after the other."""
    took_s: list[float] = []
    results: list[int] = []
    async with warm_runtime(folder, durability) as runtime:
        before = runtime.statistics().disk
        for number in range(batch.instances):
            began_s = time.perf_counter()
            instance = await runtime.create(Short, params=batch.steps, id=f"{number}")
            results.append(await instance.result())
            took_s.append(time.perf_counter() - began_s)
        after = runtime.statistics().disk
    check(results, batch)
    syncs = after.file_syncs - before.file_syncs + after.directory_syncs - before.directory_syncs
    return OneByOne(took_s=took_s, syncs=syncs / batch.instances)


def perdure_batch(folder: Path, durability: Durability, batch: Batch, workers: int = 1) -> Lap:
    """Run a batch in a new state folder."""
    return trio.run(partial(run_batch, folder, durability, batch, workers))


# -- the bare loop ---------------------------------------------------------------------------


def record_finished(folder: Path, steps: int) -> Finished:
    """Run one instance and return what it has left."""

    async def one() -> None:
        async with perdure.open_runtime(folder, workflows=[Short], durability="process") as runtime:
            await (await runtime.create(Short, params=steps, id="0")).result()

    trio.run(one)
    return read_finished(folder, folder / "Short" / "0.sqlite", template())


def bare_batch(folder: Path, durability: Durability, batch: Batch, model: Finished) -> Lap:
    """Write a batch's rows: the catalog's in one commit, then file after file."""
    bare = BareFolder(folder, durability, model)
    began_s = time.perf_counter()
    bare.create(batch.instances)
    for _ in range(batch.instances):
        bare.run()
        bare.close()
    bare.settle()
    seconds = time.perf_counter() - began_s
    bare.check()
    return Lap(steps=batch.instances * batch.steps, seconds=seconds)


def bare_one_by_one(folder: Path, durability: Durability, batch: Batch, model: Finished) -> OneByOne:
    """Write instances one after the other, each with its own commit in the catalog."""
    bare = BareFolder(folder, durability, model)
    took_s: list[float] = []
    for _ in range(batch.instances):
        began_s = time.perf_counter()
        bare.create(1)
        bare.run()
        took_s.append(time.perf_counter() - began_s)
        bare.close()
    bare.settle()
    bare.check()
    return OneByOne(took_s=took_s)
