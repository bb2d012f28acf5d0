"""A process that dies in a step, once what it said of its progress is on record.

    beats.py FOLDER REPLAY

Its first attempt says "page 7" and kills the process when the file has it; the next tells what it found.
"""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import trio

from perdure import StepContext, WorkflowEntrypoint, WorkflowEvent, WorkflowStep, open_runtime


class Reader(WorkflowEntrypoint):
    async def run(self, event: WorkflowEvent[str], step: WorkflowStep) -> Any:
        return await step.do("read", read, event.payload, returns=list[Any])


def read(file: str, context: StepContext) -> list[Any]:
    if context.attempt > 1:
        return [context.attempt, context.last_heartbeat]
    context.heartbeat("page 1")
    context.heartbeat("page 7")
    while recorded(file) != '"page 7"':
        pass
    os.kill(os.getpid(), signal.SIGKILL)
    return []


def recorded(file: str) -> object:
    with closing(sqlite3.connect(file)) as connection:
        return connection.execute("SELECT heartbeat FROM attempts").fetchone()[0]


async def main(*words: Any) -> list[Any]:
    folder, replay = words
    async with open_runtime(folder, workflows=[Reader], replay=replay, durability="process") as runtime:
        file = str(Path(folder, "Reader", "a.sqlite"))
        instance = await runtime.create(Reader, params=file, id="a", if_exists="attach")
        result: list[Any] = await instance.result()
        rows = await instance.sql("SELECT attempt, outcome, heartbeat FROM attempts ORDER BY attempt")
        return [result, [list(row) for row in rows]]


if __name__ == "__main__":
    sys.stdout.write(json.dumps(trio.run(main, *sys.argv[1:])))
