"""A model volume: files and folders below one root, and the list of what was done to them.

`trace` feeds it one system call after another. Beside the operations it keeps only names and
sizes; contents are made from the operations, by `crash`.

Invariants:
    An operation names files by number, so that a name used again is another file.
    A call that the model does not know is refused: a recording is whole or there is none.
"""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import Any, Final, TypeAlias

import msgspec

ROOT: Final = 0
"""The number of the root folder. Files have numbers above it, the other folders below."""


def is_folder(number: int) -> bool:
    """Whether a number is that of a folder."""
    return number <= ROOT


class Write(msgspec.Struct, frozen=True):
    """Bytes written into a file."""

    file: int
    offset: int
    data: bytes


class Resize(msgspec.Struct, frozen=True):
    """A file cut, or grown by zeros."""

    file: int
    size: int


class Change(msgspec.Struct, frozen=True):
    """Entries of folders that changed together: (folder, name, the file it now leads to or None)."""

    entries: tuple[tuple[int, str, int | None], ...]


class Sync(msgspec.Struct, frozen=True):
    """A sync that has returned, of one file or folder or of all; it covers the operations before `since`.

    One of the `data_only` leaves out the time of the last change, unless the size changed too.
    """

    file: int | None
    since: int
    data_only: bool = False


class Stamp(msgspec.Struct, frozen=True):
    """The time of a file's last change, as the program or the recorder saw it."""

    file: int
    time_ns: int


class Said(msgspec.Struct, frozen=True):
    """What the program told the world outside."""

    fact: dict[str, Any]


Operation: TypeAlias = Write | Resize | Change | Sync | Stamp | Said


class Volume:
    """The volume as the running program sees it, below the folder `root` of the recording machine."""

    def __init__(self, root: str) -> None:
        self.operations: list[Operation] = []
        self.folders: dict[int, dict[str, int]] = {ROOT: {}}
        self.sizes: dict[int, int] = {}
        self._root = PurePosixPath(root)
        self._ghosts: dict[str, int] = {}
        self._stamps: dict[int, int] = {}
        self._made = 0

    @classmethod
    def of(cls, root: Path) -> Volume:
        """Return a volume that holds what lies in the folder `root`, all of it durable."""
        volume = cls(str(root))
        for path in sorted(root.rglob("*")):
            if path.is_dir():
                volume.make_folder(str(path))
            elif path.is_file():
                volume.write(volume.make_file(str(path)), 0, path.read_bytes())
        volume.stamp_all()
        volume.sync(None, len(volume.operations))
        return volume

    # -- names -----------------------------------------------------------------------------

    def holds(self, path: str) -> bool:
        """Whether `path` lies in the volume."""
        return PurePosixPath(path).is_relative_to(self._root)

    def find(self, path: str, *, deleted: bool = False) -> int | None:
        """Return the file or folder at `path`; with `deleted` the one that was there last."""
        if deleted:
            return self._ghosts.get(path)
        number = ROOT
        for part in PurePosixPath(path).relative_to(self._root).parts:
            entries = self.folders.get(number, {})
            if part not in entries:
                return None
            number = entries[part]
        return number

    def require(self, path: str) -> int:
        """Return the file or folder at `path`; it must be there."""
        number = self.find(path)
        if number is None:
            raise LookupError(f"the recording has not seen {path} being made")
        return number

    def _place(self, path: str) -> tuple[int, str]:
        pure = PurePosixPath(path)
        return self.require(str(pure.parent)), pure.name

    # -- entries ---------------------------------------------------------------------------

    def make_file(self, path: str) -> int:
        """Make an empty file and return its number."""
        return self._enter(path, folder=False)

    def make_folder(self, path: str) -> int:
        """Make an empty folder and return its number."""
        return self._enter(path, folder=True)

    def _enter(self, path: str, *, folder: bool) -> int:
        self._made += 1
        number = -self._made if folder else self._made
        if folder:
            self.folders[number] = {}
        else:
            self.sizes[number] = 0
        self.link(number, path)
        return number

    def link(self, number: int, path: str) -> None:
        """Make `path` lead to a file."""
        place, name = self._place(path)
        self._change((place, name, number))

    def remove(self, path: str) -> None:
        """Remove an entry; one of a socket, which the model does not hold, is not missed."""
        number = self.find(path)
        if number is not None:
            self._ghosts[path] = number
            self._change((*self._place(path), None))

    def rename(self, old: str, new: str) -> None:
        """Move an entry, in the place of what was there."""
        number = self.require(old)
        replaced = self.find(new)
        if replaced is not None:
            self._ghosts[new] = replaced
        self._change((*self._place(old), None), (*self._place(new), number))

    def _change(self, *entries: tuple[int, str, int | None]) -> None:
        for folder, name, number in entries:
            if number is None:
                del self.folders[folder][name]
            else:
                self.folders[folder][name] = number
        self.operations.append(Change(entries))

    # -- contents --------------------------------------------------------------------------

    def write(self, file: int, offset: int, data: bytes) -> None:
        """Write bytes at an offset."""
        self.sizes[file] = max(self.sizes[file], offset + len(data))
        self.operations.append(Write(file, offset, data))

    def resize(self, file: int, size: int) -> None:
        """Cut or grow a file."""
        if size != self.sizes[file]:
            self.sizes[file] = size
            self.operations.append(Resize(file, size))

    def sync(self, number: int | None, since: int, *, data_only: bool = False) -> None:
        """Note a sync that has returned, and that was called when `since` operations had."""
        self.operations.append(Sync(number, since, data_only))

    def stamp(self, file: int, time_ns: int) -> None:
        """Note the time of a file's last change."""
        if self._stamps.get(file) != time_ns:
            self._stamps[file] = time_ns
            self.operations.append(Stamp(file, time_ns))

    def stamp_all(self) -> None:
        """Note the times of all files, as they lie in the root folder now."""
        for path in sorted(Path(self._root).rglob("*")):
            number = self.find(str(path))
            if number is not None and not is_folder(number):
                self.stamp(number, path.stat().st_mtime_ns)

    def say(self, fact: dict[str, Any]) -> None:
        """Note what the program told."""
        self.operations.append(Said(fact))
