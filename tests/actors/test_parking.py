"""What may leave memory and what keeps it there: parked calls, and all that is not one."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from perdure import Limits, Runtime, WorkflowEntrypoint, WorkflowEvent, WorkflowStep
from perdure.actors.host import Replay
from perdure.testing import VirtualClock, open_test_runtime

Body = Callable[[WorkflowStep], Awaitable[Any]]
GRACE_S = 5.0


class HeldClock(VirtualClock):
    """A clock that does not jump: time passes when the test says so."""

    async def wait(self, delay_ms: float | None, changed: trio.Event) -> None:
        await super().wait(None, changed)


@pytest.fixture
def clock() -> VirtualClock:
    return HeldClock()


@pytest.fixture
def opened(
    tmp_path: Path, clock: VirtualClock, replay: Replay
) -> Callable[..., AbstractAsyncContextManager[Runtime]]:
    def opened(run: Body, *, warm_max: int = 100) -> AbstractAsyncContextManager[Runtime]:
        class Park(WorkflowEntrypoint):
            async def run(self, event: WorkflowEvent[Any], step: WorkflowStep) -> Any:
                return await run(step)

        bounds = Limits(idle_grace_s=GRACE_S, warm_max=warm_max)
        return open_test_runtime(
            tmp_path / "state", workflows=[Park], replay=replay, clock=clock, limits=bounds
        )

    return opened


Opened = Callable[..., AbstractAsyncContextManager[Runtime]]


async def settle(runtime: Runtime) -> None:
    """Wait until there is nothing to do before the clock moves."""
    while True:
        await trio.testing.wait_all_tasks_blocked()
        if runtime.is_idle:
            return
        await trio.sleep(0.0005)


async def warm_after_the_grace(runtime: Runtime, clock: VirtualClock) -> int:
    await settle(runtime)
    clock.advance(GRACE_S + 0.1)
    await settle(runtime)
    return runtime.statistics().warm


async def sleep(step: WorkflowStep) -> None:
    await step.sleep("nap", "1 hour")


async def wait_for_event(step: WorkflowStep) -> None:
    await step.wait_for_event("call", type="call", timeout=None)


async def retry(step: WorkflowStep) -> None:
    async def fail() -> None:
        raise OSError

    await step.do("fail", fail)


async def in_branches(step: WorkflowStep) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(sleep, step)
        nursery.start_soon(wait_for_event, step)


async def in_a_group(step: WorkflowStep) -> None:
    await step.gather("naps", {name: step.sleep(name, "1 hour") for name in ("a", "b")})


async def in_a_race(step: WorkflowStep) -> None:
    await step.race("race", {"a": step.sleep("a", "1 hour"), "b": step.sleep("b", "2 hours")})


async def in_a_durable_deadline(step: WorkflowStep) -> None:
    async with step.move_on_after("deadline", "1 hour"):
        await wait_for_event(step)


async def in_a_scope_without_a_deadline(step: WorkflowStep) -> None:
    with trio.CancelScope():
        await sleep(step)


@pytest.mark.parametrize(
    "run",
    [
        sleep, wait_for_event, retry, in_branches, in_a_group, in_a_race, in_a_durable_deadline,
        in_a_scope_without_a_deadline,
    ],
)  # fmt: skip
async def test_what_is_parked_leaves_memory_after_the_grace(
    opened: Opened, clock: VirtualClock, run: Body
) -> None:
    async with opened(run) as runtime:
        instance = await runtime.create("Park", id="a")
        await settle(runtime)
        assert (1, "waiting") == (runtime.statistics().warm, (await instance.status()).status)
        assert 0 == await warm_after_the_grace(runtime, clock)
        assert "waiting" == (await instance.status()).status


async def a_wait_outside_any_step(step: WorkflowStep) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(sleep, step)
        await trio.sleep_forever()


async def in_a_shield(step: WorkflowStep) -> None:
    with trio.CancelScope(shield=True):
        await sleep(step)


async def in_a_plain_deadline(step: WorkflowStep) -> None:
    with trio.move_on_after(100_000):
        await sleep(step)


@pytest.mark.parametrize(
    ("run", "reason"),
    [
        (a_wait_outside_any_step, f"a task waits outside any step at {__file__}:"),
        (in_a_shield, "a cancel scope with shield=True stands around a parked step"),
        (in_a_plain_deadline, "a plain cancel scope with a deadline stands around a parked step"),
    ],
)
async def test_what_is_not_parked_stays_and_says_why(
    opened: Opened, clock: VirtualClock, run: Body, reason: str
) -> None:
    async with opened(run) as runtime:
        instance = await runtime.create("Park", id="a")
        assert 1 == await warm_after_the_grace(runtime, clock)
        assert reason in str((await instance.status()).reason)
        (stored,) = (await instance.sql("SELECT reason FROM instance"))[0]
        assert reason in stored


async def test_an_event_within_the_grace_starts_it_anew(opened: Opened, clock: VirtualClock) -> None:
    async def run(step: WorkflowStep) -> None:
        for _ in range(2):
            await wait_for_event(step)

    async with opened(run) as runtime:
        instance = await runtime.create("Park", id="a")
        await settle(runtime)
        clock.advance(GRACE_S - 1)
        await instance.send_event("call")
        await settle(runtime)
        clock.advance(GRACE_S - 1)
        await settle(runtime)
        assert 1 == runtime.statistics().warm
        assert 0 == await warm_after_the_grace(runtime, clock)


async def test_who_has_hibernated_wakes_and_goes_on(opened: Opened, clock: VirtualClock) -> None:
    async def run(step: WorkflowStep) -> str:
        await sleep(step)
        return "rested"

    async with opened(run) as runtime:
        instance = await runtime.create("Park", id="a")
        assert 0 == await warm_after_the_grace(runtime, clock)
        clock.advance(3_600)
        assert "rested" == await instance.result()
        (replays,) = (await instance.sql("SELECT replays FROM instance"))[0]
        assert 1 <= replays


async def test_parked_instances_make_way_where_there_is_no_room(opened: Opened) -> None:
    """Ten sleepers where four may be warm: nobody waits for the grace of another."""
    async with opened(sleep, warm_max=4) as runtime:
        sleepers = [await runtime.create("Park", id=f"s{number}") for number in range(10)]
        await settle(runtime)
        for sleeper in sleepers:
            assert "waiting" == (await sleeper.status()).status
        assert 4 >= runtime.statistics().warm
