"""What is inferred for workflows, the runtime and instances, in both checkers. Nothing here runs."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, assert_type

import perdure
from perdure import (
    HistoryEntry,
    Instance,
    InstanceStatus,
    Runtime,
    WorkflowEntrypoint,
    WorkflowEvent,
    WorkflowStep,
)


@dataclass
class Query:
    topic: str


@dataclass
class DeepQuery(Query):
    depth: int


@dataclass
class Report:
    title: str


@dataclass
class Env:
    greeting: str


# -- workflows of every shape ----------------------------------------------------------------


class Research(WorkflowEntrypoint[Env]):
    """Everything annotated."""

    async def run(self, event: WorkflowEvent[Query], step: WorkflowStep) -> Report:
        assert_type(self.env, Env)
        assert_type(event.payload, Query)
        assert_type(event.timestamp, datetime)
        return Report(self.env.greeting + event.payload.topic)


class Plain(WorkflowEntrypoint):
    """Neither the environment nor the params are annotated."""

    name = "plain"
    version = "2"
    step_library = "asyncio"

    async def run(self, event: WorkflowEvent, step: WorkflowStep) -> list[Report]:
        assert_type(self.env, Any)
        assert_type(event.payload, Any)
        return []


class NoParams(WorkflowEntrypoint):
    async def run(self, event: WorkflowEvent[None], step: WorkflowStep) -> None: ...


class PerhapsParams(WorkflowEntrypoint):
    async def run(self, event: WorkflowEvent[Query | None], step: WorkflowStep) -> int:
        return 1


class Unsaid(WorkflowEntrypoint):
    async def run(self, event: WorkflowEvent[Query], step: WorkflowStep):  # type: ignore[no-untyped-def]  # tried on purpose
        return Report(event.payload.topic)


# -- creating and finding --------------------------------------------------------------------


async def created(runtime: Runtime) -> None:
    instance = await runtime.create(Research, params=Query("tides"))
    assert_type(instance, Instance[Report])
    assert_type(await instance.result(), Report)
    assert_type(await runtime.create(Research, params=DeepQuery("tides", 2), id="a"), Instance[Report])
    later = await runtime.create(
        Plain, params=1, if_exists="attach", at=datetime(2030, 1, 1, tzinfo=UTC), timeout="1 day"
    )
    assert_type(later, Instance[list[Report]])
    assert_type(await runtime.create(Plain), Instance[list[Report]])
    assert_type(await runtime.create(NoParams, event=("approve", 1), tags=["a"]), Instance[None])
    assert_type(await runtime.create(NoParams, params=None), Instance[None])
    assert_type(await runtime.create(PerhapsParams), Instance[int])
    assert_type(await runtime.create(PerhapsParams, params=Query("tides")), Instance[int])
    assert_type(await runtime.create("Research", params={"topic": "tides"}), Instance[Any])
    await (await runtime.create(Unsaid, params=Query("tides"))).result()


async def found(runtime: Runtime) -> None:
    assert_type(await runtime.get(Research, "a"), Instance[Report])
    assert_type(await (await runtime.get(NoParams, "a")).result(), None)
    assert_type(await runtime.get("Research", "a"), Instance[Any])
    assert_type(await runtime.list(Research, status="complete"), list[Instance[Any]])


async def asked(instance: Instance[Report]) -> None:
    assert_type(await instance.status(), InstanceStatus)
    assert_type(await instance.history(), list[HistoryEntry])
    async for entry in instance.subscribe():
        assert_type(entry, HistoryEntry)
    rows = await instance.sql("SELECT name FROM steps WHERE seq = ?", 1)
    assert_type(rows, list[perdure.Row])
    reports = await instance.sql("SELECT title FROM report", as_=Report, timeout=5)
    assert_type(reports, list[Report])
    async with instance.sql_stream("SELECT name FROM steps") as stream:
        async for row in stream:
            assert_type(row, perdure.Row)


async def commanded(instance: Instance[Report]) -> None:
    assert_type(await instance.send_event("approve", {"by": "Ada"}), None)
    assert_type(await instance.pause(), None)
    assert_type(await instance.resume(), None)
    assert_type(await instance.terminate(), None)


def takes_any(instance: Instance[object]) -> str:
    return instance.id


async def an_instance_of_a_result_is_one_of_a_wider_result(runtime: Runtime) -> None:
    takes_any(await runtime.create(Research, params=Query("tides")))


# -- opening ---------------------------------------------------------------------------------


@asynccontextmanager
async def open_env() -> AsyncGenerator[Env]:
    yield Env("hello")


async def opened() -> None:
    app = perdure.App(workflows=[Research, Plain, Unsaid], env=open_env)
    async with perdure.open_runtime("state", app, durability="process", replay="always") as runtime:
        assert_type(runtime, Runtime)
    async with perdure.open_runtime("state", workflows=[NoParams]) as runtime:
        assert_type(runtime.statistics(), perdure.RuntimeStatistics)
