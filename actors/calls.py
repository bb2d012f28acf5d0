"""A step call: checked and registered when it is made, carried out when it is awaited.

`step.do(...)` and its siblings are plain functions that return one of these, so that a
forgotten `await` is seen and told with its line (law 8). Each kind of call is a subclass with
a `perform` of its own; what all share stands here.

Invariants:
    A bad call raises where it stands, before any effect.
    A finished step answers from the journal without yielding to the loop.
    A call made while the runtime is stopping this run raises cancellation again and records nothing.
"""

from __future__ import annotations

import sys
from collections.abc import Generator
from types import CodeType
from typing import Any, ClassVar, Generic, TypeVar

from perdure.actors.context import CURRENT
from perdure.actors.run import EXPIRED, Run
from perdure.errors import DivergenceError, PerdureError, WorkflowCodeError
from perdure.storage.codec import Coder
from perdure.storage.failure import restore_failure
from perdure.storage.journal import Step
from perdure.storage.records import StepKind

T = TypeVar("T", covariant=True)


Place = tuple[CodeType, int]
"""A code object and the offset of an instruction in it; its line is looked up when somebody wants to know."""


def caller(depth: int) -> Place:
    """Return the place that called, `depth` calls above the caller of this."""
    frame = sys._getframe(depth + 1)  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]  # for law 8, at every call; inspect.stack costs milliseconds
    return frame.f_code, frame.f_lasti


def line_of(place: Place) -> str:
    """Return a place as people read it: file and line.

    >>> line_of(caller(0)).rpartition(":")[2]
    '1'
    """
    code, offset = place
    lines = (line for start, end, line in code.co_lines() if start <= offset < end)
    return f"{code.co_filename}:{next(lines, None) or code.co_firstlineno}"


class StepCall(Generic[T]):
    """What a step method returns: await it, once."""

    __slots__ = ("awaited", "coder", "count", "name", "record", "run", "where")

    kind: ClassVar[StepKind]
    decides_anew: ClassVar[bool] = False
    """Whether a replay for rollback handlers may record it: what comes behind it hangs on its answer."""
    coder: Coder | None

    def __init__(
        self, run: Run, name: str, key: object = None, function: object = None, depth: int = 2
    ) -> None:
        if run.over or CURRENT.get(None) is not None:
            run.require_call(name)
        self.run = run
        self.awaited = False
        self.coder = None
        self.name, self.count = run.names.claim(self.kind, name, key, function)
        self.record = run.journal.take(self.kind, self.name, self.count)
        self.where = caller(depth)
        if self.record is None:
            self._refuse_other_kind()
        run.open_calls[self] = None

    def __await__(self) -> Generator[Any, Any, T]:
        if self.awaited:
            raise WorkflowCodeError(
                f"the call of step {self.name!r} was awaited twice: keep its result in a variable"
            )
        self.awaited = True
        record = self.record
        if record is not None and record.status == "completed" and self.run.stopping is None:
            self.run.open_calls.pop(self, None)
            return self.answer(record)
        return (yield from self._drive().__await__())

    async def _drive(self) -> T:
        run = self.run
        try:
            if run.stopping is not None or run.sought is not None or EXPIRED.get():
                await run.admit(recorded=self.record is not None or self.decides_anew)
            return await self.perform()
        except PerdureError as error:
            if error is not run.file.failure:
                raise
            await run.broke(error)
            raise
        finally:
            run.open_calls.pop(self, None)

    def queue(self, race: int) -> None:
        """Take a place in a race, by its seq, before any part of it runs: trio starts tasks in any order."""

    def lost(self) -> None:
        """Let go of what it has started, where it was cancelled: a rival has won their race."""

    async def perform(self) -> T:
        """Carry the call out: finish what the journal has of it, or do it from the start."""
        raise NotImplementedError

    def answer(self, step: Step) -> T:
        """Return what a completed step answers: the decoded form of what was stored."""
        assert self.coder is not None
        stored = step.output
        if stored is None:
            stored = self.run.journal.output(step)
        value: T = self.coder.decode(stored)
        return value

    def error(self, step: Step) -> BaseException:
        """Return the error of a failed step, restored."""
        assert step.error is not None
        return restore_failure(step.error, step=step.name, attempt=step.attempt, codec=self.run.host.codec)

    def _refuse_other_kind(self) -> None:
        other = self.run.journal.other_kind(self.name, self.count)
        if other is None:
            return
        self.run.diverged(
            "kind",
            DivergenceError(
                f"the journal has {self.name!r} as a {other} step, and {self.where[0].co_qualname} now asks"
                f" for a {self.kind} step of that name: give the new step another name",
                recorded=f"{other} {self.name!r} (use {self.count})",
                requested=f"{self.kind} {self.name!r} (use {self.count})",
            ),
            serious=True,
        )
