"""An instance's file: made from a template, opened, migrated, committed, closed. The one way.

The loop's thread writes through one connection; nobody else writes. SQLite itself never syncs
for an open file (`synchronous=OFF`): the gate does, in another thread, through a descriptor of
the `-wal` file, which is harmless to SQLite's locks. Closing and checkpointing sync through
SQLite, off the loop.

Invariants:
    A file is opened by SQLite alone while it is live.
    Each write transaction begins by checking the epoch: a file taken over is not written to.
    One connection checkpoints at a time.
    What `close` leaves behind is one file, checkpointed and, with durability `full`, synced.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sqlite3
from collections.abc import Callable, Generator, Iterable, Sequence
from pathlib import Path
from typing import Any, Final

from perdure.errors import (
    InstanceDamagedError,
    PerdureError,
    StorageFullError,
    StorageWriteError,
)
from perdure.storage.disk import Disk
from perdure.storage.records import Durability, InstanceState
from perdure.storage.schema import PAGE_BYTES, check_header, template

ROOM_BYTES_MIN: Final = 64 * 1024  # less than a WAL with its shared memory needs
ROWS_PER_PAGE: Final = 2
DAMAGED: Final = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
BUSY_MS: Final = 1_000  # somebody edits the file with sqlite3: the loop waits this long at most

OPENING: Final = (
    "PRAGMA synchronous=OFF",  # this one reads and parses the whole schema
    "PRAGMA wal_autocheckpoint=0",
    "PRAGMA cache_size=-512",
    "PRAGMA temp_store=MEMORY",
)
CLOSED: Final = sqlite3.connect(":memory:", check_same_thread=False)
"""What a file has that has given its database to another: whoever would still use it is told."""
CLOSED.close()
EPOCH: Final = "SELECT epoch FROM _perdure_instance"


def create_file(path: Path, *, disk: Disk, durable: bool) -> None:
    """Make the empty instance file `path`. Runs off the loop; syncs when `durable`."""
    disk.make_folder(path.parent, durable=durable)
    disk.write_new(path, template(), durable=durable)


def remove_file(path: Path) -> None:
    """Remove a closed instance file with whatever SQLite left beside it. Runs off the loop."""
    for suffix in ("-wal", "-shm", ""):
        Path(f"{path}{suffix}").unlink(missing_ok=True)


def storage_error(error: sqlite3.Error | OSError, path: Path) -> PerdureError:
    """Return the error that tells the user what `error` means for the file `path`."""
    text = str(error)
    if _code(error) in DAMAGED:
        return InstanceDamagedError(
            f"the file {path} is damaged ({text}): restore it from a copy, or salvage it with: sqlite3 {path}"
            " .recover"
        )
    if _is_full(error, path):
        return StorageFullError(
            f"the disk that holds {path} is full ({text}): free some room; what was committed is intact and"
            " the instance goes on by itself",
            path=str(path),
        )
    return StorageWriteError(f"writing {path} failed: {text}; what was committed is intact", path=str(path))


def concerns_file(error: sqlite3.Error) -> bool:
    """Whether `error` is about the file or the disk rather than about the statement."""
    return _code(error) in DAMAGED or _code(error) in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR)


def _code(error: Exception) -> int:
    """Return SQLite's primary code of an error, 0 where it has none."""
    code: int = getattr(error, "sqlite_errorcode", 0)
    return code & 0xFF


def _is_full(error: sqlite3.Error | OSError, path: Path) -> bool:
    if isinstance(error, OSError):
        return error.errno in (errno.ENOSPC, errno.EDQUOT)
    if _code(error) == sqlite3.SQLITE_FULL:
        return True
    # Where the shared memory beside a WAL finds no room, SQLite says no more than "disk I/O error".
    return (
        _code(error) in (sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN)
        and _room_bytes(path.parent) < ROOM_BYTES_MIN
    )


def _room_bytes(folder: Path) -> int:
    try:
        disk = os.statvfs(folder)
    except OSError:
        return ROOM_BYTES_MIN
    return disk.f_bavail * disk.f_frsize if disk.f_favail else 0


class InstanceFile:
    """One open instance file: a connection, the transaction under way, and its commit number.

    `stamp` is the number of the commit that the next writes will be part of. `generation` grows
    with every commit; `durable_generation` is what the disk is known to have.
    """

    __slots__ = (
        "_ahead",
        "_changes",
        "_closed",
        "_disk",
        "_durability",
        "_execute",
        "_gave_back",
        "_in_transaction",
        "_wal",
        "bytes_since_checkpoint",
        "connection",
        "directory_synced",
        "durable_generation",
        "epoch",
        "failure",
        "generation",
        "guard",
        "has_large",
        "image",
        "is_new",
        "large_bytes",
        "large_moved",
        "leftover",
        "newborn",
        "owner",
        "path",
        "relay",
        "stamp",
        "ticket",
        "unwritten",
        "wanted_on_disk",
    )

    def __init__(
        self, path: Path, connection: sqlite3.Connection, *, disk: Disk, durability: Durability
    ) -> None:
        self.path = path
        self.connection = connection
        self._execute: Callable[..., sqlite3.Cursor] = connection.execute
        self.epoch = 0
        self.stamp = 1
        self.generation = 0
        self.durable_generation = 0
        self.bytes_since_checkpoint = 0
        self.large_bytes = 0  # of large values, since the WAL is known to have started over
        self.large_moved = 0  # how many of them had been written when the last checkpoint ended
        self.has_large = False  # whether one of them was too large to be written twice
        self.failure: Exception | None = None
        self.directory_synced = False
        self.is_new = False  # whether it was made a moment ago, so that nothing can be in it
        self._ahead: dict[str, list[Any]] = {}
        self.newborn: InstanceState | None = None  # all that it holds, until its first commit
        self.leftover = False  # whether a WAL was there already: its owner before was killed
        self.unwritten: Any = None  # what makes files in memory, as long as this one is there only
        self.wanted_on_disk = False  # whether somebody waits for it to be written
        self.image = b""  # its bytes as last committed, as long as it is unwritten
        self.relay: Any = None  # the relay log's: how far its commits are logged
        self.guard: object | None = None  # the authorizer of user statements, once there are any
        self.owner: object | None = None  # the engine's: whose file it is
        self.ticket: Any = None  # the gate's: who waits for this file
        self._disk = disk
        self._durability: Durability = durability
        self._in_transaction = False
        self._changes = connection.total_changes
        self._wal: int | None = None
        self._closed = False
        self._gave_back = False

    @property
    def in_transaction(self) -> bool:
        """Whether writes are waiting for the tick's commit."""
        return self._in_transaction

    def execute(self, sql: str, values: Sequence[object] = ()) -> sqlite3.Cursor:
        """Run one of the runtime's own statements. A failure marks the file: its actor is reset.

        Raises `StorageWriteError`, `StorageFullError` or `InstanceDamagedError`.
        """
        if self.failure is not None:  # SQLite may have rolled back: this would be a transaction of its own
            raise self.failure
        try:
            return self._execute(sql, values)
        except sqlite3.Error as error:
            raise self._fail(error) from error

    def fetch(self, sql: str, values: Sequence[object] = ()) -> list[Any]:
        """Run one reading statement and return all its rows; errors as in `execute`."""
        if self._ahead:
            rows = self._ahead.pop(sql, None)
            if rows is not None:
                return rows
        cursor = self.execute(sql, values)
        try:
            return cursor.fetchall()
        except sqlite3.Error as error:  # damage shows where a row is read, not where the statement begins
            raise self._fail(error) from error

    def read_ahead(self, sql: str, values: Sequence[object] = ()) -> list[Any]:
        """Keep a statement's rows for the first `fetch` of it before anything is written.

        Whoever opens the file off the loop reads there what its owner will ask for first.
        """
        rows = self._ahead[sql] = self.fetch(sql, values)
        return rows

    def execute_many(self, sql: str, values: Iterable[Sequence[object]]) -> None:
        """Run one statement for each of `values`; errors as in `execute`."""
        if self.failure is not None:
            raise self.failure
        try:
            self.connection.executemany(sql, values)
        except sqlite3.Error as error:
            raise self._fail(error) from error

    def _fail(self, error: sqlite3.Error) -> Exception:
        if self.failure is not None:
            return self.failure
        if _code(error) == sqlite3.SQLITE_ERROR:  # our statements are right, so the tables are not there
            self.failure = InstanceDamagedError(
                f"the file {self.path} has lost some of the runtime's tables ({error}): restore it from a"
                " copy"
            )
        else:
            self.failure = storage_error(error, self.path)
        return self.failure

    def begin(self) -> None:
        """Begin the tick's transaction, and refuse when the file belongs to another owner now."""
        self._ahead.clear()
        self._execute("BEGIN IMMEDIATE")
        self._in_transaction = True
        if self.unwritten is not None:
            return
        row = self._execute(EPOCH).fetchone()
        if row is not None and row[0] != self.epoch:
            self.rollback()
            raise StorageWriteError(
                f"{self.path} was taken over by another owner (epoch {row[0]}, ours {self.epoch})",
                path=str(self.path),
            )

    def commit(self) -> None:
        """Commit the tick's transaction. The bytes are then with the operating system."""
        self._execute("COMMIT")
        self._in_transaction = False
        self.newborn = None
        if self.unwritten is not None:
            data = self.connection.serialize()
            self.image = data[:18] + b"\2\2" + data[20:]  # on disk it is used with a WAL
        self.stamp += 1
        self.generation += 1
        # SQLite does not tell how much a commit added to the WAL: an ordinary one adds a page or two, a
        # user's statements add a page for every few rows.
        changes = self.connection.total_changes
        self.bytes_since_checkpoint += (1 + (changes - self._changes) // ROWS_PER_PAGE) * PAGE_BYTES
        self._changes = changes

    def rollback(self) -> None:
        """Drop what was written since `begin`."""
        self._in_transaction = False
        if self.connection.in_transaction:
            self._execute("ROLLBACK")

    def write_out(self) -> None:
        """Write a file that is in memory only, and go on with it on disk. Between transactions.

        Raises `StorageWriteError` or `StorageFullError`; it then stays in memory.
        """
        memory, unwritten = self.connection, self.unwritten
        try:
            self._write_image()
        except OSError as error:
            raise storage_error(error, self.path) from error
        written = open_file(self.path, disk=self._disk, durability=self._durability)
        self.connection, self._execute = written.connection, written.connection.execute
        self._changes = written.connection.total_changes
        unwritten.give_back(self, memory)
        unwritten.written(self)
        self.unwritten, self.guard, self.image = None, None, b""

    def _write_image(self) -> None:
        self._disk.make_folder(self.path.parent, durable=self._durability == "full")
        self._disk.write_new(self.path, self.image, durable=False)

    def wal_descriptor(self) -> int:
        """Return a descriptor of the `-wal` file, for reading and syncing. Raises `OSError`."""
        if self._wal is None:
            self._wal = os.open(f"{self.path}-wal", os.O_RDONLY | os.O_CLOEXEC)
        return self._wal

    @contextlib.contextmanager
    def writing_kept_out(self) -> Generator[None]:
        """Hold SQLite's write lock, so that nobody is in the middle of a commit. Raises `sqlite3.Error`."""
        if self.connection.in_transaction:
            yield
            return
        self._execute("BEGIN IMMEDIATE")
        try:
            yield
        finally:
            self._execute("ROLLBACK")

    @property
    def _syncs_itself(self) -> bool:
        """Whether SQLite is to sync what it moves into the main file: no log has it."""
        return self._durability == "full" and (self.relay is None or self.relay.direct)

    def sync(self) -> None:
        """Make what was committed durable. Runs in a thread of the gate."""
        self._disk.sync_descriptor(self.wal_descriptor())
        if not self.directory_synced:
            self._disk.sync_directory(self.path.parent)
            self.directory_synced = True

    def prepare_checkpoint(self) -> None:
        """Have SQLite sync the header with which a WAL starts over, from here on.

        Without that the disk could have frames of the new round under the header of the old one
        after a power failure, and SQLite would play old frames back over newer pages. Called in the
        loop, outside a transaction.
        """
        self.bytes_since_checkpoint = 0
        if self._syncs_itself:
            self._execute("PRAGMA synchronous=NORMAL")

    def checkpoint(self) -> None:
        """Move the WAL's pages into the file, synced through SQLite. Runs off the loop.

        Comes after `prepare_checkpoint`. Raises `sqlite3.Error`; nothing is lost then, and the WAL
        goes on growing.
        """
        connection = sqlite3.connect(self.path, isolation_level=None, check_same_thread=False)
        try:
            connection.execute(f"PRAGMA busy_timeout={BUSY_MS}")
            connection.execute(f"PRAGMA synchronous={'FULL' if self._syncs_itself else 'OFF'}")
            connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
        finally:
            connection.close()

    def close(self) -> None:
        """Close the file; the last connection checkpoints it and removes the WAL. Runs off the loop.

        Raises `OSError` where a file that is in memory only cannot be written; it is not closed then.
        """
        if self._closed:
            return
        if self.unwritten is not None:
            self._close_unwritten()
            return
        self._closed = True
        try:
            self.rollback()
            if self._syncs_itself:
                self._execute("PRAGMA synchronous=FULL")
        finally:
            self._let_go()

    def abandon(self) -> None:
        """Close the file as a crash would: its WAL stays as it is, for the next owner. Runs off the loop.

        Raises `OSError` as `close` does.
        """
        if self._closed:
            return
        if self.unwritten is not None:
            self._close_unwritten()
            return
        self._closed = True
        with contextlib.suppress(sqlite3.Error):
            self.rollback()
        # The last connection would checkpoint; one that may only read cannot.
        reader = sqlite3.connect(f"{self.path.as_uri()}?mode=ro", uri=True, isolation_level=None)
        try:
            with contextlib.suppress(sqlite3.Error):
                reader.execute("SELECT 1 FROM sqlite_schema").fetchone()
            self._let_go()
        finally:
            reader.close()

    def give_memory_back(self) -> None:
        """Let another file have the database of one that is in memory only and is about to be closed.

        What it has committed is kept, for `close` to write. In the loop; harmless for any other file.
        """
        if self.unwritten is None or self._gave_back:
            return
        with contextlib.suppress(sqlite3.Error):  # then nobody else gets it
            self.rollback()
        self._gave_back = True
        self.unwritten.give_back(self, self.connection)
        self.connection, self._execute = CLOSED, CLOSED.execute

    def _close_unwritten(self) -> None:
        self.give_memory_back()
        if self.image:
            self._write_image()
        self._closed = True
        self.unwritten.written(self)
        self.unwritten = None

    def _let_go(self) -> None:
        self.connection.close()
        if self._wal is not None:
            os.close(self._wal)
            self._wal = None


def open_file(path: Path, *, disk: Disk, durability: Durability, is_new: bool = False) -> InstanceFile:
    """Open an existing instance file for writing, migrating it where it is of an older version.

    `is_new` says that the caller has just made it: only then may it be taken as empty unread.
    Raises `StateVersionError` for a file of a newer Perdure and `InstanceDamagedError` for
    one that is missing, not ours, or unreadable. Nothing is changed then.
    """
    if not path.exists():
        raise InstanceDamagedError(
            f"the file {path} is missing; `perdure repair` drops its row from the catalog"
        )
    connection: sqlite3.Connection | None = None
    leftover = Path(f"{path}-wal").exists()
    try:
        connection = sqlite3.connect(
            path, isolation_level=None, check_same_thread=False, cached_statements=128, timeout=BUSY_MS / 1000
        )
        if not is_new:
            check_header(connection, path)
        for pragma in OPENING:
            connection.execute(pragma)
    except sqlite3.DatabaseError as error:
        if connection is not None:
            connection.close()
        if _code(error) not in DAMAGED:  # locked by a tool, no room, no descriptors left: it may pass
            raise storage_error(error, path) from error
        raise InstanceDamagedError(
            f"the file {path} cannot be read ({error}); nothing was changed in it. Restore it from a copy, or"
            f" salvage it with: sqlite3 {path} .recover"
        ) from error
    except BaseException:
        if connection is not None:
            connection.close()
        raise
    file = InstanceFile(path, connection, disk=disk, durability=durability)
    file.leftover = leftover
    file.is_new = is_new
    return file
