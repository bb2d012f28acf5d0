"""Concurrency in a runtime: never more than allowed; who waits is told why, and comes when there is room."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, ClassVar

import pytest

import perdure
from perdure import Concurrency, Runtime, WorkflowEntrypoint, WorkflowEvent, WorkflowStep
from perdure.testing import VirtualClock, open_test_runtime

REPLAYS = ("warm", "always")
START = datetime(2030, 1, 1, tzinfo=UTC)


class Limited(WorkflowEntrypoint):
    """Sleeps a minute with its place, and notes when it began."""

    concurrency: ClassVar[Concurrency | None] = Concurrency(limit=2)

    async def run(self, event: WorkflowEvent[Any], step: WorkflowStep) -> float:
        began = await step.now("began")
        await step.sleep("hold", "1 minute")
        return began.timestamp() - START.timestamp()


class Keyed(Limited):
    concurrency: ClassVar[Concurrency | None] = Concurrency(key=lambda params: params["key"], per_key=1)


class Active(Limited):
    concurrency: ClassVar[Concurrency | None] = Concurrency(limit=1, counts="active")


class Rated(Limited):
    concurrency: ClassVar[Concurrency | None] = Concurrency(rate=(2, "10 seconds"))


class Approval(WorkflowEntrypoint):
    concurrency: ClassVar[Concurrency | None] = Concurrency(limit=1)

    async def run(self, event: WorkflowEvent[None], step: WorkflowStep) -> Any:
        return (await step.wait_for_event("go", type="go", timeout=None)).payload


class ActiveApproval(Approval):
    concurrency: ClassVar[Concurrency | None] = Concurrency(limit=1, counts="active")


CLASSES = [Limited, Keyed, Active, Rated, Approval, ActiveApproval]


@pytest.fixture(params=REPLAYS)
async def runtime(tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[Runtime]:
    async with open_test_runtime(
        tmp_path / "state", workflows=CLASSES, replay=request.param, clock=VirtualClock(start=START)
    ) as runtime:
        yield runtime


async def begins(runtime: Runtime, cls: type[Limited], params: list[Any]) -> list[int]:
    """Create instances one by one, wait for all, and return at which second each began."""
    instances = [await runtime.create(cls, params=each, id=str(n)) for n, each in enumerate(params)]
    return [round(await instance.result()) for instance in instances]


async def test_a_limit_holds_through_sleeps(runtime: Runtime) -> None:
    assert [0, 0, 60, 60, 120] == await begins(runtime, Limited, [None] * 5)


async def test_a_key_is_a_lock(runtime: Runtime) -> None:
    keys = [{"key": key} for key in ("a", "b", "a", None, None, "a")]

    assert [0, 0, 60, 0, 0, 120] == await begins(runtime, Keyed, keys)


async def test_those_that_sleep_leave_room_where_only_active_ones_count(runtime: Runtime) -> None:
    assert [0, 0, 0, 0] == await begins(runtime, Active, [None] * 4)


async def test_a_rate_spreads_the_starts(runtime: Runtime) -> None:
    assert [0, 0, 10, 10, 20] == await begins(runtime, Rated, [None] * 5)


async def test_a_batch_is_bounded_too_and_the_highest_priority_goes_first(runtime: Runtime) -> None:
    created = await runtime.create_batch(
        Limited, [{"id": f"b{number}", "priority": number} for number in range(6)]
    )
    began = {instance.id: round(await instance.result()) for instance in created}

    assert {"b5": 0, "b4": 0, "b3": 60, "b2": 60, "b1": 120, "b0": 120} == began


async def test_priority_goes_before_age_without_concurrency_too(tmp_path: Path) -> None:
    began: list[str] = []

    class Plain(WorkflowEntrypoint):
        async def run(self, event: WorkflowEvent[None], step: WorkflowStep) -> None:
            await step.do("begin", lambda: began.append(event.instance_id))

    limits = perdure.Limits(warm_max=1)
    async with open_test_runtime(tmp_path, workflows=[Plain], limits=limits) as runtime:
        entries: list[perdure.BatchEntry] = [{"id": str(number), "priority": number} for number in range(4)]
        for instance in await runtime.create_batch(Plain, entries):
            await instance.result()
    assert ["3", "2", "1", "0"] == began


async def test_the_status_says_what_is_waited_for(runtime: Runtime) -> None:
    for number in range(3):
        await runtime.create(Approval, id=str(number))
    first = await runtime.get(Approval, "0")
    while (await first.status()).status != "waiting":
        pass
    status = await (await runtime.get(Approval, "2")).status()

    assert ("queued", "1 of Approval run already (limit 1)") == (status.status, status.reason)
    assert 2 == runtime.statistics().workflows["Approval"].queued


@pytest.mark.parametrize("cls", [Approval, ActiveApproval])
async def test_an_event_reaches_one_that_has_no_place_and_does_not_start_it(
    tmp_path: Path, cls: type[Approval]
) -> None:
    async with open_test_runtime(tmp_path, workflows=[cls, Limited], replay="warm") as runtime:
        first, second = [await runtime.create(cls, id=id_) for id_ in ("first", "second")]
        await second.send_event("go", 2)
        status = await second.status()
        if cls is Approval:
            assert ("queued", None) == (status.status, status.started_at)
            await first.send_event("go", 1)
        assert 2 == await second.result()
        await first.send_event("go", 1) if cls is ActiveApproval else None
        assert 1 == await first.result()


async def test_a_terminated_and_a_failed_one_give_their_places_back(runtime: Runtime) -> None:
    first, second, third = [await runtime.create(Approval, id=id_) for id_ in "abc"]
    await second.send_event("go", 2)
    await third.send_event("go", 3)
    await first.terminate()
    assert (2, 3) == (await second.result(), await third.result())


async def test_one_that_waits_for_a_place_can_be_terminated_and_paused(runtime: Runtime) -> None:
    first, second, third = [await runtime.create(Approval, id=id_) for id_ in "abc"]
    await second.pause()
    await third.terminate()
    assert "paused" == (await second.status()).status
    assert "terminated" == (await third.status()).status
    await first.send_event("go", 1)
    assert 1 == await first.result()
    await second.resume()
    await second.send_event("go", 2)
    assert 2 == await second.result()


@pytest.mark.parametrize("replay", REPLAYS)
async def test_a_restart_keeps_places_and_those_that_wait(tmp_path: Path, replay: Any) -> None:
    clock = VirtualClock(start=START)
    async with open_test_runtime(tmp_path, workflows=CLASSES, clock=clock, replay=replay) as runtime:
        for number in range(3):
            await runtime.create(Approval, id=str(number))
        first = await runtime.get(Approval, "0")
        while (await first.status()).status != "waiting":
            pass
    async with open_test_runtime(tmp_path, workflows=CLASSES, clock=clock, replay=replay) as runtime:
        assert 2 == sum(row.status == "queued" for row in runtime.rows())
        instances = [await runtime.get(Approval, str(number)) for number in range(3)]
        for number in (2, 1, 0):
            await instances[number].send_event("go", number)
        assert [0, 1, 2] == [await instance.result() for instance in instances]


async def test_a_limit_that_is_raised_is_felt_at_once(tmp_path: Path) -> None:
    def of(limit: int) -> type[Approval]:
        class Gate(Approval):
            concurrency: ClassVar[Concurrency | None] = Concurrency(key=lambda _: "all", per_key=limit)

        return Gate

    async with open_test_runtime(tmp_path, workflows=[of(1)]) as runtime:
        for number in range(3):
            await runtime.create("Gate", id=str(number))
    async with open_test_runtime(tmp_path, workflows=[of(3)], replay="warm") as runtime:
        for number in (2, 1, 0):
            instance = await runtime.get("Gate", str(number))
            await instance.send_event("go", number)
            assert number == await instance.result()


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (Concurrency(limit=0), "limit=0 must be a whole number from 1"),
        (Concurrency(limit=True), "limit=True must be"),
        (Concurrency(per_key=1), "key and per_key come together"),
        (Concurrency(key=str), "key and per_key come together"),
        (Concurrency(), "bounds nothing"),
        (Concurrency(rate=(0, "1 minute")), "rate: 0 must be"),
        (Concurrency(rate=(1, "soon")), "not a duration"),
        (Concurrency(rate=(1, 0)), "shorter than"),
        (Concurrency(rate=5), "must be a pair"),  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType] - what is refused
        (Concurrency(limit=1, counts="all"), "must be one of"),  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType] - likewise
        (10, r"write Concurrency\(limit=10\)"),
    ],
)
def test_one_that_makes_no_sense_is_refused_with_its_class(given: Any, told: str) -> None:
    class Wrong(Approval):
        concurrency: ClassVar[Any] = given

    with pytest.raises(perdure.InvalidArgumentError, match=told):
        perdure.App([Wrong])


@pytest.mark.parametrize(
    ("params", "priority", "told"),
    [
        ({"key": 7}, 0, "must be text of 1 to 512"),
        ({"key": ""}, 0, "must be text"),
        ({}, 0, "cannot be made: KeyError"),
        ({"key": "a"}, 1.5, "priority=1.5: it must be a whole number"),
        ({"key": "a"}, 2_000_000, "from -1,000,000 to 1,000,000"),
    ],
)
async def test_a_key_or_priority_that_is_none_is_refused_before_anything_happens(
    runtime: Runtime, params: Any, priority: Any, told: str
) -> None:
    with pytest.raises(perdure.InvalidArgumentError, match=told):
        await runtime.create(Keyed, params=params, priority=priority)
    assert [] == runtime.rows()


async def test_time_passes_as_it_would_without_a_bound(runtime: Runtime) -> None:
    await begins(runtime, Limited, [None] * 2)

    assert timedelta(minutes=1) <= (await (await runtime.get(Limited, "0")).status()).ended_at - START  # type: ignore[operator]  # pyright: ignore[reportOptionalOperand] - it has ended
