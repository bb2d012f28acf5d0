"""How far the commits of one open file are in the relay log.

Made by `RelayLog.adopt` for as long as the file is open; the log alone reads and changes it.
"""

from __future__ import annotations

from perdure.storage.wal import HEADER_BYTES as WAL_START


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
