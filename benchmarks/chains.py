"""Chains of steps, run by Perdure: what `chain`, `flat` and `replay` measure.

Invariants:
    A chain's result shows that each of its steps was run.
"""

from __future__ import annotations

import time
from pathlib import Path

import msgspec
import trio

import perdure
from perdure.benchmarks.bare import Durability, Steps, read_steps, run_chain
from perdure.benchmarks.harness import Bench, WorkNotDoneError, median
from perdure.benchmarks.workflows import Chain, Lap, OpenChain, Stopwatch


def sum_of(steps: int) -> int:
    """Return what a chain of that length returns."""
    return steps * (steps - 1) // 2


async def chain(folder: Path, durability: Durability, steps: int) -> Lap:
    """Run one chain in a new state folder. The runtime is warm: it has run another before."""
    watch = Stopwatch()
    async with perdure.open_runtime(folder, workflows=[Chain], durability=durability, env=watch) as runtime:
        await (await runtime.create(Chain, params=2)).result()
        began_s = time.perf_counter()
        instance = await runtime.create(Chain, params=steps, id="chain")
        total = await instance.result()
        whole_s = time.perf_counter() - began_s
    if total != sum_of(steps):
        raise WorkNotDoneError(f"the chain of {steps} returned {total}: it was not run step by step")
    return msgspec.structs.replace(watch.laps[-1], whole_s=whole_s)


async def record_open_chain(folder: Path, steps: int) -> None:
    """Run an `OpenChain` up to its wait and leave it there."""
    watch = Stopwatch()
    async with perdure.open_runtime(
        folder, workflows=[OpenChain], durability="process", env=watch
    ) as runtime:
        await runtime.create(OpenChain, params=steps, id="chain")
        await watch.taken.wait()


async def replay(folder: Path) -> Lap:
    """Open the folder of an `OpenChain` once more and measure its replay."""
    watch = Stopwatch()
    async with perdure.open_runtime(
        folder, workflows=[OpenChain], durability="process", env=watch
    ) as runtime:
        if not await runtime.list(OpenChain):
            raise WorkNotDoneError("there is nothing to replay")
        await watch.taken.wait()
        if watch.laps[-1].commits:
            raise WorkNotDoneError("the replay has committed: steps were run again")
    return watch.laps[-1]


def perdure_lap(bench: Bench[object], durability: Durability, steps: int) -> Lap:
    """Run one chain of Perdure's; short ones several times, or they are over before they are measured."""
    return middle([trio.run(chain, bench.new_folder(), durability, steps) for _ in range(repeats(steps))])


def bare_lap(bench: Bench[object], durability: Durability, steps: Steps) -> Lap:
    """Run one bare chain, as often as Perdure's of that length."""
    return middle(
        [
            run_chain(bench.new_folder() / "bare.sqlite", durability, steps)
            for _ in range(repeats(len(steps.starts)))
        ]
    )


def middle(laps: list[Lap]) -> Lap:
    """Return the lap whose time is nearest to the median."""
    middle_s = median([lap.seconds for lap in laps])
    return min(laps, key=lambda lap: abs(lap.seconds - middle_s))


def repeats(steps: int) -> int:
    """Return how often a chain of that length runs in a round."""
    return 5 if steps < 1_000 else 1


def record_steps(bench: Bench[object], steps: int) -> Steps:
    """Run one chain and return what it wrote."""
    folder = bench.new_folder()
    trio.run(chain, folder, "process", steps)
    return read_steps(folder / "Chain" / "chain.sqlite")


def outputs(steps: Steps) -> list[object]:
    """Return what the steps of a chain have stored."""
    at = steps.table.columns.index("output")
    return [row[at] for row in steps.table.rows]


def explained(laps: list[Lap]) -> dict[str, float]:
    """Return the figures that explain a chain's speed."""
    return {
        "µs per step": median([lap.seconds / lap.steps * 1e6 for lap in laps]),
        "µs CPU": median([lap.cpu_s / lap.steps * 1e6 for lap in laps]),
        "syncs per step": median([lap.syncs / lap.steps for lap in laps]),
        "commits per step": median([lap.commits / lap.steps for lap in laps]),
    }


def rates(laps: list[Lap]) -> list[float]:
    """Return the steps per second of each lap."""
    return [lap.steps / lap.seconds for lap in laps]
