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

import sys
import warnings
from collections.abc import Callable, Generator
from types import FunctionType
from typing import Any, ClassVar, Final, TypeVar, cast

import trio

from perdure.actors.attempt import Attempt
from perdure.actors.callee import Callee, callee_of
from perdure.actors.calls import StepCall
from perdure.actors.context import CURRENT
from perdure.actors.host import deadline_in, remaining_ms
from perdure.actors.identity import keyed
from perdure.actors.retry import DEFAULT_CONFIG, StepConfig, backoff_delay_s, base_delay_s, config_json
from perdure.actors.run import ENDING, INTERRUPTING, Run
from perdure.actors.step_stream import StreamCoder, is_streamed, stream_of
from perdure.errors import (
    DecodingError,
    DivergenceError,
    EncodingError,
    InvalidArgumentError,
    LimitExceededError,
    NonRetryableError,
    PerdureWarning,
    RetryDelayError,
    StepLostError,
    StepTimeoutError,
    WorkflowCodeError,
)
from perdure.limits import INPUT_BYTES_COMPARED_MAX, INPUT_BYTES_INLINE_MAX
from perdure.storage.codec import Coder
from perdure.storage.codec_describe import digest_of
from perdure.storage.failure import describe_failure
from perdure.storage.journal import Step
from perdure.storage.records import AttemptOutcome, LongText, StepKind, Stored
from perdure.storage.streams import Extent

T = TypeVar("T")

UNCHANGEABLE: Final = frozenset((str, int, float, bool, bytes, type(None)))
"""Classes of arguments that no step can change in place."""

FINAL_ERRORS: Final = (NonRetryableError, InvalidArgumentError, WorkflowCodeError, RetryDelayError)
"""Errors that another attempt would only repeat."""


CALLEES_MAX: Final = 256
"""Functions that a run remembers; each is kept alive by that, with what it closes over."""

NO_INPUT: Final = (None, None)

Known = tuple[Callee, Coder]
"""What a step function is like, and what stores its results."""


class _Again:
    """What an attempt answers when there will be another."""


AGAIN: Final = _Again()


class DoCall(StepCall[T]):
    """A call of `step.do`. `known` is what `known_of` says of `fn`."""

    __slots__ = ("args", "callee", "config", "digest", "fn", "input")

    kind: ClassVar[StepKind] = "do"
    detail: ClassVar[str | None] = None

    def __init__(  # noqa: PLR0917 - keywords would cost every step a dictionary
        self,
        run: Run,
        name: str,
        fn: Callable[..., Any],
        args: tuple[Any, ...],
        known: Known,
        config: StepConfig,
        key: object,
        depth: int,
    ) -> None:
        # What StepCall.__init__ does, written out: a replay does little else, and calls are half of its time.
        if run.over or CURRENT.get(None) is not None:
            run.require_call(name)
        self.run = run
        self.awaited = False
        self.callee = callee = known[0]
        self.coder = known[1]
        self.name = full = name if key is None else keyed(name, key)
        self.count = count = run.names.claim_full("do", full, name, callee.identity)
        self.record = record = run.journal.unasked.pop(("do", full, count), None)
        frame = sys._getframe(depth)  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]  # for law 8, as in caller()
        self.where = frame.f_code, frame.f_lasti
        if record is None:
            self._refuse_other_kind()
        run.open_calls[self] = None
        self.fn = fn
        self.args = args
        self.config = config
        self.input, self.digest = (
            run.describe(args, INPUT_BYTES_INLINE_MAX, INPUT_BYTES_COMPARED_MAX) if args else NO_INPUT
        )

    def give(self, args: tuple[Any, ...]) -> None:
        """Set the arguments, where they were not known when the call was made."""
        self.args = args
        self.input, self.digest = self.run.describe(args, INPUT_BYTES_INLINE_MAX, INPUT_BYTES_COMPARED_MAX)

    def adopt(self, former: tuple[str, ...]) -> None:
        """Let what is recorded under a former name of the step answer, where its own has no record."""
        run = self.run
        run.names.retire(former, self.name)
        for name in former if self.record is None else ():
            self.record = run.journal.take("do", name, self.count)
            if self.record is not None:
                return

    def __await__(self) -> Generator[Any, Any, T]:
        """Look at the arguments first; a part of a decided race is not awaited, and may differ (law 11)."""
        record = self.record
        if record is not None:
            run = self.run
            if record.fingerprint != (self.digest or self.input):
                self._refuse_changed_arguments()
            if record.status == "completed" and not self.awaited and run.stopping is None:
                self.awaited = True
                run.open_calls.pop(self, None)
                stored = record.output
                try:
                    return self.answer(record) if stored is None else self.coder.decode(stored)  # type: ignore[union-attr]  # a do call always has one
                except DecodingError:
                    if self.config.sensitive not in ("output", "both"):
                        raise
                raise DecodingError(  # out here: an error keeps the one that was being handled
                    f"the recorded result of step {self.name!r} does not fit its annotation any more"
                    " (sensitive, so not shown)"
                )
        return (yield from super().__await__())

    def answer(self, step: Step) -> T:
        """Return what a completed step answers; its stream, where its function yields one."""
        if is_streamed(step):
            stream: Any = stream_of(self.run, step, self.coder)
            value: T = stream
            return value
        return super().answer(step)

    async def perform(self) -> T:
        """Attempt until one attempt succeeds or the last one has failed."""
        step = self.record
        if step is not None:
            step = await self._resume(step)
            if step.status == "failed":
                raise self.error(step)
        while True:
            if self.run.held:
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
        if step.wake is not None and remaining_ms(self.run.host.clock, step.wake) <= 0:
            return  # it has been waited for: parked again, the instance could leave memory again
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
            detail=self.detail,
            sensitive=config.sensitive,
        )

    # -- one attempt -----------------------------------------------------------------------

    new_attempt: ClassVar[Any] = (
        Attempt  # what a rollback replaces; a method here would cost each step a call
    )

    async def _attempt(self, step: Step) -> T | _Again:
        run = self.run
        run.attempt_begins()
        try:
            try:
                await run.host.gate.passed(run.file)
                attempt: Attempt = self.new_attempt(run, step, self.config)
                if self.callee.never_waits:
                    value = attempt.run_now(self.fn, self.args)
                else:
                    value = await attempt.run(self.callee, self.fn, self.args)
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
                assert self.coder is not None
                try:
                    stored, again = self.coder.record_result(value)
                except InvalidArgumentError as error:
                    again = await self._failed(step, self._withheld(error))
                else:
                    self._succeeded(step, stored)
                    if run.stopping in INTERRUPTING:  # a plain function has returned: it is not to run again
                        await trio.lowlevel.checkpoint_if_cancelled()
        finally:
            run.attempt_ends()
        if again is AGAIN:
            return AGAIN
        if run.replays_always:
            await run.recorded()
        if step.status == "failed":
            raise self.error(step)
        return again

    # -- after an attempt ------------------------------------------------------------------

    def _succeeded(self, step: Step, stored: Stored | LongText | Extent) -> None:
        self.run.journal.complete(step, stored, at_ms=self.run.host.clock.wall_ms())
        if self.args and not UNCHANGEABLE.issuperset(map(type, self.args)):
            self._report_mutated_arguments()

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
                context = self.new_attempt(run, step, self.config).context
                with trio.CancelScope(shield=True):  # how the attempt ended is still to be recorded
                    base_s = await base_delay_s(
                        retries, context, error, timeout_s=run.host.limits.delay_function_timeout_s
                    )
            except RetryDelayError as broken:
                final = broken
            else:
                delay_s = backoff_delay_s(retries, step.attempt, base_s, run.host.clock.random)
                modifiers = run.host.modifiers
                if modifiers is not None and modifiers.skips_delay(run.key, step.name):
                    delay_s = 0.0
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
        if self.config.sensitive not in ("output", "both") or isinstance(error, LimitExceededError):
            return error
        return EncodingError(  # without its path, which has keys of the value
            f"the result of step {self.name!r} cannot be stored as it is (sensitive, so not shown)"
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
        if run.stopping in INTERRUPTING:
            if step.status == "running":
                self._interrupted(step, at_ms)
        elif run.stopping in ENDING:
            run.journal.end(step, "cancelled", at_ms=at_ms, error=None)

    def _interrupted(self, step: Step, at_ms: int) -> None:
        run = self.run
        if self.config.retries.limit == 0:
            error = StepLostError(
                f"attempt {step.attempt} of step {self.name!r} was interrupted by a {run.stopping}, and"
                " limit=0 allows no other",
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

    def _refuse_changed_arguments(self) -> None:
        """Report them; where the policy makes that an error, nobody waits for this call any more."""
        try:
            self._report_changed_arguments()
        except DivergenceError:
            self.run.open_calls.pop(self, None)
            raise

    def _report_changed_arguments(self) -> None:
        recorded = None if self.record is None else self.record.fingerprint
        then, now = (f"input digest {_digest(each)}" for each in (recorded, self.digest or self.input))
        if self.config.sensitive in ("input", "both"):  # what has few values is found by trying its digest
            then, now = "an input that is sensitive, so not shown", "another one"
        self.run.diverged(
            "arguments",
            DivergenceError(
                f"step {self.name!r} is recorded with other arguments than run() gives it now; its recorded"
                " result is used",
                recorded=then,
                requested=now,
            ),
            serious=False,
        )

    def _report_mutated_arguments(self) -> None:
        now = self.run.describe(self.args, INPUT_BYTES_INLINE_MAX, INPUT_BYTES_COMPARED_MAX)
        if now != (self.input, self.digest):
            text = (
                f"step {self.name!r} of {self.run.key} changed an argument in place; no replay will repeat"
                " that: return the new value from the step instead"
            )
            self.run.log.warning("%s", text)
            warnings.warn(text, PerdureWarning, stacklevel=2)


def known_of(run: Run, fn: Callable[..., Any], returns: object) -> Known:
    """Return what is known of a step function; `returns` takes the place of its annotation.

    Raises `InvalidArgumentError` for what cannot be called, `EncodingError` for what cannot be restored.
    """
    if returns is None and type(fn) is FunctionType:
        known = run.callees.get(fn)
        if known is not None:
            return known
    callee = callee_of(fn, run.library)
    if callee.streams or returns is not None:
        callee = callee.returning(returns)
    if callee.streams:
        coder: Coder = StreamCoder(run.host.codec, callee.items)
    else:
        coder = run.host.codec.coder(callee.returns if returns is None else returns)
        if run.bounds is not None:
            coder = run.bounds.coder(run.host.codec, coder)
    if returns is None and type(fn) is FunctionType:
        if len(run.callees) >= CALLEES_MAX:  # lambdas, made anew for each call
            run.callees.clear()
        run.callees[fn] = callee, coder
    return callee, coder


def _digest(fingerprint: str | None) -> str | None:
    """Return a fingerprint as a digest: its text could be a sensitive value."""
    if fingerprint is None or not fingerprint.startswith("["):
        return fingerprint
    return digest_of(fingerprint.encode())


def _is_group_of_final(error: BaseException) -> bool:
    """Whether a group, as a nursery in a step function raises it, holds an error that ends retries."""
    if not isinstance(error, BaseExceptionGroup):
        return False
    group = cast("BaseExceptionGroup[BaseException]", error)
    return group.subgroup(FINAL_ERRORS) is not None
