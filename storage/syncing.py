"""How commits become durable: the seam behind the gate, and its plain form, file by file.

The relay log is the other form (`relay.py`).

Invariants:
    `sync` returns when every file has been made durable or has failed, cancelled or not.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from typing import Protocol, TypeAlias

from perdure.storage.files import InstanceFile
from perdure.storage.threads import Threads

Failures: TypeAlias = list[tuple[InstanceFile, OSError]]


class Syncing(Protocol):
    """Makes committed files durable. Used by the gate's task alone."""

    async def sync(self, files: Sequence[InstanceFile]) -> Failures:
        """Return once all that was committed to `files` is on disk, with those that failed."""
        ...


class FileSync:
    """Syncs each file's WAL by itself, spread over threads."""

    def __init__(self, threads: Threads) -> None:
        self._threads = threads

    async def sync(self, files: Sequence[InstanceFile]) -> Failures:
        """As in `Syncing`. Raises what is no failure of the disk but a defect."""
        count = self._threads.threads_max
        shares = [files[start::count] for start in range(min(count, len(files)))]
        results = await self._threads.run([functools.partial(sync_files, share) for share in shares])
        return [failure for result in results for failure in result.unwrap()]


def sync_files(files: Iterable[InstanceFile]) -> Failures:
    """Sync each file and return those that failed with their errors. Runs in a thread."""
    failed: Failures = []
    for file in files:
        try:
            file.sync()
        except OSError as error:
            failed.append((file, error))
    return failed
