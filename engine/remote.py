"""A state folder from outside: commands and questions of a process that runs nothing there.

A command is always a row of the folder's inbox. Whoever owns the folder carries it out; where
nobody does, this process takes the folder for as long as that takes. So a command is carried out
in one way only, and one whose owner died before replying is taken over: its token makes it happen
exactly once.

Reading never gets ahead of the disk (law 2): a live owner is asked to sync before its files are
read; where nobody owns the folder its lock is held while they are.

Invariants:
    A command is acknowledged after its effect is durable.
    This process runs no workflow, whatever it takes over: it knows classes only to check params.
    The catalog's connection here never checkpoints.
"""

from __future__ import annotations

import contextlib
import difflib
import os
import uuid
from collections.abc import AsyncGenerator, Sequence
from datetime import datetime
from typing import Any, Final, get_args

import msgspec
import trio

from perdure import errors
from perdure.actors.retention import Retention, stored_retention
from perdure.engine.app import App
from perdure.engine.births import IfExists, random_id
from perdure.engine.bulk import PLAIN, BulkCommand, BulkOptions, BulkReport, Selection
from perdure.engine.clock import SystemClock
from perdure.engine.folder import StateFolder
from perdure.engine.inbox import BatchBody, BatchLine, BulkBody, CallBody, CreateBody, EventBody, ring
from perdure.engine.opening import open_runtime
from perdure.engine.reader import Reader, file_signature
from perdure.engine.recovery import settle_logs
from perdure.engine.schedules import ScheduleStatus, missing, resolve, statuses
from perdure.engine.status import InstanceStatus, status_at_rest
from perdure.engine.visitor import Visitor
from perdure.errors import (
    AmbiguousInstanceError,
    CommandError,
    InstanceNotFoundError,
    PerdureError,
    StateLockedError,
    UnknownWorkflowError,
)
from perdure.storage.catalog import Catalog
from perdure.storage.catalog_file import open_catalog
from perdure.storage.disk import Disk
from perdure.storage.locks import FolderLock
from perdure.storage.names import check_event_type, check_instance_id
from perdure.storage.peek import bring_to_rest
from perdure.storage.query import QueryHost, open_query_host
from perdure.storage.records import CatalogRow, Key, Message, Reply, Status
from perdure.storage.removals import DELETING
from perdure.storage.rows import Row, UnitedRows
from perdure.storage.writer import write_now

STATUSES: Final[tuple[str, ...]] = get_args(Status)
ENDED: Final = frozenset({"complete", "errored", "terminated", "dead"})
"""Statuses that nothing but a command changes."""
REPLY_TIMEOUT_S: Final = 60.0
"""How long an owner may take: `terminate` waits for step functions under way."""
POLL_S: Final = 0.02
LATEST: Final = "latest"
RING_EVERY: Final = 25
"""Looks for a reply between two rings of the doorbell, which may get lost with an owner."""
CHANGE_POLL_S: Final = 0.1


@contextlib.asynccontextmanager
async def open_remote(
    path: str | os.PathLike[str], *, known: App | None = None, make: bool = False
) -> AsyncGenerator[Remote, None]:
    """Open the state folder `path` from outside; with `make` it is made where it is missing.

    `known` are the classes by which the params of `create` are checked where nobody owns the
    folder. Raises `StateUnusableError` and `StateVersionError`.
    """
    folder = StateFolder(path)
    if not make:
        folder.require()
    folder.prepare()
    catalog = Catalog(open_catalog(folder.catalog, checkpointer=False, create=make))
    try:
        async with open_query_host() as queries:
            yield Remote(folder, catalog, queries, known or App())
    finally:
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(catalog.close)


class Remote:
    """A state folder from outside. Made by `open_remote`."""

    def __init__(self, folder: StateFolder, catalog: Catalog, queries: QueryHost, known: App) -> None:
        self.folder = folder
        self._catalog = catalog
        self._queries = queries
        self._known = known
        self._clock = SystemClock()

    # -- finding ---------------------------------------------------------------------------

    def owner(self) -> int | None:
        """Return the process that owns the folder (0 where it is unknown), or None."""
        return FolderLock.holder(self.folder.lock)

    def rows(
        self,
        *,
        workflow: str | None = None,
        status: str | None = None,
        parent: str | None = None,
        limit: int | None = None,
    ) -> list[CatalogRow]:
        """Return what the catalog knows of instances, newest first; `parent` is `Workflow/id`."""
        return self._catalog.select(workflow=workflow, status=status, parent=parent, limit=limit)

    def schedules(self) -> list[ScheduleStatus]:
        """Return every schedule of the folder."""
        return statuses(self._catalog, self._clock.wall_ms())

    def schedule_key(self, name: str) -> Key:
        """Return the schedule that `Workflow/id`, or an id alone, names. Raises `InvalidArgumentError`."""
        return resolve(self._catalog, name).key

    def planned(self, schedule: str, start: datetime, end: datetime) -> list[Key]:
        """Return what a backfill would create. Raises `InvalidArgumentError`."""
        return missing(self._catalog, schedule, start, end)

    def why_queued(self, row: CatalogRow) -> str | None:
        """Return what a queued instance waits for, where that is a place."""
        return self._catalog.moves.places.why(row)

    def find(self, key: Key) -> CatalogRow | None:
        """Return the catalog's row of an instance, or None."""
        return self._catalog.find(key)

    def resolve(self, text: str) -> Key:
        """Return the instance that `Workflow/id`, or an id alone, names.

        The id `latest`, where no instance has it, is that of the newest instance there is.

        Raises `AmbiguousInstanceError`, which lists the candidates, and `InstanceNotFoundError`.
        """
        workflow, slash, instance_id = text.partition("/")
        if slash and self._catalog.find(Key(workflow, instance_id)) is not None:
            return Key(workflow, instance_id)
        rows = [row for row in self._catalog.find_id(text) if row.open != DELETING]
        if len(rows) == 1:
            return rows[0].key
        if rows:
            names = [str(row.key) for row in rows]
            raise AmbiguousInstanceError(
                f"{text!r} is the id of {len(names)} instances: say {' or '.join(names)}",
                instance_id=text,
                candidates=names,
            )
        if (instance_id if slash else text) == LATEST:
            newest = self._catalog.select(workflow=workflow if slash else None, limit=1)
            if newest:
                return newest[0].key
        raise InstanceNotFoundError(
            f"there is no instance {text} in {self.folder.root}{self._alike(text)}; `perdure list` shows"
            " those there are",
            instance_id=text,
        )

    def _alike(self, text: str) -> str:
        names = [str(row.key) for row in self._catalog.select(limit=1_000)]
        names += [name.partition("/")[2] for name in names]
        alike = difflib.get_close_matches(text, names, n=1)
        return f"; did you mean {alike[0]}?" if alike else ""

    # -- commanding ------------------------------------------------------------------------

    async def create(
        self,
        workflow: str,
        *,
        params: str | None,
        instance_id: str | None = None,
        if_exists: IfExists = "fail",
        at_ms: int | None = None,
        run_timeout_s: float | None = None,
        tags: list[str] | None = None,
        event: EventBody | None = None,
        retention: Retention | None = None,
        priority: int = 0,
        who: str | None = None,
        timeout_s: float = REPLY_TIMEOUT_S,
    ) -> Key:
        """Create an instance; `params` are JSON text. It starts once a process runs its workflow.

        The other options are those of `Runtime.create`; `timeout_s` is how long its owner may take.

        Raises what `Runtime.create` raises.
        """
        key = Key(workflow, instance_id if instance_id is not None else random_id(self._clock))
        check_instance_id(key.id)
        if self.owner() is None:
            self._known.definition(workflow)
        body = CreateBody(
            params=params, if_exists=if_exists, at_ms=at_ms, timeout_s=run_timeout_s, tags=tags, event=event,
            retention=None if retention is None else stored_retention(retention), priority=priority,
        )  # fmt: skip
        await self.command(key, "create", body, who=who, timeout_s=timeout_s)
        return key

    async def create_batch(
        self, workflow: str, entries: list[BatchLine], *, timeout_s: float = REPLY_TIMEOUT_S
    ) -> list[str]:
        """Create instances in one transaction and return the ids of those that did not exist.

        Raises what `Runtime.create_batch` raises.
        """
        if self.owner() is None:
            self._known.definition(workflow)
        body = BatchBody(entries=entries)
        answer = await self.command(Key(workflow, ""), "create-batch", body, timeout_s=timeout_s)
        return msgspec.json.decode(answer or "[]", type=list[str])

    async def send_event(
        self,
        key: Key,
        type_: str,
        payload: str,
        *,
        who: str | None = None,
        timeout_s: float = REPLY_TIMEOUT_S,
    ) -> str | None:
        """Send an event; `payload` is JSON text. It stands in the instance's file when this returns."""
        check_event_type(type_)
        body = EventBody(type=type_, payload=payload)
        return await self.command(key, "send-event", body, who=who, timeout_s=timeout_s)

    async def restart(
        self,
        key: Key,
        origin: BulkOptions,
        *,
        who: str | None = None,
        timeout_s: float = REPLY_TIMEOUT_S,
    ) -> str | None:
        """Restart an instance. Raises what `Instance.restart` raises."""
        return await self.command(key, "restart", origin, who=who, timeout_s=timeout_s)

    async def select(self, chosen: Selection) -> list[Key]:
        """Return the names of the instances that meet a condition, oldest first. Raises `QueryError`."""
        query, values = chosen.query()
        rows = await self._queries.fetch(self.folder.catalog, query, values, timeout_s=REPLY_TIMEOUT_S)
        return [Key(row["workflow"], row["id"]) for row in rows]

    async def give_all(
        self,
        keys: Sequence[Key],
        command: BulkCommand,
        *,
        options: BulkOptions = PLAIN,
        who: str | None = None,
        timeout_s: float = REPLY_TIMEOUT_S,
    ) -> BulkReport:
        """Give a command to many instances, in one message, and return the report on all of them."""
        options.origin.check()
        body = BulkBody(command=command, instances=[(key.workflow, key.id) for key in keys], options=options)
        answer = await self.command(Key("", ""), "bulk", body, who=who, timeout_s=timeout_s)
        return msgspec.json.decode(answer or "{}", type=BulkReport)

    async def call(
        self,
        key: Key,
        method: str,
        given: list[Any] | dict[str, Any],
        *,
        who: str | None = None,
        timeout_s: float = REPLY_TIMEOUT_S,
    ) -> str:
        """Call a method of an instance that a process runs, and return its result as JSON text.

        `given` are JSON values: arguments in order, or by name. Raises `CommandError` with what it raised.
        """
        raw = {"method": method, "args" if isinstance(given, list) else "kwargs": given}
        body = msgspec.json.decode(msgspec.json.encode(raw), type=CallBody)
        return await self.command(key, "call", body, who=who, timeout_s=timeout_s) or "null"

    async def command(
        self,
        key: Key,
        command: str,
        body: msgspec.Struct | None = None,
        *,
        who: str | None = None,
        timeout_s: float = REPLY_TIMEOUT_S,
        token: str | None = None,
    ) -> str | None:
        """Have a command carried out and return its answer, once its effect is durable.

        A `token` that was used before makes it the same command, which happens only once.
        Raises what it raises where it is carried out, and `CommandError` where the owner has not
        done it after `timeout_s`.
        """
        token = await self._post(key, command, body, who, token or uuid.uuid4().hex)
        with trio.move_on_after(timeout_s):
            while True:
                reply = await self._reply(token) or await self._take_over(token)
                if reply is not None:
                    return _value(reply)
        raise CommandError(
            f"process {self.owner()}, which owns {self.folder.root}, has not carried out {command!r} within"
            f" {timeout_s:g} s: it stands in its inbox and takes effect as soon as that gets to it"
        )

    async def _post(
        self, key: Key, command: str, body: msgspec.Struct | None, who: str | None, token: str
    ) -> str:
        message = Message(
            seq=0,
            token=token,
            workflow=key.workflow,
            id=key.id,
            command=command,
            body=None if body is None else msgspec.json.encode(body).decode(),
            actor=who,
        )
        at_ms = self._clock.wall_ms()
        await trio.to_thread.run_sync(
            lambda: write_now(
                self._catalog,
                lambda catalog: catalog.posts.post(message, at_ms=at_ms),
                path=self.folder.catalog,
            )
        )
        return message.token

    async def _reply(self, token: str) -> Reply | None:
        """Wait for the owner's reply; None once nobody owns the folder."""
        looks = 0
        while True:
            reply = self._catalog.posts.reply(token)
            if reply is not None:
                return reply
            if looks % RING_EVERY == 0:
                if self.owner() is None:
                    return self._catalog.posts.reply(token)  # it may have come with the owner's last breath
                ring(self.folder.doorbell)
            looks += 1
            await trio.sleep(POLL_S)

    async def _take_over(self, token: str) -> Reply | None:
        """Own the folder until the command is carried out; None where another process was quicker."""
        visitor = Visitor(self._known)
        with contextlib.suppress(StateLockedError):
            async with open_runtime(self.folder.root, visitor):
                while True:
                    reply = self._catalog.posts.reply(token)
                    if reply is not None:
                        return reply
                    await trio.sleep(POLL_S / 4)
        return None

    # -- asking ----------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def read(self, key: Key) -> AsyncGenerator[Reader, None]:
        """Keep an instance's file fit for reading while inside: still, or synced by its owner.

        Raises `InstanceNotFoundError`.
        """
        path = self.folder.instance(key)
        lock, answer = await self._hold_or_sync(key)
        try:
            row = self._require(key)
            whole = lock is not None and await trio.to_thread.run_sync(bring_to_rest, path)
            if answer:
                status = msgspec.json.decode(answer, type=InstanceStatus)
            else:
                status = await trio.to_thread.run_sync(status_at_rest, row, path)
            yield Reader(row, status, path, self._queries, owned=lock is None, immutable=whole)
        finally:
            with trio.CancelScope(shield=True):
                if lock is None:  # a closed file that was read has side files now
                    await trio.to_thread.run_sync(bring_to_rest, path)
                else:
                    lock.release()

    async def make_file(self, key: Key) -> None:
        """Have an instance that nothing has started yet get its file, so that it can be asked."""
        if self._require(key).birth is not None and not self.folder.instance(key).exists():
            await self.command(key, "open")

    async def read_all(
        self, workflow: str, query: str, *, timeout_s: float, reveal: bool = False
    ) -> UnitedRows:
        """Run one reading statement over every instance of a workflow and unite the rows.

        Raises `UnknownWorkflowError`, and what `QueryHost.fetch_all` raises.
        """
        rows = self.rows(workflow=workflow)
        if not rows:
            known = ", ".join(sorted({row.workflow for row in self.rows()})) or "none"
            raise UnknownWorkflowError(
                f"no instance of {workflow!r} is in {self.folder.root}; it holds: {known}"
            )
        paths = [(row.id, self.folder.instance(row.key)) for row in reversed(rows)]
        there = [(id_, path) for id_, path in paths if path.exists()]
        lock, _ = await self._hold_or_sync(Key(workflow, ""))
        try:
            files = [(id_, path, lock is not None and bring_to_rest(path)) for id_, path in there]
            return await self._queries.fetch_all(files, query, timeout_s=timeout_s, reveal=reveal)
        finally:
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(lambda: [bring_to_rest(path) for _, path in there])
            if lock is not None:
                lock.release()

    async def read_catalog(self, query: str, *, timeout_s: float) -> list[Row]:
        """Run one reading statement over the catalog, which is always synced."""
        return await self._queries.fetch(self.folder.catalog, query, timeout_s=timeout_s)

    async def changes(self, key: Key) -> AsyncGenerator[None, None]:
        """Yield at once, and then whenever something of the instance may have changed."""
        seen: object = None
        while True:
            row = self._require(key)
            now = (
                row.status,
                row.reason,
                row.incarnation,
                self.owner(),
                file_signature(self.folder.instance(key)),
            )
            if now != seen:
                seen = now
                yield
            else:
                await trio.sleep(CHANGE_POLL_S)

    def _require(self, key: Key) -> CatalogRow:
        row = self._catalog.find(key)
        if row is None or row.open == DELETING:
            raise InstanceNotFoundError(
                f"there is no instance {key} in {self.folder.root}", workflow=key.workflow, instance_id=key.id
            )
        return row

    def _hold(self) -> FolderLock:
        """Take the folder's lock, and bring its files to what a dead owner's log says. Runs off the loop."""
        lock = FolderLock.acquire(self.folder.lock)
        try:
            settle_logs(self.folder, self._clock.boot, self._catalog, Disk())
        except BaseException:
            lock.release()
            raise
        return lock

    async def _hold_or_sync(self, key: Key) -> tuple[FolderLock | None, str | None]:
        """Take the folder's lock, or have its owner sync the instance and say where it stands."""
        with trio.move_on_after(REPLY_TIMEOUT_S):
            while True:
                if self.owner() is None:
                    with contextlib.suppress(StateLockedError):
                        return await trio.to_thread.run_sync(self._hold), None
                reply = await self._reply(await self._post(key, "sync", None, None, uuid.uuid4().hex))
                if reply is not None:
                    return None, _value(reply)
        raise CommandError(
            f"process {self.owner()}, which owns {self.folder.root}, has not answered within"
            f" {REPLY_TIMEOUT_S:g} s, so what is in its files may not be shown yet: is it stopped?"
        )


def _value(reply: Reply) -> str | None:
    """Return a reply's value, or raise the error that it brings."""
    if reply.ok:
        return reply.value
    cls = getattr(errors, reply.error or "", CommandError)
    if isinstance(cls, type) and issubclass(cls, PerdureError):
        with contextlib.suppress(TypeError):  # a class that wants more than a text
            raise cls(reply.message)
    raise CommandError(reply.message)
