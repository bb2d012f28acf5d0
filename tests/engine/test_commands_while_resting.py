"""A command that comes while an instance is on its way out of memory takes effect."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import trio

from perdure import (
    Instance,
    InstanceTerminatedError,
    Runtime,
    WorkflowEntrypoint,
    WorkflowEvent,
    WorkflowStep,
)
from perdure.actors.actor import Actor
from perdure.testing import open_test_runtime


class Waiting(WorkflowEntrypoint):
    async def run(self, event: WorkflowEvent[Any], step: WorkflowStep) -> str:
        return str((await step.wait_for_event("word", type="word", timeout=None)).payload)


async def leaving(runtime: Runtime) -> tuple[Instance[str], Actor]:
    """Return an instance that has just been told to leave memory."""
    instance = await runtime.create(Waiting, id="w")
    lives: dict[Any, Any] = vars(runtime)["_access"].loop.lives
    with trio.fail_after(30):
        while not (
            instance.key in lives and lives[instance.key].actor and lives[instance.key].actor.is_parked
        ):
            await trio.lowlevel.checkpoint()
    actor: Actor = lives[instance.key].actor
    actor.hibernate()
    return instance, actor


async def test_a_terminate_is_not_lost(tmp_path: Path) -> None:
    async with open_test_runtime(tmp_path, workflows=[Waiting], replay="warm") as runtime:
        instance, actor = await leaving(runtime)
        actor.control.terminate(who=None, token=None)

        with trio.fail_after(30), pytest.raises(InstanceTerminatedError):
            await instance.result()


async def test_a_pause_is_not_lost(tmp_path: Path) -> None:
    async with open_test_runtime(tmp_path, workflows=[Waiting], replay="warm") as runtime:
        instance, actor = await leaving(runtime)
        actor.control.pause(who=None, token=None)
        with trio.fail_after(30):
            while any(row.open for row in runtime.rows()):
                await trio.lowlevel.checkpoint()

        assert "paused" == (await instance.status()).status
        await instance.resume()
        await instance.send_event("word", "hello")
        assert "hello" == await instance.result()
