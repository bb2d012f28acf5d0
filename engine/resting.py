"""What others are told of an instance that comes to rest.

The catalog: where it stands, why, and when it wakes. Those who call it: why no call reaches it.
"""

from __future__ import annotations

from perdure.actors.host import Clock, deadline_in
from perdure.actors.outcome import (
    Broken,
    Completed,
    Dead,
    Deleted,
    Failed,
    Interrupted,
    Outcome,
    Parked,
    Paused,
    Terminated,
)
from perdure.errors import (
    InstanceDeadError,
    InstanceFinishedError,
    InstanceTerminatedError,
    PerdureError,
    RuntimeClosedError,
    StateError,
)
from perdure.storage.records import Deadline, InstanceState, Key, Status

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


def unreachable(key: Key, outcome: Outcome, starts_later: str | None) -> PerdureError:
    """Return why no call can reach an instance that has come to this."""
    names = {"workflow": key.workflow, "instance_id": key.id}
    match outcome:
        case Broken(error=error):
            return error if isinstance(error, PerdureError) else StateError(str(error))
        case Paused():
            return StateError(f"{key} is paused, so nothing of it can be called: resume it first")
        case Dead(reason=reason):
            return InstanceDeadError(f"{key} is parked as dead: {reason}; resume() tries it again", **names)
        case Parked():
            return StateError(f"{key} cannot be called now: {starts_later}")
        case Interrupted():
            return RuntimeClosedError("the runtime is ending and takes no more calls")
        case _:
            return InstanceFinishedError(f"{key} has finished: no call can reach it any more", **names)


def ended_under_call(key: Key, outcome: Terminated | Deleted) -> PerdureError:
    """Return what those are told whose calls were under way when the instance was ended."""
    how = "terminated" if isinstance(outcome, Terminated) else "deleted"
    return InstanceTerminatedError(
        f"{key} was {how} while it was called, and nobody knows how far the call got",
        workflow=key.workflow,
        instance_id=key.id,
    )
