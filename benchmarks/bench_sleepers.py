"""`sleepers`: 10,000 instances, each of which sleeps until 60 s after its creation: how late they go on.

They are created one by one in a process of its own, durability `full`: spread over 15 s, which is about
what the peers took to create theirs, and, besides, as fast as `create` takes them, so that they are due
as fast. Each starts, falls asleep, leaves memory, and is woken by itself. Lateness is from the due time,
which counts from the creation, to the line of `run()` behind the sleep, so that a start that came late is
in it.
"""

from __future__ import annotations

from typing import Final

import msgspec

from perdure.benchmarks import children
from perdure.benchmarks.harness import Bench, WorkNotDoneError, compared, median, percentile
from perdure.benchmarks.results import Found, Measure

SIZES: Final = {
    "full": (children.Task(count=10_000, sleep_s=60.0, created_s=15.0), 1),
    "quick": (children.Task(count=1_000, sleep_s=10.0, created_s=1.5), 1),
    "tiny": (children.Task(count=5, sleep_s=0.3, created_s=0.05), 1),
}
TARGETS_MS: Final[dict[int, float | None]] = {50: None, 99: 50.0}
SPREAD: Final = "created in {:g} s"
BURST: Final = "created as fast as they are taken"


def run(bench: Bench[children.Task]) -> Found:
    """Measure how late sleepers go on."""
    task = bench.size
    spread = SPREAD.format(task.created_s)
    reports = bench.in_turn(
        {
            spread: lambda: sleepers(bench, task),
            BURST: lambda: sleepers(bench, msgspec.structs.replace(task, created_s=0.0)),
        }
    )
    measures = [
        *(
            _late(reports[spread], task, f"sleepers/p{percent}", spread, percent, target)
            for percent, target in TARGETS_MS.items()
        ),
        _late(reports[BURST], task, "sleepers/burst", BURST, 99, None),
    ]
    return Found(measures=measures, computed=[task.count, task.sleep_s])


def _late(  # noqa: PLR0917 - each of them differs between the three lines of the table
    laps: list[children.Report], task: children.Task, key: str, how: str, percent: int, target: float | None
) -> Measure:
    return compared(
        [1e3 * percentile(lap.late_s, percent) for lap in laps],
        key=key,
        what=f"{task.count:,} sleep {task.sleep_s:g} s, {how}: late, {percent}th percentile",
        unit="ms",
        better="less",
        target=target,
        figures={
            "ms late at most": median([1e3 * max(lap.late_s) for lap in laps]),
            "s to create them all": median([lap.created_s for lap in laps]),
        },
    )


def sleepers(bench: Bench[children.Task], task: children.Task) -> children.Report:
    """Have a process put them to sleep and wait for them."""
    report = children.run("sleepers", bench.new_folder(), task)
    if len(report.late_s) != task.count:
        raise WorkNotDoneError(f"{len(report.late_s)} of {task.count} sleepers went on")
    return report
