"""Posts between parents and children: rows of the catalog's inbox that the runtime sends to itself.

A child that has ended leaves a post for its parent in the transaction that settles it, and an instance
that ends over children of its own leaves one for each of these: so no kill comes between the fact and
its message. `engine/children.py` delivers them and drops them; `Inbox` does not see them. `Catalog` hands
its connection in and is the only user.

Invariants:
    A post stays until what it says stands in its receiver's own file, or nobody waits for it any more.
    Posting again what is there already changes nothing.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from typing import Final, Literal

import msgspec

from perdure.storage.records import Key, Message, Stored

CHILD_ENDED: Final = "child-ended"
END_CHILD: Final = "end-child"
FAMILY: Final = f"('{CHILD_ENDED}', '{END_CHILD}')"
"""The commands that are posts of ours, as SQL writes a list."""

INLINE_BYTES_MAX: Final = 16 * 1024
"""A larger result is not copied through the catalog: whoever delivers its post reads the child's file."""

POST: Final = """
    INSERT INTO _perdure_inbox (token, workflow, id, command, body, actor, sent_at) VALUES (?, ?, ?, ?, ?,
        ?, ?) ON CONFLICT DO NOTHING"""
POST_END: Final = f"""
    INSERT INTO _perdure_inbox (token, workflow, id, command, body, actor, sent_at)
    SELECT ?1, workflow, id, '{END_CHILD}', ?2, ?3, ?4 FROM _perdure_instances
    WHERE workflow = ?5 AND id = ?6 AND incarnation = ?2
        AND status NOT IN ('complete', 'errored', 'terminated')
    ON CONFLICT DO NOTHING"""
PENDING: Final = f"""
    SELECT seq, token, workflow, id, command, body, actor FROM _perdure_inbox
    WHERE done_at IS NULL AND seq > ? AND command IN {FAMILY} ORDER BY seq LIMIT ?"""
ON_THE_WAY: Final = "SELECT 1 FROM _perdure_inbox WHERE token = ?"
DROP: Final = "DELETE FROM _perdure_inbox WHERE seq = ?"
LOST: Final = """
    SELECT parent, incarnation FROM _perdure_instances
    WHERE workflow = ? AND id = ? AND parent IS NOT NULL
        AND status NOT IN ('complete', 'errored', 'terminated')"""

How = Literal["complete", "errored", "terminated", "deleted"]


class ChildRef(msgspec.Struct, frozen=True, kw_only=True):
    """Which instance a child step stands for, as the step's detail has it. `child` is `Workflow/id`."""

    child: str
    incarnation: int
    on_cancel: Literal["terminate", "abandon"] = "terminate"

    @property
    def key(self) -> Key:
        """Workflow and id."""
        return Key(*self.child.split("/", 1))


class ChildEnd(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How a child ended. Its result or error is text, or bytes, or neither where it is large."""

    workflow: str
    id: str
    incarnation: int
    how: How
    text: str | None = None
    data: bytes | None = None

    @property
    def stored(self) -> Stored | None:
        """The child's output or error, None where it is to be read from the child's file."""
        return self.text if self.data is None else self.data

    @property
    def key(self) -> Key:
        """Workflow and id of the child."""
        return Key(self.workflow, self.id)


def child_end(key: Key, incarnation: int, how: How, stored: Stored | None) -> ChildEnd:
    """Return how a child ended, with `stored`, its output or error, whatever its size."""
    return ChildEnd(
        workflow=key.workflow, id=key.id, incarnation=incarnation, how=how,
        text=stored if isinstance(stored, str) else None,
        data=stored if isinstance(stored, bytes) else None,
    )  # fmt: skip


def small_end(end: ChildEnd) -> ChildEnd:
    """Return `end` as it goes through the catalog: without a large result."""
    stored = end.stored
    if stored is None or len(stored) <= INLINE_BYTES_MAX:
        return end
    return msgspec.structs.replace(end, text=None, data=None)


def encode_ref(ref: ChildRef) -> str:
    """Return the detail of a child step."""
    return msgspec.json.encode(ref).decode()


def decode_ref(detail: str | None) -> ChildRef | None:
    """Return what a child step's detail says, None where it is none."""
    try:
        return msgspec.json.decode(detail or "", type=ChildRef)
    except msgspec.DecodeError:
        return None


class Family:
    """The posts in the catalog's inbox. Writing methods run inside a transaction of the caller's."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def ended(self, parent: str, end: ChildEnd, *, at_ms: int) -> None:
        """Post to `parent`, `Workflow/id`, that a child of it has ended."""
        key = Key(*parent.split("/", 1))
        body = msgspec.json.encode(small_end(end)).decode()
        token = _ended_token(end.incarnation)
        self._connection.execute(POST, (token, key.workflow, key.id, CHILD_ENDED, body, None, at_ms))

    def end(self, children: Iterable[ChildRef], *, parent: str, at_ms: int) -> None:
        """Post to those of the children that have not ended that they are to."""
        self._connection.executemany(
            POST_END,
            [
                (
                    f"end-{ref.incarnation}",
                    ref.incarnation,
                    parent,
                    at_ms,
                    ref.key.workflow,
                    ref.key.id,
                )
                for ref in children
            ],
        )

    def lose(self, key: Key) -> None:
        """Post to its parent that an instance is about to be removed before it has ended."""
        row = self._connection.execute(LOST, (key.workflow, key.id)).fetchone()
        if row is not None:
            self.ended(row[0], child_end(key, row[1], "deleted", None), at_ms=0)

    def on_its_way(self, incarnation: int) -> bool:
        """Whether there is a post that this child has ended."""
        return self._connection.execute(ON_THE_WAY, (_ended_token(incarnation),)).fetchone() is not None

    def pending(self, *, after: int, limit: int) -> list[Message]:
        """Return up to `limit` posts behind `after`, in their order."""
        return [
            Message(
                seq=seq, token=token, workflow=workflow, id=id_, command=command, body=str(body), actor=actor
            )
            for seq, token, workflow, id_, command, body, actor in self._connection.execute(
                PENDING, (after, limit)
            )
        ]

    def drop(self, seqs: Iterable[int]) -> None:
        """Drop posts that have been delivered, or that nobody waits for."""
        self._connection.executemany(DROP, [(seq,) for seq in seqs])


def _ended_token(incarnation: int) -> str:
    return f"child-ended-{incarnation}"
