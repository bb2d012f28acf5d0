"""Step functions on asyncio: one loop, in a thread of its own or of the program that trio is a guest of."""

from __future__ import annotations

import asyncio
import contextvars
import sys
import threading
from collections.abc import AsyncIterator
from functools import partial
from typing import Any, NoReturn

import pytest
import trio

from perdure.actors.functions import (
    FunctionHost,
    asyncio_step,
    open_function_host,
)
from perdure.errors import (
    NonRetryableError,
    RuntimeClosedError,
    StepError,
)

COLOUR = contextvars.ContextVar("COLOUR", default="none")


@pytest.fixture
async def host() -> AsyncIterator[FunctionHost]:
    async with open_function_host(threads_max=2, processes_max=2) as opened:
        yield opened


@asyncio_step
async def on_asyncio(value: int) -> int:
    await asyncio.sleep(0)
    return value + 1


class Service:
    @asyncio_step
    async def fetch(self, value: int) -> int:
        await asyncio.sleep(0)
        return value + 1


async def test_asyncio_steps_share_one_loop_in_a_thread_of_its_own(host: FunctionHost) -> None:
    async def where() -> tuple[int, int]:
        await asyncio.sleep(0)
        return id(asyncio.get_running_loop()), threading.get_ident()

    first = await host.call("asyncio", where)

    assert first == await host.call("asyncio", where)
    assert threading.get_ident() != first[1]


async def test_an_asyncio_step_has_the_context_of_its_caller(host: FunctionHost) -> None:
    async def colour() -> str:
        return COLOUR.get()

    COLOUR.set("green")

    assert "green" == await host.call("asyncio", colour)


async def test_a_bound_asyncio_step_and_a_partial_of_one_are_run(host: FunctionHost) -> None:
    assert 2 == await host.call("asyncio", Service().fetch, (1,))
    assert 2 == await host.call("asyncio", partial(on_asyncio, 1))


async def test_a_cancelled_asyncio_step_has_ended_before_cancellation_goes_on(host: FunctionHost) -> None:
    token = trio.lowlevel.current_trio_token()
    story: list[str] = []

    async def careful() -> None:
        try:
            token.run_sync_soon(scope.cancel)
            await asyncio.sleep(1_000)
        finally:
            await asyncio.sleep(0)
            story.append("cleaned")

    with trio.CancelScope() as scope:
        await host.call("asyncio", careful)
    assert scope.cancelled_caught
    assert ["cleaned"] == story
    assert 0 == host.statistics().asyncio_busy


async def test_an_asyncio_step_that_cancels_itself_fails_with_a_plain_error(host: FunctionHost) -> None:
    async def confused() -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        await asyncio.sleep(0)

    with pytest.raises(StepError, match="was cancelled, and not by the runtime"):
        await host.call("asyncio", confused)


async def test_an_asyncio_step_that_exits_leaves_the_loop_to_the_others(host: FunctionHost) -> None:
    async def leave() -> NoReturn:
        sys.exit(3)

    with pytest.raises(SystemExit):
        await host.call("asyncio", leave)
    assert 2 == await host.call("asyncio", on_asyncio, (1,))


async def test_closing_ends_what_still_runs_on_asyncio() -> None:
    token = trio.lowlevel.current_trio_token()
    started = trio.Event()

    async def endless() -> None:
        token.run_sync_soon(started.set)
        await asyncio.sleep(1_000)

    async def caller(host: FunctionHost) -> None:
        with pytest.raises(RuntimeClosedError):
            await host.call("asyncio", endless)

    async with (
        trio.open_nursery() as nursery,
        open_function_host(threads_max=1, processes_max=1) as host,
    ):
        nursery.start_soon(caller, host)
        await started.wait()
    assert [] == [thread for thread in threading.enumerate() if thread.name == "perdure asyncio"]


def test_as_a_guest_an_asyncio_step_runs_in_the_loop_of_its_host() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        ended: asyncio.Future[Any] = loop.create_future()
        trio.lowlevel.start_guest_run(
            of_guest,
            loop,
            run_sync_soon_threadsafe=loop.call_soon_threadsafe,
            done_callback=ended.set_result,
        )
        (await ended).unwrap()

    async def of_guest(loop: asyncio.AbstractEventLoop) -> None:
        async def careful() -> None:
            try:
                token.run_sync_soon(scope.cancel)
                await asyncio.sleep(1_000)
            finally:
                await asyncio.sleep(0)
                story.append("cleaned")

        async def where() -> asyncio.AbstractEventLoop:
            await asyncio.sleep(0)
            return asyncio.get_running_loop()

        token = trio.lowlevel.current_trio_token()
        async with open_function_host(threads_max=1, processes_max=1, asyncio_loop=loop) as host:
            assert loop is await host.call("asyncio", where)
            with trio.CancelScope() as scope:
                await host.call("asyncio", careful)
            assert scope.cancelled_caught
            with pytest.raises(NonRetryableError, match="needs asyncio"):
                await host.call("trio", where)

    story: list[str] = []
    asyncio.run(main())
    assert ["cleaned"] == story
