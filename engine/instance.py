"""`Instance`: the handle by which programs follow, ask and command one instance.

A handle is a name and a way to the runtime; it holds no state of the instance and may outlive
any number of its stretches in memory.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from typing import Any, Concatenate, Final, Generic, ParamSpec, TypeVar, overload

import msgspec

from perdure.actors.control import RestartFrom
from perdure.actors.durations import Duration, seconds
from perdure.actors.methods import method_of, result_of, untyped_call
from perdure.actors.outcome import Completed, Dead, Failed, Outcome, Terminated
from perdure.actors.workflow import Definition
from perdure.engine.access import Access, Command, reading
from perdure.engine.removal import delete_all
from perdure.engine.status import InstanceStatus
from perdure.engine.story import HistoryEntry, Story
from perdure.engine.streams import StreamCursor, StreamReader
from perdure.errors import (
    InstanceDeadError,
    InstanceFailedError,
    InstanceTerminatedError,
    InvalidArgumentError,
    PerdureError,
)
from perdure.storage.failure import failure_summary, restore_failure
from perdure.storage.names import check_caller, check_event_type
from perdure.storage.query import QueryHost, RowStream
from perdure.storage.records import Key
from perdure.storage.rows import Row

T = TypeVar("T")
R = TypeVar("R", covariant=True)
P = ParamSpec("P")
QUERY_S: Final = 30.0


class Instance(Generic[R]):
    """One instance of a workflow, by name.

    >>> instance = await runtime.create(Tides, params="Cork")
    >>> await instance.result()
    3.1
    """

    def __init__(self, key: Key, access: Access, queries: QueryHost, definition: Definition | None) -> None:
        self.key = key
        self._access = access
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
        value: R = self._read(await self._access.outcome(self.key))
        return value

    async def status(self) -> InstanceStatus:
        """Return where the instance stands; what it rests on is durable."""
        return await self._access.status(self.key)

    @overload
    async def sql(
        self,
        query: str,
        *bindings: Any,
        as_: None = None,
        timeout: Duration = "30 seconds",
        reveal: bool = False,
    ) -> list[Row]: ...
    @overload
    async def sql(
        self, query: str, *bindings: Any, as_: type[T], timeout: Duration = "30 seconds", reveal: bool = False
    ) -> list[T]: ...

    async def sql(
        self,
        query: str,
        *bindings: Any,
        as_: type[Any] | None = None,
        timeout: Duration = "30 seconds",
        reveal: bool = False,
    ) -> list[Any]:
        """Run one reading statement on the instance's file and return its rows.

        Rows can be read by attribute and by name; `as_` turns each into that type (a Struct, a
        dataclass). With `reveal` the views show the values of `sensitive` steps, where NULL stands
        otherwise. Raises `QueryRefusedError`, `QueryTimeoutError`, `QueryError`.

        >>> rows = await instance.sql("SELECT name, status FROM steps WHERE kind = ?", "do")
        >>> rows[0].name, rows[0]["status"]
        ('fetch levels', 'completed')
        """
        timeout_s = seconds(timeout)
        async with reading(self._access, self.key) as (path, immutable):
            rows = await self._queries.fetch(
                path, query, bindings, timeout_s=timeout_s, immutable=immutable, reveal=reveal
            )
            await self._access.synced(self.key)  # what it wrote while the query was on its way
        if as_ is None:
            return rows
        return [msgspec.convert(row.as_dict(), as_, strict=False) for row in rows]

    @contextlib.asynccontextmanager
    async def sql_stream(
        self, query: str, *bindings: Any, timeout: Duration = "30 seconds", reveal: bool = False
    ) -> AsyncGenerator[RowStream, None]:
        """As `sql`, row by row with bounded memory.

        >>> async with instance.sql_stream("SELECT name FROM steps") as rows:
        ...     async for row in rows:
        ...         print(row.name)
        fetch levels
        """
        timeout_s = seconds(timeout)
        async with (
            reading(self._access, self.key) as (path, immutable),
            self._queries.stream(
                path, query, bindings, timeout_s=timeout_s, immutable=immutable, reveal=reveal
            ) as rows,
        ):
            await self._access.synced(self.key)  # the snapshot is taken by now
            yield rows

    async def history(self, *, after: int | str = 0) -> list[HistoryEntry]:
        """Return the story of the instance in order, from behind `after`.

        That is the `cursor` of an entry, or the number of a commit, all of whose facts are left out then.
        Raises `InvalidArgumentError`, and `InstanceNotFoundError` for a cursor of one that was deleted.

        >>> [entry.what for entry in await instance.history()]
        ['instance created', 'instance started', 'do started', 'do completed', 'instance complete']
        """
        story = Story(str(self.key), after)
        entries: list[HistoryEntry] = []
        while page := await self._take(story):
            entries += page
        return entries

    def subscribe(self, *, after: int | str = 0) -> AsyncGenerator[HistoryEntry, None]:
        """Yield the story from behind `after`, then live, until the instance has ended.

        Whoever keeps the `cursor` of the last entry it has dealt with, and gives it as `after`, goes on with
        the next one: none is left out and none comes twice, also where one commit wrote several, and after
        a restart of the runtime or of the instance. `after` may be the number of a commit too.

        Raises `InvalidArgumentError` at once; while following `InstanceExpiredError`, and
        `InstanceNotFoundError` where the instance that is followed was deleted.

        >>> async for entry in instance.subscribe():
        ...     if entry.step:
        ...         print(entry.what, entry.step)
        do started fetch levels
        do completed fetch levels
        """
        return self._follow(Story(str(self.key), after))

    async def _follow(self, story: Story) -> AsyncGenerator[HistoryEntry, None]:
        while True:
            change = self._access.change_of(self.key)
            ended = self._access.has_ended(self.key)
            entries = await self._take(story)
            for entry in entries:
                yield entry
            if ended and not entries:
                return
            if not ended and not entries:
                await change.wait()

    async def _take(self, story: Story) -> list[HistoryEntry]:
        """Return the next facts that are there and durable."""
        async with reading(self._access, self.key) as (path, immutable):

            async def fetch(query: str, *bindings: Any) -> Sequence[Any]:
                return await self._queries.fetch(
                    path, query, bindings, timeout_s=QUERY_S, immutable=immutable
                )

            entries = await story.take(fetch)
            await self._access.synced(self.key)
        return entries

    @overload
    def stream(
        self, name: str, start: int = 0, *, follow: bool = True, returns: type[T]
    ) -> StreamReader[T]: ...
    @overload
    def stream(
        self, name: str, start: int = 0, *, follow: bool = True, returns: object = Any
    ) -> StreamReader[Any]: ...

    def stream(
        self, name: str, start: int = 0, *, follow: bool = True, returns: object = Any
    ) -> StreamReader[Any]:
        """Read a stream, or the result of a step that yields, while it is written: `async for` gives chunks.

        `start` is an index, or below 0 how many chunks before the end; `returns` is the annotation of a
        chunk. With `follow` it waits for more until the stream is closed or the instance has ended. Chunks
        come once they are durable, in order. The iteration raises `StreamRewoundError` where a chunk
        that it gave is superseded, and can then go on; and `StreamNotFoundError`, `InstanceNotFoundError`.

        >>> async for token in essay.stream("tokens", returns=str):
        ...     print(token)
        high
        water
        """
        cursor = StreamCursor(self.key, name, start)
        coder = self._access.codec.coder(returns)
        return StreamReader(cursor, self._access, self._queries, coder, follow=follow)

    # -- calling ---------------------------------------------------------------------------

    @overload
    async def call(
        self, method: Callable[Concatenate[Any, P], Awaitable[T]], /, *args: P.args, **kwargs: P.kwargs
    ) -> T: ...
    @overload
    async def call(self, method: str, /, *args: Any, **kwargs: Any) -> Any: ...

    async def call(
        self, method: str | Callable[Concatenate[Any, P], Awaitable[Any]], /, *args: Any, **kwargs: Any
    ) -> Any:
        """Call a public async method of the workflow on the running instance and return its result.

        The method sees `self` as `run()` has left it; it may read that, raise to refuse, and write to
        the instance's own tables (`self.ctx.storage`) or send it an event (`self.ctx.send_event`), which
        stay. Attributes that it sets are gone after a replay. Arguments and result cross by the codec; the
        reply comes once what was written is durable. A call is carried out at most once.

        Raises what the method raises, `InvalidArgumentError` for arguments that do not fit,
        `InstanceFinishedError`, and `StateError` where the instance is paused or its runtime ended.

        >>> await order.call(Order.set_address, "12 Quay Street")
        'shipping to 12 Quay Street'
        """
        if not isinstance(method, str) and not callable(method):  # pyright: ignore[reportUnnecessaryIsInstance] - a caller unseen by it
            raise InvalidArgumentError(f"call: {method!r} is no method and no name of one")
        name = method if isinstance(method, str) else getattr(method, "__name__", repr(method))
        codec = self._access.codec
        if self._definition is None:
            returns: Any = Any
            call = untyped_call(name, args, kwargs, codec)
        else:
            known = method_of(self._definition.methods, self.key.workflow, name)
            returns, call = known.returns, known.call(args, kwargs, codec)
        return result_of(await self._access.call(self.key, call), returns, codec)

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
        stored, _ = self._access.codec.coder(Any).record(payload)
        await self._command(Command(name="send-event", type=type, payload=stored, token=token))

    async def pause(self, *, who: str | None = None, token: str | None = None) -> None:
        """Let steps under way finish, start no more, and freeze the timers."""
        await self._command(Command(name="pause", who=who, token=token))

    async def resume(self, *, who: str | None = None, token: str | None = None) -> None:
        """Take a pause back, or revive a dead instance. Waiting deadlines move by the pause's length.

        Nothing happens to an instance that is neither paused nor dead. Raises `InstanceFinishedError`.
        """
        await self._command(Command(name="resume", who=who, token=token))

    async def terminate(
        self, *, rollback: bool = False, who: str | None = None, token: str | None = None
    ) -> None:
        """End the instance. Attempts under way are cancelled and waited for. Returns once that is durable.

        With `rollback` the handlers of its steps are run first, last step first. Then this returns once
        it is durable that they will be, whatever happens; `result()` waits for the end.

        Raises `InstanceFinishedError` for one that has ended already.
        """
        if type(rollback) is not bool:
            raise InvalidArgumentError(f"terminate: rollback={rollback!r}: it must be True or False")
        await self._command(Command(name="terminate", who=who, token=token, rollback=rollback))

    async def restart(
        self,
        from_step: str | None = None,
        *,
        count: int = 1,
        kind: str = "do",
        who: str | None = None,
        token: str | None = None,
    ) -> None:
        """Have the instance run again, with the id and params it has, whatever its status.

        From the beginning, or from the `count`th use of the step named `from_step`, of that `kind`: what
        had started before it is kept. Attempts under way are cancelled, and the new run begins once they
        have ended. `timeout` of the whole run counts anew. Events that came before and were delivered to
        nobody are not delivered after a restart from the beginning; the one given to `create` is, again.
        What is run again stays in `history`. Returns once the restart is durable.

        Raises `StepNotFoundError`, `InvalidArgumentError`, `InstanceExpiredError`; nothing has changed then.

        >>> await instance.restart(from_step="fetch levels")
        >>> await instance.result()
        3.1
        """
        origin = RestartFrom(from_step, count, kind)
        origin.check()
        await self._command(Command(name="restart", who=who, token=token, origin=origin))

    async def delete(self, *, who: str | None = None, token: str | None = None) -> None:
        """Remove the instance: its file, what is archived of it, and its row. There is no way back.

        One that is running is stopped first, at its next await, like one that deletes itself from a step.
        Once this returns its id is free. Raises `InstanceNotFoundError`.

        >>> await instance.delete()
        """
        check_caller(who=who, token=token)
        refused = await delete_all(self._access, [self.key], who=who, token=token, alone=True)
        for error in refused.values():
            raise error

    async def _command(self, command: Command) -> None:
        check_caller(who=command.who, token=command.token)
        await self._access.command(self.key, command)

    # -- inside ----------------------------------------------------------------------------

    def _read(self, outcome: Outcome) -> Any:
        names = {"workflow": self.key.workflow, "instance_id": self.key.id}
        match outcome:
            case Completed(output=output):
                annotation = Any if self._definition is None else self._definition.result
                return self._access.codec.coder(annotation).decode(output)
            case Failed(error=text):
                cause = restore_failure(text, step="", attempt=0, codec=self._access.codec)
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


def parse_payload(text: str) -> Any:
    """Return the JSON value in `text`. Raises `InvalidArgumentError` naming where it is wrong."""
    try:
        return msgspec.json.decode(text)
    except msgspec.DecodeError as error:
        raise InvalidArgumentError(f"not valid JSON: {error}; quote text as '\"like this\"'") from error
