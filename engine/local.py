"""Access to what the game loop of this process owns."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, Callable
from pathlib import Path
from typing import Final

import msgspec
import trio

from perdure.actors.actor import Actor
from perdure.actors.methods import MethodCall, MethodReply
from perdure.actors.outcome import Completed, Dead, Failed, Outcome, Terminated
from perdure.engine.access import (
    Command,
    ElsewhereError,
    queue,
    refuse_expired,
    refuse_finished,
    stored_outcome,
)
from perdure.engine.app import App
from perdure.engine.children import with_outcomes
from perdure.engine.folder import StateFolder
from perdure.engine.loop import GameLoop
from perdure.engine.readers import Readers
from perdure.engine.status import InstanceStatus, status_at_rest, status_of, with_reason
from perdure.engine.timers import WaitingClock
from perdure.errors import PerdureError, RuntimeClosedError
from perdure.storage.catalog import Catalog
from perdure.storage.codec import Codec
from perdure.storage.peek import bring_to_rest, peek_token
from perdure.storage.query import QueryHost
from perdure.storage.records import FINISHED, Birth, CatalogRow, Key, Stored
from perdure.storage.writer import CatalogWriter

POLL_S: Final = 30.0
"""How long `outcome` waits for a change before it looks by itself, should a change have been missed."""
IDLE_TOLD_MS: Final = 1_000
"""How long a run waits outside its steps before its status says where."""


class LocalAccess:
    """The instances of one game loop. Made once, when the runtime opens."""

    def __init__(self, loop: GameLoop, clock: WaitingClock, queries: QueryHost) -> None:
        self.loop = loop
        self._clock = clock
        self.queries = queries
        self.readers = Readers()

    @property
    def folder(self) -> StateFolder:
        """Where they lie."""
        return self.loop.folder

    @property
    def app(self) -> App:
        """What this process can run."""
        return self.loop.app

    @property
    def clock(self) -> WaitingClock:
        """Time and randomness."""
        return self._clock

    @property
    def codec(self) -> Codec:
        """How values are stored."""
        return self.loop.host.codec

    @property
    def catalog(self) -> Catalog:
        """The catalog, for reading in this thread."""
        return self.loop.catalog

    @property
    def writer(self) -> CatalogWriter:
        """The catalog, for writing."""
        return self.loop.writer

    @property
    def closing(self) -> bool:
        """Whether the runtime is ending."""
        return self.loop.closing

    @property
    def is_idle(self) -> bool:
        """Whether nothing is under way: no attempt, no write, no sync."""
        loop = self.loop
        functions = loop.host.functions.statistics()
        return not (
            loop.busy
            or loop.host.gate.busy
            or loop.writer.busy
            or loop.openings.busy
            or loop.closings.busy
            or loop.writings.busy
            or functions.threads_busy
            or functions.asyncio_busy
            or self.queries.statistics().threads_busy
        )

    def ring(self) -> None:
        """Have the next tick come at once."""
        self.loop.ring()

    def posted(self) -> None:
        """Have whoever delivers posts between parents and children look."""
        self.loop.posted()

    async def add(self, birth: Birth, params: Stored, *, start_at_ms: int | None, replace: bool) -> None:
        """Put a new instance into the queue, or start it at once where nothing waits before it.

        Then creation and claim are one write. Nobody else would claim it, so the rest is not left undone.
        """
        if start_at_ms is not None or not self.loop.reserve(birth.workflow):
            await queue(self, birth, params, start_at_ms=start_at_ms, replace=replace)
            return
        with trio.CancelScope(shield=True):
            row: CatalogRow | None = None
            try:
                row = await self.writer.write(
                    lambda catalog: catalog.add_claimed(birth, params, self.loop.worker, replace=replace)
                )
            finally:
                await self.loop.take_up(row)

    def forget(self, key: Key) -> None:
        """Forget how an earlier incarnation ended."""
        self.loop.forget(key)

    def removed(self, key: Key) -> None:
        """Forget an instance that was deleted, and have those who wait for it look again."""
        self.loop.removed(key)
        self.posted()
        if key.workflow in self.loop.flow.rules:
            self.loop.place_freed()

    def require(self, key: Key) -> CatalogRow:
        """Return an instance's row. Raises `InstanceNotFoundError`."""
        return self.loop.require(key)

    async def outcome(self, key: Key) -> Outcome:
        """Wait until the instance has ended and return how."""
        while True:
            turn = self.loop.turn_of(key)
            outcome = self.loop.outcome(key)
            if outcome is None and key not in self.loop.lives:
                row = self.loop.require(key)
                if (row.status in FINISHED or row.status == "dead") and not row.open:
                    outcome = await stored_outcome(self, row)
                    if self.loop.require(key) != row:  # restarted, while its file was read as immutable
                        continue
            match outcome:
                case Completed() | Failed() | Terminated() | Dead():
                    return outcome
                case _:
                    with trio.move_on_after(POLL_S):
                        await turn.wait()

    async def status(self, key: Key) -> InstanceStatus:
        """Return where the instance stands; what it rests on is durable."""
        await trio.lowlevel.checkpoint()  # who asks again and again lets everybody else go on
        status = await self._status(key)
        await self.loop.synced(key)
        return status

    async def _status(self, key: Key) -> InstanceStatus:
        life = self.loop.lives.get(key)
        row = self.loop.require(key)
        if life is not None and life.actor is not None and (life.file is not None or life.ending):
            # While it is being closed its file may not be on the disk yet, nor its row settled.
            state, status = life.actor.lifecycle.state, life.actor.status
            if life.needs_place and status in ("running", "waiting"):
                return status_of("queued", "its turn", state.error, state)
            if status != "waiting" and life.actor.file.failure is None:
                return status_of(status, state.reason or self._kept_warm_by(life.actor), state.error, state)
            if life.file is not None:
                waits = life.actor.waits()
                reason = state.reason or waits.reason
                return status_of(status, reason, state.error, state, wake_at_ms=waits.wake_at_ms)
        while True:
            status_now = await trio.to_thread.run_sync(status_at_rest, row, self.folder.instance(key))
            before, row = row, self.loop.require(key)
            if row == before:  # nobody has opened it meanwhile, and written to what was read as immutable
                break
        if life is not None and life.stuck is not None:
            return msgspec.structs.replace(status_now, reason=str(life.stuck))
        return with_reason(status_now, self.catalog.moves.places.why(row))

    def _kept_warm_by(self, actor: Actor) -> str | None:
        """Return what a running instance waits for that is no step, once it has done so for a while."""
        idle_ms = self._clock.boot_ms() - actor.last_active_ms
        return actor.waits_outside_steps if idle_ms > IDLE_TOLD_MS else None

    async def command(self, key: Key, command: Command) -> None:
        """Carry out a command; it returns once that is durable, `terminate` once the instance is closed."""
        if command.name == "child-ended":
            command = await with_outcomes(self, command)
        await self.loop.at_rest(key)
        row = self.loop.require(key)
        if command.name == "delete":
            if row.open or key in self.loop.lives:
                await self.loop.command(key, command.give)
                await self.loop.closed(key)
            return
        if command.name == "restart":
            await self._restart(key, command)
            return
        if row.status in FINISHED and key not in self.loop.lives:
            if (
                row.archived is None
                and command.token is not None
                and await trio.to_thread.run_sync(peek_token, self.folder.instance(key), command.token)
            ):
                return  # it was carried out, and its reply was lost with an earlier owner
            raise refuse_finished(row)
        await self.loop.command(key, command.give)
        if command.name == "terminate" and not command.rollback:
            await self.loop.closed(key)
        if command.name == "resume" and row.status in ("paused", "dead"):
            await self.writer.write(lambda catalog: catalog.revived(key))

    async def _restart(self, key: Key, command: Command) -> None:
        refuse_expired(self.loop.require(key))
        async with self.readers.kept_out(key):
            await self.loop.command(key, command.give)
            life = self.loop.lives.get(key)
            if life is not None:
                life.found = "running"  # it ends anew, so that is counted
        await self.writer.write(lambda catalog: catalog.revived(key))

    async def call(self, key: Key, call: MethodCall) -> MethodReply:
        """Carry out a call of a method. It goes on where its caller is cancelled."""
        await self.loop.at_rest(key)
        row = self.loop.require(key)
        if row.status in FINISHED and key not in self.loop.lives:
            raise refuse_finished(row)
        ended = trio.Event()
        replies: list[MethodReply | PerdureError] = []

        async def serve() -> None:
            try:
                life = await self.loop.reach(key)
                replies.append(await life.call(call))
            except PerdureError as error:
                replies.append(error)
            finally:
                ended.set()

        if self.closing:
            raise RuntimeClosedError("the runtime is ending and takes no more calls")
        self.loop.spawn(serve)
        await ended.wait()
        if not replies:
            raise RuntimeClosedError(f"the runtime ended under a call of {key}: nobody knows how far it got")
        if isinstance(replies[0], PerdureError):
            raise replies[0]
        return replies[0]

    @contextlib.asynccontextmanager
    async def reading(self, key: Key) -> AsyncGenerator[tuple[Path, bool]]:
        """Give the file's path and whether nobody writes to it; it is made where it is not born yet."""
        loop = self.loop
        row = loop.require(key)
        if row.birth is not None and key not in loop.lives:
            await loop.command(key, Command(name="open").give)
        life = loop.lives.get(key)
        if life is not None:
            await life.opened.wait()
            if life.error is not None:
                raise life.error
            await life.synced()
            if life.ending:
                await life.closed.wait()
        with self.readers.reading(key) as may_be_immutable:
            async with self._reading(key, may_be_immutable) as file:
                yield file

    @contextlib.asynccontextmanager
    async def _reading(
        self, key: Key, may_be_immutable: Callable[[], bool]
    ) -> AsyncGenerator[tuple[Path, bool]]:
        loop = self.loop
        refuse_expired(loop.require(key))
        path = self.folder.instance(key)
        # A reader that was open when the owner closed the file has left the last commits in the WAL.
        whole = key not in loop.lives and await trio.to_thread.run_sync(bring_to_rest, path)
        # One that only rests may wake while it is read, and what is written then must not be overlooked.
        row = loop.require(key)
        immutable = whole and key not in loop.lives and row.status in FINISHED and may_be_immutable()
        try:
            yield path, immutable
        finally:
            if not immutable and key not in loop.lives:  # a closed file that was read has side files now
                with trio.CancelScope(shield=True):
                    await trio.to_thread.run_sync(bring_to_rest, path)

    async def owned(self, key: Key) -> None:
        """Return once the instance is open here. Raises `ElsewhereError` where another process owns it."""
        life = self.loop.lives.get(key)
        if life is None:
            row = self.loop.require(key)
            if not row.open or row.owner != self.loop.worker:
                raise ElsewhereError(f"{key} is not open here")
        else:
            await life.opened.wait()

    async def synced(self, key: Key) -> None:
        """Return when all that the instance has written so far may be seen outside."""
        await self.loop.synced(key)

    async def synced_all(self, workflow: str) -> None:
        """Return when all that the instances of a workflow have written so far may be seen outside."""
        for key in [key for key in self.loop.lives if key.workflow == workflow]:
            await self.loop.synced(key)

    async def closed(self, key: Key) -> None:
        """Return when the instance has left memory."""
        await self.loop.closed(key)

    def has_ended(self, key: Key) -> bool:
        """Whether the instance has ended, or is parked as dead."""
        life = self.loop.lives.get(key)
        if life is not None:
            return life.actor is not None and life.actor.lifecycle.state.status in FINISHED
        return self.loop.require(key).status in (*FINISHED, "dead")

    def change_of(self, key: Key) -> trio.Event:
        """Return an event that is set at the next commit of the instance, or turn of its life."""
        return self.loop.change_of(key)
