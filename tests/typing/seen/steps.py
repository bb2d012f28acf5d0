"""What is inferred for step calls, in both checkers. Nothing here runs."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from datetime import datetime
from typing import Any, assert_type
from uuid import UUID

from perdure import Retries, Sql, StepContext, StepEvent, WorkflowStep, asyncio_step, process_step


@dataclass
class Report:
    title: str


@dataclass
class Approval:
    by: str


# -- step functions of every shape -----------------------------------------------------------


async def fetch(topic: str) -> Report:
    return Report(topic)


async def fetch_by_default(topic: str, depth: int = 1) -> Report:
    return Report(topic * depth)


async def fetch_named(topic: str, *, deep: bool = False) -> Report:
    return Report(f"{topic}{deep}")


async def fetch_last(topic: str, context: StepContext) -> Report:
    return Report(f"{topic}{context.attempt}")


async def fetch_first(context: StepContext, topic: str) -> Report:
    return Report(f"{topic}{context.attempt}")


async def nothing() -> None: ...


def size(number: int) -> bytes:
    return bytes(number)


def size_last(number: int, context: StepContext) -> bytes:
    return bytes(number + context.attempt)


def size_first(context: StepContext, number: int) -> bytes:
    return bytes(number + context.attempt)


def unclear(number: Any) -> Any:
    return number


@asyncio_step
async def on_asyncio(number: int) -> Report:
    return Report(str(number))


@process_step
def in_process(number: int) -> bytes:
    return bytes(number)


class Service:
    async def get(self, number: int) -> Report:
        return Report(str(number))

    def put(self, report: Report) -> int:
        return len(report.title)


# -- do --------------------------------------------------------------------------------------


async def coroutine_functions(step: WorkflowStep, service: Service) -> None:
    assert_type(await step.do("a", fetch, "tides"), Report)
    assert_type(await step.do("a", fetch, "tides", retries=3, timeout="5 seconds", key=1), Report)
    assert_type(await step.do("a", fetch_by_default, "tides"), Report)
    assert_type(await step.do("a", fetch_by_default, "tides", 2), Report)
    assert_type(await step.do("a", fetch_named, "tides", retries=Retries(limit=1)), Report)
    assert_type(await step.do("a", fetch_last, "tides"), Report)
    assert_type(await step.do("a", fetch_first, "tides"), Report)
    assert_type(await step.do("a", nothing), None)
    assert_type(await step.do("a", service.get, 1), Report)
    assert_type(await step.do("a", on_asyncio, 1), Report)
    assert_type(await step.do("a", asyncio_step(fetch), "tides"), Report)


async def plain_functions(step: WorkflowStep, service: Service) -> None:
    assert_type(await step.do("a", size, 1), bytes)
    assert_type(await step.do("a", size_last, 1), bytes)
    assert_type(await step.do("a", size_first, 1), bytes)
    assert_type(await step.do("a", service.put, Report("tides")), int)
    assert_type(await step.do("a", in_process, 1), bytes)
    assert_type(await step.do("a", process_step(size), 1), bytes)
    assert_type(await step.do("a", len, "tides"), int)


async def partials_and_lambdas(step: WorkflowStep) -> None:
    assert_type(await step.do("a", functools.partial(fetch_named, "tides", deep=True)), Report)
    assert_type(await step.do("a", functools.partial(size, 1)), bytes)
    assert_type(await step.do("a", functools.partial(size), 1), bytes)
    assert_type(await step.do("a", lambda: fetch("tides"), retries=2), Report)
    assert_type(await step.do("a", lambda: len("tides")), int)


async def returns_replaces_the_annotation(step: WorkflowStep) -> None:
    assert_type(await step.do("a", unclear, 1, returns=Report), Report)
    assert_type(await step.do("a", unclear, 1, returns=list[Report]), list[Report])
    assert_type(await step.do("a", unclear, 1, returns=Report | None), Any)
    assert_type(await step.map("a", unclear, [1], returns=Report), list[Report])
    assert_type(await step.transaction("a", unclear, returns=Report), Report)


async def declared(step: WorkflowStep) -> None:
    @step.do("load", retries=2)
    async def load(number: int, _name: str) -> Report:
        return Report(str(number))

    @step.do()
    async def load_last(number: int, _context: StepContext) -> Report:
        return Report(str(number))

    @step.do()
    async def load_first(_context: StepContext, number: int) -> Report:
        return Report(str(number))

    @step.do("measure")
    def measure(number: int) -> bytes:
        return bytes(number)

    @step.do("measure first")
    def measure_first(_context: StepContext, number: int) -> bytes:
        return bytes(number)

    @step.do("both", concurrent=True, heartbeat_timeout="5 seconds", was=("each", "all"))
    async def both(load_last: Report, measure: bytes) -> tuple[Report, bytes]:
        return load_last, measure

    assert_type(await both(), tuple[Report, bytes])
    assert_type(await step.patched("another way"), bool)
    assert_type(await load(1, "tides"), Report)
    assert_type(await load_last(1), Report)
    assert_type(await load_first(1), Report)
    assert_type(await measure(1), bytes)
    assert_type(await measure_first(1), bytes)


# -- parallel parts --------------------------------------------------------------------------


async def mapped(step: WorkflowStep) -> None:
    assert_type(await step.map("a", fetch, ["tides"]), list[Report])
    assert_type(await step.map("a", fetch_by_default, ["tides"], limit=3), list[Report])
    assert_type(await step.map("a", fetch_last, ["tides"], retries=1), list[Report])
    assert_type(await step.map("a", fetch_first, ["tides"]), list[Report])
    assert_type(await step.map("a", size, range(3)), list[bytes])
    assert_type(await step.map("a", size_last, [1]), list[bytes])
    assert_type(await step.map("a", size_first, [1]), list[bytes])
    assert_type(await step.map("a", on_asyncio, [1]), list[Report])
    assert_type(await step.map("a", lambda number: number + 1, [1]), list[int])


async def gathered(step: WorkflowStep) -> None:
    one, two = step.do("one", fetch, "tides"), step.do("two", fetch, "moon")
    assert_type(await step.gather("a", {"one": one, "two": two}), dict[str, Report])
    assert_type(await step.gather("a", {"one": nothing, "two": nothing}), dict[str, None])
    assert_type(
        await step.gather("a", {name: functools.partial(fetch, name) for name in "xy"}), dict[str, Report]
    )
    assert_type(await step.gather("a", {"one": lambda: fetch("x")}), dict[str, Report])
    assert_type(await step.gather("a", {"one": lambda: len("x")}), dict[str, int])
    # Parts of several kinds have no one type; they are accepted.
    await step.gather("a", {"one": step.do("three", fetch, "x"), "two": step.do("four", size, 1)})
    await step.gather("a", {"one": step.do("five", fetch, "x"), "two": functools.partial(size, 1)})


async def raced(step: WorkflowStep) -> None:
    one, two = step.do("one", fetch, "tides"), step.do("two", fetch, "moon")
    assert_type(await step.race("a", {"one": one, "two": two}), tuple[str, Report])
    assert_type(await step.race("a", {"x": functools.partial(fetch, "x")}), tuple[str, Report])
    who, _ = await step.race("a", {"nap": step.sleep("nap", 5), "work": functools.partial(fetch, "x")})
    assert_type(who, str)


# -- waiting and instant ---------------------------------------------------------------------


async def waits(step: WorkflowStep) -> None:
    assert_type(await step.sleep("a", "5 seconds"), None)
    anything = await step.wait_for_event("a", type="approve")
    assert_type(anything, StepEvent[Any])
    approval = await step.wait_for_event("a", type="approve", timeout=None, returns=Approval)
    assert_type(approval, StepEvent[Approval])
    assert_type(approval.payload, Approval)
    assert_type(approval.timestamp, datetime)
    chosen = await step.wait_for_event("a", type="approve", where=is_from_ada, returns=Approval)
    assert_type(chosen.payload, Approval)
    maybe = await step.wait_for_event("a", type="approve", returns=Approval | None)
    assert_type(maybe, StepEvent[Any])


def is_from_ada(approval: Approval) -> bool:
    return approval.by == "Ada"


async def instants(step: WorkflowStep) -> None:
    assert_type(await step.now(), datetime)
    assert_type(await step.random("dice"), float)
    assert_type(await step.uuid(key=1), UUID)
    async with step.move_on_after("a", "1 minute") as scope:
        await step.sleep("b", 5)
    assert_type(scope.expired, bool)


def debit(sql: Sql, amount: int) -> int:
    sql.exec("UPDATE account SET balance = balance - ?", amount)
    return amount


async def transactions(step: WorkflowStep) -> None:
    assert_type(await step.transaction("a", debit, 10), int)
    assert_type(await step.transaction("a", lambda sql: sql.exec("SELECT 1").one(), key=1), dict[str, Any])
