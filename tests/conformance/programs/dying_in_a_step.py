"""A process that dies in the only attempt a step allows: `dying_in_a_step.py FOLDER REPLAY`."""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

import trio

from perdure import StepContext, WorkflowEntrypoint, WorkflowEvent, WorkflowStep, open_runtime


async def charge(context: StepContext) -> int:
    """Die with the first attempt; a second would tell."""
    if context.attempt == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return context.attempt


class Once(WorkflowEntrypoint):
    """One step that may run once."""

    async def run(self, event: WorkflowEvent[None], step: WorkflowStep) -> int:
        return await step.do("charge", charge, retries=0)


async def main(*words: str) -> None:
    """Run an instance until it kills the process."""
    folder, replay = words
    how: Any = replay
    async with open_runtime(folder, workflows=[Once], replay=how) as runtime:
        await (await runtime.create(Once, id="a")).result()


if __name__ == "__main__":
    trio.run(main, *sys.argv[1:])
