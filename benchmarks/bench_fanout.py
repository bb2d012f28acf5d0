"""`fanout`: 1,000 steps side by side in one `step.map`, durability `full`.

Starts that come together are one commit and one sync, and so are ends; the bare loop writes all
starts in one synced commit and all ends in another.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final

import trio

import perdure
from perdure.benchmarks.bare import Durability, read_steps, run_fan_out
from perdure.benchmarks.chains import sum_of
from perdure.benchmarks.harness import Bench, WorkNotDoneError, compared, median
from perdure.benchmarks.results import Found
from perdure.benchmarks.workflows import FanOut, Lap, Stopwatch

SIZES: Final = {"full": (1_000, 9), "quick": (1_000, 3), "tiny": (10, 1)}
RATE_TARGET: Final = 20_000
SYNCS_MAX: Final = 5


async def fan_out(folder: Path, durability: Durability, steps: int) -> Lap:
    """Run one fan-out in a new state folder. The runtime is warm: it has run a small one before."""
    watch = Stopwatch()
    async with perdure.open_runtime(folder, workflows=[FanOut], durability=durability, env=watch) as runtime:
        await (await runtime.create(FanOut, params=2)).result()
        instance = await runtime.create(FanOut, params=steps, id="fan")
        if await instance.result() != sum_of(steps):
            raise WorkNotDoneError(f"the fan-out of {steps} did not return what its steps did")
    return watch.laps[-1]


def run(bench: Bench[int]) -> Found:
    """Measure fan-outs."""
    folder = bench.new_folder()
    trio.run(fan_out, folder, "process", bench.size)
    steps = read_steps(folder / "FanOut" / "fan.sqlite")
    variants: dict[str, Callable[[], Lap]] = {
        "bare": lambda: run_fan_out(bench.new_folder() / "bare.sqlite", "full", steps),
        "full": lambda: trio.run(fan_out, bench.new_folder(), "full", bench.size),
    }
    laps = bench.in_turn(variants)
    full = laps["full"]
    rate = compared(
        [lap.steps / lap.seconds for lap in full],
        [lap.steps / lap.seconds for lap in laps["bare"]],
        key="fanout/full", what=f"{bench.size:,} parallel steps, full", unit="steps/s", target=RATE_TARGET,
        figures={
            "µs per step": median([1e6 * lap.seconds / lap.steps for lap in full]),
            "µs CPU": median([1e6 * lap.cpu_s / lap.steps for lap in full]),
            "commits for all": median([lap.commits for lap in full]),
        },
    )  # fmt: skip
    syncs = compared(
        [lap.syncs for lap in full],
        key="fanout/syncs", what="syncs for all of them", unit="syncs", better="less", target=SYNCS_MAX,
    )  # fmt: skip
    return Found(measures=[rate, syncs], computed=[bench.size, sum_of(bench.size)])
