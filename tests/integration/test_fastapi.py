"""A FastAPI service runs workflows in its own loop: `examples/fastapi_app.py`, here and by itself."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx
import pytest

pytestmark = pytest.mark.checkout

KETTLES = {"article": "kettle", "count": 2}


@pytest.fixture
def in_lifespan(
    example: Callable[[str], ModuleType], tmp_path: Path
) -> Callable[[Callable[[httpx.AsyncClient, Any], Awaitable[None]]], None]:
    """Run a body in the service's lifespan, on its loop, with a client and the service."""
    web: Any = example("fastapi_app").web
    web.state.folder = tmp_path

    def run(body: Callable[[httpx.AsyncClient, Any], Awaitable[None]]) -> None:
        async def main() -> None:
            transport = httpx.ASGITransport(app=web)
            async with (
                web.router.lifespan_context(web),
                httpx.AsyncClient(transport=transport, base_url="http://shop") as client,
            ):
                await asyncio.wait_for(body(client, web), 60)

        asyncio.run(main())

    return run


InLifespan = Callable[[Callable[[httpx.AsyncClient, Any], Awaitable[None]]], None]


def test_post_creates_and_get_awaits_the_result(in_lifespan: InLifespan) -> None:
    async def body(client: httpx.AsyncClient, _web: Any) -> None:
        placed = await client.post("/orders/7", json=KETTLES)
        assert (202, {"id": "7"}) == (placed.status_code, placed.json())

        receipt = await client.get("/orders/7")
        assert {"article": "kettle", "left": 98, "text": "2 x kettle"} == receipt.json()
        assert 98 == (await client.get("/stock/kettle")).json()

    in_lifespan(body)


def test_refusals_are_answered_with_their_reason(in_lifespan: InLifespan) -> None:
    async def body(client: httpx.AsyncClient, _web: Any) -> None:
        await client.post("/orders/7", json=KETTLES)
        again = await client.post("/orders/7", json=KETTLES)
        unknown = await client.get("/orders/8")
        wrong = await client.post("/orders/9", json={"article": "kettle"})

        assert [409, 404, 422] == [again.status_code, unknown.status_code, wrong.status_code]
        assert "Checkout/7" in again.json()["detail"]
        assert "Checkout/8" in unknown.json()["detail"]

    in_lifespan(body)


def test_many_requests_await_many_orders_at_once(in_lifespan: InLifespan) -> None:
    async def body(client: httpx.AsyncClient, _web: Any) -> None:
        for number in range(12):
            await client.post(f"/orders/{number}", json=KETTLES)
        receipts = await asyncio.gather(*(client.get(f"/orders/{number}") for number in range(12)))

        assert ["2 x kettle"] * 12 == [receipt.json()["text"] for receipt in receipts]
        assert 100 - 2 * 12 == (await client.get("/stock/kettle")).json()

    in_lifespan(body)


def test_a_story_is_streamed_while_it_happens(in_lifespan: InLifespan) -> None:
    async def body(client: httpx.AsyncClient, _web: Any) -> None:
        await client.post("/orders/7", json=KETTLES)
        async with client.stream("GET", "/orders/7/story") as response:
            lines = [line async for line in response.aiter_lines()]

        assert "instance created" == lines[0].strip()
        assert "instance complete" == lines[-1].strip()
        assert lines.index("do completed take from stock") < lines.index("sleep started cooling-off")

    in_lifespan(body)


def test_a_client_that_hangs_up_ends_its_call_and_not_the_order(in_lifespan: InLifespan) -> None:
    async def body(client: httpx.AsyncClient, _web: Any) -> None:
        await client.post("/orders/7", json=KETTLES)
        waiting = asyncio.create_task(client.get("/orders/7"))
        await client.get("/stock/kettle")
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting

        assert "2 x kettle" == (await client.get("/orders/7")).json()["text"]

    in_lifespan(body)


@pytest.mark.slow
def test_orders_go_on_after_the_service_was_killed(service: Callable[[str], Any]) -> None:
    first = service("fastapi_app.py")
    assert 202 == first.client.post("/orders/7", json=KETTLES).status_code
    first.end(signal.SIGKILL)

    second = service("fastapi_app.py")
    receipt = second.client.get("/orders/7").json()

    assert {"article": "kettle", "left": 98, "text": "2 x kettle"} == receipt
    assert 0 == second.end(signal.SIGTERM)[0]


@pytest.mark.slow
def test_the_service_ends_in_order_while_an_order_is_under_way(service: Callable[[str], Any]) -> None:
    started = service("fastapi_app.py")
    started.client.post("/orders/7", json=KETTLES)
    code, errors = started.end(signal.SIGINT)

    assert 0 == code
    assert "Traceback" not in errors
