"""The portal: the one bridge between a trio runtime and programs that are not on trio.

`on_asyncio` runs trio as a guest of the caller's asyncio loop, in the same thread; `in_thread` runs
it in a thread of its own. Both give an object that carries any call to the trio side and its outcome
back, so that no verb of the runtime needs a twin. anyio's BlockingPortal is the model; here a
cancelled call is also waited for, iterators cross, and an asyncio loop can be the host.

One hop, there and back, costs 56 µs on asyncio and 45 µs into the thread (medians,
Python 3.11, two cores shared with other work). Each item of an iterator is one hop.

This module owns the guest run or the thread; `bridge.py` is its other end, the tasks in which calls
run. Nobody else touches either, and the runtime knows nothing of them.

Invariants:
    A caller gets one outcome: the result, the error with its class and traceback, its own
    cancellation, or RuntimeClosedError. It never hangs because the trio side has gone.
    A cancelled call has ended on the trio side before its caller goes on.
    All calls have ended before the runtime begins to close.
    An iterator lives in one trio task from opening to closing, and is never ahead of its reader.
"""

from __future__ import annotations

import asyncio
import atexit
import os
import queue
import threading
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator, Sequence
from contextlib import (
    AbstractContextManager,
    asynccontextmanager,
    suppress,
)
from contextvars import copy_context
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Generic, ParamSpec, TypedDict, TypeVar, Unpack, overload

import trio

from perdure.bridge import ENDED, Awaited, BridgeRun, Call, Factory, Iteration, Opens, nothing
from perdure.errors import InvalidArgumentError, RuntimeClosedError
from perdure.limits import Limits

if TYPE_CHECKING:  # the bridge itself needs no engine
    from perdure.actors.host import Replay
    from perdure.engine.app import App
    from perdure.engine.runtime import Runtime
    from perdure.engine.timers import WaitingClock
    from perdure.storage.disk import Disk
    from perdure.storage.records import Durability

__all__ = ["AsyncioPortal", "ThreadPortal", "in_thread", "on_asyncio"]

P = ParamSpec("P")
T = TypeVar("T")
RuntimeT = TypeVar("RuntimeT")

_EXIT_WAIT_S: Final = Limits().shutdown_grace_s + 5.0
"""How long the interpreter's end waits for a portal left open: the runtime's grace, and then its files."""

_ON_TRIO: Final = "This code runs on the trio side already: call the function there, or await it."


class RuntimeOptions(TypedDict, total=False):
    """What `on_asyncio` and `in_thread` take by name: the options of `perdure.open_runtime`."""

    workflows: Sequence[type]
    objects: Sequence[type]
    env: Any
    durability: Durability
    replay: Replay
    workers: int
    limits: Limits | None
    clock: WaitingClock | None
    disk: Disk | None


# -- trio as a guest of asyncio --------------------------------------------------------------


def _set(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)


async def _wait_on_loop(awaited: Awaited, *, to_the_end: bool = False) -> asyncio.CancelledError | None:
    """Wait until there is something to take, or for the end; turn cancellation into trio's.

    A cancellation waits for the end; the first one is returned, for the caller to raise.
    """
    interrupt: asyncio.CancelledError | None = None
    loop = asyncio.get_running_loop()
    while not (awaited.ended or (awaited.ready and not to_the_end)):
        waiter: asyncio.Future[None] = loop.create_future()
        awaited.wake = partial(_set, waiter)
        try:
            await waiter
        except asyncio.CancelledError as error:
            interrupt, to_the_end = interrupt or error, True
            awaited.scope.cancel()
    return interrupt


class AsyncioPortal(Generic[RuntimeT]):
    """Carries calls from an asyncio loop to the trio run that is its guest.

    Made by `on_asyncio`, for any task of that loop. `runtime` is the open runtime: hand its methods
    to the portal instead of awaiting them.
    """

    def __init__(self, run: BridgeRun[RuntimeT]) -> None:
        self.runtime = run.runtime
        self._run = run
        self._loop = asyncio.get_running_loop()

    @overload
    async def __call__(
        self, fn: Callable[P, Coroutine[Any, Any, T]], /, *args: P.args, **kwargs: P.kwargs
    ) -> T: ...
    @overload
    async def __call__(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T: ...
    async def __call__(self, fn: Callable[P, Any], /, *args: P.args, **kwargs: P.kwargs) -> Any:
        """Run `fn` on the trio side and return its result, or raise its error.

        A plain function runs in the loop itself, so it should be short; any awaitable it returns is
        awaited, but type checkers see that of coroutines only. `fn` sees the caller's context
        variables. Cancelling the asyncio task cancels the call, and the task goes on when that has
        ended; a result that came nevertheless is dropped, an error is raised.

        Raises:
            RuntimeClosedError: the runtime has ended, or ended before the call did.
            InvalidArgumentError: called from the trio side or from another loop.
        """
        call: Call[Any] = Call(partial(fn, *args, **kwargs), fn)
        self._start(call)
        call.conclude(await _wait_on_loop(call))
        return call.values.popleft()

    async def iterate(
        self, fn: Callable[P, Opens[T]], /, *args: P.args, **kwargs: P.kwargs
    ) -> AsyncGenerator[T, None]:
        """Iterate here over the async iterator that `fn` gives on the trio side.

        `fn` may return it, be a coroutine function that does, or give an async context manager of it.
        Closing this generator closes the trio side and waits for it: `contextlib.aclosing` does that
        at once, a bare `break` leaves it to the loop. Errors are those of a call.

            async with aclosing(p.iterate(instance.stream, "tokens")) as tokens:
                async for token in tokens: ...
        """
        iteration: Iteration[T] = Iteration(partial(fn, *args, **kwargs), fn)
        self._start(iteration)
        while True:
            interrupt = await _wait_on_loop(iteration)
            if interrupt is not None or not iteration.values:
                iteration.conclude(interrupt)
                return
            try:
                yield iteration.take()
            except BaseException:
                await self._hang_up(iteration)
                raise
            iteration.asked.release()

    async def _hang_up(self, iteration: Iteration[Any]) -> None:
        if not iteration.ended:
            iteration.close()
            iteration.conclude(await _wait_on_loop(iteration, to_the_end=True))

    def _start(self, call: Call[Any]) -> None:
        if trio.lowlevel.in_trio_task():
            raise InvalidArgumentError(_ON_TRIO)
        if asyncio.get_running_loop() is not self._loop:
            raise InvalidArgumentError("This portal belongs to another event loop: open one on this loop.")
        self._run.enlist(call)
        self._run.start(call)  # same thread: those of trio's functions that are not async may be called


def _running_loop() -> asyncio.AbstractEventLoop:
    if trio.lowlevel.in_trio_run():
        raise InvalidArgumentError(
            "trio runs in this thread already. Under trio use perdure.open_runtime; an asyncio loop"
            " has one on_asyncio block at a time, and further runtimes can be opened inside it."
        )
    try:
        return asyncio.get_running_loop()
    except RuntimeError as error:
        raise InvalidArgumentError("on_asyncio needs a running asyncio loop; else use in_thread.") from error


@asynccontextmanager
async def bridge_on_asyncio(factory: Factory[RuntimeT]) -> AsyncGenerator[AsyncioPortal[RuntimeT], None]:
    """Do what `on_asyncio` does, for any async context manager that `factory` makes on the trio side."""
    loop = _running_loop()
    run = BridgeRun(factory)
    trio.lowlevel.start_guest_run(
        run.main,
        run_sync_soon_threadsafe=loop.call_soon_threadsafe,
        run_sync_soon_not_threadsafe=loop.call_soon,
        done_callback=lambda outcome: run.finish(outcome.unwrap),
        host_uses_signal_set_wakeup_fd=True,  # asyncio has its own, and there is only one
    )
    interrupt = await _wait_on_loop(run)
    if run.ended:
        run.conclude(interrupt)
        raise RuntimeClosedError(ENDED)
    try:
        yield AsyncioPortal(run)
    finally:
        if not run.ended:
            run.stop()
        run.conclude(await _wait_on_loop(run, to_the_end=True))


@asynccontextmanager
async def on_asyncio(
    path: str | os.PathLike[str], app: App | None = None, **options: Unpack[RuntimeOptions]
) -> AsyncGenerator[AsyncioPortal[Runtime], None]:
    """Open a runtime as a guest of the running asyncio loop.

    Takes what `perdure.open_runtime` takes. Steps marked asyncio run on this loop, so they can await
    what belongs to it: the program's own pools and clients. A loop holds one such block at a time.

    Leaving the block cancels the calls under way, closes the runtime gracefully and raises the error
    that ended it, if one did; a cancellation meanwhile hurries the closing. A runtime that ends by
    itself does not interrupt the block: from then on every call raises RuntimeClosedError.

    Raises:
        InvalidArgumentError: no asyncio loop runs here, or trio runs in this thread already.
        StateLockedError, and whatever else opening a runtime raises.

        @contextlib.asynccontextmanager
        async def lifespan(web: FastAPI) -> AsyncIterator[None]:
            async with on_asyncio("state", app) as web.state.perdure:
                yield
    """
    from perdure.engine.opening import open_runtime  # noqa: PLC0415 - the bridge itself needs no engine

    loop = _running_loop()
    async with bridge_on_asyncio(partial(open_runtime, path, app, asyncio_loop=loop, **options)) as portal:
        yield portal


# -- trio in a thread of its own -------------------------------------------------------------


class ThreadPortal(Generic[RuntimeT]):
    """Carries calls from any thread to the trio run in a thread of its own.

    Made by `in_thread`, for as many threads at once as you like. `runtime` is the open runtime: hand
    its methods to the portal instead of calling them.
    """

    def __init__(self, thread: _Thread[RuntimeT]) -> None:
        self.runtime = thread.run.runtime
        self._thread = thread

    @overload
    def __call__(
        self, fn: Callable[P, Coroutine[Any, Any, T]], /, *args: P.args, **kwargs: P.kwargs
    ) -> T: ...
    @overload
    def __call__(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T: ...
    def __call__(self, fn: Callable[P, Any], /, *args: P.args, **kwargs: P.kwargs) -> Any:
        """Run `fn` on the trio side, block until it has ended, and return its result or raise its error.

        What is said of `AsyncioPortal.__call__` holds here. An exception that a signal handler raises
        in the waiting thread, KeyboardInterrupt above all, cancels the call and goes on when that has
        ended; a second one goes on at once.

        Raises:
            RuntimeClosedError: the runtime has ended, or ended before the call did; or this process
                was forked from the one that opened the portal.
            InvalidArgumentError: called from the trio side.
        """
        self._thread.check_caller()
        call: Call[Any] = Call(partial(fn, *args, **kwargs), fn)
        call.conclude(self._thread.wait(call, partial(self._thread.start, call)))
        return call.values.popleft()

    def iterate(
        self, fn: Callable[P, Opens[T]], /, *args: P.args, **kwargs: P.kwargs
    ) -> Generator[T, None, None]:
        """Iterate here over the async iterator that `fn` gives on the trio side.

        As `AsyncioPortal.iterate`; leaving the loop by `break` closes the trio side and waits for it.

            for token in p.iterate(instance.stream, "tokens"): ...
        """
        self._thread.check_caller()
        iteration: Iteration[T] = Iteration(partial(fn, *args, **kwargs), fn)
        begin = partial(self._thread.start, iteration)
        while True:
            interrupt = self._thread.wait(iteration, begin)
            if interrupt is not None or not iteration.values:
                iteration.conclude(interrupt)
                return
            try:
                yield iteration.take()
            except BaseException:
                self._thread.hang_up(iteration)
                raise
            begin = partial(self._thread.post, iteration.asked.release)


class _Thread(AbstractContextManager[ThreadPortal[RuntimeT]]):
    """A trio run in a thread of its own.

    The thread is a daemon that is asked to close at exit: a program that forgot it does not hang. And
    this is no generator, for one that is collected would close, and wait, in whatever thread that is.
    """

    def __init__(self, factory: Factory[RuntimeT]) -> None:
        self.run = BridgeRun(factory)
        self._pid = os.getpid()
        self._begun = threading.Event()
        self._token: trio.lowlevel.TrioToken | None = None
        main = partial(copy_context().run, self._main)
        self._thread = threading.Thread(target=main, name="perdure-portal", daemon=True)

    def __enter__(self) -> ThreadPortal[RuntimeT]:
        interrupt = self.wait(self.run, self._launch)
        if self.run.ended:
            self._end(interrupt)
            raise RuntimeClosedError(ENDED)
        return ThreadPortal(self)

    def __exit__(self, *_: object) -> None:
        stop = partial(self.post, self.run.stop)
        if self._can_wait():
            self._end(self.wait(self.run, stop, to_the_end=True))
        else:
            stop()

    def _can_wait(self) -> bool:
        # a fork has no trio thread; and in that thread a garbage collection may close something
        return os.getpid() == self._pid and threading.current_thread() is not self._thread

    def check_caller(self) -> None:
        if os.getpid() != self._pid:
            raise RuntimeClosedError("This process was forked after the portal was opened: open one here.")
        if not self._can_wait():
            raise InvalidArgumentError(_ON_TRIO)

    def start(self, call: Call[Any]) -> None:
        self.run.enlist(call)
        self.post(partial(self.run.start, call))

    def hang_up(self, iteration: Iteration[Any]) -> None:
        close = partial(self.post, iteration.close)
        if not self._can_wait():
            close()
        elif not iteration.ended:
            iteration.conclude(self.wait(iteration, close, to_the_end=True))

    def post(self, fn: Callable[[], object]) -> None:
        """Have `fn` run on the trio side soon; if that has gone, see that nobody waits for it."""
        if os.getpid() != self._pid:
            return
        self._begun.wait()
        if self._token is not None:
            with suppress(trio.RunFinishedError):
                self._token.run_sync_soon(fn)
        if self.run.ended:
            self.run.dismiss_all()

    def wait(
        self, awaited: Awaited, begin: Callable[[], None] = nothing, *, to_the_end: bool = False
    ) -> BaseException | None:
        """Begin, then wait as `_wait_on_loop` does. Whatever a signal handler raises is an interrupt."""
        bell: queue.SimpleQueue[None] = queue.SimpleQueue()
        awaited.wake = partial(bell.put, None)
        try:
            begin()
            while not (awaited.ended or (awaited.ready and not to_the_end)):
                bell.get()
        except RuntimeClosedError:
            raise  # nothing was begun
        except BaseException as interrupt:  # noqa: BLE001 - the caller raises it
            self.post(partial(self.run.cancel, awaited))
            while not awaited.ended:
                bell.get()
            return interrupt
        return None

    def _launch(self) -> None:
        try:
            self._thread.start()
        except RuntimeError as error:
            raise RuntimeClosedError("The runtime has no thread to run in: none could be started.") from error

    def _main(self) -> None:
        atexit.register(self._close_at_exit)
        self.run.finish(partial(trio.run, self._trio_main))
        self._begun.set()

    async def _trio_main(self) -> None:
        self._token = trio.lowlevel.current_trio_token()
        self._begun.set()
        await self.run.main()

    def _end(self, interrupt: BaseException | None) -> None:
        self._thread.join()
        atexit.unregister(self._close_at_exit)
        self.run.conclude(interrupt)

    def _close_at_exit(self) -> None:
        # Early releases of Python 3.12 start no thread this late: then closing fails, as in a crash.
        if self._can_wait():
            self.post(self.run.stop)
            self._thread.join(_EXIT_WAIT_S)
            if self.run.ended:
                self.run.conclude(None)  # nobody is left to be told; atexit prints it


def bridge_in_thread(factory: Factory[RuntimeT]) -> AbstractContextManager[ThreadPortal[RuntimeT]]:
    """Do what `in_thread` does, for any async context manager that `factory` makes on the trio side."""
    return _Thread(factory)


def in_thread(
    path: str | os.PathLike[str], app: App | None = None, **options: Unpack[RuntimeOptions]
) -> AbstractContextManager[ThreadPortal[Runtime]]:
    """Open a runtime in a thread of its own, for programs without an event loop.

    Takes what `perdure.open_runtime` takes. Leaving the block cancels the calls under way in all
    threads, closes the runtime gracefully and raises the error that ended it, if one did; an
    interrupt meanwhile hurries the closing. A program that has no place to leave the block, such as
    a Django app that opens it at start, may leave the closing to the interpreter's end.

    Raises, on entering:
        StateLockedError, and whatever else opening a runtime raises.

        with in_thread("state", app) as p:
            instance = p(p.runtime.create, ResearchAgent, params=Query("tides"))
            report = p(instance.result)
    """
    from perdure.engine.opening import open_runtime  # noqa: PLC0415 - as in on_asyncio

    return bridge_in_thread(partial(open_runtime, path, app, **options))
