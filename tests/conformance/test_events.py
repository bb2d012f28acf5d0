"""Cases 53 to 61: events, the waits they end, and the timeouts they come before."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from perdure import EventTimeoutError, WorkflowEntrypoint, WorkflowEvent, WorkflowStep
from perdure.testing import VirtualClock, open_test_runtime

FINITE = ("complete", "errored", "terminated")
DAY_S = 86_400


class Waits(WorkflowEntrypoint):
    """Waits for as many events of the type `go` as its params say, each for up to an hour."""

    async def run(self, event: WorkflowEvent[int], step: WorkflowStep) -> list[Any]:
        got: list[Any] = []
        for number in range(event.payload):
            try:
                got.append((await step.wait_for_event(f"wait {number}", type="go", timeout="1 hour")).payload)
            except EventTimeoutError:
                got.append("timeout")
        return got


class WaitsForEver(WorkflowEntrypoint):
    async def run(self, event: WorkflowEvent[None], step: WorkflowStep) -> Any:
        return (await step.wait_for_event("wait", type="go", timeout=None)).payload


async def test_case_053_a_waiting_instance_completes_when_a_matching_event_is_sent(
    folder: Path, replay: Any, reached: Any, clock: Any
) -> None:
    async with open_test_runtime(folder, workflows=[Waits], replay=replay, clock=clock) as runtime:
        instance = await runtime.create(Waits, params=1)
        await reached(instance, "event started", "wait 0")
        await instance.send_event("other", "not for it")
        await instance.send_event("go", "now")

        assert ["now"] == await instance.result()
        assert "complete" == (await instance.status()).status


@pytest.mark.slow
async def test_case_054_an_event_wakes_an_instance_whose_process_died(
    folder: Path, replay: Any, killed: Callable[..., None], dying: ModuleType
) -> None:
    killed("Waiting", "event started", "wait")

    async with open_test_runtime(folder, workflows=[dying.Waiting], replay=replay) as runtime:
        instance = await runtime.get("Waiting", "a")
        await instance.send_event("go", "after the death")
        assert "after the death" == await instance.result()


async def test_case_054_an_event_wakes_an_instance_that_leaves_memory_at_that_moment(
    folder: Path, replay: Any, reached: Any, settled: Any
) -> None:
    async with open_test_runtime(folder, workflows=[WaitsForEver], replay=replay) as runtime:
        for _ in range(5):  # whether it is still there, leaving or gone depends on threads
            instance = await runtime.create(WaitsForEver)
            await reached(instance, "event started", "wait")
            await settled(runtime)
            await instance.send_event("go", "now")
            assert "now" == await instance.result()


async def test_case_055_of_three_waits_the_second_times_out_and_the_others_get_their_events(
    folder: Path, replay: Any, reached: Any
) -> None:
    async with open_test_runtime(folder, workflows=[Waits], replay=replay) as runtime:
        instance = await runtime.create(Waits, params=3, event=("go", "first"))
        await reached(instance, "event failed", "wait 1")
        await instance.send_event("go", "third")

        assert ["first", "timeout", "third"] == await instance.result()
        rows = await instance.sql("SELECT status FROM steps WHERE kind = 'event' ORDER BY seq")
    assert ["completed", "failed", "completed"] == [row.status for row in rows]


async def test_case_056_the_payload_of_the_event_is_in_the_output(folder: Path, replay: Any) -> None:
    async with open_test_runtime(folder, workflows=[Waits], replay=replay) as runtime:
        instance = await runtime.create(Waits, params=1)
        await instance.send_event("go", {"approved": True, "by": "Ada"})
        await instance.result()
        ((output,),) = await instance.sql("SELECT output FROM instance")

    assert '[{"approved":true,"by":"Ada"}]' == output


async def test_case_057_two_waits_in_sequence_get_an_event_each(
    folder: Path, replay: Any, reached: Any
) -> None:
    async with open_test_runtime(folder, workflows=[WaitsForTwo], replay=replay) as runtime:
        instance = await runtime.create(WaitsForTwo)
        await reached(instance, "event started", "first")
        await instance.send_event("go", 1)
        await reached(instance, "event started", "second")
        await instance.send_event("go", 2)

        assert [1, 2] == await instance.result()


class WaitsForTwo(WorkflowEntrypoint):
    async def run(self, event: WorkflowEvent[None], step: WorkflowStep) -> list[Any]:
        return [
            (await step.wait_for_event(name, type="go", timeout=None)).payload for name in ("first", "second")
        ]


async def test_case_058_an_event_sent_before_its_wait_is_reached_ends_it_at_once(
    folder: Path, replay: Any
) -> None:
    class Late(WorkflowEntrypoint):
        async def run(self, event: WorkflowEvent[None], step: WorkflowStep) -> Any:
            await step.sleep("before it waits", "1 day")
            return (await step.wait_for_event("wait", type="go", timeout="1 second")).payload

    clock = VirtualClock()
    began_ms = clock.wall_ms()
    async with open_test_runtime(folder, workflows=[Late], replay=replay, clock=clock) as runtime:
        instance = await runtime.create(Late)
        await instance.send_event("go", "early")
        assert "early" == await instance.result()
        ((waited_ms,),) = await instance.sql("SELECT duration_ms FROM steps WHERE kind = 'event'")

    assert 0 == waited_ms
    assert DAY_S <= (clock.wall_ms() - began_ms) / 1000


async def test_case_059_without_an_event_in_time_the_wait_raises_what_can_be_caught(
    folder: Path, replay: Any
) -> None:
    async with open_test_runtime(folder, workflows=[Waits], replay=replay) as runtime:
        assert ["timeout"] == await (await runtime.create(Waits, params=1)).result()


async def test_case_060_without_a_timeout_24_hours_apply(folder: Path, replay: Any) -> None:
    class Default(WorkflowEntrypoint):
        async def run(self, event: WorkflowEvent[None], step: WorkflowStep) -> str:
            try:
                await step.wait_for_event("wait", type="go")
            except EventTimeoutError as error:
                return error.step
            return "an event"

    async with open_test_runtime(folder, workflows=[Default], replay=replay) as runtime:
        instance = await runtime.create(Default)
        assert "wait" == await instance.result()
        ((waited_ms,),) = await instance.sql("SELECT duration_ms FROM steps")

    assert DAY_S == waited_ms // 1000


async def test_case_061_an_instance_that_waits_has_no_finite_status(
    folder: Path, replay: Any, reached: Any
) -> None:
    async with open_test_runtime(folder, workflows=[WaitsForEver], replay=replay) as runtime:
        instance = await runtime.create(WaitsForEver)
        await reached(instance, "event started", "wait")
        status = await instance.status()

    assert status.status in {"running", "waiting"}
    assert status.status not in FINITE
    assert status.ended_at is None
