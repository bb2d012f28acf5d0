"""`create_batch`: many instances in one transaction, all or none, and none twice."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

import perdure
from perdure import Runtime, WorkflowEntrypoint, WorkflowEvent, WorkflowStep
from perdure.testing import VirtualClock, open_test_runtime

NEVER = datetime(2100, 1, 1, tzinfo=UTC)


class Double(WorkflowEntrypoint):
    async def run(self, event: WorkflowEvent[int], step: WorkflowStep) -> int:
        return await step.do("double", lambda: 2 * event.payload)


class Approval(WorkflowEntrypoint):
    async def run(self, event: WorkflowEvent[None], step: WorkflowStep) -> str:
        answer = await step.wait_for_event("answer", type="answer", timeout="1 hour")
        return str(answer.payload)


@pytest.fixture
async def runtime(tmp_path: Path) -> AsyncIterator[Runtime]:
    async with open_test_runtime(tmp_path / "state", workflows=[Double, Approval], replay="warm") as runtime:
        yield runtime


async def test_every_entry_becomes_an_instance_that_runs(runtime: Runtime) -> None:
    entries: list[Any] = [{"id": f"n{number}", "params": number} for number in range(250)]
    instances = await runtime.create_batch(Double, entries)

    assert [f"n{number}" for number in range(250)] == [instance.id for instance in instances]
    assert [2 * number for number in range(250)] == [await instance.result() for instance in instances]


async def test_a_batch_is_one_transaction(runtime: Runtime) -> None:
    before = runtime.statistics().catalog
    await runtime.create_batch(Double, [{"params": number, "at": NEVER} for number in range(1_000)])
    after = runtime.statistics().catalog

    assert (1, 1) == (after.transactions - before.transactions, after.writes - before.writes)
    assert 1_000 == len(runtime.rows())


@pytest.mark.parametrize(
    ("entry", "told"),
    [
        ({"id": "x", "params": "seven"}, r"entry 2 of the batch \(id 'x'\): params do not fit int"),
        ({"params": 1, "id": ""}, "entry 2 .*instance id ''"),
        ({"params": 1, "id": 7}, "entry 2 .*instance id 7"),
        ({"params": 1, "if_exists": "attach"}, "no option 'if_exists'; there are id, params, at"),
        ({"params": 1, "timeout": "soon"}, "entry 2 .*soon"),
        ({"params": 1, "at": datetime(2030, 1, 1)}, "entry 2 "),
        ({"params": 1, "event": ("", None)}, "entry 2 .*event type"),
        (["params", 1], "entry 2 of the batch: .* is no mapping"),
    ],
)
async def test_one_invalid_entry_refuses_all(runtime: Runtime, entry: Any, told: str) -> None:
    with pytest.raises(perdure.InvalidArgumentError, match=told) as refused:
        await runtime.create_batch(Double, [{"params": 1}, {"params": 2}, entry, {"params": 3}])

    assert str(refused.value).endswith("nothing was created")
    assert [] == runtime.rows()


async def test_a_refused_entry_keeps_the_class_of_its_error(runtime: Runtime) -> None:
    with pytest.raises(perdure.InvalidParamsError):
        await runtime.create_batch(Double, [{"params": "seven"}])
    with pytest.raises(perdure.InvalidIdError):
        await runtime.create_batch(Double, [{"id": "", "params": 7}])
    with pytest.raises(perdure.UnknownWorkflowError):
        await runtime.create_batch("Nobody", [{"params": 7}])


async def test_ids_that_exist_or_come_twice_are_left_out(runtime: Runtime) -> None:
    first = await runtime.create(Double, id="a", params=1)
    instances = await runtime.create_batch(
        Double,
        [
            {"id": "a", "params": 10},
            {"id": "b", "params": 2},
            {"id": "b", "params": 20},
            {"id": "c", "params": 3},
        ],
    )

    assert ["b", "c"] == [instance.id for instance in instances]
    assert [2, 4, 6] == [await instance.result() for instance in (first, *instances)]
    assert 3 == len(runtime.rows())


async def test_one_id_may_be_used_by_several_workflows(runtime: Runtime) -> None:
    await runtime.create(Approval, id="a")

    assert 1 == len(await runtime.create_batch(Double, [{"id": "a", "params": 1}]))


async def test_each_entry_has_options_of_its_own(runtime: Runtime) -> None:
    answered, late, tagged = await runtime.create_batch(
        Approval,
        [
            {"id": "answered", "event": ("answer", "yes")},
            {"id": "late", "timeout": "1 minute"},
            {"id": "tagged", "tags": ["a", "b"], "at": NEVER},
        ],
    )

    assert "yes" == await answered.result()
    with pytest.raises(perdure.InstanceFailedError):
        await late.result()
    assert ("queued", '["a","b"]') == next(
        (row.status, row.tags) for row in runtime.rows() if row.id == tagged.id
    )


async def test_a_batch_with_a_token_may_be_repeated(runtime: Runtime) -> None:
    entries: list[perdure.BatchEntry] = [{"id": "a", "params": 1}, {"id": "b", "params": 3}]
    await runtime.create(Double, id="b", params=0)
    created = [
        [each.id for each in await runtime.create_batch(Double, entries, token=token)]
        for token in ("once", "once", "twice")
    ]

    assert [["a"], ["a"], []] == created


async def test_random_ids_stand_in_the_order_of_their_creation(tmp_path: Path) -> None:
    clock = VirtualClock()
    ids: list[str] = []
    async with open_test_runtime(tmp_path, workflows=[Double], clock=clock) as runtime:
        for number in range(3):
            ids += [each.id for each in await runtime.create_batch(Double, [{"params": number, "at": NEVER}])]
            clock.advance(0.001)

    assert 3 == len(set(ids))
    assert {32} == {len(each) for each in ids}
    assert ids == sorted(ids)


async def test_an_empty_batch_creates_nothing(runtime: Runtime) -> None:
    before = runtime.statistics().catalog.writes

    assert [] == await runtime.create_batch(Double, [])
    assert before == runtime.statistics().catalog.writes


async def test_a_batch_outlives_the_runtime_that_took_it(tmp_path: Path) -> None:
    async with open_test_runtime(tmp_path, workflows=[Double]) as runtime:
        await runtime.create_batch(Double, [{"id": "a", "params": 1, "at": NEVER}])
    async with open_test_runtime(tmp_path, workflows=[Double]) as again:
        assert 2 == await (await again.get(Double, "a")).result()
    with pytest.raises(perdure.RuntimeClosedError):
        await again.create_batch(Double, [{"params": 1}])
