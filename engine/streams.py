"""Reading an instance's streams, from wherever its file can be read: here, in a worker, in another process.

A reader keeps the place where it goes on, and asks the file for what stands there, whenever the instance
may have changed. It holds no reader open between two looks, so it may take its time, outlive
hibernation and restarts, and give up its place to another that begins there.

Invariants:
    A chunk is given once it is durable (law 2), in order, and once.
    A chunk that is void is not given; a reader that was given one is told, before anything after it.
    Following costs nothing while the instance does not change.
"""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from datetime import UTC, datetime
from typing import Any, Final, TypeVar

import msgspec

from perdure.engine.access import Access, reading
from perdure.errors import (
    InstanceNotFoundError,
    InvalidArgumentError,
    StreamNotFoundError,
    StreamRewoundError,
)
from perdure.storage.codec import Coder
from perdure.storage.names import check_step_name
from perdure.storage.query import QueryHost
from perdure.storage.records import Key, Stored
from perdure.storage.steps import ENDED
from perdure.storage.streams import CHUNKS, HEAD, HEAD_AT, IS_MADE, NAMES, TAIL, places

T = TypeVar("T", covariant=True)
Fetch = Callable[..., Awaitable[Sequence[Any]]]
"""Runs one reading statement on the instance's file, and returns rows that are durable."""

PLACES_MAX: Final = 1 << 32
QUERY_S: Final = 30.0


class StreamChunk(msgspec.Struct, frozen=True, kw_only=True):
    """One chunk as it is stored. `index` is its place in the stream; places may be left out, never reused."""

    index: int
    attempt: int
    chunk: Stored
    written_at: datetime


class Rewound(msgspec.Struct, frozen=True):
    """What was given from `index` on is void."""

    index: int


class StreamCursor:
    """Where one reader of one stream is. `take` moves it on; `is_over` says that nothing more will come.

    `index` is where it goes on: a cursor that begins there goes on in its place.
    """

    def __init__(self, key: Key, name: str, start: int) -> None:
        check_step_name(name)
        if type(start) is not int or start >= PLACES_MAX:
            raise InvalidArgumentError(
                f"start={start!r}: it must be a whole number, the index of a chunk, or below 0 to count from"
                " the end"
            )
        self.name = name
        self.key = key
        self.is_over = False
        self.is_sensitive = False
        self._from_end = max(-start, 0)
        self._index: int | None = start if start >= 0 else None
        self._had = max(start, 0)  # whoever begins in the middle may have been given what stands before
        self._given: frozenset[tuple[int, int]] = frozenset()  # attempts, some of whose chunks were given
        self._told = -1  # the last mark that the reader was told of
        self._head: tuple[int, int, int] | None = None  # seq, commit and incarnation: no other has these
        self._is_made = False

    async def take(self, fetch: Fetch, *, has_ended: bool) -> list[StreamChunk | Rewound]:
        """Return what is there from the cursor on, about a megabyte or one chunk, and move behind it.

        `has_ended` says whether the instance had ended before. Raises `StreamNotFoundError` where it had,
        without such a stream.
        """
        row = await self._look(fetch)
        if row is None or (row["kind"] == "do" and row["status"] in ENDED and not _is_stream(row["detail"])):
            if has_ended or row is not None:
                raise self._missing(await fetch(NAMES))
            return []
        rewound = self._moved(row)
        closed = has_ended or row["status"] in ENDED
        self._is_made = self._is_made or bool(await fetch(IS_MADE))
        if not self._is_made:
            self.is_over = closed
            return rewound
        seq: int = row["seq"]
        if self._index is None:
            last = await fetch(TAIL, *places(seq), self._from_end)
            self._index = min((chunk["place"] for chunk in last), default=0)
        rows = await fetch(CHUNKS, *places(seq), self._index)
        self.is_over = closed and not rows
        return rewound + self._read(rows)

    async def _look(self, fetch: Fetch) -> Any | None:
        """Return the row of the step that is the stream, or None where there is none yet."""
        rows: Sequence[Any] = ()
        if self._head is not None:
            rows = await fetch(HEAD_AT, *self._head, self.name)
        if not rows:
            rows = await fetch(HEAD, self.name)
        if not rows:
            return None
        self.is_sensitive = rows[0]["sensitive"] in ("output", "both")
        return rows[0]

    def _moved(self, row: Any) -> list[StreamChunk | Rewound]:
        """Begin anew where another stream stands under the name: the instance was restarted."""
        before, self._head = self._head, (row["seq"], row["started_commit"], row["incarnation"])
        if before is None or before == self._head:
            return []
        had = bool(self._given) or self._had > 0
        self._index, self._had, self._told, self._given = 0, 0, -1, frozenset()
        return [Rewound(0)] if had else []

    def _read(self, rows: Sequence[Any]) -> list[StreamChunk | Rewound]:
        found: list[StreamChunk | Rewound] = []
        for row in rows:
            place: int = row["place"]
            writer = row["step_seq"], row["attempt"]
            if not row["is_mark"]:
                if not row["is_void"]:
                    at = datetime.fromtimestamp(row["written_at"] / 1000, UTC)
                    found.append(
                        StreamChunk(index=place, attempt=writer[1], chunk=row["chunk"], written_at=at)
                    )
                    self._given |= {writer}
            elif place > self._told and (writer in self._given or row["bytes"] < self._had):
                first: int = row["bytes"]
                self._told = place
                self._given -= {writer}
                self._index = first
                self._had = min(self._had, first)
                found.append(Rewound(first))
                return found
            self._index = place + 1
        return found

    def _missing(self, rows: Sequence[Any]) -> StreamNotFoundError:
        there = ", ".join(repr(row["name"]) for row in rows) or "none"
        return StreamNotFoundError(
            f"{self.key} has no stream {self.name!r}; it has: {there}",
            workflow=self.key.workflow,
            instance_id=self.key.id,
            stream=self.name,
        )


def _is_stream(detail: str | None) -> bool:
    return detail is not None and '"stream":{' in detail


class StreamReader(AsyncIterator[T]):
    """The chunks of one stream, as they become durable. Made by `Instance.stream`.

    `index` is where it goes on: after a lost connection, `start=index` goes on from there. When chunks
    that it has given are superseded it raises `StreamRewoundError`, and goes on if it is iterated on.
    """

    def __init__(
        self, cursor: StreamCursor, access: Access, queries: QueryHost, coder: Coder, *, follow: bool
    ) -> None:
        self.index: int | None = None
        """The index behind the last chunk given; None before the first."""
        self._cursor = cursor
        self._access = access
        self._queries = queries
        self._coder = coder
        self._follow = follow
        self._ready: deque[StreamChunk | Rewound] = deque()

    async def __anext__(self) -> T:
        while not self._ready:
            if self._cursor.is_over:
                raise StopAsyncIteration
            await self._look()
        entry = self._ready.popleft()
        if isinstance(entry, Rewound):
            self.index = entry.index
            raise rewound(self._cursor, entry)
        value: T = self._coder.decode(entry.chunk)
        self.index = entry.index + 1
        return value

    async def _look(self) -> None:
        """Take what there is; where that is nothing, return when the instance may have changed."""
        access, key = self._access, self._cursor.key
        change = access.change_of(key)
        incarnation = access.require(key).incarnation
        has_ended = not self._follow or access.has_ended(key)
        cursor = copy.copy(self._cursor)  # a cancellation in here leaves everything to be taken again
        try:
            async with reading(access, key) as (path, immutable):

                async def fetch(query: str, *bindings: Any) -> Sequence[Any]:
                    return await self._queries.fetch(
                        path, query, bindings, timeout_s=QUERY_S, immutable=immutable
                    )

                found = await cursor.take(fetch, has_ended=has_ended)
                await access.synced(key)
        except (InstanceNotFoundError, StreamNotFoundError):
            if access.require(key).incarnation == incarnation:
                raise
            return  # another of its id has come: the next look begins anew with that one
        if access.require(key).incarnation != incarnation:  # that one may not have ended
            return
        self._cursor = cursor
        self._ready.extend(found)
        if not found and not cursor.is_over:
            await change.wait()


def rewound(cursor: StreamCursor, entry: Rewound) -> StreamRewoundError:
    """Return the error that tells a reader what to forget."""
    return StreamRewoundError(
        f"what was read of the stream {cursor.name!r} of {cursor.key} from {entry.index} on is superseded,"
        " because the attempt that wrote it has not succeeded: forget it, and read on",
        workflow=cursor.key.workflow,
        instance_id=cursor.key.id,
        stream=cursor.name,
        index=entry.index,
    )
