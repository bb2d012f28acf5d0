"""A runtime whose instances run in workers: the parts of the supervising process.

Invariants:
    One process checkpoints the catalog: this one, on a connection kept for it, while nobody writes.
    No worker is left when the folder's lock is given back.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import AsyncGenerator
from functools import partial
from pathlib import Path
from typing import Final

import trio

from perdure.actors.host import Replay
from perdure.actors.processes import refuse_while_main_loads
from perdure.engine.app import App
from perdure.engine.children import News
from perdure.engine.clock import SystemClock
from perdure.engine.expiry import Expiry
from perdure.engine.flow import declare_rules
from perdure.engine.folder import StateFolder
from perdure.engine.front import Front
from perdure.engine.inbox import Doorbell, Inbox
from perdure.engine.parts import Parts, only
from perdure.engine.recovery import register, take_up
from perdure.engine.runtime import Runtime
from perdure.engine.scheduler import Scheduler
from perdure.engine.settings import settings_for
from perdure.engine.supervisor import Supervisor
from perdure.engine.timers import TimerQueue
from perdure.errors import StateError
from perdure.storage.catalog import Catalog
from perdure.storage.catalog_file import checkpoint, open_catalog
from perdure.storage.codec import Codec
from perdure.storage.disk import Disk
from perdure.storage.locks import FolderLock
from perdure.storage.query import QueryHost, open_query_host
from perdure.storage.records import Durability
from perdure.storage.turns import Turn
from perdure.storage.writer import CatalogWriter

logger: Final = logging.getLogger("perdure.engine")
CHECKPOINT_LOOK_S: Final = 0.5
"""How often the length of the catalog's WAL is looked at."""
CHECKPOINT_BYTES: Final = 4 * 1024 * 1024
"""The catalog's WAL is checkpointed when it is longer than this."""


@contextlib.asynccontextmanager
async def open_with_workers(
    folder: StateFolder, app: App, *, count: int, durability: Durability, replay: Replay
) -> AsyncGenerator[Runtime]:
    """Open a folder and run its instances in `count` workers until the block is left."""
    refuse_while_main_loads()
    settings = settings_for(app, root=str(folder.root), durability=durability, replay=replay)
    with FolderLock.acquire(folder.lock) as lock, contextlib.ExitStack() as opened:
        reading = Catalog(open_catalog(folder.catalog, checkpointer=False))
        opened.callback(reading.close)
        writing = Catalog(open_catalog(folder.catalog, checkpointer=False))
        opened.callback(writing.close)
        turn = Turn(folder.catalog)
        opened.callback(turn.close)
        writer = CatalogWriter(
            writing, path=folder.catalog, batch_max=app.limits.catalog_batch_max,
            waiting_max=app.limits.catalog_waiting_max, turn=turn,
        )  # fmt: skip
        clock = SystemClock()
        front = Front(
            folder=folder, app=app, clock=clock, codec=Codec(app.hooks), catalog=reading, writer=writer
        )
        supervisor = Supervisor(
            count=count, folder=folder, lock=lock, writer=writer, clock=clock, limits=app.limits,
            durability=durability, settings=settings, receive=front.hear, serve=front.serve,
        )  # fmt: skip
        front.attach(supervisor)
        async with open_query_host() as queries, _serve(front, supervisor, queries, durability) as runtime:
            yield runtime


@contextlib.asynccontextmanager
async def _serve(
    front: Front, supervisor: Supervisor, queries: QueryHost, durability: Durability
) -> AsyncGenerator[Runtime]:
    """Run all parts while inside."""
    folder, clock, catalog, writer = front.folder, front.clock, front.catalog, front.writer
    runtime = Runtime(front, queries, front.statistics, restart=supervisor.restart)
    inbox = Inbox(runtime, front, Doorbell(folder.doorbell))
    failure: BaseException | None = None
    try:
        async with trio.open_nursery(strict_exception_groups=True) as nursery:
            parts = Parts(nursery)
            try:
                parts.begin(writer.run)
                number = await register(
                    folder, clock, durability, catalog=catalog, writer=writer, disk=Disk()
                )
                await take_up(front.app, clock, catalog, writer)
                await declare_rules(front.app, catalog, writer)
                parts.begin(partial(_checkpoint, folder.catalog))
                await parts.start(supervisor.run)
                parts.begin(front.run)
                parts.begin(inbox.run)
                news = News(front)
                front.on_posted = news.ring
                parts.begin(news.run)
                parts.begin(Expiry(front).run)
                timers = TimerQueue(clock)
                parts.begin(timers.run)
                runtime.scheduler = Scheduler(front, timers)
                parts.begin(runtime.scheduler.run)
                await runtime.scheduler.declare()
                try:
                    yield runtime
                except BaseException as error:  # noqa: BLE001 - raised again once all is closed
                    failure = error
                await _shut_down(front, supervisor, inbox, number)
            finally:
                inbox.close()
                parts.stop()
    except BaseExceptionGroup as group:
        raise only(group) from None
    if failure is not None:
        raise failure


@trio.lowlevel.enable_ki_protection
async def _shut_down(front: Front, supervisor: Supervisor, inbox: Inbox, number: int) -> None:
    with trio.CancelScope(shield=True):
        front.closing = True
        inbox.close()
        await supervisor.stop()
        at_ms = front.clock.wall_ms()
        with contextlib.suppress(StateError):  # the lock is what counts; the row only tells who had it
            await front.writer.write(lambda catalog: catalog.workers.stop(number, at_ms))


async def _checkpoint(catalog: Path) -> None:
    """Keep the catalog's WAL short: nobody else does."""
    wal = Path(f"{catalog}-wal")
    connection = open_catalog(catalog, checkpointer=False)
    turn = Turn(catalog)
    try:
        while True:
            await trio.sleep(CHECKPOINT_LOOK_S)
            if _bytes_of(wal) > CHECKPOINT_BYTES:
                with trio.CancelScope(shield=True):
                    await trio.to_thread.run_sync(checkpoint, connection, turn)
    finally:
        connection.close()
        turn.close()


def _bytes_of(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
