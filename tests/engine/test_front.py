"""What works with one worker works with two: the same programs, through the same handles."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from types import ModuleType
from typing import Any

import pytest
import trio

from perdure import (
    Instance,
    InstanceExistsError,
    InstanceFailedError,
    InstanceFinishedError,
    InstanceNotFoundError,
    InstanceTerminatedError,
    Runtime,
)

pytestmark = pytest.mark.slow

OpenShared = Callable[..., AbstractAsyncContextManager[Runtime]]


@pytest.fixture(params=[1, 2], ids=["one worker", "two workers"])
def opened(
    request: pytest.FixtureRequest, open_shared: OpenShared
) -> Callable[[], AbstractAsyncContextManager[Runtime]]:
    return lambda: open_shared(workers=request.param)


Opened = Callable[[], AbstractAsyncContextManager[Runtime]]


async def until(instance: Instance[Any], what: str) -> None:
    async with contextlib.aclosing(instance.subscribe()) as story:
        async for entry in story:
            if entry.what == what:
                return
    raise AssertionError(f"{instance} ended before {what!r}")


async def test_results_come_back(opened: Opened, shared: ModuleType) -> None:
    async with opened() as runtime:
        instances = [await runtime.create(shared.Sum, params=[number, 1]) for number in range(8)]

        assert list(range(1, 9)) == [await instance.result() for instance in instances]


async def test_a_result_is_there_for_who_asks_later(opened: Opened, shared: ModuleType) -> None:
    async with opened() as runtime:
        await (await runtime.create(shared.Sum, params=[2, 3], id="a")).result()
    async with opened() as runtime:
        assert 5 == await (await runtime.get(shared.Sum, "a")).result()


async def test_a_failure_brings_the_error_of_its_own_class(opened: Opened, shared: ModuleType) -> None:
    async with opened() as runtime:
        instance = await runtime.create(shared.Failing)
        with pytest.raises(InstanceFailedError, match="not today") as failure:
            await instance.result()

        assert isinstance(failure.value.__cause__, shared.RefusedError)
        assert "errored" == (await instance.status()).status


async def test_events_arrive_in_the_order_sent(opened: Opened, shared: ModuleType) -> None:
    async with opened() as runtime:
        instance = await runtime.create(shared.Approval)
        for number in (1, 2):
            await instance.send_event("go", number)

        assert [1, 2] == await instance.result()


async def test_an_event_to_what_has_finished_is_an_error_with_its_facts(
    opened: Opened, shared: ModuleType
) -> None:
    async with opened() as runtime:
        instance = await runtime.create(shared.Sum, params=[1], id="a")
        await instance.result()
        with pytest.raises(InstanceFinishedError) as refused:
            await instance.send_event("go", 1)

        assert ("Sum", "a") == (refused.value.workflow, refused.value.instance_id)


async def test_pause_resume_and_terminate_reach_it(opened: Opened, shared: ModuleType) -> None:
    async with opened() as runtime:
        instance = await runtime.create(shared.Approval)
        await until(instance, "event started")
        await instance.pause(who="ada")
        await until(instance, "pause")
        await instance.resume(who="ada")
        await instance.terminate(who="ada")

        assert "terminated" == (await instance.status()).status
        with pytest.raises(InstanceTerminatedError):
            await instance.result()


async def test_its_rows_can_be_asked_for_while_it_waits_and_after(opened: Opened, shared: ModuleType) -> None:
    async with opened() as runtime:
        instance = await runtime.create(shared.Approval)
        await until(instance, "event started")
        (waiting,) = await instance.sql("SELECT name, status FROM steps")
        await instance.send_event("go", 1)
        await instance.send_event("go", 2)
        await instance.result()
        async with instance.sql_stream("SELECT name FROM steps ORDER BY seq") as rows:
            names = [row.name async for row in rows]

    assert ("go", "waiting") == (waiting.name, waiting.status)
    assert ["go", "more"] == names


async def test_one_that_is_not_started_has_rows_too(opened: Opened, shared: ModuleType) -> None:
    async with opened() as runtime:
        instance = await runtime.create(shared.Approval)

        assert 1 == len(await instance.sql("SELECT id FROM instance"))


async def test_its_history_is_followed_to_the_end(opened: Opened, shared: ModuleType) -> None:
    async with opened() as runtime:
        instance = await runtime.create(shared.Sum, params=[1, 2])
        story = [entry.what async for entry in instance.subscribe()]

    assert [
        "instance created",
        "instance started",
        "do started",
        "do completed",
        "instance complete",
    ] == story


async def test_an_id_in_use_is_refused_attached_to_or_started_anew(
    opened: Opened, shared: ModuleType
) -> None:
    async with opened() as runtime:
        first = await runtime.create(shared.Sum, params=[1], id="a")
        assert 1 == await first.result()
        with pytest.raises(InstanceExistsError):
            await runtime.create(shared.Sum, params=[2], id="a")
        with pytest.raises(InstanceExistsError, match="other params"):
            await runtime.create(shared.Sum, params=[2], id="a", if_exists="attach")
        attached = await runtime.create(shared.Sum, params=[1], id="a", if_exists="attach")
        assert 1 == await attached.result()
        anew = await runtime.create(shared.Sum, params=[3], id="a", if_exists="restart")

        assert 3 == await anew.result()


async def test_what_is_not_there_is_said_so(opened: Opened, shared: ModuleType) -> None:
    async with opened() as runtime:
        with pytest.raises(InstanceNotFoundError):
            await runtime.get(shared.Sum, "nobody")


async def test_a_batch_is_listed_counted_and_summed_up(opened: Opened, shared: ModuleType) -> None:
    async with opened() as runtime:
        batch = await runtime.create_batch(shared.Sum, [{"params": [number]} for number in range(20)])
        async with trio.open_nursery() as nursery:
            for instance in batch:
                nursery.start_soon(instance.result)

        assert 20 == len(await runtime.list(shared.Sum, limit=None))
        assert runtime.statistics().warm >= 0


async def test_a_workflow_reaches_others_wherever_they_run(opened: Opened, shared: ModuleType) -> None:
    async with opened() as runtime:
        instance = await runtime.create(shared.Asking, params=4)

        assert [[number, number + 1] for number in range(4)] == await instance.result()
