"""Restate: its server, a single node with its own defaults, and a Python service beside it.

    pip install restate-sdk hypercorn
    npm install -g @restatedev/restate-server      or name the server's file in $RESTATE_SERVER

Each figure is taken by `restate_program.py` with a fresh server over a fresh folder, by a client outside.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from perdure.benchmarks.peers import program
from perdure.benchmarks.results import Size

PROGRAM: Final = Path(__file__).with_name("restate_program.py")
KEYS: Final[dict[str, tuple[str, ...]]] = {
    "chain": ("chain/full",),
    "short": ("short/full",),
    "latency": ("latency/p50", "latency/p99"),
    "fanout": ("fanout/full",),
    "recover": ("recover/spawn",),
    "large": ("large/1",),
}
COUNTS: Final[dict[str, dict[Size, int]]] = {
    "chain": {"full": 1_000, "quick": 1_000, "tiny": 10},
    "short": {"full": 1_000, "quick": 300, "tiny": 3},
    "latency": {"full": 200, "quick": 100, "tiny": 3},
    "fanout": {"full": 1_000, "quick": 1_000, "tiny": 10},
    "recover": {"full": 200, "quick": 200, "tiny": 200},
    "large": {"full": 20, "quick": 20, "tiny": 1},
}


class Restate:
    """Runs Restate's server and, by the interpreter of an environment that has its SDK, a service."""

    peer = "Restate"

    def __init__(self, python: str) -> None:
        self._python = python

    def missing(self) -> str | None:
        """Return what to install, or None where it is there."""
        wanted: list[str] = []
        if not program.has_modules(self._python, "restate", "hypercorn"):
            wanted.append("pip install restate-sdk hypercorn")
        if shutil.which(os.environ.get("RESTATE_SERVER", "restate-server")) is None:
            wanted.append("npm install -g @restatedev/restate-server")
        return f"not installed: {'; '.join(wanted)}" if wanted else None

    def keys(self, benchmark: str) -> Sequence[str]:
        """Return the keys of the measures that it has a counterpart for."""
        return KEYS.get(benchmark, ())

    def rounds_max(self, benchmark: str) -> int:
        """Return how often it may be measured."""
        del benchmark
        return 3

    def measure(self, benchmark: str, size: Size, folder: Path) -> dict[str, float]:
        """Do the benchmark's work once in an empty folder."""
        count = COUNTS[benchmark][size]
        found = program.run([self._python, str(PROGRAM), benchmark, str(folder), str(count)], folder)
        return {key: float(found[key]) for key in KEYS[benchmark]}
