"""The relay log's bytes: what was put into a segment is read back, up to the first batch not whole."""

from __future__ import annotations

import zlib

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from perdure.errors import StateUnusableError
from perdure.storage.relay_format import (
    CLOSED,
    HEADER,
    HEADER_BYTES,
    IMAGES,
    MAGIC,
    SECTOR_BYTES,
    TEMPLATE,
    VOID,
    Entry,
    Segment,
    decode_batches,
    encode_batch,
    encode_entry,
    read_header,
    segment_header,
)

SEGMENT = Segment(number=3, worker=1, boot=2**40, first=2)
PAGE_BYTES = 512
KINDS = (IMAGES, VOID, CLOSED, TEMPLATE)

numbers = st.integers(0, 2**63 - 1)
entries = st.builds(
    Entry,
    kind=st.sampled_from(KINDS),
    name=st.text(st.characters(exclude_categories=["Cs"]), max_size=20),
    incarnation=numbers,
    epoch=numbers,
    born=st.booleans(),
    page_bytes=st.just(PAGE_BYTES),
    file_pages=st.integers(0, 2**31),
    number=numbers,
    images=st.dictionaries(
        st.integers(1, 2**31), st.binary(min_size=PAGE_BYTES, max_size=PAGE_BYTES), max_size=3
    ),
)
batches = st.lists(st.lists(entries, min_size=1, max_size=3), min_size=1, max_size=4)


def image(page: int, fill: bytes) -> Entry:
    """Return an entry that holds one page."""
    return Entry(
        kind=IMAGES, name="W/one", incarnation=7, epoch=1, page_bytes=PAGE_BYTES, file_pages=page,
        images={page: fill * PAGE_BYTES},
    )  # fmt: skip


def batch(entries: list[Entry], number: int, segment: Segment = SEGMENT) -> bytes:
    parts = [part for entry in entries for part in encode_entry(entry)]
    return encode_batch(parts, segment=segment.number, number=number)


def written(batches: list[list[Entry]], segment: Segment = SEGMENT) -> bytes:
    """Return a segment's bytes with these batches in it, and room behind them."""
    data = segment_header(segment)
    for number, each in enumerate(batches):
        data += batch(each, number, segment)
    return data + bytes(4 * SECTOR_BYTES)


THREE = [[image(1, b"a")], [image(2, b"b"), image(3, b"c")], [image(1, b"d")]]


@given(batches)
def test_batches_are_read_back_as_they_were_written(batches: list[list[Entry]]) -> None:
    assert batches == list(decode_batches(written(batches), SEGMENT))


@given(st.integers(0, 2**63), st.integers(0, 2**63), st.integers(0, 2**63), st.integers(0, 2**63))
def test_a_header_is_read_back_as_it_was_written(number: int, worker: int, boot: int, first: int) -> None:
    segment = Segment(number=number, worker=worker, boot=boot, first=first)

    assert segment == read_header(segment_header(segment))


@given(batches)
def test_every_batch_begins_on_a_sector_of_its_own(batches: list[list[Entry]]) -> None:
    assert HEADER_BYTES == len(segment_header(SEGMENT))
    assert {0} == {len(batch(each, number)) % SECTOR_BYTES for number, each in enumerate(batches)}


@given(st.data())
def test_a_batch_with_one_wrong_byte_ends_the_reading(data: st.DataObject) -> None:
    before = HEADER_BYTES + len(batch(THREE[0], 0))
    body = len(b"".join(part for entry in THREE[1] for part in encode_entry(entry)))
    at = before + data.draw(st.integers(0, body - 1))
    torn = bytearray(written(THREE))
    torn[at] ^= 0xFF

    assert THREE[:1] == list(decode_batches(bytes(torn), SEGMENT))


@pytest.mark.parametrize("sector", range(3))
def test_a_batch_of_which_a_sector_is_missing_ends_the_reading(sector: int) -> None:
    at = HEADER_BYTES + len(batch(THREE[0], 0)) + sector * SECTOR_BYTES
    torn = bytearray(written(THREE))
    torn[at : at + SECTOR_BYTES] = bytes(SECTOR_BYTES)

    assert THREE[:1] == list(decode_batches(bytes(torn), SEGMENT))


def test_a_segment_cut_off_anywhere_yields_the_whole_batches_before_the_cut() -> None:
    data, ends = segment_header(SEGMENT), [HEADER_BYTES]
    for number, each in enumerate(THREE):
        data += batch(each, number).rstrip(b"\0")
        ends.append(len(data))
        data = data.ljust(-(-len(data) // SECTOR_BYTES) * SECTOR_BYTES, b"\0")

    for cut in range(HEADER_BYTES, len(data), 7):
        whole = sum(end <= cut for end in ends[1:])
        assert THREE[:whole] == list(decode_batches(data[:cut], SEGMENT))


def test_batches_of_an_earlier_use_of_the_segment_are_not_read() -> None:
    earlier = written(THREE)
    later = msgspec.structs.replace(SEGMENT, number=4)
    data = segment_header(later) + batch(THREE[0], 0, later)
    reused = data + earlier[len(data) :]

    assert THREE[1:] == list(decode_batches(earlier, SEGMENT))[1:]
    assert THREE[:1] == list(decode_batches(reused, later))


def test_a_batch_stands_only_where_its_number_says() -> None:
    data = segment_header(SEGMENT) + batch(THREE[0], 0) + batch(THREE[2], 2)

    assert THREE[:1] == list(decode_batches(data, SEGMENT))


def test_an_empty_segment_has_no_batches() -> None:
    assert [] == list(decode_batches(segment_header(SEGMENT) + bytes(4096), SEGMENT))


@pytest.mark.parametrize("data", [b"", b"\0" * HEADER_BYTES, segment_header(SEGMENT)[: HEADER.size - 1]])
def test_what_has_no_whole_header_is_no_segment(data: bytes) -> None:
    assert read_header(data) is None


def test_a_torn_header_is_no_segment() -> None:
    for at in range(HEADER.size):
        torn = bytearray(segment_header(SEGMENT))
        torn[at] ^= 0x10
        assert read_header(bytes(torn)) is None


def test_another_versions_log_is_refused_rather_than_overlooked() -> None:
    mine = HEADER.unpack_from(segment_header(SEGMENT))[:-1]
    theirs = HEADER.pack(MAGIC[:-1] + b"\x7f", *mine[1:], 0)[:-4]
    with pytest.raises(StateUnusableError, match="another version"):
        read_header(theirs + zlib.crc32(theirs).to_bytes(4, "little"))
