"""The way from a handle to its instance, wherever that is warm.

`Instance` and `Runtime` know this protocol alone. `LocalAccess` reaches what the game loop of this
process owns; with several workers `Front` asks the worker that owns it, and a worker's own
`WorkerAccess` does one or the other. What crosses is data, so that it can cross processes.

Invariants:
    What an access tells of an instance is durable (law 2).
    A command returns after its effect is durable; its token makes it harmless to repeat.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any, Literal, Protocol

import msgspec
import trio

from perdure.actors.actor import Actor
from perdure.actors.control import RestartFrom
from perdure.actors.methods import MethodCall, MethodReply
from perdure.actors.outcome import Completed, Dead, Failed, Interrupted, Outcome, Terminated
from perdure.engine.app import App
from perdure.engine.folder import StateFolder
from perdure.engine.readers import Readers
from perdure.engine.status import InstanceStatus
from perdure.engine.timers import WaitingClock
from perdure.errors import (
    InstanceExpiredError,
    InstanceFinishedError,
    InstanceNotFoundError,
    PerdureError,
    QueryError,
)
from perdure.storage.catalog import Catalog
from perdure.storage.codec import Codec
from perdure.storage.family import ChildEnd
from perdure.storage.peek import peek_state
from perdure.storage.records import Birth, CatalogRow, InstanceState, Key, Stored
from perdure.storage.removals import DELETING
from perdure.storage.writer import CatalogWriter

CommandName = Literal[
    "send-event", "pause", "resume", "terminate", "restart", "delete", "open", "child-ended"
]


class Command(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """What is asked of one instance; `type` and `payload` are an event's, `open` only makes the file."""

    name: CommandName
    type: str = ""
    payload: Any = "null"  # `Stored`: on its way, text and bytes are told apart only so
    who: str | None = None
    token: str | None = None
    origin: RestartFrom = RestartFrom()
    rollback: bool = False

    def give(self, actor: Actor) -> None:
        """Have the actor write it down. Raises what the actor raises."""
        match self.name:
            case "send-event":
                actor.control.receive(self.type, self.payload, token=self.token)
            case "pause":
                actor.control.pause(who=self.who, token=self.token)
            case "resume":
                actor.control.resume(who=self.who, token=self.token)
            case "terminate":
                actor.control.terminate(who=self.who, token=self.token, rollback=self.rollback)
            case "restart":
                actor.control.restart(self.origin, who=self.who, token=self.token)
            case "delete":
                actor.control.delete(self.token)
            case "child-ended":
                actor.children.ended(msgspec.json.decode(self.payload, type=list[ChildEnd]))
            case "open":
                pass


class ElsewhereError(PerdureError):
    """Another worker owns the instance. Never leaves the engine."""


class Access(Protocol):
    """How instances of one state folder are reached."""

    @property
    def folder(self) -> StateFolder:
        """Where they lie."""
        ...

    @property
    def app(self) -> App:
        """What can be run."""
        ...

    @property
    def clock(self) -> WaitingClock:
        """Time and randomness."""
        ...

    @property
    def codec(self) -> Codec:
        """How values are stored."""
        ...

    @property
    def catalog(self) -> Catalog:
        """The catalog, for reading in this thread."""
        ...

    @property
    def writer(self) -> CatalogWriter:
        """The catalog, for writing."""
        ...

    @property
    def readers(self) -> Readers:
        """Who reads the files of instances at rest."""
        ...

    @property
    def closing(self) -> bool:
        """Whether the runtime is ending."""
        ...

    @property
    def is_idle(self) -> bool:
        """Whether nothing is under way."""
        ...

    def ring(self) -> None:
        """Have whoever runs instances look into the catalog: something may be able to move."""
        ...

    def forget(self, key: Key) -> None:
        """Forget how an instance ended: another incarnation takes its place."""
        ...

    def removed(self, key: Key) -> None:
        """Forget an instance that was deleted, and have those who wait for it look again."""
        ...

    def posted(self) -> None:
        """Have whoever delivers posts between parents and children look: there are some."""
        ...

    async def add(self, birth: Birth, params: Stored, *, start_at_ms: int | None, replace: bool) -> None:
        """Return once a new instance is in the catalog, durably. Raises `InstanceExistsError`."""
        ...

    def require(self, key: Key) -> CatalogRow:
        """Return an instance's row. Raises `InstanceNotFoundError`."""
        ...

    async def outcome(self, key: Key) -> Outcome:
        """Wait until the instance has ended and return how. Raises `InstanceNotFoundError`."""
        ...

    async def status(self, key: Key) -> InstanceStatus:
        """Return where the instance stands."""
        ...

    async def command(self, key: Key, command: Command) -> None:
        """Carry out a command. Raises `InstanceNotFoundError`, `InstanceFinishedError`, `StateError`."""
        ...

    async def call(self, key: Key, call: MethodCall) -> MethodReply:
        """Carry out a call of a method; at most once. Raises what `command` raises."""
        ...

    def reading(self, key: Key) -> AbstractAsyncContextManager[tuple[Path, bool]]:
        """Keep the instance's file fit for reading; yields its path and whether nobody writes to it."""
        ...

    async def synced(self, key: Key) -> None:
        """Return when all that the instance has written so far may be seen outside."""
        ...

    async def synced_all(self, workflow: str) -> None:
        """Return when all that the instances of a workflow have written so far may be seen outside."""
        ...

    async def closed(self, key: Key) -> None:
        """Return when the instance has left memory."""
        ...

    def has_ended(self, key: Key) -> bool:
        """Whether the instance has ended, or is parked as dead."""
        ...

    def change_of(self, key: Key) -> trio.Event:
        """Return an event that is set once the instance may have changed. Asked for before looking."""
        ...


async def queue(
    access: Access, birth: Birth, params: Stored, *, start_at_ms: int | None, replace: bool
) -> None:
    """Put a new instance into the queue, for whoever claims it."""
    await access.writer.write(
        lambda catalog: catalog.add(birth, params, start_at_ms=start_at_ms, replace=replace)
    )
    access.forget(Key(birth.workflow, birth.id))
    access.ring()


async def peek(access: Access, key: Key) -> InstanceState:
    """Return the own row of an instance at rest. Raises `InstanceDamagedError`."""
    path = access.folder.instance(key)
    return await trio.to_thread.run_sync(peek_state, path)


def required(row: CatalogRow | None, key: Key, folder: StateFolder) -> CatalogRow:
    """Return a row that has to be there. Raises `InstanceNotFoundError`."""
    if row is None or row.open == DELETING:
        raise InstanceNotFoundError(
            f"there is no instance {key} in {folder.root}; `perdure list` shows those there are",
            workflow=key.workflow,
            instance_id=key.id,
        )
    return row


@contextlib.asynccontextmanager
async def reading(access: Access, key: Key) -> AsyncGenerator[tuple[Path, bool]]:
    """As `Access.reading`, and tell a query that fails since its instance was deleted that this is why.

    Raises `InstanceNotFoundError`, also where another of its id has come since.
    """
    incarnation = access.require(key).incarnation
    try:
        async with access.reading(key) as file:
            yield file
    except QueryError as error:
        if access.require(key).incarnation == incarnation:
            raise
        raise InstanceNotFoundError(
            f"{key} was replaced by another of its id while it was read: read again for that one",
            workflow=key.workflow,
            instance_id=key.id,
        ) from error


def refuse_expired(row: CatalogRow) -> None:
    """Raise `InstanceExpiredError` where the instance has no file any more."""
    if row.archived is not None:
        raise InstanceExpiredError(
            f"{row.key} has ended ({row.status}), and {row.reason or 'its retention is over'}",
            workflow=row.workflow,
            instance_id=row.id,
        )


def refuse_finished(row: CatalogRow) -> InstanceFinishedError:
    """Return the error for a command to an instance that has finished."""
    return InstanceFinishedError(
        f"{row.key} has finished ({row.status}): nothing but restart() and delete() can reach it",
        workflow=row.workflow,
        instance_id=row.id,
    )


async def stored_outcome(access: Access, row: CatalogRow) -> Outcome:
    """Return how an instance at rest has ended, as its file has it."""
    if row.status == "dead":
        return Dead(reason=row.reason or "")
    if row.status == "terminated":
        return Terminated()
    refuse_expired(row)
    state = await peek(access, row.key)
    match state.status:
        case "complete":
            return Completed(output=state.output if state.output is not None else "null")
        case "errored":
            return Failed(error=state.error or "{}")
        case "terminated":
            return Terminated()
        case _:  # somebody has restarted it since its row was read
            return Interrupted()
