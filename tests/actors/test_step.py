"""`WorkflowStep`: what its methods accept and refuse, and what all calls have in common."""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

import perdure
from perdure import InvalidArgumentError, WorkflowCodeError, WorkflowStep

Play = Callable[..., Awaitable[Any]]


async def double(number: int) -> int:
    return number * 2


# -- the forms of do ---------------------------------------------------------------------------


async def test_a_declared_step_bears_the_name_of_its_function_and_runs_when_called(play: Play) -> None:
    async def run(step: WorkflowStep) -> list[int]:
        @step.do()
        async def add(one: int, two: int) -> int:
            return one + two

        @step.do("a name of its own", retries=0)
        async def subtract(one: int, two: int) -> int:
            return one - two

        return [await add(1, 2), await subtract(5, 1), await add(3, 4)]

    played = await play(run)

    assert [3, 4, 7] == played.result
    assert [("add", 1), ("a name of its own", 1), ("add", 2)] == [row[:2] for row in played.steps]


async def test_keyword_arguments_go_through_a_partial(play: Play) -> None:
    async def scale(number: int, *, by: int) -> int:
        return number * by

    async def run(step: WorkflowStep) -> int:
        return await step.do("scale", functools.partial(scale, by=5), 3)

    assert 15 == (await play(run)).result


async def test_returns_takes_the_place_of_the_annotation(play: Play) -> None:
    def stamp() -> Any:
        return datetime(2030, 1, 1, tzinfo=UTC)

    async def run(step: WorkflowStep) -> int:
        return (await step.do("stamp", stamp, returns=datetime)).year

    assert 2030 == (await play(run)).result


async def test_a_key_is_part_of_the_name(play: Play) -> None:
    async def run(step: WorkflowStep) -> list[int]:
        return [await step.do("double", double, number, key=number) for number in (1, 2)]

    played = await play(run)

    assert ([2, 4], ["double[1]", "double[2]"]) == (played.result, [row[0] for row in played.steps])


# -- refusals ----------------------------------------------------------------------------------

NOTHING: Any = None
FIVE: Any = 5
NO_PARTS: dict[str, Callable[[], int]] = {}
REFUSED: dict[str, Callable[[WorkflowStep], object]] = {
    "no name": lambda step: step.do(NOTHING, double, 1),
    "no function": lambda step: step.do("x", FIVE),
    "retries below 0": lambda step: step.do("x", double, 1, retries=-1),
    "no time": lambda step: step.do("x", double, 1, timeout=0),
    "a past duration": lambda step: step.sleep("x", -1),
    "a naive time": lambda step: step.sleep_until("x", datetime(2030, 1, 1)),
    "an event type of nothing": lambda step: step.wait_for_event("x", type=""),
    "an event that never may come": lambda step: step.wait_for_event("x", type="t", timeout="5 fortnights"),
    "an empty name": lambda step: step.sleep("", 1),
    "a deadline of nothing": lambda step: step.move_on_after("x", "soon"),
    "no parts": lambda step: step.gather("x", NO_PARTS),
}


@pytest.mark.parametrize("what", REFUSED)
async def test_what_cannot_be_is_refused_where_it_stands_and_leaves_nothing(play: Play, what: str) -> None:
    async def run(step: WorkflowStep) -> str:
        with pytest.raises(InvalidArgumentError):
            REFUSED[what](step)
        return "refused"

    played = await play(run)

    assert ("refused", []) == (played.result, played.steps)


async def test_a_call_is_awaited_once(play: Play) -> None:
    async def run(step: WorkflowStep) -> int:
        call = step.do("double", double, 1)
        result = await call
        with pytest.raises(WorkflowCodeError, match="awaited twice: keep its result in a variable"):
            await call
        return result

    assert 2 == (await play(run)).result


async def test_after_run_has_ended_no_step_is_called(play: Play) -> None:
    kept: list[WorkflowStep] = []

    async def run(step: WorkflowStep) -> None:
        kept.append(step)

    await play(run)

    with pytest.raises(WorkflowCodeError, match="after run\\(\\) of Play/a had ended"):
        kept[0].do("late", double, 1)


# -- waiting -----------------------------------------------------------------------------------


async def test_a_sleep_takes_a_text_a_timedelta_or_seconds(play: Play) -> None:
    async def run(step: WorkflowStep) -> float:
        before = await step.now("before")
        await step.sleep("text", "90 minutes")
        await step.sleep("timedelta", timedelta(hours=1))
        await step.sleep("seconds", 1.5)
        return (await step.now("after") - before).total_seconds()

    assert 90 * 60 + 3600 + 1.5 <= (await play(run)).result < 90 * 60 + 3600 + 3


async def test_a_sleep_until_what_is_past_is_over_at_once(play: Play) -> None:
    async def run(step: WorkflowStep) -> float:
        before = await step.now("before")
        await step.sleep_until("past", datetime(2001, 1, 1, tzinfo=UTC))
        return (await step.now("after") - before).total_seconds()

    assert 0 == (await play(run)).result


async def test_a_wait_that_timed_out_raises_on_every_replay(play: Play) -> None:
    async def run(step: WorkflowStep) -> list[str]:
        told: list[str] = []
        for number in range(2):
            try:
                await step.wait_for_event(f"wait {number}", type="call", timeout="1 hour")
            except perdure.EventTimeoutError as error:
                told.append(f"{error.step}: {error}")
        await step.sleep("long enough to hibernate", "1 hour")
        return told

    played = await play(run)

    assert [
        f"wait {number}: no event of type 'call' came within 3600 s for step 'wait {number}'"
        for number in range(2)
    ] == played.result
