"""The end of retention: files of instances that ended long enough ago are removed, or archived.

A task of the process that owns the folder, beside the loop. It takes a few rows at a time whose time
has come, marks them, has a thread remove or move the files, and writes that down. The rows stay: the
id is taken, and status, times and reason are still told. Deletions and expiries that a death left
half done are finished by the same look.

Invariants:
    An instance that somebody has open, reads, or has restarted is left alone.
    A file goes after its row says so; a kill in between is found by the same index, and finished: so
        nothing here is shielded from the end of the runtime.
    A process expires only workflows that it has the classes of: these say how long, and whether to archive.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Protocol

import trio

from perdure.actors.retention import Retention, restored_retention
from perdure.actors.workflow import Definition
from perdure.engine.app import App
from perdure.engine.folder import StateFolder
from perdure.engine.readers import Readers
from perdure.engine.removal import Place, finish, remove_files
from perdure.errors import PerdureError, StateError
from perdure.storage.catalog import Catalog
from perdure.storage.disk import Disk
from perdure.storage.files import storage_error
from perdure.storage.peek import bring_to_rest, peek_state
from perdure.storage.records import CatalogRow, Deadline, InstanceState
from perdure.storage.removals import DELETING

logger: Final = logging.getLogger("perdure.engine")
BATCH_MAX: Final = 100
"""Instances expired at once: two writes of the catalog, and one job in a thread."""
AGAIN_S: Final = 5.0
"""How long is waited where something could not be removed, or is being read."""
LOOK_S: Final = 30.0
"""How late it may be noticed, where other processes end instances, that a retention is over."""


class ExpiryPlace(Place, Protocol):
    """What an expiry needs of the access to instances."""

    @property
    def app(self) -> App:
        """What this process knows."""
        ...

    @property
    def catalog(self) -> Catalog:
        """The catalog, for reading."""
        ...

    @property
    def readers(self) -> Readers:
        """Who reads files."""
        ...


def retention_for(state: InstanceState, definition: Definition | None, app: App) -> Retention | None:
    """Return how long an instance is kept: as it was created with, else its class's word, else the App's."""
    own = restored_retention(state.retention)
    if own is not None:
        return own
    if definition is not None and definition.retention is not None:
        return definition.retention
    return app.retention


def expires_at_ms(state: InstanceState, definition: Definition | None, app: App) -> int | None:
    """Return when the retention of an instance is over, or None while it has not ended, or for ever."""
    if state.ended_at_ms is None:
        return None
    retention = retention_for(state, definition, app)
    kept_s = None if retention is None else retention.seconds_for(state.status)
    return None if kept_s is None else state.ended_at_ms + round(kept_s * 1000)


class Expiry:
    """Expires what is due. `run` serves in a task; `timers` are None where others end instances, too."""

    def __init__(self, place: ExpiryPlace, timers: Any = None) -> None:
        self._place = place
        self._timers = timers
        self._look = trio.Event()
        self._timer: Any = None
        self.busy = False

    def at(self, at_ms: int) -> None:
        """Look again at that time, where that is sooner than the next look."""
        del at_ms
        self._look.set()

    async def run(self) -> None:
        """Serve until cancelled."""
        while True:
            self._look = trio.Event()
            self.busy = True
            try:
                again = await self._expire_due()
            except StateError as error:
                logger.error("what has expired cannot be removed yet: %s", error)
                again = True
            finally:
                self.busy = False
            await self._wait(again=again)

    async def _wait(self, *, again: bool) -> None:
        """Wait until something may be due: by a timer of the runtime's, or by looking every now and then."""
        if again:
            with trio.move_on_after(AGAIN_S):
                await self._look.wait()
            return
        if self._timers is None:
            with trio.move_on_after(LOOK_S):
                await self._look.wait()
            return
        next_ms = self._place.catalog.removals.next_ms(self._place.app.definitions)
        timer = None if next_ms is None else self._timers.at(Deadline(wall_ms=next_ms), self._look.set)
        await self._look.wait()
        if timer is not None:
            timer.cancel()

    async def _expire_due(self) -> bool:
        """Expire all that is due; whether something is left for later."""
        place, left = self._place, False
        while True:
            now_ms = place.clock.wall_ms()
            rows = place.catalog.removals.due(now_ms, place.app.definitions, BATCH_MAX)
            there = [row for row in rows if not place.readers.has(row.key)]
            left = len(there) < len(rows)
            if there:
                await finish(place, [row for row in there if row.open == DELETING])
                await self._expire([row for row in there if row.open != DELETING])
            if left or len(rows) < BATCH_MAX:
                return left

    async def _expire(self, rows: Sequence[CatalogRow]) -> None:
        if not rows:
            return
        place = self._place
        begun = [row for row in rows if row.archived is not None]
        new = [row for row in rows if row.archived is None]
        where = await trio.to_thread.run_sync(destinations, place.folder, place.app, new)
        kept = [row for row in new if where[row.key] is None]

        def mark(catalog: Catalog) -> list[CatalogRow]:
            for row in kept:
                catalog.removals.expired(row, row.reason)
            return [
                row for row in new if (to := where[row.key]) is not None and catalog.removals.expire(row, to)
            ]

        marked = await place.writer.write(mark)
        moves = [(row, row.archived or "") for row in begun] + [(row, where[row.key] or "") for row in marked]
        await trio.to_thread.run_sync(_carry_out, place.folder, moves)
        now = datetime.fromtimestamp(place.clock.wall_ms() / 1000, UTC).isoformat(timespec="seconds")

        def told(catalog: Catalog) -> None:
            for row, to in moves:
                done = f"moved to {to}" if to else "removed"
                catalog.removals.expired(row, f"expired: file {done} at {now}")

        await place.writer.write(told)


def destinations(folder: StateFolder, app: App, rows: Sequence[CatalogRow]) -> dict[Any, str | None]:
    """Return where each file goes: '' to be removed, None where it is kept after all. Runs off the loop."""
    found: dict[Any, str | None] = {}
    for row in rows:
        try:
            state = peek_state(folder.instance(row.key))
            retention = retention_for(state, app.definitions.get(row.workflow), app)
        except PerdureError:  # a file that cannot be read is for a person to look at
            retention = None
        if retention is None or retention.seconds_for(row.status) is None:
            found[row.key] = None
        else:
            found[row.key] = _archived(folder, row) if retention.archive else ""
    return found


def _archived(folder: StateFolder, row: CatalogRow) -> str:
    """Return where in the state folder a file is archived: its own place there, or one beside another's."""
    path = folder.instance(row.key)
    target = folder.archive / path.parent.name / path.name
    if target.exists():
        target = target.with_name(f"{path.stem}~{row.incarnation & 0xFFFFFFFFFFFFFFFF:x}{path.suffix}")
    return str(target.relative_to(folder.root))


def _carry_out(folder: StateFolder, moves: Sequence[tuple[CatalogRow, str]]) -> None:
    """Remove or move the files, durably. Runs off the loop; harmless to repeat. Raises `StateError`."""
    remove_files([folder.instance(row.key) for row, to in moves if not to])
    disk, touched = Disk(), set[Path]()
    for row, to in moves:
        source, target = folder.instance(row.key), folder.root / to
        if not to or not source.exists():
            continue
        try:
            bring_to_rest(source)
            disk.make_folder(target.parent, durable=True)
            source.rename(target)
        except OSError as error:
            raise storage_error(error, source) from error
        touched.update((source.parent, target.parent))
    for path in touched:
        disk.sync_directory(path)
