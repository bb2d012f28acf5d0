"""What is known of a step function: read once, and never mistaken for that of another."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from typing import Any

import pytest
import trio

from perdure.actors.callee import callee_of
from perdure.actors.context import StepContext
from perdure.actors.functions import asyncio_step
from perdure.errors import InvalidArgumentError


def returning(annotation: Any) -> Callable[[], Awaitable[Any]]:
    async def fetch() -> Any:
        return None

    fetch.__annotations__["return"] = annotation
    return fetch


def test_a_function_is_read_once() -> None:
    async def fetch() -> int:
        return 1

    assert callee_of(fetch, "trio") is callee_of(fetch, "trio")


def test_a_lambda_made_anew_is_known_already() -> None:
    def make() -> Callable[[], int]:
        return lambda: 1

    assert callee_of(make(), "trio") is callee_of(make(), "trio")


def test_one_code_with_two_annotations_has_two_results() -> None:
    assert int is callee_of(returning(int), "trio").returns
    assert str is callee_of(returning(str), "trio").returns
    assert int is callee_of(returning(int), "trio").returns


def test_one_function_runs_differently_in_workflows_of_two_libraries() -> None:
    fetch = returning(int)

    assert "trio" == callee_of(fetch, "trio").kind
    assert "asyncio" == callee_of(fetch, "asyncio").kind


def test_the_context_goes_where_the_annotation_stands() -> None:
    def second(_number: int, _context: StepContext) -> None: ...
    def keyword(_number: int, *, _context: StepContext) -> None: ...
    def named(context: int) -> None: ...

    assert (1, None) == (callee_of(second, "trio").position, callee_of(second, "trio").keyword)
    assert (None, "_context") == (callee_of(keyword, "trio").position, callee_of(keyword, "trio").keyword)
    assert (None, None) == (callee_of(named, "trio").position, callee_of(named, "trio").keyword)


def test_a_bound_method_has_its_context_one_place_earlier_than_its_function() -> None:
    class Shop:
        def sell(self, _context: StepContext) -> None: ...

    assert 1 == callee_of(Shop.sell, "trio").position
    assert 0 == callee_of(Shop().sell, "trio").position


@pytest.mark.parametrize("nothing", [3, "fetch", None])
def test_what_cannot_be_called_is_refused(nothing: Any) -> None:
    with pytest.raises(InvalidArgumentError, match="a step needs a function"):
        callee_of(nothing, "trio")


# -- what surely never waits -------------------------------------------------------------------


async def at_once(number: int) -> int:
    return [each for each in range(number + 1)][-1]  # noqa: C416 - a comprehension is code of its own


async def by_await() -> None:
    await trio.lowlevel.checkpoint()


async def by_block() -> None:
    async with trio.open_nursery():
        pass


async def by_loop(items: AsyncIterator[int]) -> list[int]:
    return [item async for item in items]


async def with_context(context: StepContext) -> int:
    return context.attempt


def plain() -> int:
    return 1


def test_a_coroutine_function_without_any_await_never_waits() -> None:
    assert callee_of(at_once, "trio").never_waits


@pytest.mark.parametrize(
    "fn", [by_await, by_block, by_loop, plain, asyncio_step(at_once), partial(at_once, 1)]
)
def test_whatever_may_wait_is_run_where_it_can(fn: Callable[..., Any]) -> None:
    assert not callee_of(fn, "trio").never_waits


def test_a_function_that_takes_its_context_or_runs_on_asyncio_is_not_run_on_the_spot() -> None:
    assert not callee_of(with_context, "trio").never_waits
    assert not callee_of(at_once, "asyncio").never_waits
