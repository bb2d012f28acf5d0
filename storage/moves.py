"""What can move: the queue of instances not started, and the closed ones whose wake-up has come.

The part of the catalog's table that decides who is next. `Catalog` hands its connection in and is
the only user.

Invariants:
    The queue is served in turn between workflows and, within one, by priority and then oldest first; a
    start that was delayed counts as made when its time came.
    Sleepers wake in the order of their wake-ups; neither they nor the queue wait for all of the other.
    Looking costs what is found, not what waits: every question is answered by an index.
    A workflow that has no place for another is not looked at (`places.py`).
"""

from __future__ import annotations

import itertools
import sqlite3
from collections.abc import Iterable, Sequence
from typing import Any, Final

import msgspec

from perdure.storage.places import HELD, Places
from perdure.storage.records import Birth, CatalogRow, Key, Stored

COLUMNS: Final = """
    workflow, id, incarnation, status, reason, birth, params, created_at, started_at, ended_at, start_at,
    wake_at, wake_boot, boot, owner, epoch, open, crashes, version, parent, tags, until_at,
    expires_at, archived, priority, lane"""
QUEUED: Final = (
    "FROM _perdure_instances WHERE status = 'queued' AND open = 0 AND start_at IS NULL"
    f" AND reason IS NOT '{HELD}'"
)
DELAYED: Final = "FROM _perdure_instances WHERE status = 'queued' AND open = 0 AND start_at IS NOT NULL"
WAKE_BOOT: Final = "FROM _perdure_instances WHERE wake_boot IS NOT NULL AND open = 0"
WAKE_AT: Final = "FROM _perdure_instances WHERE wake_at IS NOT NULL AND wake_boot IS NULL AND open = 0"
UNTIL_AT: Final = "FROM _perdure_instances WHERE until_at IS NOT NULL AND open = 0"
KNOWN: Final = "+workflow IN (SELECT value FROM json_each(?1))"
"""The plus keeps SQLite from walking the rows of the workflows instead of those that can move."""

QUEUED_OF: Final = f"SELECT {COLUMNS} {QUEUED} AND workflow = ? ORDER BY priority DESC, created_at LIMIT ?"
STARTS: Final = f"SELECT {COLUMNS} {DELAYED} AND {KNOWN} AND start_at <= ?2 ORDER BY start_at LIMIT ?3"
DUE: Final = tuple(
    (f"SELECT {COLUMNS} {where} AND {KNOWN} AND {column} <= ?2 ORDER BY {column} LIMIT ?3", column)
    for where, column in ((WAKE_BOOT, "wake_boot"), (WAKE_AT, "wake_at"), (UNTIL_AT, "until_at"))
)
NEXT: Final = f"""
    SELECT (SELECT wake_boot {WAKE_BOOT} AND {KNOWN} ORDER BY wake_boot LIMIT 1),
        (SELECT wake_at {WAKE_AT} AND {KNOWN} ORDER BY wake_at LIMIT 1),
        (SELECT until_at {UNTIL_AT} AND {KNOWN} ORDER BY until_at LIMIT 1),
        (SELECT start_at {DELAYED} AND {KNOWN} ORDER BY start_at LIMIT 1),
        (SELECT 0 {QUEUED} AND workflow IN (SELECT value FROM json_each(?2)) LIMIT 1)"""
COUNT: Final = "SELECT count(*) FROM (SELECT 1 {} LIMIT ?)"
COUNT_QUEUED: Final = COUNT.format(QUEUED)
COUNT_QUEUED_OF: Final = COUNT.format(f"{QUEUED} AND workflow = ?")
COUNT_IN_LANES: Final = COUNT.format(
    "FROM _perdure_instances WHERE lane IS NOT NULL AND workflow = ? AND status = 'queued' AND lane >= ''"
)
COUNT_STARTS: Final = COUNT.format(f"{DELAYED} AND start_at <= ?")
COUNT_WAKE_BOOT: Final = COUNT.format(f"{WAKE_BOOT} AND wake_boot <= ?")
COUNT_WAKE_AT: Final = COUNT.format(f"{WAKE_AT} AND wake_at <= ?")

ADD_ALL: Final = """
    INSERT INTO _perdure_instances (workflow, id, incarnation, status, birth, params, created_at, start_at,
        epoch, open, version, parent, tags, priority, lane)
    VALUES (?, ?, ?, 'queued', ?, ?, ?, ?, 0, 0, ?, ?, ?, ?, ?)
    ON CONFLICT DO NOTHING"""
INCARNATION: Final = "SELECT incarnation FROM _perdure_instances WHERE workflow = ? AND id = ?"

QUEUE_SHARE: Final = 4
"""Where sleepers and the queue want more than there is room for, every fourth place is the queue's."""


class Newborn(msgspec.Struct, frozen=True, kw_only=True):
    """One instance to be created: what its file will be made from, and when it may start."""

    birth: Birth
    params: Stored
    start_at_ms: int | None = None


class Moves:
    """Who is next, over one connection. Used by one thread at a time."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self.places = Places(connection)
        self._turn = 0
        self._served = ""

    # -- who is next -----------------------------------------------------------------------

    def movable(
        self, *, boot_ms: int, wall_ms: int, workflows: Sequence[str], limit: int, queued_max: int
    ) -> list[CatalogRow]:
        """Return at most `limit` instances that can move now: sleepers whose time has come, and the queue.

        At most `queued_max` are of the queue. Where both want more than `limit`, both get a share.
        """
        due = self.due(boot_ms=boot_ms, wall_ms=wall_ms, workflows=workflows, limit=limit)
        queued_max = min(queued_max, limit)
        if len(due) + queued_max > limit:
            self._turn += 1
            share = limit // QUEUE_SHARE or self._turn % QUEUE_SHARE == 0
            queued_max = min(queued_max, max(int(share), limit - len(due)))
        if not queued_max:
            return due
        known = {row.key for row in due}
        queued = [row for row in self.queued(wall_ms, workflows, queued_max) if row.key not in known]
        return due[: limit - len(queued)] + queued

    def queued(self, now_ms: int, workflows: Sequence[str], limit: int) -> list[CatalogRow]:
        """Return unstarted instances whose start time has come: in turn between workflows, oldest first.

        The next call goes on with the workflow behind the one that this one ended with.
        """
        most = self._most(workflows, now_ms)
        names = sorted(name for name in workflows if most.get(name) != 0)
        names = [name for name in names if name > self._served] + [
            name for name in names if name <= self._served
        ]
        starts: dict[str, list[CatalogRow]] = {}
        for row in self._rows(STARTS, (_json(workflows), now_ms, limit)):
            starts.setdefault(row.workflow, []).append(row)
        plain: dict[str, list[CatalogRow]] = {name: [] for name in names}
        more, each = names, 0
        while more and (left := limit - sum(map(len, plain.values()))) > 0:
            each += left // len(more) + 1  # who has more may have what the others leave
            for name in more:
                plain[name] = self._rows(QUEUED_OF, (name, min(each, most.get(name, each))))
            more = [name for name in more if len(plain[name]) == each]
        names += sorted(set(starts) - set(names))  # they join the queue, though there is no place yet
        lines = [sorted([*plain.get(name, ()), *starts.get(name, ())], key=_rank) for name in names]
        turns = itertools.chain.from_iterable(itertools.zip_longest(*lines))
        chosen = list(itertools.islice((row for row in turns if row is not None), limit))
        if chosen:
            self._served = chosen[-1].workflow
        return chosen

    def due(self, *, boot_ms: int, wall_ms: int, workflows: Sequence[str], limit: int) -> list[CatalogRow]:
        """Return closed instances whose wake-up has come, those that are latest first."""
        known = _json(workflows)
        late: dict[Key, tuple[int, CatalogRow]] = {}
        for query, column in DUE:
            now_ms = boot_ms if column == "wake_boot" else wall_ms
            for row in self._rows(query, (known, now_ms, limit)):
                at_ms: int = getattr(row, f"{column}_ms")
                before = late.get(row.key)
                if before is None or before[0] < now_ms - at_ms:
                    late[row.key] = (now_ms - at_ms, row)
        latest = sorted(late.values(), key=lambda found: -found[0])
        return [row for _, row in latest[:limit]]

    def _most(self, workflows: Iterable[str], now_ms: int) -> dict[str, int]:
        """Return how many more of the workflows that have a rule may start now."""
        rules = self.places.rules
        return {name: max(0, self.places.free(name, now_ms)[0]) for name in workflows if name in rules}

    def next_moves(self, workflows: Iterable[str], now_ms: int = 0) -> tuple[int | None, int | None]:
        """Return when the next closed instance can move: on the boot clock, and on the wall clock.

        `now_ms` is the wall clock's, for what a rate forbids until later.
        """
        known = with_place = _json(workflows)
        later: list[int] = []
        if rules := self.places.rules:
            names: list[str] = []
            for name in workflows:
                free, again_ms = (1, None) if name not in rules else self.places.free(name, now_ms)
                if free > 0:
                    names.append(name)
                elif again_ms is not None and self.places.is_waiting(name):
                    later.append(again_ms)
            with_place = _json(names)
        boot_ms, *wall = self._connection.execute(NEXT, (known, with_place)).fetchone()
        return boot_ms, min((ms for ms in (*wall, *later) if ms is not None), default=None)

    def count(self, *, boot_ms: int, wall_ms: int, limit: int) -> tuple[int, int]:
        """Return how many instances wait to be started, and to be woken; each at most about `limit`."""
        queued = self._count(COUNT_QUEUED, limit) + self._count(COUNT_STARTS, wall_ms, limit)
        due = self._count(COUNT_WAKE_BOOT, boot_ms, limit) + self._count(COUNT_WAKE_AT, wall_ms, limit)
        return min(queued, limit), min(due, limit)

    def count_queued(self, workflows: Iterable[str], limit: int) -> dict[str, int]:
        """Return how many instances of each workflow wait to be started; of all at most about `limit`."""
        counts: dict[str, int] = {}
        for name in workflows:
            query = COUNT_IN_LANES if name in self.places.rules else COUNT_QUEUED_OF
            (count,) = self._connection.execute(query, (name, limit)).fetchone()
            counts[name] = count
            limit = max(1, limit - count)
        return counts

    def _count(self, query: str, *values: int) -> int:
        count: int = self._connection.execute(query, values).fetchone()[0]
        return count

    def _rows(self, query: str, values: tuple[Any, ...]) -> list[CatalogRow]:
        return [as_row(row) for row in self._connection.execute(query, values)]

    # -- more of them ----------------------------------------------------------------------

    def add_all(self, newborns: Sequence[Newborn]) -> list[bool]:
        """Queue new instances, none twice; returns which of them stand there now, as they were given.

        One whose id is in use is left out. Their ids differ from one another.
        """
        added = self._connection.executemany(ADD_ALL, map(_values, newborns)).rowcount
        if added == len(newborns):
            return [True] * len(newborns)
        stand: list[bool] = []
        for newborn in newborns:
            birth = newborn.birth
            row = self._connection.execute(INCARNATION, (birth.workflow, birth.id)).fetchone()
            stand.append(row is not None and row[0] == birth.incarnation)
        return stand


def as_row(row: tuple[Any, ...]) -> CatalogRow:
    """Return the record of a row whose columns are `COLUMNS`."""
    return CatalogRow(**dict(zip(CatalogRow.__struct_fields__, row, strict=True)))


def birth_text(birth: Birth) -> str:
    """Return what the catalog holds of a birth."""
    return msgspec.json.encode(birth).decode()


def _values(newborn: Newborn) -> tuple[Any, ...]:
    birth = newborn.birth
    return (
        birth.workflow, birth.id, birth.incarnation, birth_text(birth), newborn.params, birth.created_at_ms,
        newborn.start_at_ms, birth.version, birth.parent, birth.tags, birth.priority, birth.lane,
    )  # fmt: skip


def _rank(row: CatalogRow) -> tuple[int, int]:
    return -row.priority, row.created_at_ms if row.start_at_ms is None else row.start_at_ms


def _json(workflows: Iterable[str]) -> str:
    return msgspec.json.encode(list(workflows)).decode()
