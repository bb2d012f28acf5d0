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
from typing import Any, Final

import trio

from perdure.actors.functions import open_function_host
from perdure.actors.host import Functions, Host, Replay
from perdure.actors.limiting import check_limits
from perdure.actors.modifiers import ModifiedFunctions, Modifiers
from perdure.engine.access import Access
from perdure.engine.app import App
from perdure.engine.children import ChildMaker, News
from perdure.engine.clock import SystemClock
from perdure.engine.descriptors import fit
from perdure.engine.expiry import Expiry
from perdure.engine.flow import declare_rules
from perdure.engine.folder import StateFolder
from perdure.engine.inbox import Doorbell, Inbox
from perdure.engine.local import LocalAccess
from perdure.engine.loop import GameLoop
from perdure.engine.observer import Observer
from perdure.engine.parts import Parts, leave_hard, only
from perdure.engine.recovery import register, take_up
from perdure.engine.runtime import Runtime
from perdure.engine.scheduler import Scheduler
from perdure.engine.timers import TimerQueue, WaitingClock
from perdure.engine.workers import open_with_workers
from perdure.errors import (
    InvalidArgumentError,
    StateError,
)
from perdure.limits import WORKERS_MAX, Limits
from perdure.storage.catalog import Catalog
from perdure.storage.catalog_file import open_catalog
from perdure.storage.codec import Codec
from perdure.storage.disk import Disk
from perdure.storage.files import InstanceFile
from perdure.storage.gate import Gate
from perdure.storage.locks import FolderLock
from perdure.storage.opening import FileHost
from perdure.storage.query import QueryHost, open_query_host
from perdure.storage.records import Durability, Key
from perdure.storage.relay import RelayLog
from perdure.storage.schema import PAGE_BYTES
from perdure.storage.turns import Turn
from perdure.storage.unwritten import MemoryFiles
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
    modifiers: Modifiers | None = None,
) -> AsyncGenerator[Runtime]:
    """Open the state folder `path` and run its instances until the block is left.

    `durability="full"` syncs before anything leaves an instance; `"process"` survives the death
    of the process, not of the machine. `replay="always"` calls `run()` from the top after every
    recorded step. Instances that were under way go on by themselves. `workers=N` runs them in N processes,
    which import the classes by name; this one then runs none, and reaches them all.

    Raises `StateLockedError`, `StateUnusableError`, `StateVersionError`, `InvalidArgumentError`.

    >>> async with perdure.open_runtime("state", workflows=[Tides]) as runtime:
    ...     instance = await runtime.create(Tides, params="Cork")
    ...     await instance.result()
    3.1
    """
    _check_options(durability, replay, workers, objects)
    check_limits(limits, "open_runtime(limits=)")
    app = (app or App(env=env, limits=limits)).with_workflows(workflows)
    if env is not None:
        app.env = env
    app.limits = fit(limits if limits is not None else app.limits)
    folder = StateFolder(path)
    folder.prepare()
    if workers > 1:
        _refuse_what_is_of_this_process(clock, disk, asyncio_loop, modifiers)
        there = open_with_workers(folder, app, count=workers, durability=durability, replay=replay)
        async with there as runtime:
            yield runtime
        return
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
                    modifiers=modifiers,
                )  # fmt: skip
                async with opening.serve(entered) as runtime:
                    yield runtime
        finally:
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(reading.close)
                await trio.to_thread.run_sync(writing.close)


def _refuse_what_is_of_this_process(*given: object) -> None:
    if any(part is not None for part in given):
        raise InvalidArgumentError(
            "workers: a clock, a disk or a loop of this process is of no use to others: run with one worker"
        )


def _check_options(durability: str, replay: str, workers: int, objects: Sequence[type]) -> None:
    if durability not in ("full", "process"):
        raise InvalidArgumentError(f"durability={durability!r}: it must be 'full' or 'process'")
    if replay not in ("warm", "always"):
        raise InvalidArgumentError(f"replay={replay!r}: it must be 'warm' or 'always'")
    if type(workers) is not int or not 1 <= workers <= WORKERS_MAX:
        raise InvalidArgumentError(f"workers={workers!r}: it must be a whole number from 1 to {WORKERS_MAX}")
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
        functions: Functions,
        queries: QueryHost,
        modifiers: Modifiers | None = None,
    ) -> None:
        self.folder = folder
        self.app = app
        self.clock = clock
        self.disk = disk
        self.durability: Durability = durability
        self.replay: Replay = replay
        self.reading = reading
        self.writing = writing
        self.functions: Functions = functions
        if modifiers is not None:
            self.functions = ModifiedFunctions(functions, modifiers)
        self.queries = queries
        self.modifiers = modifiers
        for catalog in (reading, writing):
            catalog.moves.places.rules = app.rules
        self.turn: Turn | None = None  # where several processes write to the catalog
        self._loop: GameLoop | None = None

    @contextlib.asynccontextmanager
    async def serve(self, env: Any) -> AsyncGenerator[Runtime]:
        """Run all parts while inside."""
        writer = self._writer()
        timers = TimerQueue(self.clock)
        openings = FileHost("perdure open", threads_max=OPENING_THREADS)
        closings = FileHost("perdure close", threads_max=self.app.limits.sync_threads_max)
        # One thread: several in one folder only wait for each other, and take the loop's processor.
        writings = FileHost("perdure write", threads_max=1)
        failure: BaseException | None = None
        try:
            async with trio.open_nursery(strict_exception_groups=True) as nursery:
                parts = Parts(nursery)
                try:
                    for serve in (writer.run, timers.run, openings.run, closings.run, writings.run):
                        parts.begin(serve)
                    worker = await self.register(writer)
                    relay = self._relay_log(worker, writer)
                    gate = self._gate(relay)
                    parts.begin(gate.run)
                    if relay is not None:
                        parts.begin(relay.run)
                    host = Host(
                        clock=self.clock, timers=timers, gate=gate, codec=Codec(self.app.hooks),
                        functions=self.functions, limits=self.app.limits, replay=self.replay,
                        modifiers=self.modifiers,
                    )  # fmt: skip
                    loop = self._loop = self.make_loop(
                        folder=self.folder,
                        app=self.app,
                        disk=self.disk,
                        durability=self.durability,
                        host=host,
                        catalog=self.reading,
                        relay=relay,
                        memory=self._memory_files(relay),
                        writer=writer,
                        openings=openings,
                        closings=closings,
                        writings=writings,
                        worker=worker,
                        env=env,
                    )
                    access = self.make_access(loop)
                    observer = Observer(loop, timers, self.queries)
                    runtime = Runtime(access, self.queries, observer.statistics, modifiers=self.modifiers)
                    host.runtime = runtime
                    host.children = ChildMaker(access, gate, loop.spawn)
                    bind = getattr(self.clock, "bind", None)
                    if bind is not None:
                        bind(runtime)
                    inbox = self.make_inbox(runtime, access)
                    await parts.start(loop.run)
                    self._begin_duties(parts, runtime, access, loop)
                    if runtime.scheduler is not None:
                        await runtime.scheduler.declare()
                    if inbox is not None:
                        observer.counts_inbox(inbox)
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
            raise only(group) from None
        if failure is not None:
            raise failure

    def _begin_duties(self, parts: Parts, runtime: Runtime, access: Access, loop: GameLoop) -> None:
        """Begin what this process does beside the loop."""
        runtime.scheduler = self.make_scheduler(access, loop)
        for duty in (self.make_news(access, loop), self.make_expiry(access, loop), runtime.scheduler):
            if duty is not None:
                parts.begin(duty.run)

    def _writer(self) -> CatalogWriter:
        limits = self.app.limits
        return CatalogWriter(
            self.writing, path=self.folder.catalog, batch_max=limits.catalog_batch_max,
            waiting_max=limits.catalog_waiting_max, turn=self.turn,
        )  # fmt: skip

    def _relay_log(self, worker: int, writer: CatalogWriter) -> RelayLog | None:
        """Return the log that makes commits durable, where this system and the durability are for one."""
        if self.durability != "full" or not self.disk.syncs_file_systems:
            return None

        async def mark(epochs: Sequence[tuple[str, int]]) -> None:
            keys = [(Key(*name.split("/", 1)), epoch) for name, epoch in epochs]
            await writer.write(lambda catalog: catalog.mark_safe(keys))

        return RelayLog(
            self.folder.relay, root=self.folder.root, disk=self.disk, worker=worker, boot=self.clock.boot,
            mark=mark if self.turn is not None else None,
        )  # fmt: skip

    def _memory_files(self, relay: RelayLog | None) -> MemoryFiles | None:
        """Return what makes files in memory, where there is a log that has them as well."""
        if relay is None or self.app.limits.unwritten_s <= 0:
            return None
        return MemoryFiles(disk=self.disk, durability=self.durability)

    def _gate(self, relay: RelayLog | None) -> Gate:
        return Gate(
            durability=self.durability,
            syncing=relay,
            threads_max=self.app.limits.sync_threads_max,
            checkpoint_bytes=self.app.limits.wal_pages_max * PAGE_BYTES,
            on_commit=self._committed,
            on_failure=self._failed,
        )

    @trio.lowlevel.enable_ki_protection
    async def _shut_down(self, loop: GameLoop, inbox: Inbox | None, worker: int) -> None:
        """Let all come to rest within the stated time; what does not is left to the exit (law 5)."""
        grace_s = self.app.limits.shutdown_grace_s
        with trio.CancelScope(shield=True):
            if inbox is not None:
                inbox.close()
            with trio.move_on_after(grace_s) as grace:
                await loop.shut_down()
            if grace.cancelled_caught:
                leave_hard(loop.still_running, grace_s)
            if loop.relay is not None:
                try:
                    await loop.relay.close()
                except OSError as error:
                    logger.warning("the relay log is left for the next start to settle: %s", error)
            at_ms = self.clock.wall_ms()
            try:
                await loop.writer.write(lambda catalog: catalog.workers.stop(worker, at_ms))
            except StateError as error:  # the lock is what counts; the row only tells who had it
                logger.warning("the end of this runtime could not be written down: %s", error)

    async def register(self, writer: CatalogWriter) -> int:
        """Record this process as the owner, recover what those before it left, and return its number."""
        worker = await register(
            self.folder, self.clock, self.durability, catalog=self.reading, writer=writer, disk=self.disk
        )
        await take_up(self.app, self.clock, self.reading, writer)
        await declare_rules(self.app, self.reading, writer)
        return worker

    def make_loop(self, **parts: Any) -> GameLoop:
        """Return the game loop that owns what this process runs."""
        return GameLoop(**parts)

    def make_access(self, loop: GameLoop) -> Access:
        """Return how instances are reached from here."""
        return LocalAccess(loop, self.clock, self.queries)

    def make_inbox(self, runtime: Runtime, access: Access) -> Inbox | None:
        """Return the inbox through which other processes reach this one."""
        return Inbox(runtime, access, Doorbell(self.folder.doorbell))

    def make_news(self, access: Access, loop: GameLoop) -> News | None:
        """Return what delivers posts between parents and children."""
        news = News(access)
        loop.on_posted = news.ring
        return news

    def make_expiry(self, access: Access, loop: GameLoop) -> Expiry | None:
        """Return what removes instances whose retention is over, and finishes deletions."""
        expiry = Expiry(access, loop.host.timers)
        loop.on_expiring = expiry.at
        return expiry

    def make_scheduler(self, access: Access, loop: GameLoop) -> Scheduler | None:
        """Return what creates the instances of schedules."""
        return Scheduler(access, loop.host.timers)

    def _committed(self, file: InstanceFile) -> None:
        if self._loop is not None:
            self._loop.committed(file)

    def _failed(self, file: InstanceFile, error: Exception) -> None:
        if self._loop is not None:
            self._loop.failed(file, error)
