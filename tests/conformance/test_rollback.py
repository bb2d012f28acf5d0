"""Rollback (cases 99 to 111, D17)."""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

import pytest
import trio

from perdure import (
    Instance,
    InstanceFailedError,
    InstanceTerminatedError,
    NonRetryableError,
    Retries,
    Rollback,
    RollbackContext,
    Runtime,
    StepContext,
    WorkflowEntrypoint,
    WorkflowEvent,
    WorkflowStep,
)
from perdure.testing import VirtualClock, introspect, open_test_runtime

Replay = Literal["warm", "always"]
Run = Callable[[WorkflowStep], Awaitable[Any]]

undone: list[Any] = []


@pytest.fixture(autouse=True)
def nothing_undone() -> None:
    undone.clear()


async def undo(context: RollbackContext[Any]) -> None:
    undone.append(context.name)


async def one(value: str | int = 1) -> str | int:
    return value


async def fail() -> None:
    raise NonRetryableError("no courier")


Roll = Callable[[Run], Awaitable[tuple[str, str | None]]]


@pytest.fixture
def roll(folder: Path, replay: Replay) -> Roll:
    """Return a function that runs `run(step)` to its end and tells its status and how its rollback ended."""

    async def roll(run: Run) -> tuple[str, str | None]:
        class Saga(WorkflowEntrypoint):
            async def run(self, event: WorkflowEvent[None], step: WorkflowStep) -> Any:
                return await run(step)

        async with open_test_runtime(folder, workflows=[Saga], replay=replay) as runtime:
            return await outcome_of(await runtime.create(Saga))

    return roll


async def outcome_of(instance: Instance[Any]) -> tuple[str, str | None]:
    with contextlib.suppress(InstanceFailedError, InstanceTerminatedError):
        await instance.result()
    status = await instance.status()
    return status.status, None if status.rollback is None else status.rollback.outcome


async def test_case_099_handlers_run_in_reverse_when_the_workflow_fails(roll: Roll) -> None:
    async def run(step: WorkflowStep) -> None:
        for number in (1, 2, 3):
            await step.do(f"step {number}", one, rollback=undo)
        raise RuntimeError("no")

    assert ("errored", "complete") == await roll(run)
    assert ["step 3", "step 2", "step 1"] == undone


async def test_case_101_the_handlers_own_options_govern_its_attempts(roll: Roll) -> None:
    async def stubborn(context: RollbackContext[Any]) -> None:
        undone.append(context.attempt)
        if context.attempt < 4:
            raise ConnectionError

    async def run(step: WorkflowStep) -> None:
        handler = Rollback(stubborn, retries=Retries(limit=3, delay=0), timeout="1 minute")
        await step.do("book", one, retries=0, rollback=handler)
        raise RuntimeError("no")

    assert ("errored", "complete") == await roll(run)
    assert [1, 2, 3, 4] == undone


async def test_case_102_a_handler_is_told_the_error_the_output_the_name_and_the_count(roll: Roll) -> None:
    async def tell(context: RollbackContext[Any]) -> None:
        undone.append((context.name, context.count, context.output, repr(context.error)))

    async def run(step: WorkflowStep) -> None:
        for value in ("first", "second"):
            await step.do("book", one, value, rollback=tell)
        raise LookupError("no such hotel")

    assert ("errored", "complete") == await roll(run)
    error = "LookupError('no such hotel')"
    assert [("book", 2, "second", error), ("book", 1, "first", error)] == undone


async def test_case_103_the_step_that_failed_is_undone_too_without_an_output(roll: Roll) -> None:
    async def tell(context: RollbackContext[Any]) -> None:
        undone.append((context.name, context.output))

    async def run(step: WorkflowStep) -> None:
        await step.do("book", one, rollback=tell)
        await step.do("courier", fail, rollback=tell)

    assert ("errored", "complete") == await roll(run)
    assert [("courier", None), ("book", 1)] == undone


async def test_case_104_steps_without_a_handler_are_passed_over(folder: Path, replay: Replay) -> None:
    class Saga(WorkflowEntrypoint):
        async def run(self, event: WorkflowEvent[None], step: WorkflowStep) -> None:
            await step.do("a", one, rollback=undo)
            await step.do("b", one)
            await step.do("c", one, rollback=undo)
            raise RuntimeError("no")

    async with open_test_runtime(folder, workflows=[Saga], replay=replay) as runtime:
        instance = await runtime.create(Saga)
        assert ("errored", "complete") == await outcome_of(instance)
        rows = await instance.sql("SELECT name FROM steps WHERE kind = 'rollback' ORDER BY seq")
    assert ["c", "a"] == undone == [row.name for row in rows]


async def test_case_105_a_handler_that_fails_for_good_ends_the_rollback_as_failed(roll: Roll) -> None:
    async def run(step: WorkflowStep) -> None:
        await step.do("a", one, rollback=undo)
        await step.do("b", one, rollback=Rollback(fail, retries=5))
        await step.do("c", one, rollback=undo)
        raise RuntimeError("no")

    assert ("errored", "failed") == await roll(run)
    assert ["c"] == undone


async def never() -> None:
    raise ConnectionError("try again next year")


class Trip(WorkflowEntrypoint):
    """A finished, a failed and an unfinished step, all with handlers; or a sleep."""

    async def run(self, event: WorkflowEvent[str], step: WorkflowStep) -> None:
        await step.do("finished", one, rollback=undo)
        with contextlib.suppress(NonRetryableError):
            await step.do("failed", fail, rollback=undo)
        if event.payload == "sleeps":
            await step.sleep("rest", "1 year")
        retries = Retries(limit=9, delay="1 year", backoff="constant")
        await step.do("unfinished", never, retries=retries, rollback=undo)


class HeldClock(VirtualClock):
    """One on which nothing comes due."""

    async def wait(self, delay_ms: float | None, changed: trio.Event) -> None:
        await super().wait(None, changed)


def open_trip(folder: Path, replay: Replay) -> contextlib.AbstractAsyncContextManager[Runtime]:
    return open_test_runtime(folder, workflows=[Trip], replay=replay, clock=HeldClock())


Reached = Callable[..., Awaitable[None]]


@pytest.mark.parametrize("paused", [False, True])
async def test_case_106_and_109_a_sleeping_or_paused_instance_is_rolled_back_and_terminated(
    folder: Path, replay: Replay, reached: Reached, paused: bool
) -> None:
    async with open_trip(folder, replay) as runtime:
        instance = await runtime.create(Trip, params="sleeps")
        await reached(instance, "sleep started")
        if paused:
            await instance.pause()
        await instance.terminate(rollback=True)
        assert ("terminated", "complete") == await outcome_of(instance)
    assert ["failed", "finished"] == undone


async def test_case_107_handlers_lost_with_the_process_are_registered_by_a_replay(
    folder: Path, replay: Replay
) -> None:
    async with open_trip(folder, replay) as runtime:
        await runtime.create(Trip, params="tries", id="a")
        with introspect(runtime, Trip, "a") as kit:
            await kit.wait_for_status("waiting")
    async with open_trip(folder, replay) as runtime:
        instance = await runtime.get(Trip, "a")
        await instance.terminate(rollback=True)
        assert ("terminated", "complete") == await outcome_of(instance)
    assert ["unfinished", "failed", "finished"] == undone


async def test_case_110_no_handler_runs_after_a_success(roll: Roll) -> None:
    async def run(step: WorkflowStep) -> int:
        return int(await step.do("a", one, rollback=undo))

    assert ("complete", None) == await roll(run)
    assert [] == undone


async def test_case_111_a_delay_function_leaks_no_mark_into_the_handlers_context(roll: Roll) -> None:
    def delay(context: StepContext, error: BaseException) -> timedelta:
        return timedelta(seconds=1)

    async def tell(context: RollbackContext[Any]) -> None:
        undone.append(context.config.retries.delay)

    async def run(step: WorkflowStep) -> None:
        retries = Retries(limit=1, delay=delay)
        await step.do("own", one, retries=retries, rollback=tell)
        await step.do("given", one, rollback=Rollback(tell, retries=retries))
        raise RuntimeError("no")

    assert ("errored", "complete") == await roll(run)
    assert [delay, "10 seconds"] == undone  # those of the step do not count for its handler


async def test_defect_17_a_parallel_branch_starts_no_step_during_a_rollback(roll: Roll) -> None:
    ran: list[str] = []

    async def note(name: str) -> str:
        ran.append(name)
        return name

    async def run(step: WorkflowStep) -> None:
        async def branch() -> None:
            with contextlib.suppress(BaseException):  # the user's own mistake: it swallows cancellation
                await step.do("long", trio.sleep_forever)
            await step.do("late", note, "late")

        async def failing() -> None:
            await step.do("courier", fail)

        await step.do("book", one, rollback=undo)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(branch)
            nursery.start_soon(failing)

    assert ("errored", "complete") == await roll(run)
    assert ([], ["book"]) == (ran, undone)
