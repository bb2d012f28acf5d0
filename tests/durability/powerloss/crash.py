"""The disk at an instant of a recording: what is certainly on it, and what only perhaps.

Invariants:
    What a returned sync covers is in every state that this disk can be found in.
    The instants asked for only go forward.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Final, NamedTuple, TypeAlias

from powerloss.losses import Data, Loss
from powerloss.volume import ROOT, Change, Operation, Resize, Stamp, Sync, Write, is_folder

UNREAD: Final = ("-shm",)
"""Ends of names of files that nobody reads after a boot; the model does not see the maps that fill them."""


class FoundFile(NamedTuple):
    """A file as it is found: its bytes, and the time of its last change where that is known."""

    content: bytes
    time_ns: int | None


Found: TypeAlias = dict[str, FoundFile | None]
"""What is found after a crash, by path; None stands for a folder."""


class CrashDisk:
    """The disk below a recording, moved forward by `advance` and looked at with `fail`."""

    def __init__(self, operations: Sequence[Operation]) -> None:
        self.position = 0
        self._operations = operations
        self._contents: dict[int, bytearray] = {}
        self._pending: dict[int, list[tuple[int, Data]]] = {}
        self._entries: dict[int, dict[str, int]] = {ROOT: {}}
        self._changes: list[tuple[int, Change, set[int]]] = []
        self._times = times(operations)
        self._written: dict[int, list[int]] = {}
        self._stamped: dict[int, int] = {}
        self._ordered = 0

    def advance(self, position: int) -> None:
        """Let time pass until `position` operations have been done."""
        assert position >= self.position
        for at in range(self.position, position):
            operation = self._operations[at]
            match operation:
                case Write(file=file) | Resize(file=file):
                    self._pending.setdefault(file, []).append((at, operation))
                    self._written.setdefault(file, []).append(at)
                case Change(entries=entries):
                    self._changes.append((at, operation, {folder for folder, _, _ in entries}))
                case Sync():
                    self._sync(operation)
                case _:
                    pass
        self.position = position

    def _sync(self, sync: Sync) -> None:
        for file in list(self._pending) if sync.file is None else [sync.file]:
            self._settle(file, sync)
        left: list[tuple[int, Change, set[int]]] = []
        for at, change, folders in self._changes:
            if at < sync.since:
                folders.difference_update(folders.copy() if sync.file is None else {sync.file})
            if folders:
                left.append((at, change, folders))
            else:
                enter(self._entries, change)
                self._ordered = max(self._ordered, at)
        self._changes = left

    def _settle(self, file: int, sync: Sync) -> None:
        content = self._contents.setdefault(file, bytearray())
        pending = self._pending.get(file, [])
        covered = [operation for at, operation in pending if at < sync.since]
        size = len(content)
        for operation in covered:
            put(content, operation)
        if not sync.data_only or size != len(content):
            self._stamped[file] = sync.since
        del pending[: len(covered)]
        if not pending:
            self._pending.pop(file, None)

    def _time(self, file: int, loss: Loss, ordered: int) -> int | None:
        """Return the time of last change that a file has: where a later change of a name is, it is too."""
        kept = loss.stamped(max(self._stamped.get(file, 0), ordered))
        written = [at for at in self._written.get(file, ()) if at <= kept]
        return self._times.get(written[-1]) if written else None

    def fail(self, loss: Loss) -> Found:
        """Return what is found after a power failure now."""
        entries = {folder: names.copy() for folder, names in self._entries.items()}
        ordered = self._ordered
        for at, change in loss.entries([(at, change) for at, change, _ in self._changes]):
            enter(entries, change)
            ordered = max(ordered, at)
        found: Found = {}
        folders = [("", ROOT)]
        for path, folder in folders:
            for name, number in sorted(entries.get(folder, {}).items()):
                if is_folder(number):
                    found[f"{path}{name}"] = None
                    folders.append((f"{path}{name}/", number))
                else:
                    time_ns = self._time(number, loss, ordered)
                    found[f"{path}{name}"] = FoundFile(self._content(number, loss), time_ns)
        return found

    def _content(self, file: int, loss: Loss) -> bytes:
        content = bytearray(self._contents.get(file, b""))
        pending = self._pending.get(file, ())
        sizes = [len(content)]
        for _, operation in pending:
            sizes.append(size_after(sizes[-1], operation))
        for operation in loss.kept(pending):
            put(content, operation)
        put(content, Resize(file, loss.size(sizes)))
        return bytes(content)


def enter(entries: dict[int, dict[str, int]], change: Change) -> None:
    """Carry out a change of entries, whatever of those before it has been lost."""
    for folder, name, number in change.entries:
        names = entries.setdefault(folder, {})
        if number is None:
            names.pop(name, None)
        else:
            names[name] = number


def put(content: bytearray, operation: Data) -> None:
    """Carry out an operation on the bytes of a file."""
    match operation:
        case Resize(size=size):
            del content[size:]
            content.extend(bytes(size - len(content)))
        case Write(offset=offset, data=data):
            content.extend(bytes(max(0, offset - len(content))))
            content[offset : offset + len(data)] = data


def size_after(size: int, operation: Data) -> int:
    """Return the size of a file after an operation."""
    match operation:
        case Resize(size=new):
            return new
        case Write(offset=offset, data=data):
            return max(size, offset + len(data))


def times(operations: Sequence[Operation]) -> dict[int, int]:
    """Return when each operation on bytes happened, by its place: as the file was stamped next."""
    found: dict[int, int] = {}
    stamps: dict[int, int] = {}
    for at in range(len(operations) - 1, -1, -1):
        match operations[at]:
            case Stamp(file=file, time_ns=time_ns):
                stamps[file] = time_ns
            case Write(file=file) | Resize(file=file) if file in stamps:
                found[at] = stamps[file]
            case _:
                pass
    return found


def materialise(found: Found, root: Path) -> None:
    """Write what a crash left into the folder `root`, which is made."""
    root.mkdir(parents=True)
    for path, file in found.items():
        if file is None:
            (root / path).mkdir()
            continue
        with (root / path).open("wb") as target:  # preallocated files are mostly zeros: they stay sparse
            target.write(file.content.rstrip(b"\0"))
            target.truncate(len(file.content))
        if file.time_ns is not None:
            os.utime(root / path, ns=(file.time_ns, file.time_ns))


def difference(found: Found, root: Path) -> list[str]:
    """Return the paths at which the folder `root` differs; it is how a recording is checked to be whole."""
    wrong: list[str] = []
    there = {path.relative_to(root).as_posix(): path for path in root.rglob("*") if not path.is_socket()}
    for name in sorted(there.keys() & found.keys()):
        path, file = there[name], found[name]
        if (file is None) != path.is_dir():
            wrong.append(name)
        if file is not None and not name.endswith(UNREAD) and path.read_bytes() != file.content:
            wrong.append(name)
    return wrong + sorted(there.keys() ^ found.keys())
