"""`flat`: what a step costs in chains of 10 to 100,000 steps. It is not to grow with the chain.

Durability is `process`: a sync takes as long in a long chain as in a short one, and would hide what grows.
The first figure is the dearest step over the cheapest, by the length of their chains, of the medians.

A chain's first step also pays for beginnings of its instance: the WAL is made, each statement is prepared for
the first time. In a chain of 10 that is a good part of a step. So that both are seen, what each further step
costs from one length to the next stands beside it, and what is left of the shortest chain without that.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Mapping, Sequence
from typing import Final

from perdure.benchmarks import chains
from perdure.benchmarks.harness import Bench, compared, median
from perdure.benchmarks.results import Found, Measure
from perdure.benchmarks.workflows import Lap

SIZES: Final = {
    "full": ((10, 100, 1_000, 10_000, 100_000), 3),
    "quick": ((10, 100, 1_000, 10_000), 3),
    "tiny": ((3, 20), 1),
}
FLAT_TARGET: Final = 1.2
FURTHER_S_MIN: Final = 1e-9
"""Chains so short that noise is more than their difference are for seeing that they run."""


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
    measures += further(laps, bench.size)
    total = sum(chains.sum_of(steps) for steps in bench.size)
    return Found(measures=measures, computed=[list(bench.size), total], notes=[f"the dearest: {dearest}"])


def further(laps: Mapping[str, Sequence[Lap]], sizes: Sequence[int]) -> list[Measure]:
    """Return what each further step costs from one length of chain to the next, and the beginnings apart."""
    seconds = [median([lap.seconds for lap in each]) for each in laps.values()]
    costs = [
        max((after - before) / (longer - shorter), FURTHER_S_MIN)
        for (before, shorter), (after, longer) in itertools.pairwise(zip(seconds, sizes, strict=True))
    ]
    measures = [
        compared(
            [max(costs) / min(costs)],
            key="flat/further",
            what="dearest further step over cheapest",
            unit="times",
            better="less",
            target=FLAT_TARGET,
        )
    ]
    measures += [
        compared(
            [cost * 1e6],
            key=f"flat/{longer:,}-further",
            what=f"each further step, {shorter:,} to {longer:,}",
            unit="µs",
            better="less",
        )
        for cost, (shorter, longer) in zip(costs, itertools.pairwise(sizes), strict=True)
    ]
    beginnings_s = seconds[0] - sizes[0] * costs[0]
    return [
        *measures,
        compared(
            [beginnings_s * 1e6],
            key="flat/beginnings",
            what="beginnings of an instance, within its first steps",
            unit="µs",
            better="less",
        ),
    ]
