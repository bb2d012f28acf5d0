"""`step.move_on_after`: a deadline that is recorded, and decides once."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio

from perdure import WorkflowCodeError, WorkflowStep

Play = Callable[..., Awaitable[Any]]


async def quick() -> str:
    return "quick"


async def for_ever() -> None:
    await trio.sleep_forever()


async def test_a_body_that_is_in_time_is_left_alone(play: Play) -> None:
    async def run(step: WorkflowStep) -> list[Any]:
        async with step.move_on_after("deadline", "1 hour") as scope:
            found = await step.do("quick", quick)
            await step.sleep("nap", "59 minutes")
        await step.sleep("after", "2 hours")
        return [found, scope.expired]

    assert ["quick", False] == (await play(run)).result


async def test_a_body_that_is_late_ends_and_the_run_goes_on(play: Play) -> None:
    async def run(step: WorkflowStep) -> list[Any]:
        got: list[Any] = []
        async with step.move_on_after("deadline", "1 hour") as scope:
            got.append(await step.do("before", quick))
            await step.sleep("nap", "2 hours")
            got.append("never")
        got.append(await step.do("after", quick))
        return [*got, scope.expired]

    played = await play(run)

    assert ["quick", "quick", True] == played.result
    assert ["completed", "completed", "cancelled", "completed"] == [row[3] for row in played.steps]


async def test_deadlines_nest_and_the_nearer_one_strikes_alone(play: Play) -> None:
    async def run(step: WorkflowStep) -> list[bool]:
        async with step.move_on_after("outer", "3 hours") as outer:
            async with step.move_on_after("inner", "1 hour") as inner:
                await step.sleep("nap", "2 hours")
            await step.sleep("rest", "1 hour")
        return [outer.expired, inner.expired]

    assert [False, True] == (await play(run)).result


async def test_the_outer_of_two_ends_both_bodies(play: Play) -> None:
    async def run(step: WorkflowStep) -> list[bool]:
        async with step.move_on_after("outer", "1 hour") as outer:
            async with step.move_on_after("inner", "3 hours") as inner:
                await step.sleep("nap", "2 hours")
            await step.sleep("never", "1 hour")
        return [outer.expired, inner.expired]

    assert [True, False] == (await play(run)).result


async def test_an_error_in_the_body_passes_through(play: Play) -> None:
    async def run(step: WorkflowStep) -> str:
        try:
            async with step.move_on_after("deadline", "1 hour"):
                await step.do("quick", quick)
                raise ZeroDivisionError
        except ZeroDivisionError:
            await step.sleep("later", "2 hours")
        return "caught"

    assert "caught" == (await play(run)).result


async def test_parallel_parts_are_all_ended(play: Play) -> None:
    async def run(step: WorkflowStep) -> bool:
        async with step.move_on_after("deadline", "1 hour") as scope:
            await step.gather("naps", {name: step.sleep(name, "2 hours") for name in ("a", "b", "c")})
        return scope.expired

    played = await play(run)

    assert played.result is True
    assert ["cancelled"] * 3 == [row[3] for row in played.steps if row[2] == "sleep"]


async def test_it_is_entered_and_not_awaited(play: Play) -> None:
    async def run(step: WorkflowStep) -> str:
        call = step.move_on_after("deadline", "1 hour")
        with pytest.raises(WorkflowCodeError, match="async with step.move_on_after"):
            await call
        async with call:
            return "refused"

    assert "refused" == (await play(run)).result
