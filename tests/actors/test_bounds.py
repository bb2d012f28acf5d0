"""Limits of a run: what exceeds one is refused before it is recorded, what comes near one is told once."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import pytest

import perdure
from perdure import (
    App,
    Instance,
    InstanceFailedError,
    InvalidArgumentError,
    LimitExceededError,
    Limits,
    Sql,
    WorkflowEntrypoint,
    WorkflowEvent,
    WorkflowLimits,
    WorkflowStep,
)
from perdure.actors.host import Replay
from perdure.testing import open_test_runtime

NEAR = "SELECT detail FROM history WHERE what = 'limit near'"


async def give(size: int) -> str:
    return "x" * size


def give_at_once(_sql: Sql, size: int) -> str:
    return "x" * size


class Steps(WorkflowEntrypoint):
    async def run(self, event: WorkflowEvent[int], step: WorkflowStep) -> int:
        await step.sleep("waits are free", 1)
        for number in range(event.payload):
            await step.do("work", give, 1)
            await step.now("values are free", key=number)
        return event.payload


class FewSteps(Steps):
    limits = WorkflowLimits(steps_max=3)


async def ended(
    folder: Path, replay: Replay, cls: Any, params: Any = None, *, limits: Limits | None = None
) -> tuple[Any, list[str]]:
    """Run an instance; return its result, or the error of `run()`, and what was told of limits."""
    async with open_test_runtime(folder, workflows=[cls], replay=replay, limits=limits) as runtime:
        instance: Instance[Any] = await runtime.create(cls, params=params)
        result: Any = None
        try:
            result = await instance.result()
        except InstanceFailedError as error:
            result = error.__cause__
        return result, [row.detail for row in await instance.sql(NEAR)]


# -- steps -------------------------------------------------------------------------------------


async def test_as_many_steps_as_allowed_complete(tmp_path: Path, replay: Replay) -> None:
    assert (3, ["step 'work' is number 3 of the run, and steps_max is 3"]) == await ended(
        tmp_path / "state", replay, FewSteps, 3
    )


async def test_one_more_fails_the_run_with_the_number_and_the_bound(tmp_path: Path, replay: Replay) -> None:
    error, _ = await ended(tmp_path / "state", replay, FewSteps, 4)

    assert isinstance(error, LimitExceededError)
    assert ("steps_max", 4, 3) == (error.limit, error.value, error.allowed)
    assert "step 'work' is number 4 of the run, and steps_max allows 3" in str(error)


async def test_there_is_no_limit_of_steps_by_default(tmp_path: Path) -> None:
    assert (40, []) == await ended(tmp_path / "state", "warm", Steps, 40)


async def test_a_limit_of_the_app_holds_for_workflows_that_have_none_of_their_own(
    tmp_path: Path, replay: Replay
) -> None:
    limits = Limits(steps_max=5)

    error, _ = await ended(tmp_path / "general", replay, Steps, 6, limits=limits)
    assert isinstance(error, LimitExceededError)
    assert 5 == error.allowed
    error, _ = await ended(tmp_path / "own", replay, FewSteps, 6, limits=limits)
    assert isinstance(error, LimitExceededError)
    assert 3 == error.allowed


async def test_that_a_limit_is_near_is_told_once_in_log_and_history(
    tmp_path: Path, replay: Replay, caplog: pytest.LogCaptureFixture
) -> None:
    result, told = await ended(tmp_path / "state", replay, Steps, 10, limits=Limits(steps_max=10))

    assert (10, ["step 'work' is number 8 of the run, and steps_max is 10"]) == (result, told)
    assert 1 == sum("comes near a limit" in record.message for record in caplog.records)


async def test_run_may_catch_it_and_go_on_without_the_step(tmp_path: Path, replay: Replay) -> None:
    class Careful(WorkflowEntrypoint):
        limits = WorkflowLimits(steps_max=1)

        async def run(self, event: WorkflowEvent[Any], step: WorkflowStep) -> str:
            await step.do("one", give, 1)
            try:
                await step.do("two", give, 1)
            except LimitExceededError:
                await step.sleep("a while", 1)
                return "enough"
            return "more"

    assert "enough" == (await ended(tmp_path / "state", replay, Careful))[0]


async def test_steps_are_counted_over_restarts(tmp_path: Path, replay: Replay) -> None:
    class Waits(WorkflowEntrypoint):
        limits = WorkflowLimits(steps_max=2)

        async def run(self, event: WorkflowEvent[Any], step: WorkflowStep) -> None:
            await step.do("one", give, 1)
            await step.wait_for_event("go", type="go", timeout=None)
            await step.do("two", give, 1)
            await step.do("three", give, 1)

    async with open_test_runtime(tmp_path / "state", workflows=[Waits], replay=replay) as runtime:
        await (await runtime.create(Waits, id="a")).send_event("go", None)
    async with open_test_runtime(tmp_path / "state", workflows=[Waits], replay=replay) as runtime:
        with pytest.raises(InstanceFailedError) as failed:
            await (await runtime.get(Waits, "a")).result()

    assert "step 'three' is number 3" in str(failed.value)


# -- bytes -------------------------------------------------------------------------------------


class Gives(WorkflowEntrypoint):
    limits = WorkflowLimits(result_bytes_max=100)

    async def run(self, event: WorkflowEvent[tuple[str, int]], step: WorkflowStep) -> Any:
        kind, size = event.payload
        if kind == "do":
            return len(await step.do("give", give, size, sensitive="output"))
        if kind == "transaction":
            return len(await step.transaction("give", give_at_once, size))
        return "x" * size


@pytest.mark.parametrize("kind", ["do", "transaction", "run"])
async def test_a_result_above_its_limit_is_refused_and_not_retried(
    tmp_path: Path, replay: Replay, kind: str
) -> None:
    error, _ = await ended(tmp_path / "state", replay, Gives, (kind, 99))
    assert isinstance(error, LimitExceededError)
    assert ("result_bytes_max", 101, 100) == (error.limit, error.value, error.allowed)

    _, told = await ended(tmp_path / "near", replay, Gives, (kind, 80))
    assert ["a result takes 82 bytes, and result_bytes_max is 100"] == told


class Takes(WorkflowEntrypoint):
    limits = WorkflowLimits(event_bytes_max=50)

    async def run(self, event: WorkflowEvent[Any], step: WorkflowStep) -> Any:
        return (await step.wait_for_event("word", type="word")).payload


async def test_params_and_events_above_their_limit_are_refused_before_anything_is_written(
    tmp_path: Path, replay: Replay
) -> None:
    large = "x" * 49
    async with open_test_runtime(tmp_path / "state", workflows=[Takes], replay=replay) as runtime:
        given: list[dict[str, Any]] = [{"params": large}, {"event": ("word", large)}]
        for refused in given:
            with pytest.raises(LimitExceededError, match="event_bytes_max allows 50"):
                await runtime.create(Takes, id="a", **refused)
        with pytest.raises(LimitExceededError):
            await runtime.create_batch(Takes, [{"id": "a"}, {"id": "b", "params": large}])
        assert [] == await runtime.list()

        instance = await runtime.create(Takes, id="a", params="x" * 48)
        with pytest.raises(LimitExceededError):
            await instance.send_event("word", large)
        assert [] == await instance.sql("SELECT * FROM events")
        await instance.send_event("word", "x" * 48)
        assert "x" * 48 == await instance.result()
        assert ["an event of type 'word' takes 50 bytes, and event_bytes_max is 50"] == [
            row.detail for row in await instance.sql(NEAR)
        ]


async def test_a_run_whose_state_has_grown_too_large_begins_no_step(tmp_path: Path, replay: Replay) -> None:
    class Grows(WorkflowEntrypoint):
        limits = WorkflowLimits(state_bytes_max=400_000)

        async def run(self, event: WorkflowEvent[Any], step: WorkflowStep) -> int:
            done = 0
            try:
                for number in range(20):
                    await step.do("grow", give, 60_000, key=number)
                    done += 1
            except LimitExceededError as error:
                return done if error.limit == "state_bytes_max" else -1
            return 20

    done, told = await ended(tmp_path / "state", replay, Grows)

    assert 5 <= done <= 7
    assert 1 == len(told)
    assert "the state takes" in told[0]


# -- what is no limit --------------------------------------------------------------------------


@pytest.mark.parametrize("value", [0, -1, 2.5, True, "10"])
def test_a_limit_that_is_none_is_refused_where_it_is_set(value: Any) -> None:
    class Bad(WorkflowEntrypoint):
        limits = WorkflowLimits(steps_max=value)

        async def run(self, event: WorkflowEvent[Any], step: WorkflowStep) -> None:
            return None

    with pytest.raises(InvalidArgumentError, match=r"Bad\.limits: steps_max=.* must be a whole number"):
        App([Bad])
    with pytest.raises(InvalidArgumentError, match=r"App\(limits=\): steps_max="):
        App(limits=Limits(steps_max=value))


def test_limits_of_another_kind_are_refused() -> None:
    class Bad(WorkflowEntrypoint):
        limits: ClassVar[Any] = {"steps": 3}

        async def run(self, event: WorkflowEvent[Any], step: WorkflowStep) -> None:
            return None

    with pytest.raises(InvalidArgumentError, match=r"Bad\.limits is .*steps.*WorkflowLimits"):
        App([Bad])


async def test_a_runtime_with_bad_limits_does_not_open(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError, match=r"open_runtime\(limits=\)"):
        async with perdure.open_runtime(tmp_path / "state", limits=Limits(event_bytes_max=0)):
            pass

    assert not (tmp_path / "state").exists()


# -- versions ----------------------------------------------------------------------------------


async def test_the_version_is_that_of_the_class_when_the_run_begins(tmp_path: Path, replay: Replay) -> None:
    def of(number: str) -> Any:
        class Order(WorkflowEntrypoint):
            version = number

            async def run(self, event: WorkflowEvent[Any], step: WorkflowStep) -> None:
                await step.wait_for_event("go", type="go", timeout=None)

        return Order

    async def version_of(instance: Instance[Any]) -> list[str | None]:
        ((found,),) = await instance.sql("SELECT version FROM instance")
        return [found, (await instance.status()).version]

    first, second = of("1"), of("2")
    async with open_test_runtime(tmp_path / "state", workflows=[first], replay=replay) as runtime:
        begun = await runtime.create(first, id="begun")
        assert ["1", "1"] == await version_of(begun)
    async with open_test_runtime(tmp_path / "state", workflows=[second], replay=replay) as runtime:
        begun = await runtime.get(second, "begun")
        await begun.send_event("other")
        assert ["1", "1"] == await version_of(begun)
        await begun.restart()
        await begun.send_event("go")
        await begun.result()
        assert ["2", "2"] == await version_of(begun)
