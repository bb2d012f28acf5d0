"""`step.map` and `step.gather`: parts at the same time, each under a name of its own."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio

from perdure import InvalidArgumentError, StepContext, WorkflowCodeError, WorkflowStep

Play = Callable[..., Awaitable[Any]]


async def double(number: int) -> int:
    for _ in range(number % 3):  # so that they do not end in the order in which they began
        await trio.lowlevel.checkpoint()
    return number * 2


async def test_results_come_in_the_order_of_the_items(play: Play) -> None:
    async def run(step: WorkflowStep) -> list[int]:
        return await step.map("double", double, range(7))

    played = await play(run)

    assert [0, 2, 4, 6, 8, 10, 12] == played.result
    assert [(f"double[{number}]", 1, "do", "completed", 1) for number in range(7)] == sorted(played.steps)


async def test_no_more_parts_run_than_the_limit(play: Play) -> None:
    running: list[int] = []
    most: list[int] = []

    async def work(number: int) -> int:
        running.append(number)
        most.append(len(running))
        for _ in range(3):
            await trio.lowlevel.checkpoint()
        running.remove(number)
        return number

    async def run(step: WorkflowStep) -> list[int]:
        return await step.map("work", work, range(9), limit=2)

    played = await play(run)

    assert list(range(9)) == played.result
    assert 2 == max(most)


async def test_no_items_are_no_steps(play: Play) -> None:
    async def run(step: WorkflowStep) -> list[int]:
        return await step.map("double", double, [])

    played = await play(run)

    assert ([], []) == (played.result, played.steps)


async def test_each_part_has_its_own_attempts_and_context(play: Play) -> None:
    keys: set[str] = set()

    async def fragile(number: int, context: StepContext) -> str:
        keys.add(context.idempotency_key)
        if context.attempt <= number:
            raise OSError("not yet")
        return f"{context.step.name} at {context.attempt}"

    async def run(step: WorkflowStep) -> list[str]:
        return [
            await part
            for part in [step.do("part", fragile, number, key=number, retries=3) for number in range(3)]
        ]

    played = await play(run)

    assert ["part[0] at 1", "part[1] at 2", "part[2] at 3"] == played.result
    assert 3 == len(keys)


class Declined(Exception):  # noqa: N818 - named for what it says, as users do
    pass


async def pay(number: int) -> int:
    if number % 2:
        raise Declined(number)
    return number


async def test_one_failure_is_raised_as_it_is_after_all_parts_have_run(play: Play) -> None:
    async def run(step: WorkflowStep) -> list[int]:
        return await step.map("pay", pay, [0, 1, 2], retries=0)

    played = await play(run)

    assert isinstance(played.error, Declined)
    assert ["completed", "failed", "completed"] == [status for _, _, _, status, _ in sorted(played.steps)]


async def test_several_failures_are_raised_as_a_group(play: Play) -> None:
    async def run(step: WorkflowStep) -> str:
        try:
            await step.map("pay", pay, range(5), retries=0)
        except ExceptionGroup as group:
            return f"{group.message}: {[str(error) for error in group.exceptions]}"
        return "never"

    played = await play(run)

    assert "2 of 5 parts of 'pay' failed: ['1', '3']" == played.result


async def test_gather_returns_results_under_the_keys_of_its_parts(play: Play) -> None:
    async def tide() -> str:
        return "low"

    async def run(step: WorkflowStep) -> dict[str, Any]:
        parts: dict[str, Any] = {
            "tide": tide, "nap": step.sleep("nap", 5), "now": step.now(), "plain": lambda: 3,
        }  # fmt: skip
        found = await step.gather("found", parts)
        return {key: value if key != "now" else type(value).__name__ for key, value in found.items()}

    played = await play(run)

    assert {"tide": "low", "nap": None, "now": "datetime", "plain": 3} == played.result
    assert ["found[plain]", "found[tide]", "nap", "now"] == sorted(row[0] for row in played.steps)


@pytest.mark.parametrize("limit", [0, -1])
async def test_a_limit_below_one_is_refused_at_the_call(play: Play, limit: int) -> None:
    async def run(step: WorkflowStep) -> str:
        with pytest.raises(InvalidArgumentError, match="it must be 1 or more"):
            step.map("double", double, [1], limit=limit)
        return "refused"

    played = await play(run)

    assert ("refused", []) == (played.result, played.steps)


async def test_a_group_is_awaited_once(play: Play) -> None:
    async def run(step: WorkflowStep) -> str:
        call = step.map("double", double, [1])
        await call
        with pytest.raises(WorkflowCodeError, match="awaited twice"):
            await call
        return "refused"

    assert "refused" == (await play(run)).result
