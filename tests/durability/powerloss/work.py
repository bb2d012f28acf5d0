"""The work that is interrupted: one workflow, and what its run tells the world outside.

Invariants:
    A step returns another value at each run, so that one that ran twice shows.
    What a run tells is told from inside a step function: what it rests on has passed the gate.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import AsyncGenerator, Awaitable, Callable
from functools import partial
from typing import Any, Final, TypeAlias

import msgspec

import perdure
from powerloss.bounds import SMALL, shrink_log

Fact: TypeAlias = dict[str, Any]
SHORT_CHARS: Final = 80
ACKS: Final = "POWERLOSS_ACKS"


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """What one instance is to do: `steps` values in a row; those listed in `waits` come as events.

    Before each of `naps` it sleeps an hour. `chars` is the length of a value that a step returns.
    """

    id: str
    steps: int
    generation: int = 1
    waits: tuple[int, ...] = ()
    naps: tuple[int, ...] = ()
    chars: int = 40


class Witness(msgspec.Struct, frozen=True):
    """The environment of the workflow: where it tells what it does, and who comes by meanwhile."""

    tell: Callable[[Fact], None]
    visit: Callable[[Order, int], Awaitable[None]] | None = None


@contextlib.asynccontextmanager
async def open_witness() -> AsyncGenerator[Witness]:
    """Give each worker a witness of its own; they append to the same file, whose name is in `ACKS`."""
    if SMALL in os.environ:
        shrink_log()
    file = os.open(os.environ[ACKS], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    try:
        yield Witness(lambda fact: tell_into(file, fact))
    finally:
        os.close(file)


def tell_into(file: int, fact: Fact) -> None:
    """Tell one fact to the world: a line of JSON, in one write."""
    os.write(file, json.dumps(fact).encode() + b"\n")


class Job(perdure.WorkflowEntrypoint[Witness]):
    """Carries out an order and returns its values."""

    async def run(self, event: perdure.WorkflowEvent[Order], step: perdure.WorkflowStep) -> list[str]:
        order = event.payload
        values: list[str] = []
        for n in range(order.steps):
            if n in order.naps:
                await step.sleep(f"nap {n}", "1 hour")
            if n in order.waits:
                told = await step.wait_for_event(f"go {n}", type="go", timeout=None, returns=str)
                values.append(told.payload)
            else:
                before = short(values[-1]) if values else ""
                values.append(await step.do(f"step {n}", partial(self.work, order, n, before), retries=1_000))
        return values

    async def work(self, order: Order, n: int, before: str, context: perdure.StepContext) -> str:
        """Tell that step `n` has begun and on which value it builds, and return a new value."""
        began = {"id": order.id, "generation": order.generation, "n": n, "attempt": context.attempt}
        self.env.tell({"what": "began", **began, "before": before})
        if self.env.visit is not None:
            await self.env.visit(order, n)
        mark = f"{order.id}.{order.generation}.{n}."
        return mark + os.urandom(order.chars // 2).hex()[: order.chars - len(mark)]


def event_of(order: Order, n: int) -> str:
    """Return the payload of the event that is the `n`th value of an order."""
    return f"{order.id} is told {n}"


def short(value: str) -> str:
    """Return a text that stands for `value` and is not long."""
    return value if len(value) <= SHORT_CHARS else hashlib.sha256(value.encode()).hexdigest()


def digest(values: list[str]) -> str:
    """Return a text that stands for a whole result."""
    return short("\n".join(values))


def flaw(order: Order, values: list[str], generation: int) -> str | None:
    """Return what is wrong with the result of an order, or None."""
    if len(values) != order.steps:
        return f"{len(values)} values instead of {order.steps}"
    for n, value in enumerate(values):
        expected = event_of(order, n) if n in order.waits else f"{order.id}.{generation}.{n}."
        whole = value == expected if n in order.waits else len(value) == order.chars
        if not whole or not value.startswith(expected):
            return f"value {n} is {value[:60]!r} instead of {expected!r}"
    return None
