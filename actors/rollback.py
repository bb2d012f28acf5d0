"""The rollback: when an instance is about to end without success, what its steps did is undone.

Each step that has a handler (`compensation.py`) and has started is compensated, in the reverse
order of the starts, by a durable step of its own: kind `rollback`, with attempts, retries and a
timeout. The first that fails for good ends the rollback. That one is under way stands in the
instance's own row before anything else happens, so it goes on wherever a process died.

A handler is a function of `run()`. Where this process has not called `run()` far enough to have them
all, `run()` is replayed once more for the handlers alone: what is recorded answers, any other call
waits for good, and as soon as no handler is missing the run is stopped.

Only the actor uses this. The rows are the journal's, and the instance's own row the lifecycle's.

Invariants:
    A handler runs only after every step of `run()` has ended (law 5), and no step starts after it.
    How the instance ends, and why, stands in its file before its first handler starts.
    A rollback that has begun ends as complete or as failed, or with a plain `terminate`.
"""

from __future__ import annotations

import sys
from typing import Any, Final, Literal, cast

import msgspec

from perdure.actors.attempt import Attempt
from perdure.actors.compensation import Registered, RollbackContext
from perdure.actors.do import NO_INPUT, DoCall
from perdure.actors.host import Host
from perdure.actors.outcome import Failed, Terminated
from perdure.actors.retry import DEFAULT_CONFIG, StepConfig, config_json
from perdure.actors.run import Identity, Run
from perdure.errors import DecodingError, InstanceTerminatedError, RollbackMissingError
from perdure.storage.codec import Coder
from perdure.storage.failure import describe_failure, failure_summary
from perdure.storage.journal import Journal, Step
from perdure.storage.lifecycle import Lifecycle
from perdure.storage.records import Key, RollbackState, decode_rollback

NONE: Final = msgspec.Raw(b"null")
ROLLING_BACK: Final = "rolling back"
"""Why an instance whose rollback is under way has not ended yet, for people."""


class _Nothing:
    """Records what a handler returns: nothing, so that it may return what it likes."""

    def record_result(self, value: Any) -> tuple[str, None]:
        """Return what is stored, and what is answered."""
        del value
        return "null", None


class RollbackAttempt(Attempt):
    """One attempt of a handler."""

    __slots__ = ("_call", "_told")

    def __init__(self, call: RollbackCall, run: Run, step: Step, config: StepConfig) -> None:
        super().__init__(run, step, config)
        self._call = call
        self._told: RollbackContext[Any] | None = None

    @property
    def context(self) -> RollbackContext[Any]:
        """What the handler is told. Made when first asked for."""
        if self._told is None:
            call = self._call
            self._context = self._told = RollbackContext[Any].of(
                super().context,
                error_text=call.cause,
                output=call.output,
                args=call.undo.args,
                step_key=f"{call.run.idempotency_prefix}-{call.undone.seq}",
                codec=call.run.host.codec,
            )
        return self._told


class RollbackCall(DoCall[None]):
    """The durable step that compensates the step `undone`; `record` is what the journal has of it."""

    __slots__ = ("cause", "output", "undo", "undone")

    kind = "rollback"

    def __init__(
        self, run: Run, undone: Step, record: Step | None, undo: Registered, *, cause: str, output: Any
    ) -> None:
        # Nothing of the super class: `run()` makes no such call, so there is no name to claim.
        self.run = run
        self.awaited = False
        self.callee = undo.handler
        self.coder = cast("Coder", _Nothing())
        self.name, self.count = undone.name, undone.count
        self.record = record
        frame = sys._getframe(0)  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]  # as every call has its place
        self.where = frame.f_code, frame.f_lasti
        self.fn = undo.fn
        self.args = ()
        self.config = undo.config
        self.input, self.digest = NO_INPUT
        self.undone = undone
        self.undo = undo
        self.cause = cause
        self.output = output
        run.open_calls[self] = None

    def new_attempt(self, run: Run, step: Step, config: StepConfig) -> Attempt:  # pyright: ignore[reportIncompatibleVariableOverride]  # there it is the class itself, for speed
        """Return the attempt that is about to start."""
        return RollbackAttempt(self, run, step, config)

    def _begin(self, step: Step | None) -> Step:
        if step is not None:
            return super()._begin(step)
        config = self.config
        self.record = self.run.journal.start(
            "rollback", self.name, self.count, at_ms=self.run.host.clock.wall_ms(),
            config=None if config is DEFAULT_CONFIG else config_json(config), detail=_of(self.undone),
        )  # fmt: skip
        return self.record

    def _describe(self, step: Step, error: BaseException) -> str:
        note = f"in the rollback of step {self.name!r}, attempt {step.attempt}, of {self.run.key}"
        if note not in getattr(error, "__notes__", ()):
            error.add_note(note)
        return describe_failure(error, self.run.host.codec)


class InstanceRollback:
    """The rollback of one instance. `handlers` are those that `run()` has registered in this process."""

    def __init__(self, key: Key, lifecycle: Lifecycle, journal: Journal, host: Host) -> None:
        self._key = key
        self._lifecycle = lifecycle
        self._journal = journal
        self._host = host
        self.handlers: dict[Identity, Registered] = {}

    # -- reading ---------------------------------------------------------------------------

    @property
    def state(self) -> RollbackState | None:
        """How it stands while it is under way; None where it is not."""
        state = decode_rollback(self._lifecycle.state.rollback)
        return state if state is not None and state.outcome == "running" else None

    @property
    def under_way(self) -> bool:
        """Whether the instance is being rolled back."""
        return self._lifecycle.state.rollback is not None and self.state is not None

    @property
    def is_needed(self) -> bool:
        """Whether a step that has started has a handler, or somebody has asked for it."""
        return self.under_way or bool(self._journal.compensated())

    def sought(self) -> set[Identity]:
        """Return the steps that are still to be undone and whose handlers this process does not have."""
        return {identity for step, _ in self._left() if (identity := _identity(step)) not in self.handlers}

    def _left(self) -> list[tuple[Step, Step | None]]:
        """Return the steps still to be undone, last first, each with what there is of its rollback."""
        steps = self._journal.compensated()
        begun = {_undone(step): step for step in steps if step.kind == "rollback"}
        found = [(step, begun.get(step.seq)) for step in reversed(steps) if _is_marked(step)]
        return [(step, record) for step, record in found if record is None or record.status != "completed"]

    # -- its course ------------------------------------------------------------------------

    def begin(self, ends: Literal["errored", "terminated"], cause: str) -> None:
        """Record that the instance will end so, once its steps are undone. The first reason counts."""
        if self.under_way:
            return
        self._lifecycle.set_rollback(RollbackState(outcome="running", error=NONE, ends=ends, cause=cause))
        self._lifecycle.set_status("running", reason=ROLLING_BACK)
        self._tell("instance rolling back", ": ".join(failure_summary(cause)))

    def terminate(self) -> None:
        """Begin because somebody asked for it."""
        self.begin("terminated", self._terminated("with a rollback"))

    async def undo(self, run: Run) -> str | None:
        """Undo step after step; return None, or the error of the handler that failed, as stored."""
        state = self.state
        assert state is not None
        cause = state.cause or "{}"
        for step, record in self._left():
            if record is not None and record.status == "failed":
                return record.error
            failed = await self._undo_one(run, step, record, cause)
            if failed is not None:
                return failed
        return None

    async def _undo_one(self, run: Run, step: Step, record: Step | None, cause: str) -> str | None:
        undo = self.handlers.get(_identity(step))
        if undo is None:
            return self._refuse(step, record, self._missing(step))
        output: Any = None
        if step.status == "completed" and undo.coder is not None:
            try:
                output = undo.coder.decode(self._journal.output(step))
            except Exception as unfit:
                if unfit is run.file.failure:
                    raise
                text = f"the recorded result of step {step.name!r} does not fit its annotation any more"
                withheld = DecodingError(f"{text} (sensitive, so not shown)")
                return self._refuse(step, record, withheld if undo.sensitive else unfit)
        call = RollbackCall(run, step, record, undo, cause=cause, output=output)
        try:
            await call
        except Exception:
            if call.record is None or call.record.status != "failed":
                raise
            return call.record.error
        return None

    def _missing(self, step: Step) -> RollbackMissingError:
        return RollbackMissingError(
            f"run() of {self._key} gives no rollback handler for step {step.name!r} (use {step.count}) any"
            " more, so nobody undid it, nor what came before it: the code has changed since it was recorded",
            step=step.name,
            attempt=0,
        )

    def _refuse(self, step: Step, record: Step | None, error: BaseException) -> str:
        """Record a rollback step as failed that cannot be begun."""
        at_ms = self._host.clock.wall_ms()
        text = describe_failure(error, self._host.codec)
        record = record or self._journal.start(
            "rollback", step.name, step.count, at_ms=at_ms, detail=_of(step)
        )
        self._journal.end(record, "failed", at_ms=at_ms, error=text)
        return text

    def finish(self, error: str | None) -> Failed | Terminated:
        """Record how it ended, and return how the instance ends."""
        state = self.state
        assert state is not None
        self._end(error)
        if state.ends == "terminated":
            return Terminated()
        return Failed(error=state.cause or "{}")

    def break_off(self) -> None:
        """Record that somebody has terminated the instance under its rollback, where that is so."""
        if self.under_way:
            self._end(self._terminated("while it was rolled back"))

    def _terminated(self, how: str) -> str:
        names = {"workflow": self._key.workflow, "instance_id": self._key.id}
        error = InstanceTerminatedError(f"{self._key} was terminated {how}", **names)
        return describe_failure(error, self._host.codec)

    def _end(self, error: str | None) -> None:
        self.handlers = {}
        if error is None:
            self._lifecycle.set_rollback(RollbackState(outcome="complete", error=NONE))
            self._tell("instance rolled back", None)
        else:
            self._lifecycle.set_rollback(RollbackState(outcome="failed", error=msgspec.Raw(error.encode())))
            self._tell("instance rollback failed", ": ".join(failure_summary(error)))

    def _tell(self, what: str, detail: str | None) -> None:
        self._lifecycle.command(
            what, at_ms=self._host.clock.wall_ms(), actor="runtime", token=None, detail=detail
        )


def _identity(step: Step) -> Identity:
    return step.kind, step.name, step.count


def _of(step: Step) -> str:
    """Return the detail of the rollback step that undoes `step`."""
    return f'{{"of":{step.seq}}}'


def _undone(step: Step) -> int:
    return int(msgspec.json.decode(step.detail or '{"of":0}')["of"])


def _is_marked(step: Step) -> bool:
    return step.kind != "rollback" and msgspec.json.decode(step.detail or "{}").get("rollback") is True
