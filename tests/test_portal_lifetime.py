"""The portal's life: opening, closing, and what becomes of everybody when the trio side ends by itself.

The fake is a small async context manager in place of a runtime; trio and asyncio are real. Each
test runs its own asyncio loop or thread, so no test here is a coroutine.
"""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, TypeVar

import pytest
import trio

from perdure.errors import InvalidArgumentError, RuntimeClosedError, StateLockedError
from perdure.portal import AsyncioPortal, bridge_in_thread, bridge_on_asyncio

T = TypeVar("T")


class Fake:
    """Stands where a runtime stands: records what happens to it, and breaks when told to."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.started = trio.Event()
        self.broken = trio.Event()

    @asynccontextmanager
    async def opened(self) -> AsyncGenerator[Fake, None]:
        self.log.append("opened")
        try:
            async with trio.open_nursery(strict_exception_groups=True) as nursery:
                nursery.start_soon(self._break)
                yield self
                nursery.cancel_scope.cancel()
        except* ZeroDivisionError as group:
            raise group.exceptions[0] from None
        finally:
            self.log.append("closed")

    async def _break(self) -> None:
        await self.broken.wait()
        raise ZeroDivisionError("the runtime broke")

    async def double(self, number: int) -> int:
        await trio.lowlevel.checkpoint()
        return 2 * number

    async def fail(self) -> None:
        await trio.lowlevel.checkpoint()
        raise StateLockedError("taken", path="state", pid=7)

    async def hang(self) -> None:
        self.started.set()
        try:
            await trio.sleep_forever()
        finally:
            self.log.append("hang ended")

    async def count(self, stop: int) -> AsyncGenerator[int, None]:
        for number in range(stop):
            await trio.lowlevel.checkpoint()
            yield number


@asynccontextmanager
async def locked() -> AsyncGenerator[None, None]:
    await trio.lowlevel.checkpoint()
    raise StateLockedError("taken", path="state", pid=7)
    yield


async def enter_and_leave(fake: Fake) -> AsyncGenerator[None, None]:
    async with bridge_on_asyncio(fake.opened):
        yield


@pytest.fixture
def fake() -> Fake:
    return Fake()


def on_asyncio(fake: Fake, body: Callable[[AsyncioPortal[Fake]], Awaitable[T]]) -> T:
    async def main() -> T:
        async with bridge_on_asyncio(fake.opened) as p:
            return await body(p)

    return asyncio.run(main())


async def begun(p: AsyncioPortal[Fake], call: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
    """Start a call in a task of its own, and wait until it is under way on the trio side."""
    task = asyncio.create_task(call)
    await p(p.runtime.started.wait)
    return task


def interrupt_the_main_thread() -> None:
    ident = threading.main_thread().ident
    assert ident is not None
    signal.pthread_kill(ident, signal.SIGINT)


# -- opening and closing ---------------------------------------------------------------------


def test_an_error_while_opening_is_raised_by_the_block_and_another_can_follow(fake: Fake) -> None:
    async def main() -> None:
        for _ in range(2):
            with pytest.raises(StateLockedError) as caught:
                async with bridge_on_asyncio(locked):
                    pytest.fail("it never opened")
            assert caught.value.pid == 7
        for _ in range(2):
            async with bridge_on_asyncio(fake.opened) as p:
                assert await p(fake.double, 2) == 4

    asyncio.run(main())
    for _ in range(2):
        with pytest.raises(StateLockedError) as caught, bridge_in_thread(locked):
            pytest.fail("it never opened")
        assert caught.value.pid == 7


def test_a_second_guest_of_one_loop_and_a_host_without_asyncio_are_refused(fake: Fake) -> None:
    async def body(_: object) -> None:
        with pytest.raises(InvalidArgumentError, match="trio runs in this thread already"):
            async with bridge_on_asyncio(fake.opened):
                pass

    on_asyncio(fake, body)
    trio.run(body, None)
    with pytest.raises(InvalidArgumentError, match="needs a running asyncio loop"):
        anext(enter_and_leave(fake)).__await__().send(None)


def test_leaving_cancels_the_calls_under_way_before_the_runtime_closes(fake: Fake) -> None:
    async def main() -> None:
        async with bridge_on_asyncio(fake.opened) as p:
            task = await begun(p, p(fake.hang))
        with pytest.raises(RuntimeClosedError, match="ended before this call did"):
            await task

    asyncio.run(main())
    assert fake.log == ["opened", "hang ended", "closed"]


def test_leaving_cancels_the_calls_of_other_threads(fake: Fake) -> None:
    with ThreadPoolExecutor(1) as pool:
        with bridge_in_thread(fake.opened) as p:
            call = pool.submit(p, fake.hang)
            p(fake.started.wait)
        with pytest.raises(RuntimeClosedError, match="ended before this call did"):
            call.result()
    assert fake.log == ["opened", "hang ended", "closed"]


def test_an_error_of_the_body_goes_through_and_the_runtime_still_closes(fake: Fake) -> None:
    async def body(_: object) -> None:
        raise LookupError("mine")

    with pytest.raises(LookupError, match="mine"):
        on_asyncio(fake, body)
    with pytest.raises(LookupError, match="mine"), bridge_in_thread(fake.opened):
        raise LookupError("mine")
    assert fake.log == ["opened", "closed"] * 2


def test_cancelling_the_host_task_closes_the_runtime(fake: Fake) -> None:
    async def main() -> None:
        host = asyncio.create_task(hold())
        await opened.wait()
        host.cancel()
        with pytest.raises(asyncio.CancelledError):
            await host
        assert fake.log == ["opened", "hang ended", "closed"]

    async def hold() -> None:
        async with bridge_on_asyncio(fake.opened) as p:
            opened.set()
            await p(fake.hang)

    opened = asyncio.Event()
    asyncio.run(main())


@pytest.mark.parametrize("where", ["opening", "closing"])
def test_a_cancellation_reaches_the_opening_and_the_closing(fake: Fake, where: str) -> None:
    @asynccontextmanager
    async def slow() -> AsyncGenerator[None, None]:
        if where == "opening":
            hosts[0].cancel()
            await fake.hang()
        yield
        hosts[0].cancel()
        await fake.hang()

    async def hold() -> None:
        async with bridge_on_asyncio(slow):
            pass

    async def main() -> None:
        hosts.append(asyncio.create_task(hold()))
        with pytest.raises(asyncio.CancelledError):
            await hosts[0]

    hosts: list[asyncio.Task[None]] = []
    asyncio.run(main())
    assert fake.log == ["hang ended"]


def test_an_interrupt_of_asyncio_closes_the_runtime(fake: Fake) -> None:
    async def body(p: AsyncioPortal[Fake]) -> None:
        task = await begun(p, p(fake.hang))
        interrupt_the_main_thread()
        await task

    with pytest.raises(KeyboardInterrupt):
        on_asyncio(fake, body)
    assert fake.log == ["opened", "hang ended", "closed"]


def test_a_block_that_asyncio_has_to_close_is_closed(fake: Fake) -> None:
    async def main() -> None:
        await stack.enter_async_context(bridge_on_asyncio(fake.opened))

    stack = AsyncExitStack()  # outlives the loop, and nobody closes it
    asyncio.run(main())
    assert fake.log == ["opened", "closed"]
    stack.pop_all()


# -- the trio side ends by itself ------------------------------------------------------------


def test_when_the_runtime_breaks_every_call_gets_an_error_and_the_block_raises_it(fake: Fake) -> None:
    async def body(p: AsyncioPortal[Fake]) -> None:
        numbers = p.iterate(fake.count, 2)
        assert await anext(numbers) == 0
        task = await begun(p, p(fake.hang))
        await p(fake.broken.set)
        with pytest.raises(RuntimeClosedError):
            await task
        with pytest.raises(RuntimeClosedError):
            await anext(numbers)
        with pytest.raises(RuntimeClosedError):
            await p(fake.double, 1)

    with pytest.raises(ZeroDivisionError, match="the runtime broke"):
        on_asyncio(fake, body)
    assert fake.log[-1] == "closed"


def test_a_call_after_a_break_names_the_error_that_broke_the_runtime(fake: Fake) -> None:
    @asynccontextmanager
    async def broken() -> AsyncGenerator[None, None]:
        yield
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), bridge_in_thread(broken) as p:
        pass
    with pytest.raises(RuntimeClosedError) as caught:
        p(fake.double, 1)
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


def test_when_the_runtime_breaks_every_thread_gets_an_error(fake: Fake) -> None:
    def run() -> None:
        with bridge_in_thread(fake.opened) as p, ThreadPoolExecutor(4) as pool:
            calls = [pool.submit(p, fake.hang) for _ in range(4)]
            p(fake.started.wait)
            p(fake.broken.set)
            for call in calls:
                with pytest.raises(RuntimeClosedError):
                    call.result()

    with pytest.raises(ZeroDivisionError, match="the runtime broke"):
        run()


def test_when_trio_itself_breaks_nobody_hangs(fake: Fake) -> None:
    async def crash() -> None:
        trio.lowlevel.spawn_system_task(fake.fail)
        await trio.sleep_forever()

    with pytest.raises(trio.TrioInternalError):
        on_asyncio(fake, lambda p: p(crash))
    with pytest.raises(trio.TrioInternalError), bridge_in_thread(fake.opened) as p:
        p(crash)


# -- whole programs --------------------------------------------------------------------------


def run_program(text: str) -> subprocess.CompletedProcess[str]:
    program = "import contextlib, os, trio\nfrom perdure.portal import bridge_in_thread\n"
    program += textwrap.dedent(text)
    return subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False
    )


def test_a_program_that_forgets_to_leave_ends_and_closes_its_runtime() -> None:
    done = run_program("""
        @contextlib.asynccontextmanager
        async def opened():
            yield 7
            print("closed")

        p = bridge_in_thread(opened).__enter__()
        print(p(abs, -7))
    """)

    assert (done.returncode, done.stdout, done.stderr) == (0, "7\nclosed\n", "")


def test_a_process_forked_from_the_one_that_opened_is_told_so() -> None:
    done = run_program("""
        import warnings
        warnings.simplefilter("ignore", DeprecationWarning)  # of forking beside threads

        @contextlib.asynccontextmanager
        async def opened():
            yield

        with bridge_in_thread(opened) as p:
            if os.fork():
                os.wait()
                print(p(abs, -7))
            else:
                try:
                    p(abs, -7)
                except Exception as error:
                    print(type(error).__name__, flush=True)
    """)

    assert (done.returncode, done.stdout, done.stderr) == (0, "RuntimeClosedError\n7\n", "")
