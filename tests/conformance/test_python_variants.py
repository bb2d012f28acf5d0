"""The decorator form and the rest of the peer's Python API (cases 130 to 140)."""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import pytest

from perdure import Retries, StepContext, WorkflowEntrypoint, WorkflowEvent, WorkflowStep
from perdure.testing import open_test_runtime

Replay = Literal["warm", "always"]
Play = Callable[..., Awaitable[Any]]
NAMES = "SELECT name FROM steps WHERE kind = 'do' ORDER BY seq"


async def test_case_130_a_declared_step_without_a_name_has_its_functions(play: Play) -> None:
    async def run(step: WorkflowStep) -> int:
        @step.do()
        async def first_step() -> int:
            return 1

        return await first_step()

    played = await play(run, sql=NAMES)
    assert (1, [("first_step",)]) == (played.result, played.rows)


async def test_case_131_a_parameter_named_like_an_earlier_step_gets_its_result(play: Play) -> None:
    async def run(step: WorkflowStep) -> int:
        @step.do()
        async def one() -> int:
            return 20

        @step.do()
        async def total(one: int) -> int:
            return one + 1

        return await total()

    played = await play(run, sql=NAMES)
    assert (21, [("one",), ("total",)]) == (played.result, played.rows)


@pytest.mark.parametrize("concurrent", [True, False])
async def test_case_132_both_dependencies_run_and_the_product_is_right(play: Play, concurrent: bool) -> None:
    async def run(step: WorkflowStep) -> int:
        @step.do()
        async def six() -> int:
            return 6

        @step.do()
        async def seven() -> int:
            return 7

        @step.do(concurrent=concurrent)
        async def product(six: int, seven: int) -> int:
            return six * seven

        return await product()

    played = await play(run, sql=NAMES)
    assert (42, {("six",), ("seven",), ("product",)}) == (played.result, set(played.rows))


async def test_case_133_a_dependency_that_has_run_is_not_run_again(play: Play) -> None:
    ran: list[str] = []

    async def run(step: WorkflowStep) -> int:
        @step.do()
        async def one() -> int:
            ran.append("one")
            return 1

        @step.do()
        async def two(one: int) -> int:
            return one + 1

        @step.do()
        async def three(one: int, two: int) -> int:
            return one + two

        return await one() + await three()

    assert 4 == (await play(run)).result
    assert ["one"] == ran


async def test_case_134_a_failing_dependency_keeps_the_dependent_from_running_and_is_caught_at_the_call(
    play: Play,
) -> None:
    ran: list[str] = []

    async def run(step: WorkflowStep) -> str:
        @step.do(retries=0)
        async def broken() -> int:
            raise LookupError("gone")

        @step.do()
        async def dependent(broken: int) -> int:
            ran.append("dependent")
            return broken

        try:
            await dependent()
        except LookupError as error:
            return f"caught {error}"
        return "not caught"

    assert "caught gone" == (await play(run)).result
    assert [] == ran


async def test_case_135_the_context_has_step_name_count_attempt_and_config(play: Play) -> None:
    async def run(step: WorkflowStep) -> list[Any]:
        # Adapted: by its annotation, whatever the parameter is called.
        @step.do("named", retries=3)
        async def tell(ctx: StepContext) -> list[Any]:
            return [ctx.step.name, ctx.step.count, ctx.attempt, ctx.config.retries.limit]

        told: list[Any] = await tell()
        return told

    assert ["named", 1, 1, 3] == (await play(run)).result


async def test_case_136_sleep_until_a_datetime_ends_after_it(play: Play) -> None:
    async def run(step: WorkflowStep) -> bool:
        moment = datetime(2030, 3, 1, tzinfo=UTC)  # two months later than the clock begins
        await step.sleep_until("march", moment)
        return await step.now("after") >= moment

    assert (await play(run)).result


async def test_case_137_with_one_retry_the_second_attempt_succeeds(play: Play) -> None:
    async def run(step: WorkflowStep) -> int:
        @step.do(retries=Retries(limit=1, delay="1 second"))
        async def flaky(context: StepContext) -> int:
            if context.attempt == 1:
                raise ConnectionError("once")
            return context.attempt

        return await flaky()

    played = await play(run, sql="SELECT attempts FROM steps")
    assert (2, [(2,)]) == (played.result, played.rows)


async def test_case_138_a_type_error_of_a_step_is_caught_and_the_workflow_returns(play: Play) -> None:
    async def run(step: WorkflowStep) -> str:
        @step.do(retries=0)
        async def wrong() -> None:
            raise TypeError("not like this")

        with contextlib.suppress(TypeError):
            await wrong()
            return "no error"
        return "caught"

    assert "caught" == (await play(run)).result


async def test_case_139_a_sleep_of_zero_completes(play: Play) -> None:
    async def run(step: WorkflowStep) -> str:
        await step.sleep("nothing", 0)
        return "done"

    played = await play(run)
    assert ("done", 0.0) == (played.result, played.passed_s)


async def test_case_140_a_nested_payload_comes_as_it_was(folder: Path, replay: Replay) -> None:
    payload = {"a": {"b": [1, 2.5, {"c": None}], "d": True}, "n": -(2**70)}

    class Echo(WorkflowEntrypoint):
        async def run(self, event: WorkflowEvent[dict[str, Any]], step: WorkflowStep) -> dict[str, Any]:
            return await step.do("echo", lambda: event.payload, returns=dict[str, Any])

    async with open_test_runtime(folder, workflows=[Echo], replay=replay) as runtime:
        assert payload == await (await runtime.create(Echo, params=payload)).result()
