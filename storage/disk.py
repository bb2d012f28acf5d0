"""The file system as the runtime uses it: the one place that makes bytes durable.

Whoever opens a runtime hands a `Disk` in; nothing reaches for `os.fsync` by itself. So a test
can count the syncs, make one fail, or leave it out and watch a law break.

Invariants:
    A sync returns only when the operating system says that the bytes are on the disk.
    No live database file is opened here: closing any descriptor of one would drop the locks
    that SQLite holds on it. A WAL file may be (it is never locked).
"""

from __future__ import annotations

import ctypes
import functools
import os
import platform
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec

if sys.platform == "darwin":
    import fcntl


SYNCFS_SINCE: Final = (5, 8)
"""The Linux from which on `syncfs` says that a write has failed."""


class DiskStatistics(msgspec.Struct, frozen=True, kw_only=True):
    """How often something was made durable."""

    file_syncs: int
    directory_syncs: int
    file_system_syncs: int = 0


class Disk:
    """Syncs files and directories, and counts it.

    Safe to use from several threads: the counters may miss one under contention, never the disk.
    """

    def __init__(self) -> None:
        self._file_syncs = 0
        self._directory_syncs = 0
        self._file_system_syncs = 0

    def sync_descriptor(self, descriptor: int) -> None:
        """Return when everything written to `descriptor` is on the disk."""
        self._file_syncs += 1
        if sys.platform == "darwin":  # pragma: no cover - fsync there stops at the drive's cache
            fcntl.fcntl(descriptor, fcntl.F_FULLFSYNC)
        else:
            os.fdatasync(descriptor)

    def sync_directory(self, path: Path) -> None:
        """Return when the entries of the folder `path` are on the disk."""
        self._directory_syncs += 1
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    @property
    def syncs_file_systems(self) -> bool:
        """Whether `sync_file_system` is there and tells failures: on Linux since 5.8."""
        return _syncfs() is not None

    def sync_file_system(self, path: Path) -> None:
        """Return when everything written so far to the file system that holds `path` is on the disk."""
        self._file_system_syncs += 1
        syncfs = _syncfs()
        if syncfs is None:
            raise OSError("this system cannot sync a whole file system")
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            if syncfs(descriptor) != 0:
                error = ctypes.get_errno()
                raise OSError(error, os.strerror(error))
        finally:
            os.close(descriptor)

    def sync_everything(self, path: Path) -> None:
        """As `sync_file_system`, by way of all file systems where one cannot be synced."""
        if self.syncs_file_systems:
            self.sync_file_system(path)
        else:
            os.sync()

    def write_new(self, path: Path, data: bytes, *, durable: bool) -> None:
        """Make the file `path`, which must not exist, with `data` in it, whole or not at all.

        With `durable` its bytes are on the disk on return; its directory entry is not.
        """
        part = path.with_name(path.name + ".part")
        descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
        try:
            left = memoryview(data)
            while left:  # a disk that fills up takes a part before it refuses the rest
                left = left[os.write(descriptor, left) :]
            if durable:
                self.sync_descriptor(descriptor)
        except BaseException:
            part.unlink(missing_ok=True)
            raise
        finally:
            os.close(descriptor)
        part.rename(path)

    def make_folder(self, path: Path, *, durable: bool) -> None:
        """Make the folder `path` and its parents, durably where asked for."""
        missing: list[Path] = []
        folder = path
        while not folder.exists():
            missing.append(folder)
            folder = folder.parent
        path.mkdir(parents=True, exist_ok=True)
        if durable:
            for made in missing:
                self.sync_directory(made.parent)

    def statistics(self) -> DiskStatistics:
        """Return the counters."""
        return DiskStatistics(
            file_syncs=self._file_syncs,
            directory_syncs=self._directory_syncs,
            file_system_syncs=self._file_system_syncs,
        )


@functools.cache
def _syncfs() -> Callable[[int], int] | None:
    """Return the system's `syncfs`, which Python does not offer, where it reports failures."""
    if sys.platform != "linux":
        return None
    release = tuple(int(part) for part in re.findall(r"\d+", platform.release())[:2])
    syncfs: Callable[[int], int] | None = getattr(ctypes.CDLL(None, use_errno=True), "syncfs", None)
    return syncfs if release >= SYNCFS_SINCE else None
