"""Steps of every kind in a workflow: trio, plain, asyncio and process functions, run by a whole runtime.

What a function host does with each kind by itself stands in `test_functions.py`, `test_asyncio_host.py`
and `test_processes.py`; here the journal, the timeouts and the retries are around it.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import os
import signal
import threading
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Literal

import aiosqlite
import pytest
import trio

import perdure
from perdure import (
    Instance,
    InstanceFailedError,
    NonRetryableError,
    Retries,
    Runtime,
    StepContext,
    StepTimeoutError,
    WorkflowEntrypoint,
    WorkflowEvent,
    WorkflowStep,
    asyncio_step,
    current_step,
    process_step,
)
from perdure.testing import open_test_runtime

Replay = Literal["warm", "always"]


@pytest.fixture(params=["warm", "always"])
def replay(request: pytest.FixtureRequest) -> Replay:
    chosen: Replay = request.param
    return chosen


async def outcome_of(folder: Path, workflow: type[Any], replay: Replay, params: Any = None) -> Any:
    async with open_test_runtime(folder, workflows=[workflow], replay=replay) as runtime:
        instance: Instance[Any] = await runtime.create(workflow, params=params, id="a")
        return await instance.result()


# -- step functions of these tests -----------------------------------------------------------


async def on_trio(number: int) -> list[Any]:
    await trio.lowlevel.checkpoint()
    return ["trio", number, threading.current_thread() is threading.main_thread()]


def plain(number: int) -> list[Any]:
    return ["plain", number, threading.current_thread() is threading.main_thread()]


@asyncio_step
async def on_asyncio(number: int) -> list[Any]:
    await asyncio.sleep(0)
    return ["asyncio", number, threading.current_thread() is threading.main_thread()]


@process_step
def in_process(number: int) -> list[Any]:
    return ["process", number, os.getpid()]


async def count_rows(path: str) -> int:
    """Ask through a library that needs asyncio."""
    async with aiosqlite.connect(path) as db:
        await db.execute("CREATE TABLE IF NOT EXISTS tide (height)")
        await db.execute("INSERT INTO tide VALUES (3)")
        await db.commit()
        rows = await db.execute_fetchall("SELECT height FROM tide")
        return len(list(rows))


@process_step
def warm_up() -> int:
    return os.getpid()


@process_step
def stay(said: str) -> None:
    """Say who this process is, and stay for ever."""
    Path(said).write_text(str(os.getpid()))
    while True:
        signal.pause()


@process_step
def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@process_step
def with_context(number: int, context: StepContext) -> list[Any]:
    context.log.info("in the child")
    return [context.step.name, number, context.attempt, context.idempotency_key, context.cancelled]


# -- each kind -------------------------------------------------------------------------------


class EveryKind(WorkflowEntrypoint):
    async def run(self, event: WorkflowEvent[int], step: WorkflowStep) -> list[list[Any]]:
        @step.do("declared")
        async def declared(number: int) -> list[Any]:
            return await on_trio(number)

        number = event.payload
        return [
            await step.do("trio", on_trio, number),
            await step.do("plain", plain, number),
            await step.do("asyncio", on_asyncio, number),
            await step.do("process", in_process, number),
            await step.do("partial", functools.partial(on_trio, number=number)),
            await step.do("lambda of a coroutine", lambda: on_trio(number)),
            await step.do("lambda", lambda: plain(number)),
            await step.do("asyncio in the call", asyncio_step(asyncio_twin), number),
            await declared(number),
        ]


async def asyncio_twin(number: int) -> list[Any]:
    task = asyncio.current_task()
    return ["asyncio", number, task is None]


async def test_each_kind_of_function_runs_where_it_belongs(tmp_path: Path, replay: Replay) -> None:
    result = await outcome_of(tmp_path, EveryKind, replay, 7)
    child = result[3].pop()

    assert [
        ["trio", 7, True],
        ["plain", 7, False],
        ["asyncio", 7, False],
        ["process", 7],
        ["trio", 7, True],
        ["trio", 7, True],
        ["plain", 7, False],
        ["asyncio", 7, False],
        ["trio", 7, True],
    ] == result
    assert os.getpid() != child


class KnowsItsAttempt(WorkflowEntrypoint):
    async def run(self, event: WorkflowEvent, step: WorkflowStep) -> list[list[Any]]:
        async def first(context: StepContext, number: int) -> list[Any]:
            return [str(context.step.name), number, context is current_step()]

        def last(number: int, context: StepContext) -> list[Any]:
            return [str(context.step.name), number, context is current_step()]

        async def by_name(number: int, *, told: StepContext) -> list[Any]:
            return [str(told.step.name), number, told is current_step()]

        named: Any = by_name  # which type checkers cannot follow

        async def unnamed(number: int) -> list[Any]:
            await asyncio.sleep(0)
            return [str(current_step().step.name), number, True]

        @step.do("declared")
        def declared(number: int, context: StepContext) -> list[Any]:
            return [str(context.step.name), number, context is current_step()]

        return [
            await step.do("first", first, 1),
            await step.do("last", last, 2),
            await step.do("named", named, 3),
            await step.do("on asyncio", asyncio_step(unnamed), 4),
            await declared(5),
        ]


async def test_a_step_function_of_every_kind_gets_its_context(tmp_path: Path, replay: Replay) -> None:
    expected = [["first", 1, True], ["last", 2, True], ["named", 3, True], ["on asyncio", 4, True]]

    assert [*expected, ["declared", 5, True]] == await outcome_of(tmp_path, KnowsItsAttempt, replay)


class ContextCrosses(WorkflowEntrypoint):
    async def run(self, event: WorkflowEvent, step: WorkflowStep) -> list[list[Any]]:
        def here(context: StepContext) -> str:
            return context.idempotency_key

        key = await step.do("here", here)
        return [[key], await step.do("there", with_context, 5)]


async def test_the_context_crosses_to_the_child_of_a_process_step(tmp_path: Path, replay: Replay) -> None:
    [key], there = await outcome_of(tmp_path, ContextCrosses, replay)

    assert ["there", 5, 1, key.removesuffix("-1") + "-2", False] == there


# -- libraries that need asyncio -------------------------------------------------------------


class AsksByAsyncio(WorkflowEntrypoint):
    async def run(self, event: WorkflowEvent[str], step: WorkflowStep) -> list[int]:
        count = asyncio_step(count_rows)
        return [await step.do("first", count, event.payload), await step.do("second", count, event.payload)]


class AsksAsAWhole(WorkflowEntrypoint):
    step_library = "asyncio"

    async def run(self, event: WorkflowEvent[str], step: WorkflowStep) -> list[int]:
        return [
            await step.do("first", count_rows, event.payload),
            await step.do("second", lambda: count_rows(event.payload)),
        ]


@pytest.mark.parametrize("workflow", [AsksByAsyncio, AsksAsAWhole])
async def test_a_step_calls_a_library_that_needs_asyncio(
    tmp_path: Path, replay: Replay, workflow: type[Any]
) -> None:
    assert [1, 2] == await outcome_of(tmp_path / "state", workflow, replay, str(tmp_path / "tides.sqlite"))


class ForgotToSay(WorkflowEntrypoint):
    async def run(self, event: WorkflowEvent[str], step: WorkflowStep) -> int:
        return await step.do("count", count_rows, event.payload)


@pytest.mark.parametrize("after_a_query", [False, True])
async def test_a_trio_step_that_needs_asyncio_fails_once_and_says_what_to_write(
    tmp_path: Path, after_a_query: bool
) -> None:
    async with open_test_runtime(tmp_path / "state", workflows=[ForgotToSay]) as runtime:
        if after_a_query:  # which loads what queries stand on, and that changes what asyncio says
            await runtime.sql("SELECT 1")
        instance = await runtime.create(ForgotToSay, params=str(tmp_path / "tides.sqlite"))
        with pytest.raises(InstanceFailedError, match=r"asyncio_step\(count_rows\)") as caught:
            await instance.result()
        [row] = await instance.sql("SELECT attempts FROM steps")

    assert isinstance(caught.value.__cause__, NonRetryableError)
    assert 1 == row.attempts


# -- timeouts --------------------------------------------------------------------------------
#
# A timeout of an attempt is on the real clock: a function that runs does not stand still when a
# virtual one does.


@asynccontextmanager
async def opened(folder: Path, workflow: type, env: Any = None) -> AsyncGenerator[Runtime]:
    options: dict[str, Any] = {"durability": "process", "env": env}
    with trio.fail_after(60):
        async with perdure.open_runtime(folder, workflows=[workflow], **options) as runtime:
            yield runtime


class StaysTooLong(WorkflowEntrypoint):
    async def run(self, event: WorkflowEvent[str], step: WorkflowStep) -> list[Any]:
        pid = await step.do("warm up", warm_up)
        try:
            await step.do("stay", stay, event.payload, timeout=1.0, retries=0)
        except StepTimeoutError as error:
            return [pid, await step.do("look", is_alive, pid), str(error)]
        return ["it ended"]


@pytest.mark.slow
async def test_a_process_step_past_its_timeout_has_been_killed_when_the_run_goes_on(tmp_path: Path) -> None:
    said = tmp_path / "said"
    async with opened(tmp_path / "state", StaysTooLong) as runtime:
        instance = await runtime.create(StaysTooLong, params=str(said))
        pid, alive, error = await instance.result()

    assert str(pid) == said.read_text()
    assert not alive
    assert "attempt 1 of step 'stay' took longer than its timeout of 1 s" in error


class Overrun:
    """A plain function that stays until the test has heard that it is overdue."""

    def __init__(self) -> None:
        self.released = threading.Event()
        self.story: list[str] = []

    def __call__(self, context: StepContext) -> str:
        self.story.append(f"attempt {context.attempt} began")
        if context.attempt == 1:
            assert self.released.wait(60)
            self.story.append(f"told: {context.cancelled}")
        self.story.append(f"attempt {context.attempt} ended")
        return f"attempt {context.attempt}"


class Overruns(WorkflowEntrypoint[Overrun]):
    async def run(self, event: WorkflowEvent, step: WorkflowStep) -> str:
        return await step.do("overrun", self.env, timeout=0.05, retries=Retries(limit=1, delay=0, jitter=0))


class Heard(logging.Handler):
    """Calls back when something is logged."""

    def __init__(self, hear: Callable[[str], None]) -> None:
        super().__init__()
        self._hear = hear

    def emit(self, record: logging.LogRecord) -> None:
        self._hear(record.getMessage())


async def test_a_plain_step_that_overruns_is_told_waited_for_and_tried_again(tmp_path: Path) -> None:
    overrun, heard = Overrun(), list[str]()

    def hear(text: str) -> None:
        heard.append(text)
        overrun.released.set()

    logger, handler = logging.getLogger("perdure.workflow"), Heard(hear)
    logger.addHandler(handler)
    try:
        async with opened(tmp_path, Overruns, lambda: overrun) as runtime:
            instance = await runtime.create(Overruns)
            result = await instance.result()
            attempts = await instance.sql("SELECT outcome FROM attempts ORDER BY attempt")
    finally:
        logger.removeHandler(handler)

    assert "attempt 2" == result
    assert ["timeout", "completed"] == [row.outcome for row in attempts]
    assert ["attempt 1 began", "told: True", "attempt 1 ended"] == overrun.story[:3]
    assert ["attempt 2 began", "attempt 2 ended"] == overrun.story[3:]
    assert "overdue" in heard[0]
    assert "process_step" in heard[0]
