"""SQL of user code on the instance's own file, in the loop's thread, inside the tick's transaction.

A query costs microseconds because nothing is crossed. What could break the runtime is refused
by SQLite's authorizer when the statement is prepared: ending the transaction, attaching,
pragmas, writing the runtime's tables, taking the names of its views.

Invariants:
    The runtime's tables are written by the runtime alone.
    No statement of a user's ends the tick's transaction; one that does (`ON CONFLICT ROLLBACK`)
    is a failed write and resets the actor.
    A user's statement never shares a cache entry with one of ours: its text is prefixed.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Generator, Iterator
from typing import Any, Final

from perdure.errors import QueryError, QueryRefusedError, StorageWriteError
from perdure.storage.files import InstanceFile, concerns_file, storage_error

VIEWS: Final = frozenset({"instance", "steps", "attempts", "events", "streams", "history"})
PREFIX: Final = "/* user */ "
READ_PRAGMAS: Final = frozenset(
    {
        "table_info",
        "table_xinfo",
        "index_list",
        "index_info",
        "foreign_key_list",
        "foreign_key_check",
        "table_list",
        "data_version",
    }
)
WRITES: Final = frozenset({sqlite3.SQLITE_INSERT, sqlite3.SQLITE_UPDATE, sqlite3.SQLITE_DELETE})
CREATES: Final = frozenset(
    {
        sqlite3.SQLITE_CREATE_TABLE,
        sqlite3.SQLITE_CREATE_VIEW,
        sqlite3.SQLITE_CREATE_INDEX,
        sqlite3.SQLITE_CREATE_TRIGGER,
        sqlite3.SQLITE_CREATE_TEMP_TABLE,
        sqlite3.SQLITE_CREATE_TEMP_VIEW,
        sqlite3.SQLITE_CREATE_VTABLE,
        sqlite3.SQLITE_DROP_TABLE,
        sqlite3.SQLITE_DROP_VIEW,
        sqlite3.SQLITE_DROP_INDEX,
        sqlite3.SQLITE_DROP_TRIGGER,
        sqlite3.SQLITE_DROP_TEMP_TABLE,
        sqlite3.SQLITE_DROP_TEMP_VIEW,
        sqlite3.SQLITE_DROP_VTABLE,
    }
)
ATTACHED: Final = frozenset(
    {
        sqlite3.SQLITE_CREATE_INDEX,
        sqlite3.SQLITE_CREATE_TRIGGER,
        sqlite3.SQLITE_CREATE_TEMP_INDEX,
        sqlite3.SQLITE_CREATE_TEMP_TRIGGER,
        sqlite3.SQLITE_DROP_INDEX,
        sqlite3.SQLITE_DROP_TRIGGER,
    }
)
"""What belongs to a table, which SQLite tells in the second place."""
RESERVED: Final = """
    SELECT name FROM (SELECT name FROM sqlite_schema UNION ALL SELECT name FROM sqlite_temp_schema)
    WHERE name LIKE '^_perdure^_%' ESCAPE '^'"""
NEVER: Final = {
    sqlite3.SQLITE_ATTACH: "ATTACH",
    sqlite3.SQLITE_DETACH: "DETACH",
    sqlite3.SQLITE_TRANSACTION: "BEGIN, COMMIT and ROLLBACK (the runtime commits)",
    sqlite3.SQLITE_SAVEPOINT: "SAVEPOINT (use sql.savepoint())",
}


class Rows:
    """What a statement returned: iterate, or take one of the readings below."""

    def __init__(self, columns: tuple[str, ...], rows: list[tuple[Any, ...]], changes: int) -> None:
        self.column_names = columns
        self.rows_written = changes
        self._rows = rows

    def raw(self) -> list[tuple[Any, ...]]:
        """Return the rows as tuples."""
        return self._rows

    def to_list(self) -> list[dict[str, Any]]:
        """Return the rows as dictionaries."""
        return [dict(zip(self.column_names, row, strict=True)) for row in self._rows]

    def one(self) -> dict[str, Any]:
        """Return the only row; raises `QueryError` where there are none or several."""
        if len(self._rows) != 1:
            raise QueryError(f"expected one row, the query returned {len(self._rows)}")
        return self.to_list()[0]

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self.to_list())

    def __len__(self) -> int:
        return len(self._rows)


class _Guard:
    """The authorizer of one connection: lets the runtime through, checks the user."""

    def __init__(self) -> None:
        self.active = False
        self.refused = ""

    def __call__(
        self, action: int, one: str | None, two: str | None, _database: str | None, _inner: str | None
    ) -> int:
        if not self.active:
            return sqlite3.SQLITE_OK
        reason = _refusal(action, one or "", two or "")
        if reason is None:
            return sqlite3.SQLITE_OK
        self.refused = reason
        return sqlite3.SQLITE_DENY


def _refusal(action: int, one: str, two: str) -> str | None:
    if action in NEVER:
        return f"{NEVER[action]} is not available here"
    if action == sqlite3.SQLITE_PRAGMA and one.lower() not in READ_PRAGMAS:
        return f"PRAGMA {one} is not available here"
    if action in WRITES and one.lower().startswith("_perdure_"):
        return f"{one} belongs to the runtime; read it through the views {', '.join(sorted(VIEWS))}"
    named: list[str] = []
    if action in CREATES:
        named.append(one)
    if action in ATTACHED or action == sqlite3.SQLITE_ALTER_TABLE:
        named.append(two)
    for name in named:
        if name.lower().startswith("_perdure_") or name.lower() in VIEWS:
            return f"the name {name!r} belongs to the runtime: choose another"
    if action == sqlite3.SQLITE_FUNCTION and two.lower() == "load_extension":
        return "extensions cannot be loaded here"
    return None


class Sql:
    """Runs statements of user code on one instance's file."""

    def __init__(self, file: InstanceFile) -> None:
        self._file = file
        self._guard = _guard_of(file)

    def exec(self, query: str, *bindings: Any) -> Rows:
        """Run one statement and return its rows.

        Raises `QueryRefusedError` for what is not allowed here, `QueryError` with SQLite's text
        for what fails. A statement that fails has changed nothing. A full or failing disk raises
        `StorageFullError` or `StorageWriteError` and resets the instance.

        >>> def open_account(sql: Sql) -> int:
        ...     sql.exec("CREATE TABLE account (owner TEXT, balance INTEGER)")
        ...     sql.exec("INSERT INTO account VALUES (?, ?)", "ada", 10)
        ...     return sql.exec("SELECT balance FROM account").one()["balance"]
        >>> await step.transaction("open account", open_account)
        10
        """
        if "alter" not in query.lower():
            return self._exec(query, bindings)
        with self.savepoint():  # SQLite does not tell in advance what a table is renamed to
            before = set(self._file.fetch(RESERVED))
            rows = self._exec(query, bindings)
            for (name,) in set(self._file.fetch(RESERVED)) - before:
                raise QueryRefusedError(f"refused: the name {name!r} belongs to the runtime", query=query)
        return rows

    def _exec(self, query: str, bindings: tuple[Any, ...]) -> Rows:
        self._guard.active = True
        self._guard.refused = ""
        try:
            cursor = self._file.connection.execute(PREFIX + query, bindings)
            rows = cursor.fetchall()
        except (sqlite3.Error, sqlite3.Warning) as error:
            if isinstance(error, sqlite3.Error) and concerns_file(error):
                self._file.failure = self._file.failure or storage_error(error, self._file.path)
                raise self._file.failure from error
            raise self._error(query, error) from error
        finally:
            self._guard.active = False
            if not self._file.connection.in_transaction and self._file.failure is None:
                self._file.failure = StorageWriteError(
                    f"a statement ended the transaction of {self._file.path}: {query!r}; the instance goes"
                    " back to its last commit",
                    path=str(self._file.path),
                )
        columns = tuple(column[0] for column in cursor.description or ())
        return Rows(columns, rows, max(cursor.rowcount, 0))

    @contextlib.contextmanager
    def savepoint(self) -> Generator[None]:
        """Undo what is written inside where it raises. Nests."""
        self._file.execute("SAVEPOINT perdure_user")
        try:
            yield
        except BaseException:
            if self._file.failure is None:
                self._file.execute("ROLLBACK TO perdure_user")
                self._file.execute("RELEASE perdure_user")
            raise
        self._file.execute("RELEASE perdure_user")

    def _error(self, query: str, error: Exception) -> QueryError:
        if self._guard.refused:
            return QueryRefusedError(f"refused: {self._guard.refused}", query=query)
        return QueryError(f"{error} in {query!r}", query=query)


def _guard_of(file: InstanceFile) -> _Guard:
    guard = file.guard
    if guard is None:
        guard = _Guard()
        file.guard = guard
        file.connection.set_authorizer(guard)
    assert isinstance(guard, _Guard)
    return guard
