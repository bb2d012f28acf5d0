"""Schedules (cases 112 to 117)."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest

from perdure import App, Cron, InvalidArgumentError, Runtime, WorkflowEntrypoint, WorkflowEvent, WorkflowStep
from perdure.testing import VirtualClock, open_test_runtime

Replay = Literal["warm", "always"]
NINE = "0 9 * * *"


class Report(WorkflowEntrypoint):
    """Tells what its event says of the schedule."""

    schedules: ClassVar[Sequence[Any]] = [Cron(NINE, params="daily")]

    async def run(self, event: WorkflowEvent[str | None], step: WorkflowStep) -> list[Any]:
        schedule = event.schedule
        assert schedule is not None
        return [schedule.cron, schedule.scheduled_at.isoformat(), event.payload]


class Until(WorkflowEntrypoint):
    """Sleeps until a moment, so that time passes."""

    async def run(self, event: WorkflowEvent[datetime], step: WorkflowStep) -> None:
        await step.sleep_until("then", event.payload)


def day(number: int, hour: int = 9) -> datetime:
    return datetime(2030, 1, number, hour, tzinfo=UTC)


def id_of(moment: datetime) -> str:
    return f"{NINE}-{round(moment.timestamp() * 1000)}"


def open_at(folder: Path, moment: datetime, replay: Replay = "warm") -> AbstractAsyncContextManager[Runtime]:
    return open_test_runtime(
        folder, workflows=[Report, Until], clock=VirtualClock(start=moment), replay=replay
    )


async def until(runtime: Runtime, moment: datetime) -> None:
    await (await runtime.create(Until, params=moment)).result()


async def ids(runtime: Runtime) -> list[str]:
    return sorted(instance.id for instance in await runtime.list(Report))


async def test_case_112_on_the_boundary_the_next_occurrence_is_strictly_later(folder: Path) -> None:
    async with open_at(folder, day(1)) as runtime:
        (schedule,) = runtime.schedules()
        assert day(2) == schedule.next_at
        await until(runtime, day(1, 10))
        assert [] == await ids(runtime)


async def test_case_113_a_declared_schedule_has_its_next_moment_and_has_not_run(folder: Path) -> None:
    async with open_at(folder, day(1, 8)) as runtime:
        (schedule,) = runtime.schedules()  # adapted: a row of the schedule, no queued instance, tells it
        assert (NINE, day(1)) == (schedule.id, schedule.next_at)
        assert [] == await ids(runtime)
        await until(runtime, day(1, 10))
        assert [id_of(day(1))] == await ids(runtime)


async def test_case_114_declaring_a_schedule_twice_makes_no_double(folder: Path) -> None:
    for _ in range(2):
        async with open_at(folder, day(1, 8)) as runtime:
            assert 1 == len(runtime.schedules())
            await until(runtime, day(1, 10))
    async with open_at(folder, day(1, 10)) as runtime:
        assert [id_of(day(1))] == await ids(runtime)


async def test_case_115_and_116_each_firing_is_its_own_instance_and_knows_its_schedule(
    folder: Path, replay: Replay
) -> None:
    async with open_at(folder, day(1, 8), replay) as runtime:
        await until(runtime, day(3, 10))
        assert [id_of(day(number)) for number in (1, 2, 3)] == await ids(runtime)
        results = [await (await runtime.get(Report, id_)).result() for id_ in await ids(runtime)]
    assert [[NINE, day(number).isoformat(), "daily"] for number in (1, 2, 3)] == results


async def test_case_117_an_invalid_expression_among_several_refuses_all() -> None:
    class Wrong(WorkflowEntrypoint):
        schedules: ClassVar[Sequence[Any]] = [Cron(NINE), Cron("61 * * * *")]

        async def run(self, event: WorkflowEvent[None], step: WorkflowStep) -> None: ...

    with pytest.raises(InvalidArgumentError, match="61"):
        App(workflows=[Wrong])


async def test_case_117_an_invalid_schedule_among_several_refuses_the_app() -> None:
    class Wrong(WorkflowEntrypoint):
        schedules: ClassVar[Sequence[Any]] = [Cron(NINE, params="text"), Cron("0 8 * * *", params=8)]

        async def run(self, event: WorkflowEvent[str], step: WorkflowStep) -> None: ...

    with pytest.raises(InvalidArgumentError, match="0 8"):
        App(workflows=[Wrong])
