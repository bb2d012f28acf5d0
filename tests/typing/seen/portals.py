"""What is inferred through the portal: calls keep their types, in both checkers. Nothing here runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, assert_type

from perdure import HistoryEntry, Instance, Row, Runtime, WorkflowEntrypoint, WorkflowEvent, WorkflowStep
from perdure.portal import AsyncioPortal, ThreadPortal, in_thread, on_asyncio


@dataclass
class Query:
    topic: str


@dataclass
class Report:
    title: str


class Research(WorkflowEntrypoint):
    async def run(self, event: WorkflowEvent[Query], step: WorkflowStep) -> Report:
        return Report(event.payload.topic)


class NoParams(WorkflowEntrypoint):
    async def run(self, event: WorkflowEvent[None], step: WorkflowStep) -> int:
        return 1


async def from_asyncio() -> None:
    async with on_asyncio("state", workflows=[Research, NoParams], durability="process") as p:
        assert_type(p, AsyncioPortal[Runtime])
        instance = await p(p.runtime.create, Research, params=Query("tides"), id="tides-1")
        assert_type(instance, Instance[Report])
        assert_type(await p(instance.result), Report)
        assert_type(await p(p.runtime.create, NoParams), Instance[int])
        assert_type(await p(p.runtime.create, "Research", params={"topic": "tides"}), Instance[Any])
        assert_type(await p(p.runtime.get, Research, "tides-1"), Instance[Report])
        assert_type(await p(instance.sql, "SELECT name FROM steps"), list[Row])
        async for entry in p.iterate(instance.subscribe, after=3):
            assert_type(entry, HistoryEntry)
        async for row in p.iterate(instance.sql_stream, "SELECT name FROM steps"):
            assert_type(row, Row)


def from_threads() -> None:
    with in_thread("state", workflows=[Research]) as p:
        assert_type(p, ThreadPortal[Runtime])
        instance = p(p.runtime.create, Research, params=Query("tides"))
        assert_type(instance, Instance[Report])
        assert_type(p(instance.result), Report)
        assert_type(p(instance.send_event, "approve", payload=1), None)
        for entry in p.iterate(instance.subscribe):
            assert_type(entry, HistoryEntry)
