"""Durations and points in time, as users write them."""

from __future__ import annotations

import enum
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perdure.actors.durations import DURATION_S_MAX, point_in_time, render_duration, seconds
from perdure.errors import InvalidArgumentError, InvalidDurationError


@pytest.mark.parametrize(
    ("expected_s", "value"),
    [
        (5.0, "5 seconds"),
        (1.0, "1 second"),
        (1.0, "1 seconds"),
        (600.0, "10 minutes"),
        (5400.0, "1.5 hours"),
        (86_400.0, "1 day"),
        (1_209_600.0, "2 weeks"),
        (2_592_000.0, "1 month"),
        (31_536_000.0, "1 year"),
        (0.0, "0 seconds"),
        (5.0, 5),
        (0.25, 0.25),
        (0.0, 0),
        (90.5, timedelta(minutes=1, seconds=30.5)),
    ],
)
def test_a_duration_is_read_as_seconds(expected_s: float, value: Any) -> None:
    assert expected_s == seconds(value)


def test_a_member_of_a_text_enum_is_read_as_its_text() -> None:
    class Wait(enum.StrEnum):
        SHORT = "5 seconds"

    assert 5.0 == seconds(Wait.SHORT)


def test_minus_zero_becomes_zero() -> None:
    assert "0.0" == repr(seconds(-0.0))


@pytest.mark.parametrize(
    ("suggestion", "text"),
    [
        ("5 seconds", "5s"),
        ("5 seconds", "5 secs"),
        ("5 minutes", "5m"),
        ("1 minute", "1min"),
        ("5 seconds", "5"),
        ("5 seconds", "5 Seconds"),
        ("5 seconds", "5seconds"),
        ("5 seconds", "5  seconds"),
        ("5 seconds", " 5 seconds"),
        ("5 hours", "5 HRS."),
        ("0.5 days", ".5d"),
        ("0.25 seconds", "250ms"),
        ("2 seconds", "2000 milliseconds"),
    ],
)
def test_a_near_miss_is_refused_with_what_was_likely_meant(suggestion: str, text: str) -> None:
    with pytest.raises(InvalidDurationError) as caught:
        seconds(text)

    assert repr(text) in str(caught.value)
    assert f"did you mean '{suggestion}'?" in str(caught.value)
    seconds(suggestion)


@pytest.mark.parametrize("text", ["1 hour 30 minutes", "1h30m", "1 day, 2 hours"])
def test_a_compound_form_is_refused_and_points_to_timedelta(text: str) -> None:
    with pytest.raises(InvalidDurationError, match="more than one part.*timedelta"):
        seconds(text)


@pytest.mark.parametrize(
    "text", ["", "soon", "5 fortnights", "five seconds", "1e3 seconds", "1_000 seconds", "٥ seconds"]
)
def test_a_text_of_another_form_is_refused_and_the_units_are_named(text: str) -> None:
    with pytest.raises(
        InvalidDurationError, match="second.*minute.*hour.*day.*week.*month.*30 days.*year.*365 days"
    ):
        seconds(text)


@pytest.mark.parametrize("value", [-1, -0.5, "-5 seconds", timedelta(seconds=-1), float("-inf")])
def test_a_negative_duration_is_refused(value: Any) -> None:
    with pytest.raises(InvalidDurationError, match="negative|finite"):
        seconds(value)


@pytest.mark.parametrize(
    "value", [float("nan"), float("inf"), True, False, None, Decimal(5), b"5 seconds", [5]]
)
def test_what_is_not_a_finite_number_of_seconds_is_refused(value: Any) -> None:
    with pytest.raises(InvalidDurationError, match="is not a duration"):
        seconds(value)


@pytest.mark.parametrize(
    "value", ["1001 years", DURATION_S_MAX * 1.01, 10**400, "9" * 400 + " years", timedelta.max]
)
def test_a_duration_beyond_a_thousand_years_is_refused(value: Any) -> None:
    with pytest.raises(InvalidDurationError, match=r"1000 years|finite"):
        seconds(value)


def test_the_error_is_an_invalid_argument_and_a_value_error() -> None:
    with pytest.raises(InvalidArgumentError):
        seconds("5x")
    with pytest.raises(ValueError):
        seconds("5x")


@given(st.text())
def test_any_text_gives_a_bounded_number_or_the_one_error(text: str) -> None:
    try:
        value_s = seconds(text)
    except InvalidDurationError:
        return
    assert 0 <= value_s <= DURATION_S_MAX


# -- points in time ------------------------------------------------------------------------


def test_a_point_in_time_is_milliseconds_since_the_epoch_in_any_zone() -> None:
    assert 0 == point_in_time(datetime(1970, 1, 1, tzinfo=UTC))
    assert 0 == point_in_time(datetime(1970, 1, 1, 5, 30, tzinfo=timezone(timedelta(hours=5, minutes=30))))


def test_a_part_of_a_millisecond_is_rounded_up() -> None:
    assert 1 == point_in_time(datetime(1970, 1, 1, microsecond=1, tzinfo=UTC))


def test_the_ends_of_the_calendar_have_a_point_in_time() -> None:
    point_in_time(datetime.min.replace(tzinfo=timezone(timedelta(hours=14))))
    point_in_time(datetime.max.replace(tzinfo=timezone(timedelta(hours=-12))))


def test_a_datetime_without_a_zone_is_refused_with_advice() -> None:
    with pytest.raises(InvalidDurationError, match=r"no time zone.*datetime\.now\(UTC\)"):
        point_in_time(datetime(2030, 1, 1))


@pytest.mark.parametrize("value", [0, "2030-01-01", date(2030, 1, 1), None])
def test_what_is_not_a_datetime_is_no_point_in_time(value: Any) -> None:
    with pytest.raises(InvalidDurationError, match="is not a point in time"):
        point_in_time(value)


@given(st.datetimes(timezones=st.just(UTC)))
def test_a_point_in_time_is_never_early_and_less_than_a_millisecond_late(value: datetime) -> None:
    late = timedelta(milliseconds=point_in_time(value)) - (value - datetime(1970, 1, 1, tzinfo=UTC))
    assert timedelta(0) <= late < timedelta(milliseconds=1)


# -- rendering -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("expected", "ms"),
    [
        ("0 s", 0),
        ("7 ms", 7),
        ("999 ms", 999),
        ("1 s", 1_000),
        ("1.5 s", 1_540),
        ("59.9 s", 59_999),
        ("1 min", 60_000),
        ("1 min 30 s", 90_000),
        ("59 min 59 s", 3_599_999),
        ("1 h", 3_600_000),
        ("1 h 59 min", 7_199_000),
        ("2 d 3 h", 183_600_000),
        ("400 d", 400 * 86_400_000),
        ("-1 min 30 s", -90_000),
    ],
)
def test_a_duration_is_rendered_for_people(expected: str, ms: int) -> None:
    assert expected == render_duration(ms)
