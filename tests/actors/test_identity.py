"""Names: which use of a name a call is, and the refusal where nobody could tell."""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio
import trio.testing

from perdure.actors.identity import Names, describe, function_identity
from perdure.errors import AmbiguousStepError, InvalidNameError

Branch = Callable[[], Awaitable[object]]


async def in_parallel(*branches: Branch) -> None:
    async with trio.open_nursery() as nursery:
        for branch in branches:
            nursery.start_soon(branch)


def one(work: Callable[[], Any]) -> Any:
    return work()


def another(work: Callable[[], Any]) -> Any:
    return work()


# -- counting ----------------------------------------------------------------------------------


async def test_uses_of_a_name_are_counted_by_kind() -> None:
    names = Names(trio.lowlevel.current_task())

    assert [("a", 1), ("a", 2), ("b", 1)] == [names.claim("do", name) for name in ("a", "a", "b")]
    assert ("a", 1) == names.claim("sleep", "a")
    assert ("a", 3) == names.claim("do", "a")


async def test_a_key_makes_another_name() -> None:
    names = Names(trio.lowlevel.current_task())

    assert ("charge[order-1]", 1) == names.claim("do", "charge", key="order-1")
    assert ("charge[0]", 1) == names.claim("do", "charge", key=0)
    assert ("charge", 1) == names.claim("do", "charge")


async def test_a_refused_name_has_not_been_counted() -> None:
    names = Names(trio.lowlevel.current_task())
    names.claim("do", "a", function=function_identity(one))
    with pytest.raises(AmbiguousStepError):
        names.claim("do", "a", function=function_identity(another))
    for bad in ("", "a\nb", "x" * 257):
        with pytest.raises(InvalidNameError):
            names.claim("do", bad)

    assert ("a", 2) == names.claim("do", "a", function=function_identity(one))


# -- branches ----------------------------------------------------------------------------------


async def test_two_branches_may_not_share_a_name() -> None:
    names = Names(trio.lowlevel.current_task())
    refused: list[str] = []

    async def branch() -> None:
        try:
            names.claim("do", "a")
        except AmbiguousStepError as error:
            refused.append(str(error))

    await in_parallel(branch, branch)

    assert 1 == len(refused)
    assert "key=" in refused[0]


async def test_a_branch_that_has_ended_still_has_its_name_while_its_nursery_is_open() -> None:
    names = Names(trio.lowlevel.current_task())
    first_done = trio.Event()

    async def first() -> None:
        names.claim("do", "a")
        first_done.set()

    async def second() -> None:
        await first_done.wait()
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(AmbiguousStepError):
            names.claim("do", "a")

    await in_parallel(first, second)


async def test_after_its_nursery_has_closed_a_name_may_be_used_again() -> None:
    names = Names(trio.lowlevel.current_task())
    claimed: list[tuple[str, int]] = []

    async def branch() -> None:
        claimed.append(names.claim("do", "a"))

    await in_parallel(branch)
    claimed.append(names.claim("do", "a"))
    await in_parallel(branch_of_its_own(names, claimed))

    assert [("a", 1), ("a", 2), ("a[own]", 1)] == claimed


def branch_of_its_own(names: Names, claimed: list[tuple[str, int]]) -> Branch:
    async def branch() -> None:
        claimed.append(names.claim("do", "a", key="own"))

    return branch


async def test_one_nursery_after_another_may_use_the_same_name() -> None:
    names = Names(trio.lowlevel.current_task())
    claimed: list[tuple[str, int]] = []

    async def branch() -> None:
        claimed.append(names.claim("do", "a"))

    for _ in range(3):
        await in_parallel(branch)

    assert [("a", 1), ("a", 2), ("a", 3)] == claimed


async def test_the_body_of_a_nursery_may_not_repeat_what_a_child_of_it_asked_for() -> None:
    names = Names(trio.lowlevel.current_task())
    asked = trio.Event()

    async def child() -> None:
        names.claim("do", "a")
        asked.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(child)
        await asked.wait()
        with pytest.raises(AmbiguousStepError):
            names.claim("do", "a")
    assert ("a", 2) == names.claim("do", "a")


async def test_branches_of_branches_are_told_apart() -> None:
    names = Names(trio.lowlevel.current_task())
    refused: list[str] = []

    async def leaf() -> None:
        try:
            names.claim("do", "a")
        except AmbiguousStepError:
            refused.append("a")

    async def branch() -> None:
        await in_parallel(leaf)

    await in_parallel(branch, branch)

    assert ["a"] == refused


# -- functions ---------------------------------------------------------------------------------


class Shop:
    def sell(self) -> str:
        return "sold"


async def test_one_function_is_the_same_in_every_dress() -> None:
    shop = Shop()

    assert function_identity(shop.sell) == function_identity(Shop().sell) == function_identity(Shop.sell)
    assert function_identity(one) == function_identity(functools.partial(one, int))
    assert function_identity(one) != function_identity(another)
    assert function_identity(len) != function_identity(max)


async def test_a_lambda_made_anew_is_the_same_function() -> None:
    def make() -> Callable[[], int]:
        return lambda: 1

    assert function_identity(make()) == function_identity(make())


async def test_a_function_is_told_by_name_and_line() -> None:
    told = describe(function_identity(one))

    assert told.startswith("one (")
    assert told.endswith(f"{__file__}:{one.__code__.co_firstlineno})")
    assert "len" == describe(function_identity(len))


async def test_one_key_does_not_make_two_functions_one() -> None:
    names = Names(trio.lowlevel.current_task())
    names.claim("do", "a", key=1, function=function_identity(one))

    with pytest.raises(AmbiguousStepError, match="one name stands for one function"):
        names.claim("do", "a", key=2, function=function_identity(another))
