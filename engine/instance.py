"""`Instance`: the handle by which programs follow, ask and command one instance.

A handle is a name and a way to the runtime; it holds no state of the instance and may outlive
any number of its stretches in memory.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Generic, TypeVar, overload

import msgspec
import trio

from perdure.actors.actor import Actor
from perdure.actors.durations import Duration, seconds
from perdure.actors.outcome import Completed, Dead, Failed, Outcome, Terminated
from perdure.actors.workflow import Definition
from perdure.engine.loop import GameLoop
from perdure.errors import (
    InstanceDeadError,
    InstanceFailedError,
    InstanceFinishedError,
    InstanceTerminatedError,
    InvalidArgumentError,
    PerdureError,
)
from perdure.storage.failure import failure_summary, restore_failure
from perdure.storage.names import check_event_type
from perdure.storage.peek import bring_to_rest, peek_state, peek_token
from perdure.storage.query import QueryHost, RowStream
from perdure.storage.records import FINISHED, CatalogRow, InstanceState, Key, Status
from perdure.storage.rows import Row

T = TypeVar("T")
R = TypeVar("R", covariant=True)
POLL_S: Final = 30.0
"""How long `result` waits for a change before it looks by itself, should a change have been missed."""
IDLE_TOLD_MS: Final = 1_000
"""How long a run waits outside its steps before its status says where."""
HISTORY: Final = 'SELECT "commit", at, what, step, actor, detail FROM history WHERE "commit" > ?'


class InstanceStatus(msgspec.Struct, frozen=True, kw_only=True):
    """Where an instance stands. `reason` says why, `wake_at` until when; `error` is a summary."""

    status: Status
    reason: str | None
    error: str | None
    created_at: datetime
    started_at: datetime | None
    ended_at: datetime | None
    wake_at: datetime | None


class HistoryEntry(msgspec.Struct, frozen=True, kw_only=True):
    """One fact of an instance's story. `commit` is its place, and the cursor of `subscribe`."""

    commit: int
    at: str
    what: str
    step: str | None
    actor: str | None
    detail: str | None


class Instance(Generic[R]):
    """One instance of a workflow, by name.

    >>> instance = await runtime.create(Tides, params="Cork")
    >>> await instance.result()
    3.1
    """

    def __init__(self, key: Key, loop: GameLoop, queries: QueryHost, definition: Definition | None) -> None:
        self.key = key
        self._loop = loop
        self._queries = queries
        self._definition = definition

    @property
    def id(self) -> str:
        """The instance's id, unique within its workflow."""
        return self.key.id

    @property
    def workflow(self) -> str:
        """The workflow's name."""
        return self.key.workflow

    def __repr__(self) -> str:
        return f"<Instance {self.key}>"

    # -- asking ----------------------------------------------------------------------------

    async def result(self) -> R:
        """Wait until the instance has ended and return what `run()` returned.

        Raises `InstanceFailedError` (its `__cause__` is the error that `run()` raised, restored),
        `InstanceTerminatedError`, `InstanceDeadError` and `InstanceNotFoundError`.
        """
        while True:
            turn = self._loop.turn_of(self.key)
            outcome = self._loop.outcome(self.key)
            if outcome is None and self.key not in self._loop.lives:
                row = self._loop.require(self.key)
                if row.status in FINISHED or row.status == "dead":
                    outcome = await self._stored_outcome(row)
            match outcome:
                case Completed() | Failed() | Terminated() | Dead():
                    value: R = self._read(outcome)
                    return value
                case _:
                    with trio.move_on_after(POLL_S):
                        await turn.wait()

    async def status(self) -> InstanceStatus:
        """Return where the instance stands; what it rests on is durable."""
        status = await self._status()
        await self._loop.synced(self.key)
        return status

    async def _status(self) -> InstanceStatus:
        life = self._loop.lives.get(self.key)
        row = self._loop.require(self.key)
        if life is not None and life.actor is not None and life.file is not None:
            state, status = life.actor.lifecycle.state, life.actor.status
            if status != "waiting":
                return _status(status, state.reason or self._kept_warm_by(life.actor), state.error, state)
            waits = life.actor.waits()
            reason = state.reason or waits.reason
            return _status(status, reason, state.error, state, wake_at_ms=waits.wake_at_ms)
        status_now = await trio.to_thread.run_sync(status_at_rest, row, self._loop.folder.instance(self.key))
        if life is not None and life.stuck is not None:
            return msgspec.structs.replace(status_now, reason=str(life.stuck))
        return status_now

    def _kept_warm_by(self, actor: Actor) -> str | None:
        """Return what a running instance waits for that is no step, once it has done so for a while."""
        idle_ms = self._loop.host.clock.boot_ms() - actor.last_active_ms
        return actor.waits_outside_steps if idle_ms > IDLE_TOLD_MS else None

    @overload
    async def sql(
        self, query: str, *bindings: Any, as_: None = None, timeout: Duration = "30 seconds"
    ) -> list[Row]: ...
    @overload
    async def sql(
        self, query: str, *bindings: Any, as_: type[T], timeout: Duration = "30 seconds"
    ) -> list[T]: ...

    async def sql(
        self, query: str, *bindings: Any, as_: type[Any] | None = None, timeout: Duration = "30 seconds"
    ) -> list[Any]:
        """Run one reading statement on the instance's file and return its rows.

        Rows can be read by attribute and by name; `as_` turns each into that type (a Struct, a
        dataclass). Raises `QueryRefusedError`, `QueryTimeoutError`, `QueryError`.

        >>> rows = await instance.sql("SELECT name, status FROM steps WHERE kind = ?", "do")
        >>> rows[0].name, rows[0]["status"]
        ('fetch levels', 'completed')
        """
        timeout_s = seconds(timeout)
        path, immutable = await self._readable()
        rows = await self._queries.fetch(path, query, bindings, timeout_s=timeout_s, immutable=immutable)
        await self._loop.synced(self.key)  # what it wrote while the query was on its way
        if as_ is None:
            return rows
        return [msgspec.convert(row.as_dict(), as_, strict=False) for row in rows]

    @contextlib.asynccontextmanager
    async def sql_stream(
        self, query: str, *bindings: Any, timeout: Duration = "30 seconds"
    ) -> AsyncGenerator[RowStream, None]:
        """As `sql`, row by row with bounded memory.

        >>> async with instance.sql_stream("SELECT name FROM steps") as rows:
        ...     async for row in rows:
        ...         print(row.name)
        fetch levels
        """
        timeout_s = seconds(timeout)
        path, immutable = await self._readable()
        async with self._queries.stream(
            path, query, bindings, timeout_s=timeout_s, immutable=immutable
        ) as rows:
            await self._loop.synced(self.key)  # the snapshot is taken by now
            yield rows

    async def history(self, *, after: int = 0) -> list[HistoryEntry]:
        """Return the story of the instance in order, from behind the commit `after`.

        >>> [entry.what for entry in await instance.history()]
        ['instance created', 'instance started', 'do started', 'do completed', 'instance complete']
        """
        rows = await self.sql(HISTORY, after)
        return [_entry(row) for row in rows]

    async def subscribe(self, *, after: int = 0) -> AsyncGenerator[HistoryEntry, None]:
        """Yield the story from behind the commit `after`, then live, until the instance has ended.

        `entry.commit` of the last entry of a commit is the cursor to go on from.

        >>> async for entry in instance.subscribe():
        ...     if entry.step:
        ...         print(entry.what, entry.step)
        do started fetch levels
        do completed fetch levels
        """
        cursor = after
        while True:
            change = self._loop.change_of(self.key)
            ended = self._has_ended()
            entries = await self.history(after=cursor)
            for entry in entries:
                yield entry
                cursor = entry.commit
            if ended and not entries:
                return
            if not ended:
                await change.wait()

    def _has_ended(self) -> bool:
        life = self._loop.lives.get(self.key)
        if life is not None:
            return life.actor is not None and life.actor.lifecycle.state.status in FINISHED
        return self._loop.require(self.key).status in (*FINISHED, "dead")

    async def _readable(self) -> tuple[Any, bool]:
        """Return the file's path and whether nobody has it open; make it where it is not born yet."""
        row = self._loop.require(self.key)
        if row.birth is not None and self.key not in self._loop.lives:
            await self._loop.command(self.key, _nothing)
        life = self._loop.lives.get(self.key)
        if life is not None:
            await life.opened.wait()
            if life.error is not None:
                raise life.error
            await life.synced()
            if life.ending:
                await life.closed.wait()
        path = self._loop.folder.instance(self.key)
        # A reader that was open when the owner closed the file has left the last commits in the WAL.
        whole = self.key not in self._loop.lives and await trio.to_thread.run_sync(bring_to_rest, path)
        return path, whole and self.key not in self._loop.lives

    # -- commanding ------------------------------------------------------------------------

    async def send_event(
        self,
        type: str,  # noqa: A002 - the word that events have everywhere
        payload: Any = None,
        *,
        token: str | None = None,
    ) -> None:
        """Send an event. It is acknowledged by returning, once it stands durably in the instance's file.

        `token`, where given, makes sending it again harmless. Raises `InstanceFinishedError`,
        `InvalidNameError` and `EncodingError`.
        """
        check_event_type(type)
        stored, _ = self._loop.host.codec.coder(Any).record(payload)
        await self._command(lambda actor: actor.receive(type, stored, token=token), token)

    async def pause(self, *, who: str | None = None, token: str | None = None) -> None:
        """Let steps under way finish, start no more, and freeze the timers."""
        await self._command(lambda actor: actor.pause(who=who, token=token), token)

    async def resume(self, *, who: str | None = None, token: str | None = None) -> None:
        """Take a pause back, or revive a dead instance. Waiting deadlines move by the pause's length."""
        await self._command(lambda actor: actor.resume(who=who, token=token), token)

    async def terminate(self, *, who: str | None = None, token: str | None = None) -> None:
        """End the instance. Attempts under way are cancelled and waited for. Returns once that is durable."""
        await self._command(lambda actor: actor.terminate(who=who, token=token), token)
        await self._loop.closed(self.key)

    async def _command(self, act: Callable[[Actor], None], token: str | None) -> None:
        await self._loop.at_rest(self.key)
        row = self._loop.require(self.key)
        if row.status in FINISHED and self.key not in self._loop.lives:
            path = self._loop.folder.instance(self.key)
            if token is not None and await trio.to_thread.run_sync(peek_token, path, token):
                return  # it was carried out, and its reply was lost with an earlier owner
            raise InstanceFinishedError(
                f"{self.key} has finished ({row.status}): nothing can reach it any more",
                workflow=self.key.workflow,
                instance_id=self.key.id,
            )
        await self._loop.command(self.key, act)

    # -- inside ----------------------------------------------------------------------------

    async def _peek(self) -> InstanceState:
        path = self._loop.folder.instance(self.key)
        return await trio.to_thread.run_sync(peek_state, path)

    async def _stored_outcome(self, row: CatalogRow) -> Outcome:
        if row.status == "dead":
            return Dead(reason=row.reason or "")
        state = await self._peek()
        match state.status:
            case "complete":
                return Completed(output=state.output if state.output is not None else "null")
            case "errored":
                return Failed(error=state.error or "{}")
            case _:
                return Terminated()

    def _read(self, outcome: Outcome) -> Any:
        names = {"workflow": self.key.workflow, "instance_id": self.key.id}
        match outcome:
            case Completed(output=output):
                annotation = Any if self._definition is None else self._definition.result
                return self._loop.host.codec.coder(annotation).decode(output)
            case Failed(error=text):
                cause = restore_failure(text, step="", attempt=0, codec=self._loop.host.codec)
                kind, message = failure_summary(text)
                raise InstanceFailedError(f"{self.key} failed: {kind}: {message}", **names) from cause
            case Terminated():
                raise InstanceTerminatedError(f"{self.key} was terminated, so it has no result", **names)
            case Dead(reason=reason):
                raise InstanceDeadError(
                    f"{self.key} is parked as dead: {reason}; resume() tries it again", **names
                )
            case _:
                raise PerdureError(f"{self.key} has no result yet")


def _nothing(_actor: Actor) -> None:
    """Write nothing: opening the file is all that is wanted."""


def _entry(row: Row) -> HistoryEntry:
    return HistoryEntry(
        commit=row["commit"],
        at=row["at"],
        what=row["what"],
        step=row["step"],
        actor=row["actor"],
        detail=row["detail"],
    )


def status_at_rest(row: CatalogRow, path: Path) -> InstanceStatus:
    """Return where an instance stands that nobody has in memory. Runs off the loop."""
    if row.birth is not None and not (row.open and path.exists()):
        return _status(row.status, row.reason, None, row, wake_at_ms=row.start_at_ms)
    try:
        state = peek_state(path)
    except PerdureError as error:
        return _status(row.status, row.reason or str(error), None, row)
    status = state.status if state.status in FINISHED or row.open else row.status
    return _status(status, row.reason, state.error, state, wake_at_ms=row.wake_at_ms)


def _status(
    status: Status,
    reason: str | None,
    error: str | None,
    times: InstanceState | CatalogRow,
    *,
    wake_at_ms: int | None = None,
) -> InstanceStatus:
    wake_ms = wake_at_ms if wake_at_ms is not None else times.wake_at_ms
    return InstanceStatus(
        status=status,
        reason=reason,
        error=None if error is None else ": ".join(failure_summary(error)),
        created_at=datetime.fromtimestamp(times.created_at_ms / 1000, UTC),
        started_at=_time(times.started_at_ms),
        ended_at=_time(times.ended_at_ms),
        wake_at=_time(wake_ms),
    )


def _time(ms: int | None) -> datetime | None:
    return None if ms is None else datetime.fromtimestamp(ms / 1000, UTC)


def parse_payload(text: str) -> Any:
    """Return the JSON value in `text`. Raises `InvalidArgumentError` naming where it is wrong."""
    try:
        return msgspec.json.decode(text)
    except msgspec.DecodeError as error:
        raise InvalidArgumentError(f"not valid JSON: {error}; quote text as '\"like this\"'") from error
