"""The output gate: nothing leaves an actor before the writes it rests on are safe (law 2).

Prior art is workerd's `io-gate`: writes do not wait for the disk, whatever would let the
outside see them does. An actor writes into its file's transaction and goes on; whoever must not
run ahead of the disk awaits `passed`. Once a tick the gate commits every dirty file, makes the
commits durable together in another thread, and lets the waiting tasks go.

Syncing is file by file, each through its WAL. That is hidden in `_sync`: a redo log that makes
a whole tick durable with one sync can take its place without anybody else noticing.

Invariants:
    `passed` returns only after the commit and, with durability `full`, the sync of everything
    that was written to that file before the call.
    A file is committed at most once a tick, and not while its owner holds it back.
    A commit or sync that fails is told to everyone who waits for that file, and the file is
    marked failed: its actor has to be reset.
    What nobody waits for is committed, not synced.
    A file is checkpointed off the loop, once at a time, and never while it is being closed. Who waits
    for it waits for that too: SQLite starts a WAL over only where no transaction began meanwhile.
    Only a file with large values that no log has goes on meanwhile, until its WAL is `HELD_BYTES` long.
    A checkpoint begins only where something was committed since the last one ended (see `_checkpoint`).
"""

from __future__ import annotations

import contextlib
import logging
import sqlite3
from collections.abc import Callable
from typing import Final

import msgspec
import trio

from perdure.errors import StateError
from perdure.limits import Limits
from perdure.storage.files import InstanceFile, storage_error
from perdure.storage.records import Durability
from perdure.storage.schema import PAGE_BYTES
from perdure.storage.syncing import FileSync, Syncing
from perdure.storage.threads import Threads, open_threads

logger: Final = logging.getLogger("perdure.storage")
CHECKPOINT_BYTES: Final = Limits().wal_pages_max * PAGE_BYTES
LARGE_BYTES: Final = 64 * 1024 * 1024
"""So much of large values is checkpointed at a time: they are moved in long stretches, beside the steps."""
HELD_BYTES: Final = 4 * LARGE_BYTES
"""With so much of them in its WAL, a file is held while it is checkpointed, so that the WAL starts over."""


class GateStatistics(msgspec.Struct, frozen=True, kw_only=True):
    """What the gate has done so far. `synced_files` over `rounds` is how well ticks are shared."""

    rounds: int
    commits: int
    syncs: int
    checkpoints: int
    waiting_files: int


class Ticket:
    """Those who wait for one file's next opening, and the error where it failed."""

    __slots__ = ("error", "event")

    def __init__(self) -> None:
        self.event = trio.Event()
        self.error: Exception | None = None


class Gate:
    """All files' gate: commits, syncs and opens. One per runtime, run by one task.

    Where `syncing` is not given, files are synced one by one in `threads_max` threads. A file is
    checkpointed once `checkpoint_bytes` or so have been committed to it. `on_commit` is
    called in the loop with every file just committed, `on_failure` with a file that failed and the error.
    """

    def __init__(
        self,
        *,
        durability: Durability,
        threads_max: int,
        syncing: Syncing | None = None,
        checkpoint_bytes: int = CHECKPOINT_BYTES,
        on_commit: Callable[[InstanceFile], None] | None = None,
        on_failure: Callable[[InstanceFile, Exception], None] | None = None,
    ) -> None:
        self.durability: Durability = durability
        self._limiter = trio.CapacityLimiter(threads_max)
        self._threads_max = threads_max
        self._syncing_by: Syncing = syncing or FileSync()
        self._checkpoint_bytes = checkpoint_bytes
        self._on_commit = on_commit
        self._on_failure = on_failure
        self._dirty: dict[InstanceFile, None] = {}
        self._work = trio.Event()
        self._awaited = False
        self._syncing: set[InstanceFile] = set()
        self._synced = trio.Event()
        self._checkpointing: set[InstanceFile] = set()  # those that are held meanwhile
        self._alongside: set[InstanceFile] = set()  # those that go on meanwhile
        self._held: list[InstanceFile] = []
        self._rounds = 0
        self._commits = 0
        self._syncs = 0
        self._checkpoints = 0

    def touch(self, file: InstanceFile) -> None:
        """Say that `file` holds writes to commit at the end of the tick. Begins its transaction.

        Raises `StorageWriteError` where the transaction cannot begin.
        """
        if file.in_transaction:
            return
        if file.failure is not None:
            raise file.failure
        try:
            file.begin()
        except sqlite3.Error as error:
            raise self._fail(file, storage_error(error, file.path)) from error
        except StateError as error:  # it belongs to another owner now
            raise self._fail(file, error) from error
        self._dirty[file] = None
        if not self._work.is_set():
            self._work.set()

    def is_open(self, file: InstanceFile) -> bool:
        """Whether everything written to `file` so far may be seen outside."""
        return file.failure is None and self._safe(file) >= file.generation + file.in_transaction

    def _safe(self, file: InstanceFile) -> int:
        return file.generation if self.durability == "process" else file.durable_generation

    async def passed(self, file: InstanceFile) -> None:
        """Return when all that was written to `file` is committed and, with `full`, on disk.

        Raises `StorageWriteError` or `StorageFullError` where that failed.
        """
        target = file.generation + file.in_transaction
        if self.durability == "process" and self._safe(file) < target:
            # No sync to share, so no round is needed: what is ready now gets to write, and that is the tick.
            await trio.lowlevel.checkpoint()
            # Another that waited may have committed it meanwhile: parts of a group share one commit.
            if (
                self._safe(file) < target
                and file in self._dirty
                and file.ticket is None
                and not self._is_long(file)
            ):
                del self._dirty[file]
                self._commit(file, None)
        while file.failure is not None or self._safe(file) < target:
            if file.failure is not None:
                raise file.failure
            ticket = self._ticket(file)
            await ticket.event.wait()
            if ticket.error is not None:
                raise ticket.error
        while file in self._checkpointing:
            await self._synced.wait()

    def _ticket(self, file: InstanceFile) -> Ticket:
        """Return the ticket of the round that will carry what `file` holds now."""
        if file.ticket is None:
            file.ticket = Ticket()
            self._awaited = True
            self._dirty.setdefault(file)
            self._work.set()
        ticket: Ticket = file.ticket
        return ticket

    async def run(self) -> None:
        """Serve for ever: one round after another while there is work."""
        with open_threads("perdure sync", self._threads_max) as threads:
            async with trio.open_nursery() as checkpoints:
                while True:
                    await self._work.wait()
                    # What was ready when the first file was touched has written by now. Where nobody waits
                    # yet, what that made ready gets to write too: a group's end and the step behind it.
                    if not self._awaited:
                        await trio.lowlevel.checkpoint()
                    await self._round(threads, checkpoints)

    async def _round(self, threads: Threads, checkpoints: trio.Nursery) -> None:
        batch = list(self._dirty)
        self._dirty.clear()
        self._work = trio.Event()
        self._awaited = False
        self._rounds += 1
        waited: list[tuple[InstanceFile, Ticket, int]] = []
        for file in batch:
            if file in self._checkpointing:  # what it commits now could get into the file before the log
                self._held.append(file)
                continue
            ticket: Ticket | None = file.ticket
            file.ticket = None
            if not self._commit(file, ticket) or not self._keeps_up(file, ticket):
                continue
            if ticket is not None:
                waited.append((file, ticket, file.generation))
            elif self._may_checkpoint(file):
                self._begin_checkpoint(checkpoints, file)
        if waited and self.durability == "full":
            await self._sync(threads, waited)
        for file, ticket, generation in waited:
            if file.failure is None:
                file.durable_generation = max(file.durable_generation, generation)
            if file.wanted_on_disk:  # between two transactions, and all of it is safe
                self._write_out_if_possible(file)
            if self._may_checkpoint(file):
                self._begin_checkpoint(checkpoints, file)
            ticket.event.set()

    def _keeps_up(self, file: InstanceFile, ticket: Ticket | None) -> bool:
        """Write a file that has outgrown memory; False where that failed and its waiters have been told."""
        if file.unwritten is None or not self._syncing_by.outgrows(file):
            return True
        try:
            file.write_out()
        except StateError as error:
            self._fail(file, error)
            if ticket is not None:
                ticket.error = file.failure
                ticket.event.set()
            return False
        return True

    def _commit(self, file: InstanceFile, ticket: Ticket | None) -> bool:
        """Commit one file; False where it failed and its waiters have been told."""
        if file.failure is None and file.in_transaction:
            try:
                file.commit()
                self._commits += 1
            except sqlite3.Error as error:
                self._fail(file, storage_error(error, file.path))
            else:
                if self._on_commit is not None:
                    self._on_commit(file)
        if file.failure is not None:
            self._give_up(file, file.failure)
            if ticket is not None:
                ticket.error = file.failure
                ticket.event.set()
            return False
        return True

    async def _sync(self, threads: Threads, waited: list[tuple[InstanceFile, Ticket, int]]) -> None:
        """Make the committed files durable, together."""
        files = [file for file, _, _ in waited]
        self._syncing.update(files)
        errors = await self._syncing_by.sync(files, threads)
        self._syncs += len(files)
        self._syncing.difference_update(files)
        self._wake()
        for file, error in errors:
            self._fail(file, storage_error(error, file.path))
        for file, ticket, _ in waited:
            ticket.error = file.failure

    def _fail(self, file: InstanceFile, error: Exception) -> Exception:
        if file.failure is None:
            file.failure = error
            self._give_up(file, error)
        return file.failure

    def _give_up(self, file: InstanceFile, error: Exception) -> None:
        """Drop what a failed file holds and have its actor reset. A statement that failed comes here late."""
        with contextlib.suppress(sqlite3.Error):
            file.rollback()
        if self._on_failure is not None:
            self._on_failure(file, error)

    def _is_long(self, file: InstanceFile) -> bool:
        """Whether the file's WAL wants to be checkpointed."""
        return (
            file.bytes_since_checkpoint > self._checkpoint_bytes
            or file.large_bytes - file.large_moved > LARGE_BYTES
        )

    def _may_checkpoint(self, file: InstanceFile) -> bool:
        return (
            self._is_long(file)
            and file.failure is None
            and not file.in_transaction
            and file not in self._checkpointing
            and file not in self._alongside
            and self._syncing_by.may_write(file)
        )

    def _begin_checkpoint(self, nursery: trio.Nursery, file: InstanceFile) -> None:
        file.prepare_checkpoint()
        # A file in a log may not: what it commits could get into the main file before the log has it.
        if 0 < file.large_bytes <= HELD_BYTES and (file.relay is None or file.relay.direct):
            self._alongside.add(file)
        else:
            self._checkpointing.add(file)
            file.large_bytes = file.large_moved = 0
        self._syncing_by.write_begins(file)
        nursery.start_soon(self._checkpoint, file)

    async def _checkpoint(self, file: InstanceFile) -> None:
        try:
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(file.checkpoint, limiter=self._limiter)
            self._checkpoints += 1
        except sqlite3.Error as error:  # the WAL keeps what it has, and the next one is tried as late as this
            logger.warning("%s could not be checkpointed: %s", file.path, error)
        finally:
            if file in self._alongside:
                # What was committed meanwhile may be moved already. SQLite before 3.51.3 can lose frames
                # where a checkpoint that has nothing to move meets the commit that starts the WAL over: so
                # none begins before as much as for any other has been committed behind this one.
                self._alongside.remove(file)
                file.bytes_since_checkpoint, file.large_moved = 0, file.large_bytes
            self._checkpointing.discard(file)
            self._syncing_by.write_ended(file, closed=False)
            if file in self._held:
                self._held.remove(file)
                self._dirty.setdefault(file)
                self._awaited = self._awaited or file.ticket is not None
                self._work.set()
            self._wake()

    def _wake(self) -> None:
        """Wake those who wait for a sync or a checkpoint to be over."""
        self._synced.set()
        self._synced = trio.Event()

    async def release(self, file: InstanceFile) -> None:
        """Let go of a file that is about to be closed; its uncommitted writes will be rolled back."""
        while file in self._syncing or file in self._checkpointing or file in self._alongside:
            await self._synced.wait()
        self._dirty.pop(file, None)
        ticket: Ticket | None = file.ticket
        file.ticket = None
        if ticket is not None:
            # Who came during the last sync waits for a round that this file will not see; it may be
            # that nothing was left to be done for it.
            if not self.is_open(file):
                ticket.error = file.failure or storage_error(OSError("the file was closed"), file.path)
            ticket.event.set()

    def try_write_out(self, file: InstanceFile) -> bool:
        """Write a file that is in memory only, where all it has committed is safe; whether it is on disk now.

        Raises `StorageWriteError` or `StorageFullError`.
        """
        if file.unwritten is None or file.failure is not None:
            return True
        if file.in_transaction or file in self._syncing or not self.is_open(file):
            return False
        file.write_out()
        self._syncing_by.written()
        return True

    def _write_out_if_possible(self, file: InstanceFile) -> None:
        try:
            self.try_write_out(file)
        except StateError as error:  # it stays in memory, and who wants it on disk is told when asking again
            logger.warning("%s cannot be written yet: %s", file.path, error)

    async def retire(self, file: InstanceFile) -> bool:
        """Let go of a file as `release` does, once its main file may be written.

        Returns False where that cannot be: what it committed is not safe, and it is to be left as it is.
        `retired` is to be called once it is closed.
        """
        full = self.durability == "full"
        while full and file.failure is None and not self._syncing_by.may_write(file):
            ticket = self._ticket(file)
            await ticket.event.wait()
        await self.release(file)
        if full and not self._syncing_by.may_write(file):
            return False
        self._syncing_by.write_begins(file)
        return True

    def retired(self, file: InstanceFile, *, in_order: bool) -> None:
        """Say that a file is closed which `retire` has let go, `in_order` as that answered."""
        if in_order:
            self._syncing_by.write_ended(file, closed=True)
        else:
            self._syncing_by.abandoned(file)

    @property
    def busy(self) -> bool:
        """Whether a round is due or a sync is under way; the virtual clock waits for it."""
        return bool(self._dirty or self._syncing or self._checkpointing or self._alongside or self._held)

    def statistics(self) -> GateStatistics:
        """Return the counters."""
        return GateStatistics(
            rounds=self._rounds,
            commits=self._commits,
            syncs=self._syncs,
            checkpoints=self._checkpoints,
            waiting_files=len(self._dirty) + len(self._syncing) + len(self._held),
        )
