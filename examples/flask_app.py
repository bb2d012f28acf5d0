"""A web service on Flask, whose views are plain functions in threads, and whose orders are workflows.

Needs flask. Start it, place an order, approve it, wait for it:

    python examples/flask_app.py --state state-flask --port 8000
    curl -X POST localhost:8000/orders/7 --json '{"article": "kettle", "count": 2}'
    curl -X POST localhost:8000/orders/7/approval --json '{"by": "Ada"}'
    curl localhost:8000/orders/7

Kill it at any time and start it again: orders go on where they were, and one that waits for its approval
waits on. A Django view calls the portal in the same way.
"""

from __future__ import annotations

import argparse
import signal
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from flask import Flask, request
from werkzeug.serving import make_server

from perdure import (
    App,
    EventTimeoutError,
    InstanceExistsError,
    InstanceNotFoundError,
    Runtime,
    WorkflowEntrypoint,
    WorkflowEvent,
    WorkflowStep,
)
from perdure.portal import ThreadPortal, in_thread


@dataclass
class Order:
    article: str
    count: int


@dataclass
class Approval:
    by: str


@dataclass
class Receipt:
    text: str
    approved_by: str | None


class Checkout(WorkflowEntrypoint):
    async def run(self, event: WorkflowEvent[Order], step: WorkflowStep) -> Receipt:
        amount = await step.do("price", price, event.payload)
        try:
            approval = await step.wait_for_event(
                "approval", type="approve", timeout="3 days", returns=Approval
            )
        except EventTimeoutError:
            return Receipt("expired", None)
        text = await step.do("charge", charge, amount, retries=3)
        return Receipt(text, approval.payload.by)


def price(order: Order) -> int:
    return order.count * 3


def charge(amount: int) -> str:
    return f"{amount} coins"


shop = App(workflows=[Checkout])


def make_web(p: ThreadPortal[Runtime]) -> Flask:
    """Return the service over an open portal; any number of its threads may call at once."""
    web = Flask(__name__)

    @web.post("/orders/<order_id>")
    def place_order(order_id: str) -> tuple[dict[str, Any], int]:
        instance = p(p.runtime.create, Checkout, params=Order(**request.get_json()), id=order_id)
        return {"id": instance.id}, 202

    @web.post("/orders/<order_id>/approval")
    def approve_order(order_id: str) -> tuple[dict[str, Any], int]:
        instance = p(p.runtime.get, Checkout, order_id)
        p(instance.send_event, "approve", request.get_json())
        return {"id": instance.id}, 202

    @web.get("/orders/<order_id>")
    def wait_for_order(order_id: str) -> dict[str, Any]:
        instance = p(p.runtime.get, Checkout, order_id)
        return asdict(p(instance.result))

    @web.errorhandler(InstanceExistsError)
    def taken(error: InstanceExistsError) -> tuple[dict[str, Any], int]:
        return {"error": str(error)}, 409

    @web.errorhandler(InstanceNotFoundError)
    def unknown(error: InstanceNotFoundError) -> tuple[dict[str, Any], int]:
        return {"error": str(error)}, 404

    return web


def main() -> None:
    parser = argparse.ArgumentParser(description="A shop on Flask whose orders are workflows.")
    parser.add_argument("--state", type=Path, default=Path("state-flask"))
    parser.add_argument("--port", type=int, default=8000)
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # end as on Ctrl-C, by leaving the block
    try:
        with in_thread(options.state, shop) as p:
            server = make_server("127.0.0.1", options.port, make_web(p), threaded=True)
            print(f"Serving on http://127.0.0.1:{server.server_port}", flush=True)
            server.serve_forever()
    except KeyboardInterrupt:
        print("Closed; orders go on at the next start.")


if __name__ == "__main__":
    main()
