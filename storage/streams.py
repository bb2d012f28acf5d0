"""The chunks of one instance's streams: written by attempts, in order, and never changed.

A stream is a step: one of kind `stream` (`step.writable`), or a do step whose function yields its
result. Its chunks have places that only grow. When an attempt has not succeeded, a mark is put
behind what it wrote: that is void from then on. Nothing is written over, so a reader who goes on from
a place has either what stands there, or meets the mark that tells him that what he has is void.

The table is made when the first chunk is written: most instances have none. Prior art: the peer keeps
chunks per step and attempt and deletes those of failed attempts, under the eyes of whoever reads.

Invariants:
    No other module touches `_perdure_streams`; readers outside the actor use `CHUNKS` and its siblings.
    A place is given once; chunks of one stream are in the order in which they were written.
    The table is there in the same commit as its first chunk and the view over it.
"""

from __future__ import annotations

import contextlib
from typing import Final

import msgspec

from perdure.errors import EncodingError, StateError
from perdure.limits import STREAM_CHUNK_BYTES_MAX, VALUE_BYTES_INLINE_MAX
from perdure.storage.files import InstanceFile
from perdure.storage.gate import Gate
from perdure.storage.records import Stored
from perdure.storage.schema import stream_schema
from perdure.storage.values import stored_bytes

PLACE_BITS: Final = 32
PLACE_MASK: Final = (1 << PLACE_BITS) - 1

IS_MADE: Final = "SELECT 1 FROM sqlite_schema WHERE name = '_perdure_streams'"
NEXT: Final = "SELECT ifnull(max(id) + 1, ?1) FROM _perdure_streams WHERE id BETWEEN ?1 AND ?2"
ADD: Final = """
    INSERT INTO _perdure_streams (id, step_seq, attempt, bytes, written_at, chunk)
    VALUES (?, ?, ?, ?, ?, ?)"""
OF_ATTEMPT: Final = """
    SELECT id >> 32, min(id) & 4294967295 FROM _perdure_streams
    WHERE step_seq = ? AND attempt = ? AND chunk IS NOT NULL GROUP BY 1"""
MARKS: Final = (
    "SELECT count(*) FROM _perdure_streams WHERE step_seq = ?1 AND id BETWEEN ?2 AND ?3 AND chunk IS NULL"
)
IS_VOID: Final = """EXISTS (
    SELECT 1 FROM _perdure_streams AS mark
    WHERE mark.chunk IS NULL AND mark.step_seq = c.step_seq AND mark.attempt = c.attempt
        AND mark.id > c.id AND mark.id >> 32 = c.id >> 32)"""
FIRST_FROM: Final = f"""
    SELECT id, chunk FROM _perdure_streams AS c
    WHERE id BETWEEN ? AND ? AND chunk IS NOT NULL AND NOT {IS_VOID} ORDER BY id LIMIT 1"""
LIVE: Final = f"""
    SELECT count(*), ifnull(sum(bytes), 0) FROM _perdure_streams AS c
    WHERE id BETWEEN ? AND ? AND chunk IS NOT NULL AND NOT {IS_VOID}"""
OF_WRITER: Final = """
    SELECT id, chunk FROM _perdure_streams
    WHERE id BETWEEN ? AND ? AND step_seq = ? AND attempt = ? AND chunk IS NOT NULL ORDER BY id LIMIT 1"""
OF_SUPERSEDED: Final = f"""
    SELECT c.id >> 32, c.step_seq, c.attempt, min(c.id) & 4294967295 FROM _perdure_streams AS c
    JOIN _perdure_steps AS writer ON writer.seq = c.step_seq
    JOIN _perdure_steps AS stream ON stream.seq = c.id >> 32
    WHERE c.chunk IS NOT NULL AND stream.superseded IS NULL
        AND (writer.superseded IS NOT NULL OR writer.seq = stream.seq AND stream.kind = 'stream')
        AND NOT {IS_VOID} GROUP BY 1, 2, 3"""

# What readers outside the actor ask, of rows with names.
HEAD: Final = """
    SELECT seq, kind, s.status, sensitive, detail, incarnation, s.started_commit
    FROM _perdure_steps AS s, _perdure_instance
    WHERE name = ? AND kind IN ('stream', 'do') AND count = 1 AND superseded IS NULL
    ORDER BY kind = 'stream' DESC LIMIT 1"""
HEAD_AT: Final = """
    SELECT seq, kind, s.status, sensitive, detail, incarnation, s.started_commit
    FROM _perdure_steps AS s, _perdure_instance
    WHERE seq = ? AND s.started_commit = ? AND incarnation = ? AND name = ? AND superseded IS NULL"""
NAMES: Final = """
    SELECT name FROM _perdure_steps
    WHERE superseded IS NULL AND (kind = 'stream' OR detail LIKE '%"stream":{%') ORDER BY seq LIMIT 20"""
CHUNKS: Final = f"""
    SELECT id & 4294967295 AS place, step_seq, attempt, written_at, chunk IS NULL AS is_mark, bytes,
        {IS_VOID} AS is_void, iif({IS_VOID}, NULL, chunk) AS chunk
    FROM _perdure_streams AS c
    WHERE id BETWEEN ?1 + ?3 AND ifnull((
        SELECT id FROM (
            SELECT id, sum(bytes) OVER (ORDER BY id) AS total FROM (
                SELECT id, iif(chunk IS NULL, 0, bytes) AS bytes FROM _perdure_streams
                WHERE id BETWEEN ?1 + ?3 AND ?2 ORDER BY id LIMIT 512))
        WHERE total > 1048576 LIMIT 1), ?2)
    ORDER BY id LIMIT 512"""
TAIL: Final = f"""
    SELECT id & 4294967295 AS place FROM _perdure_streams AS c
    WHERE id BETWEEN ? AND ? AND chunk IS NOT NULL AND NOT {IS_VOID} ORDER BY id DESC LIMIT ?"""


class Extent(msgspec.Struct, frozen=True, kw_only=True):
    """How much a stream holds that is not void."""

    chunks: int = 0
    bytes: int = 0


class StreamDetail(msgspec.Struct, frozen=True, kw_only=True):
    """What a step's row says of its stream, once that is closed."""

    stream: Extent = msgspec.field(default_factory=Extent)


def detail_of(extent: Extent) -> str:
    """Return what a step's row says of its closed stream, as JSON."""
    return msgspec.json.encode(StreamDetail(stream=extent)).decode()


def extent_in(detail: str | None) -> Extent:
    """Return what `detail_of` was given."""
    return Extent() if detail is None else msgspec.json.decode(detail, type=StreamDetail).stream


def places(seq: int) -> tuple[int, int]:
    """Return the first and the last id that chunks of the stream of step `seq` may have.

    >>> places(1)
    (4294967296, 8589934591)
    """
    return seq << PLACE_BITS, (seq << PLACE_BITS) | PLACE_MASK


def check_chunk(stored: Stored) -> int:
    """Return the bytes of a chunk; raise `EncodingError` where it is too large to be one."""
    size = stored_bytes(stored)
    if size > STREAM_CHUNK_BYTES_MAX:
        raise EncodingError(
            f"a chunk of {size:,} bytes is larger than the {STREAM_CHUNK_BYTES_MAX:,} that a stream takes at"
            " once: write it in pieces"
        )
    return size


class StreamTable:
    """The chunks of all streams of one instance, as its actor writes and reads them.

    `waiting_bytes` is what was written since the last time that all of it was safe.
    """

    def __init__(self, file: InstanceFile, gate: Gate) -> None:
        self._file = file
        self._gate = gate
        self._next: dict[int, int] = {}
        self._wrote: dict[tuple[int, int], dict[int, int]] = {}
        self._is_made: bool | None = None
        self.waiting_bytes = 0

    @property
    def is_made(self) -> bool:
        """Whether the instance has written any stream."""
        if self._is_made is None:
            self._is_made = bool(self._file.fetch(IS_MADE))
        return self._is_made

    def add(self, seq: int, writer: tuple[int, int], chunk: Stored, *, at_ms: int) -> int:
        """Write the next chunk of the stream of step `seq`; return its place.

        `writer` is the seq of the step that wrote it and its attempt. Raises `EncodingError`.
        """
        size = check_chunk(chunk)
        if size > VALUE_BYTES_INLINE_MAX and self._file.unwritten is not None:  # memory is no place for it
            with contextlib.suppress(StateError):
                self._gate.try_write_out(self._file)
        place = self._add(seq, writer, chunk, size, at_ms)
        self._file.bytes_since_checkpoint += size
        self.waiting_bytes += size
        self._wrote.setdefault(writer, {}).setdefault(seq, place)
        return place

    def void(self, step_seq: int, attempt: int, *, at_ms: int, began_here: bool) -> None:
        """Put a mark behind what an attempt has written, in every stream that it wrote to.

        `began_here` says that all that it wrote went through this object.
        """
        writer = step_seq, attempt
        wrote = self._wrote.pop(writer, {})
        if not began_here and self.is_made:  # it reads the whole table, after a crash
            wrote = dict(self._file.fetch(OF_ATTEMPT, writer))
        for seq, first in wrote.items():
            self._add(seq, writer, None, first, at_ms)

    def void_superseded(self, *, at_ms: int) -> None:
        """After a restart, put marks behind what `run()`, and steps that are to run again, have written."""
        if self.is_made:
            for seq, step_seq, attempt, first in self._file.fetch(OF_SUPERSEDED):
                self._add(seq, (step_seq, attempt), None, first, at_ms)

    def turn_of_run(self, seq: int) -> int:
        """Return as which attempt `run()` itself writes to a stream: 1, and one more after each restart."""
        if not self.is_made:
            return 1
        ((marks,),) = self._file.fetch(MARKS, (seq, *places(seq)))
        return 1 + int(marks)

    def next_live(self, seq: int, place: int) -> tuple[int, Stored] | None:
        """Return the first chunk from `place` on that is not void, with its place; None at the end."""
        if not self.is_made:
            return None
        first, last = places(seq)
        for id_, chunk in self._file.fetch(FIRST_FROM, (first + place, last)):
            return id_ & PLACE_MASK, chunk
        return None

    def next_written(self, seq: int, writer: tuple[int, int], place: int) -> tuple[int, Stored] | None:
        """Return the first chunk from `place` on that `writer` wrote, with its place, or None."""
        if not self.is_made:
            return None
        first, last = places(seq)
        for id_, chunk in self._file.fetch(OF_WRITER, (first + place, last, *writer)):
            return id_ & PLACE_MASK, chunk
        return None

    def extent(self, seq: int) -> Extent:
        """Return how much a stream holds."""
        if not self.is_made:
            return Extent()
        ((chunks, size),) = self._file.fetch(LIVE, places(seq))
        return Extent(chunks=chunks, bytes=size)

    async def safe(self) -> None:
        """Return once all that was written is safe, so that no more than a bound ever waits."""
        await self._gate.passed(self._file)
        self.waiting_bytes = 0

    def _add(self, seq: int, writer: tuple[int, int], chunk: Stored | None, size: int, at_ms: int) -> int:
        self._gate.touch(self._file)
        if not self.is_made:
            for statement in stream_schema():
                self._file.execute(statement)
            self._is_made = True
        at = self._next.get(seq)
        if at is None:
            ((at,),) = self._file.fetch(NEXT, places(seq))
        self._file.execute(ADD, (at, *writer, size, at_ms, chunk))
        self._next[seq] = at + 1
        return at & PLACE_MASK
