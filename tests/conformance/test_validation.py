"""Cases 46 to 52: what names, ids, options and limits may be. Each refusal comes before any effect."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from perdure import (
    App,
    InvalidArgumentError,
    InvalidDurationError,
    InvalidIdError,
    InvalidNameError,
    Retries,
    StepConfig,
    StepContext,
    WorkflowEntrypoint,
    WorkflowEvent,
    WorkflowLimits,
    WorkflowStep,
)
from perdure.testing import open_test_runtime

Play = Callable[..., Awaitable[Any]]


class Plain(WorkflowEntrypoint):
    async def run(self, event: WorkflowEvent[None], step: WorkflowStep) -> str:
        return event.instance_id


def named(name: str) -> type[WorkflowEntrypoint]:
    return type("Named", (Plain,), {"name": name})


@pytest.mark.parametrize("name", ["", " ", "a\nb", "a\x00", "a" * 65, "-a", "a b", "a!", "a/b", "ä"])
def test_case_046_names_of_workflows_that_are_refused(name: str) -> None:
    with pytest.raises(InvalidNameError, match="workflow name"):
        App([named(name)])


@pytest.mark.parametrize("name", ["a" * 64, "orders_2-new", "7"])
def test_case_046_names_of_workflows_that_are_accepted(name: str) -> None:
    assert [name] == list(App([named(name)]).definitions)


@pytest.mark.parametrize("instance_id", ["", "\t", "a\nb", "a\x7f", "a" * 513])
async def test_case_047_ids_that_are_refused(folder: Path, replay: Any, instance_id: str) -> None:
    async with open_test_runtime(folder, workflows=[Plain], replay=replay) as runtime:
        with pytest.raises(InvalidIdError, match="instance id"):
            await runtime.create(Plain, id=instance_id)
        assert [] == await runtime.list()


@pytest.mark.parametrize("instance_id", ["a" * 100, "a" * 512, "order #7!", "Ünï/cødé?"])
async def test_case_047_ids_that_are_accepted(folder: Path, replay: Any, instance_id: str) -> None:
    async with open_test_runtime(folder, workflows=[Plain], replay=replay) as runtime:
        instance = await runtime.create(Plain, id=instance_id)
        assert instance_id == await instance.result()


async def test_case_048_ids_in_the_style_of_cron_can_be_addressed_up_to_any_length(
    folder: Path, replay: Any
) -> None:
    occurrence = f"{'*/5 9-17 * * 1#2, ' * 14}-1893456000000"
    async with open_test_runtime(folder, workflows=[Plain], replay=replay) as runtime:
        await (await runtime.create(Plain, id=occurrence)).result()
        found = await runtime.get(Plain, occurrence)
        assert occurrence == await found.result()
    assert 260 < len(occurrence) < 300


@pytest.mark.parametrize("name", ["", "a\nb", "a\x00", "a\x9f", "a" * 257])
async def test_case_049_names_of_steps_that_are_refused(play: Play, name: str) -> None:
    called: list[int] = []

    async def run(step: WorkflowStep) -> None:
        await step.do(name, called.append, 1)

    played = await play(run)

    assert isinstance(played.error, InvalidNameError)
    assert ([], []) == (called, played.rows)


@pytest.mark.parametrize("name", ["send the letter", "a" * 256, "größer"])
async def test_case_049_names_of_steps_that_are_accepted(play: Play, name: str) -> None:
    async def run(step: WorkflowStep) -> None:
        await step.do(name, lambda: None)

    assert [(name, 1, "do", "completed", 1)] == (await play(run)).rows


@pytest.mark.parametrize(
    ("options", "error"),
    [
        (lambda: {"retries": Retries(delay="10 secs")}, InvalidDurationError),
        (lambda: {"retries": Retries(limit=-1)}, InvalidArgumentError),
        (lambda: {"retries": Retries(limit=1, wait=5)}, TypeError),  # type: ignore[call-arg]  # it is refused
        (lambda: {"retry": 5}, TypeError),
        (lambda: {"timeout": 0}, InvalidArgumentError),
        (lambda: {"timeout": "0 seconds"}, InvalidArgumentError),
        (lambda: {"sensitive": "everything"}, InvalidArgumentError),
    ],
)
async def test_case_050_options_of_steps_that_are_refused_before_the_function_is_called(
    play: Play, options: Callable[[], dict[str, Any]], error: type[Exception]
) -> None:
    called: list[int] = []

    async def run(step: WorkflowStep) -> None:
        await step.do("work", called.append, 1, **options())

    played = await play(run)

    assert isinstance(played.error, error)
    assert ([], []) == (called, played.rows)


def test_case_050_what_retries_leave_out_is_as_documented() -> None:
    assert (5, 1) == (Retries(delay=1).limit, Retries(delay=1).delay)
    assert (1, "10 seconds") == (Retries(limit=1).limit, Retries(limit=1).delay)


def a_second(context: StepContext, error: BaseException) -> int:
    return 1


async def test_case_051_options_of_steps_that_are_accepted(play: Play) -> None:
    async def run(step: WorkflowStep) -> int:
        await step.do("limit 0", lambda: None, retries=Retries(limit=0))
        await step.do("delay 0", lambda: None, retries=Retries(delay=0))
        await step.do("delay function", lambda: None, retries=Retries(delay=a_second))
        await step.do("sensitive", lambda: None, sensitive="output")
        return 4

    assert 4 == (await play(run)).result
    assert StepConfig(sensitive="output").sensitive == "output"


@pytest.mark.parametrize(
    "limits", [{"steps_max": 0}, {"steps_max": -1}, {"steps_max": 1.5}, {"steps_max": True}]
)
def test_case_052_limits_of_workflows_that_are_refused(limits: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgumentError, match="steps_max"):
        App([type("Limited", (Plain,), {"limits": WorkflowLimits(**limits)})])


def test_case_052_limits_that_are_no_limits_and_two_workflows_of_one_name_are_refused() -> None:
    with pytest.raises(InvalidArgumentError, match="WorkflowLimits"):
        App([type("Limited", (Plain,), {"limits": 5})])
    with pytest.raises(InvalidArgumentError, match="two workflows are called 'same'"):
        App([named("same"), named("same")])


def test_case_052_a_limit_above_the_peers_largest_is_a_limit_like_any_other() -> None:
    limits = WorkflowLimits(steps_max=25_001)
    assert limits is App([type("Large", (Plain,), {"limits": limits})]).definition("Large").limits
