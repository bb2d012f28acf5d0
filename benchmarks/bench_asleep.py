"""`asleep`: the memory of a whole process with 100,000 instances asleep.

Most of them have been asleep since before the process began (`folders.py`: real rows of the catalog); the
others really start, run and go to sleep in it, so that what a passing instance leaves in memory is seen,
too. The figure is resident memory once nothing is warm any more, with the interpreter and all libraries.
"""

from __future__ import annotations

from typing import Final

import msgspec

from perdure.benchmarks import children, folders
from perdure.benchmarks.harness import Bench, WorkNotDoneError, compared, median
from perdure.benchmarks.results import Found


class Size(msgspec.Struct, frozen=True, kw_only=True):
    """How many are asleep before, and how many go to sleep."""

    before: int
    falling: int


SIZES: Final = {
    "full": (Size(before=95_000, falling=5_000), 1),
    "quick": (Size(before=9_500, falling=500), 1),
    "tiny": (Size(before=20, falling=5), 1),
}
MEGABYTES_MAX: Final = 100
MB: Final = 1e6
DAY_S: Final = 86_400.0


def run(bench: Bench[Size]) -> Found:
    """Measure the memory in a process of its own."""
    size = bench.size
    reports = bench.in_turn({"asleep": lambda: asleep(bench)})["asleep"]
    whole = compared(
        [report.memory / MB for report in reports],
        key="asleep/whole", what=f"whole process, {size.before + size.falling:,} asleep", unit="MB",
        better="less", target=MEGABYTES_MAX,
        figures={"MB with the runtime just opened": median([each.memory_before / MB for each in reports])},
    )  # fmt: skip
    empty = empty_bytes(bench)
    each = compared(
        [(report.memory - empty) / 1e3 / report.rows for report in reports],
        key="asleep/each", what="of it for each", unit="KB", better="less",
        figures={"MB of a process with an empty runtime": empty / MB},
    )  # fmt: skip
    note = folders.note(0, size.before, 0) + f"; {size.falling:,} more went to sleep in this process"
    return Found(measures=[whole, each], computed=[size], notes=[note])


def asleep(bench: Bench[Size]) -> children.Report:
    """Make the folder and have a process work on it."""
    state, size = bench.new_folder(), bench.size
    folders.make(state, finished=0, sleeping=size.before, files=0, say=bench.say)
    bench.say(f"{size.falling:,} instances go to sleep")
    report = children.run("asleep", state, children.Task(count=size.falling, sleep_s=DAY_S))
    if report.rows != size.before + size.falling:
        raise WorkNotDoneError(f"{report.rows} instances are asleep, not {size.before + size.falling}")
    return report


def empty_bytes(bench: Bench[Size]) -> float:
    """Return the memory of a process that has opened an empty folder."""
    return children.run("asleep", bench.new_folder(), children.Task()).memory
