"""Many instances at once: `Runtime.select(...)`, and the same for commands from other processes.

Which instances are meant is a condition on the catalog, asked at the moment the command is given.
Each gets the command as if it stood alone; one that refuses holds up none of the others.

Invariants:
    A condition that is wrong is refused before any effect.
    With a token each instance has a token of its own, so that repeating the whole is harmless.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, Literal, get_args

import msgspec
import trio

from perdure.actors.control import RestartFrom
from perdure.engine.access import Access, Command
from perdure.engine.removal import batched, delete_all
from perdure.errors import InvalidArgumentError, PerdureError
from perdure.storage.names import check_caller
from perdure.storage.query import QueryHost
from perdure.storage.records import Key, Status

BulkCommand = Literal["pause", "resume", "terminate", "restart", "delete"]
COMMANDS: Final[tuple[str, ...]] = get_args(BulkCommand)
STATUSES: Final[tuple[str, ...]] = get_args(Status)
TAGGED: Final = "tags IS NOT NULL AND EXISTS (SELECT 1 FROM json_each(tags) AS t WHERE t.value = ?)"
AT_ONCE: Final = 50
"""Instances that are commanded at the same time."""


class BulkOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What a command may be given besides: from where to restart, whether to roll back."""

    from_step: str | None = None
    count: int = 1
    kind: str = "do"
    rollback: bool = False

    @property
    def origin(self) -> RestartFrom:
        """From where to restart."""
        return RestartFrom(self.from_step, self.count, self.kind)


PLAIN: Final = BulkOptions()


class Refused(msgspec.Struct, frozen=True, kw_only=True):
    """One instance that did not take a command: its name, the class of the error, and its text."""

    instance: str
    error: str
    why: str


class BulkReport(msgspec.Struct, frozen=True, kw_only=True):
    """What a command to many instances did: `done` names those that took it, as `Workflow/id`."""

    done: list[str]
    refused: list[Refused]


class Selection(msgspec.Struct, frozen=True, kw_only=True):
    """A condition on the catalog's view `instances`."""

    workflow: str | None = None
    statuses: tuple[str, ...] = ()
    tag: str | None = None
    where: str | None = None

    def query(self) -> tuple[str, list[Any]]:
        """Return the statement that finds the instances, oldest first, and its bindings."""
        conditions: list[str] = []
        values: list[Any] = []
        if self.workflow is not None:
            conditions.append("workflow = ?")
            values.append(self.workflow)
        if self.statuses:
            conditions.append(f"status IN ({', '.join('?' * len(self.statuses))})")
            values.extend(self.statuses)
        if self.tag is not None:
            conditions.append(
                "tags IS NOT NULL AND EXISTS (SELECT 1 FROM json_each(tags) AS t WHERE t.value = ?)"
            )
            values.append(self.tag)
        # The condition stands in a query of its own, so that one with an OR, or a bracket too many, widens
        # no other.
        words = ["SELECT workflow, id FROM instances"]
        if self.where is not None:
            words = ["SELECT workflow, id FROM (SELECT * FROM instances WHERE (\n", self.where, "\n))"]
        if conditions:
            words += ["WHERE", " AND ".join(conditions)]
        return " ".join([*words, "ORDER BY created_at, id"]), values


def selection(
    workflow: str | None, status: str | Sequence[str] | None, tag: str | None, where: str | None
) -> Selection:
    """Return a checked condition. Raises `InvalidArgumentError` for a status that there is not."""
    chosen: Any = status  # of a caller that no type checker has seen
    if chosen is not None and not (isinstance(chosen, Iterable) and chosen):
        raise InvalidArgumentError(f"status={status!r}: name one status or several, or leave it out for any")
    statuses = (status,) if isinstance(status, str) else tuple(status or ())
    for each in statuses:
        check_status(each)
    for name, text in (("tag", tag), ("where", where)):
        if text is not None and not isinstance(text, str):  # pyright: ignore[reportUnnecessaryIsInstance] - a caller unseen by it
            raise InvalidArgumentError(f"{name}={text!r}: it must be text")
    return Selection(workflow=workflow, statuses=statuses, tag=tag, where=where)


def check_status(status: str) -> None:
    """Refuse a status that no instance can have. Raises `InvalidArgumentError`, which lists them."""
    if status not in STATUSES:
        raise InvalidArgumentError(f"status={status!r}: it must be one of {', '.join(STATUSES)}")


class BulkSelection:
    """The instances that meet a condition. Made by `Runtime.select`.

    Each method asks the catalog anew, gives the command to every instance found, and returns a
    `BulkReport`. Errors of the condition are `QueryError`.

    >>> report = await runtime.select(Tides, status="errored").restart(who="Ada")
    >>> report.refused
    []
    """

    def __init__(self, access: Access, queries: QueryHost, chosen: Selection) -> None:
        self._access = access
        self._queries = queries
        self._chosen = chosen

    async def keys(self) -> list[Key]:
        """Return the names of the instances that meet the condition now, oldest first."""
        query, values = self._chosen.query()
        rows = await self._queries.fetch(self._access.folder.catalog, query, values, timeout_s=30.0)
        return [Key(row["workflow"], row["id"]) for row in rows]

    async def pause(self, *, who: str | None = None, token: str | None = None) -> BulkReport:
        """Pause each of them."""
        return await self._give("pause", who=who, token=token)

    async def resume(self, *, who: str | None = None, token: str | None = None) -> BulkReport:
        """Resume each of them, or revive it where it is dead."""
        return await self._give("resume", who=who, token=token)

    async def terminate(
        self, *, rollback: bool = False, who: str | None = None, token: str | None = None
    ) -> BulkReport:
        """Terminate each of them, as `Instance.terminate` does."""
        return await self._give("terminate", BulkOptions(rollback=rollback), who=who, token=token)

    async def restart(
        self, from_step: str | None = None, *, count: int = 1, kind: str = "do", who: str | None = None,
        token: str | None = None,
    ) -> BulkReport:  # fmt: skip
        """Restart each of them, as `Instance.restart` does."""
        options = BulkOptions(from_step=from_step, count=count, kind=kind)
        return await self._give("restart", options, who=who, token=token)

    async def delete(self, *, who: str | None = None, token: str | None = None) -> BulkReport:
        """Delete each of them."""
        return await self._give("delete", who=who, token=token)

    async def _give(
        self, command: BulkCommand, options: BulkOptions = PLAIN, *, who: str | None, token: str | None
    ) -> BulkReport:
        options.origin.check()
        check_caller(who=who, token=token)
        return await give_all(self._access, await self.keys(), command, options, who=who, token=token)


async def give_all(
    access: Access,
    keys: Sequence[Key],
    command: BulkCommand,
    options: BulkOptions = PLAIN,
    *,
    who: str | None,
    token: str | None,
) -> BulkReport:
    """Give a command to each of the instances and report on all of them, in their order."""
    if command == "delete":
        refused: dict[Key, PerdureError] = await delete_all(access, keys, who=who, token=token)
    else:
        refused = {}

        async def give(key: Key) -> None:
            each = None if token is None else f"{token}/{key}"
            given = Command(
                name=command, who=who, token=each, origin=options.origin, rollback=options.rollback
            )
            try:
                await access.command(key, given)
            except PerdureError as error:
                refused[key] = error

        await _in_turn(give, keys)
    return BulkReport(
        done=[str(key) for key in keys if key not in refused],
        refused=[
            Refused(instance=str(key), error=type(refused[key]).__name__, why=str(refused[key]))
            for key in keys
            if key in refused
        ],
    )


async def _in_turn(give: Callable[[Key], Any], keys: Iterable[Key]) -> None:
    """Run `give` for all, some at a time."""
    for batch in batched(keys, AT_ONCE):
        async with trio.open_nursery() as nursery:
            for key in batch:
                nursery.start_soon(give, key)
