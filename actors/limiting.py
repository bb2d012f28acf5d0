"""Limits of workflows: what is one, which hold for a workflow, and what is refused because of one.

Pure functions over `WorkflowLimits`. What keeps count in a running instance is in `bounds.py`.
"""

from __future__ import annotations

from typing import Any, Final

from perdure.errors import InvalidArgumentError, LimitExceededError
from perdure.limits import WorkflowLimits
from perdure.storage.records import Stored
from perdure.storage.values import stored_bytes

NAMES: Final = WorkflowLimits.__struct_fields__


def check_limits(limits: WorkflowLimits | None, owner: str) -> WorkflowLimits | None:
    """Return the limits as they are. Raises `InvalidArgumentError` for what is none, naming it."""
    if limits is None:
        return None
    if not isinstance(limits, WorkflowLimits):  # pyright: ignore[reportUnnecessaryIsInstance] - untyped callers
        raise InvalidArgumentError(
            f"{owner} is {limits!r}: it must be a WorkflowLimits, as in WorkflowLimits(steps_max=1_000)"
        )
    for name in NAMES:
        value: Any = getattr(limits, name)
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
            raise InvalidArgumentError(
                f"{owner}: {name}={value!r}: it must be a whole number, 1 or more, or None for no limit"
            )
    return limits


def effective_limits(own: WorkflowLimits | None, general: WorkflowLimits) -> WorkflowLimits | None:
    """Return what holds for a workflow with limits of its own in an app with these; None for no bound.

    >>> limits = effective_limits(WorkflowLimits(steps_max=5), WorkflowLimits(steps_max=9, event_bytes_max=1))
    >>> limits.steps_max, limits.event_bytes_max
    (5, 1)
    """
    chosen = {name: getattr(own, name, None) or getattr(general, name) for name in NAMES}
    return WorkflowLimits(**chosen) if any(chosen.values()) else None


def check_event_bytes(limits: WorkflowLimits | None, what: str, stored: Stored) -> None:
    """Refuse params, or the payload of an event, that are too large. Raises `LimitExceededError`."""
    most = None if limits is None else limits.event_bytes_max
    size = 0 if most is None else stored_bytes(stored)
    if most is not None and size > most:
        raise exceeded(f"{what} take {size:,} bytes", "event_bytes_max", size, most)


def exceeded(what: str, name: str, value: int, most: int) -> LimitExceededError:
    """Return the error that says what exceeds which limit."""
    return LimitExceededError(
        f"{what}, and {name} allows {most:,}: App(limits=) and the class attribute `limits` set it",
        limit=name,
        value=value,
        allowed=most,
    )
