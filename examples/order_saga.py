"""An order that gives back what it took: a saga, with a compensation written beside each step.

    python examples/order_saga.py
    perdure run examples/order_saga.py:OrderSaga --params '{"article": "kite", "city": "Atlantis"}'

Two orders. The first arrives; the second cannot be delivered, so its payment and its reservation are undone,
last step first, each by a durable step. Kill it at any time and start it again: it goes on where it was.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import msgspec
import trio

from perdure import (
    InstanceFailedError,
    NonRetryableError,
    RollbackContext,
    Runtime,
    WorkflowEntrypoint,
    WorkflowEvent,
    WorkflowStep,
    open_runtime,
)
from perdure.actors.host import Replay


class Order(msgspec.Struct, frozen=True):
    article: str
    city: str


async def reserve(article: str) -> str:
    print(f"  reserve   one {article}", flush=True)
    return f"shelf-7/{article}"


async def release(context: RollbackContext[str]) -> None:
    print(f"  undo      {context.output} is free again", flush=True)


async def charge(article: str) -> int:
    print(f"  charge    30 coins for the {article}", flush=True)
    return 30


async def refund(context: RollbackContext[int]) -> None:
    if context.output is not None:  # None: it was never known whether the charge went through
        print(f"  undo      {context.output} coins go back", flush=True)


async def book_courier(city: str) -> str:
    if city == "Atlantis":
        raise NonRetryableError(f"no road leads to {city}")
    print(f"  courier   on the road to {city}", flush=True)
    return f"courier to {city}"


class OrderSaga(WorkflowEntrypoint):
    async def run(self, event: WorkflowEvent[Order], step: WorkflowStep) -> str:
        order = event.payload
        await step.do("reserve", reserve, order.article, rollback=release)
        await step.do("charge", charge, order.article, rollback=refund)
        await step.sleep("pack", "1 second")
        courier = await step.do("courier", book_courier, order.city)
        return f"{order.article} with the {courier}"


async def place(runtime: Runtime, order: Order) -> None:
    print(f"{order.article} to {order.city}")
    saga = await runtime.create(OrderSaga, params=order, id=f"order-{order.article}", if_exists="attach")
    try:
        print(f"  delivered {await saga.result()}")
    except InstanceFailedError as failed:
        print(f"  failed    {failed.__cause__}")
    rows = await saga.sql(
        "SELECT kind, name, status FROM steps WHERE kind IN ('do', 'rollback') ORDER BY seq"
    )
    print("  record    " + ", ".join(f"{row.kind} {row.name}: {row.status}" for row in rows))


async def main(state: Path, replay: Replay) -> None:
    async with open_runtime(state, workflows=[OrderSaga], replay=replay) as runtime:
        await place(runtime, Order("kettle", "Cork"))
        await place(runtime, Order("kite", "Atlantis"))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Two orders, one of which is undone.")
    parser.add_argument("--state", type=Path, default=Path("state-orders"))
    parser.add_argument("--replay", choices=["warm", "always"], default="warm")
    options = parser.parse_args()
    trio.run(main, options.state, options.replay)
