"""Traps in the code of `run()`: what users write around step calls, while the runtime stops the run.

Suspension is cancellation. What stands here is what user code may do with a cancellation, and that
none of it records anything twice, too early, or not at all.
"""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from perdure import (
    InstanceFailedError,
    InstanceTerminatedError,
    WorkflowEntrypoint,
    WorkflowEvent,
    WorkflowStep,
)
from perdure.actors.do import DoCall
from perdure.actors.host import Replay
from perdure.actors.run import Run, Stop
from perdure.testing import open_test_runtime

Broken = Callable[[Any, str, Callable[..., Any]], None]
Reached = Callable[..., Awaitable[None]]
STEPS = "SELECT name, status, attempts FROM steps WHERE name NOT IN ('first', 'nap') ORDER BY seq"
HANGS_S = 3

Body = Callable[[WorkflowStep, "list[str]"], Awaitable[Any]]


class Later(WorkflowEntrypoint):
    """Lets time pass: a virtual clock jumps only to a timer."""

    async def run(self, event: WorkflowEvent[Any], step: WorkflowStep) -> None:
        await step.sleep("an hour", "1 hour")


def workflow(body: Body, calls: list[str]) -> type[WorkflowEntrypoint]:
    class Trapped(WorkflowEntrypoint):
        async def run(self, event: WorkflowEvent[Any], step: WorkflowStep) -> Any:
            return await body(step, calls)

    return Trapped


async def run_through(
    folder: Path, replay: Replay, body: Body
) -> tuple[Any, list[str], list[tuple[Any, ...]]]:
    """Run a body that hibernates on its way; return result, calls of step functions, and steps."""
    calls: list[str] = []
    cls = workflow(body, calls)
    with trio.fail_after(HANGS_S):
        async with open_test_runtime(folder, workflows=[cls], replay=replay) as runtime:
            instance = await runtime.create(cls, id="a")
            result = await instance.result()
            return result, calls, [tuple(row) for row in await instance.sql(STEPS)]


# -- except BaseException, and finally ---------------------------------------------------------


async def in_finally(step: WorkflowStep, calls: list[str]) -> str:
    try:
        await step.sleep("nap", "1 hour")
        calls.append("slept")
    finally:
        await step.do("put away", put_away, calls)
    return "rested"


async def in_except(step: WorkflowStep, calls: list[str]) -> str:
    try:
        await step.sleep("nap", "1 hour")
        calls.append("slept")
    except BaseException:
        await step.do("put away", put_away, calls)
        raise
    await step.do("put away", put_away, calls)
    return "rested"


async def in_except_that_swallows(step: WorkflowStep, calls: list[str]) -> str:
    try:
        await step.sleep("nap", "1 hour")
        calls.append("slept")
    except BaseException:  # noqa: BLE001 - users write it
        with contextlib.suppress(BaseException):
            await step.do("put away", put_away, calls)
        return "never rested"  # what a stopped run returns is discarded
    await step.do("put away", put_away, calls)
    return "rested"


async def in_except_of_cancelled(step: WorkflowStep, calls: list[str]) -> str:
    try:
        await step.sleep("nap", "1 hour")
    except trio.Cancelled:
        pass  # and goes on, as if it had slept
    else:
        calls.append("slept")
    await step.do("put away", put_away, calls)
    return "rested"


async def in_except_that_raises(step: WorkflowStep, calls: list[str]) -> str:
    try:
        await step.sleep("nap", "1 hour")
        calls.append("slept")
    except BaseException as error:
        raise RuntimeError("no sleep tonight") from error
    await step.do("put away", put_away, calls)
    return "rested"


async def one() -> int:
    return 1


async def put_away(calls: list[str]) -> None:
    calls.append("put away")


BODIES = [in_finally, in_except, in_except_that_swallows, in_except_of_cancelled, in_except_that_raises]


async def check_nothing_is_recorded_while_it_is_stopped(folder: Path, replay: Replay, body: Body) -> None:
    result, calls, steps = await run_through(folder, replay, body)

    assert "rested" == result
    assert 1 == calls.count("put away")
    assert "slept" == calls[0]
    assert [("put away", "completed", 1)] == steps


@pytest.mark.parametrize("body", BODIES)
@pytest.mark.filterwarnings("ignore::perdure.PerdureWarning")  # `calls` is an argument that a step changes
async def test_what_user_code_does_with_a_cancellation_records_nothing(
    folder: Path, replay: Replay, body: Body
) -> None:
    await check_nothing_is_recorded_while_it_is_stopped(folder, replay, body)


@pytest.mark.filterwarnings("ignore::perdure.PerdureWarning")  # as above
async def test_the_check_fails_when_a_stopped_run_admits_calls(folder: Path, broken: Broken) -> None:
    async def admit(_run: Run, *, recorded: bool = False) -> None:
        await trio.lowlevel.cancel_shielded_checkpoint()

    broken(Run, "admit", admit)

    with pytest.raises((AssertionError, InstanceFailedError, trio.TooSlowError)):
        await check_nothing_is_recorded_while_it_is_stopped(folder, "warm", in_except_of_cancelled)


# -- a shield around a parked step -------------------------------------------------------------


async def shielded(step: WorkflowStep, calls: list[str]) -> str:
    with trio.CancelScope(shield=True):
        await step.wait_for_event("first", type="go", timeout=None)
    calls.append("let go")
    return "done"


async def check_a_shield_keeps_warm(folder: Path, replay: Replay, reached: Reached) -> None:
    calls: list[str] = []
    cls = workflow(shielded, calls)
    with trio.fail_after(HANGS_S):
        async with open_test_runtime(folder, workflows=[cls, Later], replay=replay) as runtime:
            instance = await runtime.create(cls, id="a")
            await reached(instance, "event started")
            await (await runtime.create(Later)).result()
            while (warm := runtime.statistics().warm) > 1:  # the other has not left yet
                await trio.testing.wait_all_tasks_blocked()
            (reason,) = (await instance.sql("SELECT reason FROM instance"))[0]
            await instance.send_event("go")
            result = await instance.result()

    assert ("done", 1) == (result, warm)
    assert "a cancel scope with shield=True stands around a parked step" == reason
    assert "let go" in calls


async def test_a_shield_around_a_parked_step_keeps_the_actor_warm(
    folder: Path, replay: Replay, reached: Reached
) -> None:
    await check_a_shield_keeps_warm(folder, replay, reached)


async def test_the_shield_check_fails_when_nobody_looks_for_one(
    folder: Path, reached: Reached, broken: Broken
) -> None:
    broken(Run, "_hindrance", lambda *_: None)

    with pytest.raises((AssertionError, trio.TooSlowError)):
        await check_a_shield_keeps_warm(folder, "warm", reached)


async def check_a_shield_holds_nobody_up(folder: Path, replay: Replay, reached: Reached, stop: str) -> None:
    """Stop a run that is parked behind a shield: by a command, by a replay, by the end of the runtime."""
    calls: list[str] = []

    async def body(step: WorkflowStep, calls: list[str]) -> str:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(behind_a_shield, step, calls)
            await step.sleep("nap", "1 hour")
            await step.do("put away", one)
        return "done"

    async def behind_a_shield(step: WorkflowStep, calls: list[str]) -> None:
        with trio.CancelScope(shield=True):
            await step.wait_for_event("first", type="go", timeout=None)
        calls.append("let go")

    cls = workflow(body, calls)
    with trio.fail_after(HANGS_S):
        async with open_test_runtime(folder, workflows=[cls], replay=replay) as runtime:
            instance = await runtime.create(cls, id="a")
            await reached(instance, "event started")
            if stop == "terminate":
                await instance.terminate()
                with pytest.raises(InstanceTerminatedError):
                    await instance.result()
            elif stop == "pause":
                await instance.pause()
                await instance.resume()
            elif stop == "replay":
                await reached(instance, "do completed", "put away")
        if stop == "terminate":
            return
        async with open_test_runtime(folder, workflows=[cls], replay=replay) as runtime:
            instance = await runtime.get(cls, "a")
            await instance.send_event("go")
            assert "done" == await instance.result()
    assert "let go" in calls


STOPS = ["terminate", "pause", "replay", "shutdown"]


@pytest.mark.parametrize("stop", STOPS)
async def test_a_shield_around_a_parked_step_holds_nobody_up(
    folder: Path, replay: Replay, reached: Reached, stop: str
) -> None:
    await check_a_shield_holds_nobody_up(folder, replay, reached, stop)


async def test_the_hold_up_check_fails_when_a_stop_stays_outside_the_shield(
    folder: Path, reached: Reached, broken: Broken
) -> None:
    def cancel_alone(run: Run, why: Stop) -> None:
        if run.stopping is None and not run.over:
            run.stopping = why
            run.scope.cancel()
            trio.lowlevel.spawn_system_task(let_go, run)

    async def let_go(run: Run) -> None:
        """End the run for good a while after, or the test would never come to its end."""
        with trio.move_on_after(HANGS_S / 6):
            await trio.sleep_forever()
        held.append(not run.over)
        for leaf in vars(run)["_leaves"]:
            if leaf.scope is not None:
                leaf.scope.cancel()

    held: list[bool] = []
    broken(Run, "stop", cancel_alone)

    await check_a_shield_holds_nobody_up(folder, "warm", reached, "terminate")
    assert [True] == held


# -- nurseries of the user's -------------------------------------------------------------------


async def check_groups_pass_through(folder: Path, replay: Replay) -> None:
    """Fail in one branch after the others have hibernated; cancel one that is under way by it."""
    seen: list[list[str]] = []
    started: list[str] = []
    under_way = trio.Event()

    async def slow() -> None:
        started.append("slow")
        under_way.set()
        await trio.sleep_forever()

    async def fail() -> None:
        started.append("fail")
        await under_way.wait()
        raise ValueError("one branch")

    class Groups(WorkflowEntrypoint):
        async def run(self, event: WorkflowEvent[Any], step: WorkflowStep) -> str:
            async with trio.open_nursery() as nursery:  # hibernates inside it
                nursery.start_soon(self.nap, step, "nap a", 3600)
                nursery.start_soon(self.nap, step, "nap b", 7200)
            try:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self.work, step, "slow", slow)
                    nursery.start_soon(self.work, step, "fail", fail)
            except* ValueError as group:
                seen.append([str(error) for error in group.exceptions])
            await step.sleep("long enough to hibernate", "1 hour")
            return "done"

        async def nap(self, step: WorkflowStep, name: str, seconds: int) -> None:
            await step.sleep(name, seconds)

        async def work(self, step: WorkflowStep, name: str, fn: Callable[[], Awaitable[None]]) -> None:
            await step.do(name, fn, retries=0)

    with trio.fail_after(HANGS_S):
        async with open_test_runtime(folder, workflows=[Groups], replay=replay) as runtime:
            instance = await runtime.create(Groups)
            result = await instance.result()
            steps = {
                row["name"]: row["status"] for row in await instance.sql("SELECT name, status FROM steps")
            }

    assert "done" == result
    assert ["fail", "slow"] == sorted(started)
    assert len(seen) >= 2  # the first run, and the one after the sleep
    assert [["one branch"]] * len(seen) == seen
    assert ("failed", "cancelled") == (steps["fail"], steps["slow"])
    assert {"completed"} == {steps[name] for name in steps if name not in ("fail", "slow")}


async def test_groups_of_user_nurseries_are_the_same_on_every_replay(folder: Path, replay: Replay) -> None:
    await check_groups_pass_through(folder, replay)


async def test_the_group_check_fails_when_the_sibling_is_not_recorded_as_cancelled(
    folder: Path, broken: Broken
) -> None:
    broken(DoCall, "_cancelled", lambda *_: None)

    with pytest.raises(InstanceFailedError):
        await check_groups_pass_through(folder, "warm")
