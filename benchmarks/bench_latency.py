"""`latency`: a workflow of one step, from `create` to its result, one at a time, durability `full`.

The bare loop does what has to be durable in that order: the catalog's row, the file with the instance
and its step, the step's end. It has no loop, no codec and no clock to look at.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Final

import trio

from perdure.benchmarks.bare import Durability
from perdure.benchmarks.chains import sum_of
from perdure.benchmarks.harness import Bench, compared, median, percentile
from perdure.benchmarks.instances import Batch, OneByOne, bare_one_by_one, record_finished, run_one_by_one
from perdure.benchmarks.results import Found

SIZES: Final = {
    "full": (Batch(instances=1_000, steps=1), 5),
    "quick": (Batch(instances=200, steps=1), 3),
    "tiny": (Batch(instances=3, steps=1), 1),
}
TARGETS_MS: Final = {50: 1.0, 99: 3.0}


def run(bench: Bench[Batch]) -> Found:
    """Measure instances one by one."""
    model = record_finished(bench.new_folder(), bench.size.steps)

    def bare() -> OneByOne:
        return bare_one_by_one(bench.new_folder(), "full", bench.size, model)

    def ours(durability: Durability) -> OneByOne:
        return trio.run(run_one_by_one, bench.new_folder(), durability, bench.size)

    variants: dict[str, Callable[[], OneByOne]] = {
        "bare": bare,
        "full": functools.partial(ours, "full"),
        "process": functools.partial(ours, "process"),
    }
    laps = bench.in_turn(variants)
    measures = [
        compared(
            milliseconds(laps["full"], percent),
            milliseconds(laps["bare"], percent),
            key=f"latency/p{percent}",
            what=f"create to result, {percent}th percentile",
            unit="ms",
            better="less",
            target=target,
            figures={
                "ms with process": median(milliseconds(laps["process"], percent)),
                "syncs each, besides the catalog's": median([lap.syncs for lap in laps["full"]]),
            },
        )
        for percent, target in TARGETS_MS.items()
    ]
    return Found(measures=measures, computed=[bench.size, sum_of(bench.size.steps)])


def milliseconds(laps: list[OneByOne], percent: float) -> list[float]:
    """Return a percentile of each lap in milliseconds."""
    return [1e3 * percentile(lap.took_s, percent) for lap in laps]
