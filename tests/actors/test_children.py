"""`step.child` and `step.children`: other instances, started and awaited durably."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from perdure import (
    ChildFailedError,
    ChildTerminatedError,
    InstanceExistsError,
    InstanceFailedError,
    InstanceTerminatedError,
    InvalidArgumentError,
    InvalidIdError,
    InvalidParamsError,
    UnknownWorkflowError,
    WorkflowEntrypoint,
    WorkflowEvent,
    WorkflowStep,
)
from perdure.actors.host import Replay
from perdure.testing import open_test_runtime

CHILD_STEPS = (
    "SELECT name, status, detail ->> '$.child' AS child FROM steps WHERE kind = 'child' ORDER BY seq"
)


class DeclinedError(Exception):
    def __init__(self, amount: int) -> None:
        super().__init__(f"{amount} declined")
        self.amount = amount


class Double(WorkflowEntrypoint):
    async def run(self, event: WorkflowEvent[int], step: WorkflowStep) -> int:
        await step.sleep("think", "1 hour")
        if event.payload < 0:
            raise DeclinedError(event.payload)
        return event.payload * 2


class Wait(WorkflowEntrypoint):
    async def run(self, event: WorkflowEvent[Any], step: WorkflowStep) -> str:
        return str((await step.wait_for_event("word", type="word", timeout=None)).payload)


class Stranger(WorkflowEntrypoint):
    async def run(self, event: WorkflowEvent[Any], step: WorkflowStep) -> None: ...


async def outcome_of(tmp_path: Path, replay: Replay, run: Any, *kids: type) -> tuple[Any, Any, list[Any]]:
    """Play `run(step)` as a parent; return its result or its error, and its child steps."""

    class Parent(WorkflowEntrypoint):
        async def run(self, event: WorkflowEvent[Any], step: WorkflowStep) -> Any:
            return await run(step)

    async with open_test_runtime(
        tmp_path / "state", workflows=[Parent, Double, Wait, *kids], replay=replay
    ) as runtime:
        parent = await runtime.create(Parent, id="p")
        result, error = None, None
        try:
            result = await parent.result()
        except InstanceFailedError as failed:
            error = failed.__cause__
        return result, error, [tuple(row) for row in await parent.sql(CHILD_STEPS)]


async def test_a_child_is_awaited_for_its_result(tmp_path: Path, replay: Replay) -> None:
    async def run(step: WorkflowStep) -> list[int]:
        return [
            await step.child(Double, 4),
            await step.child(Double, 5),
            await step.child(Double, 6, name="six"),
        ]

    result, error, steps = await outcome_of(tmp_path, replay, run)

    assert ([8, 10, 12], None) == (result, error)
    assert [
        ("Double", "completed", "Double/p.Double"),
        ("Double", "completed", "Double/p.Double.2"),
        ("six", "completed", "Double/p.six"),
    ] == steps


async def test_a_child_that_fails_fails_its_step_with_its_own_error_as_the_cause(
    tmp_path: Path, replay: Replay
) -> None:
    async def run(step: WorkflowStep) -> Any:
        with pytest.raises(ChildFailedError) as caught:
            await step.child(Double, -7)
        failed = caught.value
        assert isinstance(failed.__cause__, DeclinedError)
        return [failed.__cause__.amount, failed.workflow, failed.instance_id, str(failed)]

    result, _, steps = await outcome_of(tmp_path, replay, run)

    assert -7 == result[0]
    assert ["Double", "p.Double"] == result[1:3]
    assert "DeclinedError: -7 declined" in result[3]
    assert [("Double", "failed", "Double/p.Double")] == steps


async def test_a_failure_that_nobody_catches_fails_the_parent(tmp_path: Path, replay: Replay) -> None:
    async def run(step: WorkflowStep) -> Any:
        return await step.child(Double, -1)

    _, error, _ = await outcome_of(tmp_path, replay, run)

    assert isinstance(error, ChildFailedError)
    assert isinstance(error.__cause__, DeclinedError)


async def test_children_come_back_in_order_and_one_failure_is_raised_as_it_is(
    tmp_path: Path, replay: Replay
) -> None:
    async def run(step: WorkflowStep) -> Any:
        doubled = await step.children("double", Double, range(30), limit=7)
        none: list[int] = []
        assert await step.children("nobody", Double, none) == []
        try:
            await step.children("some", Double, [1, -1, 2])
        except ChildFailedError as failed:
            return [doubled, failed.instance_id]

    result, _, steps = await outcome_of(tmp_path, replay, run)

    assert [[2 * n for n in range(30)], "p.some[1]"] == result
    assert ("double[29]", "completed", "Double/p.double[29]") == steps[29]


async def test_several_failures_are_raised_as_a_group(tmp_path: Path, replay: Replay) -> None:
    async def run(step: WorkflowStep) -> Any:
        with pytest.raises(ExceptionGroup) as caught:
            await step.children("some", Double, [-1, 2, -3])
        return [type(error).__name__ for error in caught.value.exceptions]

    assert ["ChildFailedError", "ChildFailedError"] == (await outcome_of(tmp_path, replay, run))[0]


async def test_children_run_beside_each_other_in_gather_and_race(tmp_path: Path, replay: Replay) -> None:
    async def run(step: WorkflowStep) -> Any:
        both = await step.gather(
            "both", {"a": step.child(Double, 1, key="a"), "b": step.child(Double, 2, key="b")}
        )
        who, value = await step.race(
            "first", {"slow": step.child(Wait, name="slow"), "quick": step.child(Double, 3, name="quick")}
        )
        return [both, who, value]

    result, error, steps = await outcome_of(tmp_path, replay, run)

    assert (None, [{"a": 2, "b": 4}, "quick", 6]) == (error, result)
    assert ("slow", "cancelled", "Wait/p.slow") in steps


@pytest.mark.parametrize(("on_cancel", "status"), [("terminate", "terminated"), ("abandon", "waiting")])
async def test_a_child_whose_wait_is_cancelled_ends_unless_it_is_abandoned(
    tmp_path: Path, replay: Replay, on_cancel: Any, status: str
) -> None:
    class Parent(WorkflowEntrypoint):
        async def run(self, event: WorkflowEvent[Any], step: WorkflowStep) -> str:
            async with step.move_on_after("patience", "1 hour") as scope:
                await step.child(Wait, name="w", on_cancel=on_cancel)
            await step.sleep("after", "1 hour")
            return f"expired: {scope.expired}"

    async with open_test_runtime(tmp_path / "state", workflows=[Parent, Wait], replay=replay) as runtime:
        assert "expired: True" == await (await runtime.create(Parent, id="p")).result()
        child = await runtime.get(Wait, "p.w")
        if on_cancel == "terminate":
            with pytest.raises(InstanceTerminatedError):
                await child.result()
        assert status == (await child.status()).status


@pytest.mark.parametrize(("on_cancel", "status"), [("terminate", "terminated"), ("abandon", "waiting")])
async def test_the_end_of_the_parent_ends_its_children_unless_they_are_abandoned(
    tmp_path: Path, replay: Replay, on_cancel: Any, status: str
) -> None:
    class Parent(WorkflowEntrypoint):
        async def run(self, event: WorkflowEvent[Any], step: WorkflowStep) -> None:
            await step.children("w", Wait, [None, None], on_cancel=on_cancel)

    async with open_test_runtime(tmp_path / "state", workflows=[Parent, Wait], replay=replay) as runtime:
        parent = await runtime.create(Parent, id="p", timeout="1 hour")
        with pytest.raises(InstanceFailedError):  # its timeout
            await parent.result()
        for child in [await runtime.get(Wait, f"p.w[{n}]") for n in range(2)]:
            if on_cancel == "terminate":
                with pytest.raises(InstanceTerminatedError):
                    await child.result()
            assert status == (await child.status()).status


async def test_a_terminated_child_fails_its_step_with_an_error_of_its_own(
    tmp_path: Path, replay: Replay
) -> None:
    class Parent(WorkflowEntrypoint):
        async def run(self, event: WorkflowEvent[Any], step: WorkflowStep) -> str:
            try:
                return await step.child(Wait, id="mine")
            except ChildTerminatedError as error:
                return f"terminated: {error.instance_id}"

    async with open_test_runtime(tmp_path / "state", workflows=[Parent, Wait], replay=replay) as runtime:
        parent = await runtime.create(Parent, id="p")
        child = await runtime.get(Wait, "mine") if runtime.rows(workflow="Wait") else None
        while child is None:
            await parent.sql("SELECT 1")
            child = await runtime.get(Wait, "mine") if runtime.rows(workflow="Wait") else None
        await child.terminate()

        assert "terminated: mine" == await parent.result()


async def test_an_id_that_is_somebody_elses_is_refused(tmp_path: Path, replay: Replay) -> None:
    class Parent(WorkflowEntrypoint):
        async def run(self, event: WorkflowEvent[Any], step: WorkflowStep) -> str:
            return await step.child(Wait, id="taken")

    async with open_test_runtime(tmp_path / "state", workflows=[Parent, Wait], replay=replay) as runtime:
        await runtime.create(Wait, id="taken")
        with pytest.raises(InstanceFailedError) as failed:
            await (await runtime.create(Parent, id="p")).result()

        assert isinstance(failed.value.__cause__, InstanceExistsError)
        assert "an instance of its own" in str(failed.value.__cause__)
        assert "waiting" == (await (await runtime.get(Wait, "taken")).status()).status


async def test_a_call_that_is_wrong_is_refused_before_any_effect(tmp_path: Path, replay: Replay) -> None:
    async def run(step: WorkflowStep) -> Any:
        bad: Any = "x"
        refused: list[str] = []
        calls: list[tuple[Callable[[], object], type[Exception]]] = [
            (lambda: step.child(Stranger), UnknownWorkflowError),
            (lambda: step.child("Nobody"), UnknownWorkflowError),
            (lambda: step.child(Double, bad), InvalidParamsError),
            (lambda: step.child(Double, 1, id="a\nb"), InvalidIdError),
            (lambda: step.child(Double, 1, on_cancel=bad), InvalidArgumentError),
            (lambda: step.child(Double, 1, tags=bad), InvalidArgumentError),
            (lambda: step.child(Double, 1, timeout="soon"), InvalidArgumentError),
            (lambda: step.children("k", Double, [1, bad]), InvalidParamsError),
            (lambda: step.children("k", Double, [1], limit=0), InvalidArgumentError),
        ]
        for wrong, kind in calls:
            with pytest.raises(kind) as error:
                wrong()
            refused.append(type(error.value).__name__)
        return refused

    result, error, steps = await outcome_of(tmp_path, replay, run)

    assert (None, 9, []) == (error, len(result), steps)


async def test_the_timeout_of_a_child_is_of_its_whole_run(tmp_path: Path, replay: Replay) -> None:
    async def run(step: WorkflowStep) -> Any:
        try:
            await step.child(Wait, timeout="10 minutes")
        except ChildFailedError as failed:
            return type(failed.__cause__).__name__

    assert "RunTimeoutError" == (await outcome_of(tmp_path, replay, run))[0]


async def test_a_large_result_of_a_child_comes_back_whole(tmp_path: Path, replay: Replay) -> None:
    class Large(WorkflowEntrypoint):
        async def run(self, event: WorkflowEvent[Any], step: WorkflowStep) -> str:
            return "x" * 300_000

    class Bytes(WorkflowEntrypoint):
        async def run(self, event: WorkflowEvent[Any], step: WorkflowStep) -> bytes:
            return b"\x00\xff"

    async def run(step: WorkflowStep) -> Any:
        return [len(await step.child(Large)), len(await step.child(Bytes))]

    assert [300_000, 2] == (await outcome_of(tmp_path, replay, run, Large, Bytes))[0]


async def test_a_name_too_long_for_an_id_is_hashed(tmp_path: Path, replay: Replay) -> None:
    class Parent(WorkflowEntrypoint):
        async def run(self, event: WorkflowEvent[Any], step: WorkflowStep) -> int:
            return await step.child(Double, 1, name="n" * 256)

    async with open_test_runtime(tmp_path / "state", workflows=[Parent, Double], replay=replay) as runtime:
        assert 2 == await (await runtime.create(Parent, id="p" * 512)).result()
        (child,) = runtime.rows(workflow="Double")
        assert 512 == len(child.id)
        assert f"Parent/{'p' * 512}" == child.parent
