"""Values on disk: small ones in their row, large ones in pieces, each back byte for byte."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import perdure.storage.values
from perdure.errors import EncodingError
from perdure.limits import CHUNK_BYTES, VALUE_BYTES_INLINE_MAX
from perdure.storage.files import InstanceFile
from perdure.storage.gate import Gate
from perdure.storage.journal import Journal
from perdure.storage.values import check_size, get_value, put_value, stored_bytes

Reopen = Callable[[InstanceFile], InstanceFile]
SIZES = [
    0,
    1,
    VALUE_BYTES_INLINE_MAX,
    VALUE_BYTES_INLINE_MAX + 1,
    CHUNK_BYTES,
    CHUNK_BYTES + 1,
    3 * CHUNK_BYTES,
]


@pytest.mark.parametrize("letter", ["a", "é", "潮", b"\x00", b"\xff"])
@pytest.mark.parametrize("size", SIZES)
def test_a_value_comes_back_byte_for_byte(
    born: InstanceFile, gate: Gate, letter: str | bytes, size: int
) -> None:
    gate.touch(born)
    value = letter * size

    inline, reference, size_bytes = put_value(born, value)

    assert value == get_value(born, inline, reference)
    assert stored_bytes(value) == size_bytes
    assert (reference is None) == (stored_bytes(value) <= VALUE_BYTES_INLINE_MAX)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30)
@given(st.lists(st.binary(max_size=10) | st.text(max_size=10), max_size=4))
def test_values_do_not_run_into_each_other(born: InstanceFile, gate: Gate, seeds: list[str | bytes]) -> None:
    gate.touch(born)
    values = [seed * (VALUE_BYTES_INLINE_MAX // max(1, len(seed)) + 2) for seed in seeds]

    places = [put_value(born, value)[:2] for value in values]

    assert values == [get_value(born, *place) for place in places]


def test_no_value_is_no_value(born: InstanceFile) -> None:
    assert (None, None, None) == put_value(born, None)
    assert get_value(born, None, None) is None


@pytest.mark.parametrize(
    "value", ['"' + "x" * VALUE_BYTES_INLINE_MAX * 5 + '"', b"\x01" * VALUE_BYTES_INLINE_MAX * 5]
)
def test_the_views_join_the_pieces(
    born: InstanceFile, gate: Gate, reopened: Reopen, value: str | bytes
) -> None:
    journal = Journal(born, gate)
    step = journal.start("do", "large", 1, at_ms=1)
    journal.complete(step, value, at_ms=2)

    ((output, size),) = reopened(born).fetch("SELECT output, output_bytes FROM steps")

    assert (value, len(value)) == (output, size)


def test_what_sqlite_cannot_hold_is_refused_with_its_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(perdure.storage.values, "VALUE_BYTES_MAX", 10)

    assert 10 == check_size("é" * 5)
    with pytest.raises(EncodingError, match="a value of 12 bytes"):
        check_size("é" * 6)
