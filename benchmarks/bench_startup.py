"""`startup`: a process opens a folder of 1,000,000 finished and 100,000 sleeping instances.

The figure is from the start of the process to an open runtime: the interpreter, the imports, the folder's
lock, what has to be recovered. The page cache is warm, as after the stop of the process before.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Final

import msgspec

from perdure.benchmarks import children, folders
from perdure.benchmarks.harness import Bench, compared, median
from perdure.benchmarks.results import Found


class Size(msgspec.Struct, frozen=True, kw_only=True):
    """How many instances, and how many of each kind have a file."""

    finished: int
    sleeping: int
    files: int


SIZES: Final = {
    "full": (Size(finished=1_000_000, sleeping=100_000, files=100_000), 5),
    "quick": (Size(finished=100_000, sleeping=10_000, files=1_000), 3),
    "tiny": (Size(finished=30, sleeping=10, files=5), 1),
}
READY_MS_MAX: Final = 1_000


class Start(msgspec.Struct, frozen=True, kw_only=True):
    """One start of the process, in milliseconds."""

    ready: float
    opening: float
    first_result: float


def run(bench: Bench[Size]) -> Found:
    """Make the folder once, and start processes on it."""
    size, state = bench.size, bench.new_folder()
    folders.make(state, finished=size.finished, sleeping=size.sleeping, files=size.files, say=bench.say)
    starts = bench.in_turn(
        {"start": lambda: start(state), "start of an empty one": lambda: start(bench.new_folder())}
    )
    ours, empty = starts["start"], starts["start of an empty one"]
    ready = compared(
        [each.ready for each in ours],
        key="startup/ready", what="from the start of the process to ready", unit="ms", better="less",
        target=READY_MS_MAX,
        figures={
            "ms of it opening": median([each.opening for each in ours]),
            "ms from there to a new instance's result": median([each.first_result for each in ours]),
            "ms to ready with an empty folder": median([each.ready for each in empty]),
        },
    )  # fmt: skip
    files = min(size.files, size.finished) + min(size.files, size.sleeping)
    return Found(measures=[ready], computed=[size], notes=[folders.note(size.finished, size.sleeping, files)])


def start(state: Path) -> Start:
    """Start a process on the folder and have it end."""
    began_s = time.time()
    report = children.run("startup", state, children.Task())
    return Start(
        ready=1e3 * (report.up_at_s - began_s + report.opened_s),
        opening=1e3 * report.opened_s,
        first_result=1e3 * report.first_result_s,
    )
