"""What the catalog is told of an instance that comes to rest: where it stands, why, and when it wakes."""

from __future__ import annotations

from perdure.actors.host import Clock, deadline_in
from perdure.actors.outcome import Completed, Dead, Failed, Interrupted, Parked, Paused, Terminated
from perdure.storage.records import Deadline, InstanceState, Status

AtRest = Completed | Failed | Terminated | Paused | Parked | Dead | Interrupted
"""Every outcome but a failed write and a deletion."""


def summary(
    outcome: AtRest, state: InstanceState, clock: Clock, *, has_class: bool, needs_place: bool
) -> tuple[Status, str | None, Deadline | None]:
    """Return status, reason and wake-up for how a stretch of life ended.

    `has_class` says whether the process knows the workflow, `needs_place` whether the instance has yet
    to be given a place among those that may run at one time.
    """
    match outcome:
        case Completed():
            return "complete", None, None
        case Failed():
            return "errored", None, None
        case Terminated():
            return "terminated", None, None
        case Paused():
            return "paused", state.reason, None
        case Dead(reason=reason):
            return "dead", reason, None
        case Parked(wake=wake, reason=reason):
            if not has_class:
                return state.status, "no class for it in the process that had it", deadline_in(clock, 0)
            return "queued" if needs_place else "waiting", reason, wake
        case Interrupted():
            return state.status if needs_place else "running", "its runtime ended", deadline_in(clock, 0)
