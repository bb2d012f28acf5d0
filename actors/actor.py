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
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from functools import partial
from typing import Any

import msgspec
import trio

from perdure.actors.bounds import BoundedJournal, bounds_of
from perdure.actors.calling import Calls
from perdure.actors.control import Control
from perdure.actors.host import Host, deadline_in, remaining_ms
from perdure.actors.mailbox import Mailbox
from perdure.actors.offspring import Children
from perdure.actors.outcome import (
    Broken,
    Completed,
    Dead,
    Deleted,
    Failed,
    Interrupted,
    Outcome,
    Parked,
    Paused,
    Terminated,
)
from perdure.actors.reports import QuietLog, Reports
from perdure.actors.rollback import ROLLING_BACK, InstanceRollback
from perdure.actors.run import Run
from perdure.actors.step import WorkflowStep
from perdure.actors.storage_api import ActorStorage
from perdure.actors.waits import parked_on
from perdure.actors.workflow import ActorContext, Definition, Schedule, WorkflowEvent, accept_params
from perdure.errors import (
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
from perdure.storage.records import FINISHED, Deadline, Key, Status


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
        self.key = Key(self.lifecycle.state.workflow, self.lifecycle.state.id)
        own = None if definition is None else definition.limits
        self._bounds = bounds_of(own, host.limits, self.key, self.lifecycle, host.clock)
        bounds = self._bounds
        self.journal = Journal(file, host.gate) if bounds is None else BoundedJournal(file, host.gate, bounds)
        self.mailbox = Mailbox(Mail(file, host.gate), self.journal, host.clock)
        self.children = Children(self.key, file, self.journal, self.lifecycle, host)
        self.last_active_ms = host.clock.boot_ms()
        self._host = host
        self._env = env
        self._on_quiet = on_quiet
        self._run: Run | None = None
        self.rollback = InstanceRollback(self.key, self.lifecycle, self.journal, host)
        self.control = Control(
            self.key, file, host, lifecycle=self.lifecycle, journal=self.journal, mailbox=self.mailbox,
            children=self.children, rollback=self.rollback, bounds=self._bounds, run=lambda: self._run,
        )  # fmt: skip
        self.calls = Calls(self.key, file, host, definition, self.lifecycle)
        self._log = QuietLog(
            logging.getLogger(f"perdure.workflow.{self.key.workflow}"), self.key, self.journal
        )
        self._reports = Reports(definition, self.key, self.lifecycle, host.clock, self._log)
        self.has_run = False
        """Whether `run()` was called since the file was opened."""
        self.replays = 0
        """How often `run()` was called again from the top since the file was opened."""
        self.start_at_ms: int | None = None
        """Before this moment `run()` is not called, though an event or a query may open the file."""
        self.moves_later: Deadline | None = None
        """Set where there is no room to call `run()` now: the file takes commands and rests until then."""
        self.journal.load()
        self.mailbox.forget_waits()

    # -- reading ---------------------------------------------------------------------------

    @property
    def status(self) -> Status:
        """The status as a person would say it now: a warm instance that is parked is waiting."""
        status = self.lifecycle.state.status
        run = self._run
        if status == "running" and run is not None and run.running == 0 and run.parked_calls:
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
        steps = [step for step in self.journal.left if not step.finished and step.kind != "stream"]
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
        if self.control.ending == "delete":
            return Deleted()
        if self.control.ending == "terminate" and state.status not in FINISHED:
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
        if self.control.ending == "shutdown":
            return Interrupted()
        if self._definition is None:
            return self.waits()
        if state.started_at_ms is None and self._is_early():
            return self._settle(Parked(wake=Deadline(wall_ms=self.start_at_ms or 0), reason="its start"))
        if self.moves_later is not None:
            return self._settle(Parked(wake=self.moves_later, reason="room in memory"))
        if state.started_at_ms is not None:
            self.lifecycle.set_status("running")
        while True:
            try:
                if self.rollback.under_way:
                    outcome = await self._roll_back(self._definition)
                else:
                    self._begin()
                    outcome = await self._run_once(self._definition)
            except PerdureError as error:
                if error is not self.file.failure:
                    raise
                return Broken(error=error)
            if outcome is not None:
                return outcome
            if self.lifecycle.state.status in ("paused", "waiting_for_pause"):  # while it was being stopped
                return self._settle(Paused())

    def _begin(self) -> None:
        """Record that `run()` is called: for the first time in this generation, or once more."""
        if self.lifecycle.state.started_at_ms is None:
            definition = self._definition
            self.lifecycle.started(self._host.clock.wall_ms(), definition.version if definition else None)
        else:
            self.replays += 1
            self.lifecycle.run_again()

    @property
    def starts_later(self) -> str | None:
        """Why its run will not be called now, though nothing is paused or ended."""
        if self._definition is None:
            return "this process has no class for it"
        early = self.lifecycle.state.started_at_ms is None and self._is_early()
        why = "it is being rolled back" if self.rollback.under_way else None
        return "it has not started yet" if early else why

    def _is_early(self) -> bool:
        return self.start_at_ms is not None and self._host.clock.wall_ms() < self.start_at_ms

    async def _run_once(self, definition: Definition) -> Outcome | None:
        """Call `run()` once from the top; None where it was stopped to be replayed."""
        timeout = self.lifecycle.state.timeout
        if timeout is not None and remaining_ms(self._host.clock, timeout) <= 0:
            return self._fail(self._expired(), None)
        self._read()
        run = self._new_run(definition)
        expiry = None if timeout is None else self._host.timers.at(timeout, lambda: run.stop("expire"))
        try:
            value, error = await self._carry(run, lambda: self._call(run, definition))
        finally:
            if expiry is not None:
                expiry.cancel()
        if run.stopping == "hibernate" and self.rollback.under_way:  # it was asked for in the meantime
            run.stopping = "terminate"
        if run.stopping is not None:
            return self._stopped(run)
        if error is None:
            error = self._reports.leftovers(run, self.journal)
        if error is None:
            try:
                stored, _ = self._host.codec.coder(definition.result).record(value)
                if self._bounds is not None:
                    self._bounds.result(stored)
            except InvalidArgumentError as refused:
                error = refused
            else:
                return self._settle(Completed(output=stored))
        failure = self.file.failure
        if failure is not None and error is failure:
            return Broken(error=failure)
        return self._fail(Failed(error=describe_failure(error, self._host.codec)), run)

    def _read(self) -> None:
        self.journal.load()
        self.mailbox.forget_waits()
        self.children.forget()

    async def _carry(self, run: Run, work: Callable[[], Awaitable[Any]]) -> tuple[Any, BaseException | None]:
        """Do the work of a run until it ends or is stopped; return its value, or what it raised."""
        generation = self.lifecycle.state.generation
        self.has_run = True
        self._run = run
        self.mailbox.match()
        try:
            with run.scope:
                if self.control.ending is not None:
                    run.stop(self.control.ending)
                return await work(), None
        except (Exception, SystemExit) as raised:  # noqa: BLE001 - what run() raises is its outcome
            return None, raised
        except BaseExceptionGroup as group:  # of a nursery in run()
            if group.subgroup((trio.Cancelled, KeyboardInterrupt)) is not None:
                raise
            return None, group
        finally:
            run.end()
            self._run = None
            self.children.forget()
            self.calls.run_ends()
            if self.lifecycle.state.generation != generation and run.stopping not in ("broken", "delete"):
                run.stopping = "restart"  # whatever it was stopped for before
        return None, None

    async def _roll_back(self, definition: Definition) -> Outcome | None:
        """Go on with the rollback that is under way; None where it was stopped to be gone on with."""
        rollback = self.rollback
        self.lifecycle.set_status("running", reason=ROLLING_BACK)
        self.journal.cancel_open(at_ms=self._host.clock.wall_ms(), but="rollback")
        self.children.end_soon(self.children.left_behind())
        sought = rollback.sought()
        if sought:
            run = self._new_run(definition)
            run.sought = sought
            late = deadline_in(self._host.clock, self._host.limits.rollback_replay_s)
            timer = self._host.timers.at(late, lambda: run.stop("registered"))
            self._begin()
            self._read()
            try:
                await self._carry(run, lambda: self._call(run, definition))
            finally:
                timer.cancel()
            rollback.handlers |= run.handlers
            if run.stopping not in (None, "registered", "hibernate"):  # parked for good: no more will come
                return self._stopped(run)
        run = self._new_run(definition)
        self.journal.set_aside()
        failed, error = await self._carry(run, lambda: rollback.undo(run))
        if run.stopping is not None:
            if run.replays_always:
                rollback.handlers = {}
            return self._stopped(run)
        if error is not None:
            raise error
        return self._settle(rollback.finish(failed))

    def _fail(self, outcome: Failed, run: Run | None) -> Outcome | None:
        """End as failed; None where there is something to undo before."""
        if not self.rollback.is_needed:
            return self._settle(outcome)
        self.rollback.begin("errored", outcome.error)
        self.rollback.handlers = {} if run is None else run.handlers
        return None

    def _new_run(self, definition: Definition) -> Run:
        return Run(
            key=self.key, file=self.file, journal=self.journal, mailbox=self.mailbox, children=self.children,
            host=self._host, go_on=partial(self.control.continue_as_new, definition.version),
            accept_params=partial(accept_params, definition, codec=self._host.codec), bounds=self._bounds,
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
            schedule=None if state.schedule is None else msgspec.json.decode(state.schedule, type=Schedule),
        )
        context = ActorContext(
            workflow=self.key.workflow,
            instance_id=self.key.id,
            runtime=self._host.runtime,
            storage=lambda: ActorStorage(self.file, self._host.gate),
            receive=self._send_to_itself,
        )
        workflow = definition.cls(context, self._env)
        if definition.methods and run.sought is None:
            self.calls.run_begins(run, workflow)
        return await workflow.run(event, WorkflowStep(run))

    def _quiet(self) -> None:
        self.control.touched &= self._run is None or self._run.parked_calls > 1  # one may be about to go on
        self.last_active_ms = self._host.clock.boot_ms()
        self._on_quiet(self)

    def _stopped(self, run: Run) -> Outcome | None:
        if run.stopping in ("hibernate", "pause") and self.control.ending in ("terminate", "delete"):
            run.stopping = self.control.ending  # the command came while the run was being stopped
        match run.stopping:
            case "replay":
                return None
            case "pause":  # unless somebody resumed it in the meantime
                return None if self.lifecycle.state.status == "running" else self._settle(Paused())
            case "terminate":
                if self.rollback.under_way and self.control.ending != "terminate":
                    self.rollback.handlers = run.handlers
                    return None
                return self._settle(Terminated())
            case "expire":
                return self._fail(self._expired(), run)
            case "broken":
                return Broken(error=self.file.failure or StateError("the instance was reset"))
            case "hibernate":
                if self.lifecycle.state.status in ("paused", "waiting_for_pause"):  # likewise
                    return self._settle(Paused())
                return None if self.control.touched else self._settle(self.waits())
            case "restart":
                self.control.old_run_ended()
                self.rollback.handlers = {}
                return None
            case "delete":
                return Deleted()
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
        rolling_back = self.rollback.under_way
        return parked_on(
            self.journal.waiting(), None if rolling_back else self.lifecycle.state.timeout, self._host.clock,
            does=ROLLING_BACK if rolling_back else None,
        )  # fmt: skip

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
                self.rollback.break_off()
                self.journal.cancel_open(at_ms=at_ms)
                life.end("terminated", at_ms=at_ms)
            case Paused():
                paused = life.state.paused or deadline_in(self._host.clock, 0)
                life.set_status("paused", reason=life.state.reason, paused=paused)
            case Parked(wake_at_ms=wake_at_ms, reason=reason):
                life.set_status("waiting", reason=reason, wake_at_ms=wake_at_ms)
            case Dead(reason=why):
                life.set_status("dead", reason=why)
            case Interrupted() | Broken() | Deleted():
                pass
        return outcome

    # -- being stopped ---------------------------------------------------------------------

    def hibernate(self) -> None:
        """Stop the run so that the instance can leave memory. Only when `is_parked`."""
        run = self._run
        if run is not None and run.sought is not None:  # it may only wait for a deadline that struck before
            idle_ms = self._host.clock.boot_ms() - self.last_active_ms
            if idle_ms + 1 < self._host.limits.idle_grace_s * 1000:
                return
        if run is not None:
            run.stop("hibernate")

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
        self.control.receive(type_, stored, token=None)

    def shut_down(self) -> None:
        """Stop the run because the runtime is ending; attempts are recorded as interrupted."""
        self.calls.stop(
            RuntimeClosedError(f"the runtime ended under a call of {self.key}: nobody knows how far it got")
        )
        if self._run is not None:
            self._run.stop("shutdown")
        self.control.ending = self.control.ending or "shutdown"

    def break_off(self) -> None:
        """Stop the run because the file has failed; nothing more is recorded."""
        failure = self.file.failure
        self.calls.stop(
            failure if isinstance(failure, PerdureError) else StateError("the instance was reset")
        )
        if self._run is not None:
            self._run.stop("broken")

    def declare_dead(self, reason: str) -> None:
        """Park the instance for good, until somebody resumes it."""
        self._settle(Dead(reason=reason))
