"""Rollback handlers: which run, in which order, what they are told, and what stops them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio

from perdure import (
    InstanceFailedError,
    InstanceStatus,
    InvalidArgumentError,
    NonRetryableError,
    Retries,
    Rollback,
    RollbackContext,
    RunTimeoutError,
    StepContext,
    WorkflowEntrypoint,
    WorkflowEvent,
    WorkflowStep,
    asyncio_step,
    process_step,
)
from perdure.actors.host import Replay
from perdure.testing import open_test_runtime

Undone = list[Any]
ROLLBACKS = "SELECT name, count, status, attempts FROM steps WHERE kind = 'rollback' ORDER BY seq"


class DeclinedError(Exception):
    """A payment that was declined, with the reason in a field."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"declined: {reason}")
        self.reason = reason


async def decline() -> None:
    raise NonRetryableError("declined")


async def double(number: int) -> int:
    return 2 * number


def noting(undone: Undone) -> Callable[[RollbackContext[Any]], Any]:
    """Return a handler that notes which step it undoes."""

    async def undo(context: RollbackContext[Any]) -> None:
        undone.append(context.name)

    return undo


class Ended:
    """How a workflow ended: what `run()` raised, its status, and rows of a query."""

    def __init__(
        self, error: BaseException | None, status: InstanceStatus, rows: list[tuple[Any, ...]]
    ) -> None:
        self.error = error
        self.status = status
        self.rollback = status.rollback
        self.rows = rows


Fail = Callable[..., Any]


@pytest.fixture
def end(tmp_path: Path, replay: Replay) -> Fail:
    """Return a function that runs `run(step)` as a workflow and tells how it ended."""

    async def end(
        run: Callable[[WorkflowStep], Any], *, sql: str = ROLLBACKS, timeout: str | None = None
    ) -> Ended:
        class Saga(WorkflowEntrypoint):
            async def run(self, event: WorkflowEvent[Any], step: WorkflowStep) -> Any:
                return await run(step)

        async with open_test_runtime(tmp_path / "state", workflows=[Saga], replay=replay) as runtime:
            instance = await runtime.create(Saga, id="a", timeout=timeout)
            error: BaseException | None = None
            try:
                await instance.result()
            except InstanceFailedError as failed:
                error = failed.__cause__
            rows = [tuple(row) for row in await instance.sql(sql)]
            return Ended(error, await instance.status(), rows)

    return end


# -- which run, and in which order -------------------------------------------------------------


async def test_handlers_run_in_the_reverse_order_of_the_starts_the_failed_step_first(end: Fail) -> None:
    undone: Undone = []

    async def run(step: WorkflowStep) -> None:
        for name in ("flight", "hotel"):
            await step.do(name, double, 1, rollback=noting(undone))
        await step.do("no handler", double, 1)
        await step.do("pay", decline, rollback=noting(undone))

    ended = await end(run)

    assert ["pay", "hotel", "flight"] == undone
    assert [
        ("pay", 1, "completed", 1),
        ("hotel", 1, "completed", 1),
        ("flight", 1, "completed", 1),
    ] == ended.rows
    assert ("errored", "complete", None) == (
        ended.status.status,
        ended.rollback and ended.rollback.outcome,
        ended.rollback and ended.rollback.error,
    )
    assert "declined" in str(ended.error)


async def test_no_handler_runs_when_run_returns_or_catches_the_error(end: Fail) -> None:
    undone: Undone = []

    async def run(step: WorkflowStep) -> None:
        await step.do("hotel", double, 1, rollback=noting(undone))
        try:
            await step.do("pay", decline, rollback=noting(undone))
        except NonRetryableError:
            return

    ended = await end(run)

    assert ([], "complete", None) == (undone, ended.status.status, ended.rollback)


async def test_a_workflow_without_handlers_fails_without_a_rollback(end: Fail) -> None:
    async def run(step: WorkflowStep) -> None:
        await step.do("pay", decline)

    ended = await end(run)

    assert ("errored", None, []) == (ended.status.status, ended.rollback, ended.rows)


async def test_a_step_whose_error_run_caught_is_undone_when_the_instance_fails_later(end: Fail) -> None:
    undone: Undone = []

    async def run(step: WorkflowStep) -> None:
        try:
            await step.do("first card", decline, rollback=noting(undone))
        except NonRetryableError:
            await step.do("second card", double, 1, rollback=noting(undone))
        raise DeclinedError("no stock")

    ended = await end(run)

    assert ["second card", "first card"] == undone
    assert isinstance(ended.error, DeclinedError)


async def test_each_use_of_a_name_and_each_part_of_a_map_has_its_own_rollback(end: Fail) -> None:
    undone: Undone = []

    async def undo(context: RollbackContext[int]) -> None:
        undone.append((context.name, context.count, context.output))

    async def run(step: WorkflowStep) -> None:
        for number in (1, 2):
            await step.do("book", double, number, rollback=undo)
        await step.map("seat", double, [5, 6], limit=1, rollback=undo)
        raise DeclinedError("no stock")

    await end(run)

    assert [("seat[1]", 1, 12), ("seat[0]", 1, 10), ("book", 2, 4), ("book", 1, 2)] == undone


async def test_the_decorator_form_takes_a_handler(end: Fail) -> None:
    undone: Undone = []

    async def run(step: WorkflowStep) -> None:
        @step.do("book", rollback=noting(undone))
        async def book(number: int) -> int:
            return number

        await book(3)
        raise DeclinedError("no stock")

    await end(run)

    assert ["book"] == undone


async def test_parallel_steps_have_ended_before_the_first_handler_starts(end: Fail) -> None:
    story: Undone = []

    async def undo(context: RollbackContext[Any]) -> None:
        story.append(f"undo {context.name}")

    async def slow() -> None:
        try:
            await trio.sleep_forever()
        finally:
            with trio.CancelScope(shield=True):
                await trio.lowlevel.checkpoint()
            story.append("slow ended")

    async def fail() -> None:
        while not story_started.is_set():
            await story_started.wait()
        raise NonRetryableError("declined")

    async def slow_one() -> None:
        story_started.set()
        await slow()

    story_started = trio.Event()

    async def run(step: WorkflowStep) -> None:
        async def second() -> None:
            await step.do("fail", fail, rollback=undo)
            await step.do("never started", double, 1, rollback=undo)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(second)
            await step.do("slow", slow_one, rollback=undo)

    ended = await end(run)

    assert "slow ended" == story[0]
    assert {"undo slow", "undo fail"} == set(story[1:])
    assert "errored" == ended.status.status


async def test_the_timeout_of_the_whole_run_rolls_back(end: Fail) -> None:
    undone: Undone = []

    async def run(step: WorkflowStep) -> None:
        await step.do("hotel", double, 1, rollback=noting(undone))
        await step.sleep("too long", "3 days")

    ended = await end(run, timeout="1 day")

    assert ["hotel"] == undone
    assert isinstance(ended.error, RunTimeoutError)
    assert "complete" == ended.rollback.outcome


# -- what a handler is told --------------------------------------------------------------------


async def test_a_handler_is_told_the_error_and_the_step_as_it_was(end: Fail) -> None:
    told: Undone = []
    keys: list[str] = []

    async def book(number: int, context: StepContext) -> int:
        keys.append(context.idempotency_key)
        return 2 * number

    async def undo(context: RollbackContext[int]) -> None:
        reason = getattr(context.error, "reason", None)
        told.append((context.name, context.count, context.output, context.args, reason, context.attempt))
        keys.extend((context.step_key, context.idempotency_key))

    async def run(step: WorkflowStep) -> None:
        await step.do("book", book, 4, rollback=undo)
        raise DeclinedError("no stock")

    await end(run)

    assert [("book", 1, 8, (4,), "no stock", 1)] == told
    assert keys[0] == keys[1] != keys[2]


async def test_what_a_failed_step_left_is_undone_without_an_output(end: Fail) -> None:
    told: Undone = []

    async def undo(context: RollbackContext[int]) -> None:
        told.append((context.output, str(context.error).partition(":")[0]))

    async def run(step: WorkflowStep) -> None:
        await step.do("pay", decline, rollback=undo)

    await end(run)

    assert [(None, "declined")] == told


def note_in_a_process(path: str, context: RollbackContext[int]) -> None:
    Path(path).write_text(f"{context.name} {context.output} {context.error} {context.attempt}")


async def test_a_handler_may_be_any_kind_of_step_function(end: Fail, tmp_path: Path) -> None:
    undone: Undone = []
    path = tmp_path / "noted"

    def plain(context: RollbackContext[int]) -> None:
        undone.append(("plain", context.output))

    @asyncio_step
    async def on_asyncio(context: RollbackContext[int]) -> None:
        undone.append(("asyncio", context.output))

    def without_parameters() -> object:
        undone.append(("nothing", None))
        return object()  # which nobody could store

    async def unannotated(context: Any, note: str = "kept") -> None:  # as good as not annotated
        undone.append((note, context.output))

    async def by_keyword(*, context: RollbackContext[int]) -> None:
        undone.append(("keyword", context.output))

    in_process = functools.partial(note_in_a_process, str(path))

    async def run(step: WorkflowStep) -> None:
        handlers: list[Any] = [plain, on_asyncio, without_parameters, unannotated, by_keyword]
        for number, handler in enumerate([*handlers, process_step(in_process)]):
            await step.do(f"step {number}", double, number, rollback=handler)
        raise DeclinedError("no stock")

    ended = await end(run)

    assert [("keyword", 8), ("kept", 6), ("nothing", None), ("asyncio", 2), ("plain", 0)] == undone
    assert "step 5 10 declined: no stock 1" == path.read_text()
    assert "complete" == ended.rollback.outcome


# -- retries, and what stops it ----------------------------------------------------------------


async def test_a_handler_is_retried_by_its_own_options_and_told_its_attempt(end: Fail) -> None:
    attempts: list[int] = []

    async def undo(context: RollbackContext[int]) -> None:
        attempts.append(context.attempt)
        if context.attempt < 3:
            raise OSError("not yet")

    async def run(step: WorkflowStep) -> None:
        await step.do(
            "book", double, 1, retries=0, rollback=Rollback(undo, retries=Retries(limit=2, delay="1 hour"))
        )
        raise DeclinedError("no stock")

    ended = await end(run)

    assert [1, 2, 3] == attempts
    assert [("book", 1, "completed", 3)] == ended.rows
    assert "complete" == ended.rollback.outcome


async def test_a_handler_that_fails_for_good_ends_the_rollback(end: Fail) -> None:
    undone: Undone = []

    async def stuck(context: RollbackContext[int]) -> None:
        undone.append((context.name, context.attempt))
        raise OSError("the hotel does not answer")

    async def run(step: WorkflowStep) -> None:
        await step.do("flight", double, 1, rollback=noting(undone))
        await step.do("hotel", double, 1, rollback=Rollback(stuck, retries=1))
        await step.do("car", double, 1, rollback=noting(undone))
        raise DeclinedError("no stock")

    ended = await end(run)

    assert ["car", ("hotel", 1), ("hotel", 2)] == undone
    assert [("car", 1, "completed", 1), ("hotel", 1, "failed", 2)] == ended.rows
    assert ("errored", "failed") == (ended.status.status, ended.rollback.outcome)
    assert "the hotel does not answer" in ended.rollback.error
    assert isinstance(ended.error, DeclinedError)


async def test_a_non_retryable_error_ends_the_retries_of_a_handler(end: Fail) -> None:
    async def run(step: WorkflowStep) -> None:
        await step.do("hotel", double, 1, rollback=decline)
        raise DeclinedError("no stock")

    ended = await end(run)

    assert [("hotel", 1, "failed", 1)] == ended.rows
    assert "failed" == ended.rollback.outcome


async def test_the_timeout_of_a_handler_is_its_own(end: Fail) -> None:
    async def hang(context: RollbackContext[int]) -> None:
        await trio.sleep_forever()

    async def run(step: WorkflowStep) -> None:
        await step.do("hotel", double, 1, rollback=Rollback(hang, retries=0, timeout=0.01))
        raise DeclinedError("no stock")

    ended = await end(run)

    assert "StepTimeoutError" in ended.rollback.error


async def test_how_a_rollback_ended_can_be_asked_with_sql(end: Fail) -> None:
    async def run(step: WorkflowStep) -> None:
        await step.do("hotel", double, 1, rollback=decline)
        raise DeclinedError("no stock")

    ended = await end(
        run, sql="SELECT rollback ->> '$.outcome', rollback ->> '$.error.message' FROM instance"
    )

    assert [("failed", "declined")] == ended.rows


async def test_a_step_of_a_handler_is_refused(end: Fail) -> None:
    async def run(step: WorkflowStep) -> None:
        async def undo(context: RollbackContext[int]) -> None:
            await step.do("inside", double, 1)

        await step.do("hotel", double, 1, rollback=undo)
        raise DeclinedError("no stock")

    ended = await end(run)

    assert "WorkflowCodeError" in ended.rollback.error


# -- bad input ---------------------------------------------------------------------------------


def two(first: int, second: int) -> None:
    """Take what nobody gives it."""


@pytest.mark.parametrize(
    ("handler", "told"),
    [
        (3, "must be a function"),
        (two, "functools.partial"),
        (double(1), "must be a function"),
    ],
    ids=["no function", "two parameters", "a coroutine"],
)
async def test_a_handler_that_cannot_be_called_is_refused_before_its_step(
    end: Fail, handler: Any, told: str
) -> None:
    refused: list[str] = []

    async def run(step: WorkflowStep) -> None:
        try:
            await step.do("hotel", double, 1, rollback=handler)
        except InvalidArgumentError as error:
            refused.append(str(error))

    if hasattr(handler, "close"):
        handler.close()
    ended = await end(run, sql="SELECT name FROM steps")

    assert told in refused[0]
    assert ([], "complete") == (ended.rows, ended.status.status)


@pytest.mark.parametrize("options", [{"retries": -1}, {"timeout": 0}, {"timeout": "soon"}])
def test_options_of_a_handler_are_checked_when_they_are_given(options: Any) -> None:
    with pytest.raises(InvalidArgumentError):
        Rollback(double, **options)
