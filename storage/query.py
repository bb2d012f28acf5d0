"""SQL over state: read-only queries, each on a connection of its own, off the loop.

A `QueryHost` runs queries through aiosqlite, a thread for each, under trio by means of trio-asyncio.
This is the only module that knows of either; the first query loads both. The journal never comes this
way: a thread hop for each call is too dear.

Invariants:
    A query writes nothing, attaches nothing and checkpoints nothing.
    When a call is over, however it ended, its statement has stopped and its file is closed.
    A stream holds at most three batches, each sized from the one before, however many rows there are.
    A damaged file spoils neither the host nor a query over other files.

aiosqlite works only in tasks inside trio-asyncio's loop, and a cancelled call of it leaves the statement
running. So each query is a task of the host; the caller's task takes batches from it and, leaving early,
stops the task, which interrupts the statement and closes the file.

Connections are not kept: opening, asking for one row and closing takes 1.3 ms (0.05 of them SQLite's) on
two slow cores, and a kept one holds three descriptors and keeps an actor's file from closing cleanly.
"""

from __future__ import annotations

import contextlib
import contextvars
import math
import os
import sys
import warnings
from collections.abc import AsyncGenerator, Iterable, Iterator
from contextlib import asynccontextmanager
from importlib import import_module
from pathlib import Path
from typing import Any, Final, Self

import msgspec
import trio

from perdure.errors import PerdureError, QueryError, QueryRefusedError, RuntimeClosedError
from perdure.storage.rows import Columns, FileFailure, Row, UnitedRows, united
from perdure.storage.statement import AnyPath, Bindings, Statement

__all__ = ["QueryHost", "QueryStatistics", "RowStream", "open_query_host"]

_QUERIES_MAX: Final = 32  # a thread and three descriptors each
_BATCH_ROWS_FIRST: Final = 16
_BATCH_ROWS_MAX: Final = 512  # a tenth of a millisecond of the loop's time
_BATCH_BYTES: Final = 256 * 1024
_SAMPLED_ROWS: Final = 32


class QueryStatistics(msgspec.Struct, frozen=True, kw_only=True):
    """What a host is doing. `oldest_started_s` is a time of trio's clock, None when nothing runs.

    `threads_busy` counts the queries that are in a thread at this moment: an open stream whose reader is
    pausing runs, and is in none. A virtual clock must not jump while it is not 0.
    """

    running: int
    oldest_started_s: float | None
    finished: int
    threads_busy: int


@asynccontextmanager
async def open_query_host(*, queries_max: int = _QUERIES_MAX) -> AsyncGenerator[QueryHost, None]:
    """Open a host of queries; leaving stops those that still run and waits until they have.

    At most `queries_max` run at one time, open streams included; others wait, within their time limit.
    """
    only: BaseException | None = None
    try:
        async with trio.open_nursery() as nursery:
            host = QueryHost(nursery, queries_max)
            try:
                yield host
            finally:
                host.close()
                nursery.cancel_scope.cancel()
    except BaseExceptionGroup as group:
        if len(group.exceptions) > 1:
            raise
        only = next(iter(group.exceptions))  # the body's own, which need not know of our nursery
    if only is not None:
        raise only


class QueryHost:
    """Runs read-only queries. Made by `open_query_host`; any task of the same trio run may use it."""

    def __init__(self, nursery: trio.Nursery, queries_max: int) -> None:
        self._nursery = nursery
        self._slots = trio.CapacityLimiter(queries_max)
        self._context = contextvars.copy_context()  # not that of whoever happens to query first
        self._queue: trio.MemorySendChannel[RowStream] | None = None
        self._closed = False
        self._running: dict[RowStream, float] = {}
        self._finished = 0

    async def fetch(
        self,
        path: AnyPath,
        query: str,
        bindings: Bindings = (),
        *,
        timeout_s: float,
        immutable: bool = False,
        reveal: bool = False,
    ) -> list[Row]:
        """Return all rows of one query over one file.

        `timeout_s` runs from the call to the last row. `immutable` leaves no `-wal` and `-shm` behind and
        does not look into a WAL: only for a cleanly closed file that nobody can open meanwhile. With `reveal`
        the views of an instance show sensitive values.

        Raises QueryRefusedError, QueryTimeoutError, QueryError, RuntimeClosedError.
        """
        rows: list[Row] = []
        async with self.stream(
            path, query, bindings, timeout_s=timeout_s, immutable=immutable, reveal=reveal
        ) as stream:
            while batch := await stream.next_batch():
                rows += batch
        return rows

    @asynccontextmanager
    async def stream(
        self,
        path: AnyPath,
        query: str,
        bindings: Bindings = (),
        *,
        timeout_s: float,
        immutable: bool = False,
        reveal: bool = False,
    ) -> AsyncGenerator[RowStream, None]:
        """Run one query over one file and hand its rows out as they are read.

        Arguments and errors are those of `fetch`; what is wrong with the query is raised on entry. Pauses
        of the reader count towards `timeout_s`: an open query keeps the file's WAL from being reset.
        Leaving the block interrupts the query and closes its file.
        """
        if self._closed:
            await trio.lowlevel.checkpoint_if_cancelled()  # what ended the runtime may end the caller too
            raise _closed_error()
        if not isinstance(query, str):  # pyright: ignore[reportUnnecessaryIsInstance] - a caller unseen by it
            raise QueryRefusedError(f"{query!r} is no query: write one statement as text")
        statement = Statement(Path(path), query, bindings, immutable=immutable, reveal=reveal)
        stream = RowStream(statement, timeout_s, self._slots)
        self._running[stream] = trio.current_time()
        if self._queue is None:
            self._queue, queue = trio.open_memory_channel[RowStream](math.inf)
            self._context.run(self._nursery.start_soon, self._serve, queue)
        self._queue.send_nowait(stream)
        try:
            await stream.opened()
            yield stream
        finally:
            await stream.stop()

    async def fetch_all(
        self,
        files: Iterable[tuple[str, AnyPath, bool]],
        query: str,
        bindings: Bindings = (),
        *,
        label_column: str = "instance_id",
        timeout_s: float,
        limit_parallel: int = 4,
        reveal: bool = False,
    ) -> UnitedRows:
        """Run one query over each of `files`, which are (label, path, immutable), and unite the rows.

        Each file has `timeout_s` of its own. One that fails is listed in `failures`; if none answers, the
        first one's error is raised, and a refused query raises at once. Where files differ in columns each
        row has those of its file, `columns` those of all. Aggregates are each file's own.
        """
        answers: dict[int, tuple[Columns, list[Row]]] = {}
        failures: dict[int, FileFailure] = {}
        stopped: list[PerdureError] = []
        pending = enumerate(files)  # one iterator for all workers: each takes the next file

        async def work() -> None:
            for position, (label, path, immutable) in pending:
                try:
                    async with self.stream(
                        path, query, bindings, timeout_s=timeout_s, immutable=immutable, reveal=reveal
                    ) as stream:
                        columns, rows = Columns((label_column, *stream.columns)), list[Row]()
                        while batch := await stream.next_batch():
                            rows += [Row(columns, (label, *row)) for row in batch]
                    answers[position] = columns, rows
                except (QueryRefusedError, RuntimeClosedError) as error:
                    stopped.append(error)
                    nursery.cancel_scope.cancel()
                except QueryError as error:
                    failures[position] = FileFailure(label=label, path=os.fspath(path), error=error)

        async with trio.open_nursery() as nursery:
            for _ in range(limit_parallel):
                nursery.start_soon(work)
        if stopped:
            raise stopped[0]
        return united(
            [answers[i] for i in sorted(answers)], [failures[i] for i in sorted(failures)], label_column
        )

    def statistics(self) -> QueryStatistics:
        """Return what is running now. Never waits."""
        return QueryStatistics(
            running=len(self._running),
            oldest_started_s=next(iter(self._running.values()), None),
            finished=self._finished,
            threads_busy=sum(stream.in_thread for stream in self._running),
        )

    def close(self) -> None:
        """Take no more queries. Those that run are stopped by leaving `open_query_host`."""
        self._closed = True

    async def _serve(self, queue: trio.MemoryReceiveChannel[RowStream]) -> None:
        try:
            async with _loaded("trio_asyncio").open_loop(), trio.open_nursery() as nursery:
                async for stream in queue:
                    nursery.start_soon(self._run, stream)
        finally:
            self._closed = True
            with contextlib.suppress(trio.WouldBlock):
                while True:
                    self._end(queue.receive_nowait())

    async def _run(self, stream: RowStream) -> None:
        try:
            await stream.run()
        finally:
            self._end(stream)

    def _end(self, stream: RowStream) -> None:
        del self._running[stream]
        self._finished += 1
        stream.end()


class RowStream:
    """The rows of a running query, in order: `async for row in stream`, by one task.

    It waits, and is a checkpoint, once in a batch. Iterating raises QueryError, QueryTimeoutError, or
    RuntimeClosedError when the host closed first. Made by `QueryHost.stream`.
    """

    def __init__(self, statement: Statement, timeout_s: float, slots: trio.CapacityLimiter) -> None:
        self.columns: tuple[str, ...] = ()
        """The names of the columns, known before the first row and without one."""
        self.in_thread = False
        """Whether the query's thread is at work."""
        self._statement, self._timeout_s, self._slots = statement, timeout_s, slots
        self._scope = trio.CancelScope(deadline=trio.current_time() + timeout_s)
        self._sender, self._receiver = trio.open_memory_channel[list[Row]](1)
        self._opened, self._ended = trio.Event(), trio.Event()
        self._error: Exception | None = _closed_error()  # unless it comes to an end of its own
        self._rows: Iterator[Row] = iter(())

    async def next_batch(self) -> list[Row]:
        """Return the next rows, at least one, or an empty list at the end."""
        try:
            return await self._receiver.receive()
        except trio.EndOfChannel:
            if self._error is not None:
                raise self._error from self._error.__cause__
            return []

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Row:
        while True:
            for row in self._rows:
                return row
            batch = await self.next_batch()
            if not batch:
                raise StopAsyncIteration
            self._rows = iter(batch)

    async def opened(self) -> None:
        """Wait until the statement has started. For `QueryHost`, as is all that follows."""
        await self._opened.wait()
        if self._ended.is_set() and self._error is not None:
            raise self._error

    async def stop(self) -> None:
        """Stop the query from the caller's task, and wait until its file is closed."""
        self._scope.cancel()
        with trio.CancelScope(shield=True):
            await self._ended.wait()
        self._receiver.close()

    async def run(self) -> None:
        """Run the query, in a task of the host."""
        try:
            with self._scope:
                async with self._slots:
                    await self._read()
            self._error = self._statement.timeout(self._timeout_s) if self._scope.cancelled_caught else None
        except Exception as error:  # noqa: BLE001 - whatever it is belongs to the caller, not to the host
            self._error = self._statement.translated(error)

    def end(self) -> None:
        """Tell the caller's task that the query is over."""
        self._sender.close()
        self._ended.set()
        self._opened.set()

    async def _read(self) -> None:
        connection = _loaded("aiosqlite").connect(**self._statement.options())
        with trio.CancelScope(shield=True):  # a call cut off in here would leak its thread
            await self._call(connection.__aenter__)
        try:
            await self._pump(
                await self._call(connection.execute, self._statement.query, self._statement.bindings)
            )
        finally:
            self._statement.stopped = True
            with trio.CancelScope(shield=True):
                await connection.interrupt()
                await self._call(connection.close)

    async def _pump(self, cursor: Any) -> None:
        columns = self._statement.columns(cursor.description)
        self.columns = columns.names
        self._opened.set()
        size = _BATCH_ROWS_FIRST
        while True:
            rows = [Row(columns, values) for values in await self._call(cursor.fetchmany, size)]
            if len(rows) < size:  # nothing is held open any more: the reader may take its time
                self._scope.deadline = math.inf
            if rows:
                await self._sender.send(rows)
            if len(rows) < size:
                return
            size = _next_size(rows)

    async def _call(self, call: Any, *arguments: Any) -> Any:
        self.in_thread = True
        try:
            return await _loaded("trio_asyncio").aio_as_trio(call)(*arguments)
        finally:
            self.in_thread = False


def _next_size(rows: list[Row]) -> int:
    """Return how many rows like these make a batch, growing at most fourfold."""
    sample = rows[:: max(1, len(rows) // _SAMPLED_ROWS)]
    row_bytes = sum(sys.getsizeof(value) for row in sample for value in row) / len(sample)
    return max(1, min(int(_BATCH_BYTES / (row_bytes + 1)), 4 * len(rows), _BATCH_ROWS_MAX))


def _closed_error() -> RuntimeClosedError:
    return RuntimeClosedError("queries have ended with their runtime: open it again to ask more")


def _loaded(name: str) -> Any:
    """Return aiosqlite or trio-asyncio, imported at first need, with asyncio left as it was.

    Importing trio-asyncio makes every new asyncio loop of the process one of its own, also in a thread
    where a step function calls `asyncio.run`. Outside trio that is put back.
    """
    if name in sys.modules:
        return sys.modules[name]
    asyncio, events = import_module("asyncio"), import_module("asyncio.events")
    native = events.new_event_loop
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # it derives from what Python 3.12 deprecates
        module = import_module(name)
    vars(asyncio)["new_event_loop"] = vars(events)["new_event_loop"] = native
    return module
