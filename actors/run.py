"""One call of `run()`: what is open in it, what is parked, and how it is stopped.

Suspension is cancellation. The runtime owns a cancel scope around the call; to hibernate, pause,
replay or shut down it cancels that scope and discards whatever the call then returns or
raises. No exception class of ours is involved, so nothing in user code can swallow it by accident.

The scope's deadline is a finite moment that never comes. trio tells a task its effective
deadline, so a parked call can see, by public means, whether anything of the user's stands
between it and the scope: a shield shows as infinity, a deadline of the user's as something nearer.

Invariants:
    `stop` takes effect only once; the first reason wins.
    A run is stopped to hibernate or to replay only while no attempt is under way.
    Nothing is recorded by a stopped run but how its attempts ended.
"""

from __future__ import annotations

import contextlib
import gc
import logging
from collections.abc import Callable, Generator, Iterator
from contextvars import ContextVar
from types import FrameType
from typing import Any, Final, Literal, NoReturn, Protocol, cast

import trio

from perdure.actors.bounds import Bounds
from perdure.actors.callee import Callee
from perdure.actors.context import CURRENT
from perdure.actors.functions import Library
from perdure.actors.host import Host, remaining_ms
from perdure.actors.identity import Names
from perdure.actors.mailbox import Mailbox
from perdure.actors.offspring import Children
from perdure.errors import DivergenceError, WorkflowCodeError
from perdure.storage.codec import Coder
from perdure.storage.files import InstanceFile
from perdure.storage.journal import Journal, Step
from perdure.storage.records import Deadline, Key, Stored

FAR_S: Final = 1e17
"""A deadline on trio's clock that never comes and is not infinity."""

Identity = tuple[str, str, int]
"""Kind, name and occurrence of a step."""

EXPIRED: ContextVar[tuple[trio.CancelScope, ...]] = ContextVar("perdure_expired_deadlines", default=())
"""The scopes of durable deadlines that struck in an earlier run, around the task that looks."""

Stop = Literal[
    "replay",
    "hibernate",
    "pause",
    "terminate",
    "expire",
    "shutdown",
    "broken",
    "registered",
    "restart",
    "delete",
]

INTERRUPTING: Final = ("shutdown", "restart", "delete")
"""Reasons for which an attempt is recorded as interrupted, not as cancelled: its step may go on later."""

ENDING: Final = (None, "terminate", "expire")
"""Whether a cancelled call is over for good: by the user's own scope (None), or with the instance."""


GoOn = Callable[[Stored, Literal["latest", "same"]], None]
"""What is called to have the instance go on with new params and an empty journal."""


class Report(Protocol):
    """What is called with a divergence: what differs, the error that says so, and whether it is serious."""

    def __call__(self, what: str, error: DivergenceError, /, *, serious: bool) -> None:
        """Report it, or raise the error, as the workflow's policy says."""
        ...


class Leaf:
    """A task that waits in a parked call, and what keeps it from hibernating, if anything.

    `arrived` is set once it is to go on, which trio lets it do a moment later.
    """

    __slots__ = ("arrived", "hindrance", "scope", "task", "wake")

    def __init__(self, task: trio.lowlevel.Task, wake: Deadline | None, hindrance: str | None) -> None:
        self.task = task
        self.wake = wake
        self.hindrance = hindrance
        self.scope = None if hindrance is None else trio.CancelScope()
        self.arrived: trio.Event | None = None


class Run:
    """One call of `run()` under way. Made anew for each replay; used by step calls and the actor.

    `running` counts attempts under way; `open_calls` holds calls made and not finished, in order.
    `callees` remembers what the step functions of this run are like, `declared` the steps that decorators
    declared, by name, `patches` what `step.patched` has answered; `token` leads into the loop from other
    threads; `held`: no attempt may start now.
    `on_first_wait`, where somebody has set it, is called when an attempt begins or a call parks.
    `handlers` are the rollback handlers that its calls have registered. A run that is replayed for
    handlers alone has in `sought` those that are still missing, and begins no step that is not recorded.
    `overdue` names the attempts that are past their timeout and cannot be stopped. `on_quiet` is called
    when the last attempt has ended or a call has parked, `on_overdue` when `overdue` has changed.
    """

    def __init__(
        self,
        *,
        key: Key,
        file: InstanceFile,
        journal: Journal,
        mailbox: Mailbox,
        children: Children,
        go_on: GoOn,
        accept_params: Callable[[Any], Stored],
        host: Host,
        library: Library,
        incarnation: int,
        bounds: Bounds | None,
        log: logging.LoggerAdapter[logging.Logger],
        on_divergence: Report,
        on_quiet: Callable[[], None],
        on_overdue: Callable[[], None],
    ) -> None:
        self.key = key
        self.file = file
        self.journal = journal
        self.mailbox = mailbox
        self.children = children
        self.go_on = go_on
        self.accept_params = accept_params
        self.host = host
        self.library: Library = library
        self.instance = str(key)
        self.idempotency_prefix = f"{key.workflow}-{incarnation & 0xFFFFFFFFFFFFFFFF:016x}"
        self.log = log
        self.names = Names(trio.lowlevel.current_task())
        self.open_calls: dict[Any, None] = {}
        self.callees: dict[object, tuple[Callee, Coder]] = {}
        self.declared: dict[str, Any] = {}
        self.patches: dict[str, Step] = {}
        self.bounds = bounds
        self.token = trio.lowlevel.current_trio_token()
        self.describe = host.codec.describe
        self.replays_always = host.replay == "always"
        self.held = False
        self.running = 0
        self.overdue: dict[str, None] = {}
        self.handlers: dict[Identity, Any] = {}
        self.sought: set[Identity] | None = None
        self.stopping: Stop | None = None
        self.pausing = False
        self.over = False
        self.on_first_wait: Callable[[], None] | None = None
        self._scope = trio.CancelScope(deadline=FAR_S)
        self._task = trio.lowlevel.current_task()
        self._leaves: dict[Leaf, None] = {}
        self._is_idle = False
        self._replay_wanted = False
        self._may_start = trio.Event()
        self._on_divergence = on_divergence
        self._on_quiet = on_quiet
        self._on_overdue = on_overdue

    # -- the call as a whole ---------------------------------------------------------------

    @property
    def scope(self) -> trio.CancelScope:
        """The cancel scope around the call. The actor enters it; `stop` cancels it."""
        return self._scope

    def stop(self, why: Stop) -> None:
        """End the call by cancellation. Only the first reason counts."""
        if self.stopping is None and not self.over:
            self.stopping = why
            self._scope.cancel()
            for leaf in self._leaves:
                if leaf.scope is not None:  # a shield of the user's would keep the cancellation out
                    leaf.scope.cancel()

    def end(self) -> None:
        """Say that the call is over. A task that it did not wait for records nothing from now on (law 8)."""
        self.over = True
        self._note_idle()
        self.journal = cast("Journal", _Ended(self.key))

    def pause(self) -> bool:
        """Let attempts under way finish and start no more; True where none was under way."""
        self.pausing = True
        self._hold()
        self._stop_when_quiet()
        return self.running == 0

    def unpause(self) -> None:
        """Take a pause back that has not come about."""
        self.pausing = False
        if not self._replay_wanted:
            self.held = False
            self._may_start.set()

    def _hold(self) -> None:
        if not self.held:
            self.held = True
            self._may_start = trio.Event()

    def _stop_when_quiet(self) -> None:
        if self.running == 0:
            if self.pausing:
                self.stop("pause")
            elif self._replay_wanted:
                self.stop("replay")
            elif self._leaves:  # where nothing is parked, run() goes on by itself
                self._on_quiet()

    @property
    def is_idle(self) -> bool:
        """Whether no attempt is under way and at least one call is parked. Counted in `Host.idle`."""
        return self._is_idle

    def _note_idle(self) -> None:
        is_idle = self.running == 0 and bool(self._leaves) and not self.over
        if is_idle is not self._is_idle:
            self._is_idle = is_idle
            self.host.idle += 1 if is_idle else -1

    # -- for step calls --------------------------------------------------------------------

    def require_call(self, name: str) -> None:
        """Refuse a step call that is made where none may be."""
        attempt = CURRENT.get(None)
        if attempt is not None:
            raise WorkflowCodeError(
                f"step {name!r} was called inside the step function of {attempt.name!r}: steps do not"
                " nest; call it from run(), or call the plain function"
            )
        if self.over:
            raise WorkflowCodeError(f"step {name!r} was called after run() of {self.key} had ended")

    @contextlib.contextmanager
    def declaring(self) -> Generator[None]:
        """Several calls made as one: when one of them is refused, none has been made (law 13)."""
        before = len(self.open_calls)
        try:
            yield
        except BaseException:
            for call in list(self.open_calls)[before:]:
                del self.open_calls[call]
            raise

    def register(self, identity: Identity, handler: Any) -> None:
        """Keep a step's rollback handler. A replay for handlers ends with the last that was missing."""
        self.handlers[identity] = handler
        if self.sought is not None:
            self.sought.discard(identity)
            if not self.sought:
                self.stop("registered")

    async def admit(self, *, recorded: bool = False) -> None:
        """Let a call begin, or raise cancellation again in a run that is being stopped.

        In a replay for rollback handlers a call that is not `recorded` waits until the run is stopped.
        """
        for scope in EXPIRED.get():  # a new call inside a deadline that has struck already
            scope.cancel()
        if self.stopping is not None or (self.sought is not None and not recorded):
            await self.until_cancelled()

    async def may_start(self) -> None:
        """Return when a new attempt may start: no pause and no replay is pending."""
        while self.held:
            if self.stopping is not None:
                await self.until_cancelled()
            with self.parked(None):
                await self._may_start.wait()

    async def until_cancelled(self) -> NoReturn:
        """Wait for the cancellation that has to come, and raise it, even under a shield of the user's."""
        if self.stopping is None:
            with self.parked(None):
                await trio.sleep_forever()
        caught: trio.Cancelled | None = None
        with trio.CancelScope() as scope:
            scope.cancel()
            try:
                await trio.lowlevel.checkpoint()
            except trio.Cancelled as cancelled:
                caught = cancelled
                raise
        assert caught is not None
        raise caught

    def attempt_begins(self) -> None:
        """Count an attempt as under way; nothing stops the run for quiet until it has ended."""
        self.running += 1
        if self._leaves:
            self._note_idle()
        if self.on_first_wait is not None:
            self.on_first_wait()

    def attempt_ends(self) -> None:
        """Count an attempt as ended."""
        self.running -= 1
        if self._leaves:
            self._note_idle()
        if self.running == 0:
            self._stop_when_quiet()

    def overdue_begins(self, name: str) -> None:
        """Show that an attempt is past its timeout and has still to be waited for (law 5)."""
        self.overdue[name] = None
        self._on_overdue()

    def overdue_ends(self, name: str) -> None:
        """Show that such an attempt has ended. Harmless where it was in time."""
        if name in self.overdue:
            del self.overdue[name]
            self._on_overdue()

    async def recorded(self) -> None:
        """Say that a step was recorded. With `replay="always"` the run then starts over.

        While other attempts are under way it returns, so that what was recorded can end them (a race,
        a user's own cancel scope); no new attempt starts, and the last to end starts the run over.
        """
        if self.replays_always:
            self._replay_wanted = True
            self._hold()
            self._stop_when_quiet()
            if self.stopping is not None:
                await self.until_cancelled()

    async def broke(self, error: Exception) -> None:
        """Reset the actor by stopping the run: the file has failed under a call."""
        self.log.error("%s", error)
        self.stop("broken")
        await self.until_cancelled()

    def diverged(self, what: str, error: DivergenceError, *, serious: bool) -> None:
        """Report a divergence; raises `error` where the workflow's policy says so."""
        self._on_divergence(what, error, serious=serious)

    # -- parking ---------------------------------------------------------------------------

    @contextlib.contextmanager
    def parked(self, wake: Deadline | None) -> Generator[Leaf]:
        """Mark the calling task as parked until `wake`, or for an event, while inside."""
        leaf = Leaf(trio.lowlevel.current_task(), wake, self._hindrance())
        self._leaves[leaf] = None
        self._note_idle()
        try:
            if self.on_first_wait is not None:
                self.on_first_wait()
            if self.running == 0:
                self._on_quiet()
            with leaf.scope or contextlib.nullcontext():
                yield leaf
        finally:
            del self._leaves[leaf]
            self._note_idle()

    def _hindrance(self) -> str | None:
        effective = trio.current_effective_deadline()
        if effective == FAR_S or self.stopping is not None:
            return None
        if effective > FAR_S:
            return "a cancel scope with shield=True stands around a parked step"
        return (
            "a plain cancel scope with a deadline stands around a parked step; it would start anew after a"
            " hibernation: use timeout=, step.race or step.move_on_after"
        )

    async def park_until(self, wake: Deadline | None, event: trio.Event) -> None:
        """Return when `event` is set, at `wake` at the latest."""
        timer = None if wake is None else self.host.timers.at(wake, event.set)
        try:
            with self.parked(wake) as leaf:
                leaf.arrived = event
                await event.wait()
        finally:
            if timer is not None:
                timer.cancel()
        if self.stopping is not None:
            await self.until_cancelled()

    @property
    def kept_warm_by(self) -> str | None:
        """What keeps this run from hibernating, for people; None where nothing does."""
        if self.running:
            return "a step is running"
        for leaf in self._leaves:
            if leaf.hindrance is not None:
                return leaf.hindrance
            if leaf.arrived is not None and leaf.arrived.is_set():  # stopped now, nobody would wake it again
                return "what it waited for has come"
        parked = {leaf.task for leaf in self._leaves}
        for task in _leaf_tasks(self._task):
            if task not in parked:
                return f"a task waits outside any step at {_line(task)}"
        return None

    @property
    def waits_or_works(self) -> bool:
        """Whether a call is parked or an attempt under way: what comes before them is done."""
        return self.running > 0 or bool(self._leaves)

    @property
    def parked_calls(self) -> int:
        """How many calls are parked."""
        return len(self._leaves)

    def next_wake(self) -> Deadline | None:
        """Return the earliest deadline that a parked call waits for."""
        wakes = [leaf.wake for leaf in self._leaves if leaf.wake is not None]
        return min(wakes, key=lambda wake: remaining_ms(self.host.clock, wake), default=None)


class _Ended:
    """Stands for the journal of a run that is over."""

    def __init__(self, key: Key) -> None:
        self._key = key

    def __getattr__(self, name: str) -> NoReturn:
        raise WorkflowCodeError(
            f"a step of {self._key} ended after run() had ended: await every step in run()"
        )


def _leaf_tasks(task: trio.lowlevel.Task) -> Iterator[trio.lowlevel.Task]:
    """Yield the tasks of a run that wait for something other than their children."""
    children = [child for nursery in task.child_nurseries for child in nursery.child_tasks]
    for child in children:
        yield from _leaf_tasks(child)
    if not (children and _waits_for_children(task)):
        yield task


def _waits_for_children(task: trio.lowlevel.Task) -> bool:
    return any(frame.f_code.co_name == "_nested_child_finished" for frame in _frames(task)[-3:])


def _frames(task: trio.lowlevel.Task) -> list[FrameType]:
    """Return the frames a task is suspended in, outermost first.

    trio's own walk ends at the first object with an `__await__` of its own, as every step call is:
    what lies behind it is asked of the garbage collector.
    """
    frames: list[FrameType] = []
    awaited: Any = task.coro
    while awaited is not None:
        for frame, further in (
            ("cr_frame", "cr_await"),
            ("gi_frame", "gi_yieldfrom"),
            ("ag_frame", "ag_await"),
        ):
            if hasattr(awaited, frame):
                frames.append(getattr(awaited, frame))
                awaited = getattr(awaited, further)
                break
        else:  # the wrapper that a coroutine's __await__ gives, or a step of an async generator
            behind = [
                found
                for found in gc.get_referents(awaited)
                if hasattr(found, "cr_frame") or hasattr(found, "ag_frame")
            ]
            awaited = behind[0] if behind else None
    return frames


def _line(task: trio.lowlevel.Task) -> str:
    """Return the innermost line of a task that is not trio's or ours."""
    best = "an unknown line"
    for frame in _frames(task):
        module = frame.f_globals.get("__name__", "")
        if not module.startswith(("trio.", "perdure.", "contextlib")):
            best = f"{frame.f_code.co_filename}:{frame.f_lineno}"
    return best
