"""How far the commits of one open file are in the relay log.

Made by `RelayLog.adopt` for as long as the file is open; the log alone reads and changes it.
"""

from __future__ import annotations

from typing import Final

from perdure.storage.files import InstanceFile
from perdure.storage.schema import PAGE_BYTES, template
from perdure.storage.wal import HEADER_BYTES as WAL_START
from perdure.storage.wal import Commits, WalTooLong, last_commit_is_whole, read_commits

DIRECT_BYTES: Final = 256 * 1024
"""A commit larger than this is not written twice: its file is synced by itself from then on."""
WHOLE_BYTES_MAX: Final = 8 * 1024 * 1024


class Track:
    """How far one open file's commits are in the log."""

    __slots__ = (
        "born",
        "commits",
        "direct",
        "image",
        "incarnation",
        "name",
        "opened",
        "read",
        "salts",
        "segment",
        "trusted",
    )

    def __init__(self, name: str, incarnation: int, *, born: bool) -> None:
        self.name = name
        self.incarnation = incarnation
        self.born = born
        """Whether no disk is known to have the file, so that redo has to make it from the template."""
        self.opened = 0
        """When the file was last changed before it was opened, in nanoseconds; 0 for one just made."""
        self.segment = 0
        """The segment since whose beginning all of the WAL is logged; 0 for none."""
        self.read = WAL_START
        self.salts: bytes | None = None
        self.commits = 0
        self.trusted = False
        """Whether nothing but this process has written the frames behind `read`."""
        self.direct = False
        self.image = b""
        """The bytes last logged of a file that is not written yet."""


def new_commits(file: InstanceFile, track: Track, *, whole: bool) -> Commits | None:
    """Return what a file has committed since it was logged last, or the `whole` of it; None for too much.

    Raises `OSError` and `sqlite3.Error`.
    """
    if file.unwritten is not None:
        return _changed_pages(file, track, whole=whole)
    descriptor = file.wal_descriptor()
    limit = WHOLE_BYTES_MAX if whole else DIRECT_BYTES
    first = track.salts is None and not file.leftover
    try:
        if first or (track.trusted and not whole):
            found, more = read_commits(
                descriptor, after=track.read, salts=track.salts, commits=file.generation - track.commits,
                bytes_max=limit,
            )  # fmt: skip
            if not more:
                return found
        # Another program may be writing too, and a process before this one may have been killed.
        with file.writing_kept_out():
            found, _ = read_commits(
                descriptor, after=track.read, salts=None if whole else track.salts, commits=None,
                bytes_max=limit, checked=file.leftover,
            )  # fmt: skip
            while found.images and not last_commit_is_whole(descriptor, found.end, found.page_bytes):
                found, _ = read_commits(
                    descriptor, after=track.read, salts=None if whole else track.salts,
                    commits=found.commits - 1, bytes_max=limit,
                )  # fmt: skip
    except WalTooLong:
        return None
    return found


def is_outgrown(file: InstanceFile) -> bool:
    """Whether a file that is not written yet has grown too large for the log.

    All of it has to fit into one segment, whenever another begins, however small its commits are.
    """
    return len(file.image) - len(template()) > DIRECT_BYTES


def _changed_pages(file: InstanceFile, track: Track, *, whole: bool) -> Commits:
    """Return the pages that differ in a file not written yet: from what is logged, or from the template."""
    track.born = track.born or whole
    now, before = file.image, template() if whole else track.image
    found = Commits(PAGE_BYTES, b"", track.read)
    found.file_pages = len(now) // PAGE_BYTES
    for at in range(0, len(now), PAGE_BYTES):
        page = now[at : at + PAGE_BYTES]
        if page != before[at : at + PAGE_BYTES]:
            found.images[at // PAGE_BYTES + 1] = page
    return found
