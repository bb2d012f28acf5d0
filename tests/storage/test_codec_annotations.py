"""The return annotation is found behind whatever stands around a function."""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Coroutine
from typing import Any, NamedTuple

import msgspec
import pytest

from perdure.errors import EncodingError
from perdure.storage.codec import Codec, return_annotation


class Order(msgspec.Struct):
    number: int


class Point(NamedTuple):
    x: int
    y: int


def module_level() -> list[int]:
    raise NotImplementedError


def misspelt() -> None:
    raise NotImplementedError


misspelt.__annotations__["return"] = "Itme"


def plain_that_returns_a_coroutine() -> Coroutine[Any, Any, Order]:
    raise NotImplementedError


def plain_that_returns_an_awaitable() -> Awaitable[Order]:
    raise NotImplementedError


async def with_unknown_parameter(a: int) -> Order:
    raise NotImplementedError


with_unknown_parameter.__annotations__["a"] = "Itme"


@functools.wraps(module_level)
def wrapped(*args: Any) -> Any:
    raise NotImplementedError


class Service:
    def method(self) -> Order:
        raise NotImplementedError

    @classmethod
    def of_class(cls) -> Order:
        raise NotImplementedError

    def __call__(self) -> Point:
        raise NotImplementedError


@pytest.mark.parametrize(
    ("fn", "annotation"),
    [
        (module_level, list[int]),
        (functools.partial(functools.partial(module_level)), list[int]),
        (functools.lru_cache(module_level), list[int]),
        (wrapped, list[int]),
        (plain_that_returns_a_coroutine, Order),
        (plain_that_returns_an_awaitable, Order),
        (with_unknown_parameter, Order),
        (Service().method, Order),
        (Service.of_class, Order),
        (Service(), Point),
        (Order, Order),
        (lambda: 1, Any),
        (len, Any),
        (functools.partial(len), Any),
        (object(), Any),
    ],
)
def test_the_return_annotation_of_anything_callable_is_found(fn: Any, annotation: Any) -> None:
    assert annotation == return_annotation(fn)
    assert annotation == return_annotation(fn)


def test_a_class_of_an_enclosing_function_is_found_in_an_annotation() -> None:
    class Local(msgspec.Struct):
        a: int

    def make() -> Local:
        return Local(1)

    assert return_annotation(make) is Local


def test_an_annotation_that_cannot_be_resolved_is_any_and_is_named_when_it_matters() -> None:
    coder = Codec().coder(return_annotation(misspelt))
    assert ("[1]", [1]) == coder.record([1])
    with pytest.raises(EncodingError, match="annotation 'Itme' could not be resolved .*NameError"):
        coder.record((1,))
