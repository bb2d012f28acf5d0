"""A web service on FastAPI that runs workflows in its own event loop.

Needs fastapi and hypercorn. Start it, place an order, wait for it:

    python examples/fastapi_app.py --state state-fastapi --port 8000
    curl -X POST localhost:8000/orders/7 -H 'content-type: application/json' \
        -d '{"article": "kettle", "count": 2}'
    curl localhost:8000/orders/7

Kill it at any time and start it again: orders go on where they were. The step "take from stock" uses the
service's own pool of asyncio connections, in the service's own loop, as the view of the stock does.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import socket
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Annotated, Any, cast

import aiosqlite
import hypercorn
import hypercorn.asyncio
from fastapi import Depends, FastAPI, HTTPException, Request
from fastapi.responses import StreamingResponse
from pydantic import BaseModel

from perdure import (
    App,
    InstanceExistsError,
    InstanceNotFoundError,
    Runtime,
    StepContext,
    WorkflowEntrypoint,
    WorkflowEvent,
    WorkflowStep,
    asyncio_step,
)
from perdure.portal import AsyncioPortal, on_asyncio


class Order(BaseModel):
    article: str
    count: int


class Receipt(BaseModel):
    article: str
    left: int
    text: str


class Stock:
    """The shop's own database, behind a pool of connections that belong to one asyncio loop."""

    def __init__(self) -> None:
        self._free: asyncio.Queue[aiosqlite.Connection] = asyncio.Queue()

    @contextlib.asynccontextmanager
    async def opened(self, file: Path, size: int = 2) -> AsyncGenerator[Stock]:
        async with contextlib.AsyncExitStack() as stack:
            for _ in range(size):
                self._free.put_nowait(await stack.enter_async_context(aiosqlite.connect(file)))
            async with self.connection() as db:
                await db.execute("CREATE TABLE IF NOT EXISTS taken (key TEXT PRIMARY KEY, article, count)")
                await db.commit()
            yield self

    @contextlib.asynccontextmanager
    async def connection(self) -> AsyncGenerator[aiosqlite.Connection]:
        db = await self._free.get()
        try:
            yield db
        finally:
            self._free.put_nowait(db)

    async def left(self, article: str) -> int:
        async with self.connection() as db:
            query = "SELECT 100 - coalesce(sum(count), 0) FROM taken WHERE article = ?"
            [(left,)] = await db.execute_fetchall(query, (article,))
            return int(left)

    async def take(self, order: Order, context: StepContext) -> int:
        """Take once, however often it is tried: the key is the same for every attempt of a step."""
        async with self.connection() as db:
            row = (context.idempotency_key, order.article, order.count)
            await db.execute("INSERT OR IGNORE INTO taken VALUES (?, ?, ?)", row)
            await db.commit()
        return await self.left(order.article)


class Checkout(WorkflowEntrypoint[Stock]):
    async def run(self, event: WorkflowEvent[Order], step: WorkflowStep) -> Receipt:
        order = event.payload
        left = await step.do("take from stock", asyncio_step(self.env.take), order, retries=3)
        await step.sleep("cooling-off", "1 second")
        return await step.do("write receipt", write_receipt, order, left)


def write_receipt(order: Order, left: int) -> Receipt:
    return Receipt(article=order.article, left=left, text=f"{order.count} x {order.article}")


shop = App(workflows=[Checkout])


@contextlib.asynccontextmanager
async def lifespan(web: FastAPI) -> AsyncGenerator[None]:
    folder: Path = web.state.folder
    async with (
        Stock().opened(folder / "stock.sqlite") as stock,
        on_asyncio(folder / "workflows", shop, env=stock) as portal,
    ):
        web.state.stock, web.state.portal = stock, portal
        yield


def get_portal(request: Request) -> AsyncioPortal[Runtime]:
    return cast("AsyncioPortal[Runtime]", request.app.state.portal)


def get_stock(request: Request) -> Stock:
    return cast("Stock", request.app.state.stock)


Portal = Annotated[AsyncioPortal[Runtime], Depends(get_portal)]

web = FastAPI(lifespan=lifespan)


@web.post("/orders/{order_id}", status_code=202)
async def place_order(order_id: str, order: Order, p: Portal) -> dict[str, str]:
    try:
        instance = await p(p.runtime.create, Checkout, params=order, id=order_id)
    except InstanceExistsError as error:
        raise HTTPException(409, str(error)) from error
    return {"id": instance.id}


@web.get("/orders/{order_id}")
async def wait_for_order(order_id: str, p: Portal) -> Receipt:
    try:
        instance = await p(p.runtime.get, Checkout, order_id)
    except InstanceNotFoundError as error:
        raise HTTPException(404, str(error)) from error
    return await p(instance.result)


@web.get("/orders/{order_id}/story")
async def follow_order(order_id: str, p: Portal) -> StreamingResponse:
    instance = await p(p.runtime.get, Checkout, order_id)

    async def lines() -> AsyncGenerator[str]:
        async with contextlib.aclosing(p.iterate(instance.subscribe)) as entries:
            async for entry in entries:
                yield f"{entry.what} {entry.step or ''}\n"

    return StreamingResponse(lines(), media_type="text/plain")


@web.get("/stock/{article}")
async def look_at_stock(article: str, stock: Annotated[Stock, Depends(get_stock)]) -> int:
    return await stock.left(article)


def main() -> None:
    parser = argparse.ArgumentParser(description="A shop on FastAPI whose orders are workflows.")
    parser.add_argument("--state", type=Path, default=Path("state-fastapi"))
    parser.add_argument("--port", type=int, default=8000)
    options = parser.parse_args()
    options.state.mkdir(parents=True, exist_ok=True)
    web.state.folder = options.state
    server = socket.create_server(("127.0.0.1", options.port))
    print(f"Serving on http://127.0.0.1:{server.getsockname()[1]}", flush=True)
    config = hypercorn.Config()
    config.bind = [f"fd://{server.detach()}"]
    serve = cast("Any", hypercorn.asyncio).serve  # its own types ask for more than ASGI does
    asyncio.run(serve(web, config))  # until SIGINT or SIGTERM


if __name__ == "__main__":
    main()
