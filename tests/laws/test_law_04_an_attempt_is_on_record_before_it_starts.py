"""Law 4: an attempt is on record before its function starts, whatever ends it.

Death is real here: the programs of these tests kill themselves with SIGKILL in the middle of a step.
"""

from __future__ import annotations

import json
import signal
import sqlite3
import subprocess
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import trio

from perdure import (
    InstanceFailedError,
    Retries,
    StepContext,
    StepLostError,
    WorkflowEntrypoint,
    WorkflowEvent,
    WorkflowStep,
)
from perdure.actors.do import DoCall
from perdure.actors.host import Replay
from perdure.actors.retry import resolve_config
from perdure.storage.files import InstanceFile
from perdure.storage.gate import Gate
from perdure.testing import open_test_runtime

Broken = Callable[[type, str, Callable[..., Any]], None]
Program = Callable[..., subprocess.CompletedProcess[str]]
ATTEMPTS = "SELECT attempt, outcome FROM attempts ORDER BY step_seq, attempt"


# -- on record before the start ----------------------------------------------------------------


async def check_each_attempt_is_on_record(folder: Path, replay: Replay) -> None:
    """Look at the file from outside, from within each attempt."""
    found: list[Any] = []

    def look() -> tuple[str, int]:
        with closing(sqlite3.connect(folder / "Stubborn" / "a.sqlite")) as connection:
            row: tuple[str, int] = connection.execute("SELECT status, attempts FROM steps").fetchone()
            return row

    async def work(context: StepContext) -> None:
        found.append((context.attempt, *look()))
        if context.attempt < 3:
            raise OSError("not yet")

    class Stubborn(WorkflowEntrypoint):
        async def run(self, event: WorkflowEvent[Any], step: WorkflowStep) -> None:
            await step.do("work", work, retries=2)

    async with open_test_runtime(folder, workflows=[Stubborn], replay=replay) as runtime:
        instance = await runtime.create(Stubborn, id="a")
        await instance.result()
        attempts = [tuple(row) for row in await instance.sql(ATTEMPTS)]

    assert [(1, "running", 1), (2, "running", 2), (3, "running", 3)] == found
    assert [(1, "failed"), (2, "failed"), (3, "completed")] == attempts


async def test_each_attempt_is_on_record_before_its_function_starts(folder: Path, replay: Replay) -> None:
    await check_each_attempt_is_on_record(folder, replay)


async def test_the_record_check_fails_with_a_gate_that_opens_at_once(folder: Path, broken: Broken) -> None:
    async def open_at_once(_gate: Gate, _file: InstanceFile) -> None:
        return

    broken(Gate, "passed", open_at_once)

    with pytest.raises((AssertionError, InstanceFailedError)):
        await check_each_attempt_is_on_record(folder, "warm")


# -- lost to a crash ---------------------------------------------------------------------------


def run(program: Program, folder: Path, replay: Replay, *words: object) -> dict[str, Any] | None:
    """Run the program once: None where it died, else what it told."""
    done = program("crash.py", folder, replay, *words)
    if done.returncode == -signal.SIGKILL:
        return None
    assert 0 == done.returncode, done.stderr
    told: dict[str, Any] = json.loads(done.stdout)
    return told


def check_a_lost_attempt(program: Program, folder: Path, replay: Replay, *broken: str) -> None:
    """Retries wait an hour here: that the program ends shows that the successor did not wait."""
    assert run(program, folder, replay, 1, 1, *broken) is None
    told = run(program, folder, replay, 1, 1, *broken)

    assert {"result": 2, "attempts": [[1, "lost"], [2, "completed"]], "dead": []} == told


def check_the_last_attempt_lost(
    program: Program, folder: Path, replay: Replay, limit: int, *broken: str
) -> None:
    for _ in range(limit + 1):
        assert run(program, folder, replay, 9, limit, *broken) is None
    told = run(program, folder, replay, 9, limit, *broken)

    assert told is not None
    assert [limit + 1, "lost"] == told["attempts"][-1]
    assert told["error"].startswith(
        f"StepLostError: the process died during attempt {limit + 1} of step 'work'"
    )


def check_an_instance_that_kills_its_process(
    program: Program, folder: Path, replay: Replay, *broken: str
) -> None:
    for _ in range(3):
        assert run(program, folder, replay, 3, 9, "sleeper", *broken) is None
    told = run(program, folder, replay, 3, 9, "sleeper", *broken)
    assert told is not None
    assert "InstanceDeadError" == str(told.get("error")).partition(":")[0]
    assert ["a"] == told["dead"]  # and not the one that slept meanwhile

    told = run(program, folder, replay, 3, 9, "revive", *broken)
    assert told is not None
    assert (4, []) == (told["result"], told["dead"])


def test_an_attempt_lost_to_a_crash_is_counted_and_its_successor_starts_at_once(
    program: Program, folder: Path, replay: Replay
) -> None:
    check_a_lost_attempt(program, folder, replay)


def test_the_lost_check_fails_when_the_attempt_is_forgotten(program: Program, folder: Path) -> None:
    with pytest.raises(AssertionError):
        check_a_lost_attempt(program, folder, "warm", "lost-attempts-are-not-counted")


@pytest.mark.parametrize("limit", [0, 1])
def test_the_last_attempt_lost_ends_the_step_with_an_error_that_says_so(
    program: Program, folder: Path, replay: Replay, limit: int
) -> None:
    check_the_last_attempt_lost(program, folder, replay, limit)


def test_the_last_attempt_check_fails_when_lost_attempts_are_not_counted(
    program: Program, folder: Path
) -> None:
    with pytest.raises(AssertionError):
        check_the_last_attempt_lost(program, folder, "warm", 0, "lost-attempts-are-not-counted")


def test_an_instance_that_takes_its_process_down_again_and_again_is_parked_and_revivable(
    program: Program, folder: Path, replay: Replay
) -> None:
    check_an_instance_that_kills_its_process(program, folder, replay)


@pytest.mark.parametrize("break_", ["deaths-are-not-counted", "nobody-is-forgiven"])
def test_the_death_check_fails_when_nobody_counts_or_forgives(
    program: Program, folder: Path, break_: str
) -> None:
    with pytest.raises(AssertionError):
        check_an_instance_that_kills_its_process(program, folder, "warm", break_)


# -- interrupted by a shutdown -----------------------------------------------------------------


async def check_shutdowns_do_not_count(folder: Path, replay: Replay, *, in_a_nursery: bool) -> None:
    """Shut the runtime down in the middle of the step, more often than it has retries."""
    started: list[int] = []
    ended: list[int] = []
    under_way = trio.Event()

    async def wait(attempt: int) -> None:
        try:
            await trio.sleep_forever()
        finally:
            ended.append(attempt)

    async def work(context: StepContext) -> str:
        started.append(context.attempt)
        under_way.set()
        if context.attempt == 4:
            return "done"
        if in_a_nursery:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(wait, context.attempt)
                await trio.sleep_forever()
        await wait(context.attempt)
        return "never"

    class Long(WorkflowEntrypoint):
        async def run(self, event: WorkflowEvent[Any], step: WorkflowStep) -> str:
            return await step.do("work", work, retries=Retries(limit=1, delay="1 hour"))

    for _ in range(3):
        under_way = trio.Event()
        async with open_test_runtime(folder, workflows=[Long], replay=replay) as runtime:
            await runtime.create(Long, id="a", if_exists="attach")
            with trio.fail_after(5):
                await under_way.wait()
    async with open_test_runtime(folder, workflows=[Long], replay=replay) as runtime:
        instance = await runtime.get(Long, "a")
        result = await instance.result()
        attempts = [tuple(row) for row in await instance.sql(ATTEMPTS)]

    assert ("done", [1, 2, 3, 4], [1, 2, 3]) == (result, started, ended)
    assert [(1, "interrupted"), (2, "interrupted"), (3, "interrupted"), (4, "completed")] == attempts


@pytest.mark.parametrize("in_a_nursery", [False, True])
async def test_an_attempt_that_a_shutdown_ended_is_interrupted_and_not_counted(
    folder: Path, replay: Replay, in_a_nursery: bool
) -> None:
    await check_shutdowns_do_not_count(folder, replay, in_a_nursery=in_a_nursery)


async def test_the_shutdown_check_fails_when_it_is_taken_for_a_crash(
    folder: Path, replay: Replay, broken: Broken
) -> None:
    broken(DoCall, "_interrupted", lambda *_: None)

    with pytest.raises((AssertionError, InstanceFailedError, trio.TooSlowError)):
        await check_shutdowns_do_not_count(folder, replay, in_a_nursery=False)


async def check_without_retries_a_shutdown_ends_the_step(folder: Path, replay: Replay) -> None:
    started: list[int] = []
    under_way = trio.Event()

    async def work(context: StepContext) -> None:
        started.append(context.attempt)
        under_way.set()
        if len(started) == 1:
            await trio.sleep_forever()

    class Once(WorkflowEntrypoint):
        async def run(self, event: WorkflowEvent[Any], step: WorkflowStep) -> None:
            await step.do("work", work, retries=0)

    async with open_test_runtime(folder, workflows=[Once], replay=replay) as runtime:
        await runtime.create(Once, id="a")
        await under_way.wait()
    async with open_test_runtime(folder, workflows=[Once], replay=replay) as runtime:
        instance = await runtime.get(Once, "a")
        with pytest.raises(InstanceFailedError) as failed:
            await instance.result()

    assert [1] == started
    assert isinstance(failed.value.__cause__, StepLostError)
    assert "interrupted by a shutdown, and limit=0 allows no other" in str(failed.value.__cause__)


async def test_a_step_without_retries_is_not_run_again_after_a_shutdown(folder: Path, replay: Replay) -> None:
    await check_without_retries_a_shutdown_ends_the_step(folder, replay)


async def test_the_check_without_retries_fails_when_it_is_run_again(folder: Path, broken: Broken) -> None:
    interrupted = vars(DoCall)["_interrupted"]

    def allow_one_more(call: DoCall[Any], step: Any, at_ms: int) -> None:
        call.config = resolve_config(retries=1)
        interrupted(call, step, at_ms)

    broken(DoCall, "_interrupted", allow_one_more)

    with pytest.raises((AssertionError, pytest.fail.Exception)):
        await check_without_retries_a_shutdown_ends_the_step(folder, "warm")
