"""The relay log's bytes: what redo and the log itself must agree on.

A segment is a file of fixed size: a header block, then batches, each whole or not there at all.
A batch is what one sync made durable: entries, one for each instance file. An entry names its
instance, incarnation and epoch, and holds images of whole pages.

Invariants:
    A batch whose checksum does not fit, or that belongs to an earlier use of the segment, is the end.
    Batches begin on sectors of their own: writing one cannot tear another that was synced.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Generator, Sequence
from typing import Final

import msgspec

from perdure.errors import StateUnusableError

MAGIC: Final = b"PRDRLY\x00\x01"
BATCH_MAGIC: Final = b"BTCH"
HEADER: Final = struct.Struct("<8sQQQQI")
"""Magic, number of the segment, worker, boot, first segment that counts; then the checksum of these."""
HEADER_BYTES: Final = 4096
BATCH: Final = struct.Struct("<4sIQII")
"""Magic, length of the body, number of the segment, number of the batch in it, checksum of all."""
ENTRY: Final = struct.Struct("<BBHIQQIIQ8sQQ")
"""Kind, flags, length of the name, page size, incarnation, epoch, images, pages of the file, a number,
the WAL's salts, how far it was read, when the file was changed before."""
SECTOR_BYTES: Final = 512

IMAGES: Final = 1
VOID: Final = 2
CLOSED: Final = 3
TEMPLATE: Final = 4

BORN: Final = 1
"""Flag of an entry: the file begins as a copy of the template whose checksum is the entry's number."""


class Entry(msgspec.Struct, kw_only=True):
    """What a batch says of one file.

    `images` go over the file, later ones over earlier ones; `file_pages` is its length after that.
    A `VOID` entry says that all before it is in the file already; `CLOSED` that it was closed with
    the modification time `number`, in nanoseconds; a `TEMPLATE` has the template's bytes as its
    one image.
    """

    kind: int
    name: str
    incarnation: int = 0
    epoch: int = 0
    born: bool = False
    page_bytes: int = 0
    file_pages: int = 0
    number: int = 0
    salts: bytes = bytes(8)
    end: int = 0
    opened: int = 0
    images: dict[int, bytes] = {}


class Segment(msgspec.Struct, frozen=True, kw_only=True):
    """The header of a segment. When it began, all of its log before the segment `first` was settled."""

    number: int
    worker: int
    boot: int
    first: int


def segment_header(segment: Segment) -> bytes:
    """Return the first block of a segment."""
    head = HEADER.pack(MAGIC, segment.number, segment.worker, segment.boot, segment.first, 0)[:-4]
    return (head + struct.pack("<I", zlib.crc32(head))).ljust(HEADER_BYTES, b"\0")


def read_header(data: bytes) -> Segment | None:
    """Return what a segment's first block says, or None where it is no segment, or not whole."""
    if len(data) < HEADER.size or not data.startswith(MAGIC[:-1]):
        return None
    magic, number, worker, boot, first, checksum = HEADER.unpack_from(data)
    if zlib.crc32(data[: HEADER.size - 4]) != checksum:
        return None
    if magic != MAGIC:
        raise StateUnusableError(
            "the relay log was written by another version of Perdure: open the state folder with that one,"
            " and close it there",
            path="relay",
        )
    return Segment(number=number, worker=worker, boot=boot, first=first)


def encode_entry(entry: Entry) -> list[bytes]:
    """Return the parts of an entry."""
    name = entry.name.encode()
    head = ENTRY.pack(
        entry.kind, BORN if entry.born else 0, len(name), entry.page_bytes, entry.incarnation, entry.epoch,
        len(entry.images), entry.file_pages, entry.number, entry.salts, entry.end, entry.opened,
    )  # fmt: skip
    numbers = struct.pack(f"<{len(entry.images)}I", *entry.images)
    return [head, name, numbers, *entry.images.values()]


def entry_bytes(entry: Entry) -> int:
    """Return no less than what an entry takes."""
    return ENTRY.size + 4 * len(entry.name) + len(entry.images) * (entry.page_bytes + 4)


def encode_batch(parts: Sequence[bytes], *, segment: int, number: int) -> bytes:
    """Return a batch of encoded entries, filled up to a whole number of sectors."""
    body = b"".join(parts)
    checksum = zlib.crc32(body, zlib.crc32(struct.pack("<QI", segment, number)))
    data = BATCH.pack(BATCH_MAGIC, len(body), segment, number, checksum) + body
    return data.ljust(-(-len(data) // SECTOR_BYTES) * SECTOR_BYTES, b"\0")


def decode_batches(data: bytes, segment: Segment) -> Generator[list[Entry]]:
    """Yield the batches of a segment's bytes, in order, up to the first that is not whole."""
    at, number = HEADER_BYTES, 0
    while at + BATCH.size <= len(data):
        magic, length, of_segment, of_number, checksum = BATCH.unpack_from(data, at)
        if magic != BATCH_MAGIC or of_segment != segment.number or of_number != number:
            return
        body = data[at + BATCH.size : at + BATCH.size + length]
        if (
            len(body) < length
            or zlib.crc32(body, zlib.crc32(struct.pack("<QI", of_segment, of_number))) != checksum
        ):
            return
        yield list(_entries(body))
        at += -(-(BATCH.size + length) // SECTOR_BYTES) * SECTOR_BYTES
        number += 1


def _entries(body: bytes) -> Generator[Entry]:
    at = 0
    while at < len(body):
        (
            kind, flags, name_length, page_bytes, incarnation, epoch, count, file_pages, number, salts, end,
            opened,
        ) = ENTRY.unpack_from(body, at)  # fmt: skip
        at += ENTRY.size
        name = body[at : at + name_length].decode()
        at += name_length
        pages = struct.unpack_from(f"<{count}I", body, at)
        at += 4 * count
        images: dict[int, bytes] = {}
        for page in pages:
            images[page] = body[at : at + page_bytes]
            at += page_bytes
        yield Entry(
            kind=kind, name=name, incarnation=incarnation, epoch=epoch, born=bool(flags & BORN),
            page_bytes=page_bytes, file_pages=file_pages, number=number, salts=salts, end=end, opened=opened,
            images=images,
        )  # fmt: skip
