"""Law 14: a step that the user's own cancel scope cancelled stays cancelled; durable deadlines are others."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from perdure import Runtime, RuntimeClosedError, WorkflowEntrypoint, WorkflowEvent, WorkflowStep
from perdure.actors.compose import DeadlineCall, RaceCall
from perdure.actors.do import DoCall
from perdure.actors.functions import FunctionHost
from perdure.actors.host import Replay, deadline_in
from perdure.actors.run import Run
from perdure.storage.journal import Journal, Step
from perdure.testing import VirtualClock, open_test_runtime

Broken = Callable[[Any, str, Callable[..., Any]], None]
Reached = Callable[..., Awaitable[None]]
STEPS = "SELECT name, status FROM steps ORDER BY name"
HANGS_S = 2


@contextlib.asynccontextmanager
async def in_time(*args: Any, **options: Any) -> AsyncGenerator[Runtime, None]:
    """Open a test runtime in which nothing may hang."""
    with trio.fail_after(HANGS_S):
        async with open_test_runtime(*args, **options) as runtime:
            yield runtime


# -- the user's own cancel scope ---------------------------------------------------------------


async def check_a_cancelled_step_is_recorded_and_not_run_again(folder: Path, replay: Replay) -> None:
    """Cancel a step by what its sibling has brought; then hibernate, and open the folder anew."""
    story: list[str] = []

    async def slow() -> None:
        story.append("starts")
        under_way.set()
        try:
            await trio.sleep_forever()
        finally:
            with trio.CancelScope(shield=True):  # what must be put away takes its time
                for _ in range(20):
                    await trio.lowlevel.checkpoint()
            story.append("ends")

    async def quick() -> str:
        await under_way.wait()
        return "quick"

    under_way = trio.Event()

    class Cancels(WorkflowEntrypoint):
        async def run(self, event: WorkflowEvent[Any], step: WorkflowStep) -> str:
            async def be_slow() -> None:
                await step.do("slow", slow, retries=3)
                story.append("not cancelled")

            async with trio.open_nursery() as nursery:
                nursery.start_soon(be_slow)
                answer = await step.do("quick", quick)
                nursery.cancel_scope.cancel()
            story.append("goes on")
            await step.sleep("long enough to hibernate", "1 hour")
            await step.wait_for_event("go", type="go", timeout=None)
            return answer

    async with in_time(folder, workflows=[Cancels], replay=replay) as runtime:
        instance = await runtime.create(Cancels, id="a")
        async with contextlib.aclosing(instance.subscribe()) as entries:
            async for entry in entries:
                if entry.what == "do cancelled":
                    assert ["starts", "ends"] == story[:2]
                if entry.what == "event started":
                    break
    async with in_time(folder, workflows=[Cancels], replay=replay) as runtime:
        instance = await runtime.get(Cancels, "a")
        await instance.send_event("go")
        result = await instance.result()
        steps = {row["name"]: row["status"] for row in await instance.sql(STEPS)}
        attempts = [row[0] for row in await instance.sql("SELECT outcome FROM attempts WHERE step_seq = 1")]

    assert "quick" == result
    assert ["starts", "ends", "goes on"] == story[:3]
    assert {"goes on"} == set(story[2:])
    assert ("cancelled", "completed") == (steps["slow"], steps["quick"])
    assert {"cancelled", "completed"} >= set(attempts)


async def test_a_cancelled_step_is_recorded_when_it_has_ended_and_not_run_again(
    folder: Path, replay: Replay
) -> None:
    await check_a_cancelled_step_is_recorded_and_not_run_again(folder, replay)


async def test_the_cancelled_check_fails_when_it_is_not_recorded(folder: Path, broken: Broken) -> None:
    broken(DoCall, "_cancelled", lambda *_: None)

    with pytest.raises(AssertionError):
        await check_a_cancelled_step_is_recorded_and_not_run_again(folder, "warm")


async def test_the_cancelled_check_fails_when_it_is_recorded_before_it_has_ended(
    folder: Path, broken: Broken
) -> None:
    call = FunctionHost.call

    async def leave_behind(host: FunctionHost, *args: Any, **options: Any) -> Any:
        result: list[Any] = []
        done = trio.Event()

        async def run() -> None:
            result.append(await call(host, *args, **options))
            done.set()

        left.start_soon(run)
        await done.wait()
        return result[0]

    broken(FunctionHost, "call", leave_behind)

    async with trio.open_nursery() as left:
        with pytest.raises(AssertionError):
            await check_a_cancelled_step_is_recorded_and_not_run_again(folder, "warm")
        left.cancel_scope.cancel()


async def check_a_cancelled_call_waits(folder: Path, replay: Replay, kind: str) -> None:
    """Cancel a call by what no replay repeats: it then waits, and is not run again."""
    started: list[str] = []
    waits = trio.Event()
    lives = 0

    async def slow() -> None:
        started.append(kind)
        await trio.sleep_forever()

    class Cancels(WorkflowEntrypoint):
        async def run(self, event: WorkflowEvent[Any], step: WorkflowStep) -> None:
            calls: dict[str, Callable[[], Awaitable[Any]]] = {
                "do": lambda: step.do("slow", slow),
                "sleep": lambda: step.sleep("slow", "1 year"),
                "event": lambda: step.wait_for_event("slow", type="never", timeout=None),
                "race": lambda: step.race("slow", {"a": step.sleep("a", "1 year")}),
            }
            with trio.CancelScope() as scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self.cancel_once, scope)
                    await calls[kind]()
            await step.wait_for_event("go", type="go", timeout=None)

        async def cancel_once(self, scope: trio.CancelScope) -> None:
            await trio.testing.wait_all_tasks_blocked()
            if lives == 1:
                scope.cancel()  # by something that stands nowhere
            else:
                waits.set()

    lives = 1
    async with in_time(folder, workflows=[Cancels], replay=replay) as runtime:
        instance = await runtime.create(Cancels, id="a")
        async with contextlib.aclosing(instance.subscribe()) as entries:
            async for entry in entries:
                if entry.step == "go":
                    break
    lives = 2
    async with in_time(folder, workflows=[Cancels], replay=replay) as runtime:
        instance = await runtime.get(Cancels, "a")
        await waits.wait()
        status = await instance.status()
        (recorded,) = (await instance.sql("SELECT status FROM steps WHERE name = 'slow'"))[0]
        await instance.terminate()

    assert ["do"] * (kind == "do") == started
    assert ("waiting", "cancelled") == (status.status, recorded)


KINDS = ["do", "sleep", "event", "race"]


@pytest.mark.parametrize("kind", KINDS)
async def test_a_cancelled_call_waits_until_the_same_cancellation_comes_again(
    folder: Path, replay: Replay, kind: str
) -> None:
    await check_a_cancelled_call_waits(folder, replay, kind)


async def test_the_waiting_check_fails_when_the_step_is_run_again(folder: Path, broken: Broken) -> None:
    async def again(_call: DoCall[Any], step: Step) -> Step:
        step.status = "waiting"
        return step

    broken(DoCall, "_resume", again)
    broken(Journal, "start_again", lambda *_, **__: None)

    with pytest.raises((AssertionError, trio.TooSlowError)):
        await check_a_cancelled_call_waits(folder, "warm", "do")


# -- a plain scope with a deadline -------------------------------------------------------------


class Bounded(WorkflowEntrypoint):
    """Waits inside a plain deadline, or outside any."""

    async def run(self, event: WorkflowEvent[bool], step: WorkflowStep) -> str:
        with trio.move_on_after(1e6) if event.payload else contextlib.nullcontext():
            await step.wait_for_event("go", type="go", timeout=None)
        return "done"


class Later(WorkflowEntrypoint):
    """Lets time pass: a virtual clock jumps only to a timer."""

    async def run(self, event: WorkflowEvent[Any], step: WorkflowStep) -> None:
        await step.sleep("an hour", "1 hour")


async def check_a_plain_deadline_keeps_warm(
    folder: Path, replay: Replay, reached: Reached, log: pytest.LogCaptureFixture
) -> None:
    with log.at_level(logging.WARNING, "perdure.workflow"):
        async with in_time(folder, workflows=[Bounded, Later], replay=replay) as runtime:
            free = await runtime.create(Bounded, id="free", params=False)
            bound = await runtime.create(Bounded, id="bound", params=True)
            await reached(free, "event started")
            await reached(bound, "event started")
            await (await runtime.create(Later)).result()
            warm = [
                row["id"] for row in await runtime.sql("SELECT id FROM instances WHERE status = 'waiting'")
            ]
            (reason,) = (await bound.sql("SELECT reason FROM instance"))[0]
            while (count := runtime.statistics().warm) > 1:  # what has ended has not left yet
                await trio.testing.wait_all_tasks_blocked()
            await bound.send_event("go")
            result = await bound.result()
    warned = [record.getMessage() for record in log.records if "plain cancel scope" in record.getMessage()]

    assert (["free"], 1, "done") == (warm, count, result)
    assert "a plain cancel scope with a deadline stands around a parked step" in str(reason)
    assert 1 == len(warned)
    assert "Bounded/bound" in warned[0]
    assert all(way_out in warned[0] for way_out in ("timeout=", "step.race", "step.move_on_after"))


async def test_a_plain_deadline_around_a_parked_call_keeps_the_actor_warm_and_warns(
    folder: Path, replay: Replay, reached: Reached, caplog: pytest.LogCaptureFixture
) -> None:
    await check_a_plain_deadline_keeps_warm(folder, replay, reached, caplog)


async def test_the_deadline_check_fails_when_nobody_looks_for_a_scope(
    folder: Path, reached: Reached, caplog: pytest.LogCaptureFixture, broken: Broken
) -> None:
    broken(Run, "_hindrance", lambda *_: None)

    with pytest.raises(AssertionError):
        await check_a_plain_deadline_keeps_warm(folder, "warm", reached, caplog)


# -- durable deadlines -------------------------------------------------------------------------


async def check_a_durable_deadline_decides_once(
    folder: Path, replay: Replay, reached: Reached, *, strikes: bool
) -> None:
    """Be away for half of it; what it decided is asked for again after another restart."""
    decided: list[bool] = []

    class Office(WorkflowEntrypoint):
        async def run(self, event: WorkflowEvent[Any], step: WorkflowStep) -> list[str]:
            async with step.move_on_after("office hours", "8 hours") as scope:
                await step.sleep("lunch", "1 hour")
                await step.wait_for_event("back", type="back", timeout=None)
                await step.sleep("work", "12 hours" if strikes else "1 hour")
            decided.append(scope.expired)
            at = await step.now()
            await step.wait_for_event("go", type="go", timeout=None)
            return [str(scope.expired), at.isoformat()]

    clock = VirtualClock()
    async with in_time(folder, workflows=[Office], replay=replay, clock=clock) as runtime:
        instance = await runtime.create(Office, id="a")
        await reached(instance, "event started", "back")
    clock.advance(3 * 3600)
    async with in_time(folder, workflows=[Office], replay=replay, clock=clock) as runtime:
        instance = await runtime.get(Office, "a")
        await instance.send_event("back")
        await reached(instance, "event started", "go")
    async with in_time(folder, workflows=[Office], replay=replay, clock=clock) as runtime:
        instance = await runtime.get(Office, "a")
        await instance.send_event("go")
        expired, at = await instance.result()
        steps = {row["name"]: row["status"] for row in await instance.sql(STEPS)}

    assert {strikes} == set(decided)
    assert str(strikes) == expired
    assert ("2030-01-01T08:00" if strikes else "2030-01-01T05:00") == at[:16]
    assert ("completed", "cancelled" if strikes else "completed") == (steps["office hours"], steps["work"])


@pytest.mark.parametrize("strikes", [True, False])
async def test_a_durable_deadline_runs_on_and_decides_once(
    folder: Path, replay: Replay, reached: Reached, strikes: bool
) -> None:
    await check_a_durable_deadline_decides_once(folder, replay, reached, strikes=strikes)


async def test_the_durable_check_fails_when_the_deadline_does_not_strike_again(
    folder: Path, reached: Reached, broken: Broken
) -> None:
    broken(DeadlineCall, "_expire_again", lambda *_: None)

    with pytest.raises(trio.TooSlowError):
        await check_a_durable_deadline_decides_once(folder, "warm", reached, strikes=True)


async def test_the_durable_check_fails_when_the_deadline_starts_anew(
    folder: Path, reached: Reached, broken: Broken
) -> None:
    enter = DeadlineCall.__aenter__

    async def start_anew(call: DeadlineCall) -> DeadlineCall:
        if call.record is not None and call.record.wake is not None:
            call.record.wake = deadline_in(call.run.host.clock, call.seconds)
        return await enter(call)

    broken(DeadlineCall, "__aenter__", start_anew)

    with pytest.raises(
        (AssertionError, trio.TooSlowError, RuntimeClosedError)
    ):  # it wakes for ever at the moment it missed
        await check_a_durable_deadline_decides_once(folder, "warm", reached, strikes=True)


async def check_a_race_is_decided_once(folder: Path, replay: Replay, reached: Reached) -> None:
    calls: list[str] = []
    winners: list[str] = []

    async def work(who: str) -> str:
        calls.append(who)
        if who == "slow":
            await trio.sleep_forever()
        await trio.testing.wait_all_tasks_blocked()
        return who.upper()

    class Race(WorkflowEntrypoint):
        async def run(self, event: WorkflowEvent[Any], step: WorkflowStep) -> str:
            parts: dict[str, Any] = {who: step.do(who, work, who) for who in ("slow", "quick")}
            who, value = await step.race("race", {**parts, "late": step.sleep("late", "1 day")})
            winners.append(who)
            await step.sleep("longer than the other part", "2 days")
            await step.wait_for_event("go", type="go", timeout=None)
            return f"{who} {value}"

    async with in_time(folder, workflows=[Race], replay=replay) as runtime:
        await reached(await runtime.create(Race, id="a"), "event started", "go")
    async with in_time(folder, workflows=[Race], replay=replay) as runtime:
        instance = await runtime.get(Race, "a")
        await instance.send_event("go")
        result = await instance.result()
        steps = {row["name"]: row["status"] for row in await instance.sql(STEPS)}

    assert ("quick QUICK", {"quick"}) == (result, set(winners))
    assert ["quick", "slow"] == sorted(calls)
    assert ("completed", "completed", "cancelled", "cancelled") == tuple(
        steps[name] for name in ("race", "quick", "slow", "late")
    )


async def test_a_race_is_decided_once(folder: Path, replay: Replay, reached: Reached) -> None:
    await check_a_race_is_decided_once(folder, replay, reached)


async def test_the_race_check_fails_when_losers_are_left_open(
    folder: Path, reached: Reached, broken: Broken
) -> None:
    def answer(call: RaceCall[Any], _step: Step) -> tuple[str, Any]:
        record = call.parts["quick"].record
        assert record is not None
        return "quick", call.parts["quick"].answer(record)

    broken(DoCall, "_cancelled", lambda *_: None)
    broken(RaceCall, "answer", answer)

    with pytest.raises(AssertionError):
        await check_a_race_is_decided_once(folder, "warm", reached)
