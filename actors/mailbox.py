"""The mailbox: which event goes to which wait (law 6).

Events are matched by type, and by a predicate where the wait has one, oldest event first, to the
wait that was asked for first. A wait that the journal knows and that this run has not asked for
again yet keeps its place in the queue.

Invariants:
    An event goes to one wait, a wait gets one event.
    An event received before a wait's deadline beats the timeout, whenever it is looked at.
"""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import trio

from perdure.actors.host import Clock, deadline_in
from perdure.storage.journal import Journal, Step
from perdure.storage.mail import Mail
from perdure.storage.records import EventRow, Stored


class WaitDetail(msgspec.Struct, frozen=True, omit_defaults=True):
    """What the journal keeps of a wait, and, once delivered, of the event that ended it."""

    type: str
    where: bool = False
    race: int | None = None
    event: int | None = None
    received_at_ms: int | None = None


class Wait:
    """A wait that a running call has asked for. `arrived` is set when its step is settled."""

    __slots__ = ("arrived", "error", "step", "where")

    def __init__(self, step: Step, where: Callable[[Stored], bool] | None) -> None:
        self.step = step
        self.where = where
        self.arrived = trio.Event()
        self.error: BaseException | None = None


class Mailbox:
    """The events and waits of one warm instance."""

    def __init__(self, mail: Mail, journal: Journal, clock: Clock) -> None:
        self._mail = mail
        self._journal = journal
        self._clock = clock
        self._queue: dict[int, Step] = {}
        self._live: dict[int, Wait] = {}
        self.forget_waits()

    @property
    def terminated(self) -> bool:
        """Whether somebody had terminated the instance, since its last restart, when its file was read."""
        return self._mail.terminated

    def forget_waits(self) -> None:
        """Forget the calls of the last run; their waits stand in the journal, which has just been loaded."""
        self._live.clear()
        self._queue = {step.seq: step for step in self._journal.waiting_events()}

    def receive(self, type_: str, payload: Stored, *, token: str | None) -> bool:
        """Take an event in and hand it on; False where its token says it came before."""
        event = self._mail.add(type_, payload, at=deadline_in(self._clock, 0), token=token)
        self.match()
        return event is not None

    def begin_anew(self, birth_token: str, generation: int) -> None:
        """Deliver nothing of what came before a restart from the beginning; see `Mail.begin_anew`."""
        self._mail.begin_anew(birth_token, generation, at=deadline_in(self._clock, 0))

    def knows(self, token: str) -> bool:
        """Whether the message with this token brought its event."""
        return self._mail.knows(token)

    def register(self, wait: Wait) -> None:
        """Queue a wait at the place that its step has, and serve it if an event is there."""
        self._live[wait.step.seq] = wait
        self._queue[wait.step.seq] = wait.step
        self.match()

    def withdraw(self, wait: Wait) -> None:
        """Take a wait that is over out of the queue; one that a stopped run leaves behind keeps its place."""
        if wait.step.finished:
            self._live.pop(wait.step.seq, None)
            self._queue.pop(wait.step.seq, None)

    def match(self) -> None:
        """Deliver every event that a wait is there for."""
        if not self._mail.undelivered:
            return
        queue = [step for _, step in sorted(self._queue.items()) if step.status == "waiting"]
        for event in self._mail.undelivered:
            taker = self._taker(event, queue)
            if taker is not None:
                queue.remove(taker)
                self._deliver(event, taker)
                queue = self._without_rivals(queue, _detail(taker).race)

    def _without_rivals(self, queue: list[Step], race: int | None) -> list[Step]:
        """End the other waits of a race that an event has decided: a loser takes nothing."""
        rivals = [] if race is None else [step for step in queue if _detail(step).race == race]
        for step in rivals:
            self._journal.end(step, "cancelled", at_ms=self._clock.wall_ms(), error=None)
            self._live.pop(step.seq, None)
        return [step for step in queue if step not in rivals]

    def _taker(self, event: EventRow, queue: list[Step]) -> Step | None:
        for step in queue:
            detail = _detail(step)
            if detail.type != event.type:
                continue
            if step.wake is not None and event.received.since(step.wake) > 0:
                continue  # it had timed out when the event came
            wait = self._live.get(step.seq)
            if wait is not None and wait.error is not None:
                continue  # its predicate has failed: it is about to end
            if not detail.where:
                return step
            if wait is None or wait.where is None:
                return None  # its predicate is not here yet: nobody behind it may be served first
            try:
                if wait.where(event.payload if event.payload is not None else "null"):
                    return step
            except Exception as error:  # noqa: BLE001 - the user's predicate: its wait fails with it
                wait.error = error
                wait.arrived.set()
        return None

    def _deliver(self, event: EventRow, step: Step) -> None:
        detail = _detail(step)
        self._mail.deliver(event, step.seq)
        detail = msgspec.structs.replace(detail, event=event.seq, received_at_ms=event.received.wall_ms)
        self._journal.set_detail(step, msgspec.json.encode(detail).decode())
        self._journal.complete(step, event.payload, at_ms=self._clock.wall_ms())
        wait = self._live.pop(step.seq, None)
        if wait is not None:
            wait.arrived.set()


def _detail(step: Step) -> WaitDetail:
    return msgspec.json.decode(step.detail or "{}", type=WaitDetail)


def wait_detail(type_: str, *, where: bool, race: int | None = None) -> str:
    """Return the detail of a new wait as the journal keeps it; `race` is the seq of its race."""
    return msgspec.json.encode(WaitDetail(type_, where, race)).decode()


def delivered(step: Step) -> WaitDetail:
    """Return the detail of a wait that an event has ended."""
    return _detail(step)
