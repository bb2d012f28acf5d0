"""Terminate, restart, pause, resume, delete (cases 62 to 80)."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable
from pathlib import Path
from typing import Any, Literal

import pytest
import trio

from perdure import (
    Instance,
    InstanceFailedError,
    InstanceFinishedError,
    InstanceNotFoundError,
    InstanceTerminatedError,
    NonRetryableError,
    Runtime,
    StepNotFoundError,
    WorkflowEntrypoint,
    WorkflowEvent,
    WorkflowStep,
)
from perdure.testing import VirtualClock, introspect, open_test_runtime

Replay = Literal["warm", "always"]
Reached = Callable[..., Awaitable[None]]


class World:
    """What a test sees of the steps: what ran, and doors at which they wait."""

    def __init__(self) -> None:
        self.ran: list[str] = []
        self.begun: dict[str, trio.Event] = {}
        self.doors: dict[str, trio.Event] = {}
        self.fails = False

    def work(self, name: str) -> str:
        self.ran.append(name)
        if self.fails:
            raise NonRetryableError(f"{name} failed")
        return f"{name} {self.ran.count(name)}"

    async def wait_at_door(self, name: str) -> str:
        self.ran.append(name)
        self.begun.setdefault(name, trio.Event()).set()
        await self.doors.setdefault(name, trio.Event()).wait()
        return name

    async def has_begun(self, name: str) -> None:
        await self.begun.setdefault(name, trio.Event()).wait()

    def open_door(self, name: str) -> None:
        self.doors.setdefault(name, trio.Event()).set()


world = World()


@pytest.fixture(autouse=True)
def new_world() -> None:
    world.__init__()  # type: ignore[misc]  # the workflows below know this one object


class Two(WorkflowEntrypoint):
    """Steps a and b."""

    async def run(self, event: WorkflowEvent[str | None], step: WorkflowStep) -> list[str]:
        return [await step.do(name, world.work, name) for name in ("a", "b")]


class Doors(WorkflowEntrypoint):
    """Steps that wait at doors, one after the other, then a parallel pair."""

    async def run(self, event: WorkflowEvent[list[str]], step: WorkflowStep) -> list[str]:
        if event.payload == ["both"]:
            pair = {name: step.do(name, world.wait_at_door, name) for name in ("left", "right")}
            return [*(await step.gather("pair", pair)).values(), await step.do("after", world.work, "after")]
        return [await step.do(name, world.wait_at_door, name) for name in event.payload]


class Sleeper(WorkflowEntrypoint):
    """A step, a day, a step."""

    async def run(self, event: WorkflowEvent[None], step: WorkflowStep) -> str:
        await step.do("a", world.work, "a")
        await step.sleep("rest", "1 day")
        return await step.do("b", world.work, "b")


class Waiter(WorkflowEntrypoint):
    """One event."""

    async def run(self, event: WorkflowEvent[None], step: WorkflowStep) -> Any:
        return (await step.wait_for_event("word", type="word", timeout=None)).payload


class Suicidal(WorkflowEntrypoint):
    """Deletes itself from a step."""

    async def run(self, event: WorkflowEvent[None], step: WorkflowStep) -> None:
        async def delete() -> None:
            await (await self.ctx.runtime.get(Suicidal, event.instance_id)).delete()
            world.ran.append("after the delete")

        await step.do("delete", delete)
        world.ran.append("after the step")


ALL = [Two, Doors, Sleeper, Waiter, Suicidal]


@contextlib.asynccontextmanager
async def opened(folder: Path, replay: Replay, clock: VirtualClock | None = None) -> AsyncGenerator[Runtime]:
    async with open_test_runtime(folder, workflows=ALL, replay=replay, clock=clock) as runtime:
        yield runtime


async def ended(runtime: Runtime, how: str) -> Instance[Any]:
    """Return an instance that has ended as `how`."""
    world.fails = how == "errored"
    if how == "terminated":
        instance: Instance[Any] = await runtime.create(Waiter, id="a")
        await instance.terminate()
    else:
        instance = await runtime.create(Two, id="a")
    with contextlib.suppress(InstanceFailedError, InstanceTerminatedError):
        await instance.result()
    assert how == (await instance.status()).status
    world.fails = False
    return instance


@pytest.mark.parametrize("how", ["complete", "errored", "terminated"])
async def test_case_062_terminating_what_has_ended_is_an_error(
    folder: Path, replay: Replay, how: str
) -> None:
    async with opened(folder, replay) as runtime:
        instance = await ended(runtime, how)
        with pytest.raises(InstanceFinishedError, match=rf"{instance.workflow}/a has finished \({how}\)"):
            await instance.terminate()
        assert how == (await instance.status()).status


@pytest.mark.parametrize("how", ["complete", "errored"])
async def test_case_063_an_instance_that_has_ended_is_restarted_and_completes(
    folder: Path, replay: Replay, how: str
) -> None:
    async with opened(folder, replay) as runtime:
        instance = await ended(runtime, how)
        await instance.restart()
        assert ["a", "b"] == [text.split()[0] for text in await instance.result()]
        assert "complete" == (await instance.status()).status
    assert ["a", "b"] == world.ran[-2:]


@pytest.mark.parametrize("how", ["terminated", "waiting", "paused"])
async def test_case_063_a_terminated_a_running_or_a_paused_instance_is_restarted_and_completes(
    folder: Path, replay: Replay, how: str, reached: Reached
) -> None:
    async with opened(folder, replay) as runtime:
        if how == "terminated":
            instance = await ended(runtime, how)
        else:
            instance = await runtime.create(Waiter, id="a")
            await reached(instance, "event started")
        if how == "paused":
            await instance.pause()
        await instance.restart()
        await instance.send_event("word", "again")
        assert "again" == await instance.result()


async def test_case_064_restarting_from_b_keeps_a_and_runs_b_again(folder: Path, replay: Replay) -> None:
    async with opened(folder, replay) as runtime:
        instance = await ended(runtime, "complete")
        await instance.restart(from_step="b")
        assert ["a 1", "b 2"] == await instance.result()
    assert ["a", "b", "b"] == world.ran


async def test_case_066_restarting_from_an_unknown_step_is_an_error(folder: Path, replay: Replay) -> None:
    async with opened(folder, replay) as runtime:
        instance = await ended(runtime, "complete")
        with pytest.raises(StepNotFoundError, match="a.*b"):
            await instance.restart(from_step="c")
        with pytest.raises(StepNotFoundError):
            await instance.restart(from_step="b", count=2)
        assert "complete" == (await instance.status()).status


async def test_case_067_a_pause_lets_the_running_step_finish_and_starts_no_other(
    folder: Path, replay: Replay
) -> None:
    async with opened(folder, replay) as runtime:
        with introspect(runtime, Doors, "a") as kit:
            instance = await runtime.create(Doors, params=["one", "two"], id="a")
            await world.has_begun("one")
            await instance.pause()
            assert "waiting_for_pause" == (await instance.status()).status
            world.open_door("one")
            await kit.wait_for_status("paused")
            assert "one" == await kit.wait_for_step_result("one")
        assert ["one"] == world.ran
        world.open_door("two")
        await instance.resume()
        assert ["one", "two"] == await instance.result()
    assert ["one", "two"] == world.ran


async def test_case_068_a_pause_lets_both_of_two_parallel_steps_finish(folder: Path, replay: Replay) -> None:
    async with opened(folder, replay) as runtime:
        with introspect(runtime, Doors, "a") as kit:
            instance = await runtime.create(Doors, params=["both"], id="a")
            await world.has_begun("left")
            await world.has_begun("right")
            await instance.pause()
            world.open_door("left")
            await kit.wait_for_step_result("left")
            assert "waiting_for_pause" == (await instance.status()).status
            world.open_door("right")
            await kit.wait_for_status("paused")
        assert ["left", "right"] == sorted(world.ran)
        await instance.resume()
        assert ["left", "right", "after 1"] == await instance.result()


async def test_case_069_a_resume_takes_a_pending_pause_back(folder: Path, replay: Replay) -> None:
    async with opened(folder, replay) as runtime:
        instance = await runtime.create(Doors, params=["one", "two"], id="a")
        await world.has_begun("one")
        await instance.pause()
        await instance.resume()
        assert "running" == (await instance.status()).status
        world.open_door("one")
        world.open_door("two")
        assert ["one", "two"] == await instance.result()
    assert ["one", "two"] == world.ran


async def test_case_070_a_sleeping_instance_is_paused_at_once_and_completes_after_a_resume(
    folder: Path,
    replay: Replay,
    clock: VirtualClock,
    reached: Reached,
    settled: Callable[..., Awaitable[None]],
) -> None:
    async with opened(folder, replay, clock) as runtime:
        instance = await runtime.create(Sleeper, id="a")
        await reached(instance, "sleep started")
        await instance.pause()
        assert "paused" == (await instance.status()).status
        clock.advance(10 * 86_400)  # a pause freezes the timer
        await settled(runtime)
        assert "paused" == (await instance.status()).status
        await instance.resume()
        clock.advance(86_399)
        await settled(runtime)
        assert ["a"] == world.ran
        clock.advance(1)
        assert "b 1" == await instance.result()


async def test_case_071_a_wait_is_paused_and_resumed_and_then_gets_its_event(
    folder: Path, replay: Replay, reached: Reached
) -> None:
    async with opened(folder, replay) as runtime:
        instance = await runtime.create(Waiter, id="a")
        await reached(instance, "event started")
        await instance.pause()
        assert "paused" == (await instance.status()).status
        await instance.resume()
        await instance.send_event("word", "hello")
        assert "hello" == await instance.result()


async def test_case_073_status_and_history_are_read_back_after_a_restart_of_the_process(
    folder: Path, replay: Replay, clock: VirtualClock, reached: Reached
) -> None:
    async with opened(folder, replay, clock) as runtime:
        instance = await runtime.create(Sleeper, id="a")
        await reached(instance, "sleep started")
        before = [entry for entry in await instance.history() if entry.step]
    async with opened(folder, replay, clock) as runtime:
        instance = await runtime.get(Sleeper, "a")
        with introspect(runtime, Sleeper, "a") as kit:
            await kit.wait_for_status("waiting")
        assert before == [entry for entry in await instance.history() if entry.step]
        clock.advance(86_400)
        assert "b 1" == await instance.result()
    assert ["a", "b"] == world.ran


async def test_case_074_a_running_instance_is_terminated(folder: Path, replay: Replay) -> None:
    async with opened(folder, replay) as runtime:
        instance = await runtime.create(Doors, params=["one"], id="a")
        await world.has_begun("one")
        await instance.terminate(who="Ada")
        assert "terminated" == (await instance.status()).status
        with pytest.raises(InstanceTerminatedError):
            await instance.result()


async def test_case_075_an_instance_restarted_while_it_runs_starts_from_the_beginning(
    folder: Path, replay: Replay
) -> None:
    async with opened(folder, replay) as runtime:
        instance = await runtime.create(Doors, params=["one", "two"], id="a")
        world.open_door("one")
        await world.has_begun("two")
        await instance.restart()
        world.open_door("two")
        assert ["one", "two"] == await instance.result()
    assert ["one", "two", "one", "two"] == world.ran


async def test_case_076_an_instance_that_deletes_itself_stops_there_and_is_not_found(
    folder: Path, replay: Replay
) -> None:
    async with opened(folder, replay) as runtime:
        instance = await runtime.create(Suicidal, id="a")
        with pytest.raises(InstanceNotFoundError):
            await instance.result()
        with pytest.raises(InstanceNotFoundError):
            await runtime.get(Suicidal, "a")
    assert [] == world.ran


async def test_case_077_a_deleted_instance_is_not_found_and_its_file_is_removed(
    folder: Path, replay: Replay
) -> None:
    async with opened(folder, replay) as runtime:
        instance = await ended(runtime, "complete")
        await instance.delete()
        with pytest.raises(InstanceNotFoundError):
            await runtime.get(Two, "a")
        assert [] == [path.name for path in (folder / "Two").glob("a*")]


async def test_case_078_a_deleted_id_is_created_again_at_once_as_another_instance(
    folder: Path, replay: Replay
) -> None:
    async with opened(folder, replay) as runtime:
        instance = await ended(runtime, "complete")
        await instance.delete()
        again = await runtime.create(Two, id="a")
        assert ["a 2", "b 2"] == await again.result()
        assert 1 == len([entry for entry in await again.history() if entry.what == "instance created"])


async def test_case_080_finished_instances_keep_status_and_output_over_a_restart_of_the_process(
    folder: Path, replay: Replay
) -> None:
    async with opened(folder, replay) as runtime:
        await ended(runtime, "complete")
        failed = await runtime.create(Doors, params=["one"], id="b")
        await failed.terminate()
    async with opened(folder, replay) as runtime:
        complete = await runtime.get(Two, "a")
        assert ("complete", ["a 1", "b 1"]) == ((await complete.status()).status, await complete.result())
        assert "terminated" == (await (await runtime.get(Doors, "b")).status()).status


async def test_defect_16_commands_and_events_to_a_finished_instance_are_errors(
    folder: Path, replay: Replay
) -> None:
    async with opened(folder, replay) as runtime:
        instance = await ended(runtime, "complete")
        for command in (instance.pause, instance.resume, instance.terminate):
            with pytest.raises(InstanceFinishedError):
                await command()
        with pytest.raises(InstanceFinishedError):
            await instance.send_event("word", 1)
