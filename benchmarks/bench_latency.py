"""`latency`: a workflow of one step, from `create` to its result, one at a time, durability `full`.

The bare loop does what has to be durable in that order: the catalog's row, the file with the instance
and its step, the step's end. It has no loop, no codec and no clock to look at.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import trio

from perdure.benchmarks.chains import sum_of
from perdure.benchmarks.harness import Bench, compared, percentile
from perdure.benchmarks.instances import Batch, bare_one_by_one, record_finished, run_one_by_one
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

    def bare() -> list[float]:
        return bare_one_by_one(bench.new_folder(), "full", bench.size, model)

    def ours() -> list[float]:
        return trio.run(run_one_by_one, bench.new_folder(), "full", bench.size)

    variants: dict[str, Callable[[], list[float]]] = {"bare": bare, "full": ours}
    laps = bench.in_turn(variants)
    measures = [
        compared(
            [1e3 * percentile(lap, percent) for lap in laps["full"]],
            [1e3 * percentile(lap, percent) for lap in laps["bare"]],
            key=f"latency/p{percent}",
            what=f"create to result, {percent}th percentile",
            unit="ms",
            better="less",
            target=target,
        )
        for percent, target in TARGETS_MS.items()
    ]
    return Found(measures=measures, computed=[bench.size, sum_of(bench.size.steps)])
