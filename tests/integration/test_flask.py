"""A Flask service calls the runtime from the threads of its views: `examples/flask_app.py`."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from flask import Flask

from perdure.portal import in_thread

pytestmark = pytest.mark.checkout

KETTLES = {"article": "kettle", "count": 2}


@pytest.fixture
def web(example: Callable[[str], ModuleType], tmp_path: Path) -> Iterator[Flask]:
    """Open the service over a portal of this process."""
    module: Any = example("flask_app")
    with in_thread(tmp_path, module.shop, durability="process") as p:
        yield module.make_web(p)


def test_a_view_creates_another_sends_an_event_and_a_third_awaits_the_result(web: Flask) -> None:
    client = web.test_client()
    placed = client.post("/orders/7", json=KETTLES)
    approved = client.post("/orders/7/approval", json={"by": "Ada"})

    assert (202, {"id": "7"}) == (placed.status_code, placed.json)
    assert 202 == approved.status_code
    assert {"text": "6 coins", "approved_by": "Ada"} == client.get("/orders/7").json


def test_refusals_are_answered_with_their_reason(web: Flask) -> None:
    client = web.test_client()
    client.post("/orders/7", json=KETTLES)
    again = client.post("/orders/7", json=KETTLES)
    unknown = client.post("/orders/8/approval", json={"by": "Ada"})

    assert [409, 404] == [again.status_code, unknown.status_code]
    assert "Checkout/7" in again.get_json()["error"]
    assert "Checkout/8" in unknown.get_json()["error"]


def test_many_threads_call_at_once(web: Flask) -> None:
    begun = threading.Barrier(8)

    def order(number: int) -> Any:
        client = web.test_client()
        begun.wait(30)
        client.post(f"/orders/{number}", json=KETTLES)
        client.post(f"/orders/{number}/approval", json={"by": f"Ada {number}"})
        return client.get(f"/orders/{number}").json

    with ThreadPoolExecutor(8) as pool:
        receipts = list(pool.map(order, range(8)))

    assert [{"text": "6 coins", "approved_by": f"Ada {number}"} for number in range(8)] == receipts


@pytest.mark.slow
def test_an_order_waits_on_for_its_approval_after_the_service_was_killed(
    service: Callable[[str], Any],
) -> None:
    first = service("flask_app.py")
    assert 202 == first.client.post("/orders/7", json=KETTLES).status_code
    first.end(signal.SIGKILL)

    second = service("flask_app.py")
    assert 202 == second.client.post("/orders/7/approval", json={"by": "Ada"}).status_code

    assert {"text": "6 coins", "approved_by": "Ada"} == second.client.get("/orders/7").json()
    assert 0 == second.end(signal.SIGTERM)[0]
