"""The bounds that a workflow has asked for: steps of a run, bytes of results and of state.

There are none by default, and then nothing here is in the way of a step: a bounded instance has a journal
and coders of its own. What comes near a bound is told once, at 80 %, in the log and in the history.

Invariants:
    What exceeds a bound is refused before it is recorded, with the number, the bound and its name.
    A bound refuses what is new: recorded steps answer, whatever the bound is now.
"""

from __future__ import annotations

import logging
from typing import Any, Final

from perdure.actors.host import Clock
from perdure.actors.limiting import effective_limits, exceeded
from perdure.limits import WorkflowLimits
from perdure.storage.codec import Codec, Coder
from perdure.storage.codec_annotations import shape_of
from perdure.storage.files import InstanceFile
from perdure.storage.gate import Gate
from perdure.storage.journal import Journal, Step
from perdure.storage.lifecycle import Lifecycle
from perdure.storage.records import Deadline, Key, LongText, StepKind, Stored
from perdure.storage.schema import PAGE_BYTES
from perdure.storage.values import stored_bytes

NEAR: Final = 0.8
"""From this part of a bound on it is told that it is near: early enough to do something about it."""

COUNTED: Final[frozenset[StepKind]] = frozenset(("do", "transaction", "child"))
"""Kinds of steps that `steps_max` counts: those that do something. Waits, values and undoing are free."""

COUNT: Final = """
    SELECT count(*) FROM _perdure_steps
    WHERE superseded IS NULL AND kind IN ('do', 'transaction', 'child')"""
PAGES: Final = "PRAGMA page_count"


class Bounds:
    """The bounds of one instance, and what has been told of them."""

    def __init__(self, limits: WorkflowLimits, key: Key, lifecycle: Lifecycle, clock: Clock) -> None:
        self.limits = limits
        self._key = key
        self._lifecycle = lifecycle
        self._clock = clock
        self._log = logging.getLogger(f"perdure.workflow.{key.workflow}")
        self._told: set[str] = set()

    def check(self, name: str, what: str, value: int) -> None:
        """Refuse a value above a bound, and tell once when one is near it. Raises `LimitExceededError`."""
        most: int | None = getattr(self.limits, name)
        if most is None:
            return
        if value > most:
            raise exceeded(what, name, value, most)
        if value >= NEAR * most and name not in self._told:
            self._told.add(name)
            detail = f"{what}, and {name} is {most:,}"
            token = f"near:{name}:{self._lifecycle.state.generation}"
            if self._lifecycle.command(
                "limit near", at_ms=self._clock.wall_ms(), actor="runtime", token=token, detail=detail
            ):
                self._log.warning("%s comes near a limit: %s", self._key, detail)

    def result(self, stored: Stored | LongText) -> None:
        """Refuse a result that is too large."""
        size = stored_bytes(stored)
        self.check("result_bytes_max", f"a result takes {size:,} bytes", size)

    def coder(self, codec: Codec, coder: Coder) -> Coder:
        """Return a coder that does as `coder` does and refuses what is too large."""
        return coder if self.limits.result_bytes_max is None else BoundedCoder(codec, coder, self)


class BoundedCoder(Coder):
    """A coder whose values have a bound."""

    __slots__ = ("_bounds", "_inner")

    def __init__(self, codec: Codec, inner: Coder, bounds: Bounds) -> None:
        super().__init__(codec, inner.annotation, shape_of(Any), plain=False)
        self._inner = inner
        self._bounds = bounds

    def record_result(self, value: object) -> tuple[Stored | LongText, Any]:
        """Encode a value, unless it is too large."""
        stored, decoded = self._inner.record_result(value)
        self._bounds.result(stored)
        return stored, decoded

    def decode(self, stored: Stored) -> Any:
        """Return the value that was stored, however large."""
        return self._inner.decode(stored)


class BoundedJournal(Journal):
    """A journal that begins no more steps than it may."""

    def __init__(self, file: InstanceFile, gate: Gate, bounds: Bounds) -> None:
        super().__init__(file, gate)
        self._instance_file = file
        self._bounds = bounds
        self._begun: int | None = None

    def load(self) -> None:
        """Read all steps; how many there are is counted anew when the next one begins."""
        self._begun = None
        super().load()

    def start(self, kind: StepKind, name: str, count: int, **values: Any) -> Step:
        """Record that attempt 1 of a new step starts. Raises `LimitExceededError`."""
        self._admit(kind, name)
        return super().start(kind, name, count, **values)

    def wait(self, kind: StepKind, name: str, count: int, *, wake: Deadline | None, **values: Any) -> Step:
        """Record that a new step waits. Raises `LimitExceededError`."""
        self._admit(kind, name)
        return super().wait(kind, name, count, wake=wake, **values)

    def add_finished(self, kind: StepKind, name: str, count: int, **values: Any) -> Step:
        """Record a step that starts and completes in one commit. Raises `LimitExceededError`."""
        self._admit(kind, name)
        return super().add_finished(kind, name, count, **values)

    def _admit(self, kind: StepKind, name: str) -> None:
        if kind in ("rollback", "patch"):  # what was done can always be undone
            return
        file, bounds = self._instance_file, self._bounds
        if bounds.limits.state_bytes_max is not None:
            ((pages,),) = file.fetch(PAGES)
            size = pages * PAGE_BYTES
            bounds.check("state_bytes_max", f"before step {name!r} the state takes {size:,} bytes", size)
        if kind in COUNTED and bounds.limits.steps_max is not None:
            if self._begun is None:
                self._begun = int(file.fetch(COUNT)[0][0])
            number = self._begun + 1
            bounds.check("steps_max", f"step {name!r} is number {number:,} of the run", number)
            self._begun = number


def bounds_of(
    own: WorkflowLimits | None, general: WorkflowLimits, key: Key, lifecycle: Lifecycle, clock: Clock
) -> Bounds | None:
    """Return the bounds of an instance, or None where it has none."""
    limits = effective_limits(own, general)
    return None if limits is None else Bounds(limits, key, lifecycle, clock)
