"""Large values: kept in pieces in a table of their own, so that `steps` stays small.

The only module that touches `_perdure_chunks`. A value of up to `VALUE_BYTES_INLINE_MAX` bytes
stands in its row; a larger one is cut up and the row has a reference: the id of its first piece,
negative where the value is bytes rather than text. The views join the pieces by `_perdure_values`.

Invariants:
    A value comes back byte for byte.
    All pieces are written in the transaction of the row that refers to them.
"""

from __future__ import annotations

from typing import Final

from perdure.errors import EncodingError
from perdure.limits import CHUNK_BYTES, VALUE_BYTES_INLINE_MAX, VALUE_BYTES_MAX
from perdure.storage.files import InstanceFile
from perdure.storage.records import LongText, Stored
from perdure.storage.track import DIRECT_BYTES

PIECES_MAX: Final = 1 << 20

LAST: Final = "SELECT max(id) FROM _perdure_chunks"
LAST_OF_BYTES: Final = "SELECT min(id) FROM _perdure_chunks"
ADD: Final = "INSERT INTO _perdure_chunks (id, chunk) VALUES (?, ?)"
PIECES: Final = "SELECT chunk FROM _perdure_chunks WHERE id >= ? AND id < ? ORDER BY id"


def stored_bytes(value: Stored | LongText) -> int:
    """Return how many bytes `value` takes on disk."""
    if isinstance(value, LongText):
        return len(value.raw)
    return len(value) if isinstance(value, bytes) or value.isascii() else len(value.encode())


def check_size(value: Stored | LongText) -> int:
    """Return the bytes of `value`; raise `EncodingError` where SQLite could not hold it."""
    size = stored_bytes(value)
    if size > VALUE_BYTES_MAX:
        raise EncodingError(
            f"a value of {size:,} bytes is larger than the {VALUE_BYTES_MAX:,} that one row can hold: write"
            " it to a file or a stream and return its name"
        )
    return size


def put_value(
    file: InstanceFile, value: Stored | LongText | None
) -> tuple[Stored | None, int | None, int | None]:
    """Write `value` and return what its row holds: the value or None, the reference, the bytes."""
    if value is None:
        return None, None, None
    size = check_size(value)
    if size <= VALUE_BYTES_INLINE_MAX and not isinstance(value, LongText):
        return value, None, size
    data = memoryview(_raw(value))
    first = _next_bytes(file) if isinstance(value, bytes) else _next_text(file)
    file.execute_many(
        ADD, ((first + i, data[at : at + CHUNK_BYTES]) for i, at in enumerate(range(0, size, CHUNK_BYTES)))
    )
    file.large_bytes += size
    file.has_large = file.has_large or size > DIRECT_BYTES
    return None, first, size


def _raw(value: Stored | LongText) -> bytes:
    if isinstance(value, LongText):
        return value.raw
    return value if isinstance(value, bytes) else value.encode()


def _next_text(file: InstanceFile) -> int:
    ((last,),) = file.fetch(LAST)
    return (max(last or 0, 0) // PIECES_MAX + 1) * PIECES_MAX


def _next_bytes(file: InstanceFile) -> int:
    ((last,),) = file.fetch(LAST_OF_BYTES)
    return (min(last or 0, 0) // PIECES_MAX - 1) * PIECES_MAX


def get_value(file: InstanceFile, inline: Stored | None, reference: int | None) -> Stored | None:
    """Return the whole value that a row holds or refers to."""
    if reference is None:
        return inline
    data = b"".join(row[0] for row in file.fetch(PIECES, (reference, reference + PIECES_MAX)))
    return data if reference < 0 else data.decode()
