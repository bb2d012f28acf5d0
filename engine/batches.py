"""Many instances created at once: `Runtime.create_batch`.

Every entry is checked and encoded in the loop's thread, where the program's own types live; the rows
are made and written by the catalog's writer, in its thread, in one transaction with one sync.

Invariants:
    One entry that is refused refuses all, before anything is written.
    An id that exists, or came before in the batch, is left as it is and left out of the answer.
    A batch with a token creates the same incarnations however often it is repeated.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, Final, TypedDict

import trio

from perdure.actors.durations import Duration, point_in_time
from perdure.actors.retention import Retention
from perdure.actors.workflow import Definition
from perdure.engine.access import Access
from perdure.engine.births import prepare_birth
from perdure.errors import InvalidArgumentError, RuntimeClosedError
from perdure.storage.moves import Newborn
from perdure.storage.names import check_caller
from perdure.storage.records import Key

CHECKED_AT_ONCE: Final = 200
"""Entries checked before other tasks get their turn: about a millisecond of the loop's time."""
OPTIONS: Final = ("id", "params", "at", "timeout", "event", "tags", "retention", "priority")


class BatchEntry(TypedDict, total=False):
    """One instance of `create_batch`: what `create` takes that may differ from one to the next."""

    id: str | None
    params: Any
    at: datetime | None
    timeout: Duration | None
    event: tuple[str, Any] | None
    tags: Sequence[str] | None
    retention: Retention | Duration | None
    priority: int


async def create_batch(
    access: Access,
    definition: Definition,
    entries: Iterable[Mapping[str, Any]],
    *,
    token: str | None = None,
) -> list[Key]:
    """Create what does not exist yet and return the names of those created, in the entries' order.

    Raises what `create` raises, with the entry's number in the text, and `RuntimeClosedError`.
    Nothing has happened then.
    """
    newborns = await _prepared(access, definition, entries, token)
    if access.closing:
        raise RuntimeClosedError("the runtime is ending and takes no more work")
    if not newborns:
        return []
    created = await access.writer.write(lambda catalog: catalog.moves.add_all(newborns))
    keys = [
        Key(definition.name, newborn.birth.id)
        for newborn, is_new in zip(newborns, created, strict=True)
        if is_new
    ]
    for key in keys:
        access.forget(key)
    access.ring()
    return keys


async def _prepared(
    access: Access, definition: Definition, entries: Iterable[Mapping[str, Any]], token: str | None
) -> list[Newborn]:
    newborns: dict[str, Newborn] = {}
    check_caller(token=token)
    if isinstance(entries, str | bytes | Mapping) or not isinstance(entries, Iterable):  # pyright: ignore[reportUnnecessaryIsInstance] - a caller unseen by it
        raise InvalidArgumentError(f"create_batch: {entries!r} is no list of entries; nothing was created")
    for number, entry in enumerate(entries):
        if number % CHECKED_AT_ONCE == CHECKED_AT_ONCE - 1:
            await trio.lowlevel.checkpoint()
        try:
            newborn = _newborn(access, definition, entry, None if token is None else f"{token}-{number}")
        except InvalidArgumentError as error:
            told = f"entry {number} of the batch{_named(entry)}: {error}".rstrip(".")
            error.args = (f"{told}; nothing was created",)
            raise
        newborns.setdefault(newborn.birth.id, newborn)
    return list(newborns.values())


def _newborn(access: Access, definition: Definition, entry: Mapping[str, Any], token: str | None) -> Newborn:
    if not isinstance(entry, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance] - a caller unseen by it
        raise InvalidArgumentError(f"{entry!r} is no mapping: write {{'id': ..., 'params': ...}}")
    for name in entry:
        if name not in OPTIONS:
            raise InvalidArgumentError(f"it has no option {name!r}; there are {', '.join(OPTIONS)}")
    at = entry.get("at")
    birth, params = prepare_birth(
        access, definition, entry.get("params"), id_=entry.get("id"), event=entry.get("event"),
        tags=entry.get("tags"), timeout=entry.get("timeout"), retention=entry.get("retention"), token=token,
        priority=entry.get("priority", 0),
    )  # fmt: skip
    return Newborn(birth=birth, params=params, start_at_ms=None if at is None else point_in_time(at))


def _named(entry: object) -> str:
    id_ = entry.get("id") if isinstance(entry, dict) else None  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType] - any mapping
    return f" (id {id_!r})" if isinstance(id_, str) else ""
