"""What the open peer engine fails at: defects D10 to D18 by their recipes, and cases 177 to 182.

D15 and D19 are about the test kit (`test_kit.py`), D16 about commands (`test_lifecycle.py`), D17 about
rollbacks (`test_rollback.py`).
"""

from __future__ import annotations

import importlib.util
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import pytest

from perdure import (
    DivergenceError,
    InstanceFailedError,
    InstanceFinishedError,
    InvalidDurationError,
    StepLostError,
    WorkflowEntrypoint,
    WorkflowEvent,
    WorkflowStep,
)
from perdure.testing import VirtualClock, introspect, open_test_runtime

Replay = Literal["warm", "always"]
Play = Callable[..., Awaitable[Any]]
PROGRAM = Path(__file__).parent / "programs" / "dying_in_a_step.py"
PROGRAM_S_MAX = 60


def once() -> ModuleType:
    spec = importlib.util.spec_from_file_location("dying_in_a_step", PROGRAM)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def die(folder: Path, replay: Replay) -> None:
    command = [sys.executable, str(PROGRAM), str(folder), replay]
    died = subprocess.run(command, capture_output=True, text=True, timeout=PROGRAM_S_MAX, check=False)
    assert -signal.SIGKILL == died.returncode, died.stderr


async def test_case_177_and_defect_10_a_crash_grants_no_attempt_beyond_the_limit(
    folder: Path, replay: Replay
) -> None:
    die(folder, replay)
    workflow = once().Once
    async with open_test_runtime(folder, workflows=[workflow], replay=replay) as runtime:
        instance = await runtime.get(workflow, "a")
        with pytest.raises(InstanceFailedError) as failed:
            await instance.result()
        attempts = [tuple(row) for row in await instance.sql("SELECT attempt, outcome FROM attempts")]
    assert isinstance(failed.value.__cause__, StepLostError)
    assert [(1, "lost")] == attempts


class Sleeper(WorkflowEntrypoint):
    """Sleeps for two seconds."""

    async def run(self, event: WorkflowEvent[None], step: WorkflowStep) -> str:
        await step.sleep("nap", "2 seconds")
        return "woke"


async def test_case_178_and_defect_11_a_sleeper_wakes_by_itself_after_a_restart(
    folder: Path, replay: Replay, clock: VirtualClock
) -> None:
    async with open_test_runtime(folder, workflows=[Sleeper], replay=replay, clock=clock) as runtime:
        with introspect(runtime, Sleeper, "a") as kit:
            await runtime.create(Sleeper, id="a")
            await kit.wait_for_status("waiting")
    clock.advance(2)
    async with open_test_runtime(folder, workflows=[Sleeper], replay=replay, clock=clock) as runtime:
        with introspect(runtime, Sleeper, "a") as kit:
            status = await kit.wait_for_status("complete")  # nobody touches it
    assert status.ended_at is not None
    assert 2.0 == (status.ended_at - status.created_at).total_seconds()


@pytest.mark.parametrize("text", ["10 secs", "10 Seconds", "10 m", "10s"])
async def test_case_179_and_defect_12_a_unit_is_what_it_says_or_an_error(play: Play, text: str) -> None:
    async def run(step: WorkflowStep) -> str:
        await step.sleep("nap", text)
        return "slept"

    played = await play(run)
    if played.error is None:
        assert played.passed_s in (10.0, 600.0)
    else:
        assert isinstance(played.error, InvalidDurationError)
        assert 0.0 == played.passed_s


async def test_defect_13_a_result_above_the_peers_limit_is_stored_whole(play: Play) -> None:
    async def run(step: WorkflowStep) -> int:
        return len(await step.do("big", lambda: "x" * 5_000_000, returns=str))

    assert 5_000_000 == (await play(run)).result


class OutOfTeaError(Exception):
    """An error with a field of its own."""

    def __init__(self, cups: int) -> None:
        super().__init__(f"{cups} cups missing")
        self.cups = cups


async def test_case_180_and_defect_14_integers_of_any_size_and_error_classes_come_back(play: Play) -> None:
    async def run(step: WorkflowStep) -> list[Any]:
        def brew() -> None:
            raise OutOfTeaError(3)

        big = await step.do("count", lambda: 2**200, returns=int)
        try:
            await step.do("brew", brew, retries=0)
        except OutOfTeaError as error:
            return [big, str(error), error.cups]
        return []

    assert [2**200, "3 cups missing", 3] == (await play(run)).result


async def test_case_181_a_step_of_another_name_on_replay_is_reported(folder: Path, replay: Replay) -> None:
    class Renames(WorkflowEntrypoint):
        on_divergence = "fail"
        runs = 0

        async def run(self, event: WorkflowEvent[None], step: WorkflowStep) -> str:
            type(self).runs += 1
            await step.do(f"step {self.runs}", lambda: None)
            await step.wait_for_event("word", type="word", timeout=None)
            return "done"

    async with open_test_runtime(folder, workflows=[Renames], replay="warm") as runtime:
        with introspect(runtime, Renames, "a") as kit:
            await runtime.create(Renames, id="a")
            await kit.wait_for_status("waiting")
    async with open_test_runtime(folder, workflows=[Renames], replay="warm") as runtime:
        instance = await runtime.get(Renames, "a")
        await instance.send_event("word")
        with pytest.raises(InstanceFailedError) as failed:
            await instance.result()
    assert isinstance(failed.value.__cause__, DivergenceError)
    assert "step 1" in str(failed.value.__cause__)


async def test_case_182_and_defect_16_an_event_to_a_finished_instance_is_the_senders_error(
    folder: Path, replay: Replay
) -> None:
    async with open_test_runtime(folder, workflows=[Sleeper], replay=replay) as runtime:
        instance = await runtime.create(Sleeper)
        await instance.result()
        with pytest.raises(InstanceFinishedError):
            await instance.send_event("word")


async def test_defect_18_a_result_is_stored_once_and_a_run_without_end_does_not_grow(
    folder: Path, replay: Replay
) -> None:
    class Endless(WorkflowEntrypoint):
        async def run(self, event: WorkflowEvent[int], step: WorkflowStep) -> int:
            await step.do("work", lambda: "y" * 40_000, returns=str)
            if event.payload < 20:
                return await step.continue_as_new(event.payload + 1)
            return event.payload

    async with open_test_runtime(folder, workflows=[Endless], replay=replay) as runtime:
        instance = await runtime.create(Endless, params=0, id="a")
        assert 20 == await instance.result()
        await runtime.sql("SELECT 1")
    (file,) = (folder / "Endless").glob("*.sqlite")
    content = file.read_bytes()
    assert 40_000 <= content.count(b"y") < 80_000
    assert len(content) < 400_000
