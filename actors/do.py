"""`step.do`: one named unit of work, attempted until it has succeeded once.

The life of an attempt: it is recorded (law 4); the gate opens (law 2); the function runs under
its timeout; what it returned is encoded, recorded, and handed to `run()` in decoded form (law 1).
The finish of one step and the start of the next fall into one commit, because nothing between
them awaits.

Invariants:
    No function runs whose attempt is not on record.
    The next attempt starts after the one before has ended, however it ended (law 5).
    An error reaches `run()` as it was stored, on the first run as on every replay.
"""

from __future__ import annotations

import functools
import time
import warnings
from collections.abc import Callable, Generator
from typing import Any, Final, TypeVar, cast

import trio

from perdure.actors.callee import Callee
from perdure.actors.calls import StepCall
from perdure.actors.context import CURRENT, StepContext, StepName
from perdure.actors.host import deadline_in
from perdure.actors.retry import DEFAULT_CONFIG, StepConfig, backoff_delay_s, base_delay_s, config_json
from perdure.actors.run import ENDING, Run
from perdure.errors import (
    DivergenceError,
    EncodingError,
    InvalidArgumentError,
    NonRetryableError,
    PerdureWarning,
    RetryDelayError,
    StepLostError,
    StepTimeoutError,
    WorkflowCodeError,
)
from perdure.limits import INPUT_BYTES_INLINE_MAX
from perdure.storage.failure import describe_failure
from perdure.storage.journal import Step
from perdure.storage.records import AttemptOutcome

T = TypeVar("T")

UNCHANGEABLE: Final = frozenset((str, int, float, bool, bytes, type(None)))
"""Classes of arguments that no step can change in place."""

FINAL_ERRORS: Final = (NonRetryableError, InvalidArgumentError, WorkflowCodeError, RetryDelayError)
"""Errors that another attempt would only repeat."""


class _Again:
    """What an attempt answers when there will be another."""


AGAIN: Final = _Again()


class DoCall(StepCall[T]):
    """A call of `step.do`."""

    __slots__ = ("args", "callee", "config", "digest", "fn", "input")

    def __init__(
        self,
        run: Run,
        name: str,
        fn: Callable[..., Any],
        args: tuple[Any, ...],
        *,
        callee: Callee,
        config: StepConfig,
        returns: object,
        key: object,
        depth: int,
    ) -> None:
        coder = run.host.codec.coder(callee.returns if returns is None else returns)  # refuses first
        super().__init__(run, "do", name, key=key, function=callee.identity, depth=depth + 1)
        self.fn = fn
        self.args = args
        self.callee = callee
        self.config = config
        self.coder = coder
        self.input: str | None = None
        self.digest: str | None = None
        if args:
            self.input, self.digest = run.host.codec.describe_input(args, bytes_max=INPUT_BYTES_INLINE_MAX)

    def __await__(self) -> Generator[Any, Any, T]:
        """Look at the arguments first; a part of a decided race is not awaited, and may differ (law 11)."""
        record = self.record
        if self.args and record is not None and record.input_digest not in (None, self.digest):
            try:
                self._report_changed_arguments()
            except DivergenceError:
                self.run.open_calls.pop(self, None)
                raise
        return super().__await__()

    async def perform(self) -> T:
        """Attempt until one attempt succeeds or the last one has failed."""
        step = self.record
        if step is not None:
            step = await self._resume(step)
            if step.status == "failed":
                raise self.error(step)
        while True:
            await self.run.may_start()
            step = self._begin(step)
            value = await self._attempt(step)
            if not isinstance(value, _Again):
                return value
            await self._rest(step)

    # -- before an attempt -----------------------------------------------------------------

    async def _resume(self, step: Step) -> Step:
        """Bring a recorded, unfinished step to where its next attempt may start, or to its end."""
        match step.status:
            case "completed" | "failed":
                pass
            case "cancelled":
                await self.run.until_cancelled()
            case "running":
                self._lost(step)
            case "waiting":
                await self._rest(step)
        return step

    async def _rest(self, step: Step) -> None:
        """Wait, parked, until the next attempt is due."""
        try:
            await self.run.park_until(step.wake, trio.Event())
        except trio.Cancelled:
            self._cancelled(step)
            raise

    def _lost(self, step: Step) -> None:
        """Record that the process died in this attempt: it counts, and the next starts at once (law 4)."""
        at_ms = self.run.host.clock.wall_ms()
        if step.counted > self.config.retries.limit:
            error = StepLostError(
                f"the process died during attempt {step.attempt} of step {self.name!r}, the last one allowed;"
                " nobody knows how far it got. Allow retries for steps that may run again",
                step=self.name,
                attempt=step.attempt,
            )
            self.run.journal.end(step, "failed", at_ms=at_ms, error=self._describe(step, error))
        else:
            self.run.journal.attempt_ended(step, "lost", at_ms=None, error=None)

    def _begin(self, step: Step | None) -> Step:
        at_ms = self.run.host.clock.wall_ms()
        if step is not None:
            self.run.journal.start_again(step, at_ms=at_ms, counted=step.counted + 1)
            return step
        config = self.config
        return self.run.journal.start(
            "do",
            self.name,
            self.count,
            at_ms=at_ms,
            input_text=self.input,
            input_digest=self.digest,
            config=None if config is DEFAULT_CONFIG else config_json(config),
            sensitive=config.sensitive,
        )

    # -- one attempt -----------------------------------------------------------------------

    async def _attempt(self, step: Step) -> T | _Again:
        run = self.run
        run.attempt_begins()
        try:
            try:
                await run.host.gate.passed(run.file)
                value = await self._call(step)
            except trio.Cancelled:
                self._cancelled(step)
                raise
            except (Exception, SystemExit) as error:
                if error is run.file.failure:
                    raise
                again = await self._failed(step, error)
            except BaseExceptionGroup as group:  # of a nursery in the step function
                if group.subgroup((trio.Cancelled, KeyboardInterrupt)) is None:
                    again = await self._failed(step, group)
                else:
                    self._cancelled(step)
                    raise
            else:
                again = await self._succeeded(step, value)
        finally:
            run.attempt_ends()
        if again is AGAIN:
            return AGAIN
        await run.recorded()
        if step.status == "failed":
            raise self.error(step)
        return again

    async def _call(self, step: Step) -> Any:
        """Run the function once, under its timeout."""
        timeout_s = self.config.timeout_s
        context = self._context(step, timeout_s)
        args, keywords = self.callee.arguments(self.args, context)
        fn = functools.partial(self.fn, **keywords) if keywords else self.fn
        token = CURRENT.set(context)
        value: Any = None
        try:
            with trio.CancelScope(deadline=trio.current_time() + timeout_s) as scope:
                if self.callee.kind == "plain":
                    value = await self._call_plain(fn, args, context, timeout_s)
                else:
                    value = await self.run.host.functions.call(self.callee.kind, fn, args)
        finally:
            CURRENT.reset(token)
        if scope.cancelled_caught:
            raise StepTimeoutError(
                f"attempt {step.attempt} of step {self.name!r} took longer than its timeout of"
                f" {timeout_s:g} s",
                step=self.name,
                attempt=step.attempt,
            )
        return value

    async def _call_plain(
        self, fn: Callable[..., Any], args: tuple[Any, ...], context: StepContext, timeout_s: float
    ) -> Any:
        """Run a function in a thread. Nothing can stop it: it is told, and waited for (law 5)."""

        def overdue() -> None:
            context.log.warning(
                "the plain function of step %r is overdue: it has run for longer than its timeout of %g s"
                " and cannot be stopped; use perdure.process_step to have it killed in time",
                self.name,
                timeout_s,
            )
            self.run.overdue_begins(self.name)

        timer = self.run.host.timers.at(deadline_in(self.run.host.clock, timeout_s), overdue)
        try:
            return await self.run.host.functions.call(
                "plain", fn, args, library=self.run.library, on_cancel=context.cancel
            )
        finally:
            timer.cancel()
            self.run.overdue_ends(self.name)

    def _context(self, step: Step, timeout_s: float) -> StepContext:
        run = self.run
        return StepContext(
            StepName(self.name, self.count),
            attempt=step.attempt,
            config=self.config,
            idempotency_key=f"{run.idempotency_prefix}-{step.seq}",
            instance=run.instance,
            deadline_s=time.monotonic() + timeout_s,
            log=run.log,
        )

    # -- after an attempt ------------------------------------------------------------------

    async def _succeeded(self, step: Step, value: Any) -> T | _Again:
        assert self.coder is not None
        try:
            stored, decoded = self.coder.record(value)
        except InvalidArgumentError as error:
            return await self._failed(step, self._withheld(error))
        self.run.journal.complete(step, stored, at_ms=self.run.host.clock.wall_ms())
        if not UNCHANGEABLE.issuperset(map(type, self.args)):
            self._report_mutated_arguments()
        result: T = decoded
        return result

    async def _failed(self, step: Step, error: BaseException) -> _Again | Any:
        """Record a failed attempt: the step ends with it, or waits for the next one."""
        run = self.run
        retries = self.config.retries
        final: BaseException = error
        if (
            step.counted <= retries.limit
            and not isinstance(error, FINAL_ERRORS)
            and not _is_group_of_final(error)
        ):
            base_s = 0.0
            try:
                context = self._context(step, 0.0)
                with trio.CancelScope(shield=True):  # how the attempt ended is still to be recorded
                    base_s = await base_delay_s(
                        retries, context, error, timeout_s=run.host.limits.delay_function_timeout_s
                    )
            except RetryDelayError as broken:
                final = broken
            else:
                delay_s = backoff_delay_s(retries, step.attempt, base_s, run.host.clock.random)
                outcome: AttemptOutcome = "timeout" if isinstance(error, StepTimeoutError) else "failed"
                text = self._describe(step, error)
                at_ms = run.host.clock.wall_ms()
                run.journal.attempt_ended(step, outcome, at_ms=at_ms, error=text)
                run.journal.retry_at(step, deadline_in(run.host.clock, delay_s), error=text)
                return AGAIN
        run.journal.end(step, "failed", at_ms=run.host.clock.wall_ms(), error=self._describe(step, final))
        return None

    def _withheld(self, error: InvalidArgumentError) -> InvalidArgumentError:
        """Return the error without the value it quotes, where that is sensitive."""
        if self.config.sensitive not in ("output", "both"):
            return error
        path = getattr(error, "path", "$")
        return EncodingError(
            f"the result of step {self.name!r} cannot be stored as it is (sensitive, so not shown)", path=path
        )

    def _cancelled(self, step: Step) -> None:
        """Record that the attempt was cancelled: by the user, or by a runtime that is ending."""
        run = self.run
        at_ms = run.host.clock.wall_ms()
        if (
            run.over
            or run.file.failure is not None
            or run.stopping == "broken"
            or step.status not in ("running", "waiting")
        ):
            return
        if run.stopping == "shutdown":
            if step.status == "running":
                self._interrupted(step, at_ms)
        elif run.stopping in ENDING:
            run.journal.end(step, "cancelled", at_ms=at_ms, error=None)

    def _interrupted(self, step: Step, at_ms: int) -> None:
        run = self.run
        if self.config.retries.limit == 0:
            error = StepLostError(
                f"attempt {step.attempt} of step {self.name!r} was interrupted by a shutdown, and limit=0"
                " allows no other",
                step=self.name,
                attempt=step.attempt,
            )
            run.journal.end(step, "failed", at_ms=at_ms, error=self._describe(step, error))
            return
        run.journal.attempt_ended(step, "interrupted", at_ms=at_ms, error=None)
        step.counted -= 1
        run.journal.retry_at(step, deadline_in(run.host.clock, 0), error=None)

    def _describe(self, step: Step, error: BaseException) -> str:
        note = f"in step {self.name!r}, attempt {step.attempt}, of {self.run.key}"
        if note not in getattr(error, "__notes__", ()):
            error.add_note(note)
        return describe_failure(error, self.run.host.codec)

    # -- reports ---------------------------------------------------------------------------

    def _report_changed_arguments(self) -> None:
        self.run.diverged(
            "arguments",
            DivergenceError(
                f"step {self.name!r} is recorded with other arguments than run() gives it now; its recorded"
                " result is used",
                recorded=f"input digest {self.record.input_digest if self.record else None}",
                requested=f"input digest {self.digest}",
            ),
            serious=False,
        )

    def _report_mutated_arguments(self) -> None:
        _, digest = self.run.host.codec.describe_input(self.args, bytes_max=INPUT_BYTES_INLINE_MAX)
        if digest != self.digest:
            text = (
                f"step {self.name!r} of {self.run.key} changed an argument in place; no replay will repeat"
                " that: return the new value from the step instead"
            )
            self.run.log.warning("%s", text)
            warnings.warn(text, PerdureWarning, stacklevel=2)


def _is_group_of_final(error: BaseException) -> bool:
    """Whether a group, as a nursery in a step function raises it, holds an error that ends retries."""
    if not isinstance(error, BaseExceptionGroup):
        return False
    group = cast("BaseExceptionGroup[BaseException]", error)
    return group.subgroup(FINAL_ERRORS) is not None
