"""The catalog's table of schedules: how far each has come, and the creation of what is due.

`Catalog` hands its connection in and is the only user. Writing methods run inside a transaction that the
caller began.

Invariants:
    An occurrence is created and settled in one transaction, so that a death between loses or doubles none.
    How far a schedule has come only grows.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from typing import Any, Final, Literal

import msgspec

from perdure.storage.moves import Moves, Newborn
from perdure.storage.records import Key

LOOK: Final = "SELECT workflow, id, spec, paused, last_at, next_at FROM _perdure_schedules"
ALL: Final = f"{LOOK} ORDER BY workflow, id"
FIND: Final = f"{LOOK} WHERE workflow = ? AND id = ?"
PUT: Final = """
    INSERT INTO _perdure_schedules (workflow, id, spec, last_at, next_at) VALUES (?, ?, ?, ?, ?)
    ON CONFLICT DO UPDATE SET spec = excluded.spec, last_at = excluded.last_at, next_at = excluded.next_at"""
REMOVE: Final = "DELETE FROM _perdure_schedules WHERE workflow = ? AND id = ?"
SETTLE: Final = """
    UPDATE _perdure_schedules SET last_at = max(coalesce(last_at, 0), ?), next_at = ?
    WHERE workflow = ? AND id = ?"""
PAUSE: Final = "UPDATE _perdure_schedules SET paused = 1, next_at = NULL WHERE workflow = ? AND id = ?"
RESUME: Final = """
    UPDATE _perdure_schedules SET paused = 0, last_at = max(coalesce(last_at, 0), ?)
    WHERE workflow = ? AND id = ? AND paused = 1"""
UNFINISHED: Final = """
    SELECT id FROM (
        SELECT id, status FROM _perdure_instances WHERE workflow = ? AND id >= ? AND id < ?
        ORDER BY id DESC LIMIT 100)
    WHERE status NOT IN ('complete', 'errored', 'terminated', 'dead') LIMIT 1"""
"""Looks at the newest hundred of a schedule's instances, whose ids end in the moment they are for."""

OverlapPolicy = Literal["allow", "skip", "queue"]


class ScheduleRow(msgspec.Struct, frozen=True, kw_only=True):
    """One schedule: its timetable as JSON, and the newest occurrence that is settled, created or not."""

    workflow: str
    id: str
    spec: str
    paused: int
    last_at_ms: int | None
    next_at_ms: int | None

    @property
    def key(self) -> Key:
        """Workflow and schedule."""
        return Key(self.workflow, self.id)


class Occurrence(msgspec.Struct, frozen=True, kw_only=True):
    """One moment of a schedule; without `newborn` it is settled and nothing is created."""

    at_ms: int
    newborn: Newborn | None


class Fired(msgspec.Struct, frozen=True, kw_only=True):
    """What became of occurrences: the ids created, and the instance whose end the next one waits for."""

    created: list[str]
    waits_for: str | None = None
    stopped_at_ms: int | None = None
    """The occurrence that waits; it and those behind it are not settled."""


class Schedules:
    """How far schedules have come, over one connection. Used by one thread at a time."""

    def __init__(self, connection: sqlite3.Connection, moves: Moves) -> None:
        self._connection = connection
        self._moves = moves

    def all(self) -> list[ScheduleRow]:
        """Return every schedule of the folder, by workflow and id."""
        return [_as_row(row) for row in self._connection.execute(ALL)]

    def find(self, key: Key) -> ScheduleRow | None:
        """Return one schedule, or None."""
        row = self._connection.execute(FIND, (key.workflow, key.id)).fetchone()
        return None if row is None else _as_row(row)

    def put(self, key: Key, spec: str, *, last_at_ms: int, next_at_ms: int | None) -> None:
        """Write a schedule down, or what has changed of it. It stays paused where it was."""
        self._connection.execute(PUT, (key.workflow, key.id, spec, last_at_ms, next_at_ms))

    def remove(self, key: Key) -> None:
        """Forget a schedule that its class has no more."""
        self._connection.execute(REMOVE, (key.workflow, key.id))

    def pause(self, key: Key) -> None:
        """Have a schedule create nothing."""
        self._connection.execute(PAUSE, (key.workflow, key.id))

    def resume(self, key: Key, now_ms: int) -> None:
        """Have it go on with what comes after `now_ms`."""
        self._connection.execute(RESUME, (now_ms, key.workflow, key.id))

    def fire(
        self, key: Key, occurrences: Sequence[Occurrence], *, next_at_ms: int | None, overlap: OverlapPolicy
    ) -> Fired:
        """Create the instances of occurrences, in order, and settle them.

        With `overlap` "skip" one is settled without where an earlier instance has not ended; with "queue"
        it and what follows stay due.
        """
        row = self.find(key)
        if row is None or row.paused:
            return Fired(created=[])
        last_ms, created = row.last_at_ms or 0, list[str]()
        waits_for, stopped_at_ms = None, None
        for occurrence in occurrences:
            if occurrence.at_ms <= last_ms:
                continue
            before = None if overlap == "allow" else self.unfinished(key)
            if before is not None and overlap == "queue":
                waits_for, stopped_at_ms = before, occurrence.at_ms
                break
            if (
                before is None
                and occurrence.newborn is not None
                and self._moves.add_all([occurrence.newborn])[0]
            ):
                created.append(occurrence.newborn.birth.id)
            last_ms = occurrence.at_ms
        self._connection.execute(SETTLE, (last_ms, next_at_ms, key.workflow, key.id))
        return Fired(created=created, waits_for=waits_for, stopped_at_ms=stopped_at_ms)

    def unfinished(self, key: Key) -> str | None:
        """Return the id of an instance of this schedule that has not ended, or None."""
        bounds = (key.workflow, f"{key.id}-0", f"{key.id}-:")
        row = self._connection.execute(UNFINISHED, bounds).fetchone()
        return None if row is None else row[0]


def _as_row(row: tuple[Any, ...]) -> ScheduleRow:
    return ScheduleRow(**dict(zip(ScheduleRow.__struct_fields__, row, strict=True)))
