"""How long an instance is kept once it has ended.

Invariants:
    What is not a duration is refused where it is written, not when an instance ends.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from perdure.actors.durations import Duration, seconds
from perdure.errors import InvalidArgumentError
from perdure.storage.records import Status

OUTCOMES: Final = ("complete", "errored", "terminated")


class Retention(msgspec.Struct, frozen=True, kw_only=True):
    """How long an instance's file is kept once the instance has ended, by how it ended.

    None keeps it for ever. Afterwards the file is removed or, with `archive`, moved to `archive/` in
    the state folder; the row in the catalog stays, and says so. As a class attribute `retention`, in
    `create(retention=)` or `App(retention=)`; a plain duration there stands for all three outcomes.

    Raises `InvalidDurationError`.

    >>> Retention(complete="30 days", terminated=0).seconds_for("complete")
    2592000.0
    """

    complete: Duration | None = None
    errored: Duration | None = None
    terminated: Duration | None = None
    archive: bool = False

    def __post_init__(self) -> None:
        for name in OUTCOMES:
            self.seconds_for(name)
        if type(self.archive) is not bool:
            raise InvalidArgumentError(f"Retention(archive={self.archive!r}): it must be True or False")

    def seconds_for(self, status: Status | str) -> float | None:
        """Return how long an instance that ended so is kept, in seconds; None: for ever."""
        duration: Duration | None = getattr(self, status) if status in OUTCOMES else None
        return None if duration is None else seconds(duration)


class _Stored(msgspec.Struct, frozen=True, omit_defaults=True):
    complete: float | None = None
    errored: float | None = None
    terminated: float | None = None
    archive: bool = False


def retention_of(value: Any, where: str) -> Retention | None:
    """Return what was given as a retention, be it a duration for all outcomes. None stays None.

    Raises `InvalidArgumentError`, which says `where` it was given.
    """
    if value is None or isinstance(value, Retention):
        return value
    try:
        return Retention(complete=value, errored=value, terminated=value)
    except InvalidArgumentError as error:
        raise InvalidArgumentError(
            f"{where}: {value!r} is neither a Retention nor a duration: {error}"
        ) from error


def stored_retention(retention: Retention) -> str:
    """Return a retention as the instance's file keeps it."""
    times = {name: retention.seconds_for(name) for name in OUTCOMES}
    return msgspec.json.encode(_Stored(**times, archive=retention.archive)).decode()


def restored_retention(text: str | None) -> Retention | None:
    """Return the retention that an instance's file keeps, or None where it has none of its own."""
    if text is None:
        return None
    stored = msgspec.json.decode(text, type=_Stored)
    return Retention(
        complete=stored.complete, errored=stored.errored, terminated=stored.terminated, archive=stored.archive
    )
