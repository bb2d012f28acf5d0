"""`create`: instances that are created and do not start yet, one awaited after the other, and in batches.

Their start lies a day ahead, so that nothing but creating is measured. A creation is durable when `create`
returns, whatever the durability of the instances: the bare loop inserts the same rows into the same table
with its indexes at `synchronous=FULL`, one or as many per commit.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

import msgspec
import trio

import perdure
from perdure.benchmarks.bare import INSTANCES, Table, insert_rows, read_table
from perdure.benchmarks.harness import Bench, WorkNotDoneError, compared
from perdure.benchmarks.results import Found, Measure
from perdure.benchmarks.workflows import Short
from perdure.engine.batches import BatchEntry


class Size(msgspec.Struct, frozen=True, kw_only=True):
    """How many one by one; and how many in batches of how many."""

    singles: int
    batched: int
    per_batch: int


SIZES: Final = {
    "full": (Size(singles=3_000, batched=50_000, per_batch=1_000), 5),
    "quick": (Size(singles=1_000, batched=10_000, per_batch=1_000), 3),
    "tiny": (Size(singles=3, batched=6, per_batch=3), 1),
}
TARGETS: Final = {"one": 3_000, "batch": 50_000}
STATUS: Final = "SELECT count(*) AS n FROM instances WHERE status = 'queued'"


@asynccontextmanager
async def idle_runtime(folder: Path) -> AsyncGenerator[perdure.Runtime]:
    """Open a runtime on a new state folder."""
    async with perdure.open_runtime(folder, workflows=[Short]) as runtime:
        yield runtime


async def one_by_one(folder: Path, size: Size) -> float:
    """Create instances one by one and return the seconds."""
    start = datetime.now(UTC) + timedelta(days=1)
    async with idle_runtime(folder) as runtime:
        began_s = time.perf_counter()
        for number in range(size.singles):
            await runtime.create(Short, params=5, id=f"{number}", at=start)
        seconds = time.perf_counter() - began_s
        await check(runtime, size.singles)
    return seconds


async def in_batches(folder: Path, size: Size) -> float:
    """Create instances in batches and return the seconds."""
    start = datetime.now(UTC) + timedelta(days=1)
    async with idle_runtime(folder) as runtime:
        began_s = time.perf_counter()
        for first in range(0, size.batched, size.per_batch):
            entries: list[BatchEntry] = [
                {"id": f"{first + at}", "params": 5, "at": start} for at in range(size.per_batch)
            ]
            await runtime.create_batch(Short, entries)
        seconds = time.perf_counter() - began_s
        await check(runtime, size.batched)
    return seconds


async def check(runtime: perdure.Runtime, expected: int) -> None:
    """Raise `WorkNotDoneError` where other than so many instances wait for their start."""
    (row,) = await runtime.sql(STATUS)
    if row["n"] != expected:
        raise WorkNotDoneError(f"{row['n']} of {expected} instances were created")


def record_rows(bench: Bench[Size]) -> Table:
    """Create instances and return the catalog's rows."""
    folder = bench.new_folder()
    trio.run(one_by_one, folder, bench.size)
    return read_table(folder / "catalog.sqlite", INSTANCES)


def more(table: Table, count: int) -> Table:
    """Return the table with so many rows, their ids numbered."""
    at = table.columns.index("id")
    rows = [
        (*row[:at], f"{number:09}", *row[at + 1 :])
        for number, row in ((number, table.rows[number % len(table.rows)]) for number in range(count))
    ]
    return msgspec.structs.replace(table, rows=rows)


def run(bench: Bench[Size]) -> Found:
    """Measure both ways of creating."""
    size = bench.size
    singles = more(record_rows(bench), size.singles)
    batched = more(singles, size.batched)
    variants: dict[str, Callable[[], float]] = {
        "bare, one by one": lambda: insert_rows(bench.new_folder() / "bare.sqlite", singles, per_commit=1),
        "one by one": lambda: trio.run(one_by_one, bench.new_folder(), size),
        "bare, batches": lambda: insert_rows(
            bench.new_folder() / "bare.sqlite", batched, per_commit=size.per_batch
        ),
        "batches": lambda: trio.run(in_batches, bench.new_folder(), size),
    }
    laps = bench.in_turn(variants)
    measures = [
        measure(
            "one", f"{size.singles:,} one by one", size.singles, laps["one by one"], laps["bare, one by one"]
        ),
        measure(
            "batch",
            f"{size.batched:,} in batches of {size.per_batch:,}",
            size.batched,
            laps["batches"],
            laps["bare, batches"],
        ),
    ]
    return Found(measures=measures, computed=[size])


def measure(way: str, what: str, count: int, ours: list[float], bare: list[float]) -> Measure:
    """Return the measure of one way of creating."""
    return compared(
        [count / seconds for seconds in ours],
        [count / seconds for seconds in bare],
        key=f"create/{way}", what=what, unit="instances/s", target=TARGETS[way],
    )  # fmt: skip
