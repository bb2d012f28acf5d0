"""What a query answers: rows, the names of their columns, and the answers of many files as one.

Nothing here knows of a database: `query.py` makes the rows, and they outlive it.

Invariants:
    A row never changes. All rows of one query share the names of their columns.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import msgspec

from perdure.errors import QueryError

__all__ = ["Columns", "FileFailure", "Row", "UnitedRows", "united"]


class Columns:
    """The names of a query's columns, shared by its rows. Of two equal names the first is found."""

    __slots__ = ("names", "positions")

    def __init__(self, names: Iterable[str]) -> None:
        self.names = tuple(names)
        self.positions = {name: i for i, name in reversed(list(enumerate(self.names)))}

    def missing(self, name: str) -> str:
        """Say that no column has this name, and which there are."""
        return f"no column {name!r} in this row; it has {', '.join(map(repr, self.names))}"


class Row:
    """One row: values by attribute, by name, by index and in order.

    Iteration gives the values. A column called like a method (`keys`), like no Python name, or like
    another column is reached by `row["keys"]` or by index.

    >>> row = Row(Columns(["name", "count(*)"]), ("fetch", 3))
    >>> row.name, row["count(*)"], row[1], list(row), dict(row)
    ('fetch', 3, 3, ['fetch', 3], {'name': 'fetch', 'count(*)': 3})
    """

    __slots__ = ("_columns", "_values")

    def __init__(self, columns: Columns, values: tuple[Any, ...]) -> None:
        self._columns = columns
        self._values = values

    def __getattr__(self, name: str) -> Any:
        try:
            return self._values[self._columns.positions[name]]
        except KeyError:
            raise AttributeError(self._columns.missing(name), name=name, obj=self) from None

    def __getitem__(self, key: str | int | slice) -> Any:
        if not isinstance(key, str):
            return self._values[key]
        try:
            return self._values[self._columns.positions[key]]
        except KeyError:
            raise KeyError(self._columns.missing(key)) from None

    def __iter__(self) -> Iterator[Any]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Row):
            return NotImplemented
        return self._values == other._values and self._columns.names == other._columns.names

    def __hash__(self) -> int:
        return hash((self._columns.names, self._values))

    def __repr__(self) -> str:
        pairs = zip(self._columns.names, self._values, strict=True)
        return f"Row({', '.join(f'{name}={value!r}' for name, value in pairs)})"

    def __reduce__(self) -> tuple[Any, ...]:
        return Row, (self._columns, self._values)

    def keys(self) -> tuple[str, ...]:
        """Return the names of the columns, in order, equal names included."""
        return self._columns.names

    def as_dict(self) -> dict[str, Any]:
        """Return the values by name, in order. Of columns of one name the first is there."""
        return {name: self[name] for name in self._columns.names}


class FileFailure(msgspec.Struct, frozen=True, kw_only=True):
    """A file that gave no answer to a query over many, and why."""

    label: str
    path: str
    error: QueryError


class UnitedRows(msgspec.Struct, frozen=True, kw_only=True):
    """The answer of many files: rows in the order of the files, the label in the first column."""

    rows: list[Row]
    columns: tuple[str, ...]
    failures: tuple[FileFailure, ...]


def united(answers: list[tuple[Columns, list[Row]]], failures: list[FileFailure], label: str) -> UnitedRows:
    """Unite the answers of many files. Raises the first failure where no file answered."""
    if failures and not answers:
        failures[0].error.add_note(f"none of {len(failures)} files answered; this is {failures[0].path}")
        raise failures[0].error
    names = {label: None} | {name: None for columns, _ in answers for name in columns.names}
    columns = answers[0][0].names if len({columns.names for columns, _ in answers}) == 1 else tuple(names)
    rows = [row for _, rows in answers for row in rows]
    return UnitedRows(rows=rows, columns=columns, failures=tuple(failures))
