"""Schedules in a runtime: instances come on time, once, across restarts, by their policies."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import AsyncGenerator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, ClassVar

import pytest

import perdure
from perdure import Cron, Every, Runtime, WorkflowEntrypoint, WorkflowEvent, WorkflowStep
from perdure.testing import VirtualClock, open_test_runtime

START = datetime(2030, 1, 1, tzinfo=UTC)
HOUR = timedelta(hours=1)
REPLAYS = ("warm", "always")


def scheduled(*schedules: Cron | Every, works: str = "0 seconds") -> type[Any]:
    class Report(WorkflowEntrypoint):
        async def run(self, event: WorkflowEvent[str | None], step: WorkflowStep) -> list[str | None]:
            await step.sleep("work", works)
            assert event.schedule is not None
            return [event.schedule.cron, event.schedule.scheduled_at.isoformat(), event.payload]

    Report.schedules = list(schedules)
    return Report


class Until(WorkflowEntrypoint):
    async def run(self, event: WorkflowEvent[datetime], step: WorkflowStep) -> None:
        await step.sleep_until("until", event.payload)


@contextlib.asynccontextmanager
async def opened(
    path: Path, cls: type, clock: VirtualClock, replay: Any = "always"
) -> AsyncGenerator[Runtime]:
    async with open_test_runtime(path, workflows=[cls, Until], clock=clock, replay=replay) as runtime:
        yield runtime


async def pass_until(runtime: Runtime, when: datetime) -> None:
    """Let virtual time pass until then."""
    await (await runtime.create(Until, params=when)).result()


def times_of(runtime: Runtime) -> list[datetime]:
    ids = [row.id for row in runtime.rows(workflow="Report")]
    return sorted(datetime.fromtimestamp(int(id_.rpartition("-")[2]) / 1000, UTC) for id_ in ids)


def hours(*numbers: int) -> list[datetime]:
    return [START + number * HOUR for number in numbers]


@pytest.mark.parametrize("replay", REPLAYS)
async def test_instances_come_on_time_and_know_why(tmp_path: Path, replay: Any) -> None:
    cls, clock = scheduled(Every("1 hour", id="hourly", params="p")), VirtualClock(start=START)
    async with opened(tmp_path, cls, clock, replay) as runtime:
        await pass_until(runtime, START + 3.5 * HOUR)
        assert hours(1, 2, 3) == times_of(runtime)
        first: perdure.Instance[Any] = await runtime.get(
            cls, f"hourly-{round((START + HOUR).timestamp() * 1000)}"
        )
        assert ["every 1 hour", (START + HOUR).isoformat(), "p"] == await first.result()
        assert START + HOUR == (await first.status()).created_at


async def test_a_cron_expression_names_its_instances(tmp_path: Path) -> None:
    cls, clock = scheduled(Cron("0 9 * * *", tz="Europe/Paris")), VirtualClock(start=START)
    async with opened(tmp_path, cls, clock) as runtime:
        await pass_until(runtime, START + 10 * HOUR)
        instance: perdure.Instance[Any] = await runtime.get(cls, "0 9 * * *-1893484800000")
        assert ["0 9 * * *", "2030-01-01T08:00:00+00:00", None] == await instance.result()


@pytest.mark.parametrize(("catch_up", "made_up_for"), [("skip", []), ("one", [5]), ("all", [2, 3, 4, 5])])
async def test_what_was_missed_is_for_the_policy(
    tmp_path: Path, catch_up: Any, made_up_for: Sequence[int]
) -> None:
    cls, clock = scheduled(Every("1 hour", catch_up=catch_up)), VirtualClock(start=START)
    async with opened(tmp_path, cls, clock) as runtime:
        await pass_until(runtime, START + 1.5 * HOUR)
    clock.advance(4 * 3600)
    async with opened(tmp_path, cls, clock) as runtime:
        await pass_until(runtime, START + 6.5 * HOUR)
        assert hours(1, *made_up_for, 6) == times_of(runtime)


async def test_a_restart_a_moment_late_misses_nothing(tmp_path: Path) -> None:
    cls, clock = scheduled(Every("1 hour", catch_up="skip")), VirtualClock(start=START)
    async with opened(tmp_path, cls, clock):
        pass
    clock.advance(3630)
    async with opened(tmp_path, cls, clock) as runtime:
        await pass_until(runtime, START + 1.5 * HOUR)
        assert hours(1) == times_of(runtime)


@pytest.mark.parametrize(
    ("overlap", "created"), [("allow", [1, 2, 3, 4]), ("skip", [1, 4]), ("queue", [1, 2])]
)
async def test_what_overlaps_is_for_the_policy(tmp_path: Path, overlap: Any, created: Sequence[int]) -> None:
    cls = scheduled(Every("1 hour", overlap=overlap), works="150 minutes")
    clock = VirtualClock(start=START)
    async with opened(tmp_path, cls, clock) as runtime:
        await pass_until(runtime, START + 4.5 * HOUR)
        assert hours(*created) == times_of(runtime)


async def test_with_queue_each_comes_after_the_one_before(tmp_path: Path) -> None:
    cls = scheduled(Every("1 hour", overlap="queue", catch_up="skip"), works="90 minutes")
    clock = VirtualClock(start=START)
    async with opened(tmp_path, cls, clock) as runtime:
        await pass_until(runtime, START + 5.2 * HOUR)
        assert hours(1, 2, 3) == times_of(runtime)
        starts = sorted(row.created_at_ms for row in runtime.rows(workflow="Report"))
        assert [90 * 60_000, 90 * 60_000] == [b - a for a, b in itertools.pairwise(starts)]


async def test_jitter_delays_a_start_and_not_the_occurrence(tmp_path: Path) -> None:
    cls, clock = scheduled(Every("1 hour", jitter="30 minutes")), VirtualClock(start=START)
    async with opened(tmp_path, cls, clock) as runtime:
        await pass_until(runtime, START + 4.9 * HOUR)
        assert hours(1, 2, 3, 4) == times_of(runtime)
        late = {
            (row.started_at_ms or 0) - int(row.id.rpartition("-")[2])
            for row in runtime.rows(workflow="Report")
        }
        assert len(late) > 1
        assert all(0 <= each_ms < 30 * 60_000 for each_ms in late)


async def test_a_paused_schedule_creates_nothing_and_makes_up_for_nothing(tmp_path: Path) -> None:
    cls, clock = scheduled(Every("1 hour", catch_up="all")), VirtualClock(start=START)
    async with opened(tmp_path, cls, clock) as runtime:
        await pass_until(runtime, START + 1.5 * HOUR)
        assert (await runtime.pause_schedule("every 1 hour")).paused
    clock.advance(2 * 3600)
    async with opened(tmp_path, cls, clock) as runtime:
        assert [None] == [each.next_at for each in runtime.schedules()]
        status = await runtime.resume_schedule("Report/every 1 hour")
        assert START + 4 * HOUR == status.next_at
        await pass_until(runtime, START + 4.5 * HOUR)
        assert hours(1, 4) == times_of(runtime)


async def test_a_schedule_at_other_times_makes_up_for_nothing_and_one_that_is_gone_is_forgotten(
    tmp_path: Path,
) -> None:
    clock = VirtualClock(start=START)
    before = scheduled(Every("1 hour", id="a", catch_up="all"), Every("1 day", id="b"))
    async with opened(tmp_path, before, clock) as runtime:
        assert ["a", "b"] == [each.id for each in runtime.schedules()]
    clock.advance(5 * 3600)
    after = scheduled(Every("2 hours", id="a", catch_up="all"))
    async with opened(tmp_path, after, clock) as runtime:
        await pass_until(runtime, START + 6.5 * HOUR)
        assert hours(6) == times_of(runtime)
        assert ["a"] == [each.id for each in runtime.schedules()]


async def test_a_policy_that_changes_keeps_the_place(tmp_path: Path) -> None:
    clock = VirtualClock(start=START)
    async with opened(tmp_path, scheduled(Every("1 hour", catch_up="skip")), clock):
        pass
    clock.advance(3 * 3600 + 1800)
    cls = scheduled(Every("1 hour", catch_up="all"))
    async with opened(tmp_path, cls, clock) as runtime:
        await pass_until(runtime, START + 4.5 * HOUR)
        assert hours(1, 2, 3, 4) == times_of(runtime)


async def test_a_wall_clock_that_is_set_back_repeats_nothing(tmp_path: Path) -> None:
    cls, clock = scheduled(Every("1 hour")), VirtualClock(start=START)
    async with opened(tmp_path, cls, clock) as runtime:
        await pass_until(runtime, START + 2.5 * HOUR)
        clock.set_wall(START)
        await pass_until(runtime, START + 3.5 * HOUR)
        assert hours(1, 2, 3) == times_of(runtime)


async def test_a_backfill_creates_what_is_missing_once(tmp_path: Path) -> None:
    cls, clock = scheduled(Every("1 hour", params="p")), VirtualClock(start=START)
    async with opened(tmp_path, cls, clock) as runtime:
        stretch = (START - 3 * HOUR, START - HOUR)
        planned = await runtime.backfill("every 1 hour", *stretch, dry_run=True)
        assert [] == runtime.rows()
        created = await runtime.backfill("every 1 hour", *stretch)
        assert [each.id for each in planned] == [each.id for each in created]
        assert hours(-3, -2, -1) == times_of(runtime)
        assert [] == await runtime.backfill("every 1 hour", *stretch)
        assert ["every 1 hour", stretch[0].isoformat(), "p"] == await created[0].result()


@pytest.mark.parametrize(
    ("name", "stretch", "told"),
    [
        ("nightly", (START, START), "no schedule 'nightly'; there are: 'Report/every 1 hour'"),
        ("every 1 hour", (START, START - HOUR), "goes backwards"),
        ("every 1 hour", (START, START + 200_000 * HOUR), "more than 100,000"),
        ("every 1 hour", (START.replace(tzinfo=None), START), "time zone"),
    ],
)
async def test_a_backfill_that_makes_no_sense_is_refused(
    tmp_path: Path, name: str, stretch: tuple[datetime, datetime], told: str
) -> None:
    async with open_test_runtime(tmp_path, workflows=[scheduled(Every("1 hour"))]) as runtime:
        with pytest.raises(perdure.InvalidArgumentError, match=told):
            await runtime.backfill(name, *stretch)
        assert [] == runtime.rows()


async def test_params_that_no_instance_could_have_are_refused_with_the_app() -> None:
    class Typed(WorkflowEntrypoint):
        schedules: ClassVar[Sequence[Cron | Every]] = [Cron("0 9 * * *", params="seven")]

        async def run(self, event: WorkflowEvent[int], step: WorkflowStep) -> None: ...

    with pytest.raises(perdure.InvalidParamsError, match=r"schedule '0 9 \* \* \*' of Typed"):
        perdure.App([Typed])
