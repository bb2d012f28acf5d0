"""A worker: one of several processes that run the instances of a state folder.

Started by `Supervisor`, with one end of a line, a pipe for signs of life, and the descriptor of the
folder's lock, which stays locked while a worker lives. It opens the folder as any runtime does, but
recovers nothing, takes no commands from the catalog, and leaves checkpoints of the catalog to the
supervisor.

Invariants:
    A worker ends in order when it is told to, on SIGTERM, and when its supervisor is gone.
    It holds a lock of its own from before it opens anything until its process has ended.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import AsyncGenerator, Callable
from typing import Any, Final

import msgspec
import trio

from perdure.actors.functions import open_function_host
from perdure.actors.outcome import Outcome
from perdure.engine.access import Access
from perdure.engine.app import App
from perdure.engine.children import News
from perdure.engine.clock import SystemClock
from perdure.engine.descriptors import fit
from perdure.engine.expiry import Expiry
from perdure.engine.folder import StateFolder
from perdure.engine.inbox import Inbox
from perdure.engine.line import Line
from perdure.engine.local import LocalAccess
from perdure.engine.loop import GameLoop
from perdure.engine.messages import (
    Answer,
    Begin,
    Changed,
    Counters,
    Follow,
    Forget,
    Leave,
    Look,
    Message,
    Posted,
    Ready,
    Refused,
    Request,
    ended,
    failed,
)
from perdure.engine.opening import Opening
from perdure.engine.runtime import Runtime
from perdure.engine.settings import Settings, load_settings, read_settings
from perdure.engine.worker_access import WorkerAccess
from perdure.errors import PerdureError
from perdure.storage.catalog import Catalog
from perdure.storage.catalog_file import open_catalog
from perdure.storage.disk import Disk
from perdure.storage.files import InstanceFile
from perdure.storage.locks import FolderLock
from perdure.storage.query import open_query_host
from perdure.storage.records import Key
from perdure.storage.turns import Turn
from perdure.storage.writer import CatalogWriter

logger: Final = logging.getLogger("perdure.engine")
SIGN_S: Final = 0.5
"""How often the supervisor is given a sign of life."""
COUNT_S: Final = 1.0
"""How often it is sent the counters."""
BACKLOG_BYTES_MAX: Final = 16 * 1024 * 1024
"""Beyond this, outcomes are not sent: the supervisor finds them in the catalog, where it looks by itself."""


class WorkerLoop(GameLoop):
    """A game loop that tells its supervisor how instances end."""

    def __init__(self, line: Line, **parts: Any) -> None:
        super().__init__(**parts)
        self.followed: set[Key] = set()
        self._line = line

    def announce(self, key: Key, outcome: Outcome) -> None:
        """Tell who waits, here and behind the line: the outcome is durable."""
        super().announce(key, outcome)
        told = ended(key, outcome)
        if told is not None and self._line.backlog_bytes < BACKLOG_BYTES_MAX:
            self._line.send(told)

    def removed(self, key: Key) -> None:
        """Tell who waits, here and behind the line: the instance is deleted."""
        super().removed(key)
        self._line.send(Forget(key.workflow, key.id))

    def place_freed(self) -> None:
        """Have every worker look: this one may have no room for who waits for the place."""
        super().place_freed()
        self._line.send(Look())

    def posted(self) -> None:
        """Tell the supervisor, which delivers posts between parents and children."""
        self._line.send(Posted())

    def committed(self, file: InstanceFile) -> None:
        """Have those who follow an instance look again, here and behind the line."""
        super().committed(file)
        key = file.owner
        if self.followed and isinstance(key, Key) and key in self.followed:
            self.followed.discard(key)
            self._line.send(Changed(key.workflow, key.id))


class WorkerOpening(Opening):
    """The parts of a worker's runtime."""

    def __init__(self, worker: int, line: Line, **parts: Any) -> None:
        super().__init__(**parts)
        self.turn = Turn(self.folder.catalog)
        self.local: LocalAccess | None = None
        self.loop: WorkerLoop | None = None
        self._worker = worker
        self._line = line

    async def register(self, writer: CatalogWriter) -> int:
        """Return the number that the supervisor has given; recovering was its business, too."""
        del writer
        return self._worker

    def make_loop(self, **parts: Any) -> GameLoop:
        """Return a loop that tells the supervisor how instances end."""
        self.loop = WorkerLoop(self._line, **parts)
        return self.loop

    def make_access(self, loop: GameLoop) -> Access:
        """Return how workflows reach instances, here and in other workers."""
        self.local = LocalAccess(loop, self.clock, self.queries)
        return WorkerAccess(self.local, self._line)

    def make_scheduler(self, access: Access, loop: GameLoop) -> None:
        """Return none: the supervisor has the schedules."""
        del access, loop

    def make_inbox(self, runtime: Runtime, access: Access) -> Inbox | None:
        """Return none: the supervisor takes the commands of other processes, and hands them on."""
        del runtime, access
        return None

    def make_news(self, access: Access, loop: GameLoop) -> News | None:
        """Return none: that is the supervisor's business."""
        del access, loop
        return None

    def make_expiry(self, access: Access, loop: GameLoop) -> Expiry | None:
        """Return none: that is the supervisor's business."""
        del access, loop
        return None


class Desk:
    """What a worker does about messages from its supervisor."""

    def __init__(self, line: Line) -> None:
        self.begin: Begin | None = None
        self.begun = trio.Event()
        self.leaving = trio.Event()
        self.opening: WorkerOpening | None = None
        self._line = line

    def hear(self, message: Message) -> None:
        """Take a message."""
        loop = None if self.opening is None else self.opening.loop
        match message:
            case Begin():
                self.begin = message
                self.begun.set()
            case Leave():
                self.leaving.set()
            case Look() if loop is not None:
                loop.ring()
            case Follow(workflow=workflow, id=id_) if loop is not None:
                loop.followed.add(Key(workflow, id_))
            case _:
                pass

    async def serve(self, request: Request) -> Answer:
        """Answer a request about an instance that is this worker's."""
        number, local = request.number, None if self.opening is None else self.opening.local
        try:
            if local is None:
                raise PerdureError("the worker is only starting")
            return await self._serve(number, request, local)
        except PerdureError as error:
            return failed(number, error)
        except Exception as error:
            logger.exception("%s of %s/%s failed", request.ask, request.workflow, request.id)
            return failed(number, PerdureError(f"{request.ask} failed: {error!r}"))

    async def _serve(self, number: int, request: Request, local: LocalAccess) -> Answer:
        key = Key(request.workflow, request.id)
        match request.ask:
            case "command" if request.command is not None:
                await local.command(key, request.command)
            case "call" if request.call is not None:
                return Answer(number, reply=await local.call(key, request.call))
            case "status":
                await local.owned(key)
                return Answer(number, status=await local.status(key))
            case "sync":
                await local.owned(key)
                await local.synced(key)
            case "sync-all":
                await local.synced_all(request.workflow)
            case _:
                raise PerdureError(f"a worker does not answer {request.ask!r}")
        return Answer(number)


@contextlib.asynccontextmanager
async def open_worker(
    worker: int, settings: Settings, app: App, line: Line
) -> AsyncGenerator[tuple[WorkerOpening, Runtime]]:
    """Open the folder as worker number `worker`, and run instances while inside."""
    app.limits = fit(app.limits)
    folder = StateFolder(settings.root)
    with FolderLock.acquire(folder.worker_lock(worker)):
        reading = Catalog(open_catalog(folder.catalog, checkpointer=False, create=False))
        writing = Catalog(open_catalog(folder.catalog, checkpointer=False, create=False))
        try:
            async with (
                open_query_host() as queries,
                open_function_host(
                    threads_max=app.limits.threads_max, processes_max=app.limits.processes_max
                ) as functions,
                app.open_env() as env,
            ):
                opening = WorkerOpening(
                    worker, line, folder=folder, app=app, clock=SystemClock(), disk=Disk(),
                    durability=settings.durability, replay=settings.replay, reading=reading, writing=writing,
                    functions=functions, queries=queries,
                )  # fmt: skip
                async with opening.serve(env) as runtime:
                    yield opening, runtime
        finally:
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(reading.close)
                await trio.to_thread.run_sync(writing.close)


async def work(line: Line) -> None:
    """Serve from `Begin` to `Leave`, or to the end of the line."""
    desk = Desk(line)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_hear, line, desk)
        nursery.start_soon(_leave_on_sigterm, desk)
        await desk.begun.wait()
        if desk.begin is not None:
            try:
                await _run(line, desk, desk.begin)
            except PerdureError as error:
                line.send(Refused(type(error).__name__, str(error)))
        await line.flush()
        nursery.cancel_scope.cancel()


async def _run(line: Line, desk: Desk, begin: Begin) -> None:
    settings = read_settings(begin.settings)
    logging.basicConfig(level=settings.log_level, format=settings.log_format)
    app = load_settings(settings)
    async with open_worker(begin.worker, settings, app, line) as (opening, runtime):
        desk.opening = opening
        if opening.loop is not None:
            opening.loop.workers = begin.workers
        line.send(_counters(runtime))
        line.send(Ready())
        async with trio.open_nursery() as counting:
            counting.start_soon(_count, line, runtime)
            await desk.leaving.wait()
            counting.cancel_scope.cancel()


async def _count(line: Line, runtime: Runtime) -> None:
    while True:
        await trio.sleep(COUNT_S)
        line.send(_counters(runtime))


def _counters(runtime: Runtime) -> Counters:
    return Counters(msgspec.msgpack.encode(runtime.statistics()))


async def _hear(line: Line, desk: Desk) -> None:
    await line.run(desk.hear, desk.serve)
    desk.leaving.set()  # the supervisor is gone
    desk.begun.set()


async def _leave_on_sigterm(desk: Desk) -> None:
    with trio.open_signal_receiver(signal.SIGTERM) as signals:
        async for _ in signals:
            desk.leaving.set()
            desk.begun.set()


def main(line_fd: int, signs_fd: int, lock_fd: int) -> None:
    """Be a worker until told to end. The descriptors are the supervisor's."""
    for descriptor in (line_fd, signs_fd, lock_fd):
        os.set_inheritable(descriptor, False)
    # Ctrl-C is for the supervisor. A handler, not SIG_IGN, which programs started by steps would inherit.
    signal.signal(signal.SIGINT, _ignore)
    signal.signal(signal.SIGTTOU, signal.SIG_IGN)  # a background group must still be able to print
    os.set_blocking(signs_fd, False)
    threading.Thread(target=_give_signs, args=(signs_fd, threading.Event().wait), daemon=True).start()
    trio.run(_main, line_fd)
    logging.shutdown()
    sys.stdout.flush()


async def _main(line_fd: int) -> None:
    await work(Line(socket.socket(fileno=line_fd)))


def _give_signs(descriptor: int, wait: Callable[[float], object]) -> None:
    """Say again and again that this process is not stopped, however busy its loop is."""
    while True:
        with contextlib.suppress(BlockingIOError, BrokenPipeError):
            os.write(descriptor, b".")
        wait(SIGN_S)


def _ignore(_number: int, _frame: object) -> None:
    """Do nothing about a signal."""
