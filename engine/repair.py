"""`perdure repair`: the catalog rebuilt from the instances' files, which are the truth (law 9).

The catalog may be missing, damaged, or at odds with the files. What a file says of its instance
replaces what the catalog says; rows whose file is gone are dropped. An unfinished instance is marked
to wake at once: the next runtime opens it, and it looks for itself what it waits for.

Invariants:
    The folder's lock is held throughout.
    A folder without a file of ours is refused, unchanged.
    No instance's file is changed but by SQLite's own checkpoint of what is committed in it.
    With `dry_run` nothing is changed.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Final, Literal

import msgspec
from msgspec.structs import replace

from perdure.engine.app import App
from perdure.engine.clock import SystemClock
from perdure.engine.expiry import expires_at_ms
from perdure.engine.folder import StateFolder
from perdure.engine.recovery import settle_logs
from perdure.engine.removal import paths_of, remove_files
from perdure.engine.timers import WaitingClock
from perdure.errors import StateUnusableError
from perdure.storage.catalog import Catalog
from perdure.storage.catalog_file import open_catalog
from perdure.storage.disk import Disk
from perdure.storage.locks import FolderLock
from perdure.storage.peek import bring_to_rest
from perdure.storage.records import FINISHED, CatalogRow, InstanceState, Key, Status
from perdure.storage.redo import segments
from perdure.storage.removals import DELETING
from perdure.storage.survey import (
    Look,
    catalog_fault,
    instance_paths,
    is_foreign_catalog,
    is_ours,
    leftovers,
    look_at,
    salvage_queue,
)
from perdure.storage.writer import write_now

Condition = Literal["intact", "missing", "damaged"]
AT_REST: Final = FINISHED | {"paused", "dead"}
"""Statuses that a row must have exactly as its file does: nothing moves such an instance by itself."""
NOT_IN_FILES: Final = (
    "instances that were created and had not started",
    "which instances were deleted, or have expired",
    "how long instances that have ended are kept, where their class says so",
    "how far schedules had come",
    "commands on their way to instances",
)


class Problem(msgspec.Struct, frozen=True, kw_only=True):
    """One file or row, and what is the matter with it."""

    name: str
    what: str


class RepairReport(msgspec.Struct, frozen=True, kw_only=True):
    """What was found and done; with `dry_run`, what would be done.

    `restored` rows were missing, `corrected` ones at odds with their file, `dropped` ones without a
    file. `damaged` and `left_alone` files need a person. `lost` says what no file can tell.
    """

    state: str
    dry_run: bool
    catalog: Condition
    catalog_why: str
    moved_to: str | None
    files: int
    queued: int
    restored: list[str]
    corrected: list[Problem]
    dropped: list[str]
    damaged: list[Problem]
    left_alone: list[Problem]
    lost: list[str]

    @property
    def changes(self) -> int:
        """How many rows were, or would be, written or dropped."""
        return len(self.restored) + len(self.corrected) + len(self.dropped)

    @property
    def needs_a_person(self) -> bool:
        """Whether something is left that no program can mend."""
        return bool(self.damaged)


def repair_state(
    path: str | os.PathLike[str], *, dry_run: bool = False, clock: WaitingClock | None = None
) -> RepairReport:
    """Rebuild the catalog of the state folder `path` from its files, and say what was done.

    Raises `StateUnusableError` where the folder holds nothing of ours, `StateLockedError` while
    another process has it, `StateVersionError` for a catalog of a newer Perdure.
    """
    folder = StateFolder(path)
    _require_ours(folder)
    with FolderLock.acquire(folder.lock):
        return _Repair(folder, clock or SystemClock(), dry_run=dry_run).run()


def _require_ours(folder: StateFolder) -> None:
    root = folder.root
    if not root.is_dir():
        raise StateUnusableError(f"there is no folder {root}: name one with --state DIR", path=str(root))
    if folder.exists():
        if is_foreign_catalog(folder.catalog):
            raise StateUnusableError(
                f"{folder.catalog} is a database of another program, so {root} is not ours to repair",
                path=str(root),
            )
        return
    if not segments(folder.relay) and not any(is_ours(path) for path in instance_paths(root)):
        raise StateUnusableError(
            f"{root} holds no catalog and no instance's file, so there is nothing to repair: name a state"
            " folder with --state DIR",
            path=str(root),
        )


class _Repair:
    """One repair under way."""

    def __init__(self, folder: StateFolder, clock: WaitingClock, *, dry_run: bool) -> None:
        self._folder = folder
        self._clock = clock
        self._dry_run = dry_run
        self._rows: dict[Key, CatalogRow] = {}
        self._half_deleted: list[CatalogRow] = []
        self._writes: list[CatalogRow] = []
        self._removals: list[Key] = []
        self._seen: set[Key] = set()
        self._restored: list[str] = []
        self._corrected: list[Problem] = []
        self._damaged: list[Problem] = []
        self._left_alone: list[Problem] = []

    def run(self) -> RepairReport:
        """Look at everything, decide, write."""
        why = catalog_fault(self._folder.catalog)
        condition: Condition = "intact" if why is None else "missing" if why == "missing" else "damaged"
        queue = self._read_rows(condition)
        if not self._dry_run:
            self._settle_logs(condition)
            self._finish_deletions()
        going = {self._folder.instance(row.key) for row in self._half_deleted}
        paths = [path for path in instance_paths(self._folder.root) if path not in going]
        for path in paths:
            if not self._dry_run:
                bring_to_rest(path)
            self._weigh(look_at(path))
        self._drop_rows_without_files()
        moved_to = None if self._dry_run else self._write(condition)
        return RepairReport(
            state=str(self._folder.root), dry_run=self._dry_run, catalog=condition, catalog_why=why or "",
            moved_to=moved_to, files=len(paths), queued=queue, restored=self._restored,
            corrected=self._corrected, dropped=[str(key) for key in self._removals],
            damaged=self._damaged, left_alone=self._left_alone,
            lost=[] if condition == "intact" else list(NOT_IN_FILES),
        )  # fmt: skip

    def _settle_logs(self, condition: Condition) -> None:
        """Bring the files to what a dead owner's relay log says, before any is looked at."""
        if condition != "intact":
            settle_logs(self._folder, self._clock.boot, None, Disk())
            return
        with contextlib.closing(Catalog(open_catalog(self._folder.catalog, checkpointer=True))) as catalog:
            settle_logs(self._folder, self._clock.boot, catalog, Disk())

    def _finish_deletions(self) -> None:
        """Remove the files of instances that were being deleted when their process died, then their rows."""
        if not self._half_deleted:
            return
        rows, at_ms = self._half_deleted, self._clock.wall_ms()
        remove_files([path for row in rows for path in paths_of(self._folder, row)])
        with contextlib.closing(Catalog(open_catalog(self._folder.catalog, checkpointer=True))) as catalog:
            keys = [row.key for row in rows]
            write_now(catalog, lambda it: it.removals.drop(keys, at_ms=at_ms), path=self._folder.catalog)

    # -- what the catalog says -------------------------------------------------------------

    def _read_rows(self, condition: Condition) -> int:
        """Read the rows there are; return how many stand for instances not started yet."""
        rows: list[CatalogRow] = []
        match condition:
            case "intact":
                catalog = Catalog(open_catalog(self._folder.catalog, checkpointer=True))
                try:
                    rows = catalog.select()
                    self._half_deleted = [
                        row for row in catalog.removals.due(0, (), -1) if row.open == DELETING
                    ]
                finally:
                    catalog.close()
            case "damaged":  # of a started instance the file knows better
                rows = salvage_queue(self._folder.catalog)
                self._writes.extend(rows)
            case "missing":
                pass
        self._rows = {row.key: row for row in rows}
        return sum(row.birth is not None for row in rows)

    # -- what each file says ---------------------------------------------------------------

    def _weigh(self, look: Look) -> None:
        name = str(look.path.relative_to(self._folder.root))
        match look.kind:
            case "ours" | "damaged" if look.state is not None:
                self._compare(look, name, look.state)
            case "ours" | "damaged":
                self._damaged.append(Problem(name=name, what=look.why))
                self._keep_as_dead(look)
            case "unborn" | "newer" | "foreign":
                self._left_alone.append(Problem(name=name, what=f"{look.kind}: {look.why}"))
                self._seen.update(key for key in self._rows if self._folder.instance(key) == look.path)

    def _keep_as_dead(self, look: Look) -> None:
        """Keep the row of a file that tells nothing: the id is known from the row alone."""
        for key, row in self._rows.items():
            if self._folder.instance(key) == look.path:
                self._seen.add(key)
                if row.birth is None and row.status not in AT_REST:
                    self._correct(row, _dead(row, look.why))

    def _compare(self, look: Look, name: str, state: InstanceState) -> None:
        key = Key(state.workflow, state.id)
        if self._folder.instance(key) != look.path:
            where = self._folder.instance(key).relative_to(self._folder.root)
            self._left_alone.append(Problem(name=name, what=f"a copy: {key} belongs in {where}"))
            return
        self._seen.add(key)
        truth = self._row_of(state)
        if look.kind == "damaged":
            self._damaged.append(Problem(name=name, what=look.why))
            if state.status not in FINISHED:
                truth = _dead(truth, look.why)
        row = self._rows.get(key)
        if row is None:
            self._restored.append(str(key))
            self._writes.append(truth)
        elif row.status == "queued" and row.lane is not None and state.status not in FINISHED:
            pass  # it waits for a place, which only the catalog knows
        elif row.birth is None and _differs(row, truth, state):
            self._correct(
                row,
                replace(
                    truth, epoch=max(row.epoch, truth.epoch), lane=row.lane, priority=row.priority,
                    expires_at_ms=truth.expires_at_ms or _kept_until(row, truth),
                ),
            )  # fmt: skip

    def _correct(self, row: CatalogRow, truth: CatalogRow) -> None:
        what = (
            f"{row.status} -> {truth.status}" if row.status != truth.status else "times, epoch or incarnation"
        )
        self._corrected.append(Problem(name=str(row.key), what=what))
        self._writes.append(truth)

    def _row_of(self, state: InstanceState) -> CatalogRow:
        """Return the catalog's row for what a file says."""
        moves = state.status not in AT_REST
        status: Status = "running" if state.status == "queued" else state.status
        return CatalogRow(
            workflow=state.workflow, id=state.id, incarnation=state.incarnation, status=status,
            reason=state.reason, birth=None, params=None, created_at_ms=state.created_at_ms,
            started_at_ms=state.started_at_ms, ended_at_ms=state.ended_at_ms, start_at_ms=None,
            wake_at_ms=self._clock.wall_ms() if moves else None, wake_boot_ms=None, boot=None, owner=None,
            epoch=state.epoch, open=0, crashes=0, version=state.version, parent=state.parent, tags=state.tags,
            expires_at_ms=expires_at_ms(state, None, App()),
        )  # fmt: skip

    def _drop_rows_without_files(self) -> None:
        for key, row in self._rows.items():
            has_expired = row.archived is not None
            if key not in self._seen and row.birth is None and not has_expired:
                self._removals.append(key)

    # -- writing ---------------------------------------------------------------------------

    def _write(self, condition: Condition) -> str | None:
        """Write what was decided in one transaction; return where a damaged catalog was moved to."""
        path = self._folder.catalog
        moved_to = _move_away(path) if condition == "damaged" else None
        catalog = Catalog(open_catalog(path, checkpointer=True))
        try:
            write_now(catalog, self._write_rows, path=path)
        finally:
            catalog.close()
        for left in leftovers(self._folder.root):
            if left.suffix == ".part":  # half a new file, of a process that died making it
                left.unlink(missing_ok=True)
        return None if moved_to is None else str(moved_to)

    def _write_rows(self, catalog: Catalog) -> None:
        for row in self._writes:
            catalog.restore(row)
        for key in self._removals:
            catalog.remove(key)


def _kept_until(row: CatalogRow, truth: CatalogRow) -> int | None:
    """Return when the retention that its class gave an instance is over, if it has ended as the row says."""
    return row.expires_at_ms if row.status == truth.status else None


def _dead(row: CatalogRow, why: str) -> CatalogRow:
    """Return the row of an instance that must not be touched before a person has seen to its file."""
    reason = f"its file is damaged: {why}"
    return replace(
        row, status="dead", reason=reason, open=0, wake_at_ms=None, wake_boot_ms=None, until_at_ms=None
    )


def _differs(row: CatalogRow, truth: CatalogRow, state: InstanceState) -> bool:
    """Whether a row says something else than its file, beyond what the next start sees to itself."""
    if row.incarnation != state.incarnation or row.epoch < state.epoch:
        return True
    if row.open:  # under way when its process died: recovery reads the file
        return truth.status == "dead"
    if row.status in AT_REST or truth.status in AT_REST:
        return row.status != truth.status
    never_wakes = row.wake_at_ms is None and row.wake_boot_ms is None
    return never_wakes and (state.wake_at_ms is not None or state.status != "waiting")


def _move_away(path: Path) -> Path:
    """Rename a damaged catalog, with what SQLite keeps beside it, to the first free name."""
    number = 1
    while (target := path.with_name(f"{path.stem}.damaged-{number}.sqlite")).exists():
        number += 1
    for suffix in ("-wal", "-shm", ""):
        source = Path(f"{path}{suffix}")
        if source.exists():
            source.rename(f"{target}{suffix}")
    return target
