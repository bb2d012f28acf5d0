"""A look over the files of a state folder that nobody has open: which are ours, and which hold together.

For `perdure repair` and `perdure doctor`. The caller holds the folder's lock, so that no file is opened
by anybody else meanwhile; a live file would be read wrongly here.

Invariants:
    Nothing is changed, and nothing is left beside a file that was closed cleanly.
    A file that cannot be read is a finding, never an error of the look.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Generator
from pathlib import Path
from typing import Final, Literal

import msgspec

from perdure.errors import PerdureError
from perdure.storage import catalog as catalogs
from perdure.storage import catalog_file, schema
from perdure.storage.catalog import Catalog
from perdure.storage.peek import peek_state
from perdure.storage.records import CatalogRow, InstanceState

Kind = Literal["ours", "unborn", "foreign", "newer", "damaged"]
SUFFIX: Final = ".sqlite"
WAL_RESET_BUG: Final = ((3, 7, 0), (3, 51, 2))
"""First and last version of SQLite in which two checkpointing connections can corrupt a file."""
THREAD_MODES: Final = {0: "single-thread", 1: "multi-thread", 3: "serialized"}
# What reading a spoilt file ends in: SQLite's own errors, ours, and rows that are not what they were.
DAMAGE: Final = (sqlite3.DatabaseError, PerdureError, TypeError, ValueError)


class Look(msgspec.Struct, frozen=True, kw_only=True):
    """One file as found. `state` is there where its instance could be read, also of a damaged file.

    `unborn` is a file that a kill left between its making and its first row: nothing is lost with it.
    """

    path: Path
    kind: Kind
    state: InstanceState | None = None
    why: str = ""


class SqliteFacts(msgspec.Struct, frozen=True, kw_only=True):
    """The SQLite that this Python was built with."""

    version: str
    threads: str
    has_wal_reset_bug: bool


def sqlite_facts() -> SqliteFacts:
    """Return which SQLite this process uses."""
    first, last = WAL_RESET_BUG
    return SqliteFacts(
        version=sqlite3.sqlite_version,
        threads=THREAD_MODES.get(sqlite3.threadsafety, str(sqlite3.threadsafety)),
        has_wal_reset_bug=first <= sqlite3.sqlite_version_info <= last,
    )


def instance_paths(root: Path) -> list[Path]:
    """Return the files that may be instances' files, in order."""
    return sorted(path for path in root.glob(f"*/*{SUFFIX}") if path.is_file())


def look_at(path: Path, *, thorough: bool = True) -> Look:
    """Read one instance's file; `thorough` has SQLite check that all of it holds together."""
    try:
        with _reading(path) as connection:
            kind, why = _kind(connection)
            if kind != "ours":
                return Look(path=path, kind=kind, why=why)
            fault = _fault(connection) if thorough else None
        state = peek_state(path)
    except DAMAGE as error:
        return Look(path=path, kind="damaged", why=str(error))
    if fault is not None:
        return Look(path=path, kind="damaged", state=state, why=fault)
    return Look(path=path, kind="ours", state=state)


def is_ours(path: Path) -> bool:
    """Whether the file says that it is an instance of Perdure."""
    try:
        with _reading(path) as connection:
            return _kind(connection)[0] != "foreign"
    except DAMAGE:
        return False


def catalog_fault(path: Path) -> str | None:
    """Return what is wrong with a catalog, or None. One that is missing is `missing`."""
    if not path.exists():
        return "missing"
    try:
        with _reading(path) as connection:
            (application_id,) = connection.execute("PRAGMA application_id").fetchone()
            if application_id not in (0, catalog_file.APPLICATION_ID):
                return f"a database of another program (application_id {application_id:#x})"
            fault = _fault(connection)
            if fault is None and application_id:
                Catalog(connection).counts()
            return fault
    except DAMAGE as error:
        return str(error)


def is_foreign_catalog(path: Path) -> bool:
    """Whether a sound database of another program stands in the catalog's place."""
    return (catalog_fault(path) or "").startswith("a database of another")


def salvage_queue(path: Path) -> list[CatalogRow]:
    """Return the rows of unstarted instances that a damaged catalog still gives."""
    found: list[CatalogRow] = []
    with contextlib.suppress(*DAMAGE), _reading(path) as connection:
        for row in connection.execute(catalogs.LIST):
            record = CatalogRow(**dict(zip(CatalogRow.__struct_fields__, row, strict=True)))
            if record.birth is not None:
                found.append(record)
    return found


def leftovers(root: Path) -> list[Path]:
    """Return what a crash or a reader has left beside closed files: it is read, or harmless."""
    patterns = (f"*/*{SUFFIX}-wal", f"*/*{SUFFIX}-shm", f"*/*{SUFFIX}.part")
    return sorted(path for pattern in patterns for path in root.glob(pattern))


# -- inside --------------------------------------------------------------------------------


@contextlib.contextmanager
def _reading(path: Path) -> Generator[sqlite3.Connection, None, None]:
    """Open for reading; one closed cleanly as immutable, so that nothing is made beside it."""
    mode = "mode=ro" if Path(f"{path}-wal").exists() else "immutable=1"
    connection = sqlite3.connect(f"{path.absolute().as_uri()}?{mode}", uri=True, isolation_level=None)
    try:
        yield connection
    finally:
        connection.close()


def _kind(connection: sqlite3.Connection) -> tuple[Kind, str]:
    (application_id,) = connection.execute("PRAGMA application_id").fetchone()
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if application_id != schema.APPLICATION_ID:
        return "foreign", f"application_id {application_id:#x}"
    if version > schema.SCHEMA_VERSION:
        return "newer", f"schema version {version}; this Perdure knows up to {schema.SCHEMA_VERSION}"
    born = connection.execute("SELECT count(*) FROM _perdure_instance").fetchone()[0]
    return ("ours", "") if born else ("unborn", "made, and killed before its first row")


def _fault(connection: sqlite3.Connection) -> str | None:
    (verdict,) = connection.execute("PRAGMA quick_check(1)").fetchone()
    return None if verdict == "ok" else " ".join(str(verdict).split())
