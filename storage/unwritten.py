"""Instance files that are not written yet: a short instance lives in memory, its commits in the relay log.

Most of what a short instance costs is the making of its file: a database, its WAL and its shared
memory are created, and two of them removed. An instance that was just created therefore begins as a
database in memory, whose commits go to the relay log like any other's. Its file is written in one
piece when it comes to rest, or when it has lived for a while, or when somebody wants to read it.

Databases in memory are used again, emptied, with all their statements prepared.

Invariants:
    What is acknowledged of an unwritten file is in the relay log, and the log is kept until the file is
    written: after the death of the process the next owner writes it from there.
    A file appears under its name whole, or not at all.
    Nothing of one instance is left in a database that another gets.
"""

from __future__ import annotations

import contextlib
import functools
import sqlite3
from collections import deque
from pathlib import Path
from typing import Final

from perdure.storage.disk import Disk
from perdure.storage.files import InstanceFile
from perdure.storage.records import Durability
from perdure.storage.schema import PAGE_BYTES, template

SPARE_MAX: Final = 64
UNWRITTEN_MAX: Final = 1_000
"""Files in memory, most of them of instances that have ended and wait to be written: 25 KB each."""
FORMAT: Final = slice(18, 20)
"""Where a database's header says whether it is to be used with a WAL (2) or not (1): memory has none."""
COUNTERS: Final = (slice(24, 28), slice(92, 96))
"""What differs between two databases with the same content: how often they were changed."""


class MemoryFiles:
    """Makes unwritten files. One per runtime; files are made in the loop and written in threads."""

    def __init__(self, *, disk: Disk, durability: Durability) -> None:
        self._disk = disk
        self._durability: Durability = durability
        self._spare: deque[sqlite3.Connection] = deque()
        self._unwritten: set[InstanceFile] = set()
        self._attached: set[InstanceFile] = set()
        self.expected: set[object] = set()
        """For whom files will be made, by whoever has promised them one."""

    @property
    def unwritten(self) -> int:
        """How many files are not written yet."""
        return len(self._unwritten)

    @property
    def in_use(self) -> int:
        """How many databases are in use, those included that will be."""
        return len(self._attached) + len(self.expected)

    def room(self, databases_max: int) -> int:
        """Return how many more may be made, where so many databases are to be in use at most."""
        return min(databases_max - self.in_use, UNWRITTEN_MAX - self.unwritten)

    def make(self, path: Path) -> InstanceFile:
        """Return an empty file that will be written to `path`."""
        connection = self._spare.pop() if self._spare else _connect()
        file = InstanceFile(path, connection, disk=self._disk, durability=self._durability)
        file.is_new = True
        file.unwritten = self
        self._unwritten.add(file)
        self._attached.add(file)
        return file

    def give_back(self, file: InstanceFile, connection: sqlite3.Connection) -> None:
        """Take back the database of a file that does without from now on."""
        self._attached.discard(file)
        with contextlib.suppress(sqlite3.Error):
            usable = file.guard is None and not connection.in_transaction and len(self._spare) < SPARE_MAX
            if usable and _is_emptied(connection, file.image):
                self._spare.append(connection)
                return
        connection.close()

    def written(self, file: InstanceFile) -> None:
        """Say that a file has been written, or has nothing in it. Runs in a thread."""
        self._unwritten.discard(file)

    def close(self) -> None:
        """Let go of the spare databases."""
        while self._spare:
            self._spare.pop().close()


@functools.cache
def _empty() -> bytes:
    return template()[: FORMAT.start] + b"\1\1" + template()[FORMAT.stop :]


@functools.cache
def _tables() -> tuple[tuple[str, slice], ...]:
    """Return each table, and where the page lies with which it begins."""
    with contextlib.closing(_connect()) as connection:
        rows = connection.execute("SELECT name, rootpage FROM sqlite_schema WHERE type = 'table'").fetchall()
    return tuple((name, slice((page - 1) * PAGE_BYTES, page * PAGE_BYTES)) for name, page in rows)


def is_long(file: InstanceFile) -> bool:
    """Whether a file has grown so far that comparing it as a whole, at each commit, costs more than a WAL."""
    return len(file.image) > 2 * len(template())


def _connect() -> sqlite3.Connection:
    connection = sqlite3.connect(
        ":memory:", isolation_level=None, check_same_thread=False, cached_statements=128
    )
    connection.deserialize(_empty())
    connection.execute("PRAGMA secure_delete=ON")  # what is deleted is overwritten
    connection.execute("PRAGMA temp_store=MEMORY")
    return connection


def _is_emptied(connection: sqlite3.Connection, image: bytes) -> bool:
    """Delete all rows; whether the database is then as it was made, byte for byte."""
    for table, page in _tables():
        if image[page] != _empty()[page]:
            connection.execute(f"DELETE FROM {table}")
    return _without_counters(connection.serialize()) == _without_counters(_empty())


def _without_counters(data: bytes) -> bytes:
    first, second = COUNTERS
    return data[: first.start] + data[first.stop : second.start] + data[second.stop :]
