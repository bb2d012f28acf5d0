"""How a workflow that runs in a worker reaches other instances: here, or through the supervisor.

Invariants:
    What this worker owns, or can claim, never crosses the line.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any, Final

import trio

from perdure.actors.methods import MethodCall, MethodReply
from perdure.actors.outcome import Outcome
from perdure.engine.access import Command, ElsewhereError, stored_outcome
from perdure.engine.line import Line
from perdure.engine.local import LocalAccess
from perdure.engine.messages import Ask, Forget, Look, Request, outcome_of
from perdure.engine.status import InstanceStatus
from perdure.storage.records import FINISHED, Key

CHANGE_LOOK_S: Final = 0.25
"""How often an instance of another worker is looked at by who follows it."""


class WorkerAccess(LocalAccess):
    """The instances of all workers, from inside one of them."""

    def __init__(self, local: LocalAccess, line: Line) -> None:
        super().__init__(local.loop, local.clock, local.queries)
        self._line = line

    async def _ask(self, ask: Ask, key: Key, command: Command | None = None) -> Any:
        return await self._line.ask(Request(ask, key.workflow, key.id, command))

    def _is_here(self, key: Key) -> bool:
        return key in self.loop.lives

    def ring(self) -> None:
        """Have this worker and the others look into the catalog."""
        super().ring()
        self._line.send(Look())

    def forget(self, key: Key) -> None:
        """Have the supervisor forget how the incarnation before ended."""
        self._line.send(Forget(key.workflow, key.id))

    def removed(self, key: Key) -> None:
        """Have those who wait for an instance that was deleted look again, here and elsewhere."""
        super().removed(key)
        self._line.send(Forget(key.workflow, key.id))

    async def outcome(self, key: Key) -> Outcome:
        """Wait until the instance has ended and return how."""
        if self._is_here(key) or self.loop.outcome(key) is not None:
            return await super().outcome(key)
        row = self.require(key)
        if row.status not in FINISHED or row.open:
            answer = await self._ask("outcome", key)
            known = None if answer.ended is None else outcome_of(answer.ended)
            if known is not None:
                return known
            row = self.require(key)
        return await stored_outcome(self, row)

    async def status(self, key: Key) -> InstanceStatus:
        """Return where the instance stands."""
        if self._is_here(key):
            return await super().status(key)
        status: InstanceStatus = (await self._ask("status", key)).status
        return status

    async def command(self, key: Key, command: Command) -> None:
        """Carry out a command here, or have the worker that owns the instance do so."""
        try:
            await super().command(key, command)
        except ElsewhereError:
            await self._ask("command", key, command)

    async def call(self, key: Key, call: MethodCall) -> MethodReply:
        """Carry out a call here, or have the worker that owns the instance do so."""
        try:
            return await super().call(key, call)
        except ElsewhereError:
            answer = await self._line.ask(Request("call", key.workflow, key.id, call=call))
            reply: MethodReply = answer.reply or MethodReply()
            return reply

    @contextlib.asynccontextmanager
    async def reading(self, key: Key) -> AsyncGenerator[tuple[Path, bool]]:
        """Keep the instance's file fit for reading while inside."""
        row = self.require(key)
        if self._is_here(key) or (row.birth is not None and not row.open):
            with contextlib.suppress(ElsewhereError):
                async with super().reading(key) as (path, _):
                    yield path, False  # another worker may restart it meanwhile
                return
        await self._ask("sync", key)
        yield self.folder.instance(key), False

    async def synced(self, key: Key) -> None:
        """Return when all that the instance has written so far may be seen outside."""
        if self._is_here(key):
            await super().synced(key)
        else:
            await self._ask("sync", key)

    async def synced_all(self, workflow: str) -> None:
        """Return when all that the instances of a workflow have written so far may be seen outside."""
        await self._line.ask(Request("sync-all", workflow, ""))

    def has_ended(self, key: Key) -> bool:
        """Whether the instance has ended, or is parked as dead."""
        if self._is_here(key):
            return super().has_ended(key)
        row = self.require(key)
        return row.status in (*FINISHED, "dead") and not row.open

    def change_of(self, key: Key) -> trio.Event:
        """Return an event that is set once the instance may have changed."""
        event = super().change_of(key)
        if not self._is_here(key):
            trio.lowlevel.spawn_system_task(_set_later, event)
        return event


async def _set_later(event: trio.Event) -> None:
    with trio.move_on_after(CHANGE_LOOK_S):
        await event.wait()
    event.set()
