"""What every benchmark here shares: sizes, interleaved rounds, medians, a table, and a checksum.

A benchmark compares variants of the same work. They run in turn, round after round, forwards and
backwards, so that a disk or a neighbour that slows down slows all of them; a ratio is taken
within a round, and the median of those is shown. What was computed is checked and printed as a
checksum, so that nobody measures work that was not done.

A program calls `main(name, sizes, run)` and nothing else of the outside: options, progress (on
standard error) and the report (on standard output) are the same for all.

Invariants:
    Each variant runs once in every round; a round's first variant is the last of the next round.
    The checksum depends on what was computed, never on how long it took.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.metadata
import os
import platform
import sqlite3
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Generic, TypeVar

import msgspec

S = TypeVar("S")
T = TypeVar("T")

SIZES: Final = ("full", "quick", "tiny")


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One line of a report: what was measured, and figures by column in the order of the table."""

    name: str
    figures: dict[str, float | None]


class Section(msgspec.Struct, frozen=True, kw_only=True):
    """A table of a report, under a title that says what its figures mean."""

    title: str
    rows: list[Row]


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """What a benchmark found. `checksum` is over `computed`, which no run may change."""

    sections: list[Section]
    computed: Any


class Progress:
    """Says on standard error what is being measured: one line that is overwritten, or plain lines."""

    def __init__(self, *, quiet: bool) -> None:
        self._quiet = quiet
        self._live = sys.stderr.isatty()

    def say(self, text: str) -> None:
        """Show `text` in place of what was shown before."""
        if not self._quiet:
            print(
                f"\r\x1b[K{text}" if self._live else text,
                end="" if self._live else "\n",
                file=sys.stderr,
                flush=True,
            )

    def clear(self) -> None:
        """Leave the line empty."""
        if self._live:
            self.say("")


class Bench(Generic[S]):
    """What a benchmark's `run` is given: its size, how often to measure, where to write and to report."""

    def __init__(self, size: S, *, rounds: int, folder: Path, progress: Progress) -> None:
        self.size = size
        self.rounds = rounds
        self.folder = folder
        self.progress = progress
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
                self.progress.say(f"round {number + 1} of {self.rounds}, {spent_s:.0f} s: {name}")
                found[name].append(variants[name]())
        return found


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


def checksum(computed: Any) -> str:
    """Return a short digest of what was computed, the same on every machine."""
    raw = msgspec.json.encode(computed, order="deterministic")
    return hashlib.blake2b(raw, digest_size=8).hexdigest()


def table(rows: Sequence[Row]) -> str:
    """Return the rows as text in columns, figures to the right.

    >>> print(table([Row(name="bare", figures={"steps/s": 50_000.0, "syncs": None})]))
          steps/s  syncs
    bare   50,000      -
    """
    columns = list(dict.fromkeys(column for row in rows for column in row.figures))
    lines = [["", *columns]]
    lines += [[row.name, *(_figure(row.figures.get(column)) for column in columns)] for row in rows]
    widths = [max(len(line[at]) for line in lines) for at in range(len(columns) + 1)]
    return "\n".join("  ".join(_padded(line, widths)) for line in lines)


def _padded(line: Sequence[str], widths: Sequence[int]) -> list[str]:
    figures = zip(line[1:], widths[1:], strict=True)
    return [line[0].ljust(widths[0]), *(figure.rjust(width) for figure, width in figures)]


def _figure(value: float | None) -> str:
    if value is None:
        return "-"
    digits = 0 if abs(value) >= 1_000 else 1 if abs(value) >= 10 else 2
    return f"{value:,.{digits}f}"


def environment() -> dict[str, str | int]:
    """Return what the figures depend on besides the code."""
    return {
        "python": platform.python_version(),
        "sqlite": sqlite3.sqlite_version,
        "system": f"{platform.system()} {platform.release()}",
        "processors": os.cpu_count() or 1,
        "load": f"{os.getloadavg()[0]:.2f}",
        "perdure": importlib.metadata.version("perdure"),
    }


def main(
    name: str, about: str, sizes: Mapping[str, tuple[S, int]], run: Callable[[Bench[S]], Report]
) -> None:
    """Run one benchmark as a program. `sizes` gives, for each of `SIZES`, a size and its rounds."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    size = parser.add_mutually_exclusive_group()
    size.add_argument(
        "--quick", dest="size", action="store_const", const="quick", help="a few seconds, rougher figures"
    )
    size.add_argument(
        "--tiny", dest="size", action="store_const", const="tiny", help="only to see that it runs"
    )
    parser.add_argument("--rounds", type=int, help="how often each variant is measured")
    parser.add_argument(
        "--folder", help="measure the disk that holds this folder (default: the one for temporary files)"
    )
    parser.add_argument("--json", action="store_true", help="print the report as one JSON object")
    parser.add_argument("--quiet", action="store_true", help="show no progress")
    options = parser.parse_args()
    chosen, rounds = sizes[options.size or "full"]
    progress = Progress(quiet=options.quiet)
    rounds = options.rounds or rounds
    with tempfile.TemporaryDirectory(prefix="perdure-bench-", dir=options.folder) as folder:
        report = run(Bench(chosen, rounds=rounds, folder=Path(folder), progress=progress))
    progress.clear()
    _print(name, report, rounds, as_json=options.json)


def _print(name: str, report: Report, rounds: int, *, as_json: bool) -> None:
    digest = checksum(report.computed)
    if as_json:
        found = {"benchmark": name, "rounds": rounds, "environment": environment(), "checksum": digest}
        print(msgspec.json.encode(found | {"sections": report.sections}).decode())
        return
    print(
        ", ".join(f"{key} {value}" for key, value in environment().items()),
        f"; medians of {rounds} rounds",
        sep="",
    )
    for section in report.sections:
        print(f"\n{section.title}\n\n{table(section.rows)}")
    print(f"\nchecksum {digest}")
