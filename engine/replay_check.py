"""The replay check: what would changed code make of the instances that are under way?

Each instance's file is copied as it is at that moment, also while another process runs it, and `run()`
is called over the copy (`actors/rehearsal.py`). No step runs and nothing is changed. For
`perdure check` and for tests. One instance is in memory at a time.
"""

from __future__ import annotations

import os
from collections.abc import AsyncGenerator
from typing import Any

import msgspec
import trio

from perdure.actors.functions import open_function_host
from perdure.actors.host import Host
from perdure.actors.rehearsal import Divergence, NoChildren, NoTimers, Rehearsal, closed_gate
from perdure.actors.workflow import Definition
from perdure.engine.app import App
from perdure.engine.bulk import Selection
from perdure.engine.clock import SystemClock
from perdure.engine.remote import Remote, open_remote
from perdure.engine.runtime import Runtime
from perdure.errors import DecodingError, InstanceNotFoundError, PerdureError
from perdure.storage.codec import Codec
from perdure.storage.copies import copied
from perdure.storage.records import FINISHED, CatalogRow, Key, Status

__all__ = ["Divergence", "ReplayReport", "replay_check", "replay_reports"]


class ReplayReport(msgspec.Struct, frozen=True, kw_only=True):
    """What the code makes of one instance: nothing in `found` means that it agrees with the records."""

    workflow: str
    id: str
    status: Status
    version: str | None
    found: tuple[Divergence, ...]

    @property
    def instance(self) -> str:
        """The instance as the command line names it."""
        return f"{self.workflow}/{self.id}"


async def replay_check(
    where: str | os.PathLike[str] | Runtime, app: App, *, workflow: str | None = None, finished: bool = False
) -> list[ReplayReport]:
    """Replay every instance under way against the code of `app`; return those that do not agree.

    `where` is a state folder, or a runtime that has one open. `workflow` looks at one only, `finished`
    also at those that have ended. No step runs and nothing is changed. Raises `StateUnusableError`.
    """
    path = where.path if isinstance(where, Runtime) else where
    selection = Selection(workflow=workflow)
    reports = [report async for report in replay_reports(path, app, selection, finished=finished)]
    return [report for report in reports if report.found]


async def replay_reports(
    path: str | os.PathLike[str], app: App, selection: Selection, *, finished: bool = False
) -> AsyncGenerator[ReplayReport]:
    """Yield a report for each selected instance of the app's classes, oldest first."""
    async with (
        open_remote(path) as remote,
        app.open_env() as env,
        open_function_host(threads_max=1, processes_max=1) as functions,
    ):
        host = _host(app, functions)
        for key in await remote.select(selection):
            row = remote.find(key)
            definition = app.definitions.get(key.workflow)
            if row is None or definition is None or row.archived is not None:
                continue
            if finished or row.status not in FINISHED:
                report = await _look(remote, key, definition, host, env)
                if report is not None:
                    yield report


def _host(app: App, functions: Any) -> Host:  # of `Functions`: nothing of it is ever called
    children: Any = NoChildren(app.definition)
    return Host(
        clock=SystemClock(), timers=NoTimers(), gate=closed_gate(), codec=Codec(app.hooks),
        functions=functions, limits=app.limits, replay="warm", children=children,
    )  # fmt: skip


async def _look(
    remote: Remote, key: Key, definition: Definition, host: Host, env: Any
) -> ReplayReport | None:
    row = remote.find(key)
    if row is None:
        return None
    status = row.status
    try:
        async with remote.read(key) as reader:
            row, status = reader.row, reader.status.status
            if reader.has_file:
                with copied(reader.path, immutable=reader.immutable) as file:
                    found = await Rehearsal(definition, file, host, env).play()
            else:
                found = _params(row, definition, host)
    except InstanceNotFoundError:  # deleted meanwhile
        return None
    except PerdureError as error:
        found = [Divergence(what="error", level="error", text=f"{key} cannot be read: {error}")]
    await trio.lowlevel.checkpoint()
    return ReplayReport(
        workflow=key.workflow, id=key.id, status=status, version=row.version, found=tuple(found)
    )


def _params(row: CatalogRow, definition: Definition, host: Host) -> list[Divergence]:
    """Look at an instance that nothing has started yet: all there is of it is its params."""
    try:
        host.codec.coder(definition.params).decode(row.params or "null")
    except DecodingError as error:
        text = f"run() of {row.key} cannot be called with its params: {error}"
        return [Divergence(what="params", level="error", text=text, requested=str(error))]
    return []
