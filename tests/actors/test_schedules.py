"""When schedules occur: strictly later, never twice, and what becomes of times that a day does not have."""

from __future__ import annotations

import itertools
import zoneinfo
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

import perdure
from perdure import App, Cron, Every, WorkflowEntrypoint, WorkflowEvent, WorkflowStep
from perdure.actors.schedules import jitter_ms, occurrence_id, occurrences, timetable
from perdure.storage.names import check_instance_id

YEAR = datetime(2030, 1, 1, tzinfo=UTC)
ZONES = ("Europe/Paris", "America/New_York", "Australia/Lord_Howe", "UTC")


def over_a_year(schedule: Cron | Every) -> list[datetime]:
    return list(occurrences(timetable(schedule), after=YEAR, until=YEAR + timedelta(days=365)))


def local(moments: Sequence[datetime], tz: str, day: str) -> list[str]:
    zone = zoneinfo.ZoneInfo(tz)
    shown = [moment.astimezone(zone).isoformat() for moment in moments]
    return [each[11:] for each in shown if each.startswith(day)]


@pytest.mark.parametrize(
    ("tz", "spring", "autumn"),
    [("Europe/Paris", "2030-03-31", "2030-10-27"), ("America/New_York", "2030-03-10", "2030-11-03")],
)
def test_a_job_by_the_wall_clock_runs_once_a_day_whatever_the_clocks_do(
    tz: str, spring: str, autumn: str
) -> None:
    offset = {"Europe/Paris": ("+02:00", "+02:00"), "America/New_York": ("-04:00", "-04:00")}[tz]
    gap = over_a_year(Cron("30 2 * * *", tz=tz))
    twice = over_a_year(Cron("30 1 * * *", tz=tz)) if tz == "America/New_York" else gap

    assert 365 == len(gap) == len(twice)
    assert [f"03:00:00{offset[0]}"] == local(gap, tz, spring)
    assert 1 == len(local(twice, tz, autumn))
    assert local(twice, tz, autumn)[0].endswith(offset[1])


@pytest.mark.parametrize("tz", ["Europe/Paris", "America/New_York"])
def test_a_job_of_every_hour_runs_in_each_hour_there_is(tz: str) -> None:
    moments = over_a_year(Cron("15 * * * *", tz=tz))

    assert 365 * 24 == len(moments)
    assert {timedelta(hours=1)} == {b - a for a, b in itertools.pairwise(moments)}


@pytest.mark.parametrize("tz", ["Europe/Paris", "America/New_York"])
def test_six_fields_follow_the_same_rules(tz: str) -> None:
    five, six = over_a_year(Cron("30 2 * * *", tz=tz)), over_a_year(Cron("0 30 2 * * *", tz=tz))

    assert five == six


@given(
    expression=st.sampled_from([
        "30 2 * * *", "0,15,30,45 0-4 * * *", "*/20 * * * *", "10 */3 * * *", "0 9 * * MON-FRI",
        "59 23 L * *", "0 0 1 1 *", "0 12 * * 5#2", "15 10 2 30 3 *",
    ]),
    tz=st.sampled_from(ZONES),
    moment=st.datetimes(datetime(2029, 1, 1), datetime(2031, 1, 1), timezones=st.just(UTC)),
)  # fmt: skip
def test_the_next_is_strictly_later_and_leaves_none_out(expression: str, tz: str, moment: datetime) -> None:
    schedule = Cron(expression, tz=tz)
    first = schedule.next_after(moment)

    assert moment < first
    assert first < schedule.next_after(first)
    assert first == schedule.next_after(first - timedelta(milliseconds=1))


def test_a_moment_on_the_boundary_is_not_its_own_next() -> None:
    assert datetime(2030, 1, 2, 9, tzinfo=UTC) == Cron("0 9 * * *").next_after(
        datetime(2030, 1, 1, 9, tzinfo=UTC)
    )
    assert YEAR + timedelta(minutes=5) == Every("5 minutes").next_after(YEAR)


def test_intervals_stand_on_whole_multiples_since_1970() -> None:
    assert datetime(2030, 1, 1, 1, 30, tzinfo=UTC) == Every("1 hour", offset="30 minutes").next_after(
        YEAR + timedelta(minutes=59)
    )
    assert YEAR + timedelta(hours=2) == Every(timedelta(hours=2)).next_after(YEAR)


def test_what_is_kept_of_a_schedule_occurs_at_the_same_times() -> None:
    for schedule in (Cron("0 9 * * *", tz="Asia/Tokyo"), Every("7 minutes", offset=3)):
        table = timetable(schedule)
        assert schedule.next_after(YEAR) == table.next_after(YEAR)
        assert schedule.text == table.text
    assert "every 5 minutes" == Every(300).text
    assert "every 1 day" == Every(timedelta(days=1)).text


def test_an_id_has_the_cron_expression_and_the_moment_and_stays_addressable() -> None:
    check_instance_id(occurrence_id("*/5 0-12 * JAN,FEB MON#2", 1893488400000))
    check_instance_id(occurrence_id("x" * 256, 1893488400000))


def test_jitter_is_the_same_for_one_moment_and_spread_over_many() -> None:
    late = [jitter_ms("W", "nightly", number, 60_000) for number in range(500)]

    assert late == [jitter_ms("W", "nightly", number, 60_000) for number in range(500)]
    assert all(0 <= each < 60_000 for each in late)
    assert len(set(late)) > 400
    assert 0 == jitter_ms("W", "nightly", 1, 0)


@pytest.mark.parametrize(
    ("bad", "told"),
    [
        (Cron("61 * * * *"), r"'61 \* \* \* \*': .*bad minute"),
        (Cron("* * * *"), "wrong number of fields"),
        (Cron("0 0 30 2 *"), "bad day-of-month"),
        (Cron("0 9 * * *", tz="Europe/Pariss"), "no time zone 'Europe/Pariss'"),
        (Cron("0 9 * * *", tz="../etc/passwd"), "no time zone"),
        (Cron("0 9 * * *", catch_up="two"), "'two' is not one of"),  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType] - what is refused
        (Cron("0 9 * * *", overlap="no"), "'no' is not one of"),  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType] - likewise
        (Cron("0 9 * * *", jitter="5 parsecs"), "not a duration"),
        (Cron("0 9 * * *", id=""), "instance id ''"),
        (Cron("0 9 * * *", id="x" * 257), "at most 256"),
        (Every("0 seconds"), "shorter than 1 s"),
        (Every("soon"), "not a duration"),
        ("0 9 * * *", r"is no schedule: write Cron\('0 9"),
        (Cron("0 8 * * *"), "two are called '0 8"),
    ],
)
def test_one_that_is_not_valid_refuses_all(bad: Any, told: str) -> None:
    class Report(WorkflowEntrypoint):
        schedules: ClassVar[Any] = [Cron("0 8 * * *"), bad]

        async def run(self, event: WorkflowEvent[None], step: WorkflowStep) -> None: ...

    with pytest.raises(perdure.InvalidArgumentError, match=told):
        App([Report])


def test_schedules_are_a_list() -> None:
    class Report(WorkflowEntrypoint):
        schedules: ClassVar[Any] = "0 9 * * *"

        async def run(self, event: WorkflowEvent[None], step: WorkflowStep) -> None: ...

    with pytest.raises(perdure.InvalidArgumentError, match="must be a list"):
        App([Report])
