"""What every benchmark shares: interleaved rounds, medians, folders, progress, and a checksum.

A benchmark compares variants of the same work. They run in turn, round after round, forwards and
backwards, so that a disk or a neighbour that slows down slows all of them; a ratio is taken
within a round, and the median of those is shown. What was computed is checked and made into a
checksum, so that nobody measures work that was not done.

A benchmark is a module with `SIZES` and `run(bench)`; `suite.py` lists and starts them.

Invariants:
    Each variant runs once in every round; a round's first variant is the last of the next round.
    The checksum depends on what was computed, never on how long it took.
    What a benchmark writes lies in its own folder, which is removed at the end.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import platform
import sqlite3
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Generic, TypeVar

import msgspec

from perdure.benchmarks.results import Better, Measure
from perdure.storage.locks import file_system

S = TypeVar("S", covariant=True)
T = TypeVar("T")

Say = Callable[[str], object]
"""Told what is being measured; shows it in place of what it was told before."""


class WorkNotDoneError(Exception):
    """A benchmark has found that the work it timed was not done, or not by all: its figures mean nothing."""


class Bench(Generic[S]):
    """What a benchmark's `run` is given: its size, how often to measure, where to write and to report.

    `workers` is how many processes share the work where a benchmark measures that.
    """

    def __init__(self, size: S, *, rounds: int, folder: Path, say: Say, workers: int = 2) -> None:
        self.size = size
        self.rounds = rounds
        self.folder = folder
        self.say = say
        self.workers = workers
        self._folders = 0

    def new_folder(self) -> Path:
        """Return an empty folder on the disk that is measured; it is removed at the end."""
        self._folders += 1
        path = self.folder / str(self._folders)
        path.mkdir()
        return path

    def in_turn(self, variants: Mapping[str, Callable[[], T]]) -> dict[str, list[T]]:
        """Run every variant once a round, forwards and backwards in turn; return the rounds of each."""
        found: dict[str, list[T]] = {name: [] for name in variants}
        began_s = time.perf_counter()
        for number in range(self.rounds):
            names = list(variants) if number % 2 == 0 else list(variants)[::-1]
            for name in names:
                spent_s = time.perf_counter() - began_s
                self.say(f"round {number + 1} of {self.rounds}, {spent_s:.0f} s: {name}")
                found[name].append(variants[name]())
        return found


def compared(
    values: Sequence[float],
    bare: Sequence[float] | None = None,
    *,
    key: str,
    what: str,
    unit: str,
    better: Better = "more",
    target: float | None = None,
    share_target: float | None = None,
    figures: Mapping[str, float] | None = None,
) -> Measure:
    """Return the measure of rounds, compared with the bare loop's rounds where there are any.

    >>> compared([2.0, 3.0], [4.0, 6.0], key="chain", what="a chain", unit="steps/s").share
    0.5
    """
    share = None
    if bare is not None:
        share = ratio(bare, values) if better == "less" else ratio(values, bare)
    return Measure(
        key=key,
        what=what,
        unit=unit,
        value=median(values),
        better=better,
        target=target,
        bare=None if bare is None else median(bare),
        share=share,
        share_target=share_target,
        rounds=list(values),
        figures=dict(figures or {}),
    )


def median(values: Sequence[float]) -> float:
    """Return the middle value.

    >>> median([3.0, 1.0, 2.0])
    2.0
    """
    return statistics.median(values)


def ratio(values: Sequence[float], to: Sequence[float]) -> float:
    """Return the median of the ratios within each round.

    >>> ratio([2.0, 4.0, 9.0], [1.0, 2.0, 3.0])
    2.0
    """
    return median([value / base for value, base in zip(values, to, strict=True)])


def percentile(values: Sequence[float], percent: float) -> float:
    """Return the value that `percent` of the values do not exceed (nearest rank).

    >>> percentile([1.0, 2.0, 3.0, 4.0], 50)
    2.0
    """
    ordered = sorted(values)
    return ordered[max(0, -int(-percent / 100 * len(ordered) // 1) - 1)]


def checksum(computed: object) -> str:
    """Return a short digest of what was computed, the same on every machine."""
    raw = msgspec.json.encode(computed, order="deterministic")
    return hashlib.blake2b(raw, digest_size=8).hexdigest()


def environment(folder: Path | None = None) -> dict[str, str | int]:
    """Return what the figures depend on besides the code; `folder` is on the disk that is measured."""
    return {
        "perdure": importlib.metadata.version("perdure"),
        "python": platform.python_version(),
        "sqlite": sqlite3.sqlite_version,
        "system": f"{platform.system()} {platform.release()}",
        "file system": file_system(folder or tempfile.gettempdir()) or "unknown",
        "processors": os.cpu_count() or 1,
        "load": f"{os.getloadavg()[0]:.2f}",
    }
