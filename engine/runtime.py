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
from perdure.engine.access import Access
from perdure.engine.app import App
from perdure.engine.batches import BatchEntry, create_batch
from perdure.engine.births import CreateOptions, IfExists, Runnable, prepare_birth
from perdure.engine.instance import Instance
from perdure.engine.statistics import RuntimeStatistics
from perdure.errors import (
    InstanceExistsError,
    InstanceFinishedError,
    InvalidArgumentError,
    RuntimeClosedError,
)
from perdure.storage.query import QueryHost
from perdure.storage.records import FINISHED, Birth, CatalogRow, Key
from perdure.storage.rows import Row

P = TypeVar("P", contravariant=True)
R = TypeVar("R", covariant=True)
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
    ) -> None:
        self.queries = queries
        self._access = access
        self._statistics = statistics
        self._restart = restart

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
        token: str | None = None,
    ) -> Instance[Any]:
        """Create an instance and return its handle, once the creation is durable. It starts by itself.

        `params` are checked against the annotation of the workflow's `event`; `id` is a random
        one by default; `if_exists` says what happens where the id is in use; `at` delays the
        start; `timeout` is of the whole run, from its creation; `event`, a pair (type, payload), is
        there before the first step runs; `token`, where given, makes creating it again harmless.

        Raises `InvalidParamsError`, `InvalidIdError`, `InstanceExistsError`, `UnknownWorkflowError`.
        Nothing has happened then.
        """
        definition = self._access.app.definition(cls)
        if if_exists not in ("fail", "attach", "restart"):
            raise InvalidArgumentError(f"if_exists={if_exists!r}: it must be 'fail', 'attach' or 'restart'")
        birth, stored = prepare_birth(
            self._access, definition, params, id_=id, event=event, tags=tags, timeout=timeout, token=token
        )
        start_at_ms = None if at is None else point_in_time(at)
        key = Key(definition.name, birth.id)
        instance: Instance[Any] = Instance(key, self._access, self.queries, definition)
        asks = token is not None or (id is not None and if_exists == "attach")
        row = self._access.catalog.find(key) if asks else None
        if token is not None and row is not None and row.incarnation == birth.incarnation:
            return instance
        if if_exists == "attach" and row is not None:
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
        name = cls if isinstance(cls, str) else self._access.app.definition(cls).name
        key = Key(name, id)
        self._access.require(key)
        return self._handle(key)

    async def list(
        self, cls: type | str | None = None, *, status: str | None = None, limit: int | None = 100
    ) -> builtins.list[Instance[Any]]:
        """Return handles of instances, newest first.

        >>> [instance.id for instance in await runtime.list(Tides)]
        ['brest']
        """
        name = cls if cls is None or isinstance(cls, str) else self._access.app.definition(cls).name
        return [
            self._handle(row.key)
            for row in self._access.catalog.select(workflow=name, status=status, limit=limit)
        ]

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

    def _handle(self, key: Key) -> Instance[Any]:
        return Instance(key, self._access, self.queries, self._access.app.definitions.get(key.workflow))

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
