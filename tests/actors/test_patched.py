"""`step.patched`: the new path for instances that have not been there, the old one for those that have."""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import trio

from perdure import (
    ForgottenAwaitError,
    Instance,
    InvalidNameError,
    WorkflowCodeError,
    WorkflowEntrypoint,
    WorkflowEvent,
    WorkflowStep,
)
from perdure.actors.host import Replay
from perdure.testing import open_test_runtime

Play = Callable[..., Awaitable[Any]]
DIVERGED = "SELECT detail FROM history WHERE what = 'divergence'"
STEPS = "SELECT name, kind, output FROM steps ORDER BY seq"


async def give(value: str) -> str:
    return value


def order(run: Callable[[WorkflowStep], Awaitable[Any]]) -> Any:
    """Return a class called Order with this `run`."""

    class Order(WorkflowEntrypoint):
        async def run(self, event: WorkflowEvent[Any], step: WorkflowStep) -> Any:
            return await run(step)

    return Order


async def old(step: WorkflowStep) -> list[str]:
    first = await step.do("first", give, "first")
    await step.wait_for_event("in the middle", type="go", timeout=None)
    return [first, await step.do("last", give, "last")]


async def new_at_the_start(step: WorkflowStep) -> list[str]:
    extra = [await step.do("check", give, "check")] if await step.patched("check first") else []
    return [*extra, *await old(step)]


async def new_at_the_end(step: WorkflowStep) -> list[str]:
    first = await step.do("first", give, "first")
    await step.wait_for_event("in the middle", type="go", timeout=None)
    if await step.patched("end otherwise"):
        return [first, await step.do("end", give, "end")]
    return [first, await step.do("last", give, "last")]


async def reached(instance: Instance[Any], what: str) -> None:
    async with contextlib.aclosing(instance.subscribe()) as story:
        async for entry in story:
            if entry.what == what:
                return


async def changed(
    folder: Path, replay: Replay, *codes: Callable[[WorkflowStep], Awaitable[Any]]
) -> tuple[Any, dict[str, str], list[str]]:
    """Start an instance on the first code and let each code after it have it, the last one to its end."""
    for place, code in enumerate(codes[:-1]):
        cls = order(code)
        async with open_test_runtime(folder, workflows=[cls], replay=replay) as runtime:
            instance = await runtime.create(cls, id="a", if_exists="attach")
            await reached(instance, "patch completed" if place else "event started")
    cls = order(codes[-1])
    async with open_test_runtime(folder, workflows=[cls], replay=replay) as runtime:
        instance = await runtime.create(cls, id="a", if_exists="attach")
        await instance.send_event("go")
        result = await instance.result()
        rows = await instance.sql("SELECT name, output FROM steps WHERE kind = 'patch'")
        return (
            result,
            {row.name: row.output for row in rows},
            [r.detail for r in await instance.sql(DIVERGED)],
        )


async def test_a_new_instance_takes_the_new_path(tmp_path: Path, replay: Replay) -> None:
    found = await changed(tmp_path / "state", replay, new_at_the_start)

    assert (["check", "first", "last"], {"check first": "true"}, []) == found


async def test_an_instance_that_is_past_the_change_keeps_the_old_path(tmp_path: Path, replay: Replay) -> None:
    found = await changed(tmp_path / "state", replay, old, new_at_the_start)

    assert (["first", "last"], {"check first": "false"}, []) == found


async def test_an_instance_that_is_before_the_change_takes_the_new_path(
    tmp_path: Path, replay: Replay
) -> None:
    found = await changed(tmp_path / "state", replay, old, new_at_the_end)

    assert (["first", "end"], {"end otherwise": "true"}, []) == found


async def test_what_was_decided_stays_through_further_restarts(tmp_path: Path, replay: Replay) -> None:
    found = await changed(tmp_path / "state", replay, old, new_at_the_start, new_at_the_start)

    assert (["first", "last"], {"check first": "false"}, []) == found


async def test_a_patch_that_the_code_has_no_more_is_no_divergence(tmp_path: Path, replay: Replay) -> None:
    found = await changed(tmp_path / "state", replay, old, new_at_the_start, old)

    assert (["first", "last"], {"check first": "false"}, []) == found


async def test_every_call_gets_the_one_answer(play: Play) -> None:
    async def run(step: WorkflowStep) -> list[bool]:
        answers = [await step.patched("a change")]
        first, second = step.patched("another"), step.patched("another")
        answers += [await second, await first]

        async def branch() -> None:
            answers.append(await step.patched("in branches"))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(branch)
            nursery.start_soon(branch)
        await step.do("step", give, "x")
        return [*answers, await step.patched("a change")]

    played = await play(run, sql=STEPS)

    assert [True] * 6 == played.result
    assert 1 == sum(row[0] == "in branches" for row in played.steps)


async def test_a_branch_is_not_taken_for_old_code_because_others_have_yet_to_replay(play: Play) -> None:
    async def run(step: WorkflowStep) -> list[bool]:
        answers: list[bool] = []

        async def asks() -> None:
            await step.do("first", give, "x")
            answers.append(await step.patched("a change"))
            await step.do("second", give, "x")

        async def works(depth: int) -> None:
            for place in range(3):
                await step.do(f"work {depth} {place}", give, "x")
            if depth:
                async with trio.open_nursery() as inner:
                    inner.start_soon(works, depth - 1)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(asks)
            nursery.start_soon(works, 2)
        return answers

    assert [True] == (await play(run)).result


async def test_the_id_of_a_change_and_a_step_may_have_one_name(tmp_path: Path, replay: Replay) -> None:
    async def later(step: WorkflowStep) -> list[str]:
        assert not await step.patched("first")
        return await old(step)

    result, patches, diverged = await changed(tmp_path / "state", replay, old, later)

    assert (["first", "last"], {"first": "false"}, []) == (result, patches, diverged)


async def test_a_forgotten_await_is_seen_where_it_is_used(play: Play) -> None:
    async def run(step: WorkflowStep) -> str:
        call = step.patched("a change")
        with pytest.raises(WorkflowCodeError) as refused:
            bool(call)
        return str(refused.value)

    played = await play(run)

    assert isinstance(played.error, ForgottenAwaitError)


@pytest.mark.parametrize("change", ["", "a\nb", 7])
async def test_an_id_that_is_no_name_is_refused_at_the_call(play: Play, change: Any) -> None:
    async def run(step: WorkflowStep) -> None:
        step.patched(change)

    played = await play(run)

    assert isinstance(played.error, InvalidNameError)
    assert [] == played.steps


async def test_logging_is_not_quiet_because_of_a_patch_that_is_gone(
    tmp_path: Path, replay: Replay, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "perdure.workflow")

    async def keeps_a_patch(step: WorkflowStep) -> list[str]:
        await step.patched("gone later")
        return await old(step)

    async def says(step: WorkflowStep) -> list[str]:
        result = await old(step)
        step.log.info("done for good")
        return result

    await changed(tmp_path / "state", replay, old, keeps_a_patch, says)

    assert ["Order/a: done for good"] == [r.message for r in caplog.records if r.levelname == "INFO"]
