"""`step.patched`: which of two paths an instance takes when code has changed under it.

An instance that has been where the change is keeps the old path; one that has not takes the new. What
was decided is recorded once, under the change's id, and holds for every replay and every later call.
Prior art: Temporal's `workflow.patched`.

Invariants:
    One instance has one answer for one id, whatever branch asks and however often.
    Asking records one row, and no row that is there already is touched.
"""

from __future__ import annotations

from typing import Final, NoReturn

import trio

from perdure.actors.calls import StepCall, caller
from perdure.actors.run import Run
from perdure.errors import WorkflowCodeError
from perdure.storage.names import check_step_name

QUIET_TURNS: Final = 5
"""A branch inside a branch is called a turn of the loop later; deeper nesting than this is rare."""

DECIDED: Final = {True: "true", False: "false"}


class PatchCall(StepCall[bool]):
    """A call of `step.patched`. Not a step among others: ids of changes are names of their own."""

    __slots__ = ()

    kind = "patch"
    decides_anew = True

    def __init__(self, run: Run, change: str, *, depth: int) -> None:
        run.require_call(change)
        check_step_name(change)
        self.run = run
        self.awaited = False
        self.name, self.count = change, 1
        self.where = caller(depth)
        self.coder = run.host.codec.coder(bool)
        self.record = run.patches.get(change) or run.journal.take_patch(change)
        if self.record is not None:
            run.patches[change] = self.record
        run.open_calls[self] = None

    def __bool__(self) -> NoReturn:
        raise WorkflowCodeError(f"write `if await step.patched({self.name!r}):`, with await")

    async def perform(self) -> bool:
        """Decide, and record it: the new path, unless something of an older run is still to be asked for."""
        run = self.run
        known = run.patches.get(self.name)  # by another call, made after this one and awaited before
        if known is not None:
            return self.answer(known)
        decided = await self._nothing_left()
        known = run.patches.get(self.name)
        if known is not None:
            return self.answer(known)
        run.patches[self.name] = run.journal.add_finished(
            "patch", self.name, 1, at_ms=run.host.clock.wall_ms(), output=DECIDED[decided]
        )
        await run.recorded()
        return decided

    async def _nothing_left(self) -> bool:
        """Whether this run has asked for all that was recorded, the other branches of it as well.

        On a replay they are called anew with this one and have their answers at once, in whatever order
        trio runs them; so they are let run until none asks for anything more.
        """
        journal = self.run.journal
        left, quiet = journal.left_count, 0
        while left and quiet < QUIET_TURNS:
            await trio.lowlevel.checkpoint()
            quiet = quiet + 1 if journal.left_count == left else 0
            left = journal.left_count
        return not journal.has_left
