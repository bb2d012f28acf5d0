"""Puts the peers' figures beside Perdure's: those that are on record, and those measured here and now.

A peer is measured by its adapter, in a process of its own, with the same work and on the same disk,
where its package is installed: in this environment, or in that of `--peer-python`. One that is not
installed is told so, with what to install; its figures on record keep their date.

Invariants:
    No figure of a peer stands without its source.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final, Protocol

import msgspec

from perdure.benchmarks.harness import Say, median
from perdure.benchmarks.peers.dbos_adapter import Dbos
from perdure.benchmarks.peers.recorded import RECORDED, SOURCE
from perdure.benchmarks.peers.restate_adapter import Restate
from perdure.benchmarks.results import Found, Measure, PeerFigure, Size

HERE: Final = "measured here"


class Adapter(Protocol):
    """What measures one peer."""

    @property
    def peer(self) -> str:
        """Its name, as `recorded.py` has it."""
        ...

    def missing(self) -> str | None:
        """Return what to install, or None where it is there."""
        ...

    def keys(self, benchmark: str) -> Sequence[str]:
        """Return the keys of the measures that it has a counterpart for; empty where it has none."""
        ...

    def rounds_max(self, benchmark: str) -> int:
        """Return how often it may be measured: what takes minutes, once."""
        ...

    def measure(self, benchmark: str, size: Size, folder: Path) -> dict[str, float]:
        """Do the benchmark's work once in an empty folder; return figures by the key of the measure."""
        ...


class Peers:
    """The peers beside which a run of benchmarks is put. `rounds` is how often each is measured."""

    def __init__(self, adapters: Sequence[Adapter], size: Size, rounds: int) -> None:
        self._adapters = adapters
        self._size: Size = size
        self._rounds = rounds

    def beside(self, benchmark: str, found: Found, folder: Path, say: Say) -> Found:
        """Return what was found with the peers' figures in each measure."""
        now: dict[str, list[PeerFigure]] = {}
        for adapter in self._adapters:
            if keys := adapter.keys(benchmark):
                for key, figure in self._measured(adapter, benchmark, keys, folder, say).items():
                    now.setdefault(key, []).append(figure)
        measures = [
            msgspec.structs.replace(measure, peers=[*now.get(measure.key, []), *recorded(measure)])
            for measure in found.measures
        ]
        return msgspec.structs.replace(found, measures=measures)

    def _measured(
        self, adapter: Adapter, benchmark: str, keys: Sequence[str], folder: Path, say: Say
    ) -> dict[str, PeerFigure]:
        missing = adapter.missing()
        rounds = min(self._rounds, adapter.rounds_max(benchmark))
        laps: list[dict[str, float]] = []
        try:
            for number in range(0 if missing else rounds):
                say(f"{adapter.peer}, round {number + 1} of {rounds}")
                made = folder / f"{type(adapter).__name__}-{adapter.peer.replace(', ', '-')}-{number}"
                made.mkdir()
                laps.append(adapter.measure(benchmark, self._size, made))
        except Exception as error:  # noqa: BLE001 - a peer's failure is no failure of the benchmark
            missing = f"failed: {error}"
        return {
            key: PeerFigure(
                peer=adapter.peer,
                value=None if missing else median([lap[key] for lap in laps]),
                source=HERE,
                missing=missing,
            )
            for key in keys
        }


def recorded(measure: Measure) -> list[PeerFigure]:
    """Return what is on record for a measure."""
    return [
        PeerFigure(peer=each.peer, value=each.figures[measure.key], source=SOURCE)
        for each in RECORDED
        if measure.key in each.figures
    ]


def adapters(python: str) -> list[Adapter]:
    """Return all adapters; the peers are looked for in the environment of that interpreter."""
    return [Dbos(python, wal=False), Dbos(python, wal=True), Restate(python)]
