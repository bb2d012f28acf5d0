"""Instances deleted: one or many, at rest or running, from any process of the folder.

What nobody has open is marked in the catalog, which keeps everybody else from it; then its file goes,
then its row. One that is warm is closed by its owner first, which then does the same (`Life`). What a
kill leaves marked is finished by whoever looks at expiries next.

Invariants:
    A row goes after its file (`storage/removals.py`).
    Whoever hears that an instance is deleted may create its id at once.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final, Protocol, TypeVar

import msgspec
import trio

from perdure.engine.access import Access, Command, required
from perdure.engine.folder import StateFolder
from perdure.engine.timers import WaitingClock
from perdure.errors import InstanceNotFoundError, InvalidArgumentError, PerdureError, StateError
from perdure.storage.disk import Disk
from perdure.storage.files import remove_file, storage_error
from perdure.storage.names import check_caller, check_instance_id
from perdure.storage.records import CatalogRow, Key
from perdure.storage.removals import DELETING
from perdure.storage.writer import CatalogWriter

T = TypeVar("T")
logger: Final = logging.getLogger("perdure.engine")
AT_ONCE: Final = 500
"""Instances at rest that are removed together: two writes of the catalog, and one job in a thread."""
CLOSING_MAX: Final = 50
"""Warm instances that are stopped at the same time."""


class Place(Protocol):
    """What is needed to finish a deletion: the folder, its catalog's writer, the time."""

    @property
    def folder(self) -> StateFolder:
        """Where the files lie."""
        ...

    @property
    def writer(self) -> CatalogWriter:
        """The catalog, for writing."""
        ...

    @property
    def clock(self) -> WaitingClock:
        """The time."""
        ...


class DeleteError(msgspec.Struct, frozen=True, kw_only=True):
    """Why one id of `delete_batch` could not be deleted: `code` is `not_found` or `internal`."""

    id: str
    code: str
    message: str


class DeletedBatch(msgspec.Struct, frozen=True, kw_only=True):
    """What `delete_batch` did: each given id stands in one of the two, as often as it was given."""

    deleted: list[str]
    errors: list[DeleteError]


async def delete_batch(
    access: Access, workflow: str, ids: Iterable[str], *, who: str | None, token: str | None
) -> DeletedBatch:
    """Delete instances of one workflow. Raises `InvalidIdError`, `InvalidArgumentError` before any effect."""
    check_caller(who=who, token=token)
    if isinstance(ids, str | bytes) or not isinstance(ids, Iterable):  # pyright: ignore[reportUnnecessaryIsInstance] - a caller unseen by it
        raise InvalidArgumentError(f"delete_batch: {ids!r} is no list of ids; nothing was deleted")
    given = list(ids)
    if not given:
        raise InvalidArgumentError("delete_batch: there is no id in the batch")
    for number, id_ in enumerate(given):
        try:
            check_instance_id(id_)
        except InvalidArgumentError as error:
            error.args = (f"entry {number} of the batch: {error}; nothing was deleted",)
            raise
    keys = list(dict.fromkeys(Key(workflow, id_) for id_ in given))
    refused = await delete_all(access, keys, who=who, token=token)
    told = [(id_, refused.get(Key(workflow, id_))) for id_ in given]
    return DeletedBatch(
        deleted=[id_ for id_, error in told if error is None],
        errors=[_told(id_, error) for id_, error in told if error is not None],
    )


def _told(id_: str, error: PerdureError) -> DeleteError:
    if isinstance(error, InstanceNotFoundError):
        return DeleteError(id=id_, code="not_found", message=str(error))
    return DeleteError(
        id=id_, code="internal", message="it could not be deleted; the log of the runtime says why"
    )


async def delete_all(
    access: Access,
    keys: Sequence[Key],
    *,
    who: str | None = None,
    token: str | None = None,
    alone: bool = False,
) -> dict[Key, PerdureError]:
    """Delete instances; returns why, for those that could not be. A token makes it harmless to repeat.

    `alone`: the token is of the deletion of the one instance. That of a command to many is answered with
    a report, so what is remembered of each instance must not stand under it.
    """
    refused: dict[Key, PerdureError] = {}
    limiter = trio.CapacityLimiter(CLOSING_MAX)

    async def delete_one(key: Key) -> None:
        async with limiter:
            try:
                await _delete_open(access, key, _token_of(token, key, alone=alone))
            except PerdureError as error:
                refused[key] = error

    for chunk in batched(keys, AT_ONCE):
        try:
            done = await _delete_at_rest(access, chunk, lambda key: _token_of(token, key, alone=alone))
        except StateError as error:
            logger.error("instances could not be deleted: %s", error)
            refused.update(dict.fromkeys(chunk, error))
            continue
        for key in done:
            logger.info("%s was deleted%s", key, f" by {who}" if who else "")
        rest = [key for key in chunk if key not in done]
        if len(rest) == 1:
            await delete_one(rest[0])
        elif rest:
            async with trio.open_nursery() as nursery:
                for key in rest:
                    nursery.start_soon(delete_one, key)
    return refused


async def _delete_at_rest(
    access: Access, keys: Sequence[Key], token_of: Callable[[Key], str | None]
) -> set[Key]:
    """Delete those that nobody has open; returns which these were.

    What is marked and not finished, since the caller was cancelled, is finished by the expiry.
    """
    rows: list[CatalogRow] = []
    try:
        rows = await access.writer.write(
            lambda catalog: [row for key in keys for row in catalog.removals.mark([key], token_of(key))]
        )
        await finish(access, rows)
    finally:
        for row in rows:
            access.removed(row.key)
    return {row.key for row in rows}


async def _delete_open(access: Access, key: Key, token: str | None) -> None:
    """Delete an instance that somebody has open, or has just had. Raises `InstanceNotFoundError`."""
    first = access.catalog.find(key)
    if first is None and token is not None:
        reply = access.catalog.posts.reply(token)
        if reply is not None and reply.ok:  # it was carried out, and its reply was lost
            return
    incarnation = required(first, key, access.folder).incarnation if first is None else first.incarnation
    row = first
    while row is not None and row.incarnation == incarnation:
        if row.open == DELETING:
            await finish(access, [row])
        elif row.open:
            await access.command(key, Command(name="delete", token=token))
        else:
            await _delete_at_rest(access, [key], lambda _key: token)
        row = access.catalog.find(key)


async def finish(place: Place, rows: Sequence[CatalogRow]) -> None:
    """Remove the files of instances that are marked as deleted, then their rows.

    Raises `StateError` where a file cannot be removed; it is tried again with the next expiry.
    """
    if not rows:
        return
    paths = [path for row in rows for path in paths_of(place.folder, row)]
    await trio.to_thread.run_sync(remove_files, paths)
    at_ms = place.clock.wall_ms()
    await place.writer.write(lambda catalog: catalog.removals.drop([row.key for row in rows], at_ms=at_ms))


def paths_of(folder: StateFolder, row: CatalogRow) -> Iterator[Path]:
    """Yield where the files of an instance may lie: in its own place, and in the archive."""
    yield folder.instance(row.key)
    if row.archived:
        yield folder.root / row.archived


def remove_files(paths: Sequence[Path]) -> None:
    """Remove files with what SQLite left beside them, durably. Runs off the loop. Raises `StateError`."""
    disk = Disk()
    for path in paths:
        try:
            remove_file(path)
        except OSError as error:
            raise storage_error(error, path) from error
    for folder in {path.parent for path in paths}:
        try:
            disk.sync_directory(folder)
        except FileNotFoundError:  # none of its instances has had a file yet
            continue
        except OSError as error:
            raise storage_error(error, folder) from error


def _token_of(token: str | None, key: Key, *, alone: bool) -> str | None:
    """Return the token of one of many deletions that were asked for at once."""
    return token if token is None or alone else f"{token}/{key}"


def batched(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Yield the items in lists of at most that size."""
    rest = iter(items)
    while batch := list(itertools.islice(rest, size)):
        yield batch
