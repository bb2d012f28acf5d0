"""Places: how many instances of a workflow may run at a time, and which of those that wait may next.

A workflow with a `Rule` has its instances in lanes: the key of each, '' for none; the lane of any other
workflow is NULL, and nothing here looks at it. Who has a place is told by the rows' statuses alone, so that
a death gives none back and loses none: what was running goes on. `Moves` asks; nobody else.

Within a lane that is full, all but those first in line are `HELD`: they stand aside, out of the queue that is
looked at. Triggers of the schema hold a newcomer behind others of its lane, and let the next one out when
one of them ends, whatever made it end.

Invariants:
    No more have a place than the rule says, counted in the transaction that claims.
    The first in line of a lane with room is not held.
    Each instance is set aside once and let out once: looking never walks those that wait.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping, Sequence
from typing import Final, Literal, TypeAlias

import msgspec

from perdure.storage.records import CatalogRow

HELD: Final = "held: its key is in use"
"""The reason of a queued row that stands aside. The schema has the same text."""
HOLDING: Final = ("running", "waiting", "waiting_for_pause", "paused")
"""Statuses of those that have started and not ended."""
ACTIVE: Final = ("running", "waiting_for_pause")
"""Statuses of those that are in memory, or go on at once."""
RATE_PARTS: Final = 20
"""Starts are counted by stretches of a twentieth of a rate's period: never too many, and few numbers."""
COUNTED_MAX: Final = 1_000_000

LANES: Final = "FROM _perdure_instances WHERE lane IS NOT NULL AND workflow = ?"
HOLDERS: Final = f"{LANES} AND status IN ({', '.join(map(repr, HOLDING))})"
HOLDERS_ACTIVE: Final = f"{LANES} AND status IN ({', '.join(map(repr, ACTIVE))})"
COUNT: Final = "SELECT count(*) FROM (SELECT 1 {} LIMIT ?)"
WAITING: Final = f"SELECT 1 {LANES} AND status = 'queued' AND lane >= '' LIMIT 1"
PARK: Final = """
    UPDATE _perdure_instances SET status = 'queued', reason = ?, start_at = NULL, wake_at = NULL,
        wake_boot = NULL, boot = NULL, until_at = NULL
    WHERE workflow = ? AND id = ?"""
LET_OUT: Final = f"""
    UPDATE _perdure_instances SET reason = NULL WHERE rowid = (
        SELECT rowid {LANES} AND status = 'queued' AND lane = ? AND reason = '{HELD}'
        ORDER BY priority DESC, created_at LIMIT 1)"""
LET_OUT_SOME: Final = f"""
    UPDATE _perdure_instances SET reason = NULL WHERE rowid IN (
        SELECT rowid {LANES} AND status = 'queued' AND lane <> '' AND reason = '{HELD}' LIMIT ?)"""
SPEC: Final = "SELECT spec FROM _perdure_concurrency WHERE workflow = ?"
SPECS: Final = "SELECT workflow, spec FROM _perdure_concurrency"
STARTS: Final = "SELECT starts FROM _perdure_concurrency WHERE workflow = ?"
STARTED: Final = "UPDATE _perdure_concurrency SET starts = ? WHERE workflow = ?"
DECLARE: Final = """
    INSERT INTO _perdure_concurrency (workflow, spec) VALUES (?, ?)
    ON CONFLICT DO UPDATE SET spec = excluded.spec"""
WITHDRAW: Final = "DELETE FROM _perdure_concurrency WHERE workflow = ?"
ADOPT: Final = """
    UPDATE _perdure_instances SET lane = '' WHERE workflow = ? AND lane IS NULL
        AND status NOT IN ('complete', 'errored', 'terminated')"""

Verdict: TypeAlias = Literal["in", "full", "held"]


class Rule(msgspec.Struct, frozen=True, kw_only=True):
    """How many may run: in all, per lane, and how many start in `rate_ms`. None: any number."""

    limit: int | None = None
    per_key: int | None = None
    rate: int | None = None
    rate_ms: int = 0
    active_only: bool = False
    """Whether only those count that are not waiting, asleep or paused."""

    def holds(self, status: str) -> bool:
        """Whether an instance of that status has a place."""
        return status in (ACTIVE if self.active_only else HOLDING)


class Stretch(msgspec.Struct, array_like=True):
    """Starts close together: the first of them, the last, and how many."""

    first_ms: int
    last_ms: int
    count: int


class _Room:
    """What is left for one workflow while a claim is put together."""

    def __init__(self, total: int, starts: int) -> None:
        self.total = total
        self.starts = starts
        self.started = 0
        self.lanes: dict[str, int] = {}


class Places:
    """Who may run, over one connection. Used by one thread at a time."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self.rules: Mapping[str, Rule] = {}

    # -- looking ---------------------------------------------------------------------------

    def free(self, workflow: str, now_ms: int) -> tuple[int, int | None]:
        """Return how many more of a workflow may start now, and, where its rate forbids it, from when on."""
        rule = self.rules[workflow]
        total = self._total_left(workflow, rule)
        starts, again_ms = self._starts_left(workflow, rule, now_ms)
        return min(total, starts), again_ms if total > 0 and starts <= 0 else None

    def is_waiting(self, workflow: str) -> bool:
        """Whether an instance of a workflow waits for a place, or to be looked at for one."""
        return self._connection.execute(WAITING, (workflow,)).fetchone() is not None

    def why(self, row: CatalogRow) -> str | None:
        """Return what a queued instance waits for, for people, by the rules that the folder knows."""
        if row.lane is None or row.status != "queued" or row.open:
            return None
        found = self._connection.execute(SPEC, (row.workflow,)).fetchone()
        if found is None:
            return None
        rule = msgspec.json.decode(found[0], type=Rule)
        if rule.limit is not None and (running := self._count(row.workflow, rule)) >= rule.limit:
            return f"{running:,} of {row.workflow} run already (limit {rule.limit:,})"
        if row.lane and rule.per_key is not None:
            running = self._count(row.workflow, rule, row.lane)
            if running >= rule.per_key:
                of_key = f"{row.workflow} with key {row.lane!r}"
                return f"{running:,} of {of_key} run already (limit {rule.per_key:,})"
        if rule.rate is not None:
            return f"at most {rule.rate:,} of {row.workflow} start in {rule.rate_ms / 1000:g} s"
        return None

    def _total_left(self, workflow: str, rule: Rule) -> int:
        return COUNTED_MAX if rule.limit is None else rule.limit - self._count(workflow, rule)

    def _count(self, workflow: str, rule: Rule, lane: str | None = None) -> int:
        where = HOLDERS_ACTIVE if rule.active_only else HOLDERS
        values: tuple[str | int, ...] = (workflow, COUNTED_MAX)
        if lane is not None:
            where, values = f"{where} AND lane = ?", (workflow, lane, COUNTED_MAX)
        count: int = self._connection.execute(COUNT.format(where), values).fetchone()[0]
        return count

    def _starts_left(self, workflow: str, rule: Rule, now_ms: int) -> tuple[int, int | None]:
        if rule.rate is None:
            return COUNTED_MAX, None
        stretches = self._stretches(workflow, rule, now_ms)
        left = rule.rate - sum(stretch.count for stretch in stretches)
        return left, None if left > 0 else stretches[0].last_ms + rule.rate_ms

    def _stretches(self, workflow: str, rule: Rule, now_ms: int) -> list[Stretch]:
        """Return the starts of the last period; not those that a clock which was set back has far ahead."""
        found = self._connection.execute(STARTS, (workflow,)).fetchone()
        if found is None:
            return []
        stretches = msgspec.json.decode(found[0], type=list[Stretch])
        return [each for each in stretches if abs(now_ms - each.last_ms) < rule.rate_ms]

    # -- claiming --------------------------------------------------------------------------

    def admit(self, rows: Sequence[CatalogRow], now_ms: int) -> list[CatalogRow]:
        """Return those of `rows` that have a place or get one; the others are set aside, or stay in line."""
        rooms: dict[str, _Room] = {}
        admitted: list[CatalogRow] = []
        for row in rows:
            rule = self.rules.get(row.workflow)
            if rule is None or rule.holds(row.status) or row.status == "paused":
                admitted.append(row)
                continue
            room = rooms.get(row.workflow)
            if room is None:
                starts, _ = self._starts_left(row.workflow, rule, now_ms)
                room = rooms[row.workflow] = _Room(self._total_left(row.workflow, rule), starts)
            verdict = self._take(row, rule, room)
            if verdict == "in":
                admitted.append(row)
            else:
                self._park(row, verdict)
        for workflow, room in rooms.items():
            self._note_starts(workflow, self.rules[workflow], room.started, now_ms)
            for lane, left in room.lanes.items():
                if left > 0:
                    self._connection.execute(LET_OUT, (workflow, lane))
        return admitted

    def _take(self, row: CatalogRow, rule: Rule, room: _Room) -> Verdict:
        is_start = row.started_at_ms is None
        if room.total <= 0 or (is_start and room.starts <= 0):
            return "full"
        lane = row.lane or ""
        if lane and rule.per_key is not None:
            left = room.lanes.get(lane)
            if left is None:
                left = room.lanes[lane] = rule.per_key - self._count(row.workflow, rule, lane)
            if left <= 0:
                return "held"
            room.lanes[lane] -= 1
        room.total -= 1
        room.starts -= is_start
        room.started += is_start
        return "in"

    def _park(self, row: CatalogRow, verdict: Verdict) -> None:
        """Put one that finds no place into line; one whose lane is full stands aside."""
        reason = HELD if verdict == "held" else None
        is_in_line = row.status == "queued" and row.start_at_ms is None and row.wake_at_ms is None
        if not is_in_line or reason is not None:
            self._connection.execute(PARK, (reason, row.workflow, row.id))

    def _note_starts(self, workflow: str, rule: Rule, count: int, now_ms: int) -> None:
        if rule.rate is None or not count:
            return
        stretches = self._stretches(workflow, rule, now_ms)
        if stretches and now_ms - stretches[-1].first_ms < rule.rate_ms // RATE_PARTS:
            stretches[-1].last_ms = max(now_ms, stretches[-1].last_ms)
            stretches[-1].count += count
        else:
            stretches.append(Stretch(now_ms, now_ms, count))
        self._connection.execute(STARTED, (msgspec.json.encode(stretches).decode(), workflow))

    # -- the rules -------------------------------------------------------------------------

    def declare(self, workflow: str, rule: Rule | None) -> bool:
        """Write down the rule of a workflow, None for none; returns whether it is another than before.

        Where a workflow had none, those of its instances that have not ended get a lane without key.
        """
        found = self._connection.execute(SPEC, (workflow,)).fetchone()
        before = None if found is None else str(found[0])
        text = None if rule is None else msgspec.json.encode(rule).decode()
        if before == text:
            return False
        if text is None:
            self._connection.execute(WITHDRAW, (workflow,))
        else:
            self._connection.execute(DECLARE, (workflow, text))
        if before is None:
            self._connection.execute(ADOPT, (workflow,))
        return True

    def declared(self) -> dict[str, str]:
        """Return the rules written down, as JSON, by workflow."""
        return dict(self._connection.execute(SPECS))

    def let_out(self, workflow: str, count: int) -> int:
        """Let at most `count` held instances out, to be looked at again; return how many those were."""
        return self._connection.execute(LET_OUT_SOME, (workflow, count)).rowcount
