"""`StepContext`: what a step function may know of its attempt."""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio

import perdure
from perdure import Retries, StepContext, WorkflowCodeError, WorkflowStep
from perdure.actors.context import StepName
from perdure.actors.retry import DEFAULT_CONFIG

Play = Callable[..., Awaitable[Any]]


async def test_a_function_learns_which_attempt_of_which_step_it_is(play: Play) -> None:
    async def look(context: StepContext) -> list[Any]:
        if context.attempt == 1:
            raise OSError("once more")
        return [context.step.name, context.step.count, context.attempt, context.instance]

    async def run(step: WorkflowStep) -> list[Any]:
        return [await step.do("look", look) for _ in range(2)]

    assert [["look", 1, 2, "Play/a"], ["look", 2, 2, "Play/a"]] == (await play(run)).result


async def test_the_idempotency_key_is_of_the_step_and_of_no_other(play: Play) -> None:
    keys: dict[str, list[str]] = {}

    async def look(name: str, context: StepContext) -> None:
        keys.setdefault(name, []).append(context.idempotency_key)
        if context.attempt < 3:
            raise OSError("once more")

    async def run(step: WorkflowStep) -> None:
        for name in ("a", "b"):
            await step.do(name, look, name)

    await play(run)
    await play(run)  # another incarnation of the same id

    assert [6, 6] == [len(each) for each in keys.values()]
    assert [2, 2] == [len(set(each)) for each in keys.values()]
    assert set(keys["a"]).isdisjoint(keys["b"])


async def test_the_context_is_found_without_a_parameter_in_every_kind_of_function(play: Play) -> None:
    async def in_the_loop() -> int:
        return perdure.current_step().attempt

    def in_a_thread() -> str:
        return perdure.current_step().step.name

    async def run(step: WorkflowStep) -> list[Any]:
        return [await step.do("loop", in_the_loop), await step.do("thread", in_a_thread)]

    assert [1, "thread"] == (await play(run)).result


async def test_outside_a_step_function_there_is_no_context(play: Play) -> None:
    async def run(step: WorkflowStep) -> str:
        with pytest.raises(WorkflowCodeError, match="outside a step function"):
            perdure.current_step()
        return "refused"

    assert "refused" == (await play(run)).result


async def test_steps_do_not_nest(play: Play) -> None:
    async def run(step: WorkflowStep) -> str:
        async def outer() -> str:
            with pytest.raises(
                WorkflowCodeError, match="inside the step function of 'outer': steps do not nest"
            ):
                step.do("inner", outer)
            return "refused"

        return await step.do("outer", outer)

    played = await play(run)

    assert ("refused", 1) == (played.result, len(played.steps))


async def test_the_context_tells_how_long_the_attempt_may_take(play: Play) -> None:
    async def look(context: StepContext) -> bool:
        return 0 < context.remaining_s <= 30 and not context.cancelled

    async def run(step: WorkflowStep) -> list[Any]:
        short = await step.do("short", look, timeout="30 seconds", retries=Retries(limit=1))
        return [short]

    assert [True] == (await play(run)).result


def context_of(deadline_s: float) -> StepContext:
    log = logging.LoggerAdapter(logging.getLogger("test"), {})
    return StepContext(
        StepName("s", 1), attempt=1, config=DEFAULT_CONFIG, idempotency_key="k", instance="W/a",
        deadline_s=deadline_s, log=log,
    )  # fmt: skip


def test_an_attempt_past_its_deadline_should_end() -> None:
    assert context_of(time.monotonic() - 1).cancelled
    assert not context_of(time.monotonic() + 100).cancelled


def test_an_attempt_that_was_cancelled_should_end() -> None:
    context = context_of(time.monotonic() + 100)
    context.cancel()

    assert context.cancelled


async def test_logging_of_a_run_is_quiet_while_it_replays(
    play: Play, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "perdure.workflow")

    async def work() -> None:
        await trio.lowlevel.checkpoint()

    async def run(step: WorkflowStep) -> None:
        for number in range(3):
            step.log.info("before %d", number)
            await step.do(f"step {number}", work)
        await step.sleep("long enough to hibernate", "1 hour")
        step.log.info("at the end")

    await play(run)

    texts = [record.getMessage() for record in caplog.records if record.name.startswith("perdure.workflow")]
    assert "Play/a: at the end" == texts[-1]
    assert ["Play/a: before 0", "Play/a: before 1", "Play/a: before 2"] == list(dict.fromkeys(texts))[:3]
    assert 4 == len(texts)
