"""The test kit (cases 118 to 125, D15 and D19): `perdure.testing.introspect`."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any, Literal

import pytest
import trio

from perdure import (
    EventTimeoutError,
    InstanceFailedError,
    InstanceFinishedError,
    InvalidArgumentError,
    RollbackContext,
    StepNotFoundError,
    WorkflowEntrypoint,
    WorkflowEvent,
    WorkflowStep,
    open_runtime,
)
from perdure.testing import VirtualClock, introspect, open_test_runtime

Replay = Literal["warm", "always"]
ATTEMPTS = "SELECT attempt, outcome FROM attempts ORDER BY step_seq, attempt"

ran: list[str] = []


@pytest.fixture(autouse=True)
def nothing_ran() -> None:
    ran.clear()


async def fetch(topic: str) -> list[str]:
    ran.append(f"fetch {topic}")
    return [topic]


async def count(sources: list[str]) -> int:
    ran.append("count")
    return len(sources)


class Research(WorkflowEntrypoint):
    """Two steps, the second of which rests on the first."""

    async def run(self, event: WorkflowEvent[str], step: WorkflowStep) -> int:
        sources = await step.do("fetch", fetch, event.payload)
        await step.sleep("rest", "1 day")
        return await step.do("count", count, sources)


class Approval(WorkflowEntrypoint):
    """One wait for an event."""

    async def run(self, event: WorkflowEvent[None], step: WorkflowStep) -> Any:
        return (await step.wait_for_event("approval", type="approve", timeout="3 days")).payload


async def test_case_118_a_mocked_result_set_before_creation_is_what_the_step_returns(
    folder: Path, replay: Replay
) -> None:
    async with open_test_runtime(folder, workflows=[Research], replay=replay) as runtime:
        with introspect(runtime, Research, "a") as research:
            research.mock_step_result("fetch", ["one", "two"])
            instance = await runtime.create(Research, params="tides", id="a")
            assert 2 == await instance.result()
        assert ["count"] == ran
        rows = await instance.sql("SELECT name, status, attempts, output FROM steps WHERE kind = 'do'")
        story = [entry.what for entry in await instance.history() if entry.step == "fetch"]
    assert [("fetch", "completed", 1, '["one","two"]'), ("count", "completed", 1, "2")] == [
        tuple(row) for row in rows
    ]
    assert ["do started", "do completed"] == story


async def test_case_119_two_mocked_errors_and_then_a_result_make_the_third_attempt_succeed(
    folder: Path, replay: Replay
) -> None:
    async with open_test_runtime(folder, workflows=[Research], replay=replay) as runtime:
        with introspect(runtime, Research, "a") as research:
            research.mock_step_error("fetch", ConnectionError("busy"), times=2)
            research.mock_step_result("fetch", ["one"])
            instance = await runtime.create(Research, params="tides", id="a")
            assert 1 == await instance.result()
        attempts = [tuple(row) for row in await instance.sql(ATTEMPTS + " LIMIT 3")]
    assert [(1, "failed"), (2, "failed"), (3, "completed")] == attempts


async def test_case_120_a_mocked_event_is_what_the_wait_returns(folder: Path, replay: Replay) -> None:
    async with open_test_runtime(folder, workflows=[Approval], replay=replay) as runtime:
        with introspect(runtime, Approval, "a") as approval:
            approval.mock_event("approve", {"by": "Ada"})
            instance = await runtime.create(Approval, id="a")
            assert {"by": "Ada"} == await instance.result()
            await instance.restart()  # mocks outlive a restart, as in the peer
            assert {"by": "Ada"} == await instance.result()


async def test_case_121_a_forced_event_timeout_fails_the_instance_with_a_text_that_says_so(
    folder: Path, replay: Replay
) -> None:
    clock = VirtualClock()
    began_ms = clock.wall_ms()
    async with open_test_runtime(folder, workflows=[Approval], replay=replay, clock=clock) as runtime:
        with introspect(runtime, Approval, "a") as approval:
            approval.force_event_timeout("approval")
            instance = await runtime.create(Approval, id="a", event=("approve", 1))
            with pytest.raises(InstanceFailedError, match="no event of type 'approve'") as failed:
                await instance.result()
        status = await instance.status()
    assert isinstance(failed.value.__cause__, EventTimeoutError)
    assert ("errored", began_ms) == (status.status, clock.wall_ms())


async def test_case_122_introspection_of_a_workflow_changes_all_instances_created_later(
    folder: Path, replay: Replay
) -> None:
    clock = VirtualClock()
    began_ms = clock.wall_ms()
    async with open_test_runtime(folder, workflows=[Research], replay=replay, clock=clock) as runtime:
        with introspect(runtime, Research) as all_research, introspect(runtime, Research, "b") as research:
            all_research.mock_step_result("fetch", [])
            all_research.disable_sleeps()
            research.mock_step_result("fetch", ["its own"])
            await runtime.create(Research, params="tides", id="a")
            await runtime.create_batch(Research, [{"id": id_, "params": "tides"} for id_ in ("b", "c")])
            instances = await all_research.instances()
            results = {instance.id: await instance.result() for instance in instances}
            assert {"a": 0, "b": 1, "c": 0} == results
        assert began_ms == clock.wall_ms()
        later = await runtime.create(Research, params="tides", id="later")
        assert 1 == await later.result()  # the block is left, and all is as it was
    assert 86_400_000 == clock.wall_ms() - began_ms


async def test_case_124_waiting_for_a_status_that_can_come_no_more_fails(
    folder: Path, replay: Replay
) -> None:
    async with open_test_runtime(folder, workflows=[Research], replay=replay) as runtime:
        with introspect(runtime, Research, "a") as research:
            await runtime.create(Research, params="tides", id="a")
            assert "complete" == (await research.wait_for_status("complete")).status
            with pytest.raises(InstanceFinishedError, match="ended as complete, so it will not be errored"):
                await research.wait_for_status("errored")
            await research.wait_for_status("queued")  # each has been, so this returns at once


async def test_case_124_a_status_is_waited_for_before_the_instance_exists_and_is_not_missed(
    folder: Path, replay: Replay
) -> None:
    async with (
        open_test_runtime(folder, workflows=[Research], replay=replay) as runtime,
        trio.open_nursery() as nursery,
    ):
        with introspect(runtime, Research, "a") as research:
            seen: list[str] = []

            async def watch() -> None:
                seen.append((await research.wait_for_status("waiting")).status)

            nursery.start_soon(watch)
            await (await runtime.create(Research, params="tides", id="a")).result()
    assert ["waiting"] == seen


async def test_case_125_the_result_of_a_step_that_has_finished_is_there_at_once(
    folder: Path, replay: Replay
) -> None:
    async with open_test_runtime(folder, workflows=[Research], replay=replay) as runtime:
        with introspect(runtime, Research) as research:
            await (await runtime.create(Research, params="tides", id="a")).result()
            assert ["tides"] == await research.wait_for_step_result("fetch", id="a")
            assert ["tides"] == await research.wait_for_step_result("fetch", id="a", returns=list[str])
            with pytest.raises(StepNotFoundError, match=r"ended without step 'fetch' \(use 2\)"):
                await research.wait_for_step_result("fetch", count=2, id="a")


async def test_case_125_waiting_for_the_result_of_a_step_that_fails_raises_its_error(
    folder: Path, replay: Replay
) -> None:
    async with open_test_runtime(folder, workflows=[Research], replay=replay) as runtime:
        with introspect(runtime, Research, "a") as research:
            research.mock_step_error("fetch", LookupError("no such topic"))
            research.disable_retry_delays("fetch")
            instance = await runtime.create(Research, params="tides", id="a")
            with pytest.raises(LookupError, match="no such topic"):
                await research.wait_for_step_result("fetch")
            with contextlib.suppress(InstanceFailedError):
                await instance.result()


# -- what the peer's kit gets wrong -------------------------------------------------------------


@pytest.mark.parametrize("value", [0, False, None, "", [], {}, 2**80])
async def test_defect_15_a_mocked_result_that_is_falsy_is_taken(
    folder: Path, replay: Replay, value: object
) -> None:
    class Asking(WorkflowEntrypoint):
        async def run(self, event: WorkflowEvent[None], step: WorkflowStep) -> Any:
            return await step.do("ask", fetch, "tides", returns=Any)

    async with open_test_runtime(folder, workflows=[Asking], replay=replay) as runtime:
        with introspect(runtime, Asking) as asking:
            asking.mock_step_result("ask", value)
            assert value == await (await runtime.create(Asking)).result()
    assert [] == ran


async def test_defect_19_any_number_of_waiters_wait_for_one_status_and_one_step(
    folder: Path, replay: Replay
) -> None:
    answers: list[Any] = []
    async with open_test_runtime(folder, workflows=[Research], replay=replay) as runtime:
        with introspect(runtime, Research, "a") as research:

            async def wait() -> None:
                answers.append(await research.wait_for_step_result("count"))
                answers.append((await research.wait_for_status("complete")).status)

            async with trio.open_nursery() as nursery:
                for _ in range(3):
                    nursery.start_soon(wait)
                await runtime.create(Research, params="tides", id="a")
    assert [1, 1, 1, "complete", "complete", "complete"] == sorted(answers, key=str)


# -- beyond the peer's cases --------------------------------------------------------------------


async def test_forced_timeouts_and_mocked_errors_come_in_the_order_in_which_they_were_said(
    folder: Path, replay: Replay
) -> None:
    clock = VirtualClock()
    began_ms = clock.wall_ms()
    async with open_test_runtime(folder, workflows=[Research], replay=replay, clock=clock) as runtime:
        with introspect(runtime, Research) as research:
            research.force_step_timeout("count", times=2)
            research.mock_step_error("count", ValueError("mocked"), times=1)
            research.disable_retry_delays()
            research.disable_sleeps("rest")
            instance = await runtime.create(Research, params="tides")
            assert 1 == await instance.result()
        attempts = [tuple(row) for row in await instance.sql(ATTEMPTS)]
    outcomes = ["completed", "timeout", "timeout", "failed", "completed"]
    assert outcomes == [outcome for _, outcome in attempts]
    assert (began_ms, ["fetch tides", "count"]) == (clock.wall_ms(), ran)


async def test_a_mocked_step_leaves_its_rollback_handler_alone(folder: Path, replay: Replay) -> None:
    undone: list[Any] = []

    async def undo(context: RollbackContext[Any]) -> None:
        undone.append(context.output)

    class Undone(WorkflowEntrypoint):
        async def run(self, event: WorkflowEvent[None], step: WorkflowStep) -> None:
            await step.do("fetch", fetch, "tides", rollback=undo)
            raise RuntimeError("no")

    async with open_test_runtime(folder, workflows=[Undone], replay=replay) as runtime:
        with introspect(runtime, Undone) as undoing:
            undoing.mock_step_result("fetch", ["mocked"])
            with pytest.raises(InstanceFailedError):
                await (await runtime.create(Undone)).result()
    assert [["mocked"]] == undone


async def test_one_use_of_a_name_a_part_of_a_map_and_a_step_that_yields_are_mocked(
    folder: Path, replay: Replay
) -> None:
    async def letters() -> Any:
        ran.append("letters")
        yield "a"

    class Many(WorkflowEntrypoint):
        async def run(self, event: WorkflowEvent[None], step: WorkflowStep) -> list[Any]:
            twice = [await step.do("fetch", fetch, str(number)) for number in range(2)]
            parts = await step.map("part", fetch, ["x", "y"])
            return [twice, parts, [letter async for letter in await step.do("letters", letters)]]

    async with open_test_runtime(folder, workflows=[Many], replay=replay) as runtime:
        with introspect(runtime, Many) as many:
            many.mock_step_result("fetch", ["mocked"], count=2)
            many.mock_step_result("part[1]", [])
            many.mock_step_result("letters", ["m", "n"])
            expected = [[["0"], ["mocked"]], [["x"], []], ["m", "n"]]
            assert expected == await (await runtime.create(Many)).result()
    assert ["fetch 0", "fetch x"] == ran


async def test_what_could_never_be_met_with_is_refused_and_changes_nothing(folder: Path) -> None:
    async with open_test_runtime(folder, workflows=[Research]) as runtime:
        with introspect(runtime, Research) as research:
            research.mock_step_result("fetch", [])
            with pytest.raises(InvalidArgumentError, match="mocked result already"):
                research.mock_step_result("fetch", ["other"])
            with pytest.raises(InvalidArgumentError, match="never met"):
                research.force_step_timeout("fetch")
            with pytest.raises(InvalidArgumentError, match="times=0"):
                research.mock_step_error("fetch", ValueError(), times=0)
            research.mock_step_error("count", ValueError())
            with pytest.raises(InvalidArgumentError, match="give that times="):
                research.mock_step_result("count", 1)
            with pytest.raises(InvalidArgumentError, match="introspected already"):
                introspect(runtime, Research)
            with pytest.raises(InvalidArgumentError, match="Give id="):
                await research.wait_for_status("complete")
            with pytest.raises(InvalidArgumentError, match="status='done'"):
                await research.wait_for_status("done", id="a")
        with introspect(runtime, Research):
            pass


async def test_only_a_runtime_of_the_kit_can_be_introspected(folder: Path) -> None:
    async with open_runtime(folder, workflows=[Research], durability="process") as runtime:
        with pytest.raises(InvalidArgumentError, match="open_test_runtime"):
            introspect(runtime, Research)
