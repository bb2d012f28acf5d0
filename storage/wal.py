"""Reads commits back from a `-wal` file, through a descriptor of our own, which is harmless to SQLite.

The layout is SQLite's: https://www.sqlite.org/fileformat2.html#walformat. Used by the relay log alone.

Invariants:
    What is returned ends with a commit: frames of a transaction under way are never taken.
"""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import Final, NamedTuple

HEADER_BYTES: Final = 32
FRAME: Final = struct.Struct(">II8s")
"""Page number, pages of the file after a commit (0 in other frames), the WAL's two salts."""
FRAME_HEADER_BYTES: Final = 24
FIRST_READ_BYTES: Final = 16 * 1024
MORE_BYTES: Final = 256 * 1024


class WalTooLong(Exception):  # noqa: N818 - it says what is the case, and is no failure
    """There is more to read than was asked for."""


class Commits:
    """What was read: the last image of each page, the file's length, and where reading goes on."""

    __slots__ = ("commits", "end", "file_pages", "images", "page_bytes", "salts")

    def __init__(self, page_bytes: int, salts: bytes, end: int) -> None:
        self.page_bytes = page_bytes
        self.salts = salts
        self.end = end
        self.commits = 0
        self.file_pages = 0
        self.images: dict[int, bytes] = {}


def read_commits(
    descriptor: int,
    *,
    after: int,
    salts: bytes | None,
    commits: int | None,
    bytes_max: int,
    checked: bool = False,
) -> tuple[Commits, bool]:
    """Return what was committed behind byte `after`, and whether there is more than was expected.

    `salts` and `after` are of an earlier reading; where the WAL has started over since, or `salts` is
    None, it is read from its beginning. After `commits` transactions, where that is given, reading stops.
    With `checked` it stops where SQLite would: behind a frame that a death has torn may lie older ones.
    Raises `WalTooLong` where the frames take more than `bytes_max`, and `OSError`.
    """
    head = os.pread(descriptor, HEADER_BYTES, 0)
    if len(head) < HEADER_BYTES:
        return Commits(0, b"", HEADER_BYTES), False
    now = head[16:24]
    if now != salts:
        after = HEADER_BYTES
    order = ">" if head[3] & 1 else "<"
    page_bytes = int.from_bytes(head[8:12], "big")
    found = Commits(page_bytes, now, after)
    frame_bytes = FRAME_HEADER_BYTES + page_bytes
    data = os.pread(descriptor, FIRST_READ_BYTES, after)
    at, sums = 0, _sums_before(descriptor, after, frame_bytes) if checked else None
    pending: list[tuple[int, int]] = []
    while True:
        if at + frame_bytes > len(data):
            if at > bytes_max:
                raise WalTooLong
            more = os.pread(descriptor, MORE_BYTES, after + len(data))
            if not more:
                return found, False
            data += more
            continue
        page, file_pages, frame_salts = FRAME.unpack_from(data, at)
        if frame_salts != now:
            return found, False
        if found.commits == commits:
            return found, True
        if sums is not None:
            sums = _frame_sums(data[at : at + frame_bytes], order, sums)
            if sums != struct.unpack_from(">II", data, at + 16):
                return found, False
        at += frame_bytes
        pending.append((page, at))
        if file_pages:
            for number, end in pending:
                found.images[number] = data[end - page_bytes : end]
            pending.clear()
            found.file_pages, found.end = file_pages, after + at
            found.commits += 1


class WalFound(NamedTuple):
    """What SQLite would play back from a WAL: frames up to byte `end`, written after `rounds` checkpoints."""

    salts: bytes
    end: int
    rounds: int


def examine_wal(path: Path) -> WalFound | None:
    """Return what a WAL that nobody has open holds, all checksums looked at; None where that is nothing."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    if len(data) < HEADER_BYTES:
        return None
    order = ">" if data[3] & 1 else "<"
    one, two = _checksum(data[:24], order, 0, 0)
    page_bytes, rounds = struct.unpack_from(">II", data, 8)
    if struct.unpack_from(">II", data, 24) != (one, two):
        return None
    frame_bytes, end, salts = FRAME_HEADER_BYTES + page_bytes, 0, data[16:24]
    for at in range(HEADER_BYTES, len(data) - frame_bytes + 1, frame_bytes):
        _, file_pages, frame_salts = FRAME.unpack_from(data, at)
        one, two = _checksum(data[at : at + 8], order, one, two)
        one, two = _checksum(data[at + FRAME_HEADER_BYTES : at + frame_bytes], order, one, two)
        if frame_salts != salts or struct.unpack_from(">II", data, at + 16) != (one, two):
            break
        end = at + frame_bytes if file_pages else end
    return WalFound(salts, end, rounds) if end else None


def last_commit_is_whole(descriptor: int, end: int, page_bytes: int) -> bool:
    """Whether the checksums of the transaction that ends at byte `end` fit those before it.

    A process that was killed while it committed leaves a frame that looks like a commit and is none.
    """
    order = ">" if os.pread(descriptor, 4, 0)[3] & 1 else "<"
    frame_bytes = FRAME_HEADER_BYTES + page_bytes
    start = end - frame_bytes
    while start > HEADER_BYTES:
        _, file_pages, _ = FRAME.unpack(os.pread(descriptor, FRAME.size, start - frame_bytes))
        if file_pages:
            break
        start -= frame_bytes
    before = 24 if start == HEADER_BYTES else start - frame_bytes + 16
    one, two = struct.unpack(">II", os.pread(descriptor, 8, before))
    data = os.pread(descriptor, end - start, start)
    for at in range(0, len(data), frame_bytes):
        one, two = _checksum(data[at : at + 8], order, one, two)
        one, two = _checksum(data[at + FRAME_HEADER_BYTES : at + frame_bytes], order, one, two)
        if struct.unpack_from(">II", data, at + 16) != (one, two):
            return False
    return True


def _sums_before(descriptor: int, at: int, frame_bytes: int) -> tuple[int, int]:
    """Return the checksums that stand before the frame at byte `at`."""
    one, two = struct.unpack(
        ">II", os.pread(descriptor, 8, 24 if at == HEADER_BYTES else at - frame_bytes + 16)
    )
    return one, two


def _frame_sums(frame: bytes, order: str, sums: tuple[int, int]) -> tuple[int, int]:
    """Return the checksums that a frame should have behind those before it."""
    return _checksum(frame[FRAME_HEADER_BYTES:], order, *_checksum(frame[:8], order, *sums))


def _checksum(data: bytes, order: str, one: int, two: int) -> tuple[int, int]:
    for a, b in struct.iter_unpack(f"{order}II", data):
        one = (one + a + two) & 0xFFFFFFFF
        two = (two + b + one) & 0xFFFFFFFF
    return one, two
