"""A command that was acknowledged takes effect, though the process dies before the instance has ended."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import trio

from perdure import InstanceTerminatedError, WorkflowEntrypoint, WorkflowEvent, WorkflowStep
from perdure.actors.host import Replay
from perdure.testing import open_test_runtime

pytestmark = pytest.mark.parametrize("replay", ["warm", "always"])
BEGUN: list[str] = []
STOP = "stop-1"


class Stubborn(WorkflowEntrypoint[trio.Event]):
    """Its step cleans up for as long as the test likes."""

    async def run(self, event: WorkflowEvent[None], step: WorkflowStep) -> str:
        env = self.env

        async def work() -> None:
            BEGUN.append("work")
            with trio.CancelScope(shield=True):
                await env.wait()

        await step.do("work", work, retries=0)
        return "done"


class Booking(WorkflowEntrypoint[trio.Event]):
    async def run(self, event: WorkflowEvent[None], step: WorkflowStep) -> str:
        await step.do("book", int)
        BEGUN.append("booked")
        await step.wait_for_event("never", type="never", timeout=None)
        return "done"


@pytest.fixture(autouse=True)
def nothing_begun() -> None:
    BEGUN.clear()


async def begun(what: str) -> None:
    while what not in BEGUN:
        await trio.lowlevel.checkpoint()


async def copied(state: Path) -> Path:
    """Return what is on disk of a folder in use, as a killed process would leave it."""
    copy = state.with_name("killed")
    # A file beside another may go meanwhile: that is no failure.
    await trio.run_process(["cp", "-r", str(state), str(copy)], check=False, capture_stderr=True)
    (copy / "doorbell.sock").unlink(missing_ok=True)
    return copy


async def test_a_terminate_takes_effect(tmp_path: Path, replay: Replay) -> None:
    may_end = trio.Event()
    async with (
        open_test_runtime(tmp_path / "state", workflows=[Stubborn], env=may_end, replay=replay) as runtime,
        trio.open_nursery() as nursery,
    ):
        instance = await runtime.create(Stubborn, id="one")
        await begun("work")
        nursery.start_soon(partial(instance.terminate, who="Ada", token=STOP))
        while "terminate" not in [entry.what for entry in await instance.history()]:
            await trio.lowlevel.checkpoint()
        killed = await copied(tmp_path / "state")
        may_end.set()

    async with open_test_runtime(killed, workflows=[Stubborn], env=may_end, replay=replay) as runtime:
        instance = await runtime.get(Stubborn, "one")
        with pytest.raises(InstanceTerminatedError):
            await instance.result()
        await instance.terminate(who="Ada", token=STOP)  # as a sender does whose reply was lost
        told = [entry.what for entry in await instance.history()]

    assert 1 == told.count("terminate")
    assert "instance terminated" == told[-1]
    assert ["work"] == BEGUN


async def test_a_restart_after_a_terminate_counts(tmp_path: Path, replay: Replay) -> None:
    may_end = trio.Event()
    async with open_test_runtime(
        tmp_path / "state", workflows=[Booking], env=may_end, replay=replay
    ) as runtime:
        instance = await runtime.create(Booking, id="one")
        await begun("booked")
        await instance.terminate()
        await instance.restart()
        while not await instance.sql("SELECT 1 FROM steps WHERE status = 'waiting'"):
            await trio.lowlevel.checkpoint()
        killed = await copied(tmp_path / "state")

    async with open_test_runtime(killed, workflows=[Booking], env=may_end, replay=replay) as runtime:
        instance = await runtime.get(Booking, "one")
        await instance.send_event("never")
        assert "done" == await instance.result()


async def test_a_pause_takes_effect(tmp_path: Path, replay: Replay) -> None:
    may_end = trio.Event()
    async with open_test_runtime(
        tmp_path / "state", workflows=[Stubborn], env=may_end, replay=replay
    ) as runtime:
        instance = await runtime.create(Stubborn, id="one")
        await begun("work")
        await instance.pause()
        killed = await copied(tmp_path / "state")
        may_end.set()

    async with open_test_runtime(killed, workflows=[Stubborn], env=may_end, replay=replay) as runtime:
        instance = await runtime.get(Stubborn, "one")
        while "paused" != (await instance.status()).status:
            await trio.lowlevel.checkpoint()
    assert ["work"] == BEGUN
