"""Parallel parts: `map`, `gather`, `race`, and the durable deadline `move_on_after`.

Each names its parts, so that a replay cannot mix them up however trio orders the tasks. The
parts are declared in the caller's task, in order, and carried out in a nursery.

Invariants:
    `map` and `gather` wait for every part, failed or not, and then raise what failed: which parts
    ran does not depend on which failed first.
    Who won a race, and whether a deadline struck, is recorded once and answers every replay.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import Any, Generic, Self, TypeVar, cast

import msgspec
import outcome
import trio

from perdure.actors.calls import StepCall, caller
from perdure.actors.host import TimerHandle, deadline_in
from perdure.actors.run import ENDING, EXPIRED, Run
from perdure.errors import WorkflowCodeError
from perdure.storage.journal import Step

T = TypeVar("T")
R = TypeVar("R")


class GroupCall(Generic[R]):
    """A call of `step.map` or `step.gather`: await it, once, for what `collect` makes of the results."""

    __slots__ = ("awaited", "collect", "limit", "name", "parts", "run", "where")

    def __init__(
        self, run: Run, name: str, parts: Sequence[StepCall[Any]], collect: Callable[[list[Any]], R], *,
        limit: int | None = None, depth: int,
    ) -> None:  # fmt: skip
        self.run = run
        self.name = name
        self.parts = parts
        self.collect = collect
        self.limit = limit
        self.awaited = False
        self.where = caller(depth)
        for part in parts:  # the group stands for its parts when a forgotten await is told
            run.open_calls.pop(part, None)
        run.open_calls[self] = None

    def __await__(self) -> Generator[Any, Any, R]:
        if self.awaited:
            raise WorkflowCodeError(
                f"the call of step {self.name!r} was awaited twice: keep its result in a variable"
            )
        self.awaited = True
        return self._all().__await__()

    async def _all(self) -> R:
        results: dict[int, outcome.Outcome[Any]] = {}
        waiting = iter(enumerate(self.parts))

        async def work() -> None:
            for index, part in waiting:
                results[index] = await _settled(part)

        try:
            async with trio.open_nursery(strict_exception_groups=True) as nursery:
                for _ in range(min(self.limit or len(self.parts), len(self.parts))):
                    nursery.start_soon(work)
        except BaseExceptionGroup as group:
            raise _only(group) from None
        finally:
            self.run.open_calls.pop(self, None)
        return self.collect(unwrapped(self.name, [results[index] for index in range(len(self.parts))]))


async def _settled(part: StepCall[Any]) -> outcome.Outcome[Any]:
    """Await a part and return what became of it; cancellation passes through."""
    try:
        return outcome.Value(await part)
    except Exception as error:  # noqa: BLE001 - what a part raises is its outcome
        return outcome.Error(error)


def _only(error: BaseException) -> BaseException:
    """Return what a nursery of ours raised: errors of parts never get there, so it is one thing."""
    if not isinstance(error, BaseExceptionGroup):
        return error
    group = cast("BaseExceptionGroup[BaseException]", error)
    return group.exceptions[0] if len(group.exceptions) == 1 else group


def _is_cancellation(error: BaseException) -> bool:
    if isinstance(error, BaseExceptionGroup):
        group = cast("BaseExceptionGroup[BaseException]", error)
        return all(map(_is_cancellation, group.exceptions))
    return isinstance(error, trio.Cancelled)


def unwrapped(name: str, results: list[outcome.Outcome[Any]]) -> list[Any]:
    """Return the results of parts; raise one failure as it is, several as a group."""
    errors = [result.error for result in results if isinstance(result, outcome.Error)]
    if len(errors) == 1:
        raise errors[0]
    if errors:
        raise ExceptionGroup(
            f"{len(errors)} of {len(results)} parts of {name!r} failed",
            [error for error in errors if isinstance(error, Exception)],
        )
    return [result.unwrap() for result in results]


class RaceCall(StepCall[tuple[str, T]]):
    """A call of `step.race`: the first part to finish decides; the others are cancelled."""

    __slots__ = ("parts",)

    kind = "race"

    def __init__(self, run: Run, name: str, *, depth: int) -> None:
        super().__init__(run, name, depth=depth + 1)
        self.parts: dict[str, StepCall[T]] = {}

    def enter(self, parts: Mapping[str, StepCall[T]]) -> None:
        """Add the parts; they were declared after the race, so that it comes first in the journal."""
        self.parts = dict(parts)
        for part in parts.values():
            self.run.open_calls.pop(part, None)

    def answer(self, step: Step) -> tuple[str, T]:
        """Return the winner and its result, or raise its error."""
        who = str(msgspec.json.decode(self.run.journal.output(step)))
        part = self.parts.get(who)
        record = None if part is None else part.record
        if part is None or record is None:
            raise WorkflowCodeError(
                f"race {self.name!r} was won by {who!r}, which is no part of it any more: keep the parts of a"
                " race that instances may have run"
            )
        self._cancel_losers()  # a kill came before they were
        if record.status == "failed":
            raise part.error(record)
        return who, part.answer(record)

    def _cancel_losers(self) -> None:
        at_ms = self.run.host.clock.wall_ms()
        for part in self.parts.values():
            if part.record is not None and not part.record.finished:
                self.run.journal.end(part.record, "cancelled", at_ms=at_ms, error=None)
            part.lost()

    def _decided(self, race: int) -> str | None:
        """Return the first part that has finished already, or gets an event that is there already."""
        for who, part in self.parts.items():
            if _has_finished(part):
                return who
        for who, part in self.parts.items():
            part.queue(race)
            if _has_finished(part):
                return who
        return None

    async def perform(self) -> tuple[str, T]:
        """Let the parts run until one has finished; record which."""
        run = self.run
        if self.record is not None and self.record.status == "cancelled":
            await run.until_cancelled()
        decided: list[tuple[str, outcome.Outcome[Any]]] = []
        step = self.record or run.journal.wait(
            "race", self.name, self.count, at_ms=run.host.clock.wall_ms(), wake=None
        )
        winner = self._decided(step.seq)
        if winner is not None:
            run.journal.complete(step, msgspec.json.encode(winner).decode(), at_ms=run.host.clock.wall_ms())
            await run.recorded()
            return self.answer(step)

        async def compete(who: str, part: StepCall[T]) -> None:
            result = await _settled(part)
            if not decided:
                decided.append((who, result))
                run.journal.complete(step, msgspec.json.encode(who).decode(), at_ms=run.host.clock.wall_ms())
                nursery.cancel_scope.cancel()

        try:
            async with trio.open_nursery(strict_exception_groups=True) as nursery:
                for who, part in self.parts.items():
                    nursery.start_soon(compete, who, part)
        except BaseException as error:  # noqa: BLE001 - looked at, and raised again
            if step.status == "waiting" and run.stopping in ENDING and _is_cancellation(error):
                run.journal.end(step, "cancelled", at_ms=run.host.clock.wall_ms(), error=None)
            raise _only(error) from None
        await run.recorded()
        who, result = decided[0]
        value: T = result.unwrap()
        return who, value


def _has_finished(part: StepCall[Any]) -> bool:
    return part.record is not None and part.record.status in ("completed", "failed")


class DeadlineCall(StepCall[bool], AbstractAsyncContextManager["DeadlineCall"]):
    """`step.move_on_after`: a deadline that survives restarts; `expired` says what it decided."""

    __slots__ = ("_scope", "_step", "_timer", "_token", "expired", "seconds")

    kind = "deadline"

    def __init__(self, run: Run, name: str, seconds: float, *, depth: int) -> None:
        super().__init__(run, name, depth=depth + 1)
        self.seconds = seconds
        self.expired = False
        self.coder = run.host.codec.coder(bool)
        self._scope = trio.CancelScope()
        self._step: Step | None = None
        self._timer: TimerHandle | None = None

    def __await__(self) -> Generator[Any, Any, bool]:
        raise WorkflowCodeError(f"write `async with step.move_on_after({self.name!r}, ...)`, without await")

    async def __aenter__(self) -> Self:
        run = self.run
        self.awaited = True
        await run.admit(recorded=self.record is not None)
        clock = run.host.clock
        step = self.record
        if step is None:
            step = run.journal.wait(
                "deadline",
                self.name,
                self.count,
                at_ms=clock.wall_ms(),
                wake=deadline_in(clock, self.seconds),
            )
        self._step = step
        self._token = EXPIRED.set(EXPIRED.get())
        if step.status == "completed":
            if self.answer(step):
                self._expire_again()
        elif step.wake is not None:
            self._timer = run.host.timers.at(step.wake, self._strike)
        self._scope.__enter__()
        return self

    def _strike(self) -> None:
        self.expired = True
        self._scope.cancel()

    def _expire_again(self) -> None:
        """Strike, as in an earlier run, where the body asks for what it did not get then."""
        self.expired = True
        EXPIRED.set((*EXPIRED.get(), self._scope))
        self._timer = self.run.host.timers.at(deadline_in(self.run.host.clock, 0.1), self._scope.cancel)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        run = self.run
        step = self._step
        assert step is not None
        EXPIRED.reset(self._token)
        if self._timer is not None:
            self._timer.cancel()
        try:
            swallowed = bool(self._scope.__exit__(kind, error, traceback))
        finally:
            run.open_calls.pop(self, None)
        if step.status != "waiting":
            return swallowed
        if run.stopping is None:
            stored = "true" if self._scope.cancelled_caught else "false"
            run.journal.complete(step, stored, at_ms=run.host.clock.wall_ms())
            self.expired = self._scope.cancelled_caught
            if error is None or swallowed:
                await run.recorded()
        return swallowed
