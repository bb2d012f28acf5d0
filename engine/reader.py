"""One instance's file while another process may read it, and how to see that it has changed.

Made by `Remote.read`, which keeps the file fit for reading while inside.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from perdure.engine.status import InstanceStatus
from perdure.storage.query import QueryHost
from perdure.storage.records import CatalogRow
from perdure.storage.rows import Row


class Reader:
    """One instance's file while it may be read; `owned` says whether a live process owns the folder.

    `immutable`: whether nobody has the file open, and nothing lies beside it.
    """

    def __init__(
        self,
        row: CatalogRow,
        status: InstanceStatus,
        path: Path,
        queries: QueryHost,
        *,
        owned: bool,
        immutable: bool,
    ) -> None:
        self.row = row
        self.status = status
        self.path = path
        self.owned = owned
        self._queries = queries
        self.immutable = immutable

    @property
    def has_file(self) -> bool:
        """Whether there is a file yet: a created instance gets it at first need."""
        return self.path.exists()

    async def fetch(
        self, query: str, *bindings: Any, timeout_s: float = 30.0, reveal: bool = False
    ) -> list[Row]:
        """Run one reading statement; with `reveal` the views show sensitive values.

        Raises `QueryError` and its kinds.
        """
        return await self._queries.fetch(
            self.path, query, bindings, timeout_s=timeout_s, immutable=self.immutable, reveal=reveal
        )


def file_signature(path: os.PathLike[str]) -> object:
    """Return what differs once an instance's file has been written to. Opens nothing."""
    found: list[tuple[int, int] | None] = []
    for name in (os.fspath(path), f"{os.fspath(path)}-wal"):
        try:
            about = Path(name).stat()
        except OSError:
            found.append(None)
        else:
            found.append((about.st_mtime_ns, about.st_size))
    return tuple(found)
