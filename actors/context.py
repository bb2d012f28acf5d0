"""What a step function may know of the attempt it is: `StepContext`.

A function gets it in a parameter annotated `StepContext`, or from `current_step()`. It is how
timeout and cancellation reach a plain function, which nothing can stop from outside (law 5).
"""

from __future__ import annotations

import contextvars
import logging
import time
from typing import Any, Protocol

from perdure.actors.retry import StepConfig
from perdure.errors import WorkflowCodeError


class StepName:
    """Which step: its name as recorded, and which use of that name it is, from 1."""

    __slots__ = ("count", "name")

    def __init__(self, name: str, count: int) -> None:
        self.name = name
        self.count = count

    def __repr__(self) -> str:
        return f"StepName({self.name!r}, {self.count})"


class StepContext:
    """One attempt of one step.

    `attempt` counts from 1; `idempotency_key` is the same for every attempt of a step and for
    no other step anywhere; `deadline_s` is when the attempt times out, on `time.monotonic`.
    """

    __slots__ = (
        "_cancelled",
        "attempt",
        "config",
        "deadline_s",
        "idempotency_key",
        "instance",
        "log",
        "step",
        "was_told",
    )

    def __init__(
        self, step: StepName, *, attempt: int, config: StepConfig, idempotency_key: str, instance: str,
        deadline_s: float, log: logging.LoggerAdapter[logging.Logger],
    ) -> None:  # fmt: skip
        self.step = step
        self.attempt = attempt
        self.config = config
        self.idempotency_key = idempotency_key
        self.instance = instance
        self.deadline_s = deadline_s
        self.log = log
        self._cancelled = False
        self.was_told = False  # the function has seen `cancelled`, so what it returns may be half of it

    def __reduce__(self) -> tuple[Any, ...]:
        """Cross to the child of a process step, with everything but this process's log."""
        return _in_child, (
            self.step.name,
            self.step.count,
            self.attempt,
            self.config,
            self.idempotency_key,
            self.instance,
            self.deadline_s,
        )

    @property
    def remaining_s(self) -> float:
        """How long the attempt may still take, in seconds; below 0 when it is overdue."""
        return self.deadline_s - time.monotonic()

    @property
    def cancelled(self) -> bool:
        """Whether a plain function should return now: the attempt was cancelled or is overdue.

        Functions in the loop need not look: cancellation comes to them by itself.
        """
        if self._cancelled or self.remaining_s < 0:
            self.was_told = True
            return True
        return False

    def cancel(self) -> None:
        """Tell the function, in a thread that is shielded, that its attempt is cancelled. For the runtime."""
        self._cancelled = True


def _in_child(name: str, count: int, attempt: int, config: StepConfig, key: str, *rest: Any) -> StepContext:
    """Make a context anew. `time.monotonic`, by which its deadline goes, is one for all processes."""
    instance, deadline_s = rest
    log = logging.LoggerAdapter(logging.getLogger("perdure.workflow"), {"instance": instance})
    return StepContext(
        StepName(name, count),
        attempt=attempt,
        config=config,
        idempotency_key=key,
        instance=instance,
        deadline_s=deadline_s,
        log=log,
    )


class Underway(Protocol):
    """An attempt under way, which makes its context when somebody asks for it."""

    name: str

    @property
    def context(self) -> StepContext:
        """What the function may know of the attempt."""
        ...


CURRENT: contextvars.ContextVar[Underway] = contextvars.ContextVar("perdure_current_step")


def current_step() -> StepContext:
    """Return the context of the attempt that is calling. Raises `WorkflowCodeError` outside a step."""
    attempt = CURRENT.get(None)
    if attempt is None:
        raise WorkflowCodeError("current_step() was called outside a step function")
    return attempt.context
