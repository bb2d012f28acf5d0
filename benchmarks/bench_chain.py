"""`chain`: 1,000 steps one after the other, against a bare `sqlite3` loop that writes the same rows.

The lap is taken inside `run()`, from before the first step to after the last. Each step is one
commit, its end with the next one's start; with durability `full` it is one sync.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Final

from perdure.benchmarks import chains
from perdure.benchmarks.bare import DURABILITIES, Durability, sync_s
from perdure.benchmarks.harness import Bench, compared, median
from perdure.benchmarks.results import Found, Measure
from perdure.benchmarks.workflows import Lap

SIZES: Final = {"full": (1_000, 9), "quick": (1_000, 3), "tiny": (20, 2)}
TARGETS: Final[dict[Durability, tuple[float | None, float]]] = {
    "full": (None, 0.60),
    "process": (20_000, 0.40),
}
SYNCS_PER_STEP_MAX: Final = 1.0


def run(bench: Bench[int]) -> Found:
    """Measure chains of one length in both durabilities."""
    steps = chains.record_steps(bench, bench.size)
    variants: dict[str, Callable[[], Lap]] = {}
    for durability in DURABILITIES:
        variants[f"bare {durability}"] = functools.partial(chains.bare_lap, bench, durability, steps)
        variants[durability] = functools.partial(chains.perdure_lap, bench, durability, bench.size)
    laps = bench.in_turn(variants)
    measures = [
        measure(durability, bench.size, laps[durability], laps[f"bare {durability}"])
        for durability in DURABILITIES
    ]
    syncs = [lap.syncs / lap.steps for lap in laps["full"]]
    measures.append(
        compared(
            syncs, key="chain/syncs", what="syncs of a step, full", unit="syncs", better="less",
            target=SYNCS_PER_STEP_MAX,
        )
    )  # fmt: skip
    note = f"one append and its sync take {sync_s(bench.new_folder()) * 1e6:.0f} µs on this disk"
    return Found(measures=measures, computed=chains.outputs(steps), notes=[note])


def measure(durability: Durability, steps: int, laps: list[Lap], bare: list[Lap]) -> Measure:
    """Return the measure of one durability."""
    target, share_target = TARGETS[durability]
    outside_ms = median([1e3 * (lap.whole_s - lap.seconds) for lap in laps])
    return compared(
        chains.rates(laps),
        chains.rates(bare),
        key=f"chain/{durability}",
        what=f"{steps:,} steps, {durability}",
        unit="steps/s",
        target=target,
        share_target=share_target,
        figures=chains.explained(laps) | {"ms outside its steps": outside_ms},
    )
