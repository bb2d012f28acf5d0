"""Law 5: a timed-out or cancelled attempt has ended before the next one starts."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trio

import perdure
from perdure import Retries, StepContext, WorkflowEntrypoint, WorkflowEvent, WorkflowStep, open_runtime
from perdure.actors.functions import Box, FunctionHost
from perdure.actors.host import Replay
from perdure.actors.run import Run
from perdure.testing import open_test_runtime

Broken = Callable[[type, str, Callable[..., Any]], None]
AT_ONCE = Retries(limit=2, delay=0, jitter=0)
OUTCOMES = "SELECT outcome FROM attempts ORDER BY attempt"
SHORT_S = 0.02


# -- coroutine functions -----------------------------------------------------------------------


async def check_timed_out_attempts_do_not_overlap(folder: Path, replay: Replay) -> None:
    under_way: list[int] = []
    story: list[str] = []

    async def slow(context: StepContext) -> str:
        assert [] == under_way
        under_way.append(context.attempt)
        story.append(f"{context.attempt} starts")
        try:
            if context.attempt < 3:
                await trio.sleep_forever()
            return "done"
        finally:
            with trio.CancelScope(shield=True):  # what must be put away takes its time
                for _ in range(20):
                    await trio.lowlevel.checkpoint()
            under_way.remove(context.attempt)
            story.append(f"{context.attempt} ends")

    class Slow(WorkflowEntrypoint):
        async def run(self, event: WorkflowEvent[Any], step: WorkflowStep) -> str:
            return await step.do("slow", slow, retries=AT_ONCE, timeout=SHORT_S)

    async with open_test_runtime(folder, workflows=[Slow], replay=replay) as runtime:
        instance = await runtime.create(Slow)
        result = await instance.result()
        outcomes = [
            row["outcome"] for row in await instance.sql("SELECT outcome FROM attempts ORDER BY attempt")
        ]

    assert "done" == result
    assert ["1 starts", "1 ends", "2 starts", "2 ends", "3 starts", "3 ends"] == story
    assert ["timeout", "timeout", "completed"] == outcomes


async def test_a_timed_out_attempt_has_ended_before_the_next_one_starts(folder: Path, replay: Replay) -> None:
    await check_timed_out_attempts_do_not_overlap(folder, replay)


async def test_the_overlap_check_fails_when_a_late_function_is_left_alone(
    folder: Path, broken: Broken
) -> None:
    call = FunctionHost.call
    abandoned: trio.Nursery | None = None

    async def leave_behind(host: FunctionHost, *args: Any, **options: Any) -> Any:
        result: list[Any] = []
        done = trio.Event()

        async def run() -> None:
            result.append(await call(host, *args, **options))
            done.set()

        assert abandoned is not None
        abandoned.start_soon(run)
        await done.wait()
        return result[0]

    broken(FunctionHost, "call", leave_behind)

    with pytest.raises(BaseExceptionGroup) as failed:
        async with trio.open_nursery() as abandoned:
            await check_timed_out_attempts_do_not_overlap(folder, "warm")
    assert failed.value.subgroup(AssertionError) is not None


# -- plain functions ---------------------------------------------------------------------------


class Listener(logging.Handler):
    """Keeps what the runtime warns of, and says when it has warned."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.texts: list[str] = []
        self.heard = trio.Event()

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(record.getMessage())
        self.heard.set()


@pytest.fixture
def listener() -> Iterator[Listener]:
    """Listen to the workflows' log; its records come from the loop's thread."""
    listener = Listener()
    logger = logging.getLogger("perdure.workflow")
    logger.addHandler(listener)
    yield listener
    logger.removeHandler(listener)


async def check_a_plain_function_is_waited_for(folder: Path, replay: Replay, listener: Listener) -> None:
    story: list[str] = []
    go_on = threading.Event()

    def slow(context: StepContext) -> str:
        story.append(f"{context.attempt} starts")
        if context.attempt == 1:
            while not context.cancelled:
                go_on.wait(SHORT_S / 10)
            story.append("1 is told")
            go_on.wait()
        story.append(f"{context.attempt} ends")
        return "too late" if context.attempt == 1 else "in time"

    class Slow(WorkflowEntrypoint):
        async def run(self, event: WorkflowEvent[Any], step: WorkflowStep) -> str:
            return await step.do("slow", slow, retries=AT_ONCE, timeout=0.5)

    async with open_runtime(folder, workflows=[Slow], replay=replay, durability="process") as runtime:
        instance = await runtime.create(Slow)
        try:
            with trio.fail_after(2):
                await listener.heard.wait()
            status = await instance.status()
            (stored,) = (await instance.sql("SELECT reason FROM instance"))[0]
            seen = list(story)
        finally:
            go_on.set()
        result = await instance.result()
        outcomes = [row["outcome"] for row in await instance.sql(OUTCOMES)]
        after = await instance.status()

    assert "1 starts" == seen[0]
    assert not any(entry.startswith("2") for entry in seen)
    assert ["1 starts", "1 is told", "1 ends", "2 starts", "2 ends"] == story
    assert ("in time", ["timeout", "completed"]) == (result, outcomes)
    assert ("running", "overdue: step 'slow' is past its timeout and cannot be stopped") == (
        status.status,
        stored,
    )
    assert (stored, None) == (status.reason, after.reason)
    assert 1 == len(listener.texts)
    assert "perdure.process_step" in listener.texts[0]


async def test_a_plain_function_past_its_timeout_is_waited_for_shown_and_warned_of(
    folder: Path, replay: Replay, listener: Listener
) -> None:
    await check_a_plain_function_is_waited_for(folder, replay, listener)


async def test_the_plain_check_fails_when_the_thread_is_abandoned(
    folder: Path, listener: Listener, broken: Broken
) -> None:
    async def abandon(box: Box, threads: trio.CapacityLimiter, on_cancel: Callable[[], None] | None) -> None:
        assert on_cancel is not None
        try:
            await trio.to_thread.run_sync(vars(Box)["_capture"], box, limiter=threads, abandon_on_cancel=True)
        except trio.Cancelled:
            on_cancel()
            raise

    broken(Box, "run", abandon)

    with pytest.raises((AssertionError, trio.TooSlowError)):
        await check_a_plain_function_is_waited_for(folder, "warm", listener)


async def test_the_plain_check_fails_when_it_is_not_shown(
    folder: Path, listener: Listener, broken: Broken
) -> None:
    broken(Run, "overdue_begins", lambda *_: None)

    with pytest.raises(AssertionError):
        await check_a_plain_function_is_waited_for(folder, "warm", listener)


async def check_a_cancelled_plain_function_is_waited_for(folder: Path, replay: Replay) -> None:
    """Cancel it by its rival in a race: the race is not over before the function has returned."""
    story: list[str] = []
    under_way = threading.Event()

    def slow() -> None:
        context = perdure.current_step()
        under_way.set()
        while not context.cancelled:
            threading.Event().wait(SHORT_S / 10)
        story.append("slow is told")
        threading.Event().wait(SHORT_S)
        story.append("slow ends")

    async def quick() -> None:
        await trio.to_thread.run_sync(under_way.wait)

    class Race(WorkflowEntrypoint):
        async def run(self, event: WorkflowEvent[Any], step: WorkflowStep) -> str:
            who, _ = await step.race(
                "race", {"slow": step.do("slow", slow), "quick": step.do("quick", quick)}
            )
            story.append(f"{who} has won")
            return who

    async with open_test_runtime(folder, workflows=[Race], replay=replay) as runtime:
        instance = await runtime.create(Race)
        with trio.fail_after(5):
            await instance.result()
        steps = {row["name"]: row["status"] for row in await instance.sql("SELECT name, status FROM steps")}

    assert ["slow is told", "slow ends", "quick has won"] == story[:3]
    assert {"race": "completed", "slow": "cancelled", "quick": "completed"} == steps


async def test_a_cancelled_plain_function_is_waited_for(folder: Path, replay: Replay) -> None:
    await check_a_cancelled_plain_function_is_waited_for(folder, replay)


async def test_the_cancelled_check_fails_when_the_thread_is_abandoned(folder: Path, broken: Broken) -> None:
    async def abandon(box: Box, threads: trio.CapacityLimiter, on_cancel: Callable[[], None] | None) -> None:
        assert on_cancel is not None
        try:
            await trio.to_thread.run_sync(vars(Box)["_capture"], box, limiter=threads, abandon_on_cancel=True)
        except trio.Cancelled:
            on_cancel()
            raise

    broken(Box, "run", abandon)

    with pytest.raises(AssertionError):
        await check_a_cancelled_plain_function_is_waited_for(folder, "warm")
