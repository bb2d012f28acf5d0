"""The calls that are over at once: `now`, `random`, `uuid`, and `transaction`.

They touch nothing outside the instance's file, so they need no gate and no attempt on record
before them: start and end are one commit.

Invariants:
    A value is drawn once and answers every replay.
    A transaction's writes and its step's record are committed together or not at all.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from perdure.actors.calls import StepCall
from perdure.actors.run import Run
from perdure.limits import INPUT_BYTES_COMPARED_MAX, INPUT_BYTES_INLINE_MAX
from perdure.storage.codec import return_annotation
from perdure.storage.failure import describe_failure
from perdure.storage.sql import Sql

T = TypeVar("T")


class ValueCall(StepCall[T]):
    """A call of `step.now`, `step.random` or `step.uuid`."""

    __slots__ = ("draw",)

    kind = "value"

    def __init__(
        self, run: Run, name: str, draw: Callable[[], T], returns: object, *, key: object, depth: int
    ) -> None:
        super().__init__(run, name, key, depth=depth + 1)
        self.draw = draw
        self.coder = run.host.codec.coder(returns)

    async def perform(self) -> T:
        """Draw the value and record it."""
        run = self.run
        assert self.coder is not None
        stored, decoded = self.coder.record(self.draw())
        run.journal.add_finished(
            "value", self.name, self.count, at_ms=run.host.clock.wall_ms(), output=stored
        )
        await run.recorded()
        value: T = decoded
        return value


class TransactionCall(StepCall[T]):
    """A call of `step.transaction`: a synchronous function over the instance's own tables."""

    __slots__ = ("args", "fn")

    kind = "transaction"

    def __init__(
        self,
        run: Run,
        name: str,
        fn: Callable[..., T],
        args: tuple[Any, ...],
        *,
        returns: object,
        key: object,
        function: object,
        depth: int,
    ) -> None:
        coder = run.host.codec.coder(return_annotation(fn) if returns is None else returns)  # may refuse
        if run.bounds is not None:
            coder = run.bounds.coder(run.host.codec, coder)
        super().__init__(run, name, key, function, depth=depth + 1)
        self.fn = fn
        self.args = args
        self.coder = coder

    async def perform(self) -> T:
        """Run the function and record the step in one transaction."""
        run = self.run
        assert self.coder is not None
        if self.record is not None:
            raise self.error(self.record)
        started_ms = run.host.clock.wall_ms()
        run.host.gate.touch(run.file)
        sql = Sql(run.file)
        text, digest = (
            run.host.codec.describe_input(
                self.args, bytes_max=INPUT_BYTES_INLINE_MAX, digest_above=INPUT_BYTES_COMPARED_MAX
            )
            if self.args
            else (None, None)
        )
        try:
            with sql.savepoint():
                stored, decoded = self.coder.record(self.fn(sql, *self.args))
                run.journal.add_finished(
                    "transaction",
                    self.name,
                    self.count,
                    at_ms=run.host.clock.wall_ms(),
                    started_at_ms=started_ms,
                    attempts=1,
                    output=stored,
                    input_text=text,
                    input_digest=digest,
                )
        except Exception as error:
            if run.file.failure is not None:
                raise run.file.failure from error
            error.add_note(f"in transaction {self.name!r} of {run.key}")
            step = run.journal.start(
                "transaction", self.name, self.count, at_ms=started_ms, input_text=text, input_digest=digest
            )
            run.journal.end(
                step, "failed", at_ms=run.host.clock.wall_ms(), error=describe_failure(error, run.host.codec)
            )
            await run.recorded()
            raise self.error(step).with_traceback(error.__traceback__) from None
        await run.recorded()
        value: T = decoded
        return value
