"""`was=`: a step that has another name now is answered by what is recorded under the old one."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio

from perdure import (
    AmbiguousStepError,
    Instance,
    InstanceFailedError,
    InvalidArgumentError,
    InvalidNameError,
    StepContext,
    WorkflowEntrypoint,
    WorkflowEvent,
    WorkflowStep,
)
from perdure.actors.host import Replay
from perdure.testing import open_test_runtime

STEPS = "SELECT name, count, status FROM steps ORDER BY seq"
DIVERGED = "SELECT detail FROM history WHERE what = 'divergence'"
calls: list[Any] = []


@pytest.fixture(autouse=True)
def _no_calls() -> None:
    calls.clear()


async def charge(order: int) -> str:
    calls.append(order)
    return f"charged {order}"


async def reached(instance: Instance[Any], what: str) -> None:
    async with contextlib.aclosing(instance.subscribe()) as story:
        async for entry in story:
            if entry.what == what:
                return


async def over_a_restart(
    folder: Path, replay: Replay, before: Callable[[WorkflowStep], Any], after: Callable[[WorkflowStep], Any]
) -> tuple[Any, list[tuple[Any, ...]], list[str]]:
    """Run `before` up to an event, then, in another runtime, `after`; return result, steps, divergences."""

    class Before(WorkflowEntrypoint):
        name = "Order"

        async def run(self, event: WorkflowEvent[Any], step: WorkflowStep) -> Any:
            result = await before(step)
            await step.wait_for_event("go", type="go", timeout=None)
            return result

    class After(WorkflowEntrypoint):
        name = "Order"

        async def run(self, event: WorkflowEvent[Any], step: WorkflowStep) -> Any:
            result = await after(step)
            await step.wait_for_event("go", type="go", timeout=None)
            return result

    async with open_test_runtime(folder, workflows=[Before], replay=replay) as runtime:
        instance = await runtime.create(Before, id="a")
        await reached(instance, "event started")
    async with open_test_runtime(folder, workflows=[After], replay=replay) as runtime:
        instance = await runtime.get(After, "a")
        await instance.send_event("go")
        result = await instance.result()
        steps = [tuple(row) for row in await instance.sql(STEPS)]
        return result, steps, [row.detail for row in await instance.sql(DIVERGED)]


async def test_the_recorded_step_of_the_old_name_answers(tmp_path: Path, replay: Replay) -> None:
    async def before(step: WorkflowStep) -> str:
        return await step.do("bill", charge, 1)

    async def after(step: WorkflowStep) -> str:
        return await step.do("charge", charge, 1, was="bill")

    result, steps, diverged = await over_a_restart(tmp_path / "state", replay, before, after)

    assert ("charged 1", [1], []) == (result, calls, diverged)
    assert [("bill", 1, "completed"), ("go", 1, "completed")] == steps


async def test_a_step_that_was_renamed_twice_is_found_under_any_of_its_names(
    tmp_path: Path, replay: Replay
) -> None:
    async def before(step: WorkflowStep) -> list[str]:
        return [await step.do("bill", charge, 1, key=1), await step.do("debit", charge, 2, key=2)]

    async def after(step: WorkflowStep) -> list[str]:
        return [await step.do("charge", charge, each, key=each, was=("debit", "bill")) for each in (1, 2, 3)]

    result, steps, diverged = await over_a_restart(tmp_path / "state", replay, before, after)

    assert (["charged 1", "charged 2", "charged 3"], [1, 2, 3], []) == (result, calls, diverged)
    assert ["bill[1]", "debit[2]", "go", "charge[3]"] == [row[0] for row in steps]


async def test_each_use_of_a_repeated_name_is_found(tmp_path: Path, replay: Replay) -> None:
    async def before(step: WorkflowStep) -> list[str]:
        return [await step.do("bill", charge, order) for order in (1, 2)]

    async def after(step: WorkflowStep) -> list[str]:
        return [await step.do("charge", charge, order, was="bill") for order in (1, 2, 3)]

    result, steps, diverged = await over_a_restart(tmp_path / "state", replay, before, after)

    assert (["charged 1", "charged 2", "charged 3"], [1, 2, 3], []) == (result, calls, diverged)
    assert [("bill", 1), ("bill", 2), ("go", 1), ("charge", 3)] == [row[:2] for row in steps]


async def test_parts_of_a_map_and_declared_steps_may_be_renamed(tmp_path: Path, replay: Replay) -> None:
    async def before(step: WorkflowStep) -> list[str]:
        mapped = await step.map("bill", charge, [1, 2])
        return [*mapped, await step.do("tip", charge, 3)]

    async def after(step: WorkflowStep) -> list[str]:
        mapped = await step.map("charge", charge, [1, 2], was="bill")
        return [*mapped, await step.do("gratuity", was="tip")(charge)(3)]

    result, steps, diverged = await over_a_restart(tmp_path / "state", replay, before, after)

    assert (["charged 1", "charged 2", "charged 3"], []) == (result, diverged)
    assert [1, 2, 3] == sorted(calls)
    assert {"bill[0]", "bill[1]", "tip", "go"} == {row[0] for row in steps}


async def test_an_open_attempt_of_the_old_name_goes_on_as_the_renamed_step(
    tmp_path: Path, replay: Replay
) -> None:
    class Before(WorkflowEntrypoint):
        name = "Order"

        async def run(self, event: WorkflowEvent[Any], step: WorkflowStep) -> Any:
            async def fail(context: StepContext) -> str:
                if context.attempt == 1:
                    raise OSError("not today")
                await trio.sleep_forever()
                return "never"

            return await step.do("bill", fail)

    class After(WorkflowEntrypoint):
        name = "Order"

        async def run(self, event: WorkflowEvent[Any], step: WorkflowStep) -> str:
            return await step.do("charge", charge, 1, was="bill")

    async with open_test_runtime(tmp_path / "state", workflows=[Before], replay=replay) as runtime:
        instance = await runtime.create(Before, id="a")
        await reached(instance, "attempt failed")
    async with open_test_runtime(tmp_path / "state", workflows=[After], replay=replay) as runtime:
        again = await runtime.get(After, "a")
        assert "charged 1" == await again.result()
        ((name, attempts),) = await again.sql("SELECT name, attempts FROM steps")

    assert "bill" == name
    assert attempts > 1


async def error_of(folder: Path, replay: Replay, call: Callable[[WorkflowStep], Any]) -> BaseException | None:
    class Refused(WorkflowEntrypoint):
        async def run(self, event: WorkflowEvent[Any], step: WorkflowStep) -> None:
            await call(step)

    async with open_test_runtime(folder, workflows=[Refused], replay=replay) as runtime:
        try:
            await (await runtime.create(Refused)).result()
        except InstanceFailedError as error:
            return error.__cause__
    return None


async def the_old_name_afterwards(step: WorkflowStep) -> None:
    await step.do("charge", charge, 1, was="bill")
    await step.do("bill", charge, 2)


async def the_old_name_before(step: WorkflowStep) -> None:
    await step.do("bill", charge, 1)
    await step.do("charge", charge, 2, was="bill")


async def two_heirs(step: WorkflowStep) -> None:
    await step.do("charge", charge, 1, was="bill")
    await step.do("debit", charge, 2, was="bill")


@pytest.mark.parametrize("call", [the_old_name_afterwards, the_old_name_before, two_heirs])
async def test_an_old_name_that_somebody_else_asks_for_is_refused(
    tmp_path: Path, replay: Replay, call: Any
) -> None:
    error = await error_of(tmp_path / "state", replay, call)

    assert isinstance(error, AmbiguousStepError)
    assert "was=" in str(error)
    assert [1] == calls


@pytest.mark.parametrize(
    ("was", "kind"),
    [("", InvalidNameError), ("a\nb", InvalidNameError), ((), InvalidArgumentError),
     (7, InvalidArgumentError), (["bill"], InvalidArgumentError), ((7,), InvalidNameError),
     ("charge", InvalidArgumentError)],
)  # fmt: skip
async def test_a_former_name_that_is_none_is_refused_at_the_call(
    tmp_path: Path, replay: Replay, was: Any, kind: type[Exception]
) -> None:
    async def call(step: WorkflowStep) -> None:
        step.do("charge", charge, 1, was=was)

    assert isinstance(await error_of(tmp_path / "state", replay, call), kind)
    assert [] == calls
