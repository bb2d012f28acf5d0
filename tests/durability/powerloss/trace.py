"""A trace of strace, read into a volume.

The trace is made with `-f -y -xx`: threads and processes follow one another as strace saw them,
each descriptor carries its path, and every string is in hexadecimal, so that commas and brackets
are the call's own.

Invariants:
    A call counts where it returned; a sync covers what had returned when it was called.
    A call that could change a file and is not understood raises `UnknownCallError`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Final, NamedTuple

from powerloss.volume import Volume, is_folder

CALLS: Final = (
    "open", "openat", "openat2", "creat", "lseek", "write", "pwrite64", "writev", "pwritev", "pwritev2",
    "ftruncate", "truncate", "fallocate", "rename", "renameat", "renameat2", "unlink", "unlinkat", "rmdir",
    "mkdir", "mkdirat", "link", "linkat", "symlink", "symlinkat", "fsync", "fdatasync", "sync", "syncfs",
    "copy_file_range", "sendfile", "splice", "stat", "lstat", "fstat", "newfstatat",
)  # fmt: skip
"""The system calls to record: all that change a file or make one durable, but for memory maps; and those
that tell when a file was changed, for a program may rely on that."""

CALL: Final = re.compile(r"(\w+)\((.*)\) += (-?\d+|\?)(.*)", re.DOTALL)
DESCRIPTOR: Final = re.compile(r"(AT_FDCWD|\d+)(?:<((?:\\x[0-9a-f]{2})*)>(\(deleted\))?)?")
PIECE: Final = re.compile(r'iov_base="([^"]*)"(\.\.\.)?')
CHANGED: Final = re.compile(r"st_mtime=(\d+).*?st_mtime_nsec=(\d+)")
COMMA: Final = re.compile(r", *")  # the space is missing where a call was interrupted
UNFINISHED: Final = "<unfinished ...>"


class UnknownCallError(Exception):
    """A system call that the model volume cannot follow."""


class Call(NamedTuple):
    """One call: its name, its arguments as text, what it returned, and how much was done before it began."""

    name: str
    arguments: list[str]
    result: str
    result_path: str
    since: int


class Descriptor(NamedTuple):
    """A descriptor as a call names it."""

    number: str
    path: str
    deleted: bool


class TraceReader:
    """Reads traces into `volume`. What a program writes to the file `acks` is what it says."""

    def __init__(self, volume: Volume, acks: str) -> None:
        self.under_way: list[Call] = []
        self._volume = volume
        self._acks = acks
        self._offsets: dict[tuple[int, str], int] = {}
        self._appending: set[tuple[int, str]] = set()
        self._synced: set[tuple[int, str]] = set()

    def read(self, path: Path) -> None:
        """Read one trace; calls that a death cut short are kept in `under_way`."""
        self._offsets.clear()
        self._appending.clear()
        self._synced.clear()
        with path.open(encoding="ascii") as lines:
            for call in self._calls(lines):
                self.apply(call)

    def _calls(self, lines: Iterable[str]) -> Iterator[Call]:
        begun: dict[str, tuple[str, int]] = {}
        self.under_way.clear()
        for line in lines:
            thread, _, text = line.rstrip("\n").partition(" ")
            text = text.lstrip()
            since = len(self._volume.operations)
            if text.endswith(UNFINISHED):
                begun[thread] = (text.removesuffix(UNFINISHED).rstrip(), since)
                continue
            if text.startswith("<... "):
                head, since = begun.pop(thread)
                text = head + text.partition("resumed>")[2]
            if not (line.endswith("\n") or CALL.fullmatch(text)):  # a death cut the tracer's own line short
                begun[thread] = (text.rpartition(",")[0], since)
                continue
            call = parse(text, since)
            if call is not None and call.result == "?":
                self.under_way.append(call)
            elif call is not None and not call.result.startswith("-"):
                yield call
        for head, since in begun.values():
            call = parse(f"{head}) = ?", since)
            if call is not None:
                self.under_way.append(call)

    # -- one call --------------------------------------------------------------------------

    def apply(self, call: Call) -> None:
        """Do to the volume what a call did."""
        match call.name:
            case "open" | "openat" | "openat2" | "creat":
                self._open(call)
            case "write" | "writev" | "pwrite64" | "pwritev" | "pwritev2":
                self._write(call)
            case "lseek":
                self._seek(call)
            case "fsync" | "fdatasync":
                number = self._file(descriptor(call.arguments[0]))
                if number is not None:
                    self._volume.sync(number, call.since, data_only=call.name == "fdatasync")
            case "stat" | "lstat" | "fstat" | "newfstatat":
                self._look(call)
            case "sync" | "syncfs":
                self._volume.sync(None, call.since)
            case "ftruncate" | "truncate":
                self._truncate(call)
            case "fallocate":
                self._allocate(call)
            case _:
                self._entries(call)

    def _entries(self, call: Call) -> None:
        paths = named_paths(call.arguments)
        if not any(map(self._volume.holds, paths)):
            return
        match call.name:
            case "mkdir" | "mkdirat":
                self._volume.make_folder(paths[0])
            case "rename" | "renameat" | "renameat2":
                if "RENAME_EXCHANGE" in call.arguments[-1]:
                    raise UnknownCallError(str(call))
                self._volume.rename(paths[0], paths[1])
            case "unlink" | "unlinkat" | "rmdir":
                self._volume.remove(paths[0])
            case "link" | "linkat":
                self._volume.link(self._volume.require(paths[0]), paths[1])
            case _:
                raise UnknownCallError(str(call))

    def _open(self, call: Call) -> None:
        path = call.result_path
        flags = "O_CREAT|O_TRUNC" if call.name == "creat" else " ".join(call.arguments[1:])
        if not self._volume.holds(path) or "O_TMPFILE" in flags:
            return
        number = self._volume.find(path)
        if number is None:
            if "O_CREAT" not in flags:
                raise UnknownCallError(f"{path} is opened, and nobody made it")
            number = self._volume.make_file(path)
        elif "O_TRUNC" in flags:
            self._volume.resize(number, 0)
        key = (number, call.result)
        self._offsets[key] = 0
        for place, flag in ((self._appending, "O_APPEND"), (self._synced, "SYNC")):
            (place.add if flag in flags else place.discard)(key)

    def _file(self, found: Descriptor) -> int | None:
        """Return the number of the file behind a descriptor; None outside the volume."""
        if not self._volume.holds(found.path):
            return None
        number = self._volume.find(found.path, deleted=found.deleted)
        if number is None:
            raise UnknownCallError(f"nothing is known of {found}")
        return number

    def _write(self, call: Call) -> None:
        found = descriptor(call.arguments[0])
        if found.path == self._acks:
            for line in written(call).splitlines():
                self._volume.say(json.loads(line))
            return
        number = self._file(found)
        if number is None:
            return
        data = written(call)[: int(call.result)]
        key = (number, found.number)
        if call.name.startswith("p"):
            offset = int(call.arguments[-2 if call.name == "pwritev2" else -1])
        elif key in self._appending:
            offset = self._volume.sizes[number]
        else:
            offset = self._offsets[key]
            self._offsets[key] += len(data)
        self._volume.write(number, offset, data)
        if key in self._synced or "DSYNC" in call.arguments[-1]:
            self._volume.sync(number, len(self._volume.operations))

    def _seek(self, call: Call) -> None:
        found = descriptor(call.arguments[0])
        number = self._file(found) if self._volume.holds(found.path) else None
        if number is not None and (number, found.number) in self._offsets:
            self._offsets[number, found.number] = int(call.result)

    def _look(self, call: Call) -> None:
        paths = [path for path in named_paths(call.arguments[:2]) if path != "."]
        found = descriptor(call.arguments[0]) if "<" in call.arguments[0] else None
        if call.name == "fstat" or (call.name == "newfstatat" and call.arguments[1] == '""'):
            number = None if found is None else self._file(found)
        else:
            number = self._volume.find(paths[0]) if self._volume.holds(paths[0]) else None
        seen = CHANGED.search(", ".join(call.arguments))
        if number is not None and not is_folder(number) and seen is not None:
            self._volume.stamp(number, int(seen[1]) * 10**9 + int(seen[2]))

    def _truncate(self, call: Call) -> None:
        if call.name == "truncate":
            path = named_paths(call.arguments)[0]
            number = self._volume.require(path) if self._volume.holds(path) else None
        else:
            number = self._file(descriptor(call.arguments[0]))
        if number is not None:
            self._volume.resize(number, int(call.arguments[1]))

    def _allocate(self, call: Call) -> None:
        number = self._file(descriptor(call.arguments[0]))
        if number is None or call.arguments[1] == "FALLOC_FL_KEEP_SIZE":
            return
        offset, length = int(call.arguments[2]), int(call.arguments[3])
        if call.arguments[1] != "0":
            raise UnknownCallError(str(call))
        self._volume.resize(number, max(self._volume.sizes[number], offset + length))


def parse(text: str, since: int) -> Call | None:
    """Return the call that a line of the trace, without its thread, tells of; None for no call."""
    found = CALL.fullmatch(text)
    if found is None:
        if text.startswith(
            ("+++", "---", "???")
        ):  # the last: a death came between a call's number and its name
            return None
        raise UnknownCallError(text[:200])
    name, arguments, result, rest = found.groups()
    path = DESCRIPTOR.match(f"{result}{rest}")
    return Call(name, COMMA.split(arguments), result, unhex(path[2] or "") if path else "", since)


def descriptor(text: str) -> Descriptor:
    """Return the descriptor that an argument names."""
    found = DESCRIPTOR.fullmatch(text)
    if found is None:
        raise UnknownCallError(f"no descriptor: {text[:100]}")
    return Descriptor(found[1], unhex(found[2] or ""), found[3] is not None)


def named_paths(arguments: list[str]) -> list[str]:
    """Return the paths that a call names, each joined to the folder descriptor before it."""
    paths: list[str] = []
    folder = ""
    for argument in arguments:
        if argument.startswith('"'):
            paths.append(str(PurePosixPath(folder, unhex(argument.strip('"')))))
            folder = ""
        elif DESCRIPTOR.fullmatch(argument) and "<" in argument:
            folder = descriptor(argument).path
    return paths


def written(call: Call) -> bytes:
    """Return the bytes that a call was to write."""
    text = ", ".join(call.arguments[1:])
    if '"...' in text:
        raise UnknownCallError(f"the trace has cut the bytes of a {call.name}")
    if call.name in ("write", "pwrite64"):
        return bytes.fromhex(text[1 : text.index('"', 1)].replace("\\x", ""))
    return b"".join(bytes.fromhex(piece[1].replace("\\x", "")) for piece in PIECE.finditer(text))


def unhex(text: str) -> str:
    """Return a path that strace has printed in hexadecimal."""
    return bytes.fromhex(text.replace("\\x", "")).decode()
