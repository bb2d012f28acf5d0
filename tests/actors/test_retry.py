"""When a failed step runs again."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from typing import Any

import msgspec
import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from perdure.actors.retry import (
    DEFAULT_CONFIG,
    Retries,
    StepConfig,
    backoff_delay_s,
    base_delay_s,
    config_json,
    qualified_name,
    resolve_config,
)
from perdure.errors import InvalidArgumentError, InvalidDurationError, RetryDelayError


def middle() -> float:
    return 0.5


def after_a_minute(context: object, error: BaseException) -> str:
    return "1 minute"


# -- options -------------------------------------------------------------------------------


def test_by_default_a_step_retries_five_times_from_ten_seconds_doubling_and_has_ten_minutes() -> None:
    config = resolve_config()

    assert 5 == config.retries.limit
    assert "10 seconds" == config.retries.delay
    assert "exponential" == config.retries.backoff
    assert config.retries.jitter > 0
    assert 600.0 == config.timeout_s
    assert config.heartbeat_timeout_s is None
    assert config.sensitive is None


def test_a_call_without_options_gets_the_default_config_itself() -> None:
    assert DEFAULT_CONFIG is resolve_config()
    assert DEFAULT_CONFIG is resolve_config(None, None, None, None)


def test_an_int_is_a_number_of_retries() -> None:
    assert Retries(limit=0) == resolve_config(retries=0).retries
    assert Retries(limit=7) == resolve_config(7).retries


def test_given_options_are_kept_as_written() -> None:
    retries = Retries(limit=2, delay=timedelta(seconds=3), backoff="linear")

    config = resolve_config(retries, "2 minutes", 30, "both")

    assert StepConfig(retries=retries, timeout="2 minutes", heartbeat_timeout=30, sensitive="both") == config
    assert 120.0 == config.timeout_s
    assert 30.0 == config.heartbeat_timeout_s


@pytest.mark.parametrize("limit", [-1, 1.5, "3", None, True])
def test_a_limit_that_is_not_a_whole_number_from_zero_is_refused(limit: Any) -> None:
    with pytest.raises(InvalidArgumentError, match=r"limit=.*must be a whole number, 0 or more"):
        Retries(limit=limit)


@pytest.mark.parametrize("retries", [-1, 1.5, "3", True, {"limit": 3}])
def test_retries_that_are_neither_a_record_nor_a_count_are_refused(retries: Any) -> None:
    with pytest.raises(InvalidArgumentError, match=r"retries=.*must be a Retries, or a whole number"):
        resolve_config(retries=retries)


@pytest.mark.parametrize("jitter", [-0.1, 1.1, math.nan, "0.1", True])
def test_jitter_that_is_not_a_fraction_is_refused(jitter: Any) -> None:
    with pytest.raises(InvalidArgumentError, match=r"jitter=.*fraction from 0 to 1"):
        Retries(jitter=jitter)


@pytest.mark.parametrize("backoff", ["doubling", "Exponential", None, []])
def test_an_unknown_backoff_is_refused_and_the_known_ones_are_listed(backoff: Any) -> None:
    with pytest.raises(InvalidArgumentError, match="'constant', 'linear', 'exponential'"):
        Retries(backoff=backoff)


def test_a_bad_duration_is_refused_and_the_option_is_named() -> None:
    with pytest.raises(InvalidDurationError, match=r"delay=.*did you mean '5 seconds'"):
        Retries(delay="5s")
    with pytest.raises(InvalidDurationError, match="delay_max="):
        Retries(delay_max="soon")
    with pytest.raises(InvalidDurationError, match="^timeout="):
        resolve_config(timeout="10m")
    with pytest.raises(InvalidDurationError, match="^heartbeat_timeout="):
        resolve_config(heartbeat_timeout=math.nan)


@pytest.mark.parametrize("option", ["timeout", "heartbeat_timeout"])
@pytest.mark.parametrize("value", [0, "0 seconds", timedelta(0)])
def test_a_timeout_of_nothing_is_refused(option: str, value: Any) -> None:
    with pytest.raises(InvalidArgumentError, match=f"{option}.*longer than 0"):
        resolve_config(**{option: value})


def test_an_unknown_sensitive_is_refused() -> None:
    sensitive: Any = True
    with pytest.raises(InvalidArgumentError, match="'input', 'output', 'both'"):
        resolve_config(sensitive=sensitive)


def test_a_longest_delay_below_the_delay_is_refused() -> None:
    with pytest.raises(InvalidArgumentError, match="delay_max must not be shorter than delay"):
        Retries(delay="2 minutes", delay_max="1 minute")


def test_a_changed_copy_is_checked_too() -> None:
    with pytest.raises(InvalidArgumentError):
        msgspec.structs.replace(Retries(), limit=-1)


# -- delays --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("expected", "backoff"),
    [
        ([10.0, 10.0, 10.0, 10.0], "constant"),
        ([10.0, 20.0, 30.0, 40.0], "linear"),
        ([10.0, 20.0, 40.0, 80.0], "exponential"),
    ],
)
def test_a_delay_grows_as_its_backoff_says(expected: list[float], backoff: Any) -> None:
    retries = Retries(delay=10, backoff=backoff)

    assert expected == [backoff_delay_s(retries, attempt, 10.0, middle) for attempt in (1, 2, 3, 4)]


def test_a_delay_stops_growing_at_the_longest_delay() -> None:
    assert 3_600.0 == backoff_delay_s(Retries(), 30, 10.0, middle)
    assert 60.0 == backoff_delay_s(Retries(delay_max="1 minute"), 30, 10.0, middle)


def test_a_delay_longer_than_an_hour_is_kept() -> None:
    retries = Retries(delay="2 hours")

    assert 7_200.0 == backoff_delay_s(retries, 1, 7_200.0, middle)
    assert 7_200.0 == backoff_delay_s(retries, 5, 7_200.0, middle)


def test_jitter_lengthens_and_shortens_a_delay_by_its_fraction() -> None:
    retries = Retries(delay=10, jitter=0.5)

    assert 5.0 == backoff_delay_s(retries, 1, 10.0, lambda: 0.0)
    assert 15.0 == backoff_delay_s(retries, 1, 10.0, lambda: 1.0)


def test_at_the_longest_delay_jitter_only_shortens() -> None:
    retries = Retries(delay=10, delay_max=10, jitter=0.5)

    assert 5.0 == backoff_delay_s(retries, 1, 10.0, lambda: 0.0)
    assert 7.5 == backoff_delay_s(retries, 1, 10.0, lambda: 0.75)


@given(
    backoff=st.sampled_from(["constant", "linear", "exponential"]),
    attempt=st.integers(1, 10_000),
    base_s=st.floats(0, 10_000_000),
    jitter=st.floats(0, 1),
    drawn=st.floats(0, 1, exclude_max=True),
)
def test_every_delay_is_finite_and_within_its_bounds(
    backoff: Any, attempt: int, base_s: float, jitter: float, drawn: float
) -> None:
    retries = Retries(delay=base_s, backoff=backoff, jitter=jitter)

    assert 0 <= backoff_delay_s(retries, attempt, base_s, lambda: drawn) <= retries.delay_max_s


def test_the_answer_of_a_delay_function_is_taken_as_it_is() -> None:
    retries = Retries(delay=after_a_minute, jitter=1.0)

    assert 7_200.0 == backoff_delay_s(retries, 9, 7_200.0, lambda: 0.1)


# -- delay functions -----------------------------------------------------------------------


async def test_the_base_delay_comes_from_the_record_or_its_function() -> None:
    async def twice_the_code(context: object, error: BaseException) -> timedelta:
        await trio.lowlevel.checkpoint()
        return timedelta(seconds=2 * error.args[0])

    assert 10.0 == await base_delay_s(Retries(), None, ValueError(7), timeout_s=5)
    assert 60.0 == await base_delay_s(Retries(delay=after_a_minute), None, ValueError(7), timeout_s=5)
    assert 14.0 == await base_delay_s(Retries(delay=twice_the_code), None, ValueError(7), timeout_s=5)


async def test_a_delay_function_is_given_the_context_and_the_error() -> None:
    given: list[object] = []

    def recording(context: object, error: BaseException) -> int:
        given.extend((context, error))
        return 1

    error = ValueError("x")
    await base_delay_s(Retries(delay=recording), "context", error, timeout_s=5)

    assert ["context", error] == given


async def test_a_delay_function_that_raises_is_reported_with_its_cause() -> None:
    def broken(context: object, error: BaseException) -> int:
        raise KeyError("retry-after")

    with pytest.raises(RetryDelayError, match=r"broken raised KeyError\('retry-after'\)") as caught:
        await base_delay_s(Retries(delay=broken), None, ValueError(), timeout_s=5)
    assert isinstance(caught.value.__cause__, KeyError)


@pytest.mark.parametrize("answer", [None, "5s", -1, True])
async def test_a_delay_function_that_answers_no_duration_is_reported(answer: Any) -> None:
    def confused(context: object, error: BaseException) -> Any:
        return answer

    with pytest.raises(RetryDelayError, match=r"confused returned no duration"):
        await base_delay_s(Retries(delay=confused), None, ValueError(), timeout_s=5)


def test_a_delay_function_that_hangs_is_given_up() -> None:
    async def hanging(context: object, error: BaseException) -> int:
        await trio.sleep_forever()
        raise AssertionError

    async def main() -> None:
        with pytest.raises(RetryDelayError, match="hanging took longer than 5 s"):
            await base_delay_s(Retries(delay=hanging), None, ValueError(), timeout_s=5)
        assert 5.0 == trio.current_time() - started

    clock = trio.testing.MockClock(autojump_threshold=0)
    started = clock.current_time()
    trio.run(main, clock=clock)


async def test_cancelling_while_a_delay_function_runs_stays_a_cancellation() -> None:
    async def hanging(context: object, error: BaseException) -> int:
        scope.cancel()
        await trio.sleep_forever()
        raise AssertionError

    with trio.CancelScope() as scope:
        await base_delay_s(Retries(delay=hanging), None, ValueError(), timeout_s=5)
    assert scope.cancelled_caught


# -- what the journal shows ----------------------------------------------------------------


def test_the_journal_shows_every_option() -> None:
    shown = json.loads(
        config_json(resolve_config(Retries(delay=timedelta(minutes=1)), "2 hours", 30, "input"))
    )

    assert {
        "retries": {"limit": 5, "delay": 60.0, "backoff": "exponential", "delay_max": None, "jitter": 0.1},
        "timeout": "2 hours",
        "heartbeat_timeout": 30,
        "sensitive": "input",
    } == shown


def test_the_text_of_the_default_config_is_made_once() -> None:
    assert config_json(DEFAULT_CONFIG) is config_json(resolve_config())
    assert config_json(DEFAULT_CONFIG) == config_json(StepConfig())


def test_a_delay_function_is_shown_by_its_qualified_name() -> None:
    shown = json.loads(config_json(resolve_config(Retries(delay=after_a_minute))))

    assert f"{__name__}.after_a_minute" == shown["retries"]["delay"]


def test_partials_and_callable_objects_have_a_qualified_name() -> None:
    class Answer:
        def __call__(self) -> None: ...

    nested: Callable[..., Any] = partial(partial(after_a_minute, 1), error=ValueError())

    assert f"{__name__}.after_a_minute" == qualified_name(nested)
    assert qualified_name(Answer()).endswith("Answer")
    assert "builtins.len" == qualified_name(len)
