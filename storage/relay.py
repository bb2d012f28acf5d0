"""The relay log: one sync makes the commits of a whole tick durable, whatever files they are in.

One log per process, in segments of fixed size that are written before they are needed. After the
tick's commits the new frames of every file's WAL are read back, appended as page images, and
synced once; the gates open then. The instance files themselves are never synced one by one: when
a segment is full, the file system is synced as a whole, and what the segment holds is settled.

The rules this follows, and what it would lose without them, stand in ARCHITECTURE.md. `redo.py`
reads the log after the machine has died. Only the gate and the runtime's opening use this.

Invariants:
    A file's main database file is written (checkpoint, close) only when all of its WAL is in
    segments that are not about to go: first the log, then the file.
    A segment goes only after a sync of the file system that began when no such write was under way;
    what has gone is not found by redo, and never an older segment after a newer one.
    The first images of a file in a segment come from the beginning of its WAL.
    After a failed append its segment is not written to again.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import logging
import os
import sqlite3
import zlib
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Final, TypeAlias

import msgspec
import trio

from perdure.storage.disk import Disk
from perdure.storage.files import InstanceFile
from perdure.storage.redo import forget, log_of
from perdure.storage.relay_format import (
    CLOSED,
    HEADER_BYTES,
    IMAGES,
    SECTOR_BYTES,
    TEMPLATE,
    VOID,
    Entry,
    encode_batch,
    encode_entry,
    entry_bytes,
)
from perdure.storage.schema import template
from perdure.storage.slot import Slot, write_at
from perdure.storage.syncing import Failures, FileSync
from perdure.storage.threads import Threads, open_threads
from perdure.storage.track import Track, is_outgrown, new_commits
from perdure.storage.wal import Commits

logger: Final = logging.getLogger("perdure.storage")

SEGMENT_BYTES: Final = 16 * 1024 * 1024
SEGMENTS_MAX: Final = 8
"""When so many wait to be settled, nothing more is appended: everything slows down to the disk's pace."""
IDLE_S: Final = 1.0
"""After so long without an append, all is settled, so that edits by other programs meet an empty log."""
RETRY_S: Final = 1.0
SEGMENTS_ROOM: Final = 4
"""A disk with less free room than this many segments gets no more of them: files are synced one by one."""


Mark: TypeAlias = Callable[[Sequence[tuple[str, int]]], Awaitable[None]]
"""Writes down, where several processes have logs, up to which epoch open files are safe without this one."""


class AppendError(OSError):
    """A batch was not written: whoever has anything in it has to be told."""


class RelayStatistics(msgspec.Struct, frozen=True, kw_only=True):
    """What the log has done: `settled` counts syncs of the file system, `direct` files that left the log."""

    batches: int
    bytes: int
    segments: int
    settled: int
    direct: int


class RelayLog:
    """The log of one process. `sync` is the gate's; `run` serves in a task."""

    def __init__(
        self, folder: Path, *, root: Path, disk: Disk, worker: int, boot: int, mark: Mark | None = None,
        segment_bytes: int = SEGMENT_BYTES, segments_max: int = SEGMENTS_MAX, idle_s: float = IDLE_S,
    ) -> None:  # fmt: skip
        self._folder = folder
        self._root = root
        self._disk = disk
        self._worker = worker
        self._boot = boot
        self._mark = mark
        self._segment_bytes = segment_bytes
        self._segments_max = segments_max
        self._idle_s = idle_s
        self._slots: list[Slot] = []
        self._abandoned: list[Slot] = []
        self._current: Slot | None = None
        self._number = 0
        self._pending: list[Entry] = []
        self._pending_bytes = 0
        self._closed: list[Entry] = []
        self._rested: dict[str, int] = {}  # closed files whose rows may not say so yet
        self._open: set[InstanceFile] = set()
        self._leaving: set[InstanceFile] = set()
        self._writes: dict[InstanceFile, int] = {}
        self._changed = trio.Event()
        self._under_way = False
        self._base_unsafe = False
        self._waits_for_memory = False
        self._is_kept = False  # whether a file could not be written that nothing but the log has
        self._batches = self._bytes = self._settled = self._direct = 0

    # -- for lives -------------------------------------------------------------------------

    def adopt(
        self, file: InstanceFile, name: str, incarnation: int, *, newborn: bool, unsettled: bool
    ) -> None:
        """Take a file under the log that has just been opened; `newborn` where it was just made.

        `unsettled` says that an owner before may have made the file and died. What a dead owner left is
        made safe by itself before anything new of the file counts.
        """
        file.relay = Track(name, incarnation, born=newborn)
        self._open.add(file)
        if not newborn:
            with contextlib.suppress(OSError):
                file.relay.opened = file.path.stat().st_mtime_ns
        if not newborn and (unsettled or file.leftover):
            self._base_unsafe = True

    def may_write(self, file: InstanceFile) -> bool:
        """Whether the main file may be written now: by this log, all of its WAL is safe elsewhere."""
        track = file.relay
        if track is not None and track.direct:
            return True
        if file.generation == 0 and not file.leftover:
            return True
        return track is not None and 0 < track.segment == self._number and track.commits == file.generation

    def write_begins(self, file: InstanceFile) -> None:
        """Say that the file is about to be checkpointed or closed. Only where `may_write`."""
        self._writes[file] = 0 if file.relay is None else file.relay.segment

    def outgrows(self, file: InstanceFile) -> bool:
        """Whether an unwritten file, just committed, is to be written now, because the log cannot take it.

        It then leaves the log at the next sync.
        """
        if not is_outgrown(file) and not self._is_without_log():
            return False
        self._leaving.add(file)
        return True

    def written(self) -> None:
        """Say that a file has been written that was in memory only."""
        self._wake()

    def abandoned(self, file: InstanceFile) -> None:
        """Say that the file was closed as a crash would close it."""
        self._open.discard(file)
        self._leaving.discard(file)
        self._is_kept = self._is_kept or file.unwritten is not None
        if file.relay is not None and self._mark is not None:
            self._rested[file.relay.name] = file.epoch

    def write_ended(self, file: InstanceFile, *, closed: bool) -> None:
        """Say that this is over; `closed` where nothing of the file is left open."""
        self._writes.pop(file, None)
        if closed:
            self._open.discard(file)
        track = file.relay
        if closed and track is not None and self._mark is not None:
            self._rested[track.name] = file.epoch
        if closed and track is not None and not track.direct and track.segment:
            with contextlib.suppress(OSError):
                time_ns = file.path.stat().st_mtime_ns
                self._closed.append(_entry(CLOSED, file, track, number=time_ns))
        self._wake()

    # -- for the gate ----------------------------------------------------------------------

    async def sync(self, files: Sequence[InstanceFile], threads: Threads) -> Failures:
        """Return once all that was committed to `files` is on disk, with those that failed."""
        self._under_way = True
        try:
            return await self._sync(files, threads)
        finally:
            self._under_way = False
            self._wake()

    async def _sync(self, files: Sequence[InstanceFile], threads: Threads) -> Failures:
        failures: Failures = []
        direct = [file for file in files if file.relay is None or file.relay.direct]
        large: list[InstanceFile] = []
        logged: list[InstanceFile] = []
        for file in files:
            if file.relay is None or file.relay.direct:
                continue
            try:
                (logged if await self._log(file, file.relay, threads) else large).append(file)
            except AppendError as error:
                failures += [(each, error) for each in (*logged, file)]
                logged.clear()
            except (OSError, sqlite3.Error) as error:
                failures.append((file, error if isinstance(error, OSError) else OSError(str(error))))
        try:
            if large:
                await self._leave_alone(large, threads)
            await self._flush(threads)
        except OSError as error:
            failures += [(file, error) for file in (*logged, *large)]
        else:
            for file in logged:
                file.relay.born = False
        if direct:
            failures += await FileSync().sync(direct, threads)
        return failures

    async def _log(self, file: InstanceFile, track: Track, threads: Threads) -> bool:
        """Put a file's new commits into the next batch; False where there is no room for them."""
        while True:
            if file in self._leaving or _is_large(file) or self._is_without_log():
                self._leaving.discard(file)
                return False
            found = new_commits(file, track, whole=track.segment != self._number)
            if found is None:
                return False
            entry = _entry(IMAGES, file, track, found=found)
            if self._put(entry):
                track.segment, track.commits = self._number, file.generation
                track.read, track.salts, track.trusted = found.end, found.salts or None, True
                track.image = file.image
                return True
            await self._flush(threads)
            await self._roll()

    def _put(self, entry: Entry) -> bool:
        """Add an entry to the next batch; False where the segment has no room for it."""
        slot = self._current
        if slot is None:
            return False
        entries = [entry]
        if entry.born and entry.number not in slot.templates:
            empty = template()
            images = {1: empty}
            kept = Entry(
                kind=TEMPLATE, name="", page_bytes=len(empty), number=entry.number, images=images
            )  # fmt: skip
            entries.insert(0, kept)
        size = sum(map(entry_bytes, entries))
        closed = sum(map(entry_bytes, self._closed))
        if slot.at + self._pending_bytes + closed + size + SECTOR_BYTES > self._segment_bytes:
            return False
        slot.templates.update(each.number for each in entries if each.kind == TEMPLATE)
        self._pending += self._closed + entries
        self._pending_bytes += size + closed
        self._closed = []
        return True

    async def _leave_alone(self, large: list[InstanceFile], threads: Threads) -> None:
        """Sync these files by themselves from now on, and void what the log has of them."""
        await self._flush(threads)
        self._base_unsafe = True
        await self._make_base_safe(threads)
        for file in large:
            track = file.relay
            assert track is not None
            if not self._slots and not self._abandoned:
                continue  # there is no log that has anything of it
            while not self._put(_entry(VOID, file, track)):
                await self._flush(threads)
                await self._roll()
            track.segment, track.commits = self._number, file.generation
        await self._flush(threads)
        for file in large:
            assert file.relay is not None
            file.relay.direct = file.directory_synced = True
            self._direct += 1

    async def _flush(self, threads: Threads) -> None:
        """Write what is pending and sync it. Raises `AppendError`: the segment is then given up."""
        slot, entries = self._current, self._pending
        if slot is None or not entries:
            return
        self._pending, self._pending_bytes = [], 0
        try:
            await self._make_base_safe(threads)
            await threads.run_one(functools.partial(self._append, slot, entries))
        except OSError as error:
            logger.error("the relay log cannot be written, and goes on in another segment: %s", error)
            self._give_up(slot)
            raise AppendError(error.errno, error.strerror or str(error)) from error

    async def _make_base_safe(self, threads: Threads) -> None:
        """Where a file's base may be on no disk and in no log of ours, sync it by the file system's means."""
        if self._base_unsafe:
            await threads.run_one(functools.partial(self._disk.sync_file_system, self._root))
            self._base_unsafe = False

    # -- in the thread ---------------------------------------------------------------------

    def _append(self, slot: Slot, entries: list[Entry]) -> None:
        """Write one batch and sync it. Runs in a thread of the gate."""
        if slot.batches == 0:
            slot.prepare(self._disk, self._segment_bytes, worker=self._worker, boot=self._boot)
        parts = list(itertools.chain.from_iterable(map(encode_entry, entries)))
        batch = encode_batch(parts, segment=slot.segment, number=slot.batches)
        write_at(slot.descriptor, batch, slot.at)
        self._disk.sync_descriptor(slot.descriptor)
        slot.at += len(batch)
        slot.batches += 1
        self._batches += 1
        self._bytes += len(batch)

    # -- segments --------------------------------------------------------------------------

    async def _roll(self) -> None:
        """Begin another segment, once there is room for one.

        Where settling waits for files that are in memory only, which go through here before they are
        written, there is one more.
        """
        while not self._waits_for_memory and (
            len(self._in_use()) >= self._segments_max
            or (self._in_use() and len(self._in_use()) == len(self._slots) and self._is_tight())
        ):
            await self._changed.wait()
        self._begin_segment()

    def _is_without_log(self) -> bool:
        return not self._slots and self._is_tight()

    def _is_tight(self) -> bool:
        """Whether another file of the log would take what the instances themselves may need."""
        try:
            room = os.statvfs(self._root)
        except OSError:
            return True
        return room.f_bavail * room.f_frsize < SEGMENTS_ROOM * self._segment_bytes

    def _begin_segment(self) -> None:
        slot = next((slot for slot in self._slots if slot.segment == 0), None)
        if slot is None:
            slot = Slot(self._folder / f"{self._worker}.{os.getpid()}.{self._number}.log")
            self._slots.append(slot)
        self._number += 1
        slot.segment, slot.at, slot.batches = self._number, HEADER_BYTES, 0
        slot.first = min(each.segment for each in (*self._abandoned, *self._in_use()))
        slot.templates.clear()
        self._current = slot
        self._wake()

    def _give_up(self, slot: Slot) -> None:
        """Write no more to a segment that failed; what it held before is there still."""
        if slot.descriptor >= 0:
            os.close(slot.descriptor)
            slot.descriptor = -1
        self._abandoned.append(slot)
        self._slots.remove(slot)
        self._current = None
        self._number += 1  # what is logged next is logged from the beginning
        self._base_unsafe = True

    def _in_use(self) -> list[Slot]:
        return [slot for slot in self._slots if slot.segment]

    def _wake(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    # -- settling --------------------------------------------------------------------------

    async def run(self) -> None:
        """Serve for ever: settle full segments, and all of them when nothing happens."""
        with open_threads("perdure settle", 1) as threads:
            while True:
                seen = self._batches
                with trio.move_on_after(self._idle_s) as idle:
                    while not self._full():
                        await self._changed.wait()
                if idle.cancelled_caught:
                    if seen != self._batches or self._under_way or not self._in_use():
                        continue
                    self._current = None
                    self._number += 1
                await self._settle(threads)

    def _full(self) -> list[Slot]:
        return [slot for slot in (*self._abandoned, *self._in_use()) if slot is not self._current]

    async def _settle(self, threads: Threads) -> None:
        """Make all that stands in full segments safe by itself, and let them go."""
        if self._is_kept:
            await trio.sleep_forever()
        slots = self._full()
        last = max((slot.segment for slot in slots), default=0)
        while any(segment <= last for segment in self._writes.values()) or self._in_memory(last):
            if self._in_memory(last) and not self._waits_for_memory:
                self._waits_for_memory = True
                self._wake()
            await self._changed.wait()
        self._waits_for_memory = False
        rested, self._rested = self._rested, {}
        try:
            await threads.run_one(functools.partial(self._disk.sync_file_system, self._root))
            self._settled += 1
            if self._mark is not None:
                tracks = [(file.relay, file.epoch) for file in self._open]
                open_ = {track.name: epoch for track, epoch in tracks if 0 < track.segment <= last}
                await self._mark([*rested.items(), *open_.items()])
            await threads.run_one(functools.partial(self._void, slots))
        except OSError as error:
            logger.error("the file system of %s cannot be synced, and is tried again: %s", self._root, error)
            self._rested = rested | self._rested
            await trio.sleep(RETRY_S)
            return
        for slot in slots:
            slot.segment = 0
        self._abandoned = [slot for slot in self._abandoned if slot.segment]
        self._wake()

    def _void(self, slots: list[Slot]) -> None:
        """Have redo find these segments no more. Runs in a thread.

        The oldest goes first, and is gone before the next one goes: an older segment alone would take
        files back to what they were.
        """
        for slot in sorted(slots, key=lambda each: each.segment):
            if slot.descriptor >= 0:
                write_at(slot.descriptor, bytes(SECTOR_BYTES), 0)
                self._disk.sync_descriptor(slot.descriptor)
            elif slot.path.exists():
                slot.path.unlink()
                self._disk.sync_directory(self._folder)

    def _in_memory(self, last: int) -> bool:
        """Whether a file that nothing but segments up to `last` has is not written yet."""
        return any(file.unwritten is not None and 0 < file.relay.segment <= last for file in self._open)

    async def close(self) -> None:
        """Settle all and remove the log. Every file is closed, or left as a crash would leave it."""
        if self._is_kept:
            return
        with open_threads("perdure settle", 1) as threads:
            await threads.run_one(self._remove)

    def _remove(self) -> None:
        slots = [*self._slots, *self._abandoned]
        if not slots:
            return
        self._disk.sync_file_system(self._root)
        self._void([slot for slot in slots if slot.segment])
        for slot in self._slots:
            if slot.descriptor >= 0:
                os.close(slot.descriptor)
                slot.descriptor = -1
        forget(self._folder, self._disk, [log_of(slots[0].path)])

    def statistics(self) -> RelayStatistics:
        """Return the counters."""
        return RelayStatistics(
            batches=self._batches, bytes=self._bytes, segments=len(self._in_use()), settled=self._settled,
            direct=self._direct,
        )  # fmt: skip


def _entry(
    kind: int, file: InstanceFile, track: Track, *, found: Commits | None = None, number: int = 0
) -> Entry:
    entry = Entry(kind=kind, name=track.name, incarnation=track.incarnation, epoch=file.epoch, number=number)
    if found is not None:
        entry.page_bytes, entry.file_pages, entry.images = found.page_bytes, found.file_pages, found.images
        entry.salts, entry.end, entry.opened = found.salts or bytes(8), found.end, track.opened
        if track.born:
            entry.born, entry.number = True, _template_number()
    return entry


def _is_large(file: InstanceFile) -> bool:
    """Whether a value went into the file that is not to be written twice. One in memory is written first."""
    return file.has_large and file.unwritten is None


@functools.cache
def _template_number() -> int:
    """Return the number by which entries name the template; every new instance asks for it."""
    return zlib.crc32(template())
