"""Law 10: ambiguity is refused, by a clear error at the call, before any effect."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

import perdure.actors.identity
import perdure.actors.step
from perdure import (
    AmbiguousStepError,
    EncodingError,
    InstanceExistsError,
    InstanceFailedError,
    InvalidDurationError,
    InvalidIdError,
    InvalidNameError,
    WorkflowEntrypoint,
    WorkflowEvent,
    WorkflowStep,
)
from perdure.actors.host import Replay
from perdure.actors.identity import Names
from perdure.storage.catalog import Catalog
from perdure.storage.codec import Coder
from perdure.storage.records import Birth
from perdure.testing import open_test_runtime

STEPS = "SELECT name, count, kind, status FROM steps ORDER BY seq"
ALLOWED = [("allowed", 1, "do", "completed")]
"""The one row of an instance in which everything else was refused before any effect."""

ACCEPTED = (AssertionError, InstanceFailedError, pytest.fail.Exception)
"""How a check fails where something was taken that should be refused."""

Broken = Callable[[Any, str, Callable[..., Any]], None]
Check = Callable[[Path, Replay], Awaitable[None]]
Script = Callable[[WorkflowStep], Any]


async def told(folder: Path, replay: Replay, script: Script) -> tuple[Any, list[tuple[Any, ...]]]:
    """Run a script as a workflow and return its result, and the steps that stand in the file."""

    class Scripted(WorkflowEntrypoint):
        async def run(self, event: WorkflowEvent[Any], step: WorkflowStep) -> Any:
            return await script(step)

    async with open_test_runtime(folder, workflows=[Scripted], replay=replay) as runtime:
        instance = await runtime.create(Scripted, id="a")
        with trio.fail_after(5):
            result = await instance.result()
        return result, [tuple(row) for row in await instance.sql(STEPS)]


async def one() -> int:
    return 1


async def two() -> int:
    return 2


# -- one name, two branches --------------------------------------------------------------------


async def check_a_name_asked_for_again_later(folder: Path, replay: Replay) -> None:
    calls: list[str] = []

    async def work(who: str) -> str:
        calls.append(who)
        return who

    async def script(step: WorkflowStep) -> str:
        asked = trio.Event()
        texts: list[str] = []

        async def first() -> None:
            await step.do("same", work, "first")
            asked.set()

        async def second() -> None:
            await asked.wait()  # so it always comes second, and nobody but its author knows
            with pytest.raises(AmbiguousStepError) as refused:
                step.do("same", work, "second")
            texts.append(str(refused.value))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(first)
            nursery.start_soon(second)
        return texts[0]

    refused, steps = await told(folder, replay, script)

    assert "step 'same' is asked for by two branches" in refused
    assert "key=" in refused
    assert ["first"] == calls
    assert [("same", 1, "do", "completed")] == steps


async def check_a_name_asked_for_at_the_same_time(folder: Path, replay: Replay) -> None:
    calls: list[str] = []

    async def work(who: str) -> str:
        calls.append(who)
        return who

    async def script(step: WorkflowStep) -> list[str]:
        outcomes: list[str] = []

        async def branch(who: str) -> None:
            try:
                call = step.do("same", work, who)
            except AmbiguousStepError:
                outcomes.append("refused")
            else:
                await call
                outcomes.append("done")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(branch, "left")
            nursery.start_soon(branch, "right")
        return sorted(outcomes)

    outcomes, steps = await told(folder, replay, script)

    assert ["done", "refused"] == outcomes
    assert 1 == len(calls)
    assert [("same", 1, "do", "completed")] == steps


CHECKS = [check_a_name_asked_for_again_later, check_a_name_asked_for_at_the_same_time]


@pytest.mark.parametrize("check", CHECKS)
async def test_a_name_asked_for_by_two_branches_is_refused(
    folder: Path, replay: Replay, check: Check
) -> None:
    await check(folder, replay)


@pytest.mark.parametrize("check", CHECKS)
async def test_the_branch_check_fails_when_branches_may_share_a_name(
    folder: Path, check: Check, broken: Broken
) -> None:
    broken(Names, "_require_after", lambda *_: None)

    with pytest.raises(ACCEPTED):
        await check(folder, "warm")


async def test_what_is_not_ambiguous_is_allowed(folder: Path, replay: Replay) -> None:
    """The same task, a closed nursery, a key."""

    async def script(step: WorkflowStep) -> list[int]:
        got = [await step.do("same", one), await step.do("same", one)]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask, step, "x")
            nursery.start_soon(ask, step, "y")
        await ask(step, "x")
        return got

    async def ask(step: WorkflowStep, key: str) -> None:
        await step.do("part", one, key=key)

    result, steps = await told(folder, replay, script)

    assert [1, 1] == result
    assert [("part[x]", 1), ("part[x]", 2), ("part[y]", 1), ("same", 1), ("same", 2)] == sorted(
        row[:2] for row in steps
    )


# -- one name, two functions -------------------------------------------------------------------


async def check_one_name_stands_for_one_function(folder: Path, replay: Replay) -> None:
    async def script(step: WorkflowStep) -> str:
        await step.do("allowed", one)
        with pytest.raises(AmbiguousStepError) as refused:
            step.do("allowed", two)
        return str(refused.value)

    refused, steps = await told(folder, replay, script)

    assert "step 'allowed' was asked for with one (" in refused
    assert "and now with two (" in refused
    assert ALLOWED == steps


async def test_one_name_for_two_functions_is_refused(folder: Path, replay: Replay) -> None:
    await check_one_name_stands_for_one_function(folder, replay)


async def test_the_function_check_fails_when_any_function_will_do(folder: Path, broken: Broken) -> None:
    broken(Names, "_require_same", lambda *_: None)

    with pytest.raises(ACCEPTED):
        await check_one_name_stands_for_one_function(folder, "warm")


async def test_a_refused_name_leaves_nothing_behind(folder: Path, replay: Replay) -> None:
    """Neither its count nor the branch that asked: who asked first goes on as if nothing had been."""

    async def script(step: WorkflowStep) -> int:
        async def ask() -> None:
            await step.do("same", one)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask)

        async def intrude() -> None:
            with pytest.raises(AmbiguousStepError, match="one name stands for one function"):
                step.do("same", two)
            refused.set()
            await step.wait_for_event("stay", type="go")

        refused = trio.Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(intrude)
            await refused.wait()
            second = await step.do("same", one)
            nursery.cancel_scope.cancel()
        return second

    result, steps = await told(folder, replay, script)

    assert 1 == result
    assert [("same", 1), ("same", 2)] == [row[:2] for row in steps if row[0] == "same"]


# -- durations and names -----------------------------------------------------------------------


async def check_unknown_units_are_refused(folder: Path, replay: Replay) -> None:
    async def script(step: WorkflowStep) -> list[str]:
        await step.do("allowed", one)
        texts: list[str] = []
        asks: list[Callable[[], object]] = [
            lambda: step.sleep("nap", "5 fortnights"),
            lambda: step.do("work", one, timeout="5 m"),
            lambda: step.wait_for_event("wait", type="go", timeout="5 somethings"),
            lambda: step.move_on_after("deadline", "5 moons"),
            lambda: step.sleep("nap", "5"),
        ]
        for ask in asks:
            with pytest.raises(InvalidDurationError) as refused:
                ask()
            texts.append(str(refused.value))
        return texts

    texts, steps = await told(folder, replay, script)

    assert all(given in text for given, text in zip(("fortnights", "5 m", "somethings"), texts, strict=False))
    assert ALLOWED == steps


async def test_an_unknown_unit_of_a_duration_is_refused(folder: Path, replay: Replay) -> None:
    await check_unknown_units_are_refused(folder, replay)


async def test_the_unit_check_fails_when_units_are_guessed(folder: Path, broken: Broken) -> None:
    broken(perdure.actors.step, "seconds", lambda *_: 5.0)

    with pytest.raises(ACCEPTED):
        await check_unknown_units_are_refused(folder, "warm")


async def check_names_that_cannot_be_shown_are_refused(folder: Path, replay: Replay) -> None:
    async def script(step: WorkflowStep) -> None:
        await step.do("allowed", one)
        for name in ("a\nb", "\x1b[31mred", "", "tab\t", "del\x7f", "line\u2028end"):
            asks: list[Callable[[str], object]] = [
                lambda name: step.do(name, one),
                lambda name: step.do("work", one, key=name or "\0"),
                lambda name: step.sleep(name, 1),
                lambda name: step.wait_for_event(name, type="go"),
                lambda name: step.wait_for_event("wait", type=name),
                lambda name: step.race(name, {"a": one}),
                step.now,
            ]
            for ask in asks:
                with pytest.raises(InvalidNameError, match="not allowed"):
                    ask(name)

    _, steps = await told(folder, replay, script)

    assert ALLOWED == steps


async def test_a_name_with_control_characters_is_refused(folder: Path, replay: Replay) -> None:
    await check_names_that_cannot_be_shown_are_refused(folder, replay)


async def test_the_name_check_fails_when_names_are_not_looked_at(folder: Path, broken: Broken) -> None:
    broken(perdure.actors.identity, "check_step_name", lambda *_: None)

    with pytest.raises(ACCEPTED):
        await check_names_that_cannot_be_shown_are_refused(folder, "warm")


# -- ids ---------------------------------------------------------------------------------------


async def check_a_used_id_is_refused(folder: Path, replay: Replay) -> None:
    calls: list[str] = []

    class Once(WorkflowEntrypoint):
        async def run(self, event: WorkflowEvent[str], step: WorkflowStep) -> str:
            calls.append(event.payload)
            await step.wait_for_event("go", type="go", timeout=None)
            return event.payload

    async with open_test_runtime(folder, workflows=[Once], replay=replay) as runtime:
        instance = await runtime.create(Once, id="a", params="first")
        result = ""
        for _ in range(2):  # while it runs, and when it has ended
            with pytest.raises(InstanceExistsError, match="Once/a"):
                await runtime.create(Once, id="a", params="second")
            if not await instance.sql("SELECT 1 FROM events"):
                await instance.send_event("go")
            result = await instance.result()
            while runtime.statistics().warm:  # until its row says so too
                await trio.testing.wait_all_tasks_blocked(0.0005)
        for id_ in ("a\nb", "", "nul\0"):
            with pytest.raises(InvalidIdError, match="not allowed"):
                await runtime.create(Once, id=id_, params="third")
        count = len(await runtime.list())

    assert ("first", {"first"}, 1) == (result, set(calls), count)


async def test_a_reused_id_is_refused(folder: Path, replay: Replay) -> None:
    await check_a_used_id_is_refused(folder, replay)


async def test_the_id_check_fails_when_the_newer_takes_the_place_of_the_older(
    folder: Path, broken: Broken
) -> None:
    add = Catalog.add

    def replace(catalog: Catalog, birth: Birth, params: Any, **options: Any) -> None:
        add(catalog, birth, params, **{**options, "replace": True})

    broken(Catalog, "add", replace)

    with pytest.raises(ACCEPTED):
        await check_a_used_id_is_refused(folder, "warm")


# -- results -----------------------------------------------------------------------------------


async def check_results_that_would_change_are_refused(folder: Path, replay: Replay, value: object) -> None:
    calls: list[object] = []

    async def give():  # type: ignore[no-untyped-def]  # no annotation restores it
        calls.append(value)
        return {"deep": [0, value]}

    async def script(step: WorkflowStep) -> list[str]:
        with pytest.raises(EncodingError) as refused:
            await step.do("give", give, retries=3)
        return [str(refused.value), refused.value.path]

    (text, path), steps = await told(folder, replay, script)

    assert "$.deep[1]" == path
    assert "annotate" in text
    assert "returns=" in text
    assert 1 == len(calls)  # another attempt would give the same
    assert [("give", 1, "do", "failed")] == steps


def kind_of(value: object) -> str:
    return type(value).__name__


VALUES = [(1, 2), {3}, b"raw", float("nan"), object()]


@pytest.mark.parametrize("value", VALUES, ids=kind_of)
async def test_a_result_that_would_not_come_back_the_same_is_refused(
    folder: Path, replay: Replay, value: object
) -> None:
    await check_results_that_would_change_are_refused(folder, replay, value)


async def test_the_result_check_fails_when_it_is_stored_as_it_comes(folder: Path, broken: Broken) -> None:
    broken(Coder, "record_result", lambda *given: ("null", given[1]))

    with pytest.raises(ACCEPTED):
        await check_results_that_would_change_are_refused(folder, "warm", (1, 2))
