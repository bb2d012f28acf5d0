"""`replay`: `run()` over steps that are recorded, answered from the journal at a start.

There is no bare counterpart: a bare loop has nothing to call again.
"""

from __future__ import annotations

from typing import Final

import trio

from perdure.benchmarks import chains
from perdure.benchmarks.harness import Bench, compared
from perdure.benchmarks.results import Found

SIZES: Final = {"full": (10_000, 9), "quick": (10_000, 3), "tiny": (20, 2)}
TARGET: Final = 500_000


def run(bench: Bench[int]) -> Found:
    """Record one open chain and replay it."""
    folder = bench.new_folder()
    bench.say(f"recording {bench.size:,} steps")
    trio.run(chains.record_open_chain, folder, bench.size)
    laps = bench.in_turn({"replay": lambda: trio.run(chains.replay, folder)})["replay"]
    measure = compared(
        chains.rates(laps),
        key="replay",
        what=f"{bench.size:,} recorded steps",
        unit="steps/s",
        target=TARGET,
        figures={"µs per step": 1e6 / sorted(chains.rates(laps))[len(laps) // 2]},
    )
    return Found(measures=[measure], computed=[bench.size, chains.sum_of(bench.size)])
