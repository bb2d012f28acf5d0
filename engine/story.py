"""The story of an instance: its history, read from any place on, and followed without a gap or a double.

One commit may write several facts, and whoever follows may stop between two of them. So the cursor of a
fact names its commit, its place among the facts of that commit, and the incarnation that it is of.

Invariants:
    What one commit wrote never grows: a fact comes with its commit or not at all, and keeps its place.
    A cursor is behind the fact that it is of and before the next one, in whichever process it is used.
    A cursor of an instance that was deleted is refused: its id may be that of another one by now.
    Following keeps no reader open between two looks, and no more than a page of facts in memory.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final

import msgspec

from perdure.errors import InstanceNotFoundError, InvalidArgumentError

Fetch = Callable[..., Awaitable[Sequence[Any]]]
"""Runs one reading statement on the instance's file, and returns rows."""

PAGE: Final = 50_000
"""Facts read at a time: each page is one look through the whole history, and a place in memory."""
# The first row tells whose story it is, whether or not there is more of it.
STORY: Final = """
    SELECT incarnation AS "commit", NULL AS at, NULL AS what, NULL AS step, NULL AS actor, NULL AS detail,
        NULL AS place FROM _perdure_instance
    UNION ALL
    SELECT * FROM (
        SELECT "commit", at, what, step, actor, detail, place FROM history
        WHERE "commit" >= ?1 AND ("commit" > ?1 OR (at, place) > (?2, ?3))
        ORDER BY "commit", at, place LIMIT ?4)"""
COMMIT: Final = re.compile(r"\d{1,18}", re.ASCII)
CURSOR: Final = re.compile(r"(\d{1,18})\.(\d{17})\.(-?\d{1,19})\.([0-9a-f]{1,16})", re.ASCII)
MOMENT: Final = re.compile(r"(\d{4})(\d\d)(\d\d)(\d\d)(\d\d)(\d\d)(\d{3})")
BEHIND_ALL: Final = "~"
"""Sorts behind every time: what is meant is the end of a commit."""


class HistoryEntry(msgspec.Struct, frozen=True, kw_only=True):
    """One fact of an instance's story.

    `commit` is the number of the commit that wrote it; several facts may share it. `cursor` is the place
    behind this very fact: a text to keep, and to give to `subscribe` or `history` as `after`.
    """

    commit: int
    at: str
    what: str
    step: str | None
    actor: str | None
    detail: str | None
    cursor: str


class Cursor(msgspec.Struct, frozen=True):
    """A place in a story: behind one fact, or behind all of a commit. `incarnation` is None before a look."""

    commit: int = 0
    at: str = BEHIND_ALL
    place: int = 0
    incarnation: int | None = None

    @classmethod
    def of(cls, after: object) -> Cursor:
        """Read what a caller gave: a commit's number, or the cursor of a fact.

        Raises `InvalidArgumentError`.

        >>> Cursor.of(40).commit
        40
        """
        if type(after) is int and after >= 0:
            return cls(after)
        text = after if isinstance(after, str) else ""
        if COMMIT.fullmatch(text):
            return cls(int(text))
        found = CURSOR.fullmatch(text)
        if found is None:
            raise InvalidArgumentError(
                f"after={after!r}: it must be the cursor of an entry, or the number of a commit, from 0 up"
            )
        at = MOMENT.sub(r"\1-\2-\3T\4:\5:\6.\7Z", found[2])
        return cls(int(found[1]), at, int(found[3]), int(found[4], 16))

    @property
    def text(self) -> str:
        """How the cursor of a fact is given out."""
        digits = re.sub(r"\D", "", self.at)
        return f"{self.commit}.{digits}.{self.place}.{self.incarnation or 0:x}"


class Story:
    """Where one reader of one story is, by the name of the instance. `take` moves it on."""

    def __init__(self, name: str, after: object = 0) -> None:
        self._name = name
        self._cursor = Cursor.of(after)

    async def take(self, fetch: Fetch, *, page: int = PAGE) -> list[HistoryEntry]:
        """Return the facts behind the cursor, a page at most, and move behind them.

        Raises `InstanceNotFoundError` where they would be those of another incarnation.
        """
        cursor = self._cursor
        head, *rows = await fetch(STORY, cursor.commit, cursor.at, cursor.place, page)
        incarnation: int = head["commit"]
        if cursor.incarnation not in (None, incarnation):
            workflow, _, instance_id = self._name.partition("/")
            raise InstanceNotFoundError(
                f"the instance {self._name} that is followed was deleted, and another one has its id:"
                " its story begins anew, without a cursor",
                workflow=workflow,
                instance_id=instance_id,
            )
        entries = [_entry(row, incarnation) for row in rows]
        if rows:
            cursor = _behind(rows[-1], incarnation)
        self._cursor = msgspec.structs.replace(cursor, incarnation=incarnation)
        return entries


def _behind(row: Any, incarnation: int) -> Cursor:
    return Cursor(row["commit"], row["at"], row["place"], incarnation)


def _entry(row: Any, incarnation: int) -> HistoryEntry:
    return HistoryEntry(
        commit=row["commit"],
        at=row["at"],
        what=row["what"],
        step=row["step"],
        actor=row["actor"],
        detail=row["detail"],
        cursor=_behind(row, incarnation).text,
    )
