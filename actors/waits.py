"""What an instance that is parked waits for: until when, and in words for people."""

from __future__ import annotations

from collections.abc import Sequence

from perdure.actors.host import Clock, remaining_ms
from perdure.actors.offspring import told_of
from perdure.actors.outcome import Parked
from perdure.storage.journal import Step
from perdure.storage.records import Deadline

NAMED_MAX = 3
"""Steps that the reason names."""


def parked_on(
    waiting: Sequence[Step], timeout: Deadline | None, clock: Clock, *, does: str | None = None
) -> Parked:
    """Return how an instance rests whose journal has these steps waiting.

    `timeout` is of the whole run, where that counts; `does` says what it is at, besides waiting.
    """
    wakes = [step.wake for step in waiting if step.wake is not None]
    if timeout is not None:
        wakes.append(timeout)
    names = ", ".join(told_of(step) for step in waiting[:NAMED_MAX] if step.kind != "race")
    reason = ": ".join(part for part in (does, names) if part)
    measured = [wake for wake in wakes if wake.boot_ms is not None and wake.boot == clock.boot]
    until_ms = min((wake.wall_ms for wake in wakes if wake not in measured), default=None)
    if measured:
        wake = min(measured, key=lambda wake: remaining_ms(clock, wake))
        return Parked(wake=wake, until_ms=until_ms, reason=reason)
    return Parked(wake=None if until_ms is None else Deadline(wall_ms=until_ms), reason=reason)
