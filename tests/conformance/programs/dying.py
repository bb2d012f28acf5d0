"""A process that kills itself with SIGKILL once its instance has come to a certain point.

    dying.py FOLDER REPLAY WORKFLOW WHAT STEP [TYPE=PAYLOAD ...]

It creates the instance `a` of a workflow of this file, sends it the events, and dies when its history says
WHAT of STEP. The tests open the folder afterwards with the same workflows.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from typing import Any

import trio

from perdure import (
    EventTimeoutError,
    NonRetryableError,
    WorkflowEntrypoint,
    WorkflowEvent,
    WorkflowStep,
    open_runtime,
)


class Waiting(WorkflowEntrypoint):
    """Waits for one event."""

    async def run(self, event: WorkflowEvent[Any], step: WorkflowStep) -> Any:
        return (await step.wait_for_event("wait", type="go", timeout=None)).payload


class Collector(WorkflowEntrypoint):
    """Waits for one event, and once told to go on, for two more of the same type."""

    async def run(self, event: WorkflowEvent[Any], step: WorkflowStep) -> list[Any]:
        got = [(await step.wait_for_event("wait 0", type="item", timeout=None)).payload]
        await step.wait_for_event("told", type="go on", timeout=None)
        for number in (1, 2):
            try:
                got.append(
                    (await step.wait_for_event(f"wait {number}", type="item", timeout="1 hour")).payload
                )
            except EventTimeoutError:
                got.append("timeout")
        return got


class Caught(WorkflowEntrypoint):
    """Catches what ends a step for good, then waits."""

    async def run(self, event: WorkflowEvent[Any], step: WorkflowStep) -> str:
        try:
            await step.do("charge", charge)
        except NonRetryableError as error:
            told = str(error)
        else:
            told = "charged"
        await step.wait_for_event("told", type="go on", timeout=None)
        return told


async def charge() -> None:
    raise NonRetryableError(f"declined in process {os.getpid()}")


async def main(folder: str, replay: Any, workflow: str, what: str, step: str, *events: str) -> None:
    async with open_runtime(folder, workflows=[Waiting, Collector, Caught], replay=replay) as runtime:
        instance = await runtime.create(workflow, id="a")
        for event in events:
            type_, _, payload = event.partition("=")
            await instance.send_event(type_, payload)
        async for entry in instance.subscribe():
            if (entry.what, entry.step or "") == (what, step):
                os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    begin: Callable[..., Any] = main
    trio.run(begin, *sys.argv[1:])
