"""Rollbacks: `terminate(rollback=True)` from every state, and what comes between two handlers."""

from __future__ import annotations

import contextlib
import sqlite3
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import pytest
import trio

from perdure import (
    Instance,
    InstanceDeadError,
    InstanceFailedError,
    InstanceFinishedError,
    InstanceTerminatedError,
    Limits,
    Retries,
    Rollback,
    RollbackContext,
    WorkflowEntrypoint,
    WorkflowEvent,
    WorkflowStep,
)
from perdure.actors.host import Replay
from perdure.testing import VirtualClock, open_test_runtime

QUICK = Limits(idle_grace_s=0.0)
"""What is parked leaves memory at once, so that no handler is there any more when it is needed."""


@pytest.fixture(params=["warm", "always"])
def replay(request: pytest.FixtureRequest) -> Replay:
    return cast("Replay", request.param)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "state"


async def reached(instance: Instance[Any], what: str) -> None:
    """Return when the instance's history has an entry of that text."""
    async with contextlib.aclosing(instance.subscribe()) as story:
        async for entry in story:
            if what == f"{entry.what} {entry.step}":
                return
    raise AssertionError(f"{instance} ended before {what!r}")


async def outcome_of(instance: Instance[Any]) -> tuple[Any, ...]:
    """Wait until the instance has ended; return its status, and how its rollback ended."""
    with contextlib.suppress(InstanceFailedError, InstanceTerminatedError):
        await instance.result()
    status = await instance.status()
    rollback = status.rollback
    return status.status, rollback and rollback.outcome, rollback and rollback.error


class HeldClock(VirtualClock):
    """A virtual clock that never jumps: time passes by `advance` alone."""

    async def wait(self, delay_ms: float | None, changed: trio.Event) -> None:
        await super().wait(None, changed)


class Trip:
    """A workflow that books two things and then waits, and what was undone of it."""

    def __init__(self) -> None:
        self.undone: list[tuple[str, Any, str]] = []
        self.calls = 0
        trip = self

        async def book(number: int) -> int:
            return number * 10

        async def undo(context: RollbackContext[int]) -> None:
            trip.undone.append((context.name, context.output, type(context.error).__name__))

        class Travel(WorkflowEntrypoint):
            async def run(self, event: WorkflowEvent[Any], step: WorkflowStep) -> None:
                trip.calls += 1
                await step.do("flight", book, 1, rollback=undo)
                await step.do("hotel", book, 2, rollback=undo)
                if event.payload == "sleeps":
                    await step.sleep("until the trip", "30 days")
                await step.wait_for_event("home", type="home", timeout=None)
                await step.do("car", book, 3, rollback=undo)
                raise RuntimeError("home too late")

        self.workflow = Travel


ONCE = "the token of a command that is sent again"
BOTH = [("hotel", 20, "InstanceTerminatedError"), ("flight", 10, "InstanceTerminatedError")]
TERMINATED = ("terminated", "complete", None)


# -- terminate with a rollback, from every state -----------------------------------------------


async def test_a_sleeping_instance_is_rolled_back_and_terminated(folder: Path, replay: Replay) -> None:
    trip = Trip()
    async with open_test_runtime(
        folder, workflows=[trip.workflow], replay=replay, clock=HeldClock()
    ) as runtime:
        instance = await runtime.create(trip.workflow, id="a", params="sleeps")
        await reached(instance, "sleep started until the trip")
        await instance.terminate(rollback=True, who="Ada")
        ended = await outcome_of(instance)
        steps = [
            tuple(row) for row in await instance.sql("SELECT kind, name, status FROM steps ORDER BY seq")
        ]
        story = [(entry.what, entry.actor) for entry in await instance.history() if entry.actor]
        with pytest.raises(InstanceFinishedError):
            await instance.terminate(rollback=True)

    assert TERMINATED == ended
    assert BOTH == trip.undone
    assert [
        ("do", "flight", "completed"),
        ("do", "hotel", "completed"),
        ("sleep", "until the trip", "cancelled"),
        ("rollback", "hotel", "completed"),
        ("rollback", "flight", "completed"),
    ] == steps
    assert [
        ("terminate", "Ada"),
        ("instance rolling back", "runtime"),
        ("instance rolled back", "runtime"),
    ] == story


async def test_an_instance_that_left_memory_is_replayed_for_its_handlers(
    folder: Path, replay: Replay
) -> None:
    trip = Trip()
    async with open_test_runtime(folder, workflows=[trip.workflow], replay=replay, limits=QUICK) as runtime:
        instance = await runtime.create(trip.workflow, id="a")
        await reached(instance, "event started home")
        while (await instance.status()).status != "waiting":
            await trio.lowlevel.checkpoint()
        await instance.terminate(rollback=True)

        assert TERMINATED == await outcome_of(instance)
    assert BOTH == trip.undone


async def test_a_paused_instance_is_rolled_back(folder: Path, replay: Replay) -> None:
    trip = Trip()
    async with open_test_runtime(folder, workflows=[trip.workflow], replay=replay) as runtime:
        instance = await runtime.create(trip.workflow, id="a")
        await reached(instance, "event started home")
        await instance.pause()
        await instance.terminate(rollback=True)

        assert TERMINATED == await outcome_of(instance)
    assert BOTH == trip.undone


async def test_an_instance_that_has_not_started_ends_at_once(folder: Path, replay: Replay) -> None:
    trip = Trip()
    async with open_test_runtime(
        folder, workflows=[trip.workflow], replay=replay, clock=HeldClock()
    ) as runtime:
        at = datetime(2040, 1, 1, tzinfo=UTC)
        instance = await runtime.create(trip.workflow, id="a", at=at)
        await instance.terminate(rollback=True)

        assert ("terminated", None, None) == await outcome_of(instance)
    assert (0, []) == (trip.calls, trip.undone)


async def test_a_step_under_way_is_cancelled_and_then_undone(folder: Path, replay: Replay) -> None:
    story: list[Any] = []

    async def book() -> None:
        story.append("starts")
        try:
            await trio.sleep_forever()
        finally:
            story.append("ends")

    async def undo(context: RollbackContext[None]) -> None:
        story.append(("undo", context.output))

    class Slow(WorkflowEntrypoint):
        async def run(self, event: WorkflowEvent[Any], step: WorkflowStep) -> None:
            await step.do("book", book, rollback=undo, timeout="30 days")

    async with open_test_runtime(folder, workflows=[Slow], replay=replay, clock=HeldClock()) as runtime:
        instance = await runtime.create(Slow, id="a")
        await reached(instance, "do started book")
        await instance.terminate(rollback=True)

        assert TERMINATED == await outcome_of(instance)
    assert ["starts", "ends", ("undo", None)] == story


async def test_terminate_without_a_rollback_and_delete_run_no_handler(folder: Path, replay: Replay) -> None:
    trip = Trip()
    async with open_test_runtime(folder, workflows=[trip.workflow], replay=replay) as runtime:
        first = await runtime.create(trip.workflow, id="a")
        await reached(first, "event started home")
        await first.terminate()
        second = await runtime.create(trip.workflow, id="b")
        await reached(second, "event started home")
        await second.delete()

        assert ("terminated", None, None) == await outcome_of(first)
    assert [] == trip.undone


async def test_the_same_command_given_again_changes_nothing(folder: Path, replay: Replay) -> None:
    trip = Trip()
    async with open_test_runtime(folder, workflows=[trip.workflow], replay=replay) as runtime:
        instance = await runtime.create(trip.workflow, id="a")
        await reached(instance, "event started home")
        for _ in range(2):
            await instance.terminate(rollback=True, token=ONCE)
        ended = await outcome_of(instance)
        await instance.terminate(rollback=True, token=ONCE)

    assert TERMINATED == ended
    assert BOTH == trip.undone


# -- what comes between ------------------------------------------------------------------------


class Stubborn:
    """A workflow that fails, and whose handler is told when it may succeed."""

    def __init__(self, attempts: int = 3, delay: str = "1 hour") -> None:
        self.tried: list[int] = []
        self.calls = 0
        self.undone: list[str] = []
        self.under_way = trio.Event()
        self.may_end = trio.Event()
        stubborn = self

        async def book() -> int:
            return 7

        async def undo(context: RollbackContext[int]) -> None:
            stubborn.tried.append(context.attempt)
            if context.attempt < attempts:
                raise OSError("the hotel does not answer")
            stubborn.undone.append(f"{context.name} {context.output}")

        async def hold(context: RollbackContext[int]) -> None:
            stubborn.under_way.set()
            await stubborn.may_end.wait()
            stubborn.undone.append(context.name)

        class Fails(WorkflowEntrypoint):
            async def run(self, event: WorkflowEvent[Any], step: WorkflowStep) -> None:
                stubborn.calls += 1
                await step.do("flight", book, rollback=undo)
                await step.do(
                    "hotel",
                    book,
                    rollback=Rollback(
                        undo, retries=Retries(limit=9, delay=delay, backoff="constant", jitter=0)
                    ),
                )
                if event.payload == "holds":
                    await step.do("car", book, rollback=hold)
                raise RuntimeError("no stock")

        self.workflow = Fails


async def test_a_handler_that_waits_for_its_retry_leaves_memory_and_comes_back(
    folder: Path, replay: Replay
) -> None:
    stubborn = Stubborn()
    clock = VirtualClock()
    async with open_test_runtime(
        folder, workflows=[stubborn.workflow], replay=replay, limits=QUICK, clock=clock
    ) as runtime:
        begun_ms = clock.wall_ms()
        instance = await runtime.create(stubborn.workflow, id="a")
        status, outcome, _ = await outcome_of(instance)
        rollbacks = "SELECT name, attempts FROM steps WHERE kind = 'rollback' ORDER BY seq"
        rows = [tuple(row) for row in await instance.sql(rollbacks)]

    assert ("errored", "complete") == (status, outcome)
    assert [("hotel", 3), ("flight", 3)] == rows
    assert ["hotel 7", "flight 7"] == stubborn.undone
    assert clock.wall_ms() - begun_ms >= 2 * 3_600_000
    assert stubborn.calls > 2


async def test_a_handler_that_a_shutdown_stopped_runs_again_where_it_was(
    folder: Path, replay: Replay
) -> None:
    stubborn = Stubborn(attempts=1)
    async with open_test_runtime(folder, workflows=[stubborn.workflow], replay=replay) as runtime:
        instance = await runtime.create(stubborn.workflow, id="a", params="holds")
        await stubborn.under_way.wait()
        status = await instance.status()
        assert ("running", "rolling back", None) == (status.status, status.reason, status.rollback)
    assert [] == stubborn.undone
    stubborn.may_end.set()
    async with open_test_runtime(folder, workflows=[stubborn.workflow], replay=replay) as runtime:
        instance = await runtime.get(stubborn.workflow, "a")
        assert ("errored", "complete", None) == await outcome_of(instance)
        outcomes = [
            tuple(row) for row in await instance.sql("SELECT outcome FROM attempts WHERE step_seq = 4")
        ]

    assert ["car", "hotel 7", "flight 7"] == stubborn.undone
    assert [("interrupted",), ("completed",)] == outcomes


async def test_a_pause_lets_the_handler_under_way_end_and_starts_no_other(
    folder: Path, replay: Replay
) -> None:
    stubborn = Stubborn(attempts=1)
    async with open_test_runtime(folder, workflows=[stubborn.workflow], replay=replay) as runtime:
        instance = await runtime.create(stubborn.workflow, id="a", params="holds")
        await stubborn.under_way.wait()
        await instance.pause()
        stubborn.may_end.set()
        while (await instance.status()).status != "paused":
            await trio.lowlevel.checkpoint()
        assert ["car"] == stubborn.undone
        await instance.resume()

        assert ("errored", "complete", None) == await outcome_of(instance)
    assert ["car", "hotel 7", "flight 7"] == stubborn.undone


async def test_a_plain_terminate_breaks_a_rollback_off(folder: Path, replay: Replay) -> None:
    stubborn = Stubborn()
    async with open_test_runtime(folder, workflows=[stubborn.workflow], replay=replay) as runtime:
        instance = await runtime.create(stubborn.workflow, id="a", params="holds")
        await stubborn.under_way.wait()
        await instance.terminate()
        status, outcome, error = await outcome_of(instance)

    assert ("terminated", "failed") == (status, outcome)
    assert error is not None
    assert "while it was rolled back" in error
    assert [] == stubborn.undone


async def test_an_event_that_comes_during_a_rollback_stays_undelivered(folder: Path, replay: Replay) -> None:
    stubborn = Stubborn(attempts=1)
    async with open_test_runtime(folder, workflows=[stubborn.workflow], replay=replay) as runtime:
        instance = await runtime.create(stubborn.workflow, id="a", params="holds")
        await stubborn.under_way.wait()
        await instance.send_event("home", {"late": True})
        stubborn.may_end.set()
        await outcome_of(instance)
        events = [tuple(row) for row in await instance.sql("SELECT type, delivered_to FROM events")]

    assert [("home", None)] == events


async def test_a_restart_after_a_rollback_begins_anew(folder: Path, replay: Replay) -> None:
    stubborn = Stubborn(attempts=1)
    async with open_test_runtime(folder, workflows=[stubborn.workflow], replay=replay) as runtime:
        instance = await runtime.create(stubborn.workflow, id="a")
        await outcome_of(instance)
        await instance.restart()
        assert ("errored", "complete", None) == await outcome_of(instance)

    assert 2 * ["hotel 7", "flight 7"] == stubborn.undone


async def test_children_that_are_waited_for_end_with_the_rollback(folder: Path, replay: Replay) -> None:
    undone: list[str] = []

    async def book() -> None:
        return

    async def undo(context: RollbackContext[None]) -> None:
        undone.append(context.name)

    class Driver(WorkflowEntrypoint):
        async def run(self, event: WorkflowEvent[Any], step: WorkflowStep) -> None:
            await step.do("car", book, rollback=undo)
            await step.wait_for_event("home", type="home", timeout=None)

    class Parent(WorkflowEntrypoint):
        async def run(self, event: WorkflowEvent[Any], step: WorkflowStep) -> None:
            await step.do("hotel", book, rollback=undo)
            await step.child(Driver, id="driver")

    async with open_test_runtime(folder, workflows=[Parent, Driver], replay=replay) as runtime:
        parent = await runtime.create(Parent, id="a")
        await reached(parent, "child started Driver")
        await parent.terminate(rollback=True)
        ended = await outcome_of(parent)
        child = await outcome_of(await runtime.get(Driver, "driver"))

    assert TERMINATED == ended
    assert ("terminated", None, None) == child
    assert ["hotel"] == undone


async def test_a_dead_instance_is_rolled_back(folder: Path, replay: Replay) -> None:
    trip = Trip()
    async with open_test_runtime(folder, workflows=[trip.workflow], replay=replay) as runtime:
        await reached(await runtime.create(trip.workflow, id="a"), "event started home")
    with contextlib.closing(sqlite3.connect(folder / "catalog.sqlite")) as catalog:
        catalog.execute("UPDATE _perdure_instances SET crashes = 99, open = 1")  # as deaths leave it
        catalog.commit()
    async with open_test_runtime(folder, workflows=[trip.workflow], replay=replay) as runtime:
        instance = await runtime.get(trip.workflow, "a")
        with pytest.raises(InstanceDeadError):
            await instance.result()
        await instance.terminate(rollback=True)

        assert TERMINATED == await outcome_of(instance)
    assert BOTH == trip.undone
