"""The catalog's writer: many writes, one transaction, one sync.

Tasks hand in functions over the `Catalog`; a thread runs all that wait in one transaction,
each in a savepoint of its own, so that one refused write does not undo its neighbours.

Invariants:
    `write` returns after the transaction that holds the write is on the disk.
    Writes take effect in the order they were handed in.
"""

from __future__ import annotations

import contextlib
import functools
import sqlite3
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Final, Generic, TypeVar, cast

import msgspec
import outcome
import trio

from perdure.limits import Limits
from perdure.storage.catalog import Catalog
from perdure.storage.files import storage_error
from perdure.storage.threads import open_threads
from perdure.storage.turns import Turn

T = TypeVar("T")
WAITING_MAX: Final = Limits().catalog_waiting_max


class CatalogStatistics(msgspec.Struct, frozen=True, kw_only=True):
    """How well writes are grouped: `writes` over `transactions`."""

    writes: int
    transactions: int
    waiting: int


class _Write(Generic[T]):
    __slots__ = ("done", "operation", "result")

    def __init__(self, operation: Callable[[Catalog], T]) -> None:
        self.operation = operation
        self.done = trio.Event()
        self.result: outcome.Outcome[T] | None = None


class CatalogWriter:
    """Groups the writes of one process. `run` serves in a task; `write` may be called by any.

    At most `waiting_max` writes wait in memory besides those of the transaction under way.
    `turn` is entered around each transaction where several processes write to one catalog.
    """

    def __init__(
        self,
        catalog: Catalog,
        *,
        path: Path,
        batch_max: int,
        waiting_max: int = WAITING_MAX,
        turn: AbstractContextManager[None] | None = None,
    ) -> None:
        self._catalog = catalog
        self._turn = turn or contextlib.nullcontext()
        self._path = path
        self._batch_max = batch_max
        self._waiting: list[_Write[Any]] = []
        self._room = trio.Semaphore(waiting_max)
        self._work = trio.Event()
        self._writing = 0
        self._writes = 0
        self._transactions = 0

    async def write(self, operation: Callable[[Catalog], T]) -> T:
        """Run `operation` in the next transaction and return what it returns, once that is on disk.

        Raises what `operation` raises, and `StorageWriteError` where the transaction fails.
        A write handed in is carried out even when the caller is cancelled. Where `waiting_max` wait
        already it is handed in when there is room, so that who creates faster than the disk slows down.
        """
        try:
            self._room.acquire_nowait()
        except trio.WouldBlock:
            await self._room.acquire()
        write: _Write[T] = _Write(operation)
        self._waiting.append(write)
        self._work.set()
        await write.done.wait()
        return cast("outcome.Outcome[T]", write.result).unwrap()

    async def run(self) -> None:
        """Serve for ever."""
        with open_threads("perdure catalog", 1) as threads:
            while True:
                await self._work.wait()
                await trio.lowlevel.checkpoint()
                batch = self._waiting[: self._batch_max]
                del self._waiting[: self._batch_max]
                if not self._waiting:
                    self._work = trio.Event()
                for _ in batch:
                    self._room.release()
                self._writing = len(batch)
                await threads.run_one(functools.partial(self._take_turn, batch))
                self._writing = 0
                for write in batch:
                    write.done.set()

    def _take_turn(self, batch: list[_Write[Any]]) -> None:
        with self._turn:
            self._transact(batch)

    def _transact(self, batch: list[_Write[Any]]) -> None:
        connection = self._catalog.connection
        self._transactions += 1
        self._writes += len(batch)
        try:
            connection.execute("BEGIN IMMEDIATE")
            for write in batch:
                connection.execute("SAVEPOINT one")
                write.result = _captured(write.operation, self._catalog)
                if isinstance(write.result, outcome.Error):
                    connection.execute("ROLLBACK TO one")
                connection.execute("RELEASE one")
            connection.execute("COMMIT")
        except sqlite3.Error as error:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            for write in batch:
                write.result = outcome.Error(storage_error(error, self._path))
        for write in batch:
            if isinstance(write.result, outcome.Error) and isinstance(write.result.error, sqlite3.Error):
                write.result = outcome.Error(storage_error(write.result.error, self._path))

    @property
    def busy(self) -> bool:
        """Whether writes wait or are under way; the virtual clock waits for them."""
        return bool(self._waiting) or self._writing > 0

    def statistics(self) -> CatalogStatistics:
        """Return the counters."""
        return CatalogStatistics(
            writes=self._writes, transactions=self._transactions, waiting=len(self._waiting) + self._writing
        )


def write_now(catalog: Catalog, operation: Callable[[Catalog], T], *, path: Path) -> T:
    """Run one write in a transaction of its own, in the calling thread. For short-lived programs."""
    turn = Turn(path)
    try:
        with turn if turn.is_shared else contextlib.nullcontext():
            return _write_alone(catalog, operation, path)
    finally:
        turn.close()


def _write_alone(catalog: Catalog, operation: Callable[[Catalog], T], path: Path) -> T:
    connection = catalog.connection
    try:
        connection.execute("BEGIN IMMEDIATE")
        try:
            result = operation(catalog)
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise
        connection.execute("COMMIT")
    except sqlite3.Error as error:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise storage_error(error, path) from error
    return result


def _captured(operation: Callable[[Catalog], T], catalog: Catalog) -> outcome.Outcome[T]:
    return outcome.capture(operation, catalog)
