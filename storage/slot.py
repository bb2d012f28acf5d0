"""A file of the relay log, which holds one segment after another. The log's thread alone writes it."""

from __future__ import annotations

import os
from pathlib import Path

from perdure.storage.relay_format import HEADER_BYTES


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


def write_at(descriptor: int, data: bytes, at: int) -> None:
    """Write all of `data` at byte `at`. Raises `OSError`."""
    left = memoryview(data)
    while left:
        written = os.pwrite(descriptor, left, at)
        left, at = left[written:], at + written
