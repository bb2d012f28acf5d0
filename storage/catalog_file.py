"""The catalog's file: opened, made where it is missing, migrated, checkpointed.

Invariants:
    One process checkpoints: the one that owns the folder.
    A migration is one transaction, under SQLite's write lock.
"""

from __future__ import annotations

import contextlib
import functools
import re
import sqlite3
from collections.abc import Iterable
from contextlib import AbstractContextManager
from importlib import resources
from pathlib import Path
from typing import Final

from perdure.errors import StateUnusableError, StateVersionError
from perdure.limits import BUSY_TIMEOUT_MS
from perdure.storage.files import concerns_file, storage_error

APPLICATION_ID: Final = 0x50524443  # "PRDC"
SCHEMA_VERSION: Final = 2

MIGRATIONS: Final[dict[int, str]] = {
    1: """
    ALTER TABLE _perdure_instances ADD COLUMN expires_at INTEGER;
    ALTER TABLE _perdure_instances ADD COLUMN archived TEXT;
    ALTER TABLE _perdure_instances ADD COLUMN priority INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE _perdure_instances ADD COLUMN lane TEXT;
    CREATE INDEX _perdure_instances_expires_at ON _perdure_instances (expires_at)
        WHERE expires_at IS NOT NULL;
    CREATE TABLE _perdure_schedules (
        workflow TEXT NOT NULL,
        id TEXT NOT NULL,
        spec TEXT NOT NULL,
        paused INTEGER NOT NULL DEFAULT 0,
        last_at INTEGER,
        next_at INTEGER,
        PRIMARY KEY (workflow, id)
    ) STRICT;
    CREATE TABLE _perdure_concurrency (
        workflow TEXT PRIMARY KEY,
        spec TEXT NOT NULL,
        starts TEXT NOT NULL DEFAULT '[]'
    ) STRICT;
    DROP INDEX _perdure_instances_queued;
    DROP VIEW instances;
    """,
}
"""SQL that takes the catalog from the version that is the key to the next one. Its views are made anew then,
and so are indexes and triggers that are missing."""
VIEWS: Final = re.compile(r"CREATE VIEW .*?;", re.DOTALL)
INDEXES: Final = re.compile(r"CREATE (?:INDEX|TRIGGER) (\w+) .*?(?:(?<=END);|;(?=\n\n|\nCREATE))", re.DOTALL)


def open_catalog(path: Path, *, checkpointer: bool, create: bool = True) -> sqlite3.Connection:
    """Open the catalog, making it where it is missing.

    Only the process that owns the folder may be `checkpointer`. Raises `StateUnusableError`
    for a file that is not a catalog or cannot be written, `StateVersionError` for a newer one.
    """
    new = not path.exists()
    if new and not create:
        raise StateUnusableError(
            f"{path.parent} is not a state folder: it has no {path.name}", path=str(path.parent)
        )
    try:
        connection = sqlite3.connect(
            path, isolation_level=None, check_same_thread=False, timeout=BUSY_TIMEOUT_MS / 1000
        )
        _prepare(connection, path, checkpointer=checkpointer)
    except sqlite3.OperationalError as error:
        if concerns_file(error):
            raise storage_error(error, path) from error
        raise StateUnusableError(
            f"the catalog {path} cannot be opened for writing ({error}): check the folder's owner and"
            " permissions",
            path=str(path),
        ) from error
    except sqlite3.DatabaseError as error:
        raise StateUnusableError(
            f"the catalog {path} is damaged or not a database ({error}): move it away and run `perdure"
            " repair`, which rebuilds it from the instances' files",
            path=str(path),
        ) from error
    return connection


def checkpoint(connection: sqlite3.Connection, turn: AbstractContextManager[None]) -> None:
    """Move the WAL's pages into the catalog while nobody writes, so that the next writer starts it over.

    Called off the loop, on a connection of its own, by the one process that checkpoints. What a reader
    still looks at stays in the WAL until the next time.
    """
    with turn, contextlib.suppress(sqlite3.OperationalError):  # the disk is full: it may pass
        connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()


def _prepare(connection: sqlite3.Connection, path: Path, *, checkpointer: bool) -> None:
    connection.execute(f"PRAGMA busy_timeout={BUSY_TIMEOUT_MS}")
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=FULL")
    connection.execute(f"PRAGMA wal_autocheckpoint={1000 if checkpointer else 0}")
    (tables,) = connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()
    (application_id,) = connection.execute("PRAGMA application_id").fetchone()
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if not tables and not application_id:
        _create(connection)
        return
    if application_id != APPLICATION_ID:
        connection.close()
        raise StateUnusableError(
            f"{path} is a database of another program (application_id {application_id:#x}): choose another"
            " state folder",
            path=str(path),
        )
    if version > SCHEMA_VERSION:
        connection.close()
        raise StateVersionError(
            f"the state folder {path.parent} was written by a newer Perdure (catalog version {version}; this"
            f" one knows up to {SCHEMA_VERSION}): upgrade perdure",
            path=str(path.parent),
        )
    while version < SCHEMA_VERSION:
        _migrate(connection, version)
        (version,) = connection.execute("PRAGMA user_version").fetchone()


def _migrate(connection: sqlite3.Connection, version: int) -> None:
    """Take the catalog to the next version, unless another process has just done so."""
    connection.execute("BEGIN IMMEDIATE")
    if connection.execute("PRAGMA user_version").fetchone() == (version,):
        for statement in (*_statements(MIGRATIONS[version]), *VIEWS.findall(_schema())):
            connection.execute(statement)
        known = {name for (name,) in connection.execute("SELECT name FROM sqlite_schema")}
        for found in INDEXES.finditer(_schema()):
            if found.group(1) not in known:
                connection.execute(found.group(0))
        connection.execute(f"PRAGMA user_version={version + 1}")
    connection.execute("COMMIT")


@functools.cache
def _schema() -> str:
    return resources.files("perdure.storage").joinpath("catalog.sql").read_text("utf-8")


def _create(connection: sqlite3.Connection) -> None:
    connection.execute("BEGIN EXCLUSIVE")
    if not connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0]:
        for statement in _statements(_schema()):
            connection.execute(statement)
        connection.execute(f"PRAGMA application_id={APPLICATION_ID}")
        connection.execute(f"PRAGMA user_version={SCHEMA_VERSION}")
    connection.execute("COMMIT")


def _statements(script: str) -> Iterable[str]:
    """Split a script, so that it can run inside a transaction (`executescript` would end it)."""
    statement = ""
    for line in script.splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""
