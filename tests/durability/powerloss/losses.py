"""What a power failure may leave of that which was not synced: one class for each way to lose it.

A loss is asked file by file for the writes that are kept, and the size that the file has then, and
once for the changes of entries that are kept. All of them draw from one random generator, so that
a seed repeats a crash.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Final, TypeAlias

from powerloss.volume import Change, Resize, Write

Data: TypeAlias = Write | Resize
Pending: TypeAlias = Sequence[tuple[int, Data]]
"""Operations on one file that no sync covers, each with its place in the recording."""
SECTORS: Final = (512, 4096)


class Loss:
    """Loses nothing: every write has reached the disk, synced or not. The others lose more.

    The crash comes when `position` operations have been done.
    """

    def __init__(self, chance: random.Random, position: int) -> None:
        self.chance = chance
        self.position = position

    def kept(self, pending: Pending) -> list[Data]:
        """Return what one file keeps."""
        return [operation for _, operation in pending]

    def size(self, sizes: list[int]) -> int:
        """Choose among the sizes that a file has had: first the one that is durable, last the newest."""
        return sizes[-1]

    def entries(self, pending: Sequence[tuple[int, Change]]) -> list[tuple[int, Change]]:
        """Return the changes of entries that are kept."""
        return list(pending)

    def stamped(self, earliest: int) -> int:
        """Return up to which operation the times of changes are kept; `earliest` and before must be."""
        return self.position


class All(Loss):
    """Everything that was not synced is lost."""

    def kept(self, pending: Pending) -> list[Data]:
        return []

    def size(self, sizes: list[int]) -> int:
        return sizes[0]

    def entries(self, pending: Sequence[tuple[int, Change]]) -> list[tuple[int, Change]]:
        return []

    def stamped(self, earliest: int) -> int:
        return earliest


class Subset(Loss):
    """Each write and each entry has reached the disk by chance, some writes in part."""

    def kept(self, pending: Pending) -> list[Data]:
        kept: list[Data] = []
        for _, operation in pending:
            if self.chance.random() < 0.5:
                kept += self._torn(operation) if self.chance.random() < 0.3 else [operation]
        return kept

    def _torn(self, operation: Data) -> list[Data]:
        return [piece for piece in sectors(operation, self.chance) if self.chance.random() < 0.5]

    def size(self, sizes: list[int]) -> int:
        return self.chance.choice(sizes)

    def entries(self, pending: Sequence[tuple[int, Change]]) -> list[tuple[int, Change]]:
        return [change for change in pending if self.chance.random() < 0.5]

    def stamped(self, earliest: int) -> int:
        return self.chance.choice((earliest, self.position))


class TornLast(Loss):
    """All is there but the end of each file's last write."""

    def kept(self, pending: Pending) -> list[Data]:
        kept = super().kept(pending)
        if kept:
            pieces = list(sectors(kept.pop(), self.chance))
            kept += pieces[: self.chance.randrange(len(pieces))]
        return kept


class DataLost(Loss):
    """Names and sizes first: files have their newest size, and zeros where bytes should be."""

    def kept(self, pending: Pending) -> list[Data]:
        return []


class GrowthLost(All):
    """Bytes first: what was written over is there, what was appended is not; no new name is."""

    def kept(self, pending: Pending) -> list[Data]:
        return [operation for _, operation in pending if isinstance(operation, Write)]


class OldestLost(Loss):
    """The newest writes overtook the older ones."""

    def kept(self, pending: Pending) -> list[Data]:
        kept = super().kept(pending)
        return kept[self.chance.randint(0, len(kept)) :]

    def entries(self, pending: Sequence[tuple[int, Change]]) -> list[tuple[int, Change]]:
        return list(pending)[self.chance.randint(0, len(pending)) :]


class OneSide(Loss):
    """Some files have kept all, the others nothing: no order between files can be relied on."""

    def __init__(self, chance: random.Random, position: int) -> None:
        super().__init__(chance, position)
        self._keeps = True

    def kept(self, pending: Pending) -> list[Data]:
        self._keeps = self.chance.random() < 0.5
        return super().kept(pending) if self._keeps else []

    def size(self, sizes: list[int]) -> int:
        return sizes[-1] if self._keeps else sizes[0]

    def entries(self, pending: Sequence[tuple[int, Change]]) -> list[tuple[int, Change]]:
        return super().entries(pending) if self.chance.random() < 0.5 else []

    def stamped(self, earliest: int) -> int:
        return self.chance.choice((earliest, self.position))


class NamesLost(Loss):
    """All bytes are there, no change of an entry is."""

    def entries(self, pending: Sequence[tuple[int, Change]]) -> list[tuple[int, Change]]:
        return []


class Earlier(Loss):
    """All happened in order up to some earlier instant; only what was synced later is there besides."""

    def __init__(self, chance: random.Random, position: int) -> None:
        super().__init__(chance, position)
        self._end = position - round(position * chance.random() ** 3)
        self._kept = 0

    def kept(self, pending: Pending) -> list[Data]:
        kept = [operation for at, operation in pending if at < self._end]
        self._kept = len(kept)
        return kept

    def size(self, sizes: list[int]) -> int:
        return sizes[self._kept]

    def entries(self, pending: Sequence[tuple[int, Change]]) -> list[tuple[int, Change]]:
        return [(at, change) for at, change in pending if at < self._end]

    def stamped(self, earliest: int) -> int:
        return max(earliest, self._end)


LOSSES: Final[dict[str, type[Loss]]] = {
    loss.__name__: loss
    for loss in (All, Subset, OneSide, TornLast, OldestLost, Earlier, DataLost, GrowthLost, NamesLost, Loss)
}


def sectors(operation: Data, chance: random.Random) -> Sequence[Data]:
    """Cut a write where the disk may tear it."""
    if isinstance(operation, Resize):
        return [operation]
    sector = chance.choice(SECTORS)
    pieces: list[Data] = []
    at, end = operation.offset, operation.offset + len(operation.data)
    while at < end:
        cut = min(end, (at // sector + 1) * sector)
        pieces.append(
            Write(operation.file, at, operation.data[at - operation.offset : cut - operation.offset])
        )
        at = cut
    return pieces
