"""The actor: one warm instance, from the opening of its file to the closing.

It calls `run()`, as often as replays ask for it, until the instance has ended or must wait
longer than it is worth keeping warm; it takes events and commands meanwhile. The game loop that
owns it decides when it lives; the actor decides what its file says.

Invariants:
    One actor per instance, one task per actor.
    How a stretch of life ended stands in the file before anybody is told.
    What a run returns or raises after it was stopped is discarded.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Literal

import trio

from perdure.actors.calling import Calls
from perdure.actors.host import Host, deadline_in, remaining_ms
from perdure.actors.mailbox import Mailbox
from perdure.actors.outcome import (
    Broken,
    Completed,
    Dead,
    Failed,
    Interrupted,
    Outcome,
    Parked,
    Paused,
    Terminated,
)
from perdure.actors.reports import QuietLog, Reports
from perdure.actors.run import Run
from perdure.actors.step import WorkflowStep
from perdure.actors.storage_api import ActorStorage
from perdure.actors.workflow import ActorContext, Definition, WorkflowEvent
from perdure.errors import (
    InstanceFinishedError,
    InvalidArgumentError,
    PerdureError,
    RuntimeClosedError,
    RunTimeoutError,
    StateError,
)
from perdure.storage.failure import describe_failure
from perdure.storage.files import InstanceFile
from perdure.storage.journal import Journal
from perdure.storage.lifecycle import Lifecycle
from perdure.storage.mail import Mail
from perdure.storage.names import check_event_type
from perdure.storage.records import FINISHED, Deadline, Key, Status, Stored


class Actor:
    """One warm instance. Made by the game loop once the file is open and owned.

    `on_quiet` is called when all of it is parked and it may hibernate later.
    """

    def __init__(
        self,
        definition: Definition | None,
        file: InstanceFile,
        host: Host,
        env: Any,
        *,
        on_quiet: Callable[[Actor], None],
    ) -> None:
        self._definition = definition
        self.file = file
        self.lifecycle = Lifecycle(file, host.gate)
        self.journal = Journal(file, host.gate)
        self.key = Key(self.lifecycle.state.workflow, self.lifecycle.state.id)
        self.mailbox = Mailbox(Mail(file, host.gate), self.journal, host.clock)
        self.last_active_ms = host.clock.boot_ms()
        self._host = host
        self._env = env
        self._on_quiet = on_quiet
        self._run: Run | None = None
        self.calls = Calls(self.key, file, host, definition, self.lifecycle)
        self._log = QuietLog(
            logging.getLogger(f"perdure.workflow.{self.key.workflow}"), self.key, self.journal
        )
        self._reports = Reports(definition, self.key, self.lifecycle, host.clock, self._log)
        self.replays = 0
        """How often `run()` was called again from the top since the file was opened."""
        self.start_at_ms: int | None = None
        """Before this moment `run()` is not called, though an event or a query may open the file."""
        self.moves_later: Deadline | None = None
        """Set where there is no room to call `run()` now: the file takes commands and rests until then."""
        self._ending: Literal["terminate", "shutdown"] | None = None
        self.journal.load()
        self.mailbox.forget_waits()

    # -- reading ---------------------------------------------------------------------------

    @property
    def status(self) -> Status:
        """The status as a person would say it now: a warm instance that is parked is waiting."""
        status = self.lifecycle.state.status
        if (
            status == "running"
            and self._run is not None
            and self._run.running == 0
            and self._run.parked_calls
        ):
            return "waiting"
        return status

    @property
    def is_parked(self) -> bool:
        """Whether it could hibernate now: every branch waits in a step, with nothing in the way."""
        return self._run is not None and self._run.stopping is None and self._run.kept_warm_by is None

    @property
    def is_idle(self) -> bool:
        """Whether no attempt is under way and at least one call is parked. Cheap to ask."""
        return self._run is not None and self._run.is_idle

    @property
    def was_waiting(self) -> bool:
        """Whether, as its file was found, nothing of it was under way or due: it only waited."""
        clock = self._host.clock
        steps = [step for step in self.journal.left if not step.finished]
        return bool(steps) and all(
            step.status == "waiting" and (step.wake is None or remaining_ms(clock, step.wake) > 0)
            for step in steps
        )

    @property
    def kept_warm_by(self) -> str | None:
        """What keeps it from hibernating, for people."""
        return None if self._run is None else self._run.kept_warm_by

    @property
    def open_steps(self) -> list[str]:
        """The names of the calls made and not finished, in order."""
        return [] if self._run is None else [repr(call.name) for call in self._run.open_calls]

    @property
    def waits_outside_steps(self) -> str | None:
        """What it waits for, for people, while it runs and no step of it is under way or parked."""
        run = self._run
        return None if run is None or run.running or self.status != "running" else run.kept_warm_by

    # -- life ------------------------------------------------------------------------------

    async def advance(self) -> Outcome:
        """Run until the instance ends, waits, is paused or stopped; its file says how.

        Without the workflow's class it is left as it stands, parked.
        """
        state = self.lifecycle.state
        if self._ending == "terminate" and state.status not in FINISHED:
            return self._settle(Terminated())
        match state.status:
            case "waiting_for_pause":
                return self._settle(Paused())
            case "paused":
                return Paused()
            case "complete":
                return Completed(output=state.output if state.output is not None else "null")
            case "errored":
                return Failed(error=state.error or "{}")
            case "terminated":
                return Terminated()
            case "dead":
                return Dead(reason=state.reason or "")
            case _:
                pass
        if self._ending == "shutdown":
            return Interrupted()
        if self._definition is None:
            return self.waits()
        if state.started_at_ms is None and self._is_early():
            return self._settle(Parked(wake=Deadline(wall_ms=self.start_at_ms or 0), reason="its start"))
        if self.moves_later is not None:
            return self._settle(Parked(wake=self.moves_later, reason="room in memory"))
        if state.started_at_ms is None:
            self.lifecycle.started(self._host.clock.wall_ms())
        else:
            self._run_again()
            self.lifecycle.set_status("running")
        while True:
            try:
                outcome = await self._run_once(self._definition)
            except PerdureError as error:
                if error is not self.file.failure:
                    raise
                return Broken(error=error)
            if outcome is not None:
                return outcome
            self._run_again()

    def _run_again(self) -> None:
        self.replays += 1
        self.lifecycle.run_again()

    @property
    def starts_later(self) -> str | None:
        """Why its run will not be called now, though nothing is paused or ended."""
        if self._definition is None:
            return "this process has no class for it"
        return (
            "it has not started yet"
            if self.lifecycle.state.started_at_ms is None and self._is_early()
            else None
        )

    def _is_early(self) -> bool:
        return self.start_at_ms is not None and self._host.clock.wall_ms() < self.start_at_ms

    async def _run_once(self, definition: Definition) -> Outcome | None:
        """Call `run()` once from the top; None where it was stopped to be replayed."""
        timeout = self.lifecycle.state.timeout
        if timeout is not None and remaining_ms(self._host.clock, timeout) <= 0:
            return self._settle(self._expired())
        self.journal.load()
        self.mailbox.forget_waits()
        run = self._run = self._new_run(definition)
        expiry = None if timeout is None else self._host.timers.at(timeout, lambda: run.stop("expire"))
        self.mailbox.match()
        error: BaseException | None = None
        value: Any = None
        try:
            with run.scope:
                if self._ending is not None:
                    run.stop(self._ending)
                value = await self._call(run, definition)
        except (Exception, SystemExit) as raised:  # noqa: BLE001 - what run() raises is its outcome
            error = raised
        except BaseExceptionGroup as group:  # of a nursery in run()
            if group.subgroup((trio.Cancelled, KeyboardInterrupt)) is not None:
                raise
            error = group
        finally:
            run.end()
            self._run = None
            self.calls.run_ends()
            if expiry is not None:
                expiry.cancel()
        if run.stopping is not None:
            return self._stopped(run)
        if error is None:
            error = self._reports.leftovers(run, self.journal)
        if error is None:
            try:
                stored, _ = self._host.codec.coder(definition.result).record(value)
            except InvalidArgumentError as refused:
                error = refused
            else:
                return self._settle(Completed(output=stored))
        failure = self.file.failure
        if failure is not None and error is failure:
            return Broken(error=failure)
        return self._settle(Failed(error=describe_failure(error, self._host.codec)))

    def _new_run(self, definition: Definition) -> Run:
        return Run(
            key=self.key, file=self.file, journal=self.journal, mailbox=self.mailbox, host=self._host,
            library=definition.step_library, incarnation=self.lifecycle.state.incarnation, log=self._log,
            on_divergence=self._reports.diverged, on_quiet=self._quiet, on_overdue=self._tell_what_is_overdue,
        )  # fmt: skip

    async def _call(self, run: Run, definition: Definition) -> Any:
        state = self.lifecycle.state
        params = self._host.codec.coder(definition.params).decode(
            "null" if state.params is None else state.params
        )
        event: WorkflowEvent[Any] = WorkflowEvent(
            payload=params,
            timestamp=datetime.fromtimestamp(state.created_at_ms / 1000, UTC),
            instance_id=self.key.id,
            workflow_name=self.key.workflow,
        )
        context = ActorContext(
            workflow=self.key.workflow,
            instance_id=self.key.id,
            runtime=self._host.runtime,
            storage=lambda: ActorStorage(self.file, self._host.gate),
            receive=self._send_to_itself,
        )
        workflow = definition.cls(context, self._env)
        if definition.methods:
            self.calls.run_begins(run, workflow)
        return await workflow.run(event, WorkflowStep(run))

    def _quiet(self) -> None:
        self.last_active_ms = self._host.clock.boot_ms()
        self._on_quiet(self)

    def _stopped(self, run: Run) -> Outcome | None:
        match run.stopping:
            case "replay":
                return None
            case "pause":  # unless somebody resumed it in the meantime
                return None if self.lifecycle.state.status == "running" else self._settle(Paused())
            case "terminate":
                return self._settle(Terminated())
            case "expire":
                return self._settle(self._expired())
            case "broken":
                return Broken(error=self.file.failure or StateError("the instance was reset"))
            case "hibernate":
                return self._settle(self.waits())
            case _:
                return self._settle(Interrupted())

    def _expired(self) -> Failed:
        self.journal.cancel_open(at_ms=self._host.clock.wall_ms())
        error = RunTimeoutError(
            f"{self.key} took longer than its timeout", workflow=self.key.workflow, instance_id=self.key.id
        )
        return Failed(error=describe_failure(error, self._host.codec))

    def waits(self) -> Parked:
        """Return what the instance waits for, as its journal has it: until when, and in words."""
        waiting = self.journal.waiting()
        wakes = [step.wake for step in waiting if step.wake is not None]
        if self.lifecycle.state.timeout is not None:
            wakes.append(self.lifecycle.state.timeout)
        names = ", ".join(f"{step.kind} {step.name!r}" for step in waiting[:3] if step.kind != "race")
        clock = self._host.clock
        measured = [wake for wake in wakes if wake.boot_ms is not None and wake.boot == clock.boot]
        until_ms = min((wake.wall_ms for wake in wakes if wake not in measured), default=None)
        if measured:
            wake = min(measured, key=lambda wake: remaining_ms(clock, wake))
            return Parked(wake=wake, until_ms=until_ms, reason=names)
        return Parked(wake=None if until_ms is None else Deadline(wall_ms=until_ms), reason=names)

    def _settle(self, outcome: Outcome) -> Outcome:
        """Write into the file how this stretch of life ended."""
        at_ms = self._host.clock.wall_ms()
        life = self.lifecycle
        match outcome:
            case Completed(output=output):
                life.end("complete", at_ms=at_ms, output=output)
            case Failed(error=error):
                life.end("errored", at_ms=at_ms, error=error)
            case Terminated():
                self.journal.cancel_open(at_ms=at_ms)
                life.end("terminated", at_ms=at_ms)
            case Paused():
                life.set_status("paused", paused=life.state.paused or deadline_in(self._host.clock, 0))
            case Parked(wake_at_ms=wake_at_ms, reason=reason):
                life.set_status("waiting", reason=reason, wake_at_ms=wake_at_ms)
            case Dead(reason=why):
                life.set_status("dead", reason=why)
            case Interrupted() | Broken():
                pass
        return outcome

    # -- events and commands ---------------------------------------------------------------

    def receive(self, type_: str, payload: Stored, *, token: str | None) -> None:
        """Put an event into the file and hand it on. Raises `InstanceFinishedError`."""
        if not self._was_done(f"event {type_!r}", token):
            self.mailbox.receive(type_, payload, token=token)

    def hibernate(self) -> None:
        """Stop the run so that the instance can leave memory. Only when `is_parked`."""
        if self._run is not None:
            self._run.stop("hibernate")

    def tell_what_keeps_it_warm(self) -> None:
        """Write into the file, for people, why the instance stays in memory though it is idle."""
        reason = self.kept_warm_by
        if reason is not None and self.lifecycle.state.status == "running":
            if "deadline" in reason:
                self._reports.warn_once(reason)
            self.lifecycle.set_status("running", reason=reason)

    def _tell_what_is_overdue(self) -> None:
        if self._run is not None and self.lifecycle.state.status == "running":
            names = ", ".join(repr(name) for name in self._run.overdue)
            reason = f"overdue: step {names} is past its timeout and cannot be stopped" if names else None
            self.lifecycle.set_status("running", reason=reason)

    def _send_to_itself(self, type_: str, payload: Any) -> None:
        check_event_type(type_)
        stored, _ = self._host.codec.coder(Any).record(payload)
        self.receive(type_, stored, token=None)

    def shut_down(self) -> None:
        """Stop the run because the runtime is ending; attempts are recorded as interrupted."""
        self.calls.stop(
            RuntimeClosedError(f"the runtime ended under a call of {self.key}: nobody knows how far it got")
        )
        if self._run is not None:
            self._run.stop("shutdown")
        self._ending = self._ending or "shutdown"

    def break_off(self) -> None:
        """Stop the run because the file has failed; nothing more is recorded."""
        self.calls.stop(
            self.file.failure
            if isinstance(self.file.failure, PerdureError)
            else StateError("the instance was reset")
        )
        if self._run is not None:
            self._run.stop("broken")

    def declare_dead(self, reason: str) -> None:
        """Park the instance for good, until somebody resumes it."""
        self._settle(Dead(reason=reason))

    def pause(self, *, who: str | None, token: str | None) -> None:
        """Let steps under way finish, start no more, freeze the timers."""
        pausing = self.lifecycle.state.status in ("paused", "waiting_for_pause")
        if self._was_done("pause", token) or pausing or not self._command("pause", who, token):
            return
        now = deadline_in(self._host.clock, 0)
        if self._run is None or self._run.pause():
            self.lifecycle.set_status("paused", paused=now)
        else:
            self.lifecycle.set_status("waiting_for_pause", paused=now)

    def resume(self, *, who: str | None, token: str | None) -> None:
        """Take a pause back: waiting deadlines move by its length."""
        state = self.lifecycle.state
        if self._was_done("resume", token) or state.status not in ("paused", "waiting_for_pause", "dead"):
            return
        if not self._command("resume", who, token):
            return
        if state.paused is not None and state.status == "paused":
            self.journal.shift(max(0, deadline_in(self._host.clock, 0).since(state.paused)))
        if self._run is not None:
            self._run.unpause()
        self.lifecycle.set_status("running")

    def terminate(self, *, who: str | None, token: str | None) -> None:
        """End the instance: attempts under way are cancelled, and waited for."""
        if self._was_done("terminate", token) or not self._command("terminate", who, token):
            return
        self._ending = "terminate"
        if self._run is not None:
            self._run.stop("terminate")
        else:
            self._settle(Terminated())

    def _command(self, command: str, who: str | None, token: str | None) -> bool:
        return self.lifecycle.command(command, at_ms=self._host.clock.wall_ms(), actor=who, token=token)

    def _was_done(self, what: str, token: str | None) -> bool:
        """Whether a finished instance got this very command before it ended: its reply was lost.

        Raises `InstanceFinishedError` for any other command to a finished one.
        """
        status = self.lifecycle.state.status
        if status in FINISHED:
            if token is not None and (self.lifecycle.knows(token) or self.mailbox.knows(token)):
                return True
            raise InstanceFinishedError(
                f"{self.key} has finished ({status}), so {what} cannot reach it", workflow=self.key.workflow,
                instance_id=self.key.id,
            )  # fmt: skip
        return False
