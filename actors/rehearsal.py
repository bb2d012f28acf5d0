"""`run()` called over a copy of an instance's file: what is recorded answers, nothing new begins.

How changed code is tried on what instances have recorded already (`engine/replay_check.py`). It shares
the mechanism of a replay for rollback handlers (`Run.sought`): a call that is not recorded waits for
good, so no function runs, no value is drawn and no child is created. What was open when the copy was
made is cancelled in the copy, and so waits as well. Once every task of the loop waits, what `run()` has
asked for is held against what is recorded.

Invariants:
    Nothing leaves: gate, timers and children of a rehearsal never let anything through.
    The file is a copy that nobody else has.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any, Final, Literal, NoReturn, cast

import msgspec
import trio
import trio.testing

from perdure.actors.calls import line_of
from perdure.actors.host import Host
from perdure.actors.mailbox import Mailbox
from perdure.actors.offspring import Children
from perdure.actors.reports import NAMES_SHOWN_MAX
from perdure.actors.run import Run
from perdure.actors.step import WorkflowStep
from perdure.actors.storage_api import ActorStorage
from perdure.actors.workflow import ActorContext, Definition, Schedule, WorkflowEvent
from perdure.errors import DecodingError, DivergenceError
from perdure.storage.failure import describe_failure, failure_summary
from perdure.storage.files import InstanceFile
from perdure.storage.gate import Gate
from perdure.storage.journal import Journal, Step
from perdure.storage.lifecycle import Lifecycle
from perdure.storage.mail import Mail
from perdure.storage.records import FINISHED, Deadline, Key, Stored

What = Literal["kind", "arguments", "unasked", "error", "result", "params", "outside"]
Level = Literal["error", "warning"]
NEVER: Final = ("do", "", 0)
"""A handler that no call registers: a rehearsal seeks it for ever."""
LEFT_OUT: Final = ("patch", "rollback")
"""Kinds that `run()` need not ask for."""


class Divergence(msgspec.Struct, frozen=True, kw_only=True):
    """One difference between what an instance has recorded and what the code asks for.

    `level` is "error" where the instance would fail with the code, else "warning".
    """

    what: What
    level: Level
    text: str
    recorded: str = ""
    requested: str = ""


class ClosedGate:
    """Lets nothing out. The copy is written to without transactions: nobody keeps it."""

    def touch(self, file: InstanceFile) -> None:
        """Do nothing before a write."""

    async def passed(self, file: InstanceFile) -> NoReturn:
        """Wait for good."""
        del file
        await trio.sleep_forever()

    def try_write_out(self, file: InstanceFile) -> bool:
        """Have no other file that could be written."""
        del file
        return False


class NoTimers:
    """Timers that never come."""

    def at(self, deadline: Deadline, callback: Callable[[], None]) -> NoTimers:
        """Set none."""
        del deadline, callback
        return self

    def cancel(self) -> None:
        """Do nothing."""


class NoChildren:
    """Knows the classes of children, and creates and ends none."""

    def __init__(self, definition: Callable[[type | str], Definition]) -> None:
        self.definition = definition

    async def start(self, requests: Sequence[object]) -> NoReturn:
        """Wait for good."""
        del requests
        await trio.sleep_forever()

    async def end(self, children: Sequence[object]) -> None:
        """End none."""

    def end_soon(self, children: Sequence[object], file: InstanceFile) -> None:
        """End none."""


class Rehearsal:
    """One call of `run()` of `definition` over a copy of a file. `found` is what differs."""

    def __init__(self, definition: Definition, file: InstanceFile, host: Host, env: Any) -> None:
        self.found: list[Divergence] = []
        self._definition = definition
        self._file = file
        self._host = host
        self._env = env
        self._lifecycle = Lifecycle(file, host.gate)
        state = self._lifecycle.state
        self._key = Key(state.workflow, state.id)
        self._journal = Journal(file, host.gate)
        self._run: Run | None = None
        self._raised: BaseException | None = None
        self._began = False

    async def play(self) -> list[Divergence]:
        """Call `run()` and return what differs, in the order in which it was met."""
        journal = self._journal
        journal.load()
        over = {step.seq for step in journal.left if step.status == "cancelled"}
        journal.cancel_open(at_ms=0)
        journal.load()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._perform)
            await trio.testing.wait_all_tasks_blocked()
            self._look(over)
            if self._run is not None:
                self._run.stop("registered")
        return self.found

    async def _perform(self) -> None:
        host, state = self._host, self._lifecycle.state
        mailbox = Mailbox(Mail(self._file, host.gate), self._journal, host.clock)
        children = Children(self._key, self._file, self._journal, self._lifecycle, host)
        run = self._run = Run(
            key=self._key, file=self._file, journal=self._journal, mailbox=mailbox, children=children,
            host=host, go_on=_refuse, accept_params=lambda _: "null", library=self._definition.step_library,
            incarnation=state.incarnation, bounds=None,
            log=logging.LoggerAdapter(logging.getLogger("perdure.check"), {}),
            on_divergence=self._diverged, on_quiet=_nothing, on_overdue=_nothing,
        )  # fmt: skip
        run.sought = {NEVER}
        try:
            with run.scope:
                await self._call(run)
        except (Exception, SystemExit, BaseExceptionGroup) as raised:  # noqa: BLE001 - it is what is looked for
            if run.stopping is None:
                self._raised = raised
        finally:
            if run.stopping is None:
                run.over = True

    async def _call(self, run: Run) -> None:
        state, definition = self._lifecycle.state, self._definition
        event: WorkflowEvent[Any] = WorkflowEvent(
            payload=self._host.codec.coder(definition.params).decode(state.params or "null"),
            timestamp=datetime.fromtimestamp(state.created_at_ms / 1000, UTC),
            instance_id=state.id,
            workflow_name=state.workflow,
            schedule=None if state.schedule is None else msgspec.json.decode(state.schedule, type=Schedule),
        )
        context = ActorContext(
            workflow=state.workflow,
            instance_id=state.id,
            runtime=self._host.runtime,
            storage=lambda: ActorStorage(self._file, self._host.gate),
            receive=lambda _type, _payload: None,
        )
        workflow = definition.cls(context, self._env)
        self._began = True
        await workflow.run(event, WorkflowStep(run))

    # -- what differs ----------------------------------------------------------------------

    def _diverged(self, what: str, error: DivergenceError, *, serious: bool) -> None:
        self._add(cast("What", what), str(error), error.recorded, error.requested, serious=serious)

    def _add(self, what: What, text: str, recorded: str, requested: str, *, serious: bool) -> None:
        policy = self._definition.on_divergence or ("fail" if serious else "warn")
        if policy != "ignore":
            level: Level = "error" if policy == "fail" else "warning"
            self.found.append(
                Divergence(what=what, level=level, text=text, recorded=recorded, requested=requested)
            )

    def _look(self, over: set[int]) -> None:
        """Hold what `run()` has asked for against what is recorded. Every task waits, or it has ended."""
        run = self._run
        assert run is not None
        if self._raised is not None:
            self._look_at_error(self._raised)
            return
        left = [step for step in self._journal.left if step.seq not in over and step.kind not in LEFT_OUT]
        outside = None if run.over else run.kept_warm_by
        if outside is not None and "outside any step" in outside:
            text = f"run() of {self._key} cannot be followed further: {outside}"
            self.found.append(Divergence(what="outside", level="warning", text=text))
        if left:
            self._look_at_left(run, left)

    def _look_at_left(self, run: Run, left: Sequence[Step]) -> None:
        recorded = ", ".join(f"{step.kind} {step.name!r}" for step in left[:NAMES_SHOWN_MAX])
        recorded += " …" if left[NAMES_SHOWN_MAX:] else ""
        new = [
            f"{getattr(call, 'kind', 'step')} {call.name!r} ({line_of(call.where)})"
            for call in run.open_calls
            if getattr(call, "record", None) is None
        ]
        requested = ", ".join(new[:NAMES_SHOWN_MAX]) or "nothing"
        if run.over:
            how = "ends without asking for recorded steps"
        elif new:
            how = f"asks for {requested}, which is not recorded, before recorded steps"
        else:
            how = "waits without having asked for recorded steps"
        text = f"run() of {self._key} {how}: {recorded}"
        self._add("unasked", text, recorded, requested, serious=False)

    def _look_at_error(self, error: BaseException) -> None:
        state = self._lifecycle.state
        said = describe_failure(error, self._host.codec)
        kind, message = failure_summary(said)
        if state.status in FINISHED and state.error and failure_summary(state.error)[0] == kind:
            return  # it has ended so already
        if not isinstance(error, DecodingError):
            what: What = "error"
            how = f"raises {kind}: {message}"
        elif self._began:
            what, how = "result", f"cannot read a recorded result: {message}"
        else:
            what, how = "params", f"cannot be called with its params: {message}"
        text = f"run() of {self._key} {how}{_place(error, self._definition)}"
        requested = f"{kind}: {message}"
        self.found.append(Divergence(what=what, level="error", text=text, requested=requested))


def _place(error: BaseException, definition: Definition) -> str:
    """Return the line of the workflow's file from which the error came."""
    file = definition.cls.run.__code__.co_filename
    line, traceback = None, error.__traceback__
    while traceback is not None:
        if traceback.tb_frame.f_code.co_filename == file:
            line = traceback.tb_lineno
        traceback = traceback.tb_next
    return "" if line is None else f" ({file}:{line})"


def _refuse(_params: Stored, _version: Literal["latest", "same"]) -> None:
    raise AssertionError("continue_as_new is not recorded, so a rehearsal never gets behind it")


def _nothing() -> None:
    """Do nothing."""


def closed_gate() -> Gate:
    """Return a gate for a rehearsal."""
    return cast("Gate", ClosedGate())
