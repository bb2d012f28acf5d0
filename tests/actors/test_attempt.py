"""One attempt of a step: run on the spot where its function never waits, in a scope where it may."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from perdure import (
    StepTimeoutError,
    WorkflowCodeError,
    WorkflowEntrypoint,
    WorkflowEvent,
    WorkflowStep,
    current_step,
)
from perdure.actors.calls import caller, line_of
from perdure.actors.functions import FunctionHost
from perdure.actors.host import Replay
from perdure.limits import INPUT_BYTES_COMPARED_MAX
from perdure.testing import open_test_runtime

Play = Callable[..., Awaitable[Any]]


async def which() -> list[Any]:
    step = current_step()
    assert step is current_step()
    return [step.step.name, step.step.count, step.attempt, step.remaining_s > 0]


async def fails() -> None:
    raise LookupError("nothing there")


async def test_a_function_that_never_waits_finds_the_step_it_is(play: Play) -> None:
    async def run(step: WorkflowStep) -> list[Any]:
        return [await step.do("first", which), await step.do("again", which), await step.do("again", which)]

    played = await play(run)

    assert [["first", 1, 1, True], ["again", 1, 1, True], ["again", 2, 1, True]] == played.result


async def test_what_it_raises_is_an_attempt_that_failed(play: Play) -> None:
    async def run(step: WorkflowStep) -> None:
        await step.do("look", fails, retries=1)

    played = await play(run)

    assert isinstance(played.error, LookupError)
    assert [("look", 1, "do", "failed", 2)] == played.steps


async def test_steps_do_not_nest_in_it_and_its_context_ends_with_it(play: Play) -> None:
    async def run(step: WorkflowStep) -> str:
        async def nest() -> None:
            step.do("inner", which)

        try:
            await step.do("outer", nest, retries=0)
        except WorkflowCodeError as error:
            with pytest.raises(WorkflowCodeError):
                current_step()
            return str(error)
        return "nested"

    played = await play(run)

    assert "inside the step function of 'outer'" in played.result


async def test_it_cannot_time_out_and_is_not_said_to(play: Play) -> None:
    async def run(step: WorkflowStep) -> Any:
        try:
            return await step.do("first", which, timeout=1e-9, retries=0)
        except StepTimeoutError:
            return "timed out"

    played = await play(run)

    assert ["first", 1, 1, False] == played.result


async def test_it_is_counted_like_any_other_call(host: FunctionHost) -> None:
    async def double(number: int) -> int:
        return 2 * number

    assert 4 == host.call_now(double, (2,))
    assert 1 == host.statistics().calls


def test_a_place_is_told_with_the_line_of_the_call() -> None:
    def here() -> Any:
        return caller(1)

    places = [
        here(),
        here(),
    ]

    first, second = (int(line_of(place).rpartition(":")[2]) for place in places)
    assert first + 1 == second
    assert line_of(places[0]).startswith(f"{__file__}:")


@pytest.mark.parametrize("length", [10, INPUT_BYTES_COMPARED_MAX, 4 * INPUT_BYTES_COMPARED_MAX])
async def test_changed_arguments_are_seen_however_long_they_are(
    tmp_path: Path, replay: Replay, length: int
) -> None:
    asked: list[str] = ["a" * length]

    async def take(text: str) -> int:
        return len(text)

    class Takes(WorkflowEntrypoint):
        async def run(self, event: WorkflowEvent[Any], step: WorkflowStep) -> int:
            found = await step.do("take", take, asked[-1])
            await step.wait_for_event("go", type="go")
            return found

    counted: list[int] = []
    for text in (asked[0], asked[0], "b" * length):
        asked.append(text)
        async with open_test_runtime(tmp_path / "state", workflows=[Takes], replay=replay) as runtime:
            instance = await runtime.create(Takes, id="a", if_exists="attach")
            await instance.send_event("other")
            rows = await instance.sql("SELECT count(*) FROM history WHERE what = 'divergence'")
            counted.append(int(rows[0][0]))

    assert [0, 0, 1] == counted
