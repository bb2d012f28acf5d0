"""Concurrency: how many instances of a workflow run at a time, and how many start in a while.

The record that a class has as `concurrency`. It is kept where instances are claimed, in the catalog,
so that it holds across workers, restarts and crashes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, Literal, get_args

import msgspec

from perdure.actors.durations import Duration, seconds
from perdure.errors import InvalidArgumentError, InvalidDurationError
from perdure.limits import ID_CHARS_MAX
from perdure.storage.places import Rule

Counts = Literal["started", "active"]
COUNT_MAX: Final = 1_000_000
RATE_MIN_S: Final = 0.1


class Concurrency(msgspec.Struct, frozen=True, kw_only=True):
    """How many instances of one workflow may run at a time, in the whole state folder.

    `limit` bounds all of them; `per_key` those that have the same key, which the function `key` makes of the
    params, as text, when an instance is created (None: no key, and no bound by key). `rate=(100, "1 minute")`
    lets no more start in any stretch of that length. Who finds no place waits, `queued`: those with a higher
    priority first, then the oldest.

    An instance has its place from its start to its end, through sleeps and pauses, as with a lock. With
    `counts="active"` it gives it up while it sleeps, waits or is paused, and waits for one again after that.

    >>> Concurrency(key=lambda order: order["customer"], per_key=1).per_key
    1
    """

    limit: int | None = None
    key: Callable[[Any], str | None] | None = None
    per_key: int | None = None
    rate: tuple[int, Duration] | None = None
    counts: Counts = "started"


def read_concurrency(cls: type) -> Concurrency | None:
    """Return what a class has as `concurrency`, checked. Raises `InvalidArgumentError`, naming the class."""
    given: Any = getattr(cls, "concurrency", None)
    if given is None:
        return None
    where = f"{cls.__qualname__}.concurrency"
    if not isinstance(given, Concurrency):
        raise InvalidArgumentError(f"{where} is {given!r}; write Concurrency(limit=10)")
    for name in ("limit", "per_key"):
        value: Any = getattr(given, name)
        if value is not None and (type(value) is not int or not 1 <= value <= COUNT_MAX):
            raise InvalidArgumentError(
                f"{where}: {name}={value!r} must be a whole number from 1 to {COUNT_MAX:,}"
            )
    if (given.key is None) != (given.per_key is None):
        raise InvalidArgumentError(f"{where}: key and per_key come together: one says which, one how many")
    if given.key is not None and not callable(given.key):  # pyright: ignore[reportUnnecessaryComparison] - a caller unseen by it
        raise InvalidArgumentError(f"{where}: key={given.key!r} must be a function of the params")
    if given.counts not in get_args(Counts):
        raise InvalidArgumentError(f"{where}: counts={given.counts!r} must be one of {get_args(Counts)}")
    if given.limit is None and given.per_key is None and given.rate is None:
        raise InvalidArgumentError(f"{where} bounds nothing: give limit, per_key or rate")
    _check_rate(given.rate, where)
    return given


def _check_rate(rate: tuple[Any, ...] | None, where: str) -> None:
    if rate is None:
        return
    if not isinstance(rate, tuple) or len(rate) != len(("count", "period")):  # pyright: ignore[reportUnnecessaryIsInstance] - a caller unseen by it
        raise InvalidArgumentError(f'{where}: rate={rate!r} must be a pair, as in (100, "1 minute")')
    count, period = rate
    if type(count) is not int or not 1 <= count <= COUNT_MAX:
        raise InvalidArgumentError(f"{where}: rate: {count!r} must be a whole number from 1 to {COUNT_MAX:,}")
    if seconds(period) < RATE_MIN_S:
        raise InvalidDurationError(f"{where}: rate: {period!r} is shorter than {RATE_MIN_S} seconds")


def rule_of(concurrency: Concurrency) -> Rule:
    """Return what the catalog needs to know."""
    count, period = concurrency.rate or (None, 0)
    return Rule(
        limit=concurrency.limit, per_key=concurrency.per_key, rate=count,
        rate_ms=round(seconds(period) * 1000), active_only=concurrency.counts == "active",
    )  # fmt: skip


def lane_of(concurrency: Concurrency | None, params: Any) -> str | None:
    """Return the lane of an instance with these (decoded) params: its key, '' for none.

    None for a workflow without concurrency. Raises `InvalidArgumentError` for a key that is no text.
    """
    if concurrency is None:
        return None
    if concurrency.key is None:
        return ""
    try:
        key: Any = concurrency.key(params)
    except Exception as error:
        raise InvalidArgumentError(
            f"the concurrency key of these params cannot be made: {type(error).__name__}: {error}"
        ) from error
    if key is None:
        return ""
    if not isinstance(key, str) or not 0 < len(key) <= ID_CHARS_MAX:
        raise InvalidArgumentError(
            f"the concurrency key must be text of 1 to {ID_CHARS_MAX} characters, or None for none; it is"
            f" {key!r:.60}"
        )
    return key
