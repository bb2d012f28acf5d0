"""What programs call with arguments that make no sense is refused by name, and changes nothing (law 13)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest

from perdure import (
    Instance,
    InvalidArgumentError,
    QueryError,
    Runtime,
    WorkflowEntrypoint,
    WorkflowEvent,
    WorkflowStep,
)
from perdure.testing import open_test_runtime

SURROGATE = "\ud800"
Ask = Callable[[Any, Any], Awaitable[Any]]


class Waits(WorkflowEntrypoint):
    async def run(self, event: WorkflowEvent[None], step: WorkflowStep) -> str:
        await step.do("begin", lambda: 1)
        return str((await step.wait_for_event("word", type="word", timeout=None)).payload)


async def until_it_waits(instance: Instance[Any]) -> None:
    async with aclosing(instance.subscribe()) as entries:
        async for entry in entries:
            if entry.what == "event started":
                return


CREATIONS: list[Ask] = [
    lambda runtime, _: runtime.create(Waits, tags="monthly"),
    lambda runtime, _: runtime.create(Waits, tags=[1]),
    lambda runtime, _: runtime.create(Waits, tags=5),
    lambda runtime, _: runtime.create(Waits, tags=[SURROGATE]),
    lambda runtime, _: runtime.create(Waits, event="ab"),
    lambda runtime, _: runtime.create(Waits, event=("ab",)),
    lambda runtime, _: runtime.create(Waits, token=5),
    lambda runtime, _: runtime.create(Waits, token=""),
    lambda runtime, _: runtime.create(Waits, token=SURROGATE),
    lambda runtime, _: runtime.create_batch(Waits, None),
    lambda runtime, _: runtime.create_batch(Waits, {"id": "x"}),
    lambda runtime, _: runtime.create_batch(Waits, [{"id": "x"}], token=5),
    lambda runtime, _: runtime.create_batch(Waits, [{"id": "x"}, {"id": "y", "tags": "xy"}]),
]
FINDINGS: list[Ask] = [
    lambda runtime, _: runtime.get(Waits, SURROGATE),
    lambda runtime, _: runtime.get(SURROGATE, "w"),
    lambda runtime, _: runtime.list(Waits, limit="x"),
    lambda runtime, _: runtime.list(Waits, limit=-1),
    lambda runtime, _: runtime.list(Waits, limit=10**30),
    lambda runtime, _: runtime.select(status=5).pause(),
    lambda _, instance: instance.call(5),
]
COMMANDS: list[Ask] = [
    lambda runtime, _: runtime.delete_batch(Waits, "w"),
    lambda runtime, _: runtime.delete_batch(Waits, 5),
    lambda runtime, _: runtime.delete_batch(Waits, ["w"], token=5),
    lambda runtime, _: runtime.select(status=[]).delete(),
    lambda runtime, _: runtime.select(tag=5).delete(),
    lambda runtime, _: runtime.select(where=1).delete(),
    lambda runtime, _: runtime.select(Waits).pause(who=SURROGATE),
    lambda _, instance: instance.pause(who=5),
    lambda _, instance: instance.pause(who="a\nb"),
    lambda _, instance: instance.pause(who=SURROGATE),
    lambda _, instance: instance.terminate(token=5),
    lambda _, instance: instance.terminate(token=""),
    lambda _, instance: instance.terminate(rollback="no"),
    lambda _, instance: instance.restart(who=""),
    lambda _, instance: instance.restart("begin", count=10**30),
    lambda _, instance: instance.send_event("word", 1, token=5),
    lambda _, instance: instance.delete(who=SURROGATE),
]


async def everything(runtime: Runtime, instance: Instance[Any]) -> tuple[Any, ...]:
    return [row.key for row in runtime.rows()], (await instance.status()).status, await instance.history()


@pytest.mark.parametrize("ask", [*CREATIONS, *FINDINGS, *COMMANDS])
async def test_a_call_that_makes_no_sense_is_refused_and_changes_nothing(tmp_path: Path, ask: Ask) -> None:
    async with open_test_runtime(tmp_path, workflows=[Waits]) as runtime:
        instance = await runtime.create(Waits, id="w")
        await until_it_waits(instance)
        before = await everything(runtime, instance)

        with pytest.raises(InvalidArgumentError):
            await ask(runtime, instance)

        assert before == await everything(runtime, instance)
        await instance.pause(who="Ada")  # its file takes writes as before
        assert "paused" == (await instance.status()).status


async def test_a_condition_with_a_bracket_too_many_reaches_no_other_workflow(tmp_path: Path) -> None:
    class Other(Waits):
        name = "Other"

    async with open_test_runtime(tmp_path, workflows=[Waits, Other]) as runtime:
        await runtime.create(Waits, id="w")
        await runtime.create(Other, id="o")
        report = await runtime.select(Other, where="1) OR (1").delete()

        assert ["Other/o"] == report.done
        assert ["w"] == [row.key.id for row in runtime.rows()]
        with pytest.raises(QueryError):
            await runtime.select(Other, where="").delete()


async def test_a_query_that_is_no_text_is_refused(tmp_path: Path) -> None:
    async with open_test_runtime(tmp_path, workflows=[Waits]) as runtime:
        instance = await runtime.create(Waits, id="w")
        query: Any = 5
        with pytest.raises(QueryError, match="5 is no query"):
            await instance.sql(query)
