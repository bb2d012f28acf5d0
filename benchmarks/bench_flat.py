"""`flat`: what a step costs in chains of 10 to 100,000 steps. It is not to grow with the chain.

Durability is `process`: a sync takes as long in a long chain as in a short one, and would hide what grows.
The first figure is the dearest step over the cheapest, by the length of their chains, of the medians.
"""

from __future__ import annotations

import functools
from typing import Final

from perdure.benchmarks import chains
from perdure.benchmarks.harness import Bench, compared, median
from perdure.benchmarks.results import Found

SIZES: Final = {
    "full": ((10, 100, 1_000, 10_000, 100_000), 3),
    "quick": ((10, 100, 1_000, 10_000), 3),
    "tiny": ((3, 20), 1),
}
FLAT_TARGET: Final = 1.2


def run(bench: Bench[tuple[int, ...]]) -> Found:
    """Measure chains of several lengths."""
    laps = bench.in_turn(
        {
            f"{steps:,} steps": functools.partial(chains.perdure_lap, bench, "process", steps)
            for steps in bench.size
        }
    )
    costs = {name: [lap.seconds / lap.steps * 1e6 for lap in each] for name, each in laps.items()}
    medians = [median(cost) for cost in costs.values()]  # a spread within each round would add its noise
    dearest = max(costs, key=lambda name: median(costs[name]))
    measures = [
        compared(
            [max(medians) / min(medians)],
            key="flat/spread",
            what=f"dearest step over cheapest, {bench.size[0]:,} to {bench.size[-1]:,} steps",
            unit="times",
            better="less",
            target=FLAT_TARGET,
        )
    ]
    measures += [
        compared(
            cost, key=f"flat/{name.split()[0]}", what=f"a step in a chain of {name}", unit="µs", better="less"
        )
        for name, cost in costs.items()
    ]
    total = sum(chains.sum_of(steps) for steps in bench.size)
    return Found(measures=measures, computed=[list(bench.size), total], notes=[f"the dearest: {dearest}"])
