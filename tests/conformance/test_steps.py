"""Cases 1 to 16 and 26 to 36: attempts, counts and options of steps, limits, bytes, sensitive results."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from perdure import (
    Instance,
    LimitExceededError,
    Limits,
    NonRetryableError,
    Retries,
    StepConfig,
    StepContext,
    StepStream,
    WorkflowEntrypoint,
    WorkflowEvent,
    WorkflowStep,
)
from perdure.testing import open_test_runtime

Play = Callable[..., Awaitable[Any]]
ATTEMPTS = "SELECT attempt, outcome, error FROM attempts ORDER BY step_seq, attempt"
SHOWN = "SELECT name, status, output, output_bytes, error, sensitive FROM steps ORDER BY seq"
SAID = "open sesame"
STEPS_TRIED = 10_001
"""One more than the peer allows where nothing is configured."""


class Flaky:
    """A step function that fails in its first attempts and keeps what it saw."""

    def __init__(self, failures: float, error: Exception | None = None) -> None:
        self.failures = failures
        self.error = error or ConnectionError("try again")
        self.contexts: list[StepContext] = []

    @property
    def attempts(self) -> list[int]:
        return [context.attempt for context in self.contexts]

    async def __call__(self, context: StepContext) -> str:
        self.contexts.append(context)
        if len(self.contexts) <= self.failures:
            raise self.error
        return f"attempt {context.attempt}"


ALWAYS = float("inf")


# -- attempts ----------------------------------------------------------------------------------


async def test_case_001_a_step_that_succeeds_at_once_saw_attempt_1(play: Play) -> None:
    work = Flaky(0)

    async def run(step: WorkflowStep) -> str:
        return await step.do("work", work)

    played = await play(run)

    assert ("attempt 1", [1]) == (played.result, work.attempts)


async def test_case_002_limit_2_makes_exactly_the_attempts_1_2_and_3_and_the_instance_fails(
    play: Play,
) -> None:
    work = Flaky(ALWAYS)

    async def run(step: WorkflowStep) -> str:
        return await step.do("work", work, retries=Retries(limit=2, delay=0))

    played = await play(run)

    assert [1, 2, 3] == work.attempts
    assert isinstance(played.error, ConnectionError)


async def test_case_003_limit_1_and_a_constant_second_makes_two_attempts_a_second_apart(play: Play) -> None:
    work = Flaky(ALWAYS)

    async def run(step: WorkflowStep) -> str:
        return await step.do(
            "work", work, retries=Retries(limit=1, delay="1 second", backoff="constant", jitter=0)
        )

    played = await play(run)

    assert [1, 2] == work.attempts
    assert 1 <= played.passed_s <= 1.5
    assert isinstance(played.error, ConnectionError)


async def test_case_004_on_the_tests_clock_three_attempts_run_without_waiting(play: Play) -> None:
    work = Flaky(2)

    async def run(step: WorkflowStep) -> str:
        return await step.do("work", work, retries=Retries(limit=2, delay="1 year"))

    played = await play(run)

    assert ("attempt 3", [1, 2, 3]) == (played.result, work.attempts)
    assert played.took_s < 60 < 365 * 86_400 < played.passed_s


# -- what the context says ---------------------------------------------------------------------


async def test_case_005_the_context_carries_the_steps_name_and_count_1(play: Play) -> None:
    work = Flaky(0)

    async def run(step: WorkflowStep) -> str:
        return await step.do("send the letter", work)

    await play(run)

    (context,) = work.contexts
    assert ("send the letter", 1) == (context.step.name, context.step.count)


async def test_case_006_a_name_used_three_times_counts_1_2_3_and_stores_three_results(play: Play) -> None:
    work = Flaky(0)

    async def run(step: WorkflowStep) -> list[str]:
        return [await step.do("same", work) for _ in range(3)]

    played = await play(run)

    assert [1, 2, 3] == [context.step.count for context in work.contexts]
    assert [("same", count, "do", "completed", 1) for count in (1, 2, 3)] == played.rows
    assert ["attempt 1"] * 3 == played.result


async def test_case_007_without_options_the_context_shows_the_documented_defaults(play: Play) -> None:
    work = Flaky(0)

    async def run(step: WorkflowStep) -> str:
        return await step.do("work", work)

    played = await play(run, sql="SELECT config FROM steps")

    retries = Retries(limit=5, delay="10 seconds", backoff="exponential", delay_max=None, jitter=0.1)
    documented = StepConfig(retries=retries, timeout="10 minutes", heartbeat_timeout=None, sensitive=None)
    assert documented == work.contexts[0].config
    assert [(None,)] == played.rows  # nothing is stored for what is as documented


async def test_case_008_some_options_are_merged_with_the_defaults(play: Play) -> None:
    work = Flaky(0)

    async def run(step: WorkflowStep) -> str:
        return await step.do("work", work, retries=Retries(limit=1, delay=7), timeout="1 minute")

    await play(run)

    config = work.contexts[0].config
    assert (1, 7, "exponential") == (config.retries.limit, config.retries.delay, config.retries.backoff)
    assert ("1 minute", None) == (config.timeout, config.sensitive)


# -- errors ------------------------------------------------------------------------------------


async def test_case_010_a_non_retryable_error_starts_one_attempt_and_the_instance_errors(play: Play) -> None:
    work = Flaky(ALWAYS, NonRetryableError("declined"))

    async def run(step: WorkflowStep) -> str:
        return await step.do("work", work)

    played = await play(run, sql="SELECT status FROM instance")

    assert ([1], [("errored",)]) == (work.attempts, played.rows)
    assert isinstance(played.error, NonRetryableError)


async def test_case_011_attempt_and_instance_carry_the_name_and_the_text_of_the_error(
    folder: Any, replay: Any
) -> None:
    class Declined(WorkflowEntrypoint):
        async def run(self, event: WorkflowEvent[Any], step: WorkflowStep) -> str:
            return await step.do("work", Flaky(ALWAYS, NonRetryableError("the card was declined")))

    async with open_test_runtime(folder, workflows=[Declined], replay=replay) as runtime:
        instance = await runtime.create(Declined)
        async for _ in instance.subscribe():
            pass
        status = await instance.status()
        ((error,),) = await instance.sql("SELECT error FROM attempts")

    assert ("errored", "perdure.errors.NonRetryableError: the card was declined") == (
        status.status,
        status.error,
    )
    told = json.loads(error)
    assert ("NonRetryableError", "the card was declined") == (told["class"], told["message"])


async def test_case_012_a_step_that_fails_for_good_may_be_caught_and_one_failure_is_recorded(
    play: Play,
) -> None:
    work = Flaky(ALWAYS)

    async def run(step: WorkflowStep) -> str:
        try:
            return await step.do("work", work, retries=0)
        except ConnectionError:
            return "caught"

    played = await play(run, sql="SELECT attempt, outcome FROM attempts")

    assert ("caught", [(1, "failed")]) == (played.result, played.rows)


async def attempts_of(play: Play, error: Exception) -> list[int]:
    """Return the attempts that a step with three retries makes which raises this error; the text survives."""
    work = Flaky(ALWAYS, error)

    async def run(step: WorkflowStep) -> str:
        return await step.do("work", work, retries=3)

    played = await play(run)
    assert (type(error), str(error)) == (type(played.error), str(played.error))
    return work.attempts


async def test_case_013_an_ordinary_error_with_a_text_is_retried_up_to_the_limit(play: Play) -> None:
    assert [1, 2, 3, 4] == await attempts_of(play, RuntimeError("three times more"))


async def test_case_014_an_ordinary_error_without_a_text_is_retried_just_the_same(play: Play) -> None:
    assert [1, 2, 3, 4] == await attempts_of(play, RuntimeError())


async def test_case_015_a_non_retryable_error_with_a_text_is_not_retried(play: Play) -> None:
    assert [1] == await attempts_of(play, NonRetryableError("never again"))


async def test_case_016_a_non_retryable_error_without_a_text_is_not_retried(play: Play) -> None:
    assert [1] == await attempts_of(play, NonRetryableError())


# -- limits ------------------------------------------------------------------------------------


async def take(steps: int, step: WorkflowStep) -> int:
    for number in range(steps):
        await step.do(f"step {number}", lambda: None)
    return steps


async def test_case_026_a_fourth_step_fails_the_instance_where_three_are_allowed(play: Play) -> None:
    async def run(step: WorkflowStep) -> int:
        return await take(4, step)

    played = await play(run, limits=Limits(steps_max=3))

    assert isinstance(played.error, LimitExceededError)
    assert ("steps_max", 4, 3) == (played.error.limit, played.error.value, played.error.allowed)
    assert ["step 0", "step 1", "step 2"] == [row[0] for row in played.rows]


async def test_case_027_three_steps_complete_where_three_are_allowed(play: Play) -> None:
    async def run(step: WorkflowStep) -> int:
        return await take(3, step)

    played = await play(run, limits=Limits(steps_max=3))

    assert (3, None) == (played.result, played.error)


@pytest.mark.slow
async def test_case_028_where_no_limit_is_configured_there_is_none(play: Play) -> None:
    async def nothing(number: int) -> None:
        pass

    async def run(step: WorkflowStep) -> int:
        return len(await step.map("turn", nothing, range(STEPS_TRIED)))

    played = await play(run, sql="SELECT count(*) FROM steps WHERE kind = 'do'")

    assert (STEPS_TRIED, [(STEPS_TRIED,)]) == (played.result, played.rows)


# -- bytes -------------------------------------------------------------------------------------


async def test_case_029_200_kb_of_bytes_may_be_returned_bare_or_within_an_object(play: Play) -> None:
    large = bytes(range(256)) * 800

    async def bare() -> bytes:
        return large

    async def nested() -> dict[str, bytes]:
        return {"page": large}

    async def run(step: WorkflowStep) -> bool:
        return large == await step.do("bare", bare) and {"page": large} == await step.do("nested", nested)

    played = await play(run)

    assert played.result is True


async def test_case_031_the_next_step_sees_the_type_and_the_content_of_returned_bytes(play: Play) -> None:
    seen: list[Any] = []

    async def read() -> bytes:
        return b"\x00\xffpage"

    async def write() -> bytearray:
        return bytearray(b"\x00\xffpage")

    async def run(step: WorkflowStep) -> None:
        await step.do("see bytes", seen.append, await step.do("read", read))
        await step.do("see a bytearray", seen.append, await step.do("write", write))

    await play(run)

    assert [b"\x00\xffpage", bytearray(b"\x00\xffpage")] == seen
    assert [bytes, bytearray] == [type(value) for value in seen]


async def test_case_032_a_piece_of_large_bytes_is_stored_without_the_rest(play: Play) -> None:
    large = bytes(1_000_000)

    async def cut() -> dict[str, list[bytes]]:
        return {"pieces": [large[:10], large[-10:]]}

    async def run(step: WorkflowStep) -> bool:
        return {"pieces": [bytes(10), bytes(10)]} == await step.do("cut", cut)

    played = await play(run, sql="SELECT output_bytes FROM steps")

    assert played.result is True
    assert played.rows[0][0] < 100


async def test_case_032_a_view_into_bytes_is_refused_rather_than_stored_with_what_it_views(
    play: Play,
) -> None:
    async def run(step: WorkflowStep) -> Any:
        return await step.do("view", lambda: {"piece": memoryview(bytes(1_000_000))[:10]})

    played = await play(run)

    assert "EncodingError" == type(played.error).__name__
    assert "$.piece" in str(played.error)


# -- sensitive results -------------------------------------------------------------------------


async def tell() -> str:
    return SAID


async def test_case_033_a_sensitive_result_is_shown_to_nobody_and_later_code_gets_it(play: Play) -> None:
    async def run(step: WorkflowStep) -> int:
        return len(await step.do("tell", tell, sensitive="output"))

    played = await play(run, sql=SHOWN)

    assert len(SAID) == played.result
    assert [("tell", "completed", None, len(SAID) + 2, None, 1)] == played.rows


async def everything_told(instance: Instance[Any]) -> str:
    """Return all that a waiting test is told of an instance until it has ended."""
    told = [str(entry) async for entry in instance.subscribe()]
    told += [str(await instance.status()), str(await instance.history())]
    for view in ("instance", "steps", "attempts", "history"):
        told += [str(row) for row in await instance.sql(f"SELECT * FROM {view}")]
    return "\n".join(told)


async def test_case_034_a_test_that_waits_for_a_sensitive_result_is_not_shown_it(
    folder: Any, replay: Any
) -> None:
    class Telling(WorkflowEntrypoint):
        async def run(self, event: WorkflowEvent[Any], step: WorkflowStep) -> None:
            await step.do("tell", tell, sensitive="output")

    async with open_test_runtime(folder, workflows=[Telling], replay=replay) as runtime:
        told = await everything_told(await runtime.create(Telling))

    assert "do completed" in told
    assert SAID not in told


async def test_case_035_the_error_of_a_sensitive_step_is_shown(play: Play) -> None:
    async def run(step: WorkflowStep) -> str:
        return await step.do(
            "tell", Flaky(ALWAYS, ValueError("the lock is stuck")), retries=0, sensitive="output"
        )

    played = await play(run, sql=ATTEMPTS)

    ((attempt, outcome, error),) = played.rows
    assert (1, "failed", "the lock is stuck") == (attempt, outcome, json.loads(error)["message"])
    assert ("ValueError", "the lock is stuck") == (type(played.error).__name__, str(played.error))


async def test_case_036_the_chunks_of_a_sensitive_stream_are_shown_to_nobody(play: Play) -> None:
    async def whisper() -> AsyncIterator[str]:
        for word in SAID.split():
            yield word

    async def run(step: WorkflowStep) -> str:
        words: StepStream[str] = await step.do("whisper", whisper, sensitive="output")
        return " ".join(await words.collect())

    played = await play(run, sql="SELECT chunk FROM streams")

    assert SAID == played.result
    assert [(None,), (None,)] == played.rows
