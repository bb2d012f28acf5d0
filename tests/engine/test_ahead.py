"""Sleepers are opened a little ahead of their time, and wake at it; newborns without room hold none up."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

import perdure
from perdure import Runtime, WorkflowEntrypoint, WorkflowEvent, WorkflowStep, open_runtime
from perdure.actors.host import Replay
from perdure.testing import VirtualClock, open_test_runtime

MIDNIGHT = datetime(2030, 1, 1, tzinfo=UTC)


class HeldClock(VirtualClock):
    """A clock that does not jump: time passes when the test says so."""

    async def wait(self, delay_ms: float | None, changed: trio.Event) -> None:
        await super().wait(None, changed)


class Nap(WorkflowEntrypoint):
    """Sleeps for a minute, in the way that its params name."""

    async def run(self, event: WorkflowEvent[str], step: WorkflowStep) -> bool:
        if event.payload == "until":
            await step.sleep_until("nap", MIDNIGHT + timedelta(minutes=1))
        else:
            await step.sleep("nap", "1 minute")
        return True


class Holds(WorkflowEntrypoint):
    """Takes a step that lasts until somebody lets go."""

    async def run(self, event: WorkflowEvent[Any], step: WorkflowStep) -> None:
        await step.do("hold", self.env.wait)


async def until(runtime: Runtime, *, warm: int) -> None:
    with trio.fail_after(60):
        while runtime.statistics().warm != warm:
            await trio.testing.wait_all_tasks_blocked(0.001)


async def move(clock: VirtualClock, runtime: Runtime, seconds: float) -> None:
    clock.advance(seconds)
    await trio.testing.wait_all_tasks_blocked(0.001)
    while not runtime.is_idle:
        await trio.testing.wait_all_tasks_blocked(0.001)


@pytest.mark.parametrize("replay", ["warm", "always"])
@pytest.mark.parametrize("how", ["for", "until"])
async def test_a_sleeper_is_in_memory_before_its_time_and_goes_on_at_it(
    tmp_path: Path, replay: Replay, how: str
) -> None:
    clock = HeldClock(start=MIDNIGHT)
    async with open_test_runtime(tmp_path, workflows=[Nap], replay=replay, clock=clock) as runtime:
        instance = await runtime.create(Nap, params=how)
        await move(clock, runtime, 0)
        await move(clock, runtime, 10)
        await until(runtime, warm=0)

        await move(clock, runtime, 49.6)  # within half a second of its time
        await until(runtime, warm=1)
        assert "waiting" == (await instance.status()).status

        await move(clock, runtime, 0.3)
        assert "waiting" == (await instance.status()).status
        await move(clock, runtime, 0.2)
        assert await instance.result()


async def test_a_sleeper_wakes_while_newborns_find_no_room(tmp_path: Path) -> None:
    let_go = trio.Event()
    limits = perdure.Limits(unwritten_max=1, unwritten_s=3600, idle_grace_s=0.05)

    class Soon(WorkflowEntrypoint):
        async def run(self, event: WorkflowEvent[Any], step: WorkflowStep) -> bool:
            await step.sleep("nap", "0.3 seconds")
            return True

    async with open_runtime(tmp_path, workflows=[Soon, Holds], env=let_go, limits=limits) as runtime:
        sleeper = await runtime.create(Soon)
        await until(runtime, warm=0)
        held = [await runtime.create(Holds) for _ in range(3)]

        with trio.fail_after(60):
            assert await sleeper.result()

        await until(runtime, warm=1)  # one of them has the only room in memory
        let_go.set()
        for instance in held:
            await instance.result()
