"""What is stored and what travels between the floors: frozen records and their states.

Times are integer milliseconds since the epoch, in fields that end in `_ms`. A stored value
is JSON text (`str`) or, where the value is itself bytes, those bytes.

Invariants:
    Nothing here has behaviour beyond reading itself.
    A record never changes; a new state is a new record.
"""

from __future__ import annotations

from typing import Final, Literal, TypeAlias

import msgspec

Stored: TypeAlias = str | bytes


class LongText:
    """A long text as its UTF-8 bytes: on its way into a file it is not copied once more."""

    __slots__ = ("raw",)

    def __init__(self, raw: bytes) -> None:
        self.raw = raw


Status = Literal[
    "queued", "running", "waiting", "waiting_for_pause", "paused", "complete", "errored", "terminated", "dead"
]
FINISHED: frozenset[str] = frozenset(("complete", "errored", "terminated"))
"""Statuses that an instance does not leave by itself."""

StepStatus = Literal["running", "waiting", "completed", "failed", "cancelled"]
StepKind = Literal[
    "do", "sleep", "event", "transaction", "value", "race", "deadline", "child", "rollback", "patch", "stream"
]
AttemptOutcome = Literal["failed", "timeout", "lost", "interrupted"]
Durability = Literal["full", "process"]


class Key(msgspec.Struct, frozen=True, order=True):
    """What names an instance: its workflow and its id."""

    workflow: str
    id: str

    def __str__(self) -> str:
        return f"{self.workflow}/{self.id}"


class Deadline(msgspec.Struct, frozen=True, kw_only=True):
    """A point in time that survives restarts (law 7).

    `boot_ms`, on the clock that runs since boot `boot`, decides while that boot lasts; without
    it, or in another boot, the wall clock does.
    """

    wall_ms: int
    boot_ms: int | None = None
    boot: int | None = None

    def since(self, earlier: Deadline) -> int:
        """Return how long after `earlier` this is, in milliseconds, on the clock that both have."""
        if self.boot_ms is not None and earlier.boot_ms is not None and self.boot == earlier.boot:
            return self.boot_ms - earlier.boot_ms
        return self.wall_ms - earlier.wall_ms


class Birth(msgspec.Struct, frozen=True, kw_only=True):
    """What an instance's file is made from. Stands in the catalog until the file exists."""

    workflow: str
    id: str
    incarnation: int
    created_at_ms: int
    version: str | None = None
    parent: str | None = None
    tags: str | None = None
    timeout: Deadline | None = None
    event_type: str | None = None
    event_payload: str | None = None
    schedule: str | None = None
    retention: str | None = None
    priority: int = 0
    lane: str | None = None


class InstanceState(msgspec.Struct, frozen=True, kw_only=True):
    """The instance's own row, as its file has it."""

    workflow: str
    id: str
    incarnation: int
    epoch: int
    version: str | None
    status: Status
    reason: str | None
    params: Stored | None
    output: Stored | None
    error: str | None
    created_at_ms: int
    started_at_ms: int | None
    ended_at_ms: int | None
    wake_at_ms: int | None
    paused: Deadline | None
    replays: int
    parent: str | None
    tags: str | None
    timeout: Deadline | None
    generation: int = 1
    schedule: str | None = None
    rollback: str | None = None
    retention: str | None = None


ROLLBACK_DETAIL: Final = '{"rollback":true}'
"""What the row of a step says that has a rollback handler."""

RollbackOutcome = Literal["running", "complete", "failed"]


class RollbackState(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How an instance's rollback stands. `error` is why it failed, in the stored form of an error.

    While it runs, `ends` says how the instance will end, and `cause` holds the stored error for that.
    """

    outcome: RollbackOutcome
    error: msgspec.Raw
    ends: Literal["errored", "terminated"] | None = None
    cause: str | None = None


class CatalogRow(msgspec.Struct, frozen=True, kw_only=True):
    """What the catalog knows of one instance."""

    workflow: str
    id: str
    incarnation: int
    status: Status
    reason: str | None
    birth: str | None
    params: Stored | None
    created_at_ms: int
    started_at_ms: int | None
    ended_at_ms: int | None
    start_at_ms: int | None
    wake_at_ms: int | None
    wake_boot_ms: int | None
    boot: int | None
    owner: int | None
    epoch: int
    open: int
    crashes: int
    version: str | None
    parent: str | None
    tags: str | None
    until_at_ms: int | None = None
    expires_at_ms: int | None = None
    archived: str | None = None
    priority: int = 0
    lane: str | None = None

    @property
    def key(self) -> Key:
        """Workflow and id."""
        return Key(self.workflow, self.id)


class EventRow(msgspec.Struct, frozen=True, kw_only=True):
    """One event as received; `delivered_to` is the seq of the wait that got it."""

    seq: int
    type: str
    payload: Stored | None
    received: Deadline
    delivered_to: int | None = None


class Message(msgspec.Struct, frozen=True, kw_only=True):
    """One row of the catalog's inbox: a command that another process asks for."""

    seq: int
    token: str
    workflow: str
    id: str
    command: str
    body: str | None
    actor: str | None


class Reply(msgspec.Struct, frozen=True, kw_only=True):
    """How a command from the inbox ended; `error` is the class name of a PerdureError."""

    ok: bool
    value: str | None = None
    error: str | None = None
    message: str = ""


def decode_birth(text: str | None) -> Birth | None:
    """Return the birth record that a catalog row holds, or None once the file exists."""
    return None if text is None else msgspec.json.decode(text, type=Birth)


def decode_rollback(text: str | None) -> RollbackState | None:
    """Return how an instance's rollback stands, None where there has been none."""
    return None if text is None else msgspec.json.decode(text, type=RollbackState)
