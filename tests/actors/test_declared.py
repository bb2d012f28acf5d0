"""The decorator form of `step.do`: steps whose parameters are the results of other steps."""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio

from perdure import (
    AmbiguousStepError,
    InvalidArgumentError,
    RollbackContext,
    StepContext,
    UnknownDependencyError,
    WorkflowStep,
)

Play = Callable[..., Awaitable[Any]]


async def test_a_parameter_named_like_an_earlier_step_gets_its_result(play: Play) -> None:
    async def run(step: WorkflowStep) -> list[int]:
        @step.do()
        async def width() -> int:
            return 3

        @step.do("the height in metres")
        async def height() -> int:
            return 4

        @step.do()
        async def area(width: int, height: int) -> int:
            return width * height

        return [await area()]

    played = await play(run, sql="SELECT name, input, output FROM steps ORDER BY seq")

    assert [12] == played.result
    assert [
        ("width", None, "3"),
        ("the height in metres", None, "4"),
        ("area", "[3,4]", "12"),
    ] == played.steps


async def test_concurrent_dependencies_run_at_the_same_time(play: Play) -> None:
    met: list[str] = []

    async def meet(name: str) -> None:
        met.append(name)
        while {"left", "right"} - set(met):
            await trio.lowlevel.checkpoint()

    async def run(step: WorkflowStep) -> int:
        @step.do()
        async def left() -> int:
            await meet("left")
            return 6

        @step.do()
        async def right() -> int:
            await meet("right")
            return 7

        @step.do(concurrent=True)
        async def product(left: int, right: int) -> int:
            return left * right

        return await product()

    assert 42 == (await play(run)).result


async def test_dependencies_run_one_after_the_other_otherwise(play: Play) -> None:
    under_way: list[str] = []

    async def alone(name: str) -> str:
        assert [] == under_way
        under_way.append(name)
        await trio.lowlevel.checkpoint()
        under_way.remove(name)
        return name

    async def run(step: WorkflowStep) -> list[str]:
        @step.do(retries=0)
        async def left() -> str:
            return await alone("left")

        @step.do(retries=0)
        async def right() -> str:
            return await alone("right")

        @step.do()
        async def both(left: str, right: str) -> list[str]:
            return [left, right]

        return await both()

    assert ["left", "right"] == (await play(run)).result


async def test_a_step_without_arguments_runs_once_however_often_it_is_called_and_needed(play: Play) -> None:
    ran: list[str] = []

    async def run(step: WorkflowStep) -> list[Any]:
        @step.do()
        async def base() -> int:
            ran.append("base")
            return 1

        @step.do()
        async def left(base: int) -> int:
            return base + 1

        @step.do()
        async def right(base: int) -> int:
            return base + 2

        @step.do(concurrent=True)
        async def top(left: int, right: int, base: int) -> list[int]:
            return [base, left, right]

        once = await base()
        return [once, await base(), await top(), await top()]

    played = await play(run)

    assert [1, 1, [1, 2, 3], [1, 2, 3]] == played.result
    assert ["base"] == ran
    assert {"base", "left", "right", "top"} == {row[0] for row in played.steps}
    assert 4 == len(played.steps)


async def test_a_call_that_is_under_way_is_shared(play: Play) -> None:
    ran: list[str] = []

    async def run(step: WorkflowStep) -> list[int]:
        results: list[int] = []

        @step.do()
        async def slow() -> int:
            ran.append("slow")
            await trio.lowlevel.checkpoint()
            return 5

        async def branch() -> None:
            results.append(await slow())

        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(branch)
        return results

    assert [5, 5, 5] == (await play(run)).result
    assert ["slow"] == ran


async def test_parts_of_a_gather_and_a_race_may_be_declared_steps_that_share_one(play: Play) -> None:
    async def run(step: WorkflowStep) -> list[Any]:
        @step.do()
        async def base() -> int:
            return 1

        @step.do()
        async def left(base: int) -> int:
            return base + 1

        @step.do()
        async def right(base: int) -> int:
            await step_over()
            return base + 2

        @step.do()
        async def never(base: int) -> int:
            await trio.sleep_forever()
            return base

        @step.do()
        async def first(left: int) -> int:
            return left + 10

        gathered = await step.gather("both", {"left": left(), "right": right()})
        won = await step.race("who", {"first": first(), "never": never()})
        await step.sleep("a replay", 1)
        return [gathered, list(won)]

    assert [{"left": 2, "right": 3}, ["first", 12]] == (await play(run)).result


async def step_over() -> None:
    await trio.lowlevel.checkpoint()


async def test_a_dependent_of_a_failing_step_does_not_run_and_its_call_raises(play: Play) -> None:
    ran: list[str] = []

    async def run(step: WorkflowStep) -> str:
        @step.do(retries=0)
        async def broken() -> int:
            raise LookupError("nothing there")

        @step.do()
        async def dependent(broken: int) -> int:
            ran.append("dependent")
            return broken

        for call in (dependent, broken, dependent):
            with pytest.raises(LookupError):
                await call()
        return "caught"

    played = await play(run)

    assert ("caught", []) == (played.result, ran)
    assert [("broken", 1, "do", "failed", 1)] == played.steps


async def test_several_failing_dependencies_are_raised_as_a_group(play: Play) -> None:
    async def run(step: WorkflowStep) -> int:
        @step.do(retries=0)
        async def one() -> int:
            raise LookupError("one")

        @step.do(retries=0)
        async def two() -> int:
            raise OSError("two")

        @step.do(concurrent=True)
        async def both(one: int, two: int) -> int:
            return one + two

        try:
            await both()
        except ExceptionGroup as group:
            return len(group.exceptions)
        return 0

    assert 2 == (await play(run)).result


async def test_arguments_come_first_and_defaults_last(play: Play) -> None:
    async def run(step: WorkflowStep) -> list[Any]:
        @step.do()
        async def rate() -> float:
            return 0.5

        @step.do()
        async def price(amount: int, context: StepContext, rate: float, unit: str = "EUR") -> str:
            return f"{amount * rate} {unit} ({context.step.name}, {context.step.count})"

        return [await price(10), await price(20), await price(30, 2.0, "CHF")]  # type: ignore[call-overload]  # mypy knows of all or none

    played = await play(run, sql="SELECT name, count, input FROM steps ORDER BY seq")

    assert ["5.0 EUR (price, 1)", "10.0 EUR (price, 2)", "60.0 CHF (price, 3)"] == played.result
    assert [
        ("rate", 1, None), ("price", 1, "[10,0.5]"), ("price", 2, "[20,0.5]"), ("price", 3, '[30,2.0,"CHF"]'),
    ] == sorted(played.steps, key=lambda row: (row[0] == "price", row[1]))  # fmt: skip


async def test_a_context_is_passed_by_its_annotation(play: Play) -> None:
    async def run(step: WorkflowStep) -> list[Any]:
        @step.do("look", retries=2)
        async def look(ctx: StepContext) -> list[Any]:
            return [ctx.step.name, ctx.step.count, ctx.attempt, ctx.config.retries.limit]

        seen: list[Any] = await look()
        return seen

    assert ["look", 1, 1, 2] == (await play(run)).result


async def test_a_parameter_that_nothing_is_passed_for_is_refused_at_the_call(play: Play) -> None:
    async def run(step: WorkflowStep) -> list[str]:
        @step.do()
        async def known() -> int:
            return 1

        @step.do()
        async def asks(known: int, later: int) -> int:
            return known + later

        @step.do()
        async def later() -> int:
            return 2

        @step.do()
        async def old_habit(ctx: dict[str, Any]) -> int:
            return len(ctx)

        texts: list[str] = []
        for call in (asks, old_habit):
            with pytest.raises(TypeError) as refused:
                call()
            assert isinstance(refused.value, UnknownDependencyError)
            texts.append(str(refused.value))
        return texts

    played = await play(run)

    asks, old_habit = played.result
    assert "step 'asks' takes 'later', which is no argument of this call and no step declared" in asks
    assert "(there are: known)" in asks
    assert "annotated StepContext" in old_habit
    assert [] == played.steps


async def test_what_is_passed_by_keyword_alone_is_refused_where_it_is_declared(play: Play) -> None:
    async def run(step: WorkflowStep) -> None:
        async def asks(*, base: int) -> int:
            return base

        untyped: Any = step.do()
        untyped(asks)

    error = (await play(run)).error

    assert isinstance(error, InvalidArgumentError)
    assert "by keyword alone" in str(error)


async def test_a_function_without_a_name_needs_one(play: Play) -> None:
    async def run(step: WorkflowStep) -> int:
        with pytest.raises(InvalidArgumentError, match="no name of its own"):
            step.do()(functools.partial(len, "tides"))
        return await step.do("count", returns=int)(functools.partial(len, "tides"))()

    assert 5 == (await play(run)).result


async def test_a_dependency_that_was_called_with_several_arguments_is_ambiguous(play: Play) -> None:
    async def run(step: WorkflowStep) -> list[Any]:
        @step.do()
        async def load(number: int) -> int:
            return number

        @step.do()
        async def use(load: int) -> int:
            return load * 10

        await load(1)
        first = await use()
        await load(2)

        @step.do("use again")
        async def again(load: int) -> int:
            return load

        with pytest.raises(AmbiguousStepError) as refused:
            again()
        return [first, str(refused.value)]

    first, text = (await play(run)).result

    assert 10 == first
    assert "'load', which was called 2 times with arguments" in text


async def test_a_step_declared_again_in_a_loop_is_another_use_of_its_name(play: Play) -> None:
    async def run(step: WorkflowStep) -> list[int]:
        results: list[int] = []
        for number in range(3):

            @step.do()
            async def work(number: int = number) -> int:
                return number

            results.append(await work())
        return results

    played = await play(run)

    assert [0, 1, 2] == played.result
    assert [("work", 1), ("work", 2), ("work", 3)] == [row[:2] for row in played.steps]


async def test_a_shared_step_that_was_cancelled_says_so_to_the_others(play: Play) -> None:
    async def run(step: WorkflowStep) -> str:
        @step.do()
        async def slow() -> int:
            await trio.sleep_forever()
            return 1

        async def hastily() -> None:
            with trio.CancelScope() as scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(slow_call)
                    await step.do("a moment", step_over)
                    scope.cancel()

        async def slow_call() -> None:
            await slow()

        await hastily()
        try:
            await slow()
        except Exception as error:  # noqa: BLE001 - looked at by its text
            return str(error)
        return "a result"

    assert "step 'slow' was cancelled in the branch that called it first" in (await play(run)).result


async def test_concurrent_is_for_declarations(play: Play) -> None:
    async def run(step: WorkflowStep) -> None:
        untyped: Any = step.do
        untyped("a", step_over, concurrent=True)

    error = (await play(run)).error

    assert isinstance(error, InvalidArgumentError)
    assert "decorator form" in str(error)


async def test_the_rollback_of_a_dependent_is_told_its_arguments(play: Play) -> None:
    undone: list[Any] = []

    async def undo(context: RollbackContext[int]) -> None:
        undone.append([context.args, context.output])

    async def run(step: WorkflowStep) -> None:
        @step.do()
        async def base() -> int:
            return 3

        @step.do(rollback=undo)
        async def double(base: int) -> int:
            return base * 2

        await double()
        raise LookupError("over")

    await play(run)

    assert [[(3,), 6]] == undone
