"""The catalog: which instances a state folder holds, who owns them, when they wake.

An index, and the queue of those not started; the truth about a started instance is its own
file (law 9). It is also the transport by which processes reach each other: the inbox.
It runs at `synchronous=FULL` whatever the durability of the instances, and its writes are
grouped: one transaction and one sync for all that wait (`CatalogWriter`).

Invariants:
    An instance's row is marked open, durably, before an owner first changes its file.
    A reused id is refused by the primary key, whoever asks first.
    One process checkpoints: the one that owns the folder.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from typing import Any, Final

import msgspec

from perdure.errors import InstanceExistsError
from perdure.storage.ahead import Ahead
from perdure.storage.family import Family
from perdure.storage.moves import COLUMNS, Moves, as_row, birth_text
from perdure.storage.posts import Posts, Workers
from perdure.storage.records import Birth, CatalogRow, Deadline, Key, Status, Stored
from perdure.storage.removals import Removals
from perdure.storage.schedules import Schedules

FIND: Final = f"SELECT {COLUMNS} FROM _perdure_instances WHERE workflow = ? AND id = ?"
FIND_ID: Final = f"""
    WITH RECURSIVE workflows(workflow) AS (
        SELECT min(workflow) FROM _perdure_instances
        UNION ALL
        SELECT (SELECT min(workflow) FROM _perdure_instances WHERE workflow > workflows.workflow)
        FROM workflows WHERE workflow IS NOT NULL)
    SELECT {COLUMNS} FROM workflows CROSS JOIN _perdure_instances USING (workflow) WHERE id = ?
    ORDER BY workflow"""
ADD: Final = """
    INSERT INTO _perdure_instances (workflow, id, incarnation, status, birth, params, created_at, start_at,
        owner, epoch, open, version, parent, tags, priority, lane)
    VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"""
REMOVE: Final = "DELETE FROM _perdure_instances WHERE workflow = ? AND id = ?"
REPLACE: Final = f"{REMOVE} AND open = 0"
OPENED: Final = f"SELECT {COLUMNS} FROM _perdure_instances WHERE open = 1 ORDER BY created_at"
CLAIM: Final = """
    UPDATE _perdure_instances SET owner = ?, epoch = epoch + 1, open = 1, expires_at = NULL,
        status = CASE WHEN status IN ('queued', 'waiting') THEN 'running' ELSE status END
    WHERE workflow = ? AND id = ?"""
VISIT: Final = """
    UPDATE _perdure_instances SET owner = ?, epoch = epoch + 1, open = 1, expires_at = NULL
    WHERE workflow = ? AND id = ?"""
GIVE_BACK: Final = """
    UPDATE _perdure_instances SET owner = NULL, open = 0, status = ?, expires_at = ?
    WHERE workflow = ? AND id = ?"""
REVIVED: Final = """
    UPDATE _perdure_instances SET status = 'running', reason = NULL, ended_at = NULL
    WHERE workflow = ? AND id = ? AND open = 1 AND status <> 'running'"""
SETTLE: Final = """
    UPDATE _perdure_instances SET status = ?, reason = ?, birth = NULL, params = NULL, started_at = ?,
        ended_at = ?, wake_at = ?, wake_boot = ?, boot = ?, until_at = ?, open = ?, crashes = ?,
        version = ?, expires_at = ?, safe_epoch = epoch
    WHERE workflow = ? AND id = ?"""
SAFE: Final = "UPDATE _perdure_instances SET safe_epoch = max(safe_epoch, ?) WHERE workflow = ? AND id = ?"
SAFE_EPOCH: Final = """
    SELECT safe_epoch FROM _perdure_instances WHERE workflow = ? AND id = ? AND incarnation = ?"""
POSTPONE: Final = """
    UPDATE _perdure_instances SET reason = ?, wake_at = ?, wake_boot = ?, boot = ?, start_at = ?, until_at
        = NULL, open = 0
    WHERE workflow = ? AND id = ?"""
BURY: Final = """
    UPDATE _perdure_instances SET status = 'dead', reason = ?, wake_at = NULL, wake_boot = NULL, boot =
        NULL, until_at = NULL, open = 0
    WHERE workflow = ? AND id = ?"""
FORGIVE: Final = "UPDATE _perdure_instances SET crashes = 0 WHERE workflow = ? AND id = ?"
CRASHED: Final = """
    UPDATE _perdure_instances SET crashes = crashes + 1, open = 0, owner = NULL, wake_at = 0,
        wake_boot = NULL, boot = NULL
    WHERE open = 1"""
REBOOT: Final = """
    UPDATE _perdure_instances SET wake_boot = NULL, boot = NULL WHERE wake_boot IS NOT NULL AND boot IS NOT
        ?"""
LIST: Final = f"SELECT {COLUMNS} FROM _perdure_instances"
COUNTS: Final = "SELECT workflow, status, count(*) FROM _perdure_instances GROUP BY 1, 2 ORDER BY 1, 2"
RESTORE: Final = f"""
    INSERT OR REPLACE INTO _perdure_instances ({COLUMNS}) VALUES ({", ".join("?" * 26)})"""


CLAIM_MIN: Final = 8
"""What a worker claims at least, where there is so much: a claim is a sync."""
LOOKS_MAX: Final = 8
"""How often one claim looks further where it finds only instances for which there is no place."""


class Catalog:
    """The catalog's rows, over one connection. Used by one thread at a time.

    Reading methods may be called on a connection of the loop's own; writing ones run inside a
    transaction that the caller began (`CatalogWriter`, or `transaction`).
    """

    def __init__(self, connection: sqlite3.Connection) -> None:
        self.connection = connection
        self.moves = Moves(connection)
        self.workers = Workers(connection)
        self.posts = Posts(connection)
        self.ahead = Ahead(connection)
        self.schedules = Schedules(connection, self.moves)
        self.removals = Removals(connection, self.posts)
        self.family = Family(connection)

    # -- instances: reading ----------------------------------------------------------------

    def find(self, key: Key) -> CatalogRow | None:
        """Return the row of one instance, or None."""
        row = self.connection.execute(FIND, (key.workflow, key.id)).fetchone()
        return None if row is None else as_row(row)

    def find_id(self, instance_id: str) -> list[CatalogRow]:
        """Return the rows of all instances with that id, one for each workflow that has one."""
        return [as_row(row) for row in self.connection.execute(FIND_ID, (instance_id,))]

    def next_moves(self, workflows: Iterable[str], now_ms: int = 0) -> tuple[int | None, int | None]:
        """Return when the next closed instance can move: on the boot clock, and on the wall clock."""
        return self.moves.next_moves(workflows, now_ms)

    def opened(self) -> list[CatalogRow]:
        """Return the instances marked open: after a death, those to recover."""
        return [as_row(row) for row in self.connection.execute(OPENED)]

    def select(
        self,
        *,
        workflow: str | None = None,
        status: str | None = None,
        parent: str | None = None,
        limit: int | None = None,
    ) -> list[CatalogRow]:
        """Return rows, newest first."""
        wanted = {"workflow": workflow, "status": status, "parent": parent}
        where = [f"{column} = ?" for column, value in wanted.items() if value is not None]
        values: list[Any] = [value for value in wanted.values() if value is not None]
        sql = f"{LIST} WHERE {' AND '.join([*where, 'open < 2'])} ORDER BY created_at DESC, id"
        if limit is not None:
            sql += " LIMIT ?"
            values.append(limit)
        return [as_row(row) for row in self.connection.execute(sql, values)]

    def counts(self) -> list[tuple[str, str, int]]:
        """Return how many instances each workflow has in each status."""
        return list(self.connection.execute(COUNTS))

    # -- instances: writing ----------------------------------------------------------------

    def add(
        self,
        birth: Birth,
        params: Stored | None,
        *,
        start_at_ms: int | None = None,
        owner: int | None = None,
        replace: bool = False,
    ) -> None:
        """Queue a new instance; with `owner`, as claimed by it. Raises `InstanceExistsError`.

        With `replace` it takes the place of another, unless somebody has that open.
        """
        if replace:
            self.connection.execute(REPLACE, (birth.workflow, birth.id))
        status, epoch, opened = ("queued", 0, 0) if owner is None else ("running", 1, 1)
        text = birth_text(birth)
        try:
            self.connection.execute(
                ADD,
                (
                    birth.workflow,
                    birth.id,
                    birth.incarnation,
                    status,
                    text,
                    params,
                    birth.created_at_ms,
                    start_at_ms,
                    owner,
                    epoch,
                    opened,
                    birth.version,
                    birth.parent,
                    birth.tags,
                    birth.priority,
                    birth.lane,
                ),
            )
        except sqlite3.IntegrityError as error:
            raise InstanceExistsError(
                f"{birth.workflow}/{birth.id} exists already: choose another id, or say if_exists='attach'",
                workflow=birth.workflow,
                instance_id=birth.id,
            ) from error

    def add_claimed(
        self, birth: Birth, params: Stored | None, owner: int, *, replace: bool = False
    ) -> CatalogRow:
        """Add a new instance as claimed by `owner`, and return its row as `claim` does."""
        self.add(birth, params, owner=owner, replace=replace)
        row = self.find(Key(birth.workflow, birth.id))
        assert row is not None
        return msgspec.structs.replace(row, status="queued")

    def claim(self, key: Key, owner: int, *, keep_status: bool = False) -> CatalogRow | None:
        """Mark an instance as open and owned and return its row, or None where somebody has it open.

        With `keep_status` it only takes a command, and has no place among those that run.
        """
        row = self.find(key)
        if row is None or row.open or row.archived is not None:
            return None
        return self.claim_all([row], owner, VISIT if keep_status else CLAIM)[0]

    def claim_movable(
        self,
        owner: int,
        *,
        boot_ms: int,
        wall_ms: int,
        workflows: Iterable[str],
        due_max: int,
        queued_max: int,
        workers: int = 1,
    ) -> list[CatalogRow]:
        """Claim what can move now, as `claim` does: those whose wake-up has come, and the queue.

        Of several `workers` each leaves the others their share: it takes half of its own, and comes again.
        """
        if workers > 1:
            queued, due = self.moves.count(
                boot_ms=boot_ms, wall_ms=wall_ms, limit=2 * workers * max(due_max, queued_max)
            )
            share = max(CLAIM_MIN, (queued + due) // (2 * workers))
            due_max, queued_max = min(due_max, share), min(queued_max, share)
        known = list(workflows)
        for _ in range(LOOKS_MAX):
            found = rows = self.moves.movable(
                boot_ms=boot_ms, wall_ms=wall_ms, workflows=known, limit=due_max, queued_max=queued_max
            )
            if self.moves.places.rules:
                rows = self.moves.places.admit(found, wall_ms)
            if rows or not found:
                return self.claim_all(rows, owner)
        return []

    def claim_all(self, rows: list[CatalogRow], owner: int, claim: str = CLAIM) -> list[CatalogRow]:
        """Mark instances, which nobody has open, as open and owned, and return their rows."""
        self.connection.executemany(claim, [(owner, row.workflow, row.id) for row in rows])
        return [msgspec.structs.replace(row, owner=owner, epoch=row.epoch + 1, open=1) for row in rows]

    def give_back(self, rows: list[CatalogRow]) -> None:
        """Undo claims of which nothing was made: the rows are as `claim` returned them."""
        self.connection.executemany(
            GIVE_BACK, [(row.status, row.expires_at_ms, row.workflow, row.id) for row in rows]
        )

    def revived(self, key: Key) -> None:
        """Write down that an instance which somebody has open runs again: it was restarted or resumed."""
        self.connection.execute(REVIVED, (key.workflow, key.id))

    def settle(
        self,
        key: Key,
        status: Status,
        *,
        reason: str | None,
        started_at_ms: int | None,
        ended_at_ms: int | None,
        wake: Deadline | None,
        version: str | None,
        until_ms: int | None = None,
        expires_ms: int | None = None,
        stay_open: bool = False,
        crashes: int = 0,
    ) -> None:
        """Write down how far an instance got when its file was closed.

        It wakes at `wake`, and at `until_ms` on the wall clock where that comes first.
        """
        wall, boot_ms, boot = (wake.wall_ms, wake.boot_ms, wake.boot) if wake else (None, None, None)
        self.connection.execute(
            SETTLE,
            (
                status,
                reason,
                started_at_ms,
                ended_at_ms,
                wall,
                boot_ms,
                boot,
                until_ms,
                int(stay_open),
                crashes,
                version,
                expires_ms,
                key.workflow,
                key.id,
            ),
        )

    def mark_safe(self, epochs: Iterable[tuple[Key, int]]) -> None:
        """Write down up to which epoch files that are open are safe without a relay log."""
        self.connection.executemany(SAFE, [(epoch, key.workflow, key.id) for key, epoch in epochs])

    def safe_epoch(self, key: Key, incarnation: int) -> int | None:
        """Return up to which epoch a file is safe without a relay log, or None for another incarnation."""
        row = self.connection.execute(SAFE_EPOCH, (key.workflow, key.id, incarnation)).fetchone()
        return None if row is None else row[0]

    def postpone(self, key: Key, *, reason: str, wake: Deadline) -> None:
        """Write down that an instance could not be opened now and is tried again at `wake`."""
        values = (reason, wake.wall_ms, wake.boot_ms, wake.boot, wake.wall_ms, key.workflow, key.id)
        self.connection.execute(POSTPONE, values)

    def bury(self, key: Key, *, reason: str) -> None:
        """Park an instance whose file cannot be used; what it would be made from is kept."""
        self.connection.execute(BURY, (reason, key.workflow, key.id))

    def forgive(self, key: Key) -> None:
        """Forget the deaths of the process: the instance has recorded something since."""
        self.connection.execute(FORGIVE, (key.workflow, key.id))

    def remove(self, key: Key) -> None:
        """Drop the row of an instance."""
        self.connection.execute(REMOVE, (key.workflow, key.id))

    def crashed(self) -> None:
        """Count one death of the process for every instance that was open, and have each go on at once."""
        self.connection.execute(CRASHED)

    def release(self, worker: int, at_ms: int) -> int:
        """Give up what a worker that is dead had open, as `crashed` does; return how many that is."""
        self.workers.stop(worker, at_ms)
        return self.connection.execute(f"{CRASHED} AND owner = ?", (worker,)).rowcount

    def rebooted(self, boot: int) -> None:
        """Leave wake-ups of any boot but this one to the wall clock (law 7)."""
        self.connection.execute(REBOOT, (boot,))

    def restore(self, row: CatalogRow) -> None:
        """Write a row as it was found in an instance's file (`perdure repair`)."""
        self.connection.execute(RESTORE, msgspec.structs.astuple(row))

    def close(self) -> None:
        """Close the connection."""
        self.connection.close()
