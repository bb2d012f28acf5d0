"""A plain function that returns while its runtime ends: what it did is recorded, and not done again."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio

from perdure import StepContext, WorkflowEntrypoint, WorkflowEvent, WorkflowStep
from perdure.actors.host import Replay
from perdure.engine.access import Access
from perdure.testing import open_test_runtime

pytestmark = pytest.mark.parametrize("replay", ["warm", "always"])


class Halt:
    """Holds a plain function until the runtime is ending."""

    def __init__(self) -> None:
        self.started = trio.Event()
        self.go_on = threading.Event()
        self.calls = 0

    def unaware(self) -> int:
        """Do not look at the context."""
        return self.wait()

    def aware(self, context: StepContext) -> int:
        """Look at the context, and leave early."""
        self.wait()
        return -1 if context.cancelled else self.calls

    def wait(self) -> int:
        self.calls += 1
        trio.from_thread.run_sync(self.started.set)
        if self.calls == 1:
            self.go_on.wait()
        return self.calls


def workflow(function: Callable[..., int]) -> type[WorkflowEntrypoint[Any]]:
    class Held(WorkflowEntrypoint[Any]):
        async def run(self, event: WorkflowEvent[None], step: WorkflowStep) -> int:
            first = await step.do("held", function)
            return first + 10 * await step.do("then", add, 1)

    return Held


async def add(number: int) -> int:
    return number


async def run_through_a_shutdown(folder: Path, halt: Halt, held: Any, replay: Replay) -> int:
    """Let the function return only when the runtime is ending, and open another one."""
    async with open_test_runtime(folder, workflows=[held], replay=replay) as runtime:
        await runtime.create(held, id="a")
        await halt.started.wait()
        trio.lowlevel.spawn_system_task(release, halt, vars(runtime)["_access"])
    async with open_test_runtime(folder, workflows=[held], replay=replay) as runtime:
        result: int = await (await runtime.get(held, "a")).result()
        return result


async def release(halt: Halt, access: Access) -> None:
    """Let the function return once the runtime is ending, which cancels the attempt."""
    while not access.closing:
        await trio.lowlevel.checkpoint()
    halt.go_on.set()


async def test_one_that_knew_nothing_of_it_has_done_its_work(tmp_path: Path, replay: Replay) -> None:
    halt = Halt()

    assert 11 == await run_through_a_shutdown(tmp_path / "state", halt, workflow(halt.unaware), replay)
    assert 1 == halt.calls


async def test_one_that_was_told_and_left_early_is_run_again(tmp_path: Path, replay: Replay) -> None:
    halt = Halt()

    assert 12 == await run_through_a_shutdown(tmp_path / "state", halt, workflow(halt.aware), replay)
    assert 2 == halt.calls
