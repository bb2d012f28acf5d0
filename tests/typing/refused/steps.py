"""Wrong step calls: each line marked E is an error in both checkers, no other line is. Nothing runs."""

from __future__ import annotations

import functools

from perdure import Retries, Sql, StepContext, WorkflowStep


async def fetch(topic: str) -> int:
    return len(topic)


async def fetch_last(topic: str, context: StepContext) -> int:
    return len(topic) + context.attempt


def size(number: int) -> bytes:
    return bytes(number)


def size_first(context: StepContext, number: int) -> bytes:
    return bytes(number + context.attempt)


def debit(_sql: Sql, amount: int) -> int:
    return amount


async def called(step: WorkflowStep) -> None:
    await step.do("a", fetch, 1)  # E: the argument is a text
    await step.do("a", fetch)  # E: it misses its argument
    await step.do("a", fetch, "x", "y")  # E: it has one too many
    await step.do("a", fetch("x"))  # E: the function is called already
    await step.do("a", fetch_last, 1)  # E: the argument beside the context is a text
    await step.do("a", size, "x")  # E: the argument is a number
    await step.do("a", size_first, "x")  # E: the argument behind the context is a number
    await step.do(fetch, "x")  # E: it has no name
    await step.do("a", fetch, "x", retry=1)  # E: the option is called retries
    await step.do("a", fetch, "x", topic="x")  # E: keyword arguments go through partial
    await step.do("a", fetch, "x", retries="five")  # E: it is a number, or a Retries
    await step.do("a", fetch, "x", sensitive="all")  # E: it is input, output or both
    await step.do("a", fetch, "x", retries=Retries(backoff="slow"))  # E: there is no such backoff


async def used(step: WorkflowStep) -> object:
    text: str = await step.do("a", fetch, "x")  # E: the result is a number
    number: int = step.do("a", fetch, "x")  # E: it is not awaited
    texts: list[str] = await step.map("a", size, [1, 2])  # E: the results are bytes
    return text, number, texts


async def declared(step: WorkflowStep) -> None:
    @step.do("load")
    async def load(number: int, _context: StepContext) -> str:
        return str(number)

    await load("x")  # E: the argument is a number
    await load(1, 2)  # E: the runtime puts the context in
    await step.do("a", fetch, "x", was=3)  # E: it is a name, or a tuple of names
    await step.do("a", fetch, "x", heartbeat_timeout=[])  # E: it is a duration


async def parallel(step: WorkflowStep) -> None:
    await step.map("a", fetch, [1, 2])  # E: the items are texts
    await step.map("a", size, ["x"])  # E: the items are numbers
    await step.map("a", size, [1], key="x")  # E: map names its parts itself
    await step.gather("a", {"one": 1})  # E: a part is a call or a function
    await step.gather("a", {1: functools.partial(size, 1)})  # E: the keys are texts
    await step.race("a", {"one": fetch})  # E: a part takes no arguments
    await step.race("a", [functools.partial(size, 1)])  # E: parts have keys


async def waits(step: WorkflowStep) -> None:
    await step.sleep("a")  # E: for how long
    await step.sleep("a", [5])  # E: this is no duration
    await step.sleep_until("a", "tomorrow")  # E: this is no datetime
    await step.wait_for_event("a", "approve")  # E: type goes by name
    await step.wait_for_event("a")  # E: it misses its type


async def transactions(step: WorkflowStep) -> None:
    await step.transaction("a", debit, "x")  # E: the amount is a number
    await step.transaction("a", debit)  # E: it misses the amount
    await step.transaction("a", size, 1)  # E: it takes no Sql
