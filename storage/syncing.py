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

    async def sync(self, files: Sequence[InstanceFile], threads: Threads) -> Failures:
        """Return once all that was committed to `files` is on disk, with those that failed."""
        ...

    def may_write(self, file: InstanceFile) -> bool:
        """Whether the main file may be written (checkpointed, closed) now, or has to be synced first."""
        ...

    def write_begins(self, file: InstanceFile) -> None:
        """Say that the file is about to be checkpointed or closed. Only where `may_write`."""
        ...

    def write_ended(self, file: InstanceFile, *, closed: bool) -> None:
        """Say that this is over; `closed` where nothing of the file is left open."""
        ...

    def abandoned(self, file: InstanceFile) -> None:
        """Say that the file was closed as a crash would close it."""
        ...

    def outgrows(self, file: InstanceFile) -> bool:
        """Whether an unwritten file, just committed, has to be written now."""
        ...

    def written(self) -> None:
        """Say that a file has been written that was in memory only."""
        ...


class FileSync:
    """Syncs each file's WAL by itself, spread over threads."""

    def may_write(self, file: InstanceFile) -> bool:
        """As in `Syncing`: always, for SQLite syncs what it writes."""
        del file
        return True

    def write_begins(self, file: InstanceFile) -> None:
        """As in `Syncing`: nothing depends on it."""

    def write_ended(self, file: InstanceFile, *, closed: bool) -> None:
        """As in `Syncing`: nothing depends on it."""

    def abandoned(self, file: InstanceFile) -> None:
        """As in `Syncing`: nothing depends on it."""

    def outgrows(self, file: InstanceFile) -> bool:
        """As in `Syncing`: always, for what is in memory cannot be synced."""
        del file
        return True

    def written(self) -> None:
        """As in `Syncing`: nothing depends on it."""

    async def sync(self, files: Sequence[InstanceFile], threads: Threads) -> Failures:
        """As in `Syncing`. Raises what is no failure of the disk but a defect."""
        count = threads.threads_max
        shares = [files[start::count] for start in range(min(count, len(files)))]
        results = await threads.run([functools.partial(sync_files, share) for share in shares])
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
