"""State folders of a size that nobody wants to wait for: real rows of the catalog, multiplied.

One instance really runs to its end and one really goes to sleep; their rows in the catalog are then copied
as often as asked for, each with an id of its own, the sleepers' wake-ups a second apart. Their files
are links to copies of these two instances' files: what opening a folder reads of them is there, and a sleeper
that would be woken is not the one it says it is. Nothing of this is woken by a benchmark.

Invariants:
    The catalog's indexes are as if each row had been written by itself.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
from pathlib import Path
from typing import Final

import trio

import perdure
from perdure.benchmarks.bare import INSTANCES
from perdure.benchmarks.harness import Say
from perdure.benchmarks.workflows import Short, Sleeper

MODEL: Final = "model"
LINKS_MAX: Final = 30_000
"""ext4 takes 65,000 names for one file."""
FAR_S: Final = 1e7
ROWS_AT_ONCE: Final = 100_000
NUMBERED: Final = ("id", "incarnation", "wake_at", "wake_boot", "until_at")


def note(finished: int, sleeping: int, files: int) -> str:
    """Return what a report has to say about such a folder."""
    return (
        f"the catalog has {finished:,} real rows of finished and {sleeping:,} of sleeping instances;"
        f" {files:,} instance files are links to copies of one finished and one sleeping file"
    )


async def record_models(state: Path) -> None:
    """Run one instance to its end and put another to sleep."""
    limits = perdure.Limits(idle_grace_s=0.05)
    env: list[float] = []
    async with perdure.open_runtime(state, workflows=[Short, Sleeper], env=env, limits=limits) as runtime:
        await (await runtime.create(Short, params=5, id=MODEL)).result()
        await runtime.create(Sleeper, params=FAR_S, id=MODEL)
        while runtime.statistics().warm:  # noqa: ASYNC110 - no event says so
            await trio.sleep(0.02)


def make(state: Path, *, finished: int, sleeping: int, files: int, say: Say) -> None:
    """Make a state folder with so many instances, the first `files` of each kind with a file."""
    trio.run(record_models, state)
    connection = sqlite3.connect(state / "catalog.sqlite", isolation_level=None)
    connection.execute("PRAGMA synchronous=OFF")
    for workflow, count in ((Short.__name__, finished), (Sleeper.__name__, sleeping)):
        for first in range(1, count, ROWS_AT_ONCE):
            say(f"writing rows of the catalog: {first:,} of {count:,} {workflow}")
            multiply(connection, workflow, first, min(first + ROWS_AT_ONCE, count))
        link(state / workflow, min(count, files), say)
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()


def multiply(connection: sqlite3.Connection, workflow: str, first: int, end: int) -> None:
    """Copy the model's row once for each number from `first` up to `end`."""
    names = [row[1] for row in connection.execute(f"PRAGMA table_info({INSTANCES})")]
    values = {
        name: f"{name} + number * {1_000 if name != 'incarnation' else 1}" if name in NUMBERED else name
        for name in names
    }
    values["id"] = "printf('%08d', number)"
    connection.execute(
        f"""
        WITH RECURSIVE numbers (number) AS
            (SELECT ? UNION ALL SELECT number + 1 FROM numbers WHERE number + 1 < ?)
        INSERT INTO {INSTANCES} ({", ".join(names)})
        SELECT {", ".join(values[name] for name in names)} FROM {INSTANCES}, numbers
        WHERE workflow = ? AND id = ?""",
        (first, end, workflow, MODEL),
    )


def link(folder: Path, count: int, say: Say) -> None:
    """Give the first instances of a workflow their files."""
    model = source = folder / f"{MODEL}.sqlite"
    for number in range(1, count):
        if number % LINKS_MAX == 1:
            say(f"linking files: {number:,} of {count:,}")
            source = folder / f"{number:08}.sqlite"
            shutil.copyfile(model, source)
        else:
            os.link(source, folder / f"{number:08}.sqlite")
