"""`step.race`: the first part to finish decides, for ever."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio

from perdure import InvalidArgumentError, WorkflowStep

Play = Callable[..., Awaitable[Any]]


async def quick() -> str:
    return "quick"


async def for_ever() -> str:
    await trio.sleep_forever()
    return "never"


async def failing() -> str:
    raise ZeroDivisionError


def statuses(steps: list[tuple[Any, ...]]) -> dict[str, str]:
    return {name: status for name, _, _, status, _ in steps}


async def test_the_first_to_finish_wins_and_the_others_are_cancelled(play: Play) -> None:
    async def run(step: WorkflowStep) -> list[str]:
        return list(await step.race("race", {"slow": for_ever, "quick": quick, "slower": for_ever}))

    played = await play(run)

    assert ["quick", "quick"] == played.result
    assert {
        "race": "completed", "race[slow]": "cancelled", "race[quick]": "completed",
        "race[slower]": "cancelled",
    } == statuses(played.steps)  # fmt: skip


async def test_a_step_against_a_sleep(play: Play) -> None:
    async def run(step: WorkflowStep) -> list[str]:
        parts: dict[str, Any] = {"work": step.do("work", for_ever), "timeout": step.sleep("end", 0)}
        first, _ = await step.race("first", parts)
        second, _ = await step.race("second", {"work": quick, "timeout": step.sleep("end", "1 day")})
        return [first, second]

    played = await play(run)

    assert ["timeout", "work"] == played.result


async def test_an_event_against_a_sleep(play: Play) -> None:
    async def run(step: WorkflowStep) -> str:
        parts: dict[str, Any] = {
            "event": step.wait_for_event("call", type="call", timeout=None),
            "sleep": step.sleep("nap", "1 hour"),
        }  # fmt: skip
        who, _ = await step.race("race", parts)
        return who

    played = await play(run)

    assert "sleep" == played.result
    assert {"race": "completed", "call": "cancelled", "nap": "completed"} == statuses(played.steps)


async def test_a_winner_that_failed_raises_its_error(play: Play) -> None:
    async def run(step: WorkflowStep) -> str:
        parts = {"failing": step.do("failing", failing, retries=0), "slow": step.do("slow", for_ever)}
        try:
            await step.race("race", parts)
        except ZeroDivisionError as error:
            return f"{type(error).__name__} {error.__notes__[0]}"
        return "never"

    played = await play(run)

    assert "ZeroDivisionError in step 'failing', attempt 1, of Play/a" == played.result
    assert {"race": "completed", "failing": "failed", "slow": "cancelled"} == statuses(played.steps)


async def test_a_race_within_a_race(play: Play) -> None:
    async def run(step: WorkflowStep) -> list[Any]:
        inner = step.race("inner", {"a": for_ever, "b": quick})
        parts: dict[str, Any] = {"inner": inner, "outer": step.do("outer", for_ever)}
        who, value = await step.race("race", parts)
        return [who, *value]

    played = await play(run)

    assert ["inner", "b", "quick"] == played.result


async def test_races_follow_one_another(play: Play) -> None:
    async def run(step: WorkflowStep) -> list[str]:
        return [
            (await step.race("race", {"slow": for_ever, "quick": quick}))[1],
            (await step.race("race", {"slow": for_ever, "quick": quick}))[1],
        ]

    played = await play(run, sql="SELECT name, count, kind, status, attempts FROM steps WHERE kind = 'race'")

    assert ["quick", "quick"] == played.result
    assert [("race", 1, "race", "completed", 0), ("race", 2, "race", "completed", 0)] == played.steps


async def test_a_race_without_parts_is_refused_at_the_call(play: Play) -> None:
    async def run(step: WorkflowStep) -> str:
        with pytest.raises(InvalidArgumentError, match="has no parts"):
            step.race("race", {})
        return "refused"

    played = await play(run)

    assert ("refused", []) == (played.result, played.steps)
