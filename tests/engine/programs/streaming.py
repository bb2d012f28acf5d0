"""Workflows that stream. Run as a program it kills itself while the first attempt writes.

streaming.py STATE DURABILITY REPLAY
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import cast

import trio

from perdure import (
    App,
    Retries,
    StepContext,
    StreamWriter,
    WorkflowEntrypoint,
    WorkflowEvent,
    WorkflowStep,
    open_runtime,
)
from perdure.actors.host import Replay
from perdure.storage.records import Durability

FIRST = 5


def die() -> None:
    """Kill this process, where it is the program and not the test."""
    if __name__ == "__main__":
        os.kill(os.getpid(), signal.SIGKILL)


async def tell(out: StreamWriter[str], context: StepContext) -> None:
    for number in range(FIRST):
        await out.write(f"{context.attempt}.{number}")
        await trio.sleep(0.001)
    if context.attempt == 1:
        die()


async def letters(context: StepContext) -> AsyncIterator[str]:
    for letter in "abc":
        yield f"{context.attempt}{letter}"
    if context.attempt == 1:
        die()


class Telling(WorkflowEntrypoint):
    """Streams from a step whose first attempt is lost with its process."""

    async def run(self, event: WorkflowEvent[None], step: WorkflowStep) -> str:
        async with step.writable("tokens") as out:
            await out.write("begin")
            await step.do("tell", tell, out, retries=Retries(limit=3, delay=0.001))
            await out.write("end")
        return "told"


class Spelling(WorkflowEntrypoint):
    """Has a step that yields and whose first attempt is lost with its process."""

    async def run(self, event: WorkflowEvent[None], step: WorkflowStep) -> list[str]:
        return await (await step.do("letters", letters)).collect()


class Waiting(WorkflowEntrypoint):
    """Streams, waits for an event with the stream open, and streams on."""

    async def run(self, event: WorkflowEvent[None], step: WorkflowStep) -> None:
        async with step.writable("tokens") as out:
            await out.write("before")
            await step.wait_for_event("go", type="go")
            await out.write("after")


app = App([Telling, Spelling, Waiting])


async def main(state: Path, durability: Durability, replay: Replay) -> None:
    async with open_runtime(state, app, durability=durability, replay=replay) as runtime:
        for cls in (Telling, Spelling):
            await runtime.create(cls, id="a")
        await trio.sleep_forever()


if __name__ == "__main__":
    trio.run(main, Path(sys.argv[1]), cast("Durability", sys.argv[2]), cast("Replay", sys.argv[3]))
