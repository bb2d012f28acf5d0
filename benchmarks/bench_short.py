"""`short`: 1,000 instances of 5 steps, from `create` to the last result, all under way at once.

The bare loop has no concurrency: it writes the catalog's rows in one commit, then instance after
instance its file, with a synced commit for each step. So Perdure may be faster where it syncs many
instances at once, and a share above 100 % is no mistake.

`--workers N` processes then share one state folder; the target is against one process of the same round.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Final

import trio

import perdure
from perdure.benchmarks.bare import DURABILITIES, Durability
from perdure.benchmarks.chains import sum_of
from perdure.benchmarks.harness import Bench, compared, median
from perdure.benchmarks.instances import Batch, bare_batch, perdure_batch, record_finished
from perdure.benchmarks.results import Found, Measure
from perdure.benchmarks.workflows import Lap, Short
from perdure.errors import InvalidArgumentError

SIZES: Final = {
    "full": (Batch(instances=1_000, steps=5), 5),
    "quick": (Batch(instances=300, steps=5), 3),
    "tiny": (Batch(instances=4, steps=2), 1),
}
RATE_TARGET: Final = 1_500
OF_PROCESS_TARGET: Final = 75
WORKERS_TARGET: Final = 1.7


def run(bench: Bench[Batch]) -> Found:
    """Measure batches in both durabilities, and by workers."""
    size = bench.size
    model = record_finished(bench.new_folder(), size.steps)
    refused = refused_workers(bench.new_folder(), bench.workers)

    def bare(durability: Durability) -> Lap:
        return bare_batch(bench.new_folder(), durability, size, model)

    def ours(durability: Durability, workers: int = 1) -> Lap:
        return perdure_batch(bench.new_folder(), durability, size, workers)

    variants: dict[str, Callable[[], Lap]] = {}
    for durability in DURABILITIES:
        variants[f"bare {durability}"] = functools.partial(bare, durability)
        variants[durability] = functools.partial(ours, durability)
    if refused is None:
        variants["workers"] = functools.partial(ours, "full", bench.workers)
    laps = bench.in_turn(variants)
    rates = {name: [size.instances / lap.seconds for lap in each] for name, each in laps.items()}
    measures = [*one_process(size, laps, rates), by_workers(bench.workers, rates, refused)]
    return Found(measures=measures, computed=[size, sum_of(size.steps)])


def one_process(size: Batch, laps: dict[str, list[Lap]], rates: dict[str, list[float]]) -> list[Measure]:
    """Return the measures of one process."""
    measures = [
        compared(
            rates[durability],
            rates[f"bare {durability}"],
            key=f"short/{durability}",
            what=f"{size.instances:,} instances of {size.steps} steps, {durability}",
            unit="instances/s",
            target=RATE_TARGET if durability == "full" else None,
            figures=explained(size, laps[durability]),
        )
        for durability in DURABILITIES
    ]
    of_process = [100 * full / process for full, process in zip(rates["full"], rates["process"], strict=True)]
    return [
        *measures,
        compared(
            of_process, key="short/of-process", what="full, of process", unit="%", target=OF_PROCESS_TARGET
        ),
    ]


def explained(size: Batch, laps: list[Lap]) -> dict[str, float]:
    """Return the figures that explain a batch's speed."""
    return {
        "steps/s": median([lap.steps / lap.seconds for lap in laps]),
        "ms CPU of the loop per instance": median([1e3 * lap.cpu_s / size.instances for lap in laps]),
        "syncs for all": median([lap.syncs for lap in laps]),
        "commits per instance": median([lap.commits / size.instances for lap in laps]),
    }


def by_workers(workers: int, rates: dict[str, list[float]], refused: str | None) -> Measure:
    """Return the measure of several processes over one folder."""
    key, what, unit = "short/workers", f"{workers} workers, full, to one process", "times"
    if refused is not None:
        return Measure(key=key, what=what, unit=unit, value=None, target=WORKERS_TARGET, missing=refused)
    times = [many / one for many, one in zip(rates["workers"], rates["full"], strict=True)]
    return compared(
        times, key=key, what=what, unit=unit, target=WORKERS_TARGET,
        figures={"instances/s": median(rates["workers"])},
    )  # fmt: skip


def refused_workers(folder: Path, workers: int) -> str | None:
    """Return why this version does not run so many workers, or None where it does."""

    async def ask() -> None:
        async with perdure.open_runtime(folder, workflows=[Short], workers=workers):
            pass

    try:
        trio.run(ask)
    except InvalidArgumentError as error:
        return str(error)
    return None
