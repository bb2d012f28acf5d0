"""What is known of a step function: read once, and never mistaken for that of another."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from perdure.actors.callee import callee_of
from perdure.actors.context import StepContext
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
