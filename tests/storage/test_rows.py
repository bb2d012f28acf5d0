"""A row is easy to use: by attribute, by name, by index, in order, and whatever its columns are called."""

from __future__ import annotations

import copy

import pytest

from perdure.storage.rows import Columns, Row


def test_a_row_gives_its_values_by_attribute_name_index_and_in_order() -> None:
    row = Row(Columns(["seq", "name", "count"]), (1, "fetch", 1))
    assert (1, "fetch", 1) == (row.seq, row.name, row.count)
    assert ("fetch", "fetch", "fetch") == (row["name"], row[1], row[-2])
    assert (1, "fetch") == row[:2]
    assert [1, "fetch", 1] == list(row)
    assert 3 == len(row)
    assert {"seq": 1, "name": "fetch", "count": 1} == row.as_dict() == dict(row)
    assert "Row(seq=1, name='fetch', count=1)" == repr(row)


def test_names_that_are_no_attributes_are_reached_by_mapping_and_index() -> None:
    row = Row(Columns(["count(*)", "keys", "as_dict", "a", "a", "_values"]), (1, 2, 3, 4, 5, 6))
    assert [1, 2, 3, 6] == [row["count(*)"], row["keys"], row["as_dict"], row["_values"]]
    assert (4, 4, 5) == (row.a, row["a"], row[4])
    assert ("count(*)", "keys", "as_dict", "a", "a", "_values") == row.keys()
    assert 4 == row.as_dict()["a"]


def test_a_missing_column_is_named_beside_those_there_are() -> None:
    row = Row(Columns(["seq", "name"]), (1, "fetch"))
    with pytest.raises(AttributeError, match="no column 'nmae' in this row; it has 'seq', 'name'"):
        row.nmae  # noqa: B018 - the access is the test
    with pytest.raises(KeyError, match="nmae"):
        row["nmae"]
    with pytest.raises(AttributeError):
        setattr(row, "name", "other")  # noqa: B010 - the type checkers refuse the plain form too


def test_rows_are_equal_when_names_and_values_are_and_survive_copying() -> None:
    row = Row(Columns(["a", "b"]), (1, None))
    assert Row(Columns(["a", "b"]), (1, None)) == row == copy.deepcopy(row)
    assert hash(Row(Columns(["a", "b"]), (1, None))) == hash(row)
    assert Row(Columns(["a", "c"]), (1, None)) != row
    assert Row(Columns(["a", "b"]), (1, 2)) != row
    assert row != (1, None)
