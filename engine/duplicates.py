"""What `create(if_exists="attach")` does where the id is in use: the params have to be the same.

Invariants:
    Nothing is written, whatever the answer is.
    Params are compared as they are stored; the text of the error names fields, never values.
"""

from __future__ import annotations

from typing import Any, cast

import msgspec

from perdure.engine.access import Access, reading
from perdure.errors import InstanceExistsError
from perdure.storage.query import QueryHost
from perdure.storage.records import CatalogRow, Stored

PARAMS = "SELECT params, generation FROM instance"


async def require_same_params(access: Access, queries: QueryHost, row: CatalogRow, given: Stored) -> None:
    """Raise `InstanceExistsError` where the instance was created with other params than `given`.

    Of an instance whose file has expired, or whose run has gone on as new with params of its own, nobody
    knows any more; it may be attached to, as a program does that starts its run without end at each start.
    """
    if row.archived is not None:
        return
    if row.birth is not None and row.params is not None:
        recorded: Stored | None = row.params
    else:
        async with reading(access, row.key) as (path, immutable):
            rows = await queries.fetch(path, PARAMS, (), timeout_s=30.0, immutable=immutable)
        if rows[0]["generation"] > 1:
            return
        recorded = rows[0]["params"]
    if recorded is None:
        recorded = "null"
    if recorded != given:
        raise InstanceExistsError(
            f"{row.key} exists already, with other params: {_difference(recorded, given)}; attach with the"
            " same params, choose another id, or take its handle with runtime.get()",
            workflow=row.workflow,
            instance_id=row.id,
        )


def _difference(recorded: Stored, given: Stored) -> str:
    """Return in words which fields of two stored values differ."""
    if isinstance(recorded, bytes) or isinstance(given, bytes):
        return "the bytes differ"
    was, now = msgspec.json.decode(recorded), msgspec.json.decode(given)
    if not (isinstance(was, dict) and isinstance(now, dict)):
        return "the values differ"
    before, after = cast("dict[str, Any]", was), cast("dict[str, Any]", now)
    missing = object()
    names = [name for name in {**before, **after} if before.get(name, missing) != after.get(name, missing)]
    return f"{', '.join(map(repr, names))} differ{'s' if len(names) == 1 else ''}"
