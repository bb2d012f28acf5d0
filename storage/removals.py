"""What is removed from a state folder: deleted instances, and the files of those whose retention is over.

The part of the catalog that remembers what was begun, so that a kill leaves an instance or nothing.
`Catalog` hands its connection in and is the only user; writing methods run inside a transaction that
the caller began.

A deletion is marked by `open` = 2: nobody can claim or find the instance from then on. An expiry is
marked by `archived`, where the file goes. Both stand in the index of `expires_at` until the file is
gone, so whoever looks there finishes what another process began.

Invariants:
    A row goes after its file; a file goes after its row says so.
    An instance that somebody has open is neither expired nor marked by anybody but its owner.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence
from typing import Final

import msgspec

from perdure.storage.family import Family
from perdure.storage.moves import COLUMNS, as_row
from perdure.storage.posts import Posts
from perdure.storage.records import CatalogRow, Key, Reply

DELETING: Final = 2
"""What `open` says of an instance that is being deleted."""

MARK: Final = """
    UPDATE _perdure_instances SET open = 2, expires_at = 0, reason = ?, wake_at = NULL, wake_boot = NULL,
        boot = NULL, until_at = NULL
    WHERE workflow = ? AND id = ?"""
MARK_AT_REST: Final = f"{MARK} AND open = 0"
MARK_OWN: Final = f"{MARK} AND open = 1 AND epoch = ?"
COMMAND: Final = "SELECT reason FROM _perdure_instances WHERE workflow = ? AND id = ? AND open = 2"
DROP: Final = "DELETE FROM _perdure_instances WHERE workflow = ? AND id = ? AND open = 2"
TAKEN: Final = """NOT EXISTS (
        SELECT 1 FROM _perdure_inbox WHERE token = 'child-ended-' || incarnation)"""
"""A child is kept until its parent has been told how it ended: its result may be in its file alone."""
DUE: Final = f"""
    SELECT {COLUMNS} FROM _perdure_instances
    WHERE expires_at <= ?1 AND open <> 1
        AND (open = 2 OR archived IS NOT NULL
            OR (workflow IN (SELECT value FROM json_each(?2)) AND {TAKEN}))
    ORDER BY expires_at LIMIT ?3"""
NEXT: Final = f"""
    SELECT min(expires_at) FROM _perdure_instances
    WHERE expires_at IS NOT NULL AND open <> 1
        AND (open = 2 OR archived IS NOT NULL
            OR (workflow IN (SELECT value FROM json_each(?)) AND {TAKEN}))"""
EXPIRE: Final = f"""
    UPDATE _perdure_instances SET archived = ?
    WHERE workflow = ? AND id = ? AND incarnation = ? AND open = 0 AND archived IS NULL
        AND expires_at = ? AND status IN ('complete', 'errored', 'terminated')
        AND {TAKEN}"""
EXPIRED: Final = """
    UPDATE _perdure_instances SET expires_at = NULL, reason = ?
    WHERE workflow = ? AND id = ? AND incarnation = ? AND open = 0"""


class Removals:
    """What is being removed, over one connection. Used by one thread at a time."""

    def __init__(self, connection: sqlite3.Connection, posts: Posts) -> None:
        self._connection = connection
        self._posts = posts
        self._family = Family(connection)

    # -- deletion --------------------------------------------------------------------------

    def mark(self, keys: Sequence[Key], token: str | None) -> list[CatalogRow]:
        """Mark those of the instances that nobody has open as being deleted, and return their rows."""
        marked: list[CatalogRow] = []
        for key in keys:
            values = (token, key.workflow, key.id)
            if self._connection.execute(MARK_AT_REST, values).rowcount:
                found = self._connection.execute(
                    f"SELECT {COLUMNS} FROM _perdure_instances WHERE workflow = ? AND id = ?",
                    (key.workflow, key.id),
                )
                marked.append(as_row(found.fetchone()))
                self._family.lose(key)
        return marked

    def mark_own(self, key: Key, epoch: int, token: str | None) -> bool:
        """Mark an instance as being deleted that its owner of `epoch` has just closed."""
        marked = self._connection.execute(MARK_OWN, (token, key.workflow, key.id, epoch)).rowcount
        if marked:
            self._family.lose(key)
        return bool(marked)

    def drop(self, keys: Iterable[Key], *, at_ms: int) -> None:
        """Drop the rows of instances whose files are gone, and remember whose command that was."""
        for key in keys:
            row = self._connection.execute(COMMAND, (key.workflow, key.id)).fetchone()
            if row is not None and row[0] is not None:
                self._posts.remember(row[0], key, "delete", Reply(ok=True, value="deleted"), at_ms=at_ms)
            self._connection.execute(DROP, (key.workflow, key.id))

    # -- expiry ----------------------------------------------------------------------------

    def due(self, now_ms: int, workflows: Iterable[str], limit: int) -> list[CatalogRow]:
        """Return whose retention is over, and what was begun before: of these workflows alone, the former."""
        rows = self._connection.execute(DUE, (now_ms, _json(workflows), limit))
        return [as_row(row) for row in rows]

    def next_ms(self, workflows: Iterable[str]) -> int | None:
        """Return when the next retention ends; 0 where something was begun."""
        next_ms: int | None = self._connection.execute(NEXT, (_json(workflows),)).fetchone()[0]
        return next_ms

    def expire(self, row: CatalogRow, where: str) -> bool:
        """Mark that the file goes, to `where` if that says anything; False where the row has moved on."""
        values = (where, row.workflow, row.id, row.incarnation, row.expires_at_ms)
        return bool(self._connection.execute(EXPIRE, values).rowcount)

    def expired(self, row: CatalogRow, reason: str | None) -> None:
        """Write down that the file is gone; or, without a reason, that it is kept for ever."""
        values = (reason, row.workflow, row.id, row.incarnation)
        self._connection.execute(EXPIRED, values)


def _json(workflows: Iterable[str]) -> str:
    return msgspec.json.encode(list(workflows)).decode()
