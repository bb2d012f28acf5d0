"""What a step function may know of the attempt it is: `StepContext`.

A function gets it in a parameter annotated `StepContext`, or from `current_step()`. It is how
timeout and cancellation reach a plain function, which nothing can stop from outside (law 5).
"""

from __future__ import annotations

import contextvars
import logging
import time
from collections.abc import Callable
from typing import Any, Protocol

from perdure.actors import process_child
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
    no other step anywhere; `deadline_s` is when the attempt times out, on `time.monotonic`;
    `last_heartbeat` has the details of the last heartbeat of the attempts before this one.
    """

    __slots__ = (
        "_beat",
        "_cancelled",
        "attempt",
        "config",
        "deadline_s",
        "idempotency_key",
        "instance",
        "last_heartbeat",
        "log",
        "step",
        "was_told",
    )

    def __init__(
        self, step: StepName, *, attempt: int, config: StepConfig, idempotency_key: str, instance: str,
        deadline_s: float, log: logging.LoggerAdapter[logging.Logger],
        beat: Callable[[Any], None] | None = None, last_heartbeat: Any = None,
    ) -> None:  # fmt: skip
        self.step = step
        self.attempt = attempt
        self.config = config
        self.idempotency_key = idempotency_key
        self.instance = instance
        self.deadline_s = deadline_s
        self.log = log
        self.last_heartbeat = last_heartbeat
        self._beat = beat
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
            self.last_heartbeat,
        )

    def heartbeat(self, details: Any = None) -> None:
        """Say that the attempt is alive, and in `details` how far it has got: any value that JSON has.

        Never waits, and may be called from any thread, from asyncio and from a process step. With
        `heartbeat_timeout=` an attempt that says nothing for so long is timed out. The last details are
        recorded, at most once in 100 ms, and are `last_heartbeat` of the next attempt, also after a
        crash; a call without details leaves them as they are.

        Raises `EncodingError`, and `WorkflowCodeError` once the attempt has ended.

        >>> def copy(files: list[str], context: StepContext) -> int:
        ...     done = context.last_heartbeat or 0
        ...     for place, file in enumerate(files[done:], done + 1):
        ...         context.heartbeat(place)
        ...     return len(files)
        """
        if self._beat is None:
            raise WorkflowCodeError(f"nothing listens to the heartbeats of step {self.step.name!r}")
        self._beat(details)

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
    instance, deadline_s, last_heartbeat = rest
    log = logging.LoggerAdapter(logging.getLogger("perdure.workflow"), {"instance": instance})
    return StepContext(
        StepName(name, count),
        attempt=attempt,
        config=config,
        idempotency_key=key,
        instance=instance,
        deadline_s=deadline_s,
        log=log,
        beat=process_child.heartbeat,
        last_heartbeat=last_heartbeat,
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
