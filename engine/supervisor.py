"""The supervisor: starts the workers of a state folder, sees each of them die, and puts another in its place.

It lives in the process that opened the folder and holds the folder's lock, which the workers share,
so that the folder stays locked while any of them lives. Workers are spawned, never forked. A dead
worker's instances are given up for the others to claim as soon as the system says that it is dead.

Invariants:
    What a worker had open is given up once, after its process has ended and its own lock is free.
    A worker that is silent is killed before that; one that is only busy is not silent, for a thread
    of its own gives the signs of life.
    A worker ends in order when its supervisor is gone.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Final

import trio
import trio.lowlevel

from perdure.actors.host import Clock
from perdure.actors.processes import interpreter_flags
from perdure.engine.folder import StateFolder
from perdure.engine.line import Line, line_pair
from perdure.engine.messages import (
    Answer,
    Begin,
    Leave,
    Look,
    Message,
    Posted,
    Ready,
    Refused,
    Request,
    restored,
)
from perdure.engine.recovery import settle_worker
from perdure.errors import PerdureError, RuntimeClosedError, StateError, StateUnusableError
from perdure.limits import Limits
from perdure.storage.disk import Disk
from perdure.storage.locks import FolderLock
from perdure.storage.records import Durability
from perdure.storage.writer import CatalogWriter

logger: Final = logging.getLogger("perdure.engine")
PROGRAM: Final = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]);"
    " from perdure.engine.worker_main import main; main(*map(int, sys.argv[2:5]))"
)
LOOK_S: Final = 1.0
"""How often the signs of life are looked at."""
SIGNS_BYTES_MAX: Final = 4096
BACKOFF_S: Final = (0.0, 0.2, 0.5, 1.0, 2.0, 5.0)
"""How long a worker that died is waited for to be replaced, the more often it happens in a row."""
STEADY_S: Final = 10.0
"""A worker that ran this long before it died does not count as dying in a row."""
LEAVE_S: Final = 5.0
"""What a worker gets to end beyond the grace that it gives its steps."""


class Worker:
    """One worker's process. `ready` is set once it runs instances, `gone` once they are given up."""

    def __init__(self, process: subprocess.Popen[bytes], line: Line, signs: int) -> None:
        self.number = 0
        self.pid = process.pid
        self.process = process
        self.line = line
        self.signs = signs
        self.ready = trio.Event()
        self.gone = trio.Event()
        self.is_running = False
        self.is_leaving = False
        self.refusal: PerdureError | None = None
        self.silent_looks = 0
        self.started_ms = 0

    def leave(self) -> None:
        """Have it park what it runs and end."""
        self.is_leaving = True
        self.line.send(Leave())

    def kill(self) -> None:
        """Kill it, and what its steps have started."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)


class Supervisor:
    """The workers of one folder. `run` serves in a task until `stop` has ended."""

    def __init__(
        self,
        *,
        count: int,
        folder: StateFolder,
        lock: FolderLock,
        writer: CatalogWriter,
        clock: Clock,
        limits: Limits,
        durability: Durability,
        settings: bytes,
        receive: Callable[[Worker, Message], None],
        serve: Callable[[Request], Awaitable[Answer]],
    ) -> None:
        self.count = count
        self.workers: dict[int, Worker] = {}
        self._folder = folder
        self._lock = lock
        self._writer = writer
        self._clock = clock
        self._limits = limits
        self._durability: Durability = durability
        self._settings = settings
        self._receive = receive
        self._serve = serve
        self._nursery: trio.Nursery | None = None
        self._stopping = False
        self._deaths = 0
        self._turn = 0
        self._changed = trio.Event()
        self._restarting = trio.Lock()

    # -- who is there ----------------------------------------------------------------------

    @property
    def running(self) -> list[Worker]:
        """The workers that run instances and are to go on."""
        return [worker for worker in self.workers.values() if worker.is_running and not worker.is_leaving]

    def owner(self, number: int | None) -> Worker | None:
        """Return the worker of that number, if it runs."""
        worker = None if number is None else self.workers.get(number)
        return worker if worker is not None and worker.is_running else None

    def any(self) -> Worker | None:
        """Return a worker for what nobody owns, each in turn."""
        running = self.running
        self._turn += 1
        return running[self._turn % len(running)] if running else None

    async def changed(self, seconds: float) -> None:
        """Return when a worker has come or gone, or after that time."""
        with trio.move_on_after(seconds):
            await self._changed.wait()

    def tell_all(self, message: Message) -> None:
        """Send a message to every worker."""
        for worker in self.workers.values():
            if worker.is_running:
                worker.line.send(message)

    def _note_change(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    # -- from start to end -----------------------------------------------------------------

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Start the workers, and keep as many. Raises why the first ones cannot run."""
        self._folder.workers.mkdir(exist_ok=True)
        for left in self._folder.workers.glob("*.lock"):
            left.unlink(missing_ok=True)  # nobody holds them: we hold the folder alone
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            try:
                first = [await self._start() for _ in range(self.count)]
                for worker in first:
                    await self._until_ready(worker)
                nursery.start_soon(self._look_after)
                task_status.started()
                await trio.sleep_forever()
            finally:
                for worker in self.workers.values():
                    worker.kill()
                with trio.CancelScope(shield=True):
                    for worker in list(self.workers.values()):
                        await worker.gone.wait()
                nursery.cancel_scope.cancel()

    async def stop(self) -> None:
        """Have every worker end in order; one that does not within the stated time is killed."""
        self._stopping = True
        for worker in self.workers.values():
            worker.leave()
        with trio.move_on_after(self._limits.shutdown_grace_s + LEAVE_S):
            for worker in list(self.workers.values()):
                await worker.gone.wait()
        for worker in list(self.workers.values()):
            logger.error("worker %d (process %d) does not end and is killed", worker.number, worker.pid)
            worker.kill()
            await worker.gone.wait()

    async def restart(self) -> None:
        """Replace the workers one by one: the new one is there before the old one parks and ends.

        Raises why a new one cannot run; the old ones that are left then stay.
        """
        async with self._restarting:
            for old in self.running:
                if self._stopping:
                    raise RuntimeClosedError("the runtime is ending: no worker is restarted any more")
                await self._until_ready(await self._start())
                old.leave()
                with trio.move_on_after(self._limits.shutdown_grace_s + LEAVE_S):
                    await old.gone.wait()
                if not old.gone.is_set():
                    logger.error("worker %d (process %d) does not end and is killed", old.number, old.pid)
                    old.kill()
                    await old.gone.wait()

    async def _until_ready(self, worker: Worker) -> None:
        await worker.ready.wait()
        if not worker.is_running:
            await worker.gone.wait()
            raise worker.refusal or StateUnusableError(
                f"worker process {worker.pid} ended before it was ready (exit code"
                f" {worker.process.returncode}); it has said why on standard error",
                path=str(self._folder.root),
            )

    async def _start(self) -> Worker:
        """Start a worker under a number of its own."""
        worker = self._spawn()
        clock = self._clock
        worker.started_ms = clock.boot_ms()
        try:
            worker.number = await self._writer.write(
                lambda catalog: catalog.workers.add(
                    pid=worker.pid, boot=clock.boot, at_ms=clock.wall_ms(), doorbell=None,
                    durability=self._durability,
                )
            )  # fmt: skip
        except BaseException:
            worker.kill()
            worker.process.wait()
            raise
        self.workers[worker.number] = worker
        assert self._nursery is not None
        self._nursery.start_soon(self._watch, worker)
        worker.line.send(Begin(worker.number, self.count, self._settings))
        return worker

    def _spawn(self) -> Worker:
        ours, theirs = line_pair()
        signs, give_signs = os.pipe()
        os.set_blocking(signs, False)
        shared = (theirs.fileno(), give_signs, self._lock.descriptor)
        path = json.dumps([str(Path(folder).absolute()) for folder in sys.path])
        try:
            process = subprocess.Popen(  # noqa: S603 - our own program
                [sys.executable, *interpreter_flags(), "-c", PROGRAM, path, *map(str, shared)],
                stdin=subprocess.DEVNULL,
                pass_fds=shared,
                process_group=0,  # Ctrl-C is for the supervisor to decide on
            )
        finally:
            theirs.close()
            os.close(give_signs)
        return Worker(process, Line(ours), signs)

    # -- watching --------------------------------------------------------------------------

    async def _watch(self, worker: Worker) -> None:
        """Serve a worker's line until its process has ended; give up what it had, and replace it."""
        async with trio.open_nursery() as nursery:
            with trio.CancelScope(shield=True):  # it is `stop` and `kill` that end a worker
                async with trio.open_nursery() as serving:
                    serving.start_soon(worker.line.run, partial(self._heard, worker), self._serve)
                    await _ended(worker.process)
                    worker.is_running = False
                    serving.cancel_scope.cancel()
                os.close(worker.signs)
                await self._give_up(worker)
            if not worker.is_leaving and worker.ready.is_set() and not self._stopping:
                nursery.start_soon(self._replace, worker)
            worker.ready.set()

    def _heard(self, worker: Worker, message: Message) -> None:
        match message:
            case Ready():
                worker.is_running = True
                worker.ready.set()
                self._note_change()
                worker.line.send(Look())
            case Refused(error=error, text=text):
                worker.refusal = restored(error, text)
            case _:
                self._receive(worker, message)

    async def _give_up(self, worker: Worker) -> None:
        """Let the others have what a worker that is dead had open."""
        lock = self._folder.worker_lock(worker.number)
        while FolderLock.holder(lock) is not None:  # the system frees it with the process
            await trio.lowlevel.checkpoint()
        if worker.process.returncode != 0 and self._durability == "full":
            await self._until_durable(worker)
        released = await self._release(worker)
        lock.unlink(missing_ok=True)
        del self.workers[worker.number]
        worker.gone.set()
        if released:
            logger.warning(
                "worker %d (process %d, exit code %s) is gone; the others take over its %d instances",
                worker.number, worker.pid, worker.process.returncode, released,
            )  # fmt: skip
        self._note_change()
        self.tell_all(Look())
        self._receive(worker, Posted())  # it may have died before it could say so itself

    async def _until_durable(self, worker: Worker) -> None:
        """Make safe what a worker wrote before it was killed: the next owner shows it, and builds on it."""
        disk = Disk()
        make_safe = (
            partial(settle_worker, self._folder, disk, worker.number)
            if disk.syncs_file_systems
            else partial(disk.sync_everything, self._folder.root)
        )
        while True:
            try:
                await trio.to_thread.run_sync(make_safe)
            except OSError as error:
                logger.error("what worker %d wrote cannot be synced yet: %s", worker.number, error)
                await trio.sleep(LOOK_S)
            else:
                return

    async def _release(self, worker: Worker) -> int:
        at_ms = self._clock.wall_ms()
        while True:
            try:
                return await self._writer.write(lambda catalog: catalog.release(worker.number, at_ms))
            except StateError as error:  # the disk is full: it may pass
                logger.error("what worker %d had cannot be given up yet: %s", worker.number, error)
                await trio.sleep(LOOK_S)

    async def _replace(self, dead: Worker) -> None:
        """Start another worker, after a while where they keep dying."""
        steady = self._clock.boot_ms() - dead.started_ms >= STEADY_S * 1000
        self._deaths = 0 if steady else self._deaths + 1
        while not self._stopping:
            await trio.sleep(BACKOFF_S[min(self._deaths, len(BACKOFF_S) - 1)])
            if self._stopping:
                return
            try:
                await self._until_ready(await self._start())
            except PerdureError as error:
                self._deaths += 1
                logger.error("a worker cannot be started, and is tried again: %s", error)
            else:
                return

    async def _look_after(self) -> None:
        """Kill workers that give no sign of life: the system has stopped them, or hangs."""
        looks_max = max(2, round(self._limits.worker_silence_s / LOOK_S))
        while True:
            await trio.sleep(LOOK_S)
            for worker in self.workers.values():
                if not worker.is_running:
                    continue
                # Looks are counted, not time: where this process was stopped too, none passed.
                worker.silent_looks = 0 if _has_signs(worker.signs) else worker.silent_looks + 1
                if worker.silent_looks >= looks_max:
                    logger.error(
                        "worker %d (process %d) has given no sign of life for %g s and is killed, so that"
                        " others can take over what it has", worker.number, worker.pid, looks_max * LOOK_S,
                    )  # fmt: skip
                    worker.kill()


def _has_signs(descriptor: int) -> bool:
    try:
        return bool(os.read(descriptor, SIGNS_BYTES_MAX))
    except BlockingIOError:
        return False


async def _ended(process: subprocess.Popen[bytes]) -> None:
    """Wait until a process has ended, end what is left of its group, and reap it."""
    try:
        descriptor = os.pidfd_open(process.pid)
    except (AttributeError, OSError):  # not Linux, an old kernel, or a sandbox
        limiter = trio.CapacityLimiter(1)
        await trio.to_thread.run_sync(process.wait, abandon_on_cancel=True, limiter=limiter)
        return
    try:
        await trio.lowlevel.wait_readable(descriptor)
    finally:
        os.close(descriptor)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
