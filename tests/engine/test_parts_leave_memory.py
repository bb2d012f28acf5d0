"""An instance whose parallel parts all wait leaves memory, as one that waits in a single step does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import trio

from perdure import WorkflowEntrypoint, WorkflowEvent, WorkflowStep
from perdure.actors.host import Replay
from perdure.testing import VirtualClock, open_test_runtime


async def nothing() -> None:
    pass


class Parts(WorkflowEntrypoint):
    async def run(self, event: WorkflowEvent[str], step: WorkflowStep) -> None:
        parts: Any = {
            "sleep": step.sleep("nap", "30 days"),
            "event": step.wait_for_event("letter", type="letter"),
        }
        match event.payload:
            case "race":
                await step.race("parts", parts)
            case "gather":
                await step.gather("parts", parts)
            case "gather beside work":
                await step.gather("parts", {**parts, "work": nothing})
            case _:
                async with trio.open_nursery() as nursery:
                    for part in parts.values():
                        nursery.start_soon(_await, part)


async def _await(part: Any) -> None:
    await part


class NoJump(VirtualClock):
    """A clock that the test moves."""

    async def wait(self, delay_ms: float | None, changed: trio.Event) -> None:  # it does not jump
        await super().wait(None, changed)


@pytest.mark.parametrize("replay", ["warm", "always"])
@pytest.mark.parametrize("form", ["race", "gather", "gather beside work", "nursery"])
async def test_an_instance_whose_parts_all_wait_leaves_memory(
    form: str, replay: Replay, tmp_path: Path
) -> None:
    clock = NoJump()
    async with open_test_runtime(
        tmp_path / "state", workflows=[Parts], replay=replay, clock=clock
    ) as runtime:
        instance = await runtime.create(Parts, params=form)
        while (await instance.status()).status != "waiting":
            await trio.testing.wait_all_tasks_blocked(0.001)
        clock.advance(6)  # beyond the grace time
        with trio.fail_after(10):
            while runtime.statistics().warm:
                await trio.testing.wait_all_tasks_blocked(0.001)
        status = await instance.status()
        assert status.status == "waiting"
        assert status.wake_at is not None
