"""A file of the relay log, which holds one segment after another. The log's thread alone writes it."""

from __future__ import annotations

import os
from pathlib import Path

from perdure.storage.disk import Disk
from perdure.storage.relay_format import HEADER_BYTES, Segment, segment_header


class Slot:
    """A file of the log, as the log knows it: which segment it holds now (0: none), and how full that is."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.descriptor = -1
        self.segment = 0
        self.first = 0
        self.at = HEADER_BYTES
        self.batches = 0
        self.templates: set[int] = set()

    def prepare(self, disk: Disk, bytes_: int, *, worker: int, boot: int) -> None:
        """Have the file hold the segment. It is made of blocks that are written, so that syncs are quick.

        Raises `OSError`.
        """
        if self.descriptor < 0:
            disk.make_folder(self.path.parent, durable=True)
            self.descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
            zeros = bytes(1024 * 1024)
            try:
                for at in range(0, bytes_, len(zeros)):
                    write_at(self.descriptor, zeros[: bytes_ - at], at)
            except OSError:
                self.path.unlink()  # what is left of the room is the instances'
                raise
            disk.sync_descriptor(self.descriptor)
            disk.sync_directory(self.path.parent)
        header = Segment(number=self.segment, worker=worker, boot=boot, first=self.first)
        write_at(self.descriptor, segment_header(header), 0)
        # Else part of a settled segment could be found under its old header, without what came after.
        disk.sync_descriptor(self.descriptor)


def write_at(descriptor: int, data: bytes, at: int) -> None:
    """Write all of `data` at byte `at`. Raises `OSError`."""
    left = memoryview(data)
    while left:
        written = os.pwrite(descriptor, left, at)
        left, at = left[written:], at + written
