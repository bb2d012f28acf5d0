"""What a benchmark finds: records that are printed as a table, as JSON, as Markdown or as a plot.

Anybody may read them. A benchmark makes `Measure`s; the suite adds the peers' figures and puts
`Result`s together; `perdure bench --json` writes `Results`, and `--from` reads them back.

Invariants:
    A figure that was not measured is None, with `missing` saying why; none is ever made up.
    A share of the bare loop is a speed: 1.0 is as fast as the bare loop, 0.5 takes twice as long.
"""

from __future__ import annotations

from typing import Final, Literal

import msgspec

FORMAT: Final = 1
"""The version of the JSON; it grows when a field changes its meaning."""

Size = Literal["full", "quick", "tiny"]
SIZES: Final[tuple[Size, ...]] = ("full", "quick", "tiny")
Better = Literal["more", "less"]


class PeerFigure(msgspec.Struct, frozen=True, kw_only=True):
    """What a peer does of the same. `source` says when and where that was measured.

    `value` is None for a peer that could not be measured; `missing` says why, and what to install.
    """

    peer: str
    value: float | None
    source: str
    missing: str | None = None


class Measure(msgspec.Struct, frozen=True, kw_only=True):
    """One figure of a benchmark: the median of its `rounds`, beside its target and the bare loop.

    `bare` is the bare loop's figure in the same unit, `share` how fast this is of it. `key` names
    the measure for programs, `what` for people. `figures` are those that explain it.
    """

    key: str
    what: str
    unit: str
    value: float | None
    better: Better = "more"
    target: float | None = None
    bare: float | None = None
    share: float | None = None
    share_target: float | None = None
    rounds: list[float] = []
    figures: dict[str, float] = {}
    missing: str | None = None
    peers: list[PeerFigure] = []

    @property
    def reached(self) -> bool | None:
        """Whether the targets are reached; None where there is none, or nothing was measured."""
        found: list[bool] = []
        if self.target is not None and self.value is not None:
            less = self.better == "less"
            found.append(self.value <= self.target if less else self.value >= self.target)
        if self.share_target is not None and self.share is not None:
            found.append(self.share >= self.share_target)
        return all(found) if found else None

    def times(self, peer: PeerFigure) -> float | None:
        """Return how many times as good as the peer this is, where both are known.

        >>> figure = PeerFigure(peer="a", value=500.0, source="here")
        >>> Measure(key="chain", what="chain", unit="steps/s", value=2000.0).times(figure)
        4.0
        """
        if not self.value or not peer.value:
            return None
        return peer.value / self.value if self.better == "less" else self.value / peer.value


class Found(msgspec.Struct, frozen=True, kw_only=True):
    """What one run of a benchmark found. `computed` depends on the work alone, never on the machine."""

    measures: list[Measure]
    computed: object
    notes: list[str] = []


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """One benchmark's measures with the checksum of its work; `error` where it could not be run."""

    benchmark: str
    about: str
    rounds: int
    seconds: float
    checksum: str | None
    measures: list[Measure]
    notes: list[str] = []
    error: str | None = None


class Results(msgspec.Struct, frozen=True, kw_only=True):
    """All results of one call of `perdure bench`, with what the figures depend on besides the code."""

    format: int = FORMAT
    size: Size
    environment: dict[str, str | int]
    results: list[Result]


def figure(value: float | None) -> str:
    """Return a figure as people read it, with no more digits than it has.

    >>> [figure(value) for value in (54321.6, 54.321, 5.4321, 0.1234, None)]
    ['54,322', '54.3', '5.43', '0.12', '-']
    """
    if value is None:
        return "-"
    digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2
    return f"{value:,.{digits}f}"


def percents(share: float | None) -> str:
    """Return a share as people read it.

    >>> percents(0.6)
    '60 %'
    """
    return "-" if share is None else f"{100 * share:,.0f} %"
