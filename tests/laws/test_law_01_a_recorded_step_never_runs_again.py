"""Law 1: a recorded step never runs again, and `run()` gets the decoded form of what was stored."""

from __future__ import annotations

import warnings
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from perdure import (
    InstanceFailedError,
    PerdureWarning,
    StepContext,
    WorkflowEntrypoint,
    WorkflowEvent,
    WorkflowStep,
)
from perdure.actors.do import DoCall
from perdure.actors.host import Replay
from perdure.limits import INPUT_BYTES_INLINE_MAX
from perdure.storage.codec import Coder
from perdure.storage.codec_describe import Describer
from perdure.storage.journal import Journal
from perdure.storage.records import LongText, Stored
from perdure.testing import open_test_runtime

Broken = Callable[[type, str, Callable[..., Any]], None]
Reached = Callable[..., Awaitable[None]]


@dataclass
class Basket:
    """What a step of these tests returns: mutable, so that identity and copies can be told apart."""

    items: list[str] = field(default_factory=list[str])


# -- a recorded step never runs again --------------------------------------------------------


async def check_a_recorded_step_runs_once(folder: Path, replay: Replay, reached: Reached) -> None:
    calls: list[str] = []

    async def work(name: str) -> str:
        assert name not in calls
        calls.append(name)
        return name.upper()

    class Chain(WorkflowEntrypoint):
        async def run(self, event: WorkflowEvent[Any], step: WorkflowStep) -> list[str]:
            one = await step.do("one", work, "one", retries=0)
            await step.sleep("long enough to hibernate", "1 hour")
            both = await step.gather(
                "both", {name: step.do(name, work, name, retries=0) for name in ("two", "three")}
            )
            await step.wait_for_event("go", type="go", timeout=None)
            return [one, *both.values(), await step.do("four", work, "four", retries=0)]

    async with open_test_runtime(folder, workflows=[Chain], replay=replay) as runtime:
        instance = await runtime.create(Chain, id="a")
        await reached(instance, "event started")
    async with open_test_runtime(folder, workflows=[Chain], replay=replay) as runtime:
        instance = await runtime.get(Chain, "a")
        await instance.send_event("go")
        result = await instance.result()
        rows = await instance.sql("SELECT name, status, attempts FROM steps WHERE kind = 'do' ORDER BY seq")

    assert ["ONE", "TWO", "THREE", "FOUR"] == result
    assert ["four", "one", "three", "two"] == sorted(calls)
    assert [(name, "completed", 1) for name in ("one", "two", "three", "four")] == [
        tuple(row) for row in rows
    ]


async def test_a_recorded_step_runs_once(folder: Path, replay: Replay, reached: Reached) -> None:
    await check_a_recorded_step_runs_once(folder, replay, reached)


async def test_the_check_fails_with_a_journal_that_answers_nothing(
    folder: Path, replay: Replay, reached: Reached, broken: Broken
) -> None:
    broken(Journal, "take", lambda *_: None)

    with pytest.raises((AssertionError, InstanceFailedError)):
        await check_a_recorded_step_runs_once(folder, replay, reached)


# -- run() gets what was stored ----------------------------------------------------------------


async def check_run_gets_the_decoded_form(folder: Path, replay: Replay) -> None:
    made: list[Basket] = []
    seen: list[Basket] = []

    async def fill() -> Basket:
        made.append(Basket(["apple"]))
        return made[-1]

    class Shop(WorkflowEntrypoint):
        async def run(self, event: WorkflowEvent[Any], step: WorkflowStep) -> int:
            basket = await step.do("fill", fill)
            seen.append(basket)
            basket.items.append("pear")  # on its own copy: the record does not change
            await step.sleep("long enough to hibernate", "1 hour")
            return len(basket.items)

    async with open_test_runtime(folder, workflows=[Shop], replay=replay) as runtime:
        instance = await runtime.create(Shop)
        result = await instance.result()
        (output,) = (await instance.sql("SELECT output FROM steps WHERE name = 'fill'"))[0]

    assert 2 == result
    assert [Basket(["apple"])] == made
    assert all(basket is not made[0] for basket in seen)
    assert '{"items":["apple"]}' == output


async def test_run_gets_the_decoded_form(folder: Path, replay: Replay) -> None:
    await check_run_gets_the_decoded_form(folder, replay)


async def test_the_check_fails_with_a_codec_that_hands_back_the_object_itself(
    folder: Path, broken: Broken
) -> None:
    record = Coder.record_result

    def hand_back(coder: Coder, value: object) -> tuple[Stored | LongText, object]:
        return record(coder, value)[0], value

    broken(Coder, "record_result", hand_back)

    with pytest.raises(AssertionError):
        await check_run_gets_the_decoded_form(folder, "warm")


# -- what a step was given ---------------------------------------------------------------------


async def check_arguments_are_recorded(folder: Path, replay: Replay) -> None:
    async def look(*things: object) -> None:
        assert things

    class Look(WorkflowEntrypoint):
        async def run(self, event: WorkflowEvent[Any], step: WorkflowStep) -> None:
            await step.do("small", look, {"tide": 3}, "low")
            await step.do("large", look, "x" * INPUT_BYTES_INLINE_MAX)
            await step.do("strange", look, object())

    async with open_test_runtime(folder, workflows=[Look], replay=replay) as runtime:
        instance = await runtime.create(Look)
        await instance.result()
        rows = await instance.sql(
            "SELECT name, input, input_digest IS NOT NULL FROM _perdure_steps ORDER BY seq"
        )

    expected = [
        ("small", '[{"tide":3},"low"]', 0),
        ("large", None, 1),
        ("strange", '[{"$type":"object"}]', 0),
    ]
    assert expected == [tuple(row) for row in rows]


async def test_arguments_are_recorded_as_the_input(folder: Path, replay: Replay) -> None:
    await check_arguments_are_recorded(folder, replay)


async def test_the_check_fails_with_a_codec_that_describes_nothing(folder: Path, broken: Broken) -> None:
    broken(Describer, "describe", lambda *_args, **_options: (None, "digest"))

    with pytest.raises(AssertionError):
        await check_arguments_are_recorded(folder, "warm")


async def check_a_changed_argument_is_reported(folder: Path, replay: Replay) -> None:
    async def grow(items: list[int], context: StepContext) -> int:
        items.append(context.attempt)
        return len(items)

    class Grow(WorkflowEntrypoint):
        async def run(self, event: WorkflowEvent[Any], step: WorkflowStep) -> int:
            return await step.do("grow", grow, [1, 2])

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", PerdureWarning)
        async with open_test_runtime(folder, workflows=[Grow], replay=replay) as runtime:
            instance = await runtime.create(Grow, id="a")
            assert 3 == await instance.result()

    texts = [str(warning.message) for warning in caught if warning.category is PerdureWarning]
    assert 1 == len(texts)
    assert "step 'grow' of Grow/a changed an argument in place" in texts[0]


async def test_a_step_that_changed_an_argument_is_reported(folder: Path, replay: Replay) -> None:
    await check_a_changed_argument_is_reported(folder, replay)


async def test_the_check_fails_when_nobody_looks_at_the_arguments_again(folder: Path, broken: Broken) -> None:
    broken(DoCall, "_report_mutated_arguments", lambda *_: None)

    with pytest.raises(AssertionError):
        await check_a_changed_argument_is_reported(folder, "warm")
