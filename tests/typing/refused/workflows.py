"""Wrong params and results: each line marked E is an error in both checkers, no other is. Nothing runs."""

from __future__ import annotations

from dataclasses import dataclass

from perdure import Instance, Runtime, WorkflowEntrypoint, WorkflowEvent, WorkflowStep, open_runtime
from perdure.portal import AsyncioPortal, ThreadPortal, in_thread


@dataclass
class Query:
    topic: str


@dataclass
class Env:
    greeting: str


class Research(WorkflowEntrypoint[Env]):
    async def run(self, event: WorkflowEvent[Query], step: WorkflowStep) -> int:
        self.env.greeting = event.payload.title  # E: a Query has no title
        return self.env.depth  # E: neither has the Env a depth


class NoParams(WorkflowEntrypoint):
    async def run(self, event: WorkflowEvent[None], step: WorkflowStep) -> str:
        return event.instance  # E: an event has an instance_id


class NotAsync(WorkflowEntrypoint):
    def run(self, event: WorkflowEvent[None], step: WorkflowStep) -> str:
        return "x"


class NoWorkflow:
    pass


async def created(runtime: Runtime) -> None:
    await runtime.create(Research)  # E: it misses its params
    await runtime.create(Research, params=None)  # E: they are a Query
    await runtime.create(Research, params="tides")  # E: they are a Query
    await runtime.create(Research, params={"topic": "tides"})  # E: they are a Query
    await runtime.create(Research, Query("tides"))  # E: params go by name
    await runtime.create(NoParams, params=Query("tides"))  # E: it takes none
    await runtime.create(NoWorkflow)  # E: this is none
    await runtime.create(NotAsync)  # E: its run is no coroutine function
    await runtime.create(NoParams, id=5)  # E: an id is a text
    await runtime.create(NoParams, if_exists="ignore")  # E: fail, attach or restart
    await runtime.create(NoParams, at="tomorrow")  # E: a point in time is a datetime
    runtime.create(NoParams).result()  # E: it is not awaited


async def used(runtime: Runtime, instance: Instance[int]) -> object:
    text: str = await instance.result()  # E: the result is a number
    other: Instance[str] = await runtime.get(Research, "a")  # E: the result is a number
    await instance.send_event("approve", token=1)  # E: a token is a text
    rows: list[Query] = await instance.sql("SELECT 1")  # E: rows are Row without as_
    return text, other, rows


async def through_portals(on_loop: AsyncioPortal[Runtime], off_loop: ThreadPortal[Runtime]) -> object:
    await on_loop(on_loop.runtime.create, Research, params="tides")  # E: they are a Query
    off_loop(off_loop.runtime.create, Research, params=5)  # E: they are a Query
    off_loop(off_loop.runtime.create, NoParams, name="x")  # E: there is no such option
    text: str = off_loop(off_loop.runtime.get, Research, "a")  # E: this is an instance
    return text


async def opened() -> None:
    open_runtime("state", workflows=[Research], durability="disk")  # E: full or process
    open_runtime("state", workflows=[Research], threads=5)  # E: there is no such option
    in_thread("state", workflows=[Research], replay="never")  # E: warm or always
    in_thread("state", wrkflows=[Research])  # E: there is no such option
