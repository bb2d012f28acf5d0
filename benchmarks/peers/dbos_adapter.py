"""DBOS Transact for Python, on SQLite: as it comes, and with its file switched to WAL beforehand.

    pip install dbos

Each figure is taken by `dbos_program.py` in a fresh process over a fresh file, inside the process that
runs the workflows, as an application sees it.
"""

from __future__ import annotations

import signal
import sqlite3
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from perdure.benchmarks.harness import WorkNotDoneError
from perdure.benchmarks.peers import program
from perdure.benchmarks.results import Size

PROGRAM: Final = Path(__file__).with_name("dbos_program.py")
KEYS: Final[dict[str, tuple[str, ...]]] = {
    "chain": ("chain/full",),
    "short": ("short/full",),
    "latency": ("latency/p50", "latency/p99"),
    "fanout": ("fanout/full",),
    "sleepers": ("sleepers/p50", "sleepers/p99"),
    "asleep": ("asleep/each",),
    "recover": ("recover/spawn",),
    "large": ("large/1",),
    "bytes": ("bytes/instance",),
}
COUNTS: Final[dict[str, dict[Size, int]]] = {
    "chain": {"full": 1_000, "quick": 1_000, "tiny": 10},
    "short": {"full": 1_000, "quick": 200, "tiny": 3},
    "latency": {"full": 200, "quick": 100, "tiny": 3},
    "fanout": {"full": 1_000, "quick": 1_000, "tiny": 10},
    "sleepers": {"full": 10_000, "quick": 500, "tiny": 3},
    "asleep": {"full": 10_000, "quick": 500, "tiny": 3},
    "recover": {"full": 200, "quick": 200, "tiny": 200},
    "large": {"full": 20, "quick": 20, "tiny": 1},
    "bytes": {"full": 1_000, "quick": 200, "tiny": 3},
}
SLEEPING: Final = ("sleepers", "asleep")
SLEEP_S: Final[dict[Size, float]] = {"full": 30.0, "quick": 3.0, "tiny": 0.2}


class Dbos:
    """Runs DBOS by the interpreter of an environment that has it."""

    def __init__(self, python: str, *, wal: bool) -> None:
        self._python = python
        self._wal = wal
        self._sleepers: dict[str, Any] | None = None

    @property
    def peer(self) -> str:
        """Its name, with its setting."""
        return "DBOS, WAL" if self._wal else "DBOS"

    def missing(self) -> str | None:
        """Return what to install, or None where it is there."""
        return None if program.has_modules(self._python, "dbos") else "not installed: pip install dbos"

    def keys(self, benchmark: str) -> Sequence[str]:
        """Return the keys of the measures that it has a counterpart for."""
        return KEYS.get(benchmark, ())

    def rounds_max(self, benchmark: str) -> int:
        """Return how often it may be measured: sleepers take their time."""
        return 1 if benchmark in SLEEPING else 3

    def measure(self, benchmark: str, size: Size, folder: Path) -> dict[str, float]:
        """Do the benchmark's work once in an empty folder."""
        file = folder / "dbos.sqlite"
        if self._wal:
            switch_to_wal(file)
        count = COUNTS[benchmark][size]
        if benchmark == "recover":
            return {"recover/spawn": self._recover(file, count)}
        if benchmark in SLEEPING:  # one run tells of both
            found = self._sleepers = self._sleepers or self._run(benchmark, file, count, SLEEP_S[size])
        else:
            found = self._run(benchmark, file, count, 0.0)
        if benchmark == "bytes":
            sizes = [path.stat().st_size for path in folder.glob("dbos.sqlite*")]
            return {"bytes/instance": sum(sizes) / count}
        return {key: float(found[key]) for key in KEYS[benchmark]}

    def _run(self, work: str, file: Path, count: int, sleep_s: float) -> dict[str, Any]:
        return program.run(self._command(work, file, count, sleep_s), file.parent)

    def _command(self, work: str, file: Path, count: int, sleep_s: float = 0.0) -> list[str]:
        return [self._python, str(PROGRAM), work, str(file), str(count), str(sleep_s)]

    def _recover(self, file: Path, count: int) -> float:
        """Kill a chain half way and start it again; return the milliseconds until the first new step."""
        trace = file.with_name("trace")
        trace.touch()
        process = subprocess.Popen(
            self._command("recover", file, count), cwd=file.parent, stdout=subprocess.DEVNULL
        )
        try:
            wait_for_lines(trace, count // 2, process)
        finally:
            process.send_signal(signal.SIGKILL)
            process.wait()
        before = len(trace.read_text().splitlines())
        began_s = time.time()
        self._run("recover", file, count, 0.0)
        lines = [line.split() for line in trace.read_text().splitlines()]
        if {int(line[0]) for line in lines} != set(range(count)):
            raise WorkNotDoneError("not all steps ran after the restart")
        return 1e3 * (float(lines[before][1]) - began_s)


def wait_for_lines(file: Path, lines: int, process: subprocess.Popen[Any]) -> None:
    """Return once a file has so many lines. Raises `WorkNotDoneError` where its writer ends before."""
    while file.read_bytes().count(b"\n") < lines:
        if process.poll() is not None:
            raise WorkNotDoneError(f"the process ended with status {process.returncode} before it was killed")
        time.sleep(0.002)


def switch_to_wal(file: Path) -> None:
    """Make an empty database in WAL mode, as a careful user would before DBOS opens it."""
    connection = sqlite3.connect(file)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("CREATE TABLE made (one INTEGER)")
    connection.execute("DROP TABLE made")
    connection.close()
