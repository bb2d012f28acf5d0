"""Creating, finding, batches (cases 81 to 98)."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any, Literal

import pytest
import trio

import perdure
from perdure import (
    InstanceExistsError,
    InstanceFailedError,
    InstanceNotFoundError,
    InvalidArgumentError,
    InvalidIdError,
    Runtime,
    WorkflowEntrypoint,
    WorkflowEvent,
    WorkflowStep,
)
from perdure.testing import open_test_runtime

Replay = Literal["warm", "always"]


class Tells(WorkflowEntrypoint):
    """Returns what its event says."""

    name = "tells"

    async def run(self, event: WorkflowEvent[Any], step: WorkflowStep) -> list[Any]:
        return [
            await step.do("tell", lambda: event.payload, returns=Any),
            event.instance_id,
            event.workflow_name,
        ]


class Other(WorkflowEntrypoint):
    """Fails where it is told to, and returns a number otherwise."""

    async def run(self, event: WorkflowEvent[str | None], step: WorkflowStep) -> int:
        if event.payload:
            raise LookupError(event.payload)
        return await step.do("one", lambda: 1, returns=int)


def open_it(folder: Path, replay: Replay = "warm") -> AbstractAsyncContextManager[Runtime]:
    return open_test_runtime(folder, workflows=[Tells, Other], replay=replay)


async def test_case_081_params_and_id_are_what_the_event_says(folder: Path, replay: Replay) -> None:
    async with open_it(folder, replay) as runtime:
        instance = await runtime.create(Tells, params={"n": 1}, id="my-id")
        payload, id_, _ = await instance.result()
    assert ({"n": 1}, "my-id", "my-id") == (payload, id_, instance.id)


async def test_case_082_the_event_carries_the_name_of_the_workflow(folder: Path, replay: Replay) -> None:
    async with open_it(folder, replay) as runtime:
        assert "tells" == (await (await runtime.create(Tells)).result())[2]


async def test_case_083_an_id_is_made_where_none_is_given(folder: Path, replay: Replay) -> None:
    async with open_it(folder, replay) as runtime:
        first, second = [await runtime.create(Tells) for _ in range(2)]
        assert first.id != second.id
        assert first.id == (await first.result())[1]


@pytest.mark.parametrize("id_", ["", "\n", "a" * 100_000, "a\x00b"])
async def test_case_084_an_id_that_can_be_none_is_refused(folder: Path, id_: str) -> None:
    async with open_it(folder) as runtime:
        with pytest.raises(InvalidIdError):
            await runtime.create(Tells, id=id_)
        assert [] == await runtime.list()


async def test_case_085_an_unknown_id_is_not_found(folder: Path) -> None:
    async with open_it(folder) as runtime:
        with pytest.raises(InstanceNotFoundError, match="tells/nobody"):
            await runtime.get(Tells, "nobody")


async def test_case_086_a_batch_of_three_makes_three_instances_in_order(folder: Path, replay: Replay) -> None:
    async with open_it(folder, replay) as runtime:
        batch = await runtime.create_batch(Tells, [{"id": id_, "params": id_} for id_ in ("c", "a", "b")])
        assert ["c", "a", "b"] == [instance.id for instance in batch]
        assert [["c", "c"], ["a", "a"], ["b", "b"]] == [(await each.result())[:2] for each in batch]


async def test_case_087_an_empty_batch_is_an_error_or_nothing(folder: Path) -> None:
    async with open_it(folder) as runtime:
        assert [] == await runtime.create_batch(Tells, [])  # adapted: a program's list may be empty
        with pytest.raises(InvalidArgumentError, match="no id"):
            await runtime.delete_batch(Tells, [])


async def test_case_088_deleting_a_batch_reports_on_each_given_id(folder: Path, replay: Replay) -> None:
    async with open_it(folder, replay) as runtime:
        for instance in await runtime.create_batch(Tells, [{"id": "a"}, {"id": "b"}]):
            await instance.result()
        done = await runtime.delete_batch(Tells, ["a", "missing", "a", "b"])
        assert ["a", "a", "b"] == done.deleted
        assert [("missing", "not_found")] == [(error.id, error.code) for error in done.errors]
        assert [] == await runtime.list(Tells)


async def test_case_089_a_batch_with_an_id_that_can_be_none_deletes_nothing(folder: Path) -> None:
    async with open_it(folder) as runtime:
        await (await runtime.create(Tells, id="a")).result()
        with pytest.raises(InvalidIdError, match="entry 1 of the batch"):
            await runtime.delete_batch(Tells, ["a", "\n"])
        assert ["a"] == [instance.id for instance in await runtime.list(Tells)]


async def test_case_089_a_batch_of_more_than_a_hundred_is_deleted(folder: Path) -> None:
    async with open_it(folder) as runtime:
        ids = [f"i{number}" for number in range(101)]
        created = await runtime.create_batch(Tells, [{"id": id_} for id_ in ids])
        for instance in created:
            await instance.result()
        assert ids == (await runtime.delete_batch(Tells, ids)).deleted  # adapted: there is no bound


async def test_case_090_an_unexpected_error_is_told_by_a_general_code_alone(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_it(folder) as runtime:
        for instance in await runtime.create_batch(Tells, [{"id": "a"}, {"id": "b"}]):
            await instance.result()
        unlink = Path.unlink

        def refuse(path: Path, missing_ok: bool = False) -> None:
            if path.name.startswith("a."):
                raise PermissionError(13, "a secret of the file system", str(path))
            unlink(path, missing_ok=missing_ok)

        with monkeypatch.context() as patch:
            patch.setattr(Path, "unlink", refuse)
            done = await runtime.delete_batch(Tells, ["a"])
    assert ([], [("a", "internal")]) == (done.deleted, [(error.id, error.code) for error in done.errors])
    assert "secret" not in done.errors[0].message


async def test_case_091_one_id_in_two_workflows_is_two_instances(folder: Path, replay: Replay) -> None:
    async with open_it(folder, replay) as runtime:
        tells = await runtime.create(Tells, params=5, id="same")
        other = await runtime.create(Other, id="same")
        assert ([5, "same", "tells"], 1) == (await tells.result(), await other.result())
        await other.delete()
        assert "complete" == (await tells.status()).status


async def test_case_092_an_id_in_use_cannot_be_created_again(folder: Path, replay: Replay) -> None:
    async with open_it(folder, replay) as runtime:
        first = await runtime.create(Tells, params=1, id="a")
        with pytest.raises(InstanceExistsError):
            await runtime.create(Tells, params=2, id="a")
        assert 1 == (await first.result())[0]
        with pytest.raises(InstanceExistsError):
            await runtime.create(Tells, params=3, id="a")
        assert 1 == (await first.result())[0]


async def test_case_093_ids_that_exist_are_left_out_of_a_batch(folder: Path, replay: Replay) -> None:
    async with open_it(folder, replay) as runtime:
        first = await runtime.create(Tells, params=1, id="a")
        made = await runtime.create_batch(
            Tells, [{"id": "a", "params": 2}, {"id": "b", "params": 3}, {"id": "b", "params": 4}]
        )
        assert ["b"] == [instance.id for instance in made]
        assert (1, 3) == ((await first.result())[0], (await made[0].result())[0])


async def test_case_096_an_id_that_is_given_as_null_from_outside_is_refused(folder: Path) -> None:
    async with open_it(folder) as runtime:
        wrong: Any = 7
        with pytest.raises(InvalidArgumentError):
            await runtime.create(Tells, id=wrong)
        # Adapted: in Python None is how an id is left out, in create and in a batch alike.
        assert 32 == len((await runtime.create(Tells, id=None)).id)


async def test_case_097_an_instance_runs_on_where_its_creator_goes_away_at_once(
    folder: Path, replay: Replay
) -> None:
    async with open_it(folder, replay) as runtime:
        with trio.CancelScope() as request:
            await runtime.create(Tells, params=1, id="a")
            request.cancel()
        assert 1 == (await (await runtime.get(Tells, "a")).result())[0]


async def test_case_098_a_failed_instance_tells_its_error_and_a_successful_one_its_output(
    folder: Path, replay: Replay
) -> None:
    async with open_it(folder, replay) as runtime:
        failed = await runtime.create(Other, params="no such thing", id="failed")
        with pytest.raises(InstanceFailedError, match="LookupError: no such thing") as error:
            await failed.result()
        status = await failed.status()
        (row,) = await failed.sql("SELECT error ->> '$.message' AS message FROM instance")
        done = await runtime.create(Other, id="done")
        assert 1 == await done.result()
        (output,) = await done.sql("SELECT output FROM instance")
    assert isinstance(error.value.__cause__, LookupError)
    assert ("errored", "no such thing", "1") == (status.status, row.message, output.output)
    assert perdure.InstanceStatus is type(status)
