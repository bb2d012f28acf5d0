"""Changed code is replayed against what is recorded, without a step and without a trace."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio

from perdure import App, WorkflowEntrypoint, WorkflowEvent, WorkflowStep
from perdure.actors.host import Replay
from perdure.storage.sql import Sql
from perdure.testing import VirtualClock, open_test_runtime, replay_check

RAN: list[str] = []
RunFunction = Callable[..., Any]


def ran(what: str) -> str:
    RAN.append(what)
    return what


async def as_it_was(self: Any, event: WorkflowEvent[str], step: WorkflowStep) -> str:
    await step.do("pack", ran, event.payload)
    await step.do("weigh", ran, "3 kg")
    await step.wait_for_event("wait", type="go", timeout=None)
    await step.do("ship", ran, "ship")
    return "shipped"


def app_of(run: RunFunction, **attributes: Any) -> App:
    return App([type("Parcel", (WorkflowEntrypoint,), {"run": run, "name": "Parcel", **attributes})])


async def waiting(instance: Any) -> None:
    while not await instance.sql("SELECT 1 FROM steps WHERE status = 'waiting'"):
        await trio.lowlevel.checkpoint()


async def check(path: Path, run: RunFunction, **attributes: Any) -> list[tuple[str, str, str, str]]:
    """Have an instance recorded by `as_it_was` that sleeps; return what is found with `run`."""
    RAN.clear()
    async with open_test_runtime(path, app_of(as_it_was), replay="warm") as runtime:
        instance = await runtime.create("Parcel", params="tea", id="one")
        await waiting(instance)
        before = await instance.history()
        reports = await replay_check(runtime, app_of(run, **attributes))
        assert before == await instance.history()
    assert reports == await replay_check(path, app_of(run, **attributes))
    assert ["tea", "3 kg"] == RAN
    return [
        (each.what, each.level, each.recorded, each.requested) for report in reports for each in report.found
    ]


async def test_code_that_has_not_changed_agrees(tmp_path: Path) -> None:
    assert [] == await check(tmp_path, as_it_was)


async def test_steps_that_come_after_what_is_recorded_agree(tmp_path: Path) -> None:
    async def run(self: Any, event: WorkflowEvent[str], step: WorkflowStep) -> str:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(as_it_was, self, event, step)
            if await step.patched("insured"):
                await step.do("insure", ran, "insure")
        return "shipped"

    assert [] == await check(tmp_path, run)


async def test_a_step_that_became_a_wait_is_an_error(tmp_path: Path) -> None:
    async def run(self: Any, event: WorkflowEvent[str], step: WorkflowStep) -> None:
        await step.do("pack", ran, event.payload)
        await step.sleep("weigh", 1)

    assert [
        ("kind", "error", "do 'weigh' (use 1)", "sleep 'weigh' (use 1)"),
    ] == (await check(tmp_path, run))[:1]


async def test_other_arguments_are_a_warning(tmp_path: Path) -> None:
    async def run(self: Any, event: WorkflowEvent[str], step: WorkflowStep) -> None:
        await step.do("pack", ran, "coffee")
        await step.do("weigh", ran, "3 kg")
        await step.wait_for_event("wait", type="go", timeout=None)

    assert [("arguments", "warning")] == [each[:2] for each in await check(tmp_path, run)]


async def test_what_the_policy_says_is_the_level(tmp_path: Path) -> None:
    async def run(self: Any, event: WorkflowEvent[str], step: WorkflowStep) -> None:
        await step.do("weigh", ran, "3 kg")

    assert ["warning"] == [each[1] for each in await check(tmp_path / "1", run)]
    assert ["error"] == [each[1] for each in await check(tmp_path / "2", run, on_divergence="fail")]
    assert [] == await check(tmp_path / "3", run, on_divergence="ignore")


async def test_recorded_steps_that_nobody_asks_for_are_told_beside_what_is_asked_for(tmp_path: Path) -> None:
    async def run(self: Any, event: WorkflowEvent[str], step: WorkflowStep) -> None:
        await step.do("pack", ran, event.payload)
        await step.do("label", ran, "label")
        await step.do("weigh", ran, "3 kg")

    ((what, level, recorded, requested),) = await check(tmp_path, run)
    assert ("unasked", "warning", "do 'weigh', event 'wait'") == (what, level, recorded)
    assert "do 'label'" in requested


async def test_an_error_between_steps_is_told_with_its_line(tmp_path: Path) -> None:
    async def run(self: Any, event: WorkflowEvent[str], step: WorkflowStep) -> None:
        await step.do("pack", ran, event.payload)
        raise KeyError("colour")

    assert [("error", "error", "", "KeyError: 'colour'")] == await check(tmp_path, run)


async def test_a_result_whose_type_has_changed_is_an_error(tmp_path: Path) -> None:
    def heavy(_: str) -> int:
        return 3

    async def run(self: Any, event: WorkflowEvent[str], step: WorkflowStep) -> None:
        await step.do("pack", ran, event.payload)
        await step.do("weigh", heavy, "3 kg")

    assert [("result", "error")] == [each[:2] for each in await check(tmp_path, run)]


async def test_params_that_no_longer_fit_are_an_error(tmp_path: Path) -> None:
    async def run(self: Any, event: WorkflowEvent[int], step: WorkflowStep) -> None:
        await step.do("pack", str, event.payload)

    assert [("params", "error")] == [each[:2] for each in await check(tmp_path, run)]


async def test_code_that_waits_outside_steps_is_a_warning(tmp_path: Path) -> None:
    async def run(self: Any, event: WorkflowEvent[str], step: WorkflowStep) -> None:
        await trio.sleep(3600)

    assert ["outside", "unasked"] == [each[0] for each in await check(tmp_path, run)]


@pytest.mark.parametrize("replay", ["warm", "always"])
async def test_every_kind_of_call_that_is_under_way_agrees(tmp_path: Path, replay: Replay) -> None:
    async def run(self: Any, event: WorkflowEvent[None], step: WorkflowStep) -> None:
        await step.now()
        await step.random()
        await step.transaction("table", make_table)
        await step.map("each", ran, ["a", "b"])
        await step.race("first", {"a": step.do("quick", ran, "q"), "b": step.sleep("slow", "1 year")})
        async with step.move_on_after("late", "1 second"):
            await step.wait_for_event("too late", type="x", timeout=None)
        await step.wait_for_event("end", type="y", timeout=None)

    def make_table(sql: Sql) -> None:
        sql.exec("CREATE TABLE t (x)")

    clock = VirtualClock()
    async with open_test_runtime(tmp_path, app_of(run), replay=replay, clock=clock) as runtime:
        instance = await runtime.create("Parcel", id="one")
        while not await instance.sql("SELECT 1 FROM steps WHERE status = 'waiting' AND name = 'end'"):
            clock.advance(1)
        RAN.clear()
        reports = await replay_check(runtime, app_of(run), finished=True)

    assert [] == reports
    assert [] == RAN


async def test_finished_instances_are_looked_at_on_request(tmp_path: Path) -> None:
    async def short(self: Any, event: WorkflowEvent[None], step: WorkflowStep) -> None:
        await step.do("a", ran, "a")

    async def other(self: Any, event: WorkflowEvent[None], step: WorkflowStep) -> None:
        await step.do("b", ran, "a")

    async with open_test_runtime(tmp_path, app_of(short)) as runtime:
        await (await runtime.create("Parcel", id="one")).result()

    assert [] == await replay_check(tmp_path, app_of(other))
    assert ["one"] == [report.id for report in await replay_check(tmp_path, app_of(other), finished=True)]
    assert [] == await replay_check(tmp_path, app_of(short), finished=True)
