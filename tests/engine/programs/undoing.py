"""A process that dies in the middle of a rollback: a handler kills it with SIGKILL.

    undoing.py FOLDER REPLAY HOW [KILLS]

`fails`: the instance ends by an error of `run()`. `terminates`: it waits, and this process terminates it
with a rollback, or finds that done. The first KILLS attempts of the handler of its second step kill the
process. Prints how the instance ended, and what the handlers did in all processes, as JSON.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import trio

from perdure import (
    InstanceFailedError,
    InstanceFinishedError,
    InstanceTerminatedError,
    RollbackContext,
    WorkflowEntrypoint,
    WorkflowEvent,
    WorkflowStep,
    open_runtime,
)

KILLS = int(sys.argv[4]) if len(sys.argv) > 4 else 1
NOTES = Path(f"{sys.argv[1]}.notes")


def note(*words: object) -> None:
    with NOTES.open("a", encoding="utf-8") as notes:
        notes.write(" ".join(map(str, words)) + "\n")


async def book(number: int) -> int:
    note("book", number)
    return number * 10


async def undo(context: RollbackContext[int]) -> None:
    note("undo", context.name, context.output, context.attempt, type(context.error).__name__)
    if context.name == "hotel" and context.attempt <= KILLS:
        os.kill(os.getpid(), signal.SIGKILL)


class Trip(WorkflowEntrypoint):
    async def run(self, event: WorkflowEvent[str], step: WorkflowStep) -> None:
        for number, name in enumerate(("flight", "hotel", "car"), 1):
            await step.do(name, book, number, rollback=undo)
        if event.payload == "fails":
            raise RuntimeError("no stock")
        await step.wait_for_event("home", type="home", timeout=None)


def noted() -> list[str]:
    return NOTES.read_text(encoding="utf-8").splitlines()


async def main(folder: str, mode: str, how: str) -> None:
    replay: Any = mode
    async with open_runtime(folder, workflows=[Trip], replay=replay) as runtime:
        instance = await runtime.create(Trip, params=how, id="a", if_exists="attach")
        if how == "terminates":
            async with contextlib.aclosing(instance.subscribe()) as story:
                async for entry in story:
                    if entry.what in ("event started", "instance rolling back"):
                        break
            with contextlib.suppress(InstanceFinishedError):
                await instance.terminate(rollback=True)
        with contextlib.suppress(InstanceFailedError, InstanceTerminatedError):
            await instance.result()
        status = await instance.status()
        rollback = status.rollback
        json.dump(
            {
                "status": status.status,
                "rollback": rollback and rollback.outcome,
                "notes": noted(),
                "attempts": [
                    list(row)
                    for row in await instance.sql(
                        "SELECT name, attempt, outcome FROM attempts JOIN steps ON seq = step_seq"
                        " WHERE kind = 'rollback' ORDER BY step_seq, attempt"
                    )
                ],
            },
            sys.stdout,
        )


if __name__ == "__main__":
    trio.run(main, sys.argv[1], sys.argv[2], sys.argv[3])
