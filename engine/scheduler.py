"""The scheduler: creates the instances of schedules when their time has come.

One process of a folder has it: the one that owns the folder, with several workers the one that supervises
them. It follows the wall clock, and sleeps until the next occurrence of any schedule.

Invariants:
    An occurrence makes one instance at most, however many processes and deaths it meets: the id says which it
    is for, and the creation is settled in the transaction that makes it.
    What a schedule missed while nobody was there is for its policy; what came while somebody was is created.
    A schedule that is new, or occurs at other times than before, makes up for nothing.
"""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any, Final

import msgspec
import trio

from perdure.actors.host import Timers, deadline_in
from perdure.actors.schedules import (
    Recurrence,
    Timetable,
    jitter_ms,
    occurrence_id,
    occurrences,
    schedule_id,
    timetable,
)
from perdure.actors.workflow import Definition, Schedule
from perdure.engine.access import Access
from perdure.engine.births import prepare_birth
from perdure.errors import PerdureError, StateError
from perdure.storage.moves import Newborn
from perdure.storage.records import Deadline, Key
from perdure.storage.schedules import Occurrence, ScheduleRow

logger: Final = logging.getLogger("perdure.engine")
LATE_MS: Final = 60_000
"""An occurrence that is first seen later than this has been missed: its schedule's policy decides."""
BATCH_MAX: Final = 200
"""Occurrences created in one transaction."""
LOOK_S: Final = 30.0
"""How often one looks without a timer: another process may have resumed a schedule."""
BACK_MS: Final = tuple(1000 * each for each in (60, 3_600, 86_400, 32 * 86_400, 370 * 86_400, 4_000 * 86_400))


class Scheduler:
    """The schedules of one folder. `run` serves in a task."""

    def __init__(self, access: Access, timers: Timers) -> None:
        self._access = access
        self._timers = timers
        self._ring = trio.Event()
        self._declared = trio.Event()
        self._seen_ms: dict[Key, int] = {}  # up to where occurrences were seen when they came
        self._done_ms: dict[Key, int] = {}  # up to where each was created, or skipped
        self._awaited: set[Key] = set()
        self._timer: Any = None
        self._known: dict[Key, tuple[Definition, Recurrence, Timetable]] = {
            Key(definition.name, schedule_id(schedule)): (definition, schedule, timetable(schedule))
            for definition in access.app.definitions.values()
            for schedule in definition.schedules
        }

    def ring(self) -> None:
        """Have it look at once: a schedule has been resumed."""
        self._ring.set()

    async def run(self) -> None:
        """Serve until cancelled, once `declare` has been called."""
        await self._declared.wait()
        async with trio.open_nursery() as nursery:
            while self._known:
                self._ring = trio.Event()
                await self._try(lambda: self._look(nursery))
                with trio.move_on_after(
                    LOOK_S if math.isfinite(self._access.clock.wall_look_ms) else math.inf
                ):
                    await self._ring.wait()

    async def _try(self, work: Any) -> None:
        """Do something that writes to the catalog; where that fails, look again after a rest."""
        try:
            await work()
        except StateError as error:
            logger.error("schedules cannot go on, and are tried again: %s", error)
            self._set_timer(deadline_in(self._access.clock, self._access.app.limits.reset_delay_s))

    async def declare(self) -> None:
        """Write down what the classes say now; schedules that a class has no more are forgotten."""
        await self._try(self._declare)
        self._declared.set()

    async def _declare(self) -> None:
        access, now_ms, known = self._access, self._access.clock.wall_ms(), self._known
        rows = {row.key: row for row in access.catalog.schedules.all()}
        gone = [key for key in rows if key not in known and key.workflow in access.app.definitions]
        changed: list[tuple[Key, str, int, int]] = []
        for key, (_, _, table) in known.items():
            row = rows.get(key)
            spec = msgspec.json.encode(table).decode()
            if row is not None and row.spec == spec:
                continue
            same_times = row is not None and read_spec(row).timing == table.timing
            last_ms = now_ms if row is None or row.last_at_ms is None or not same_times else row.last_at_ms
            changed.append((key, spec, last_ms, next_ms(table, now_ms)))
        if not gone and not changed:
            return

        def write(catalog: Any) -> None:
            for key in gone:
                catalog.schedules.remove(key)
            for key, spec, last_ms, next_at_ms in changed:
                catalog.schedules.put(key, spec, last_at_ms=last_ms, next_at_ms=next_at_ms)

        await access.writer.write(write)

    # -- what is due -----------------------------------------------------------------------

    async def _look(self, nursery: trio.Nursery) -> None:
        """Create what is due, and set the timer for what comes next."""
        now_ms = self._access.clock.wall_ms()
        next_at: list[int] = []
        for row in self._access.catalog.schedules.all():
            known = self._known.get(row.key)
            if known is None or row.paused:
                self._done_ms.pop(row.key, None)
                self._seen_ms.pop(row.key, None)
                continue
            if not await self._fire(row, now_ms, nursery):
                self._ring.set()  # there is more than goes into one transaction
            next_at.append(next_ms(known[2], now_ms))
        if next_at:
            self._set_timer(Deadline(wall_ms=min(next_at)))

    def _set_timer(self, deadline: Deadline) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._timers.at(deadline, self.ring)

    async def _fire(self, row: ScheduleRow, now_ms: int, nursery: trio.Nursery) -> bool:
        """Create what is due of one schedule; returns whether that was all."""
        access, key = self._access, row.key
        definition, schedule, table = self._known[key]
        last_ms = max(row.last_at_ms or 0, self._done_ms.get(key, 0)) or now_ms
        seen_ms = self._seen_ms.get(key, last_ms)
        due = list(itertools.islice(due_ms(table, last_ms, seen_ms, now_ms), BATCH_MAX))
        is_all = len(due) < BATCH_MAX
        self._seen_ms[key], self._done_ms[key] = now_ms, max(last_ms, now_ms if is_all else due[-1])
        if not due:
            return True
        batch = [Occurrence(at_ms=at_ms, newborn=self.newborn(definition, schedule, at_ms)) for at_ms in due]
        next_at_ms = next_ms(table, now_ms)
        try:
            fired = await access.writer.write(
                lambda catalog: catalog.schedules.fire(
                    key, batch, next_at_ms=next_at_ms, overlap=table.overlap
                )
            )
        except StateError:
            self._done_ms[key] = due[0] - 1
            raise
        for id_ in fired.created:
            access.forget(Key(key.workflow, id_))
        if fired.created:
            access.ring()
        if fired.waits_for is not None and fired.stopped_at_ms is not None:
            self._done_ms[key] = fired.stopped_at_ms - 1
            self._ring_after(Key(key.workflow, fired.waits_for), nursery)
            return True
        return is_all

    def _ring_after(self, key: Key, nursery: trio.Nursery) -> None:
        """Look again when an instance has ended: the next of its schedule waits for that."""
        if key not in self._awaited:
            self._awaited.add(key)
            nursery.start_soon(self._await, key)

    async def _await(self, key: Key) -> None:
        try:
            await self._access.outcome(key)
            await self._access.closed(key)  # its row is settled then
        except PerdureError as error:  # it is deleted, or the runtime ends
            logger.debug("%s is waited for no more: %s", key, error)
        self._awaited.discard(key)
        self._ring.set()

    def newborn(self, definition: Definition, schedule: Recurrence, at_ms: int) -> Newborn | None:
        """Return the instance for one occurrence; None, and a word in the log, where none can be made."""
        name = schedule_id(schedule)
        try:
            return newborn(self._access, definition, schedule, at_ms)
        except PerdureError as error:
            logger.error("%s/%s: no instance for %s: %s", definition.name, name, as_time(at_ms), error)
            return None


def newborn(access: Access, definition: Definition, schedule: Recurrence, at_ms: int) -> Newborn:
    """Return the instance for one occurrence of a schedule. Raises what `Runtime.create` raises."""
    name, table = schedule_id(schedule), timetable(schedule)
    id_ = occurrence_id(name, at_ms)
    why = Schedule(cron=schedule.text, scheduled_at=as_time(at_ms), id=name)
    birth, params = prepare_birth(
        access, definition, schedule.params, id_=id_, event=None, tags=None, timeout=None, retention=None,
        token=f"schedule {definition.name}/{id_}", schedule=msgspec.json.encode(why).decode(),
    )  # fmt: skip
    late_ms = jitter_ms(definition.name, name, at_ms, table.jitter_ms)
    return Newborn(birth=birth, params=params, start_at_ms=at_ms + late_ms if table.jitter_ms else None)


def due_ms(table: Timetable, last_ms: int, seen_ms: int, now_ms: int) -> Iterator[int]:
    """Yield the occurrences to be created now, in order.

    Settled are those up to `last_ms`; those up to `seen_ms` were on time and could not be created yet.
    """
    if table.catch_up == "all":
        yield from _between(table, last_ms, now_ms)
        return
    yield from _between(table, last_ms, min(seen_ms, now_ms))
    unseen_ms, on_time_ms = max(last_ms, seen_ms), now_ms - LATE_MS
    if table.catch_up == "one" and unseen_ms < on_time_ms:
        latest = _latest(table, unseen_ms, on_time_ms)
        if latest is not None:
            yield latest
    yield from _between(table, max(unseen_ms, on_time_ms), now_ms)


def _between(table: Timetable, after_ms: int, until_ms: int) -> Iterator[int]:
    if after_ms < until_ms:
        for moment in occurrences(table, after=as_time(after_ms), until=as_time(until_ms)):
            yield round(moment.timestamp() * 1000)


def _latest(table: Timetable, after_ms: int, until_ms: int) -> int | None:
    """Return the last occurrence of a stretch that may be long, looked for from its end."""
    for back_ms in BACK_MS:
        found = list(_between(table, max(after_ms, until_ms - back_ms), until_ms))
        if found:
            return found[-1]
        if until_ms - back_ms <= after_ms:
            return None
    return None


def next_ms(table: Timetable, now_ms: int) -> int:
    """Return the next occurrence strictly after `now_ms`."""
    return round(table.next_after(as_time(now_ms)).timestamp() * 1000)


def read_spec(row: ScheduleRow) -> Timetable:
    """Return the timetable of a row."""
    return msgspec.json.decode(row.spec, type=Timetable)


def as_time(ms: int) -> datetime:
    """Return a moment, in UTC."""
    return datetime.fromtimestamp(ms / 1000, UTC)
