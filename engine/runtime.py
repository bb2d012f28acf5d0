"""`open_runtime` and `Runtime`: what a program does with workflows.

One process owns a state folder at a time. Opening takes the folder's lock, recovers what a
process that died had under way, and starts the game loop; leaving parks everything and closes
every file.
"""

from __future__ import annotations

import builtins
import contextlib
import logging
import os
from collections.abc import AsyncGenerator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Final, TypeVar, Unpack, cast, overload

import msgspec
import trio

from perdure.actors.durations import Duration, point_in_time, seconds
from perdure.actors.functions import FunctionHost, FunctionStatistics, open_function_host
from perdure.actors.host import Host, Replay
from perdure.actors.outcome import Outcome
from perdure.engine.app import App
from perdure.engine.births import CreateOptions, IfExists, Runnable, prepare_birth
from perdure.engine.clock import SystemClock
from perdure.engine.descriptors import fit
from perdure.engine.folder import StateFolder
from perdure.engine.inbox import Doorbell, Inbox
from perdure.engine.instance import Instance
from perdure.engine.loop import GameLoop
from perdure.engine.parts import Parts, leave_hard
from perdure.engine.timers import TimerQueue, WaitingClock
from perdure.errors import (
    InstanceExistsError,
    InstanceNotFoundError,
    InvalidArgumentError,
    RuntimeClosedError,
    StateError,
)
from perdure.limits import Limits
from perdure.storage.catalog import Catalog, open_catalog
from perdure.storage.check import check_after_machine_death
from perdure.storage.codec import Codec
from perdure.storage.disk import Disk, DiskStatistics
from perdure.storage.files import PAGE_BYTES, InstanceFile
from perdure.storage.gate import Gate, GateStatistics
from perdure.storage.locks import FolderLock
from perdure.storage.query import QueryHost, open_query_host
from perdure.storage.records import FINISHED, Birth, CatalogRow, Durability, Key
from perdure.storage.rows import Row
from perdure.storage.writer import CatalogStatistics, CatalogWriter

P = TypeVar("P", contravariant=True)
R = TypeVar("R", covariant=True)
logger: Final = logging.getLogger("perdure.engine")


class RuntimeStatistics(msgspec.Struct, frozen=True, kw_only=True):
    """What a runtime is doing. `warm` instances are in memory; `busy` ones of them have work."""

    warm: int
    busy: int
    ticks: int
    timers: int
    gate: GateStatistics
    catalog: CatalogStatistics
    disk: DiskStatistics
    functions: FunctionStatistics


class Runtime:
    """Creates, finds and lists instances. Made by `open_runtime`."""

    def __init__(self, loop: GameLoop, queries: QueryHost, timers: TimerQueue) -> None:
        self.queries = queries
        self._loop = loop
        self._timers = timers

    @property
    def path(self) -> Path:
        """The state folder."""
        return self._loop.folder.root

    @property
    def app(self) -> App:
        """What this process can run."""
        return self._loop.app

    # -- creating --------------------------------------------------------------------------

    @overload
    async def create(
        self, cls: type[Runnable[None, R]], *, params: None = None, **options: Unpack[CreateOptions]
    ) -> Instance[R]: ...
    @overload
    async def create(
        self, cls: type[Runnable[P, R]], *, params: P, **options: Unpack[CreateOptions]
    ) -> Instance[R]: ...
    @overload
    async def create(
        self, cls: str, *, params: Any = None, **options: Unpack[CreateOptions]
    ) -> Instance[Any]: ...

    async def create(
        self,
        cls: Any,
        *,
        params: Any = None,
        id: str | None = None,  # noqa: A002 - the word that instances have everywhere
        if_exists: IfExists = "fail",
        at: datetime | None = None,
        timeout: Duration | None = None,
        event: tuple[str, Any] | None = None,
        tags: Sequence[str] | None = None,
        token: str | None = None,
    ) -> Instance[Any]:
        """Create an instance and return its handle, once the creation is durable. It starts by itself.

        `params` are checked against the annotation of the workflow's `event`; `id` is a random
        one by default; `if_exists` says what happens where the id is in use; `at` delays the
        start; `timeout` is of the whole run, from its creation; `event`, a pair (type, payload), is
        there before the first step runs; `token`, where given, makes creating it again harmless.

        Raises `InvalidParamsError`, `InvalidIdError`, `InstanceExistsError`, `UnknownWorkflowError`.
        Nothing has happened then.
        """
        definition = self._loop.app.definition(cls)
        if if_exists not in ("fail", "attach", "restart"):
            raise InvalidArgumentError(f"if_exists={if_exists!r}: it must be 'fail', 'attach' or 'restart'")
        birth, stored = prepare_birth(
            self._loop.host, definition, params, id_=id, event=event, tags=tags, timeout=timeout, token=token
        )
        start_at_ms = None if at is None else point_in_time(at)
        key = Key(definition.name, birth.id)
        instance: Instance[Any] = Instance(key, self._loop, self.queries, definition)
        row = self._loop.catalog.find(key)
        if token is not None and row is not None and row.incarnation == birth.incarnation:
            return instance
        if if_exists != "fail" and row is not None:
            if if_exists == "attach":
                return instance
            await self._make_way(key)
        try:
            await self._add(birth, stored, start_at_ms, replace=if_exists == "restart")
        except InstanceExistsError:
            if if_exists != "attach":
                raise
        return instance

    async def _add(self, birth: Birth, stored: Any, start_at_ms: int | None, *, replace: bool) -> None:
        loop = self._loop
        if loop.closing:
            raise RuntimeClosedError("the runtime is ending and takes no more work")
        await loop.writer.write(
            lambda catalog: catalog.add(birth, stored, start_at_ms=start_at_ms, replace=replace)
        )
        loop.ring()

    async def _make_way(self, key: Key) -> None:
        """End what is there, so that another incarnation can take its place."""
        row = self._loop.require(key)
        if row.status not in FINISHED:
            await Instance[Any](key, self._loop, self.queries, None).terminate(who="restart")
        await self._loop.closed(key)

    # -- finding ---------------------------------------------------------------------------

    @overload
    async def get(self, cls: type[Runnable[P, R]], id: str) -> Instance[R]: ...
    @overload
    async def get(self, cls: str, id: str) -> Instance[Any]: ...

    async def get(self, cls: Any, id: str) -> Instance[Any]:  # noqa: A002 - as in create
        """Return the handle of an instance that exists. Raises `InstanceNotFoundError`.

        >>> await runtime.get(Tides, "brest")
        <Instance Tides/brest>
        """
        name = cls if isinstance(cls, str) else self._loop.app.definition(cls).name
        key = Key(name, id)
        self._loop.require(key)
        return self._handle(key)

    async def list(
        self, cls: type | str | None = None, *, status: str | None = None, limit: int | None = 100
    ) -> builtins.list[Instance[Any]]:
        """Return handles of instances, newest first.

        >>> [instance.id for instance in await runtime.list(Tides)]
        ['brest']
        """
        name = cls if cls is None or isinstance(cls, str) else self._loop.app.definition(cls).name
        return [
            self._handle(row.key)
            for row in self._loop.catalog.select(workflow=name, status=status, limit=limit)
        ]

    def rows(
        self, *, workflow: str | None = None, status: str | None = None, limit: int | None = None
    ) -> builtins.list[CatalogRow]:
        """Return what the catalog knows of instances, newest first."""
        return self._loop.catalog.select(workflow=workflow, status=status, limit=limit)

    async def sql(self, query: str, *bindings: Any, timeout: Duration = "30 seconds") -> builtins.list[Row]:
        """Run one reading statement on the catalog, whose view is `instances`. Errors as in `Instance.sql`.

        >>> rows = await runtime.sql("SELECT workflow, count(*) AS instances FROM instances GROUP BY 1")
        >>> rows[0].as_dict()
        {'workflow': 'Tides', 'instances': 1}
        """
        return await self.queries.fetch(
            self._loop.folder.catalog, query, bindings, timeout_s=seconds(timeout)
        )

    def _handle(self, key: Key) -> Instance[Any]:
        return Instance(key, self._loop, self.queries, self._loop.app.definitions.get(key.workflow))

    # -- looking ---------------------------------------------------------------------------

    @property
    def is_idle(self) -> bool:
        """Whether nothing is under way: no attempt, no write, no sync. Time may jump then."""
        loop = self._loop
        functions = loop.host.functions.statistics()
        return not (
            loop.busy
            or loop.host.gate.busy
            or loop.writer.busy
            or functions.threads_busy
            or functions.asyncio_busy
            or self.queries.statistics().threads_busy
        )

    def statistics(self) -> RuntimeStatistics:
        """Return the counters of all parts."""
        loop = self._loop
        return RuntimeStatistics(
            warm=len(loop.lives), busy=loop.busy, ticks=loop.ticks, timers=self._timers.waiting,
            gate=loop.host.gate.statistics(), catalog=loop.writer.statistics(), disk=loop.disk.statistics(),
            functions=loop.host.functions.statistics(),
        )  # fmt: skip


@contextlib.asynccontextmanager
async def open_runtime(
    path: str | os.PathLike[str],
    app: App | None = None,
    *,
    workflows: Sequence[type] = (),
    objects: Sequence[type] = (),
    env: Any = None,
    durability: Durability = "full",
    replay: Replay = "warm",
    workers: int = 1,
    limits: Limits | None = None,
    clock: WaitingClock | None = None,
    disk: Disk | None = None,
    asyncio_loop: Any = None,
) -> AsyncGenerator[Runtime]:
    """Open the state folder `path` and run its instances until the block is left.

    `durability="full"` syncs before anything leaves an instance; `"process"` survives the death
    of the process, not of the machine. `replay="always"` calls `run()` from the top after every
    recorded step. Instances that were under way go on by themselves.

    Raises `StateLockedError`, `StateUnusableError`, `StateVersionError`, `InvalidArgumentError`.

    >>> async with perdure.open_runtime("state", workflows=[Tides]) as runtime:
    ...     instance = await runtime.create(Tides, params="Cork")
    ...     await instance.result()
    3.1
    """
    _check_options(durability, replay, workers, objects)
    app = (app or App(env=env, limits=limits)).with_workflows(workflows)
    if env is not None:
        app.env = env
    app.limits = fit(limits if limits is not None else app.limits)
    folder = StateFolder(path)
    folder.prepare()
    clock = clock or SystemClock()
    disk = disk or Disk()
    with FolderLock.acquire(folder.lock):
        reading = Catalog(open_catalog(folder.catalog, checkpointer=False))
        writing = Catalog(open_catalog(folder.catalog, checkpointer=True))
        try:
            async with (
                open_query_host() as queries,
                open_function_host(
                    threads_max=app.limits.threads_max,
                    processes_max=app.limits.processes_max,
                    asyncio_loop=asyncio_loop,
                ) as functions,
                app.open_env() as entered,
            ):
                opening = _Opening(
                    folder=folder, app=app, clock=clock, disk=disk, durability=durability, replay=replay,
                    reading=reading, writing=writing, functions=functions, queries=queries,
                )  # fmt: skip
                async with opening.serve(entered) as runtime:
                    yield runtime
        finally:
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(reading.close)
                await trio.to_thread.run_sync(writing.close)


def _check_options(durability: str, replay: str, workers: int, objects: Sequence[type]) -> None:
    if durability not in ("full", "process"):
        raise InvalidArgumentError(f"durability={durability!r}: it must be 'full' or 'process'")
    if replay not in ("warm", "always"):
        raise InvalidArgumentError(f"replay={replay!r}: it must be 'warm' or 'always'")
    if workers != 1:
        raise InvalidArgumentError(f"workers={workers!r}: this version runs one worker per state folder")
    if objects:
        raise InvalidArgumentError("objects=...: plain actors are not available in this version")


class _Opening:
    """The parts of a runtime, put together and taken apart in order."""

    def __init__(
        self,
        *,
        folder: StateFolder,
        app: App,
        clock: WaitingClock,
        disk: Disk,
        durability: Durability,
        replay: Replay,
        reading: Catalog,
        writing: Catalog,
        functions: FunctionHost,
        queries: QueryHost,
    ) -> None:
        self.folder = folder
        self.app = app
        self.clock = clock
        self.disk = disk
        self.durability: Durability = durability
        self.replay: Replay = replay
        self.reading = reading
        self.writing = writing
        self.functions = functions
        self.queries = queries
        self._loop: GameLoop | None = None

    @contextlib.asynccontextmanager
    async def serve(self, env: Any) -> AsyncGenerator[Runtime]:
        """Run all parts while inside."""
        writer = CatalogWriter(
            self.writing, path=self.folder.catalog, batch_max=self.app.limits.catalog_batch_max
        )
        timers = TimerQueue(self.clock)
        gate = Gate(
            durability=self.durability,
            threads_max=self.app.limits.sync_threads_max,
            checkpoint_bytes=self.app.limits.wal_pages_max * PAGE_BYTES,
            on_commit=self._committed,
            on_failure=self._failed,
        )
        failure: BaseException | None = None
        try:
            async with trio.open_nursery(strict_exception_groups=True) as nursery:
                parts = Parts(nursery)
                try:
                    for serve in (writer.run, timers.run, gate.run):
                        parts.begin(serve)
                    worker = await self._register(writer)
                    host = Host(
                        clock=self.clock,
                        timers=timers,
                        gate=gate,
                        codec=Codec(self.app.hooks),
                        functions=self.functions,
                        limits=self.app.limits,
                        replay=self.replay,
                    )
                    loop = self._loop = GameLoop(
                        folder=self.folder,
                        app=self.app,
                        disk=self.disk,
                        durability=self.durability,
                        host=host,
                        catalog=self.reading,
                        writer=writer,
                        worker=worker,
                        env=env,
                    )
                    runtime = Runtime(loop, self.queries, timers)
                    host.runtime = runtime
                    bind = getattr(self.clock, "bind", None)
                    if bind is not None:
                        bind(runtime)
                    inbox = Inbox(runtime, loop, Doorbell(self.folder.doorbell))
                    await parts.start(loop.run)
                    parts.begin(inbox.run)
                    try:
                        yield runtime
                    except BaseException as error:  # noqa: BLE001 - raised again once all is closed
                        failure = error
                    await self._shut_down(loop, inbox, worker)
                finally:
                    parts.stop()
        except BaseExceptionGroup as group:
            raise _only(group) from None
        if failure is not None:
            raise failure

    @trio.lowlevel.enable_ki_protection
    async def _shut_down(self, loop: GameLoop, inbox: Inbox, worker: int) -> None:
        """Let all come to rest within the stated time; what does not is left to the exit (law 5)."""
        grace_s = self.app.limits.shutdown_grace_s
        with trio.CancelScope(shield=True):
            inbox.close()
            with trio.move_on_after(grace_s) as grace:
                await loop.shut_down()
            if grace.cancelled_caught:
                leave_hard(loop.still_running, grace_s)
            at_ms = self.clock.wall_ms()
            try:
                await loop.writer.write(lambda catalog: catalog.stop_worker(worker, at_ms))
            except StateError as error:  # the lock is what counts; the row only tells who had it
                logger.warning("the end of this runtime could not be written down: %s", error)

    async def _register(self, writer: CatalogWriter) -> int:
        """Record this process as the owner; look after what a machine's death may have left."""
        clock = self.clock
        last = self.reading.last_worker()
        if last is not None and last.boot != clock.boot:
            await writer.write(lambda catalog: catalog.rebooted(clock.boot))
            if last.durability == "process" and last.stopped_at_ms is None:
                paths = [self.folder.instance(row.key) for row in self.reading.opened()]
                await trio.to_thread.run_sync(check_after_machine_death, paths)
        return await writer.write(
            lambda catalog: catalog.add_worker(
                pid=os.getpid(), boot=clock.boot, at_ms=clock.wall_ms(), doorbell=str(self.folder.doorbell),
                durability=self.durability,
            )
        )  # fmt: skip

    def _committed(self, file: InstanceFile) -> None:
        if self._loop is not None:
            self._loop.committed(file)

    def _failed(self, file: InstanceFile, error: Exception) -> None:
        if self._loop is not None:
            self._loop.failed(file, error)


def _only(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """Return the error in `group` where there is one only, however deep."""
    error = group.exceptions[0]
    if len(group.exceptions) > 1:
        return group
    if not isinstance(error, BaseExceptionGroup):
        return error
    return _only(cast("BaseExceptionGroup[BaseException]", error))


__all__ = ["InstanceNotFoundError", "Outcome", "Runtime", "RuntimeStatistics", "open_runtime"]
