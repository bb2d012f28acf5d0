"""The portal: calls and iterators cross, errors keep their identity, nobody hangs.

The fakes are small async context managers in place of a runtime; trio and asyncio are real. Each
test runs its own asyncio loop or thread, so no test here is a coroutine.
"""

from __future__ import annotations

import asyncio
import contextvars
import signal
import threading
import traceback
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, asynccontextmanager
from functools import partial
from typing import Any, TypeVar, assert_type

import pytest
import trio

from perdure.errors import InvalidArgumentError, RuntimeClosedError, StateLockedError
from perdure.portal import AsyncioPortal, bridge_in_thread, bridge_on_asyncio

T = TypeVar("T")
WHO: contextvars.ContextVar[str] = contextvars.ContextVar("WHO", default="nobody")


class Fake:
    """Stands where a runtime stands, and records what happens to it."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.started = trio.Event()
        self.released = trio.Event()

    @asynccontextmanager
    async def opened(self) -> AsyncGenerator[Fake, None]:
        self.log.append("opened")
        try:
            yield self
        finally:
            self.log.append("closed")

    async def double(self, number: int, *, plus: int = 0) -> int:
        await trio.lowlevel.checkpoint()
        return 2 * number + plus

    def who(self) -> str:
        return WHO.get()

    async def fail(self) -> None:
        await trio.lowlevel.checkpoint()
        raise StateLockedError("taken", path="state", pid=7)

    async def hang(self) -> None:
        self.started.set()
        try:
            await trio.sleep_forever()
        finally:
            self.log.append("hang ended")

    async def hang_slowly(self) -> None:
        """End, when cancelled, only after `released` is set."""
        self.started.set()
        try:
            await trio.sleep_forever()
        finally:
            with trio.CancelScope(shield=True):
                await self.released.wait()
            self.log.append("slow hang ended")

    async def hang_and_fail(self) -> None:
        self.started.set()
        try:
            await trio.sleep_forever()
        finally:
            raise StateLockedError("in cleanup")

    async def count(self, stop: int) -> AsyncGenerator[int, None]:
        """Yield from inside a cancel scope, which only works if one task does it all."""
        try:
            with trio.CancelScope():
                for number in range(stop):
                    await trio.lowlevel.checkpoint()
                    self.log.append(f"made {number}")
                    yield number
        finally:
            self.log.append("count ended")

    async def count_later(self, stop: int) -> AsyncGenerator[int, None]:
        await trio.lowlevel.checkpoint()
        return self.count(stop)

    @asynccontextmanager
    async def counting(self, stop: int) -> AsyncGenerator[AsyncGenerator[int, None], None]:
        self.log.append("counting")
        yield self.count(stop)
        self.log.append("counted")

    async def count_and_fail(self) -> AsyncGenerator[int, None]:
        yield 0
        await self.fail()

    async def count_and_hang(self) -> AsyncGenerator[int, None]:
        yield 0
        await self.hang()


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


# -- calls -----------------------------------------------------------------------------------


def test_a_call_from_asyncio_returns_what_the_function_returns(fake: Fake) -> None:
    async def body(p: AsyncioPortal[Fake]) -> None:
        assert p.runtime is fake
        assert assert_type(await p(fake.double, 4), int) == 8
        assert assert_type(await p(fake.double, 4, plus=1), int) == 9
        assert assert_type(await p(partial(fake.double, plus=1), 4), int) == 9
        assert assert_type(await p(fake.who), str) == "nobody"
        assert sorted(await asyncio.gather(*[p(fake.double, n) for n in range(50)])) == list(range(0, 100, 2))

    on_asyncio(fake, body)
    assert fake.log == ["opened", "closed"]


def test_a_call_from_a_thread_returns_what_the_function_returns(fake: Fake) -> None:
    with bridge_in_thread(fake.opened) as p:
        assert p.runtime is fake
        assert assert_type(p(fake.double, 4), int) == 8
        assert assert_type(p(fake.double, 4, plus=1), int) == 9
        assert assert_type(p(fake.who), str) == "nobody"
        with ThreadPoolExecutor(8) as pool:
            assert list(pool.map(partial(p, fake.double), range(200))) == list(range(0, 400, 2))
    assert fake.log == ["opened", "closed"]


def test_an_error_keeps_its_class_its_fields_and_its_traceback(fake: Fake) -> None:
    async def body(p: AsyncioPortal[Fake]) -> None:
        with pytest.raises(StateLockedError) as caught:
            await p(fake.fail)
        check(caught.value)

    def check(error: StateLockedError) -> None:
        assert error.pid == 7
        assert not hasattr(error, "__notes__")
        assert traceback.extract_tb(error.__traceback__)[-1].name == "fail"

    on_asyncio(fake, body)
    with bridge_in_thread(Fake().opened) as p:
        with pytest.raises(StateLockedError) as caught:
            p(fake.fail)
        check(caught.value)


def test_a_call_sees_the_context_variables_of_its_caller(fake: Fake) -> None:
    async def body(p: AsyncioPortal[Fake]) -> str:
        WHO.set("ada")
        return await p(fake.who)

    assert on_asyncio(fake, body) == "ada"
    with bridge_in_thread(fake.opened) as p:
        token = WHO.set("ada")
        assert p(fake.who) == "ada"
        WHO.reset(token)
        assert p(fake.who) == "nobody"


def test_a_call_from_the_trio_side_or_from_another_loop_is_refused(fake: Fake) -> None:
    async def body(p: AsyncioPortal[Fake]) -> None:
        with pytest.raises(InvalidArgumentError, match="trio side already"):
            await p(lambda: p(fake.double, 1))
        with pytest.raises(InvalidArgumentError, match="another event loop"):
            await asyncio.to_thread(lambda: asyncio.run(p(fake.double, 1)))

    on_asyncio(fake, body)
    with bridge_in_thread(fake.opened) as q, pytest.raises(InvalidArgumentError, match="trio side already"):
        q(lambda: q(fake.double, 1))


def test_a_portal_refuses_calls_after_its_end(fake: Fake) -> None:
    async def main() -> None:
        async with bridge_on_asyncio(fake.opened) as p:
            pass
        with pytest.raises(RuntimeClosedError):
            await p(fake.who)

    asyncio.run(main())
    with bridge_in_thread(fake.opened) as q:
        pass
    with pytest.raises(RuntimeClosedError):
        q(fake.who)
    with pytest.raises(RuntimeClosedError):
        next(q.iterate(fake.count, 1))


# -- cancellation ----------------------------------------------------------------------------


def test_a_cancelled_task_goes_on_only_when_its_call_has_ended(fake: Fake) -> None:
    async def body(p: AsyncioPortal[Fake]) -> None:
        task = await begun(p, p(fake.hang_slowly))
        for _ in range(3):
            task.cancel()
            await p(fake.double, 1)
            assert not task.done()
        fake.released.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert fake.log == ["opened", "slow hang ended"]

    on_asyncio(fake, body)


def test_an_error_raised_while_a_cancelled_call_ends_is_not_lost(fake: Fake) -> None:
    async def body(p: AsyncioPortal[Fake]) -> None:
        task = await begun(p, p(fake.hang_and_fail))
        task.cancel()
        with pytest.raises(StateLockedError, match="in cleanup"):
            await task

    on_asyncio(fake, body)


def test_an_asyncio_timeout_ends_a_call(fake: Fake) -> None:
    async def body(p: AsyncioPortal[Fake]) -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0):
                await p(fake.hang)

    on_asyncio(fake, body)


def interrupt_the_main_thread() -> None:
    ident = threading.main_thread().ident
    assert ident is not None
    signal.pthread_kill(ident, signal.SIGINT)


def test_an_interrupt_cancels_the_call_and_waits_for_its_end(fake: Fake) -> None:
    async def interrupted() -> None:
        interrupt_the_main_thread()
        await fake.hang()

    with bridge_in_thread(fake.opened) as p:
        with pytest.raises(KeyboardInterrupt):
            p(interrupted)
        assert fake.log == ["opened", "hang ended"]
        assert p(fake.double, 2) == 4


def test_an_interrupt_while_opening_gives_the_opening_up(fake: Fake) -> None:
    @asynccontextmanager
    async def opening() -> AsyncGenerator[None, None]:
        interrupt_the_main_thread()
        await fake.hang()
        yield

    with pytest.raises(KeyboardInterrupt), bridge_in_thread(opening):
        pytest.fail("it never opened")
    assert fake.log == ["hang ended"]


def test_an_interrupt_while_closing_hurries_the_closing(fake: Fake) -> None:
    @asynccontextmanager
    async def closing() -> AsyncGenerator[None, None]:
        yield
        interrupt_the_main_thread()
        await fake.hang()

    with pytest.raises(KeyboardInterrupt), bridge_in_thread(closing):
        pass
    assert fake.log == ["hang ended"]


# -- iterators -------------------------------------------------------------------------------


def test_iterators_of_every_form_cross(fake: Fake) -> None:
    async def body(p: AsyncioPortal[Fake]) -> None:
        assert [assert_type(n, int) async for n in p.iterate(fake.count, 3)] == [0, 1, 2]
        assert [assert_type(n, int) async for n in p.iterate(fake.count_later, 3)] == [0, 1, 2]
        assert [assert_type(n, int) async for n in p.iterate(fake.counting, stop=3)] == [0, 1, 2]

    on_asyncio(fake, body)
    with bridge_in_thread(fake.opened) as p:
        assert [assert_type(n, int) for n in p.iterate(fake.count, 3)] == [0, 1, 2]
        assert [assert_type(n, int) for n in p.iterate(fake.count_later, 3)] == [0, 1, 2]
        assert [assert_type(n, int) for n in p.iterate(fake.counting, stop=3)] == [0, 1, 2]
    assert fake.log.count("counted") == 2


def test_closing_early_closes_the_trio_side_and_nothing_was_made_ahead(fake: Fake) -> None:
    expected = ["opened", "made 0", "made 1", "count ended"]

    async def body(p: AsyncioPortal[Fake]) -> None:
        async with aclosing(p.iterate(fake.count, 9)) as numbers:
            async for number in numbers:
                if number == 1:
                    break
        assert fake.log == expected

    on_asyncio(fake, body)
    fake.log.clear()
    with bridge_in_thread(fake.opened) as p:
        for number in p.iterate(fake.count, 9):
            if number == 1:
                break
        assert fake.log == expected


def test_an_error_in_an_iterator_reaches_its_reader(fake: Fake) -> None:
    async def body(p: AsyncioPortal[Fake]) -> None:
        numbers = p.iterate(fake.count_and_fail)
        assert await anext(numbers) == 0
        with pytest.raises(StateLockedError):
            await anext(numbers)

    on_asyncio(fake, body)
    with bridge_in_thread(fake.opened) as p:
        numbers = p.iterate(fake.count_and_fail)
        assert next(numbers) == 0
        with pytest.raises(StateLockedError):
            next(numbers)


def test_cancelling_a_reader_ends_the_iterator(fake: Fake) -> None:
    async def read(p: AsyncioPortal[Fake]) -> list[int]:
        return [number async for number in p.iterate(fake.count_and_hang)]

    async def body(p: AsyncioPortal[Fake]) -> None:
        task = await begun(p, read(p))
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert fake.log == ["opened", "hang ended"]

    on_asyncio(fake, body)
