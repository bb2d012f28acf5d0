"""`Runtime`: creates, finds and lists instances, wherever they run. Made by `open_runtime`."""

from __future__ import annotations

import builtins
import contextlib
import logging
from collections.abc import Awaitable, Callable, Iterable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Final, TypeVar, Unpack, overload

from perdure.actors.durations import Duration, point_in_time, seconds
from perdure.actors.modifiers import Modifiers
from perdure.actors.retention import Retention
from perdure.engine import schedules
from perdure.engine.access import Access
from perdure.engine.app import App
from perdure.engine.batches import BatchEntry, create_batch
from perdure.engine.births import CreateOptions, IfExists, Runnable, prepare_birth
from perdure.engine.bulk import BulkSelection, check_status, selection
from perdure.engine.duplicates import require_same_params
from perdure.engine.instance import Instance
from perdure.engine.introspection import Introspection
from perdure.engine.removal import DeletedBatch, delete_batch
from perdure.engine.scheduler import Scheduler
from perdure.engine.schedules import ScheduleStatus
from perdure.engine.statistics import RuntimeStatistics
from perdure.errors import (
    InstanceExistsError,
    InstanceFinishedError,
    InstanceNotFoundError,
    InvalidArgumentError,
    RuntimeClosedError,
)
from perdure.storage.names import check_instance_id, check_workflow_name
from perdure.storage.query import QueryHost
from perdure.storage.records import FINISHED, Birth, CatalogRow, Key, Stored
from perdure.storage.rows import Row

P = TypeVar("P", contravariant=True)
R = TypeVar("R", covariant=True)
LISTED_MAX: Final = 2**31 - 1
logger: Final = logging.getLogger("perdure.engine")


class Runtime:
    """Creates, finds and lists instances. Made by `open_runtime`."""

    def __init__(
        self,
        access: Access,
        queries: QueryHost,
        statistics: Callable[[], RuntimeStatistics],
        *,
        restart: Callable[[], Awaitable[None]] | None = None,
        modifiers: Modifiers | None = None,
    ) -> None:
        self.queries = queries
        self._access = access
        self._statistics = statistics
        self._restart = restart
        self._modifiers = modifiers
        self.scheduler: Scheduler | None = None
        """What creates the instances of schedules, in the one process of a folder that does."""

    @property
    def path(self) -> Path:
        """The state folder."""
        return self._access.folder.root

    @property
    def app(self) -> App:
        """What this process can run."""
        return self._access.app

    # -- creating --------------------------------------------------------------------------

    @overload
    async def create(
        self, cls: type[Runnable[None, R]], *, params: None = None, **options: Unpack[CreateOptions]
    ) -> Instance[R]: ...
    @overload
    async def create(
        self, cls: type[Runnable[P, R]], *, params: P, **options: Unpack[CreateOptions]
    ) -> Instance[R]: ...
    @overload
    async def create(
        self, cls: str, *, params: Any = None, **options: Unpack[CreateOptions]
    ) -> Instance[Any]: ...

    async def create(
        self,
        cls: Any,
        *,
        params: Any = None,
        id: str | None = None,  # noqa: A002 - the word that instances have everywhere
        if_exists: IfExists = "fail",
        at: datetime | None = None,
        timeout: Duration | None = None,
        event: tuple[str, Any] | None = None,
        tags: Sequence[str] | None = None,
        retention: Retention | Duration | None = None,
        priority: int = 0,
        token: str | None = None,
    ) -> Instance[Any]:
        """Create an instance and return its handle, once the creation is durable. It starts by itself.

        `params` are checked against the annotation of the workflow's `event`; `id` is a random
        one by default; `if_exists` says what happens where the id is in use: "fail", "attach" to what is
        there, if it has the same params, or "restart", which replaces it; `at` delays the
        start; `timeout` is of the whole run, from its creation; `event`, a pair (type, payload), is
        there before the first step runs; `retention` is how long it is kept once it has ended, where that
        differs from what its class says; of those that wait to start, the highest `priority` goes first,
        then the oldest; `token`, where given, makes creating it again harmless.

        Raises `InvalidParamsError`, `InvalidIdError`, `InstanceExistsError`, `UnknownWorkflowError`.
        Nothing has happened then.
        """
        definition = self._access.app.definition(cls)
        if if_exists not in ("fail", "attach", "restart"):
            raise InvalidArgumentError(f"if_exists={if_exists!r}: it must be 'fail', 'attach' or 'restart'")
        birth, stored = prepare_birth(
            self._access,
            definition,
            params,
            id_=id,
            event=event,
            tags=tags,
            timeout=timeout,
            retention=retention,
            priority=priority,
            token=token,
        )
        start_at_ms = None if at is None else point_in_time(at)
        key = Key(definition.name, birth.id)
        instance: Instance[Any] = Instance(key, self._access, self.queries, definition)
        asks = token is not None or (id is not None and if_exists == "attach")
        row = self._access.catalog.find(key) if asks else None
        if token is not None and row is not None and row.incarnation == birth.incarnation:
            return instance
        if if_exists == "attach" and row is not None and await self._attached(row, stored):
            return instance
        while True:
            if if_exists == "restart" and self._access.catalog.find(key) is not None:
                await self._make_way(key)
            try:
                await self._add(birth, stored, start_at_ms, replace=if_exists == "restart")
            except InstanceExistsError:
                if if_exists == "fail":
                    raise
                if if_exists == "restart":  # somebody else was quicker to restart it
                    continue
                row = self._access.catalog.find(key)
                if row is None:  # it was deleted meanwhile
                    continue
                if row.incarnation != birth.incarnation and not await self._attached(row, stored):
                    continue
            return instance

    @overload
    async def create_batch(
        self, cls: type[Runnable[P, R]], entries: Iterable[BatchEntry], *, token: str | None = None
    ) -> builtins.list[Instance[R]]: ...
    @overload
    async def create_batch(
        self, cls: str, entries: Iterable[BatchEntry], *, token: str | None = None
    ) -> builtins.list[Instance[Any]]: ...

    async def create_batch(
        self, cls: Any, entries: Iterable[BatchEntry], *, token: str | None = None
    ) -> builtins.list[Instance[Any]]:
        """Create many instances in one transaction and return the handles of those created, durably.

        Each entry is a mapping with the options of `create` that make sense for one of many: `id`,
        `params`, `at`, `timeout`, `event` and `tags`. An id that exists already, or came before in
        the batch, is skipped and left out of the answer. `token`, where given, makes creating the
        same batch again harmless: it returns what it has created.

        Raises what `create` raises, naming the entry, where one of them is not valid: none is created.

        >>> ports = await runtime.create_batch(Tides, [{"id": "kiel", "params": "Kiel"}, {"params": "Riga"}])
        >>> ports[0].id, len(ports)
        ('kiel', 2)
        """
        definition = self._access.app.definition(cls)
        keys = await create_batch(self._access, definition, entries, token=token)
        return [Instance(key, self._access, self.queries, definition) for key in keys]

    async def delete_batch(
        self, cls: type | str, ids: Iterable[str], *, who: str | None = None, token: str | None = None
    ) -> DeletedBatch:
        """Delete many instances of one workflow, as `Instance.delete` does, and report on each given id.

        An id that is given twice is deleted once and reported twice; one that does not exist is reported
        with the code `not_found`. Raises `InvalidIdError` where one of them can be no id, and
        `InvalidArgumentError` for an empty batch: nothing is deleted then.

        >>> await runtime.delete_batch(Tides, ["brest", "atlantis"])
        DeletedBatch(deleted=['brest'], errors=[DeleteError(id='atlantis', code='not_found', ...)])
        """
        return await delete_batch(self._access, self._name(cls), ids, who=who, token=token)

    async def _attached(self, row: CatalogRow, stored: Stored) -> bool:
        """Say whether there still is what is attached to. Raises `InstanceExistsError` for other params."""
        try:
            await require_same_params(self._access, self.queries, row, stored)
        except InstanceNotFoundError:  # deleted, or replaced, while its params were looked at
            return False
        return True

    async def _add(self, birth: Birth, stored: Any, start_at_ms: int | None, *, replace: bool) -> None:
        access = self._access
        if access.closing:
            raise RuntimeClosedError("the runtime is ending and takes no more work")
        await access.add(birth, stored, start_at_ms=start_at_ms, replace=replace)

    async def _make_way(self, key: Key) -> None:
        """End what is there, so that another incarnation can take its place."""
        row = self._access.require(key)
        if row.status not in FINISHED:
            with contextlib.suppress(InstanceFinishedError):  # by itself, and its row is not settled yet
                await Instance[Any](key, self._access, self.queries, None).terminate(who="restart")
        await self._access.closed(key)

    # -- finding ---------------------------------------------------------------------------

    @overload
    async def get(self, cls: type[Runnable[P, R]], id: str) -> Instance[R]: ...
    @overload
    async def get(self, cls: str, id: str) -> Instance[Any]: ...

    async def get(self, cls: Any, id: str) -> Instance[Any]:  # noqa: A002 - as in create
        """Return the handle of an instance that exists. Raises `InstanceNotFoundError`.

        >>> await runtime.get(Tides, "brest")
        <Instance Tides/brest>
        """
        check_instance_id(id)
        key = Key(self._name(cls), id)
        self._access.require(key)
        return self._handle(key)

    async def list(
        self, cls: type | str | None = None, *, status: str | None = None, limit: int | None = 100
    ) -> builtins.list[Instance[Any]]:
        """Return handles of instances, newest first.

        >>> [instance.id for instance in await runtime.list(Tides)]
        ['brest']
        """
        name = None if cls is None else self._name(cls)
        if status is not None:
            check_status(status)
        if limit is not None and (type(limit) is not int or not 0 <= limit <= LISTED_MAX):
            raise InvalidArgumentError(f"limit={limit!r}: it must be a whole number from 0 to {LISTED_MAX:,}")
        return [
            self._handle(row.key)
            for row in self._access.catalog.select(workflow=name, status=status, limit=limit)
        ]

    def select(
        self,
        cls: type | str | None = None,
        *,
        status: str | Sequence[str] | None = None,
        tag: str | None = None,
        where: str | None = None,
    ) -> BulkSelection:
        """Return the instances that meet a condition: to pause, resume, terminate, restart or delete all.

        `where` is a condition in SQL on the catalog's view `instances`. Nothing is asked or done before
        a command is given. Raises `InvalidArgumentError` for a status that there is not.

        >>> report = await runtime.select(Tides, where="created_at < '2020-01-01'").delete()
        >>> report.done
        []
        """
        name = None if cls is None else self._name(cls)
        return BulkSelection(self._access, self.queries, selection(name, status, tag, where))

    def rows(
        self, *, workflow: str | None = None, status: str | None = None, limit: int | None = None
    ) -> builtins.list[CatalogRow]:
        """Return what the catalog knows of instances, newest first."""
        return self._access.catalog.select(workflow=workflow, status=status, limit=limit)

    async def sql(self, query: str, *bindings: Any, timeout: Duration = "30 seconds") -> builtins.list[Row]:
        """Run one reading statement on the catalog, whose view is `instances`. Errors as in `Instance.sql`.

        >>> rows = await runtime.sql("SELECT workflow, count(*) AS instances FROM instances GROUP BY 1")
        >>> rows[0].as_dict()
        {'workflow': 'Tides', 'instances': 1}
        """
        return await self.queries.fetch(
            self._access.folder.catalog, query, bindings, timeout_s=seconds(timeout)
        )

    def _name(self, cls: type | str) -> str:
        if not isinstance(cls, str):
            return self._access.app.definition(cls).name
        check_workflow_name(cls)
        return cls

    def _handle(self, key: Key) -> Instance[Any]:
        return Instance(key, self._access, self.queries, self._access.app.definitions.get(key.workflow))

    # -- schedules -------------------------------------------------------------------------

    def schedules(self) -> builtins.list[ScheduleStatus]:
        """Return every schedule of the folder: when it occurred last, and when it does next.

        >>> await runtime.list(Tides, status="queued")
        []
        >>> runtime.schedules()
        []
        """
        return schedules.statuses(self._access.catalog, self._access.clock.wall_ms())

    async def pause_schedule(self, schedule: str) -> ScheduleStatus:
        """Have a schedule create nothing until it is resumed; `schedule` is `Workflow/id`, or the id alone.

        Raises `InvalidArgumentError` where there is none, or several of that id.
        """
        return await schedules.pause(self._access, schedule)

    async def resume_schedule(self, schedule: str) -> ScheduleStatus:
        """Have a schedule go on with what comes from now on. Errors as in `pause_schedule`."""
        status = await schedules.resume(self._access, schedule)
        if self.scheduler is not None:
            self.scheduler.ring()
        return status

    async def backfill(
        self, schedule: str, start: datetime, end: datetime, *, dry_run: bool = False
    ) -> builtins.list[Instance[Any]]:
        """Create what a schedule would have from `start` to `end`, both included, and has not; return those.

        Ids are those that the schedule itself gives, so nothing is created twice, however often this is
        repeated. With `dry_run` nothing is created, and the handles are of what would be. Errors as in
        `pause_schedule`, and for more than 100,000 occurrences.
        """
        keys = await schedules.backfill(self._access, schedule, start, end, dry_run=dry_run)
        return [self._handle(key) for key in keys]

    def introspection(self, cls: type | str, id: str | None = None) -> Introspection:  # noqa: A002 - as in create
        """Return what looks into instances for a test and changes them: use `perdure.testing.introspect`.

        Raises `InvalidArgumentError` in a runtime that `open_test_runtime` has not opened.
        """
        if self._modifiers is None:
            raise InvalidArgumentError("introspect: open the runtime by perdure.testing.open_test_runtime")
        return Introspection(self._access, self.queries, self._modifiers, self._name(cls), id)

    # -- looking ---------------------------------------------------------------------------

    async def restart_workers(self) -> None:
        """Replace the workers one by one; each new one runs before the old one parks what it has and ends.

        No step is lost or doubled. Workers load the code anew. Raises `InvalidArgumentError` where there
        are none, and why a new worker cannot run; the old ones that are left then stay.
        """
        if self._restart is None:
            raise InvalidArgumentError("this runtime has no workers: open it with workers=2 or more")
        await self._restart()

    @property
    def is_idle(self) -> bool:
        """Whether nothing is under way: no attempt, no write, no sync. Time may jump then."""
        return self._access.is_idle

    def statistics(self) -> RuntimeStatistics:
        """Return what the runtime is doing now and what it has done since it was opened, in figures.

        >>> await (await runtime.create(Tides, params="Cork")).result()
        3.1
        >>> runtime.statistics().workflows["Tides"].started > 0
        True
        """
        return self._statistics()
