"""`open_runtime`: the parts of a runtime, put together and taken apart in order.

One process opens a state folder at a time. It takes the folder's lock, recovers what a process that
died had under way, and starts the game loop; leaving parks everything and closes every file. With
several workers it starts those instead, and reaches instances through them.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import AsyncGenerator, Sequence
from typing import Any, Final, cast

import trio

from perdure.actors.functions import FunctionHost, open_function_host
from perdure.actors.host import Host, Replay
from perdure.engine.app import App
from perdure.engine.clock import SystemClock
from perdure.engine.descriptors import fit
from perdure.engine.folder import StateFolder
from perdure.engine.inbox import Doorbell, Inbox
from perdure.engine.local import LocalAccess
from perdure.engine.loop import GameLoop
from perdure.engine.observer import Observer
from perdure.engine.parts import Parts, leave_hard
from perdure.engine.runtime import Runtime
from perdure.engine.timers import TimerQueue, WaitingClock
from perdure.errors import (
    InvalidArgumentError,
    StateError,
)
from perdure.limits import Limits
from perdure.storage.catalog import Catalog, open_catalog
from perdure.storage.check import check_after_machine_death
from perdure.storage.codec import Codec
from perdure.storage.disk import Disk
from perdure.storage.files import PAGE_BYTES, InstanceFile
from perdure.storage.gate import Gate
from perdure.storage.locks import FolderLock
from perdure.storage.opening import FileHost
from perdure.storage.query import QueryHost, open_query_host
from perdure.storage.records import Durability
from perdure.storage.writer import CatalogWriter

logger: Final = logging.getLogger("perdure.engine")
OPENING_THREADS: Final = 2
"""Opening a file is mostly system calls, and some of SQLite's work, which hold no lock of Python's."""


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
                opening = Opening(
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


class Opening:
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
        openings = FileHost("perdure open", threads_max=OPENING_THREADS)
        closings = FileHost("perdure close", threads_max=self.app.limits.sync_threads_max)
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
                    for serve in (writer.run, timers.run, gate.run, openings.run, closings.run):
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
                        openings=openings,
                        closings=closings,
                        worker=worker,
                        env=env,
                    )
                    access = LocalAccess(loop, self.clock, self.queries)
                    observer = Observer(loop, timers, self.queries)
                    runtime = Runtime(access, self.queries, observer.statistics)
                    host.runtime = runtime
                    bind = getattr(self.clock, "bind", None)
                    if bind is not None:
                        bind(runtime)
                    inbox = Inbox(runtime, access, Doorbell(self.folder.doorbell))
                    observer.counts_inbox(inbox)
                    await parts.start(loop.run)
                    parts.begin(inbox.run)
                    parts.begin(observer.run)
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
