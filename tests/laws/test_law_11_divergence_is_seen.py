"""Law 11: a replay that asks for something else than was recorded is seen, and told.

Each test lets one version of a class come to a wait, and another version of it go on from there.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import trio

from perdure import (
    DivergenceError,
    HistoryEntry,
    InstanceFailedError,
    InstanceFinishedError,
    WorkflowEntrypoint,
    WorkflowEvent,
    WorkflowStep,
)
from perdure.actors.calls import StepCall
from perdure.actors.compose import RaceCall
from perdure.actors.do import DoCall
from perdure.actors.host import Replay
from perdure.actors.reports import Reports
from perdure.actors.workflow import OnDivergence
from perdure.testing import open_test_runtime

Broken = Callable[[Any, str, Callable[..., Any]], None]
Script = Callable[[WorkflowStep], Awaitable[Any]]


class Story:
    """What became of an instance whose class was changed under way."""

    def __init__(self, result: Any, error: BaseException | None, divergences: list[HistoryEntry]) -> None:
        self.result = result
        self.error = error
        self.divergences = divergences

    @property
    def details(self) -> list[str]:
        return [entry.detail or "" for entry in self.divergences]


def version_of(script: Script, policy: OnDivergence | None = None) -> type[WorkflowEntrypoint]:
    class Changed(WorkflowEntrypoint):
        on_divergence = policy

        async def run(self, event: WorkflowEvent[Any], step: WorkflowStep) -> Any:
            return await script(step)

    return Changed


async def changed_under_way(
    folder: Path, replay: Replay, before: Script, after: Script, policy: OnDivergence | None = None
) -> Story:
    """Run `before` until it waits for the event "go", and then `after` to its end."""
    first, second = version_of(before), version_of(after, policy)
    async with open_test_runtime(folder, workflows=[first], replay=replay) as runtime:
        instance = await runtime.create(first, id="a")
        async with contextlib.aclosing(instance.subscribe()) as story:
            async for entry in story:
                if entry.what == "event started" and entry.step == "go":
                    break
    async with open_test_runtime(folder, workflows=[second], replay=replay) as runtime:
        instance = await runtime.get(second, "a")
        with contextlib.suppress(InstanceFinishedError):  # it failed before it came to the wait
            await instance.send_event("go")
        result, error = None, None
        try:
            with trio.fail_after(5):
                result = await instance.result()
        except InstanceFailedError as failed:
            error = failed.__cause__
        divergences = [entry for entry in await instance.history() if entry.what == "divergence"]
    return Story(result, error, divergences)


async def one() -> int:
    return 1


async def plus_one(number: int) -> int:
    return number + 1


async def wait(step: WorkflowStep) -> None:
    await step.wait_for_event("go", type="go", timeout=None)


async def as_it_was(step: WorkflowStep) -> str:
    await step.do("first", plus_one, 1)
    await step.sleep("second", 1)
    await wait(step)
    return "as it was"


# -- what differs ------------------------------------------------------------------------------


async def another_kind(step: WorkflowStep) -> str:
    await step.do("first", plus_one, 1)
    await step.do("second", one)
    await wait(step)
    return "went on"


async def other_arguments(step: WorkflowStep) -> str:
    number = await step.do("first", plus_one, 10)
    assert 2 == number  # the recorded result counts
    await step.sleep("second", 1)
    await wait(step)
    return "went on"


async def not_asked_for(step: WorkflowStep) -> str:
    await step.sleep("second", 1)
    await wait(step)
    return "went on"


SIDES: dict[Script, tuple[str, str]] = {
    another_kind: ("sleep 'second' (use 1)", "do 'second' (use 1)"),
    other_arguments: ("input digest ", "input digest "),
    not_asked_for: ("do 'first'", "nothing"),
}
"""What stands on either side of the report."""

BY_DEFAULT: dict[Script, OnDivergence] = {
    another_kind: "fail",
    other_arguments: "warn",
    not_asked_for: "warn",
}
CHANGES = list(BY_DEFAULT)


def reported(script: Script, story: Story) -> list[str]:
    """Return the divergence rows that tell both sides of this change."""
    recorded, requested = SIDES[script]
    return [
        detail
        for detail in story.details
        if f"(recorded: {recorded}" in detail and f"requested: {requested}" in detail
    ]


async def check_a_change_is_seen(
    folder: Path, replay: Replay, change: Script, policy: OnDivergence | None, log: pytest.LogCaptureFixture
) -> None:
    with log.at_level(logging.WARNING, "perdure.workflow"):
        story = await changed_under_way(folder, replay, as_it_was, change, policy)
    warned = [record.getMessage() for record in log.records if record.name.startswith("perdure.workflow")]

    match policy or BY_DEFAULT[change]:
        case "fail":
            recorded, requested = SIDES[change]
            assert isinstance(story.error, DivergenceError)
            assert story.error.recorded.startswith(recorded)
            assert story.error.requested.startswith(requested)
        case "warn":
            assert ("went on", None) == (story.result, story.error)
            assert 1 == len(reported(change, story))
            assert 1 == len([text for text in warned if reported(change, story)[0] in text])
            assert {"runtime"} == {entry.actor for entry in story.divergences}
        case "ignore":
            assert ("went on", None, []) == (story.result, story.error, story.details)
            assert [] == warned


@pytest.mark.parametrize("policy", [None, "fail", "warn", "ignore"])
@pytest.mark.parametrize("change", CHANGES)
async def test_a_change_is_seen_and_treated_as_the_class_says(
    folder: Path,
    replay: Replay,
    change: Script,
    policy: OnDivergence | None,
    caplog: pytest.LogCaptureFixture,
) -> None:
    await check_a_change_is_seen(folder, replay, change, policy, caplog)


async def test_the_kind_check_fails_when_kinds_are_not_compared(
    folder: Path, broken: Broken, caplog: pytest.LogCaptureFixture
) -> None:
    broken(StepCall, "_refuse_other_kind", lambda *_: None)

    with pytest.raises(AssertionError):
        await check_a_change_is_seen(folder, "warm", another_kind, None, caplog)


async def test_the_arguments_check_fails_when_they_are_not_compared(
    folder: Path, broken: Broken, caplog: pytest.LogCaptureFixture
) -> None:
    broken(DoCall, "_report_changed_arguments", lambda *_: None)

    with pytest.raises(AssertionError):
        await check_a_change_is_seen(folder, "warm", other_arguments, None, caplog)


async def test_the_unasked_check_fails_when_nobody_looks_at_what_is_left(
    folder: Path, broken: Broken, caplog: pytest.LogCaptureFixture
) -> None:
    broken(Reports, "leftovers", lambda *_: None)

    with pytest.raises(AssertionError):
        await check_a_change_is_seen(folder, "warm", not_asked_for, None, caplog)


async def test_the_policy_check_fails_when_every_change_is_only_warned_of(
    folder: Path, broken: Broken, caplog: pytest.LogCaptureFixture
) -> None:
    diverged = vars(Reports)["diverged"]

    def never_fail(reports: Reports, what: str, error: DivergenceError, **_: object) -> None:
        try:
            diverged(reports, what, error, serious=False)
        except DivergenceError:
            return

    broken(Reports, "diverged", never_fail)

    with pytest.raises(AssertionError):
        await check_a_change_is_seen(folder, "warm", other_arguments, "fail", caplog)


@pytest.mark.parametrize("kind", ["do", "sleep", "event", "deadline", "race", "value", "transaction"])
async def test_every_kind_is_told_from_every_other(folder: Path, replay: Replay, kind: str) -> None:
    async def before(step: WorkflowStep) -> None:
        if kind == "do":
            await step.sleep("same", 1)
        else:
            await step.do("same", one)
        await wait(step)

    async def after(step: WorkflowStep) -> None:
        match kind:
            case "do":
                await step.do("same", one)
            case "sleep":
                await step.sleep("same", 1)
            case "event":
                await step.wait_for_event("same", type="other")
            case "deadline":
                async with step.move_on_after("same", 1):
                    pass
            case "race":
                await step.race("same", {"a": one})
            case "value":
                await step.now("same")
            case _:
                await step.transaction("same", lambda _sql: None)

    story = await changed_under_way(folder, replay, before, after)

    assert isinstance(story.error, DivergenceError)
    assert f"{'sleep' if kind == 'do' else 'do'} 'same' (use 1)" == story.error.recorded
    assert f"{kind} 'same' (use 1)" == story.error.requested


async def test_what_was_only_started_is_missed_too(folder: Path, replay: Replay) -> None:
    """The wait itself is recorded: a version that no longer waits has an open step nobody asks for."""

    async def no_longer_waits(step: WorkflowStep) -> str:
        await step.do("first", plus_one, 1)
        await step.sleep("second", 1)
        return "went on"

    story = await changed_under_way(folder, replay, as_it_was, no_longer_waits)

    assert "went on" == story.result
    assert ["recorded: event 'go'"] == [text[text.index("recorded:") :][:20] for text in story.details]


async def test_steps_that_were_added_are_no_divergence(folder: Path, replay: Replay) -> None:
    async def more(step: WorkflowStep) -> str:
        await step.do("before all", one)
        await as_it_was(step)
        await step.do("after all", one)
        return "went on"

    story = await changed_under_way(folder, replay, as_it_was, more)

    assert ("went on", None, []) == (story.result, story.error, story.details)


# -- what is no divergence ---------------------------------------------------------------------


async def check_a_decided_race_is_no_divergence(folder: Path, replay: Replay, after: Script) -> None:
    """Race parts of which one sleeps, one waits, and one is between two attempts when it is decided."""
    story = await changed_under_way(folder, replay, raced, after)

    assert (None, []) == (story.error, story.details)
    assert "quick" == story.result


async def fail(_number: int) -> int:
    raise ValueError("not yet")


async def raced(step: WorkflowStep) -> str:
    parts: dict[str, Any] = {
        "slow": step.sleep("slow", "1 day"),
        "event": step.wait_for_event("never", type="never"),
        "retrying": step.do("retrying", fail, 1),
        "quick": step.sleep("quick", 1),
    }
    who, _ = await step.race("race", parts)
    await wait(step)
    return who


async def raced_without_losers(step: WorkflowStep) -> str:
    who, _ = await step.race("race", {"quick": step.sleep("quick", 1)})
    await wait(step)
    return who


async def raced_with_other_arguments(step: WorkflowStep) -> str:
    parts: dict[str, Any] = {
        "slow": step.sleep("slow", "2 days"),
        "retrying": step.do("retrying", plus_one, 3),
        "quick": step.sleep("quick", 1),
    }
    who, _ = await step.race("race", parts)
    await wait(step)
    return who


RACES = [raced, raced_without_losers, raced_with_other_arguments]


@pytest.mark.parametrize("after", RACES)
async def test_steps_inside_a_decided_race_are_no_divergence(
    folder: Path, replay: Replay, after: Script
) -> None:
    await check_a_decided_race_is_no_divergence(folder, replay, after)


async def test_the_race_check_fails_when_losers_are_not_recorded_as_cancelled(
    folder: Path, broken: Broken
) -> None:
    broken(DoCall, "_cancelled", lambda *_: None)
    broken(RaceCall, "answer", vars(StepCall)["answer"])

    with pytest.raises((AssertionError, InstanceFailedError)):
        await check_a_decided_race_is_no_divergence(folder, "warm", raced_without_losers)
