"""What the process that has just taken a folder's lock does before it runs anything.

Everybody who had the folder before is dead, for the lock is free: what they had open is given up for
whoever claims it next, and what the death of a machine may have left is looked after.

Invariants:
    Nothing of this happens while any other process of the folder lives.
"""

from __future__ import annotations

import contextlib
import os
from functools import partial
from pathlib import Path

import trio

from perdure.actors.host import Clock, deadline_in
from perdure.engine.app import App
from perdure.engine.folder import StateFolder
from perdure.storage.catalog import Catalog
from perdure.storage.catalog_file import open_catalog
from perdure.storage.check import check_after_machine_death, remove_unless_whole
from perdure.storage.disk import Disk
from perdure.storage.records import CatalogRow, Durability, Key
from perdure.storage.redo import redo, revive, segments, settle
from perdure.storage.writer import CatalogWriter


async def register(
    folder: StateFolder,
    clock: Clock,
    durability: Durability,
    *,
    catalog: Catalog,
    writer: CatalogWriter,
    disk: Disk,
) -> int:
    """Record this process as the owner of the folder and return its number."""
    last = catalog.workers.last()
    await trio.to_thread.run_sync(settle_logs, folder, clock.boot, catalog, disk)
    if last is not None and last.boot != clock.boot:
        await writer.write(lambda catalog: catalog.rebooted(clock.boot))
        if last.durability == "process" and last.stopped_at_ms is None:
            paths = [folder.instance(row.key) for row in catalog.opened()]
            await trio.to_thread.run_sync(check_after_machine_death, paths)
    if last is not None and last.durability == "process" and durability == "full":
        # Nothing that was written then has been synced, and this process will acknowledge what rests on it.
        await trio.to_thread.run_sync(disk.sync_everything, folder.root)
    return await writer.write(
        lambda catalog: catalog.workers.add(
            pid=os.getpid(), boot=clock.boot, at_ms=clock.wall_ms(), doorbell=str(folder.doorbell),
            durability=durability,
        )
    )  # fmt: skip


def settle_logs(folder: StateFolder, boot: int, catalog: Catalog | None, disk: Disk) -> None:
    """Bring the files to what relay logs say that their processes left, and remove the logs.

    Whoever has taken the folder's lock does this before reading any file. Without a catalog the logs
    are believed. Runs off the loop.
    """
    found = segments(folder.relay)
    replaced: set[Key] = set()

    def locate(name: str, incarnation: int) -> tuple[Path, int] | None:
        place = _place(folder, catalog, name, incarnation)
        if place is None:
            replaced.add(_key(name))
        return place

    if any(segment.boot != boot for _, segment in found):
        redo(folder.relay, folder.root, disk, boot=boot, locate=locate)
    elif folder.relay.exists() and any(folder.relay.iterdir()):
        revive(folder.relay, disk, locate=locate)
        settle(folder.relay, folder.root, disk)
    last = None if catalog is None else catalog.workers.last()
    if catalog is not None and last is not None and last.boot != boot and last.durability == "full":
        # Besides what was being made, what another incarnation was about to come in the place of.
        for row in (*catalog.opened(), *filter(None, map(catalog.find, replaced))):
            if row.birth is not None:
                remove_unless_whole(folder.instance(row.key))


def _key(name: str) -> Key:
    """Return the instance that the log calls `name`."""
    return Key(*name.split("/", 1))


def _place(
    folder: StateFolder, catalog: Catalog | None, name: str, incarnation: int
) -> tuple[Path, int] | None:
    """Return where a file of the log lies, and its last epoch that is safe without one; None for no such."""
    key = _key(name)
    safe_epoch = 0 if catalog is None else catalog.safe_epoch(key, incarnation)
    return None if safe_epoch is None else (folder.instance(key), safe_epoch)


def settle_worker(folder: StateFolder, disk: Disk, worker: int) -> None:
    """Make safe what a dead worker wrote, or had in memory, and remove its log. Runs off the loop."""
    if any(segment.worker == worker for _, segment in segments(folder.relay)):
        with contextlib.closing(Catalog(open_catalog(folder.catalog, checkpointer=False))) as catalog:
            revive(folder.relay, disk, locate=partial(_place, folder, catalog), worker=worker)
    settle(folder.relay, folder.root, disk, worker=worker)


async def take_up(app: App, clock: Clock, catalog: Catalog, writer: CatalogWriter) -> None:
    """Give up what processes that died had open, for this one to claim (law 4)."""
    opened = catalog.opened()
    if not opened:
        return
    await writer.write(lambda catalog: catalog.crashed())
    for row in opened:
        if row.workflow not in app.definitions:
            await _lay_aside(row, clock, writer)


async def _lay_aside(row: CatalogRow, clock: Clock, writer: CatalogWriter) -> None:
    """Say of an instance that this process cannot run why it rests, until its class is here."""
    wake = deadline_in(clock, 0)
    reason = f"no class {row.workflow} in the process that has the folder"
    await writer.write(lambda catalog: catalog.postpone(row.key, reason=reason, wake=wake))
