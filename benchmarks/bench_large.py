"""`large`: steps whose results are 1 MB and 100 MB of text, durability `full`.

Such a value lies in pieces in a table of its own; the bare loop writes the same pieces, in the commit of the
step's end, and syncs it. A megabyte is 10^6 characters.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Final

import trio

import perdure
from perdure.benchmarks.bare import CHUNKS, Durability, read_steps, read_table, run_large
from perdure.benchmarks.harness import Bench, WorkNotDoneError, compared
from perdure.benchmarks.results import Found, Measure
from perdure.benchmarks.workflows import Blob, Lap, Large, Stopwatch

SIZES: Final = {
    "full": ((Blob(count=20, characters=1_000_000), Blob(count=2, characters=100_000_000)), 5),
    "quick": ((Blob(count=20, characters=1_000_000), Blob(count=1, characters=100_000_000)), 2),
    "tiny": ((Blob(count=2, characters=300_000),), 1),
}
RATE_TARGET: Final = 300
SHARE_TARGET: Final = 0.50


async def large(folder: Path, durability: Durability, blob: Blob) -> Lap:
    """Run the steps in a new state folder."""
    watch = Stopwatch()
    async with perdure.open_runtime(folder, workflows=[Large], durability=durability, env=watch) as runtime:
        await (await runtime.create(Large, params=Blob(count=1, characters=1))).result()
        instance = await runtime.create(Large, params=blob, id="large")
        if await instance.result() != blob.count * blob.characters:
            raise WorkNotDoneError("the large results came back in another size")
    return watch.laps[-1]


def perdure_lap(bench: Bench[tuple[Blob, ...]], blob: Blob) -> Lap:
    """Run one instance with large results."""
    return trio.run(large, bench.new_folder(), "full", blob)


def bare_lap(bench: Bench[tuple[Blob, ...]], model: Path) -> Lap:
    """Write the rows of such an instance. They are read anew: nobody wants to hold them all the time."""
    steps, chunks = read_steps(model), read_table(model, CHUNKS)
    return run_large(bench.new_folder() / "bare.sqlite", "full", steps, chunks)


def run(bench: Bench[tuple[Blob, ...]]) -> Found:
    """Measure each size."""
    variants: dict[str, Callable[[], Lap]] = {}
    for blob in bench.size:
        folder = bench.new_folder()
        bench.say(f"recording what the bare loop has to write: {name(blob)}")
        trio.run(large, folder, "process", blob)
        variants[f"bare {name(blob)}"] = functools.partial(bare_lap, bench, folder / "Large" / "large.sqlite")
        variants[name(blob)] = functools.partial(perdure_lap, bench, blob)
    laps = bench.in_turn(variants)
    measures = [measure(blob, laps[name(blob)], laps[f"bare {name(blob)}"]) for blob in bench.size]
    return Found(measures=measures, computed=[bench.size])


def name(blob: Blob) -> str:
    """Return what a size is called."""
    return f"{blob.count} x {blob.characters / 1e6:g} MB"


def measure(blob: Blob, laps: list[Lap], bare: list[Lap]) -> Measure:
    """Return the measure of one size."""
    megabytes = blob.count * blob.characters / 1e6
    return compared(
        [megabytes / lap.seconds for lap in laps],
        [megabytes / lap.seconds for lap in bare],
        key=f"large/{blob.characters / 1e6:g}", what=name(blob), unit="MB/s", target=RATE_TARGET,
        share_target=SHARE_TARGET,
    )  # fmt: skip
