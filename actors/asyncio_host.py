"""The asyncio loop in which asyncio step functions run.

One host owns one loop: a loop in a thread of its own, started at the first call and kept, so that a
connection pool made in one step serves the next; or the loop of a program that runs trio as its
guest. Only the function host uses this.

Every crossing is `call_soon_threadsafe` one way and `TrioToken.run_sync_soon` the other. Under a
guest run both ends are one thread, and the same two calls are still the right ones: neither loop
may be touched from inside the other's tick.

Invariants:
    A call returns, or raises, only when its asyncio task has ended, cancelled or not.
    `asyncio.CancelledError` never leaves: trio's own cancellation, or an error, stands for it.
    No exception of a step function reaches the loop, which `SystemExit` would stop.
"""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import threading
from collections.abc import Callable
from typing import Any

import trio

from perdure.errors import RuntimeClosedError, StepError

__all__ = ["AsyncioHost"]


class AsyncioHost:
    """Runs step functions as tasks of one asyncio loop. `busy` counts those that have not ended."""

    def __init__(self, loop: asyncio.AbstractEventLoop | None = None) -> None:
        self._loop = loop
        self._thread: threading.Thread | None = None
        self._stop = asyncio.Event()
        self._jobs: set[Job] = set()
        self._closed = False

    @property
    def busy(self) -> int:
        """How many calls have not ended."""
        return len(self._jobs)

    async def call(self, fn: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        """Run `fn(*args)` as an asyncio task and return what it returns.

        On cancellation the task is cancelled and waited for before Cancelled goes on. Raises what
        `fn` raises, and StepError where somebody else cancelled the task.
        """
        if self._closed:
            raise RuntimeClosedError("The runtime has ended: no step function can be started.")
        await trio.lowlevel.checkpoint_if_cancelled()
        loop = self._loop or self._start()
        job = Job(fn, args, loop)
        self._jobs.add(job)
        try:
            loop.call_soon_threadsafe(job.start)
            await self._ended(job, loop)
        finally:
            self._jobs.discard(job)
        if job.cancelled:
            raise self._not_ours(fn)
        if job.error is not None:
            raise job.error
        return job.value

    async def close(self) -> None:
        """Cancel what still runs, wait until it has ended, and end a loop of our own."""
        self._closed = True
        for job in list(self._jobs):
            job.loop.call_soon_threadsafe(job.cancel)
        for job in list(self._jobs):
            await job.ended.wait()
        if self._thread is not None and self._loop is not None:
            self._loop.call_soon_threadsafe(self._stop.set)
            await trio.to_thread.run_sync(self._thread.join)

    def _start(self) -> asyncio.AbstractEventLoop:
        # The loop takes callbacks before it runs, so nobody has to wait until its thread is ready. It is
        # named by its class: once a query has loaded trio-asyncio, its policy makes loops that are trio's.
        loop = self._loop = asyncio.SelectorEventLoop()

        def serve() -> None:
            with asyncio.Runner(loop_factory=lambda: loop) as runner:
                runner.run(self._stop.wait())

        # A daemon: a shutdown past its time exits without waiting for a step that will not end.
        self._thread = threading.Thread(target=serve, name="perdure asyncio", daemon=True)
        self._thread.start()
        return loop

    @staticmethod
    async def _ended(job: Job, loop: asyncio.AbstractEventLoop) -> None:
        try:
            await job.ended.wait()
        except BaseException:
            loop.call_soon_threadsafe(job.cancel)
            with trio.CancelScope(shield=True):
                await job.ended.wait()
            raise

    def _not_ours(self, fn: Callable[..., Any]) -> Exception:
        if self._closed:
            return RuntimeClosedError("The runtime ended while the step function was running.")
        return StepError(
            f"The asyncio task of {fn!r} was cancelled, and not by the runtime: "
            f"the function, or a library it uses, cancelled its own task."
        )


class Job:
    """One call: made and awaited in trio, run in asyncio. After `ended`, nothing changes it."""

    def __init__(
        self, fn: Callable[..., Any], args: tuple[Any, ...], loop: asyncio.AbstractEventLoop
    ) -> None:
        self.loop = loop
        self.ended = trio.Event()
        self.cancelled = False
        self.value: Any = None
        self.error: BaseException | None = None
        self._fn = fn
        self._args = args
        self._context = contextvars.copy_context()
        self._token = trio.lowlevel.current_trio_token()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Start the task. Called in the loop, as the two below."""
        self._task = self.loop.create_task(self._run(), context=self._context)
        self._task.add_done_callback(self._done)

    def cancel(self) -> None:
        if self._task is not None:
            self._task.cancel()

    async def _run(self) -> None:
        try:
            value = self._fn(*self._args)
            self.value = await value if inspect.isawaitable(value) else value
        except asyncio.CancelledError:
            raise
        except BaseException as error:  # noqa: BLE001  # SystemExit in a task would end the whole loop
            self.error = error

    def _done(self, task: asyncio.Task[None]) -> None:
        self.cancelled = task.cancelled()
        self._token.run_sync_soon(self.ended.set)
