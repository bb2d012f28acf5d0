"""Access to instances that workers own, from the process that supervises them.

The catalog says who owns an instance; its owner is asked over the line. What nobody owns is read where
it lies, or handed to one of the workers, which claims it. A worker that dies in the middle of a
request, or has given the instance up, costs another round: tokens make commands harmless to repeat.

Invariants:
    The front owns no instance and opens no instance's file for writing.
    A command is carried out once, however many workers it was handed to.
    How an instance ended is told by its owner once that is durable, or read from its file at rest.
"""

from __future__ import annotations

import collections
import contextlib
import logging
from collections.abc import AsyncGenerator, Callable
from pathlib import Path
from typing import Final

import msgspec
import trio

from perdure.actors.methods import MethodCall, MethodReply
from perdure.actors.outcome import Outcome
from perdure.engine.access import (
    Command,
    ElsewhereError,
    queue,
    refuse_expired,
    refuse_finished,
    required,
    stored_outcome,
)
from perdure.engine.app import App
from perdure.engine.folder import StateFolder
from perdure.engine.line import LineClosedError
from perdure.engine.messages import (
    Answer,
    Ask,
    Changed,
    Counters,
    Ended,
    Follow,
    Forget,
    Look,
    Message,
    Posted,
    Request,
    ended,
    failed,
    outcome_of,
)
from perdure.engine.readers import Readers
from perdure.engine.statistics import RuntimeStatistics, united
from perdure.engine.status import InstanceStatus, status_at_rest, with_reason
from perdure.engine.supervisor import Supervisor, Worker
from perdure.engine.timers import WaitingClock
from perdure.errors import PerdureError, RuntimeClosedError, StateError
from perdure.storage.catalog import Catalog
from perdure.storage.codec import Codec
from perdure.storage.peek import bring_to_rest, peek_token
from perdure.storage.records import FINISHED, Birth, CatalogRow, Key, Stored
from perdure.storage.writer import CatalogWriter

logger: Final = logging.getLogger("perdure.engine")
POLL_S: Final = 5.0
"""How long a result is waited for before the catalog is asked, should its end not have been told."""
AGAIN_S: Final = 0.05
"""How long an instance between two owners is left alone before it is looked at again."""
CHANGE_LOOK_S: Final = 1.0
"""How often who follows an instance looks by itself: it may change hands while it is asked for."""
OUTCOMES_KEPT: Final = 2_000
"""Outcomes remembered for `result()`, so that it need not open the file."""


class Front:
    """The instances of all workers. Made once, when the runtime opens."""

    def __init__(
        self,
        *,
        folder: StateFolder,
        app: App,
        clock: WaitingClock,
        codec: Codec,
        catalog: Catalog,
        writer: CatalogWriter,
    ) -> None:
        self.folder = folder
        self.app = app
        self.clock = clock
        self.codec = codec
        self.catalog = catalog
        self.writer = writer
        self.closing = False
        self.on_posted: Callable[[], None] | None = None
        self.readers = Readers()
        self._supervisor: Supervisor | None = None
        self._outcomes: collections.OrderedDict[Key, Outcome] = collections.OrderedDict()
        self._turns: dict[Key, trio.Event] = {}
        self._changes: dict[Key, trio.Event] = {}
        self._counters: dict[int, RuntimeStatistics] = {}

    @property
    def is_idle(self) -> bool:
        """Never: what the workers do is not seen from here."""
        return False

    @property
    def supervisor(self) -> Supervisor:
        """The workers. Raises `RuntimeClosedError` before they are started."""
        if self._supervisor is None:
            raise RuntimeClosedError("the workers are not started")
        return self._supervisor

    def attach(self, supervisor: Supervisor) -> None:
        """Reach instances through these workers."""
        self._supervisor = supervisor

    def statistics(self) -> RuntimeStatistics:
        """Return what the workers last sent, added up: at most a second or so old."""
        there = self.supervisor.workers
        return united([each for number, each in self._counters.items() if number in there]
                      or list(self._counters.values())[-1:])  # fmt: skip

    # -- what workers say ------------------------------------------------------------------

    def hear(self, worker: Worker, message: Message) -> None:
        """Take a message of a worker."""
        match message:
            case Ended(workflow=workflow, id=id_):
                self._ended(Key(workflow, id_), outcome_of(message))
            case Changed(workflow=workflow, id=id_):
                self._wake(self._changes, Key(workflow, id_))
            case Counters(statistics=data):
                self._counters[worker.number] = msgspec.msgpack.decode(data, type=RuntimeStatistics)
                self._drop_old_counters()
            case Forget(workflow=workflow, id=id_):
                self.removed(Key(workflow, id_))
            case Look():
                self.ring()
            case Posted():
                self.posted()
            case _:
                pass

    def _ended(self, key: Key, outcome: Outcome | None) -> None:
        if outcome is not None:
            self._outcomes[key] = outcome
            while len(self._outcomes) > OUTCOMES_KEPT:
                self._outcomes.popitem(last=False)
        self._wake(self._changes, key)
        self._wake(self._turns, key)

    def _wake(self, waiting: dict[Key, trio.Event], key: Key) -> None:
        event = waiting.pop(key, None)
        if event is not None:
            event.set()

    def _drop_old_counters(self) -> None:
        for number in [number for number in self._counters if number not in self.supervisor.workers]:
            if len(self._counters) > 1:
                del self._counters[number]

    async def serve(self, request: Request) -> Answer:
        """Answer a worker whose workflow reaches for an instance that is not its own."""
        key, number = Key(request.workflow, request.id), request.number
        try:
            match request.ask:
                case "command" if request.command is not None:
                    await self.command(key, request.command)
                case "call" if request.call is not None:
                    return Answer(number, reply=await self.call(key, request.call))
                case "status":
                    return Answer(number, status=await self.status(key))
                case "outcome":
                    return Answer(number, ended=ended(key, await self.outcome(key)))
                case "sync":
                    await self._made(key)
                    await self.synced(key)
                case "sync-all":
                    await self.synced_all(request.workflow)
                case _:
                    raise PerdureError(f"a supervisor does not answer {request.ask!r}")
        except PerdureError as error:
            return failed(number, error)
        except Exception as error:
            logger.exception("%s of %s failed", request.ask, key)
            return failed(number, PerdureError(f"{request.ask} failed: {error!r}"))
        return Answer(number)

    # -- who owns what ---------------------------------------------------------------------

    def ring(self) -> None:
        """Have all workers look into the catalog."""
        if self._supervisor is not None:
            self._supervisor.tell_all(Look())

    async def add(self, birth: Birth, params: Stored, *, start_at_ms: int | None, replace: bool) -> None:
        """Put a new instance into the queue, for a worker to claim."""
        await queue(self, birth, params, start_at_ms=start_at_ms, replace=replace)

    def forget(self, key: Key) -> None:
        """Forget how an instance ended: another incarnation takes its place, or it is revived."""
        self._outcomes.pop(key, None)

    def removed(self, key: Key) -> None:
        """Forget an instance that was deleted, and have those who wait for it look again."""
        self.forget(key)
        self._wake(self._changes, key)
        self._wake(self._turns, key)
        self.posted()
        if key.workflow in self.app.rules:  # it may leave a place to another
            self.ring()

    def posted(self) -> None:
        """Have whoever delivers posts between parents and children look."""
        if self.on_posted is not None:
            self.on_posted()

    def require(self, key: Key) -> CatalogRow:
        """Return an instance's row. Raises `InstanceNotFoundError`."""
        return required(self.catalog.find(key), key, self.folder)

    async def _ask(self, worker: Worker, ask: Ask, key: Key, command: Command | None = None) -> Answer | None:
        """Ask a worker; None where it is not the one, or not there any more."""
        try:
            return await worker.line.ask(Request(ask, key.workflow, key.id, command))
        except (ElsewhereError, LineClosedError):
            pass
        except RuntimeClosedError:
            if self.closing:
                raise
            await trio.sleep(AGAIN_S)  # it is leaving, and about to park the instance
        await trio.lowlevel.checkpoint()
        return None

    async def _ask_owner(self, ask: Ask, key: Key) -> Answer | None:
        """Ask the worker that owns the instance; None where nobody owns it."""
        while (row := self.require(key)).open:
            self._refuse_closing()
            worker = self.supervisor.owner(row.owner)
            if worker is None:  # it has died, and is about to be taken over
                await self.supervisor.changed(AGAIN_S)
                continue
            answer = await self._ask(worker, ask, key)
            if answer is not None:
                return answer
        return None

    def _refuse_closing(self) -> None:
        if self.closing:
            raise RuntimeClosedError("the runtime is ending and takes no more work")

    # -- asking ----------------------------------------------------------------------------

    async def outcome(self, key: Key) -> Outcome:
        """Wait until the instance has ended and return how."""
        while True:
            turn = self._turns.setdefault(key, trio.Event())
            known = self._outcomes.get(key)
            if known is not None:
                return known
            row = self.require(key)
            if (row.status in FINISHED or row.status == "dead") and not row.open:
                return await stored_outcome(self, row)
            with trio.move_on_after(POLL_S):
                await turn.wait()

    async def status(self, key: Key) -> InstanceStatus:
        """Return where the instance stands; what it rests on is durable."""
        while True:
            answer = await self._ask_owner("status", key)
            if answer is not None and answer.status is not None:
                return answer.status
            row = self.require(key)
            status = await trio.to_thread.run_sync(status_at_rest, row, self.folder.instance(key))
            status = with_reason(status, self.catalog.moves.places.why(row))
            if _is_same(row, self.require(key)):  # nobody has had it open meanwhile
                return status

    @contextlib.asynccontextmanager
    async def reading(self, key: Key) -> AsyncGenerator[tuple[Path, bool]]:
        """Give the file's path, which a worker may be writing to; it is made where it is not born yet."""
        refuse_expired(self.require(key))
        await self._made(key)
        await self.synced(key)
        path = self.folder.instance(key)
        try:
            with self.readers.reading(key):
                yield path, False
        finally:
            row = self.catalog.find(key)
            if row is None or not row.open:  # a closed file that was read has side files now
                with trio.CancelScope(shield=True):
                    await trio.to_thread.run_sync(bring_to_rest, path)

    async def _made(self, key: Key) -> None:
        row = self.require(key)
        if row.birth is not None and not row.open:
            await self.command(key, Command(name="open"))

    async def synced(self, key: Key) -> None:
        """Return when all that the instance has written so far may be seen outside."""
        await self._ask_owner("sync", key)

    async def synced_all(self, workflow: str) -> None:
        """Return when all that the instances of a workflow have written so far may be seen outside."""
        for worker in self.supervisor.running:
            await self._ask(worker, "sync-all", Key(workflow, ""))

    async def closed(self, key: Key) -> None:
        """Return when the instance has left memory."""
        while (row := self.catalog.find(key)) is not None and row.open:
            await self.supervisor.changed(AGAIN_S)

    def has_ended(self, key: Key) -> bool:
        """Whether the instance has ended, or is parked as dead."""
        if key in self._outcomes:
            return True
        row = self.require(key)
        return row.status in (*FINISHED, "dead") and not row.open

    def change_of(self, key: Key) -> trio.Event:
        """Return an event that is set at the instance's next commit, or when it is time to look again."""
        event = self._changes.get(key)
        if event is None:
            event = self._changes[key] = trio.Event()
            self.supervisor.tell_all(Follow(key.workflow, key.id))
        return event

    async def run(self) -> None:
        """Serve until cancelled: have those who follow look again, whatever was told."""
        while True:
            await trio.sleep(CHANGE_LOOK_S)
            for key in list(self._changes):
                self._wake(self._changes, key)

    # -- commanding ------------------------------------------------------------------------

    async def command(self, key: Key, command: Command) -> None:
        """Have a command carried out by the owner, or by a worker that then is."""
        if command.token is None:
            token = f"{self.clock.random_bits(128):032x}"
            command = msgspec.structs.replace(command, token=token)
        while True:
            self._refuse_closing()
            row = self.require(key)
            if command.name == "delete" and not row.open:
                return
            if command.name == "restart":
                refuse_expired(row)
            if row.status in FINISHED and not row.open and command.name != "restart":
                await self._refuse_finished(row, command)
                return
            supervisor = self.supervisor
            worker = supervisor.owner(row.owner) if row.open else supervisor.any()
            if worker is None:
                await supervisor.changed(AGAIN_S)
                continue
            revives = command.name in ("resume", "restart")
            if revives:
                self.forget(key)
            if await self._ask(worker, "command", key, command) is not None:
                if revives:  # the owner may have told how it ended before on its way here
                    self.forget(key)
                return

    async def call(self, key: Key, call: MethodCall) -> MethodReply:
        """Have a call carried out by the owner, or by a worker that then is; at most once."""
        while True:
            self._refuse_closing()
            row = self.require(key)
            if row.status in FINISHED and not row.open:
                raise refuse_finished(row)
            worker = self.supervisor.owner(row.owner) if row.open else self.supervisor.any()
            if worker is None:
                await self.supervisor.changed(AGAIN_S)
                continue
            try:
                answer = await worker.line.ask(Request("call", key.workflow, key.id, call=call))
            except ElsewhereError:
                await trio.lowlevel.checkpoint()
            except LineClosedError as error:
                raise StateError(
                    f"the worker died during {call.method}() of {key}: nobody knows how far it got"
                ) from error
            else:
                return answer.reply or MethodReply()

    async def _refuse_finished(self, row: CatalogRow, command: Command) -> None:
        """Raise `InstanceFinishedError`, unless this very command was carried out and its reply was lost."""
        path, token = self.folder.instance(row.key), command.token
        if row.archived is not None or token is None:
            raise refuse_finished(row)
        if not await trio.to_thread.run_sync(peek_token, path, token):
            raise refuse_finished(row)


def _is_same(before: CatalogRow, after: CatalogRow) -> bool:
    return (before.incarnation, before.epoch, before.open) == (after.incarnation, after.epoch, after.open)
