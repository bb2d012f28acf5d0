"""How one step function is run: which kind it is, in the loop, in a thread."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from functools import partial
from math import factorial
from pathlib import Path
from typing import Any, NoReturn

import pytest
import trio

from perdure.actors.functions import (
    FunctionHost,
    asyncio_step,
    classify,
    open_function_host,
    process_step,
)
from perdure.actors.switching import SWITCH_INTERVAL_S
from perdure.errors import (
    InvalidArgumentError,
    NonRetryableError,
)

COLOUR = contextvars.ContextVar("COLOUR", default="none")


@pytest.fixture
async def host() -> AsyncIterator[FunctionHost]:
    async with open_function_host(threads_max=2, processes_max=2) as opened:
        yield opened


async def on_trio(value: int) -> int:
    await trio.lowlevel.checkpoint()
    return value + 1


def plain(value: int) -> int:
    return value + 1


@asyncio_step
async def on_asyncio(value: int) -> int:
    await asyncio.sleep(0)
    return value + 1


@process_step
def in_process(value: int, *, add: int = 1) -> int:
    return value + add


class Service:
    @asyncio_step
    async def fetch(self, value: int) -> int:
        await asyncio.sleep(0)
        return value + 1

    @process_step
    def crunch(self) -> None: ...

    def plain(self) -> None: ...

    @staticmethod
    @process_step
    def double(value: int) -> int:
        return value * 2

    @classmethod
    def named(cls, value: int) -> str:
        return f"{cls.__name__}{value}"

    async def __call__(self) -> None: ...


@process_step
def hidden(value: int) -> int:
    return value


def other() -> None: ...


hidden_by_another = hidden


globals()["hidden"] = other


async def _of_asyncio() -> int:
    return await on_asyncio(1)


# -- which kind ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("expected", "fn"),
    [
        ("trio", on_trio),
        ("trio", partial(on_trio, 1)),
        ("trio", partial(partial(on_trio), 1)),
        ("trio", Service()),
        ("trio", partial(Service())),
        ("plain", plain),
        ("plain", lambda: on_trio(1)),
        ("plain", partial(plain, 1)),
        ("plain", len),
        ("plain", Path),
        ("plain", Service().named),
        ("asyncio", on_asyncio),
        ("asyncio", partial(on_asyncio, 1)),
        ("asyncio", asyncio_step(on_trio)),
        ("asyncio", asyncio_step(lambda: on_trio(1))),
        ("asyncio", Service().fetch),
        ("process", in_process),
        ("process", partial(in_process, 1)),
        ("process", process_step(partial(plain, 1))),
        ("process", process_step(factorial)),
        ("process", process_step(Service.named)),
        ("process", Service.double),
    ],
)
def test_a_step_function_says_how_it_is_run(expected: str, fn: Callable[..., Any]) -> None:
    assert expected == classify(fn)


def test_in_a_workflow_on_asyncio_coroutine_functions_are_of_asyncio_and_others_are_as_ever() -> None:
    assert "asyncio" == classify(on_trio, "asyncio")
    assert "asyncio" == classify(partial(on_trio, 1), "asyncio")
    assert "plain" == classify(plain, "asyncio")
    assert "process" == classify(in_process, "asyncio")


def test_a_decorator_above_ours_keeps_the_kind() -> None:
    @functools.wraps(in_process)
    def logged(*args: Any) -> int:
        return in_process(*args)

    @functools.wraps(on_asyncio)
    def logged_too(*args: Any) -> Any:
        return on_asyncio(*args)

    assert "process" == classify(logged)
    assert "asyncio" == classify(logged_too)


async def test_a_decorated_function_still_runs_where_it_is_called() -> None:
    assert 3 == in_process(1, add=2)
    assert 4 == Service.double(2)
    assert 2 == await trio.to_thread.run_sync(lambda: asyncio.run(_of_asyncio()))


def test_what_cannot_be_called_is_refused() -> None:
    nothing: Any = None
    with pytest.raises(InvalidArgumentError, match="None cannot be called"):
        classify(nothing)
    with pytest.raises(InvalidArgumentError, match="None cannot be called"):
        asyncio_step(nothing)
    with pytest.raises(InvalidArgumentError, match="None cannot be called"):
        process_step(nothing)


def test_a_coroutine_is_refused_with_the_way_to_write_it() -> None:
    called: Any = on_trio(1)
    with pytest.raises(
        InvalidArgumentError, match=r"was called already: write step\.do\(name, on_trio, \.\.\.\)"
    ):
        classify(called)


def test_a_generator_runs_where_its_kind_of_function_does_and_never_in_a_process() -> None:
    def numbers() -> Iterator[int]:
        yield 1

    async def later_numbers() -> AsyncIterator[int]:
        yield 1

    assert ["plain", "plain"] == [classify(numbers), classify(partial(numbers), "asyncio")]
    assert ["trio", "asyncio"] == [classify(later_numbers), classify(later_numbers, "asyncio")]
    assert "asyncio" == classify(asyncio_step(later_numbers))
    with pytest.raises(InvalidArgumentError, match="is a generator"):
        process_step(numbers)


@pytest.mark.parametrize(
    ("reason", "fn"),
    [
        ("it is a lambda", lambda: 1),
        ("it is a method of a Service object", Service().plain),
        ("it has no module and name of its own", "".upper),
        ("it has no module and name of its own", partial("".upper)),
    ],
)
def test_a_process_step_that_a_child_could_not_find_is_refused_where_it_is_made(
    reason: str, fn: Callable[[], Any]
) -> None:
    with pytest.raises(InvalidArgumentError, match=f"cannot be a process step.*{reason}"):
        process_step(fn)


def test_a_local_function_is_no_process_step() -> None:
    def local() -> None: ...

    with pytest.raises(InvalidArgumentError, match="it is defined inside a function"):
        process_step(local)


def test_an_async_function_is_no_process_step() -> None:
    with pytest.raises(InvalidArgumentError, match="is async and cannot be a process step"):
        process_step(on_trio)


def test_a_process_step_bound_to_an_object_is_refused_when_it_is_used() -> None:
    with pytest.raises(InvalidArgumentError, match="it is a method of a Service object"):
        classify(Service().crunch)


def test_a_process_step_whose_name_means_something_else_is_refused_when_it_is_used() -> None:
    with pytest.raises(InvalidArgumentError, match="is another object by now"):
        classify(hidden_by_another)


# -- in the loop ---------------------------------------------------------------------------


async def test_a_coroutine_function_runs_in_the_loop(host: FunctionHost) -> None:
    async def here() -> int:
        return threading.get_ident()

    assert threading.get_ident() == await host.call("trio", here)


@pytest.mark.parametrize(
    "needs_asyncio", [lambda: asyncio.sleep(0), lambda: asyncio.sleep(1), asyncio.get_running_loop]
)
async def test_an_asyncio_call_in_a_trio_step_is_explained(
    host: FunctionHost, needs_asyncio: Callable[[], Any]
) -> None:
    cleaned = False

    async def mistaken() -> None:
        nonlocal cleaned
        try:
            await needs_asyncio()
        finally:
            cleaned = True

    with pytest.raises(
        NonRetryableError, match=r"mistaken called something that needs asyncio.*asyncio_step\(mist"
    ):
        await host.call("trio", mistaken)
    assert cleaned


async def test_an_asyncio_call_in_a_worker_thread_is_explained(host: FunctionHost) -> None:
    with pytest.raises(NonRetryableError, match="runs in a worker thread.*step_library"):
        await host.call("plain", asyncio.get_running_loop)
    with pytest.raises(NonRetryableError, match="needs asyncio"):
        await host.call("plain", lambda: asyncio.sleep(0))


async def test_any_other_error_of_a_trio_step_is_left_as_it_is(host: FunctionHost) -> None:
    error = RuntimeError("the loop of the belt is worn")

    async def failing() -> None:
        raise error

    with pytest.raises(RuntimeError) as caught:
        await host.call("trio", failing)
    assert error is caught.value


# -- in a thread ---------------------------------------------------------------------------


async def test_a_plain_function_runs_in_a_thread_with_the_context_of_its_caller(host: FunctionHost) -> None:
    COLOUR.set("blue")

    thread, colour = await host.call("plain", lambda: (threading.get_ident(), COLOUR.get()))

    assert threading.get_ident() != thread
    assert "blue" == colour


async def test_what_a_plain_function_raises_comes_back_itself(host: FunctionHost) -> None:
    error = ValueError("no")

    def failing() -> NoReturn:
        raise error

    with pytest.raises(ValueError) as caught:
        await host.call("plain", failing)
    assert error is caught.value


async def test_an_awaitable_that_a_plain_function_returns_is_awaited_by_the_step_library(
    host: FunctionHost,
) -> None:
    assert 2 == await host.call("plain", lambda: on_trio(1))
    assert 2 == await host.call("plain", lambda: on_asyncio(1), library="asyncio")


async def test_a_plain_function_may_call_back_into_the_loop(host: FunctionHost) -> None:
    assert 2 == await host.call("plain", lambda: trio.from_thread.run(on_trio, 1))


async def test_a_cancelled_plain_function_is_told_and_waited_for_before_cancellation_goes_on(
    host: FunctionHost,
) -> None:
    started, told, ended = trio.Event(), threading.Event(), threading.Event()

    def stubborn() -> str:
        trio.from_thread.run_sync(started.set)
        assert told.wait(30)
        ended.set()
        return "dropped"

    async with trio.open_nursery() as nursery:

        async def cancel() -> None:
            await started.wait()
            nursery.cancel_scope.cancel()

        nursery.start_soon(cancel)
        await host.call("plain", stubborn, on_cancel=told.set)
        raise AssertionError("went on after its cancellation")
    assert nursery.cancel_scope.cancelled_caught
    assert ended.is_set()


async def test_what_a_cancelled_plain_function_raises_is_dropped(host: FunctionHost) -> None:
    told = threading.Event()

    def stubborn() -> NoReturn:
        trio.from_thread.run_sync(scope.cancel)
        assert told.wait(30)
        raise ValueError("dropped")

    with trio.CancelScope() as scope:
        await host.call("plain", stubborn, on_cancel=told.set)
    assert scope.cancelled_caught


async def test_a_plain_function_that_ends_in_time_is_not_told_of_anything(host: FunctionHost) -> None:
    told: list[None] = []

    assert 2 == await host.call("plain", plain, (1,), on_cancel=lambda: told.append(None))

    assert [] == told


async def test_no_more_plain_functions_run_at_once_than_there_are_threads(host: FunctionHost) -> None:
    let_go = threading.Event()
    running: list[int] = []
    both_run = trio.Event()

    def occupy(number: int) -> None:
        running.append(number)
        if len(running) == 2:
            trio.from_thread.run_sync(both_run.set)
        assert let_go.wait(30)

    async with trio.open_nursery() as nursery:
        for number in range(3):
            nursery.start_soon(host.call, "plain", occupy, (number,))
        await both_run.wait()
        await trio.testing.wait_all_tasks_blocked()
        assert 2 == host.statistics().threads_busy
        assert 2 == len(running)
        let_go.set()
    assert 3 == len(running)
    assert 0 == host.statistics().threads_busy


async def test_a_call_that_is_cancelled_before_its_turn_does_not_start(host: FunctionHost) -> None:
    let_go = threading.Event()
    started: list[None] = []
    async with trio.open_nursery() as nursery:
        for _ in range(2):
            nursery.start_soon(host.call, "plain", partial(let_go.wait, 30))
        await trio.testing.wait_all_tasks_blocked()
        with trio.CancelScope() as scope:
            scope.cancel()
            await host.call("plain", lambda: started.append(None))
        let_go.set()

    assert [] == started


async def test_threads_are_switched_more_often_while_a_host_is_open() -> None:
    before_s = sys.getswitchinterval()
    async with open_function_host(threads_max=1, processes_max=1):
        assert SWITCH_INTERVAL_S == pytest.approx(sys.getswitchinterval())
        async with open_function_host(threads_max=1, processes_max=1):
            pass
        assert SWITCH_INTERVAL_S == pytest.approx(sys.getswitchinterval())
    assert before_s == pytest.approx(sys.getswitchinterval())
