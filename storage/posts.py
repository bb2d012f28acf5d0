"""Two small tables of the catalog: the processes that owned the folder, and the inbox.

`Catalog` hands its connection in and is the only user. Writing methods run inside a transaction that
the caller began.

Invariants:
    A command stays in the inbox until its reply is written, and the reply for an hour.
"""

from __future__ import annotations

import sqlite3
from typing import Final

import msgspec

from perdure.storage.family import FAMILY
from perdure.storage.records import Key, Message, Reply

WORKER: Final = """
    INSERT INTO _perdure_workers (pid, boot, started_at, doorbell, durability) VALUES (?, ?, ?, ?, ?)"""
WORKER_STOPPED: Final = "UPDATE _perdure_workers SET stopped_at = ? WHERE worker = ?"
WORKER_LAST: Final = """
    SELECT worker, pid, boot, doorbell, durability, stopped_at FROM _perdure_workers ORDER BY worker DESC
        LIMIT 1"""
WORKERS_OLD: Final = "DELETE FROM _perdure_workers WHERE worker <= ?"

POST: Final = """
    INSERT INTO _perdure_inbox (token, workflow, id, command, body, actor, sent_at) VALUES (?, ?, ?, ?, ?,
        ?, ?)
    ON CONFLICT (token) DO NOTHING"""
PENDING: Final = f"""
    SELECT seq, token, workflow, id, command, body, actor FROM _perdure_inbox
    WHERE done_at IS NULL AND seq > ? AND command NOT IN {FAMILY} ORDER BY seq LIMIT ?"""
DONE: Final = "UPDATE _perdure_inbox SET done_at = ?, reply = ? WHERE seq = ?"
REMEMBER: Final = """
    INSERT INTO _perdure_inbox (token, workflow, id, command, sent_at, done_at, reply)
    VALUES (?1, ?2, ?3, ?4, ?5, ?5, ?6)
    ON CONFLICT (token) DO UPDATE SET done_at = excluded.done_at, reply = excluded.reply"""
REPLY: Final = "SELECT reply FROM _perdure_inbox WHERE token = ?"
SWEEP: Final = "DELETE FROM _perdure_inbox WHERE done_at < ?"


class WorkerRow(msgspec.Struct, frozen=True, kw_only=True):
    """One process that owns, or owned, the folder."""

    worker: int
    pid: int
    boot: int
    doorbell: str | None
    durability: str
    stopped_at_ms: int | None


class Workers:
    """The processes that own, or owned, the folder; the newest hundred are kept."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def last(self) -> WorkerRow | None:
        """Return the process that owned the folder last."""
        row = self._connection.execute(WORKER_LAST).fetchone()
        if row is None:
            return None
        worker, pid, boot, doorbell, durability, stopped = row
        return WorkerRow(
            worker=worker, pid=pid, boot=boot, doorbell=doorbell, durability=durability, stopped_at_ms=stopped
        )

    def add(self, *, pid: int, boot: int, at_ms: int, doorbell: str | None, durability: str) -> int:
        """Record this process as owner of the folder and return its number."""
        worker = self._connection.execute(WORKER, (pid, boot, at_ms, doorbell, durability)).lastrowid
        assert worker is not None
        self._connection.execute(WORKERS_OLD, (worker - 100,))
        return worker

    def stop(self, worker: int, at_ms: int) -> None:
        """Record that a process gave the folder up cleanly."""
        self._connection.execute(WORKER_STOPPED, (at_ms, worker))


class Posts:
    """The inbox: commands from other processes, in the order in which they were sent."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def post(self, message: Message, *, at_ms: int) -> None:
        """Put a command for the owner of the folder into the inbox, unless it is there or was carried out."""
        self._connection.execute(
            POST,
            (
                message.token,
                message.workflow,
                message.id,
                message.command,
                message.body,
                message.actor,
                at_ms,
            ),
        )

    def pending(self, *, after: int = 0, limit: int = -1) -> list[Message]:
        """Return up to `limit` commands not carried out yet, sent after `after`, in their order."""
        rows = self._connection.execute(PENDING, (after, limit))
        return [
            Message(seq=seq, token=token, workflow=workflow, id=id_, command=command, body=body, actor=actor)
            for seq, token, workflow, id_, command, body, actor in rows
        ]

    def done(self, seq: int, reply: Reply, *, at_ms: int) -> None:
        """Record how a command ended. Its sender waits for this."""
        self._connection.execute(DONE, (at_ms, msgspec.json.encode(reply).decode(), seq))
        self._connection.execute(SWEEP, (at_ms - 3_600_000,))

    def remember(self, token: str, key: Key, command: str, reply: Reply, *, at_ms: int) -> None:
        """Record how the command with `token` ended whose instance can no longer tell: it is deleted."""
        text = msgspec.json.encode(reply).decode()
        self._connection.execute(REMEMBER, (token, key.workflow, key.id, command, at_ms, text))

    def reply(self, token: str) -> Reply | None:
        """Return how the command with `token` ended, or None while it has not."""
        row = self._connection.execute(REPLY, (token,)).fetchone()
        return None if row is None or row[0] is None else msgspec.json.decode(row[0], type=Reply)
