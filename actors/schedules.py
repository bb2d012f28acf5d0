"""Schedules: when instances of a workflow are created by themselves.

Records that a class lists in `schedules`, and the arithmetic of their occurrences. When an
occurrence has come is for the engine to see; nothing here looks at a clock.

Invariants:
    The next occurrence is strictly later than the moment it is asked for.
    An occurrence is a moment: no clock change makes one come twice, and none is lost. A time of day
    that a day does not have stands for the moment at which the clocks were set.
    A schedule that can never fire is refused where its class is read.
"""

from __future__ import annotations

import hashlib
import zoneinfo
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Literal, TypeAlias, get_args

import msgspec
from cronsim import CronSim, CronSimError

from perdure.actors.durations import Duration, seconds
from perdure.errors import InvalidArgumentError, InvalidDurationError, InvalidIdError
from perdure.limits import SCHEDULE_CHARS_MAX
from perdure.storage.names import check_instance_id

CatchUp = Literal["skip", "one", "all"]
Overlap = Literal["allow", "skip", "queue"]
EVERY_MIN_S: Final = 1.0
"""A shorter interval is a loop with `step.sleep`, not a schedule: each occurrence is an instance."""
CHECKED_FROM: Final = datetime(2024, 1, 1, tzinfo=UTC)
"""From here on an expression has to have an occurrence; any moment would do."""


class Cron(msgspec.Struct, frozen=True):
    """Create an instance at the times of a cron expression.

    Five fields (minute, hour, day of month, month, day of week), or six with seconds in front; names
    (`MON`, `JAN`), lists, ranges, steps, `L` and `#` as in Debian's cron. `tz` is the time zone whose
    clocks are meant. `id` is what the instances' ids begin with, the expression by default; `params` are
    theirs. `jitter` delays each start by up to that long, always equally for one occurrence. `catch_up`
    says what becomes of occurrences that nobody was there for, `overlap` what if the instance before
    has not ended.

    >>> Cron("0 9 * * MON-FRI", tz="Europe/Paris").next_after(datetime(2030, 1, 4, 8, tzinfo=UTC)).isoformat()
    '2030-01-07T08:00:00+00:00'
    """

    expression: str
    tz: str = "UTC"
    id: str | None = None
    params: Any = None
    jitter: Duration | None = None
    catch_up: CatchUp = "one"
    overlap: Overlap = "allow"

    @property
    def text(self) -> str:
        """How the schedule is shown."""
        return self.expression

    def next_after(self, moment: datetime) -> datetime:
        """Return the first occurrence strictly after an aware moment, in UTC.

        Raises `InvalidArgumentError` where there is none within fifty years.
        """
        zone = _zone(self.tz)
        for found in _candidates(self.expression, moment.astimezone(zone)):
            occurrence = found.astimezone(UTC)
            if occurrence > moment:
                return occurrence
        raise InvalidArgumentError(f"the cron expression {self.expression!r} never comes")


class Every(msgspec.Struct, frozen=True):
    """Create an instance at equal intervals: at whole multiples of `interval` since 1970, UTC.

    So an interval of `"1 hour"` means each full hour, whatever the time of a restart; `offset` moves
    that. The rest is as for `Cron`.

    >>> Every("6 hours", offset="30 minutes").next_after(datetime(2030, 1, 1, 1, tzinfo=UTC)).isoformat()
    '2030-01-01T06:30:00+00:00'
    """

    interval: Duration
    offset: Duration = 0
    id: str | None = None
    params: Any = None
    jitter: Duration | None = None
    catch_up: CatchUp = "one"
    overlap: Overlap = "allow"

    @property
    def text(self) -> str:
        """How the schedule is shown."""
        if isinstance(self.interval, str):
            return f"every {self.interval}"
        whole_s = seconds(self.interval)
        for unit, size_s in (("day", 86_400), ("hour", 3_600), ("minute", 60)):
            if whole_s % size_s == 0:
                return f"every {whole_s / size_s:g} {unit}{'s' if whole_s > size_s else ''}"
        return f"every {whole_s:g} seconds"

    def next_after(self, moment: datetime) -> datetime:
        """Return the first occurrence strictly after an aware moment, in UTC."""
        interval_ms, offset_ms = round(seconds(self.interval) * 1000), round(seconds(self.offset) * 1000)
        passed_ms = (moment - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(milliseconds=1) - offset_ms
        next_ms = (passed_ms // interval_ms + 1) * interval_ms + offset_ms
        return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=next_ms)


Recurrence: TypeAlias = Cron | Every
"""What a class may list in `schedules`."""


class Timetable(msgspec.Struct, frozen=True, kw_only=True):
    """What is kept of a schedule, for other processes to read: as its class has it, without params."""

    cron: str | None = None
    tz: str | None = None
    every_ms: int | None = None
    offset_ms: int = 0
    jitter_ms: int = 0
    catch_up: CatchUp = "one"
    overlap: Overlap = "allow"
    text: str = ""
    """How the schedule is shown."""

    @property
    def timing(self) -> tuple[str | None, str | None, int | None, int]:
        """What decides when it occurs: where this changes, what it missed before is not made up for."""
        return self.cron, self.tz, self.every_ms, self.offset_ms

    def next_after(self, moment: datetime) -> datetime:
        """Return the first occurrence strictly after an aware moment, in UTC."""
        if self.cron is not None:
            return Cron(self.cron, tz=self.tz or "UTC").next_after(moment)
        return Every((self.every_ms or 0) / 1000, offset=self.offset_ms / 1000).next_after(moment)


def timetable(schedule: Recurrence) -> Timetable:
    """Return what is kept of a schedule."""
    jitter_ms = 0 if schedule.jitter is None else round(seconds(schedule.jitter) * 1000)
    if isinstance(schedule, Cron):
        return Timetable(
            cron=schedule.expression, tz=schedule.tz, jitter_ms=jitter_ms, catch_up=schedule.catch_up,
            overlap=schedule.overlap, text=schedule.text,
        )  # fmt: skip
    return Timetable(
        every_ms=round(seconds(schedule.interval) * 1000), offset_ms=round(seconds(schedule.offset) * 1000),
        jitter_ms=jitter_ms, catch_up=schedule.catch_up, overlap=schedule.overlap, text=schedule.text,
    )  # fmt: skip


def occurrences(table: Timetable, *, after: datetime, until: datetime) -> Iterator[datetime]:
    """Yield the occurrences after `after`, up to and with `until`, in order."""
    moment = table.next_after(after)
    while moment <= until:
        yield moment
        moment = table.next_after(moment)


def schedule_id(schedule: Recurrence) -> str:
    """Return the name of a schedule, which its instances' ids begin with."""
    return schedule.id if schedule.id is not None else schedule.text


def occurrence_id(schedule: str, at_ms: int) -> str:
    """Return the id of the instance for one occurrence: two processes would give it the same.

    >>> occurrence_id("0 9 * * *", 1893488400000)
    '0 9 * * *-1893488400000'
    """
    return f"{schedule}-{at_ms}"


def jitter_ms(workflow: str, schedule: str, at_ms: int, most_ms: int) -> int:
    """Return by how much one occurrence starts late: below `most_ms`, and always the same."""
    if not most_ms:
        return 0
    digest = hashlib.blake2b(f"{workflow}/{schedule}-{at_ms}".encode(), digest_size=8).digest()
    return int.from_bytes(digest) % most_ms


def read_schedules(cls: type) -> tuple[Recurrence, ...]:
    """Return what a class lists in `schedules`, checked. One that is not valid refuses all.

    Raises `InvalidArgumentError`, naming the class and the schedule.
    """
    given = getattr(cls, "schedules", ())
    if not isinstance(given, list | tuple):
        raise InvalidArgumentError(f"{cls.__qualname__}.schedules must be a list of Cron(...) and Every(...)")
    known: dict[str, Recurrence] = {}
    for schedule in given:  # pyright: ignore[reportUnknownVariableType] - of any program's making
        if not isinstance(schedule, Cron | Every):
            raise InvalidArgumentError(
                f"{cls.__qualname__}.schedules: {schedule!r} is no schedule: write Cron({schedule!r}) or"
                ' Every("5 minutes")'
            )
        try:
            check_schedule(schedule)
        except InvalidArgumentError as error:
            raise InvalidArgumentError(f"{cls.__qualname__}.schedules: {schedule.text!r}: {error}") from error
        name = schedule_id(schedule)
        if name in known:
            raise InvalidArgumentError(
                f"{cls.__qualname__}.schedules: two are called {name!r}: give one of them an id=..., with"
                " which its instances' ids begin"
            )
        known[name] = schedule
    return tuple(known.values())


def check_schedule(schedule: Recurrence) -> None:
    """Refuse a schedule that is not valid. Raises `InvalidArgumentError`."""
    for value, allowed in ((schedule.catch_up, CatchUp), (schedule.overlap, Overlap)):
        if value not in get_args(allowed):
            raise InvalidArgumentError(f"{value!r} is not one of {get_args(allowed)}")
    if isinstance(schedule, Cron):
        check_cron(schedule.expression, schedule.tz)
    elif seconds(schedule.interval) < EVERY_MIN_S:
        raise InvalidDurationError(f"an interval of {schedule.interval!r} is shorter than {EVERY_MIN_S:g} s")
    else:
        seconds(schedule.offset)
    if schedule.jitter is not None:
        seconds(schedule.jitter)
    name = schedule_id(schedule)
    if isinstance(name, str) and len(name) > SCHEDULE_CHARS_MAX:  # pyright: ignore[reportUnnecessaryIsInstance] - a caller unseen by it
        raise InvalidIdError(f"a schedule's id has at most {SCHEDULE_CHARS_MAX} characters, not {len(name)}")
    check_instance_id(name)


def check_cron(expression: str, tz: str) -> None:
    """Refuse a cron expression or a time zone that does not exist. Raises `InvalidArgumentError`.

    >>> check_cron("61 * * * *", "UTC")
    Traceback (most recent call last):
        ...
    perdure.errors.InvalidArgumentError: the cron expression '61 * * * *' is not valid: bad minute
    """
    if not isinstance(expression, str):  # pyright: ignore[reportUnnecessaryIsInstance] - a caller unseen by it
        raise InvalidArgumentError(f"a cron expression is text, as in '0 9 * * *', not {expression!r}")
    _zone(tz)
    try:
        CronSim(expression, CHECKED_FROM)
    except CronSimError as error:
        raise InvalidArgumentError(
            f"the cron expression {expression!r} is not valid: {str(error)[:1].lower()}{str(error)[1:]}"
        ) from error
    Cron(expression, tz=tz).next_after(CHECKED_FROM)


def _zone(tz: str) -> zoneinfo.ZoneInfo:
    try:
        return zoneinfo.ZoneInfo(tz)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, TypeError, OSError) as error:
        raise InvalidArgumentError(
            f"there is no time zone {tz!r}: give one of the IANA database, as in tz='Europe/Paris'"
        ) from error


def _candidates(expression: str, local: datetime) -> Iterator[datetime]:
    """Yield occurrences from about `local` on; the first may not be later than it where clocks go back."""
    fields = expression.split()
    minute, hour = fields[-5], fields[-4]
    if minute.startswith("*") or hour.startswith("*"):
        yield from CronSim(expression, local)  # by the clock that runs: each hour there is counts
        return
    # By the clock on the wall: such a job is meant once a day. One that is asked for in an hour that comes
    # twice has had its turn in the first; one in an hour that is left out comes when that would have begun.
    zone = local.tzinfo
    for naive in CronSim(expression, local.replace(tzinfo=None)):
        yield _existing(naive, lambda moment: moment.replace(tzinfo=zone, fold=0))


def _existing(naive: datetime, localised: Callable[[datetime], datetime]) -> datetime:
    """Return the moment of a time of day, or the end of the gap in which it falls."""
    moment = localised(naive)
    if moment.astimezone(UTC).astimezone(moment.tzinfo).replace(tzinfo=None) == naive:
        return moment
    naive = naive.replace(second=0)
    while True:
        naive += timedelta(minutes=1)
        moment = localised(naive)
        if moment.astimezone(UTC).astimezone(moment.tzinfo).replace(tzinfo=None) == naive:
            return moment
