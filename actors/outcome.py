"""How one stretch of an instance's life ended: a small union, matched once by the engine."""

from __future__ import annotations

import msgspec

from perdure.storage.records import Deadline, Stored


class Completed(msgspec.Struct, frozen=True, kw_only=True):
    """`run()` returned; `output` is what it returned, as stored."""

    output: Stored


class Failed(msgspec.Struct, frozen=True, kw_only=True):
    """`run()` raised; `error` is the stored error."""

    error: str


class Terminated(msgspec.Struct, frozen=True, kw_only=True):
    """Somebody terminated it."""


class Paused(msgspec.Struct, frozen=True, kw_only=True):
    """Somebody paused it, and nothing of it runs any more."""


class Parked(msgspec.Struct, frozen=True, kw_only=True):
    """Nothing of it can move before `wake` or `until_ms`, or before an event where both are None.

    Within a boot two clocks may run apart: `wake` is the first deadline that follows the clock since
    boot, and `until_ms` the first that follows the wall clock. `wake` stands for either where there is
    only one kind.
    """

    wake: Deadline | None
    reason: str
    until_ms: int | None = None

    @property
    def wake_at_ms(self) -> int | None:
        """When it moves at the latest as the wall clock would have it, for people."""
        times = [self.until_ms, None if self.wake is None else self.wake.wall_ms]
        return min((ms for ms in times if ms is not None), default=None)


class Dead(msgspec.Struct, frozen=True, kw_only=True):
    """It took its process down again and again; `reason` says how often."""

    reason: str


class Deleted(msgspec.Struct, frozen=True, kw_only=True):
    """Somebody deletes it: once it is at rest its file goes, and its row."""


class Interrupted(msgspec.Struct, frozen=True, kw_only=True):
    """The runtime is ending; it goes on as soon as one is started again."""


class Broken(msgspec.Struct, frozen=True, kw_only=True):
    """A write failed; what was committed is intact and it is tried again from there."""

    error: Exception


Outcome = Completed | Failed | Terminated | Paused | Parked | Dead | Interrupted | Broken | Deleted
