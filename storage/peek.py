"""A look into a closed instance file, by its owner: nothing is written, nothing left behind."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Generator
from pathlib import Path

from perdure.errors import InstanceDamagedError
from perdure.storage.disk import Disk
from perdure.storage.files import InstanceFile, open_file
from perdure.storage.lifecycle import read_state
from perdure.storage.mail import KNOWN
from perdure.storage.records import InstanceState
from perdure.storage.schema import SCHEMA_VERSION


def peek_state(path: Path) -> InstanceState:
    """Return the instance's own row. The file must be closed, and stay so meanwhile.

    One of an older version is migrated first. Raises `InstanceDamagedError` and `StateVersionError`.
    """
    if _is_older(path):
        open_file(path, disk=Disk(), durability="full").close()
    with _opened(path) as connection:
        return read_state(InstanceFile(path, connection, disk=Disk(), durability="process"))


def peek_token(path: Path, token: str) -> bool:
    """Whether a command or an event with this token has reached the instance. Otherwise as `peek_state`."""
    with _opened(path) as connection:
        return connection.execute(KNOWN, (token,)).fetchone() is not None


def _is_older(path: Path) -> bool:
    with _opened(path) as connection:
        version: int = connection.execute("PRAGMA user_version").fetchone()[0]
        return 0 < version < SCHEMA_VERSION


@contextlib.contextmanager
def _opened(path: Path) -> Generator[sqlite3.Connection, None, None]:
    leftover = Path(f"{path}-wal").exists()  # not closed cleanly: its WAL has to be read too
    mode = "mode=ro" if leftover else "mode=ro&immutable=1"
    try:
        connection = sqlite3.connect(f"{path.absolute().as_uri()}?{mode}", uri=True, isolation_level=None)
        try:
            yield connection
        finally:
            connection.close()
    except (sqlite3.DatabaseError, TypeError, ValueError) as error:
        raise InstanceDamagedError(f"the file {path} cannot be read: {error}") from error


def bring_to_rest(path: Path) -> bool:
    """Checkpoint a file that nobody has open, and remove what a crash or a reader left beside it.

    Harmless where somebody does have it open: then nothing happens. Returns whether the file is
    whole by itself now, so that it may be read as immutable by the owner of its folder.
    """
    wal = Path(f"{path}-wal")
    if wal.exists():
        with contextlib.suppress(sqlite3.Error):
            uri = f"{path.absolute().as_uri()}?mode=rw"  # one that was just deleted is not made anew
            connection = sqlite3.connect(uri, uri=True, isolation_level=None)
            try:
                connection.execute("PRAGMA synchronous=FULL")
                connection.execute("PRAGMA wal_autocheckpoint=0")
                connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()
            finally:
                connection.close()  # the last connection checkpoints, under an exclusive lock
    return not wal.exists()
