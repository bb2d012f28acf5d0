"""Methods of a running instance, called from outside."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, aclosing
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import trio

from perdure import (
    Instance,
    InstanceFinishedError,
    InvalidArgumentError,
    Runtime,
    RuntimeClosedError,
    StateError,
    StepEvent,
    WorkflowCodeError,
    WorkflowEntrypoint,
    WorkflowEvent,
    WorkflowStep,
    open_runtime,
)
from perdure.actors.host import Replay
from perdure.testing import open_test_runtime


class AddressError(ValueError):
    """An address that no courier finds."""

    def __init__(self, address: str) -> None:
        super().__init__(f"no courier finds {address!r}")
        self.address = address


class Order(WorkflowEntrypoint[None]):
    """Packs, waits for an approval, ships to the address that it has by then."""

    async def run(self, event: WorkflowEvent[str], step: WorkflowStep) -> str:
        self.step = step
        self.address = event.payload
        self.packed = await step.do("pack", lambda: 3)
        approval: StepEvent[Any] = await step.wait_for_event("approval", type="approved", timeout=None)
        return await step.transaction("ship", self._shipped, approval.payload)

    @staticmethod
    def _shipped(sql: Any, by: str) -> str:
        rows = sql.exec("SELECT text FROM address").to_list()
        return f"shipped to {rows[-1]['text']}, approved by {by}"

    async def how_many(self) -> int:
        """Return how much is packed."""
        return self.packed

    async def set_address(self, address: str, *, note: str | None = None) -> list[str]:
        """Change the address, unless nobody would find it."""
        if not address[:1].isdigit():
            raise AddressError(address)
        sql = self.ctx.storage.sql
        sql.exec("CREATE TABLE IF NOT EXISTS address (text TEXT)")
        sql.exec("INSERT INTO address VALUES (?)", address)
        return [address, note or ""]

    async def approve(self, by: str) -> None:
        """Approve the order."""
        self.ctx.send_event("approved", by)

    async def step_inside(self) -> None:
        """Do what no method may."""
        await self.step.do("nested", lambda: 1)

    async def slow(self, told: str) -> str:
        """Wait for whoever holds the other end."""
        Signals.begun.set()
        await Signals.go_on.wait()
        return told


class Signals:
    """What the slow method and its test tell each other; made anew for each test's loop."""

    begun: trio.Event
    go_on: trio.Event


async def packed(order: Instance[str]) -> Instance[str]:
    """Return once the order waits for its approval."""
    async with aclosing(order.subscribe()) as story:
        async for entry in story:
            if entry.what == "event started":
                break
    return order


@pytest.fixture(params=["warm", "always"])
def replay(request: pytest.FixtureRequest) -> Replay:
    """Run the test in both replay modes."""
    mode: Replay = request.param
    return mode


@pytest.fixture(autouse=True)
def fresh_events() -> None:
    """Give each test events of its own loop."""
    Signals.begun, Signals.go_on = trio.Event(), trio.Event()


async def test_a_method_sees_what_run_has_done_and_its_writes_stay(tmp_path: Path, replay: Replay) -> None:
    async with open_test_runtime(tmp_path, workflows=[Order], replay=replay) as runtime:
        order = await packed(await runtime.create(Order, params="1 Kay Street", id="a"))
        assert 3 == await order.call(Order.how_many)
        assert ["7 Quay Street", "ring"] == await order.call(Order.set_address, "7 Quay Street", note="ring")
        assert [("7 Quay Street",)] == [tuple(row) for row in await order.sql("SELECT text FROM address")]
        await order.call(Order.approve, "Ada")
        assert "shipped to 7 Quay Street, approved by Ada" == await order.result()


async def test_a_method_that_refuses_keeps_its_error(tmp_path: Path, replay: Replay) -> None:
    async with open_test_runtime(tmp_path, workflows=[Order], replay=replay) as runtime:
        order = await packed(await runtime.create(Order, params="1 Kay Street"))
        with pytest.raises(AddressError, match="no courier finds 'Elsewhere'") as caught:
            await order.call(Order.set_address, "Elsewhere")
        assert "Elsewhere" == caught.value.address
        assert ["in set_address() of " + str(order.key)] == caught.value.__notes__


async def test_what_does_not_fit_is_refused_before_it_reaches_the_instance(tmp_path: Path) -> None:
    async with open_test_runtime(tmp_path, workflows=[Order]) as runtime:
        order = await packed(await runtime.create(Order, params="1 Kay Street"))
        call: Any = order.call
        for method, args, why in (
            ("pack", (), "has no method 'pack' to call; it has: approve, how_many"),
            ("run", (), "has no method 'run'"),
            ("_shipped", (), "has no method '_shipped'"),
            ("set_address", (), "missing a required argument: 'address'"),
            ("set_address", (1, 2), "too many positional arguments"),
            ("set_address", (object(),), "object"),
            ("set_address", (5,), "str"),
        ):
            with pytest.raises(InvalidArgumentError, match=why):
                await call(method, *args)
        assert [] == await order.sql("SELECT 1 FROM sqlite_schema WHERE name = 'address'")


async def test_a_handle_without_the_class_has_the_instance_check(tmp_path: Path) -> None:
    async with open_test_runtime(tmp_path, workflows=[Order]) as runtime:
        await runtime.create(Order, params="1 Kay Street", id="a")
        named = await runtime.get("Order", "a")
        order: Instance[Any] = Instance(named.key, vars(named)["_access"], runtime.queries, None)
        assert ["7 Quay", ""] == await order.call("set_address", "7 Quay")
        with pytest.raises(InvalidArgumentError, match="missing a required argument"):
            await order.call("set_address")


async def test_a_method_calls_no_steps(tmp_path: Path) -> None:
    async with open_test_runtime(tmp_path, workflows=[Order]) as runtime:
        order = await packed(await runtime.create(Order, params="1 Kay Street"))
        with pytest.raises(WorkflowCodeError, match="steps do not nest"):
            await order.call(Order.step_inside)
        assert "waiting" == (await order.status()).status


async def test_a_finished_or_paused_instance_is_not_called(tmp_path: Path) -> None:
    async with open_test_runtime(tmp_path, workflows=[Order]) as runtime:
        order = await packed(await runtime.create(Order, params="1 Kay Street"))
        assert 3 == await order.call(Order.how_many)
        await order.pause()
        with pytest.raises(StateError, match="is paused"):
            await order.call(Order.how_many)
        await order.resume()
        assert 3 == await order.call(Order.how_many)
        await order.terminate()
        with pytest.raises(InstanceFinishedError):
            await order.call(Order.how_many)


async def test_a_pause_waits_for_a_call_under_way(tmp_path: Path) -> None:
    async with open_test_runtime(tmp_path, workflows=[Order]) as runtime:
        order = await packed(await runtime.create(Order, params="1 Kay Street"))
        answers: list[str] = []

        async def call() -> None:
            answers.append(await order.call(Order.slow, "done"))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(call)
            await Signals.begun.wait()
            await order.pause()
            assert "waiting_for_pause" == (await order.status()).status
            Signals.go_on.set()
        assert ["done"] == answers
        assert "paused" == (await order.status()).status


async def test_a_call_goes_on_where_its_caller_has_gone(tmp_path: Path) -> None:
    async with open_test_runtime(tmp_path, workflows=[Order]) as runtime:
        order = await packed(await runtime.create(Order, params="1 Kay Street"))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(functools.partial(order.call, "slow", "done"))
            await Signals.begun.wait()
            nursery.cancel_scope.cancel()
        assert "waiting" != (await order.status()).status
        Signals.go_on.set()
        await order.call(Order.approve, "Ada")


async def test_a_runtime_that_ends_ends_its_calls_with_an_error(tmp_path: Path) -> None:
    refused: list[Exception] = []

    async with trio.open_nursery() as nursery, open_runtime(tmp_path, workflows=[Order]) as runtime:
        order = await packed(await runtime.create(Order, params="1 Kay Street", id="a"))

        async def call() -> None:
            try:
                await order.call(Order.slow, "done")
            except RuntimeClosedError as error:
                refused.append(error)

        nursery.start_soon(call)
        await Signals.begun.wait()
    assert "nobody knows how far it got" in str(refused[0])

    async with open_runtime(tmp_path, workflows=[Order]) as runtime:
        order = await runtime.get(Order, "a")
        assert 3 == await order.call(Order.how_many)


async def test_a_call_wakes_an_instance_that_sleeps(tmp_path: Path, replay: Replay) -> None:
    async with open_test_runtime(tmp_path, workflows=[Order], replay=replay) as runtime:
        order = await packed(await runtime.create(Order, params="1 Kay Street", id="a"))
        assert 3 == await order.call(Order.how_many)
    async with open_test_runtime(tmp_path, workflows=[Order], replay=replay) as runtime:
        order = await runtime.get(Order, "a")
        assert 3 == await order.call(Order.how_many)


class Idle(WorkflowEntrypoint[None]):
    """Waits outside any step."""

    async def run(self, event: WorkflowEvent[None], step: WorkflowStep) -> None:
        self.ready = True
        await trio.sleep_forever()

    async def is_ready(self) -> bool:
        """Say whether run() has begun."""
        return self.ready


async def test_a_run_that_waits_outside_its_steps_is_called_too(tmp_path: Path) -> None:
    async with open_test_runtime(tmp_path, workflows=[Idle]) as runtime:
        idle = await runtime.create(Idle)
        assert await idle.call(Idle.is_ready)
        await idle.terminate()


@pytest.mark.slow
async def test_instances_of_workers_are_called_from_outside_and_from_each_other(
    open_shared: Callable[..., AbstractAsyncContextManager[Runtime]], shared: ModuleType
) -> None:
    async with open_shared(workers=2) as runtime:
        approvals = [await runtime.create(shared.Approval, id=f"a{number}") for number in range(4)]
        for approval in approvals[:2]:
            assert os.getpid() != await approval.call(shared.Approval.tell, 1)
            with pytest.raises(shared.RefusedError, match="not today"):
                await approval.call(shared.Approval.tell, -1)
            await approval.call(shared.Approval.tell, 2)
        for approval in approvals[2:]:
            calling = await runtime.create(shared.Calling, params=approval.id)
            assert os.getpid() != await calling.result()
        assert [[1, 2]] * 4 == [await approval.result() for approval in approvals]
