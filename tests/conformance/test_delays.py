"""Cases 17 to 25: waits before the next attempt, delay functions, and what is left of waits that are over."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Any

import trio

from perdure import (
    Limits,
    Retries,
    RetryDelayError,
    StepContext,
    WorkflowEntrypoint,
    WorkflowEvent,
    WorkflowStep,
)
from perdure.testing import open_test_runtime

Play = Callable[..., Awaitable[Any]]
TIMES = "SELECT started_at, ended_at FROM attempts ORDER BY attempt"
FAILURES = "SELECT attempt, outcome FROM attempts ORDER BY attempt"
RACES = 100
LEFT_MAX = 70
"""Timers that were cancelled may wait for the next sweep, which comes with the 65th."""


def once_failing(contexts: list[StepContext]) -> Callable[[StepContext], Awaitable[int]]:
    """Return a step function whose first attempt fails."""

    async def work(context: StepContext) -> int:
        contexts.append(context)
        if context.attempt == 1:
            raise ConnectionError("try again")
        return context.attempt

    return work


def waited_ms(rows: list[tuple[str, str]]) -> float:
    """Return what passed between the end of the first attempt and the start of the second."""
    (_, ended), (started, _) = rows
    return (datetime.fromisoformat(started) - datetime.fromisoformat(ended)).total_seconds() * 1000


async def test_case_017_a_delay_function_that_returns_50_ms_is_seen_between_the_attempts(play: Play) -> None:
    def soon(context: StepContext, error: BaseException) -> float:
        return 0.05

    async def run(step: WorkflowStep) -> int:
        return await step.do("work", once_failing([]), retries=Retries(limit=1, delay=soon))

    played = await play(run, sql=TIMES)

    assert (2, 50) == (played.result, waited_ms(played.rows))


async def test_case_018_a_delay_function_that_raises_ends_the_step_and_is_named(play: Play) -> None:
    def broken(context: StepContext, error: BaseException) -> float:
        raise LookupError("no such table of delays")

    async def run(step: WorkflowStep) -> int:
        return await step.do("work", once_failing([]), retries=Retries(delay=broken))

    played = await play(run, sql=FAILURES)

    assert [(1, "failed")] == played.rows
    assert isinstance(played.error, RetryDelayError)
    assert "broken" in str(played.error)
    assert "no such table of delays" in str(played.error)


async def test_case_019_the_context_shows_a_static_delay_and_the_record_names_a_delay_function(
    play: Play,
) -> None:
    contexts: list[StepContext] = []

    def computed(context: StepContext, error: BaseException) -> float:
        return 0

    async def run(step: WorkflowStep) -> None:
        await step.do("static", once_failing(contexts), retries=Retries(delay=1.234))
        await step.do("computed", once_failing(contexts), retries=Retries(delay=computed))

    played = await play(run, sql="SELECT config FROM steps ORDER BY seq")

    static, dynamic = (json.loads(row[0])["retries"]["delay"] for row in played.rows)
    assert [1.234] * 2 + [computed] * 2 == [context.config.retries.delay for context in contexts]
    assert 1.234 == static
    assert dynamic.endswith("computed")


async def test_case_020_the_value_of_a_plain_delay_function_is_used(play: Play) -> None:
    def as_told(context: StepContext, error: BaseException) -> str:
        return f"{context.attempt} hours" if str(error) == "try again" else "1 second"

    async def run(step: WorkflowStep) -> int:
        return await step.do("work", once_failing([]), retries=Retries(delay=as_told))

    played = await play(run, sql=TIMES)

    assert (2, 3_600_000) == (played.result, waited_ms(played.rows))


async def test_case_021_an_async_delay_function_is_awaited(play: Play) -> None:
    async def looked_up(context: StepContext, error: BaseException) -> float:
        await trio.lowlevel.checkpoint()
        return 7

    async def run(step: WorkflowStep) -> int:
        return await step.do("work", once_failing([]), retries=Retries(delay=looked_up))

    played = await play(run, sql=TIMES)

    assert (2, 7_000) == (played.result, waited_ms(played.rows))


async def test_case_022_a_delay_function_that_never_settles_fails_after_its_own_timeout(play: Play) -> None:
    async def never(context: StepContext, error: BaseException) -> float:
        await trio.sleep_forever()
        return 0

    async def run(step: WorkflowStep) -> int:
        return await step.do("work", once_failing([]), retries=Retries(delay=never))

    played = await play(run, sql=FAILURES, limits=Limits(delay_function_timeout_s=0.01))

    assert [(1, "failed")] == played.rows
    assert isinstance(played.error, RetryDelayError)
    assert "took longer than 0.01 s" in str(played.error)
    assert 5 == Limits().delay_function_timeout_s  # the peer's


async def test_case_023_a_delay_function_that_fails_while_it_is_awaited_is_an_error_of_its_own(
    play: Play,
) -> None:
    async def broken(context: StepContext, error: BaseException) -> float:
        await trio.lowlevel.checkpoint()
        raise OSError("the table of delays is gone")

    async def nonsense(context: StepContext, error: BaseException) -> Any:
        return "soon"

    async def run(step: WorkflowStep) -> list[str]:
        told: list[str] = []
        for delay in (broken, nonsense):
            try:
                await step.do(delay.__name__, once_failing([]), retries=Retries(delay=delay))
            except RetryDelayError as error:
                told.append(str(error))
        return told

    played = await play(run)

    assert "the table of delays is gone" in played.result[0]
    assert "'soon' is not a duration" in played.result[1]


async def test_case_024_a_shutdown_waits_for_a_delay_function_and_its_answer_stands(
    folder: Any, replay: Any, clock: Any
) -> None:
    asked = trio.Event()

    async def slow(context: StepContext, error: BaseException) -> str:
        asked.set()
        for _ in range(100):
            await trio.lowlevel.checkpoint()
        return "2 hours"

    class Work(WorkflowEntrypoint):
        async def run(self, event: WorkflowEvent[Any], step: WorkflowStep) -> int:
            return await step.do("work", once_failing([]), retries=Retries(delay=slow))

    async with open_test_runtime(folder, workflows=[Work], replay=replay, clock=clock) as runtime:
        await runtime.create(Work, id="a")
        await asked.wait()
    async with open_test_runtime(folder, workflows=[Work], replay=replay) as runtime:
        instance = await runtime.get(Work, "a")
        assert 2 == await instance.result()
        rows = [tuple(row) for row in await instance.sql(TIMES)]
        outcomes = [tuple(row) for row in await instance.sql(FAILURES)]

    assert 7_200_000 <= waited_ms(rows)
    assert [(1, "failed"), (2, "completed")] == outcomes


async def test_case_025_nothing_is_left_of_waits_that_are_over(
    folder: Any, replay: Any, reached: Any, settled: Any
) -> None:
    class Waits(WorkflowEntrypoint):
        async def run(self, event: WorkflowEvent[Any], step: WorkflowStep) -> None:
            for number in range(RACES):
                what = {"event": step.wait_for_event("wait", type="never"), "nap": step.sleep("nap", 1)}
                await step.race(f"race {number}", what)
            await step.wait_for_event("last", type="last", timeout=None)

    async with open_test_runtime(folder, workflows=[Waits], replay=replay) as runtime:
        instance = await runtime.create(Waits)
        await reached(instance, "event started", "last")
        await settled(runtime)
        left = runtime.statistics().timers
        await instance.send_event("last")
        await instance.result()

    assert left <= LEFT_MAX
