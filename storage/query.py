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
import sqlite3
import sys
import warnings
from collections.abc import AsyncGenerator, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, Final, Self, TypeAlias

import msgspec
import trio

from perdure.errors import PerdureError, QueryError, QueryRefusedError, QueryTimeoutError, RuntimeClosedError

__all__ = ["Columns", "FileFailure", "QueryHost", "QueryStatistics", "Row", "RowStream", "UnitedRows"]
__all__ += ["AnyPath", "Bindings", "open_query_host"]

AnyPath: TypeAlias = str | os.PathLike[str]
Bindings: TypeAlias = Sequence[Any] | Mapping[str, Any]
"""Values for `?` in their order, or values for `:name` by name."""

_QUERIES_MAX: Final = 32  # a thread and three descriptors each
_BATCH_ROWS_FIRST: Final = 16
_BATCH_ROWS_MAX: Final = 512  # a tenth of a millisecond of the loop's time
_BATCH_BYTES: Final = 256 * 1024
_SAMPLED_ROWS: Final = 32
_BUSY_TIMEOUT_S: Final = 2.0  # a reader only waits while a crashed writer's WAL is being recovered
_TABLES_SHOWN_MAX: Final = 40
# SQLite drops an interrupt that comes just before a statement starts. The flag, looked at once in so many
# of its instructions (some milliseconds of work), is what cannot be missed.
_INSTRUCTIONS_BETWEEN_LOOKS: Final = 200_000

_TABLES: Final = """
    SELECT name FROM sqlite_master
    WHERE type IN ('table', 'view') AND substr(name, 1, 7) <> 'sqlite_' AND substr(name, 1, 9) <> '_perdure_'
    ORDER BY type DESC, name
"""

_ALLOWED: Final = frozenset(
    {sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_RECURSIVE}
    # A virtual table (json_each, an r-tree) prepares such statements for itself when it is opened for
    # reading. Where one of them is the user's, the read-only connection refuses it.
    | {sqlite3.SQLITE_INSERT, sqlite3.SQLITE_UPDATE, sqlite3.SQLITE_DELETE}
)
_PRAGMAS: Final = frozenset(  # these only read, with an argument as without
    {"collation_list", "compile_options", "database_list", "foreign_key_check", "foreign_key_list"}
    | {"function_list", "index_info", "index_list", "index_xinfo", "integrity_check", "module_list"}
    | {"pragma_list", "quick_check", "table_info", "table_list", "table_xinfo"}
)
_PRAGMAS_BARE: Final = frozenset(  # these read without an argument and set with one
    {"application_id", "auto_vacuum", "encoding", "foreign_keys", "freelist_count", "journal_mode"}
    | {"page_count", "page_size", "query_only", "schema_version", "user_version", "wal_autocheckpoint"}
)
_REACHING_OUT: Final = (sqlite3.SQLITE_ATTACH, sqlite3.SQLITE_DETACH)
_TRANSACTIONS: Final = (sqlite3.SQLITE_TRANSACTION, sqlite3.SQLITE_SAVEPOINT)
_BINDABLE: Final = (int, float, str, bytes, bytearray, memoryview, type(None))


class Columns:
    """The names of a query's columns, shared by its rows. Of two equal names the first is found."""

    __slots__ = ("names", "positions")

    def __init__(self, names: Iterable[str]) -> None:
        self.names = tuple(names)
        self.positions = {name: i for i, name in reversed(list(enumerate(self.names)))}

    def missing(self, name: str) -> str:
        """Say that no column has this name, and which there are."""
        return f"no column {name!r} in this row; it has {', '.join(map(repr, self.names))}"


class Row:
    """One row: values by attribute, by name, by index and in order.

    Iteration gives the values. A column called like a method (`keys`), like no Python name, or like
    another column is reached by `row["keys"]` or by index.

    >>> row = Row(Columns(["name", "count(*)"]), ("fetch", 3))
    >>> row.name, row["count(*)"], row[1], list(row), dict(row)
    ('fetch', 3, 3, ['fetch', 3], {'name': 'fetch', 'count(*)': 3})
    """

    __slots__ = ("_columns", "_values")

    def __init__(self, columns: Columns, values: tuple[Any, ...]) -> None:
        self._columns = columns
        self._values = values

    def __getattr__(self, name: str) -> Any:
        try:
            return self._values[self._columns.positions[name]]
        except KeyError:
            raise AttributeError(self._columns.missing(name), name=name, obj=self) from None

    def __getitem__(self, key: str | int | slice) -> Any:
        if not isinstance(key, str):
            return self._values[key]
        try:
            return self._values[self._columns.positions[key]]
        except KeyError:
            raise KeyError(self._columns.missing(key)) from None

    def __iter__(self) -> Iterator[Any]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Row):
            return NotImplemented
        return self._values == other._values and self._columns.names == other._columns.names

    def __hash__(self) -> int:
        return hash((self._columns.names, self._values))

    def __repr__(self) -> str:
        pairs = zip(self._columns.names, self._values, strict=True)
        return f"Row({', '.join(f'{name}={value!r}' for name, value in pairs)})"

    def __reduce__(self) -> tuple[Any, ...]:
        return Row, (self._columns, self._values)

    def keys(self) -> tuple[str, ...]:
        """Return the names of the columns, in order, equal names included."""
        return self._columns.names

    def as_dict(self) -> dict[str, Any]:
        """Return the values by name, in order. Of columns of one name the first is there."""
        return {name: self[name] for name in self._columns.names}


class FileFailure(msgspec.Struct, frozen=True, kw_only=True):
    """A file that gave no answer to a query over many, and why."""

    label: str
    path: str
    error: QueryError


class UnitedRows(msgspec.Struct, frozen=True, kw_only=True):
    """The answer of many files: rows in the order of the files, the label in the first column."""

    rows: list[Row]
    columns: tuple[str, ...]
    failures: tuple[FileFailure, ...]


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
        self, path: AnyPath, query: str, bindings: Bindings = (), *, timeout_s: float, immutable: bool = False
    ) -> list[Row]:
        """Return all rows of one query over one file.

        `timeout_s` runs from the call to the last row. `immutable` leaves no `-wal` and `-shm` behind and
        does not look into a WAL: only for a cleanly closed file that nobody can open meanwhile.

        Raises QueryRefusedError, QueryTimeoutError, QueryError, RuntimeClosedError.
        """
        rows: list[Row] = []
        async with self.stream(path, query, bindings, timeout_s=timeout_s, immutable=immutable) as stream:
            while batch := await stream.next_batch():
                rows += batch
        return rows

    @asynccontextmanager
    async def stream(
        self, path: AnyPath, query: str, bindings: Bindings = (), *, timeout_s: float, immutable: bool = False
    ) -> AsyncGenerator[RowStream, None]:
        """Run one query over one file and hand its rows out as they are read.

        Arguments and errors are those of `fetch`; what is wrong with the query is raised on entry. Pauses
        of the reader count towards `timeout_s`: an open query keeps the file's WAL from being reset.
        Leaving the block interrupts the query and closes its file.
        """
        if self._closed:
            raise _closed_error()
        statement = _Statement(Path(path), query, _checked(bindings, query), immutable=immutable)
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
                        path, query, bindings, timeout_s=timeout_s, immutable=immutable
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
        return _united(
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

    def __init__(self, statement: _Statement, timeout_s: float, slots: trio.CapacityLimiter) -> None:
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
        except Exception as error:
            self._error = self._statement.translated(error)

    def end(self) -> None:
        """Tell the caller's task that the query is over."""
        self._sender.close()
        self._ended.set()
        self._opened.set()

    async def _read(self) -> None:
        connection = self._statement.connection()
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


class _Statement:
    """One query's text, what it may do, and what is known of it. Shared with its thread."""

    def __init__(self, path: Path, query: str, bindings: Bindings, *, immutable: bool) -> None:
        self.query, self.bindings = query, bindings
        self.stopped = False
        self.tables: list[str] | None = None
        self._path, self._immutable = path, immutable
        self._denied = ""

    def connection(self) -> Any:
        """Return aiosqlite's connection, not yet open."""
        uri = f"{self._path.absolute().as_uri()}?mode=ro{'&immutable=1' if self._immutable else ''}"
        return _loaded("aiosqlite").connect(
            uri,
            uri=True,
            timeout=_BUSY_TIMEOUT_S,
            isolation_level=None,  # or Python would begin transactions of its own
            cached_statements=0,  # a cached statement may have been prepared without the authorizer
            factory=partial(_ReadConnection, self),
        )

    def columns(self, description: Iterable[tuple[Any, ...]] | None) -> Columns:
        if description is None:
            raise self._refused("it returns no rows")
        return Columns(column[0] for column in description)

    def authorize(self, action: int, first: str | None, second: str | None, *_: object) -> int:
        """Say whether a statement may be prepared: SQLite's authorizer."""
        name = (first or "").lower()
        if action in _ALLOWED:
            why = ""
        elif action == sqlite3.SQLITE_FUNCTION:
            why = "load_extension is not to be called" if second == "load_extension" else ""
        elif action == sqlite3.SQLITE_PRAGMA:
            reads = name in _PRAGMAS or (name in _PRAGMAS_BARE and second is None)
            why = "" if reads else f"PRAGMA {first} is not one that only reads"
        elif action in _REACHING_OUT:
            why = "ATTACH, DETACH and VACUUM reach other files"
        else:
            why = "a query is its own transaction" if action in _TRANSACTIONS else "it would write"
        self._denied = self._denied or why
        return sqlite3.SQLITE_DENY if why else sqlite3.SQLITE_OK

    def must_stop(self) -> bool:
        """Say whether the query is over: SQLite's progress handler."""
        return self.stopped

    def timeout(self, timeout_s: float) -> QueryTimeoutError:
        text = (
            f"the query took longer than {timeout_s:g} s and was interrupted: ask for less or allow more time"
        )
        return QueryTimeoutError(text, query=self.query)

    def translated(self, error: Exception) -> Exception:
        """Return the error that the caller gets for one that sqlite3 raised."""
        code: int | None = getattr(error, "sqlite_errorcode", None)
        result = error
        if self._denied or code == sqlite3.SQLITE_READONLY:
            result = self._refused(self._denied or "it would write")
        elif isinstance(error, sqlite3.Error | sqlite3.Warning) and "one statement" in str(error):
            result = self._refused("it is more than one statement")
        elif isinstance(error, sqlite3.Error | OverflowError | ValueError):
            result = QueryError(f"{error}{self._advice(code)}", query=self.query)
        if result is not error:
            result.__cause__ = error
        return result

    def _advice(self, code: int | None) -> str:
        primary = code & 0xFF if code is not None else sqlite3.SQLITE_ERROR
        if primary in (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT):
            return f": {self._path} is damaged or no database; nothing was changed in it"
        if primary == sqlite3.SQLITE_CANTOPEN:
            return f": {self._path} {'cannot be read' if self._path.exists() else 'does not exist'}"
        if primary != sqlite3.SQLITE_ERROR:
            return f" (in {self._path})"
        if self.tables is None:
            return ""
        more = ", …" if len(self.tables) > _TABLES_SHOWN_MAX else ""
        return f"; there are {', '.join(self.tables[:_TABLES_SHOWN_MAX]) or 'none'}{more}"

    def _refused(self, why: str) -> QueryRefusedError:
        return QueryRefusedError(
            f"only one statement that reads may be run, not this: {why}", query=self.query
        )


class _ReadConnection(sqlite3.Connection):
    """A guarded connection, made by aiosqlite in its thread: set up without a hop for each call.

    A file that cannot be opened is reported by `execute`: where opening raises, aiosqlite ends its thread
    without waiting for it.
    """

    def __init__(self, statement: _Statement, *arguments: Any, **options: Any) -> None:
        self._statement = statement
        self._failure: sqlite3.Error | None = None
        self._read_cursor: sqlite3.Cursor | None = None
        try:
            super().__init__(*arguments, **options)
            super().execute("PRAGMA query_only = 1")
        except sqlite3.Error as error:
            self._failure = error
            return
        self.set_progress_handler(statement.must_stop, _INSTRUCTIONS_BETWEEN_LOOKS)
        self.set_authorizer(statement.authorize)

    def execute(self, sql: str, parameters: Any = (), /) -> sqlite3.Cursor:
        if self._failure is not None:
            raise self._failure
        self._read_cursor = self.cursor()
        try:
            return self._read_cursor.execute(sql, parameters)
        except sqlite3.OperationalError as error:
            if "no such table" in str(error):  # SQLite has no code for it
                self._statement.tables = [name for (name,) in super().execute(_TABLES)]
            raise

    def interrupt(self) -> None:
        if self._failure is None:
            super().interrupt()

    def close(self) -> None:
        if self._read_cursor is not None:
            self._read_cursor.close()  # or the file stays open until the cursor is collected
        if self._failure is None:
            super().close()


def _closed_error() -> RuntimeClosedError:
    return RuntimeClosedError("queries have ended with their runtime: open it again to ask more")


def _checked(bindings: Bindings, query: str) -> Bindings:
    """Return a copy, which the caller cannot change under the query's thread."""
    if isinstance(bindings, str | bytes):
        raise QueryError(f"bindings are a list or a mapping, not one {type(bindings).__name__}", query=query)
    copy = dict(bindings) if isinstance(bindings, Mapping) else tuple(bindings)
    values: Iterable[object] = copy.values() if isinstance(copy, dict) else copy
    for value in values:
        if not isinstance(value, _BINDABLE):
            text = f"a {type(value).__name__} cannot be bound: give None, int, float, str or bytes"
            raise QueryError(f"{text} (times are stored as integer milliseconds)", query=query)
    return copy


def _united(answers: list[tuple[Columns, list[Row]]], failures: list[FileFailure], label: str) -> UnitedRows:
    if failures and not answers:
        failures[0].error.add_note(f"none of {len(failures)} files answered; this is {failures[0].path}")
        raise failures[0].error
    names = {label: None} | {name: None for columns, _ in answers for name in columns.names}
    columns = answers[0][0].names if len({columns.names for columns, _ in answers}) == 1 else tuple(names)
    rows = [row for _, rows in answers for row in rows]
    return UnitedRows(rows=rows, columns=columns, failures=tuple(failures))


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
