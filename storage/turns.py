"""Taking turns: one process at a time writes to a catalog that several processes share.

SQLite's own way of waiting for a lock is to sleep and try again, up to a tenth of a second at a time.
A blocking `flock` on a file kept for it wakes the next one at once.

Invariants:
    A turn ends with the process, however that dies.
    The file is never deleted and holds nothing.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import TracebackType
from typing import Final

if sys.platform != "win32":
    import fcntl

NAME: Final = "catalog.lock"


class Turn:
    """One process's turn: entered before a write transaction, left behind it. Used by one thread."""

    def __init__(self, catalog: Path) -> None:
        self._path = catalog.with_name(NAME)
        self._descriptor: int | None = None

    @property
    def is_shared(self) -> bool:
        """Whether several processes have ever shared the catalog, so that turns are taken."""
        return self._path.exists()

    def __enter__(self) -> None:
        if self._descriptor is None:
            self._descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        if sys.platform != "win32":
            fcntl.flock(self._descriptor, fcntl.LOCK_EX)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._descriptor is not None and sys.platform != "win32":
            fcntl.flock(self._descriptor, fcntl.LOCK_UN)

    def close(self) -> None:
        """Close the file."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
