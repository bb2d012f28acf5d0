"""The trio side of the portal: the run that serves calls, and what a caller waits for.

`portal.py` carries calls here, from an asyncio loop or from threads; nobody else uses this module.
Nothing here knows where a caller waits: `wake` is how it is told.

Invariants:
    Each call and each iterator has one trio task, and nothing but its own scope cancels it.
    What is enlisted is dismissed: started or not, whatever becomes of the run.
    All calls have ended before the runtime begins to close.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable, Coroutine
from contextlib import AbstractAsyncContextManager, AsyncExitStack, aclosing, suppress
from contextvars import copy_context
from inspect import isawaitable
from typing import Any, Final, Generic, TypeAlias, TypeVar, cast

import trio

from perdure.errors import RuntimeClosedError

__all__ = ["ENDED", "Awaited", "BridgeRun", "Call", "Factory", "Iteration", "Opens", "nothing"]

T = TypeVar("T")
RuntimeT = TypeVar("RuntimeT")

Factory: TypeAlias = Callable[[], AbstractAsyncContextManager[RuntimeT]]
Source: TypeAlias = AsyncIterable[T] | AbstractAsyncContextManager[AsyncIterable[T]]
Opens: TypeAlias = Source[T] | Coroutine[Any, Any, Source[T]]

ENDED: Final = "The runtime behind this portal has ended. Open it again to go on."
_CUT_SHORT: Final = (
    "The runtime ended before this call did, so what the call has done is unknown. An error that"
    " ended the runtime is raised where the portal's block ends."
)


def nothing() -> None:
    """Do nothing: what `wake` is while nobody waits."""


class Awaited:
    """Something on the trio side that one caller at a time waits for, and may cancel."""

    def __init__(self, *, shield: bool) -> None:
        self.scope = trio.CancelScope(shield=shield)
        self.wake: Callable[[], object] = nothing
        self.started = False
        self.ready = False  # there is something to take before the end
        self.ended = False
        self.completed = False
        self.error: BaseException | None = None

    def conclude(self, interrupt: BaseException | None) -> None:
        """Raise what ended it, if that was anything but its own completion."""
        error, self.error = self.error, None
        try:
            if error is not None:
                raise error
            if interrupt is not None:
                raise interrupt
            if not self.completed:
                raise RuntimeClosedError(_CUT_SHORT)
        finally:
            del error, interrupt  # or error, traceback and this frame would keep each other alive


class Call(Awaited, Generic[T]):
    """One function under way on the trio side, in a task of its own.

    Its scope is shielded, so that nothing but this scope cancels it: whatever reaches the caller as
    an error is the function's own, never a piece of somebody else's cancellation.
    """

    def __init__(self, fn: Callable[[], object], name: object) -> None:
        super().__init__(shield=True)
        self.name = name
        self.context = copy_context()
        self.values: deque[T] = deque()
        self._fn = fn

    async def run(self) -> None:
        """Run the function; how it ended is kept for `conclude`."""
        try:
            with self.scope:
                if not self.scope.cancel_called:
                    await self._work()
                    self.completed = True
        except BaseException as error:  # noqa: BLE001 - whatever it is, it is the caller's
            self.error = error

    async def _work(self) -> None:
        result = self._fn()
        self.values.append(cast("T", await result if isawaitable(result) else result))


class Iteration(Call[T]):
    """An async iterator held open in one trio task, which moves when its reader asks.

    One task, because a generator may hold a nursery or a cancel scope open across its yields; and
    no scope around a single item, because that would not nest with them.
    """

    def __init__(self, fn: Callable[[], object], name: object) -> None:
        super().__init__(fn, name)
        self.asked = trio.Semaphore(1)  # to start is to ask for the first item
        self._closing = False

    def close(self) -> None:
        """Let the iterator end instead of moving on."""
        self._closing = True
        self.asked.release()

    def take(self) -> T:
        """Return the item that is ready."""
        self.ready = False
        return self.values.popleft()

    async def _work(self) -> None:
        async with AsyncExitStack() as stack:
            iterator = await self._open(stack)
            while True:
                await self.asked.acquire()
                if self._closing:
                    return
                try:
                    self.values.append(await anext(iterator))
                except StopAsyncIteration:
                    return
                self.ready = True
                self.wake()

    async def _open(self, stack: AsyncExitStack) -> AsyncIterator[T]:
        source = cast("Opens[T]", self._fn())
        if not isinstance(source, (AsyncIterable, AbstractAsyncContextManager)):
            source = await source
        if isinstance(source, AbstractAsyncContextManager):
            source = await stack.enter_async_context(source)
        iterator: AsyncIterator[T] = aiter(source)
        if isinstance(iterator, AsyncGenerator):
            generator = cast("AsyncGenerator[T, None]", iterator)
            return await stack.enter_async_context(aclosing(generator))
        return iterator


class BridgeRun(Awaited, Generic[RuntimeT]):
    """The trio run: opens the runtime, serves calls until told to stop, closes the runtime.

    Its scope is cancelled only to give up opening, or to hurry a closing that is under way.
    """

    runtime: RuntimeT

    def __init__(self, factory: Factory[RuntimeT]) -> None:
        super().__init__(shield=False)
        self._factory = factory
        self._stop = trio.Event()
        self._nursery: trio.Nursery | None = None
        self._calls: set[Awaited] = set()
        self._cause: BaseException | None = None

    async def main(self) -> None:
        """Open the runtime, serve until `stop`, close it. The function that trio runs."""
        with self.scope:
            async with self._factory() as self.runtime:
                await self._serve()

    async def _serve(self) -> None:
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            self.ready = True
            self.wake()
            with suppress(trio.Cancelled):  # raised again below: the nursery would make it a group
                await self._stop.wait()
            self._nursery = None
            for call in self._calls.copy():
                call.scope.cancel()
        await trio.lowlevel.checkpoint_if_cancelled()

    async def _carry(self, call: Call[Any]) -> None:
        await call.run()
        self._dismiss(call)

    def stop(self) -> None:
        """Have the calls under way cancelled and the runtime closed."""
        self._stop.set()

    def enlist(self, call: Call[Any]) -> None:
        """Note a call before it is handed over, in any thread."""
        if self.ended:
            raise RuntimeClosedError(ENDED) from self._cause
        self._calls.add(call)

    def start(self, call: Call[Any]) -> None:
        """Start an enlisted call, on the trio side; after the end it is dismissed."""
        if self._nursery is None or call.ended:
            self._dismiss(call)
        else:
            call.started = True
            nursery = self._nursery
            call.context.run(lambda: nursery.start_soon(self._carry, call, name=call.name))

    def cancel(self, awaited: Awaited) -> None:
        """Cancel a call or this run; a call that never came to be started has ended by that."""
        awaited.scope.cancel()
        if awaited in self._calls and not awaited.started:
            self._dismiss(awaited)

    def _dismiss(self, call: Awaited) -> None:
        self._calls.discard(call)
        call.ended = True
        call.wake()

    def dismiss_all(self) -> None:
        """Dismiss every call that is left, so that nobody waits for one."""
        for call in self._calls.copy():
            self._dismiss(call)

    def finish(self, ending: Callable[[], object]) -> None:
        """Take the outcome of the run from `ending`, and leave nobody waiting."""
        try:
            ending()
            self.completed = True
        except BaseException as error:  # noqa: BLE001 - it is raised where the block ends
            self.error = self._cause = error
        self.ended = True
        self.dismiss_all()  # some are left only if trio itself broke
        self.wake()
