"""Sensitive values, for a reader that asks for them: views that withhold nothing.

The views of an instance's file say NULL in the place of a sensitive value. A connection that reads with
`reveal` gets temporary views of the same names, which are its own and lie over those of the file: in
them every `iif(sensitive ...)` is the value itself. Only `statement.py` uses this.

Invariants:
    The file is not changed, and no other connection sees anything of it.
    What a view of the user's own says stays as it is.
"""

from __future__ import annotations

import re
from typing import Final

from perdure.errors import PerdureError

VIEWS: Final = """
    SELECT name, sql FROM sqlite_schema
    WHERE type = 'view' AND name IN ('steps', 'attempts', 'streams', 'history', '_perdure_all_attempts')"""
"""The views that withhold something, and those over them: a view sees its own file's alone."""

CHOICE: Final = re.compile(r"iif\((?=(?:\w+\.)?sensitive\b)")


def revealing_view(name: str, sql: str) -> str:
    """Return the statement that makes a temporary view in the place of the view `name`.

    >>> revealing_view("v", "CREATE VIEW v AS SELECT iif(sensitive IN ('input'),NULL,f(a,b))AS a FROM t")
    'CREATE TEMP VIEW v AS SELECT (f(a,b))AS a FROM t'
    """
    while (found := CHOICE.search(sql)) is not None:
        one, other, end = _arguments(sql, found.end())
        value = other if one.strip() == "NULL" else one
        sql = f"{sql[: found.start()]}({value.strip()}){sql[end:]}"
    head = "CREATE VIEW "
    if not sql.startswith(head):
        raise PerdureError(f"the view {name!r} begins with {sql[:20]!r}, which is none of the runtime's")
    return f"CREATE TEMP VIEW {sql.removeprefix(head)}"


def _arguments(sql: str, begin: int) -> tuple[str, str, int]:
    """Return the second and the third argument of a call, and where it has ended."""
    parts: list[str] = []
    depth = 0
    for place in range(begin, len(sql)):
        char = sql[place]
        if depth == 0 and char in ",)":
            parts.append(sql[begin:place])
            begin = place + 1
            if char == ")":
                _, one, other = parts
                return one, other, place + 1
        depth += (char == "(") - (char == ")")
    raise PerdureError(f"the view has no end: {sql!r}")
