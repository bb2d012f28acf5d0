"""What a restart does to the recorded steps: those that are to run again are superseded, never deleted.

The one module besides the journal that touches the step table, and only for this. A superseded row is
seen by no run and no view but `history`.

Invariants:
    What started before the step from which an instance is restarted is kept, unless what came after
    that step's start undid it: a part that was cancelled then, or a race or a deadline around it.
    A stream that was open then is open again.
"""

from __future__ import annotations

from typing import Final

import msgspec

from perdure.storage.files import InstanceFile
from perdure.storage.gate import Gate

FIND: Final = """
    SELECT seq, started_commit FROM _perdure_steps
    WHERE superseded IS NULL AND kind = ? AND name = ? AND count = ?"""
NAMES: Final = """
    SELECT kind, name, count(*) FROM _perdure_steps WHERE superseded IS NULL
    GROUP BY kind, name ORDER BY min(seq) LIMIT ?"""
SUPERSEDE_ALL: Final = "UPDATE _perdure_steps SET superseded = ? WHERE superseded IS NULL"
SUPERSEDE_FROM: Final = f"""{SUPERSEDE_ALL} AND (seq >= ?
    OR ((ended_commit IS NULL OR ended_commit > ?)
        AND (status = 'cancelled' AND kind <> 'stream' OR kind IN ('race', 'deadline'))))"""
REOPEN_STREAMS: Final = """
    UPDATE _perdure_steps SET status = 'running', ended_at = NULL, ended_commit = NULL, output_bytes = NULL
    WHERE superseded IS NULL AND kind = 'stream' AND ended_commit >= ?"""
CANCEL_SUPERSEDED: Final = """
    UPDATE _perdure_steps SET status = 'cancelled', ended_at = ?, ended_commit = ?, wake_at = NULL
    WHERE superseded IS NOT NULL AND status IN ('running', 'waiting')"""


class Target(msgspec.Struct, frozen=True):
    """The step from which an instance is restarted: its place, and the commit in which it started."""

    seq: int
    started_commit: int


def find_target(file: InstanceFile, kind: str, name: str, count: int) -> Target | None:
    """Return the `count`th use of a step's name, or None where there is none."""
    rows = file.fetch(FIND, (kind, name, count))
    return Target(*rows[0]) if rows else None


def step_names(file: InstanceFile, limit: int) -> list[tuple[str, str, int]]:
    """Return the kind, the name and the number of uses of what there is to restart from, in order."""
    return file.fetch(NAMES, (limit,))


def supersede(file: InstanceFile, gate: Gate, generation: int, target: Target | None) -> None:
    """Mark what is to run again as superseded by `generation`: all, or what started with `target`."""
    gate.touch(file)
    if target is None:
        file.execute(SUPERSEDE_ALL, (generation,))
    else:
        file.execute(SUPERSEDE_FROM, (generation, target.seq, target.started_commit))
        file.execute(REOPEN_STREAMS, (target.started_commit,))


def cancel_superseded(file: InstanceFile, gate: Gate, *, at_ms: int) -> None:
    """Record every superseded step that is still open as cancelled. Once its attempts have ended."""
    gate.touch(file)
    file.execute(CANCEL_SUPERSEDED, (at_ms, file.stamp))
