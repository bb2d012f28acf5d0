"""One reading statement: what it may do, and the guarded connection that runs it.

`query.py` makes one for each query and runs it in a thread of its own; nobody else uses this.

Invariants:
    A statement writes nothing, attaches nothing and checkpoints nothing.
    What SQLite raises reaches the caller as a QueryError that keeps SQLite's text.
    Once `stopped` is set the statement ends within some milliseconds of work.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeAlias

from perdure.errors import QueryError, QueryRefusedError, QueryTimeoutError
from perdure.storage.reveal import VIEWS, revealing_view
from perdure.storage.rows import Columns

__all__ = ["AnyPath", "Bindings", "ReadConnection", "Statement"]

AnyPath: TypeAlias = str | os.PathLike[str]
Bindings: TypeAlias = Sequence[Any] | Mapping[str, Any]
"""Values for `?` in their order, or values for `:name` by name."""

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


class Statement:
    """One query's text, what it may do, and what is known of it. Shared with its thread."""

    def __init__(
        self, path: Path, query: str, bindings: Bindings, *, immutable: bool, reveal: bool = False
    ) -> None:
        self.reveals = reveal
        self.query, self.bindings = query, _checked(bindings, query)
        self.stopped = False
        self.tables: list[str] | None = None
        self._path, self._immutable = path, immutable
        self._denied = ""

    def options(self) -> dict[str, Any]:
        """Return what aiosqlite's `connect` is given: where the file is, and how it is guarded."""
        mode = "?mode=ro&immutable=1" if self._immutable else "?mode=ro"
        return {
            "database": self._path.absolute().as_uri() + mode,
            "uri": True,
            "timeout": _BUSY_TIMEOUT_S,
            "isolation_level": None,  # or Python would begin transactions of its own
            "cached_statements": 0,  # a cached statement may have been prepared without the authorizer
            "factory": partial(ReadConnection, self),
        }

    def columns(self, description: Iterable[tuple[Any, ...]] | None) -> Columns:
        """Return the columns of the answer. Raises QueryRefusedError for a statement that has none."""
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
        """Return the error of a query that was interrupted because its time was up."""
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


class ReadConnection(sqlite3.Connection):
    """A guarded connection, made by aiosqlite in its thread: set up without a hop for each call.

    A file that cannot be opened is reported by `execute`: where opening raises, aiosqlite ends its thread
    without waiting for it.
    """

    def __init__(self, statement: Statement, *arguments: Any, **options: Any) -> None:
        self._statement = statement
        self._failure: sqlite3.Error | None = None
        self._read_cursor: sqlite3.Cursor | None = None
        try:
            super().__init__(*arguments, **options)
            if statement.reveals:
                for name, sql in super().execute(VIEWS).fetchall():
                    super().execute(revealing_view(name, sql))
            super().execute("PRAGMA query_only = 1")
        except sqlite3.Error as error:
            self._failure = error
            return
        self.set_progress_handler(statement.must_stop, _INSTRUCTIONS_BETWEEN_LOOKS)
        self.set_authorizer(statement.authorize)

    def execute(self, sql: str, parameters: Any = (), /) -> sqlite3.Cursor:
        """Run the one statement, or report why the file could not be opened."""
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
        """Stop the statement that runs."""
        if self._failure is None:
            super().interrupt()

    def close(self) -> None:
        """Close the file, and the cursor that would hold it."""
        if self._read_cursor is not None:
            self._read_cursor.close()  # or the file stays open until the cursor is collected
        if self._failure is None:
            super().close()


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
