"""The state folder: where everything lies, and whether it may be used at all.

Invariants:
    A folder that is refused has not been changed.
    A folder that is made is durable in its parent before anything is put into it.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from pathlib import Path
from typing import Final

from perdure.errors import StateUnusableError
from perdure.storage.disk import Disk
from perdure.storage.locks import network_file_system
from perdure.storage.names import file_stem, folder_name
from perdure.storage.records import Key

CATALOG: Final = "catalog.sqlite"
LOCK: Final = "owner.lock"
SOCKET_PATH_BYTES_MAX: Final = 100
"""The operating system's bound on a socket's path is 104 to 108 bytes."""


class StateFolder:
    """The paths in one state folder."""

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self.root = Path(root).expanduser().absolute()

    @property
    def catalog(self) -> Path:
        """The catalog's file."""
        return self.root / CATALOG

    @property
    def lock(self) -> Path:
        """The file whose lock says which process owns the folder."""
        return self.root / LOCK

    @property
    def doorbell(self) -> Path:
        """The socket by which other processes wake the owner."""
        path = self.root / "doorbell.sock"
        if len(os.fsencode(path)) <= SOCKET_PATH_BYTES_MAX:
            return path
        digest = hashlib.blake2b(os.fsencode(self.root), digest_size=8).hexdigest()
        return Path(tempfile.gettempdir()) / f"perdure-{digest}.sock"

    @property
    def workers(self) -> Path:
        """Where each worker's own lock lies."""
        return self.root / "workers"

    def worker_lock(self, worker: int) -> Path:
        """Return the path of the lock that a worker holds for as long as it lives."""
        return self.workers / f"{worker}.lock"

    @property
    def archive(self) -> Path:
        """Where the files of expired instances go that are kept."""
        return self.root / "archive"

    @property
    def relay(self) -> Path:
        """Where the relay logs lie."""
        return self.root / "relay"

    def instance(self, key: Key) -> Path:
        """Return the path of an instance's file."""
        return self.root / folder_name(key.workflow) / f"{file_stem(key.id)}.sqlite"

    def exists(self) -> bool:
        """Whether this is a state folder already."""
        return self.catalog.exists()

    def require(self) -> None:
        """Raise `StateUnusableError` where this is no state folder yet."""
        if not self.exists():
            raise StateUnusableError(
                f"there is no state in {self.root}: run a workflow first, or name the folder with --state DIR"
                " or $PERDURE_STATE",
                path=str(self.root),
            )

    def prepare(self, disk: Disk | None = None) -> None:
        """Make the folder, durably, where it is missing; refuse one that cannot hold state.

        Raises `StateUnusableError`: not a folder, somebody else's, read-only, on a network file
        system.
        """
        self._check_kind()
        self._check_file_system()
        try:
            self._make(disk or Disk())
        except OSError as error:
            raise StateUnusableError(
                f"the state folder {self.root} cannot be made: {error.strerror}; choose another with"
                " --state DIR",
                path=str(self.root),
            ) from error
        if not os.access(self.root, os.W_OK | os.X_OK):
            raise StateUnusableError(
                f"the state folder {self.root} is read-only for this user: change its permissions or choose"
                " another with --state DIR",
                path=str(self.root),
            )

    def _make(self, disk: Disk) -> None:
        """Make the folder: nothing in it outlives the machine before its own name is on the disk."""
        if not self.root.exists():
            disk.make_folder(self.root, durable=True)
        elif not self.exists():  # whoever made it may have died before its name was
            with contextlib.suppress(PermissionError):
                disk.sync_directory(self.root.parent)

    def _check_kind(self) -> None:
        if not self.root.exists():
            return
        if not self.root.is_dir():
            raise StateUnusableError(f"{self.root} is a file, not a folder", path=str(self.root))
        try:
            names = {entry.name for entry in os.scandir(self.root)}
        except OSError as error:
            raise StateUnusableError(
                f"the state folder {self.root} cannot be read: {error.strerror}", path=str(self.root)
            ) from error
        if names - {LOCK, ".gitignore"} and CATALOG not in names:
            raise StateUnusableError(
                f"{self.root} holds other files and no {CATALOG}, so it is not a state folder of Perdure:"
                " choose an empty or new folder. (If its catalog was lost, `perdure repair` rebuilds it.)",
                path=str(self.root),
            )

    def _check_file_system(self) -> None:
        existing = self.root
        while not existing.exists() and existing != existing.parent:
            existing = existing.parent
        kind = network_file_system(existing)
        if kind is not None:
            raise StateUnusableError(
                f"{self.root} is on a network file system ({kind}), where SQLite's write-ahead log does not"
                " work: choose a folder on a local disk",
                path=str(self.root),
            )
