"""The replay of `run()` for its rollback handlers alone: what it reaches, and what it must not start."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any, cast

import pytest
import trio

from perdure import (
    Instance,
    InstanceTerminatedError,
    Limits,
    RollbackContext,
    RollbackResult,
    Runtime,
    WorkflowEntrypoint,
    WorkflowEvent,
    WorkflowStep,
)
from perdure.actors.host import Replay
from perdure.testing import VirtualClock, open_test_runtime

QUICK = Limits(idle_grace_s=0.0)
"""What is parked leaves memory at once, so that no handler is there any more when it is needed."""


@pytest.fixture(params=["warm", "always"])
def replay(request: pytest.FixtureRequest) -> Replay:
    return cast("Replay", request.param)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "state"


class HeldClock(VirtualClock):
    """A virtual clock that never jumps: time passes by `advance` alone."""

    async def wait(self, delay_ms: float | None, changed: trio.Event) -> None:
        await super().wait(None, changed)


class Story:
    """What steps and handlers have done, in order."""

    def __init__(self) -> None:
        self.done: list[str] = []
        self.undone: list[str] = []
        self.holds = trio.Event()
        self.may_end = trio.Event()

    async def do(self, name: str) -> str:
        """Do a step."""
        self.done.append(name)
        return name

    async def hang(self) -> None:
        """Do a step that never ends by itself."""
        self.done.append("hang")
        await trio.sleep_forever()

    async def undo(self, context: RollbackContext[str]) -> None:
        """Undo a step."""
        self.undone.append(context.name)

    async def hold(self, context: RollbackContext[str]) -> None:
        """Undo a step once it may."""
        self.holds.set()
        await self.may_end.wait()
        self.undone.append(context.name)


async def waits(instance: Instance[Any]) -> None:
    """Return when the instance waits for the event."""
    async with contextlib.aclosing(instance.subscribe()) as story:
        async for entry in story:
            if entry.what == "event started":
                break


async def at_rest(runtime: Runtime, instance: Instance[Any]) -> None:
    """Return when the instance waits for the event and has left memory."""
    await waits(instance)
    while runtime.statistics().warm:  # noqa: ASYNC110 - leaving memory rings for nobody
        await trio.sleep(0.001)


async def rolled_back(runtime: Runtime, cls: Any) -> Any:
    """Terminate the one instance with a rollback, and tell how that ended."""
    await (await runtime.get(cls, "a")).terminate(rollback=True)
    return await ended(runtime, cls)


async def run_and_roll_back(folder: Path, replay: Replay, cls: Any, later: Any = None) -> Any:
    """Run until it waits, leave memory, and roll back, with the code of `later` where that is given."""
    async with open_test_runtime(folder, workflows=[cls], replay=replay, limits=QUICK) as runtime:
        await at_rest(runtime, await runtime.create(cls, id="a"))
        if later is None:
            return await rolled_back(runtime, cls)
    async with open_test_runtime(folder, workflows=[later], replay=replay, limits=QUICK) as runtime:
        return await rolled_back(runtime, later)


async def begin_a_rollback(folder: Path, replay: Replay, cls: Any, story: Story) -> None:
    """Have a rollback under way when the runtime ends, so that the next finds it so."""
    async with open_test_runtime(folder, workflows=[cls], replay=replay) as runtime:
        instance = await runtime.create(cls, id="a")
        await waits(instance)
        await instance.terminate(rollback=True)
        await story.holds.wait()
    story.may_end.set()


async def ended(runtime: Runtime, cls: Any) -> Any:
    """Wait for the end of the one instance and tell how its rollback ended."""
    instance = await runtime.get(cls, "a")
    with pytest.raises(InstanceTerminatedError):
        await instance.result()
    return (await instance.status()).rollback


COMPLETE = RollbackResult(outcome="complete", error=None)


async def test_steps_in_parallel_branches_are_all_reached(folder: Path, replay: Replay) -> None:
    story = Story()

    class Trip(WorkflowEntrypoint):
        async def run(self, event: WorkflowEvent[Any], step: WorkflowStep) -> None:
            async def branch(name: str) -> None:
                await step.do(f"{name} one", story.do, name, rollback=story.undo)
                await step.sleep(f"{name} rests", "1 minute")
                await step.do(f"{name} two", story.do, name, rollback=story.undo)
                await step.wait_for_event(f"{name} waits", type="go", timeout=None)
                await step.do(f"{name} three", story.do, name, rollback=story.undo)

            async with trio.open_nursery() as nursery:
                nursery.start_soon(branch, "left")
                nursery.start_soon(branch, "right")

    async with open_test_runtime(folder, workflows=[Trip], replay=replay, limits=QUICK) as runtime:
        instance = await runtime.create(Trip, id="a")
        while (await instance.sql("SELECT count(*) FROM steps WHERE kind = 'event'"))[0][0] < 2:  # noqa: ASYNC110 - until both branches wait
            await trio.sleep(0.001)
        result = await rolled_back(runtime, Trip)

    assert COMPLETE == result
    assert {"left two", "right two"} == set(story.undone[:2])
    assert {"left one", "right one"} == set(story.undone[2:])
    assert 4 == len(story.done)


async def test_a_group_a_race_and_a_deadline_give_their_handlers_again(folder: Path, replay: Replay) -> None:
    story = Story()

    class Trip(WorkflowEntrypoint):
        async def run(self, event: WorkflowEvent[Any], step: WorkflowStep) -> None:
            await step.map("seat", story.do, ["1A", "1B"], limit=1, rollback=story.undo)
            await step.race(
                "carrier",
                {
                    "rail": step.do("rail", story.do, "rail", rollback=story.undo),
                    "road": step.do("road", story.hang, rollback=story.undo),
                },
            )
            async with step.move_on_after("soon", "1 minute"):
                await step.do("search", story.do, "search", rollback=story.undo)
                await step.wait_for_event("offer", type="offer", timeout=None)
            await step.do("late", story.do, "late", rollback=story.undo)
            await step.wait_for_event("home", type="home", timeout=None)

    async with open_test_runtime(folder, workflows=[Trip], replay=replay) as runtime:
        instance = await runtime.create(Trip, id="a")
        while not await instance.sql("SELECT 1 FROM steps WHERE name = 'home'"):  # noqa: ASYNC110 - until it waits for that
            await trio.sleep(0.001)
    async with open_test_runtime(folder, workflows=[Trip], replay=replay) as runtime:
        result = await rolled_back(runtime, Trip)

    assert COMPLETE == result
    assert ["late", "search"] == story.undone[:2]
    assert {"rail", "road"} >= set(story.undone[2:-2]) >= {"rail"}
    assert ["seat[1]", "seat[0]"] == story.undone[-2:]


async def test_a_step_that_the_code_has_only_now_is_not_started(folder: Path, replay: Replay) -> None:
    story = Story()

    class Before(WorkflowEntrypoint):
        name = "Trip"

        async def run(self, event: WorkflowEvent[Any], step: WorkflowStep) -> None:
            await step.do("flight", story.do, "flight", rollback=story.hold)
            await step.wait_for_event("home", type="home", timeout=None)

    class After(WorkflowEntrypoint):
        name = "Trip"

        async def run(self, event: WorkflowEvent[Any], step: WorkflowStep) -> None:
            async def news() -> None:
                await step.do("new", story.do, "new", rollback=story.hold)
                await step.now("new moment")
                await step.sleep("new sleep", "1 hour")

            async with trio.open_nursery() as nursery:
                nursery.start_soon(news)
                await step.do("flight", story.do, "flight", rollback=story.hold)

    await begin_a_rollback(folder, replay, Before, story)
    async with open_test_runtime(folder, workflows=[After], replay=replay) as runtime:
        result = await ended(runtime, After)

    assert (COMPLETE, ["flight"], ["flight"]) == (result, story.done, story.undone)


async def test_a_change_that_is_declared_as_a_patch_keeps_the_old_path(folder: Path, replay: Replay) -> None:
    story = Story()

    class Before(WorkflowEntrypoint):
        name = "Trip"

        async def run(self, event: WorkflowEvent[Any], step: WorkflowStep) -> None:
            for each in ("flight", "hotel"):
                await step.do(each, story.do, each, rollback=story.hold)
            await step.wait_for_event("home", type="home", timeout=None)

    class After(WorkflowEntrypoint):
        name = "Trip"

        async def run(self, event: WorkflowEvent[Any], step: WorkflowStep) -> None:
            await step.do("flight", story.do, "flight", rollback=story.hold)
            if await step.patched("insured"):
                await step.do("insurance", story.do, "insurance", rollback=story.hold)
            await step.do("hotel", story.do, "hotel", rollback=story.hold)

    await begin_a_rollback(folder, replay, Before, story)
    async with open_test_runtime(folder, workflows=[After], replay=replay) as runtime:
        result = await ended(runtime, After)

    assert (COMPLETE, ["flight", "hotel"], ["hotel", "flight"]) == (result, story.done, story.undone)


async def test_a_step_that_was_renamed_is_undone_under_its_recorded_name(
    folder: Path, replay: Replay
) -> None:
    story = Story()

    class Before(WorkflowEntrypoint):
        name = "Trip"

        async def run(self, event: WorkflowEvent[Any], step: WorkflowStep) -> None:
            await step.do("flight", story.do, "flight", rollback=story.hold)
            await step.wait_for_event("home", type="home", timeout=None)

    class After(WorkflowEntrypoint):
        name = "Trip"

        async def run(self, event: WorkflowEvent[Any], step: WorkflowStep) -> None:
            await step.do("plane", story.do, "flight", was="flight", rollback=story.hold)

    await begin_a_rollback(folder, replay, Before, story)
    async with open_test_runtime(folder, workflows=[After], replay=replay) as runtime:
        result = await ended(runtime, After)

    assert (COMPLETE, ["flight"]) == (result, story.undone)


async def test_a_handler_that_the_code_has_only_now_runs(folder: Path, replay: Replay) -> None:
    story = Story()

    class Before(WorkflowEntrypoint):
        name = "Trip"

        async def run(self, event: WorkflowEvent[Any], step: WorkflowStep) -> None:
            await step.do("flight", story.do, "flight")
            await step.do("hotel", story.do, "hotel", rollback=story.undo)
            await step.wait_for_event("home", type="home", timeout=None)

    class After(WorkflowEntrypoint):
        name = "Trip"

        async def run(self, event: WorkflowEvent[Any], step: WorkflowStep) -> None:
            await step.do("flight", story.do, "flight", rollback=story.undo)
            await step.do("hotel", story.do, "hotel", rollback=story.undo)
            await step.wait_for_event("home", type="home", timeout=None)

    result = await run_and_roll_back(folder, replay, Before, After)

    assert (COMPLETE, ["hotel", "flight"]) == (result, story.undone)


async def test_a_handler_that_the_code_has_no_more_ends_the_rollback_naming_the_step(
    folder: Path, replay: Replay
) -> None:
    story = Story()

    class Before(WorkflowEntrypoint):
        name = "Trip"

        async def run(self, event: WorkflowEvent[Any], step: WorkflowStep) -> None:
            for each in ("flight", "hotel", "car"):
                await step.do(each, story.do, each, rollback=story.undo)
            await step.wait_for_event("home", type="home", timeout=None)

    class After(WorkflowEntrypoint):
        name = "Trip"

        async def run(self, event: WorkflowEvent[Any], step: WorkflowStep) -> None:
            await step.do("flight", story.do, "flight", rollback=story.undo)
            await step.do("car", story.do, "car", rollback=story.undo)
            await step.wait_for_event("home", type="home", timeout=None)

    result = await run_and_roll_back(folder, replay, Before, After)

    assert ["car"] == story.undone
    assert "failed" == result.outcome
    assert "RollbackMissingError" in result.error
    assert "'hotel'" in result.error


async def test_a_run_that_waits_outside_its_steps_does_not_keep_a_missing_handler_waiting_for_ever(
    folder: Path, replay: Replay
) -> None:
    story = Story()

    class Before(WorkflowEntrypoint):
        name = "Trip"

        async def run(self, event: WorkflowEvent[Any], step: WorkflowStep) -> None:
            await step.do("flight", story.do, "flight", rollback=story.hold)
            await step.wait_for_event("home", type="home", timeout=None)

    class After(WorkflowEntrypoint):
        name = "Trip"

        async def run(self, event: WorkflowEvent[Any], step: WorkflowStep) -> None:
            waiting.set()
            await trio.sleep_forever()

    waiting = trio.Event()
    clock = HeldClock()
    await begin_a_rollback(folder, replay, Before, story)
    async with open_test_runtime(folder, workflows=[After], replay=replay, clock=clock) as runtime:
        await waiting.wait()
        clock.advance(Limits().rollback_replay_s)
        result = await ended(runtime, After)

    assert "RollbackMissingError" in result.error


async def test_an_output_that_fits_its_annotation_no_more_ends_the_rollback(
    folder: Path, replay: Replay
) -> None:
    story = Story()

    async def number() -> int:
        return 7

    class Before(WorkflowEntrypoint):
        name = "Trip"

        async def run(self, event: WorkflowEvent[Any], step: WorkflowStep) -> None:
            await step.do("flight", story.do, "LH1", rollback=story.hold)
            await step.wait_for_event("home", type="home", timeout=None)

    class After(WorkflowEntrypoint):
        name = "Trip"

        async def run(self, event: WorkflowEvent[Any], step: WorkflowStep) -> None:
            await step.do("flight", number, rollback=story.hold)

    await begin_a_rollback(folder, replay, Before, story)
    async with open_test_runtime(folder, workflows=[After], replay=replay) as runtime:
        result = await ended(runtime, After)

    assert ("failed", []) == (result.outcome, story.undone)
    assert "DecodingError" in result.error
