"""Law 8: nothing is awaited by nobody. A forgotten `await` fails the run and names step and line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from perdure import (
    ForgottenAwaitError,
    InstanceFailedError,
    OpenStepError,
    Sql,
    WorkflowCodeError,
    WorkflowEntrypoint,
    WorkflowEvent,
    WorkflowStep,
)
from perdure.actors.host import Replay
from perdure.actors.reports import Reports
from perdure.testing import open_test_runtime

Broken = Callable[[type, str, Callable[..., Any]], None]
Forget = Callable[[WorkflowStep], object]


async def work(number: int = 0) -> int:
    return number


def write(sql: Sql) -> int:
    return len(sql.exec("SELECT 1"))


def declare(step: WorkflowStep) -> object:
    @step.do()
    async def forgotten() -> int:
        return 1

    return forgotten()


FORGOTTEN: dict[str, Forget] = {
    "do": lambda step: step.do("forgotten", work),
    "declared": declare,
    "sleep": lambda step: step.sleep("forgotten", 1),
    "event": lambda step: step.wait_for_event("forgotten", type="go"),
    "map": lambda step: step.map("forgotten", work, [1, 2]),
    "gather": lambda step: step.gather("forgotten", {"a": step.do("part", work)}),
    "race": lambda step: step.race("forgotten", {"a": step.do("part", work)}),
    "now": lambda step: step.now("forgotten"),
    "transaction": lambda step: step.transaction("forgotten", write),
    "deadline": lambda step: step.move_on_after("forgotten", 1),
}


# -- a forgotten await -------------------------------------------------------------------------


async def check_a_forgotten_await(folder: Path, replay: Replay, forget: Forget) -> None:
    class Hasty(WorkflowEntrypoint):
        async def run(self, event: WorkflowEvent[Any], step: WorkflowStep) -> int:
            before = await step.do("before", work)
            forget(step)
            return before + await step.do("after", work)

    async with open_test_runtime(folder, workflows=[Hasty], replay=replay) as runtime:
        instance = await runtime.create(Hasty, id="a")
        with pytest.raises(InstanceFailedError) as failed:
            await instance.result()
        names = [row["name"] for row in await instance.sql("SELECT name FROM steps ORDER BY seq")]

    error = failed.value.__cause__
    assert isinstance(error, ForgottenAwaitError)
    line = forget.__code__.co_firstlineno + (5 if forget is declare else 0)
    assert f"step 'forgotten' of Hasty/a was called and never awaited, in {__file__}:{line}: " in str(error)
    assert ["before", "after"] == names  # what was forgotten had no effect


@pytest.mark.parametrize("kind", FORGOTTEN)
async def test_a_step_that_was_never_awaited_fails_the_run_and_names_step_and_line(
    folder: Path, replay: Replay, kind: str
) -> None:
    await check_a_forgotten_await(folder, replay, FORGOTTEN[kind])


@pytest.mark.parametrize("kind", FORGOTTEN)
async def test_the_forgotten_check_fails_when_nobody_looks_at_the_end(
    folder: Path, kind: str, broken: Broken
) -> None:
    broken(Reports, "leftovers", lambda *_: None)

    with pytest.raises((AssertionError, pytest.fail.Exception)):
        await check_a_forgotten_await(folder, "warm", FORGOTTEN[kind])


async def test_an_error_of_run_itself_is_told_rather_than_what_it_forgot(
    folder: Path, replay: Replay
) -> None:
    class Hasty(WorkflowEntrypoint):
        async def run(self, event: WorkflowEvent[Any], step: WorkflowStep) -> None:
            step.do("forgotten", work)
            raise ZeroDivisionError

    async with open_test_runtime(folder, workflows=[Hasty], replay=replay) as runtime:
        instance = await runtime.create(Hasty)
        with pytest.raises(InstanceFailedError) as failed:
            await instance.result()

    assert isinstance(failed.value.__cause__, ZeroDivisionError)


# -- a step that is still open -----------------------------------------------------------------


async def check_an_open_step(folder: Path, replay: Replay) -> None:
    """Hand a step to a task that `run()` does not wait for."""
    go_on = trio.Event()
    calls: list[str] = []

    async def slow() -> str:
        calls.append("started")
        await go_on.wait()
        calls.append("ended")
        return "late"

    async with trio.open_nursery() as outside:

        class Careless(WorkflowEntrypoint):
            async def run(self, event: WorkflowEvent[Any], step: WorkflowStep) -> str:
                async def in_the_background() -> None:
                    try:
                        await step.do("left open", slow)
                    except WorkflowCodeError:
                        calls.append("refused")

                outside.start_soon(in_the_background)
                await trio.testing.wait_all_tasks_blocked()
                return "done"

        async with open_test_runtime(folder, workflows=[Careless], replay=replay) as runtime:
            instance = await runtime.create(Careless, id="a")
            try:
                with pytest.raises(InstanceFailedError) as failed:
                    await instance.result()
            finally:
                go_on.set()
            await trio.testing.wait_all_tasks_blocked()
            steps = await instance.sql("SELECT name, status FROM steps")
            outside.cancel_scope.cancel()

    error = failed.value.__cause__
    assert isinstance(error, OpenStepError)
    assert f"run() of Careless/a ended while step 'left open' ({__file__}:" in str(error)
    assert [("left open", "cancelled")] == [tuple(row) for row in steps]
    assert ["started", "ended", "refused"] == calls


async def test_run_ending_while_a_step_is_open_is_an_error_that_names_the_step(
    folder: Path, replay: Replay
) -> None:
    await check_an_open_step(folder, replay)


async def test_the_open_check_fails_when_nobody_looks_at_the_end(folder: Path, broken: Broken) -> None:
    broken(Reports, "leftovers", lambda *_: None)

    with pytest.raises((AssertionError, pytest.fail.Exception, BaseExceptionGroup)):
        await check_an_open_step(folder, "warm")
