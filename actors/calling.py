"""Calls from outside on a warm instance: they wait for its run, and go on beside it.

A call sees the workflow's object as `run()` has left it: it begins when the run of the moment has
got through what is recorded and waits, or is in a step. It interleaves with `run()` at awaits; the
stretch between two awaits is atomic. While one is under way the instance neither hibernates nor
rests, a pause waits for it, and a replay does. The model is a Durable Object's method.

Invariants:
    A reply leaves after what the call wrote is safe (law 2).
    Every call posted ends: with its result, its error, or why it cannot be carried out.
"""

from __future__ import annotations

from typing import Any, Final

import trio

from perdure.actors.context import CURRENT, StepContext
from perdure.actors.host import Host
from perdure.actors.methods import MethodCall, MethodReply, failed_reply, method_of
from perdure.actors.run import Run
from perdure.actors.workflow import Definition
from perdure.errors import PerdureError, StateError, WorkflowCodeError
from perdure.storage.files import InstanceFile
from perdure.storage.lifecycle import Lifecycle
from perdure.storage.records import Key

LOOK_S: Final = 0.05
"""How often a run that waits outside its steps is looked at by a call that waits for it."""


class PendingCall:
    """A call that was posted. `turn` is set when it may begin, or is refused with `refusal`."""

    __slots__ = ("call", "object", "refusal", "run", "scope", "turn")

    def __init__(self, call: MethodCall) -> None:
        self.call = call
        self.turn = trio.Event()
        self.scope = trio.CancelScope()
        self.refusal: PerdureError | None = None
        self.run: Run | None = None
        self.object: Any = None


class _Underway:
    """Stands for a call where the runtime asks which step is under way: a method calls no steps."""

    def __init__(self, name: str) -> None:
        self.name = name

    @property
    def context(self) -> StepContext:
        raise WorkflowCodeError(f"current_step() was called in the method {self.name!r}, outside any step")


class Calls:
    """The calls on one warm instance."""

    def __init__(
        self,
        key: Key,
        file: InstanceFile,
        host: Host,
        definition: Definition | None,
        lifecycle: Lifecycle,
    ) -> None:
        self._key = key
        self._lifecycle = lifecycle
        self._file = file
        self._host = host
        self._definition = definition
        self._waiting: dict[PendingCall, None] = {}
        self._under_way: dict[PendingCall, None] = {}
        self._none_under_way = trio.Event()
        self._run: Run | None = None
        self._object: Any = None

    @property
    def waiting(self) -> bool:
        """Whether a call waits for the run."""
        return bool(self._waiting)

    def post(self, call: MethodCall) -> PendingCall:
        """Take a call in; `perform` it once its turn has come."""
        pending = PendingCall(call)
        self._waiting[pending] = None
        if self._run is not None:
            self._listen(self._run)
        return pending

    def withdraw(self, pending: PendingCall) -> None:
        """Forget a call that nobody will perform."""
        self._waiting.pop(pending, None)
        if pending in self._under_way:
            self._ended(pending)

    def refuse(self, error: PerdureError) -> None:
        """End the calls that wait: the run that they wait for will not come."""
        for pending in self._waiting:
            pending.refusal = error
            pending.turn.set()
        self._waiting.clear()

    def stop(self, error: PerdureError) -> None:
        """End all calls, those under way by cancellation."""
        self.refuse(error)
        for pending in self._under_way:
            pending.refusal = error
            pending.scope.cancel()

    async def none_under_way(self) -> None:
        """Return when no call is under way."""
        while self._under_way:
            self._none_under_way = trio.Event()
            await self._none_under_way.wait()

    # -- the run of the moment -------------------------------------------------------------

    def run_begins(self, run: Run, workflow: Any) -> None:
        """Serve calls on the object of this run, once it has got through what is recorded."""
        self._run, self._object = run, workflow
        if self._waiting:
            self._listen(run)

    def run_ends(self) -> None:
        """Serve no call until the next run."""
        self._run = self._object = None

    def _listen(self, run: Run) -> None:
        if run.waits_or_works and not run.journal.replaying:
            self._serve()
            return
        run.on_first_wait = self._caught_up

    def _caught_up(self) -> None:
        if self._run is not None and not self._run.journal.replaying:
            self._serve()

    async def turn(self, pending: PendingCall) -> None:
        """Return when a call may begin, or is refused.

        A run that waits for something other than its steps, or will not ask for all that it has, is not
        heard of: so it is looked at besides.
        """
        while not pending.turn.is_set():
            with trio.move_on_after(LOOK_S):
                await pending.turn.wait()
            run = self._run
            if run is not None and (run.waits_or_works or not run.journal.replaying):
                self._serve()

    def _serve(self) -> None:
        run = self._run
        if run is None or run.stopping is not None:
            return
        run.on_first_wait = None
        for pending in self._waiting:
            self._under_way[pending] = None
            pending.run, pending.object = run, self._object
            run.attempt_begins()
            pending.turn.set()
        self._waiting.clear()

    # -- one call --------------------------------------------------------------------------

    async def perform(self, pending: PendingCall) -> MethodReply:
        """Carry out a call whose turn has come, and return its reply. Raises why it was refused."""
        if pending not in self._under_way:
            assert pending.refusal is not None
            raise pending.refusal
        reply: MethodReply | None = None
        try:
            with pending.scope:
                reply = await self._reply(pending)
            await self._host.gate.passed(self._file)
        finally:
            self._ended(pending)
        if reply is None:
            raise pending.refusal or WorkflowCodeError(
                f"the call of {pending.call.method!r} cancelled itself"
            )
        return reply

    def _note(self, call: MethodCall) -> None:
        """Have the history say that a call of another process begins, unless it began already."""
        if call.token is None:
            return
        at_ms = self._host.clock.wall_ms()
        if not self._lifecycle.command(
            "call", at_ms=at_ms, actor=call.who, token=call.token, detail=call.method
        ):
            raise StateError(
                f"{call.method}() was under way when its process ended: nobody knows how far it got"
            )

    def _ended(self, pending: PendingCall) -> None:
        del self._under_way[pending]
        if pending.run is not None:
            pending.run.attempt_ends()
        if not self._under_way:
            self._none_under_way.set()

    async def _reply(self, pending: PendingCall) -> MethodReply:
        call, codec = pending.call, self._host.codec
        before = CURRENT.set(_Underway(call.method))
        try:
            assert self._definition is not None
            method = method_of(self._definition.methods, self._key.workflow, call.method)
            args, kwargs = method.arguments(call, codec)
            self._note(call)
            value = await getattr(pending.object, call.method)(*args, **kwargs)
            return MethodReply(value=codec.coder(method.returns).record(value)[0])
        except SystemExit as error:
            return failed_reply(WorkflowCodeError(f"{call.method}() of {self._key} raised {error!r}"), codec)
        except Exception as error:  # noqa: BLE001 - what a method raises is its caller's
            error.add_note(f"in {call.method}() of {self._key}")
            return failed_reply(error, codec)
        except BaseExceptionGroup as group:  # of a nursery in the method
            if group.subgroup((trio.Cancelled, KeyboardInterrupt)) is not None:
                raise
            return failed_reply(group, codec)
        finally:
            CURRENT.reset(before)
