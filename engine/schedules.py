"""What programs and people do with schedules: look, pause, resume, and create what was missed.

`Runtime` calls these in its own process, the inbox for others; a look needs no runtime. What comes on time
is the business of `scheduler.py`.

Invariants:
    A backfill creates each occurrence once, with the id that the schedule itself would have given it.
"""

from __future__ import annotations

from datetime import datetime
from functools import partial
from typing import Final

import msgspec

from perdure.actors.durations import point_in_time
from perdure.actors.schedules import CatchUp, Overlap, occurrence_id, occurrences, schedule_id
from perdure.engine.access import Access
from perdure.engine.scheduler import as_time, newborn, next_ms, read_spec
from perdure.errors import InvalidArgumentError, RuntimeClosedError
from perdure.storage.catalog import Catalog
from perdure.storage.moves import Newborn
from perdure.storage.records import Key
from perdure.storage.schedules import ScheduleRow

BACKFILL_MAX: Final = 100_000
"""More at once is most likely a slip of the year, and each is an instance."""

SHARE_MAX: Final = 1_000
"""What one transaction of a backfill creates."""


class ScheduleStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One schedule: when it occurred last, created or not, and when it does next (None while paused)."""

    workflow: str
    id: str
    expression: str
    tz: str | None
    paused: bool
    last_at: datetime | None
    next_at: datetime | None
    jitter_s: float
    catch_up: CatchUp
    overlap: Overlap


class BackfillBody(msgspec.Struct, frozen=True, kw_only=True):
    """What `backfill` is sent with: the stretch of time, its ends included, in milliseconds."""

    schedule: str
    from_ms: int
    to_ms: int


class ScheduleBody(msgspec.Struct, frozen=True, kw_only=True):
    """What `schedule-pause` and `schedule-resume` are sent with."""

    schedule: str


def statuses(catalog: Catalog, now_ms: int) -> list[ScheduleStatus]:
    """Return every schedule that the folder knows, by workflow and id."""
    return [status_of(row, now_ms) for row in catalog.schedules.all()]


def status_of(row: ScheduleRow, now_ms: int) -> ScheduleStatus:
    """Return what is told of a schedule."""
    table = read_spec(row)
    return ScheduleStatus(
        workflow=row.workflow, id=row.id, expression=table.text, tz=table.tz, paused=bool(row.paused),
        last_at=None if row.last_at_ms is None else as_time(row.last_at_ms),
        next_at=None if row.paused else as_time(next_ms(table, now_ms)),
        jitter_s=table.jitter_ms / 1000, catch_up=table.catch_up, overlap=table.overlap,
    )  # fmt: skip


def resolve(catalog: Catalog, name: str) -> ScheduleRow:
    """Return the schedule that `Workflow/id`, or an id alone, names. Raises `InvalidArgumentError`."""
    rows = catalog.schedules.all()
    found = [row for row in rows if name in (f"{row.workflow}/{row.id}", row.id)]
    if len(found) == 1:
        return found[0]
    if found:
        names = " or ".join(repr(f"{row.workflow}/{row.id}") for row in found)
        raise InvalidArgumentError(f"{name!r} is the id of {len(found)} schedules: say {names}")
    known = ", ".join(repr(f"{row.workflow}/{row.id}") for row in rows) or "none"
    raise InvalidArgumentError(f"there is no schedule {name!r}; there are: {known}")


async def pause(access: Access, name: str) -> ScheduleStatus:
    """Have a schedule create nothing until it is resumed. Raises `InvalidArgumentError`."""
    key = resolve(access.catalog, name).key
    await access.writer.write(lambda catalog: catalog.schedules.pause(key))
    return _told(access, key)


async def resume(access: Access, name: str) -> ScheduleStatus:
    """Have it go on with what comes from now on. Raises `InvalidArgumentError`."""
    key = resolve(access.catalog, name).key
    now_ms = access.clock.wall_ms()
    await access.writer.write(lambda catalog: catalog.schedules.resume(key, now_ms))
    return _told(access, key)


def _told(access: Access, key: Key) -> ScheduleStatus:
    row = access.catalog.schedules.find(key)
    assert row is not None
    return status_of(row, access.clock.wall_ms())


def planned(row: ScheduleRow, start: datetime, end: datetime) -> list[int]:
    """Return the occurrences of a schedule from `start` to `end`, both included, in milliseconds.

    Raises `InvalidArgumentError` for a stretch that is none, and for more than 100,000.
    """
    from_ms, to_ms = point_in_time(start), point_in_time(end)
    if to_ms < from_ms:
        raise InvalidArgumentError(f"a backfill from {start.isoformat()} to {end.isoformat()} goes backwards")
    found: list[int] = []
    for moment in occurrences(read_spec(row), after=as_time(from_ms - 1), until=as_time(to_ms)):
        found.append(round(moment.timestamp() * 1000))
        if len(found) > BACKFILL_MAX:
            raise InvalidArgumentError(
                f"{row.key} occurs more than {BACKFILL_MAX:,} times from {start.isoformat()} to"
                f" {end.isoformat()}: fill that in shorter stretches"
            )
    return found


async def backfill(
    access: Access, name: str, start: datetime, end: datetime, *, dry_run: bool = False
) -> list[Key]:
    """Create the instances of a stretch of time that do not exist yet, and return their names, in order.

    With `dry_run`, return what would be created. Raises `InvalidArgumentError`, `UnknownWorkflowError`.
    """
    keys = missing(access.catalog, name, start, end)
    if dry_run or not keys:
        return keys
    row = resolve(access.catalog, name)
    if access.closing:
        raise RuntimeClosedError("the runtime is ending and takes no more work")
    definition = access.app.definition(row.workflow)
    schedule = next((each for each in definition.schedules if schedule_id(each) == row.id), None)
    if schedule is None:
        raise InvalidArgumentError(
            f"{row.workflow} has no schedule {row.id!r} in the process that would create"
        )
    created: list[Key] = []
    for first in range(0, len(keys), SHARE_MAX):
        share = keys[first : first + SHARE_MAX]
        newborns = [newborn(access, definition, schedule, int(key.id.rpartition("-")[2])) for key in share]
        stand = await access.writer.write(partial(_add, newborns))
        created += [key for key, is_new in zip(share, stand, strict=True) if is_new]
    for key in created:
        access.forget(key)
    access.ring()
    return created


def _add(newborns: list[Newborn], catalog: Catalog) -> list[bool]:
    return catalog.moves.add_all(newborns)


def missing(catalog: Catalog, name: str, start: datetime, end: datetime) -> list[Key]:
    """Return the names of the instances that a stretch of time would have and that do not exist.

    Raises `InvalidArgumentError`.
    """
    row = resolve(catalog, name)
    keys = [Key(row.workflow, occurrence_id(row.id, at_ms)) for at_ms in planned(row, start, end)]
    return [key for key in keys if catalog.find(key) is None]
