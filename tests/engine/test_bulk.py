"""Commands to many instances by a condition on the catalog, and attaching to what exists."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from perdure import (
    Instance,
    InstanceExistsError,
    InvalidArgumentError,
    QueryError,
    QueryRefusedError,
    WorkflowEntrypoint,
    WorkflowEvent,
    WorkflowStep,
)
from perdure.testing import open_test_runtime


class Greet(WorkflowEntrypoint):
    async def run(self, event: WorkflowEvent[dict[str, Any]], step: WorkflowStep) -> str:
        return await step.do("greet", lambda: "hello")


class Waits(WorkflowEntrypoint):
    async def run(self, event: WorkflowEvent[None], step: WorkflowStep) -> str:
        return str((await step.wait_for_event("word", type="word", timeout=None)).payload)


async def at_rest(instance: Instance[Any]) -> None:
    """Return once the instance has ended and the catalog knows."""
    await instance.result()
    await access_of(instance).closed(instance.key)


def access_of(handle: object) -> Any:
    """Return how a handle reaches its instance."""
    return vars(handle)["_access"]


@pytest.fixture
def open_it(tmp_path: Path) -> Callable[..., Any]:
    def open_(**options: Any) -> Any:
        return open_test_runtime(tmp_path / "s", workflows=[Greet, Waits], **options)

    return open_


async def test_a_command_reaches_all_that_meet_the_condition_and_no_other(open_it: Any) -> None:
    async with open_it() as runtime:
        for number in range(3):
            await runtime.create(Waits, id=f"a{number}", tags=["nightly", "x"])
        await runtime.create(Waits, id="b")

        paused = await runtime.select(Waits, tag="nightly").pause(who="Ada")
        others = await runtime.select(where="id = 'b' OR id = 'a1'").terminate()

        assert ["Waits/a0", "Waits/a1", "Waits/a2"] == paused.done
        assert ["Waits/a1", "Waits/b"] == sorted(others.done)
        statuses = {row.id: row.status for row in runtime.rows()}
        assert {"a0": "paused", "a1": "terminated", "a2": "paused", "b": "terminated"} == statuses
        resumed = await runtime.select(status="paused").resume()
        assert ["Waits/a0", "Waits/a2"] == resumed.done


async def test_one_that_refuses_is_reported_and_holds_up_none_of_the_others(open_it: Any) -> None:
    async with open_it() as runtime:
        await (await runtime.create(Greet, params={}, id="g")).result()
        await runtime.create(Waits, id="w")

        report = await runtime.select().terminate()

        assert ["Waits/w"] == report.done
        (refused,) = report.refused
        assert ("Greet/g", "InstanceFinishedError") == (refused.instance, refused.error)
        assert "has finished (complete)" in refused.why


async def test_many_are_restarted_from_a_step_and_deleted(open_it: Any) -> None:
    async with open_it() as runtime:
        created = await runtime.create_batch(Greet, [{"id": f"g{n}", "params": {}} for n in range(120)])
        for instance in created:
            await at_rest(instance)

        again = await runtime.select(Greet, status="complete").restart("greet")
        for instance in created:
            await at_rest(instance)
        unknown = await runtime.select(Greet).restart("farewell")
        gone = await runtime.select(Greet).delete()

        assert (120, 120, 120) == (len(again.done), len(unknown.refused), len(gone.done))
        assert [] == runtime.rows()


async def test_a_condition_that_is_wrong_is_refused_before_any_effect(open_it: Any) -> None:
    async with open_it() as runtime:
        await runtime.create(Waits, id="w")

        with pytest.raises(InvalidArgumentError, match="queued, running, waiting"):
            runtime.select(status="done")
        with pytest.raises(InvalidArgumentError, match="queued, running, waiting"):
            await runtime.list(status="done")
        with pytest.raises(QueryError):
            await runtime.select(where="no_such_column = 1").delete()
        with pytest.raises((QueryRefusedError, QueryError)):
            await runtime.select(where="1); DELETE FROM _perdure_instances; SELECT (1").delete()

        assert ["w"] == [row.id for row in runtime.rows()]


async def test_attaching_with_other_params_is_an_error_that_names_the_fields(open_it: Any) -> None:
    async with open_it() as runtime:
        first = await runtime.create(Greet, params={"name": "Ada", "age": 36}, id="g")
        for _ in range(2):
            same = await runtime.create(Greet, params={"name": "Ada", "age": 36}, id="g", if_exists="attach")
            assert first.key == same.key
            with pytest.raises(InstanceExistsError, match="with other params: 'age' differs"):
                await runtime.create(Greet, params={"name": "Ada", "age": 37}, id="g", if_exists="attach")
            await at_rest(first)


async def test_attaching_compares_large_params_too(open_it: Any) -> None:
    large = {"text": "x" * 200_000}
    async with open_it() as runtime:
        first = await runtime.create(Greet, params=large, id="g")
        await at_rest(first)

        await runtime.create(Greet, params=large, id="g", if_exists="attach")
        with pytest.raises(InstanceExistsError, match="'text' differs"):
            await runtime.create(Greet, params={"text": "y" * 200_000}, id="g", if_exists="attach")
