"""The bare loops: `sqlite3` alone writes the rows that Perdure has left, with the same durability.

What Perdure wrote is read back, table by table: schema, indexes, columns and values. The bare loop
writes the same once more: a step's row is inserted as it was when the step began and updated to
how it ended, with a commit for each end with the next start. So a share of the bare loop says what
Perdure adds to what SQLite and the disk take in any case.

With durability `full` SQLite syncs each commit (`synchronous=FULL`), with `process` none (`OFF`).

Invariants:
    Both sides have left the same rows at the end, or nothing is reported.
"""

from __future__ import annotations

import itertools
import os
import sqlite3
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, Literal

import msgspec

from perdure.benchmarks.harness import WorkNotDoneError, median
from perdure.benchmarks.workflows import Lap

Durability = Literal["full", "process"]
DURABILITIES: Final[tuple[Durability, ...]] = ("full", "process")
INSTANCE: Final = "_perdure_instance"
INSTANCES: Final = "_perdure_instances"
STEPS: Final = "_perdure_steps"
CHUNKS: Final = "_perdure_chunks"
SYNCS: Final = 200
"""How many appends tell what one sync of this disk takes."""


class Table(msgspec.Struct, frozen=True, kw_only=True):
    """A table as Perdure has left it: its schema with its indexes, and all rows."""

    name: str
    schema: list[str]
    columns: list[str]
    rows: list[tuple[Any, ...]]

    @property
    def insert(self) -> str:
        """The statement that inserts one of the rows."""
        return _insert(self.name, self.columns)


class Steps(msgspec.Struct, frozen=True, kw_only=True):
    """The table of steps, and what each row was at the step's start and at its end."""

    table: Table
    start: str
    starts: list[tuple[Any, ...]]
    end: str
    ends: list[tuple[Any, ...]]


def read_table(file: Path, name: str) -> Table:
    """Read a table whole."""
    connection = sqlite3.connect(file)
    try:
        schema = connection.execute(
            "SELECT sql FROM sqlite_schema WHERE tbl_name = ? AND sql IS NOT NULL"
            " AND type IN ('table', 'index') ORDER BY type DESC",  # triggers are not for a bare loop
            (name,),
        ).fetchall()
        cursor = connection.execute(f"SELECT * FROM {name} ORDER BY 1, 2")
        columns = [column[0] for column in cursor.description]
        return Table(name=name, schema=[sql for (sql,) in schema], columns=columns, rows=cursor.fetchall())
    finally:
        connection.close()


def read_steps(file: Path) -> Steps:
    """Read the steps of a chain, and tell their starts from their ends by the names of the columns."""
    table = read_table(file, STEPS)
    used = [at for at, _ in enumerate(table.columns) if any(row[at] is not None for row in table.rows)]
    key, status = table.columns.index("seq"), table.columns.index("status")
    ending = [at for at in used if at == status or table.columns[at].startswith(("output", "ended", "error"))]
    starting = [at for at in used if at == status or at not in ending]
    names = table.columns
    return Steps(
        table=table,
        start=_insert(STEPS, [names[at] for at in starting]),
        starts=[tuple(_begun(row[at]) if at == status else row[at] for at in starting) for row in table.rows],
        end=f"UPDATE {STEPS} SET {', '.join(f'{names[at]} = ?' for at in ending)} WHERE seq = ?",
        ends=[(*(row[at] for at in ending), row[key]) for row in table.rows],
    )


def _begun(status: Any) -> Any:
    return "running" if isinstance(status, str) else 0


def _insert(name: str, columns: Sequence[str]) -> str:
    return f"INSERT INTO {name} ({', '.join(columns)}) VALUES ({', '.join('?' * len(columns))})"


def connect(file: Path, durability: Durability, *tables: Table) -> sqlite3.Connection:
    """Open a file as the bare loop does, and make the tables where they are missing."""
    connection = sqlite3.connect(file, isolation_level=None)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute(f"PRAGMA synchronous={'FULL' if durability == 'full' else 'OFF'}")
    connection.execute("PRAGMA wal_autocheckpoint=0")
    for sql in itertools.chain.from_iterable(table.schema for table in tables):
        connection.execute(sql)
    return connection


def check_rows(file: Path, *tables: Table) -> None:
    """Raise `WorkNotDoneError` where a file's tables differ from what Perdure has left."""
    for table in tables:
        if read_table(file, table.name).rows != table.rows:
            raise WorkNotDoneError(f"the bare loop has left other rows in {table.name} than Perdure")


# -- one file --------------------------------------------------------------------------------


def run_chain(file: Path, durability: Durability, steps: Steps) -> Lap:
    """Write a chain's rows: one commit for each end with the next start."""
    connection = connect(file, durability, steps.table)
    execute = connection.execute
    began_s, cpu_s = time.perf_counter(), time.thread_time()
    execute("BEGIN IMMEDIATE")
    for begun, ended in zip(steps.starts, steps.ends, strict=True):
        execute(steps.start, begun)
        execute("COMMIT")
        execute("BEGIN IMMEDIATE")
        execute(steps.end, ended)
    seconds, cpu_s = time.perf_counter() - began_s, time.thread_time() - cpu_s
    execute("COMMIT")
    whole_s = time.perf_counter() - began_s
    connection.close()
    check_rows(file, steps.table)
    count = len(steps.starts)
    syncs = count if durability == "full" else 0
    return Lap(steps=count, seconds=seconds, cpu_s=cpu_s, commits=count, syncs=syncs, whole_s=whole_s)


def run_fan_out(file: Path, durability: Durability, steps: Steps) -> Lap:
    """Write the rows of parallel steps: all starts in one commit, all ends in another."""
    connection = connect(file, durability, steps.table)
    began_s = time.perf_counter()
    for statement, rows in ((steps.start, steps.starts), (steps.end, steps.ends)):
        connection.execute("BEGIN IMMEDIATE")
        connection.executemany(statement, rows)
        connection.execute("COMMIT")
    seconds = time.perf_counter() - began_s
    connection.close()
    check_rows(file, steps.table)
    return Lap(steps=len(steps.starts), seconds=seconds, commits=2, syncs=2 if durability == "full" else 0)


def run_large(file: Path, durability: Durability, steps: Steps, chunks: Table) -> Lap:
    """Write steps with large results: the pieces of each in the commit of its end."""
    connection = connect(file, durability, steps.table, chunks)
    each = len(chunks.rows) // len(steps.starts)
    pieces = iter(chunks.rows)
    began_s = time.perf_counter()
    connection.execute("BEGIN IMMEDIATE")
    for begun, ended in zip(steps.starts, steps.ends, strict=True):
        connection.execute(steps.start, begun)
        connection.execute("COMMIT")
        connection.execute("BEGIN IMMEDIATE")
        connection.executemany(chunks.insert, itertools.islice(pieces, each))
        connection.execute(steps.end, ended)
    connection.execute("COMMIT")
    seconds = time.perf_counter() - began_s
    connection.close()
    check_rows(file, steps.table, chunks)
    return Lap(steps=len(steps.starts), seconds=seconds)


def insert_rows(file: Path, table: Table, *, per_commit: int) -> float:
    """Insert a table's rows at `synchronous=FULL`, so many in each commit; return the seconds."""
    connection = connect(file, "full", table)
    began_s = time.perf_counter()
    for first in range(0, len(table.rows), per_commit):
        connection.execute("BEGIN IMMEDIATE")
        connection.executemany(table.insert, table.rows[first : first + per_commit])
        connection.execute("COMMIT")
    seconds = time.perf_counter() - began_s
    connection.close()
    check_rows(file, table)
    return seconds


# -- whole instances -------------------------------------------------------------------------


class Finished(msgspec.Struct, frozen=True, kw_only=True):
    """A finished instance as Perdure has left it: its row in the catalog, and its file's rows."""

    template: bytes
    row: Table
    instance: Table
    steps: Steps


def read_finished(state: Path, file: Path, template: bytes) -> Finished:
    """Read the only instance of a state folder."""
    return Finished(
        template=template,
        row=read_table(state / "catalog.sqlite", INSTANCES),
        instance=read_table(file, INSTANCE),
        steps=read_steps(file),
    )


class BareFolder:
    """A catalog and files like Perdure's, written by `sqlite3` alone, one instance after the other."""

    def __init__(self, folder: Path, durability: Durability, model: Finished) -> None:
        self._folder = folder
        self._durability: Durability = durability
        self._model = model
        self._catalog = connect(folder / "catalog.sqlite", "full", model.row)
        self._id = model.row.columns.index("id")
        self._number = 0
        self._file: sqlite3.Connection | None = None

    def create(self, count: int) -> None:
        """Insert so many rows into the catalog in one commit."""
        (row,) = self._model.row.rows
        rows = [(*row[: self._id], f"{self._number + at}", *row[self._id + 1 :]) for at in range(count)]
        self._catalog.execute("BEGIN IMMEDIATE")
        self._catalog.executemany(self._model.row.insert, rows)
        self._catalog.execute("COMMIT")

    def run(self) -> None:
        """Make the next instance's file and write its rows, a commit for each end with the next start.

        Its result would be durable on return; the file stays open, for `close`.
        """
        file = self._folder / f"{self._number}.sqlite"
        self._number += 1
        file.write_bytes(self._model.template)
        connection = connect(file, self._durability)
        execute, steps = connection.execute, self._model.steps
        execute("BEGIN IMMEDIATE")
        execute(self._model.instance.insert, self._model.instance.rows[0])
        for begun, ended in zip(steps.starts, steps.ends, strict=True):
            execute(steps.start, begun)
            execute("COMMIT")
            execute("BEGIN IMMEDIATE")
            execute(steps.end, ended)
        execute(f"UPDATE {INSTANCE} SET status = status")
        execute("COMMIT")
        self._file = connection

    def close(self) -> None:
        """Close the file that `run` left open; SQLite moves its log into it then."""
        if self._file is not None:
            self._file.close()

    def settle(self) -> None:
        """Update all rows of the catalog in one commit, and close it."""
        self._catalog.execute(f"UPDATE {INSTANCES} SET status = status, ended_at = ended_at")
        self._catalog.close()

    def check(self) -> None:
        """Raise `WorkNotDoneError` where the last file has other rows than Perdure's."""
        file = self._folder / f"{self._number - 1}.sqlite"
        check_rows(file, self._model.instance, self._model.steps.table)


# -- the disk --------------------------------------------------------------------------------


def sync_s(folder: Path) -> float:
    """Return what one append of a page with its sync takes on this disk, in seconds."""
    descriptor = os.open(folder / "appended", os.O_WRONLY | os.O_CREAT)
    sync: Callable[[int], None] = os.fsync if sys.platform == "darwin" else os.fdatasync
    took: list[float] = []
    for _ in range(SYNCS):
        began_s = time.perf_counter()
        os.write(descriptor, b"\0" * 4096)
        sync(descriptor)
        took.append(time.perf_counter() - began_s)
    os.close(descriptor)
    return median(took)
