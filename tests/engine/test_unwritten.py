"""Short instances, whose files are written when they rest: who looks earlier, and what a death leaves."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

import perdure
from perdure import WorkflowEntrypoint, WorkflowEvent, WorkflowStep, open_runtime
from perdure.actors.host import Replay
from perdure.storage.records import Key
from perdure.testing import VirtualClock, open_test_runtime

PROGRAM = """
import os, signal, sys, trio, perdure

class Short(perdure.WorkflowEntrypoint):
    async def run(self, event, step):
        for number in range(4):
            await step.do(f"step {number}", note, number)
        return "done"

async def note(number):
    with open(sys.argv[1] + ".log", "a") as log:
        log.write(f"{number}\\n")
    if sys.argv[2] == str(number):
        os.kill(os.getpid(), signal.SIGKILL)

async def main():
    async with perdure.open_runtime(sys.argv[1], workflows=[Short]) as runtime:
        instance = await runtime.create(Short, id="a", if_exists="attach")
        print(await instance.result())

trio.run(main)
"""


class Waits(WorkflowEntrypoint):
    """Takes a step and waits for an event, or sleeps for as long as it is told."""

    async def run(self, event: WorkflowEvent[str | None], step: WorkflowStep) -> str:
        await step.now("begun")
        if event.payload is not None:
            await step.sleep("nap", event.payload)
        else:
            await step.wait_for_event("go", type="go", timeout=None)
        return "gone"


def path_of(runtime: perdure.Runtime, instance: perdure.Instance[Any]) -> Path:
    return runtime._access.folder.instance(Key(instance.workflow, instance.id))  # noqa: SLF001  # pyright: ignore[reportPrivateUsage]  # where it lies is no part of the face


def test_what_a_killed_process_had_in_memory_goes_on_and_no_step_runs_again(tmp_path: Path) -> None:
    state = tmp_path / "state"
    command = [sys.executable, "-c", PROGRAM, str(state)]
    killed = subprocess.run([*command, "2"], check=False, capture_output=True, text=True)
    assert -9 == killed.returncode, killed.stderr
    assert not (state / "Short" / "a.sqlite").exists(), "it lives in memory and in the log"

    again = subprocess.run([*command, "none"], check=False, capture_output=True, text=True)

    assert (0, "done\n") == (again.returncode, again.stdout), again.stderr
    assert ["0", "1", "2", "2", "3"] == Path(f"{state}.log").read_text().split()
    assert (state / "Short" / "a.sqlite").exists()


async def test_who_asks_with_sql_finds_the_file(tmp_path: Path) -> None:
    async with open_runtime(tmp_path, workflows=[Waits], limits=perdure.Limits(unwritten_s=3600)) as runtime:
        instance = await runtime.create(Waits)
        assert not path_of(runtime, instance).exists()

        rows = await instance.sql("SELECT name FROM steps WHERE kind = 'value'")

        assert path_of(runtime, instance).exists()
        assert [row.name for row in rows] in (["begun"], [])
        await instance.send_event("go")
        assert "gone" == await instance.result()


async def test_a_file_is_written_once_it_has_been_in_memory_for_its_time(tmp_path: Path) -> None:
    clock = VirtualClock()
    limits = perdure.Limits(unwritten_s=60, idle_grace_s=3600)
    async with open_test_runtime(
        tmp_path, workflows=[Waits], limits=limits, clock=clock, durability="full", replay="warm"
    ) as runtime:
        instance = await runtime.create(Waits)
        while not path_of(runtime, instance).exists():  # the clock jumps when nothing else is to be done
            await trio.testing.wait_all_tasks_blocked(0.001)
        await instance.send_event("go")
        assert "gone" == await instance.result()


async def test_one_that_will_sleep_for_long_leaves_memory_at_once(tmp_path: Path) -> None:
    limits = perdure.Limits(unwritten_s=0.01, idle_grace_s=600)
    async with open_runtime(tmp_path, workflows=[Waits], limits=limits) as runtime:
        instance = await runtime.create(Waits, params="1 day")
        with trio.fail_after(60):
            while runtime.statistics().warm:
                await trio.testing.wait_all_tasks_blocked(0.001)

        assert "waiting" == (await instance.status()).status
        assert [path_of(runtime, instance)] == list(path_of(runtime, instance).parent.iterdir())


@pytest.mark.parametrize("replay", ["warm", "always"])
async def test_one_that_will_sleep_for_long_makes_way_for_another_that_needs_its_room(
    tmp_path: Path, replay: Replay
) -> None:
    limits = perdure.Limits(unwritten_s=3600, unwritten_max=1, idle_grace_s=600)
    async with open_runtime(tmp_path, workflows=[Waits], limits=limits, replay=replay) as runtime:
        asleep = [await runtime.create(Waits, params="1 day") for _ in range(3)]
        last = await runtime.create(Waits)
        await last.send_event("go")
        with trio.fail_after(60):
            assert "gone" == await last.result()
            while runtime.statistics().warm:
                await trio.testing.wait_all_tasks_blocked(0.001)

        for instance in asleep:
            assert "waiting" == (await instance.status()).status


@pytest.mark.parametrize("seconds", [0, 0.1])
async def test_a_result_too_large_for_the_log_is_there_after_a_restart(
    tmp_path: Path, seconds: float
) -> None:
    class Large(WorkflowEntrypoint):
        async def run(self, event: WorkflowEvent[Any], step: WorkflowStep) -> int:
            return len(await step.do("text", text))

    async def text() -> str:
        return "x" * 1_000_000

    limits = perdure.Limits(unwritten_s=seconds)
    async with open_runtime(tmp_path, workflows=[Large], limits=limits) as runtime:
        instance = await runtime.create(Large, id="a")
        assert 1_000_000 == await instance.result()
    async with open_runtime(tmp_path, workflows=[Large], limits=limits) as runtime:
        instance = await runtime.get(Large, "a")
        assert 1_000_000 == await instance.result()
        (row,) = await instance.sql("SELECT length(output) AS size FROM steps")
        assert 1_000_002 == row.size


async def test_one_that_grows_little_by_little_is_written_before_it_is_too_large(tmp_path: Path) -> None:
    class Grows(WorkflowEntrypoint):
        async def run(self, event: WorkflowEvent[Any], step: WorkflowStep) -> None:
            for number in range(8):
                await step.do(f"text {number}", text)
            await step.wait_for_event("go", type="go", timeout=None)

    async def text() -> str:
        return "x" * 60_000

    limits = perdure.Limits(unwritten_s=3600, idle_grace_s=3600)
    async with open_runtime(tmp_path, workflows=[Grows], limits=limits) as runtime:
        instance = await runtime.create(Grows, id="a")
        with trio.fail_after(20):
            while not path_of(runtime, instance).exists():  # each commit alone is small enough for the log
                await trio.testing.wait_all_tasks_blocked(0.0005)
        await instance.send_event("go")
        await instance.result()
