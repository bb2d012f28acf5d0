"""A look into an instance's closed file, by whoever owns it: no write, nothing left behind."""

from __future__ import annotations

import sqlite3
from pathlib import Path

from perdure.errors import InstanceDamagedError
from perdure.storage.disk import Disk
from perdure.storage.files import InstanceFile
from perdure.storage.lifecycle import read_state
from perdure.storage.records import InstanceState


def peek_state(path: Path) -> InstanceState:
    """Return the instance's own row. The file must be closed, and stay so meanwhile.

    Raises `InstanceDamagedError`.
    """
    leftover = Path(f"{path}-wal").exists()  # not closed cleanly: its WAL has to be read too
    mode = "mode=ro" if leftover else "immutable=1"
    try:
        connection = sqlite3.connect(f"{path.absolute().as_uri()}?{mode}", uri=True, isolation_level=None)
        try:
            return read_state(InstanceFile(path, connection, disk=Disk(), durability="process"))
        finally:
            connection.close()
    except (sqlite3.DatabaseError, TypeError, ValueError) as error:
        raise InstanceDamagedError(f"the file {path} cannot be read: {error}") from error
