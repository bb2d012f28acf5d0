"""Concurrency and what else happens to instances: restart, deletion, children, runs without end."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import pytest

from perdure import Concurrency, WorkflowEntrypoint, WorkflowEvent, WorkflowStep
from perdure.engine.repair import repair_state
from perdure.testing import open_test_runtime

REPLAYS = ("warm", "always")


class Gate(WorkflowEntrypoint):
    concurrency: ClassVar[Concurrency | None] = Concurrency(limit=1)

    async def run(self, event: WorkflowEvent[None], step: WorkflowStep) -> Any:
        return (await step.wait_for_event("go", type="go", timeout=None)).payload


class KeyGate(Gate):
    concurrency: ClassVar[Concurrency | None] = Concurrency(key=lambda _: "k", per_key=1)


class Child(WorkflowEntrypoint):
    concurrency: ClassVar[Concurrency | None] = Concurrency(limit=2)

    async def run(self, event: WorkflowEvent[int], step: WorkflowStep) -> int:
        await step.sleep("work", "1 minute")
        return event.payload


class Parent(WorkflowEntrypoint):
    async def run(self, event: WorkflowEvent[None], step: WorkflowStep) -> list[int]:
        return await step.children("each", Child, [1, 2, 3, 4, 5])


class Again(WorkflowEntrypoint):
    concurrency: ClassVar[Concurrency | None] = Concurrency(limit=1)

    async def run(self, event: WorkflowEvent[int], step: WorkflowStep) -> int:
        await step.sleep("work", "1 minute")
        if event.payload < 3:
            await step.continue_as_new(event.payload + 1)
        return event.payload


@pytest.mark.parametrize("replay", REPLAYS)
@pytest.mark.parametrize("cls", [Gate, KeyGate])
async def test_one_that_is_restarted_waits_for_a_place_again(
    tmp_path: Path, cls: type[Gate], replay: Any
) -> None:
    async with open_test_runtime(tmp_path, workflows=[cls], replay=replay) as runtime:
        first, second, third = [await runtime.create(cls, id=id_) for id_ in "abc"]
        await first.send_event("go", 1)
        assert 1 == await first.result()
        await first.restart()
        for number, instance in enumerate((first, second, third)):
            await instance.send_event("go", number)
        assert [0, 1, 2] == [await each.result() for each in (first, second, third)]


@pytest.mark.parametrize("replay", REPLAYS)
@pytest.mark.parametrize("cls", [Gate, KeyGate])
async def test_one_that_is_deleted_while_it_is_paused_leaves_its_place(
    tmp_path: Path, cls: type[Gate], replay: Any
) -> None:
    async with open_test_runtime(tmp_path, workflows=[cls], replay=replay) as runtime:
        first, second, third = [await runtime.create(cls, id=id_) for id_ in "abc"]
        await first.pause()
        for number, instance in enumerate((second, third)):
            await instance.send_event("go", number)
        await first.delete()
        assert [0, 1] == [await second.result(), await third.result()]


@pytest.mark.parametrize("replay", REPLAYS)
async def test_another_incarnation_takes_the_place_of_the_one_before(tmp_path: Path, replay: Any) -> None:
    async with open_test_runtime(tmp_path, workflows=[KeyGate], replay=replay) as runtime:
        await runtime.create(KeyGate, id="a")
        second = await runtime.create(KeyGate, id="b")
        await second.send_event("go", 2)
        first = await runtime.create(KeyGate, id="a", if_exists="restart")
        await first.send_event("go", 1)
        assert (1, 2) == (await first.result(), await second.result())


@pytest.mark.parametrize("replay", REPLAYS)
async def test_children_wait_for_places_like_all_others(tmp_path: Path, replay: Any) -> None:
    async with open_test_runtime(tmp_path, workflows=[Parent, Child], replay=replay) as runtime:
        assert [1, 2, 3, 4, 5] == await (await runtime.create(Parent)).result()


@pytest.mark.parametrize("replay", REPLAYS)
async def test_runs_without_end_take_turns_or_keep_their_place(tmp_path: Path, replay: Any) -> None:
    async with open_test_runtime(tmp_path, workflows=[Again], replay=replay) as runtime:
        instances = [await runtime.create(Again, params=0) for _ in range(3)]
        assert [3, 3, 3] == [await instance.result() for instance in instances]


async def test_a_repair_forgets_neither_who_waits_nor_what_they_wait_for(tmp_path: Path) -> None:
    state = tmp_path / "state"
    async with open_test_runtime(state, workflows=[KeyGate], replay="warm") as runtime:
        for number in range(3):
            await (await runtime.create(KeyGate, id=str(number))).sql("SELECT 1")
    repair_state(state)
    async with open_test_runtime(state, workflows=[KeyGate], replay="warm") as runtime:
        assert {"k"} == {row.lane for row in runtime.rows()}
        instances = [await runtime.get(KeyGate, str(number)) for number in range(3)]
        for number in (2, 1, 0):
            await instances[number].send_event("go", number)
        assert [0, 1, 2] == [await instance.result() for instance in instances]
