"""A recorded step in memory: what the journal hands out, made of a row of its scan.

Invariants:
    Only the journal changes a `Step`, together with its row.
"""

from __future__ import annotations

from sys import intern
from typing import Any, Final, cast, get_args

from perdure.storage.records import Deadline, StepKind, StepStatus, Stored


class Step:
    """One step as the journal has it. Changes only through the journal.

    `fingerprint` is what tells its arguments from others: their text, or its digest where it is long.
    """

    __slots__ = (
        "attempt",
        "attempt_at_ms",
        "attempt_commit",
        "config",
        "count",
        "counted",
        "detail",
        "error",
        "fingerprint",
        "kind",
        "name",
        "output",
        "output_ref",
        "seq",
        "started_at_ms",
        "status",
        "wake",
    )

    seq: int
    kind: StepKind
    name: str
    count: int
    status: StepStatus
    attempt: int
    counted: int
    fingerprint: str | None
    output: Stored | None
    output_ref: int | None
    error: str | None
    started_at_ms: int
    attempt_at_ms: int | None
    attempt_commit: int | None
    wake: Deadline | None
    config: str | None
    detail: str | None

    @property
    def finished(self) -> bool:
        """Whether it will never be attempted or waited for again."""
        return self.status in ENDED


ENDED: Final = frozenset(("completed", "failed", "cancelled"))
STEP_KINDS: Final[tuple[StepKind, ...]] = tuple(kind for kind in get_args(StepKind) if kind != "patch")
"""The kinds that share one space of names: the ids of changes have their own."""

Identity = tuple[str, str, int]
"""Kind, name and occurrence: what a step call asks for."""


def step_of(row: Any) -> Step:
    """Make a step of a row of SCAN, whose columns come in this order."""
    step = Step()
    step.seq, step.kind, step.name, step.count, step.status, step.attempt, step.counted, *rest = row
    step.fingerprint, step.output, step.output_ref, step.error, *rest = rest
    step.started_at_ms, step.attempt_at_ms, step.attempt_commit, *rest = rest
    wake_at_ms, wake_boot_ms, boot, step.config, step.detail = rest
    step.kind = cast("StepKind", intern(step.kind))  # what is the same text is then compared at once
    step.status = cast("StepStatus", intern(step.status))
    step.wake = None
    if wake_at_ms is not None:
        step.wake = Deadline(wall_ms=wake_at_ms, boot_ms=wake_boot_ms, boot=boot)
    return step
