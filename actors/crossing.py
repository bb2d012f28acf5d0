"""The way from a step function, wherever it runs, to what only the loop may touch.

A step function runs in the loop, in a worker thread, or on asyncio. What it is handed to write to or
read from belongs to the loop's thread: calls of the other two are carried there and answered.

Invariants:
    What crosses is carried out in the loop's thread, in the order in which one caller makes it.
    A caller that is gone before its turn has come has changed nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from concurrent.futures import Future
from typing import Any, Final, TypeVar

import trio

from perdure.errors import RuntimeClosedError, WorkflowCodeError

T = TypeVar("T")
YIELD_EVERY: Final = 64
"""Calls in the loop after which others get their turn, where nothing has to be waited for."""


class Crossing:
    """Calls of one object into the loop. Made in the loop.

    `settle` is what a caller waits for after its call, where `unsettled` says that there is a need.
    """

    __slots__ = ("_calls", "_settle", "_token", "_unsettled")

    def __init__(self, unsettled: Callable[[], bool], settle: Callable[[], Awaitable[None]]) -> None:
        self._token = trio.lowlevel.current_trio_token()
        self._unsettled = unsettled
        self._settle = settle
        self._calls = 0

    async def call(self, act: Callable[..., T], *args: Any) -> T:
        """Carry out `act(*args)` for a caller on trio or on asyncio. Raises what it raises."""
        if not trio.lowlevel.in_trio_task():
            return await asyncio.wrap_future(self._post(act, args))
        value = act(*args)
        if self._unsettled():
            await self._settle()
        elif self._calls >= YIELD_EVERY:
            self._calls = 0
            await trio.lowlevel.checkpoint()
        else:
            self._calls += 1
            await trio.lowlevel.checkpoint_if_cancelled()
        return value

    def call_sync(self, act: Callable[..., T], *args: Any) -> T:
        """Carry out `act(*args)` for a caller in a worker thread. Raises what it raises."""
        if trio.lowlevel.in_trio_task():
            raise WorkflowCodeError(
                "this is for plain functions, which run in a thread: in an async function use `await` and"
                " `async for`"
            )
        return self._post(act, args).result()

    def _post(self, act: Callable[..., T], args: tuple[Any, ...]) -> Future[T]:
        future: Future[T] = Future()

        def arrive() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                value = act(*args)
                settled = not self._unsettled()
            except Exception as error:  # noqa: BLE001 - it is the caller's
                future.set_exception(error)
                return
            if settled:
                future.set_result(value)
            else:
                trio.lowlevel.spawn_system_task(self._answer, future, value)

        try:
            self._token.run_sync_soon(arrive)
        except trio.RunFinishedError as error:
            raise RuntimeClosedError("the runtime has ended under a step function that goes on") from error
        return future

    async def _answer(self, future: Future[T], value: T) -> None:
        try:
            await self._settle()
        except BaseException as error:
            future.set_exception(error if isinstance(error, Exception) else RuntimeClosedError("it ended"))
            if not isinstance(error, Exception):
                raise
        else:
            future.set_result(value)
