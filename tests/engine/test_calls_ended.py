"""Calls under way when their instance is ended: nobody waits for a method that may never return."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import trio

from perdure import (
    Instance,
    InstanceNotFoundError,
    InstanceTerminatedError,
    WorkflowCodeError,
    WorkflowEntrypoint,
    WorkflowEvent,
    WorkflowStep,
)
from perdure.actors.host import Replay
from perdure.testing import open_test_runtime

pytestmark = pytest.mark.parametrize("replay", ["warm", "always"])


class Desk(WorkflowEntrypoint[list[trio.Event]]):
    async def run(self, event: WorkflowEvent[None], step: WorkflowStep) -> str:
        await step.do("open", lambda: None)
        return str((await step.wait_for_event("closed", type="closed", timeout=None)).payload)

    async def hang(self) -> None:
        """Never return."""
        self.env[0].set()
        await trio.sleep_forever()

    async def end(self, how: str) -> None:
        """End its own instance."""
        me: Instance[Any] = await self.ctx.runtime.get(Desk, "d")
        await (me.delete() if how == "delete" else me.terminate())

    async def leave(self) -> None:
        raise SystemExit(3)


@pytest.mark.parametrize("how", ["delete", "terminate"])
async def test_a_call_that_never_returns_does_not_keep_its_instance_from_ending(
    tmp_path: Path, replay: Replay, how: str
) -> None:
    begun = trio.Event()
    refused: list[BaseException] = []
    async with open_test_runtime(tmp_path, workflows=[Desk], env=[begun], replay=replay) as runtime:
        desk = await runtime.create(Desk, id="d")

        async def call() -> None:
            try:
                await desk.call(Desk.hang)
            except InstanceTerminatedError as error:
                refused.append(error)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(call)
            await begun.wait()
            await (desk.delete() if how == "delete" else desk.terminate())
        with pytest.raises(InstanceNotFoundError if how == "delete" else InstanceTerminatedError):
            await desk.result()
    assert "nobody knows how far the call got" in str(refused[0])


@pytest.mark.parametrize("how", ["delete", "terminate"])
async def test_a_method_that_ends_its_own_instance_stops_at_that_await(
    tmp_path: Path, replay: Replay, how: str
) -> None:
    async with open_test_runtime(tmp_path, workflows=[Desk], env=[], replay=replay) as runtime:
        desk = await runtime.create(Desk, id="d")
        with pytest.raises(InstanceTerminatedError):
            await desk.call(Desk.end, how)
        with pytest.raises(InstanceNotFoundError if how == "delete" else InstanceTerminatedError):
            await desk.result()


async def test_a_method_that_wants_to_exit_does_not_end_its_caller(tmp_path: Path, replay: Replay) -> None:
    async with open_test_runtime(tmp_path, workflows=[Desk], env=[], replay=replay) as runtime:
        desk = await runtime.create(Desk, id="d")
        with pytest.raises(WorkflowCodeError, match=r"leave\(\) of Desk/d raised SystemExit\(3\)"):
            await desk.call(Desk.leave)
        await desk.send_event("closed", "late")
        assert "late" == await desk.result()
