"""The calls that wait: `sleep`, `sleep_until`, `wait_for_event`.

A waiting call is one row with a deadline; while it waits the instance may leave memory. The
first run, a run that goes on after a crash and a replay all take the same path: look at the row,
wait for the rest.

Invariants:
    A finished wait is never waited for again, whatever the clock says since (law 7).
    An event that came before the deadline beats the timeout (law 6).
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Generic, TypeVar

import msgspec
import trio

from perdure.actors.calls import StepCall
from perdure.actors.host import deadline_in, remaining_ms
from perdure.actors.mailbox import Wait, delivered, wait_detail
from perdure.actors.run import ENDING, Run
from perdure.errors import EventTimeoutError
from perdure.storage.failure import describe_failure
from perdure.storage.journal import Step
from perdure.storage.lifecycle import read_state
from perdure.storage.records import Deadline, Stored

T = TypeVar("T")


class StepEvent(msgspec.Struct, Generic[T], frozen=True, kw_only=True):
    """What `wait_for_event` returns: the event's payload, when it was received, its type."""

    payload: T
    timestamp: datetime
    type: str


class SleepCall(StepCall[None]):
    """A call of `step.sleep` or `step.sleep_until`."""

    __slots__ = ("seconds", "until_ms")

    kind = "sleep"

    def __init__(
        self, run: Run, name: str, *, seconds: float | None, until_ms: int | None, depth: int
    ) -> None:
        super().__init__(run, name, depth=depth + 1)
        self.seconds = seconds
        self.until_ms = until_ms

    def answer(self, step: Step) -> None:
        """Answer nothing: a sleep has no result."""
        del step

    async def perform(self) -> None:
        """Wait for what is left of it."""
        run = self.run
        step = self.record
        if step is None:
            step = run.journal.wait(
                "sleep",
                self.name,
                self.count,
                at_ms=run.host.clock.wall_ms(),
                wake=self._wake(),
                detail=self._detail(),
            )
        elif step.status == "cancelled":
            await run.until_cancelled()
        assert step.wake is not None
        try:
            if remaining_ms(run.host.clock, step.wake) > 0:
                await run.park_until(step.wake, trio.Event())
        except trio.Cancelled:
            if run.stopping in ENDING:
                run.journal.end(step, "cancelled", at_ms=run.host.clock.wall_ms(), error=None)
            raise
        run.journal.complete(step, None, at_ms=run.host.clock.wall_ms())
        await run.recorded()

    def _wake(self) -> Deadline:
        modifiers = self.run.host.modifiers
        if modifiers is not None and modifiers.skips_sleep(self.run.key, self.name):
            return deadline_in(self.run.host.clock, 0)
        if self.until_ms is not None:
            return Deadline(wall_ms=self.until_ms)
        assert self.seconds is not None
        return deadline_in(self.run.host.clock, self.seconds)

    def _detail(self) -> str:
        """Return what was asked for. `until`: a pause must not move what follows the wall clock."""
        if self.until_ms is not None:
            return '{"until":1}'
        return f'{{"seconds":{self.seconds}}}'


class EventCall(StepCall[StepEvent[T]]):
    """A call of `step.wait_for_event`."""

    __slots__ = ("queued", "race", "timeout_s", "type", "where_decoded")

    kind = "event"

    def __init__(
        self,
        run: Run,
        name: str,
        *,
        type_: str,
        timeout_s: float | None,
        where: Callable[[Any], bool] | None,
        returns: object,
        depth: int,
    ) -> None:
        coder = run.host.codec.coder(returns)  # refuses first
        super().__init__(run, name, depth=depth + 1)
        self.type = type_
        self.timeout_s = timeout_s
        self.where_decoded = where
        self.queued: Wait | None = None
        self.race: int | None = None
        self.coder = coder

    def answer(self, step: Step) -> StepEvent[T]:
        """Return the event that was delivered."""
        assert self.coder is not None
        detail = delivered(step)
        received = datetime.fromtimestamp((detail.received_at_ms or 0) / 1000, UTC)
        payload: T = self.coder.decode(self.run.journal.output(step))
        return StepEvent(payload=payload, timestamp=received, type=detail.type)

    async def perform(self) -> StepEvent[T]:
        """Wait for an event or for the deadline."""
        run = self.run
        step = self.record or self._start()
        match step.status:
            case "completed":
                return self.answer(step)
            case "failed":
                raise self.error(step)
            case "cancelled":
                await run.until_cancelled()
            case _:
                pass
        wait = self.queued or Wait(step, self._where())
        await self._wait(wait)
        if wait.step.status == "cancelled":  # a rival has just won the race
            await run.until_cancelled()
        if wait.error is not None:
            self._fail(step, wait.error)
        elif step.status == "waiting":
            self._fail(step, self._timed_out())
        await run.recorded()
        if step.error is not None:
            raise self.error(step)
        return self.answer(step)

    def queue(self, race: int) -> None:
        """Ask for an event in the order in which the parts of a race stand (law 6)."""
        self.race = race
        self.record = self.record or self._start()
        if self.record.status == "waiting":
            self.queued = Wait(self.record, self._where())
            self.run.mailbox.register(self.queued)

    def _start(self) -> Step:
        run = self.run
        wake = None if self.timeout_s is None else deadline_in(run.host.clock, self.timeout_s)
        modifiers = run.host.modifiers
        if modifiers is not None:
            for name, payload in modifiers.events(run.key, self.type):
                token = f"{name}-{read_state(run.file).generation}"  # it comes again after a restart
                run.mailbox.receive(self.type, payload, token=token)
            if modifiers.times_out(run.key, self.name):
                wake = Deadline(wall_ms=0)  # before whatever has come
        detail = wait_detail(self.type, where=self.where_decoded is not None, race=self.race)
        return run.journal.wait(
            "event", self.name, self.count, at_ms=run.host.clock.wall_ms(), wake=wake, detail=detail
        )

    async def _wait(self, wait: Wait) -> None:
        """Wait until an event has settled the step or its time is up."""
        run = self.run
        step = wait.step
        run.mailbox.register(wait)
        try:
            if not wait.arrived.is_set() and not self._late(step):
                await run.park_until(step.wake, wait.arrived)
        except trio.Cancelled:
            if run.stopping in ENDING and step.status == "waiting":
                run.journal.end(step, "cancelled", at_ms=run.host.clock.wall_ms(), error=None)
            raise
        finally:
            run.mailbox.withdraw(wait)

    def _late(self, step: Step) -> bool:
        return step.wake is not None and remaining_ms(self.run.host.clock, step.wake) <= 0

    def _where(self) -> Callable[[Stored], bool] | None:
        predicate = self.where_decoded
        if predicate is None:
            return None
        coder = self.coder
        assert coder is not None
        return lambda stored: bool(predicate(coder.decode(stored)))

    def _timed_out(self) -> EventTimeoutError:
        when = "before its timeout was forced" if self.timeout_s is None else f"within {self.timeout_s:g} s"
        return EventTimeoutError(
            f"no event of type {self.type!r} came {when} for step {self.name!r}", step=self.name
        )

    def _fail(self, step: Step, error: BaseException) -> None:
        error.add_note(f"in step {self.name!r} of {self.run.key}")
        text = describe_failure(error, self.run.host.codec)
        self.run.journal.end(step, "failed", at_ms=self.run.host.clock.wall_ms(), error=text)
