"""Durations and points in time, as users write them.

Nobody else parses a duration: every parameter that takes one comes through `seconds`, every
`datetime` through `point_in_time`. Pure functions; the only thing owned here is a bounded
cache of parsed texts.

The forms are few on purpose. `"5m"` is five minutes to some and five months to others, and a
duration that is silently misread shows only when an instance has slept for the wrong time. So
one number, one blank, one English word; all else is refused with the likely meaning beside it.

Invariants:
    `seconds` gives a finite number, not negative and not above `DURATION_S_MAX`.
    A number means seconds, never milliseconds.
    `point_in_time` never lies before the moment it was given.
"""

from __future__ import annotations

import math
import re
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Final, TypeAlias

from perdure.errors import InvalidDurationError

# The `type` statement needs Python 3.12.
Duration: TypeAlias = str | int | float | timedelta
"""`"5 seconds"`, a `timedelta`, or a number of **seconds**."""

DURATION_S_MAX: Final = 1_000 * 365 * 86_400.0
"""A thousand years: a deadline further off has no `datetime`, and is a mistake in the unit."""

_SECONDS_PER_UNIT: Final = {
    "second": 1.0,
    "minute": 60.0,
    "hour": 3_600.0,
    "day": 86_400.0,
    "week": 7 * 86_400.0,
    "month": 30 * 86_400.0,
    "year": 365 * 86_400.0,
}
_FACTORS: Final = _SECONDS_PER_UNIT | {f"{unit}s": factor for unit, factor in _SECONDS_PER_UNIT.items()}

# What people write elsewhere. Read for suggestions alone, never accepted.
_MEANT: Final = (
    dict.fromkeys(("s", "sec", "secs"), "second")
    | dict.fromkeys(("m", "min", "mins"), "minute")
    | dict.fromkeys(("h", "hr", "hrs"), "hour")
    | dict.fromkeys(("d",), "day")
    | dict.fromkeys(("w", "wk", "wks"), "week")
    | dict.fromkeys(("mo", "mon", "mos"), "month")
    | dict.fromkeys(("y", "yr", "yrs"), "year")
    | {unit: unit.removesuffix("s") for unit in _FACTORS}
)
_MILLISECONDS: Final = frozenset({"ms", "msec", "msecs", "milli", "millis", "millisecond", "milliseconds"})

_WELL_FORMED: Final = re.compile(r"([0-9]+(?:\.[0-9]+)?) ([a-z]+)")
_ALMOST: Final = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?|\.[0-9]+)\s*([^\W\d_]*)\.?\s*")
_PART: Final = re.compile(r"[0-9.]+\s*[^\W\d_]+")

_FORMS: Final = (
    "Write one number, one blank and one unit of second(s), minute(s), hour(s), day(s), week(s), "
    "month(s) (30 days) or year(s) (365 days), as in '5 seconds'; "
    "or give a timedelta, or a number of seconds."
)
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND: Final = timedelta(milliseconds=1)


def seconds(value: Duration) -> float:
    """Return a duration as seconds.

    A month has 30 days and a year 365; for calendar dates compute a `datetime` and use the
    call that takes one. Raises InvalidDurationError.

    >>> seconds("1.5 hours")
    5400.0
    >>> seconds(0.25)
    0.25
    >>> seconds("5s")
    Traceback (most recent call last):
        ...
    perdure.errors.InvalidDurationError: '5s' is not a duration: did you mean '5 seconds'? Write one number, \
one blank and one unit of second(s), minute(s), hour(s), day(s), week(s), month(s) (30 days) or year(s) \
(365 days), as in '5 seconds'; or give a timedelta, or a number of seconds.
    """
    if type(value) is str:
        return _parse(value)
    return _from_other(value)


def point_in_time(value: datetime) -> int:
    """Return a point in time as milliseconds since the epoch.

    A part of a millisecond is rounded up, so that nothing that waits for the moment is early.
    Raises InvalidDurationError for a `datetime` without a time zone.

    >>> point_in_time(datetime(2030, 1, 1, tzinfo=UTC))
    1893456000000
    """
    if not isinstance(value, datetime):  # pyright: ignore[reportUnnecessaryIsInstance]  # untyped callers
        raise InvalidDurationError(
            f"{value!r} is not a point in time: give a timezone-aware datetime, "
            f"as in datetime(2030, 1, 1, tzinfo=UTC)."
        )
    if value.utcoffset() is None:
        raise InvalidDurationError(
            f"{value!r} has no time zone, so it is another moment on every machine: give it one, as in "
            f"value.replace(tzinfo=UTC) or value.astimezone() for this machine's, "
            f"and use datetime.now(UTC) in place of datetime.now() or datetime.utcnow()."
        )
    return -((_EPOCH - value) // _MILLISECOND)


def render_duration(ms: float) -> str:
    """Return milliseconds as people read them: the two largest units, cut off, never rounded up.

    >>> render_duration(90_000)
    '1 min 30 s'
    >>> render_duration(1_540)
    '1.5 s'
    """
    whole = int(ms)
    if whole < 0:
        return f"-{render_duration(-whole)}"
    if whole == 0:
        return "0 s"
    total_s = whole // 1_000
    if not total_s:
        return f"{whole} ms"
    if not total_s // 60:
        tenths = whole // 100
        return f"{tenths // 10}.{tenths % 10} s" if tenths % 10 else f"{tenths // 10} s"
    for large_s, large, small_s, small in (
        (86_400, "d", 3_600, "h"),
        (3_600, "h", 60, "min"),
        (60, "min", 1, "s"),
    ):
        if total_s >= large_s:
            rest = total_s % large_s // small_s
            return f"{total_s // large_s} {large}" + (f" {rest} {small}" if rest else "")
    raise AssertionError(ms)


@lru_cache(maxsize=1_024)
def _parse(text: str) -> float:
    """Read a duration text. Cached: the same few texts come with every step. Errors are not cached."""
    if found := _WELL_FORMED.fullmatch(text):
        factor = _FACTORS.get(found[2])
        if factor is not None:
            return _checked(float(found[1]) * factor, text)
    raise InvalidDurationError(f"{text!r} is not a duration{_suggestion(text)} {_FORMS}")


def _from_other(value: object) -> float:
    if isinstance(value, str):  # a subclass, as the members of a StrEnum are
        return _parse(str(value))
    if isinstance(value, timedelta):
        return _checked(value.total_seconds(), value)
    if isinstance(value, int | float) and not isinstance(value, bool):
        try:
            return _checked(float(value), value)
        except OverflowError:
            raise InvalidDurationError(_too_long("an integer of more than 300 digits")) from None
    raise InvalidDurationError(f"{value!r} ({type(value).__name__}) is not a duration. {_FORMS}")


def _checked(value_s: float, given: object) -> float:
    if not math.isfinite(value_s):
        raise InvalidDurationError(f"{given!r} is not a duration: it is not a finite number. {_FORMS}")
    if value_s < 0:
        raise InvalidDurationError(f"{given!r} is not a duration: it is negative. {_FORMS}")
    if value_s > DURATION_S_MAX:
        raise InvalidDurationError(_too_long(repr(given)))
    return value_s + 0.0  # -0.0 becomes 0.0


def _too_long(given: str) -> str:
    return (
        f"{given} is longer than the longest duration, 1000 years. "
        f"Bare numbers are seconds, not milliseconds or microseconds."
    )


def _suggestion(text: str) -> str:
    """Say what the text was likely meant to be."""
    if text.lstrip().startswith("-"):
        return ": it is negative."
    found = _ALMOST.fullmatch(text)
    if found is None:
        if len(_PART.findall(text)) > 1:
            return ": it has more than one part. Use one unit, as in '1.5 hours', or a timedelta."
        return "."
    number, word = found[1], found[2].lower()
    number = f"0{number}" if number.startswith(".") else number
    if word in _MILLISECONDS:
        return f": did you mean '{float(number) / 1_000:f}".rstrip("0").rstrip(".") + " seconds'?"
    unit = _MEANT.get(word or "second")
    if unit is None:
        return f": {found[2]!r} is not a unit."
    return f": did you mean '{number} {unit}{'' if number == '1' else 's'}'?"
