"""`sleepers`: 10,000 instances, each of which sleeps until 60 s after its creation: how late they go on.

They are created one by one, as fast as `create` takes them, in a process of its own, durability `full`;
each starts, falls asleep, leaves memory, and is woken by itself. Lateness is from the due time, which counts
from the creation, to the line of `run()` behind the sleep, so that a start that came late is in it.
"""

from __future__ import annotations

from typing import Final

from perdure.benchmarks import children
from perdure.benchmarks.harness import Bench, WorkNotDoneError, compared, median, percentile
from perdure.benchmarks.results import Found

SIZES: Final = {
    "full": (children.Task(count=10_000, sleep_s=60.0), 1),
    "quick": (children.Task(count=1_000, sleep_s=10.0), 1),
    "tiny": (children.Task(count=5, sleep_s=0.3), 1),
}
TARGETS_MS: Final[dict[int, float | None]] = {50: None, 99: 50.0}


def run(bench: Bench[children.Task]) -> Found:
    """Measure how late sleepers go on."""
    task = bench.size
    reports = bench.in_turn({f"{task.sleep_s:g} s and more": lambda: sleepers(bench)})
    (laps,) = reports.values()
    measures = [
        compared(
            [1e3 * percentile(lap.late_s, percent) for lap in laps],
            key=f"sleepers/p{percent}",
            what=f"{task.count:,} sleep {task.sleep_s:g} s, late, {percent}th percentile",
            unit="ms",
            better="less",
            target=target,
            figures={
                "ms late at most": median([1e3 * max(lap.late_s) for lap in laps]),
                "s to create them all": median([lap.created_s for lap in laps]),
            },
        )
        for percent, target in TARGETS_MS.items()
    ]
    return Found(measures=measures, computed=[task.count, task.sleep_s])


def sleepers(bench: Bench[children.Task]) -> children.Report:
    """Have a process put them to sleep and wait for them."""
    report = children.run("sleepers", bench.new_folder(), bench.size)
    if len(report.late_s) != bench.size.count:
        raise WorkNotDoneError(f"{len(report.late_s)} of {bench.size.count} sleepers went on")
    return report
