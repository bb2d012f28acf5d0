"""Defects D1 to D9 of the peer's open engine, by their recipes: none of them is here."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import timedelta
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import trio

from perdure import (
    EventTimeoutError,
    ForgottenAwaitError,
    InstanceExistsError,
    NonRetryableError,
    StepTimeoutError,
    WorkflowEntrypoint,
    WorkflowEvent,
    WorkflowStep,
)
from perdure.testing import open_test_runtime

Play = Callable[..., Awaitable[Any]]


class Two(WorkflowEntrypoint):
    """Waits twice for one type of event, and says what came."""

    async def run(self, event: WorkflowEvent[None], step: WorkflowStep) -> list[Any]:
        got: list[Any] = []
        for name in ("first", "second"):
            try:
                got.append((await step.wait_for_event(name, type="item", timeout="1 hour")).payload)
            except EventTimeoutError:
                got.append("timeout")
        return got


async def test_defect_01_a_sleep_until_that_is_over_is_over_after_a_pause(
    folder: Path, replay: Any, reached: Any
) -> None:
    class Sleeper(WorkflowEntrypoint):
        async def run(self, event: WorkflowEvent[None], step: WorkflowStep) -> Any:
            await step.sleep_until("dawn", event.timestamp + timedelta(minutes=1))
            return (await step.wait_for_event("wait", type="go", timeout=None)).payload

    async with open_test_runtime(folder, workflows=[Sleeper], replay=replay) as runtime:
        instance = await runtime.create(Sleeper)
        await reached(instance, "event started", "wait")
        await instance.pause()
        await instance.resume()
        await instance.send_event("go", "awake")
        assert "awake" == await instance.result()


async def test_defect_02_an_event_that_was_taken_is_not_delivered_again_after_a_pause(
    folder: Path, replay: Any, reached: Any, clock: Any
) -> None:
    async with open_test_runtime(folder, workflows=[Two], replay=replay, clock=clock) as runtime:
        instance = await runtime.create(Two, id="a", event=("item", 1))
        await reached(instance, "event started", "second")
        await instance.pause()
        await instance.resume()
    async with open_test_runtime(folder, workflows=[Two], replay=replay) as runtime:
        assert [1, "timeout"] == await (await runtime.get(Two, "a")).result()


async def test_defect_03_a_dozen_buffered_events_keep_their_order_over_a_restart(
    folder: Path, replay: Any, reached: Any, clock: Any
) -> None:
    class Dozen(WorkflowEntrypoint):
        async def run(self, event: WorkflowEvent[None], step: WorkflowStep) -> list[int]:
            await step.sleep("night", "8 hours")
            return [(await step.wait_for_event("item", type="item")).payload for _ in range(13)]

    async with open_test_runtime(folder, workflows=[Dozen], replay=replay, clock=clock) as runtime:
        instance = await runtime.create(Dozen, id="a")
        await reached(instance, "sleep started", "night")
        for number in range(13):
            await instance.send_event("item", number)
    async with open_test_runtime(folder, workflows=[Dozen], replay=replay) as runtime:
        assert list(range(13)) == await (await runtime.get(Dozen, "a")).result()


@pytest.mark.slow
async def test_defect_04_events_before_and_after_the_death_of_the_process_come_once_each(
    folder: Path, replay: Any, killed: Callable[..., None], dying: ModuleType
) -> None:
    killed("Collector", "event started", "told", "item=0", "item=1")

    async with open_test_runtime(folder, workflows=[dying.Collector], replay=replay) as runtime:
        instance = await runtime.get("Collector", "a")
        await instance.send_event("item", "2")
        await instance.send_event("go on")
        assert ["0", "1", "2"] == await instance.result()


class Caught(WorkflowEntrypoint):
    calls: list[int]

    async def run(self, event: WorkflowEvent[None], step: WorkflowStep) -> str:
        def charge() -> None:
            self.calls.append(1)
            raise NonRetryableError(f"declined at call {len(self.calls)}")

        try:
            await step.do("charge", charge)
        except NonRetryableError as error:
            told = str(error)
        else:
            told = "charged"
        await step.wait_for_event("told", type="go on", timeout=None)
        return told


async def test_defect_05_a_pause_after_a_caught_non_retryable_error_pauses_and_the_instance_finishes(
    folder: Path, replay: Any, reached: Any
) -> None:
    Caught.calls = []
    async with open_test_runtime(folder, workflows=[Caught], replay=replay) as runtime:
        instance = await runtime.create(Caught)
        await reached(instance, "event started", "told")
        await instance.pause()
        assert "paused" == (await instance.status()).status
        await instance.resume()
        await instance.send_event("go on")
        assert "declined at call 1" == await instance.result()


@pytest.mark.slow
async def test_defect_06_a_step_whose_non_retryable_error_was_caught_does_not_run_in_the_next_process(
    folder: Path, replay: Any, killed: Callable[..., None], dying: ModuleType
) -> None:
    killed("Caught", "event started", "told")

    async with open_test_runtime(folder, workflows=[dying.Caught], replay=replay) as runtime:
        instance = await runtime.get("Caught", "a")
        ((error,),) = await instance.sql("SELECT error ->> '$.message' FROM steps WHERE name = 'charge'")
        await instance.send_event("go on")
        told = await instance.result()
        ((attempts,),) = await instance.sql("SELECT attempts FROM steps WHERE name = 'charge'")

    assert error == told
    assert 1 == attempts


async def test_defect_07_of_three_concurrent_creates_with_one_id_one_succeeds(
    folder: Path, replay: Any
) -> None:
    outcomes: list[str] = []

    async with open_test_runtime(folder, workflows=[Two], replay=replay) as runtime:

        async def create() -> None:
            try:
                await runtime.create(Two, id="a")
            except InstanceExistsError:
                outcomes.append("exists")
            else:
                outcomes.append("created")

        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(create)

    assert ["created", "exists", "exists"] == sorted(outcomes)


async def test_defect_08_a_step_that_nobody_awaits_fails_the_run_and_does_not_run(play: Play) -> None:
    called: list[int] = []

    async def run(step: WorkflowStep) -> str:
        step.do("forgotten", called.append, 1)
        return "done"

    played = await play(run)

    assert isinstance(played.error, ForgottenAwaitError)
    assert "forgotten" in str(played.error)
    assert [] == called


async def test_defect_09_an_attempt_that_timed_out_has_ended_before_the_next_one_starts(play: Play) -> None:
    story: list[str] = []

    async def slow() -> None:
        story.append("begins")
        try:
            await trio.sleep_forever()
        finally:
            story.append("ends")

    async def run(step: WorkflowStep) -> None:
        await step.do("slow", slow, timeout=0.02, retries=1)

    played = await play(run)

    assert isinstance(played.error, StepTimeoutError)
    assert ["begins", "ends"] * 2 == story
