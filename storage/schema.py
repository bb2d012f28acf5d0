"""The schema of an instance's file: its bytes when empty, and the way from older versions.

Invariants:
    A migration is one transaction: a file is of one version or of the next.
    Views hold nothing, so a migration makes them anew; tables keep what they have.
"""

from __future__ import annotations

import functools
import re
import sqlite3
import tempfile
from importlib import resources
from pathlib import Path
from typing import Final

from perdure.errors import InstanceDamagedError, StateVersionError

APPLICATION_ID: Final = 0x50524455  # "PRDU"
SCHEMA_VERSION: Final = 2
PAGE_BYTES: Final = 2048
"""Smaller pages make small instances smaller, larger ones large values faster: as measured, 2048 has
nearly all of both."""

MIGRATIONS: Final[dict[int, str]] = {
    1: """
    ALTER TABLE _perdure_instance ADD COLUMN generation INT NOT NULL DEFAULT 1;
    ALTER TABLE _perdure_instance ADD COLUMN schedule TEXT;
    ALTER TABLE _perdure_instance ADD COLUMN rollback TEXT;
    ALTER TABLE _perdure_instance ADD COLUMN retention TEXT;
    ALTER TABLE _perdure_steps ADD COLUMN heartbeat TEXT""",
}
"""SQL that takes a file's tables from the version that is the key to the next one."""

VIEW: Final = re.compile(r"CREATE VIEW (\w+).*?;", re.DOTALL)


@functools.cache
def template() -> bytes:
    """Return the bytes of an empty instance file: making a file is then one write, no DDL."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "template.sqlite")
        connection = sqlite3.connect(path, isolation_level=None)
        connection.execute("PRAGMA synchronous=OFF")
        connection.execute(f"PRAGMA page_size={PAGE_BYTES}")
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute(f"PRAGMA application_id={APPLICATION_ID}")
        connection.execute(f"PRAGMA user_version={SCHEMA_VERSION}")
        connection.executescript(_schema())
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        connection.close()
        return path.read_bytes()


def minified(sql: str) -> str:
    """Return `sql` without comments and needless spaces: every instance's file holds it, once.

    >>> minified("SELECT a, 'b - c' FROM d;  -- why")
    "SELECT a,'b - c' FROM d;"
    """
    parts = re.split(r"('[^']*')", re.sub(r"--[^\n]*", "", sql))
    parts[::2] = [re.sub(r" ?([(),;=<>|*/+]) ?", r"\1", re.sub(r"\s+", " ", part)) for part in parts[::2]]
    return "".join(parts).strip()


@functools.cache
def _schema() -> str:
    return minified(resources.files("perdure.storage").joinpath("instance.sql").read_text("utf-8"))


@functools.cache
def stream_schema() -> tuple[str, ...]:
    """Return the statements that give a file its table of streams, and the view over it, at first need."""
    sql = minified(resources.files("perdure.storage").joinpath("streams.sql").read_text("utf-8"))
    return "DROP VIEW streams", *(part for part in sql.split(";") if part)


def _views(connection: sqlite3.Connection) -> str:
    """Return the SQL that makes every view of the runtime's as it is today."""
    there = {name for (name,) in connection.execute("SELECT name FROM sqlite_schema WHERE type = 'view'")}
    views = {view[1]: view[0] for view in VIEW.finditer(_schema())}
    if connection.execute("SELECT 1 FROM sqlite_schema WHERE name = '_perdure_streams'").fetchone():
        views["streams"] = f"{stream_schema()[-1]};"
    return "".join([f"DROP VIEW {name};" for name in views if name in there] + list(views.values()))


def check_header(connection: sqlite3.Connection, path: Path) -> None:
    """Take an open file to the schema of today.

    Raises `InstanceDamagedError` for a file of another program, `StateVersionError` for a newer one.
    """
    (application_id,) = connection.execute("PRAGMA application_id").fetchone()
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if application_id != APPLICATION_ID:
        raise InstanceDamagedError(
            f"the file {path} is not an instance of Perdure (application_id {application_id:#x})"
        )
    if version > SCHEMA_VERSION:
        raise StateVersionError(
            f"the file {path} has schema version {version}; this Perdure knows up to {SCHEMA_VERSION}:"
            " upgrade perdure",
            path=str(path),
        )
    while version < SCHEMA_VERSION:
        views = _views(connection) if version + 1 == SCHEMA_VERSION else ""
        connection.executescript(
            f"BEGIN IMMEDIATE;{MIGRATIONS[version]};{views}PRAGMA user_version={version + 1};COMMIT"
        )
        version += 1
