"""Who sleeps and wakes next: the part of the catalog's table that is looked at ahead of time.

`Catalog` hands its connection in and is the only user.

Invariants:
    Only those that were parked by themselves are looked at ahead: they wait for their time wherever they are.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence
from typing import Final

import msgspec

from perdure.storage.moves import COLUMNS, KNOWN, UNTIL_AT, WAKE_AT, WAKE_BOOT, as_row
from perdure.storage.records import CatalogRow

NEXT: Final = f"""
    SELECT (SELECT wake_boot {WAKE_BOOT} AND {KNOWN} ORDER BY wake_boot LIMIT 1),
        (SELECT wake_at {WAKE_AT} AND {KNOWN} ORDER BY wake_at LIMIT 1),
        (SELECT until_at {UNTIL_AT} AND {KNOWN} ORDER BY until_at LIMIT 1)"""
PARKED: Final = "status = 'waiting' AND started_at IS NOT NULL"
ASLEEP: Final = tuple(
    f"SELECT {COLUMNS} {where} AND {PARKED} AND {KNOWN} AND {column} <= ?2 ORDER BY {column} LIMIT ?3"
    for where, column in ((WAKE_BOOT, "wake_boot"), (WAKE_AT, "wake_at"))
)


class Ahead:
    """Who wakes next, over one connection. Used by one thread at a time."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def next_wakes(self, workflows: Iterable[str]) -> tuple[int | None, int | None]:
        """Return when the next sleeper wakes: on the boot clock, and on the wall clock."""
        boot_ms, *wall = self._connection.execute(NEXT, (_json(workflows),)).fetchone()
        return boot_ms, min((ms for ms in wall if ms is not None), default=None)

    def asleep(self, *, boot_ms: int, wall_ms: int, workflows: Sequence[str], limit: int) -> list[CatalogRow]:
        """Return at most `limit` that sleep and wake no later than then, the first to wake first."""
        known = _json(workflows)
        by_boot, by_wall = (
            [as_row(row) for row in self._connection.execute(query, (known, then_ms, limit))]
            for query, then_ms in zip(ASLEEP, (boot_ms, wall_ms), strict=True)
        )
        rows = [((row.wake_boot_ms or 0) - boot_ms, row) for row in by_boot]
        rows += [((row.wake_at_ms or 0) - wall_ms, row) for row in by_wall]
        rows.sort(key=lambda found: found[0])
        return [row for _, row in rows[:limit]]


def _json(workflows: Iterable[str]) -> str:
    return msgspec.json.encode(list(workflows)).decode()
