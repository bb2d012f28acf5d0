"""A private copy of an instance's file, to be written to at will: nothing of it goes back.

For a replay that must change nothing. SQLite keeps the copy in a temporary database of its own, in
memory as long as it is small, so that a large instance takes no more memory than a small one.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Generator
from pathlib import Path
from typing import Final

from perdure.errors import InstanceDamagedError
from perdure.storage.disk import Disk
from perdure.storage.files import InstanceFile

CACHE_KB: Final = 8192


@contextlib.contextmanager
def copied(path: Path, *, immutable: bool) -> Generator[InstanceFile]:
    """Yield a copy of the file as it is at this moment; `immutable` says that nobody has it open.

    Raises `InstanceDamagedError` where it cannot be read.
    """
    mode = "mode=ro&immutable=1" if immutable else "mode=ro"
    copy = sqlite3.connect("", isolation_level=None)
    try:
        try:
            source = sqlite3.connect(f"{path.absolute().as_uri()}?{mode}", uri=True, isolation_level=None)
            try:
                copy.execute(f"PRAGMA page_size={source.execute('PRAGMA page_size').fetchone()[0]}")
                source.backup(copy)
            finally:
                source.close()
            copy.execute(f"PRAGMA cache_size=-{CACHE_KB}")
        except sqlite3.Error as error:
            raise InstanceDamagedError(f"the file {path} cannot be read: {error}") from error
        yield InstanceFile(path, copy, disk=Disk(), durability="process")
    finally:
        copy.close()
